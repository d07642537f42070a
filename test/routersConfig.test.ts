/** Routers in the configuration: what is refused and how it is told, and the actors that they ask for. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { formatProblem, loadConfig } from '../src/config/load.ts';
import type { Config } from '../src/config/schema.ts';
import { listenersOf } from '../src/dataPlaneWiring.ts';
import { recordableConfig } from '../src/fingerprint.ts';
import { actorsOf, holdersOf } from '../src/wiring.ts';
import { tempFolder } from './nodeHelpers.ts';

type Keys = Record<string, unknown>;

const MULTICAST: Keys = { vrid: 51, interface: 'eth0', addresses: ['10.9.0.100/24'] };
const UDP: Keys = {
  vrid: 51,
  transport: 'udp',
  source: '127.0.0.2',
  peers: ['127.0.0.3'],
  addresses: ['127.0.0.100'],
};
const WEB = { web: { servers: [{ name: 'a', address: '10.0.0.1:80' }] } };

/** JSON is YAML: what these tests change are the keys, not how they are written. */
const fileOf = (routers: Record<string, Keys>, more: Keys = {}): string =>
  JSON.stringify({ node: 'lb1', workers: 1, backends: WEB, routers, ...more });

const problemsOf = (routers: Record<string, Keys>, more: Keys = {}, folder = '/'): string[] => {
  const loaded = loadConfig(fileOf(routers, more), {}, folder);
  if (!('problems' in loaded)) return [];
  return loaded.problems.map((problem) => formatProblem('f', problem).replace(/^f:\d+:\d+ /, ''));
};

const configOf = (routers: Record<string, Keys>, more: Keys = {}): Config => {
  const loaded = loadConfig(fileOf(routers, more), {}, '/etc/understudy');
  if ('problems' in loaded) throw new Error(JSON.stringify(loaded.problems));
  return loaded.config;
};

