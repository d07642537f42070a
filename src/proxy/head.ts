/**
 * Message heads of HTTP/1.1, parsed strictly from the bytes (RFC 9110, RFC 9112): the request line or status line, and
 * what the whole head means. fields.ts reads the fields, headWriter.ts sends a head on.
 *
 * Bytes are judged in their order: however the input is split, a head is accepted or refused alike.
 */
import { hostIn, ORIGIN_FORM, readHost, targetOf } from './authority.ts';
import { meaning, parseFields, scratch } from './fieldParser.ts';
import { byteTable, CR, LF, SP, TOKEN, VALUE, valueEnd, valueStart } from './fields.ts';
import type { Fields } from './fields.ts';
import { keepFields } from './keptHead.ts';

/** Longest request line: browsers and servers agree on about 8,000 bytes. */
const MAX_LINE_BYTES = 8 * 1024;
/** Longest head, request line included: HAProxy's buffer and Node's own limit are 16 KiB too. */
export const MAX_HEAD_BYTES = 16 * 1024;

export type Framing = 'none' | 'length' | 'chunked' | 'untilClose';

/** `more`: the head isn't complete. A number: the status to refuse it with (502 for a response). */
export type Parsed<T> = T | 'more' | number;

const SLASH = 47;

/**
 * What a target may hold: visible ASCII without `#`. RFC 3986 knows fewer, but browsers send `{`, `|` and others as they
 * are, and HAProxy passes them on.
 */
export const TARGET = byteTable((character, byte) => byte > SP && byte < 127 && character !== '#');

/** A request's head. It has its own copy of the bytes: it can wait, be sent again, and be asked at any time. */
export class RequestHead {
  readonly fields: Fields;
  /** Bytes of the input that it took, with empty lines before it and the one at its end. */
  readonly length: number;
  readonly method: string;
  /** 0 for HTTP/1.0, 1 for HTTP/1.1. */
  readonly minor: 0 | 1;
  /** The request target as it came, in `fields.bytes`. */
  readonly targetStart: number;
  readonly targetEnd: number;
  /** The authority of an absolute-form target, which replaces the Host field. */
  readonly authority: string | null;
  /** From the target's authority, or else the Host field; in lower case, without port; empty without either. */
  readonly host: string;
  /** Index of the Host field, -1 when HTTP/1.0 has none. */
  readonly hostField: number;
  /** As the field says; -1 without. */
  readonly contentLength: number;
  readonly framing: 'none' | 'length' | 'chunked';
  /** The connection may serve another request after this one. */
  readonly keepAlive: boolean;
  /** The protocol named in Upgrade, if Connection names Upgrade too; in lower case. */
  readonly upgrade: string | null;
  /** TE has `trailers`. */
  readonly trailers: boolean;
  /** Expect: 100-continue. */
  readonly expectsContinue: boolean;
  #target: string | null;
  #query = -2;

  /** Of what `scratch` and `meaning` hold. */
  constructor(
    fields: Fields,
    length: number,
    method: string,
    minor: 0 | 1,
    targetStart: number,
    targetEnd: number,
    target: string | null,
    authority: string | null,
    host: string,
  ) {
    const { contentLength, chunked } = meaning;
    this.fields = fields;
    this.length = length;
    this.method = method;
    this.minor = minor;
    this.targetStart = targetStart;
    this.targetEnd = targetEnd;
    this.authority = authority;
    this.host = host;
    this.hostField = meaning.hostField;
    this.contentLength = contentLength;
    this.framing = chunked ? 'chunked' : contentLength > 0 ? 'length' : 'none';
    this.keepAlive = keepsAlive(minor);
    // RFC 9110 section 7.8: not from HTTP/1.0.
    this.upgrade = minor === 1 && meaning.upgrades ? meaning.upgrade : null;
    this.trailers = minor === 1 && meaning.trailers;
    this.expectsContinue = minor === 1 && meaning.expectsContinue;
    this.#target = target;
  }

  get chunked(): boolean {
    return this.framing === 'chunked';
  }

