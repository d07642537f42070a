import type { TlsFacts } from './stream.ts';

/** What rules, balancing and stickiness may ask of a request (or, in mode `tcp`, of a connection). */
export type RequestFacts = {
  /** The client's address, without port; IPv4 in its own form. */
  readonly source: string;
  /** The address and port that the client connected to. */
  readonly localAddress: string;
  readonly localPort: number;
  readonly scheme: 'http' | 'https';
  readonly isTls: boolean;
  /** Of the client's own connection; null in the clear. */
  readonly tls: TlsFacts | null;
  /** SNI in lower case; null without. */
  readonly serverName: string | null;
  /** Empty in mode tcp, as are those below. */
  readonly method: string;
  /** In lower case, without port. */
  readonly host: string;
  /** Without query, as it was sent: not decoded, not normalised. */
  readonly path: string;
  /** Behind the `?`; empty without. */
  readonly query: string;
  /** The field's value; several of one name are joined by ", "; null without. The name in lower case. */
  header(name: string): string | null;
  cookie(name: string): string | null;
};
