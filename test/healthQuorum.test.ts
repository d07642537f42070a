/** What the nodes of a cluster make together of one server: own view, votes, verdict, duty. */
import { describe, expect, test } from 'vitest';
import { healthQuorum } from '../machines/healthQuorum.ts';
import type { HealthQuorumContext, HealthQuorumEvent, QuorumSettings } from '../machines/healthQuorum.ts';
import { backendServer } from '../machines/backendServer.ts';
import { healthChecker } from '../machines/healthChecker.ts';
import { Stepper, toldTo, typesOf } from './stepper.ts';
import { broken, healthy, Scenario, send, start, wait } from './transcript.ts';
import type { Step } from './transcript.ts';

type Quorum = Stepper<HealthQuorumEvent, HealthQuorumContext>;

const quorum = (settings: Partial<QuorumSettings> = {}): Quorum =>
  new Stepper(healthQuorum, { pool: 'web', server: 'a', settings: { node: 'lb1', rise: 2, fall: 3, ...settings } });

const passed: HealthQuorumEvent = { type: 'check.passed', code: 'L7OK', message: '200', durationMs: 3 };
const failed: HealthQuorumEvent = { type: 'check.failed', code: 'L4CON', message: 'connection refused', durationMs: 3 };
const heard = (node: string, view: 'up' | 'down' | 'none', message = ''): HealthQuorumEvent => ({
  type: 'view.heard',
  node,
  view,
  message,
});
const blind = (node: string, isBlind = true): HealthQuorumEvent => ({ type: 'node.sight', node, blind: isBlind });
const assigned = (...checkers: string[]): HealthQuorumEvent => ({ type: 'duty.assigned', checkers });

const toServer = (effects: ReturnType<Quorum['send']>) => toldTo(effects, 'server/web/a');
const toChecker = (effects: ReturnType<Quorum['send']>) => toldTo(effects, 'checker/web/a');
const shared = (effects: ReturnType<Quorum['send']>) =>
  effects.filter(({ type }) => type === 'share').map(({ params }) => params);

/** Three nodes that all see it up. */
const agreed = (settings: Partial<QuorumSettings> = {}): Quorum => {
  const three = quorum(settings);
  three.sendAll(passed, heard('lb2', 'up'), heard('lb3', 'up'));
  expect(three.state).toBe('up,up');
  return three;
};

