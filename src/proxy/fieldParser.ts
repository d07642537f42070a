/**
 * Parses the fields of a message head (RFC 9110 section 5, RFC 9112 section 5), and takes down what they say about the
 * connection and the framing. Nothing is repaired: what two parsers could read differently is refused.
 */
import {
  COLON,
  CONTENT_LENGTH,
  CR,
  equalsLower,
  FORWARDED_FOR,
  FORWARDED_PROTO,
  HOP_BY_HOP,
  HOST,
  HTAB,
  LF,
  MAX_FIELDS,
  OFFSETS,
  OTHER,
  SP,
  TOKEN,
  TRANSFER_ENCODING,
  VALUE,
} from './fields.ts';
import type { Fields } from './fields.ts';

/** Digits of a Content-Length: 15 stay exact in a double and are a petabyte. */
const MAX_LENGTH_DIGITS = 15;
/** Options in Connection: nobody names more than three, and each is compared with every field. */
const MAX_CONNECTION_OPTIONS = 16;

const COMMA = 44;
const HYPHEN = 45;
const UNDERSCORE = 95;

/** What the fields say about the connection and the framing; of the head that was parsed last. */
type Meaning = {
  /** -1 without. */
  contentLength: number;
  /** The value of Transfer-Encoding is `chunked`, in any case. */
  chunked: boolean;
  /** Any other value, in lower case. */
  otherCoding: string | null;
  close: boolean;
  keepAlive: boolean;
  /** Connection names Upgrade. */
  upgrades: boolean;
  /** The value of the only Upgrade field, in lower case. */
  upgrade: string | null;
  /** Index of the Host field; -1 without. */
  hostField: number;
  trailers: boolean;
  expectsContinue: boolean;
};

/** Heads are parsed one at a time: one place to gather what is found, so that nothing is made a field. */
export const meaning: Meaning = {
  contentLength: -1,
  chunked: false,
  otherCoding: null,
  close: false,
  keepAlive: false,
  upgrades: false,
  upgrade: null,
  hostField: -1,
  trailers: false,
  expectsContinue: false,
};
/** Options in Connection beside those that have a flag. */
let named: string[] = [];
let upgradeFields = 0;

/** Made whole at once, as all offsets are: engines keep arrays that grew by one in another form. */
const newOffsets = (count: number): number[] => Array.from({ length: count * OFFSETS + 1 }, () => 0);

/** The offsets of the head that was parsed last; one who keeps them longer takes a copy. */
export const scratch: Fields = { bytes: Buffer.alloc(0), start: 0, offsets: newOffsets(MAX_FIELDS), count: 0 };

/** What was parsed last, and a view of its memory: input comes mostly in the same buffer. */
let viewed: Buffer | null = null;
let viewedFrom = 0;
let view: DataView = new DataView(new ArrayBuffer(0));

const viewInput = (bytes: Buffer): void => {
  if (bytes === viewed) return;
  viewed = bytes;
  viewedFrom = bytes.byteOffset;
  if (view.buffer !== bytes.buffer) view = new DataView(bytes.buffer);
};

/** The end of what may stand in a value. */
const skipValue = (bytes: Buffer, start: number, end: number): number => {
  let at = start;
  if (end - at > 8) {
    // Four bytes at a time as long as all are from SP to `~`: a borrow or a set high bit tells of any other.
    for (const last = end - 4; at <= last; at += 4) {
      const word = view.getInt32(viewedFrom + at, true);
      if ((((word - 0x20202020) | word | ((word ^ 0x7f7f7f7f) - 0x01010101)) & 0x80808080) !== 0) break;
    }
  }
  while (at < end && VALUE[bytes[at]!] === 1) at++;
  return at;
};

/**
 * Reads the fields from `fieldsStart` of the head at `start` into `scratch` and `meaning`. Returns where the head ends,
 * behind its empty line; or, as a negative number, a status (-400, -431); 0 when `end` comes first.
 */
