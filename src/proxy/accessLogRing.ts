/**
 * Access records in memory that a worker and the log's thread share: one of them writes, one reads, neither waits. A
 * record that a worker was writing when it died was never published; what a thread that died had not read is read by the
 * next one.
 *
 * A record: its length in words of 8 bytes, tags, the numbers, the lengths of the texts, the texts. None is split at the
 * end of the memory: a length of 0 there says that it goes on at the beginning.
 */
import assert from 'node:assert/strict';
import type { AccessRecord, CookieFlags, Termination } from './accessLog.ts';

/**
 * Of one worker: some 12,000 records, at 60,000 a second a fifth of a second. The thread looks every 50 ms, so that three
 * rounds can be missed (a slow disk) before anything is lost.
 */
const RING_BYTES = 4 * 1024 * 1024;
/** Longer texts are cut: a line says what happened, it is no copy of the request. HAProxy cuts whole lines at 1024. */
const MAX_TARGET_BYTES = 2048;
const MAX_TEXT_BYTES = 512;
/** Captured fields of a request, and of a response. */
const MAX_CAPTURES = 16;

const WORD_BYTES = 8;
/** The places of both sides, and what the writer counts. */
const CONTROL_BYTES = 64;
/** Int32: the word where the next record begins, and where reading goes on. Equal when there is nothing to read. */
const HEAD = 0;
const TAIL = 1;
/** Float64, since they outgrow 32 bits. */
const LOGGED = 2;
const DROPPED = 3;

const NORMAL = 1;
const TCP = 2;
const REDISPATCHED = 4;
/** The length of a text that is null. */
const NO_TEXT = 0xffff;

/** The place of each part of a record, in words: length and sink; flags and captures; numbers; lengths of texts. */
const TAGS_AT = 1;
const NUMBERS_AT = 2;
const NUMBERS = 19;
const LENGTHS_AT = NUMBERS_AT + NUMBERS;
const LENGTHS_A_WORD = 4;
/** Texts that every record has; captured fields of the request and the response follow. */
const TEXTS = 13;
const TARGET = 5;
/** Termination and cookies, before the texts. */
const STATE_BYTES = 4;

/** How many records a worker wrote, and how many found no room. */
type RingFigures = { logged: number; dropped: number };

export const allocateRing = (bytes = RING_BYTES): SharedArrayBuffer => {
  assert(bytes % WORD_BYTES === 0 && bytes < 2 ** 31, `a ring of ${bytes} bytes`);
  return new SharedArrayBuffer(CONTROL_BYTES + bytes);
};

export const figuresOfRing = (memory: SharedArrayBuffer): RingFigures => {
  const counters = new Float64Array(memory, 0, CONTROL_BYTES / WORD_BYTES);
  return { logged: counters[LOGGED]!, dropped: counters[DROPPED]! };
};

const viewsOf = (memory: SharedArrayBuffer) => ({
  control: new Int32Array(memory, 0, CONTROL_BYTES / 4),
  counters: new Float64Array(memory, 0, CONTROL_BYTES / WORD_BYTES),
  integers: new Int32Array(memory, CONTROL_BYTES),
  numbers: new Float64Array(memory, CONTROL_BYTES),
  lengths: new Uint16Array(memory, CONTROL_BYTES),
  bytes: Buffer.from(memory, CONTROL_BYTES),
});
type Views = ReturnType<typeof viewsOf>;

export class RingWriter {
  #views: Views;
  #texts: (string | null)[] = Array.from({ length: TEXTS + 2 * MAX_CAPTURES }, () => null);

  constructor(memory: SharedArrayBuffer) {
    this.#views = viewsOf(memory);
  }

