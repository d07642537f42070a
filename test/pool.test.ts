/** Which servers of a backend take new traffic: primaries, backups, a quorum, and never one that must not. */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Effect } from '../actors/decide.ts';
import { pool } from '../machines/pool.ts';
import type { Member, PoolContext, PoolEvent, PoolMode, PoolSettings, Publication } from '../machines/pool.ts';
import { Stepper, toldTo } from './stepper.ts';
import { broken, healthy, say, Scenario, send, start, wait } from './transcript.ts';
import type { Step } from './transcript.ts';

const SETTINGS: PoolSettings = { allBackups: false, quorum: 1, hysteresis: 0 };

type Published = Publication;

const publishedBy = (effects: Effect[]): Published | null => {
  const effect = effects.find(({ type }) => type === 'publish');
  return effect ? (effect.params as Published) : null;
};

/** A pool, and what its data plane was told altogether. */
class Pool {
  readonly machine: Stepper<PoolEvent, PoolContext>;
  readonly weights = new Map<string, number>();
  mode: PoolMode = 'exhausted';
  publications = 0;

  constructor(settings: Partial<PoolSettings> = {}) {
    this.machine = new Stepper(pool, { name: 'web', settings: { ...SETTINGS, ...settings } });
  }

  send(event: PoolEvent): this {
    const published = publishedBy(this.machine.send(event));
    if (published) {
      this.publications++;
      this.mode = published.mode;
      for (const [server, weight] of Object.entries(published.weights)) {
        if (weight === 0) this.weights.delete(server);
        else this.weights.set(server, weight);
      }
    }
    return this;
  }

  joins(server: string, standing: Partial<Member> = {}): this {
    const { weight = 1, backup = false, checked = true, initially = 'unchecked' } = standing;
    return this.send({ type: 'server.joined', server, weight, backup, checked, initially });
  }

  health(server: string, health: Member['health']): this {
    return this.send({ type: 'server.health', server, health });
  }

  admin(server: string, admin: Member['admin']): this {
    return this.send({ type: 'server.admin', server, admin });
  }

  /** Servers that join and are up. */
  with(...servers: string[]): this {
    for (const server of servers) this.joins(server, { backup: server.startsWith('backup') }).health(server, 'up');
    return this;
  }

  get serving(): string[] {
    return [...this.weights.keys()].sort();
  }
}

describe('primaries and backups', () => {
  test('a pool without servers is exhausted', () => {
    expect(new Pool().machine.state).toBe('exhausted');
  });

  test('usable primaries share the traffic by weight times share, and backups rest', () => {
    const web = new Pool().with('a', 'b', 'backup1');
    web.send({ type: 'server.weight', server: 'b', weight: 5 }).send({ type: 'server.share', server: 'b', share: 40 });
    expect(web.machine.state).toBe('serving');
    expect(Object.fromEntries(web.weights)).toEqual({ a: 100, b: 200 });
  });

  test('backups take over when the last primary is gone, and rest again when one is back', () => {
    const web = new Pool().with('a', 'b', 'backup1');
    web.health('a', 'down');
    expect([web.mode, web.serving]).toEqual(['serving', ['b']]);
    web.health('b', 'down');
    expect([web.mode, web.serving]).toEqual(['onBackups', ['backup1']]);
    web.health('a', 'up');
    expect([web.mode, web.serving]).toEqual(['serving', ['a']]);
  });

  test('the first usable backup works alone, in the order of the configuration', () => {
    const web = new Pool().with('backup-z', 'backup-a', 'backup-m');
    expect(web.serving).toEqual(['backup-z']);
    web.health('backup-z', 'down');
    expect(web.serving).toEqual(['backup-a']);
    web.health('backup-z', 'up');
    expect(web.serving).toEqual(['backup-z']);
  });

  test('the order of the configuration holds for servers with numbers for names', () => {
    const web = new Pool();
    web.joins('2', { backup: true }).health('2', 'up').joins('1', { backup: true }).health('1', 'up');
    expect(web.serving).toEqual(['2']);
  });

  test('with allBackups they work together, and a reload can say so while they work', () => {
    const web = new Pool().with('backup1', 'backup2');
    expect(web.serving).toEqual(['backup1']);
    web.send({ type: 'settings.changed', settings: { ...SETTINGS, allBackups: true } });
    expect(web.serving).toEqual(['backup1', 'backup2']);
  });

  test('without any usable server it is exhausted, and says so with a weight of 0 for the last', () => {
    const web = new Pool().with('a');
    const published = publishedBy(web.machine.send({ type: 'server.health', server: 'a', health: 'down' }));
    expect(published).toEqual({ pool: 'web', mode: 'exhausted', weights: { a: 0 } });
    expect(web.machine.state).toBe('exhausted');
  });
});

