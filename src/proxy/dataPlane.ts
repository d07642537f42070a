/**
 * The data plane as the control plane sees it: worker threads that are told what to do and report what became of it.
 * What a worker has to know is kept here too, so that one that is started again knows it at once.
 */
import { Worker } from 'node:worker_threads';
import type { PoolMode } from '../../machines/pool.ts';
import { codeOf, messageOf } from '../errors.ts';
import { threadFile } from '../threads.ts';
import { allocate, figuresOf, giveBackFor, MAX_SLOTS, memoryOfWorker } from './counters.ts';
import type { Figures, SharedMemory } from './counters.ts';
import type { FromWorker, ListenerModel, Model, ToWorker, Weights } from './model.ts';

export type DataPlaneReports = {
  workerReady(index: number): void;
  workerExited(index: number, code: string, message: string): void;
  listenerOpened(id: string, port: number): void;
  listenerFailed(id: string, code: string, message: string): void;
  listenerDrained(id: string): void;
};

/** The launcher keeps the young generation small for the control loop's sake; workers care for throughput instead. */
const YOUNG_GENERATION_MB = 48;

export class DataPlane {
  #reports: DataPlaneReports;
  #memory: SharedMemory = allocate();
  #workers = new Map<number, Worker>();
  #slots = new Map<string, number>();
  #model: Model = { frontends: [], backends: [] };
  #pools = new Map<string, { mode: PoolMode; weights: Weights }>();
  #listeners = new Map<string, ListenerModel>();
  /** Listeners that a worker which has just started is yet to open. */
  #opening = new WeakMap<Worker, Set<string>>();
  /** Workers that still have sessions of a listener which is being drained. */
  #draining = new Map<string, Set<number>>();

  constructor(reports: DataPlaneReports) {
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

  startWorker(index: number): void {
    const workerData = memoryOfWorker(this.#memory, index);
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
      for (const id of this.#draining.keys()) this.#drained(id, index);
      this.#reports.workerExited(index, failure.code, failure.message);
    });
    this.#workers.set(index, worker);
  }

  drainWorker(index: number): void {
    const worker = this.#workers.get(index);
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

  publish(pool: string, mode: PoolMode, weights: Weights): void {
    const known = this.#pools.get(pool)?.weights ?? {};
    this.#pools.set(pool, { mode, weights: { ...known, ...weights } });
    this.#broadcast({ kind: 'weights', pool, mode, weights });
  }

  forgetPool(pool: string): void {
    this.#pools.delete(pool);
  }

  openListener(listener: ListenerModel): void {
    this.#listeners.set(listener.id, listener);
    this.#broadcast({ kind: 'listen', listener });
  }

  drainListener(id: string): void {
    this.#listeners.delete(id);
    this.#draining.set(id, new Set(this.#workers.keys()));
    if (this.#workers.size === 0) this.#reports.listenerDrained(id);
    this.#broadcast({ kind: 'drainListener', id });
  }

  closeListener(id: string): void {
    this.#listeners.delete(id);
    this.#broadcast({ kind: 'closeListener', id });
  }

  shutdownSessions(pool: string, server: string): void {
    this.#broadcast({ kind: 'shutdownSessions', pool, server });
  }

  /** Ends all threads at once, whatever they do. */
  async terminate(): Promise<void> {
    await Promise.all([...this.#workers.values()].map((worker) => worker.terminate()));
  }

  #hear(index: number, worker: Worker, message: FromWorker): void {
    switch (message.kind) {
      case 'ready':
        this.#tell(worker, { kind: 'configure', model: this.#model });
        for (const [pool, { mode, weights }] of this.#pools)
          this.#tell(worker, { kind: 'weights', pool, mode, weights });
        for (const listener of this.#listeners.values()) this.#tell(worker, { kind: 'listen', listener });
        // It is ready when it serves.
        this.#opening.set(worker, new Set(this.#listeners.keys()));
        this.#readyIfOpen(index, worker);
        return;
      case 'listening':
        this.#settled(index, worker, message.id);
        this.#reports.listenerOpened(message.id, message.port);
        return;
      case 'listenFailed':
        this.#settled(index, worker, message.id);
        this.#reports.listenerFailed(message.id, message.code, message.message);
        return;
      case 'listenerDrained':
        this.#drained(message.id, index);
        return;
      case 'freed':
        for (const [other, peer] of this.#workers) {
          if (other !== index) this.#tell(peer, { kind: 'freed', pool: message.pool });
        }
    }
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
