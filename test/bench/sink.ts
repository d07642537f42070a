/** Accepts connections on as many ports as it is told to, and closes them: the servers of `bench:checks`. */
import { once } from 'node:events';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';

const ports: number[] = [];
for (let index = 0; index < Number(process.argv[2]); index++) {
  const server = createServer({ pauseOnConnect: true }, (socket) => {
    socket.on('error', () => {});
    socket.destroy();
  });
  server.listen({ port: 0, host: '127.0.0.1', backlog: 4096 });
  await once(server, 'listening');
  ports.push((server.address() as AddressInfo).port);
}
process.on('disconnect', () => process.exit(0));
process.send!({ ports });
