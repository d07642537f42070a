/** WebSockets through the real data plane, as Autobahn's cases have them: every size of frame, both ways, to the end. */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import { describe, expect, test } from 'vitest';
import {
  bodyOf,
  eventually,
  get,
  RawClient,
  rawServer,
  scriptedServer,
  startProxy,
  statusOf,
  talk,
} from './proxyHelpers.ts';
import type { Proxy, ProxyOptions } from './proxyHelpers.ts';
import {
  echoFrames,
  encodeFrame,
  FrameReader,
  newWebSocketKey,
  OPCODE,
  switchingProtocols,
  webSocketAcceptOf,
  webSocketFields,
} from './webSocketFrames.ts';
import type { Frame } from './webSocketFrames.ts';

const MIB = 1024 * 1024;
/** Autobahn's 1.1 and 1.2, and the borders of the three forms of a length; two that no buffer of ours holds. */
const SIZES = [0, 1, 125, 126, 127, 128, 65_535, 65_536, MIB, 16 * MIB];

const digestOf = (bytes: Buffer | string): string => createHash('sha256').update(bytes).digest('hex');

/** Reads a request head, then hands the socket and what came behind the head to `serve`. */
const webSocketServer = (serve: (socket: Socket, key: string, rest: Buffer, head: string) => void) =>
  rawServer((socket) => {
    let input: Buffer = Buffer.alloc(0);
    const onData = (chunk: Buffer) => {
      input = Buffer.concat([input, chunk]);
      const end = input.indexOf('\r\n\r\n');
      if (end === -1) return;
      socket.off('data', onData);
      const head = input.toString('latin1', 0, end + 4);
      const key = /sec-websocket-key: *([^\r]+)/i.exec(head)?.[1] ?? '';
      serve(socket, key, input.subarray(end + 4), head);
    };
    socket.on('data', onData);
  });

const echoServer = () =>
  webSocketServer((socket, key, rest) => {
    socket.write(switchingProtocols(key));
    const reader = echoFrames(socket);
    socket.on('data', (chunk: Buffer) => reader.push(chunk));
    socket.on('end', () => socket.end());
    if (rest.length > 0) reader.push(rest);
  });

const startEcho = async (options: Partial<ProxyOptions> = {}): Promise<Proxy> =>
  startProxy({ servers: { echo: await echoServer() }, ...options });

/** A client that sees every frame. */
class FrameClient {
  readonly raw: RawClient;
  readonly key = newWebSocketKey();
  readonly frames: Frame[] = [];
  head = '';

  constructor(port: number, early: Buffer = Buffer.alloc(0)) {
    this.raw = new RawClient(port);
    this.raw.socket.removeAllListeners('data');
    const reader = new FrameReader((frame) => this.frames.push(frame));
    this.raw.socket.on('data', (chunk: Buffer) => {
      if (this.head !== '') {
        reader.push(chunk);
        return;
      }
      this.raw.text += chunk.toString('latin1');
      const end = this.raw.text.indexOf('\r\n\r\n');
      if (end === -1) return;
      this.head = this.raw.text.slice(0, end + 4);
      const rest = Buffer.from(this.raw.text.slice(end + 4), 'latin1');
      if (rest.length > 0) reader.push(rest);
    });
    this.raw.send(Buffer.concat([Buffer.from(get('/echo', webSocketFields(this.key))), early]));
  }

  async opened(): Promise<this> {
    await eventually('the handshake', () => this.head !== '');
    assert.equal(statusOf(this.head), 101);
    assert(this.head.includes(`Sec-WebSocket-Accept: ${webSocketAcceptOf(this.key)}\r\n`), this.head);
    return this;
  }

  send(opcode: number, payload: Buffer | string = '', fin = true): this {
    this.raw.send(encodeFrame({ opcode, payload: Buffer.from(payload), fin, masked: true }));
    return this;
  }

  async received(count: number): Promise<Frame[]> {
    await eventually(`${count} frames`, () => this.frames.length >= count);
    return this.frames;
  }
}

const openFrames = async (port: number): Promise<FrameClient> => new FrameClient(port).opened();

/** Node's own client, which is not of our making. */
const openWebSocket = async (port: number): Promise<WebSocket> => {
  const socket = new WebSocket(`ws://127.0.0.1:${port}/echo`);
  socket.binaryType = 'arraybuffer';
  await new Promise((done, refuse) => {
    socket.addEventListener('open', done, { once: true });
    socket.addEventListener('error', () => refuse(new Error('no WebSocket')), { once: true });
  });
  return socket;
};

