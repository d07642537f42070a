/**
 * Figures of the data plane, in memory that all threads share. Gauges are exact across workers (Atomics), since limits
 * and least connections decide by them; counters are each worker's own, and summed when somebody asks.
 */
import { allocateHistograms } from './histograms.ts';
import type { HistogramMemory } from './histograms.ts';

/** Servers, pools and frontends that one node can count over its life: 12 bytes each, and 316 in each worker. */
export const MAX_SLOTS = 32_768;

/** `active`: connections, or requests under way. `queued`: who waits for a place. `idle`: server connections kept. */
const GAUGE_NAMES = ['active', 'queued', 'idle'] as const;

/** Those of every request come first: they share two cache lines. */
const COUNTER_NAMES = [
  'requests',
  'sessions',
  'bytesIn',
  'bytesOut',
  'status2xx',
  'status3xx',
  'status4xx',
  'status5xx',
  'status1xx',
  'statusOther',
  /** Server connections used again, and made anew. */
  'reuses',
  'connects',
  /** Client connections accepted, whether or not they became sessions. */
  'connections',
  'http2Requests',
  'connectFailures',
  'responseFailures',
  'retries',
  'redispatches',
  'clientAborts',
  'serverAborts',
  'deniedConnections',
  'deniedRequests',
  'rateLimited',
  'requestErrors',
  'internalErrors',
  /** Answers that rules made: redirects, returns. */
  'intercepted',
  'queueTimeouts',
  'tlsHandshakes',
  'tlsResumptions',
  'tlsFailures',
  'compressionIn',
  'compressionOut',
  'compressionBypassed',
  'compressedResponses',
  /** Failures that were seen in live traffic. */
  'observedFailures',
] as const;

/** The most that a gauge has ever been; kept by the gauge itself. */
const MAXIMUM_NAMES = ['maxActive', 'maxQueued'] as const;

type GaugeName = (typeof GAUGE_NAMES)[number];
type CounterName = (typeof COUNTER_NAMES)[number];
export type Figures = Record<GaugeName | CounterName | (typeof MAXIMUM_NAMES)[number], number>;

/** Numbers of their own type, so that a counter can't be mistaken for a slot or an amount. */
export type Gauge = number & { readonly kind: 'gauge' };
export type Counter = number & { readonly kind: 'counter' };

const numbered = <N extends string, T>(names: readonly N[]): Readonly<Record<N, T>> =>
  Object.freeze(Object.fromEntries(names.map((name, index) => [name, index]))) as unknown as Record<N, T>;

export const GAUGE = numbered<GaugeName, Gauge>(GAUGE_NAMES);
export const COUNTER = numbered<CounterName, Counter>(COUNTER_NAMES);

const GAUGES = GAUGE_NAMES.length;
const MAXIMA = MAXIMUM_NAMES.length;
const FIRST_MAXIMUM = COUNTER_NAMES.length;
/** Doubles of one slot in one worker. */
const STRIDE = FIRST_MAXIMUM + MAXIMA;

/** The counter of a status' class. */
export const statusCounter = (status: number): Counter => {
  if (status < 200) return status < 100 ? COUNTER.statusOther : COUNTER.status1xx;
  if (status < 300) return COUNTER.status2xx;
  if (status < 400) return COUNTER.status3xx;
  if (status < 500) return COUNTER.status4xx;
  return status < 600 ? COUNTER.status5xx : COUNTER.statusOther;
};

/** `held` is what one worker has added to the gauges: given back for it when it dies. */
export type WorkerMemory = {
  gauges: SharedArrayBuffer;
  held: SharedArrayBuffer;
  counters: SharedArrayBuffer;
  histograms: HistogramMemory;
};

export type SharedMemory = { gauges: SharedArrayBuffer; workers: Map<number, WorkerMemory> };

export const allocate = (): SharedMemory => ({
  gauges: new SharedArrayBuffer(MAX_SLOTS * GAUGES * Int32Array.BYTES_PER_ELEMENT),
  workers: new Map(),
});

/** The memory of one worker: the same one again when it is started again, so that its counters go on. */
export const memoryOfWorker = (memory: SharedMemory, index: number): WorkerMemory => {
  let worker = memory.workers.get(index);
  if (!worker) {
    worker = {
      gauges: memory.gauges,
      held: new SharedArrayBuffer(MAX_SLOTS * GAUGES * Int32Array.BYTES_PER_ELEMENT),
      counters: new SharedArrayBuffer(MAX_SLOTS * STRIDE * Float64Array.BYTES_PER_ELEMENT),
      histograms: allocateHistograms(MAX_SLOTS),
    };
    memory.workers.set(index, worker);
  }
  return worker;
};

/** What a worker that ended still held would be missing for ever, and shut servers with a limit. */
export const giveBackFor = (memory: SharedMemory, index: number): void => {
  const worker = memory.workers.get(index);
  if (!worker) return;
  const gauges = new Int32Array(memory.gauges);
  const held = new Int32Array(worker.held);
  held.forEach((count, at) => {
    if (count === 0) return;
    Atomics.sub(gauges, at, count);
    held[at] = 0;
  });
};

/** One worker's view. */
export class Counters {
  #gauges: Int32Array;
  #held: Int32Array;
  #counters: Float64Array;