export const parseFields = (bytes: Buffer, start: number, fieldsStart: number, end: number): number => {
  resetMeaning();
  viewInput(bytes);
  const { offsets } = scratch;
  let at = fieldsStart;
  let count = 0;
  for (;;) {
    if (at >= end) return 0;
    if (bytes[at] === CR) {
      if (at + 1 >= end) return 0;
      if (bytes[at + 1] !== LF) return -400;
      break;
    }
    if (count >= MAX_FIELDS) return -431;
    const nameStart = at;
    // An obs-fold, a space before the colon, an empty name: none of these is a token.
    while (at < end && TOKEN[bytes[at]!] === 1) at++;
    if (at >= end) return 0;
    if (bytes[at] !== COLON || at === nameStart) return -400;
    const nameEnd = at++;
    while (at < end && (bytes[at] === SP || bytes[at] === HTAB)) at++;
    const valueStart = at;
    at = skipValue(bytes, at, end);
    if (at >= end) return 0;
    if (bytes[at] !== CR) return -400;
    if (at + 1 >= end) return 0;
    if (bytes[at + 1] !== LF) return -400;
    let valueEnd = at;
    while (valueEnd > valueStart && (bytes[valueEnd - 1] === SP || bytes[valueEnd - 1] === HTAB)) valueEnd--;
    at += 2;
    const kind = interpret(bytes, nameStart, nameEnd, valueStart, valueEnd, count);
    if (kind < 0) return kind;
    const offset = count++ * OFFSETS;
    offsets[offset] = nameStart;
    offsets[offset + 1] = nameEnd;
    offsets[offset + 2] = valueStart;
    offsets[offset + 3] = valueEnd;
    offsets[offset + 4] = kind;
  }
  offsets[count * OFFSETS] = at;
  scratch.bytes = bytes;
  scratch.start = start;
  scratch.count = count;
  if (named.length > 0) removeNamed(bytes, count);
  return at + 2;
};

const resetMeaning = (): void => {
  meaning.contentLength = -1;
  meaning.chunked = false;
  meaning.otherCoding = null;
  meaning.close = false;
  meaning.keepAlive = false;
  meaning.upgrades = false;
  meaning.upgrade = null;
  meaning.hostField = -1;
  meaning.trailers = false;
  meaning.expectsContinue = false;
  upgradeFields = 0;
  if (named.length > 0) named = [];
};

/** As CGI and WSGI read names, to whom `_` and `-` are one. */
const equalsLoosely = (bytes: Buffer, start: number, end: number, lower: string): boolean => {
  if (end - start !== lower.length) return false;
  for (let index = 0; index < lower.length; index++) {
    const byte = bytes[start + index]!;
    const folded = byte >= 65 && byte <= 90 ? byte | 0x20 : byte === UNDERSCORE ? HYPHEN : byte;
    if (folded !== lower.charCodeAt(index)) return false;
  }
  return true;
};

/** Takes down what a field means; its kind, or -400. */
const interpret = (
  bytes: Buffer,
  nameStart: number,
  nameEnd: number,
  valueStart: number,
  valueEnd: number,
  index: number,
): number => {
  // Most fields differ from all of these by their length already.
  switch (nameEnd - nameStart) {
    case 2:
      if (!equalsLower(bytes, nameStart, nameEnd, 'te')) return OTHER;
      meaning.trailers = hasTrailers(bytes.toString('latin1', valueStart, valueEnd));
      return HOP_BY_HOP;
    case 4:
      if (!equalsLower(bytes, nameStart, nameEnd, 'host')) return OTHER;
      // RFC 9112 section 3.2: no more than one.
      if (meaning.hostField !== -1) return -400;
      meaning.hostField = index;
      return HOST;
    case 6:
      if (equalsLower(bytes, nameStart, nameEnd, 'expect'))
        meaning.expectsContinue = equalsLower(bytes, valueStart, valueEnd, '100-continue');
      return OTHER;
    case 7:
      if (!equalsLower(bytes, nameStart, nameEnd, 'upgrade')) return OTHER;
      // Several are a list of protocols, and we pass on one only.
      meaning.upgrade = ++upgradeFields > 1 ? null : bytes.toString('latin1', valueStart, valueEnd).toLowerCase();
      return HOP_BY_HOP;
    case 10:
      if (equalsLower(bytes, nameStart, nameEnd, 'connection'))
        return readConnection(bytes, valueStart, valueEnd) ? HOP_BY_HOP : -400;
      return equalsLower(bytes, nameStart, nameEnd, 'keep-alive') ? HOP_BY_HOP : OTHER;
    case 14:
      if (equalsLoosely(bytes, nameStart, nameEnd, 'content-length'))
        return readContentLength(bytes, nameStart, valueStart, valueEnd);
      // RFC 7540 section 3.2.1: belongs to an upgrade to h2c, which is not passed on.
      return equalsLower(bytes, nameStart, nameEnd, 'http2-settings') ? HOP_BY_HOP : OTHER;
    case 15:
      if (!equalsLoosely(bytes, nameStart, nameEnd, 'x-forwarded-for')) return OTHER;
      return equalsLower(bytes, nameStart, nameEnd, 'x-forwarded-for') ? FORWARDED_FOR : HOP_BY_HOP;
    case 16:
      return equalsLower(bytes, nameStart, nameEnd, 'proxy-connection') ? HOP_BY_HOP : OTHER;
    case 17:
      if (equalsLoosely(bytes, nameStart, nameEnd, 'transfer-encoding'))
        return readTransferEncoding(bytes, nameStart, valueStart, valueEnd);
      return equalsLoosely(bytes, nameStart, nameEnd, 'x-forwarded-proto') ? FORWARDED_PROTO : OTHER;
    default:
      return OTHER;
  }
};

