/** `struct sockaddr_in` and `sockaddr_in6`. Text is in the form of RFC 5952, without a zone. */
import ipaddr from 'ipaddr.js';
import { AF_INET, AF_INET6 } from './socket.ts';

const SOCKADDR_IN_BYTES = 16;
const SOCKADDR_IN6_BYTES = 28;

/** The zone goes into `sin6_scope_id`; the kernel heeds it for link-local addresses only. */
export const writeSocketAddress = (address: string, port: number, interfaceIndex = 0): Buffer => {
  const parsed = ipaddr.parse(address);
  const family = parsed.kind();
  const bytes = Buffer.alloc(family === 'ipv4' ? SOCKADDR_IN_BYTES : SOCKADDR_IN6_BYTES);
  bytes.writeUInt16LE(family === 'ipv4' ? AF_INET : AF_INET6, 0);
  bytes.writeUInt16BE(port, 2);
  bytes.set(parsed.toByteArray(), family === 'ipv4' ? 4 : 8);
  if (family === 'ipv6') bytes.writeUInt32LE(interfaceIndex, 24);
  return bytes;
};

/** Null when it is of another family. */
export const readSocketAddress = (bytes: Buffer): { address: string; port: number } | null => {
  const domain = bytes.length < SOCKADDR_IN_BYTES ? 0 : bytes.readUInt16LE(0);
  if (domain === AF_INET) return { address: addressText(bytes.subarray(4, 8)), port: bytes.readUInt16BE(2) };
  if (domain !== AF_INET6 || bytes.length < SOCKADDR_IN6_BYTES) return null;
  return { address: addressText(bytes.subarray(8, 24)), port: bytes.readUInt16BE(2) };
};

/** Of 4 or 16 bytes. */
export const addressText = (bytes: Buffer): string =>
  bytes.length === 4
    ? `${bytes[0]}.${bytes[1]}.${bytes[2]}.${bytes[3]}`
    : new ipaddr.IPv6([...bytes]).toRFC5952String();

export const addressBytes = (address: string): Buffer => Buffer.from(ipaddr.parse(address).toByteArray());
