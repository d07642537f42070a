/**
 * A journal's file made from what was read elsewhere, for those who read journals. Nothing depends on it, so it is
 * written without waiting for the disk; each row keeps the checksum that it came with.
 */
import { DatabaseSync } from 'node:sqlite';
import type { StatementSync } from 'node:sqlite';
import type { Range } from '../ranges.ts';
import { ROW_COLUMNS, valuesOf } from './record.ts';
import type { Row } from './record.ts';
import { APPLICATION_ID, LAYOUT_VERSION, SCHEMA } from './store.ts';
import type { CheckpointPart } from './store.ts';

export class JournalCopy {
  readonly path: string;
  readonly #db: DatabaseSync;
  readonly #insert: StatementSync;
  readonly #insertPart: StatementSync;
  readonly #crc: StatementSync;

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
    this.#crc = this.#db.prepare('SELECT crc FROM records WHERE seq = ?');
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

  crcOf(seq: number): number | null {
    const found = this.#crc.get(seq) as { crc: number } | undefined;
    return found?.crc ?? null;
  }

  /**
   * Adds what another copy has and this one has not; in these ranges its rows take the place of those here. Says how many
   * rows came in addition, and which seqs are not the same in both. Both copies are committed.
   */
  fillFrom(path: string, instead: readonly Range[]): { added: number; differing: Range[] } {
    this.#db.prepare('ATTACH DATABASE ? AS other').run(path);
    try {
      this.#begin();
      const remove = this.#db.prepare('DELETE FROM records WHERE seq BETWEEN ? AND ?');
      const removed = instead.reduce((sum, { from, through }) => sum + Number(remove.run(from, through).changes), 0);
      const inserted = this.#db.prepare('INSERT OR IGNORE INTO main.records SELECT * FROM other.records').run();
      this.#db.exec('INSERT OR IGNORE INTO main.checkpoints SELECT * FROM other.checkpoints');
      const differing = this.#db
        .prepare(
          'SELECT seq FROM main.records AS mine JOIN other.records AS its USING (seq) WHERE mine.crc <> its.crc ORDER BY seq',
        )
        .all() as { seq: number }[];
      this.commit();
      return {
        added: Number(inserted.changes) - removed,
        differing: differing.map(({ seq }) => ({ from: seq, through: seq })),
      };
    } finally {
      this.commit();
      this.#db.exec('DETACH DATABASE other');
    }
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