describe('who must not work', () => {
  test.each(['drain', 'maintenance'] as const)('a server in %s takes no new traffic though it is up', (admin) => {
    const web = new Pool().with('a', 'b').admin('a', admin);
    expect(web.serving).toEqual(['b']);
    web.admin('a', 'ready');
    expect(web.serving).toEqual(['a', 'b']);
  });

  test('a server of weight 0 takes no new traffic, and backups step in for it', () => {
    const web = new Pool().with('a', 'backup1').send({ type: 'server.weight', server: 'a', weight: 0 });
    expect([web.mode, web.serving]).toEqual(['onBackups', ['backup1']]);
  });

  test('a server that left takes no more traffic, and late news of it is forgotten', () => {
    const web = new Pool().with('a', 'b').send({ type: 'server.left', server: 'a' });
    expect(web.serving).toEqual(['b']);
    web.health('a', 'up').admin('a', 'ready').send({ type: 'server.weight', server: 'a', weight: 9 });
    expect(web.serving).toEqual(['b']);
    expect(Object.keys(web.machine.context.members)).toEqual(['b']);
  });

  test.each(['constructor', 'toString', 'valueOf'])(
    'a server called %s is one like any other: down, it takes no traffic',
    (name) => {
      const web = new Pool().joins(name).admin(name, 'ready').send({ type: 'server.share', server: name, share: 100 });
      web.health(name, 'up');
      expect(web.serving).toEqual([name]);
      web.health(name, 'down');
      expect(web.serving).toEqual([]);
    },
  );
});

describe('before the first check', () => {
  test('a server that is not checked counts as up', () => {
    expect(new Pool().joins('a', { checked: false }).serving).toEqual(['a']);
  });

  test('`initially: up` serves, `initially: down` does not', () => {
    expect(new Pool().joins('a', { initially: 'up' }).serving).toEqual(['a']);
    expect(new Pool().joins('a', { initially: 'down' }).machine.state).toBe('exhausted');
  });

  test('`initially: unchecked` serves only while nobody else can: not beside a proven primary, not beside a backup', () => {
    const web = new Pool().joins('new');
    expect(web.serving).toEqual(['new']);
    web.with('backup1');
    expect([web.mode, web.serving]).toEqual(['onBackups', ['backup1']]);
    web.with('a');
    expect([web.mode, web.serving]).toEqual(['serving', ['a']]);
    web.health('new', 'up');
    expect(web.serving).toEqual(['a', 'new']);
  });

  test('unproven primaries come before unproven backups', () => {
    const web = new Pool().joins('backup1', { backup: true });
    expect([web.mode, web.serving]).toEqual(['onBackups', ['backup1']]);
    web.joins('a');
    expect([web.mode, web.serving]).toEqual(['serving', ['a']]);
  });
});

