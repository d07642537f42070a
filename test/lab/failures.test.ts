/** Two nodes and the faults that a network and a machine can have: one master in the end, and neighbours that know it. */
import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import type { TestContext } from 'vitest';
import type { Host, Lab } from '../../deploy/lab/lab.ts';
import { startNginx } from '../../deploy/lab/nginx.ts';
import { nowMs } from '../../deploy/lab/process.ts';
import { isRoot } from '../packages.ts';
import { labForTest } from './labHelpers.ts';
import type { LabNode, NodeConfig } from '../../deploy/lab/node.ts';
import {
  changesOf,
  divergencesOf,
  gateway,
  guardOf,
  keepAsking,
  startNodes,
  toldBy,
  Trunk,
  untilMaster,
  untilNeighbours,
  VIP,
} from './observed.ts';

const ADVERT_MS = 100;
const CUT_MS = 5_000;
/** Between the announcements of an address and their repetition. */
const REFRESH_MS = 5_000;
const ATTEMPT_EVERY_MS = 5;

type Pair = { lab: Lab; a: Host; b: Host; one: LabNode; two: LabNode; clients: Host[] };

/** Two nodes, each with a client beside it that keeps using the address. */
const pairOf = async (
  lab: Lab,
  configs: [NodeConfig, NodeConfig],
  vip = VIP,
  secondFirst = false,
): Promise<Pair & { trunk: Trunk }> => {
  const host = (name: string, number: number, segment: string) =>
    lab.host(name, {
      addresses: { eth0: [`10.9.0.${number}/24`, `fd00:9::${number}/64`] },
      segments: { eth0: segment },
    });
  const a = await host('lb1', 11, 'left');
  const b = await host('lb2', 12, 'right');
  const clients = [await host('c1', 21, 'left'), await host('c2', 22, 'right')];
  const trunk = await Trunk.between(lab, 'left', 'right');
  const early = secondFirst ? await startNodes([b, configs[1]]) : [];
  for (const node of early) await untilMaster(node, [], vip);
  const [one, two = early[0]] = await startNodes([a, configs[0]], ...(secondFirst ? [] : [[b, configs[1]] as const]));
  assert(one && two);
  for (const client of clients) await keepAsking(client, vip);
  return { lab, a, b, one, two, clients, trunk };
};

/** This one is master and alone has the address; the neighbours have noticed a second later. */
const settled = async ({ one, two, clients }: Pair, master: LabNode, vip = VIP): Promise<void> => {
  await untilMaster(
    master,
    [one, two].filter((node) => node !== master),
    vip,
  );
  await untilNeighbours(clients, vip, await master.host.mac());
};

const calmPair = async (context: Pick<TestContext, 'onTestFinished'>): Promise<Pair> => {
  const pair = await pairOf(await labForTest(context.onTestFinished), [gateway(200), gateway(100)]);
  await settled(pair, pair.one);
  return pair;
};

const last = (node: LabNode) => changesOf(node.running).at(-1)!;

