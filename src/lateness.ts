/** How late the control loop delivers its timers: a histogram with fixed buckets, cheap enough for every timer. */

/** Upper bounds in µs. A loop that is a millisecond late is healthy: Node's timers have that grain. */
export const LATENESS_BUCKETS_US = [500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 250_000, 1_000_000];

export class Lateness {
  readonly counts = new Float64Array(LATENESS_BUCKETS_US.length + 1);
  count = 0;
  sumUs = 0;
  maxUs = 0;

  observe(lateUs: number): void {
    this.count++;
    this.sumUs += lateUs;
    if (lateUs > this.maxUs) this.maxUs = lateUs;
    let bucket = 0;
    while (bucket < LATENESS_BUCKETS_US.length && lateUs > LATENESS_BUCKETS_US[bucket]!) bucket++;
    this.counts[bucket]!++;
  }

  /** The upper bound of the bucket that holds the quantile, in µs. */
  quantileUs(quantile: number): number {
    let left = this.count * quantile;
    for (let bucket = 0; bucket < LATENESS_BUCKETS_US.length; bucket++) {
      left -= this.counts[bucket]!;
      if (left <= 0) return Math.min(LATENESS_BUCKETS_US[bucket]!, this.maxUs);
    }
    return this.maxUs;
  }
}