describe('quorum and hysteresis', () => {
  test('fewer primaries than the quorum give way to the backups', () => {
    const web = new Pool({ quorum: 2 }).with('a', 'b', 'backup1');
    expect(web.serving).toEqual(['a', 'b']);
    web.health('b', 'down');
    expect([web.mode, web.serving]).toEqual(['onBackups', ['backup1']]);
    web.health('b', 'up');
    expect([web.mode, web.serving]).toEqual(['serving', ['a', 'b']]);
  });

  test('a few primaries are better than none: without backups they serve below the quorum', () => {
    const web = new Pool({ quorum: 3 }).with('a');
    expect([web.mode, web.serving]).toEqual(['serving', ['a']]);
  });

  test('hysteresis keeps the primaries until quorum − hysteresis and lets them back at quorum + hysteresis', () => {
    const web = new Pool({ quorum: 2, hysteresis: 1 }).with('a', 'b', 'c', 'backup1');
    expect(web.mode).toBe('serving');
    web.health('a', 'down').health('b', 'down');
    expect([web.mode, web.serving]).toEqual(['serving', ['c']]);
    web.health('c', 'down');
    expect(web.mode).toBe('onBackups');
    web.health('a', 'up').health('b', 'up');
    expect([web.mode, web.serving]).toEqual(['onBackups', ['backup1']]);
    web.health('c', 'up');
    expect([web.mode, web.serving]).toEqual(['serving', ['a', 'b', 'c']]);
  });

  test('a hysteresis as large as the quorum leaves at the last primary, not below it', () => {
    const web = new Pool({ quorum: 1, hysteresis: 1 }).with('a', 'b', 'backup1');
    web.health('a', 'down');
    expect(web.mode).toBe('serving');
    web.health('b', 'down');
    expect(web.mode).toBe('onBackups');
  });

  test('primaries that served below the quorum for want of backups give way when a backup comes', () => {
    const web = new Pool({ quorum: 3, hysteresis: 1 }).joins('a').joins('b').joins('c');
    web.health('a', 'up').health('b', 'up').health('c', 'down');
    expect([web.mode, web.serving]).toEqual(['serving', ['a', 'b']]);
    // The quorum was never reached, so there is nothing to hold on to.
    web.with('backup1');
    expect([web.mode, web.serving]).toEqual(['onBackups', ['backup1']]);
  });

  test('when every primary is usable they serve, however large the hysteresis', () => {
    const web = new Pool({ quorum: 2, hysteresis: 1 }).with('a', 'b', 'backup1');
    web.health('a', 'down').health('b', 'down');
    expect(web.mode).toBe('onBackups');
    web.health('a', 'up').health('b', 'up');
    expect([web.mode, web.serving]).toEqual(['serving', ['a', 'b']]);
  });
});

describe('publishing', () => {
  test('only what differs from before is published', () => {
    const web = new Pool().with('a', 'b', 'c');
    const published = publishedBy(web.machine.send({ type: 'server.weight', server: 'b', weight: 4 }));
    expect(published).toEqual({ pool: 'web', mode: 'serving', weights: { b: 400 } });
  });

  test('what changes no weight is not published', () => {
    const web = new Pool().with('a', 'b').health('b', 'down');
    const before = web.publications;
    web
      .admin('b', 'drain')
      .health('b', 'down')
      .admin('b', 'ready')
      .send({ type: 'server.weight', server: 'b', weight: 8 });
    expect(web.publications).toBe(before);
  });

  test('a server that joins again under its name keeps what is known of its health', () => {
    const web = new Pool().with('a').joins('a', { weight: 3 });
    expect(Object.fromEntries(web.weights)).toEqual({ a: 300 });
  });
});

describe('panic', () => {
  const four = (settings: Partial<PoolSettings> = {}) => new Pool({ panic: 50, ...settings }).with('a', 'b', 'c', 'd');

  test('when fewer than the share of the primaries are well, all of them take traffic', () => {
    const web = four().health('a', 'down').health('b', 'down');
    expect([web.mode, web.serving]).toEqual(['serving', ['c', 'd']]);
    web.health('c', 'down');
    expect([web.mode, web.machine.state, web.serving]).toEqual(['panic', 'panicking', ['a', 'b', 'c', 'd']]);
    web.health('b', 'up');
    expect([web.mode, web.machine.state, web.serving]).toEqual(['serving', 'serving', ['b', 'd']]);
  });

  test('it takes the place of an exhausted pool', () => {
    const web = four();
    for (const name of ['a', 'b', 'c', 'd']) web.health(name, 'down');
    expect([web.mode, web.serving]).toEqual(['panic', ['a', 'b', 'c', 'd']]);
  });

  test('without a threshold there is none', () => {
    const web = four({ panic: 0 });
    for (const name of ['a', 'b', 'c', 'd']) web.health(name, 'down');
    expect(web.mode).toBe('exhausted');
  });

  test('what an operator wants holds: drained, in maintenance or of weight 0 they take none, and don’t count', () => {
    const web = four().admin('a', 'drain').admin('b', 'maintenance');
    web.send({ type: 'server.weight', server: 'c', weight: 0 });
    expect([web.mode, web.serving]).toEqual(['serving', ['d']]);
    web.health('d', 'down');
    expect([web.mode, web.serving]).toEqual(['panic', ['d']]);
  });

  test('weights are whole: slow start says nothing where health isn’t believed', () => {
    const web = four().send({ type: 'server.share', server: 'a', share: 10 });
    for (const name of ['a', 'b', 'c']) web.health(name, 'down');
    expect(Object.fromEntries(web.weights)).toEqual({ a: 100, b: 100, c: 100, d: 100 });
  });

  test('backups that are well are better than primaries of which none is', () => {
    const web = new Pool({ panic: 50 }).with('a', 'b', 'backup1').health('a', 'down').health('b', 'down');
    expect([web.mode, web.serving]).toEqual(['onBackups', ['backup1']]);
    web.health('backup1', 'down');
    expect([web.mode, web.serving]).toEqual(['panic', ['a', 'b']]);
  });

  test('servers that were never checked are not known to be ill: a start is no panic', () => {
    const web = new Pool({ panic: 100 }).joins('a').joins('b', { initially: 'down' });
    expect(web.mode).toBe('serving');
  });

  test('outliers are ill too', () => {
    const web = four({ maxEjected: 100 });
    const why = { code: 'errorRate', errors: 30, of: 40 } as const;
    for (const server of ['a', 'b', 'c']) web.send({ type: 'outlier.suspected', server, why });
    expect([web.mode, web.serving]).toEqual(['panic', ['a', 'b', 'c', 'd']]);
  });
});

