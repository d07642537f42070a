/** Mode `tcp`: one client connection becomes one connection to a server. */
import type { Backend, Place, Server } from './backend.ts';
import type { ClientSession, ClientSocket, Engine, Frontend } from './engine.ts';
import { relay } from './relay.ts';
import { openConnection } from './serverConnections.ts';
import type { ServerConnection } from './serverConnections.ts';

export const serveTcp = (
  engine: Engine,
  frontend: Frontend,
  client: ClientSocket,
  onClosed: () => void,
): ClientSession => {
  const { counters } = engine;
  const frontendSlot = frontend.model.slot;
  const tried = new Set<Server>();
  let attempts = 0;
  let giveUp = () => {};
  let place: Place | null = null;
  let over = false;

  const finish = () => {
    if (over) return;
    over = true;
    giveUp();
    place?.release();
    client.destroy();
    onClosed();
  };
  const session = {
    shutdown: () => finish(),
  };

  const start = (backend: Backend) => {
    const leave = backend.acquire(
      client.remoteAddress ?? '',
      tried,
      (got) => connectTo(backend, got),
      () => finish(),
    );
    if (leave) giveUp = leave;
  };

  const connectTo = (backend: Backend, got: Place) => {
    place = got;
    const { server } = got;
    giveUp = openConnection(
      server.model.address,
      backend.model.timeouts.connect,
      (connection) => connected(backend, got, connection),
      () => {
        counters.add(server.model.slot, 'connectFailures');
        got.release();
        place = null;
        tried.add(server);
        if (attempts++ >= backend.model.retries) {
          finish();
          return;
        }
        counters.add(server.model.slot, 'retries');
        start(backend);
      },
    );
  };

  const connected = (backend: Backend, got: Place, { socket }: ServerConnection) => {
    const { server } = got;
    giveUp = () => socket.destroy();
    server.sessions.add(session);
    socket.removeAllListeners('data').removeAllListeners('end').removeAllListeners('timeout');
    client.removeListener('close', finish);
    const { slot } = server.model;
    relay({
      client,
      server: socket,
      idleMs: Math.max(frontend.model.timeouts.client, backend.model.timeouts.server),
      onBytes: (direction, count) => {
        const counter = direction === 'in' ? 'bytesIn' : 'bytesOut';
        counters.add(slot, counter, count);
        counters.add(frontendSlot, counter, count);
      },
      onClosed: () => {
        server.sessions.delete(session);
        finish();
      },
    });
  };

  client.pause();
  client.setNoDelay(true);
  client.on('error', () => client.destroy());
  client.once('close', finish);
  const backend = engine.backend(frontend.model.use);
  if (backend) start(backend);
  else finish();
  return { drain: () => {}, destroy: finish };
};
