/** Rules of a frontend: conditions, actions, and what later rules see of earlier ones. */
import { createHash, randomBytes, scryptSync } from 'node:crypto';
import fc from 'fast-check';
import ipaddr from 'ipaddr.js';
import { describe, expect, test } from 'vitest';
import { AddressSet, parseAddress } from '../src/proxy/addresses.ts';
import { plainPathOf } from '../src/proxy/requestView.ts';
import { usesId } from '../src/proxy/rules.ts';
import { compile, decide, modelsOf, outcome, request } from './ruleHelpers.ts';
import type { Rules } from './ruleHelpers.ts';

/** Whether a condition holds. */
const holds = (when: Record<string, unknown>, facts: Parameters<typeof decide>[1] = {}): boolean =>
  decide([{ when, deny: 403 }], facts).answer !== null;

const shown = {
  serverName: null,
  protocol: 'TLSv1.3',
  cipher: 'TLS_AES_128_GCM_SHA256',
  alpn: null,
  client: { subject: 'CN=ann', issuer: 'CN=ca', serial: '0A', fingerprint: 'AB:CD', notAfter: '2027-01-01T00:00:00Z' },
};

describe('conditions', () => {
  test.each<[string, Record<string, unknown>, Parameters<typeof decide>[1], boolean]>([
    ['an exact host', { host: 'www.example.com' }, {}, true],
    ['a host in another case', { host: 'WWW.Example.com' }, {}, true],
    ['another host', { host: 'example.com' }, {}, false],
    ['a host with its root spelled out', { host: 'www.example.com' }, { host: 'www.example.com.' }, true],
    ['a wildcard for a name below', { host: '*.example.com' }, {}, true],
    ['a wildcard for a name far below', { host: '*.example.com' }, { host: 'a.b.example.com' }, true],
    ['a wildcard not for the name itself', { host: '*.example.com' }, { host: 'example.com' }, false],
    ['a wildcard not for a name that ends alike', { host: '*.example.com' }, { host: 'badexample.com' }, false],
    ['one of a list of hosts', { host: ['a.de', 'b.de', '*.com'] }, {}, true],
    ['an exact path', { path: '/admin' }, { path: '/admin' }, true],
    ['an exact path, not one below', { path: '/admin' }, { path: '/admin/x' }, false],
    ['a folder for all below', { path: '/admin/**' }, { path: '/admin/x/y' }, true],
    ['a folder for itself', { path: '/admin/**' }, { path: '/admin' }, true],
    ['a folder not for what begins alike', { path: '/admin/**' }, { path: '/administrator' }, false],
    ['a glob within a segment', { path: '/v*/users' }, { path: '/v2/users' }, true],
    ['a glob not across segments', { path: '/v*/users' }, { path: '/v2/x/users' }, false],
    ['a glob across segments', { path: '/**/users' }, { path: '/v2/x/users' }, true],
    ['a path that was percent-encoded', { path: '/admin/**' }, { path: '/%61dmin/x' }, true],
    ['a path with dot segments', { path: '/admin/**' }, { path: '/public/../admin/x' }, true],
    ['a path with encoded dot segments', { path: '/admin/**' }, { path: '/public/%2e%2e/admin/x' }, true],
    ['a path with empty segments', { path: '/admin/**' }, { path: '//admin//x' }, true],
    ['a path in UTF-8', { path: '/café' }, { path: '/caf%C3%A9' }, true],
    ['a path written encoded', { path: '/caf%c3%a9' }, { path: '/caf%C3%A9' }, true],
    ['a regular expression of the path', { pathPattern: '^/u/\\d+$' }, { path: '/u/42' }, true],
    ['a regular expression that is not found', { pathPattern: '^/u/\\d+$' }, { path: '/u/x' }, false],
    ['a method', { method: ['POST', 'PUT'] }, { method: 'PUT' }, true],
    ['another method', { method: ['POST', 'PUT'] }, {}, false],
    ['a header', { header: { 'X-Beta': 1 } }, { headers: { 'x-beta': '1' } }, true],
    ['a header with another value', { header: { 'X-Beta': ['1', 'yes'] } }, { headers: { 'x-beta': 'no' } }, false],
    ['no header', { header: { 'X-Beta': '1' } }, {}, false],
    ['a header that must be absent', { header: { 'X-Beta': { present: false } } }, {}, true],
    ['a header that must be present', { header: { 'X-Beta': { present: true } } }, { headers: { 'x-beta': '' } }, true],
    ['a header by pattern', { header: { Accept: { pattern: 'json$' } } }, { headers: { accept: 'a/json' } }, true],
    ['a header by prefix', { header: { Accept: { prefix: 'a/' } } }, { headers: { accept: 'a/json' } }, true],
    ['a header by suffix', { header: { Accept: { suffix: ['x', 'json'] } } }, { headers: { accept: 'a/json' } }, true],
    ['a header by content', { header: { Accept: { contains: '/j' } } }, { headers: { accept: 'a/json' } }, true],
    [
      'a header by two tests of which one fails',
      { header: { Accept: { prefix: 'a/', suffix: 'xml' } } },
      { headers: { accept: 'a/json' } },
      false,
    ],
    ['a header in UTF-8', { header: { 'X-Name': 'é' } }, { headers: { 'x-name': 'Ã©' } }, true],
    ['a cookie', { cookie: { beta: true } }, { cookies: { beta: 'true' } }, true],
    ['a parameter', { query: { a: 'x y' } }, { query: 'b=1&a=x+y' }, true],
    ['a parameter that was encoded, name and value', { query: { a: 'x y' } }, { query: '%61=x%20y' }, true],
    ['any of several parameters of one name', { query: { debug: '1' } }, { query: 'debug=0&debug=1' }, true],
    ['a parameter without value', { query: { debug: { present: true } } }, { query: 'debug' }, true],
    ['no parameter', { query: { debug: { present: false } } }, { query: 'debugger=1' }, true],
    ['TLS', { tls: true }, { isTls: true }, true],
    ['no TLS', { tls: false }, { isTls: true }, false],
    ['a client certificate', { clientCertificate: true }, { tls: shown }, true],
    [
      'a client certificate that was not shown',
      { clientCertificate: true },
      { tls: { ...shown, client: null } },
      false,
    ],
    ['no client certificate', { clientCertificate: false }, {}, true],
    ['SNI', { serverName: '*.example.com' }, { serverName: 'a.example.com' }, true],
    ['no SNI', { serverName: '*' }, {}, false],
    ['a port', { localPort: [80, 8080] }, {}, true],
    ['a network', { source: '192.0.2.0/24' }, {}, true],
    ['a network within another', { source: ['192.0.2.0/30', '192.0.0.0/16', '192.0.2.0/24'] }, {}, true],
    ['a network that begins as a smaller one', { source: ['192.0.0.0/24', '192.0.0.0/8'] }, {}, true],
    ['another network', { source: ['10.0.0.0/8', '192.0.3.0/24'] }, {}, false],
    ['an IPv6 network', { source: ['10.0.0.0/8', '2001:db8::/32'] }, { source: '2001:db8:1::7' }, true],
    ['an IPv4 client by its IPv6 spelling', { source: '192.0.2.7' }, { source: '::ffff:192.0.2.7' }, true],
    ['a client on a Unix socket is in no network', { source: ['0.0.0.0/0', '::/0'] }, { source: '' }, false],
    ['all keys must hold', { host: 'www.example.com', path: '/x' }, {}, false],
    ['not', { not: { host: 'a.de' } }, {}, true],
    ['any', { any: [{ host: 'a.de' }, { method: 'GET' }] }, {}, true],
    ['any of none that holds', { any: [{ host: 'a.de' }, { method: 'PUT' }, { path: '/x' }] }, {}, false],
    ['all', { all: [{ method: 'GET' }, { path: '/' }, { not: { path: '/x' } }] }, {}, true],
  ])('%s', (_name, when, facts, expected) => {
    expect(holds(when, facts)).toBe(expected);
  });

  test('usable servers: at least, and below', () => {
    const at = (usable: number) =>
      outcome(
        compile(
          [
            { when: { usable: { pool: 'web', below: 1 } }, return: 503 },
            { when: { usable: { pool: 'web', atLeast: 2 } }, use: 'many' },
          ],
          { usableServers: (pool) => (pool === 'web' ? usable : 99) },
        ).decide(request(), ''),
      );
    expect([0, 1, 2, 3].map(at)).toEqual([503, null, 'many', 'many']);
  });

  test('what is allowed below a folder can not be left by dots', () => {
    const rules = [{ when: { not: { path: '/public/**' } }, deny: 403 }];
    expect(outcome(decide(rules, { path: '/public/a' }))).toBe(null);
    expect(outcome(decide(rules, { path: '/public/../admin' }))).toBe(403);
    expect(outcome(decide(rules, { path: '/public/%2E%2e/admin' }))).toBe(403);
  });

  test('an encoded slash parts no segments', () => {
    expect(plainPathOf('/a%2fb/%2E/c%zz')).toBe('/a%2Fb/c%zz');
    expect(plainPathOf('/../..//a/./b/..')).toBe('/a/');
  });

  test('many names, of which the first rule that matches counts, wildcards included', () => {
    const rules: Rules = [
      { when: { host: ['a.example.com', 'b.example.com'] }, use: 'one' },
      { when: { host: '*.example.com' }, use: 'two' },
      { when: { host: 'c.example.com' }, use: 'never' },
      { when: { host: 'd.example.org' }, use: 'three' },
      { when: { host: '*' }, use: 'rest' },
    ];
    const hosts = ['a.example.com', 'b.example.com.', 'c.example.com', 'x.y.example.com', 'd.example.org', 'z', ''];
    expect(hosts.map((host) => outcome(decide(rules, { host })))).toEqual([
      ...['one', 'one', 'two', 'two', 'three', 'rest', 'rest'],
    ]);
  });
});