const nextMessage = (socket: WebSocket): Promise<unknown> =>
  new Promise((done, refuse) => {
    socket.addEventListener('message', ({ data }) => done(data), { once: true });
    socket.addEventListener('close', ({ code }) => refuse(new Error(`closed with ${code}`)), { once: true });
  });

describe('echo', () => {
  test.each(SIZES)('RFC 6455 5.2: a binary and a text message of %d bytes come back as they were', async (size) => {
    const proxy = await startEcho();
    const socket = await openWebSocket(proxy.port);
    const binary = randomBytes(size);
    socket.send(binary);
    expect(digestOf(Buffer.from((await nextMessage(socket)) as ArrayBuffer))).toBe(digestOf(binary));
    const text = '*'.repeat(size);
    socket.send(text);
    expect(digestOf((await nextMessage(socket)) as string)).toBe(digestOf(text));
    const closed = new Promise<CloseEvent>((done) => socket.addEventListener('close', done, { once: true }));
    socket.close(1000, 'done');
    expect(await closed).toMatchObject({ code: 1000, reason: 'done', wasClean: true });
  });

  test('RFC 6455 5.4: fragments stay fragments, and a ping between them is answered between them', async () => {
    const proxy = await startEcho();
    const client = await openFrames(proxy.port);
    const sizes = [1, 125, 0, 65_536];
    sizes.forEach((size, index) => {
      const isFirst = index === 0;
      client.send(isFirst ? OPCODE.text : OPCODE.continuation, String(index).repeat(size), index === sizes.length - 1);
      client.send(OPCODE.ping, `ping ${index}`);
    });
    const frames = await client.received(2 * sizes.length);
    expect(frames.map(({ opcode, fin, payload }) => [opcode, fin, payload.length])).toEqual(
      sizes.flatMap((size, index) => [
        [index === 0 ? OPCODE.text : OPCODE.continuation, index === sizes.length - 1, size],
        [OPCODE.pong, true, 6],
      ]),
    );
    expect(frames.at(-1)!.payload.toString()).toBe('ping 3');
  });

  test('frames that come byte by byte, and many that come in one packet', async () => {
    const proxy = await startEcho();
    const client = await openFrames(proxy.port);
    const frame = encodeFrame({ opcode: OPCODE.binary, payload: randomBytes(126), fin: true, masked: true });
    for (const byte of frame) {
      client.raw.send(Buffer.from([byte]));
      await new Promise((done) => setImmediate(done));
    }
    client.raw.send(Buffer.concat(Array.from({ length: 1_000 }, () => frame)));
    const frames = await client.received(1_001);
    expect(new Set(frames.map(({ payload }) => digestOf(payload))).size).toBe(1);
  });

  test('both directions at once, 64 MiB each, neither waiting for the other', async () => {
    const count = 1_024;
    const message = randomBytes(64 * 1024);
    const toClient = encodeFrame({ opcode: OPCODE.binary, payload: message, fin: true, masked: false });
    let serverGot = 0;
    const wrong: string[] = [];
    const check = ({ payload }: Frame) => {
      if (!payload.equals(message)) wrong.push(digestOf(payload));
    };
    const server = await webSocketServer((socket, key, rest) => {
      socket.write(switchingProtocols(key));
      const reader = new FrameReader((frame) => {
        check(frame);
        serverGot++;
      });
      socket.on('data', (chunk: Buffer) => reader.push(chunk));
      if (rest.length > 0) reader.push(rest);
      for (let sent = 0; sent < count; sent++) socket.write(toClient);
    });
    const proxy = await startProxy({ servers: { s: server } });
    const client = await openFrames(proxy.port);
    const frame = encodeFrame({ opcode: OPCODE.binary, payload: message, fin: true, masked: true });
    for (let sent = 0; sent < count; sent++) client.raw.send(frame);
    await client.received(count);
    await eventually('all at the server', () => serverGot === count);
    client.frames.forEach(check);
    expect(wrong).toEqual([]);
  });

  test('what stands behind the handshake in the same packet reaches the other side, in order', async () => {
    const proxy = await startEcho();
    const early = Buffer.concat(
      ['first', 'second'].map((text) =>
        encodeFrame({ opcode: OPCODE.text, payload: Buffer.from(text), fin: true, masked: true }),
      ),
    );
    const client = await new FrameClient(proxy.port, early).opened();
    client.send(OPCODE.text, 'third');
    const frames = await client.received(3);
    expect(frames.map(({ payload }) => payload.toString())).toEqual(['first', 'second', 'third']);
  });

  test('more than the kernel takes at once may follow the handshake right away, on both sides', async () => {
    const big = randomBytes(4 * MIB);
    const server = await webSocketServer((socket, key, rest) => {
      const greeting = encodeFrame({ opcode: OPCODE.binary, payload: big, fin: true, masked: false });
      socket.write(Buffer.concat([Buffer.from(switchingProtocols(key)), greeting]));
      const reader = echoFrames(socket);
      socket.on('data', (chunk: Buffer) => reader.push(chunk));
      if (rest.length > 0) reader.push(rest);
    });
    const proxy = await startProxy({ servers: { s: server } });
    const early = encodeFrame({ opcode: OPCODE.binary, payload: big, fin: true, masked: true });
    const client = await new FrameClient(proxy.port, early).opened();
    const frames = await client.received(2);
    expect(frames.map(({ payload }) => digestOf(payload))).toEqual([digestOf(big), digestOf(big)]);
  });
});

