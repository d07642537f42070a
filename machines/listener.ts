/** One address that a frontend binds. Every data-plane worker listens on it; it is open when the first of them does. */
import { assign, setup } from 'xstate';

export type ListenerInput = { frontend: string; address: string; retryMs: number; drainMs: number };
export type ListenerContext = ListenerInput;

export type ListenerEvent =
  | { type: 'listener.open' }
  | { type: 'listener.opened' }
  | { type: 'listener.failed'; code: string; message: string }
  | { type: 'listener.drain' }
  | { type: 'listener.drained' }
  | { type: 'settings.changed'; retryMs: number; drainMs: number };

const defaultInput: ListenerInput = { frontend: '', address: '', retryMs: 1000, drainMs: 30_000 };

export const listener = setup({
  types: { context: {} as ListenerContext, events: {} as ListenerEvent, input: {} as ListenerInput },
  actions: {
    /** Effect: let the workers listen; answered by `listener.opened` or `listener.failed`. */
    openListener: () => {},
    /** Effect: accept nothing more, let sessions end; answered by `listener.drained`. */
    drainListener: () => {},
    /** Effect: close what is still open. */
    closeListener: () => {},
  },
  delays: {
    retry: ({ context }) => context.retryMs,
    drainTimeout: ({ context }) => context.drainMs,
  },
}).createMachine({
  id: 'listener',
  context: ({ input }) => ({ ...(input ?? defaultInput) }),
  initial: 'closed',
  on: {
    'settings.changed': {
      actions: assign({ retryMs: ({ event }) => event.retryMs, drainMs: ({ event }) => event.drainMs }),
    },
  },
  states: {
    closed: { on: { 'listener.open': { target: 'opening' } } },
    opening: {
      entry: 'openListener',
      on: {
        'listener.opened': { target: 'open' },
        'listener.failed': { target: 'failed' },
        'listener.drained': {},
        'listener.drain': { target: 'closed', actions: 'closeListener' },
      },
    },
    open: {
      on: {
        'listener.opened': {},
        'listener.failed': { target: 'failed' },
        // Of an earlier time, when it was drained and then opened again.
        'listener.drained': {},
        'listener.drain': { target: 'draining' },
      },
    },
    draining: {
      entry: 'drainListener',
      on: { 'listener.drained': { target: 'closed' }, 'listener.open': { target: 'opening' } },
      after: { drainTimeout: { target: 'closed', actions: 'closeListener' } },
    },
    failed: {
      on: { 'listener.drain': { target: 'closed', actions: 'closeListener' }, 'listener.opened': { target: 'open' } },
      after: { retry: { target: 'opening' } },
    },
  },
});
