/** A second process in the place of the first: real processes, and clients that count every request that fails. */
import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, statSync } from 'node:fs';
import type { RequestListener } from 'node:http';
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { describe, expect, onTestFinished, test } from 'vitest';
import {
  get,
  isAlive,
  RunningNode,
  startStage,
  startWeb,
  stateOf,
  tempFolder,
  understudy,
  within,
  writeFile,
  yamlOf,
} from './nodeHelpers.ts';
import type { Plan, Stage } from './nodeHelpers.ts';
import { freePort } from './ports.ts';

/** One answer read to its end, or why there is none. */
const ask = (socket: Socket, close: boolean): Promise<{ keep: boolean } | { failure: string }> =>
  new Promise((done) => {
    let input = '';
    const finish = (result: { keep: boolean } | { failure: string }) => {
      socket.removeAllListeners();
      socket.on('error', () => {});
      done(result);
    };
    socket.on('error', (error) => finish({ failure: error.message }));
    socket.on('close', () => finish({ failure: `closed after ${JSON.stringify(input)}` }));
    socket.on('end', () => finish({ failure: `ended after ${JSON.stringify(input)}` }));
    socket.on('data', (chunk: Buffer) => {
      input += chunk.toString('latin1');
      const head = input.indexOf('\r\n\r\n');
      const length = Number(/content-length: (\d+)/i.exec(input)?.[1] ?? 0);
      if (head === -1 || input.length < head + 4 + length) return;
      if (input.startsWith('HTTP/1.1 200 ')) finish({ keep: !/connection: close/i.test(input) });
      else finish({ failure: input.slice(0, head) });
    });
    socket.write(`GET / HTTP/1.1\r\nHost: shop.example\r\n${close ? 'Connection: close\r\n' : ''}\r\n`);
  });

/** Clients that keep their connections as long as they may, and others that make a new one for each request. */
const startLoad = (port: number) => {
  const load = { answers: 0, failures: [] as string[], connections: 0, isOver: false };
  const client = async (keeps: boolean): Promise<void> => {
    let socket: Socket | null = null;
    while (!load.isOver) {
      if (!socket) {
        load.connections++;
        socket = connect(port, '127.0.0.1');
      }
      const result = await ask(socket, !keeps);
      // Two processes are to start and to end meanwhile.
      await wait(1);
      if ('failure' in result) load.failures.push(result.failure);
      else load.answers++;
      if (keeps && 'keep' in result && result.keep) continue;
      socket.destroy();
      socket = null;
    }
    socket?.destroy();
  };
  const clients = Promise.all([true, true, true, true, false, false, false].map(client));
  const stop = async () => {
    load.isOver = true;
    await within('the last answers', clients);
  };
  onTestFinished(stop);
  /** So many more, which nobody has asked for yet. */
  const more = async (count: number): Promise<void> => {
    const goal = load.answers + count;
    await within(
      `${count} more answers`,
      (async () => {
        while (load.answers < goal && load.failures.length === 0) await get(`http://127.0.0.1:${port}/`);
      })(),
    );
  };
  return { load, stop, more };
};

/** Answers `/slow` in two parts, the second when the test says so. */
const slowServer = () => {
  const waiting: (() => void)[] = [];
  const handler: RequestListener = (incoming, response) => {
    if (incoming.url !== '/slow') {
      response.end('quick');
      return;
    }
    response.write('first ');
    waiting.push(() => response.end('last'));
  };
  const asked = (url: string): Promise<void> =>
    within(
      'it is asked',
      (async () => {
        while (waiting.length === 0) await get(url);
      })(),
    );
  return { handler, asked, finish: () => waiting[0]!() };
};

const takeOver = (stage: Stage, file = stage.file): Promise<RunningNode> =>
  RunningNode.start(file, stage.plan.api, {}, ['--takeover']);

const ended = async (node: RunningNode): Promise<number | null> => {
  if (isAlive(node.child)) await within('the end of the first', once(node.child, 'exit'));
  return node.child.exitCode;
};

/** Listening sockets of all processes at a port of IPv4: state 0A in /proc/net/tcp. */
const listenersAt = (port: number): number => {
  const wanted = `:${port.toString(16).toUpperCase().padStart(4, '0')} 00000000:0000 0A`;
  return readFileSync('/proc/net/tcp', 'utf8')
    .split('\n')
    .filter((line) => line.includes(wanted)).length;
};

const journalOf = ({ folder }: Stage): string => join(folder, 'node.db');

