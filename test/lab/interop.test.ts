/**
 * An Understudy node and keepalived 2.2.7 share one virtual router: they elect, take over from each other and give back,
 * and neither refuses a packet of the other. tshark, whose reading of VRRP is nobody's of the two, watches.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import type { TestContext } from 'vitest';
import type { Capture, VrrpPacket } from '../../deploy/lab/capture.ts';
import type { Host, Lab } from '../../deploy/lab/lab.ts';
import { nowMs } from '../../deploy/lab/process.ts';
import { until } from '../../deploy/lab/until.ts';
import { masterDownMs, skewMs } from '../../machines/vrrpRouter.ts';
import { has, isRoot } from '../packages.ts';
import { startKeepalived } from './keepalived.ts';
import type { InstanceOptions, Keepalived, KeepalivedOptions, State } from './keepalived.ts';
import { labForTest } from './labHelpers.ts';
import { LabNode } from './node.ts';
import type { NodeConfig } from './node.ts';

const missing = ['ip', 'nft', 'keepalived', 'tcpdump', 'tshark', 'curl'].filter((program) => !has(program));
const obstacle = !isRoot ? 'takes root' : missing.length > 0 ? `takes ${missing.join(', ')}` : null;

if (obstacle !== null) process.stderr.write(`interoperation with keepalived is not tested: it ${obstacle}\n`);

/** An election of version 2 takes about ten seconds by itself; with others beside it on two cores it may be more. */
vi.setConfig({ testTimeout: 60_000 });

const ROUTER = 'gateway';
const VRID = 51;
const HIGH = 200;
const LOW = 100;
const SECRET = 's3cret';
/** Both ways of VRRP, with and without an authentication header. */
const VRRP = 'ip proto 112 or ip proto 51 or ip6 proto 112';
/** What programs on two busy cores may be late. A node whose loop was late waits one skew time more. */
const MARGIN_MS = 250;
/** The kernel's timers and the rounding of keepalived's. */
const EARLY_MS = 10;

type Family = 'ipv4' | 'ipv6';

type Combination = {
  version: 2 | 3;
  family: Family;
  transport: 'multicast' | 'unicast';
  authentication?: 'pass' | 'ah';
  virtualMac?: boolean;
};

/** A second in version 2, which knows no less. */
const advertMsOf = ({ version }: Combination): number => (version === 2 ? 1000 : 200);

const VIRTUAL: Record<Family, string[]> = {
  ipv4: ['10.9.0.100/24'],
  ipv6: ['fe80::100/64', 'fd00:9::100/64'],
};

const OWN: Record<Family, [string, string]> = {
  ipv4: ['10.9.0.11', '10.9.0.12'],
  ipv6: ['fd00:9::11', 'fd00:9::12'],
};

type Side = { own: string; peer: string; priority: number };

const nodeConfig = (combination: Combination, { own, peer, priority }: Side): NodeConfig => ({
  routers: {
    [ROUTER]: {
      vrid: VRID,
      interface: 'eth0',
      version: combination.version,
      priority,
      advertise: `${advertMsOf(combination)}ms`,
      addresses: VIRTUAL[combination.family],
      transport: combination.transport,
      ...(combination.transport === 'unicast' ? { source: own, peers: [peer] } : {}),
      ...(combination.authentication ? { authentication: { type: combination.authentication, secret: SECRET } } : {}),
      ...(combination.virtualMac ? { virtualMac: true } : {}),
    },
  },
});

const keepalivedInstance = (combination: Combination, { own, peer, priority }: Side): InstanceOptions => ({
  name: ROUTER,
  vrid: VRID,
  version: combination.version,
  priority,
  advertMs: advertMsOf(combination),
  addresses: VIRTUAL[combination.family],
  ...(combination.transport === 'unicast' ? { unicast: { source: own, peers: [peer] } } : {}),
  ...(combination.authentication
    ? { auth: { type: combination.authentication === 'ah' ? 'AH' : 'PASS', pass: SECRET } }
    : {}),
  ...(combination.virtualMac ? { virtualMac: true } : {}),
});

