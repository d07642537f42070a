/**
 * What a message of the cluster log is. Its body is rows of the journal, packed as arrays in the order of the columns
 * with each row's checksum behind them; or a checkpoint; or a row that stands for what retention took before it could be
 * shipped. A body that is too large for one message is cut into pieces. A mark has no body: a courier that doesn't know
 * what became of a message sends one behind it. The headers say where the message belongs, so that the last one on a
 * subject, and what stands before it since the last mark, is all that a courier needs to go on.
 */
import { headers } from '@nats-io/transport-node';
import type { MsgHdrs } from '@nats-io/transport-node';
import { Packr, Unpackr } from 'msgpackr';
import type { Row } from '../journal/record.ts';
import { ROW_COLUMNS } from '../journal/record.ts';
import type { CheckpointPart } from '../journal/store.ts';

/** Version of all that stands here; a reader refuses what is newer. */
export const LOG_FORMAT = 1;

const FORMAT = 'Understudy-Format';
const KIND = 'Understudy-Kind';
const JOURNAL = 'Understudy-Journal';
const EPOCH = 'Understudy-Epoch';
const FIRST = 'Understudy-First';
const LAST = 'Understudy-Last';
const CHECK = 'Understudy-Check';
const CHECKPOINT = 'Understudy-Checkpoint';
const PIECE = 'Understudy-Piece';
const AFTER = 'Understudy-After';
const SENT = 'Understudy-Sent';

/** Room for our headers, NATS's own and the subject. */
export const HEADER_BYTES = 2_048;

const KINDS = ['rows', 'checkpoint', 'gap', 'mark'] as const;
export type LogKind = (typeof KINDS)[number];

export type LogHead = {
  format: number;
  kind: LogKind;
  /** Identity of the journal that it comes from. */
  journal: string;
  epoch: number;
  /** Seqs of the rows within; of a checkpoint and a mark `last` is how far the journal has been shipped. */
  first: number;
  last: number;
  /** Checksum of row `last`, by which a journal that was put back from a copy is told. Null where there is none. */
  check: number | null;
  /** Seq of the checkpoint. */
  checkpoint: number | null;
  /** Which bytes of the whole body these are. */
  piece: { from: number; total: number };
  /** Of a mark: the stream's sequence of the subject's last message that its sender knew; null of others. */
  after: number | null;
};

/** A whole body and what it is. */
export type LogBody = Omit<LogHead, 'format' | 'piece' | 'journal' | 'after'> & { bytes: Uint8Array };

export type CheckedRow = Row & { crc: number };

const packr = new Packr({ useRecords: false });
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true });

/** Values in the order of the columns, and the checksum. */
export const packValues = (rows: readonly unknown[][]): Uint8Array => packr.pack(rows);

/** Throws what the decoder throws for what are no rows. */
export const unpackCheckedRows = (bytes: Uint8Array): CheckedRow[] =>
  (unpackr.unpack(bytes) as unknown[][]).map(
    (values) =>
      Object.fromEntries([...ROW_COLUMNS, 'crc'].map((column, index) => [column, values[index]])) as CheckedRow,
  );

export const packParts = (parts: readonly CheckpointPart[]): Uint8Array => packr.pack(parts);
export const unpackParts = (bytes: Uint8Array): CheckpointPart[] => unpackr.unpack(bytes) as CheckpointPart[];

export const headersOf = (head: LogHead, sentUs: number): MsgHdrs => {
  const made = headers();
  made.set(FORMAT, String(head.format));
  made.set(KIND, head.kind);
  made.set(JOURNAL, head.journal);
  made.set(EPOCH, String(head.epoch));
  made.set(FIRST, String(head.first));
  made.set(LAST, String(head.last));
  if (head.check !== null) made.set(CHECK, String(head.check));
  if (head.checkpoint !== null) made.set(CHECKPOINT, String(head.checkpoint));
  made.set(PIECE, `${head.piece.from}/${head.piece.total}`);
  if (head.after !== null) made.set(AFTER, String(head.after));
  made.set(SENT, String(sentUs));
  return made;
};

/** Null for a message that isn't ours. */
export const headOf = (from: MsgHdrs | undefined): LogHead | null => {
  if (!from) return null;
  const number = (name: string): number | null => {
    const text = from.get(name);
    return /^\d{1,16}$/.test(text) ? Number(text) : null;
  };
  const kind = KINDS.find((known) => known === from.get(KIND));
  const journal = from.get(JOURNAL);
  const [format, epoch, first, last] = [number(FORMAT), number(EPOCH), number(FIRST), number(LAST)];
  const piece = /^(\d{1,16})\/(\d{1,16})$/.exec(from.get(PIECE));
  if (!kind || journal === '' || format === null || epoch === null || first === null || last === null || !piece)
    return null;
  if ((kind === 'mark') !== (from.get(AFTER) !== '')) return null;
  return {
    format,
    kind,
    journal,
    epoch,
    first,
    last,
    check: number(CHECK),
    checkpoint: number(CHECKPOINT),
    piece: { from: Number(piece[1]), total: Number(piece[2]) },
    after: number(AFTER),
  };
};

/** When the courier's node sent it, by that node's clock: µs since 1970; null where it isn't said. */
export const sentUsOf = (from: MsgHdrs | undefined): number | null => {
  const text = from?.get(SENT) ?? '';
  return /^\d{1,16}$/.test(text) ? Number(text) : null;
};
