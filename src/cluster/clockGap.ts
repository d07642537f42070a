/**
 * How far another node's clock is from ours, from messages that carry its time. A message needs time, so each tells
 * only a bound: of many the least delayed is the best.
 */

/** Heartbeats of half a minute: a clock that is set, or drifts, shows within that time. */
const KEPT = 30;

export class ClockGap {
  #observed: number[] = [];

  /** Our time when it was heard, less its time when it was said: the gap and the way. */
  observe(us: number): void {
    this.#observed.push(us);
    if (this.#observed.length > KEPT) this.#observed.shift();
  }

  /** It is behind us by at most this; below 0, it is ahead by at least that. */
  get behindUs(): number {
    return Math.min(...this.#observed);
  }
}
