/**
 * Mode `http`: requests of one client connection, in order, each to the server that the backend chooses. Bodies flow
 * as they come, with back-pressure; heads are read and written by head.ts.
 *
 * What may be tried again: a request whose connection failed (nothing was sent), and an idempotent request without a
 * body whose connection died before the first byte of an answer (RFC 9110 section 9.2.2).
 */
import { formatEndpoint } from '../config/units.ts';
import type { Backend, Place, Refusal, Server } from './backend.ts';
import type { ClientSession, ClientSocket, Engine, Frontend } from './engine.ts';
import { reset, route } from './engine.ts';
import { errorPage } from './errorPages.ts';
import { Body } from './framing.ts';
import { MAX_HEAD_BYTES, parseRequest, parseResponse, requestHeadFor, responseHeadFor } from './head.ts';
import type { RequestHead, ResponseHead } from './head.ts';
import { relay } from './relay.ts';
import { openConnection } from './serverConnections.ts';
import type { ConnectionUser, ServerConnection } from './serverConnections.ts';

const IDEMPOTENT = new Set(['GET', 'HEAD', 'PUT', 'DELETE', 'OPTIONS', 'TRACE']);
/** Input kept from a client whose request can't be passed on yet; then it is paused. */
const MAX_PENDING_BYTES = 64 * 1024;
const EMPTY = Buffer.alloc(0);
/** A client that has connected just before its listener is drained gets this long for its request. */
const FIRST_REQUEST_MS = 1_000;

const statusCounter = (status: number) =>
  `status${Math.min(5, Math.max(1, Math.floor(status / 100)))}xx` as 'status2xx';

export const serveHttp = (
  engine: Engine,
  frontend: () => Frontend,
  client: ClientSocket,
  onClosed: () => void,
): ClientSession => new HttpClient(engine, frontend, client, onClosed);

class HttpClient implements ClientSession {
  readonly engine: Engine;
  readonly socket: ClientSocket;
  readonly address: string;
  readonly scheme: 'http' | 'https';
  /** The frontend as it is configured now: each request is judged by the rules of its own time. */
  readonly #frontend: () => Frontend;
  #onClosed: () => void;
  #input: Buffer = EMPTY;
  #exchange: Exchange | null = null;
  #headTimer: NodeJS.Timeout | null = null;
  #paused = false;
  #draining = false;
  #hasAnswered = false;
  #ended = false;
  #closing = false;
  /** An upgraded connection: what goes over it is not ours any more. */
  #detached = false;
  #closingTimer: NodeJS.Timeout | null = null;

