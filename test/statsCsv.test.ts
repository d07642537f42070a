/** `/stats;csv`, beside HAProxy's own. */
import { describe, expect, onTestFinished, test } from 'vitest';
import { Stats } from '../src/api/statsCsv.ts';
import { COUNTER, GAUGE } from '../src/proxy/counters.ts';
import { LATENCY } from '../src/proxy/histograms.ts';
import { startHaproxy } from './haproxy.ts';
import { get, startStage } from './nodeHelpers.ts';
import { has } from './packages.ts';
import { collect, StatsWorld } from './statsWorld.ts';

const config = (keys = 'rise: 2, fall: 4', more = '') => `
frontends:
  shop: { mode: http, bind: ["127.0.0.1:80"], maxConnections: 2, use: web }
  raw: { mode: tcp, bind: ["127.0.0.1:81"], use: queue }
backends:
  web:
    balance: leastConnections
    check: { type: http, ${keys} }
    ${more}
    servers:
      - { name: a, address: "127.0.0.1:8001", weight: 10, maxConnections: 5 }
      - { name: b, address: "127.0.0.1:8002", backup: true }
  queue:
    servers: [{ name: q, address: "[::1]:8003" }]
`;

const statsOf = (world: StatsWorld): Stats => {
  const stats = new Stats(world.node);
  onTestFinished(() => stats.stop());
  return stats;
};

