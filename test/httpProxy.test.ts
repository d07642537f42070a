/** Mode `http` through the real data plane: two worker threads before real servers. */
import { execFileSync, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, request as httpRequest } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect as tlsConnect } from 'node:tls';
import { setTimeout as wait } from 'node:timers/promises';
import { describe, expect, onTestFinished, test } from 'vitest';
import { has } from './packages.ts';
import {
  blockedServer,
  bodyOf,
  closedPort,
  eventually,
  get,
  getAndClose,
  HOST,
  httpServer,
  listenerModel,
  RawClient,
  rawServer,
  scriptedServer,
  startProxy,
  statusOf,
  talk,
  tlsModel,
} from './proxyHelpers.ts';

const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';
const answer =
  (text: string) =>
  (_request: IncomingMessage, response: ServerResponse): void =>
    void response.end(text);

const okServer = () => scriptedServer((_head, socket) => socket.write(OK));

/** The head that a server gets for this request. */
const headSeenFor = async (request: string): Promise<string> => {
  let seen = '';
  const server = await scriptedServer((head, socket) => {
    seen = head;
    socket.write(OK);
  });
  const proxy = await startProxy({ servers: { s: server } });
  await new RawClient(proxy.port).send(request).until('ok');
  return seen;
};

const tempFolder = (): string => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
};

describe('connections', () => {
  test('both sides are kept alive: 60 requests over 3 connections are few connections to the server', async () => {
    const backend = await httpServer(answer('hello'));
    const proxy = await startProxy({ servers: { s: backend } });
    const agent = new Agent({ keepAlive: true, maxSockets: 3 });
    onTestFinished(() => agent.destroy());
    const one = () =>
      new Promise<string>((done, refuse) => {
        httpRequest({ port: proxy.port, host: HOST, agent }, (response) => {
          let text = '';
          response.on('data', (chunk: Buffer) => (text += chunk.toString()));
          response.on('end', () => done(text));
        })
          .on('error', refuse)
          .end();
      });
    const answers = await Promise.all(Array.from({ length: 60 }, one));
    expect(answers.every((text) => text === 'hello')).toBe(true);
    expect(backend.connections).toBeLessThanOrEqual(3);
    expect(proxy.figures('front').sessions).toBe(3);
    expect(proxy.figures('web/s').requests).toBe(60);
  });

  test('pipelined requests are answered in their order', async () => {
    const backend = await httpServer((request, response) => {
      setTimeout(() => response.end(request.url), request.url === '/1' ? 50 : 0);
    });
    const proxy = await startProxy({ servers: { s: backend } });
    const text = await talk(proxy.port, get('/1') + get('/2') + getAndClose('/3'));
    expect(text.match(/\/\d(?=HTTP|$)/g)).toEqual(['/1', '/2', '/3']);
  });

  test('a client that half-closes after a whole POST is still answered', async () => {
    const backend = await httpServer((request, response) => void request.pipe(response));
    const proxy = await startProxy({ servers: { s: backend } });
    const client = new RawClient(proxy.port);
    client.socket.end('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello');
    const text = await client.rest();
    expect(statusOf(text)).toBe(200);
    expect(text).toContain('hello');
  });

  test('a client that half-closes after pipelined requests gets every answer', async () => {
    const backend = await httpServer((request, response) => void response.end(request.url));
    const proxy = await startProxy({ servers: { s: backend } });
    const client = new RawClient(proxy.port);
    client.socket.end(get('/1') + get('/2'));
    expect((await client.rest()).match(/\/\d(?=HTTP|$)/g)).toEqual(['/1', '/2']);
  });

  test('a client that resets while its server is at work frees its place', async () => {
    const backend = await httpServer(() => {});
    const proxy = await startProxy({ servers: { s: backend } });
    const client = new RawClient(proxy.port).send(get());
    await eventually('the request arrived', () => backend.requests.length === 1);
    expect(proxy.figures('web/s').active).toBe(1);
    client.socket.resetAndDestroy();
    await eventually('places free', () => proxy.figures('web/s').active === 0 && proxy.figures('front').active === 0);
  });

  test('a client that leaves while its server is being connected to harms nobody', async () => {
    const blocked = await blockedServer();
    const proxy = await startProxy({ servers: { s: blocked }, retries: 1, timeouts: { connect: 400 } });
    const leaver = new RawClient(proxy.port).send(get());
    await eventually('connecting', () => proxy.figures('web/s').active === 1);
    leaver.socket.resetAndDestroy();
    await eventually('place free', () => proxy.figures('web/s').active === 0);
    // Its connection attempt began later, so the leaver's is over when this one is answered.
    const text = await talk(proxy.port, get()).catch(() => '');
    expect(proxy.exits).toEqual([]);
    expect(statusOf(text)).toBe(504);
    expect(proxy.figures('web/s').active).toBe(0);
  });

  test('clients beyond maxConnections of the frontend wait until another one leaves', async () => {
    const backend = await httpServer(answer('hello'));
    const proxy = await startProxy({ servers: { s: backend }, maxConnections: 2 });
    const first = new RawClient(proxy.port).send(get());
    const second = new RawClient(proxy.port).send(get());
    await Promise.all([first.until('hello'), second.until('hello')]);
    const third = new RawClient(proxy.port).send(get());
    await once(third.socket, 'connect');
    first.send(get());
    await first.until(/hello[^]*hello/);
    expect(third.text).toBe('');
    expect(proxy.figures('front').active).toBe(2);
    first.socket.destroy();
    await third.until('hello');
  });
});

