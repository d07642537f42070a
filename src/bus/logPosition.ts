/** How far a journal is in the cluster log, as its last message there tells. */
import { LOG_FORMAT } from './logFormat.ts';
import type { LogHead } from './logFormat.ts';

export type Position = {
  /** Of the last message on the subject, which the next one names; 0 where there is none. */
  streamSeq: number;
  /** Records up to this one are in the stream. */
  through: number;
  /** Checksum of record `through`, where it is known. */
  check: number | null;
  /** Checkpoints up to this one are in the stream, or were passed over. */
  checkpoint: number;
  /** Of a body that was begun so many bytes are there; null between bodies. */
  begun: number | null;
};

export const beginning = (streamSeq: number): Position => ({
  streamSeq,
  through: 0,
  check: null,
  checkpoint: -1,
  begun: null,
});

/**
 * A mark behind whatever is under way. It names the same last message as that does, so that the stream takes the other
 * before the mark or never; in the stream it says where its sender stood without the other.
 */
export const markAt = (journal: string, { streamSeq, through, check, checkpoint }: Position): LogHead => ({
  format: LOG_FORMAT,
  kind: 'mark',
  journal,
  epoch: 0,
  first: through,
  last: through,
  check,
  checkpoint: checkpoint < 0 ? null : checkpoint,
  piece: { from: 0, total: 0 },
  after: streamSeq,
});

/** Where a courier stands that knows nothing but its last message. */
export const positionAt = (streamSeq: number, head: LogHead, dataBytes: number): Position => {
  const { kind, first, last, check, checkpoint } = head;
  if (kind === 'mark') return { streamSeq, through: last, check, checkpoint: checkpoint ?? -1, begun: null };
  const bytes = head.piece.from + dataBytes;
  const whole = bytes >= head.piece.total;
  if (kind === 'checkpoint')
    return {
      streamSeq,
      through: last,
      check,
      checkpoint: whole ? checkpoint! : checkpoint! - 1,
      begun: whole ? null : bytes,
    };
  // A checkpoint at the last record itself would come after it.
  return whole
    ? { streamSeq, through: last, check, checkpoint: last - 1, begun: null }
    : { streamSeq, through: first - 1, check: null, checkpoint: first - 1, begun: bytes };
};

/** Where it stands after one message more. */
export const positionAfter = (before: Position, streamSeq: number, head: LogHead, dataBytes: number): Position => {
  const after = positionAt(streamSeq, head, dataBytes);
  if (head.kind === 'checkpoint') {
    const { through, check } = before.through >= after.through ? before : after;
    return { ...after, through, check };
  }
  // What retention has cut off ends at a checkpoint, which comes next.
  return { ...after, checkpoint: head.kind === 'gap' ? after.checkpoint : before.checkpoint };
};
