/** Messages and attributes of netlink(7) and rtnetlink(7). */
import assert from 'node:assert/strict';

export const NLM_F_REQUEST = 1;
export const NLM_F_ACK = 4;
/** NLM_F_ROOT and NLM_F_MATCH. */
export const NLM_F_DUMP = 0x300;
export const NLM_F_REPLACE = 0x100;
export const NLM_F_EXCL = 0x200;
export const NLM_F_CREATE = 0x400;
export const NLM_F_DUMP_INTR = 0x10;

export const NLMSG_ERROR = 2;
export const NLMSG_DONE = 3;

const HEADER_BYTES = 16;
const ATTRIBUTE_HEADER_BYTES = 4;
/** Without NLA_F_NESTED and NLA_F_NET_BYTEORDER. */
const TYPE_VALUES = 0x4000;

/** `body` lies in the buffer that was read. */
export type NetlinkMessage = { type: number; flags: number; sequence: number; body: Buffer };

const align = (length: number): number => Math.ceil(length / 4) * 4;

export const writeMessage = (type: number, flags: number, sequence: number, body: Buffer): Buffer => {
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt32LE(HEADER_BYTES + body.length, 0);
  header.writeUInt16LE(type, 4);
  header.writeUInt16LE(flags, 6);
  header.writeUInt32LE(sequence, 8);
  return Buffer.concat([header, body]);
};

export const readMessages = (bytes: Buffer): NetlinkMessage[] => {
  const messages: NetlinkMessage[] = [];
  for (let offset = 0; offset + HEADER_BYTES <= bytes.length;) {
    const length = bytes.readUInt32LE(offset);
    if (length < HEADER_BYTES || offset + length > bytes.length) break;
    messages.push({
      type: bytes.readUInt16LE(offset + 4),
      flags: bytes.readUInt16LE(offset + 6),
      sequence: bytes.readUInt32LE(offset + 8),
      body: bytes.subarray(offset + HEADER_BYTES, offset + length),
    });
    offset += align(length);
  }
  return messages;
};

/** A number is an unsigned int of 32 bits, a text ends with a zero, a list is nested. */
export const attribute = (type: number, value: number | string | Buffer | Buffer[]): Buffer => {
  const bytes = valueBytes(value);
  const length = ATTRIBUTE_HEADER_BYTES + bytes.length;
  assert(length <= 0xffff, `a netlink attribute of ${length} bytes`);
  const whole = Buffer.alloc(align(length));
  whole.writeUInt16LE(length, 0);
  whole.writeUInt16LE(type, 2);
  bytes.copy(whole, ATTRIBUTE_HEADER_BYTES);
  return whole;
};

const valueBytes = (value: number | string | Buffer | Buffer[]): Buffer => {
  if (Array.isArray(value)) return Buffer.concat(value);
  if (typeof value === 'string') return Buffer.from(`${value}\0`);
  if (Buffer.isBuffer(value)) return value;
  const int = Buffer.alloc(4);
  int.writeUInt32LE(value);
  return int;
};

export const readAttributes = (bytes: Buffer): Map<number, Buffer> => {
  const attributes = new Map<number, Buffer>();
  for (let offset = 0; offset + ATTRIBUTE_HEADER_BYTES <= bytes.length;) {
    const length = bytes.readUInt16LE(offset);
    if (length < ATTRIBUTE_HEADER_BYTES || offset + length > bytes.length) break;
    const type = bytes.readUInt16LE(offset + 2) % TYPE_VALUES;
    attributes.set(type, bytes.subarray(offset + ATTRIBUTE_HEADER_BYTES, offset + length));
    offset += align(length);
  }
  return attributes;
};

/** Without the zero at its end. */
export const attributeText = (value: Buffer): string => {
  const end = value.indexOf(0);
  return value.toString('utf8', 0, end < 0 ? value.length : end);
};
