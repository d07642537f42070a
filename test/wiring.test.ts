/** From a configuration to its actors, and to what the data plane has to know. */
import { describe, expect, test } from 'vitest';
import { machines } from '../machines/index.ts';
import { loadConfig } from '../src/config/load.ts';
import type { Config } from '../src/config/schema.ts';
import { actorsOf, listenersOf, modelOf } from '../src/wiring.ts';
import type { ActorSpec } from '../src/wiring.ts';
import { healthy, Scenario } from './transcript.ts';

const configOf = (text: string): Config => {
  const loaded = loadConfig(text, {}, '/etc/understudy');
  if ('problems' in loaded) throw new Error(JSON.stringify(loaded.problems));
  return loaded.config;
};

const SHOP = `
node: lb1
workers: 2
frontends:
  shop:
    mode: http
    bind: ["10.9.0.100:80", "[::1]:80"]
    drain: 12s
    use: web
backends:
  web:
    check: { type: http, path: /healthz, interval: 2s, fastInterval: 500ms, timeout: 1s, rise: 2, fall: 3, jitter: 0.1 }
    slowStart: 10s
    onMarkedDown: shutdownSessions
    quorum: 2
    hysteresis: 1
    servers:
      - { name: web1, address: "10.9.0.3:80", weight: 10 }
      - { name: web2, address: "10.9.0.4:80", backup: true, disabled: true }
  static:
    servers:
      - { name: files, address: "10.9.0.5:80" }
`;

const shop = () => actorsOf(configOf(SHOP));
const specOf = (specs: ActorSpec[], id: string): ActorSpec => {
  const spec = specs.find((other) => other.id === id);
  if (!spec) throw new Error(`no ${id} among ${specs.map((other) => other.id).join(', ')}`);
  return spec;
};

/** Starts what a configuration asks for, in its order. */
const startAll = (
  specs: ActorSpec[],
  afterEach: (spec: ActorSpec, scenario: Scenario) => void = () => {},
): Scenario => {
  const scenario = new Scenario();
  for (const spec of specs) {
    scenario.system.start(spec.id, spec.machine, spec.input);
    afterEach(spec, scenario);
  }
  return scenario;
};

describe('the actors of a configuration', () => {
  test('there is one for each pool, server, checker, bound address and worker', () => {
    expect(
      shop()
        .map(({ id }) => id)
        .sort(),
    ).toEqual([
      'checker/web/web1',
      'checker/web/web2',
      'listener/shop/10.9.0.100:80',
      'listener/shop/[::1]:80',
      'pool/static',
      'pool/web',
      'server/static/files',
      'server/web/web1',
      'server/web/web2',
      'worker/0',
      'worker/1',
    ]);
  });

  test('each names a machine of the catalogue', () => {
    for (const { machine } of shop()) expect(Object.keys(machines)).toContain(machine);
  });

  test('servers, checkers, pools and listeners get what the file says of them', () => {
    const specs = shop();
    expect(specOf(specs, 'pool/web').input).toEqual({
      name: 'web',
      settings: { allBackups: false, quorum: 2, hysteresis: 1 },
    });
    expect(specOf(specs, 'server/web/web1').input).toEqual({
      pool: 'web',
      name: 'web1',
      settings: {
        rise: 2,
        fall: 3,
        checked: true,
        initially: 'unchecked',
        weight: 10,
        backup: false,
        slowStartMs: 10_000,
        shutdownSessions: true,
      },
    });
    expect(specOf(specs, 'server/web/web2').input).toMatchObject({ settings: { weight: 1, backup: true } });
    expect(specOf(specs, 'checker/web/web1').input).toMatchObject({
      pool: 'web',
      server: 'web1',
      settings: { intervalMs: 2000, fastIntervalMs: 500, downIntervalMs: 2000, timeoutMs: 1000, jitter: 0.1 },
    });
    expect(specOf(specs, 'listener/shop/[::1]:80').input).toEqual({
      frontend: 'shop',
      address: '[::1]:80',
      retryMs: 1000,
      drainMs: 12_000,
    });
  });

  test('a server of a backend without a check has no checker and is not checked', () => {
    const specs = shop();
    expect(specs.some(({ id }) => id === 'checker/static/files')).toBe(false);
    expect(specOf(specs, 'server/static/files').input).toMatchObject({ settings: { checked: false } });
  });

  test('another address is another server; another weight is not', () => {
    const before = shop();
    const moved = actorsOf(configOf(SHOP.replace('10.9.0.3:80', '10.9.0.33:80').replace('weight: 10', 'weight: 11')));
    const identities = (specs: ActorSpec[]) => new Map(specs.map(({ id, identity }) => [id, identity]));
    const changed = [...identities(moved)].filter(([id, identity]) => identities(before).get(id) !== identity);
    expect(changed.map(([id]) => id).sort()).toEqual(['checker/web/web1', 'server/web/web1']);
    const heavier = actorsOf(configOf(SHOP.replace('weight: 10', 'weight: 11')));
    expect(identities(heavier)).toEqual(identities(before));
  });

  test('a configuration gives the same actors each time', () => {
    expect(shop()).toEqual(shop());
  });
});