describe('clients that are bound to servers', () => {
  const draining = (web: Pool, event: PoolEvent): readonly string[] | undefined =>
    publishedBy(web.machine.send(event))?.draining;
  const bound = () => new Pool({ persistence: true }).with('a', 'b', 'c');

  test('the data plane hears of those that serve only such clients: drained, or of weight 0', () => {
    const web = bound();
    expect(draining(web, { type: 'server.admin', server: 'b', admin: 'drain' })).toEqual(['b']);
    expect(draining(web, { type: 'server.weight', server: 'a', weight: 0 })).toEqual(['a', 'b']);
    expect(draining(web, { type: 'server.admin', server: 'b', admin: 'ready' })).toEqual(['a']);
  });

  test.each([
    ['goes to maintenance', { type: 'server.admin', server: 'b', admin: 'maintenance' }],
    ['goes down', { type: 'server.health', server: 'b', health: 'down' }],
    ['leaves', { type: 'server.left', server: 'b' }],
    ['is wanted by nobody any more', { type: 'settings.changed', settings: SETTINGS }],
  ] as const)('one that %s serves nobody', (_what, event) => {
    const web = bound().admin('b', 'drain');
    expect(draining(web, event)).toEqual([]);
  });

  test('an outlier that is drained serves nobody until it is back', () => {
    const web = new Pool({ persistence: true, maxEjected: 50 }).with('a', 'b', 'c');
    web.send({ type: 'outlier.suspected', server: 'b', why: { code: 'errorRate', errors: 30, of: 40 } });
    expect(draining(web, { type: 'server.admin', server: 'b', admin: 'drain' })).toBeUndefined();
    expect(draining(web, { type: 'outlier.returned', server: 'b' })).toEqual(['b']);
  });

  test('it is told only when it has changed, also when no weight has', () => {
    const web = bound();
    web.admin('b', 'drain');
    expect(draining(web, { type: 'server.weight', server: 'a', weight: 3 })).toBeUndefined();
    expect(publishedBy(web.machine.send({ type: 'server.health', server: 'b', health: 'down' }))).toEqual({
      pool: 'web',
      mode: 'serving',
      weights: {},
      draining: [],
    });
  });

  test('where nobody is bound nothing is told, and nothing remembered', () => {
    const web = new Pool().with('a', 'b').admin('b', 'drain');
    expect(web.machine.context).not.toHaveProperty('draining');
  });
});

