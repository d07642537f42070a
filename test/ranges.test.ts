/** Sets of whole numbers as ranges, beside sets. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Ranges } from '../src/ranges.ts';
import type { Range } from '../src/ranges.ts';

const range = fc
  .tuple(fc.integer({ min: 0, max: 40 }), fc.integer({ min: 0, max: 6 }))
  .map(([from, more]): Range => ({ from, through: from + more }));
const ranges = fc.array(range, { maxLength: 8 });

const numbersOf = (list: readonly Range[]): Set<number> =>
  new Set(list.flatMap(({ from, through }) => Array.from({ length: through - from + 1 }, (_, index) => from + index)));

const sorted = (numbers: Set<number>): number[] => [...numbers].toSorted((a, b) => a - b);

/** The numbers, of ranges that are in order and apart. */
const checked = ({ list }: Ranges): number[] => {
  for (const [index, { from, through }] of list.entries()) {
    expect(from).toBeLessThanOrEqual(through);
    if (index > 0) expect(from).toBeGreaterThan(list[index - 1]!.through + 1);
  }
  return sorted(numbersOf(list));
};

test('ranges that come in any order are one set, in order and apart', () => {
  fc.assert(
    fc.property(ranges, (list) => {
      const found = Ranges.of();
      for (const { from, through } of list) found.add(from, through);
      const expected = numbersOf(list);
      expect(checked(found)).toEqual(sorted(expected));
      expect(checked(Ranges.of(list))).toEqual(sorted(expected));
      for (let value = 0; value <= 50; value++) expect(found.has(value)).toBe(expected.has(value));
      expect(found.first).toBe(expected.size === 0 ? null : Math.min(...expected));
      expect(found.last).toBe(expected.size === 0 ? null : Math.max(...expected));
    }),
  );
});

test('union, difference and gaps are those of sets', () => {
  fc.assert(
    fc.property(ranges, ranges, (one, other) => {
      const [mine, its] = [numbersOf(one), numbersOf(other)];
      expect(checked(Ranges.of(one).union(Ranges.of(other)))).toEqual(sorted(mine.union(its)));
      expect(checked(Ranges.of(one).minus(Ranges.of(other)))).toEqual(sorted(mine.difference(its)));
      const between = numbersOf(mine.size === 0 ? [] : [{ from: Math.min(...mine), through: Math.max(...mine) }]);
      expect(checked(Ranges.of(one).gaps())).toEqual(sorted(between.difference(mine)));
    }),
  );
});
