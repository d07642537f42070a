/** Rules in the configuration: what is allowed, what is refused and how it is told, and what a record keeps of it. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { z } from 'zod';
import { checkRules } from '../src/config/checkRules.ts';
import { recordableRule, rule } from '../src/config/rules.ts';
import { patternProblem } from '../src/proxy/pattern.ts';
import { tempFolder } from './nodeHelpers.ts';
import type { Rules } from './ruleHelpers.ts';

/** What is wrong with the rules of a frontend, as `path: message`; the path begins behind `frontends.shop.`. */
const problemsOf = (rules: Rules, { mode = 'http', folder = '/' } = {}): string[] => {
  const problems: string[] = [];
  const file = {
    frontends: { shop: { mode, rules } },
    backends: { web: {}, api: { mode: 'http' }, mail: { mode: 'tcp' } },
  };
  checkRules(file, folder, (path, message) => {
    const text = path.slice(2).map((part) => (typeof part === 'number' ? `[${part}]` : `.${part}`));
    problems.push(`${text.join('').slice(1)}: ${message}`);
  });
  return problems;
};

const EVERYTHING: Rules = [
  {
    when: {
      source: ['10.0.0.0/8', 'fd00::/8', '192.0.2.7'],
      host: ['a.de', '*.b.de', '*'],
      path: ['/a', '/b/**'],
      pathPattern: '^/[a-z]+$',
      method: 'GET',
      header: { A: '1', B: ['1', 2], C: { present: true }, D: { pattern: 'x', prefix: 'y' } },
      cookie: { a: { suffix: 'x' } },
      query: { a: { contains: ['x', 'y'] } },
      tls: true,
      serverName: 'a.de',
      localPort: [80, 443],
      usable: { pool: 'web', atLeast: 1, below: 5 },
      rate: { key: 'header:X', per: '1m', above: 100, entries: 1000 },
      not: { any: [{ host: 'x' }, { all: [{ path: '/x' }, { not: { tls: true } }] }] },
    },
    use: 'web',
  },
  { setHeader: { 'X-Forwarded-Proto': '{scheme}', 'X-One': 1, 'Report-To': '{{"group":"x"}' } },
  { addHeader: { A: '{header:B}' } },
  { removeHeader: 'A' },
  { removeHeader: ['A', 'B'] },
  { replaceHeader: { name: 'A', pattern: '^x', with: 'y' } },
  { response: { setHeader: { A: 'b' }, removeHeader: 'Server', addHeader: { Vary: 'X' } } },
  { setPath: '/x{path}' },
  { replacePath: { pattern: '^/a', with: '/b' } },
  { setQuery: 'a=b' },
  { setQuery: { a: null, b: '{id}' } },
  { rateLimit: '10/s' },
  { rateLimit: { key: 'cookie:a', rate: '600/m', burst: 20, status: 503, entries: 1000 } },
  { allow: { users: { ann: 'x', bob: '{SHA256}n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=' }, realm: 'r' } },
  { when: { path: '/1' }, deny: true },
  { when: { path: '/2' }, deny: 429 },
  { when: { path: '/3' }, deny: { status: 451, body: 'x', contentType: 'text/html', headers: { A: '{id}' } } },
  { when: { path: '/4' }, tarpit: '5s' },
  { when: { path: '/5' }, tarpit: { delay: '5s', status: 403 } },
  { when: { path: '/6' }, redirect: 'https://{host}{uri}' },
  { when: { path: '/7' }, redirect: { scheme: 'https', status: 301 } },
  { when: { path: '/8' }, redirect: { prefix: 'https://x.de' } },
  { when: { path: '/9' }, return: { status: 200, body: 'ok', contentType: 'text/plain', headers: { A: 'b' } } },
  { when: { path: '/10' }, return: 204 },
  { allow: true },
];

test('every key in every form is allowed', () => {
  expect(z.array(rule).safeParse(EVERYTHING).error).toBeUndefined();
  expect(problemsOf(EVERYTHING)).toEqual([]);
});

test('mode tcp knows what can be told of a connection', () => {
  const rules: Rules = [
    {
      when: { source: '10.0.0.0/8', serverName: 'a', localPort: 1, tls: true, not: { rate: { above: 1 } } },
      use: 'mail',
    },
    { when: { usable: { pool: 'mail', below: 1 } }, reject: true },
    { rateLimit: { rate: '10/s' } },
    { when: { source: '::/0' }, deny: true },
    { accept: true },
  ];
  expect(z.array(rule).safeParse(rules).error).toBeUndefined();
  expect(problemsOf(rules, { mode: 'tcp' })).toEqual([]);
});

