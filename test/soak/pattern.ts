/** Bodies that both ends know: ranges of one endless sequence, so that a byte that is lost, doubled or foreign shows. */
import { createHash } from 'node:crypto';

/** A prime, so that no buffer's size is a period. */
const PERIOD_BYTES = 1_048_573;
const DIGEST_BYTES = 32;

const PATTERN = (() => {
  const bytes = Buffer.alloc(2 * PERIOD_BYTES);
  for (let at = 0; at < PERIOD_BYTES; at += DIGEST_BYTES)
    createHash('sha256').update(String(at)).digest().copy(bytes, at);
  bytes.copy(bytes, PERIOD_BYTES, 0, PERIOD_BYTES);
  return bytes;
})();

/** Longer ranges come in pieces. */
export const MAX_PIECE_BYTES = 64 * 1024;

/** `length` is at most MAX_PIECE_BYTES. Not to be written to. */
export const patternAt = (at: number, length: number): Buffer => {
  const start = at % PERIOD_BYTES;
  return PATTERN.subarray(start, start + length);
};

export const isPatternAt = (bytes: Buffer, at: number): boolean => {
  for (let done = 0; done < bytes.length; done += MAX_PIECE_BYTES) {
    const piece = bytes.subarray(done, done + MAX_PIECE_BYTES);
    if (!piece.equals(patternAt(at + done, piece.length))) return false;
  }
  return true;
};

/** The range from `at` on, in pieces. */
export function* piecesOf(at: number, length: number): Generator<Buffer> {
  for (let done = 0; done < length; done += MAX_PIECE_BYTES)
    yield patternAt(at + done, Math.min(MAX_PIECE_BYTES, length - done));
}
