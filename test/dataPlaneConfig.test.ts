/** The data plane's part of the configuration: what only the whole file can tell, all keys at once, and all mistakes. */
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Ajv2020 } from 'ajv/dist/2020.js';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parse, stringify } from 'yaml';
import { configJsonSchema, formatProblem, loadConfig } from '../src/config/load.ts';
import type { Problem } from '../src/config/load.ts';
import { recordableConfig } from '../src/fingerprint.ts';
import { drawSystem } from '../src/graph/render.ts';
import { systemGraph } from '../src/graph/systemGraph.ts';
import { everyKey, SECRET, writeFilesOfEveryKey } from './everyKey.ts';
import { tempFolder } from './nodeHelpers.ts';
import { has, isRoot } from './packages.ts';
import { makeCertificates } from './tlsHelpers.ts';
import type { Files } from './tlsHelpers.ts';

type Keys = Record<string, unknown>;

const problemsIn = (text: string, folder = '/'): Problem[] => {
  const loaded = loadConfig(text, {}, folder);
  return 'problems' in loaded ? loaded.problems : [];
};

/** JSON is YAML. Each as `path: message`. */
const problemsOf = (file: Keys, folder = '/'): string[] =>
  problemsIn(JSON.stringify({ node: 'lb1', workers: 1, ...file }), folder).map((problem) =>
    formatProblem('f', problem).replace(/^f:\d+:\d+ /, ''),
  );

const SERVERS = [
  { name: 'web1', address: '10.0.0.1:80' },
  { name: 'web2', address: '10.0.0.2:80' },
];

const withBackend = (backend: Keys, frontend: Keys = {}): string[] =>
  problemsOf({
    frontends: { shop: { mode: 'http', bind: ['10.9.0.100:80'], use: 'web', ...frontend } },
    backends: { web: { servers: SERVERS, ...backend } },
  });
const withFrontend = (frontend: Keys, folder = '/'): string[] =>
  problemsOf(
    {
      frontends: { shop: { mode: 'http', bind: ['10.9.0.100:80'], use: 'web', ...frontend } },
      backends: { web: { servers: SERVERS } },
    },
    folder,
  );

describe('binds', () => {
  const withBinds = (...bind: unknown[]) => withFrontend({ bind });
  const between = (shop: string, raw: string, api = '127.0.0.1:8404') =>
    problemsOf({
      api: { listen: api },
      frontends: {
        shop: { mode: 'http', bind: [shop], use: 'web' },
        raw: { mode: 'tcp', bind: [raw], use: 'web' },
      },
      backends: { web: { servers: SERVERS } },
    });

  test.each([
    ['10.9.0.100:80', '10.9.0.100:80', '10.9.0.100:80 is bound by frontend shop already'],
    ['[::1]:80', '[0:0::1]:80', '[0:0::1]:80 is bound by frontend shop already, as [::1]:80'],
    ['*:80', '[::]:80', '[::]:80 is bound by frontend shop already, as *:80'],
    ['unix:/run/a.sock', 'unix:/run/a.sock', 'unix:/run/a.sock is bound by frontend shop already'],
    ['127.0.0.1:81', '127.0.0.1:8404', '127.0.0.1:8404 is bound by the API (api.listen) already'],
    ['127.0.0.1:81', '*:8404', '*:8404 is bound by the API (api.listen) already, as 127.0.0.1:8404'],
    ['127.0.0.1:81', '0.0.0.0:8404', '0.0.0.0:8404 is bound by the API (api.listen) already, as 127.0.0.1:8404'],
  ])('%s and %s would share connections', (shop, raw, message) => {
    expect(between(shop, raw)).toEqual([`frontends.raw.bind[0]: ${message}`]);
  });

  test.each([
    ['*:80', '10.9.0.100:80'],
    ['0.0.0.0:80', '10.9.0.100:80'],
    ['*:80', '0.0.0.0:80'],
    ['10.9.0.100:80', '10.9.0.100:81'],
    ['127.0.0.1:0', '127.0.0.1:0'],
    ['unix:/run/a.sock', 'unix:/run/b.sock'],
    ['10.9.0.100:8404', '[::1]:8404'],
  ])('%s and %s do not: the more exact one gets what comes to it', (shop, raw) => {
    expect(between(shop, raw)).toEqual([]);
  });

  test('one frontend can not have two that the kernel is to choose a port for: they would be one listener', () => {
    expect(withBinds('127.0.0.1:0', '127.0.0.1:0')).toHaveLength(1);
    expect(withBinds('127.0.0.1:0', '[::1]:0')).toEqual([]);
  });

  test('a name is no address to bind', () => {
    expect(withBinds('localhost:80')).toEqual([
      'frontends.shop.bind[0]: localhost is a name; allowed are addresses of this machine, and * for all',
    ]);
  });

  test('an owner is for a Unix socket', () => {
    expect(withBinds({ address: '10.9.0.100:80', mode: '660', user: 'root' })).toEqual([
      'frontends.shop.bind[0].mode: only a Unix socket has a file; mode is for addresses like unix:/run/shop.sock',
      'frontends.shop.bind[0].user: only a Unix socket has a file; user is for addresses like unix:/run/shop.sock',
    ]);
    expect(withBinds({ address: 'unix:/run/shop.sock', mode: '660', user: 'root', group: '12' })).toEqual([]);
  });

  test('an owner that this machine does not know is told when the file is read', () => {
    expect(withBinds({ address: 'unix:/run/shop.sock', user: 'no-such-user', group: 'no-such-group' })).toEqual([
      'frontends.shop.bind[0].user: /etc/passwd has no user no-such-user',
      'frontends.shop.bind[0].group: /etc/group has no group no-such-group',
    ]);
  });

  test('peers that tell of their clients have addresses, but for those of a Unix socket', () => {
    const proxyProtocol = { from: ['10.0.0.0/8', 'unix'] };
    expect(withBinds({ address: '10.9.0.100:80', proxyProtocol })).toEqual([
      'frontends.shop.bind[0].proxyProtocol.from[1]: peers of this bind have addresses; unix is for peers of a Unix socket',
    ]);
    expect(withBinds({ address: 'unix:/run/shop.sock', proxyProtocol })).toEqual([
      'frontends.shop.bind[0].proxyProtocol.from[0]: peers of a Unix socket have no addresses; allowed is unix',
    ]);
  });

  test('the API listens at an address and a port', () => {
    expect(problemsOf({ api: { listen: 'unix:/run/api.sock' } })).toEqual([
      'api.listen: "unix:/run/api.sock" has no port; allowed are forms like 127.0.0.1:8404, [::1]:80',
    ]);
  });
});

