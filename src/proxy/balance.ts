/** Which server takes the next connection. Pure but for the state that each algorithm keeps. */
import type { Balance } from './model.ts';

export type Candidate = {
  name: string;
  /** Above 0; relative to the others. */
  weight: number;
  /** Connections that it has now, over all workers. */
  active(): number;
  /** For round robin: how far its turn has come. */
  turn: number;
};

export type Choose = (candidates: readonly Candidate[], clientAddress: string) => Candidate | null;

/** nginx's smooth weighted round robin: each gains its weight, the one ahead is chosen and pays the sum. */
const roundRobin: Choose = (candidates) => {
  let total = 0;
  let best: Candidate | null = null;
  for (const candidate of candidates) {
    total += candidate.weight;
    candidate.turn += candidate.weight;
    if (best === null || candidate.turn > best.turn) best = candidate;
  }
  if (best) best.turn -= total;
  return best;
};

const lessLoaded = (a: Candidate, b: Candidate): Candidate =>
  (b.active() + 1) / b.weight < (a.active() + 1) / a.weight ? b : a;

/** Among equally loaded ones in turn, so that an idle pool isn't served by its first server alone. */
const leastConnections: Choose = (candidates, client) => {
  const first = candidates[0];
  if (!first) return null;
  const best = candidates.reduce(lessLoaded, first);
  const load = (best.active() + 1) / best.weight;
  return roundRobin(
    candidates.filter((candidate) => (candidate.active() + 1) / candidate.weight <= load),
    client,
  );
};

/** FNV-1a with a finishing mix, as 32 bits. */
const hash = (text: string): number => {
  let value = 0x811c9dc5;
  for (let index = 0; index < text.length; index++) value = Math.imul(value ^ text.charCodeAt(index), 0x01000193);
  value = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35);
  return (value ^ (value >>> 16)) >>> 0;
};

/**
 * Weighted rendezvous hashing: every worker and node computes the same, and a server that leaves moves only its own
 * clients.
 */
const source: Choose = (candidates, clientAddress) => {
  let best: Candidate | null = null;
  let bestScore = -Infinity;
  for (const candidate of candidates) {
    const uniform = (hash(`${clientAddress}|${candidate.name}`) + 0.5) / 0x1_0000_0000;
    const score = -candidate.weight / Math.log(uniform);
    if (score > bestScore) {
      bestScore = score;
      best = candidate;
    }
  }
  return best;
};

const drawByWeight = (candidates: readonly Candidate[], random: () => number): Candidate | null => {
  let point = random() * candidates.reduce((sum, candidate) => sum + candidate.weight, 0);
  for (const candidate of candidates) {
    point -= candidate.weight;
    if (point < 0) return candidate;
  }
  return candidates.at(-1) ?? null;
};

/** The less loaded of two drawn at random (power of two choices). */
const randomOfTwo =
  (random: () => number): Choose =>
  (candidates) => {
    const one = drawByWeight(candidates, random);
    if (!one || candidates.length === 1) return one;
    const other = drawByWeight(
      candidates.filter((candidate) => candidate !== one),
      random,
    );
    return other ? lessLoaded(one, other) : one;
  };

/** The first with a free place: callers leave out servers that are full. */
const first: Choose = (candidates) => candidates[0] ?? null;

export const chooser = (balance: Balance, random: () => number): Choose => {
  switch (balance) {
    case 'roundRobin':
      return roundRobin;
    case 'leastConnections':
      return leastConnections;
    case 'source':
      return source;
    case 'random':
      return randomOfTwo(random);
    case 'first':
      return first;
  }
};
