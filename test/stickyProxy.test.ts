/** Clients that keep their server, in whole nodes with two workers, as servers drain, fall and return. */
import { request } from 'node:http';
import { createServer } from 'node:net';
import type { Socket } from 'node:net';
import { connect } from 'node:net';
import { once } from 'node:events';
import { describe, expect, onTestFinished, test } from 'vitest';
import {
  listening,
  RunningNode,
  startStage,
  stateOf,
  tempFolder,
  understudy,
  within,
  writeFile,
  yamlOf,
} from './nodeHelpers.ts';
import type { Stage } from './nodeHelpers.ts';
import { freePort } from './ports.ts';
import { eventually, HOST, httpServer, startProxy } from './proxyHelpers.ts';

type Got = { status: number; body: string; cookie: string | null };

/** A request on a connection of its own, so that any worker may get it. */
const ask = (port: number, cookie: string | null = null): Promise<Got> =>
  within(
    'an answer',
    new Promise<Got>((done, refuse) => {
      const headers = { connection: 'close', ...(cookie === null ? {} : { cookie }) };
      const outgoing = request({ port, host: HOST, agent: false, headers }, (response) => {
        let body = '';
        response.on('data', (chunk: Buffer) => (body += chunk.toString()));
        response.on('end', () => {
          const set = response.headers['set-cookie']?.[0];
          done({ status: response.statusCode ?? 0, body, cookie: set === undefined ? null : set.split(';')[0]! });
        });
        response.on('error', refuse);
      });
      outgoing.on('error', refuse);
      outgoing.end();
    }),
  );

const CHECK = 'check: { type: http, path: /healthz, interval: 50ms, timeout: 500ms, rise: 1, fall: 2 }';
const ROUNDS = 12;

const answersOf = async (port: number, cookie: string | null = null): Promise<Set<string>> => {
  const answers = await Promise.all(Array.from({ length: ROUNDS }, () => ask(port, cookie)));
  expect(answers.filter(({ status }) => status !== 200)).toEqual([]);
  return new Set(answers.map(({ body }) => body));
};

/** What workers know follows the control plane within moments. */
const goesTo = (port: number, names: string[], cookie: string | null = null): Promise<void> =>
  within(
    `everyone at ${names.join()}`,
    (async () => {
      for (;;) {
        const found = await answersOf(port, cookie);
        if ([...found].toSorted().join() === names.join()) return;
      }
    })(),
  );

describe('by cookie', () => {
  const start = async (): Promise<{ stage: Stage; port: number; cookie: string }> => {
    const stage = await startStage({ top: ['workers: 2'], backend: ['sticky: { cookie: { name: SRV } }', CHECK] });
    for (const name of ['web1', 'web2']) await stage.node.healthIs(`web/${name}`, 'up');
    const { port } = stage.plan;
    let got = await ask(port);
    for (let round = 0; round < 20 && got.body !== 'web1'; round++) got = await ask(port);
    expect(got).toMatchObject({ body: 'web1', cookie: 'SRV=web1' });
    return { stage, port, cookie: got.cookie! };
  };

  test('a client that has one comes back to its server at each worker, and is given none again', async () => {
    const { port, cookie } = await start();
    const answers = await Promise.all(Array.from({ length: 20 }, () => ask(port, cookie)));
    expect(answers.every(({ body, cookie: set }) => body === 'web1' && set === null)).toBe(true);
    expect(await answersOf(port)).toEqual(new Set(['web1', 'web2']));
  });

  test('while its server drains it stays there, and others go elsewhere; in maintenance it goes too', async () => {
    const { stage, port, cookie } = await start();
    await stage.node.post({ type: 'server.drain', pool: 'web', server: 'web1' });
    await goesTo(port, ['web2']);
    expect(await answersOf(port, cookie)).toEqual(new Set(['web1']));
    await stage.node.post({ type: 'server.maintenance', pool: 'web', server: 'web1' });
    await goesTo(port, ['web2'], cookie);
    expect(await ask(port, cookie)).toMatchObject({ body: 'web2', cookie: 'SRV=web2' });
    await stage.node.post({ type: 'server.ready', pool: 'web', server: 'web1' });
    await goesTo(port, ['web1'], cookie);
  });

  test('when its server goes down it is given another, and stays there when its own is back', async () => {
    const { stage, port, cookie } = await start();
    const [web1] = stage.webs;
    web1!.healthy = false;
    await stage.node.healthIs('web/web1', 'down');
    await goesTo(port, ['web2'], cookie);
    const { cookie: other } = await ask(port, cookie);
    expect(other).toBe('SRV=web2');
    web1!.healthy = true;
    await stage.node.healthIs('web/web1', 'up');
    await goesTo(port, ['web1', 'web2']);
    expect(await answersOf(port, other)).toEqual(new Set(['web2']));
  });

  test('a draining server that fails its checks loses its clients', async () => {
    const { stage, port, cookie } = await start();
    await stage.node.post({ type: 'server.drain', pool: 'web', server: 'web1' });
    stage.webs[0]!.healthy = false;
    await stage.node.until('it is down', (state) => stateOf(state, 'server/web/web1').startsWith('down,drain'));
    await goesTo(port, ['web2'], cookie);
    expect((await ask(port, cookie)).cookie).toBe('SRV=web2');
  });
});

