/**
 * One virtual address on this node. It is here only while its router is master; that neighbours know is part of it:
 * gratuitous ARP or unsolicited neighbour advertisements, at once, after a while, and as often as configured.
 */
import { assign, setup } from 'xstate';

export type AddressSettings = {
  /** Announcements sent in a row, each time (keepalived's garp_master_repeat). */
  repeat: number;
  /** After this time the same again: an announcement can be lost (garp_master_delay); 0 is never. */
  delayMs: number;
  /** From then on this often (garp_master_refresh); 0 is never. */
  refreshMs: number;
  refreshRepeat: number;
  /** An address that could not be added is tried again after this time, and after twice as long each time it fails. */
  retryMs: number;
};

/** A router that becomes master again and again for nothing would disturb the one that can: at most 64 times as long. */
const MAX_DOUBLINGS = 6;

export type VirtualAddressInput = { router: string; address: string; settings: AddressSettings };
export type VirtualAddressContext = VirtualAddressInput & {
  /** How long it stays here for a successor to speak. */
  holdMs: number;
  /** Times in a row that it could not be added. */
  failures: number;
};

export type VirtualAddressEvent =
  | { type: 'address.acquire' }
  | { type: 'address.release' }
  /** The router leaves: hold the address until `address.release`, or for this long. */
  | { type: 'address.handOver'; holdMs: number }
  | { type: 'address.announce' }
  | { type: 'refresh.due' }
  | { type: 'address.added' }
  | { type: 'address.addFailed'; code: string; message: string }
  | { type: 'address.removed' }
  | { type: 'address.removeFailed'; code: string; message: string }
  /** Somebody else took it away. */
  | { type: 'address.lost' }
  /** Somebody else put it here while the router is not master. */
  | { type: 'address.appeared' }
  | { type: 'settings.changed'; settings: AddressSettings };

const defaultInput: VirtualAddressInput = {
  router: '',
  address: '',
  settings: { repeat: 5, delayMs: 5000, refreshMs: 0, refreshRepeat: 1, retryMs: 1000 },
};

const base = setup({
  types: {
    context: {} as VirtualAddressContext,
    events: {} as VirtualAddressEvent,
    input: {} as VirtualAddressInput,
    tags: {} as 'routine',
  },
  actions: {
    /** Effect: deliver an event to another actor. */
    tell: (_, _params: { to: string; event: { type: string } }) => {},
    /** Effect: put the address on its interface; answered by `address.added` or `address.addFailed`. */
    addAddress: () => {},
    /** Effect: take it away, if it is there; answered by `address.removed` or `address.removeFailed`. */
    removeAddress: () => {},
    /** Effect: tell the neighbours so many times. */
    announce: (_, _params: { count: number }) => {},
  },
  guards: {
    announcesOnce: ({ context }) => context.settings.delayMs === 0,
  },
  delays: {
    again: ({ context }) => context.settings.delayMs,
    refresh: ({ context }) => context.settings.refreshMs,
    retry: ({ context }) => context.settings.retryMs,
    retryAdding: ({ context }) => context.settings.retryMs * 2 ** Math.min(context.failures - 1, MAX_DOUBLINGS),
    hold: ({ context }) => context.holdMs,
  },
});

export const virtualAddress = base
  .extend({
    actions: {
      announceAll: base.enqueueActions(({ context, enqueue }) => {
        enqueue({ type: 'announce', params: { count: context.settings.repeat } });
      }),
      announceRefresh: base.enqueueActions(({ context, enqueue }) => {
        enqueue({ type: 'announce', params: { count: context.settings.refreshRepeat } });
      }),
      scheduleRefresh: base.enqueueActions(({ context, enqueue }) => {
        if (context.settings.refreshMs > 0) enqueue.raise({ type: 'refresh.due' }, { id: 'refresh', delay: 'refresh' });
      }),
      tellFailed: base.enqueueActions(({ context, event, enqueue }) => {
        if (event.type !== 'address.addFailed') return;
        const { code, message } = event;
        const told = { type: 'address.failed', address: idOf(context), code, message };
        enqueue({ type: 'tell', params: { to: context.router, event: told } });
      }),
      tellCleared: base.enqueueActions(({ context, enqueue }) => {
        const told = { type: 'address.cleared', address: idOf(context) };
        enqueue({ type: 'tell', params: { to: context.router, event: told } });
      }),
    },
  })
  .createMachine({
    id: 'virtualAddress',
    context: ({ input }) => ({ ...(input ?? defaultInput), holdMs: 0, failures: 0 }),
    // What an earlier life of the node may have left behind is taken away first.
    initial: 'removing',
    on: {
      'settings.changed': { actions: assign({ settings: ({ event }) => event.settings }) },
      'address.acquire': {},
      'address.release': {},
      'address.handOver': {},
      'address.announce': {},
      'address.added': {},
      'address.removed': {},
      'address.removeFailed': {},
      'address.lost': {},
      'address.appeared': {},
    },
    states: {
      absent: {
        on: { 'address.acquire': { target: 'adding' }, 'address.appeared': { target: 'removing' } },
      },
      adding: {
        entry: 'addAddress',
        on: {
          'address.added': { target: 'announcing', actions: assign({ failures: 0 }) },
          'address.addFailed': {
            target: 'failed',
            actions: assign({ failures: ({ context }) => context.failures + 1 }),
          },
          'address.release': { target: 'removing' },
          'address.handOver': { target: 'removing' },
        },
      },
      announcing: {
        tags: 'routine',
        entry: 'announceAll',
        always: { guard: 'announcesOnce', target: 'held' },
        on: {
          'address.announce': { actions: 'announceAll' },
          'address.lost': { target: 'adding' },
          'address.release': { target: 'removing' },
          'address.handOver': { target: 'handingOver', actions: assign({ holdMs: ({ event }) => event.holdMs }) },
        },
        after: { again: { target: 'held', actions: 'announceAll' } },
      },
      held: {
        tags: 'routine',
        entry: 'scheduleRefresh',
        exit: base.cancel('refresh'),
        on: {
          'refresh.due': { actions: ['announceRefresh', 'scheduleRefresh'] },
          'address.announce': { actions: 'announceAll' },
          'address.lost': { target: 'adding' },
          'address.release': { target: 'removing' },
          'address.handOver': { target: 'handingOver', actions: assign({ holdMs: ({ event }) => event.holdMs }) },
          'settings.changed': {
            target: 'held',
            reenter: true,
            actions: assign({ settings: ({ event }) => event.settings }),
          },
        },
      },
      /** Its router has said that it leaves; the address serves on until a successor has spoken. */
      handingOver: {
        on: {
          'address.release': { target: 'removing' },
          'address.lost': { target: 'absent' },
          // Nobody has taken over and the router is master again.
          'address.acquire': { target: 'announcing' },
        },
        after: { hold: { target: 'removing' } },
      },
      removing: {
        entry: 'removeAddress',
        on: {
          'address.removed': { target: 'absent' },
          'address.acquire': { target: 'adding' },
        },
        after: { retry: { target: 'removing', reenter: true } },
      },
      /** Its router is in FAULT, and stays so until it is worth another try: giving the address back doesn't end it. */
      failed: {
        entry: 'tellFailed',
        exit: 'tellCleared',
        on: { 'address.appeared': { actions: 'removeAddress' } },
        after: { retryAdding: { target: 'removing' } },
      },
    },
  });

const idOf = ({ router, address }: VirtualAddressInput): string =>
  `address/${router.slice('router/'.length)}/${address}`;
