import { describe, expect, test } from 'vitest';
import { balance as balanceSchema } from '../src/config/balance.ts';
import type { Balance } from '../src/config/balance.ts';
import { balancerOf } from '../src/proxy/balance.ts';
import type { BalancerPorts } from '../src/proxy/balance.ts';
import type { Balancer, Candidate } from '../src/proxy/candidate.ts';
import type { RequestFacts } from '../src/proxy/facts.ts';
import { requestFacts } from './requestFacts.ts';

class FakeServer implements Candidate {
  readonly name: string;
  weight: number;
  load = 0;
  full = false;

  constructor(name: string, weight = 1, load = 0) {
    this.name = name;
    this.weight = weight;
    this.load = load;
  }

  active(): number {
    return this.load;
  }

  isFull(): boolean {
    return this.full;
  }
}

const server = (name: string, weight = 1, load = 0) => new FakeServer(name, weight, load);
const many = (count: number, weight = 1) => Array.from({ length: count }, (_, index) => server(`web${index}`, weight));

const nothing = requestFacts();
const from = (source: string): RequestFacts => ({ ...nothing, source });

/** A repeatable stream of numbers in [0, 1). */
const seeded = (seed: number) => () => {
  seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
  return seed / 0x1_0000_0000;
};

const NOBODY: ReadonlySet<FakeServer> = new Set();

const make = (balance: Balance, servers: FakeServer[], ports: Partial<BalancerPorts> = {}) => {
  const balancer = balancerOf<FakeServer>(balance, {
    random: () => {
      throw new Error('no chance is needed here');
    },
    stagger: 0,
    totalActive: () => servers.reduce((sum, { load }) => sum + load, 0),
    ...ports,
  });
  balancer.update(servers);
  return balancer;
};

const names = (balancer: Balancer<FakeServer>, count: number, facts = nothing): string[] =>
  Array.from({ length: count }, () => balancer.choose(facts, NOBODY)?.name ?? '-');

const tally = (drawn: readonly string[]): Record<string, number> => {
  const counts: Record<string, number> = {};
  for (const name of drawn) counts[name] = (counts[name] ?? 0) + 1;
  return counts;
};

describe('roundRobin', () => {
  test('is smooth: 5, 1, 1 come as a a a b a a c, never more than four of a in a row', () => {
    const drawn = names(make({ type: 'roundRobin' }, [server('a', 5), server('b'), server('c')]), 700).join('');
    expect(drawn.slice(0, 7)).toBe('aaabaac');
    expect(drawn).not.toContain('aaaaa');
    expect(tally(drawn.split(''))).toEqual({ a: 500, b: 100, c: 100 });
  });

  test('goes in the order of the configuration among equals', () => {
    expect(names(make({ type: 'roundRobin' }, [server('c'), server('a'), server('b')]), 6).join('')).toBe('cabcab');
  });

  test.each([3, 50, 1000])(
    'among %i servers of any weights every stretch is in proportion, to a turn or two',
    (count) => {
      const random = seeded(count);
      const servers = many(count);
      for (const each of servers) each.weight = 1 + Math.floor(random() * 256) + random();
      const sum = servers.reduce((total, { weight }) => total + weight, 0);
      const balancer = make({ type: 'roundRobin' }, servers);
      names(balancer, 500);
      const stretch = Math.ceil(sum / 8);
      const counts = tally(names(balancer, stretch));
      for (const { name, weight } of servers) {
        expect(Math.abs((counts[name] ?? 0) - (stretch * weight) / sum)).toBeLessThan(2);
      }
    },
  );

  test('keeps the proportions when a server leaves and comes back, which takes no more than its share then', () => {
    const [a, b, c] = [server('a', 2), server('b'), server('c')];
    const balancer = make({ type: 'roundRobin' }, [a, b, c]);
    names(balancer, 3);
    balancer.update([a, b]);
    expect(Math.abs(tally(names(balancer, 30))['a']! - 20)).toBeLessThanOrEqual(1);
    balancer.update([a, b, c]);
    expect(tally(names(balancer, 8))['c']).toBe(2);
  });

  test('a weight that grows little by little, as in a slow start, is followed without a burst', () => {
    const [a, b] = [server('a', 100), server('b', 1)];
    const balancer = make({ type: 'roundRobin' }, [a, b]);
    let taken = 0;
    for (let weight = 1; weight <= 100; weight++) {
      b.weight = weight;
      balancer.update([a, b]);
      taken += tally(names(balancer, 10))['b'] ?? 0;
    }
    // The sum of 10 × w / (100 + w).
    expect(Math.abs(taken - 307)).toBeLessThan(12);
  });

  test('a weight that rises counts at once, for what is left of a turn too', () => {
    const [a, b] = [server('a', 100), server('b', 1)];
    const balancer = make({ type: 'roundRobin' }, [a, b]);
    names(balancer, 3);
    b.weight = 100;
    balancer.update([a, b]);
    expect(names(balancer, 3)).toContain('b');
  });

  test('passes over a full server, which makes up for nothing afterwards', () => {
    const [a, b, c] = [server('a', 10), server('b'), server('c')];
    const balancer = make({ type: 'roundRobin' }, [a, b, c]);
    a.full = true;
    expect(tally(names(balancer, 100))).toEqual({ b: 50, c: 50 });
    a.full = false;
    expect(tally(names(balancer, 12))['a']).toBeLessThanOrEqual(11);
  });

  test('a server that failed one request keeps its turn for the next', () => {
    const [a, b] = [server('a'), server('b')];
    const balancer = make({ type: 'roundRobin' }, [a, b]);
    expect(balancer.choose(nothing, new Set([a]))?.name).toBe('b');
    expect(names(balancer, 3).join('')).toBe('aab');
  });

  test('workers start apart, so that together they are smooth too', () => {
    const servers = many(12);
    const workers = [0, 1, 2, 3].map((index) => make({ type: 'roundRobin' }, servers, { stagger: index / 4 }));
    const together = Array.from({ length: 3 }, () => workers.flatMap((worker) => names(worker, 1))).flat();
    expect(new Set(together).size).toBe(12);
  });
});

