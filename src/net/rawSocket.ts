/** Raw sockets for VRRP (protocol 112) and AH (51). */
import { Inbox } from './inbox.ts';
import type { Received } from './inbox.ts';
import { addressOf, lastErrno, libc } from './libc.ts';
import type { SocketProblem } from './libc.ts';
import type { Poller } from './poller.ts';
import {
  AF_INET,
  AF_INET6,
  SOCK_RAW,
  SOL_IP,
  SOL_IPV6,
  advertOptions,
  bindToDevice,
  enlargeReceiveBuffer,
  noInterface,
  openSocket,
  setOptions,
} from './socket.ts';
import type { Option } from './socket.ts';
import { addressBytes, writeSocketAddress } from './socketAddress.ts';

export type { Received } from './inbox.ts';

const IP_HDRINCL = 3;
const IP_MULTICAST_IF = 32;
const IP_MULTICAST_TTL = 33;
const IP_MULTICAST_LOOP = 34;
const IP_ADD_MEMBERSHIP = 35;
const IP_MULTICAST_ALL = 49;
const IPV6_MULTICAST_IF = 17;
const IPV6_MULTICAST_HOPS = 18;
const IPV6_MULTICAST_LOOP = 19;
const IPV6_JOIN_GROUP = 20;
const IPV6_MULTICAST_ALL = 29;
const IPV6_PKTINFO = 50;
const IPV6_FREEBIND = 78;

/** RFC 9568 sections 5.1.1.3 and 5.1.2.3. */
const TTL = 255;

const MSGHDR_BYTES = 56;
const IOVEC_BYTES = 16;
const CMSG_HEADER_BYTES = 16;
const IN6_PKTINFO_BYTES = 20;
/** CMSG_SPACE: a multiple of 8. */
const CONTROL_BYTES = CMSG_HEADER_BYTES + 24;

export type RawSocketOptions = {
  family: 'ipv4' | 'ipv6';
  protocol: number;
  interfaceName: string;
  interfaceIndex: number;
  /** A multicast group to join on that interface. */
  group: string | null;
  poller: Poller;
  onPacket: (packet: Received) => void;
};

export class RawSocket {
  #family: 'ipv4' | 'ipv6';
  #fd: number;
  #interfaceIndex: number;
  #inbox: Inbox;

  private constructor(fd: number, o: RawSocketOptions) {
    this.#family = o.family;
    this.#fd = fd;
    this.#interfaceIndex = o.interfaceIndex;
    this.#inbox = new Inbox(fd, o.poller, o.family === 'ipv4', o.onPacket);
  }

  static open(o: RawSocketOptions): RawSocket | SocketProblem {
    const indexNow = libc().if_nametoindex(o.interfaceName);
    if (indexNow === 0) return noInterface(o.interfaceName);
    if (indexNow !== o.interfaceIndex) {
      return { code: 'ENODEV', message: `interface ${o.interfaceName} is another one by now: index ${indexNow}` };
    }
    const fd = openSocket(o.family === 'ipv4' ? AF_INET : AF_INET6, SOCK_RAW, o.protocol);
    if (fd === null) return problem(lastErrno(), o);
    enlargeReceiveBuffer(fd);
    // Bound before the group is joined, so that nothing of another interface is waiting when the first look is taken.
    const code = bindToDevice(fd, o.interfaceName) ?? setOptions(fd, optionsOf(o));
    if (code === null) return new RawSocket(fd, o);
    libc().close(fd);
    return problem(code, o);
  }

