/**
 * A journal's file made from what was read elsewhere, for those who read journals. Nothing depends on it, so it is
 * written without waiting for the disk; each row keeps the checksum that it came with.
 */
import { DatabaseSync } from 'node:sqlite';
import type { StatementSync } from 'node:sqlite';
import { ROW_COLUMNS, valuesOf } from './record.ts';
import type { Row } from './record.ts';
import { APPLICATION_ID, LAYOUT_VERSION, SCHEMA } from './store.ts';
import type { CheckpointPart } from './store.ts';

export class JournalCopy {
  readonly path: string;
  readonly #db: DatabaseSync;
  readonly #insert: StatementSync;
  readonly #insertPart: StatementSync;

  /** Begins a new file. */
  constructor(path: string, identity: string) {
    this.path = path;
    this.#db = new DatabaseSync(path);
    this.#db.exec('PRAGMA journal_mode = WAL');
    this.#db.exec('PRAGMA synchronous = OFF');
    this.#db.exec(SCHEMA);
    this.#db.exec(`PRAGMA application_id = ${APPLICATION_ID}`);
    this.#db.exec(`PRAGMA user_version = ${LAYOUT_VERSION}`);
    this.#db.prepare('UPDATE identity SET name = ?').run(identity);
    this.#insert = this.#db.prepare(
      `INSERT INTO records (${ROW_COLUMNS.join(', ')}, crc) VALUES (${'?, '.repeat(ROW_COLUMNS.length)}?)`,
    );
    this.#insertPart = this.#db.prepare(
      'INSERT OR REPLACE INTO checkpoints (seq, part, parts, epoch, time, mono, v, body, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)',
    );
  }

  addRow(row: Row & { crc: number }): void {
    this.#begin();
    this.#insert.run(...valuesOf(row), row.crc);
  }

  addCheckpoint(parts: readonly CheckpointPart[]): void {
    this.#begin();
    for (const { seq, part, parts: of, epoch, time, mono, v, body, crc } of parts)
      this.#insertPart.run(seq, part, of, epoch, time, mono, v, body, crc);
  }

  /** Lets readers see what was added. */
  commit(): void {
    if (this.#db.isTransaction) this.#db.exec('COMMIT');
  }

  close(): void {
    this.commit();
    this.#db.close();
  }

  #begin(): void {
    if (!this.#db.isTransaction) this.#db.exec('BEGIN');
  }
}
