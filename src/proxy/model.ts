/** What the control plane tells the data-plane workers, and what they answer. Plain data: it crosses threads. */
import type { Endpoint } from '../config/units.ts';
import type { PoolMode } from '../../machines/pool.ts';

export type Balance = 'roundRobin' | 'leastConnections' | 'source' | 'random' | 'first';

export type ServerModel = { name: string; address: Endpoint; slot: number; maxConnections: number };

export type BackendModel = {
  name: string;
  balance: Balance;
  retries: number;
  timeouts: { connect: number; server: number; queue: number; tunnel: number };
  servers: ServerModel[];
};

/** `host` and `path` are sources of regular expressions; null holds for any. */
export type RuleModel = { host: string | null; path: string | null; use: string };

export type FrontendModel = {
  name: string;
  mode: 'tcp' | 'http';
  slot: number;
  rules: RuleModel[];
  use: string;
  maxConnections: number;
  timeouts: { client: number; httpRequest: number; keepAlive: number };
};

export type ListenerModel = {
  id: string;
  frontend: string;
  address: Endpoint;
  /** PEM texts, each a chain and its key. */
  certificates: string[] | null;
  /** A virtual address: it is bound also while it is not here, so that nothing has to be opened at a takeover. */
  freeBind: boolean;
};

export type Model = { frontends: FrontendModel[]; backends: BackendModel[] };

export type Weights = Record<string, number>;

export type ToWorker =
  | { kind: 'configure'; model: Model }
  | { kind: 'weights'; pool: string; mode: PoolMode; weights: Weights }
  | { kind: 'listen'; listener: ListenerModel }
  | { kind: 'drainListener'; id: string }
  | { kind: 'closeListener'; id: string }
  | { kind: 'shutdownSessions'; pool: string; server: string }
  /** A place became free at a server, in another worker; whoever waits may try. */
  | { kind: 'freed'; pool: string }
  | { kind: 'drain' };

export type FromWorker =
  | { kind: 'ready' }
  | { kind: 'listening'; id: string; port: number }
  | { kind: 'listenFailed'; id: string; code: string; message: string }
  | { kind: 'listenerDrained'; id: string }
  | { kind: 'freed'; pool: string };
