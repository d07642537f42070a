import type { TrackerKind } from '../machines/tracker.ts';
import type { ActorRef, Hands } from './system.ts';

export type Observation = { ok: boolean; value: number | null; code: string; message: string; durationMs: number };

/**
 * Port: looks at what is tracked. Answers once, or for what tells by itself (interfaces) now and at each change; no more
 * after the function that it returns was called.
 */
export type ObservePort = (tracker: string, kind: TrackerKind, answer: (seen: Observation) => void) => () => void;

export const trackerHands = (observe: ObservePort): Hands => {
  const underWay = new Map<string, () => void>();
  const giveUp = ({ id }: ActorRef) => {
    underWay.get(id)?.();
    underWay.delete(id);
  };
  return {
    observe: ({ kind }: { kind: TrackerKind }, actor) => {
      giveUp(actor);
      underWay.set(
        actor.id,
        observe(actor.id, kind, (seen) => actor.send({ type: 'observed', ...seen })),
      );
    },
    'actor.stopped': (_: never, actor) => giveUp(actor),
  };
};
