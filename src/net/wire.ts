/** How a connection's bytes are moved: plain, or encrypted. Below it is a non-blocking descriptor that it doesn't own. */
import type { TlsFacts } from '../proxy/stream.ts';

/** Nothing there yet; an event tells of more. */
export const WOULD_BLOCK = -1;
/** The connection is broken; `problem` says how. */
export const BROKEN = -2;
/** The transport has ended where TLS had not (RFC 8446 section 6.1): what came may have been cut off by anyone. */
export const TRUNCATED = -3;

/** `code` is an errno's name (ECONNRESET), or TLS_… ; `message` says it in words. */
export type WireProblem = { code: string; message: string };

/**
 * Each call does what can be done at once. What would block is called again at the next event, of either direction:
 * with TLS, reading may wait for output and writing for input. Nothing is called once `free` was.
 */
export type Wire = {
  /** Of the last call that returned BROKEN. */
  readonly problem: WireProblem | null;
  /** Until it is done, nothing else is called but `free`. */
  handshake(): 'done' | 'again' | WireProblem;
  /** Bytes that were read, 0 at the end, or WOULD_BLOCK, BROKEN, TRUNCATED. */
  read(into: Buffer, at: number, length: number): number;
  /**
   * Of the last read that returned bytes: whether another may return more, or an end, without an event. False is proof
   * that the socket was empty.
   */
  hasPending(): boolean;
  /**
   * Bytes that were taken (fewer than offered: it would block), or BROKEN. What was not taken must be offered again
   * before anything else and no shorter: it may be encrypted already.
   */
  write(bytes: Buffer, start: number, end: number): number;
  /** Says that nothing more will be written; what has been taken goes first. Not after BROKEN. */
  shutdown(): 'done' | 'again';
  /** Lets go of all but the descriptor. */
  free(): void;
  /** Null in the clear. Known once the handshake is done. */
  facts(): TlsFacts | null;
};
