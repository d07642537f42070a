import { describe, expect, test } from 'vitest';
import { metricsOf } from '../src/api/metrics.ts';
import { MAX_FINE_SERVERS } from '../src/api/trafficMetrics.ts';
import { COUNTER, GAUGE } from '../src/proxy/counters.ts';
import { LATENCY } from '../src/proxy/histograms.ts';
import { collect, StatsWorld } from './statsWorld.ts';
import { Family, labelText, withLabel } from '../src/api/exposition.ts';

test('a family is its help, its type and its samples, as Prometheus’ text format has them', () => {
  const family = new Family('server_weight', 'gauge', 'Weight, slow start included.');
  family.add(labelText({ pool: 'web', server: 'web1' }), 2.5);
  family.add('', 1);
  expect(Buffer.concat(family.parts()).toString()).toBe(
    [
      '# HELP understudy_server_weight Weight, slow start included.',
      '# TYPE understudy_server_weight gauge',
      'understudy_server_weight{pool="web",server="web1"} 2.5',
      'understudy_server_weight 1',
      '',
    ].join('\n'),
  );
});

test('quotes, backslashes and line ends in a value are escaped', () => {
  expect(labelText({ node: 'a"b\\c\nd' })).toBe('{node="a\\"b\\\\c\\nd"}');
});

test('a label can be added behind others, or alone', () => {
  expect(withLabel(labelText({ pool: 'web' }), 'state', 'up')).toBe('{pool="web",state="up"}');
  expect(withLabel('', 'le', '+Inf')).toBe('{le="+Inf"}');
});

test('a family without samples says nothing', () => {
  expect(new Family('server_weight', 'gauge', 'Weight.').parts()).toEqual([]);
});

test('one with more than fits a part loses nothing', () => {
  const family = new Family('server_weight', 'gauge', 'Weight.');
  for (let server = 0; server < 5_000; server++) family.add(labelText({ server: String(server) }), server);
  const lines = Buffer.concat(family.parts()).toString().trimEnd().split('\n');
  expect(lines).toHaveLength(2 + 5_000);
  expect(lines.at(-1)).toBe('understudy_server_weight{server="4999"} 4999');
});

const textOf = async (world: StatsWorld, onlyNode = false): Promise<string> =>
  Buffer.concat(await collect(metricsOf(world.node, onlyNode))).toString();

const valuesOf = (text: string): Map<string, number> =>
  new Map(
    text
      .trimEnd()
      .split('\n')
      .filter((line) => !line.startsWith('#'))
      .map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.slice(line.lastIndexOf(' ') + 1))]),
  );

const shop = (servers: string) => `
frontends:
  shop: { mode: http, bind: ["127.0.0.1:80"], use: web }
backends:
  web: { outliers: { maxEjected: 50% }, servers: [${servers}] }
`;
const server = (name: string) => `{ name: ${name}, address: "127.0.0.1:1" }`;

