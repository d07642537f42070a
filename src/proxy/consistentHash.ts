/**
 * A key's server, the same in every worker and node. A key falls into one of 65,536 buckets, and a bucket belongs to the
 * server that wins it by weighted rendezvous hashing: what a server that leaves had goes to the others by their weights,
 * nothing else moves, and one that gains weight takes what it gains and no more. (A ring is less even for the same
 * memory and knows whole weights only; Maglev's table moves keys between servers that stayed.) Looking up is one read; a
 * change costs about one comparison a bucket and changed server: a millisecond, half a second for a thousand new ones.
 */
import type { RequestFacts } from './facts.ts';
import { isFree } from './candidate.ts';
import type { Balancer, Candidate } from './candidate.ts';
import { hashText, mix } from './hash.ts';

/** Never changes, as that would move every key. A thousand servers have 65 buckets each, within an eighth (1 σ). */
const BUCKETS = 65_536;
/** Buckets that a key is tried in, when servers are passed over, before they are gone through one by one. */
const MAX_TRIES = 8;
const SECOND_SEED = 0x9e3779b9;
const UNOWNED = 0xffff;

type Entry<C> = { candidate: C; weight: number; seeds: readonly [number, number] };

/** The hash of each bucket's number, shared by all tables of the thread. */
const bucketHashes = Int32Array.from({ length: BUCKETS }, (_, bucket) => mix(Math.imul(bucket + 1, SECOND_SEED)));

export class ConsistentHash<C extends Candidate> implements Balancer<C> {
  readonly #keyOf: (facts: RequestFacts) => string | null;
  readonly #withoutKey: Balancer<C>;
  readonly #boundedLoad: number | null;
  readonly #totalActive: () => number;
  #totalWeight = 0;
  /** In the order of their names, which every node has. */
  #entries: Entry<C>[] = [];
  #owners = new Uint16Array(BUCKETS).fill(UNOWNED);
  /** How late the owner comes in the race for its bucket; the first wins. */
  #costs = new Float32Array(BUCKETS).fill(Infinity);

  /**
   * `boundedLoad`: a server with more than so many times its share of `totalActive`, what all servers of the backend
   * have, is passed over.
   */
  constructor(
    keyOf: (facts: RequestFacts) => string | null,
    withoutKey: Balancer<C>,
    boundedLoad: number | null,
    totalActive: () => number,
  ) {
    this.#keyOf = keyOf;
    this.#withoutKey = withoutKey;
    this.#boundedLoad = boundedLoad;
    this.#totalActive = totalActive;
  }

  update(candidates: readonly C[]): void {
    this.#withoutKey.update(candidates);
    const before = new Map(this.#entries.map((entry) => [entry.candidate.name, entry]));
    const renumbered = new Uint16Array(this.#entries.length + 1).fill(UNOWNED);
    const indexes = new Map(this.#entries.map((entry, index) => [entry.candidate.name, index]));
    const raised: number[] = [];
    this.#totalWeight = 0;
    this.#entries = [...candidates]
      .sort((a, b) => (a.name < b.name ? -1 : 1))
      .map((candidate, index) => {
        const { name, weight } = candidate;
        const known = before.get(name);
        this.#totalWeight += weight;
        // Those that lost weight must win their buckets anew, as those that are gone.
        if (known && weight >= known.weight) renumbered[indexes.get(name)!] = index;
        if (!known || weight > known.weight) raised.push(index);
        return { candidate, weight, seeds: known?.seeds ?? [hashText(name), hashText(name, SECOND_SEED)] };
      });
    this.#reassign(renumbered, raised);
  }

  choose(facts: RequestFacts, passOver: ReadonlySet<C>): C | null {
    const key = this.#keyOf(facts);
    if (key === null || key === '') return this.#withoutKey.choose(facts, passOver);
    const entries = this.#entries;
    if (entries.length === 0) return null;
    const allowance = this.#boundedLoad === null ? Infinity : Math.ceil(this.#boundedLoad * (this.#totalActive() + 1));
    const hash = hashText(key);
    for (let attempt = 0; attempt < MAX_TRIES; attempt++) {
      const bucket = (attempt === 0 ? hash : mix(hash + attempt)) & (BUCKETS - 1);
      const { candidate } = entries[this.#owners[bucket]!]!;
      if (isFree(candidate, passOver) && this.#isWithin(candidate, allowance)) return candidate;
    }
    // Most are passed over. Any that has room is better than none, also beyond its share.
    let spare: C | null = null;
    const start = (hash >>> 16) % entries.length;
    for (let step = 0; step < entries.length; step++) {
      const { candidate } = entries[(start + step) % entries.length]!;
      if (!isFree(candidate, passOver)) continue;
      if (this.#isWithin(candidate, allowance)) return candidate;
      spare ??= candidate;
    }
    return spare;
  }

  #isWithin(candidate: C, allowance: number): boolean {
    if (allowance === Infinity) return true;
    return candidate.active() < Math.max(1, Math.ceil((allowance * candidate.weight) / this.#totalWeight));
  }

  /** Gives owners their new numbers. What has none now is contested by all, the rest by those that gained weight. */
  #reassign(renumbered: Uint16Array, raised: readonly number[]): void {
    const buckets = new Uint16Array(BUCKETS);
    let lost = 0;
    let kept = BUCKETS;
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      const owner = this.#owners[bucket]!;
      const now = owner === UNOWNED ? UNOWNED : renumbered[owner]!;
      this.#owners[bucket] = now;
      if (now === UNOWNED) {
        this.#costs[bucket] = Infinity;
        buckets[lost++] = bucket;
      } else {
        buckets[--kept] = bucket;
      }
    }
    for (let index = 0; index < this.#entries.length; index++) this.#contest(index, buckets.subarray(0, lost));
    for (const index of raised) this.#contest(index, buckets.subarray(kept));
  }

  /**
   * Where this server is faster than the present owner, it takes over. A server's time in the race for a bucket is
   * exponentially distributed with its weight as rate: -ln(u) / weight, u uniform in (0, 1) of the server and bucket.
   */
  #contest(index: number, buckets: Uint16Array): void {
    const { seeds, weight } = this.#entries[index]!;
    const [first, second] = seeds;
    const owners = this.#owners;
    const costs = this.#costs;
    for (const bucket of buckets) {
      // MurmurHash3's finish, the second seed within: two servers whose first seeds are alike still differ.
      let value = bucketHashes[bucket]! ^ first;
      value = Math.imul(value ^ (value >>> 16), 0x85ebca6b) + second;
      value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35);
      const uniform = (((value ^ (value >>> 16)) >>> 0) + 0.5) * 2 ** -32;
      const best = costs[bucket]!;
      // -ln(u) ≥ 1 - u: most are out of the race without a logarithm. The margin is for the rounding of `best`.
      if (1 - uniform > best * weight * 1.000_001) continue;
      const cost = Math.fround(-Math.log(uniform) / weight);
      // At a tie the first by name, whoever came first here.
      if (cost > best || (cost === best && owners[bucket]! <= index)) continue;
      costs[bucket] = cost;
      owners[bucket] = index;
    }
  }
}
