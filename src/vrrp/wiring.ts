/** From the configuration of routers to the actors that they ask for. Pure. */
import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import ipaddr from 'ipaddr.js';
import type { SyncGroupInput } from '../../machines/syncGroup.ts';
import type { TrackerInput, TrackerKind, TrackerSettings } from '../../machines/tracker.ts';
import type { AddressSettings, VirtualAddressInput } from '../../machines/virtualAddress.ts';
import type { RouterInput, RouterSettings, Track } from '../../machines/vrrpRouter.ts';
import type { RouterConfig, TrackConfig, VirtualAddressConfig } from '../config/routers.ts';
import type { Config } from '../config/schema.ts';
import { hasQuorum } from '../config/sharedChecks.ts';
import { SIGHT_ACTOR } from '../cluster/sharedWiring.ts';

export const routerId = (router: string) => `router/${router}`;
export const groupId = (group: string) => `group/${group}`;
export const addressId = (router: string, address: string) => `address/${router}/${address}`;

/** An address that could not be added is tried again this often: the router is in FAULT meanwhile. */
const ADDRESS_RETRY_MS = 1_000;

export type VrrpSpec = { id: string; identity: string; rest: string } & (
  | { machine: 'tracker'; input: TrackerInput }
  | { machine: 'virtualAddress'; input: VirtualAddressInput }
  | { machine: 'syncGroup'; input: SyncGroupInput }
  | { machine: 'vrrpRouter'; input: RouterInput }
);

export const isLoopbackAddress = (address: string): boolean => ipaddr.parse(address).range() === 'loopback';

/** Held by binding: a loopback address is always there, so whoever listens on it has it. */
export const isHeldByBinding = (address: VirtualAddressConfig): boolean =>
  isLoopbackAddress(address.address) && address.interface === undefined;

const KINDS = ['interface', 'pool', 'script', 'process', 'file', 'sight'] as const satisfies TrackerKind[];

export const kindOf = (track: TrackConfig): TrackerKind => KINDS.find((kind) => kind in track)!;

/** Two that look at the same thing are one: `tracker/pool/web`, `tracker/script/check_web`. */
export const trackerId = (track: TrackConfig): string => {
  // A node has one sight.
  if ('sight' in track) return 'tracker/sight';
  const kind = kindOf(track);
  const subject =
    'script' in track
      ? (track.name ?? basename(track.script[0]!))
      : String((track as unknown as Record<string, unknown>)[kind]);
  const { weight: _weight, reverse: _reverse, ...looked } = track;
  const plain = JSON.stringify(looked);
  // The same thing looked at in another way is another tracker; the common way keeps the short name.
  return `tracker/${kind}/${subject}${isCommon(track) ? '' : `#${shortHash(plain)}`}`;
};

const shortHash = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, 6);

const hasCommonLooks = (track: { interval: number; rise: number; fall: number }): boolean =>
  track.interval === 1000 && track.rise === 1 && track.fall === 1;

/** Looked at in the way that the defaults have it, or given a name. */
const isCommon = (track: TrackConfig): boolean => {
  if ('interface' in track || 'sight' in track) return true;
  if ('pool' in track) return track.atLeast === 1;
  if ('script' in track)
    return track.name !== undefined || (track.script.length === 1 && track.timeout === 1000 && hasCommonLooks(track));
  if ('process' in track) return track.min === 1 && track.max === undefined && hasCommonLooks(track);
  return hasCommonLooks(track);
};

type Members = Map<string, { group: string; members: string[] }>;

const membersOf = (config: Config): Members => {
  const members: Members = new Map();
  for (const [group, { routers }] of Object.entries(config.syncGroups))
    for (const router of routers) members.set(router, { group, members: routers });
  return members;
};

/** What a router tracks; in a sync group all members track what any of them does, as they have to agree. */
const tracksOf = (config: Config, router: string, members: Members): TrackConfig[] => {
  const names = members.get(router)?.members ?? [router];
  const tracks = names.flatMap((name) => config.routers[name]?.track ?? []);
  // A node that sees no server gives way, unless its routers say by how much.
  if (hasQuorum(config) && !tracks.some((track) => 'sight' in track))
    tracks.push({ sight: true, weight: 0, reverse: false });
  const seen = new Set<string>();
  return tracks.filter((track) => {
    const key = JSON.stringify(track);
    return !seen.has(key) && Boolean(seen.add(key));
  });
};

