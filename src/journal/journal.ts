/**
 * The journal as the node sees it: hand an entry over and go on. Rows are sent to the writer's thread once a turn of
 * the loop and kept here until they are on disk; when the disk refuses them they are sent again, and past a limit the
 * newest are dropped and a row of type `journal.gap`, followed by a checkpoint, takes their place.
 */
import assert from 'node:assert/strict';
import { Worker } from 'node:worker_threads';
import { crc32 } from 'node:zlib';
import type { Clock } from '../../actors/clock.ts';
import { persist } from '../../actors/decide.ts';
import type { Cause, Entry, Recorder } from '../../actors/recorder.ts';
import type { FrozenActor } from '../../actors/system.ts';
import { messageOf, UnderstudyError } from '../errors.ts';
import type { ErrorCode } from '../errors.ts';
import { threadFile } from '../threads.ts';
import { Compactor } from './compactor.ts';
import { encodeBody, packRows, RECORD_VERSION } from './record.ts';
import type { Row } from './record.ts';
import type { CheckpointPart, Retention } from './store.ts';
import type { FromWriter, ToWriter, WriterData } from './writerThread.ts';

/** Rows kept in memory while the disk refuses them: at 300 bytes each some 30 MB, hours of a node's decisions. */
export const MAX_UNWRITTEN_ROWS = 100_000;
/** A failed write is tried again this often: soon enough after somebody made room, rare enough to cost nothing. */
const RETRY_MS = 500;
/** Open runs are looked over this often for those that are old enough to be written: few at a time, never thousands. */
const SWEEP_MS = 50;
/** Rows from one checkpoint to the next at least: a replay starts at most this far back (a tenth of a second). */
const CHECKPOINT_EVERY_ROWS = 10_000;
/**
 * With many actors a checkpoint is large, and closing all their runs for it takes the loop some 15 µs each: rows to the
 * next one per actor, so that with 20,000 of them it comes every few minutes.
 */
const CHECKPOINT_ROWS_PER_ACTOR = 25;
/** Snapshots packed in one turn of the loop: about a millisecond. */
const CHECKPOINT_PART_ACTORS = 250;
/** Rows of one batch: a commit of this many takes some 50 ms, and the next ones go together anyway. */
const MAX_BATCH_ROWS = 5_000;

type Batch = { id: number; rows: number; lastSeq: number; bytes: Uint8Array; parts: CheckpointPart[] };

/** What a checkpoint needs to know of the actor system. */
export type Checkpointed = {
  readonly size: number;
  frozen(): FrozenActor[];
  pendingTimers(): { actor: string; id: string; event: { type: string }; deadlineUs: number }[];
};

export type JournalOptions = {
  path: string;
  retention: Retention;
  clock: Clock;
  maxUnwrittenRows?: number;
};

export type JournalTrouble =
  { type: 'journal.failed'; code: string; message: string } | { type: 'journal.resumed'; lost: number };

export type JournalStatus = {
  path: string;
  epoch: number;
  lastSeq: number;
  /** The last seq known to be on disk. */
  writtenSeq: number;
  unwrittenRows: number;
  usedBytes: number;
  failure: { code: string; message: string } | null;
};

export class Journal implements Recorder {
  readonly epoch: number;
  readonly path: string;
  /** Tells this journal from every other. */
  readonly identity: string;
  /** What became of a file that was damaged when the node started. */
  readonly aside: { path: string; message: string } | null;
  #clock: Clock;
  #writer: Worker;
  #writerData: WriterData;
  #compactor: Compactor;
  #maxUnwrittenRows: number;
  #system: Checkpointed | null = null;
  #onTrouble: (trouble: JournalTrouble) => void = () => {};
  #onWritten: (seq: number) => void = () => {};
  #rows: Row[] = [];
  #flushScheduled = false;
  #unwritten: Batch[] = [];
  #unwrittenRows = 0;
  #batchId = 0;
  #writtenSeq: number;
  #usedBytes = 0;
  #failure: { code: string; message: string } | null = null;
  #gapFrom: number | null = null;
  #gapThrough = 0;
  #rowsSinceCheckpoint = 0;
  #checkpointing = false;
  #checkpointAgain = false;
  #waiters: { seq: number; done: (written: boolean) => void }[] = [];
  #sweep: NodeJS.Timeout;
  #retry: NodeJS.Timeout | null = null;
  #closing = false;
  #writerIsGone = false;
  #closed: (() => void) | null = null;

