/**
 * What a worker sees of its servers in live traffic, and how much of it the control plane hears. Exchanges are counted
 * in place; a server whose traffic goes well, or that nobody wants observed, costs no message at all.
 *
 * Errors in a row are counted over all workers, in memory that they share: which worker had the error that reaches the
 * limit, and which the success that ends the row, makes no difference (as in HAProxy, whose counter is the process's).
 */
import type { FailureKind, TrafficObserved } from '../../machines/trafficObserver.ts';
import { COUNTER, MAX_SLOTS } from './counters.ts';
import type { Counters } from './counters.ts';

/**
 * Of a backend, null when its traffic isn't observed. `layer4`: only connections count, an error being one that could
 * not be made. `limits`: errors in a row at which something is decided. `intervalMs`: 0 when no rate of errors is asked for.
 */
export type ObserveModel = { layer: 'layer4' | 'layer7'; limits: number[]; intervalMs: number };

type ObservedBackend = {
  name: string;
  observe: ObserveModel | null;
  servers: readonly { name: string; slot: number }[];
};

export type Observation = Omit<TrafficObserved, 'type'> & { pool: string; server: string };

/** From a worker to the control plane. */
export type ObservedMessage = { kind: 'observed'; observations: Observation[] };

export type ObserverHost = {
  say(message: ObservedMessage): void;
  /** A clock that only goes forward, in ms. */
  nowMs(): number;
  /** Calls back once; returns how to prevent it. It must not keep the thread alive. */
  later(ms: number, callback: () => void): () => void;
};

/** An error is told after this, with those that come together with it, unless it reaches a limit. */
const GATHER_MS = 100;
/** While errors go on they are told this often: soon enough to lay the reports of several workers beside each other. */
const REPORT_MS = 1000;
/** A server that reaches its limit again and again is told of at once at first, and no less often than the others later. */
const SHORTEST_GAP_MS = 100;
/** Texts in records stay short. */
const LONGEST_DETAIL = 100;

/** A row of errors is one number, so that it changes in one step: its length in the low half, which row in the high. */
const LENGTH = 0xffff;
const NEXT_ROW = 0x1_0000;

/** For all workers of a node: the row of errors of each slot. */
export const allocateRows = (): SharedArrayBuffer => new SharedArrayBuffer(MAX_SLOTS * Int32Array.BYTES_PER_ELEMENT);

/**
 * HAProxy's rule: 501 and 505 are what a client's request can bring about, every other 5xx tells of the server. Statuses
 * that don't exist do too.
 */
export const isFailureStatus = (status: number): boolean =>
  status < 100 || (status >= 500 && status !== 501 && status !== 505);

type Watched = {
  pool: string;
  server: string;
  slot: number;
  model: ObserveModel;
  /** Since the last report. */
  passed: number;
  failed: number;
  row: number;
  consecutive: number;
  kind: FailureKind | null;
  detail: string;
  /** It has something to report, now or until its interval is over. */
  isOpen: boolean;
  closesMs: number;
  reportedMs: number;
  /** It has reached a limit since its last report, and so long is to be between two that it hurries. */
  hurries: boolean;
  gapMs: number;
};

export class Observer {
  #host: ObserverHost;
  #counters: Pick<Counters, 'add'>;
  #rows: Int32Array;
  /** Dense, so that looking up one that isn't observed is one load. */
  #bySlot: (Watched | null)[] = [];
  #open = new Set<Watched>();
  #reportedMs = -Infinity;
  #wakesMs = Infinity;
  #sleep: () => void = () => {};

  /** `rows` is what `allocateRows` gave, the same for all workers. */
  constructor(rows: SharedArrayBuffer, counters: Pick<Counters, 'add'>, host: ObserverHost) {
    this.#rows = new Int32Array(rows);
    this.#counters = counters;
    this.#host = host;
  }

