/** What the courier has done since the start, and how long decisions took to their place in the cluster log. */

/** Upper bounds in ms: a stream of three servers on one site answers within a few, one over the sea in hundreds. */
export const DELAY_BUCKETS_MS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 30_000];
/** Quantiles are of the last decisions: enough for a p99, soon forgotten. */
const RECENT = 1_000;

export type DelayHistogram = { counts: number[]; count: number; sumMs: number };

export class LogFigures {
  records = 0;
  messages = 0;
  bytes = 0;
  readonly delay: DelayHistogram = { counts: DELAY_BUCKETS_MS.map(() => 0).concat(0), count: 0, sumMs: 0 };
  readonly #recentMs: number[] = [];

  shipped(rows: number, bytes: number): void {
    this.records += rows;
    this.messages++;
    this.bytes += bytes;
  }

  observe(delayMs: number): void {
    // Two clocks are read: one that is set back must not make a decision arrive before it was made.
    const ms = Math.max(0, delayMs);
    const bucket = DELAY_BUCKETS_MS.findIndex((bound) => ms <= bound);
    this.delay.counts[bucket === -1 ? DELAY_BUCKETS_MS.length : bucket]!++;
    this.#recentMs[this.delay.count % RECENT] = ms;
    this.delay.count++;
    this.delay.sumMs += ms;
  }

  quantiles(): { p50: number; p99: number } | null {
    if (this.#recentMs.length === 0) return null;
    const sorted = this.#recentMs.toSorted((a, b) => a - b);
    const at = (quantile: number) =>
      Math.round(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * quantile))]! * 10) / 10;
    return { p50: at(0.5), p99: at(0.99) };
  }
}
