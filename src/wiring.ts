/** From a configuration to the actors that it asks for, and to what the data plane has to know. Pure. */
import { phaseOf } from '../actors/random.ts';
import type { BackendServerInput, ServerSettings } from '../machines/backendServer.ts';
import type { CheckerSettings, HealthCheckerInput } from '../machines/healthChecker.ts';
import type { ListenerInput } from '../machines/listener.ts';
import type { PoolInput } from '../machines/pool.ts';
import type { ProxyWorkerInput } from '../machines/proxyWorker.ts';
import type { TrafficObserverInput } from '../machines/trafficObserver.ts';
import { isByQuorum, quorumSpecs, sharedMark, sightSpecs } from './cluster/sharedWiring.ts';
import type { SharedSpec } from './cluster/sharedWiring.ts';
import { observeModelOf, observerSettingsOf, poolObservationOf, serverObservationOf } from './config/observe.ts';
import type { BackendConfig, CheckConfig, Config, ServerConfig } from './config/schema.ts';
import { formatEndpoint } from './config/units.ts';
import type { Endpoint } from './config/units.ts';
import { addressId, isHeldByBinding, trackersOf, vrrpActorsOf, watchersOf } from './vrrp/wiring.ts';
import type { VrrpSpec } from './vrrp/wiring.ts';

/**
 * `identity`: when it changes, a reload replaces the actor; when only `input` does, it tells the actor. `rest` is what
 * its hands go by and its machine doesn't (a path, a certificate, rules): a change of it is a change of the actor too.
 */
export type ActorSpec =
  | VrrpSpec
  | SharedSpec
  | ({ id: string; identity: string; rest: string } & (
      | { machine: 'pool'; input: PoolInput }
      | { machine: 'backendServer'; input: BackendServerInput }
      | { machine: 'trafficObserver'; input: TrafficObserverInput }
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
export const observerId = (pool: string, server: string) => `observer/${pool}/${server}`;
export const poolId = (pool: string) => `pool/${pool}`;
export const listenerId = (frontend: string, address: Endpoint) => `listener/${frontend}/${formatEndpoint(address)}`;
export const workerId = (index: number) => `worker/${index}`;
export const frontendSlotName = (frontend: string) => `frontend/${frontend}`;

/** In the order in which they are to start: whoever is told something is there before whoever tells. */
export const actorsOf = (config: Config): ActorSpec[] => {
  const sightTrackers = [...trackersOf(config)].flatMap(([id, { track }]) => ('sight' in track ? [id] : []));
  const specs: ActorSpec[] = sightSpecs(config, sightTrackers);
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
    const sharedCheckerSettings = backend.check ? { ...checkerSettings(backend.check), ...sharedMark(backend) } : null;
    const observed = observerSettingsOf(backend);
    const observerSettings = observed && { ...observed, ...sharedMark(backend) };
    const watching = watchers.get(pool);
    const settings = {
      allBackups: backend.allBackups,
      quorum: backend.quorum,
      hysteresis: backend.hysteresis,
      ...(watching ? { watchers: watching } : {}),
      ...poolObservationOf(backend),
      ...(backend.sticky ? { persistence: true } : {}),
    };
    const { servers: _servers, check: _check, ...rest } = backend;
    specs.push({
      id: poolId(pool),
      identity: '',
      rest: JSON.stringify(rest),
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
      specs.push(...quorumSpecs(config, pool, server.name, formatEndpoint(server.address)));
      specs.push({
        id: serverId(pool, server.name),
        identity: formatEndpoint(server.address),
        rest: JSON.stringify(server),
        machine: 'backendServer',
        input: { pool, name: server.name, settings: settingsFor(server) },
      });
      if (observerSettings) {
        specs.push({
          id: observerId(pool, server.name),
          identity: formatEndpoint(server.address),
          rest: JSON.stringify(observeModelOf(backend)),
          machine: 'trafficObserver',
          input: { pool, server: server.name, settings: observerSettings },
        });
      }
    }
  }
  for (const [frontend, { bind, drain, ...others }] of Object.entries(config.frontends)) {
    for (const bound of bind) {
      const { address } = bound;
      specs.push({
        id: listenerId(frontend, address),
        identity: '',
        rest: JSON.stringify({ ...bound, ...others }),
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
  // A verdict has been counted by those who made it.
  rise: backend.check && !isByQuorum(backend) ? backend.check.rise : 1,
  fall: backend.check && !isByQuorum(backend) ? backend.check.fall : 1,
  checked: backend.check !== false,
  initially: backend.initially,
  weight: server.weight,
  backup: server.backup,
  slowStartMs: backend.slowStart,
  shutdownSessions: backend.onMarkedDown === 'shutdownSessions',
  ...serverObservationOf(backend),
  ...sharedMark(backend),
});

const checkerSettings = (check: CheckConfig): CheckerSettings => ({
  intervalMs: check.interval,
  fastIntervalMs: check.fastInterval ?? check.interval,
  downIntervalMs: check.downInterval ?? check.interval,
  timeoutMs: check.timeout,
  jitter: check.jitter,
});
