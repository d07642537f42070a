/** Stream sockets through libc: how they are opened, who is at the other end, and what is told when it fails. */
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import type { Endpoint } from '../src/config/units.ts';
import { libc } from '../src/net/libc.ts';
import { acceptedPeer, acceptFrom, connectError, duplicate, listenOn, localOf } from '../src/net/tcpSocket.ts';
import { resetOnClose, socketAddressOf, startConnecting } from '../src/net/tcpSocket.ts';
import type { ListenOptions, Opened } from '../src/net/tcpSocket.ts';
import { listening, tempFolder } from './nodeHelpers.ts';
import { closedPort } from './proxyHelpers.ts';
import { HOST, LISTEN, opened } from './reactorHelpers.ts';

const F_GETFD = 1;
const F_GETFL = 3;
const FD_CLOEXEC = 1;
const O_NONBLOCK = 0o4000;
const SOL_TCP = 6;
const TCP_NODELAY = 1;

/** Closed at the end of the test. */
const kept = (result: Opened): number => {
  const fd = opened(result);
  onTestFinished(() => void libc().close(fd));
  return fd;
};

const listen = (endpoint: Endpoint = { host: HOST, port: 0 }, more: Partial<ListenOptions> = {}): number =>
  kept(listenOn(endpoint, { ...LISTEN, ...more }));

const isSafe = (fd: number): boolean[] => [
  (libc().fcntl(fd, F_GETFD, 0) & FD_CLOEXEC) !== 0,
  (libc().fcntl(fd, F_GETFL, 0) & O_NONBLOCK) !== 0,
];

const hasNoDelay = (fd: number): boolean => {
  const value = Buffer.alloc(4);
  const length = Buffer.from([4, 0, 0, 0]);
  expect(libc().getsockopt(fd, SOL_TCP, TCP_NODELAY, value, length)).toBe(0);
  return value.readInt32LE(0) === 1;
};

const hasIPv6 = Object.values(networkInterfaces()).some((each) => each!.some(({ family }) => family === 'IPv6'));

/** Connects with Node's own sockets, and accepts with ours. */
const accepted = async (fd: number, to: { host: string; port: number } | { path: string }) => {
  const client = connect(to);
  onTestFinished(() => void client.destroy());
  await once(client, 'connect');
  const result = acceptFrom(fd);
  if (!result) throw new Error('nobody waits');
  return { fd: kept(result), peer: acceptedPeer(), client };
};

test('what is opened does not block, is not inherited by programs that are started, and sends at once', async () => {
  const fd = listen();
  const { port } = localOf(fd);
  const inwards = await accepted(fd, { host: HOST, port });
  const outwards = kept(startConnecting(socketAddressOf({ host: HOST, port })));
  for (const one of [fd, inwards.fd, outwards, kept(duplicate(fd))]) expect(isSafe(one)).toEqual([true, true]);
  for (const one of [inwards.fd, outwards]) expect(hasNoDelay(one)).toBe(true);
});

test('nobody waits: null, not an error', () => {
  expect(acceptFrom(listen())).toBeNull();
  expect(acceptFrom(999_999)).toEqual({ code: 'EBADF' });
});

test('both ends are told by address and port; a client of IPv4 at a socket of both families is one of IPv4', async () => {
  const cases: [Endpoint, string, string][] = [[{ host: HOST, port: 0 }, HOST, HOST]];
  if (hasIPv6) {
    cases.push([{ host: '::1', port: 0 }, '::1', '::1'], [{ host: '*', port: 0 }, '::1', '::1']);
    cases.push([{ host: '*', port: 0 }, HOST, HOST]);
  }
  for (const [endpoint, host, seen] of cases) {
    const fd = listen(endpoint);
    const { port } = localOf(fd);
    const { peer, client, fd: inwards } = await accepted(fd, { host, port });
    expect(peer).toEqual({ address: seen, port: client.localPort });
    expect(localOf(inwards)).toEqual({ address: seen, port });
  }
});

test('a client of a Unix socket has no address, also after one that had', async () => {
  const tcp = listen();
  await accepted(tcp, { host: HOST, port: localOf(tcp).port });
  const path = join(tempFolder(), 'one.sock');
  const { peer, fd } = await accepted(listen({ host: '', port: 0, path }), { path });
  expect([peer, localOf(fd)]).toEqual([
    { address: 'unix', port: 0 },
    { address: 'unix', port: 0 },
  ]);
});

test('a port is shared by those who say so, and by nobody else', async () => {
  const shared = listen(undefined, { reusePort: true });
  const { port } = localOf(shared);
  expect(localOf(listen({ host: HOST, port }, { reusePort: true })).port).toBe(port);
  expect(listenOn({ host: HOST, port }, LISTEN)).toEqual({ code: 'EADDRINUSE' });
  const taken = await listening(createServer());
  expect(listenOn({ host: HOST, port: taken }, { ...LISTEN, reusePort: true })).toEqual({ code: 'EADDRINUSE' });
});

test('a port whose last connections are still closing can be bound again', async () => {
  const fd = opened(listenOn({ host: HOST, port: 0 }, LISTEN));
  const { port } = localOf(fd);
  const { fd: inwards, client } = await accepted(fd, { host: HOST, port });
  libc().shutdown(inwards, 1);
  client.resume();
  await once(client, 'close');
  libc().close(fd);
  expect(localOf(listen({ host: HOST, port })).port).toBe(port);
});

test('a connection that is refused is told with its reason, at once or when it is asked for', async () => {
  const started = startConnecting(socketAddressOf({ host: HOST, port: await closedPort() }));
  expect('code' in started ? started.code : connectError(kept(started))).toBe('ECONNREFUSED');
  const path = join(tempFolder(), 'none.sock');
  expect(startConnecting(socketAddressOf({ host: '', port: 0, path }))).toEqual({ code: 'ENOENT' });
});

test('a connection can be sent from an address of one’s own choice, and from no other', () => {
  const address = socketAddressOf({ host: HOST, port: localOf(listen()).port });
  const fd = kept(startConnecting(address, socketAddressOf({ host: '127.0.0.9', port: 0 })));
  expect(localOf(fd).address).toBe('127.0.0.9');
  expect(startConnecting(address, socketAddressOf({ host: '192.0.2.1', port: 0 }))).toEqual({ code: 'EADDRNOTAVAIL' });
});

test('closing tells the peer of an end, or of a reset where that was asked for', async () => {
  for (const resets of [false, true]) {
    const fd = listen();
    const { fd: inwards, client } = await accepted(fd, { host: HOST, port: localOf(fd).port });
    const errors: string[] = [];
    client.on('error', (error: NodeJS.ErrnoException) => errors.push(error.code!));
    const over = new Promise<void>((done) => void client.once('close', () => done()));
    if (resets) resetOnClose(inwards);
    libc().shutdown(inwards, resets ? 0 : 2);
    const copy = opened(duplicate(inwards));
    libc().close(copy);
    client.resume();
    if (resets) libc().close(inwards);
    await over;
    expect(errors).toEqual(resets ? ['ECONNRESET'] : []);
  }
});
