/**
 * The VRRP message: version 2 (RFC 3768 section 5.1) and version 3 (RFC 9568 section 5.1), as bytes and as values.
 * What stands behind a message for its authentication is not part of it.
 */
import assert from 'node:assert/strict';
import { ADDRESS_BYTES, addressOf, addressText, checksumOf, foldSum, sumPseudoHeader, sumWords } from './ip.ts';
import type { Family } from './ip.ts';

export type { Family } from './ip.ts';

/** Of version 3 over IPv4: RFC 9568 section 5.2.8 has no pseudo-header, keepalived and FRR send with one. */
export type ChecksumForm = 'rfc9568' | 'pseudoHeader';

export type VrrpMessage = {
  version: 2 | 3;
  vrid: number;
  /** 255 the owner, 0 the master leaves. */
  priority: number;
  /** Version 2: whole seconds up to 255 s. Version 3: a multiple of 10 up to 40950. */
  advertMs: number;
  addresses: string[];
  /** Version 2 (RFC 3768 section 5.3.6): 0 none, 1 pass, 2 ah. Default 0. */
  authenticationType?: number;
  /** Version 2: 8 bytes. Default zeros. */
  authenticationData?: Uint8Array;
};

/** Addresses of the IP packet, whose sum goes into a checksum with pseudo-header. */
export type PseudoHeader = { source: Uint8Array; destination: Uint8Array };

export const PROTOCOL_VRRP = 112;
export const HEADER_BYTES = 8;
/** Version 2 ends with authentication data, whatever its type is (RFC 3768 section 5.3.10). */
export const AUTHENTICATION_DATA_BYTES = 8;

/** The only type that both RFCs know. */
export const TYPE_ADVERTISEMENT = 1;

/** Offsets in a message. */
export const AT = { vrid: 1, priority: 2, count: 3, authenticationType: 4, interval: 4, seconds: 5, checksum: 6 };

/** The upper four bits of version 3's interval are reserved: sent as zero, ignored (RFC 9568 section 5.2.6). */
const INTERVAL_BITS = 0x0fff;

export const messageBytes = (version: 2 | 3, family: Family, count: number): number =>
  HEADER_BYTES + count * ADDRESS_BYTES[family] + (version === 2 ? AUTHENTICATION_DATA_BYTES : 0);

/** The checksum is left zero. */
export const encodeWithoutChecksum = (message: VrrpMessage, family: Family): Buffer => {
  const { version, vrid, priority, advertMs, addresses } = message;
  assert(version === 3 || family === 'ipv4', 'version 2 knows IPv4 only');
  assert(addresses.length <= 255, `${addresses.length} addresses; the count has 8 bits`);
  const bytes = Buffer.alloc(messageBytes(version, family, addresses.length));
  bytes[0] = (version << 4) | TYPE_ADVERTISEMENT;
  bytes[AT.vrid] = vrid;
  bytes[AT.priority] = priority;
  bytes[AT.count] = addresses.length;
  addresses.forEach((text, index) => {
    const address = addressOf(text);
    assert(address.family === family, `${text} in an advert of ${family}`);
    bytes.set(address.bytes, HEADER_BYTES + index * address.bytes.length);
  });
  if (version === 3) {
    const centiseconds = advertMs / 10;
    assert(Number.isInteger(centiseconds) && centiseconds <= INTERVAL_BITS, `version 3 can't say ${advertMs} ms`);
    bytes.writeUInt16BE(centiseconds, AT.interval);
    return bytes;
  }
  const seconds = advertMs / 1000;
  assert(Number.isInteger(seconds) && seconds <= 255, `version 2 can't say ${advertMs} ms`);
  bytes[AT.authenticationType] = message.authenticationType ?? 0;
  bytes[AT.seconds] = seconds;
  if (message.authenticationData) {
    assert(message.authenticationData.length === AUTHENTICATION_DATA_BYTES, 'authentication data are 8 bytes');
    bytes.set(message.authenticationData, bytes.length - AUTHENTICATION_DATA_BYTES);
  }
  return bytes;
};

/** `pseudo` null: a checksum without pseudo-header, which version 2 always has. */
export const encodeMessage = (message: VrrpMessage, family: Family, pseudo: PseudoHeader | null): Buffer => {
  const bytes = encodeWithoutChecksum(message, family);
  writeChecksum(bytes, 0, bytes.length, pseudo);
  return bytes;
};

/** Null unless the length is exactly the one that version and count ask for. The checksum is not looked at. */
export const decodeMessage = (bytes: Uint8Array, family: Family): VrrpMessage | null => {
  if (bytes.length < HEADER_BYTES || (bytes[0]! & 0x0f) !== TYPE_ADVERTISEMENT) return null;
  const version = versionOf(bytes);
  if (version === null || (version === 2 && family === 'ipv6')) return null;
  const count = bytes[AT.count]!;
  if (bytes.length !== messageBytes(version, family, count)) return null;
  const message: VrrpMessage = {
    version,
    vrid: bytes[AT.vrid]!,
    priority: bytes[AT.priority]!,
    advertMs: advertMsOf(bytes, version),
    addresses: addressesOf(bytes, family),
  };
  if (version === 3) return message;
  return {
    ...message,
    authenticationType: bytes[AT.authenticationType]!,
    authenticationData: Buffer.from(bytes.subarray(-AUTHENTICATION_DATA_BYTES)),
  };
};

export const versionOf = (bytes: Uint8Array): 2 | 3 | null => {
  const version = bytes[0]! >> 4;
  return version === 2 || version === 3 ? version : null;
};

export const advertMsOf = (bytes: Uint8Array, version: 2 | 3): number =>
  version === 2
    ? bytes[AT.seconds]! * 1000
    : (((bytes[AT.interval]! << 8) | bytes[AT.interval + 1]!) & INTERVAL_BITS) * 10;

export const addressesOf = (bytes: Uint8Array, family: Family): string[] => {
  const size = ADDRESS_BYTES[family];
  return Array.from({ length: bytes[AT.count]! }, (_, index) => {
    const start = HEADER_BYTES + index * size;
    return addressText(bytes.subarray(start, start + size));
  });
};

/** Over `bytes[start…end)`, a message at `start` with whatever its checksum covers behind it. */
export const writeChecksum = (bytes: Buffer, start: number, end: number, pseudo: PseudoHeader | null): void => {
  bytes.writeUInt16BE(0, start + AT.checksum);
  const sum = sumWords(bytes, start, end) + (pseudo ? sumOf(pseudo, end - start) : 0);
  bytes.writeUInt16BE(checksumOf(sum), start + AT.checksum);
};

export const checksumHolds = (bytes: Uint8Array, end: number, pseudo: PseudoHeader | null): boolean =>
  foldSum(sumWords(bytes, 0, end) + (pseudo ? sumOf(pseudo, end) : 0)) === 0xffff;

const sumOf = ({ source, destination }: PseudoHeader, payloadBytes: number): number =>
  sumPseudoHeader(source, destination, PROTOCOL_VRRP, payloadBytes);