describe('the start', () => {
  test('whoever is told something is there before whoever tells: nothing is undeliverable', () => {
    const scenario = startAll(shop());
    expect(scenario.system.counters.undeliverable).toBe(0);
    expect(scenario.faults).toEqual([]);
  });

  test('nor later, with checks, drains and maintenance of servers with and without a check', () => {
    const scenario = startAll(shop());
    scenario.play({ do: 'wait', ms: 5000 });
    for (const server of ['server/web/web1', 'server/static/files']) {
      for (const type of ['operator.drain', 'operator.maintenance', 'operator.ready']) {
        scenario.system.send(server, { type });
      }
    }
    scenario.play({ do: 'wait', ms: 5000 });
    expect(scenario.system.counters.undeliverable).toBe(0);
  });

  test('a server that is put into maintenance as soon as it has started is never probed', () => {
    const scenario = startAll(shop(), (spec, started) => {
      if (spec.id === 'server/web/web2') started.system.send(spec.id, { type: 'operator.maintenance' });
    });
    scenario.play({ do: 'wait', ms: 10_000 });
    expect(scenario.probesOf('checker/web/web2')).toEqual([]);
    expect(scenario.stateOf('server/web/web2')).toMatch(/^unchecked,maintenance/);
    expect(scenario.probesOf('checker/web/web1').length).toBeGreaterThan(3);
  });

  test('first checks come 5,000 a second at most, and never later than an interval', () => {
    const servers = Array.from({ length: 900 }, (_, index) => `{ name: s${index}, address: "10.0.0.1:${index + 1}" }`);
    const specs = actorsOf(
      configOf(`
backends:
  many: { check: { type: tcp, interval: 100ms, jitter: 0 }, servers: [${servers.join(', ')}] }
`),
    );
    const delays = specs.flatMap((spec) => (spec.machine === 'healthChecker' ? [spec.input.startDelayMs] : []));
    expect(delays[0]).toBe(0);
    expect(delays[1]).toBeCloseTo(0.2);
    expect(delays[400]).toBeCloseTo(80);
    expect(Math.max(...delays)).toBe(100);
    expect(delays).toEqual(delays.toSorted((a, b) => a - b));
  });

  test('a pool serves within its first round of checks', () => {
    const scenario = startAll(actorsOf(configOf(SHOP.replace('quorum: 2', 'quorum: 1').replace('hysteresis: 1', ''))));
    scenario.play(healthy('checker/web/web1', 2), { do: 'wait', ms: 5 });
    expect(scenario.published('web')).toEqual({ web1: 1000 });
    expect(scenario.published('static')).toEqual({ files: 100 });
  });

  test('checkers of one interval are spread over its jitter, on each node in another way', () => {
    const phases = (specs: ActorSpec[]) =>
      specs.flatMap((spec) => (spec.machine === 'healthChecker' ? [spec.input.phase] : []));
    const here = phases(shop());
    const there = phases(actorsOf(configOf(SHOP.replace('node: lb1', 'node: lb2'))));
    expect(new Set([...here, ...there]).size).toBe(4);
    for (const phase of here) expect(phase >= 0 && phase < 1).toBe(true);
  });
});

