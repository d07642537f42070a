/** Which server takes the next request: the algorithms by load and chance, and how each is made. */
import type { Balance } from '../config/balance.ts';
import { isFree, loadOf } from './candidate.ts';
import type { Balancer, Candidate } from './candidate.ts';
import { ConsistentHash } from './consistentHash.ts';
import type { RequestFacts } from './facts.ts';
import { RoundRobin } from './roundRobin.ts';

export type BalancerPorts = {
  /** Uniform in [0, 1). */
  random: () => number;
  /** From 0 to below 1: where in the round this worker starts. */
  stagger: number;
  /** Requests that all servers of the backend have, over all workers. */
  totalActive: () => number;
};

/** Servers that leastConnections looks at, the next ones in turn: the least loaded of so many is near the least of all. */
const MAX_LOOKED_AT = 256;

/** The least loaded by its weight; in turn among equally loaded ones. */
class LeastConnections<C extends Candidate> implements Balancer<C> {
  #candidates: readonly C[] = [];
  /** Where the search starts: behind the last that was chosen, so that equals take turns. */
  #start = 0;

  update(candidates: readonly C[]): void {
    this.#candidates = candidates;
    this.#start = 0;
  }

  choose(_facts: RequestFacts, passOver: ReadonlySet<C>): C | null {
    const candidates = this.#candidates;
    let best: C | null = null;
    let bestLoad = Infinity;
    let bestIndex = 0;
    let index = this.#start;
    let looks = Math.min(candidates.length, MAX_LOOKED_AT);
    for (let step = 0; step < candidates.length && (looks > 0 || !best); step++, index++, looks--) {
      if (index >= candidates.length) index = 0;
      const candidate = candidates[index]!;
      const load = loadOf(candidate);
      if (load >= bestLoad || !isFree(candidate, passOver)) continue;
      best = candidate;
      bestLoad = load;
      bestIndex = index;
      if (load === 0) break;
    }
    this.#start = bestIndex + 1;
    return best;
  }
}

/** The least loaded of a few drawn by weight: of two, by default (power of two choices). */
class RandomDraws<C extends Candidate> implements Balancer<C> {
  readonly #draws: number;
  readonly #random: () => number;
  #candidates: readonly C[] = [];
  /** At each candidate the sum of the weights up to it. */
  #sums = new Float64Array(0);

  constructor(draws: number, random: () => number) {
    this.#draws = draws;
    this.#random = random;
  }

  update(candidates: readonly C[]): void {
    this.#candidates = candidates;
    let sum = 0;
    this.#sums = Float64Array.from(candidates, ({ weight }) => (sum += weight));
  }

  choose(_facts: RequestFacts, passOver: ReadonlySet<C>): C | null {
    let best: C | null = null;
    for (let draw = 0; draw < this.#draws; draw++) {
      const drawn = this.#draw(passOver, best);
      if (!drawn) break;
      if (!best || loadOf(drawn) < loadOf(best)) best = drawn;
    }
    return best;
  }

  /** One by weight, or the next behind it that is free and isn't `other`. */
  #draw(passOver: ReadonlySet<C>, other: C | null): C | null {
    const { length } = this.#candidates;
    if (length === 0) return null;
    const first = this.#indexAt(this.#random() * this.#sums[length - 1]!);
    for (let step = 0; step < length; step++) {
      const candidate = this.#candidates[(first + step) % length]!;
      if (candidate !== other && isFree(candidate, passOver)) return candidate;
    }
    return null;
  }

  #indexAt(point: number): number {
    let low = 0;
    let high = this.#sums.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#sums[middle]! > point) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

/** The first with a free place, in the order of the configuration: the others can be switched off. */
class First<C extends Candidate> implements Balancer<C> {
  #candidates: readonly C[] = [];

  update(candidates: readonly C[]): void {
    this.#candidates = candidates;
  }

  choose(_facts: RequestFacts, passOver: ReadonlySet<C>): C | null {
    for (const candidate of this.#candidates) if (isFree(candidate, passOver)) return candidate;
    return null;
  }
}

/** HAProxy's: up to the slash that begins the level after the last wanted, or up to so many characters. */
const uriKey =
  ({ whole, depth = Infinity, length = Infinity }: Extract<Balance, { type: 'uri' }>) =>
  ({ path, query }: RequestFacts): string => {
    const uri = whole && query !== '' ? `${path}?${query}` : path;
    if (depth === Infinity && length === Infinity) return uri;
    let end = 0;
    for (let level = 0; end < uri.length && end < length; end++) if (uri[end] === '/' && ++level > depth) break;
    return uri.slice(0, end);
  };

/** The value of the first parameter of this name, as it was sent; null without. */
const parameterOf = (query: string, name: string): string | null => {
  for (let start = 0; start < query.length;) {
    const next = query.indexOf('&', start);
    const end = next === -1 ? query.length : next;
    if (query.startsWith(name, start) && query[start + name.length] === '=' && start + name.length < end) {
      return query.slice(start + name.length + 1, end);
    }
    start = end + 1;
  }
  return null;
};

type Keyed = Exclude<Balance, { type: 'roundRobin' | 'leastConnections' | 'first' | 'random' }>;

const keyOf = (balance: Keyed): ((facts: RequestFacts) => string | null) => {
  switch (balance.type) {
    case 'source':
      return (facts) => facts.source;
    case 'uri':
      return uriKey(balance);
    case 'header': {
      const name = balance.name.toLowerCase();
      return (facts) => facts.header(name);
    }
    case 'cookie':
      return (facts) => facts.cookie(balance.name);
    case 'query':
      return (facts) => parameterOf(facts.query, balance.name);
  }
};

export const balancerOf = <C extends Candidate>(balance: Balance, ports: BalancerPorts): Balancer<C> => {
  switch (balance.type) {
    case 'roundRobin':
      return new RoundRobin(ports.stagger);
    case 'leastConnections':
      return new LeastConnections();
    case 'random':
      return new RandomDraws(balance.draws, ports.random);
    case 'first':
      return new First();
    default:
      return new ConsistentHash(
        keyOf(balance),
        new RoundRobin(ports.stagger),
        balance.boundedLoad ?? null,
        ports.totalActive,
      );
  }
};
