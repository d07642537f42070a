/**
 * How long things take, in memory that all threads share: one histogram a slot and kind in each worker, merged when
 * somebody asks. The buckets are log-linear: eight to an octave, so that whatever falls into one is known to 6 %. Between
 * 8 µs (below, clocks and scheduling are the measure) and 67 s they are 168.
 *
 * A histogram is 704 bytes and is made at its first observation: 10,000 servers that one worker has used, three kinds
 * each, are 20 MiB in that worker. The directory, which finds them, is 512 KiB.
 */

/** queue: wait for a place. connect: to a server, TLS included. response: from there to the head of its answer. */
const KIND_NAMES = ['queue', 'connect', 'response', 'total'] as const;

export type LatencyKind = (typeof KIND_NAMES)[number];
/** A number of its own type, so that it can't be mistaken for a slot or a time. */
export type Kind = number & { readonly kind: 'latency' };

export const LATENCY = Object.freeze(
  Object.fromEntries(KIND_NAMES.map((name, index) => [name, index])),
) as unknown as Readonly<Record<LatencyKind, Kind>>;

const KINDS = KIND_NAMES.length;

/** 8 µs are one unit; below eight units buckets are one unit wide, above they double in width with each octave. */
const UNIT_SHIFT = 3;
const SUB_SHIFT = 3;
const SUBS = 1 << SUB_SHIFT;
/** 2^26 µs are 67 s: what takes longer is counted as that, its sum and maximum are exact. */
const TOP_SHIFT = 26;
const TOP_US = 2 ** TOP_SHIFT;
const BUCKETS = (TOP_SHIFT - UNIT_SHIFT - SUB_SHIFT + 1) * SUBS;

/** Doubles before the buckets: count, sum, maximum, recent average. */
const HEADER = 4;
const BYTES = HEADER * Float64Array.BYTES_PER_ELEMENT + BUCKETS * Uint32Array.BYTES_PER_ELEMENT;
const DOUBLES = BYTES / Float64Array.BYTES_PER_ELEMENT;
const WORDS = BYTES / Uint32Array.BYTES_PER_ELEMENT;
const FIRST_BUCKET = (HEADER * Float64Array.BYTES_PER_ELEMENT) / Uint32Array.BYTES_PER_ELEMENT;
/** Histograms that the memory grows by. */
const GROW_BY = 64;

/** Observations that the recent average looks back on, as HAProxy's does. */
const RECENT = 512;
/** What a bucket holds before it begins anew: at 100,000 a second half a day. */
const BUCKET_LIMIT = 2 ** 32;
/** Buckets that have begun anew are noted by their place, once each time: 4 × 10^12 observations at the least. */
const MAX_CARRIES = 1_024;

/**
 * `directory`: number of the histogram of a slot and kind; 0 is none. `pages`: the histograms. `book`: how many there
 * are, how many carries, and their places.
 */
export type HistogramMemory = { directory: SharedArrayBuffer; pages: SharedArrayBuffer; book: SharedArrayBuffer };

const USED = 0;
const CARRIED = 1;
const FIRST_CARRY = 2;

export const allocateHistograms = (slots: number): HistogramMemory => ({
  directory: new SharedArrayBuffer(slots * KINDS * Int32Array.BYTES_PER_ELEMENT),
  // Addresses for each slot and kind are reserved; they become memory as it grows.
  pages: new SharedArrayBuffer(0, { maxByteLength: Math.ceil((slots * KINDS + 1) / GROW_BY) * GROW_BY * BYTES }),
  book: new SharedArrayBuffer((FIRST_CARRY + MAX_CARRIES) * Uint32Array.BYTES_PER_ELEMENT),
});

const bucketOf = (us: number): number => {
  const units = us >>> UNIT_SHIFT;
  if (units < SUBS) return units;
  const octave = 31 - Math.clz32(units) - SUB_SHIFT;
  return (octave << SUB_SHIFT) + (units >>> octave);
};

/** The lower bound of a bucket in µs; of the one behind the last, the upper bound of the last. */
const boundOf = (bucket: number): number => {
  if (bucket < 2 * SUBS) return bucket << UNIT_SHIFT;
  const octave = (bucket >>> SUB_SHIFT) - 1;
  return ((bucket & (SUBS - 1)) + SUBS) * 2 ** (octave + UNIT_SHIFT);
};

/** One worker's view. */
export class Histograms {
  #memory: HistogramMemory;
  #directory: Int32Array;
  #words: Uint32Array;
  #doubles: Float64Array;
  #book: Uint32Array;

  constructor(memory: HistogramMemory) {
    this.#memory = memory;
    this.#directory = new Int32Array(memory.directory);
    this.#book = new Uint32Array(memory.book);
    // Views of a fixed length: those that follow the buffer's growth are slower.
    this.#words = new Uint32Array(memory.pages, 0, memory.pages.byteLength / Uint32Array.BYTES_PER_ELEMENT);
    this.#doubles = new Float64Array(memory.pages, 0, memory.pages.byteLength / Float64Array.BYTES_PER_ELEMENT);
  }

