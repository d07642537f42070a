/**
 * Where a node stands in the cluster log: by the last message of its subject and, where that is a mark, by what stands
 * before it; or by its own last one among another's.
 */
import type { MsgRequest, StoredMsg, StreamInfo } from '@nats-io/jetstream';
import { nanos } from '@nats-io/transport-node';
import type { NatsConfig } from '../config/bus.ts';
import { replicasOf } from '../config/bus.ts';
import { UnderstudyError } from '../errors.ts';
import { headOf, LOG_FORMAT } from './logFormat.ts';
import type { LogHead } from './logFormat.ts';
import type { LogOutbox } from './logOutbox.ts';
import { positionAt } from './logPosition.ts';
import type { Position } from './logPosition.ts';
import type { NatsSession } from './service.ts';
import { ensureStream } from './streams.ts';
import type { WantedStream } from './streams.ts';
import type { Subjects } from './subjects.ts';

/** Options that nats-server 2.9.10 knows: an older server would answer without the others. */
export const logStreamOf = ({ logStream, logs }: Subjects, nats: NatsConfig): WantedStream => ({
  name: logStream,
  subjects: [logs],
  storage: 'file',
  retention: 'limits',
  discard: 'old',
  num_replicas: replicasOf(nats),
  max_age: nanos(nats.keep),
  max_bytes: nats.maxSize,
  deny_delete: true,
  deny_purge: true,
  allow_direct: true,
});

/** `created` tells a stream that was deleted and made again. */
export type LastMessage = { streamSeq: number; journal: string; position: Position };
export type Found = { created: string; firstStreamSeq: number; bytes: number; last: LastMessage | null };

/** Makes the stream where it isn't there. @throws UnderstudyError NATS_STREAM_DIFFERS; what the server's API throws */
export const lookAt = async (session: NatsSession, wanted: WantedStream, subject: string): Promise<Found> => {
  const info: StreamInfo = await ensureStream(session.manager, wanted);
  const found = { created: info.created, firstStreamSeq: info.state.first_seq, bytes: info.state.bytes };
  const last = await messageAt(session, wanted.name, { last_by_subj: subject });
  if (!last) return { ...found, last: null };
  const { seq: streamSeq, head } = last;
  let position = standingAt(streamSeq, last);
  for (let seq = head.after; seq !== null;) {
    const before = await messageAt(session, wanted.name, { next_by_subj: subject, seq: seq + 1 });
    if (!before || before.seq >= streamSeq) break;
    seq = before.seq;
    if (before.head.kind !== 'mark' && before.head.journal === head.journal) position = standingAt(streamSeq, before);
  }
  return { ...found, last: { streamSeq, journal: head.journal, position } };
};

type Located = { seq: number; head: LogHead; dataBytes: number };

/** A body that was begun is begun again: nobody knows where it ended. */
const standingAt = (streamSeq: number, { head, dataBytes }: Omit<Located, 'seq'>): Position => ({
  ...positionAt(streamSeq, head, dataBytes),
  begun: null,
});

/** The library knows the second for direct gets only, which any replica may answer; a leader takes it too. */
type LeaderQuery = MsgRequest | { next_by_subj: string; seq: number };

/** Asked of the stream's leader: a replica may be behind. */
const messageAt = async ({ manager }: NatsSession, stream: string, query: LeaderQuery): Promise<Located | null> => {
  const message: StoredMsg | null = await manager.streams.getMessage(stream, query);
  if (!message) return null;
  const { seq, subject, data } = message;
  const head = headOf(message.header);
  if (!head)
    throw new UnderstudyError(
      'NATS_STREAM_REFUSED',
      `message ${seq} of ${stream}, on ${subject}, is none of Understudy's: something else writes there`,
    );
  if (head.format > LOG_FORMAT)
    throw new UnderstudyError(
      'JOURNAL_TOO_NEW',
      `${subject} was written by a newer version (format ${head.format}; this one knows ${LOG_FORMAT})`,
    );
  return { seq, head, dataBytes: data.length };
};

/** Our own last message where another's is the last: all headers of the subject are looked through, which is rare. */
export const findOwn = async (
  { jetstream, ended }: NatsSession,
  { stream, subject, journal }: { stream: string; subject: string; journal: string },
): Promise<Position | null> => {
  const heads = await jetstream.consumers.get(stream, { filter_subjects: subject, headers_only: true });
  let found: Position | null = null;
  const messages = await heads.consume();
  const stop = () => messages.stop();
  ended.addEventListener('abort', stop);
  try {
    for await (const message of messages) {
      const head = headOf(message.headers);
      // Without its data a message says how long that is.
      const bytes = Number(message.headers?.get('Nats-Msg-Size') ?? '0');
      // What was under way when a mark was sent stands before it, and says more.
      if (head?.journal === journal && (head.kind !== 'mark' || found === null))
        found = standingAt(message.seq, { head, dataBytes: bytes });
      if (message.info.pending === 0) break;
    }
  } finally {
    ended.removeEventListener('abort', stop);
    await messages.close();
  }
  return found;
};

/** The same journal with other records under its seqs: it was put back from a copy. @throws UnderstudyError */
export const assertOurs = (outbox: LogOutbox, { through, check }: Position): void => {
  const lastSeq = outbox.lastSeq();
  const ours = outbox.checkOf(through);
  if (lastSeq >= through && (check === null || ours === null || ours === check)) return;
  throw new UnderstudyError(
    'JOURNAL_FORKED',
    lastSeq < through
      ? `the cluster log has records of this journal up to ${through}, and the journal ends at ${lastSeq}`
      : `the cluster log has another record ${through} of this journal`,
  );
};
