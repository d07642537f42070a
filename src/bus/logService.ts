/**
 * The courier's work in the bus's thread: ships the journal into the cluster log, one message at a time, in order. Each
 * message names the one that must be the subject's last, so that none is left out, and nobody else writes between. After
 * anything that went wrong nobody knows whether a message that is not acknowledged is still under way, and sent again it
 * could get in twice: nats-server compares before it asks its peers. So a mark is sent that names the same last message.
 * Once it is stored, the other one stands before it, or will never be taken; the stream itself says which.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { JetStreamApiCodes, JetStreamApiError } from '@nats-io/jetstream';
import { Empty } from '@nats-io/transport-node';
import { UnderstudyError } from '../errors.ts';
import type { ErrorCode } from '../errors.ts';
import { natsError } from './connection.ts';
import { LogFigures } from './logFigures.ts';
import type { DelayHistogram } from './logFigures.ts';
import { HEADER_BYTES, headersOf } from './logFormat.ts';
import type { LogHead } from './logFormat.ts';
import { assertOurs, findOwn, logStreamOf, lookAt } from './logLocate.ts';
import type { Found, LastMessage } from './logLocate.ts';
import { LogOutbox } from './logOutbox.ts';
import type { OutgoingMessage } from './logOutbox.ts';
import { beginning, markAt, positionAfter } from './logPosition.ts';
import type { Position } from './logPosition.ts';
import { ALIVE_MS, LogRivals } from './logRivals.ts';
import type { MakeService, NatsSession, Service, ServiceHost } from './service.ts';
import type { WantedStream } from './streams.ts';

/** Far below the server's usual limit of 1 MiB: one message must not hold up heartbeats on the same connection. */
const MAX_MESSAGE_BYTES = 256 * 1024;
/** With less most records would go in pieces, and more headers than records be sent. */
const SMALLEST_PAYLOAD_BYTES = 8 * 1024;
/** An election among nats-servers takes a few seconds; what was lost in it is asked for again. */
const ACK_MS = 5_000;
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 2_000;
/** Trouble that goes by itself (a leader's loss, a server's restart) isn't told before it has lasted so long. */
const PATIENCE_MS = 10_000;
/** The journal is looked at this often, also when nobody has said that something was written. */
const LOOK_EVERY_MS = 1_000;
/** What is this late, or this much, has fallen behind. */
const BEHIND_AFTER_LOOKS = 5;
const BEHIND_RECORDS = 20_000;
/** Figures go to the control thread at most this often. */
const TELL_EVERY_MS = 250;
/** Retention may have taken a message that is nearly as old, or in a stream that is nearly as large, as it allows. */
const NEARLY = 0.9;

/** What the control thread is told. The first five are news for the courier's machine. */
export type LogEvent =
  | { type: 'located'; behind: number }
  | { type: 'caughtUp' }
  | { type: 'fellBehind'; behind: number }
  | { type: 'refused'; code: ErrorCode; message: string }
  | { type: 'fenced'; journal: string }
  | ({ type: 'progress' } & LogProgress);

export type LogProgress = {
  shippedSeq: number | null;
  records: number;
  messages: number;
  bytes: number;
  delay: DelayHistogram;
  delayMs: { p50: number; p99: number } | null;
};

/** Another node of this name writes, or is there to write. */
class Fenced extends Error {
  readonly journal: string;

  constructor(journal: string) {
    super(`fenced by journal ${journal}`);
    this.journal = journal;
  }
}

/** Errors of ours that don't go away while one waits for them. */
const LASTING: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'NATS_NO_JETSTREAM',
  'NATS_STREAM_DIFFERS',
  'NATS_STREAM_REFUSED',
  'NATS_REFUSED',
  'JOURNAL_FORKED',
  'JOURNAL_TOO_NEW',
]);

class LogService implements Service {
  readonly #host: ServiceHost;
  readonly #wanted: WantedStream;
  readonly #subject: string;
  readonly #rivals: LogRivals;
  readonly #figures = new LogFigures();
  #outbox: LogOutbox | null = null;
  /** Where we stand, in which stream, and since when. */
  #known: { created: string; position: Position; atMs: number } | null = null;
  /** Another's last message, and when it was seen to come; minus infinity when it was there from the start. */
  #foreign: { streamSeq: number; seenMs: number } | null = null;
  #working: { session: NatsSession; done: Promise<void> } | null = null;
  #inStep = false;
  /** The journal's last seq at each of the last looks. */
  #looks: number[] = [];
  #wake: () => void = () => {};
  #telling: NodeJS.Timeout | null = null;
  #closing = false;

