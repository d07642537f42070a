/**
 * One request and its answer: to the server that the backend chooses, and back. Bodies flow as they come, with
 * back-pressure.
 *
 * What may be tried again: a request whose connection failed (nothing was sent), and an idempotent request without a
 * body whose connection died before the first byte of an answer (RFC 9110 section 9.2.2).
 */
import type { Termination } from './accessLog.ts';
import type { Backend, Place, Refusal, Server } from './backend.ts';
import { chooseEncoding, Compressor, lacksVary, weakened } from './compression.ts';
import type { Encoding } from './compression.ts';
import { COUNTER } from './counters.ts';
import { headerOf } from './fields.ts';
import { Body } from './framing.ts';
import { parseResponse } from './head.ts';
import type { RequestHead, ResponseHead } from './head.ts';
import { writeRequestHead, writeResponseHead } from './headWriter.ts';
import { LATENCY } from './histograms.ts';
import type { HttpClient } from './httpClient.ts';
import { logRequest } from './httpLog.ts';
import { refusalOf } from './ownAnswers.ts';
import { isFailureStatus } from './observer.ts';
import { Relay } from './relay.ts';
import type { RelayOwner } from './relay.ts';
import type { Decision, HeaderEdit } from './rules.ts';
import { Connecting, isOwnShortage } from './serverConnections.ts';
import type { ConnectFailure, ConnectionUser, Connector, ServerConnection } from './serverConnections.ts';
import type { FailureKind } from '../../machines/trafficObserver.ts';

const IDEMPOTENT = new Set(['GET', 'HEAD', 'PUT', 'DELETE', 'OPTIONS', 'TRACE']);
const EMPTY = Buffer.alloc(0);

/** Heads are written here, with as much of a body as has come with them: one system call for both. */
const OUTPUT = Buffer.allocUnsafeSlow(256 * 1024);
/** A body that begins with more than this is sent by itself: copying it would cost more than a second call. */
const MAX_JOINED_BYTES = 64 * 1024;

/** Shared by all that have not failed; never added to. */
const NOBODY = new Set<Server>();

const NO_EDITS: readonly HeaderEdit[] = [];

/** When what happened to it, in the reactor's time; -1 for what has not. */
export type ExchangeMoments = { placedMs: number; connectedMs: number; respondedMs: number };

export class Exchange implements ConnectionUser, Connector, RelayOwner {
  readonly backend: Backend;
  readonly moments: ExchangeMoments = { placedMs: -1, connectedMs: -1, respondedMs: -1 };
  /** The last server that was tried. */
  server: Server | null = null;
  retries = 0;
  memberIndex = -1;
  redispatched = false;
  bytesOut = 0;
  /** Values of the fields of the answer that the log wants. */
  loggedFields: readonly (string | null)[] = [];
  readonly #client: HttpClient;
  readonly #head: RequestHead;
  readonly #decision: Decision;
  readonly #id: string;
  readonly #requestBody: Body;
  readonly #upgrades: boolean;
  #tried: Set<Server> = NOBODY;
  #place: Place | null = null;
  #connection: ServerConnection | null = null;
  #connecting: Connecting | null = null;
  #leaveQueue: (() => void) | null = null;
  /** A kept connection turned out to be closed: the next attempt gets a new one. */
  #wasStale = false;
  /** Part of the request has left: from here on only what is idempotent may be tried again. */
  #sent = false;
  #bodyStarted = false;
  /** `unread` of the server's stream when its time began; 0 when the request had left. */
  #unsent = 0;
  #response: ResponseHead | null = null;
  #responseBody: Body | null = null;
  #responseInput: Buffer = EMPTY;
  #encoding: Encoding | null = null;
  #compressor: Compressor | null = null;
  #status = 0;
  #answered = false;
  #over = false;
  #tunnel: Relay | null = null;

  constructor(client: HttpClient, backend: Backend, head: RequestHead, decision: Decision, id: string) {
    this.#client = client;
    this.backend = backend;
    this.#head = head;
    this.#decision = decision;
    this.#id = id;
    this.#requestBody = new Body(head.framing, head.contentLength);
    this.#upgrades = head.upgrade === 'websocket';
  }

  start(): void {
    const leave = this.backend.acquire(
      this.#client.facts,
      this.#tried,
      (place) => this.#got(place),
      (refusal) => this.#refused(refusal),
    );
    if (leave) this.#leaveQueue = leave;
  }

