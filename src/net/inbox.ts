/**
 * The receiving side of a socket for adverts: each packet with what the kernel tells of it. Receiving never blocks and
 * happens on the main thread alone, so all sockets share one buffer.
 */
import { addressOf, lastErrno, libc } from './libc.ts';
import type { Poller } from './poller.ts';
import { SOL_IP, SOL_IPV6, SOL_SOCKET } from './socket.ts';
import { addressText, readSocketAddress } from './socketAddress.ts';

export type Received = {
  source: string;
  /** As addressed by the sender: the multicast group, or an address of ours. Empty if the kernel did not tell. */
  destination: string;
  /** Or hop limit. Null if the kernel did not tell. */
  ttl: number | null;
  /** On which it arrived; 0 if the kernel did not tell. */
  interfaceIndex: number;
  /** The IPv4 header with its options; null in IPv6 and UDP. */
  header: Buffer | null;
  payload: Buffer;
  /** The kernel's receive time: wall clock, µs. */
  arrivedUs: number;
};

export type ReceivedWithPort = Received & { sourcePort: number };

/** A flood must not hold the loop: what is left makes the descriptor readable again. */
const PACKETS_PER_DRAIN = 256;

const SCM_TIMESTAMPNS = 35;
const IP_TTL = 2;
const IP_PKTINFO = 8;
const IPV6_PKTINFO = 50;
const IPV6_HOPLIMIT = 52;
const MSG_TRUNC = 0x20;

const IPV4_HEADER_BYTES = 20;
const CMSG_HEADER_BYTES = 16;

/** `struct msghdr` followed by its `iovec`, the sender's address, the control messages and the packet. */
const NAME_OFFSET = 80;
const NAME_BYTES = 32;
const CONTROL_OFFSET = NAME_OFFSET + NAME_BYTES;
const CONTROL_BYTES = 256;
const DATA_OFFSET = CONTROL_OFFSET + CONTROL_BYTES;
/** More than IP can carry, so that nothing is cut off. */
const DATA_BYTES = 1 << 16;

const MSGHDR = { name: 0, nameLength: 8, iov: 16, iovCount: 24, control: 32, controlLength: 40, flags: 48, iovec: 56 };

let shared: Buffer | null = null;

const openMessage = (): Buffer => {
  const message = Buffer.allocUnsafeSlow(DATA_OFFSET + DATA_BYTES).fill(0);
  const start = addressOf(message);
  message.writeBigUInt64LE(start + BigInt(NAME_OFFSET), MSGHDR.name);
  message.writeBigUInt64LE(start + BigInt(MSGHDR.iovec), MSGHDR.iov);
  message.writeBigUInt64LE(1n, MSGHDR.iovCount);
  message.writeBigUInt64LE(start + BigInt(CONTROL_OFFSET), MSGHDR.control);
  message.writeBigUInt64LE(start + BigInt(DATA_OFFSET), MSGHDR.iovec);
  message.writeBigUInt64LE(BigInt(DATA_BYTES), MSGHDR.iovec + 8);
  return message;
};

export class Inbox {
  #fd: number;
  #withHeader: boolean;
  #onPacket: (packet: ReceivedWithPort) => void;
  #unwatch: () => void;
  #open = true;
  #draining = false;

  /** Takes the descriptor over. `withHeader`: packets begin with an IPv4 header, as a raw IPv4 socket delivers them. */
  constructor(fd: number, poller: Poller, withHeader: boolean, onPacket: (packet: ReceivedWithPort) => void) {
    this.#fd = fd;
    this.#withHeader = withHeader;
    this.#onPacket = onPacket;
    this.#unwatch = poller.watch(fd, () => this.drain());
  }

