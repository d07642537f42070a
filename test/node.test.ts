/** The life of a node: what a restart keeps, how it leaves, and what it does when a worker dies. */
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { connect } from 'node:net';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import pino from 'pino';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { loadConfig } from '../src/config/load.ts';
import { UnderstudyNode } from '../src/node.ts';
import {
  get,
  RunningNode,
  startStage,
  startTraffic,
  startWeb,
  stateOf,
  tempFolder,
  understudy,
  within,
  writeFile,
  yamlOf,
} from './nodeHelpers.ts';
import { freePort } from './ports.ts';

describe('a restart', () => {
  test('keeps drain, maintenance and weight, and each server’s health as a hint', async () => {
    const stage = await startStage();
    const { file, plan, webs, folder } = stage;
    await stage.node.post({ type: 'server.drain', pool: 'web', server: 'web1' });
    await stage.node.post({ type: 'server.weight', pool: 'web', server: 'web1', weight: 9 });
    webs[1]!.healthy = false;
    await stage.node.healthIs('web/web2', 'down');
    expect(await stage.node.end()).toBe(0);

    // Without a check for as long as the test lasts: what it says now is what it remembers.
    const slow = yamlOf({ ...plan, backend: ['check: { type: http, path: /healthz, interval: 1h, timeout: 1s }'] });
    // Nothing answers the first check either.
    webs[1]!.server.removeAllListeners('request').on('request', () => {});
    writeFileSync(file, slow);
    const again = await RunningNode.start(file, plan.api);
    const state = await again.state();
    expect(stateOf(state, 'server/web/web1')).toMatch(/,drain,/);
    expect(state.pools[0]!.servers[0]!.weight).toBe(9);
    // Down before, so it takes no traffic until a check says otherwise.
    expect(state.pools[0]!.usable).toBe(0);

    await again.post({ type: 'server.ready', pool: 'web', server: 'web1' });
    await again.post({ type: 'server.maintenance', pool: 'web', server: 'web2' });
    expect(await again.end('SIGKILL')).toBe(null);
    const third = await RunningNode.start(file, plan.api);
    expect(stateOf(await third.state(), 'server/web/web1')).toMatch(/,ready,/);
    expect(stateOf(await third.state(), 'server/web/web2')).toMatch(/,maintenance,/);
    expect((await third.state()).node.epoch).toBe(3);
    expect(await third.end()).toBe(0);
    const verified = await understudy(['verify', join(folder, 'node.db')]);
    expect(verified, verified.stdout + verified.stderr).toMatchObject({ status: 0 });
  });

  test.each(['SIGTERM', 'SIGKILL'] as const)('after %s the whole journal verifies, both runs of it', async (signal) => {
    const { node, file, plan, folder } = await startStage();
    await node.post({ type: 'server.drain', pool: 'web', server: 'web1' });
    await node.end(signal);
    const again = await RunningNode.start(file, plan.api);
    await again.post({ type: 'server.ready', pool: 'web', server: 'web1' });
    expect(await again.end()).toBe(0);
    const verified = await understudy(['verify', join(folder, 'node.db')]);
    expect(verified, verified.stdout + verified.stderr).toMatchObject({ status: 0 });
  });

  test('a disabled server starts in maintenance; an operator’s ready outlives a restart', async () => {
    const web = await startWeb('web1');
    const stage = await startStage({ servers: [`web1 ${web.address} disabled: true`] });
    expect(stateOf(await stage.node.state(), 'server/web/web1')).toMatch(/,maintenance,/);
    await stage.node.post({ type: 'server.ready', pool: 'web', server: 'web1' });
    await stage.node.healthIs('web/web1', 'up');
    await stage.node.end();
    const again = await RunningNode.start(stage.file, stage.plan.api);
    expect(stateOf(await again.state(), 'server/web/web1')).toMatch(/,ready,/);
  });

  test('a server that was disabled in the file in between starts in maintenance', async () => {
    const stage = await startStage();
    await stage.node.end();
    const servers = [`${stage.plan.servers[0]} disabled: true`, stage.plan.servers[1]!];
    writeFileSync(stage.file, yamlOf({ ...stage.plan, servers }));
    const again = await RunningNode.start(stage.file, stage.plan.api);
    expect(stateOf(await again.state(), 'server/web/web1')).toMatch(/,maintenance,/);
  });

  test('two nodes never write one journal', async () => {
    const stage = await startStage();
    const text = yamlOf({ ...stage.plan, api: await freePort(), port: await freePort() });
    const ran = await understudy(['run', writeFile(stage.folder, 'other.yaml', text)]);
    expect(ran).toMatchObject({ status: 3, stdout: '' });
    expect(ran.stderr).toMatch(/journal/);
  });
});