/** One of the two, in words that are the same for both. */
type Party = {
  host: Host;
  priority: number;
  /** Where its adverts come from. */
  source: string;
  start(): Promise<void>;
  /** Until it enters the state after the mark, by default in its present life. */
  untilState(state: 'master' | 'backup', mark?: number): Promise<unknown>;
  mark(): number;
  /** Until it has heard the other one as its master. */
  untilFollows(source: string): Promise<unknown>;
  /** As if its program had been shot. */
  kill(): Promise<unknown>;
  /** As an administrator stops it. */
  stop(): Promise<unknown>;
  /** What it didn't like about the other's packets in its present life. */
  refusals(): Promise<string[]>;
};

class NodeParty implements Party {
  readonly host: Host;
  readonly priority: number;
  readonly source: string;
  readonly #config: NodeConfig;
  #node: LabNode | null = null;

  constructor(host: Host, source: string, priority: number, config: NodeConfig) {
    this.host = host;
    this.source = source;
    this.priority = priority;
    this.#config = config;
  }

  get node(): LabNode {
    return this.#node!;
  }

  async start(): Promise<void> {
    if (this.#node) await this.#node.run();
    else this.#node = await LabNode.start(this.host, this.#config);
  }

  untilState(state: 'master' | 'backup', mark = 0): Promise<unknown> {
    return this.node.untilState(ROUTER, state, { after: mark });
  }

  mark(): number {
    return this.node.running.lines.length;
  }

  untilFollows(source: string): Promise<unknown> {
    return until(`${this.host.name} follows ${source}`, async () => {
      const { routers } = await this.node.state();
      return routers[0]!.master?.address === source;
    });
  }

  async kill(): Promise<unknown> {
    this.node.running.signal('SIGKILL');
    return this.node.running.exited;
  }

  stop(): Promise<unknown> {
    return this.node.end();
  }

  async refusals(): Promise<string[]> {
    const { routers } = await this.node.state();
    const { counters, conflicts, differences } = routers[0]!;
    return [
      ...Object.entries(counters!.discarded).map(([kind, count]) => `${count} discarded for ${kind}`),
      ...[...conflicts, ...differences].map((each) => JSON.stringify(each)),
    ];
  }
}

class KeepalivedParty implements Party {
  readonly host: Host;
  readonly priority: number;
  readonly source: string;
  readonly #options: KeepalivedOptions;
  #keepalived: Keepalived | null = null;

  constructor(host: Host, source: string, priority: number, options: KeepalivedOptions) {
    this.host = host;
    this.source = source;
    this.priority = priority;
    this.#options = options;
  }

  get keepalived(): Keepalived {
    return this.#keepalived!;
  }

  async start(): Promise<void> {
    this.#keepalived = await startKeepalived(this.host, this.#options);
  }

  untilState(state: 'master' | 'backup', mark = 0): Promise<unknown> {
    return this.keepalived.untilState(ROUTER, state === 'master' ? 'MASTER' : 'BACKUP', { after: mark });
  }

  mark(): number {
    return this.keepalived.mark;
  }

  untilFollows(source: string): Promise<unknown> {
    return until(`${this.host.name} follows ${source}`, async () =>
      (await this.keepalived.data()).includes(`Master router = ${source}`),
    );
  }

  kill(): Promise<unknown> {
    return this.keepalived.crash();
  }

  stop(): Promise<unknown> {
    return this.keepalived.stop();
  }

