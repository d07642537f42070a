/** What of the journal's file comes next in the cluster log. Reads only; the journal's own thread writes. */
import assert from 'node:assert/strict';
import { DatabaseSync } from 'node:sqlite';
import type { StatementSync } from 'node:sqlite';
import { messageOf, UnderstudyError } from '../errors.ts';
import { checksumOf, decodeBody, encodeBody, GAP, RECORD_VERSION, ROW_COLUMNS, valuesOf } from '../journal/record.ts';
import type { Row, SingleBody } from '../journal/record.ts';
import type { CheckpointPart } from '../journal/store.ts';
import { LOG_FORMAT, packParts, packValues } from './logFormat.ts';
import type { LogBody, LogHead } from './logFormat.ts';
import type { Position } from './logPosition.ts';

/** Rows of one message: some 10 ms of reading and packing. */
const MAX_ROWS = 2_000;
/** What a row takes beside its texts and its body. */
const ROW_OVERHEAD_BYTES = 72;
/**
 * A checkpoint is shipped when the rows since the last one are this many times its size, so that checkpoints of many
 * actors cost a fifth of the stream at most; and always after a gap, as nothing could be decided without it.
 */
const CHECKPOINT_SHARE = 4;

export type OutgoingMessage = {
  head: LogHead;
  data: Uint8Array;
  /** Records that it completes, and the decisions among them with the time of each. */
  rows: number;
  decidedUs: number[];
  /** Nothing more is in the journal. */
  isLast: boolean;
};

type Made = { body: LogBody; rows: number; decidedUs: number[]; isLast: boolean };
/** In the order of the columns, with the checksum behind. */
type Values = [
  seq: number,
  epoch: number,
  time: number,
  mono: number,
  ...rest: (string | number | Uint8Array | null)[],
];

const COLUMN = Object.fromEntries(ROW_COLUMNS.map((name, index) => [name, index])) as Record<keyof Row, number>;
const CRC = ROW_COLUMNS.length;

export class LogOutbox {
  readonly identity: string;
  readonly #db: DatabaseSync;
  readonly #rowsAfter: StatementSync;
  readonly #row: StatementSync;
  /** Bytes of rows since the last checkpoint that was shipped; at the start nobody knows. */
  #bytesSinceCheckpoint = Infinity;
  /** The body that is being sent in pieces, so that it is read once. */
  #cut: Made | null = null;
  #newestUs = 0;

  /** @throws UnderstudyError JOURNAL_UNREADABLE */
  constructor(path: string) {
    try {
      this.#db = new DatabaseSync(path, { readOnly: true, timeout: 5_000 });
      const columns = `${ROW_COLUMNS.join(', ')}, crc`;
      this.#rowsAfter = this.#db.prepare(`SELECT ${columns} FROM records WHERE seq > ? ORDER BY seq LIMIT ${MAX_ROWS}`);
      this.#row = this.#db.prepare(`SELECT ${columns} FROM records WHERE seq = ?`);
      this.#rowsAfter.setReturnArrays(true);
      this.#row.setReturnArrays(true);
      const found = this.#db.prepare('SELECT name FROM identity').get() as { name: string };
      this.identity = found.name;
    } catch (error) {
      throw unreadable(path, error);
    }
  }

  close(): void {
    this.#db.close();
  }

  /** The last record's seq; one that stands for a gap ends where the gap does. */
  lastSeq(): number {
    const row = this.#db.prepare('SELECT seq, type, body FROM records ORDER BY seq DESC LIMIT 1').get() as
      Pick<Row, 'seq' | 'type' | 'body'> | undefined;
    if (row) return row.type === GAP ? gapEnd(row.body) : row.seq;
    // Retention has taken all rows, up to a checkpoint.
    const checkpoint = this.#db.prepare('SELECT max(seq) AS seq FROM checkpoints').get() as { seq: number | null };
    return checkpoint.seq ?? 0;
  }

  /** Of a record that is still there. */
  checkOf(seq: number): number | null {
    const row = this.#row.get(seq) as Values | undefined;
    return row ? (row[CRC] as number) : null;
  }

