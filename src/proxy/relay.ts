/** Bytes both ways between two streams, with back-pressure and half-close: mode `tcp`, and upgraded connections. */
import type { Timer, Timers } from '../net/timers.ts';
import type { Stream, StreamUser } from './stream.ts';

/** How long one side may outlive the other when all that waited for it has left. */
const LINGER_MS = 10_000;

export type RelayOwner = {
  relayed(direction: 'in' | 'out', count: number): void;
  /** Both streams are done with; told once. `by` is the side that broke it off, null after an orderly end. */
  relayEnded(by: 'client' | 'server' | 'timeout' | null): void;
};

class Half implements StreamUser {
  readonly stream: Stream;
  readonly #relay: Relay;
  readonly #direction: 'in' | 'out';
  other!: Half;
  isOver = false;

  constructor(relay: Relay, stream: Stream, direction: 'in' | 'out') {
    this.#relay = relay;
    this.stream = stream;
    this.#direction = direction;
  }

  onData(bytes: Buffer): void {
    this.#relay.touched(this.#direction, bytes.length);
    if (this.other.stream.write(bytes)) return;
    this.stream.pause();
    this.#relay.waits();
  }

  onDrain(): void {
    this.#relay.touched(this.#direction, 0);
    this.other.stream.resume();
  }

  onEnd(): void {
    this.other.stream.end();
  }

  onClosed(error: string | null): void {
    this.isOver = true;
    this.#relay.halfClosed(this, error);
  }
}

/** Takes both streams over. */
export class Relay {
  readonly #client: Half;
  readonly #server: Half;
  readonly #owner: RelayOwner;
  readonly #timer: Timer;
  readonly #idleMs: number;
  readonly #timers: Timers;
  #brokenBy: 'client' | 'server' | 'timeout' | null = null;
  #activeMs: number;
  /** What both had not read when the time of one that has to read began; 0 when nothing waits for them. */
  #unread = 0;
  #over = false;

  constructor(timers: Timers, client: Stream, server: Stream, idleMs: number, owner: RelayOwner) {
    this.#timers = timers;
    this.#owner = owner;
    this.#idleMs = idleMs;
    this.#client = new Half(this, client, 'in');
    this.#server = new Half(this, server, 'out');
    this.#client.other = this.#server;
    this.#server.other = this.#client;
    client.user = this.#client;
    server.user = this.#server;
    this.#activeMs = timers.nowMs;
    this.#timer = timers.make(() => this.#timedOut());
    this.#timer.set(idleMs);
    client.resume();
    server.resume();
  }

  destroy(): void {
    this.#client.stream.destroy();
    this.#server.stream.destroy();
    this.#finish();
  }

  /** Traffic in one direction keeps both alive: a download says nothing upstream for hours. */
  touched(direction: 'in' | 'out', count: number): void {
    this.#activeMs = this.#timers.nowMs;
    if (count > 0) this.#owner.relayed(direction, count);
  }

  /** One of them has to read before there is more for it. */
  waits(): void {
    this.#unread = this.#unreadOfBoth();
  }

  halfClosed(half: Half, error: string | null): void {
    const { other } = half;
    if (error !== null) this.#brokenBy ??= half === this.#client ? 'client' : 'server';
    if (other.isOver || other.stream.destroyed) {
      this.#finish();
      return;
    }
    if (error !== null) {
      // A reset on one side is passed on as one: the other must not take it for a clean end.
      other.stream.reset();
      this.#finish();
      return;
    }
    other.stream.end();
    // Nobody is left to read what it says.
    other.stream.resume();
    this.#outlive(other);
  }

  #outlive({ stream }: Half): void {
    this.#unread = stream.pending > 0 ? this.#unreadOfBoth() : 0;
    this.#timer.set(stream.pending > 0 ? this.#idleMs : Math.min(this.#idleMs, LINGER_MS));
  }

  #unreadOfBoth(): number {
    return this.#client.stream.unread + this.#server.stream.unread;
  }

  #timedOut(): void {
    const leftMs = this.#idleMs - (this.#timers.nowMs - this.#activeMs);
    const survivor = this.#client.isOver ? this.#server : this.#server.isOver ? this.#client : null;
    if (leftMs > 0 && !survivor) {
      this.#timer.set(leftMs);
      return;
    }
    // One that takes some of what waits for it is slow, not silent.
    if (survivor && this.#unread > 0 && this.#unreadOfBoth() !== this.#unread) {
      this.#outlive(survivor);
      return;
    }
    const isWaiting = this.#client.stream.pending + this.#server.stream.pending > 0;
    if (isWaiting && this.#unreadOfBoth() !== this.#unread) {
      this.waits();
      this.#timer.set(this.#idleMs);
      return;
    }
    this.#brokenBy ??= 'timeout';
    this.destroy();
  }

  #finish(): void {
    if (this.#over) return;
    this.#over = true;
    this.#timer.drop();
    this.#owner.relayEnded(this.#brokenBy);
  }
}
