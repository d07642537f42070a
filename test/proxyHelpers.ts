/** What the data plane's tests share: servers on kernel-given ports, the real DataPlane before them, and raw clients. */
import { once } from 'node:events';
import { createServer as createHttpServer } from 'node:http';
import type { IncomingMessage, Server as HttpServer, ServerResponse } from 'node:http';
import { connect, createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { setTimeout as wait } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { onTestFinished } from 'vitest';
import type { Figures } from '../src/proxy/counters.ts';
import { DataPlane } from '../src/proxy/dataPlane.ts';
import type { Balance, BackendModel, FrontendModel, RuleModel } from '../src/proxy/model.ts';

export const HOST = '127.0.0.1';

const portOf = (server: Server): number => (server.address() as AddressInfo).port;

/** Waits for what no event tells. */
export const eventually = async (what: string, check: () => boolean, timeoutMs = 10_000): Promise<void> => {
  const deadline = performance.now() + timeoutMs;
  while (!check()) {
    if (performance.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await wait(5);
  }
};

export type RawServer = { port: number; server: Server; sockets: Set<Socket>; accepted: number };

/** A TCP server; its connections are ended with the test. */
export const rawServer = async (onConnection: (socket: Socket) => void): Promise<RawServer> => {
  const sockets = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true });
  const raw: RawServer = { port: 0, server, sockets, accepted: 0 };
  server.on('connection', (socket) => {
    raw.accepted++;
    sockets.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => sockets.delete(socket));
    onConnection(socket);
  });
  server.listen(0, HOST);
  await once(server, 'listening');
  raw.port = portOf(server);
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return raw;
};

/** A server that answers each request head it gets with these bytes, as they are. */
export const scriptedServer = (answer: (head: string, socket: Socket) => void): Promise<RawServer> =>
  rawServer((socket) => {
    let input = '';
    socket.on('data', (chunk) => {
      input += chunk.toString('latin1');
      for (let end = input.indexOf('\r\n\r\n'); end !== -1; end = input.indexOf('\r\n\r\n')) {
        const head = input.slice(0, end + 4);
        input = input.slice(end + 4);
        answer(head, socket);
      }
    });
    socket.on('end', () => socket.end());
  });

export type Backend = { port: number; server: HttpServer; connections: number; requests: string[] };

export const httpServer = async (
  handler: (request: IncomingMessage, response: ServerResponse) => void,
): Promise<Backend> => {
  const server = createHttpServer({ keepAliveTimeout: 30_000 });
  const backend: Backend = { port: 0, server, connections: 0, requests: [] };
  server.on('connection', () => backend.connections++);
  server.on('request', (request: IncomingMessage, response: ServerResponse) => {
    backend.requests.push(`${request.method} ${request.url}`);
    handler(request, response);
  });
  server.listen(0, HOST);
  await once(server, 'listening');
  backend.port = portOf(server);
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return backend;
};

/** A port where nothing listens. */
export const closedPort = async (): Promise<number> => {
  const server = createServer().listen(0, HOST);
  await once(server, 'listening');
  const port = portOf(server);
  server.close();
  await once(server, 'close');
  return port;
};

const BLOCKED = `
const { parentPort, workerData } = require('node:worker_threads');
const server = require('node:net').createServer((socket) => {
  socket.on('error', () => {});
  socket.on('data', (chunk) => {
    parentPort.postMessage({ text: chunk.toString('latin1') });
    socket.write('HTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\n\\r\\nlate');
  });
});
server.listen({ port: 0, host: '127.0.0.1', backlog: 1 }, () => {
  parentPort.postMessage({ port: server.address().port });
  Atomics.wait(workerData, 0, 0);
});`;

export type BlockedServer = { port: number; received: string[]; release(): void };

/** A server that accepts nothing until it is released: connecting to it takes long, as to a host that drops packets. */
export const blockedServer = async (): Promise<BlockedServer> => {
  const flag = new Int32Array(new SharedArrayBuffer(4));
  const worker = new Worker(BLOCKED, { eval: true, workerData: flag });
  const release = () => {
    Atomics.store(flag, 0, 1);
    Atomics.notify(flag, 0);
  };
  const fillers: Socket[] = [];
  onTestFinished(async () => {
    release();
    for (const filler of fillers) filler.destroy();
    await worker.terminate();
  });
  const blocked: BlockedServer = { port: 0, received: [], release };
  const [first] = (await once(worker, 'message')) as [{ port: number }];
  blocked.port = first.port;
  worker.on('message', ({ text }: { text: string }) => blocked.received.push(text));
  for (let full = false; !full;) {
    const filler = connect(blocked.port, HOST);
    filler.on('error', () => {});
    fillers.push(filler);
    full = await Promise.race([once(filler, 'connect').then(() => false), wait(200, true)]);
  }
  return blocked;
};

export type ServerSpec = { port: number; weight?: number; maxConnections?: number };

export type ProxyOptions = {
  mode?: 'http' | 'tcp';
  /** Of the backend `web`. */
  servers: Record<string, ServerSpec>;
  /** Further backends. */
  others?: Record<string, Record<string, ServerSpec>>;
  balance?: Balance;
  retries?: number;
  timeouts?: Partial<BackendModel['timeouts']>;
  clientTimeouts?: Partial<FrontendModel['timeouts']>;
  maxConnections?: number;
  rules?: RuleModel[];
  certificates?: string[];
  workers?: number;
};

export type Proxy = {
  port: number;
  dataPlane: DataPlane;
  workers: Worker[];
  /** Messages of workers that ended before the test did. */
  exits: string[];
  drained: string[];
  listenings: { id: string; port: number }[];
  figures(name: string): Figures;
};

