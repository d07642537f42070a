/**
 * The cluster's commands: put into their stream, where one that is there twice is one by its id, and followed from a given
 * place on.
 *
 * Whatever is out of the ordinary ends a following, and another one begins at the place that was reached, after a look
 * at whether it is still the same stream: one that was deleted and made again begins at its first message.
 */
import {
  AckPolicy,
  DeliverPolicy,
  DiscardPolicy,
  jetstreamManager,
  RetentionPolicy,
  StorageType,
} from '@nats-io/jetstream';
import type { ConsumerMessages, JsMsg } from '@nats-io/jetstream';
import { nanos } from '@nats-io/transport-node';
import type { StreamCommand } from '../../machines/commandDesk.ts';
import { replicasOf } from '../config/bus.ts';
import { UnderstudyError } from '../errors.ts';
import { encodeJson } from './bus.ts';
import { readCommand } from './commandMessage.ts';
import { natsError } from './connection.ts';
import type { NatsSession, Service, ServiceHost } from './service.ts';
import { DRAW_MS } from './streamReader.ts';
import { ensureStream } from './streams.ts';
import type { WantedStream } from './streams.ts';

/** The newest word about each server and router is what counts, and there are never so many. */
const MAX_COMMANDS = 10_000;
/** A node that was away for longer starts without what was wanted before. */
const KEEP_MS = 365 * 86_400_000;
const MAX_COMMAND_BYTES = 4_096;
const PUBLISH_TIMEOUT_MS = 2_000;
const PUBLISH_ATTEMPTS = 2;
const FOLLOW_AGAIN_MS = 1_000;
/** The server says so often that there is nothing new; when it misses two, the following begins anew. */
const HEARTBEAT_MS = 1_000;
const PULL_MS = 10_000;
/** A look at the stream this often: it may have been made anew, or have lost the majority of its servers. */
const LOOK_MS = 3_000;
/** The server forgets a consumer that nobody asks any more. */
const CONSUMER_IDLE_MS = 30_000;

export type CommandPosition = { stream: string | null; sequence: number };

export type CommandServiceEvent =
  | { type: 'found'; stream: string; from: number }
  | ({ type: 'command'; stream: string; sequence: number } & { said: StreamCommand })
  | { type: 'unreadable'; stream: string; sequence: number }
  | { type: 'caughtUp' }
  | { type: 'lost'; code: string; message: string };

export const makeCommandService = (host: ServiceHost): Service => new CommandService(host);

class CommandService implements Service {
  readonly #host: ServiceHost;
  #following: AbortController | null = null;

  constructor(host: ServiceHost) {
    this.#host = host;
  }

  async call(method: string, args: unknown[]): Promise<unknown> {
    if (method === 'publish') return this.#publish(args[0] as StreamCommand);
    this.#follow(args[0] as CommandPosition);
    return null;
  }

  /** The control thread knows the place to go on from, and asks for it. */
  connected(): void {}

  disconnected(): void {
    this.#following?.abort();
  }

  async close(): Promise<void> {
    this.#following?.abort();
  }

