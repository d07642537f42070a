/**
 * The data plane as the control plane sees it: worker threads that are told what to do and report what became of it.
 * What a worker has to know is kept here too, so that one that is started again knows it at once.
 */
import { randomBytes } from 'node:crypto';
import { setFlagsFromString } from 'node:v8';
import { Worker } from 'node:worker_threads';
import type { PoolMode } from '../../machines/pool.ts';
import { codeOf, messageOf } from '../errors.ts';
import { threadFile } from '../threads.ts';
import { allocateDescriptors, closeDescriptorsOf } from '../net/ownedDescriptors.ts';
import { allocate, figuresOf, giveBackFor, MAX_SLOTS, memoryOfWorker, RateSampler } from './counters.ts';
import type { Figures, Rates, SharedMemory } from './counters.ts';
import { latencyOf } from './histograms.ts';
import type { Kind, Latency } from './histograms.ts';
import { ListeningSockets } from './listeningSockets.ts';
import type { FromWorker, ListenerModel, Model, ToWorker, Weights } from './model.ts';
import { allocateRows } from './observer.ts';
import type { Observation } from './observer.ts';
import type { WorkerData } from './proxyThread.ts';
import { TICKET_KEYS_BYTES } from './tlsContext.ts';

export type DataPlaneReports = {
  workerReady(index: number): void;
  workerExited(index: number, code: string, message: string): void;
  listenerOpened(id: string, port: number): void;
  listenerFailed(id: string, code: string, message: string): void;
  listenerDrained(id: string): void;
  observed(observation: Observation): void;
};

/** What node:tls wants for its own tickets. */
const NODE_TICKET_KEYS_BYTES = 48;

/** The launcher keeps the young generation small for the control loop's sake; workers care for throughput instead. */
const YOUNG_GENERATION_MB = 48;

export class DataPlane {
  #reports: DataPlaneReports;
  #logMemoryOf: (worker: number) => SharedArrayBuffer;
  #memory: SharedMemory = allocate();
  #rates = new RateSampler(this.#memory);
  #rows = allocateRows();
  #sockets = new ListeningSockets();
  #descriptors = new Map<number, SharedArrayBuffer>();
  #workers = new Map<number, Worker>();
  /** Those that know all that they have to, and don't leave. */
  #serving = new Map<number, Worker>();
  #slots = new Map<string, number>();
  #model: Model = { frontends: [], backends: [] };
  #pools = new Map<string, { mode: PoolMode; weights: Weights; draining: string[] }>();
  #listeners = new Map<string, ListenerModel>();
  /** Made at each start: sessions can be taken up at all workers, but not after a restart. */
  #ticketKeys = randomBytes(TICKET_KEYS_BYTES + NODE_TICKET_KEYS_BYTES);
  /** What ids of requests begin with: others at the next start. */
  #epoch = randomBytes(4).toString('hex');
  /** Listeners that a worker which has just started is yet to open. */
  #opening = new WeakMap<Worker, Set<string>>();
  /** Workers that still have sessions of a listener which is being drained. */
  #draining = new Map<string, Set<number>>();

  /** `logMemoryOf`: where each worker writes its access log. */
  constructor(logMemoryOf: (worker: number) => SharedArrayBuffer, reports: DataPlaneReports) {
    this.#logMemoryOf = logMemoryOf;
    this.#reports = reports;
  }

  /** The place of a server's or frontend's figures; the same name keeps it over reloads. */
  slot(name: string): number {
    let slot = this.#slots.get(name);
    if (slot === undefined) {
      slot = this.#slots.size;
      if (slot >= MAX_SLOTS) throw new Error(`more than ${MAX_SLOTS} servers and frontends since the start`);
      this.#slots.set(name, slot);
    }
    return slot;
  }

