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
import { jetstreamManager } from '@nats-io/jetstream';
import type { JetStreamManager, JsMsg } from '@nats-io/jetstream';
import type { NatsConnection } from '@nats-io/transport-node';
import { UnderstudyError } from '../errors.ts';
import { ClusterLineage } from './clusterLineage.ts';
import { connectNats, natsError } from './connection.ts';
import type { NatsOptions } from './connection.ts';
import { headOf, LOG_FORMAT, sentUsOf } from './logFormat.ts';
import { worseThan } from './logStanding.ts';
import type { LogProblem } from './logStanding.ts';
import { isSilence, patiently, StreamReader } from './streamReader.ts';
import type { Drawn, ReadStart } from './streamReader.ts';
import { isStreamMissing, keepsCopiesAlike } from './streams.ts';
import { lastName, LOG_STREAM_PATTERN, nameOfToken, subjectsOf } from './subjects.ts';

/** Rows that are written in one transaction. */
const COMMIT_EVERY_MESSAGES = 100;
/** Clocks of nodes and nats-servers may differ by so much, and nothing is left out that was asked for. */
const CLOCK_SLACK_MS = 60_000;

/** A server of two that is not drawn within so many draws is one in ten thousand times only by chance not drawn. */
const MOST_DRAWS = 30;
/** After so many draws without an answer the one copy that is still missing is on the server that doesn't answer. */
const ENOUGH_SILENCES = 3;
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
  readonly #manager: JetStreamManager;
  readonly #reader: StreamReader;
  readonly #copy: Copy;
  #isClosing = false;

  /**
   * `folder` is where the files go; it is the caller's. Without a cluster's name it is the only one there.
   * @throws UnderstudyError NATS_UNREACHABLE, NATS_REFUSED, NATS_NO_JETSTREAM, JOURNAL_UNREADABLE
   */
  static async open(options: NatsOptions, cluster: string | null, folder: string): Promise<ClusterLog> {
    const { servers } = options;
    const connection = await connectNats(options, { name: 'understudy cli', inbox: '_INBOX' });
    try {
      const manager = await jetstreamManager(connection, { checkAPI: false });
      const found = await patiently(() => clusterOf(manager, cluster, servers), servers);
      const reader = await StreamReader.open(connection, subjectsOf(found).logStream, servers);
      return new ClusterLog({ connection, manager, reader, cluster: found, folder, servers });
    } catch (error) {
      await connection.close();
      throw natsError(error, servers);
    }
  }

  private constructor(parts: {
    connection: NatsConnection;
    manager: JetStreamManager;
    reader: StreamReader;
    cluster: string;
    folder: string;
    servers: string[];
  }) {
    this.#connection = parts.connection;
    this.#manager = parts.manager;
    this.#reader = parts.reader;
    this.#folder = parts.folder;
    this.#copy = copyIn(parts.folder);
    this.#servers = parts.servers;
    this.cluster = parts.cluster;
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
    await this.#readAny(options);
    if (this.#isWhole && keepsCopiesAlike(this.#connection)) return;
    this.#putTogether([this.#copy, ...(await this.#readOthers(options))]);
  }

  get foreign(): readonly ForeignMessage[] {
    return this.#copy.foreign;
  }

  get #isWhole(): boolean {
    return this.lineages.every(({ problems }) => problems.length === 0);
  }

  /** From any server; when it dies meanwhile another one goes on. */
  async #readAny(options: ReadOptions): Promise<void> {
    for (;;) {
      const drawn = await this.#reader.any(
        this.#subject(options),
        this.#copy.lastStreamSeq > 0 ? { after: this.#copy.lastStreamSeq } : startOf(options),
      );
      try {
        return await this.#readInto(this.#copy, drawn, options);
      } catch (error) {
        if (!isSilence(error)) throw error;
      }
    }
  }

  /** The copies of those that were not read; of a silent one what it gave. */
  async #readOthers(options: ReadOptions): Promise<Copy[]> {
    const unread = new Set(await patiently(() => this.#otherServers(), this.#servers));
    const copies: Copy[] = [];
    let silences = 0;
    for (let draws = 0; draws < MOST_DRAWS && unread.size > 0; draws++) {
      if (unread.size === 1 && silences >= ENOUGH_SILENCES) break;
      const drawn = await this.#reader.draw(this.#subject(options), startOf(options));
      if (!drawn) {
        silences++;
        continue;
      }
      if (!unread.delete(drawn.server)) {
        await this.#reader.release(drawn);
        continue;
      }
      const copy = copyIn(join(this.#folder, `copy-${copies.length + 2}`));
      mkdirSync(copy.folder);
      copies.push(copy);
      try {
        await this.#readInto(copy, drawn, options);
      } catch (error) {
        if (!isSilence(error)) throw error;
        this.silent.push(drawn.server);
      }
    }
    this.silent.push(...unread);
    return copies;
  }

  async #otherServers(): Promise<string[]> {
    const { cluster } = await this.#manager.streams.info(subjectsOf(this.cluster).logStream);
    const names = [cluster?.leader, ...(cluster?.replicas ?? []).map(({ name }) => name)];
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

  /**
   * Goes on with what comes after what was read; told whenever there is more, and when nothing can come for now. Ends when
   * it is closed. @throws UnderstudyError of what NATS says
   */
  async follow(options: Pick<ReadOptions, 'node'>, came: () => void, lost: (why: string) => void): Promise<void> {
    let isLost = false;
    for (;;) {
      try {
        const drawn = await this.#reader.any(this.#subject(options), { after: this.#copy.lastStreamSeq });
        isLost = false;
        for await (const message of this.#reader.messages(drawn)) {
          this.#take(message, this.#copy);
          if (message.info.pending > 0) continue;
          commit(this.#copy);
          came();
        }
      } catch (error) {
        if (this.#isClosing) return;
        if (!isSilence(error)) throw error;
        if (!isLost) lost((error as UnderstudyError).message);
        isLost = true;
        await delay(AGAIN_MS);
      }
    }
  }

  async close(): Promise<void> {
    this.#isClosing = true;
    this.#reader.stop();
    await this.#connection.close();
    for (const lineage of this.#copy.lineages.values()) lineage.close();
  }

  /** @throws UnderstudyError of what NATS says */
  async #readInto(copy: Copy, drawn: Drawn, { progress }: ReadOptions): Promise<void> {
    copy.server = drawn.server;
    const { num_pending: of } = drawn.consumer;
    let read = 0;
    if (of === 0) return this.#reader.release(drawn);
    for await (const message of this.#reader.messages(drawn)) {
      this.#take(message, copy);
      progress?.(++read, of);
      if (read % COMMIT_EVERY_MESSAGES === 0) commit(copy);
      if (message.info.pending === 0) break;
    }
    commit(copy);
    await this.#reader.release(drawn);
  }

  #subject({ node }: ReadOptions): string {
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

const startOf = ({ sinceUs }: ReadOptions): ReadStart =>
  sinceUs === undefined ? 'all' : { sinceMs: sinceUs / 1000 - CLOCK_SLACK_MS };

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