  observe(slot: number, kind: Kind, microseconds: number): void {
    let at = this.#directory[slot * KINDS + kind]!;
    if (at === 0) at = this.#make(slot * KINDS + kind);
    const us = microseconds > 0 ? microseconds : 0;
    const doubles = this.#doubles;
    const head = at * DOUBLES;
    const count = doubles[head]! + 1;
    doubles[head] = count;
    doubles[head + 1] = doubles[head + 1]! + us;
    if (us > doubles[head + 2]!) doubles[head + 2] = us;
    const recent = doubles[head + 3]!;
    doubles[head + 3] = recent + (us - recent) / (count < RECENT ? count : RECENT);
    const place = at * WORDS + FIRST_BUCKET + (us < TOP_US ? bucketOf(us) : BUCKETS - 1);
    const next = this.#words[place]! + 1;
    this.#words[place] = next;
    if (next === BUCKET_LIMIT) this.#carry(place);
  }

  #make(index: number): number {
    // Number 0 means none, and is never one.
    const at = this.#book[USED]! + 1;
    const { pages } = this.#memory;
    if ((at + 1) * BYTES > pages.byteLength) {
      pages.grow(pages.byteLength + GROW_BY * BYTES);
      this.#words = new Uint32Array(pages, 0, pages.byteLength / Uint32Array.BYTES_PER_ELEMENT);
      this.#doubles = new Float64Array(pages, 0, pages.byteLength / Float64Array.BYTES_PER_ELEMENT);
    }
    this.#book[USED] = at;
    Atomics.store(this.#directory, index, at);
    return at;
  }

  #carry(place: number): void {
    const carried = this.#book[CARRIED]!;
    if (carried >= MAX_CARRIES) return;
    this.#book[FIRST_CARRY + carried] = place;
    this.#book[CARRIED] = carried + 1;
  }
}

/** One latency over all workers. Times in µs. */
export class Latency {
  count = 0;
  sumUs = 0;
  maxUs = 0;
  /** Average of the latest 512 of each worker, weighted by what they have seen. */
  recentUs = 0;
  #sources: [HistogramMemory, number][] = [];
  #merged: Float64Array | null = null;

  add(memory: HistogramMemory, at: number): void {
    const [count, sumUs, maxUs, recentUs] = new Float64Array(memory.pages, at * BYTES, HEADER) as unknown as number[];
    if (count === 0) return;
    this.recentUs = (this.recentUs * this.count + recentUs! * count!) / (this.count + count!);
    this.count += count!;
    this.sumUs += sumUs!;
    this.maxUs = Math.max(this.maxUs, maxUs!);
    this.#sources.push([memory, at]);
  }

  /** Merged at first use: most askers want no more than the sum. */
  get #buckets(): Float64Array {
    if (this.#merged) return this.#merged;
    const merged = new Float64Array(BUCKETS);
    for (const [memory, at] of this.#sources) {
      const first = at * WORDS + FIRST_BUCKET;
      const words = new Uint32Array(memory.pages, first * Uint32Array.BYTES_PER_ELEMENT, BUCKETS);
      for (let bucket = 0; bucket < BUCKETS; bucket++) merged[bucket]! += words[bucket]!;
      const book = new Uint32Array(memory.book);
      for (let carry = 0; carry < book[CARRIED]!; carry++) {
        const bucket = book[FIRST_CARRY + carry]! - first;
        if (bucket >= 0 && bucket < BUCKETS) merged[bucket]! += BUCKET_LIMIT;
      }
    }
    this.#merged = merged;
    return merged;
  }

  /** The time that this share (0–1) of all stayed below, to 6 %. */
  quantileUs(quantile: number): number {
    const buckets = this.#buckets;
    const wanted = buckets.reduce((sum, count) => sum + count, 0) * quantile;
    let seen = 0;
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      const inside = buckets[bucket]!;
      if (inside > 0 && seen + inside >= wanted) {
        const lower = boundOf(bucket);
        const within = lower + ((boundOf(bucket + 1) - lower) * (wanted - seen)) / inside;
        return Math.min(within, this.maxUs);
      }
      seen += inside;
    }
    return this.maxUs;
  }

  /** How many stayed below each of these bounds; exact, as they are bounds of buckets. */
  cumulative(boundsUs: readonly number[]): number[] {
    const buckets = this.#buckets;
    let bucket = 0;
    let seen = 0;
    return boundsUs.map((boundUs) => {
      while (bucket < BUCKETS && boundOf(bucket + 1) <= boundUs) seen += buckets[bucket++]!;
      return seen;
    });
  }
}

/** Null when nothing was observed. */
export const latencyOf = (memories: Iterable<HistogramMemory>, slot: number, kind: Kind): Latency | null => {
  let latency: Latency | null = null;
  for (const memory of memories) {
    const directory = new Int32Array(memory.directory, (slot * KINDS + kind) * Int32Array.BYTES_PER_ELEMENT, 1);
    const at = Atomics.load(directory, 0);
    if (at === 0) continue;
    latency ??= new Latency();
    latency.add(memory, at);
  }
  return latency;
};
