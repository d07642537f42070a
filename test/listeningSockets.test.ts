/** Listening sockets: opened once, a worker's for as long as it lives, then another's, and closed with their listener. */
import { once } from 'node:events';
import { readdirSync, statSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import type { Socket } from 'node:net';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { connect as connectTls } from 'node:tls';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { Endpoint } from '../src/config/units.ts';
import { libc } from '../src/net/libc.ts';
import { localOf } from '../src/net/tcpSocket.ts';
import { ListeningSockets } from '../src/proxy/listeningSockets.ts';
import type { Assigned } from '../src/proxy/listeningSockets.ts';
import { listening, tempFolder } from './nodeHelpers.ts';
import { has } from './packages.ts';
import { eventually, getAndClose, HOST, httpServer, listenerModel, RawClient } from './proxyHelpers.ts';
import { rawServer, startProxy, talk, tlsModel } from './proxyHelpers.ts';
import { makeCertificates } from './tlsHelpers.ts';

const ANY: Endpoint = { host: HOST, port: 0 };

const openCount = (): number => readdirSync('/proc/self/fd').length;

const isOpen = (fd: number): boolean => libc().fcntl(fd, 1, 0) >= 0;

describe('who has which', () => {
  const model = (address: Endpoint = ANY) => listenerModel(0, { id: 'one', address });

  const socketsForTest = () => {
    const sockets = new ListeningSockets();
    onTestFinished(() => sockets.closeAll());
    return sockets;
  };

  const assigned = (sockets: ListeningSockets, worker: number, address: Endpoint = ANY): Assigned => {
    const result = sockets.assign(model(address), worker);
    if ('code' in result) throw new Error(result.message);
    return result;
  };

  test('each worker has one of its own at the same port, also where the kernel chooses the port', () => {
    const sockets = socketsForTest();
    expect(sockets.open(model())).toBeNull();
    const both = [assigned(sockets, 0), assigned(sockets, 1)];
    expect(both.map(({ descriptors, from }) => [descriptors.length, from])).toEqual([
      [1, null],
      [1, null],
    ]);
    expect(new Set([...both.map(({ port }) => port), ...sockets.of('one').map((fd) => localOf(fd).port)]).size).toBe(1);
    expect(sockets.portOf('one')).toBe(both[0]!.port);
    expect(assigned(sockets, 0)).toEqual({ ...both[0], from: null });
  });

  test('what a worker leaves is the next one’s, without a new one being opened', () => {
    const sockets = socketsForTest();
    const first = assigned(sockets, 0);
    sockets.release(0);
    expect([sockets.hasFree('one'), sockets.of('one')]).toEqual([true, first.descriptors]);
    expect(assigned(sockets, 1)).toEqual(first);
    expect(sockets.hasFree('one')).toBe(false);
  });

  test('one that inherited gives away half when another worker comes', () => {
    const sockets = socketsForTest();
    const all = [0, 1, 2].flatMap((worker) => assigned(sockets, worker).descriptors);
    for (const worker of [1, 2]) sockets.release(worker);
    expect(assigned(sockets, 0).descriptors.toSorted()).toEqual(all.toSorted());
    const second = assigned(sockets, 1);
    expect(second.from).toEqual({ worker: 0, descriptors: second.descriptors });
    const third = assigned(sockets, 2);
    expect([...assigned(sockets, 0).descriptors, ...second.descriptors, ...third.descriptors].toSorted()).toEqual(
      all.toSorted(),
    );
  });

  test('those of an earlier process are used first; what no listener asks for is closed', () => {
    const earlier = socketsForTest();
    const handed = [0, 1].flatMap((worker) => assigned(earlier, worker).descriptors);
    const { port } = localOf(handed[0]!);
    const unknown = new ListeningSockets();
    const [stray] = (unknown.assign(model(), 0) as Assigned).descriptors;
    const sockets = new ListeningSockets();
    sockets.adopt(new Map([['one', handed]].concat([['gone', [stray!]]]) as [string, number[]][]));
    expect(sockets.open(model())).toBeNull();
    expect(assigned(sockets, 0)).toEqual({ descriptors: handed, port, from: null });
    expect(assigned(sockets, 1).from).toEqual({ worker: 0, descriptors: [handed[1]] });
    expect(sockets.of('one').toSorted()).toEqual(handed.toSorted());
    sockets.dropUnclaimed();
    expect([isOpen(stray!), isOpen(handed[0]!)]).toEqual([false, true]);
  });

  test('an address that is taken is told, and nothing stays open', async () => {
    const taken = createServer();
    const port = await listening(taken);
    const before = openCount();
    const sockets = socketsForTest();
    const address = { host: HOST, port };
    const failure = { code: 'EADDRINUSE', message: `${HOST}:${port} can't be bound: EADDRINUSE` };
    expect(sockets.open(model(address))).toEqual(failure);
    expect(sockets.assign(model(address), 0)).toEqual(failure);
    expect([openCount(), sockets.of('one')]).toEqual([before, []]);
  });

  test('an address that this machine does not have can be bound where it is a virtual one', () => {
    const address = { host: '192.0.2.1', port: 0 };
    expect(socketsForTest().open(model(address))).toMatchObject({ code: 'EADDRNOTAVAIL' });
    expect(socketsForTest().open({ ...model(address), freeBind: true })).toBeNull();
  });

  test('the end of a listener closes what is free; workers close their own', () => {
    const sockets = socketsForTest();
    const [own] = assigned(sockets, 0).descriptors;
    const [free] = assigned(sockets, 1).descriptors;
    sockets.release(1);
    sockets.forget('one');
    expect([isOpen(own!), isOpen(free!), sockets.of('one')]).toEqual([true, false, []]);
    libc().close(own!);
  });
});

describe('addresses', () => {
  const hasIPv6 = Object.values(networkInterfaces()).some((each) => each!.some(({ family }) => family === 'IPv6'));

  test.skipIf(!hasIPv6)('* is IPv4 and IPv6, and clients of IPv4 are told of as such', async () => {
    const web = await httpServer((request, response) => response.end(String(request.headers['x-forwarded-for'])));
    const proxy = await startProxy({ servers: { s: web }, listener: { address: { host: '*', port: 0 } } });
    for (const host of ['127.0.0.1', '::1']) {
      const socket = connect(proxy.port, host).end(getAndClose());
      let text = '';
      socket.on('data', (chunk: Buffer) => (text += chunk.toString()));
      await once(socket, 'close');
      expect(text.slice(text.indexOf('\r\n\r\n') + 4)).toBe(host);
    }
  });

  test.skipIf(!hasIPv6)('an address of IPv6 leaves the port of IPv4 to others', async () => {
    const other = createServer((socket) => socket.end('the other'));
    const port = await listening(other);
    const web = await httpServer((_, response) => response.end('ours'));
    await startProxy({ servers: { s: web }, listener: { address: { host: '::', port } } });
    expect(await talk(port, '')).toBe('the other');
  });

  /** Connects to a Unix socket and asks. */
  const askAt = async (path: string): Promise<string> => {
    const socket = connect(path).end(getAndClose());
    let text = '';
    socket.on('data', (chunk: Buffer) => (text += chunk.toString()));
    await once(socket, 'close');
    return text;
  };

  test('workers share a Unix socket, with its permissions, and each of them serves', async () => {
    const path = join(tempFolder(), 'shop.sock');
    const web = await httpServer((_, response) => response.end('ours'));
    const proxy = await startProxy({
      servers: { s: web },
      listener: { address: { host: '', port: 0, path }, socketFile: { mode: 0o620, uid: null, gid: null } },
    });
    expect((statSync(path).mode & 0o777).toString(8)).toBe('620');
    expect(await askAt(path)).toMatch(/ours$/);
    await proxy.workers[0]!.terminate();
    await eventually('its end is heard', () => proxy.exits.length === 1);
    expect(await askAt(path)).toMatch(/ours$/);
    proxy.dataPlane.startWorker(0);
    await eventually('it is back', () => proxy.listenings.length === 3);
    await proxy.workers[1]!.terminate();
    await eventually('its end is heard', () => proxy.exits.length === 2);
    expect(await askAt(path)).toMatch(/ours$/);
  });

  test('the file of a socket that nobody listens at is replaced; one in use, or of another kind, is not', async () => {
    const folder = tempFolder();
    const open = (path: string) => {
      const sockets = new ListeningSockets();
      onTestFinished(() => sockets.closeAll());
      return sockets.open(listenerModel(0, { address: { host: '', port: 0, path } }));
    };
    const stale = join(folder, 'stale.sock');
    expect(open(stale)).toBeNull();
    expect(open(stale)).toMatchObject({ code: 'EADDRINUSE' });
    const gone = new ListeningSockets();
    const left = join(folder, 'left.sock');
    expect(gone.open(listenerModel(0, { address: { host: '', port: 0, path: left } }))).toBeNull();
    gone.closeAll();
    expect(open(left)).toBeNull();
    const file = join(folder, 'notes.txt');
    writeFileSync(file, 'precious');
    expect(open(file)).toMatchObject({ code: 'EADDRINUSE' });
    expect(statSync(file).size).toBe(8);
  });

  test('an address in use is told by the data plane, and opens when it is free', async () => {
    const taken = createServer();
    const port = await listening(taken);
    const web = await httpServer((_, response) => response.end('ours'));
    await expect(startProxy({ servers: { s: web }, listener: { address: { host: HOST, port } } })).rejects.toThrow(
      /EADDRINUSE/,
    );
    taken.close();
    await once(taken, 'close');
    await startProxy({ servers: { s: web }, listener: { address: { host: HOST, port } } });
    expect(await talk(port, getAndClose())).toMatch(/ours$/);
  });
});

describe('workers that come and go', () => {
  test('whoever waits in the kernel’s queue of a worker that dies is served by another', async () => {
    const waiting: (() => void)[] = [];
    const web = await httpServer((request, response) => {
      if (request.url === '/hold') waiting.push(() => response.end('held'));
      else response.end('served');
    });
    const proxy = await startProxy({ servers: { s: web }, maxConnections: 1 });
    new RawClient(proxy.port).send('GET /hold HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n');
    await eventually('the only place is taken', () => waiting.length === 1);
    // They connect, and wait at both workers: more of them than are accepted in one go.
    const clients = Array.from({ length: 300 }, () => new RawClient(proxy.port).send(getAndClose()));
    for (const { socket } of clients) socket.on('end', () => socket.end());
    await Promise.all(clients.map(({ socket }) => once(socket, 'connect')));
    await proxy.workers[1]!.terminate();
    await eventually('its end is heard', () => proxy.exits.length === 1);
    waiting[0]!();
    for (const client of clients) expect(await client.rest()).toMatch(/served$/);
  });

  test('workers that die one after the other and come back never refuse a client, nor leave one waiting', async () => {
    const web = await httpServer((_, response) => response.end('served'));
    const proxy = await startProxy({ servers: { s: web } });
    const failures: string[] = [];
    const over = new AbortController();
    let answers = 0;
    const client = async () => {
      while (!over.signal.aborted) {
        const one = new RawClient(proxy.port).send(getAndClose());
        const text = await one.rest();
        // What a worker has accepted may die with it, and is reset then.
        if (text.endsWith('served')) answers++;
        else if (one.error?.code !== 'ECONNRESET' && !one.ended) failures.push(one.error?.code ?? 'no answer');
      }
    };
    const clients = Promise.all([client(), client(), client()]);
    for (let round = 0; round < 6; round++) {
      const index = round % 2;
      const heard = proxy.exits.length;
      const workers: { terminate(): Promise<number> }[] = proxy.workers;
      const onWorker = (worker: (typeof workers)[number]) => (workers[index] = worker);
      await workers[index]!.terminate();
      await eventually('its end is heard', () => proxy.exits.length > heard);
      const served = answers;
      await eventually('the other one serves', () => answers > served + 20);
      process.once('worker', onWorker);
      const opened = proxy.listenings.length;
      proxy.dataPlane.startWorker(index);
      await eventually('it listens again', () => proxy.listenings.length > opened);
    }
    over.abort();
    await clients;
    expect(failures).toEqual([]);
    expect(proxy.dataPlane.sockets.get('main')).toHaveLength(2);
  });

  test('a worker that leaves passes its sockets on: not one client is lost', async () => {
    const web = await httpServer((_, response) => response.end('served'));
    const proxy = await startProxy({ servers: { s: web } });
    const answers: string[] = [];
    const over = new AbortController();
    const client = async () => {
      while (!over.signal.aborted) answers.push(await talk(proxy.port, getAndClose()));
    };
    const clients = Promise.all([client(), client(), client(), client()]);
    for (let round = 0; round < 4; round++) {
      const served = answers.length;
      proxy.dataPlane.drainWorker(1);
      await eventually('it has left', () => proxy.exits.length === round + 1);
      await eventually('the other one serves', () => answers.length > served + 50);
      proxy.dataPlane.startWorker(1);
      await eventually('it is back', () => proxy.listenings.length === 3 + round);
    }
    over.abort();
    await clients;
    expect(answers.filter((text) => !text.endsWith('served'))).toEqual([]);
    expect(proxy.exits.every((exit) => exit.startsWith('1:'))).toBe(true);
  });

  test('a listener is opened by workers that are there, and not by one that leaves', async () => {
    const held: Socket[] = [];
    const server = await rawServer((socket) => held.push(socket));
    const proxy = await startProxy({ mode: 'tcp', servers: { s: server } });
    const clients = Array.from({ length: 16 }, () => new RawClient(proxy.port).send('x'));
    await eventually('sessions at both', () => held.length === clients.length);
    proxy.dataPlane.drainWorker(1);
    proxy.dataPlane.openListener(listenerModel(0, { id: 'second' }));
    await eventually('it is open', () => proxy.listenings.some(({ id }) => id === 'second'));
    expect(proxy.dataPlane.sockets.get('second')).toHaveLength(1);
    const { port } = proxy.listenings.find(({ id }) => id === 'second')!;
    const before = held.length;
    const more = Array.from({ length: 8 }, () => new RawClient(port).send('y'));
    await eventually('all of them are served', () => held.length === before + more.length);
  });
});

describe('the end of a listener', () => {
  test('under load: everybody who was accepted by the kernel is answered, everybody later is refused', async () => {
    const web = await httpServer((_, response) => response.end('served'));
    const proxy = await startProxy({ servers: { s: web }, workers: 1 });
    for (let round = 0; round < 5; round++) {
      const opened = proxy.listenings.length;
      proxy.dataPlane.openListener(listenerModel(0, { id: `round ${round}` }));
      await eventually('it listens', () => proxy.listenings.length > opened);
      const { port } = proxy.listenings.at(-1)!;
      const clients = Array.from({ length: 300 }, () => new RawClient(port).send(getAndClose()));
      await Promise.all(clients.map(({ socket }) => once(socket, 'connect')));
      proxy.dataPlane.drainListener(`round ${round}`);
      for (const client of clients) expect(await client.rest()).toMatch(/served$/);
      await eventually('it is drained', () => proxy.drained.includes(`round ${round}`));
      const late = new RawClient(port);
      await late.rest();
      expect(late.error?.code).toBe('ECONNREFUSED');
    }
  });

  test('closing it ends its sessions at once, and leaves no descriptor', async () => {
    const held: Socket[] = [];
    const server = await rawServer((socket) => held.push(socket));
    const proxy = await startProxy({ mode: 'tcp', servers: { s: server } });
    const before = openCount();
    const opened = proxy.listenings.length;
    proxy.dataPlane.openListener(listenerModel(0, { id: 'second' }));
    await eventually('it listens', () => proxy.listenings.length === opened + 2);
    const { port } = proxy.listenings.at(-1)!;
    const clients = Array.from({ length: 10 }, () => new RawClient(port).send('x'));
    await eventually('sessions', () => held.length === 10);
    proxy.dataPlane.drainListener('second');
    proxy.dataPlane.closeListener('second');
    for (const client of clients) expect(await client.rest()).toBe('');
    await eventually('drained', () => proxy.drained.includes('second'));
    for (const socket of held) socket.destroy();
    await eventually('nothing is open', () => openCount() === before);
  });

  test.skipIf(!has('openssl'))('one that gets TLS, and loses it, goes on at its address', async () => {
    const files = makeCertificates();
    onTestFinished(files.remove);
    const tls = tlsModel([files.read('shop.pem')]);
    const web = await httpServer((_, response) => response.end('served'));
    const proxy = await startProxy({ servers: { s: web } });
    const { port } = proxy;
    const overTls = async () => {
      const socket = connectTls({ port, host: HOST, rejectUnauthorized: false });
      let text = '';
      socket.on('data', (chunk: Buffer) => (text += chunk.toString()));
      await once(socket, 'secureConnect');
      socket.write(getAndClose());
      await once(socket, 'end');
      return text;
    };
    for (let round = 1; round <= 4; round++) {
      const isTls = round % 2 === 1;
      proxy.dataPlane.openListener(listenerModel(0, { tls: isTls ? tls : null }));
      await eventually('both say so', () => proxy.listenings.length === 2 + 2 * round);
      for (let count = 0; count < 8; count++)
        expect(await (isTls ? overTls() : talk(port, getAndClose()))).toMatch(/served$/);
    }
  });
});
