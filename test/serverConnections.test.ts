/** Connections to servers: how one is made or not, how names become addresses, and which are kept. */
import { lookup } from 'node:dns';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { createServer } from 'node:net';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { afterEach, describe, expect, test, vi } from 'vitest';
import type { Endpoint } from '../src/config/units.ts';
import type { Reactor } from '../src/net/reactor.ts';
import { Connecting, IdleConnections, ServerConnection } from '../src/proxy/serverConnections.ts';
import type { ConnectFailure, Route } from '../src/proxy/serverConnections.ts';
import { listening, tempFolder } from './nodeHelpers.ts';
import { blockedServer, closedPort, eventually } from './proxyHelpers.ts';
import { HOST, reactorForTest, streamPair, Told, Waiting } from './reactorHelpers.ts';

vi.mock('node:dns', async (original) => ({ ...(await original<object>()), lookup: vi.fn<() => void>() }));

afterEach(() => vi.mocked(lookup).mockReset());

type Answer = (error: NodeJS.ErrnoException | null, address: string) => void;

/** Look-ups that are under way; each is answered by the test. */
const lookups = (): { host: string; answer: Answer }[] => {
  const all: { host: string; answer: Answer }[] = [];
  vi.mocked(lookup).mockImplementation(((host: string, answer: Answer) => {
    all.push({ host, answer });
  }) as never);
  return all;
};

const now = performance.now.bind(performance);
let aheadMs = 0;
vi.spyOn(performance, 'now').mockImplementation(() => now() + aheadMs);

/** The clock is put forward. */
const laterBy = async (reactor: Reactor, ms: number): Promise<void> => {
  const waiting = new Waiting(reactor);
  const untilMs = reactor.nowMs + ms;
  aheadMs += ms;
  reactor.timers.make(() => waiting.changed()).set(ms);
  await waiting.until('later', () => reactor.nowMs >= untilMs);
};

const notFound = Object.assign(new Error('not found'), { code: 'ENOTFOUND' });

const openCount = (): number => readdirSync('/proc/self/fd').length;

type Server = { port: number; sockets: Socket[] };

const startServer = async (): Promise<Server> => {
  const sockets: Socket[] = [];
  const server = createServer({ allowHalfOpen: true }, (socket) => sockets.push(socket));
  return { port: await listening(server), sockets };
};

const acceptedBy = ({ sockets }: Server, count: number): Promise<void> =>
  eventually(`${count} connections`, () => sockets.length === count);

const routeTo = (endpoint: Endpoint, more: Partial<Route> = {}): Route => ({
  endpoint,
  makeWire: null,
  preambleFor: null,
  ...more,
});

/** Asks for a connection. */
const ask = async (reactor: Reactor, route: Route, timeoutMs = 10_000) => {
  const { stream: client } = await streamPair(reactor);
  const waiting = new Waiting(reactor);
  const results: (ServerConnection | ConnectFailure)[] = [];
  const tell = (result: ServerConnection | ConnectFailure) => {
    results.push(result);
    waiting.changed();
  };
  const connecting = new Connecting(reactor, route, timeoutMs, { onConnected: tell, onConnectFailed: tell }, client);
  connecting.start();
  const result = async () => {
    await waiting.until('the answer', () => results.length > 0);
    return results[0]!;
  };
  const connection = async () => {
    const made = await result();
    if (!(made instanceof ServerConnection)) throw new Error(made.message);
    return made;
  };
  return { connecting, results, result, connection };
};

class User extends Told {
  onTimeout(): void {
    this.events.push('timeout');
    this.changed();
  }
}

