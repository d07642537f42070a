/** Rules through real requests: what the server sees, what the client gets, and what becomes of the connection. */
import { randomBytes, scryptSync } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import {
  bodyOf,
  eventually,
  get,
  getAndClose,
  RawClient,
  scriptedServer,
  startProxy,
  statusOf,
  talk,
} from './proxyHelpers.ts';
import type { Proxy, ProxyOptions, RawServer } from './proxyHelpers.ts';

const answer = (text: string): string => `HTTP/1.1 200 OK\r\nContent-Length: ${text.length}\r\n\r\n${text}`;
const named = (name: string): Promise<RawServer> => scriptedServer((_head, socket) => socket.write(answer(name)));

const statusesOf = (text: string): number[] =>
  [...text.matchAll(/HTTP\/1\.1 (\d{3})/g)].map((match) => Number(match[1]));

type Seen = { proxy: Proxy; heads: string[] };

/** One worker with these rules before a server whose answer is `ok`. */
const withRules = async (rules: unknown[], more: Partial<ProxyOptions> = {}, reply = answer('ok')): Promise<Seen> => {
  const heads: string[] = [];
  const server = await scriptedServer((head, socket) => {
    heads.push(head);
    socket.write(reply);
  });
  const proxy = await startProxy({ servers: { s: server }, workers: 1, rules, ...more });
  return { proxy, heads };
};

/** The request line that a server sees. */
const lineFor = async (rules: unknown[], target: string): Promise<string> => {
  const { proxy, heads } = await withRules(rules);
  await talk(proxy.port, getAndClose(target));
  return heads[0]!.split('\r\n')[0]!;
};

describe('use', () => {
  test('the first that holds chooses the backend, for each request of a connection anew', async () => {
    const [web, api, admin] = await Promise.all(['web', 'api', 'admin'].map(named));
    const proxy = await startProxy({
      workers: 1,
      servers: { s: web! },
      others: { api: { s: api! }, admin: { s: admin! } },
      rules: [
        { when: { path: '/admin/**', source: '127.0.0.0/8' }, use: 'admin' },
        {
          when: { path: '/api/**', method: ['GET', 'POST'], not: { header: { 'X-Old': { present: true } } } },
          use: 'api',
        },
        { when: { any: [{ query: { v: '2' } }, { cookie: { beta: 'yes' } }] }, use: 'api' },
      ],
    });
    const requests = [
      get('/admin/x'),
      get('/api/x'),
      get('/api/x', 'X-Old: 1\r\n'),
      'DELETE /api/x HTTP/1.1\r\nHost: a\r\n\r\n',
      get('/?v=2'),
      get('/?v=3'),
      get('/', 'Cookie: a=b; beta=yes\r\n'),
      getAndClose(),
    ];
    const text = await talk(proxy.port, requests.join(''));
    expect(text.match(/(?:web|api|admin)(?=HTTP|$)/g)).toEqual([
      'admin',
      'api',
      'web',
      'web',
      'api',
      'web',
      'api',
      'web',
    ]);
  });

  test('virtual hosts: exact names before wildcards, without port, in any case, and of an absolute target', async () => {
    const [web, shop, any] = await Promise.all(['web', 'shop', 'any'].map(named));
    const proxy = await startProxy({
      workers: 1,
      servers: { s: web! },
      others: { shop: { s: shop! }, any: { s: any! } },
      rules: [
        { when: { host: ['shop.example', 'www.shop.example'] }, use: 'shop' },
        { when: { host: 'old.example' }, use: 'any' },
        { when: { host: '*.example.net' }, use: 'any' },
        { when: { host: 'more.example' }, use: 'any' },
      ],
    });
    const host = (name: string, target = '/') => `GET ${target} HTTP/1.1\r\nHost: ${name}\r\n\r\n`;
    const requests = [
      host('shop.example'),
      host('WWW.Shop.Example:8080'),
      host('a.b.example.net'),
      host('example.net'),
      host('x', 'http://more.example:80/'),
      host('shop.example.evil'),
      getAndClose('/').replace('shop.example', 'nobody.example'),
    ];
    const text = await talk(proxy.port, requests.join(''));
    expect(text.match(/(?:web|shop|any)(?=HTTP|$)/g)).toEqual(['shop', 'shop', 'any', 'web', 'any', 'web', 'web']);
  });

  test('usable: a backend without enough servers is passed over, and used again when they return', async () => {
    const [web, first] = await Promise.all(['web', 'first'].map(named));
    const proxy = await startProxy({
      workers: 1,
      servers: { s: web! },
      others: { primary: { s: first! } },
      rules: [{ when: { usable: { pool: 'primary', atLeast: 1 } }, use: 'primary' }],
    });
    const ask = async () => bodyOf(await talk(proxy.port, getAndClose()));
    expect(await ask()).toBe('first');
    proxy.dataPlane.publish('primary', 'serving', { s: 0 });
    expect(await ask()).toBe('web');
    proxy.dataPlane.publish('primary', 'serving', { s: 1 });
    expect(await ask()).toBe('first');
  });
});