describe.skipIf(!isRoot)('two nodes', () => {
  test.concurrent.for([
    // Who hears whom first after the split depends on who speaks more often.
    {
      name: 'the higher priority',
      priorities: [200, 100],
      intervals: [100, 100],
      winner: 'lb1',
      reason: 'higherPriority',
    },
    {
      name: 'the higher priority, who speaks first',
      priorities: [200, 100],
      intervals: [100, 1000],
      winner: 'lb1',
      reason: 'higherPriority',
    },
    {
      name: 'the higher priority, who speaks last',
      priorities: [200, 100],
      intervals: [1000, 100],
      winner: 'lb1',
      reason: 'higherPriority',
    },
    {
      name: 'of equal priorities the higher address',
      priorities: [150, 150],
      intervals: [100, 100],
      winner: 'lb2',
      reason: 'tieLost',
    },
  ] as const)('a split makes two masters, and its end one: $name', async (scenario, context) => {
    const { priorities, intervals, winner, reason } = scenario;
    const lab = await labForTest(context.onTestFinished);
    const config = (index: 0 | 1) => gateway(priorities[index], { advertise: `${intervals[index]}ms` });
    // Of equals the first one is master and stays it: that is to be the winner.
    const pair = await pairOf(lab, [config(0), config(1)], VIP, winner === 'lb2');
    const { one, two, clients, trunk } = pair;
    const [stays, yields] = winner === 'lb1' ? [one, two] : [two, one];
    await settled(pair, stays);
    const [cutAt, after] = [nowMs(), yields.running.lines.length];
    await trunk.cut();
    await yields.untilState('gateway', 'master', { after });
    await delay(cutAt + CUT_MS - nowMs());
    expect([one.isMaster(), two.isMaster()]).toEqual([true, true]);
    expect([await one.host.holds(VIP), await two.host.holds(VIP)]).toEqual([true, true]);
    await untilNeighbours([clients[0]!], VIP, await one.host.mac());
    await untilNeighbours([clients[1]!], VIP, await two.host.mac());
    await trunk.heal();
    const healedAt = nowMs();
    await settled(pair, stays);
    expect(last(yields).state).toBe('backup');
    console.log(`the split was over ${(last(yields).atMs - healedAt).toFixed(0)} ms after its end`);
    // The one that stayed never left.
    expect(changesOf(stays.running).at(-1)!.atMs).toBeLessThan(cutAt);
    for (const node of [one, two]) await node.end();
    const [took, gave] = toldBy(yields).filter(({ atMs }) => atMs > cutAt);
    const peer = stays === one ? '10.9.0.11' : '10.9.0.12';
    const peerPriority = Math.max(...priorities);
    expect(took).toMatchObject({ state: 'MASTER', reason: { code: 'masterDownExpired', peer, peerPriority } });
    expect(gave).toMatchObject({ state: 'BACKUP', reason: { code: reason, peer, peerPriority } });
    // What whoever is on call is told a moment after each of the two.
    for (const change of [took!, gave!]) {
      const { sentences } = yields.explain('router/gateway', (change.atMs + 1) * 1000);
      expect(sentences.map(({ text }) => text).join('\n')).toContain(`${peer} (priority ${peerPriority})`);
    }
    expect(divergencesOf(one, two)).toEqual([]);
  });

  test.concurrent.for(['in', 'out'] as const)('a master whose wire takes nothing %s', async (direction, context) => {
    const pair = await calmPair(context);
    const { a, one, two } = pair;
    const after = two.running.lines.length;
    await a.drop({ direction });
    if (direction === 'out') await two.untilState('gateway', 'master', { after });
    await delay(10 * ADVERT_MS);
    // It hears a lower one, and keeps its office.
    expect([one.isMaster(), two.isMaster()]).toEqual([true, direction === 'out']);
    await a.undrop();
    await settled(pair, one);
    for (const node of [one, two]) await node.end();
    expect(divergencesOf(one, two)).toEqual([]);
  });

  test.concurrent(
    'a backup that hears nothing becomes master beside the other, and gives way again',
    async (context) => {
      const pair = await calmPair(context);
      const { b, one, two } = pair;
      const after = two.running.lines.length;
      await b.drop({ direction: 'in' });
      await two.untilState('gateway', 'master', { after });
      await delay(10 * ADVERT_MS);
      await b.undrop();
      await settled(pair, one);
      for (const node of [one, two]) await node.end();
      expect(divergencesOf(one, two)).toEqual([]);
    },
  );

  test.concurrent('a wire that loses 30 % for a while', async (context) => {
    const pair = await calmPair(context);
    const { a, one, two } = pair;
    const startedAt = nowMs();
    const lossy = async () => {
      await a.drop({ direction: 'both', share: 0.3 });
      await delay(8_000);
      await a.undrop();
      await settled(pair, one);
    };
    // With a chance of 3 % all copies of the advert with which one gives way are lost, and neighbours with them.
    await lossy().catch(lossy);
    const takeovers = changesOf(two.running).filter(({ state, atMs }) => state === 'master' && atMs > startedAt);
    console.log(`30 % loss for 8 s: ${takeovers.length} takeovers`);
    for (const node of [one, two]) await node.end();
    expect(divergencesOf(one, two)).toEqual([]);
  });

  test.concurrent(
    'a master that stands still loses its addresses while it does, and takes them back',
    async (context) => {
      const pair = await calmPair(context);
      const { a, b, one, two, clients } = pair;
      const [after, stoppedAt] = [two.running.lines.length, nowMs()];
      one.running.signal('SIGSTOP');
      await two.untilState('gateway', 'master', { after });
      await a.untilHolds(VIP, false);
      await b.untilHolds(VIP);
      await untilNeighbours(clients, VIP, await b.mac());
      await delay(1_000);
      expect(await a.holds(VIP)).toBe(false);
      one.running.signal('SIGCONT');
      await settled(pair, one);
      for (const node of [one, two]) await node.end();
      const [gave, took] = toldBy(one).filter(({ atMs }) => atMs > stoppedAt);
      expect(gave!.state).toBe('BACKUP');
      expect(took).toMatchObject({ state: 'MASTER', reason: { code: 'preemption', peer: '10.9.0.12' } });
      // It never spoke as a master whom the other one had replaced.
      const [, yielded] = toldBy(two).filter(({ atMs }) => atMs > stoppedAt);
      expect(yielded).toMatchObject({ state: 'BACKUP', reason: { code: 'higherPriority' } });
      expect(divergencesOf(one, two)).toEqual([]);
    },
  );

  test.concurrent('a backup that stands still changes nothing', async (context) => {
    const pair = await calmPair(context);
    const { one, two } = pair;
    const [before, stoppedAt] = [changesOf(one.running).length, nowMs()];
    two.running.signal('SIGSTOP');
    await delay(1_500);
    two.running.signal('SIGCONT');
    await delay(10 * ADVERT_MS);
    expect(changesOf(one.running)).toHaveLength(before);
    await settled(pair, one);
    const endedAt = nowMs();
    for (const node of [one, two]) await node.end();
    // Adverts waited in its socket: it looks there before it believes its own clock.
    expect(toldBy(two).filter(({ atMs }) => atMs > stoppedAt && atMs < endedAt)).toEqual([]);
    expect(divergencesOf(one, two)).toEqual([]);
  });

  test.concurrent('a master that is killed and comes back', async (context) => {
    const pair = await calmPair(context);
    const { a, one, two } = pair;
    const capture = await pair.clients[0]!.capture('eth0', 'arp or proto 112');
    const killedAt = nowMs();
    const after = two.running.lines.length;
    await one.end('SIGKILL');
    await two.untilState('gateway', 'master', { after });
    const silentMs = last(two).atMs - killedAt;
    console.log(`SIGKILL: the other is master after ${silentMs.toFixed(0)} ms`);
    expect(await a.holds(VIP)).toBe(false);
    await untilNeighbours(pair.clients, VIP, await pair.b.mac());
    await one.run();
    await settled(pair, one);
    for (const node of [one, two]) await node.end();
    // Its guard has spoken for it: the other one did not have to wait for three adverts.
    const took = toldBy(two).find(({ atMs }) => atMs > killedAt);
    const source = `eth.src == ${await pair.b.mac()}`;
    const timesOf = async (filter: string) =>
      (await capture.decode(`${source} && ${filter}`, ['frame.time_epoch'])).map(
        (row) => Number(row['frame.time_epoch']) * 1000,
      );
    const [advertAt] = await timesOf('vrrp.prio == 100');
    const announcedAt = await timesOf('arp.isgratuitous');
    expect(announcedAt[0]! - advertAt!).toBeGreaterThan(0);
    // Five at once; the next five come five seconds later.
    expect(announcedAt[4]! - announcedAt[0]!).toBeLessThan(REFRESH_MS);
    expect(took).toMatchObject({ state: 'MASTER', reason: { code: 'priorityZero', peer: '10.9.0.11' } });
    expect([await a.holds(VIP), await pair.b.holds(VIP)]).toEqual([false, false]);
    expect(divergencesOf(one, two)).toEqual([]);
  });

  test.concurrent(
    'a master that dies together with its guard leaves its address to the kernel for five seconds',
    async (context) => {
      const pair = await calmPair(context);
      const { a, b, one, two, clients } = pair;
      const guard = await guardOf(one);
      const killedAt = nowMs();
      const after = two.running.lines.length;
      process.kill(guard, 'SIGKILL');
      await one.end('SIGKILL');
      await two.untilState('gateway', 'master', { after });
      await untilNeighbours(clients, VIP, await b.mac());
      await a.untilHolds(VIP, false);
      const leftMs = nowMs() - killedAt;
      console.log(`node and guard killed: the address was gone after ${leftMs.toFixed(0)} ms`);
      await one.run();
      await settled(pair, one);
      for (const node of [one, two]) await node.end();
      expect(divergencesOf(one, two)).toEqual([]);
    },
  );

  test.concurrent('a guard that dies is replaced, and the next one does its work', async (context) => {
    const pair = await calmPair(context);
    const { a, one, two } = pair;
    const first = await guardOf(one);
    process.kill(first, 'SIGKILL');
    await one.running.waitFor(/the guard ended/);
    expect(await guardOf(one)).not.toBe(first);
    expect(one.isMaster()).toBe(true);
    const after = two.running.lines.length;
    await one.end('SIGKILL');
    await two.untilState('gateway', 'master', { after });
    expect(await a.holds(VIP)).toBe(false);
    await two.end();
    expect(divergencesOf(one, two)).toEqual([]);
  });

  test.concurrent('a master that leaves in order is not missed by its clients', async (context) => {
    const lab = await labForTest(context.onTestFinished);
    const web = await lab.host('web', { addresses: { eth0: ['10.9.0.31/24'] }, segments: { eth0: 'left' } });
    await startNginx(web, 'hello');
    const traffic = {
      frontends: { shop: { mode: 'http', bind: [`${VIP}:80`], use: 'web' } },
      backends: { web: { servers: [{ name: 'web1', address: '10.9.0.31:80' }] } },
    };
    const pair = await pairOf(lab, [gateway(200, {}, traffic), gateway(100, {}, traffic)]);
    const { one, two, clients } = pair;
    const client = await clients[1]!.spawn(process.execPath, [
      'test/bench/failoverClient.ts',
      VIP,
      '80',
      String(ATTEMPT_EVERY_MS),
      '1000',
    ]);
    await client.waitFor(/ 1 1$/);
    await delay(500);
    const leftAt = nowMs();
    await one.end('SIGTERM');
    expect(last(two).state).toBe('master');
    await delay(1_000);
    await client.end('SIGKILL');
    const attempts = client.lines
      .map(({ text }) => text.split(' ').map(Number) as [number, number, number])
      .filter(([at]) => at > leftAt - 400);
    const answered = attempts.filter(([, , isAnswered]) => isAnswered === 1).map(([at]) => at);
    const sorted = answered.toSorted((x, y) => x - y);
    const gapMs = Math.max(...sorted.slice(1).map((at, index) => at - sorted[index]!));
    const failed = attempts.length - answered.length;
    console.log(`SIGTERM: ${failed} of ${attempts.length} attempts failed, the longest gap was ${gapMs.toFixed(1)} ms`);
    await settled({ ...pair, one: two }, two);
    await two.end();
    // It was told, and did not have to miss the other one first.
    const took = toldBy(two).find(({ atMs }) => atMs > leftAt);
    expect(took).toMatchObject({ state: 'MASTER', reason: { code: 'priorityZero', peer: '10.9.0.11' } });
    expect(divergencesOf(one, two)).toEqual([]);
  });

  test.concurrent('IPv6: a split, its end, and a kill', async (context) => {
    const vip = 'fd00:9::100';
    const config = (priority: number) => gateway(priority, { addresses: ['fe80::9:100/64', `${vip}/64`] });
    const pair = await pairOf(await labForTest(context.onTestFinished), [config(200), config(100)], vip);
    const { a, b, one, two, clients, trunk } = pair;
    await settled(pair, one, vip);
    const cutAfter = two.running.lines.length;
    await trunk.cut();
    await two.untilState('gateway', 'master', { after: cutAfter });
    await untilNeighbours([clients[1]!], vip, await b.mac());
    await trunk.heal();
    await settled(pair, one, vip);
    const after = two.running.lines.length;
    await one.end('SIGKILL');
    await two.untilState('gateway', 'master', { after });
    for (const address of [vip, 'fe80::9:100']) {
      expect(await a.holds(address)).toBe(false);
      await b.untilHolds(address);
    }
    await untilNeighbours(clients, vip, await b.mac());
    await two.end();
    expect(await b.holds(vip)).toBe(false);
    expect(divergencesOf(one, two)).toEqual([]);
  });
});