  /**
   * IPv4: a whole packet with its header, of which the kernel fills in length, checksum, and id and source when zero.
   * IPv6: the payload; `source` should be an address of ours. Returns an errno's name, or null.
   */
  send(packet: Buffer, destination: string, { source }: { source?: string } = {}): string | null {
    if (!this.#inbox.isOpen) return 'EBADF';
    const to = writeSocketAddress(destination, 0, this.#interfaceIndex);
    const sent =
      this.#family === 'ipv6' && source !== undefined
        ? this.#sendFrom(source, packet, to)
        : libc().sendto(this.#fd, packet, packet.length, 0, to, to.length);
    return sent < 0 ? lastErrno() : null;
  }

  /** Delivers all that has arrived, 256 packets at most. */
  drain(): void {
    this.#inbox.drain();
  }

  close(): void {
    this.#inbox.close();
  }

  /** RFC 3542 section 6.2: IPV6_PKTINFO chooses source and interface. */
  #sendFrom(source: string, payload: Buffer, to: Buffer): number {
    const controlOffset = MSGHDR_BYTES + IOVEC_BYTES;
    const nameOffset = controlOffset + CONTROL_BYTES;
    const payloadOffset = nameOffset + to.length;
    const message = Buffer.allocUnsafeSlow(payloadOffset + payload.length).fill(0, 0, payloadOffset);
    const start = addressOf(message);
    message.writeBigUInt64LE(start + BigInt(nameOffset), 0);
    message.writeUInt32LE(to.length, 8);
    message.writeBigUInt64LE(start + BigInt(MSGHDR_BYTES), 16);
    message.writeBigUInt64LE(1n, 24);
    message.writeBigUInt64LE(start + BigInt(controlOffset), 32);
    message.writeBigUInt64LE(BigInt(CONTROL_BYTES), 40);
    message.writeBigUInt64LE(start + BigInt(payloadOffset), MSGHDR_BYTES);
    message.writeBigUInt64LE(BigInt(payload.length), MSGHDR_BYTES + 8);
    message.writeBigUInt64LE(BigInt(CMSG_HEADER_BYTES + IN6_PKTINFO_BYTES), controlOffset);
    message.writeInt32LE(SOL_IPV6, controlOffset + 8);
    message.writeInt32LE(IPV6_PKTINFO, controlOffset + 12);
    addressBytes(source).copy(message, controlOffset + CMSG_HEADER_BYTES);
    message.writeInt32LE(this.#interfaceIndex, controlOffset + CMSG_HEADER_BYTES + 16);
    to.copy(message, nameOffset);
    payload.copy(message, payloadOffset);
    return libc().sendmsg(this.#fd, message, 0);
  }
}

/** Own packets must not come back, and nothing of groups that other programs have joined. */
const optionsOf = ({ family, group, interfaceIndex }: RawSocketOptions): Option[] => {
  const options = advertOptions(family);
  if (family === 'ipv4') {
    options.push(
      { level: SOL_IP, name: IP_HDRINCL, value: 1 },
      { level: SOL_IP, name: IP_MULTICAST_ALL, value: 0 },
      { level: SOL_IP, name: IP_MULTICAST_LOOP, value: 0 },
      { level: SOL_IP, name: IP_MULTICAST_TTL, value: TTL },
      { level: SOL_IP, name: IP_MULTICAST_IF, value: groupRequest('0.0.0.0', interfaceIndex) },
    );
    if (group !== null) {
      options.push({ level: SOL_IP, name: IP_ADD_MEMBERSHIP, value: groupRequest(group, interfaceIndex) });
    }
    return options;
  }
  options.push(
    { level: SOL_IPV6, name: IPV6_MULTICAST_ALL, value: 0 },
    { level: SOL_IPV6, name: IPV6_MULTICAST_LOOP, value: 0 },
    { level: SOL_IPV6, name: IPV6_MULTICAST_HOPS, value: TTL },
    { level: SOL_IPV6, name: IPV6_MULTICAST_IF, value: interfaceIndex },
    // A macvlan sends from its parent's address, which is not its own.
    { level: SOL_IPV6, name: IPV6_FREEBIND, value: 1 },
  );
  if (group !== null) {
    options.push({ level: SOL_IPV6, name: IPV6_JOIN_GROUP, value: groupRequest(group, interfaceIndex) });
  }
  return options;
};

/** `struct ip_mreqn` (whose second address is unused when there is an index), or `ipv6_mreq`. */
const groupRequest = (group: string, interfaceIndex: number): Buffer => {
  const address = addressBytes(group);
  const indexOffset = address.length === 4 ? 8 : 16;
  const bytes = Buffer.alloc(indexOffset + 4);
  address.copy(bytes);
  bytes.writeInt32LE(interfaceIndex, indexOffset);
  return bytes;
};

const problem = (code: string, o: RawSocketOptions): SocketProblem => {
  if (code === 'EPERM' || code === 'EACCES') return { code, message: 'raw sockets take CAP_NET_RAW' };
  if (code === 'ENODEV' || code === 'ENXIO') return noInterface(o.interfaceName);
  return { code, message: `no raw ${o.family} socket on ${o.interfaceName} (${code})` };
};
