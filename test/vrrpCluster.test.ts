/**
 * Routers of one VRID on a simulated wire: elections, takeovers and returns as transcripts; and that there is exactly one
 * master soon after whatever was broken is whole again.
 */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../actors/random.ts';
import { masterDownMs } from '../machines/vrrpRouter.ts';
import type { RouterSettings } from '../machines/vrrpRouter.ts';
import { say, Scenario, send, start, stop, wait } from './transcript.ts';
import type { Step, Wire } from './transcript.ts';

/** Node `a` has address 10.9.0.1, `b` 10.9.0.2, and so on. */
const hostOf = (name: string): number => name.charCodeAt(0) - 96;

const node = (name: string, settings: Partial<RouterSettings> = {}): Step[] => [
  start(`address/${name}/vip`, 'virtualAddress', {
    router: `router/${name}`,
    address: 'vip',
    settings: { repeat: 5, delayMs: 5000, refreshMs: 0, refreshRepeat: 1, retryMs: 1000 },
  }),
  start(`router/${name}`, 'vrrpRouter', {
    name,
    settings: {
      version: 3,
      vrid: 51,
      priority: 100,
      advertMs: 1000,
      preempt: true,
      preemptDelayMs: 0,
      startDelayMs: 0,
      addresses: [`address/${name}/vip`],
      track: [],
      group: null,
      ...settings,
    },
  }),
  linkUp(name),
];
const linkUp = (name: string): Step =>
  send(`router/${name}`, 'interface.up', { address: `10.9.0.${hostOf(name)}`, key: `0a09000${hostOf(name)}` });
/** Killed: it says nothing more, and its address stays where it is. */
const killed = (name: string): Step[] => [stop(`router/${name}`), stop(`address/${name}/vip`)];
const command = (name: string, type: string): Step => send(`router/${name}`, type);

/** A wire that can be cut. */
class Cable implements Wire {
  parts: string[][] = [];
  loss: () => boolean = () => false;
  delay: () => number = () => 0.1;

  delayMs(): number {
    return this.delay();
  }

  reaches(from: string, to: string): boolean {
    const partOf = (router: string) => this.parts.findIndex((part) => part.includes(router.slice('router/'.length)));
    return partOf(from) === partOf(to) && !this.loss();
  }
}

const changes = new Set(['vrrpRouter', 'tracker', 'pool']);
const cluster = (wire: Wire = new Cable()): Scenario =>
  new Scenario({ wire, shows: ({ steady, machine }) => !steady && changes.has(machine) });

const masters = (scenario: Scenario): string[] =>
  [...scenario.system.all()]
    .filter(({ machine, state }) => machine === 'vrrpRouter' && state === 'master')
    .map(({ id }) => id.slice('router/'.length));
const holders = (scenario: Scenario): string[] => [...scenario.held].map((id) => id.split('/')[1]!).sort();

/** When each router became master, in ms. */
const takeovers = (scenario: Scenario): [number, string][] =>
  scenario.entries
    .filter(({ effects }) =>
      effects.some(({ type, params }) => type === 'notify' && (params as { state: string }).state === 'MASTER'),
    )
    .map(({ monoUs, actor }) => [monoUs / 1000, actor.slice('router/'.length)]);

const settled = (scenario: Scenario, master: string): void => {
  expect(masters(scenario)).toEqual([master]);
  expect(holders(scenario)).toEqual([master]);
  expect(scenario.faults).toEqual([]);
  expect(scenario.system.counters.unhandled).toBe(0);
};

