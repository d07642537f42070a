/** The HTTP API of a real node in front of real servers. */
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { machines } from '../machines/index.ts';
import { JournalReader } from '../src/journal/reader.ts';
import type { RecordView } from '../src/journal/view.ts';
import { get, RunningNode, startStage, stateOf, tempFolder, within, writeFile, yamlOf } from './nodeHelpers.ts';
import { freePort } from './ports.ts';

/** Parses the text format of Prometheus; anything that isn't it throws. */
const metricsOf = (text: string): Map<string, number> => {
  const values = new Map<string, number>();
  const types = new Map<string, string>();
  for (const line of text.split('\n')) {
    if (line === '') continue;
    const comment = /^# (HELP|TYPE) ([a-zA-Z_:][\w:]*) (.+)$/.exec(line);
    if (comment) {
      if (comment[1] === 'TYPE') {
        expect(types.has(comment[2]!), `two types of ${comment[2]}`).toBe(false);
        types.set(comment[2]!, comment[3]!);
      }
      continue;
    }
    const sample =
      /^([a-zA-Z_:][\w:]*)((?:\{(?:[a-zA-Z_]\w*="(?:[^"\\]|\\.)*",?)*\})?) (-?[\d.e+-]+|NaN|[+-]Inf)$/.exec(line);
    if (!sample) throw new Error(`not a metric: ${line}`);
    const family = sample[1]!.replace(/_(bucket|sum|count)$/, '');
    expect(types.has(sample[1]!) || types.get(family) === 'histogram', line).toBe(true);
    expect(values.has(sample[1]! + sample[2]!), `twice: ${line}`).toBe(false);
    values.set(sample[1]! + sample[2]!, Number(sample[3]));
  }
  return values;
};

const json = async (url: string): Promise<unknown> => (await fetch(url)).json();

test('what can be read', async () => {
  const { node, url, webs } = await startStage();
  for (let count = 0; count < 6; count++) expect((await get(url)).status).toBe(200);

  expect(await json(`${node.api}/healthz`)).toEqual({ status: 'ok', problems: [] });

  const state = await node.state();
  const ids = state.actors.map(({ id }) => id);
  for (const id of ['journal', 'pool/web', 'server/web/web1', 'server/web/web2', 'checker/web/web1', 'worker/0']) {
    expect(ids).toContain(id);
  }
  for (const actor of state.actors) {
    expect(Object.keys(machines)).toContain(actor.machine);
    expect(actor.state).not.toBe('');
    expect(new Date(actor.since).toISOString()).toBe(actor.since);
    expect(actor.cause === null || Number.isInteger(actor.cause), JSON.stringify(actor)).toBe(true);
  }
  expect(state.pools[0]).toMatchObject({ name: 'web', state: 'serving', usable: 2 });
  const sessions = state.pools[0]!.servers.map(({ traffic }) => traffic!.sessions);
  expect(sessions.reduce((sum, count) => sum + count, 0)).toBe(6);
  expect(state.frontends[0]).toMatchObject({ name: 'shop', traffic: { requests: 6, status2xx: 6 } });
  // A node without routers says so, and its metrics have none.
  expect(state).toMatchObject({ routers: [], syncGroups: [], node: { notices: [] } });

  expect(await json(`${node.api}/api/machines`)).toEqual({ machines: Object.keys(machines) });
  for (const name of Object.keys(machines)) {
    expect(await json(`${node.api}/api/machines/${name}`)).toMatchObject({ name, config: expect.any(Object) });
  }
  expect((await fetch(`${node.api}/api/machines/toString`)).status).toBe(404);
  expect((await fetch(`${node.api}/api/nothing`)).status).toBe(404);

  const response = await fetch(`${node.api}/metrics`);
  expect(response.headers.get('content-type')).toMatch(/^text\/plain; version=0\.0\.4/);
  const metrics = metricsOf(await response.text());
  expect(metrics.get('understudy_server_health{pool="web",server="web1",state="up"}')).toBe(1);
  expect(metrics.get('understudy_server_health{pool="web",server="web1",state="down"}')).toBe(0);
  expect(metrics.get('understudy_server_admin{pool="web",server="web2",state="ready"}')).toBe(1);
  expect(metrics.get('understudy_frontend_http_requests_total{frontend="shop"}')).toBe(6);
  expect(metrics.get('understudy_actor_faults_total')).toBe(0);
  expect([...metrics.keys()].filter((name) => name.startsWith('understudy_router_'))).toEqual([]);

  webs[0]!.healthy = false;
  await node.healthIs('web/web1', 'down');
  const after = metricsOf(await (await fetch(`${node.api}/metrics`)).text());
  expect(after.get('understudy_server_health{pool="web",server="web1",state="down"}')).toBe(1);
});

test('events, with filters and limit', async () => {
  const { node, webs } = await startStage();
  webs[0]!.healthy = false;
  await node.healthIs('web/web1', 'down');

  const all = await node.events('limit=1000');
  expect(all.length).toBeGreaterThan(5);
  for (const record of all) expect(record).toMatchObject({ seq: expect.any(Number), actor: expect.any(String) });
  const ofServer = await node.events('actor=server/web/web1');
  expect(ofServer.every(({ actor }) => actor === 'server/web/web1')).toBe(true);
  expect(ofServer.some(({ state }) => state.startsWith('down,'))).toBe(true);
  const failures = await node.events('actor=server/*&type=check.failed');
  expect(failures.length).toBeGreaterThan(0);
  expect(failures.every(({ type }) => type === 'check.failed')).toBe(true);
  expect(await node.events('limit=2')).toHaveLength(2);
  const seqs = (await node.events('fromSeq=1&limit=3')).map(({ seq }) => seq);
  expect(seqs).toEqual([1, 2, 3]);
  expect(await node.events('to=2020-01-01T00:00:00Z')).toEqual([]);
  expect((await node.events('from=1h')).length).toBeGreaterThan(5);
  expect(await node.events('from=2100-01-01T00:00:00Z')).toEqual([]);
});

test.each(['limit=0', 'limit=many', 'limit=1001', 'from=yesterday', 'fromSeq=x', 'actor=a&actor=b', 'limt=5'])(
  'a question that is none is answered with 400: %s',
  async (query) => {
    const { node } = await startStage();
    const response = await fetch(`${node.api}/api/events?${query}`);
    expect(response.status).toBe(400);
    expect(await response.json()).toHaveProperty('message');
    // And the next question is answered.
    expect((await node.events('limit=1')).length).toBe(1);
  },
);

test('monitors may ask with HEAD', async () => {
  const { node } = await startStage();
  expect((await fetch(`${node.api}/healthz`, { method: 'HEAD' })).status).toBe(200);
});

test('the stream tells transitions as they happen', async () => {
  const { node, webs } = await startStage();
  const response = await fetch(`${node.api}/api/events/stream?actor=server/web/web1`);
  expect(response.headers.get('content-type')).toBe('text/event-stream');
  const seen: RecordView[] = [];
  const reading = (async () => {
    let text = '';
    for await (const chunk of response.body!) {
      text += Buffer.from(chunk as Uint8Array).toString();
      for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
        const data = /^data: (.*)$/m.exec(text.slice(0, end))?.[1];
        text = text.slice(end + 2);
        if (data === undefined) webs[0]!.healthy = false;
        else seen.push(JSON.parse(data) as RecordView);
        if (seen.at(-1)?.state.startsWith('down,')) return;
      }
    }
  })();
  await within('the fall of web1', reading);
  expect(seen.map(({ state }) => state.split(',')[0])).toEqual(['goingDown', 'down']);
  expect(seen.every(({ actor, type }) => actor === 'server/web/web1' && type === 'check.failed')).toBe(true);
});

test('commands', async () => {
  const { node, folder, file } = await startStage();
  const drain = { type: 'server.drain', pool: 'web', server: 'web1' };

  for (const token of ['', 'wrong', 'x'.repeat((await node.token()).length)]) {
    expect(await node.post(drain, token)).toMatchObject({ status: 401, body: { code: 'TOKEN_NEEDED' } });
  }
  expect((await fetch(`${node.api}/api/commands`, { method: 'POST' })).status).toBe(401);
  expect(stateOf(await node.state(), 'server/web/web1')).toBe('up,ready,warm');

  const onDisk = (type: string) => {
    const reader = new JournalReader(join(folder, 'node.db'));
    const count = [...reader.rows({ actor: 'server/web/web1', type })].length;
    reader.close();
    return count;
  };
  const results: [string, string][] = [
    ['drain', 'up,drain,warm'],
    ['maintenance', 'up,maintenance,warm'],
    ['ready', 'unchecked,ready,warm'],
  ];
  for (const [name] of results) {
    const { status, body } = await node.post({ ...drain, type: `server.${name}` });
    expect(status).toBe(200);
    expect(body).toMatchObject({ actor: 'server/web/web1', recorded: true });
    expect(String(body['after']).split(',')[1]).toBe(name);
    // On disk when it is answered: another program sees it.
    expect(onDisk(`operator.${name}`)).toBe(1);
  }
  await node.healthIs('web/web1', 'up');
  expect(await node.post({ ...drain, type: 'server.weight', weight: 7 })).toMatchObject({ status: 200 });
  expect(onDisk('operator.weight')).toBe(1);
  const { pools } = await node.state();
  expect(pools[0]!.servers[0]).toMatchObject({ name: 'web1', weight: 7 });

  writeFileSync(file, yamlOf({ api: 1, port: 1, servers: [] }));
  expect((await node.post({ type: 'reload' })).status).toBe(409);

  for (const bad of [
    null,
    [],
    {},
    { type: 'server.explode', pool: 'web', server: 'web1' },
    { type: 'server.drain', pool: 'web' },
    { ...drain, more: 1 },
    { ...drain, type: 'server.weight' },
    { ...drain, type: 'server.weight', weight: 257 },
    { ...drain, type: 'server.weight', weight: 1.5 },
  ]) {
    const { status, body } = await node.post(bad);
    expect(status, JSON.stringify(bad)).toBe(400);
    expect(body).toMatchObject({ code: 'USAGE', message: expect.any(String) });
    expect(body['message']).not.toBe('');
    expect(String(body['message'])).not.toMatch(/^: /);
  }
  const token = await node.token();
  const notJson = await fetch(`${node.api}/api/commands`, {
    method: 'POST',
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    body: '{',
  });
  expect(notJson.status).toBe(400);
  expect(await node.post({ ...drain, server: 'web9' })).toMatchObject({
    status: 409,
    body: { message: 'there is no server web/web9; there are web/web1, web/web2' },
  });
});

describe('tokens', () => {
  test('a token file that is empty lets nobody in', async () => {
    const folder = tempFolder();
    const api = await freePort();
    writeFile(folder, 'node.db.token', '\n');
    const file = writeFile(folder, 'node.yaml', yamlOf({ api, port: await freePort(), servers: ['web1 127.0.0.1:1'] }));
    const node = await RunningNode.start(file, api);
    const response = await fetch(`${node.api}/api/commands`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ type: 'server.drain', pool: 'web', server: 'web1' }),
    });
    expect(response.status).toBe(401);
  });

  test('on another address reading needs it too, but for /healthz', async () => {
    const folder = tempFolder();
    const api = await freePort();
    const text = yamlOf({ api, port: await freePort(), servers: ['web1 127.0.0.1:1'] }).replace(
      /api: .*/,
      `api: { listen: "0.0.0.0:${api}", token: open sesame }`,
    );
    const node = await RunningNode.start(writeFile(folder, 'node.yaml', text), api);
    expect((await fetch(`${node.api}/api/state`)).status).toBe(401);
    expect((await fetch(`${node.api}/metrics`)).status).toBe(401);
    expect((await fetch(`${node.api}/healthz`)).status).toBe(200);
    const allowed = await fetch(`${node.api}/api/state`, { headers: { authorization: 'Bearer open sesame' } });
    expect(allowed.status).toBe(200);
  });
});

test('SIGTERM ends the node while somebody reads the stream', async () => {
  const { node } = await startStage();
  const response = await fetch(`${node.api}/api/events/stream`);
  expect(response.status).toBe(200);
  const reading = response.text().catch(() => 'cut off');
  const exited = once(node.child, 'exit');
  node.child.kill('SIGTERM');
  const [status] = (await within('the end', exited)) as [number];
  expect(status).toBe(0);
  await reading;
});
