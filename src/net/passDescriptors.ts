/** Open descriptors from one process to another, over a Unix socket (unix(7), SCM_RIGHTS). */
import assert from 'node:assert/strict';
import { addressOf, lastErrno, libc } from './libc.ts';
import { SOL_SOCKET } from './socket.ts';

const SCM_RIGHTS = 1;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
/** The kernel's SCM_MAX_FD. */
export const MAX_DESCRIPTORS_PER_MESSAGE = 253;
const INT_BYTES = 4;
const MSGHDR_BYTES = 56;
const IOVEC_BYTES = 16;
const CMSGHDR_BYTES = 16;
/** Whole words (CMSG_SPACE). */
const CONTROL_BYTES = CMSGHDR_BYTES + Math.ceil((MAX_DESCRIPTORS_PER_MESSAGE * INT_BYTES) / 8) * 8;
/** What goes with the descriptors says what they are: a line. */
const TEXT_BYTES = 4096;

const CONTROL_START = MSGHDR_BYTES + IOVEC_BYTES;
const TEXT_START = CONTROL_START + CONTROL_BYTES;

/** `struct msghdr` with its iovec, control messages and text, all in one piece of memory. */
const newMessage = (textBytes: number, controlBytes: number): Buffer => {
  const message = Buffer.alloc(TEXT_START + TEXT_BYTES);
  const start = addressOf(message);
  message.writeBigUInt64LE(start + BigInt(MSGHDR_BYTES), 16);
  message.writeBigUInt64LE(1n, 24);
  if (controlBytes > 0) message.writeBigUInt64LE(start + BigInt(CONTROL_START), 32);
  message.writeBigUInt64LE(BigInt(controlBytes), 40);
  message.writeBigUInt64LE(start + BigInt(TEXT_START), MSGHDR_BYTES);
  message.writeBigUInt64LE(BigInt(textBytes), MSGHDR_BYTES + 8);
  return message;
};

/** A line with descriptors, which stay open here too. Returns an errno's name, or null. */
export const sendDescriptors = (socket: number, line: string, descriptors: readonly number[]): string | null => {
  const text = Buffer.from(`${line}\n`);
  assert(text.length <= TEXT_BYTES && descriptors.length <= MAX_DESCRIPTORS_PER_MESSAGE, 'it fits one message');
  const controlBytes = descriptors.length === 0 ? 0 : CMSGHDR_BYTES + descriptors.length * INT_BYTES;
  // CMSG_SPACE: whole words.
  const message = newMessage(text.length, Math.ceil(controlBytes / 8) * 8);
  text.copy(message, TEXT_START);
  if (controlBytes > 0) {
    message.writeBigUInt64LE(BigInt(controlBytes), CONTROL_START);
    message.writeInt32LE(SOL_SOCKET, CONTROL_START + 8);
    message.writeInt32LE(SCM_RIGHTS, CONTROL_START + 12);
    descriptors.forEach((fd, index) => message.writeInt32LE(fd, CONTROL_START + CMSGHDR_BYTES + index * INT_BYTES));
  }
  return libc().sendmsg(socket, message, MSG_NOSIGNAL) < 0 ? lastErrno() : null;
};

/** Waits for the next line, on a socket that blocks. Null at the end, or when none comes within the socket's time limit. */
export const receiveDescriptors = (socket: number): { line: string; descriptors: number[] } | null => {
  const message = newMessage(TEXT_BYTES, CONTROL_BYTES);
  const count = libc().recvmsg(socket, message, MSG_CMSG_CLOEXEC);
  if (count <= 0) return null;
  const descriptors: number[] = [];
  const controlBytes = Number(message.readBigUInt64LE(40));
  if (controlBytes >= CMSGHDR_BYTES && message.readInt32LE(CONTROL_START + 12) === SCM_RIGHTS) {
    const length = Number(message.readBigUInt64LE(CONTROL_START)) - CMSGHDR_BYTES;
    for (let at = 0; at < length; at += INT_BYTES)
      descriptors.push(message.readInt32LE(CONTROL_START + CMSGHDR_BYTES + at));
  }
  return { line: message.toString('utf8', TEXT_START, TEXT_START + count).trimEnd(), descriptors };
};
