/** The wheel of deadlines: never early, late by a tick at most, whatever is set, moved and cleared meanwhile. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Timers } from '../src/net/timers.ts';
import type { Timer } from '../src/net/timers.ts';

const TICK_MS = 8;
/** After it the wheel comes round. */
const TURN_MS = 1024 * TICK_MS;
const START_MS = 12_345.6;

/** Timers that note when they rang. */
const wheel = () => {
  const timers = new Timers(START_MS);
  const rang: string[] = [];
  return {
    timers,
    rang,
    make: (name: string, then?: () => void): Timer =>
      timers.make(() => {
        rang.push(name);
        then?.();
      }),
    /** To so many milliseconds after the start, in steps of one. */
    walkTo: (ms: number) => {
      for (let now = timers.nowMs + 1; now < START_MS + ms; now++) timers.advance(now);
      timers.advance(START_MS + ms);
    },
    jumpTo: (ms: number) => timers.advance(START_MS + ms),
  };
};

test('a timer rings once, not before its time and at most a tick after it', () => {
  for (const ms of [0, 0.1, 1, 7.9, 8, 8.1, 100, 1000]) {
    const { timers, make, walkTo, rang } = wheel();
    make('x').set(ms);
    for (let now = START_MS; now < START_MS + ms; now += 0.5) timers.advance(now);
    expect(rang).toEqual([]);
    walkTo(ms + TICK_MS);
    expect(rang).toEqual(['x']);
    walkTo(ms + 3 * TICK_MS);
    expect(rang).toEqual(['x']);
  }
});

test.each([TURN_MS - 1, TURN_MS, TURN_MS + 1, 3 * TURN_MS + 5])(
  'a time of %d ms, about or beyond a turn of the wheel, is kept',
  (ms) => {
    const { make, walkTo, rang } = wheel();
    make('x').set(ms);
    walkTo(ms - 0.5);
    expect(rang).toEqual([]);
    walkTo(ms + TICK_MS);
    expect(rang).toEqual(['x']);
  },
);

test('a timer that is moved to a later time forgets the earlier one', () => {
  const { make, walkTo, rang } = wheel();
  const timer = make('x');
  timer.set(50);
  walkTo(40);
  timer.set(50);
  walkTo(89);
  expect(rang).toEqual([]);
  walkTo(90 + TICK_MS);
  expect(rang).toEqual(['x']);
});

test('a timer that is moved to an earlier time rings then, and not again', () => {
  const { make, walkTo, rang } = wheel();
  const timer = make('x');
  timer.set(5000);
  timer.set(50);
  walkTo(50 + TICK_MS);
  expect(rang).toEqual(['x']);
  walkTo(5100);
  expect(rang).toEqual(['x']);
});

test('a timer that is cleared does not ring, and can be set again, also to the time that it had', () => {
  const { make, walkTo, rang } = wheel();
  const timer = make('x');
  timer.set(50);
  timer.clear();
  walkTo(20);
  timer.set(30);
  walkTo(49);
  expect(rang).toEqual([]);
  walkTo(50 + TICK_MS);
  expect(rang).toEqual(['x']);
  timer.set(50);
  timer.clear();
  walkTo(500);
  expect(rang).toEqual(['x']);
});

test('a timer that is dropped does not ring, whether it was set, has rung, or never was', () => {
  const { timers, make, walkTo, rang } = wheel();
  for (const [name, ms] of [['set'], ['rung', 10], ['unset']] as [string, number?][]) {
    const timer = make(name);
    if (name !== 'unset') timer.set(ms ?? 1000);
    walkTo(timers.nowMs - START_MS + 20);
    timer.drop();
    timer.drop();
  }
  walkTo(2000);
  expect(rang).toEqual(['rung']);
});

test('dropping one of those that stand in the same slot leaves the others', () => {
  const { make, walkTo, rang } = wheel();
  const timers = ['a', 'b', 'c', 'd'].map((name) => make(name));
  for (const timer of timers) timer.set(40);
  for (const index of [0, 2]) timers[index]!.drop();
  walkTo(40 + TICK_MS);
  expect(rang.toSorted()).toEqual(['b', 'd']);
});

test('a callback may set its own timer again, with no time too, without ringing twice at the same moment', () => {
  const { make, jumpTo, rang } = wheel();
  const timer: Timer = make('x', () => timer.set(0));
  timer.set(0);
  for (let ms = TICK_MS; ms <= 10 * TICK_MS; ms += TICK_MS) jumpTo(ms);
  expect(rang).toHaveLength(10);
});

