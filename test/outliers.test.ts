/** Outliers: servers whose live traffic fails are ejected, not too many at a time, ever longer, and come back. */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Effect } from '../actors/decide.ts';
import type { PoolSettings } from '../machines/pool.ts';
import { trafficObserver } from '../machines/trafficObserver.ts';
import type {
  ObserverSettings,
  TrafficObserved,
  TrafficObserverContext,
  TrafficObserverEvent,
} from '../machines/trafficObserver.ts';
import { verify } from '../src/worlds/replay.ts';
import { downWhile, makeFolder, SimulatedNode, webConfig, withReader } from './journalHelpers.ts';
import { failInARow, parseObserve, withObserve } from './observeHelpers.ts';
import { delayOf, Stepper, toldTo } from './stepper.ts';
import { broken, healthy, say, Scenario, send, start, wait, withoutRounds } from './transcript.ts';
import type { Step } from './transcript.ts';

type Outliers = NonNullable<ObserverSettings['outliers']>;

const OUTLIERS: Outliers = { consecutiveErrors: 5, errorRate: null, baseEjectionMs: 30_000, maxEjectionMs: 300_000 };
const RATE = { above: 50, minimumRequests: 20, intervalMs: 10_000 };
const EJECTION = 'xstate.after.ejection.trafficObserver.ejected';
const FORGIVENESS = 'xstate.after.forgiveness.trafficObserver.probation';

type Observer = Stepper<TrafficObserverEvent, TrafficObserverContext>;

const observerWith = (outliers: Partial<Outliers> = {}, observe: ObserverSettings['observe'] = null): Observer =>
  new Stepper(trafficObserver, {
    pool: 'web',
    server: 'a',
    settings: { observe, outliers: { ...OUTLIERS, ...outliers } },
  });

const seen = (given: Partial<TrafficObserved> = {}): TrafficObserved => ({
  type: 'traffic.observed',
  passed: 0,
  failed: given.consecutive ?? 1,
  row: 0,
  consecutive: 1,
  kind: 'status',
  detail: '503',
  ...given,
});

const WHY = { code: 'consecutiveErrors', errors: 5, kind: 'status', detail: '503' } as const;
const granted: TrafficObserverEvent = { type: 'ejection.granted', why: WHY, ejected: 1, allowed: 1, of: 3 };

const suspicions = (effects: Effect[]): unknown[] =>
  toldTo(effects, 'pool/web')
    .filter(({ type }) => type === 'outlier.suspected')
    .map((event) => (event as unknown as { why: unknown }).why);

const after = (observer: Observer, timer: string): Effect[] => observer.send({ type: timer } as never);

describe('errors in a row', () => {
  test('at the limit, and not before, the pool is asked', () => {
    const observer = observerWith();
    expect(suspicions(observer.send(seen({ consecutive: 4 })))).toEqual([]);
    expect(suspicions(observer.send(seen({ consecutive: 5, failed: 1 })))).toEqual([WHY]);
    expect(observer.state).toBe('admitted');
  });

  test('a report that is nothing new leaves the very same snapshot', () => {
    const observer = observerWith();
    const before = observer.snapshot;
    expect(observer.send(seen({ consecutive: 4, passed: 7 }))).toEqual([]);
    expect(observer.snapshot).toBe(before);
    observer.sendAll(seen({ consecutive: 5 }), {
      type: 'ejection.refused',
      because: 'cap',
      why: WHY,
      ejected: 1,
      allowed: 1,
      of: 3,
    });
    const asked = observer.snapshot;
    expect(observer.send(seen({ consecutive: 9, failed: 4 }))).toEqual([]);
    expect(observer.snapshot).toBe(asked);
  });

  test('one that was refused is suspected again after as many more of the same row, or in another row', () => {
    const observer = observerWith();
    observer.send(seen({ consecutive: 5 }));
    expect(suspicions(observer.send(seen({ consecutive: 9 })))).toEqual([]);
    expect(suspicions(observer.send(seen({ consecutive: 10 })))).toHaveLength(1);
    expect(suspicions(observer.send(seen({ row: 1, consecutive: 5 })))).toHaveLength(1);
  });

  test('two workers may tell of the same row: it is answered once', () => {
    const observer = observerWith();
    expect(suspicions(observer.send(seen({ consecutive: 5, failed: 2 })))).toHaveLength(1);
    expect(suspicions(observer.send(seen({ consecutive: 4, failed: 3 })))).toEqual([]);
  });

  test('with 0 no row of errors is an outlier', () => {
    expect(suspicions(observerWith({ consecutiveErrors: 0 }).send(seen({ consecutive: 5000 })))).toEqual([]);
  });
});

