/**
 * A listener as one worker has it: accepts connections, finds out how each begins (PROXY header, TLS, HTTP/2), and makes
 * sessions of them.
 */
import { hasRoomForClients, isLastForClients } from '../net/descriptorLimit.ts';
import { libc } from '../net/libc.ts';
import { PlainWire } from '../net/plainWire.ts';
import type { Watcher } from '../net/reactor.ts';
import { acceptedPeer, acceptFrom, localOf } from '../net/tcpSocket.ts';
import type { Timer } from '../net/timers.ts';
import type { WireProblem } from '../net/wire.ts';
import { GAUGE, COUNTER } from './counters.ts';
import type { ClientSession, Engine, Frontend } from './engine.ts';
import { Http2Front } from './http2Front.ts';
import type { Http2TlsOptions } from './http2Tls.ts';
import { HttpClient } from './httpClient.ts';
import { BACKLOG } from './listeningSockets.ts';
import { Members } from './members.ts';
import type { ListenerModel } from './model.ts';
import { PrefaceWatcher } from './preface.ts';
import type { Preface, PrefaceProblem, PrefaceReader } from './preface.ts';
import { proxyPeers } from './proxyProtocol.ts';
import { SocketStream } from './socketStream.ts';
import type { Opener } from './socketStream.ts';
import type { Peer, Stream } from './stream.ts';
import { StreamFacts } from './streamFacts.ts';
import { TcpSession } from './tcpSession.ts';
import type { TlsWire } from './tlsWire.ts';
import { ServerContexts, TICKET_KEYS_BYTES, UNRECOGNIZED_NAME_ALERT } from './tlsContext.ts';

/** Connections accepted in one go; others have their turn in between. */
const ACCEPTS_PER_EVENT = 64;
/** A listener that can take no more (descriptors, the frontend's limit) looks again after this. */
const SUSPEND_MS = 20;
/** A connection that is not yet a session counts nowhere and is drained by nobody: it must not take long. */
const PREFACE_TIMEOUT_MS = 10_000;
/** Mode tcp with rules on SNI: a client that waits for the server to speak first is kept no longer than this. */
const SNIFF_TIMEOUT_MS = 3_000;

export type ListenerOwner = {
  frontend(name: string): Frontend | undefined;
  /** The last session of a listener that was drained is gone. */
  onDrained(listener: Listener): void;
};

/** A connection between its acceptance and its session. */
class Incoming implements PrefaceReader, Opener {
  readonly #listener: Listener;
  memberIndex = -1;
  readonly peer: Peer;
  readonly #acceptedMs: number;
  readonly #fd: number;
  #watcher: PrefaceWatcher | null = null;
  #stream: SocketStream | null = null;
  #serverName: string | null = null;
  #wire: TlsWire | null = null;
  #timer: Timer | null = null;

  constructor(listener: Listener, fd: number, peer: Peer) {
    this.#listener = listener;
    this.#fd = fd;
    this.peer = peer;
    this.#acceptedMs = listener.engine.reactor.nowMs;
  }

