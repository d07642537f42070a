/** One server: rise and fall as HAProxy counts them, what operators ask of it, and slow start. */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { backendServer } from '../machines/backendServer.ts';
import type { BackendServerContext, BackendServerEvent, ServerSettings } from '../machines/backendServer.ts';
import type { OnError } from '../machines/trafficObserver.ts';
import type { CheckerSettings } from '../machines/healthChecker.ts';
import { delayOf, Stepper, toldTo, typesOf } from './stepper.ts';
import { broken, healthy, say, Scenario, send, start, wait, withoutRounds } from './transcript.ts';
import type { Step } from './transcript.ts';

const SETTINGS: ServerSettings = {
  rise: 2,
  fall: 3,
  checked: true,
  initially: 'unchecked',
  weight: 10,
  backup: false,
  slowStartMs: 0,
  shutdownSessions: false,
};

const PACES: CheckerSettings = {
  intervalMs: 2000,
  fastIntervalMs: 500,
  downIntervalMs: 5000,
  timeoutMs: 1000,
  jitter: 0,
};

const passed: BackendServerEvent = { type: 'check.passed', code: 'L7OK', message: '', durationMs: 3 };
const failed: BackendServerEvent = { type: 'check.failed', code: 'L4CON', message: '', durationMs: 3 };
const changedTo = (settings: Partial<ServerSettings>): BackendServerEvent => ({
  type: 'settings.changed',
  settings: { ...SETTINGS, ...settings },
});

type Server = Stepper<BackendServerEvent, BackendServerContext>;

const serverWith = (settings: Partial<ServerSettings> = {}, hint?: 'up' | 'down'): Server =>
  new Stepper(backendServer, {
    pool: 'web',
    name: 'a',
    settings: { ...SETTINGS, ...settings },
    ...(hint ? { hint } : {}),
  });

const healthOf = (server: Server): string => server.state.split(',')[0]!;
const adminOf = (server: Server): string => server.state.split(',')[1]!;
const warmthOf = (server: Server): string => server.state.split(',')[2]!;

const upServer = (settings: Partial<ServerSettings> = {}): Server => {
  const server = serverWith(settings);
  server.send(passed);
  return server;
};

const downServer = (settings: Partial<ServerSettings> = {}): Server => {
  const server = serverWith(settings);
  server.send(failed);
  return server;
};

/** A pool with one server and its checker, started so that each is there before somebody tells it something. */
const oneServer = (settings: Partial<ServerSettings> = {}, hint?: 'up' | 'down'): Step[] => [
  start('pool/web', 'pool', { name: 'web', settings: { allBackups: false, quorum: 1, hysteresis: 0 } }),
  start('server/web/a', 'backendServer', {
    pool: 'web',
    name: 'a',
    settings: { ...SETTINGS, ...settings },
    ...(hint ? { hint } : {}),
  }),
  start('checker/web/a', 'healthChecker', {
    pool: 'web',
    server: 'a',
    settings: PACES,
    startDelayMs: 0,
    phase: 0.5,
  }),
];