describe('what the schema refuses', () => {
  test.each<[string, Rules[number]]>([
    ['not a host', { when: { host: 'a.*.de' } }],
    ['not a path', { when: { path: 'admin' } }],
    ['not an address or network', { when: { source: '10.0.0.0/33' } }],
    ['not an address or network', { when: { source: 'localhost' } }],
    ['not a key', { rateLimit: { rate: '1/s', key: 'header:' } }],
    ['not a rate', { rateLimit: { rate: '10' } }],
    ['not a rate', { rateLimit: { rate: '0/s' } }],
    ['not the name of a field', { removeHeader: 'A B' }],
    ['not a user', { allow: { users: { 'a:b': 'x' } } }],
    ['Too small', { deny: 200 }],
    ['Too big', { tarpit: { delay: '1s', status: 700 } }],
    ['too long', { tarpit: { delay: '1h' } }],
    ['Unrecognized key', { when: { pth: '/' } }],
    ['Invalid input', { redirect: { scheme: 'ftp' } }],
  ])('%s: %j', (message, one) => {
    expect(JSON.stringify(rule.safeParse(one).error?.issues)).toContain(message);
  });
});

describe('what only the whole can tell', () => {
  test.each<[string, Rules, string[]]>([
    [
      'no action',
      [{ when: { path: '/x' } }],
      [expect.stringMatching(/^rules\[0\]: has no action; allowed are use, deny, /) as string],
    ],
    [
      'two actions',
      [{ use: 'web', deny: 403 }],
      ['rules[0].deny: a second action beside use; each action takes a rule of its own'],
    ],
    ['a misspelt action, which the schema tells of', [{ dney: 403 }], []],
    ['an unknown backend', [{ use: 'wbe' }], ['rules[0].use: there is no backend wbe; allowed are web, api, mail']],
    [
      'a backend of another mode',
      [{ use: 'mail' }],
      ['rules[0].use: backend mail has mode tcp, this frontend http; they must agree'],
    ],
    [
      'an unknown pool, below combinators too',
      [{ when: { not: { any: [{ usable: { pool: 'x', atLeast: 1 } }] } }, deny: 403 }],
      ['rules[0].when.not.any[0].usable.pool: there is no backend x; allowed are web, api, mail'],
    ],
    [
      'usable without a number, or with two that exclude each other',
      [
        { when: { usable: { pool: 'web' } }, deny: 403 },
        { when: { usable: { pool: 'web', atLeast: 2, below: 2 } }, deny: 403 },
      ],
      [
        'rules[0].when.usable: it needs atLeast or below',
        'rules[1].when.usable.below: never holds; more than 2 (atLeast) is needed',
      ],
    ],
    [
      'rules behind the end',
      [{ when: { path: '/x' }, deny: 403 }, { deny: 403 }, { use: 'web' }],
      ['rules[2]: never reached: rules[1], deny without `when`, ends the rules for everybody'],
    ],
    [
      'a second default backend',
      [{ use: 'web' }, { setHeader: { A: 'b' } }, { when: { path: '/x' }, use: 'api' }],
      [
        'rules[2].use: never counts: rules[0], use without `when`, has named the backend for everybody; the first that holds counts',
      ],
    ],
    ['logging in does not end the rules', [{ allow: { users: { a: 'b' } } }, { use: 'web' }], []],
    [
      'an empty condition',
      [{ when: {}, deny: 403 }],
      [expect.stringMatching(/^rules\[0\]\.when: it says nothing; allowed are source, host, /) as string],
    ],
    [
      'headers that are the engine’s',
      [
        { setHeader: { 'content-length': '1' } },
        { response: { removeHeader: ['Server', 'Transfer-Encoding'] } },
        { return: { headers: { Connection: 'close' } } },
      ],
      [
        "rules[0].setHeader.content-length: content-length belongs to the connection or to the framing of the message, and can't be edited",
        "rules[1].response.removeHeader[1]: Transfer-Encoding belongs to the connection or to the framing of the message, and can't be edited",
        "rules[2].return.headers.Connection: Connection belongs to the connection or to the framing of the message, and can't be edited",
      ],
    ],
    [
      'Host other than set',
      [
        { removeHeader: 'Host' },
        { addHeader: { Host: 'a' } },
        { replaceHeader: { name: 'host', pattern: 'a', with: 'b' } },
      ],
      [
        'rules[0].removeHeader: every request has a Host; setHeader can change it',
        'rules[1].addHeader.Host: a request has one Host; setHeader can change it',
        'rules[2].replaceHeader.name: Host can only be set, by setHeader',
      ],
    ],
    [
      'an unknown variable',
      [{ setHeader: { A: '{schem}' } }],
      [
        expect.stringMatching(
          /^rules\[0\]\.setHeader\.A: there is no variable \{schem\}; allowed are \{scheme\}, /,
        ) as string,
      ],
    ],
    [
      'a brace that is not closed',
      [{ setHeader: { A: 'x{host' } }],
      ['rules[0].setHeader.A: a { is not closed; {{ stands for one that is meant as such'],
    ],
    [
      'a variable without its name',
      [{ setPath: '/{header:}' }],
      [expect.stringContaining('no variable {header:}') as string],
    ],
    [
      'templates in every place',
      [
        { addHeader: { A: '{x}' } },
        { response: { setHeader: { A: '{x}' } } },
        { setQuery: { a: '{x}' } },
        { when: { path: '/' }, redirect: '{x}' },
        { when: { path: '/' }, redirect: { location: '{x}' } },
        { when: { path: '/' }, return: { headers: { A: '{x}' } } },
      ],
      [
        'rules[0].addHeader.A',
        'rules[1].response.setHeader.A',
        'rules[2].setQuery.a',
        'rules[3].redirect',
        'rules[4].redirect.location',
        'rules[5].return.headers.A',
      ].map((at) => expect.stringContaining(`${at}: there is no variable {x}`) as string),
    ],
    [
      'a regular expression that is none',
      [{ when: { pathPattern: '(' }, deny: 403 }],
      ['rules[0].when.pathPattern: Invalid regular expression: /(/: Unterminated group'],
    ],
    [
      'a regular expression that a client could keep busy',
      [{ when: { header: { A: { pattern: '^(a+)+$' } } }, deny: 403 }],
      [expect.stringContaining('rules[0].when.header.A.pattern: (a+) repeats what is repeated already') as string],
    ],
    [
      'a glob that a client could keep busy',
      [{ when: { path: '/*/**/*/**/x' }, deny: 403 }],
      ['rules[0].when.path: "/*/**/*/**/x" has more than 3 stars; a hostile path could keep it busy'],
    ],
    [
      'a header that is absent and has a value',
      [{ when: { header: { A: { present: false, equals: 'x' } } }, deny: 403 }],
      ['rules[0].when.header.A.equals: what is not present has no value to be compared'],
    ],
    [
      'redirects to nowhere, and to two places',
      [{ when: { path: '/' }, redirect: { status: 301 } }, { redirect: { scheme: 'https', prefix: 'x' } }],
      [0, 1].map((index) => `rules[${index}].redirect: it needs exactly one of location, scheme and prefix`),
    ],
    [
      'a body where there is none',
      [{ return: { status: 204, body: 'x' } }],
      ['rules[0].return.body: an answer of status 204 has no body'],
    ],
    [
      'a path that is none',
      [{ setPath: 'x' }, { setPath: '/x?y' }],
      [
        'rules[0].setPath: "x" is not a path; one starts with / or {path}',
        'rules[1].setPath: a path has no query; setQuery sets that',
      ],
    ],
    [
      'a password in a form that Node can not verify',
      [{ allow: { users: { ann: '$2y$10$abcdefghijklmnopqrstuv' } } }],
      [expect.stringContaining('rules[0].allow.users.ann: this form of a hashed password is not known') as string],
    ],
    [
      'a password that takes too much memory',
      [{ allow: { users: { ann: `$scrypt$ln=20,r=8,p=1$${'a'.repeat(22)}$${'a'.repeat(43)}` } } }],
      [expect.stringContaining('rules[0].allow.users.ann: this form') as string],
    ],
    [
      'keys of mode tcp',
      [{ reject: true, when: { path: '/' } }],
      ['rules[0].reject: reject is known in mode tcp only; http has deny'],
    ],
  ])('%s', (_name, rules, expected) => {
    expect(problemsOf(rules)).toEqual(expected);
  });

  test('keys of mode http in mode tcp', () => {
    const rules: Rules = [
      { when: { not: { path: '/' } }, use: 'mail' },
      { setHeader: { A: 'b' } },
      { when: { source: '::/0' }, deny: 403 },
      { rateLimit: { rate: '1/s', key: 'header:A', status: 503 } },
      { when: { rate: { above: 1, key: 'cookie:a' } }, allow: { users: {} } },
    ];
    expect(problemsOf(rules, { mode: 'tcp' })).toEqual([
      'rules[0].when.not.path: path is known in mode http only; tcp has source, serverName, localPort, usable, rate, tls, clientCertificate, not, any, all',
      'rules[1].setHeader: setHeader is known in mode http only; tcp has use, deny, reject, accept, allow, rateLimit',
      'rules[2].deny: a connection gets no status; in mode tcp only true is allowed',
      'rules[3].rateLimit.key: a connection has no headers; in mode tcp only source is allowed',
      'rules[3].rateLimit.status: a connection gets no status; leave it out in mode tcp',
      'rules[4].allow: a connection has no credentials; in mode tcp only true is allowed',
      'rules[4].when.rate.key: a connection has no headers; in mode tcp only source is allowed',
    ]);
  });

  test('files with passwords', () => {
    const folder = tempFolder();
    writeFileSync(join(folder, 'good'), 'secret\n');
    writeFileSync(join(folder, 'empty'), '\n');
    const users = { a: { file: 'good' }, b: { file: 'empty' }, c: { file: 'none' } };
    expect(problemsOf([{ allow: { users } }], { folder })).toEqual([
      'rules[0].allow.users.b: the password in empty is empty',
      expect.stringContaining("rules[0].allow.users.c: the password can't be read: ENOENT"),
    ]);
  });
});

