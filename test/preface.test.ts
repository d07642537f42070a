/** What comes before anything else: looked at, not taken, but for a PROXY header. */
import { connect as connectTls } from 'node:tls';
import type { Socket } from 'node:net';
import { describe, expect, onTestFinished, test } from 'vitest';
import { libc } from '../src/net/libc.ts';
import type { Reactor } from '../src/net/reactor.ts';
import { PrefaceWatcher } from '../src/proxy/preface.ts';
import type { Preface, PrefaceNeeds } from '../src/proxy/preface.ts';
import { reactorForTest, socketPair, Waiting } from './reactorHelpers.ts';

const V1 = 'PROXY TCP4 192.0.2.7 192.0.2.8 4321 443\r\n';
const SOURCE = { address: '192.0.2.7', port: 4321 };

/** The first bytes of Node's own TLS client. */
const helloOf = async (servername: string, protocols: string[] = []): Promise<Buffer> => {
  const { peer, fd } = await socketPair();
  const client = connectTls({ socket: peer, servername, ALPNProtocols: protocols });
  client.on('error', () => {});
  const bytes = Buffer.alloc(16_384);
  let count = -1;
  while (count < 0) {
    await new Promise((done) => setImmediate(done));
    count = libc().recv(fd, bytes, bytes.length, 0);
  }
  libc().close(fd);
  client.destroy();
  return bytes.subarray(0, count);
};

const watch = async (reactor: Reactor, needs: Partial<PrefaceNeeds>, begin?: (peer: Socket) => void) => {
  const { fd, peer } = await socketPair();
  begin?.(peer);
  const waiting = new Waiting(reactor);
  const results: (Preface | string)[] = [];
  const reader = {
    onPreface: (_: number, preface: Preface) => {
      results.push(preface);
      waiting.changed();
    },
    onPrefaceFailed: (_: number, problem: string) => {
      results.push(problem);
      waiting.changed();
    },
  };
  const all = { proxyHeader: false, clientHello: null, timeoutMs: 10_000, ...needs };
  const watcher = new PrefaceWatcher(reactor, fd, all, reader);
  onTestFinished(() => watcher.giveUp());
  /** In pieces, each of them told before the next. */
  const send = async (...pieces: (string | Buffer)[]) => {
    for (const piece of pieces) {
      await new Promise<void>((done) => void peer.write(piece, () => done()));
      let rounds = 0;
      const round = { run: () => (++rounds < 2 ? reactor.defer(round) : waiting.changed()) };
      reactor.defer(round);
      await waiting.until('two rounds', () => rounds === 2);
    }
  };
  const result = async () => {
    await waiting.until('what comes of it', () => results.length > 0);
    return results[0]!;
  };
  const left = () => {
    const bytes = Buffer.alloc(65_536);
    return bytes.toString('latin1', 0, Math.max(0, libc().recv(fd, bytes, bytes.length, 0)));
  };
  return { watcher, peer, send, result, results, left };
};

describe('a PROXY header', () => {
  test('is taken, in one piece or many, and what follows is left', async () => {
    const reactor = reactorForTest();
    for (const pieces of [
      [`${V1}GET /`],
      [V1, 'GET /'],
      ['PRO', 'XY TCP4 192.0.2.7 192', '.0.2.8 4321 443\r', '\nGET /'],
    ]) {
      const { send, result, left } = await watch(reactor, { proxyHeader: true });
      await send(...pieces);
      expect(await result()).toMatchObject({
        source: SOURCE,
        destination: { address: '192.0.2.8', port: 443 },
        hello: null,
      });
      expect(left()).toBe('GET /');
    }
  });

  test.each([
    ['no such header', 'GET / HTTP/1.1\r\n', 'proxyHeader'],
    ['nothing within the time', '', 'timeout'],
    ['half of it within the time', 'PROXY TCP4 192', 'timeout'],
  ])('%s: %j is refused', async (_, words, problem) => {
    const reactor = reactorForTest();
    const { send, result } = await watch(reactor, { proxyHeader: true, timeoutMs: 100 });
    if (words) await send(words);
    expect(await result()).toBe(problem);
  });

  test('a client that ends or breaks off before it is complete is refused at once', async () => {
    const reactor = reactorForTest();
    for (const end of ['end', 'resetAndDestroy'] as const) {
      const { send, result, peer } = await watch(reactor, { proxyHeader: true });
      await send('PROXY TCP4 192');
      peer[end]();
      expect(await result()).toBe('proxyHeader');
    }
    const { result } = await watch(reactor, { proxyHeader: true }, (peer) => peer.end());
    expect(await result()).toBe('closed');
  });
});