describe('answers of rules', () => {
  test.each<[string, unknown, number, RegExp]>([
    ['deny', { deny: true }, 403, /^HTTP\/1\.1 403 Forbidden\r\n/],
    ['deny with a status', { deny: 404 }, 404, /\r\n\r\n404 Not Found\n/],
    [
      'deny with a body',
      { deny: { status: 451, body: 'no', headers: { 'X-Why': '{path}' } } },
      451,
      /X-Why: \/x\r\n[^]*\r\n\r\nno/,
    ],
    [
      'return',
      { return: { body: 'pong', contentType: 'text/x', headers: { 'X-Id': '{host}' } } },
      200,
      /Content-Type: text\/x\r\nX-Id: shop\.example\r\nContent-Length: 4\r\n\r\npong/,
    ],
    ['return a status', { return: 204 }, 204, /^HTTP\/1\.1 204 No Content\r\n\r\n/],
    ['redirect', { redirect: 'https://{host}{uri}' }, 302, /Location: https:\/\/shop\.example\/x\?y=1\r\n/],
    [
      'redirect by prefix',
      { redirect: { prefix: 'https://new.example', status: 308 } },
      308,
      /Location: https:\/\/new\.example\/x\?y=1\r\n/,
    ],
    [
      'redirect by scheme',
      { redirect: { scheme: 'https', status: 301 } },
      301,
      /Location: https:\/\/shop\.example\/x\?y=1\r\n/,
    ],
  ])(
    '%s: no server is asked, and the connection is kept as long as nothing is left unread',
    async (_what, action, status, text) => {
      const { proxy, heads } = await withRules([{ when: { path: '/x' }, ...(action as object) }]);
      const client = new RawClient(proxy.port).send(get('/x?y=1') + get('/x?y=1'));
      await client.until(/HTTP\/1\.1[^]*HTTP\/1\.1[^]*\r\n\r\n/);
      expect(client.text).toMatch(text);
      expect(client.text).not.toMatch(/connection:/i);
      client.send(getAndClose('/server'));
      expect(statusesOf(await client.rest())).toEqual([status, status, 200]);
      expect(heads).toHaveLength(1);
    },
  );

  test('RFC 9112 9.3: a request with a body is answered and its connection closed, as the body is not read', async () => {
    const { proxy, heads } = await withRules([{ deny: true }]);
    const text = await talk(proxy.port, `POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n${get('/smuggled')}`);
    expect(statusesOf(text)).toEqual([403]);
    expect(text).toContain('Connection: close\r\n');
    expect(heads).toEqual([]);
  });

  test.each([
    ['deny', { deny: { body: 'long' } }, 403],
    ['our own page', { deny: 404 }, 404],
    ['return', { return: { body: 'long' } }, 200],
  ])(
    'RFC 9110 9.3.2: HEAD gets the fields of %s without the body, and the connection goes on',
    async (_what, action, status) => {
      const { proxy } = await withRules([{ when: { path: '/x' }, ...action }]);
      const client = new RawClient(proxy.port).send('HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n').send(getAndClose('/'));
      const text = await client.rest();
      expect(text).toMatch(/^[^]*?Content-Length: [1-9]\d*\r\n\r\nHTTP\/1\.1 200 /);
      expect(statusesOf(text)).toEqual([status, 200]);
    },
  );

  test.each(['', 'Connection: keep-alive\r\n'])('HTTP/1.0 is answered and closed, also with %j', async (field) => {
    const { proxy } = await withRules([{ return: { body: 'pong' } }]);
    const text = await talk(proxy.port, `GET / HTTP/1.0\r\n${field}\r\n`);
    expect(text).toMatch(/Connection: close\r\n\r\npong$/);
  });
});