  get hasWholeRequest(): boolean {
    return this.#requestBody.done;
  }

  /** The server doesn't take what the client sends. */
  get isHeldByServer(): boolean {
    return !this.#requestBody.done && this.#connection !== null && this.#connection.stream.pending > 0;
  }

  /** How much of `input` is body and has been passed on. */
  takeBody(input: Buffer): number {
    if (this.#over || this.#requestBody.done || !this.#connection || input.length === 0) return 0;
    const taken = this.#requestBody.take(input);
    if (this.#requestBody.broken) {
      // The server has seen part of it and will see it end in the middle; the client is told as long as it can be.
      if (this.#answered) this.#cutOff('PD');
      else this.#fail(400, 'PH');
      return 0;
    }
    if (taken === 0) return 0;
    this.#bodyStarted = true;
    const isTaken = this.#connection.stream.write(taken === input.length ? input : input.subarray(0, taken));
    this.#countIn(taken);
    this.#awaitBodyOrServer(isTaken);
    return taken;
  }

  /** It is the server's turn when it has the whole request, or doesn't take more of it. */
  #awaitBodyOrServer(isTaken: boolean): void {
    if (this.#requestBody.done || !isTaken) {
      this.#client.timer.clear();
      this.#awaitServer();
    } else {
      this.#connection?.timer.clear();
      this.#client.timer.set(this.#client.frontend.model.timeouts.client);
    }
  }

  clientDrained(): void {
    this.#compressor?.resume();
    this.#connection?.stream.resume();
    if (!this.#requestBody.done) return;
    this.#client.timer.clear();
    this.#awaitServer();
  }

  clientTimedOut(): void {
    if (!this.#answered && !this.#requestBody.done) {
      this.#fail(408, 'cH');
      return;
    }
    this.#log(this.#status, 'cD');
    this.#end(false);
    this.#client.reset();
  }

  /** The connection to the client is gone. */
  clientGone(_error: string | null): void {
    if (this.#over) return;
    this.#client.engine.counters.add(this.#client.frontend.model.slot, COUNTER.clientAborts);
    if (this.server) this.#client.engine.counters.add(this.server.model.slot, COUNTER.clientAborts);
    if (this.#leaveQueue) this.#leftQueue();
    this.#log(this.#status, this.#leaveQueue ? 'CQ' : this.#connection ? this.#abortedIn() : 'CC');
    this.#end(false);
  }

  /** As HAProxy has it, an upload is data too. */
  #abortedIn(): Termination {
    return this.#answered || !this.#requestBody.done ? 'CD' : 'CH';
  }

  /** For the log: it waited till now. */
  #leftQueue(): void {
    if (this.moments.placedMs < 0) this.moments.placedMs = this.#client.engine.reactor.nowMs;
  }

  /** The session is ended by us, together with the client's connection. */
  abandon(): void {
    if (this.#over) return;
    this.#log(this.#status, 'KD');
    this.#end(false);
  }

  onData(bytes: Buffer): void {
    if (this.#responseBody) {
      this.#takeResponseBody(bytes);
      return;
    }
    const isLent = this.#responseInput.length === 0;
    this.#responseInput = isLent ? bytes : Buffer.concat([this.#responseInput, bytes]);
    while (!this.#over && !this.#responseBody) {
      const head = parseResponse(this.#responseInput, this.#head.method);
      if (head === 'more') {
        if (isLent) this.#responseInput = Buffer.from(this.#responseInput);
        return;
      }
      if (typeof head === 'number') {
        this.#serverFailed('invalid');
        this.#fail(head, 'PH');
        return;
      }
      this.#responseInput = this.#responseInput.subarray(head.length);
      if (head.status === 101) {
        this.#switchProtocols(head);
        return;
      }
      if (head.status < 200) this.#passInterim(head);
      else this.#startResponse(head);
    }
  }

  onDrain(): void {
    if (!this.#requestBody.done) this.#awaitBodyOrServer(true);
    this.#client.moreBody();
  }

  onEnd(): void {
    if (this.#responseBody?.framing !== 'untilClose') this.onClosed(null);
    else if (this.#compressor) this.#endCompressed(true);
    else this.#complete(false);
  }

  /** The server takes no more of the request; what it has answered before can still be read. */
  onHangUp(): void {}

  onTimeout(): void {
    const stream = this.#connection?.stream;
    // One that takes some of the request is slow, not silent.
    if (stream && stream.pending > 0 && stream.unread !== this.#unsent) {
      this.#awaitServer();
      return;
    }
    this.#serverFailed('timeout');
    if (this.#answered) this.#cutOff('sD');
    else this.#fail(504, 'sH');
  }

  onClosed(_error: string | null): void {
    if (this.#over) return;
    const { counters } = this.#client.engine;
    if (this.#answered) {
      // What has been passed on isn't the whole answer: only a reset says so in every framing.
      if (this.server) counters.add(this.server.model.slot, COUNTER.serverAborts);
      this.#serverFailed('reset');
      this.#cutOff('SD');
      return;
    }
    const wasStale = this.#connection?.reused === true && this.#responseInput.length === 0;
    if (!wasStale) this.#serverFailed('reset');
    if (this.#mayRetry(wasStale)) this.#retry(wasStale);
    // A client that had an answer over this connection before asks again by itself when it is closed without a word, as it
    // would have to with the server itself (RFC 9112 section 9.3.1).
    else if (wasStale) this.#leaveUnanswered();
    else this.#fail(502, 'SH');
  }

  onConnected(connection: ServerConnection): void {
    const { engine } = this.#client;
    this.#connecting = null;
    const { slot } = this.#place!.server.model;
    engine.counters.add(slot, COUNTER.connects);
    engine.histograms.observe(slot, LATENCY.connect, (engine.reactor.nowMs - this.moments.placedMs) * 1000);
    this.#use(connection);
  }

  onConnectFailed(failure: ConnectFailure): void {
    this.#connecting = null;
    this.#client.engine.counters.add(this.#place!.server.model.slot, COUNTER.connectFailures);
    if (!isOwnShortage(failure))
      this.#client.engine.observer.failed(this.#place!.server.model.slot, 'connect', failure.code);
    const isTimeout = failure.code === 'ETIMEDOUT';
    if (this.retries < this.backend.model.retries) this.#retry(false);
    else this.#fail(isTimeout ? 504 : 502, isTimeout ? 'sC' : 'SC');
  }

  /** The server was marked down and its sessions are to end. */
  shutdown(): void {
    if (this.#tunnel) this.#tunnel.destroy();
    else if (this.#answered) this.#cutOff('DD');
    else if (this.#mayRetry(false)) this.#retry(false);
    else this.#fail(502, 'DH');
  }

  relayed(direction: 'in' | 'out', count: number): void {
    if (direction === 'in') {
      this.#client.bytesIn += count;
      this.#client.engine.counters.add(this.#client.frontend.model.slot, COUNTER.bytesIn, count);
      this.#countIn(count);
    } else this.#countOut(count);
  }

  relayEnded(by: 'client' | 'server' | 'timeout' | null): void {
    const place = this.#place!;
    this.#log(101, by === null ? '--' : by === 'client' ? 'CD' : by === 'server' ? 'SD' : 'sD');
    this.#place = null;
    this.#connection?.destroy();
    this.#connection = null;
    place.server.sessions.delete(this);
    place.release();
    this.#client.tunnelEnded();
  }

  #got(place: Place): void {
    const { engine } = this.#client;
    this.#leaveQueue = null;
    this.#place = place;
    const { server } = place;
    if (this.server && this.server !== server && !this.redispatched) {
      this.redispatched = true;
      engine.counters.add(this.server.model.slot, COUNTER.redispatches);
    }
    this.server = server;
    if (this.moments.placedMs < 0) this.#placed(server);
    server.sessions.add(this);
    const idle = this.#mayReuse() ? server.idle.take() : null;
    if (idle) {
      engine.counters.add(server.model.slot, COUNTER.reuses);
      this.#use(idle);
      return;
    }
    const connecting = new Connecting(
      engine.reactor,
      engine.routeOf(server),
      this.backend.model.timeouts.connect,
      this,
      this.#client.stream,
    );
    this.#connecting = connecting;
    connecting.start();
  }

  #placed(server: Server): void {
    const { engine, moments } = this.#client;
    this.moments.placedMs = engine.reactor.nowMs;
    const queueUs = (this.moments.placedMs - moments.headMs) * 1000;
    engine.histograms.observe(server.model.slot, LATENCY.queue, queueUs);
    engine.histograms.observe(this.backend.model.slot, LATENCY.queue, queueUs);
  }

  /**
   * HAProxy's `http-reuse safe`: over a connection that the server might be closing at this moment goes what may be sent
   * twice, and what the client itself would ask again, having got an answer over its connection before.
   */
  #mayReuse(): boolean {
    if (this.#place!.server.model.sendProxy !== null) return false;
    return !this.#upgrades && !this.#wasStale && (this.#isRepeatable() || this.#client.requests > 1);
  }

  #use(connection: ServerConnection): void {
    const { engine, facts, frontend } = this.#client;
    this.#connection = connection;
    this.moments.connectedMs = engine.reactor.nowMs;
    connection.use(this);
    const { slot, defaultHost } = this.#place!.server.model;
    const { requestEdits, target } = this.#decision;
    const { forwardedFor } = frontend.model;
    const length = writeRequestHead(OUTPUT, 0, this.#head, {
      target,
      defaultHost,
      upgrade: this.#upgrades,
      forwardedFor: forwardedFor === 'none' ? null : facts.source,
      replaceForwardedFor: forwardedFor === 'replace',
      forwardedProto: facts.scheme,
      edits: requestEdits,
      extra: '',
    });
    if (length < 0) {
      this.#fail(431, 'PR');
      return;
    }
    this.#sent = true;
    connection.stream.write(OUTPUT.subarray(0, length));
    this.#countIn(length);
    engine.counters.add(slot, COUNTER.requests);
    if (this.#requestBody.done) this.#awaitServer();
    else {
      this.#client.timer.set(frontend.model.timeouts.client);
      this.#client.moreBody();
    }
  }

  #awaitServer(): void {
    if (!this.#connection) return;
    const { stream } = this.#connection;
    this.#unsent = stream.pending > 0 ? stream.unread : 0;
    this.#connection.timer.set(this.backend.model.timeouts.server);
  }

  /** The server has said something, and has more to say: its time begins anew, unless it is somebody else's turn. */
  #awaitMore(): void {
    if (this.#requestBody.done && this.#client.stream.pending === 0) this.#awaitServer();
  }

  /** Sending it twice does no harm, and it can be sent twice: no body has been read that would have to be kept. */
  #isRepeatable(): boolean {
    return IDEMPOTENT.has(this.#head.method) && this.#head.framing === 'none';
  }

  #mayRetry(wasStale: boolean): boolean {
    if (!wasStale && this.retries >= this.backend.model.retries) return false;
    return !this.#sent || (this.#isRepeatable() && !this.#bodyStarted);
  }

  #retry(wasStale: boolean): void {
    const { server } = this.#place!;
    // A kept connection that was closed under us says nothing about the server, and was no attempt at it.
    if (wasStale) this.#wasStale = true;
    else {
      this.retries++;
      if (this.#tried === NOBODY) this.#tried = new Set();
      this.#tried.add(server);
    }
    this.#client.engine.counters.add(server.model.slot, COUNTER.retries);
    this.#leaveServer(false);
    this.#responseInput = EMPTY;
    this.#sent = false;
    this.start();
  }

  /** RFC 9110 section 15.2: interim answers are passed on, but not to HTTP/1.0, which has none. */
  #passInterim(head: ResponseHead): void {
    if (this.#head.minor === 0) return;
    const length = writeResponseHead(OUTPUT, 0, head, {
      extra: '',
      dropTransferEncoding: false,
      dropContentLength: false,
      edits: NO_EDITS,
    });
    if (length > 0) this.#toClient(OUTPUT.subarray(0, length));
    this.#awaitMore();
  }

  #startResponse(head: ResponseHead): void {
    const { engine, frontend } = this.#client;
    const { server } = this.#place!;
    this.#response = head;
    this.#status = head.status;
    this.#responseBody = new Body(head.framing, head.contentLength);
    this.#answered = true;
    this.moments.respondedMs = engine.reactor.nowMs;
    const responseUs = (this.moments.respondedMs - this.moments.connectedMs) * 1000;
    engine.histograms.observe(server.model.slot, LATENCY.response, responseUs);
    engine.histograms.observe(this.backend.model.slot, LATENCY.response, responseUs);
    this.#client.count(server.model.slot, head.status);
    this.#client.count(this.backend.model.slot, head.status);
    this.#client.count(frontend.model.slot, head.status);
    // One that has an error status counts as failed now, and one that is cut off when it is; one that is whole, at its end.
    if (isFailureStatus(head.status)) engine.observer.answered(server.model.slot, head.status);
    const { log } = frontend.model;
    if (log && log.responseHeaders.length > 0)
      this.loggedFields = log.responseHeaders.map((name) => headerOf(head.fields, name));
    const choice = this.#chooseEncoding(head);
    this.#encoding = choice === 'identity' ? null : choice;
    const length = writeResponseHead(OUTPUT, 0, head, {
      extra: this.#ownFields(),
      dropTransferEncoding: this.#dechunks() || this.#encoding !== null,
      dropContentLength: this.#encoding !== null,
      edits: this.#encodingEdits(head, choice),
    });
    if (length < 0) {
      this.#answered = false;
      this.#fail(502, 'PH');
      return;
    }
    const rest = this.#responseInput;
    this.#responseInput = EMPTY;
    if (this.#encoding !== null) this.#compressor = this.#newCompressor(this.#encoding);
    else if (choice === 'identity')
      engine.counters.add(frontend.model.slot, COUNTER.compressionBypassed, Math.max(0, head.contentLength));
    const isPlain = this.#compressor === null && !this.#dechunks();
    if (!isPlain || this.#responseBody.done || rest.length === 0 || rest.length > MAX_JOINED_BYTES) {
      this.#toClient(OUTPUT.subarray(0, length));
      if (this.#responseBody.done) this.#complete(rest.length > 0);
      else if (rest.length > 0) this.#takeResponseBody(rest);
      else this.#awaitMore();
      return;
    }
    const taken = this.#responseBody.take(rest);
    if (this.#responseBody.broken) {
      this.#answered = false;
      this.#serverFailed('invalid');
      this.#fail(502, 'PH');
      return;
    }
    rest.copy(OUTPUT, length, 0, taken);
    this.#toClient(OUTPUT.subarray(0, length + taken));
    if (this.#responseBody.done) this.#complete(taken < rest.length);
    else this.#awaitMore();
  }

  /** Fields that belong to this connection, or that we add to every answer. */
  #ownFields(): string {
    const cookie = this.#place!.stickyFields;
    const connection = this.#keepsClient()
      ? this.#head.minor === 0
        ? 'Connection: keep-alive\r\n'
        : ''
      : 'Connection: close\r\n';
    const chunked = this.#encoding !== null ? 'Transfer-Encoding: chunked\r\n' : '';
    return cookie === '' && chunked === '' ? connection : `${cookie}${chunked}${connection}`;
  }

  /** What compression changes of the head; RFC 9110 section 12.5.5 for Vary, also where this client gets none. */
  #encodingEdits(head: ResponseHead, choice: Encoding | 'identity' | null): readonly HeaderEdit[] {
    const edits = this.#decision.responseEdits;
    if (choice === null) return edits;
    const added: HeaderEdit[] = [];
    if (lacksVary(headerOf(head.fields, 'vary'))) added.push({ kind: 'add', name: 'Vary', value: 'Accept-Encoding' });
    if (choice !== 'identity') {
      added.push({ kind: 'set', name: 'Content-Encoding', value: choice });
      const etag = headerOf(head.fields, 'etag');
      if (etag !== null) added.push({ kind: 'set', name: 'ETag', value: weakened(etag) });
    }
    return [...edits, ...added];
  }

  #chooseEncoding(head: ResponseHead): Encoding | 'identity' | null {
    const { compression } = this.#client.frontend.model;
    if (!compression) return null;
    const { fields } = head;
    return chooseEncoding(compression, headerOf(this.#head.fields, 'accept-encoding'), {
      status: head.status,
      isHead: this.#head.method === 'HEAD',
      isModern: this.#head.minor === 1 && head.minor === 1,
      contentType: headerOf(fields, 'content-type'),
      contentLength: head.contentLength === -1 ? null : head.contentLength,
      contentEncoding: headerOf(fields, 'content-encoding'),
      cacheControl: headerOf(fields, 'cache-control'),
      etag: headerOf(fields, 'etag'),
    });
  }

  #newCompressor(encoding: Encoding): Compressor {
    const { engine, frontend } = this.#client;
    engine.reactor.wakeNode();
    engine.counters.add(frontend.model.slot, COUNTER.compressedResponses);
    return new Compressor(
      encoding,
      frontend.model.compression!,
      {
        onOutput: (bytes) => {
          engine.counters.add(frontend.model.slot, COUNTER.compressionOut, bytes.length);
          this.#toClient(Buffer.from(`${bytes.length.toString(16)}\r\n`));
          this.#toClient(bytes);
          this.#toClient(CRLF);
        },
        onDrain: () => this.#connection?.stream.resume(),
        onEnd: () => {
          if (this.#over) return;
          this.#toClient(LAST_CHUNK);
          this.#complete(this.#hasExtra);
        },
        onFailed: () => {
          engine.counters.add(this.backend.model.slot, COUNTER.internalErrors);
          this.#cutOff('RD');
        },
      },
      engine.reactor,
    );
  }

  /** The server has sent more than its answer. */
  #hasExtra = false;

  /** HTTP/1.0 clients get no chunks; the end of the connection ends the body instead. */
  #dechunks(): boolean {
    return this.#response!.chunked && this.#head.minor === 0;
  }

  #keepsClient(): boolean {
    if (!this.#head.keepAlive || this.#client.closesAfterThis) return false;
    if (this.#encoding !== null) return true;
    return this.#response!.framing !== 'untilClose' && !this.#dechunks();
  }

  #takeResponseBody(bytes: Buffer): void {
    const body = this.#responseBody!;
    let taken: number;
    if (this.#compressor) taken = this.#compress(bytes, body);
    else if (this.#dechunks()) {
      taken = body.take(bytes, (start, end) => this.#toClient(bytes.subarray(start, end)));
    } else {
      taken = body.take(bytes);
      if (taken > 0 && !body.broken) this.#toClient(taken === bytes.length ? bytes : bytes.subarray(0, taken));
    }
    if (this.#over) return;
    if (body.broken) {
      this.#serverFailed('invalid');
      this.#cutOff('PD');
      return;
    }
    if (!body.done) {
      this.#awaitMore();
      return;
    }
    if (this.#compressor) this.#endCompressed(taken < bytes.length);
    else this.#complete(taken < bytes.length);
  }

  /** The server is done; what is in the compressor still has to come. */
  #endCompressed(hasExtra: boolean): void {
    this.#hasExtra = hasExtra;
    this.#connection?.timer.clear();
    this.#client.engine.reactor.wakeNode();
    this.#compressor!.end();
  }

  #compress(bytes: Buffer, body: Body): number {
    const { engine, frontend } = this.#client;
    engine.reactor.wakeNode();
    return body.take(bytes, (start, end) => {
      engine.counters.add(frontend.model.slot, COUNTER.compressionIn, end - start);
      if (!this.#compressor!.write(bytes.subarray(start, end))) this.#connection?.stream.pause();
    });
  }

  #toClient(bytes: Buffer): void {
    this.#countOut(bytes.length);
    if (this.#client.stream.write(bytes)) return;
    // It is the client's turn: a server that we hold back is not to be blamed for its silence.
    this.#compressor?.pause();
    this.#connection?.stream.pause();
    this.#connection?.timer.clear();
    this.#client.awaitReader();
  }

  /** `extra`: the server sent more than its answer, so its connection can't be trusted with another request. */
  #complete(extra: boolean): void {
    // An answer that is complete before the request is: the rest of the request is not worth waiting for.
    const early = !this.#requestBody.done;
    const keepsServer = this.#response!.keepAlive && !extra && !early;
    const keepAlive = this.#keepsClient() && !early;
    this.#observeTotal();
    if (!isFailureStatus(this.#status)) this.#client.engine.observer.passed(this.#place!.server.model.slot);
    this.#log(this.#status, '--');
    this.#end(keepsServer);
    this.#client.finished(keepAlive);
  }

  #observeTotal(): void {
    const { engine, moments, frontend } = this.#client;
    const us = (engine.reactor.nowMs - moments.beganMs) * 1000;
    engine.histograms.observe(frontend.model.slot, LATENCY.total, us);
    engine.histograms.observe(this.backend.model.slot, LATENCY.total, us);
    engine.histograms.observe(this.#place!.server.model.slot, LATENCY.total, us);
  }

  #switchProtocols(head: ResponseHead): void {
    const { engine, frontend, stream } = this.#client;
    const connection = this.#connection!;
    if (!this.#upgrades) {
      // RFC 9110 section 15.2.2: 101 answers an Upgrade; nobody asked for one.
      this.#serverFailed('invalid');
      this.#fail(502, 'PH');
      return;
    }
    const rest = this.#responseInput;
    this.#over = true;
    this.moments.respondedMs = engine.reactor.nowMs;
    this.#client.count(this.#place!.server.model.slot, 101);
    this.#client.count(this.backend.model.slot, 101);
    this.#client.count(frontend.model.slot, 101);
    engine.observer.passed(this.#place!.server.model.slot);
    const early = this.#client.detach();
    connection.timer.drop();
    const length = writeResponseHead(OUTPUT, 0, head, {
      extra: `Connection: Upgrade\r\nUpgrade: ${this.#head.upgrade}\r\n`,
      dropTransferEncoding: false,
      dropContentLength: false,
      edits: this.#decision.responseEdits,
    });
    this.#countOut(Math.max(0, length) + rest.length);
    stream.write(OUTPUT.subarray(0, Math.max(0, length)));
    if (rest.length > 0) stream.write(rest);
    if (early.length > 0) connection.stream.write(early);
    connection.user = null;
    this.#tunnel = new Relay(
      engine.reactor.timers,
      stream,
      connection.stream,
      this.backend.model.timeouts.tunnel,
      this,
    );
    this.#client.tunnelBegan(this.#tunnel);
  }

  #refused(refusal: Refusal): void {
    this.#leaveQueue = null;
    if (refusal === 'queueTimeout') this.#leftQueue();
    this.#fail(503, refusal === 'queueTimeout' ? 'sQ' : refusal === 'queueFull' ? 'SQ' : 'SC');
  }

  /** No answer has begun: the client gets a page of ours. */
  #fail(status: number, termination: Termination): void {
    if (this.#over) return;
    const { frontend } = this.#client;
    this.#client.count(frontend.model.slot, status);
    this.#client.count(this.backend.model.slot, status);
    const form = { id: this.#id, close: true, isHead: this.#head.method === 'HEAD' };
    const page = refusalOf(status, form, frontend.model.errorPages, this.backend.model.errorPages);
    this.bytesOut += page.length;
    this.#log(status, termination);
    this.#end(false);
    this.#client.answerWith(page);
  }

  #leaveUnanswered(): void {
    this.#log(0, 'SH');
    this.#end(false);
    this.#client.answerWith(EMPTY);
  }

  /** Part of an answer has been passed on and the rest will not come. */
  #cutOff(termination: Termination): void {
    if (this.#over) return;
    this.#log(this.#status, termination);
    this.#end(false);
    this.#client.reset();
  }

  #end(keepsServer: boolean): void {
    if (this.#over) return;
    this.#over = true;
    this.#compressor?.destroy();
    this.#compressor = null;
    this.#leaveServer(keepsServer);
  }

  #leaveServer(keep: boolean): void {
    const place = this.#place;
    const connection = this.#connection;
    this.#place = null;
    this.#connection = null;
    this.#leaveQueue?.();
    this.#leaveQueue = null;
    this.#connecting?.giveUp();
    this.#connecting = null;
    if (connection) {
      // A connection that began with a PROXY header is that client's alone.
      const isShared = place?.server.isUsable === true && place.server.model.sendProxy === null;
      if (keep && isShared) place.server.idle.put(connection);
      else connection.destroy();
    }
    if (place) {
      place.server.sessions.delete(this);
      place.release();
    }
  }

  #serverFailed(kind: FailureKind): void {
    if (!this.#place) return;
    const { engine } = this.#client;
    engine.counters.add(this.#place.server.model.slot, COUNTER.responseFailures);
    engine.observer.failed(this.#place.server.model.slot, kind, '');
  }

  #countIn(count: number): void {
    const { counters } = this.#client.engine;
    if (this.#place) counters.add(this.#place.server.model.slot, COUNTER.bytesIn, count);
    counters.add(this.backend.model.slot, COUNTER.bytesIn, count);
  }

  #countOut(count: number): void {
    const { counters } = this.#client.engine;
    this.bytesOut += count;
    if (this.#place) counters.add(this.#place.server.model.slot, COUNTER.bytesOut, count);
    counters.add(this.backend.model.slot, COUNTER.bytesOut, count);
    counters.add(this.#client.frontend.model.slot, COUNTER.bytesOut, count);
  }

  #log(status: number, termination: Termination): void {
    if (!this.#client.frontend.model.log) return;
    logRequest(this.#client, {
      head: this.#head,
      status,
      bytesOut: this.bytesOut,
      id: this.#id,
      termination,
      exchange: this,
    });
  }
}

const CRLF = Buffer.from('\r\n');
const LAST_CHUNK = Buffer.from('0\r\n\r\n');