describe('addresses', () => {
  const address = fc.oneof(fc.ipV4(), fc.ipV6());

  test('are read as ipaddr.js reads them', () => {
    fc.assert(
      fc.property(address, (text) => {
        // ipaddr.js takes the deprecated form of IPv4-compatible addresses for mapped ones.
        fc.pre(!/^::\d+\.\d/.test(text));
        const words = new Uint32Array(4);
        const family = parseAddress(text, words);
        const parsed = ipaddr.process(text);
        expect(family).toBe(parsed.kind() === 'ipv4' ? 4 : 6);
        const bytes = Buffer.alloc(16);
        for (const [index, word] of words.entries()) bytes.writeUInt32BE(word, index * 4);
        expect([...bytes.subarray(0, family === 4 ? 4 : 16)]).toEqual(parsed.toByteArray());
      }),
      { numRuns: 500 },
    );
  });

  test.each([
    '',
    '1.2.3',
    '1.2.3.4.5',
    '1.2.3.256',
    '1..2.3',
    ':',
    ':::',
    '1::2::3',
    '1:2:3:4:5:6:7',
    'g::',
    '12345::',
  ])('%j is none', (text) => {
    expect(parseAddress(text, new Uint32Array(4))).toBe(0);
  });

  test('a set of networks has what one of them has', () => {
    const network = fc.oneof(
      fc.tuple(fc.ipV4(), fc.integer({ min: 0, max: 32 })),
      fc.tuple(fc.ipV6(), fc.integer({ min: 0, max: 128 })),
    );
    fc.assert(
      fc.property(fc.array(network, { maxLength: 8 }), address, fc.boolean(), (networks, other, takesOne) => {
        const own = networks[0]?.[0];
        const text = takesOne && own !== undefined ? own : other;
        // Mapped IPv4 is refused as a network, and is IPv4 as a client.
        fc.pre(networks.every(([host]) => !/^(?:0{0,4}:){2,}/.test(host)) && !/^(?:0{0,4}:){2,}/.test(text));
        const set = new AddressSet(networks.map(([host, bits]) => `${host}/${bits}`));
        const words = new Uint32Array(4);
        const has = set.has(parseAddress(text, words), words);
        const parsed = ipaddr.parse(text);
        const expected = networks.some(([host, bits]) => {
          const base = ipaddr.parse(host);
          return base.kind() === parsed.kind() && parsed.match(base, bits);
        });
        expect(has).toBe(expected);
      }),
      { numRuns: 500 },
    );
  });
});

