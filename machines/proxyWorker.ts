/** One data-plane thread. One that dies is started again after a back-off, while the others serve. */
import { assign, setup } from 'xstate';

export type ProxyWorkerInput = {
  index: number;
  /** How long its sessions may go on when it is drained. */
  drainMs: number;
};
export type ProxyWorkerContext = ProxyWorkerInput & {
  /** Deaths since it last ran for a while; decides the back-off. */
  crashes: number;
};

export type ProxyWorkerEvent =
  { type: 'worker.ready' } | { type: 'worker.exited'; code: string; message: string } | { type: 'worker.drain' };

/** First back-off; doubles with each death. A worker that dies for a passing reason is back before clients notice. */
const BACKOFF_FIRST_MS = 100;
/** Longest back-off: one start in ten seconds costs next to nothing and is soon enough once the cause is gone. */
const BACKOFF_MAX_MS = 10_000;
/** Time that a worker has to live for its earlier deaths to be forgotten. */
const STABLE_MS = 30_000;

export const proxyWorker = setup({
  types: { context: {} as ProxyWorkerContext, events: {} as ProxyWorkerEvent, input: {} as ProxyWorkerInput },
  actions: {
    /** Effect: start the thread; answered by `worker.ready` or `worker.exited`. */
    startWorker: () => {},
    /** Effect: let its sessions end and then the thread; answered by `worker.exited`. */
    drainWorker: () => {},
    /** Effect: end the thread now; answered by `worker.exited`. */
    endWorker: () => {},
  },
  guards: { hasCrashed: ({ context }) => context.crashes > 0 },
  delays: {
    backoff: ({ context }) => Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** (context.crashes - 1)),
    stable: STABLE_MS,
    drainTimeout: ({ context }) => context.drainMs,
  },
}).createMachine({
  id: 'proxyWorker',
  context: ({ input }) => ({ index: input?.index ?? 0, drainMs: input?.drainMs ?? 30_000, crashes: 0 }),
  initial: 'starting',
  states: {
    starting: {
      entry: 'startWorker',
      on: {
        'worker.ready': { target: 'ready' },
        'worker.exited': { target: 'crashed' },
        'worker.drain': { target: 'draining' },
      },
    },
    ready: {
      on: { 'worker.exited': { target: 'crashed' }, 'worker.drain': { target: 'draining' } },
      after: { stable: { guard: 'hasCrashed', actions: assign({ crashes: 0 }) } },
    },
    draining: {
      entry: 'drainWorker',
      on: { 'worker.exited': { target: 'stopped' }, 'worker.drain': {} },
      after: { drainTimeout: { actions: 'endWorker' } },
    },
    crashed: {
      entry: assign({ crashes: ({ context }) => context.crashes + 1 }),
      on: { 'worker.drain': { target: 'stopped' } },
      after: { backoff: { target: 'starting' } },
    },
    stopped: { on: { 'worker.drain': {} } },
  },
});
