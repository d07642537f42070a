/**
 * The access log as a data-plane worker sees it: one record for each request (mode `http`) or connection (mode `tcp`),
 * written as bytes into a ring of shared memory. The log's own thread reads it, makes the lines and writes them, so that
 * a worker pays for neither text nor disk; a ring that is full takes no more, and counts what it refused.
 */
import { RingWriter } from './accessLogRing.ts';

/** What ended the session (HAProxy's manual, section 8.5, first character). */
export type TerminationCause =
  /** In order. */
  | '-'
  /** The client aborted. */
  | 'C'
  /** The server aborted or refused. */
  | 'S'
  /** The proxy: a limit, a rule that denies, a message that is not valid. */
  | 'P'
  /** Answered by the proxy itself: a redirect, `return`, statistics. */
  | 'L'
  /** A resource of this machine ran out: descriptors, ports, memory. */
  | 'R'
  /** A fault of the proxy's own. */
  | 'I'
  /** The server went down, with `onMarkedDown: shutdownSessions`. */
  | 'D'
  /** A backup's session, ended because a primary came up. */
  | 'U'
  /** An operator. */
  | 'K'
  /** The client's time-out. */
  | 'c'
  /** The server's time-out: `connect`, `queue` or `server`. */
  | 's';

/** How far the session was (second character). */
export type TerminationPhase =
  /** Over. */
  | '-'
  /** Waiting for a complete, valid request head. */
  | 'R'
  /** In the queue. */
  | 'Q'
  /** Connecting to the server. */
  | 'C'
  /** Waiting for the head of the response. */
  | 'H'
  /** Passing data on. */
  | 'D'
  /** Sending the client its last data, the server being done. */
  | 'L'
  /** Tarpitted. */
  | 'T';

/** The stickiness cookie that the client sent (third character): none, of no server, of one that is down, valid, unused. */
export type CookieSent = '-' | 'N' | 'I' | 'D' | 'V' | 'U';
/** What became of the cookie in the response (fourth character): none, inserted, the server's own passed on or deleted. */
export type CookieSet = '-' | 'N' | 'I' | 'P' | 'D';

export type Termination = `${TerminationCause}${TerminationPhase}`;
export type CookieFlags = `${CookieSent}${CookieSet}`;

/**
 * All that one line is made of. Times are milliseconds with fractions, -1 where the session did not get that far. Texts
 * hold one byte a character (latin1), as they were received; what must not stand in a line is escaped later. `log` keeps
 * nothing of a record: one object can serve all requests of a worker.
 */
export type AccessRecord = {
  mode: 'http' | 'tcp';
  /** Wall clock, since 1970: the first byte of the request; in mode tcp the connection's acceptance. */
  startedMs: number;

  /** Th: PROXY header and TLS handshake; 0 from the second request of a connection on. */
  handshakeMs: number;
  /** Ti: from the handshake, or the end of the last response, to the request's first byte. */
  idleMs: number;
  /** TR: from its first byte to the end of its head. */
  requestMs: number;
  /** Tw: in queues. */
  queueMs: number;
  /** Tc: until the connection to the server stood, with retries; 0 on a pooled one. */
  connectMs: number;
  /** Tr: from then to the end of the response's head. */
  responseMs: number;
  /** Ta, from the request's first byte to the response's last one; in mode tcp Tt, from acceptance to the last close. */
  totalMs: number;

  clientAddress: string;
  /** 0 of a Unix socket, whose `clientAddress` is `unix`. */
  clientPort: number;
  frontend: string;
  backend: string;
  /** The last one tried; null when it did not come to that. */
  server: string | null;

  /** 0 when none was sent. */
  status: number;
  /** Sent to the client, heads included. */
  bytesRead: number;
  /** Received from the client, heads included. */
  bytesUploaded: number;
  /** Empty when the request's head was not valid; so in mode tcp. */
  method: string;
  target: string;
  /** `HTTP/1.1` */
  version: string;
  /** The Host field, or :authority. */
  host: string;
  /** Of basic authentication. */
  user: string | null;
  /** Values of the fields that `FrontendLog.requestHeaders` names, in its order. */
  requestHeaders: readonly (string | null)[];
  responseHeaders: readonly (string | null)[];
  requestId: string | null;

  termination: Termination;
  cookies: CookieFlags;
  retries: number;
  /** Sent to another server than the one chosen first. */
  redispatched: boolean;
  /** At the time of logging, this one included: on the whole node, the frontend, the backend and the server. */
  processConnections: number;
  frontendConnections: number;
  backendConnections: number;
  serverConnections: number;
  /** How many stood before it in the server's queue, and in the backend's. */
  serverQueue: number;
  backendQueue: number;

  /** `TLSv1.3`; null without TLS. */
  tlsVersion: string | null;
  tlsCipher: string | null;
  /** SNI */
  serverName: string | null;
};

/** A record of something that did not get anywhere, to be filled in. */
export const newAccessRecord = (mode: 'http' | 'tcp'): AccessRecord => ({
  mode,
  startedMs: 0,
  handshakeMs: 0,
  idleMs: 0,
  requestMs: -1,
  queueMs: -1,
  connectMs: -1,
  responseMs: -1,
  totalMs: 0,
  clientAddress: '',
  clientPort: 0,
  frontend: '',
  backend: '',
  server: null,
  status: 0,
  bytesRead: 0,
  bytesUploaded: 0,
  method: '',
  target: '',
  version: '',
  host: '',
  user: null,
  requestHeaders: [],
  responseHeaders: [],
  requestId: null,
  termination: '--',
  cookies: '--',
  retries: 0,
  redispatched: false,
  processConnections: 0,
  frontendConnections: 0,
  backendConnections: 0,
  serverConnections: 0,
  serverQueue: 0,
  backendQueue: 0,
  tlsVersion: null,
  tlsCipher: null,
  serverName: null,
});

/** What a worker has to know of a frontend's log; plain data for the model. `AccessLogWriter.sink` makes it. */
export type FrontendLog = {
  sink: number;
  only: 'all' | 'errors';
  /** The share of normal records that is written; those with errors all are. */
  sample: number;
  /** In lower case: the engine gives their values with each record. */
  requestHeaders: string[];
  responseHeaders: string[];
};

/** As HAProxy tells them: without error, time-out, retry, redispatch or 5xx. An answer of the proxy's own is normal. */
export const isNormal = (record: AccessRecord): boolean => {
  const cause = record.termination.charCodeAt(0);
  return (
    (cause === DASH || cause === LOCAL) && record.retries === 0 && !record.redispatched && record.status < FIRST_5XX
  );
};

const DASH = 0x2d;
const LOCAL = 0x4c;
const FIRST_5XX = 500;

/** One worker's side. */
export class AccessLog {
  #ring: RingWriter;
  /** By sink: how much of the next normal record has come together. */
  #shares: number[] = [];

  /** `memory` is `AccessLogWriter.memoryOf(worker)`. */
  constructor(memory: SharedArrayBuffer) {
    this.#ring = new RingWriter(memory);
  }

  /** Less than half a microsecond, and it never waits. */
  log(record: AccessRecord, { sink, only, sample }: FrontendLog): void {
    const normal = isNormal(record);
    if (normal) {
      if (only === 'errors') return;
      if (sample < 1) {
        const share = (this.#shares[sink] ?? 0) + sample;
        this.#shares[sink] = share >= 1 ? share - 1 : share;
        if (share < 1) return;
      }
    }
    this.#ring.write(record, sink, normal);
  }
}
