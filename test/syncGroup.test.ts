/** Routers that move together: the group on its own, then with its routers on two nodes. */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Effect } from '../actors/decide.ts';
import { syncGroup } from '../machines/syncGroup.ts';
import type { SyncGroupContext, SyncGroupEvent } from '../machines/syncGroup.ts';
import { Stepper, toldTo } from './stepper.ts';
import { say, Scenario, send, start, stop, wait } from './transcript.ts';
import type { Step, Wire } from './transcript.ts';
import type { Reason, RouterContext } from '../machines/vrrpRouter.ts';

const A = 'router/a';
const B = 'router/b';
const C = 'router/c';

type Group = Stepper<SyncGroupEvent, SyncGroupContext>;

const state = (router: string, now: 'MASTER' | 'BACKUP' | 'FAULT' | 'STOP'): SyncGroupEvent => ({
  type: 'member.state',
  router,
  state: now,
});
const faults = (router: string, faulty: boolean): SyncGroupEvent => ({ type: 'member.faults', router, faulty });

const wants = (router: string, now = true): SyncGroupEvent => ({ type: 'member.wants', router, wants: now });

const fresh = (members = [A, B]): Group => new Stepper(syncGroup, { name: 'edge', members });
const inBackup = (members = [A, B]): Group => {
  const group = fresh(members);
  group.sendAll(...members.map((member) => faults(member, false)), ...members.map((member) => state(member, 'BACKUP')));
  expect(group.state).toBe('backup');
  return group;
};
const inMaster = (members = [A, B]): Group => {
  const group = inBackup(members);
  group.sendAll(...members.map((member) => state(member, 'MASTER')));
  expect(group.state).toBe('master');
  return group;
};

const typesTold = (effects: Effect[], member: string): string[] => toldTo(effects, member).map(({ type }) => type);
const noticeOf = (effects: Effect[]): unknown => effects.find(({ type }) => type === 'notify')?.params ?? null;

describe('start', () => {
  test('nobody takes part before all can', () => {
    const group = fresh();
    expect(group.send(faults(A, false))).toEqual([]);
    const effects = group.send(faults(B, false));
    for (const member of [A, B]) expect(typesTold(effects, member)).toEqual(['group.cleared']);
    expect(group.state).toBe('initialize');
  });

  test('the first member in backup makes it backup, and the second changes nothing', () => {
    const group = fresh();
    group.sendAll(faults(A, false), faults(B, false));
    expect(noticeOf(group.send(state(A, 'BACKUP')))).toMatchObject({ state: 'BACKUP' });
    expect(group.send(state(B, 'BACKUP'))).toEqual([]);
  });

  test('a member that is broken from its start puts all into FAULT, instead of leaving them waiting', () => {
    const group = fresh();
    group.send(faults(A, false));
    const effects = group.send(state(B, 'FAULT'));
    expect(group.state).toBe('fault');
    expect(toldTo(effects, A)).toEqual([{ type: 'group.fault', router: B }]);
    expect(noticeOf(effects)).toEqual({ state: 'FAULT', router: B });
    for (const member of [A, B]) expect(typesTold(group.send(faults(B, false)), member)).toEqual(['group.cleared']);
  });

  test('an owner that is master at once takes one along that says BACKUP only afterwards', () => {
    const group = fresh();
    group.sendAll(faults(A, false), faults(B, false));
    expect(typesTold(group.send(state(A, 'MASTER')), B)).toEqual(['group.master']);
    const effects = group.send(state(B, 'BACKUP'));
    expect(group.state).toBe('master');
    expect(toldTo(effects, B)).toEqual([{ type: 'group.master', router: A }]);
    expect(toldTo(effects, A)).toEqual([]);
  });
});

