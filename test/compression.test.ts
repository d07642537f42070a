import { brotliDecompressSync, constants, gunzipSync, zstdDecompressSync } from 'node:zlib';
import { describe, expect, onTestFinished, test } from 'vitest';
import { compressionSchema } from '../src/config/responses.ts';
import { chooseEncoding, Compressor, lacksVary, MAX_COMPRESSORS, weakened } from '../src/proxy/compression.ts';
import type {
  CompressionModel,
  CompressorHost,
  CompressorUser,
  Encoding,
  ResponseFacts,
} from '../src/proxy/compression.ts';

const modelOf = (config: object = {}): CompressionModel => compressionSchema.parse(config);
const usual = modelOf();

const facts = (change: Partial<ResponseFacts> = {}): ResponseFacts => ({
  status: 200,
  isHead: false,
  isModern: true,
  contentLength: 10_000,
  contentType: 'text/html; charset=utf-8',
  contentEncoding: null,
  cacheControl: null,
  etag: null,
  ...change,
});

describe('RFC 9110 section 12.5.3: the client says what it accepts', () => {
  test.each([
    ['gzip', 'gzip'],
    ['gzip, deflate, br', 'br'],
    ['GZIP', 'gzip'],
    ['x-gzip', 'gzip'],
    ['br;q=0.5, gzip;q=0.8', 'gzip'],
    ['br;q=0.8,gzip;q=0.8', 'br'],
    ['gzip ; q=1.000 , br; Q=0.999', 'gzip'],
    ['gzip;q=0', 'identity'],
    ['gzip;q=0, *', 'br'],
    ['br;q=0, *;q=0.1', 'gzip'],
    ['*', 'br'],
    ['*;q=0', 'identity'],
    ['', 'identity'],
    ['deflate', 'identity'],
    ['identity', 'identity'],
    ['identity, gzip;q=0.5', 'identity'],
    ['identity;q=0.5, gzip;q=0.5', 'gzip'],
    ['identity;q=0', 'identity'],
    ['gzip;q=2', 'identity'],
    ['gzip;q=high', 'identity'],
    ['gzip;q=0.1234', 'identity'],
    [',, gzip;q=0.001 ,', 'gzip'],
    ['gzipped', 'identity'],
    ['zstd', 'identity'],
  ])('%j → %s', (acceptEncoding, expected) => {
    expect(chooseEncoding(usual, acceptEncoding, facts())).toBe(expected);
    // What is remembered says the same.
    expect(chooseEncoding(usual, acceptEncoding, facts())).toBe(expected);
  });

  test('without the field nothing is assumed', () => {
    expect(chooseEncoding(usual, null, facts())).toBe('identity');
  });

  test('the operator’s order decides between codings that the client likes alike', () => {
    const model = modelOf({ encodings: ['zstd', 'gzip', 'br'] });
    expect(chooseEncoding(model, 'gzip, br, zstd', facts())).toBe('zstd');
    expect(chooseEncoding(model, 'gzip, br', facts())).toBe('gzip');
  });

  test('more different values than are remembered are decided as well', () => {
    const model = modelOf();
    for (let count = 0; count < 1_000; count++) {
      expect(chooseEncoding(model, `gzip, made-up-${count}`, facts())).toBe('gzip');
    }
  });
});

