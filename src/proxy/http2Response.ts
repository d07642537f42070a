/** The response to one request of HTTP/2: from the bytes of HTTP/1.1 that the engine writes to frames. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { constants } from 'node:http2';
import type { ServerHttp2Stream, ServerStreamResponseOptions } from 'node:http2';
import { Body } from './framing.ts';
import { nameIs, valueOf } from './fields.ts';
import { parseResponse } from './head.ts';
import type { ResponseHead } from './head.ts';
import { responseFields, responseTrailers } from './http2Checks.ts';

const EMPTY = Buffer.alloc(0);
/** Of the framing behind the last chunk; `Body` bounds trailers itself, before it comes to this. */
const MAX_FRAMING_BYTES = 16 * 1024;
/** How often it is looked whether a response has left whose request hasn't ended: few are, and not for long. */
const SENT_CHECK_MS = 5;
/** RFC 6455 section 1.3. */
const WEBSOCKET_GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';

/** Node's types don't know all that it takes. */
type RespondOptions = ServerStreamResponseOptions & { sendDate: boolean };

/**
 * `head`: the final one isn't there yet. `complete`: END_STREAM was asked for. `tunnel`: raw bytes from here on.
 * `invalid`: a 101 to what was asked otherwise.
 */
type State = 'head' | 'body' | 'complete' | 'tunnel' | 'invalid';

export class Http2Response {
  state: State = 'head';
  readonly #h2: ServerHttp2Stream;
  readonly #method: string;
  readonly #webSocketKey: string | null;
  /** What has come of a head. */
  #input: Buffer = EMPTY;
  #body: Body | null = null;
  /** Of a chunked body: the framing since its last payload, at whose end the trailers are. */
  #framing = '';

  /** The key: with which the server was asked for a WebSocket. */
  constructor(h2: ServerHttp2Stream, method: string, webSocketKey: string | null) {
    this.#h2 = h2;
    this.#method = method;
    this.#webSocketKey = webSocketKey;
  }

  /** Takes all of it, and keeps nothing of the buffer. False when the writer is to wait for 'drain'. */
  write(bytes: Buffer): boolean {
    if (this.state === 'tunnel') return this.#h2.write(Buffer.from(bytes));
    if (this.state !== 'head') return this.#writeBody(bytes);
    this.#input = this.#input.length === 0 ? bytes : Buffer.concat([this.#input, bytes]);
    for (;;) {
      const head = parseResponse(this.#input, this.#method);
      if (head === 'more') {
        this.#input = Buffer.from(this.#input);
        return true;
      }
      // The engine has checked it, or made it.
      assert(typeof head === 'object', 'the engine writes responses of HTTP/1.1');
      const rest = this.#input.subarray(head.length);
      this.#input = rest.length === 0 ? EMPTY : rest;
      if (head.status === 101) return this.#switchProtocols(head, rest);
      if (head.status >= 200) return this.#respond(head, rest);
      this.#h2.additionalHeaders(informational(head));
      if (rest.length === 0) return true;
    }
  }

  /** No more will be written. False when something is missing; the stream is then to be reset. */
  end(): boolean {
    if (this.state === 'tunnel' || this.#body?.framing === 'untilClose') {
      this.#h2.end();
      this.state = 'complete';
    }
    return this.state === 'complete';
  }

  #respond(head: ResponseHead, rest: Buffer): boolean {
    this.#input = EMPTY;
    this.#body = new Body(head.framing, head.contentLength);
    const endStream = this.#body.done;
    this.state = endStream ? 'complete' : 'body';
    const waitForTrailers = head.framing === 'chunked';
    if (waitForTrailers) this.#h2.on('wantTrailers', this.#onWantTrailers);
    // A Date that isn't there isn't the proxy's to add.
    const options: RespondOptions = { endStream, waitForTrailers, sendDate: false };
    this.#h2.respond(responseFields(head, head.status), options);
    // An error page of the engine's has a body also for HEAD: here it ends.
    return endStream || rest.length === 0 ? true : this.#writeBody(rest);
  }

