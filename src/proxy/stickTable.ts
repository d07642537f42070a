/**
 * Which server the clients of an address had, in memory that all workers share: the kernel gives a client's connections
 * to any worker. A set-associative table like a processor's cache: bounded, without locks, each operation looks at one
 * set of entries. What a worker leaves half written when it dies, or two write at once, fails its check and is believed by none.
 */
import { hashText, mix } from './hash.ts';

/** Entries of one set, 20 bytes each: two or three cache lines. */
const WAYS = 8;
/** Words of an entry: two of the key's hash, the slot, when it expires, the check over the first three. */
const WORDS = 5;
const SECOND_WORD_SEED = 0x9e3779b9;
/** Expiry is kept in 32 bits of tenths of a second since the machine's start: 13 years. */
const UNIT_MS = 100;

/** Threads have each their own origin of `performance.now()`; this leads from ours to the one that all share. */
const originMs = Number(process.hrtime.bigint()) / 1e6 - performance.now();

/** Memory for at least `size` clients. */
export const allocateStickTable = (size: number): SharedArrayBuffer => {
  // Twice as much: sets fill unevenly, and half full nearly none overflows.
  const sets = 2 ** Math.ceil(Math.log2(Math.max(1, (size * 2) / WAYS)));
  return new SharedArrayBuffer(sets * WAYS * WORDS * Int32Array.BYTES_PER_ELEMENT);
};

const checkOf = (low: number, high: number, slot: number): number => mix(low ^ mix(high ^ mix(slot + 1)));

/** One worker's view. `nowMs` in the scale of this thread's `performance.now()`. */
export class StickTable {
  readonly #words: Int32Array;
  readonly #setMask: number;
  readonly #expireUnits: number;
  readonly #nowMs: () => number;

  constructor(memory: SharedArrayBuffer, expireMs: number, nowMs: () => number) {
    this.#words = new Int32Array(memory);
    this.#setMask = this.#words.length / (WAYS * WORDS) - 1;
    this.#expireUnits = Math.ceil(expireMs / UNIT_MS);
    this.#nowMs = nowMs;
  }

  /** The slot of the server that the client had; null when it isn't known, or was last seen too long ago. */
  find(client: string): number | null {
    const low = hashText(client);
    const high = hashText(client, SECOND_WORD_SEED);
    const at = this.#entryOf(low, high);
    if (at === -1) return null;
    const slot = Atomics.load(this.#words, at + 2);
    if (Atomics.load(this.#words, at + 4) !== checkOf(low, high, slot)) return null;
    return this.#leftAt(at, this.#now()) > 0 ? slot : null;
  }

  /** Remembers the client's server from now on, for as long as the table keeps clients. */
  store(client: string, slot: number): void {
    const low = hashText(client);
    const high = hashText(client, SECOND_WORD_SEED);
    const now = this.#now();
    let at = this.#entryOf(low, high);
    const isNew = at === -1;
    if (isNew) at = this.#oldestOf(low, now);
    const words = this.#words;
    if (isNew) {
      Atomics.store(words, at, low);
      Atomics.store(words, at + 1, high);
    }
    if (isNew || Atomics.load(words, at + 2) !== slot || Atomics.load(words, at + 4) !== checkOf(low, high, slot)) {
      Atomics.store(words, at + 2, slot);
      Atomics.store(words, at + 4, checkOf(low, high, slot));
    }
    // Written only when it changes: all workers read this line.
    const expiry = (now + this.#expireUnits) | 0;
    if (Atomics.load(words, at + 3) !== expiry) Atomics.store(words, at + 3, expiry);
  }

  #now(): number {
    return Math.floor((this.#nowMs() + originMs) / UNIT_MS);
  }

  /** How long the entry is still good for; 0 or less when it is free. */
  #leftAt(at: number, now: number): number {
    const expiry = Atomics.load(this.#words, at + 3);
    return expiry === 0 ? 0 : (expiry - now) | 0;
  }

  #setOf(low: number): number {
    return (low & this.#setMask) * WAYS * WORDS;
  }

  #entryOf(low: number, high: number): number {
    const set = this.#setOf(low);
    for (let at = set; at < set + WAYS * WORDS; at += WORDS) {
      if (Atomics.load(this.#words, at) !== low || Atomics.load(this.#words, at + 1) !== high) continue;
      // A word of zeros is an entry that nobody has used yet.
      if (low !== 0 || high !== 0 || Atomics.load(this.#words, at + 3) !== 0) return at;
    }
    return -1;
  }

  /** A free entry, or the one that expires first: that of the client that was not seen for longest. */
  #oldestOf(low: number, now: number): number {
    const set = this.#setOf(low);
    let oldest = set;
    let least = Infinity;
    for (let at = set; at < set + WAYS * WORDS; at += WORDS) {
      const left = this.#leftAt(at, now);
      if (left >= least) continue;
      oldest = at;
      least = left;
    }
    return oldest;
  }
}
