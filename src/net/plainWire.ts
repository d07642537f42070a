/** Bytes in the clear. */
import { EAGAIN, EINTR, errno, lastErrno, libc } from './libc.ts';
import { BROKEN, WOULD_BLOCK } from './wire.ts';
import type { Wire, WireProblem } from './wire.ts';

const MSG_NOSIGNAL = 0x4000;
const SHUT_WR = 1;

export class PlainWire implements Wire {
  problem: WireProblem | null = null;
  readonly #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }

  handshake(): 'done' {
    return 'done';
  }

  read(into: Buffer, at: number, length: number): number {
    const count = libc().recv(this.#fd, at === 0 ? into : into.subarray(at), length, 0);
    return count >= 0 ? count : this.#failed(WOULD_BLOCK);
  }

  write(bytes: Buffer, start: number, end: number): number {
    const count = libc().send(this.#fd, start === 0 ? bytes : bytes.subarray(start), end - start, MSG_NOSIGNAL);
    return count >= 0 ? count : this.#failed(0);
  }

  hasPending(): boolean {
    return false;
  }

  shutdown(): 'done' {
    // A connection that is gone already tells so by an event.
    libc().shutdown(this.#fd, SHUT_WR);
    return 'done';
  }

  free(): void {}

  facts(): null {
    return null;
  }

  #failed(whenBlocked: number): number {
    const number = errno();
    if (number === EAGAIN || number === EINTR) return whenBlocked;
    this.problem = { code: lastErrno(), message: 'the connection is broken' };
    return BROKEN;
  }
}
