/** The WebSocket server of `bench:proxy`: sends every frame back. It knows small binary frames only (RFC 6455). */
import { createHash } from 'node:crypto';
import { createServer } from 'node:net';
import type { Socket } from 'node:net';
import {
  acceptKey,
  BINARY,
  CLIENT_HEAD_BYTES,
  FIN,
  HEAD_BYTES,
  HEAD_END,
  LONGEST_SMALL_BYTES,
  MASKED,
} from './proxyWebSocket.ts';

const keyIn = (head: string): string => /\r\nsec-websocket-key: *([^\r]+)/i.exec(head)![1]!;

const answer = (head: string): string =>
  'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
  `Sec-WebSocket-Accept: ${acceptKey(keyIn(head), createHash('sha1'))}\r\n\r\n`;

/** The frames in `input`, unmasked. Null: this is no small binary frame of a client. */
const echoOf = (input: Buffer): { echo: Buffer; rest: Buffer } | null => {
  const echo = Buffer.allocUnsafe(input.length);
  let from = 0;
  let to = 0;
  while (input.length - from >= CLIENT_HEAD_BYTES) {
    const length = input[from + 1]! & ~MASKED;
    if (input[from] !== (FIN | BINARY) || (input[from + 1]! & MASKED) === 0 || length > LONGEST_SMALL_BYTES)
      return null;
    const body = from + CLIENT_HEAD_BYTES;
    if (input.length - body < length) break;
    echo[to++] = FIN | BINARY;
    echo[to++] = length;
    for (let index = 0; index < length; index++)
      echo[to++] = input[body + index]! ^ input[from + HEAD_BYTES + (index & 3)]!;
    from = body + length;
  }
  return { echo: echo.subarray(0, to), rest: input.subarray(from) };
};

const serve = (socket: Socket): void => {
  let isOpen = false;
  let waiting: Buffer = Buffer.alloc(0);
  socket.setNoDelay(true);
  socket.on('error', () => socket.destroy());
  socket.on('data', (chunk: Buffer) => {
    waiting = waiting.length === 0 ? chunk : Buffer.concat([waiting, chunk]);
    if (!isOpen) {
      const at = waiting.indexOf(HEAD_END);
      if (at === -1) return;
      socket.write(answer(waiting.toString('latin1', 0, at)));
      waiting = waiting.subarray(at + HEAD_END.length);
      isOpen = true;
    }
    const echoed = echoOf(waiting);
    if (echoed === null) {
      socket.destroy();
      return;
    }
    waiting = echoed.rest;
    if (echoed.echo.length > 0) socket.write(echoed.echo);
  });
};

createServer(serve).listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096 });