describe('actions', () => {
  test('rules go on behind `use`: headers are set and requests are denied whatever the backend; the first use counts', () => {
    const rules: Rules = [
      { when: { host: 'www.example.com' }, use: 'api' },
      { use: 'other' },
      { setHeader: { 'X-Forwarded-Proto': '{scheme}' } },
      { when: { path: '/admin/**' }, deny: 403 },
    ];
    expect(decide(rules)).toMatchObject({
      backend: 'api',
      answer: null,
      target: null,
      requestEdits: [{ kind: 'set', name: 'X-Forwarded-Proto', value: 'http' }],
    });
    expect(outcome(decide(rules, { path: '/admin/x' }))).toBe(403);
    expect(decide(rules, { host: 'a' }).backend).toBe('other');
  });

  test('accepting ends the rules', () => {
    expect(outcome(decide([{ allow: true }, { deny: 403 }]))).toBe(null);
  });

  test.each<[string, Record<string, unknown>, object]>([
    ['deny: true', { deny: true }, { status: 403, headers: [], body: null, delayMs: 0 }],
    ['deny with a status', { deny: 429 }, { status: 429 }],
    [
      'deny with a body',
      { deny: { status: 451, body: 'no', headers: { 'X-Why': 'law' } } },
      {
        status: 451,
        body: 'no',
        headers: [
          ['Content-Type', 'text/plain; charset=utf-8'],
          ['X-Why', 'law'],
        ],
      },
    ],
    ['tarpit', { tarpit: '5s' }, { status: 500, delayMs: 5000, body: null }],
    ['tarpit with a status', { tarpit: { delay: '1s', status: 403 } }, { status: 403, delayMs: 1000 }],
    ['return with a status', { return: 204 }, { status: 204, headers: [], body: '' }],
    [
      'return with a body',
      { return: { body: '{}', contentType: 'application/json' } },
      { status: 200, body: '{}', headers: [['Content-Type', 'application/json']] },
    ],
    ['redirect', { redirect: 'https://a.de/' }, { status: 302, headers: [['Location', 'https://a.de/']], body: '' }],
    [
      'redirect with a template',
      { redirect: 'https://{host}{uri}' },
      { headers: [['Location', 'https://www.example.com/a%20b?c=d']] },
    ],
    [
      'redirect to another scheme',
      { redirect: { scheme: 'https', status: 308 } },
      { status: 308, headers: [['Location', 'https://www.example.com/a%20b?c=d']] },
    ],
    [
      'redirect to another site',
      { redirect: { prefix: 'https://new.example', status: 301 } },
      { status: 301, headers: [['Location', 'https://new.example/a%20b?c=d']] },
    ],
  ])('%s', (_name, action, expected) => {
    expect(decide([action], { path: '/a%20b', query: 'c=d' }).answer).toMatchObject(expected);
  });

  test('a path that begins with // does not become the host of a redirect', () => {
    const location = (text: string, path: string) => decide([{ redirect: text }], { path }).answer?.headers[0]?.[1];
    expect(location('{uri}', '//evil.example/')).toBe('/evil.example/');
    expect(location('/{path}', '/evil.example/')).toBe('/evil.example/');
    expect(location('//cdn.example{path}', '/a')).toBe('//cdn.example/a');
  });

  test('a redirect to the host needs one', () => {
    expect(outcome(decide([{ redirect: { scheme: 'https' } }], { host: '' }))).toBe(400);
  });

  test('what clients send can not leave its place in a location', () => {
    const facts = { headers: { 'x-to': 'a\tb"<é' }, query: 'to=%0d%0aX:1&x=1' };
    expect(decide([{ redirect: '/{header:X-To}?{query:to}' }], facts).answer?.headers).toEqual([
      ['Location', '/a%09b%22%3C%E9?%0d%0aX:1'],
    ]);
  });

  test('RFC 9110 section 5.5: no decoded value brings a control character into a header', () => {
    const { requestEdits } = decide([{ setHeader: { 'X-To': 'a {query:to} ✓' } }], { query: 'to=1%0d%0aX:%002' });
    expect(requestEdits).toEqual([{ kind: 'set', name: 'X-To', value: 'a 1X:2 â\u009c\u0093' }]);
  });

  test('every header action, on the request and on the response', () => {
    const actions = {
      removeHeader: ['A', 'B'],
      replaceHeader: { name: 'C', pattern: '^(.)x', with: '$1y' },
      setHeader: { D: '{method}', E: 1 },
      addHeader: { F: '{{{id}' },
    };
    const edits = [
      { kind: 'remove', name: 'A', value: '' },
      { kind: 'remove', name: 'B', value: '' },
      { kind: 'replace', name: 'C', pattern: /^(.)x/, value: '$1y' },
      { kind: 'set', name: 'D', value: 'GET' },
      { kind: 'set', name: 'E', value: '1' },
      { kind: 'add', name: 'F', value: '{id1' },
    ];
    const each = Object.entries(actions).map(([key, value]) => ({ [key]: value }));
    expect(decide(each)).toMatchObject({ requestEdits: edits, responseEdits: [] });
    expect(decide([{ response: actions }])).toMatchObject({ requestEdits: [], responseEdits: edits });
  });

  test('every variable of templates', () => {
    const template =
      '{scheme} {host} {path} {query} {uri} {method} {source} {localPort} {serverName} {header:X-A} {cookie:c} {query:q} {id} {user}.';
    const facts = { query: 'q=x%20y', headers: { 'x-a': 'A' }, cookies: { c: 'C' }, serverName: 'sni' };
    expect(decide([{ setHeader: { X: template } }], facts).requestEdits[0]).toMatchObject({
      value: 'http www.example.com / q=x%20y /?q=x%20y GET 192.0.2.7 80 sni A C x y id1 .',
    });
  });

  test.each<[string, Record<string, unknown>, string | null]>([
    ['setPath', { setPath: '/v1{path}' }, '/v1/a?x=1&y=2'],
    ['setPath encodes what is not of a path', { setPath: '/ü {header:X-P}' }, '/%C3%BC%20a%3Fb?x=1&y=2'],
    ['replacePath', { replacePath: { pattern: '^/(.*)$', with: '/b/$1/?' } }, '/b/a/%3F?x=1&y=2'],
    ['replacePath takes the whole place', { replacePath: { pattern: 'a', with: '/z' } }, '/z?x=1&y=2'],
    ['replacePath without a match', { replacePath: { pattern: '^/x', with: '/' } }, null],
    ['setQuery as a text', { setQuery: 'p={path}&h={header:X-P}' }, '/a?p=/a&h=a%3Fb'],
    ['setQuery as a text with a question mark', { setQuery: '?x' }, '/a?x'],
    ['an empty query', { setQuery: '' }, '/a'],
    ['setQuery by parameter', { setQuery: { x: null, z: '{header:X-P}&{query:y}' } }, '/a?y=2&z=a%3Fb%262'],
    ['setQuery of one that is there', { setQuery: { x: '{query:x}1' } }, '/a?y=2&x=11'],
  ])('%s', (_name, action, target) => {
    expect(decide([action], { path: '/a', query: 'x=1&y=2', headers: { 'x-p': 'a?b' } }).target).toBe(target);
  });

  test('a question mark of a parameter does not begin the query', () => {
    expect(decide([{ setPath: '/{query:q}' }], { query: 'q=a?b' }).target).toBe('/a%3Fb?q=a?b');
  });

  test('RFC 9112 section 3.2.4: the asterisk is no path and is not rewritten', () => {
    expect(decide([{ setPath: '/x' }], { method: 'OPTIONS', path: '*' }).target).toBe(null);
  });

  test('a target that grows beyond what servers take is refused', () => {
    expect(outcome(decide([{ setPath: '/{path}{path}' }], { path: `/${'a'.repeat(5000)}` }))).toBe(414);
  });

  test('RFC 9112 section 3.2: a Host that is none is refused instead of sent', () => {
    const rules = [{ setHeader: { Host: '{header:X-Host}' } }];
    expect(decide(rules, { headers: { 'x-host': 'a.de:80' } }).requestEdits).toMatchObject([{ value: 'a.de:80' }]);
    for (const bad of ['', 'a b', 'a/b']) expect(outcome(decide(rules, { headers: { 'x-host': bad } }))).toBe(400);
  });
});

