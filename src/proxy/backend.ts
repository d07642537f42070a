/**
 * A backend as one worker sees it: its servers with their weights, who gets the next connection, and who waits for one.
 * A `Place` is one request's claim on a server; limits hold over all workers.
 *
 * A request of a client that has a server already (stickiness) waits in that server's queue, as in HAProxy; any other
 * waits for the first server with room. Older ones go first, and nobody overtakes a queue. Between workers, places that
 * become free are divided by how many wait in each.
 */
import type { Balance } from '../config/balance.ts';
import type { TimerMaker } from '../net/timers.ts';
import { balancerOf } from './balance.ts';
import type { Balancer } from './candidate.ts';
import { COUNTER, GAUGE } from './counters.ts';
import type { Counters } from './counters.ts';
import type { RequestFacts } from './facts.ts';
import type { BackendModel, Weights } from './model.ts';
import { PlaceQueue } from './placeQueue.ts';
import type { Wish } from './placeQueue.ts';
import { Place, Server } from './server.ts';
import { stickinessOf } from './stickiness.ts';
import type { Brought, Stickiness } from './stickiness.ts';

/** HAProxy's turn-around time: a server that is just restarting is not worn out by all retries at once. */
const MAX_TURN_AROUND_MS = 1_000;

/** Its multiples, without the whole, lie evenly however many there are. */
const GOLDEN_RATIO = (Math.sqrt(5) - 1) / 2;

export type { Place, Server } from './server.ts';

export type Refusal = 'exhausted' | 'queueFull' | 'queueTimeout';

export type BackendPorts = {
  counters: Counters;
  timers: TimerMaker;
  /** Uniform in [0, 1). */
  random: () => number;
  /** This worker's among all: each starts its rounds elsewhere. */
  index: number;
  /** Tells the other workers that a place became free for those who wait there. */
  tellOthers: () => void;
};

const NOBODY: ReadonlySet<Server> = new Set();

export class Backend {
  readonly name: string;
  model: BackendModel;
  servers = new Map<string, Server>();
  readonly #ports: BackendPorts;
  readonly #counters: Counters;
  /** The control plane's word: what takes new traffic, and what takes only its own clients. */
  #weights: Weights = {};
  #stickyOnly: ReadonlySet<string> = new Set();
  #balancer: Balancer<Server>;
  #stickiness: Stickiness<Server> | null = null;
  /** Those that take new traffic. */
  #weighted: readonly Server[] = [];
  /** The balancer hears of changes when it is next asked: those that come together cost as one. */
  #isStale = false;
  /** Some of them have a limit: somebody may be waiting for any of them. */
  #isLimited = false;
  readonly #queue: PlaceQueue;
  /** What this worker owes to those who wait in others, as a share of a place. */
  #owed = 0;

  constructor(model: BackendModel, ports: BackendPorts) {
    this.name = model.name;
    this.model = model;
    this.#ports = ports;
    this.#counters = ports.counters;
    this.#balancer = this.#makeBalancer(model.balance);
    this.#stickiness = this.#makeStickiness(model);
    this.#queue = new PlaceQueue(model.slot, ports.counters, ports.timers, () => this.wakeWaiters());
    this.configure(model);
  }

