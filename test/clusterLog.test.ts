/** The cluster log with real nodes, and what an operator sees of it: log, replay, verify, explain and whatif on the stream. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { jetstreamManager } from '@nats-io/jetstream';
import type { MsgHdrs } from '@nats-io/transport-node';
import { expect, onTestFinished, test } from 'vitest';
import { stringify } from 'yaml';
import { packValues, unpackCheckedRows } from '../src/bus/logFormat.ts';
import { valuesOf } from '../src/journal/record.ts';
import { subjectsOf } from '../src/bus/subjects.ts';
import { natsConfig, readLog, ShippingService, WrittenJournal } from './logHelpers.ts';
import { natsClient, NatsServer } from './natsHelpers.ts';
import {
  killAtEnd,
  program,
  RunningNode,
  startWeb,
  stateOf,
  tempFolder,
  understudy,
  within,
  writeFile,
} from './nodeHelpers.ts';
import type { Web } from './nodeHelpers.ts';
import { freePort } from './ports.ts';

const { logStream } = subjectsOf('shop');

const startNats = async (): Promise<NatsServer> => {
  const server = await NatsServer.start();
  onTestFinished(() => server.end());
  return server;
};

type Placed = { file: string; api: number; folder: string; journal: string };

const place = async (name: string, server: NatsServer, web: Web, folder = tempFolder()): Promise<Placed> => {
  const api = await freePort();
  const config = {
    cluster: 'shop',
    node: name,
    bus: { nats: { servers: [server.url], startWait: '2s' } },
    journal: { path: `./${name}.db` },
    api: { listen: `127.0.0.1:${api}` },
    workers: 1,
    frontends: { shop: { mode: 'http', bind: [`127.0.0.1:${await freePort()}`], use: 'web' } },
    backends: {
      web: {
        check: { type: 'http', path: '/healthz', interval: '200ms', rise: 1, fall: 2 },
        servers: [{ name: 'web1', address: web.address }],
      },
    },
  };
  return {
    file: writeFile(folder, `${name}.yaml`, stringify(config)),
    api,
    folder,
    journal: join(folder, `${name}.db`),
  };
};

const run = (placed: Placed): Promise<RunningNode> => RunningNode.start(placed.file, placed.api);

const inStep = (node: RunningNode) =>
  node.until('the courier is in step', (state) => stateOf(state, 'courier') === 'inStep');

const countOf = (journal: string): { records: number; last: number } => {
  const db = new DatabaseSync(journal, { readOnly: true });
  const row = db.prepare('SELECT count(*) AS records, max(seq) AS last FROM records').get();
  db.close();
  return row as { records: number; last: number };
};

test('two nodes, killed and restarted: the stream has all, and every command reads it as it reads a journal', async () => {
  const server = await startNats();
  const web = await startWeb('web1');
  const placed = [await place('lb1', server, web), await place('lb2', server, web)];
  let [one, two] = await Promise.all(placed.map(run));
  await Promise.all([inStep(one!), inStep(two!)]);
  web.healthy = false;
  await Promise.all([one!.healthIs('web/web1', 'down'), two!.healthIs('web/web1', 'down')]);
  await one!.end('SIGKILL');
  await server.stop('SIGKILL');
  web.healthy = true;
  await two!.healthIs('web/web1', 'up');
  await server.again();
  one = await run(placed[0]!);
  await Promise.all([inStep(one), inStep(two!)]);
  await Promise.all([one.end(), two!.end()]);

  const lineages = await readLog(server.url);
  expect(lineages.map(({ node, problems, rows, lastSeq }) => ({ node, problems, rows, lastSeq }))).toEqual(
    ['lb1', 'lb2'].map((node, index) => {
      const { records, last } = countOf(placed[index]!.journal);
      return { node, problems: [], rows: records, lastSeq: last };
    }),
  );

  const cluster = `--cluster=${server.url}/shop`;
  const verified = await understudy(['verify', cluster]);
  expect(verified.stdout).toMatch(
    /^lb1 \(journal \w+, records 1 to \d+\): every record once and in order, \d+ events/m,
  );
  expect(verified.stdout).toMatch(/^lb2 /m);
  expect(verified.status).toBe(0);

  const log = await understudy(['log', '--cluster', '--type=node.*'], { UNDERSTUDY_NATS: server.url });
  expect(log.stderr).toBe('');
  expect(log.stdout).toContain('Clocks, against that of the stream');
  // The last word of a node that leaves is in the log of its cluster.
  expect(
    [...log.stdout.matchAll(/^(lb\d) .* node {2}(node\.\w+)/gm)].map(([, node, type]) => `${node} ${type}`).sort(),
  ).toEqual(['lb1 node.started', 'lb1 node.started', 'lb1 node.stopped', 'lb2 node.started', 'lb2 node.stopped']);

  const needed = await understudy(['replay', cluster]);
  expect([needed.status, needed.stderr]).toEqual([
    2,
    'understudy: name a node with --node; the log of shop has lb1, lb2\n',
  ]);
  const replayed = await understudy(['replay', cluster, '--node=lb2', '--json', '--actor=server/web/web1']);
  const { divergence, transitions } = JSON.parse(replayed.stdout) as {
    divergence: null;
    transitions: { after: string }[];
  };
  expect(divergence).toBeNull();
  expect(transitions.map(({ after }) => after.split(',')[0])).toContain('down');
  const explained = await understudy(['explain', 'server/web/web1', cluster, '--node=lb2']);
  expect(explained.stdout).toContain('web1');
  const whatif = await understudy(['whatif', cluster, '--node=lb2', '--config', placed[1]!.file]);
  expect([whatif.status, whatif.stdout]).toEqual([0, expect.stringContaining('transitions really')]);
}, 240_000);

test('a second node of the same name is fenced off, and says so everywhere', async () => {
  const server = await startNats();
  const web = await startWeb('web1');
  const first = await run(await place('lb1', server, web));
  await inStep(first);
  const second = await run(await place('lb1', server, web));
  const state = await second.until('the courier is fenced', (seen) => stateOf(seen, 'courier') === 'fenced');
  expect(state.node.problems.join('\n')).toContain(
    'fenced off from the cluster log: another node named lb1 writes there',
  );
  await second.logged(/another node named lb1 writes to the cluster log/);
  const health = (await (await fetch(`${second.api}/healthz`)).json()) as { status: string };
  expect(health.status).toBe('degraded');
  const metrics = await (await fetch(`${second.api}/metrics`)).text();
  expect(metrics).toContain('understudy_courier_state{state="fenced"} 1');
  expect(stateOf(await first.state(), 'courier')).toBe('inStep');
  expect((await readLog(server.url)).length).toBe(1);
}, 240_000);

test('a node that lost its disk begins another journal under its name, and the reader tells them apart', async () => {
  const server = await startNats();
  const web = await startWeb('web1');
  const before = await run(await place('lb1', server, web));
  await inStep(before);
  await before.end('SIGKILL');
  const after = await run(await place('lb1', server, web));
  await inStep(after);
  await after.end();
  const log = await understudy(['log', `--cluster=${server.url}`, '--json', '--type=node.started']);
  const lines = log.stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { journal: string; seq?: number });
  expect(new Set(lines.filter(({ seq }) => seq !== undefined).map(({ journal }) => journal)).size).toBe(2);
  const verified = await understudy(['verify', `--cluster=${server.url}`, '--json']);
  expect(verified.status).toBe(0);
  expect((JSON.parse(verified.stdout) as { nodes: { node: string; ok: boolean }[] }).nodes).toEqual([
    expect.objectContaining({ node: 'lb1', ok: true, firstSeq: 1 }),
    expect.objectContaining({ node: 'lb1', ok: true, firstSeq: 1 }),
  ]);
}, 240_000);

test('what is altered, missing or double in the stream is told by verify, which then ends with 1', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  journal.write(5);
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  await service.shipped(5);
  await service.end();
  // A courier that went wrong: it ships again what is there, and something that has been tampered with.
  const client = await natsClient(server.url);
  onTestFinished(() => client.close());
  const { streams } = await jetstreamManager(client);
  // The first is a mark.
  const message = await streams.getMessage(logStream, { seq: 2 });
  const send = (data: Uint8Array) =>
    client.request('understudy.shop.log.lb1', data, { timeout: 5_000, headers: without(message!.header) });
  await send(message!.data);
  const rows = unpackCheckedRows(message!.data);
  for (const row of rows) Object.assign(row, { seq: row.seq + 10, state: 'forged' });
  message!.header.set('Understudy-First', '11');
  message!.header.set('Understudy-Last', '15');
  const forged = packValues(rows.map((row) => (valuesOf(row) as readonly unknown[]).concat(row.crc)));
  message!.header.set('Understudy-Piece', `0/${forged.length}`);
  await send(forged);
  const verified = await understudy(['verify', `--cluster=${server.url}`]);
  expect(verified.status).toBe(1);
  expect(verified.stdout).toContain('records 1 to 5: more than once in the stream');
  expect(verified.stdout).toContain('records 6 to 10: missing from the stream');
  expect(verified.stdout).toContain('records 11 to 15: altered or damaged (checksum)');
}, 240_000);

const without = (header: MsgHdrs): MsgHdrs => {
  header.delete('Nats-Msg-Id');
  header.delete('Nats-Expected-Last-Subject-Sequence');
  return header;
};

test('log --follow goes on with what nodes do', async () => {
  const server = await startNats();
  const journal = new WrittenJournal();
  journal.write(1, { type: 'first.seen' });
  const service = await ShippingService.start(journal, natsConfig([server.url]));
  await service.shipped(1);
  const child = spawn(program, ['log', `--cluster=${server.url}`, '--follow'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  killAtEnd(child);
  let seen = '';
  const shows = (text: string) =>
    within(
      `log shows ${text}`,
      new Promise<void>((done) => {
        const look = () => {
          if (seen.includes(text)) done();
        };
        child.stdout.on('data', look);
        look();
      }),
    );
  child.stdout.on('data', (chunk: Buffer) => (seen += chunk.toString()));
  await shows('first.seen');
  journal.write(1, { type: 'second.seen' });
  service.written();
  await shows('second.seen');
  expect(seen.match(/(first|second)\.seen/g)).toEqual(['first.seen', 'second.seen']);
}, 240_000);

test('a cluster that isn’t there, or isn’t the only one, is told with those that are', async () => {
  const server = await startNats();
  const none = await understudy(['log', `--cluster=${server.url}`]);
  expect([none.status, none.stderr]).toEqual([3, `understudy: NATS at ${server.url} has no cluster's log\n`]);
  const client = await natsClient(server.url);
  onTestFinished(() => client.close());
  const { streams } = await jetstreamManager(client);
  for (const name of ['shop', 'other'])
    await streams.add({ name: `understudy-${name}-log`, subjects: [`${name}.log.*`] });
  const several = await understudy(['verify', `--cluster=${server.url}`]);
  expect([several.status, several.stderr]).toEqual([
    3,
    `understudy: NATS at ${server.url} has the logs of several clusters (other, shop); name one: ${server.url}/other\n`,
  ]);
  const wrong = await understudy(['verify', `--cluster=${server.url}/shoop`]);
  expect(wrong.stderr).toContain('it has those of other, shop');
});

test.each([
  [['verify', '--cluster', 'web/web1'], 'web/web1 is not the URL of a NATS server'],
  [['verify', '--cluster'], '--cluster needs the URL of a NATS server, or UNDERSTUDY_NATS'],
  [['log', 'lb1.db', '--cluster=nats://127.0.0.1:1'], 'only one of them can be listed'],
  [['replay'], 'name a journal, or --cluster'],
])('%s is wrong use', async (args, message) => {
  const { status, stderr } = await understudy(args);
  expect([status, stderr]).toEqual([2, expect.stringContaining(message)]);
});