test('a template names the TLS of the connection and the certificate that the client has shown; nothing without one', () => {
  const text =
    '{tlsVersion}|{tlsCipher}|{clientSubject}|{clientIssuer}|{clientSerial}|{clientFingerprint}|{clientNotAfter}';
  const rules = [{ setHeader: { 'X-TLS': text } }];
  expect(decide(rules, { tls: shown }).requestEdits[0]).toMatchObject({
    value: 'TLSv1.3|TLS_AES_128_GCM_SHA256|CN=ann|CN=ca|0A|AB:CD|2027-01-01T00:00:00Z',
  });
  expect(decide(rules).requestEdits[0]).toMatchObject({ value: '||||||' });
});

describe('later rules see what earlier ones changed', () => {
  test.each<[string, Rules, string | null]>([
    ['the path', [{ setPath: '/x' }, { when: { path: '/x' }, use: 'yes' }], 'yes'],
    ['the path that is no more', [{ setPath: '/x' }, { when: { path: '/a' }, use: 'yes' }], null],
    ['the query', [{ setQuery: { q: '1' } }, { when: { query: { q: '1' } }, use: 'yes' }], 'yes'],
    ['a header', [{ setHeader: { 'X-A': '1' } }, { when: { header: { 'x-a': '1' } }, use: 'yes' }], 'yes'],
    ['an added header', [{ addHeader: { 'X-B': '2' } }, { when: { header: { 'x-b': '1, 2' } }, use: 'yes' }], 'yes'],
    [
      'a removed header',
      [{ removeHeader: 'X-B' }, { when: { header: { 'x-b': { present: false } } }, use: 'yes' }],
      'yes',
    ],
    [
      'a replaced header',
      [
        { replaceHeader: { name: 'x-b', pattern: '(1)', with: '$1$1' } },
        { when: { header: { 'x-b': '11' } }, use: 'yes' },
      ],
      'yes',
    ],
    ['the host', [{ setHeader: { host: 'New.de:80' } }, { when: { host: 'new.de' }, use: 'yes' }], 'yes'],
    ['a cookie', [{ setHeader: { Cookie: 'a=b; c=d' } }, { when: { cookie: { c: 'd' } }, use: 'yes' }], 'yes'],
    ['templates', [{ setPath: '/x' }, { setPath: '{path}/y' }, { when: { path: '/x/y' }, use: 'yes' }], 'yes'],
    [
      'but not a change of the response',
      [{ response: { setHeader: { 'X-A': '1' } } }, { when: { header: { 'x-a': '1' } }, use: 'yes' }],
      null,
    ],
  ])('%s', (_name, rules, backend) => {
    expect(decide(rules, { path: '/a', headers: { 'x-b': '1' } }).backend).toBe(backend);
  });

  test('and a request that comes after knows nothing of it', () => {
    const set = compile([{ when: { path: '/a' }, setPath: '/x' }, { setHeader: { 'X-A': '{source}' } }]);
    set.decide(request({ path: '/a' }), '');
    const { target, requestEdits } = set.decide(request({ path: '/b', query: 'q', source: '10.0.0.1' }), '');
    expect([target, requestEdits]).toEqual([null, [{ kind: 'set', name: 'X-A', value: '10.0.0.1' }]]);
  });
});