describe('bodies', () => {
  test('64 MiB flow up and down unchanged', async () => {
    const size = 64 * 1024 * 1024;
    const block = randomBytes(1024 * 1024);
    const backend = await httpServer((request, response) => {
      response.writeHead(200, { 'Content-Length': size });
      request.pipe(response);
    });
    const proxy = await startProxy({ servers: { s: backend } });
    const hash = createHash('sha256');
    const sent = createHash('sha256');
    const request = httpRequest({ port: proxy.port, host: HOST, method: 'POST', headers: { 'Content-Length': size } });
    const responded = once(request, 'response') as Promise<[IncomingMessage]>;
    const write = async () => {
      for (let left = 64; left > 0; left--) {
        sent.update(block);
        if (!request.write(block)) await once(request, 'drain');
      }
      request.end();
    };
    const writing = write();
    const [response] = await responded;
    let received = 0;
    for await (const chunk of response as AsyncIterable<Buffer>) {
      received += chunk.length;
      hash.update(chunk);
    }
    await writing;
    expect(received).toBe(size);
    expect(hash.digest('hex')).toBe(sent.digest('hex'));
  });

  test('a client that does not read stops its server: what waits in between is bounded', async () => {
    let written = 0;
    const backend = await httpServer((_request, response) => {
      const block = Buffer.alloc(256 * 1024);
      const more = () => {
        while (written < 400 * block.length) {
          written += block.length;
          if (!response.write(block)) return void response.once('drain', more);
        }
        response.end();
      };
      more();
    });
    const proxy = await startProxy({ servers: { s: backend } });
    const client = new RawClient(proxy.port).send(get());
    await client.until('200');
    client.socket.pause();
    let before = -1;
    await eventually('the server stands still', () => {
      const still = written === before;
      before = written;
      return still;
    });
    await wait(300);
    // The rest is in the kernel's buffers, a few MB for each of two connections.
    expect(written).toBeLessThan(60 * 1024 * 1024);
    expect(proxy.figures('front').bytesOut).toBeLessThan(30 * 1024 * 1024);
  });

  test('a client that pipelines without reading stops its requests: answers do not pile up in memory', async () => {
    const body = 'x'.repeat(50_000);
    const backend = await httpServer(answer(body));
    const proxy = await startProxy({ servers: { s: backend } });
    const client = new RawClient(proxy.port);
    client.socket.pause();
    client.send(get().repeat(4_000));
    let before = -1;
    let calm = performance.now();
    await eventually('no more requests pass', () => {
      if (before !== backend.requests.length) calm = performance.now();
      before = backend.requests.length;
      return before > 0 && performance.now() - calm > 500;
    });
    // 600 answers are 30 MB: more than the kernel's buffers hold, so they'd be in ours.
    expect(backend.requests.length).toBeLessThan(600);
  });

  test('a slow reader is not punished by the server timeout while the proxy itself holds the server back', async () => {
    const size = 24 * 1024 * 1024;
    const backend = await httpServer((_request, response) => void response.end(Buffer.alloc(size)));
    const proxy = await startProxy({ servers: { s: backend }, timeouts: { server: 300 } });
    const client = connect(proxy.port, HOST);
    onTestFinished(() => void client.destroy());
    client.write(getAndClose());
    await once(client, 'readable');
    // Three times the server timeout in which the client reads nothing.
    await wait(900);
    let received = 0;
    client.on('data', (chunk: Buffer) => (received += chunk.length));
    await once(client, 'end');
    expect(received).toBeGreaterThan(size);
  });

  test('a server that stops reading an upload is answered for with 504, not blamed on the client', async () => {
    const server = await rawServer((socket) => void socket.pause());
    const proxy = await startProxy({
      servers: { s: server },
      timeouts: { server: 300 },
      clientTimeouts: { client: 600 },
    });
    const client = new RawClient(proxy.port);
    const size = 32 * 1024 * 1024;
    client.send(`POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ${size}\r\n\r\n`).send(Buffer.alloc(size));
    expect(statusOf(await client.until(/HTTP\/1\.1 \d{3}/))).toBe(504);
  });

  test('chunks and trailers pass through as they are', async () => {
    const chunked = '5;a=b\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n';
    let upstream = '';
    const server = await rawServer((socket) => {
      socket.on('data', (chunk) => {
        upstream += chunk.toString();
        if (upstream.endsWith('X-Sum: 1\r\n\r\n'))
          socket.write(`HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${chunked}`);
      });
    });
    const proxy = await startProxy({ servers: { s: server } });
    const client = new RawClient(proxy.port);
    client.send(`POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n${chunked}`);
    expect(bodyOf(await client.until('X-Sum: 1\r\n\r\n'))).toBe(chunked);
    expect(bodyOf(upstream)).toBe(chunked);
  });

  test('an HTTP/1.0 client gets a chunked answer without chunks, ended by the end of the connection', async () => {
    const server = await scriptedServer((_head, socket) =>
      socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n'),
    );
    const proxy = await startProxy({ servers: { s: server } });
    const text = await talk(proxy.port, 'GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n');
    expect(text).not.toMatch(/transfer-encoding/i);
    expect(bodyOf(text)).toBe('hello world');
  });

  test('an HTTP/1.0 client that asks for it is kept alive', async () => {
    const server = await okServer();
    const proxy = await startProxy({ servers: { s: server } });
    const request = 'GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n';
    const client = new RawClient(proxy.port).send(request);
    expect(await client.until('ok')).toContain('Connection: keep-alive');
    client.send('GET / HTTP/1.0\r\n\r\n');
    expect((await client.rest()).split('HTTP/1.1 200')).toHaveLength(3);
  });

  test('RFC 9110 7.2: an HTTP/1.0 request without Host gets one when it is passed on as HTTP/1.1', async () => {
    const seen = await headSeenFor('GET / HTTP/1.0\r\n\r\n');
    expect(seen).toMatch(/^GET \/ HTTP\/1\.1\r\n/);
    expect(seen).toMatch(/\r\nHost:/);
  });

  test.each([
    ['HEAD', 'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n'],
    ['GET', 'HTTP/1.1 204 No Content\r\n\r\n'],
    ['GET', 'HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n'],
  ])('%s answered with %j has no body, and the connection serves the next request', async (method, head) => {
    const server = await scriptedServer((request, socket) => socket.write(request.includes('/next') ? OK : head));
    const proxy = await startProxy({ servers: { s: server } });
    const client = new RawClient(proxy.port).send(`${method} / HTTP/1.1\r\nHost: a\r\n\r\n${get('/next')}`);
    await client.until('ok');
    expect(server.accepted).toBe(1);
  });

  test.each([
    ['shorter than its length', 'Content-Length: 100\r\n\r\npart'],
    ['without its last chunk', 'Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n'],
  ])('a body %s is never passed on as a complete one: the client is reset', async (_what, rest) => {
    const server = await scriptedServer((_head, socket) => socket.end(`HTTP/1.1 200 OK\r\n${rest}`));
    const proxy = await startProxy({ servers: { s: server } });
    const client = new RawClient(proxy.port).send(get());
    await client.rest();
    expect(client.error?.code).toBe('ECONNRESET');
  });

  test('a malformed chunk behind what was passed on already resets the client', async () => {
    const server = await scriptedServer((_head, socket) => {
      socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n');
      setTimeout(() => socket.end('zz\r\n'), 50);
    });
    const proxy = await startProxy({ servers: { s: server } });
    const client = new RawClient(proxy.port).send(get());
    await client.rest();
    expect(client.text).toContain('part');
    expect(client.error?.code).toBe('ECONNRESET');
  });

  test('a malformed chunk that comes together with its head is a 502: nothing of the answer was passed on', async () => {
    const rest = 'Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\nzz\r\n';
    const server = await scriptedServer((_head, socket) => socket.end(`HTTP/1.1 200 OK\r\n${rest}`));
    const proxy = await startProxy({ servers: { s: server } });
    const text = await talk(proxy.port, get());
    expect(statusOf(text)).toBe(502);
    expect(text).not.toContain('part');
  });

  test('a body that ends with the connection is not complete when the server resets: the client is reset too', async () => {
    const server = await scriptedServer((_head, socket) => {
      socket.write('HTTP/1.1 200 OK\r\n\r\npart');
      setTimeout(() => socket.resetAndDestroy(), 50);
    });
    const proxy = await startProxy({ servers: { s: server } });
    const client = new RawClient(proxy.port).send(get());
    await client.rest();
    expect(client.error?.code).toBe('ECONNRESET');
  });

  test('an HTTP/1.0 client whose chunked answer is cut off is reset, since the end of the connection would say complete', async () => {
    const server = await scriptedServer((_head, socket) =>
      socket.end('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n'),
    );
    const proxy = await startProxy({ servers: { s: server } });
    const client = new RawClient(proxy.port).send('GET / HTTP/1.0\r\nHost: a\r\n\r\n');
    await client.rest();
    expect(client.error?.code).toBe('ECONNRESET');
  });

  test('a malformed chunked request body is refused with 400', async () => {
    const server = await rawServer(() => {});
    const proxy = await startProxy({ servers: { s: server } });
    const text = await talk(proxy.port, 'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n');
    expect(statusOf(text)).toBe(400);
  });

  test('a request body that the client cuts off is cut off for the server too', async () => {
    let complete = false;
    let aborted = false;
    const backend = await httpServer((request) => {
      request.on('end', () => (complete = true));
      request.on('error', () => (aborted = true));
      request.resume();
    });
    const proxy = await startProxy({ servers: { s: backend } });
    const client = new RawClient(proxy.port).send('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\npart');
    await eventually('the request arrived', () => backend.requests.length === 1);
    client.socket.end();
    await eventually('aborted', () => aborted);
    expect(complete).toBe(false);
  });

  test('a server may answer before a large upload is complete; the client gets the answer, then the end', async () => {
    const server = await scriptedServer((_head, socket) =>
      socket.write('HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig'),
    );
    const proxy = await startProxy({ servers: { s: server } });
    const client = new RawClient(proxy.port).send('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\npart');
    expect(statusOf(await client.rest())).toBe(413);
    expect(client.text).toContain('big');
    await eventually('place free', () => proxy.figures('web/s').active === 0);
  });
});

