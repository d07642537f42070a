/** A socket of NETLINK_ROUTE. It never blocks: the kernel answers a request before the call that sends it returns. */
import { lastErrno, libc } from './libc.ts';
import type { SocketProblem } from './libc.ts';
import { AF_NETLINK, SOCK_RAW, enlargeReceiveBuffer, openSocket } from './socket.ts';

const NETLINK_ROUTE = 0;
const SOCKADDR_NL_BYTES = 12;
const MSG_TRUNC = 0x20;
/** The kernel's parts of a dump are 32 KiB at most, notifications a few. */
const BUFFER_BYTES = 1 << 16;

let shared: Buffer | null = null;

export class NetlinkSocket {
  readonly fd: number;
  #open = true;

  private constructor(fd: number) {
    this.fd = fd;
  }

  /** `groups`: a mask of the multicast groups to hear. */
  static open(groups: number): NetlinkSocket | SocketProblem {
    const fd = openSocket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (fd === null) return problem(lastErrno());
    enlargeReceiveBuffer(fd);
    const address = kernelAddress();
    address.writeUInt32LE(groups, 8);
    if (libc().bind(fd, address, address.length) === 0) return new NetlinkSocket(fd);
    const code = lastErrno();
    libc().close(fd);
    return problem(code);
  }

  /** Returns an errno's name, or null. */
  send(message: Buffer): string | null {
    if (!this.#open) return 'EBADF';
    const to = kernelAddress();
    return libc().sendto(this.fd, message, message.length, 0, to, to.length) < 0 ? lastErrno() : null;
  }

  /** What the kernel sent, valid until the next call, or an errno's name: EAGAIN when there is nothing more. */
  receive(): Buffer | string {
    if (!this.#open) return 'EBADF';
    const buffer = (shared ??= Buffer.allocUnsafeSlow(BUFFER_BYTES));
    const from = Buffer.alloc(SOCKADDR_NL_BYTES);
    const fromLength = Buffer.alloc(4);
    for (;;) {
      fromLength.writeUInt32LE(from.length);
      const length = libc().recvfrom(this.fd, buffer, buffer.length, MSG_TRUNC, from, fromLength);
      const code = length < 0 ? lastErrno() : null;
      if (code === 'EINTR') continue;
      if (code !== null) return code;
      // Another program's message has its port id; the kernel's is 0.
      if (from.readUInt32LE(4) !== 0) continue;
      return length > buffer.length ? 'EMSGSIZE' : buffer.subarray(0, length);
    }
  }

  get isOpen(): boolean {
    return this.#open;
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    libc().close(this.fd);
  }
}

/** `struct sockaddr_nl` with port id 0. */
const kernelAddress = (): Buffer => {
  const address = Buffer.alloc(SOCKADDR_NL_BYTES);
  address.writeUInt16LE(AF_NETLINK, 0);
  return address;
};

const problem = (code: string): SocketProblem => ({ code, message: `no rtnetlink socket (${code})` });