describe('the rate of errors', () => {
  const rated = () => observerWith({ consecutiveErrors: 0, errorRate: RATE });
  const elapsed: TrafficObserverEvent = { type: 'interval.elapsed' };

  test('the interval begins with an error and is judged at its end, the last report of a worker having come', () => {
    const observer = rated();
    expect(delayOf(observer.send(seen({ failed: 6, passed: 1 })), 'interval')).toBe(10_250);
    expect(delayOf(observer.send(seen({ failed: 5, passed: 9 })), 'interval')).toBeNull();
    expect(suspicions(observer.send(elapsed))).toEqual([{ code: 'errorRate', errors: 11, of: 21 }]);
    expect(observer.context.interval).toBeNull();
  });

  test.each([
    ['exactly the share is not above it', 10, 10],
    ['fewer exchanges than the minimum say nothing', 19, 0],
  ])('%s', (_what, failed, passed) => {
    const observer = rated();
    observer.send(seen({ failed, passed }));
    expect(observer.send(elapsed)).toEqual([]);
  });

  test('what passes while there is no interval is nothing new', () => {
    const observer = rated();
    const before = observer.snapshot;
    observer.send(seen({ failed: 0, passed: 100, consecutive: 0, kind: null }));
    expect(observer.snapshot).toBe(before);
  });
});

describe('ejection', () => {
  test('it lasts the base time, and its server is told why and how long', () => {
    const observer = observerWith();
    const effects = observer.send(granted);
    expect(observer.state).toBe('ejected');
    expect(delayOf(effects, EJECTION)).toBe(30_000);
    expect(toldTo(effects, 'server/web/a')).toEqual([
      { type: 'ejection.began', durationMs: 30_000, ejections: 1, why: WHY, ejected: 1, allowed: 1, of: 3 },
    ]);
  });

  test('at its end the server hears of it before the pool does', () => {
    const observer = observerWith();
    observer.send(granted);
    const tells = after(observer, EJECTION).filter(({ type }) => type === 'tell');
    expect(tells.map(({ params }) => (params as { to: string; event: { type: string } }).event.type)).toEqual([
      'ejection.ended',
      'outlier.returned',
    ]);
    expect(observer.state).toBe('probation');
  });

  test('each is longer by the base time than the one before, up to the longest', () => {
    const observer = observerWith({ baseEjectionMs: 30_000, maxEjectionMs: 100_000 });
    const lengths: (number | null)[] = [];
    for (let count = 0; count < 5; count++) {
      lengths.push(delayOf(observer.send(granted), EJECTION));
      after(observer, EJECTION);
    }
    expect(lengths).toEqual([30_000, 60_000, 90_000, 100_000, 100_000]);
  });

  test('each base time that goes well forgives one', () => {
    const observer = observerWith();
    observer.send(granted);
    after(observer, EJECTION);
    observer.send(granted);
    const effects = after(observer, EJECTION);
    expect([observer.context.ejections, delayOf(effects, FORGIVENESS)]).toEqual([2, 30_000]);
    expect(delayOf(after(observer, FORGIVENESS), FORGIVENESS)).toBe(30_000);
    expect([observer.state, observer.context.ejections]).toEqual(['probation', 1]);
    after(observer, FORGIVENESS);
    expect([observer.state, observer.context.ejections]).toEqual(['admitted', 0]);
  });

  test('what was under way when it was ejected doesn’t count against it when it is back', () => {
    const observer = observerWith();
    observer.sendAll(seen({ consecutive: 5 }), granted);
    expect(suspicions(observer.send(seen({ consecutive: 12 })))).toEqual([]);
    after(observer, EJECTION);
    expect(suspicions(observer.send(seen({ consecutive: 13, failed: 1 })))).toEqual([]);
    expect(suspicions(observer.send(seen({ consecutive: 17, failed: 4 })))).toHaveLength(1);
  });

  test('an interval that was under way is over with it', () => {
    const observer = observerWith({ errorRate: RATE });
    observer.send(seen({ failed: 4 }));
    const effects = observer.send(granted);
    expect(effects).toContainEqual({ type: 'cancel', params: { id: 'interval' } });
    expect(observer.context.interval).toBeNull();
    observer.send(seen({ failed: 4 }));
    expect(observer.context.interval).toBeNull();
  });

  test.each([
    ['its server goes to maintenance', { type: 'observer.forget' }],
    ['a reload looks for outliers no more', { type: 'settings.changed', settings: { observe: null, outliers: null } }],
  ] as const)('when %s it ends, and nothing is held against it', (_when, event) => {
    const observer = observerWith();
    observer.send(granted);
    expect(toldTo(observer.send(event), 'pool/web')).toEqual([{ type: 'outlier.returned', server: 'a' }]);
    expect([observer.state, observer.context.ejections]).toEqual(['admitted', 0]);
  });

  test('maintenance of a server against which nothing is held is nothing new', () => {
    const observer = observerWith();
    const before = observer.snapshot;
    expect(observer.send({ type: 'observer.forget' })).toEqual([]);
    expect(observer.snapshot).toBe(before);
  });
});

