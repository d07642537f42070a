/** From a configuration to what workers are told: plain data, with all files read. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadConfig } from '../src/config/load.ts';
import type { AccessLogConfig } from '../src/config/log.ts';
import type { Config } from '../src/config/schema.ts';
import { DataPlaneModels, listenersOf } from '../src/dataPlaneWiring.ts';
import type { BackendModel, FrontendModel } from '../src/proxy/model.ts';
import { actorsOf } from '../src/wiring.ts';
import { tempFolder } from './nodeHelpers.ts';
import { has } from './packages.ts';
import { makeCertificates } from './tlsHelpers.ts';
import type { Files } from './tlsHelpers.ts';

type Keys = Record<string, unknown>;

/** JSON is YAML. */
const configOf = (file: Keys, folder = '/'): Config => {
  const loaded = loadConfig(JSON.stringify({ node: 'lb1', workers: 1, ...file }), {}, folder);
  if ('problems' in loaded) throw new Error(JSON.stringify(loaded.problems));
  return loaded.config;
};

const SERVERS = [
  { name: 'web1', address: '10.0.0.1:80' },
  { name: 'web2', address: '10.0.0.2:80' },
];
const FRONTEND = { mode: 'http', bind: ['127.0.0.1:8080'], use: 'web' };

const shop = (frontend: Keys = {}, backend: Keys = {}, more: Keys = {}): Keys => ({
  frontends: { shop: { ...FRONTEND, ...frontend } },
  backends: { web: { servers: SERVERS, ...backend }, static: { servers: [{ name: 'files', address: '[::1]:80' }] } },
  ...more,
});

/** Slots and sinks in the order in which they are asked for. */
const modelsFor = () => {
  const asked: string[] = [];
  const logs: AccessLogConfig[] = [];
  const models = new DataPlaneModels({
    slot: (name) => asked.push(name) - 1,
    sink: (config) => {
      const { only, sample, requestHeaders, responseHeaders } = config;
      return { sink: logs.push(config) - 1, only, sample, requestHeaders, responseHeaders };
    },
  });
  return { asked, logs, models };
};

const told = (file: Keys, folder = '/'): { frontend: FrontendModel; backend: BackendModel } => {
  // As it crosses to a thread.
  const { frontends, backends } = structuredClone(modelsFor().models.modelOf(configOf(file, folder)));
  return { frontend: frontends[0]!, backend: backends[0]! };
};

describe('frontends, backends and servers', () => {
  test('each has the slot of its own name, so that all workers count in the same place', () => {
    const { asked, models } = modelsFor();
    const { frontends, backends } = models.modelOf(configOf(shop()));
    const named: [string, number][] = [
      ...frontends.map(({ name, slot }): [string, number] => [`frontend/${name}`, slot]),
      ...backends.map(({ name, slot }): [string, number] => [`pool/${name}`, slot]),
      ...backends.flatMap(({ name: pool, servers }) =>
        servers.map(({ name, slot }): [string, number] => [`server/${pool}/${name}`, slot]),
      ),
    ];
    expect(named.map(([name]) => name).sort()).toEqual([...asked].sort());
    for (const [name, slot] of named) expect(asked[slot]).toBe(name);
  });

  test('servers stand in the order of the file, which `first` goes by', () => {
    expect(told(shop()).backend.servers.map(({ name }) => name)).toEqual(['web1', 'web2']);
  });

  test('HTTP/1.0 without a Host gets that of the server’s address, and behind a Unix socket localhost', () => {
    const servers = [...SERVERS, { name: 'app', address: 'unix:/run/app.sock' }, { name: 'six', address: '[::1]:80' }];
    const hosts = told(shop({}, { servers })).backend.servers.map(({ defaultHost }) => defaultHost);
    expect(hosts).toEqual(['10.0.0.1:80', '10.0.0.2:80', 'localhost', '[::1]:80']);
  });

  test('what a backend says of TLS and the PROXY protocol holds for servers that say nothing', () => {
    const servers = [
      { name: 'as', address: 'a.test:443' },
      { name: 'own', address: 'b.test:443', tls: { serverName: 'c.test' }, sendProxy: 'v2' },
      { name: 'plain', address: 'd.test:80', tls: false },
    ];
    const { backend } = told(shop({}, { servers, tls: true, sendProxy: 'v1' }));
    expect(backend.servers.map(({ tls, sendProxy }) => [tls?.serverName, sendProxy])).toEqual([
      ['a.test', 'v1'],
      ['c.test', 'v2'],
      [undefined, 'v1'],
    ]);
  });

  test('a server’s value in the sticky cookie is there only where it has one', () => {
    const servers = [{ ...SERVERS[0], cookie: 'a' }, SERVERS[1]];
    const { backend } = told(shop({}, { servers, sticky: { cookie: { name: 'SRV' } } }));
    expect(backend.servers.map((server) => ('cookie' in server ? server.cookie : 'none'))).toEqual(['a', 'none']);
  });

  test('the key of a sticky cookie is the same in the file and beside it', () => {
    const folder = tempFolder();
    writeFileSync(join(folder, 'key'), 'a key of some length\n');
    const keyOf = (key: unknown) => {
      const { sticky } = told(shop({}, { sticky: { cookie: { name: 'SRV', key } } }), folder).backend;
      return sticky && 'cookie' in sticky ? sticky.cookie.key : null;
    };
    expect(keyOf({ file: './key' })).toBe('a key of some length');
    expect(keyOf('a key of some length')).toBe('a key of some length');
  });
});

