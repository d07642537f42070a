/**
 * Runs on a host of the lab: what connects to a Unix socket is connected to a port there. The hosts have no wire to the
 * machine's own network, but files they share with it. Arguments: the socket's path, address, port.
 */
import { connect, createServer } from 'node:net';
import type { Socket } from 'node:net';

const [path, host, port] = process.argv.slice(2);

const join = (from: Socket, to: Socket): void => {
  from.pipe(to);
  // Either end may be cut at any time: then the other end is, too.
  from.on('error', () => to.destroy());
  from.on('close', () => to.destroy());
};

createServer((inside) => {
  const outside = connect({ host: host!, port: Number(port) });
  join(inside, outside);
  join(outside, inside);
}).listen(path, () => console.log('relays'));