describe('which responses are compressed', () => {
  const isCompressed = (change: Partial<ResponseFacts>, model = usual) =>
    chooseEncoding(model, 'gzip', facts(change)) === 'gzip';

  test.each([200, 201, 202, 203])('status %i', (status) => expect(isCompressed({ status })).toBe(true));
  test.each([101, 204, 205, 206, 301, 304, 404, 500])('not status %i', (status) => {
    expect(chooseEncoding(usual, 'gzip', facts({ status }))).toBeNull();
  });
  test('not the answer to HEAD', () => expect(isCompressed({ isHead: true })).toBe(false));
  test('not for clients or from servers before HTTP/1.1', () => expect(isCompressed({ isModern: false })).toBe(false));
  test('not what has a coding already', () => expect(isCompressed({ contentEncoding: 'br' })).toBe(false));

  test.each(['text/plain', 'TEXT/HTML', 'application/json', 'image/svg+xml', 'application/problem+json;x=y'])(
    'type %s',
    (contentType) => expect(isCompressed({ contentType })).toBe(true),
  );
  test.each(['image/png', 'multipart/form-data; boundary=x', 'application/octet-stream', '', 'text', '/', null])(
    'not type %s',
    (contentType) => expect(isCompressed({ contentType })).toBe(false),
  );

  test('from the smallest size on, or when the size is not known', () => {
    const sizes = [0, 1_023, 1_024, null].map((contentLength) => isCompressed({ contentLength }));
    expect(sizes).toEqual([false, false, true, true]);
    expect(isCompressed({ contentLength: 0 }, modelOf({ minSize: '0B' }))).toBe(false);
  });

  test.each(['no-transform', 'public, No-Transform', 'max-age=1,no-transform'])(
    'RFC 9110 section 7.7: not with Cache-Control: %s',
    (cacheControl) => expect(isCompressed({ cacheControl })).toBe(false),
  );
  test.each(['public, max-age=60', 'x-no-transform', 'no-transformer'])('with Cache-Control: %s', (cacheControl) =>
    expect(isCompressed({ cacheControl })).toBe(true),
  );

  test('an ETag becomes weak; with one that is none the response stays as it is', () => {
    expect(isCompressed({ etag: '"abc"' })).toBe(true);
    expect(isCompressed({ etag: 'abc' })).toBe(false);
    expect(weakened('"abc"')).toBe('W/"abc"');
    expect(weakened('W/"abc"')).toBe('W/"abc"');
  });

  test('Vary is told of Accept-Encoding once', () => {
    expect([null, 'Origin', 'X-Accept-Encoding'].map(lacksVary)).toEqual([true, true, true]);
    expect(['*', 'accept-encoding', 'Origin, Accept-Encoding'].map(lacksVary)).toEqual([false, false, false]);
  });
});

/** Stands for the reactor: Node's own loop runs anyway here. */
const host: CompressorHost = {
  timers: {
    make: (callback) => {
      let timer: NodeJS.Timeout | undefined;
      const clear = () => clearTimeout(timer);
      return {
        set: (ms) => {
          clear();
          timer = setTimeout(callback, ms);
        },
        clear,
      };
    },
  },
  wakeNode: () => wakes++,
};
let wakes = 0;

/** Collects the output; `ended` resolves with all of it. */
const collect = (encoding: Encoding, model = usual) => {
  const chunks: Buffer[] = [];
  const waiters = new Set<() => void>();
  const wake = () => {
    for (const waiter of waiters) waiter();
  };
  const when = (condition: () => boolean) =>
    new Promise<void>((done) => {
      const look = () => {
        if (!condition()) return;
        waiters.delete(look);
        done();
      };
      waiters.add(look);
      look();
    });
  const seen = { ended: false, drains: 0, failure: null as Error | null };
  const user: CompressorUser = {
    onOutput: (bytes) => {
      chunks.push(bytes);
      wake();
    },
    onDrain: () => {
      seen.drains++;
      wake();
    },
    onEnd: () => {
      seen.ended = true;
      wake();
    },
    onFailed: (error) => (seen.failure = error),
  };
  const compressor = new Compressor(encoding, model, user, host);
  onTestFinished(() => compressor.destroy());
  return { compressor, chunks, seen, when, ended: () => when(() => seen.ended) };
};

const text = Buffer.from('All work and no play makes Jack a dull boy. '.repeat(5_000));
const decoders = { gzip: gunzipSync, br: brotliDecompressSync, zstd: zstdDecompressSync };

