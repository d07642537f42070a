/** IP addresses as bytes, and the parts of IP that VRRP packets and announcements need. */
import assert from 'node:assert/strict';
import { isIP } from 'node:net';
import ipaddr from 'ipaddr.js';

export type Family = 'ipv4' | 'ipv6';

export type Address = {
  family: Family;
  /** Canonical: RFC 5952, without a zone. */
  text: string;
  /** In network order: 4 or 16. */
  bytes: Buffer;
  /** Fixed-width lower-case hex: comparing two of one family as strings compares them unsigned, in network order. */
  key: string;
};

export const ADDRESS_BYTES: Record<Family, number> = { ipv4: 4, ipv6: 16 };

/** Null if it is no address. A zone is dropped, and an IPv4 address that a dual-stack socket mapped is one of IPv4. */
export const parseAddress = (text: string): Address | null => {
  const zone = text.indexOf('%');
  const bare = zone < 0 ? text : text.slice(0, zone);
  if (isIP(bare) === 0) return null;
  const parsed = ipaddr.process(bare);
  const bytes = Buffer.from(parsed.toByteArray());
  return { family: parsed.kind(), text: parsed.toString(), bytes, key: bytes.toString('hex') };
};

/** Of an address that configuration or kernel gave, which therefore is one. */
export const addressOf = (text: string): Address => {
  const address = parseAddress(text);
  assert(address !== null, `${JSON.stringify(text)} is no IP address`);
  return address;
};

export const addressKey = (address: string): string => addressOf(address).key;

export const addressText = (bytes: Uint8Array): string => ipaddr.fromByteArray([...bytes]).toString();

/** fe80::/10 (RFC 4291 section 2.5.6). */
export const isLinkLocal = (bytes: Uint8Array, start: number): boolean =>
  bytes[start] === 0xfe && (bytes[start + 1]! & 0xc0) === 0x80;

/** Addresses that one link sees; whoever forges more sources must not grow the memory. */
const MAX_REMEMBERED = 1024;

/** Parses each address once: adverts come every 10 ms from the same few. */
export class AddressBook {
  readonly #known = new Map<string, Address | null>();

  get(text: string): Address | null {
    const known = this.#known.get(text);
    if (known !== undefined) return known;
    if (this.#known.size >= MAX_REMEMBERED) this.#known.clear();
    const address = parseAddress(text);
    this.#known.set(text, address);
    return address;
  }
}

/** Sum of 16-bit words, not folded yet; an odd last byte counts as the high one (RFC 1071). */
export const sumWords = (bytes: Uint8Array, start: number, end: number): number => {
  let sum = 0;
  let at = start;
  for (; at + 1 < end; at += 2) sum += (bytes[at]! << 8) | bytes[at + 1]!;
  return at < end ? sum + (bytes[at]! << 8) : sum;
};

export const foldSum = (sum: number): number => {
  const once = (sum & 0xffff) + Math.floor(sum / 0x10000);
  const twice = (once & 0xffff) + (once >>> 16);
  return (twice & 0xffff) + (twice >>> 16);
};

/** What makes the words, with the field that it is written to, add up to 0xffff. */
export const checksumOf = (sum: number): number => ~foldSum(sum) & 0xffff;

/** Of IPv4 and IPv6 alike: zero words don't count (RFC 9293 section 3.1, RFC 8200 section 8.1). */
export const sumPseudoHeader = (
  source: Uint8Array,
  destination: Uint8Array,
  protocol: number,
  payloadBytes: number,
): number =>
  sumWords(source, 0, source.length) + sumWords(destination, 0, destination.length) + protocol + payloadBytes;

export const IPV4_HEADER_BYTES = 20;

/** Offsets in an IPv4 header (RFC 791 section 3.1). */
export const IPV4 = { tos: 1, totalLength: 2, id: 4, fragment: 6, ttl: 8, protocol: 9, checksum: 10, source: 12 };
const DESTINATION = 16;

/** Internetwork control (RFC 791 section 3.1), as keepalived sends it. */
export const TOS = 0xc0;
export const TTL = 255;

/** Without id, destination and checksum. No fragment flag is set, as keepalived has it. */
export const writeIpv4Header = (packet: Buffer, protocol: number, source: Uint8Array): void => {
  packet[0] = 0x45;
  packet[IPV4.tos] = TOS;
  packet.writeUInt16BE(packet.length, IPV4.totalLength);
  packet.writeUInt16BE(0, IPV4.fragment);
  packet[IPV4.ttl] = TTL;
  packet[IPV4.protocol] = protocol;
  packet.set(source, IPV4.source);
};

export const addressIpv4Header = (packet: Buffer, id: number, destination: Uint8Array): void => {
  packet.writeUInt16BE(id, IPV4.id);
  packet.set(destination, DESTINATION);
};

export const finishIpv4Header = (packet: Buffer): void => {
  packet.writeUInt16BE(0, IPV4.checksum);
  packet.writeUInt16BE(checksumOf(sumWords(packet, 0, IPV4_HEADER_BYTES)), IPV4.checksum);
};