describe('the own view', () => {
  test('it asks what is known when it starts, and tells nobody anything', () => {
    expect(typesOf(quorum().started)).toEqual(['askViews']);
    expect(quorum().state).toBe('unchecked,unknown');
  });

  test.each([
    { check: passed, view: 'up', message: '' },
    { check: failed, view: 'down', message: 'connection refused' },
  ])('one check decides at first: $view', ({ check, view, message }) => {
    const one = quorum();
    const effects = one.send(check);
    expect(one.state).toBe(`${view},${view}`);
    expect(shared(effects)).toEqual([{ view, message }]);
  });

  test('fall failed checks in a row make it down, and one that passes begins anew', () => {
    const one = agreed();
    one.sendAll(failed, failed);
    expect(one.state).toBe('goingDown,up');
    one.sendAll(passed, failed, failed);
    expect([one.state, shared(one.send(failed))]).toEqual([
      'goingDown,up',
      [{ view: 'down', message: 'connection refused' }],
    ]);
    expect(one.state).toBe('down,up');
  });

  test('rise passed checks in a row make it up again, and one that fails begins anew', () => {
    const one = agreed();
    one.sendAll(failed, failed, failed, passed);
    expect(one.state).toBe('goingUp,up');
    one.send(failed);
    expect(one.state).toBe('down,up');
    one.send(passed);
    expect(shared(one.send(passed))).toEqual([{ view: 'up', message: '' }]);
    expect(one.state).toBe('up,up');
  });

  test('with rise and fall 1 the first check is enough', () => {
    const one = agreed({ rise: 1, fall: 1 });
    one.send(failed);
    expect(one.state).toBe('down,up');
    one.send(passed);
    expect(one.state).toBe('up,up');
  });

  test('the pace of the checker follows it, and not the verdict', () => {
    const one = agreed();
    const paceAfter = (event: HealthQuorumEvent) => toChecker(one.send(event));
    expect(paceAfter(failed)).toEqual([{ type: 'pace.changed', pace: 'fast', elapsedMs: 3 }]);
    one.send(failed);
    expect(paceAfter(failed)).toEqual([{ type: 'pace.changed', pace: 'down', elapsedMs: 3 }]);
    expect(one.state).toBe('down,up');
    expect(paceAfter(passed)).toEqual([{ type: 'pace.changed', pace: 'fast', elapsedMs: 3 }]);
    expect(paceAfter(passed)).toEqual([{ type: 'pace.changed', pace: 'normal', elapsedMs: 3 }]);
  });

  test('what the server says of the pace is nothing to it', () => {
    const one = agreed();
    const { snapshot } = one;
    expect(one.send({ type: 'pace.changed', pace: 'down', elapsedMs: 0 })).toEqual([]);
    expect(one.snapshot).toBe(snapshot);
  });

  test.each([
    { what: 'up', events: [passed], again: passed },
    { what: 'down', events: [failed], again: failed },
  ])('checks that say the same again leave the very same snapshot: $what', ({ events, again }) => {
    const one = quorum();
    one.sendAll(...events, heard('lb2', 'up'), heard('lb3', 'up'));
    const { snapshot } = one;
    expect(one.send(again)).toEqual([]);
    expect(one.snapshot).toBe(snapshot);
  });

  test('errors of live traffic count as they do for a server', () => {
    const errors = (onError: 'fastInterval' | 'failCheck' | 'suddenDeath' | 'markDown'): HealthQuorumEvent => ({
      type: 'traffic.failed',
      onError,
      errors: 10,
      kind: null,
      detail: '502',
    });
    const after = (...events: HealthQuorumEvent[]) => {
      const one = agreed();
      one.sendAll(...events);
      return `${one.state} ${one.context.count}`;
    };
    expect(after(errors('failCheck'))).toBe('goingDown,up 1');
    expect(after(errors('failCheck'), errors('failCheck'), errors('failCheck'))).toBe('down,up 0');
    expect(after(errors('fastInterval'))).toBe('goingDown,up 0');
    expect(after(failed, errors('fastInterval'))).toBe('goingDown,up 1');
    expect(after(errors('suddenDeath'))).toBe('goingDown,up 2');
    expect(after(errors('markDown'))).toBe('down,up 0');
    expect(after(errors('markDown'), errors('failCheck'))).toBe('down,up 0');
    expect(after(errors('markDown'), passed, errors('failCheck'))).toBe('down,up 0');
    expect(after(errors('markDown'), passed, errors('fastInterval'))).toBe('goingUp,up 1');
    const one = agreed();
    expect(shared(one.send(errors('markDown')))).toEqual([{ view: 'down', message: '502' }]);
  });

  test('other thresholds count from the next check on', () => {
    const one = agreed();
    one.sendAll(failed, { type: 'settings.changed', settings: { node: 'lb1', rise: 1, fall: 2 } }, failed);
    expect(one.state).toBe('down,up');
    one.send(passed);
    expect(one.state).toBe('up,up');
  });
});

