/** When a server is probed: the period runs from the start of one probe to the start of the next. */
import { describe, expect, test } from 'vitest';
import { healthCheckerHands } from '../actors/healthChecker.ts';
import type { ProbeAnswer } from '../actors/healthChecker.ts';
import { healthChecker } from '../machines/healthChecker.ts';
import type {
  CheckerSettings,
  HealthCheckerContext,
  HealthCheckerEvent,
  HealthCheckerInput,
} from '../machines/healthChecker.ts';
import { delayOf, Stepper, toldTo, typesOf } from './stepper.ts';
import { broken, healthy, say, Scenario, send, start, wait } from './transcript.ts';
import type { Step } from './transcript.ts';

const SETTINGS: CheckerSettings = {
  intervalMs: 2000,
  fastIntervalMs: 500,
  downIntervalMs: 5000,
  timeoutMs: 1000,
  jitter: 0,
};
const INPUT: HealthCheckerInput = {
  pool: 'web',
  server: 'a',
  settings: SETTINGS,
  startDelayMs: 0,
  spread: false,
  phase: 0.5,
};

type Checker = Stepper<HealthCheckerEvent, HealthCheckerContext>;

const checkerWith = (input: Partial<HealthCheckerInput> = {}): Checker =>
  new Stepper(healthChecker, { ...INPUT, ...input });

const elapsed: HealthCheckerEvent = { type: 'period.elapsed' };
const passed: HealthCheckerEvent = { type: 'probe.passed', code: 'L7OK', message: '200', durationMs: 3 };
const failed: HealthCheckerEvent = { type: 'probe.failed', code: 'L4CON', message: 'refused', durationMs: 3 };
const paceChanged = (pace: 'normal' | 'fast' | 'down', elapsedMs = 3): HealthCheckerEvent => ({
  type: 'pace.changed',
  pace,
  elapsedMs,
});

/** A server of its own and its checker: the two of them set the pace. */
const checkedServer = (settings: Partial<CheckerSettings> = {}, input: Partial<HealthCheckerInput> = {}): Step[] => [
  start('server/web/a', 'backendServer', {
    pool: 'web',
    name: 'a',
    settings: {
      rise: 2,
      fall: 3,
      checked: true,
      initially: 'unchecked',
      weight: 1,
      backup: false,
      slowStartMs: 0,
      shutdownSessions: false,
    },
  }),
  start('checker/web/a', 'healthChecker', { ...INPUT, ...input, settings: { ...SETTINGS, ...settings } }),
];

describe('one probe after the other', () => {
  test('the first probe waits for the start delay', () => {
    const checker = checkerWith({ startDelayMs: 70 });
    expect([checker.state, delayOf(checker.started, 'period')]).toEqual(['waiting', 70]);
    expect(typesOf(checker.started)).not.toContain('startProbe');
  });

  test('one of many takes its own place in the interval after the first check, and keeps its period from then on', () => {
    const many = checkerWith({ spread: true, phase: 0.25 });
    many.sendAll(elapsed, passed);
    expect(delayOf(many.send(paceChanged('normal')), 'period')).toBe(500);
    many.sendAll(elapsed, failed);
    expect(delayOf(many.send(paceChanged('fast')), 'period')).toBe(497);
    const few = checkerWith({ spread: false, phase: 0.25 });
    few.sendAll(elapsed, passed);
    expect(delayOf(few.send(paceChanged('normal')), 'period')).toBe(1997);
  });

  test('a probe starts with its timeout, and the next period with it', () => {
    const checker = checkerWith();
    const effects = checker.send(elapsed);
    expect(effects).toContainEqual({ type: 'startProbe', params: { timeoutMs: 1000 } });
    expect(delayOf(effects, 'period')).toBe(500);
    expect(checker.state).toBe('probing.onTime');
  });

  test('a result is told to the server as it came, and the period goes on', () => {
    const checker = checkerWith();
    checker.send(elapsed);
    const effects = checker.send(passed);
    expect(toldTo(effects, 'server/web/a')).toEqual([
      { type: 'check.passed', code: 'L7OK', message: '200', durationMs: 3 },
    ]);
    expect(effects).toHaveLength(1);
    expect(checker.state).toBe('waiting');
    checker.send(elapsed);
    expect(toldTo(checker.send(failed), 'server/web/a')).toEqual([
      { type: 'check.failed', code: 'L4CON', message: 'refused', durationMs: 3 },
    ]);
  });

  test('there is never more than one probe under way: a period that ends before its probe starts none', () => {
    const checker = checkerWith();
    checker.send(elapsed);
    expect(checker.send(elapsed)).toEqual([]);
    expect(checker.state).toBe('probing.overdue');
  });

  test('the rounds of a checker leave its context as it was, so that they are one run in the journal', () => {
    const checker = checkerWith();
    checker.send(paceChanged('normal'));
    const { context } = checker;
    for (const event of [elapsed, passed, elapsed, passed]) {
      checker.send(event);
      expect(checker.context).toBe(context);
      expect(checker.snapshot.hasTag('routine')).toBe(true);
    }
  });
});

