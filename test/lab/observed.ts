/** What a lab shows from outside: who held which address when, by the kernel's word, and whom neighbours believe. */
import type { Host, Lab } from '../../deploy/lab/lab.ts';
import type { LabProcess } from '../../deploy/lab/process.ts';
import { output } from '../../deploy/lab/shell.ts';
import { until } from '../../deploy/lab/until.ts';
import { JournalReader } from '../../src/journal/reader.ts';
import type { Reason } from '../../machines/vrrpRouter.ts';
import { LabNode } from '../../deploy/lab/node.ts';
import type { NodeConfig, RouterState } from '../../deploy/lab/node.ts';

/** By the title that it takes when it is ready; null until then. */
const readyGuardOf = async (node: LabNode): Promise<number | null> => {
  const children = await output('ps', ['-ww', '-o', 'pid=,args=', '--ppid', String(node.running.pid)]).catch(() => '');
  const guard = children.split('\n').find((line) => line.includes('understudy-guard'));
  return guard === undefined ? null : Number.parseInt(guard, 10);
};

/** The guard of a node that runs, when it is ready. */
export const guardOf = (node: LabNode): Promise<number> => until(`${node.name}: its guard`, () => readyGuardOf(node));

const startGuarded = async (host: Host, config: NodeConfig): Promise<LabNode> => {
  const node = await LabNode.start(host, config);
  await guardOf(node);
  return node;
};

let starting: Promise<unknown> = Promise.resolve();

/** Starts nodes, and is done when their guards are ready; those of other tests wait, as a start takes all of both cores for a moment. */
export const startNodes = (...starts: (readonly [Host, NodeConfig])[]): Promise<LabNode[]> => {
  const started = starting.then(() => Promise.all(starts.map(([host, config]) => startGuarded(host, config))));
  starting = started.catch(() => {});
  return started;
};

/** Until this node is master and its host alone has the address. */
export const untilMaster = async (
  node: LabNode,
  others: LabNode[],
  address = VIP,
  { router = 'gateway', timeoutMs }: { router?: string; timeoutMs?: number } = {},
): Promise<void> =>
  void (await until(
    `${node.name}, and not ${others.map(({ name }) => name).join(', ')}, is master of ${router} with ${address}`,
    async () =>
      node.isMaster(router) &&
      !others.some((other) => other.isMaster(router)) &&
      (await node.host.holds(address)) &&
      (await Promise.all(others.map(({ host }) => host.holds(address)))).every((held) => !held),
    timeoutMs,
  ));

/** What `look` sees once it is as wanted, or else when the patience is over: for an `expect` that shows the difference. */
export const eventually = async <T>(look: () => Promise<T>, wanted: T): Promise<T> => {
  let seen = await look();
  const isWanted = async () => JSON.stringify((seen = await look())) === JSON.stringify(wanted);
  await until('', isWanted).catch(() => {});
  return seen;
};

export const VIP = '10.9.0.100';

/** A node with one router, `gateway`. */
export const gateway = (priority: number, router: object = {}, rest: object = {}): NodeConfig => ({
  ...rest,
  routers: {
    gateway: { vrid: 51, interface: 'eth0', priority, advertise: '100ms', addresses: [`${VIP}/24`], ...router },
  },
});

/** The wire between two segments: one bridge as far as hosts can tell, and none of them is told when it is cut. */
export class Trunk {
  readonly #lab: Lab;

  private constructor(lab: Lab) {
    this.#lab = lab;
  }

  static async between(lab: Lab, left: string, right: string): Promise<Trunk> {
    await output(
      'ip',
      ['-n', lab.switchNamespace, '-batch', '-'],
      [
        'link add trunk0 type veth peer name trunk1',
        `link set trunk0 master ${left} up`,
        `link set trunk1 master ${right} up`,
      ].join('\n'),
    );
    return new Trunk(lab);
  }

