/**
 * Tells when descriptors have something to read. One epoll_wait at a time is under way on a thread of libuv's pool, none
 * while nothing is watched; so a process should have one poller. The callbacks run on the main thread, which is the only
 * reader and may read from any descriptor at any time.
 *
 * A poller that nobody closes ends with everything else: a wait that ends without an event is followed by the next one
 * only if something else keeps the process alive.
 */
import assert from 'node:assert/strict';
import { lastErrno, libc } from './libc.ts';

const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLLIN = 1;
const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;

/** `struct epoll_event` is packed on x86-64 alone. */
const EVENT_BYTES = process.arch === 'x64' ? 12 : 16;
const DATA_OFFSET = EVENT_BYTES - 8;
/** What is ready beyond these is told by the next wait. */
const EVENTS_PER_WAIT = 64;
/**
 * How long a process that has ended otherwise is kept by an open poller. Each wait that ends so leaves a gap of some
 * milliseconds, so it comes only after a silence longer than the usual advert interval of a second.
 */
const WAIT_MS = 2000;
/** The token of the eventfd; those of callbacks start after it. */
const WAKE = 0;

export class Poller {
  #epoll: number;
  #wake: number;
  /** Written by the other thread, so it is referred to for as long as a wait is under way. */
  #events = Buffer.allocUnsafeSlow(EVENT_BYTES * EVENTS_PER_WAIT);
  #callbacks = new Map<number, () => void>();
  #lastToken = WAKE;
  #waiting = false;
  #closed = false;
  /** Node waits at its exit for calls in the pool, and would wait for the time-out. */
  #onExit = () => this.#interrupt();

  private constructor(epoll: number, wake: number) {
    this.#epoll = epoll;
    this.#wake = wake;
    this.#control(EPOLL_CTL_ADD, wake, WAKE);
    process.on('exit', this.#onExit);
  }

  static open(): Poller {
    const epoll = libc().epoll_create1(EPOLL_CLOEXEC);
    assert(epoll >= 0, `epoll_create1: ${lastErrno()}`);
    const wake = libc().eventfd(0, EFD_CLOEXEC + EFD_NONBLOCK);
    assert(wake >= 0, `eventfd: ${lastErrno()}`);
    return new Poller(epoll, wake);
  }

  /**
   * `onReadable` is called again for as long as something is left to read, at most once a turn. The returned function
   * ends the watch, and must be called before the descriptor is closed.
   */
  watch(fd: number, onReadable: () => void): () => void {
    assert(!this.#closed, 'watch of a closed poller');
    const token = ++this.#lastToken;
    this.#callbacks.set(token, onReadable);
    this.#control(EPOLL_CTL_ADD, fd, token);
    this.#wait();
    return () => {
      if (!this.#callbacks.delete(token) || this.#closed) return;
      assert(libc().epoll_ctl(this.#epoll, EPOLL_CTL_DEL, fd, null) === 0, `epoll_ctl: ${lastErrno()}`);
      if (this.#callbacks.size === 0) this.#interrupt();
    };
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#callbacks.clear();
    process.off('exit', this.#onExit);
    if (this.#waiting) this.#interrupt();
    else this.#release();
  }

  #control(operation: number, fd: number, token: number): void {
    const event = Buffer.alloc(EVENT_BYTES);
    event.writeUInt32LE(EPOLLIN, 0);
    event.writeBigUInt64LE(BigInt(token), DATA_OFFSET);
    assert(libc().epoll_ctl(this.#epoll, operation, fd, event) === 0, `epoll_ctl: ${lastErrno()}`);
  }

  #wait(): void {
    // A descriptor that is added while a wait is under way belongs to that wait already.
    if (this.#waiting || this.#closed || this.#callbacks.size === 0) return;
    this.#waiting = true;
    libc().epoll_wait.async(this.#epoll, this.#events, EVENTS_PER_WAIT, WAIT_MS, (error: unknown, count: number) => {
      assert.ifError(error);
      this.#waiting = false;
      if (this.#closed) {
        this.#release();
        return;
      }
      if (count === 0) {
        setTimeout(() => this.#wait(), 0).unref();
        return;
      }
      try {
        // Less than none is an interrupting signal; every other error is a fault of ours.
        if (count < 0) assert.equal(lastErrno(), 'EINTR');
        else this.#tell(count);
      } finally {
        this.#wait();
      }
    });
  }

  #tell(count: number): void {
    // Read before the first callback runs: it may throw, or end other watches.
    const tokens = Array.from({ length: count }, (_, index) =>
      Number(this.#events.readBigUInt64LE(index * EVENT_BYTES + DATA_OFFSET)),
    );
    for (const token of tokens) {
      // A callback may have closed this poller, and with it the eventfd.
      if (this.#closed) return;
      if (token === WAKE) libc().read(this.#wake, Buffer.alloc(8), 8);
      else this.#callbacks.get(token)?.();
    }
  }

  #interrupt(): void {
    const one = Buffer.alloc(8);
    one.writeBigUInt64LE(1n);
    libc().write(this.#wake, one, one.length);
  }

  #release(): void {
    libc().close(this.#wake);
    libc().close(this.#epoll);
  }
}
