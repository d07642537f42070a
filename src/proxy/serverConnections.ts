/** Connections to servers: opened with a time limit, kept for the next request while both sides are content. */
import { lookup } from 'node:dns';
import { isIP } from 'node:net';
import type { Endpoint } from '../config/units.ts';
import { isBeyondTraffic } from '../net/descriptorLimit.ts';
import { libc } from '../net/libc.ts';
import type { Reactor } from '../net/reactor.ts';
import { PlainWire } from '../net/plainWire.ts';
import { socketAddressOf, startConnecting } from '../net/tcpSocket.ts';
import type { SocketAddress } from '../net/tcpSocket.ts';
import type { Timer } from '../net/timers.ts';
import type { Wire, WireProblem } from '../net/wire.ts';
import { SocketStream } from './socketStream.ts';
import type { Opener } from './socketStream.ts';
import type { Stream, StreamUser } from './stream.ts';

/** Idle connections kept for one server by one worker: enough for its own concurrency, few enough for the server. */
const MAX_IDLE = 256;
/** Below the 5 s after which Node's own HTTP server closes an idle connection, the shortest in common use. */
const IDLE_TIMEOUT_MS = 4_000;
/** A name's address is asked for again after this long; resolvers keep their own time below that. */
const NAME_TTL_MS = 10_000;

/** Who uses a connection at the moment. */
export type ConnectionUser = StreamUser & {
  /** The server has been silent for as long as `timer` was set to. */
  onTimeout(): void;
};

export class ServerConnection {
  readonly stream: SocketStream;
  readonly timer: Timer;
  user: ConnectionUser | null = null;
  /** It has served a request before: it may have been closed by the server in this very moment. */
  reused = false;
  /** Its user while it is idle; made once. */
  idle: Idle | null = null;

  constructor(reactor: Reactor, stream: SocketStream) {
    this.stream = stream;
    this.timer = reactor.timers.make(() => this.user?.onTimeout());
  }

  use(user: ConnectionUser): void {
    this.user = user;
    this.stream.user = user;
    this.stream.resume();
  }

  destroy(): void {
    this.timer.drop();
    this.user = null;
    this.stream.destroy();
  }
}

/** How a server is reached. Made once for each server and configuration. */
export type Route = {
  endpoint: Endpoint;
  /** The wire over a new descriptor: plain, or with TLS. */
  makeWire: ((fd: number) => Wire) | null;
  /** The PROXY header for a client, where the server wants one. */
  preambleFor: ((client: Stream) => Buffer) | null;
};

export type ConnectFailure = WireProblem;

/** What this node lacks, not the server. */
const OWN_SHORTAGES = new Set(['EMFILE', 'ENFILE', 'ENOBUFS', 'ENOMEM', 'EADDRNOTAVAIL']);

export const isOwnShortage = ({ code }: ConnectFailure): boolean => OWN_SHORTAGES.has(code);

/** Who has asked for a connection; exactly one of the two is called, unless it was given up before. */
export type Connector = {
  onConnected(connection: ServerConnection): void;
  onConnectFailed(failure: ConnectFailure): void;
};

type Found = (address: SocketAddress | null, problem: ConnectFailure | null) => void;

type Resolution = {
  address: SocketAddress | null;
  untilMs: number;
  /** Who waits for the look-up that is under way; null when none is. */
  waiting: Found[] | null;
};

const resolutions = new WeakMap<Endpoint, Resolution>();

/** Calls back at once for what is an address or known. */
const resolve = (reactor: Reactor, endpoint: Endpoint, done: Found): void => {
  let known = resolutions.get(endpoint);
  if (!known) {
    const isAddress = endpoint.path !== undefined || isIP(endpoint.host) !== 0;
    known = isAddress
      ? { address: socketAddressOf(endpoint), untilMs: Infinity, waiting: null }
      : { address: null, untilMs: -Infinity, waiting: null };
    resolutions.set(endpoint, known);
  }
  const isLookingUp = known.waiting !== null;
  if (known.address === null) (known.waiting ??= []).push(done);
  if (known.untilMs <= reactor.nowMs && !isLookingUp) lookUp(reactor, endpoint, known);
  // The address that was is good enough until the resolver has answered.
  if (known.address !== null) done(known.address, null);
};

const lookUp = (reactor: Reactor, { host, port }: Endpoint, resolution: Resolution): void => {
  resolution.waiting ??= [];
  reactor.wakeNode();
  lookup(host, (error, found) => {
    const waiting = resolution.waiting!;
    resolution.waiting = null;
    if (!error) resolution.address = socketAddressOf({ host: found, port });
    const { address } = resolution;
    if (address !== null) resolution.untilMs = reactor.nowMs + NAME_TTL_MS;
    const problem = { code: error?.code ?? 'ENOTFOUND', message: `${host} can't be resolved` };
    for (const done of waiting) done(address, address === null ? problem : null);
  });
};