describe('tarpit', () => {
  test('the client waits and is then denied; others are served meanwhile, and no server is asked', async () => {
    const { proxy, heads } = await withRules([{ when: { path: '/bad' }, tarpit: { delay: '600ms', status: 503 } }]);
    const begun = performance.now();
    const client = new RawClient(proxy.port).send(get('/bad') + get('/behind'));
    await eventually('it has come', () => proxy.figures('front').requests === 1);
    expect(statusOf(await talk(proxy.port, getAndClose('/good')))).toBe(200);
    expect(client.text).toBe('');
    const text = await client.rest();
    expect(performance.now() - begun).toBeGreaterThan(590);
    expect(statusesOf(text)).toEqual([503]);
    expect(text).toContain('Connection: close\r\n');
    expect(heads).toHaveLength(1);
    expect(proxy.figures('front')).toMatchObject({ deniedRequests: 1 });
  });

  test('a client that leaves meanwhile leaves nothing behind', async () => {
    const { proxy } = await withRules([{ tarpit: '60s' }]);
    const client = new RawClient(proxy.port).send(get());
    await eventually('it has come', () => proxy.figures('front').requests === 1);
    client.socket.resetAndDestroy();
    await eventually('gone', () => proxy.figures('front').active === 0);
    expect(proxy.exits).toEqual([]);
  });

  test('a client that floods meanwhile is held, not kept in memory', async () => {
    const { proxy } = await withRules([{ tarpit: '60s' }]);
    const client = new RawClient(proxy.port).send(get());
    client.socket.write(Buffer.alloc(64 * 1024 * 1024, 'x'));
    let before = -1;
    let calm = performance.now();
    await eventually('nothing more is taken', () => {
      const { bytesIn } = proxy.figures('front');
      if (bytesIn !== before) calm = performance.now();
      before = bytesIn;
      return bytesIn > 0 && performance.now() - calm > 500;
    });
    expect(proxy.figures('front').bytesIn).toBeLessThan(1024 * 1024);
  });
});

