/**
 * Counts by key (an address, a header) in memory that all workers share, so that limits are exact whatever worker a
 * client meets. A hash table of fixed size: sets of eight places, each a tag and its state. Who is known is counted
 * without a lock; who is new takes, under the lock of its set, the place that matters least, so that an attacker with
 * many keys pushes out other one-time keys and not the one that is being held back.
 */
import assert from 'node:assert/strict';
import { randomFillSync } from 'node:crypto';

const WAYS = 8;
/** Words before the locks: how many sets, how many words a place, two seeds. */
const HEADER_WORDS = 16;
const SETS = 0;
const STRIDE = 1;
const SEED_A = 2;
const SEED_B = 3;

/** A lock is held for less than a microsecond, unless its thread is not running just now. */
const SPINS = 200;
/** A thread that was ended while it held a lock would hold it for ever: after this many waits of 1 ms it is taken over. */
const WAITS_MS = 20;

export type RateKind = 'tokens' | 'meter';

/** Tokens: a tag and a time. Meter: a tag, the counts of two periods, and one unused. */
const STRIDES: Record<RateKind, number> = { tokens: 2, meter: 4 };

/** Called by the control thread. 8 bytes an entry for tokens, 16 for a meter; `entries` is rounded up. */
export const createRateMemory = (kind: RateKind, entries: number): SharedArrayBuffer => {
  const sets = 2 ** Math.ceil(Math.log2(Math.max(1, entries / WAYS)));
  const memory = new SharedArrayBuffer((HEADER_WORDS + sets + sets * WAYS * STRIDES[kind]) * 4);
  const words = new Int32Array(memory);
  words[SETS] = sets;
  words[STRIDE] = STRIDES[kind];
  // Secret, or a client could choose keys that fall into the set of another.
  const seeds = randomFillSync(new Int32Array(2));
  words[SEED_A] = seeds[0]!;
  words[SEED_B] = seeds[1]!;
  return memory;
};

const mixed = (hash: number): number => {
  let value = hash;
  value = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35);
  return value ^ (value >>> 16);
};

export abstract class RateTable {
  protected readonly words: Int32Array;
  #mask: number;
  #stride: number;
  #entries: number;
  #seedA: number;
  #seedB: number;
  /** Of the key that is looked at: its set, and what tells it from others there. */
  #set = 0;
  #tag = 0;

  constructor(memory: SharedArrayBuffer, kind: RateKind) {
    this.words = new Int32Array(memory);
    assert.equal(this.words[STRIDE], STRIDES[kind], 'the memory was made for another kind of table');
    this.#mask = this.words[SETS]! - 1;
    this.#stride = this.words[STRIDE]!;
    this.#entries = HEADER_WORDS + this.words[SETS]!;
    this.#seedA = this.words[SEED_A]!;
    this.#seedB = this.words[SEED_B]!;
  }

  /** The key is a text. */
  keyText(text: string): void {
    let a = this.#seedA;
    let b = this.#seedB;
    for (let at = 0; at < text.length; at++) {
      const code = text.charCodeAt(at);
      a = Math.imul(a ^ code, 0x01000193);
      b = mixed(b + code);
    }
    this.#settle(mixed(a ^ text.length), b);
  }

  /** The key is a number of 64 bits, in two halves. */
  keyWords(high: number, low: number): void {
    this.#settle(mixed(mixed(this.#seedA ^ high) + low), mixed(mixed(this.#seedB ^ low) + high));
  }

  /** What a place means at a time: 0 for one that means nothing any more. */
  protected abstract weight(at: number, now: number): number;
  protected abstract begin(at: number, now: number): void;

  /** Where the key's place is, which is made if need be. */
  protected place(now: number): number {
    const { words } = this;
    const first = this.#entries + this.#set * WAYS * this.#stride;
    for (let way = 0, at = first; way < WAYS; way++, at += this.#stride) {
      if (Atomics.load(words, at) === this.#tag) return at;
    }
    return this.#insert(first, now);
  }

  protected isOurs(at: number): boolean {
    return Atomics.load(this.words, at) === this.#tag;
  }

  #settle(a: number, b: number): void {
    this.#set = a & this.#mask;
    // 0 is a free place.
    this.#tag = b === 0 ? 1 : b;
  }

  #insert(first: number, now: number): number {
    const { words } = this;
    const lock = HEADER_WORDS + this.#set;
    this.#lock(lock);
    let victim = first;
    let least = Infinity;
    for (let way = 0, at = first; way < WAYS; way++, at += this.#stride) {
      const tag = Atomics.load(words, at);
      if (tag === this.#tag) {
        // Another worker was faster.
        Atomics.store(words, lock, 0);
        return at;
      }
      const weight = tag === 0 ? -1 : this.weight(at, now);
      // What has run out goes at once: times are cyclic, and would seem to lie ahead one day.
      if (weight === 0) Atomics.store(words, at, 0);
      if (weight < least) {
        least = weight;
        victim = at;
      }
    }
    Atomics.store(words, victim, 0);
    this.begin(victim, now);
    Atomics.store(words, victim, this.#tag);
    Atomics.store(words, lock, 0);
    return victim;
  }

