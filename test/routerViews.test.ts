/** What people and machines see of the routers of a real node: state, status, problems, metrics, and over a restart. */
import { createSocket } from 'node:dgram';
import type { Socket } from 'node:dgram';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { onTestFinished, expect, test } from 'vitest';
import { formatStatus } from '../src/cli/status.ts';
import { drawSystem } from '../src/graph/render.ts';
import { systemGraph } from '../src/graph/systemGraph.ts';
import { gatewayConfig } from './journalHelpers.ts';
import type { StateView } from '../src/api/state.ts';
import { RunningNode, startWeb, tempFolder, understudy, writeFile, yamlOf } from './nodeHelpers.ts';
import { freePort } from './ports.ts';

/** Addresses of 127.0.0.0/8 that no other test uses. */
const OWN = '127.0.77.1';
const PEER = '127.0.77.2';
const VIRTUAL = '127.0.77.100';

type Gateway = { node: RunningNode; file: string; api: number; peer: Socket; send(packet: Buffer): void };

const startGateway = async (router: Record<string, unknown> = {}): Promise<Gateway> => {
  const folder = tempFolder();
  const web = await startWeb('web1');
  const [api, port] = [await freePort(), await freePort()];
  const peer = createSocket('udp4');
  peer.bind(0, PEER);
  await once(peer, 'listening');
  onTestFinished(() => void peer.close());
  const vrrpPort = peer.address().port;
  const gateway = {
    vrid: 51,
    priority: 150,
    // Long enough for a busy machine, where a master that oversleeps would give way.
    advertise: '300ms',
    addresses: [VIRTUAL],
    transport: 'udp',
    source: OWN,
    port: vrrpPort,
    peers: [`${PEER}:${vrrpPort}`],
    track: [{ pool: 'web', weight: -60 }],
    ...router,
  };
  const text = yamlOf({
    api,
    port,
    servers: [`web1 ${web.address}`],
    top: ['workers: 1', `routers: ${JSON.stringify({ gateway })}`],
  }).replace(`127.0.0.1:${port}`, `${VIRTUAL}:${port}`);
  const file = writeFile(folder, 'node.yaml', text);
  const node = await RunningNode.start(file, api);
  return { node, file, api, peer, send: (packet) => peer.send(packet, vrrpPort, OWN) };
};

const routerIs = (node: RunningNode, state: string): Promise<StateView> =>
  node.until(`gateway is ${state}`, ({ routers }) => routers[0]?.state === state);

/** Version 3 over UDP, checksum without pseudo-header (RFC 9568 section 5.2.8). */
const advert = (priority: number, advertCentiseconds = 30, address = [127, 0, 77, 100], version = 3): Buffer => {
  const packet = Buffer.from([(version << 4) | 1, 51, priority, 1, 0, advertCentiseconds, 0, 0, ...address]);
  let sum = 0;
  for (let at = 0; at < packet.length; at += 2) sum += packet.readUInt16BE(at);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  packet.writeUInt16BE(~sum & 0xffff, 6);
  return packet;
};

const metricsOf = async (node: RunningNode): Promise<Map<string, number>> => {
  const text = await (await fetch(`${node.api}/metrics`)).text();
  return new Map(
    text
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('#'))
      .map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.slice(line.lastIndexOf(' ') + 1))]),
  );
};

