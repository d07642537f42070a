/**
 * Figures of the data plane, in memory that all threads share. Gauges are exact across workers (Atomics), since limits
 * and least connections decide by them; counters are each worker's own, and summed when somebody asks.
 */

/** Servers and frontends that one node can count over its life; 64 bytes each and worker. */
export const MAX_SLOTS = 32_768;

const GAUGES = ['active', 'queued'] as const;
const COUNTERS = [
  'sessions',
  'requests',
  'status1xx',
  'status2xx',
  'status3xx',
  'status4xx',
  'status5xx',
  'connectFailures',
  'responseFailures',
  'retries',
  'bytesIn',
  'bytesOut',
] as const;

export type Gauge = (typeof GAUGES)[number];
export type Counter = (typeof COUNTERS)[number];
export type Figures = Record<Gauge | Counter, number>;

/** `held` is what one worker has added to the gauges: given back for it when it dies. */
export type WorkerMemory = { gauges: SharedArrayBuffer; held: SharedArrayBuffer; counters: SharedArrayBuffer };

export type SharedMemory = { gauges: SharedArrayBuffer; workers: Map<number, WorkerMemory> };

export const allocate = (): SharedMemory => ({
  gauges: new SharedArrayBuffer(MAX_SLOTS * GAUGES.length * 4),
  workers: new Map(),
});

/** The memory of one worker: the same one again when it is started again, so that its counters go on. */
export const memoryOfWorker = (memory: SharedMemory, index: number): WorkerMemory => {
  let worker = memory.workers.get(index);
  if (!worker) {
    worker = {
      gauges: memory.gauges,
      held: new SharedArrayBuffer(MAX_SLOTS * GAUGES.length * 4),
      counters: new SharedArrayBuffer(MAX_SLOTS * COUNTERS.length * 8),
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

const gaugeIndex = (slot: number, gauge: Gauge) => slot * GAUGES.length + GAUGES.indexOf(gauge);
const counterIndex = (slot: number, counter: Counter) => slot * COUNTERS.length + COUNTERS.indexOf(counter);

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
    const index = counterIndex(slot, counter);
    this.#counters[index] = this.#counters[index]! + amount;
  }

  gauge(slot: number, gauge: Gauge): number {
    return Atomics.load(this.#gauges, gaugeIndex(slot, gauge));
  }

  change(slot: number, gauge: Gauge, by: 1 | -1): void {
    const index = gaugeIndex(slot, gauge);
    Atomics.add(this.#gauges, index, by);
    this.#held[index] = this.#held[index]! + by;
  }

  /** Takes one of `limit` places, over all workers; 0 is no limit. False when all are taken. */
  take(slot: number, limit: number): boolean {
    const index = gaugeIndex(slot, 'active');
    if (limit === 0) {
      this.change(slot, 'active', 1);
      return true;
    }
    for (;;) {
      const active = Atomics.load(this.#gauges, index);
      if (active >= limit) return false;
      if (Atomics.compareExchange(this.#gauges, index, active, active + 1) !== active) continue;
      this.#held[index] = this.#held[index]! + 1;
      return true;
    }
  }
}

/** The sum over all workers. */
export const figuresOf = (memory: SharedMemory, slot: number): Figures => {
  const gauges = new Int32Array(memory.gauges);
  const figures = {} as Figures;
  for (const gauge of GAUGES) figures[gauge] = Atomics.load(gauges, gaugeIndex(slot, gauge));
  for (const counter of COUNTERS) figures[counter] = 0;
  for (const { counters } of memory.workers.values()) {
    const own = new Float64Array(counters, slot * COUNTERS.length * 8, COUNTERS.length);
    COUNTERS.forEach((counter, index) => (figures[counter] += own[index]!));
  }
  return figures;
};
