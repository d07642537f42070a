/**
 * A socket of the reactor as a Stream. What is read stands in one buffer that all streams of the thread share, so a
 * request that is passed on at once is never copied into memory of its own.
 */
import assert from 'node:assert/strict';
import { EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLRDHUP } from '../net/reactor.ts';
import type { Reactor, Task, Watcher } from '../net/reactor.ts';
import { connectError, localOf, resetOnClose, unacknowledged } from '../net/tcpSocket.ts';
import { PlainWire } from '../net/plainWire.ts';
import { BROKEN, TRUNCATED, WOULD_BLOCK } from '../net/wire.ts';
import type { Wire, WireProblem } from '../net/wire.ts';
import type { Peer, Stream, StreamUser, TlsFacts } from './stream.ts';

/** Read at once. Larger reads make bulk cheaper until they fall out of the processor's cache. */
const READ_BYTES = 128 * 1024;
/** Full reads in a row before others get their turn. */
const READS_PER_EVENT = 4;

const INPUT = Buffer.allocUnsafeSlow(READ_BYTES);

/** How a stream begins. */
export type Begin = {
  /** It is not connected yet. */
  connecting?: boolean;
  /** What is sent before the wire's own handshake. */
  preamble?: Buffer | null;
  /** Another watcher had it before. */
  adopted?: { atEnd: boolean } | null;
};

const NEW: Begin = {};

/** Who waits for a connection to be made, and for its handshake. */
export type Opener = {
  /** Null when it is ready for use; otherwise it has been closed. */
  onOpened(problem: WireProblem | null): void;
};

/* oxlint-disable no-bitwise */
const SOMETHING_TO_READ = EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR;
const NOTHING_MORE = EPOLLRDHUP | EPOLLHUP | EPOLLERR;

export class SocketStream implements Stream, Watcher, Task {
  user: StreamUser | null = null;
  remote: Peer;
  pending = 0;
  destroyed = false;
  ended = false;
  finished = false;
  #local: Peer | null = null;
  readonly #reactor: Reactor;
  readonly #fd: number;
  readonly #wire: Wire;
  readonly #isPlain: boolean;
  #opener: Opener | null = null;
  #connecting: boolean;
  #preamble: Buffer | null;
  /** The kernel, or TLS, may have more for us. */
  #readable = false;
  /** The peer has ended or broken the connection: a short read is not the last one. */
  #atEnd = false;
  #paused = false;
  #deferred = false;
  #ending = false;
  /** A write has failed; what was received before can still be read. */
  #broken: string | null = null;
  #output: Buffer[] = [];
  #sent = 0;

  /** Owns the descriptor from now on. */
  constructor(reactor: Reactor, fd: number, wire: Wire, remote: Peer, { connecting, preamble, adopted }: Begin = NEW) {
    this.#reactor = reactor;
    this.#fd = fd;
    this.#wire = wire;
    this.#isPlain = wire instanceof PlainWire;
    this.remote = remote;
    this.#connecting = connecting ?? false;
    this.#preamble = preamble ?? null;
    if (!adopted) {
      reactor.watch(fd, this);
      return;
    }
    // What has come before was told to another watcher.
    reactor.rewatch(fd, this);
    this.#readable = true;
    this.#atEnd = adopted.atEnd;
    this.#defer();
  }

  get tls(): TlsFacts | null {
    return this.#wire.facts();
  }