describe('moving together', () => {
  test('one that is master for a reason of its own, as an owner or by an operator, takes all along', () => {
    const group = inBackup([A, B, C]);
    const effects = group.send(state(B, 'MASTER'));
    expect(group.state).toBe('master');
    for (const member of [A, C]) expect(toldTo(effects, member)).toEqual([{ type: 'group.master', router: B }]);
    expect(toldTo(effects, B)).toEqual([]);
    expect(noticeOf(effects)).toEqual({ state: 'MASTER', router: B });
    expect(group.send(state(A, 'MASTER'))).toEqual([]);
  });

  test('when one leaves all do', () => {
    const group = inMaster([A, B, C]);
    const effects = group.send(state(A, 'BACKUP'));
    expect(group.state).toBe('backup');
    for (const member of [B, C]) expect(toldTo(effects, member)).toEqual([{ type: 'group.backup', router: A }]);
    expect(noticeOf(effects)).toEqual({ state: 'BACKUP', router: A });
    expect(group.send(state(B, 'BACKUP'))).toEqual([]);
  });

  test.each([
    ['backup', inBackup],
    ['master', inMaster],
  ])('a fault of one in %s is a fault of all, until the last has gone', (_state, make) => {
    const group = make([A, B, C]);
    const effects = group.send(faults(A, true));
    expect(group.state).toBe('fault');
    for (const member of [B, C]) expect(toldTo(effects, member)).toEqual([{ type: 'group.fault', router: A }]);
    expect(noticeOf(effects)).toEqual({ state: 'FAULT', router: A });
    group.sendAll(state(A, 'FAULT'), state(B, 'FAULT'), state(C, 'FAULT'), faults(B, true));
    expect(group.send(faults(A, false))).toEqual([]);
    const cleared = group.send(faults(B, false));
    for (const member of [A, B, C]) expect(typesTold(cleared, member)).toEqual(['group.cleared']);
    group.send(state(A, 'BACKUP'));
    expect(group.state).toBe('backup');
  });
});

describe('willing', () => {
  test('it becomes master when all members would be, and not before', () => {
    const group = inBackup([A, B, C]);
    expect(group.send(wants(B))).toEqual([]);
    expect(group.send(wants(A))).toEqual([]);
    expect(group.state).toBe('backup');
    const effects = group.send(wants(C));
    expect(group.state).toBe('master');
    for (const member of [A, B, C]) expect(toldTo(effects, member)).toEqual([{ type: 'group.master', router: C }]);
    expect(noticeOf(effects)).toEqual({ state: 'MASTER', router: C });
    expect(group.context.willing).toEqual([]);
  });

  test('what they say on their way to master changes nothing', () => {
    const group = inBackup();
    group.sendAll(wants(A), wants(B));
    for (const event of [wants(A, false), state(A, 'MASTER'), wants(B, false), state(B, 'MASTER')])
      expect(group.send(event)).toEqual([]);
    expect(group.state).toBe('master');
    expect(group.context.willing).toEqual([]);
  });

  test('the wish of one that has heard a master again does not count', () => {
    const group = inBackup();
    group.sendAll(wants(A), wants(A, false));
    expect(group.send(wants(B))).toEqual([]);
    expect(group.state).toBe('backup');
    group.send(wants(A));
    expect(group.state).toBe('master');
  });

  test('the same wish twice is not that of two', () => {
    const group = inBackup();
    group.sendAll(wants(A), wants(A));
    expect(group.state).toBe('backup');
    expect(group.context.willing).toEqual([A]);
  });

  test('one that would be master while the others are is called in, alone', () => {
    const group = inMaster();
    const effects = group.send(wants(B));
    expect(group.state).toBe('master');
    expect(typesTold(effects, B)).toEqual(['group.master']);
    expect(typesTold(effects, A)).toEqual([]);
    expect(group.send(wants(B, false))).toEqual([]);
  });

  test('after it has left, all have to be willing anew', () => {
    const group = inBackup();
    group.sendAll(wants(A), wants(B), wants(A, false), state(A, 'MASTER'), wants(B, false), state(B, 'MASTER'));
    group.sendAll(state(A, 'BACKUP'), state(B, 'BACKUP'), wants(A));
    expect(group.state).toBe('backup');
    group.send(wants(B));
    expect(group.state).toBe('master');
  });

  test('in FAULT nobody becomes master, whatever the members would', () => {
    const group = inBackup();
    group.sendAll(wants(A), faults(B, true));
    expect(group.state).toBe('fault');
    expect(group.send(wants(B))).toEqual([]);
    expect(group.state).toBe('fault');
  });

  test('the wish of a stranger does not count', () => {
    const group = inBackup();
    group.sendAll(wants(A), wants(C));
    expect(group.state).toBe('backup');
    expect(group.context.willing).toEqual([A]);
  });

  test('when the only one that is not willing is taken out, the others are master; nobody’s change was it', () => {
    const group = inMaster([A, B, C]);
    group.sendAll(state(C, 'BACKUP'), state(A, 'BACKUP'), state(B, 'BACKUP'), wants(A), wants(B));
    const effects = group.send({ type: 'settings.changed', settings: { members: [A, B] } });
    expect(group.state).toBe('master');
    for (const member of [A, B]) expect(toldTo(effects, member).at(-1)).toEqual({ type: 'group.master', router: null });
    expect(toldTo(effects, C)).toEqual([]);
    expect(noticeOf(effects)).toEqual({ state: 'MASTER', router: null });
  });

  test('one that is added has to be willing as well', () => {
    const group = inBackup();
    group.sendAll(wants(A), { type: 'settings.changed', settings: { members: [A, B, C] } }, faults(C, false));
    group.sendAll(state(C, 'BACKUP'), wants(B));
    expect(group.state).toBe('backup');
    group.send(wants(C));
    expect(group.state).toBe('master');
  });

  test('the wish of one that was taken out and comes back is forgotten', () => {
    const group = inBackup([A, B, C]);
    group.sendAll(wants(C), { type: 'settings.changed', settings: { members: [A, B] } });
    group.send({ type: 'settings.changed', settings: { members: [A, B, C] } });
    group.sendAll(faults(C, false), state(C, 'BACKUP'), wants(A), wants(B));
    expect(group.state).toBe('backup');
  });
});

