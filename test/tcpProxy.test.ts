/** Mode `tcp` through the real data plane: two worker threads before real servers. */
import { once } from 'node:events';
import { connect } from 'node:net';
import { expect, onTestFinished, test } from 'vitest';
import { blockedServer, closedPort, eventually, HOST, RawClient, rawServer, startProxy } from './proxyHelpers.ts';

const echoServer = () => rawServer((socket) => void socket.pipe(socket));

test('bytes go both ways, and the client that ends frees its place', async () => {
  const proxy = await startProxy({ mode: 'tcp', servers: { s: await echoServer() } });
  const client = new RawClient(proxy.port).send('\x00hello\xff');
  await client.until('\x00hello\xff');
  expect(proxy.figures('web/s').active).toBe(1);
  client.socket.end();
  await client.rest();
  await eventually('places free', () => proxy.figures('web/s').active === 0 && proxy.figures('front').active === 0);
  expect(proxy.figures('front')).toMatchObject({ bytesIn: 7, bytesOut: 7, sessions: 1 });
});

test('half-close: a client that has ended still receives what the server says afterwards', async () => {
  const server = await rawServer((socket) => {
    let input = '';
    socket.on('data', (chunk) => (input += chunk.toString()));
    socket.on('end', () => setTimeout(() => socket.end(`got ${input}`), 50));
  });
  const proxy = await startProxy({ mode: 'tcp', servers: { s: server } });
  const client = new RawClient(proxy.port);
  client.socket.end('all of it');
  expect(await client.rest()).toBe('got all of it');
});

test('half-close: a server that has ended still receives what the client says afterwards', async () => {
  let input = '';
  const server = await rawServer((socket) => {
    socket.end('bye');
    socket.on('data', (chunk) => (input += chunk.toString()));
  });
  const proxy = await startProxy({ mode: 'tcp', servers: { s: server } });
  const client = new RawClient(proxy.port);
  await eventually('the server has ended', () => client.ended);
  client.socket.end('late words');
  await eventually('they arrived', () => input.length === 10);
  expect(input).toBe('late words');
});

test('a reset by the server reaches the client as a reset, so that a cut-off stream is not taken for a whole one', async () => {
  const server = await rawServer((socket) => {
    socket.write('part');
    socket.on('data', () => socket.resetAndDestroy());
  });
  const proxy = await startProxy({ mode: 'tcp', servers: { s: server } });
  const client = new RawClient(proxy.port);
  await client.until('part');
  client.send('now');
  await client.rest();
  expect(client.error?.code).toBe('ECONNRESET');
});

test('a reset by the client reaches the server as a reset', async () => {
  let code = '';
  let ended = false;
  const server = await rawServer((socket) => {
    socket.write('hello');
    socket.on('end', () => (ended = true));
    socket.on('error', (error: Error & { code?: string }) => (code = error.code ?? ''));
    socket.resume();
  });
  const proxy = await startProxy({ mode: 'tcp', servers: { s: server } });
  const client = new RawClient(proxy.port);
  await client.until('hello');
  client.socket.resetAndDestroy();
  await eventually('it is over', () => code !== '' || ended);
  expect(code).toBe('ECONNRESET');
});

test('a client that does not read stops the server: what waits in between is bounded, and nothing is lost', async () => {
  const total = 64 * 1024 * 1024;
  let written = 0;
  const block = Buffer.alloc(256 * 1024);
  const server = await rawServer((socket) => {
    const more = () => {
      while (written < total) {
        written += block.length;
        if (!socket.write(block)) return void socket.once('drain', more);
      }
      socket.end();
    };
    more();
  });
  const proxy = await startProxy({ mode: 'tcp', servers: { s: server } });
  const client = connect(proxy.port, HOST);
  onTestFinished(() => void client.destroy());
  let before = -1;
  let calm = performance.now();
  await eventually('the server stands still', () => {
    if (before !== written) calm = performance.now();
    before = written;
    return written > 0 && performance.now() - calm > 300;
  });
  expect(written).toBeLessThan(total / 2);
  let received = 0;
  client.on('data', (chunk: Buffer) => (received += chunk.length));
  await once(client, 'end');
  expect(received).toBe(total);
});

test('a refused connection is tried again on another server', async () => {
  const proxy = await startProxy({
    mode: 'tcp',
    balance: 'first',
    servers: { dead: { port: await closedPort() }, good: await echoServer() },
  });
  await new RawClient(proxy.port).send('hello').until('hello');
  expect(proxy.figures('web/dead')).toMatchObject({ active: 0, connectFailures: 1, retries: 1 });
});

test('a client whose servers all refuse is closed, and no place stays taken', async () => {
  const proxy = await startProxy({ mode: 'tcp', servers: { dead: { port: await closedPort() } } });
  expect(await new RawClient(proxy.port).rest()).toBe('');
  await eventually('places free', () => proxy.figures('web/dead').active === 0 && proxy.figures('front').active === 0);
});

