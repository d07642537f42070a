/**
 * The event loop of a data-plane thread. It waits in an epoll of its own, edge-triggered, and calls watchers directly:
 * streams of Node's cost several times what a proxy does with a request otherwise.
 *
 * Node's own loop is watched as one more descriptor. While it has nothing to do this thread stays in here; when it has,
 * it gets its turn. So MessagePorts, zlib and node:http2 work beside it.
 */
import assert from 'node:assert/strict';
import { EINTR, errno, lastErrno, libc } from './libc.ts';
import { nodeLoopDescriptor } from './nodeLoop.ts';
import { OwnedDescriptors } from './ownedDescriptors.ts';
import { Timers } from './timers.ts';

export const EPOLLIN = 0x1;
export const EPOLLOUT = 0x4;
export const EPOLLERR = 0x8;
export const EPOLLHUP = 0x10;
export const EPOLLRDHUP = 0x2000;
const EPOLLET = 0x8000_0000;
const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;

/** `struct epoll_event` is packed on x86-64 alone. */
const EVENT_WORDS = process.arch === 'x64' ? 3 : 4;
const DATA_WORD = EVENT_WORDS - 2;
/** What is ready beyond these is told by the next wait. */
const EVENTS_PER_WAIT = 512;
/** Timers of Node's own (a session of node:http2 has some) make no descriptor readable: they are this late at most. */
const LONGEST_WAIT_MS = 200;
/** Later than this the thread was busy for long or kept from running. */
const HELD_UP_MS = 50;
/** Which of the two, the thread's use of the processor tells: from a look at it no older than this and a round. */
const USAGE_AGE_MS = 100;
/** What Node does in one turn may want something of the next: its changes to its epoll take effect only there. */
const NODE_TURNS = 2;

export type Watcher = {
  /** What epoll says: hints, as another watcher may have acted since. */
  onEvents(events: number): void;
};

/** Something to be done after the events of this round. */
export type Task = { run(): void };

export class Reactor {
  /** As of the begin of this round, in the scale of `performance.now()`. */
  nowMs = performance.now();
  /**
   * On a clock that stands while this thread is kept from running (SIGSTOP, a starved machine): nobody is blamed for a
   * silence in which he could not be heard or was not yet told what to answer.
   */
  readonly timers = new Timers(this.nowMs);
  #heldUpMs = 0;
  #usage = process.threadCpuUsage();
  #usageAtMs = this.nowMs;
  readonly #owned: OwnedDescriptors;
  #epoll: number;
  #nodeLoop: number;
  #watchers: (Watcher | null)[] = [];
  /** The round in which each descriptor was last watched. */
  #watchedIn: number[] = [];
  #rounds = 0;
  #words = new Int32Array(new ArrayBuffer(EVENTS_PER_WAIT * EVENT_WORDS * 4));
  #events = Buffer.from(this.#words.buffer);
  #event = new Uint32Array(EVENT_WORDS);
  #eventBytes = Buffer.from(this.#event.buffer);
  #tasks: Task[] = [];
  #nodeTurns = NODE_TURNS;
  #stopped = false;
  #looksAgain = false;