describe('what only mode http knows', () => {
  test.each([
    ['forwardedFor', 'add'],
    ['compression', {}],
    ['errorPages', {}],
    ['http2', {}],
  ])('%s is refused in mode tcp, also with its default', (key, value) => {
    expect(withFrontend({ mode: 'tcp', [key]: value })).toEqual([
      `frontends.shop.${key}: ${key} is known in mode http only: a connection has no requests`,
    ]);
  });

  test('so are times between requests, and fields in the log', () => {
    const timeouts = { client: '1m', keepAlive: '5s', httpRequest: '5s' };
    const log = { path: 'stdout', requestHeaders: [] };
    expect(withFrontend({ mode: 'tcp', timeouts, log })).toEqual([
      'frontends.shop.timeouts.keepAlive: keepAlive is known in mode http only: a connection has no requests; tcp has client',
      'frontends.shop.timeouts.httpRequest: httpRequest is known in mode http only: a connection has no requests; tcp has client',
      'frontends.shop.log.requestHeaders: requestHeaders is known in mode http only: a connection has no requests',
    ]);
  });

  test('limits of HTTP/2 are of use where a bind speaks it', () => {
    const http2 = { maxConcurrentStreams: 10 };
    expect(withFrontend({ http2 })).toEqual([
      'frontends.shop.http2: no bind speaks HTTP/2; it takes one with tls, whose alpn has h2 (the default)',
    ]);
    const tls = { certificates: ['/gone.pem'] };
    const bind = (more: Keys) => [{ address: '10.9.0.100:443', tls: { ...tls, ...more } }];
    expect(withFrontend({ http2, bind: bind({}) }).join()).not.toMatch(/http2/);
    expect(withFrontend({ http2, bind: bind({ alpn: ['http/1.1'] }) }).join()).toMatch(/http2: no bind speaks/);
  });

  test.each<[string, Keys, string]>([
    ['a hash of the URI', { balance: 'uri' }, 'balance: uri is known in mode http only'],
    [
      'a hash of a header',
      { balance: { type: 'header', name: 'A' } },
      'balance.type: header is known in mode http only',
    ],
    ['a sticky cookie', { sticky: { cookie: { name: 'A' } } }, 'sticky.cookie: cookies are known in mode http only'],
    ['pages', { errorPages: {} }, 'errorPages: errorPages are known in mode http only'],
    [
      'a time for upgraded connections',
      { timeouts: { tunnel: '1h' } },
      'timeouts.tunnel: tunnel is known in mode http only',
    ],
    [
      'statuses that are errors',
      { outliers: { layer: 'layer7' } },
      'outliers.layer: layer7 is known in mode http only',
    ],
  ])(
    '%s is refused of a backend in mode tcp, and of one without a mode that a tcp frontend uses',
    (_what, keys, told) => {
      const [own, ...more] = withBackend({ ...keys, mode: 'tcp' }, { mode: 'tcp' });
      expect(own).toMatch(`backends.web.${told}; it is tcp`);
      expect(more).toEqual([]);
      const tcp = { mode: 'tcp', rules: [{ when: { source: '10.0.0.0/8' }, use: 'web' }] };
      expect(withBackend(keys, tcp)[0]).toMatch(`backends.web.${told}; frontend shop, which uses it, is tcp`);
      expect(withBackend(keys)).toEqual([]);
    },
  );

  test('what both modes know is allowed in both', () => {
    const keys = {
      balance: 'leastConnections',
      sticky: { table: 'source' },
      sendProxy: 'v2',
      tls: true,
      outliers: { layer: 'layer4' },
      maxQueue: 5,
    };
    for (const mode of ['http', 'tcp']) expect(withBackend({ ...keys, mode }, { mode })).toEqual([]);
  });
});