describe('interim answers and upgrades', () => {
  test('Expect: 100-continue: the 100 reaches the client, then the body the server', async () => {
    const backend = await httpServer((request, response) => void request.pipe(response));
    const proxy = await startProxy({ servers: { s: backend } });
    const client = new RawClient(proxy.port);
    client.send('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n');
    await client.until('100 Continue');
    client.send('hello');
    expect(await client.until('hello')).toMatch(/^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 200 OK/);
  });

  test('a 103 passes, and not to HTTP/1.0', async () => {
    const server = await scriptedServer((_head, socket) => socket.write(`HTTP/1.1 103 Early Hints\r\n\r\n${OK}`));
    const proxy = await startProxy({ servers: { s: server } });
    expect(await talk(proxy.port, getAndClose())).toContain('103 Early Hints');
    expect(await talk(proxy.port, 'GET / HTTP/1.0\r\n\r\n')).not.toContain('103');
  });

  const webSocketServer = () =>
    rawServer((socket) => {
      let input = '';
      let open = false;
      socket.on('data', (chunk) => {
        input += chunk.toString('latin1');
        if (open) socket.write(chunk);
        else if (input.includes('\r\n\r\n')) {
          open = true;
          socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst');
        }
      });
      socket.on('end', () => socket.end());
    });
  const upgrade = get('/ws', 'Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n');

  test('a WebSocket is switched through: 101, then bytes both ways until one side ends', async () => {
    const server = await webSocketServer();
    const proxy = await startProxy({ servers: { s: server } });
    const client = new RawClient(proxy.port).send(upgrade);
    const head = await client.until('first');
    expect(statusOf(head)).toBe(101);
    expect(head).toContain('Connection: Upgrade\r\nUpgrade: websocket\r\n');
    client.send('\x00\xff echo');
    await client.until('\x00\xff echo');
    expect(proxy.figures('web/s').active).toBe(1);
    client.socket.end();
    await client.rest();
    await eventually('place free', () => proxy.figures('web/s').active === 0);
  });

  test('a running WebSocket goes on while its listener drains', async () => {
    const server = await webSocketServer();
    const proxy = await startProxy({ servers: { s: server } });
    const client = new RawClient(proxy.port).send(upgrade);
    await client.until('first');
    const idle = new RawClient(proxy.port);
    await eventually('both are open', () => proxy.figures('front').active === 2);
    proxy.dataPlane.drainListener('main');
    await idle.rest();
    await wait(50);
    expect(client.ended || client.closed).toBe(false);
    client.send('still here');
    await client.until('still here');
  });

  test('a 101 that nobody asked for is a 502', async () => {
    const server = await scriptedServer((_head, socket) =>
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n'),
    );
    const proxy = await startProxy({ servers: { s: server } });
    expect(statusOf(await talk(proxy.port, get()))).toBe(502);
  });
});

