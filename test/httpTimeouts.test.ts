/** Time limits of mode `http`: whose turn it was when one ran out decides what the other side gets. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { describe, expect, onTestFinished, test } from 'vitest';
import {
  blockedServer,
  bodyOf,
  eventually,
  get,
  getAndClose,
  httpServer,
  RawClient,
  rawServer,
  scriptedServer,
  startProxy,
  statusOf,
  talk,
} from './proxyHelpers.ts';
import type { Proxy, ProxyOptions } from './proxyHelpers.ts';

const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';
const echo = (request: IncomingMessage, response: ServerResponse): void => {
  response.writeHead(200, { 'Content-Length': 10 });
  request.pipe(response);
};
const silentServer = () => rawServer((socket) => void socket.resume().on('end', () => socket.end()));
const okServer = () => scriptedServer((_head, socket) => socket.write(OK));

const proxyBefore = (server: { port: number }, more: Partial<ProxyOptions> = {}): Promise<Proxy> =>
  startProxy({ servers: { s: server }, workers: 1, retries: 0, ...more });

/** Without a byte of the answer read: what the proxy can't send stays there. */
const deafClient = (proxy: Proxy, request: string): RawClient => {
  const client = new RawClient(proxy.port);
  client.socket.pause();
  return client.send(request);
};

const CHUNK_BYTES = 64 * 1024;
/** More than the kernel keeps for two connections. */
const HUGE = Buffer.alloc(24 * 1024 * 1024);

describe('httpRequest', () => {
  test('limits the whole head, not the silence between its bytes: 408', async () => {
    const server = await okServer();
    const proxy = await proxyBefore(server, { clientTimeouts: { httpRequest: 200 } });
    const client = new RawClient(proxy.port).send('GET / HTTP/1.1\r\nHost: a\r\n');
    const dripping = setInterval(() => client.send('X: y\r\n'), 20);
    const text = await client.rest();
    clearInterval(dripping);
    expect(statusOf(text)).toBe(408);
    expect(text).toContain('Connection: close\r\n');
    expect(server.accepted).toBe(0);
  });

  test('holds for the second request of a connection too, from its first byte on', async () => {
    const proxy = await proxyBefore(await okServer(), { clientTimeouts: { httpRequest: 200, keepAlive: 20_000 } });
    const client = new RawClient(proxy.port).send(get());
    await client.until('ok');
    client.send('GET /');
    await client.rest();
    expect(client.text.slice(OK.length)).toMatch(/^HTTP\/1\.1 408 /);
  });

  test('closes a new connection that never says anything, without a word', async () => {
    const proxy = await proxyBefore(await okServer(), { clientTimeouts: { httpRequest: 200, keepAlive: 20_000 } });
    const client = new RawClient(proxy.port);
    expect(await client.rest()).toBe('');
    await eventually('gone', () => proxy.figures('front').active === 0);
  });

  test('does not hold for bodies', async () => {
    const backend = await httpServer(echo);
    const proxy = await proxyBefore(backend, { clientTimeouts: { httpRequest: 150 } });
    const client = new RawClient(proxy.port).send('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n');
    let sent = 0;
    const dripping = setInterval(() => {
      if (sent++ < 10) client.send('x');
    }, 40);
    await client.until('x'.repeat(10));
    clearInterval(dripping);
    expect(statusOf(client.text)).toBe(200);
  });
});

describe('keepAlive', () => {
  test('closes an idle connection without a word: it may cross a request, which the client sends again', async () => {
    const proxy = await proxyBefore(await okServer(), { clientTimeouts: { keepAlive: 150, httpRequest: 20_000 } });
    const client = new RawClient(proxy.port).send(get());
    await client.rest();
    expect(client.text).toBe(OK);
    expect(client.error).toBeNull();
  });

  test('empty lines do not keep a connection', async () => {
    const proxy = await proxyBefore(await okServer(), { clientTimeouts: { keepAlive: 200, httpRequest: 20_000 } });
    const client = new RawClient(proxy.port).send(get());
    await client.until('ok');
    const dripping = setInterval(() => client.send('\r\n'), 40);
    await client.rest();
    clearInterval(dripping);
    expect(client.text).toBe(OK);
  });

  test('begins when the answer has been sent: a long request does not use it up', async () => {
    let respond: (() => void) | null = null;
    const server = await scriptedServer((_head, socket) => (respond = () => socket.write(OK)));
    const proxy = await proxyBefore(server, { clientTimeouts: { keepAlive: 400 } });
    const client = new RawClient(proxy.port).send(get());
    const begun = performance.now();
    await eventually('longer than keepAlive', () => respond !== null && performance.now() - begun > 600);
    respond!();
    await client.until('ok');
    client.send(get());
    await eventually('asked again', () => proxy.figures('web/s').requests === 2);
    expect(client.ended).toBe(false);
  });
});

