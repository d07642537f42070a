/**
 * A connection as the engines see it: bytes in, bytes out, back-pressure and half-close. A socket of the reactor is one,
 * plain or with TLS, and so is one request of an HTTP/2 connection.
 */

/** What a stream tells whoever uses it at the moment. Calls never come from within a call to the stream. */
export type StreamUser = {
  /** Valid during the call only: what is kept longer must be copied. */
  onData(bytes: Buffer): void;
  /** All that was written has left; `write` may go on. */
  onDrain(): void;
  /** The other side has said all that it will. It may still listen. */
  onEnd(): void;
  /** It is gone. `error` is an errno's name, or null when it was closed in order. Not told after `destroy` or `reset`. */
  onClosed(error: string | null): void;
  /** While it is paused: the other side has broken the connection. What it sent before can still be read. */
  onHangUp?(): void;
};

/** What is known of the peer of an encrypted stream. */
export type TlsFacts = {
  /** SNI, in lower case; null when the client named none. */
  serverName: string | null;
  /** `TLSv1.3` */
  protocol: string;
  cipher: string;
  alpn: string | null;
  /** Of a client certificate that was verified. */
  client: { subject: string; issuer: string; serial: string; fingerprint: string; notAfter: string } | null;
};

export type Peer = { address: string; port: number };

export type Stream = {
  user: StreamUser | null;
  /** The client as the first proxy saw it: that of a PROXY protocol header goes before the socket's own. */
  remote: Peer;
  local: Peer;
  readonly tls: TlsFacts | null;
  /** Output that the other side has not taken yet, in bytes. */
  readonly pending: number;
  /** That, and what is under way to the other side: by this one tells a peer that reads slowly from a silent one. */
  readonly unread: number;
  readonly destroyed: boolean;
  /** The other side has ended its half. */
  readonly ended: boolean;
  /** We have ended ours. */
  readonly finished: boolean;
  /** Takes all of it: what can't leave at once is copied. False when the writer is to wait for `onDrain`. */
  write(bytes: Buffer): boolean;
  /** Ends our half when what was written has left. */
  end(): void;
  /** No `onData` from now on; `onEnd` waits too. */
  pause(): void;
  resume(): void;
  /** Closes at once; unsent output is lost. */
  destroy(): void;
  /** Closes so that the other side knows that something is missing: TCP's reset, TLS without close_notify, RST_STREAM. */
  reset(): void;
};
