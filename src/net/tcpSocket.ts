/** Stream sockets of the reactor, through libc: non-blocking from the start, each returning an errno's name on failure. */
import { lstatSync, unlinkSync } from 'node:fs';
import ipaddr from 'ipaddr.js';
import type { Endpoint } from '../config/units.ts';
import { codeOf } from '../errors.ts';
import { EAGAIN, EINPROGRESS, errno, errnoName, lastErrno, libc } from './libc.ts';
import { AF_INET, AF_INET6, openSocket, setOption, setOptions, SOL_IP, SOL_IPV6, SOL_SOCKET } from './socket.ts';
import type { Option } from './socket.ts';
import { applySocketFile } from './socketFile.ts';
import type { SocketFile } from './socketFile.ts';
import { addressText, readSocketAddress, writeSocketAddress } from './socketAddress.ts';
import type { Peer } from '../proxy/stream.ts';

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_TCP = 6;
const TCP_NODELAY = 1;
const SO_REUSEADDR = 2;
const SO_ERROR = 4;
const SO_LINGER = 13;
const SO_REUSEPORT = 15;
const IP_FREEBIND = 15;
const IPV6_V6ONLY = 26;
const IPV6_FREEBIND = 78;
const SIOCOUTQ = 0x5411;
const EAFNOSUPPORT = 'EAFNOSUPPORT';

/** `struct sockaddr_un` is the longest that we meet. */
const LONGEST_ADDRESS_BYTES = 110;

/** A socket address with its family, made once for many connections. */
export type SocketAddress = { family: number; bytes: Buffer };

/** Of an address or a path; a name has to be resolved before. */
export const socketAddressOf = (endpoint: Endpoint): SocketAddress => {
  if (endpoint.path !== undefined) return unixAddress(endpoint.path);
  const family = ipaddr.parse(endpoint.host).kind() === 'ipv4' ? AF_INET : AF_INET6;
  return { family, bytes: writeSocketAddress(endpoint.host, endpoint.port) };
};

/** Paths were checked to fit when the configuration was read. */
const unixAddress = (path: string): SocketAddress => {
  const bytes = Buffer.alloc(2 + Buffer.byteLength(path) + 1);
  bytes.writeUInt16LE(AF_UNIX, 0);
  bytes.write(path, 2);
  return { family: AF_UNIX, bytes };
};

export type ListenOptions = {
  /** Every worker has a socket of its own at the same address, and the kernel shares connections out. */
  reusePort: boolean;
  /** Also an address that isn't here at the moment. */
  freeBind: boolean;
  backlog: number;
  /** Of a Unix socket. */
  file: SocketFile;
};

export type Opened = { fd: number } | { code: string };

/** A listening socket. `*` is every address, of IPv4 and IPv6 where the machine has both. */
export const listenOn = (endpoint: Endpoint, options: ListenOptions): Opened => {
  if (endpoint.path !== undefined) return listenOnPath(endpoint.path, options);
  if (endpoint.host !== '*') return listenAt(socketAddressOf(endpoint), options, true);
  const both = listenAt(socketAddressOf({ host: '::', port: endpoint.port }), options, false);
  return 'code' in both && both.code === EAFNOSUPPORT
    ? listenAt(socketAddressOf({ host: '0.0.0.0', port: endpoint.port }), options, true)
    : both;
};

/** A file that a program left behind is in the way of the next one; one that somebody listens at is not ours to take. */
const listenOnPath = (path: string, options: ListenOptions): Opened => {
  const address = unixAddress(path);
  // A file of another kind refuses connections too, but is not a program's to replace: binding says EADDRINUSE.
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket() === true) {
    const probe = startConnecting(address);
    if ('fd' in probe) {
      libc().close(probe.fd);
      return { code: 'EADDRINUSE' };
    }
    if (probe.code === 'ECONNREFUSED') unlinkSync(path);
  }
  return listenAt(address, options, true, path);
};

const listenAt = (
  { family, bytes }: SocketAddress,
  options: ListenOptions,
  onlyIPv6: boolean,
  path: string | null = null,
): Opened => {
  const fd = openSocket(family, SOCK_STREAM, 0);
  if (fd === null) return { code: lastErrno() };
  const free =
    family === AF_INET
      ? { level: SOL_IP, name: IP_FREEBIND, value: 1 }
      : { level: SOL_IPV6, name: IPV6_FREEBIND, value: 1 };
  const wanted: Option[] =
    family === AF_UNIX
      ? []
      : [
          { level: SOL_SOCKET, name: SO_REUSEADDR, value: 1 },
          ...(options.reusePort ? [{ level: SOL_SOCKET, name: SO_REUSEPORT, value: 1 }] : []),
          ...(options.freeBind ? [free] : []),
          ...(family === AF_INET6 ? [{ level: SOL_IPV6, name: IPV6_V6ONLY, value: onlyIPv6 ? 1 : 0 }] : []),
          // Accepted connections inherit it: one system call less for each.
          { level: SOL_TCP, name: TCP_NODELAY, value: 1 },
        ];
  const failure =
    setOptions(fd, wanted) ??
    (libc().bind(fd, bytes, bytes.length) < 0 ? lastErrno() : null) ??
    (path === null ? null : applied(path, options.file)) ??
    (libc().listen(fd, options.backlog) < 0 ? lastErrno() : null);
  if (failure === null) return { fd };
  libc().close(fd);
  return { code: failure };
};

