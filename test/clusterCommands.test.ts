/** Operators' commands over a real cluster: nodes as `understudy run` starts them, a real nats-server, and the CLI. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { jetstreamManager } from '@nats-io/jetstream';
import { describe, expect, onTestFinished, test } from 'vitest';
import { until } from '../deploy/lab/until.ts';
import type { StateView } from '../src/api/state.ts';
import { encodeJson } from '../src/bus/bus.ts';
import type { ClusterAnswer } from '../src/cluster/clusterCommands.ts';
import { JournalReader } from '../src/journal/reader.ts';
import { verify } from '../src/worlds/replay.ts';
import { natsClient, NatsServer } from './natsHelpers.ts';
import { get, RunningNode, startTraffic, startWeb, stateOf, tempFolder, understudy, writeFile } from './nodeHelpers.ts';
import type { Ran, Web } from './nodeHelpers.ts';
import { has } from './packages.ts';
import { freePorts } from './ports.ts';

/** A dozen things are waited for, one after the other. */
const TEST_MS = 12 * Number(process.env['PATIENCE_MS'] ?? 15_000);

type Member = { name: string; api: number; port: number; file: string; journal: string; node: RunningNode };

/** Nodes of one cluster in front of the same servers. */
class Stage {
  readonly folder = tempFolder();
  readonly members: Member[] = [];
  nats!: NatsServer;
  webs: Web[] = [];

  static async start(names: string[], more: { router?: boolean } = {}): Promise<Stage> {
    const stage = new Stage();
    stage.nats = await NatsServer.start();
    onTestFinished(() => stage.nats.end());
    stage.webs = [await startWeb('web1'), await startWeb('web2')];
    const ports = await freePorts(names.length * 2 + 1);
    for (const [index, name] of names.entries()) {
      const [api, port] = [ports[2 * index]!, ports[2 * index + 1]!];
      const text = stage.#yaml(name, api, port, more.router === true ? { index, port: ports.at(-1)! } : null);
      const file = writeFile(stage.folder, `${name}.yaml`, text);
      const journal = join(stage.folder, `${name}.db`);
      stage.members.push({ name, api, port, file, journal, node: undefined as unknown as RunningNode });
    }
    await Promise.all(stage.members.map((member) => stage.run(member)));
    await stage.knowEachOther();
    return stage;
  }

  #yaml(name: string, api: number, port: number, router: { index: number; port: number } | null): string {
    const servers = this.webs.map((web) => `{ name: ${web.name}, address: "${web.address}" }`);
    return [
      'cluster: shop',
      `node: ${name}`,
      `bus: { nats: { servers: ["${this.nats.url}"], startWait: 10s } }`,
      `journal: { path: ./${name}.db }`,
      `api: { listen: 127.0.0.1:${api} }`,
      'workers: 1',
      'frontends:',
      `  shop: { mode: http, bind: ["127.0.0.1:${port}"], use: web, drain: 1s }`,
      'backends:',
      '  web:',
      `    servers: [${servers.join(', ')}]`,
      ...(router
        ? [
            'routers:',
            '  gw:',
            '    vrid: 7',
            '    transport: udp',
            `    port: ${router.port}`,
            `    source: 127.0.7.${router.index + 1}`,
            `    peers: [127.0.7.${2 - router.index}]`,
            `    priority: ${200 - 50 * router.index}`,
            '    advertise: 200ms',
            '    addresses: [127.0.7.100/8]',
          ]
        : []),
      '',
    ].join('\n');
  }

  async run(member: Member): Promise<void> {
    member.node = await RunningNode.start(member.file, member.api);
  }

  async knowEachOther(): Promise<void> {
    const count = this.members.length;
    for (const { node } of this.members)
      await node.until('all nodes', ({ cluster }) => {
        return cluster!.nodes.filter(({ state }) => state === 'alive').length === count;
      });
  }

  member(name: string): Member {
    return this.members.find((one) => one.name === name)!;
  }

  cli(name: string, ...args: string[]): Promise<Ran> {
    return understudy([...args, '--api', `http://127.0.0.1:${this.member(name).api}`]);
  }

  /** The same, with what it answers as JSON. */
  async give(name: string, ...args: string[]): Promise<ClusterAnswer> {
    const { stdout, stderr } = await this.cli(name, ...args, '--json');
    if (stderr !== '') throw new Error(stderr);
    return JSON.parse(stdout) as ClusterAnswer;
  }

  admins(server = 'web1'): Promise<string[]> {
    return Promise.all(this.members.map(async ({ node }) => adminIn(await node.state(), server)));
  }

  async untilAdmin(admin: string, server = 'web1'): Promise<void> {
    for (const { node, name } of this.members)
      await node.until(`${server} is ${admin} on ${name}`, (state) => adminIn(state, server) === admin);
  }

  async natsAway(): Promise<void> {
    await this.nats.stop();
    for (const { node } of this.members)
      await node.until('NATS away', ({ commands }) => commands!.state === 'detached');
  }

  async natsBack(): Promise<void> {
    await this.nats.again();
    for (const { node } of this.members)
      await node.until('NATS back', ({ commands }) => commands!.state === 'following');
  }
}

