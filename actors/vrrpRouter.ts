import type { Reason, RouterState } from '../machines/vrrpRouter.ts';
import type { Hands } from './system.ts';

/** Port: the sockets of a router. What comes in on them is sent to the actor by whoever hears it. */
export type WirePort = {
  /** Opens, and reports `interface.up` or `interface.down` now and at each change. */
  open(router: string): void;
  /** A periodic one that comes too late is not sent, but reported as `advert.overslept`. */
  sendAdvert(router: string, priority: number, periodic: boolean, copies: number): void;
  /**
   * Delivers what has arrived meanwhile, then answers with the time since the last accepted advert in ms, null when
   * there was none. No answer when it found out that adverts don't pass: that is reported.
   */
  look(router: string, answer: (silentMs: number | null) => void): void;
  close(router: string): void;
};

export type StateNotice = {
  kind: 'INSTANCE' | 'GROUP';
  /** Actor of the router or sync group. */
  subject: string;
  state: RouterState;
  priority: number | null;
  reason: Reason | null;
  /** Of a group: the member that moved it. */
  router: string | null;
};

/** Port: scripts, pipe and whoever else is told of changes of state. */
export type NotifyPort = (notice: StateNotice) => void;

export const vrrpRouterHands = (wire: WirePort, notify: NotifyPort, timerLateMs: () => number): Hands => ({
  openRouter: (_: never, { id }) => wire.open(id),
  sendAdvert: ({ priority, periodic, copies = 1 }: { priority: number; periodic?: true; copies?: number }, { id }) =>
    wire.sendAdvert(id, priority, periodic === true, copies),
  look: (_: never, actor) => {
    // Of the timer that asked for this look: what the look delivers may set and fire others.
    const lateMs = timerLateMs();
    wire.look(actor.id, (silentMs) => actor.send({ type: 'looked', lateMs, silentMs } as { type: string }));
  },
  notify: ({ state, priority, reason }: { state: RouterState; priority: number; reason: Reason }, { id }) =>
    notify({ kind: 'INSTANCE', subject: id, state, priority, reason, router: null }),
  'actor.stopped': (_: never, { id }) => wire.close(id),
});

export const syncGroupHands = (notify: NotifyPort): Hands => ({
  notify: ({ state, router }: { state: RouterState; router: string | null }, { id }) =>
    notify({ kind: 'GROUP', subject: id, state, priority: null, reason: null, router }),
});
