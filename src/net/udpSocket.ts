/** UDP sockets for adverts between listed peers. Without a privilege, unless the port is below 1024. */
import ipaddr from 'ipaddr.js';
import { Inbox } from './inbox.ts';
import type { ReceivedWithPort } from './inbox.ts';
import { lastErrno, libc } from './libc.ts';
import type { SocketProblem } from './libc.ts';
import type { Poller } from './poller.ts';
import {
  AF_INET,
  AF_INET6,
  SOCK_DGRAM,
  SOL_IPV6,
  advertOptions,
  bindToDevice,
  enlargeReceiveBuffer,
  noInterface,
  openSocket,
  setOptions,
} from './socket.ts';
import { readSocketAddress, writeSocketAddress } from './socketAddress.ts';

const IPV6_V6ONLY = 26;
const SOCKADDR_BYTES = 28;

export type UdpSocketOptions = {
  /** An address, no name. */
  host: string;
  /** 0: the kernel chooses. */
  port: number;
  interfaceName?: string | null;
  poller: Poller;
  onPacket: (packet: ReceivedWithPort) => void;
};

export class UdpSocket {
  readonly port: number;
  #fd: number;
  #interfaceIndex: number;
  #inbox: Inbox;

  private constructor(fd: number, port: number, interfaceIndex: number, o: UdpSocketOptions) {
    this.port = port;
    this.#fd = fd;
    this.#interfaceIndex = interfaceIndex;
    this.#inbox = new Inbox(fd, o.poller, false, o.onPacket);
  }

  static open(o: UdpSocketOptions): UdpSocket | SocketProblem {
    if (!ipaddr.isValid(o.host)) return problem('EINVAL', o);
    const family = ipaddr.parse(o.host).kind();
    const interfaceName = o.interfaceName ?? null;
    const interfaceIndex = interfaceName === null ? 0 : libc().if_nametoindex(interfaceName);
    if (interfaceName !== null && interfaceIndex === 0) return noInterface(interfaceName);
    const fd = openSocket(family === 'ipv4' ? AF_INET : AF_INET6, SOCK_DGRAM, 0);
    if (fd === null) return problem(lastErrno(), o);
    enlargeReceiveBuffer(fd);
    const options = advertOptions(family);
    if (family === 'ipv6') options.push({ level: SOL_IPV6, name: IPV6_V6ONLY, value: 1 });
    const code =
      (interfaceName === null ? null : bindToDevice(fd, interfaceName)) ??
      setOptions(fd, options) ??
      bindTo(fd, writeSocketAddress(o.host, o.port, interfaceIndex));
    if (code === null) return new UdpSocket(fd, boundPort(fd), interfaceIndex, o);
    libc().close(fd);
    return problem(code, o);
  }

  /** `destination` is an address of the family of `host`. Returns an errno's name, or null. */
  send(payload: Buffer, destination: string, port: number): string | null {
    if (!this.#inbox.isOpen) return 'EBADF';
    const to = writeSocketAddress(destination, port, this.#interfaceIndex);
    const sent = libc().sendto(this.#fd, payload, payload.length, 0, to, to.length);
    return sent < 0 ? lastErrno() : null;
  }

  /** Delivers all that has arrived, 256 packets at most. */
  drain(): void {
    this.#inbox.drain();
  }

  close(): void {
    this.#inbox.close();
  }
}

const bindTo = (fd: number, address: Buffer): string | null =>
  libc().bind(fd, address, address.length) < 0 ? lastErrno() : null;

const boundPort = (fd: number): number => {
  const address = Buffer.alloc(SOCKADDR_BYTES);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(address.length);
  libc().getsockname(fd, address, length);
  return readSocketAddress(address.subarray(0, length.readUInt32LE(0)))!.port;
};

const problem = (code: string, o: UdpSocketOptions): SocketProblem => {
  const reasons: Record<string, string> = {
    EINVAL: `${o.host} is no address`,
    EADDRNOTAVAIL: `this machine has no address ${o.host}`,
    EADDRINUSE: `another program has UDP port ${o.port} of ${o.host}`,
    EACCES: 'ports below 1024 take CAP_NET_BIND_SERVICE',
    EPERM: `binding to interface ${o.interfaceName} takes CAP_NET_RAW`,
    ENODEV: noInterface(o.interfaceName ?? '').message,
  };
  return { code, message: reasons[code] ?? `no UDP socket on ${o.host} port ${o.port} (${code})` };
};