  get local(): Peer {
    return (this.#local ??= localOf(this.#fd));
  }

  set local(peer: Peer) {
    this.#local = peer;
  }

  get unread(): number {
    return this.destroyed ? 0 : this.pending + unacknowledged(this.#fd);
  }

  /** Connects and shakes hands; true when that is done already. Otherwise the opener is told. */
  open(opener: Opener): boolean {
    if (!this.#connecting && this.#sendPreamble() && this.#wire.handshake() === 'done') return true;
    this.#opener = opener;
    return false;
  }

  onEvents(events: number): void {
    if (this.destroyed) return;
    // With TLS a read can have been waiting for output.
    if (!this.#isPlain) this.#readable = true;
    if ((events & SOMETHING_TO_READ) !== 0) {
      this.#readable = true;
      if ((events & NOTHING_MORE) !== 0) this.#atEnd = true;
    }
    if (this.#opener) {
      this.#goOnOpening();
      return;
    }
    if (this.pending > 0 || (this.#ending && !this.finished)) this.#flush();
    if (this.destroyed) return;
    // Reading would say no more than that it has ended.
    if (this.ended && (events & EPOLLERR) !== 0) this.#close(this.#broken ?? connectError(this.#fd) ?? 'ECONNRESET');
    else if (!this.#paused) this.#read();
    else if ((events & EPOLLERR) !== 0) this.user?.onHangUp?.();
  }

  write(bytes: Buffer): boolean {
    if (this.destroyed || this.#ending || this.#broken !== null) return true;
    let taken = 0;
    if (this.pending === 0) {
      taken = this.#wire.write(bytes, 0, bytes.length);
      if (taken === bytes.length) return true;
      if (taken < 0) {
        this.#break(this.#wire.problem?.code ?? 'EPIPE');
        return true;
      }
    }
    this.#output.push(Buffer.from(taken === 0 ? bytes : bytes.subarray(taken)));
    this.pending += bytes.length - taken;
    return false;
  }

  end(): void {
    if (this.destroyed || this.#ending) return;
    this.#ending = true;
    if (this.pending === 0) this.#finish();
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    if (this.#readable) this.#defer();
  }

  destroy(): void {
    if (this.destroyed) return;
    this.destroyed = true;
    this.user = null;
    this.#opener = null;
    this.#output = [];
    this.pending = 0;
    this.#wire.free();
    this.#reactor.close(this.#fd);
  }

  reset(): void {
    if (this.destroyed) return;
    resetOnClose(this.#fd);
    this.destroy();
  }

  /** What had to wait for the end of the user's own call. */
  run(): void {
    this.#deferred = false;
    if (this.destroyed) return;
    if (this.#broken !== null && this.#paused) {
      if (this.user?.onHangUp) this.user.onHangUp();
      else this.#close(this.#broken);
    } else if (this.ended && this.finished) this.#close(null);
    else if (this.#readable && !this.#paused) this.#read();
  }

  #goOnOpening(): void {
    if (this.#connecting) {
      const code = connectError(this.#fd);
      if (code !== null) {
        this.#opened({ code, message: `the connection failed: ${code}` });
        return;
      }
      this.#connecting = false;
      if (!this.#sendPreamble()) {
        this.#opened({ code: 'EPIPE', message: 'the PROXY header could not be sent' });
        return;
      }
    }
    const state = this.#wire.handshake();
    if (state === 'again') {
      if (this.#atEnd) this.#opened({ code: 'ECONNRESET', message: 'the peer closed during the handshake' });
      return;
    }
    this.#opened(state === 'done' ? null : state);
  }

  /** In the clear, before anything else: a new connection takes a few hundred bytes at once, or is broken. */
  #sendPreamble(): boolean {
    const preamble = this.#preamble;
    this.#preamble = null;
    return preamble === null || new PlainWire(this.#fd).write(preamble, 0, preamble.length) === preamble.length;
  }

  #opened(problem: WireProblem | null): void {
    const opener = this.#opener;
    assert(opener, 'whoever opens is told once');
    this.#opener = null;
    if (problem) this.destroy();
    opener.onOpened(problem);
    // The peer may have spoken together with the end of the handshake.
    if (!this.destroyed && this.#readable && !this.#paused && this.user) this.#read();
  }

  #read(): void {
    if (this.ended) {
      // Events of output tell that there is an end to be read, again and again.
      this.#readable = false;
      if (this.#broken !== null) this.#close(this.#broken);
      return;
    }
    for (let reads = 0; this.#readable && !this.#paused && this.user; reads++) {
      if (reads === READS_PER_EVENT) {
        this.#defer();
        return;
      }
      const count = this.#wire.read(INPUT, 0, READ_BYTES);
      if (count > 0) {
        // Edge-triggered: whatever comes after a read that found less than it asked for is told by a new event.
        if (count < READ_BYTES && !this.#atEnd && !this.#wire.hasPending()) this.#readable = false;
        this.user.onData(INPUT.subarray(0, count));
        if (this.destroyed) return;
        continue;
      }
      this.#readable = false;
      if (count === WOULD_BLOCK) return;
      if (count === BROKEN || count === TRUNCATED) {
        this.#close(this.#broken ?? (count === TRUNCATED ? 'TRUNCATED' : (this.#wire.problem?.code ?? 'EPIPE')));
        return;
      }
      if (this.#broken !== null) {
        this.#close(this.#broken);
        return;
      }
      this.ended = true;
      this.user.onEnd();
      if (!this.destroyed && this.finished) this.#close(null);
      return;
    }
  }

  #flush(): void {
    while (this.#output.length > 0) {
      const chunk = this.#output[0]!;
      const taken = this.#wire.write(chunk, this.#sent, chunk.length);
      if (taken < 0) {
        this.#break(this.#wire.problem?.code ?? 'EPIPE');
        return;
      }
      this.pending -= taken;
      if (this.#sent + taken < chunk.length) {
        this.#sent += taken;
        return;
      }
      this.#sent = 0;
      this.#output.shift();
    }
    if (this.#ending) this.#finish();
    else this.user?.onDrain();
  }

  #finish(): void {
    if (this.finished || this.#wire.shutdown() === 'again') return;
    this.finished = true;
    if (this.ended) this.#defer();
  }

  #break(code: string): void {
    this.#broken = code;
    this.#output = [];
    this.#sent = 0;
    this.pending = 0;
    this.#readable = true;
    this.#atEnd = true;
    this.#defer();
  }

  #close(error: string | null): void {
    const { user } = this;
    this.destroy();
    user?.onClosed(error);
  }

  #defer(): void {
    if (this.#deferred) return;
    this.#deferred = true;
    this.#reactor.defer(this);
  }
}