describe('what the server sees', () => {
  test('X-Forwarded-For is added to what there is, X-Forwarded-Proto is ours', async () => {
    const seen = await headSeenFor(get('/', 'X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n'));
    expect(seen).toContain('X-Forwarded-For: 1.2.3.4\r\n');
    expect(seen).toContain('X-Forwarded-For: 127.0.0.1\r\n');
    expect(seen.match(/x-forwarded-proto: .*/gi)).toEqual(['X-Forwarded-Proto: http']);
  });

  test('hop-by-hop fields and those named in Connection stay here', async () => {
    const fields = 'Connection: keep-alive, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nTE: gzip\r\nX-Kept: yes\r\n';
    const seen = await headSeenFor(get('/a?b', `${fields}Proxy-Connection: close\r\nUpgrade: h2c\r\n`));
    expect(seen).toMatch(/^GET \/a\?b HTTP\/1\.1\r\nHost: shop\.example\r\n/);
    expect(seen).toContain('X-Kept: yes\r\n');
    expect(seen).not.toMatch(/^(connection|keep-alive|te|proxy-connection|upgrade|x-secret):/im);
  });

  test('the authority of an absolute-form target replaces Host', async () => {
    const seen = await headSeenFor('GET http://real.example/x HTTP/1.1\r\nHost: other.example\r\n\r\n');
    expect(seen).toMatch(/^GET \/x HTTP\/1\.1\r\nHost: real\.example\r\n/);
    expect(seen).not.toContain('other.example');
  });
});