  /** `descriptors`: where this thread keeps the list of those that it has open. */
  constructor(descriptors: SharedArrayBuffer) {
    this.#owned = new OwnedDescriptors(descriptors);
    this.#epoll = libc().epoll_create1(EPOLL_CLOEXEC);
    assert(this.#epoll >= 0, `epoll_create1: ${lastErrno()}`);
    this.#owned.own(this.#epoll);
    this.#nodeLoop = nodeLoopDescriptor();
    this.#add(this.#nodeLoop, EPOLLIN);
    setImmediate(this.#turn);
  }

  /**
   * Owns a socket from now on and tells of everything that happens to it, once each: what is told must be acted on until
   * the kernel says EAGAIN.
   */
  watch(fd: number, watcher: Watcher): void {
    this.#owned.own(fd);
    this.#watchers[fd] = watcher;
    this.#add(fd, EPOLLIN + EPOLLOUT + EPOLLRDHUP + EPOLLET);
  }

  /** Another watcher for a descriptor: it is not told again of what has been told. */
  rewatch(fd: number, watcher: Watcher): void {
    this.#watchers[fd] = watcher;
  }

  /** Owns a listening socket from now on and tells of it in each round for as long as somebody waits there. */
  watchListening(fd: number, watcher: Watcher): void {
    this.#owned.own(fd);
    this.#watchers[fd] = watcher;
    this.#add(fd, EPOLLIN);
  }

  /** Lets go of a descriptor that stays open: for a while, or for somebody else. */
  unwatch(fd: number): void {
    this.#owned.disown(fd);
    this.#watchers[fd] = null;
    assert(libc().epoll_ctl(this.#epoll, EPOLL_CTL_DEL, fd, null) === 0, `epoll_ctl: ${lastErrno()}`);
  }

  /** Closing takes it out of the epoll too, unless another process has it as well: see `unwatch`. */
  close(fd: number): void {
    this.#owned.disown(fd);
    this.#watchers[fd] = null;
    libc().close(fd);
  }

  defer(task: Task): void {
    this.#tasks.push(task);
  }

  /** Something was asked of Node (a promise, a stream of its own): it gets its turn after this round. */
  wakeNode(): void {
    this.#nodeTurns = NODE_TURNS;
  }

  /** From now on only Node's loop runs, and ends when nothing keeps it. */
  stop(): void {
    this.#stopped = true;
  }

  #add(fd: number, events: number): void {
    this.#watchedIn[fd] = this.#rounds;
    this.#event[0] = events;
    this.#event[DATA_WORD] = fd;
    assert(libc().epoll_ctl(this.#epoll, EPOLL_CTL_ADD, fd, this.#eventBytes) === 0, `epoll_ctl: ${lastErrno()}`);
  }

  #turn = (): void => {
    // Node's own turn may have taken a while.
    if (!this.#stopped) this.#setNow(this.nowMs);
    if (this.nowMs - this.#usageAtMs > USAGE_AGE_MS) this.#lookAtUsage();
    const untilMs = this.nowMs + LONGEST_WAIT_MS;
    while (!this.#stopped) {
      const isBusy = this.#nodeTurns > 0 || this.#tasks.length > 0;
      const wait = isBusy ? 0 : Math.ceil(this.timers.waitMs(LONGEST_WAIT_MS));
      if (this.#nodeTurns > 0) this.#nodeTurns--;
      this.#round(wait);
      if (this.#nodeTurns > 0 || this.nowMs >= untilMs) break;
    }
    if (!this.#stopped) setImmediate(this.#turn);
    else this.close(this.#epoll);
  };

  #round(waitMs: number): void {
    this.#rounds++;
    const count = libc().epoll_wait(this.#epoll, this.#events, EVENTS_PER_WAIT, waitMs);
    // Only a signal may interrupt it.
    if (count < 0) assert.equal(errno(), EINTR, `epoll_wait: ${lastErrno()}`);
    const isLate = this.#setNow(this.nowMs + waitMs);
    const words = this.#words;
    for (let index = 0, at = 0; index < count; index++, at += EVENT_WORDS) {
      const fd = words[at + DATA_WORD]!;
      if (fd === this.#nodeLoop) this.#nodeTurns = NODE_TURNS;
      // What was opened in this round has the number of one that was closed in it: its events are the old one's.
      else if (this.#watchedIn[fd] !== this.#rounds) this.#watchers[fd]?.onEvents(words[at]!);
    }
    if (this.#tasks.length > 0) this.#runTasks();
    // Last, and not before another look when this thread has stood still: a wait that was cut short by the halt may have
    // told of nothing.
    this.#looksAgain = isLate && !this.#looksAgain;
    if (!this.#looksAgain) this.timers.advance(this.timers.nowMs);
  }

  /** Whether it is much later than it should be. */
  #setNow(dueMs: number): boolean {
    this.nowMs = performance.now();
    const lateMs = this.nowMs - dueMs;
    const isLate = lateMs > HELD_UP_MS;
    // Work of its own is no excuse: in a thread with too much of it nothing would time out any more.
    if (isLate) this.#heldUpMs += Math.max(0, lateMs - this.#lookAtUsage());
    // Where all of the time is left out, the difference of two sums may be a rounding error below what it was.
    this.timers.setNow(Math.max(this.timers.nowMs, this.nowMs - this.#heldUpMs));
    return isLate;
  }

  /** Milliseconds of processor time since the last look. */
  #lookAtUsage(): number {
    const used = process.threadCpuUsage(this.#usage);
    this.#usage = process.threadCpuUsage();
    this.#usageAtMs = this.nowMs;
    return (used.user + used.system) / 1000;
  }

  /** Those that they defer in turn wait for the next round, so that nobody is kept from being heard. */
  #runTasks(): void {
    const tasks = this.#tasks;
    this.#tasks = [];
    for (const task of tasks) task.run();
  }
}