describe('the verdict', () => {
  test('one node alone is its own verdict, in the words of its checks', () => {
    const alone = quorum({ fall: 2 });
    expect(toServer(alone.send(passed))).toEqual([passed]);
    alone.send(failed);
    expect(toServer(alone.send(failed))).toEqual([failed]);
    expect(alone.state).toBe('down,down');
  });

  test('one node of three takes nothing down', () => {
    const three = agreed();
    expect(toServer(three.sendAll(failed, failed, failed))).toEqual([]);
    expect(three.state).toBe('down,up');
    expect(toServer(three.send(heard('lb2', 'none')))).toEqual([]);
  });

  test('two of three do, and the server hears it once, with who saw what', () => {
    const three = agreed();
    three.send(heard('lb3', 'down', 'connection refused'));
    three.sendAll(failed, failed);
    expect(toServer(three.send(failed))).toEqual([
      {
        type: 'check.failed',
        code: 'QUORUM',
        message: '2 of 3 nodes: lb1, lb3: connection refused',
        durationMs: 0,
      },
    ]);
    expect(toServer(three.send(heard('lb2', 'down', 'timed out')))).toEqual([]);
    expect(three.state).toBe('down,down');
  });

  test('others alone can decide it', () => {
    const three = agreed();
    three.send(heard('lb2', 'down', 'connection refused'));
    expect(toServer(three.send(heard('lb3', 'down', 'timed out')))).toEqual([
      {
        type: 'check.failed',
        code: 'QUORUM',
        message: '2 of 3 nodes: lb2: connection refused; lb3: timed out',
        durationMs: 0,
      },
    ]);
    expect(toServer(three.send(heard('lb3', 'up')))).toEqual([
      { type: 'check.passed', code: 'QUORUM', message: '2 of 3 nodes: lb1, lb3', durationMs: 0 },
    ]);
  });

  test('a tie of two nodes leaves it as it is, both ways', () => {
    const two = quorum({ rise: 1, fall: 1 });
    two.sendAll(passed, heard('lb2', 'up'));
    two.send(failed);
    expect(two.state).toBe('down,up');
    two.send(heard('lb2', 'down'));
    expect(two.state).toBe('down,down');
    two.send(passed);
    expect(two.state).toBe('up,down');
    two.send(heard('lb2', 'up'));
    expect(two.state).toBe('up,up');
  });

  test('a tie of four nodes leaves it as it is', () => {
    const four = agreed({ fall: 1 });
    four.sendAll(heard('lb4', 'up'), failed, heard('lb2', 'down'));
    expect(four.state).toBe('down,up');
    four.send(heard('lb3', 'down'));
    expect(four.state).toBe('down,down');
  });

  test('where there is none yet that could stay, a tie is up', () => {
    const known: HealthQuorumEvent = {
      type: 'views.known',
      views: { lb2: { view: 'up', message: '' }, lb3: { view: 'down', message: 'timed out' } },
      blind: [],
      checkers: null,
    };
    const four = quorum();
    expect(toServer(four.send(known))).toMatchObject([{ type: 'check.passed', message: '1 of 2 nodes: lb2' }]);
    expect(four.state).toBe('unchecked,up');
    const paused = quorum();
    paused.sendAll({ type: 'checker.pause' }, known);
    expect(paused.state).toBe('paused,unknown');
  });

  test('a node that has no view has no vote', () => {
    const three = agreed({ fall: 1 });
    three.sendAll(heard('lb2', 'none'), failed);
    expect(three.state).toBe('down,up');
    expect(toServer(three.send(heard('lb3', 'none')))).toMatchObject([{ type: 'check.failed' }]);
  });

  test('a node that is lost has no vote, and has it back when it is heard', () => {
    const three = agreed({ fall: 1 });
    three.send(failed);
    three.send({ type: 'node.lost', node: 'lb2' });
    expect(three.state).toBe('down,up');
    expect(toServer(three.send({ type: 'node.lost', node: 'lb3' }))).toMatchObject([
      { type: 'check.failed', code: 'QUORUM', message: 'lb1 alone: connection refused' },
    ]);
    expect(three.state).toBe('down,down');
    three.send(heard('lb2', 'up'));
    expect(three.state).toBe('down,down');
    three.send(heard('lb3', 'up'));
    expect(three.state).toBe('down,up');
  });

  test('a blind node has no vote, and is named with those that were not asked', () => {
    const three = agreed({ fall: 1 });
    three.sendAll(heard('lb3', 'down'), blind('lb3'));
    expect(three.state).toBe('up,up');
    three.send(failed);
    // One of two that see: a tie.
    expect(three.state).toBe('down,up');
    expect(toServer(three.send(heard('lb2', 'down', 'timed out')))).toMatchObject([
      { message: '2 of 2 nodes: lb1: connection refused; lb2: timed out (without lb3, blind)' },
    ]);
    three.sendAll(heard('lb2', 'up'), passed, passed);
    expect(three.state).toBe('up,up');
  });

  test('this node has no vote either while it is blind, and two nodes are one vote then', () => {
    const two = quorum({ fall: 1 });
    two.sendAll(passed, heard('lb2', 'up'), failed, blind('lb1'));
    expect(two.state).toBe('down,up');
    expect(toServer(two.send(heard('lb2', 'down', 'timed out')))).toMatchObject([
      { type: 'check.failed', message: '1 of 1 nodes: lb2: timed out (without lb1, blind)' },
    ]);
    two.send(heard('lb2', 'up'));
    expect(two.state).toBe('down,up');
  });

  test('a node that sees again votes again', () => {
    const three = agreed({ fall: 1 });
    three.sendAll(heard('lb2', 'down'), blind('lb2'), failed);
    expect(three.state).toBe('down,up');
    three.send(blind('lb2', false));
    expect(three.state).toBe('down,down');
    expect(three.context.blind).toEqual([]);
  });

  test('when nobody sees anything nobody is blind, and all vote', () => {
    const three = agreed({ fall: 1 });
    three.sendAll(blind('lb1'), failed, heard('lb2', 'down'));
    expect(three.state).toBe('down,up');
    three.sendAll(heard('lb3', 'down'), blind('lb1', false));
    expect(three.state).toBe('down,down');
  });
});

