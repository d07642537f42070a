/** What the proxy itself does to answers: compression of those of servers, and pages of its own. */
import { randomBytes } from 'node:crypto';
import { brotliDecompressSync, createGunzip, gunzipSync, gzipSync, zstdDecompressSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import type { CompressionModel } from '../src/proxy/compression.ts';
import {
  bodyOf,
  eventually,
  get,
  getAndClose,
  RawClient,
  rawServer,
  scriptedServer,
  startProxy,
  statusOf,
  talk,
} from './proxyHelpers.ts';
import type { Proxy, ProxyOptions } from './proxyHelpers.ts';

const proxyBefore = (server: { port: number }, more: Partial<ProxyOptions> = {}): Promise<Proxy> =>
  startProxy({ servers: { s: server }, workers: 1, retries: 0, ...more });

const compression: CompressionModel = {
  encodings: ['br', 'zstd', 'gzip'],
  types: ['text/*', 'application/json'],
  minBytes: 64,
  levels: { br: 3, zstd: 2, gzip: 2 },
};

const compressing = (server: { port: number }, more: Partial<ProxyOptions> = {}): Promise<Proxy> =>
  proxyBefore(server, { frontend: { compression }, ...more });

const TEXT = 'It was a bright cold day in April, and the clocks were striking thirteen. '.repeat(2_000);

/** The payload of a chunked body that is complete. */
const unchunked = (body: string): Buffer => {
  const parts: Buffer[] = [];
  for (let at = 0; ;) {
    const end = body.indexOf('\r\n', at);
    const size = Number.parseInt(body.slice(at, end), 16);
    if (size === 0) {
      expect(body.slice(at)).toBe('0\r\n\r\n');
      return Buffer.concat(parts);
    }
    parts.push(Buffer.from(body.slice(end + 2, end + 2 + size), 'latin1'));
    at = end + 2 + size + 2;
  }
};

const fieldOf = (text: string, name: string): string[] =>
  [...text.slice(0, text.indexOf('\r\n\r\n')).matchAll(new RegExp(`^${name}: (.*)$`, 'gim'))].map((match) =>
    match[1]!.trim(),
  );

const serverOf = (fields: string, body: string) =>
  scriptedServer((head, socket) => {
    const isHead = head.startsWith('HEAD');
    socket.write(`HTTP/1.1 200 OK\r\n${fields}Content-Length: ${body.length}\r\n\r\n${isHead ? '' : body}`, 'latin1');
  });

const accepting = (codings: string, more = '') => getAndClose('/', `Accept-Encoding: ${codings}\r\n${more}`);

describe('compression', () => {
  test.each([
    ['gzip', gunzipSync],
    ['br', brotliDecompressSync],
    ['zstd', zstdDecompressSync],
  ] as const)('RFC 9110 8.4: %s gives the client what the server sent', async (coding, decode) => {
    const server = await serverOf('Content-Type: text/plain\r\nETag: "v1"\r\n', TEXT);
    const proxy = await compressing(server);
    const text = await talk(proxy.port, accepting(coding));
    expect(fieldOf(text, 'Content-Encoding')).toEqual([coding]);
    expect(fieldOf(text, 'Transfer-Encoding')).toEqual(['chunked']);
    expect(fieldOf(text, 'Content-Length')).toEqual([]);
    expect(fieldOf(text, 'Vary')).toEqual(['Accept-Encoding']);
    // RFC 9110 section 8.8.1: the bytes are others now.
    expect(fieldOf(text, 'ETag')).toEqual(['W/"v1"']);
    expect(decode(unchunked(bodyOf(text))).toString()).toBe(TEXT);
    expect(text.length).toBeLessThan(TEXT.length / 10);
    expect(proxy.figures('front')).toMatchObject({ compressedResponses: 1, compressionIn: TEXT.length });
  });

  test.each([
    [
      'chunked',
      (socket: NodeJS.WritableStream) =>
        socket.write(
          `Transfer-Encoding: chunked\r\n\r\n${TEXT.length.toString(16)};x=y\r\n${TEXT}\r\n0\r\nX: y\r\n\r\n`,
        ),
    ],
    ['until the end of the connection', (socket: NodeJS.WritableStream) => socket.end(`\r\n${TEXT}`)],
  ])('an answer that is %s is compressed alike, and the client’s connection is kept', async (_what, send) => {
    const server = await scriptedServer((_head, socket) => {
      socket.write('HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n');
      send(socket);
    });
    const proxy = await compressing(server);
    const client = new RawClient(proxy.port).send(get('/', 'Accept-Encoding: gzip\r\n'));
    const text = await client.until('0\r\n\r\n');
    expect(gunzipSync(unchunked(bodyOf(text))).toString()).toBe(TEXT);
    expect(fieldOf(text, 'Connection')).toEqual([]);
    client.text = '';
    client.send(accepting('gzip'));
    expect(gunzipSync(unchunked(bodyOf(await client.rest()))).toString()).toBe(TEXT);
  });

  test('what comes while nobody reads is bounded; all of it arrives in the end', async () => {
    const block = Buffer.from(randomBytes(96 * 1024).toString('base64'));
    const count = 200;
    let written = 0;
    const server = await rawServer((socket) => {
      socket.once('data', () => {
        socket.write(`HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: ${block.length * count}\r\n\r\n`);
        const more = () => {
          while (written < count) {
            written++;
            if (!socket.write(block)) return void socket.once('drain', more);
          }
        };
        more();
      });
      socket.on('end', () => socket.end());
    });
    const proxy = await compressing(server);
    const client = new RawClient(proxy.port);
    client.socket.pause();
    client.send(accepting('gzip'));
    let before = -1;
    let calm = performance.now();
    await eventually('the server stands still', () => {
      if (written !== before) calm = performance.now();
      before = written;
      return written > 0 && performance.now() - calm > 400;
    });
    expect(written).toBeLessThan(count);
    client.socket.resume();
    const body = gunzipSync(unchunked(bodyOf(await client.rest())));
    expect(body.length).toBe(block.length * count);
    expect(body.subarray(-block.length).equals(block)).toBe(true);
  });

  test('a stream of events: each arrives before the next is sent', async () => {
    let send = (_event: string) => {};
    const server = await scriptedServer((_head, socket) => {
      socket.write('HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n');
      send = (event) => socket.write(`${event.length.toString(16)}\r\n${event}\r\n`);
    });
    const proxy = await compressing(server);
    const client = new RawClient(proxy.port).send(get('/', 'Accept-Encoding: gzip\r\n'));
    await client.until('\r\n\r\n');
    const gunzip = createGunzip();
    let received = '';
    gunzip.on('data', (chunk: Buffer) => (received += chunk.toString()));
    let taken = client.text.length;
    for (const event of ['data: one\n\n', 'data: two\n\n', 'data: three\n\n']) {
      send(event);
      await eventually(event, () => {
        // Whole chunks only; none of these is cut by a read, as each is one small write.
        const chunk = /^([\da-f]+)\r\n/.exec(client.text.slice(taken));
        const size = chunk ? Number.parseInt(chunk[1]!, 16) : 0;
        const start = taken + (chunk?.[0].length ?? 0);
        if (size > 0 && client.text.length >= start + size + 2) {
          gunzip.write(Buffer.from(client.text.slice(start, start + size), 'latin1'));
          taken = start + size + 2;
        }
        return received.endsWith(event);
      });
    }
    expect(received).toBe('data: one\n\ndata: two\n\ndata: three\n\n');
  });

  test.each([
    [
      'a coding of the server’s own',
      'Content-Type: text/plain\r\nContent-Encoding: gzip\r\n',
      gzipSync(TEXT).toString('latin1'),
      [],
    ],
    ['a type that is not listed', 'Content-Type: image/png\r\n', TEXT, []],
    ['no type', '', TEXT, []],
    ['RFC 9111 5.2.2.6: no-transform', 'Content-Type: text/plain\r\nCache-Control: no-transform\r\n', TEXT, []],
    ['a body that is too short', 'Content-Type: text/plain\r\n', 'short', []],
  ])('%s: the answer stays as it is', async (_what, fields, body, vary) => {
    const proxy = await compressing(await serverOf(fields, body));
    const text = await talk(proxy.port, accepting('gzip, br'));
    expect(bodyOf(text)).toBe(body);
    expect(fieldOf(text, 'Content-Length')).toEqual([String(body.length)]);
    expect(fieldOf(text, 'Vary')).toEqual(vary);
  });

  test.each([
    ['a client that accepts none', getAndClose()],
    ['a client that refuses them', accepting('gzip;q=0, br;q=0, zstd;q=0')],
  ])('RFC 9110 12.5.5: %s gets the answer as it is, and caches are told that others do not', async (_what, request) => {
    const proxy = await compressing(await serverOf('Content-Type: text/plain\r\nVary: Cookie\r\nETag: "v1"\r\n', TEXT));
    const text = await talk(proxy.port, request);
    expect(bodyOf(text)).toBe(TEXT);
    expect(fieldOf(text, 'Vary')).toEqual(['Cookie', 'Accept-Encoding']);
    expect(fieldOf(text, 'ETag')).toEqual(['"v1"']);
    expect(fieldOf(text, 'Content-Length')).toEqual([String(TEXT.length)]);
  });

  test('HTTP/1.0 clients get it as it is: they could not be told where it ends', async () => {
    const proxy = await compressing(await serverOf('Content-Type: text/plain\r\n', TEXT));
    const text = await talk(proxy.port, 'GET / HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n');
    expect(bodyOf(text)).toBe(TEXT);
  });

  test('RFC 9110 14.2: a part of a resource stays as it is', async () => {
    const part = TEXT.slice(100, 1100);
    const head = 'HTTP/1.1 206 Partial Content\r\nContent-Type: text/plain\r\nContent-Range: bytes 100-1099/150000\r\n';
    const server = await scriptedServer((_head, socket) => socket.write(`${head}Content-Length: 1000\r\n\r\n${part}`));
    const proxy = await compressing(server);
    const text = await talk(proxy.port, accepting('gzip', 'Range: bytes=100-1099\r\n'));
    expect(statusOf(text)).toBe(206);
    expect(bodyOf(text)).toBe(part);
    expect(fieldOf(text, 'Content-Encoding')).toEqual([]);
  });

  test('the answer to HEAD stays as it is, and the connection goes on', async () => {
    const proxy = await compressing(await serverOf('Content-Type: text/plain\r\n', TEXT));
    const client = new RawClient(proxy.port).send('HEAD / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n');
    const text = await client.until('\r\n\r\n');
    expect(fieldOf(text, 'Content-Length')).toEqual([String(TEXT.length)]);
    client.text = '';
    client.send(accepting('gzip'));
    expect(gunzipSync(unchunked(bodyOf(await client.rest()))).toString()).toBe(TEXT);
  });

  test.each([
    ['with a length', `Content-Length: ${TEXT.length}\r\n\r\n${TEXT.slice(0, 50_000)}`, 'end'],
    ['chunked', `Transfer-Encoding: chunked\r\n\r\n${TEXT.length.toString(16)}\r\n${TEXT.slice(0, 50_000)}`, 'end'],
    ['chunked, malformed', `Transfer-Encoding: chunked\r\n\r\n3e8\r\n${TEXT.slice(0, 1000)}\r\nzz\r\n`, 'end'],
    ['until the end, by a reset', `\r\n${TEXT.slice(0, 50_000)}`, 'reset'],
  ])('an answer %s that is cut off is cut off for the client too', async (_what, rest, how) => {
    const server = await scriptedServer((_head, socket) => {
      socket.write('HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n');
      socket.write(rest);
      cutOff = () => (how === 'reset' ? socket.resetAndDestroy() : socket.end());
    });
    let cutOff = () => {};
    const proxy = await compressing(server);
    const client = new RawClient(proxy.port).send(get('/', 'Accept-Encoding: gzip\r\n'));
    await client.until('\r\n\r\n');
    cutOff();
    await client.rest();
    expect(client.error?.code).toBe('ECONNRESET');
    expect(client.text).not.toMatch(/\r\n0\r\n/);
  });

  test('a client that leaves in the middle leaves nothing behind', async () => {
    const server = await scriptedServer((_head, socket) => {
      socket.write('HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n');
      socket.write(TEXT);
    });
    const proxy = await compressing(server);
    const client = new RawClient(proxy.port).send(get('/', 'Accept-Encoding: gzip\r\n'));
    await client.until('gzip');
    client.socket.resetAndDestroy();
    await eventually('the server is left', () => server.accepted === 1 && server.sockets.size === 0);
    await eventually('nobody is left', () => proxy.figures('front').active === 0);
    expect(proxy.figures('web/s').active).toBe(0);
    expect(proxy.exits).toEqual([]);
  });

  test('pipelined answers, some of them compressed, do not get mixed up', async () => {
    const server = await scriptedServer((head, socket) => {
      const type = head.includes('/text') ? 'text/plain' : 'image/png';
      const body = `${head.split(' ')[1]!} ${TEXT}`;
      socket.write(`HTTP/1.1 200 OK\r\nContent-Type: ${type}\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
    });
    const proxy = await compressing(server);
    const field = 'Accept-Encoding: gzip\r\n';
    const text = await talk(proxy.port, get('/text/1', field) + get('/png/2', field) + getAndClose('/text/3', field));
    const [, first, second, third] = text.split(/HTTP\/1\.1 200 OK\r\n/);
    expect(gunzipSync(unchunked(bodyOf(first!))).toString()).toBe(`/text/1 ${TEXT}`);
    expect(bodyOf(second!)).toBe(`/png/2 ${TEXT}`);
    expect(gunzipSync(unchunked(bodyOf(third!))).toString()).toBe(`/text/3 ${TEXT}`);
  });
});

describe('error pages', () => {
  const page = (status: number, body: string, contentType = 'text/html; charset=utf-8') => ({
    status,
    contentType,
    body,
  });
  const frontend = {
    needsId: true,
    errorPages: [
      page(400, 'not understood, {id}'),
      page(404, 'nowhere'),
      page(502, 'front 502'),
      page(503, 'front 503, {id}'),
    ],
  };
  const nonsense = () => scriptedServer((_head, socket) => socket.write('nonsense\r\n\r\n'));

  test('a backend’s page goes before that of the frontend, which goes before ours', async () => {
    const proxy = await startProxy({
      workers: 1,
      servers: { s: await nonsense() },
      others: { down: { s: { port: 1, weight: 0 } } },
      rules: [
        { when: { path: '/down' }, use: 'down' },
        { when: { path: '/404' }, deny: 404 },
        { when: { path: '/410' }, deny: 410 },
      ],
      frontend,
      backend: { errorPages: [page(502, '{"at":"back"}', 'application/json')] },
    });
    const own = await talk(proxy.port, getAndClose());
    expect(own).toMatch(
      /^HTTP\/1\.1 502 Bad Gateway\r\nContent-Type: application\/json\r\n[^]*\r\n\r\n\{"at":"back"\}$/,
    );
    expect(bodyOf(await talk(proxy.port, getAndClose('/down')))).toMatch(/^front 503, \S+$/);
    expect(bodyOf(await talk(proxy.port, getAndClose('/404')))).toBe('nowhere');
    expect(bodyOf(await talk(proxy.port, getAndClose('/410')))).toBe('410 Gone\n');
  });

  test('{id} is the id that the server was told, another for each request', async () => {
    const ids: string[] = [];
    const server = await scriptedServer((head, socket) => {
      ids.push(/X-Request-Id: (.*)\r\n/.exec(head)![1]!);
      socket.end();
    });
    const proxy = await proxyBefore(server, {
      rules: [{ setHeader: { 'X-Request-Id': '{id}' } }],
      frontend: { needsId: true, errorPages: [page(502, 'id {id}.')] },
    });
    const bodies = [bodyOf(await talk(proxy.port, getAndClose())), bodyOf(await talk(proxy.port, getAndClose()))];
    expect(bodies).toEqual(ids.map((id) => `id ${id}.`));
    expect(new Set(ids).size).toBe(2);
  });

  test('a request that could not be read has the frontend’s page too', async () => {
    const proxy = await proxyBefore(await nonsense(), { frontend });
    const text = await talk(proxy.port, 'nonsense\r\n\r\n');
    expect(statusOf(text)).toBe(400);
    expect(bodyOf(text)).toMatch(/^not understood, \S+$/);
  });

  test('RFC 9110 9.3.2: HEAD gets the fields of the page, and no body', async () => {
    const proxy = await proxyBefore(await nonsense(), { frontend });
    const text = await talk(proxy.port, 'HEAD / HTTP/1.1\r\nHost: a\r\n\r\n');
    expect(text).toMatch(/^HTTP\/1\.1 502 Bad Gateway\r\n/);
    expect(fieldOf(text, 'Content-Length')).toEqual(['9']);
    expect(bodyOf(text)).toBe('');
  });

  test('an answer of a server is never replaced, whatever its status', async () => {
    const server = await scriptedServer((_head, socket) =>
      socket.write('HTTP/1.1 503 Away\r\nContent-Length: 4\r\n\r\nsoon'),
    );
    const proxy = await proxyBefore(server, { frontend });
    expect(await talk(proxy.port, getAndClose())).toMatch(/^HTTP\/1\.1 503 Away\r\n[^]*\r\n\r\nsoon$/);
  });
});
