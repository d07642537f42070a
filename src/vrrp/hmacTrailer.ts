/**
 * `hmac`: keepalived 2.4's `auth_hmac` (draft-cassen-vrrp-auth-hmac), 28 bytes behind the message. Over IPv4 they are
 * outside of the message's checksum; over IPv6 the kernel's checksum covers the whole payload, and so them too.
 *
 *     0   1  scheme, 1: HMAC-SHA256 cut to 16 bytes
 *     1   1  id of the key
 *     2   2  0
 *     4   4  seconds since 1970  ┐
 *     8   2  1/65536 s           │ one sequence of 64 bits
 *    10   2  counter             ┘
 *    12  16  HMAC
 *
 * The HMAC is over 20 bytes {4 or 6, version, VRID, 0, source left-justified in 16}, the message with its checksum read
 * as zero, the first 12 bytes above, and 16 zero bytes.
 */
import { createHmac, createSecretKey } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { sameBytes } from './authentication.ts';
import type { HmacKey } from './authentication.ts';
import { AT as MESSAGE } from './packet.ts';

export const HMAC_TRAILER_BYTES = 28;
const SCHEME_SHA256 = 1;
const HMAC_BYTES = 16;
const AT = { scheme: 0, key: 1, reserved: 2, sequence: 4, hmac: 12 };
const ZEROS = Buffer.alloc(HMAC_BYTES);

/** keepalived's default of `time_window`: clocks that differ by more make two masters, a replay works for as long. */
export const windowSecondsOf = (advertMs: number): number => Math.max(5, Math.ceil((3 * advertMs) / 1000));

/** The key's bytes, of which there have to be 32–64. */
export const hmacKeyBytes = (secret: string): Buffer => {
  const hex = /^(?:0x|hex:)((?:[0-9a-f]{2})+)$/i.exec(secret);
  return hex ? Buffer.from(hex[1]!, 'hex') : Buffer.from(secret);
};

export const hmacKey = (key: HmacKey): KeyObject => createSecretKey(hmacKeyBytes(key.secret));

const sequenceAt = (wallUs: number): bigint => {
  const seconds = Math.floor(wallUs / 1e6);
  const fraction = Math.floor(((wallUs % 1e6) * 65_536) / 1e6);
  return (BigInt(seconds >>> 0) << 32n) | (BigInt(fraction) << 16n);
};

/** Serial number arithmetic (RFC 1982) of 64 bits. */
export const isAfter = (left: bigint, right: bigint): boolean => BigInt.asIntN(64, left - right) > 0n;

/** Seconds, signed, by which a sequence's time is after a clock's. */
export const secondsAfter = (sequence: bigint, wallUs: number): number =>
  Number(BigInt.asIntN(32, (sequence >> 32n) - BigInt(Math.floor(wallUs / 1e6))));

/**
 * The larger of the clock and the last one plus one. When the clock was set back by more than the window, nobody would
 * accept that any more, so it starts from the clock again.
 */
export const nextSequence = (last: bigint | null, wallUs: number, windowSeconds: number): bigint => {
  const clock = sequenceAt(wallUs);
  if (last === null || isAfter(clock, last) || secondsAfter(last, wallUs) > windowSeconds) return clock;
  return BigInt.asUintN(64, last + 1n);
};

/** Of the sender: family, version, VRID and source address, which are bound into the HMAC. */
export const hmacPseudoHeader = (version: number, vrid: number, source: Uint8Array): Buffer => {
  const header = Buffer.alloc(20);
  header[0] = source.length === 4 ? 4 : 6;
  header[1] = version;
  header[2] = vrid;
  header.set(source, 4);
  return header;
};

/** Signs `bytes[start…end)`, a message with room for the trailer behind it. The message's checksum doesn't matter. */
export const signHmac = (
  bytes: Buffer,
  start: number,
  end: number,
  pseudo: Buffer,
  key: { id: number; object: KeyObject },
  sequence: bigint,
): void => {
  const at = end - HMAC_TRAILER_BYTES;
  bytes[at + AT.scheme] = SCHEME_SHA256;
  bytes[at + AT.key] = key.id;
  bytes.writeUInt16BE(0, at + AT.reserved);
  bytes.writeBigUInt64BE(sequence, at + AT.sequence);
  bytes.set(digestOf(bytes.subarray(start, end), pseudo, key.object), at + AT.hmac);
};

export type HmacTrailer = { keyId: number; sequence: bigint };

/** Of a payload that is long enough; null if the trailer is of a scheme that we don't know. */
export const readHmacTrailer = (payload: Buffer): HmacTrailer | null => {
  const at = payload.length - HMAC_TRAILER_BYTES;
  if (payload[at + AT.scheme] !== SCHEME_SHA256 || payload.readUInt16BE(at + AT.reserved) !== 0) return null;
  return { keyId: payload[at + AT.key]!, sequence: payload.readBigUInt64BE(at + AT.sequence) };
};

export const hmacHolds = (payload: Buffer, pseudo: Buffer, key: KeyObject): boolean =>
  sameBytes(payload.subarray(-HMAC_BYTES), digestOf(payload, pseudo, key));

const digestOf = (payload: Buffer, pseudo: Buffer, key: KeyObject): Buffer =>
  createHmac('sha256', key)
    .update(pseudo)
    .update(payload.subarray(0, MESSAGE.checksum))
    .update(ZEROS.subarray(0, 2))
    .update(payload.subarray(MESSAGE.checksum + 2, payload.length - HMAC_BYTES))
    .update(ZEROS)
    .digest()
    .subarray(0, HMAC_BYTES);