/** As monitoring reads it: by the names of the columns. */
const parse = (text: string): Map<string, Record<string, string>> => {
  const [header = '', ...lines] = text.trimEnd().split('\n');
  expect(header.startsWith('# ')).toBe(true);
  const names = header.slice(2).split(',');
  const cellsOf = (line: string) =>
    [...line.matchAll(/("(?:[^"]|"")*"|[^,]*)(?:,|$)/g)].map(([, cell]) => cell!.replaceAll(/^"|"$/g, ''));
  return new Map(
    lines.map((line) => {
      const cells = cellsOf(line).slice(0, names.length);
      expect(line.endsWith(','), line).toBe(true);
      expect(cells, line).toHaveLength(names.length);
      const row = Object.fromEntries(names.map((name, index) => [name, cells[index]!]));
      return [`${row['pxname']}/${row['svname']}`, row];
    }),
  );
};

const rowsOf = async (stats: Stats) => parse((await collect(stats.csv())).join(''));
const statusOf = async (stats: Stats, row: string) => (await rowsOf(stats)).get(row)?.['status'];

test.skipIf(!has('haproxy'))(
  'the columns are HAProxy’s, in its order, and filled for the same kinds of rows',
  async () => {
    const haproxy = await startHaproxy(
      '',
      `  mode http
  stats enable
  stats uri /stats
  default_backend web
backend web
  mode http
  option httpchk GET /
  server a 127.0.0.1:1 check inter 50ms fall 1
  server b 127.0.0.1:1`,
    );
    const ask = async () => (await fetch(`http://127.0.0.1:${haproxy.port}/stats;csv`)).text();
    let text = await ask();
    while (parse(text).get('web/a')?.['status'] !== 'DOWN') text = await ask();
    const world = new StatsWorld(config());
    world.checked('web/a', false, 'L4CON', 'connection refused');
    const own = (await collect(statsOf(world).csv())).join('');
    expect(own.split('\n')[0]).toBe(text.split('\n')[0]);

    const theirs = parse(text);
    const ours = parse(own);
    // What they give, we give, but for what their own engines, caches and agents count.
    const foreign = /^(h1_|h2_|agent_|agg_|cache_|-$|wrew|safe_conn|need_conn|ssl_)/;
    const pairs = [
      ['front/FRONTEND', 'shop/FRONTEND'],
      ['web/a', 'web/a'],
      ['web/b', 'web/b'],
      ['web/BACKEND', 'web/BACKEND'],
    ] as const;
    // A limit of a backend is HAProxy's fullconn, which has no equal here.
    for (const [their, our] of pairs) {
      const missing = Object.entries(theirs.get(their)!)
        .filter(([name, value]) => value !== '' && name !== 'slim' && !foreign.test(name))
        .filter(([name]) => ours.get(our)![name] === '')
        .map(([name]) => name);
      expect(missing, our).toEqual([]);
    }
    // With a star while the next check is under way.
    const last = (value: string) => value.replace(/^\* /, '');
    for (const name of ['type', 'status', 'check_status', 'check_desc', 'check_health', 'pid', 'act', 'bck'])
      expect(ours.get('web/a')![name], name).toBe(last(theirs.get('web/a')![name]!));
  },
);

describe('status', () => {
  test('a server goes UP 3/4, 2/4, 1/4, DOWN, DOWN 1/2, UP, and health is one number', async () => {
    const world = new StatsWorld(config());
    const stats = statsOf(world);
    const seen: string[] = [];
    const look = async () => {
      const row = (await rowsOf(stats)).get('web/a')!;
      seen.push(`${row['status']} ${row['check_health']}`);
    };
    await look();
    for (const ok of [true, false, false, false, false, false, true, true]) {
      world.checked('web/a', ok);
      await look();
    }
    expect(seen).toEqual([
      // Not checked yet, as HAProxy begins: the first check decides.
      ...['UP 1/4 2', 'UP 5', 'UP 3/4 4', 'UP 2/4 3', 'UP 1/4 2', 'DOWN 0', 'DOWN 0', 'DOWN 1/2 1', 'UP 5'],
    ]);
  });

  test('the operator’s word: DRAIN, MAINT; a server without a check says so', async () => {
    const world = new StatsWorld(config());
    const stats = statsOf(world);
    world.checked('web/a', true);
    world.operator('web/a', 'drain');
    expect(await statusOf(stats, 'web/a')).toBe('DRAIN');
    world.checked('web/a', false);
    expect(await statusOf(stats, 'web/a')).toBe('DRAIN 3/4');
    world.operator('web/a', 'maintenance');
    expect(await statusOf(stats, 'web/a')).toBe('MAINT');
    const row = (await rowsOf(stats)).get('web/a')!;
    expect(row['check_status']).toBe('');
    expect(await statusOf(stats, 'queue/q')).toBe('no check');
    world.operator('queue/q', 'drain');
    expect(await statusOf(stats, 'queue/q')).toBe('DRAIN');
  });

  test('one that is to begin as down is DOWN until its first check', async () => {
    const stats = statsOf(new StatsWorld(config('rise: 2, fall: 4', 'initially: down')));
    expect(await statusOf(stats, 'web/a')).toBe('DOWN');
  });

  test('an outlier that is out of traffic is NOLB', async () => {
    const world = new StatsWorld(config('rise: 1, fall: 1', 'outliers: { maxEjected: 100% }'));
    const stats = statsOf(world);
    for (const server of ['web/a', 'web/b']) world.checked(server, true);
    world.system.send('pool/web', { type: 'outlier.suspected', server: 'a', why: {} } as { type: string });
    expect(await statusOf(stats, 'web/a')).toBe('NOLB');
  });

  test('a backend is DOWN when nobody works, and counts those that do', async () => {
    const world = new StatsWorld(config());
    const stats = statsOf(world);
    world.checked('web/a', true);
    world.checked('web/b', true);
    expect((await rowsOf(stats)).get('web/BACKEND')).toMatchObject({ status: 'UP', act: '1', bck: '1', weight: '10' });
    world.operator('web/a', 'maintenance');
    expect((await rowsOf(stats)).get('web/BACKEND')).toMatchObject({ status: 'UP', act: '0', bck: '1', weight: '1' });
    world.operator('web/b', 'maintenance');
    expect((await rowsOf(stats)).get('web/BACKEND')).toMatchObject({ status: 'DOWN', act: '0', bck: '0' });
  });

  test('a frontend is OPEN, FULL at its limit, and STOP when it doesn’t listen', async () => {
    const world = new StatsWorld(config());
    const stats = statsOf(world);
    expect(await statusOf(stats, 'shop/FRONTEND')).toBe('STOP');
    world.system.send('listener/shop/127.0.0.1:80', { type: 'listener.open' });
    world.system.send('listener/shop/127.0.0.1:80', { type: 'listener.opened' });
    expect(await statusOf(stats, 'shop/FRONTEND')).toBe('OPEN');
    const slot = world.slot('frontend/shop');
    for (let taken = 0; taken < 2; taken++) world.counters.take(slot, 2);
    expect((await rowsOf(stats)).get('shop/FRONTEND')).toMatchObject({
      status: 'FULL',
      scur: '2',
      slim: '2',
      smax: '2',
    });
  });
});

test('changes, failures and downtime are counted in seconds', async () => {
  const world = new StatsWorld(config());
  world.after(100);
  const stats = statsOf(world);
  const server = async () => (await rowsOf(stats)).get('web/a');
  expect(await server()).toMatchObject({ lastchg: '100', chkfail: '0', chkdown: '0', downtime: '0' });
  world.checked('web/a', true);
  world.checked('web/a', false);
  world.checked('web/a', false);
  expect(await server()).toMatchObject({ lastchg: '100', chkfail: '2', chkdown: '0' });
  for (let more = 0; more < 3; more++) world.checked('web/a', false);
  expect(await server()).toMatchObject({ lastchg: '0', chkfail: '4', chkdown: '1', downtime: '0' });
  world.after(7.5);
  expect(await server()).toMatchObject({ lastchg: '7', downtime: '7' });
  for (let more = 0; more < 2; more++) world.checked('web/a', true);
  world.after(60);
  expect(await server()).toMatchObject({ status: 'UP', lastchg: '60', chkdown: '1', downtime: '7' });
  expect((await rowsOf(stats)).get('queue/q')).toMatchObject({ chkfail: '', downtime: '' });
});

test('the last check is told as HAProxy does, quoted where it must be', async () => {
  const world = new StatsWorld(config());
  const stats = statsOf(world);
  expect((await rowsOf(stats)).get('web/a')).toMatchObject({ check_status: 'INI', check_desc: 'Initializing' });
  world.checked('web/a', false, 'L7STS', '503 Service Unavailable');
  expect((await rowsOf(stats)).get('web/a')).toMatchObject({
    check_status: 'L7STS',
    check_code: '503',
    check_duration: '3',
    check_desc: 'Layer7 wrong status',
    check_rise: '2',
    check_fall: '4',
    last_chk: '503 Service Unavailable',
  });
  world.checked('web/a', false, 'L4CON', 'refused, "really"');
  expect((await rowsOf(stats)).get('web/a')).toMatchObject({ last_chk: 'refused, ""really""', check_code: '' });
});

test('figures stand in their columns; what a pool doesn’t count is its servers’ sum', async () => {
  const world = new StatsWorld(config());
  const stats = statsOf(world);
  const { counters, histograms } = world;
  const [a, b, pool] = ['server/web/a', 'server/web/b', 'pool/web'].map((name) => world.slot(name));
  counters.add(a!, COUNTER.connectFailures, 2);
  counters.add(b!, COUNTER.connectFailures, 3);
  counters.add(a!, COUNTER.requests, 10);
  counters.add(pool!, COUNTER.requests, 12);
  counters.add(a!, COUNTER.bytesOut, 2 ** 40);
  counters.add(a!, COUNTER.status2xx, 9);
  counters.change(a!, GAUGE.idle, 1);
  counters.change(b!, GAUGE.queued, 1);
  histograms.observe(a!, LATENCY.response, 12_345);
  histograms.observe(a!, LATENCY.response, 2_655);
  const rows = await rowsOf(stats);
  expect(rows.get('web/a')).toMatchObject({
    ...{ econ: '2', req_tot: '10', bout: String(2 ** 40), hrsp_2xx: '9', srv_icur: '1', slim: '5' },
    ...{ rtime: '8', rtime_max: '12', ttime: '0', addr: '127.0.0.1:8001', mode: 'http', sid: '1' },
  });
  expect(rows.get('web/b')).toMatchObject({ econ: '3', qcur: '1', slim: '', act: '0', bck: '1', sid: '2' });
  expect(rows.get('web/BACKEND')).toMatchObject({ econ: '5', req_tot: '12', algo: 'leastconn', type: '1', sid: '0' });
  expect(rows.get('queue/q')).toMatchObject({ mode: 'tcp', hrsp_2xx: '', req_tot: '', addr: '[::1]:8003' });
  expect([...rows.values()].map(({ iid }) => iid)).toEqual(['1', '2', '3', '3', '3', '4', '4']);
});

test('rates are those of the last second, with their maximum, and the last session is remembered', async () => {
  const world = new StatsWorld(config());
  world.after(1);
  const stats = statsOf(world);
  const slot = world.slot('server/web/a');
  const second = (sessions: number) => {
    world.counters.add(slot, COUNTER.sessions, sessions);
    world.after(1);
    world.node.dataPlane.sampleRates(world.clock.monoUs() / 1000);
  };
  expect((await rowsOf(stats)).get('web/a')).toMatchObject({ rate: '0', rate_max: '0', lastsess: '-1' });
  second(40);
  expect((await rowsOf(stats)).get('web/a')).toMatchObject({ rate: '40', rate_max: '40', lastsess: '0', stot: '40' });
  second(5);
  second(0);
  expect((await rowsOf(stats)).get('web/a')).toMatchObject({ rate: '0', rate_max: '40', lastsess: '1', stot: '45' });
});

test('10,000 servers are written in many turns of the loop', async () => {
  const pools = Array.from({ length: 100 }, (_, pool) => {
    const servers = Array.from({ length: 100 }, (_server, index) => `{ name: s${index}, address: "127.0.0.1:1" }`);
    return `  p${pool}: { servers: [${servers.join(', ')}] }`;
  });
  const world = new StatsWorld(`backends:\n${pools.join('\n')}\n`);
  const parts = await collect(statsOf(world).csv());
  expect(parts.length).toBeGreaterThan(200);
  const lines = parts.join('').trimEnd().split('\n');
  expect(lines).toHaveLength(1 + 10_000 + 100);
  expect(lines.at(-2)).toMatch(/^p99,s99,/);
});

test('of a real node it needs no token on loopback, with or without further options', async () => {
  const { node, url } = await startStage();
  for (let count = 0; count < 6; count++) expect((await get(url)).status).toBe(200);
  for (const path of ['/stats;csv', '/stats;csv;norefresh']) {
    const response = await fetch(`${node.api}${path}`);
    expect(response.headers.get('content-type')).toBe('text/plain');
    const rows = parse(await response.text());
    expect(rows.get('shop/FRONTEND')).toMatchObject({ status: 'OPEN', hrsp_2xx: '6', req_tot: '6', mode: 'http' });
    expect(Number(rows.get('shop/FRONTEND')!['bout'])).toBeGreaterThan(6 * 50);
    const stot = ['web1', 'web2'].map((name) => Number(rows.get(`web/${name}`)!['stot']));
    expect(stot[0]! + stot[1]!).toBe(6);
    expect(rows.get('web/BACKEND')).toMatchObject({ status: 'UP', act: '2', hrsp_2xx: '6' });
  }
  expect((await fetch(`${node.api}/stats;json`)).status).toBe(404);
  expect((await fetch(`${node.api}/stats;csv`, { method: 'HEAD' })).status).toBe(200);
});
