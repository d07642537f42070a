/** The log service on its own against a real nats-server: a journal that the test writes, and what the service tells. */
import { connect, createServer } from 'node:net';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { crc32 } from 'node:zlib';
import { jetstream, jetstreamManager } from '@nats-io/jetstream';
import type { NatsConnection } from '@nats-io/transport-node';
import { onTestFinished } from 'vitest';
import { ClusterLog } from '../src/bus/clusterLog.ts';
import type { ClusterLineage } from '../src/bus/clusterLineage.ts';
import { connectNats } from '../src/bus/connection.ts';
import type { LogEvent } from '../src/bus/logService.ts';
import { makeLogService } from '../src/bus/logService.ts';
import type { NatsSession, Service } from '../src/bus/service.ts';
import { subjectsOf } from '../src/bus/subjects.ts';
import { bus as busSchema } from '../src/config/bus.ts';
import type { NatsConfig } from '../src/config/bus.ts';
import { encodeBody, GAP, RECORD_VERSION } from '../src/journal/record.ts';
import type { Row } from '../src/journal/record.ts';
import { JournalStore } from '../src/journal/store.ts';
import { listening, tempFolder, within } from './nodeHelpers.ts';

export const CLUSTER = 'shop';

export const natsConfig = (servers: string[], more: Record<string, unknown> = {}): NatsConfig => {
  const parsed = busSchema.parse({ nats: { servers, replicas: 1, ...more } });
  if (parsed === 'memory') throw new Error('not NATS');
  return parsed.nats;
};

/** A journal whose records say nothing but are as many and as large as the test likes. */
export class WrittenJournal {
  readonly path: string;
  readonly store: JournalStore;
  #seq = 0;

  constructor(path = join(tempFolder(), 'lb1.db')) {
    this.path = path;
    this.store = JournalStore.open(path).store;
    onTestFinished(() => this.store.close());
  }

  get lastSeq(): number {
    return this.#seq;
  }

  get identity(): string {
    return this.store.identity();
  }

