/**
 * One node's journal as the cluster log has it: a lineage. A node that has lost its disk begins another one under the
 * same name. What is read is checked on the way: each seq once, in order, without a hole, with the checksum that it had.
 */
import { join } from 'node:path';
import { messageOf } from '../errors.ts';
import { JournalCopy } from '../journal/copy.ts';
import { checksumOf, decodeBody, GAP } from '../journal/record.ts';
import type { SingleBody } from '../journal/record.ts';
import { unpackCheckedRows, unpackParts } from './logFormat.ts';
import type { CheckedRow, LogHead } from './logFormat.ts';
import { tokenOf } from './subjects.ts';

export type LogProblem =
  | { kind: 'hole' | 'double' | 'damaged'; from: number; through: number }
  /** Rows that don't belong where they are. */
  | { kind: 'foreign'; from: number; through: number }
  /** A message of the lineage that can't be read. */
  | { kind: 'unreadable'; message: number; why: string };

export type LogMessage = { streamSeq: number; streamUs: number; sentUs: number | null; data: Uint8Array };

/** The stream's clock minus the node's, in µs: what is least of all messages, as each also took its time to get there. */
export type ClockOffset = { us: number; messages: number };

type Fragment = { head: LogHead; chunks: Uint8Array[]; bytes: number };

export class ClusterLineage {
  readonly node: string;
  /** Identity of the journal. */
  readonly journal: string;
  /** The nats-server whose copy of the stream it is from. */
  readonly server: string;
  readonly path: string;
  readonly problems: LogProblem[] = [];
  /** Records that the journal never had, or that retention took before they could be shipped. */
  readonly gaps: { from: number; through: number }[] = [];
  firstSeq: number | null = null;
  rows = 0;
  messages = 0;
  bytes = 0;
  lastStreamSeq = 0;
  clock: ClockOffset | null = null;
  readonly #copy: JournalCopy;
  #nextSeq: number | null = null;
  #fragment: Fragment | null = null;

  constructor(folder: string, node: string, journal: string, server: string) {
    this.node = node;
    this.server = server;
    this.journal = journal;
    this.path = join(folder, `${tokenOf(node)}-${journal}.db`);
    this.#copy = new JournalCopy(this.path, journal);
  }

  get lastSeq(): number | null {
    return this.#nextSeq === null ? null : this.#nextSeq - 1;
  }

  take(head: LogHead, message: LogMessage): void {
    this.messages++;
    this.bytes += message.data.length;
    this.lastStreamSeq = message.streamSeq;
    this.#observeClock(message);
    const body = this.#assemble(head, message);
    if (!body) return;
    try {
      if (head.kind === 'checkpoint') this.#copy.addCheckpoint(unpackParts(body));
      else for (const row of unpackCheckedRows(body)) this.#takeRow(row, head);
    } catch (error) {
      this.problems.push({ kind: 'unreadable', message: message.streamSeq, why: messageOf(error) });
    }
  }

  /** Lets a reader of the file see what has come. */
  commit(): void {
    this.#copy.commit();
  }

  close(): void {
    this.#copy.close();
  }

  /** The whole body, when this is the last of its pieces. */
  #assemble(head: LogHead, { data, streamSeq }: LogMessage): Uint8Array | null {
    const { from, total } = head.piece;
    if (from === 0 && data.length === total) return data;
    if (from === 0) this.#fragment = { head, chunks: [], bytes: 0 };
    const fragment = this.#fragment;
    if (!fragment || fragment.bytes !== from || !isSameBody(fragment.head, head)) {
      // Retention may have cut the stream within a body; elsewhere what is missing shows as a hole.
      if (this.messages > 1)
        this.problems.push({ kind: 'unreadable', message: streamSeq, why: 'a piece of something that is not there' });
      return null;
    }
    fragment.chunks.push(data);
    fragment.bytes += data.length;
    if (fragment.bytes < total) return null;
    this.#fragment = null;
    return Buffer.concat(fragment.chunks);
  }

  #takeRow(row: CheckedRow, head: LogHead): void {
    if (row.seq < head.first || row.seq > head.last) return this.#note('foreign', row.seq, row.seq);
    if (checksumOf(row) !== row.crc) this.#note('damaged', row.seq, row.seq);
    if (this.#nextSeq !== null && row.seq < this.#nextSeq) return this.#note('double', row.seq, row.seq);
    if (this.#nextSeq !== null && row.seq > this.#nextSeq) this.#note('hole', this.#nextSeq, row.seq - 1);
    this.firstSeq ??= row.seq;
    this.#nextSeq = row.seq + 1;
    if (row.type === GAP) {
      const through = Number((decodeBody(row.body) as SingleBody).event['through']);
      this.gaps.push({ from: row.seq, through });
      this.#nextSeq = through + 1;
    }
    this.#copy.addRow(row);
    this.rows++;
  }

  #note(kind: 'hole' | 'double' | 'damaged' | 'foreign', from: number, through: number): void {
    const last = this.problems.at(-1);
    if (last && last.kind !== 'unreadable' && last.kind === kind && last.through === from - 1) last.through = through;
    else this.problems.push({ kind, from, through });
  }

  #observeClock({ streamUs, sentUs }: LogMessage): void {
    if (sentUs === null) return;
    const us = streamUs - sentUs;
    this.clock = { us: Math.min(us, this.clock?.us ?? Infinity), messages: (this.clock?.messages ?? 0) + 1 };
  }
}

const isSameBody = (a: LogHead, b: LogHead): boolean =>
  a.kind === b.kind &&
  a.first === b.first &&
  a.last === b.last &&
  a.checkpoint === b.checkpoint &&
  a.piece.total === b.piece.total;

/** `hole: records 12 to 14` */
export const problemText = (problem: LogProblem): string => {
  if (problem.kind === 'unreadable') return `message ${problem.message} of the stream can't be read: ${problem.why}`;
  const { kind, from, through } = problem;
  const which = from === through ? `record ${from}` : `records ${from} to ${through}`;
  const what = {
    hole: 'missing from the stream',
    double: 'more than once in the stream',
    damaged: 'altered or damaged (checksum)',
    foreign: 'in a message where no such record belongs',
  };
  return `${which}: ${what[kind]}`;
};