describe('trackers that watch it', () => {
  const TRACKER = 'tracker/pool/web';
  const watched = (atLeast = 1): PoolSettings => ({ ...SETTINGS, watchers: [{ tracker: TRACKER, atLeast }] });
  const seen = (ok: boolean, message: string) => ({
    type: 'observed',
    ok,
    value: null,
    code: '',
    message,
    durationMs: 0,
  });
  const health = (server: string, now: Member['health']): PoolEvent => ({
    type: 'server.health',
    server,
    health: now,
  });

  test('are told when the last usable server is lost, and when one is back', () => {
    const { machine } = new Pool(watched()).with('a');
    const lost = machine.send(health('a', 'down'));
    expect(toldTo(lost, TRACKER)).toEqual([seen(false, 'pool web has no usable server')]);
    expect(toldTo(machine.send(health('a', 'up')), TRACKER)).toEqual([
      seen(true, 'pool web has 1 of 1 servers usable'),
    ]);
  });

  test('are told at each change of the count, and not of what leaves it as it was', () => {
    const { machine } = new Pool(watched(2)).with('a', 'b', 'c');
    expect(toldTo(machine.send(health('a', 'down')), TRACKER)).toEqual([
      seen(true, 'pool web has 2 of 3 servers usable'),
    ]);
    expect(toldTo(machine.send({ type: 'server.admin', server: 'a', admin: 'drain' }), TRACKER)).toEqual([]);
    expect(toldTo(machine.send({ type: 'server.weight', server: 'b', weight: 9 }), TRACKER)).toEqual([]);
    expect(toldTo(machine.send(health('b', 'down')), TRACKER)).toEqual([
      seen(false, 'pool web has 1 of 3 servers usable'),
    ]);
  });

  test('are told when a server joins that is not usable: there are more of which none works', () => {
    const { machine } = new Pool(watched());
    const joined = machine.send({
      type: 'server.joined',
      server: 'a',
      weight: 1,
      backup: false,
      checked: true,
      initially: 'down',
    });
    expect(toldTo(joined, TRACKER)).toEqual([seen(false, 'pool web has no usable server')]);
  });

  test('that ask are answered, each alone; strangers are not', () => {
    const other = 'tracker/pool/other';
    const settings = { ...SETTINGS, watchers: [...watched().watchers!, { tracker: other, atLeast: 2 }] };
    const { machine } = new Pool(settings).with('a');
    const { context } = machine;
    const asked = machine.send({ type: 'pool.asked', tracker: other });
    expect(toldTo(asked, other)).toEqual([seen(false, 'pool web has 1 of 1 servers usable')]);
    expect(toldTo(asked, TRACKER)).toEqual([]);
    expect(asked).toHaveLength(1);
    expect(machine.send({ type: 'pool.asked', tracker: 'tracker/pool/stranger' })).toEqual([]);
    expect(machine.context).toEqual(context);
  });

  test('primaries and backups count, whether they take traffic or only would', () => {
    const { machine } = new Pool(watched(2)).with('a', 'backup1', 'backup2');
    expect(machine.context.weights).toEqual({ a: 100 });
    expect(toldTo(machine.send(health('a', 'down')), TRACKER)).toEqual([
      seen(true, 'pool web has 2 of 3 servers usable'),
    ]);
    expect(toldTo(machine.send(health('backup2', 'down')), TRACKER)).toEqual([
      seen(false, 'pool web has 1 of 3 servers usable'),
    ]);
    expect(toldTo(machine.send(health('backup1', 'down')), TRACKER)).toEqual([
      seen(false, 'pool web has no usable server'),
    ]);
  });

  test('primaries below the quorum count, though backups work in their place', () => {
    const { machine } = new Pool({ ...watched(2), quorum: 2 }).with('a', 'b', 'backup1');
    expect(toldTo(machine.send(health('b', 'down')), TRACKER)).toEqual([
      seen(true, 'pool web has 2 of 3 servers usable'),
    ]);
    expect(machine.context.weights).toEqual({ backup1: 100 });
  });

  test('servers that are not checked yet count while there is nobody else', () => {
    const web = new Pool(watched()).joins('new1').joins('new2').with('backup1');
    const { machine } = web;
    expect(toldTo(machine.send({ type: 'pool.asked', tracker: TRACKER }), TRACKER)).toEqual([
      seen(true, 'pool web has 1 of 3 servers usable'),
    ]);
    expect(toldTo(machine.send(health('backup1', 'down')), TRACKER)).toEqual([
      seen(true, 'pool web has 2 of 3 servers usable'),
    ]);
    machine.send(health('new1', 'down'));
    expect(toldTo(machine.send(health('new2', 'down')), TRACKER)).toEqual([
      seen(false, 'pool web has no usable server'),
    ]);
  });

  test('are told by a reload at once: they may be others, or want more of them', () => {
    const { machine } = new Pool().with('a');
    expect(toldTo(machine.send({ type: 'settings.changed', settings: watched(1) }), TRACKER)).toEqual([
      seen(true, 'pool web has 1 of 1 servers usable'),
    ]);
    expect(toldTo(machine.send({ type: 'settings.changed', settings: watched(2) }), TRACKER)).toEqual([
      seen(false, 'pool web has 1 of 1 servers usable'),
    ]);
    expect(toldTo(machine.send({ type: 'settings.changed', settings: SETTINGS }), TRACKER)).toEqual([]);
  });
});

