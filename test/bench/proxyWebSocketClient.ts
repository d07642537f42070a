/**
 * The WebSocket client of `bench:proxy`: so many connections for so many seconds, each with one frame under way. Every
 * echo is compared. Prints one object: `{done, seconds, p50Ms, p99Ms, errors}`.
 */
import { createHash, randomBytes } from 'node:crypto';
import { connect } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { acceptKey, BINARY, FIN, HEAD_END, MASKED } from './proxyWebSocket.ts';
import { quantile } from './report.ts';

const PAYLOAD_BYTES = 64;
const [port, connections, seconds] = process.argv.slice(2).map(Number) as [number, number, number];

const payload = randomBytes(PAYLOAD_BYTES);
const mask = randomBytes(4);
const frame = Buffer.concat([
  Buffer.of(FIN | BINARY, MASKED | PAYLOAD_BYTES),
  mask,
  payload.map((byte, index) => byte ^ mask[index & 3]!),
]);
const echo = Buffer.concat([Buffer.of(FIN | BINARY, PAYLOAD_BYTES), payload]);

const latenciesMs: number[] = [];
const failures = new Map<string, number>();
let isOver = false;

const fail = (what: string): void => {
  if (!isOver) failures.set(what, (failures.get(what) ?? 0) + 1);
};

const run = (): (() => void) => {
  const key = randomBytes(16).toString('base64');
  const accept = acceptKey(key, createHash('sha1'));
  let isOpen = false;
  let waiting: Buffer = Buffer.alloc(0);
  let sentMs = 0;
  const socket = connect(port, '127.0.0.1');
  socket.setNoDelay(true);
  const send = () => {
    sentMs = performance.now();
    socket.write(frame);
  };
  socket.on('connect', () =>
    socket.write(
      'GET /socket HTTP/1.1\r\nHost: shop.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
        `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}\r\n\r\n`,
    ),
  );
  socket.on('data', (chunk: Buffer) => {
    waiting = waiting.length === 0 ? chunk : Buffer.concat([waiting, chunk]);
    if (!isOpen) {
      const at = waiting.indexOf(HEAD_END);
      if (at === -1) return;
      const head = waiting.toString('latin1', 0, at);
      if (!head.startsWith('HTTP/1.1 101 ') || !head.includes(accept)) {
        fail('not upgraded');
        socket.destroy();
        return;
      }
      isOpen = true;
      waiting = waiting.subarray(at + HEAD_END.length);
      send();
    }
    if (waiting.length < echo.length) return;
    if (!waiting.equals(echo)) {
      fail('not the frame that was sent');
      socket.destroy();
      return;
    }
    waiting = waiting.subarray(echo.length);
    latenciesMs.push(performance.now() - sentMs);
    if (!isOver) send();
  });
  socket.on('error', (error) => fail(error.message));
  socket.on('close', () => fail('closed early'));
  return () => socket.destroy();
};

const startedMs = performance.now();
const stops = Array.from({ length: connections }, run);
await delay(seconds * 1000);
const measuredSeconds = (performance.now() - startedMs) / 1000;
isOver = true;
for (const stop of stops) stop();
const result = {
  done: latenciesMs.length,
  seconds: measuredSeconds,
  p50Ms: quantile(latenciesMs, 0.5),
  p99Ms: quantile(latenciesMs, 0.99),
  errors: [...failures].map(([what, count]) => `${what}: ${count}`),
};
process.stdout.write(JSON.stringify(result));