describe('ids of requests are made only where somebody looks at them', () => {
  const needsId = (...args: Parameters<typeof shop>) => told(shop(...args), folder).frontend.needsId;
  let folder = '/';
  test.each<[boolean, string, Keys, Keys, Keys]>([
    [false, 'nothing', {}, {}, {}],
    [true, 'a rule', { rules: [{ setHeader: { 'X-Request-Id': '{id}' } }] }, {}, {}],
    [false, 'a rule that names another variable', { rules: [{ setHeader: { 'X-Host': '{host}' } }] }, {}, {}],
    [true, 'a page of the frontend', { errorPages: { 503: 'id.html' } }, {}, {}],
    [true, 'a page of a backend', {}, { errorPages: { 503: 'id.html' } }, {}],
    [false, 'a page without it', {}, { errorPages: { 503: 'none.html' } }, {}],
    [true, 'a log in JSON', { log: { path: 'stdout' } }, {}, {}],
    [true, 'the node’s log in JSON', {}, {}, { log: { access: { path: 'stdout' } } }],
    [false, 'a log in another form', { log: { path: 'stdout', format: 'httplog' } }, {}, {}],
  ])('%s: %s', (expected, _what, frontend, backend, more) => {
    folder = tempFolder();
    writeFileSync(join(folder, 'id.html'), 'Tell us {id}.');
    writeFileSync(join(folder, 'none.html'), 'Sorry.');
    expect(needsId(frontend, backend, more)).toBe(expected);
  });
});

test('error pages are told with their text and the type that their name has', () => {
  const folder = tempFolder();
  writeFileSync(join(folder, 'sorry.html'), '<p>Sorry.');
  writeFileSync(join(folder, 'sorry.json'), '{"sorry":true}');
  const { frontend, backend } = told(
    shop({ errorPages: { 503: './sorry.html' } }, { errorPages: { 503: './sorry.json' } }),
    folder,
  );
  expect(frontend.errorPages).toEqual([{ status: 503, contentType: 'text/html; charset=utf-8', body: '<p>Sorry.' }]);
  expect(backend.errorPages).toEqual([{ status: 503, contentType: 'application/json', body: '{"sorry":true}' }]);
});

describe('the access log', () => {
  const logged = (frontend: Keys, more: Keys = {}, folder = '/') => {
    const { logs, models } = modelsFor();
    const [model] = models.modelOf(configOf(shop(frontend, {}, more), folder)).frontends;
    return { log: model!.log, path: logs[0]?.path };
  };

  test('is the node’s, where the frontend has none of its own', () => {
    const node = { log: { access: { path: '/tmp/node.log' } } };
    expect(logged({}, node).path).toEqual({ kind: 'file', path: '/tmp/node.log' });
    expect(logged({ log: { path: 'syslog://127.0.0.1' } }, node).path).toMatchObject({ kind: 'syslog' });
  });

  test('is none, where the frontend says false, or nobody says anything', () => {
    expect(logged({ log: false }, { log: { access: { path: 'stdout' } } }).log).toBeNull();
    expect(logged({}).log).toBeNull();
  });

  test('a file is found from the configuration’s folder', () => {
    const folder = tempFolder();
    const { path } = logged({ log: { path: './access.log' } }, {}, folder);
    expect(path).toEqual({ kind: 'file', path: join(folder, 'access.log') });
  });
});