describe('what rules change', () => {
  test('fields of the request, in the order of the rules', async () => {
    const { proxy, heads } = await withRules([
      { setHeader: { 'X-Client': '{source}', 'X-Host': '{host}', 'X-Query': '{query:q}' } },
      { removeHeader: ['X-Secret', 'Cookie'] },
      { addHeader: { 'X-Tag': 'two' } },
      { replaceHeader: { name: 'User-Agent', pattern: '^(\\w+)/.*$', with: '$1' } },
      { when: { header: { 'X-Tag': { prefix: 'one' } } }, setHeader: { 'X-Saw': 'tag {header:X-Tag}' } },
    ]);
    const fields = 'X-Client: forged\r\nX-Secret: 1\r\nCookie: a=b\r\nX-Tag: one\r\nUser-Agent: curl/8.1\r\n';
    await talk(proxy.port, getAndClose('/?q=a%0D%0Ab', fields));
    const lines = heads[0]!.split('\r\n');
    expect(lines.filter((line) => /^(?:x-(?!forwarded)|cookie|user-agent)/i.test(line)).toSorted()).toEqual([
      'User-Agent: curl',
      'X-Client: 127.0.0.1',
      'X-Host: shop.example',
      'X-Query: ab',
      'X-Saw: tag one, two',
      'X-Tag: one',
      'X-Tag: two',
    ]);
  });

  test('Host, X-Forwarded-For and X-Forwarded-Proto too, each once', async () => {
    const { proxy, heads } = await withRules([
      { setHeader: { Host: 'inner.example', 'X-Forwarded-For': '192.0.2.1', 'X-Forwarded-Proto': 'https' } },
    ]);
    await talk(proxy.port, getAndClose('/', 'X-Forwarded-For: 1.2.3.4\r\n'));
    expect(heads[0]!.match(/^(?:host|x-forwarded-[a-z]+): .*$/gim)).toEqual([
      'Host: inner.example',
      'X-Forwarded-For: 192.0.2.1',
      'X-Forwarded-Proto: https',
    ]);
  });

  test('fields of the answer, but not those that frame it', async () => {
    const reply =
      'HTTP/1.1 200 OK\r\nServer: secret/1.0\r\nX-Time: 15ms\r\nSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\nok';
    const rules = [
      {
        response: {
          removeHeader: 'Server',
          setHeader: { 'Strict-Transport-Security': 'max-age=60', 'X-For': '{source}' },
        },
      },
      {
        response: {
          addHeader: { 'Set-Cookie': 'c=d' },
          replaceHeader: { name: 'X-Time', pattern: '^(\\d+)ms', with: '$1' },
        },
      },
    ];
    const { proxy } = await withRules(rules, {}, reply);
    const text = await talk(proxy.port, getAndClose());
    expect(text.split('\r\n').slice(1, -2).toSorted()).toEqual([
      'Connection: close',
      'Content-Length: 2',
      'Set-Cookie: a=b',
      'Set-Cookie: c=d',
      'Strict-Transport-Security: max-age=60',
      'X-For: 127.0.0.1',
      'X-Time: 15',
    ]);
  });

  test.each<[string, unknown, string, string]>([
    ['setPath', { setPath: '/v2{path}' }, '/a?b=c', '/v2/a?b=c'],
    [
      'setPath, whose variables can not begin a query',
      { setPath: '/{header:X-None}{query:p}' },
      '/a?p=x%3Fy',
      '/x%3Fy?p=x%3Fy',
    ],
    ['replacePath', { replacePath: { pattern: '^/old/(.*)$', with: '/new/$1' } }, '/old/a/b?c', '/new/a/b?c'],
    ['replacePath of another path', { replacePath: { pattern: '^/old/(.*)$', with: '/new/$1' } }, '/older', '/older'],
    ['setQuery', { setQuery: 'only=this' }, '/a?b=c&d', '/a?only=this'],
    [
      'setQuery of parameters',
      { setQuery: { b: null, from: '{source}', e: 'é&' } },
      '/a?b=c&d=1&b=2',
      '/a?d=1&from=127.0.0.1&e=%C3%A9%26',
    ],
  ])('%s', async (_what, action, target, seen) => {
    expect(await lineFor([action], target)).toBe(`GET ${seen} HTTP/1.1`);
  });

  test('a rewritten path is what later rules, and balancing, see', async () => {
    const [web, api] = await Promise.all(['web', 'api'].map(named));
    const proxy = await startProxy({
      workers: 1,
      servers: { s: web! },
      others: { api: { s: api! } },
      rules: [{ setPath: '/api{path}' }, { when: { path: '/api/**' }, use: 'api' }],
    });
    expect(bodyOf(await talk(proxy.port, getAndClose()))).toBe('api');
  });
});

describe('rateLimit', () => {
  test('holds over both workers together, to the request', async () => {
    const { proxy, heads } = await withRules([{ rateLimit: { rate: '1/h', burst: 20 } }], { workers: 2 });
    const texts = await Promise.all(Array.from({ length: 60 }, () => talk(proxy.port, getAndClose())));
    expect(texts.filter((text) => statusOf(text) === 200)).toHaveLength(20);
    const refused = texts.filter((text) => statusOf(text) === 429);
    expect(refused).toHaveLength(40);
    expect(refused.every((text) => /\r\nRetry-After: \d+\r\n/.test(text))).toBe(true);
    expect(heads).toHaveLength(20);
    expect(proxy.figures('front')).toMatchObject({ rateLimited: 40, requests: 60 });
    const { workers } = proxy;
    expect(workers).toHaveLength(2);
  });

  test('counts each key by itself, and keeps the connection of whom it refuses', async () => {
    const { proxy } = await withRules([{ rateLimit: { rate: '1/h', burst: 1, key: 'header:X-Key', status: 503 } }]);
    const by = (key: string) => get('/', `X-Key: ${key}\r\n`);
    const text = await talk(proxy.port, by('a') + by('b') + by('a') + getAndClose('/', 'X-Key: c\r\n'));
    expect(statusesOf(text)).toEqual([200, 200, 503, 200]);
  });

  test('a rate as a condition: who asks too often is shown out', async () => {
    const { proxy } = await withRules([{ when: { rate: { per: '1h', above: 3 } }, deny: 429 }]);
    expect(statusesOf(await talk(proxy.port, get().repeat(4) + getAndClose()))).toEqual([200, 200, 200, 429, 429]);
  });
});