/** A connection in the making. */
export class Connecting implements Opener {
  readonly #reactor: Reactor;
  readonly #route: Route;
  readonly #connector: Connector;
  readonly #client: Stream;
  readonly #timer: Timer;
  #stream: SocketStream | null = null;
  #over = false;

  constructor(reactor: Reactor, route: Route, timeoutMs: number, connector: Connector, client: Stream) {
    this.#reactor = reactor;
    this.#route = route;
    this.#connector = connector;
    this.#client = client;
    this.#timer = reactor.timers.make(() =>
      this.#fail({ code: 'ETIMEDOUT', message: `no connection within ${timeoutMs} ms` }),
    );
    this.#timer.set(timeoutMs);
  }

  /** Apart from the constructor, as the connector may be told before this returns. */
  start(): void {
    resolve(this.#reactor, this.#route.endpoint, (address, problem) => {
      if (this.#over) return;
      if (address) this.#connect(address);
      else this.#fail(problem!);
    });
  }

  giveUp(): void {
    this.#over = true;
    this.#timer.drop();
    this.#stream?.destroy();
    this.#stream = null;
  }

  onOpened(problem: WireProblem | null): void {
    if (this.#over) return;
    if (problem) {
      this.#fail(problem);
      return;
    }
    this.#over = true;
    this.#timer.drop();
    this.#connector.onConnected(new ServerConnection(this.#reactor, this.#stream!));
  }

  #connect(address: SocketAddress): void {
    const started = startConnecting(address);
    if ('code' in started) {
      this.#fail({ code: started.code, message: `the connection failed: ${started.code}` });
      return;
    }
    if (isBeyondTraffic(started.fd)) {
      libc().close(started.fd);
      this.#fail({ code: 'EMFILE', message: 'this node has no descriptor left for it (ulimit -n)' });
      return;
    }
    const { endpoint, makeWire, preambleFor } = this.#route;
    const wire = makeWire ? makeWire(started.fd) : new PlainWire(started.fd);
    const remote = { address: endpoint.host, port: endpoint.port };
    this.#stream = new SocketStream(this.#reactor, started.fd, wire, remote, {
      connecting: !started.connected,
      preamble: preambleFor ? preambleFor(this.#client) : null,
    });
    if (this.#stream.open(this)) this.onOpened(null);
  }

  #fail(failure: ConnectFailure): void {
    if (this.#over) return;
    this.giveUp();
    this.#connector.onConnectFailed(failure);
  }
}

/** An idle connection: whatever happens to it ends it. */
class Idle implements ConnectionUser {
  readonly connection: ServerConnection;
  readonly #pool: IdleConnections;

  constructor(pool: IdleConnections, connection: ServerConnection) {
    this.#pool = pool;
    this.connection = connection;
  }

  /** Data that nobody asked for: what it belongs to can't be known. */
  onData(): void {
    this.#pool.remove(this);
  }

  onDrain(): void {}

  onEnd(): void {
    this.#pool.remove(this);
  }

  onTimeout(): void {
    this.#pool.remove(this);
  }

  onClosed(): void {
    this.#pool.remove(this);
  }
}

/** The newest is used first, so that what isn't needed grows old and goes. */
export class IdleConnections {
  #idle: Idle[] = [];
  #stopped = false;
  readonly #changed: (by: 1 | -1) => void;

  /** `changed` is told of every connection that is kept, and that is no longer. */
  constructor(changed: (by: 1 | -1) => void) {
    this.#changed = changed;
  }

  get size(): number {
    return this.#idle.length;
  }

  take(): ServerConnection | null {
    const idle = this.#idle.pop();
    if (!idle) return null;
    this.#changed(-1);
    const { connection } = idle;
    connection.timer.clear();
    connection.reused = true;
    return connection;
  }

  put(connection: ServerConnection): void {
    const { stream } = connection;
    const isUsable = !stream.destroyed && !stream.ended && stream.pending === 0;
    if (this.#stopped || this.#idle.length >= MAX_IDLE || !isUsable) {
      connection.destroy();
      return;
    }
    const idle = (connection.idle ??= new Idle(this, connection));
    this.#idle.push(idle);
    this.#changed(1);
    connection.use(idle);
    connection.timer.set(IDLE_TIMEOUT_MS);
  }

  remove(idle: Idle): void {
    const index = this.#idle.indexOf(idle);
    if (index >= 0) {
      this.#idle.splice(index, 1);
      this.#changed(-1);
    }
    idle.connection.destroy();
  }

  /** Keeps none from now on. */
  stop(): void {
    this.#stopped = true;
    this.closeAll();
  }

  closeAll(): void {
    const idle = this.#idle;
    this.#idle = [];
    for (const { connection } of idle) {
      this.#changed(-1);
      connection.destroy();
    }
  }
}
