/**
 * Where a message body ends. Bodies are forwarded as they come; this only counts, and for `chunked` follows the
 * framing strictly (RFC 9112 section 7.1), so that a cut-off or malformed body is never taken for a complete one.
 */
import { COLON, CR, LF, TOKEN, VALUE } from './fields.ts';
import type { Framing } from './head.ts';

/** Bytes of one chunk-size line with its extensions: signatures are the longest in use, with about 100. */
const MAX_CHUNK_LINE_BYTES = 256;
/**
 * Extensions of a whole body, beyond one byte for each of data: there are those who sign each chunk, but nobody may keep
 * us and the server busy with much framing for little data.
 */
const MAX_EXTRA_EXTENSION_BYTES = 4 * 1024;
/** Hex digits of a chunk size: 13 stay exact in a double. */
const MAX_SIZE_DIGITS = 13;
const MAX_TRAILER_BYTES = 8 * 1024;
const MAX_TRAILERS = 32;

/**
 * Fields that decide about framing, routing, who the client is and what it may do, or how the content is read: those who
 * merge trailers with the fields of the head would take them for such (RFC 9110 section 6.5.1).
 */
const NOT_IN_TRAILERS =
  /^(?:content-(?:length|encoding|type|range)|transfer-encoding|host|trailer|te|upgrade|connection|keep-alive|proxy-.*|expect|range|max-forwards|cache-control|authorization|www-authenticate|cookie|set-cookie|location|forwarded|x-forwarded-.*|x-real-ip)$/i;
/** Characters of a trailer's name that are looked at: none of those above is longer, and x-forwarded- is at the start. */
const MAX_CHECKED_NAME = 64;

// States of `chunked`. Numbers, as each byte of framing asks for them.
const SIZE = 0;
const EXTENSION_NAME = 1;
const EXTENSION_VALUE = 2;
const EXTENSION_TOKEN = 3;
const EXTENSION_QUOTED = 4;
const EXTENSION_ESCAPE = 5;
const EXTENSION_END = 6;
const SIZE_LF = 7;
const DATA = 8;
const DATA_CR = 9;
const DATA_LF = 10;
const LINE_START = 11;
const TRAILER_NAME = 12;
const TRAILER_VALUE = 13;
const TRAILER_LF = 14;
const LAST_LF = 15;

const SEMICOLON = 59;
const EQUALS = 61;
const QUOTE = 34;
const BACKSLASH = 92;

/** The value of a hex digit; -1 for any other byte. */
const HEX = Int8Array.from({ length: 256 }, (_, byte) => {
  const digit = '0123456789abcdef'.indexOf(String.fromCharCode(byte).toLowerCase());
  return byte < 128 ? digit : -1;
});

/** Told of each range of the input that is payload. */
type OnPayload = (start: number, end: number) => void;

export class Body {
  readonly framing: Framing;
  /** All of it has been taken; never so for `untilClose`, which the end of the connection completes. */
  done: boolean;
  /** Malformed: what follows can't be trusted, the connection has to go. */
  broken = false;
  /** Bytes to come of the body (`length`) or of the chunk. */
  #left: number;
  #state = SIZE;
  #digits = 0;
  #lineBytes = 0;
  #extensionBytes = 0;
  #extensionNameBytes = 0;
  #trailerBytes = 0;
  #trailers = 0;
  #trailerName = '';

  constructor(framing: Framing, contentLength: number) {
    this.framing = framing;
    this.#left = framing === 'length' ? contentLength : 0;
    this.done = framing === 'none';
  }