describe('by a table of sources, in mode tcp', () => {
  /** A server that says its name and ends. */
  const greeter = (name: string): Promise<number> =>
    listening(createServer((socket) => void socket.on('error', () => {}).end(name)));

  const hear = async (port: number, localAddress: string): Promise<string> => {
    const socket: Socket = connect({ port, host: HOST, localAddress });
    onTestFinished(() => void socket.destroy());
    let text = '';
    socket.on('data', (chunk: Buffer) => (text += chunk.toString()));
    await within('the end', once(socket, 'close'));
    return text;
  };

  /** Sources that the kernel has without being asked: all of 127.0.0.0/8. */
  const SOURCES = Array.from({ length: 8 }, (_, index) => `127.0.0.${10 + index}`);

  test('each client keeps its server at each worker, while that drains too; down, it is given another and stays', async () => {
    const [one, two] = [await greeter('web1'), await greeter('web2')];
    const [api, port] = [await freePort(), await freePort()];
    const file = writeFile(
      tempFolder(),
      'node.yaml',
      yamlOf({
        api,
        port,
        servers: [`web1 ${HOST}:${one}`, `web2 ${HOST}:${two}`],
        top: ['workers: 2'],
        backend: ['sticky: { table: source, expire: 10m }'],
      }).replace('mode: http', 'mode: tcp'),
    );
    const node = await RunningNode.start(file, api);
    const all = () => Promise.all(SOURCES.map((source) => hear(port, source)));
    const first = await all();
    expect(new Set(first)).toEqual(new Set(['web1', 'web2']));
    for (let round = 0; round < 4; round++) expect(await all()).toEqual(first);

    await node.post({ type: 'server.drain', pool: 'web', server: 'web1' });
    await within(
      'new clients at web2 alone',
      (async () => {
        for (let last = 100; ; last++) if ((await hear(port, `127.0.1.${last % 250}`)) === 'web2' && last > 110) return;
      })(),
    );
    expect(await all()).toEqual(first);

    await node.post({ type: 'server.maintenance', pool: 'web', server: 'web1' });
    await within(
      'everyone at web2',
      (async () => {
        while (new Set(await all()).size > 1);
      })(),
    );
    await node.post({ type: 'server.ready', pool: 'web', server: 'web1' });
    for (let round = 0; round < 4; round++) expect(new Set(await all())).toEqual(new Set(['web2']));
    expect((await understudy(['verify', file.replace('node.yaml', 'node.db')])).status).toBe(0);
  });
});

describe('limits and the queue over both workers', () => {
  test('a client with a cookie waits for its own server, though another has room', async () => {
    let running = 0;
    let most = 0;
    const finish: (() => void)[] = [];
    const slow = await httpServer((_request, response) => {
      most = Math.max(most, ++running);
      finish.push(() => {
        running--;
        response.end('slow');
      });
    });
    const other = await httpServer((_request, response) => void response.end('other'));
    const proxy = await startProxy({
      servers: { slow: { port: slow.port, maxConnections: 2 }, other },
      backend: {
        sticky: {
          cookie: { name: 'SRV', httpOnly: true, sameSite: 'lax', noCache: false },
        },
      },
    });
    const answers = Array.from({ length: 8 }, () => ask(proxy.port, 'SRV=slow'));
    await eventually('two are served, six wait', () => running === 2 && proxy.figures('web/slow').queued === 6);
    expect((await ask(proxy.port, 'SRV=other')).body).toBe('other');
    for (let done = 0; done < 8; done++) {
      await eventually('the next is there', () => finish.length > 0);
      finish.shift()!();
    }
    expect((await Promise.all(answers)).map(({ body }) => body)).toEqual(Array.from({ length: 8 }, () => 'slow'));
    expect(most).toBe(2);
    await eventually('the last place is given back', () => proxy.figures('web/slow').active === 0);
    expect(proxy.figures('web/slow').queued).toBe(0);
  });

  test('maxQueue of a server: who comes later goes to another', async () => {
    const finish: (() => void)[] = [];
    const slow = await httpServer((_request, response) => void finish.push(() => response.end('slow')));
    const other = await httpServer((_request, response) => void response.end('other'));
    const proxy = await startProxy({
      servers: { slow: { port: slow.port, maxConnections: 1, model: { maxQueue: 1 } }, other },
      backend: { sticky: { cookie: { name: 'SRV', httpOnly: true, sameSite: 'lax', noCache: false } } },
    });
    const first = ask(proxy.port, 'SRV=slow');
    await eventually('it is served', () => finish.length === 1);
    const second = ask(proxy.port, 'SRV=slow');
    await eventually('it waits', () => proxy.figures('web/slow').queued === 1);
    expect(await ask(proxy.port, 'SRV=slow')).toMatchObject({ body: 'other', cookie: 'SRV=other' });
    finish.shift()!();
    await eventually('the second is served', () => finish.length === 1);
    finish.shift()!();
    expect([(await first).body, (await second).body]).toEqual(['slow', 'slow']);
  });
});