describe('routing', () => {
  test('the first rule whose host and path hold decides; otherwise the default', async () => {
    const named = (name: string) => httpServer(answer(name));
    const [web, api, images] = await Promise.all([named('web'), named('api'), named('images')]);
    const proxy = await startProxy({
      servers: { s: web },
      others: { api: { s: api }, images: { s: images } },
      rules: [
        { when: { host: 'api.example' }, use: 'api' },
        { when: { path: '/images/**' }, use: 'images' },
      ],
    });
    const ask = async (path: string, host: string) =>
      bodyOf(await talk(proxy.port, `GET ${path} HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`));
    expect(await ask('/', 'shop.example')).toBe('web');
    expect(await ask('/images/1?x=/api', 'shop.example')).toBe('images');
    expect(await ask('/', 'API.example:80')).toBe('api');
    expect(await ask('http://api.example/', 'shop.example')).toBe('api');
    expect(await ask('/?/images/', 'shop.example')).toBe('web');
  });

  test('a server of weight 0 takes no new traffic', async () => {
    const [a, b] = await Promise.all([httpServer(answer('a')), httpServer(answer('b'))]);
    const proxy = await startProxy({ servers: { a, b } });
    proxy.dataPlane.publish('web', 'serving', { a: 0 });
    const client = new RawClient(proxy.port);
    // Requests over new connections, until both workers have heard of it.
    await client.send(get()).until('200');
    const before = a.requests.length;
    for (let count = 0; count < 20; count++) expect(bodyOf(await talk(proxy.port, getAndClose()))).toBe('b');
    expect(a.requests.length).toBe(before);
  });
});

describe('retries', () => {
  test('a refused connection is tried again on another server', async () => {
    const good = await httpServer(answer('good'));
    const proxy = await startProxy({ servers: { dead: { port: await closedPort() }, good }, balance: 'first' });
    const post = 'POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi';
    expect(bodyOf(await talk(proxy.port, getAndClose()))).toBe('good');
    expect(bodyOf(await talk(proxy.port, post))).toBe('good');
    expect(proxy.figures('web/dead')).toMatchObject({ active: 0, connectFailures: 2, retries: 2 });
  });

  test('RFC 9110 9.2.2: a GET whose server closes before it answers is tried on another, a POST is not', async () => {
    const closing = await scriptedServer((_head, socket) => socket.end());
    const good = await httpServer(answer('good'));
    const proxy = await startProxy({ servers: { closing, good }, balance: 'first' });
    expect(bodyOf(await talk(proxy.port, getAndClose()))).toBe('good');
    const post = 'POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n';
    expect(statusOf(await talk(proxy.port, post))).toBe(502);
    expect(good.requests).toEqual(['GET /']);
  });

  const POST = 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n';

  test('a first POST is not sent over a connection that the server may be closing; a later one is', async () => {
    const server = await okServer();
    const proxy = await startProxy({ servers: { s: server }, workers: 1 });
    const other = new RawClient(proxy.port).send(get());
    await other.until('ok');
    const client = new RawClient(proxy.port).send(POST);
    await client.until('ok');
    expect(server.accepted).toBe(2);
    client.send(POST);
    await client.until(/ok[^]*ok/);
    expect(server.accepted).toBe(2);
  });

  test('a later POST whose kept connection turns out to be closed is left unanswered: its client asks again', async () => {
    let answers = 0;
    const server = await scriptedServer((_head, socket) => {
      if (++answers === 1) socket.write(OK);
      else socket.destroy();
    });
    const proxy = await startProxy({ servers: { s: server }, workers: 1 });
    const client = new RawClient(proxy.port).send(POST);
    await client.until('ok');
    client.send(POST);
    expect(await client.rest()).toBe(OK);
    expect(answers).toBe(2);
  });

  test('sessions shut down while their server is being connected to go to another, once', async () => {
    const blocked = await blockedServer();
    let respond = () => {};
    const good = await httpServer((_request, response) => (respond = () => void response.end('good')));
    const proxy = await startProxy({
      servers: { blocked, good },
      balance: 'first',
      timeouts: { connect: 8_000 },
    });
    const client = new RawClient(proxy.port).send(getAndClose());
    await eventually('connecting', () => proxy.figures('web/blocked').active === 1);
    proxy.dataPlane.publish('web', 'serving', { blocked: 0 });
    proxy.dataPlane.shutdownSessions('web', 'blocked');
    await eventually('the other has it', () => good.requests.length === 1);
    // This attempt is younger than the proxy's: when it got through, the proxy's would have too.
    const later = connect(blocked.port, HOST);
    later.on('error', () => {});
    onTestFinished(() => void later.destroy());
    blocked.release();
    await once(later, 'connect');
    respond();
    expect(bodyOf(await client.rest())).toBe('good');
    expect(blocked.received).toEqual([]);
    expect(proxy.exits).toEqual([]);
  });

  test('shutdownSessions ends an answer that is under way with a reset', async () => {
    const backend = await httpServer((_request, response) => {
      response.writeHead(200, { 'Content-Length': 100 });
      response.write('part');
    });
    const proxy = await startProxy({ servers: { s: backend } });
    const client = new RawClient(proxy.port).send(get());
    await client.until('part');
    proxy.dataPlane.shutdownSessions('web', 's');
    await client.rest();
    expect(client.error?.code).toBe('ECONNRESET');
    expect(proxy.figures('web/s').active).toBe(0);
  });
});

