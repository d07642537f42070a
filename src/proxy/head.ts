/**
 * Message heads of HTTP/1.1, parsed strictly from the bytes (RFC 9110, RFC 9112). Nothing is repaired: what two parsers
 * could read differently is refused, so that no server behind us can be made to see another message than we did.
 * Fields are kept as offsets into the buffer; strings are made only of what routing looks at.
 */

/** Longest request line: browsers and servers agree on about 8,000 bytes. */
export const MAX_LINE_BYTES = 8 * 1024;
/** Longest head, request line included: HAProxy's buffer and Node's own limit are 16 KiB too. */
export const MAX_HEAD_BYTES = 16 * 1024;
/** Fields of one head: HAProxy's tune.http.maxhdr is 101. */
export const MAX_FIELDS = 100;
/** Digits of a Content-Length: 15 stay exact in a double and are a petabyte. */
const MAX_LENGTH_DIGITS = 15;

/** Offsets of one field: name start, name end, value start, value end (trimmed), line end (behind its CRLF). */
const OFFSETS = 5;

export type Framing = 'none' | 'length' | 'chunked' | 'untilClose';

export type Fields = {
  /** The buffer that the offsets point into. */
  bytes: Buffer;
  offsets: Int32Array;
  count: number;
};

type Common = {
  fields: Fields;
  /** 0 for HTTP/1.0, 1 for HTTP/1.1. */
  minor: 0 | 1;
  /** Bytes of the head, its empty line included. */
  length: number;
  contentLength: number;
  chunked: boolean;
  /** The connection may serve another message after this one. */
  keepAlive: boolean;
  /** Indexes of fields that belong to this connection only and must not be passed on. */
  hopByHop: boolean[];
  /** The protocol named in Upgrade, if Connection names Upgrade too; in lower case. */
  upgrade: string | null;
};

export type RequestHead = Common & {
  method: string;
  /** Offsets of the request target. */
  targetStart: number;
  targetEnd: number;
  /** Origin form, or `*`; of absolute form what follows the authority. */
  path: string;
  /** From the target's authority, or else the Host field; in lower case, without port. */
  host: string;
  /** The authority of an absolute-form target, which replaces the Host field. */
  authority: string | null;
  /** Index of the Host field, -1 when HTTP/1.0 has none. */
  hostField: number;
  framing: 'none' | 'length' | 'chunked';
};

export type ResponseHead = Common & { status: number; reasonStart: number; reasonEnd: number; framing: Framing };

/** `more`: the head isn't complete. A number: the status to refuse it with (502 for a response). */
export type Parsed<T> = T | 'more' | number;

const CR = 13;
const LF = 10;
const SP = 32;
const HTAB = 9;
const COLON = 58;

const table = (allowed: (byte: number) => boolean): Uint8Array =>
  Uint8Array.from({ length: 256 }, (_, byte) => (allowed(byte) ? 1 : 0));
const inText = (characters: string) => (byte: number) => characters.includes(String.fromCharCode(byte));

/** RFC 9110 section 5.6.2: tchar. */
export const TOKEN = table((byte) => /[A-Za-z0-9]/.test(String.fromCharCode(byte)) || inText("!#$%&'*+-.^_`|~")(byte));
/** RFC 9110 section 5.5: field-vchar, and white space within. obs-text is passed on as it is. */
const VALUE = table((byte) => byte === HTAB || (byte >= SP && byte !== 127));
/** What a target may hold: visible ASCII without `#`, and without what RFC 3986 never allows unencoded but clients send. */
const TARGET = table((byte) => byte > SP && byte < 127 && !inText('#<>"\\^`{|}')(byte));
/** RFC 3986 section 3.2: host and port. */
const AUTHORITY = table((byte) => /[A-Za-z0-9]/.test(String.fromCharCode(byte)) || inText("-._~!$&'()*+,;=:[]%")(byte));

const equalsLower = (bytes: Buffer, start: number, end: number, lower: string): boolean => {
  if (end - start !== lower.length) return false;
  for (let index = 0; index < lower.length; index++) {
    const byte = bytes[start + index]!;
    if ((byte >= 65 && byte <= 90 ? byte | 0x20 : byte) !== lower.charCodeAt(index)) return false;
  }
  return true;
};

