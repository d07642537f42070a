/** What a worker counts of its servers' live traffic, and what of it the control plane hears and when. */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { z } from 'zod';
import {
  checkObserve,
  observeModelOf,
  observerSettingsOf,
  observeSchema,
  poolObservationOf,
} from '../src/config/observe.ts';
import type { Counter } from '../src/proxy/counters.ts';
import { COUNTER } from '../src/proxy/counters.ts';
import { allocateRows, isFailureStatus, Observer } from '../src/proxy/observer.ts';
import type { Observation, ObserveModel } from '../src/proxy/observer.ts';

const LIMIT_5: ObserveModel = { layer: 'layer7', limits: [5], intervalMs: 0 };

type Told = Observation & { ms: number };

/** Time that only passes when told, and what was said at which time. */
class World {
  readonly rows = allocateRows();
  readonly said: Told[][] = [];
  nowMs = 0;
  #timers: { atMs: number; callback: () => void }[] = [];

  /** A worker with the pool `web` of servers `a` in slot 0 and `b` in slot 7, and an unobserved pool in slot 3. */
  worker(observe: ObserveModel | null = LIMIT_5, counted: Counter[] = []): Observer {
    const counters = { add: (_slot: number, counter: Counter) => void counted.push(counter) };
    const observer = new Observer(this.rows, counters, {
      say: ({ observations }) => this.said.push(observations.map((one) => ({ ...one, ms: this.nowMs }))),
      nowMs: () => this.nowMs,
      later: (ms, callback) => {
        const timer = { atMs: this.nowMs + ms, callback };
        this.#timers.push(timer);
        return () => (this.#timers = this.#timers.filter((other) => other !== timer));
      },
    });
    observer.configure([
      {
        name: 'web',
        observe,
        servers: [
          { name: 'a', slot: 0 },
          { name: 'b', slot: 7 },
        ],
      },
      { name: 'other', observe: null, servers: [{ name: 'c', slot: 3 }] },
    ]);
    return observer;
  }

  wait(ms: number): void {
    const untilMs = this.nowMs + ms;
    for (;;) {
      const next = this.#timers.toSorted((one, other) => one.atMs - other.atMs)[0];
      if (!next || next.atMs > untilMs) break;
      this.#timers = this.#timers.filter((timer) => timer !== next);
      this.nowMs = next.atMs;
      next.callback();
    }
    this.nowMs = untilMs;
  }

  get told(): Told[] {
    return this.said.flat();
  }

  get pendingTimers(): number {
    return this.#timers.length;
  }
}

const fail = (observer: Observer, times: number, slot = 0): void => {
  for (let count = 0; count < times; count++) observer.failed(slot, 'reset', 'ECONNRESET');
};

describe('what is said', () => {
  test('of traffic that goes well, nothing, and no timer runs', () => {
    const world = new World();
    const observer = world.worker();
    for (let count = 0; count < 1000; count++) observer.passed(0);
    world.wait(60_000);
    expect(world.said).toEqual([]);
    expect(world.pendingTimers).toBe(0);
  });

  test('of a server that nobody observes, and of a slot that there isn’t, nothing', () => {
    const world = new World();
    const observer = world.worker();
    fail(observer, 50, 3);
    fail(observer, 50, 30_000);
    observer.passed(30_000);
    world.wait(60_000);
    expect(world.said).toEqual([]);
  });

  test('an error is told 100 ms later, with those that come with it, and then all is quiet', () => {
    const world = new World();
    const observer = world.worker();
    observer.passed(0);
    fail(observer, 2);
    observer.passed(0);
    observer.failed(7, 'timeout', '');
    world.wait(60_000);
    expect(world.said).toHaveLength(1);
    expect(world.told).toEqual([
      {
        pool: 'web',
        server: 'a',
        passed: 1,
        failed: 2,
        row: 0,
        consecutive: 2,
        kind: 'reset',
        detail: 'ECONNRESET',
        ms: 100,
      },
      { pool: 'web', server: 'b', passed: 0, failed: 1, row: 0, consecutive: 1, kind: 'timeout', detail: '', ms: 100 },
    ]);
    expect(world.pendingTimers).toBe(0);
  });

  test('the error that reaches a limit is told at once', () => {
    const world = new World();
    const observer = world.worker();
    fail(observer, 4);
    expect(world.said).toEqual([]);
    fail(observer, 1);
    expect(world.told).toMatchObject([{ server: 'a', failed: 5, consecutive: 5, ms: 0 }]);
  });

  test('each of several limits is, and each time that one is reached again', () => {
    const world = new World();
    const observer = world.worker({ ...LIMIT_5, limits: [10, 4] });
    for (const times of [4, 4, 2]) {
      fail(observer, times);
      world.wait(5000);
    }
    expect(world.told.map(({ consecutive, ms }) => [consecutive, ms])).toEqual([
      [4, 0],
      [8, 5000],
      [10, 10_000],
    ]);
  });

  test('while errors go on without reaching a limit, a report a second', () => {
    const world = new World();
    const observer = world.worker();
    for (let ms = 0; ms < 10_000; ms += 10) {
      observer.failed(0, 'status', '503');
      observer.passed(0);
      world.wait(10);
    }
    expect(world.said.length).toBeGreaterThanOrEqual(10);
    expect(world.said.length).toBeLessThanOrEqual(11);
    expect(world.told.reduce((sum, { failed }) => sum + failed, 0)).toBeGreaterThan(900);
  });

  test('a server that reaches its limit over and over is told of ever less often, once a second at last', () => {
    const world = new World();
    const observer = world.worker({ ...LIMIT_5, limits: [1] });
    for (let ms = 0; ms < 10_000; ms++) {
      observer.failed(0, 'status', '503');
      world.wait(1);
    }
    const times = world.told.map(({ ms }) => ms);
    expect(times.slice(0, 5)).toEqual([0, 200, 600, 1400, 2400]);
    expect(times.length).toBeLessThan(15);
    world.wait(10_000);
    // After a quiet time it is news again, at once.
    fail(observer, 1);
    expect(world.told.at(-1)?.ms).toBe(world.nowMs);
  });

  test('details are cut short', () => {
    const world = new World();
    world.worker().failed(0, 'invalid', 'x'.repeat(5000));
    world.wait(1000);
    expect(world.told[0]!.detail).toHaveLength(100);
  });

  test('a server that a reload no longer has observed is not reported any more', () => {
    const world = new World();
    const observer = world.worker();
    fail(observer, 1);
    observer.configure([{ name: 'web', observe: null, servers: [{ name: 'a', slot: 0 }] }]);
    fail(observer, 10);
    world.wait(5000);
    expect(world.said).toEqual([]);
  });
});

describe('errors in a row', () => {
  test('a success ends the row, and the next one is another', () => {
    const world = new World();
    const observer = world.worker();
    fail(observer, 4);
    observer.passed(0);
    fail(observer, 4);
    world.wait(1000);
    expect(world.told).toMatchObject([{ failed: 8, passed: 1, row: 1, consecutive: 4 }]);
  });

  test('the longest row of a report is told', () => {
    const world = new World();
    const observer = world.worker();
    fail(observer, 4);
    observer.passed(0);
    fail(observer, 2);
    world.wait(1000);
    expect(world.told).toMatchObject([{ row: 0, consecutive: 4 }]);
  });

  test('they are counted over all workers: the one that has the fifth tells it', () => {
    const world = new World();
    const [one, other] = [world.worker(), world.worker()];
    fail(one, 3);
    fail(other, 1);
    expect(world.said).toEqual([]);
    fail(other, 1);
    expect(world.told).toMatchObject([{ failed: 2, consecutive: 5 }]);
  });

  test('a success in one worker ends the row of another, without a message of its own', () => {
    const world = new World();
    const [one, other] = [world.worker(), world.worker()];
    fail(one, 4);
    other.passed(0);
    fail(one, 4);
    world.wait(1000);
    expect(world.said).toHaveLength(1);
    expect(world.told).toMatchObject([{ consecutive: 4, row: 1 }]);
  });

  test('over any exchanges of two workers, a limit is told of exactly when that many in a row have failed', () => {
    const exchange = fc.record({ worker: fc.nat(1), ok: fc.boolean() });
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 6 }), fc.array(exchange, { maxLength: 80 }), (limit, exchanges) => {
        const world = new World();
        const workers = [0, 1].map(() => world.worker({ ...LIMIT_5, limits: [limit] }));
        let inARow = 0;
        for (const { worker, ok } of exchanges) {
          // So far apart that reports at once aren't held back.
          world.wait(5000);
          const before = world.said.length;
          if (ok) workers[worker]!.passed(0);
          else fail(workers[worker]!, 1);
          inARow = ok ? 0 : inARow + 1;
          expect(world.said.length - before).toBe(inARow > 0 && inARow % limit === 0 ? 1 : 0);
        }
      }),
      { numRuns: 200 },
    );
  });
});

