/** A packet socket that sends whole Ethernet frames (gratuitous ARP, neighbour advertisements) and receives nothing. */
import { lastErrno, libc } from './libc.ts';
import type { SocketProblem } from './libc.ts';
import { AF_PACKET, SOCK_RAW, openSocket } from './socket.ts';

/** `struct sockaddr_ll` */
const SOCKADDR_LL_BYTES = 20;
const ETHERNET_HEADER_BYTES = 14;
const ETHERTYPE_OFFSET = 12;
const MAC_BYTES = 6;

export class PacketSocket {
  #fd: number;
  #open = true;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  static open(): PacketSocket | SocketProblem {
    // packet(7): with protocol 0 it receives no packets.
    const fd = openSocket(AF_PACKET, SOCK_RAW, 0);
    if (fd !== null) return new PacketSocket(fd);
    const code = lastErrno();
    if (code === 'EPERM' || code === 'EACCES') return { code, message: 'packet sockets take CAP_NET_RAW' };
    return { code, message: `no packet socket (${code})` };
  }

  /** Returns an errno's name, or null. */
  send(interfaceIndex: number, frame: Buffer): string | null {
    if (!this.#open) return 'EBADF';
    if (frame.length < ETHERNET_HEADER_BYTES) return 'EINVAL';
    const to = Buffer.alloc(SOCKADDR_LL_BYTES);
    to.writeUInt16LE(AF_PACKET, 0);
    frame.copy(to, 2, ETHERTYPE_OFFSET, ETHERNET_HEADER_BYTES);
    to.writeInt32LE(interfaceIndex, 4);
    to[11] = MAC_BYTES;
    frame.copy(to, 12, 0, MAC_BYTES);
    return libc().sendto(this.#fd, frame, frame.length, 0, to, to.length) < 0 ? lastErrno() : null;
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    libc().close(this.#fd);
  }
}
