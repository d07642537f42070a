/** The cluster log beside the journals that it is made of: every record once, in order, the very same. */
import assert from 'node:assert/strict';
import { AckPolicy, DeliverPolicy, jetstream, jetstreamManager } from '@nats-io/jetstream';
import type { JetStreamClient, JetStreamManager, JsMsg } from '@nats-io/jetstream';
import { connect, nanos } from '@nats-io/transport-node';
import type { NatsConnection } from '@nats-io/transport-node';
import type { ClusterLab } from '../../deploy/lab/cluster.ts';
import { openDoor } from '../../deploy/lab/door.ts';
import type { Door } from '../../deploy/lab/door.ts';
import type { LabNode } from '../../deploy/lab/node.ts';
import { until } from '../../deploy/lab/until.ts';
import { headOf, unpackCheckedRows } from '../../src/bus/logFormat.ts';
import type { CheckedRow } from '../../src/bus/logFormat.ts';
import { isStreamMissing } from '../../src/bus/streams.ts';
import { lastName, subjectsOf } from '../../src/bus/subjects.ts';
import { JournalReader } from '../../src/journal/reader.ts';
import { checksumOf } from '../../src/journal/record.ts';

const CLIENTS = 4222;
const REQUEST_MS = 5_000;
const CONSUMER_IDLE_MS = 60_000;
/** Servers are chosen by chance, one of three. */
const MOST_ATTEMPTS = 60;

export class ShippedLog {
  readonly #door: Door;
  readonly #connection: NatsConnection;
  readonly #manager: JetStreamManager;
  readonly #jetstream: JetStreamClient;
  readonly #subjects: ReturnType<typeof subjectsOf>;

  private constructor(door: Door, connection: NatsConnection, manager: JetStreamManager, cluster: string) {
    this.#door = door;
    this.#connection = connection;
    this.#manager = manager;
    this.#jetstream = jetstream(connection);
    this.#subjects = subjectsOf(cluster);
  }

  /** Through the first of the nats-servers. */
  static async open({ nats }: ClusterLab, cluster: string): Promise<ShippedLog> {
    const [server] = nats;
    const door = await openDoor(server!.host, new URL(server!.url).hostname, CLIENTS);
    // The others are on hosts that this process can't reach.
    const connection = await connect({ servers: door.address, ignoreClusterUpdates: true });
    const manager = await jetstreamManager(connection, { checkAPI: false, timeout: REQUEST_MS });
    return new ShippedLog(door, connection, manager, cluster);
  }

  /** Before 2.10 a server that was cut off may keep what the others dropped, or never get what they have. */
  get keepsCopiesAlike(): boolean {
    const [major = 0, minor = 0] = this.#connection.info!.version.split('.').map(Number);
    return major > 2 || minor >= 10;
  }

