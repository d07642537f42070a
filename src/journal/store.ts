/** The journal's file: one SQLite database, written by one process, readable by any number. */
import { accessSync, closeSync, constants, existsSync, openSync, renameSync } from 'node:fs';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { UnderstudyError } from '../errors.ts';
import { checksumOf, decodeBody, GAP, ROW_COLUMNS, valuesOf } from './record.ts';
import type { Row, SingleBody } from './record.ts';

/** `PRAGMA application_id`: "USty". Tells our files from other databases. */
export const APPLICATION_ID = 0x55537479;
/** `PRAGMA user_version`: the layout of the tables. */
export const LAYOUT_VERSION = 1;

export const SCHEMA = `
  CREATE TABLE IF NOT EXISTS records (
    seq INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, time INTEGER NOT NULL, mono INTEGER NOT NULL,
    actor TEXT NOT NULL, origin TEXT NOT NULL, type TEXT NOT NULL, state TEXT NOT NULL, cause INTEGER,
    count INTEGER NOT NULL, v INTEGER NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL
  ) STRICT;
  CREATE INDEX IF NOT EXISTS records_by_actor ON records (actor, seq);
  CREATE TABLE IF NOT EXISTS checkpoints (
    seq INTEGER NOT NULL, part INTEGER NOT NULL, parts INTEGER NOT NULL, epoch INTEGER NOT NULL,
    time INTEGER NOT NULL, mono INTEGER NOT NULL, v INTEGER NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (seq, part)
  ) STRICT;
  CREATE TABLE IF NOT EXISTS identity (only INTEGER PRIMARY KEY CHECK (only = 1), name TEXT NOT NULL) STRICT;
  INSERT OR IGNORE INTO identity VALUES (1, lower(hex(randomblob(8))));
`;

const NEWEST_CHECKPOINT = 'SELECT max(seq) AS seq, max(epoch) AS epoch FROM checkpoints';

export type CheckpointPart = {
  seq: number;
  part: number;
  parts: number;
  epoch: number;
  time: number;
  mono: number;
  v: number;
  body: Uint8Array;
  crc: number;
};

export type Retention = { keepMs: number; maxBytes: number };

/** Rows deleted in one transaction: a few milliseconds, so that appends are not held up behind a purge. */
const PURGE_CHUNK = 5_000;
/** The write-ahead log is cut back to this after a checkpoint of SQLite's. */
const WAL_LIMIT_BYTES = 16 * 1024 * 1024;

export class JournalStore {
  readonly path: string;
  #db: DatabaseSync;
  #lock: DatabaseSync;
  #insert: StatementSync;
  #insertPart: StatementSync;