  /**
   * How many bytes of `bytes`, from `start`, belong to this body. `onPayload` is for those who pass a chunked body on
   * without its framing.
   */
  take(bytes: Buffer, onPayload: OnPayload | null = null, start = 0, end = bytes.length): number {
    switch (this.framing) {
      case 'none':
        return 0;
      case 'untilClose':
        if (onPayload && end > start) onPayload(start, end);
        return end - start;
      case 'length': {
        const taken = Math.min(this.#left, end - start);
        this.#left -= taken;
        this.done = this.#left === 0;
        if (onPayload && taken > 0) onPayload(start, start + taken);
        return taken;
      }
      case 'chunked':
        return this.#takeChunked(bytes, onPayload, start, end) - start;
    }
  }

  #takeChunked(bytes: Buffer, onPayload: OnPayload | null, start: number, end: number): number {
    let at = start;
    while (at < end && !this.done && !this.broken) {
      if (this.#state === DATA) {
        const dataEnd = Math.min(at + this.#left, end);
        onPayload?.(at, dataEnd);
        this.#left -= dataEnd - at;
        at = dataEnd;
        if (this.#left === 0) this.#state = DATA_CR;
      } else if (this.#step(bytes[at]!)) at++;
      else this.broken = true;
    }
    return at;
  }

  /** One byte of framing; false when it may not stand there. */
  #step(byte: number): boolean {
    switch (this.#state) {
      case SIZE: {
        const value = HEX[byte]!;
        if (value >= 0) {
          this.#left = this.#left * 16 + value;
          return ++this.#digits <= MAX_SIZE_DIGITS;
        }
        if (this.#digits === 0) return false;
        return this.#endOfSize(byte);
      }
      // RFC 9112 section 7.1.1: ";" name, and perhaps "=" and a token or a quoted string. They are
      // followed only to be sure that everybody sees the line end at the same place.
      case EXTENSION_NAME:
        if (TOKEN[byte] === 1) this.#extensionNameBytes++;
        else if (this.#extensionNameBytes === 0) return false;
        else if (byte === EQUALS) this.#state = EXTENSION_VALUE;
        else return this.#endOfSize(byte);
        return this.#countLine();
      case EXTENSION_VALUE:
        if (byte === QUOTE) this.#state = EXTENSION_QUOTED;
        else if (TOKEN[byte] === 1) this.#state = EXTENSION_TOKEN;
        else return false;
        return this.#countLine();
      case EXTENSION_TOKEN:
        return TOKEN[byte] === 1 ? this.#countLine() : this.#endOfSize(byte);
      case EXTENSION_QUOTED:
        if (byte === QUOTE) this.#state = EXTENSION_END;
        else if (byte === BACKSLASH) this.#state = EXTENSION_ESCAPE;
        else if (VALUE[byte] !== 1) return false;
        return this.#countLine();
      case EXTENSION_ESCAPE:
        this.#state = EXTENSION_QUOTED;
        return VALUE[byte] === 1 && this.#countLine();
      case EXTENSION_END:
        return this.#endOfSize(byte);
      case SIZE_LF:
        return byte === LF && this.#beginChunk();
      case DATA_CR:
        this.#state = DATA_LF;
        return byte === CR;
      case DATA_LF:
        this.#state = SIZE;
        return byte === LF;
      case LINE_START:
        if (byte === CR) {
          this.#state = LAST_LF;
          return true;
        }
        this.#state = TRAILER_NAME;
        this.#trailerName = '';
        return ++this.#trailers <= MAX_TRAILERS && this.#stepTrailerName(byte);
      case TRAILER_NAME:
        return this.#stepTrailerName(byte);
      case TRAILER_VALUE:
        if (byte === CR) this.#state = TRAILER_LF;
        else if (VALUE[byte] !== 1) return false;
        return this.#countTrailer();
      case TRAILER_LF:
        this.#state = LINE_START;
        return byte === LF && this.#countTrailer();
      case LAST_LF:
        if (byte !== LF) return false;
        this.done = true;
        return true;
      default:
        return false;
    }
  }

  /** After the size or an extension: another extension, or the end of the line. */
  #endOfSize(byte: number): boolean {
    this.#extensionNameBytes = 0;
    if (byte === CR) this.#state = SIZE_LF;
    else if (byte === SEMICOLON) this.#state = EXTENSION_NAME;
    else return false;
    return this.#countLine();
  }

  #beginChunk(): boolean {
    // Without its CR.
    this.#extensionBytes = Math.max(0, this.#extensionBytes + this.#lineBytes - 1 - this.#left);
    this.#state = this.#left === 0 ? LINE_START : DATA;
    this.#digits = 0;
    this.#lineBytes = 0;
    return this.#extensionBytes <= MAX_EXTRA_EXTENSION_BYTES;
  }

  #stepTrailerName(byte: number): boolean {
    if (!this.#countTrailer()) return false;
    if (byte === COLON) {
      this.#state = TRAILER_VALUE;
      return this.#trailerName !== '' && !NOT_IN_TRAILERS.test(this.#trailerName);
    }
    if (this.#trailerName.length <= MAX_CHECKED_NAME) this.#trailerName += String.fromCharCode(byte);
    return TOKEN[byte] === 1;
  }

  #countLine(): boolean {
    return ++this.#lineBytes <= MAX_CHUNK_LINE_BYTES;
  }

  #countTrailer(): boolean {
    return ++this.#trailerBytes <= MAX_TRAILER_BYTES;
  }
}
