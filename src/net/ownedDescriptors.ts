/**
 * Which descriptors a thread has open. Those of Node's own close with the thread that has them; ours would stay open for
 * ever when it dies, with clients at their other ends. So each thread keeps a list in shared memory, and whoever hears
 * of its death closes what is on it.
 */
import assert from 'node:assert/strict';
import { libc } from './libc.ts';

/** One bit each; /proc/sys/fs/nr_open is a million where nobody has raised it. */
const MAX_DESCRIPTORS = 1 << 20;
const BITS = 32;

/* oxlint-disable no-bitwise */

export const allocateDescriptors = (): SharedArrayBuffer => new SharedArrayBuffer(MAX_DESCRIPTORS / 8);

export class OwnedDescriptors {
  #words: Int32Array;

  constructor(memory: SharedArrayBuffer) {
    this.#words = new Int32Array(memory);
  }

  own(fd: number): void {
    assert(fd < MAX_DESCRIPTORS, `descriptor ${fd} is beyond what is accounted for`);
    this.#words[fd >>> 5] = this.#words[fd >>> 5]! | (1 << (fd & (BITS - 1)));
  }

  /** Before it is closed, or given to somebody else: from then on its number may stand for another. */
  disown(fd: number): void {
    this.#words[fd >>> 5] = this.#words[fd >>> 5]! & ~(1 << (fd & (BITS - 1)));
  }
}

/** Of a thread that is dead, except for those that are kept for the next one. */
export const closeDescriptorsOf = (memory: SharedArrayBuffer, kept: ReadonlySet<number>): void => {
  const words = new Int32Array(memory);
  words.forEach((word, index) => {
    if (word === 0) return;
    for (let bit = 0; bit < BITS; bit++) {
      const fd = index * BITS + bit;
      if ((word & (1 << bit)) !== 0 && !kept.has(fd)) libc().close(fd);
    }
    words[index] = 0;
  });
};