  configure(backends: readonly ObservedBackend[]): void {
    const before = this.#bySlot;
    const slots = backends.flatMap(({ servers }) => servers.map(({ slot }) => slot));
    this.#bySlot = Array.from({ length: Math.max(-1, ...slots) + 1 }, () => null);
    for (const { name, observe, servers } of backends) {
      if (!observe) continue;
      for (const { name: server, slot } of servers) {
        const known = before[slot];
        if (known) known.model = observe;
        this.#bySlot[slot] = known ?? watched(name, server, slot, observe);
      }
    }
    for (const one of this.#open) if (this.#bySlot[one.slot] !== one) this.#open.delete(one);
  }

  /** An exchange went well: in mode tcp a connection was made, in mode http a whole answer came. */
  passed(slot: number): void {
    const one = this.#bySlot[slot];
    if (one == null) return;
    one.passed++;
    const word = this.#rows[slot]!;
    // Whoever loses this race saw another worker's success or failure at the same moment: either order is as true.
    if ((word & LENGTH) !== 0) Atomics.compareExchange(this.#rows, slot, word, (word & ~LENGTH) + NEXT_ROW);
  }

  /** A whole answer with this status came. */
  answered(slot: number, status: number): void {
    if (isFailureStatus(status)) this.failed(slot, 'status', String(status));
    else this.passed(slot);
  }

  /**
   * An exchange failed by the server's fault, not the client's. `detail` is a status or the code of an error; it is
   * recorded, so nothing of a message may be in it.
   */
  failed(slot: number, kind: FailureKind, detail: string): void {
    const one = this.#bySlot[slot];
    if (one == null) return;
    if (one.model.layer === 'layer4' && kind !== 'connect') {
      // It had connected.
      this.passed(slot);
      return;
    }
    this.#counters.add(slot, COUNTER.observedFailures);
    const word = Atomics.add(this.#rows, slot, 1) + 1;
    const nowMs = this.#host.nowMs();
    if (!one.isOpen) this.#begin(one, nowMs);
    one.failed++;
    one.kind = kind;
    one.detail = detail.slice(0, LONGEST_DETAIL);
    const consecutive = word & LENGTH;
    if (consecutive >= one.consecutive) {
      one.consecutive = consecutive;
      one.row = word >>> 16;
    }
    if (one.model.limits.some((limit) => consecutive % limit === 0)) this.#hurry(one, nowMs);
    else this.#wakeAt(Math.max(nowMs + GATHER_MS, this.#reportedMs + REPORT_MS), nowMs);
  }

  #begin(one: Watched, nowMs: number): void {
    one.isOpen = true;
    one.passed = 0;
    one.closesMs = nowMs + one.model.intervalMs;
    this.#open.add(one);
  }

  #hurry(one: Watched, nowMs: number): void {
    if (nowMs - one.reportedMs > 2 * REPORT_MS) one.gapMs = SHORTEST_GAP_MS;
    one.hurries = true;
    const dueMs = one.reportedMs + one.gapMs;
    if (dueMs > nowMs) this.#wakeAt(dueMs, nowMs);
    else this.#report(nowMs);
  }

  #wakeAt(atMs: number, nowMs: number): void {
    if (atMs >= this.#wakesMs) return;
    this.#sleep();
    this.#wakesMs = atMs;
    this.#sleep = this.#host.later(Math.max(0, atMs - nowMs), () => this.#report(this.#host.nowMs()));
  }

  #report(nowMs: number): void {
    this.#sleep();
    this.#sleep = () => {};
    this.#wakesMs = Infinity;
    this.#reportedMs = nowMs;
    const observations: Observation[] = [];
    let nextMs = Infinity;
    for (const one of this.#open) {
      if (one.failed > 0 || one.passed > 0) {
        observations.push(take(one));
        one.reportedMs = nowMs;
        if (one.hurries) one.gapMs = Math.min(2 * one.gapMs, REPORT_MS);
        one.hurries = false;
      }
      if (one.closesMs > nowMs) {
        nextMs = Math.min(nextMs, one.closesMs, nowMs + REPORT_MS);
      } else {
        one.isOpen = false;
        this.#open.delete(one);
      }
    }
    if (observations.length > 0) this.#host.say({ kind: 'observed', observations });
    if (nextMs < Infinity) this.#wakeAt(nextMs, nowMs);
  }
}

const watched = (pool: string, server: string, slot: number, model: ObserveModel): Watched => ({
  pool,
  server,
  slot,
  model,
  passed: 0,
  failed: 0,
  row: 0,
  consecutive: 0,
  kind: null,
  detail: '',
  isOpen: false,
  closesMs: 0,
  reportedMs: -Infinity,
  hurries: false,
  gapMs: SHORTEST_GAP_MS,
});

const take = (one: Watched): Observation => {
  const { pool, server, passed, failed, row, consecutive, kind, detail } = one;
  one.passed = 0;
  one.failed = 0;
  one.row = 0;
  one.consecutive = 0;
  one.kind = null;
  one.detail = '';
  return { pool, server, passed, failed, row, consecutive, kind, detail };
};
