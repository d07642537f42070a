/**
 * A backend as one worker sees it: its servers with their weights, who gets the next connection, and who waits for one.
 * A `Place` is one connection's claim on a server; limits hold over all workers.
 */
import { chooser } from './balance.ts';
import type { Candidate, Choose } from './balance.ts';
import type { Counters } from './counters.ts';
import type { BackendModel, ServerModel, Weights } from './model.ts';
import { IdleConnections } from './serverConnections.ts';

/** Requests that may wait at one backend in one worker: beyond, a 503 at once is kinder than one after the timeout. */
const MAX_QUEUE = 10_000;
/** Places freed by other workers are told by message; this catches the one that got lost between check and wait. */
const QUEUE_POLL_MS = 20;

export type Session = { shutdown(): void };

export class Server implements Candidate {
  readonly name: string;
  model: ServerModel;
  weight = 0;
  turn = 0;
  readonly idle = new IdleConnections();
  readonly sessions = new Set<Session>();
  #counters: Counters;

  constructor(model: ServerModel, counters: Counters) {
    this.name = model.name;
    this.model = model;
    this.#counters = counters;
  }

  active(): number {
    return this.#counters.gauge(this.model.slot, 'active');
  }

  /** New traffic ends here; what runs goes on. */
  retire(): void {
    this.weight = 0;
    this.idle.closeAll();
  }
}

export type Place = { server: Server; release(): void };

export type Refusal = 'exhausted' | 'queueFull' | 'queueTimeout';

type Waiter = { clientAddress: string; excluded: ReadonlySet<Server>; got(place: Place): void; leave(): void };

export class Backend {
  readonly name: string;
  model: BackendModel;
  servers = new Map<string, Server>();
  /** The control plane's word: what takes new traffic. */
  #weights: Weights = {};
  #counters: Counters;
  #choose: Choose;
  #random: () => number;
  /** Those that take new traffic. */
  #weighted: Server[] = [];
  #waiters = new Set<Waiter>();
  #poll: NodeJS.Timeout | null = null;
  #tellOthers: () => void;

  constructor(model: BackendModel, counters: Counters, random: () => number, tellOthers: () => void) {
    this.name = model.name;
    this.model = model;
    this.#counters = counters;
    this.#random = random;
    this.#choose = chooser(model.balance, random);
    this.#tellOthers = tellOthers;
    this.configure(model);
  }

  configure(model: BackendModel): void {
    if (model.balance !== this.model.balance) this.#choose = chooser(model.balance, this.#random);
    this.model = model;
    const before = this.servers;
    this.servers = new Map();
    for (const server of model.servers) {
      const known = before.get(server.name);
      const sameAddress =
        known?.model.address.host === server.address.host && known.model.address.port === server.address.port;
      if (known && sameAddress) {
        known.model = server;
        this.servers.set(server.name, known);
        before.delete(server.name);
      } else {
        this.servers.set(server.name, new Server(server, this.#counters));
      }
    }
    for (const gone of before.values()) gone.retire();
    this.setWeights(this.#weights);
  }

  /** Weights of some servers, the others' stay. */
  setWeights(changes: Weights): void {
    this.#weights = { ...this.#weights, ...changes };
    for (const server of this.servers.values()) {
      const weight = this.#weights[server.name] ?? 0;
      // A server that comes back starts level with the others instead of with the turns of long ago.
      if (server.weight === 0 && weight > 0) server.turn = 0;
      server.weight = weight;
      if (weight === 0) server.idle.closeAll();
    }
    this.#weighted = [...this.servers.values()].filter((server) => server.weight > 0);
    this.wakeWaiters();
  }

  shutdownSessions(name: string): void {
    const server = this.servers.get(name);
    if (!server) return;
    server.idle.closeAll();
    for (const session of [...server.sessions]) session.shutdown();
  }

  /**
   * A place at a server, now or after a wait; `excluded` are those that failed this request already, used again only
   * when there is no other. Returns how to stop waiting, or null when it was decided at once and there is no waiting.
   */
  acquire(
    clientAddress: string,
    excluded: ReadonlySet<Server>,
    got: (place: Place) => void,
    refused: (refusal: Refusal) => void,
  ): (() => void) | null {
    const usable = this.#usable(excluded);
    if (usable.length === 0) {
      refused('exhausted');
      return null;
    }
    const place = this.#take(usable, clientAddress);
    if (place) {
      got(place);
      return null;
    }
    if (this.#waiters.size >= MAX_QUEUE) {
      refused('queueFull');
      return null;
    }
    return this.#wait(clientAddress, excluded, got, refused);
  }

  /** Gives freed places to those who wait, first come first served. */
  wakeWaiters(): void {
    for (const waiter of this.#waiters) {
      const place = this.#take(this.#usable(waiter.excluded), waiter.clientAddress);
      if (!place) {
        // The next one may use a server that this one has failed at already; otherwise it would fare no better.
        if (waiter.excluded.size > 0) continue;
        return;
      }
      waiter.leave();
      waiter.got(place);
    }
  }

  #usable(excluded: ReadonlySet<Server>): Server[] {
    if (excluded.size === 0) return this.#weighted;
    const fresh = this.#weighted.filter((server) => !excluded.has(server));
    return fresh.length > 0 ? fresh : this.#weighted;
  }

  #take(usable: Server[], clientAddress: string): Place | null {
    let rest = usable;
    while (rest.length > 0) {
      const server = this.#choose(rest, clientAddress) as Server | null;
      if (!server) return null;
      if (this.#counters.take(server.model.slot, server.model.maxConnections)) return this.#place(server);
      // Full: the others may have room. Source hashing gives way too, as HAProxy's does with redispatch.
      rest = rest.filter((candidate) => candidate !== server);
    }
    return null;
  }

  #place(server: Server): Place {
    this.#counters.add(server.model.slot, 'sessions');
    const { slot } = server.model;
    let held = true;
    return {
      server,
      release: () => {
        if (!held) return;
        held = false;
        this.#counters.change(slot, 'active', -1);
        if (this.#waiters.size > 0) this.wakeWaiters();
        else if (server.model.maxConnections > 0 && this.#counters.gauge(slot, 'queued') > 0) this.#tellOthers();
      },
    };
  }

  #wait(
    clientAddress: string,
    excluded: ReadonlySet<Server>,
    got: (place: Place) => void,
    refused: (refusal: Refusal) => void,
  ): () => void {
    const slots = [...this.servers.values()].map((server) => server.model.slot);
    for (const slot of slots) this.#counters.change(slot, 'queued', 1);
    const timer = setTimeout(() => {
      waiter.leave();
      refused('queueTimeout');
    }, this.model.timeouts.queue);
    const waiter: Waiter = {
      clientAddress,
      excluded,
      got,
      leave: () => {
        if (!this.#waiters.delete(waiter)) return;
        clearTimeout(timer);
        for (const slot of slots) this.#counters.change(slot, 'queued', -1);
        if (this.#waiters.size === 0 && this.#poll) {
          clearInterval(this.#poll);
          this.#poll = null;
        }
      },
    };
    this.#waiters.add(waiter);
    this.#poll ??= setInterval(() => this.wakeWaiters(), QUEUE_POLL_MS);
    return waiter.leave;
  }
}