  /** Delivers what has arrived. Called by `onPacket` itself it does nothing: the drain under way goes on after it. */
  drain(): void {
    if (this.#draining) return;
    this.#draining = true;
    try {
      for (let count = 0; this.#open && count < PACKETS_PER_DRAIN; count++) {
        const length = receive(this.#fd);
        if (length === null) break;
        const packet = readPacket(shared!, length, this.#withHeader);
        if (packet) this.#onPacket(packet);
      }
    } finally {
      this.#draining = false;
    }
  }

  get isOpen(): boolean {
    return this.#open;
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#unwatch();
    libc().close(this.#fd);
  }
}

/** Into the shared message. Null when there is nothing to read. */
const receive = (fd: number): number | null => {
  const message = (shared ??= openMessage());
  for (;;) {
    message.writeUInt32LE(NAME_BYTES, MSGHDR.nameLength);
    message.writeBigUInt64LE(BigInt(CONTROL_BYTES), MSGHDR.controlLength);
    const length = libc().recvmsg(fd, message, 0);
    if (length >= 0) return length;
    // EAGAIN, or what has happened to the socket (ENETDOWN): reading it has taken it away, and link events tell it too.
    if (lastErrno() !== 'EINTR') return null;
  }
};

/** Null for what isn't whole. */
const readPacket = (message: Buffer, length: number, withHeader: boolean): ReceivedWithPort | null => {
  // oxlint-disable-next-line no-bitwise
  if (message.readInt32LE(MSGHDR.flags) & MSG_TRUNC) return null;
  const nameLength = Math.min(message.readUInt32LE(MSGHDR.nameLength), NAME_BYTES);
  const from = readSocketAddress(message.subarray(NAME_OFFSET, NAME_OFFSET + nameLength));
  if (!from) return null;
  // A copy: the next packet overwrites the shared buffer.
  const data = Buffer.from(message.subarray(DATA_OFFSET, DATA_OFFSET + length));
  const controlLength = Math.min(Number(message.readBigUInt64LE(MSGHDR.controlLength)), CONTROL_BYTES);
  const told = readControl(message.subarray(CONTROL_OFFSET, CONTROL_OFFSET + controlLength));
  const packet = { source: from.address, sourcePort: from.port, ...told };
  if (!withHeader) return { ...packet, header: null, payload: data };

  // RFC 791 section 3.1: the low half of the first byte is the header's length in 32-bit words.
  const headerLength = data.length < IPV4_HEADER_BYTES ? 0 : (data[0]! % 16) * 4;
  if (headerLength < IPV4_HEADER_BYTES || headerLength > data.length) return null;
  return {
    ...packet,
    destination: addressText(data.subarray(16, 20)),
    ttl: data[8]!,
    header: data.subarray(0, headerLength),
    payload: data.subarray(headerLength),
  };
};

type Told = Pick<Received, 'destination' | 'ttl' | 'interfaceIndex' | 'arrivedUs'>;

/** cmsg(3): each message has length, level and type, and begins at a multiple of 8. */
const readControl = (control: Buffer): Told => {
  const told: Told = { destination: '', ttl: null, interfaceIndex: 0, arrivedUs: 0 };
  for (let offset = 0; offset + CMSG_HEADER_BYTES <= control.length;) {
    const length = Number(control.readBigUInt64LE(offset));
    if (length < CMSG_HEADER_BYTES || offset + length > control.length) break;
    const level = control.readInt32LE(offset + 8);
    const type = control.readInt32LE(offset + 12);
    readControlMessage(level, type, control.subarray(offset + CMSG_HEADER_BYTES, offset + length), told);
    offset += Math.ceil(length / 8) * 8;
  }
  if (told.arrivedUs === 0) told.arrivedUs = Date.now() * 1000;
  return told;
};

const readControlMessage = (level: number, type: number, data: Buffer, told: Told): void => {
  if (level === SOL_SOCKET && type === SCM_TIMESTAMPNS && data.length >= 16) {
    told.arrivedUs = Number(data.readBigInt64LE(0)) * 1_000_000 + Math.floor(Number(data.readBigInt64LE(8)) / 1000);
  } else if (level === SOL_IP && type === IP_PKTINFO && data.length >= 12) {
    told.interfaceIndex = data.readInt32LE(0);
    told.destination = addressText(data.subarray(8, 12));
  } else if (level === SOL_IP && type === IP_TTL && data.length >= 4) {
    told.ttl = data.readInt32LE(0);
  } else if (level === SOL_IPV6 && type === IPV6_PKTINFO && data.length >= 20) {
    told.destination = addressText(data.subarray(0, 16));
    told.interfaceIndex = data.readInt32LE(16);
  } else if (level === SOL_IPV6 && type === IPV6_HOPLIMIT && data.length >= 4) {
    told.ttl = data.readInt32LE(0);
  }
};
