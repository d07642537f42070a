/**
 * Weighted round robin, smooth at any size: each server's turns lie evenly in a time that passes by one with every
 * server's full weight, and the earliest turn is next. A heap finds it: a choice among a thousand costs what ten
 * comparisons do. 5, 1, 1 come as a a a b a a c.
 */
import type { RequestFacts } from './facts.ts';
import { isFree } from './candidate.ts';
import type { Balancer, Candidate } from './candidate.ts';

/** Turns that are skipped at most so that a worker starts elsewhere than the others. */
const MAX_SKIPPED_TURNS = 4096;

type Entry<C> = { candidate: C; weight: number; dueAt: number; position: number };

const isBefore = <C>(a: Entry<C>, b: Entry<C>): boolean =>
  a.dueAt < b.dueAt || (a.dueAt === b.dueAt && a.position < b.position);

export class RoundRobin<C extends Candidate> implements Balancer<C> {
  readonly #stagger: number;
  #entries = new Map<C, Entry<C>>();
  #heap: Entry<C>[] = [];
  /** The turn that was taken last. */
  #now = 0;
  /** Servers out of the heap during one choice. */
  #passedOver: Entry<C>[] = [];

  /** `stagger` from 0 to below 1: how far into the round it starts, so that workers don't all begin with one server. */
  constructor(stagger: number) {
    this.#stagger = stagger;
  }

  update(candidates: readonly C[]): void {
    const before = this.#entries;
    const start = this.#now;
    this.#now = 0;
    this.#entries = new Map();
    candidates.forEach((candidate, position) => {
      const { weight } = candidate;
      const known = before.get(candidate);
      // What is left of a turn grows or shrinks with it; one that comes back starts level with the others.
      const left = known
        ? ((known.dueAt - start) * known.weight) / weight
        : // First turns are spread over the time of a turn, so that those of one weight don't come all at once.
          (((position + 0.5) / candidates.length + (before.size > 0 ? this.#stagger : 0)) % 1) / weight;
      this.#entries.set(candidate, { candidate, weight, dueAt: Math.max(0, left), position });
    });
    this.#heap = [...this.#entries.values()].sort((a, b) => (isBefore(a, b) ? -1 : 1));
    if (before.size === 0) this.#skipTurns();
  }

  choose(_facts: RequestFacts, passOver: ReadonlySet<C>): C | null {
    const passed = this.#passedOver;
    let chosen: C | null = null;
    for (;;) {
      const first = this.#heap[0];
      if (!first) break;
      if (isFree(first.candidate, passOver)) {
        chosen = first.candidate;
        // One that failed another request may be behind.
        this.#now = Math.max(this.#now, first.dueAt);
        first.dueAt += 1 / first.weight;
        this.#sink();
        break;
      }
      passed.push(first);
      this.#removeFirst();
    }
    for (const entry of passed) {
      // The turn of a full server passes; that of one which failed this request only is still its own.
      if (chosen && !passOver.has(entry.candidate)) entry.dueAt = this.#now + 1 / entry.weight;
      this.#insert(entry);
    }
    passed.length = 0;
    return chosen;
  }

  #skipTurns(): void {
    let sum = 0;
    let least = Infinity;
    for (const { weight } of this.#heap) {
      sum += weight;
      least = Math.min(least, weight);
    }
    const turns = Math.min(MAX_SKIPPED_TURNS, Math.floor((this.#stagger * sum) / least));
    for (let turn = 0; turn < turns; turn++) {
      const first = this.#heap[0]!;
      this.#now = first.dueAt;
      first.dueAt += 1 / first.weight;
      this.#sink();
    }
  }

  #insert(entry: Entry<C>): void {
    const heap = this.#heap;
    let index = heap.length;
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (!isBefore(entry, heap[parent]!)) break;
      heap[index] = heap[parent]!;
      index = parent;
    }
    heap[index] = entry;
  }

  #removeFirst(): void {
    const last = this.#heap.pop()!;
    if (this.#heap.length === 0) return;
    this.#heap[0] = last;
    this.#sink();
  }

  /** The first may be due later than others now. */
  #sink(): void {
    const heap = this.#heap;
    const entry = heap[0]!;
    let index = 0;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, entry)) break;
      heap[index] = heap[child]!;
      index = child;
    }
    heap[index] = entry;
  }
}
