/**
 * `ah`: an IP Authentication Header (RFC 2402) between IPv4 header and message, as keepalived builds it.
 *
 *     0   1  next header, 112
 *     1   1  length in 32-bit words less 2, 4
 *     2   2  reserved, 0
 *     4   4  SPI: the source address
 *     8   4  sequence
 *    12  12  the first 12 bytes of HMAC-MD5 over the whole packet
 *
 * Under the HMAC, TOS, fragment field, header checksum and the 12 bytes themselves read as zero; so does the TTL in
 * unicast, while in multicast it counts (RFC 2402 section 3.3.3.1.1.1 has it mutable; keepalived pins it to 255).
 */
import { createHmac } from 'node:crypto';
import { authenticationData, sameBytes } from './authentication.ts';
import { IPV4 } from './ip.ts';
import { PROTOCOL_VRRP } from './packet.ts';

export const PROTOCOL_AH = 51;
export const AH_BYTES = 24;
const PAYLOAD_LENGTH = 4;
const ICV_BYTES = 12;
const AT = { next: 0, length: 1, spi: 4, sequence: 8, icv: 12 };

export const ahKey = authenticationData;

export const startsWithAh = (payload: Uint8Array): boolean =>
  payload.length >= AH_BYTES && payload[AT.next] === PROTOCOL_VRRP && payload[AT.length] === PAYLOAD_LENGTH;

/** All but sequence and ICV. */
export const writeAh = (packet: Buffer, at: number, source: Uint8Array): void => {
  packet.fill(0, at, at + AH_BYTES);
  packet[at + AT.next] = PROTOCOL_VRRP;
  packet[at + AT.length] = PAYLOAD_LENGTH;
  packet.set(source, at + AT.spi);
};

/** Signs a packet that is complete but for the checksum of its IPv4 header. */
export const signAh = (packet: Buffer, at: number, sequence: number, key: Buffer, ttlCounts: boolean): void => {
  packet.writeUInt32BE(sequence, at + AT.sequence);
  packet.set(icvOf(packet, at, key, ttlCounts), at + AT.icv);
};

export const ahSequenceOf = (payload: Uint8Array): number =>
  Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength).readUInt32BE(AT.sequence);

/** `header` is the IPv4 header as it was received, `payload` what stands behind it. */
export const ahHolds = (header: Uint8Array, payload: Uint8Array, key: Buffer, ttlCounts: boolean): boolean => {
  const packet = Buffer.concat([header, payload]);
  const spi = packet.subarray(header.length + AT.spi, header.length + AT.spi + 4);
  const source = packet.subarray(IPV4.source, IPV4.source + 4);
  const icv = payload.subarray(AT.icv, AT.icv + ICV_BYTES);
  return sameBytes(icv, icvOf(packet, header.length, key, ttlCounts)) && spi.equals(source);
};

const icvOf = (packet: Buffer, at: number, key: Buffer, ttlCounts: boolean): Buffer => {
  const read = Buffer.from(packet);
  read[IPV4.tos] = 0;
  read.fill(0, IPV4.fragment, IPV4.fragment + 2);
  if (!ttlCounts) read[IPV4.ttl] = 0;
  read.fill(0, IPV4.checksum, IPV4.checksum + 2);
  read.fill(0, at + AT.icv, at + AT.icv + ICV_BYTES);
  return createHmac('md5', key).update(read).digest().subarray(0, ICV_BYTES);
};