describe('scenarios', () => {
  test('election of three: the highest becomes master first, the others never', async () => {
    const scenario = cluster().play(
      ...node('a', { priority: 100 }),
      ...node('b', { priority: 200 }),
      ...node('c', { priority: 150 }),
      wait(10_000),
    );
    settled(scenario, 'b');
    expect(takeovers(scenario)).toEqual([[3218.75, 'b']]);
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/vrrp-election.txt');
  });

  test('takeover after silence: by the next highest, a master-down time after the last advert', async () => {
    const scenario = cluster().play(
      ...node('a', { priority: 100 }),
      ...node('b', { priority: 200 }),
      ...node('c', { priority: 150 }),
      wait(10_500),
      say('b is killed: its last advert was at 10218.75, and reached the others 0.1 ms later.'),
      ...killed('b'),
      wait(10_000),
    );
    expect(masters(scenario)).toEqual(['c']);
    expect(takeovers(scenario)[1]).toEqual([13_632.913, 'c']);
    scenario.play(
      say('It is started again: what it has left behind is taken away, and it preempts.'),
      ...node('b', { priority: 200 }),
    );
    expect(holders(scenario)).toEqual(['c']);
    scenario.play(wait(10_000));
    settled(scenario, 'b');
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/vrrp-silence.txt');
  });

  test('priority 0: the next highest waits for its skew time alone, and the address is never on no node', async () => {
    const scenario = cluster().play(
      ...node('a', { priority: 100 }),
      ...node('b', { priority: 200 }),
      ...node('c', { priority: 150 }),
      wait(10_000),
      say('b is stopped.'),
      command('b', 'router.stop'),
    );
    for (let ms = 0; ms < 2000; ms += 10) {
      scenario.play(wait(10));
      expect(holders(scenario)).toHaveLength(1);
    }
    settled(scenario, 'c');
    // The skew time of priority 150, 414.0625 ms, from the arrival.
    expect(takeovers(scenario)[1]).toEqual([10_414.163, 'c']);
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/vrrp-priority-zero.txt');
  });

  test('at 10 ms two backups of priorities 100 and 101 keep their order', () => {
    const wire = new Cable();
    wire.delay = () => 0.01;
    const scenario = cluster(wire).play(
      ...node('a', { priority: 100, advertMs: 10 }),
      ...node('b', { priority: 200, advertMs: 10 }),
      ...node('c', { priority: 101, advertMs: 10 }),
      wait(100),
      command('b', 'router.stop'),
      wait(100),
    );
    expect(takeovers(scenario).map(([, name]) => name)).toEqual(['b', 'c']);
  });

  test('preemption without a delay, with one, and not at all', async () => {
    const scenario = cluster().play(...node('a', { priority: 100 }), wait(5000));
    scenario.play(say('b is higher and preempts at once: after a master-down time.'), ...node('b', { priority: 200 }));
    scenario.play(wait(5000));
    settled(scenario, 'b');
    scenario.play(
      say('c is higher still, and leaves b alone for 20 s and then until its timer has run out.'),
      ...node('c', { priority: 250, preemptDelayMs: 20_000 }),
      wait(20_000),
    );
    settled(scenario, 'b');
    scenario.play(wait(4000));
    settled(scenario, 'c');
    scenario.play(
      say('d is the highest and does not preempt, until there is nobody else.'),
      ...node('d', { priority: 254, preempt: false }),
      wait(20_000),
    );
    settled(scenario, 'c');
    scenario.play(command('c', 'router.stop'), wait(5000));
    settled(scenario, 'd');
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/vrrp-preemption.txt');
  });

  test('split and heal: two masters for as long as it lasts, one within an interval, and neighbours point at it', async () => {
    const wire = new Cable();
    const scenario = cluster(wire).play(
      ...node('a', { priority: 100 }),
      ...node('b', { priority: 200 }),
      ...node('c', { priority: 150 }),
      wait(10_000),
      say('b is cut off from a and c.'),
    );
    wire.parts = [['b'], ['a', 'c']];
    scenario.play(wait(10_000));
    expect(masters(scenario).toSorted()).toEqual(['b', 'c']);
    scenario.play(say('It is healed.'));
    wire.parts = [];
    const healedMs = scenario.clock.monoUs() / 1000;
    scenario.play(wait(1001));
    settled(scenario, 'b');
    const last = (name: string) => scenario.announced.findLast(({ address }) => address === `address/${name}/vip`)!.ms;
    expect(last('b')).toBeGreaterThan(healedMs);
    expect(last('b')).toBeGreaterThan(last('c'));
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/vrrp-split.txt');
  });

  test('two of equal priority in a split: the greater address stays', () => {
    const wire = new Cable();
    wire.parts = [['a'], ['b']];
    const scenario = cluster(wire).play(...node('a'), ...node('b'), wait(10_000));
    expect(masters(scenario)).toEqual(['a', 'b']);
    wire.parts = [];
    scenario.play(wait(1001));
    settled(scenario, 'b');
  });

  test('a pool that is lost and returns moves the master there and back', async () => {
    const pool = (name: string): Step[] => [
      start(`pool/${name}`, 'pool', {
        name,
        settings: {
          allBackups: false,
          quorum: 1,
          hysteresis: 0,
          watchers: [{ tracker: `tracker/pool/${name}`, atLeast: 1 }],
        },
      }),
      send(`pool/${name}`, 'server.joined', {
        server: 'web1',
        weight: 1,
        backup: false,
        checked: true,
        initially: 'up',
      }),
      start(`tracker/pool/${name}`, 'tracker', {
        id: `tracker/pool/${name}`,
        settings: {
          kind: 'pool',
          subject: `pool/${name}`,
          intervalMs: 0,
          rise: 1,
          fall: 1,
          routers: [`router/${name}`],
        },
      }),
    ];
    const tracking = (name: string) => [{ tracker: `tracker/pool/${name}`, weight: -60, reverse: false }];
    const scenario = cluster().play(
      ...pool('a'),
      ...pool('b'),
      ...node('a', { priority: 150, track: tracking('a') }),
      ...node('b', { priority: 100, track: tracking('b') }),
      wait(10_000),
    );
    settled(scenario, 'a');
    scenario.play(
      say('a’s last server is down: 90 is less than 100.'),
      send('pool/a', 'server.health', { server: 'web1', health: 'down' }),
      wait(5000),
    );
    settled(scenario, 'b');
    scenario.play(
      say('It is up again.'),
      send('pool/a', 'server.health', { server: 'web1', health: 'up' }),
      wait(5000),
    );
    settled(scenario, 'a');
    scenario.play(
      say('Both lose theirs: 90 is still more than 40.'),
      ...['a', 'b'].map((name) => send(`pool/${name}`, 'server.health', { server: 'web1', health: 'down' })),
      wait(10_000),
    );
    settled(scenario, 'a');
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/vrrp-pool-lost.txt');
  });

  test('an operator demotes the master: the next one takes over without a gap, and gives back when he promotes it', () => {
    const scenario = cluster().play(
      ...node('a', { priority: 100 }),
      ...node('b', { priority: 200 }),
      wait(10_000),
      command('b', 'operator.demote'),
    );
    for (let ms = 0; ms < 2000; ms += 10) {
      scenario.play(wait(10));
      expect(holders(scenario)).toHaveLength(1);
    }
    settled(scenario, 'a');
    scenario.play(wait(20_000));
    settled(scenario, 'a');
    scenario.play(command('b', 'operator.promote'), wait(5000));
    settled(scenario, 'b');
  });

  test('a master with a longer interval than its peers’ is followed by its own: no takeover between its adverts', () => {
    const scenario = cluster().play(
      ...node('a', { priority: 100 }),
      wait(5000),
      ...node('b', { priority: 200, advertMs: 10_000 }),
      wait(100_000),
    );
    settled(scenario, 'b');
    expect(takeovers(scenario).map(([, name]) => name)).toEqual(['a', 'b']);
  });

  test('a master whose interval a reload makes longer stays master', () => {
    const scenario = cluster().play(...node('a', { priority: 100 }), ...node('b', { priority: 200 }), wait(10_000));
    const settings = scenario.system.get('router/b')!.context as { settings: RouterSettings };
    scenario.play(
      send('router/b', 'settings.changed', { settings: { ...settings.settings, advertMs: 20_000 } }),
      wait(100_000),
    );
    settled(scenario, 'b');
    expect(takeovers(scenario)).toHaveLength(1);
  });
});

