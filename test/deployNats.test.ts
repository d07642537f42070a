/** The NATS cluster of deploy/nats: what make.sh makes starts as it is shipped, and lets a node do its work and no more. */
import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { jetstreamManager } from '@nats-io/jetstream';
import { Kvm } from '@nats-io/kv';
import { connect, nkeyAuthenticator } from '@nats-io/transport-node';
import type { NatsConnection } from '@nats-io/transport-node';
import { describe, expect, onTestFinished, test } from 'vitest';
import { output } from '../deploy/lab/shell.ts';
import { until } from '../deploy/lab/until.ts';
import type { StateView } from '../src/api/state.ts';
import { NatsServer } from './natsHelpers.ts';
import { program, tempFolder } from './nodeHelpers.ts';
import { has } from './packages.ts';
import { freePorts } from './ports.ts';
import { SoakNode } from './soak/node.ts';

const make = resolve(import.meta.dirname, '../deploy/nats/make.sh');
const SERVERS = ['nats1', 'nats2', 'nats3'];
const NODES = ['lb1', 'lb2.example.com'];

const makeMaterial = (folder: string, nodes = NODES): string =>
  execFileSync(
    make,
    [
      ...['--out', folder, '--cluster', 'shop'],
      ...SERVERS.flatMap((name) => ['--server', `${name}=127.0.0.1,localhost`]),
      ...nodes.flatMap((name) => ['--node', name]),
    ],
    { encoding: 'utf8', stdio: 'pipe' },
  );

/** The three servers from the files as they are, but for their ports and folders. */
const startServers = async (folder: string): Promise<NatsServer[]> => {
  const ports = await freePorts(SERVERS.length * 3);
  const [clients, routes, monitors] = [ports.slice(0, 3), ports.slice(3, 6), ports.slice(6, 9)];
  const servers = SERVERS.map((name, index) => {
    const own = join(folder, 'servers', name);
    const text = (file: string) => readFileSync(join(own, file), 'utf8');
    const allRoutes = routes.map((port) => `"nats-route://127.0.0.1:${port}"`).join(', ');
    const server = text('server.conf')
      .replace('127.0.0.1:4222', `127.0.0.1:${clients[index]}`)
      .replace('listen: "127.0.0.1:6222"', `listen: "127.0.0.1:${routes[index]}"`)
      .replace(/routes: \[.*\]/, `routes: [${allRoutes}]`)
      .replaceAll('/etc/nats-server', own);
    const whole = text('nats-server.conf')
      .replace('127.0.0.1:8222', `127.0.0.1:${monitors[index]}`)
      .replace('/var/lib/nats', join(own, 'jetstream'))
      .replaceAll('/etc/nats-server', own);
    writeFileSync(join(own, 'server.conf'), server);
    writeFileSync(join(own, 'nats-server.conf'), whole);
    const config = 'include ./nats-server.conf';
    return NatsServer.start({ name, port: clients[index]!, folder: own, jetstream: false, config });
  });
  const started = await Promise.all(servers);
  onTestFinished(async ({ task }) => {
    if (task.result?.state === 'fail') process.stderr.write(`${violations(started).join('\n')}\n`);
    await Promise.all(started.map((server) => server.end()));
  });
  await until('a JetStream leader', async () => (await fetchOk(monitors[0]!)) && (await fetchOk(monitors[1]!)), 30_000);
  return started;
};

const fetchOk = async (port: number): Promise<boolean> => {
  try {
    return (await fetch(`http://127.0.0.1:${port}/healthz`)).ok;
  } catch {
    return false;
  }
};

/** A client with the key of a node or the operator, whose refusals are kept. */
const clientAs = async (folder: string, user: string, inbox: string, servers: NatsServer[]) => {
  const connection: NatsConnection = await connect({
    servers: servers.map(({ port }) => `127.0.0.1:${port}`),
    inboxPrefix: `_INBOX.${inbox}`,
    authenticator: nkeyAuthenticator(new TextEncoder().encode(readFileSync(join(folder, user, 'nkey'), 'utf8').trim())),
    tls: { caFile: join(folder, user, 'ca.pem') },
  });
  onTestFinished(() => connection.close());
  const refusals: string[] = [];
  void (async () => {
    for await (const status of connection.status()) if (status.type === 'error') refusals.push(status.error.message);
  })();
  return { connection, refusals };
};

/** A node as an operator runs it, with the files that make.sh has made for it. */
const startNode = async (folder: string, name: string, servers: NatsServer[]): Promise<SoakNode> => {
  const own = join(folder, 'nodes', name);
  const node = await SoakNode.start({
    config: {
      node: name,
      cluster: 'shop',
      workers: 1,
      bus: {
        nats: {
          servers: servers.map(({ port }) => `tls://127.0.0.1:${port}`),
          nkey: { file: join(own, 'nkey') },
          tls: { ca: join(own, 'ca.pem') },
        },
      },
      frontends: { shop: { mode: 'http', bind: ['127.0.0.1:0'], use: 'web' } },
      backends: { web: { check: { type: 'tcp' }, servers: [{ name: 'web1', address: '127.0.0.1:9' }] } },
    },
  });
  onTestFinished(() => node.end('SIGKILL'));
  return node;
};

const stateOf = async (node: SoakNode): Promise<StateView> =>
  (await (await fetch(`${node.api}/api/state`)).json()) as StateView;

const violations = (servers: NatsServer[]): string[] =>
  servers.flatMap(({ output: said }) => said.split('\n').filter((line) => /Violation|authorization error/i.test(line)));