/** A pool of servers that are up, with observers. */
const poolOf = (
  servers: string[],
  {
    pool = {},
    slowStartMs = 0,
    outliers = OUTLIERS,
  }: { pool?: Partial<PoolSettings>; slowStartMs?: number; outliers?: Outliers } = {},
): Step[] => [
  start('pool/web', 'pool', {
    name: 'web',
    settings: { allBackups: false, quorum: 1, hysteresis: 0, maxEjected: 50, ...pool },
  }),
  ...servers.flatMap((name) => [
    start(`checker/web/${name}`, 'healthChecker', {
      pool: 'web',
      server: name,
      settings: { intervalMs: 2000, fastIntervalMs: 500, downIntervalMs: 2000, timeoutMs: 1000, jitter: 0 },
      startDelayMs: 0,
      phase: 0.5,
    }),
    start(`server/web/${name}`, 'backendServer', {
      pool: 'web',
      name,
      settings: {
        rise: 1,
        fall: 1,
        checked: true,
        initially: 'unchecked',
        weight: 1,
        backup: name.startsWith('backup'),
        slowStartMs,
        shutdownSessions: false,
        observed: true,
      },
    }),
    start(`observer/web/${name}`, 'trafficObserver', {
      pool: 'web',
      server: name,
      settings: { observe: null, outliers },
    }),
  ]),
  wait(100),
];

let rows = 0;
/** Five answers in a row fail. */
const fails = (server: string): Step => {
  const { type, ...observed } = seen({ consecutive: 5, row: ++rows });
  return send(`observer/web/${server}`, type, observed);
};

const ejectedOf = (scenario: Scenario): string[] =>
  [...scenario.system.all()]
    .filter(({ state }) => state === 'ejected')
    .map(({ id }) => id.slice('observer/web/'.length));

describe('the pool', () => {
  test('ejects no more than its share: 1 of 3 at 50 %', () => {
    const scenario = new Scenario().play(...poolOf(['a', 'b', 'c']), fails('a'), fails('b'));
    expect(ejectedOf(scenario)).toEqual(['a']);
    expect(scenario.published('web')).toEqual({ b: 100, c: 100 });
    expect(scenario.entries.at(-1)).toMatchObject({
      actor: 'observer/web/b',
      event: { type: 'ejection.refused', because: 'cap', ejected: 1, allowed: 1, of: 3 },
    });
  });

  test('has room for another when one is back', () => {
    const scenario = new Scenario().play(...poolOf(['a', 'b', 'c']), fails('a'), wait(30_000), fails('b'));
    expect(ejectedOf(scenario)).toEqual(['b']);
    expect(scenario.published('web')).toEqual({ a: 100, c: 100 });
  });

  test('never ejects the last that works, whatever its share', () => {
    const all = { pool: { maxEjected: 100 } };
    const scenario = new Scenario().play(
      ...poolOf(['a', 'b', 'c'], all),
      broken('checker/web/c'),
      wait(3000),
      fails('a'),
      fails('b'),
    );
    expect(scenario.published('web')).toEqual({ b: 100 });
    expect(new Scenario().play(...poolOf(['a'], all), fails('a')).published('web')).toEqual({ a: 100 });
  });

  test('ejects the last primary where a backup works', () => {
    const scenario = new Scenario().play(...poolOf(['a', 'backup1']), fails('a'));
    expect([scenario.stateOf('pool/web'), scenario.published('web')]).toEqual(['onBackups', { backup1: 100 }]);
  });

  test('does not spend its share on one that takes no traffic anyway', () => {
    const scenario = new Scenario().play(
      ...poolOf(['a', 'b', 'c']),
      send('server/web/a', 'operator.drain'),
      fails('a'),
      fails('b'),
    );
    expect(ejectedOf(scenario)).toEqual(['b']);
  });

  test('a share that makes less than one server ejects none', () => {
    const scenario = new Scenario().play(...poolOf(['a', 'b', 'c'], { pool: { maxEjected: 10 } }), fails('a'));
    expect(ejectedOf(scenario)).toEqual([]);
  });

  test('one that goes to maintenance while it is ejected makes room, and is admitted when it is back', () => {
    const scenario = new Scenario().play(
      ...poolOf(['a', 'b', 'c']),
      fails('a'),
      send('server/web/a', 'operator.maintenance'),
      fails('b'),
      send('server/web/a', 'operator.ready'),
      wait(1000),
    );
    expect(ejectedOf(scenario)).toEqual(['b']);
    expect(scenario.published('web')).toEqual({ a: 100, c: 100 });
  });

  test('whatever fails and however long it lasts: never more than the share is ejected, and one works', () => {
    const step = fc.oneof(
      fc.constantFrom('a', 'b', 'c', 'd').map(fails),
      fc.integer({ min: 1, max: 90_000 }).map(wait),
    );
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 100 }), fc.array(step, { maxLength: 30 }), (maxEjected, steps) => {
        const scenario = new Scenario().play(...poolOf(['a', 'b', 'c', 'd'], { pool: { maxEjected } }));
        for (const one of steps) {
          scenario.play(one);
          const ejected = ejectedOf(scenario);
          expect(ejected.length).toBeLessThanOrEqual((4 * maxEjected) / 100);
          expect(Object.keys(scenario.published('web')).length).toBe(4 - ejected.length);
          expect(Object.keys(scenario.published('web')).length).toBeGreaterThan(0);
        }
        scenario.play(wait(300_000));
        expect(ejectedOf(scenario)).toEqual([]);
      }),
      { numRuns: 25 },
    );
  });
});

