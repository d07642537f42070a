/** What `bench:cluster` asks of NATS itself: bare publishes to a stream of three copies, and what a cluster log holds. */
import { DeliverPolicy, jetstream, jetstreamManager, RetentionPolicy, StorageType } from '@nats-io/jetstream';
import type { JetStreamClient, JetStreamManager, JsMsg } from '@nats-io/jetstream';
import { connect } from '@nats-io/transport-node';
import type { NatsConnection } from '@nats-io/transport-node';
import { headOf, unpackCheckedRows } from '../../src/bus/logFormat.ts';
import { lastName, subjectsOf } from '../../src/bus/subjects.ts';

const REFERENCE = 'reference';
const REPLICAS = 3;

export class BenchNats {
  readonly #connection: NatsConnection;
  readonly #jetstream: JetStreamClient;
  readonly #manager: JetStreamManager;

  private constructor(connection: NatsConnection, manager: JetStreamManager) {
    this.#connection = connection;
    this.#jetstream = jetstream(connection);
    this.#manager = manager;
  }

  static async open(servers: string[]): Promise<BenchNats> {
    const connection = await connect({ servers });
    return new BenchNats(connection, await jetstreamManager(connection));
  }

  close(): Promise<void> {
    return this.#connection.close();
  }

  /** Milliseconds that each publish took, `inFlight` at a time, to a stream of its own; and all of them together. */
  async publishBare(bodies: Uint8Array[], inFlight: number): Promise<{ eachMs: number[]; allMs: number }> {
    await this.#manager.streams.add({
      name: REFERENCE,
      subjects: [REFERENCE],
      storage: StorageType.File,
      retention: RetentionPolicy.Limits,
      num_replicas: REPLICAS,
    });
    const eachMs: number[] = [];
    let next = 0;
    const publishInTurn = async () => {
      while (next < bodies.length) {
        const body = bodies[next++]!;
        const beganAt = performance.now();
        await this.#jetstream.publish(REFERENCE, body);
        eachMs.push(performance.now() - beganAt);
      }
    };
    const beganAt = performance.now();
    await Promise.all(Array.from({ length: inFlight }, publishInTurn));
    const allMs = performance.now() - beganAt;
    await this.#manager.streams.delete(REFERENCE);
    return { eachMs, allMs };
  }

  /** How far the node's journal is in the cluster log; 0 while there is none. */
  async shippedSeq(cluster: string, node: string): Promise<number> {
    const { logStream, log } = subjectsOf(cluster);
    try {
      const last = await this.#manager.streams.getMessage(logStream, { last_by_subj: log(node) });
      return headOf(last?.header)?.last ?? 0;
    } catch {
      return 0;
    }
  }

  /** Every message of the cluster log until one that is enough. */
  async messages(cluster: string, isEnough: (message: JsMsg) => boolean): Promise<JsMsg[]> {
    const consumer = await this.#jetstream.consumers.get(subjectsOf(cluster).logStream);
    const found: JsMsg[] = [];
    for await (const message of await consumer.consume()) {
      found.push(message);
      if (isEnough(message)) break;
    }
    return found;
  }

  /**
   * Looks at what comes from now on. `decided` gets, of each record, when it was decided: runs and what was written with
   * them, later than it happened, are left out.
   * @returns what ends it
   */
  async watch(cluster: string, decided: (atMs: number) => void): Promise<() => Promise<void>> {
    const consumer = await this.#jetstream.consumers.get(subjectsOf(cluster).logStream, {
      deliver_policy: DeliverPolicy.New,
    });
    const messages = await consumer.consume();
    const newestUs = new Map<string, number>();
    const watching = (async () => {
      for await (const message of messages) {
        const head = headOf(message.headers);
        if (head?.kind !== 'rows' || message.data.length < head.piece.total) continue;
        const node = lastName(message.subject);
        for (const { time, count } of unpackCheckedRows(message.data)) {
          if (time < (newestUs.get(node) ?? 0)) continue;
          newestUs.set(node, time);
          if (count === 1) decided(time / 1_000);
        }
      }
    })();
    return async () => {
      await messages.close();
      await watching;
    };
  }

  async forget(cluster: string): Promise<void> {
    const { logStream, commandStream } = subjectsOf(cluster);
    for (const name of [logStream, commandStream]) await this.#manager.streams.delete(name).catch(() => false);
  }
}
