/**
 * The fields of a message head of HTTP/1.1 (RFC 9110 section 5, RFC 9112 section 5), kept as offsets into its bytes:
 * strings are made only of what somebody asks for. fieldParser.ts fills them in.
 */

/** Fields of one head: HAProxy's tune.http.maxhdr is 101. */
export const MAX_FIELDS = 100;

/** Of one field: name start, name end, value start, value end (without white space around), kind. */
export const OFFSETS = 5;

/** Kinds of fields that a writer has to know. */
export const OTHER = 0;
/** Ends at this hop: of the connection itself, or named in Connection. */
export const HOP_BY_HOP = 1;
export const HOST = 2;
export const CONTENT_LENGTH = 3;
export const TRANSFER_ENCODING = 4;
export const FORWARDED_FOR = 5;
export const FORWARDED_PROTO = 6;

export type Fields = {
  /** The buffer that the offsets point into. */
  bytes: Buffer;
  /** Where the head's first line starts. */
  start: number;
  /** OFFSETS numbers a field, and at last where the empty line starts. */
  offsets: number[];
  count: number;
};

export const CR = 13;
export const LF = 10;
export const SP = 32;
export const HTAB = 9;
export const COLON = 58;

export const byteTable = (isAllowed: (character: string, byte: number) => boolean): Uint8Array =>
  Uint8Array.from({ length: 256 }, (_, byte) => (isAllowed(String.fromCharCode(byte), byte) ? 1 : 0));

/** RFC 9110 section 5.6.2: tchar. */
export const TOKEN = byteTable((character) => /[\w!#$%&'*+.^`|~-]/.test(character));
/** RFC 9110 section 5.5: field-vchar, and white space within. obs-text is passed on as it is. */
export const VALUE = byteTable((_, byte) => byte === HTAB || (byte >= SP && byte !== 127));

/** `lower` has only characters that are the same in both cases, or small letters. */
export const equalsLower = (bytes: Buffer, start: number, end: number, lower: string): boolean => {
  if (end - start !== lower.length) return false;
  for (let index = 0; index < lower.length; index++) {
    const byte = bytes[start + index]!;
    if ((byte >= 65 && byte <= 90 ? byte | 0x20 : byte) !== lower.charCodeAt(index)) return false;
  }
  return true;
};

export const nameIs = (fields: Fields, index: number, lower: string): boolean =>
  equalsLower(fields.bytes, fields.offsets[index * OFFSETS]!, fields.offsets[index * OFFSETS + 1]!, lower);

/** The same for a name in any case. */
export const isNamed = (fields: Fields, index: number, name: string): boolean => {
  const { bytes, offsets } = fields;
  const start = offsets[index * OFFSETS]!;
  if (offsets[index * OFFSETS + 1]! - start !== name.length) return false;
  for (let at = 0; at < name.length; at++) {
    const byte = bytes[start + at]!;
    const code = name.charCodeAt(at);
    if (byte !== code && !((byte ^ code) === 0x20 && (byte | 0x20) >= 97 && (byte | 0x20) <= 122)) return false;
  }
  return true;
};

export const nameOf = (fields: Fields, index: number): string =>
  fields.bytes.toString('latin1', fields.offsets[index * OFFSETS], fields.offsets[index * OFFSETS + 1]);

export const valueOf = (fields: Fields, index: number): string =>
  fields.bytes.toString('latin1', fields.offsets[index * OFFSETS + 2], fields.offsets[index * OFFSETS + 3]);

export const kindOf = (fields: Fields, index: number): number => fields.offsets[index * OFFSETS + 4]!;

export const nameEnd = (fields: Fields, index: number): number => fields.offsets[index * OFFSETS + 1]!;
export const valueStart = (fields: Fields, index: number): number => fields.offsets[index * OFFSETS + 2]!;
export const valueEnd = (fields: Fields, index: number): number => fields.offsets[index * OFFSETS + 3]!;

/** Of the index behind the last: where the empty line starts. */
export const lineStart = (fields: Fields, index: number): number => fields.offsets[index * OFFSETS]!;

/** The values of all fields of this name (in lower case), joined by `separator`; null when there is none. */
const joined = (fields: Fields, lowerName: string, separator: string): string | null => {
  let value: string | null = null;
  for (let index = 0; index < fields.count; index++) {
    if (!nameIs(fields, index, lowerName)) continue;
    value = value === null ? valueOf(fields, index) : `${value}${separator}${valueOf(fields, index)}`;
  }
  return value;
};

/** The field's value; several of one name are joined by ", " (RFC 9110 section 5.3), cookies by "; ". */
export const headerOf = (fields: Fields, lowerName: string): string | null =>
  joined(fields, lowerName, lowerName === 'cookie' ? '; ' : ', ');

/** The value of the first cookie of this name, as it was sent, without the quotes around it (RFC 6265 section 4.2). */
export const cookieOf = (fields: Fields, name: string): string | null => {
  const cookies = headerOf(fields, 'cookie');
  if (cookies === null) return null;
  for (let at = 0; at < cookies.length;) {
    const semicolon = cookies.indexOf(';', at);
    const end = semicolon === -1 ? cookies.length : semicolon;
    const equals = cookies.indexOf('=', at);
    if (equals !== -1 && equals < end && cookies.slice(at, equals).trim() === name) {
      const value = cookies.slice(equals + 1, end).trim();
      return value.length > 1 && value.startsWith('"') && value.endsWith('"') ? value.slice(1, -1) : value;
    }
    at = end + 1;
  }
  return null;
};
