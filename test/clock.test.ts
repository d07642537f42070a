/** The clock that stands still until it is told: replay, what-if and scenarios run on it. */
import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { VirtualClock } from '../actors/clock.ts';

test('it starts where it is told, and stands still', () => {
  const clock = new VirtualClock({ wallUs: 1_700_000_000_000_000, monoUs: 5_000 });
  expect([clock.wallUs(), clock.monoUs()]).toEqual([1_700_000_000_000_000, 5_000]);
  expect([clock.wallUs(), clock.monoUs()]).toEqual([1_700_000_000_000_000, 5_000]);
});

test('wall time moves with monotonic time', () => {
  const clock = new VirtualClock({ wallUs: 1_000_000, monoUs: 200 });
  clock.advanceTo(300);
  expect(clock.monoUs()).toBe(300);
  expect(clock.wallUs()).toBe(1_000_100);
});

test('it never runs backwards, and may be told to go where it is', () => {
  const clock = new VirtualClock({ wallUs: 0, monoUs: 100 });
  clock.advanceTo(100);
  expect(clock.monoUs()).toBe(100);
  clock.advanceTo(40);
  expect([clock.monoUs(), clock.wallUs()]).toEqual([100, 0]);
});

test('its driver asks for deadlines: it wakes nobody', () => {
  const clock = new VirtualClock({ wallUs: 0, monoUs: 0 });
  let woken = 0;
  const live: { wakeAt(monoUs: number | null, wake: () => void): void } = clock;
  live.wakeAt(10, () => woken++);
  clock.advanceTo(1_000_000);
  expect(woken).toBe(0);
});

test('through any advances it shows the latest time it was told', () => {
  fc.assert(
    fc.property(fc.nat(1e9), fc.array(fc.nat(1e9)), (monoUs, advances) => {
      const clock = new VirtualClock({ wallUs: 7, monoUs });
      let latest = monoUs;
      for (const to of advances) {
        clock.advanceTo(to);
        latest = Math.max(latest, to);
        expect(clock.monoUs()).toBe(latest);
        expect(clock.wallUs() - clock.monoUs()).toBe(7 - monoUs);
      }
    }),
  );
});
