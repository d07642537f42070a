/**
 * Decides when a server is probed. The period runs from the start of one probe to the start of the next; how the
 * server is doing decides which of three intervals it is (HAProxy's inter, fastinter, downinter). A probe that outlasts
 * its period makes the next one start as soon as it ends, so there is never more than one under way.
 *
 * `waiting` and `probing` are tagged `routine`: going round between them is a steady observation, which the journal
 * writes as one run.
 */
import { assign, cancel, raise, setup } from 'xstate';
import type { Tell } from './tell.ts';

/** normal: the server is up. fast: in doubt (unchecked, going down, going up). down: it is down. */
export type Pace = 'normal' | 'fast' | 'down';

export type CheckerSettings = {
  intervalMs: number;
  fastIntervalMs: number;
  downIntervalMs: number;
  /** Given with each probe; the hands answer `…TOUT` when it has passed. */
  timeoutMs: number;
  /** Share of the interval (0–0.5) by which checkers differ, so that nodes and servers don't probe in step. */
  jitter: number;
  /** Its results go to the quorum of the cluster's nodes, instead of to the server. */
  shared?: boolean;
};

export type HealthCheckerInput = {
  pool: string;
  server: string;
  settings: CheckerSettings;
  /** Wait before the first probe: 0, but where thousands start at once. */
  startDelayMs: number;
  /** One of many: its second probe comes after `phase` of the interval, so that they don't go on all at once. */
  spread: boolean;
  /** A fixed number from 0 to 1 of this checker's own, which places it within the jitter. */
  phase: number;
};

export type HealthCheckerContext = HealthCheckerInput & {
  pace: Pace;
  /** It has its place in the interval: from here on it keeps its period. */
  placed: boolean;
};

export type HealthCheckerEvent =
  | { type: 'probe.passed'; code: string; message: string; durationMs: number }
  | { type: 'probe.failed'; code: string; message: string; durationMs: number }
  | { type: 'period.elapsed' }
  | { type: 'pace.changed'; pace: Pace; elapsedMs: number }
  | { type: 'checker.pause' }
  | { type: 'checker.resume' }
  | { type: 'settings.changed'; settings: CheckerSettings };

const defaultInput: HealthCheckerInput = {
  pool: '',
  server: '',
  settings: { intervalMs: 2000, fastIntervalMs: 2000, downIntervalMs: 2000, timeoutMs: 1000, jitter: 0 },
  startDelayMs: 0,
  spread: false,
  phase: 0.5,
};

const intervalOf = (context: HealthCheckerContext, pace: Pace): number => {
  const { settings } = context;
  const interval =
    pace === 'normal' ? settings.intervalMs : pace === 'fast' ? settings.fastIntervalMs : settings.downIntervalMs;
  return Math.max(1, Math.round(interval * (1 + settings.jitter * (2 * context.phase - 1))));
};

const result = (context: HealthCheckerContext, event: HealthCheckerEvent): Tell => ({
  to: `${context.settings.shared ? 'quorum' : 'server'}/${context.pool}/${context.server}`,
  event: { ...event, type: event.type === 'probe.passed' ? 'check.passed' : 'check.failed' },
});

export const healthChecker = setup({
  types: {
    context: {} as HealthCheckerContext,
    events: {} as HealthCheckerEvent,
    input: {} as HealthCheckerInput,
    tags: {} as 'routine',
  },
  actions: {
    /** Effect: deliver an event to another actor. */
    tell: (_, _params: Tell) => {},
    /** Effect: probe the server once; answered by exactly one `probe.passed` or `probe.failed`. */
    startProbe: (_, _params: { timeoutMs: number }) => {},
    /** Effect: give up the probe under way; it is not answered any more. */
    abortProbe: () => {},
    rememberPace: assign({
      pace: ({ context, event }) => (event.type === 'pace.changed' ? event.pace : context.pace),
      placed: true,
    }),
  },
  guards: {
    isPace: ({ context, event }) => event.type === 'pace.changed' && event.pace === context.pace,
  },
  delays: {
    atOnce: 0,
    startDelay: ({ context }) => context.startDelayMs,
    period: ({ context }) => intervalOf(context, context.pace),
    /**
     * The new pace counts from the start of the probe that changed it. But the first probes of many run at about the same
     * time, and would go on doing so: the second one comes after a part of the interval that is each checker's own.
     */
    restOfPeriod: ({ context, event }) => {
      if (event.type !== 'pace.changed') return 0;
      const interval = intervalOf(context, event.pace);
      return context.placed ? Math.max(0, interval - event.elapsedMs) : Math.round(interval * context.phase);
    },
  },
}).createMachine({
  id: 'healthChecker',
  context: ({ input }) => {
    const given = input ?? defaultInput;
    return { ...given, pace: 'fast', placed: !given.spread };
  },
  initial: 'waiting',
  entry: raise({ type: 'period.elapsed' }, { id: 'period', delay: 'startDelay' }),
  on: {
    'settings.changed': { actions: assign({ settings: ({ event }) => event.settings }) },
    'pace.changed': { actions: 'rememberPace' },
  },
  states: {
    waiting: {
      tags: 'routine',
      on: {
        'period.elapsed': { target: 'probing' },
        'checker.pause': { target: 'paused' },
        'checker.resume': {},
        // The pace that it has already changes nothing, least of all the wait before the first probe.
        'pace.changed': [
          { guard: 'isPace' },
          {
            actions: [
              cancel('period'),
              raise({ type: 'period.elapsed' }, { id: 'period', delay: 'restOfPeriod' }),
              'rememberPace',
            ],
          },
        ],
        'settings.changed': {
          actions: [
            assign({ settings: ({ event }) => event.settings }),
            cancel('period'),
            raise({ type: 'period.elapsed' }, { id: 'period', delay: 'period' }),
          ],
        },
      },
    },
    probing: {
      tags: 'routine',
      initial: 'onTime',
      entry: [
        { type: 'startProbe', params: ({ context }) => ({ timeoutMs: context.settings.timeoutMs }) },
        raise({ type: 'period.elapsed' }, { id: 'period', delay: 'period' }),
      ],
      on: {
        'checker.pause': { target: 'paused', actions: 'abortProbe' },
        'checker.resume': {},
        'settings.changed': {
          actions: [
            assign({ settings: ({ event }) => event.settings }),
            cancel('period'),
            raise({ type: 'period.elapsed' }, { id: 'period', delay: 'period' }),
          ],
        },
      },
      states: {
        onTime: {
          tags: 'routine',
          on: {
            'period.elapsed': { target: 'overdue' },
            'probe.passed': {
              target: '#healthChecker.waiting',
              actions: { type: 'tell', params: ({ context, event }) => result(context, event) },
            },
            'probe.failed': {
              target: '#healthChecker.waiting',
              actions: { type: 'tell', params: ({ context, event }) => result(context, event) },
            },
          },
        },
        overdue: {
          tags: 'routine',
          on: {
            'probe.passed': {
              target: '#healthChecker.waiting',
              actions: [
                { type: 'tell', params: ({ context, event }) => result(context, event) },
                raise({ type: 'period.elapsed' }, { id: 'period', delay: 'atOnce' }),
              ],
            },
            'probe.failed': {
              target: '#healthChecker.waiting',
              actions: [
                { type: 'tell', params: ({ context, event }) => result(context, event) },
                raise({ type: 'period.elapsed' }, { id: 'period', delay: 'atOnce' }),
              ],
            },
          },
        },
      },
    },
    paused: {
      entry: cancel('period'),
      on: { 'checker.pause': {}, 'checker.resume': { target: 'probing' } },
    },
  },
});
