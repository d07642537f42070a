import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { sticky as stickySchema } from '../src/config/balance.ts';
import type { Sticky } from '../src/config/balance.ts';
import type { RequestFacts } from '../src/proxy/facts.ts';
import { requestFacts } from './requestFacts.ts';
import { stickinessOf } from '../src/proxy/stickiness.ts';
import type { Stickiness, StickyServer } from '../src/proxy/stickiness.ts';
import { allocateStickTable, StickTable } from '../src/proxy/stickTable.ts';

const request = (cookies: Record<string, string> = {}, more: Partial<RequestFacts> = {}): RequestFacts =>
  requestFacts({ cookie: (name) => cookies[name] ?? null, ...more });

const web1: StickyServer = { name: 'web1', model: { slot: 0 } };
const web2: StickyServer = { name: 'web2', model: { slot: 1 } };
const web3: StickyServer = { name: 'web3', model: { slot: 2, cookie: 'c3' } };

const byCookie = (options: Record<string, unknown> = {}, backend = 'web'): Stickiness<StickyServer> => {
  const stickiness = stickinessOf<StickyServer>(
    backend,
    stickySchema.parse({ cookie: { name: 'SRV', ...options } }) as Sticky,
    null,
    () => 0,
  );
  stickiness.configure([web1, web2, web3]);
  return stickiness;
};

/** What a browser would send back. */
const valueIn = (fields: string): string => /^Set-Cookie: SRV=([^;]*)/.exec(fields)?.[1] ?? 'none';

describe('by an inserted cookie', () => {
  test('a client without one gets it, named after the server, for the whole site, hidden from scripts', () => {
    const stickiness = byCookie();
    expect(stickiness.find(request())).toBeNull();
    expect(stickiness.settle(web1, null, request())).toBe('Set-Cookie: SRV=web1; Path=/; HttpOnly; SameSite=Lax\r\n');
  });

  test('a client with one comes back to its server and gets none again', () => {
    const stickiness = byCookie();
    const brought = stickiness.find(request({ SRV: 'web2' }));
    expect(brought?.server).toBe(web2);
    expect(stickiness.settle(web2, brought, request({ SRV: 'web2' }))).toBe('');
  });

  test('a client that was sent elsewhere gets the other server’s', () => {
    const stickiness = byCookie();
    const brought = stickiness.find(request({ SRV: 'web2' }));
    expect(valueIn(stickiness.settle(web1, brought, request()))).toBe('web1');
  });

  test.each(['', 'web9', 'web1x', '|', '10.0.0.3:80', '__proto__'])('%j names no server', (value) => {
    expect(byCookie().find(request({ SRV: value }))).toBeNull();
  });

  test('a server can be given a value of its own, and isn’t known by its name then', () => {
    expect(byCookie().find(request({ SRV: 'c3' }))?.server).toBe(web3);
    expect(byCookie().find(request({ SRV: 'web3' }))).toBeNull();
    expect(valueIn(byCookie().settle(web3, null, request()))).toBe('c3');
  });

  test('is Secure for requests over TLS, or as configured', () => {
    const setCookie = (options: Record<string, unknown>, isTls: boolean) =>
      byCookie(options).settle(web1, null, request({}, { isTls }));
    expect(setCookie({}, true)).toContain('; Secure');
    expect(setCookie({ secure: false }, true)).not.toContain('Secure');
    expect(setCookie({ secure: true }, false)).toContain('; Secure');
  });

  test('has the attributes that are configured', () => {
    const options = { httpOnly: false, secure: true, sameSite: 'none', domain: 'example.com' };
    expect(byCookie(options).settle(web1, null, request())).toBe(
      'Set-Cookie: SRV=web1; Path=/; Domain=example.com; SameSite=None; Secure\r\n',
    );
  });

  test('can tell caches not to give it to others', () => {
    expect(byCookie({ noCache: true }).settle(web1, null, request())).toMatch(/\r\nCache-Control: private\r\n$/);
    expect(byCookie({ noCache: true }).settle(web1, byCookie().find(request({ SRV: 'web1' })), request())).toBe('');
  });

  test('with a key the value doesn’t show the server’s name, and differs between servers, backends and keys', () => {
    const key = 'k'.repeat(16);
    const values = [
      byCookie({ key }).settle(web1, null, request()),
      byCookie({ key }).settle(web2, null, request()),
      byCookie({ key }, 'other').settle(web1, null, request()),
      byCookie({ key: 'x'.repeat(16) }).settle(web1, null, request()),
    ].map(valueIn);
    expect(new Set(values).size).toBe(4);
    expect(values.join()).not.toContain('web');
    expect(byCookie({ key }).find(request({ SRV: values[0]! }))?.server).toBe(web1);
    expect(byCookie({ key }).find(request({ SRV: 'web1' }))).toBeNull();
  });
});