describe('the end', () => {
  test('RFC 6455 7.1.1: the close handshake, begun by the client, ends both connections in order', async () => {
    const proxy = await startEcho();
    const client = await openFrames(proxy.port);
    client.send(OPCODE.text, 'last').send(OPCODE.close, Buffer.from([0x03, 0xe8]));
    const frames = await client.received(2);
    expect(frames[1]).toMatchObject({ opcode: OPCODE.close, payload: Buffer.from([0x03, 0xe8]) });
    await eventually('the end', () => client.raw.ended);
    expect(client.raw.error).toBe(null);
    client.raw.socket.end();
    await eventually('the free place', () => proxy.figures('front').active === 0);
    expect(proxy.figures('web/echo').active).toBe(0);
  });

  test('the close handshake, begun by the server, reaches the client with its last message', async () => {
    const server = await webSocketServer((socket, key) => {
      const frames = [
        { opcode: OPCODE.text, payload: Buffer.from('bye') },
        { opcode: OPCODE.close, payload: Buffer.from([0x03, 0xe9]) },
      ].map((frame) => encodeFrame({ ...frame, fin: true, masked: false }));
      socket.end(Buffer.concat([Buffer.from(switchingProtocols(key)), ...frames]));
    });
    const proxy = await startProxy({ servers: { s: server } });
    const client = await new FrameClient(proxy.port).opened();
    const frames = await client.received(2);
    expect(frames.map(({ opcode }) => opcode)).toEqual([OPCODE.text, OPCODE.close]);
    await eventually('the end', () => client.raw.ended);
    expect(client.raw.error).toBe(null);
    client.raw.socket.end();
    await eventually('the free place', () => proxy.figures('front').active === 0);
  });

  test('a server that dies resets its client: a cut-off message is not taken for a whole one', async () => {
    const server = await echoServer();
    const proxy = await startProxy({ servers: { s: server } });
    const client = await openFrames(proxy.port);
    client.send(OPCODE.text, 'there');
    await client.received(1);
    for (const socket of server.sockets) socket.resetAndDestroy();
    await eventually('the reset', () => client.raw.closed);
    expect(client.raw.error?.code).toBe('ECONNRESET');
  });

  test('silence on both sides for longer than timeouts.tunnel ends the session; traffic one way keeps it', async () => {
    const idleMs = 400;
    let toServer: Socket | null = null;
    const server = await webSocketServer((socket, key) => {
      socket.write(switchingProtocols(key));
      socket.resume();
      toServer = socket;
    });
    const proxy = await startProxy({
      servers: { s: server },
      timeouts: { tunnel: idleMs, server: 100 },
      clientTimeouts: { client: 100, keepAlive: 100, httpRequest: 100 },
    });
    const busy = await openFrames(proxy.port);
    const socket = toServer!;
    const quiet = await openFrames(proxy.port);
    const frame = encodeFrame({ opcode: OPCODE.text, payload: Buffer.from('news'), fin: true, masked: false });
    const news = setInterval(() => socket.write(frame), idleMs / 10);
    try {
      await eventually('the end of the quiet one', () => quiet.raw.closed || quiet.raw.ended);
      const seen = busy.frames.length;
      await busy.received(seen + 3);
      expect(busy.raw.closed || busy.raw.ended).toBe(false);
    } finally {
      clearInterval(news);
    }
    await eventually('the end of the other one', () => busy.raw.closed || busy.raw.ended);
    await eventually('the free places', () => proxy.figures('front').active === 0);
    expect(proxy.figures('web/s').active).toBe(0);
  });

  test('a client that does not read stops its server: what waits in between is bounded, and nothing is lost', async () => {
    const total = 64;
    const payload = randomBytes(MIB);
    let sent = 0;
    const server = await webSocketServer((socket, key) => {
      socket.write(switchingProtocols(key));
      const frame = encodeFrame({ opcode: OPCODE.binary, payload, fin: true, masked: false });
      const more = () => {
        while (sent < total) {
          sent++;
          if (!socket.write(frame)) {
            socket.once('drain', more);
            return;
          }
        }
      };
      more();
    });
    const proxy = await startProxy({ servers: { s: server } });
    const client = await openFrames(proxy.port);
    client.raw.socket.pause();
    let stoppedAt = -1;
    await eventually('a server that waits', () => {
      const isSame = stoppedAt === proxy.figures('front').bytesOut;
      stoppedAt = proxy.figures('front').bytesOut;
      return isSame && sent > 1;
    });
    expect(sent).toBeLessThan(total);
    client.raw.socket.resume();
    const frames = await client.received(total);
    expect(frames.every((frame) => frame.payload.equals(payload))).toBe(true);
  });
});

