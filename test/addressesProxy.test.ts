/** Binds and servers at Unix sockets and at addresses of IPv6, through the real data plane. */
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import { connect, createServer } from 'node:net';
import type { AddressInfo, NetConnectOpts, Server, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { has } from './packages.ts';
import {
  bodyOf,
  eventually,
  get,
  getAndClose,
  HOST,
  httpServer,
  listenerModel,
  LOG,
  run,
  startProxy,
  statusOf,
} from './proxyHelpers.ts';
import type { Proxy, ProxyOptions } from './proxyHelpers.ts';

const tempFolder = (): string => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
};

const listening = async (server: Server, where: string | { host: string; port: number }): Promise<number> => {
  const sockets = new Set<Socket>();
  server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
  });
  if (typeof where === 'string') server.listen(where);
  else server.listen(where);
  await once(server, 'listening');
  onTestFinished(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return (server.address() as AddressInfo | string as AddressInfo).port;
};

/** Says what it was told of its client, and the Host. */
const teller = () =>
  createHttpServer((request, response) =>
    response.end(`${String(request.headers['x-forwarded-for'])} ${request.headers.host}`),
  );

/** A whole conversation, to an address of any kind. */
const talkTo = async (to: NetConnectOpts, text: string): Promise<string> => {
  const socket = connect(to);
  onTestFinished(() => void socket.destroy());
  let got = '';
  socket.on('data', (chunk: Buffer) => (got += chunk.toString('latin1')));
  socket.write(text);
  await once(socket, 'close');
  return got;
};

const hasIpv6 = (): Promise<boolean> =>
  new Promise((done) => {
    const server = createServer();
    server.once('error', () => done(false));
    server.listen(0, '::1', () => server.close(() => done(true)));
  });

describe('Unix sockets', () => {
  const startAt = async (
    path: string,
    options: Partial<ProxyOptions> = {},
    mode: number | null = null,
  ): Promise<Proxy> => {
    const { listener, ...rest } = options;
    return startProxy({
      servers: {
        s: await httpServer((request, response) => response.end(request.headers['x-forwarded-for'] ?? 'none')),
      },
      frontend: { log: LOG },
      listener: { address: { host: path, port: 0, path }, socketFile: { mode, uid: null, gid: null }, ...listener },
      ...rest,
    });
  };

  test('a bind: both workers accept, and each request is served', async () => {
    const path = join(tempFolder(), 'shop.sock');
    const proxy = await startAt(path, { rules: [{ response: { setHeader: { 'X-Id': '{id}' } } }] });
    const workers = new Set<string>();
    for (let round = 0; round < 200 && workers.size < 2; round++) {
      const texts = await Promise.all(Array.from({ length: 8 }, () => talkTo({ path }, getAndClose())));
      for (const text of texts) {
        expect(statusOf(text)).toBe(200);
        workers.add(/X-Id: \w+-(\w+)-/.exec(text)![1]!);
      }
    }
    expect([...workers].toSorted()).toEqual(['0', '1']);
    expect(proxy.records()[0]).toMatchObject({ clientAddress: 'unix', clientPort: 0 });
  });

  test('a bind whose file has the mode that was asked for', async () => {
    const path = join(tempFolder(), 'shop.sock');
    await startAt(path, {}, 0o600);
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });

  test('a file that a dead program has left is taken over, one that is used is not', async () => {
    const folder = tempFolder();
    const path = join(folder, 'shop.sock');
    const other = createServer();
    await listening(other, path);
    await expect(startAt(path)).rejects.toThrow(/EADDRINUSE/);
    const left = join(folder, 'left.sock');
    await run('python3', ['-c', `import socket; socket.socket(socket.AF_UNIX).bind(${JSON.stringify(left)})`]);
    expect(existsSync(left)).toBe(true);
    await startAt(left);
    expect(statusOf(await talkTo({ path: left }, getAndClose()))).toBe(200);
  });

  test('a file that is no socket is not removed', async () => {
    const path = join(tempFolder(), 'shop.sock');
    writeFileSync(path, 'precious');
    await expect(startAt(path)).rejects.toThrow(/EADDRINUSE/);
    expect(statSync(path).size).toBe('precious'.length);
  });

  test('a client there that is a proxy tells of its clients', async () => {
    const path = join(tempFolder(), 'shop.sock');
    await startAt(path, { listener: { proxyProtocol: { from: ['unix'], required: true } } });
    const text = await talkTo({ path }, `PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n${getAndClose()}`);
    expect(bodyOf(text)).toBe('192.0.2.7');
  });

  test('a listener that was drained can be opened again at the same path', async () => {
    const path = join(tempFolder(), 'shop.sock');
    const proxy = await startAt(path);
    proxy.dataPlane.drainListener('main');
    await eventually('it is drained', () => proxy.drained.length === 1);
    await expect(talkTo({ path }, getAndClose())).rejects.toThrow(/ECONNREFUSED/);
    proxy.dataPlane.openListener(listenerModel(0, { address: { host: path, port: 0, path } }));
    await eventually('both workers listen again', () => proxy.listenings.length === 4);
    expect(statusOf(await talkTo({ path }, getAndClose()))).toBe(200);
  });

  test('a server, in both modes', async () => {
    const path = join(tempFolder(), 'app.sock');
    await listening(teller(), path);
    const model = { address: { host: path, port: 0, path }, defaultHost: 'localhost' };
    const http = await startProxy({ servers: { s: { port: 0, model } } });
    for (let round = 0; round < 3; round++)
      expect(bodyOf(await talkTo({ port: http.port, host: HOST }, getAndClose()))).toBe(`${HOST} shop.example`);
    expect(bodyOf(await talkTo({ port: http.port, host: HOST }, 'GET / HTTP/1.0\r\n\r\n'))).toBe(`${HOST} localhost`);
    const tcp = await startProxy({ mode: 'tcp', servers: { s: { port: 0, model } } });
    expect(bodyOf(await talkTo({ port: tcp.port, host: HOST }, getAndClose()))).toBe('undefined shop.example');
  });

  test('a server whose file is not there: 502', async () => {
    const path = join(tempFolder(), 'app.sock');
    const model = { address: { host: path, port: 0, path } };
    const proxy = await startProxy({ servers: { s: { port: 0, model } }, retries: 0 });
    expect(statusOf(await talkTo({ port: proxy.port, host: HOST }, getAndClose()))).toBe(502);
    expect(proxy.figures('web/s').connectFailures).toBe(1);
  });

  test.skipIf(!has('curl'))('curl', async () => {
    const path = join(tempFolder(), 'shop.sock');
    await startAt(path);
    expect(await run('curl', ['-sS', '--unix-socket', path, 'http://shop.example/'])).toMatchObject({ status: 0 });
  });
});