describe('duty', () => {
  test('a node that is not among the checkers goes off duty, and follows the others', () => {
    const three = agreed();
    const effects = three.send(assigned('lb2', 'lb3'));
    expect(three.state).toBe('offDuty,up');
    expect(toChecker(effects)).toEqual([{ type: 'checker.pause' }]);
    expect(shared(effects)).toEqual([{ view: 'none', message: '' }]);
    three.send(heard('lb2', 'down', 'timed out'));
    expect(three.state).toBe('offDuty,up');
    expect(toServer(three.send(heard('lb3', 'down', 'timed out')))).toMatchObject([
      { type: 'check.failed', message: '2 of 2 nodes: lb2, lb3: timed out' },
    ]);
  });

  test('one that is among them stays', () => {
    const three = agreed();
    expect(toChecker(three.send(assigned('lb1', 'lb3')))).toEqual([]);
    expect(three.state).toBe('up,up');
  });

  test('it checks on until each of the checkers has a view', () => {
    const two = quorum();
    two.sendAll(passed, heard('lb2', 'up'), assigned('lb2', 'lb3'));
    expect(two.state).toBe('up,up');
    const effects = two.send(heard('lb3', 'up'));
    expect(two.state).toBe('offDuty,up');
    expect(toChecker(effects)).toEqual([{ type: 'checker.pause' }]);
  });

  test('one that has not checked yet goes too, when the others have', () => {
    const late = quorum();
    late.sendAll(heard('lb2', 'up'), heard('lb3', 'up'), assigned('lb2', 'lb3'));
    expect(late.state).toBe('offDuty,up');
  });

  test('it comes on duty with a check at once', () => {
    const three = agreed();
    three.send(assigned('lb2', 'lb3'));
    const effects = three.send(assigned('lb1', 'lb2'));
    expect(three.state).toBe('unchecked,up');
    expect(toChecker(effects)).toEqual([
      { type: 'checker.resume' },
      { type: 'pace.changed', pace: 'fast', elapsedMs: 0 },
    ]);
    expect(shared(three.send(passed))).toEqual([{ view: 'up', message: '' }]);
    expect(three.state).toBe('up,up');
  });

  test('it takes over by itself when none of the checkers has a view any more', () => {
    const three = agreed();
    three.sendAll(assigned('lb2', 'lb3'), { type: 'node.lost', node: 'lb2' });
    expect(three.state).toBe('offDuty,up');
    three.send(heard('lb3', 'none'));
    expect(three.state).toBe('unchecked,up');
  });

  test('all are on duty when checks are no longer divided', () => {
    const three = agreed();
    three.sendAll(assigned('lb2', 'lb3'), { type: 'duty.assigned', checkers: null });
    expect(three.state).toBe('unchecked,up');
  });

  test('a first check against the verdict counts as one of as many as it takes, and gives no vote before', () => {
    const back = (...views: ('up' | 'down')[]) => {
      const three = agreed();
      three.send(assigned('lb2', 'lb3'));
      three.sendAll(heard('lb2', views[0]!), heard('lb3', views[1]!), assigned('lb1', 'lb2'));
      return three;
    };
    const up = back('up', 'up');
    expect(shared(up.send(failed))).toEqual([]);
    expect(up.state).toBe('goingDown,up');
    up.send(failed);
    expect(shared(up.send(failed))).toEqual([{ view: 'down', message: 'connection refused' }]);
    const down = back('down', 'down');
    expect(shared(down.send(passed))).toEqual([]);
    expect(down.state).toBe('goingUp,down');
    expect(shared(down.send(passed))).toEqual([{ view: 'up', message: '' }]);
  });

  test('the result of a probe that was under way when it went off duty is nothing', () => {
    const three = agreed();
    three.send(assigned('lb2', 'lb3'));
    const { snapshot } = three;
    expect([three.send(failed), three.send(passed)]).toEqual([[], []]);
    expect(three.snapshot).toBe(snapshot);
  });
});

