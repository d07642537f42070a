/** A port of a host in the lab as a port of this machine's loopback, for a test that speaks to what runs there. */
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import type { AddressInfo, Socket } from 'node:net';
import { join } from 'node:path';
import type { Host } from './lab.ts';

const LOOPBACK = '127.0.0.1';
let doors = 0;

export type Door = {
  /** `127.0.0.1:40123` */
  address: string;
  close(): void;
};

export const openDoor = async (host: Host, address: string, port: number): Promise<Door> => {
  const path = join(host.folder, `door-${++doors}.sock`);
  const program = [join(import.meta.dirname, 'relay.ts'), path, address, String(port)];
  const relay = await host.spawn(process.execPath, program);
  await relay.waitFor(/relays/);
  const sockets = new Set<Socket>();
  const server = createServer((outside) => {
    const inside = connect(path);
    for (const [from, to] of [
      [outside, inside],
      [inside, outside],
    ] as const) {
      sockets.add(from);
      from.pipe(to);
      from.on('error', () => to.destroy());
      from.on('close', () => {
        sockets.delete(from);
        to.destroy();
      });
    }
  }).listen(0, LOOPBACK);
  await once(server, 'listening');
  return {
    address: `${LOOPBACK}:${(server.address() as AddressInfo).port}`,
    close() {
      server.close();
      for (const socket of sockets) socket.destroy();
      relay.signal('SIGKILL');
    },
  };
};
