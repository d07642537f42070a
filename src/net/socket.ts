/** What raw, UDP, packet and netlink sockets have in common. */
import { lastErrno, libc } from './libc.ts';
import type { SocketProblem } from './libc.ts';

export const AF_INET = 2;
export const AF_INET6 = 10;
export const AF_NETLINK = 16;
export const AF_PACKET = 17;

export const SOCK_DGRAM = 2;
export const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;

export const SOL_SOCKET = 1;
export const SOL_IP = 0;
export const SOL_IPV6 = 41;

const SO_RCVBUF = 8;
const SO_PRIORITY = 12;
const SO_BINDTODEVICE = 25;
const SO_RCVBUFFORCE = 33;
const SO_TIMESTAMPNS = 35;
const IP_TOS = 1;
const IP_TTL = 2;
const IP_PKTINFO = 8;
const IP_RECVTTL = 12;
const IPV6_UNICAST_HOPS = 16;
const IPV6_RECVPKTINFO = 49;
const IPV6_RECVHOPLIMIT = 51;
const IPV6_TCLASS = 67;

/** IFNAMSIZ with its zero; the kernel cuts a longer name off and would bind to whatever is called so. */
const INTERFACE_NAME_BYTES = 16;
/** Holds some thousand adverts: minutes of a loop that stands still, or a flood until the next look. */
const RECEIVE_BUFFER_BYTES = 1 << 20;
/** RFC 9568 sections 5.1.1.3 and 5.1.2.3. */
const TTL = 255;
/** Internetwork control (DSCP CS6), as keepalived sends. */
const TRAFFIC_CLASS = 0xc0;
/** In the highest band of pfifo_fast: adverts don't wait behind bulk traffic. The greatest without CAP_NET_ADMIN. */
const PRIORITY = 6;

export type Option = { level: number; name: number; value: number | Buffer };

/** A non-blocking socket; null with the reason in `lastErrno`. */
export const openSocket = (domain: number, type: number, protocol: number): number | null => {
  // oxlint-disable-next-line no-bitwise
  const fd = libc().socket(domain, type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);
  return fd < 0 ? null : fd;
};

/** Returns an errno's name, or null. A number is C's int. */
export const setOption = (fd: number, { level, name, value }: Option): string | null => {
  let bytes = value;
  if (typeof bytes === 'number') {
    const int = Buffer.alloc(4);
    int.writeInt32LE(bytes);
    bytes = int;
  }
  return libc().setsockopt(fd, level, name, bytes, bytes.length) < 0 ? lastErrno() : null;
};

/** The first option that could not be set decides. */
export const setOptions = (fd: number, options: Option[]): string | null => {
  for (const option of options) {
    const code = setOption(fd, option);
    if (code !== null) return code;
  }
  return null;
};

/** More than net.core.rmem_max takes CAP_NET_ADMIN; without it, what is allowed has to do. */
export const enlargeReceiveBuffer = (fd: number): void => {
  const forced = setOption(fd, { level: SOL_SOCKET, name: SO_RCVBUFFORCE, value: RECEIVE_BUFFER_BYTES });
  if (forced !== null) setOption(fd, { level: SOL_SOCKET, name: SO_RCVBUF, value: RECEIVE_BUFFER_BYTES });
};

/** To one interface for sending and receiving. */
export const bindToDevice = (fd: number, interfaceName: string): string | null => {
  const value = Buffer.from(`${interfaceName}\0`);
  if (value.length > INTERFACE_NAME_BYTES) return 'ENODEV';
  return setOption(fd, { level: SOL_SOCKET, name: SO_BINDTODEVICE, value });
};

/** What every socket for adverts sends with, and is told about each packet that it receives. */
export const advertOptions = (family: 'ipv4' | 'ipv6'): Option[] => [
  { level: SOL_SOCKET, name: SO_TIMESTAMPNS, value: 1 },
  { level: SOL_SOCKET, name: SO_PRIORITY, value: PRIORITY },
  ...(family === 'ipv4'
    ? [
        { level: SOL_IP, name: IP_PKTINFO, value: 1 },
        { level: SOL_IP, name: IP_RECVTTL, value: 1 },
        { level: SOL_IP, name: IP_TTL, value: TTL },
        { level: SOL_IP, name: IP_TOS, value: TRAFFIC_CLASS },
      ]
    : [
        { level: SOL_IPV6, name: IPV6_RECVPKTINFO, value: 1 },
        { level: SOL_IPV6, name: IPV6_RECVHOPLIMIT, value: 1 },
        { level: SOL_IPV6, name: IPV6_UNICAST_HOPS, value: TTL },
        { level: SOL_IPV6, name: IPV6_TCLASS, value: TRAFFIC_CLASS },
      ]),
];

export const noInterface = (name: string): SocketProblem => ({
  code: 'ENODEV',
  message: `this machine has no interface ${name}`,
});
