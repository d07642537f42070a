/**
 * Where a message body ends. Bodies are forwarded as they come; this only counts, and for `chunked` follows the
 * framing strictly (RFC 9112 section 7.1), so that a cut-off or malformed body is never taken for a complete one.
 */
import { TOKEN } from './head.ts';
import type { Framing } from './head.ts';

/** Bytes of one chunk-size line with its extensions: nobody uses them, and they must not grow without end. */
const MAX_CHUNK_LINE_BYTES = 256;
/** Hex digits of a chunk size: 13 stay exact in a double. */
const MAX_SIZE_DIGITS = 13;
const MAX_TRAILER_BYTES = 8 * 1024;

/** Fields that decide about framing or routing mean nothing in a trailer but mischief (RFC 9110 section 6.5.1). */
const NOT_IN_TRAILERS = new Set(['content-length', 'transfer-encoding', 'host', 'trailer', 'connection']);

type ChunkState =
  | 'size'
  | 'extensionName'
  | 'extensionValueStart'
  | 'extensionToken'
  | 'extensionQuoted'
  | 'extensionEscape'
  | 'extensionEnd'
  | 'sizeLf'
  | 'data'
  | 'dataCr'
  | 'dataLf'
  | 'lineStart'
  | 'trailerName'
  | 'trailerValue'
  | 'trailerLf'
  | 'lastLf';

const CR = 13;
const LF = 10;
const SEMICOLON = 59;
const EQUALS = 61;
const QUOTE = 34;
const BACKSLASH = 92;
const COLON = 58;

/** What a field value or a quoted string may hold: no controls but the tab. */
const isText = (byte: number): boolean => byte === 9 || (byte >= 32 && byte !== 127);

const hexValue = (byte: number): number =>
  byte >= 48 && byte <= 57
    ? byte - 48
    : byte >= 65 && byte <= 70
      ? byte - 55
      : byte >= 97 && byte <= 102
        ? byte - 87
        : -1;

export class Body {
  readonly framing: Framing;
  done: boolean;
  /** Malformed: what follows can't be trusted, the connection has to go. */
  broken = false;
  #left: number;
  #state: ChunkState = 'size';
  #digits = 0;
  #lineBytes = 0;
  #trailerBytes = 0;
  #trailerName = '';
  #nameBytes = 0;

  constructor(framing: Framing, contentLength: number) {
    this.framing = framing;
    this.#left = framing === 'length' ? contentLength : 0;
    this.done = framing === 'none';
  }

  /**
   * How many bytes of `chunk`, from its start, belong to this body. `onData` is told the ranges that are payload, for
   * those who pass a chunked body on without its framing.
   */
  take(chunk: Buffer, onData?: (start: number, end: number) => void): number {
    switch (this.framing) {
      case 'none':
        return 0;
      case 'untilClose':
        onData?.(0, chunk.length);
        return chunk.length;
      case 'length': {
        const taken = Math.min(this.#left, chunk.length);
        this.#left -= taken;
        this.done = this.#left === 0;
        onData?.(0, taken);
        return taken;
      }
      case 'chunked':
        return this.#takeChunked(chunk, onData);
    }
  }

  #takeChunked(chunk: Buffer, onData?: (start: number, end: number) => void): number {
    let at = 0;
    while (at < chunk.length && !this.done) {
      if (this.#state === 'data') {
        const taken = Math.min(this.#left, chunk.length - at);
        onData?.(at, at + taken);
        at += taken;
        this.#left -= taken;
        if (this.#left === 0) this.#state = 'dataCr';
        continue;
      }
      if (!this.#step(chunk[at]!)) {
        this.broken = true;
        return at;
      }
      at++;
    }
    return at;
  }

  /** One byte of framing; false when it may not stand there. */
  #step(byte: number): boolean {
    switch (this.#state) {
      case 'size': {
        const value = hexValue(byte);
        if (value >= 0) {
          this.#left = this.#left * 16 + value;
          return ++this.#digits <= MAX_SIZE_DIGITS;
        }
        if (this.#digits === 0) return false;
        return this.#endOfSize(byte);
      }
      // RFC 9112 section 7.1.1: ";" name, and perhaps "=" and a token or a quoted string. Nobody uses them, so they are
      // followed only to be sure that everybody sees the line end at the same place.
      case 'extensionName':
        if (TOKEN[byte] === 1) this.#nameBytes++;
        else if (this.#nameBytes === 0) return false;
        else if (byte === EQUALS) this.#state = 'extensionValueStart';
        else return this.#endOfSize(byte);
        return this.#countLine();
      case 'extensionValueStart':
        if (byte === QUOTE) this.#state = 'extensionQuoted';
        else if (TOKEN[byte] === 1) this.#state = 'extensionToken';
        else return false;
        return this.#countLine();
      case 'extensionToken':
        return TOKEN[byte] === 1 ? this.#countLine() : this.#endOfSize(byte);
      case 'extensionQuoted':
        if (byte === QUOTE) this.#state = 'extensionEnd';
        else if (byte === BACKSLASH) this.#state = 'extensionEscape';
        else if (!isText(byte)) return false;
        return this.#countLine();
      case 'extensionEscape':
        this.#state = 'extensionQuoted';
        return isText(byte) && this.#countLine();
      case 'extensionEnd':
        return this.#endOfSize(byte);
      case 'sizeLf':
        if (byte !== LF) return false;
        this.#state = this.#left === 0 ? 'lineStart' : 'data';
        this.#digits = 0;
        this.#lineBytes = 0;
        return true;
      case 'dataCr':
        this.#state = 'dataLf';
        return byte === CR;
      case 'dataLf':
        this.#state = 'size';
        return byte === LF;
      case 'lineStart':
        if (byte === CR) {
          this.#state = 'lastLf';
          return true;
        }
        this.#state = 'trailerName';
        this.#trailerName = '';
        return this.#stepTrailerName(byte);
      case 'trailerName':
        return this.#stepTrailerName(byte);
      case 'trailerValue':
        if (byte === CR) this.#state = 'trailerLf';
        else if (!isText(byte)) return false;
        return this.#countTrailer();
      case 'trailerLf':
        this.#state = 'lineStart';
        return byte === LF && this.#countTrailer();
      case 'lastLf':
        if (byte !== LF) return false;
        this.done = true;
        return true;
      case 'data':
        return false;
    }
  }

  /** After the size or an extension: another extension, or the end of the line. */
  #endOfSize(byte: number): boolean {
    this.#nameBytes = 0;
    if (byte === CR) this.#state = 'sizeLf';
    else if (byte === SEMICOLON) this.#state = 'extensionName';
    else return false;
    return this.#countLine();
  }

  #stepTrailerName(byte: number): boolean {
    if (!this.#countTrailer()) return false;
    if (byte === COLON) {
      this.#state = 'trailerValue';
      return this.#trailerName !== '' && !NOT_IN_TRAILERS.has(this.#trailerName.toLowerCase());
    }
    this.#trailerName += String.fromCharCode(byte);
    return TOKEN[byte] === 1;
  }

  #countLine(): boolean {
    return ++this.#lineBytes <= MAX_CHUNK_LINE_BYTES;
  }

  #countTrailer(): boolean {
    return ++this.#trailerBytes <= MAX_TRAILER_BYTES;
  }
}