describe('what is refused, and what is allowed', () => {
  const one = (change: Keys, base = MULTICAST) => problemsOf({ gw: { ...base, ...change } });

  test.each<[string, Keys, string]>([
    ['a VRID beyond a byte', { vrid: 256 }, 'routers.gw.vrid: 256 is too large; at most 255 is allowed'],
    ['a priority of 0', { priority: 0 }, 'routers.gw.priority: 0 is too small; at least 1 is allowed'],
    [
      'an interval that version 3 can not say',
      { advertise: '15ms' },
      'routers.gw.advertise: version 3 counts in hundredths of a second: multiples of 10ms',
    ],
    [
      'an interval beyond 12 bits of centiseconds',
      { advertise: '41s' },
      'routers.gw.advertise: too long; version 3 can say at most 40950ms',
    ],
    [
      'parts of a second in version 2',
      { version: 2, advertise: '100ms' },
      'routers.gw.advertise: version 2 counts in whole seconds; less takes version 3',
    ],
    [
      'IPv6 in version 2',
      { version: 2, addresses: ['fe80::100/64'] },
      'routers.gw.version: version 2 knows IPv4 only; IPv6 takes version 3',
    ],
    [
      'an address that is none',
      { addresses: ['10.9.0/24'] },
      'routers.gw.addresses[0]: "10.9.0/24" is not an address; allowed are forms like 10.9.0.100/24, fe80::100/64',
    ],
    [
      'IPv6 that does not begin with a link-local address',
      { addresses: ['fd00::100/64'] },
      'routers.gw.addresses[0]: the first address of an IPv6 router has to be link-local (RFC 9568 section 5.2.9)',
    ],
    [
      'both families in one router',
      { addresses: ['10.9.0.100/24', 'fe80::100/64'] },
      'routers.gw.addresses[1]: one router is of one family: IPv4 and IPv6 take a router each',
    ],
    [
      'the same address twice',
      { addresses: ['10.9.0.100/24', '10.9.0.100'] },
      "routers.gw.addresses[1]: 10.9.0.100 is router gw's already",
    ],
    [
      'unicast to nobody',
      { transport: 'unicast' },
      'routers.gw.transport: unicast needs peers: the addresses of the other nodes',
    ],
    [
      'peers of multicast',
      { peers: ['10.9.0.12'] },
      'routers.gw.peers: multicast finds its peers by itself; `transport: unicast` or `udp` takes a list',
    ],
    [
      'a peer by name',
      { transport: 'unicast', peers: ['lb2'] },
      'routers.gw.peers[0]: "lb2" is not a peer; allowed are forms like 10.9.0.12, 10.9.0.12:1112, [fd00::12]:1112',
    ],
    ['no interface', { interface: undefined }, 'routers.gw: missing interface; multicast needs the link that it is on'],
    [
      "version 2's password in version 3",
      { authentication: { type: 'pass', secret: 'x' } },
      "routers.gw.authentication.type: pass is version 2's; version 3 has hmac and sealed",
    ],
    [
      'a short seal',
      { authentication: { type: 'sealed', secret: 'short' } },
      'routers.gw.authentication.secret: too short; at least 16 characters are needed',
    ],
    [
      'a short key',
      { authentication: { type: 'hmac', keys: [{ id: 1, secret: 'x'.repeat(31) }] } },
      'routers.gw.authentication.keys[0].secret: it has 31 bytes; 32 to 64 are needed',
    ],
    [
      'a secret that can not be read',
      { authentication: { type: 'sealed', secret: { file: 'gone' } } },
      "routers.gw.authentication.secret: the secret can't be read: ENOENT: no such file or directory, open '/gone'",
    ],
    [
      'a pool that is not there',
      { track: [{ pool: 'wob' }] },
      'routers.gw.track[0].pool: there is no backend wob; allowed are web',
    ],
    [
      'a script that can not be run',
      { track: [{ script: ['/gone/check'] }] },
      "routers.gw.track[0].script: /gone/check can't be run: there is no such program, or it is not executable",
    ],
    [
      'a notify script that can not be run',
      { notify: { master: ['./gone'] } },
      "routers.gw.notify.master: ./gone can't be run: there is no such program, or it is not executable",
    ],
    [
      'a weight for an owner',
      { priority: 255, track: [{ pool: 'web', weight: -60 }] },
      'routers.gw.track[0].weight: the priority of an owner (255) is never changed; leave the weight out',
    ],
    [
      'a label on IPv6',
      { addresses: [{ address: 'fe80::100/64', label: 'eth0:1' }] },
      'routers.gw.addresses[0].label: only IPv4 addresses have labels',
    ],
    ['a key like one that is known', { preemt: false }, 'routers.gw.preemt: unknown key; did you mean preempt?'],
  ])('%s', (_what, change, problem) => {
    expect(one(change)).toEqual([problem]);
  });

  test('udp without an interface needs its source, and holds loopback addresses only', () => {
    expect(one({ source: undefined }, UDP)).toEqual(['routers.gw: missing source; udp without an interface needs it']);
    expect(one({ addresses: ['10.9.0.100'] }, UDP)).toEqual([
      'routers.gw.addresses[0]: without an interface only addresses of the loopback range can be held',
    ]);
  });

  test('two routers on one link with one VRID', () => {
    const other = { ...MULTICAST, addresses: ['10.9.0.101/24'] };
    expect(problemsOf({ gw: MULTICAST, other })).toEqual([
      "routers.other.vrid: 51 is router gw's on the same link; each needs one of its own",
    ]);
    expect(problemsOf({ gw: MULTICAST, other: { ...other, interface: 'eth1' } })).toEqual([]);
    // IPv4 and IPv6 are virtual routers of their own (RFC 9568 section 5.2.3).
    expect(problemsOf({ gw: MULTICAST, other: { ...other, addresses: ['fe80::100/64'] } })).toEqual([]);
  });

  test('members of a sync group have to agree, exist, and be in one group', () => {
    const other = { ...MULTICAST, interface: 'eth1', addresses: ['10.8.0.100/24'], priority: 90 };
    const groups = (routers: string[]) => ({ syncGroups: { both: { routers } } });
    expect(problemsOf({ gw: MULTICAST, other }, groups(['gw', 'other']))).toEqual([
      'routers.other.priority: priority is 90, but 100 of router gw in the same sync group; members must agree, or they would pull apart',
    ]);
    expect(problemsOf({ gw: MULTICAST, other: { ...other, priority: 100 } }, groups(['gw', 'gone']))).toEqual([
      'syncGroups.both.routers[1]: there is no router gone; allowed are gw, other',
    ]);
  });

  test('one name is one script', () => {
    const track = (script: string[]) => ({ track: [{ script, name: 'check' }] });
    const other = { ...MULTICAST, interface: 'eth1', addresses: ['10.8.0.100/24'], ...track(['/bin/false']) };
    expect(problemsOf({ gw: { ...MULTICAST, ...track(['/bin/true']) }, other })).toEqual([
      'routers.other.track[0].name: check is another script already; one name is one script, run in one way',
    ]);
  });

  test('the defaults are those that keepalived’s users expect', () => {
    const { gw } = configOf({ gw: MULTICAST }).routers;
    expect(gw).toMatchObject({
      version: 3,
      priority: 100,
      advertise: 1000,
      preempt: true,
      transport: 'multicast',
      accept: true,
      virtualMac: false,
      announce: { repeat: 5, delay: 5000, refresh: 0, refreshRepeat: 1 },
      addresses: [{ address: '10.9.0.100', prefixLength: 24, family: 'ipv4' }],
    });
  });

  test('no secret of a router enters a record', () => {
    const folder = tempFolder();
    writeFileSync(join(folder, 'key'), `${'k'.repeat(40)}\n`);
    const secrets = configOf({
      a: { ...MULTICAST, authentication: { type: 'sealed', secret: 'a secret of some length' } },
      b: {
        ...MULTICAST,
        vrid: 52,
        addresses: ['10.9.0.101'],
        authentication: { type: 'hmac', keys: [{ id: 1, secret: 'z'.repeat(32) }] },
      },
    });
    const recorded = JSON.stringify(recordableConfig(secrets));
    expect(recorded).not.toContain('a secret of some length');
    expect(recorded).not.toContain('zzzz');
  });
});

