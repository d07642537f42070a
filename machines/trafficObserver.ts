/**
 * What live traffic says of one server. Workers report errors in a row and totals; it decides when they are enough to
 * count against the server's health (HAProxy's `observe` and `on-error`), and when they make it an outlier (Envoy's
 * outlier detection). Whether an outlier may be ejected is the pool's word, which knows the others.
 *
 * admitted: nothing is held against it. ejected: it takes no new traffic until its time is over. probation: it is back,
 * and its next ejection would be longer than the last; each base ejection time that goes well takes one off.
 */
import { assign, cancel, enqueueActions, setup } from 'xstate';
import type { Tell } from './tell.ts';

/** connect: no connection. timeout, reset, invalid: no whole answer came. status: one came that tells of a fault. */
export type FailureKind = 'connect' | 'timeout' | 'reset' | 'invalid' | 'status';

/** fastInterval: be checked soon. failCheck: as one failed check. suddenDeath: the next failed check marks it down. */
export type OnError = 'fastInterval' | 'failCheck' | 'suddenDeath' | 'markDown';

export type ObserverSettings = {
  observe: { errorLimit: number; onError: OnError } | null;
  outliers: {
    /** Errors in a row that make an outlier; 0: they don't. */
    consecutiveErrors: number;
    /** Percent of all exchanges in an interval that begins with an error. */
    errorRate: { above: number; minimumRequests: number; intervalMs: number } | null;
    /** The n-th ejection lasts n times as long, up to `maxEjectionMs`. */
    baseEjectionMs: number;
    maxEjectionMs: number;
  } | null;
  /** Errors count against this node's view of the server, of which the cluster's nodes make a verdict. */
  shared?: boolean;
};

export type TrafficObserverInput = { pool: string; server: string; settings: ObserverSettings };

/** Why a server is suspected to be an outlier. */
export type Suspicion =
  | { code: 'consecutiveErrors'; errors: number; kind: FailureKind | null; detail: string }
  | { code: 'errorRate'; errors: number; of: number };

/** Errors in a row, over all workers: which row it is, and how many of it have been answered with something. */
type Row = { row: number; errors: number };

export type TrafficObserverContext = TrafficObserverInput & {
  answered: { health: Row; outlier: Row };
  /** Totals since the error with which the interval began; null while there is none. */
  interval: { passed: number; failed: number } | null;
  /** Ejections that the next one's length counts from. */
  ejections: number;
};

export type TrafficObserved = {
  type: 'traffic.observed';
  /** Exchanges since the worker's last report; without errors nothing is reported but the rest of an interval. */
  passed: number;
  failed: number;
  /** The longest row of errors that the failures were part of: its number, and its length until now. */
  row: number;
  consecutive: number;
  /** The last error; null when there was none. */
  kind: FailureKind | null;
  detail: string;
};

/** The pool's word, with what it went by: how many of its servers are ejected now and may be at most. */
type Verdict = { why: Suspicion; ejected: number; allowed: number; of: number };

export type TrafficObserverEvent =
  | TrafficObserved
  | { type: 'interval.elapsed' }
  | ({ type: 'ejection.granted' } & Verdict)
  | ({ type: 'ejection.refused'; because: 'cap' | 'last' | 'unusable' } & Verdict)
  | { type: 'observer.forget' }
  | { type: 'settings.changed'; settings: ObserverSettings };

/** How much longer than a worker's an interval lasts here: the worker's last report of it is still under way. */
const REPORT_GRACE_MS = 250;

const defaultInput: TrafficObserverInput = { pool: '', server: '', settings: { observe: null, outliers: null } };

const NO_ROW: Row = { row: 0, errors: 0 };

const isDue = (answered: Row, { failed, row, consecutive }: TrafficObserved, limit: number): boolean =>
  limit > 0 && failed > 0 && consecutive - (answered.row === row ? answered.errors : 0) >= limit;