  #wanted(): WantedStream {
    const { subjects, nats } = this.#host;
    return {
      name: subjects.commandStream,
      subjects: [subjects.command],
      retention: RetentionPolicy.Limits,
      storage: StorageType.File,
      discard: DiscardPolicy.Old,
      num_replicas: replicasOf(nats),
      max_msgs: MAX_COMMANDS,
      max_age: nanos(KEEP_MS),
      max_msg_size: MAX_COMMAND_BYTES,
      deny_delete: true,
      deny_purge: true,
    };
  }

  /** @throws UnderstudyError when it isn't known to be in the stream; then it may be there all the same */
  async #publish(command: StreamCommand): Promise<{ sequence: number }> {
    const session = this.#host.session();
    if (!session) throw new UnderstudyError('NATS_OFFLINE', 'NATS is not connected');
    const { manager, jetstream } = session;
    await ensureStream(manager, this.#wanted());
    const options = { timeout: PUBLISH_TIMEOUT_MS, retries: PUBLISH_ATTEMPTS };
    try {
      const { seq } = await jetstream.publish(this.#host.subjects.command, encodeJson(command), options);
      return { sequence: seq };
    } catch (error) {
      // The library takes it for a server without JetStream; but the stream was there just now.
      if (error instanceof Error && error.name === 'JetStreamNotEnabled') throw noLeader();
      throw error;
    }
  }

  #follow(from: CommandPosition): void {
    this.#following?.abort();
    const session = this.#host.session();
    // The next session is told of, and asked for again.
    if (!session) return;
    const following = new AbortController();
    this.#following = following;
    void this.#followUntil(following.signal, session, { ...from });
  }

  async #followUntil(over: AbortSignal, session: NatsSession, position: CommandPosition): Promise<void> {
    const say = (event: CommandServiceEvent) => {
      if (!over.aborted) this.#host.tell(event);
    };
    while (!over.aborted) {
      try {
        await this.#followOnce(over, session, position, say);
      } catch (error) {
        const { code, message } = natsError(error, this.#host.nats.servers);
        say({ type: 'lost', code, message });
      }
      await pause(FOLLOW_AGAIN_MS, over);
    }
  }

  /** Ends, or throws, as soon as something is out of the ordinary. */
  async #followOnce(
    over: AbortSignal,
    session: NatsSession,
    position: CommandPosition,
    say: (event: CommandServiceEvent) => void,
  ): Promise<void> {
    const { manager, jetstream, connection } = session;
    const { created, state } = await ensureStream(manager, this.#wanted());
    // A stream that ends before the place that was reached was put back from a copy.
    if (position.stream !== created || position.sequence > state.last_seq) Object.assign(position, { sequence: 0 });
    position.stream = created;
    say({ type: 'found', stream: created, from: position.sequence + 1 });
    const drawing = await jetstreamManager(connection, { checkAPI: false, timeout: DRAW_MS });
    const consumer = await drawing.consumers.add(this.#host.subjects.commandStream, {
      ack_policy: AckPolicy.None,
      deliver_policy: DeliverPolicy.StartSequence,
      opt_start_seq: position.sequence + 1,
      inactive_threshold: nanos(CONSUMER_IDLE_MS),
      mem_storage: true,
      num_replicas: 1,
    });
    const bound = await jetstream.consumers.get(this.#host.subjects.commandStream, consumer.name);
    const messages = await bound.consume({
      expires: PULL_MS,
      idle_heartbeat: HEARTBEAT_MS,
      abort_on_missing_resource: true,
    });
    const stop = () => messages.stop();
    over.addEventListener('abort', stop);
    if (over.aborted) stop();
    const trouble = this.#watch(messages, session, created);
    let caughtUp = false;
    const reached = (sequence: number) => {
      if (caughtUp || sequence < state.last_seq) return;
      caughtUp = true;
      say({ type: 'caughtUp' });
    };
    try {
      // Of what it had, the last messages may be gone by age.
      reached(state.messages === 0 ? state.last_seq : position.sequence);
      let delivery = 0;
      for await (const message of messages) {
        const { streamSequence, deliverySequence } = message.info;
        // One is missing or comes twice: the consumer begins anew.
        if (deliverySequence !== ++delivery) return;
        this.#tell(message, created, say);
        position.sequence = streamSequence;
        reached(streamSequence);
      }
      const error = await messages.closed();
      if (error) throw error;
    } finally {
      over.removeEventListener('abort', stop);
      messages.stop();
      trouble.end();
      manager.consumers.delete(this.#host.subjects.commandStream, consumer.name).catch(() => {
        // It is forgotten by itself.
      });
    }
    if (trouble.error) throw trouble.error;
  }

  #tell(message: JsMsg, stream: string, say: (event: CommandServiceEvent) => void): void {
    const sequence = message.info.streamSequence;
    const said = readCommand(message.data);
    say(said ? { type: 'command', stream, sequence, said } : { type: 'unreadable', stream, sequence });
  }

  /** Ends the messages at the first sign of trouble. */
  #watch(messages: ConsumerMessages, session: NatsSession, created: string): { error: unknown; end(): void } {
    const name = this.#host.subjects.commandStream;
    const found: { error: unknown; end(): void } = { error: null, end: () => clearInterval(timer) };
    const look = async () => {
      try {
        const info = await session.manager.streams.info(name);
        // A server that is alone with its copy answers, too.
        if (info.cluster && !info.cluster.leader) throw noLeader();
        if (info.created !== created) messages.stop();
      } catch (error) {
        found.error ??= error;
        messages.stop();
      }
    };
    const timer = setInterval(() => void look(), LOOK_MS);
    void (async () => {
      for await (const { type } of messages.status()) {
        if (type === 'heartbeats_missed' || type === 'no_responders' || type === 'consumer_deleted') messages.stop();
      }
    })();
    return found;
  }
}

const noLeader = () => new UnderstudyError('NATS_TIMEOUT', 'the command stream has no leader at the moment');

const pause = (ms: number, over: AbortSignal): Promise<void> =>
  new Promise((done) => {
    const end = () => {
      clearTimeout(timer);
      over.removeEventListener('abort', end);
      done();
    };
    const timer = setTimeout(end, ms);
    over.addEventListener('abort', end);
    if (over.aborted) end();
  });