describe('leastConnections', () => {
  test('takes the least loaded by its weight', () => {
    expect(
      names(make({ type: 'leastConnections' }, [server('a', 1, 3), server('b', 1, 2), server('c', 1, 5)]), 1),
    ).toEqual(['b']);
    expect(names(make({ type: 'leastConnections' }, [server('a', 1, 2), server('b', 4, 7)]), 1)).toEqual(['b']);
  });

  test('goes in turn among equally loaded ones, and among idle ones whatever they weigh', () => {
    expect(
      names(make({ type: 'leastConnections' }, [server('a', 1, 1), server('b', 1, 1), server('c', 1, 1)]), 6).join(''),
    ).toBe('abcabc');
    expect(names(make({ type: 'leastConnections' }, [server('a', 9), server('b'), server('c', 3)]), 6).join('')).toBe(
      'abcabc',
    );
  });

  test('a busy server doesn’t give its turn to its neighbour', () => {
    expect(
      names(make({ type: 'leastConnections' }, [server('a', 1, 4), server('b', 1, 1), server('c', 1, 1)]), 6).join(''),
    ).toBe('bcbcbc');
  });

  test('keeps a thousand servers level, though it looks at some of them only', () => {
    const servers = many(1000);
    const balancer = make({ type: 'leastConnections' }, servers);
    for (let request = 0; request < 20_000; request++) balancer.choose(nothing, NOBODY)!.load++;
    const loads = servers.map(({ load }) => load);
    expect([Math.min(...loads), Math.max(...loads)]).toEqual([20, 20]);
  });

  test('looks further while all that it saw are full', () => {
    const servers = many(1000);
    for (const each of servers.slice(0, 900)) each.full = true;
    expect(make({ type: 'leastConnections' }, servers).choose(nothing, NOBODY)?.name).toBe('web900');
  });
});

