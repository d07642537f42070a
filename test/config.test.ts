/** The configuration: what is refused and how it is told, defaults, units, environment, and the schema for editors. */
import { execFileSync } from 'node:child_process';
import { rmSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { Ajv2020 } from 'ajv/dist/2020.js';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { configJsonSchema, formatProblem, loadConfig, loadConfigFile } from '../src/config/load.ts';
import type { Environment } from '../src/config/environment.ts';
import type { Problem } from '../src/config/load.ts';
import type { Config } from '../src/config/schema.ts';
import { formatEndpoint, parseDuration, parseEndpoint, parseSize } from '../src/config/units.ts';
import { UnderstudyError } from '../src/errors.ts';
import { tempFolder, writeFile } from './nodeHelpers.ts';
import { has } from './packages.ts';

const problemsIn = (text: string, environment: Environment = {}, folder = '/'): Problem[] => {
  const loaded = loadConfig(text, environment, folder);
  return 'problems' in loaded ? loaded.problems : [];
};

const linesOf = (text: string, environment: Environment = {}, folder = '/'): string[] =>
  problemsIn(text, environment, folder).map((problem) => formatProblem('f.yaml', problem));

const configOf = (text: string, environment: Environment = {}, folder = '/'): Config => {
  const loaded = loadConfig(text, environment, folder);
  if ('problems' in loaded) throw new Error(loaded.problems.map((problem) => formatProblem('f.yaml', problem)).join());
  return loaded.config;
};

const FRONTEND = 'frontends:\n  shop: { mode: http, bind: ["127.0.0.1:0"], use: web }\n';
const SERVERS = 'servers: [{ name: a, address: "h:1" }]';
const backend = (keys: string, servers = SERVERS) =>
  `backends:\n  web:\n    ${keys === '' ? '' : `${keys}\n    `}${servers}\n`;
const check = (keys: string) => backend(`check: { ${keys} }`);

const VALID = `cluster: shop
node: lb1
journal: { path: ./lb1.db, keep: 30d, maxSize: 10GiB }
api: { listen: "127.0.0.1:8404", token: "secret" }
workers: 2
frontends:
  shop:
    mode: http
    bind: ["10.9.0.100:80", "[::1]:81"]
    rules:
      - { when: { path: "/admin/**", host: [api.example.com, "*.example.org"] }, use: web }
    use: web
    drain: 5s
  raw:
    mode: tcp
    bind: ["*:82"]
    use: web
backends:
  web:
    balance: leastConnections
    check: { type: http, path: /healthz, expect: 200-399, interval: 2s, rise: 2, fall: 3 }
    servers:
      - { name: web1, address: "10.9.0.3:80", weight: 10 }
      - { name: web2, address: "10.9.0.4:80", backup: true }
`;

describe('what is refused, where it stands, and what is allowed', () => {
  test.each<[what: string, text: string, line: string]>([
    ['an unknown key', 'wrokers: 3', 'f.yaml:1:1 wrokers: unknown key; did you mean workers?'],
    [
      'an unknown key like no other',
      'zzzzzz: 3',
      'f.yaml:1:1 zzzzzz: unknown key; allowed are cluster, node, shared, bus, journal, api, workers, log, frontends, backends, routers, syncGroups, notifyPipe',
    ],
    [
      'an unknown key of one type of check',
      check('type: http, pth: /'),
      'f.yaml:3:26 backends.web.check.pth: unknown key; did you mean path?',
    ],
    [
      'an unknown key in a list',
      backend('', 'servers: [{ name: a, adress: "h:1" }]').replace('}]', ', address: "h:1" }]'),
      'f.yaml:3:26 backends.web.servers[0].adress: unknown key; did you mean address?',
    ],
    ['a wrong type', 'workers: many', 'f.yaml:1:10 workers: "many" is not a number'],
    ['a map that is none', 'frontends: [1]', 'f.yaml:1:12 frontends: [1] is not a map'],
    [
      'a name with a space',
      `${backend('')}cluster: a b`,
      'f.yaml:4:10 cluster: "a b" is not a name; allowed are letters, digits, ".", "_" and "-"',
    ],
    [
      'a missing key',
      backend('', 'servers: [{ name: a }]'),
      'f.yaml:3:15 backends.web.servers[0].address: missing; a text is needed',
    ],
    [
      'a duplicate server',
      backend('', 'servers: [{ name: a, address: "h:1" }, { name: a, address: "h:2" }]'),
      'f.yaml:3:52 backends.web.servers[1].name: a is there already; each server of a backend needs a name of its own',
    ],
    [
      'an address without a port',
      backend('', 'servers: [{ name: a, address: h }]'),
      'f.yaml:3:35 backends.web.servers[0].address: "h" has no port; allowed are forms like 10.0.0.3:80, [::1]:80',
    ],
    [
      'port 0 of a server',
      backend('', 'servers: [{ name: a, address: "h:0" }]'),
      'f.yaml:3:35 backends.web.servers[0].address: port 0 is not allowed; 1 to 65535 are',
    ],
    [
      'a port that is too large',
      backend('', 'servers: [{ name: a, address: "h:65536" }]'),
      'f.yaml:3:35 backends.web.servers[0].address: "h:65536" is not an address; allowed are forms like 10.0.0.3:80, [::1]:80',
    ],
    [
      'a duplicate bind',
      `frontends:\n  a: { mode: tcp, bind: ["127.0.0.1:80"], use: web }\n  b: { mode: tcp, bind: ["127.0.0.1:80"], use: web }\n${backend('')}`,
      'f.yaml:3:26 frontends.b.bind[0]: 127.0.0.1:80 is bound by frontend a already',
    ],
    [
      'an unknown backend',
      `${FRONTEND.replace('use: web', 'use: wbe')}${backend('')}`,
      'f.yaml:2:51 frontends.shop.use: there is no backend wbe; allowed are web',
    ],
    [
      'an unknown backend of none',
      FRONTEND,
      'f.yaml:2:51 frontends.shop.use: there is no backend web; the file has none',
    ],
    ['a duplicate YAML key', 'node: a\nnode: b', 'f.yaml:2:1 Map keys must be unique'],
    ['bad YAML', 'node: "a', 'f.yaml:1:9 Missing closing "quote'],
    [
      'a duration without a unit',
      'journal: { keep: 30 }',
      'f.yaml:1:18 journal.keep: 30 is not a duration; allowed are forms like 500ms, 2s, 1m',
    ],
    [
      'a duration that is too short',
      check('type: icmp, interval: 1ms'),
      'f.yaml:3:36 backends.web.check.interval: "1ms" is too short; at least 10ms is allowed',
    ],
    [
      'a size without a unit',
      'journal: { maxSize: 30 }',
      'f.yaml:1:21 journal.maxSize: 30 is not a size; allowed are forms like 512KiB, 10GiB',
    ],
    [
      'a status that is none',
      check('type: http, expect: 700'),
      'f.yaml:3:34 backends.web.check.expect: "700" is not a status; allowed are forms like 200, 200-399, "200,301-302"',
    ],
    [
      'a regular expression that is none',
      check('type: tcp, expectPattern: "("'),
      'f.yaml:3:40 backends.web.check.expectPattern: Invalid regular expression: /(/: Unterminated group',
    ],
    [
      'an unknown type of check',
      check('type: htp'),
      'f.yaml:3:20 backends.web.check.type: "htp" is not allowed; allowed are icmp, tcp, tls, http, https, script',
    ],
    [
      'a weight out of range',
      backend('', 'servers: [{ name: a, address: "h:1", weight: 257 }]'),
      'f.yaml:3:50 backends.web.servers[0].weight: 257 is too large; at most 256 is allowed',
    ],
    [
      'rules of a tcp frontend',
      `${FRONTEND.replace('http', 'tcp').replace('use: web', 'rules: [{ when: { host: x }, use: web }], use: web')}${backend('')}`,
      expect.stringMatching(
        /^f.yaml:2:63 frontends.shop.rules\[0\].when.host: host is known in mode http only; tcp has source, /,
      ) as string,
    ],
    [
      'a frontend and a backend of two modes',
      `${FRONTEND}${backend('mode: tcp')}`,
      'f.yaml:2:51 frontends.shop.use: backend web has mode tcp, this frontend http; they must agree',
    ],
    [
      'an open API without a token',
      'api: { listen: "0.0.0.0:8404" }',
      'f.yaml:1:16 api.listen: 0.0.0.0:8404 is not a loopback address; it needs api.token',
    ],
  ])('%s', (_what, text, line) => {
    expect(linesOf(text)).toEqual([line]);
  });

  test('a name on the Internet that begins with 127. is not loopback', () => {
    expect(linesOf('api: { listen: "127.example.com:8404" }')).toHaveLength(1);
  });

  test.each(['toString', 'constructor', '__proto__', 'hasOwnProperty'])(
    'a backend %s that is not there is unknown, though JavaScript knows such a word',
    (word) => {
      expect(linesOf(`${FRONTEND.replace('use: web', `use: ${word}`)}${backend('')}`)).toEqual([
        `f.yaml:2:51 frontends.shop.use: there is no backend ${word}; allowed are web`,
      ]);
    },
  );

  test.each([
    ['an alias without an anchor', 'node: *nobody'],
    [
      'aliases that grow without end',
      `a: &a [${'1,'.repeat(10)}]\nb: &b [${'*a,'.repeat(10)}]\nc: &c [${'*b,'.repeat(10)}]\nd: [${'*c,'.repeat(10)}]\n`,
    ],
  ])('%s is a problem of the file, not an exception', (_what, text) => {
    expect(problemsIn(text).length).toBeGreaterThan(0);
  });

  test('what no probe could send is refused when the file is read', () => {
    expect(linesOf(check('type: http, path: "/a b"'))).toHaveLength(1);
    expect(linesOf(check('type: http, headers: { "a b": c }'))).toHaveLength(1);
    expect(linesOf(check('type: script, command: [""]'))).toHaveLength(1);
    expect(linesOf(check('type: http, expect: 399-200'))).toHaveLength(1);
  });

  test('a file that is not there', () => {
    expect(() => loadConfigFile('/nowhere/understudy.yaml', {})).toThrow(UnderstudyError);
    expect(() => loadConfigFile('/nowhere/understudy.yaml', {})).toThrow(/\/nowhere\/understudy.yaml can't be read/);
  });

  test('an empty file is valid: it asks for nothing', () => {
    expect(configOf('').frontends).toEqual({});
  });
});

test('all problems of a file at once, in order of position', async () => {
  const text = `# Every line but the good ones has its problem.
cluster: my shop
wrokers: 2
journal: { keep: 30 days, maxSize: 10 }
api: { listen: "0.0.0.0:8404" }
node: \${NODE_NAME}
frontends:
  shop:
    mode: htttp
    bind: ["10.9.0.100", { address: "10.9.0.100:443", tls: {} }, "10.9.0.100:443"]
    rules:
      - { when: { hots: api.example.com }, use: api }
      - { use: web }
    use: wbe
  raw:
    mode: tcp
    bind: []
    rules: [{ when: { path: "/x" }, use: web }]
    use: web
backends:
  web:
    balance: roundrobin
    check: { type: http, path: healthz, expect: 2xx, interval: 1ms, timeout: fast, bodyPattern: "[" }
    timeouts: { connect: 5, conect: 5s }
    servers:
      - { name: web1, address: 10.9.0.3, weight: 300 }
      - { name: web1, address: "10.9.0.4:0", backup: perhaps }
      - web3
  empty: { servers: [] }
`;
  const problems = problemsIn(text);
  const positions = problems.map(({ line, column }) => line * 1000 + column);
  expect(positions).toEqual([...positions].sort((a, b) => a - b));
  const transcript = problems.map((problem) => formatProblem('shop.yaml', problem)).join('\n');
  await expect(`${text}\n---\n${transcript}\n`).toMatchFileSnapshot('./transcripts/config-problems.txt');
});

describe('certificates and tokens', () => {
  const openssl = (folder: string, ...args: string[]) => execFileSync('openssl', args, { cwd: folder, stdio: 'pipe' });
  const makePem = (folder: string, name: string) => {
    openssl(
      folder,
      ...'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost'.split(' '),
      ...['-keyout', `${name}.key`, '-out', `${name}.crt`],
    );
  };
  const withTls = (file: string, more = '') =>
    `frontends:\n  shop: { mode: http, bind: [{ address: "127.0.0.1:0", tls: { certificates: [${file}] } }], use: web }\n${backend(more)}`;

  test('a certificate that is not there, or is none', () => {
    const folder = tempFolder();
    writeFile(folder, 'none.pem', 'not a certificate\n');
    expect(linesOf(withTls('./gone.pem'), {}, folder)[0]).toMatch(
      /^f\.yaml:2:\d+ frontends\.shop\.bind\[0\]\.tls\.certificates\[0\]: the certificate .*gone\.pem can't be used: ENOENT.*; a PEM file with the chain and its key is needed$/,
    );
    expect(linesOf(withTls('./none.pem'), {}, folder)[0]).toMatch(/none\.pem can't be used/);
  });

  test.skipIf(!has('openssl'))('a certificate with its key, and with another one', () => {
    const folder = tempFolder();
    makePem(folder, 'a');
    makePem(folder, 'b');
    execFileSync('sh', ['-c', 'cat a.crt a.key > good.pem; cat a.crt b.key > bad.pem'], { cwd: folder });
    expect(linesOf(withTls('./good.pem'), {}, folder)).toEqual([]);
    expect(configOf(withTls('./good.pem'), {}, folder).frontends['shop']!.bind[0]!.tls!.certificates).toEqual([
      join(folder, 'good.pem'),
    ]);
    expect(linesOf(withTls('./bad.pem'), {}, folder)[0]).toMatch(
      /the certificate .*bad\.pem can't be used: the key in it is not the certificate's/,
    );
    expect(linesOf(withTls('./a.crt'), {}, folder)[0]).toMatch(/a\.crt can't be used/);
  });

  test('a certificate is among all problems, not told only when the others are cured', () => {
    const lines = linesOf(withTls('/nowhere/gone.pem', 'balance: best'));
    expect(lines.join('\n')).toMatch(/gone\.pem/);
    expect(lines.join('\n')).toMatch(/balance/);
  });

  test('an authority that can not be read, or is no certificate', () => {
    const folder = tempFolder();
    writeFile(folder, 'none.pem', 'not a certificate\n');
    expect(linesOf(check('type: tls, ca: ./gone.pem'), {}, folder)[0]).toMatch(/backends\.web\.check\.ca: .*gone\.pem/);
    expect(linesOf(check('type: tls, ca: ./none.pem'), {}, folder)).toHaveLength(1);
  });

  test('a token file that can not be read, and an empty one, which anybody would match', () => {
    const folder = tempFolder();
    expect(linesOf('api: { token: { file: ./token } }', {}, folder)[0]).toMatch(
      /^f\.yaml:1:23 api\.token\.file: the token can't be used: ENOENT/,
    );
    writeFileSync(join(folder, 'token'), '\n');
    expect(linesOf('api: { token: { file: ./token } }', {}, folder)).toHaveLength(1);
    rmSync(join(folder, 'token'));
  });
});

describe('defaults and units', () => {
  test('of the file', () => {
    const config = configOf('', {}, '/etc/understudy');
    expect(config).toMatchObject({
      cluster: 'understudy',
      node: hostname(),
      shared: false,
      bus: 'memory',
      journal: { path: `/etc/understudy/data/${hostname()}.db`, keep: 30 * 86_400_000, maxSize: 10 * 1024 ** 3 },
      api: { listen: { host: '127.0.0.1', port: 8404 } },
    });
    expect(config.workers).toBeGreaterThan(0);
  });

  test('of frontends, backends, servers and checks', () => {
    const config = configOf(`${FRONTEND}${check('type: http')}`);
    expect(config.frontends['shop']).toEqual({
      mode: 'http',
      bind: [{ address: { host: '127.0.0.1', port: 0 } }],
      rules: [],
      use: 'web',
      forwardedFor: 'add',
      errorPages: {},
      http2: { maxConcurrentStreams: 100, initialWindow: 65_535, maxHeaderList: 16_384 },
      maxConnections: 20_000,
      timeouts: { client: 50_000, httpRequest: 10_000, keepAlive: 60_000 },
      drain: 30_000,
    });
    expect(config.backends['web']).toMatchObject({
      balance: { type: 'roundRobin' },
      check: {
        ...{ method: 'GET', path: '/', expect: [[200, 399]], interval: 2000, timeout: 1000, rise: 2, fall: 3 },
        ...{ jitter: 0.02, headers: {} },
      },
      servers: [{ weight: 1, backup: false, disabled: false, maxConnections: 0, address: { host: 'h', port: 1 } }],
      quorum: 1,
      hysteresis: 0,
      initially: 'unchecked',
      slowStart: 0,
      onMarkedDown: 'keepSessions',
      panic: 0,
      maxQueue: 10_000,
      errorPages: {},
      tls: false,
      retries: 3,
      timeouts: { connect: 5000, server: 50_000, queue: 5000, tunnel: 3_600_000 },
    });
  });

  test.each<[string, number | null]>([
    ['500ms', 500],
    ['2s', 2000],
    ['1.5m', 90_000],
    ['1h', 3_600_000],
    ['30d', 2_592_000_000],
    ['100us', 0.1],
    ['0', 0],
    ['5', null],
    ['', null],
    ['-1s', null],
    ['1 week', null],
    ['5constructor', null],
    ['1toString', null],
  ])('duration %j', (text, ms) => expect(parseDuration(text)).toBe(ms));

  test.each<[string, number | null]>([
    ['1B', 1],
    ['16KiB', 16_384],
    ['1MB', 1_000_000],
    ['10GiB', 10 * 1024 ** 3],
    ['1TiB', 1024 ** 4],
    ['10', null],
    ['10gib', null],
    ['1valueOf', null],
  ])('size %j', (text, bytes) => expect(parseSize(text)).toBe(bytes));

  test.each(['127.0.0.1:80', '[::1]:80', 'web.internal:65535', '*:80', '[fe80::1%eth0]:1'])('address %s', (text) => {
    expect(formatEndpoint(parseEndpoint(text)!)).toBe(text);
  });
  test.each(['', '80', ':80', '::1:80', 'a b:80', 'a:65536', 'http://a:80', 'a:80/', 'a:-1'])(
    'no address: %j',
    (text) => {
      expect(parseEndpoint(text)).toBeNull();
    },
  );

  test('statuses as number, range, list and text', () => {
    const expectOf = (text: string) => {
      const { check: checked } = configOf(check(`type: http, expect: ${text}`)).backends['web']!;
      return checked && 'path' in checked ? checked.expect : null;
    };
    expect(expectOf('204')).toEqual([[204, 204]]);
    expect(expectOf('200-299')).toEqual([[200, 299]]);
    expect(expectOf('[200, 301-302]')).toEqual([
      [200, 200],
      [301, 302],
    ]);
    expect(expectOf('"200, 301 - 302"')).toEqual([
      [200, 200],
      [301, 302],
    ]);
  });
});

describe('environment', () => {
  test('names, defaults, and numbers', () => {
    const config = configOf(
      `node: lb-\${SITE}\ncluster: \${CLUSTER:-shop}\nworkers: \${WORKERS}\n${backend('', 'servers: [{ name: a, address: "${HOST:-h}:${PORT}" }]')}`,
      { SITE: 'bern', WORKERS: '3', PORT: '81' },
    );
    expect(config).toMatchObject({ node: 'lb-bern', cluster: 'shop', workers: 3 });
    expect(config.backends['web']!.servers[0]!.address).toEqual({ host: 'h', port: 81 });
  });

  test('a number that is a default', () => expect(configOf('workers: ${WORKERS:-4}').workers).toBe(4));

  test('an unknown key that JavaScript knows in every object is one that the file doesn’t know', () => {
    expect(linesOf('constructor: ${A}', { A: 'x' })).toEqual([
      expect.stringMatching(/^f.yaml:1:1 constructor: unknown key; allowed are /),
    ]);
  });

  test('a missing one is told once, with its path and a cure', () => {
    expect(linesOf('workers: ${WORKERS}')).toEqual([
      'f.yaml:1:10 workers: the environment has no WORKERS; ${WORKERS:-default} gives it a default',
    ]);
  });

  test.each(['{abc', '@abc', '*x', '[1', '"half', 'a #b', 'a: b', '- x', '%y', '12345', 'true', 'null'])(
    'a secret may be any text: %j',
    (secret) => {
      expect(configOf('api:\n  token: ${TOKEN}', { TOKEN: secret }).api.token).toBe(secret);
      expect(configOf('api:\n  token: "${TOKEN}"', { TOKEN: secret }).api.token).toBe(secret);
    },
  );
});

describe('the JSON Schema', () => {
  const schema = configJsonSchema();

  test('is one, and takes a valid file', async () => {
    const { parse } = await import('yaml');
    const validate = new Ajv2020({ strict: false }).compile(schema as object);
    expect(validate(parse(VALID)), JSON.stringify(validate.errors)).toBe(true);
    expect(validate({ wrokers: 1 })).toBe(false);
    expect(validate({ workers: 'many' })).toBe(false);
  });
});

describe('whatever the text, the answer is a value', () => {
  /** What is wrong with the answer: problems without words, or at places that the file doesn't have. */
  const wrongIn = (text: string): string[] => {
    const loaded = loadConfig(text, { A: '1', B: '[x' }, '/nowhere');
    if ('config' in loaded) return [];
    if (loaded.problems.length === 0) return ['neither a configuration nor a problem'];
    const lines = text.split('\n');
    return loaded.problems
      .filter(({ line, column, message }) => {
        const length = lines[line - 1]?.length ?? -1;
        return message === '' || column < 1 || column > length + 1;
      })
      .map((problem) => formatProblem('f.yaml', problem));
  };
  const word = fc.constantFrom(
    ...'frontends backends servers check type http name address bind use api token a b 1 -1 1s 1e9 null true ~ * & ! | > % @ ` " \' # ? - : , [ ] { } << *x &x ${A} ${B} ${C} ${C:-d} __proto__ constructor'.split(
      ' ',
    ),
    ' ',
    '  ',
    '\n',
    '\n  ',
    ': ',
    '\t',
    '\r\n',
    '---\n',
  );

  test('text made of pieces of YAML', () => {
    fc.assert(
      fc.property(fc.array(word, { maxLength: 40 }), (words) => {
        expect(wrongIn(words.join(''))).toEqual([]);
      }),
      { numRuns: 1500 },
    );
  });

  test('a valid file with something changed', () => {
    const change = fc.record({ at: fc.nat(VALID.length), cut: fc.nat(12), put: fc.oneof(word, fc.string()) });
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 4 }), (changes) => {
        let text = VALID;
        for (const { at, cut, put } of changes) text = text.slice(0, at) + put + text.slice(at + cut);
        expect(wrongIn(text)).toEqual([]);
      }),
      { numRuns: 1000 },
    );
  });
});
