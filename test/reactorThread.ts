/** A thread that lives in a reactor, with a listening socket of its own; `workerData` says what else it does. */
import { parentPort, workerData } from 'node:worker_threads';
import { Reactor } from '../src/net/reactor.ts';
import { acceptFrom, listenOn, localOf } from '../src/net/tcpSocket.ts';

const { descriptors, does } = workerData as {
  descriptors: SharedArrayBuffer;
  /** `throws`: when somebody connects. `spins`: has always something to do. */
  does: 'waits' | 'throws' | 'spins';
};

const port = parentPort!;
const reactor = new Reactor(descriptors);
const listening = listenOn(
  { host: '127.0.0.1', port: 0 },
  { reusePort: false, freeBind: false, backlog: 64, file: { mode: null, uid: null, gid: null } },
);
if (!('fd' in listening)) throw new Error(listening.code);

reactor.watchListening(listening.fd, {
  onEvents: () => {
    const accepted = acceptFrom(listening.fd);
    if (!accepted || !('fd' in accepted)) return;
    reactor.watch(accepted.fd, { onEvents: () => {} });
    port.postMessage({ accepted: accepted.fd });
    if (does === 'throws') throw new Error('thrown in a watcher');
  },
});

const spinning = { run: () => reactor.defer(spinning) };
if (does === 'spins') reactor.defer(spinning);

port.on('message', (message: 'stop' | 'echo') => {
  if (message === 'echo') {
    port.postMessage('echo');
    return;
  }
  reactor.close(listening.fd);
  reactor.stop();
  port.unref();
});
port.postMessage({ port: localOf(listening.fd).port });