const isAbove = ({ passed, failed }: { passed: number; failed: number }, settings: ObserverSettings): boolean => {
  const rate = settings.outliers?.errorRate;
  const all = passed + failed;
  return rate != null && all >= rate.minimumRequests && (100 * failed) / all > rate.above;
};

/** How long the ejection lasts that it is in. */
export const ejectionMs = ({ settings, ejections }: TrafficObserverContext): number =>
  settings.outliers ? Math.min(settings.outliers.baseEjectionMs * ejections, settings.outliers.maxEjectionMs) : 0;

const toPool = ({ pool, server }: TrafficObserverContext, event: { type: string } & Record<string, unknown>): Tell => ({
  to: `pool/${pool}`,
  event: { ...event, server } as Tell['event'],
});

const toServer = ({ pool, server }: TrafficObserverContext, event: { type: string }): Tell => ({
  to: `server/${pool}/${server}`,
  event,
});

/** Errors count where checks count. */
const toJudge = ({ pool, server, settings }: TrafficObserverContext, event: { type: string }): Tell => ({
  to: `${settings.shared ? 'quorum' : 'server'}/${pool}/${server}`,
  event,
});

const suspected = (context: TrafficObserverContext, why: Suspicion): Tell =>
  toPool(context, { type: 'outlier.suspected', why });

/** What the server is told when errors in a row are to count against its health. */
const against = ({ onError }: { onError: OnError }, { consecutive, kind, detail }: TrafficObserved) => ({
  type: 'traffic.failed',
  onError,
  errors: consecutive,
  kind,
  detail,
});

type Weighed = { tells: Tell[]; changes: Partial<TrafficObserverContext>; begins: boolean };

/** What a report leads to. One that is about nothing new leads to nothing. */
const weigh = (context: TrafficObserverContext, event: TrafficObserved, isEjected: boolean): Weighed => {
  const { settings, answered, interval } = context;
  const { observe, outliers } = settings;
  const tells: Tell[] = [];
  let { health, outlier } = answered;
  const row: Row = { row: event.row, errors: event.consecutive };
  if (observe && isDue(health, event, observe.errorLimit)) {
    health = row;
    tells.push(toJudge(context, against(observe, event)));
  }
  if (isEjected) {
    // What was under way when it was ejected must not eject it once more when it is back.
    if (event.failed > 0) outlier = row;
  } else if (outliers && isDue(outlier, event, outliers.consecutiveErrors)) {
    outlier = row;
    const { consecutive: errors, kind, detail } = event;
    tells.push(suspected(context, { code: 'consecutiveErrors', errors, kind, detail }));
  }
  const changes: Weighed['changes'] = {};
  if (health !== answered.health || outlier !== answered.outlier) changes.answered = { health, outlier };
  const begins = !isEjected && interval === null && outliers?.errorRate != null && event.failed > 0;
  if (begins || interval) {
    const { passed, failed } = interval ?? { passed: 0, failed: 0 };
    changes.interval = { passed: passed + event.passed, failed: failed + event.failed };
  }
  return { tells, changes, begins };
};