describe('rise and fall', () => {
  test('the first check decides, either way', () => {
    expect(healthOf(upServer())).toBe('up');
    expect(healthOf(downServer())).toBe('down');
  });

  test('a server goes down at the fall-th failure in a row and not before', () => {
    const server = upServer({ fall: 3 });
    server.send(failed);
    expect(healthOf(server)).toBe('goingDown');
    server.send(failed);
    expect([healthOf(server), server.context.count]).toEqual(['goingDown', 2]);
    server.send(failed);
    expect(healthOf(server)).toBe('down');
  });

  test('one passed check forgives the failures before it', () => {
    const server = upServer({ fall: 3 });
    server.sendAll(failed, failed, passed);
    expect([healthOf(server), server.context.count]).toEqual(['up', 0]);
    server.sendAll(failed, failed);
    expect(healthOf(server)).toBe('goingDown');
  });

  test('a server comes back at the rise-th pass in a row and not before', () => {
    const server = downServer({ rise: 3 });
    server.sendAll(passed, passed);
    expect([healthOf(server), server.context.count]).toEqual(['goingUp', 2]);
    server.send(passed);
    expect(healthOf(server)).toBe('up');
  });

  test('one failed check starts the count to rise anew', () => {
    const server = downServer({ rise: 2 });
    server.sendAll(passed, failed, passed);
    expect(healthOf(server)).toBe('goingUp');
    server.send(passed);
    expect(healthOf(server)).toBe('up');
  });

  test('fall 1 and rise 1 need a single check', () => {
    const server = upServer({ rise: 1, fall: 1 });
    server.send(failed);
    expect(healthOf(server)).toBe('down');
    server.send(passed);
    expect(healthOf(server)).toBe('up');
  });

  test('a check that only confirms changes nothing: the very same snapshot, no effect', () => {
    for (const [server, event] of [
      [upServer(), passed],
      [downServer(), failed],
    ] as const) {
      const before = server.snapshot;
      expect(server.send(event)).toEqual([]);
      expect(server.snapshot).toBe(before);
    }
  });

  test('a lowered fall counts from the next check on', () => {
    const server = upServer({ fall: 5 });
    server.sendAll(failed, failed, changedTo({ fall: 2 }));
    expect(healthOf(server)).toBe('goingDown');
    server.send(failed);
    expect(healthOf(server)).toBe('down');
  });

  /**
   * HAProxy's own counter (check_notify_success and check_notify_failure in check.c): from 0 to rise + fall - 1, up
   * from rise on; it starts at rise, "up, but will fall down at first failure".
   */
  test('any sequence of checks gives what HAProxy’s counter gives', () => {
    const count = fc.integer({ min: 1, max: 5 });
    fc.assert(
      fc.property(count, count, fc.array(fc.boolean(), { maxLength: 60 }), (rise, fall, checks) => {
        const server = serverWith({ rise, fall });
        const full = rise + fall - 1;
        let health = rise;
        for (const ok of checks) {
          if (ok) {
            if (health < full) health++;
            if (health >= rise) health = full;
          } else if (health > rise) health--;
          else health = 0;
          server.send(ok ? passed : failed);
          const expected =
            health === full
              ? 'up 0'
              : health >= rise
                ? `goingDown ${full - health}`
                : health > 0
                  ? `goingUp ${health}`
                  : 'down 0';
          expect(`${healthOf(server)} ${server.context.count}`).toBe(expected);
        }
      }),
      { numRuns: 300 },
    );
  });
});

describe('errors of live traffic', () => {
  const traffic = (onError: OnError): BackendServerEvent => ({
    type: 'traffic.failed',
    onError,
    errors: 10,
    kind: 'status',
    detail: '503',
  });
  const standing = (server: Server): unknown => [healthOf(server), server.context.count];

  test.each([
    ['fastInterval', ['goingDown', 0]],
    ['failCheck', ['goingDown', 1]],
    ['suddenDeath', ['goingDown', 2]],
    ['markDown', ['down', 0]],
  ] as const)('%s leaves a server of fall 3 that was up %j', (onError, expected) => {
    const server = upServer({ fall: 3 });
    server.send(traffic(onError));
    expect(standing(server)).toEqual(expected);
  });

  test('whatever it does, the next check comes soon, counted from now', () => {
    for (const onError of ['fastInterval', 'failCheck', 'suddenDeath'] as const)
      expect(toldTo(upServer().send(traffic(onError)), 'checker/web/a')).toEqual([
        { type: 'pace.changed', pace: 'fast', elapsedMs: 0 },
      ]);
  });

  test('fastInterval says nothing against it: a passed check makes it up, and fall failed ones down', () => {
    const server = upServer({ fall: 2 });
    server.sendAll(traffic('fastInterval'), passed);
    expect(standing(server)).toEqual(['up', 0]);
    server.sendAll(traffic('fastInterval'), failed);
    expect(standing(server)).toEqual(['goingDown', 1]);
    server.send(failed);
    expect(healthOf(server)).toBe('down');
  });

  test('after suddenDeath the next failed check marks it down', () => {
    const server = upServer({ fall: 5 });
    server.sendAll(traffic('suddenDeath'), failed);
    expect(healthOf(server)).toBe('down');
  });

  test('a server that is down or in maintenance has nothing to lose: the very same snapshot', () => {
    const inMaintenance = upServer();
    inMaintenance.send({ type: 'operator.maintenance' });
    for (const server of [downServer(), inMaintenance]) {
      const before = server.snapshot;
      expect(server.send(traffic('markDown'))).toEqual([]);
      expect(server.snapshot).toBe(before);
    }
  });

  /**
   * __health_adjust in HAProxy's check.c: sudden-death first sets a counter above rise to rise + 1, mark-down any to rise;
   * then, as with fail-check, it is a failed check. fastinter leaves the counter alone.
   */
  test('any sequence of checks and errors gives what HAProxy’s counter gives', () => {
    const count = fc.integer({ min: 1, max: 5 });
    const onErrors = ['fastInterval', 'failCheck', 'suddenDeath', 'markDown'] as const;
    const input = fc.oneof(fc.boolean(), fc.constantFrom(...onErrors));
    fc.assert(
      fc.property(count, count, fc.array(input, { maxLength: 60 }), (rise, fall, inputs) => {
        const server = upServer({ rise, fall });
        const full = rise + fall - 1;
        let health = full;
        const fail = () => (health = health > rise ? health - 1 : 0);
        for (const one of inputs) {
          server.send(one === true ? passed : one === false ? failed : traffic(one));
          if (one === true) health = health + 1 >= rise ? full : health + 1;
          else if (one === 'suddenDeath') health = health > rise ? rise : fail();
          else if (one === 'markDown') health = 0;
          else if (one !== 'fastInterval') fail();
          // A server in doubt without a failure is up to HAProxy.
          const expected =
            health === full
              ? 'up 0'
              : health >= rise
                ? `goingDown ${full - health}`
                : health > 0
                  ? `goingUp ${health}`
                  : 'down 0';
          const shown = `${healthOf(server)} ${server.context.count}`;
          expect(shown === 'goingDown 0' ? 'up 0' : shown).toBe(expected);
        }
      }),
      { numRuns: 300 },
    );
  });

  test('an observed server tells its observer of maintenance, any other has nobody to tell', () => {
    const maintenance: BackendServerEvent = { type: 'operator.maintenance' };
    expect(toldTo(upServer({ observed: true }).send(maintenance), 'observer/web/a')).toEqual([
      { type: 'observer.forget' },
    ]);
    expect(toldTo(upServer().send(maintenance), 'observer/web/a')).toEqual([]);
  });
});