/** Every tracker that is wanted, with one example of who wants it. */
export const trackersOf = (config: Config): Map<string, { track: TrackConfig; routers: string[] }> => {
  const members = membersOf(config);
  const trackers = new Map<string, { track: TrackConfig; routers: string[] }>();
  for (const name of Object.keys(config.routers)) {
    for (const track of tracksOf(config, name, members)) {
      const id = trackerId(track);
      const known = trackers.get(id);
      if (!known) trackers.set(id, { track, routers: [routerId(name)] });
      else if (!known.routers.includes(routerId(name))) known.routers.push(routerId(name));
    }
  }
  return trackers;
};

/** Trackers that want to know how many servers of a pool are usable. */
export const watchersOf = (config: Config): Map<string, { tracker: string; atLeast: number }[]> => {
  const watchers = new Map<string, { tracker: string; atLeast: number }[]>();
  for (const [tracker, { track }] of trackersOf(config)) {
    if (!('pool' in track)) continue;
    watchers.set(track.pool, [...(watchers.get(track.pool) ?? []), { tracker, atLeast: track.atLeast }]);
  }
  return watchers;
};

/** In the order in which they are to start: whoever is told something is there before whoever tells. */
export const vrrpActorsOf = (config: Config): VrrpSpec[] => {
  const members = membersOf(config);
  return [
    ...[...trackersOf(config)].map(([id, { track, routers }]) => trackerSpec(id, track, routers)),
    ...Object.entries(config.routers).flatMap(([name, router]) =>
      router.addresses.map((address) => addressSpec(name, router, address)),
    ),
    ...Object.entries(config.syncGroups).map(([name, { routers, notify }]): VrrpSpec => {
      const input = { name, members: routers.map(routerId) };
      return { id: groupId(name), identity: '', rest: JSON.stringify(notify ?? null), machine: 'syncGroup', input };
    }),
    ...Object.entries(config.routers).map(([name, router]) => routerSpec(config, name, router, members)),
  ];
};

const trackerSpec = (id: string, track: TrackConfig, routers: string[]): VrrpSpec => {
  const kind = kindOf(track);
  const settings: TrackerSettings = {
    kind,
    subject: 'pool' in track ? `pool/${track.pool}` : 'sight' in track ? SIGHT_ACTOR : '',
    intervalMs: 'interval' in track ? track.interval : 0,
    rise: 'rise' in track ? track.rise : 1,
    fall: 'fall' in track ? track.fall : 1,
    routers,
  };
  const { weight: _weight, reverse: _reverse, ...looked } = track;
  return { id, identity: JSON.stringify(looked), rest: '', machine: 'tracker', input: { id, settings } };
};

const addressSpec = (name: string, router: RouterConfig, address: VirtualAddressConfig): VrrpSpec => {
  const { repeat, delay, refresh, refreshRepeat } = router.announce;
  const settings: AddressSettings = {
    repeat,
    delayMs: delay,
    refreshMs: refresh,
    refreshRepeat,
    retryMs: ADDRESS_RETRY_MS,
  };
  return {
    id: addressId(name, address.address),
    identity: JSON.stringify([address, router.interface, router.virtualMac, router.vrid]),
    rest: JSON.stringify([router.accept]),
    machine: 'virtualAddress',
    input: { router: routerId(name), address: address.address, settings },
  };
};

const routerSpec = (config: Config, name: string, router: RouterConfig, members: Members): VrrpSpec => {
  const group = members.get(name)?.group;
  const track = tracksOf(config, name, members).map((one): Track => ({
    tracker: trackerId(one),
    weight: one.weight,
    reverse: one.reverse,
  }));
  const settings: RouterSettings = {
    version: router.version,
    vrid: router.vrid,
    priority: router.priority,
    advertMs: router.advertise,
    preempt: router.preempt,
    preemptDelayMs: router.preemptDelay,
    startDelayMs: router.startDelay,
    addresses: router.addresses.map(({ address }) => addressId(name, address)),
    track,
    group: group === undefined ? null : groupId(group),
    ...(router.transport === 'nats' ? { onBusLoss: router.onBusLoss } : {}),
  };
  const { version, vrid, interface: link, transport, source, port, virtualMac } = router;
  const { peers, authentication, checksum, minTtl, notify, accept } = router;
  return {
    id: routerId(name),
    // What makes it another router, or takes other sockets.
    identity: JSON.stringify([
      version,
      vrid,
      link,
      transport,
      source,
      port,
      virtualMac,
      group,
      router.addresses[0]?.family,
    ]),
    rest: JSON.stringify([peers, authentication, checksum, minTtl, notify, accept]),
    machine: 'vrrpRouter',
    input: { name, settings },
  };
};