describe('the model of the data plane', () => {
  const rulesFor = (when: string) => {
    const config = configOf(`
frontends:
  shop: { mode: http, bind: ["127.0.0.1:8080"], use: web, rules: [{ when: ${when}, use: api }] }
backends:
  web: { servers: [{ name: a, address: "10.0.0.1:80" }] }
  api: { servers: [{ name: a, address: "10.0.0.2:80" }] }
`);
    const rule = modelOf(config, () => 0).frontends[0]!.rules[0]!;
    return {
      host: (host: string) => new RegExp(rule.host!).test(host),
      path: (path: string) => new RegExp(rule.path!).test(path),
      rule,
    };
  };

  test('a host matches itself and nothing around it', () => {
    const { host, rule } = rulesFor('{ host: api.example.com }');
    expect(rule).toMatchObject({ path: null, use: 'api' });
    expect(host('api.example.com')).toBe(true);
    const others = ['apiXexample.com', 'api.example.com.evil.org', 'my-api.example.com', 'example.com'];
    expect(others.filter(host)).toEqual([]);
  });

  test('hosts are written in any case: the engine gives them in lower case', () => {
    expect(rulesFor('{ host: API.Example.COM }').host('api.example.com')).toBe(true);
  });

  test('*.example.com matches any name below, and not example.com itself', () => {
    const { host } = rulesFor('{ host: "*.example.com" }');
    const below = ['a.example.com', 'a.b.example.com'];
    const others = ['example.com', '.example.com', 'aexample.com', 'a.example.com.org'];
    expect([...below, ...others].filter(host)).toEqual(below);
  });

  test('of several hosts or paths one is enough, each whole', () => {
    const { host, path } = rulesFor('{ host: [a.org, b.org], path: [/x, "/y/**"] }');
    expect(['a.org', 'b.org', 'a.orgb.org', 'xa.org', 'b.orgx'].map(host)).toEqual([true, true, false, false, false]);
    expect(['/x', '/y/z', '/xx', '/a/x', '/z/y/z'].map(path)).toEqual([true, true, false, false, false]);
  });

  test('* in a path stays within a segment, ** goes across', () => {
    const one = rulesFor('{ path: "/api/*/items" }').path;
    expect(['/api/v1/items', '/api/items', '/api/v1/x/items'].map(one)).toEqual([true, false, false]);
    const all = rulesFor('{ path: "/admin/**" }').path;
    expect(['/admin/', '/admin/a', '/admin/a/b.c', '/admin/.git/x', '/administrator'].map(all)).toEqual([
      true,
      true,
      true,
      true,
      false,
    ]);
  });

  test('a path without stars is that path: dots and plus signs stand for themselves', () => {
    const { path } = rulesFor('{ path: "/a+b/c.html" }');
    expect(['/a+b/c.html', '/aab/c.html', '/a+b/cxhtml'].map(path)).toEqual([true, false, false]);
  });

  test('frontends and servers get the slots of their own names, so that workers count in the same places', () => {
    const asked: string[] = [];
    const model = modelOf(configOf(SHOP), (name) => asked.push(name) - 1);
    expect(asked).toEqual(['frontend/shop', 'server/web/web1', 'server/web/web2', 'server/static/files']);
    expect(model.frontends[0]!.slot).toBe(0);
    expect(model.backends.flatMap(({ servers }) => servers.map(({ name, slot }) => [name, slot]))).toEqual([
      ['web1', 1],
      ['web2', 2],
      ['files', 3],
    ]);
  });

  test('servers stand in the order of the file, which `first` and `source` go by', () => {
    const model = modelOf(configOf(SHOP), () => 0);
    expect(model.backends.map(({ name, servers }) => [name, servers.map((server) => server.name)])).toEqual([
      ['web', ['web1', 'web2']],
      ['static', ['files']],
    ]);
  });
});

test('listeners come with the ids of their actors, and with certificates only where they have TLS', () => {
  const config = configOf(SHOP);
  const tls = { certificates: ['/etc/a.pem', '/etc/b.pem'] };
  config.frontends['shop']!.bind[1]!.tls = tls;
  const listeners = listenersOf(config, (file) => `PEM of ${file}`);
  const ids = new Set(actorsOf(config).map(({ id }) => id));
  expect(listeners.filter(({ id }) => !ids.has(id))).toEqual([]);
  expect(listeners.map(({ certificates }) => certificates)).toEqual([null, ['PEM of /etc/a.pem', 'PEM of /etc/b.pem']]);
});