  /**
   * @throws UnderstudyError JOURNAL_UNWRITABLE, JOURNAL_IN_USE, JOURNAL_TOO_NEW
   */
  static async open(options: JournalOptions): Promise<Journal> {
    const data: WriterData = { path: options.path, retention: options.retention };
    const writer = startWriter(data);
    const first = await firstAnswer(writer);
    if (first.kind !== 'opened') {
      await writer.terminate();
      const known = first.kind === 'unusable' && first.code.startsWith('JOURNAL_');
      throw new UnderstudyError(
        known ? (first.code as ErrorCode) : 'JOURNAL_UNWRITABLE',
        first.kind === 'unusable'
          ? known
            ? first.message
            : `the journal ${options.path} can't be opened: ${first.message}`
          : first.kind,
      );
    }
    return new Journal(options, data, writer, first);
  }

  private constructor(
    options: JournalOptions,
    data: WriterData,
    writer: Worker,
    opened: Extract<FromWriter, { kind: 'opened' }>,
  ) {
    this.path = options.path;
    this.epoch = opened.epoch + 1;
    this.identity = opened.identity;
    this.aside = opened.aside;
    this.#clock = options.clock;
    this.#maxUnwrittenRows = options.maxUnwrittenRows ?? MAX_UNWRITTEN_ROWS;
    this.#writtenSeq = opened.seq;
    this.#writerData = data;
    this.#writer = writer;
    this.#compactor = new Compactor({ epoch: this.epoch, lastSeq: opened.seq, emit: (row) => this.#take(row) });
    this.#listen(writer);
    this.#sweep = setInterval(() => this.#compactor.sweep(this.#clock.monoUs()), SWEEP_MS);
  }

  /** Connects what the journal keeps safe; until then it takes no checkpoints. */
  attach(system: Checkpointed, onTrouble: (trouble: JournalTrouble) => void): void {
    this.#system = system;
    this.#onTrouble = onTrouble;
  }

  append(entry: Entry): Cause {
    return this.#compactor.append(entry);
  }

  note(type: string, payload: Record<string, unknown>): number {
    return this.#compactor.note(type, payload, this.#now());
  }