describe('what it tells its checker and its pool', () => {
  const paceAfter = (server: Server, event: BackendServerEvent): unknown =>
    toldTo(server.send(event), 'checker/web/a')[0];

  test('the pace is normal while up, fast while in doubt, down while down, and counts from the probe that brought it', () => {
    const server = serverWith();
    const pace = (name: string) => ({ type: 'pace.changed', pace: name, elapsedMs: 3 });
    expect(paceAfter(server, passed)).toEqual(pace('normal'));
    expect(paceAfter(server, failed)).toEqual(pace('fast'));
    expect(paceAfter(server, passed)).toEqual(pace('normal'));
    server.sendAll(failed, failed);
    expect(paceAfter(server, failed)).toEqual(pace('down'));
    expect(paceAfter(server, passed)).toEqual(pace('fast'));
    expect(paceAfter(server, failed)).toEqual(pace('down'));
    server.send(passed);
    expect(paceAfter(server, passed)).toEqual(pace('normal'));
  });

  test('its pool hears of health only when a threshold is reached', () => {
    const server = upServer({ fall: 2 });
    const health = (state: string): unknown =>
      expect.objectContaining({ type: 'server.health', health: state, server: 'a' });
    expect(toldTo(server.send(failed), 'pool/web')).toEqual([]);
    expect(toldTo(server.send(failed), 'pool/web')).toContainEqual(health('down'));
    expect(toldTo(server.send(passed), 'pool/web')).toEqual([]);
    expect(toldTo(server.send(passed), 'pool/web')).toContainEqual(health('up'));
  });

  test('it joins its pool before it says anything else to it', () => {
    const told = toldTo(serverWith({ weight: 7, backup: true }).started, 'pool/web');
    expect(told[0]).toEqual({
      type: 'server.joined',
      weight: 7,
      backup: true,
      checked: true,
      initially: 'unchecked',
      server: 'a',
    });
  });

  test('sessions are shut down when a server is marked down, if it is set so, and only then', () => {
    const keeps = upServer({ fall: 1 });
    expect(typesOf(keeps.send(failed))).not.toContain('shutdownSessions');
    const shuts = upServer({ fall: 2, shutdownSessions: true });
    expect(typesOf(shuts.send(failed))).not.toContain('shutdownSessions');
    expect(shuts.send(failed)).toContainEqual({ type: 'shutdownSessions', params: { pool: 'web', server: 'a' } });
    expect(typesOf(shuts.send(failed))).not.toContain('shutdownSessions');
  });
});