  constructor(host: ServiceHost) {
    const { subjects, node, nats } = host;
    this.#host = host;
    this.#wanted = logStreamOf(subjects, nats);
    this.#subject = subjects.log(node);
    this.#rivals = new LogRivals(subjects.alive(node));
    setInterval(() => this.#look(), LOOK_EVERY_MS).unref();
  }

  /** `ship`: begin, or try again. `written`: there is more in the journal. */
  async call(method: string): Promise<null> {
    if (method === 'ship') this.#begin();
    else this.#wake();
    return null;
  }

  connected(session: NatsSession): void {
    this.#rivals.listen(session.connection, performance.now());
  }

  disconnected(): void {
    this.#wake();
  }

  async close(): Promise<void> {
    this.#closing = true;
    this.#wake();
    await this.#working?.done;
    this.#closeOutbox();
  }

  /** The next attempt opens it anew. */
  #closeOutbox(): void {
    this.#outbox?.close();
    this.#outbox = null;
  }

  #begin(): void {
    const session = this.#host.session();
    if (!session || this.#closing) return;
    if (this.#working?.session === session) return;
    const done = this.#work(session).finally(() => {
      if (this.#working?.session === session) this.#working = null;
    });
    this.#working = { session, done };
  }

  /** Until the session ends, or until something is wrong that has to be told. */
  async #work(session: NatsSession): Promise<void> {
    this.#inStep = false;
    let pauseMs = FIRST_PAUSE_MS;
    let failingSinceMs: number | null = null;
    let isLocated = false;
    while (!session.ended.aborted) {
      try {
        this.#outbox ??= new LogOutbox(this.#host.journalPath);
        const position = await this.#locate(session, this.#outbox);
        if (!isLocated) this.#tell({ type: 'located', behind: this.#outbox.lastSeq() - position.through });
        isLocated = true;
        await this.#ship(session, this.#outbox, () => {
          pauseMs = FIRST_PAUSE_MS;
          failingSinceMs = null;
        });
        return;
      } catch (error) {
        if (session.ended.aborted || (this.#closing && failingSinceMs !== null)) return;
        if (error instanceof Fenced) return this.#tell({ type: 'fenced', journal: error.journal });
        const { code, message } = natsError(error, this.#host.nats.servers);
        if (code === 'JOURNAL_UNREADABLE') this.#closeOutbox();
        const nowMs = performance.now();
        failingSinceMs ??= nowMs;
        if (isLasting(error, code) || nowMs - failingSinceMs > PATIENCE_MS)
          return this.#tell({ type: 'refused', code, message });
        await pause(pauseMs, session.ended);
        pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
      }
    }
  }

  async #ship(session: NatsSession, outbox: LogOutbox, succeeded: () => void): Promise<void> {
    const { max_payload: maxPayload } = session.connection.info!;
    if (maxPayload < SMALLEST_PAYLOAD_BYTES)
      throw new UnderstudyError(
        'NATS_STREAM_REFUSED',
        `the server's max_payload of ${maxPayload} bytes is too small for records; allow ${SMALLEST_PAYLOAD_BYTES} at least`,
      );
    const limitBytes = Math.min(MAX_MESSAGE_BYTES, maxPayload - HEADER_BYTES);
    while (!session.ended.aborted) {
      const { position } = this.#known!;
      const message = outbox.next(position, limitBytes);
      if (!message) {
        this.#caughtUp();
        if (this.#closing) return;
        await new Promise<void>((done) => (this.#wake = done));
        continue;
      }
      const streamSeq = await this.#publish(session, message.head, message.data, position.streamSeq);
      this.#known = {
        ...this.#known!,
        position: positionAfter(position, streamSeq, message.head, message.data.length),
        atMs: performance.now(),
      };
      outbox.shipped(message);
      succeeded();
      this.#count(message);
      if (message.isLast) this.#caughtUp();
    }
  }

  /** Without an id: 2.9.10 remembers ids of what never got in, and then leaves the message out of one copy of three. */
  async #publish(session: NatsSession, head: LogHead, data: Uint8Array, lastStreamSeq: number): Promise<number> {
    const ack = await session.jetstream
      .publish(this.#subject, data, {
        headers: headersOf(head, Date.now() * 1000),
        timeout: ACK_MS,
        expect: { streamName: this.#wanted.name, lastSubjectSequence: lastStreamSeq },
      })
      .catch((error: unknown) => {
        throw isNobodyThere(error) ? new Error('the stream is gone, or has no leader at the moment') : error;
      });
    // Another session asks the stream itself.
    if (session.ended.aborted) throw new Error('nobody knows which message is the last');
    return ack.seq;
  }

  /** @throws Fenced; whatever the server's API throws */
  async #locate(session: NatsSession, outbox: LogOutbox): Promise<Position> {
    const before = await this.#lookFor(session, outbox);
    await this.#publish(session, markAt(outbox.identity, before), Empty, before.streamSeq);
    return this.#lookFor(session, outbox);
  }

  async #lookFor(session: NatsSession, outbox: LogOutbox): Promise<Position> {
    const found = await lookAt(session, this.#wanted, this.#subject);
    if (this.#known?.created !== found.created) this.#known = null;
    const position = await this.#positionIn(found, session, outbox);
    assertOurs(outbox, position);
    this.#known = { created: found.created, position, atMs: this.#known?.atMs ?? -Infinity };
    return position;
  }

  async #positionIn(found: Found, session: NatsSession, outbox: LogOutbox): Promise<Position> {
    const { last } = found;
    const known = this.#known?.position ?? null;
    if (last === null)
      return known && this.#mayBeRetained(found, known) ? { ...known, streamSeq: 0, begun: null } : beginning(0);
    if (last.journal === outbox.identity) {
      this.#foreign = null;
      return known?.streamSeq === last.streamSeq ? known : last.position;
    }
    await this.#assertAlone(last, session, outbox);
    // Ours may stand before the other's.
    const search = { stream: this.#wanted.name, subject: this.#subject, journal: outbox.identity };
    const own = known ?? (await findOwn(session, search)) ?? beginning(0);
    return { ...own, streamSeq: last.streamSeq };
  }

  /** Whether retention took our messages, and nobody's hand: then those that are gone aren't shipped again. */
  #mayBeRetained({ firstStreamSeq, bytes }: Found, known: Position): boolean {
    if (firstStreamSeq <= known.streamSeq) return false;
    const { keep, maxSize } = this.#host.nats;
    return performance.now() - this.#known!.atMs > NEARLY * keep || bytes > NEARLY * maxSize;
  }

  /** The last message is another journal's. Where its node is gone, this journal begins after it. @throws Fenced */
  async #assertAlone(
    { streamSeq, journal }: LastMessage,
    session: NatsSession,
    { identity }: LogOutbox,
  ): Promise<void> {
    if (this.#foreign?.streamSeq !== streamSeq) {
      const wasThere = this.#foreign === null && this.#known === null;
      this.#foreign = { streamSeq, seenMs: wasThere ? -Infinity : performance.now() };
    }
    if (performance.now() - this.#foreign.seenMs < ALIVE_MS) throw new Fenced(journal);
    const listenMs = this.#rivals.listenOnMs(performance.now());
    if (listenMs > 0) await pause(listenMs, session.ended);
    const alive = this.#rivals.alive(identity, performance.now());
    if (alive !== null) throw new Fenced(alive);
  }

  #caughtUp(): void {
    this.#looks = [];
    this.#tellProgress();
    if (this.#inStep) return;
    this.#inStep = true;
    this.#tell({ type: 'caughtUp' });
  }

  #look(): void {
    const { session } = this.#working ?? {};
    if (!session || !this.#outbox || !this.#known) return;
    this.#wake();
    let lastSeq: number;
    try {
      lastSeq = this.#outbox.lastSeq();
    } catch {
      // Whoever ships meets the same, and tells it.
      return;
    }
    const { through } = this.#known.position;
    this.#looks.push(lastSeq);
    if (this.#looks.length > BEHIND_AFTER_LOOKS) this.#looks.shift();
    const isLate = this.#looks.length === BEHIND_AFTER_LOOKS && through < this.#looks[0]!;
    if (!this.#inStep || (!isLate && lastSeq - through < BEHIND_RECORDS)) return;
    this.#inStep = false;
    this.#tell({ type: 'fellBehind', behind: lastSeq - through });
  }

  #count({ rows, data, decidedUs }: OutgoingMessage): void {
    this.#figures.shipped(rows, data.length);
    const nowMs = Date.now();
    for (const us of decidedUs) this.#figures.observe(nowMs - us / 1000);
    this.#tellProgress();
  }

  #tellProgress(): void {
    if (this.#telling) return;
    this.#telling = setTimeout(() => {
      this.#telling = null;
      const { records, messages, bytes, delay: delays } = this.#figures;
      this.#tell({
        type: 'progress',
        shippedSeq: this.#known?.position.through ?? null,
        records,
        messages,
        bytes,
        delay: delays,
        delayMs: this.#figures.quantiles(),
      });
    }, TELL_EVERY_MS);
  }

  #tell(event: LogEvent): void {
    if (!this.#closing) this.#host.tell(event);
  }
}

/** The library takes a subject that nobody listens on for a server without JetStream. */
const isNobodyThere = (error: unknown): boolean => error instanceof Error && error.name === 'JetStreamNotEnabled';

const isLasting = (error: unknown, code: ErrorCode): boolean =>
  LASTING.has(code) &&
  !(error instanceof JetStreamApiError && error.code === JetStreamApiCodes.StreamWrongLastSequence);

const pause = (ms: number, ended: AbortSignal): Promise<void> =>
  delay(ms, undefined, { signal: ended }).catch(() => {});

export const makeLogService: MakeService = (host) => new LogService(host);