describe('the age of a cookie', () => {
  beforeEach(() => void vi.useFakeTimers({ toFake: ['Date'], now: 1_700_000_000_000 }));
  afterEach(() => void vi.useRealTimers());
  const later = (seconds: number) => vi.setSystemTime(Date.now() + seconds * 1000);

  test('is written as HAProxy writes it: last use and first use, in four seconds, five digits of base 64', () => {
    const stickiness = byCookie({ maxIdle: '30m', maxLife: '8h' });
    const date = base64(1_700_000_000 / 4);
    expect(valueIn(stickiness.settle(web1, null, request()))).toBe(`web1|${date}|${date}`);
  });

  const base64 = (value: number) => {
    const digits = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
    return [4, 3, 2, 1, 0].map((place) => digits[Math.floor(value / 64 ** place) % 64]).join('');
  };

  test('beyond maxIdle since its last use it is ignored; until then it is renewed by use', () => {
    const stickiness = byCookie({ maxIdle: '60s' });
    let cookie = valueIn(stickiness.settle(web1, null, request()));
    for (let round = 0; round < 3; round++) {
      later(50);
      const brought = stickiness.find(request({ SRV: cookie }));
      expect(brought?.server).toBe(web1);
      cookie = valueIn(stickiness.settle(web1, brought, request()));
    }
    later(65);
    expect(stickiness.find(request({ SRV: cookie }))).toBeNull();
  });

  test('one that is up to date isn’t sent again', () => {
    const stickiness = byCookie({ maxIdle: '60s', maxLife: '1h' });
    const cookie = valueIn(stickiness.settle(web1, null, request()));
    expect(stickiness.settle(web1, stickiness.find(request({ SRV: cookie })), request())).toBe('');
  });

  test('beyond maxLife since its first use it is ignored, however often it was used', () => {
    const stickiness = byCookie({ maxIdle: '60s', maxLife: '100s' });
    let cookie = valueIn(stickiness.settle(web1, null, request()));
    for (const _round of [1, 2]) {
      later(45);
      cookie = valueIn(stickiness.settle(web1, stickiness.find(request({ SRV: cookie })), request()));
    }
    later(20);
    expect(stickiness.find(request({ SRV: cookie }))).toBeNull();
  });

  test('without a date it is taken, and gets one', () => {
    const stickiness = byCookie({ maxLife: '100s' });
    const brought = stickiness.find(request({ SRV: 'web1' }));
    expect(brought?.server).toBe(web1);
    expect(valueIn(stickiness.settle(web1, brought, request()))).toMatch(/^web1\|.{5}\|.{5}$/);
  });

  test('from more than a day in the future it is ignored', () => {
    const stickiness = byCookie({ maxIdle: '60s' });
    later(90_000);
    const cookie = valueIn(stickiness.settle(web1, null, request()));
    later(-90_000);
    expect(stickiness.find(request({ SRV: cookie }))).toBeNull();
  });

  test('dates of another configuration are dropped', () => {
    const cookie = valueIn(byCookie({ maxIdle: '60s' }).settle(web1, null, request()));
    const stickiness = byCookie();
    const brought = stickiness.find(request({ SRV: cookie }));
    expect(brought?.server).toBe(web1);
    expect(valueIn(stickiness.settle(web1, brought, request()))).toBe('web1');
  });
});

describe('by the source’s address', () => {
  let nowMs = 1000;
  beforeEach(() => (nowMs = 1000));
  const from = (source: string) => request({}, { source });
  const bySource = (memory: SharedArrayBuffer, expire = '10s'): Stickiness<StickyServer> => {
    const stickiness = stickinessOf<StickyServer>(
      'web',
      stickySchema.parse({ table: 'source', expire }) as Sticky,
      memory,
      () => nowMs,
    );
    stickiness.configure([web1, web2]);
    return stickiness;
  };

  test('what one worker has settled every worker finds', () => {
    const memory = allocateStickTable(100);
    expect(bySource(memory).settle(web2, null, from('10.0.0.1'))).toBe('');
    expect(bySource(memory).find(from('10.0.0.1'))?.server).toBe(web2);
    expect(bySource(memory).find(from('10.0.0.2'))).toBeNull();
  });

  test('a client that was sent elsewhere stays there', () => {
    const stickiness = bySource(allocateStickTable(100));
    stickiness.settle(web2, null, from('10.0.0.1'));
    stickiness.settle(web1, stickiness.find(from('10.0.0.1')), from('10.0.0.1'));
    expect(stickiness.find(from('10.0.0.1'))?.server).toBe(web1);
  });

  test('a client is forgotten when it wasn’t seen for so long, and not before', () => {
    const stickiness = bySource(allocateStickTable(100));
    stickiness.settle(web1, null, from('10.0.0.1'));
    nowMs += 9_000;
    stickiness.settle(web1, stickiness.find(from('10.0.0.1')), from('10.0.0.1'));
    nowMs += 9_000;
    expect(stickiness.find(from('10.0.0.1'))?.server).toBe(web1);
    nowMs += 1_200;
    expect(stickiness.find(from('10.0.0.1'))).toBeNull();
  });

  test('a server that is gone isn’t found', () => {
    const stickiness = bySource(allocateStickTable(100));
    stickiness.settle(web2, null, from('10.0.0.1'));
    stickiness.configure([web1]);
    expect(stickiness.find(from('10.0.0.1'))).toBeNull();
  });
});

