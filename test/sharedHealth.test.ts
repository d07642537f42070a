/** What nodes share of their checks, with a bus and members that a test speaks for: who hears what, and what it costs. */
import { describe, expect, test } from 'vitest';
import type { HealthQuorumContext } from '../machines/healthQuorum.ts';
import { decodeJson, encodeJson } from '../src/bus/bus.ts';
import type { Bus, BusMessage } from '../src/bus/bus.ts';
import { subjectsOf } from '../src/bus/subjects.ts';
import type { Heartbeat, MemberState } from '../src/cluster/members.ts';
import { SharedHealth } from '../src/cluster/sharedHealth.ts';
import { ViewBook } from '../src/cluster/viewBook.ts';
import { decodeViews, encodeViews, listHash } from '../src/cluster/viewText.ts';
import { loadConfig } from '../src/config/load.ts';
import type { Config } from '../src/config/schema.ts';
import { actorsOf } from '../src/wiring.ts';
import { broken, Scenario, wait } from './transcript.ts';

const NATS = 'bus: { nats: { servers: ["nats://127.0.0.1:4222"] } }';

const configOf = (checks: string, { servers = ['a', 'b', 'c'], node = 'lb1' } = {}): Config => {
  const list = servers.map((name, index) => `{ name: ${name}, address: "10.0.0.${(index % 250) + 1}:80" }`).join(', ');
  const loaded = loadConfig(
    `
node: ${node}
${NATS}
backends:
  web:
    check: { type: tcp, interval: 2s, fastInterval: 500ms, rise: 2, fall: 3, jitter: 0 }
    checks: ${checks}
    servers: [${list}]
`,
    {},
    '/',
  );
  if ('problems' in loaded) throw new Error(JSON.stringify(loaded.problems));
  return loaded.config;
};

type Said = { subject: string; node: string; view: string; message: string };

/** One node with all its actors on a virtual clock, and others that only speak. */
class World {
  readonly scenario: Scenario;
  readonly health: SharedHealth;
  readonly said: Said[] = [];
  config: Config;
  #hear: (message: BusMessage) => void = () => {};
  #heard: (heartbeat: Heartbeat) => void = () => {};
  #change: (node: string, state: MemberState) => void = () => {};
  #parts: (() => Partial<Heartbeat>)[] = [];

