/** A socket of the reactor as a stream: every byte, in order, and how each side ends. */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import type { Socket } from 'node:net';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { PlainWire } from '../src/net/plainWire.ts';
import type { Reactor } from '../src/net/reactor.ts';
import { socketAddressOf, startConnecting } from '../src/net/tcpSocket.ts';
import type { WireProblem } from '../src/net/wire.ts';
import { SocketStream } from '../src/proxy/socketStream.ts';
import { HOST, reactorForTest, socketPair, streamPair, Told, ToldAll, Waiting } from './reactorHelpers.ts';
import { closedPort } from './proxyHelpers.ts';
import { listening, within } from './nodeHelpers.ts';
import { createServer } from 'node:net';

const MEBIBYTE = 1024 * 1024;

/** All that a peer gets until the end, as text. */
const textOf = async (peer: Socket): Promise<string> => {
  let text = '';
  peer.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')));
  await within('the end', once(peer, 'end'));
  return text;
};

/** Also with an error. */
const closed = (peer: Socket): Promise<void> => new Promise((done) => void peer.once('close', () => done()));

const hashOf = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');

/** Bytes that differ everywhere, so that a piece lost, doubled or out of place shows. */
const numbered = (length: number): Buffer => {
  const bytes = Buffer.alloc(Math.ceil(length / 4) * 4);
  for (let at = 0; at < bytes.length; at += 4) bytes.writeUInt32LE(at, at);
  return bytes.subarray(0, length);
};

/** Writes so much that the kernel doesn't take all of it. */
const fill = (stream: SocketStream): Buffer => {
  const parts: Buffer[] = [];
  for (let full = false; !full;) {
    const part = numbered(MEBIBYTE);
    parts.push(part);
    full = !stream.write(part);
  }
  return Buffer.concat(parts);
};

describe('both ways', () => {
  test('bytes go out and come in, and the addresses are those of the socket', async () => {
    const { stream, peer, told } = await streamPair(reactorForTest());
    peer.write('question');
    await told.until('the question', () => told.text === 'question');
    expect(stream.write(Buffer.from('answer'))).toBe(true);
    const [answer] = (await once(peer, 'data')) as [Buffer];
    expect(answer.toString()).toBe('answer');
    expect(stream.remote).toEqual({ address: HOST, port: peer.localPort });
    expect(stream.local).toEqual({ address: HOST, port: peer.remotePort });
    expect(stream.tls).toBeNull();
  });

  test('what the kernel does not take is kept, copied, and sent when the peer reads; then the writer is told once', async () => {
    const { stream, peer, told } = await streamPair(reactorForTest());
    const sent = fill(stream);
    const last = Buffer.from('and this');
    const before = stream.pending;
    expect([before > 0, stream.write(last), stream.pending]).toEqual([true, false, before + last.length]);
    last.fill(0);
    const hash = createHash('sha256');
    let count = 0;
    peer.on('data', (chunk: Buffer) => {
      hash.update(chunk);
      count += chunk.length;
    });
    await told.told('drain');
    expect(stream.pending).toBe(0);
    stream.end();
    await once(peer, 'end');
    expect(count).toBe(sent.length + 8);
    expect(hash.digest('hex')).toBe(hashOf(Buffer.concat([sent, Buffer.from('and this')])));
    expect(told.events).toEqual(['drain']);
  });

  test('while it is paused nothing is told, not even the end; then all of it, in order', async () => {
    const reactor = reactorForTest();
    const { stream, peer, told } = await streamPair(reactor);
    stream.pause();
    peer.end(numbered(300_000));
    const { stream: other, peer: otherPeer, told: otherTold } = await streamPair(reactor);
    otherPeer.write('x');
    await otherTold.told('data');
    expect([told.events, other.destroyed]).toEqual([[], false]);
    const parts: Buffer[] = [];
    told.onBytes = (bytes) => parts.push(Buffer.from(bytes));
    stream.resume();
    expect(told.events).toEqual([]);
    await told.told('end');
    expect(hashOf(Buffer.concat(parts))).toBe(hashOf(numbered(300_000)));
    expect(told.events).toEqual(['data', 'end']);
  });

  test('pausing within the call holds for the very next piece', async () => {
    const { stream, peer, told } = await streamPair(reactorForTest());
    stream.pause();
    peer.write(numbered(500_000));
    await within('it has left', new Promise<void>((done) => void peer.end(done)));
    let pieces = 0;
    let total = 0;
    told.onBytes = (bytes) => {
      pieces++;
      total += bytes.length;
      stream.pause();
    };
    // As much as is read at once, or less.
    for (let expected = 1; expected <= 4; expected++) {
      stream.resume();
      await told.until('the next piece', () => pieces >= expected);
      expect(pieces).toBe(expected);
    }
    told.onBytes = (bytes) => void (total += bytes.length);
    stream.resume();
    await told.told('end');
    expect(total).toBe(500_000);
  });

  test('a peer that never stops sending keeps nobody else from being heard', async () => {
    const reactor = reactorForTest();
    const { peer, told } = await streamPair(reactor);
    told.onBytes = () => {};
    const over = new AbortController();
    const block = Buffer.alloc(4 * MEBIBYTE);
    const more = () => {
      if (!over.signal.aborted) peer.write(block, more);
    };
    more();
    more();
    await told.told('data');
    const { peer: second, told: secondTold } = await streamPair(reactor);
    for (let count = 0; count < 20; count++) {
      second.write('x');
      await secondTold.until('a word in between', () => secondTold.text.length > count);
    }
    over.abort();
    expect(secondTold.events).toEqual(['data']);
  });
});