/** The rules of a pool said once more, without its code's shortcuts. */
const usableBy = (member: Member): 'fully' | 'lastResort' | 'no' => {
  if (member.admin !== 'ready' || member.weight === 0) return 'no';
  if (member.health !== 'unchecked') return member.health === 'up' ? 'fully' : 'no';
  if (!member.checked || member.initially === 'up') return 'fully';
  return member.initially === 'unchecked' ? 'lastResort' : 'no';
};

const server = fc.constantFrom('a', 'b', 'c', 'd');
const standing = {
  server,
  weight: fc.integer({ min: 0, max: 3 }),
  backup: fc.boolean(),
  checked: fc.boolean(),
  initially: fc.constantFrom('up' as const, 'down' as const, 'unchecked' as const),
};
const settings = fc.record({
  allBackups: fc.boolean(),
  quorum: fc.integer({ min: 1, max: 3 }),
  hysteresis: fc.integer({ min: 0, max: 2 }),
});
const poolEvent: fc.Arbitrary<PoolEvent> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ type: fc.constant('server.joined' as const), ...standing }) },
  { weight: 1, arbitrary: fc.record({ type: fc.constant('server.settings' as const), ...standing }) },
  { weight: 1, arbitrary: fc.record({ type: fc.constant('server.left' as const), server }) },
  {
    weight: 6,
    arbitrary: fc.record({
      type: fc.constant('server.health' as const),
      server,
      health: fc.constantFrom('up' as const, 'down' as const, 'unchecked' as const),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      type: fc.constant('server.admin' as const),
      server,
      admin: fc.constantFrom('ready' as const, 'drain' as const, 'maintenance' as const),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      type: fc.constant('server.share' as const),
      server,
      share: fc.constantFrom(10, 50, 100),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      type: fc.constant('server.weight' as const),
      server,
      weight: fc.integer({ min: 0, max: 3 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ type: fc.constant('settings.changed' as const), settings }) },
);

const afterEach = (events: PoolEvent[], initial: PoolSettings, check: (web: Pool) => void): void => {
  const web = new Pool(initial);
  for (const event of events) {
    web.send(event);
    check(web);
  }
};

const events = fc.array(poolEvent, { maxLength: 60 });

describe('whatever happens', () => {
  test('what was published altogether is what the pool would publish now, and the state is the published mode', () => {
    fc.assert(
      fc.property(events, settings, (happened, initial) =>
        afterEach(happened, initial, (web) => {
          expect(Object.fromEntries(web.weights)).toEqual(web.machine.context.weights);
          expect(web.machine.state).toBe(web.mode);
          expect(web.machine.context.mode).toBe(web.mode);
        }),
      ),
    );
  });

  test('every weight is the server’s own weight times its share', () => {
    fc.assert(
      fc.property(events, settings, (happened, initial) =>
        afterEach(happened, initial, (web) => {
          const { members } = web.machine.context;
          for (const [name, weight] of web.weights) {
            expect(weight).toBe(members[name]!.weight * members[name]!.share);
            expect(weight).toBeGreaterThan(0);
          }
        }),
      ),
    );
  });

  test('no server that is down, in drain, in maintenance, of weight 0 or gone ever has weight', () => {
    fc.assert(
      fc.property(events, settings, (happened, initial) =>
        afterEach(happened, initial, (web) => {
          const { members } = web.machine.context;
          const working = [...web.weights.keys()];
          expect(working.filter((name) => !(name in members) || usableBy(members[name]!) === 'no')).toEqual([]);
        }),
      ),
    );
  });

  test('it is exhausted exactly when no server may work, and the unproven work only when nobody else may', () => {
    fc.assert(
      fc.property(events, settings, (happened, initial) =>
        afterEach(happened, initial, (web) => {
          const members = Object.values(web.machine.context.members);
          const somebody = members.some((member) => usableBy(member) !== 'no');
          const proven = members.some((member) => usableBy(member) === 'fully');
          expect(web.mode === 'exhausted').toBe(!somebody);
          expect(web.weights.size > 0).toBe(somebody);
          const unproven = [...web.weights.keys()].filter(
            (name) => usableBy(web.machine.context.members[name]!) === 'lastResort',
          );
          expect(proven && unproven.length > 0).toBe(false);
        }),
      ),
    );
  });

  test('primaries and backups never work side by side, and a backup works only below quorum + hysteresis', () => {
    fc.assert(
      fc.property(events, settings, (happened, initial) =>
        afterEach(happened, initial, (web) => {
          const { members, settings: now } = web.machine.context;
          const working = [...web.weights.keys()].map((name) => members[name]!);
          const onBackups = working.some(({ backup }) => backup);
          expect(working.every(({ backup }) => backup === onBackups)).toBe(true);
          expect(web.mode === 'onBackups').toBe(onBackups);
          const primaries = Object.values(members).filter((member) => !member.backup && usableBy(member) === 'fully');
          const enough = primaries.length >= now.quorum + now.hysteresis;
          expect(onBackups && enough).toBe(false);
          expect(onBackups && !now.allBackups && working.length !== 1).toBe(false);
        }),
      ),
    );
  });

  test('whenever enough primaries are usable, all of them work', () => {
    fc.assert(
      fc.property(events, settings, (happened, initial) =>
        afterEach(happened, initial, (web) => {
          const { members, settings: now } = web.machine.context;
          const primaries = Object.entries(members)
            .filter(([, member]) => !member.backup && usableBy(member) === 'fully')
            .map(([name]) => name);
          const enough = primaries.length >= now.quorum + now.hysteresis;
          const expected = enough ? primaries.sort() : web.serving;
          expect(web.serving).toEqual(expected);
        }),
      ),
    );
  });
});

describe('scenarios', () => {
  const member = (name: string, backup = false): Step[] => [
    start(`server/web/${name}`, 'backendServer', {
      pool: 'web',
      name,
      settings: {
        rise: 1,
        fall: 1,
        checked: true,
        initially: 'down',
        weight: 1,
        backup,
        slowStartMs: 0,
        shutdownSessions: false,
      },
    }),
    start(`checker/web/${name}`, 'healthChecker', {
      pool: 'web',
      server: name,
      settings: { intervalMs: 1000, fastIntervalMs: 1000, downIntervalMs: 1000, timeoutMs: 500, jitter: 0 },
      startDelayMs: 0,
      phase: 0.5,
    }),
  ];
  const ofPoolAlone = new Set(['publish']);
  const decisions = () =>
    new Scenario({
      shows: ({ actor, effects }) => actor === 'pool/web' && effects.some(({ type }) => ofPoolAlone.has(type)),
    });

  test('primaries fail one after the other, backups step in, primaries return', async () => {
    const scenario = decisions().play(
      start('pool/web', 'pool', { name: 'web', settings: SETTINGS }),
      ...['a', 'b'].flatMap((name) => member(name)),
      ...['spare1', 'spare2'].flatMap((name) => member(name, true)),
      wait(500),
      say('a fails'),
      broken('checker/web/a'),
      wait(1000),
      say('b fails: the first spare works alone'),
      broken('checker/web/b'),
      wait(1000),
      say('the first spare goes to maintenance: the second one takes its place'),
      send('server/web/spare1', 'operator.maintenance'),
      wait(1000),
      say('the second one is drained: nobody is left'),
      send('server/web/spare2', 'operator.drain'),
      wait(1000),
      say('b returns'),
      healthy('checker/web/b'),
      wait(1000),
    );
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/pool-on-backups.txt');
    expect(scenario.published('web')).toEqual({ b: 100 });
  });

  test('a quorum of two with a hysteresis of one', async () => {
    const names = ['a', 'b', 'c'];
    const scenario = decisions().play(
      start('pool/web', 'pool', { name: 'web', settings: { allBackups: true, quorum: 2, hysteresis: 1 } }),
      ...names.flatMap((name) => member(name)),
      ...member('spare', true),
      wait(500),
      say('a and b fail: one primary is left, quorum less hysteresis'),
      broken('checker/web/a'),
      broken('checker/web/b'),
      wait(1000),
      say('c fails too'),
      broken('checker/web/c'),
      wait(1000),
      say('a and b return: two are the quorum, but not quorum and hysteresis'),
      healthy('checker/web/a'),
      healthy('checker/web/b'),
      wait(1000),
      say('c returns'),
      healthy('checker/web/c'),
      wait(1000),
    );
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/pool-quorum.txt');
    expect(scenario.published('web')).toEqual({ a: 100, b: 100, c: 100 });
  });
});