describe('members that come, go and begin anew', () => {
  const changedTo = (...members: string[]): SyncGroupEvent => ({ type: 'settings.changed', settings: { members } });

  test('one that is added while the others are master follows them, and takes no service from them', () => {
    const group = inMaster();
    group.send(changedTo(A, B, C));
    expect(group.state).toBe('master');
    expect(typesTold(group.send(faults(C, false)), C)).toEqual(['group.cleared']);
    const effects = group.send(state(C, 'BACKUP'));
    expect(group.state).toBe('master');
    expect(typesTold(effects, C)).toEqual(['group.master']);
    expect(typesTold(effects, A)).toEqual([]);
    // From then on it counts like any.
    group.sendAll(state(C, 'MASTER'), state(C, 'BACKUP'));
    expect(group.state).toBe('backup');
  });

  test('one that is added and broken is a fault of all', () => {
    const group = inMaster();
    group.send(changedTo(A, B, C));
    expect(typesTold(group.send(state(C, 'FAULT')), A)).toEqual(['group.fault']);
    expect(group.state).toBe('fault');
  });

  test('one that is stopped and begins anew, as after a change of its interface, follows them', () => {
    const group = inMaster();
    group.send(state(B, 'STOP'));
    expect(group.state).toBe('master');
    group.send(faults(B, false));
    expect(typesTold(group.send(state(B, 'BACKUP')), B)).toEqual(['group.master']);
    expect(group.state).toBe('master');
  });

  test('one that is taken out while it is broken releases the others', () => {
    const group = inBackup([A, B, C]);
    group.send(faults(C, true));
    const effects = group.send(changedTo(A, B));
    for (const member of [A, B]) expect(typesTold(effects, member)).toEqual(['group.cleared']);
    expect(toldTo(effects, C)).toEqual([]);
  });

  test('late news of one that is no member any more is forgotten', () => {
    const group = inBackup([A, B, C]);
    group.sendAll(changedTo(A, B), faults(C, true), state(C, 'FAULT'));
    expect(group.state).toBe('backup');
    expect(group.context.faulty).toEqual([]);
  });
});

