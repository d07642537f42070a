/** Bytes both ways between two sockets, with back-pressure and half-close: mode `tcp`, and upgraded connections. */
import type { Socket } from 'node:net';
import { reset } from './engine.ts';

/** How long one side may outlive the other. */
const LINGER_MS = 10_000;

export type RelayOptions = {
  client: Socket;
  server: Socket;
  idleMs: number;
  onBytes(direction: 'in' | 'out', count: number): void;
  /** Called once, when both sockets are done with. */
  onClosed(): void;
};

/** Takes both sockets over: earlier handlers of `data`, `end`, `drain` and `timeout` must have been removed. */
export const relay = ({ client, server, idleMs, onBytes, onClosed }: RelayOptions): { destroy(): void } => {
  let open = 2;
  let over = false;
  const destroy = () => {
    client.destroy();
    server.destroy();
  };
  const closed = () => {
    if (--open > 0 || over) return;
    over = true;
    onClosed();
  };
  const forward = (from: Socket, to: Socket, direction: 'in' | 'out') => {
    from.on('data', (chunk: Buffer) => {
      onBytes(direction, chunk.length);
      if (!to.write(chunk)) from.pause();
    });
    to.on('drain', () => from.resume());
    from.on('end', () => to.end());
    // Traffic in one direction keeps both alive: a download says nothing upstream for hours.
    from.on('timeout', () => {
      const leftMs = idleMs - (performance.now() - lastActivity);
      if (leftMs <= 0 || client.destroyed || server.destroyed) destroy();
      else from.setTimeout(Math.max(1, Math.ceil(leftMs)));
    });
    // `close` follows and passes it on.
    from.on('error', () => {});
    from.on('close', (hadError) => {
      // A reset on one side is passed on as one: the other must not take it for a clean end.
      if (hadError && !to.destroyed) reset(to);
      else if (!to.destroyed) {
        if (!to.writableEnded) to.end();
        // Nobody is left to read what it says; one that doesn't close either is not waited for.
        to.resume();
        to.setTimeout(Math.min(idleMs, LINGER_MS));
      }
      closed();
    });
  };
  let lastActivity = performance.now();
  const touch = () => (lastActivity = performance.now());
  client.on('data', touch);
  server.on('data', touch);
  forward(client, server, 'in');
  forward(server, client, 'out');
  client.setTimeout(idleMs);
  server.setTimeout(idleMs);
  client.resume();
  server.resume();
  return { destroy };
};