  write(count: number, more: Partial<Row> & { payload?: string } = {}): void {
    const { payload = '', ...columns } = more;
    this.store.commit(
      Array.from({ length: count }, () => rowOf(++this.#seq, payload, columns)),
      [],
    );
  }

  /** A checkpoint at the last record. */
  checkpoint(bytes = 100): void {
    const body = encodeBody({ actors: [], timers: [], filling: 'x'.repeat(bytes) });
    const at = { epoch: 1, time: timeOf(this.#seq), mono: this.#seq };
    this.store.commit(
      [],
      [{ seq: this.#seq, part: 0, parts: 1, ...at, v: RECORD_VERSION, body: Uint8Array.from(body), crc: crc32(body) }],
    );
  }

  gap(records: number): void {
    const from = this.#seq + 1;
    this.#seq += records;
    const body = encodeBody({ event: { from, through: this.#seq, reason: 'the disk was full' }, effects: [] });
    this.store.commit([{ ...rowOf(from, '', {}), actor: 'node', origin: 'node', type: GAP, body }], []);
  }

  /** As a copy of the file that was made earlier and put back now. */
  rewind(seq: number): void {
    const db = new DatabaseSync(this.path);
    db.prepare('DELETE FROM records WHERE seq > ?').run(seq);
    db.close();
    this.#seq = seq;
  }

  /** Retention takes all up to the last checkpoint. */
  purge(): void {
    while (this.store.purge({ keepMs: 0, maxBytes: 0 }, Date.now() * 1000 + 1_000_000));
  }
}

const timeOf = (seq: number): number => Date.now() * 1000 - 1_000_000 + seq;

const rowOf = (seq: number, payload: string, columns: Partial<Row>): Row => ({
  seq,
  epoch: 1,
  time: timeOf(seq),
  mono: seq,
  actor: 'server/web/web1',
  origin: 'input',
  type: 'check.passed',
  state: 'up,ready,warm',
  cause: seq === 1 ? null : seq - 1,
  count: 1,
  v: RECORD_VERSION,
  body: encodeBody({ event: { payload }, effects: [] }),
  ...columns,
});

const AGAIN_MS = 500;

/** The service as the bus's thread runs it, with its retries done here as the machine does them. */
export class ShippingService {
  readonly events: LogEvent[] = [];
  readonly #service: Service;
  readonly #config: NatsConfig;
  readonly #name: string;
  #connection: NatsConnection | null = null;
  #session: (NatsSession & { end: AbortController }) | null = null;
  #waiters = new Set<() => void>();
  #again: NodeJS.Timeout | undefined;

  constructor(journal: WrittenJournal, config: NatsConfig, node = 'lb1') {
    this.#config = config;
    this.#name = node;
    this.#service = makeLogService({
      subjects: subjectsOf(CLUSTER),
      node,
      journalPath: journal.path,
      nats: config,
      session: () => this.#session,
      tell: (event) => {
        this.events.push(event as LogEvent);
        // As the courier's machine does.
        if ((event as LogEvent).type === 'refused') this.#again = setTimeout(() => this.ship(), AGAIN_MS);
        for (const wake of [...this.#waiters]) wake();
      },
    });
    onTestFinished(() => this.end());
  }

  static async start(journal: WrittenJournal, config: NatsConfig, node = 'lb1'): Promise<ShippingService> {
    const service = new ShippingService(journal, config, node);
    await service.connect();
    return service;
  }

  async connect(): Promise<void> {
    const connection = await connectNats(this.#config, { name: this.#name, inbox: `_INBOX.${this.#name}` });
    this.#connection = connection;
    await this.#begin(connection);
    void this.#watch(connection);
  }

  ship(): void {
    void this.#service.call('ship', []);
  }

  written(): void {
    void this.#service.call('written', []);
  }

  /** The next event of this type from event number `from` on. */
  async told<T extends LogEvent['type']>(type: T, from = 0): Promise<Extract<LogEvent, { type: T }>> {
    const found = () => this.events.slice(from).find((event) => event.type === type);
    if (!found())
      await within(
        `the service tells ${type} (${JSON.stringify(this.events.filter((event) => event.type !== 'progress'))})`,
        new Promise<void>((done) => {
          const look = () => {
            if (!found()) return;
            this.#waiters.delete(look);
            done();
          };
          this.#waiters.add(look);
        }),
        30_000,
      );
    return found() as Extract<LogEvent, { type: T }>;
  }

  /** Resolves when the stream has the journal up to this seq, as far as the service knows. */
  async shipped(seq: number): Promise<void> {
    const has = () => this.events.some((event) => event.type === 'progress' && (event.shippedSeq ?? 0) >= seq);
    if (has()) return;
    await within(
      `record ${seq} is shipped`,
      new Promise<void>((done) => {
        const look = () => {
          if (!has()) return;
          this.#waiters.delete(look);
          done();
        };
        this.#waiters.add(look);
      }),
      30_000,
    );
  }

  async close(): Promise<void> {
    await this.#service.close();
  }

  async end(): Promise<void> {
    clearTimeout(this.#again);
    await this.#connection?.close();
    this.#connection = null;
  }

  async #begin(connection: NatsConnection): Promise<void> {
    const end = new AbortController();
    const manager = await jetstreamManager(connection, { checkAPI: false });
    const { version } = connection.info!;
    this.#session = { connection, jetstream: jetstream(connection), manager, version, ended: end.signal, end };
    this.#service.connected(this.#session);
    this.ship();
  }

  async #watch(connection: NatsConnection): Promise<void> {
    for await (const status of connection.status()) {
      if (this.#connection !== connection) return;
      if (status.type === 'disconnect') {
        this.#session?.end.abort();
        this.#session = null;
        this.#service.disconnected();
      } else if (status.type === 'reconnect') await this.#begin(connection);
    }
  }
}

/** Stands between a client and its server, and can let the server's answers get lost. */
export class Relay {
  readonly url: string;
  #sockets = new Set<Socket>();
  #deaf = false;
  #sent = Promise.withResolvers<void>();

  private constructor(port: number) {
    this.url = `nats://127.0.0.1:${port}`;
  }

  static async start(serverPort: number): Promise<Relay> {
    let relay: Relay | null = null;
    const server = createServer((client) => relay!.#carry(client, connect(serverPort, '127.0.0.1')));
    relay = new Relay(await listening(server));
    return relay;
  }

  /** From now on nothing comes back; resolves when something of the client's has passed. */
  loseAnswers(): Promise<void> {
    this.#deaf = true;
    this.#sent = Promise.withResolvers<void>();
    return this.#sent.promise;
  }

  /** The connections end, and new ones are carried in full. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
    this.#deaf = false;
  }

  #carry(client: Socket, server: Socket): void {
    for (const socket of [client, server]) {
      this.#sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        client.destroy();
        server.destroy();
      });
    }
    client.on('data', (data) => {
      server.write(data);
      if (this.#deaf && data.includes('HPUB')) this.#sent.resolve();
    });
    server.on('data', (data) => {
      if (!this.#deaf) client.write(data);
    });
  }
}

/** What a reader makes of the stream. */
export const readLog = async (url: string): Promise<ClusterLineage[]> => {
  const log = await ClusterLog.open({ servers: [url] }, CLUSTER, tempFolder());
  onTestFinished(() => log.close());
  await log.read();
  return log.lineages;
};

/** The one lineage of a node that has no more, with nothing wrong in it. */
export const wholeLog = async (url: string, lastSeq: number): Promise<ClusterLineage> => {
  const lineages = await readLog(url);
  if (lineages.length !== 1) throw new Error(`${lineages.length} lineages`);
  const [lineage] = lineages;
  if (lineage!.problems.length > 0) throw new Error(JSON.stringify(lineage!.problems.slice(0, 5)));
  if (lineage!.lastSeq !== lastSeq) throw new Error(`the stream ends at ${lineage!.lastSeq}, not ${lastSeq}`);
  return lineage!;
};