describe('maintenance', () => {
  const pause: HealthQuorumEvent = { type: 'checker.pause' };
  const resume: HealthQuorumEvent = { type: 'checker.resume' };

  test('it pauses the checker, takes the view back, and there is no verdict meanwhile', () => {
    const three = agreed();
    const effects = three.send(pause);
    expect(three.state).toBe('paused,unknown');
    expect(toChecker(effects)).toEqual([{ type: 'checker.pause' }]);
    expect(shared(effects)).toEqual([{ view: 'none', message: '' }]);
    expect(toServer(three.sendAll(heard('lb2', 'down'), heard('lb3', 'down')))).toEqual([]);
    expect(three.state).toBe('paused,unknown');
  });

  test('when it is over the others’ verdict counts at once, and the own check follows', () => {
    const three = agreed();
    three.send(pause);
    const effects = three.send(resume);
    expect(three.state).toBe('unchecked,up');
    expect(toChecker(effects)[0]).toEqual({ type: 'checker.resume' });
    expect(toServer(effects)).toMatchObject([{ type: 'check.passed', message: '2 of 2 nodes: lb2, lb3' }]);
  });

  test('with nobody else to ask, one check decides', () => {
    const alone = quorum();
    alone.sendAll(passed, pause, resume);
    expect(alone.state).toBe('unchecked,unknown');
    expect(toServer(alone.send(failed))).toEqual([failed]);
  });

  test('a duty that is taken away meanwhile is not taken up again', () => {
    const three = agreed();
    three.sendAll(pause, assigned('lb2', 'lb3'));
    expect(three.state).toBe('paused,unknown');
    const effects = three.send(resume);
    expect(three.state).toBe('offDuty,up');
    expect(toChecker(effects)).toEqual([{ type: 'checker.pause' }]);
  });

  test('a duty that is given meanwhile is taken up when it is over', () => {
    const three = agreed();
    three.sendAll(assigned('lb2', 'lb3'), pause, assigned('lb1', 'lb2'));
    expect(three.state).toBe('paused,unknown');
    three.send(resume);
    expect(three.state).toBe('unchecked,up');
  });

  test('it may begin twice', () => {
    const three = agreed();
    three.send(pause);
    const { snapshot } = three;
    expect(three.send(pause)).toEqual([]);
    expect(three.snapshot).toBe(snapshot);
  });
});