describe('a connection', () => {
  test('is made, and says who the server is; a PROXY header goes first', async () => {
    const reactor = reactorForTest();
    const server = await startServer();
    const route = routeTo({ host: HOST, port: server.port }, { preambleFor: () => Buffer.from('PROXY UNKNOWN\r\n') });
    const { connection } = await ask(reactor, route);
    const made = await connection();
    expect([made.stream.remote, made.reused]).toEqual([{ address: HOST, port: server.port }, false]);
    const user = new User(reactor);
    made.use(user);
    made.stream.write(Buffer.from('hello'));
    await acceptedBy(server, 1);
    const [words] = (await once(server.sockets[0]!, 'data')) as [Buffer];
    expect(words.toString()).toBe('PROXY UNKNOWN\r\nhello');
    server.sockets[0]!.write('answer');
    await user.until('the answer', () => user.text === 'answer');
    made.destroy();
  });

  test('is made over a Unix socket', async () => {
    const reactor = reactorForTest();
    const path = join(tempFolder(), 'server.sock');
    const server = createServer((socket) => socket.end('hello'));
    server.listen(path);
    await once(server, 'listening');
    const made = await (await ask(reactor, routeTo({ host: '', port: 0, path }))).connection();
    const user = new User(reactor);
    made.use(user);
    await user.until('hello', () => user.text === 'hello');
    expect(made.stream.remote).toEqual({ address: '', port: 0 });
    made.destroy();
    server.close();
  });

  test('that is refused, or can’t even be begun, is told with its reason, and leaves nothing open', async () => {
    const reactor = reactorForTest();
    const refused = await ask(reactor, routeTo({ host: HOST, port: await closedPort() }));
    expect(await refused.result()).toMatchObject({ code: 'ECONNREFUSED' });
    const before = openCount();
    const absent = { host: '', port: 0, path: join(tempFolder(), 'none.sock') };
    const { result, results } = await ask(reactor, routeTo(absent));
    expect(await result()).toMatchObject({ code: 'ENOENT' });
    // The client's two ends are new.
    expect([results.length, openCount()]).toEqual([1, before + 2]);
  });

  test('that takes too long is given up, and told as such', async () => {
    const reactor = reactorForTest();
    const { port } = await blockedServer();
    const { result, results } = await ask(reactor, routeTo({ host: HOST, port }), 60);
    expect(await result()).toEqual({ code: 'ETIMEDOUT', message: 'no connection within 60 ms' });
    expect(results).toHaveLength(1);
  });

  test('that is given up tells nothing', async () => {
    const reactor = reactorForTest();
    const { port } = await blockedServer();
    const { connecting, results } = await ask(reactor, routeTo({ host: HOST, port }), 60);
    connecting.giveUp();
    const other = await ask(reactor, routeTo({ host: HOST, port }), 90);
    await other.result();
    expect(results).toEqual([]);
  });
});

describe('a name', () => {
  test('is looked up once for all who ask meanwhile, and then known for a while', async () => {
    const reactor = reactorForTest();
    const pending = lookups();
    const server = await startServer();
    const route = routeTo({ host: 'shop.test', port: server.port });
    const asked = [await ask(reactor, route), await ask(reactor, route), await ask(reactor, route)];
    expect(pending.map(({ host }) => host)).toEqual(['shop.test']);
    expect(asked.flatMap(({ results }) => results)).toEqual([]);
    pending[0]!.answer(null, HOST);
    for (const { connection } of asked) expect((await connection()).stream.remote.address).toBe('shop.test');
    await (await ask(reactor, route)).connection();
    expect(pending).toHaveLength(1);
  });

  test('that can’t be resolved is told, and asked for again by the next', async () => {
    const reactor = reactorForTest();
    const pending = lookups();
    const server = await startServer();
    const route = routeTo({ host: 'shop.test', port: server.port });
    const first = await ask(reactor, route);
    pending[0]!.answer(notFound, '');
    expect(await first.result()).toEqual({ code: 'ENOTFOUND', message: "shop.test can't be resolved" });
    const second = await ask(reactor, route);
    pending[1]!.answer(null, HOST);
    await second.connection();
  });

  test('that resolves too late is as late as a connection', async () => {
    const reactor = reactorForTest();
    const pending = lookups();
    const { result, results } = await ask(reactor, routeTo({ host: 'shop.test', port: 1 }), 50);
    expect(await result()).toMatchObject({ code: 'ETIMEDOUT' });
    pending[0]!.answer(null, HOST);
    expect(results).toHaveLength(1);
  });

  test('is looked up again later; until the answer is there the old address serves, and after a failure too', async () => {
    const reactor = reactorForTest();
    const pending = lookups();
    const [old, moved] = [await startServer(), createServer((socket) => socket.end('moved'))];
    moved.listen(old.port, '127.0.0.2');
    await once(moved, 'listening');
    const route = routeTo({ host: 'shop.test', port: old.port });
    const first = await ask(reactor, route);
    pending[0]!.answer(null, HOST);
    await first.connection();
    await laterBy(reactor, 11_000);
    await (await ask(reactor, route)).connection();
    expect(pending).toHaveLength(2);
    await acceptedBy(old, 2);
    pending[1]!.answer(notFound, '');
    await (await ask(reactor, route)).connection();
    // It isn't asked for at each connection while the resolver is away.
    expect(pending).toHaveLength(2);
    await acceptedBy(old, 3);
    await laterBy(reactor, 11_000);
    await (await ask(reactor, route)).connection();
    pending[2]!.answer(null, '127.0.0.2');
    const made = await (await ask(reactor, route)).connection();
    const user = new User(reactor);
    made.use(user);
    await user.until('the new address', () => user.text === 'moved');
    moved.close();
  });
});

