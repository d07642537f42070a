/** What is known of a connection of mode `tcp`: where it comes from and goes to, and its SNI. */
import type { RequestFacts } from './facts.ts';
import type { Stream, TlsFacts } from './stream.ts';

export class StreamFacts implements RequestFacts {
  readonly source: string;
  readonly isTls: boolean;
  readonly tls: TlsFacts | null;
  readonly serverName: string | null;
  readonly method = '';
  readonly host = '';
  readonly path = '';
  readonly query = '';
  readonly #stream: Stream;

  /** `serverName`: of a ClientHello that is passed on unread. */
  constructor(stream: Stream, serverName: string | null) {
    this.#stream = stream;
    this.source = stream.remote.address;
    this.tls = stream.tls;
    this.isTls = this.tls !== null;
    this.serverName = this.tls?.serverName ?? serverName;
  }

  get scheme(): 'http' | 'https' {
    return this.isTls ? 'https' : 'http';
  }

  get localAddress(): string {
    return this.#stream.local.address;
  }

  get localPort(): number {
    return this.#stream.local.port;
  }

  header(): null {
    return null;
  }

  cookie(): null {
    return null;
  }
}
