import { expect, test } from 'vitest';
import { chooser } from '../src/proxy/balance.ts';
import type { Candidate, Choose } from '../src/proxy/balance.ts';

type Server = Candidate & { load: number };

const server = (name: string, weight = 1, load = 0): Server => ({
  name,
  weight,
  load,
  turn: 0,
  active() {
    return this.load;
  },
});

const never = () => {
  throw new Error('no chance is needed here');
};

/** A repeatable stream of numbers in [0, 1). */
const seeded = (seed: number) => () => {
  seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
  return seed / 0x1_0000_0000;
};

const draw = (choose: Choose, servers: Server[], count: number, client = ''): string =>
  Array.from({ length: count }, () => choose(servers, client)?.name).join('');

test('roundRobin is smooth: 5, 1, 1 come as a a b a c a a', () => {
  const servers = [server('a', 5), server('b'), server('c')];
  expect(draw(chooser('roundRobin', never), servers, 14)).toBe('aabacaaaabacaa');
});

test('roundRobin keeps the proportions when a server leaves and comes back', () => {
  const [a, b, c] = [server('a', 2), server('b'), server('c')];
  const choose = chooser('roundRobin', never);
  draw(choose, [a, b, c], 3);
  const without = draw(choose, [a, b], 30);
  expect(Math.abs(without.replaceAll('b', '').length - 20)).toBeLessThanOrEqual(1);
  expect(draw(choose, [a, b, c], 40).replaceAll(/[bc]/g, '').length).toBeCloseTo(20, -1);
});

test('leastConnections takes the least loaded by its weight', () => {
  const choose = chooser('leastConnections', never);
  expect(draw(choose, [server('a', 1, 3), server('b', 1, 2), server('c', 1, 5)], 1)).toBe('b');
  expect(draw(choose, [server('a', 1, 2), server('b', 4, 7)], 1)).toBe('b');
});

test('leastConnections goes in turn among equally loaded ones', () => {
  expect(draw(chooser('leastConnections', never), [server('a'), server('b'), server('c')], 6)).toBe('abcabc');
});

const clients = Array.from({ length: 3_000 }, (_, index) => `10.0.${index >> 8}.${index & 255}`);

test('source gives a client the same server, whatever else was asked before and in whatever order', () => {
  const servers = [server('a'), server('b'), server('c')];
  const choose = chooser('source', never);
  const other = chooser('source', never);
  for (const client of clients) expect(choose(servers, client)?.name).toBe(other(servers.toReversed(), client)?.name);
});

test('source: a server that leaves moves only its own clients', () => {
  const [a, b, c] = [server('a'), server('b'), server('c')];
  const choose = chooser('source', never);
  for (const client of clients) {
    const before = choose([a, b, c], client);
    const after = choose([a, c], client);
    expect(after === before).toBe(before !== b);
  }
});

test('source spreads clients by weight', () => {
  const servers = [server('a', 3), server('b', 1)];
  const choose = chooser('source', never);
  const share = clients.filter((client) => choose(servers, client)?.name === 'a').length / clients.length;
  expect(share).toBeGreaterThan(0.7);
  expect(share).toBeLessThan(0.8);
});

test('random draws two and takes the less loaded: the most loaded of three never wins', () => {
  const drawn = draw(chooser('random', seeded(1)), [server('a', 1, 9), server('b', 1, 1), server('c', 1, 5)], 600);
  expect(drawn).not.toContain('a');
  expect(drawn.replaceAll('c', '').length).toBeGreaterThan(drawn.replaceAll('b', '').length);
});

test('random draws by weight', () => {
  const drawn = draw(chooser('random', seeded(2)), [server('a', 8), server('b', 1), server('c', 1)], 600);
  expect(drawn.replaceAll(/[bc]/g, '').length).toBeGreaterThan(400);
});

test('first takes the first', () => {
  expect(draw(chooser('first', never), [server('a', 1, 100), server('b')], 3)).toBe('aaa');
});

test.each(['roundRobin', 'leastConnections', 'source', 'random', 'first'] as const)('%s of none is null', (balance) => {
  expect(chooser(balance, seeded(3))([], 'x')).toBeNull();
});
