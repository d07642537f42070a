/**
 * One request of an HTTP/2 connection as a connection of its own: the engine reads a request of HTTP/1.1 from it and
 * writes the response as HTTP/1.1 has it; this translates to and from frames. Rules, retries, timeouts and logs are
 * thereby the engine's, in one place.
 *
 * A body that is cut off on either side is never passed on as complete: towards the engine the stream is then closed
 * with an error before the body's end, towards the client RST_STREAM goes instead of END_STREAM.
 */
import assert from 'node:assert/strict';
import { constants } from 'node:http2';
import type { ServerHttp2Stream } from 'node:http2';
import { translateTrailers } from './http2Checks.ts';
import type { TranslatedRequest } from './http2Checks.ts';
import { closeWhenSent, Http2Response, isSent, resetStream } from './http2Response.ts';
import type { Peer, Stream, StreamUser, TlsFacts } from './stream.ts';

const { NGHTTP2_CANCEL, NGHTTP2_INTERNAL_ERROR, NGHTTP2_NO_ERROR, NGHTTP2_PROTOCOL_ERROR } = constants;

/** A chunk of the usual size with its framing fits in; larger ones are rare and get memory of their own. */
const SCRATCH_BYTES = 64 * 1024;
/** What is told is valid during the call only, so that all streams of a thread can share this. */
const SCRATCH = Buffer.allocUnsafe(SCRATCH_BYTES);

/** What all requests of a connection have in common. */
export type Http2Peers = { remote: Peer; local: Peer; tls: TlsFacts | null };

export type Http2StreamHost = {
  /** Something was asked of Node's loop. */
  wakeNode(): void;
  /** The request turned out to be malformed in what followed its head. */
  onMalformed(reason: string): void;
  onStreamClosed(): void;
};

export class Http2RequestStream implements Stream {
  user: StreamUser | null = null;
  remote: Peer;
  local: Peer;
  readonly tls: TlsFacts | null;
  readonly #h2: ServerHttp2Stream;
  readonly #host: Http2StreamHost;
  readonly #request: TranslatedRequest;
  readonly #response: Http2Response;
  #paused = false;
  #ended = false;
  #finished = false;
  /** Nothing more is told to the user. */
  #gone = false;
  #error: string | null = null;
  /** It was closed from this side. */
  #isOurs = false;

  /** The request's head, until the user has got it. */
  #head: Buffer | null;
  #isReading = false;
  #endIsNext: boolean;
  #receivedBytes = 0;
  #trailers: readonly string[] | null = null;