test('a callback may clear, drop, or move one that is due together with it', () => {
  for (const act of ['clear', 'drop', 'later'] as const) {
    const { make, jumpTo, rang } = wheel();
    const timers: Timer[] = ['a', 'b', 'c'].map((name, index) =>
      make(name, () =>
        timers.forEach((other, at) => {
          if (at === index) return;
          if (act === 'later') other.set(1000);
          else other[act]();
        }),
      ),
    );
    for (const timer of timers) timer.set(10);
    jumpTo(20);
    expect(rang).toHaveLength(1);
    jumpTo(900);
    expect(rang).toHaveLength(1);
    jumpTo(1100);
    // The two that were moved: whichever is first moves the other one on.
    expect(rang).toHaveLength(act === 'later' ? 2 : 1);
  }
});

test('a callback that sets another one for now sees it ring within a tick', () => {
  const { make, walkTo, rang } = wheel();
  const second = make('second');
  make('first', () => second.set(0)).set(100);
  walkTo(100 + TICK_MS);
  const before = rang.length;
  walkTo(100 + 2 * TICK_MS);
  expect([before >= 1, rang]).toEqual([true, ['first', 'second']]);
});

test.each([TURN_MS / 2, TURN_MS, 10 * TURN_MS + 3])('after a sleep of %d ms all that is due rings, each once', (ms) => {
  const { make, jumpTo, rang } = wheel();
  const due = [0, 1, 100, ms / 4, ms / 2, ms - 2 * TICK_MS, ms - TICK_MS];
  for (const time of due) make(String(time)).set(time);
  make('later').set(ms + 2 * TICK_MS);
  jumpTo(ms);
  expect(rang.toSorted()).toEqual(due.map(String).toSorted());
  jumpTo(ms + 4 * TICK_MS);
  expect(rang.filter((name) => name === 'later')).toHaveLength(1);
});

test('the wait is never longer than until the next timer, nor than asked for', () => {
  const { timers, make } = wheel();
  expect(timers.waitMs(200)).toBe(200);
  const timer = make('x');
  timer.set(100);
  const wait = timers.waitMs(200);
  expect(wait).toBeGreaterThanOrEqual(100);
  expect(wait).toBeLessThanOrEqual(100 + TICK_MS);
  expect(timers.waitMs(50)).toBe(50);
  timer.set(3 * TURN_MS);
  expect(timers.waitMs(20)).toBe(20);
  timer.drop();
  expect(timers.waitMs(200)).toBe(200);
});

test('time that goes back is an assertion', () => {
  const { timers } = wheel();
  expect(() => timers.advance(START_MS - 1)).toThrow(/time went back/);
});

type Step =
  { do: 'set'; timer: number; ms: number } | { do: 'clear' | 'drop'; timer: number } | { do: 'advance'; ms: number };

const TIMERS = 6;
const MOST_MS = 200;
const timerIndex = fc.nat({ max: TIMERS - 1 });
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    do: fc.constant('set' as const),
    timer: timerIndex,
    ms: fc.oneof(fc.nat({ max: 40 }), fc.nat({ max: 3 * TURN_MS }), fc.double({ min: 0, max: 100, noNaN: true })),
  }),
  fc.record({ do: fc.constantFrom('clear' as const, 'drop' as const), timer: timerIndex }),
  fc.record({
    do: fc.constant('advance' as const),
    ms: fc.oneof(fc.nat({ max: 20 }), fc.nat({ max: 2 * TURN_MS }), fc.double({ min: 0, max: 30, noNaN: true })),
  }),
);

test('against a plain list of deadlines, with any steps: what rings was due, and what is a tick overdue has rung', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const timers = new Timers(START_MS);
      const due = Array.from({ length: TIMERS }, () => Infinity);
      const wrong: string[] = [];
      const all = due.map((_, index) =>
        timers.make(() => {
          if (due[index]! > timers.nowMs) wrong.push(`${index} rings ${due[index]! - timers.nowMs} ms early`);
          due[index] = Infinity;
        }),
      );
      for (const one of steps) {
        if (one.do === 'set') {
          all[one.timer]!.set(one.ms);
          due[one.timer] = timers.nowMs + one.ms;
        } else if (one.do === 'advance') {
          // Whoever waits as long as it says is no later than a tick after what is due first.
          const lateMs = timers.nowMs + timers.waitMs(MOST_MS) - Math.max(timers.nowMs, Math.min(...due));
          if (lateMs > TICK_MS) wrong.push(`a wait that ends ${lateMs} ms late`);
          timers.advance(timers.nowMs + one.ms);
          if (Math.min(...due) <= timers.nowMs - TICK_MS) wrong.push('one that is a tick overdue has not rung');
        } else {
          all[one.timer]![one.do]();
          due[one.timer] = Infinity;
        }
      }
      expect(wrong).toEqual([]);
    }),
    { numRuns: 500 },
  );
});
