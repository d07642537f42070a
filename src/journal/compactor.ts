/**
 * Turns entries into rows. Events that change nothing (`entry.steady`) are gathered by actor into runs, so that a
 * hundred passed checks are one row; everything else becomes a row at once. Rows get their seq when they are made, so
 * seq is gapless, and per actor the order of rows is the order of events.
 */
import type { Cause, Entry, Recorder } from '../../actors/recorder.ts';
import { encodeBody, GAP, MEASURE, RECORD_VERSION } from './record.ts';
import type { Row, RunStep, SingleBody } from './record.ts';

/** A run is written at this age at the latest: so much of steady observation may a crash cost. */
export const RUN_MAX_AGE_US = 10_000_000;
/** Events in one run: 1,000 keep a row at a few kilobytes even where checks come every millisecond. */
const RUN_MAX_EVENTS = 1_000;
/** Steps in a cycle: a checker goes waiting → probing → waiting. */
const CYCLE_MAX = 2;

class Run implements Cause {
  seq: number | null = null;
  cycle: Entry[];
  cause: Cause | null;
  readonly startedUs: number;
  readonly deltas: number[] = [0];
  readonly durations: number[] = [];
  last: Entry;
  /** The cycle may still grow: it has been seen once, not yet repeated. */
  open = true;

  constructor(first: Entry) {
    this.cycle = [first];
    this.cause = first.cause;
    this.startedUs = first.monoUs;
    this.last = first;
    this.#measure(first);
  }

  /** Whether the entry continues the run; if so it is part of it. */
  takes(entry: Entry): boolean {
    if (this.deltas.length >= RUN_MAX_EVENTS || entry.monoUs - this.startedUs > RUN_MAX_AGE_US) return false;
    const position = this.deltas.length % this.cycle.length;
    if (this.open && this.deltas.length === this.cycle.length && !sameStep(this.cycle[0]!, entry)) {
      if (this.cycle.length >= CYCLE_MAX) return false;
      this.cycle.push(entry);
    } else if (!sameStep(this.cycle[position]!, entry)) {
      return false;
    } else {
      this.open = false;
    }
    this.deltas.push(entry.monoUs - this.last.monoUs);
    this.last = entry;
    this.#measure(entry);
    return true;
  }

  /** A closed run lives on as the cause of others; it must not keep its own causes alive, or none would ever go. */
  release(seq: number): void {
    this.seq = seq;
    this.cycle = [];
    this.cause = null;
  }

  #measure(entry: Entry): void {
    const duration = durationOf(entry);
    if (duration !== null) this.durations.push(Math.round(duration * 1000));
  }
}

const durationOf = (entry: Entry): number | null => {
  const value = (entry.event as { [MEASURE]?: unknown })[MEASURE];
  return typeof value === 'number' ? value : null;
};

const sameStep = (a: Entry, b: Entry): boolean =>
  a.origin === b.origin &&
  a.from === b.from &&
  a.state === b.state &&
  alike(a.event, b.event) &&
  alike(a.effects, b.effects);

/** Deep equality of plain data, but for durations: those are kept one by one. */
const alike = (a: unknown, b: unknown): boolean => {
  if (a === b) return true;
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false;
  if (Array.isArray(a) !== Array.isArray(b)) return false;
  const keys = Object.keys(a);
  if (keys.length !== Object.keys(b).length) return false;
  for (const key of keys) {
    const left = (a as Record<string, unknown>)[key];
    const right = (b as Record<string, unknown>)[key];
    if (key === MEASURE && typeof left === 'number' && typeof right === 'number') continue;
    if (!alike(left, right)) return false;
  }
  return true;
};

const withoutType = (event: Entry['event']): Record<string, unknown> => {
  const { type: _type, ...payload } = event as Record<string, unknown>;
  return payload;
};

const singleBody = (entry: Entry): SingleBody => ({
  event: withoutType(entry.event),
  effects: entry.effects,
  ...(entry.from === null ? {} : { from: entry.from }),
});

const runStep = (entry: Entry): RunStep => ({
  ...singleBody(entry),
  origin: entry.origin,
  type: entry.event.type,
  state: entry.state,
});