describe.skipIf(!has('nats-server') || !has('openssl'))('make.sh', () => {
  test('keeps secrets to their owner, and makes only what is missing when it runs again', () => {
    const folder = tempFolder();
    makeMaterial(folder);
    const files = ['ca.key', 'nodes/lb1/nkey', 'operator/nkey', 'servers/nats1/server.key'];
    expect(files.map((file) => (statSync(join(folder, file)).mode & 0o777).toString(8))).toEqual(
      files.map(() => '600'),
    );
    const before = [...files, 'ca.pem', 'servers/nats1/server.pem'].map((file) => readFileSync(join(folder, file)));
    makeMaterial(folder, [...NODES, 'lb3']);
    expect([...files, 'ca.pem', 'servers/nats1/server.pem'].map((file) => readFileSync(join(folder, file)))).toEqual(
      before,
    );
    const users = readFileSync(join(folder, 'servers/nats1/users.conf'), 'utf8');
    expect(users.match(/^ +nkey: U[A-Z2-7]{55}$/gm)).toHaveLength(4);
    // Dots separate the parts of a subject.
    expect(users).toContain('"understudy.shop.log.lb2~example~com"');
    expect(users).not.toContain('@');
    expect(readFileSync(join(folder, 'nodes/lb3/nkey'), 'utf8')).toMatch(/^SU[A-Z2-7]{56}\n$/);
  });

  test.each([
    [['--cluster', 'shop'], '--out is missing'],
    [['--out', 'x', '--cluster', 'a;b'], 'not a name or an address: a;b'],
    [['--out', 'x', '--cluster', 'shop', '--server', 'nats1'], '--server takes NAME=ADDRESS, not nats1'],
    [['--out', 'x', '--cluster', 'shop', '--what', 'x'], 'unknown option --what'],
  ])('refuses %j', (args, message) => {
    const { status, stderr } = spawnSync(make, args, { encoding: 'utf8', cwd: tempFolder() });
    expect([status, stderr]).toEqual([2, expect.stringContaining(message)]);
  });
});

describe.skipIf(!has('nats-server') || !has('openssl'))('three servers from the shipped files', () => {
  test('nodes work whole under their permissions, and nobody speaks for another', async () => {
    const folder = tempFolder();
    makeMaterial(folder);
    const servers = await startServers(folder);
    const nodes = [await startNode(folder, 'lb1', servers), await startNode(folder, 'lb2.example.com', servers)];
    for (const node of nodes)
      await until(
        'both nodes, and a log that has everything',
        async () => {
          const { cluster } = await stateOf(node);
          return (
            cluster?.courier.state === 'inStep' && cluster.nodes.filter(({ state }) => state === 'alive').length >= 1
          );
        },
        30_000,
      );
    expect(violations(servers)).toEqual([]);

    const operator = await clientAs(folder, 'operator', 'operator', servers);
    const manager = await jetstreamManager(operator.connection);
    const { config, state } = await manager.streams.info('understudy-shop-log', { subjects_filter: '>' });
    expect(config).toMatchObject({ num_replicas: 3, deny_delete: true, deny_purge: true });
    expect(Object.keys(state.subjects ?? {}).sort()).toEqual([
      'understudy.shop.log.lb1',
      'understudy.shop.log.lb2~example~com',
    ]);
    const message = await manager.streams.getMessage('understudy-shop-log', {
      last_by_subj: 'understudy.shop.log.lb1',
    });
    expect(message?.data.length).toBeGreaterThan(0);

    const asNode = await clientAs(folder, 'nodes/lb1', 'lb1', servers);
    // The shared configuration's bucket: made, written and watched by a node.
    const bucket = await new Kvm(asNode.connection).create('understudy-shop-config', { replicas: 3 });
    await bucket.put('revision', 'one');
    for await (const entry of await bucket.watch({ key: 'revision' })) {
      expect(entry.string()).toBe('one');
      break;
    }
    expect(asNode.refusals).toEqual([]);

    const [node] = nodes as [SoakNode, SoakNode];
    const drained = await output(program, ['server', 'drain', 'web/web1', '--api', node.api, '--json']);
    expect(drained.match(/"answer": ?"done"/g)).toHaveLength(2);
    const asOperator = ['--nkey', join(folder, 'operator/nkey'), '--nats-ca', join(folder, 'operator/ca.pem')];
    const url = `tls://127.0.0.1:${servers[0]!.port}`;
    const verified = await output(program, ['verify', '--cluster', url, ...asOperator]);
    expect(verified.match(/every record once and in order/g)).toHaveLength(2);
    expect(violations(servers)).toEqual([]);

    for (const subject of [
      'understudy.shop.log.lb2~example~com',
      'understudy.shop.alive.lb2~example~com',
      '$JS.API.STREAM.DELETE.understudy-shop-log',
      '$JS.API.STREAM.PURGE.understudy-shop-log',
    ]) {
      asNode.connection.publish(subject, '{}');
      await until(`the refusal of ${subject}`, async () => asNode.refusals.some((text) => text.includes(subject)));
    }
    operator.connection.publish('understudy.shop.command', '{}');
    await until('the refusal of a command', async () => operator.refusals.some((text) => text.includes('.command')));
    expect((await manager.streams.info('understudy-shop-log')).state.messages).toBeGreaterThan(0);

    const anonymous = connect({
      servers: `127.0.0.1:${servers[0]!.port}`,
      tls: { caFile: join(folder, 'ca.pem') },
      reconnect: false,
    });
    await expect(anonymous).rejects.toThrow(/authorization/i);
  }, 240_000);
});