/** Two nodes with an outer and an inner router each, in one group; only the links of VRIDs 51 and 52 join them. */
const node = (name: string, host: number, priority: number): Step[] => {
  const members = [`router/${name}-outer`, `router/${name}-inner`];
  const router = (link: string, vrid: number): Step[] => [
    start(`address/${name}-${link}/vip`, 'virtualAddress', {
      router: `router/${name}-${link}`,
      address: 'vip',
      settings: { repeat: 5, delayMs: 0, refreshMs: 0, refreshRepeat: 1, retryMs: 1000 },
    }),
    start(`router/${name}-${link}`, 'vrrpRouter', {
      name: `${name}-${link}`,
      settings: {
        version: 3,
        vrid,
        priority,
        advertMs: 1000,
        preempt: true,
        preemptDelayMs: 0,
        startDelayMs: 0,
        addresses: [`address/${name}-${link}/vip`],
        track: [],
        group: `group/${name}`,
      },
    }),
  ];
  return [
    start(`group/${name}`, 'syncGroup', { name, members }),
    ...router('outer', 51),
    ...router('inner', 52),
    ...['outer', 'inner'].map((link) => linkUp(name, link, host)),
  ];
};
const linkUp = (name: string, link: string, host: number): Step =>
  send(`router/${name}-${link}`, 'interface.up', { address: `10.9.0.${host}`, key: `0a09000${host}` });
const linkDown = (name: string, link: string): Step =>
  send(`router/${name}-${link}`, 'interface.down', { code: 'DOWN', message: `${link} has no carrier` });

/** Links that lose everything in one direction. */
class Links implements Wire {
  lost = new Set<string>();

  /** From lb1 to lb2, or from lb2 to lb1. */
  lose(from: string, ...links: string[]): void {
    const to = from === 'lb1' ? 'lb2' : 'lb1';
    for (const link of links) this.lost.add(`router/${from}-${link} router/${to}-${link}`);
  }

  delayMs(): number {
    return 0.1;
  }

  reaches(from: string, to: string): boolean {
    return !this.lost.has(`${from} ${to}`);
  }
}

const twoNodes = (wire: Wire = new Links(), priorities = [200, 100] as const) =>
  new Scenario({ wire, shows: ({ steady, machine }) => !steady && machine !== 'virtualAddress' }).play(
    ...node('lb1', 1, priorities[0]),
    ...node('lb2', 2, priorities[1]),
  );

const command = (name: string, type: string, ...links: string[]): Step[] =>
  links.map((link) => send(`router/${name}-${link}`, type));

/** Which routers became master from then on, and when, in ms. */
const takeoversFrom = (scenario: Scenario, fromMs: number): [number, string][] =>
  scenario.entries
    .filter(
      ({ monoUs, machine, effects }) => monoUs >= fromMs * 1000 && machine === 'vrrpRouter' && isTakeover(effects),
    )
    .map(({ monoUs, actor: by }) => [monoUs / 1000, by]);
const isTakeover = (effects: Effect[]): boolean =>
  effects.some(({ type, params }) => type === 'notify' && (params as { state: string }).state === 'MASTER');
const reasonOf = (scenario: Scenario, router: string): Reason =>
  (scenario.system.get(router)!.context as RouterContext).reason;

const holders = (scenario: Scenario): string[] => [...scenario.held].map((id) => id.split('/')[1]!).sort();