describe('decisions are shared', () => {
  const rules: Rules = [
    { when: { path: '/admin/**' }, deny: 403 },
    { when: { host: 'api.example.com' }, use: 'api' },
    { setHeader: { 'X-Forwarded-Proto': '{scheme}' } },
    { response: { setHeader: { 'X-Frame-Options': 'DENY' } } },
  ];

  test('by requests for which the same rules hold with the same few values', () => {
    const set = compile(rules);
    const first = set.decide(request({ path: '/a' }), '1');
    expect(Object.isFrozen(first)).toBe(true);
    expect(set.decide(request({ path: '/b', source: '10.0.0.1' }), '2')).toBe(first);
    const encrypted = set.decide(request({ scheme: 'https' }), '3');
    expect(encrypted).not.toBe(first);
    expect(encrypted.requestEdits).toMatchObject([{ value: 'https' }]);
  });

  test('but what a client sends is its own alone', () => {
    const set = compile([...rules, { setHeader: { 'X-Real-IP': '{source}' } }]);
    const values = ['10.0.0.1', '10.0.0.2'].map((source) => set.decide(request({ source }), '').requestEdits[1]);
    expect(values).toMatchObject([{ value: '10.0.0.1' }, { value: '10.0.0.2' }]);
  });
});

describe('mode tcp', () => {
  const set = compile([
    { when: { source: '10.0.0.0/8' }, reject: true },
    { when: { source: '192.0.2.1' }, accept: true },
    { when: { serverName: '*.example.com' }, use: 'web' },
    { when: { localPort: 81 }, deny: true },
  ]);
  const decided = (facts: Parameters<typeof request>[0]) => set.decideConnection(request(facts));

  test('accepts, rejects and chooses the backend of a connection', () => {
    expect(decided({ source: '10.1.1.1', serverName: 'a.example.com' })).toEqual({ backend: null, reject: true });
    expect(decided({ source: '192.0.2.1', localPort: 81 })).toEqual({ backend: null, reject: false });
    expect(decided({ serverName: 'a.example.com' })).toEqual({ backend: 'web', reject: false });
    expect(decided({ localPort: 81 })).toEqual({ backend: null, reject: true });
    expect(decided({})).toBe(decided({}));
  });

  test('tells whether it needs SNI', () => {
    expect(set.usesServerName).toBe(true);
    expect(compile([{ when: { not: { any: [{ serverName: 'a' }] } }, reject: true }]).usesServerName).toBe(true);
    expect(compile([{ when: { source: '::/0' }, reject: true }]).usesServerName).toBe(false);
  });
});