  start(frontend: Frontend): void {
    const { engine, model, tls } = this.#listener;
    const proxyHeader = this.#listener.isProxy(this.peer);
    const sniffs = model.tls === null && frontend.model.mode === 'tcp' && frontend.rules.usesServerName;
    if (!proxyHeader && !tls && !sniffs) {
      const stream = new SocketStream(engine.reactor, this.#fd, new PlainWire(this.#fd), this.peer);
      this.#become(stream);
      return;
    }
    const clientHello = tls ? 'wanted' : sniffs ? 'sniffed' : null;
    const timeoutMs = clientHello === 'sniffed' && !proxyHeader ? SNIFF_TIMEOUT_MS : PREFACE_TIMEOUT_MS;
    this.#watcher = new PrefaceWatcher(engine.reactor, this.#fd, { proxyHeader, clientHello, timeoutMs }, this);
  }

  destroy(): void {
    this.#watcher?.giveUp();
    this.#timer?.drop();
    if (this.#stream) this.#stream.destroy();
    else this.#listener.engine.reactor.close(this.#fd);
    this.#listener.gone(this);
  }

  /** Before anything else was done with it. */
  refuse(): void {
    libc().close(this.#fd);
    this.#listener.gone(this);
  }

  onPreface(fd: number, preface: Preface): void {
    const { engine, tls, model } = this.#listener;
    this.#watcher = null;
    const remote = preface.source ?? this.peer;
    const adopted = { atEnd: preface.atEnd };
    if (!tls) {
      this.#serverName = preface.hello?.serverName ?? null;
      const stream = new SocketStream(engine.reactor, fd, new PlainWire(fd), remote, { adopted });
      if (preface.destination) stream.local = preface.destination;
      this.#become(stream);
      return;
    }
    const hello = preface.hello!;
    if (!tls.accepts(hello.serverName)) {
      new PlainWire(fd).write(UNRECOGNIZED_NAME_ALERT, 0, UNRECOGNIZED_NAME_ALERT.length);
      this.#failTls();
      return;
    }
    if (speaksHttp2(model, hello.alpn)) {
      engine.reactor.unwatch(fd);
      this.#listener.acceptHttp2(fd, { remote, local: preface.destination ?? localOf(fd) });
      this.#listener.isSession(this);
      return;
    }
    const wire = tls.accept(fd, hello.serverName);
    this.#wire = wire;
    this.#stream = new SocketStream(engine.reactor, fd, wire, remote, { adopted });
    if (preface.destination) this.#stream.local = preface.destination;
    if (this.#stream.open(this)) {
      this.onOpened(null);
      return;
    }
    this.#timer = engine.reactor.timers.make(() => this.#failTls());
    this.#timer.set(PREFACE_TIMEOUT_MS);
  }

  onPrefaceFailed(_fd: number, problem: PrefaceProblem): void {
    this.#watcher = null;
    // One that has only looked whether somebody listens is no failure.
    if (problem === 'proxyHeader') this.#listener.refused('deniedConnections');
    else if (problem !== 'closed') this.#listener.refused('tlsFailures');
    this.destroy();
  }

  onOpened(problem: WireProblem | null): void {
    this.#timer?.drop();
    if (problem) {
      this.#failTls();
      return;
    }
    this.#listener.countHandshake(this.#wire!.resumed);
    this.#wire = null;
    this.#become(this.#stream!);
  }

  #failTls(): void {
    this.#listener.refused('tlsFailures');
    this.destroy();
  }

  #become(stream: SocketStream): void {
    const { reactor } = this.#listener.engine;
    const arrival = { acceptedMs: this.#acceptedMs, handshakeMs: reactor.nowMs - this.#acceptedMs };
    this.#listener.isSession(this);
    this.#listener.begin(stream, arrival, this.#serverName);
  }
}

export class Listener implements Watcher {
  readonly engine: Engine;
  readonly slot: number;
  readonly sessions = new Members<ClientSession>();
  model: ListenerModel;
  tls: ServerContexts | null;
  isDrained = false;
  /** Whether a peer tells of its clients in a PROXY header. */
  isProxy: (peer: Peer) => boolean;
  readonly #owner: ListenerOwner;
  readonly #incoming = new Members<Incoming>();
  /** Listening: one of our own, or those that another process has handed over. */
  #descriptors: number[];
  #isSuspended = false;
  /** Clients have all the descriptors that they may have. */
  #isShort = false;
  readonly #timer: Timer;
  #http2: Http2Front | null = null;

  /** Throws when a certificate can't be used. */
  constructor(engine: Engine, owner: ListenerOwner, model: ListenerModel, slot: number, descriptors: number[]) {
    this.engine = engine;
    this.#owner = owner;
    this.model = model;
    this.slot = slot;
    this.tls = this.#contextsFor(model);
    this.#descriptors = descriptors;
    this.#timer = engine.reactor.timers.make(() => this.#resume());
    this.isProxy = proxyPeers(model.proxyProtocol?.from ?? []);
    for (const fd of descriptors) engine.reactor.watchListening(fd, this);
  }

  get isTls(): boolean {
    return this.tls !== null;
  }

  /** Other certificates, other peers: for connections from now on. Throws, and changes nothing, when one can't be used. */
  renew(model: ListenerModel): void {
    const tls = this.#contextsFor(model);
    this.tls?.free();
    this.tls = tls;
    if (this.#http2 && model.http2) this.#http2.renew(this.#http2Tls(model), model.http2);
    this.model = model;
    this.isProxy = proxyPeers(model.proxyProtocol?.from ?? []);
  }

  onEvents(): void {
    this.#acceptFromAll(ACCEPTS_PER_EVENT);
  }

  /** All sockets that are its own: those that it hasn't got are added. */
  inherit(descriptors: readonly number[]): void {
    const added = descriptors.filter((fd) => !this.#descriptors.includes(fd));
    this.#descriptors.push(...added);
    if (!this.#isSuspended) for (const fd of added) this.engine.reactor.watchListening(fd, this);
  }

  /** They are another worker's now, and stay open. */
  giveAway(descriptors: readonly number[]): void {
    const given = this.#descriptors.filter((fd) => descriptors.includes(fd));
    this.#descriptors = this.#descriptors.filter((fd) => !descriptors.includes(fd));
    if (!this.#isSuspended) for (const fd of given) this.engine.reactor.unwatch(fd);
  }

  #acceptFromAll(atMost: number): void {
    for (const fd of this.#descriptors) {
      this.#acceptFrom(fd, atMost);
      if (this.#isSuspended) return;
    }
  }

  #acceptFrom(listening: number, atMost: number): void {
    const { counters } = this.engine;
    for (let accepted = 0; accepted < atMost; accepted++) {
      const frontend = this.#owner.frontend(this.model.frontend);
      if (this.#isShort) this.#isShort = !hasRoomForClients(listening);
      // One that is full leaves its clients in the kernel's queue, as HAProxy does.
      if (!frontend || this.#isShort || !counters.take(this.slot, frontend.model.maxConnections)) {
        this.#suspend();
        return;
      }
      const fd = this.#accept(listening);
      if (fd === null) {
        counters.change(this.slot, GAUGE.active, -1);
        return;
      }
      this.#isShort = isLastForClients(fd);
      counters.add(this.slot, COUNTER.connections);
      this.engine.connections++;
      const peer = acceptedPeer();
      const incoming = new Incoming(this, fd, peer);
      this.#incoming.add(incoming);
      if (this.model.proxyProtocol?.required === true && !this.isProxy(peer)) {
        this.refused('deniedConnections');
        incoming.refuse();
        continue;
      }
      incoming.start(frontend);
    }
  }

  /** Null when nobody waits, or nobody can be taken at the moment. */
  #accept(listening: number): number | null {
    const accepted = acceptFrom(listening);
    if (accepted === null) return null;
    if ('fd' in accepted) return accepted.fd;
    // The client has gone again; or there are no descriptors, or no memory, and it works again when there are.
    if (accepted.code !== 'ECONNABORTED') this.#suspend();
    return null;
  }

  begin(stream: SocketStream, arrival: { acceptedMs: number; handshakeMs: number }, serverName: string | null): void {
    const { frontend: name } = this.model;
    const frontend = this.#owner.frontend(name);
    if (!frontend) {
      stream.destroy();
      this.ended();
      return;
    }
    this.engine.counters.add(this.slot, COUNTER.sessions);
    let session: ClientSession | null = null;
    let isOver = false;
    const onClosed = () => {
      if (isOver) return;
      isOver = true;
      if (session) this.sessions.delete(session);
      this.ended();
    };
    if (frontend.model.mode === 'http') {
      session = new HttpClient(this.engine, () => this.#owner.frontend(name) ?? frontend, stream, arrival, onClosed);
    } else {
      const facts = new StreamFacts(stream, serverName);
      const tcp = new TcpSession(this.engine, frontend, stream, facts, arrival, onClosed);
      session = tcp;
      tcp.start();
    }
    if (isOver) return;
    this.sessions.add(session);
    // Its TLS handshake ended after the listener was drained.
    if (this.isDrained) session.drain();
  }

  acceptHttp2(fd: number, peers: { remote: Peer; local: Peer }): void {
    this.#http2 ??= this.#newHttp2();
    this.engine.counters.add(this.slot, COUNTER.sessions);
    this.#http2.accept(fd, peers);
  }

  /** An incoming connection is a session now. */
  isSession(incoming: Incoming): void {
    this.#incoming.delete(incoming);
  }

  /** An incoming connection is gone. */
  gone(incoming: Incoming): void {
    if (this.#incoming.delete(incoming)) this.ended();
  }

  refused(why: 'tlsFailures' | 'deniedConnections'): void {
    this.engine.counters.add(this.slot, COUNTER[why]);
  }

  countHandshake(isResumed: boolean): void {
    const { counters } = this.engine;
    counters.add(this.slot, COUNTER.tlsHandshakes);
    if (isResumed) counters.add(this.slot, COUNTER.tlsResumptions);
  }

  /** A connection of this listener has ended. */
  ended(): void {
    this.engine.counters.change(this.slot, GAUGE.active, -1);
    this.engine.connections--;
    if (this.#isSuspended) this.#resume();
    this.reportDrained();
  }

  /** Takes nothing new from now on. What is under way goes on. Its sockets are closed, or are somebody else's. */
  stop(closes: boolean): void {
    if (this.isDrained) return;
    // Whoever has connected already would be reset otherwise.
    if (closes) this.#acceptFromAll(BACKLOG);
    this.isDrained = true;
    for (const fd of this.#descriptors) {
      // Another process may have them too: the epoll would go on telling of them.
      if (!this.#isSuspended) this.engine.reactor.unwatch(fd);
      if (closes) this.engine.reactor.close(fd);
    }
    this.#descriptors = [];
    this.#timer.drop();
  }

  drain(): void {
    for (const session of this.sessions.snapshot()) session.drain();
    this.#http2?.drain();
  }

  destroySessions(): void {
    for (const incoming of this.#incoming.snapshot()) incoming.destroy();
    for (const session of this.sessions.snapshot()) session.destroy();
    this.#http2?.destroy();
  }

  reportDrained(): void {
    if (!this.isDrained || this.sessions.size > 0 || this.#incoming.size > 0) return;
    if ((this.#http2?.connections ?? 0) === 0) this.#owner.onDrained(this);
  }

  #suspend(): void {
    this.#timer.set(SUSPEND_MS);
    if (this.#isSuspended) return;
    this.#isSuspended = true;
    for (const fd of this.#descriptors) this.engine.reactor.unwatch(fd);
  }

  #resume(): void {
    if (!this.#isSuspended || this.isDrained) return;
    this.#isSuspended = false;
    this.#timer.clear();
    for (const fd of this.#descriptors) this.engine.reactor.watchListening(fd, this);
  }

  #contextsFor({ tls }: ListenerModel): ServerContexts | null {
    return tls ? new ServerContexts(tls, this.engine.ticketKeys.subarray(0, TICKET_KEYS_BYTES)) : null;
  }

  #http2Tls({ tls }: ListenerModel): Http2TlsOptions | null {
    const ticketKeys = this.engine.ticketKeys.subarray(TICKET_KEYS_BYTES);
    return tls && { ...tls, ticketKeys, handshakeTimeoutMs: PREFACE_TIMEOUT_MS };
  }

  #newHttp2(): Http2Front {
    const { model, engine } = this;
    const frontend = () => this.#owner.frontend(model.frontend)!;
    return new Http2Front({
      tls: this.#http2Tls(model),
      limits: model.http2!,
      timeouts: () => frontend().model.timeouts,
      serve: (stream) => this.#serveHttp2(stream),
      onRefused: () => engine.counters.add(this.slot, COUNTER.requestErrors),
      onSecure: (isResumed) => this.countHandshake(isResumed),
      onHandshakeFailed: () => this.refused('tlsFailures'),
      onConnectionClosed: () => this.ended(),
      wakeNode: () => engine.reactor.wakeNode(),
    });
  }

  /** A request of HTTP/2: its connection is counted, it is not. */
  #serveHttp2(stream: Stream): void {
    const { frontend: name } = this.model;
    const frontend = this.#owner.frontend(name)!;
    this.engine.counters.add(this.slot, COUNTER.http2Requests);
    const arrival = { acceptedMs: this.engine.reactor.nowMs, handshakeMs: 0 };
    const session: ClientSession = new HttpClient(
      this.engine,
      () => this.#owner.frontend(name) ?? frontend,
      stream,
      arrival,
      () => this.sessions.delete(session),
    );
    this.sessions.add(session);
  }
}

/** The protocol that we like best of those that the client offers. */
const speaksHttp2 = ({ tls, http2 }: ListenerModel, offered: readonly string[]): boolean =>
  http2 !== null && tls?.alpn?.find((name) => offered.includes(name)) === 'h2';
