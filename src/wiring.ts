/** From a configuration to the actors that it asks for, and to what the data plane has to know. Pure. */
import picomatch from 'picomatch';
import { phaseOf } from '../actors/random.ts';
import type { BackendServerInput, ServerSettings } from '../machines/backendServer.ts';
import type { CheckerSettings, HealthCheckerInput } from '../machines/healthChecker.ts';
import type { ListenerInput } from '../machines/listener.ts';
import type { PoolInput } from '../machines/pool.ts';
import type { ProxyWorkerInput } from '../machines/proxyWorker.ts';
import type { BackendConfig, CheckConfig, Config, FrontendConfig, ServerConfig } from './config/schema.ts';
import { formatEndpoint } from './config/units.ts';
import type { Endpoint } from './config/units.ts';
import type { BackendModel, FrontendModel, ListenerModel, Model } from './proxy/model.ts';
import { addressId, isHeldByBinding, vrrpActorsOf, watchersOf } from './vrrp/wiring.ts';
import type { VrrpSpec } from './vrrp/wiring.ts';

/**
 * `identity`: when it changes, a reload replaces the actor; when only `input` does, it tells the actor. `rest` is what
 * its hands go by and its machine doesn't (a path, a certificate, rules): a change of it is a change of the actor too.
 */
export type ActorSpec =
  | VrrpSpec
  | ({ id: string; identity: string; rest: string } & (
      | { machine: 'pool'; input: PoolInput }
      | { machine: 'backendServer'; input: BackendServerInput }
      | { machine: 'healthChecker'; input: HealthCheckerInput }
      | { machine: 'listener'; input: ListenerInput }
      | { machine: 'proxyWorker'; input: ProxyWorkerInput }
    ));

/** Spread of the first checks: 5,000 a second at most, so that 10,000 servers don't connect in one turn of the loop. */
const FIRST_CHECK_EVERY_MS = 0.2;
/** Checked servers from which on their checks are spread over the interval: fewer do no harm all at once. */
const SPREAD_FROM = 100;
/** A listener that failed tries again this often. */
const LISTENER_RETRY_MS = 1_000;
/** … and one that holds a virtual address this often: the node that had it may be just about to let it go. */
const HOLDING_LISTENER_RETRY_MS = 20;

export const serverId = (pool: string, server: string) => `server/${pool}/${server}`;
export const checkerId = (pool: string, server: string) => `checker/${pool}/${server}`;
export const poolId = (pool: string) => `pool/${pool}`;
export const listenerId = (frontend: string, address: Endpoint) => `listener/${frontend}/${formatEndpoint(address)}`;
export const workerId = (index: number) => `worker/${index}`;
export const frontendSlotName = (frontend: string) => `frontend/${frontend}`;

/** In the order in which they are to start: whoever is told something is there before whoever tells. */
export const actorsOf = (config: Config): ActorSpec[] => {
  const specs: ActorSpec[] = [];
  const watchers = watchersOf(config);
  const holders = holdersOf(config);
  let checkers = 0;
  const checkedServers = Object.values(config.backends)
    .filter(({ check }) => check !== false)
    .reduce((sum, { servers }) => sum + servers.length, 0);
  for (const [pool, backend] of Object.entries(config.backends)) {
    // One object for all servers alike: with thousands of them these would be most of the memory.
    const sharedServerSettings = new Map<string, ServerSettings>();
    const settingsFor = (server: ServerConfig): ServerSettings => {
      const key = `${server.weight} ${server.backup}`;
      const known = sharedServerSettings.get(key);
      if (known) return known;
      const made = serverSettings(backend, server);
      sharedServerSettings.set(key, made);
      return made;
    };
    const sharedCheck = JSON.stringify(backend.check);
    const sharedCheckerSettings = backend.check ? checkerSettings(backend.check) : null;
    const watching = watchers.get(pool);
    const settings = {
      allBackups: backend.allBackups,
      quorum: backend.quorum,
      hysteresis: backend.hysteresis,
      ...(watching ? { watchers: watching } : {}),
    };
    const { balance, retries, timeouts } = backend;
    specs.push({
      id: poolId(pool),
      identity: '',
      rest: JSON.stringify({ balance, retries, timeouts }),
      machine: 'pool',
      input: { name: pool, settings },
    });
    for (const server of backend.servers) {
      if (backend.check && sharedCheckerSettings) {
        specs.push({
          id: checkerId(pool, server.name),
          identity: formatEndpoint(server.address),
          rest: sharedCheck,
          machine: 'healthChecker',
          input: {
            pool,
            server: server.name,
            settings: sharedCheckerSettings,
            spread: checkedServers > SPREAD_FROM,
            startDelayMs: Math.min(checkers++ * FIRST_CHECK_EVERY_MS, backend.check.interval),
            phase: phaseOf(`${config.node}/${pool}/${server.name}`),
          },
        });
      }
      specs.push({
        id: serverId(pool, server.name),
        identity: formatEndpoint(server.address),
        rest: JSON.stringify({ maxConnections: server.maxConnections }),
        machine: 'backendServer',
        input: { pool, name: server.name, settings: settingsFor(server) },
      });
    }
  }
  for (const [frontend, { bind, drain, mode, rules, use, maxConnections, timeouts }] of Object.entries(
    config.frontends,
  )) {
    for (const { address, tls } of bind) {
      specs.push({
        id: listenerId(frontend, address),
        identity: '',
        rest: JSON.stringify({ tls, mode, rules, use, maxConnections, timeouts }),
        machine: 'listener',
        input: {
          frontend,
          address: formatEndpoint(address),
          retryMs: holders.has(listenerId(frontend, address)) ? HOLDING_LISTENER_RETRY_MS : LISTENER_RETRY_MS,
          drainMs: drain,
        },
      });
    }
  }
  const drainMs = Math.max(0, ...Object.values(config.frontends).map(({ drain }) => drain));
  for (let index = 0; index < config.workers; index++) {
    specs.push({ id: workerId(index), identity: '', rest: '', machine: 'proxyWorker', input: { index, drainMs } });
  }
  return [...specs, ...vrrpActorsOf(config)];
};