describe('memory that workers share outlives a reload', () => {
  const limited = (rate: string) => shop({ rules: [{ rateLimit: rate }] });
  const memoryOf = (models: DataPlaneModels, file: Keys) => {
    const { action } = models.modelOf(configOf(file)).frontends[0]!.rules[0]!;
    return action.kind === 'rateLimit' ? action.memory : null;
  };

  test('of a rate limit that stays as it is, and not of another one', () => {
    const { models } = modelsFor();
    const before = memoryOf(models, limited('10/s'));
    expect(before).toBeInstanceOf(SharedArrayBuffer);
    expect(memoryOf(models, limited('10/s'))).toBe(before);
    expect(memoryOf(models, limited('20/s'))).not.toBe(before);
    expect(memoryOf(models, limited('10/s')), 'it was let go of meanwhile').not.toBe(before);
  });

  const tableOf = (models: DataPlaneModels, sticky: Keys | undefined) =>
    models.modelOf(configOf(shop({}, sticky ? { sticky } : {}))).backends[0]!.stickTable;

  test('of a source table, as long as it has its size', () => {
    const { models } = modelsFor();
    const before = tableOf(models, { table: 'source', size: 100 });
    expect(before).toBeInstanceOf(SharedArrayBuffer);
    expect(tableOf(models, { table: 'source', size: 100, expire: '1h' })).toBe(before);
    expect(tableOf(models, { table: 'source', size: 200 })).not.toBe(before);
  });

  test('a backend whose stickiness goes and comes back remembers nobody', () => {
    const { models } = modelsFor();
    const before = tableOf(models, { table: 'source', size: 100 });
    expect(tableOf(models, undefined)).toBeNull();
    expect(tableOf(models, { table: 'source', size: 100 })).not.toBe(before);
  });

  test('a sticky cookie needs none', () => {
    expect(tableOf(modelsFor().models, { cookie: { name: 'SRV' } })).toBeNull();
  });
});

describe('listeners', () => {
  const listenersFor = (bind: unknown[], more: Keys = {}, folder = '/') =>
    structuredClone(listenersOf(configOf(shop({ bind, ...more }), folder)));

  test('have the ids of their actors', () => {
    const config = configOf(shop({ bind: ['10.9.0.100:80', '[::1]:80', '*:81', 'unix:/run/shop.sock'] }));
    const ids = new Set(actorsOf(config).map(({ id }) => id));
    expect(listenersOf(config).filter(({ id }) => !ids.has(id))).toEqual([]);
    expect(listenersOf(config)).toHaveLength(4);
  });

  test('a plain one has no TLS, HTTP/2, PROXY protocol or owner', () => {
    expect(listenersFor(['127.0.0.1:80'])).toEqual([
      {
        id: 'listener/shop/127.0.0.1:80',
        frontend: 'shop',
        address: { host: '127.0.0.1', port: 80 },
        tls: null,
        http2: null,
        proxyProtocol: null,
        freeBind: false,
        socketFile: { mode: null, uid: null, gid: null },
      },
    ]);
  });

  test('the file of a Unix socket is told in numbers', () => {
    const bind = { address: 'unix:/run/shop.sock', mode: '660', user: 'root', group: '12' };
    expect(listenersFor([bind])[0]!.socketFile).toEqual({ mode: 0o660, uid: 0, gid: 12 });
  });

  test('peers that tell of their clients', () => {
    const bind = { address: '127.0.0.1:80', proxyProtocol: { from: ['10.0.0.0/8'] } };
    expect(listenersFor([bind])[0]!.proxyProtocol).toEqual({ from: ['10.0.0.0/8'], required: false });
  });

  describe.skipIf(!has('openssl'))('with TLS', () => {
    let files: Files;
    beforeAll(() => {
      files = makeCertificates();
    });
    afterAll(() => files.remove());
    const withTls = (tls: Keys, more: Keys = {}) =>
      listenersFor([{ address: '127.0.0.1:443', tls }], more, files.folder)[0]!;

    test('certificates are told with their text, from one file or from two', () => {
      const pair = { chain: 'api.crt', key: 'api.key' };
      const { tls } = withTls({ certificates: ['shop.pem', pair] });
      expect(tls?.certificates).toEqual([files.read('shop.pem'), `${files.read('api.crt')}\n${files.read('api.key')}`]);
    });

    test('HTTP/2 has its limits where ALPN offers it, as it does by default', () => {
      const http2 = { maxConcurrentStreams: 7 };
      expect(withTls({ certificates: ['shop.pem'] }, { http2 }).http2).toMatchObject(http2);
      expect(withTls({ certificates: ['shop.pem'], alpn: ['http/1.1'] }).http2).toBeNull();
    });

    test('in mode tcp nothing is offered that isn’t asked for, and HTTP/2 is the servers’', () => {
      expect(withTls({ certificates: ['shop.pem'] }, { mode: 'tcp' })).toMatchObject({
        tls: { alpn: null },
        http2: null,
      });
      const own = withTls({ certificates: ['shop.pem'], alpn: ['h2'] }, { mode: 'tcp' });
      expect(own).toMatchObject({ tls: { alpn: ['h2'] }, http2: null });
    });
  });
});