describe('what is an error', () => {
  test.each([
    [200, false],
    [404, false],
    [429, false],
    [500, true],
    [501, false],
    [502, true],
    [503, true],
    [504, true],
    [505, false],
    [507, true],
    [599, true],
  ])('an answer %i: %s, as HAProxy has it', (status, isError) => {
    expect(isFailureStatus(status)).toBe(isError);
    const world = new World();
    world.worker({ ...LIMIT_5, limits: [1] }).answered(0, status);
    expect(world.told.map(({ kind, detail }) => ({ kind, detail }))).toEqual(
      isError ? [{ kind: 'status', detail: String(status) }] : [],
    );
  });

  test('on layer 4, only a connection that could not be made; what fails later had connected', () => {
    const world = new World();
    const observer = world.worker({ ...LIMIT_5, layer: 'layer4' });
    for (let count = 0; count < 4; count++) observer.failed(0, 'connect', 'ECONNREFUSED');
    observer.failed(0, 'timeout', '');
    observer.answered(0, 503);
    observer.failed(0, 'connect', 'ECONNREFUSED');
    world.wait(1000);
    expect(world.told).toMatchObject([{ failed: 5, passed: 2, consecutive: 4, row: 0 }]);
  });

  test('each is counted in the server’s figures', () => {
    const counted: Counter[] = [];
    const observer = new World().worker(LIMIT_5, counted);
    fail(observer, 3);
    observer.passed(0);
    expect(counted).toEqual([COUNTER.observedFailures, COUNTER.observedFailures, COUNTER.observedFailures]);
  });
});

