/**
 * The courier carries the node's journal into the cluster log. It is told of changes only, never of what is shipped:
 * a record about each shipment would be a record to ship.
 */
import { assign, setup } from 'xstate';

export type CourierContext = {
  /** Attempts since the log was last reached; they grow apart with it, up to the longest wait. */
  attempts: number;
};

export type CourierEvent =
  | { type: 'nats.connected'; server: string }
  | { type: 'nats.disconnected'; code: string; message: string }
  /** The stream is there, and so many records of the journal are not in it. */
  | { type: 'log.located'; behind: number }
  | { type: 'log.caughtUp' }
  | { type: 'log.fellBehind'; behind: number }
  | { type: 'log.refused'; code: string; message: string }
  /** Another node of this name writes there; `journal` is the identity of its journal. */
  | { type: 'log.fenced'; journal: string }
  | { type: 'retry.due' }
  | { type: 'look.due' };

const FIRST_RETRY_MS = 1_000;
/** 2 s, 4 s, 8 s, 16 s, 30 s: an operator who has made room sees the log go on within half a minute. */
const LONGEST_RETRY_MS = 30_000;
const MOST_ATTEMPTS = 5;
/** A node that fences us is heard within ten seconds of its last heartbeat. */
const LOOK_EVERY_MS = 5_000;

const base = setup({
  types: { context: {} as CourierContext, events: {} as CourierEvent },
  actions: {
    /** Finds out where the node stands in the log, and ships what comes after it. */
    ship: () => {},
  },
  guards: {
    isInStep: ({ event }) => event.type === 'log.located' && event.behind <= 0,
    canWaitLonger: ({ context }) => context.attempts < MOST_ATTEMPTS,
  },
  delays: {
    backOff: ({ context }) => Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** context.attempts),
    lookEvery: LOOK_EVERY_MS,
  },
});

export const courier = base
  .extend({
    actions: {
      forgetAttempts: assign({ attempts: 0 }),
      countAttempt: assign({ attempts: ({ context }) => context.attempts + 1 }),
      scheduleRetry: base.raise({ type: 'retry.due' }, { id: 'retry', delay: 'backOff' }),
      scheduleLook: base.raise({ type: 'look.due' }, { id: 'look', delay: 'lookEvery' }),
      cancelRetry: base.cancel('retry'),
      cancelLook: base.cancel('look'),
    },
  })
  .createMachine({
    id: 'courier',
    context: { attempts: 0 },
    initial: 'offline',
    on: {
      'nats.disconnected': '.offline',
      'log.refused': '.refused',
      'log.fenced': '.fenced',
      'log.located': [{ guard: 'isInStep', target: '.inStep' }, { target: '.catchingUp' }],
    },
    states: {
      offline: {
        entry: 'forgetAttempts',
        on: {
          'nats.connected': 'connecting',
          'nats.disconnected': {},
          // What was on its way when the connection went.
          'log.located': {},
          'log.caughtUp': {},
          'log.fellBehind': {},
          'log.refused': {},
          'log.fenced': {},
        },
      },
      connecting: { entry: 'ship' },
      catchingUp: { on: { 'log.caughtUp': 'inStep' } },
      inStep: {
        entry: 'forgetAttempts',
        on: { 'log.fellBehind': 'catchingUp', 'log.caughtUp': {} },
      },
      refused: {
        tags: 'routine',
        entry: ['countAttempt', 'scheduleRetry'],
        exit: 'cancelRetry',
        on: {
          'log.refused': {},
          'retry.due': [
            { guard: 'canWaitLonger', actions: ['ship', 'countAttempt', 'scheduleRetry'] },
            { actions: ['ship', 'scheduleRetry'] },
          ],
        },
      },
      fenced: {
        tags: 'routine',
        entry: 'scheduleLook',
        exit: 'cancelLook',
        on: { 'log.fenced': {}, 'look.due': { actions: ['ship', 'scheduleLook'] } },
      },
    },
  });
