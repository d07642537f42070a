/** The lab's cluster: three nodes with a nats-server each, as tests break it and as `npm run lab -- --cluster` leaves it standing. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { jetstreamManager } from '@nats-io/jetstream';
import { connect } from '@nats-io/transport-node';
import { describe, expect, onTestFinished, test } from 'vitest';
import { parse } from 'yaml';
import { ClusterLab, VIP } from '../../deploy/lab/cluster.ts';
import { openDoor } from '../../deploy/lab/door.ts';
import { nowMs } from '../../deploy/lab/process.ts';
import { until } from '../../deploy/lab/until.ts';
import { has, isRoot } from '../packages.ts';
import { labForTest } from './labHelpers.ts';

const root = resolve(import.meta.dirname, '../..');
const isRunnable = isRoot && ['ip', 'nft', 'nginx', 'nats-server', 'curl'].every(has);

test('its three configurations differ in names and priorities only', () => {
  const plain = ['lb1', 'lb2', 'lb3'].map((name) => {
    const text = readFileSync(join(root, `deploy/examples/cluster/${name}.yaml`), 'utf8');
    const { node, journal, routers, ...rest } = parse(text) as Record<string, unknown> & {
      routers: { gateway: { priority: number } };
    };
    const { priority, ...gateway } = routers.gateway;
    return { node, journal, priority, rest, gateway };
  });
  expect(plain.map(({ node }) => node)).toEqual(['lb1', 'lb2', 'lb3']);
  for (const { rest, gateway } of plain)
    expect({ rest, gateway }).toEqual({ rest: plain[0]!.rest, gateway: plain[0]!.gateway });
  const [first, second, third] = plain.map(({ priority }) => priority) as [number, number, number];
  expect(first > second && second > third).toBe(true);
  // One that reaches no server gives way to any that does.
  expect(first - 60).toBeLessThan(third);
});

describe.skipIf(!isRunnable)('the cluster', () => {
  test('is one: an election that survives a partition, a crash and a lost path to the servers', async () => {
    const cluster = await ClusterLab.create({ lab: await labForTest(), diskSize: '128M' });
    expect(await cluster.holders()).toEqual(['lb1']);
    expect(await cluster.client.run('curl', ['-s', '-m', '5', `http://${VIP}/`])).toMatch(/^Hello from web[123]\./);

    const door = await openDoor(cluster.hosts[1]!, '10.9.0.12', 4222);
    const connection = await connect({ servers: door.address, ignoreClusterUpdates: true });
    const log = async () => {
      const manager = await jetstreamManager(connection);
      const { config, state } = await manager.streams.info('understudy-shop-log', { subjects_filter: '>' });
      return { replicas: config.num_replicas, subjects: Object.keys(state.subjects ?? {}).sort() };
    };
    const wanted = { replicas: 3, subjects: ['lb1', 'lb2', 'lb3'].map((name) => `understudy.shop.log.${name}`) };
    await until('every node in the log', async () => JSON.stringify(await log()) === JSON.stringify(wanted), 30_000);
    await connection.close();
    door.close();

    await cluster.partition(['lb1'], ['lb2', 'lb3']);
    await until('an owner on each side', async () => (await cluster.holders()).length === 2);
    expect(await cluster.client.run('curl', ['-s', '-m', '5', `http://10.9.0.21/`])).toContain('web1');
    await cluster.heal();
    await until('one owner', async () => (await cluster.holders()).join() === 'lb1', 30_000);

    const atMs = await cluster.crash('lb1');
    expect(nowMs() - atMs).toBeLessThan(10_000);
    expect((await cluster.untilOneMaster(30_000)).name).toBe('lb2');
    await cluster.boot('lb1');
    await until('its return', async () => (await cluster.holders()).join() === 'lb1', 30_000);

    await cluster.cutFromServers('lb1');
    await until('that it gives way', async () => (await cluster.holders()).join() === 'lb2', 30_000);
    await cluster.heal();
    await until('its second return', async () => (await cluster.holders()).join() === 'lb1', 30_000);
    // Of its own size, so that it can be filled.
    expect(await cluster.hosts[0]!.run('stat', ['-f', '-c', '%T', cluster.node('lb1').journal])).toBe('tmpfs\n');
  }, 240_000);

  test('npm run lab -- --cluster stands until it is interrupted, and leaves nothing', async () => {
    const child = spawn(process.execPath, [join(root, 'deploy/lab/main.ts'), '--cluster'], {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    onTestFinished(() => void child.kill('SIGKILL'));
    const exited = once(child, 'exit');
    let text = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (data: Buffer) => (text += data.toString()));
    await until(
      'the cluster',
      async () => {
        if (child.exitCode !== null) throw new Error(text);
        return text.includes('Ctrl-C ends everything.');
      },
      200_000,
    );
    const command = (pattern: RegExp): string => pattern.exec(text)![1]!;
    const shell = (line: string) => spawnSync('sh', ['-c', line], { encoding: 'utf8', cwd: root }).stdout;
    expect(shell(command(/(ip netns exec \S+ curl .*?) \|\|/))).toMatch(/^Hello from web[123]\./);
    expect(shell(command(/^ {2}(.* status)$/m))).toMatch(/^lb3 +alive/m);
    // Every program and PID that it names is there.
    for (const [, pids] of text.matchAll(/kill -\w+ ([\d ]+)$/gm))
      for (const pid of pids!.split(' ')) expect(existsSync(`/proc/${pid}`), pid).toBe(true);
    child.kill('SIGINT');
    expect(await exited).toEqual([0, null]);
    expect(readdirSync('/run/netns').filter((name) => name.startsWith(`us-${child.pid}-`))).toEqual([]);
  }, 240_000);
});

test('the lab refuses what it does not know', () => {
  const main = (...args: string[]) =>
    spawnSync(process.execPath, [join(root, 'deploy/lab/main.ts'), ...args], { encoding: 'utf8' });
  expect(main('nothing')).toMatchObject({
    status: 2,
    stderr: 'there is no nothing; there are active-active, active-backup and --cluster\n',
  });
  expect(main('--what')).toMatchObject({ status: 2, stderr: expect.stringContaining('--what') as string });
});
