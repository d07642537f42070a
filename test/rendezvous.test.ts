/** Who checks which server: every node computes it alike, and as little as possible moves. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { checkersOf } from '../src/cluster/rendezvous.ts';

const nodes = fc.uniqueArray(fc.stringMatching(/^[a-z0-9-]{1,12}$/), { minLength: 1, maxLength: 12 });
const server = fc.stringMatching(/^[a-z]{1,8}\/[a-z0-9]{1,8}$/);
const by = fc.integer({ min: 2, max: 5 });

test('each server has as many checkers as are wanted, all different, or all nodes where there are fewer', () => {
  fc.assert(
    fc.property(server, nodes, by, (name, all, count) => {
      const checkers = checkersOf(name, all, count);
      expect(checkers).toHaveLength(Math.min(count, all.length));
      expect(new Set(checkers).size).toBe(checkers.length);
      expect(checkers.every((node) => all.includes(node))).toBe(true);
    }),
  );
});

test('it is the same on every node, whatever order they know each other in', () => {
  fc.assert(
    fc.property(server, nodes, by, fc.infiniteStream(fc.nat()), (name, all, count, order) => {
      const shuffled = all.map((node) => ({ node, at: order.next().value as number })).sort((a, b) => a.at - b.at);
      const other = checkersOf(
        name,
        shuffled.map(({ node }) => node),
        count,
      );
      expect(other).toEqual(checkersOf(name, all, count));
    }),
  );
});

test('a node that leaves is replaced on its own servers, and moves no other', () => {
  fc.assert(
    fc.property(server, nodes, by, fc.nat(), (name, all, count, which) => {
      const gone = all[which % all.length]!;
      const before = checkersOf(name, all, count);
      const rest = all.filter((node) => node !== gone);
      const after = checkersOf(name, rest, count);
      expect(before.filter((node) => node !== gone).every((node) => after.includes(node))).toBe(true);
      expect(before.includes(gone) || after.join() === before.join()).toBe(true);
    }),
  );
});

test('the work is shared evenly', () => {
  const all = ['lb1', 'lb2', 'lb3', 'lb4', 'lb5'];
  const count = new Map<string, number>();
  for (let index = 0; index < 5_000; index++)
    for (const node of checkersOf(`web/web${index}`, all, 2)) count.set(node, (count.get(node) ?? 0) + 1);
  for (const node of all) expect(Math.abs(count.get(node)! / 2_000 - 1), node).toBeLessThan(0.1);
});
