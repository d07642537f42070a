/** The lines that requests and connections leave in the access log, through real workers; beside HAProxy's own. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { log as logSchema } from '../src/config/log.ts';
import type { LogFormat } from '../src/proxy/accessLogFormat.ts';
import { AccessLogWriter } from '../src/proxy/accessLogWriter.ts';
import { startHaproxy } from './haproxy.ts';
import { has } from './packages.ts';
import {
  blockedServer,
  closedPort,
  eventually,
  get,
  getAndClose,
  RawClient,
  rawServer,
  scriptedServer,
  startProxy,
  talk,
} from './proxyHelpers.ts';
import type { Proxy, ProxyOptions, RawServer } from './proxyHelpers.ts';

const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';
const PART = 'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart';
const POST = 'POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 9\r\n\r\npart';

type Logged = { proxy: Proxy; lines(count: number): Promise<string[]> };

/** One worker whose access log is a file. */
const startLogged = async (format: LogFormat, options: ProxyOptions, more: object = {}): Promise<Logged> => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'access.log');
  const writer = new AccessLogWriter(({ message }) => expect.fail(message));
  onTestFinished(() => writer.close());
  const { access } = logSchema.parse({ access: { path, format, ...more } });
  const proxy = await startProxy({
    workers: 1,
    retries: 0,
    ...options,
    logOf: (worker) => writer.memoryOf(worker),
    frontend: { log: writer.sink(access!), ...options.frontend },
  });
  const lines = async (count: number) => {
    await eventually(`${count} lines`, () => writer.figures().written >= count);
    return readFileSync(path, 'latin1').split('\n').slice(0, -1);
  };
  return { proxy, lines };
};

/** Without what varies: who and when, sizes, connections. `+` is any time; -1 stays, as it says how far it came. */
const masked = (line: string): string => {
  const [, names = '', timers = '', status = '', termination = '', retries = '', request = ''] =
    /^\S+ \[\S+\] (\S+ \S+) (\S+) (?:(-?\d+) )?\d+ (?:- - )?(\S{2,4}) \d+\/\d+\/\d+\/\d+\/(\+?\d+) \d+\/\d+(.*)$/.exec(
      line,
    ) ?? [];
  const times = timers.split('/').map((time) => (time === '-1' ? time : '+'));
  return [names, times.join('/'), status, termination, retries, request.trim()].filter((part) => part !== '').join(' ');
};

type Scene = { port: number; server: RawServer; proxy: Proxy | null };
type Case = {
  what: string;
  line: string;
  /** Null where HAProxy does not notice before a time-out of another kind; the reason where it differs stands beside it. */
  haproxys?: string | null;
  server: () => Promise<RawServer>;
  client: (scene: Scene) => Promise<unknown>;
  options?: Partial<ProxyOptions>;
  spec?: { weight?: number; maxConnections?: number };
  /** Its configuration for the same: lines of the frontend, of the backend, options of the server. */
  front?: string[];
  back?: string[];
  serverOptions?: string;
};

const saying =
  (text: string, then: 'end' | 'reset' | null = null) =>
  () =>
    scriptedServer((_head, socket) => {
      socket.write(text);
      if (then === 'end') setImmediate(() => socket.end());
      if (then === 'reset') setImmediate(() => socket.resetAndDestroy());
    });
const silent = () => rawServer((socket) => void socket.resume().on('end', () => socket.end()));
const nobody = async () => ({ ...(await silent()), port: await closedPort() });
const unreachable = async () => ({ ...(await silent()), port: (await blockedServer()).port });

const ask = ({ port }: Scene) => talk(port, getAndClose());
const hasCome = ({ server }: Scene) =>
  eventually('it is at the server', () => [...server.sockets].some(({ bytesRead }) => bytesRead > 0));
const leaves = async (client: RawClient, how: 'end' | 'reset') => {
  if (how === 'reset') client.socket.resetAndDestroy();
  else {
    client.socket.end();
    await client.rest();
  }
};

