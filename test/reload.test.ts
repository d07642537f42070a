/** A reload while requests run: nothing fails, what isn't changed isn't touched, and the journal tells what was. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { StateView } from '../src/api/state.ts';
import { CHECK, get, startStage, startTraffic, startWeb, stateOf, within, yamlOf } from './nodeHelpers.ts';
import type { Plan, Stage } from './nodeHelpers.ts';
import { has } from './packages.ts';
import { freePort } from './ports.ts';

type Reloaded = Record<'added' | 'removed' | 'changed' | 'replaced' | 'needRestart', string[]>;

const reload = async ({ node, file, plan }: Stage, change: Partial<Plan>): Promise<Reloaded> => {
  writeFileSync(file, yamlOf({ ...plan, ...change }));
  const { status, body } = await node.post({ type: 'reload' });
  expect(status, JSON.stringify(body)).toBe(200);
  return body as Reloaded;
};

const nothing: Reloaded = { added: [], removed: [], changed: [], replaced: [], needRestart: [] };

const sessionsOf = async ({ node }: Stage, name: string): Promise<number> => {
  const { pools } = await node.state();
  return pools[0]!.servers.find((server) => server.name === name)?.traffic?.sessions ?? 0;
};

test('servers are added, changed and removed under load', async () => {
  const stage = await startStage();
  const { node, plan, url } = stage;
  const traffic = startTraffic(url);
  await traffic.more(50);
  const before = (await node.state()).actors.find(({ id }) => id === 'server/web/web1')!;
  const web3 = await startWeb('web3');

  const added = await reload(stage, { servers: [...plan.servers, `web3 ${web3.address}`] });
  expect(added).toMatchObject({ ...nothing, added: ['checker/web/web3', 'server/web/web3'] });
  await node.healthIs('web/web3', 'up');
  await traffic.more(50);
  expect(web3.requests).toBeGreaterThan(0);

  const changed = await reload(stage, {
    servers: [`${plan.servers[0]} weight: 5`, plan.servers[1]!, `web3 ${web3.address}`],
  });
  expect(changed).toMatchObject({ ...nothing, changed: ['server/web/web1'] });
  const [configured] = await node.events('type=node.configured&limit=1');
  expect(configured!.event).toMatchObject({ changed: ['server/web/web1'], added: [], removed: [] });
  expect((await node.state()).pools[0]!.servers[0]!.weight).toBe(5);
  // Its state is that of before, since then.
  expect((await node.state()).actors.find(({ id }) => id === 'server/web/web1')).toMatchObject({
    state: before.state,
    since: before.since,
  });

  const counted = await sessionsOf(stage, 'web1');
  expect(counted).toBeGreaterThan(0);
  const removed = await reload(stage, { servers: [`${plan.servers[0]} weight: 5`, `web3 ${web3.address}`] });
  expect(removed).toMatchObject({ ...nothing, removed: ['checker/web/web2', 'server/web/web2'] });
  await traffic.more(50);
  expect(await sessionsOf(stage, 'web1')).toBeGreaterThanOrEqual(counted);
  expect(stateOf(await node.state(), 'server/web/web2')).toBe('absent');

  const moved = await startWeb('moved');
  const replaced = await reload(stage, { servers: [`web1 ${moved.address}`, `web3 ${web3.address}`] });
  expect(replaced.replaced).toEqual(['checker/web/web1', 'server/web/web1']);
  await node.healthIs('web/web1', 'up');
  await traffic.more(50);
  expect(moved.requests).toBeGreaterThan(0);
  await traffic.stop();
  expect(traffic.failures).toEqual([]);
});

test('backends and frontends come and go', async () => {
  const stage = await startStage();
  const { node, file, plan, url } = stage;
  const traffic = startTraffic(url);
  const other = await startWeb('other');
  const port = await freePort();
  const text = yamlOf(plan)
    .replace('backends:\n', `backends:\n  other:\n    servers: [{ name: one, address: "${other.address}" }]\n`)
    .replace('frontends:\n', `frontends:\n  more: { mode: http, bind: ["127.0.0.1:${port}"], use: other }\n`);
  writeFileSync(file, text);
  const { body } = await node.post({ type: 'reload' });
  expect((body as Reloaded).added.toSorted()).toEqual([
    `listener/more/127.0.0.1:${port}`,
    'pool/other',
    'server/other/one',
  ]);
  await node.until('the listener', (state) => stateOf(state, `listener/more/127.0.0.1:${port}`) === 'open');
  expect(await get(`http://127.0.0.1:${port}/`)).toEqual({ status: 200, body: 'other' });

  const removed = await reload(stage, {});
  expect(removed.removed).toHaveLength(3);
  await node.until(
    'the end of the listener',
    (state) => stateOf(state, `listener/more/127.0.0.1:${port}`) === 'absent',
  );
  await expect(get(`http://127.0.0.1:${port}/`)).rejects.toThrow(/ECONNREFUSED/);
  expect((await node.state()).pools.map(({ name }) => name)).toEqual(['web']);
  await traffic.more(20);
  await traffic.stop();
  expect(traffic.failures).toEqual([]);
});

test('a frontend that comes back while its last sessions still drain listens again', async () => {
  let release = () => {};
  const held = new Promise<void>((done) => (release = done));
  const stage = await startStage({ frontend: ['drain: 20s'] }, (request, response) => {
    if (request.url === '/slow') void held.then(() => response.end('slow'));
    else response.end('fast');
  });
  onTestFinished(release);
  const { node, file, plan, url, webs } = stage;
  const slow = get(`${url}slow`);
  while (webs.every(({ requests }) => requests === 0)) await get(url);
  const other = yamlOf({ ...plan, port: await freePort() });
  writeFileSync(file, other);
  expect((await node.post({ type: 'reload' })).status).toBe(200);
  await node.until('the drain', (state) => stateOf(state, `listener/shop/127.0.0.1:${plan.port}`) !== 'open');
  await reload(stage, {});
  const answered = await get(url).catch(String);
  release();
  expect(await slow).toMatchObject({ status: 200 });
  expect(answered).toMatchObject({ status: 200, body: 'fast' });
  await node.until('the listener', (state) => stateOf(state, `listener/shop/127.0.0.1:${plan.port}`) === 'open');
  expect(await get(url)).toMatchObject({ status: 200 });
  expect(node.log.filter(({ msg }) => msg === 'a fault that must not happen')).toEqual([]);
});

describe('settings', () => {
  test('of a check: the new ones are used, and the journal names the checkers', async () => {
    const stage = await startStage();
    const { webs } = stage;
    const faster = await reload(stage, { backend: [`check: ${CHECK.replace('50ms', '40ms')}`] });
    expect(faster).toMatchObject({ ...nothing, changed: ['checker/web/web1', 'checker/web/web2'] });
    const fall = await reload(stage, { backend: [`check: ${CHECK.replace('fall: 2', 'fall: 1')}`] });
    expect(fall.changed).toEqual(expect.arrayContaining(['server/web/web1', 'server/web/web2']));
    const path = await reload(stage, { backend: [`check: ${CHECK.replace('/healthz', '/other')}`] });
    // Checks of another path count as requests of these servers.
    for (const { server, requests } of webs) if (requests === 0) await within('a check', once(server, 'request'));
    // What is checked was changed, and the answer says so.
    expect(path.changed).toEqual(expect.arrayContaining(['checker/web/web1', 'checker/web/web2']));
  });

  test('check added and taken away', async () => {
    const stage = await startStage();
    expect(await reload(stage, { backend: ['balance: first'] })).toMatchObject({
      removed: ['checker/web/web1', 'checker/web/web2'],
    });
    expect((await get(stage.url)).status).toBe(200);
    expect(await reload(stage, {})).toMatchObject({ added: ['checker/web/web1', 'checker/web/web2'] });
    await stage.node.healthIs('web/web1', 'up');
  });

  test('a server that the file disables is in maintenance from then on', async () => {
    const stage = await startStage();
    await reload(stage, { servers: [`${stage.plan.servers[0]} disabled: true`, stage.plan.servers[1]!] });
    expect(stateOf(await stage.node.state(), 'server/web/web1')).toMatch(/,maintenance,/);
  });

  test('workers, more and fewer, under load', async () => {
    const stage = await startStage();
    const traffic = startTraffic(stage.url);
    await traffic.more(20);
    expect(await reload(stage, { top: ['workers: 3'] })).toMatchObject({ ...nothing, added: ['worker/1', 'worker/2'] });
    await stage.node.until('two workers more', (state) => stateOf(state, 'worker/2') === 'ready');
    await traffic.more(100);
    expect(await reload(stage, { top: ['workers: 1'] })).toMatchObject({
      ...nothing,
      removed: ['worker/1', 'worker/2'],
    });
    await traffic.more(100);
    await traffic.stop();
    await stage.node.until('one worker', (state) => stateOf(state, 'worker/2') === 'absent');
    expect(traffic.failures).toEqual([]);
  });

  test('a worker that comes back while its last session still drains', async () => {
    const stage = await startStage({ top: ['workers: 2'] });
    const sockets = Array.from({ length: 16 }, () => connect(stage.plan.port, '127.0.0.1').on('error', () => {}));
    onTestFinished(() => {
      for (const socket of sockets) socket.destroy();
    });
    for (const socket of sockets) {
      socket.write('GET / HTTP/1.1\r\nhost: a\r\n');
      if (socket.connecting) await within('a connection', once(socket, 'connect'));
    }
    await reload(stage, { top: ['workers: 1'] });
    await reload(stage, { top: ['workers: 2'] });
    for (const socket of sockets) socket.destroy();
    await stage.node.until('both workers', (state) =>
      ['worker/0', 'worker/1'].every((id) => stateOf(state, id) === 'ready'),
    );
    expect(stage.node.log.filter(({ msg }) => msg === 'a fault that must not happen')).toEqual([]);
  });

  test('what takes a restart is named', async () => {
    const stage = await startStage();
    expect(await reload(stage, { api: await freePort() })).toMatchObject({ ...nothing, needRestart: ['api'] });
    expect((await stage.node.state()).node.status).toBe('ok');
  });
});

describe('what is refused leaves everything as it was', () => {
  test('an invalid file, by command and by SIGHUP', async () => {
    const { node, file, url } = await startStage();
    const before = await node.state();
    writeFileSync(file, `${readFileSync(file, 'utf8')}wrokers: 2\n`);
    const { status, body } = await node.post({ type: 'reload' });
    expect(status).toBe(409);
    expect(body).toMatchObject({ code: 'CONFIG_INVALID', message: expect.stringContaining('did you mean workers?') });
    node.child.kill('SIGHUP');
    expect((await node.logged(/nothing was changed/)).msg).toContain('did you mean workers?');
    writeFileSync(file, 'node: "');
    node.child.kill('SIGHUP');
    await node.logged(/Missing closing/);
    expect(await node.events('type=node.configured')).toEqual([]);
    const after = await node.state();
    const steady = ({ actors }: StateView) =>
      actors.filter(({ machine }) => machine !== 'healthChecker').map(({ id, state, since }) => [id, state, since]);
    expect(steady(after)).toEqual(steady(before));
    expect((await get(url)).status).toBe(200);
  });

  test('a port that another program has', async () => {
    const stage = await startStage();
    const other = await startWeb('other');
    writeFileSync(stage.file, yamlOf({ ...stage.plan, port: other.port, servers: [stage.plan.servers[0]!] }));
    const { status, body } = await stage.node.post({ type: 'reload' });
    expect(status).toBe(503);
    expect(body).toMatchObject({ code: 'ADDRESS_IN_USE' });
    expect(stateOf(await stage.node.state(), 'server/web/web2')).toMatch(/^up/);
    expect((await get(stage.url)).status).toBe(200);
  });
});

test.skipIf(!has('openssl'))('another certificate of a bind is served from then on', async () => {
  const stage = await startStage();
  const { node, file, folder, plan } = stage;
  const make = (name: string) =>
    execFileSync(
      'sh',
      [
        '-c',
        `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=${name} -keyout k -out c && cat c k > ${name}.pem`,
      ],
      { cwd: folder, stdio: 'pipe' },
    );
  make('old');
  make('new');
  const port = await freePort();
  const textOf = (name: string) =>
    yamlOf(plan).replace(
      'frontends:\n',
      `frontends:\n  safe: { mode: http, bind: [{ address: "127.0.0.1:${port}", tls: { certificates: [./${name}.pem] } }], use: web }\n`,
    );
  const served = async () => {
    const socket = connectTls({ port, host: '127.0.0.1', rejectUnauthorized: false });
    await within('the handshake', once(socket, 'secureConnect'));
    const { subject } = socket.getPeerCertificate();
    socket.destroy();
    return subject.CN;
  };
  writeFileSync(file, textOf('old'));
  expect((await node.post({ type: 'reload' })).status).toBe(200);
  await node.until('the listener', (state) => stateOf(state, `listener/safe/127.0.0.1:${port}`) === 'open');
  expect(await served()).toBe('old');
  writeFileSync(file, textOf('new'));
  const { status, body } = await node.post({ type: 'reload' });
  expect(status, JSON.stringify(body)).toBe(200);
  await node.until('the listener', (state) => stateOf(state, `listener/safe/127.0.0.1:${port}`) === 'open');
  expect(await served()).toBe('new');

  // Renewed in the same file, as certbot does it.
  make('new');
  execFileSync('cp', ['old.pem', 'new.pem'], { cwd: folder });
  expect((await node.post({ type: 'reload' })).status).toBe(200);
  expect(await served()).toBe('old');
});

test('SIGHUP reloads, and the log says what changed', async () => {
  const { node, file, plan } = await startStage();
  writeFileSync(file, yamlOf({ ...plan, servers: [plan.servers[0]!] }));
  node.child.kill('SIGHUP');
  expect(await node.logged(/configuration reloaded from/)).toMatchObject({
    removed: ['checker/web/web2', 'server/web/web2'],
  });
});
