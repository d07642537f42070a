/**
 * What RFC 9113 section 8 asks of a request before it may be made one of HTTP/1.1. The head that comes out is strictly
 * valid: no value can bring a line of its own, and the framing is ours alone. nghttp2 checks much of this too; the
 * translation doesn't rest on that.
 */
import { isAuthority } from './authority.ts';
import { HOP_BY_HOP, kindOf, nameOf, valueOf } from './fields.ts';
import type { ResponseHead } from './head.ts';

/** `kind: 'malformed'` is a stream error (section 8.1.1); a status is said to the client. */
export type Refusal = { kind: 'malformed'; reason: string } | { kind: 'status'; status: number; reason: string };

export type TranslatedRequest = {
  kind: 'request';
  method: string;
  /** The whole head, in latin1. */
  head: string;
  /** Of the body that follows. `tunnel`: none, and raw bytes once the other side has switched protocols. */
  framing: 'none' | 'length' | 'chunked' | 'tunnel';
  /** Bytes that DATA must bring; -1 when not declared. */
  contentLength: number;
};

/** Digits of a Content-Length: 15 stay exact in a double. */
const MAX_LENGTH_DIGITS = 15;

/** RFC 9113 section 8.2.1, RFC 9110 section 5.6.2: a token, and no capitals. */
const NAME = /^[!#$%&'*+\-.^_`|~0-9a-z]+$/;
/** RFC 9110 section 5.5, with what RFC 9113 section 8.2.1 asks: no white space at either end, no controls. */
const VALUE = /^(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?$/;
const METHOD = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
/** Visible ASCII without `#`. What of this RFC 3986 doesn't allow either is for the engine to answer. */
const PATH = /^\/[!"$-~]*$/;

/** RFC 9113 section 8.2.2. */
const CONNECTION_SPECIFIC = new Set(['connection', 'proxy-connection', 'keep-alive', 'transfer-encoding', 'upgrade']);
/** Fields that decide about framing or routing mean nothing in a trailer but mischief (RFC 9110 section 6.5.1). */
const NOT_IN_TRAILERS = new Set(['content-length', 'host', 'trailer', 'te']);
/** Methods whose request has a meaning for content: without any, the server is told so (RFC 9110 section 8.6). */
const WITH_CONTENT = new Set(['POST', 'PUT', 'PATCH']);

const malformed = (reason: string): Refusal => ({ kind: 'malformed', reason });

type Pseudo = {
  method: string | null;
  scheme: string | null;
  authority: string | null;
  path: string | null;
  protocol: string | null;
};

/** False when it isn't one of those that a request may have, or comes twice. */
const takePseudo = (pseudo: Pseudo, name: string, value: string): boolean => {
  switch (name) {
    case ':method':
      if (pseudo.method !== null) return false;
      pseudo.method = value;
      return true;
    case ':scheme':
      if (pseudo.scheme !== null) return false;
      pseudo.scheme = value;
      return true;
    case ':authority':
      if (pseudo.authority !== null) return false;
      pseudo.authority = value;
      return true;
    case ':path':
      if (pseudo.path !== null) return false;
      pseudo.path = value;
      return true;
    case ':protocol':
      if (pseudo.protocol !== null) return false;
      pseudo.protocol = value;
      return true;
    default:
      return false;
  }
};

/** Sections 8.2.1 and 8.2.2: what is wrong with a field of a header or trailer section, or null. */
const fieldProblem = (name: string, value: string): string | null =>
  !NAME.test(name)
    ? 'a field name that is no token in lower case'
    : !VALUE.test(value)
      ? `a value of ${name} that no field may have`
      : CONNECTION_SPECIFIC.has(name)
        ? `the connection-specific field ${name}`
        : null;

/**
 * `fields` are names and values in turn, as they came. `webSocketKey` is what an extended CONNECT (RFC 8441) asks the
 * server with, as HTTP/2 has no Sec-WebSocket-Key of its own.
 */
export const translateRequest = (
  fields: readonly string[],
  endStream: boolean,
  webSocketKey: () => string,
): TranslatedRequest | Refusal => {
  const pseudo: Pseudo = { method: null, scheme: null, authority: null, path: null, protocol: null };
  let lines = '';
  let host: string | null = null;
  let cookies: string | null = null;
  let length: string | null = null;
  let areFields = false;
  for (let at = 0; at < fields.length; at += 2) {
    const name = fields[at]!;
    const value = fields[at + 1]!;
    if (name.startsWith(':')) {
      if (areFields) return malformed('a pseudo-header field behind other fields');
      if (!takePseudo(pseudo, name, value)) return malformed('a pseudo-header field that is unknown or repeated');
      continue;
    }
    areFields = true;
    const problem = fieldProblem(name, value);
    if (problem !== null) return malformed(problem);
    switch (name) {
      case 'host':
        if (host !== null) return malformed('more than one Host');
        host = value;
        break;
      case 'cookie':
        // Section 8.2.3.
        cookies = cookies === null ? value : `${cookies}; ${value}`;
        break;
      case 'content-length':
        if (length !== null) return malformed('more than one Content-Length');
        length = value;
        break;
      case 'te':
        // It is about this hop, and what it allows is that of every HTTP/1.1 server that sends trailers.
        if (value.toLowerCase() !== 'trailers') return malformed('TE other than trailers');
        break;
      case 'http2-settings':
        break;
      case 'sec-websocket-key':
        // RFC 8441 section 5: not used there. The server gets one of ours.
        if (pseudo.protocol === null) lines += `${name}: ${value}\r\n`;
        break;
      default:
        lines += `${name}: ${value}\r\n`;
    }
  }
  if (cookies !== null) lines += `cookie: ${cookies}\r\n`;
  return assemble(pseudo, host, length, lines, endStream, webSocketKey);
};

/** RFC 3986 section 6.2: in lower case, without the scheme's own port. */
const normalAuthority = (authority: string, scheme: string | null): string =>
  authority.toLowerCase().replace(scheme === 'http' ? /:(?:80)?$/ : /:(?:443)?$/, '');

/** Section 8.3.1: what the pseudo-header fields must be. */
const assemble = (
  pseudo: Pseudo,
  host: string | null,
  length: string | null,
  lines: string,
  endStream: boolean,
  webSocketKey: () => string,
): TranslatedRequest | Refusal => {
  const { method, scheme, path, protocol } = pseudo;
  if (method === null || !METHOD.test(method)) return malformed('no valid :method');
  if (protocol !== null && method !== 'CONNECT') return malformed(':protocol without CONNECT');
  const authority = pseudo.authority ?? host;
  // Section 8.3.1: without userinfo, which is no part of an authority here.
  if (authority === null || authority === '' || !isAuthority(authority))
    return malformed('no valid :authority or Host');
  if (host !== null && host !== authority && normalAuthority(host, scheme) !== normalAuthority(authority, scheme))
    return malformed('a Host that differs from :authority');
  if (method === 'CONNECT' && protocol === null)
    return scheme === null && path === null
      ? { kind: 'status', status: 405, reason: 'CONNECT' }
      : malformed('CONNECT with :scheme or :path');
  if (scheme !== 'http' && scheme !== 'https') return malformed('no :scheme of http or https');
  if (path === null || !(PATH.test(path) || (path === '*' && method === 'OPTIONS'))) return malformed('no valid :path');
  if (length !== null && (!/^\d+$/.test(length) || length.length > MAX_LENGTH_DIGITS))
    return malformed('a Content-Length that is no length');
  const contentLength = length === null ? -1 : Number(length);
  if (endStream && contentLength > 0) return malformed('a Content-Length above zero without DATA');
  if (protocol !== null) return tunnel(protocol, path, authority, length, lines, endStream, webSocketKey);

  const start = `${method} ${path} HTTP/1.1\r\nhost: ${authority}\r\n${lines}`;
  if (length !== null) {
    const framing = endStream ? 'none' : 'length';
    return { kind: 'request', method, head: `${start}content-length: ${length}\r\n\r\n`, framing, contentLength };
  }
  if (!endStream) {
    const head = `${start}transfer-encoding: chunked\r\n\r\n`;
    return { kind: 'request', method, head, framing: 'chunked', contentLength };
  }
  const none = WITH_CONTENT.has(method) ? 'content-length: 0\r\n' : '';
  return { kind: 'request', method, head: `${start}${none}\r\n`, framing: 'none', contentLength };
};

/** RFC 8441 section 5: WebSocket over one stream, asked of the server as HTTP/1.1 has it (RFC 6455 section 4.1). */
const tunnel = (
  protocol: string,
  path: string,
  authority: string,
  length: string | null,
  lines: string,
  endStream: boolean,
  webSocketKey: () => string,
): TranslatedRequest | Refusal => {
  if (protocol.toLowerCase() !== 'websocket')
    return { kind: 'status', status: 501, reason: 'a :protocol other than websocket' };
  if (endStream || length !== null) return malformed('an extended CONNECT with content or at its end');
  const upgrade = `connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: ${webSocketKey()}\r\n\r\n`;
  const head = `GET ${path} HTTP/1.1\r\nhost: ${authority}\r\n${lines}${upgrade}`;
  return { kind: 'request', method: 'GET', head, framing: 'tunnel', contentLength: -1 };
};

/** Section 8.1: the trailer section as lines of HTTP/1.1, each with its CRLF. */
export const translateTrailers = (fields: readonly string[]): string | Refusal => {
  let lines = '';
  for (let at = 0; at < fields.length; at += 2) {
    const name = fields[at]!;
    const value = fields[at + 1]!;
    const problem = fieldProblem(name, value);
    if (problem !== null) return malformed(`${problem} in trailers`);
    if (NOT_IN_TRAILERS.has(name)) return malformed(`${name} in trailers`);
    lines += `${name}: ${value}\r\n`;
  }
  return lines;
};

/** A response's fields for HTTP/2, names and values in turn behind `:status`: without those of one connection. */
export const responseFields = (head: ResponseHead, status: number): string[] => {
  const result = [':status', String(status)];
  const { fields } = head;
  for (let index = 0; index < fields.count; index++) {
    if (kindOf(fields, index) === HOP_BY_HOP) continue;
    const name = nameOf(fields, index).toLowerCase();
    if (CONNECTION_SPECIFIC.has(name) || name === 'te' || name === 'http2-settings') continue;
    result.push(name, valueOf(fields, index));
  }
  return result;
};

/** Trailer lines of HTTP/1.1 as fields; those that may not stand there are left out. */
export const responseTrailers = (lines: string): Record<string, string[]> => {
  const result: Record<string, string[]> = Object.create(null) as Record<string, string[]>;
  for (const line of lines.split('\r\n')) {
    const colon = line.indexOf(':');
    const name = line.slice(0, Math.max(0, colon)).toLowerCase();
    const value = line.slice(colon + 1).trim();
    if (NOT_IN_TRAILERS.has(name) || fieldProblem(name, value) !== null) continue;
    (result[name] ??= []).push(value);
  }
  return result;
};
