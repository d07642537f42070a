/**
 * Writes the head to send on into a buffer of the caller's. Kept lines are copied in runs: most heads are one or two
 * copies. What belongs to the connection that a head came over stays behind (RFC 9110 section 7.6.1).
 */
import assert from 'node:assert/strict';
import {
  COLON,
  CONTENT_LENGTH,
  CR,
  FORWARDED_FOR,
  FORWARDED_PROTO,
  HOP_BY_HOP,
  HOST,
  kindOf,
  LF,
  lineStart,
  nameEnd,
  SP,
  TRANSFER_ENCODING,
} from './fields.ts';
import type { Fields } from './fields.ts';
import { TARGET } from './head.ts';
import type { RequestHead, ResponseHead } from './head.ts';
import {
  addedName,
  addedValue,
  addLine,
  applyEdits,
  beginEdits,
  editBytes,
  fate,
  fieldContent,
  isAdded,
  KEPT,
  REPLACED,
  replacedValue,
} from './headEdits.ts';
import type { HeaderEdit } from './headEdits.ts';

export type RequestChanges = {
  /** Path and query to send; null: as they came. */
  target: string | null;
  /** Host for a request of HTTP/1.0 that names none. */
  defaultHost: string;
  /** Passes the Upgrade to `websocket` on. */
  upgrade: boolean;
  /** The client's address, added as an X-Forwarded-For line of its own behind those that came; null: none is added. */
  forwardedFor: string | null;
  /** X-Forwarded-For lines that came are left out. */
  replaceForwardedFor?: boolean;
  /** Becomes the only X-Forwarded-Proto. This and X-Forwarded-For stay away where an edit sets or adds one. */
  forwardedProto: 'http' | 'https';
  edits: readonly HeaderEdit[];
  /** Lines of the engine's own, each with its CRLF. */
  extra?: string;
};

export type ResponseChanges = {
  dropTransferEncoding: boolean;
  dropContentLength: boolean;
  edits: readonly HeaderEdit[];
  /** Lines of the engine's own, each with its CRLF. */
  extra: string;
};

/** Bytes of all constant parts together, and some more. */
const CONSTANT_BYTES = 256;

const PROTO_LINE = { http: 'X-Forwarded-Proto: http\r\n', https: 'X-Forwarded-Proto: https\r\n' };

/** Writes from `at`. Returns where it ends; -1 if it doesn't fit, and nothing is written. */
export const writeRequestHead = (out: Buffer, at: number, head: RequestHead, changes: RequestChanges): number => {
  const { fields } = head;
  const { edits, extra = '', target } = changes;
  const isEdited = edits.length > 0;
  // Of HTTP/1.1 and in origin form: the request line can stay as it is, and Host is among the fields.
  const isVerbatim = target === null && head.minor === 1 && head.authority === null;
  const line = isVerbatim ? '' : `${head.method} ${target === null ? head.target : safeTarget(target)} HTTP/1.1\r\n`;
  // RFC 9112 section 3.2: the target's authority goes before the Host field, and HTTP/1.1 has always one.
  let host = head.authority ?? (head.hostField === -1 ? changes.defaultHost : null);
  let { forwardedFor } = changes;
  let proto = PROTO_LINE[changes.forwardedProto];
  let drop = (1 << HOP_BY_HOP) | (1 << FORWARDED_PROTO);
  if (head.authority !== null) drop |= 1 << HOST;
  if (changes.replaceForwardedFor === true) drop |= 1 << FORWARDED_FOR;
  let size = lineStart(fields, fields.count) - fields.start + line.length + extra.length + CONSTANT_BYTES;
  if (host !== null) size += host.length;
  if (forwardedFor !== null) size += forwardedFor.length;
  if (isEdited) {
    beginEdits(fields);
    if (host !== null) addLine('Host', host);
    host = null;
    applyEdits(fields, edits);
    if (isAdded('x-forwarded-proto')) proto = '';
    if (isAdded('x-forwarded-for')) forwardedFor = null;
    size += editBytes(fields);
  }
  if (out.length - at < size) return -1;

  if (!isVerbatim) at += out.write(line, at, 'latin1');
  if (host !== null) at = writeLine(out, at, 'Host', host);
  at = writeFields(out, at, fields, isVerbatim ? fields.start : lineStart(fields, 0), drop, isEdited);
  if (forwardedFor !== null) at = writeLine(out, at, 'X-Forwarded-For', fieldContent(forwardedFor));
  if (proto !== '') at = writeText(out, at, proto);
  if (changes.upgrade) {
    // Never h2c, whose requests nobody could follow.
    assert.equal(head.upgrade, 'websocket');
    at += out.write('Connection: Upgrade\r\nUpgrade: websocket\r\n', at, 'latin1');
  } else if (head.trailers) {
    // RFC 9110 section 10.1.4: trailers are passed on as they come; codings would be between us and the server.
    at += out.write('TE: trailers\r\nConnection: TE\r\n', at, 'latin1');
  }
  return writeEnd(out, at, extra);
};

