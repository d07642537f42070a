/** A thread with a listener of its own, at which it connects to itself over and over; tells which protocols came out. */
import { connect } from 'node:tls';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { parentPort, workerData } from 'node:worker_threads';
import { libc } from '../src/net/libc.ts';
import { acceptFrom, listenOn, localOf } from '../src/net/tcpSocket.ts';
import { ServerContexts } from '../src/proxy/tlsContext.ts';
import type { ServerTlsModel } from '../src/proxy/tlsContext.ts';

const { model, connections } = workerData as { model: ServerTlsModel; connections: number };

const contexts = new ServerContexts(model, null);
const listening = listenOn(
  { host: '127.0.0.1', port: 0 },
  { reusePort: false, freeBind: false, backlog: 64, file: { mode: null, uid: null, gid: null } },
);
if (!('fd' in listening)) throw new Error(listening.code);
const { port } = localOf(listening.fd) as { port: number };

const chosen: (string | null)[] = [];
for (let count = 0; count < connections; count++) {
  const socket = connect({ port, rejectUnauthorized: false, ALPNProtocols: count % 2 === 0 ? ['h2'] : ['http/1.1'] });
  let accepted = acceptFrom(listening.fd);
  for (; !accepted; accepted = acceptFrom(listening.fd)) await nextTurn();
  if (!('fd' in accepted)) throw new Error(accepted.code);
  const wire = contexts.accept(accepted.fd, null);
  while (wire.handshake() === 'again') await nextTurn();
  chosen.push(wire.facts()?.alpn ?? null);
  wire.free();
  libc().close(accepted.fd);
  socket.on('error', () => {});
  socket.destroy();
}
libc().close(listening.fd);
contexts.free();
parentPort!.postMessage(chosen);
