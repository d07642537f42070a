/** Explanations of routers as a person on call reads them. The transcripts are read in review: each sentence must be true. */
import { beforeAll, describe, expect, test } from 'vitest';
import { formatExplanation } from '../src/cli/explain.ts';
import { explain } from '../src/worlds/explain.ts';
import type { Explanation } from '../src/worlds/explain.ts';
import {
  advertFrom,
  downWhile,
  gatewayConfig,
  makeFolder,
  NIGHT_US,
  SEEN_DOWN,
  SEEN_UP,
  SimulatedNode,
  withReader,
} from './journalHelpers.ts';
import type { SimulatedOptions } from './journalHelpers.ts';

beforeAll(() => {
  process.env['TZ'] = 'UTC';
});

const at = (ms: number) => NIGHT_US + ms * 1000;

const record = async (
  untilMs: number,
  options: Partial<SimulatedOptions>,
  during: (node: SimulatedNode) => void,
): Promise<string> => {
  const path = `${makeFolder()}/lb1.db`;
  const node = await SimulatedNode.start({ path, config: gatewayConfig(), ...options });
  during(node);
  node.runUntil(untilMs);
  await node.journal.close();
  return path;
};

const explained = (path: string, actor: string, atMs: number): Explanation =>
  withReader(path, (reader) => explain(reader, actor, at(atMs)));

const text = (path: string, actor: string, atMs: number): string =>
  `${formatExplanation(explained(path, actor, atMs))}\n`;

const file = (name: string): string => `./transcripts/explain-router-${name}.txt`;

/** Both servers fail from 18 s to 60 s. */
const outage = {
  health: downWhile({ web1: [[18_000, 60_000]], web2: [[18_000, 60_000]] }),
};

const interfaceDown = { type: 'interface.down', code: 'ENOLINK', message: 'interface eth0 has no carrier' };

const CAPABILITY = '10.9.0.100/24 on eth0: changing addresses takes CAP_NET_ADMIN';

const otherPassword = {
  type: 'advert.discarded',
  kind: 'authentication',
  source: '10.9.0.12',
  field: 'authentication.secret',
  own: 'pass',
  peer: 'pass with another secret',
};

