/** HTTP/2 end to end: real clients, the real data plane with two worker threads, servers of HTTP/1.1. */
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import type { ClientHttp2Session } from 'node:http2';
import type { Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { gunzipSync } from 'node:zlib';
import { http2Schema } from '../src/config/http2.ts';
import { compressionSchema } from '../src/config/responses.ts';
import { data, END_HEADERS, get, headers, HEADERS, RawClient, reset, settings } from './http2Frames.ts';
import type { FieldList } from './http2Frames.ts';
import { has } from './packages.ts';
import {
  eventually,
  HOST,
  http2Answer,
  http2Ask,
  http2Client,
  httpServer,
  LOG,
  rawServer,
  run,
  scriptedServer,
  startProxy,
  tlsModel,
} from './proxyHelpers.ts';
import type { Proxy, ProxyOptions } from './proxyHelpers.ts';
import { makeCertificates } from './tlsHelpers.ts';
import type { Files } from './tlsHelpers.ts';

const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';
const PROTOCOL_ERROR = 1;
const CANCEL = 8;
const backwards = (bytes: Buffer): Buffer => Buffer.from(bytes.toReversed());
const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
const sha = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');

describe.skipIf(!has('openssl'))('HTTP/2', () => {
  let files: Files;
  beforeAll(() => {
    files = makeCertificates();
  });
  afterAll(() => files.remove());

  const start = (options: Partial<ProxyOptions> & Pick<ProxyOptions, 'servers'>): Promise<Proxy> =>
    startProxy({
      ...options,
      frontend: { log: LOG, ...options.frontend },
      listener: {
        tls: tlsModel([files.read('shop.pem')], { alpn: ['h2', 'http/1.1'] }),
        http2: http2Schema.parse({}),
        ...options.listener,
      },
    });

  const okServer = () => scriptedServer((_head, socket) => socket.write(OK));

  /** A client that sends what it is told to, having said hello. */
  const rawHttp2 = async (port: number): Promise<RawClient> => {
    const socket = connectTls({ port, host: HOST, rejectUnauthorized: false, ALPNProtocols: ['h2'] });
    onTestFinished(() => void socket.destroy());
    await once(socket, 'secureConnect');
    const client = new RawClient(socket);
    client.send(PREFACE, settings());
    return client;
  };

  /** A proxy before this server, and a client of it. */
  const startAndConnect = async (
    servers: ProxyOptions['servers'],
    options: Partial<ProxyOptions> = {},
  ): Promise<{ proxy: Proxy; client: ClientHttp2Session }> => {
    const proxy = await start({ servers, ...options });
    return { proxy, client: http2Client(proxy.port) };
  };

  describe('requests and answers', () => {
    test.skipIf(!has('curl'))('curl sends and gets', async () => {
      const server = await httpServer((request, response) => {
        request.pipe(response.setHeader('X-Method', request.method!));
      });
      const { port } = await start({ servers: { s: server } });
      const curl = (...args: string[]) =>
        run('curl', [
          '-sS',
          '--http2',
          '-k',
          '--resolve',
          `shop.test:${port}:${HOST}`,
          ...args,
          `https://shop.test:${port}/`,
        ]);
      expect(await curl('-D', '-', '--data', 'hello')).toMatchObject({
        status: 0,
        stdout: expect.stringMatching(/^HTTP\/2 200 \r\nx-method: POST\r\n[^]*\r\n\r\nhello$/),
      });
      expect((await curl('-I')).stdout).toMatch(/^HTTP\/2 200 \r\nx-method: HEAD\r\n/);
      expect((await curl('-w', '%{http_version} %{response_code}', '-X', 'DELETE')).stdout).toBe('2 200');
    });

    test.skipIf(!has('nghttp'))('nghttp gets', async () => {
      const { port } = await start({ servers: { s: await okServer() } });
      const ran = await run('nghttp', ['-v', '--no-dep', `https://${HOST}:${port}/`]);
      expect(ran.stdout).toMatch(/:status: 200/);
      expect(ran.stdout).not.toMatch(/GOAWAY.*PROTOCOL_ERROR/);
    });

    test('a hundred at a time, each with a body of its own both ways', async () => {
      const server = await httpServer((request, response) => {
        const parts: Buffer[] = [];
        request.on('data', (chunk: Buffer) => parts.push(chunk));
        request.on('end', () => {
          const body = Buffer.concat(parts);
          response.setHeader('X-Got', sha(body));
          response.end(backwards(body));
        });
      });
      const { proxy, client } = await startAndConnect({ s: server });
      const rounds = Array.from({ length: 100 }, async (_, index) => {
        const body = randomBytes(index * 1_000);
        const fields = index % 2 === 0 ? {} : { 'content-length': body.length };
        const answer = await http2Ask(client, { ':method': 'POST', ':path': `/${index}`, ...fields }, body);
        expect(answer.status).toBe(200);
        expect(answer.headers['x-got']).toBe(sha(body));
        expect(sha(answer.body)).toBe(sha(backwards(body)));
      });
      await Promise.all(rounds);
      expect(proxy.figures('front')).toMatchObject({ http2Requests: 100, requests: 100, connections: 1 });
      await eventually('all places are free', () => proxy.figures('pool/web').active === 0);
    });

    test('what the server sees', async () => {
      let seen = '';
      const server = await scriptedServer((head, socket) => {
        seen = head;
        socket.write(OK);
      });
      const { client } = await startAndConnect({ s: server });
      await http2Ask(client, { ':path': '/a?b=c', cookie: 'a=1; b=2', te: 'trailers', 'x-own': 'kept' });
      const lines = seen.toLowerCase().split('\r\n');
      expect(lines[0]).toBe('get /a?b=c http/1.1');
      expect(lines).toEqual(
        expect.arrayContaining([
          'host: shop.test',
          'cookie: a=1; b=2',
          'x-own: kept',
          'x-forwarded-proto: https',
          `x-forwarded-for: ${HOST}`,
        ]),
      );
      expect(lines.filter((line) => /^(connection|te|:)/.test(line))).toEqual([]);
    });

    test('HEAD, 204 and 304 have no body, and say what the server said', async () => {
      const server = await scriptedServer((head, socket) => {
        if (head.startsWith('HEAD')) socket.write('HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n');
        else if (head.includes('/204')) socket.write('HTTP/1.1 204 No Content\r\n\r\n');
        else socket.write('HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 99\r\n\r\n');
      });
      const { proxy, client } = await startAndConnect({ s: server }, { workers: 1 });
      const head = await http2Ask(client, { ':method': 'HEAD' });
      expect(head).toMatchObject({ status: 200, headers: { 'content-length': '1234' }, body: Buffer.alloc(0) });
      expect(await http2Ask(client, { ':path': '/204' })).toMatchObject({ status: 204, body: Buffer.alloc(0) });
      const unchanged = await http2Ask(client, { ':path': '/304' });
      expect(unchanged).toMatchObject({ status: 304, headers: { etag: '"a"' }, body: Buffer.alloc(0) });
      expect(proxy.figures('web/s')).toMatchObject({ connects: 1, reuses: 2 });
    });

    test('trailers go both ways', async () => {
      const server = await httpServer((request, response) => {
        request.resume();
        request.on('end', () => {
          response.writeHead(200, { Trailer: 'X-Sum' });
          response.write('body');
          response.addTrailers({ 'X-Sum': String(request.trailers['x-check']) });
          response.end();
        });
      });
      const { client } = await startAndConnect({ s: server });
      const stream = client.request({ ':method': 'POST', ':authority': 'shop.test' }, { waitForTrailers: true });
      stream.on('wantTrailers', () => stream.sendTrailers({ 'x-check': '42' }));
      stream.end('body');
      const answer = await http2Answer(stream);
      expect(answer.body.toString()).toBe('body');
      expect(answer.trailers).toMatchObject({ 'x-sum': '42' });
    });

    test('interim answers pass, and 100-continue is asked of the server', async () => {
      const server = await scriptedServer((head, socket) => {
        if (head.startsWith('GET')) {
          socket.write('HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n');
          setTimeout(() => socket.write(OK), 20);
        } else {
          socket.write('HTTP/1.1 100 Continue\r\n\r\n');
          socket.once('data', () => socket.write(OK));
        }
      });
      const { client } = await startAndConnect({ s: server });
      expect(await http2Ask(client)).toMatchObject({ interim: [103], status: 200 });
      const stream = client.request({ ':method': 'POST', ':authority': 'shop.test', expect: '100-continue' });
      const answer = http2Answer(stream);
      await once(stream, 'continue');
      stream.end('x');
      expect((await answer).status).toBe(200);
    });

    test('its line in the access log', async () => {
      const { proxy, client } = await startAndConnect({ s: await okServer() });
      await http2Ask(client, { ':path': '/a?b' });
      await eventually('it is logged', () => proxy.records().length === 1);
      expect(proxy.records()[0]).toMatchObject({
        method: 'GET',
        target: '/a?b',
        version: 'HTTP/2.0',
        host: 'shop.test',
        status: 200,
        termination: '--',
        clientAddress: HOST,
        backend: 'web',
        server: 's',
        tlsVersion: 'TLSv1.3',
        serverName: 'shop.test',
      });
      expect(proxy.records()[0]!.bytesRead).toBeGreaterThan(2);
    });
  });

  describe('what the proxy does with them', () => {
    const ask = async (rule: unknown, fields: Record<string, string> = {}, frontend: ProxyOptions['frontend'] = {}) => {
      const server = await okServer();
      const { client } = await startAndConnect({ s: server }, { rules: [rule], frontend: { ...frontend } });
      return { answer: await http2Ask(client, fields), accepted: server.accepted };
    };

    test('a rule denies', async () => {
      const { answer, accepted } = await ask({ when: { path: '/admin/**' }, deny: 403 }, { ':path': '/admin/x' });
      expect(answer.status).toBe(403);
      expect(answer.body.toString()).toContain('403');
      expect(accepted).toBe(0);
    });

    test('a rule denies HEAD, without a body', async () => {
      const { answer } = await ask({ deny: 403 }, { ':method': 'HEAD' });
      expect(answer).toMatchObject({ status: 403, body: Buffer.alloc(0) });
    });

    test('a rule redirects', async () => {
      const { answer } = await ask({ redirect: { prefix: 'https://{host}/new', status: 301 } }, { ':path': '/a?b' });
      expect(answer).toMatchObject({ status: 301, headers: { location: 'https://shop.test/new/a?b' } });
    });

    test('a rule changes the answer', async () => {
      const { answer } = await ask({ response: { setHeader: { 'X-Scheme': '{scheme} {serverName}' } } });
      expect(answer.headers['x-scheme']).toBe('https shop.test');
    });

    test('a denied request with a body does not cost the connection', async () => {
      const { client } = await startAndConnect(
        { s: await okServer() },
        { rules: [{ when: { method: 'POST' }, deny: 403 }] },
      );
      for (let round = 0; round < 3; round++) {
        expect((await http2Ask(client, { ':method': 'POST' }, Buffer.alloc(200_000))).status).toBe(403);
        expect((await http2Ask(client)).status).toBe(200);
      }
    });

    test('compresses', async () => {
      const text = 'understudy '.repeat(5_000);
      const server = await httpServer((_request, response) => {
        response.setHeader('Content-Type', 'text/plain').end(text);
      });
      const compression = compressionSchema.parse({});
      const { proxy, client } = await startAndConnect({ s: server }, { frontend: { compression } });
      const answer = await http2Ask(client, { 'accept-encoding': 'gzip' });
      expect(answer.headers).toMatchObject({ 'content-encoding': 'gzip', vary: 'Accept-Encoding' });
      expect(answer.body.length).toBeLessThan(text.length / 10);
      expect(gunzipSync(answer.body).toString()).toBe(text);
      expect(proxy.figures('front').compressedResponses).toBe(1);
    });

    test('a page of the operator stands for an error', async () => {
      const errorPages = [{ status: 503, contentType: 'text/html; charset=utf-8', body: '<h1>back soon</h1>' }];
      const { client } = await startAndConnect({ s: { port: 1, weight: 0 } }, { frontend: { errorPages } });
      const answer = await http2Ask(client);
      expect(answer).toMatchObject({ status: 503, headers: { 'content-type': 'text/html; charset=utf-8' } });
      expect(answer.body.toString()).toBe('<h1>back soon</h1>');
    });

    test('a request whose server dies before it answers goes to another, which the client never notices', async () => {
      const dying = await scriptedServer((_head, socket) => socket.destroy());
      const { proxy, client } = await startAndConnect({ a: dying, b: await okServer() });
      const answers = await Promise.all(Array.from({ length: 20 }, () => http2Ask(client)));
      expect(answers.map(({ status }) => status)).toEqual(Array.from({ length: 20 }, () => 200));
      expect(dying.accepted).toBeGreaterThan(0);
      expect(proxy.figures('web/a').retries).toBe(dying.accepted);
    });

    test('a POST whose server dies is a 502, and the next request is served', async () => {
      const dying = await scriptedServer((head, socket) =>
        head.startsWith('POST') ? socket.destroy() : socket.write(OK),
      );
      const { client } = await startAndConnect({ s: dying });
      expect((await http2Ask(client, { ':method': 'POST' }, 'x')).status).toBe(502);
      expect((await http2Ask(client)).status).toBe(200);
    });
  });

  describe('what is cut off is never taken for whole', () => {
    test.each([
      ['until the close, by a reset', 'HTTP/1.1 200 OK\r\n\r\npart', 'reset'],
      ['until the close, by silence', 'HTTP/1.1 200 OK\r\n\r\npart', 'silence'],
      ['of a length, by the end of the connection', 'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart', 'end'],
      ['of a length, by silence', 'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart', 'silence'],
      [
        'in chunks, by the end of the connection',
        'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n',
        'end',
      ],
      ['in chunks, that are none', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n', 'zz\r\n'],
    ])('an answer %s', async (_, text, how) => {
      const server = await scriptedServer((_head, socket) => {
        socket.write(text);
        // The client has got the beginning by then.
        setTimeout(() => {
          if (how === 'end') socket.end();
          else if (how === 'reset') socket.resetAndDestroy();
          else if (how !== 'silence') socket.write(how);
        }, 100);
      });
      const { proxy, client } = await startAndConnect({ s: server }, { timeouts: { server: 300 } });
      await expect(http2Ask(client)).rejects.toThrow(/NGHTTP2_INTERNAL_ERROR/);
      await eventually('it is logged', () => proxy.records().length === 1);
      expect(proxy.records()[0]!.termination).toMatch(/^[SPs]D$/);
      expect(client.destroyed).toBe(false);
    });

    test('a body whose client resets: its server never sees the end', async () => {
      let whole = false;
      let gone = false;
      const server = await httpServer((request) => {
        request.resume();
        request.on('end', () => (whole = true));
        request.on('error', () => (gone = true));
      });
      const proxy = await start({ servers: { s: server } });
      // Node's own client ends a body before it resets its stream.
      const client = await rawHttp2(proxy.port);
      client.send(headers(1, get({ ':method': 'POST' }), END_HEADERS), data(1, 'half'));
      await eventually('it has begun', () => server.requests.length === 1);
      client.send(reset(1, CANCEL));
      await eventually('the server hears of it', () => gone);
      expect(whole).toBe(false);
      await eventually('it is logged', () => proxy.records().length === 1);
      expect(proxy.records()[0]).toMatchObject({ status: 0, termination: 'CD' });
    });
  });

  describe('flow control', () => {
    const SLOW_BYTES = 20_000_000;

    test('an upload to a server that does not read stops its client, not the others; then all of it arrives', async () => {
      let slow: Socket | null = null;
      const server = await rawServer((socket) => {
        socket.once('data', (bytes: Buffer) => {
          if (bytes.toString('latin1').startsWith('POST')) {
            socket.pause();
            socket.unshift(bytes);
            slow = socket;
          } else socket.write(OK);
        });
      });
      const proxy = await start({ servers: { s: server }, workers: 1 });
      const client = http2Client(proxy.port, { maxSessionMemory: 100 });
      const body = randomBytes(SLOW_BYTES);
      const stream = client.request({ ':method': 'POST', ':authority': 'shop.test', 'content-length': SLOW_BYTES });
      const answer = http2Answer(stream);
      stream.end(body);
      await eventually('it has begun', () => slow !== null);
      let last = -1;
      await eventually('it has come to a halt', () => {
        const { bytesIn } = proxy.figures('front');
        const isHalted = bytesIn > 0 && bytesIn === last && stream.writableLength > 0;
        last = bytesIn;
        return isHalted;
      });
      expect((await http2Ask(client)).status).toBe(200);
      const hash = createHash('sha256');
      let got = 0;
      let head = true;
      const reader = slow as unknown as Socket;
      reader.on('data', (bytes: Buffer) => {
        const from = head ? bytes.indexOf('\r\n\r\n') + 4 : 0;
        head = false;
        hash.update(bytes.subarray(from));
        got += bytes.length - from;
        if (got === SLOW_BYTES) reader.write(OK);
      });
      reader.resume();
      expect((await answer).status).toBe(200);
      expect(hash.digest('hex')).toBe(sha(body));
    });

    test('answers that nobody reads wait at their servers, and the connection goes on with others', async () => {
      const server = await httpServer((request, response) => {
        if (request.url === '/big') response.end(Buffer.alloc(SLOW_BYTES));
        else response.end('ok');
      });
      const { proxy, client } = await startAndConnect({ s: server }, { workers: 1 });
      const unread = Array.from({ length: 20 }, () => {
        const stream = client.request({ ':path': '/big', ':authority': 'shop.test' });
        stream.on('error', () => {});
        stream.pause();
        return stream;
      });
      await Promise.all(unread.map((stream) => once(stream, 'response')));
      expect((await http2Ask(client)).body.toString()).toBe('ok');
      let last = -1;
      await eventually('all have come to a halt', () => {
        const { bytesOut } = proxy.figures('web/s');
        const isHalted = bytesOut === last;
        last = bytesOut;
        return isHalted;
      });
      // What a window and the buffers of the proxy take, for each.
      expect(proxy.figures('web/s').bytesOut).toBeLessThan(20 * 600_000);
      for (const stream of unread) stream.close(8);
      await eventually('they are given up', () => proxy.figures('web/s').active === 0);
      expect((await http2Ask(client)).body.toString()).toBe('ok');
    });
  });

  describe('WebSocket (RFC 8441)', () => {
    const tunnel = {
      ':method': 'CONNECT',
      ':protocol': 'websocket',
      'sec-websocket-version': '13',
      ':authority': 'shop.test',
      ':path': '/chat',
    };

    test('goes over a stream, both ways, until one side ends it', async () => {
      let seen = '';
      const server = await rawServer((socket) => {
        socket.once('data', (bytes) => {
          seen = bytes.toString('latin1');
          const key = /sec-websocket-key: (\S+)/i.exec(seen)![1]!;
          const accept = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
          socket.write(
            `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
          );
          socket.pipe(socket);
        });
      });
      const { proxy, client } = await startAndConnect({ s: server });
      await once(client, 'remoteSettings');
      const stream = client.request(tunnel, { endStream: false });
      const [head] = (await once(stream, 'response')) as [Record<string, unknown>];
      expect(head[':status']).toBe(200);
      expect(seen).toMatch(/^GET \/chat HTTP\/1.1\r\n/);
      expect(seen).toMatch(/\r\nsec-websocket-version: 13\r\n/i);
      let echoed = '';
      stream.on('data', (bytes: Buffer) => (echoed += bytes.toString('latin1')));
      stream.write(Buffer.from('\x81\x05hello', 'latin1'));
      await eventually('it comes back', () => echoed === '\x81\x05hello');
      stream.end();
      await once(stream, 'close');
      await eventually('it is logged', () => proxy.records().some(({ status }) => status === 101));
      await eventually('its place is free', () => proxy.figures('web/s').active === 0);
    });

    test('a server that refuses is heard', async () => {
      const server = await scriptedServer((_head, socket) =>
        socket.write('HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno'),
      );
      const { client } = await startAndConnect({ s: server });
      await once(client, 'remoteSettings');
      const stream = client.request(tunnel, { endStream: false });
      expect(await http2Answer(stream)).toMatchObject({ status: 403, body: Buffer.from('no') });
    });
  });

  test('RFC 9113 section 6.8: a drain sends GOAWAY, lets requests finish, and closes', async () => {
    const waiting: ServerResponse[] = [];
    const server = await httpServer((_request, response) => void waiting.push(response));
    const { proxy, client } = await startAndConnect({ s: server });
    let goaway: number | null = null;
    client.on('goaway', (code) => (goaway = code));
    const answer = http2Ask(client);
    await eventually('it is under way', () => waiting.length === 1);
    proxy.dataPlane.drainListener('main');
    await eventually('it is told', () => goaway === 0);
    expect(proxy.drained).toEqual([]);
    waiting[0]!.end('done');
    expect((await answer).body.toString()).toBe('done');
    await eventually('it is drained', () => proxy.drained.length === 1);
    await eventually('and closed', () => client.destroyed);
  });

  describe('RFC 9113: malformed requests never reach a server, and the connection goes on', () => {
    test.each<[string, FieldList]>([
      ['8.2.1: upper case in a name', get({}, ['X-Upper', '1'])],
      ['8.2.2: a connection-specific field', get({}, ['transfer-encoding', 'chunked'])],
      ['8.3: a pseudo-header field behind others', [...get({ ':path': null }), ['x-a', 'b'], [':path', '/']]],
      ['8.3.1: no path', get({ ':path': null })],
      ['8.3.1: a line end in a path', get({ ':path': '/ HTTP/1.1\r\nx-evil: 1' })],
      ['8.3.1: Host other than :authority', get({}, ['host', 'evil.example'])],
      ['8.1.1: two lengths', get({}, ['content-length', '1'], ['content-length', '2'])],
    ])('%s', async (_, fields) => {
      const server = await okServer();
      const proxy = await start({ servers: { s: server }, workers: 1 });
      const client = await rawHttp2(proxy.port);
      client.send(headers(1, fields));
      expect(await client.resetCode(1)).toBe(PROTOCOL_ERROR);
      expect(server.accepted).toBe(0);
      client.send(headers(3, get({})));
      await client.frame(HEADERS, 3);
      expect(server.accepted).toBe(1);
    });
  });

  test.skipIf(!has('h2load'))(
    'h2load: every request of ten connections with twenty streams each succeeds',
    async () => {
      const { port } = await start({ servers: { s: await okServer() } });
      const { stdout } = await run('h2load', ['-n', '4000', '-c', '10', '-m', '20', `https://${HOST}:${port}/`]);
      expect(stdout).toContain('4000 total, 4000 started, 4000 done, 4000 succeeded, 0 failed, 0 errored, 0 timeout');
      expect(stdout).toContain('status codes: 4000 2xx');
    },
  );
});
