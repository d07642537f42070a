/**
 * Three load balancers as hosts of their own, a nats-server on each, web servers and a client, all on one wire: what
 * `deploy/examples/cluster` describes. For `npm run lab -- --cluster` and for tests, which break it.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parse } from 'yaml';
import { Lab } from './lab.ts';
import type { Host } from './lab.ts';
import { LabNats } from './nats.ts';
import { startNginx } from './nginx.ts';
import { LabNode, untilOneMaster } from './node.ts';
import type { NodeConfig } from './node.ts';

export const VIP = '10.9.0.100';
const MAX_NODES = 3;
const balancerAddress = (index: number): string => `10.9.0.${11 + index}`;
const serverAddress = (index: number): string => `10.9.0.${21 + index}`;
const CLIENT = '10.9.0.31';

const example = resolve(import.meta.dirname, '../examples/cluster');

export type ClusterLabOptions = {
  /** Where the hosts are made. Default: a lab of its own. */
  lab?: Lab;
  /** 1 to 3, named lb1, lb2, lb3; lb1 has the highest priority. Default: 3. */
  nodes?: number;
  /** web1, web2, … Default: 3, which is what the example knows. */
  servers?: number;
  /** A node's configuration, made from that of the example. */
  config?: (example: NodeConfig, name: string) => NodeConfig;
  /** Further lines of every nats-server's configuration. */
  natsConfig?: string;
  /** Size of the disk for a node's journal, and of another for its nats-server. Default: the machine's own disk. */
  diskSize?: string;
};

export class ClusterLab {
  readonly lab: Lab;
  /** The balancers' hosts; a host, its node and its nats-server have the same name and the same index. */
  readonly hosts: Host[];
  readonly nodes: LabNode[] = [];
  readonly nats: LabNats[];
  readonly servers: Host[];
  readonly client: Host;

  private constructor(lab: Lab, hosts: Host[], nats: LabNats[], servers: Host[], client: Host) {
    this.lab = lab;
    this.hosts = hosts;
    this.nats = nats;
    this.servers = servers;
    this.client = client;
  }

