import { expect, test } from 'vitest';
import { JournalReader } from '../../src/journal/reader.ts';
import type { LabNode } from '../../deploy/lab/node.ts';
import { until } from '../../deploy/lab/until.ts';
import { has, isRoot } from '../packages.ts';
import { ClusterStage } from './clusterStage.ts';
import { labForTest } from './labHelpers.ts';

/** Of the records of the node's last start, in order: `server/web/web1 operator.drain`. */
const lastLife = (node: LabNode): string[] => {
  const reader = new JournalReader(node.journal);
  try {
    const steps = [...reader.steps()].map(({ actor, event }) => `${actor} ${event.type}`);
    return steps.slice(steps.findLastIndex((step) => step.endsWith(' node.started')));
  } finally {
    reader.close();
  }
};

test.skipIf(!isRoot || !has('nats-server'))(
  'a drain given while one of three nodes is down takes effect on it when it returns, before it takes traffic',
  { timeout: 120_000 },
  async () => {
    const stage = await ClusterStage.create({ lab: await labForTest() });
    const { cluster, load } = stage;
    const [away, other, third] = cluster.nodes as [LabNode, LabNode, LabNode];
    await away.end('SIGKILL');
    await stage.untilSettled({ out: [away.name] });
    expect(load.since(0).by).toHaveProperty(['Hello from web1.']);

    await until(`${other.name} knows that ${away.name} is gone`, async () => {
      const { cluster: seen } = await other.state();
      return seen!.nodes.some(({ name, state }) => name === away.name && state === 'gone');
    });
    const answers = await other.understudy('server', 'drain', 'web/web1');
    for (const node of [away, other, third]) expect(answers).toContain(node.name);
    await load.untilFlowing();
    const mark = load.mark();
    await away.run();
    await stage.untilSettled();

    const { by } = load.since(mark);
    expect(by).not.toHaveProperty(['Hello from web1.']);
    expect(by['Hello from web2.']).toBeGreaterThan(0);
    const life = lastLife(away);
    const first = (pattern: RegExp) => life.findIndex((step) => pattern.test(step));
    expect(first(/^server\/web\/web1 operator\.drain$/)).toBeGreaterThan(0);
    expect(first(/^server\/web\/web1 operator\.drain$/)).toBeLessThan(first(/^listener\//));
    expect(first(/^server\/web\/web1 operator\.drain$/)).toBeLessThan(first(/^router\//));
  },
);
