/** Listening sockets on addresses that are not here yet (IP_FREEBIND), which Node can't make by itself. */
import ipaddr from 'ipaddr.js';
import type { Endpoint } from '../config/units.ts';
import { lastErrno, libc } from './libc.ts';
import { AF_INET, AF_INET6, openSocket, setOptions, SOL_IP, SOL_IPV6, SOL_SOCKET } from './socket.ts';
import { writeSocketAddress } from './socketAddress.ts';

const SOCK_STREAM = 1;
const SO_REUSEADDR = 2;
const SO_REUSEPORT = 15;
const IP_FREEBIND = 15;
const IPV6_V6ONLY = 26;
const IPV6_FREEBIND = 78;

const refuse = (code: string, { host, port }: Endpoint): never => {
  throw Object.assign(new Error(`${host} port ${port} can't be bound: ${code}`), { code });
};

/**
 * A descriptor that is bound, for `server.listen({ fd })`; whoever listens owns it. Takes no privilege.
 * @throws Error with an errno's name as its code
 */
export const freeBind = (endpoint: Endpoint): number => {
  const isIPv4 = ipaddr.parse(endpoint.host).kind() === 'ipv4';
  const fd = openSocket(isIPv4 ? AF_INET : AF_INET6, SOCK_STREAM, 0);
  if (fd === null) return refuse(lastErrno(), endpoint);
  const address = writeSocketAddress(endpoint.host, endpoint.port);
  const failure =
    setOptions(fd, [
      { level: SOL_SOCKET, name: SO_REUSEADDR, value: 1 },
      { level: SOL_SOCKET, name: SO_REUSEPORT, value: 1 },
      isIPv4 ? { level: SOL_IP, name: IP_FREEBIND, value: 1 } : { level: SOL_IPV6, name: IPV6_FREEBIND, value: 1 },
      ...(isIPv4 ? [] : [{ level: SOL_IPV6, name: IPV6_V6ONLY, value: 1 }]),
    ]) ?? (libc().bind(fd, address, address.length) < 0 ? lastErrno() : null);
  if (failure === null) return fd;
  libc().close(fd);
  return refuse(failure, endpoint);
};
