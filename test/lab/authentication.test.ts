/** What keepalived 2.2.7 can't be asked for: `hmac`, `sealed`, and adverts over UDP, between two nodes. */
import { describe, expect, test } from 'vitest';
import { isRoot } from '../packages.ts';
import { labForTest } from './labHelpers.ts';
import { LabNode } from '../../deploy/lab/node.ts';
import type { NodeConfig } from '../../deploy/lab/node.ts';
import { startNodes, untilMaster } from './observed.ts';
import { until } from '../../deploy/lab/until.ts';

const SEALED = { type: 'sealed', secret: 'a secret that both nodes share' };
const HMAC = { type: 'hmac', keys: [{ id: 7, secret: 'k'.repeat(32) }] };
const ADDRESS = '10.9.0.100';
const ADDRESS6 = 'fe80::100';

type Keys = Record<string, unknown>;

const gateway = (priority: number, keys: Keys): NodeConfig => ({
  routers: {
    gateway: { vrid: 51, interface: 'eth0', priority, advertise: '100ms', addresses: [`${ADDRESS}/24`], ...keys },
  },
});

const peerOf = (index: number): string => `10.9.0.${12 - index}`;

const discardsOf = async (node: LabNode): Promise<Record<string, number>> =>
  (await node.state()).routers[0]!.counters!.discarded;

describe.skipIf(!isRoot)('two nodes elect, take over and give back', () => {
  test.concurrent.for<[string, (index: number) => Keys, string]>([
    ['sealed, multicast', () => ({ authentication: SEALED }), ADDRESS],
    ['hmac, multicast', () => ({ authentication: HMAC }), ADDRESS],
    ['hmac, multicast, IPv6', () => ({ authentication: HMAC, addresses: [`${ADDRESS6}/64`] }), ADDRESS6],
    ['sealed, unicast', (index) => ({ authentication: SEALED, transport: 'unicast', peers: [peerOf(index)] }), ADDRESS],
    ['sealed, udp', (index) => ({ authentication: SEALED, transport: 'udp', peers: [peerOf(index)] }), ADDRESS],
    ['udp', (index) => ({ transport: 'udp', peers: [peerOf(index)] }), ADDRESS],
  ])('%s', async ([_name, keys, address], context) => {
    const lab = await labForTest(context.onTestFinished);
    const hosts = [
      await lab.host('lb1', { addresses: { eth0: ['10.9.0.11/24'] } }),
      await lab.host('lb2', { addresses: { eth0: ['10.9.0.12/24'] } }),
    ] as const;
    const [one, two] = (await startNodes([hosts[0], gateway(200, keys(0))], [hosts[1], gateway(100, keys(1))])) as [
      LabNode,
      LabNode,
    ];
    await untilMaster(one, [two], address);
    await one.end('SIGKILL');
    await untilMaster(two, [], address);
    // What it sends now is above what it, and its guard, have sent before.
    await one.run();
    await untilMaster(one, [two], address);
    expect(await discardsOf(one)).toEqual({});
    expect(await discardsOf(two)).toEqual({});
    for (const node of [one, two]) {
      await node.end();
      expect(node.verify().divergence).toBeNull();
    }
  });

  test('another secret is told by both, and it is not told what it is', async () => {
    const lab = await labForTest();
    const one = await lab.host('lb1', { addresses: { eth0: ['10.9.0.11/24'] } });
    const two = await lab.host('lb2', { addresses: { eth0: ['10.9.0.12/24'] } });
    const nodes = await startNodes(
      [one, gateway(200, { authentication: SEALED })],
      [two, gateway(100, { authentication: { ...SEALED, secret: 'another secret altogether' } })],
    );
    for (const [index, node] of nodes.entries()) {
      const problem = await until(
        'the conflict',
        async () => (await node.state()).node.problems.find((text) => text.includes(peerOf(index))) ?? null,
      );
      expect(problem).toContain('two masters as long as this lasts');
      expect(problem).not.toMatch(/share|altogether/);
    }
  });
});
