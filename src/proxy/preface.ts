/**
 * What comes before anything else on a new connection, looked at without being taken: a PROXY protocol header, and the
 * ClientHello of TLS. From it depends how the connection goes on.
 */
import { EAGAIN, errno, libc } from '../net/libc.ts';
import { EPOLLERR, EPOLLHUP, EPOLLRDHUP } from '../net/reactor.ts';
import type { Reactor, Watcher } from '../net/reactor.ts';
import type { Timer } from '../net/timers.ts';
import { parseClientHello } from './clientHello.ts';
import type { ClientHello } from './clientHello.ts';
import { parseProxyHeader } from './proxyProtocol.ts';
import type { Peer } from './stream.ts';

const MSG_PEEK = 2;
/** A PROXY header with its TLVs, and a ClientHello with post-quantum key shares, are a few KiB each. */
const PEEK_BYTES = 64 * 1024;

const PEEKED = Buffer.allocUnsafeSlow(PEEK_BYTES);
const TAKEN = Buffer.allocUnsafeSlow(PEEK_BYTES);

export type PrefaceNeeds = {
  proxyHeader: boolean;
  /** `wanted`: it is TLS or it is refused. `sniffed`: whatever comes, or doesn't come in time, is passed on. */
  clientHello: 'wanted' | 'sniffed' | null;
  timeoutMs: number;
};

export type Preface = {
  /** Of a PROXY header. */
  source: Peer | null;
  destination: Peer | null;
  hello: ClientHello | null;
  /** The peer has ended or broken the connection already. */
  atEnd: boolean;
};

export type PrefaceProblem = 'proxyHeader' | 'tls' | 'timeout' | 'closed';

/** Told once, with the descriptor still open and watched by this. */
export type PrefaceReader = {
  onPreface(fd: number, preface: Preface): void;
  onPrefaceFailed(fd: number, problem: PrefaceProblem): void;
};

/* oxlint-disable no-bitwise */
const NOTHING_MORE = EPOLLRDHUP | EPOLLHUP | EPOLLERR;

export class PrefaceWatcher implements Watcher {
  readonly #fd: number;
  readonly #needs: PrefaceNeeds;
  readonly #reader: PrefaceReader;
  readonly #timer: Timer;
  readonly #preface: Preface = { source: null, destination: null, hello: null, atEnd: false };
  #wantsHeader: boolean;
  #over = false;

  constructor(reactor: Reactor, fd: number, needs: PrefaceNeeds, reader: PrefaceReader) {
    this.#fd = fd;
    this.#needs = needs;
    this.#reader = reader;
    this.#wantsHeader = needs.proxyHeader;
    this.#timer = reactor.timers.make(() => this.#timedOut());
    this.#timer.set(needs.timeoutMs);
    reactor.watch(fd, this);
  }

  giveUp(): void {
    this.#over = true;
    this.#timer.drop();
  }

  onEvents(events: number): void {
    if ((events & NOTHING_MORE) !== 0) this.#preface.atEnd = true;
    if (this.#over) return;
    const count = libc().recv(this.#fd, PEEKED, PEEK_BYTES, MSG_PEEK);
    if (count < 0 && errno() === EAGAIN) return;
    if (count < 0) this.#fail('closed');
    else if (count === 0) this.#ended();
    else this.#look(count);
  }

  /** No more will come than there is. Who only sniffs passes on whatever that is. */
  #ended(): void {
    this.#preface.atEnd = true;
    if (!this.#wantsHeader && this.#needs.clientHello === 'sniffed') this.#finish();
    else this.#fail('closed');
  }

  #look(count: number): void {
    let bytes = PEEKED.subarray(0, count);
    if (this.#wantsHeader) {
      const header = parseProxyHeader(bytes);
      if (header === 'more') {
        if (this.#preface.atEnd) this.#fail('proxyHeader');
        return;
      }
      if (header === 'invalid') {
        this.#fail('proxyHeader');
        return;
      }
      this.#wantsHeader = false;
      this.#preface.source = header.source;
      this.#preface.destination = header.destination;
      const { length } = header;
      // Taken now, so that what is left begins with the first byte of the connection proper. The bytes stay in place.
      libc().recv(this.#fd, TAKEN, length, 0);
      bytes = bytes.subarray(length);
      if (this.#needs.clientHello && bytes.length === 0) {
        if (this.#preface.atEnd) this.#ended();
        return;
      }
    }
    if (this.#needs.clientHello) {
      const hello = parseClientHello(bytes);
      if (hello === 'more') {
        if (this.#preface.atEnd || bytes.length === PEEK_BYTES) this.#ended();
        return;
      }
      if (hello === 'notTls') {
        if (this.#needs.clientHello === 'wanted') {
          this.#fail('tls');
          return;
        }
      } else this.#preface.hello = hello;
    }
    this.#finish();
  }

  #timedOut(): void {
    if (!this.#wantsHeader && this.#needs.clientHello === 'sniffed') this.#finish();
    else this.#fail('timeout');
  }

  #finish(): void {
    this.giveUp();
    this.#reader.onPreface(this.#fd, this.#preface);
  }

  #fail(problem: PrefaceProblem): void {
    this.giveUp();
    this.#reader.onPrefaceFailed(this.#fd, problem);
  }
}