describe('scenarios', () => {
  test('a broken link moves both routers to the other node, and back when it is mended', async () => {
    const scenario = twoNodes().play(wait(10_000));
    expect(holders(scenario)).toEqual(['lb1-inner', 'lb1-outer']);
    scenario.play(say('lb1’s outer link breaks.'), linkDown('lb1', 'outer'), wait(10_000));
    expect(holders(scenario)).toEqual(['lb2-inner', 'lb2-outer']);
    expect(['outer', 'inner'].map((link) => scenario.stateOf(`router/lb1-${link}`))).toEqual(['fault', 'fault']);
    scenario.play(say('It is mended.'), linkUp('lb1', 'outer', 1), wait(10_000));
    expect(holders(scenario)).toEqual(['lb1-inner', 'lb1-outer']);
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/group-broken-link.txt');
    expect(scenario.stateOf('group/lb1')).toBe('master');
    expect(scenario.stateOf('group/lb2')).toBe('backup');
    expect(scenario.system.counters.unhandled).toBe(0);
    expect(scenario.faults).toEqual([]);
  });

  test('the peer takes over both as soon as it knows of one', () => {
    const scenario = twoNodes().play(wait(10_000), linkDown('lb1', 'outer'));
    const from = scenario.clock.monoUs() / 1000;
    scenario.play(wait(5000));
    const first = (router: string) => scenario.adverts.find(({ ms, ...sent }) => ms > from && sent.router === router)!;
    // The inner link still carries priority 0: the skew time of priority 100 and a tenth for the cable.
    expect(first('router/lb2-inner').ms - from).toBeCloseTo(609.475, 3);
    expect(first('router/lb2-outer').ms - from).toBeCloseTo(609.475, 3);
  });

  test('one link that loses the master’s adverts moves nothing, for as long as it lasts', async () => {
    const wire = new Links();
    const scenario = twoNodes(wire).play(
      wait(10_000),
      say('From now on lb2’s outer router hears nothing of lb1: it would be master, and waits for the inner one.'),
    );
    wire.lose('lb1', 'outer');
    const { entries } = scenario.play(wait(60_000));
    expect(takeoversFrom(scenario, 10_000)).toEqual([]);
    expect(holders(scenario)).toEqual(['lb1-inner', 'lb1-outer']);
    expect(scenario.stateOf('router/lb2-outer')).toBe('backup.willing');
    expect(scenario.stateOf('router/lb2-inner')).toBe('backup.listening');
    expect(scenario.adverts.filter(({ router }) => router.startsWith('router/lb2'))).toEqual([]);
    // A wish is news once, and not once a master-down time.
    expect(entries.filter(({ monoUs, steady }) => monoUs > 10_000_000 && !steady).length).toBeLessThan(10);
    scenario.play(say('It is mended.'));
    wire.lost.clear();
    scenario.play(wait(60_000));
    expect(scenario.stateOf('router/lb2-outer')).toBe('backup.listening');
    expect(takeoversFrom(scenario, 10_000)).toEqual([]);
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/group-one-way-loss.txt');
    expect(scenario.system.counters.unhandled).toBe(0);
    expect(scenario.faults).toEqual([]);
  });

  test.each([[[]], [['router/lb1-outer']], [['router/lb2-inner']]])(
    'whatever links lose adverts in whatever direction, nothing moves again and again; demoted: %j',
    (demoted) => {
      const ways = ['lb1', 'lb2'].flatMap((from) => ['outer', 'inner'].map((on) => [from, on] as const));
      for (let chosen = 0; chosen < 2 ** ways.length; chosen++) {
        const wire = new Links();
        const scenario = twoNodes(wire).play(wait(10_000));
        for (const [index, [from, on]] of ways.entries()) if (chosen & (1 << index)) wire.lose(from, on);
        scenario.play(...demoted.map((router) => send(router, 'operator.demote')), wait(80_000));
        expect(takeoversFrom(scenario, 30_000)).toEqual([]);
      }
    },
  );

  test('both links that lose them: one takeover of both, when the later one has waited', () => {
    const wire = new Links();
    const scenario = twoNodes(wire).play(wait(10_000));
    wire.lose('lb1', 'outer');
    scenario.play(wait(5000));
    wire.lose('lb1', 'inner');
    scenario.play(wait(60_000));
    // The last advert on the inner link came at 14218.85.
    expect(takeoversFrom(scenario, 10_000)).toEqual([
      [17_828.225, 'router/lb2-outer'],
      [17_828.225, 'router/lb2-inner'],
    ]);
    expect(scenario.stateOf('group/lb2')).toBe('master');
    // Each with what it saw itself when its own timer had run out.
    for (const link of ['outer', 'inner'])
      expect(reasonOf(scenario, `router/lb2-${link}`)).toMatchObject({
        code: 'masterDownExpired',
        peer: '10.9.0.1',
        silentMs: 3609.375,
        masterDownMs: 3609.375,
        lateMs: 0,
      });
  });

  test('a link that fails during the takeover, and heals: the group stays until all are willing', () => {
    const wire = new Links();
    const scenario = twoNodes(wire).play(wait(10_000));
    wire.lose('lb1', 'outer');
    scenario.play(wait(5000));
    expect(scenario.stateOf('router/lb2-outer')).toBe('backup.willing');
    wire.lost.clear();
    scenario.play(wait(1100));
    wire.lose('lb1', 'inner');
    scenario.play(wait(60_000));
    expect(takeoversFrom(scenario, 10_000)).toEqual([]);
    expect(scenario.stateOf('router/lb2-inner')).toBe('backup.willing');
    // A restart of the willing one, and a fault of the other, leave no wish behind.
    scenario.play(linkDown('lb2', 'outer'), wait(1000));
    expect(scenario.stateOf('router/lb2-inner')).toBe('fault');
    scenario.play(linkUp('lb2', 'outer', 2), wait(60_000));
    expect(takeoversFrom(scenario, 10_000)).toEqual([]);
    expect(scenario.system.get('group/lb2')!.context).toMatchObject({ willing: ['router/lb2-inner'] });
  });

  test('a master that leaves is followed by both as soon as the skew time of the later one has passed', () => {
    const scenario = twoNodes().play(wait(10_000), ...command('lb1', 'router.stop', 'outer'), wait(100));
    scenario.play(...command('lb1', 'router.stop', 'inner'), wait(5000));
    expect(takeoversFrom(scenario, 10_000).map(([ms]) => ms)).toEqual([10_709.475, 10_709.475]);
    expect(reasonOf(scenario, 'router/lb2-outer')).toMatchObject({ code: 'priorityZero', silentMs: 609.375 });
  });

  test('demoting one member alone moves both once, and promoting it again moves both back', () => {
    const scenario = twoNodes().play(wait(10_000), ...command('lb1', 'operator.demote', 'outer'), wait(60_000));
    expect(holders(scenario)).toEqual(['lb2-inner', 'lb2-outer']);
    expect(takeoversFrom(scenario, 10_000)).toHaveLength(2);
    scenario.play(...command('lb1', 'operator.promote', 'outer'), wait(60_000));
    expect(holders(scenario)).toEqual(['lb1-inner', 'lb1-outer']);
    expect(takeoversFrom(scenario, 70_000)).toHaveLength(2);
    expect(scenario.system.counters.unhandled).toBe(0);
  });

  test('an operator who demotes all: the other node takes over without a gap, and gives back when he promotes all', () => {
    const scenario = twoNodes().play(wait(10_000), ...command('lb1', 'operator.demote', 'outer', 'inner'));
    for (let ms = 0; ms < 2000; ms += 10) {
      scenario.play(wait(10));
      expect(holders(scenario)).toHaveLength(2);
    }
    expect(holders(scenario)).toEqual(['lb2-inner', 'lb2-outer']);
    scenario.play(wait(60_000));
    expect(takeoversFrom(scenario, 10_000)).toHaveLength(2);
    scenario.play(...command('lb1', 'operator.promote', 'outer', 'inner'), wait(5000));
    expect(holders(scenario)).toEqual(['lb1-inner', 'lb1-outer']);
  });

  test('an operator who promotes all members of a backup makes it master at once', () => {
    const scenario = twoNodes().play(wait(10_000), ...command('lb2', 'operator.promote', 'outer', 'inner'), wait(10));
    expect(holders(scenario)).toEqual(['lb2-inner', 'lb2-outer']);
    scenario.play(wait(60_000));
    expect(takeoversFrom(scenario, 10_000)).toHaveLength(2);
  });

  test.each([['outer', 'inner'], ['outer']])(
    'a node without a successor keeps its addresses: %j demoted',
    (...links) => {
      const scenario = new Scenario().play(
        ...node('lb1', 1, 200),
        wait(10_000),
        ...command('lb1', 'operator.demote', ...links),
      );
      for (let ms = 0; ms < 20_000; ms += 10) {
        expect(holders(scenario)).toEqual(['lb1-inner', 'lb1-outer']);
        scenario.play(wait(10));
      }
      expect(scenario.stateOf('group/lb1')).toBe('master');
    },
  );

  test('a reload that takes the unwilling member out lets the other be master', () => {
    const wire = new Links();
    const scenario = twoNodes(wire).play(wait(10_000));
    wire.lose('lb1', 'outer');
    scenario.play(wait(5000), send('router/lb2-inner', 'router.stop'), stop('router/lb2-inner'));
    expect(takeoversFrom(scenario, 10_000)).toEqual([]);
    scenario.play(send('group/lb2', 'settings.changed', { settings: { members: ['router/lb2-outer'] } }));
    expect(takeoversFrom(scenario, 10_000)).toEqual([[15_000, 'router/lb2-outer']]);
    expect(reasonOf(scenario, 'router/lb2-outer')).toMatchObject({ code: 'masterDownExpired', peer: '10.9.0.1' });
  });

  test('owners: both masters at once, and neither steps down on the way', () => {
    const scenario = new Scenario().play(...node('lb1', 1, 255), wait(5000));
    expect(holders(scenario)).toEqual(['lb1-inner', 'lb1-outer']);
    expect(scenario.notices.filter(({ kind, state: now }) => kind === 'GROUP' && now !== 'MASTER')).toEqual([]);
    expect(scenario.adverts.filter(({ priority }) => priority === 0)).toEqual([]);
  });

  test('shutdown of all routers leaves the addresses to the other node without a gap', () => {
    const scenario = twoNodes().play(wait(10_000));
    scenario.play(...['outer', 'inner'].map((link) => send(`router/lb1-${link}`, 'router.stop')), wait(609));
    expect(holders(scenario)).toEqual(['lb1-inner', 'lb1-outer']);
    scenario.play(wait(2));
    expect(holders(scenario)).toEqual(['lb2-inner', 'lb2-outer']);
  });
});

