/**
 * Who waits for a place at a backend, in one worker: each for one server, whose queue it is in, or for any. The gauges
 * `queued`, of the server or of the pool, tell all workers of it.
 */
import type { TimerHandle, TimerMaker } from '../net/timers.ts';
import { COUNTER, GAUGE } from './counters.ts';
import type { Counters } from './counters.ts';
import type { RequestFacts } from './facts.ts';
import type { Place, Server } from './server.ts';
import type { Brought } from './stickiness.ts';

/** Places freed by other workers are told by message; this catches the one that got lost between check and wait. */
const POLL_MS = 20;

export type Wish = {
  readonly facts: RequestFacts;
  readonly excluded: ReadonlySet<Server>;
  readonly brought: Brought<Server> | null;
  /** The one server that it waits for, if so. */
  wanted: Server | null;
  readonly got: (place: Place) => void;
};

/** `number`: lower came earlier. */
export type Waiter = Wish & { readonly number: number; readonly timer: TimerHandle };

export class PlaceQueue {
  /** Those who wait for any server. */
  readonly forAny = new Set<Waiter>();
  readonly #slot: number;
  readonly #counters: Counters;
  readonly #timers: TimerMaker;
  readonly #poll: TimerHandle;
  #size = 0;
  #lastNumber = 0;

  /** `slot` is the pool's; `wake` is called now and then while somebody waits. */
  constructor(slot: number, counters: Counters, timers: TimerMaker, wake: () => void) {
    this.#slot = slot;
    this.#counters = counters;
    this.#timers = timers;
    this.#poll = timers.make(() => {
      wake();
      if (this.#size > 0) this.#poll.set(POLL_MS);
    });
  }

  /** All who wait in this worker. */
  get size(): number {
    return this.#size;
  }

  /** Who waits in all workers for any server, or for this one. */
  countFor(server: Server | null): number {
    return this.#counters.gauge(this.#slotOf(server), GAUGE.queued);
  }

  add(wish: Wish, timeoutMs: number, timedOut: () => void): Waiter {
    const timer = this.#timers.make(() => {
      this.remove(waiter);
      this.#counters.add(this.#slot, COUNTER.queueTimeouts);
      if (waiter.wanted) this.#counters.add(waiter.wanted.model.slot, COUNTER.queueTimeouts);
      timedOut();
    });
    const waiter: Waiter = { ...wish, number: ++this.#lastNumber, timer };
    timer.set(timeoutMs);
    this.#enqueue(waiter);
    if (this.#size === 1) this.#poll.set(POLL_MS);
    return waiter;
  }

  has(waiter: Waiter): boolean {
    return this.#setOf(waiter).has(waiter);
  }

  remove(waiter: Waiter): void {
    if (!this.#dequeue(waiter)) return;
    waiter.timer.clear();
    if (this.#size === 0) this.#poll.clear();
  }

  /** This server can't be had any more: who waited for it waits for any. */
  release(server: Server): void {
    for (const waiter of server.waiters) {
      this.#dequeue(waiter);
      waiter.wanted = null;
      this.#enqueue(waiter);
    }
  }

  /** Who has waited longest of those who could use this server. */
  oldestFor(server: Server, isFor: (waiter: Waiter, server: Server) => boolean): Waiter | null {
    let own: Waiter | null = null;
    for (const waiter of server.waiters) {
      own = waiter;
      break;
    }
    for (const waiter of this.forAny) {
      if (own && own.number < waiter.number) return own;
      if (isFor(waiter, server)) return waiter;
    }
    return own;
  }

  #setOf({ wanted }: Waiter): Set<Waiter> {
    return wanted ? wanted.waiters : this.forAny;
  }

  #slotOf(server: Server | null): number {
    return server ? server.model.slot : this.#slot;
  }

  #enqueue(waiter: Waiter): void {
    this.#setOf(waiter).add(waiter);
    this.#size++;
    this.#counters.change(this.#slotOf(waiter.wanted), GAUGE.queued, 1);
  }

  /** Whether it was still waiting. */
  #dequeue(waiter: Waiter): boolean {
    if (!this.#setOf(waiter).delete(waiter)) return false;
    this.#size--;
    this.#counters.change(this.#slotOf(waiter.wanted), GAUGE.queued, -1);
    return true;
  }
}