  #writeBody(bytes: Buffer): boolean {
    assert(this.state === 'body', 'written behind the response');
    const body = this.#body!;
    const payload = body.framing === 'chunked' ? this.#payloadOf(body, bytes) : Buffer.from(bytes);
    if (body.framing === 'length') assert.equal(body.take(bytes), bytes.length, 'written behind the response');
    if (!body.done) return payload.length === 0 ? true : this.#h2.write(payload);
    this.state = 'complete';
    if (payload.length === 0) this.#h2.end();
    else this.#h2.end(payload);
    return true;
  }

  #payloadOf(body: Body, bytes: Buffer): Buffer {
    const payload = Buffer.allocUnsafe(bytes.length);
    let length = 0;
    let behind = 0;
    const taken = body.take(bytes, (start, end) => {
      length += bytes.copy(payload, length, start, end);
      behind = end;
    });
    assert(!body.broken && taken === bytes.length, 'not a chunked body, or more behind it');
    if (behind > 0) this.#framing = '';
    this.#framing += bytes.toString('latin1', behind);
    assert(this.#framing.length <= MAX_FRAMING_BYTES, 'framing without end');
    return payload.subarray(0, length);
  }

  #onWantTrailers = (): void => {
    if (this.#h2.closed || this.#h2.destroyed) return;
    // Behind the last payload and the last chunk's line. Without any, an empty DATA frame ends the stream.
    const lines = /^(?:\r\n)?0+(?:;[^\r]*)?\r\n([^]*)\r\n$/.exec(this.#framing)?.[1] ?? '';
    this.#h2.sendTrailers(responseTrailers(lines));
  };

  /** RFC 8441 section 5: 200 stands for 101, and from here on both sides say what they like. */
  #switchProtocols(head: ResponseHead, rest: Buffer): boolean {
    this.#input = EMPTY;
    if (this.#webSocketKey === null || !acceptsKey(head, this.#webSocketKey)) {
      this.state = 'invalid';
      return true;
    }
    this.state = 'tunnel';
    const fields = responseFields(head, 200);
    fields.splice(fields.indexOf('sec-websocket-accept'), 2);
    const options: RespondOptions = { sendDate: false };
    this.#h2.respond(fields, options);
    return rest.length === 0 ? true : this.#h2.write(Buffer.from(rest));
  }
}

/**
 * Section 8.1: a response that is complete before its request ends that with NO_ERROR. But RST_STREAM overtakes what
 * hasn't been sent, so it has to wait for END_STREAM, and no event tells of that.
 */
export const closeWhenSent = (h2: ServerHttp2Stream): void => {
  if (h2.closed || h2.destroyed) return;
  if (isSent(h2)) h2.close(constants.NGHTTP2_NO_ERROR);
  else setTimeout(closeWhenSent, SENT_CHECK_MS, h2);
};

/**
 * RST_STREAM, and no END_STREAM before it: Node's `close` ends the body first, so that a client would take what was cut
 * off for whole where no length tells it otherwise.
 */
export const resetStream = (h2: ServerHttp2Stream, code: number): void => {
  h2.end = () => h2;
  h2.close(code);
};

/** END_STREAM has left. */
export const isSent = (h2: ServerHttp2Stream): boolean => h2.state.localClose === 1;

const informational = (head: ResponseHead): Record<string, string | string[]> => {
  const fields = responseFields(head, head.status);
  const result: Record<string, string | string[]> = Object.create(null) as Record<string, string | string[]>;
  for (let at = 0; at < fields.length; at += 2) {
    const name = fields[at]!;
    const earlier = result[name];
    result[name] = earlier === undefined ? fields[at + 1]! : [earlier, fields[at + 1]!].flat();
  }
  return result;
};

/** RFC 6455 section 4.1: the server has understood what it was asked. */
const acceptsKey = (head: ResponseHead, key: string): boolean => {
  const expected = createHash('sha1').update(`${key}${WEBSOCKET_GUID}`).digest('base64');
  for (let index = 0; index < head.fields.count; index++)
    if (nameIs(head.fields, index, 'sec-websocket-accept')) return valueOf(head.fields, index) === expected;
  return false;
};