describe('the actors that routers ask for', () => {
  const idsOf = (config: Config) => actorsOf(config).map(({ id }) => id);
  const inputOf = (config: Config, id: string) =>
    actorsOf(config).find((spec) => spec.id === id)?.input as unknown as { settings: Record<string, unknown> };

  test('trackers first, then addresses, then routers: whoever is told something is there before whoever tells', () => {
    const config = configOf({ gw: { ...MULTICAST, track: [{ pool: 'web', weight: -60 }, { interface: 'eth1' }] } });
    expect(idsOf(config).slice(-4)).toEqual([
      'tracker/pool/web',
      'tracker/interface/eth1',
      'address/gw/10.9.0.100',
      'router/gw',
    ]);
  });

  test('two routers that track the same thing share a tracker, and its pool tells it', () => {
    const track = [{ pool: 'web', weight: -60 }];
    const config = configOf({
      gw: { ...MULTICAST, track },
      other: { ...MULTICAST, vrid: 52, addresses: ['10.9.0.101'], track },
    });
    expect(idsOf(config).filter((id) => id.startsWith('tracker/'))).toEqual(['tracker/pool/web']);
    expect(inputOf(config, 'tracker/pool/web').settings['routers']).toEqual(['router/gw', 'router/other']);
    expect(inputOf(config, 'pool/web').settings['watchers']).toEqual([{ tracker: 'tracker/pool/web', atLeast: 1 }]);
  });

  test('the same thing looked at in another way is another tracker', () => {
    const track = [{ pool: 'web' }, { pool: 'web', atLeast: 2, weight: -10 }];
    const ids = idsOf(configOf({ gw: { ...MULTICAST, track } })).filter((id) => id.startsWith('tracker/'));
    expect(ids[0]).toBe('tracker/pool/web');
    expect(ids[1]).toMatch(/^tracker\/pool\/web#[0-9a-f]{6}$/);
  });

  test('in a sync group every member tracks what any of them does', () => {
    const config = configOf(
      {
        gw: { ...MULTICAST, track: [{ pool: 'web', weight: -60 }] },
        other: { ...MULTICAST, interface: 'eth1', addresses: ['10.8.0.100/24'] },
      },
      { syncGroups: { both: { routers: ['gw', 'other'] } } },
    );
    expect(inputOf(config, 'router/other').settings['track']).toEqual([
      { tracker: 'tracker/pool/web', weight: -60, reverse: false },
    ]);
    expect(inputOf(config, 'router/other').settings['group']).toBe('group/both');
  });

  test('a listener on a virtual address can be bound before it is here; on loopback it waits for the address', () => {
    const frontends = { shop: { mode: 'http', bind: ['10.9.0.100:80', '127.0.0.100:80', '127.0.0.1:80'], use: 'web' } };
    const config = configOf({ gw: MULTICAST, local: UDP }, { frontends });
    const free = listenersOf(config).map(({ id, freeBind }) => `${id} ${freeBind}`);
    expect(free).toEqual([
      'listener/shop/10.9.0.100:80 true',
      'listener/shop/127.0.0.100:80 true',
      'listener/shop/127.0.0.1:80 false',
    ]);
    expect([...holdersOf(config)]).toEqual([['listener/shop/127.0.0.100:80', 'address/local/127.0.0.100']]);
  });
});