  refusals(): Promise<string[]> {
    return this.keepalived.trouble();
  }
}

/** As Ubuntu has it; keepalived sets it to 0 where it has virtual MACs, and complains. */
const REVERSE_PATH_FILTER = { 'net.ipv4.conf.all.rp_filter': '2', 'net.ipv4.conf.default.rp_filter': '2' };

const hostsOf = async (lab: Lab): Promise<[Host, Host]> => {
  const make = (name: string, index: 0 | 1, sysctls: Record<string, string>) =>
    lab.host(name, { addresses: { eth0: [`${OWN.ipv4[index]}/24`, `${OWN.ipv6[index]}/64`] }, sysctls });
  return [await make('us', 0, REVERSE_PATH_FILTER), await make('ka', 1, {})];
};

/** Of unicast the configured address, of multicast the interface's: its link-local one for IPv6. */
const sourceOf = async (host: Host, own: string, { family, transport }: Combination): Promise<string> => {
  if (family === 'ipv4' || transport === 'unicast') return own;
  const addresses = await host.addresses('eth0');
  return addresses.find((address) => address.startsWith('fe80:'))!.split('/')[0]!;
};

/** `ownAddresses` are the node's host's before it has any other. */
type Pair = { node: NodeParty; keepalived: KeepalivedParty; capture: Capture; ownAddresses: string[] };

const pairOf = async (
  combination: Combination,
  priorities: { node: number; keepalived: number },
  onFinished: TestContext['onTestFinished'],
): Promise<Pair> => {
  const lab = await labForTest(onFinished);
  const [us, ka] = await hostsOf(lab);
  const [own, peer] = OWN[combination.family];
  const ours = nodeConfig(combination, { own, peer, priority: priorities.node });
  const theirs = keepalivedInstance(combination, { own: peer, peer: own, priority: priorities.keepalived });
  return {
    node: new NodeParty(us, await sourceOf(us, own, combination), priorities.node, ours),
    keepalived: new KeepalivedParty(ka, await sourceOf(ka, peer, combination), priorities.keepalived, {
      instances: [theirs],
    }),
    capture: await ka.capture('eth0', VRRP),
    ownAddresses: await us.addresses(),
  };
};

const untilHeldBy = async (holder: Host, other: Host, family: Family): Promise<void> => {
  for (const address of VIRTUAL[family].map((each) => each.split('/')[0]!)) {
    await Promise.all([holder.untilHolds(address), other.untilHolds(address, false)]);
  }
};

/**
 * Both start, the higher one is killed, comes back and is stopped.
 * @returns the moments of it, in ms since 1970
 */
const playElection = async (high: Party, low: Party, { family }: Combination, killLeavesAddress: boolean) => {
  await Promise.all([high.start(), low.start()]);
  await high.untilState('master');
  await untilHeldBy(high.host, low.host, family);
  await low.untilFollows(high.source);
  expect(await high.refusals()).toEqual([]);

  let mark = low.mark();
  const killedAt = nowMs();
  await Promise.all([high.kill(), low.untilState('master', mark)]);
  if (killLeavesAddress) await low.host.untilHolds(VIRTUAL[family][0]!.split('/')[0]!);
  else await untilHeldBy(low.host, high.host, family);

  mark = low.mark();
  const restartedAt = nowMs();
  await Promise.all([high.start().then(() => high.untilState('master')), low.untilState('backup', mark)]);
  await untilHeldBy(high.host, low.host, family);
  await low.untilFollows(high.source);
  expect(await high.refusals()).toEqual([]);

  mark = low.mark();
  const stoppedAt = nowMs();
  await Promise.all([high.stop(), low.untilState('master', mark)]);
  await untilHeldBy(low.host, high.host, family);
  expect(await low.refusals()).toEqual([]);
  return { killedAt, restartedAt, stoppedAt };
};

/** The last word of one and the first of its successor, and the time between them. */
const successionAfter = (packets: VrrpPacket[], atMs: number, from: Party, to: Party) => {
  const first = packets.find((packet) => packet.source === to.source && packet.atMs >= atMs);
  expect(first, `an advert of ${to.host.name}`).toBeDefined();
  const last = packets.findLast((packet) => packet.source === from.source && packet.atMs < first!.atMs);
  expect(last, `an advert of ${from.host.name}`).toBeDefined();
  return { last: last!, first: first!, gapMs: first!.atMs - last!.atMs };
};

const expectWithin = (gapMs: number, waitMs: number, graceMs: number, what: string): void => {
  expect(gapMs, what).toBeGreaterThan(waitMs - EARLY_MS);
  expect(gapMs, what).toBeLessThan(waitMs + graceMs + MARGIN_MS);
};

const checkWire = async (
  { node, keepalived, capture }: Pair,
  combination: Combination,
  moments: Awaited<ReturnType<typeof playElection>>,
): Promise<void> => {
  const [high, low] = node.priority > keepalived.priority ? [node, keepalived] : [keepalived, node];
  const { killedAt, restartedAt, stoppedAt } = moments;
  const advertMs = advertMsOf(combination);
  const packets = await capture.vrrp();
  expect(await capture.complaints()).toEqual([]);
  const addresses = VIRTUAL[combination.family].map((each) => each.split('/')[0]!);
  const keepalivedTtl = combination.family === 'ipv6' && combination.transport === 'unicast' ? 64 : 255;
  const odd = packets.filter(
    (packet) =>
      packet.ttl !== (packet.source === keepalived.source ? keepalivedTtl : 255) ||
      packet.version !== combination.version ||
      packet.vrid !== VRID ||
      packet.advertMs !== advertMs ||
      packet.checksum !== 'good' ||
      packet.addresses.join() !== addresses.join() ||
      ![0, packet.source === high.source ? HIGH : LOW].includes(packet.priority),
  );
  expect(odd).toEqual([]);

  const skew = skewMs(combination, LOW, advertMs);
  const grace = low === node ? skew : 0;
  const killed = successionAfter(packets, killedAt, high, low);
  // The guard says goodbye for a node that is killed; for keepalived nobody does.
  if (high === node) expect(killed.last.priority).toBe(0);
  else expect(killed.last.priority).toBe(HIGH);
  expectWithin(killed.gapMs, high === node ? skew : masterDownMs(combination, LOW, advertMs), grace, 'after the kill');

  const back = packets.find(({ source, atMs }) => source === high.source && atMs >= restartedAt)!;
  const late = packets.filter(
    ({ source, atMs }) => source === low.source && atMs > back.atMs + advertMs && atMs < stoppedAt,
  );
  expect(late, 'adverts of the lower one after it gave back').toEqual([]);

  const stopped = successionAfter(packets, stoppedAt, high, low);
  expect(stopped.last.priority).toBe(0);
  expectWithin(stopped.gapMs, skew, grace, 'after priority 0');
};

/** Why it was in its states, one after the other, over all its lives. */
const reasonsOf = (node: LabNode): string[] =>
  node
    .reasons(ROUTER)
    .map(({ state, reason: { code, peer } }) => `${state} ${code}${peer === undefined ? '' : ` ${peer}`}`);

const explanationOf = (node: LabNode): string =>
  node
    .explain(`router/${ROUTER}`)
    .sentences.map(({ text }) => text)
    .join('\n');

const COMBINATIONS: Combination[] = [
  ...(['multicast', 'unicast'] as const).flatMap((transport): Combination[] => [
    { version: 2, family: 'ipv4', transport },
    { version: 2, family: 'ipv4', transport, authentication: 'pass' },
    { version: 2, family: 'ipv4', transport, authentication: 'ah' },
    { version: 3, family: 'ipv4', transport },
    { version: 3, family: 'ipv6', transport },
  ]),
  { version: 3, family: 'ipv4', transport: 'multicast', virtualMac: true },
  { version: 3, family: 'ipv6', transport: 'multicast', virtualMac: true },
  { version: 3, family: 'ipv4', transport: 'unicast', virtualMac: true },
  { version: 2, family: 'ipv4', transport: 'multicast', virtualMac: true, authentication: 'ah' },
];

const AH: Combination = { version: 2, family: 'ipv4', transport: 'multicast', authentication: 'ah' };

const titleOf = ({ version, family, transport, authentication, virtualMac }: Combination): string =>
  [
    `version ${version}`,
    family === 'ipv4' ? 'IPv4' : 'IPv6',
    transport,
    ...(authentication ? [authentication] : []),
    ...(virtualMac ? ['virtual MAC'] : []),
  ].join(', ');

/** A node and a keepalived that don't fit together: what `status` has to say of it. */
type Misfit = {
  title: string;
  /** Of the router and of the instance, beside what fits. */
  ours: Record<string, unknown>;
  theirs: Partial<InstanceOptions>;
  family?: Family;
  says: { kind: string; field: string; own: string; theirs: string };
};

const PASS = { version: 2, authentication: { type: 'pass', secret: SECRET } };
const UNICAST = { transport: 'unicast', source: OWN.ipv4[0] };
const THEIR_UNICAST = { source: OWN.ipv4[1], peers: [OWN.ipv4[0]] };

const MISFITS: Misfit[] = [
  {
    title: 'another password',
    ours: PASS,
    theirs: { version: 2, auth: { type: 'PASS', pass: 'other' } },
    says: { kind: 'authentication', field: 'authentication.secret', own: 'pass', theirs: 'pass with another secret' },
  },
  {
    title: 'another key of ah',
    ours: { version: 2, authentication: { type: 'ah', secret: SECRET } },
    theirs: { version: 2, auth: { type: 'AH', pass: 'other' } },
    says: { kind: 'authentication', field: 'authentication.secret', own: 'ah', theirs: 'ah with another secret' },
  },
  {
    title: 'ah instead of pass',
    ours: PASS,
    theirs: { version: 2, auth: { type: 'AH', pass: SECRET } },
    says: { kind: 'authentication', field: 'authentication', own: 'pass', theirs: 'ah' },
  },
  {
    title: 'pass instead of none',
    ours: { version: 2 },
    theirs: { version: 2, auth: { type: 'PASS', pass: SECRET } },
    says: { kind: 'authentication', field: 'authentication', own: 'none', theirs: 'pass' },
  },
  {
    title: 'version 2 instead of 3',
    ours: { version: 3 },
    theirs: { version: 2 },
    says: { kind: 'version', field: 'version', own: '3', theirs: '2' },
  },
  {
    title: 'another interval of version 2',
    ours: { version: 2, advertise: '2s' },
    theirs: { version: 2 },
    says: { kind: 'interval', field: 'advertise', own: '2 s', theirs: '1 s' },
  },
  {
    title: 'unicast from a peer that is not listed',
    ours: { ...UNICAST, peers: ['10.9.0.13'] },
    theirs: { unicast: THEIR_UNICAST },
    says: { kind: 'peer', field: 'peers', own: '10.9.0.13', theirs: OWN.ipv4[1] },
  },
  {
    title: 'unicast instead of multicast',
    ours: {},
    theirs: { unicast: THEIR_UNICAST },
    says: { kind: 'transport', field: 'transport', own: 'multicast', theirs: 'unicast' },
  },
  {
    title: 'a hop limit below the least',
    family: 'ipv6',
    ours: { transport: 'unicast', source: OWN.ipv6[0], peers: [OWN.ipv6[1]], minTtl: 255 },
    theirs: { unicast: { source: OWN.ipv6[1], peers: [OWN.ipv6[0]] } },
    says: { kind: 'ttl', field: 'minTtl', own: '255', theirs: '64' },
  },
];

/** Started side by side, keepalived with the higher priority. */
const misfitOf = async (
  { ours, theirs, family = 'ipv4' }: Pick<Misfit, 'ours' | 'theirs' | 'family'>,
  onFinished: TestContext['onTestFinished'],
) => {
  const lab = await labForTest(onFinished);
  const [us, ka] = await hostsOf(lab);
  const common = { vrid: VRID, addresses: VIRTUAL[family] };
  const router = { ...common, interface: 'eth0', priority: LOW, advertise: '1s', ...ours };
  const instance: InstanceOptions = { ...common, name: ROUTER, priority: HIGH, version: 3, advertMs: 1000, ...theirs };
  const [node, keepalived] = await Promise.all([
    LabNode.start(us, { routers: { [ROUTER]: router } }),
    startKeepalived(ka, { instances: [instance] }),
  ]);
  return { us, ka, node, keepalived, instance };
};

const routerView = async (node: LabNode) => (await node.state()).routers.find(({ name }) => name === ROUTER)!;

const GROUP = ['inside', 'outside'] as const;
const GROUP_LINKS = { outside: { interface: 'eth0', net: '10.9.0' }, inside: { interface: 'eth1', net: '10.8.0' } };

/** Both have two routers, each on a link of its own, that are to be where the other one is. */
const groupsOf = async (
  priorities: { node: number; keepalived: number },
  onFinished: TestContext['onTestFinished'],
) => {
  const lab = await labForTest(onFinished);
  const make = (name: string, last: number) =>
    lab.host(name, {
      addresses: { eth0: [`10.9.0.${last}/24`], eth1: [`10.8.0.${last}/24`] },
      segments: { eth1: 'inside' },
    });
  const [us, ka] = [await make('us', 11), await make('ka', 12)];
  const links = GROUP.map((name) => ({ name, ...GROUP_LINKS[name] }));
  const routers = Object.fromEntries(
    links.map(({ name, net, interface: link }, index) => [
      name,
      {
        vrid: VRID + index,
        interface: link,
        priority: priorities.node,
        advertise: '200ms',
        addresses: [`${net}.100/24`],
      },
    ]),
  );
  const instances = links.map(({ name, net, interface: link }, index) => ({
    name,
    vrid: VRID + index,
    interface: link,
    priority: priorities.keepalived,
    advertMs: 200,
    addresses: [`${net}.100/24`],
  }));
  const [node, keepalived] = await Promise.all([
    LabNode.start(us, { routers, syncGroups: { both: { routers: [...GROUP] } } }),
    startKeepalived(ka, { instances, syncGroups: { both: [...GROUP] } }),
  ]);
  type GroupState = 'master' | 'backup' | 'fault';
  return {
    lab: node,
    node: {
      host: us,
      mark: () => node.running.lines.length,
      untilStates: (state: GroupState, after = 0) =>
        Promise.all(GROUP.map((name) => node.untilState(name, state, { after }))),
    },
    keepalived: {
      host: ka,
      mark: () => keepalived.mark,
      untilStates: (state: GroupState, after = 0) =>
        Promise.all(GROUP.map((name) => keepalived.untilState(name, state.toUpperCase() as State, { after }))),
      refusals: () => keepalived.trouble(),
    },
  };
};

const untilGroupHeldBy = (holder: Host, other: Host): Promise<unknown> =>
  Promise.all(
    GROUP.flatMap((name) => {
      const address = `${GROUP_LINKS[name].net}.100`;
      return [holder.untilHolds(address), other.untilHolds(address, false)];
    }),
  );

describe.skipIf(obstacle !== null)(`beside keepalived${obstacle === null ? '' : ` (${obstacle})`}`, () => {
  for (const combination of COMBINATIONS) {
    test.concurrent(
      `${titleOf(combination)}: it is master, is missed, comes back, leaves`,
      async ({ onTestFinished }) => {
        const pair = await pairOf(combination, { node: HIGH, keepalived: LOW }, onTestFinished);
        const moments = await playElection(pair.node, pair.keepalived, combination, false);
        await checkWire(pair, combination, moments);
        const { node } = pair.node;
        expect(node.discarded()).toEqual([]);
        expect(node.verify().divergence).toBeNull();
        expect(reasonsOf(node).slice(-3)).toEqual([
          'BACKUP startup',
          `MASTER preemption ${pair.keepalived.source}`,
          'STOP shutdown',
        ]);
      },
    );

    test.concurrent(
      `${titleOf(combination)}: keepalived is master, is missed, comes back, leaves`,
      async ({ onTestFinished }) => {
        const pair = await pairOf(combination, { node: LOW, keepalived: HIGH }, onTestFinished);
        const moments = await playElection(pair.keepalived, pair.node, combination, true);
        await checkWire(pair, combination, moments);
        const { node } = pair.node;
        const added = (await pair.node.host.addresses()).filter((each) => !pair.ownAddresses.includes(each));
        expect(added.sort()).toEqual([...VIRTUAL[combination.family]].sort());
        await node.end();
        expect(node.discarded()).toEqual([]);
        expect(node.verify().divergence).toBeNull();
        const { source } = pair.keepalived;
        expect(explanationOf(node)).toMatch(/said that it leaves \(priority 0\)/);
        expect(reasonsOf(node).slice(-4)).toEqual([
          `MASTER masterDownExpired ${source}`,
          `BACKUP higherPriority ${source}`,
          `MASTER priorityZero ${source}`,
          'STOP shutdown',
        ]);
      },
    );
  }

  for (const misfit of MISFITS) {
    test.concurrent(`${misfit.title} is told with both values`, async ({ onTestFinished }) => {
      const { node } = await misfitOf(misfit, onTestFinished);
      const conflicts = await until('a conflict', async () => {
        const view = await routerView(node);
        return view.conflicts.length > 0 && view.conflicts;
      });
      const { family = 'ipv4', says } = misfit;
      const peer = OWN[family][1];
      expect(conflicts).toEqual([{ peer, ...says }]);
      const problems = (await node.state()).node.problems.join('\n');
      for (const word of [peer, says.theirs, says.own]) expect(problems).toContain(word);
      expect(await node.understudy('status')).toContain(peer);
      await node.end();
      expect(new Set(node.discarded().map(({ kind }) => kind))).toEqual(new Set([says.kind]));
      expect(node.verify().divergence).toBeNull();
    });
  }

  test.concurrent('a conflict ends with its cause: one master is left', async ({ onTestFinished }) => {
    const { us, ka, node, keepalived, instance } = await misfitOf(MISFITS[0]!, onTestFinished);
    await Promise.all([node.untilState(ROUTER, 'master'), keepalived.untilState(ROUTER, 'MASTER')]);
    await until('a conflict', async () => (await routerView(node)).conflicts.length > 0);
    const mark = node.running.lines.length;
    await keepalived.reload({ instances: [{ ...instance, auth: { type: 'PASS', pass: SECRET } }] });
    await node.untilState(ROUTER, 'backup', { after: mark });
    await untilHeldBy(ka, us, 'ipv4');
    const { conflicts, differences } = await routerView(node);
    expect({ conflicts, differences }).toEqual({ conflicts: [], differences: [] });
  });

  test.concurrent('another address list is accepted, and said once', async ({ onTestFinished }) => {
    const theirs = { addresses: [...VIRTUAL.ipv4, '10.9.0.101/24'], advertMs: 200 };
    const { us, ka, node, keepalived } = await misfitOf({ ours: { advertise: '200ms' }, theirs }, onTestFinished);
    await keepalived.untilState(ROUTER, 'MASTER');
    const view = await until('the difference', async () => {
      const seen = await routerView(node);
      return seen.differences.length > 0 && seen;
    });
    const [peer, own] = [OWN.ipv4[1], '10.9.0.100'];
    expect(view.differences).toEqual([{ peer, field: 'addresses', own, theirs: `${own}, 10.9.0.101` }]);
    expect(view.conflicts).toEqual([]);
    const { received } = view.counters!;
    await until('more of its adverts', async () => (await routerView(node)).counters!.received > received + 5);
    expect(node.states()[ROUTER]).toBe('backup');
    await untilHeldBy(ka, us, 'ipv4');
    const { notices, problems } = (await node.state()).node;
    expect({ notices: notices.length, problems }).toEqual({ notices: 1, problems: [] });
    await node.end();
    expect(node.discarded()).toEqual([]);
  });

  test.concurrent('a keepalived with ah that is back at once is not shut out', async ({ onTestFinished }) => {
    const { node, keepalived } = await pairOf(AH, { node: LOW, keepalived: HIGH }, onTestFinished);
    await Promise.all([node.start(), keepalived.start()]);
    await keepalived.untilState('master');
    await node.untilFollows(keepalived.source);
    await keepalived.kill();
    // Its numbers begin again below those that the node has heard.
    await keepalived.start();
    await keepalived.untilState('master');
    await node.untilFollows(keepalived.source);
    await untilHeldBy(keepalived.host, node.host, 'ipv4');
    expect(await keepalived.refusals()).toEqual([]);
  });

  test.concurrent('with ah each one goes on above the numbers of the others', async ({ onTestFinished }) => {
    const lab = await labForTest(onTestFinished);
    const hostOf = (name: string, last: number) => lab.host(name, { addresses: { eth0: [`10.9.0.${last}/24`] } });
    const [first, second, ka] = [await hostOf('first', 11), await hostOf('second', 12), await hostOf('ka', 13)];
    const sideOf = (priority: number) => ({ own: '', peer: '', priority });
    // keepalived keeps one mark for all: that of the node that has been restarted most often.
    const folder = join(second.folder, 'node-second');
    mkdirSync(folder);
    writeFileSync(join(folder, 'second.sequence'), '3000000000');
    const [heir, keepalived] = await Promise.all([
      LabNode.start(second, nodeConfig(AH, sideOf(LOW))),
      startKeepalived(ka, { instances: [keepalivedInstance(AH, sideOf(LOW - 1))] }),
    ]);
    await heir.untilState(ROUTER, 'master');
    const master = await LabNode.start(first, nodeConfig(AH, sideOf(HIGH)));
    const mark = heir.running.lines.length;
    await Promise.all([master.untilState(ROUTER, 'master'), heir.untilState(ROUTER, 'backup', { after: mark })]);
    await first.untilHolds('10.9.0.100');
    await until('keepalived to follow', async () => (await keepalived.data()).includes('Master router = 10.9.0.11'));
    const [after, heard] = [heir.running.lines.length, keepalived.mark];
    master.running.signal('SIGKILL');
    // The goodbye that the guard says for the one that was killed.
    await keepalived.process.waitFor(/Backup received priority 0/, { after: heard });
    await heir.untilState(ROUTER, 'master', { after });
    await heir.end();
    expect(reasonsOf(heir).slice(-2)).toEqual(['MASTER priorityZero 10.9.0.11', 'STOP shutdown']);
    expect(heir.discarded()).toEqual([]);
  });

  for (const node of [HIGH, LOW]) {
    const title = node === HIGH ? 'the node' : 'keepalived';
    test.concurrent(`a sync group moves as a whole when ${title} loses one link`, async ({ onTestFinished }) => {
      const groups = await groupsOf({ node, keepalived: HIGH + LOW - node }, onTestFinished);
      const [high, low] = node === HIGH ? [groups.node, groups.keepalived] : [groups.keepalived, groups.node];
      await Promise.all([high.untilStates('master'), low.untilStates('backup')]);
      await untilGroupHeldBy(high.host, low.host);
      let marks = [high.mark(), low.mark()] as const;
      await high.host.unplug('eth1');
      await Promise.all([high.untilStates('fault', marks[0]), low.untilStates('master', marks[1])]);
      await untilGroupHeldBy(low.host, high.host);
      marks = [high.mark(), low.mark()];
      await high.host.heal('eth1');
      await Promise.all([high.untilStates('master', marks[0]), low.untilStates('backup', marks[1])]);
      await untilGroupHeldBy(high.host, low.host);
      // Of two members the first one steps down for a higher advert, and says goodbye for the second.
      const ordinary = /^\(\w+\) Master received priority 0 message$/;
      expect((await groups.keepalived.refusals()).filter((line) => !ordinary.test(line))).toEqual([]);
      await groups.lab.end();
      for (const router of GROUP) expect(groups.lab.discarded(router)).toEqual([]);
      expect(groups.lab.verify().divergence).toBeNull();
    });
  }
});
