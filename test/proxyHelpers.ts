/** What the data plane's tests share: servers on kernel-given ports, the real DataPlane before them, and raw clients. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import type { IncomingMessage, Server as HttpServer, ServerResponse } from 'node:http';
import { connect as connectHttp2 } from 'node:http2';
import type {
  ClientHttp2Session,
  ClientHttp2Stream,
  IncomingHttpHeaders,
  OutgoingHttpHeaders,
  SecureClientSessionOptions,
} from 'node:http2';
import { connect, createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { setTimeout as wait } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { onTestFinished } from 'vitest';
import { newAccessRecord } from '../src/proxy/accessLog.ts';
import type { AccessRecord, FrontendLog } from '../src/proxy/accessLog.ts';
import { allocateRing, RingReader } from '../src/proxy/accessLogRing.ts';
import type { Figures } from '../src/proxy/counters.ts';
import { DataPlane } from '../src/proxy/dataPlane.ts';
import type { Observation } from '../src/proxy/observer.ts';
import { balance as balanceSchema } from '../src/config/balance.ts';
import { rule as ruleSchema } from '../src/config/rules.ts';
import type { BackendModel, FrontendModel, ListenerModel, ServerModel } from '../src/proxy/model.ts';
import { RateMemories, ruleModelsOf } from '../src/proxy/ruleModel.ts';
import { usesId } from '../src/proxy/rules.ts';
import type { ServerTlsModel } from '../src/proxy/tlsContext.ts';

export const HOST = '127.0.0.1';

const portOf = (server: Server): number => (server.address() as AddressInfo).port;

/** Waits for what no event tells; `what` as it was in the end when it is a function. */
export const eventually = async (
  what: string | (() => string),
  check: () => boolean,
  timeoutMs = 10_000,
): Promise<void> => {
  const deadline = performance.now() + timeoutMs;
  while (!check()) {
    if (performance.now() > deadline)
      throw new Error(`not within ${timeoutMs} ms: ${typeof what === 'string' ? what : what()}`);
    await wait(5);
  }
};

export type Ran = { status: number | null; stdout: string; stderr: string };

/** A program to its end; what it says is latin1. */
export const run = async (program: string, args: string[], input: string | Buffer = ''): Promise<Ran> => {
  const child = spawn(program, args);
  onTestFinished(() => void child.kill('SIGKILL'));
  const ran: Ran = { status: null, stdout: '', stderr: '' };
  child.stdout.on('data', (chunk: Buffer) => (ran.stdout += chunk.toString('latin1')));
  child.stderr.on('data', (chunk: Buffer) => (ran.stderr += chunk.toString('latin1')));
  // It may end without having read all of it.
  child.stdin.on('error', () => {});
  child.stdin.end(input);
  const [status] = (await once(child, 'close')) as [number | null];
  return { ...ran, status };
};

/** Where to leave what is to be done when the test, or the group of tests that shares it, is over. */
export type AtEnd = (clean: () => void | Promise<void>) => void;

export type RawServer = { port: number; server: Server; sockets: Set<Socket>; accepted: number };

/** A TCP server; its connections are ended with the test. */
export const rawServer = async (
  onConnection: (socket: Socket) => void,
  atEnd: AtEnd = onTestFinished,
): Promise<RawServer> => {
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
  atEnd(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return raw;
};

/** A server that answers each request head it gets with these bytes, as they are. */
export const scriptedServer = (answer: (head: string, socket: Socket) => void, atEnd?: AtEnd): Promise<RawServer> =>
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
  }, atEnd);

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

export type ServerSpec = { port: number; weight?: number; maxConnections?: number; model?: Partial<ServerModel> };

/** TLS as the configuration's defaults have it, with these certificates: PEM texts, each a chain and its key. */
export const tlsModel = (certificates: string[], more: Partial<ServerTlsModel> = {}): ServerTlsModel => ({
  certificates,
  minVersion: 'TLSv1.2',
  maxVersion: 'TLSv1.3',
  ciphers: null,
  cipherSuites: null,
  curves: null,
  strictSni: false,
  alpn: null,
  tickets: true,
  clientCertificates: null,
  ...more,
});

