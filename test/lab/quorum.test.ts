/** Shared checks where they matter: a balancer whose link to the servers breaks, and no other. */
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { ClusterLab, VIP } from '../../deploy/lab/cluster.ts';
import type { LabNode, NodeConfig } from '../../deploy/lab/node.ts';
import type { LabProcess } from '../../deploy/lab/process.ts';
import { until } from '../../deploy/lab/until.ts';
import { JournalReader } from '../../src/journal/reader.ts';
import { explain } from '../../src/worlds/explain.ts';
import { has, isRoot } from '../packages.ts';
import { labForTest } from './labHelpers.ts';
import { divergencesOf } from './observed.ts';
import type { RetryTick } from './retryClient.ts';

const PERIOD_MS = 20;
const SETTLE_MS = 60_000;

const byQuorum = ({ backends, ...example }: NodeConfig): NodeConfig => ({
  ...example,
  backends: { web: { ...(backends as Record<string, object>)['web'], checks: { share: 'quorum' } } },
});

const seen = (client: LabProcess): RetryTick => JSON.parse(client.lines.at(-1)!.text) as RetryTick;

/** Until everything that had been asked for by now has come to an end. */
const settled = async (client: LabProcess): Promise<RetryTick> => {
  const { begun } = seen(client);
  await until(
    'an end of every request',
    () => Promise.resolve(seen(client).answered + seen(client).failed >= begun),
    SETTLE_MS,
  );
  return seen(client);
};

const serversSeen = async (node: LabNode): Promise<string[]> =>
  (await node.state()).pools[0]!.servers.map(({ name, shared }) =>
    [name, ...shared!.nodes.map(({ node: who, view }) => `${who} ${view}`)].join(' '),
  );

/** Every state of health that a server was in after its first check, as the node's journal has it. */
const healthsOf = (node: LabNode, server: string): string[] => {
  const reader = new JournalReader(node.journal);
  try {
    const states = [...reader.steps({ actor: `server/web/${server}` })].map(({ state }) => state.split(',')[0]!);
    return [...new Set(states)].filter((state) => state !== 'unchecked');
  } finally {
    reader.close();
  }
};

const explained = (node: LabNode, actor: string): string => {
  const reader = new JournalReader(node.journal);
  try {
    const { headline, sentences, remarks } = explain(reader, actor);
    return [headline, ...sentences.map(({ text }) => text), ...remarks].join('\n');
  } finally {
    reader.close();
  }
};

describe.skipIf(!isRoot || !has('nats-server'))('shared checks in the lab', { timeout: 300_000 }, () => {
  test('cutting one node’s link to the servers removes no server and its address moves', async () => {
    const cluster = await ClusterLab.create({ lab: await labForTest(), config: byQuorum });
    const [one, two, three] = cluster.nodes as [LabNode, LabNode, LabNode];
    await until('lb1 is master', () => Promise.resolve(one.isMaster()), SETTLE_MS);
    const allUp = ['web1', 'web2', 'web3'].map((name) => `${name} lb1 up lb2 up lb3 up`);
    for (const node of cluster.nodes)
      await until('all see all', async () => (await serversSeen(node)).join() === allUp.join(), SETTLE_MS);
    const program = join(import.meta.dirname, 'retryClient.ts');
    const client = await cluster.client.spawn(process.execPath, [program, String(PERIOD_MS), `http://${VIP}/`]);
    await until('traffic', () => Promise.resolve(client.lines.length > 0 && seen(client).answered > 50), SETTLE_MS);

    const before = await settled(client);
    await cluster.cutFromServers('lb1');
    await one.untilState('gateway', 'fault', { timeoutMs: SETTLE_MS });
    await until('the address moves to lb2', async () => (await cluster.holders()).join() === 'lb2', SETTLE_MS);
    const after = await settled(client);
    console.log(
      `cut: ${after.begun - before.begun} requests, ${after.retried - before.retried} sent again, ${after.failed - before.failed} failed`,
    );
    expect(after.failures).toEqual([]);
    expect(after.retried).toBeGreaterThan(before.retried);
    expect(explained(one, 'router/gateway')).toContain('it saw none of 3 servers while lb2 and lb3 saw 3');
    expect(explained(one, 'sight')).toContain('lb1 is blind: it saw none of 3 servers while lb2 and lb3 saw 3');
    expect(await one.understudy('status')).toContain('lb1 is blind');

    const mark = one.running.lines.length;
    await cluster.heal();
    await one.untilState('gateway', 'master', { after: mark, timeoutMs: SETTLE_MS });
    const healed = await settled(client);
    expect(healed.failures).toEqual([]);
    await client.end('SIGKILL');
    for (const node of [one, two, three]) {
      await node.end();
      for (const server of ['web1', 'web2', 'web3'])
        expect(healthsOf(node, server), `${server} on ${node.name}`).toEqual(['up']);
    }
    expect(divergencesOf(one, two, three)).toEqual([]);
  });
});