describe('servers', () => {
  const sticky = { cookie: { name: 'SRV' } };
  const withServers = (servers: Keys[], more: Keys = { sticky }) =>
    withBackend({ ...more, servers: servers.map((server) => ({ address: '10.0.0.1:80', ...server })) });

  test.each<[string, Keys[]]>([
    [
      'of its own',
      [
        { name: 'a', cookie: 'x' },
        { name: 'b', cookie: 'x' },
      ],
    ],
    ['that is another one’s name', [{ name: 'x' }, { name: 'b', cookie: 'x' }]],
    ['that is its name', [{ name: 'a', cookie: 'x' }, { name: 'x' }]],
  ])('two with one value in the sticky cookie could not be told apart: a value %s', (_what, servers) => {
    const [problem, ...more] = withServers(servers);
    expect(problem).toMatch(
      /^backends\.web\.servers\[1\]\.(?:cookie|name): x stands for server \w already in the sticky cookie/,
    );
    expect(more).toEqual([]);
  });

  test('with a key, a name is not its value', () => {
    const keyed = { sticky: { cookie: { name: 'SRV', key: '0123456789abcdef' } } };
    expect(withServers([{ name: 'x' }, { name: 'b', cookie: 'x' }], keyed)).toEqual([]);
    expect(
      withServers(
        [
          { name: 'a', cookie: 'x' },
          { name: 'b', cookie: 'x' },
        ],
        keyed,
      ),
    ).toHaveLength(1);
  });

  test('a value for the sticky cookie needs one', () => {
    expect(withServers([{ name: 'a', cookie: 'x' }], {})).toEqual([
      'backends.web.servers[0].cookie: it stands for the server in the sticky cookie; this backend has none',
    ]);
  });

  test('nobody waits for a server that takes everybody', () => {
    expect(withServers([{ name: 'a', maxQueue: 5 }])).toEqual([
      'backends.web.servers[0].maxQueue: nobody waits for a server without maxConnections',
    ]);
    expect(withServers([{ name: 'a', maxQueue: 5, maxConnections: 1 }])).toEqual([]);
  });

  test('a server has an address, not all of them', () => {
    expect(withServers([{ name: 'a', address: '*:80' }])).toEqual([
      'backends.web.servers[0].address: * is for listening; a server has an address or a name',
    ]);
  });
});

