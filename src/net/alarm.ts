/**
 * A timer of the kernel's (timerfd) that wakes within a tenth of a millisecond. Node's own timers count in whole
 * milliseconds, and are one late as often as not: as much as a takeover takes otherwise.
 */
import assert from 'node:assert/strict';
import { lastErrno, libc } from './libc.ts';
import type { Poller } from './poller.ts';

const CLOCK_MONOTONIC = 1;
const TFD_NONBLOCK = 0o4000;
const TFD_CLOEXEC = 0o2000000;
/** `struct itimerspec`: interval and value, each seconds and nanoseconds. */
const ITIMERSPEC_BYTES = 32;
/** A value of zero would disarm it. */
const SHORTEST_US = 1;

export class Alarm {
  #fd: number;
  #unwatch: () => void;
  #wake: () => void = () => {};
  #spec = Buffer.alloc(ITIMERSPEC_BYTES);
  #expirations = Buffer.alloc(8);

  constructor(poller: Poller) {
    this.#fd = libc().timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK + TFD_CLOEXEC);
    assert(this.#fd >= 0, `timerfd_create: ${lastErrno()}`);
    this.#unwatch = poller.watch(this.#fd, () => {
      // Nothing to read: it has been set anew since.
      if (libc().read(this.#fd, this.#expirations, this.#expirations.length) > 0) this.#wake();
    });
  }

  /** Calls `wake` once after this time; a later call replaces an earlier one. */
  set(delayUs: number, wake: () => void): void {
    this.#wake = wake;
    const us = Math.max(SHORTEST_US, Math.ceil(delayUs));
    this.#spec.writeBigInt64LE(BigInt(Math.floor(us / 1e6)), 16);
    this.#spec.writeBigInt64LE(BigInt((us % 1e6) * 1000), 24);
    const failed = libc().timerfd_settime(this.#fd, 0, this.#spec, null) < 0;
    assert(!failed, `timerfd_settime: ${lastErrno()}`);
  }

  close(): void {
    this.#unwatch();
    libc().close(this.#fd);
  }
}
