/**
 * A new process takes over from one that runs, without a connection lost: the old one hands over its listening sockets
 * with all who wait there, and its journal; once the new one serves, the old one ends what it has under way and leaves.
 *
 * They talk over a Unix socket beside the journal, line by line:
 * new: `takeover`; old: `listener ID` with its sockets, for each; `done` when the journal is free; new: `serving`.
 */
import { chmodSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import type { Server, Socket } from 'node:net';
import { codeOf, UnderstudyError } from './errors.ts';
import { libc } from './net/libc.ts';
import { receiveDescriptors, sendDescriptors } from './net/passDescriptors.ts';
import { openSocket, setOption, SOL_SOCKET } from './net/socket.ts';
import { socketAddressOf } from './net/tcpSocket.ts';

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SO_RCVTIMEO = 20;
const F_SETFL = 4;
/** How long the old process may take to hand over: it leaves its routers first. */
const HAND_OVER_SECONDS = 15;
/** sockaddr_un holds 107 characters and a zero. */
const LONGEST_PATH_BYTES = 107;

export type Sockets = ReadonlyMap<string, number[]>;

const pathFor = (journalPath: string): string => `${journalPath}.takeover`;

export type TakeoverHost = {
  /** Stops everything but traffic; resolves when the journal is closed. */
  handOver(): Promise<Sockets>;
  /** The new process serves. */
  leave(): void;
  /** The new process went away before it served. */
  abandoned(): void;
};

/** Lets another process take over from the one that writes this journal. Where that can't be, the reason is told. */
export class TakeoverDoor {
  readonly #path: string;
  readonly #host: TakeoverHost;
  readonly #warn: (message: string) => void;
  #server: Server | null = null;

  constructor(journalPath: string, host: TakeoverHost, warn: (message: string) => void) {
    this.#path = pathFor(journalPath);
    this.#host = host;
    this.#warn = warn;
  }

  /** Resolves when a new process can come in. */
  open(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const refuse = (reason: string) => {
      this.#warn(`no other process can take over from this one: ${this.#path}: ${reason}`);
      resolve();
    };
    if (Buffer.byteLength(this.#path) > LONGEST_PATH_BYTES) {
      refuse('its name is too long for a socket');
      return promise;
    }
    // Nobody listens there: the journal has one writer, and that is us.
    rmSync(this.#path, { force: true });
    const server = createServer((socket) => this.#serve(socket));
    server.once('error', (error) => refuse(codeOf(error)));
    server.listen(this.#path, () => {
      chmodSync(this.#path, 0o600);
      resolve();
    });
    server.unref();
    this.#server = server;
    return promise;
  }

  /** Takes the socket's file away, so it is to be closed before a new process opens its own. */
  close(): void {
    this.#server?.close();
    this.#server = null;
  }

  #serve(socket: Socket): void {
    let input = '';
    let state: 'new' | 'handingOver' | 'handedOver' | 'left' = 'new';
    const say = (line: string, descriptors: number[]) => {
      if (socket.destroyed) return;
      const failure = sendDescriptors((socket as Socket & { _handle: { fd: number } })._handle.fd, line, descriptors);
      if (failure === null) return;
      this.#warn(`the sockets can't be handed over: ${failure}`);
      socket.destroy();
    };
    const handOver = async (): Promise<void> => {
      state = 'handingOver';
      this.close();
      const sockets = await this.#host.handOver();
      if (socket.destroyed) return;
      state = 'handedOver';
      for (const [id, descriptors] of sockets) say(`listener ${id}`, descriptors);
      say('done', []);
    };
    socket.on('error', () => socket.destroy());
    socket.on('close', () => {
      if (state !== 'handingOver' && state !== 'handedOver') return;
      this.#host.abandoned();
      void this.open();
    });
    socket.on('data', (chunk) => {
      input += chunk.toString();
      for (let end = input.indexOf('\n'); end !== -1; end = input.indexOf('\n')) {
        const line = input.slice(0, end);
        input = input.slice(end + 1);
        if (line === 'takeover' && state === 'new') void handOver();
        else if (line === 'serving' && state === 'handedOver') {
          state = 'left';
          this.#host.leave();
          socket.end();
        } else socket.destroy();
      }
    });
  }
}

/** What a process that runs has handed over. `serving` is to be called when this one serves, or never. */
export type TakenOver = { sockets: Sockets; serving(): void };

/**
 * Takes over from the process that writes this journal; null when there is none.
 * @throws UnderstudyError NODE_UNREACHABLE when there is one that doesn't hand over
 */
export const takeOver = (journalPath: string): TakenOver | null => {
  const path = pathFor(journalPath);
  const fd = openSocket(AF_UNIX, SOCK_STREAM, 0);
  if (fd === null || Buffer.byteLength(path) > LONGEST_PATH_BYTES) return null;
  const { bytes } = socketAddressOf({ host: 'localhost', port: 0, path });
  if (libc().connect(fd, bytes, bytes.length) < 0) {
    libc().close(fd);
    return null;
  }
  // Nothing else is to be done meanwhile: it may block.
  libc().fcntl(fd, F_SETFL, 0);
  const timeout = Buffer.alloc(16);
  timeout.writeBigInt64LE(BigInt(HAND_OVER_SECONDS), 0);
  setOption(fd, { level: SOL_SOCKET, name: SO_RCVTIMEO, value: timeout });
  sendDescriptors(fd, 'takeover', []);
  const sockets = new Map<string, number[]>();
  for (;;) {
    const message = receiveDescriptors(fd);
    if (!message) {
      for (const descriptors of sockets.values()) for (const one of descriptors) libc().close(one);
      libc().close(fd);
      throw new UnderstudyError('NODE_UNREACHABLE', `the process at ${path} does not hand over`);
    }
    // The kernel joins lines, but what comes with descriptors is always the last.
    const lines = message.line.split('\n');
    const last = lines.at(-1)!;
    for (const line of lines.slice(0, -1)) sockets.set(line.slice('listener '.length), []);
    if (last === 'done') break;
    sockets.set(last.slice('listener '.length), message.descriptors);
  }
  return {
    sockets,
    serving: () => {
      sendDescriptors(fd, 'serving', []);
      libc().close(fd);
    },
  };
};