describe('a hash', () => {
  const clients = Array.from({ length: 20_000 }, (_, index) => `10.${index >> 12}.${(index >> 4) & 255}.${index & 15}`);
  const homes = (balancer: Balancer<FakeServer>) =>
    clients.map((client) => balancer.choose(from(client), NOBODY)!.name);

  test('gives a client the same server in every worker, whatever came before and in whatever order', () => {
    const servers = many(20);
    const one = make({ type: 'source' }, servers);
    const other = make({ type: 'source' }, servers.slice(0, 1));
    other.update(servers.toReversed().slice(3));
    for (const each of servers) each.weight = 7;
    other.update(servers.slice(1));
    for (const each of servers) each.weight = 1;
    other.update(servers.toReversed());
    expect(homes(other)).toEqual(homes(one));
  });

  test.each([
    [3, 0.03],
    [20, 0.1],
    [100, 0.25],
  ])('spreads clients over %i servers evenly, within a share of %d', (count, within) => {
    const counts = tally(homes(make({ type: 'source' }, many(count))));
    for (const { name } of many(count)) {
      expect(Math.abs(counts[name]! / (clients.length / count) - 1), name).toBeLessThan(within);
    }
  });

  test('spreads clients by weight, and fractions of weight', () => {
    const counts = tally(homes(make({ type: 'source' }, [server('a', 3), server('b', 1), server('c', 0.5)])));
    expect(counts['a']! / clients.length).toBeCloseTo(3 / 4.5, 1);
    expect(counts['b']! / clients.length).toBeCloseTo(1 / 4.5, 1);
    expect(counts['c']! / clients.length).toBeCloseTo(0.5 / 4.5, 1);
  });

  test('a server that leaves moves its own clients alone, to all the others, and has them again when it returns', () => {
    const servers = many(10);
    const balancer = make({ type: 'source' }, servers);
    const before = homes(balancer);
    balancer.update(servers.filter(({ name }) => name !== 'web4'));
    const without = homes(balancer);
    before.forEach((home, index) => expect(without[index] === home).toBe(home !== 'web4'));
    expect(new Set(without.filter((_, index) => before[index] === 'web4')).size).toBe(9);
    balancer.update(servers);
    expect(homes(balancer)).toEqual(before);
  });

  test('a server that gains weight takes clients, that loses weight gives clients, and no others move', () => {
    const servers = many(10, 100);
    const balancer = make({ type: 'source' }, servers);
    const before = homes(balancer);
    servers[4]!.weight = 200;
    balancer.update(servers);
    const after = homes(balancer);
    const moved = after.filter((home, index) => home !== before[index]);
    expect(new Set(moved)).toEqual(new Set(['web4']));
    // From a tenth to two elevenths.
    expect(moved.length / clients.length).toBeCloseTo(2 / 11 - 1 / 10, 1);
    servers[4]!.weight = 100;
    balancer.update(servers);
    expect(homes(balancer)).toEqual(before);
  });

  test('a full server’s clients go to the same other one, until it has room', () => {
    const servers = many(5);
    const balancer = make({ type: 'source' }, servers);
    const home = servers.find(({ name }) => name === balancer.choose(from('10.1.1.1'), NOBODY)!.name)!;
    home.full = true;
    const [second, again] = names(balancer, 2, from('10.1.1.1'));
    expect(second).not.toBe(home.name);
    expect(again).toBe(second);
    home.full = false;
    expect(names(balancer, 1, from('10.1.1.1'))).toEqual([home.name]);
  });

  test('finds the only server that is left of many', () => {
    const servers = many(200);
    for (const each of servers.slice(1)) each.full = true;
    expect(names(make({ type: 'source' }, servers), 1)).toEqual(['web0']);
  });

  test('with a bounded load no server has more than so many times its share, though one key is all that comes', () => {
    const servers = [server('a', 2), server('b'), server('c'), server('d')];
    const balancer = make({ type: 'source', boundedLoad: 1.25 }, servers);
    for (let request = 1; request <= 1000; request++) {
      const chosen = balancer.choose(from('10.1.1.1'), NOBODY)!;
      chosen.load++;
      expect(chosen.load).toBeLessThanOrEqual(Math.max(1, Math.ceil((Math.ceil(1.25 * request) * chosen.weight) / 5)));
    }
    expect(Math.max(...servers.map(({ load, weight }) => load / weight))).toBeLessThanOrEqual(251);
  });

  test('with a bounded load a key keeps its server while that has room', () => {
    const servers = many(4);
    for (const each of servers) each.load = 10;
    const bounded = make({ type: 'source', boundedLoad: 1.25 }, servers);
    expect(homes(bounded)).toEqual(homes(make({ type: 'source' }, servers)));
  });

  const keyed = (balance: Balance, one: Partial<RequestFacts>, other: Partial<RequestFacts>): boolean => {
    const servers = many(500);
    const balancer = make(balance, servers);
    return balancer.choose({ ...nothing, ...one }, NOBODY) === balancer.choose({ ...nothing, ...other }, NOBODY);
  };

  const uri = (options: Partial<Extract<Balance, { type: 'uri' }>>): Balance => ({
    type: 'uri',
    whole: false,
    ...options,
  });

  test.each<[string, Balance, Partial<RequestFacts>, Partial<RequestFacts>, boolean]>([
    ['of the path leaves the query out', uri({}), { path: '/a', query: 'x=1' }, { path: '/a', query: 'x=2' }, true],
    ['of the path tells paths apart', uri({}), { path: '/a' }, { path: '/b' }, false],
    [
      'of the whole URI has the query',
      uri({ whole: true }),
      { path: '/a', query: 'x=1' },
      { path: '/a', query: 'x=2' },
      false,
    ],
    ['to a depth of 1', uri({ depth: 1 }), { path: '/a/b' }, { path: '/a/c/d' }, true],
    ['to a depth of 1 has that level', uri({ depth: 1 }), { path: '/a/b' }, { path: '/b/b' }, false],
    ['to a depth of 2', uri({ depth: 2 }), { path: '/a/b' }, { path: '/a/c' }, false],
    ['to a length', uri({ length: 4 }), { path: '/abcd' }, { path: '/abce' }, true],
    ['to a length has what is before', uri({ length: 4 }), { path: '/abcd' }, { path: '/abdd' }, false],
    [
      'of a header',
      { type: 'header', name: 'X-User' },
      { header: (name) => (name === 'x-user' ? 'ann' : null), path: '/a' },
      { header: () => 'ann', path: '/b' },
      true,
    ],
    [
      'of a header tells values apart',
      { type: 'header', name: 'X-User' },
      { header: () => 'ann' },
      { header: () => 'bob' },
      false,
    ],
    [
      'of a cookie',
      { type: 'cookie', name: 'id' },
      { cookie: (name) => (name === 'id' ? '7' : null) },
      { cookie: () => '7' },
      true,
    ],
    ['of a parameter', { type: 'query', name: 'id' }, { query: 'id=7&a=1' }, { query: 'xid=8&id=7' }, true],
    ['of a parameter tells values apart', { type: 'query', name: 'id' }, { query: 'id=7' }, { query: 'id=8' }, false],
  ])('%s', (_title, balance, one, other, same) => {
    expect(keyed(balance, one, other)).toBe(same);
  });

  test.each<[string, Balance, Partial<RequestFacts>]>([
    ['header', { type: 'header', name: 'X-User' }, {}],
    ['header, which is empty,', { type: 'header', name: 'X-User' }, { header: () => '' }],
    ['cookie', { type: 'cookie', name: 'id' }, {}],
    ['parameter', { type: 'query', name: 'id' }, { query: 'id=&ids=3' }],
  ])('without its %s goes in turn', (_what, balance, facts) => {
    const balancer = make(balance, [server('a'), server('b'), server('c')]);
    expect(names(balancer, 6, { ...nothing, ...facts }).join('')).toBe('abcabc');
  });
});