describe('regular expressions', () => {
  test.each([
    ...[
      '^(a+)+$',
      '(a|a)*b',
      '(x+x+)+y',
      '([a-z]+)*=',
      '(.*)*',
      '(a?)*',
      '(foo|foobar)+',
      '(a{1,20}){1,20}',
      '((a)+)+',
    ],
    ...['.*x.*y.*z', '^.*x.*y.*z', '^(.*)x(.*)y(.*)z', '^/a/.*/b/.*/c/.*/d', '(?:a*)*', '(?=(a+)+$)', '^\\s+\\s+\\S*x'],
  ])('%s could be kept busy', (pattern) => {
    expect(patternProblem(pattern)).not.toBe(null);
  });

  test.each([
    ...['^/a/.*$', '\\.php$', '.*\\.php$', '^(?:/[^/]+)*$', '(a|b)*c', '^/users/[^/]+/posts/\\d+/[^/]+$', '^.*x.*y$'],
    ...['(?:[a-z0-9-]+\\.)*example\\.com', '^/(?:en|de)(?:/.*)?$', '^/api/v\\d+/(.*)$', 'Mozilla.*(Bot|Spider)'],
    ...[
      '(?i:bot|spider)',
      '^(\\d+)-(\\d+)-(\\d+)$',
      '^[\\]a-z]{2,5}$',
      '^/(?<id>\\d+)/\\k<id>$',
      '\\x2fa|b$',
      '^a{,3}$',
      '',
    ],
  ])('%s is harmless', (pattern) => {
    expect(patternProblem(pattern)).toBe(null);
  });

  test('what is harmless comes to an end, even on a text made against it', () => {
    const hostile = ['a', '/', 'x', '1', '/a', 'xy'].map((text) => `${text.repeat(8192 / text.length)}!`);
    const found = ['^.*x.*y$', '^(?:/[a-z]+)*$', '(?:[a-z0-9-]+\\.)*example\\.com', '.*\\.php$'].flatMap((pattern) =>
      hostile.filter((text) => new RegExp(pattern).test(text)),
    );
    expect(found).toEqual([]);
  });
});

test('a record keeps what a rule does, and no secret of it', () => {
  const secrets: Rules = [
    { allow: { users: { ann: 'S3CRET' } } },
    { setHeader: { 'X-Key': 'S3CRET' } },
    { addHeader: { 'X-Key': 'S3CRET' } },
    { replaceHeader: { name: 'X-Key', pattern: 'S3CRET', with: 'S3CRET' } },
    { response: { setHeader: { 'X-Key': 'S3CRET' } } },
    { setQuery: { key: 'S3CRET' } },
    { setQuery: 'key=S3CRET' },
    { when: { any: [{ not: { header: { 'X-Key': 'S3CRET' } } }, { all: [{ cookie: { k: 'S3CRET' } }] }] }, use: 'web' },
    { when: { query: { key: { prefix: 'S3CRET' } } }, use: 'web' },
  ];
  const kept = z.array(rule).parse(secrets).map(recordableRule);
  expect(JSON.stringify(kept)).not.toContain('S3CRET');
  expect(kept[0]).toEqual({ allow: { users: { ann: '(not recorded)' }, realm: 'restricted' } });
  expect(recordableRule(rule.parse({ when: { path: '/x' }, use: 'web' }))).toEqual({
    when: { path: ['/x'] },
    use: 'web',
  });
});
