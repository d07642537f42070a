/**
 * Deadlines by the thousand: setting one anew, as every request does several times, is one assignment. A timer that is
 * moved to a later time stays where it stands in the wheel and is looked at again when its old time comes.
 */
import assert from 'node:assert/strict';

/** How late a deadline may be; the time-outs of a proxy are tens of milliseconds at the least. */
const TICK_MS = 8;
/** A turn of the wheel takes eight seconds; longer times go round. A power of two. */
const SLOTS = 1024;

export type TimerHandle = { set(ms: number): void; clear(): void };

/** What timers are made with: the reactor's wheel, or a test's. */
export type TimerMaker = { make(callback: () => void): TimerHandle };

class Timer implements TimerHandle {
  dueMs = Infinity;
  /** The tick at which the wheel looks at it; -1 while it isn't in the wheel. */
  tick = -1;
  before: Timer | null = null;
  next: Timer | null = null;
  readonly callback: () => void;
  readonly #timers: Timers;

  constructor(timers: Timers, callback: () => void) {
    this.#timers = timers;
    this.callback = callback;
  }

  /** From now; whatever was set before is forgotten. */
  set(ms: number): void {
    this.dueMs = this.#timers.nowMs + ms;
    if (this.tick === -1 || this.dueMs < this.tick * TICK_MS) this.#timers.insert(this);
  }

  /** Leaves it in the wheel: whoever clears a timer mostly sets it again soon. */
  clear(): void {
    this.dueMs = Infinity;
  }

  /** For good: the wheel refers to it no longer. */
  drop(): void {
    this.dueMs = Infinity;
    this.#timers.remove(this);
  }
}

export type { Timer };

export class Timers implements TimerMaker {
  nowMs: number;
  #slots: (Timer | null)[] = Array.from({ length: SLOTS }, () => null);
  #tick: number;
  #count = 0;

  constructor(nowMs: number) {
    this.nowMs = nowMs;
    this.#tick = Math.floor(nowMs / TICK_MS);
  }

  make(callback: () => void): Timer {
    return new Timer(this, callback);
  }

  insert(timer: Timer): void {
    if (timer.tick !== -1) this.remove(timer);
    const tick = Math.max(this.#tick + 1, Math.ceil(timer.dueMs / TICK_MS));
    const slot = tick % SLOTS;
    const first = this.#slots[slot]!;
    timer.tick = tick;
    timer.before = null;
    timer.next = first;
    if (first) first.before = timer;
    this.#slots[slot] = timer;
    this.#count++;
  }

  remove(timer: Timer): void {
    if (timer.tick === -1) return;
    if (timer.before) timer.before.next = timer.next;
    else this.#slots[timer.tick % SLOTS] = timer.next;
    if (timer.next) timer.next.before = timer.before;
    timer.tick = -1;
    timer.before = null;
    timer.next = null;
    this.#count--;
  }

  /** What is set from here on is set from then; nothing is called yet. Time never goes back. */
  setNow(nowMs: number): void {
    assert(nowMs >= this.nowMs, 'time went back');
    this.nowMs = nowMs;
  }

  /** Calls what is due. */
  advance(nowMs: number): void {
    this.setNow(nowMs);
    const until = Math.floor(nowMs / TICK_MS);
    // After a long sleep every slot is looked at once.
    if (until - this.#tick > SLOTS) this.#tick = until - SLOTS;
    while (this.#tick < until) {
      this.#tick++;
      if (this.#count > 0) this.#runSlot(this.#tick % SLOTS);
    }
  }

  /** How long until something may be due; never more than `atMostMs`. */
  waitMs(atMostMs: number): number {
    if (this.#count === 0) return atMostMs;
    const ticks = Math.min(SLOTS, Math.ceil((this.nowMs + atMostMs) / TICK_MS) - this.#tick);
    for (let ahead = 1; ahead <= ticks; ahead++) {
      if (this.#slots[(this.#tick + ahead) % SLOTS] === null) continue;
      return Math.min(atMostMs, Math.max(0, (this.#tick + ahead) * TICK_MS - this.nowMs));
    }
    return atMostMs;
  }

  #runSlot(slot: number): void {
    let due: Timer[] | null = null;
    let timer = this.#slots[slot] ?? null;
    while (timer) {
      const { next } = timer;
      // Others in this slot are a turn of the wheel away.
      if (timer.tick <= this.#tick) {
        this.remove(timer);
        if (timer.dueMs <= this.nowMs) (due ??= []).push(timer);
        else if (timer.dueMs !== Infinity) this.insert(timer);
      }
      timer = next;
    }
    if (!due) return;
    for (const one of due) {
      // A callback before it may have cleared or moved it.
      if (one.dueMs > this.nowMs) continue;
      one.dueMs = Infinity;
      one.callback();
    }
  }
}