const NAMES = ['a', 'b', 'c'];
const trouble = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: 1, max: 5000 }).map((ms) => ({ do: 'wait' as const, ms })) },
  {
    weight: 2,
    arbitrary: fc.array(fc.integer({ min: 0, max: 2 }), { minLength: 3, maxLength: 3 }).map((sides) => ({
      do: 'cut' as const,
      parts: [0, 1, 2].map((side) => NAMES.filter((_, index) => sides[index] === side)),
    })),
  },
  { weight: 1, arbitrary: fc.constantFrom(0, 0.1, 0.5, 0.9).map((share) => ({ do: 'lose' as const, share })) },
  { weight: 1, arbitrary: fc.constantFrom(...NAMES).map((name) => ({ do: 'kill' as const, name })) },
  { weight: 1, arbitrary: fc.constantFrom(...NAMES).map((name) => ({ do: 'begin' as const, name })) },
  {
    weight: 1,
    arbitrary: fc
      .tuple(fc.constantFrom(...NAMES), fc.boolean())
      .map(([name, up]) => ({ do: 'link' as const, name, up })),
  },
);

describe('whatever happens', () => {
  test('when all is whole again there is one master within its master-down time, it is the highest, and it alone has the address', () => {
    const priorities = fc.array(fc.constantFrom(1, 99, 100, 101, 254, 255), { minLength: 3, maxLength: 3 });
    const everything = fc.tuple(
      fc.nat(),
      priorities,
      fc.constantFrom(10, 1000),
      fc.boolean(),
      fc.array(trouble, { maxLength: 25 }),
    );
    fc.assert(
      fc.property(everything, ([seed, levels, advertMs, preempt, happened]) => {
        const random = seededRandom(seed);
        const wire = new Cable();
        // Up to a fifth of an interval.
        const longestMs = advertMs / 5;
        wire.delay = () => 0.01 + random() * longestMs;
        const scenario = cluster(wire);
        const settings = (name: string) => ({ priority: levels[NAMES.indexOf(name)]!, advertMs, preempt });
        const runs = (name: string) => scenario.system.has(`router/${name}`);
        for (const name of NAMES) scenario.play(...node(name, settings(name)));
        for (const step of happened) {
          if (step.do === 'wait') scenario.play(wait((step.ms * advertMs) / 1000));
          else if (step.do === 'cut') wire.parts = step.parts;
          else if (step.do === 'lose') wire.loss = () => random() < step.share;
          else if (step.do === 'kill' && runs(step.name)) scenario.play(...killed(step.name));
          else if (step.do === 'begin' && !runs(step.name)) scenario.play(...node(step.name, settings(step.name)));
          else if (step.do === 'link' && runs(step.name))
            scenario.play(
              step.up
                ? linkUp(step.name)
                : send(`router/${step.name}`, 'interface.down', { code: 'DOWN', message: 'no carrier' }),
            );
        }
        wire.parts = [];
        wire.loss = () => false;
        for (const name of NAMES) scenario.play(...(runs(name) ? [linkUp(name)] : node(name, settings(name))));
        const highest = Math.max(...levels);
        // What is still on the wire may start a timer anew; then every advert takes its time.
        scenario.play(wait(masterDownMs({ version: 3 }, highest, advertMs) + 3 * longestMs));
        const [master, ...others] = masters(scenario);
        expect(others).toEqual([]);
        expect(master).toBeDefined();
        expect(!preempt || levels[NAMES.indexOf(master!)] === highest).toBe(true);
        expect(holders(scenario)).toEqual([master]);
        // And it stays so.
        const before = takeovers(scenario).length;
        scenario.play(wait(20 * advertMs));
        expect(masters(scenario)).toEqual([master]);
        expect(takeovers(scenario)).toHaveLength(before);
        expect(scenario.faults).toEqual([]);
        expect(scenario.system.counters.unhandled).toBe(0);
      }),
      { numRuns: 300 },
    );
  });
});
