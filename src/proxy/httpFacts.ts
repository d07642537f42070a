/** What rules and balancing ask of the request at hand. One object a connection: its head changes, the client stays. */
import type { RequestFacts } from './facts.ts';
import { cookieOf, headerOf } from './fields.ts';
import type { RequestHead } from './head.ts';
import type { Peer, Stream, TlsFacts } from './stream.ts';

export class HttpFacts implements RequestFacts {
  readonly source: string;
  readonly scheme: 'http' | 'https';
  readonly isTls: boolean;
  readonly tls: TlsFacts | null;
  readonly serverName: string | null;
  readonly #stream: Stream;
  readonly #remote: Peer;
  #head: RequestHead | null = null;

  constructor(stream: Stream) {
    const { remote, tls } = stream;
    this.#stream = stream;
    this.#remote = remote;
    this.source = remote.address;
    this.tls = tls;
    this.isTls = tls !== null;
    this.scheme = this.isTls ? 'https' : 'http';
    this.serverName = tls?.serverName ?? null;
  }

  /** From now on it is about this request. */
  about(head: RequestHead): void {
    this.#head = head;
  }

  get sourcePort(): number {
    return this.#remote.port;
  }

  get localAddress(): string {
    return this.#stream.local.address;
  }

  get localPort(): number {
    return this.#stream.local.port;
  }

  get method(): string {
    return this.#head?.method ?? '';
  }

  get host(): string {
    return this.#head?.host ?? '';
  }

  get path(): string {
    return this.#head?.path ?? '';
  }

  get query(): string {
    return this.#head?.query ?? '';
  }

  header(name: string): string | null {
    return this.#head ? headerOf(this.#head.fields, name) : null;
  }

  cookie(name: string): string | null {
    return this.#head ? cookieOf(this.#head.fields, name) : null;
  }
}