describe('interval, fastInterval, downInterval', () => {
  test.each([
    ['normal', 2000],
    ['fast', 500],
    ['down', 5000],
  ] as const)('at pace %s a period is %i ms', (pace, ms) => {
    const checker = checkerWith();
    checker.send(elapsed);
    checker.send(passed);
    checker.send(paceChanged(pace));
    expect(delayOf(checker.send(elapsed), 'period')).toBe(ms);
  });

  test('a new pace counts from the start of the probe that brought it', () => {
    const checker = checkerWith();
    checker.sendAll(elapsed, passed);
    expect(delayOf(checker.send(paceChanged('normal', 120)), 'period')).toBe(1880);
    expect(delayOf(checker.send(paceChanged('fast', 120)), 'period')).toBe(380);
    expect(delayOf(checker.send(paceChanged('down', 120)), 'period')).toBe(4880);
  });

  test('a new pace whose period is over already lets the next probe start at once', () => {
    const checker = checkerWith();
    checker.sendAll(elapsed, passed, paceChanged('normal'), elapsed, failed);
    expect(delayOf(checker.send(paceChanged('fast', 700)), 'period')).toBe(0);
  });

  test.each([
    [0, 1800],
    [0.5, 2000],
    [1, 2200],
  ])('jitter 0.1 with phase %d makes an interval of 2000 one of %d', (phase, ms) => {
    const checker = checkerWith({ phase, settings: { ...SETTINGS, jitter: 0.1 } });
    checker.sendAll(elapsed, passed);
    expect(delayOf(checker.send(paceChanged('normal', 0)), 'period')).toBe(ms);
  });

  test('a server that starts does not put off its checker’s first probe', () => {
    const [server, checker] = checkedServer({}, { startDelayMs: 20 });
    const scenario = new Scenario().play(checker!, server!, wait(400));
    expect(scenario.probesOf('checker/web/a')).toEqual([20]);
  });
});

describe('probes that outlast their period', () => {
  const slow = { intervalMs: 500, fastIntervalMs: 500, downIntervalMs: 500, timeoutMs: 2000 };

  test('the next probe starts when the last one ends', () => {
    const scenario = new Scenario().play(...checkedServer(slow), healthy('checker/web/a', 800), wait(3500));
    expect(scenario.probesOf('checker/web/a')).toEqual([0, 800, 1600, 2400, 3200]);
  });

  test('probes that are quick again come at the interval again', () => {
    const scenario = new Scenario().play(...checkedServer(slow), healthy('checker/web/a', 800), wait(700));
    scenario.play(healthy('checker/web/a', 5), wait(2200));
    expect(scenario.probesOf('checker/web/a')).toEqual([0, 800, 1300, 1800, 2300, 2800]);
  });

  test('a server that an overdue probe marks down is next probed after the down interval', () => {
    const scenario = new Scenario().play(
      ...checkedServer({ ...slow, downIntervalMs: 10_000 }),
      broken('checker/web/a', 800),
      wait(12_000),
    );
    expect(scenario.probesOf('checker/web/a')).toEqual([0, 10_000]);
  });

  test('a server that an overdue probe puts in doubt is probed at the fast interval', () => {
    const settings = { intervalMs: 5000, fastIntervalMs: 500, downIntervalMs: 5000, timeoutMs: 8000 };
    const scenario = new Scenario().play(...checkedServer(settings), wait(100), broken('checker/web/a', 6000));
    // Up, and its probe from 5000 takes until 11000: the next one is due at once, those after it 500 ms apart.
    scenario.play(wait(10_000), broken('checker/web/a', 5), wait(1450));
    expect(scenario.stateOf('server/web/a')).toMatch(/^down/);
    expect(scenario.probesOf('checker/web/a')).toEqual([0, 5000, 11_000, 11_500]);
  });
});

describe('pause and resume', () => {
  test('a paused checker gives up its probe and starts none', () => {
    const scenario = new Scenario().play(...checkedServer(), healthy('checker/web/a', 300), wait(100));
    scenario.play(send('checker/web/a', 'checker.pause'), wait(60_000));
    expect(scenario.aborted).toEqual(['checker/web/a']);
    expect(scenario.probesOf('checker/web/a')).toEqual([0]);
    expect(scenario.stateOf('server/web/a')).toMatch(/^unchecked/);
  });

  test('a paused checker has no timer left', () => {
    const scenario = new Scenario().play(...checkedServer(), wait(100), send('checker/web/a', 'checker.pause'));
    expect(scenario.system.pendingTimers()).toEqual([]);
    scenario.play(wait(60_000));
    expect(scenario.system.counters.unhandled).toBe(0);
  });

  test('a resumed checker probes at once', () => {
    const scenario = new Scenario().play(...checkedServer(), wait(100), send('checker/web/a', 'checker.pause'));
    scenario.play(wait(10_000), send('checker/web/a', 'checker.resume'), wait(100));
    expect(scenario.probesOf('checker/web/a')).toEqual([0, 10_100]);
  });

  test('settings that change during a pause hold from the first probe after it', () => {
    const checker = checkerWith();
    checker.sendAll({ type: 'checker.pause' }, { type: 'settings.changed', settings: { ...SETTINGS, timeoutMs: 7 } });
    expect(checker.send({ type: 'checker.resume' })).toContainEqual({ type: 'startProbe', params: { timeoutMs: 7 } });
  });
});