  write(record: AccessRecord, sink: number, normal: boolean): void {
    const { counters, integers, numbers, lengths, bytes, control } = this.#views;
    const texts = this.#texts;
    texts[0] = record.clientAddress;
    texts[1] = record.frontend;
    texts[2] = record.backend;
    texts[3] = record.server;
    texts[4] = record.method;
    texts[TARGET] = record.target;
    texts[6] = record.version;
    texts[7] = record.host;
    texts[8] = record.user;
    texts[9] = record.requestId;
    texts[10] = record.tlsVersion;
    texts[11] = record.tlsCipher;
    texts[12] = record.serverName;
    const ofRequest = Math.min(record.requestHeaders.length, MAX_CAPTURES);
    const ofResponse = Math.min(record.responseHeaders.length, MAX_CAPTURES);
    let count = TEXTS;
    for (let index = 0; index < ofRequest; index++) texts[count++] = record.requestHeaders[index]!;
    for (let index = 0; index < ofResponse; index++) texts[count++] = record.responseHeaders[index]!;

    // One text is copied out faster than each by itself.
    let joined = record.termination + record.cookies;
    for (let index = 0; index < count; index++) {
      const text = texts[index]!;
      if (text === null) continue;
      const most = index === TARGET ? MAX_TARGET_BYTES : MAX_TEXT_BYTES;
      if (text.length > most) texts[index] = text.slice(0, most);
      joined += texts[index]!;
    }
    const lengthWords = Math.ceil(count / LENGTHS_A_WORD);
    const size = LENGTHS_AT + lengthWords + Math.ceil(joined.length / WORD_BYTES);
    const at = this.#reserve(size);
    if (at === -1) {
      counters[DROPPED] = counters[DROPPED]! + 1;
      return;
    }

    integers[at * 2] = size;
    integers[at * 2 + 1] = sink;
    integers[(at + TAGS_AT) * 2] =
      (normal ? NORMAL : 0) | (record.mode === 'tcp' ? TCP : 0) | (record.redispatched ? REDISPATCHED : 0);
    integers[(at + TAGS_AT) * 2 + 1] = ofRequest | (ofResponse << 8);
    const n = at + NUMBERS_AT;
    numbers[n] = record.startedMs;
    numbers[n + 1] = record.handshakeMs;
    numbers[n + 2] = record.idleMs;
    numbers[n + 3] = record.requestMs;
    numbers[n + 4] = record.queueMs;
    numbers[n + 5] = record.connectMs;
    numbers[n + 6] = record.responseMs;
    numbers[n + 7] = record.totalMs;
    numbers[n + 8] = record.clientPort;
    numbers[n + 9] = record.status;
    numbers[n + 10] = record.bytesRead;
    numbers[n + 11] = record.bytesUploaded;
    numbers[n + 12] = record.retries;
    numbers[n + 13] = record.processConnections;
    numbers[n + 14] = record.frontendConnections;
    numbers[n + 15] = record.backendConnections;
    numbers[n + 16] = record.serverConnections;
    numbers[n + 17] = record.serverQueue;
    numbers[n + 18] = record.backendQueue;
    const l = (at + LENGTHS_AT) * LENGTHS_A_WORD;
    for (let index = 0; index < count; index++) lengths[l + index] = texts[index]?.length ?? NO_TEXT;
    bytes.write(joined, (at + LENGTHS_AT + lengthWords) * WORD_BYTES, 'latin1');

    counters[LOGGED] = counters[LOGGED]! + 1;
    const next = at + size;
    Atomics.store(control, HEAD, next === numbers.length ? 0 : next);
  }

  /** Where so many words go; -1 when there is no room. At least one word stays free, or full would look like empty. */
  #reserve(size: number): number {
    const { control, integers, numbers } = this.#views;
    const head = control[HEAD]!;
    const tail = Atomics.load(control, TAIL);
    if (head < tail) return size < tail - head ? head : -1;
    const toEnd = numbers.length - head;
    if (size < toEnd || (size === toEnd && tail > 0)) return head;
    if (size >= tail) return -1;
    integers[head * 2] = 0;
    return 0;
  }
}