export const nameIs = (fields: Fields, index: number, lower: string): boolean =>
  equalsLower(fields.bytes, fields.offsets[index * OFFSETS]!, fields.offsets[index * OFFSETS + 1]!, lower);

export const valueOf = (fields: Fields, index: number): string =>
  fields.bytes.toString('latin1', fields.offsets[index * OFFSETS + 2], fields.offsets[index * OFFSETS + 3]);

export const nameOf = (fields: Fields, index: number): string =>
  fields.bytes.toString('latin1', fields.offsets[index * OFFSETS], fields.offsets[index * OFFSETS + 1]);

export const lineStart = (fields: Fields, index: number): number => fields.offsets[index * OFFSETS]!;
export const lineEnd = (fields: Fields, index: number): number => fields.offsets[index * OFFSETS + 4]!;

/** Reads the fields from `start`. Returns the negative of the offset behind the empty line, 'more', or a status. */
const parseFields = (bytes: Buffer, start: number, fields: Fields): number | 'more' => {
  let at = start;
  for (;;) {
    if (at >= bytes.length) return 'more';
    const first = bytes[at]!;
    if (first === CR) {
      if (at + 1 >= bytes.length) return 'more';
      return bytes[at + 1] === LF ? -(at + 2) : 400;
    }
    if (fields.count >= MAX_FIELDS) return 431;
    const nameStart = at;
    // An obs-fold, a space before the colon, an empty name: none of these is a token.
    while (at < bytes.length && TOKEN[bytes[at]!] === 1) at++;
    if (at >= bytes.length) return 'more';
    if (bytes[at] !== COLON || at === nameStart) return 400;
    const nameEnd = at++;
    while (at < bytes.length && (bytes[at] === SP || bytes[at] === HTAB)) at++;
    const valueStart = at;
    while (at < bytes.length && VALUE[bytes[at]!] === 1) at++;
    if (at >= bytes.length) return 'more';
    if (bytes[at] !== CR) return 400;
    if (at + 1 >= bytes.length) return 'more';
    if (bytes[at + 1] !== LF) return 400;
    let valueEnd = at;
    while (valueEnd > valueStart && (bytes[valueEnd - 1] === SP || bytes[valueEnd - 1] === HTAB)) valueEnd--;
    at += 2;
    const base = fields.count++ * OFFSETS;
    fields.offsets[base] = nameStart;
    fields.offsets[base + 1] = nameEnd;
    fields.offsets[base + 2] = valueStart;
    fields.offsets[base + 3] = valueEnd;
    fields.offsets[base + 4] = at;
  }
};

type Meaning = {
  hopByHop: boolean[];
  contentLength: number;
  transferEncoding: string | null;
  connectionTokens: string[];
  upgrade: string | null;
  hostField: number;
};

/** What fields say about the connection and the framing. A number is the status to refuse the head with. */
const interpret = (fields: Fields): Meaning | 400 => {
  const meaning: Meaning = {
    hopByHop: [],
    contentLength: -1,
    transferEncoding: null,
    connectionTokens: [],
    upgrade: null,
    hostField: -1,
  };
  for (let index = 0; index < fields.count; index++) {
    const length = fields.offsets[index * OFFSETS + 1]! - fields.offsets[index * OFFSETS]!;
    // Most fields differ from all of these by their length already.
    switch (length) {
      case 2:
        if (nameIs(fields, index, 'te')) meaning.hopByHop[index] = true;
        break;
      case 4:
        if (nameIs(fields, index, 'host')) {
          if (meaning.hostField !== -1) return 400;
          meaning.hostField = index;
        }
        break;
      case 7:
        if (nameIs(fields, index, 'upgrade')) {
          meaning.hopByHop[index] = true;
          meaning.upgrade = valueOf(fields, index).toLowerCase();
        }
        break;
      case 10:
        if (nameIs(fields, index, 'connection')) {
          meaning.hopByHop[index] = true;
          for (const token of valueOf(fields, index).split(','))
            meaning.connectionTokens.push(token.trim().toLowerCase());
        } else if (nameIs(fields, index, 'keep-alive')) meaning.hopByHop[index] = true;
        break;
      case 14:
        if (nameIs(fields, index, 'content-length')) {
          const value = valueOf(fields, index);
          // RFC 9112 section 6.3: repeated or listed lengths may be refused even where they agree; llhttp does too.
          if (meaning.contentLength !== -1 || !/^\d+$/.test(value) || value.length > MAX_LENGTH_DIGITS) return 400;
          meaning.contentLength = Number(value);
        }
        break;
      case 16:
        if (nameIs(fields, index, 'proxy-connection')) meaning.hopByHop[index] = true;
        break;
      case 17:
        if (nameIs(fields, index, 'transfer-encoding')) {
          if (meaning.transferEncoding !== null) return 400;
          meaning.transferEncoding = valueOf(fields, index).toLowerCase();
        }
        break;
    }
  }
  if (meaning.connectionTokens.length > 0) removeNamedFields(fields, meaning);
  return meaning;
};