const link = fc.constantFrom('outer', 'inner');
const name = fc.constantFrom('lb1', 'lb2');
const trouble = fc.oneof(
  fc.record({ do: fc.constant('wait' as const), ms: fc.integer({ min: 1, max: 6000 }) }),
  fc.record({ do: fc.constant('link' as const), name, link, up: fc.boolean() }),
  fc.record({ do: fc.constant('restart' as const), name, link }),
  fc.record({ do: fc.constant('lose' as const), name, link }),
  fc.record({ do: fc.constant('heal' as const) }),
  fc.record({
    do: fc.constant('command' as const),
    name,
    // One alone is what no command does; the group has to bear it.
    links: fc.constantFrom(['outer', 'inner'], ['outer', 'inner'], ['outer']),
    type: fc.constantFrom('operator.demote', 'operator.promote'),
  }),
);

test('whatever links break or lose adverts, whichever routers begin anew or are told to leave: when all is whole, the higher node has both addresses', () => {
  fc.assert(
    fc.property(fc.array(trouble, { maxLength: 20 }), (happened) => {
      const wire = new Links();
      const scenario = twoNodes(wire);
      const hosts = { lb1: 1, lb2: 2 };
      const priorities = { lb1: 200, lb2: 100 };
      for (const step of happened) {
        if (step.do === 'wait') scenario.play(wait(step.ms));
        else if (step.do === 'link')
          scenario.play(step.up ? linkUp(step.name, step.link, hosts[step.name]) : linkDown(step.name, step.link));
        else if (step.do === 'lose') wire.lose(step.name, step.link);
        else if (step.do === 'heal') wire.lost.clear();
        else if (step.do === 'command') scenario.play(...command(step.name, step.type, ...step.links));
        else {
          const id = `router/${step.name}-${step.link}`;
          const begun = node(step.name, hosts[step.name], priorities[step.name]).filter(
            (one) => one.do === 'start' && one.id === id,
          );
          scenario.play(send(id, 'router.stop'), stop(id), ...begun, linkUp(step.name, step.link, hosts[step.name]));
        }
      }
      for (const each of ['lb1', 'lb2'] as const)
        for (const one of ['outer', 'inner']) scenario.play(linkUp(each, one, hosts[each]));
      wire.lost.clear();
      // Promotion takes demotion back: nobody wants anything of them any more.
      for (const each of ['lb1', 'lb2'])
        for (const type of ['operator.demote', 'operator.promote'])
          scenario.play(...command(each, type, 'outer', 'inner'));
      scenario.play(wait(8000));
      expect(holders(scenario)).toEqual(['lb1-inner', 'lb1-outer']);
      expect([scenario.stateOf('group/lb1'), scenario.stateOf('group/lb2')]).toEqual(['master', 'backup']);
      expect(scenario.faults).toEqual([]);
      expect(scenario.system.counters.unhandled).toBe(0);
    }),
    { numRuns: 200 },
  );
});