  constructor(memory: WorkerMemory) {
    this.#gauges = new Int32Array(memory.gauges);
    this.#held = new Int32Array(memory.held);
    this.#counters = new Float64Array(memory.counters);
  }

  add(slot: number, counter: Counter, amount = 1): void {
    const index = slot * STRIDE + counter;
    this.#counters[index] = this.#counters[index]! + amount;
  }

  gauge(slot: number, gauge: Gauge): number {
    // Aligned and whole, as Atomics would read it, at a tenth of the cost; whoever takes a place looks again.
    return this.#gauges[slot * GAUGES + gauge]!;
  }

  change(slot: number, gauge: Gauge, by: 1 | -1): void {
    const index = slot * GAUGES + gauge;
    const before = Atomics.add(this.#gauges, index, by);
    this.#held[index] = this.#held[index]! + by;
    if (by === 1) this.#reached(slot, gauge, before + 1);
  }

  /** Takes one of `limit` places, over all workers; 0 is no limit. False when all are taken. */
  take(slot: number, limit: number): boolean {
    if (limit === 0) {
      this.change(slot, GAUGE.active, 1);
      return true;
    }
    const index = slot * GAUGES + GAUGE.active;
    for (;;) {
      const active = Atomics.load(this.#gauges, index);
      if (active >= limit) return false;
      if (Atomics.compareExchange(this.#gauges, index, active, active + 1) !== active) continue;
      this.#held[index] = this.#held[index]! + 1;
      this.#reached(slot, GAUGE.active, active + 1);
      return true;
    }
  }

  /** Whoever raises a gauge sees what it raised it to, so the greatest of all workers' is the greatest ever. */
  #reached(slot: number, gauge: Gauge, value: number): void {
    if (gauge >= MAXIMA) return;
    const index = slot * STRIDE + FIRST_MAXIMUM + gauge;
    if (value > this.#counters[index]!) this.#counters[index] = value;
  }
}

/** The sum over all workers. */
export const figuresOf = (memory: SharedMemory, slot: number): Figures => {
  const gauges = new Int32Array(memory.gauges, slot * GAUGES * Int32Array.BYTES_PER_ELEMENT, GAUGES);
  const figures = {} as Figures;
  GAUGE_NAMES.forEach((name, index) => (figures[name] = Atomics.load(gauges, index)));
  for (const name of COUNTER_NAMES) figures[name] = 0;
  for (const name of MAXIMUM_NAMES) figures[name] = 0;
  for (const { counters } of memory.workers.values()) {
    const own = new Float64Array(counters, slot * STRIDE * Float64Array.BYTES_PER_ELEMENT, STRIDE);
    COUNTER_NAMES.forEach((name, index) => (figures[name] += own[index]!));
    MAXIMUM_NAMES.forEach((name, index) => (figures[name] = Math.max(figures[name], own[FIRST_MAXIMUM + index]!)));
  }
  return figures;
};

/** Per second: what a slot does now, and the most that it has done. */
export type Rate = { now: number; max: number };
export type Rates = Record<(typeof RATED)[number], Rate> & {
  /** When a session was last seen to begin, in ms of the sampler's clock; 0: never. */
  lastSessionMs: number;
};

const RATED = ['sessions', 'requests', 'connections'] as const;
const RATED_AT: readonly number[] = RATED.map((name) => COUNTER[name]);
/** Of each: its sum when it was last looked at, and both rates; then the time of the last session. */
const RATE_STRIDE = 3 * RATED.length + 1;

/**
 * How often things happen, from counters that are looked at once a second: workers need no clock to count, and rates are
 * those of all workers together. 10,000 servers on two workers take a millisecond.
 */
export class RateSampler {
  #memory: SharedMemory;
  #values = new Float64Array(MAX_SLOTS * RATE_STRIDE);
  #sampledMs: number | null = null;

  constructor(memory: SharedMemory) {
    this.#memory = memory;
  }

  /** Looks at the first `slots`. */
  sample(slots: number, nowMs: number): void {
    const seconds = this.#sampledMs === null ? 0 : (nowMs - this.#sampledMs) / 1000;
    this.#sampledMs = nowMs;
    const workers = [...this.#memory.workers.values()].map(({ counters }) => new Float64Array(counters));
    const values = this.#values;
    for (let slot = 0; slot < slots; slot++) {
      for (let index = 0; index < RATED.length; index++) {
        let sum = 0;
        for (let worker = 0; worker < workers.length; worker++)
          sum += workers[worker]![slot * STRIDE + RATED_AT[index]!]!;
        const at = slot * RATE_STRIDE + 3 * index;
        const more = sum - values[at]!;
        if (more === 0 && values[at + 1] === 0) continue;
        values[at] = sum;
        if (index === 0 && more > 0) values[(slot + 1) * RATE_STRIDE - 1] = nowMs;
        if (seconds <= 0) continue;
        values[at + 1] = more / seconds;
        if (more / seconds > values[at + 2]!) values[at + 2] = more / seconds;
      }
    }
  }

  of(slot: number): Rates {
    const start = slot * RATE_STRIDE;
    const rates = { lastSessionMs: this.#values[start + RATE_STRIDE - 1]! } as Rates;
    RATED.forEach((name, index) => {
      const at = start + 3 * index;
      rates[name] = { now: this.#values[at + 1]!, max: this.#values[at + 2]! };
    });
    return rates;
  }
}
