/**
 * Reads the log of a cluster from its stream into journal files, one for each lineage, on which all that reads journals
 * works.
 *
 * A stream has copies, and nats-server before 2.10 lets them drift apart: the copy of a server that was killed, stopped or
 * cut off may lack a message, or keep one that the others refused. So there all copies are read, elsewhere all of them when
 * the first one has a lineage not whole, and what they have together is the log. A record is known by its seq and its
 * checksum: what is there once in one copy is there once.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { AckPolicy, DeliverPolicy, jetstream, jetstreamManager } from '@nats-io/jetstream';
import type {
  Consumer,
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
import { ClusterLineage } from './clusterLineage.ts';
import { connectNats, natsError } from './connection.ts';
import type { NatsOptions } from './connection.ts';
import { headOf, LOG_FORMAT, sentUsOf } from './logFormat.ts';
import { worseThan } from './logStanding.ts';
import type { LogProblem } from './logStanding.ts';
import { isStreamMissing, keepsCopiesAlike } from './streams.ts';
import { lastName, LOG_STREAM_PATTERN, nameOfToken, subjectsOf } from './subjects.ts';

/** Messages that may be under way to us: a few megabytes. */
const MAX_UNREAD_MESSAGES = 100;
/** Rows that are written in one transaction. */
const COMMIT_EVERY_MESSAGES = 100;
/** Clocks of nodes and nats-servers may differ by so much, and nothing is left out that was asked for. */
const CLOCK_SLACK_MS = 60_000;

/** A consumer is made on one of the servers, by chance. */
const MOST_DRAWS = 40;
/** The server forgets one that nobody asks any more. */
const CONSUMER_IDLE_MS = 60_000;
const HEARTBEAT_MS = 1_000;
/** While nats-servers elect a leader, most of them at once after a loss, nobody answers. */
const PATIENCE_MS = 30_000;
const AGAIN_MS = 1_000;

export type ReadOptions = {
  /** Only this node's. */
  node?: string;
  /** Only what was stored from a little before this time on: µs since 1970. */
  sinceUs?: number;
  progress?: (read: number, of: number) => void;
};

/** A copy of the stream that has something wrong in a lineage that is right in another copy. */
export type Drift = { server: string; node: string; journal: string; problems: readonly LogProblem[] };

/** What was read from one copy. */
type Copy = {
  server: string;
  lineages: Map<string, ClusterLineage>;
  foreign: ForeignMessage[];
  folder: string;
  lastStreamSeq: number;
};

const copyIn = (folder: string): Copy => ({ server: '', lineages: new Map(), foreign: [], folder, lastStreamSeq: 0 });

/** A message on a node's subject that no courier wrote. */
export type ForeignMessage = { node: string; message: number };

export class ClusterLog {
  readonly cluster: string;
  readonly drifts: Drift[] = [];
  /** nats-servers that did not give their copy, although it was wanted. */
  readonly silent: string[] = [];
  readonly #servers: string[];
  readonly #folder: string;
  readonly #connection: NatsConnection;
  readonly #jetstream: JetStreamClient;
  readonly #manager: JetStreamManager;
  readonly #copy: Copy;
  #following: ConsumerMessages | null = null;

  /**
   * `folder` is where the files go; it is the caller's. Without a cluster's name it is the only one there.
   * @throws UnderstudyError NATS_UNREACHABLE, NATS_REFUSED, NATS_NO_JETSTREAM, JOURNAL_UNREADABLE
   */
  static async open(options: NatsOptions, cluster: string | null, folder: string): Promise<ClusterLog> {
    const connection = await connectNats(options, { name: 'understudy cli', inbox: '_INBOX' });
    try {
      const manager = await jetstreamManager(connection, { checkAPI: false });
      const found = await patiently(() => clusterOf(manager, cluster, options.servers), options.servers);
      return new ClusterLog(connection, manager, found, folder, options.servers);
    } catch (error) {
      await connection.close();
      throw natsError(error, options.servers);
    }
  }

  private constructor(
    connection: NatsConnection,
    manager: JetStreamManager,
    cluster: string,
    folder: string,
    servers: string[],
  ) {
    this.#connection = connection;
    this.#jetstream = jetstream(connection);
    this.#manager = manager;
    this.#folder = folder;
    this.#copy = copyIn(folder);
    this.#servers = servers;
    this.cluster = cluster;
  }

