/**
 * The stage of the cluster's trials: three balancers, two addresses on the wire, so that lb1 and lb2 are each master of one
 * and lb3 of none, a nats-server beside each node, and a client that never stops asking.
 */
import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import { ClusterLab, VIP } from '../../deploy/lab/cluster.ts';
import type { ClusterLabOptions } from '../../deploy/lab/cluster.ts';
import type { Lab } from '../../deploy/lab/lab.ts';
import type { NodeConfig } from '../../deploy/lab/node.ts';
import { Load } from './load.ts';

export const CLUSTER = 'shop';
export const SECOND_VIP = '10.9.0.101';

/** By address: who owns it, and who comes next when the one before is out. */
export const SUCCESSION: Record<string, readonly string[]> = {
  [VIP]: ['lb1', 'lb2', 'lb3'],
  [SECOND_VIP]: ['lb2', 'lb1', 'lb3'],
};

/** Less what a router loses when its node sees no server, each is below the lowest of the others. */
const PRIORITIES = [150, 120, 100];

/** Owners are looked at for this long: an address that moves to and fro is not owned. */
const STEADY_MS = 1_000;
const LOOK_EVERY_MS = 25;
/** A node that is started on a machine of two cores takes seconds, and its routers' first elections come after. */
export const SETTLE_MS = 60_000;

const router = (name: string, address: string, vrid: number) => ({
  vrid,
  interface: 'eth0',
  priority: PRIORITIES[SUCCESSION[address]!.indexOf(name)],
  advertise: '100ms',
  addresses: [`${address}/24`],
  track: [{ pool: 'web', weight: -60 }],
});

export const activeActive = ({ backends, ...example }: NodeConfig, name: string): NodeConfig => ({
  ...example,
  cluster: CLUSTER,
  workers: 1,
  frontends: { shop: { mode: 'http', bind: [`${VIP}:80`, `${SECOND_VIP}:80`], use: 'web', drain: '1s' } },
  backends: { web: { ...(backends as Record<string, object>)['web'], checks: { share: 'quorum' } } },
  routers: { gateway: router(name, VIP, 51), second: router(name, SECOND_VIP, 52) },
});

export type Owners = Record<string, string>;

export class ClusterStage {
  readonly cluster: ClusterLab;
  readonly load: Load;

  private constructor(cluster: ClusterLab, load: Load) {
    this.cluster = cluster;
    this.load = load;
  }

  /** When this returns, every address has its owner, and traffic flows. */
  static async create(options: ClusterLabOptions): Promise<ClusterStage> {
    const cluster = await ClusterLab.create({ config: activeActive, ...options });
    const load = await Load.start(cluster.client, Object.keys(SUCCESSION));
    const stage = new ClusterStage(cluster, load);
    await stage.untilSettled();
    return stage;
  }

  /** Who is to own what when these can't. */
  ownersWithout(out: string[] = []): Owners {
    return Object.fromEntries(
      Object.entries(SUCCESSION).map(([address, names]) => [address, names.find((name) => !out.includes(name))!]),
    );
  }

  /** Until every address has been on the interface of its owner and of nobody else for a while, and traffic flows. */
  async untilSettled({ out = [], unseen = [] }: { out?: string[]; unseen?: string[] } = {}): Promise<void> {
    await this.untilOwned(this.ownersWithout(out), unseen);
    await this.load.untilFlowing(SETTLE_MS);
  }

  /** `unseen` are hosts that nobody else can reach: what they hold is nobody's concern. */
  async untilOwned(owners: Owners, unseen: string[] = []): Promise<void> {
    const wanted = JSON.stringify(Object.entries(owners).map(([address, name]) => [address, [name]]));
    const endsAt = performance.now() + SETTLE_MS;
    let steadySince: number | null = null;
    for (;;) {
      const held = JSON.stringify(await this.#holders(unseen));
      const now = performance.now();
      if (held !== wanted) steadySince = null;
      else if (now - (steadySince ??= now) >= STEADY_MS) return;
      assert(now < endsAt, `owners of the addresses: not ${wanted} within ${SETTLE_MS} ms, but ${held}`);
      await delay(LOOK_EVERY_MS);
    }
  }

  async #holders(unseen: string[]): Promise<[string, string[]][]> {
    const hosts = this.cluster.hosts.filter(({ name }) => !unseen.includes(name));
    const held = await Promise.all(hosts.map((host) => host.addresses()));
    return Object.keys(SUCCESSION).map((address) => [
      address,
      hosts.flatMap(({ name }, index) => (held[index]!.some((each) => each.startsWith(`${address}/`)) ? [name] : [])),
    ]);
  }
}

const SHOWN_LINES = 400;

/** Of what the lab's programs have said, for a failure; the client's figures are in its message. */
export const lastLines = (lab: Lab): string =>
  lab
    .log()
    .split('\n')
    .filter((line) => !line.includes(' client '))
    .slice(-SHOWN_LINES)
    .join('\n');