/** RFC 9110 section 8.6: digits; repeated or listed lengths may be refused even where they agree (RFC 9112 section 6.3). */
const readContentLength = (bytes: Buffer, nameStart: number, start: number, end: number): number => {
  if (bytes[nameStart + 7] !== HYPHEN || meaning.contentLength !== -1) return -400;
  if (start === end || end - start > MAX_LENGTH_DIGITS) return -400;
  let length = 0;
  for (let at = start; at < end; at++) {
    const digit = bytes[at]! - 48;
    if (digit < 0 || digit > 9) return -400;
    length = length * 10 + digit;
  }
  meaning.contentLength = length;
  return CONTENT_LENGTH;
};

/** RFC 9112 section 6.1. Of the white space that may stand behind the coding, llhttp takes tabs for a part of it. */
const readTransferEncoding = (bytes: Buffer, nameStart: number, start: number, end: number): number => {
  if (bytes[nameStart + 8] !== HYPHEN || meaning.chunked || meaning.otherCoding !== null) return -400;
  let at = end;
  while (bytes[at] === SP) at++;
  if (bytes[at] !== CR) return -400;
  meaning.chunked = equalsLower(bytes, start, end, 'chunked');
  if (!meaning.chunked) meaning.otherCoding = bytes.toString('latin1', start, end).toLowerCase();
  return TRANSFER_ENCODING;
};

/** RFC 9110 section 7.6.1: false when more is named than anybody means. */
const readConnection = (bytes: Buffer, start: number, end: number): boolean => {
  for (let at = start; at < end;) {
    let next = at;
    while (next < end && bytes[next] !== COMMA) next++;
    let last = next;
    while (at < last && (bytes[at] === SP || bytes[at] === HTAB)) at++;
    while (last > at && (bytes[last - 1] === SP || bytes[last - 1] === HTAB)) last--;
    if (equalsLower(bytes, at, last, 'keep-alive')) meaning.keepAlive = true;
    else if (equalsLower(bytes, at, last, 'close')) meaning.close = true;
    else if (equalsLower(bytes, at, last, 'upgrade')) meaning.upgrades = true;
    else if (last > at && named.push(bytes.toString('latin1', at, last).toLowerCase()) > MAX_CONNECTION_OPTIONS)
      return false;
    at = next + 1;
  }
  return true;
};

/** RFC 9110 section 10.1.4. */
const hasTrailers = (value: string): boolean =>
  value.split(',').some((coding) => coding.trim().toLowerCase() === 'trailers');

/**
 * Fields that Connection can't remove, beside those of a kind: who the client is, and what it may do. They are meant for
 * all recipients, so that no sender may list them (RFC 9110 section 7.6.1); one who does wants the server to see another
 * message than a proxy before us wrote.
 */
const NOT_REMOVABLE =
  /^(?:x-forwarded-.*|forwarded|x-real-ip|via|cookie|set-cookie|authorization|cache-control|expect)$/;

/** RFC 9110 section 7.6.1: what is named in Connection ends here. */
const removeNamed = (bytes: Buffer, count: number): void => {
  const { offsets } = scratch;
  for (const name of named) {
    if (NOT_REMOVABLE.test(name)) continue;
    for (let offset = 0; offset < count * OFFSETS; offset += OFFSETS) {
      const isMeant = equalsLower(bytes, offsets[offset]!, offsets[offset + 1]!, name);
      if (isMeant && offsets[offset + 4] === OTHER) offsets[offset + 4] = HOP_BY_HOP;
    }
  }
};