/** A listener `main` of the frontend `front`. */
export const listenerModel = (port: number, more: Partial<ListenerModel> = {}): ListenerModel => ({
  id: 'main',
  frontend: 'front',
  address: { host: HOST, port },
  tls: null,
  http2: null,
  proxyProtocol: null,
  freeBind: false,
  socketFile: { mode: null, uid: null, gid: null },
  ...more,
});

/** Everything is logged; `records` of the proxy gives it back. */
export const LOG: FrontendLog = { sink: 0, only: 'all', sample: 1, requestHeaders: [], responseHeaders: [] };

export type ProxyOptions = {
  mode?: 'http' | 'tcp';
  /** Of the backend `web`. */
  servers: Record<string, ServerSpec>;
  /** Further backends. */
  others?: Record<string, Record<string, ServerSpec>>;
  /** As in the configuration. */
  balance?: unknown;
  retries?: number;
  backend?: Partial<BackendModel>;
  frontend?: Partial<FrontendModel>;
  listener?: Partial<ListenerModel>;
  timeouts?: Partial<BackendModel['timeouts']>;
  clientTimeouts?: Partial<FrontendModel['timeouts']>;
  maxConnections?: number;
  /** As in the configuration. */
  rules?: unknown[];
  certificates?: string[];
  logOf?: (worker: number) => SharedArrayBuffer;
  workers?: number;
  atEnd?: AtEnd;
};