  /** By node: how far its journal is here. Null while the stream has no leader, or isn't there. */
  async lastSeqs(nodes: string[]): Promise<Map<string, number> | null> {
    try {
      const lasts = nodes.map(async (node): Promise<[string, number]> => {
        const last = await this.#manager.streams.getMessage(this.#subjects.logStream, {
          last_by_subj: this.#subjects.log(node),
        });
        return [node, headOf(last?.header)?.last ?? 0];
      });
      return new Map(await Promise.all(lasts));
    } catch {
      return null;
    }
  }

  /**
   * By node: its rows in the order in which one copy of the stream has them, from the first message to the last. `server`
   * is the nats-server that has the copy.
   */
  async rows(server: string): Promise<Map<string, CheckedRow[]>> {
    const rows = new Map<string, CheckedRow[]>();
    const pieces = new Map<string, Uint8Array[]>();
    for await (const message of this.#messages(server)) {
      const node = lastName(message.subject);
      const head = headOf(message.headers);
      assert(head, `message ${message.seq} of the cluster log is none of a courier's`);
      if (head.kind === 'checkpoint' || head.kind === 'mark') continue;
      const { from, total } = head.piece;
      const begun = from === 0 ? [] : (pieces.get(node) ?? []);
      pieces.set(node, [...begun, message.data]);
      const body = Buffer.concat(pieces.get(node)!);
      assert.equal(body.length - message.data.length, from, `message ${message.seq} goes on where nothing has begun`);
      if (body.length === total) rows.set(node, [...(rows.get(node) ?? []), ...unpackCheckedRows(body)]);
    }
    return rows;
  }

  /** The stream with all that is in it. */
  async delete(): Promise<void> {
    assert(await this.#manager.streams.delete(this.#subjects.logStream));
    await assert.rejects(this.#manager.streams.info(this.#subjects.logStream), isStreamMissing);
  }

  async close(): Promise<void> {
    await this.#connection.close();
    this.#door.close();
  }

  async *#messages(server: string): AsyncGenerator<JsMsg> {
    const { state } = await this.#manager.streams.info(this.#subjects.logStream);
    if (state.messages === 0) return;
    const name = await this.#consumerAt(server);
    const consumer = await this.#jetstream.consumers.get(this.#subjects.logStream, name);
    for await (const message of await consumer.consume()) {
      yield message;
      if (message.info.pending === 0) break;
    }
    await consumer.delete();
  }

  /** A consumer without copies reads the copy of the server that it happens to be made on. */
  async #consumerAt(server: string): Promise<string> {
    const { logStream } = this.#subjects;
    for (let attempt = 0; attempt < MOST_ATTEMPTS; attempt++) {
      // After a fault the servers may still elect a leader, and refuse until they have.
      const { name, cluster } = await until('a consumer of the cluster log', () =>
        this.#manager.consumers
          .add(logStream, {
            ack_policy: AckPolicy.None,
            deliver_policy: DeliverPolicy.All,
            inactive_threshold: nanos(CONSUMER_IDLE_MS),
            mem_storage: true,
            num_replicas: 1,
          })
          .catch(() => null),
      );
      if (cluster?.leader === server) return name;
      await this.#manager.consumers.delete(logStream, name);
    }
    throw new Error(`no consumer of the cluster log came to be at ${server}`);
  }
}

/** SIGTERM to all nodes; each ships its last records before it ends. */
export const stopNodes = async ({ nodes }: ClusterLab): Promise<void> => {
  const exits = await Promise.all(nodes.map((node) => node.end()));
  for (const [index, { code }] of exits.entries()) assert.equal(code, 0, `${nodes[index]!.name} did not end in order`);
};

const journalRows = ({ journal }: LabNode): { seq: number; crc: number; text: string }[] => {
  const reader = new JournalReader(journal);
  try {
    return [...reader.rows()].map((row) => ({ seq: row.seq, crc: checksumOf(row), text: `${row.actor} ${row.type}` }));
  } finally {
    reader.close();
  }
};

/**
 * That each copy of the cluster log has every record of every node's journal exactly once, in order and without gaps; or
 * one copy of each journal, where nats-server lets copies drift apart. The nodes have ended.
 * @returns how many there are
 */
export const assertShipped = async ({ nodes, nats }: ClusterLab, log: ShippedLog): Promise<number> => {
  const written = new Map(nodes.map((node) => [node.name, journalRows(node)]));
  const differing = new Map<string, Error[]>();
  for (const { host } of nats) {
    const shipped = await log.rows(host.name);
    assert.deepEqual([...shipped.keys()].toSorted(), [...written.keys()].toSorted());
    for (const [node, rows] of written) {
      try {
        assertSame(`the copy at ${host.name}, ${node}`, rows, shipped.get(node)!);
      } catch (error) {
        if (log.keepsCopiesAlike) throw error;
        const sofar = [...(differing.get(node) ?? []), error as Error];
        if (sofar.length === nats.length) throw error;
        differing.set(node, sofar);
        console.log(`nats-server let copies drift apart: ${(error as Error).message}`);
      }
    }
  }
  return [...written.values()].reduce((sum, rows) => sum + rows.length, 0);
};

const assertSame = (where: string, written: ReturnType<typeof journalRows>, there: CheckedRow[]): void => {
  for (const [index, { seq, crc, text }] of written.entries()) {
    const row = there[index];
    const place = `${where}: record ${seq} (${text}), the ${index + 1}th of ${written.length}`;
    assert.equal(seq, index + 1, `${place}: a seq is missing in the journal`);
    assert(row, `${place}: the cluster log ends before it`);
    assert.equal(row.seq, seq, `${place}: the cluster log has ${row.seq} in its place (${row.actor} ${row.type})`);
    assert.equal(row.crc, crc, `${place}: the cluster log has another record of this seq`);
    assert.equal(checksumOf(row), crc, `${place}: it is not what its checksum says`);
  }
  assert.equal(there.length, written.length, `${where}: the cluster log has more than the journal`);
};