describe('the end', () => {
  test('half-close: the peer has ended, and still gets what is written afterwards', async () => {
    const { stream, peer, told } = await streamPair(reactorForTest());
    peer.end('question');
    await told.told('end');
    expect([stream.ended, stream.finished, stream.destroyed]).toEqual([true, false, false]);
    stream.write(Buffer.from('answer'));
    const text = textOf(peer);
    stream.end();
    expect(await text).toBe('answer');
    await told.told('closed null');
    expect([told.text, told.events]).toEqual(['question', ['data', 'end', 'closed null']]);
  });

  test('half-close: our half has ended, and what the peer says afterwards is still told', async () => {
    const { stream, peer, told } = await streamPair(reactorForTest());
    stream.end();
    expect(await textOf(peer)).toBe('');
    expect([stream.finished, stream.destroyed]).toEqual([true, false]);
    peer.end('late words');
    await told.told('closed null');
    expect([told.text, told.events]).toEqual(['late words', ['data', 'end', 'closed null']]);
  });

  test('our half ends when all that was written has left; nothing can be written after it', async () => {
    const { stream, peer, told } = await streamPair(reactorForTest());
    const sent = fill(stream);
    stream.end();
    expect(stream.finished).toBe(false);
    expect(stream.write(Buffer.from('too late'))).toBe(true);
    const text = await textOf(peer);
    expect(hashOf(Buffer.from(text, 'latin1'))).toBe(hashOf(sent));
    peer.end();
    await told.told('closed null');
  });

  test('the end is told once, also when output drains after it', async () => {
    const { stream, peer, told } = await streamPair(reactorForTest());
    peer.end();
    await told.told('end');
    for (let round = 1; round <= 3; round++) {
      fill(stream);
      peer.resume();
      await told.until('the drain', () => told.events.filter((event) => event === 'drain').length === round);
      peer.pause();
    }
    expect(told.events).toEqual(['end', 'drain', 'drain', 'drain']);
  });

  test('a reset by the peer is told as an error, and nothing after it', async () => {
    const { stream, peer, told } = await streamPair(reactorForTest());
    peer.resetAndDestroy();
    await told.told('closed ECONNRESET');
    expect(told.events).toEqual(['closed ECONNRESET']);
    expect([stream.destroyed, stream.write(Buffer.from('x')), stream.pending]).toEqual([true, true, 0]);
    stream.end();
    stream.resume();
    stream.destroy();
  });

  test('a peer that has ended and then breaks the connection is told of without anything being written', async () => {
    const { peer, told } = await streamPair(reactorForTest());
    peer.end();
    await told.told('end');
    peer.resetAndDestroy();
    // Linux says EPIPE to one that knows of the end already.
    await told.told('closed EPIPE');
    expect(told.events).toEqual(['end', 'closed EPIPE']);
  });

  test('what the peer had sent before its reset can be read although a write has failed', async () => {
    const { stream, peer, told } = await streamPair(reactorForTest());
    stream.pause();
    await new Promise((done) => peer.write('last words', done));
    peer.resetAndDestroy();
    await closed(peer);
    expect(stream.write(Buffer.from('x'))).toBe(true);
    stream.resume();
    expect(told.events).toEqual([]);
    await told.until('it is closed', () => stream.destroyed);
    expect([told.text, told.events]).toEqual([
      'last words',
      ['data', expect.stringMatching(/^closed E(PIPE|CONNRESET)$/)],
    ]);
  });

  test('a user who wants to know of it is told while it is paused, and can read the rest later', async () => {
    const reactor = reactorForTest();
    const { stream, peer, told } = await streamPair(reactor, new ToldAll(reactor));
    stream.pause();
    await new Promise((done) => peer.write('last words', done));
    peer.resetAndDestroy();
    await told.told('hangUp');
    stream.write(Buffer.from('x'));
    await told.until('told again', () => told.events.length === 2);
    expect(told.events).toEqual(['hangUp', 'hangUp']);
    stream.resume();
    await told.until('it is closed', () => stream.destroyed);
    expect([told.text, told.events.slice(2)]).toEqual(['last words', ['data', expect.stringMatching(/^closed E/)]]);
  });

  test('a user who does not is told of the end at once when a write fails while it is paused', async () => {
    const { stream, peer, told } = await streamPair(reactorForTest());
    stream.pause();
    peer.resetAndDestroy();
    await closed(peer);
    stream.write(Buffer.from('x'));
    await told.until('it is closed', () => stream.destroyed);
    expect(told.events).toEqual([expect.stringMatching(/^closed E(PIPE|CONNRESET)$/)]);
  });

  test('unsent output does not keep a broken connection: it is dropped', async () => {
    const { stream, peer, told } = await streamPair(reactorForTest());
    fill(stream);
    stream.end();
    peer.resetAndDestroy();
    await told.until('it is closed', () => stream.destroyed);
    expect([told.events, stream.pending]).toEqual([[expect.stringMatching(/^closed E(PIPE|CONNRESET)$/)], 0]);
  });

  test('destroying it within the call is the last that is heard of it, and its descriptor is closed', async () => {
    const reactor = reactorForTest();
    const before = readdirSync('/proc/self/fd').length;
    const { stream, peer, told } = await streamPair(reactor);
    told.onBytes = () => stream.destroy();
    peer.end(numbered(MEBIBYTE));
    await told.told('data');
    await within('the peer sees it', closed(peer));
    expect([told.events, stream.destroyed, stream.user]).toEqual([['data'], true, null]);
    expect(readdirSync('/proc/self/fd')).toHaveLength(before);
  });

  test('a stream that is destroyed while it has a turn to come hears nothing more', async () => {
    const reactor = reactorForTest();
    const { stream, peer, told } = await streamPair(reactor);
    stream.pause();
    await new Promise((done) => peer.write('x', done));
    const other = await streamPair(reactor);
    other.peer.write('y');
    await other.told.told('data');
    stream.resume();
    stream.destroy();
    other.peer.write('z');
    await other.told.until('another round', () => other.told.text === 'yz');
    expect(told.events).toEqual([]);
  });

  test('a reset reaches the peer as one', async () => {
    const { stream, peer, told } = await streamPair(reactorForTest());
    const errors: string[] = [];
    peer.on('error', (error: NodeJS.ErrnoException) => errors.push(error.code!));
    stream.write(Buffer.from('part'));
    await once(peer, 'data');
    stream.reset();
    await within('the peer sees it', closed(peer));
    expect([errors, told.events]).toEqual([['ECONNRESET'], []]);
  });
});

