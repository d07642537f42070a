/** Connections to servers: opened with a time limit, kept for the next request while both sides are content. */
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import type { Endpoint } from '../config/units.ts';

/** Idle connections kept for one server by one worker: enough for its own concurrency, few enough for the server. */
const MAX_IDLE = 256;
/** Below the 5 s after which Node's own HTTP server closes an idle connection, the shortest in common use. */
const IDLE_TIMEOUT_MS = 4_000;

/** What a connection tells whoever uses it at the moment. */
export type ConnectionUser = {
  onData(chunk: Buffer): void;
  onDrain(): void;
  /** The server closed its side cleanly. */
  onEnd(): void;
  onTimeout(): void;
  /** The connection is gone; `error` is null when it was closed in order. */
  onClosed(error: Error | null): void;
};

export class ServerConnection {
  readonly socket: Socket;
  user: ConnectionUser | null = null;
  /** It has served a request before: it may have been closed by the server in this very moment. */
  reused = false;
  #error: Error | null = null;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on('data', (chunk: Buffer) => {
      if (this.user) this.user.onData(chunk);
      // Data that nobody asked for: what it belongs to can't be known.
      else socket.destroy();
    });
    socket.on('drain', () => this.user?.onDrain());
    socket.on('end', () => {
      if (this.user) this.user.onEnd();
      else socket.destroy();
    });
    socket.on('timeout', () => {
      if (this.user) this.user.onTimeout();
      else socket.destroy();
    });
    socket.on('error', (error) => (this.#error = error));
    socket.on('close', () => this.user?.onClosed(this.#error));
  }
}

export type ConnectFailure = { code: string; message: string };

/** Opens a connection; calls exactly one of the two, unless the returned function gave it up before. */
export const openConnection = (
  address: Endpoint,
  timeoutMs: number,
  connected: (connection: ServerConnection) => void,
  failed: (failure: ConnectFailure) => void,
): (() => void) => {
  const socket = connect({ host: address.host, port: address.port, noDelay: true, allowHalfOpen: true });
  let over = false;
  const fail = (failure: ConnectFailure) => {
    if (over) return;
    over = true;
    clearTimeout(timer);
    socket.destroy();
    failed(failure);
  };
  const timer = setTimeout(
    () => fail({ code: 'ETIMEDOUT', message: `no connection within ${timeoutMs} ms` }),
    timeoutMs,
  );
  const onError = (error: Error & { code?: string }) => fail({ code: error.code ?? 'UNKNOWN', message: error.message });
  socket.on('error', onError);
  socket.once('connect', () => {
    if (over) return;
    over = true;
    clearTimeout(timer);
    const connection = new ServerConnection(socket);
    socket.off('error', onError);
    connected(connection);
  });
  return () => {
    over = true;
    clearTimeout(timer);
    socket.destroy();
  };
};

/** The newest is used first, so that what isn't needed grows old and goes. */
export class IdleConnections {
  #idle: ServerConnection[] = [];
  #stopped = false;

  get size(): number {
    return this.#idle.length;
  }

  take(): ServerConnection | null {
    for (;;) {
      const connection = this.#idle.pop();
      if (!connection) return null;
      connection.user = null;
      if (connection.socket.destroyed || connection.socket.readableEnded || !connection.socket.writable) continue;
      connection.socket.setTimeout(0);
      connection.reused = true;
      return connection;
    }
  }

  put(connection: ServerConnection): void {
    const { socket } = connection;
    if (this.#stopped || this.#idle.length >= MAX_IDLE || socket.destroyed) {
      socket.destroy();
      return;
    }
    const leave = () => {
      const index = this.#idle.indexOf(connection);
      if (index >= 0) this.#idle.splice(index, 1);
      socket.destroy();
    };
    connection.user = { onData: leave, onDrain: () => {}, onEnd: leave, onTimeout: leave, onClosed: leave };
    socket.setTimeout(IDLE_TIMEOUT_MS);
    socket.resume();
    this.#idle.push(connection);
  }

  /** Keeps none from now on. */
  stop(): void {
    this.#stopped = true;
    this.closeAll();
  }

  closeAll(): void {
    const idle = this.#idle;
    this.#idle = [];
    for (const connection of idle) connection.socket.destroy();
  }
}
