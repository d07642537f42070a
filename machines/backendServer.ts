/**
 * One server of a pool: is it healthy (HAProxy's rise and fall), does the operator let it work, and how much of its
 * weight does it carry while it warms up. Three parallel regions that know nothing of each other but two internal
 * events, `health.rose` and `health.fell`.
 */
import { and, assign, enqueueActions, not, or, raise, setup, stateIn } from 'xstate';
import type { Pace } from './healthChecker.ts';
import { failuresAfter, riseAndFall } from './riseAndFall.ts';
import type { Tell } from './tell.ts';
import type { FailureKind, OnError, Suspicion } from './trafficObserver.ts';

export type Initially = 'up' | 'down' | 'unchecked';

export type ServerSettings = {
  /** Consecutive passed checks that bring a server back. */
  rise: number;
  /** Consecutive failed checks that mark a server down. */
  fall: number;
  /** False when the pool has no check: such a server counts as up and stays `unchecked`. */
  checked: boolean;
  /** Whether it takes traffic before its first check: `unchecked` does so only while no other server is up. */
  initially: Initially;
  weight: number;
  backup: boolean;
  /** Time in which a returning server's weight grows to its full value; 0 is at once. */
  slowStartMs: number;
  /** Close the sessions of a server that is marked down, instead of letting them end by themselves. */
  shutdownSessions: boolean;
  /** Its live traffic is observed too. */
  observed?: boolean;
  /** Its health is the verdict of the cluster's nodes: their quorum stands where its checker stands. */
  shared?: boolean;
};

export type BackendServerInput = {
  pool: string;
  name: string;
  settings: ServerSettings;
  /** What it was when the node last ran: takes the place of `initially` until the first check. */
  hint?: 'up' | 'down' | null;
};

export type BackendServerContext = BackendServerInput & {
  /** Consecutive checks that speak against the present health: failures while going down, passes while going up. */
  count: number;
  /** The operator's weight, or the configured one. */
  weight: number;
  /** Percent of the weight that it carries: below 100 only during slow start. */
  share: number;
};

/** So many errors in a row of live traffic that something is to be done about them; the last one is told. */
export type TrafficFailed = {
  type: 'traffic.failed';
  onError: OnError;
  errors: number;
  kind: FailureKind | null;
  detail: string;
};

/** The pool lets it be ejected: `ejected` of its `of` servers are now, `allowed` may be. */
export type EjectionBegan = {
  type: 'ejection.began';
  durationMs: number;
  /** How many ejections this one's length counts. */
  ejections: number;
  why: Suspicion;
  ejected: number;
  allowed: number;
  of: number;
};

export type BackendServerEvent =
  | { type: 'check.passed'; code: string; message: string; durationMs: number }
  | { type: 'check.failed'; code: string; message: string; durationMs: number }
  | TrafficFailed
  | EjectionBegan
  | { type: 'ejection.ended' }
  | { type: 'operator.ready' }
  | { type: 'operator.drain' }
  | { type: 'operator.maintenance' }
  | { type: 'operator.weight'; weight: number }
  | { type: 'settings.changed'; settings: ServerSettings }
  | { type: 'health.rose' }
  | { type: 'health.fell' };

/** Steps in which slow start raises the weight: HAProxy uses 20; ten keep the journal short and move 10 % each. */
const SLOW_START_STEPS = 10;
const SHARE_STEP = 100 / SLOW_START_STEPS;

/** Initial states are entered by this event of XState's; `server.joined` says all that there is to say then. */
const isStart = (event: { type: string }): boolean => event.type === 'xstate.init';

const defaultInput: BackendServerInput = {
  pool: '',
  name: '',
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
};

const toPool = (context: BackendServerContext, event: { type: string } & Record<string, unknown>): Tell => ({
  to: `pool/${context.pool}`,
  event: { ...event, server: context.name } as Tell['event'],
});

const toChecker = (context: BackendServerContext, event: { type: string } & Record<string, unknown>): Tell => ({
  to: `${context.settings.shared ? 'quorum' : 'checker'}/${context.pool}/${context.name}`,
  event,
});