/** Listeners on a virtual address that is held by binding it: listener → the address that opens it. */
export const holdersOf = (config: Config): Map<string, string> => {
  const holders = new Map<string, string>();
  for (const [router, { addresses }] of Object.entries(config.routers)) {
    for (const address of addresses.filter(isHeldByBinding)) {
      for (const [frontend, { bind }] of Object.entries(config.frontends))
        for (const bound of bind)
          if (bound.address.host === address.address)
            holders.set(listenerId(frontend, bound.address), addressId(router, address.address));
    }
  }
  return holders;
};

/** Virtual addresses: they can be bound before they are here. */
export const virtualHostsOf = (config: Config): Set<string> =>
  new Set(Object.values(config.routers).flatMap(({ addresses }) => addresses.map(({ address }) => address)));

const serverSettings = (backend: BackendConfig, server: ServerConfig): ServerSettings => ({
  rise: backend.check ? backend.check.rise : 1,
  fall: backend.check ? backend.check.fall : 1,
  checked: backend.check !== false,
  initially: backend.initially,
  weight: server.weight,
  backup: server.backup,
  slowStartMs: backend.slowStart,
  shutdownSessions: backend.onMarkedDown === 'shutdownSessions',
});

const checkerSettings = (check: CheckConfig): CheckerSettings => ({
  intervalMs: check.interval,
  fastIntervalMs: check.fastInterval ?? check.interval,
  downIntervalMs: check.downInterval ?? check.interval,
  timeoutMs: check.timeout,
  jitter: check.jitter,
});

export const modelOf = (config: Config, slot: (name: string) => number): Model => ({
  frontends: Object.entries(config.frontends).map(([name, frontend]) => frontendModel(name, frontend, slot)),
  backends: Object.entries(config.backends).map(([name, backend]) => backendModel(name, backend, slot)),
});

const frontendModel = (name: string, frontend: FrontendConfig, slot: (name: string) => number): FrontendModel => ({
  name,
  mode: frontend.mode,
  slot: slot(frontendSlotName(name)),
  rules: frontend.rules.map(({ when, use }) => ({
    host: when.host ? hostPattern(when.host) : null,
    path: when.path ? pathPattern(when.path) : null,
    use,
  })),
  use: frontend.use,
  maxConnections: frontend.maxConnections,
  timeouts: frontend.timeouts,
});

const backendModel = (name: string, backend: BackendConfig, slot: (name: string) => number): BackendModel => ({
  name,
  balance: backend.balance,
  retries: backend.retries,
  timeouts: backend.timeouts,
  servers: backend.servers.map((server) => ({
    name: server.name,
    address: server.address,
    slot: slot(serverId(name, server.name)),
    maxConnections: server.maxConnections,
  })),
});

/** `*.example.com` stands for any name below; the engine gives hosts in lower case. */
const hostPattern = (hosts: string[]): string =>
  hosts
    .map((host) =>
      host
        .toLowerCase()
        .replaceAll(/[.+?^${}()|[\]\\]/g, '\\$&')
        .replaceAll('*', '[^/:]+'),
    )
    .map((host) => `^${host}$`)
    .join('|');

const pathPattern = (paths: string[]): string =>
  paths.map((path) => picomatch.makeRe(path, { dot: true, nobrace: true, noext: true }).source).join('|');

/** `readFile` gives the PEM text of a certificate. */
export const listenersOf = (config: Config, readFile: (file: string) => string): ListenerModel[] => {
  const virtual = virtualHostsOf(config);
  return Object.entries(config.frontends).flatMap(([frontend, { bind }]) =>
    bind.map(({ address, tls }) => ({
      id: listenerId(frontend, address),
      frontend,
      address,
      certificates: tls ? tls.certificates.map(readFile) : null,
      freeBind: virtual.has(address.host),
    })),
  );
};
