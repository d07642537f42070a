/**
 * Mode `http`, the client's side: requests of one connection, in order. Each is judged by the rules of its own time and
 * either answered here or given to an Exchange.
 */
import type { Timer } from '../net/timers.ts';
import { COUNTER, statusCounter } from './counters.ts';
import type { Arrival, ClientSession, Engine, Frontend } from './engine.ts';
import { ownAnswer, refusalOf } from './ownAnswers.ts';
import { Exchange } from './exchange.ts';
import { MAX_HEAD_BYTES, parseRequest } from './head.ts';
import type { RequestHead } from './head.ts';
import { HttpFacts } from './httpFacts.ts';
import { logRequest } from './httpLog.ts';
import type { Termination } from './accessLog.ts';
import type { Relay } from './relay.ts';
import type { Answer, RuleSet } from './rules.ts';
import type { Stream, StreamUser } from './stream.ts';

/** Input kept from a client whose request can't be passed on yet; then it is paused. */
const MAX_PENDING_BYTES = 64 * 1024;
const EMPTY = Buffer.alloc(0);
/** An idle connection of a listener that is drained stays this long for a request that is on its way. */
const DRAIN_IDLE_MS = 1_000;
/** How long a client may take to read a last answer and close. */
const CLOSING_TIMEOUT_MS = 2_000;

const TOO_MANY_REQUESTS = 429;

const CR = 13;
const LF = 10;

/** When what happened to the request at hand, in the reactor's time; -1 for what has not. */
export type Moments = { beganMs: number; headMs: number; handshakeMs: number; idleMs: number };

/** A request that rules have put off: until a password is verified, or in a tarpit, which has its answer ready. */
type Parked = {
  head: RequestHead;
  id: string;
  tarpit: { status: number; page: Buffer } | null;
  /** By whom it was put off, and how many of them have counted it. */
  rules: RuleSet;
  counted: number;
};

export class HttpClient implements StreamUser, ClientSession {
  readonly engine: Engine;
  readonly stream: Stream;
  readonly facts: HttpFacts;
  readonly moments: Moments;
  /** The frontend as it is configured now. */
  readonly #frontend: () => Frontend;
  readonly #timer: Timer;
  #onClosed: () => void;
  #input: Buffer = EMPTY;
  #exchange: Exchange | null = null;
  #parked: Parked | null = null;
  #processing = false;
  #holding = false;
  #draining = false;
  #closing = false;
  /** All of the last answer has left. */
  #flushed = false;
  /** An upgraded connection: what goes over it is not ours any more. */
  #isTunnel = false;
  #tunnel: Relay | null = null;
  #over = false;
  #idleSinceMs: number;
  /** `unread` of its stream when its time to read began. */
  #unread = 0;
  bytesIn = 0;
  memberIndex = -1;
  /** Requests whose head was read, this one included. */
  requests = 0;

  constructor(engine: Engine, frontend: () => Frontend, stream: Stream, arrival: Arrival, onClosed: () => void) {
    this.engine = engine;
    this.#frontend = frontend;
    this.stream = stream;
    this.facts = new HttpFacts(stream);
    this.#onClosed = onClosed;
    this.moments = { beganMs: -1, headMs: -1, handshakeMs: arrival.handshakeMs, idleMs: 0 };
    this.#idleSinceMs = arrival.acceptedMs + arrival.handshakeMs;
    this.#timer = engine.reactor.timers.make(() => this.#timedOut());
    this.#timer.set(frontend().model.timeouts.httpRequest);
    stream.user = this;
  }

  get frontend(): Frontend {
    return this.#frontend();
  }

  /** Answers to come say `Connection: close`. */
  get closesAfterThis(): boolean {
    return this.#draining || (this.stream.ended && this.#input.length === 0);
  }

  get timer(): Timer {
    return this.#timer;
  }