  /** Path and query, or `*`; of absolute form what follows the authority. */
  get target(): string {
    return (this.#target ??= this.fields.bytes.toString('latin1', this.targetStart, this.targetEnd));
  }

  /** The target without its query, as it was sent. */
  get path(): string {
    const mark = this.#queryMark();
    return mark === -1 ? this.target : this.target.slice(0, mark);
  }

  /** What is behind the `?`; empty without. */
  get query(): string {
    const mark = this.#queryMark();
    return mark === -1 ? '' : this.target.slice(mark + 1);
  }

  #queryMark(): number {
    if (this.#query === -2) this.#query = this.target.indexOf('?');
    return this.#query;
  }
}

export type ResponseHead = {
  /** Over the input itself: valid until the next head is parsed or the input is used for something else. */
  fields: Fields;
  /** Bytes of the input that it took, with the empty line at its end. */
  length: number;
  minor: 0 | 1;
  status: number;
  reasonStart: number;
  reasonEnd: number;
  /** As the field says, also where there is no body; -1 without. */
  contentLength: number;
  /** It has Transfer-Encoding: chunked, also where there is no body. */
  chunked: boolean;
  framing: Framing;
  keepAlive: boolean;
  upgrade: string | null;
};

/** RFC 9112 section 9.3. */
const keepsAlive = (minor: 0 | 1): boolean => !meaning.close && (minor === 1 || meaning.keepAlive);

const METHODS = ['GET', 'POST', 'PUT', 'HEAD', 'DELETE', 'PATCH', 'OPTIONS'];

/** The methods that nearly all requests have need no new string. */
const methodAt = (bytes: Buffer, start: number, end: number): string => {
  for (const method of METHODS) {
    if (method.length !== end - start) continue;
    let index = 0;
    while (index < method.length && bytes[start + index] === method.charCodeAt(index)) index++;
    if (index === method.length) return method;
  }
  return bytes.toString('latin1', start, end);
};

/** What stands where `HTTP/1.1` and CRLF belong: 0 or 1, 2 for another version, 3 for no version, 4 when cut off. */
const versionAt = (bytes: Buffer, at: number, end: number): 0 | 1 | 2 | 3 | 4 => {
  for (let index = 0; index < 10; index++) {
    if (at + index >= end) return 4;
    const byte = bytes[at + index]!;
    const isDigit = byte >= 48 && byte <= 57;
    if (index === 5 || index === 7 ? !isDigit : byte !== 'HTTP/1.1\r\n'.charCodeAt(index)) return 3;
  }
  const minor = bytes[at + 7]! - 48;
  return bytes[at + 5] === 49 && (minor === 0 || minor === 1) ? minor : 2;
};

/** A request head at `at`. Refusals: 400, 405, 414, 431, 501, 505. */
export const parseRequest = (bytes: Buffer, at = 0, end = bytes.length): Parsed<RequestHead> => {
  const limit = Math.min(end, at + MAX_HEAD_BYTES);
  const incomplete = limit === at + MAX_HEAD_BYTES ? 431 : 'more';
  let start = at;
  // RFC 9112 section 2.2: an empty line before the request line is ignored.
  while (start + 1 < limit && bytes[start] === CR && bytes[start + 1] === LF) start += 2;
  if (start + 1 >= limit && (start >= limit || bytes[start] === CR)) return incomplete;

  let next = start;
  while (next < limit && TOKEN[bytes[next]!] === 1) next++;
  if (next - start > MAX_LINE_BYTES) return 400;
  if (next >= limit) return incomplete;
  if (bytes[next] !== SP || next === start) return 400;
  const methodEnd = next;
  const targetStart = ++next;
  while (next < limit && TARGET[bytes[next]!] === 1) next++;
  if (next - start > MAX_LINE_BYTES) return 414;
  if (next >= limit) return incomplete;
  if (bytes[next] !== SP || next === targetStart) return 400;
  const targetEnd = next;
  const minor = versionAt(bytes, targetEnd + 1, limit);
  if (minor === 4) return incomplete;
  if (minor > 1) return minor === 2 ? 505 : 400;

  const headEnd = parseFields(bytes, start, targetEnd + 11, limit);
  if (headEnd <= 0) return headEnd === 0 ? incomplete : -headEnd;
  const method = methodAt(bytes, start, methodEnd);
  // RFC 9110 section 9.3.6: a tunnel to anywhere is no load balancer's business.
  if (method === 'CONNECT') return 405;
  const form =
    bytes[targetStart] === SLASH ? ORIGIN_FORM : targetOf(bytes.toString('latin1', targetStart, targetEnd), method);
  if (form === null) return 400;
  const host = hostOf(bytes, form.authority, minor as 0 | 1);
  if (host === null) return 400;
  const refusal = codingRefusal(minor as 0 | 1);
  if (refusal !== 0) return refusal;
  const fields = keepFields(headEnd);
  const shift = fields.start - start;
  return new RequestHead(
    fields,
    headEnd - at,
    method,
    minor as 0 | 1,
    targetStart + shift,
    targetEnd + shift,
    form.target,
    form.authority,
    host,
  );
};

/** RFC 9112 section 3.2: exactly one Host field in HTTP/1.1, and a valid one; null otherwise. */
const hostOf = (bytes: Buffer, authority: string | null, minor: 0 | 1): string | null => {
  const { hostField } = meaning;
  if (hostField === -1) return minor === 1 ? null : authority === null ? '' : hostIn(authority);
  const host = readHost(bytes, valueStart(scratch, hostField), valueEnd(scratch, hostField));
  return host === null || authority === null ? host : hostIn(authority);
};

/** RFC 9112 sections 6.1 and 6.3: what is wrong with the framing of a request, as a status; 0 for nothing. */
const codingRefusal = (minor: 0 | 1): 0 | 400 | 501 => {
  const { chunked, otherCoding } = meaning;
  if (!chunked && otherCoding === null) return 0;
  // A length beside it, or HTTP/1.0, makes the framing doubtful.
  if (meaning.contentLength !== -1 || minor === 0) return 400;
  if (otherCoding === null) return 0;
  const codings = otherCoding.split(',').map((coding) => coding.trim());
  const areKnowable =
    codings.every((coding) => CODING.test(coding)) && codings.indexOf('chunked') === codings.length - 1;
  return areKnowable ? 501 : 400;
};

/** RFC 9110 section 10.1.4: a transfer coding and perhaps parameters. */
const CODING = /^[\w!#$%&'*+.^`|~-]+(?:[ \t]*;[ \t]*[\w!#$%&'*+.^`|~-]+=(?:[\w!#$%&'*+.^`|~-]+|"[^"\\]*"))*$/;

/** A response head at `at`, for a request of this method. The only refusal is 502. */
export const parseResponse = (
  bytes: Buffer,
  requestMethod: string,
  at = 0,
  end = bytes.length,
): Parsed<ResponseHead> => {
  const limit = Math.min(end, at + MAX_HEAD_BYTES);
  const incomplete = limit === at + MAX_HEAD_BYTES ? 502 : 'more';
  // RFC 9112 section 4: HTTP/1.1, a space, three digits, a space, and a reason that may be empty.
  for (let index = 0; index < 12; index++) {
    if (at + index >= limit) return incomplete;
    const byte = bytes[at + index]!;
    if (index < 9 && index !== 7 ? byte !== 'HTTP/1.1 '.charCodeAt(index) : byte < 48 || byte > 57) return 502;
  }
  const minor = bytes[at + 7]! - 48;
  const status = (bytes[at + 9]! - 48) * 100 + (bytes[at + 10]! - 48) * 10 + bytes[at + 11]! - 48;
  if (minor > 1 || status < 100 || status > 599) return 502;
  let next = at + 12;
  if (next >= limit) return incomplete;
  if (bytes[next] === SP) next++;
  else if (bytes[next] !== CR) return 502;
  const reasonStart = next;
  while (next < limit && VALUE[bytes[next]!] === 1) next++;
  if (next >= limit) return incomplete;
  if (bytes[next] !== CR) return 502;
  if (next + 1 >= limit) return incomplete;
  if (bytes[next + 1] !== LF) return 502;
  const headEnd = parseFields(bytes, at, next + 2, limit);
  if (headEnd <= 0) return headEnd === 0 ? incomplete : 502;
  const { contentLength, chunked } = meaning;
  if (codingRefusal(minor as 0 | 1) !== 0) return 502;
  // RFC 9110 section 8.6, RFC 9112 section 6.1: an interim response has neither, and parsers differ in what they make of it.
  if (status < 200 && (chunked || contentLength > 0)) return 502;
  const bodiless = requestMethod === 'HEAD' || status < 200 || status === 204 || status === 304;
  const framing: Framing = bodiless
    ? 'none'
    : chunked
      ? 'chunked'
      : contentLength === -1
        ? 'untilClose'
        : contentLength === 0
          ? 'none'
          : 'length';
  return {
    fields: scratch,
    length: headEnd - at,
    minor: minor as 0 | 1,
    status,
    reasonStart,
    reasonEnd: next,
    contentLength,
    chunked,
    framing,
    keepAlive: framing !== 'untilClose' && keepsAlive(minor as 0 | 1),
    upgrade: meaning.upgrades ? meaning.upgrade : null,
  };
};
