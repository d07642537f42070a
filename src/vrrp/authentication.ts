/** What routers share to know each other, and the marks against repeats that the stronger kinds keep. */
import { timingSafeEqual } from 'node:crypto';
import { AUTHENTICATION_DATA_BYTES } from './packet.ts';

export type HmacKey = {
  /** 1–255; it travels with each packet, so that keys can be changed one node at a time. */
  id: number;
  /** 32–64 bytes: text, or hex behind `0x` or keepalived's `hex:`. */
  secret: string;
};

export type Authentication =
  | { type: 'none' }
  /** Version 2: the first 8 bytes, in clear. */
  | { type: 'pass'; secret: string }
  /** Version 2, IPv4: HMAC-MD5-96; the first 8 bytes of the secret. See ipsecAh.ts. */
  | { type: 'ah'; secret: string }
  /** keepalived 2.4's `auth_hmac`: the first key signs, all verify. See hmacTrailer.ts. */
  | { type: 'hmac'; keys: HmacKey[] }
  /** Among Understudy nodes. See seal.ts. */
  | { type: 'sealed'; secret: string };

/** Version 2's authentication types (RFC 2338 section 5.3.6; RFC 3768 keeps only the first). */
export const AUTHENTICATION_TYPE = { none: 0, pass: 1, ah: 2 };

/** As keepalived has it, for `pass` and as the key of `ah`: 8 bytes, zero padded; what is longer is cut off. */
export const authenticationData = (secret: string): Buffer => {
  const data = Buffer.alloc(AUTHENTICATION_DATA_BYTES);
  Buffer.from(secret).copy(data);
  return data;
};

/** In constant time; both have the same length. */
export const sameBytes = (left: Uint8Array, right: Uint8Array): boolean => timingSafeEqual(left, right);

/**
 * Senders of one virtual router that are remembered. Only who holds the secret can make a mark, so this bounds what a
 * broken peer costs; with more nodes than this, the one silent for longest could be replayed.
 */
const MAX_SENDERS = 64;

/** How far each sender has come. A mark is set only after the packet's authentication held. */
export class Marks<Mark> {
  readonly #marks = new Map<string, Mark>();

  get(sender: string): Mark | null {
    return this.#marks.get(sender) ?? null;
  }

  set(sender: string, mark: Mark): void {
    this.#marks.delete(sender);
    if (this.#marks.size >= MAX_SENDERS) this.#marks.delete(this.#marks.keys().next().value!);
    this.#marks.set(sender, mark);
  }
}