describe.skipIf(!(await hasIpv6()))('IPv6', () => {
  test('a bind and a server', async () => {
    const port = await listening(teller(), { host: '::1', port: 0 });
    const proxy = await startProxy({
      servers: { s: { port, model: { address: { host: '::1', port }, defaultHost: `[::1]:${port}` } } },
      listener: { address: { host: '::1', port: 0 } },
      frontend: { log: LOG },
      rules: [{ when: { source: '::1/128' }, response: { setHeader: { 'X-From': '{source}' } } }],
    });
    const to = { port: proxy.port, host: '::1' };
    const text = await talkTo(to, getAndClose());
    expect(bodyOf(text)).toBe('::1 shop.example');
    expect(text).toContain('X-From: ::1\r\n');
    expect(bodyOf(await talkTo(to, 'GET / HTTP/1.0\r\n\r\n'))).toBe(`::1 [::1]:${port}`);
    await eventually('both are logged', () => proxy.records().length === 2);
    expect(proxy.records()[0]).toMatchObject({ clientAddress: '::1' });
  });

  test('* is both families, and a client of IPv4 is told of as such', async () => {
    const server = await httpServer((request, response) => response.end(request.headers['x-forwarded-for']));
    const proxy = await startProxy({ servers: { s: server }, listener: { address: { host: '*', port: 0 } } });
    expect(bodyOf(await talkTo({ port: proxy.port, host: HOST }, getAndClose()))).toBe(HOST);
    expect(bodyOf(await talkTo({ port: proxy.port, host: '::1' }, getAndClose()))).toBe('::1');
  });

  test(':: is IPv6 alone', async () => {
    const server = await httpServer((_request, response) => response.end());
    const proxy = await startProxy({ servers: { s: server }, listener: { address: { host: '::', port: 0 } } });
    expect(statusOf(await talkTo({ port: proxy.port, host: '::1' }, getAndClose()))).toBe(200);
    await expect(talkTo({ port: proxy.port, host: HOST }, get())).rejects.toThrow(/ECONNREFUSED/);
  });

  test('a server told by its name is resolved', async () => {
    const port = await listening(teller(), { host: HOST, port: 0 });
    const proxy = await startProxy({
      servers: { s: { port, model: { address: { host: 'localhost', port } } } },
    });
    expect(statusOf(await talkTo({ port: proxy.port, host: HOST }, getAndClose()))).toBe(200);
  });

  test('a server whose name does not exist: 502', async () => {
    const proxy = await startProxy({
      servers: { s: { port: 80, model: { address: { host: 'nobody.invalid', port: 80 } } } },
      retries: 0,
    });
    expect(statusOf(await talkTo({ port: proxy.port, host: HOST }, getAndClose()))).toBe(502);
  });
});
