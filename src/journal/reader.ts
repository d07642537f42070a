/** Reads a journal, also while a node writes it. Every row's checksum is compared before anything is made of it. */
import { existsSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import { crc32 } from 'node:zlib';
import type { PersistedSnapshot } from '../../actors/decide.ts';
import { messageOf, UnderstudyError } from '../errors.ts';
import { checksumOf, decodeBody, RECORD_VERSION, ROW_COLUMNS, stepsOf } from './record.ts';
import type { Row, Step } from './record.ts';

export type RowFilter = {
  fromSeq?: number;
  throughSeq?: number;
  /** A name, or a pattern such as `server/*`. */
  actor?: string;
  type?: string;
  /** µs since 1970, inclusive. */
  since?: number;
  until?: number;
  limit?: number;
  newestFirst?: boolean;
};

export type Checkpoint = {
  seq: number;
  epoch: number;
  time: number;
  mono: number;
  actors: ({ id: string; machine: string; sinceUs: number } & PersistedSnapshot)[];
  timers: { actor: string; id: string; event: { type: string }; deadlineUs: number }[];
};

type StoredRow = Row & { crc: number };

export class JournalReader {
  readonly path: string;
  #db: DatabaseSync;

  /** @throws UnderstudyError JOURNAL_UNREADABLE */
  constructor(path: string) {
    this.path = path;
    if (!existsSync(path)) throw new UnderstudyError('JOURNAL_UNREADABLE', `there is no journal ${path}`);
    try {
      this.#db = new DatabaseSync(path, { readOnly: true, timeout: 5000 });
      this.#db.prepare('SELECT seq FROM records LIMIT 1').get();
    } catch (error) {
      throw new UnderstudyError('JOURNAL_UNREADABLE', `${path} can't be read as a journal: ${messageOf(error)}`);
    }
  }

  close(): void {
    this.#db.close();
  }

  /**
   * Rows in order of seq.
   * @throws UnderstudyError RECORD_UNREADABLE naming the first seq that can't be read or whose checksum differs
   */
  *rows(filter: RowFilter = {}): Generator<Row> {
    const conditions: string[] = [];
    const values: (string | number)[] = [];
    const where = (condition: string, value: string | number | undefined) => {
      if (value === undefined) return;
      conditions.push(condition);
      values.push(value);
    };
    where('seq >= ?', filter.fromSeq);
    where('seq <= ?', filter.throughSeq);
    // An exact name can use the index.
    where(isPattern(filter.actor) ? 'actor GLOB ?' : 'actor = ?', filter.actor);
    where(isPattern(filter.type) ? 'type GLOB ?' : 'type = ?', filter.type);
    where('time >= ?', filter.since);
    where('time <= ?', filter.until);
    const sql = `SELECT ${ROW_COLUMNS.join(', ')}, crc FROM records ${conditions.length ? `WHERE ${conditions.join(' AND ')}` : ''}
      ORDER BY seq ${filter.newestFirst ? 'DESC' : ''} ${filter.limit === undefined ? '' : `LIMIT ${Math.floor(filter.limit)}`}`;
    let lastSeq: number | null = null;
    const iterator = this.#db.prepare(sql).iterate(...values) as Iterator<StoredRow>;
    for (;;) {
      let result: IteratorResult<StoredRow>;
      try {
        result = iterator.next();
      } catch (error) {
        // SQLite's "database disk image is malformed", say: the row before it was the last good one.
        throw unreadable(lastSeq === null ? 'the first record' : `the record after ${lastSeq}`, messageOf(error));
      }
      if (result.done) return;
      const { crc, ...row } = result.value;
      if (checksumOf(row) !== crc) {
        throw unreadable(`record ${row.seq}`, `its checksum differs: ${row.actor} ${row.type} was altered or damaged`);
      }
      if (row.v > RECORD_VERSION) {
        throw unreadable(
          `record ${row.seq}`,
          `it has version ${row.v}; this version of Understudy knows ${RECORD_VERSION}`,
        );
      }
      lastSeq = row.seq;
      yield row;
    }
  }

  /** The events of the rows, runs spelled out. Within a run they keep the run's seq. */
  *steps(filter: RowFilter = {}): Generator<Step> {
    for (const row of this.rows(filter)) yield* decodedSteps(row);
  }

  row(seq: number): Row | null {
    for (const row of this.rows({ fromSeq: seq, throughSeq: seq })) return row;
    return null;
  }

  bounds(): { firstSeq: number; lastSeq: number } {
    const row = this.#db.prepare('SELECT min(seq) AS first, max(seq) AS last FROM records').get() as {
      first: number | null;
      last: number | null;
    };
    return { firstSeq: row.first ?? 0, lastSeq: row.last ?? 0 };
  }

  /** The newest readable checkpoint that `condition` allows; an unreadable one only means a longer replay. */
  checkpoint(condition: { atMostSeq?: number; atLeastSeq?: number; atMostTime?: number } = {}): Checkpoint | null {
    const oldestFirst = condition.atLeastSeq !== undefined;
    const candidates = this.#db
      .prepare(
        `SELECT DISTINCT seq FROM checkpoints WHERE seq <= ? AND seq >= ? AND time <= ? ORDER BY seq ${oldestFirst ? '' : 'DESC'}`,
      )
      .all(
        condition.atMostSeq ?? Number.MAX_SAFE_INTEGER,
        condition.atLeastSeq ?? 0,
        condition.atMostTime ?? Number.MAX_SAFE_INTEGER,
      ) as { seq: number }[];
    for (const { seq } of candidates) {
      const checkpoint = this.#readCheckpoint(seq);
      if (checkpoint) return checkpoint;
    }
    return null;
  }

  /** The time of the newest record, µs since 1970; 0 in an empty journal. */
  lastTimeUs(): number {
    const row = this.#db
      .prepare('SELECT max(time) AS time FROM (SELECT time FROM records ORDER BY seq DESC LIMIT 1000)')
      .get() as { time: number } | undefined;
    return row?.time ?? 0;
  }

  checkpointSeqs(): number[] {
    const rows = this.#db.prepare('SELECT DISTINCT seq FROM checkpoints ORDER BY seq').all() as { seq: number }[];
    return rows.map(({ seq }) => seq);
  }

  #readCheckpoint(seq: number): Checkpoint | null {
    type Part = { parts: number; epoch: number; time: number; mono: number; v: number; body: Uint8Array; crc: number };
    const parts = this.#db
      .prepare('SELECT * FROM checkpoints WHERE seq = ? ORDER BY part')
      .all(seq) as unknown as Part[];
    const first = parts[0];
    if (!first || parts.length !== first.parts) return null;
    const checkpoint: Checkpoint = {
      seq,
      epoch: first.epoch,
      time: first.time,
      mono: first.mono,
      actors: [],
      timers: [],
    };
    for (const part of parts) {
      if (part.v > RECORD_VERSION || crc32(part.body) !== part.crc) return null;
      const body = decodedPart(part.body);
      if (!body) return null;
      checkpoint.actors.push(...body.actors);
      checkpoint.timers.push(...body.timers);
    }
    return checkpoint;
  }
}

/** Null for what isn't a part of a checkpoint: then a replay begins at an earlier one. */
const decodedPart = (bytes: Uint8Array): Pick<Checkpoint, 'actors' | 'timers'> | null => {
  try {
    const body = decodeBody(bytes) as Partial<Pick<Checkpoint, 'actors' | 'timers'>> | null;
    return Array.isArray(body?.actors) && Array.isArray(body.timers)
      ? (body as Pick<Checkpoint, 'actors' | 'timers'>)
      : null;
  } catch {
    return null;
  }
};

const isPattern = (text: string | undefined): boolean => text !== undefined && /[*?[]/.test(text);

/** @throws UnderstudyError RECORD_UNREADABLE */
export const decodedSteps = (row: Row): Step[] => {
  try {
    return stepsOf(row);
  } catch (error) {
    throw unreadable(`record ${row.seq}`, `its body can't be decoded: ${messageOf(error)}`);
  }
};

const unreadable = (what: string, why: string): UnderstudyError =>
  new UnderstudyError('RECORD_UNREADABLE', `${what} can't be read: ${why}`);