describe('a router', () => {
  test('gives way because its pool has no usable server, and takes over again', async () => {
    const path = await record(90_000, outage, (node) => void node.peer('10.9.0.12'));
    const backup = explained(path, 'router/gateway', 40_000);
    expect(backup.headline).toMatch(/is BACKUP since .* 150 − 60 \(pool web has no usable server, since 03:00:19/);
    expect(backup.headline).toContain('below that of the master 10.9.0.12 (100)');
    await expect(text(path, 'router/gateway', 40_000)).toMatchFileSnapshot(file('gives-way'));
    expect(explained(path, 'router/gateway', 90_000).headline).toContain('is MASTER since');
    await expect(text(path, 'router/gateway', 90_000)).toMatchFileSnapshot(file('takes-over-again'));
  });

  test('takes over from a master that falls silent', async () => {
    const path = await record(30_000, {}, (node) => {
      const peer = node.peer('10.9.0.12', { priority: 200 });
      node.runUntil(20_400);
      peer.die();
    });
    const master = text(path, 'router/gateway', 30_000);
    // 3 s and (256 − 150)/256 s from the last advert on.
    expect(master).toContain('the last advert came 3414 ms before, 3414 ms are waited');
    await expect(master).toMatchFileSnapshot(file('silent-master'));
  });

  test('takes over from a master that leaves', async () => {
    const path = await record(30_000, {}, (node) => {
      const peer = node.peer('10.9.0.12', { priority: 200 });
      node.runUntil(20_400);
      peer.system.send('router/peer', { type: 'router.stop' });
    });
    await expect(text(path, 'router/gateway', 30_000)).toMatchFileSnapshot(file('master-left'));
  });

  test('in FAULT, and out of it', async () => {
    const path = await record(30_000, {}, (node) => {
      node.peer('10.9.0.12');
      node.runUntil(15_000);
      node.system.send('router/gateway', interfaceDown);
      node.runUntil(20_000);
      node.system.send('router/gateway', { type: 'interface.up', address: '10.9.0.11', key: '4:0a09000b' } as {
        type: string;
      });
    });
    await expect(text(path, 'router/gateway', 18_000)).toMatchFileSnapshot(file('fault'));
    expect(explained(path, 'router/gateway', 21_000).headline).toContain('is BACKUP since');
  });

  test('demoted by an operator, and still so after a restart', async () => {
    const path = await record(20_000, {}, (node) => {
      node.peer('10.9.0.12');
      node.runUntil(12_000);
      node.system.send('router/gateway', { type: 'operator.demote' });
    });
    await expect(text(path, 'router/gateway', 20_000)).toMatchFileSnapshot(file('demoted'));
    const again = await SimulatedNode.start({ path, config: gatewayConfig(), wallUs: at(60_000) });
    again.peer('10.9.0.12');
    again.runUntil(10_000);
    await again.journal.close();
    expect(again.system.get('router/gateway')?.context).toMatchObject({ intent: 'demoted' });
    await expect(text(path, 'router/gateway', 70_000)).toMatchFileSnapshot(file('demoted-restart'));
  });

  test('beside a peer whose adverts are discarded', async () => {
    const path = await record(20_000, {}, (node) => {
      for (let ms = 10_000; ms < 20_000; ms += 1000) {
        node.runUntil(ms);
        node.hear('gateway', otherPassword);
      }
    });
    const told = text(path, 'router/gateway', 20_000);
    expect(told).toContain('another authentication password (own pass, theirs pass with another secret): two masters');
    await expect(told).toMatchFileSnapshot(file('conflict'));
  });

  test('that hears another master below it, and whose address is taken away', async () => {
    const path = await record(20_000, {}, (node) => {
      for (let ms = 10_500; ms < 14_000; ms += 1000) {
        node.runUntil(ms);
        node.hear('gateway', advertFrom('10.9.0.13', 50));
      }
      node.runUntil(16_000);
      node.system.send('address/gateway/10.9.0.100', { type: 'address.lost' });
    });
    const told = text(path, 'router/gateway', 20_000);
    expect(told.match(/is master too/g)).toHaveLength(1);
    await expect(told).toMatchFileSnapshot(file('incidents'));
  });

  test('with a flapping tracker: the newest events are told, the others are counted', async () => {
    const config = gatewayConfig({ router: { track: [{ script: ['/bin/true'], weight: -20, interval: '500ms' }] } });
    const observe = (_: string, ms: number) => (Math.floor(ms / 1000) % 2 === 1 ? SEEN_DOWN : SEEN_UP);
    const path = await record(60_000, { config, observe }, () => {});
    const told = text(path, 'router/gateway', 60_000);
    expect(told).toMatch(/\d+ events are left out here: understudy log --actor router\/gateway/);
    expect(told.match(/ now, it was /g)).toHaveLength(24);
  });

  test('whose runs are long is explained without spelling them out', async () => {
    const config = gatewayConfig({ router: { advertise: '10ms' } });
    const path = await record(
      60_000,
      { config },
      (node) => void node.peer('10.9.0.12', { priority: 200, advertMs: 10 }),
    );
    const { remarks } = explained(path, 'router/gateway', 60_000);
    expect(remarks).toEqual([expect.stringMatching(/^Since then 5\d\d\d more adverts were received, the last \d/)]);
  });

  test('that the journal doesn’t have', async () => {
    const path = await record(5000, {}, () => {});
    expect(() => explained(path, 'router/other', 5000)).toThrow(/no actor router\/other .*router\/gateway/);
  });
});

describe('what belongs to routers', () => {
  test('an address: added, handed over, removed', async () => {
    const path = await record(40_000, outage, (node) => void node.peer('10.9.0.12'));
    await expect(text(path, 'address/gateway/10.9.0.100', 10_000)).toMatchFileSnapshot(file('address-here'));
    await expect(text(path, 'address/gateway/10.9.0.100', 40_000)).toMatchFileSnapshot(file('address-gone'));
  });

  test('an address that can’t be added', async () => {
    const addAddress = () => ({ ok: false as const, code: 'EPERM', message: CAPABILITY });
    const path = await record(5000, { addAddress }, () => {});
    await expect(text(path, 'address/gateway/10.9.0.100', 3900)).toMatchFileSnapshot(file('address-failed'));
    await expect(text(path, 'router/gateway', 3900)).toMatchFileSnapshot(file('address-failed-router'));
  });

  test('a tracker: what it saw, what routers made of it', async () => {
    const path = await record(40_000, outage, (node) => void node.peer('10.9.0.12'));
    await expect(text(path, 'tracker/pool/web', 40_000)).toMatchFileSnapshot(file('tracker-pool'));
  });

  test('a script that must fail three times', async () => {
    const config = gatewayConfig({
      router: { track: [{ script: ['/bin/true'], name: 'reachable', weight: 0, fall: 3, rise: 2 }] },
    });
    const observe = (_: string, ms: number) => (ms > 10_000 && ms < 20_000 ? SEEN_DOWN : SEEN_UP);
    const path = await record(30_000, { config, observe }, () => {});
    await expect(text(path, 'tracker/script/reachable', 18_000)).toMatchFileSnapshot(file('tracker-script'));
    await expect(text(path, 'router/gateway', 18_000)).toMatchFileSnapshot(file('tracker-fault'));
  });

  test('a sync group: who moved it', async () => {
    const inside = { vrid: 52, interface: 'eth1', priority: 150, addresses: ['192.168.0.100/24'] };
    const config = gatewayConfig({
      router: { track: [] },
      others: { inside },
      more: 'syncGroups: { both: { routers: [gateway, inside] } }',
    });
    const path = await record(30_000, { config }, (node) => {
      node.runUntil(15_000);
      node.system.send('router/inside', interfaceDown);
    });
    await expect(text(path, 'group/both', 30_000)).toMatchFileSnapshot(file('group'));
    await expect(text(path, 'router/gateway', 30_000)).toMatchFileSnapshot(file('group-member'));
  });
});