/** A port that several listeners with SO_REUSEPORT can share: held until they do. */
const holdPort = async (): Promise<{ port: number; letGo(): Promise<void> }> => {
  const holder = createServer();
  holder.listen({ port: 0, host: HOST, reusePort: true });
  await once(holder, 'listening');
  return {
    port: portOf(holder),
    letGo: async () => {
      holder.close();
      await once(holder, 'close');
    },
  };
};

/** The listener is `main`, the frontend `front`, the backend `web`. */
export const startProxy = async (options: ProxyOptions): Promise<Proxy> => {
  const { mode = 'http', balance = 'roundRobin', retries = 2, workers: count = 2 } = options;
  const workers: Worker[] = [];
  const onWorker = (worker: Worker) => workers.push(worker);
  const exits: string[] = [];
  const drained: string[] = [];
  const listenings: { id: string; port: number }[] = [];
  const failures: string[] = [];
  let ready = 0;
  let ended = false;
  const dataPlane = new DataPlane({
    workerReady: () => ready++,
    workerExited: (index, code, message) => {
      if (!ended) exits.push(`${index}: ${code} ${message}`);
    },
    listenerOpened: (id, port) => listenings.push({ id, port }),
    listenerFailed: (id, code, message) => failures.push(`${id}: ${code} ${message}`),
    listenerDrained: (id) => drained.push(id),
  });
  onTestFinished(async () => {
    ended = true;
    await dataPlane.terminate();
  });
  const held = await holdPort();
  const backendModel = (name: string, servers: Record<string, ServerSpec>): BackendModel => ({
    name,
    balance,
    retries,
    timeouts: { connect: 2_000, server: 10_000, queue: 5_000, tunnel: 10_000, ...options.timeouts },
    servers: Object.entries(servers).map(([server, { port, maxConnections = 0 }]) => ({
      name: server,
      address: { host: HOST, port },
      slot: dataPlane.slot(`${name}/${server}`),
      maxConnections,
    })),
  });
  const backends = Object.entries({ web: options.servers, ...options.others });
  dataPlane.configure({
    frontends: [
      {
        name: 'front',
        mode,
        slot: dataPlane.slot('front'),
        rules: options.rules ?? [],
        use: 'web',
        maxConnections: options.maxConnections ?? 10_000,
        timeouts: { client: 10_000, httpRequest: 10_000, keepAlive: 10_000, ...options.clientTimeouts },
      },
    ],
    backends: backends.map(([name, servers]) => backendModel(name, servers)),
  });
  for (const [name, servers] of backends) {
    const weights = Object.entries(servers).map(([server, { weight = 1 }]): [string, number] => [server, weight]);
    dataPlane.publish(name, 'serving', Object.fromEntries(weights));
  }
  process.on('worker', onWorker);
  for (let index = 0; index < count; index++) dataPlane.startWorker(index);
  await eventually('workers ready', () => ready === count);
  process.off('worker', onWorker);
  dataPlane.openListener({
    id: 'main',
    frontend: 'front',
    address: { host: HOST, port: held.port },
    certificates: options.certificates ?? null,
    freeBind: false,
  });
  await eventually('listening', () => listenings.length === count || failures.length > 0);
  if (failures.length > 0) throw new Error(failures.join('; '));
  await held.letGo();
  const figures = (name: string): Figures => {
    const found = dataPlane.figures(name);
    if (!found) throw new Error(`no figures of ${name}`);
    return found;
  };
  return { port: held.port, dataPlane, workers, exits, drained, listenings, figures };
};

/** A client that sees every byte. */
export class RawClient {
  readonly socket: Socket;
  text = '';
  ended = false;
  closed = false;
  error: (Error & { code?: string }) | null = null;

  constructor(port: number) {
    this.socket = connect({ port, host: HOST, allowHalfOpen: true });
    this.socket.on('data', (chunk: Buffer) => (this.text += chunk.toString('latin1')));
    this.socket.on('end', () => (this.ended = true));
    this.socket.on('error', (error) => (this.error = error));
    this.socket.on('close', () => (this.closed = true));
    onTestFinished(() => {
      this.socket.destroy();
    });
  }

  send(bytes: string | Buffer): this {
    this.socket.write(typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes);
    return this;
  }

  /** What has come, once it holds this. */
  async until(part: string | RegExp): Promise<string> {
    await eventually(`${String(part)} in ${JSON.stringify(this.text.slice(-300))}`, () =>
      typeof part === 'string' ? this.text.includes(part) : part.test(this.text),
    );
    return this.text;
  }

  /** All that has come until the other side ended or reset. */
  async rest(): Promise<string> {
    await eventually(`the end after ${JSON.stringify(this.text.slice(-300))}`, () => this.ended || this.closed);
    this.socket.destroy();
    return this.text;
  }
}

/** Sends these bytes and gives back all that comes until the connection is over. */
export const talk = (port: number, bytes: string): Promise<string> => new RawClient(port).send(bytes).rest();

export const get = (path = '/', fields = ''): string => `GET ${path} HTTP/1.1\r\nHost: shop.example\r\n${fields}\r\n`;
export const getAndClose = (path = '/', fields = ''): string => get(path, `Connection: close\r\n${fields}`);
export const statusOf = (text: string): number => Number(/^HTTP\/1\.1 (\d{3})/.exec(text)?.[1]);
export const bodyOf = (text: string): string => text.slice(text.indexOf('\r\n\r\n') + 4);