test('tells whether it needs the id of a request', () => {
  expect(usesId(modelsOf([{ setHeader: { 'X-Request-Id': '{id}' } }]))).toBe(true);
  expect(usesId(modelsOf([{ setHeader: { 'X-Request-Id': 'id' } }]))).toBe(false);
});

describe('basic authentication (RFC 7617)', () => {
  const basic = (text: string, charset: BufferEncoding = 'utf8') => ({
    headers: { authorization: `Basic ${Buffer.from(text, charset).toString('base64')}` },
  });
  const guarded = (users: Record<string, unknown>): Rules => [
    { allow: { users, realm: 'a "b"' } },
    { setHeader: { 'X-User': '{user}' } },
  ];
  const sha256 = (text: string, salt = Buffer.alloc(0)) =>
    Buffer.concat([createHash('sha256').update(text).update(salt).digest(), salt]).toString('base64');

  test('asks who gives no credentials', () => {
    expect(decide(guarded({ ann: 'secret' })).answer).toMatchObject({
      status: 401,
      headers: [['WWW-Authenticate', 'Basic realm="a \\"b\\"", charset="UTF-8"']],
    });
  });

  test.each<[string, unknown, string]>([
    ['a password', 'secret', 'secret'],
    ['a password with a colon, in UTF-8', 'sé:cret', 'sé:cret'],
    ['a password from a file', { file: './p' }, 'text of ./p'],
    ['{SHA256}', `{SHA256}${sha256('secret')}`, 'secret'],
    ['{SSHA256}', `{SSHA256}${sha256('secret', Buffer.from('salt'))}`, 'secret'],
  ])('goes on with %s, and asks with another', (_form, stored, password) => {
    const set = compile(guarded({ ann: stored }));
    const status = (text: string) => outcome(set.decide(request(basic(text)), ''));
    // Twice: the second is answered from memory.
    expect(
      [`ann:${password}`, `ann:${password}`, `ann:${password}x`, `bob:${password}`, 'ann:', 'ann'].map(status),
    ).toEqual([null, null, 401, 401, 401, 401]);
    const { requestEdits } = set.decide(request(basic(`ann:${password}`)), '');
    expect(requestEdits).toMatchObject([{ value: 'ann' }]);
  });

  test.each([
    ['of another scheme', 'Bearer abc'],
    ['of nothing', 'Basic'],
    ['that are not base64', 'Basic %%%'],
    ['of two fields', 'Basic YTph, Basic YTph'],
    ['that are too long', `Basic ${'a'.repeat(5000)}`],
  ])('asks with credentials %s', (_what, authorization) => {
    expect(outcome(decide(guarded({ a: 'a' }), { headers: { authorization } }))).toBe(401);
  });

  const salt = randomBytes(16);
  const slow = (password: string) => {
    const key = scryptSync(password, salt, 32, { N: 1024, r: 8, p: 1 });
    const text = (bytes: Buffer) => bytes.toString('base64').replaceAll('=', '');
    return `$scrypt$ln=10,r=8,p=1$${text(salt)}$${text(key)}`;
  };

  test.each([
    ['holds', 'ann:secret', null],
    ['is wrong', 'ann:wrong', 401],
    ['is of nobody', 'bob:secret', 401],
  ])('a slow password that %s is worked out elsewhere while the request waits', async (_what, text, expected) => {
    const set = compile(guarded({ ann: slow('secret') }));
    const facts = request(basic(text));
    const first = set.decide(facts, '');
    // Whoever can't wait says this.
    expect(first.answer).toMatchObject({ status: 503, headers: [['Retry-After', '1']] });
    expect(first.wait).not.toBe(null);
    await new Promise<void>((resolve) => first.wait!(resolve));
    const second = set.decide(facts, '');
    expect([second.wait, outcome(second)]).toEqual([null, expected]);
  });

  test('no more slow passwords are worked out at a time than the pool can bear', async () => {
    const set = compile(guarded({ ann: slow('secret') }));
    const decisions = Array.from({ length: 6 }, (_, index) => set.decide(request(basic(`ann:${index}`)), ''));
    expect(decisions.map(({ wait }) => wait !== null)).toEqual([true, true, true, true, false, false]);
    expect(decisions.map(outcome)).toEqual(Array(6).fill(503));
    await Promise.all(decisions.slice(0, 4).map(({ wait }) => new Promise<void>((resolve) => wait!(resolve))));
  });
});
