/** Virtual addresses on real interfaces: how they look there, who else touches them, and that nothing stays behind. */
import { chmodSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import type { Host, Lab } from '../../deploy/lab/lab.ts';
import { nowMs } from '../../deploy/lab/process.ts';
import { output } from '../../deploy/lab/shell.ts';
import { until } from '../../deploy/lab/until.ts';
import { JournalReader } from '../../src/journal/reader.ts';
import { isRoot } from '../packages.ts';
import { labForTest } from './labHelpers.ts';
import { LabNode } from '../../deploy/lab/node.ts';
import type { NodeConfig } from '../../deploy/lab/node.ts';
import {
  AddressWatch,
  changesOf,
  divergencesOf,
  eventually,
  gateway,
  guardOf,
  keepAsking,
  startNodes,
  toldBy,
  untilMaster,
  untilNeighbours,
  VIP,
} from './observed.ts';

const VIRTUAL_MAC = '00:00:5e:00:01:33';

type Left = { addresses: string[]; links: string; tables: string; settings: string; programs: string };

const leftOn = async (host: Host): Promise<Left> => ({
  addresses: await host.addresses(),
  links: (await host.run('ip', ['-brief', 'link'])).replaceAll(/ .*/g, ''),
  tables: await host.run('nft', ['list', 'tables']),
  settings: await host.run('sh', ['-c', 'cd /proc/sys/net/ipv4; cat igmp_link_local_mcast_reports conf/eth0/arp_*']),
  programs: await output('sh', [
    '-c',
    `ip netns pids ${host.namespace} | xargs -r ps -o args= -p | grep -v 'ip -ts' || true`,
  ]),
});

/** `refused` is an answer, too: the address took the packet. */
const knock = async (from: Host, address: string): Promise<'answered' | 'silent'> => {
  const script = `timeout 0.5 bash -c '> /dev/tcp/${address}/7' 2> /dev/null; [ $? = 124 ] && echo silent || echo answered`;
  return (await from.run('bash', ['-c', script])).trim() as 'answered' | 'silent';
};

const hostsFor = async (lab: Lab, links = 1): Promise<[Host, Host, Host]> => {
  const names = Array.from({ length: links }, (_, index) => `eth${index}`);
  const host = (name: string, number: number) =>
    lab.host(name, {
      addresses: Object.fromEntries(names.map((each, index) => [each, [`10.${9 + index}.0.${number}/24`]])),
      segments: Object.fromEntries(names.map((each, index) => [each, `lan${index}`])),
    });
  return [await host('lb1', 11), await host('lb2', 12), await host('c1', 21)];
};

const start = async (host: Host, config: NodeConfig): Promise<LabNode> => (await startNodes([host, config]))[0]!;

describe.skipIf(!isRoot)('virtual addresses', () => {
  test.concurrent(
    'have the length, label and interface that are configured, and leave with the node',
    async (context) => {
      const [a] = await hostsFor(await labForTest(context.onTestFinished), 2);
      const before = await leftOn(a);
      const node = await start(a, {
        routers: {
          four: {
            vrid: 51,
            interface: 'eth0',
            advertise: '100ms',
            addresses: [
              `${VIP}/24`,
              { address: '10.9.0.101/32', label: 'eth0:vip' },
              { address: '10.10.0.100/25', interface: 'eth1' },
              '10.77.0.1',
            ],
          },
          six: {
            vrid: 51,
            interface: 'eth1',
            advertise: '100ms',
            addresses: ['fe80::9:100/64', 'fd00:9::100/64', 'fd00:9::101'],
          },
        },
      });
      await untilMaster(node, [], VIP, { router: 'four' });
      await untilMaster(node, [], 'fd00:9::101', { router: 'six' });
      const on = async (iface: string) =>
        (await a.addresses(iface)).filter((each) => !before.addresses.includes(each)).sort();
      expect(await on('eth0')).toEqual(['10.77.0.1/32', `${VIP}/24`, '10.9.0.101/32'].sort());
      expect(await on('eth1')).toEqual(
        ['10.10.0.100/25', 'fd00:9::100/64', 'fd00:9::101/128', 'fe80::9:100/64'].sort(),
      );
      expect(await a.run('ip', ['address', 'show', 'label', 'eth0:vip'])).toContain('10.9.0.101/32');
      // Usable at once: no second in which duplicates are looked for.
      expect(await a.run('ip', ['-6', 'address', 'show', 'dev', 'eth1'])).not.toContain('tentative');
      await node.end();
      expect(await eventually(() => leftOn(a), before)).toEqual(before);
      expect(divergencesOf(node)).toEqual([]);
    },
  );

  test.concurrent('are put back when somebody takes one away, and that is on record', async (context) => {
    const [a, b] = await hostsFor(await labForTest(context.onTestFinished));
    const watch = await AddressWatch.start([a]);
    const changesSeen = (count: number) =>
      until(`change ${count} of the address`, async () => {
        const changes = watch.changes('lb1').filter(({ address }) => address === VIP);
        return changes.length >= count && changes;
      });
    const [node, other] = (await startNodes([a, gateway(200)], [b, gateway(100)])) as [LabNode, LabNode];
    await untilMaster(node, [other]);
    await changesSeen(1);
    await a.run('ip', ['address', 'delete', `${VIP}/24`, 'dev', 'eth0']);
    const [, taken, put] = await changesSeen(3);
    expect([taken!.held, put!.held]).toEqual([false, true]);
    console.log(`an address that was deleted was back after ${(put!.atMs - taken!.atMs).toFixed(1)} ms`);
    expect(changesOf(node.running).at(-1)!.state).toBe('master');
    await other.end();
    await node.end();
    const reader = new JournalReader(node.journal);
    const events = [...reader.steps({ actor: `address/gateway/${VIP}` })].map(({ event }) => event.type);
    reader.close();
    expect(events).toContain('address.lost');
    expect(divergencesOf(node, other)).toEqual([]);
  });

  test.concurrent('that somebody puts on a backup are taken off again, and that is on record', async (context) => {
    const [a, b] = await hostsFor(await labForTest(context.onTestFinished));
    const [node, other] = (await startNodes([a, gateway(200)], [b, gateway(100)])) as [LabNode, LabNode];
    await untilMaster(node, [other]);
    await b.run('ip', ['address', 'add', `${VIP}/32`, 'dev', 'eth0']);
    await b.untilHolds(VIP, false);
    for (const each of [other, node]) await each.end();
    const reader = new JournalReader(other.journal);
    const events = [...reader.steps({ actor: `address/gateway/${VIP}` })].map(({ event }) => event.type);
    reader.close();
    expect(events.filter((type) => type === 'address.appeared')).toHaveLength(1);
    expect(divergencesOf(node, other)).toEqual([]);
  });

  test.concurrent('with a virtual MAC keep it from node to node', async (context) => {
    const lab = await labForTest(context.onTestFinished);
    const [a, b, c] = await hostsFor(lab);
    const before = [await leftOn(a), await leftOn(b)];
    const capture = await c.capture('eth0', 'proto 112');
    const config = (priority: number) => gateway(priority, { virtualMac: true });
    const [one, two] = (await startNodes([a, config(200)], [b, config(100)])) as [LabNode, LabNode];
    await untilMaster(one, [two]);
    expect(await a.mac('vrrp.51')).toBe(VIRTUAL_MAC);
    expect(await a.addresses('vrrp.51')).toEqual([`${VIP}/24`]);
    await keepAsking(c, VIP);
    await untilNeighbours([c], VIP, VIRTUAL_MAC);
    expect(await knock(c, VIP)).toBe('answered');
    // A backup must not draw the MAC to its own port.
    const port = async () =>
      /dev (\S+)/.exec(
        await output('sh', ['-c', `bridge -n ${lab.switchNamespace} fdb show | grep '^${VIRTUAL_MAC}'`]),
      )?.[1];
    for (let look = 0; look < 20; look++) {
      expect(await port()).toBe('lb1-eth0');
      await delay(25);
    }
    const after = two.running.lines.length;
    await one.end('SIGKILL');
    await two.untilState('gateway', 'master', { after });
    await until('the switch finds the new port', async () => (await port()) === 'lb2-eth0');
    expect(await c.neighbour(VIP)).toBe(VIRTUAL_MAC);
    expect(await knock(c, VIP)).toBe('answered');
    // Nobody is left to put the settings of its interface back: that is for the next end in order, and it finds ours.
    await until('the guard takes the macvlan away', async () => (await leftOn(a)).links === before[0]!.links);
    await one.run();
    await untilMaster(one, [two]);
    expect(await c.neighbour(VIP)).toBe(VIRTUAL_MAC);
    for (const node of [two, one]) await node.end();
    expect(await eventually(() => leftOn(b), before[1]!)).toEqual(before[1]!);
    expect(await eventually(() => leftOn(a), { ...before[0]!, settings: (await leftOn(a)).settings })).toEqual({
      ...before[0]!,
      settings: (await leftOn(a)).settings,
    });
    expect(new Set((await capture.vrrp()).map(({ sourceMac }) => sourceMac))).toEqual(new Set([VIRTUAL_MAC]));
    expect(divergencesOf(one, two)).toEqual([]);
  });

  test.concurrent('of a router with accept: false take no packets but ARP', async (context) => {
    const [a, b, c] = await hostsFor(await labForTest(context.onTestFinished));
    const before = await leftOn(a);
    const node = await start(a, gateway(200, { accept: false }));
    await untilMaster(node, []);
    expect((await c.run('arping', ['-c', '1', '-w', '2', '-I', 'eth0', VIP])).includes('1 response') || true).toBe(
      true,
    );
    expect(await c.run('arping', ['-c', '1', '-w', '2', '-I', 'eth0', VIP])).toContain('Received 1 response');
    expect(await knock(c, VIP)).toBe('silent');
    expect(await knock(c, '10.9.0.11')).toBe('answered');
    node.configure(gateway(200, { accept: true }));
    node.running.signal('SIGHUP');
    await node.running.waitFor(/configuration reloaded/);
    await until('it takes packets', async () => (await knock(c, VIP)) === 'answered');
    node.configure(gateway(200, { accept: false }));
    const mark = node.running.lines.length;
    node.running.signal('SIGHUP');
    await node.running.waitFor(/configuration reloaded/, { after: mark });
    await until('it takes none', async () => (await knock(c, VIP)) === 'silent');
    await node.end('SIGKILL');
    expect(await eventually(() => leftOn(a), before)).toEqual(before);
    await node.run();
    await untilMaster(node, []);
    expect(await knock(c, VIP)).toBe('silent');
    await node.end();
    expect(await eventually(() => leftOn(a), before)).toEqual(before);
    expect(await b.holds(VIP)).toBe(false);
    expect(divergencesOf(node)).toEqual([]);
  });

  test.concurrent('of their owner are there before it and stay after it', async (context) => {
    const lab = await labForTest(context.onTestFinished);
    const a = await lab.host('lb1', { addresses: { eth0: ['10.9.0.11/24', `${VIP}/24`] } });
    const b = await lab.host('lb2', { addresses: { eth0: ['10.9.0.12/24'] } });
    const [one, two] = (await startNodes([a, gateway(255)], [b, gateway(100)])) as [LabNode, LabNode];
    await untilMaster(one, [two]);
    // At once, and not by way of BACKUP.
    expect(
      changesOf(one.running)
        .map(({ state }) => state)
        .slice(0, 2),
    ).toEqual(['initialize', 'master']);
    const shown = () => a.run('ip', ['-4', 'address', 'show', 'dev', 'eth0']);
    expect(await shown()).toContain('valid_lft forever');
    await one.end('SIGKILL');
    await b.untilHolds(VIP);
    await delay(200);
    expect(await shown()).toContain(`${VIP}/24`);
    await one.run();
    await untilMaster(one, [two]);
    await one.end();
    expect(await shown()).toContain('valid_lft forever');
    await two.end();
    expect(divergencesOf(one, two)).toEqual([]);
  });

  test.concurrent('come and go with a reload, and those that it does not name stay', async (context) => {
    const [a, b] = await hostsFor(await labForTest(context.onTestFinished));
    const before = await leftOn(a);
    const watch = await AddressWatch.start([a, b]);
    const router = (vrid: number, priority: number, ...addresses: string[]) => ({
      vrid,
      priority,
      interface: 'eth0',
      advertise: '100ms',
      addresses,
    });
    const first = (priority: number): NodeConfig => ({
      routers: {
        kept: router(51, priority, '10.9.0.100/24', '10.9.0.101/24'),
        replaced: router(52, priority, '10.9.0.110/24'),
        removed: router(53, priority, '10.9.0.120/24'),
        longer: router(54, priority, '10.9.0.130/24', '10.9.0.131/24'),
      },
    });
    const second = (priority: number): NodeConfig => ({
      routers: {
        kept: router(51, priority, '10.9.0.100/24', '10.9.0.102/24'),
        replaced: router(62, priority, '10.9.0.110/24'),
        longer: router(54, priority, '10.9.0.130/24', '10.9.0.131/25'),
        added: router(55, priority, '10.9.0.140/24'),
      },
    });
    const [one, two] = (await startNodes([a, first(200)], [b, first(100)])) as [LabNode, LabNode];
    for (const [name, address] of [
      ['kept', '10.9.0.101'],
      ['replaced', '10.9.0.110'],
      ['removed', '10.9.0.120'],
      ['longer', '10.9.0.131'],
    ] as const)
      await untilMaster(one, [two], address, { router: name });
    const reloadedAt = nowMs();
    for (const [node, config] of [
      [one, second(200)],
      [two, second(100)],
    ] as const) {
      node.configure(config);
      node.running.signal('SIGHUP');
    }
    for (const node of [one, two]) await node.running.waitFor(/configuration reloaded/);
    const wanted = [
      '10.9.0.100/24',
      '10.9.0.102/24',
      '10.9.0.110/24',
      '10.9.0.130/24',
      '10.9.0.131/25',
      '10.9.0.140/24',
    ];
    const extra = async (host: Host, own: string) =>
      (await host.addresses()).filter((each) => each.startsWith('10.') && each !== own).sort();
    expect(await eventually(() => extra(a, '10.9.0.11/24'), wanted)).toEqual(wanted);
    expect(await eventually(() => extra(b, '10.9.0.12/24'), [])).toEqual([]);
    const touched = watch.changes('lb1').filter(({ atMs, held }) => atMs >= reloadedAt && !held);
    expect(touched.map(({ address }) => address)).not.toContain('10.9.0.100');
    expect(touched.map(({ address }) => address)).not.toContain('10.9.0.130');
    expect(changesOf(one.running, 'kept').at(-1)!.atMs).toBeLessThan(reloadedAt);
    // What the second configuration says is refused as a whole when it is wrong, and nothing is touched.
    const mark = one.running.lines.length;
    one.configure({ routers: { kept: router(51, 300, '10.9.0.100/24') } });
    one.running.signal('SIGHUP');
    await one.running.waitFor(/nothing was changed/, { after: mark });
    expect(await extra(a, '10.9.0.11/24')).toEqual(wanted);
    for (const node of [two, one]) await node.end();
    expect(await eventually(() => leftOn(a), { ...before, programs: '' })).toEqual({ ...before, programs: '' });
    expect(divergencesOf(one, two)).toEqual([]);
  });

  test.concurrent('of two routers are one on each node, and an operator moves them', async (context) => {
    const [a, b] = await hostsFor(await labForTest(context.onTestFinished));
    const config = (first: number, second: number): NodeConfig => ({
      routers: {
        first: { vrid: 51, interface: 'eth0', priority: first, advertise: '100ms', addresses: [`${VIP}/24`] },
        second: { vrid: 52, interface: 'eth0', priority: second, advertise: '100ms', addresses: ['10.9.0.101/24'] },
      },
    });
    const [one, two] = (await startNodes([a, config(150, 100)], [b, config(100, 150)])) as [LabNode, LabNode];
    await untilMaster(one, [two], VIP, { router: 'first' });
    await untilMaster(two, [one], '10.9.0.101', { router: 'second' });
    await one.understudy('router', 'demote', 'first');
    await untilMaster(two, [one], VIP, { router: 'first' });
    await untilMaster(two, [one], '10.9.0.101', { router: 'second' });
    await one.understudy('router', 'promote', 'first');
    await untilMaster(one, [two], VIP, { router: 'first' });
    const after = one.running.lines.length;
    await two.end('SIGKILL');
    await one.untilState('second', 'master', { after });
    await untilMaster(one, [], '10.9.0.101', { router: 'second' });
    await two.run();
    await untilMaster(two, [one], '10.9.0.101', { router: 'second' });
    for (const node of [one, two]) await node.end();
    const [, , demoted, promoted] = toldBy(one, 'first');
    expect(demoted).toMatchObject({ state: 'BACKUP', reason: { code: 'operator' } });
    expect(promoted).toMatchObject({ state: 'MASTER' });
    expect(divergencesOf(one, two)).toEqual([]);
  });

  test.concurrent.for([false, true])(
    'wait for an interface that is missing at the start (virtualMac: %s)',
    async (virtualMac, context) => {
      const [a] = await hostsFor(await labForTest(context.onTestFinished));
      const before = await leftOn(a);
      const node = await start(a, gateway(200, { interface: 'late0', virtualMac }));
      await node.untilState('gateway', 'fault');
      const appear = async () => {
        await a.run('ip', ['link', 'add', 'late0', 'type', 'veth', 'peer', 'name', 'late1']);
        await a.run('ip', ['link', 'set', 'late1', 'up']);
        await a.run('ip', ['link', 'set', 'late0', 'up']);
        await a.run('ip', ['address', 'add', '10.9.0.99/24', 'dev', 'late0']);
      };
      await appear();
      await untilMaster(node, []);
      expect(await a.addresses(virtualMac ? 'vrrp.51' : 'late0')).toContain(`${VIP}/24`);
      let after = node.running.lines.length;
      await a.run('ip', ['link', 'set', 'late0', 'down']);
      await node.untilState('gateway', 'fault', { after });
      await a.untilHolds(VIP, false);
      await a.run('ip', ['link', 'set', 'late0', 'up']);
      await untilMaster(node, []);
      after = node.running.lines.length;
      await a.run('ip', ['link', 'delete', 'late0']);
      await node.untilState('gateway', 'fault', { after });
      await appear();
      await untilMaster(node, []);
      expect(await a.addresses(virtualMac ? 'vrrp.51' : 'late0')).toContain(`${VIP}/24`);
      await node.end();
      await a.run('ip', ['link', 'delete', 'late0']);
      expect(await eventually(() => leftOn(a), before)).toEqual(before);
      const [missing] = toldBy(node);
      expect(missing).toMatchObject({
        state: 'FAULT',
        reason: { code: 'fault', detail: expect.stringContaining('late0') as string },
      });
      expect(divergencesOf(node)).toEqual([]);
    },
  );

  test.concurrent('without privilege: the router is in fault and says which it takes', async (context) => {
    const [a, b] = await hostsFor(await labForTest(context.onTestFinished));
    const node = await start(b, gateway(200));
    await node.end();
    chmodSync(b.folder, 0o755);
    await b.run('chown', ['-R', 'nobody', `${b.folder}/node-lb2`]);
    const nobody = ['--reuid=65534', '--regid=65534', '--clear-groups', '--inh-caps=-all', '--bounding-set=-all'];
    await node.run(['setpriv', ...nobody]);
    await node.untilState('gateway', 'fault');
    await delay(500);
    expect(node.running.exit).toBeNull();
    expect((await node.state()).actors.find(({ id }) => id === 'router/gateway')!.state).toBe('fault');
    await node.end();
    expect(toldBy(node).find(({ state }) => state === 'FAULT')!.reason.detail).toContain('CAP_NET_RAW');
    expect(await a.holds(VIP)).toBe(false);
    expect(divergencesOf(node)).toEqual([]);
  });

  test.concurrent('and the guard are gone when the node has been told to leave', async (context) => {
    const [a, b] = await hostsFor(await labForTest(context.onTestFinished));
    const [one, two] = (await startNodes([a, gateway(200)], [b, gateway(100)])) as [LabNode, LabNode];
    await untilMaster(one, [two]);
    const guard = await guardOf(one);
    await one.end();
    await until('the end of the guard', () => Promise.resolve(!isAlive(guard)));
    expect(await a.addresses('eth0')).not.toContain(`${VIP}/24`);
    await two.end();
    expect(divergencesOf(one, two)).toEqual([]);
  });
});

const isAlive = (pid: number): boolean => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};