  /** When this returns, JetStream has a leader, every node runs, and one of them holds the address. */
  static async create(options: ClusterLabOptions = {}): Promise<ClusterLab> {
    const cluster = await ClusterLab.withoutNodes(options);
    try {
      await Promise.all(cluster.nats.map((nats) => nats.run()));
      await Promise.all(cluster.nats.map((nats) => nats.untilReady()));
      cluster.nodes.push(...(await Promise.all(cluster.hosts.map((host) => cluster.#startNode(host, options)))));
      await untilOneMaster(cluster.nodes, VIP);
    } catch (error) {
      if (!options.lab) await cluster.destroy();
      throw error;
    }
    return cluster;
  }

  /** The hosts and the web servers; nats-servers and nodes are not started yet. */
  static async withoutNodes(options: ClusterLabOptions): Promise<ClusterLab> {
    const { nodes = MAX_NODES, servers = 3, natsConfig = '', diskSize } = options;
    assert(nodes >= 1 && nodes <= MAX_NODES, `1 to ${MAX_NODES} nodes, not ${nodes}`);
    const lab = options.lab ?? (await Lab.create());
    const hostAt = (name: string, address: string) => lab.host(name, { addresses: { eth0: [`${address}/24`] } });
    try {
      const hosts = await counted(nodes, (index) => hostAt(`lb${index + 1}`, balancerAddress(index)));
      const webs = await counted(servers, (index) => hostAt(`web${index + 1}`, serverAddress(index)));
      const client = await hostAt('client', CLIENT);
      await Promise.all(webs.map((host) => startNginx(host, `Hello from ${host.name}.`)));
      const addresses = hosts.map((_, index) => balancerAddress(index));
      const nats = await counted(nodes, async (index) => {
        const { name } = hosts[index]!;
        const folder = diskSize === undefined ? {} : { folder: await lab.disk(`nats-${name}`, diskSize) };
        if (diskSize !== undefined) await lab.disk(`node-${name}`, diskSize);
        const address = addresses[index]!;
        return new LabNats(hosts[index]!, { address, cluster: addresses, config: natsConfig, ...folder });
      });
      return new ClusterLab(lab, hosts, nats, webs, client);
    } catch (error) {
      if (!options.lab) await lab.destroy();
      throw error;
    }
  }

  /** Of all nats-servers, as `--cluster` takes them on any of the hosts. */
  get urls(): string[] {
    return this.nats.map(({ url }) => url);
  }

  /** By name: `lb1`. */
  node(name: string): LabNode {
    return named(name, this.nodes, ({ host }) => host);
  }

  natsOf(name: string): LabNats {
    return named(name, this.nats, ({ host }) => host);
  }

  /** Who has the address, by the kernel's word. */
  async holders(address = VIP): Promise<string[]> {
    const held = await Promise.all(this.hosts.map((host) => host.holds(address)));
    return this.hosts.filter((_, index) => held[index]).map(({ name }) => name);
  }

  /** Until one node alone is master and has the address; those that don't run can't be. */
  untilOneMaster(timeoutMs?: number): Promise<LabNode> {
    return untilOneMaster(this.nodes, VIP, timeoutMs === undefined ? {} : { timeoutMs });
  }

  /**
   * Balancers of different groups don't hear each other any more, neither VRRP nor NATS; servers and clients reach all of
   * them. A balancer in no group hears everybody.
   */
  async partition(...groups: string[][]): Promise<void> {
    for (const group of groups) {
      const others = groups.filter((each) => each !== group).flat();
      const sources = others.map((name) => this.#addressOf(name)).join(', ');
      for (const name of group) {
        const host = named(name, this.hosts, (each) => each);
        for (const match of [`ip saddr { ${sources} }`, `arp saddr ip { ${sources} }`])
          await host.drop({ direction: 'in', match });
      }
    }
  }

  /** A balancer reaches no web server any more, but its peers, NATS and clients. */
  async cutFromServers(name: string): Promise<void> {
    const addresses = this.servers.map((_, index) => serverAddress(index)).join(', ');
    await named(name, this.hosts, (each) => each).drop({ direction: 'out', match: `ip daddr { ${addresses} }` });
  }

  /** Ends whatever was done to the balancers' wires. */
  async heal(): Promise<void> {
    for (const host of this.hosts) {
      await host.heal();
      await host.undrop();
    }
  }

  /**
   * As when the machine loses its power: its node, its guard and its nats-server are gone at once. Returns when it was. The
   * kernel keeps its addresses for up to 5 s, as nobody was left to take them off.
   */
  async crash(name: string): Promise<number> {
    const atMs = await named(name, this.hosts, (each) => each).crash();
    await Promise.all([this.node(name).running.exited, this.natsOf(name).running.exited]);
    return atMs;
  }

  /** What `crash` ended runs again; the nats-server first, as it would at a boot. */
  async boot(name: string): Promise<void> {
    await this.natsOf(name).run();
    await this.node(name).run();
  }

  async destroy(): Promise<void> {
    await this.lab.destroy();
  }

  #startNode(host: Host, { config = (whole) => whole }: ClusterLabOptions): Promise<LabNode> {
    const file = join(example, `${host.name}.yaml`);
    // The lab keeps the journal where it looks for it.
    const { journal: _journal, bus: _bus, ...whole } = parse(readFileSync(file, 'utf8')) as NodeConfig;
    return LabNode.start(host, config({ ...whole, bus: { nats: { servers: this.urls } } }, host.name));
  }

  #addressOf(name: string): string {
    return balancerAddress(this.hosts.indexOf(named(name, this.hosts, (each) => each)));
  }
}

const counted = <T>(count: number, make: (index: number) => Promise<T>): Promise<T[]> =>
  Promise.all(Array.from({ length: count }, (_, index) => make(index)));

const named = <T>(name: string, items: T[], hostOf: (item: T) => Host): T => {
  const found = items.find((item) => hostOf(item).name === name);
  assert(found !== undefined, `the lab has no ${name}`);
  return found;
};