describe('our own answers', () => {
  test.each([
    [400, 'GET / HTTP/1.1\r\n\r\n'],
    [405, 'CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n'],
    [414, `GET /${'x'.repeat(9_000)} HTTP/1.1\r\nHost: a\r\n\r\n`],
    [431, get('/', `X: ${'x'.repeat(17_000)}\r\n`)],
    [501, 'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n'],
    [505, 'GET / HTTP/2.0\r\nHost: a\r\n\r\n'],
  ])('%i for a request that may not be passed on, and the connection is closed', async (status, request) => {
    const backend = await httpServer(answer('never'));
    const proxy = await startProxy({ servers: { s: backend } });
    const text = await talk(proxy.port, request + get('/smuggled'));
    expect(statusOf(text)).toBe(status);
    expect(text).toContain('Connection: close\r\n');
    expect(text.match(/HTTP\/1\.1 /g)).toHaveLength(1);
    expect(backend.requests).toEqual([]);
  });

  test('408 for a head that comes too slowly, byte by byte too', async () => {
    const backend = await httpServer(answer('never'));
    const proxy = await startProxy({ servers: { s: backend }, clientTimeouts: { httpRequest: 300 } });
    const client = new RawClient(proxy.port).send('GET / HTTP/1.1\r\n');
    const drip = setInterval(() => client.send('X: 1\r\n'), 50);
    onTestFinished(() => clearInterval(drip));
    expect(statusOf(await client.until(/HTTP\/1\.1 \d{3}/))).toBe(408);
  });

  test('408 for a body that stops', async () => {
    const backend = await httpServer((request) => void request.resume().on('error', () => {}));
    const proxy = await startProxy({ servers: { s: backend }, clientTimeouts: { client: 200 } });
    const client = new RawClient(proxy.port).send('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\npart');
    expect(statusOf(await client.rest())).toBe(408);
  });

  test('502 for a server that nobody listens on, or that says nonsense', async () => {
    const nonsense = await scriptedServer((_head, socket) => socket.write('SSH-2.0-OpenSSH_9.9\r\n'));
    const proxy = await startProxy({ servers: { s: { port: await closedPort() } } });
    expect(statusOf(await talk(proxy.port, get()))).toBe(502);
    const other = await startProxy({ servers: { s: nonsense } });
    expect(statusOf(await talk(other.port, get()))).toBe(502);
  });

  test.each([
    ['a length beside an encoding', 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n'],
    ['two lengths', 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n'],
    ['a folded line', 'HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n'],
    ['a bare LF', 'HTTP/1.1 200 OK\nContent-Length: 2\n\nok'],
    ['a status that is no three digits', 'HTTP/1.1 2e2 OK\r\nContent-Length: 2\r\n\r\nok'],
  ])('502 for an answer with %s', async (_what, text) => {
    const server = await scriptedServer((_head, socket) => socket.write(text));
    const proxy = await startProxy({ servers: { s: server } });
    expect(statusOf(await talk(proxy.port, get()))).toBe(502);
  });

  test('503 when no server takes traffic', async () => {
    const backend = await httpServer(answer('never'));
    const proxy = await startProxy({ servers: { s: { port: backend.port, weight: 0 } } });
    const text = await talk(proxy.port, get());
    expect(statusOf(text)).toBe(503);
    expect(text).toContain('Retry-After:');
  });

  test('504 for a server that does not answer, and for one that cannot be connected to in time', async () => {
    const silent = await rawServer(() => {});
    const proxy = await startProxy({ servers: { s: silent }, timeouts: { server: 200 } });
    expect(statusOf(await talk(proxy.port, get()))).toBe(504);
    const other = await startProxy({ servers: { s: await blockedServer() }, timeouts: { connect: 200 }, retries: 0 });
    expect(statusOf(await talk(other.port, get()))).toBe(504);
  });
});

describe('limits over both workers', () => {
  test('no more than maxConnections at a time reach the server, the rest waits its turn', async () => {
    let now = 0;
    let most = 0;
    const backend = await httpServer((_request, response) => {
      most = Math.max(most, ++now);
      setTimeout(() => {
        now--;
        response.end('ok');
      }, 5);
    });
    const proxy = await startProxy({ servers: { s: { port: backend.port, maxConnections: 3 } } });
    const answers = await Promise.all(Array.from({ length: 80 }, () => talk(proxy.port, getAndClose())));
    expect(answers.map(statusOf)).toEqual(answers.map(() => 200));
    expect(most).toBe(3);
    expect(proxy.figures('web/s')).toMatchObject({ active: 0, queued: 0, requests: 80 });
  });

  test('503 after the queue timeout', async () => {
    const backend = await httpServer(() => {});
    const proxy = await startProxy({
      servers: { s: { port: backend.port, maxConnections: 1 } },
      timeouts: { queue: 150 },
    });
    new RawClient(proxy.port).send(get());
    await eventually('the place is taken', () => backend.requests.length === 1);
    expect(statusOf(await talk(proxy.port, get()))).toBe(503);
    expect(proxy.figures('web/s')).toMatchObject({ active: 1, queued: 0 });
  });

  test('a worker that dies leaves no connection in the gauges', async () => {
    const backend = await httpServer(() => {});
    const proxy = await startProxy({ servers: { s: { port: backend.port, maxConnections: 10 } } });
    const clients = Array.from({ length: 12 }, () => new RawClient(proxy.port).send(get()));
    await eventually('10 at work, 2 in the queue', () => {
      const { queued } = proxy.figures('pool/web');
      return proxy.figures('web/s').active === 10 && queued === 2 && proxy.figures('front').active === 12;
    });
    await proxy.workers[0]!.terminate();
    await eventually('reported', () => proxy.exits.length === 1);
    for (const { socket } of clients) socket.resetAndDestroy();
    await eventually('the living have heard of it', () => proxy.figures('front').active === 0);
    expect(proxy.figures('web/s').active).toBe(0);
    expect(proxy.figures('pool/web')).toMatchObject({ active: 0, queued: 0 });
  });
});

describe('draining', () => {
  test('drainListener ends idle connections and lets running requests finish, with Connection: close', async () => {
    let respond = () => {};
    const backend = await httpServer((request, response) => {
      if (request.url === '/slow') respond = () => void response.end('slow');
      else response.end('quick');
    });
    const proxy = await startProxy({ servers: { s: backend } });
    const idle = new RawClient(proxy.port).send(get());
    await idle.until('quick');
    const running = new RawClient(proxy.port).send(get('/slow'));
    await eventually('running', () => backend.requests.includes('GET /slow'));
    proxy.dataPlane.drainListener('main');
    await idle.rest();
    expect(running.ended).toBe(false);
    expect(proxy.drained).toEqual([]);
    respond();
    const text = await running.rest();
    expect(bodyOf(text)).toBe('slow');
    expect(text).toContain('Connection: close\r\n');
    await eventually('drained', () => proxy.drained.length === 1);
    await expect(once(connect(proxy.port, HOST), 'connect')).rejects.toThrow('ECONNREFUSED');
  });

  test('a request that crosses the end of its idle connection is not passed on, as it could not be answered', async () => {
    const backend = await httpServer(answer('hello'));
    const proxy = await startProxy({ servers: { s: backend } });
    const client = new RawClient(proxy.port).send(get());
    await client.until('hello');
    proxy.dataPlane.drainListener('main');
    await eventually('ended', () => client.ended);
    client.send('DELETE /order HTTP/1.1\r\nHost: a\r\n\r\n');
    await eventually('closed', () => client.closed || proxy.figures('front').active === 0);
    expect(backend.requests).toEqual(['GET /']);
  });

  test.each([0, 1])(
    'a listener opened again while the old one drains listens again, without worker %i too',
    async (gone) => {
      const backend = await httpServer((request, response) => {
        if (request.url !== '/slow') response.end('hello');
      });
      const proxy = await startProxy({ servers: { s: backend } });
      new RawClient(proxy.port).send(get('/slow'));
      await eventually('running', () => backend.requests.length === 1);
      proxy.dataPlane.drainListener('main');
      await eventually('both workers but one are drained', () => proxy.figures('front').active === 1);
      proxy.dataPlane.openListener(listenerModel(proxy.port));
      await eventually('both say so', () => proxy.listenings.length === 4);
      await proxy.workers[gone]!.terminate();
      expect(statusOf(await talk(proxy.port, getAndClose()))).toBe(200);
    },
  );
});

/** A certificate for this name and its key, in one PEM. */
const selfSigned = (folder: string, name: string): string => {
  const [key, certificate] = [join(folder, `${name}.key`), join(folder, `${name}.crt`)];
  const options = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'];
  const subject = ['-subj', `/CN=${name}`, '-addext', `subjectAltName=DNS:${name}`];
  execFileSync('openssl', ['req', '-x509', ...options, ...subject, '-keyout', key, '-out', certificate], {
    stdio: 'ignore',
  });
  return readFileSync(certificate, 'utf8') + readFileSync(key, 'utf8');
};

const nameOnCertificate = async (port: number, servername: string): Promise<string> => {
  const socket = tlsConnect({ port, host: HOST, servername, rejectUnauthorized: false });
  await once(socket, 'secureConnect');
  const { subject } = socket.getPeerCertificate();
  socket.destroy();
  return String(subject.CN);
};

describe('TLS', () => {
  test.skipIf(!has('openssl'))('requests are taken over TLS, X-Forwarded-Proto says https', async () => {
    const certificate = selfSigned(tempFolder(), 'shop.example');
    const backend = await httpServer(
      (request, response) => void response.end(String(request.headers['x-forwarded-proto'])),
    );
    const proxy = await startProxy({ servers: { s: backend }, certificates: [certificate] });
    const socket = tlsConnect({ port: proxy.port, host: HOST, servername: 'shop.example', ca: certificate });
    onTestFinished(() => void socket.destroy());
    let text = '';
    socket.on('data', (chunk: Buffer) => (text += chunk.toString()));
    await once(socket, 'secureConnect');
    expect(socket.authorized).toBe(true);
    socket.write(getAndClose());
    await once(socket, 'end');
    expect(bodyOf(text)).toBe('https');
  });

  test.skipIf(!has('openssl'))('the name that a client asks for chooses the certificate', async () => {
    const folder = tempFolder();
    const certificates = ['one.example', 'two.example'].map((name) => selfSigned(folder, name));
    const proxy = await startProxy({ servers: { s: await okServer() }, certificates });
    expect(await nameOnCertificate(proxy.port, 'two.example')).toBe('two.example');
    expect(await nameOnCertificate(proxy.port, 'one.example')).toBe('one.example');
    expect(await nameOnCertificate(proxy.port, 'other.example')).toBe('one.example');
  });

  test.skipIf(!has('openssl'))('an open listener told of new certificates uses them', async () => {
    const folder = tempFolder();
    const [old, renewed] = [selfSigned(folder, 'old.example'), selfSigned(folder, 'renewed.example')];
    const proxy = await startProxy({ servers: { s: await okServer() }, certificates: [old] });
    proxy.dataPlane.openListener(listenerModel(proxy.port, { tls: tlsModel([renewed]) }));
    await eventually('both say so', () => proxy.listenings.length === 4);
    expect(await nameOnCertificate(proxy.port, 'any.example')).toBe('renewed.example');
  });
});

describe('TLS clients that misbehave', () => {
  test.skipIf(!has('openssl'))(
    'a server that resets under a TLS client in mode tcp ends that session, not the worker',
    async () => {
      const certificate = selfSigned(tempFolder(), 'shop.example');
      const server = await rawServer((socket) => {
        socket.on('data', () => socket.resetAndDestroy());
      });
      const proxy = await startProxy({ mode: 'tcp', servers: { s: server }, certificates: [certificate] });
      const socket = tlsConnect({ port: proxy.port, host: HOST, rejectUnauthorized: false });
      onTestFinished(() => void socket.destroy());
      socket.on('error', () => {});
      const closed = new Promise<void>((done) => socket.once('close', () => done()));
      await once(socket, 'secureConnect');
      socket.write('anything');
      await closed;
      expect(proxy.exits).toEqual([]);
      expect(await nameOnCertificate(proxy.port, 'shop.example')).toBe('shop.example');
    },
  );

  test.skipIf(!has('openssl'))('a handshake that is given up leaves no descriptor behind', async () => {
    const certificate = selfSigned(tempFolder(), 'shop.example');
    const proxy = await startProxy({ servers: { s: await okServer() }, certificates: [certificate] });
    const openSockets = () =>
      readdirSync('/proc/self/fd').filter((fd) => {
        try {
          return readlinkSync(`/proc/self/fd/${fd}`).startsWith('socket:');
        } catch {
          // Closed between the two looks.
          return false;
        }
      }).length;
    await nameOnCertificate(proxy.port, 'shop.example');
    await eventually('all is quiet', () => proxy.figures('front').active === 0);
    const before = openSockets();
    for (let index = 0; index < 20; index++) {
      const socket = connect(proxy.port, HOST);
      await once(socket, 'connect');
      socket.destroy();
    }
    await eventually('all have been accepted', () => proxy.figures('front').connections === 21);
    await eventually('they are gone', () => openSockets() <= before);
    expect(proxy.exits).toEqual([]);
  });
});

test.skipIf(!has('nginx'))('nginx behind it serves 10 MB, byte by byte the same', async () => {
  const folder = tempFolder();
  const content = randomBytes(10_000_000);
  writeFileSync(join(folder, 'file.bin'), content);
  const port = await closedPort();
  writeFileSync(
    join(folder, 'nginx.conf'),
    `daemon off; pid ${folder}/pid; error_log stderr crit; worker_processes 1;
     events { worker_connections 64; }
     http { access_log off; client_body_temp_path ${folder}/a; proxy_temp_path ${folder}/b;
       fastcgi_temp_path ${folder}/c; uwsgi_temp_path ${folder}/d; scgi_temp_path ${folder}/e;
       server { listen ${HOST}:${port}; root ${folder}; } }`,
  );
  // Started by root, its worker would be nobody, who may not read the folder.
  const user = process.getuid?.() === 0 ? 'user root; ' : '';
  const child = spawn('nginx', ['-p', folder, '-c', join(folder, 'nginx.conf'), '-g', user], { stdio: 'ignore' });
  onTestFinished(async () => {
    child.kill('SIGTERM');
    if (child.exitCode === null) await once(child, 'exit');
  });
  let up = false;
  const knock = () => {
    const socket = connect(port, HOST);
    socket.on('connect', () => {
      up = true;
      socket.destroy();
    });
    socket.on('error', () => void setTimeout(knock, 20));
  };
  knock();
  await eventually('nginx listens', () => up);
  const proxy = await startProxy({ servers: { nginx: { port } } });
  for (let round = 0; round < 2; round++) {
    const client = new RawClient(proxy.port).send(getAndClose('/file.bin'));
    const text = await client.rest();
    expect(statusOf(text)).toBe(200);
    expect(Buffer.from(bodyOf(text), 'latin1').equals(content)).toBe(true);
  }
  expect(statusOf(await talk(proxy.port, 'GET /file.bin HTTP/1.0\r\n\r\n'))).toBe(200);
});