/** Fields that a peer may not have removed by naming them in Connection. */
const NOT_REMOVABLE = new Set([
  'host',
  'content-length',
  'transfer-encoding',
  'x-forwarded-for',
  'x-forwarded-proto',
  'close',
  'keep-alive',
  'upgrade',
]);

/** RFC 9110 section 7.6.1: fields named in Connection end here. */
const removeNamedFields = (fields: Fields, meaning: Meaning): void => {
  for (const token of meaning.connectionTokens) {
    if (token === '' || NOT_REMOVABLE.has(token)) continue;
    for (let index = 0; index < fields.count; index++) if (nameIs(fields, index, token)) meaning.hopByHop[index] = true;
  }
};

const keepsAlive = (minor: 0 | 1, tokens: string[]): boolean =>
  minor === 1 ? !tokens.includes('close') : tokens.includes('keep-alive') && !tokens.includes('close');

/** Heads are parsed one at a time, so their offsets are gathered in one place and only what was used is kept. */
const SCRATCH = new Int32Array(MAX_FIELDS * OFFSETS);

const newFields = (bytes: Buffer): Fields => ({ bytes, offsets: SCRATCH, count: 0 });

const keepUsed = (fields: Fields): void => {
  fields.offsets = SCRATCH.slice(0, fields.count * OFFSETS);
};

/** `HTTP/1.0` or `HTTP/1.1` at an offset; null for anything else. */
const versionAt = (bytes: Buffer, at: number): 0 | 1 | null => {
  if (bytes.toString('latin1', at, at + 7) !== 'HTTP/1.') return null;
  const digit = bytes[at + 7];
  return digit === 49 ? 1 : digit === 48 ? 0 : null;
};

/** As much as has come of `HTTP/1.1` and its CRLF. */
const VERSION_PREFIX = /^(?:H|HT|HTT|HTTP|HTTP\/|HTTP\/\d|HTTP\/\d\.|HTTP\/\d\.\d\r?)?$/;

