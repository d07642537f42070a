/**
 * Sequence numbers of authenticated adverts (`ah`, `sealed`): strictly increasing, also over restarts and crashes, or
 * peers take our adverts for repeats. Numbers are reserved in a file a block at a time, before they are used.
 */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import type { Counter } from './advertiser.ts';

/** Numbers of one block: at 100 adverts a second, one write in 17 minutes. Each start takes a block of the 32 bits of `ah`. */
const BLOCK = 100_000n;
/** After the reserved ones: for what is sent on behalf of a node that has died, before it starts again. */
const FAREWELLS = 1_000n;

export class PersistentCounter implements Counter {
  #path: string;
  #next: bigint;
  #reserved: bigint;
  #onReserved: () => void = () => {};
  #onTrouble: (error: unknown) => void;

  /** Never throws: without the file it goes by the clock, which is larger than what was used before, if it is right. */
  constructor(path: string, nowSeconds: number, onTrouble: (error: unknown) => void) {
    this.#path = path;
    this.#onTrouble = onTrouble;
    let last = 0n;
    try {
      last = BigInt(readFileSync(path, 'utf8').trim()) + FAREWELLS;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') onTrouble(error);
      // 32 bits are all that `ah` has: seconds leave it room until 2106, and as many numbers as seconds have passed.
      last = BigInt(nowSeconds);
    }
    this.#next = last + 1n;
    this.#reserved = last;
    this.#reserve();
  }

  next(): bigint {
    if (this.#next >= this.#reserved) this.#reserve();
    return this.#next++;
  }

  /**
   * A peer has used this number: goes on above it. keepalived keeps one mark for all of its peers, so that what the guard
   * and the next life of this node send has to be above what any of them has sent.
   */
  passed(number: bigint): void {
    if (number < this.#next) return;
    this.#next = number + 1n;
    if (this.#next >= this.#reserved) this.#reserve();
  }

  /** The first number that this node does not use before it reserves again. */
  get reserved(): bigint {
    return this.#reserved;
  }

  onReserved(listener: () => void): void {
    this.#onReserved = listener;
  }

  #reserve(): void {
    this.#reserved = this.#next + BLOCK;
    try {
      // Renamed into place: a crash leaves the old number or the new one.
      writeFileSync(`${this.#path}.new`, `${this.#reserved}\n`, { mode: 0o600 });
      renameSync(`${this.#path}.new`, this.#path);
    } catch (error) {
      this.#onTrouble(error);
    }
    this.#onReserved();
  }
}