describe('the begin', () => {
  /** Resolves with what the opener is told. */
  const opens = (reactor: Reactor, stream: SocketStream): Promise<WireProblem | null> => {
    const waiting = new Waiting(reactor);
    let told: { problem: WireProblem | null } | null = null;
    const isOpen = stream.open({
      onOpened: (problem) => {
        told = { problem };
        waiting.changed();
      },
    });
    if (isOpen) return Promise.resolve(null);
    return waiting.until('the opener is told', () => told !== null).then(() => told!.problem);
  };

  const connecting = (reactor: Reactor, port: number, preamble: Buffer | null = null): SocketStream => {
    const started = startConnecting(socketAddressOf({ host: HOST, port }));
    if ('code' in started) throw new Error(started.code);
    const remote = { address: HOST, port };
    return new SocketStream(reactor, started.fd, new PlainWire(started.fd), remote, {
      connecting: !started.connected,
      preamble,
    });
  };

  test('a connection is told when it is made, and its preamble goes first', async () => {
    const reactor = reactorForTest();
    const server = createServer();
    const port = await listening(server);
    const arrived = once(server, 'connection') as Promise<[Socket]>;
    const stream = connecting(reactor, port, Buffer.from('PROXY UNKNOWN\r\n'));
    expect(await opens(reactor, stream)).toBeNull();
    const told = new Told(reactor);
    stream.user = told;
    stream.write(Buffer.from('hello'));
    stream.end();
    const [peer] = await arrived;
    expect(await textOf(peer)).toBe('PROXY UNKNOWN\r\nhello');
  });

  test('a connection that is refused is told with its reason, and leaves no descriptor', async () => {
    const reactor = reactorForTest();
    const port = await closedPort();
    const before = readdirSync('/proc/self/fd').length;
    const stream = connecting(reactor, port);
    const problem = await opens(reactor, stream);
    expect([problem?.code, stream.destroyed]).toEqual(['ECONNREFUSED', true]);
    expect(readdirSync('/proc/self/fd')).toHaveLength(before);
  });

  test('a connection that another watcher had first is read from where that one left off', async () => {
    const reactor = reactorForTest();
    const { fd, peer } = await socketPair();
    const waiting = new Waiting(reactor);
    let events = 0;
    reactor.watch(fd, {
      onEvents: () => {
        events++;
        waiting.changed();
      },
    });
    await new Promise<void>((done) => void peer.end('all of it', done));
    await waiting.until('the events', () => events > 0);
    const stream = new SocketStream(
      reactor,
      fd,
      new PlainWire(fd),
      { address: HOST, port: 1 },
      { adopted: { atEnd: false } },
    );
    const told = new Told(reactor);
    stream.user = told;
    expect(told.events).toEqual([]);
    await told.until('the words', () => told.text === 'all of it');
    stream.end();
    await told.told('closed null');
  });
});

