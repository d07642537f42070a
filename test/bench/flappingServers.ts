/**
 * The servers of `bench:cluster`: as many ports as it is told to, that greet whoever connects. Told to flap, one port after
 * the other stops greeting, or greets again, so that each changes once in the time given. A port is never closed: the
 * kernel would give its number to somebody else.
 */
import { once } from 'node:events';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';

export type ToServers = { flapEveryMs: number | null };

const [count, greeting] = process.argv.slice(2) as [string, string];
const greets: boolean[] = [];
const ports: number[] = [];
for (let index = 0; index < Number(count); index++) {
  greets.push(true);
  const server = createServer((socket) => {
    socket.on('error', () => {});
    if (greets[index]) socket.end(greeting);
    else socket.destroy();
  });
  server.listen({ port: 0, host: '127.0.0.1', backlog: 4096 });
  await once(server, 'listening');
  ports.push((server.address() as AddressInfo).port);
}

let flapping: NodeJS.Timeout | undefined;
let next = 0;
process.on('message', ({ flapEveryMs }: ToServers) => {
  clearInterval(flapping);
  greets.fill(true);
  if (flapEveryMs === null) return;
  flapping = setInterval(() => {
    const index = next++ % greets.length;
    greets[index] = !greets[index];
  }, flapEveryMs / greets.length);
});
process.on('disconnect', () => process.exit(0));
process.send!({ ports });
