/** The cluster log beside the journals that it is made of: every record once, in order, the very same. */
import assert from 'node:assert/strict';
import { AckPolicy, DeliverPolicy, jetstream, jetstreamManager } from '@nats-io/jetstream';
import type { JetStreamClient, JetStreamManager, JsMsg } from '@nats-io/jetstream';
import { connect, nanos } from '@nats-io/transport-node';
import type { NatsConnection } from '@nats-io/transport-node';
import type { ClusterLab } from '../../deploy/lab/cluster.ts';
import { openDoor } from '../../deploy/lab/door.ts';
import type { Door } from '../../deploy/lab/door.ts';
import type { LabNats } from '../../deploy/lab/nats.ts';
import type { LabNode } from '../../deploy/lab/node.ts';
import { until } from '../../deploy/lab/until.ts';
import { headOf, unpackCheckedRows } from '../../src/bus/logFormat.ts';
import type { CheckedRow } from '../../src/bus/logFormat.ts';
import { isStreamMissing, keepsCopiesAlike } from '../../src/bus/streams.ts';
import { lastName, subjectsOf } from '../../src/bus/subjects.ts';
import { JournalReader } from '../../src/journal/reader.ts';
import { checksumOf } from '../../src/journal/record.ts';
import { Ranges } from '../../src/ranges.ts';
import type { Range } from '../../src/ranges.ts';

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
  static async open({ nats }: Pick<ClusterLab, 'nats'>, cluster: string): Promise<ShippedLog> {
    const [server] = nats;
    const door = await openDoor(server!.host, new URL(server!.url).hostname, CLIENTS);
    // The others are on hosts that this process can't reach.
    const connection = await connect({ servers: door.address, ignoreClusterUpdates: true });
    const manager = await jetstreamManager(connection, { checkAPI: false, timeout: REQUEST_MS });
    return new ShippedLog(door, connection, manager, cluster);
  }

  get keepsCopiesAlike(): boolean {
    return keepsCopiesAlike(this.#connection);
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

  async [Symbol.asyncDispose](): Promise<void> {
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

/** What the journal has now is in the cluster log: without a leader of the stream it would not be. */
export const untilShipped = async (node: LabNode, timeoutMs: number): Promise<void> => {
  const { lastSeq } = (await node.state()).journal;
  const shippedSeq = async () => (await node.state()).cluster?.courier.shippedSeq ?? 0;
  await until(`record ${lastSeq} of ${node.name} is shipped`, async () => (await shippedSeq()) >= lastSeq, timeoutMs);
};

/** SIGTERM to all nodes; each ships its last records before it ends, where the stream takes them. */
export const stopNodes = async ({ nodes }: ClusterLab): Promise<void> => {
  const exits = await Promise.all(nodes.map((node) => node.end()));
  for (const [index, { code }] of exits.entries()) assert.equal(code, 0, `${nodes[index]!.name} did not end in order`);
};

/** By node: the path of its journal. */
export const journalsOf = ({ nodes }: ClusterLab): Map<string, string> =>
  new Map(nodes.map(({ name, journal }) => [name, journal]));

/** What a server's copy has otherwise than the journal: `lb1 has twice records 12 to 14`. */
export type CopyDrift = { server: string; what: string };

type WrittenRow = { seq: number; crc: number; text: string };

const rowsOfJournal = (path: string): WrittenRow[] => {
  const reader = new JournalReader(path);
  try {
    return [...reader.rows()].map((row) => ({ seq: row.seq, crc: checksumOf(row), text: `${row.actor} ${row.type}` }));
  } finally {
    reader.close();
  }
};

/**
 * That each copy of the cluster log has every record of every journal exactly once, in order and without gaps. Where
 * nats-server lets copies drift apart: that the copies together have every record, and none that isn't in the journal.
 * Nobody writes any more.
 * @returns how many there are, and what the copies have otherwise
 */
export const assertShipped = async (
  nats: readonly LabNats[],
  journals: ReadonlyMap<string, string>,
  log: ShippedLog,
): Promise<{ records: number; drifts: CopyDrift[] }> => {
  const written = new Map([...journals].map(([node, path]) => [node, rowsOfJournal(path)]));
  const together = new Map([...journals.keys()].map((node) => [node, new Set<number>()]));
  const drifts: CopyDrift[] = [];
  for (const { host } of nats) {
    const shipped = await log.rows(host.name);
    if (log.keepsCopiesAlike) assert.deepEqual([...shipped.keys()].toSorted(), [...written.keys()].toSorted());
    for (const [node, rows] of written) {
      const where = `the copy at ${host.name}, ${node}`;
      const there = shipped.get(node) ?? [];
      if (log.keepsCopiesAlike) assertSame(where, rows, there);
      else drifts.push(...driftsOf(where, rows, there).map((what) => ({ server: host.name, what: `${node} ${what}` })));
      for (const { seq } of there) together.get(node)!.add(seq);
    }
  }
  for (const [node, rows] of written) {
    const missing = rows.filter(({ seq }) => !together.get(node)!.has(seq));
    const which = missing.map(({ seq, text }) => `${seq} (${text})`).join(', ');
    assert.equal(which, '', `of ${node}'s ${rows.length} records these are in no copy of the cluster log`);
  }
  return { records: [...written.values()].reduce((sum, rows) => sum + rows.length, 0), drifts };
};

const assertSame = (where: string, written: readonly WrittenRow[], there: readonly CheckedRow[]): void => {
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

const rangeText = ({ from, through }: Range): string => (from === through ? `${from}` : `${from} to ${through}`);

/** What is missing or more than once. Nothing may be there that isn't the journal's. */
const driftsOf = (where: string, written: readonly WrittenRow[], there: readonly CheckedRow[]): string[] => {
  const counts = new Map(written.map(({ seq, crc }) => [seq, { crc, count: 0 }]));
  for (const row of there) {
    const known = counts.get(row.seq);
    assert(known, `${where}: record ${row.seq} (${row.actor} ${row.type}) is not in the journal`);
    assert.equal(row.crc, known.crc, `${where}: another record ${row.seq}`);
    assert.equal(checksumOf(row), known.crc, `${where}: record ${row.seq} is not what its checksum says`);
    known.count++;
  }
  const withCount = (isMeant: (count: number) => boolean) =>
    Ranges.of([...counts].flatMap(([seq, { count }]) => (isMeant(count) ? [{ from: seq, through: seq }] : [])));
  const texts = {
    'lacks records': withCount((count) => count === 0),
    'has twice records': withCount((count) => count > 1),
  };
  return Object.entries(texts)
    .filter(([, { isEmpty }]) => !isEmpty)
    .map(([what, { list }]) => `${what} ${list.map(rangeText).join(', ')}`);
};