describe('under load', () => {
  test.each([1, 2])(
    'twice in a row, workers: %d: not one request fails, and an operator’s drain is kept',
    async (workers) => {
      const stage = await startStage({ top: [`workers: ${workers}`] });
      await stage.node.post({ type: 'server.drain', pool: 'web', server: 'web2' });
      const { load, stop, more } = startLoad(stage.plan.port);
      await more(50);
      let node = stage.node;
      for (let count = 0; count < 2; count++) {
        const next = await takeOver(stage);
        await more(50);
        expect(await ended(node)).toBe(0);
        expect(stateOf(await next.state(), 'server/web/web2')).toMatch(/,drain,/);
        expect(listenersAt(stage.plan.port)).toBe(workers);
        await more(50);
        node = next;
      }
      await stop();
      expect(load.failures).toEqual([]);
      expect(load.connections).toBeGreaterThan(50);
      expect(await node.end()).toBe(0);
      const verified = await understudy(['verify', journalOf(stage)]);
      expect([verified.status, verified.stderr]).toEqual([0, '']);
    },
  );

  test('from two workers to one and back: no socket is lost on the way', async () => {
    const stage = await startStage({ top: ['workers: 2'] });
    const { load, stop, more } = startLoad(stage.plan.port);
    await more(20);
    let node = stage.node;
    for (const workers of [1, 3]) {
      writeFile(stage.folder, 'node.yaml', yamlOf({ ...stage.plan, top: [`workers: ${workers}`] }));
      const next = await takeOver(stage);
      await more(100);
      expect(await ended(node)).toBe(0);
      expect(listenersAt(stage.plan.port)).toBe(Math.max(2, workers));
      node = next;
    }
    await stop();
    expect(load.failures).toEqual([]);
  });

  test('a process that dies before it serves leaves the first one serving, and another can take over', async () => {
    const stage = await startStage();
    const { load, stop, more } = startLoad(stage.plan.port);
    const blocking = await startWeb('in the way');
    const other = writeFile(stage.folder, 'other.yaml', yamlOf({ ...stage.plan, api: blocking.port }));
    const failing = await understudy(['run', '--takeover', other]);
    expect([failing.status, failing.stderr]).toEqual([3, expect.stringContaining('another program listens there')]);
    await stage.node.logged(/the process that was to take over is gone/);
    await more(100);
    const next = await takeOver(stage);
    expect(await ended(stage.node)).toBe(0);
    await more(50);
    await stop();
    expect(load.failures).toEqual([]);
    expect(await next.end()).toBe(0);
    expect((await understudy(['verify', journalOf(stage)])).status).toBe(0);
  });

  test('a request that is under way is answered to its end by the process that leaves', async () => {
    const slow = slowServer();
    const stage = await startStage({}, slow.handler);
    const answer = get(`${stage.url}slow`);
    await slow.asked(stage.url);
    await takeOver(stage);
    expect(isAlive(stage.node.child)).toBe(true);
    slow.finish();
    expect(await answer).toEqual({ status: 200, body: 'first last' });
    expect(await ended(stage.node)).toBe(0);
  });
});

describe('a process that was left behind', () => {
  /** Its successor takes everything and goes away without a word. */
  const leftBehind = async (handler?: RequestListener) => {
    const stage = await startStage({}, handler);
    const blocking = await startWeb('in the way');
    const other = writeFile(stage.folder, 'other.yaml', yamlOf({ ...stage.plan, api: blocking.port }));
    await understudy(['run', '--takeover', other]);
    await stage.node.logged(/the process that was to take over is gone/);
    return stage;
  };

  test('ends in order when it is told to: what is under way is answered', async () => {
    const slow = slowServer();
    const stage = await leftBehind(slow.handler);
    const answer = get(`${stage.url}slow`);
    await slow.asked(stage.url);
    const status = stage.node.end();
    await stage.node.logged(/SIGTERM: ending traffic/);
    slow.finish();
    expect(await answer).toEqual({ status: 200, body: 'first last' });
    expect(await status).toBe(0);
    expect(existsSync(`${journalOf(stage)}.takeover`)).toBe(false);
  });

  test('is not reloaded: it has no say any more', async () => {
    const stage = await leftBehind();
    stage.node.child.kill('SIGHUP');
    await stage.node.logged(/nothing was changed: .*handed over/);
    expect((await get(stage.url)).status).toBe(200);
  });
});