describe('the end', () => {
  test.each(['SIGTERM', 'SIGINT'] as const)(
    '%s lets running requests finish, takes no new ones, and exits 0',
    async (signal) => {
      let answer = () => {};
      const held = new Promise<void>((done) => (answer = done));
      let arrived = () => {};
      const arrival = new Promise<void>((done) => (arrived = done));
      const stage = await startStage({ frontend: ['drain: 10s'] }, (_request, response) => {
        arrived();
        void held.then(() => response.end('late but whole'));
      });
      onTestFinished(answer);
      const running = get(stage.url);
      await within('the request', arrival);
      const exited = once(stage.node.child, 'exit');
      stage.node.child.kill(signal);
      await stage.node.logged(/is draining$/);
      await within(
        'the port’s end',
        (async () => {
          for (;;) {
            const socket = connect(stage.plan.port, '127.0.0.1');
            const refused = await new Promise((done) => {
              socket.once('error', () => done(true)).once('connect', () => done(false));
            });
            socket.destroy();
            if (refused) return;
          }
        })(),
      );
      answer();
      expect(await running).toEqual({ status: 200, body: 'late but whole' });
      expect((await within('the end', exited))[0]).toBe(0);
      expect(stage.node.stderr).toBe('');
    },
  );

  test('a request that never ends is cut off when the drain is over', async () => {
    let arrived = () => {};
    const arrival = new Promise<void>((done) => (arrived = done));
    const stage = await startStage({ frontend: ['drain: 300ms'] }, () => arrived());
    const outgoing = request(stage.url);
    const cut = once(outgoing, 'error');
    outgoing.end();
    await within('the request', arrival);
    expect(await stage.node.end()).toBe(0);
    await within('the cut', cut);
  });
});

test('a worker that dies is replaced, while another serves', async () => {
  const web = await startWeb('web1');
  const folder = tempFolder();
  const port = await freePort();
  const loaded = loadConfig(
    yamlOf({ api: await freePort(), port, servers: [`web1 ${web.address}`], top: ['workers: 2'] }),
    {},
    folder,
  );
  if ('problems' in loaded) throw new Error(JSON.stringify(loaded.problems));
  // The threads of the data plane are nobody's but its own; they are known by what they are told.
  const spy = vi.spyOn(Worker.prototype, 'postMessage');
  const node = await UnderstudyNode.start(loaded.config, loaded.text, pino({ level: 'silent' }));
  onTestFinished(() => node.stop());
  const until = (what: string, condition: () => boolean) =>
    within(
      what,
      new Promise<void>((done) => {
        const look = () => {
          if (!condition()) return;
          stop();
          done();
        };
        const stop = node.system.onTransition(look);
        look();
      }),
    );
  const stateIs = (id: string, state: string) => () => node.system.get(id)?.state.split(',')[0] === state;
  await until('both workers', () => ['worker/0', 'worker/1'].every((id) => stateIs(id, 'ready')()));
  await until('web1', stateIs('server/web/web1', 'up'));
  const workers = spy.mock.calls.flatMap(([message], index) =>
    (message as { kind?: string }).kind === 'listen' ? [spy.mock.contexts[index] as Worker] : [],
  );
  spy.mockRestore();
  expect(new Set(workers).size).toBe(2);
  const died = until('the death', () => [0, 1].some((index) => stateIs(`worker/${index}`, 'crashed')()));
  await workers[0]!.terminate();
  await died;
  for (let count = 0; count < 20; count++) expect((await get(`http://127.0.0.1:${port}/`)).status).toBe(200);
  await until('both workers again', () => ['worker/0', 'worker/1'].every((id) => stateIs(id, 'ready')()));
  const traffic = startTraffic(`http://127.0.0.1:${port}/`, 8);
  await traffic.more(200);
  await traffic.stop();
  expect(traffic.failures).toEqual([]);
  expect(node.system.counters.faults).toBe(0);
});