  constructor(
    h2: ServerHttp2Stream,
    request: TranslatedRequest,
    webSocketKey: string | null,
    peers: Http2Peers,
    host: Http2StreamHost,
  ) {
    this.#h2 = h2;
    this.#host = host;
    this.#request = request;
    this.#response = new Http2Response(h2, request.method, webSocketKey);
    this.remote = peers.remote;
    this.local = peers.local;
    this.tls = peers.tls;
    this.#head = Buffer.from(request.head, 'latin1');
    this.#endIsNext = request.framing === 'none';
    h2.on('drain', this.#onDrain);
    // Its code is told with 'close'.
    h2.on('error', () => {});
    h2.on('aborted', this.#onAborted);
    h2.on('close', this.#onClose);
  }

  get pending(): number {
    return this.#h2.writableLength;
  }

  get unread(): number {
    return this.pending;
  }

  get destroyed(): boolean {
    return this.#gone;
  }

  get ended(): boolean {
    return this.#ended;
  }

  get finished(): boolean {
    return this.#finished;
  }

  /** Tells the user of the request. Once, when it has been set. */
  start(): void {
    if (this.#request.framing === 'length' || this.#request.framing === 'chunked') this.#read();
    this.#tell();
  }

  // Towards the engine: the request.

  #read(): void {
    this.#isReading = true;
    this.#h2.on('data', this.#onBody);
    this.#h2.on('end', this.#onBodyEnd);
    this.#h2.on('trailers', (_headers, _flags, fields: readonly string[]) => {
      this.#trailers = fields;
    });
    if (this.#paused) this.#h2.pause();
  }

  /** What was held back while the user didn't want to hear. */
  #tell = (): void => {
    if (this.#paused || this.#gone) return;
    if (this.#head !== null) {
      const head = this.#head;
      this.#head = null;
      this.user?.onData(head);
    }
    if (this.#endIsNext && !this.#paused && !this.#gone) this.#tellEnd();
  };

  #onBody = (chunk: Buffer): void => {
    if (this.#gone) return;
    // A head that is still held back goes first; the body behind it was paused with it.
    assert(this.#head === null, 'a body before its head');
    this.#receivedBytes += chunk.length;
    const { framing, contentLength } = this.#request;
    // nghttp2 sees to it, too. What is behind the body would be the next request's beginning to the engine.
    if (framing === 'length' && this.#receivedBytes > contentLength) {
      this.#abort('ECONNRESET', NGHTTP2_PROTOCOL_ERROR);
      return;
    }
    if (framing !== 'chunked') {
      this.user?.onData(chunk);
      return;
    }
    const size = `${chunk.length.toString(16)}\r\n`;
    const total = size.length + chunk.length + 2;
    const framed = total <= SCRATCH_BYTES ? SCRATCH : Buffer.allocUnsafe(total);
    let at = framed.write(size, 0, 'latin1');
    at += chunk.copy(framed, at);
    at += framed.write('\r\n', at, 'latin1');
    this.user?.onData(framed.subarray(0, at));
  };

  #onBodyEnd = (): void => {
    if (this.#gone) return;
    const { framing, contentLength } = this.#request;
    if (framing === 'length' ? this.#receivedBytes !== contentLength : this.#h2.closed) {
      // RST_STREAM with NO_ERROR looks like an end too, ours as well. (As does, when the response had ended before, the
      // request's true end: nobody waits for that any more.)
      if (!this.#finished) this.#abort('ECONNRESET', NGHTTP2_PROTOCOL_ERROR);
      if (!this.#finished || framing !== 'tunnel') return;
    }
    this.#endIsNext = true;
    this.#tell();
  };

  #tellEnd(): void {
    this.#endIsNext = false;
    if (this.#request.framing === 'chunked') {
      // With Content-Length there is no place for trailers in HTTP/1.1: they are left out (RFC 9110 section 6.5.1).
      const lines = translateTrailers(this.#trailers ?? []);
      if (typeof lines === 'object') {
        this.#host.onMalformed(lines.reason);
        this.#abort('ECONNRESET', NGHTTP2_PROTOCOL_ERROR);
        return;
      }
      this.user?.onData(Buffer.from(`0\r\n${lines}\r\n`, 'latin1'));
      // The user may have changed its mind on hearing this.
      if (this.#gone) return;
    }
    this.#ended = true;
    this.user?.onEnd();
  }

  pause(): void {
    this.#paused = true;
    if (this.#isReading) this.#h2.pause();
  }

  resume(): void {
    if (!this.#paused || this.#gone) return;
    this.#paused = false;
    if (this.#head !== null || this.#endIsNext) process.nextTick(this.#resumed);
    else if (this.#isReading) this.#h2.resume();
    this.#host.wakeNode();
  }

  #resumed = (): void => {
    this.#tell();
    if (this.#isReading && !this.#paused && !this.#gone) this.#h2.resume();
  };

  // Towards the client: the response.

  write(bytes: Buffer): boolean {
    assert(!this.#finished, 'written after the end');
    // Closed by the client a moment ago: the user is about to hear of it.
    if (this.#gone || this.#h2.closed || this.#h2.destroyed) return true;
    this.#host.wakeNode();
    const goesOn = this.#response.write(bytes);
    if (this.#request.framing === 'tunnel' && !this.#isReading) this.#answerTunnel();
    else if (this.#response.state === 'invalid') this.#abort('EPROTO', NGHTTP2_INTERNAL_ERROR);
    return goesOn;
  }

  /** What the client sends for its tunnel means something only once there is one. */
  #answerTunnel(): void {
    const { state } = this.#response;
    if (state === 'tunnel') this.#read();
    else if (state === 'complete') closeWhenSent(this.#h2);
    else if (state === 'invalid') this.#abort('EPROTO', NGHTTP2_INTERNAL_ERROR);
  }

  end(): void {
    if (this.#finished || this.#gone) return;
    this.#finished = true;
    this.#host.wakeNode();
    const isTunnel = this.#response.state === 'tunnel';
    if (!this.#response.end()) {
      this.#isOurs = true;
      resetStream(this.#h2, NGHTTP2_INTERNAL_ERROR);
    } else if (!isTunnel && !this.#ended) closeWhenSent(this.#h2);
  }

  destroy(): void {
    this.#leave(isSent(this.#h2) ? NGHTTP2_NO_ERROR : NGHTTP2_CANCEL);
  }

  reset(): void {
    this.#leave(NGHTTP2_INTERNAL_ERROR);
  }

  #leave(code: number): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#host.wakeNode();
    if (this.#h2.destroyed) return;
    resetStream(this.#h2, code);
    // RST_STREAM may have to wait for a client that reads nothing. What is in memory doesn't.
    this.#h2.destroy();
  }

  /** Ends it for both sides; the user is told when it is closed. */
  #abort(error: string, code: number): void {
    this.#error ??= error;
    this.#isOurs = true;
    resetStream(this.#h2, code);
    this.#h2.destroy();
  }

  // What happens to the stream.

  #onDrain = (): void => {
    if (!this.#gone) this.user?.onDrain();
  };

  #onAborted = (): void => {
    // By the client, or with the whole connection.
    if (this.#gone || this.#isOurs) return;
    this.#error ??= 'ECONNRESET';
    this.#h2.destroy();
  };

  #onClose = (): void => {
    this.#host.onStreamClosed();
    if (this.#gone) return;
    this.#gone = true;
    if (this.#error === null && !this.#isOurs && this.#h2.rstCode !== NGHTTP2_NO_ERROR) this.#error = 'ECONNRESET';
    this.user?.onClosed(this.#error);
  };
}