  #lock(lock: number): void {
    const { words } = this;
    for (let spin = 0; spin < SPINS; spin++) if (Atomics.compareExchange(words, lock, 0, 1) === 0) return;
    for (let wait = 0; wait < WAITS_MS; wait++) {
      Atomics.wait(words, lock, 1, 1);
      if (Atomics.compareExchange(words, lock, 0, 1) === 0) return;
    }
  }
}

/** Tokens of one key at most. */
export const MAX_BURST = 1_000_000;
/** The finest step in which time is counted: 10 µs, so that a cycle of 32 bits lasts 12 hours. */
const STEPS_PER_MS = 100;
/** Steps that a full bucket should span: enough to be exact, few enough that a forgotten time is hardly ever in it. */
const SPAN_STEPS = 2 ** 20;
/** Clocks of workers that read theirs once a turn differ by that. */
const CLOCK_SLACK_MS = 1_000;

/**
 * Token buckets, by GCRA: a bucket is the one moment at which it will be full again. State that is one word is changed
 * by one compare-and-exchange.
 */
export class TokenBuckets extends RateTable {
  #stepsPerMs: number;
  #token: number;
  #capacity: number;
  #beyond: number;

  /** One token returns in `tokenMs`. */
  constructor(memory: SharedArrayBuffer, tokenMs: number, burst: number) {
    super(memory, 'tokens');
    this.#token = Math.max(1, Math.floor(Math.min(SPAN_STEPS / burst, STEPS_PER_MS * tokenMs)));
    this.#stepsPerMs = this.#token / tokenMs;
    this.#capacity = this.#token * burst;
    this.#beyond = this.#capacity + Math.ceil(CLOCK_SLACK_MS * this.#stepsPerMs);
  }

  /** Takes a token of the key: 0 when there was one, or else the ms until there will be. */
  take(nowMs: number): number {
    const { words } = this;
    const now = Math.floor(nowMs * this.#stepsPerMs) | 0;
    for (;;) {
      const at = this.place(now);
      for (;;) {
        const full = Atomics.load(words, at + 1);
        const debt = this.#debt(full, now) + this.#token;
        if (debt > this.#capacity) return (debt - this.#capacity) / this.#stepsPerMs;
        const isTaken = Atomics.compareExchange(words, at + 1, full, (now + debt) | 0) === full;
        // Another worker may have given the place to another key meanwhile.
        if (!this.isOurs(at)) break;
        if (isTaken) return 0;
      }
    }
  }

  protected weight(at: number, now: number): number {
    return this.#debt(Atomics.load(this.words, at + 1), now);
  }

  protected begin(at: number, now: number): void {
    Atomics.store(this.words, at + 1, now);
  }

  #debt(full: number, now: number): number {
    const ahead = (full - now) | 0;
    return ahead < 0 || ahead > this.#beyond ? 0 : ahead;
  }
}

/** A word of a meter: 12 bits of the period's number, 20 of its count. */
const COUNT_BITS = 20;
export const MAX_METER = 2 ** COUNT_BITS - 1;
const PERIODS = 2 ** (32 - COUNT_BITS);

/** How often a key came within a period, as HAProxy estimates it: what this one has, and its share of the one before. */
export class Meters extends RateTable {
  #perMs: number;

  constructor(memory: SharedArrayBuffer, perMs: number) {
    super(memory, 'meter');
    this.#perMs = perMs;
  }

  /** Counts the key once more (or only looks, by 0), and tells its rate a period. */
  count(nowMs: number, by: 0 | 1 = 1): number {
    const { words } = this;
    const now = nowMs / this.#perMs;
    const period = Math.floor(now);
    const at = this.place(now);
    const word = at + 1 + (period & 1);
    for (;;) {
      const old = Atomics.load(words, word);
      const count = this.#countOf(old, period);
      const next = Math.min(count + by, MAX_METER);
      if (Atomics.compareExchange(words, word, old, ((period % PERIODS) << COUNT_BITS) | next) !== old) continue;
      return this.#estimate(at, now, next);
    }
  }

  protected weight(at: number, now: number): number {
    const period = Math.floor(now);
    return this.#estimate(at, now, this.#countOf(Atomics.load(this.words, at + 1 + (period & 1)), period));
  }

  protected begin(at: number): void {
    Atomics.store(this.words, at + 1, 0);
    Atomics.store(this.words, at + 2, 0);
  }

  #estimate(at: number, now: number, count: number): number {
    const period = Math.floor(now);
    const before = this.#countOf(Atomics.load(this.words, at + 1 + ((period + 1) & 1)), period - 1);
    return count + before * (1 - (now - period));
  }

  #countOf(word: number, period: number): number {
    return word >>> COUNT_BITS === period % PERIODS ? word & MAX_METER : 0;
  }
}