const toObserver = (context: BackendServerContext, event: { type: string }): Tell => ({
  to: `observer/${context.pool}/${context.name}`,
  event,
});

const healthOf = (context: BackendServerContext, health: 'up' | 'down' | 'unchecked'): Tell =>
  toPool(context, { type: 'server.health', health, initially: context.hint ?? context.settings.initially });

const adminOf = (context: BackendServerContext, admin: 'ready' | 'drain' | 'maintenance'): Tell =>
  toPool(context, { type: 'server.admin', admin });

const shareOf = (context: BackendServerContext): Tell =>
  toPool(context, { type: 'server.share', share: context.share });

/** The checker counts its next interval from the start of the probe that brought the news, hence the elapsed time. */
const paceOf = (context: BackendServerContext, pace: Pace, event: BackendServerEvent): Tell =>
  toChecker(context, { type: 'pace.changed', pace, elapsedMs: 'durationMs' in event ? event.durationMs : 0 });

const standing = (context: BackendServerContext) => ({
  weight: context.weight,
  backup: context.settings.backup,
  checked: context.settings.checked,
  initially: context.hint ?? context.settings.initially,
});

export const backendServer = setup({
  types: {
    context: {} as BackendServerContext,
    events: {} as BackendServerEvent,
    input: {} as BackendServerInput,
  },
  actions: {
    /** Effect: deliver an event to another actor. */
    tell: (_, _params: Tell) => {},
    /** Effect: close every open session of this server. */
    shutdownSessions: (_, _params: { pool: string; server: string }) => {},
    resetCount: assign({ count: 0 }),
    /** A check has spoken: what was remembered from before the start says nothing any more. */
    forgetHint: assign({ hint: null }),
    takeSettings: assign({
      settings: ({ context, event }) => (event.type === 'settings.changed' ? event.settings : context.settings),
      // A weight that the operator gave stays until the file itself says another one.
      weight: ({ context, event }) =>
        event.type !== 'settings.changed' || event.settings.weight === context.settings.weight
          ? context.weight
          : event.settings.weight,
    }),
    countOne: assign({ count: ({ context, event }) => failuresAfter({ ...context, count: 0 }, event) }),
    countMore: assign({ count: ({ context, event }) => failuresAfter(context, event) }),
  },
  guards: {
    ...riseAndFall,
    isUnchecked: ({ context }) => !context.settings.checked,
    losesCheck: ({ context, event }) =>
      event.type === 'settings.changed' && context.settings.checked && !event.settings.checked,
    mayWork: or([stateIn({ health: 'up' }), stateIn({ health: 'goingDown' }), 'isUnchecked']),
    startsSlowly: ({ context }) => context.settings.slowStartMs > 0,
    hasFurtherSteps: ({ context }) => context.share + SHARE_STEP < 100,
    checkWasAddedOrRemoved: ({ context, event }) =>
      event.type === 'settings.changed' && event.settings.checked !== context.settings.checked,
  },
  delays: {
    slowStartStep: ({ context }) => context.settings.slowStartMs / SLOW_START_STEPS,
  },
}).createMachine({
  id: 'backendServer',
  context: ({ input }) => {
    const given = input ?? defaultInput;
    return { ...given, count: 0, weight: given.settings.weight, share: 100 };
  },
  type: 'parallel',
  entry: {
    type: 'tell',
    params: ({ context }) => toPool(context, { type: 'server.joined', ...standing(context) }),
  },
  on: {
    'operator.weight': {
      actions: [
        assign({ weight: ({ event }) => event.weight }),
        {
          type: 'tell',
          params: ({ context }) => toPool(context, { type: 'server.weight', weight: context.weight }),
        },
      ],
    },
    'settings.changed': {
      actions: [
        // Whoever tells of its health from now on doesn't know how it stands.
        enqueueActions(({ check, context, event, enqueue }) => {
          const { settings } = event;
          if (!settings.checked || settings.shared === context.settings.shared) return;
          const next = { ...context, settings };
          const isAway = check(stateIn({ admin: 'maintenance' }));
          enqueue({ type: 'tell', params: toChecker(next, { type: isAway ? 'checker.pause' : 'checker.resume' }) });
          if (isAway) return;
          const pace = check(stateIn({ health: 'up' }))
            ? 'normal'
            : check(stateIn({ health: 'down' }))
              ? 'down'
              : 'fast';
          enqueue({ type: 'tell', params: paceOf(next, pace, event) });
        }),
        'takeSettings',
        {
          type: 'tell',
          params: ({ context }) => toPool(context, { type: 'server.settings', ...standing(context) }),
        },
      ],
    },
  },
  states: {
    health: {
      initial: 'unchecked',
      on: {
        'operator.maintenance': { guard: not(stateIn({ admin: 'maintenance' })), target: '.unchecked' },
        // A transition here stands in for the one of the whole machine, so it has to do the same.
        'settings.changed': {
          guard: 'checkWasAddedOrRemoved',
          target: '.unchecked',
          actions: [
            'takeSettings',
            {
              type: 'tell',
              params: ({ context }) => toPool(context, { type: 'server.settings', ...standing(context) }),
            },
            enqueueActions(({ check, context, enqueue }) => {
              // A new checker knows nothing of maintenance.
              if (context.settings.checked && check(stateIn({ admin: 'maintenance' })))
                enqueue({ type: 'tell', params: toChecker(context, { type: 'checker.pause' }) });
            }),
          ],
        },
      },
      states: {
        unchecked: {
          entry: [
            'resetCount',
            enqueueActions(({ context, event, enqueue }) => {
              if (isStart(event)) return;
              enqueue({ type: 'tell', params: healthOf(context, 'unchecked') });
              if (context.settings.checked) enqueue({ type: 'tell', params: paceOf(context, 'fast', event) });
            }),
          ],
          on: {
            // One check decides: nothing is known that it could contradict.
            'check.passed': { target: 'up' },
            'check.failed': { target: 'down' },
            // Its first check is under way, or it has none.
            'traffic.failed': {},
          },
        },
        up: {
          entry: [
            'resetCount',
            'forgetHint',
            raise({ type: 'health.rose' }),
            { type: 'tell', params: ({ context }) => healthOf(context, 'up') },
            { type: 'tell', params: ({ context, event }) => paceOf(context, 'normal', event) },
          ],
          on: {
            'check.passed': {},
            'check.failed': [{ guard: 'firstIsEnoughToFall', target: 'down' }, { target: 'goingDown' }],
            'traffic.failed': [{ guard: 'trafficMarksDown', target: 'down' }, { target: 'goingDown' }],
          },
        },
        goingDown: {
          entry: ['countOne', { type: 'tell', params: ({ context, event }) => paceOf(context, 'fast', event) }],
          on: {
            'check.passed': { target: 'up' },
            'check.failed': [{ guard: 'isLastOfFall', target: 'down' }, { actions: 'countMore' }],
            'traffic.failed': [
              { guard: 'onlyHurries' },
              { guard: 'trafficMarksDown', target: 'down' },
              { actions: 'countMore' },
            ],
          },
        },
        down: {
          entry: [
            'resetCount',
            'forgetHint',
            raise({ type: 'health.fell' }),
            { type: 'tell', params: ({ context }) => healthOf(context, 'down') },
            { type: 'tell', params: ({ context, event }) => paceOf(context, 'down', event) },
            enqueueActions(({ context, enqueue }) => {
              if (context.settings.shutdownSessions)
                enqueue({ type: 'shutdownSessions', params: { pool: context.pool, server: context.name } });
            }),
          ],
          on: {
            'check.failed': {},
            // Of connections that it had before.
            'traffic.failed': {},
            'check.passed': [{ guard: 'firstIsEnoughToRise', target: 'up' }, { target: 'goingUp' }],
          },
        },
        goingUp: {
          entry: ['countOne', { type: 'tell', params: ({ context, event }) => paceOf(context, 'fast', event) }],
          on: {
            'check.failed': { target: 'down' },
            'traffic.failed': [{ guard: 'onlyHurries' }, { target: 'down' }],
            'check.passed': [{ guard: 'isLastOfRise', target: 'up' }, { actions: 'countMore' }],
          },
        },
      },
    },
    admin: {
      initial: 'ready',
      states: {
        ready: {
          entry: enqueueActions(({ context, event, enqueue }) => {
            if (!isStart(event)) enqueue({ type: 'tell', params: adminOf(context, 'ready') });
          }),
          on: {
            'operator.ready': {},
            'operator.drain': { target: 'drain' },
            'operator.maintenance': { target: 'maintenance' },
          },
        },
        drain: {
          entry: { type: 'tell', params: ({ context }) => adminOf(context, 'drain') },
          on: {
            'operator.drain': {},
            'operator.ready': { target: 'ready' },
            'operator.maintenance': { target: 'maintenance' },
          },
        },
        maintenance: {
          entry: [
            { type: 'tell', params: ({ context }) => adminOf(context, 'maintenance') },
            enqueueActions(({ context, enqueue }) => {
              if (context.settings.checked)
                enqueue({ type: 'tell', params: toChecker(context, { type: 'checker.pause' }) });
              if (context.settings.observed)
                enqueue({ type: 'tell', params: toObserver(context, { type: 'observer.forget' }) });
            }),
          ],
          exit: enqueueActions(({ context, enqueue }) => {
            if (context.settings.checked)
              enqueue({ type: 'tell', params: toChecker(context, { type: 'checker.resume' }) });
          }),
          on: {
            // Maintenance stands over drain: only `ready` ends it.
            'operator.drain': {},
            'operator.maintenance': {},
            'operator.ready': { target: 'ready' },
          },
        },
      },
    },
    warmth: {
      // A server that starts with the node is warm: slow start is for servers that return.
      initial: 'warm',
      states: {
        cold: {
          // Told beforehand, so that it doesn't have its whole weight for the moment between coming back and warming.
          entry: enqueueActions(({ context, enqueue }) => {
            if (context.settings.slowStartMs === 0) return;
            enqueue.assign({ share: SHARE_STEP });
            enqueue({ type: 'tell', params: shareOf({ ...context, share: SHARE_STEP }) });
          }),
          on: {
            // Without a check nothing rises: it works as soon as it may.
            'operator.ready': { guard: 'isUnchecked', target: 'warm' },
            'settings.changed': { guard: 'losesCheck', target: 'warm' },
            'health.rose': [
              { guard: 'startsSlowly', target: 'warming', actions: assign({ share: 0 }) },
              { target: 'warm' },
            ],
            // One that is down by now stays cold until it rises.
            'ejection.ended': [
              { guard: and(['mayWork', 'startsSlowly']), target: 'warming', actions: assign({ share: 0 }) },
              { guard: 'mayWork', target: 'warm' },
            ],
          },
        },
        warming: {
          entry: [
            assign({ share: ({ context }) => context.share + SHARE_STEP }),
            { type: 'tell', params: ({ context }) => shareOf(context) },
          ],
          on: {
            'health.fell': { target: 'cold' },
            'operator.maintenance': { target: 'cold' },
            'ejection.began': { target: 'cold' },
            // It rose while it was ejected, and has had no traffic to warm it.
            'ejection.ended': { target: 'warming', reenter: true, actions: assign({ share: 0 }) },
          },
          after: {
            slowStartStep: [{ guard: 'hasFurtherSteps', target: 'warming', reenter: true }, { target: 'warm' }],
          },
        },
        warm: {
          entry: [
            assign({ share: 100 }),
            enqueueActions(({ context, event, enqueue }) => {
              if (!isStart(event)) enqueue({ type: 'tell', params: shareOf(context) });
            }),
          ],
          on: {
            'health.fell': { target: 'cold' },
            'operator.maintenance': { target: 'cold' },
            'ejection.began': { target: 'cold' },
            'ejection.ended': [{ guard: 'startsSlowly', target: 'warming', actions: assign({ share: 0 }) }],
          },
        },
      },
    },
  },
});
