import type { RolloutEvent } from '../machines/rollout.ts';
import type { Hands } from './system.ts';

type Answer = (event: RolloutEvent) => void;

export type RolloutPort = {
  check(node: string, answer: Answer): void;
  store(answer: Answer): void;
  look(answer: Answer): void;
  apply(node: string, revision: number, answer: Answer): void;
  /** Stores how far it is; answers only when another node leads now. */
  report(state: 'applying' | 'done' | 'stopped', answer: Answer): void;
  end(outcome: 'refused' | 'notStored' | 'done' | 'stopped'): void;
};

export const rolloutHands = (port: RolloutPort): Hands => ({
  check: ({ node }: { node: string }, actor) => port.check(node, (event) => actor.send(event)),
  store: (_: never, actor) => port.store((event) => actor.send(event)),
  look: (_: never, actor) => port.look((event) => actor.send(event)),
  apply: ({ node, revision }: { node: string; revision: number }, actor) =>
    port.apply(node, revision, (event) => actor.send(event)),
  report: ({ state }: { state: 'applying' | 'done' | 'stopped' }, actor) =>
    port.report(state, (event) => actor.send(event)),
  end: ({ outcome }: { outcome: 'refused' | 'notStored' | 'done' | 'stopped' }) => port.end(outcome),
});
