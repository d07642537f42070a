/**
 * An Understudy node and keepalived 2.2.7 share one virtual router: they elect, take over from each other and give back,
 * and neither refuses a packet of the other. tshark, whose reading of VRRP is nobody's of the two, watches.
 */
import { expect, test } from 'vitest';
import type { TestContext } from 'vitest';
import type { Capture, VrrpPacket } from '../../deploy/lab/capture.ts';
import type { Host, Lab } from '../../deploy/lab/lab.ts';
import { nowMs } from '../../deploy/lab/process.ts';
import { until } from '../../deploy/lab/until.ts';
import { masterDownMs, skewMs } from '../../machines/vrrpRouter.ts';
import { has, isRoot } from '../packages.ts';
import { startKeepalived } from './keepalived.ts';
import type { InstanceOptions, Keepalived, KeepalivedOptions } from './keepalived.ts';
import { labForTest } from './labHelpers.ts';
import { LabNode } from '../../deploy/lab/node.ts';
import type { NodeConfig } from '../../deploy/lab/node.ts';

const missing = ['ip', 'nft', 'keepalived', 'tcpdump', 'tshark', 'curl'].filter((program) => !has(program));
export const obstacle = !isRoot ? 'takes root' : missing.length > 0 ? `takes ${missing.join(', ')}` : null;

if (obstacle !== null) process.stderr.write(`interoperation with keepalived is not tested: it ${obstacle}\n`);

export const ROUTER = 'gateway';
export const VRID = 51;
export const HIGH = 200;
export const LOW = 100;
export const SECRET = 's3cret';
/** Both ways of VRRP, with and without an authentication header. */
const VRRP = 'ip proto 112 or ip proto 51 or ip6 proto 112';
/** The kernel's timers and the rounding of keepalived's. */
const EARLY_MS = 10;

export type Family = 'ipv4' | 'ipv6';

export type Combination = {
  version: 2 | 3;
  family: Family;
  transport: 'multicast' | 'unicast';
  authentication?: 'pass' | 'ah';
  virtualMac?: boolean;
};

/** A second in version 2, which knows no less. */
const advertMsOf = ({ version }: Combination): number => (version === 2 ? 1000 : 200);

export const VIRTUAL: Record<Family, string[]> = {
  ipv4: ['10.9.0.100/24'],
  ipv6: ['fe80::100/64', 'fd00:9::100/64'],
};

export const OWN: Record<Family, [string, string]> = {
  ipv4: ['10.9.0.11', '10.9.0.12'],
  ipv6: ['fd00:9::11', 'fd00:9::12'],
};

type Side = { own: string; peer: string; priority: number };

export const nodeConfig = (combination: Combination, { own, peer, priority }: Side): NodeConfig => ({
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

export const keepalivedInstance = (combination: Combination, { own, peer, priority }: Side): InstanceOptions => ({
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

/** The guard's, where the machine was so busy that keepalived had counted to the end before. */
const LATE_GOODBYE = /^\(\w+\) Master received priority 0 message$/;

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

  async refusals(): Promise<string[]> {
    return (await this.keepalived.trouble()).filter((line) => !LATE_GOODBYE.test(line));
  }
}

/** As Ubuntu has it; keepalived sets it to 0 where it has virtual MACs, and complains. */
const REVERSE_PATH_FILTER = { 'net.ipv4.conf.all.rp_filter': '2', 'net.ipv4.conf.default.rp_filter': '2' };

export const hostsOf = async (lab: Lab): Promise<[Host, Host]> => {
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

type Pair = { node: NodeParty; keepalived: KeepalivedParty; capture: Capture; addressesBefore: string[] };

export const pairOf = async (
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
    addressesBefore: await us.addresses(),
  };
};

export const untilHeldBy = async (holder: Host, other: Host, family: Family): Promise<void> => {
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

/** How much later it was is for a benchmark to say. */
const expectNoSooner = (gapMs: number, waitMs: number, what: string): void =>
  expect(gapMs, what).toBeGreaterThan(waitMs - EARLY_MS);

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
  const killed = successionAfter(packets, killedAt, high, low);
  // The guard says goodbye for a node that is killed; for keepalived nobody does.
  const goodbyes = packets.filter(
    ({ source, atMs, priority }) =>
      source === high.source && priority === 0 && atMs >= killedAt - EARLY_MS && atMs < stoppedAt,
  );
  expect(goodbyes, 'goodbyes for the one that was killed').toHaveLength(high === node ? 1 : 0);
  const isTold = killed.last.priority === 0;
  expectNoSooner(killed.gapMs, isTold ? skew : masterDownMs(combination, LOW, advertMs), 'after the kill');

  const back = packets.find(({ source, atMs }) => source === high.source && atMs >= restartedAt)!;
  const late = packets.filter(
    ({ source, atMs }) => source === low.source && atMs > back.atMs + advertMs && atMs < stoppedAt,
  );
  expect(late, 'adverts of the lower one after it gave back').toEqual([]);

  const stopped = successionAfter(packets, stoppedAt, high, low);
  expect(stopped.last.priority).toBe(0);
  expectNoSooner(stopped.gapMs, skew, 'after priority 0');
};

/** Why it was in its states, one after the other, over all its lives. */
export const reasonsOf = (node: LabNode): string[] =>
  node
    .reasons(ROUTER)
    .map(({ state, reason: { code, peer } }) => `${state} ${code}${peer === undefined ? '' : ` ${peer}`}`);

const explanationOf = (node: LabNode): string =>
  node
    .explain(`router/${ROUTER}`)
    .sentences.map(({ text }) => text)
    .join('\n');

const titleOf = ({ version, family, transport, authentication, virtualMac }: Combination): string =>
  [
    `version ${version}`,
    family === 'ipv4' ? 'IPv4' : 'IPv6',
    transport,
    ...(authentication ? [authentication] : []),
    ...(virtualMac ? ['virtual MAC'] : []),
  ].join(', ');

/** Two tests: either of the two is the one that is master first. */
export const electBeside = (combination: Combination): void => {
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
      const added = (await pair.node.host.addresses()).filter((each) => !pair.addressesBefore.includes(each));
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
};