describe('the return', () => {
  test('with slow start it begins with a tenth of its weight, and no moment before with all of it', () => {
    const scenario = new Scenario().play(...poolOf(['a', 'b'], { slowStartMs: 10_000 }), fails('a'));
    const before = scenario.publications('web').length;
    scenario.play(wait(30_000));
    expect(scenario.publications('web').slice(before)).toEqual([{ a: 10 }]);
    scenario.play(wait(10_000));
    expect(scenario.published('web')).toEqual({ a: 100, b: 100 });
  });

  test('a server that was down and rose meanwhile starts slowly when it is back', () => {
    const scenario = new Scenario().play(
      ...poolOf(['a', 'b'], { slowStartMs: 10_000 }),
      fails('a'),
      broken('checker/web/a'),
      wait(3000),
      healthy('checker/web/a'),
      wait(26_000),
    );
    expect(scenario.stateOf('server/web/a')).toBe('up,ready,warm');
    scenario.play(wait(1000));
    expect(scenario.stateOf('server/web/a')).toBe('up,ready,warming');
    expect(scenario.published('web')).toEqual({ a: 10, b: 100 });
  });

  test('one that is still starting slowly then begins anew', () => {
    const scenario = new Scenario().play(
      ...poolOf(['a', 'b'], { slowStartMs: 10_000 }),
      fails('a'),
      broken('checker/web/a'),
      wait(20_000),
      healthy('checker/web/a'),
      wait(7000),
    );
    expect(scenario.stateOf('server/web/a')).toBe('up,ready,warming');
    scenario.play(wait(3000));
    expect(scenario.published('web')).toEqual({ a: 10, b: 100 });
  });

  test('one that is down when its time is over waits for its check', () => {
    const scenario = new Scenario().play(...poolOf(['a', 'b']), fails('a'), broken('checker/web/a'), wait(40_000));
    expect(scenario.stateOf('server/web/a')).toBe('down,ready,cold');
    expect(scenario.published('web')).toEqual({ b: 100 });
    scenario.play(healthy('checker/web/a'), wait(3000));
    expect(scenario.published('web')).toEqual({ a: 100, b: 100 });
  });
});

test('the transcript of an outlier', async () => {
  rows = 0;
  const scenario = new Scenario({ shows: withoutRounds }).play(
    ...poolOf(['a', 'b', 'c']),
    say('five answers of a in a row fail'),
    fails('a'),
    say('b fails as well: one of three may be ejected, and one is'),
    fails('b'),
    say('a is back'),
    wait(30_000),
    say('it fails again: for twice as long'),
    fails('a'),
    wait(60_000),
    say('it goes well for one minute'),
    wait(60_000),
  );
  await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/outliers.txt');
});

test('a journal with ejections, drained servers and panic is decided again as it was', async () => {
  const observe = parseObserve({ observe: 'layer7', outliers: { errorRate: { minimumRequests: 1 } }, panic: '60 %' });
  const config = withObserve(webConfig({ servers: ['web1', 'web2', 'web3'], slowStart: '5s' }), observe);
  const path = `${makeFolder()}/lb1.db`;
  const node = await SimulatedNode.start({ path, config, health: downWhile({ web1: [[30_000, 60_000]] }) });
  for (const [ms, server, errors] of [
    [10_000, 'web2', 5],
    [12_000, 'web3', 3],
    [31_000, 'web2', 10],
    [50_000, 'web2', 20],
  ] as const) {
    node.runUntil(ms);
    failInARow(node, server, errors);
  }
  node.operator('drain', 'web3');
  node.runUntil(200_000);
  await node.journal.close();
  const states = new Set(node.live.map(({ state }) => state));
  expect(states).toContain('panicking');
  expect(states).toContain('ejected');
  withReader(path, (reader) => expect(verify(reader).divergence).toBeNull());
});