describe('idle connections', () => {
  const start = async () => {
    const reactor = reactorForTest();
    const changes: number[] = [];
    const pool = new IdleConnections((by) => changes.push(by));
    const make = async () => {
      const { stream, peer } = await streamPair(reactor);
      return { connection: new ServerConnection(reactor, stream), peer };
    };
    const waiting = new Waiting(reactor);
    const look = reactor.timers.make(() => {
      waiting.changed();
      look.set(1);
    });
    look.set(1);
    return { reactor, pool, changes, make, waiting };
  };

  test('the newest is used first, and knows that it was used before', async () => {
    const { reactor, pool, changes, make } = await start();
    const made = [await make(), await make()];
    for (const { connection } of made) pool.put(connection);
    const taken = pool.take();
    expect([taken === made[1]!.connection, taken?.reused, pool.size]).toEqual([true, true, 1]);
    const user = new User(reactor);
    taken!.use(user);
    made[1]!.peer.write('answer');
    await user.until('the answer', () => user.text === 'answer');
    expect([pool.take() === made[0]!.connection, pool.take(), changes]).toEqual([true, null, [1, 1, -1, -1]]);
  });

  test.each(['speaks', 'ends', 'resets'] as const)('one whose server %s is not used again', async (what) => {
    const { pool, changes, make, waiting } = await start();
    const { connection, peer } = await make();
    pool.put(connection);
    if (what === 'speaks') peer.write('HTTP/1.1 408 Request Timeout\r\n\r\n');
    else if (what === 'ends') peer.end();
    else peer.resetAndDestroy();
    await waiting.until('it is gone', () => pool.size === 0);
    expect([pool.take(), connection.stream.destroyed, changes]).toEqual([null, true, [1, -1]]);
  });

  test('one that has been idle for some seconds is closed; one that was used meanwhile is not', async () => {
    const { reactor, pool, make, waiting } = await start();
    const [old, used] = [await make(), await make()];
    pool.put(used.connection);
    const user = new User(reactor);
    pool.take()!.use(user);
    pool.put(old.connection);
    await laterBy(reactor, 3_000);
    expect(pool.size).toBe(1);
    await laterBy(reactor, 1_500);
    await waiting.until('the old one is closed', () => pool.size === 0);
    expect([old.connection.stream.destroyed, used.connection.stream.destroyed, user.events]).toEqual([true, false, []]);
  });

  test('what has ended, or has output left, or comes too late, is closed instead of kept', async () => {
    const { reactor, pool, changes, make } = await start();
    const ended = await make();
    const user = new User(reactor);
    ended.connection.use(user);
    ended.peer.end();
    await user.told('end');
    const pending = await make();
    while (pending.connection.stream.write(Buffer.alloc(1024 * 1024)));
    const late = await make();
    for (const { connection } of [ended, pending]) pool.put(connection);
    expect([pool.size, changes]).toEqual([0, []]);
    pool.stop();
    pool.put(late.connection);
    expect([ended, pending, late].map(({ connection }) => connection.stream.destroyed)).toEqual([true, true, true]);
  });

  test('no more than a limit are kept, and all can be closed', async () => {
    const { pool, changes, make } = await start();
    const all = await Promise.all(Array.from({ length: 257 }, make));
    for (const { connection } of all) pool.put(connection);
    expect([pool.size, all[256]!.connection.stream.destroyed]).toEqual([256, true]);
    pool.closeAll();
    expect([pool.size, all.every(({ connection }) => connection.stream.destroyed)]).toEqual([0, true]);
    expect(changes.reduce((sum, by) => sum + by, 0)).toBe(0);
  });
});