test('without a process that runs, it starts like any other', async () => {
  const folder = tempFolder();
  const web = await startWeb('web1');
  const plan: Plan = { api: await freePort(), port: await freePort(), servers: [`web1 ${web.address}`] };
  const file = writeFile(folder, 'node.yaml', yamlOf(plan));
  const node = await RunningNode.start(file, plan.api, {}, ['--takeover']);
  await node.logged(/there is nothing to take over/);
  await node.healthIs('web/web1', 'up');
  expect((await get(`http://127.0.0.1:${plan.port}/`)).body).toBe('web1');
});

test('listeners that the new configuration does not have are closed, others are opened', async () => {
  const stage = await startStage();
  const port = await freePort();
  writeFile(stage.folder, 'node.yaml', yamlOf({ ...stage.plan, port }));
  const next = await takeOver(stage);
  expect(await ended(stage.node)).toBe(0);
  expect((await get(`http://127.0.0.1:${port}/`)).status).toBe(200);
  await expect(get(stage.url)).rejects.toThrow(/ECONNREFUSED/);
  expect([listenersAt(stage.plan.port), listenersAt(port)]).toEqual([0, 1]);
  expect(await next.end()).toBe(0);
});

test('a Unix socket is handed over too', async () => {
  const folder = tempFolder();
  const path = join(folder, 'shop.sock');
  const web = await startWeb('web1');
  const plan: Plan = { api: await freePort(), port: 0, servers: [`web1 ${web.address}`], top: ['workers: 2'] };
  const text = yamlOf(plan).replace('127.0.0.1:0', `unix:${path}`);
  const file = writeFile(folder, 'node.yaml', text);
  const first = await RunningNode.start(file, plan.api);
  await first.healthIs('web/web1', 'up');
  const askAtPath = async () => {
    const socket = connect(path);
    const result = await ask(socket, true);
    socket.destroy();
    return result;
  };
  expect(await askAtPath()).toEqual({ keep: false });
  const inode = statSync(path).ino;
  const next = await RunningNode.start(file, plan.api, {}, ['--takeover']);
  expect(await askAtPath()).toEqual({ keep: false });
  expect(await ended(first)).toBe(0);
  expect(await askAtPath()).toEqual({ keep: false });
  expect(statSync(path).ino).toBe(inode);
  expect(await next.end()).toBe(0);
});

describe('its door', () => {
  test('is the owner’s alone, and gone when the node is', async () => {
    const stage = await startStage();
    const door = `${journalOf(stage)}.takeover`;
    expect((statSync(door).mode & 0o777).toString(8)).toBe('600');
    expect(await stage.node.end()).toBe(0);
    expect(existsSync(door)).toBe(false);
  });

  test('is opened anew after a process that was killed has left its file', async () => {
    const stage = await startStage();
    const door = `${journalOf(stage)}.takeover`;
    await stage.node.end('SIGKILL');
    expect(existsSync(door)).toBe(true);
    const second = await RunningNode.start(stage.file, stage.plan.api, {}, ['--takeover']);
    await second.logged(/there is nothing to take over/);
    const third = await takeOver(stage);
    expect(await ended(second)).toBe(0);
    expect(await third.end()).toBe(0);
  });

  test('throws out whoever says something else, and goes on serving', async () => {
    const stage = await startStage();
    for (const words of ['GET / HTTP/1.1\r\n\r\n', 'serving\n', 'x'.repeat(100_000)]) {
      const socket = connect(`${journalOf(stage)}.takeover`);
      socket.on('error', () => {});
      socket.end(words);
      await within('it is thrown out', new Promise<void>((done) => void socket.once('close', () => done())));
    }
    expect((await get(stage.url)).status).toBe(200);
    expect(isAlive(stage.node.child)).toBe(true);
    const next = await takeOver(stage);
    expect(await ended(stage.node)).toBe(0);
    expect(await next.end()).toBe(0);
  });

  test('is not there where the journal’s path is too long for a socket, and the log says so', async () => {
    const folder = join(tempFolder(), 'x'.repeat(100));
    mkdirSync(folder);
    const web = await startWeb('web1');
    const plan: Plan = { api: await freePort(), port: await freePort(), servers: [`web1 ${web.address}`] };
    const node = await RunningNode.start(writeFile(folder, 'node.yaml', yamlOf(plan)), plan.api);
    const line = await node.logged(/no other process can take over from this one: .* too long for a socket/);
    expect(line.level).toBe(40);
    expect(await node.end()).toBe(0);
  });
});