describe('client', () => {
  test('a body that stops is a 408, and the server sees it cut off', async () => {
    const server = await silentServer();
    const proxy = await proxyBefore(server, { clientTimeouts: { client: 200 } });
    const client = new RawClient(proxy.port).send('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\npart');
    expect(statusOf(await client.rest())).toBe(408);
    await eventually('the server is left', () => server.accepted === 1 && server.sockets.size === 0);
  });

  test('each byte of a body begins it anew', async () => {
    const backend = await httpServer(echo);
    const proxy = await proxyBefore(backend, { clientTimeouts: { client: 800 } });
    const client = new RawClient(proxy.port).send('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n');
    let sent = 0;
    const dripping = setInterval(() => {
      if (sent++ < 10) client.send('x');
    }, 120);
    await client.until('x'.repeat(10));
    clearInterval(dripping);
    expect(statusOf(client.text)).toBe(200);
  });

  test('does not run while it is the server’s turn', async () => {
    let respond: (() => void) | null = null;
    const server = await scriptedServer((_head, socket) => (respond = () => socket.write(OK)));
    const proxy = await proxyBefore(server, { clientTimeouts: { client: 100, httpRequest: 100, keepAlive: 100 } });
    const client = new RawClient(proxy.port).send(get());
    const begun = performance.now();
    await eventually('longer than all of these', () => respond !== null && performance.now() - begun > 400);
    respond!();
    expect(statusOf(await client.until('ok'))).toBe(200);
  });

  test.each([
    ['while the server still sends', `Content-Length: ${HUGE.length}`],
    ['until the connection ends', 'X: y'],
  ])('a client that does not read its answer (%s) is reset, and its server is free', async (_what, field) => {
    const server = await scriptedServer((_head, socket) => {
      socket.write(`HTTP/1.1 200 OK\r\n${field}\r\n\r\n`);
      socket.write(HUGE);
    });
    const proxy = await proxyBefore(server, { clientTimeouts: { client: 300 } });
    const client = deafClient(proxy, get());
    await eventually('begun', () => proxy.figures('front').bytesOut > 100_000);
    await eventually('given up', () => proxy.figures('front').active === 0);
    expect(proxy.figures('web/s').active).toBe(0);
    await eventually('the server is left', () => server.sockets.size === 0);
    client.socket.resume();
    await client.rest();
    expect(client.error?.code).toBe('ECONNRESET');
  });

  test('a client that reads slowly, but reads, gets everything', async () => {
    const server = await scriptedServer((_head, socket) => {
      socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${HUGE.length}\r\n\r\n`);
      socket.write(HUGE);
    });
    const proxy = await proxyBefore(server, { clientTimeouts: { client: 800 }, timeouts: { server: 800 } });
    const client = deafClient(proxy, get());
    await eventually('begun', () => proxy.figures('front').bytesOut > 100_000);
    let received = 0;
    let atOnce = CHUNK_BYTES;
    client.socket.on('data', (chunk: Buffer) => {
      received += chunk.length;
      client.text = '';
      if (received % atOnce < chunk.length) client.socket.pause();
    });
    // Far less in each limit than makes room for more in the kernel's buffers, of which we would be told.
    const begunMs = performance.now();
    const reading = setInterval(() => {
      if (performance.now() - begunMs > 4000) atOnce = HUGE.length;
      client.socket.resume();
    }, 100);
    onTestFinished(() => clearInterval(reading));
    await eventually('all of it', () => received > HUGE.length, 20_000);
    expect(client.error).toBeNull();
  });
});

describe('server', () => {
  test('504 when it does not answer in time; it is left', async () => {
    const server = await silentServer();
    const proxy = await proxyBefore(server, { timeouts: { server: 200 } });
    expect(statusOf(await talk(proxy.port, get()))).toBe(504);
    await eventually('left', () => server.sockets.size === 0);
  });

  test('504 when half a head comes in time', async () => {
    const server = await scriptedServer((_head, socket) => socket.write('HTTP/1.1 200 OK\r\nContent'));
    const proxy = await proxyBefore(server, { timeouts: { server: 200 } });
    expect(statusOf(await talk(proxy.port, get()))).toBe(504);
  });

  test.each([
    ['with a length', 'Content-Length: 100\r\n\r\npart'],
    ['in chunks', 'Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n'],
    ['until the end', 'X: y\r\n\r\npart'],
    ['of which nothing comes', 'Content-Length: 100\r\n\r\n'],
  ])('an answer %s that stops in the middle is cut off: the client is reset', async (_what, rest) => {
    const server = await scriptedServer((_head, socket) => socket.write(`HTTP/1.1 200 OK\r\n${rest}`));
    const proxy = await proxyBefore(server, { timeouts: { server: 200 } });
    const client = new RawClient(proxy.port).send(get());
    await client.until(bodyOf(rest));
    await client.rest();
    expect(client.error?.code).toBe('ECONNRESET');
    expect(proxy.figures('web/s').active).toBe(0);
  });

  test('each part of an answer begins it anew, an interim one too', async () => {
    const server = await scriptedServer((_head, socket) => {
      const parts = [
        'HTTP/1.1 103 Early Hints\r\n\r\n',
        'HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n',
        'l',
        'a',
        's',
        't',
      ];
      const speaking = setInterval(() => {
        const part = parts.shift();
        if (part === undefined) clearInterval(speaking);
        else socket.write(part);
      }, 250);
      socket.on('close', () => clearInterval(speaking));
    });
    const proxy = await proxyBefore(server, { timeouts: { server: 900 } });
    const client = new RawClient(proxy.port).send(get());
    expect(await client.until('last')).toMatch(/^HTTP\/1\.1 103 [^]*HTTP\/1\.1 200 /);
  });

  test('does not run while the client still sends its request', async () => {
    const backend = await httpServer(echo);
    const proxy = await proxyBefore(backend, { timeouts: { server: 150 } });
    const client = new RawClient(proxy.port).send('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n');
    let sent = 0;
    const dripping = setInterval(() => {
      if (sent++ < 10) client.send('x');
    }, 50);
    await client.until('x'.repeat(10));
    clearInterval(dripping);
    expect(statusOf(client.text)).toBe(200);
  });
});

describe('connect', () => {
  test('504 when no attempt gets through, after as many retries as allowed', async () => {
    const proxy = await startProxy({
      servers: { s: await blockedServer() },
      workers: 1,
      retries: 2,
      timeouts: { connect: 150 },
    });
    expect(statusOf(await talk(proxy.port, getAndClose()))).toBe(504);
    expect(proxy.figures('web/s')).toMatchObject({ connectFailures: 3, retries: 2, active: 0 });
  });

  test('a server that can not be reached in time is passed over', async () => {
    const proxy = await startProxy({
      servers: { dead: await blockedServer(), good: await okServer() },
      workers: 1,
      balance: 'first',
      timeouts: { connect: 150 },
    });
    expect(statusOf(await talk(proxy.port, getAndClose()))).toBe(200);
    expect(proxy.figures('web/dead')).toMatchObject({ connectFailures: 1, redispatches: 1 });
  });
});

describe('queue', () => {
  test('503 for who has waited too long; who holds the place is not disturbed', async () => {
    let respond: (() => void) | null = null;
    const server = await scriptedServer((_head, socket) => (respond = () => socket.write(OK)));
    const proxy = await proxyBefore(
      { port: server.port, ...{ maxConnections: 1 } },
      { timeouts: { queue: 200, server: 20_000 } },
    );
    const holder = new RawClient(proxy.port).send(getAndClose());
    await eventually('the place is taken', () => respond !== null);
    const text = await talk(proxy.port, get());
    expect(statusOf(text)).toBe(503);
    expect(text).toContain('Retry-After: ');
    expect(proxy.figures('pool/web')).toMatchObject({ active: 1, queued: 0 });
    respond!();
    expect(bodyOf(await holder.rest())).toBe('ok');
    expect(server.accepted).toBe(1);
  });

  test('who gets a place in time is answered', async () => {
    const pending: (() => void)[] = [];
    const server = await scriptedServer((_head, socket) => pending.push(() => socket.write(OK)));
    const proxy = await proxyBefore({ port: server.port, ...{ maxConnections: 1 } }, { timeouts: { queue: 20_000 } });
    const holder = new RawClient(proxy.port).send(getAndClose());
    await eventually('the place is taken', () => pending.length === 1);
    const waiter = new RawClient(proxy.port).send(getAndClose());
    await eventually('one waits', () => proxy.figures('pool/web').queued === 1);
    pending[0]!();
    await holder.rest();
    await eventually('it has got the place', () => pending.length === 2);
    pending[1]!();
    expect(statusOf(await waiter.rest())).toBe(200);
  });
});

describe('tunnel', () => {
  const upgrade = get('/ws', 'Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n');
  const webSocketServer = () =>
    rawServer((socket) => {
      let open = false;
      socket.on('data', (chunk) => {
        if (open) socket.write(chunk);
        else socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n');
        open = true;
      });
      socket.on('end', () => socket.end());
    });

  test('alone decides how long an upgraded connection may be silent; then both sides are closed', async () => {
    const server = await webSocketServer();
    const proxy = await proxyBefore(server, {
      timeouts: { tunnel: 600, server: 100 },
      clientTimeouts: { client: 100, keepAlive: 100, httpRequest: 100 },
    });
    const client = new RawClient(proxy.port).send(upgrade);
    await client.until('101');
    const begun = performance.now();
    await eventually('longer than all others', () => performance.now() - begun > 300);
    client.send('hello');
    await client.until('hello');
    await client.rest();
    await eventually('the server is left', () => server.sockets.size === 0);
    expect(proxy.figures('web/s').active).toBe(0);
  });
});
