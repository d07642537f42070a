/**
 * Compression of responses on their way to clients that accept it. What is compressed follows HAProxy: statuses 200 to
 * 203, listed types, never what has a coding already or must not be transformed; which coding, RFC 9110 section 12.5.3.
 */
import assert from 'node:assert/strict';
import { constants, createBrotliCompress, createGzip, createZstdCompress } from 'node:zlib';
import type { TimerHandle, TimerMaker } from '../net/timers.ts';

export const ENCODINGS = ['br', 'zstd', 'gzip'] as const;
export type Encoding = (typeof ENCODINGS)[number];

/** Plain data: it crosses threads. */
export type CompressionModel = {
  /** In order of preference where the client has none. */
  encodings: Encoding[];
  /** `text/html`, `text/*`, or `+json` for every subtype that ends so; in lower case. */
  types: string[];
  /** Responses known to be shorter stay as they are: they fit a packet anyway. */
  minBytes: number;
  levels: Record<Encoding, number>;
};

/** What a decision needs of a response; field values are null without the field. */
export type ResponseFacts = {
  status: number;
  isHead: boolean;
  /** Both sides speak HTTP/1.1 or later: an older client could not be told the end of a body of unknown length. */
  isModern: boolean;
  /** Null when it is not known beforehand. */
  contentLength: number | null;
  contentType: string | null;
  contentEncoding: string | null;
  cacheControl: string | null;
  etag: string | null;
};

/**
 * Compressors at a time in one worker: each holds up to 330 KiB (gzip) or 660 KiB (br, quality 3) for as long as its
 * client takes to read, so all of them 165 MiB. Beyond, responses go out as they are.
 */
export const MAX_COMPRESSORS = 256;
/** Different Accept-Encoding values that are remembered; clients in use have a handful. */
const MAX_REMEMBERED = 256;
/** What is compressed so far is sent when the server pauses: late enough not to cost ratio in a busy response. */
const FLUSH_AFTER_MS = 20;
/** Input and output that may wait in a compressor, in bytes. */
const HIGH_WATER_MARK = 64 * 1024;
/** 256 KiB for br and 128 KiB for zstd instead of megabytes: one response of many. */
const BROTLI_WINDOW_BITS = 18;
const ZSTD_WINDOW_BITS = 17;

/** Compressors of this worker that have not ended. */
let open = 0;

/** What is configured, made ready for many decisions. */
class Compression {
  readonly model: CompressionModel;
  #types: Set<string>;
  #suffixes: string[];
  #remembered = new Map<string, Encoding | null>();

  constructor(model: CompressionModel) {
    this.model = model;
    this.#types = new Set(model.types);
    this.#suffixes = model.types.filter((type) => type.startsWith('+'));
  }