describe('operators', () => {
  test('drain keeps the checks going: health goes on beside it', () => {
    const server = upServer({ fall: 1 });
    const told = server.send({ type: 'operator.drain' });
    expect(toldTo(told, 'pool/web')).toEqual([{ type: 'server.admin', admin: 'drain', server: 'a' }]);
    expect(toldTo(told, 'checker/web/a')).toEqual([]);
    server.send(failed);
    expect([healthOf(server), adminOf(server)]).toEqual(['down', 'drain']);
    server.send({ type: 'operator.ready' });
    expect([healthOf(server), adminOf(server)]).toEqual(['down', 'ready']);
  });

  test('maintenance pauses the checks and forgets the health; ready resumes them', () => {
    const server = upServer();
    const told = server.send({ type: 'operator.maintenance' });
    expect([healthOf(server), adminOf(server)]).toEqual(['unchecked', 'maintenance']);
    expect(toldTo(told, 'checker/web/a').at(-1)).toEqual({ type: 'checker.pause' });
    expect(toldTo(server.send({ type: 'operator.ready' }), 'checker/web/a')).toEqual([{ type: 'checker.resume' }]);
    expect([healthOf(server), adminOf(server)]).toEqual(['unchecked', 'ready']);
  });

  test('maintenance stands over drain: drain does not end it, and ready ends both', () => {
    const server = upServer();
    server.sendAll({ type: 'operator.drain' }, { type: 'operator.maintenance' }, { type: 'operator.drain' });
    expect(adminOf(server)).toBe('maintenance');
    server.send({ type: 'operator.ready' });
    expect(adminOf(server)).toBe('ready');
  });

  test.each([
    ['ready', 'operator.ready'],
    ['drain', 'operator.drain'],
    ['maintenance', 'operator.maintenance'],
  ] as const)('asking for %s once more changes nothing and tells nobody', (_admin, type) => {
    const server = upServer();
    server.send({ type });
    const before = server.snapshot;
    expect(server.send({ type })).toEqual([]);
    expect(server.snapshot).toBe(before);
  });

  test('an operator’s weight stays through a reload that says nothing new of the weight', () => {
    const server = upServer({ weight: 10 });
    server.send({ type: 'operator.weight', weight: 3 });
    const told = toldTo(server.send(changedTo({ weight: 10, rise: 5 })), 'pool/web');
    expect(server.context.weight).toBe(3);
    expect(told).toContainEqual(expect.objectContaining({ type: 'server.settings', weight: 3 }));
    server.send(changedTo({ weight: 20 }));
    expect(server.context.weight).toBe(20);
  });
});

describe('a check is added or removed by a reload', () => {
  test('an added check takes its rise and fall, and the server is unchecked until it speaks', () => {
    const server = serverWith({ checked: false, rise: 1, fall: 1 });
    server.send(changedTo({ checked: true, rise: 2, fall: 3 }));
    expect(healthOf(server)).toBe('unchecked');
    expect(server.context.settings).toEqual({ ...SETTINGS, checked: true, rise: 2, fall: 3 });
    server.sendAll(passed, failed);
    expect(healthOf(server)).toBe('goingDown');
  });

  test('the pool learns of it, so that a server without a check counts as up again', () => {
    const server = downServer();
    const told = toldTo(server.send(changedTo({ checked: false })), 'pool/web');
    expect(healthOf(server)).toBe('unchecked');
    expect(told).toContainEqual(expect.objectContaining({ type: 'server.settings', checked: false, server: 'a' }));
  });

  test('a reload that leaves the check as it was leaves the health as it was', () => {
    const server = upServer();
    server.send(failed);
    server.send(changedTo({ fall: 5 }));
    expect([healthOf(server), server.context.count]).toEqual(['goingDown', 1]);
  });

  test('the checker of an added check is not held up by it: the first check comes after the start delay', () => {
    const [pool, server, checker] = oneServer({ checked: false });
    const scenario = new Scenario().play(pool!, server!, wait(1000), checker!);
    scenario.system.send('server/web/a', changedTo({ checked: true }));
    scenario.play(wait(300));
    expect(scenario.probesOf('checker/web/a')).toEqual([1000]);
  });

  test('a pool whose checks are removed serves with the servers that were down', () => {
    const scenario = new Scenario().play(...oneServer({ initially: 'down' }), broken('checker/web/a'), wait(100));
    expect(scenario.published('web')).toEqual({});
    scenario.system.stop('checker/web/a');
    scenario.system.send('server/web/a', changedTo({ initially: 'down', checked: false }));
    expect(scenario.published('web')).toEqual({ a: 1000 });
  });
});

