/**
 * Shared checks between real nodes over a real nats-server: each reaches the servers through relays of its own. Starting
 * nodes takes most of the time, so all tests are of the same three, in order.
 */
import { once } from 'node:events';
import { createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { StateView } from '../src/api/state.ts';
import { NatsServer } from './natsHelpers.ts';
import { within } from './nodeHelpers.ts';
import { has } from './packages.ts';
import { SoakNode } from './soak/node.ts';

const NAMES = ['lb1', 'lb2', 'lb3'];
const SERVERS = 9;
const INTERVAL_MS = 500;
const PATIENCE_MS = 60_000;
const START_MS = 300_000;

/** A server that each node reaches at an address of its own, and that counts who connects. */
class Checked {
  readonly name: string;
  /** By node. */
  readonly ports: Record<string, number> = {};
  readonly connections: Record<string, number> = {};
  isAlive = true;
  readonly #cut = new Set<string>();
  readonly #relays: Server[] = [];
  readonly #sockets = new Set<Socket>();

  private constructor(name: string) {
    this.name = name;
  }

  static async start(name: string): Promise<Checked> {
    const checked = new Checked(name);
    for (const node of NAMES) {
      const relay = createServer((socket) => checked.#serve(node, socket)).listen(0, '127.0.0.1');
      await once(relay, 'listening');
      checked.#relays.push(relay);
      checked.ports[node] = (relay.address() as AddressInfo).port;
      checked.connections[node] = 0;
    }
    return checked;
  }

  /** What this node says to it gets lost, with a reset. */
  cut(node: string): void {
    this.#cut.add(node);
  }

  heal(node: string): void {
    this.#cut.delete(node);
  }

  /** Who connects within so long. */
  async checkersWithin(ms: number): Promise<string[]> {
    const before = { ...this.connections };
    await delay(ms);
    return NAMES.filter((node) => this.connections[node]! > before[node]!);
  }

  end(): void {
    for (const relay of this.#relays) relay.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #serve(node: string, socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => this.#sockets.delete(socket));
    this.connections[node]!++;
    if (this.#cut.has(node) || !this.isAlive) socket.resetAndDestroy();
    else socket.once('data', () => socket.end('ready'));
  }
}

let nats: NatsServer;
const servers: Checked[] = [];
const nodes: SoakNode[] = [];

const configOf = (node: string, checks: object): Record<string, unknown> => ({
  cluster: 'shop',
  node,
  bus: { nats: { servers: [nats.url] } },
  workers: 1,
  backends: {
    web: {
      check: {
        type: 'tcp',
        send: 'hello',
        expect: 'ready',
        interval: `${INTERVAL_MS}ms`,
        timeout: '5s',
        rise: 2,
        fall: 2,
      },
      checks,
      servers: servers.map(({ name, ports }) => ({ name, address: `127.0.0.1:${ports[node]}` })),
    },
  },
});

const stateOf = async (node: SoakNode): Promise<StateView> =>
  (await (await fetch(`${node.api}/api/state`)).json()) as StateView;

const until = (what: string, holds: () => Promise<boolean>): Promise<void> =>
  within(
    what,
    (async () => {
      while (!(await holds())) await delay(50);
    })(),
    PATIENCE_MS,
  );

/** On every node that is named. */
const everywhere = (what: string, on: SoakNode[], holds: (state: StateView) => boolean): Promise<void> =>
  until(what, async () => (await Promise.all(on.map(stateOf))).every(holds));

const serverOf = (state: StateView, name: string) => state.pools[0]!.servers.find((server) => server.name === name)!;

const viewsOf = (state: StateView, name: string): string =>
  serverOf(state, name)
    .shared!.nodes.map(({ node, view }) => `${node} ${view}`)
    .join(', ');

const seenBy = (count: number) => (state: StateView) =>
  state.pools[0]!.servers.every(
    ({ health, shared }) => health === 'up' && shared!.nodes.filter(({ view }) => view === 'up').length === count,
  );

/** What became of a server's health in a node's life, as its journal has it. */
const livesOf = async (node: SoakNode, server: string): Promise<string[]> => {
  const response = await fetch(`${node.api}/api/events?actor=server/web/${server}&fromSeq=1&limit=1000`);
  const { records } = (await response.json()) as { records: { state: string }[] };
  const healths = records.map(({ state }) => state.split(',')[0]!);
  return healths.filter((health, index) => health !== healths[index - 1]);
};

const memberOf = (state: StateView, node: string): string =>
  state.cluster!.nodes.find(({ name }) => name === node)?.state ?? 'absent';

describe.skipIf(!has('nats-server'))('shared checks between three nodes', { timeout: START_MS }, () => {
  beforeAll(async () => {
    nats = await NatsServer.start();
    for (let index = 1; index <= SERVERS; index++) servers.push(await Checked.start(`web${index}`));
    // One after the other: a start takes all of a core.
    for (const name of NAMES) nodes.push(await SoakNode.start({ config: configOf(name, { share: 'quorum' }) }));
    await everywhere('all see all', nodes, seenBy(3));
  }, START_MS);

  afterAll(async () => {
    await Promise.all(nodes.map((node) => node.end('SIGKILL')));
    await nats.end();
    for (const server of servers) server.end();
  });

  test('a server that one node can’t see stays up', async () => {
    servers[0]!.cut('lb2');
    await everywhere('lb2 sees web1 down', nodes, (state) => viewsOf(state, 'web1') === 'lb1 up, lb2 down, lb3 up');
    await delay(4 * INTERVAL_MS);
    for (const node of nodes)
      expect(serverOf(await stateOf(node), 'web1')).toMatchObject({ health: 'up', shared: { verdict: 'up' } });
    const metrics = await nodes[0]!.metrics();
    const sums = ['server_view_up', 'server_verdict', 'server_checked_here'].map((name) => metrics.get(name));
    expect(sums).toEqual([3 * SERVERS - 1, SERVERS, SERVERS]);
  });

  test('a server that is dead goes down, and once', async () => {
    servers[1]!.isAlive = false;
    await everywhere('all say so', nodes, (state) => viewsOf(state, 'web2') === 'lb1 down, lb2 down, lb3 down');
    await everywhere('web2 is down', nodes, (state) => serverOf(state, 'web2').health === 'down');
    for (const node of nodes) expect(await livesOf(node, 'web2')).toEqual(['unchecked', 'up', 'down']);
    servers[1]!.isAlive = true;
    await everywhere('web2 is up', nodes, (state) => serverOf(state, 'web2').health === 'up');
    for (const node of nodes) expect(await livesOf(node, 'web2')).toEqual(['unchecked', 'up', 'down', 'up']);
  });

  test('without NATS each node goes by its own checks, and with it by all of them again', async () => {
    const [one, two, three] = nodes as [SoakNode, SoakNode, SoakNode];
    await nats.stop('SIGKILL');
    await everywhere('lb2 is on its own', [two], (state) => serverOf(state, 'web1').health === 'down');
    for (const node of [one, three]) expect(serverOf(await stateOf(node), 'web1').health).toBe('up');
    await nats.again();
    await everywhere('lb2 is not alone', nodes, (state) => viewsOf(state, 'web1') === 'lb1 up, lb2 down, lb3 up');
    await everywhere('web1 is up', nodes, (state) => serverOf(state, 'web1').health === 'up');
    servers[0]!.heal('lb2');
    await everywhere('all see all', nodes, seenBy(3));
    for (const { name } of servers.slice(2)) expect(await livesOf(two, name)).toEqual(['unchecked', 'up']);
  });

  test('a node that sees none of its servers takes itself for blind, and no server goes down', async () => {
    for (const server of servers) server.cut('lb3');
    await everywhere('lb3 is blind', nodes, (state) => state.pools[0]!.shared!.blind.join() === 'lb3');
    for (const node of nodes)
      for (const { health } of (await stateOf(node)).pools[0]!.servers) expect(health).toBe('up');
    for (const server of servers) server.heal('lb3');
    await everywhere('nobody is', nodes, (state) => state.pools[0]!.shared!.blind.length === 0);
    await everywhere('all see all', nodes, seenBy(3));
    for (const node of nodes) expect(await livesOf(node, 'web9')).toEqual(['unchecked', 'up']);
  });

  test('when a reload divides the checks, each server has two checkers', async () => {
    nodes.forEach((node, index) => node.reload(configOf(NAMES[index]!, { share: 'quorum', divide: true, by: 2 })));
    await everywhere('each is seen up by two', nodes, seenBy(2));
    // A probe that was under way when its node went off duty may still be on its way.
    await delay(2 * INTERVAL_MS);
    const checkers = await Promise.all(servers.map((server) => server.checkersWithin(10 * INTERVAL_MS)));
    expect(checkers.map(({ length }) => length)).toEqual(servers.map(() => 2));
    const state = await stateOf(nodes[0]!);
    expect(servers.map(({ name }) => serverOf(state, name).shared!.checkers)).toEqual(checkers);
  });

  test('servers of a node that dies are checked by others within an interval of its loss', async () => {
    const [one, two, three] = nodes as [SoakNode, SoakNode, SoakNode];
    const { servers: before } = (await stateOf(one)).pools[0]!;
    const orphans = before.filter(({ shared }) => shared!.checkers!.includes('lb3'));
    expect(orphans.length).toBeGreaterThan(0);
    const missing = orphans.map(({ name, shared }) => ({
      server: servers.find((server) => server.name === name)!,
      node: shared!.checkers!.includes('lb1') ? 'lb2' : 'lb1',
    }));
    const counts = missing.map(({ server, node }) => server.connections[node]!);
    await three.end('SIGKILL');
    await everywhere('lb3 is missed', [one, two], (state) => ['suspect', 'gone'].includes(memberOf(state, 'lb3')));
    await delay(INTERVAL_MS);
    missing.forEach(({ server, node }, index) =>
      expect(server.connections[node], `${server.name} from ${node}`).toBeGreaterThan(counts[index]!),
    );
    await everywhere('the other two see all', [one, two], seenBy(2));
    for (const { name } of servers.slice(2)) expect(await livesOf(one, name)).toEqual(['unchecked', 'up']);
  });
});