  /** By node, and for each the newest last. */
  get lineages(): ClusterLineage[] {
    return [...this.#copy.lineages.values()].toSorted((a, b) =>
      a.node === b.node ? a.lastStreamSeq - b.lastStreamSeq : a.node < b.node ? -1 : 1,
    );
  }

  get nodes(): string[] {
    return [...new Set(this.lineages.map(({ node }) => node))];
  }

  /** All that is there now. @throws UnderstudyError of what NATS says, JOURNAL_TOO_NEW */
  async read(options: ReadOptions = {}): Promise<void> {
    await this.#readInto(this.#copy, options, null);
    if (this.#isWhole && keepsCopiesAlike(this.#connection)) return;
    const others = await patiently(() => this.#otherServers(), this.#servers);
    const copies = [this.#copy];
    for (const [index, server] of others.entries()) {
      const folder = join(this.#folder, `copy-${index + 2}`);
      mkdirSync(folder);
      const copy = copyIn(folder);
      try {
        await this.#readInto(copy, options, server);
      } catch (error) {
        if (!isSilence(error)) throw error;
        this.silent.push(server);
      }
      // Also what was read before it fell silent.
      copies.push(copy);
    }
    this.#putTogether(copies);
  }

  get foreign(): readonly ForeignMessage[] {
    return this.#copy.foreign;
  }

  get #isWhole(): boolean {
    return this.lineages.every(({ problems }) => problems.length === 0);
  }

  /** Those that have a copy and can be asked. */
  async #otherServers(): Promise<string[]> {
    const { cluster } = await this.#manager.streams.info(subjectsOf(this.cluster).logStream);
    const replicas = (cluster?.replicas ?? []).filter(({ offline }) => !offline);
    const names = [cluster?.leader, ...replicas.map(({ name }) => name)];
    return names.filter((name): name is string => name !== undefined && name !== this.#copy.server);
  }

  #putTogether(copies: readonly Copy[]): void {
    const read = copies.flatMap(({ lineages }) => [...lineages]);
    for (const [key, lineage] of read) {
      const whole = this.#copy.lineages.get(key);
      if (!whole) this.#copy.lineages.set(key, lineage);
      else if (whole !== lineage) whole.takeIn(lineage);
    }
    for (const [key, lineage] of read) {
      const whole = this.#copy.lineages.get(key)!;
      const { server, node, journal } = lineage;
      const problems = worseThan(lineage.own, whole.standing);
      if (problems.length > 0) this.drifts.push({ server, node, journal, problems });
      if (lineage !== whole) lineage.close();
    }
  }

  /** Goes on with what comes after what was read; told whenever there is more. Ends when it is closed. */
  async follow({ node }: Pick<ReadOptions, 'node'>, came: () => void): Promise<void> {
    try {
      const consumer = await this.#jetstream.consumers.get(subjectsOf(this.cluster).logStream, {
        filter_subjects: this.#filter(node),
        deliver_policy: 'by_start_sequence',
        opt_start_seq: this.#copy.lastStreamSeq + 1,
      });
      this.#following = await consumer.consume({ max_messages: MAX_UNREAD_MESSAGES });
      for await (const message of this.#following) {
        this.#take(message, this.#copy);
        if (message.info.pending > 0) continue;
        commit(this.#copy);
        came();
      }
    } catch (error) {
      throw natsError(error, this.#servers);
    }
  }

  async close(): Promise<void> {
    this.#following?.stop();
    await this.#connection.close();
    for (const lineage of this.#copy.lineages.values()) lineage.close();
  }

  /** `server` is the one whose copy is meant; null where any will do. @throws UnderstudyError of what NATS says */
  async #readInto(copy: Copy, options: ReadOptions, server: string | null): Promise<void> {
    const found = await patiently(() => this.#consumerAt(server, options), this.#servers);
    if (!found) throw new UnderstudyError('NATS_TIMEOUT', `nats-server ${server} did not give its copy of the log`);
    copy.server = found.cluster?.leader ?? '';
    if (found.num_pending === 0) return;
    try {
      const consumer: Consumer = await this.#jetstream.consumers.get(found.stream_name, found.name);
      const messages = await consumer.consume({
        max_messages: MAX_UNREAD_MESSAGES,
        idle_heartbeat: HEARTBEAT_MS,
        abort_on_missing_resource: true,
      });
      void stopWhenSilent(messages);
      let read = 0;
      let isOver = false;
      for await (const message of messages) {
        this.#take(message, copy);
        options.progress?.(++read, found.num_pending);
        if (read % COMMIT_EVERY_MESSAGES === 0) commit(copy);
        isOver = message.info.pending === 0;
        if (isOver) break;
      }
      if (!isOver)
        throw new UnderstudyError('NATS_TIMEOUT', `nats-server ${copy.server}, from which the log was read, is gone`);
      await consumer.delete();
    } catch (error) {
      throw natsError(error, this.#servers);
    }
    commit(copy);
  }

  /** Reads the copy of the server on which it is made. Null where none came to be on the one that is meant. */
  async #consumerAt(server: string | null, { node, sinceUs }: ReadOptions): Promise<ConsumerInfo | null> {
    const { logStream } = subjectsOf(this.cluster);
    const start: Partial<ConsumerConfig> =
      sinceUs === undefined
        ? { deliver_policy: DeliverPolicy.All }
        : {
            deliver_policy: DeliverPolicy.StartTime,
            opt_start_time: new Date(sinceUs / 1000 - CLOCK_SLACK_MS).toISOString(),
          };
    for (let draw = 0; draw < MOST_DRAWS; draw++) {
      const made = await this.#manager.consumers.add(logStream, {
        ...start,
        filter_subject: this.#filter(node),
        ack_policy: AckPolicy.None,
        inactive_threshold: nanos(CONSUMER_IDLE_MS),
        mem_storage: true,
        num_replicas: 1,
      });
      if (server === null || made.cluster?.leader === server) return made;
      await this.#manager.consumers.delete(logStream, made.name);
    }
    return null;
  }

  #filter(node: string | undefined): string {
    const { logs, log } = subjectsOf(this.cluster);
    return node === undefined ? logs : log(node);
  }