describe('what is remembered from before a restart', () => {
  test('a hint stands in for `initially` until the first check', () => {
    const told = toldTo(serverWith({ initially: 'down' }, 'up').started, 'pool/web');
    expect(told[0]).toMatchObject({ type: 'server.joined', initially: 'up' });
  });

  test('the first check overrules the hint', () => {
    const scenario = new Scenario().play(...oneServer({}, 'up'));
    expect(scenario.published('web')).toEqual({ a: 1000 });
    scenario.play(broken('checker/web/a'), wait(10));
    expect(scenario.published('web')).toEqual({});
  });

  test('after the first check the hint is forgotten: leaving maintenance, the configured `initially` holds', () => {
    const scenario = new Scenario().play(
      ...oneServer({ initially: 'down' }, 'up'),
      broken('checker/web/a'),
      wait(10),
      send('server/web/a', 'operator.maintenance'),
      send('server/web/a', 'operator.ready'),
    );
    expect(scenario.stateOf('server/web/a')).toMatch(/^unchecked,ready/);
    expect(scenario.published('web')).toEqual({});
  });
});

describe('slow start', () => {
  const slow = { slowStartMs: 10_000, rise: 1, fall: 1 };

  test('a server that starts with the node is warm at its first pass', () => {
    const server = upServer(slow);
    expect([warmthOf(server), server.context.share]).toEqual(['warm', 100]);
  });

  test('a server that comes back carries a tenth more of its weight at each tenth of the time', () => {
    const server = upServer(slow);
    server.send(failed);
    expect(warmthOf(server)).toBe('cold');
    let effects = server.send(passed);
    const shares: number[] = [];
    while (warmthOf(server) === 'warming') {
      shares.push(server.context.share);
      const timer = 'xstate.after.slowStartStep.backendServer.warmth.warming';
      expect(delayOf(effects, timer)).toBe(1000);
      effects = server.send({ type: timer } as unknown as BackendServerEvent);
    }
    expect(shares).toEqual([10, 20, 30, 40, 50, 60, 70, 80, 90]);
    expect([warmthOf(server), server.context.share]).toEqual(['warm', 100]);
  });

  test('a failure on the way up to fall does not chill a server that passes again', () => {
    const server = upServer({ ...slow, fall: 2 });
    server.sendAll(failed, passed);
    expect([warmthOf(server), server.context.share]).toEqual(['warm', 100]);
  });

  test('without slow start a server that comes back has its whole weight at once', () => {
    const server = upServer({ rise: 1, fall: 1 });
    server.sendAll(failed, passed);
    expect([warmthOf(server), server.context.share]).toEqual(['warm', 100]);
  });

  test('a server that falls while it warms starts from the first tenth again', () => {
    const scenario = new Scenario().play(
      ...oneServer(slow),
      wait(10),
      broken('checker/web/a'),
      wait(2000),
      healthy('checker/web/a'),
      wait(5000),
    );
    expect(scenario.published('web')).toEqual({ a: 100 });
    scenario.play(wait(2000));
    expect(scenario.published('web')).toEqual({ a: 300 });
    scenario.play(broken('checker/web/a'), wait(2500));
    expect(scenario.published('web')).toEqual({});
    scenario.play(healthy('checker/web/a'), wait(5000));
    expect(scenario.system.pendingTimers().filter(({ actor }) => actor === 'server/web/a')).toHaveLength(1);
    const { context } = scenario.system.get('server/web/a')!;
    expect((context as BackendServerContext).share).toBeLessThanOrEqual(50);
  });

  test('a returning server is never given its whole weight before it is warm, not even for a moment', () => {
    const scenario = new Scenario().play(...oneServer(slow), wait(10), broken('checker/web/a'), wait(2000));
    const before = scenario.publications('web').length;
    scenario.play(healthy('checker/web/a'), wait(5000));
    const since = scenario.publications('web').slice(before);
    expect(since[0]).toEqual({ a: 100 });
    expect(scenario.stateOf('server/web/a')).toBe('up,ready,warming');
  });

  test('a server that leaves maintenance warms up like one that was down', () => {
    const server = upServer(slow);
    server.sendAll({ type: 'operator.maintenance' }, { type: 'operator.ready' });
    expect(warmthOf(server)).toBe('cold');
    server.send(passed);
    expect([warmthOf(server), server.context.share]).toEqual(['warming', 10]);
  });

  test('a server without a check is not left cold by maintenance: nothing else would ever warm it', () => {
    const server = serverWith({ checked: false, slowStartMs: 0 });
    server.sendAll({ type: 'operator.maintenance' }, { type: 'operator.ready' });
    expect(server.state).toBe('unchecked,ready,warm');
  });

  test('a server that fell while it warmed does not keep its tenth for ever when its check is removed', () => {
    const scenario = new Scenario().play(
      ...oneServer(slow),
      wait(10),
      broken('checker/web/a'),
      wait(2000),
      healthy('checker/web/a'),
      wait(5000),
      broken('checker/web/a'),
      wait(2000),
    );
    expect(scenario.published('web')).toEqual({});
    scenario.system.stop('checker/web/a');
    scenario.system.send('server/web/a', changedTo({ ...slow, checked: false }));
    scenario.play(wait(20_000));
    expect(scenario.published('web')).toEqual({ a: 1000 });
  });
});

