/** What the engines of both modes need of their worker. */
import type { Reactor } from '../net/reactor.ts';
import type { AccessLog, AccessRecord } from './accessLog.ts';
import type { Backend, Server } from './backend.ts';
import type { Counters } from './counters.ts';
import type { Histograms } from './histograms.ts';
import type { Member } from './members.ts';
import type { FrontendModel } from './model.ts';
import type { Observer } from './observer.ts';
import type { RuleSet } from './rules.ts';
import type { Route } from './serverConnections.ts';

export type Frontend = { model: FrontendModel; rules: RuleSet };

export type Engine = {
  reactor: Reactor;
  counters: Counters;
  histograms: Histograms;
  observer: Observer;
  accessLog: AccessLog;
  /** Filled in anew for each line: the log keeps nothing of it. */
  record: AccessRecord;
  /** All workers have the same: TICKET_KEYS_BYTES for our own wires, 48 bytes for Node's. */
  ticketKeys: Buffer;
  /** Client connections of all frontends in this worker. */
  connections: number;
  backend(name: string): Backend | undefined;
  routeOf(server: Server): Route;
  /** Unique among all workers and starts of this node. */
  nextId(): string;
};

/** One client connection of either mode, as its listener knows it. */
export type ClientSession = Member & {
  /** End as soon as what is under way is done. */
  drain(): void;
  destroy(): void;
};

/** How a client came: what is known before its first byte of HTTP, or of anything. */
export type Arrival = {
  acceptedMs: number;
  /** PROXY header and TLS handshake together. */
  handshakeMs: number;
};