describe('the rate of errors', () => {
  const RATED: ObserveModel = { layer: 'layer7', limits: [], intervalMs: 10_000 };

  test('the interval begins with an error; what passes in it is told each second, and the rest at its end', () => {
    const world = new World();
    const observer = world.worker(RATED);
    for (let count = 0; count < 500; count++) observer.passed(0);
    observer.failed(0, 'status', '500');
    for (let ms = 0; ms < 20_000; ms += 10) {
      observer.passed(0);
      world.wait(10);
    }
    const { told } = world;
    expect(told[0]).toMatchObject({ ms: 100, failed: 1 });
    expect(told.at(-1)).toMatchObject({ ms: 10_000, failed: 0, kind: null, consecutive: 0 });
    expect(told).toHaveLength(11);
    expect(told.reduce((sum, { passed }) => sum + passed, 0)).toBe(1000);
    expect(world.pendingTimers).toBe(0);
  });

  test('a second without any exchange costs no message', () => {
    const world = new World();
    world.worker(RATED).failed(0, 'status', '500');
    world.wait(20_000);
    expect(world.said).toHaveLength(1);
  });
});

describe('the configuration', () => {
  const backend = z.strictObject({ check: z.unknown(), ...observeSchema });
  const parse = (given: Record<string, unknown>) => backend.parse({ check: false, ...given });
  const messages = (given: Record<string, unknown>) =>
    backend.safeParse({ check: false, ...given }).error?.issues.map(({ message }) => message) ?? [];

  test('without anything, nobody observes and nobody panics', () => {
    const config = parse({});
    expect([observerSettingsOf(config), observeModelOf(config), poolObservationOf(config)]).toEqual([null, null, {}]);
  });

  test('`observe: layer7` is HAProxy’s default: ten errors in a row are as a failed check', () => {
    const config = parse({ observe: 'layer7' });
    expect(observerSettingsOf(config)).toEqual({ observe: { errorLimit: 10, onError: 'failCheck' }, outliers: null });
    expect(observeModelOf(config)).toEqual({ layer: 'layer7', limits: [10], intervalMs: 0 });
  });

  test('outliers have Envoy’s defaults, but for the share that may be ejected', () => {
    const config = parse({ outliers: {} });
    expect(observerSettingsOf(config)).toEqual({
      observe: null,
      outliers: { consecutiveErrors: 5, errorRate: null, baseEjectionMs: 30_000, maxEjectionMs: 300_000 },
    });
    expect(poolObservationOf(config)).toEqual({ maxEjected: 50 });
  });

  test('a rate, a share and the threshold of panic are percentages', () => {
    const config = parse({ outliers: { errorRate: { above: '25 %' }, maxEjected: '12.5%' }, panic: 40 });
    expect(observerSettingsOf(config)?.outliers?.errorRate).toEqual({
      above: 25,
      minimumRequests: 20,
      intervalMs: 10_000,
    });
    expect(poolObservationOf(config)).toEqual({ maxEjected: 12.5, panic: 40 });
    expect(observeModelOf(config)?.intervalMs).toBe(10_000);
  });

  test.each([
    [{ panic: 'half' }, '"half" is not a percentage; allowed are 0 to 100, in forms like 50 %, 12.5'],
    [{ panic: '101 %' }, '"101 %" is not a percentage; allowed are 0 to 100, in forms like 50 %, 12.5'],
    [{ panic: true }, 'not a percentage; allowed are forms like 50 %, 12.5'],
  ])('%j is refused', (given, message) => {
    expect(messages(given)).toEqual([message]);
  });

  test('errors count against checks, so there must be one', () => {
    const problems = (given: Record<string, unknown>) => {
      const found: string[] = [];
      checkObserve(given, (path, message) => found.push(`${path.join('.')} ${message}`));
      return found;
    };
    expect(problems({ observe: 'layer4', check: { type: 'tcp' } })).toEqual([]);
    expect(problems({ outliers: {} })).toEqual([]);
    for (const check of [undefined, false])
      expect(problems({ observe: 'layer4', check })).toEqual([
        'observe needs a check, whose failures it adds to; `outliers` works without one',
      ]);
  });
});