describe('settings change', () => {
  const hourly = { intervalMs: 3_600_000, fastIntervalMs: 3_600_000, downIntervalMs: 3_600_000 };
  const everySecond = { ...SETTINGS, intervalMs: 1000, fastIntervalMs: 1000, downIntervalMs: 1000 };

  test('while it waits, the new interval counts from the change', () => {
    const scenario = new Scenario().play(...checkedServer(hourly), wait(10_000));
    scenario.play(send('checker/web/a', 'settings.changed', { settings: everySecond }), wait(2500));
    expect(scenario.probesOf('checker/web/a')).toEqual([0, 11_000, 12_000]);
  });

  test('while a probe is under way, the next one does not wait for the old interval', () => {
    const scenario = new Scenario().play(...checkedServer(hourly), wait(10), healthy('checker/web/a', 900));
    // The second hourly probe is under way when somebody asks for one a second.
    scenario.play(wait(3_600_000), send('checker/web/a', 'settings.changed', { settings: everySecond }), wait(3000));
    expect(scenario.stateOf('server/web/a')).toMatch(/^up/);
    expect(scenario.probesOf('checker/web/a').length).toBeGreaterThanOrEqual(4);
  });
});

describe('hands', () => {
  type Asked = { checker: string; timeoutMs: number; answer: (result: ProbeAnswer) => void; aborted: boolean };

  const handsWithProbes = () => {
    const asked: Asked[] = [];
    const sent: { type: string }[] = [];
    const hands = healthCheckerHands((checker, timeoutMs, answer) => {
      const probe: Asked = { checker, timeoutMs, answer, aborted: false };
      asked.push(probe);
      return () => {
        probe.aborted = true;
      };
    });
    const call = (name: string, params: unknown, id = 'checker/web/a') =>
      hands[name]!(params as never, { id, send: (event) => sent.push(event) });
    return { asked, sent, call };
  };

  test('a probe is started with the timeout of its effect, and its answer comes back as an event', () => {
    const { asked, sent, call } = handsWithProbes();
    call('startProbe', { timeoutMs: 250 });
    expect(asked).toMatchObject([{ checker: 'checker/web/a', timeoutMs: 250 }]);
    asked[0]!.answer({ ok: true, code: 'L7OK', message: '200', durationMs: 2 });
    asked[0]!.answer({ ok: false, code: 'L4CON', message: 'refused', durationMs: 1 });
    expect(sent).toEqual([
      { type: 'probe.passed', code: 'L7OK', message: '200', durationMs: 2 },
      { type: 'probe.failed', code: 'L4CON', message: 'refused', durationMs: 1 },
    ]);
  });

  test.each(['abortProbe', 'actor.stopped'])('%s gives up the probe of that checker alone, once', (name) => {
    const { asked, call } = handsWithProbes();
    call('startProbe', { timeoutMs: 1 });
    call('startProbe', { timeoutMs: 1 }, 'checker/web/b');
    call(name, undefined);
    call(name, undefined);
    expect(asked.map(({ aborted }) => aborted)).toEqual([true, false]);
  });

  test('a probe that has answered is not aborted any more', () => {
    const { asked, call } = handsWithProbes();
    call('startProbe', { timeoutMs: 1 });
    asked[0]!.answer({ ok: true, code: 'L4OK', message: '', durationMs: 1 });
    call('abortProbe', undefined);
    expect(asked[0]!.aborted).toBe(false);
  });

  test('a probe that can’t even be started is a failed one: the server is not left unwatched', () => {
    const scenario = new Scenario({
      hands: {
        healthChecker: healthCheckerHands(() => {
          throw new Error('no socket left');
        }),
      },
    }).play(...checkedServer(), wait(3000));
    expect(scenario.stateOf('server/web/a')).toMatch(/^down/);
  });
});

describe('scenarios', () => {
  test('the rounds of a checker, from start to start', async () => {
    const scenario = new Scenario().play(
      ...checkedServer(),
      healthy('checker/web/a', 120),
      wait(5000),
      say('It fails: fast, counted from the start of the probe that failed.'),
      broken('checker/web/a', 80),
      wait(2000),
      say('Down: every five seconds.'),
      wait(10_000),
    );
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/checker-rounds.txt');
    expect(scenario.probesOf('checker/web/a')).toEqual([0, 2000, 4000, 6000, 6500, 7000, 12_000, 17_000]);
  });

  test('probes that outlast their period', async () => {
    const scenario = new Scenario().play(
      ...checkedServer({ intervalMs: 500, fastIntervalMs: 500, downIntervalMs: 3000, timeoutMs: 1000 }),
      healthy('checker/web/a', 700),
      wait(1500),
      say('It hangs until the timeout. Down, it is left alone for the down interval.'),
      broken('checker/web/a', 1000),
      wait(8000),
    );
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/checker-overdue.txt');
  });
});
