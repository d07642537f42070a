/** Rate limits: token buckets and meters in shared memory, and the rules that use them. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { createRateMemory, Meters, TokenBuckets } from '../src/proxy/rateTable.ts';
import { RateMemories } from '../src/proxy/ruleModel.ts';
import { compile, outcome, request } from './ruleHelpers.ts';
import type { Rules } from './ruleHelpers.ts';

const bucketsOf = (tokenMs: number, burst: number, entries = 1024) =>
  new TokenBuckets(createRateMemory('tokens', entries), tokenMs, burst);

const take = (buckets: TokenBuckets, key: number, nowMs: number): number => {
  buckets.keyWords(4, key);
  return buckets.take(nowMs);
};

describe('token bucket', () => {
  test('gives the burst at once, then a token in each interval, and tells when the next will be there', () => {
    const buckets = bucketsOf(100, 3);
    const start = 1_000_000;
    expect([0, 0, 0, 0].map((ms) => take(buckets, 1, start + ms))).toEqual([0, 0, 0, 100]);
    expect([40, 100, 100, 399, 1000, 1000, 1000, 1000].map((ms) => Math.round(take(buckets, 1, start + ms)))).toEqual([
      ...[60, 0, 100, 0, 0, 0, 0, 100],
    ]);
  });

  test('agrees with a bucket that is counted by hand', () => {
    const waits = fc.array(fc.integer({ min: 0, max: 400 }), { minLength: 1, maxLength: 200 });
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 200 }), fc.integer({ min: 1, max: 50 }), waits, (tokenMs, burst, gaps) => {
        const buckets = bucketsOf(tokenMs, burst);
        // In parts of a token, so that it is exact.
        let level = burst * tokenMs;
        let nowMs = 5_000_000_000;
        for (const gap of gaps) {
          nowMs += gap;
          level = Math.min(burst * tokenMs, level + gap);
          const has = level >= tokenMs;
          // A clock in steps may be late by one of them: what is due just now is left out.
          fc.pre(Math.abs(level - tokenMs) > 1 || gap === 0);
          if (has) level -= tokenMs;
          expect(take(buckets, 9, nowMs) === 0).toBe(has);
        }
      }),
      { numRuns: 300 },
    );
  });

  test('keys have buckets of their own, as texts and as numbers', () => {
    const buckets = bucketsOf(1000, 1, 65_536);
    let refused = 0;
    for (let key = 0; key < 1000; key++) {
      if (take(buckets, key, 0) > 0) refused++;
      buckets.keyText(`key ${key}`);
      if (buckets.take(0) > 0) refused++;
    }
    expect(refused).toBe(0);
    for (let key = 0; key < 1000; key++) expect(take(buckets, key, 0)).toBeGreaterThan(0);
  });

  test('a bucket that was left alone is full, however long that was', () => {
    for (const hours of [1, 6, 11.9, 12, 13, 24, 1000]) {
      const buckets = bucketsOf(100, 2);
      expect([take(buckets, 1, 0), take(buckets, 1, 0), take(buckets, 1, 0)]).toEqual([0, 0, 100]);
      const later = hours * 3_600_000 + 777;
      expect([take(buckets, 1, later), take(buckets, 1, later)], `${hours} h`).toEqual([0, 0]);
    }
  });

  test('a worker whose clock is a little behind gets nothing more', () => {
    const buckets = bucketsOf(10, 5);
    for (let count = 0; count < 5; count++) expect(take(buckets, 1, 1000)).toBe(0);
    expect(take(buckets, 1, 950)).toBeGreaterThan(0);
  });

  test('many keys neither grow the table nor set free the one that is held back', () => {
    const buckets = bucketsOf(60_000, 10, 64);
    for (let count = 0; count < 10; count++) take(buckets, 0, 0);
    for (let key = 1; key <= 10_000; key++) {
      take(buckets, key, key / 1000);
      expect(take(buckets, 0, key / 1000)).toBeGreaterThan(0);
    }
  });

  test('a lock whose holder has died is taken over', () => {
    const memory = createRateMemory('tokens', 8);
    // One set: its lock is the word behind the header.
    Atomics.store(new Int32Array(memory), 16, 1);
    expect(take(new TokenBuckets(memory, 1000, 1), 1, 0)).toBe(0);
  });
});

describe('meter', () => {
  test('counts this period, and its share of the one before', () => {
    const meters = new Meters(createRateMemory('meter', 64), 1000);
    const count = (nowMs: number) => {
      meters.keyText('a');
      return meters.count(nowMs);
    };
    expect(Array.from({ length: 10 }, () => count(10_500)).at(-1)).toBe(10);
    expect(count(11_000)).toBe(11);
    expect(count(11_500)).toBe(2 + 5);
    // Two periods on, nothing of it is left.
    expect(count(13_000)).toBe(1);
  });
});

describe('several threads at once', () => {
  const THREADS = 3;

  const run = async (setup: Record<string, unknown>): Promise<number[][]> => {
    const start = new Int32Array(new SharedArrayBuffer(4));
    const workers = Array.from(
      { length: THREADS },
      () => new Worker(new URL('./rateTableThread.ts', import.meta.url), { workerData: { start, ...setup } }),
    );
    onTestFinished(async () => void (await Promise.all(workers.map((worker) => worker.terminate()))));
    await Promise.all(workers.map((worker) => once(worker, 'message')));
    const answers = workers.map(async (worker) => ((await once(worker, 'message')) as [number[]])[0]);
    Atomics.store(start, 0, 1);
    Atomics.notify(start, 0);
    return Promise.all(answers);
  };

  const sum = (answers: number[][], key: number) => answers.reduce((total, taken) => total + taken[key]!, 0);

  test('take no token more, and none less, than one thread would', async () => {
    const keys = 50;
    const memory = createRateMemory('tokens', 1024);
    // All think that it is the same moment: what a bucket holds is what all of them get together.
    const answers = await run({ kind: 'tokens', memory, keys, rounds: 2000, tokenMs: 1000, burst: 1500, untilMs: 0 });
    for (let key = 0; key < keys; key++) expect(sum(answers, key)).toBe(1500);
  });

  test('make one bucket of a key that all of them meet for the first time', async () => {
    const keys = 20_000;
    const memory = createRateMemory('tokens', keys * 8);
    const answers = await run({ kind: 'tokens', memory, keys, rounds: 1, tokenMs: 1000, burst: 1, untilMs: 0 });
    const wrong = Array.from({ length: keys }, (_, key) => sum(answers, key)).filter((taken) => taken !== 1);
    expect(wrong).toEqual([]);
  });

  test('take what came back over time too, and no more', async () => {
    const keys = 20;
    const memory = createRateMemory('tokens', 1024);
    const answers = await run({ kind: 'tokens', memory, keys, rounds: 3000, tokenMs: 1, burst: 10, untilMs: 500 });
    for (let key = 0; key < keys; key++) expect(sum(answers, key)).toBeLessThanOrEqual(510);
  });

  test('count each request once', async () => {
    const memory = createRateMemory('meter', 1024);
    const rounds = 2000;
    const answers = await run({ kind: 'meter', memory, keys: 20, rounds });
    for (let key = 0; key < 20; key++)
      expect(Math.max(...answers.map((highest) => highest[key]!))).toBe(THREADS * rounds);
  });
});

describe('rules', () => {
  const limited = (rules: Rules, facts: Parameters<typeof request>[0][], context: { nowMs?: () => number } = {}) => {
    const set = compile(rules, context);
    return facts.map((one) => outcome(set.decide(request(one), '')));
  };

  test('a rate limit refuses with its status and when to come again', () => {
    let nowMs = 0;
    const set = compile([{ rateLimit: { rate: '30/m', burst: 2, status: 503 } }], { nowMs: () => nowMs });
    const decided = () => set.decide(request(), '').answer;
    expect([decided(), decided()]).toEqual([null, null]);
    expect(decided()).toMatchObject({ status: 503, headers: [['Retry-After', '2']] });
    nowMs = 2000;
    expect([decided(), decided()?.status]).toEqual([null, 503]);
  });

  test('by default 429, by source, with a burst of a second', () => {
    const facts = ['10.0.0.1', '10.0.0.1', '10.0.0.1', '10.0.0.2'].map((source) => ({ source }));
    expect(limited([{ rateLimit: '2/s' }], facts)).toEqual([null, null, 429, null]);
  });

  test('an IPv6 client counts by its /64', () => {
    const facts = ['2001:db8::1', '2001:db8::2', '2001:db8:0:1::1'].map((source) => ({ source }));
    expect(limited([{ rateLimit: '1/s' }], facts)).toEqual([null, 429, null]);
  });

  test('by header or cookie; and by source for who leaves it out', () => {
    for (const [key, of] of [
      ['header:X-Key', (value: string) => ({ headers: { 'x-key': value } })],
      ['cookie:k', (value: string) => ({ cookies: { k: value } })],
    ] as const) {
      const rules = [{ rateLimit: { rate: '1/s', key } }];
      const facts = [of('a'), of('b'), of('a'), {}, { source: '10.0.0.1' }, {}];
      expect(limited(rules, facts), key).toEqual([null, null, 429, null, null, 429]);
    }
  });

  test('only requests for which the condition holds are counted', () => {
    const rules = [{ when: { method: 'POST' }, rateLimit: '1/s' }];
    const facts = ['GET', 'POST', 'GET', 'POST'].map((method) => ({ method }));
    expect(limited(rules, facts)).toEqual([null, null, null, 429]);
  });

  test('a rate holds beyond its number, and counts what the rest of its condition holds for', () => {
    const rules = [{ when: { rate: { per: '10s', above: 2 }, path: '/login' }, deny: 429 }];
    const facts = ['/login', '/', '/', '/login', '/', '/login', '/'].map((path) => ({ path }));
    expect(limited(rules, facts)).toEqual([null, null, null, null, null, 429, null]);
  });

  test('a connection in mode tcp is rejected', () => {
    const set = compile([{ rateLimit: '1/s' }]);
    expect([set.decideConnection(request()), set.decideConnection(request())]).toEqual([
      { backend: null, reject: false },
      { backend: null, reject: true },
    ]);
  });

  test('a reload keeps the counts of a rule that it leaves alone, and only those', () => {
    const memories = new RateMemories();
    const kept = { when: { path: '/**' }, rateLimit: '1/s' };
    const rules: Rules = [{ deny: 403, when: { path: '/x' } }, kept];
    expect(outcome(compile(rules, {}, memories).decide(request(), ''))).toBe(null);
    expect(outcome(compile([kept], {}, memories).decide(request(), ''))).toBe(429);
    expect(outcome(compile([{ ...kept, rateLimit: '2/s' }], {}, memories).decide(request(), ''))).toBe(null);
    // It was gone from the configuration between.
    expect(outcome(compile([kept], {}, memories).decide(request(), ''))).toBe(null);
  });

  test('the same rule written twice counts twice', () => {
    const set = compile([{ rateLimit: '2/s' }, { rateLimit: '2/s' }]);
    expect(Array.from({ length: 3 }, () => outcome(set.decide(request(), '')))).toEqual([null, null, 429]);
  });
});