export type CompactorOptions = {
  epoch: number;
  /** The last seq in the journal; 0 when it is empty. */
  lastSeq: number;
  emit(row: Row): void;
};

export class Compactor implements Recorder {
  #epoch: number;
  #seq: number;
  #emit: (row: Row) => void;
  /** By actor, in the order in which they were begun. */
  #runs = new Map<string, Run>();

  constructor({ epoch, lastSeq, emit }: CompactorOptions) {
    this.#epoch = epoch;
    this.#seq = lastSeq;
    this.#emit = emit;
  }

  get lastSeq(): number {
    return this.#seq;
  }

  append(entry: Entry): Cause {
    const run = this.#runs.get(entry.actor);
    if (entry.steady) {
      if (run?.takes(entry)) return run;
      if (run) this.#close(run);
      const begun = new Run(entry);
      this.#runs.set(entry.actor, begun);
      return begun;
    }
    if (run) this.#close(run);
    const row: Row = {
      seq: 0,
      epoch: this.#epoch,
      time: entry.wallUs,
      mono: entry.monoUs,
      actor: entry.actor,
      origin: entry.origin,
      type: entry.event.type,
      state: entry.state,
      cause: this.#seqOf(entry.cause),
      count: 1,
      v: RECORD_VERSION,
      body: encodeBody(singleBody(entry)),
    };
    row.seq = ++this.#seq;
    this.#emit(row);
    return { seq: row.seq };
  }

  /** A record of the node's own, such as its start: no actor decided it. */
  note(type: string, payload: Record<string, unknown>, at: { wallUs: number; monoUs: number }): number {
    const seq = ++this.#seq;
    this.#emit(this.#nodeRow(seq, type, payload, at));
    return seq;
  }

  #nodeRow(seq: number, type: string, payload: Record<string, unknown>, at: { wallUs: number; monoUs: number }): Row {
    return {
      seq,
      epoch: this.#epoch,
      time: at.wallUs,
      mono: at.monoUs,
      actor: 'node',
      origin: 'node',
      type,
      state: '',
      cause: null,
      count: 1,
      v: RECORD_VERSION,
      body: encodeBody({ event: payload, effects: [] }),
    };
  }

  /** One row in place of the records `from`–`through`, which could not be kept. Their seqs are taken already. */
  gapRow(from: number, through: number, reason: string, at: { wallUs: number; monoUs: number }): Row {
    return this.#nodeRow(from, GAP, { from, through, reason }, at);
  }

  /** Closes the runs that are old enough. */
  sweep(nowUs: number): void {
    for (const run of this.#runs.values()) {
      if (nowUs - run.startedUs < RUN_MAX_AGE_US) return;
      this.#close(run);
    }
  }

  closeAll(): void {
    for (const run of this.#runs.values()) this.#close(run);
  }

  closeRunOf(actor: string): void {
    const run = this.#runs.get(actor);
    if (run) this.#close(run);
  }

  #seqOf(cause: Cause | null): number | null {
    if (cause === null) return null;
    // What caused something worth a row is worth one too, though it changed nothing itself.
    if (cause.seq === null && cause instanceof Run) this.#close(cause);
    return cause.seq;
  }

  #close(run: Run): void {
    const { last, cycle } = run;
    const first = cycle[0]!;
    this.#runs.delete(first.actor);
    const seq = ++this.#seq;
    // Only a seq that is there already: a run is not cut short because another one began with it.
    const cause = run.cause?.seq ?? null;
    run.release(seq);
    this.#emit({
      seq,
      epoch: this.#epoch,
      time: last.wallUs,
      mono: last.monoUs,
      actor: first.actor,
      origin: first.origin,
      type: first.event.type,
      state: last.state,
      cause,
      count: run.deltas.length,
      v: RECORD_VERSION,
      body:
        run.deltas.length === 1
          ? encodeBody(singleBody(first))
          : encodeBody({ run: { cycle: cycle.map(runStep), deltas: run.deltas, durations: run.durations } }),
    });
    run.last = { ...last, cause: null };
  }
}