  constructor(engine: Engine, frontend: () => Frontend, socket: ClientSocket, onClosed: () => void) {
    this.engine = engine;
    this.#frontend = frontend;
    this.socket = socket;
    this.address = (socket.remoteAddress ?? '').replace(/^::ffff:/, '');
    this.scheme = socket.encrypted === true ? 'https' : 'http';
    this.#onClosed = onClosed;
    socket.setNoDelay(true);
    socket.setTimeout(frontend().model.timeouts.httpRequest);
    socket.on('data', this.#onData);
    socket.on('drain', this.#onDrain);
    socket.on('end', this.#onEnd);
    socket.on('timeout', this.#onTimeout);
    socket.on('error', () => socket.destroy());
    socket.once('close', () => {
      this.#stopHeadTimer();
      if (this.#closingTimer) clearTimeout(this.#closingTimer);
      this.#exchange?.abandon();
      this.#exchange = null;
      this.#onClosed();
    });
  }

  get frontend(): Frontend {
    return this.#frontend();
  }

  /** Answers to come say `Connection: close`. */
  get closesAfterThis(): boolean {
    return this.#draining || (this.#ended && this.#input.length === 0);
  }

  drain(): void {
    this.#draining = true;
    if (this.#exchange || this.#input.length > 0 || this.#detached || this.#closing) return;
    // A client that has just connected is about to ask, and may not try again; one whose connection was kept does.
    if (!this.#hasAnswered) this.socket.setTimeout(FIRST_REQUEST_MS);
    // A request that crosses our end of the connection must not be carried out, as its answer could not be sent.
    else this.answerWith(EMPTY);
  }

  destroy(): void {
    this.socket.destroy();
  }

  /** Answers with one of our own pages, then closes: what else the client sent is not looked at. */
  refuse(status: number): void {
    const { counters } = this.engine;
    const { slot } = this.frontend.model;
    counters.add(slot, 'requests');
    this.count(slot, status);
    this.answerWith(errorPage(status));
  }

  /** Says this last thing, if anything, and closes. */
  answerWith(last: Buffer): void {
    this.#stopHeadTimer();
    this.#exchange = null;
    this.#closing = true;
    this.#input = EMPTY;
    // As long as it reads at all it gets the whole answer.
    this.socket.setTimeout(this.frontend.model.timeouts.client);
    this.socket.end(last, () => {
      // Closing with unread input would reset the connection and could cost the client the answer: what it still sends
      // is read away, but not for ever.
      this.#closingTimer = setTimeout(() => this.socket.destroy(), CLOSING_TIMEOUT_MS);
    });
    this.socket.resume();
  }

  count(slot: number, status: number): void {
    this.engine.counters.add(slot, statusCounter(status));
  }

  /** The exchange has sent its answer and read its request to the end. */
  finished(keepAlive: boolean): void {
    this.#exchange = null;
    this.#hasAnswered = true;
    if (!keepAlive || this.#draining) {
      this.answerWith(EMPTY);
      return;
    }
    this.#nextOne();
  }

  /** Waits for the next request, but not before this client has read what it got: its answers must not pile up here. */
  #nextOne(): void {
    const { client, keepAlive: idle } = this.frontend.model.timeouts;
    if (this.socket.writableNeedDrain) {
      this.socket.setTimeout(client);
      return;
    }
    this.socket.setTimeout(idle);
    this.#process();
  }

  /** Hands the connection over; gives back what was read ahead. */
  detach(): Buffer {
    const rest = this.#input;
    this.#input = EMPTY;
    this.#exchange = null;
    this.#detached = true;
    this.#stopHeadTimer();
    this.socket
      .off('data', this.#onData)
      .off('drain', this.#onDrain)
      .off('end', this.#onEnd)
      .off('timeout', this.#onTimeout);
    return rest;
  }

  /** The exchange can take more of the request body. */
  moreBody(): void {
    this.#process();
  }

  #onData = (chunk: Buffer): void => {
    if (this.#closing) return;
    this.engine.counters.add(this.frontend.model.slot, 'bytesIn', chunk.length);
    this.#input = this.#input.length === 0 ? chunk : Buffer.concat([this.#input, chunk]);
    this.#process();
    if (this.#input.length > MAX_PENDING_BYTES && !this.#paused) {
      this.#paused = true;
      this.socket.pause();
    }
  };

  #onDrain = (): void => {
    if (this.#exchange) this.#exchange.clientDrained();
    else if (!this.#closing) this.#nextOne();
  };

  /** The client has said all that it will; it still gets its answers. */
  #onEnd = (): void => {
    this.#ended = true;
    if (!this.#closing) this.#process();
  };

  #onTimeout = (): void => {
    // With part of an answer unsent, only a reset tells the client that it is not whole.
    if (this.#closing) reset(this.socket);
    else if (this.#exchange) this.#exchange.clientTimedOut();
    // An idle connection is closed without a word, and so is one that doesn't read; one with half a head is told.
    else if (this.#input.length > 0 && !this.socket.writableNeedDrain) this.refuse(408);
    else this.socket.destroy();
  };

  #process(): void {
    while (!this.#closing) {
      if (this.#exchange) {
        const taken = this.#exchange.takeBody(this.#input);
        this.#input = this.#input.subarray(taken);
        if (taken === 0 || this.#exchange) break;
        continue;
      }
      if (this.socket.writableNeedDrain) break;
      if (this.#input.length === 0 || !this.#nextRequest()) break;
    }
    if (this.#ended && this.#input.length === 0 && !this.#closing) {
      // The client has half-closed: it still gets its answers, but a request that is not complete never will be.
      if (!this.#exchange) this.answerWith(EMPTY);
      else if (!this.#exchange.hasWholeRequest) this.destroy();
    }
    if (this.#paused && this.#input.length <= MAX_PENDING_BYTES) {
      this.#paused = false;
      this.socket.resume();
    }
  }

  /** Starts the exchange for the head at the start of the input; false when there is none yet, or none to come. */
  #nextRequest(): boolean {
    const head = parseRequest(this.#input);
    if (head === 'more') {
      // Empty lines between requests are no beginning of one.
      while (this.#input[0] === 13 && this.#input[1] === 10) this.#input = this.#input.subarray(2);
      if (this.#input.length === 0) return false;
      if (this.#input.length > MAX_HEAD_BYTES) this.refuse(431);
      else if (this.#ended) this.refuse(400);
      else this.#startHeadTimer();
      return false;
    }
    this.#stopHeadTimer();
    if (typeof head === 'number') {
      this.refuse(head);
      return false;
    }
    this.#input = this.#input.subarray(head.length);
    this.socket.setTimeout(0);
    const { model } = this.frontend;
    this.engine.counters.add(model.slot, 'requests');
    const backend = this.engine.backend(route(this.frontend, head.host, head.path));
    if (!backend) {
      this.count(model.slot, 503);
      this.answerWith(errorPage(503));
      return false;
    }
    this.#exchange = new Exchange(this, backend, head);
    this.#exchange.start();
    return true;
  }

  #startHeadTimer(): void {
    // A limit on the whole head, not on the silence between its bytes: slow heads are how connections are held up.
    this.#headTimer ??= setTimeout(() => this.refuse(408), this.frontend.model.timeouts.httpRequest);
  }

  #stopHeadTimer(): void {
    if (this.#headTimer) clearTimeout(this.#headTimer);
    this.#headTimer = null;
  }
}

/** How long a client may take to read a last answer and close. */
const CLOSING_TIMEOUT_MS = 2_000;

const REFUSAL_STATUS: Record<Refusal, number> = { exhausted: 503, queueFull: 503, queueTimeout: 503 };

/** One request and its answer. */
class Exchange implements ConnectionUser {
  readonly #client: HttpClient;
  readonly #backend: Backend;
  readonly #head: RequestHead;
  readonly #requestBody: Body;
  readonly #tried = new Set<Server>();
  readonly #upgrades: boolean;
  #attempts = 0;
  /** A kept connection turned out to be closed: the next attempt gets a new one. */
  #wasStale = false;
  #place: Place | null = null;
  #connection: ServerConnection | null = null;
  #giveUp: () => void = () => {};
  /** Part of the request has left: from here on only what is idempotent may be tried again. */
  #sent = false;
  #bodyStarted = false;
  #response: ResponseHead | null = null;
  #responseBody: Body | null = null;
  #responseInput: Buffer = EMPTY;
  #answered = false;
  #over = false;
  /** The session as the server's registry knows it. */
  readonly #session = { shutdown: () => this.#shutdown() };

  constructor(client: HttpClient, backend: Backend, head: RequestHead) {
    this.#client = client;
    this.#backend = backend;
    this.#head = head;
    this.#requestBody = new Body(head.framing, head.contentLength);
    this.#upgrades = head.upgrade === 'websocket';
  }

  start(): void {
    const leave = this.#backend.acquire(
      this.#client.address,
      this.#tried,
      (place) => this.#got(place),
      (refusal) => this.#refuse(REFUSAL_STATUS[refusal]),
    );
    if (leave) this.#giveUp = leave;
  }

  /** How much of `input` is body and has been passed on. */
  takeBody(input: Buffer): number {
    const { socket } = this.#client;
    if (this.#over || this.#requestBody.done || !this.#connection || input.length === 0) return 0;
    const server = this.#connection.socket;
    if (server.writableNeedDrain) return 0;
    const taken = this.#requestBody.take(input);
    if (this.#requestBody.broken) {
      // The server has seen part of it and will see it end in the middle; the client is told.
      this.#fail(400);
      return 0;
    }
    if (taken === 0) return 0;
    this.#bodyStarted = true;
    server.write(input.subarray(0, taken));
    this.#countBytes('bytesIn', taken);
    if (this.#requestBody.done || server.writableNeedDrain) {
      // It is the server's turn now.
      socket.setTimeout(0);
      this.#awaitServer();
    } else {
      socket.setTimeout(this.#client.frontend.model.timeouts.client);
    }
    return taken;
  }

  clientDrained(): void {
    this.#connection?.socket.resume();
    if (!this.#requestBody.done) return;
    this.#client.socket.setTimeout(0);
    this.#awaitServer();
  }

  get hasWholeRequest(): boolean {
    return this.#requestBody.done;
  }

  clientTimedOut(): void {
    if (this.#answered || this.#requestBody.done) this.#client.destroy();
    else this.#fail(408);
  }

  /** The client is gone. */
  abandon(): void {
    this.#end(false);
  }

  onData(chunk: Buffer): void {
    if (this.#responseBody) {
      this.#takeResponseBody(chunk);
      return;
    }
    this.#responseInput = this.#responseInput.length === 0 ? chunk : Buffer.concat([this.#responseInput, chunk]);
    while (!this.#over && !this.#responseBody) {
      const head = parseResponse(this.#responseInput, this.#head.method);
      if (head === 'more') return;
      if (typeof head === 'number') {
        this.#countFailure();
        this.#fail(head);
        return;
      }
      this.#responseInput = this.#responseInput.subarray(head.length);
      if (head.status === 101) {
        this.#switchProtocols(head);
        return;
      }
      if (head.status < 200) {
        // RFC 9110 section 15.2: passed on, but not to HTTP/1.0, which has no interim answers.
        if (this.#head.minor === 1) this.#writeToClient(responseHeadFor(head, '', false));
        continue;
      }
      this.#startResponse(head);
    }
  }

  onDrain(): void {
    if (!this.#requestBody.done) {
      this.#connection?.socket.setTimeout(0);
      this.#client.socket.setTimeout(this.#client.frontend.model.timeouts.client);
    }
    this.#client.moreBody();
  }

  onEnd(): void {
    if (this.#responseBody?.framing === 'untilClose') {
      this.#complete(false);
      return;
    }
    this.onClosed(null);
  }

  onTimeout(): void {
    if (this.#answered) {
      this.#cutOff();
      return;
    }
    this.#countFailure();
    this.#fail(504);
  }

  onClosed(_error: Error | null): void {
    if (this.#over) return;
    if (this.#answered) {
      // What has been passed on isn't the whole answer: only a reset says so in every framing.
      this.#cutOff();
      return;
    }
    const wasStale = this.#connection?.reused === true;
    if (!wasStale) this.#countFailure();
    if (this.#mayRetry(wasStale)) this.#retry(wasStale);
    else this.#fail(502);
  }

  #got(place: Place): void {
    this.#place = place;
    const { server } = place;
    server.sessions.add(this.#session);
    // Only what may be sent twice goes over a connection that the server might be closing at this moment.
    const mayReuse = this.#isRepeatable() && !this.#upgrades && !this.#wasStale;
    const idle = mayReuse ? server.idle.take() : null;
    if (idle) {
      this.#use(idle);
      return;
    }
    this.#giveUp = openConnection(
      server.model.address,
      this.#backend.model.timeouts.connect,
      (connection) => this.#use(connection),
      (failure) => {
        this.#client.engine.counters.add(server.model.slot, 'connectFailures');
        if (this.#attempts < this.#backend.model.retries) this.#retry(false);
        else this.#fail(failure.code === 'ETIMEDOUT' ? 504 : 502);
      },
    );
  }

  #use(connection: ServerConnection): void {
    this.#giveUp = () => {};
    this.#connection = connection;
    connection.user = this;
    const { address, scheme } = this.#client;
    const defaultHost = formatEndpoint(this.#place!.server.model.address);
    const head = requestHeadFor(this.#head, { clientAddress: address, scheme, upgrade: this.#upgrades, defaultHost });
    this.#sent = true;
    connection.socket.write(head);
    this.#countBytes('bytesIn', head.length);
    this.#client.engine.counters.add(this.#place!.server.model.slot, 'requests');
    if (this.#requestBody.done) this.#awaitServer();
    else {
      this.#client.socket.setTimeout(this.#client.frontend.model.timeouts.client);
      this.#client.moreBody();
    }
  }

  #awaitServer(): void {
    this.#connection?.socket.setTimeout(this.#backend.model.timeouts.server);
  }

  /** Sending it twice does no harm, and it can be sent twice: no body has been read that would have to be kept. */
  #isRepeatable(): boolean {
    return IDEMPOTENT.has(this.#head.method) && this.#head.framing === 'none';
  }

  #mayRetry(wasStale = false): boolean {
    if (!wasStale && this.#attempts >= this.#backend.model.retries) return false;
    return !this.#sent || (this.#isRepeatable() && !this.#bodyStarted);
  }

  #retry(wasStale: boolean): void {
    const { server } = this.#place!;
    // A kept connection that was closed under us says nothing about the server, and was no attempt at it.
    if (wasStale) this.#wasStale = true;
    else this.#attempts++;
    this.#client.engine.counters.add(server.model.slot, 'retries');
    if (!wasStale) this.#tried.add(server);
    this.#leaveServer(false);
    this.#responseInput = EMPTY;
    this.#sent = false;
    this.start();
  }

  #startResponse(head: ResponseHead): void {
    const { slot } = this.#place!.server.model;
    this.#response = head;
    this.#responseBody = new Body(head.framing, head.contentLength);
    this.#answered = true;
    this.#client.count(slot, head.status);
    this.#client.count(this.#client.frontend.model.slot, head.status);
    const out = responseHeadFor(
      head,
      this.#keepsClient() ? this.#keepAliveLine() : 'Connection: close\r\n',
      this.#dechunks(),
    );
    const rest = this.#responseInput;
    this.#responseInput = EMPTY;
    if (rest.length === 0 || this.#responseBody.done) {
      this.#writeToClient(out);
      if (this.#responseBody.done) this.#complete(rest.length > 0);
      return;
    }
    // One system call for the head and what came with it: a write costs more than all else that a request does here.
    const { socket } = this.#client;
    socket.cork();
    this.#writeToClient(out);
    this.#takeResponseBody(rest);
    socket.uncork();
  }

  /** HTTP/1.0 clients get no chunks; the end of the connection ends the body instead. */
  #dechunks(): boolean {
    return this.#response!.chunked && this.#head.minor === 0;
  }

  #keepAliveLine(): string {
    return this.#head.minor === 0 ? 'Connection: keep-alive\r\n' : '';
  }

  #keepsClient(): boolean {
    return (
      this.#head.keepAlive &&
      !this.#client.closesAfterThis &&
      this.#response!.framing !== 'untilClose' &&
      !this.#dechunks()
    );
  }

  #takeResponseBody(chunk: Buffer): void {
    const body = this.#responseBody!;
    let taken: number;
    if (this.#dechunks()) {
      taken = body.take(chunk, (start, end) => this.#writeToClient(chunk.subarray(start, end)));
    } else {
      taken = body.take(chunk);
      if (taken > 0 && !body.broken) this.#writeToClient(taken === chunk.length ? chunk : chunk.subarray(0, taken));
    }
    if (body.broken) {
      this.#countFailure();
      this.#cutOff();
      return;
    }
    if (!body.done) return;
    this.#complete(taken < chunk.length);
  }

  #writeToClient(bytes: Buffer): void {
    this.#countBytes('bytesOut', bytes.length);
    if (this.#client.socket.write(bytes)) return;
    // It is the client's turn: a server that we hold back is not to be blamed for its silence.
    this.#connection?.socket.pause();
    this.#connection?.socket.setTimeout(0);
    this.#client.socket.setTimeout(this.#client.frontend.model.timeouts.client);
  }

  /** `extra`: the server sent more than its answer, so its connection can't be trusted with another request. */
  #complete(extra: boolean): void {
    // An answer that is complete before the request is: the rest of the request is not worth waiting for.
    const early = !this.#requestBody.done;
    const keepsServer = this.#response!.keepAlive && !extra && !early;
    const keepAlive = this.#keepsClient() && !early;
    this.#end(keepsServer);
    this.#client.finished(keepAlive);
  }

  #switchProtocols(head: ResponseHead): void {
    const { socket } = this.#client;
    const connection = this.#connection!;
    if (!this.#upgrades) {
      // RFC 9110 section 15.2.2: 101 answers an Upgrade; nobody asked for one.
      this.#countFailure();
      this.#fail(502);
      return;
    }
    const place = this.#place!;
    const rest = this.#responseInput;
    this.#over = true;
    connection.user = null;
    this.#client.count(place.server.model.slot, 101);
    this.#client.count(this.#client.frontend.model.slot, 101);
    const early = this.#client.detach();
    socket.write(responseHeadFor(head, `Connection: Upgrade\r\nUpgrade: ${this.#head.upgrade}\r\n`, false));
    if (rest.length > 0) socket.write(rest);
    if (early.length > 0) connection.socket.write(early);
    for (const event of ['data', 'end', 'timeout', 'drain']) connection.socket.removeAllListeners(event);
    const tunnel = relay({
      client: socket,
      server: connection.socket,
      idleMs: this.#backend.model.timeouts.tunnel,
      onBytes: (direction, count) => this.#countBytes(direction === 'in' ? 'bytesIn' : 'bytesOut', count),
      onClosed: () => {
        place.server.sessions.delete(session);
        place.release();
      },
    });
    const session = { shutdown: () => tunnel.destroy() };
    place.server.sessions.delete(this.#session);
    place.server.sessions.add(session);
  }

  /** The server was marked down and its sessions are to end. */
  #shutdown(): void {
    if (this.#answered) this.#cutOff();
    else if (this.#mayRetry()) this.#retry(false);
    else this.#fail(502);
  }

  #refuse(status: number): void {
    this.#client.count(this.#client.frontend.model.slot, status);
    this.#fail(status, false);
  }

  /** No answer has begun: the client gets a page of ours. */
  #fail(status: number, counted = true): void {
    if (this.#over) return;
    this.#end(false);
    if (this.#answered) {
      this.#client.destroy();
      return;
    }
    if (counted) this.#client.count(this.#client.frontend.model.slot, status);
    this.#client.answerWith(errorPage(status));
  }

  /** Part of an answer has been passed on and the rest will not come. */
  #cutOff(): void {
    if (this.#over) return;
    this.#end(false);
    reset(this.#client.socket);
  }

  #end(keepsServer: boolean): void {
    if (this.#over) return;
    this.#over = true;
    this.#leaveServer(keepsServer);
  }

  #leaveServer(keep: boolean): void {
    const place = this.#place;
    const connection = this.#connection;
    this.#place = null;
    this.#connection = null;
    this.#giveUp();
    this.#giveUp = () => {};
    if (connection) {
      connection.user = null;
      if (keep && place && place.server.weight > 0) place.server.idle.put(connection);
      else connection.socket.destroy();
    }
    if (place) {
      place.server.sessions.delete(this.#session);
      place.release();
    }
  }

  #countFailure(): void {
    if (this.#place) this.#client.engine.counters.add(this.#place.server.model.slot, 'responseFailures');
  }

  #countBytes(counter: 'bytesIn' | 'bytesOut', count: number): void {
    const { counters } = this.#client.engine;
    if (this.#place) counters.add(this.#place.server.model.slot, counter, count);
    if (counter === 'bytesOut') counters.add(this.#client.frontend.model.slot, counter, count);
  }
}
