import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, connect as connectTls } from 'node:tls';
import { setImmediate as nextTurn } from 'node:timers/promises';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { libc } from '../src/net/libc.ts';
import { openssl } from '../src/net/openssl.ts';
import { resetOnClose } from '../src/net/tcpSocket.ts';
import { BROKEN, TRUNCATED, WOULD_BLOCK } from '../src/net/wire.ts';
import { ClientContext } from '../src/proxy/tlsClient.ts';
import { ServerContexts } from '../src/proxy/tlsContext.ts';
import type { TlsWire } from '../src/proxy/tlsWire.ts';
import { has } from './packages.ts';
import { accept, clientModel, closeNow, connect, listen, makeCertificates, serverModel } from './tlsHelpers.ts';
import { shakeHands, socketPair, until } from './tlsHelpers.ts';
import type { Files } from './tlsHelpers.ts';

const INTO = Buffer.alloc(128 * 1024);
const MEBIBYTE = randomBytes(1024 * 1024);

describe.skipIf(!has('openssl'))('a TLS session over a non-blocking descriptor', () => {
  let files: Files;
  let contexts: ServerContexts;
  let client: ClientContext;

  beforeAll(() => {
    files = makeCertificates();
    contexts = new ServerContexts(serverModel([files.read('shop.pem')]), null);
    client = new ClientContext(clientModel(files.read('authority.crt')));
  });
  afterAll(() => {
    contexts.free();
    client.free();
    files.remove();
  });

  /** Both ends with the handshake done, and their descriptors. */
  const session = async () => {
    const [near, far] = await socketPair();
    const wires = { near, far, client: client.connect(near), server: contexts.accept(far, 'shop.test') };
    expect(await shakeHands(wires.client, wires.server)).toEqual(['done', 'done']);
    return wires;
  };

  const readText = (wire: TlsWire) =>
    until(() => {
      const count = wire.read(INTO, 0, INTO.length);
      return count === WOULD_BLOCK ? undefined : count > 0 ? INTO.toString('latin1', 0, count) : count;
    });

  const writeAll = async (wire: TlsWire, bytes: Buffer) => {
    for (let at = 0; at < bytes.length; await nextTurn()) {
      const taken = wire.write(bytes, at, bytes.length);
      expect(taken).toBeGreaterThanOrEqual(0);
      at += taken;
    }
  };

  /** The digest of so many bytes. */
  const readDigest = async (wire: TlsWire, length: number) => {
    const hash = createHash('sha256');
    for (let left = length; left > 0;) {
      const count = wire.read(INTO, 0, INTO.length);
      if (count === WOULD_BLOCK) {
        await nextTurn();
        continue;
      }
      expect(count).toBeGreaterThan(0);
      hash.update(INTO.subarray(0, count));
      left -= count;
    }
    return hash.digest('hex');
  };

  const digestOf = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');

  const write = (wire: TlsWire, text: string) =>
    expect(wire.write(Buffer.from(text), 0, text.length)).toBe(text.length);

  test('bytes go both ways, and both know what was agreed on', async () => {
    const { client: near, server: far } = await session();
    write(near, 'ping');
    expect(await readText(far)).toBe('ping');
    write(far, 'pong');
    expect(await readText(near)).toBe('pong');
    const agreed = { serverName: 'shop.test', protocol: 'TLSv1.3', alpn: null, client: null };
    expect(near.facts()).toMatchObject(agreed);
    expect(far.facts()).toEqual({ ...agreed, cipher: 'TLS_AES_256_GCM_SHA384' });
    near.free();
    far.free();
  });

  test('writes no more than the peer takes, and goes on with the rest from a copy', async () => {
    const { client: near, server: far } = await session();
    // More than buffers of the kernel hold on loopback.
    const bytes = Buffer.concat(Array.from({ length: 16 }, () => MEBIBYTE));
    let taken = 0;
    // The kernel may make room in between.
    for (let count = 1; count > 0; taken += count) count = far.write(bytes, taken, bytes.length);
    expect(taken).toBeLessThan(bytes.length);
    const rest = Buffer.from(bytes.subarray(taken));
    const [digest] = await Promise.all([readDigest(near, bytes.length), writeAll(far, rest)]);
    expect(digest).toBe(digestOf(bytes));
    near.free();
    far.free();
  });

  test('reads to an offset, and says that there is more than was asked for', async () => {
    const { client: near, server: far } = await session();
    write(near, 'abcdef');
    const into = Buffer.alloc(8, '.');
    expect(await until(() => (far.read(into, 2, 4) === 4 ? 4 : undefined))).toBe(4);
    expect(into.toString()).toBe('..abcd..');
    expect(far.hasPending()).toBe(true);
    expect(far.read(into, 0, 8)).toBe(2);
    near.free();
    far.free();
  });

  test('what came while the rest of a read was waiting is not forgotten', async () => {
    const { client: near, server: far } = await session();
    for (const text of ['it is known', 'that nothing is held']) {
      write(near, text);
      expect(await readText(far)).toBe(text);
    }
    write(near, 'abcdef');
    expect(far.read(INTO, 0, 4)).toBe(4);
    write(near, 'ghi');
    expect(await readText(far)).toBe('efghi');
    near.free();
    far.free();
  });

  test('RFC 8446 section 6.1: only close_notify is an end; the transport’s alone is a truncation', async () => {
    const ended = await session();
    write(ended.client, 'all');
    expect(ended.client.shutdown()).toBe('done');
    expect(await readText(ended.server)).toBe('all');
    expect(await readText(ended.server)).toBe(0);
    ended.client.free();
    ended.server.free();

    const cut = await session();
    write(cut.client, 'all?');
    // Takes the tickets: closing with something unread would reset the connection.
    expect(cut.client.read(INTO, 0, INTO.length)).toBe(WOULD_BLOCK);
    cut.client.free();
    closeNow(cut.near);
    expect(await readText(cut.server)).toBe('all?');
    expect(await readText(cut.server)).toBe(TRUNCATED);
    expect(cut.server.problem?.code).toBe('TLS_EOF');
    cut.server.free();
  });

  test('an end that came together with bytes is told by hasPending, as no event will tell of it', async () => {
    const { client: near, server: far } = await session();
    write(near, 'first');
    expect(await readText(far)).toBe('first');
    write(near, 'last');
    near.shutdown();
    await nextTurn();
    expect(await readText(far)).toBe('last');
    expect(far.hasPending()).toBe(true);
    expect(far.read(INTO, 0, INTO.length)).toBe(0);
    near.free();
    far.free();
  });

  test('a half-closed peer can still be answered', async () => {
    const { client: near, server: far } = await session();
    near.shutdown();
    expect(await readText(far)).toBe(0);
    write(far, 'the answer');
    expect(await readText(near)).toBe('the answer');
    expect(far.shutdown()).toBe('done');
    expect(await readText(near)).toBe(0);
    near.free();
    far.free();
  });

  test('a reset is an errno', async () => {
    const { near, client: nearWire, server: far } = await session();
    resetOnClose(near);
    nearWire.free();
    closeNow(near);
    expect(await readText(far)).toBe(BROKEN);
    expect(far.problem).toEqual({ code: 'ECONNRESET', message: 'the connection is broken' });
    far.free();
  });

  test('bytes that were changed on their way break the connection and are never passed on', async () => {
    const { near, client: nearWire, server: far } = await session();
    const forged = Buffer.from([23, 3, 3, 0, 32, ...randomBytes(32)]);
    expect(libc().send(near, forged, forged.length, 0)).toBe(forged.length);
    expect(await readText(far)).toBe(BROKEN);
    expect(far.problem).toMatchObject({ code: 'TLS_PROTOCOL', message: expect.stringContaining('bad record mac') });
    expect(far.read(INTO, 0, INTO.length)).toBe(BROKEN);
    nearWire.free();
    far.free();
  });

  test('a fatal alert breaks the connection: it is no end, though it closes as close_notify does', async () => {
    const { near, client: nearWire, server: far } = await session();
    const forged = Buffer.from([23, 3, 3, 0, 32, ...randomBytes(32)]);
    libc().send(near, forged, forged.length, 0);
    expect(await readText(far)).toBe(BROKEN);
    // The server's alert.
    expect(await readText(nearWire)).toBe(BROKEN);
    expect(nearWire.problem).toMatchObject({ code: 'TLS_ALERT', message: expect.stringContaining('bad record mac') });
    nearWire.free();
    far.free();
  });

  test('a client that closes TLS during the handshake', async () => {
    const [near, far] = await socketPair();
    const wire = contexts.accept(far, null);
    const closeNotify = Buffer.from([21, 3, 3, 0, 2, 1, 0]);
    libc().send(near, closeNotify, closeNotify.length, 0);
    const outcome = await until(() => {
      const state = wire.handshake();
      return state === 'again' ? undefined : state;
    });
    expect(outcome).toMatchObject({ code: expect.stringMatching(/^TLS_/) });
    wire.free();
  });

  test('what others left in the thread’s error queue is not blamed on a connection', async () => {
    const { client: near, server: far } = await session();
    const leaveAnError = () =>
      openssl().SSL_CTX_set_cipher_list(openssl().SSL_CTX_new(openssl().TLS_server_method()), '?');
    leaveAnError();
    expect(far.read(INTO, 0, INTO.length)).toBe(WOULD_BLOCK);
    write(near, 'well');
    expect(await readText(far)).toBe('well');
    near.shutdown();
    await nextTurn();
    leaveAnError();
    expect(await readText(far)).toBe(0);
    near.free();
    far.free();
  });

  test('the descriptor stays open, and a session that was freed is not used again', async () => {
    const { near, client: nearWire, server: far } = await session();
    nearWire.free();
    expect(() => nearWire.free()).toThrow(/freed/);
    expect(() => nearWire.read(INTO, 0, 1)).toThrow(/freed/);
    expect(libc().send(near, Buffer.from('x'), 1, 0)).toBe(1);
    far.free();
  });

  test.each([
    ['HTTP in the clear', 'GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n', 'http request'],
    ['something else', 'SSH-2.0-OpenSSH_9.2\r\n', /wrong version number|record layer failure/],
  ])('%s is told from a handshake', async (_, text, message) => {
    const [near, far] = await socketPair();
    const wire = contexts.accept(far, null);
    libc().send(near, Buffer.from(text), text.length, 0);
    const outcome = await until(() => {
      const state = wire.handshake();
      return state === 'again' ? undefined : state;
    });
    expect(outcome).toMatchObject({ code: 'TLS_HANDSHAKE', message: expect.stringMatching(message) });
    wire.free();
  });

  test('a client that leaves during the handshake', async () => {
    const [near, far] = await socketPair();
    const wire = contexts.accept(far, null);
    closeNow(near);
    const outcome = await until(() => {
      const state = wire.handshake();
      return state === 'again' ? undefined : state;
    });
    expect(outcome).toMatchObject({ code: 'TLS_EOF' });
    wire.free();
  });

  test.each(['TLSv1.2', 'TLSv1.3'] as const)(
    'with Node’s own client and server, a mebibyte each way, %s',
    async (version) => {
      const listening = listen();
      const socket = connectTls({
        port: listening.port,
        ca: files.read('authority.crt'),
        servername: 'shop.test',
        maxVersion: version,
      });
      onTestFinished(() => void socket.destroy());
      const wire = contexts.accept(await accept(listening.fd), 'shop.test');
      await until(() => (wire.handshake() === 'done' ? true : undefined));
      expect(wire.facts()?.protocol).toBe(version);
      socket.end(MEBIBYTE);
      expect(await readDigest(wire, MEBIBYTE.length)).toBe(digestOf(MEBIBYTE));
      expect(await readText(wire)).toBe(0);
      const received = createHash('sha256');
      socket.on('data', (bytes: Buffer) => received.update(bytes));
      const end = once(socket, 'end');
      await writeAll(wire, MEBIBYTE);
      expect(wire.shutdown()).toBe('done');
      await end;
      expect(received.digest('hex')).toBe(digestOf(MEBIBYTE));
      wire.free();

      const server = createServer({ cert: files.read('shop.crt'), key: files.read('shop.key'), maxVersion: version });
      onTestFinished(() => void server.close());
      server.on('secureConnection', (peer) => peer.pipe(peer));
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      const out = client.connect(connect((server.address() as { port: number }).port));
      await until(() => (out.handshake() === 'done' ? true : undefined));
      const [digest] = await Promise.all([readDigest(out, MEBIBYTE.length), writeAll(out, MEBIBYTE)]);
      expect(digest).toBe(digestOf(MEBIBYTE));
      out.shutdown();
      expect(await readText(out)).toBe(0);
      out.free();
    },
  );

  /** Debian's openssl, of another version than Node's, as the client; `K` and `R` at its input are commands. */
  const opensslClient = async (...options: string[]) => {
    const listening = listen();
    const child = spawn('openssl', ['s_client', '-connect', `127.0.0.1:${listening.port}`, ...options]);
    onTestFinished(() => void child.kill('SIGKILL'));
    const told = { text: '' };
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (bytes: Buffer) => {
        told.text += bytes.toString('latin1');
      });
    }
    const wire = contexts.accept(await accept(listening.fd), null);
    await until(() => (wire.handshake() === 'done' ? true : undefined));
    return { child, wire, told };
  };

  test('RFC 8446 section 4.6.3: a client updates its key and asks for ours to be updated', async () => {
    const { child, wire, told } = await opensslClient('-tls1_3');
    child.stdin.write('K\n');
    await until(() => (told.text.includes('KEYUPDATE') ? true : expectNothing(wire)));
    child.stdin.write('hello\n');
    expect(await readText(wire)).toBe('hello\n');
    write(wire, 'with the new key');
    await until(() => (told.text.includes('with the new key') ? true : undefined));
    wire.free();
  });

  test('a client may not make us renegotiate', async () => {
    const { child, wire, told } = await opensslClient('-tls1_2');
    child.stdin.write('R\n');
    // It gives up at our alert.
    expect(await readText(wire)).toBeTypeOf('number');
    await until(() => (told.text.includes('no renegotiation') ? true : undefined));
    wire.free();
  });

  const expectNothing = (wire: TlsWire) => {
    expect(wire.read(INTO, 0, INTO.length)).toBe(WOULD_BLOCK);
    return undefined;
  };

  test('edge-triggered: who reads at events and while hasPending says so gets every byte', async () => {
    const plan = fc.record({
      writes: fc.array(fc.integer({ min: 1, max: 40_000 }), { minLength: 1, maxLength: 12 }),
      pieces: fc.array(fc.integer({ min: 300, max: 30_000 }), { minLength: 1, maxLength: 6 }),
      reads: fc.array(fc.integer({ min: 1, max: 60_000 }), { minLength: 1, maxLength: 4 }),
    });
    await fc.assert(
      fc.asyncProperty(plan, async ({ writes, pieces, reads }) => {
        const { sent, received } = await relayed(writes, pieces, reads);
        expect(received).toBe(sent);
      }),
      { numRuns: 40 },
    );
  });

  /** What is written reaches the reader in pieces of other lengths; an epoll as the reactor has it tells of them. */
  const relayed = async (writes: number[], pieces: number[], reads: number[]) => {
    const [near, relayIn] = await socketPair();
    const [relayOut, far] = await socketPair();
    const writer = client.connect(near);
    const reader = contexts.accept(far, null);
    const pass = (from: number, to: number, length: number) => {
      const count = libc().recv(from, PIECE, length, 0);
      if (count > 0) expect(libc().send(to, PIECE, count, 0)).toBe(count);
      return count > 0;
    };
    while ([writer.handshake(), reader.handshake()].includes('again')) {
      pass(relayIn, relayOut, PIECE.length);
      pass(relayOut, relayIn, PIECE.length);
    }
    const events = edgeEvents(far);
    let received = 0;
    const readAsTold = (turn: number) => {
      let more = events.wait();
      while (more) {
        const length = reads[turn % reads.length]!;
        const count = reader.read(INTO, 0, length);
        if (count !== WOULD_BLOCK) expect(count).toBeGreaterThan(0);
        if (count > 0) received += count;
        more = count > 0 && reader.hasPending();
      }
    };
    let sent = 0;
    for (const [turn, length] of writes.entries()) {
      sent += writer.write(MEBIBYTE, 0, length);
      if (pass(relayIn, relayOut, pieces[turn % pieces.length]!)) readAsTold(turn);
    }
    for (let turn = 0; pass(relayIn, relayOut, pieces[turn % pieces.length]!); turn++) readAsTold(turn);
    events.close();
    writer.free();
    reader.free();
    for (const fd of [near, relayIn, relayOut, far]) closeNow(fd);
    return { sent, received };
  };
});

const PIECE = Buffer.alloc(64 * 1024);

const EPOLL_CTL_ADD = 1;
const EPOLLIN = 1;
const EPOLLET = 0x8000_0000;
const LONG_ENOUGH_MS = 20;

/** Whether there is news at a descriptor since the last time. Bytes over loopback are there when `send` returns. */
const edgeEvents = (fd: number) => {
  const epoll = libc().epoll_create1(0);
  const event = Buffer.alloc(16);
  event.writeUInt32LE(EPOLLIN + EPOLLET, 0);
  event.writeInt32LE(fd, process.arch === 'x64' ? 4 : 8);
  expect(libc().epoll_ctl(epoll, EPOLL_CTL_ADD, fd, event)).toBe(0);
  return {
    wait: () => libc().epoll_wait(epoll, event, 1, LONG_ENOUGH_MS) === 1,
    close: () => libc().close(epoll),
  };
};