  #take(message: JsMsg, copy: Copy): void {
    copy.lastStreamSeq = message.seq;
    const node = lastName(message.subject);
    const head = headOf(message.headers);
    if (!head) {
      copy.foreign.push({ node, message: message.seq });
      return;
    }
    if (head.format > LOG_FORMAT)
      throw new UnderstudyError(
        'JOURNAL_TOO_NEW',
        `the log of ${node} has format ${head.format}; this version of Understudy knows ${LOG_FORMAT}`,
      );
    if (head.kind === 'mark') return;
    const key = `${node} ${head.journal}`;
    let lineage = copy.lineages.get(key);
    if (!lineage) copy.lineages.set(key, (lineage = new ClusterLineage(copy.folder, node, head.journal, copy.server)));
    lineage.take(head, {
      streamSeq: message.seq,
      streamUs: Math.round(Number(message.timestampNanos) / 1000),
      sentUs: sentUsOf(message.headers),
      data: message.data,
    });
  }
}

const commit = ({ lineages }: Copy): void => {
  for (const lineage of lineages.values()) lineage.commit();
};

const stopWhenSilent = async (messages: ConsumerMessages): Promise<void> => {
  for await (const { type } of messages.status()) if (type === 'heartbeats_missed') messages.stop();
};

const isSilence = (error: unknown): boolean =>
  error instanceof UnderstudyError && (error.code === 'NATS_TIMEOUT' || error.code === 'NATS_UNREACHABLE');

/** @throws UnderstudyError of what NATS says, of silence when it has lasted */
const patiently = async <T>(ask: () => Promise<T>, servers: string[]): Promise<T> => {
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

/** @throws UnderstudyError JOURNAL_UNREADABLE naming the clusters that have a log */
const clusterOf = async (manager: JetStreamManager, wanted: string | null, servers: string[]): Promise<string> => {
  if (wanted !== null) {
    try {
      await manager.streams.info(subjectsOf(wanted).logStream);
      return wanted;
    } catch (error) {
      if (!isStreamMissing(error)) throw error;
    }
  }
  const clusters: string[] = [];
  for await (const name of manager.streams.names()) {
    const token = LOG_STREAM_PATTERN.exec(name)?.[1];
    if (token !== undefined) clusters.push(nameOfToken(token));
  }
  const at = servers.join(', ');
  const [only, ...others] = clusters;
  if (wanted === null && only !== undefined && others.length === 0) return only;
  const there = clusters.toSorted().join(', ');
  throw new UnderstudyError(
    'JOURNAL_UNREADABLE',
    clusters.length === 0
      ? `NATS at ${at} has no cluster's log`
      : wanted === null
        ? `NATS at ${at} has the logs of several clusters (${there}); name one: ${servers[0]}/${clusters.toSorted()[0]}`
        : `NATS at ${at} has no log of a cluster ${wanted}; it has those of ${there}`,
  );
};