/** A socket that the wrong people could connect to, or the right ones couldn't, is not opened. */
const applied = (path: string, file: SocketFile): string | null => {
  try {
    applySocketFile(path, file);
    return null;
  } catch (error) {
    return codeOf(error);
  }
};

const F_DUPFD_CLOEXEC = 1030;

/** Another descriptor of the same socket: a Unix socket has no SO_REUSEPORT, so workers share one. */
export const duplicate = (fd: number): Opened => {
  const copy = libc().fcntl(fd, F_DUPFD_CLOEXEC, 0);
  return copy < 0 ? { code: lastErrno() } : { fd: copy };
};

const PEER = Buffer.alloc(LONGEST_ADDRESS_BYTES);
const PEER_LENGTH = Buffer.alloc(4);

/** One that waits at a listening socket, null when there is none. After it, `acceptedPeer` says who it is. */
export const acceptFrom = (fd: number): { fd: number } | { code: string } | null => {
  PEER_LENGTH.writeInt32LE(PEER.length);
  // oxlint-disable-next-line no-bitwise
  const accepted = libc().accept4(fd, PEER, PEER_LENGTH, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (accepted >= 0) return { fd: accepted };
  return errno() === EAGAIN ? null : { code: lastErrno() };
};

const UNIX_PEER: Peer = { address: 'unix', port: 0 };

export const acceptedPeer = (): Peer => peerOf(PEER);

/** RFC 4291 section 2.5.5.2: what an address of IPv4 begins with at a socket of IPv6. */
const MAPPED = Buffer.from('00000000000000000000ffff', 'hex');

/** IPv4 in IPv6's clothes is IPv4. */
const peerOf = (bytes: Buffer): Peer => {
  const peer = readSocketAddress(bytes);
  if (!peer) return UNIX_PEER;
  const isMapped = bytes.readUInt16LE(0) === AF_INET6 && MAPPED.equals(bytes.subarray(8, 20));
  return isMapped ? { address: addressText(bytes.subarray(20, 24)), port: peer.port } : peer;
};

/** The address that a socket is bound to. */
export const localOf = (fd: number): Peer => {
  const bytes = Buffer.alloc(LONGEST_ADDRESS_BYTES);
  const length = Buffer.alloc(4);
  length.writeInt32LE(bytes.length);
  return libc().getsockname(fd, bytes, length) < 0 ? UNIX_PEER : peerOf(bytes);
};

/** Begins to connect; `connected` when the kernel was done at once, as on loopback. `source` is an address to send from. */
export const startConnecting = (
  { family, bytes }: SocketAddress,
  source?: SocketAddress,
): { fd: number; connected: boolean } | { code: string } => {
  const fd = openSocket(family, SOCK_STREAM, 0);
  if (fd === null) return { code: lastErrno() };
  if (family !== AF_UNIX) setOption(fd, NODELAY);
  if (source && libc().bind(fd, source.bytes, source.bytes.length) < 0) return refuse(fd, lastErrno());
  if (libc().connect(fd, bytes, bytes.length) === 0) return { fd, connected: true };
  return errno() === EINPROGRESS ? { fd, connected: false } : refuse(fd, lastErrno());
};

const refuse = (fd: number, code: string): { code: string } => {
  libc().close(fd);
  return { code };
};

const NODELAY_VALUE = Buffer.from([1, 0, 0, 0]);
const NODELAY: Option = { level: SOL_TCP, name: TCP_NODELAY, value: NODELAY_VALUE };

const ERROR = Buffer.alloc(4);
const ERROR_LENGTH = Buffer.from([4, 0, 0, 0]);

/** What became of a connection that was begun: an errno's name, or null. */
export const connectError = (fd: number): string | null => {
  if (libc().getsockopt(fd, SOL_SOCKET, SO_ERROR, ERROR, ERROR_LENGTH) < 0) return lastErrno();
  const number = ERROR.readInt32LE(0);
  return number === 0 ? null : errnoName(number);
};

/** `struct linger` that is on, with no time. */
const NO_LINGER: Option = { level: SOL_SOCKET, name: SO_LINGER, value: Buffer.from([1, 0, 0, 0, 0, 0, 0, 0]) };

const OUT_QUEUE = Buffer.alloc(4);

/** What was written and the peer has not acknowledged, in bytes. */
export const unacknowledged = (fd: number): number =>
  libc().ioctl(fd, SIOCOUTQ, OUT_QUEUE) === 0 ? OUT_QUEUE.readInt32LE(0) : 0;

/** Closing it then resets the connection. */
export const resetOnClose = (fd: number): void => {
  setOption(fd, NO_LINGER);
};
