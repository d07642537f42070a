/** What the control plane tells the data-plane workers, and what they answer. Plain data: it crosses threads. */
import type { Balance, Sticky } from '../config/balance.ts';
import type { Http2Limits } from '../config/http2.ts';
import type { Endpoint } from '../config/units.ts';
import type { SocketFile } from '../net/socketFile.ts';
import type { PoolMode } from '../../machines/pool.ts';
import type { FrontendLog } from './accessLog.ts';
import type { CompressionModel } from './compression.ts';
import type { ErrorPageModel } from './errorPages.ts';
import type { ObservedMessage, ObserveModel } from './observer.ts';
import type { RuleModel } from './ruleModel.ts';
import type { ServerTlsModel } from './tlsContext.ts';
import type { ClientTlsModel } from './tlsClient.ts';

export type ServerModel = {
  name: string;
  address: Endpoint;
  slot: number;
  maxConnections: number;
  /** Clients of its own that may wait for it; 0: as many as may wait for the backend. */
  maxQueue: number;
  /** Host for a request of HTTP/1.0 that names none. */
  defaultHost: string;
  /** What stands for it in the sticky cookie; default: its name. */
  cookie?: string;
  /** Encrypted to this server. */
  tls: ClientTlsModel | null;
  /** The client's address, told to the server before anything else. */
  sendProxy: 'v1' | 'v2' | null;
};

export type BackendModel = {
  name: string;
  slot: number;
  balance: Balance;
  sticky: Sticky | null;
  /** Of a source table, which all workers share. */
  stickTable: SharedArrayBuffer | null;
  observe: ObserveModel | null;
  retries: number;
  maxQueue: number;
  timeouts: { connect: number; server: number; queue: number; tunnel: number };
  errorPages: ErrorPageModel[];
  servers: ServerModel[];
};

export type FrontendModel = {
  name: string;
  mode: 'tcp' | 'http';
  slot: number;
  rules: RuleModel[];
  /** Somebody looks at the ids of requests: a rule, a page, the log. */
  needsId: boolean;
  use: string;
  maxConnections: number;
  /** X-Forwarded-For: the client's address is added, takes the place of what came, or isn't told. */
  forwardedFor: 'add' | 'replace' | 'none';
  compression: CompressionModel | null;
  errorPages: ErrorPageModel[];
  log: FrontendLog | null;
  timeouts: { client: number; httpRequest: number; keepAlive: number };
};

export type ListenerModel = {
  id: string;
  frontend: string;
  address: Endpoint;
  tls: ServerTlsModel | null;
  /** HTTP/2 for clients that ask for it; null without. */
  http2: Http2Limits | null;
  /** Peers (CIDR) that tell of their clients in a PROXY header; null for none. */
  proxyProtocol: { from: string[]; required: boolean } | null;
  /** A virtual address: it is bound also while it is not here, so that nothing has to be opened at a takeover. */
  freeBind: boolean;
  /** Of a Unix socket: permissions and owner, null for those of the process. */
  socketFile: SocketFile;
};

export type Model = { frontends: FrontendModel[]; backends: BackendModel[] };

export type Weights = Record<string, number>;

export type ToWorker =
  | { kind: 'configure'; model: Model }
  | { kind: 'weights'; pool: string; mode: PoolMode; weights: Weights; draining?: string[] }
  /** `descriptors` listen already, for this worker alone: all that it has of this listener. */
  | { kind: 'listen'; listener: ListenerModel; descriptors: number[] }
  /** More of them, of a worker that is gone. */
  | { kind: 'inherit'; id: string; descriptors: number[] }
  /** Some of them are another worker's from now on. */
  | { kind: 'giveAway'; id: string; descriptors: number[] }
  | { kind: 'drainListener'; id: string }
  | { kind: 'closeListener'; id: string }
  | { kind: 'shutdownSessions'; pool: string; server: string }
  /** A place became free at a server, in another worker; whoever waits may try. */
  | { kind: 'freed'; pool: string }
  | { kind: 'drain' };

export type FromWorker =
  | { kind: 'ready' }
  | { kind: 'listening'; id: string }
  | { kind: 'listenFailed'; id: string; code: string; message: string }
  | { kind: 'listenerDrained'; id: string }
  | { kind: 'freed'; pool: string }
  | ObservedMessage;