/** A request head at the start of `bytes`. Refusals: 400, 405, 414, 431, 501, 505. */
export const parseRequest = (bytes: Buffer): Parsed<RequestHead> => {
  let start = 0;
  // RFC 9112 section 2.2: an empty line before the request line is ignored.
  while (bytes[start] === CR && bytes[start + 1] === LF) start += 2;
  if (bytes[start] === CR && start + 1 >= bytes.length) return 'more';
  let at = start;
  while (at < bytes.length && TOKEN[bytes[at]!] === 1) at++;
  if (at >= bytes.length) return at - start > MAX_LINE_BYTES ? 400 : 'more';
  if (bytes[at] !== SP || at === start) return 400;
  const method = bytes.toString('latin1', start, at);
  const targetStart = ++at;
  while (at < bytes.length && TARGET[bytes[at]!] === 1) at++;
  if (at - start > MAX_LINE_BYTES) return 414;
  if (at >= bytes.length) return 'more';
  if (bytes[at] !== SP || at === targetStart) return 400;
  const targetEnd = at++;
  if (bytes.length < at + 10) return VERSION_PREFIX.test(bytes.toString('latin1', at)) ? 'more' : 400;
  const minor = versionAt(bytes, at);
  if (minor === null) return /^HTTP\/\d\.\d\r\n$/.test(bytes.toString('latin1', at, at + 10)) ? 505 : 400;
  if (bytes[at + 8] !== CR || bytes[at + 9] !== LF) return 400;
  const fields = newFields(bytes);
  const end = parseFields(bytes, at + 10, fields);
  if (end === 'more') return bytes.length > MAX_HEAD_BYTES ? 431 : 'more';
  if (end > 0) return end;
  const length = -end;
  if (length > MAX_HEAD_BYTES) return 431;
  keepUsed(fields);
  const meaning = interpret(fields);
  if (typeof meaning === 'number') return meaning;
  if (method === 'CONNECT') return 405;
  const target = targetOf(bytes, targetStart, targetEnd, method);
  if (target === null) return 400;
  const hostText = meaning.hostField === -1 ? null : valueOf(fields, meaning.hostField);
  // RFC 9112 section 3.2: exactly one Host field in HTTP/1.1, and a valid one.
  if (minor === 1 && hostText === null) return 400;
  if (hostText !== null && !validAuthority(hostText)) return 400;
  const { transferEncoding, contentLength } = meaning;
  if (transferEncoding !== null) {
    // RFC 9112 section 6.1: a length beside it, or HTTP/1.0, makes the framing doubtful.
    if (contentLength !== -1 || minor === 0) return 400;
    if (transferEncoding !== 'chunked') return transferEncoding.endsWith('chunked') ? 501 : 400;
  }
  const upgrade = minor === 1 && meaning.connectionTokens.includes('upgrade') ? meaning.upgrade : null;
  return {
    fields,
    minor,
    length,
    method,
    targetStart,
    targetEnd,
    path: target.path,
    authority: target.authority,
    host: withoutPort(target.authority ?? hostText ?? ''),
    hostField: meaning.hostField,
    contentLength,
    chunked: transferEncoding !== null,
    framing: transferEncoding !== null ? 'chunked' : contentLength > 0 ? 'length' : 'none',
    keepAlive: keepsAlive(minor, meaning.connectionTokens),
    hopByHop: meaning.hopByHop,
    upgrade,
  };
};

/** RFC 9112 section 3.2: origin form, absolute form, or `*` for OPTIONS. */
const targetOf = (
  bytes: Buffer,
  start: number,
  end: number,
  method: string,
): { path: string; authority: string | null } | null => {
  const text = bytes.toString('latin1', start, end);
  if (text.startsWith('/')) return { path: text, authority: null };
  if (text === '*') return method === 'OPTIONS' ? { path: text, authority: null } : null;
  const match = /^https?:\/\/([^/?]+)([/?].*)?$/i.exec(text);
  if (!match || !validAuthority(match[1]!) || match[1]!.includes('@')) return null;
  // RFC 9112 section 3.2.4: OPTIONS without a path is about the server as a whole.
  const rest = match[2] ?? (method === 'OPTIONS' ? '*' : '/');
  return { path: rest.startsWith('?') ? `/${rest}` : rest, authority: match[1]! };
};

const validAuthority = (text: string): boolean => {
  for (let index = 0; index < text.length; index++) if (AUTHORITY[text.charCodeAt(index)] !== 1) return false;
  return /^(?:\[[0-9a-fA-F:.]+\]|[^:[\]]*)(?::\d*)?$/.test(text);
};

const withoutPort = (authority: string): string => authority.replace(/:\d*$/, '').toLowerCase();

