/** Bytes both ways between two streams: back-pressure, half-close, resets, silence. */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { expect, onTestFinished, test } from 'vitest';
import { Timers } from '../src/net/timers.ts';
import { Relay } from '../src/proxy/relay.ts';
import type { StreamUser } from '../src/proxy/stream.ts';
import { within } from './nodeHelpers.ts';
import { reactorForTest, streamPair, Waiting } from './reactorHelpers.ts';

const MEBIBYTE = 1024 * 1024;
const FOREVER_MS = 60_000;

/** A relay between two streams; `client` and `server` are the sockets at their other ends. */
const startRelay = async (idleMs = FOREVER_MS, timers?: Timers) => {
  const reactor = reactorForTest();
  const [client, server] = [await streamPair(reactor), await streamPair(reactor)];
  const waiting = new Waiting(reactor);
  const ends: (string | null)[] = [];
  const counts = { in: 0, out: 0 };
  const owner = {
    relayed: (direction: 'in' | 'out', count: number) => void (counts[direction] += count),
    relayEnded: (by: 'client' | 'server' | 'timeout' | null) => {
      ends.push(by);
      waiting.changed();
    },
  };
  client.stream.pause();
  const relay = new Relay(timers ?? reactor.timers, client.stream, server.stream, idleMs, owner);
  onTestFinished(() => relay.destroy());
  const ended = () => waiting.until('its end', () => ends.length > 0);
  return {
    relay,
    client: client.peer,
    server: server.peer,
    streams: [client.stream, server.stream],
    ends,
    counts,
    ended,
  };
};

const read = (socket: Socket): { text: string } => {
  const result = { text: '' };
  socket.on('data', (chunk: Buffer) => (result.text += chunk.toString('latin1')));
  return result;
};

const closed = (socket: Socket): Promise<void> =>
  within('it is closed', new Promise<void>((done) => void socket.once('close', () => done())));

const errorsOf = (socket: Socket): string[] => {
  const errors: string[] = [];
  socket.on('error', (error: NodeJS.ErrnoException) => errors.push(error.code!));
  return errors;
};

test('bytes go both ways, are counted, and the end of both is an orderly one, told once', async () => {
  const { client, server, ends, counts, ended, streams } = await startRelay();
  client.end('question');
  const [question] = (await once(server, 'data')) as [Buffer];
  await once(server, 'end');
  expect([question.toString(), ends]).toEqual(['question', []]);
  const answer = read(client);
  server.end('an answer');
  await once(client, 'end');
  await ended();
  expect([answer.text, counts, ends]).toEqual(['an answer', { in: 8, out: 9 }, [null]]);
  expect(streams.map(({ destroyed }) => destroyed)).toEqual([true, true]);
});

test('half-close the other way: a server that has ended still receives what the client says', async () => {
  const { client, server, ends, ended } = await startRelay();
  server.end('bye');
  const bye = read(client);
  await once(client, 'end');
  const late = read(server);
  client.end('late words');
  await once(server, 'end');
  await ended();
  expect([bye.text, late.text, ends]).toEqual(['bye', 'late words', [null]]);
});

test('a receiver that does not read stops the sender; then all of it arrives', async () => {
  const { client, server, streams } = await startRelay();
  const block = Buffer.alloc(32 * MEBIBYTE, 'understudy');
  server.end(block);
  const hash = createHash('sha256');
  let most = 0;
  client.on('data', (chunk: Buffer) => {
    hash.update(chunk);
    most = Math.max(most, streams[0]!.pending);
  });
  await once(client, 'end');
  expect(hash.digest('hex')).toBe(createHash('sha256').update(block).digest('hex'));
  // One read, which the kernel did not take.
  expect(most).toBeLessThanOrEqual(128 * 1024);
});

