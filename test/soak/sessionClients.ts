/** Clients with sessions that last: WebSockets and plain TCP, their messages echoed. */
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { encodeFrame, FrameReader, newWebSocketKey, OPCODE, webSocketFields } from '../webSocketFrames.ts';
import { isPatternAt, patternAt } from './pattern.ts';
import { addViolation, countDone } from './tally.ts';
import { HOST, integer } from './world.ts';
import type { World } from './world.ts';

const ECHO_TIMEOUT_MS = 60_000;
const MAX_MESSAGE_BYTES = 16 * 1024;
const MAX_MESSAGES = 20;

/** One thing that is waited for: resolved with false when the connection is lost before. */
class Session {
  readonly socket: Socket;
  isLost = false;
  error = 'closed';
  #waiting: ((came: boolean) => void) | null = null;

  constructor(port: number, onData: (bytes: Buffer) => void) {
    this.socket = connect({ port, host: HOST });
    this.socket.on('data', onData);
    this.socket.on('error', (error: NodeJS.ErrnoException) => (this.error = error.code ?? error.message));
    this.socket.on('close', () => {
      this.isLost = true;
      this.#waiting?.(false);
    });
  }

  came(): void {
    this.#waiting?.(true);
  }

  wait(): Promise<boolean> {
    if (this.isLost) return Promise.resolve(false);
    return new Promise((done) => {
      const late = setTimeout(() => {
        this.error = 'timeout';
        this.socket.destroy();
      }, ECHO_TIMEOUT_MS);
      this.#waiting = (came) => {
        clearTimeout(late);
        this.#waiting = null;
        done(came);
      };
    });
  }

  /** Until our end is answered with one. */
  ended(): Promise<boolean> {
    return new Promise((done) => {
      if (this.isLost) {
        done(false);
        return;
      }
      const late = setTimeout(() => this.socket.destroy(), ECHO_TIMEOUT_MS);
      let isOrderly = false;
      this.socket.on('end', () => (isOrderly = true));
      this.socket.on('close', () => {
        clearTimeout(late);
        done(isOrderly);
      });
      this.socket.end();
    });
  }
}

const cutOff = ({ tally }: World, what: string, server: string, { error }: Session): void => {
  if (error === 'timeout') addViolation(tally, `${what}: no echo in time from ${server}`);
  else tally.cutOffs.push({ what, server, atMs: Date.now() });
};

export const webSockets = async (world: World): Promise<void> => {
  while (!world.stopped) {
    await oneWebSocket(world);
  }
};

const oneWebSocket = async (world: World): Promise<void> => {
  let head = '';
  let at = 0;
  let echoed = Buffer.alloc(0);
  const reader = new FrameReader((frame) => {
    echoed = Buffer.from(frame.payload);
    session.came();
  });
  const session = new Session(world.ports.http, (bytes) => {
    if (head.includes('\r\n\r\n')) {
      reader.push(bytes);
      return;
    }
    head += bytes.toString('latin1');
    const end = head.indexOf('\r\n\r\n');
    if (end === -1) return;
    const rest = Buffer.from(head.slice(end + 4), 'latin1');
    session.came();
    if (rest.length > 0) reader.push(rest);
  });
  session.socket.write(`GET /socket HTTP/1.1\r\nHost: soak.test\r\n${webSocketFields(newWebSocketKey())}\r\n`);
  const isOpen = await session.wait();
  const server = /^x-server: (.*)\r$/im.exec(head)?.[1] ?? '';
  if (!isOpen || !head.startsWith('HTTP/1.1 101')) {
    addViolation(world.tally, `WebSocket: ${isOpen ? head.slice(0, 30) : session.error}`);
    session.socket.destroy();
    return;
  }
  countDone(world.tally, 'WebSocket', 0);
  for (let message = 0; message < MAX_MESSAGES && !world.stopped; message++) {
    await world.think();
    const payload = patternAt(at, integer(MAX_MESSAGE_BYTES));
    session.socket.write(encodeFrame({ opcode: OPCODE.binary, payload, fin: true, masked: true }));
    if (!(await session.wait())) {
      cutOff(world, 'WebSocket', server, session);
      return;
    }
    if (!echoed.equals(payload)) addViolation(world.tally, `WebSocket: not the message that was sent`);
    at += payload.length;
    countDone(world.tally, 'WebSocket message', payload.length);
  }
  const code = Buffer.from([0x03, 0xe8]);
  session.socket.write(encodeFrame({ opcode: OPCODE.close, payload: code, fin: true, masked: true }));
  if (!(await session.wait()) || !(await session.ended())) cutOff(world, 'WebSocket close', server, session);
};

export const tcpSessions = async (world: World): Promise<void> => {
  while (!world.stopped) {
    await oneTcpSession(world);
  }
};

const oneTcpSession = async (world: World): Promise<void> => {
  let server = '';
  let greeting = '';
  let expectedAt = 0;
  let left = 0;
  const session = new Session(world.ports.tcp, (bytes) => {
    let echo = bytes;
    if (server === '') {
      greeting += bytes.toString('latin1');
      const end = greeting.indexOf('\n');
      if (end === -1) return;
      server = greeting.slice(0, end);
      echo = Buffer.from(greeting.slice(end + 1), 'latin1');
      session.came();
    }
    if (echo.length === 0) return;
    if (!isPatternAt(echo, expectedAt)) addViolation(world.tally, 'TCP: not the bytes that were sent');
    expectedAt += echo.length;
    left -= echo.length;
    if (left === 0) session.came();
  });
  if (!(await session.wait())) {
    cutOff(world, 'TCP before the greeting', server, session);
    return;
  }
  countDone(world.tally, 'TCP session', 0);
  for (let message = 0; message < MAX_MESSAGES && !world.stopped; message++) {
    await world.think();
    left = 1 + integer(MAX_MESSAGE_BYTES);
    const length = left;
    session.socket.write(patternAt(expectedAt, left));
    if (!(await session.wait())) {
      cutOff(world, 'TCP', server, session);
      return;
    }
    countDone(world.tally, 'TCP message', length);
  }
  if (!(await session.ended())) cutOff(world, 'TCP end', server, session);
};