test('any transfer both ways, in any pieces and with any pauses, arrives whole', async () => {
  const reactor = reactorForTest();
  const plan = fc.record({
    out: fc.array(fc.oneof(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 700_000 })), { maxLength: 12 }),
    into: fc.array(fc.oneof(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 700_000 })), { maxLength: 12 }),
    pauseEvery: fc.integer({ min: 1, max: 6 }),
    peerPauseEvery: fc.integer({ min: 1, max: 6 }),
  });
  await fc.assert(
    fc.asyncProperty(plan, async ({ out, into, pauseEvery, peerPauseEvery }) => {
      const { stream, peer, told } = await streamPair(reactor);
      const received = createHash('sha256');
      let pieces = 0;
      const timer = reactor.timers.make(() => stream.resume());
      told.onBytes = (bytes) => {
        received.update(bytes);
        if (++pieces % pauseEvery !== 0) return;
        stream.pause();
        timer.set(pieces % 3);
      };
      const peerReceived = createHash('sha256');
      let peerPieces = 0;
      peer.on('data', (chunk: Buffer) => {
        peerReceived.update(chunk);
        if (++peerPieces % peerPauseEvery !== 0) return;
        peer.pause();
        setImmediate(() => peer.resume());
      });
      const peerEnd = within('the end at the peer', once(peer, 'end'));
      const sent = createHash('sha256');
      const peerSent = createHash('sha256');
      for (const length of into) {
        const bytes = numbered(length);
        peerSent.update(bytes);
        peer.write(bytes);
      }
      peer.end();
      for (const length of out) {
        const bytes = numbered(length);
        sent.update(bytes);
        const drains = told.events.filter((event) => event === 'drain').length;
        if (!stream.write(bytes))
          await told.until('drain', () => told.events.filter((event) => event === 'drain').length > drains);
      }
      stream.end();
      await peerEnd;
      await told.told('closed null');
      timer.drop();
      expect(peerReceived.digest('hex')).toBe(sent.digest('hex'));
      expect(received.digest('hex')).toBe(peerSent.digest('hex'));
      expect(told.events.filter((event) => event === 'end')).toHaveLength(1);
    }),
    { numRuns: 25 },
  );
});
