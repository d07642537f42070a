/**
 * The timers of all actors, in one binary heap: next deadline first, ties in the order in which they were set. A
 * cancelled timer stays in the heap until its turn and is then passed over; the heap is rebuilt when most of it is dead.
 */
import type { Cause } from './recorder.ts';

export type Timer = {
  actor: string;
  id: string;
  event: { type: string };
  deadlineUs: number;
  /** Has to be delivered to a fraction of a millisecond. */
  precise: boolean;
  /** The record whose effect set it. */
  cause: Cause | null;
  order: number;
  cancelled: boolean;
};

/** Below this size dead timers cost less than rebuilding the heap. */
const REBUILD_FROM = 1024;

export class TimerTable {
  #heap: Timer[] = [];
  #byActor = new Map<string, Map<string, Timer>>();
  #order = 0;
  #live = 0;

  get size(): number {
    return this.#live;
  }

  set(
    actor: string,
    id: string,
    event: { type: string },
    deadlineUs: number,
    cause: Cause | null,
    precise = false,
  ): void {
    this.cancel(actor, id);
    const timer: Timer = { actor, id, event, deadlineUs, precise, cause, order: this.#order++, cancelled: false };
    let timers = this.#byActor.get(actor);
    if (!timers) this.#byActor.set(actor, (timers = new Map()));
    timers.set(id, timer);
    this.#live++;
    this.#heap.push(timer);
    this.#siftUp(this.#heap.length - 1);
  }

  /**
   * Moves a pending timer's deadline, but not before `notBeforeUs`; one that is not pending stays so. One that is overdue
   * keeps its lateness, unless it is moved to later.
   */
  move(actor: string, id: string, byUs: number, notBeforeUs: number): void {
    const timer = this.#byActor.get(actor)?.get(id);
    if (!timer) return;
    const deadlineUs = Math.max(Math.min(notBeforeUs, timer.deadlineUs), timer.deadlineUs + byUs);
    this.set(actor, id, timer.event, deadlineUs, timer.cause, timer.precise);
  }

  cancel(actor: string, id: string): void {
    const timers = this.#byActor.get(actor);
    const timer = timers?.get(id);
    if (!timers || !timer) return;
    timer.cancelled = true;
    timers.delete(id);
    this.#live--;
    if (this.#heap.length > REBUILD_FROM && this.#heap.length > 2 * this.#live) this.#rebuild();
  }

  cancelAll(actor: string): void {
    for (const id of [...(this.#byActor.get(actor)?.keys() ?? [])]) this.cancel(actor, id);
    this.#byActor.delete(actor);
  }

  nextDeadlineUs(): number | null {
    this.#dropCancelled();
    return this.#heap[0]?.deadlineUs ?? null;
  }

  /** Whether the next one is. */
  get nextIsPrecise(): boolean {
    return this.#heap[0]?.precise ?? false;
  }

  /** Takes the earliest timer whose deadline has come. */
  takeDue(nowUs: number): Timer | null {
    this.#dropCancelled();
    const timer = this.#heap[0];
    if (!timer || timer.deadlineUs > nowUs) return null;
    this.#pop();
    this.#byActor.get(timer.actor)?.delete(timer.id);
    this.#live--;
    return timer;
  }

  /** Every pending timer, next first: for checkpoints and for the curious. */
  pending(): Timer[] {
    return this.#heap.filter((timer) => !timer.cancelled).sort(earlier);
  }

  #dropCancelled(): void {
    while (this.#heap[0]?.cancelled) this.#pop();
  }

  #rebuild(): void {
    // A sorted array is a heap.
    this.#heap = this.pending();
  }

  #pop(): void {
    const last = this.#heap.pop();
    if (!last || this.#heap.length === 0) return;
    this.#heap[0] = last;
    let index = 0;
    for (;;) {
      const left = 2 * index + 1;
      if (left >= this.#heap.length) return;
      const right = left + 1;
      const child = right < this.#heap.length && earlier(this.#heap[right]!, this.#heap[left]!) < 0 ? right : left;
      if (earlier(last, this.#heap[child]!) <= 0) return;
      this.#heap[index] = this.#heap[child]!;
      this.#heap[child] = last;
      index = child;
    }
  }

  #siftUp(from: number): void {
    let index = from;
    const timer = this.#heap[index]!;
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (earlier(this.#heap[parent]!, timer) <= 0) return;
      this.#heap[index] = this.#heap[parent]!;
      this.#heap[parent] = timer;
      index = parent;
    }
  }
}

const earlier = (a: Timer, b: Timer): number => a.deadlineUs - b.deadlineUs || a.order - b.order;
