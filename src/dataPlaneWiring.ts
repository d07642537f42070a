/** From a configuration to what the data plane has to know: plain data, with all files read. */
import { readFileSync } from 'node:fs';
import type { Sticky, StickyConfig } from './config/balance.ts';
import type { AccessLogConfig } from './config/log.ts';
import { accessLogOf } from './config/log.ts';
import { observeModelOf } from './config/observe.ts';
import type { BackendConfig, BindConfig, Config, FrontendConfig, ServerConfig } from './config/schema.ts';
import { formatEndpoint } from './config/units.ts';
import { UnderstudyError } from './errors.ts';
import { socketFileOf } from './net/socketFile.ts';
import type { SocketFile } from './net/socketFile.ts';
import type { FrontendLog } from './proxy/accessLog.ts';
import { errorPageOf } from './proxy/errorPages.ts';
import type { ErrorPageModel } from './proxy/errorPages.ts';
import type { BackendModel, FrontendModel, ListenerModel, Model, ServerModel } from './proxy/model.ts';
import { RateMemories, ruleModelsOf } from './proxy/ruleModel.ts';
import { usesId } from './proxy/rules.ts';
import { allocateStickTable } from './proxy/stickTable.ts';
import { readClientTls, readServerTls } from './proxy/tlsModel.ts';
import { frontendSlotName, listenerId, poolId, serverId, virtualHostsOf } from './wiring.ts';

export type ModelPorts = {
  /** The place of a server's, pool's or frontend's figures. */
  slot(name: string): number;
  /** The place where the lines of a log go. */
  sink(config: AccessLogConfig): FrontendLog;
};

/** What is told to workers, and the memory that outlives a reload: rates that were counted, clients that are remembered. */
export class DataPlaneModels {
  readonly #ports: ModelPorts;
  readonly #rates = new RateMemories();
  readonly #stickTables = new Map<string, { size: number; memory: SharedArrayBuffer }>();

  constructor(ports: ModelPorts) {
    this.#ports = ports;
  }

  /** @throws Error of the file system */
  modelOf(config: Config): Model {
    this.#rates.begin();
    const backends = Object.entries(config.backends).map(([name, backend]) => this.#backend(name, backend));
    const pages = backends.flatMap(({ errorPages }) => errorPages);
    const frontends = Object.entries(config.frontends).map(([name, frontend]) =>
      this.#frontend(name, frontend, config, pages),
    );
    this.#rates.settle();
    for (const name of this.#stickTables.keys()) if (!config.backends[name]?.sticky) this.#stickTables.delete(name);
    return { frontends, backends };
  }

  #frontend(name: string, frontend: FrontendConfig, config: Config, backendPages: ErrorPageModel[]): FrontendModel {
    const { mode, use, maxConnections, forwardedFor, compression, timeouts } = frontend;
    const rules = ruleModelsOf(name, frontend.rules, readText, this.#rates);
    const logConfig = accessLogOf(config.log, frontend.log);
    const errorPages = pagesOf(frontend.errorPages);
    const showsId = [...errorPages, ...backendPages].some(({ body }) => body.includes('{id}'));
    return {
      name,
      mode,
      slot: this.#ports.slot(frontendSlotName(name)),
      rules,
      needsId: usesId(rules) || showsId || logConfig?.format === 'json',
      use,
      maxConnections,
      forwardedFor,
      compression: compression ?? null,
      errorPages,
      log: logConfig ? this.#ports.sink(logConfig) : null,
      timeouts,
    };
  }

  #backend(name: string, backend: BackendConfig): BackendModel {
    const { balance, sticky, retries, maxQueue, timeouts, servers } = backend;
    return {
      name,
      slot: this.#ports.slot(poolId(name)),
      balance,
      sticky: sticky ? stickyModelOf(sticky) : null,
      stickTable: sticky && 'table' in sticky ? this.#stickTable(name, sticky.size) : null,
      observe: observeModelOf(backend),
      retries,
      maxQueue,
      timeouts,
      errorPages: pagesOf(backend.errorPages),
      servers: servers.map((server) => this.#server(name, backend, server)),
    };
  }

  #server(pool: string, backend: BackendConfig, server: ServerConfig): ServerModel {
    const { name, address, maxConnections, maxQueue, cookie } = server;
    const tls = server.tls ?? backend.tls;
    const host = address.path === undefined ? address.host : '';
    return {
      name,
      address,
      slot: this.#ports.slot(serverId(pool, name)),
      maxConnections,
      maxQueue,
      defaultHost: address.path === undefined ? formatEndpoint(address) : 'localhost',
      ...(cookie === undefined ? {} : { cookie }),
      tls: typeof tls === 'object' ? readClientTls(tls, host) : null,
      sendProxy: server.sendProxy ?? backend.sendProxy ?? null,
    };
  }

  #stickTable(name: string, size: number): SharedArrayBuffer {
    const known = this.#stickTables.get(name);
    if (known?.size === size) return known.memory;
    const memory = allocateStickTable(size);
    this.#stickTables.set(name, { size, memory });
    return memory;
  }
}

/** @throws Error of the file system */
export const listenersOf = (config: Config): ListenerModel[] => {
  const virtual = virtualHostsOf(config);
  return Object.entries(config.frontends).flatMap(([frontend, { bind, mode, http2 }]) =>
    bind.map((bound: BindConfig): ListenerModel => {
      const { address, tls, proxyProtocol } = bound;
      const tlsModel = tls ? readServerTls(tls, mode) : null;
      return {
        id: listenerId(frontend, address),
        frontend,
        address,
        tls: tlsModel,
        http2: mode === 'http' && tlsModel?.alpn?.includes('h2') === true ? http2 : null,
        proxyProtocol: proxyProtocol ?? null,
        freeBind: virtual.has(address.host),
        socketFile: socketFileFor(bound),
      };
    }),
  );
};

const socketFileFor = (bound: BindConfig): SocketFile => {
  const file = socketFileOf(bound);
  if ('refusal' in file)
    throw new UnderstudyError('CONFIG_INVALID', `${formatEndpoint(bound.address)}: ${file.refusal}`);
  return file;
};

const stickyModelOf = (sticky: StickyConfig): Sticky => {
  if ('table' in sticky) return sticky;
  const { key, ...cookie } = sticky.cookie;
  return { cookie: { ...cookie, key: typeof key === 'object' ? readText(key.file) : key } };
};

const readText = (file: string): string => readFileSync(file, 'utf8').trimEnd();

const pagesOf = (pages: Record<string, string>): ErrorPageModel[] =>
  Object.entries(pages).map(([status, file]) => errorPageOf(Number(status), file, readFileSync(file)));
