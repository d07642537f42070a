import type { Hands } from './system.ts';

export type Look = {
  /** Since the last heartbeat of that member. */
  silentMs: number;
  /** For how long the bus has been joined without a break; null while it is away, and why. */
  hearingMs: number | null;
  detail: string;
};

/** Port: delivers what has arrived on the bus meanwhile, then answers once. */
export type LookPort = (member: string, answer: (look: Look) => void) => void;

export const clusterMemberHands = (look: LookPort, timerLateMs: () => number): Hands => ({
  look: (_: never, actor) => {
    // Of the timer that asked for this look: what the look delivers may set and fire others.
    const lateMs = timerLateMs();
    look(actor.id, (looked) => actor.send({ type: 'looked', lateMs, ...looked } as { type: string }));
  },
});