export type Proxy = {
  port: number;
  dataPlane: DataPlane;
  workers: Worker[];
  /** Messages of workers that ended before the test did. */
  exits: string[];
  drained: string[];
  listenings: { id: string; port: number }[];
  observed: Observation[];
  figures(name: string): Figures;
  /** What was logged so far, each worker's in order. */
  records(): AccessRecord[];
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
  const logs = new Map<number, { memory: SharedArrayBuffer; reader: RingReader }>();
  const logOf = (worker: number): SharedArrayBuffer => {
    const memory = logs.get(worker)?.memory ?? allocateRing();
    logs.set(worker, { memory, reader: new RingReader(memory, newAccessRecord('http')) });
    return memory;
  };
  const logged: AccessRecord[] = [];
  const records = (): AccessRecord[] => {
    for (const { reader } of logs.values())
      for (let next = reader.read(); next; next = reader.read()) logged.push({ ...next.record });
    return logged;
  };
  const observed: Observation[] = [];
  const dataPlane = new DataPlane(options.logOf ?? logOf, {
    observed: (observation) => observed.push(observation),
    workerReady: () => ready++,
    workerExited: (index, code, message) => {
      if (!ended) exits.push(`${index}: ${code} ${message}`);
    },
    listenerOpened: (id, port) => listenings.push({ id, port }),
    listenerFailed: (id, code, message) => failures.push(`${id}: ${code} ${message}`),
    listenerDrained: (id) => drained.push(id),
  });
  const atEnd = options.atEnd ?? onTestFinished;
  atEnd(async () => {
    ended = true;
    await dataPlane.terminate();
  });
  const serverModel = (backend: string, name: string, spec: ServerSpec): ServerModel => ({
    name,
    address: { host: HOST, port: spec.port },
    slot: dataPlane.slot(`${backend}/${name}`),
    maxConnections: spec.maxConnections ?? 0,
    maxQueue: 0,
    defaultHost: `${HOST}:${spec.port}`,
    tls: null,
    sendProxy: null,
    ...spec.model,
  });
  const backendModel = (name: string, servers: Record<string, ServerSpec>): BackendModel => ({
    name,
    slot: dataPlane.slot(`pool/${name}`),
    balance: balanceSchema.parse(balance),
    sticky: null,
    stickTable: null,
    observe: null,
    retries,
    maxQueue: 10_000,
    timeouts: { connect: 2_000, server: 10_000, queue: 5_000, tunnel: 10_000, ...options.timeouts },
    errorPages: [],
    ...options.backend,
    servers: Object.entries(servers).map(([server, spec]) => serverModel(name, server, spec)),
  });
  const backends = Object.entries({ web: options.servers, ...options.others });
  const rules = ruleModelsOf(
    'front',
    (options.rules ?? []).map((one) => ruleSchema.parse(one)),
    (file) => readFileSync(file, 'utf8'),
    new RateMemories(),
  );
  dataPlane.configure({
    frontends: [
      {
        name: 'front',
        mode,
        slot: dataPlane.slot('front'),
        rules,
        needsId: usesId(rules),
        use: 'web',
        maxConnections: options.maxConnections ?? 10_000,
        forwardedFor: 'add',
        compression: null,
        errorPages: [],
        log: null,
        timeouts: { client: 10_000, httpRequest: 10_000, keepAlive: 10_000, ...options.clientTimeouts },
        ...options.frontend,
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
  dataPlane.openListener(
    listenerModel(0, {
      tls: options.certificates ? tlsModel(options.certificates) : null,
      ...options.listener,
    }),
  );
  await eventually('listening', () => listenings.length === count || failures.length > 0);
  if (failures.length > 0) throw new Error(failures.join('; '));
  const figures = (name: string): Figures => {
    const found = dataPlane.figures(name);
    if (!found) throw new Error(`no figures of ${name}`);
    return found;
  };
  const { port } = listenings[0]!;
  return { port, dataPlane, workers, exits, drained, listenings, observed, figures, records };
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
    await eventually(
      () => `${String(part)} in ${this.#seen()}`,
      () => (typeof part === 'string' ? this.text.includes(part) : part.test(this.text)),
    );
    return this.text;
  }

  /** All that has come until the other side ended or reset. */
  async rest(): Promise<string> {
    await eventually(
      () => `the end after ${this.#seen()}`,
      () => this.ended || this.closed,
    );
    this.socket.destroy();
    return this.text;
  }

  #seen(): string {
    const state = this.error?.code ?? (this.closed ? 'closed' : this.ended ? 'ended' : 'open');
    return `${JSON.stringify(this.text.slice(-300))}, ${state}`;
  }
}

/** Sends these bytes and gives back all that comes until the connection is over. */
export const talk = (port: number, bytes: string): Promise<string> => new RawClient(port).send(bytes).rest();

export const get = (path = '/', fields = ''): string => `GET ${path} HTTP/1.1\r\nHost: shop.example\r\n${fields}\r\n`;
export const getAndClose = (path = '/', fields = ''): string => get(path, `Connection: close\r\n${fields}`);
export const statusOf = (text: string): number => Number(/^HTTP\/1\.1 (\d{3})/.exec(text)?.[1]);
export const bodyOf = (text: string): string => text.slice(text.indexOf('\r\n\r\n') + 4);

/** A connection of HTTP/2 over TLS, whose certificate is not looked at. */
export const http2Client = (port: number, options: SecureClientSessionOptions = {}): ClientHttp2Session => {
  const session = connectHttp2(`https://${HOST}:${port}`, {
    servername: 'shop.test',
    rejectUnauthorized: false,
    ...options,
  });
  // Each of its streams tells what became of it.
  session.on('error', () => {});
  onTestFinished(() => session.destroy());
  return session;
};

export type Http2Answer = {
  status: number;
  headers: IncomingHttpHeaders;
  interim: number[];
  body: Buffer;
  trailers: IncomingHttpHeaders;
};

/** The answer on a stream, whole; an error of the stream when it is cut off. */
export const http2Answer = async (stream: ClientHttp2Stream): Promise<Http2Answer> => {
  const answer: Http2Answer = { status: 0, headers: {}, interim: [], body: Buffer.alloc(0), trailers: {} };
  const parts: Buffer[] = [];
  stream.on('headers', (headers) => answer.interim.push(Number(headers[':status'])));
  stream.on('response', (headers) => {
    answer.status = Number(headers[':status']);
    answer.headers = headers;
  });
  stream.on('trailers', (headers) => (answer.trailers = headers));
  stream.on('data', (chunk: Buffer) => parts.push(chunk));
  await once(stream, 'end');
  if (stream.rstCode !== 0) throw new Error(`the stream was reset with ${stream.rstCode}`);
  answer.body = Buffer.concat(parts);
  return answer;
};

/** Asks for `/` unless the fields say otherwise. */
export const http2Ask = (
  session: ClientHttp2Session,
  fields: OutgoingHttpHeaders = {},
  body: string | Buffer | null = null,
): Promise<Http2Answer> => {
  const stream = session.request({ ':authority': 'shop.test', ...fields }, { endStream: body === null });
  if (body !== null) stream.end(body);
  return http2Answer(stream);
};