describe('between a checker and a server', () => {
  const settings = { rise: 1, fall: 1, checked: true, initially: 'unchecked' as const, weight: 1, backup: false };
  const SERVER = { pool: 'web', name: 'a', settings: { ...settings, slowStartMs: 0, shutdownSessions: false } };
  const INTERVALS = { intervalMs: 2000, fastIntervalMs: 500, downIntervalMs: 5000, timeoutMs: 1000, jitter: 0 };
  const CHECKER = { pool: 'web', server: 'a', settings: INTERVALS, startDelayMs: 0, spread: false, phase: 0.5 };
  const sharing = <T extends { settings: object }>(input: T): T => ({
    ...input,
    settings: { ...input.settings, shared: true },
  });
  const QUORUM = { pool: 'web', server: 'a', settings: { node: 'lb1', rise: 2, fall: 3 } };
  const started: Step[] = [
    start('checker/web/a', 'healthChecker', sharing(CHECKER)),
    start('quorum/web/a', 'healthQuorum', QUORUM),
    start('server/web/a', 'backendServer', sharing(SERVER)),
  ];
  const lb = (node: string, view: 'up' | 'down' | 'none') =>
    send('quorum/web/a', 'view.heard', { node, view, message: '' });

  test('what only this node can’t see stays up, and is checked at the down interval', () => {
    const scenario = new Scenario().play(...started, lb('lb2', 'up'), lb('lb3', 'up'), wait(100));
    expect(scenario.stateOf('server/web/a')).toBe('up,ready,warm');
    scenario.play(broken('checker/web/a'), wait(6000));
    expect([scenario.stateOf('quorum/web/a'), scenario.stateOf('server/web/a')]).toEqual(['down,up', 'up,ready,warm']);
    const before = scenario.probesOf('checker/web/a').length;
    scenario.play(wait(10_000));
    expect(scenario.probesOf('checker/web/a').length - before).toBe(2);
    scenario.play(lb('lb2', 'down'));
    expect(scenario.stateOf('server/web/a')).toBe('down,ready,cold');
    expect(scenario.faults).toEqual([]);
  });

  test('an operator’s maintenance reaches the checker through it, also off duty', () => {
    const scenario = new Scenario().play(...started, lb('lb2', 'up'), lb('lb3', 'up'), wait(100));
    scenario.play(send('server/web/a', 'operator.maintenance'), wait(100));
    expect(['checker/web/a', 'quorum/web/a', 'server/web/a'].map((id) => scenario.stateOf(id))).toEqual([
      'paused',
      'paused,unknown',
      'unchecked,maintenance,cold',
    ]);
    scenario.play(send('quorum/web/a', 'duty.assigned', { checkers: ['lb2', 'lb3'] }));
    scenario.play(send('server/web/a', 'operator.ready'), wait(10_000));
    expect(['checker/web/a', 'quorum/web/a', 'server/web/a'].map((id) => scenario.stateOf(id))).toEqual([
      'paused',
      'offDuty,up',
      'up,ready,warm',
    ]);
    const before = scenario.probesOf('checker/web/a').length;
    scenario.play(send('quorum/web/a', 'duty.assigned', { checkers: null }));
    expect(scenario.probesOf('checker/web/a').length - before).toBe(1);
    scenario.play(wait(100));
    expect(scenario.stateOf('quorum/web/a')).toBe('up,up');
  });

  test('a reload that begins to share leaves the server as it is', () => {
    const scenario = new Scenario().play(
      start('checker/web/a', 'healthChecker', CHECKER),
      start('server/web/a', 'backendServer', { ...SERVER, settings: { ...SERVER.settings, rise: 2, fall: 3 } }),
      wait(3000),
    );
    expect(scenario.stateOf('server/web/a')).toBe('up,ready,warm');
    scenario.play(
      start('quorum/web/a', 'healthQuorum', QUORUM),
      send('checker/web/a', 'settings.changed', { settings: sharing(CHECKER).settings }),
      send('server/web/a', 'settings.changed', { settings: sharing(SERVER).settings }),
    );
    expect(scenario.stateOf('server/web/a')).toBe('up,ready,warm');
    scenario.play(wait(3000));
    expect([scenario.stateOf('quorum/web/a'), scenario.stateOf('server/web/a')]).toEqual(['up,up', 'up,ready,warm']);
    scenario.play(broken('checker/web/a'), wait(4000));
    expect([scenario.stateOf('quorum/web/a'), scenario.stateOf('server/web/a')]).toEqual([
      'down,down',
      'down,ready,cold',
    ]);
    expect(scenario.system.counters.unhandled).toBe(0);
  });

  test('a server in maintenance stays paused when a reload begins to share', () => {
    const scenario = new Scenario().play(
      start('checker/web/a', 'healthChecker', CHECKER),
      start('server/web/a', 'backendServer', SERVER),
      send('server/web/a', 'operator.maintenance'),
      start('quorum/web/a', 'healthQuorum', QUORUM),
      send('checker/web/a', 'settings.changed', { settings: sharing(CHECKER).settings }),
      send('server/web/a', 'settings.changed', { settings: sharing(SERVER).settings }),
      wait(10_000),
    );
    expect(['checker/web/a', 'quorum/web/a'].map((id) => scenario.stateOf(id))).toEqual(['paused', 'paused,unknown']);
    scenario.play(send('server/web/a', 'operator.ready'), wait(100));
    expect(scenario.stateOf('server/web/a')).toBe('up,ready,warm');
  });

  test('a reload that ends sharing wakes a checker that was off duty, at the server’s own pace', () => {
    const scenario = new Scenario().play(...started, lb('lb2', 'up'), lb('lb3', 'up'), wait(100));
    scenario.play(send('quorum/web/a', 'duty.assigned', { checkers: ['lb2', 'lb3'] }), wait(100));
    expect(scenario.stateOf('checker/web/a')).toBe('paused');
    const before = scenario.probesOf('checker/web/a').length;
    scenario.play(
      { do: 'stop', id: 'quorum/web/a' },
      send('checker/web/a', 'settings.changed', { settings: CHECKER.settings }),
      send('server/web/a', 'settings.changed', { settings: SERVER.settings }),
      wait(4100),
    );
    expect(scenario.probesOf('checker/web/a').length - before).toBe(3);
    expect(scenario.stateOf('server/web/a')).toBe('up,ready,warm');
  });

  test('a reload that ends sharing lets this node’s own checks count, which saw it down all the time', () => {
    const scenario = new Scenario().play(...started, lb('lb2', 'up'), lb('lb3', 'up'), wait(100));
    scenario.play(broken('checker/web/a'), wait(6000));
    const before = scenario.probesOf('checker/web/a').length;
    scenario.play(
      { do: 'stop', id: 'quorum/web/a' },
      send('checker/web/a', 'settings.changed', { settings: CHECKER.settings }),
      send('server/web/a', 'settings.changed', { settings: { ...SERVER.settings, rise: 2, fall: 3 } }),
      wait(4000),
    );
    // Not at the down interval any more: it is up, as far as the server knows.
    expect(scenario.probesOf('checker/web/a').length - before).toBeGreaterThan(2);
    expect(scenario.stateOf('server/web/a')).toBe('down,ready,cold');
    scenario.play(healthy('checker/web/a'), wait(10_000));
    expect(scenario.stateOf('server/web/a')).toBe('up,ready,warm');
  });
});

test('nothing of it changes machines that share nothing', () => {
  const server = new Stepper(backendServer, undefined);
  expect(JSON.stringify(server.context)).not.toContain('shared');
  expect(JSON.stringify(new Stepper(healthChecker, undefined).context)).not.toContain('shared');
});