test('a client that leaves while its server is being connected to leaves nothing behind', async () => {
  const blocked = await blockedServer();
  const good = await echoServer();
  const proxy = await startProxy({
    mode: 'tcp',
    balance: 'first',
    servers: { blocked, good },
    timeouts: { connect: 300 },
  });
  const leaver = new RawClient(proxy.port);
  await eventually('connecting', () => proxy.figures('web/blocked').active === 1);
  leaver.socket.resetAndDestroy();
  await eventually('place free', () => proxy.figures('web/blocked').active === 0);
  // Its attempt began later, so the leaver's is over when this one was sent on to the good server.
  const next = new RawClient(proxy.port).send('hello');
  await next.until('hello');
  expect(proxy.figures('web/good').active).toBe(1);
  expect(good.accepted).toBe(1);
});

test('no more than maxConnections at a time reach the server; the rest waits its turn', async () => {
  let now = 0;
  let most = 0;
  const server = await rawServer((socket) => {
    most = Math.max(most, ++now);
    setTimeout(() => {
      now--;
      socket.end('done');
    }, 10);
    socket.resume();
  });
  const proxy = await startProxy({ mode: 'tcp', servers: { s: { port: server.port, maxConnections: 2 } } });
  const answers = await Promise.all(
    Array.from({ length: 30 }, async () => {
      const client = new RawClient(proxy.port);
      client.socket.end();
      return client.rest();
    }),
  );
  expect(answers).toEqual(answers.map(() => 'done'));
  expect(most).toBeLessThanOrEqual(2);
  await eventually('places free', () => proxy.figures('web/s').active === 0);
});

test('idle connections are ended after the timeout, each of them', async () => {
  const proxy = await startProxy({
    mode: 'tcp',
    servers: { s: await echoServer() },
    timeouts: { server: 100 },
    clientTimeouts: { client: 100 },
  });
  const clients: RawClient[] = [];
  for (let count = 0; count < 40; count++) {
    const client = new RawClient(proxy.port).send('hello');
    clients.push(client);
    await client.until('hello');
  }
  const open = () => clients.filter(({ closed, ended }) => !closed && !ended).length;
  const allEnded = eventually('all are ended', () => open() === 0, 3_000);
  await expect(allEnded, `of ${clients.length} connections`).resolves.toBeUndefined();
});

test('shutdownSessions ends the connections of that server only', async () => {
  const proxy = await startProxy({ mode: 'tcp', servers: { a: await echoServer(), b: await echoServer() } });
  const clients = Array.from({ length: 8 }, () => new RawClient(proxy.port).send('hi'));
  for (const client of clients) await client.until('hi');
  const { active } = proxy.figures('web/a');
  proxy.dataPlane.shutdownSessions('web', 'a');
  await eventually('ended', () => clients.filter(({ ended, closed }) => ended || closed).length === active);
  expect(proxy.figures('web/a').active).toBe(0);
  expect(proxy.figures('web/b').active).toBe(8 - active);
});

/** `open`, or the code with which it failed. */
const connectionTo = (port: number): Promise<string> =>
  new Promise((done) => {
    const socket = connect(port, HOST);
    socket.once('connect', () => {
      socket.destroy();
      done('open');
    });
    socket.once('error', (error: NodeJS.ErrnoException) => done(error.code ?? ''));
  });

test('a draining listener takes no new connections and lets running ones go on', async () => {
  const proxy = await startProxy({ mode: 'tcp', servers: { s: await echoServer() } });
  const client = new RawClient(proxy.port).send('one');
  await client.until('one');
  proxy.dataPlane.drainListener('main');
  // Each worker hears of it in its own time; what one of them still takes until then is taken in order.
  while ((await connectionTo(proxy.port)) !== 'ECONNREFUSED') continue;
  client.send('two');
  await client.until('onetwo');
  expect(proxy.drained).toEqual([]);
  client.socket.end();
  await eventually('drained', () => proxy.drained.length === 1);
});

test('a worker that dies leaves no connection in the gauges', async () => {
  const proxy = await startProxy({ mode: 'tcp', servers: { s: await echoServer() } });
  const clients = Array.from({ length: 12 }, () => new RawClient(proxy.port).send('hi'));
  for (const client of clients) await client.until('hi');
  expect(proxy.figures('web/s').active).toBe(12);
  await proxy.workers[1]!.terminate();
  await eventually(
    'its clients see the end',
    () => clients.every(({ closed, ended }) => closed || ended) || proxy.exits.length === 1,
  );
  for (const { socket } of clients) socket.resetAndDestroy();
  await eventually('nothing is left', () => proxy.figures('web/s').active === 0 && proxy.figures('front').active === 0);
});