test('a master: state, status and metrics say so', async () => {
  const { node } = await startGateway();
  const state = await routerIs(node, 'master');
  expect(state.routers[0]).toMatchObject({
    name: 'gateway',
    vrid: 51,
    version: 3,
    transport: 'udp',
    interface: null,
    source: OWN,
    rawState: 'master',
    master: { self: true, address: OWN, priority: 150 },
    priority: { configured: 150, effective: 150, parts: [], intent: 'none', text: '150' },
    reason: { code: 'masterDownExpired', priority: 150 },
    faults: [],
    conflicts: [],
    trackers: [{ id: 'tracker/pool/web', kind: 'pool', state: 'up', weight: -60 }],
  });
  expect(Date.parse(state.routers[0]!.since)).toBeLessThanOrEqual(Date.parse(state.node.now));
  const held = await node.until('the address is here', ({ routers }) => routers[0]?.addresses[0]?.state !== 'adding');
  expect(held.routers[0]!.addresses).toEqual([{ address: `${VIRTUAL}/32`, interface: null, state: 'announcing' }]);
  const status = formatStatus(held);
  expect(status).toMatch(/^ROUTER +VRID +STATE +SINCE +PRIORITY +MASTER +ADDRESSES$/m);
  expect(status).toMatch(/^gateway +51 +MASTER +\S+ m?s +150 +test \(this node\) +127\.0\.77\.100\/32$/m);
  const metrics = await metricsOf(node);
  expect(metrics.get('understudy_router_state{router="gateway",state="master"}')).toBe(1);
  expect(metrics.get('understudy_router_state{router="gateway",state="backup"}')).toBe(0);
  expect(metrics.get('understudy_router_priority{router="gateway"}')).toBe(150);
  expect(metrics.get('understudy_router_master_transitions_total{router="gateway"}')).toBe(1);
  expect(metrics.get('understudy_router_reason{router="gateway",code="masterDownExpired"}')).toBe(1);
  expect(metrics.get('understudy_router_adverts_sent_total{router="gateway"}')).toBeGreaterThan(0);
  expect(metrics.get('understudy_router_conflicts{router="gateway"}')).toBe(0);
  expect(metrics.get(`understudy_address_state{router="gateway",address="${VIRTUAL}",state="announcing"}`)).toBe(1);
  expect(metrics.get('understudy_tracker_state{tracker="pool/web",state="up"}')).toBe(1);
  expect(metrics.get('understudy_foreign_vrids_total')).toBe(0);
});

test('a backup: who the master is, and what makes its own priority', async () => {
  const { node, send } = await startGateway({ track: [{ pool: 'web', weight: -60 }], priority: 100 });
  const repeat = setInterval(() => send(advert(200)), 20);
  onTestFinished(() => clearInterval(repeat));
  const state = await node.until('it knows the master', ({ routers }) => routers[0]?.master?.address === PEER);
  expect(state.routers[0]!.master).toEqual({ self: false, address: PEER, priority: 200 });
  expect(formatStatus(state)).toMatch(new RegExp(`^gateway +51 +BACKUP .* ${PEER} \\(200\\) `, 'm'));
  expect((await metricsOf(node)).get('understudy_router_adverts_received_total{router="gateway"}')).toBeGreaterThan(0);
});

test('a live peer of another version is a loud problem, with field and both values', async () => {
  const { node, send } = await startGateway();
  await routerIs(node, 'master');
  const wrong = Buffer.concat([advert(100, 1, undefined, 2), Buffer.alloc(8)]);
  send(wrong);
  const state = await node.until('the conflict', ({ routers }) => routers[0]!.conflicts.length > 0);
  expect(state.routers[0]!.conflicts).toEqual([
    { peer: PEER, kind: 'version', field: 'version', own: '3', theirs: '2' },
  ]);
  const sentence = `router gateway: ${PEER} advertises with another VRRP version (own 3, theirs 2): two masters as long as this lasts`;
  expect(state.node).toMatchObject({ status: 'degraded', problems: [sentence] });
  expect(await (await fetch(`${node.api}/healthz`)).json()).toEqual({ status: 'degraded', problems: [sentence] });
  expect(formatStatus(state)).toContain(`! ${sentence}`);
  const metrics = await metricsOf(node);
  expect(metrics.get('understudy_router_conflicts{router="gateway"}')).toBe(1);
  expect(metrics.get('understudy_router_adverts_discarded_total{router="gateway",kind="version"}')).toBe(1);
});

test('a peer with other addresses is accepted, and told without degrading anything', async () => {
  const { node, send } = await startGateway();
  await routerIs(node, 'master');
  send(advert(100, 30, [127, 0, 77, 101]));
  const state = await node.until('the difference', ({ routers }) => routers[0]!.differences.length > 0);
  expect(state.node).toMatchObject({ status: 'ok', problems: [] });
  expect(state.node.notices).toEqual([
    `router gateway: ${PEER} has another list of addresses (own ${VIRTUAL}, theirs 127.0.77.101); its adverts are accepted`,
  ]);
});