export type Logged = { record: AccessRecord; sink: number; normal: boolean };

export class RingReader {
  #views: Views;
  readonly #logged: Logged;

  /** `record` is filled in anew for each one that is read. */
  constructor(memory: SharedArrayBuffer, record: AccessRecord) {
    this.#views = viewsOf(memory);
    this.#logged = { record, sink: 0, normal: true };
  }

  /** The next record, valid until the one after it is asked for; null when there is none. */
  read(): Logged | null {
    const { control, integers, numbers } = this.#views;
    const head = Atomics.load(control, HEAD);
    let at = control[TAIL]!;
    if (at === head) return null;
    if (integers[at * 2] === 0) at = 0;
    const size = integers[at * 2]!;
    this.#decode(at, size);
    const next = at + size;
    Atomics.store(control, TAIL, next === numbers.length ? 0 : next);
    return this.#logged;
  }

  #decode(at: number, size: number): void {
    const { integers, numbers, lengths, bytes } = this.#views;
    const { record } = this.#logged;
    const flags = integers[(at + TAGS_AT) * 2]!;
    const captures = integers[(at + TAGS_AT) * 2 + 1]!;
    const ofRequest = captures & 0xff;
    const count = TEXTS + ofRequest + (captures >> 8);
    this.#logged.sink = integers[at * 2 + 1]!;
    this.#logged.normal = (flags & NORMAL) !== 0;
    record.mode = (flags & TCP) === 0 ? 'http' : 'tcp';
    record.redispatched = (flags & REDISPATCHED) !== 0;
    const n = at + NUMBERS_AT;
    record.startedMs = numbers[n]!;
    record.handshakeMs = numbers[n + 1]!;
    record.idleMs = numbers[n + 2]!;
    record.requestMs = numbers[n + 3]!;
    record.queueMs = numbers[n + 4]!;
    record.connectMs = numbers[n + 5]!;
    record.responseMs = numbers[n + 6]!;
    record.totalMs = numbers[n + 7]!;
    record.clientPort = numbers[n + 8]!;
    record.status = numbers[n + 9]!;
    record.bytesRead = numbers[n + 10]!;
    record.bytesUploaded = numbers[n + 11]!;
    record.retries = numbers[n + 12]!;
    record.processConnections = numbers[n + 13]!;
    record.frontendConnections = numbers[n + 14]!;
    record.backendConnections = numbers[n + 15]!;
    record.serverConnections = numbers[n + 16]!;
    record.serverQueue = numbers[n + 17]!;
    record.backendQueue = numbers[n + 18]!;

    const from = (at + LENGTHS_AT + Math.ceil(count / LENGTHS_A_WORD)) * WORD_BYTES;
    const joined = bytes.toString('latin1', from, (at + size) * WORD_BYTES);
    let place = STATE_BYTES;
    const texts: (string | null)[] = [];
    for (let index = 0; index < count; index++) {
      const length = lengths[(at + LENGTHS_AT) * LENGTHS_A_WORD + index]!;
      if (length === NO_TEXT) texts.push(null);
      else texts.push(joined.slice(place, (place += length)));
    }
    record.termination = joined.slice(0, 2) as Termination;
    record.cookies = joined.slice(2, STATE_BYTES) as CookieFlags;
    record.clientAddress = texts[0]!;
    record.frontend = texts[1]!;
    record.backend = texts[2]!;
    record.server = texts[3]!;
    record.method = texts[4]!;
    record.target = texts[TARGET]!;
    record.version = texts[6]!;
    record.host = texts[7]!;
    record.user = texts[8]!;
    record.requestId = texts[9]!;
    record.tlsVersion = texts[10]!;
    record.tlsCipher = texts[11]!;
    record.serverName = texts[12]!;
    record.requestHeaders = texts.slice(TEXTS, TEXTS + ofRequest);
    record.responseHeaders = texts.slice(TEXTS + ofRequest);
  }
}