  figures(name: string): Figures | null {
    const slot = this.#slots.get(name);
    return slot === undefined ? null : figuresOf(this.#memory, slot);
  }

  /** Null before anything was observed. */
  latency(name: string, kind: Kind): Latency | null {
    const slot = this.#slots.get(name);
    if (slot === undefined) return null;
    const memories = [...this.#memory.workers.values()].map(({ histograms }) => histograms);
    return latencyOf(memories, slot, kind);
  }

  /** Rates between the two last calls of this. */
  sampleRates(nowMs: number): void {
    this.#rates.sample(this.#slots.size, nowMs);
  }

  rates(name: string): Rates | null {
    const slot = this.#slots.get(name);
    return slot === undefined ? null : this.#rates.of(slot);
  }

  startWorker(index: number): void {
    const descriptors = this.#descriptors.get(index) ?? allocateDescriptors();
    this.#descriptors.set(index, descriptors);
    const workerData: WorkerData = {
      index,
      memory: memoryOfWorker(this.#memory, index),
      descriptors,
      observedRows: this.#rows,
      log: this.#logMemoryOf(index),
      ticketKeys: this.#ticketKeys,
      epoch: this.#epoch,
    };
    // The launcher's flag, meant for the control loop, would win over the limit below.
    setFlagsFromString('--max-semi-space-size=0');
    const worker = new Worker(threadFile('proxyThread', import.meta.url), {
      workerData,
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB },
    });
    let failure = { code: 'EXITED', message: 'the thread ended' };
    worker.on('message', (message: FromWorker) => this.#hear(index, worker, message));
    worker.on('error', (error: unknown) => (failure = { code: codeOf(error), message: messageOf(error) }));
    worker.on('exit', () => {
      if (this.#workers.get(index) === worker) this.#workers.delete(index);
      giveBackFor(this.#memory, index);
      closeDescriptorsOf(descriptors, this.#sockets.all);
      this.#retire(index);
      for (const id of this.#draining.keys()) this.#drained(id, index);
      this.#reports.workerExited(index, failure.code, failure.message);
    });
    this.#workers.set(index, worker);
  }

  /** Whoever waits at the sockets of a worker that is gone is not to wait until it runs again, if others do. */
  #retire(index: number): void {
    this.#serving.delete(index);
    this.#sockets.release(index);
    const [heir] = this.#serving;
    if (!heir) return;
    for (const listener of this.#listeners.values()) {
      if (!this.#sockets.hasFree(listener.id)) continue;
      const assigned = this.#sockets.assign(listener, heir[0]);
      if ('descriptors' in assigned)
        this.#tell(heir[1], { kind: 'inherit', id: listener.id, descriptors: assigned.descriptors });
    }
  }

  /** All listening sockets, for another process. They stay open here too, until the listeners are drained. */
  get sockets(): Map<string, number[]> {
    return new Map([...this.#listeners.keys()].map((id) => [id, this.#sockets.of(id)]));
  }

  /** Sockets of an earlier process, for listeners that are opened from now on. */
  adopt(sockets: ReadonlyMap<string, number[]>): void {
    this.#sockets.adopt(sockets);
  }

  /** Sockets that no listener has asked for. */
  dropUnclaimed(): void {
    this.#sockets.dropUnclaimed();
  }

  /** Ends traffic without anybody's orders: resolves when all that was under way is over, or the time is up. */
  async drain(timeoutMs: number): Promise<void> {
    for (const id of [...this.#listeners.keys()]) this.drainListener(id);
    const ends = [...this.#workers.values()].map(
      (worker) => new Promise<void>((resolve) => void worker.once('exit', () => resolve())),
    );
    for (const index of [...this.#workers.keys()]) this.drainWorker(index);
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, timeoutMs);
    await Promise.race([Promise.all(ends), promise]);
    clearTimeout(timer);
  }

  drainWorker(index: number): void {
    const worker = this.#workers.get(index);
    this.#retire(index);
    if (worker) this.#tell(worker, { kind: 'drain' });
    else this.#reports.workerExited(index, 'EXITED', 'it was not running');
  }

  /** Ends a worker with whatever it still has. */
  endWorker(index: number): void {
    // Its `exit` is heard where all ends of workers are.
    void this.#workers.get(index)?.terminate();
  }

  configure(model: Model): void {
    this.#model = model;
    this.#broadcast({ kind: 'configure', model });
  }

  publish(pool: string, mode: PoolMode, weights: Weights, draining?: string[]): void {
    const known = this.#pools.get(pool) ?? { weights: {}, draining: [] };
    this.#pools.set(pool, {
      mode,
      weights: { ...known.weights, ...weights },
      draining: draining ?? known.draining,
    });
    this.#broadcast({ kind: 'weights', pool, mode, weights, ...(draining ? { draining } : {}) });
  }

  forgetPool(pool: string): void {
    this.#pools.delete(pool);
  }

  openListener(listener: ListenerModel): void {
    this.#listeners.set(listener.id, listener);
    // Also without a worker: whoever comes waits in the kernel's queue, and what is in the way is found at once.
    const failure = this.#sockets.open(listener);
    if (failure) {
      this.#listeners.delete(listener.id);
      this.#reports.listenerFailed(listener.id, failure.code, failure.message);
      return;
    }
    for (const [index, worker] of this.#serving) this.#tellListener(index, worker, listener);
  }

  drainListener(id: string): void {
    this.#listeners.delete(id);
    this.#draining.set(id, new Set(this.#workers.keys()));
    if (this.#workers.size === 0) this.#reports.listenerDrained(id);
    this.#sockets.forget(id);
    this.#broadcast({ kind: 'drainListener', id });
  }

  closeListener(id: string): void {
    this.#listeners.delete(id);
    this.#sockets.forget(id);
    this.#broadcast({ kind: 'closeListener', id });
  }

  shutdownSessions(pool: string, server: string): void {
    this.#broadcast({ kind: 'shutdownSessions', pool, server });
  }

  /** Ends all threads at once, whatever they do. */
  async terminate(): Promise<void> {
    this.#serving.clear();
    await Promise.all([...this.#workers.values()].map((worker) => worker.terminate()));
    this.#sockets.closeAll();
  }

  #hear(index: number, worker: Worker, message: FromWorker): void {
    switch (message.kind) {
      case 'ready':
        this.#tell(worker, { kind: 'configure', model: this.#model });
        for (const [pool, { mode, weights, draining }] of this.#pools)
          this.#tell(worker, { kind: 'weights', pool, mode, weights, draining });
        this.#serving.set(index, worker);
        // It is ready when it serves.
        this.#opening.set(worker, new Set(this.#listeners.keys()));
        for (const listener of this.#listeners.values()) this.#tellListener(index, worker, listener);
        this.#readyIfOpen(index, worker);
        return;
      case 'listening':
        this.#settled(index, worker, message.id);
        this.#reports.listenerOpened(message.id, this.#sockets.portOf(message.id));
        return;
      case 'listenFailed':
        this.#settled(index, worker, message.id);
        this.#reports.listenerFailed(message.id, message.code, message.message);
        return;
      case 'listenerDrained':
        this.#drained(message.id, index);
        return;
      case 'observed':
        for (const observation of message.observations) this.#reports.observed(observation);
        return;
      case 'freed':
        for (const [other, peer] of this.#workers) {
          if (other !== index) this.#tell(peer, { kind: 'freed', pool: message.pool });
        }
    }
  }

  #tellListener(index: number, worker: Worker, listener: ListenerModel): void {
    const { id } = listener;
    const assigned = this.#sockets.assign(listener, index);
    if ('code' in assigned) {
      this.#settled(index, worker, id);
      this.#reports.listenerFailed(id, assigned.code, assigned.message);
      return;
    }
    const { descriptors, from } = assigned;
    this.#tell(worker, { kind: 'listen', listener, descriptors });
    const giver = from && this.#serving.get(from.worker);
    if (giver) this.#tell(giver, { kind: 'giveAway', id, descriptors: from.descriptors });
  }

  #settled(index: number, worker: Worker, id: string): void {
    if (this.#opening.get(worker)?.delete(id) === true) this.#readyIfOpen(index, worker);
  }

  #readyIfOpen(index: number, worker: Worker): void {
    if (this.#opening.get(worker)?.size !== 0) return;
    this.#opening.delete(worker);
    this.#reports.workerReady(index);
  }

  #drained(id: string, index: number): void {
    const left = this.#draining.get(id);
    if (!left?.delete(index) || left.size > 0) return;
    this.#draining.delete(id);
    this.#reports.listenerDrained(id);
  }

  #broadcast(message: ToWorker): void {
    for (const worker of this.#workers.values()) this.#tell(worker, message);
  }

  #tell(worker: Worker, message: ToWorker): void {
    worker.postMessage(message);
  }
}