/** A response head at the start of `bytes`, for a request of this method. The only refusal is 502. */
export const parseResponse = (bytes: Buffer, requestMethod: string): Parsed<ResponseHead> => {
  // "HTTP/1.1 200" and CRLF at the least.
  if (bytes.length < 14)
    return 'HTTP/1.'.startsWith(bytes.toString('latin1', 0, Math.min(7, bytes.length))) ? 'more' : 502;
  const minor = versionAt(bytes, 0);
  if (minor === null || bytes[8] !== SP) return 502;
  const digits = bytes.toString('latin1', 9, 12);
  if (!/^[1-5]\d\d$/.test(digits)) return 502;
  const status = Number(digits);
  let at = 12;
  if (bytes[at] === SP) at++;
  else if (bytes[at] !== CR) return 502;
  const reasonStart = at;
  while (at < bytes.length && VALUE[bytes[at]!] === 1) at++;
  if (at + 1 >= bytes.length) return bytes.length > MAX_HEAD_BYTES ? 502 : 'more';
  if (bytes[at] !== CR || bytes[at + 1] !== LF) return 502;
  const reasonEnd = at;
  const fields = newFields(bytes);
  const end = parseFields(bytes, at + 2, fields);
  if (end === 'more') return bytes.length > MAX_HEAD_BYTES ? 502 : 'more';
  if (end > 0) return 502;
  keepUsed(fields);
  const meaning = interpret(fields);
  if (typeof meaning === 'number') return 502;
  const { transferEncoding, contentLength } = meaning;
  if (transferEncoding !== null && (contentLength !== -1 || minor === 0 || transferEncoding !== 'chunked')) return 502;
  const bodiless = requestMethod === 'HEAD' || status < 200 || status === 204 || status === 304;
  const framing: Framing = bodiless
    ? 'none'
    : transferEncoding !== null
      ? 'chunked'
      : contentLength === -1
        ? 'untilClose'
        : contentLength === 0
          ? 'none'
          : 'length';
  return {
    fields,
    minor,
    length: -end,
    status,
    reasonStart,
    reasonEnd,
    contentLength,
    chunked: transferEncoding !== null,
    framing,
    keepAlive: framing !== 'untilClose' && keepsAlive(minor, meaning.connectionTokens),
    hopByHop: meaning.hopByHop,
    upgrade: meaning.connectionTokens.includes('upgrade') ? meaning.upgrade : null,
  };
};

export type HeadChanges = {
  /** Names (lower case) of fields that are left out. */
  without?: readonly string[];
  /** Lines to add, each with its CRLF. */
  add: string;
};

const X_FORWARDED_PROTO = 'x-forwarded-proto';

/** The head to send to a server: same method and target, without what was meant for this hop. */
export const requestHeadFor = (
  head: RequestHead,
  changes: { clientAddress: string; scheme: string; upgrade: boolean; defaultHost: string },
): Buffer => {
  // RFC 9112 section 3.2: the target's authority goes before the Host field, and HTTP/1.1 has always one.
  const hostName = head.authority ?? (head.hostField === -1 ? changes.defaultHost : null);
  const host = hostName === null ? '' : `Host: ${hostName}\r\n`;
  const connection = changes.upgrade ? `Connection: Upgrade\r\nUpgrade: ${head.upgrade}\r\n` : '';
  const line = `${head.method} ${head.path} HTTP/1.1\r\n${host}`;
  const extra = `X-Forwarded-For: ${changes.clientAddress}\r\nX-Forwarded-Proto: ${changes.scheme}\r\n${connection}\r\n`;
  const drop = (index: number) =>
    head.hopByHop[index] === true ||
    (index === head.hostField && head.authority !== null) ||
    nameIs(head.fields, index, X_FORWARDED_PROTO);
  return assemble(line, head.fields, drop, extra);
};

/** The head to send to a client. `extra` are lines of our own, with their CRLF. */
export const responseHeadFor = (head: ResponseHead, extra: string, dropTransferEncoding: boolean): Buffer => {
  const reason = head.fields.bytes.toString('latin1', head.reasonStart, head.reasonEnd);
  const drop = (index: number) =>
    head.hopByHop[index] === true || (dropTransferEncoding && nameIs(head.fields, index, 'transfer-encoding'));
  return assemble(`HTTP/1.1 ${head.status} ${reason}\r\n`, head.fields, drop, `${extra}\r\n`);
};

/** Copies runs of kept lines whole: most heads are one or two copies. */
const assemble = (first: string, fields: Fields, drop: (index: number) => boolean, last: string): Buffer => {
  const { count, bytes } = fields;
  const size = first.length + last.length + (count === 0 ? 0 : lineEnd(fields, count - 1) - lineStart(fields, 0));
  const out = Buffer.allocUnsafe(size);
  let at = out.write(first, 0, 'latin1');
  let index = 0;
  while (index < count) {
    if (drop(index)) {
      index++;
      continue;
    }
    const from = lineStart(fields, index);
    while (index < count && !drop(index)) index++;
    at += bytes.copy(out, at, from, lineEnd(fields, index - 1));
  }
  at += out.write(last, at, 'latin1');
  return out.subarray(0, at);
};