export const trafficObserver = setup({
  types: {
    context: {} as TrafficObserverContext,
    events: {} as TrafficObserverEvent,
    input: {} as TrafficObserverInput,
  },
  actions: {
    /** Effect: deliver an event to another actor. */
    tell: (_, _params: Tell) => {},
    takeSettings: assign({
      settings: ({ context, event }) => (event.type === 'settings.changed' ? event.settings : context.settings),
    }),
    forget: assign({ ejections: 0, interval: null }),
    countEjection: assign({ ejections: ({ context }) => context.ejections + 1, interval: null }),
    forgiveOne: assign({ ejections: ({ context }) => context.ejections - 1 }),
  },
  guards: {
    isUnknown: ({ context }) => context.interval === null,
    hasFurther: ({ context }) => context.ejections > 1,
    losesOutliers: ({ event }) => event.type === 'settings.changed' && event.settings.outliers === null,
  },
  delays: {
    ejection: ({ context }) => ejectionMs(context),
    forgiveness: ({ context }) => context.settings.outliers?.baseEjectionMs ?? 0,
    interval: ({ context }) => (context.settings.outliers?.errorRate?.intervalMs ?? 0) + REPORT_GRACE_MS,
  },
}).createMachine({
  id: 'trafficObserver',
  context: ({ input }) => ({
    ...(input ?? defaultInput),
    answered: { health: NO_ROW, outlier: NO_ROW },
    interval: null,
    ejections: 0,
  }),
  initial: 'admitted',
  on: {
    'traffic.observed': {
      actions: enqueueActions(({ context, event, enqueue }) => {
        const { tells, changes, begins } = weigh(context, event, false);
        if (Object.keys(changes).length > 0) enqueue.assign(changes);
        for (const params of tells) enqueue({ type: 'tell', params });
        if (begins) enqueue.raise({ type: 'interval.elapsed' }, { id: 'interval', delay: 'interval' });
      }),
    },
    'interval.elapsed': {
      actions: enqueueActions(({ context, enqueue }) => {
        const { interval, settings } = context;
        enqueue.assign({ interval: null });
        if (!interval || !isAbove(interval, settings)) return;
        const { passed, failed: errors } = interval;
        enqueue({ type: 'tell', params: suspected(context, { code: 'errorRate', errors, of: passed + errors }) });
      }),
    },
    'settings.changed': { actions: 'takeSettings' },
    'ejection.refused': {},
  },
  states: {
    admitted: {
      on: {
        'ejection.granted': { target: 'ejected', actions: [cancel('interval'), 'countEjection'] },
        'observer.forget': [{ guard: 'isUnknown' }, { actions: [cancel('interval'), 'forget'] }],
      },
    },
    ejected: {
      entry: {
        type: 'tell',
        params: ({ context, event }) => {
          const { type: _type, ...verdict } = event as { type: string } & Verdict;
          const { ejections } = context;
          return toServer(context, {
            type: 'ejection.began',
            durationMs: ejectionMs(context),
            ejections,
            ...verdict,
          } as { type: string });
        },
      },
      // The server first: it may have to start slowly, which the pool should know when it gives it traffic again.
      exit: [
        { type: 'tell', params: ({ context }) => toServer(context, { type: 'ejection.ended' }) },
        { type: 'tell', params: ({ context }) => toPool(context, { type: 'outlier.returned' }) },
      ],
      on: {
        'traffic.observed': {
          actions: enqueueActions(({ context, event, enqueue }) => {
            const { tells, changes } = weigh(context, event, true);
            if (Object.keys(changes).length > 0) enqueue.assign(changes);
            for (const params of tells) enqueue({ type: 'tell', params });
          }),
        },
        'ejection.granted': {},
        'observer.forget': { target: 'admitted', actions: 'forget' },
        'settings.changed': [
          { guard: 'losesOutliers', target: 'admitted', actions: ['takeSettings', 'forget'] },
          { actions: 'takeSettings' },
        ],
      },
      after: { ejection: { target: 'probation' } },
    },
    probation: {
      on: {
        'ejection.granted': { target: 'ejected', actions: [cancel('interval'), 'countEjection'] },
        'observer.forget': { target: 'admitted', actions: [cancel('interval'), 'forget'] },
        'settings.changed': [
          { guard: 'losesOutliers', target: 'admitted', actions: [cancel('interval'), 'takeSettings', 'forget'] },
          { actions: 'takeSettings' },
        ],
      },
      after: {
        forgiveness: [
          { guard: 'hasFurther', target: 'probation', reenter: true, actions: 'forgiveOne' },
          { target: 'admitted', actions: 'forgiveOne' },
        ],
      },
    },
  },
});
