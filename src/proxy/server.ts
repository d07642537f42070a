/** A server as one worker sees it, and a request's place at it. */
import type { Candidate } from './candidate.ts';
import { GAUGE } from './counters.ts';
import type { Counters } from './counters.ts';
import type { ServerModel } from './model.ts';
import type { Waiter } from './placeQueue.ts';
import { IdleConnections } from './serverConnections.ts';
import { Members } from './members.ts';
import type { Member } from './members.ts';

/** Somebody who uses a server at the moment. */
export type Session = Member & {
  /** The server is to have no sessions any more. */
  shutdown(): void;
};

export class Server implements Candidate {
  readonly name: string;
  model: ServerModel;
  weight = 0;
  /** It takes no new traffic, but the clients that it has may come back: it drains, or is a backup at rest. */
  isStickyOnly = false;
  readonly idle: IdleConnections;
  readonly sessions = new Members<Session>();
  /** Who waits for this server and no other, in this worker. */
  readonly waiters = new Set<Waiter>();
  readonly #counters: Counters;

  constructor(model: ServerModel, counters: Counters) {
    this.name = model.name;
    this.model = model;
    this.#counters = counters;
    this.idle = new IdleConnections((by) => counters.change(this.model.slot, GAUGE.idle, by));
  }

  /** Somebody may be sent to it: connections to it are worth keeping. */
  get isUsable(): boolean {
    return this.weight > 0 || this.isStickyOnly;
  }

  active(): number {
    return this.#counters.gauge(this.model.slot, GAUGE.active);
  }

  /** Also while clients of its own wait for it: nobody overtakes them. */
  isFull(): boolean {
    const { maxConnections, slot } = this.model;
    if (maxConnections === 0) return false;
    return this.active() >= maxConnections || this.#counters.gauge(slot, GAUGE.queued) > 0;
  }

  /** New traffic ends here; what runs goes on. */
  retire(): void {
    this.weight = 0;
    this.isStickyOnly = false;
    this.idle.closeAll();
  }
}

/** Takes places back. */
type Giver = { free(server: Server): void };

/** One request's claim on a server, until it is released. */
export class Place {
  readonly server: Server;
  /** Fields that the answer is to have, so that the client comes back to this server: each a line with its end; or ''. */
  readonly stickyFields: string;
  #backend: Giver | null;

  constructor(backend: Giver, server: Server, stickyFields: string) {
    this.server = server;
    this.stickyFields = stickyFields;
    this.#backend = backend;
  }

  release(): void {
    const backend = this.#backend;
    this.#backend = null;
    backend?.free(this.server);
  }
}
