/**
 * Opens so many connections to a port, makes one request on each, and keeps them open until its parent lets go. Sends its
 * parent `{idle, errors}` when all are idle; `errors` says why some are not.
 */
import { connect } from 'node:net';
import type { Socket } from 'node:net';

/** Connections that are being opened at a time: fewer than any listen queue holds. */
const AT_A_TIME = 100;
const REQUEST = 'GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n';
const [port, connections] = process.argv.slice(2).map(Number) as [number, number];

const failures = new Map<string, number>();
const sockets: Socket[] = [];
let begun = 0;
let settled = 0;
let idle = 0;

const settle = (failure: string | null): void => {
  settled++;
  if (failure === null) idle++;
  else failures.set(failure, (failures.get(failure) ?? 0) + 1);
  if (begun < connections) open();
  else if (settled === connections) tell();
};

const tell = (): void => {
  process.send!({ idle, errors: [...failures].map(([what, count]) => `${what}: ${count}`) });
};

const open = (): void => {
  begun++;
  let text = '';
  let isAnswered = false;
  const socket = connect(port, '127.0.0.1');
  sockets.push(socket);
  socket.on('connect', () => socket.write(REQUEST));
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString('latin1');
    const [, head, body] = /^HTTP\/1\.1 200 ([^]*?)\r\n\r\n([^]*)$/.exec(text) ?? [];
    if (head === undefined || isAnswered) return;
    if (Number(/content-length: *(\d+)/i.exec(head)?.[1]) !== body!.length) return;
    isAnswered = true;
    text = '';
    settle(null);
  });
  socket.on('error', () => {});
  socket.on('close', () => {
    if (!isAnswered) settle(`closed after ${JSON.stringify(text.slice(0, 40))}`);
    else if (settled < connections) idle--;
  });
};

process.on('disconnect', () => process.exit(0));
for (let index = 0; index < Math.min(AT_A_TIME, connections); index++) open();