  async cut(): Promise<void> {
    await output('ip', ['-n', this.#lab.switchNamespace, 'link', 'set', 'trunk0', 'down']);
  }

  async heal(): Promise<void> {
    await output('ip', ['-n', this.#lab.switchNamespace, 'link', 'set', 'trunk0', 'up']);
  }
}

export type Change = { atMs: number; state: RouterState };

const STATE = /^(initialize|backup|master|fault)/;

/** A router's changes of state with the node's own times, as its log has them. */
export const changesOf = (program: LabProcess, router = 'gateway'): Change[] => {
  const changes: Change[] = [];
  for (const { text } of program.lines) {
    if (!text.includes(`"actor":"router/${router}"`)) continue;
    const { time, state } = JSON.parse(text) as { time: number; state: string };
    const named = STATE.exec(state)![1] as RouterState;
    if (changes.at(-1)?.state !== named) changes.push({ atMs: time, state: named });
  }
  return changes;
};

export type Told = { atMs: number; state: string; reason: Reason };

/** What a router's journal tells of its changes, with the reasons. */
export const toldBy = (node: LabNode, router = 'gateway'): Told[] => {
  const reader = new JournalReader(node.journal);
  try {
    return [...reader.steps({ actor: `router/${router}` })].flatMap(({ wallUs, effects }) =>
      effects
        .filter(({ type }) => type === 'notify')
        .map(({ params }): Told => {
          const { state, reason } = params as { state: string; reason: Reason };
          return { atMs: wallUs / 1000, state, reason };
        }),
    );
  } finally {
    reader.close();
  }
};

/** What in their journals this code would decide otherwise. */
export const divergencesOf = (...nodes: LabNode[]): object[] =>
  nodes.flatMap((node) => {
    const { divergence } = node.verify();
    return divergence === null ? [] : [{ node: node.name, divergence }];
  });

/** Until the neighbour tables of the hosts have this MAC for the address. */
export const untilNeighbours = async (hosts: Host[], address: string, mac: string) => {
  for (const host of hosts)
    await until(`${host.name} finds ${address} at ${mac}`, async () => (await host.neighbour(address)) === mac);
};

/** Sends a datagram every 50 ms, whatever becomes of it. */
const ASKING = `
use Socket qw(getaddrinfo SOCK_DGRAM);
my ($error, $to) = getaddrinfo($ARGV[0], 9, { socktype => SOCK_DGRAM });
socket(my $s, $to->{family}, SOCK_DGRAM, 0) or die $!;
while (1) { send($s, "?", 0, $to->{addr}); select(undef, undef, undef, 0.05); }
`;

/** Keeps a neighbour entry in use: it stays as it is for half a minute, unless an announcement moves it. */
export const keepAsking = (host: Host, address: string): Promise<LabProcess> =>
  host.spawn('perl', ['-e', ASKING, address]);

const MONITOR_LINE = /^\[([^\]]+)\] (Deleted )?\d+: (\S+) +inet6? (\S+)\//;

/** Who holds which address from when to when, as the kernels tell it. */
export class AddressWatch {
  readonly #monitors = new Map<string, LabProcess>();

  static async start(hosts: Host[]): Promise<AddressWatch> {
    const watch = new AddressWatch();
    // One line at the least tells that it listens.
    await Promise.all(
      hosts.map(async (host) => {
        const monitor = await host.spawn('ip', ['-ts', '-o', 'monitor', 'address']);
        watch.#monitors.set(host.name, monitor);
        const probe = ['127.9.9.9/32', 'dev', 'lo'];
        await until(`${host.name}: ip monitor`, async () => {
          await host.run('ip', ['address', 'add', ...probe]);
          await host.run('ip', ['address', 'delete', ...probe]);
          return monitor.lines.length > 0;
        });
      }),
    );
    return watch;
  }

  /** Changes of one host, in order. That the kernel is asked to keep an address for longer is none. */
  changes(host: string): { atMs: number; address: string; held: boolean }[] {
    const heldNow = new Set<string>();
    return this.#monitors.get(host)!.lines.flatMap(({ text }) => {
      const match = MONITOR_LINE.exec(text);
      if (!match) return [];
      const [, time, deleted, , address] = match as unknown as [string, string, string | undefined, string, string];
      const held = deleted === undefined;
      if (held === heldNow.has(address)) return [];
      if (held) heldNow.add(address);
      else heldNow.delete(address);
      return [{ atMs: Date.parse(`${time}Z`), address, held }];
    });
  }

  /**
   * Longest time, between the moments given, for which one host held some of the addresses and another one others that
   * the first had not.
   */
  longestTornMs(addresses: string[], sinceMs: number, untilMs: number): number {
    const names = [...this.#monitors.keys()];
    const events = names
      .flatMap((host) => this.changes(host).map(({ atMs, address, held: isHeld }) => ({ host, atMs, address, isHeld })))
      .filter(({ address }) => addresses.includes(address))
      .sort((a, b) => a.atMs - b.atMs);
    const held = new Map(names.map((name) => [name, new Set<string>()]));
    const isTorn = () =>
      names.some((one) =>
        names.some((other) => {
          const [mine, theirs] = [held.get(one)!, held.get(other)!];
          return [...mine].some((each) => !theirs.has(each)) && [...theirs].some((each) => !mine.has(each));
        }),
      );
    let tornSince: number | null = null;
    let longestMs = 0;
    const look = (atMs: number) => {
      if (tornSince !== null) longestMs = Math.max(longestMs, Math.min(atMs, untilMs) - Math.max(tornSince, sinceMs));
      tornSince = isTorn() ? (tornSince ?? atMs) : null;
    };
    for (const { host, address, isHeld, atMs } of events) {
      if (isHeld) held.get(host)!.add(address);
      else held.get(host)!.delete(address);
      look(atMs);
    }
    if (tornSince !== null) look(untilMs);
    return longestMs;
  }
}
