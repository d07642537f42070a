/**
 * HTTP/2 for the clients of a bind, through node:http2: each request becomes a stream of its own (http2Stream.ts) that
 * the HTTP/1.1 engine serves.
 *
 * What hostile peers are held to: nghttp2 bounds header blocks, CONTINUATION frames, queued answers to SETTINGS and PING
 * and the rate of resets; Node bounds a connection's memory and its rejected streams. Added here are a limit on malformed
 * requests and the time that a connection may stay without a request. Slow bodies and unread responses meet the engine's
 * timeouts, as in HTTP/1.1.
 */
import { randomBytes } from 'node:crypto';
import { constants, performServerHandshake } from 'node:http2';
import type { ServerHttp2Session, ServerHttp2Stream, ServerOptions } from 'node:http2';
import { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import type { Http2Limits } from '../config/http2.ts';
import { translateRequest } from './http2Checks.ts';
import { closeWhenSent } from './http2Response.ts';
import { Http2RequestStream } from './http2Stream.ts';
import type { Http2Peers, Http2StreamHost } from './http2Stream.ts';
import { factsOf, Http2Tls } from './http2Tls.ts';
import type { Http2TlsOptions } from './http2Tls.ts';
import type { Peer, Stream } from './stream.ts';

const { NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_FLAG_END_STREAM, NGHTTP2_NO_ERROR, NGHTTP2_PROTOCOL_ERROR } = constants;

/** Malformed requests of one connection; a client that isn't an attack sends none. */
const MAX_MALFORMED = 20;
/** Names and values of one request, cookie crumbs each for itself; the engine's own limit applies to what they make. */
const MAX_HEADER_PAIRS = 256;
/** Streams over the limit, and frames out of place: Node's default for the latter is 1,000. */
const MAX_REJECTED_STREAMS = 100;
const MAX_INVALID_FRAMES = 100;
/** RST_STREAM (CVE-2023-44487): browsers cancel a page's worth of requests at once, but not again and again. */
const RESET_BURST = 1_000;
const RESETS_PER_SECOND = 33;
const MAX_SETTINGS_PER_FRAME = 32;
const MAX_OUTSTANDING_PINGS = 10;
/** For the whole connection: its streams share it, and what they don't take is bounded by their own windows. */
const CONNECTION_WINDOW_BYTES = 1024 * 1024;
/** Of a connection without its streams, and of each stream: a full output buffer. In steps of a megabyte. */
const SESSION_MEGABYTES = 4;
const STREAM_MEGABYTES = 0.066;
/** For a client to take what is left for it, when all is said. */
const CLOSING_MS = 2_000;
/** Connections are looked at this often: their timeouts are late by no more than a quarter, or this. */
const LONGEST_SWEEP_MS = 1_000;
const SHORTEST_SWEEP_MS = 10;

export type Http2FrontOptions = {
  /** Null: in the clear, for clients that know (RFC 9113 section 3.3). */
  tls: Http2TlsOptions | null;
  limits: Http2Limits;
  /** In milliseconds, as they are configured now. */
  timeouts(): { httpRequest: number; keepAlive: number };
  /** A request has come: sets `stream.user`, which then hears of it. */
  serve(stream: Stream): void;
  /** A request or connection was refused before the engine saw any of it. */
  onRefused(reason: string, remote: Peer): void;
  /** A TLS handshake has succeeded; `isResumed`: an earlier session was taken up again. */
  onSecure(isResumed: boolean): void;
  onHandshakeFailed(code: string): void;
  /** A connection that was accepted has gone. */
  onConnectionClosed(): void;
  /** Something was asked of Node's loop: it needs a turn, if it isn't the one that runs. */
  wakeNode(): void;
};

export class Http2Front {
  readonly #options: Http2FrontOptions;
  #session: ServerOptions;
  #tls: Http2Tls | null;
  /** All that were accepted; without a connection while they shake hands. */
  readonly #connections = new Map<Socket, Connection | null>();
  /** Those that a PROXY protocol header told of. */
  readonly #peers = new WeakMap<Socket, { remote: Peer; local: Peer }>();
  #sweep: NodeJS.Timeout | null = null;
  #isDraining = false;

  /** Throws an Error of OpenSSL when a certificate can't be used. */
  constructor(options: Http2FrontOptions) {
    this.#options = options;
    this.#session = sessionOptions(options.limits);
    this.#tls = this.#newTls(options.tls);
  }

  /** That were accepted and aren't closed yet. */
  get connections(): number {
    return this.#connections.size;
  }

  /**
   * Takes over a connected socket of which nothing was read yet (a PROXY protocol header aside), and which nobody else
   * watches. `peers`: what goes before the socket's own addresses.
   */
  accept(fd: number, peers: { remote: Peer; local: Peer } | null = null): void {
    const transport = new Socket({ fd });
    transport.setNoDelay(true);
    this.#connections.set(transport, null);
    if (peers !== null) this.#peers.set(transport, peers);
    transport.once('close', () => {
      this.#connections.delete(transport);
      this.#options.onConnectionClosed();
    });
    this.#options.wakeNode();
    if (this.#tls !== null) this.#tls.accept(transport);
    else this.#begin(transport, transport);
    this.#sweep ??= this.#sweepLater();
  }

  /** For connections from now on. Throws, and changes nothing, when a certificate can't be used. */
  renew(tls: Http2TlsOptions | null, limits: Http2Limits): void {
    this.#tls = this.#newTls(tls);
    this.#session = sessionOptions(limits);
  }

  /** Asks clients to go (GOAWAY); requests that they have sent by then are still served. */
  drain(): void {
    this.#isDraining = true;
    for (const connection of this.#connections.values()) connection?.shutDown();
    this.#options.wakeNode();
  }

  /** Closes all connections at once; the engine hears of each request that was under way. */
  destroy(): void {
    for (const [transport, connection] of this.#connections) {
      if (connection === null) transport.destroy();
      else connection.destroy(NGHTTP2_NO_ERROR);
    }
    if (this.#sweep) clearTimeout(this.#sweep);
    this.#sweep = null;
    this.#options.wakeNode();
  }

  #newTls(tls: Http2TlsOptions | null): Http2Tls | null {
    if (tls === null) return null;
    return new Http2Tls(tls, {
      onSecure: (socket, transport) => {
        this.#options.onSecure(socket.isSessionReused());
        this.#begin(socket, transport);
      },
      onHandshakeFailed: (code) => this.#options.onHandshakeFailed(code),
    });
  }

  #begin(socket: Socket | TLSSocket, transport: Socket): void {
    // Gone during the handshake.
    if (!this.#connections.has(transport)) return;
    const own = this.#peers.get(transport);
    const peers: Http2Peers = {
      remote: own?.remote ?? peerOf(socket.remoteAddress, socket.remotePort),
      local: own?.local ?? peerOf(socket.localAddress, socket.localPort),
      tls: 'authorized' in socket ? factsOf(socket) : null,
    };
    const session = performServerHandshake(socket, this.#session);
    const connection = new Connection(session, socket, peers, this.#options);
    this.#connections.set(transport, connection);
    if (this.#isDraining) connection.shutDown();
  }

  #sweepLater(): NodeJS.Timeout {
    const { httpRequest, keepAlive } = this.#options.timeouts();
    const inMs = Math.max(SHORTEST_SWEEP_MS, Math.min(LONGEST_SWEEP_MS, httpRequest / 4, keepAlive / 4));
    return setTimeout(() => {
      const timeouts = this.#options.timeouts();
      const nowMs = performance.now();
      for (const connection of this.#connections.values()) connection?.checkIdle(nowMs, timeouts);
      this.#sweep = this.#connections.size > 0 ? this.#sweepLater() : null;
    }, inMs);
  }
}

const sessionOptions = (limits: Http2Limits): ServerOptions => ({
  settings: {
    maxConcurrentStreams: limits.maxConcurrentStreams,
    initialWindowSize: limits.initialWindow,
    maxHeaderListSize: limits.maxHeaderList,
    enableConnectProtocol: true,
  },
  maxHeaderListPairs: MAX_HEADER_PAIRS,
  maxSessionMemory: Math.ceil(SESSION_MEGABYTES + limits.maxConcurrentStreams * STREAM_MEGABYTES),
  maxSessionRejectedStreams: MAX_REJECTED_STREAMS,
  maxSessionInvalidFrames: MAX_INVALID_FRAMES,
  maxOutstandingPings: MAX_OUTSTANDING_PINGS,
  maxSettings: MAX_SETTINGS_PER_FRAME,
  streamResetBurst: RESET_BURST,
  streamResetRate: RESETS_PER_SECOND,
  strictFieldWhitespaceValidation: true,
  // A server's response is passed on as it is.
  strictSingleValueFields: false,
});

const peerOf = (address: string | undefined, port: number | undefined): Peer => ({
  address: (address ?? '').replace(/^::ffff:/, ''),
  port: port ?? 0,
});

class Connection implements Http2StreamHost {
  readonly #session: ServerHttp2Session;
  readonly #socket: Socket;
  readonly #peers: Http2Peers;
  readonly #options: Http2FrontOptions;
  #openStreams = 0;
  #malformed = 0;
  #hasAsked = false;
  #isShutDown = false;
  /** Since when it has no request; since when it is closing, once it is. */
  #idleSinceMs = performance.now();
  #closingSinceMs: number | null = null;

  constructor(session: ServerHttp2Session, socket: Socket, peers: Http2Peers, options: Http2FrontOptions) {
    this.#session = session;
    this.#socket = socket;
    this.#peers = peers;
    this.#options = options;
    session.setLocalWindowSize(CONNECTION_WINDOW_BYTES);
    session.on('stream', this.#onStream);
    // What nghttp2 couldn't go on with. The connection closes, and each stream tells its user.
    session.on('error', (error: NodeJS.ErrnoException) =>
      options.onRefused(`connection: ${error.code ?? error.message}`, peers.remote),
    );
  }

  #onStream = (h2: ServerHttp2Stream, _headers: unknown, flags: number, fields: readonly string[]): void => {
    this.#hasAsked = true;
    let webSocketKey: string | null = null;
    const request = translateRequest(fields, (flags & NGHTTP2_FLAG_END_STREAM) !== 0, () => {
      webSocketKey = randomBytes(16).toString('base64');
      return webSocketKey;
    });
    if (request.kind !== 'request') {
      // Its code is our own.
      h2.on('error', () => {});
      if (request.kind === 'malformed') {
        h2.close(NGHTTP2_PROTOCOL_ERROR);
        this.onMalformed(request.reason);
      } else {
        this.#options.onRefused(request.reason, this.#peers.remote);
        h2.respond([':status', String(request.status)], { endStream: true });
        closeWhenSent(h2);
      }
      return;
    }
    this.#openStreams++;
    const stream = new Http2RequestStream(h2, request, webSocketKey, this.#peers, this);
    this.#options.serve(stream);
    stream.start();
  };

  wakeNode(): void {
    this.#options.wakeNode();
  }

  onMalformed(reason: string): void {
    this.#options.onRefused(reason, this.#peers.remote);
    if (++this.#malformed > MAX_MALFORMED) this.destroy(NGHTTP2_ENHANCE_YOUR_CALM);
  }

  onStreamClosed(): void {
    if (--this.#openStreams === 0) this.#idleSinceMs = performance.now();
  }

  /**
   * Section 6.8. Requests that cross the GOAWAY are not looked at, and its number tells the client that it may repeat
   * them; a notice before it, with which they would still be served, is nothing that node:http2 can send.
   */
  shutDown(): void {
    this.#isShutDown = true;
    this.#session.close();
  }

  /** Also the timeout of a head: of a request whose CONTINUATION is missing nothing is known here. */
  checkIdle(nowMs: number, timeouts: { httpRequest: number; keepAlive: number }): void {
    if (this.#closingSinceMs !== null) {
      if (nowMs - this.#closingSinceMs > CLOSING_MS) this.destroy(NGHTTP2_NO_ERROR);
      return;
    }
    if (this.#openStreams > 0) return;
    const allowedMs = this.#isShutDown ? CLOSING_MS : this.#hasAsked ? timeouts.keepAlive : timeouts.httpRequest;
    if (nowMs - this.#idleSinceMs <= allowedMs) return;
    this.#closingSinceMs = nowMs;
    this.#session.close();
  }

  destroy(code: number): void {
    // Node takes a number; its types don't know of that.
    this.#session.destroy(code as unknown as Error);
    // A session that is destroyed still waits for its output to leave, and for the client to close.
    setImmediate(() => this.#socket.destroy());
  }
}
