/** What hostile clients do with a connection, one function a kind. None of them behaves as a client should. */
import type { Socket } from 'node:net';
import { encodeFrame, newWebSocketKey, OPCODE, webSocketFields } from '../webSocketFrames.ts';
import type { Ports } from './world.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;

/** Calls that end with the connection. */
export type Repeat = (everyMs: number, act: () => void) => void;

export type Attack = {
  port: keyof Ports;
  /** Whether it takes what it gets. */
  reads: boolean;
  begin(socket: Socket, repeat: Repeat): void;
};

const HEAD = 'Host: hostile.test\r\nUser-Agent: nobody\r\nAccept: */*\r\nAccept-Language: en\r\nCookie: a=b\r\n\r\n';

/** As fast as the other side takes it, but a piece at a time, so that other attackers of this process have their turn. */
const pour = (socket: Socket, piece: Buffer): void => {
  const more = () => {
    if (!socket.destroyed) socket.write(piece, () => setImmediate(more));
  };
  more();
};

const byteByByte = (socket: Socket, text: string, repeat: Repeat, everyMs: number): void => {
  let at = 0;
  repeat(everyMs, () => socket.write(text[at++ % text.length]!));
};

/** The first record of a handshake, as far as its length goes, with a ClientHello that does not come. */
const HALF_HELLO = Buffer.concat([
  Buffer.from([0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc]),
  Buffer.alloc(40),
]);

const SECONDS = 1_000;

export const ATTACKS = {
  /** Slow-loris: a head that never ends, byte by byte. */
  slowHeads: {
    port: 'http',
    reads: true,
    begin: (socket, repeat) => byteByByte(socket, `GET / HTTP/1.1\r\n${HEAD.slice(0, -2)}`, repeat, 0.2 * SECONDS),
  },
  /** The same, but each of its lines is whole and there are ever more of them. */
  slowFields: {
    port: 'http',
    reads: true,
    begin: (socket, repeat) => {
      socket.write('GET / HTTP/1.1\r\nHost: hostile.test\r\n');
      repeat(0.3 * SECONDS, () => socket.write('X-More: of the same\r\n'));
    },
  },
  headerFloods: {
    port: 'http',
    reads: true,
    begin: (socket) => {
      socket.write('GET / HTTP/1.1\r\nHost: hostile.test\r\n');
      pour(socket, Buffer.from('X-Field: value\r\n'.repeat(1_000)));
    },
  },
  longLines: {
    port: 'http',
    reads: true,
    begin: (socket) => {
      socket.write('GET /');
      pour(socket, Buffer.alloc(64 * KIB, 'x'));
    },
  },
  /** Not even the first byte. */
  silentConnections: { port: 'http', reads: true, begin: () => {} },
  halfClosed: {
    port: 'http',
    reads: true,
    begin: (socket) => socket.end('GET / HTTP/1.1\r\nHost: hostile'),
  },
  unreadResponses: {
    port: 'http',
    reads: false,
    begin: (socket) => socket.write(`GET /bytes/${100 * MIB}/0 HTTP/1.1\r\n${HEAD}`),
  },
  unreadChunks: {
    port: 'tls',
    reads: false,
    begin: (socket) => socket.write(`GET /bytes/${100 * MIB}/0?chunked HTTP/1.1\r\n${HEAD}`),
  },
  stalledBodies: {
    port: 'http',
    reads: true,
    begin: (socket) => socket.write(`POST /digest HTTP/1.1\r\nContent-Length: ${GIB}\r\n${HEAD}${'x'.repeat(KIB)}`),
  },
  /** A byte a chunk, with more extension than the little data excuses. */
  extensionFloods: {
    port: 'http',
    reads: true,
    begin: (socket) => {
      socket.write(`POST /digest HTTP/1.1\r\nTransfer-Encoding: chunked\r\n${HEAD}`);
      pour(socket, Buffer.from(`1;a="${'x'.repeat(200)}"\r\nx\r\n`.repeat(10)));
    },
  },
  trickledChunks: {
    port: 'http',
    reads: true,
    begin: (socket, repeat) => {
      socket.write(`POST /digest HTTP/1.1\r\nTransfer-Encoding: chunked\r\n${HEAD}`);
      byteByByte(socket, '1;a=b\r\nx\r\n', repeat, 0.1 * SECONDS);
    },
  },
  /** Thousands of requests in one go, whose answers nobody takes. */
  pipelineFloods: {
    port: 'http',
    reads: false,
    begin: (socket) => pour(socket, Buffer.from(`GET /bytes/60000/0 HTTP/1.1\r\n${HEAD}`.repeat(2_000))),
  },
  /** To a server that never answers, and does not read either. */
  neverAnswered: {
    port: 'http',
    reads: true,
    begin: (socket) => {
      socket.write(`POST /silent HTTP/1.1\r\nContent-Length: ${GIB}\r\n${HEAD}`);
      pour(socket, Buffer.alloc(64 * KIB, 'x'));
    },
  },
  /** Whole requests, and gone before anybody can answer. */
  hitAndRun: {
    port: 'http',
    reads: true,
    begin: (socket) => socket.write(`GET /bytes/${MIB}/0 HTTP/1.1\r\n${HEAD}`, () => socket.resetAndDestroy()),
  },
  garbage: {
    port: 'http',
    reads: true,
    begin: (socket) => pour(socket, Buffer.from(Array.from({ length: KIB }, (_, at) => (at * 131) % 256))),
  },
  silentHandshakes: { port: 'tls', reads: true, begin: (socket) => void socket.setNoDelay(true) },
  halfHandshakes: { port: 'tls', reads: true, begin: (socket) => socket.write(HALF_HELLO) },
  slowHandshakes: {
    port: 'tls',
    reads: true,
    begin: (socket, repeat) => byteByByte(socket, HALF_HELLO.toString('latin1'), repeat, 0.2 * SECONDS),
  },
  plainToTls: { port: 'tls', reads: true, begin: (socket) => socket.write(`GET / HTTP/1.1\r\n${HEAD}`) },
  unreadSockets: {
    port: 'http',
    reads: false,
    begin: (socket) => {
      socket.write(`GET /socket HTTP/1.1\r\nHost: hostile.test\r\n${webSocketFields(newWebSocketKey())}\r\n`);
      const payload = Buffer.alloc(64 * KIB);
      pour(socket, encodeFrame({ opcode: OPCODE.binary, payload, fin: true, masked: true }));
    },
  },
  unreadEchoes: { port: 'tcp', reads: false, begin: (socket) => pour(socket, Buffer.alloc(64 * KIB)) },
  silentSessions: { port: 'tcp', reads: true, begin: () => {} },
} satisfies Record<string, Attack>;

export type AttackName = keyof typeof ATTACKS;
