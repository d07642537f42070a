/**
 * `sealed`: our own format, among Understudy nodes. The message is encrypted and authenticated with AES-256-GCM; it
 * takes the place of the VRRP message, in version 2 and 3, over IPv4, IPv6 and UDP.
 *
 *     0   1  version (4 bits), type 15 (4 bits): others have to discard a type they don't know (RFC 9568 section 5.2.2)
 *     1   1  VRID
 *     2   1  format of the seal, 1
 *     3   1  0
 *     4   1  4 or 6: family
 *     5   1  0
 *     6   2  checksum as of a version 3 message, over all of this. Not authenticated: the kernel writes it over IPv6
 *     8  16  sender: of SHA-256 over node name, 0 and source address, the first 16 bytes
 *    24  16  salt: random, of each start of a sender
 *    40   8  counter: greater with every packet of a sender, also after a restart
 *    48   n  ciphertext of the message from its third byte on (priority, count, …), its checksum zero
 *  48+n  16  tag
 *
 * Key: HKDF-SHA256 of the secret with the salt, 32 bytes. So every start of every sender has a key of its own, under
 * which the nonce (4 zero bytes, counter) can't repeat, even should a counter have been lost.
 * Additional data: bytes 0–47 with the checksum read as zero, then the source address of the IP packet, left-justified
 * in 16 bytes. Over UDP those are zero, because NAT changes it.
 * A receiver remembers the greatest counter by sender, not by salt: packets of an earlier start are repeats as well.
 */
import { createCipheriv, createDecipheriv, createHash, hkdfSync, randomBytes } from 'node:crypto';
import { AT as MESSAGE } from './packet.ts';
import type { Family } from './packet.ts';

export const TYPE_SEALED = 15;

const FORMAT = 1;
const CLEAR_BYTES = 48;
const TAG_BYTES = 16;
const SENDER_BYTES = 16;
const SALT_BYTES = 16;
const CIPHER = 'aes-256-gcm';
const KEY_INFO = 'understudy vrrp sealed 1';
const AT = { format: 2, family: 4, checksum: 6, sender: 8, salt: 24, counter: 40 };
/** Version and VRID stand in clear; the message's other bytes are encrypted. */
const HIDDEN_FROM = MESSAGE.priority;

/** Keys of senders' starts that are kept ready; deriving one takes some µs. */
const MAX_KEYS = 64;

export const SEAL_BYTES = CLEAR_BYTES - HIDDEN_FROM + TAG_BYTES;

export const isSealed = (payload: Uint8Array): boolean => (payload[0]! & 0x0f) === TYPE_SEALED;

const keyOf = (secret: string, salt: Uint8Array): Buffer => Buffer.from(hkdfSync('sha256', secret, salt, KEY_INFO, 32));

const nonceOf = (counter: Uint8Array): Buffer => Buffer.concat([Buffer.alloc(4), counter]);

/** `source` null over UDP. */
const additionalData = (payload: Uint8Array, source: Uint8Array | null): Buffer => {
  const data = Buffer.alloc(CLEAR_BYTES + 16);
  data.set(payload.subarray(0, CLEAR_BYTES));
  data.writeUInt16BE(0, AT.checksum);
  if (source) data.set(source, CLEAR_BYTES);
  return data;
};

export class Sealer {
  readonly #key: Buffer;
  readonly #clear: Buffer;
  readonly #source: Uint8Array | null;

  constructor(options: {
    secret: string;
    version: 2 | 3;
    vrid: number;
    family: Family;
    /** Name of the node: two that send from one address have to differ in it. */
    node: string;
    source: Uint8Array;
    /** Over UDP the packet's source address isn't bound. */
    overUdp: boolean;
  }) {
    const { version, vrid, family, node, source } = options;
    const salt = randomBytes(SALT_BYTES);
    this.#key = keyOf(options.secret, salt);
    this.#source = options.overUdp ? null : source;
    this.#clear = Buffer.alloc(CLEAR_BYTES);
    this.#clear[0] = (version << 4) | TYPE_SEALED;
    this.#clear[MESSAGE.vrid] = vrid;
    this.#clear[AT.format] = FORMAT;
    this.#clear[AT.family] = family === 'ipv4' ? 4 : 6;
    const sender = createHash('sha256').update(node).update('\0').update(source).digest();
    this.#clear.set(sender.subarray(0, SENDER_BYTES), AT.sender);
    this.#clear.set(salt, AT.salt);
  }

  /** Writes `message.length + SEAL_BYTES` bytes at `start`, the checksum left zero. `message` has a zero checksum. */
  seal(message: Uint8Array, counter: bigint, into: Buffer, start: number): void {
    this.#clear.writeBigUInt64BE(BigInt.asUintN(64, counter), AT.counter);
    this.#clear.copy(into, start);
    const cipher = createCipheriv(CIPHER, this.#key, nonceOf(this.#clear.subarray(AT.counter)), {
      authTagLength: TAG_BYTES,
    });
    cipher.setAAD(additionalData(this.#clear, this.#source));
    const hidden = cipher.update(message.subarray(HIDDEN_FROM));
    cipher.final();
    into.set(hidden, start + CLEAR_BYTES);
    into.set(cipher.getAuthTag(), start + CLEAR_BYTES + hidden.length);
  }
}

export type Opened = { message: Buffer; sender: string; counter: bigint };

export class Opener {
  readonly #secret: string;
  readonly #keys = new Map<string, Buffer>();

  constructor(secret: string) {
    this.#secret = secret;
  }

  /** Null if the seal doesn't hold. The message's checksum reads zero. `source` null over UDP. */
  open(payload: Buffer, family: Family, source: Uint8Array | null): Opened | null {
    if (payload.length < CLEAR_BYTES + TAG_BYTES || payload[AT.format] !== FORMAT) return null;
    if (payload[AT.family] !== (family === 'ipv4' ? 4 : 6)) return null;
    const salt = payload.subarray(AT.salt, AT.salt + SALT_BYTES);
    const saltText = salt.toString('latin1');
    const key = this.#keys.get(saltText) ?? keyOf(this.#secret, salt);
    const hidden = decrypt(payload, key, source);
    if (hidden === null) return null;
    // Only now: forged salts must not drive out the keys in use.
    if (!this.#keys.has(saltText)) {
      if (this.#keys.size >= MAX_KEYS) this.#keys.delete(this.#keys.keys().next().value!);
      this.#keys.set(saltText, key);
    }
    const message = Buffer.concat([payload.subarray(0, HIDDEN_FROM), hidden]);
    message[0] = (payload[0]! & 0xf0) | 1;
    return {
      message,
      sender: payload.toString('latin1', AT.sender, AT.sender + SENDER_BYTES),
      counter: payload.readBigUInt64BE(AT.counter),
    };
  }
}

const decrypt = (payload: Buffer, key: Buffer, source: Uint8Array | null): Buffer | null => {
  const nonce = nonceOf(payload.subarray(AT.counter, AT.counter + 8));
  const decipher = createDecipheriv(CIPHER, key, nonce, { authTagLength: TAG_BYTES });
  decipher.setAAD(additionalData(payload, source));
  decipher.setAuthTag(payload.subarray(-TAG_BYTES));
  const hidden = decipher.update(payload.subarray(CLEAR_BYTES, -TAG_BYTES));
  try {
    decipher.final();
    return hidden;
  } catch {
    return null;
  }
};
