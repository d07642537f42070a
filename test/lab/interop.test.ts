/**
 * Beside keepalived: elections in which each version, family, transport and authentication has its turn (the others are in
 * interopElections.test.ts), and what doesn't fit together.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { TestContext } from 'vitest';
import type { Host } from '../../deploy/lab/lab.ts';
import { LabNode } from '../../deploy/lab/node.ts';
import { until } from '../../deploy/lab/until.ts';
import {
  electBeside,
  HIGH,
  hostsOf,
  keepalivedInstance,
  LOW,
  nodeConfig,
  obstacle,
  OWN,
  pairOf,
  reasonsOf,
  ROUTER,
  SECRET,
  untilHeldBy,
  VIRTUAL,
  VRID,
} from './besideKeepalived.ts';
import type { Combination, Family } from './besideKeepalived.ts';
import { startKeepalived } from './keepalived.ts';
import type { InstanceOptions, State } from './keepalived.ts';
import { labForTest } from './labHelpers.ts';

const AH: Combination = { version: 2, family: 'ipv4', transport: 'multicast', authentication: 'ah' };

const ELECTIONS: Combination[] = [
  { version: 2, family: 'ipv4', transport: 'multicast', authentication: 'pass' },
  { version: 2, family: 'ipv4', transport: 'unicast', authentication: 'ah' },
  { version: 3, family: 'ipv4', transport: 'unicast' },
  { version: 3, family: 'ipv6', transport: 'multicast' },
  { version: 3, family: 'ipv4', transport: 'multicast', virtualMac: true },
];

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
  for (const combination of ELECTIONS) electBeside(combination);

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