describe('metrics of the data plane', () => {
  test('what frontends, pools and servers count has their labels', async () => {
    const world = new StatsWorld(shop(`${server('a')}, ${server('b')}`));
    const [frontend, pool, a] = ['frontend/shop', 'pool/web', 'server/web/a'].map((name) => world.slot(name));
    world.counters.add(frontend!, COUNTER.deniedRequests, 3);
    world.counters.add(frontend!, COUNTER.compressionIn, 1_000);
    world.counters.add(pool!, COUNTER.queueTimeouts, 2);
    world.counters.add(a!, COUNTER.bytesIn, 7);
    world.counters.add(a!, COUNTER.statusOther);
    world.counters.change(a!, GAUGE.idle, 1);
    const values = valuesOf(await textOf(world));
    expect(values.get('understudy_frontend_denied_requests_total{frontend="shop"}')).toBe(3);
    expect(values.get('understudy_frontend_compression_input_bytes_total{frontend="shop"}')).toBe(1_000);
    expect(values.get('understudy_pool_queue_timeouts_total{pool="web"}')).toBe(2);
    expect(values.get('understudy_server_received_bytes_total{pool="web",server="a"}')).toBe(7);
    expect(values.get('understudy_server_http_responses_total{pool="web",server="a",status="other"}')).toBe(1);
    expect(values.get('understudy_server_idle_connections{pool="web",server="a"}')).toBe(1);
    expect(values.get('understudy_server_idle_connections{pool="web",server="b"}')).toBe(0);
    expect(values.get('understudy_pool_servers{pool="web"}')).toBe(2);
    expect(values.get('understudy_pool_usable_servers{pool="web"}')).toBe(2);
  });

  test('an outlier that is out of traffic is counted', async () => {
    const world = new StatsWorld(shop(`${server('a')}, ${server('b')}`));
    world.system.send('pool/web', { type: 'outlier.suspected', server: 'a', why: {} } as { type: string });
    world.ejections.set('observer/web/a', 3);
    const values = valuesOf(await textOf(world));
    expect(values.get('understudy_pool_ejected_servers{pool="web"}')).toBe(1);
    expect(values.get('understudy_pool_usable_servers{pool="web"}')).toBe(1);
    expect(values.get('understudy_server_ejections_total{pool="web",server="a"}')).toBe(3);
  });

  test('latencies are histograms in seconds: cumulative, up to +Inf, which is the count', async () => {
    const world = new StatsWorld(shop(server('a')));
    for (const us of [100, 200, 300, 5_000, 90_000_000])
      world.histograms.observe(world.slot('frontend/shop'), LATENCY.total, us);
    const text = await textOf(world);
    const values = valuesOf(text);
    const at = (le: string) => values.get(`understudy_frontend_duration_seconds_bucket{frontend="shop",le="${le}"}`);
    expect(['0.000128', '0.000256', '0.000512', '0.004096', '0.008192', '16.777216', '+Inf'].map(at)).toEqual([
      1, 2, 3, 3, 4, 4, 5,
    ]);
    expect(values.get('understudy_frontend_duration_seconds_count{frontend="shop"}')).toBe(5);
    expect(values.get('understudy_frontend_duration_seconds_sum{frontend="shop"}')).toBeCloseTo(90.0056);
    const bounds = [...text.matchAll(/_duration_seconds_bucket\{frontend="shop",le="([^"]+)"/g)].map(([, le]) => le);
    expect(bounds).toHaveLength(19);
  });

  test('beyond a number of servers theirs are sum and count alone', async () => {
    const all = Array.from({ length: MAX_FINE_SERVERS + 1 }, (_, index) => server(`s${index}`));
    const world = new StatsWorld(
      `backends:\n  one: { servers: [${all.slice(0, 500).join()}] }\n  two: { servers: [${all.slice(500).join()}] }\n`,
    );
    world.histograms.observe(world.slot('server/one/s0'), LATENCY.total, 200);
    const lines = (await textOf(world)).split('\n').filter((line) => line.startsWith('understudy_server_duration'));
    expect(lines).toEqual([
      'understudy_server_duration_seconds_bucket{pool="one",server="s0",le="+Inf"} 1',
      'understudy_server_duration_seconds_sum{pool="one",server="s0"} 0.0002',
      'understudy_server_duration_seconds_count{pool="one",server="s0"} 1',
    ]);
  });

  test('each family once, named by Prometheus’ rules, with help and type before its samples', async () => {
    const world = new StatsWorld(shop(server('a')));
    world.histograms.observe(world.slot('pool/web'), LATENCY.queue, 1);
    const families = (await textOf(world)).split(/^(?=# HELP )/m).map((text) => text.trimEnd().split('\n'));
    const named = families.map(([help = '', type = '', ...samples]) => {
      expect(help).toMatch(/^# HELP understudy_[a-z0-9_]+ [A-Z1].*\.$/);
      const name = help.split(' ')[2]!;
      const kind = type.slice(`# TYPE ${name} `.length);
      expect(['counter', 'gauge', 'histogram'], type).toContain(kind);
      expect(type).toBe(`# TYPE ${name} ${kind}`);
      expect(name.endsWith('_total'), name).toBe(kind === 'counter');
      // Base units, and no others.
      expect(name).not.toMatch(/_(ms|milliseconds|us|kib|kb|minutes|percent)(_|$)/);
      const suffix = kind === 'histogram' ? '(_bucket|_sum|_count)' : '';
      expect(samples.length, name).toBeGreaterThan(0);
      for (const sample of samples) expect(sample).toMatch(new RegExp(`^${name}${suffix}(\\{.*\\})? [0-9.e+-]+$`));
      return name;
    });
    expect(named.length).toBeGreaterThan(60);
    expect(new Set(named).size).toBe(named.length);
  });

  test('of the node alone there is nothing of servers, pools and frontends', async () => {
    const text = await textOf(new StatsWorld(shop(server('a'))), true);
    expect(text).toContain('understudy_info');
    expect(valuesOf(text).get('understudy_access_log_dropped_total')).toBe(1);
    expect(text).not.toMatch(/understudy_(server|pool|frontend|worker)_/);
  });

  test('threads of the data plane have their state', async () => {
    const world = new StatsWorld(`workers: 2\n${shop(server('a'))}`);
    world.system.send('worker/1', { type: 'worker.ready' });
    const values = valuesOf(await textOf(world));
    expect(values.get('understudy_worker_state{worker="0",state="starting"}')).toBe(1);
    expect(values.get('understudy_worker_state{worker="1",state="ready"}')).toBe(1);
  });
});
