/**
 * One node's journal as the cluster log has it: a lineage. A node that has lost its disk begins another one under the
 * same name. What is read is checked on the way: each seq once, in order, without a hole, with the checksum that it had.
 */
import { join } from 'node:path';
import { messageOf } from '../errors.ts';
import { JournalCopy } from '../journal/copy.ts';
import { checksumOf, decodeBody, GAP } from '../journal/record.ts';
import type { SingleBody } from '../journal/record.ts';
import { Ranges } from '../ranges.ts';
import type { Range } from '../ranges.ts';
import { unpackCheckedRows, unpackParts } from './logFormat.ts';
import type { CheckedRow, LogHead } from './logFormat.ts';
import { emptyStanding, problemsOf, together } from './logStanding.ts';
import type { LogProblem, Standing } from './logStanding.ts';
import { tokenOf } from './subjects.ts';

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
  /** Records that the journal never had, or that retention took before they could be shipped. */
  readonly gaps: Range[] = [];
  rows = 0;
  messages = 0;
  bytes = 0;
  lastStreamSeq = 0;
  clock: ClockOffset | null = null;
  readonly #copy: JournalCopy;
  /** Of this copy alone, and of it with those that were taken in. */
  readonly #own: Standing = emptyStanding();
  #standing: Standing = this.#own;
  #fragment: Fragment | null = null;

  constructor(folder: string, node: string, journal: string, server: string) {
    this.node = node;
    this.server = server;
    this.journal = journal;
    this.path = join(folder, `${tokenOf(node)}-${journal}.db`);
    this.#copy = new JournalCopy(this.path, journal);
  }

  get firstSeq(): number | null {
    return this.#standing.covered.first;
  }

  get lastSeq(): number | null {
    return this.#standing.covered.last;
  }

  get problems(): LogProblem[] {
    return problemsOf(this.#standing);
  }

  /** Of this copy alone. */
  get own(): Standing {
    return this.#own;
  }

  get standing(): Standing {
    return this.#standing;
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
      this.#standing.unreadable.push({ kind: 'unreadable', message: message.streamSeq, why: messageOf(error) });
    }
  }

  /** Takes what another copy of the stream has of the same journal, and this one has not, or not sound. */
  takeIn(other: ClusterLineage): void {
    this.commit();
    other.commit();
    const { damaged } = this.#standing.flaws;
    const sound = other.#standing.covered.minus(other.#standing.flaws.damaged);
    const { added, differing } = this.#copy.fillFrom(other.path, damaged.minus(damaged.minus(sound)).list);
    this.rows += added;
    const begins = new Set(this.gaps.map(({ from }) => from));
    this.gaps.push(...other.gaps.filter(({ from }) => !begins.has(from)));
    this.gaps.sort((a, b) => a.from - b.from);
    this.#standing = together(this.#standing, other.#standing, Ranges.of(differing));
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
        this.#standing.unreadable.push({
          kind: 'unreadable',
          message: streamSeq,
          why: 'a piece of something that is not there',
        });
      return null;
    }
    fragment.chunks.push(data);
    fragment.bytes += data.length;
    if (fragment.bytes < total) return null;
    this.#fragment = null;
    return Buffer.concat(fragment.chunks);
  }

  #takeRow(row: CheckedRow, head: LogHead): void {
    const { covered, flaws } = this.#standing;
    const { seq } = row;
    if (seq < head.first || seq > head.last) return flaws.foreign.add(seq);
    if (checksumOf(row) !== row.crc) flaws.damaged.add(seq);
    if (covered.has(seq)) return (this.#copy.crcOf(seq) === row.crc ? flaws.double : flaws.differing).add(seq);
    covered.add(seq);
    if (row.type === GAP) {
      const through = Number((decodeBody(row.body) as SingleBody).event['through']);
      this.gaps.push({ from: seq, through });
      covered.add(seq, through);
    }
    this.#copy.addRow(row);
    this.rows++;
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