describe('random', () => {
  const drawing = (servers: FakeServer[], draws: number) =>
    make({ type: 'random', draws }, servers, { random: seeded(draws) });

  test('draws two and takes the less loaded: the most loaded of three never wins', () => {
    const counts = tally(names(drawing([server('a', 1, 9), server('b', 1, 1), server('c', 1, 5)], 2), 600));
    expect(counts['a']).toBeUndefined();
    expect(counts['b']).toBeGreaterThan(counts['c']!);
  });

  test('draws by weight', () => {
    const counts = tally(names(drawing([server('a', 8), server('b'), server('c')], 1), 1000));
    expect(counts['a']! / 1000).toBeCloseTo(0.8, 1);
  });

  test('never draws a full one or one that failed, while there is another', () => {
    const [a, b, c] = [server('a', 50), server('b', 50), server('c')];
    a.full = true;
    const balancer = drawing([a, b, c], 2);
    for (let draw = 0; draw < 100; draw++) expect(balancer.choose(nothing, new Set([b]))).toBe(c);
  });
});

test('first takes the first that has room', () => {
  const [a, b] = [server('a', 1, 100), server('b')];
  const balancer = make({ type: 'first' }, [a, b]);
  expect(names(balancer, 2)).toEqual(['a', 'a']);
  a.full = true;
  expect(names(balancer, 1)).toEqual(['b']);
});

describe.each<Balance>([
  { type: 'roundRobin' },
  { type: 'leastConnections' },
  { type: 'source', boundedLoad: 1.25 },
  { type: 'random', draws: 2 },
  { type: 'first' },
])('$type', (balance) => {
  test('of none, or of none with room, is null, and of those with room again when there are', () => {
    const servers = many(3);
    const balancer = make(balance, servers, { random: seeded(1) });
    for (const each of servers) each.full = true;
    expect(balancer.choose(nothing, NOBODY)).toBeNull();
    servers[1]!.full = false;
    expect(balancer.choose(nothing, NOBODY)?.name).toBe('web1');
    balancer.update([]);
    expect(balancer.choose(nothing, NOBODY)).toBeNull();
  });
});

describe('the configuration', () => {
  test('takes a text for what has no options, or a map', () => {
    expect(balanceSchema.parse('random')).toEqual({ type: 'random', draws: 2 });
    expect(balanceSchema.parse({ type: 'header', name: 'X-User', boundedLoad: 1.25 })).toEqual({
      type: 'header',
      name: 'X-User',
      boundedLoad: 1.25,
    });
    expect(balanceSchema.parse('uri')).toEqual(balanceSchema.parse({ type: 'uri' }));
  });

  test.each<unknown>([
    'fastest',
    'header',
    { type: 'header' },
    { type: 'header', name: 'a b' },
    { type: 'source', boundedLoad: 1 },
    { type: 'first', boundedLoad: 2 },
  ])('refuses %j', (value) => {
    expect(balanceSchema.safeParse(value).success).toBe(false);
  });
});
