/**
 * Reads a stream from one of its copies. NATS puts a consumer without copies of its own on one of the servers that have
 * the stream, by chance, and there it reads that server's copy: so it is drawn, and drawn again where another copy is
 * meant. A draw may fall on a server that died a moment ago, and is then not answered.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { AckPolicy, DeliverPolicy, jetstream, jetstreamManager } from '@nats-io/jetstream';
import type {
  ConsumerConfig,
  ConsumerInfo,
  ConsumerMessages,
  JetStreamClient,
  JetStreamManager,
  JsMsg,
} from '@nats-io/jetstream';
import { nanos } from '@nats-io/transport-node';
import type { NatsConnection } from '@nats-io/transport-node';
import { UnderstudyError } from '../errors.ts';
import type { ErrorCode } from '../errors.ts';
import { natsError } from './connection.ts';

/** Messages that may be under way to us: a few megabytes. */
const MAX_UNREAD_MESSAGES = 100;
/** The server forgets a consumer that nobody asks any more. */
const CONSUMER_IDLE_MS = 60_000;
const HEARTBEAT_MS = 1_000;
/** A server that lives makes a consumer within milliseconds; one that died a moment ago may be asked for it, and never does. */
export const DRAW_MS = 1_500;
/** From one draw that is not answered to the next. */
const DRAW_AGAIN_MS = 250;
/** While nats-servers elect a leader, most of them at once after a loss, nobody answers. */
const PATIENCE_MS = 30_000;
const AGAIN_MS = 1_000;

const SILENCE: ReadonlySet<ErrorCode> = new Set<ErrorCode>(['NATS_TIMEOUT', 'NATS_UNREACHABLE']);

/** While a connection is made again, or nobody leads. */
export const isSilence = (error: unknown): boolean => error instanceof UnderstudyError && SILENCE.has(error.code);

/** @throws UnderstudyError of what NATS says, of silence when it has lasted */
export const patiently = async <T>(ask: () => Promise<T>, servers: string[]): Promise<T> => {
  const endsAt = performance.now() + PATIENCE_MS;
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      const found = natsError(error, servers);
      if (!isSilence(found) || performance.now() > endsAt) throw found;
      await delay(AGAIN_MS);
    }
  }
};

/** Where reading begins: with all, from a time on (ms since 1970), or after a message of the stream. */
export type ReadStart = { after: number } | { sinceMs: number } | 'all';

/** A consumer that was drawn, and the server whose copy it reads; a server that stands alone has no name. */
export type Drawn = { server: string; consumer: ConsumerInfo };

export class StreamReader {
  readonly #stream: string;
  readonly #servers: string[];
  readonly #connection: NatsConnection;
  readonly #jetstream: JetStreamClient;
  readonly #manager: JetStreamManager;
  #reading: ConsumerMessages | null = null;

  /** `servers` are for messages of errors. */
  static async open(connection: NatsConnection, stream: string, servers: string[]): Promise<StreamReader> {
    const manager = await jetstreamManager(connection, { checkAPI: false, timeout: DRAW_MS });
    return new StreamReader(connection, manager, stream, servers);
  }

  private constructor(connection: NatsConnection, manager: JetStreamManager, stream: string, servers: string[]) {
    this.#connection = connection;
    this.#jetstream = jetstream(connection);
    this.#manager = manager;
    this.#stream = stream;
    this.#servers = servers;
    void this.#stopWhenLost();
  }

  /** On any server. @throws UnderstudyError of what NATS says, of silence when it has lasted */
  async any(subject: string, start: ReadStart): Promise<Drawn> {
    const endsAt = performance.now() + PATIENCE_MS;
    for (;;) {
      const drawn = await this.draw(subject, start);
      if (drawn) return drawn;
      if (performance.now() > endsAt)
        throw new UnderstudyError(
          'NATS_TIMEOUT',
          `NATS at ${this.#servers.join(', ')} gives no copy of ${this.#stream}`,
        );
    }
  }

  /** Null when it was not answered. @throws UnderstudyError of what NATS says */
  async draw(subject: string, start: ReadStart): Promise<Drawn | null> {
    try {
      const consumer = await this.#manager.consumers.add(this.#stream, {
        ...policyOf(start),
        filter_subject: subject,
        ack_policy: AckPolicy.None,
        inactive_threshold: nanos(CONSUMER_IDLE_MS),
        mem_storage: true,
        num_replicas: 1,
      });
      return { server: consumer.cluster?.leader ?? '', consumer };
    } catch (error) {
      const found = natsError(error, this.#servers);
      if (!isSilence(found)) throw found;
      await delay(DRAW_AGAIN_MS);
      return null;
    }
  }

  /** It is not needed any more. What doesn't hear that is forgotten by its server. */
  async release({ consumer }: Drawn): Promise<void> {
    await this.#manager.consumers.delete(this.#stream, consumer.name).catch(() => {});
  }

  /** As they come, until the server falls silent. @throws UnderstudyError NATS_TIMEOUT then; of what NATS says */
  async *messages({ server, consumer: { name } }: Drawn): AsyncGenerator<JsMsg> {
    try {
      const consumer = await this.#jetstream.consumers.get(this.#stream, name);
      this.#reading = await consumer.consume({
        max_messages: MAX_UNREAD_MESSAGES,
        idle_heartbeat: HEARTBEAT_MS,
        abort_on_missing_resource: true,
      });
      void stopWhenSilent(this.#reading);
      yield* this.#reading;
    } catch (error) {
      throw natsError(error, this.#servers);
    }
    const who = server === '' ? 'nats-server' : `nats-server ${server}`;
    throw new UnderstudyError('NATS_TIMEOUT', `${who}, from which ${this.#stream} was read, has fallen silent`);
  }

  stop(): void {
    this.#reading?.stop();
  }

  /** The library would wait for ever when the consumer's server was lost with the connection. */
  async #stopWhenLost(): Promise<void> {
    for await (const { type } of this.#connection.status()) if (type === 'disconnect') this.stop();
  }
}

const policyOf = (start: ReadStart): Partial<ConsumerConfig> => {
  if (start === 'all') return { deliver_policy: DeliverPolicy.All };
  return 'after' in start
    ? { deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: start.after + 1 }
    : { deliver_policy: DeliverPolicy.StartTime, opt_start_time: new Date(start.sinceMs).toISOString() };
};

const stopWhenSilent = async (messages: ConsumerMessages): Promise<void> => {
  for await (const { type } of messages.status()) if (type === 'heartbeats_missed') messages.stop();
};