describe('a compressor', () => {
  test.each(['gzip', 'br', 'zstd'] as const)('%s gives back what was written, and is smaller', async (encoding) => {
    const { compressor, chunks, ended } = collect(encoding);
    // The input is the caller's again after the call.
    const scratch = Buffer.alloc(10_000);
    for (let at = 0; at < text.length; at += scratch.length) {
      const length = text.copy(scratch, 0, at, Math.min(text.length, at + scratch.length));
      compressor.write(scratch.subarray(0, length));
      scratch.fill(0);
    }
    compressor.end();
    await ended();
    const whole = Buffer.concat(chunks);
    expect(whole.length).toBeLessThan(text.length / 10);
    expect(decoders[encoding](whole).equals(text)).toBe(true);
  });

  test('an empty body is a whole stream of its coding', async () => {
    const { compressor, chunks, ended } = collect('gzip');
    compressor.end();
    await ended();
    expect(gunzipSync(Buffer.concat(chunks))).toHaveLength(0);
  });

  test.each(['gzip', 'br', 'zstd'] as const)('%s holds nothing back when the server pauses', async (encoding) => {
    const { compressor, chunks, when, seen } = collect(encoding);
    const partial = {
      gzip: constants.Z_SYNC_FLUSH,
      br: constants.BROTLI_OPERATION_FLUSH,
      zstd: constants.ZSTD_e_flush,
    };
    const decoded = () => {
      try {
        return decoders[encoding](Buffer.concat(chunks), { finishFlush: partial[encoding] }).toString();
      } catch {
        return '';
      }
    };
    compressor.write(Buffer.from('data: one\n\n'));
    await when(() => decoded() === 'data: one\n\n');
    compressor.write(Buffer.from('data: two\n\n'));
    await when(() => decoded() === 'data: one\n\ndata: two\n\n');
    expect(seen.ended).toBe(false);
  });

  test('a client that doesn’t read stops the writer, and memory stays bounded', async () => {
    const { compressor, chunks, seen, when, ended } = collect('gzip');
    compressor.pause();
    const noise = Buffer.alloc(64 * 1024);
    for (let at = 0; at < noise.length; at += 4) noise.writeUInt32LE(Math.imul(at, 2_654_435_761) >>> 0, at);
    let written = 0;
    while (compressor.write(noise)) written += noise.length;
    written += noise.length;
    expect(written).toBeLessThan(1024 * 1024);
    expect(chunks).toHaveLength(0);
    compressor.resume();
    await when(() => seen.drains > 0);
    compressor.end();
    await ended();
    expect(gunzipSync(Buffer.concat(chunks))).toHaveLength(written);
  });

  test('output arrives while input is still to come', async () => {
    const { compressor, chunks, when } = collect('gzip');
    const random = Buffer.from(Array.from({ length: 200_000 }, (_, at) => Math.imul(at, 2_654_435_761) >>> 24));
    compressor.write(random);
    await when(() => chunks.length > 0);
    // The head of a gzip stream: RFC 1952 section 2.3.1.
    expect(chunks[0]!.subarray(0, 3)).toEqual(Buffer.from([0x1f, 0x8b, 8]));
  });

  test('wakes Node’s loop whenever it has given it something to do', () => {
    const { compressor } = collect('gzip');
    const woken = (act: () => void) => {
      const before = wakes;
      act();
      return wakes > before;
    };
    expect(woken(() => compressor.write(text))).toBe(true);
    compressor.pause();
    expect(woken(() => compressor.resume())).toBe(true);
    expect(woken(() => compressor.end())).toBe(true);
  });

  test('one that was destroyed says nothing more', async () => {
    const first = collect('gzip');
    first.compressor.write(text);
    first.compressor.end();
    first.compressor.destroy();
    first.compressor.destroy();
    first.compressor.end();
    const second = collect('gzip');
    second.compressor.write(text);
    second.compressor.end();
    await second.ended();
    expect(first.chunks).toHaveLength(0);
    expect(first.seen).toMatchObject({ ended: false, failure: null });
  });

  test('more at a time than memory is set aside for are not begun, until one ends', async () => {
    const all = Array.from({ length: MAX_COMPRESSORS }, () => collect('gzip'));
    expect(chooseEncoding(usual, 'gzip', facts())).toBe('identity');
    all[0]!.compressor.end();
    await all[0]!.ended();
    expect(chooseEncoding(usual, 'gzip', facts())).toBe('gzip');
    collect('gzip');
    expect(chooseEncoding(usual, 'gzip', facts())).toBe('identity');
    // Each counts once, however it ends.
    for (const { compressor } of all) compressor.destroy();
    for (const { compressor } of all) compressor.destroy();
    expect(chooseEncoding(usual, 'gzip', facts())).toBe('gzip');
  });
});

describe('the configuration', () => {
  const problemOf = (config: object) => compressionSchema.safeParse(config).error?.issues[0]?.message;

  test('an empty one is the usual', () => {
    expect(compressionSchema.parse({})).toMatchObject({ encodings: ['br', 'gzip'], minBytes: 1_024 });
  });

  test('types are compared in lower case', () => {
    expect(compressionSchema.parse({ types: ['Text/CSS', '+JSON'] }).types).toEqual(['text/css', '+json']);
  });

  test.each([{ types: ['html'] }, { types: ['*/*'] }, { types: ['text/html; charset=x'] }])(
    'what is no type is refused: %j',
    (config) => expect(problemOf(config)).toMatch(/not a content type; allowed are/),
  );

  test('levels and sizes that don’t exist are refused', () => {
    expect(problemOf({ levels: { gzip: 10 } })).toBeDefined();
    expect(problemOf({ minSize: 'small' })).toMatch(/not a size/);
    expect(problemOf({ encodings: ['deflate'] })).toBeDefined();
  });
});