describe('the table', () => {
  const client = (index: number) => `10.${index >> 16}.${(index >> 8) & 255}.${index & 255}`;

  test('holds as many clients as it was made for, all but one in a hundred', () => {
    const table = new StickTable(allocateStickTable(10_000), 60_000, () => 0);
    for (let index = 0; index < 10_000; index++) table.store(client(index), index % 7);
    let found = 0;
    for (let index = 0; index < 10_000; index++) {
      const slot = table.find(client(index));
      if (slot !== null) found++;
      expect(slot === null || slot === index % 7).toBe(true);
    }
    expect(found).toBeGreaterThan(9_900);
  });

  test('beyond that the clients not seen for longest make room, and memory doesn’t grow', () => {
    let nowMs = 0;
    const memory = allocateStickTable(1_000);
    const table = new StickTable(memory, 60_000, () => nowMs);
    for (let index = 0; index < 40_000; index++) {
      nowMs += 1;
      table.store(client(index), 1);
      table.store('192.0.2.1', 2);
    }
    expect(table.find('192.0.2.1')).toBe(2);
    expect(table.find(client(39_999))).toBe(1);
    expect(table.find(client(0))).toBeNull();
    expect(memory.byteLength).toBeLessThan(1_000 * 80);
  });

  test('what was half written is not believed', () => {
    const memory = allocateStickTable(1);
    const table = new StickTable(memory, 60_000, () => 0);
    table.store('10.0.0.1', 5);
    const words = new Int32Array(memory);
    words[words.indexOf(5)] = 6;
    expect(table.find('10.0.0.1')).toBeNull();
    table.store('10.0.0.1', 6);
    expect(table.find('10.0.0.1')).toBe(6);
  });

  test('threads that write the same few entries at once never give a client a server that nobody gave it', async () => {
    const memory = allocateStickTable(1);
    const url = new URL('../src/proxy/stickTable.ts', import.meta.url).href;
    const source = `
      const { workerData, parentPort } = require('node:worker_threads');
      import(${JSON.stringify(url)}).then(({ StickTable }) => {
        const table = new StickTable(workerData.memory, 60_000, () => performance.now());
        let wrong = 0, found = 0;
        for (let round = 0; round < 200_000; round++) {
          const client = (round * 7 + workerData.index) % 40;
          const slot = table.find('10.0.0.' + client);
          if (slot !== null) found++;
          if (slot !== null && slot % 40 !== client) wrong++;
          table.store('10.0.0.' + client, client + 40 * (round % 3));
        }
        parentPort.postMessage({ wrong, found });
      });`;
    const threads = [0, 1].map((index) => new Worker(source, { eval: true, workerData: { memory, index } }));
    onTestFinished(async () => void (await Promise.all(threads.map((thread) => thread.terminate()))));
    const answers = await Promise.all(threads.map((thread) => once(thread, 'message')));
    for (const [answer] of answers as [{ wrong: number; found: number }][]) {
      expect(answer.wrong).toBe(0);
      expect(answer.found).toBeGreaterThan(1_000);
    }
  });
});

describe('the configuration', () => {
  test.each<unknown>([
    { cookie: { name: 'a b' } },
    { cookie: { name: 'SRV', sameSite: 'none' } },
    { cookie: { name: '__Host-SRV' } },
    { cookie: { name: '__Host-SRV', secure: true, domain: 'example.com' } },
    { cookie: { name: 'SRV', domain: 'a; b' } },
    { cookie: { name: 'SRV', key: 'short' } },
    { table: 'header' },
    { table: 'source', size: 0 },
    { cookie: { name: 'SRV' }, table: 'source' },
  ])('refuses %j', (value) => {
    expect(stickySchema.safeParse(value).success).toBe(false);
  });

  test('has defaults', () => {
    expect(stickySchema.parse({ table: 'source' })).toEqual({ table: 'source', expire: 1_800_000, size: 100_000 });
  });
});