  private constructor(path: string, db: DatabaseSync, lock: DatabaseSync) {
    this.path = path;
    this.#db = db;
    this.#lock = lock;
    this.#insert = db.prepare(
      `INSERT INTO records (${ROW_COLUMNS.join(', ')}, crc) VALUES (${'?, '.repeat(ROW_COLUMNS.length)}?)`,
    );
    this.#insertPart = db.prepare(
      'INSERT OR REPLACE INTO checkpoints (seq, part, parts, epoch, time, mono, v, body, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)',
    );
  }

  /**
   * Opens or creates the file. A file that is damaged, or no journal, is set aside under another name, and a new one
   * begun: `aside` says where it went.
   * @throws UnderstudyError JOURNAL_UNWRITABLE when the place can't be written, JOURNAL_IN_USE when a node writes it
   */
  static open(path: string): { store: JournalStore; aside: { path: string; message: string } | null } {
    try {
      // SQLite's own message for an unwritable place is "unable to open database file". An existing file is not opened
      // here: closing it again would drop the locks that this process holds on it.
      if (existsSync(path)) accessSync(path, constants.W_OK);
      else closeSync(openSync(path, 'a'));
    } catch (error) {
      throw new UnderstudyError(
        'JOURNAL_UNWRITABLE',
        `the journal ${path} can't be written: ${(error as Error).message}`,
      );
    }
    const lock = takeLock(path);
    try {
      return { store: new JournalStore(path, openDatabase(path), lock), aside: null };
    } catch (error) {
      if (!isDamage(error)) {
        lock.close();
        throw error;
      }
      const aside = `${path}.damaged-${new Date().toISOString().replaceAll(':', '')}`;
      for (const suffix of ['', '-wal', '-shm']) {
        if (existsSync(path + suffix)) renameSync(path + suffix, aside + suffix);
      }
      const message = (error as Error).message;
      return { store: new JournalStore(path, openDatabase(path), lock), aside: { path: aside, message } };
    }
  }

  /** Where the last run of the node ended; zeros in a new journal. A gap ends where the records end that it stands for. */
  last(): { seq: number; epoch: number } {
    const row = this.#db.prepare('SELECT seq, epoch, type, body FROM records ORDER BY seq DESC LIMIT 1').get() as
      { seq: number; epoch: number; type: string; body: Uint8Array } | undefined;
    const checkpoint = this.#db.prepare(NEWEST_CHECKPOINT).get() as { seq: number | null; epoch: number | null };
    const through = row?.type === GAP ? Number((decodeBody(row.body) as SingleBody).event['through']) : row?.seq;
    return {
      seq: Math.max(through ?? 0, checkpoint.seq ?? 0),
      epoch: Math.max(row?.epoch ?? 0, checkpoint.epoch ?? 0),
    };
  }

  /** Made with the file: a journal that begins anew, or another node of the same name, has another one. */
  identity(): string {
    const row = this.#db.prepare('SELECT name FROM identity').get() as { name: string };
    return row.name;
  }

  /** Writes rows and parts of checkpoints in one transaction. Throws SQLite's error, with nothing written. */
  commit(rows: readonly Row[], parts: readonly CheckpointPart[]): void {
    this.#db.exec('BEGIN IMMEDIATE');
    try {
      for (const row of rows) {
        this.#insert.run(...valuesOf(row), checksumOf(row));
      }
      for (const part of parts) {
        const { seq, epoch, time, mono, v, body, crc } = part;
        this.#insertPart.run(seq, part.part, part.parts, epoch, time, mono, v, body, crc);
      }
      this.#db.exec('COMMIT');
    } catch (error) {
      if (this.#db.isTransaction) this.#db.exec('ROLLBACK');
      throw error;
    }
  }

  /**
   * Deletes what is too old or too much, up to a checkpoint, so that what remains can still be replayed. Returns true
   * while there is more to delete.
   */
  purge(retention: Retention, nowUs: number): boolean {
    const through = this.#purgeThrough(retention, nowUs);
    if (through === null) return false;
    const { changes } = this.#db
      .prepare('DELETE FROM records WHERE seq IN (SELECT seq FROM records WHERE seq <= ? ORDER BY seq LIMIT ?)')
      .run(through, PURGE_CHUNK);
    if (Number(changes) === PURGE_CHUNK) return true;
    this.#db.prepare('DELETE FROM checkpoints WHERE seq < ?').run(through);
    this.#db.exec('PRAGMA incremental_vacuum(10000)');
    // What is too much may be more than up to this checkpoint: the next call finds out.
    return true;
  }

  usedBytes(): number {
    const pages = pragma(this.#db, 'page_count') - pragma(this.#db, 'freelist_count');
    return pages * pragma(this.#db, 'page_size');
  }

  close(): void {
    this.#db.close();
    this.#lock.close();
  }

  /** The checkpoint up to which records may go: the newest one that is old enough, or the second oldest when it is too much. */
  #purgeThrough(retention: Retention, nowUs: number): number | null {
    const oldest = this.#db.prepare('SELECT min(seq) AS seq FROM records').get() as { seq: number | null };
    if (oldest.seq === null) return null;
    const byAge = this.#db
      .prepare('SELECT max(seq) AS seq FROM checkpoints WHERE time < ? AND part = 0')
      .get(nowUs - retention.keepMs * 1000) as { seq: number | null };
    if (byAge.seq !== null && byAge.seq >= oldest.seq) return byAge.seq;
    if (this.usedBytes() <= retention.maxBytes) return null;
    const bySize = this.#db
      .prepare('SELECT min(seq) AS seq FROM checkpoints WHERE seq > ? AND part = 0')
      .get(oldest.seq) as { seq: number | null };
    return bySize.seq;
  }
}

/**
 * One writer a journal. The lock is an exclusive transaction on an empty database beside it: the kernel lets go of it
 * when the process dies, however it dies, and readers of the journal don't see it.
 */
const takeLock = (path: string): DatabaseSync => {
  const lock = new DatabaseSync(`${path}.lock`);
  try {
    lock.exec('BEGIN EXCLUSIVE');
    return lock;
  } catch (error) {
    lock.close();
    if ((error as { errcode?: number }).errcode === SQLITE_BUSY) {
      throw new UnderstudyError('JOURNAL_IN_USE', `the journal ${path} is being written by another node`);
    }
    throw error;
  }
};

const openDatabase = (path: string): DatabaseSync => {
  const db = new DatabaseSync(path, { timeout: 5000 });
  try {
    assertOurs(db, path);
    // Only possible before the first table; on an old file it does nothing.
    db.exec('PRAGMA auto_vacuum = INCREMENTAL');
    db.exec('PRAGMA journal_mode = WAL');
    // FULL: a commit is on disk when it returns. The writer has a thread of its own, so nobody waits for it.
    db.exec('PRAGMA synchronous = FULL');
    db.exec(`PRAGMA journal_size_limit = ${WAL_LIMIT_BYTES}`);
    const version = pragma(db, 'user_version');
    if (version > LAYOUT_VERSION) {
      throw new UnderstudyError(
        'JOURNAL_TOO_NEW',
        `the journal ${path} has layout ${version}; this version of Understudy knows ${LAYOUT_VERSION}`,
      );
    }
    db.exec(SCHEMA);
    db.exec(`PRAGMA application_id = ${APPLICATION_ID}`);
    db.exec(`PRAGMA user_version = ${LAYOUT_VERSION}`);
    // Reads the root pages of all tables; a full check would take minutes on a large file.
    db.prepare('SELECT count(*) FROM (SELECT seq FROM records ORDER BY seq DESC LIMIT 100)').get();
    db.prepare(NEWEST_CHECKPOINT).get();
    return db;
  } catch (error) {
    db.close();
    throw error;
  }
};

const pragma = (db: DatabaseSync, name: string): number =>
  Number(Object.values(db.prepare(`PRAGMA ${name}`).get() ?? {})[0] ?? 0);

/** A database of somebody else's is not written to, whatever the configuration says. */
const assertOurs = (db: DatabaseSync, path: string): void => {
  const { tables } = db.prepare('SELECT count(*) AS tables FROM sqlite_schema').get() as { tables: number };
  if (tables === 0 || pragma(db, 'application_id') === APPLICATION_ID) return;
  throw new UnderstudyError(
    'JOURNAL_UNWRITABLE',
    `${path} is a database, but no journal of Understudy's; name another file`,
  );
};

const SQLITE_BUSY = 5;
const SQLITE_CORRUPT = 11;
const SQLITE_NOTADB = 26;

const isDamage = (error: unknown): boolean => {
  const code = (error as { errcode?: number }).errcode;
  // Extended result codes carry the primary one in their low byte.
  return code !== undefined && ((code & 0xff) === SQLITE_CORRUPT || (code & 0xff) === SQLITE_NOTADB);
};
