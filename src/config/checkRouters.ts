/** What no single key of a router can tell. Works on the raw file. */
import { accessSync, constants, readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { isAbsolute, resolve } from 'node:path';
import ipaddr from 'ipaddr.js';
import { messageOf } from '../errors.ts';
import { hmacKeyBytes } from '../vrrp/hmacTrailer.ts';
import { asList, asMap } from './raw.ts';
import { isByQuorum } from './sharedChecks.ts';
import type { At, Path, Raw, Report } from './raw.ts';
import { isLoopback, parseDuration } from './units.ts';

/** RFC 9568 section 5.2.7: 12 bits of centiseconds. */
const LONGEST_V3_MS = 40_950;
/** Three of these have to outlast what a busy NATS server, or one that elects, keeps an advert waiting. */
const SHORTEST_NATS_ADVERT_MS = 100;
/** keepalived's bounds for the keys of `auth_hmac`. */
const HMAC_KEY_BYTES = { min: 32, max: 64 };
/** A passphrase below this is guessed sooner or later. */
const SEALED_MIN_LENGTH = 16;

const addressText = (entry: unknown): string => {
  const text = typeof entry === 'string' ? entry : asMap(entry)['address'];
  return typeof text === 'string' ? (text.split('/')[0] ?? '') : '';
};

const isLinkLocal = (address: string): boolean => isIP(address) === 6 && ipaddr.parse(address).range() === 'linkLocal';

export const checkRouters = (file: Raw, folder: string, report: Report): void => {
  const routers = asMap(file['routers']);
  const heldBy = new Map<string, string>();
  const vridOf = new Map<string, string>();
  const scripts = new Map<string, string>();
  for (const [name, value] of Object.entries(routers)) {
    const router = asMap(value);
    const at = (...path: Path): Path => ['routers', name, ...path];
    checkTransport(router, at, report);
    checkNats(router, file, at, report);
    checkAddresses(name, router, heldBy, at, report);
    checkVersion(router, folder, at, report);
    checkTracks(router, file, folder, scripts, at, report);
    checkNotify(router['notify'], folder, (...path) => at('notify', ...path), report);
    const { vrid, transport = 'multicast' } = router;
    const address = addressText(asList(router['addresses'])[0]);
    const link =
      transport === 'udp' ? `${String(router['source'])} ${String(router['port'])}` : String(router['interface']);
    // Over NATS the name of the router tells them apart.
    if (transport === 'nats') continue;
    const key = `${String(vrid)} ${transport === 'udp' ? 'udp' : 'raw'} ${link} ${isIP(address)}`;
    const other = vridOf.get(key);
    if (other !== undefined && typeof vrid === 'number') {
      report(at('vrid'), `${vrid} is router ${other}'s on the same link; each needs one of its own`);
    }
    vridOf.set(key, name);
  }
  checkGroups(asMap(file['syncGroups']), routers, folder, report);
};

const checkTransport = (router: Raw, at: At, report: Report): void => {
  const { transport = 'multicast', peers, source } = router;
  const hasPeers = asList(peers).length > 0;
  if (transport === 'multicast' && hasPeers)
    report(at('peers'), 'multicast finds its peers by itself; `transport: unicast` or `udp` takes a list');
  if ((transport === 'unicast' || transport === 'udp') && !hasPeers)
    report(at('transport'), `${transport} needs peers: the addresses of the other nodes`);
  if (router['interface'] !== undefined) return;
  if (transport !== 'udp' && transport !== 'nats')
    report(at(), `missing interface; ${String(transport)} needs the link that it is on`, true);
  else if (source === undefined) report(at(), `missing source; ${transport} without an interface needs it`, true);
  else if (router['virtualMac'] === true) report(at('virtualMac'), 'it needs an interface');
};

/** The packet travels within another protocol, and has no IP header of its own. */
const isTransported = ({ transport }: Raw): boolean => transport === 'udp' || transport === 'nats';

/** What only the other transports have. */
const NOT_OVER_NATS: Record<string, string> = {
  peers: 'over NATS every node of the cluster that has a router of this name is a peer; leave the list out',
  port: 'a port is of udp; over NATS the subject is made of the router’s name',
  minTtl: 'over NATS there is no TTL',
  checksum: 'over NATS there is only one form of checksum',
};

const checkNats = (router: Raw, file: Raw, at: At, report: Report): void => {
  const { transport, advertise } = router;
  if (transport !== 'nats') {
    if (router['onBusLoss'] !== undefined) report(at('onBusLoss'), 'it says something for `transport: nats` only');
    return;
  }
  if (asMap(file['bus'])['nats'] === undefined)
    report(at('transport'), 'nats needs `bus: { nats: { servers: […] } }`; without NATS there is `udp`');
  for (const [key, why] of Object.entries(NOT_OVER_NATS)) if (router[key] !== undefined) report(at(key), why);
  const { type } = asMap(router['authentication']);
  if (type === 'pass' || type === 'ah')
    report(
      at('authentication', 'type'),
      `${type} protects nothing over NATS, which authenticates nodes itself; hmac and sealed work, where others share the account`,
    );
  const advertMs = typeof advertise === 'string' ? parseDuration(advertise) : null;
  if (advertMs !== null && advertMs < SHORTEST_NATS_ADVERT_MS)
    report(
      at('advertise'),
      `too short; over NATS it is at least ${SHORTEST_NATS_ADVERT_MS}ms, as adverts pass a server and its neighbours`,
    );
};

const checkAddresses = (name: string, router: Raw, heldBy: Map<string, string>, at: At, report: Report): void => {
  const addresses = asList(router['addresses']);
  const first = addressText(addresses[0]);
  addresses.forEach((entry, index) => {
    const address = addressText(entry);
    const family = isIP(address);
    if (family === 0) return;
    if (family !== isIP(first) && isIP(first) !== 0)
      report(at('addresses', index), 'one router is of one family: IPv4 and IPv6 take a router each');
    const text = ipaddr.parse(address).toString();
    const other = heldBy.get(text);
    if (other !== undefined) report(at('addresses', index), `${text} is router ${other}'s already`);
    heldBy.set(text, name);
    if (family === 6 && asMap(entry)['label'] !== undefined)
      report(at('addresses', index, 'label'), 'only IPv4 addresses have labels');
    const hasInterface = router['interface'] !== undefined || asMap(entry)['interface'] !== undefined;
    if (isTransported(router) && !hasInterface && !isLoopback(address))
      report(at('addresses', index), 'without an interface only addresses of the loopback range can be held');
  });
  if (isIP(first) === 6 && !isLinkLocal(first) && !isTransported(router))
    report(at('addresses', 0), 'the first address of an IPv6 router has to be link-local (RFC 9568 section 5.2.9)');
};

const checkVersion = (router: Raw, folder: string, at: At, report: Report): void => {
  const { version = 3, advertise = '1s', transport } = router;
  const advertMs = parseDuration(String(advertise));
  if (version === 2) {
    if (isIP(addressText(asList(router['addresses'])[0])) === 6)
      report(at('version'), 'version 2 knows IPv4 only; IPv6 takes version 3');
    if (advertMs !== null && advertMs % 1000 !== 0)
      report(at('advertise'), 'version 2 counts in whole seconds; less takes version 3');
  } else if (advertMs !== null) {
    if (advertMs > LONGEST_V3_MS) report(at('advertise'), `too long; version 3 can say at most ${LONGEST_V3_MS}ms`);
    if (advertMs % 10 !== 0) report(at('advertise'), 'version 3 counts in hundredths of a second: multiples of 10ms');
  }
  const authentication = asMap(router['authentication']);
  const { type } = authentication;
  if ((type === 'pass' || type === 'ah') && version !== 2)
    report(at('authentication', 'type'), `${type} is version 2's; version 3 has hmac and sealed`);
  if (type === 'hmac' && version !== 3) report(at('authentication', 'type'), 'hmac is version 3’s');
  if (type === 'ah' && transport === 'udp')
    report(at('authentication', 'type'), 'ah covers the IP header, which udp has not; sealed works there');
  const secretAt = (path: Path, value: unknown, judge: (secret: string) => string | null) => {
    const text = secretText(value, folder);
    if (text === null) return;
    const problem = 'problem' in text ? text.problem : judge(text.secret);
    if (problem !== null) report(at('authentication', ...path), problem);
  };
  if (type === 'pass' || type === 'ah') secretAt(['secret'], authentication['secret'], () => null);
  if (type === 'sealed')
    secretAt(['secret'], authentication['secret'], (secret) =>
      secret.length < SEALED_MIN_LENGTH ? `too short; at least ${SEALED_MIN_LENGTH} characters are needed` : null,
    );
  if (type !== 'hmac') return;
  asList(authentication['keys']).forEach((key, index) =>
    secretAt(['keys', index, 'secret'], asMap(key)['secret'], (secret) => {
      const { length: bytes } = hmacKeyBytes(secret);
      return bytes >= HMAC_KEY_BYTES.min && bytes <= HMAC_KEY_BYTES.max
        ? null
        : `it has ${bytes} bytes; ${HMAC_KEY_BYTES.min} to ${HMAC_KEY_BYTES.max} are needed`;
    }),
  );
};

const secretText = (value: unknown, folder: string): { secret: string } | { problem: string } | null => {
  if (typeof value === 'string') return { secret: value };
  const { file } = asMap(value);
  if (typeof file !== 'string') return null;
  try {
    const secret = readFileSync(resolve(folder, file), 'utf8').trim();
    return secret === '' ? { problem: `the secret ${file} can't be used: it is empty` } : { secret };
  } catch (error) {
    return { problem: `the secret can't be read: ${messageOf(error)}` };
  }
};

const programProblem = (command: unknown, folder: string): string | null => {
  const program = asList(command)[0];
  if (typeof program !== 'string' || !program.includes('/')) return null;
  const path = isAbsolute(program) ? program : resolve(folder, program);
  try {
    accessSync(path, constants.X_OK);
    return null;
  } catch {
    return `${program} can't be run: there is no such program, or it is not executable`;
  }
};

const checkTracks = (
  router: Raw,
  file: Raw,
  folder: string,
  scripts: Map<string, string>,
  at: At,
  report: Report,
): void => {
  const backends = asMap(file['backends']);
  asList(router['track']).forEach((entry, index) => {
    const { pool, script, weight, name, sight } = asMap(entry);
    if (sight === true && !Object.values(backends).some((backend) => isByQuorum(asMap(backend))))
      report(
        at('track', index, 'sight'),
        'no backend has `checks: { share: quorum }`: there is nothing to see together',
      );
    if (script !== undefined && typeof name === 'string') {
      const { weight: _weight, reverse: _reverse, ...looked } = asMap(entry);
      const text = JSON.stringify(looked);
      const other = scripts.get(name);
      if (other !== undefined && other !== text)
        report(at('track', index, 'name'), `${name} is another script already; one name is one script, run in one way`);
      scripts.set(name, text);
    }
    if (typeof pool === 'string' && !Object.hasOwn(backends, pool)) {
      const known = Object.keys(backends);
      const allowed = known.length > 0 ? `allowed are ${known.join(', ')}` : 'the file has none';
      report(at('track', index, 'pool'), `there is no backend ${pool}; ${allowed}`);
    }
    const problem = programProblem(script, folder);
    if (problem !== null) report(at('track', index, 'script'), problem);
    if (router['priority'] === 255 && typeof weight === 'number' && weight !== 0)
      report(at('track', index, 'weight'), 'the priority of an owner (255) is never changed; leave the weight out');
  });
};

const checkNotify = (notify: unknown, folder: string, at: At, report: Report): void => {
  for (const key of ['command', 'master', 'backup', 'fault', 'stop']) {
    const problem = programProblem(asMap(notify)[key], folder);
    if (problem !== null) report(at(key), problem);
  }
};

/** What members must have in common: they move together, so they must want the same. */
const COMMON: [string, unknown][] = [
  ['priority', 100],
  ['preempt', true],
  ['preemptDelay', '0'],
];

/** Null for what none of them can be, which the schema tells of. */
const scalarText = (value: unknown): string | null =>
  typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean' ? String(value) : null;

const checkGroups = (groups: Raw, routers: Raw, folder: string, report: Report): void => {
  const groupOf = new Map<string, string>();
  for (const [name, value] of Object.entries(groups)) {
    const members = asList(asMap(value)['routers']);
    checkNotify(asMap(value)['notify'], folder, (...path) => ['syncGroups', name, 'notify', ...path], report);
    members.forEach((member, index) => {
      if (typeof member !== 'string') return;
      const at: Path = ['syncGroups', name, 'routers', index];
      if (!Object.hasOwn(routers, member)) {
        const known = Object.keys(routers);
        report(
          at,
          `there is no router ${member}; ${known.length > 0 ? `allowed are ${known.join(', ')}` : 'the file has none'}`,
        );
        return;
      }
      const other = groupOf.get(member);
      if (other !== undefined)
        report(at, `router ${member} is in ${other === name ? 'it' : `sync group ${other}`} already`);
      groupOf.set(member, name);
      const first = members.find((candidate) => typeof candidate === 'string' && Object.hasOwn(routers, candidate));
      for (const [key, standard] of COMMON) {
        const wanted = scalarText(asMap(routers[first as string])[key] ?? standard);
        const given = scalarText(asMap(routers[member])[key] ?? standard);
        if (wanted !== null && given !== null && wanted !== given)
          report(
            ['routers', member, ...(asMap(routers[member])[key] === undefined ? [] : [key])],
            `${key} is ${given}, but ${wanted} of router ${String(first)} in the same sync group; members must agree, or they would pull apart`,
          );
      }
    });
  }
};