  /** The next message after a position, or null when all has been shipped. @throws UnderstudyError JOURNAL_UNREADABLE */
  next(position: Position, limitBytes: number): OutgoingMessage | null {
    try {
      if (position.begun !== null) {
        assert(this.#cut, 'a body goes on that was not begun here');
        return this.#cutOff(this.#cut, position.begun, limitBytes);
      }
      this.#cut = null;
      const made = this.#checkpointAfter(position) ?? this.#gapAfter(position) ?? this.#rowsNext(position, limitBytes);
      return made ? this.#cutOff(made, 0, limitBytes) : null;
    } catch (error) {
      throw unreadable(this.#db.location() ?? '', error);
    }
  }

  /** A message has been stored. */
  shipped({ head, data }: OutgoingMessage): void {
    if (head.kind === 'checkpoint') this.#bytesSinceCheckpoint = 0;
    // After a gap, which has no checksum, nothing can be decided before a checkpoint.
    else this.#bytesSinceCheckpoint = head.check === null ? Infinity : this.#bytesSinceCheckpoint + data.length;
  }

  #cutOff(made: Made, from: number, limitBytes: number): OutgoingMessage {
    const { bytes, ...rest } = made.body;
    const data = bytes.subarray(from, from + limitBytes);
    const isWhole = from + data.length >= bytes.length;
    const head: LogHead = {
      ...rest,
      format: LOG_FORMAT,
      journal: this.identity,
      piece: { from, total: bytes.length },
      after: null,
    };
    this.#cut = isWhole ? null : made;
    return {
      head,
      data,
      rows: isWhole ? made.rows : 0,
      decidedUs: isWhole ? made.decidedUs : [],
      isLast: isWhole && made.isLast,
    };
  }

  /** The oldest checkpoint that is due; the position moves past those that are not worth their size. */
  #checkpointAfter(position: Position): Made | null {
    const found = this.#db
      .prepare(
        `SELECT seq, sum(length(body)) AS bytes FROM checkpoints WHERE seq > ? AND seq <= ? GROUP BY seq ORDER BY seq`,
      )
      .all(position.checkpoint, this.#coveredThrough(position)) as { seq: number; bytes: number }[];
    for (const { seq, bytes } of found) {
      if (this.#bytesSinceCheckpoint >= CHECKPOINT_SHARE * bytes) {
        const made = this.#checkpoint(seq, position.through, position.check);
        if (made) return made;
      }
      position.checkpoint = seq;
    }
    return null;
  }

  /** A stream that begins with a journal whose beginning is gone begins with its first checkpoint. */
  #coveredThrough({ through }: Position): number {
    return through === 0 ? Math.max(0, this.#firstSeq() - 1) : through;
  }

  #checkpoint(seq: number, through: number, check: number | null): Made | null {
    const parts = this.#db
      .prepare('SELECT * FROM checkpoints WHERE seq = ? ORDER BY part')
      .all(seq) as unknown as CheckpointPart[];
    const first = parts[0];
    if (!first || parts.length !== first.parts) return null;
    const last = Math.max(through, seq);
    const body: LogBody = {
      kind: 'checkpoint',
      epoch: first.epoch,
      first: seq,
      last,
      check: last === through ? check : null,
      checkpoint: seq,
      bytes: packParts(parts),
    };
    return { body, rows: 0, decidedUs: [], isLast: false };
  }

  #firstSeq(): number {
    const { seq } = this.#db.prepare('SELECT min(seq) AS seq FROM records').get() as { seq: number | null };
    return seq ?? this.lastSeq() + 1;
  }

  /** What retention took before it was shipped: one row says so, as the journal itself does of what it had no room for. */
  #gapAfter({ through }: Position): Made | null {
    const last = this.#firstSeq() - 1;
    if (through === 0 || last <= through) return null;
    const next = this.#rowsAfter.get(last) as Values | undefined;
    const checkpoint = this.#db.prepare('SELECT epoch, time, mono FROM checkpoints WHERE seq = ? LIMIT 1').get(last) as
      { epoch: number; time: number; mono: number } | undefined;
    const row: Row = {
      seq: through + 1,
      epoch: checkpoint?.epoch ?? next?.[1] ?? 0,
      time: checkpoint?.time ?? next?.[2] ?? 0,
      mono: checkpoint?.mono ?? next?.[3] ?? 0,
      actor: 'node',
      origin: 'node',
      type: GAP,
      state: '',
      cause: null,
      count: 1,
      v: RECORD_VERSION,
      body: encodeBody({
        event: { from: through + 1, through: last, reason: 'retention took them before they could be shipped' },
        effects: [],
      }),
    };
    const { epoch, seq: first } = row;
    const bytes = packValues([[...valuesOf(row), checksumOf(row)]]);
    const body: LogBody = { kind: 'gap', epoch, first, last, check: null, checkpoint: null, bytes };
    return { body, rows: 0, decidedUs: [], isLast: false };
  }

  #rowsNext({ through }: Position, limitBytes: number): Made | null {
    const rows: Values[] = [];
    let size = 0;
    let isLast = true;
    for (const row of this.#rowsAfter.iterate(through) as unknown as Iterable<Values>) {
      const bytes = sizeOf(row);
      if (rows.length > 0 && size + bytes > limitBytes) {
        isLast = false;
        break;
      }
      rows.push(row);
      size += bytes;
      if (row[COLUMN.type] === GAP) {
        isLast = false;
        break;
      }
    }
    if (rows.length === 0) return null;
    if (rows.length === MAX_ROWS) isLast = false;
    return { body: this.#rowsBody(rows), rows: rows.length, decidedUs: this.#decisionsOf(rows), isLast };
  }

  #rowsBody(rows: Values[]): LogBody {
    const last = rows.at(-1)!;
    const isGap = last[COLUMN.type] === GAP;
    return {
      kind: 'rows',
      epoch: last[COLUMN.epoch] as number,
      first: rows[0]![0],
      last: isGap ? gapEnd(last[COLUMN.body] as Uint8Array) : last[0],
      check: isGap ? null : (last[CRC] as number),
      checkpoint: null,
      bytes: packValues(rows),
    };
  }

  /** Times of single records as they were made: a run, or a single one of it, is written later than it happened. */
  #decisionsOf(rows: Values[]): number[] {
    const found: number[] = [];
    for (const row of rows) {
      if (row[2] < this.#newestUs) continue;
      this.#newestUs = row[2];
      if (row[COLUMN.count] === 1) found.push(row[2]);
    }
    return found;
  }
}

const sizeOf = (row: Values): number =>
  ROW_OVERHEAD_BYTES +
  (row[COLUMN.actor] as string).length +
  (row[COLUMN.type] as string).length +
  (row[COLUMN.state] as string).length +
  (row[COLUMN.body] as Uint8Array).length;

const gapEnd = (body: Uint8Array): number => Number((decodeBody(body) as SingleBody).event['through']);

const unreadable = (path: string, error: unknown): UnderstudyError =>
  error instanceof UnderstudyError
    ? error
    : new UnderstudyError('JOURNAL_UNREADABLE', `the journal ${path} can't be read for shipping: ${messageOf(error)}`);