  hasType(contentType: string): boolean {
    const end = contentType.indexOf(';');
    const type = (end === -1 ? contentType : contentType.slice(0, end)).trim().toLowerCase();
    if (this.#types.has(type) || this.#types.has(`${type.slice(0, type.indexOf('/'))}/*`)) return true;
    return this.#suffixes.some((suffix) => type.endsWith(suffix));
  }

  /** The configured coding that the client likes best; null when it prefers none of them. */
  accepted(acceptEncoding: string): Encoding | null {
    let encoding = this.#remembered.get(acceptEncoding);
    if (encoding === undefined) {
      encoding = negotiate(this.model.encodings, acceptEncoding);
      if (this.#remembered.size >= MAX_REMEMBERED) this.#remembered.clear();
      this.#remembered.set(acceptEncoding, encoding);
    }
    return encoding;
  }
}

/** A worker has one object of each configured compression for as long as that is configured. */
const compressions = new WeakMap<CompressionModel, Compression>();

const compressionOf = (model: CompressionModel): Compression => {
  let compression = compressions.get(model);
  if (!compression) {
    compression = new Compression(model);
    compressions.set(model, compression);
  }
  return compression;
};

/** RFC 9110 section 12.4.2: up to three decimals. */
const WEIGHT = /^(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)$/;

/** A weight that is none counts as 0: who can't say what is wanted gets what anybody can read. */
const weightOf = (parameters: string[]): number => {
  const weight = parameters.map((one) => one.trim()).find((one) => /^q=/i.test(one));
  if (weight === undefined) return 1;
  const value = weight.slice(2).trim();
  return WEIGHT.test(value) ? Number(value) : 0;
};

const negotiate = (encodings: readonly Encoding[], acceptEncoding: string): Encoding | null => {
  const weights = new Map<string, number>();
  for (const item of acceptEncoding.split(',')) {
    const [coding = '', ...parameters] = item.split(';');
    const name = coding.trim().toLowerCase();
    if (name === '') continue;
    // RFC 9110 section 8.4.1.3: x-gzip is gzip.
    weights.set(name === 'x-gzip' ? 'gzip' : name, weightOf(parameters));
  }
  const others = weights.get('*') ?? 0;
  let best: Encoding | null = null;
  // No coding at all has the least weight, unless the client says otherwise.
  let bestWeight = weights.get('identity') ?? 0;
  for (const encoding of encodings) {
    const weight = weights.get(encoding) ?? others;
    const isBetter = best === null ? weight > 0 && weight >= bestWeight : weight > bestWeight;
    if (!isBetter) continue;
    best = encoding;
    bestWeight = weight;
  }
  return best;
};

/** RFC 9110 section 8.8.3: what isn't one can't be made a weak one either. */
const ETAG = /^(?:W\/)?"[\x21\x23-\x7e\x80-\xff]*"$/;

const isCompressible = (compression: Compression, facts: ResponseFacts): boolean =>
  facts.status >= 200 &&
  facts.status <= 203 &&
  !facts.isHead &&
  facts.isModern &&
  facts.contentEncoding === null &&
  facts.contentType !== null &&
  (facts.contentLength === null || (facts.contentLength > 0 && facts.contentLength >= compression.model.minBytes)) &&
  compression.hasType(facts.contentType) &&
  (facts.cacheControl === null || !/(?:^|[\s,])no-transform(?:$|[\s,])/i.test(facts.cacheControl)) &&
  (facts.etag === null || ETAG.test(facts.etag));

/**
 * How a response is to be sent. null: as it is. 'identity': as it is, but another client would get it compressed, so that
 * caches must be told with Vary. A coding: with Content-Encoding, Vary, a weak ETag, and no Content-Length.
 */
export const chooseEncoding = (
  model: CompressionModel,
  acceptEncoding: string | null,
  facts: ResponseFacts,
): Encoding | 'identity' | null => {
  const compression = compressionOf(model);
  if (!isCompressible(compression, facts)) return null;
  if (acceptEncoding === null || open >= MAX_COMPRESSORS) return 'identity';
  return compression.accepted(acceptEncoding) ?? 'identity';
};

/** RFC 9110 section 8.8.1: the bytes are others now, the meaning is the same. */
export const weakened = (etag: string): string => (etag.startsWith('W/') ? etag : `W/${etag}`);

/** Whether a response's Vary has to be told of Accept-Encoding still. */
export const lacksVary = (vary: string | null): boolean =>
  vary === null || !vary.split(',').some((name) => ['*', 'accept-encoding'].includes(name.trim().toLowerCase()));

/** What a compressor tells. Calls never come from within a call to the compressor. */
export type CompressorUser = {
  /** The bytes are the user's own. */
  onOutput(bytes: Buffer): void;
  /** After `write` has said no: it may go on. */
  onDrain(): void;
  /** All of the output has been given. */
  onEnd(): void;
  /** It could not go on, for want of memory: the response can't be completed. */
  onFailed(error: Error): void;
};

/** The thread's reactor. Node's own loop, on which the streams of node:zlib depend, runs when it is woken. */
export type CompressorHost = { timers: TimerMaker; wakeNode(): void };

const streamOf = (encoding: Encoding, level: number) => {
  const options = { writableHighWaterMark: HIGH_WATER_MARK, readableHighWaterMark: HIGH_WATER_MARK };
  switch (encoding) {
    case 'gzip':
      return createGzip({ ...options, level });
    case 'br':
      return createBrotliCompress({
        ...options,
        params: {
          [constants.BROTLI_PARAM_QUALITY]: level,
          [constants.BROTLI_PARAM_LGWIN]: BROTLI_WINDOW_BITS,
        },
      });
    case 'zstd':
      return createZstdCompress({
        ...options,
        params: {
          [constants.ZSTD_c_compressionLevel]: level,
          [constants.ZSTD_c_windowLog]: ZSTD_WINDOW_BITS,
        },
      });
  }
};

/** One body on its way. It works on Node's thread pool, so that others are served meanwhile. */
export class Compressor {
  #stream: ReturnType<typeof streamOf>;
  #host: CompressorHost;
  #isOpen = true;
  #ended = false;
  /** Since the last write, while there is something that may be held back. */
  #flushTimer: TimerHandle;

  constructor(encoding: Encoding, { levels }: CompressionModel, user: CompressorUser, host: CompressorHost) {
    this.#host = host;
    this.#flushTimer = host.timers.make(() => this.#flush());
    this.#stream = streamOf(encoding, levels[encoding]);
    open++;
    this.#stream.on('data', (bytes: Buffer) => user.onOutput(bytes));
    this.#stream.on('drain', () => user.onDrain());
    this.#stream.on('end', () => {
      this.#close();
      user.onEnd();
    });
    this.#stream.on('error', (error) => {
      this.#close();
      user.onFailed(error);
    });
  }

  /** Takes all of it, as a copy. False when the writer is to wait for `onDrain`. */
  write(bytes: Buffer): boolean {
    assert(!this.#ended, 'a compressor that was ended is written to');
    if (!this.#isOpen) return true;
    this.#flushTimer.set(FLUSH_AFTER_MS);
    this.#host.wakeNode();
    return this.#stream.write(Buffer.from(bytes));
  }

  end(): void {
    if (this.#ended || !this.#isOpen) return;
    this.#ended = true;
    this.#flushTimer.clear();
    this.#host.wakeNode();
    this.#stream.end();
  }

  /** No `onOutput` from now on: the client doesn't read. What may wait in here is bounded, then `write` says no. */
  pause(): void {
    this.#stream.pause();
  }

  resume(): void {
    this.#stream.resume();
    this.#host.wakeNode();
  }

  /** Nothing more is told. */
  destroy(): void {
    if (!this.#isOpen) return;
    this.#close();
    this.#stream.removeAllListeners('data').removeAllListeners('drain').removeAllListeners('end');
    // What fails while it is being destroyed is of no interest to anybody.
    this.#stream.removeAllListeners('error').on('error', () => {});
    this.#stream.destroy();
  }

  #flush(): void {
    this.#stream.flush();
    this.#host.wakeNode();
  }

  #close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#flushTimer.clear();
    open--;
  }
}
