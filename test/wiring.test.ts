/** From a configuration to its actors. */
import { describe, expect, test } from 'vitest';
import { machines } from '../machines/index.ts';
import { loadConfig } from '../src/config/load.ts';
import type { Config } from '../src/config/schema.ts';
import { actorsOf } from '../src/wiring.ts';
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