const own = 'front front/<NOSRV> +/-1/-1/-1/+';
const GET = '"GET / HTTP/1.1"';
const BAD = 'front front/<NOSRV> -1/-1/-1/-1/+';

const cases: Case[] = [
  { what: '--: an answer', line: `front web/s +/+/+/+/+ 200 ---- 0 ${GET}`, server: saying(OK), client: ask },
  {
    what: '--: an error of the server',
    line: `front web/s +/+/+/+/+ 500 ---- 0 ${GET}`,
    server: saying(OK.replace('200', '500')),
    client: ask,
  },
  {
    what: '--: a client that half-closes and gets its answer',
    line: `front web/s +/+/+/+/+ 200 ---- 0 ${GET}`,
    server: saying(OK),
    client: ({ port }) => leaves(new RawClient(port).send(get()), 'end'),
  },
  {
    what: '--: an answer that makes the rest of the request needless',
    line: 'front web/s +/+/+/+/+ 413 ---- 0 "POST / HTTP/1.1"',
    // It waits for the rest.
    haproxys: 'front web/s +/+/+/+/+ 413 cD-- 0 "POST / HTTP/1.1"',
    server: saying(OK.replace('200', '413')),
    client: ({ port }) => talk(port, POST),
    front: ['timeout client 200ms'],
  },
  {
    what: 'PR: denied',
    line: `${own} 403 PR-- 0 ${GET}`,
    server: silent,
    client: ask,
    options: { rules: [{ deny: 403 }] },
    front: ['http-request deny'],
  },
  {
    what: 'LR: answered by a rule',
    line: `${own} 200 LR-- 0 ${GET}`,
    server: silent,
    client: ask,
    options: { rules: [{ return: 200 }] },
    front: ['http-request return status 200'],
  },
  {
    what: 'LR: redirected',
    line: `${own} 302 LR-- 0 ${GET}`,
    server: silent,
    client: ask,
    options: { rules: [{ redirect: '/a' }] },
    front: ['http-request redirect location /a'],
  },
  {
    what: 'PT: held in a tarpit',
    line: `front front/<NOSRV> +/+/-1/-1/+ 500 PT-- 0 ${GET}`,
    // Its head was complete at once all the same.
    haproxys: `front front/<NOSRV> -1/+/-1/-1/+ 500 PT-- 0 ${GET}`,
    server: silent,
    client: ask,
    options: { rules: [{ tarpit: '100ms' }] },
    front: ['http-request tarpit', 'timeout tarpit 100ms'],
  },
  {
    what: 'CT: left a tarpit',
    line: `front front/<NOSRV> +/+/-1/-1/+ -1 CT-- 0 ${GET}`,
    haproxys: null,
    server: silent,
    client: async ({ port, proxy }) => {
      const client = new RawClient(port).send(get());
      await eventually('it has come', () => proxy!.figures('front').requests === 1);
      await leaves(client, 'reset');
    },
    options: { rules: [{ tarpit: '60s' }] },
  },
  {
    what: 'PR: a head that is not valid',
    line: `${BAD} 400 PR-- 0 "<BADREQ>"`,
    server: silent,
    client: ({ port }) => talk(port, 'GET / HTTP/1.1\r\nHost : a\r\n\r\n'),
  },
  {
    what: 'CR: a head that the client cuts off',
    line: `${BAD} 400 CR-- 0 "<BADREQ>"`,
    server: silent,
    client: ({ port }) => leaves(new RawClient(port).send('GET / HTTP/1.1\r\n'), 'end'),
  },
  {
    what: 'CR: a head that the client cuts off by a reset, so that it was told nothing',
    line: `${BAD} -1 CR-- 0 "<BADREQ>"`,
    haproxys: null,
    server: silent,
    client: async ({ port, proxy }) => {
      const client = new RawClient(port).send('GET / HTTP/1.1\r\n');
      await eventually('it has come', () => proxy!.figures('front').bytesIn > 0);
      await leaves(client, 'reset');
    },
  },
  {
    what: 'cR: a head that comes too slowly',
    line: `${BAD} 408 cR-- 0 "<BADREQ>"`,
    server: silent,
    client: ({ port }) => talk(port, 'GET / HTTP/1.1\r\n'),
    options: { clientTimeouts: { httpRequest: 150 } },
    front: ['timeout http-request 150ms'],
  },
  {
    what: 'CQ: left the queue',
    line: `front web/<NOSRV> +/+/-1/-1/+ -1 CQ-- 0 ${GET}`,
    haproxys: null,
    server: silent,
    spec: { maxConnections: 1 },
    client: async (scene) => {
      new RawClient(scene.port).send(get('/first'));
      await hasCome(scene);
      const client = new RawClient(scene.port).send(get());
      await eventually('it waits', () => scene.proxy!.figures('pool/web').queued === 1);
      await leaves(client, 'reset');
    },
  },
  {
    what: 'sQ: too long in the queue',
    line: `front web/<NOSRV> +/+/-1/-1/+ 503 sQ-- 0 ${GET}`,
    server: silent,
    spec: { maxConnections: 1 },
    client: async (scene) => {
      new RawClient(scene.port).send(get('/first'));
      await hasCome(scene);
      await ask(scene);
    },
    options: { timeouts: { queue: 150 } },
    back: ['timeout queue 150ms'],
    serverOptions: 'maxconn 1',
  },
  {
    what: 'SQ: the queue is full',
    line: `front web/<NOSRV> +/-1/-1/-1/+ 503 SQ-- 0 ${GET}`,
    // Its servers' queues can be full, its backends' never.
    haproxys: null,
    server: silent,
    spec: { maxConnections: 1 },
    client: async (scene) => {
      new RawClient(scene.port).send(get('/first'));
      await hasCome(scene);
      await ask(scene);
    },
    options: { backend: { maxQueue: 0 } },
  },
  {
    what: 'SC: no server',
    line: `front web/<NOSRV> +/-1/-1/-1/+ 503 SC-- 0 ${GET}`,
    server: silent,
    spec: { weight: 0 },
    client: ask,
    serverOptions: 'disabled',
  },
  {
    what: 'SC: the server refuses',
    line: `front web/s +/+/-1/-1/+ 502 SC-- 0 ${GET}`,
    // Ours names the server as the cause, as RFC 9110 sections 15.6.3 and 15.6.5 have it.
    haproxys: `front web/s +/+/-1/-1/+ 503 SC-- 0 ${GET}`,
    server: nobody,
    client: ask,
    back: ['retries 0'],
  },
  {
    what: 'sC: the server can not be reached in time',
    line: `front web/s +/+/-1/-1/+ 504 sC-- 0 ${GET}`,
    haproxys: `front web/s +/+/-1/-1/+ 503 sC-- 0 ${GET}`,
    server: unreachable,
    client: ask,
    options: { timeouts: { connect: 150 } },
    back: ['retries 0', 'timeout connect 150ms'],
  },
  {
    what: 'CC: left while the server is being connected to',
    line: `front web/s +/+/-1/-1/+ -1 CC-- 0 ${GET}`,
    haproxys: null,
    server: unreachable,
    client: async ({ port, proxy }) => {
      const client = new RawClient(port).send(get());
      await eventually('connecting', () => proxy!.figures('web/s').active === 1);
      await leaves(client, 'reset');
    },
  },
  {
    what: 'CH: left while the server thinks',
    line: `front web/s +/+/+/-1/+ -1 CH-- 0 ${GET}`,
    haproxys: null,
    server: silent,
    client: async (scene) => {
      const client = new RawClient(scene.port).send(get());
      await hasCome(scene);
      await leaves(client, 'reset');
    },
  },
  {
    what: 'cH: a body that stops',
    line: 'front web/s +/+/+/-1/+ 408 cH-- 0 "POST / HTTP/1.1"',
    // It goes on waiting for the server's answer to half a request. Its manual says cH.
    haproxys: null,
    server: silent,
    client: ({ port }) => talk(port, POST),
    options: { clientTimeouts: { client: 150 } },
  },
  ...(['end', 'reset'] as const).map((how): Case => ({
    what: `CD: a body that is cut off by the client’s ${how}`,
    line: 'front web/s +/+/+/-1/+ -1 CD-- 0 "POST / HTTP/1.1"',
    server: silent,
    client: async (scene) => {
      const client = new RawClient(scene.port).send(POST);
      await hasCome(scene);
      await leaves(client, how);
    },
  })),
  {
    what: 'PH: a body whose chunks are not valid',
    line: 'front web/s +/+/+/-1/+ 400 PH-- 0 "POST / HTTP/1.1"',
    server: silent,
    client: async (scene) => {
      const client = new RawClient(scene.port).send(
        `POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n`,
      );
      await hasCome(scene);
      await client.send('xyz\r\n').rest();
    },
  },
  {
    what: 'PD: the same when the answer has begun, which nothing can be added to',
    line: 'front web/s +/+/+/+/+ 200 PD-- 0 "POST / HTTP/1.1"',
    server: saying(PART),
    client: async ({ port }) => {
      const client = new RawClient(port).send(
        'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n',
      );
      await client.until('part');
      expect(await client.send('xyz\r\n').rest()).toMatch(/part$/);
    },
  },
  {
    what: 'SH: the server ends instead of answering',
    line: 'front web/s +/+/+/-1/+ 502 SH-- 0 "POST / HTTP/1.1"',
    server: saying('', 'end'),
    client: ({ port }) => talk(port, 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n'),
    back: ['retries 0'],
  },
  {
    what: 'sH: the server does not answer in time',
    line: `front web/s +/+/+/-1/+ 504 sH-- 0 ${GET}`,
    server: silent,
    client: ask,
    options: { timeouts: { server: 150 } },
    back: ['timeout server 150ms'],
  },
  {
    what: 'PH: an answer that is not valid',
    line: `front web/s +/+/+/-1/+ 502 PH-- 0 ${GET}`,
    server: saying('nonsense\r\n\r\n'),
    client: ask,
  },
  {
    what: 'SD: an answer that is cut off',
    line: `front web/s +/+/+/+/+ 200 SD-- 0 ${GET}`,
    server: saying(PART, 'end'),
    client: ask,
  },
  {
    what: 'sD: an answer that stops',
    line: `front web/s +/+/+/+/+ 200 sD-- 0 ${GET}`,
    server: saying(PART),
    client: ask,
    options: { timeouts: { server: 150 } },
    back: ['timeout server 150ms'],
  },
  {
    what: 'PD: an answer whose chunks are not valid',
    line: `front web/s +/+/+/+/+ 200 PD-- 0 ${GET}`,
    // Its manual says PD.
    haproxys: `front web/s +/+/+/+/+ 200 SD-- 0 ${GET}`,
    server: () =>
      scriptedServer((_head, socket) => {
        socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n');
        setTimeout(() => socket.write('zz\r\n'), 100);
      }),
    client: ask,
  },
  {
    what: 'CD: left in the middle of its answer',
    line: `front web/s +/+/+/+/+ 200 CD-- 0 ${GET}`,
    // It learns of that when it writes again.
    haproxys: null,
    server: saying(PART),
    client: async ({ port }) => {
      const client = new RawClient(port).send(get());
      await client.until('part');
      await leaves(client, 'reset');
    },
  },
  {
    what: 'cD: does not read its answer',
    line: `front web/s +/+/+/+/+ 200 cD-- 0 ${GET}`,
    server: () =>
      scriptedServer((_head, socket) => {
        socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${24 * 1024 * 1024}\r\n\r\n`);
        socket.write(Buffer.alloc(24 * 1024 * 1024));
      }),
    client: async ({ port }) => {
      const client = new RawClient(port);
      client.socket.pause();
      client.send(get());
    },
    options: { clientTimeouts: { client: 200 } },
    front: ['timeout client 200ms'],
  },
];

describe('httplog: how a request ended, and how far it came', () => {
  test.each(cases)('$what', async ({ server: serverOf, client, line, options, spec }) => {
    const server = await serverOf();
    const { proxy, lines } = await startLogged('httplog', {
      servers: { s: { port: server.port, ...spec } },
      ...options,
    });
    await client({ port: proxy.port, server, proxy });
    expect((await lines(1)).map(masked)).toEqual([line]);
  });

  test.skipIf(!has('haproxy')).each(cases.filter(({ haproxys }) => haproxys !== null))(
    'HAProxy’s line for $what',
    async ({ server: serverOf, client, line, haproxys = line, front = [], back = [], serverOptions = '' }) => {
      const server = await serverOf();
      const haproxy = await startHaproxy(
        '',
        [
          'mode http',
          'option httplog',
          'log global',
          'timeout http-request 5s',
          ...front,
          'default_backend web',
          'backend web',
          'mode http',
          ...back,
          `server s 127.0.0.1:${server.port} ${serverOptions}`,
        ].join('\n'),
      );
      await client({ port: haproxy.port, server, proxy: null });
      expect((await haproxy.lines(1)).map(masked)).toEqual([haproxys]);
    },
  );
});

describe('what else becomes of requests', () => {
  test('DD and DH: the server went down and its sessions were ended; -- with a retry where that was possible', async () => {
    const server = await scriptedServer((head, socket) => {
      if (head.includes('/begun')) socket.write(PART);
    });
    const { proxy, lines } = await startLogged('httplog', { servers: { s: server } });
    const begun = new RawClient(proxy.port).send(get('/begun'));
    await begun.until('part');
    const waiting = new RawClient(proxy.port).send('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n');
    await eventually('both are there', () => proxy.figures('web/s').active === 2);
    await eventually('at the server', () => server.accepted === 2);
    proxy.dataPlane.publish('web', 'serving', { s: 0 });
    proxy.dataPlane.shutdownSessions('web', 's');
    await Promise.all([begun.rest(), waiting.rest()]);
    expect((await lines(2)).map(masked).toSorted()).toEqual([
      'front web/s +/+/+/+/+ 200 DD-- 0 "GET /begun HTTP/1.1"',
      'front web/s +/+/+/-1/+ 502 DH-- 0 "POST / HTTP/1.1"',
    ]);
  });

  test('retries are counted, + says that another server was chosen', async () => {
    const good = await scriptedServer((_head, socket) => socket.write(OK));
    const options = { retries: 2, balance: 'first', servers: { dead: { port: await closedPort() }, good } };
    const { proxy, lines } = await startLogged('httplog', options);
    await talk(proxy.port, getAndClose());
    expect((await lines(1)).map(masked)).toEqual([`front web/good +/+/+/+/+ 200 ---- +1 ${GET}`]);
  });

  test('each request of a connection has its line, in order; one that can not be read ends it', async () => {
    const server = await scriptedServer((_head, socket) => socket.write(OK));
    const { proxy, lines } = await startLogged('httplog', {
      servers: { s: server },
      rules: [{ when: { path: '/no' }, deny: 404 }],
    });
    await talk(proxy.port, `${get('/1')}${get('/no')}HEAD /2 HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\n`);
    expect((await lines(4)).map(masked)).toEqual([
      'front web/s +/+/+/+/+ 200 ---- 0 "GET /1 HTTP/1.1"',
      'front front/<NOSRV> +/-1/-1/-1/+ 404 PR-- 0 "GET /no HTTP/1.1"',
      'front web/s +/+/+/+/+ 200 ---- 0 "HEAD /2 HTTP/1.1"',
      `${BAD} 400 PR-- 0 "<BADREQ>"`,
    ]);
  });

  test('connections without a request leave none: health checks and browsers open many', async () => {
    const server = await scriptedServer((_head, socket) => socket.write(OK));
    const { proxy, lines } = await startLogged('httplog', { servers: { s: server } });
    await leaves(new RawClient(proxy.port), 'end');
    const kept = new RawClient(proxy.port).send(get());
    await kept.until('ok');
    await leaves(kept, 'end');
    await talk(proxy.port, getAndClose('/last'));
    expect((await lines(2)).map(masked)).toEqual([
      `front web/s +/+/+/+/+ 200 ---- 0 ${GET}`,
      'front web/s +/+/+/+/+ 200 ---- 0 "GET /last HTTP/1.1"',
    ]);
  });

  test('only errors, when only those are wanted', async () => {
    const server = await scriptedServer((head, socket) =>
      socket.write(head.includes('/500') ? OK.replace('200', '500') : OK),
    );
    const { proxy, lines } = await startLogged('httplog', { servers: { s: server } }, { only: 'errors' });
    await talk(proxy.port, get() + get('/500') + getAndClose('/2'));
    await talk(proxy.port, 'nonsense\r\n\r\n');
    expect((await lines(2)).map(masked)).toEqual([
      'front web/s +/+/+/+/+ 500 ---- 0 "GET /500 HTTP/1.1"',
      `${BAD} 400 PR-- 0 "<BADREQ>"`,
    ]);
  });
});

const TIMES = [
  'handshakeMs',
  'idleMs',
  'requestMs',
  'queueMs',
  'connectMs',
  'responseMs',
  'dataMs',
  'totalMs',
] as const;
type Json = Record<string, unknown> & Record<(typeof TIMES)[number], number>;
const objects = (lines: string[]): Json[] => lines.map((line) => JSON.parse(line) as Json);

describe('json', () => {
  test('a line has what was asked, who answered, and the fields that are wanted', async () => {
    const server = await scriptedServer((_head, socket) =>
      socket.write(OK.replace('\r\n\r\n', '\r\nX-Cache: HIT\r\n\r\n')),
    );
    const { proxy, lines } = await startLogged(
      'json',
      { servers: { s: server }, frontend: { needsId: true } },
      { requestHeaders: ['User-Agent', 'X-None'], responseHeaders: ['X-Cache'] },
    );
    const credentials = Buffer.from('ann:secret').toString('base64');
    const request = getAndClose('/a?b="c"', `User-Agent: caf\xe9 "1"\r\nAuthorization: Basic ${credentials}\r\n`);
    const client = new RawClient(proxy.port).send(request);
    const answer = await client.rest();
    const [line] = objects(await lines(1));
    for (const key of TIMES) expect(line![key], key).toBeGreaterThanOrEqual(0);
    const isTime = (key: string) => key.endsWith('Ms');
    const { time, requestId, clientPort, ...rest } = Object.fromEntries(
      Object.entries(line!).filter(([key]) => !isTime(key)),
    );
    expect(Math.abs(Date.now() - Date.parse(String(time)))).toBeLessThan(60_000);
    expect(requestId).toMatch(/\S/);
    expect(clientPort).toBeGreaterThan(0);
    expect(rest).toEqual({
      mode: 'http',
      client: '127.0.0.1',
      frontend: 'front',
      backend: 'web',
      server: 's',
      method: 'GET',
      target: '/a?b="c"',
      version: 'HTTP/1.1',
      host: 'shop.example',
      status: 200,
      bytesRead: answer.length,
      bytesUploaded: request.length,
      termination: '----',
      retries: 0,
      redispatched: false,
      processConnections: 1,
      frontendConnections: 1,
      backendConnections: 1,
      serverConnections: 1,
      serverQueue: 0,
      backendQueue: 0,
      user: 'ann',
      requestHeaders: { 'user-agent': 'caf\xe9 "1"', 'x-none': null },
      responseHeaders: { 'x-cache': 'HIT' },
    });
  });

  test('each time is where it was spent, and the whole is no less than its parts', async () => {
    const pending: (() => void)[] = [];
    const server = await scriptedServer((_head, socket) => {
      pending.push(() => {
        socket.write('HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi');
        setTimeout(() => socket.write('ve'), 100);
      });
    });
    const { proxy, lines } = await startLogged('json', { servers: { s: { port: server.port, maxConnections: 1 } } });
    const later = (ms: number) => new Promise((done) => void setTimeout(done, ms));
    const holder = new RawClient(proxy.port).send(getAndClose('/holder'));
    await eventually('it holds the only place', () => pending.length === 1);
    const client = new RawClient(proxy.port);
    await eventually('it is connected', () => proxy.figures('front').active === 2);
    await later(100);
    client.send('GET /slow HTTP/1.1\r\n');
    await later(100);
    client.send('Host: a\r\nConnection: close\r\n\r\n');
    await eventually('it waits', () => proxy.figures('pool/web').queued === 1);
    await later(100);
    pending[0]!();
    await holder.rest();
    await eventually('it has the place', () => pending.length === 2);
    await later(100);
    pending[1]!();
    await client.rest();
    const line = objects(await lines(2))[1]!;
    for (const key of ['idleMs', 'requestMs', 'queueMs', 'responseMs', 'dataMs'] as const)
      expect(line[key], key).toBeGreaterThan(90);
    const { requestMs, queueMs, connectMs, responseMs, totalMs, dataMs } = line;
    expect(requestMs + queueMs + connectMs + responseMs).toBeLessThanOrEqual(totalMs);
    expect(requestMs + queueMs + connectMs + responseMs + dataMs).toBeCloseTo(totalMs, 1);
  });

  test('the second request of a connection: idle since the first was answered, no handshake, bytes of its own', async () => {
    const server = await scriptedServer((_head, socket) => socket.write(OK));
    const { proxy, lines } = await startLogged('json', { servers: { s: server } });
    const client = new RawClient(proxy.port).send(get());
    await client.until('ok');
    const answered = performance.now();
    await eventually('some time has passed', () => performance.now() - answered > 150);
    client.send(getAndClose('/22'));
    await client.rest();
    const [first, second] = objects(await lines(2));
    expect(second!.idleMs).toBeGreaterThan(140);
    expect(second!.totalMs).toBeLessThan(second!.idleMs);
    expect(second).toMatchObject({ handshakeMs: 0, bytesUploaded: getAndClose('/22').length, target: '/22' });
    expect(first).toMatchObject({ bytesUploaded: get().length, bytesRead: OK.length });
  });

  test.each([
    ['a page of ours', {}, getAndClose(), 503],
    ['an answer of a rule', { rules: [{ return: { body: 'pong' } }] }, getAndClose(), 200],
    ['a refusal', {}, 'nonsense\r\n\r\n', 400],
    ['a tarpit', { rules: [{ tarpit: '20ms' }] }, get(), 500],
  ])('bytesRead are all that the client got: %s', async (_what, options, request, status) => {
    const { proxy, lines } = await startLogged('json', { servers: { s: { port: 1, weight: 0 } }, ...options });
    const text = await talk(proxy.port, request);
    expect(objects(await lines(1))).toMatchObject([{ status, bytesRead: text.length, bytesUploaded: request.length }]);
  });

  test('a WebSocket has one line, at its end, with all its bytes', async () => {
    const head = 'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n';
    const server = await rawServer((socket) => {
      socket.once('data', () => {
        socket.write(head);
        socket.on('data', (chunk) => socket.write(chunk));
      });
      socket.on('end', () => socket.end());
    });
    const { proxy, lines } = await startLogged('json', { servers: { s: server } });
    const request = get('/ws', 'Connection: Upgrade\r\nUpgrade: websocket\r\n');
    const client = new RawClient(proxy.port).send(request);
    await client.until('\r\n\r\n');
    client.send('hello');
    await client.until('hello');
    await leaves(client, 'end');
    expect(objects(await lines(1))).toMatchObject([
      {
        status: 101,
        termination: '----',
        bytesRead: client.text.length,
        bytesUploaded: request.length + 5,
        method: 'GET',
      },
    ]);
  });
});

type TcpCase = {
  what: string;
  line: string;
  haproxys?: string | null;
  server: () => Promise<RawServer>;
  client: (scene: Scene) => Promise<unknown>;
  options?: Partial<ProxyOptions>;
  front?: string[];
  back?: string[];
};

const echo = () =>
  rawServer((socket) => {
    socket.on('data', (chunk) => socket.write(chunk));
    socket.on('end', () => socket.end());
  });
const says = async ({ port }: Scene): Promise<RawClient> => {
  const client = new RawClient(port).send('hello');
  await client.until('hello');
  return client;
};

const tcpCases: TcpCase[] = [
  {
    what: '--: both sides have ended',
    line: 'front web/s +/+/+ -- 0',
    server: echo,
    client: async (scene) => leaves(await says(scene), 'end'),
  },
  {
    what: 'CD: the client resets',
    line: 'front web/s +/+/+ CD 0',
    server: echo,
    client: async (scene) => leaves(await says(scene), 'reset'),
  },
  {
    what: 'SD: the server resets',
    line: 'front web/s +/+/+ SD 0',
    server: echo,
    client: async (scene) => {
      const client = await says(scene);
      for (const socket of scene.server.sockets) socket.resetAndDestroy();
      await client.rest();
    },
  },
  {
    what: 'cD: both are silent for too long',
    line: 'front web/s +/+/+ cD 0',
    server: echo,
    client: async (scene) => (await says(scene)).rest(),
    options: { clientTimeouts: { client: 150 }, timeouts: { server: 150 } },
    front: ['timeout client 150ms'],
    back: ['timeout server 2s'],
  },
  {
    what: 'SC: the server refuses',
    line: 'front web/s +/-1/+ SC 0',
    server: nobody,
    client: ({ port }) => talk(port, 'hello'),
    back: ['retries 0'],
  },
  {
    what: 'sC: the server can not be reached in time',
    line: 'front web/s +/-1/+ sC 0',
    server: unreachable,
    client: ({ port }) => talk(port, 'hello'),
    options: { timeouts: { connect: 150 } },
    back: ['retries 0', 'timeout connect 150ms'],
  },
  {
    what: 'CC: left while the server is being connected to',
    line: 'front web/s +/-1/+ CC 0',
    haproxys: null,
    server: unreachable,
    client: async ({ port, proxy }) => {
      const client = new RawClient(port);
      await eventually('connecting', () => proxy!.figures('web/s').active === 1);
      await leaves(client, 'reset');
    },
  },
  {
    what: 'PR: rejected',
    line: 'front front/<NOSRV> -1/-1/+ PR 0',
    server: silent,
    client: ({ port }) => talk(port, ''),
    options: { rules: [{ reject: true }] },
    front: ['tcp-request content reject'],
  },
  {
    what: 'sQ: too long in the queue',
    line: 'front web/<NOSRV> +/-1/+ sQ 0',
    haproxys: null,
    server: echo,
    client: async (scene) => {
      await says(scene);
      await talk(scene.port, '');
    },
    options: { timeouts: { queue: 150 }, servers: {} },
  },
];

describe('tcplog: how a connection ended', () => {
  test.each(tcpCases)('$what', async ({ server: serverOf, client, line, options }) => {
    const server = await serverOf();
    const { proxy, lines } = await startLogged('tcplog', {
      mode: 'tcp',
      ...options,
      servers: { s: { port: server.port, maxConnections: options?.servers ? 1 : 0 } },
    });
    await client({ port: proxy.port, server, proxy });
    expect((await lines(1)).map(masked)).toEqual([line]);
  });

  test.skipIf(!has('haproxy')).each(tcpCases.filter(({ haproxys }) => haproxys !== null))(
    'HAProxy’s line for $what',
    async ({ server: serverOf, client, line, haproxys = line, front = [], back = [] }) => {
      const server = await serverOf();
      const haproxy = await startHaproxy(
        '',
        [
          'mode tcp',
          'option tcplog',
          'log global',
          ...front,
          'default_backend web',
          'backend web',
          'mode tcp',
          ...back,
          `server s 127.0.0.1:${server.port}`,
        ].join('\n'),
      );
      await client({ port: haproxy.port, server, proxy: null });
      expect((await haproxy.lines(1)).map(masked)).toEqual([haproxys]);
    },
  );
});