describe('a ClientHello', () => {
  test('is read and left in place, in pieces too, with a PROXY header before it', async () => {
    const reactor = reactorForTest();
    const hello = await helloOf('shop.example', ['h2', 'http/1.1']);
    for (const proxyHeader of [false, true]) {
      for (const step of [61, 700, hello.length]) {
        const { send, result, left } = await watch(reactor, { proxyHeader, clientHello: 'wanted' });
        const pieces: Buffer[] = [];
        for (let at = 0; at < hello.length; at += step) pieces.push(hello.subarray(at, at + step));
        await send(...(proxyHeader ? [V1] : []), ...pieces);
        const preface = (await result()) as Preface;
        expect(preface.hello).toMatchObject({ serverName: 'shop.example', alpn: ['h2', 'http/1.1'] });
        expect(preface.source).toEqual(proxyHeader ? SOURCE : null);
        expect(left()).toBe(hello.toString('latin1'));
      }
    }
  });

  test('that is wanted: anything else is refused, and so is nothing', async () => {
    const reactor = reactorForTest();
    const plain = await watch(reactor, { clientHello: 'wanted' });
    await plain.send('GET / HTTP/1.1\r\n');
    expect(await plain.result()).toBe('tls');
    const silent = await watch(reactor, { clientHello: 'wanted', timeoutMs: 50 });
    expect(await silent.result()).toBe('timeout');
    const gone = await watch(reactor, { clientHello: 'wanted', proxyHeader: true }, (peer) => peer.end(V1));
    expect(await gone.result()).toBe('closed');
  });

  test('that is sniffed: anything else is passed on, and so is nothing, in time or at the end', async () => {
    const reactor = reactorForTest();
    const plain = await watch(reactor, { clientHello: 'sniffed' });
    await plain.send('SSH-2.0-x\r\n');
    expect(await plain.result()).toMatchObject({ hello: null, atEnd: false });
    expect(plain.left()).toBe('SSH-2.0-x\r\n');
    const silent = await watch(reactor, { clientHello: 'sniffed', timeoutMs: 50 });
    expect(await silent.result()).toMatchObject({ hello: null, atEnd: false });
    const hello = await helloOf('shop.example');
    for (const words of ['', hello.subarray(0, 50)]) {
      const ended = await watch(reactor, { clientHello: 'sniffed' }, (peer) => peer.end(words));
      expect(await ended.result()).toMatchObject({ hello: null, atEnd: true });
      expect(ended.left()).toBe(words.toString('latin1' as never));
    }
    const behind = await watch(reactor, { clientHello: 'sniffed', proxyHeader: true }, (peer) => peer.end(V1));
    expect(await behind.result()).toMatchObject({ source: SOURCE, hello: null, atEnd: true });
  });

  test('of a client that then breaks the connection off is refused or told as ended', async () => {
    const reactor = reactorForTest();
    const { send, result, peer } = await watch(reactor, { clientHello: 'wanted' });
    await send((await helloOf('shop.example')).subarray(0, 50));
    peer.resetAndDestroy();
    expect(await result()).toBe('closed');
  });
});

test('one that is given up tells nothing more, whatever comes', async () => {
  const reactor = reactorForTest();
  const { watcher, send, results } = await watch(reactor, { proxyHeader: true, timeoutMs: 30 });
  watcher.giveUp();
  await send(V1);
  await new Promise<void>((done) => reactor.timers.make(() => (done(), reactor.wakeNode())).set(60));
  expect(results).toEqual([]);
});
