/** What both ends of `bench:proxy`'s WebSocket load know of RFC 6455. */
import type { Hash } from 'node:crypto';

/** Section 5.2: the first two bytes of a frame. */
export const FIN = 0x80;
export const BINARY = 0x2;
export const MASKED = 0x80;
/** Of a frame of up to 125 bytes; a client's has a mask of four bytes behind it (section 5.3). */
export const HEAD_BYTES = 2;
export const CLIENT_HEAD_BYTES = HEAD_BYTES + 4;
export const LONGEST_SMALL_BYTES = 125;

export const HEAD_END = '\r\n\r\n';

/** Section 1.3. */
export const acceptKey = (key: string, sha1: Hash): string =>
  sha1.update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
