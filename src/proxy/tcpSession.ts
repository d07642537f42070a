/** Mode `tcp`: one client connection becomes one connection to a server. */
import type { Termination } from './accessLog.ts';
import type { Backend, Place, Refusal, Server } from './backend.ts';
import { COUNTER } from './counters.ts';
import type { Arrival, ClientSession, Engine, Frontend } from './engine.ts';
import type { RequestFacts } from './facts.ts';
import { LATENCY } from './histograms.ts';
import { Relay } from './relay.ts';
import type { RelayOwner } from './relay.ts';
import { Connecting, isOwnShortage } from './serverConnections.ts';
import type { ConnectFailure, Connector, ServerConnection } from './serverConnections.ts';
import { logConnection } from './tcpLog.ts';
import type { Stream, StreamUser } from './stream.ts';

/** When what happened to it, in the reactor's time; -1 for what has not. */
export type TcpMoments = { acceptedMs: number; handshakeMs: number; placedMs: number; connectedMs: number };

export class TcpSession implements StreamUser, ClientSession, Connector, RelayOwner {
  readonly engine: Engine;
  readonly frontend: Frontend;
  readonly stream: Stream;
  readonly facts: RequestFacts;
  readonly moments: TcpMoments;
  backend: Backend | null = null;
  server: Server | null = null;
  retries = 0;
  memberIndex = -1;
  redispatched = false;
  bytesIn = 0;
  bytesOut = 0;
  #onClosed: () => void;
  readonly #tried = new Set<Server>();
  #place: Place | null = null;
  #leaveQueue: (() => void) | null = null;
  #connecting: Connecting | null = null;
  #relay: Relay | null = null;
  /** It is in its listener's list itself. */
  readonly #atServer = { memberIndex: -1, shutdown: () => this.#finish('DD') };
  #over = false;

  constructor(
    engine: Engine,
    frontend: Frontend,
    stream: Stream,
    facts: RequestFacts,
    arrival: Arrival,
    onClosed: () => void,
  ) {
    this.engine = engine;
    this.frontend = frontend;
    this.stream = stream;
    this.facts = facts;
    this.moments = { ...arrival, placedMs: -1, connectedMs: -1 };
    this.#onClosed = onClosed;
    stream.user = this;
    stream.pause();
  }

  /** Apart from the constructor, as it may be over before this returns. */
  start(): void {
    const { engine, frontend } = this;
    const decision = frontend.rules.decideConnection(this.facts);
    if (decision.reject) {
      engine.counters.add(frontend.model.slot, COUNTER.deniedConnections);
      this.#finish('PR');
      return;
    }
    this.backend = engine.backend(decision.backend ?? frontend.model.use) ?? null;
    if (this.backend) this.#acquire(this.backend);
    else this.#finish('SC');
  }

  /** It can't be told to end; it may go on until the drain time is over. */
  drain(): void {}

  destroy(): void {
    this.#finish('KD');
  }

  /** Nothing is read before there is a server. */
  onData(): void {}

  onDrain(): void {}

  onEnd(): void {}

  onClosed(): void {
    if (this.#leaveQueue) this.#leftQueue();
    this.#finish(this.#leaveQueue ? 'CQ' : 'CC');
  }

  /** For the log: it waited till now. */
  #leftQueue(): void {
    if (this.moments.placedMs < 0) this.moments.placedMs = this.engine.reactor.nowMs;
  }

  onHangUp(): void {
    this.onClosed();
  }

  onConnected(connection: ServerConnection): void {
    const { engine, moments, frontend } = this;
    const { slot } = this.#place!.server.model;
    this.#connecting = null;
    moments.connectedMs = engine.reactor.nowMs;
    engine.counters.add(slot, COUNTER.connects);
    engine.histograms.observe(slot, LATENCY.connect, (moments.connectedMs - moments.placedMs) * 1000);
    engine.observer.passed(slot);
    connection.timer.drop();
    const idleMs = Math.max(frontend.model.timeouts.client, this.backend!.model.timeouts.server);
    this.#relay = new Relay(engine.reactor.timers, this.stream, connection.stream, idleMs, this);
  }

  onConnectFailed(failure: ConnectFailure): void {
    const { counters, observer } = this.engine;
    const place = this.#place!;
    const { server } = place;
    this.#connecting = null;
    counters.add(server.model.slot, COUNTER.connectFailures);
    if (!isOwnShortage(failure)) observer.failed(server.model.slot, 'connect', failure.code);
    if (this.retries >= this.backend!.model.retries) {
      this.#finish(failure.code === 'ETIMEDOUT' ? 'sC' : 'SC');
      return;
    }
    this.#releasePlace();
    this.#tried.add(server);
    this.retries++;
    counters.add(server.model.slot, COUNTER.retries);
    this.#acquire(this.backend!);
  }

  relayed(direction: 'in' | 'out', count: number): void {
    const { counters } = this.engine;
    const counter = direction === 'in' ? COUNTER.bytesIn : COUNTER.bytesOut;
    if (direction === 'in') this.bytesIn += count;
    else this.bytesOut += count;
    counters.add(this.server!.model.slot, counter, count);
    counters.add(this.backend!.model.slot, counter, count);
    counters.add(this.frontend.model.slot, counter, count);
  }

  relayEnded(by: 'client' | 'server' | 'timeout' | null): void {
    this.#finish(by === null ? '--' : by === 'client' ? 'CD' : by === 'server' ? 'SD' : 'cD');
  }

  #acquire(backend: Backend): void {
    const leave = backend.acquire(
      this.facts,
      this.#tried,
      (place) => this.#got(place),
      (refusal) => this.#refused(refusal),
    );
    if (leave) this.#leaveQueue = leave;
  }

  #got(place: Place): void {
    const { engine, backend } = this;
    this.#leaveQueue = null;
    this.#place = place;
    const { server } = place;
    if (this.server && this.server !== server) {
      this.redispatched = true;
      engine.counters.add(this.server.model.slot, COUNTER.redispatches);
    }
    this.server = server;
    if (this.moments.placedMs < 0) this.moments.placedMs = engine.reactor.nowMs;
    server.sessions.add(this.#atServer);
    const route = engine.routeOf(server);
    this.#connecting = new Connecting(engine.reactor, route, backend!.model.timeouts.connect, this, this.stream);
    this.#connecting.start();
  }

  #refused(refusal: Refusal): void {
    this.#leaveQueue = null;
    if (refusal === 'queueTimeout') this.#leftQueue();
    this.#finish(refusal === 'queueTimeout' ? 'sQ' : refusal === 'queueFull' ? 'SQ' : 'SC');
  }

  #releasePlace(): void {
    const place = this.#place;
    this.#place = null;
    if (!place) return;
    place.server.sessions.delete(this.#atServer);
    place.release();
  }

  #finish(termination: Termination): void {
    if (this.#over) return;
    this.#over = true;
    const { counters } = this.engine;
    if (termination.startsWith('C')) counters.add(this.frontend.model.slot, COUNTER.clientAborts);
    if (termination.startsWith('S')) counters.add(this.frontend.model.slot, COUNTER.serverAborts);
    logConnection(this, termination);
    this.#leaveQueue?.();
    this.#connecting?.giveUp();
    this.#relay?.destroy();
    this.#releasePlace();
    this.stream.destroy();
    this.#onClosed();
  }
}
