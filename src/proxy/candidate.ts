/** What balancing sees of a server, and what each algorithm is. */
import type { RequestFacts } from './facts.ts';

export type Candidate = {
  readonly name: string;
  /** Above 0; relative to the others; need not be whole. */
  readonly weight: number;
  /** Connections that it has now, over all workers. */
  active(): number;
  /** It can take no more. */
  isFull(): boolean;
};

/** Keeps its state about candidates that it has seen before: the same object is the same server. */
export type Balancer<C extends Candidate> = {
  /** The servers that take new traffic, in the order of the configuration, or their weights, have changed. */
  update(candidates: readonly C[]): void;
  /** Null when all are full or to be passed over. */
  choose(facts: RequestFacts, passOver: ReadonlySet<C>): C | null;
};

export const isFree = <C extends Candidate>(candidate: C, passOver: ReadonlySet<C>): boolean =>
  !candidate.isFull() && (passOver.size === 0 || !passOver.has(candidate));

/** HAProxy's measure of leastconn: idle servers are alike whatever they weigh, so that they go in turn. */
export const loadOf = (candidate: Candidate): number => {
  const active = candidate.active();
  return active === 0 ? 0 : (active + 1) / candidate.weight;
};