describe('files', () => {
  test('the folder of a log is there, and may be written', () => {
    const folder = tempFolder();
    mkdirSync(join(folder, 'a-folder'));
    writeFileSync(join(folder, 'a-file'), '');
    const logTo = (path: string) => withFrontend({ log: { path } }, folder);
    expect(logTo('./access.log')).toEqual([]);
    expect(logTo('./a-file')).toEqual([]);
    expect(logTo('./gone/access.log')).toEqual([
      `frontends.shop.log.path: the log ./gone/access.log can't be written: there is no folder ${join(folder, 'gone')}`,
    ]);
    expect(logTo('./a-folder')).toEqual([
      "frontends.shop.log.path: the log ./a-folder can't be written: it is a folder",
    ]);
    expect(logTo('./a-file/access.log')).toEqual([
      `frontends.shop.log.path: the log ./a-file/access.log can't be written: ${join(folder, 'a-file')} is no folder`,
    ]);
    expect(problemsOf({ log: { access: { path: './gone/x' } } }, folder)).toHaveLength(1);
  });

  test.skipIf(isRoot)('a log that this user may not write', () => {
    const folder = tempFolder();
    writeFileSync(join(folder, 'a.log'), '');
    chmodSync(join(folder, 'a.log'), 0o400);
    expect(withFrontend({ log: { path: './a.log' } }, folder)[0]).toMatch(/this user may not write it/);
  });

  test('options of syslog are for syslog', () => {
    const syslog = { facility: 'local1' };
    expect(withFrontend({ log: { path: 'stdout', syslog } })).toEqual([
      'frontends.shop.log.syslog: these are for a log to syslog; its path is like syslog://127.0.0.1:514',
    ]);
    expect(withFrontend({ log: { path: 'syslog://127.0.0.1', syslog } })).toEqual([]);
  });

  test('a page that is not there, or too long', () => {
    const folder = tempFolder();
    writeFileSync(join(folder, 'long.html'), 'x'.repeat(65_537));
    const [gone, long] = withFrontend({ errorPages: { 502: './gone.html', 503: './long.html' } }, folder);
    expect(gone).toMatch(/^frontends\.shop\.errorPages\.502: the page \.\/gone\.html can't be used: ENOENT/);
    expect(long).toMatch(
      /^frontends\.shop\.errorPages\.503: the page \.\/long\.html can't be used: it has 65537 bytes/,
    );
  });

  test('the key of a sticky cookie in a file is as long as one beside it', () => {
    const folder = tempFolder();
    writeFileSync(join(folder, 'short'), 'short\n');
    writeFileSync(join(folder, 'long'), '0123456789abcdef\n');
    const keyIn = (file: string) =>
      problemsOf({ backends: { web: { servers: SERVERS, sticky: { cookie: { name: 'A', key: { file } } } } } }, folder);
    expect(keyIn('./long')).toEqual([]);
    expect(keyIn('./short')).toEqual([
      "backends.web.sticky.cookie.key.file: the key in ./short can't be used: too short; a key has at least 16 characters",
    ]);
    expect(keyIn('./gone')[0]).toMatch(/can't be used: ENOENT/);
  });
});

describe.skipIf(!has('openssl'))('a file in which every key stands', () => {
  let files: Files;
  beforeAll(() => {
    files = makeCertificates();
    writeFilesOfEveryKey(files.folder);
  });
  afterAll(() => files.remove());

  const load = () => {
    const loaded = loadConfig(JSON.stringify(everyKey), {}, files.folder);
    if ('problems' in loaded) throw new Error(loaded.problems.map((problem) => formatProblem('f', problem)).join('\n'));
    return loaded.config;
  };

  /** All names of properties in a JSON Schema. */
  const namesIn = (schema: unknown, names = new Set<string>()): Set<string> => {
    if (typeof schema !== 'object' || schema === null) return names;
    const { properties } = schema as { properties?: unknown };
    if (typeof properties === 'object' && properties !== null)
      for (const name of Object.keys(properties)) names.add(name);
    for (const inner of Object.values(schema)) namesIn(inner, names);
    return names;
  };
  const keysIn = (value: unknown, keys = new Set<string>()): Set<string> => {
    if (typeof value !== 'object' || value === null) return keys;
    for (const [key, inner] of Object.entries(value)) keysIn(inner, Array.isArray(value) ? keys : keys.add(key));
    return keys;
  };

  test('is valid, for the program and for editors', () => {
    expect(Object.keys(load().frontends)).toEqual(['shop', 'mail']);
    const validate = new Ajv2020({ strict: false }).compile(configJsonSchema() as object);
    expect(validate(everyKey), JSON.stringify(validate.errors)).toBe(true);
  });

  test('has all keys that the JSON Schema has, and no other', () => {
    const keys = keysIn(everyKey);
    // A node is known to NATS in one way: here by its user.
    const otherWays = ['credentials', 'nkey'];
    expect([...namesIn(configJsonSchema())].filter((name) => !keys.has(name))).toEqual(otherWays);
  });

  test('files are found from the configuration’s folder', () => {
    const { frontends, backends } = load();
    const here = (name: string) => join(files.folder, name);
    expect(frontends['shop']).toMatchObject({
      bind: [
        {},
        {},
        {
          tls: {
            certificates: [here('shop.pem'), { chain: here('api.crt'), key: here('api.key') }],
            clientCertificates: { ca: here('authority.crt'), crl: here('authority.crl') },
          },
        },
      ],
      errorPages: { 503: here('sorry.html') },
    });
    expect(frontends['shop']!.rules.find(({ allow }) => typeof allow === 'object')!.allow).toMatchObject({
      users: { bob: { file: here('password') } },
    });
    expect(backends['web']).toMatchObject({
      errorPages: { 502: here('sorry.html') },
      servers: [
        { tls: { ca: here('authority.crt'), crl: here('authority.crl'), certificate: here('jo.pem') } },
        {},
        {},
      ],
    });
  });

  test('no secret enters the journal', () => {
    const config = load();
    expect(JSON.stringify(config).match(/SECRET-of-/g)!.length).toBeGreaterThan(20);
    const recorded = JSON.stringify(recordableConfig(config));
    expect(recorded.match(/SECRET-of-[a-z-]+/g)).toBeNull();
    expect(recorded).not.toContain(SECRET);
    expect(recorded).not.toContain('PRIVATE KEY');
    // What is there to be explained is.
    expect(recorded).toContain('"realm":"shop"');
    expect(recorded).toContain('X-Set');
    expect(recorded).toContain(join(files.folder, 'shop.pem'));
    expect(
      JSON.stringify(config).match(/SECRET-of-/g)!.length,
      'the configuration itself is left as it is',
    ).toBeGreaterThan(20);
  });

  test('is drawn with its rules in order, and what each part is told', async () => {
    const { dot, mermaid } = drawSystem(systemGraph(load()));
    expect(dot).not.toContain(SECRET);
    await expect(mermaid).toMatchFileSnapshot('./transcripts/graph-every-key.txt');
  });
});

test('a rule that answers everybody leaves no way to the default backend', () => {
  const loaded = loadConfig(
    JSON.stringify({
      frontends: {
        plain: { mode: 'http', bind: ['*:80'], rules: [{ redirect: { scheme: 'https' } }], use: 'web' },
        shop: { mode: 'http', bind: ['*:81'], rules: [{ when: { path: '/x' }, deny: 403 }], use: 'web' },
      },
      backends: { web: { servers: SERVERS } },
    }),
    {},
    '/',
  );
  if ('problems' in loaded) throw new Error(JSON.stringify(loaded.problems));
  const { edges } = systemGraph(loaded.config);
  const from = (frontend: string) =>
    edges.filter((edge) => edge.from === `frontend/${frontend}`).map(({ to, label }) => `${label} → ${to}`);
  expect(from('plain')).toEqual(['1: always → answer/plain/redirect 302 to https']);
  expect(from('shop')).toEqual(['1: path /x → answer/shop/deny 403', 'otherwise → pool/web']);
});

const MISTAKES = `log: { access: { path: ./nowhere/access.log, formt: json, only: eror, sample: 0, requestHeaders: [User Agent] } }
frontends:
  shop:
    mode: http
    bind:
      - "localhost:80"
      - { address: "unix:/run/shop.sock", mode: 660, proxyProtocol: { form: [10.0.0.0/33], required: yes } }
      - { address: "10.9.0.100:443", group: shop, tls: { minVersion: TLSv1.0, alpn: [h2, spdy] } }
      - { address: "[::1]:80", tls: { certificates: [{ chain: ./a.pem }], clientCertificates: { verify: perhaps } } }
      - "[0::1]:80"
    rules:
      - { when: { hots: a.example.com, path: admin, source: 10.0.0.0/33, method: [GET, "PO ST"] }, deny: 200 }
      - { when: { header: { X-A: { pattrn: a }, "X B": 1 } }, deny: { status: 200, contentTyp: text/html } }
      - { setHeader: { "X Bad": a, X-Tpl: "{schem}" } }
      - { rateLimit: { burst: 10, key: ip } }
      - { rateLimit: 10 }
      - { when: { path: /a }, redirect: { location: /x, status: 300 } }
      - { when: { path: /b }, return: { status: 99, body: [a] } }
      - { allow: { users: { "a:b": x, ann: {} } } }
      - { when: { path: /c }, tarpit: { delay: 1h } }
      - { setQuery: { a: [1] } }
      - { when: { usable: { pool: wbe, atLest: 1 }, not: { any: [{ pth: /x }] } }, use: web }
      - { dney: true }
      - deny
      - { redirect: { scheme: https } }
      - { use: [web] }
      - { use: web }
    use: web
    forwardedFor: always
    compression: { encodings: [deflate], types: [text], minSize: 1024, levels: { gzip: 12 } }
    errorPages: { 200: ./ok.html, 503: ./gone.html }
    http2: { maxConcurrentStream: 1, initialWindow: 1KiB, maxHeaderList: many }
    log: { path: "http://logs", syslog: { tag: my shop } }
  raw:
    mode: tcp
    bind: ["10.9.0.100:82"]
    forwardedFor: none
    timeouts: { keepAlive: 5s }
    log: true
    use: raw
backends:
  web:
    balance: roundrobin
    sticky: { cookie: { nam: SRV, key: short, sameSite: none, domain: "a b" } }
    observe: layer6
    outliers: { consecutiveError: 3, errorRate: { above: 120 %, interval: 1ms }, maxEjected: half }
    panic: 101
    tls: { verify: 1, ca: ./gone.crt, cipher: x }
    sendProxy: v3
    servers:
      - { name: web1, address: "10.9.0.3:80", cookie: "a b" }
      - { name: web2, address: "10.9.0.4:80", cookie: web1, tls: yes please, maxQueue: 3 }
      - { name: web3, address: "10.9.0.5:80", cookie: web1 }
  raw:
    balance: { type: header }
    sticky: { tabel: source, expire: 10 }
    observe: { layer: layer7, onEror: markDown }
    servers: [{ name: a, address: "*:80", sendProxy: true, cookie: x }]
  other:
    balance: { name: X-User, boundedLoad: 1 }
    sticky: cookie
    outliers: true
    servers: [{ name: a, address: "unix:relative" }]
  another:
    balance: { type: hedaer, name: X-User }
    sticky: {}
    maxQueue: -1
    servers: [{ name: a, address: "unix:/run/a.sock", tls: true }]
`;

describe('a file with a mistake in every line', () => {
  test('tells all of them, each where it stands and with what is allowed', async () => {
    const problems = problemsIn(MISTAKES, '/etc/understudy');
    expect(problems.length).toBeGreaterThan(90);
    const told = problems.map((problem) => formatProblem('shop.yaml', problem)).join('\n');
    await expect(`${MISTAKES}\n---\n${told}\n`).toMatchFileSnapshot('./transcripts/config-data-plane-problems.txt');
  });

  test('is refused by the JSON Schema too', () => {
    const validate = new Ajv2020({ strict: false, allErrors: true }).compile(configJsonSchema() as object);
    expect(validate(parse(MISTAKES))).toBe(false);
    const paths = new Set(validate.errors!.map(({ instancePath }) => instancePath.split('/').slice(1, 4).join('.')));
    for (const path of ['frontends.shop.bind', 'frontends.shop.rules', 'frontends.shop.http2', 'backends.web.sticky'])
      expect([...paths]).toContain(path);
  });
});

test('whatever stands in place of a key or a value, what is told are sentences of our own', () => {
  const lines = stringify(everyKey).split('\n');
  const value = fc.constantFrom(
    ...'null 1 -1 1e9 true [] {} [x] [null] [[]] {type:source} "x" ~ constructor __proto__ ${A} ${A:-5}'.split(' '),
  );
  const change = fc.record({ line: fc.nat(lines.length - 1), value, isKey: fc.boolean() });
  fc.assert(
    fc.property(fc.array(change, { minLength: 1, maxLength: 3 }), (changes) => {
      const copy = [...lines];
      for (const { line, value: put, isKey } of changes) {
        const [whole, indent = '', key = '', given = ''] = /^(\s*(?:- )?)([^:]+): ?(.*)$/.exec(copy[line]!) ?? [];
        if (whole === undefined) copy[line] = copy[line]!.replace(/\S+$/, () => put);
        else copy[line] = isKey ? `${indent}${put.replaceAll(/\W/g, '')}: ${given}` : `${indent}${key}: ${put}`;
      }
      for (const { message } of problemsIn(copy.join('\n'), '/nowhere')) {
        expect(message).not.toMatch(/undefined|\[object|=>|NaN|Invalid input|expected (?:string|one)/);
      }
    }),
    { numRuns: 100 },
  );
});