describe('the handshake', () => {
  const refusal = (status: number, more = '') => `HTTP/1.1 ${status} No\r\nContent-Length: 4\r\n${more}\r\nsays`;

  test.each([400, 401, 403, 426, 503])('an answer of %d is passed on, and the connection goes on', async (status) => {
    const server = await scriptedServer((head, socket) =>
      socket.write(
        head.includes('websocket')
          ? refusal(status, 'X-Why: so\r\n')
          : 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok',
      ),
    );
    const proxy = await startProxy({ servers: { s: server } });
    const client = new RawClient(proxy.port).send(get('/echo', webSocketFields(newWebSocketKey())));
    const text = await client.until('says');
    expect(statusOf(text)).toBe(status);
    expect(text).toContain('X-Why: so\r\n');
    expect(text).not.toMatch(/^connection: close/im);
    client.send(get('/after'));
    expect(await client.until('ok')).toContain('HTTP/1.1 200 OK');
  });

  test('RFC 9110 7.8: a request for h2c, alone or beside websocket, is passed on without any Upgrade', async () => {
    const seen: string[] = [];
    const server = await scriptedServer((head, socket) => {
      seen.push(head);
      socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok');
    });
    const proxy = await startProxy({ servers: { s: server } });
    const settings = 'HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n';
    for (const upgrade of ['Upgrade: h2c', 'Upgrade: h2c, websocket', 'Upgrade: websocket, h2c', 'Upgrade: TLS/1.0']) {
      const fields = `Connection: Upgrade, HTTP2-Settings\r\n${upgrade}\r\n${settings}`;
      const client = new RawClient(proxy.port).send(get('/', fields));
      expect(statusOf(await client.until('ok')), upgrade).toBe(200);
    }
    expect(seen).toHaveLength(4);
    for (const head of seen) expect(head).not.toMatch(/^(upgrade|http2-settings|connection: .*upgrade)/im);
  });

  test('a server that switches to what nobody asked for is answered for with 502', async () => {
    const server = await scriptedServer((_head, socket) =>
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n'),
    );
    const proxy = await startProxy({ servers: { s: server } });
    const fields = 'Connection: Upgrade\r\nUpgrade: h2c\r\n';
    expect(statusOf(await talk(proxy.port, get('/', fields)))).toBe(502);
  });

  test('the subprotocol and extensions are the business of the two ends: they pass both ways as they are', async () => {
    let asked = '';
    const more = 'Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate\r\n';
    const server = await webSocketServer((socket, key, _rest, head) => {
      asked = head;
      socket.write(switchingProtocols(key, more));
    });
    const proxy = await startProxy({ servers: { s: server } });
    const offer = `Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Extensions: permessage-deflate; x=1\r\n`;
    const client = new RawClient(proxy.port).send(get('/', `${webSocketFields(newWebSocketKey())}${offer}`));
    expect(await client.until('\r\n\r\n')).toContain(more);
    expect(asked).toContain(offer);
    expect(bodyOf(client.text)).toBe('');
  });

  test('a first server that can not be reached is passed over: the handshake is tried on another', async () => {
    const dead = await rawServer((socket) => socket.resetAndDestroy());
    dead.server.close();
    const proxy = await startProxy({ servers: { dead, echo: await echoServer() }, workers: 1 });
    for (let session = 0; session < 4; session++) {
      const client = await openFrames(proxy.port);
      client.send(OPCODE.text, `session ${session}`);
      expect((await client.received(1))[0]!.payload.toString()).toBe(`session ${session}`);
    }
  });
});