  drain(): void {
    this.#draining = true;
    if (this.#exchange || this.#parked || this.#input.length > 0 || this.#isTunnel || this.#closing) return;
    // Closing it now could cross a request that is on its way. Whoever asks within this time is answered, and told to
    // close; whoever doesn't is not about to.
    this.#timer.set(DRAIN_IDLE_MS);
  }

  destroy(): void {
    if (this.#over) return;
    if (this.#tunnel) {
      this.#tunnel.destroy();
      return;
    }
    this.#exchange?.abandon();
    if (this.#parked) this.#logParked(this.#parked, this.#parked.tarpit ? 'KT' : 'KR');
    this.stream.destroy();
    this.#end();
  }

  /** So that the client knows that something is missing. */
  reset(): void {
    this.stream.reset();
    this.#end();
  }

  onData(bytes: Buffer): void {
    this.engine.counters.add(this.frontend.model.slot, COUNTER.bytesIn, bytes.length);
    if (this.#closing) return;
    this.bytesIn += bytes.length;
    this.#input = this.#input.length === 0 ? bytes : Buffer.concat([this.#input, bytes]);
    this.#process();
    // What has come is lent until this call ends.
    if (this.#input.length > 0 && this.#input.buffer === bytes.buffer) this.#input = Buffer.from(this.#input);
  }

  onDrain(): void {
    if (this.#closing) this.#lastHasLeft();
    else if (this.#exchange) this.#exchange.clientDrained();
    else if (!this.#parked) this.#nextOne();
  }

  /** The client has said all that it will; it still gets its answers. */
  onEnd(): void {
    if (!this.#closing) this.#process();
  }

  onClosed(error: string | null): void {
    if (this.#exchange) this.#exchange.clientGone(error);
    else if (this.#parked) this.#logParked(this.#parked, this.#parked.tarpit ? 'CT' : 'CR');
    else if (this.#input.length > 0 && !this.#closing) this.#logRefusal(0, 'CR');
    this.#end();
  }

  /** Answers with one of our own pages, then closes: what else the client sent is not looked at. */
  refuse(status: number, termination: Termination = 'PR'): void {
    const { counters } = this.engine;
    const { slot } = this.frontend.model;
    counters.add(slot, COUNTER.requests);
    counters.add(slot, COUNTER.requestErrors);
    this.count(slot, status);
    const id = this.frontend.model.needsId ? this.engine.nextId() : '';
    const page = refusalOf(status, { id, close: true, isHead: false }, this.frontend.model.errorPages);
    this.#logRefusal(status, termination, page.length, id);
    this.answerWith(page);
  }

  /** Says this last thing, if anything, and closes. */
  answerWith(last: Buffer): void {
    this.#exchange = null;
    this.#parked = null;
    this.#closing = true;
    this.#input = EMPTY;
    if (last.length > 0) {
      this.engine.counters.add(this.frontend.model.slot, COUNTER.bytesOut, last.length);
      this.stream.write(last);
    }
    this.stream.end();
    // As long as it reads at all it gets the whole answer.
    this.awaitReader();
    if (this.stream.pending === 0) this.#lastHasLeft();
    this.stream.resume();
  }

  count(slot: number, status: number): void {
    this.engine.counters.add(slot, statusCounter(status));
  }

  /** The exchange has sent its answer and read its request to the end. */
  finished(keepAlive: boolean): void {
    this.#exchange = null;
    this.#idleSinceMs = this.engine.reactor.nowMs;
    if (!keepAlive || this.#draining) this.answerWith(EMPTY);
    else this.#nextOne();
  }

  /** Hands the connection over to a tunnel that is to be made; gives back what was read ahead. */
  detach(): Buffer {
    const rest = this.#input;
    this.#input = EMPTY;
    this.#exchange = null;
    this.#isTunnel = true;
    this.#timer.drop();
    return rest;
  }

  tunnelBegan(tunnel: Relay): void {
    this.#tunnel = tunnel;
  }

  /** An upgraded connection has ended. */
  tunnelEnded(): void {
    this.#end();
  }

  /** The exchange can take more of the request body. */
  moreBody(): void {
    this.#process();
  }

  /** It is the client's turn to read. */
  awaitReader(): void {
    this.#unread = this.stream.unread;
    this.#timer.set(this.frontend.model.timeouts.client);
  }

  /** Waits for the next request, but not before this client has read what it got: its answers must not pile up here. */
  #nextOne(): void {
    this.moments.beganMs = -1;
    if (this.stream.pending > 0) {
      this.awaitReader();
      return;
    }
    this.#timer.set(this.frontend.model.timeouts.keepAlive);
    if (this.#input.length > 0 || this.stream.ended || this.#holding) this.#process();
  }

  #timedOut(): void {
    // One that takes some of what waits for it is slow, not silent.
    if (this.stream.pending > 0 && this.stream.unread !== this.#unread) this.awaitReader();
    else if (this.#closing) {
      // With part of an answer unsent, only a reset tells the client that it is not whole.
      if (this.#flushed) this.destroy();
      else this.reset();
    } else if (this.#parked?.tarpit) this.#endTarpit(this.#parked, this.#parked.tarpit);
    else if (this.#exchange) this.#exchange.clientTimedOut();
    // An idle connection is closed without a word, and so is one that doesn't read; one with half a head is told.
    else if (this.#input.length > 0 && this.stream.pending === 0) this.refuse(408, 'cR');
    else if (this.#draining && this.requests > 0) this.answerWith(EMPTY);
    else this.destroy();
  }

  #lastHasLeft(): void {
    this.#flushed = true;
    // Closing with unread input would reset the connection and could cost the client the answer: what it still sends
    // is read away, but not for ever.
    this.#timer.set(CLOSING_TIMEOUT_MS);
  }

  #process(): void {
    if (this.#processing) return;
    this.#processing = true;
    while (!this.#closing && !this.#isTunnel && !this.#parked && !this.#over) {
      if (this.#exchange) {
        const taken = this.#exchange.takeBody(this.#input);
        this.#input = taken === this.#input.length ? EMPTY : this.#input.subarray(taken);
        if (taken === 0 || this.#exchange) break;
        continue;
      }
      if (this.stream.pending > 0) break;
      if (this.#input.length === 0 || !this.#nextRequest()) break;
    }
    this.#processing = false;
    if (this.#closing || this.#isTunnel || this.#over) return;
    if (this.stream.ended && this.#input.length === 0 && !this.#parked) this.#endedByClient();
    this.#hold();
  }

  /** The client has half-closed: it still gets its answers, but a request that is not complete never will be. */
  #endedByClient(): void {
    if (!this.#exchange) this.answerWith(EMPTY);
    else if (!this.#exchange.hasWholeRequest) {
      this.#exchange.clientGone('ECONNRESET');
      this.stream.destroy();
      this.#end();
    }
  }

  /** Whoever sends faster than the server takes, or asks faster than it reads, has to wait. */
  #hold(): void {
    const wants = this.#input.length > MAX_PENDING_BYTES || this.#exchange?.isHeldByServer === true;
    if (wants === this.#holding) return;
    this.#holding = wants;
    if (wants) this.stream.pause();
    else this.stream.resume();
  }

  /** Starts what the head at the start of the input asks for; false when there is none yet, or none to come. */
  #nextRequest(): boolean {
    const { moments } = this;
    const now = this.engine.reactor.nowMs;
    const isNew = moments.beganMs < 0;
    if (isNew) {
      moments.beganMs = now;
      moments.idleMs = now - this.#idleSinceMs;
    } else if (!this.stream.ended && !endsHead(this.#input) && this.#input.length <= MAX_HEAD_BYTES) return false;
    const head = parseRequest(this.#input);
    if (head === 'more') {
      // Empty lines between requests are no beginning of one.
      while (this.#input[0] === CR && this.#input[1] === LF) this.#input = this.#input.subarray(2);
      if (this.#input.length === 0) {
        moments.beganMs = -1;
        return false;
      }
      if (this.#input.length > MAX_HEAD_BYTES) this.refuse(431);
      else if (this.stream.ended) this.refuse(400, 'CR');
      // A limit on the whole head, not on the silence between its bytes: slow heads are how connections are held up.
      else if (isNew) this.#timer.set(this.frontend.model.timeouts.httpRequest);
      return false;
    }
    if (typeof head === 'number') {
      this.refuse(head);
      return false;
    }
    moments.headMs = now;
    this.#input = head.length === this.#input.length ? EMPTY : this.#input.subarray(head.length);
    this.requests++;
    if (this.requests > 1) moments.handshakeMs = 0;
    this.engine.counters.add(this.frontend.model.slot, COUNTER.requests);
    return this.#begin(head, null);
  }

  #begin(head: RequestHead, parked: Parked | null): boolean {
    const { frontend, engine } = this;
    const { rules } = frontend;
    this.#timer.clear();
    this.facts.about(head);
    const id = parked ? parked.id : frontend.model.needsId ? engine.nextId() : '';
    // Rules of another configuration start anew.
    const decision = rules.decide(this.facts, id, parked?.rules === rules ? parked.counted : 0);
    if (decision.wait) {
      const waiting = { head, id, tarpit: null, rules, counted: rules.asked };
      this.#parked = waiting;
      decision.wait(() => this.#unpark(waiting));
      return false;
    }
    if (decision.answer) return this.#answer(head, decision.answer, id);
    const name = decision.backend ?? frontend.model.use;
    const backend = engine.backend(name);
    if (!backend) {
      this.#ownAnswer(head, { status: 503, headers: [], body: null, delayMs: 0 }, id, 'SC');
      return true;
    }
    this.#exchange = new Exchange(this, backend, head, decision, id);
    this.#exchange.start();
    return true;
  }

  #unpark(parked: Parked): void {
    if (this.#parked !== parked || this.#closing) return;
    this.#parked = null;
    this.#begin(parked.head, parked);
    this.#process();
  }

  #endTarpit(parked: Parked, { status, page }: { status: number; page: Buffer }): void {
    this.count(this.frontend.model.slot, status);
    this.#logParked(parked, 'PT', status, page.length);
    this.answerWith(page);
  }

  #answer(head: RequestHead, answer: Answer, id: string): boolean {
    const { counters } = this.engine;
    const isDenied = answer.status >= 400;
    counters.add(this.frontend.model.slot, isDenied ? COUNTER.deniedRequests : COUNTER.intercepted);
    if (answer.status === TOO_MANY_REQUESTS) counters.add(this.frontend.model.slot, COUNTER.rateLimited);
    if (answer.delayMs === 0) {
      this.#ownAnswer(head, answer, id, isDenied ? 'PR' : 'LR');
      return true;
    }
    const form = { id, close: true, isHead: head.method === 'HEAD' };
    const page = ownAnswer(answer, form, this.frontend.model.errorPages);
    const { rules } = this.frontend;
    this.#parked = { head, id, tarpit: { status: answer.status, page }, rules, counted: 0 };
    this.#timer.set(answer.delayMs);
    return false;
  }

  /** Keeps the connection where nothing of the request is left to be read. */
  #ownAnswer(head: RequestHead, answer: Answer, id: string, termination: Termination): void {
    // HTTP/1.0 would have to be told that it is kept, which is not worth it for these.
    const close = head.minor === 0 || !head.keepAlive || head.framing !== 'none' || this.closesAfterThis;
    const { model } = this.frontend;
    const bytes = ownAnswer(answer, { id, close, isHead: head.method === 'HEAD' }, model.errorPages);
    this.count(model.slot, answer.status);
    this.#logOwn(head, answer.status, bytes.length, id, termination);
    if (close) {
      this.answerWith(bytes);
      return;
    }
    this.engine.counters.add(model.slot, COUNTER.bytesOut, bytes.length);
    this.stream.write(bytes);
    this.finished(true);
  }

  #logOwn(head: RequestHead, status: number, bytesOut: number, id: string, termination: Termination): void {
    if (!this.frontend.model.log) return;
    logRequest(this, { head, status, bytesOut, id, termination, exchange: null });
  }

  #logParked({ head, id, tarpit }: Parked, termination: Termination, status = 0, bytesOut = 0): void {
    if (!this.frontend.model.log) return;
    const heldMs = tarpit ? this.engine.reactor.nowMs - this.moments.headMs : -1;
    logRequest(this, { head, status, bytesOut, id, termination, exchange: null, heldMs });
  }

  #logRefusal(status: number, termination: Termination, bytesOut = 0, id = ''): void {
    if (!this.frontend.model.log) return;
    logRequest(this, { head: null, status, bytesOut, id, termination, exchange: null });
  }

  #end(): void {
    if (this.#over) return;
    this.#over = true;
    this.#exchange = null;
    this.#parked = null;
    this.#timer.drop();
    this.#onClosed();
  }
}

/**
 * Whether the head may be complete, so that one that comes byte by byte isn't parsed anew with each of them. Looks at the
 * whole input: a line that ends right after another one.
 */
const endsHead = (input: Buffer): boolean => input.includes('\n\r\n') || input.includes('\n\n');