  configure(model: BackendModel): void {
    const old = this.model;
    this.model = model;
    if (!isSame(model.balance, old.balance)) this.#balancer = this.#makeBalancer(model.balance);
    if (!isSame(model.sticky, old.sticky) || model.stickTable !== old.stickTable) {
      this.#stickiness = this.#makeStickiness(model);
    }
    const before = this.servers;
    this.servers = new Map();
    for (const server of model.servers) {
      const known = before.get(server.name);
      if (known && isSame(known.model.address, server.address)) {
        known.model = server;
        this.servers.set(server.name, known);
        before.delete(server.name);
      } else {
        this.servers.set(server.name, new Server(server, this.#counters));
      }
    }
    for (const gone of before.values()) {
      gone.retire();
      this.#queue.release(gone);
    }
    this.#stickiness?.configure(this.servers.values());
    this.setWeights(this.#weights);
  }

  /**
   * Weights of some servers, the others' stay. `stickyOnly`, when given: all servers that have no weight but still take
   * the clients that they have.
   */
  setWeights(changes: Weights, stickyOnly?: readonly string[]): void {
    this.#weights = { ...this.#weights, ...changes };
    if (stickyOnly) this.#stickyOnly = new Set(stickyOnly);
    for (const server of this.servers.values()) {
      server.weight = this.#weights[server.name] ?? 0;
      server.isStickyOnly = server.weight === 0 && this.#stickyOnly.has(server.name);
      if (server.isUsable) continue;
      server.idle.closeAll();
      this.#queue.release(server);
    }
    this.#weighted = [...this.servers.values()].filter((server) => server.weight > 0);
    this.#isLimited = this.#weighted.some((server) => server.model.maxConnections > 0);
    this.#isStale = true;
    this.wakeWaiters();
  }

  /** Servers that take new traffic. */
  get usable(): number {
    return this.#weighted.length;
  }

  shutdownSessions(name: string): void {
    const server = this.servers.get(name);
    if (!server) return;
    server.idle.closeAll();
    for (const session of server.sessions.snapshot()) session.shutdown();
  }

  /**
   * A place at a server, now or after a wait; `excluded` are those that failed this request already. When there is no
   * other they are tried again, after HAProxy's turn-around time. `facts` are asked until one of the two is called; a
   * set that is empty costs nothing. Returns how to stop waiting, or null when it was decided at once.
   */
  acquire(
    facts: RequestFacts,
    excluded: ReadonlySet<Server>,
    got: (place: Place) => void,
    refused: (refusal: Refusal) => void,
  ): (() => void) | null {
    const brought = this.#stickiness === null ? null : this.#stickiness.find(facts);
    if (brought && brought.server.isUsable && !excluded.has(brought.server)) {
      const { server } = brought;
      if (!server.isFull() && this.#counters.take(server.model.slot, server.model.maxConnections)) {
        got(this.#place(server, brought, facts));
        return null;
      }
      if (this.#queue.countFor(server) < (server.model.maxQueue || this.model.maxQueue)) {
        return this.#wait({ facts, excluded, brought, wanted: server, got }, refused);
      }
    }
    if (this.#weighted.length === 0) {
      refused('exhausted');
      return null;
    }
    if (!this.#hasFresh(excluded)) return this.#turnAround(facts, got, refused);
    if (!this.#isLimited || this.#queue.countFor(null) === 0) {
      const place = this.#take(facts, excluded, brought);
      if (place) {
        got(place);
        return null;
      }
    }
    if (this.#queue.countFor(null) >= this.model.maxQueue) {
      refused('queueFull');
      return null;
    }
    return this.#wait({ facts, excluded, brought, wanted: null, got }, refused);
  }

  /** Gives free places to those who wait, first come first served. */
  wakeWaiters(): void {
    if (this.#queue.size === 0) return;
    for (const server of this.servers.values()) if (server.waiters.size > 0) this.#serve(server);
    for (const waiter of this.#queue.forAny) {
      const excluded = this.#hasFresh(waiter.excluded) ? waiter.excluded : NOBODY;
      const place = this.#take(waiter.facts, excluded, waiter.brought);
      if (place) {
        this.#queue.remove(waiter);
        waiter.got(place);
      } else if (excluded.size === 0) {
        // No server has room: the next one would fare no better.
        return;
      }
    }
  }

  /** Of a place that is given back. */
  free(server: Server): void {
    const { slot, maxConnections } = server.model;
    this.#counters.change(slot, GAUGE.active, -1);
    this.#counters.change(this.model.slot, GAUGE.active, -1);
    if (maxConnections === 0) return;
    const all = this.#queue.countFor(null) + this.#queue.countFor(server);
    if (all === 0) return;
    // A server that has got another address counts in the same slot.
    const present = this.servers.get(server.name);
    const here = present ? this.#queue.forAny.size + present.waiters.size : 0;
    if (all > here) {
      this.#owed += (all - here) / all;
      if (here === 0 || this.#owed >= 1) {
        this.#owed = Math.max(0, this.#owed - 1);
        this.#ports.tellOthers();
        return;
      }
    }
    if (present) this.#serve(present);
  }

  #makeBalancer(balance: Balance): Balancer<Server> {
    const { random, index } = this.#ports;
    const stagger = (index * GOLDEN_RATIO) % 1;
    const totalActive = () => this.#counters.gauge(this.model.slot, GAUGE.active);
    return balancerOf<Server>(balance, { random, stagger, totalActive });
  }

  #makeStickiness(model: BackendModel): Stickiness<Server> | null {
    if (model.sticky === null) return null;
    return stickinessOf<Server>(model.name, model.sticky, model.stickTable, () => performance.now());
  }

  #hasFresh(excluded: ReadonlySet<Server>): boolean {
    return excluded.size === 0 || this.#weighted.some((server) => !excluded.has(server));
  }

  #take(facts: RequestFacts, excluded: ReadonlySet<Server>, brought: Brought<Server> | null): Place | null {
    if (this.#isStale) {
      this.#isStale = false;
      this.#balancer.update(this.#weighted);
    }
    for (;;) {
      const server = this.#balancer.choose(facts, excluded);
      if (!server) return null;
      // Another worker may have taken the last place since it was looked at; then the server shows as full.
      if (this.#counters.take(server.model.slot, server.model.maxConnections)) {
        return this.#place(server, brought, facts);
      }
    }
  }

  #place(server: Server, brought: Brought<Server> | null, facts: RequestFacts): Place {
    const { slot } = this.model;
    this.#counters.change(slot, GAUGE.active, 1);
    this.#counters.add(slot, COUNTER.sessions);
    this.#counters.add(server.model.slot, COUNTER.sessions);
    const stickyFields = this.#stickiness === null ? '' : this.#stickiness.settle(server, brought, facts);
    return new Place(this, server, stickyFields);
  }

  /** All that it could use have failed it: the same again, but not at once. */
  #turnAround(facts: RequestFacts, got: (place: Place) => void, refused: (refusal: Refusal) => void): () => void {
    let leave: (() => void) | null = null;
    const timer = this.#ports.timers.make(() => {
      leave = this.acquire(facts, NOBODY, got, refused);
    });
    timer.set(Math.min(this.model.timeouts.connect, MAX_TURN_AROUND_MS));
    return () => {
      timer.clear();
      leave?.();
    };
  }

  #wait(wish: Wish, refused: (refusal: Refusal) => void): (() => void) | null {
    const waiter = this.#queue.add(wish, this.model.timeouts.queue, () => refused('queueTimeout'));
    // Those before it may be waiting for other servers than it could use.
    if (!wish.wanted && this.#queue.forAny.size > 1) this.wakeWaiters();
    return this.#queue.has(waiter) ? () => this.#queue.remove(waiter) : null;
  }

  /** Whether one who waits for any server may have this one. */
  #isFor = ({ excluded }: Wish, server: Server): boolean =>
    server.weight > 0 && (!excluded.has(server) || !this.#hasFresh(excluded));

  /** Its places to those who wait, the oldest first, whether for this server or for any. */
  #serve(server: Server): void {
    for (;;) {
      const waiter = this.#queue.oldestFor(server, this.#isFor);
      if (!waiter || !this.#counters.take(server.model.slot, server.model.maxConnections)) return;
      this.#queue.remove(waiter);
      waiter.got(this.#place(server, waiter.brought, waiter.facts));
    }
  }
}

/** Of plain data whose keys come in one order, as those of two readings of one configuration do. */
const isSame = (a: unknown, b: unknown): boolean => a === b || JSON.stringify(a) === JSON.stringify(b);
