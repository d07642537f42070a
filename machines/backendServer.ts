/**
 * One server of a pool: is it healthy (HAProxy's rise and fall), does the operator let it work, and how much of its
 * weight does it carry while it warms up. Three parallel regions that know nothing of each other but two internal
 * events, `health.rose` and `health.fell`.
 */
import { assign, enqueueActions, not, raise, setup, stateIn } from 'xstate';
import type { Pace } from './healthChecker.ts';
import type { Tell } from './tell.ts';

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

export type BackendServerEvent =
  | { type: 'check.passed'; code: string; message: string; durationMs: number }
  | { type: 'check.failed'; code: string; message: string; durationMs: number }
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
  to: `checker/${context.pool}/${context.name}`,
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
    countOne: assign({ count: 1 }),
    countMore: assign({ count: ({ context }) => context.count + 1 }),
  },
  guards: {
    firstIsEnoughToFall: ({ context }) => context.settings.fall <= 1,
    firstIsEnoughToRise: ({ context }) => context.settings.rise <= 1,
    isLastOfFall: ({ context }) => context.count + 1 >= context.settings.fall,
    isLastOfRise: ({ context }) => context.count + 1 >= context.settings.rise,
    isUnchecked: ({ context }) => !context.settings.checked,
    losesCheck: ({ context, event }) =>
      event.type === 'settings.changed' && context.settings.checked && !event.settings.checked,
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
          },
        },
        goingDown: {
          entry: ['countOne', { type: 'tell', params: ({ context, event }) => paceOf(context, 'fast', event) }],
          on: {
            'check.passed': { target: 'up' },
            'check.failed': [{ guard: 'isLastOfFall', target: 'down' }, { actions: 'countMore' }],
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
            'check.passed': [{ guard: 'firstIsEnoughToRise', target: 'up' }, { target: 'goingUp' }],
          },
        },
        goingUp: {
          entry: ['countOne', { type: 'tell', params: ({ context, event }) => paceOf(context, 'fast', event) }],
          on: {
            'check.failed': { target: 'down' },
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
          },
        },
        warming: {
          entry: [
            assign({ share: ({ context }) => context.share + SHARE_STEP }),
            { type: 'tell', params: ({ context }) => shareOf(context) },
          ],
          on: { 'health.fell': { target: 'cold' }, 'operator.maintenance': { target: 'cold' } },
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
          on: { 'health.fell': { target: 'cold' }, 'operator.maintenance': { target: 'cold' } },
        },
      },
    },
  },
});