test('a router in FAULT says what is wrong', async () => {
  const { node } = await startGateway({ track: [{ script: ['/bin/false'], name: 'reachable' }] });
  const state = await routerIs(node, 'fault');
  expect(state.routers[0]!.faults).toEqual([{ what: 'script reachable', message: expect.stringMatching(/./) }]);
  expect(state.node.problems).toEqual([expect.stringMatching(/^router gateway is in FAULT: script reachable: ./)]);
  expect(formatStatus(state)).toMatch(/^ {2}! script reachable: ./m);
});

test('a demotion holds over a restart; a promotion takes it back for good', async () => {
  const { node, file, api } = await startGateway();
  await routerIs(node, 'master');
  expect(await node.post({ type: 'router.demote', router: 'gateway' })).toMatchObject({ status: 200 });
  expect(await node.end()).toBe(0);

  const again = await RunningNode.start(file, api);
  const restored = await again.until('the demotion', ({ routers }) => routers[0]!.priority.intent === 'demoted');
  expect(restored.routers[0]!.priority.text).toBe('1 (demoted by an operator; configured 150)');
  expect(restored.node.notices).toEqual(['router gateway was demoted by an operator']);
  const words = (await again.events('type=operator.demote')).map(({ event }) => event);
  expect(words).toContainEqual({ restored: true });
  expect(words).toHaveLength(2);
  expect(await again.post({ type: 'router.promote', router: 'gateway' })).toMatchObject({ status: 200 });
  expect(await again.end()).toBe(0);

  const third = await RunningNode.start(file, api);
  expect((await third.state()).routers[0]!.priority.intent).toBe('none');
});

test('a demotion holds over a reload that replaces the router', async () => {
  const { node, file } = await startGateway();
  await routerIs(node, 'master');
  await node.post({ type: 'router.demote', router: 'gateway' });
  writeFileSync(file, readFileSync(file, 'utf8').replace('"vrid":51', '"vrid":52'));
  expect((await node.post({ type: 'reload' })).body).toMatchObject({
    replaced: [`address/gateway/${VIRTUAL}`, 'router/gateway'],
  });
  const state = await node.until(
    'the new one',
    ({ routers }) => routers[0]?.vrid === 52 && routers[0].state === 'backup',
  );
  expect(state.routers[0]!.priority.intent).toBe('demoted');
});

test('explain tells of a running node’s router, and verify decides the same again', async () => {
  const { node, file } = await startGateway();
  await routerIs(node, 'master');
  const told = await understudy(['explain', 'router/gateway', '--api', node.api]);
  expect(told.stdout).toMatch(
    /^Router gateway is MASTER since .*: there was no master: no advert was heard for 1024 ms/,
  );
  expect(told.stdout).toContain(`→ ${VIRTUAL} was added after`);
  await node.end();
  const journal = file.replace('node.yaml', 'node.db');
  expect((await understudy(['verify', journal])).status).toBe(0);
  const same = await understudy(['whatif', journal, '--config', file]);
  expect(same.stdout).toContain(
    'router/gateway: changed state 3 times really, 3 times with this configuration; became master once really, once',
  );
});

test('the drawing of the system: trackers act on routers, routers have addresses, frontends listen on them', () => {
  const config = gatewayConfig({
    bind: '10.9.0.100:80',
    others: { inside: { vrid: 52, interface: 'eth1', priority: 150, addresses: ['192.168.0.100/24'] } },
    more: 'syncGroups: { both: { routers: [gateway, inside] } }',
  });
  const graph = systemGraph(config);
  const edges = graph.edges.map(({ from, to, label }) => `${from} -> ${to}${label === '' ? '' : ` (${label})`}`);
  for (const edge of [
    'pool/web -> tracker/pool/web (1 or more usable)',
    'tracker/pool/web -> router/gateway (weight -60)',
    'router/gateway -> address/gateway/10.9.0.100',
    'address/gateway/10.9.0.100 -> listener/shop/10.9.0.100:80',
    'group/both -> router/inside (together)',
  ])
    expect(edges).toContain(edge);
  const drawn = new Set(graph.nodes.map(({ id }) => id));
  for (const { from, to } of graph.edges)
    expect([drawn.has(from), drawn.has(to)], `${from} -> ${to}`).toEqual([true, true]);
  expect(drawSystem(graph).dot).toContain('VRID 51, version 3, multicast');
});