test.each(['client', 'server'] as const)('a reset by the %s reaches the other side as a reset', async (who) => {
  const sides = await startRelay();
  const [breaker, other] = who === 'client' ? [sides.client, sides.server] : [sides.server, sides.client];
  const errors = errorsOf(other);
  other.write('x');
  await once(breaker, 'data');
  breaker.resetAndDestroy();
  other.resume();
  await closed(other);
  await sides.ended();
  expect([errors, sides.ends]).toEqual([['ECONNRESET'], [who]]);
});

test('silence on both sides ends it, traffic in one direction keeps both', async () => {
  const timers = new Timers(0);
  const { client, server, ends } = await startRelay(1000, timers);
  let nowMs = 0;
  for (let count = 0; count < 6; count++) {
    timers.advance((nowMs += 900));
    const told = once(client, 'data');
    server.write('tick');
    await told;
  }
  timers.advance((nowMs += 990));
  expect(ends).toEqual([]);
  const both = Promise.all([client, server].map((socket) => once(socket.resume(), 'end')));
  timers.advance((nowMs += 20));
  timers.advance((nowMs += 20));
  expect(ends).toEqual(['timeout']);
  await within('both hear of it', both);
});

/** A peer that takes what it is told to, and nothing else. */
const fakeStream = () => {
  const stream = {
    user: null as StreamUser | null,
    remote: { address: '', port: 0 },
    local: { address: '', port: 0 },
    tls: null,
    pending: 0,
    unread: 0,
    destroyed: false,
    ended: false,
    finished: false,
    write: ({ length }: Buffer) => {
      stream.pending += length;
      stream.unread += length;
      return false;
    },
    end: () => {},
    pause: () => {},
    resume: () => {},
    destroy: () => {
      stream.destroyed = true;
      stream.pending = 0;
      stream.unread = 0;
    },
    reset: () => stream.destroy(),
  };
  return stream;
};

const startFakeRelay = (idleMs: number) => {
  const [client, server, timers] = [fakeStream(), fakeStream(), new Timers(0)];
  const ends: (string | null)[] = [];
  const relay = new Relay(timers, client, server, idleMs, { relayed: () => {}, relayEnded: (by) => ends.push(by) });
  let nowMs = 0;
  const pass = (ms: number) => {
    timers.advance((nowMs += ms));
    return ends.length === 0 ? 'goes on' : ends[0];
  };
  return { relay, client, server, pass };
};

test('a receiver that takes some of what waits for it within each time is slow, not silent', () => {
  const { client, server, pass } = startFakeRelay(1000);
  pass(500);
  server.user!.onData(Buffer.alloc(1000));
  expect(pass(990)).toBe('goes on');
  for (let count = 0; count < 3; count++) {
    // What it acknowledges makes room in the kernel long before we are told.
    client.unread -= 10;
    expect(pass(1010)).toBe('goes on');
  }
  expect(pass(1010)).toBe('timeout');
});

test('what waits for one side after the other has gone may be read slowly, and then is not waited for', () => {
  const { client, server, pass } = startFakeRelay(FOREVER_MS);
  server.user!.onData(Buffer.alloc(1000));
  server.user!.onClosed(null);
  client.unread -= 10;
  expect(pass(FOREVER_MS + 10)).toBe('goes on');
  client.unread = 0;
  client.pending = 0;
  expect(pass(FOREVER_MS + 10)).toBe('goes on');
  expect(pass(9000)).toBe('goes on');
  expect(pass(1010)).toBe('timeout');
});

test('one side that has nothing to read and does not close is left ten seconds after the other has gone', () => {
  const { server, pass } = startFakeRelay(FOREVER_MS);
  server.user!.onClosed(null);
  expect(pass(9990)).toBe('goes on');
  expect(pass(20)).toBe('timeout');
});

test('destroying it closes both, and is told', async () => {
  const { relay, client, server, ends } = await startRelay();
  const both = Promise.all([client, server].map((socket) => once(socket.resume(), 'end')));
  relay.destroy();
  relay.destroy();
  expect(ends).toEqual([null]);
  await within('both hear of it', both);
});