  constructor(config: Config) {
    this.config = config;
    const subjects = subjectsOf('shop');
    const bus = {
      publish: (subject, data) => this.said.push({ subject, ...(decodeJson(data) as Omit<Said, 'subject'>) }),
      subscribe: (subject, hear) => {
        if (subject === subjects.probes) this.#hear = hear;
        return () => {};
      },
    } as Pick<Bus, 'publish' | 'subscribe'> as Bus;
    const end = () => {};
    this.health = new SharedHealth(
      {
        bus,
        subjects,
        node: config.node,
        clock: { wallUs: () => 1_000 } as never,
        system: () => this.scenario.system,
        config: () => this.config,
      },
      {
        onHeard: (heard) => ((this.#heard = heard), end),
        onChange: (change) => ((this.#change = change), end),
        contribute: (part) => void this.#parts.push(part),
      },
    );
    this.scenario = new Scenario({ hands: this.health.hands });
    for (const { id, machine, input } of actorsOf(config)) this.scenario.system.start(id, machine, input);
    this.health.start();
  }

  wait(ms: number): this {
    this.scenario.play(wait(ms));
    return this;
  }

  /** All servers fail this node's checks from now on. */
  breakLink(): this {
    for (const { name } of this.config.backends['web']!.servers) this.scenario.play(broken(`checker/web/${name}`));
    return this;
  }

  /** A heartbeat of another node; `u`, `d` and `-` for its servers in their order, null where it shares nothing. */
  beat(
    node: string,
    views: string | null,
    servers = this.config.backends['web']!.servers.map(({ name }) => name),
  ): this {
    const texts = views === null ? {} : { web: `${listHash(servers)}:${views}` };
    this.#heard({ node, views: texts } as unknown as Heartbeat);
    return this;
  }

  probe(node: string, server: string, view: string, message = ''): this {
    this.tell(`understudy.shop.probe.web.${server}`, encodeJson({ node, view, message }));
    return this;
  }

  tell(subject: string, data: Uint8Array): void {
    this.#hear({ subject, data, reply: null });
  }

  lose(node: string, state: MemberState = 'suspect'): this {
    this.#change(node, state);
    return this;
  }

  reload(config: Config): this {
    const before = new Map(actorsOf(this.config).map((spec) => [spec.id, spec]));
    const after = new Map(actorsOf(config).map((spec) => [spec.id, spec]));
    this.config = config;
    this.health.configured();
    const { system } = this.scenario;
    for (const id of before.keys()) if (!after.has(id)) system.stop(id);
    for (const { id, machine, input } of after.values()) if (!before.has(id)) system.start(id, machine, input);
    for (const { id, input } of after.values())
      if (before.has(id) && 'settings' in input)
        system.send(id, { type: 'settings.changed', settings: input.settings } as { type: string });
    return this;
  }

  state(actor: string): string | null {
    return this.scenario.stateOf(actor);
  }

  states(kind: string): string[] {
    return this.config.backends['web']!.servers.map(({ name }) =>
      this.state(`${kind}/web/${name}`)!.replace(/,ready.*/, ''),
    );
  }

  get views(): string {
    return Object.assign({}, ...this.#parts.map((part) => part().views))['web'] as string;
  }

  /** Records since the count that is given. */
  records(from = 0) {
    return this.scenario.entries.slice(from);
  }
}

const QUORUM = '{ share: quorum }';
const shared = (checks = QUORUM, options = {}) => new World(configOf(checks, options)).wait(100);

describe('what a node tells', () => {
  test('each view when it changes, and all of them in each heartbeat', () => {
    const world = shared();
    const hash = listHash(['a', 'b', 'c']);
    expect(world.said.map(({ subject, node, view }) => [subject, node, view])).toEqual([
      ['understudy.shop.probe.web.a', 'lb1', 'up'],
      ['understudy.shop.probe.web.b', 'lb1', 'up'],
      ['understudy.shop.probe.web.c', 'lb1', 'up'],
    ]);
    expect(world.views).toBe(`${hash}:uuu`);
    world.scenario.play(broken('checker/web/b'), wait(4_000));
    expect(world.said.slice(3)).toEqual([
      { subject: 'understudy.shop.probe.web.b', node: 'lb1', view: 'down', message: 'L4CON' },
    ]);
    expect(world.views).toBe(`${hash}:udu`);
  });

  test('of pools that are only observed, what its servers are, and their quorum does not exist', () => {
    const world = shared('{ share: observe }');
    world.beat('lb2', 'ddd').beat('lb3', 'ddd');
    expect(world.states('server')).toEqual(['up', 'up', 'up']);
    expect(world.state('quorum/web/a')).toBeNull();
    world.scenario.play(broken('checker/web/b'), wait(4_000));
    expect(world.views).toMatch(/:udu$/);
    expect(world.said.at(-1)).toMatchObject({ subject: 'understudy.shop.probe.web.b', view: 'down' });
    world.scenario.system.send('server/web/a', { type: 'operator.maintenance' });
    expect(world.views).toMatch(/:-du$/);
    expect(world.health.viewsOf('web', 'b').map(({ node, view }) => [node, view])).toEqual([
      ['lb1', 'down'],
      ['lb2', 'down'],
      ['lb3', 'down'],
    ]);
  });

  test('nothing of pools that share nothing', () => {
    const world = shared('{ share: none }');
    expect([world.said, world.views]).toEqual([[], undefined]);
  });
});

describe('what it hears', () => {
  test('views count at once, and a heartbeat makes good what got lost', () => {
    const world = shared().beat('lb2', 'uuu').beat('lb3', 'uuu');
    world.probe('lb2', 'a', 'down', 'refused').probe('lb3', 'a', 'down', 'refused');
    expect(world.states('server')).toEqual(['down', 'up', 'up']);
    world.beat('lb2', 'dud').beat('lb3', 'dud');
    expect(world.states('server')).toEqual(['down', 'up', 'down']);
    // The word of the change back got lost, and the heartbeat is one that was there before.
    world.beat('lb2', 'uuu').beat('lb3', 'uuu');
    expect(world.states('server')).toEqual(['up', 'up', 'up']);
    world.probe('lb2', 'a', 'down').probe('lb3', 'a', 'down');
    expect(world.states('server')).toEqual(['down', 'up', 'up']);
    world.beat('lb2', 'uuu').beat('lb3', 'uuu');
    expect(world.states('server')).toEqual(['up', 'up', 'up']);
  });

  test('views are recorded as of another node, once for each change', () => {
    const world = shared().beat('lb2', 'uuu');
    const from = world.records().length;
    for (let second = 0; second < 10; second++) world.beat('lb2', 'uuu');
    expect(world.records(from)).toEqual([]);
    world.beat('lb2', 'udu');
    expect(world.records(from)).toMatchObject([
      { actor: 'quorum/web/b', origin: 'remote', event: { type: 'view.heard', node: 'lb2', view: 'down' } },
    ]);
  });

  test('another list of servers is noticed, and not misread', () => {
    const world = shared().beat('lb2', 'dd', ['a', 'c']).beat('lb3', 'ddd', ['c', 'b', 'a']);
    expect(world.states('quorum')).toEqual(['up,up', 'up,up', 'up,up']);
    expect(world.health.unlike('web')).toEqual(['lb2', 'lb3']);
    world.beat('lb2', 'udd').beat('lb3', 'udd');
    expect(world.health.unlike('web')).toEqual([]);
    expect(world.states('quorum')).toEqual(['up,up', 'up,down', 'up,down']);
  });

  test('a node that no longer shares the pool has no views', () => {
    const world = shared().beat('lb2', 'udd').beat('lb3', 'udd');
    expect(world.states('server')).toEqual(['up', 'down', 'down']);
    world.beat('lb2', null).beat('lb3', null);
    expect(world.states('server')).toEqual(['up', 'up', 'up']);
    expect(world.health.viewsOf('web', 'a').map(({ view }) => view)).toEqual(['up', 'none', 'none']);
  });

  test('a node that is not here has no word, until its next heartbeat', () => {
    const world = shared().beat('lb2', 'uuu').beat('lb3', 'uuu').lose('lb2').lose('lb3');
    world.probe('lb2', 'a', 'down').probe('lb3', 'a', 'down').probe('lb4', 'a', 'down');
    expect(world.states('quorum')).toEqual(['up,up', 'up,up', 'up,up']);
    world.beat('lb2', 'duu').beat('lb3', 'duu');
    expect(world.states('quorum')).toEqual(['up,down', 'up,up', 'up,up']);
  });

  test('what is no view is counted, and nothing else', () => {
    const world = shared().beat('lb2', 'uuu');
    const from = world.records().length;
    for (const text of ['', 'nonsense', '{}', '{"node":"lb2","view":"sideways"}', '[]', 'null'])
      world.tell('understudy.shop.probe.web.a', new TextEncoder().encode(text));
    expect(world.health.malformed).toBe(6);
    world.probe('lb2', 'nobody', 'down');
    world.tell('understudy.shop.probe.other.a', encodeJson({ node: 'lb2', view: 'down' }));
    world.beat('lb2', 'uu').beat('lb2', 'uxu').beat('lb2', '');
    expect(world.records(from)).toEqual([]);
  });

  test('what a check says is cut to what people read', () => {
    const world = shared();
    world.scenario.play(
      {
        do: 'probed',
        checker: 'checker/web/a',
        answer: { ok: false, code: 'X', message: 'x'.repeat(1_000), durationMs: 1 },
      },
      wait(4_000),
    );
    expect(world.said.at(-1)!.message).toHaveLength(200);
  });
});

describe('sight', () => {
  test('a node that sees none while others do is blind, as soon as its own checks say so', () => {
    const world = shared().beat('lb2', 'uuu').beat('lb3', 'uuu');
    world.breakLink().wait(4_000);
    expect(world.states('quorum')).toEqual(['down,up', 'down,up', 'down,up']);
    expect(world.state('sight')).toBe('blind');
    const last = world.records().findLast(({ actor }) => actor === 'quorum/web/c' && actor)!;
    const became = world.records().find(({ actor, state }) => actor === 'sight' && state === 'blind')!;
    expect(became.monoUs).toBeLessThanOrEqual(last.monoUs);
    expect(became.event).toMatchObject({
      counts: { lb1: { seen: 0, of: 3, others: { lb2: 3, lb3: 3 } }, lb2: { seen: 3, of: 3 } },
    });
    // Its own vote is gone: one more is enough.
    world.probe('lb2', 'a', 'down');
    expect(world.state('quorum/web/a')).toBe('down,up');
    world.probe('lb3', 'a', 'down');
    expect(world.state('quorum/web/a')).toBe('down,down');
  });

  test('it sees again with the first server', () => {
    const world = shared().beat('lb2', 'uuu').breakLink().wait(4_000);
    expect(world.state('sight')).toBe('blind');
    world.scenario.play({
      do: 'probed',
      checker: 'checker/web/b',
      answer: { ok: true, code: 'L4OK', message: '', durationMs: 1 },
    });
    world.wait(4_000);
    expect(world.state('sight')).toBe('seeing');
  });

  test('servers that are really down make nobody blind', () => {
    const world = shared().beat('lb2', 'uuu').beat('lb3', 'uuu');
    world.breakLink();
    for (const server of ['a', 'b', 'c']) world.probe('lb2', server, 'down').probe('lb3', server, 'down');
    world.wait(4_000);
    expect([world.state('sight'), ...world.states('server')]).toEqual(['seeing', 'down', 'down', 'down']);
  });

  test('with nobody left to contradict it a node is not blind, and goes by its own checks', () => {
    const world = shared().beat('lb2', 'uuu').beat('lb3', 'uuu').breakLink().wait(4_000);
    world.lose('lb2').lose('lb3');
    expect([world.state('sight'), ...world.states('server')]).toEqual(['seeing', 'down', 'down', 'down']);
  });

  test('another blind node has no vote', () => {
    const world = shared().beat('lb2', 'uuu').beat('lb3', 'uuu').beat('lb3', 'ddd');
    const quorum = world.scenario.system.get('quorum/web/a')!.context as HealthQuorumContext;
    expect(quorum.blind).toEqual(['lb3']);
    world.scenario.play(broken('checker/web/a'), wait(4_000));
    expect(world.state('quorum/web/a')).toBe('down,up');
    world.probe('lb2', 'a', 'down');
    expect(world.state('quorum/web/a')).toBe('down,down');
  });
});

describe('divided checks', () => {
  const DIVIDED = '{ share: quorum, divide: true }';
  const names = Array.from({ length: 30 }, (_, index) => `s${index}`);
  const many = () => shared(DIVIDED, { servers: names });
  const all = (view: string) => view.repeat(names.length);
  const isOff = (state: string) => state.startsWith('offDuty');

  test('as long as there are no more nodes than are to check, all do', () => {
    const world = many().beat('lb2', all('u'));
    expect(world.states('quorum').filter(isOff)).toEqual([]);
    expect(names.filter((name) => world.health.checkersOf('web', name) !== null)).toEqual([]);
  });

  test('with three nodes and two checkers a third of the servers is followed only', () => {
    const world = many().beat('lb2', all('u')).beat('lb3', all('u'));
    const off = world.states('quorum').filter(isOff).length;
    expect(off).toBeGreaterThan(3);
    expect(off).toBeLessThan(17);
    for (const name of names) {
      const here = world.health.checkersOf('web', name)!.includes('lb1');
      expect(world.state(`quorum/web/${name}`), name).toBe(here ? 'up,up' : 'offDuty,up');
      expect(world.state(`checker/web/${name}`), name).toBe(here ? 'waiting' : 'paused');
    }
    expect(world.views.match(/-/g)).toHaveLength(off);
  });

  test('a node that has no views yet relieves nobody', () => {
    const world = many().beat('lb2', all('u')).beat('lb3', all('-'));
    expect(world.states('quorum').filter(isOff)).toEqual([]);
    world.beat('lb3', all('u'));
    expect(world.states('quorum').filter(isOff).length).toBeGreaterThan(3);
  });

  test('when a checker is lost the others take over with a check at once', () => {
    const world = many().beat('lb2', all('u')).beat('lb3', all('u')).wait(10_000);
    const off = names.filter((name) => isOff(world.state(`quorum/web/${name}`)!));
    const before = new Map(off.map((name) => [name, world.scenario.probesOf(`checker/web/${name}`).length]));
    world.lose('lb3');
    expect(world.states('quorum').filter(isOff)).toEqual([]);
    for (const [name, count] of before)
      expect(world.scenario.probesOf(`checker/web/${name}`).length, name).toBe(count + 1);
    world.wait(100);
    expect(world.states('quorum').every((state) => state === 'up,up')).toBe(true);
  });

  test('a node with another list of servers is not relied on', () => {
    const world = many().beat('lb2', all('u')).beat('lb3', 'uu', ['s0', 's1']);
    expect(world.states('quorum').filter(isOff)).toEqual([]);
    expect(names.filter((name) => world.health.checkersOf('web', name) !== null)).toEqual([]);
  });

  test('a server in maintenance here is not taken up when duties move', () => {
    const world = many().beat('lb2', all('u')).beat('lb3', all('u'));
    const off = names.find((name) => isOff(world.state(`quorum/web/${name}`)!))!;
    world.scenario.system.send(`server/web/${off}`, { type: 'operator.maintenance' });
    world.lose('lb3').wait(5_000);
    expect([world.state(`quorum/web/${off}`), world.state(`checker/web/${off}`)]).toEqual(['paused,unknown', 'paused']);
    world.scenario.system.send(`server/web/${off}`, { type: 'operator.ready' });
    world.wait(100);
    expect(world.state(`quorum/web/${off}`)).toBe('up,up');
  });

  test('a reload that ends the division puts every node on duty', () => {
    const world = many().beat('lb2', all('u')).beat('lb3', all('u'));
    world.reload(configOf(QUORUM, { servers: names })).wait(100);
    expect(world.states('quorum').every((state) => state === 'up,up')).toBe(true);
    expect(world.health.checkersOf('web', 's0')).toBeNull();
  });
});

describe('a reload', () => {
  test('that begins to share asks what is known, and takes no server down', () => {
    const world = shared('{ share: none }').reload(configOf(QUORUM));
    expect(world.states('server')).toEqual(['up', 'up', 'up']);
    world.beat('lb2', 'uud').beat('lb3', 'uud').wait(3_000);
    expect(world.states('quorum')).toEqual(['up,up', 'up,up', 'up,down']);
    expect(world.states('server')).toEqual(['up', 'up', 'down']);
    expect(world.views).toMatch(/:uuu$/);
  });

  test('that ends it takes the views back, and leaves the servers to this node’s checks', () => {
    const world = shared().beat('lb2', 'uud').beat('lb3', 'uud');
    world.reload(configOf('{ share: none }'));
    expect(world.views).toBeUndefined();
    expect(world.state('sight')).toBeNull();
    world.wait(10_000);
    expect(world.states('server')).toEqual(['up', 'up', 'up']);
  });

  test('that adds a server keeps what is known of the others, and tells the new one', () => {
    const world = shared().beat('lb2', 'udu').beat('lb3', 'udu');
    expect(world.states('server')).toEqual(['up', 'down', 'up']);
    world.reload(configOf(QUORUM, { servers: ['d', 'a', 'b', 'c'] })).wait(1_000);
    expect(world.states('server')).toEqual(['up', 'up', 'down', 'up']);
    expect(world.health.viewsOf('web', 'b').map(({ view }) => view)).toEqual(['up', 'down', 'down']);
    world.beat('lb2', 'dudu').beat('lb3', 'dudu');
    expect(world.states('server')).toEqual(['down', 'up', 'down', 'up']);
  });

  test('that adds a server to a node that is blind tells it whose vote doesn’t count', () => {
    const world = shared().beat('lb2', 'uuu').beat('lb3', 'ddd');
    world.reload(configOf(QUORUM, { servers: ['a', 'b', 'c', 'd'] }));
    expect((world.scenario.system.get('quorum/web/d')!.context as HealthQuorumContext).blind).toEqual(['lb3']);
  });
});

describe('hundreds of servers', () => {
  const servers = Array.from({ length: 300 }, (_, index) => `web${index}`);
  const all = 'u'.repeat(servers.length);
  /** Every server's check says this once, with no time passing: a simulated probe costs more than what is tested. */
  const check = (world: World, type: 'check.passed' | 'check.failed'): World => {
    for (const server of servers)
      world.scenario.system.send(`quorum/web/${server}`, { type, code: 'L4', message: '', durationMs: 1 } as {
        type: string;
      });
    return world;
  };
  const seeing = () =>
    check(new World(configOf(QUORUM, { servers })), 'check.passed')
      .beat('lb2', all)
      .beat('lb3', all);

  test('cost no record while the cluster is quiet, and a byte each in a heartbeat', () => {
    const world = seeing();
    const from = world.records().length;
    const said = world.said.length;
    for (let second = 0; second < 5; second++) check(world, 'check.passed').beat('lb2', all).beat('lb3', all);
    expect(world.records(from)).toHaveLength(5 * servers.length);
    expect(world.records(from).filter(({ steady }) => !steady)).toEqual([]);
    expect(world.said.length).toBe(said);
    expect(world.views.length).toBeLessThan(servers.length + 10);
  });

  test('are told once each by a node whose link breaks, which is blind once', () => {
    const world = seeing();
    const said = world.said.length;
    for (let times = 0; times < 5; times++) check(world, 'check.failed');
    expect(world.said.length - said).toBe(servers.length);
    expect(
      world
        .records()
        .filter(({ actor }) => actor === 'sight')
        .map(({ state }) => state),
    ).toEqual(['seeing', 'blind']);
    expect(world.states('server').every((state) => state === 'up')).toBe(true);
  });
});

describe('views as text', () => {
  test('come back as they were, and nothing else is read', () => {
    const hash = listHash(['a', 'b', 'c']);
    expect(decodeViews(encodeViews(hash, ['up', 'down', 'none']), hash, 3)).toEqual(['up', 'down', 'none']);
    for (const text of ['', hash, `${hash}:ud`, `${hash}:udux`, `${hash}:ux-`, `${listHash(['a', 'c', 'b'])}:ud-`])
      expect(decodeViews(text, hash, 3), text).toBeNull();
  });
});

test('the book counts what each node sees as views come and go', () => {
  const book = new ViewBook();
  const pool = (share: 'quorum' | 'observe', servers: string[]) => ({ share, divide: false, by: 2, servers });
  book.configure(
    new Map([
      ['web', pool('quorum', ['a', 'b'])],
      ['log', pool('observe', ['l'])],
    ]),
  );
  book.set('web', 'a', 'lb1', 'down', '', 0);
  book.set('web', 'b', 'lb2', 'up', '', 0);
  book.set('log', 'l', 'lb1', 'down', '', 0);
  book.set('log', 'l', 'lb2', 'up', '', 0);
  // Nobody says otherwise of the only one that it sees.
  expect([book.counts(), book.blind()]).toEqual([{ lb1: { seen: 0, of: 1, others: {} }, lb2: { seen: 1, of: 1 } }, []]);
  book.set('web', 'a', 'lb2', 'up', '', 0);
  expect([book.counts()['lb1'], book.blind()]).toEqual([{ seen: 0, of: 1, others: { lb2: 1 } }, ['lb1']]);
  book.set('web', 'a', 'lb1', 'none', '', 0);
  expect([Object.keys(book.counts()), book.blind()]).toEqual([['lb2'], []]);
  expect(book.forget('lb2')).toEqual([
    { pool: 'web', server: 'a' },
    { pool: 'web', server: 'b' },
    { pool: 'log', server: 'l' },
  ]);
  expect(book.counts()).toEqual({});
});