/** Writes from `at`. Returns where it ends; -1 if it doesn't fit, and nothing is written. */
export const writeResponseHead = (out: Buffer, at: number, head: ResponseHead, changes: ResponseChanges): number => {
  const { fields, status } = head;
  const { bytes, start } = fields;
  const { edits, extra } = changes;
  const isEdited = edits.length > 0;
  // RFC 9112 section 4: the space is there even without a reason.
  const isVerbatim = head.minor === 1 && bytes[start + 12] === SP;
  let drop = 1 << HOP_BY_HOP;
  // RFC 9110 section 8.6, RFC 9112 section 6.1: neither may be sent with these.
  if (status < 200 || status === 204) drop |= (1 << CONTENT_LENGTH) | (1 << TRANSFER_ENCODING);
  if (changes.dropTransferEncoding) drop |= 1 << TRANSFER_ENCODING;
  if (changes.dropContentLength) drop |= 1 << CONTENT_LENGTH;
  let size = head.length + extra.length + CONSTANT_BYTES;
  if (isEdited) {
    beginEdits(fields);
    applyEdits(fields, edits);
    size += editBytes(fields);
  }
  if (out.length - at < size) return -1;

  if (!isVerbatim) {
    at += out.write(`HTTP/1.1 ${status} `, at, 'latin1');
    at += bytes.copy(out, at, head.reasonStart, head.reasonEnd);
    out[at++] = CR;
    out[at++] = LF;
  }
  at = writeFields(out, at, fields, isVerbatim ? start : lineStart(fields, 0), drop, isEdited);
  return writeEnd(out, at, extra);
};

/** Copies from `from`, which is at the first field or before it, what isn't dropped; then writes what edits added. */
const writeFields = (
  out: Buffer,
  at: number,
  fields: Fields,
  from: number,
  drop: number,
  isEdited: boolean,
): number => {
  const { bytes, count } = fields;
  let runStart = from;
  for (let index = 0; index < count; index++) {
    const start = lineStart(fields, index);
    if (((drop >> kindOf(fields, index)) & 1) === 0 && (!isEdited || fate[index] === KEPT)) {
      if (runStart === -1) runStart = start;
      continue;
    }
    if (runStart !== -1 && runStart < start) at += bytes.copy(out, at, runStart, start);
    runStart = -1;
    if (isEdited && fate[index] === REPLACED && ((drop >> kindOf(fields, index)) & 1) === 0) {
      at += bytes.copy(out, at, start, nameEnd(fields, index));
      at = writeValue(out, at, replacedValue[index]!);
    }
  }
  const end = lineStart(fields, count);
  if (runStart !== -1 && runStart < end) at += bytes.copy(out, at, runStart, end);
  if (isEdited)
    for (let index = 0; index < addedName.length; index++)
      at = writeLine(out, at, addedName[index]!, addedValue[index]!);
  return at;
};

/** Below this many characters a loop costs less than a call into Node. */
const SHORT = 32;

/** All characters are below U+0100. */
const writeText = (out: Buffer, at: number, text: string): number => {
  if (text.length > SHORT) return at + out.write(text, at, 'latin1');
  for (let index = 0; index < text.length; index++) out[at++] = text.charCodeAt(index);
  return at;
};

const writeLine = (out: Buffer, at: number, name: string, value: string): number =>
  writeValue(out, writeText(out, at, name), value);

const writeValue = (out: Buffer, at: number, value: string): number => {
  out[at++] = COLON;
  out[at++] = SP;
  at = writeText(out, at, value);
  out[at++] = CR;
  out[at++] = LF;
  return at;
};

const writeEnd = (out: Buffer, at: number, extra: string): number => {
  if (extra !== '') at = writeText(out, at, extra);
  out[at++] = CR;
  out[at++] = LF;
  return at;
};

/** A rewritten target may have request data in it: what may not stand there is percent-encoded (RFC 3986 section 2.1). */
const safeTarget = (target: string): string => {
  let at = target.startsWith('/') ? 1 : target.length;
  while (at < target.length && TARGET[target.charCodeAt(at)] === 1) at++;
  if (at === target.length && target.startsWith('/')) return target;
  const encoded = Array.from(target, (character) => {
    const code = character.charCodeAt(0);
    if (TARGET[code] === 1) return character;
    const encodedBytes = Buffer.from(character, code > 255 ? 'utf8' : 'latin1');
    return Array.from(encodedBytes, (byte) => `%${byte.toString(16).toUpperCase().padStart(2, '0')}`).join('');
  }).join('');
  return encoded.startsWith('/') || encoded === '*' ? encoded : `/${encoded}`;
};