const adminIn = (state: StateView, server: string): string =>
  stateOf(state, `server/web/${server}`).split(',')[1] ?? '';

/** Types of the events of an actor in the node's journal. */
const eventsOf = (journal: string, actor: string): string[] => {
  const reader = new JournalReader(journal);
  try {
    return [...reader.steps({ actor })].map(({ event }) => event.type);
  } finally {
    reader.close();
  }
};

const divergenceIn = (journal: string): unknown => {
  const reader = new JournalReader(journal);
  try {
    return verify(reader).divergence;
  } finally {
    reader.close();
  }
};

const answersOf = ({ answers }: ClusterAnswer): Record<string, string> =>
  Object.fromEntries(answers.map(({ node, answer }) => [node, answer]));

describe.skipIf(!has('nats-server'))('a cluster', () => {
  test(
    'a command reaches all nodes, in order and once each; a row for each, and an explanation on each',
    async () => {
      const stage = await Stage.start(['lb1', 'lb2', 'lb3']);
      const drained = await stage.cli('lb2', 'server', 'drain', 'web/web1');
      expect(drained).toMatchObject({ status: 0, stderr: '' });
      const rows = drained.stdout
        .trim()
        .split('\n')
        .map((line) => line.split(/ {2,}/));
      expect(rows).toEqual([
        ['NODE', 'ACTOR', 'BEFORE', 'AFTER', 'NOTE'],
        ...['lb1', 'lb2', 'lb3'].map((name) => [
          name,
          'server/web/web1',
          'unchecked,ready,warm',
          'unchecked,drain,warm',
        ]),
      ]);
      expect(await stage.admins()).toEqual(['drain', 'drain', 'drain']);

      await stage.cli('lb1', 'server', 'maintenance', 'web/web1');
      const under = await stage.cli('lb3', 'server', 'drain', 'web/web1');
      expect(under.stdout.match(/maintenance stands over drain/g)).toHaveLength(3);
      const weighed = await stage.give('lb3', 'server', 'weight', 'web/web1', '7');
      expect(weighed.command).toBe(4);
      expect(answersOf(weighed)).toEqual({ lb1: 'done', lb2: 'done', lb3: 'done' });
      await stage.cli('lb1', 'server', 'ready', 'web/web1');

      const refused = await stage.cli('lb1', 'server', 'drain', 'web/web9');
      expect(refused.status).toBe(1);
      expect(refused.stderr).toContain('there is no server web/web9');

      const explained = await stage.cli('lb3', 'explain', 'server/web/web1');
      expect(explained.stdout).toMatch(
        /By a command to the cluster, given on lb1 at [\d:.]+, an operator set it to ready/,
      );
      const wanted = ['drain', 'maintenance', 'drain', 'weight', 'ready'].map((word) => `operator.${word}`);
      for (const { node, journal } of stage.members) {
        await node.end();
        const told = eventsOf(journal, 'server/web/web1').filter((type) => type.startsWith('operator.'));
        expect(told).toEqual(wanted);
        expect(divergenceIn(journal)).toBeNull();
      }
    },
    TEST_MS,
  );

  test(
    'a node that is down when a server is drained never sends it a request when it is back, under load',
    async () => {
      const stage = await Stage.start(['lb1', 'lb2']);
      const [away] = stage.members as [Member];
      const [web1, web2] = stage.webs as [Web, Web];
      const url = `http://127.0.0.1:${away.port}/`;
      await get(url);
      await get(url);
      expect([web1.requests, web2.requests]).toEqual([1, 1]);
      await away.node.end('SIGKILL');
      await stage.member('lb2').node.until('lb1 gone', ({ cluster }) => {
        return cluster!.nodes.some(({ name, state }) => name === 'lb1' && state === 'gone');
      });

      const drained = await stage.cli('lb2', 'server', 'drain', 'web/web1');
      expect(drained).toMatchObject({ status: 0 });
      expect(drained.stdout).toMatch(/^lb1 .*away: it applies the command when it returns$/m);
      const traffic = startTraffic(url);
      await stage.run(away);
      await traffic.more(50);
      await traffic.stop();
      expect(web2.requests).toBeGreaterThan(20);
      expect(web1.requests).toBe(1);
      expect(adminIn(await away.node.state(), 'web1')).toBe('drain');

      // A restart takes it from the journal, and doesn't hear the same command twice.
      await away.node.end();
      await stage.run(away);
      await get(url);
      expect(web1.requests).toBe(1);
      await away.node.end();
      const commands = eventsOf(away.journal, 'commands').filter((type) => type === 'command.received');
      expect(commands).toHaveLength(1);
      expect(divergenceIn(away.journal)).toBeNull();
    },
    TEST_MS,
  );

  test(
    'with NATS away a command is refused, --local acts on one node, and the newest word wins when NATS is back',
    async () => {
      const stage = await Stage.start(['lb1', 'lb2']);
      await stage.natsAway();
      const refused = await stage.cli('lb1', 'server', 'drain', 'web/web1');
      expect(refused.status).toBe(3);
      expect(refused.stderr).toContain('--local');
      const { status, body } = await stage
        .member('lb1')
        .node.post({ type: 'server.drain', pool: 'web', server: 'web1' });
      expect([status, body['code']]).toEqual([503, 'NATS_OFFLINE']);

      const local = await stage.cli('lb1', 'server', 'drain', 'web/web1', '--local');
      expect(local).toMatchObject({ status: 0 });
      expect(local.stdout).toMatch(
        /^lb1 .*unchecked,drain,warm +only here, until the cluster is told when NATS is back$/m,
      );
      expect(await stage.admins()).toEqual(['drain', 'ready']);
      const shown = await stage.cli('lb1', 'status');
      expect(shown.stdout).toMatch(/to be told to the cluster: server drain web\/web1, given at/);
      expect(shown.stdout).toMatch(/web1 is drain here, given here at .* while the cluster could not be reached/);
      expect(shown.stdout).toContain('drain (cluster: ready)');

      // Older and newer words about the same server on the two nodes.
      await stage.cli('lb1', 'server', 'maintenance', 'web/web2', '--local');
      await stage.cli('lb2', 'server', 'ready', 'web/web2', '--local');
      await stage.cli('lb2', 'server', 'weight', 'web/web1', '5', '--local');
      await stage.cli('lb1', 'server', 'weight', 'web/web1', '9', '--local');

      await stage.natsBack();
      await stage.untilAdmin('drain', 'web1');
      await stage.untilAdmin('ready', 'web2');
      for (const { node } of stage.members)
        await node.until('the newest weight, and nothing left to tell', ({ pools, commands }) => {
          const weight = pools[0]!.servers[0]!.weight;
          return weight === 9 && commands!.pending.length === 0 && commands!.differences.length === 0;
        });
      for (const { node, journal } of stage.members) {
        await node.end();
        expect(divergenceIn(journal)).toBeNull();
      }
    },
    TEST_MS,
  );

  test(
    '--local while NATS is there is a difference on purpose: shown, not told, ended by the next command to all',
    async () => {
      const stage = await Stage.start(['lb1', 'lb2']);
      await stage.give('lb2', 'server', 'drain', 'web/web1');
      const local = await stage.cli('lb1', 'server', 'ready', 'web/web1', '--local');
      expect(local.stdout).toMatch(/only here: the other nodes are not told/);
      expect(await stage.admins()).toEqual(['ready', 'drain']);
      const shown = await stage.cli('lb1', 'status');
      expect(shown.stdout).toMatch(
        /server web\/web1 is ready here, given for this node alone at [\d:.]+; the cluster wants drain, given on lb2 at/,
      );
      expect(shown.stdout).toContain('ready (cluster: drain)');
      expect((await stage.cli('lb2', 'status')).stdout).not.toContain('cluster wants');
      const explained = await stage.cli('lb1', 'explain', 'server/web/web1');
      expect(explained.stdout).toContain('By a command to this node alone, an operator set it to ready');

      // It stands through a restart, and through NATS going and coming.
      await stage.member('lb1').node.end();
      await stage.run(stage.member('lb1'));
      await stage.natsAway();
      await stage.natsBack();
      expect(await stage.admins()).toEqual(['ready', 'drain']);
      await stage.knowEachOther();
      await stage.give('lb2', 'server', 'maintenance', 'web/web1');
      expect(await stage.admins()).toEqual(['maintenance', 'maintenance']);
      expect((await stage.member('lb1').node.state()).commands!.differences).toEqual([]);
    },
    TEST_MS,
  );

  test(
    'two commands at once from two nodes come to the same end everywhere; one that is published twice is one',
    async () => {
      const stage = await Stage.start(['lb1', 'lb2']);
      for (let round = 0; round < 5; round++) {
        const [one, other] = await Promise.all([
          stage.member('lb1').node.post({ type: 'server.drain', pool: 'web', server: 'web1' }),
          stage.member('lb2').node.post({ type: 'server.ready', pool: 'web', server: 'web1' }),
        ]);
        expect([one.status, other.status]).toEqual([200, 200]);
        const [first, second] = await stage.admins();
        expect(first).toBe(second);
      }
      const client = await natsClient(stage.nats.url);
      onTestFinished(() => client.close());
      const atUs = Date.now() * 1000 + 60_000_000;
      const command = { type: 'server.maintenance', pool: 'web', server: 'web1' };
      const said = encodeJson({ id: 'again', by: 'lb9', atUs, node: null, command });
      // Not the same message to the stream, and yet the same command.
      for (let time = 0; time < 2; time++) await client.request('understudy.shop.command', said, { timeout: 5_000 });
      await stage.give('lb1', 'server', 'weight', 'web/web1', '3');
      for (const { node, journal } of stage.members) {
        await node.end();
        const words = eventsOf(journal, 'server/web/web1').filter((type) => type === 'operator.maintenance');
        expect(words).toHaveLength(1);
        expect(divergenceIn(journal)).toBeNull();
      }
    },
    TEST_MS,
  );

  test(
    'a stream that is deleted undoes nothing; the nodes tell the new one, and a node without a journal learns from it',
    async () => {
      const stage = await Stage.start(['lb1', 'lb2']);
      await stage.give('lb1', 'server', 'drain', 'web/web1');
      await stage.give('lb2', 'server', 'maintenance', 'web/web2');
      const fresh = stage.member('lb2');
      await fresh.node.end();
      const client = await natsClient(stage.nats.url);
      onTestFinished(() => client.close());
      const manager = await jetstreamManager(client);
      const { created } = await manager.streams.info('understudy-shop-command');
      await manager.streams.delete('understudy-shop-command');
      const { node } = stage.member('lb1');
      const createdNow = () =>
        manager.streams.info('understudy-shop-command').then(
          (info) => info.created,
          () => null,
        );
      await until('a new stream', async () => ![null, created].includes(await createdNow()), 30_000);
      await node.until('it is followed', ({ commands }) => commands!.state === 'following' && commands!.sequence === 2);
      expect(adminIn(await node.state(), 'web1')).toBe('drain');

      const { file, api } = fresh;
      const text = readFileSync(file, 'utf8').replace('./lb2.db', './lb2-new.db');
      fresh.node = await RunningNode.start(writeFile(stage.folder, 'lb2-new.yaml', text), api);
      expect(await Promise.all(['web1', 'web2'].map(async (web) => adminIn(await fresh.node.state(), web)))).toEqual([
        'drain',
        'maintenance',
      ]);
      // What was applied once is not applied again by what the new stream says.
      await node.end();
      const told = eventsOf(stage.member('lb1').journal, 'server/web/web1').filter((type) => type === 'operator.drain');
      expect(told).toHaveLength(1);
    },
    TEST_MS,
  );

  test(
    'a router’s command is for one node: the one that is asked, or the one that is named, when it returns if need be',
    async () => {
      const stage = await Stage.start(['lb1', 'lb2'], { router: true });
      const [first, second] = stage.members as [Member, Member];
      await first.node.until('lb1 master', (state) => stateOf(state, 'router/gw') === 'master');
      const demoted = await stage.cli('lb2', 'router', 'demote', 'gw', '--node', 'lb1');
      expect(demoted.status).toBe(0);
      const lines = demoted.stdout.trim().split('\n');
      expect(lines).toHaveLength(2);
      expect(lines[1]).toMatch(/^lb1 +router\/gw +MASTER +BACKUP$/);
      await second.node.until('lb2 master', (state) => stateOf(state, 'router/gw') === 'master');
      expect((await second.node.state()).routers[0]!.priority.intent).toBe('none');

      const promoted = await stage.cli('lb1', 'router', 'promote', 'gw');
      expect(promoted.stdout.trim().split('\n')).toHaveLength(2);
      await first.node.until('lb1 master again', (state) => stateOf(state, 'router/gw') === 'master');
      await first.node.end();
      await second.node.until('lb2 alone', (state) => stateOf(state, 'router/gw') === 'master');
      const later = await stage.cli('lb2', 'router', 'demote', 'gw', '--node', 'lb1');
      expect(later).toMatchObject({ status: 0 });
      expect(later.stdout).toMatch(/^lb1 .*away: it applies the command when it returns$/m);
      await stage.run(first);
      const back = await first.node.state();
      expect(back.routers[0]!.priority).toMatchObject({ intent: 'demoted', effective: 1 });
      const explained = await stage.cli('lb1', 'explain', 'router/gw');
      expect(explained.stdout).toMatch(/By a command to the cluster, given on lb2 at [\d:.]+, an operator demoted it/);

      const unknown = await stage.cli('lb2', 'router', 'demote', 'gw', '--node', 'lb7');
      expect(unknown.stdout).toMatch(/^lb7 .*away: lb2 has never heard of this node$/m);
      for (const { node, journal } of stage.members) {
        await node.end();
        expect(divergenceIn(journal)).toBeNull();
      }
    },
    TEST_MS,
  );

  test(
    'reload reaches all nodes, and each says what changed or what is wrong with its file',
    async () => {
      const stage = await Stage.start(['lb1', 'lb2']);
      const [first, second] = stage.members as [Member, Member];
      const text = readFileSync(first.file, 'utf8');
      writeFile(stage.folder, 'lb1.yaml', text.replace('name: web2', 'name: web3'));
      writeFile(stage.folder, 'lb2.yaml', readFileSync(second.file, 'utf8').replace('workers:', 'wrokers:'));
      const ran = await stage.cli('lb1', 'reload');
      expect(ran.status).toBe(1);
      expect(ran.stdout).toMatch(/^lb1 +reloaded: .*\+ server\/web\/web3/m);
      expect(ran.stdout).toMatch(/^lb2 +refused: .*wrokers: unknown key/m);

      // A server that one node has only later is what the cluster wants, when it has it.
      const drained = await stage.give('lb1', 'server', 'drain', 'web/web3');
      expect(answersOf(drained)).toEqual({ lb1: 'done', lb2: 'refused' });
      writeFile(
        stage.folder,
        'lb2.yaml',
        text
          .replace('node: lb1', 'node: lb2')
          .replaceAll(String(first.api), String(second.api))
          .replaceAll(String(first.port), String(second.port))
          .replace('lb1.db', 'lb2.db')
          .replace('name: web2', 'name: web3'),
      );
      const only = await stage.give('lb2', 'reload', '--local');
      expect(answersOf(only)).toEqual({ lb2: 'reloaded' });
      expect(await stage.admins('web3')).toEqual(['drain', 'drain']);
    },
    TEST_MS,
  );
});