  /** Resolves true when everything appended so far is on disk, false when the disk refuses it. */
  written(): Promise<boolean> {
    this.#flush();
    const seq = this.#compactor.lastSeq;
    if (this.#writtenSeq >= seq) return Promise.resolve(true);
    if (this.#failure) return Promise.resolve(false);
    return new Promise((done) => this.#waiters.push({ seq, done }));
  }

  /** Told of the last seq on disk, once a commit. */
  onWritten(listener: (seq: number) => void): void {
    this.#onWritten = listener;
  }

  /** Writes the open run of an actor, or all: for those who want to read up to the present moment. */
  closeRuns(actor?: string): void {
    if (actor === undefined) this.#compactor.closeAll();
    else this.#compactor.closeRunOf(actor);
  }

  setRetention(retention: Retention): void {
    this.#writerData = { ...this.#writerData, retention };
    this.#post({ kind: 'retention', retention });
  }

  status(): JournalStatus {
    return {
      path: this.path,
      epoch: this.epoch,
      lastSeq: this.#compactor.lastSeq,
      writtenSeq: this.#writtenSeq,
      unwrittenRows: this.#unwrittenRows + this.#rows.length,
      usedBytes: this.#usedBytes,
      failure: this.#failure,
    };
  }

  /** Writes what is left, with a checkpoint, and ends the thread. What the disk refuses to the end is lost. */
  async close(): Promise<void> {
    clearInterval(this.#sweep);
    this.closeRuns();
    if (!this.#failure) await this.checkpoint();
    await this.written();
    this.#closing = true;
    if (this.#retry) clearTimeout(this.#retry);
    // A writer that has died says nothing more.
    if (this.#writerIsGone) return;
    const closed = new Promise<void>((done) => (this.#closed = done));
    this.#post({ kind: 'close' });
    await closed;
    await this.#writer.terminate();
  }

  /** Keeps all snapshots as they are now. Packed in slices, so that the loop is not held up by many actors. */
  async checkpoint(): Promise<void> {
    if (!this.#system) return;
    if (this.#checkpointing) {
      this.#checkpointAgain = true;
      return;
    }
    this.#checkpointing = true;
    this.#checkpointAgain = false;
    this.#rowsSinceCheckpoint = 0;
    this.#compactor.closeAll();
    const seq = this.#compactor.lastSeq;
    const at = this.#now();
    const actors = this.#system.frozen();
    const timers = this.#system
      .pendingTimers()
      .map(({ actor, id, event, deadlineUs }) => ({ actor, id, event, deadlineUs }));
    this.#flush();
    const parts: CheckpointPart[] = [];
    const count = Math.max(1, Math.ceil(actors.length / CHECKPOINT_PART_ACTORS));
    for (let part = 0; part < count; part++) {
      if (part > 0) await new Promise((next) => setImmediate(next));
      const slice = actors.slice(part * CHECKPOINT_PART_ACTORS, (part + 1) * CHECKPOINT_PART_ACTORS);
      const body = encodeBody({
        actors: slice.map(({ id, machine, sinceUs, snapshot }) =>
          Object.assign({ id, machine, sinceUs }, persist(snapshot)),
        ),
        timers: part === 0 ? timers : [],
      });
      const head = { seq, part, parts: count, epoch: this.epoch, time: at.wallUs, mono: at.monoUs, v: RECORD_VERSION };
      parts.push({ ...head, body: Uint8Array.from(body), crc: crc32(body) });
    }
    this.#checkpointing = false;
    // While records are being dropped nothing may follow them but the gap and the checkpoint made with it.
    if (this.#gapFrom === null) this.#send([], parts);
    if (this.#checkpointAgain) await this.checkpoint();
  }

  #now(): { wallUs: number; monoUs: number } {
    return { wallUs: this.#clock.wallUs(), monoUs: this.#clock.monoUs() };
  }

  #take(row: Row): void {
    if (this.#gapFrom !== null) {
      this.#gapThrough = row.seq;
      return;
    }
    if (this.#unwrittenRows + this.#rows.length >= this.#maxUnwrittenRows) {
      this.#flush();
      this.#gapFrom = row.seq;
      this.#gapThrough = row.seq;
      return;
    }
    this.#rows.push(row);
    if (this.#rows.length >= MAX_BATCH_ROWS) {
      this.#flush();
    } else if (!this.#flushScheduled) {
      this.#flushScheduled = true;
      setImmediate(() => {
        this.#flushScheduled = false;
        this.#flush();
      });
    }
    this.#rowsSinceCheckpoint++;
    const due = Math.max(CHECKPOINT_EVERY_ROWS, CHECKPOINT_ROWS_PER_ACTOR * (this.#system?.size ?? 0));
    if (this.#rowsSinceCheckpoint < due) return;
    this.#rowsSinceCheckpoint = 0;
    setImmediate(() => void this.checkpoint());
  }

  #flush(): void {
    if (this.#rows.length === 0) return;
    const rows = this.#rows;
    this.#rows = [];
    this.#send(rows, []);
  }

  #send(rows: Row[], parts: CheckpointPart[]): void {
    const batch: Batch = {
      id: ++this.#batchId,
      rows: rows.length,
      lastSeq: rows.at(-1)?.seq ?? 0,
      bytes: packRows(rows),
      parts,
    };
    this.#unwritten.push(batch);
    this.#unwrittenRows += batch.rows;
    if (!this.#failure) this.#postBatch(batch, false);
  }

  #postBatch(batch: Batch, again: boolean): void {
    this.#post({ kind: 'batch', id: batch.id, rows: batch.bytes, parts: batch.parts, again });
  }

  #post(message: ToWriter): void {
    this.#writer.postMessage(message);
  }

  #listen(writer: Worker): void {
    writer.on('message', (message: FromWriter) => this.#hear(message));
    writer.on('error', (error: unknown) => this.#fail('WRITER_DIED', messageOf(error)));
    writer.on('exit', () => {
      if (this.#closing) {
        this.#closed?.();
        return;
      }
      this.#writerIsGone = true;
      this.#fail('WRITER_DIED', 'the journal writer ended');
    });
  }

  #hear(message: FromWriter): void {
    switch (message.kind) {
      case 'committed':
        this.#usedBytes = message.usedBytes;
        this.#committed(message.id);
        return;
      case 'failed':
        this.#fail(message.code, message.message);
        return;
      case 'unusable':
        this.#fail(message.code, message.message);
        return;
      case 'closed':
        this.#closed?.();
        return;
      case 'opened': {
        // A writer that died between a commit and its answer left rows that must not be sent again.
        const known = this.#unwritten.findLast((batch) => batch.lastSeq > 0 && batch.lastSeq <= message.seq);
        if (known) this.#committed(known.id);
        return;
      }
    }
  }

  #committed(id: number): void {
    const before = this.#writtenSeq;
    while (this.#unwritten.length > 0 && this.#unwritten[0]!.id <= id) {
      const batch = this.#unwritten.shift()!;
      this.#unwrittenRows -= batch.rows;
      if (batch.lastSeq > this.#writtenSeq) this.#writtenSeq = batch.lastSeq;
    }
    if (this.#writtenSeq > before) this.#onWritten(this.#writtenSeq);
    if (this.#failure) this.#recovered();
    this.#waiters = this.#waiters.filter(({ seq, done }) => {
      if (this.#writtenSeq < seq) return true;
      done(true);
      return false;
    });
  }

  #fail(code: string, message: string): void {
    const first = this.#failure === null;
    this.#failure = { code, message };
    if (!this.#retry && !this.#closing) {
      this.#retry = setTimeout(() => {
        this.#retry = null;
        this.#sendAgain();
      }, RETRY_MS);
    }
    if (!first) return;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const { done } of waiters) done(false);
    this.#onTrouble({ type: 'journal.failed', code, message });
  }

  /** One batch tries the disk; the others follow when it got through. */
  #sendAgain(): void {
    if (this.#writerIsGone) {
      this.#writerIsGone = false;
      this.#writer = startWriter(this.#writerData);
      this.#listen(this.#writer);
    }
    if (this.#unwritten.length === 0) this.#send([], []);
    this.#postBatch(this.#unwritten[0]!, true);
  }

  #recovered(): void {
    this.#failure = null;
    for (const batch of this.#unwritten) this.#postBatch(batch, false);
    let lost = 0;
    if (this.#gapFrom !== null) {
      // Open runs began before or within the gap: they belong to it.
      this.#compactor.closeAll();
      lost = this.#gapThrough - this.#gapFrom + 1;
      const row = this.#compactor.gapRow(
        this.#gapFrom,
        this.#gapThrough,
        'no room for them while the disk refused writes',
        this.#now(),
      );
      assert(row.seq > this.#writtenSeq, `gap from ${row.seq} within what is written, ${this.#writtenSeq}`);
      this.#gapFrom = null;
      this.#send([row], []);
      void this.checkpoint();
    }
    this.#onTrouble({ type: 'journal.resumed', lost });
  }
}

const startWriter = (data: WriterData): Worker =>
  new Worker(threadFile('writerThread', import.meta.url), { workerData: data });

const firstAnswer = (writer: Worker): Promise<FromWriter> =>
  new Promise((done, refuse) => {
    writer.once('message', done);
    writer.once('error', refuse);
  });