describe('RFC 7617: allow with users', () => {
  const basic = (text: string) => `Authorization: Basic ${Buffer.from(text).toString('base64')}\r\n`;

  test('asks, refuses, and lets in; the connection goes on meanwhile', async () => {
    const { proxy, heads } = await withRules([
      { when: { path: '/open' }, allow: true },
      { allow: { users: { ann: 'secret' }, realm: 'shop' } },
      { setHeader: { 'X-User': '{user}' } },
    ]);
    const text = await talk(
      proxy.port,
      get() + get('/', basic('ann:wrong')) + get('/', basic('ann:secret')) + getAndClose('/open'),
    );
    expect(statusesOf(text)).toEqual([401, 401, 200, 200]);
    expect(text).toContain('WWW-Authenticate: Basic realm="shop", charset="UTF-8"\r\n');
    expect(heads).toHaveLength(2);
    expect(heads[0]).toContain('X-User: ann\r\n');
    expect(heads[1]).not.toContain('X-User');
  });

  test('scrypt: worked out aside, in the order of the requests, bodies and half-closed clients included', async () => {
    const salt = randomBytes(16);
    const text = (bytes: Buffer) => bytes.toString('base64').replaceAll('=', '');
    const key = scryptSync('secret', salt, 32, { N: 2 ** 14, r: 8, p: 1 });
    const hash = `$scrypt$ln=14,r=8,p=1$${text(salt)}$${text(key)}`;
    const { proxy, heads } = await withRules([{ allow: { users: { ann: hash } } }]);
    const post = `POST /1 HTTP/1.1\r\nHost: a\r\n${basic('ann:secret')}Content-Length: 5\r\n\r\nhello`;
    const client = new RawClient(proxy.port);
    client.socket.end(post.slice(0, -5) + 'hello' + get('/2', basic('ann:wrong')) + get('/3', basic('ann:secret')));
    expect(statusesOf(await client.rest())).toEqual([200, 401, 200]);
    expect(heads.map((head) => head.replace(/^hello/, '').split(' ')[1])).toEqual(['/1', '/3']);
  });

  test('a client that leaves while its password is worked out harms nobody', async () => {
    const key = scryptSync('secret', 'salt', 32, { N: 2 ** 14, r: 8, p: 1 });
    const hash = `$scrypt$ln=14,r=8,p=1$${Buffer.from('salt').toString('base64').replaceAll('=', '')}$${key.toString('base64').replaceAll('=', '')}`;
    const { proxy, heads } = await withRules([{ allow: { users: { ann: hash } } }]);
    const leaver = new RawClient(proxy.port).send(get('/left', basic('ann:secret')));
    await eventually('it has come', () => proxy.figures('front').requests === 1);
    leaver.socket.resetAndDestroy();
    expect(statusOf(await talk(proxy.port, getAndClose('/', basic('ann:secret'))))).toBe(200);
    expect(proxy.exits).toEqual([]);
    expect(heads.at(-1)).toMatch(/^GET \/ /);
  });

  test.each<[string, unknown]>([
    ['a limit', { rateLimit: { rate: '1/h', burst: 1 } }],
    ['a rate', { when: { rate: { per: '1h', above: 1 } }, deny: 429 }],
  ])('a request that waits for its password is counted once by %s before that', async (_what, counting) => {
    const key = scryptSync('secret', 'salt', 32, { N: 2 ** 12, r: 8, p: 1 });
    const text = (bytes: Buffer) => bytes.toString('base64').replaceAll('=', '');
    const hash = `$scrypt$ln=12,r=8,p=1$${text(Buffer.from('salt'))}$${text(key)}`;
    const { proxy } = await withRules([counting, { allow: { users: { ann: hash } } }]);
    expect(statusOf(await talk(proxy.port, getAndClose('/', basic('ann:secret'))))).toBe(200);
    expect(statusOf(await talk(proxy.port, getAndClose('/', basic('ann:secret'))))).toBe(429);
  });
});
