/** Routers that move together: three nodes, two groups of three routers, each router of a group on a link of its own. */
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import type { TestContext } from 'vitest';
import type { Host } from '../../deploy/lab/lab.ts';
import { nowMs } from '../../deploy/lab/process.ts';
import { until } from '../../deploy/lab/until.ts';
import { isRoot } from '../packages.ts';
import { labForTest } from './labHelpers.ts';
import type { LabNode, NodeConfig } from '../../deploy/lab/node.ts';
import { AddressWatch, changesOf, divergencesOf, startNodes } from './observed.ts';

const LINKS = ['eth0', 'eth1', 'eth2'];
const GROUPS = ['east', 'west'] as const;
type Group = (typeof GROUPS)[number];

/**
 * How long a group may be torn while it moves: three elections' worth of messages and addresses, on two cores that
 * many nodes share. A member that went alone would leave it torn for good.
 */
const MOMENT_MS = 2_000;

const vip = (group: Group, link: number) => `10.${9 + link}.0.${group === 'east' ? 100 : 200}`;
const addressesOf = (group: Group) => LINKS.map((_, link) => vip(group, link));
const router = (group: Group, link: number) => `${group}${link}`;

const config = (priorities: Record<Group, number>): NodeConfig => ({
  routers: Object.fromEntries(
    GROUPS.flatMap((group) =>
      LINKS.map((name, link) => [
        router(group, link),
        {
          vrid: (group === 'east' ? 50 : 60) + link,
          interface: name,
          priority: priorities[group],
          advertise: '100ms',
          addresses: [`${vip(group, link)}/24`],
        },
      ]),
    ),
  ),
  syncGroups: Object.fromEntries(
    GROUPS.map((group) => [group, { routers: LINKS.map((_, link) => router(group, link)) }]),
  ),
});

const PRIORITIES: Record<Group, number>[] = [
  { east: 200, west: 100 },
  { east: 150, west: 200 },
  { east: 100, west: 150 },
];

type Trio = { nodes: LabNode[]; hosts: Host[]; watch: AddressWatch };

const trioFor = async (context: Pick<TestContext, 'onTestFinished'>): Promise<Trio> => {
  const lab = await labForTest(context.onTestFinished);
  const hosts: Host[] = [];
  for (const number of [11, 12, 13]) {
    hosts.push(
      await lab.host(`lb${number - 10}`, {
        addresses: Object.fromEntries(LINKS.map((name, link) => [name, [`10.${9 + link}.0.${number}/24`]])),
        segments: Object.fromEntries(LINKS.map((name, link) => [name, `lan${link}`])),
      }),
    );
  }
  const watch = await AddressWatch.start(hosts);
  const nodes = await startNodes(...hosts.map((host, index) => [host, config(PRIORITIES[index]!)] as const));
  const trio = { nodes, hosts, watch };
  await untilMasters(trio, { east: 0, west: 1 });
  return trio;
};

/** Until the group's routers are all master on this node alone, with all addresses there and nowhere else. */
const untilMasters = async ({ nodes }: Trio, wanted: Partial<Record<Group, number>>, timeoutMs = 5_000) => {
  for (const [group, master] of Object.entries(wanted) as [Group, number][]) {
    await until(
      `${nodes[master]!.name} is master of ${group}`,
      async () => {
        const held = await Promise.all(
          nodes.map(async ({ host }) => {
            const addresses = await host.addresses();
            return addressesOf(group).filter((address) => addresses.includes(`${address}/24`)).length;
          }),
        );
        return nodes.every((node, index) => {
          const isMaster = LINKS.map((_, link) => node.isMaster(router(group, link)));
          const count = index === master ? LINKS.length : 0;
          return isMaster.filter(Boolean).length === count && held[index] === count;
        });
      },
      timeoutMs,
    );
  }
};

/** Since then no group was torn for longer than a moment. */
const expectWhole = ({ watch }: Trio, sinceMs: number, what: string): void => {
  for (const group of GROUPS) {
    const tornMs = watch.longestTornMs(addressesOf(group), sinceMs, nowMs());
    console.log(`${what}: ${group} was torn for ${tornMs.toFixed(0)} ms`);
    expect(tornMs, `${what}: ${group} torn`).toBeLessThan(MOMENT_MS);
  }
};

/** Ends what still runs; what the journals have that would be decided otherwise now. */
const finish = async ({ nodes }: Trio): Promise<object[]> => {
  for (const node of nodes) if (node.running.exit === null) await node.end();
  return divergencesOf(...nodes);
};

describe.skipIf(!isRoot)('sync groups', () => {
  test.concurrent('move as one at a start, a kill, a return and a stop', async (context) => {
    const trio = await trioFor(context);
    const { nodes, hosts } = trio;
    const [one, two] = nodes as [LabNode, LabNode, LabNode];
    let since = nowMs();
    await one.end('SIGKILL');
    await untilMasters(trio, { east: 1, west: 1 });
    const seen = trio.watch.changes('lb2').filter(({ atMs, held }) => atMs > since && held);
    expect(seen.map(({ address }) => address)).toEqual(expect.arrayContaining(addressesOf('east')));
    expectWhole(trio, since, 'SIGKILL');
    since = nowMs();
    await one.run();
    await untilMasters(trio, { east: 0, west: 1 });
    expectWhole(trio, since, 'return');
    since = nowMs();
    await two.end('SIGTERM');
    await untilMasters(trio, { east: 0, west: 2 });
    expectWhole(trio, since, 'SIGTERM');
    expect(await finish(trio)).toEqual([]);
    for (const host of hosts)
      for (const group of GROUPS) for (const each of addressesOf(group)) expect(await host.holds(each)).toBe(false);
  });

  test.concurrent('move as one when an operator moves a member', async (context) => {
    const trio = await trioFor(context);
    const [one] = trio.nodes as [LabNode];
    let since = nowMs();
    await one.understudy('router', 'demote', router('east', 1));
    await untilMasters(trio, { east: 1, west: 1 });
    expectWhole(trio, since, 'demote');
    since = nowMs();
    await one.understudy('router', 'promote', router('east', 2));
    await untilMasters(trio, { east: 0, west: 1 });
    expectWhole(trio, since, 'promote');
    expect(await finish(trio)).toEqual([]);
  });

  test.concurrent('move as one when a member loses its carrier, and stay while it has none', async (context) => {
    const trio = await trioFor(context);
    const [one] = trio.nodes as [LabNode];
    let since = nowMs();
    await one.host.unplug('eth1');
    await untilMasters(trio, { east: 1, west: 1 });
    expectWhole(trio, since, 'unplug');
    await delay(1_000);
    for (const link of [0, 1, 2]) expect(changesOf(one.running, router('east', link)).at(-1)!.state).toBe('fault');
    since = nowMs();
    await one.host.heal('eth1');
    await untilMasters(trio, { east: 0, west: 1 });
    expectWhole(trio, since, 'plug');
    expect(await finish(trio)).toEqual([]);
  });

  test.concurrent('come together again after a wire was cut of which nobody is told', async (context) => {
    const trio = await trioFor(context);
    const [one, two] = trio.nodes as [LabNode, LabNode];
    await one.host.cut('eth1');
    await delay(3_000);
    for (const node of [one, two])
      console.log(`cut: ${node.name} changed ${changesOf(node.running, 'east0').length} times`);
    await one.host.heal('eth1');
    await untilMasters(trio, { east: 0, west: 1 });
    const since = nowMs();
    await delay(500);
    expectWhole(trio, since, 'after the cut');
    expect(await finish(trio)).toEqual([]);
  });
});