describe('scenarios', () => {
  test('a server falls and rises', async () => {
    const scenario = new Scenario({ shows: withoutRounds }).play(
      say('The first check passes: one is enough.'),
      ...oneServer(),
      wait(4500),
      say('It refuses connections. The probe under the normal interval finds it, the next ones come fast.'),
      broken('checker/web/a', 3),
      wait(6000),
      say('Down, it is probed every five seconds. The first pass makes it goingUp, and the pace fast.'),
      healthy('checker/web/a', 20),
      wait(6000),
    );
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/server-falls-and-rises.txt');
    expect(scenario.faults).toEqual([]);
  });

  test('a single failed check takes nobody out', async () => {
    const scenario = new Scenario({ shows: withoutRounds }).play(
      ...oneServer(),
      wait(100),
      say('Two failures, then it answers again: it never stops serving.'),
      broken('checker/web/a'),
      wait(2500),
      healthy('checker/web/a'),
      wait(3000),
    );
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/server-stumbles.txt');
    expect(scenario.published('web')).toEqual({ a: 1000 });
  });

  test('drain, maintenance, and ready again', async () => {
    const scenario = new Scenario({ shows: withoutRounds }).play(
      ...oneServer(),
      wait(1000),
      say('Drained: no new traffic, probes go on.'),
      send('server/web/a', 'operator.drain'),
      wait(3000),
      say('Maintenance: no probes. Drain is refused, maintenance stands over it.'),
      send('server/web/a', 'operator.maintenance'),
      wait(3000),
      send('server/web/a', 'operator.drain'),
      wait(3000),
      say('Ready: probed at once. Until that probe it serves as a last resort only.'),
      send('server/web/a', 'operator.ready'),
      wait(100),
    );
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/server-drain-and-maintenance.txt');
    expect(scenario.probesOf('checker/web/a')).toEqual([0, 2000, 4000, 10_000]);
  });

  test('maintenance in the middle of a probe', async () => {
    const scenario = new Scenario().play(
      ...oneServer(),
      healthy('checker/web/a', 400),
      wait(200),
      say('The probe is given up and its answer never comes.'),
      send('server/web/a', 'operator.maintenance'),
      wait(5000),
      send('server/web/a', 'operator.ready'),
      wait(500),
    );
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/server-maintenance-during-probe.txt');
    expect(scenario.aborted).toEqual(['checker/web/a']);
  });

  test('a server comes back slowly', async () => {
    const scenario = new Scenario({ shows: withoutRounds }).play(
      ...oneServer({ slowStartMs: 10_000, rise: 1, fall: 1 }),
      wait(10),
      broken('checker/web/a'),
      wait(2000),
      say('It comes back: ten percent of its weight each second.'),
      healthy('checker/web/a'),
      wait(20_000),
    );
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/server-slow-start.txt');
    expect(scenario.published('web')).toEqual({ a: 1000 });
  });
});

test('a check that a reload adds to a server in maintenance is paused at once', () => {
  const unchecked = serverWith({ checked: false });
  unchecked.send({ type: 'operator.maintenance' });
  const effects = unchecked.send(changedTo({ checked: true }));
  expect(toldTo(effects, 'checker/web/a')).toContainEqual({ type: 'checker.pause' });
});
