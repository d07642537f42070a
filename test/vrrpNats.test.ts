/**
 * Routers that advertise over NATS: what the loss of the bus makes of them, what is refused in the configuration, the
 * wire against a real nats-server, and nodes that elect a master over it.
 */
import { once } from 'node:events';
import { setTimeout as wait } from 'node:timers/promises';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { Effect } from '../actors/decide.ts';
import { vrrpRouter } from '../machines/vrrpRouter.ts';
import type { RouterContext, RouterEvent, RouterSettings } from '../machines/vrrpRouter.ts';
import { NatsBus } from '../src/bus/natsBus.ts';
import { subjectsOf } from '../src/bus/subjects.ts';
import { bus as busSchema } from '../src/config/bus.ts';
import type { NatsConfig } from '../src/config/bus.ts';
import { formatProblem, loadConfig } from '../src/config/load.ts';
import { NatsWire } from '../src/vrrp/natsWire.ts';
import type { NatsSocket } from '../src/vrrp/natsWire.ts';
import { startMember, startNats } from './memberHelpers.ts';
import type { Member } from './memberHelpers.ts';
import { natsClient } from './natsHelpers.ts';
import type { NatsServer } from './natsHelpers.ts';
import { understudy, within } from './nodeHelpers.ts';
import { has } from './packages.ts';
import { delayOf, Stepper, toldTo } from './stepper.ts';

const SETTINGS: RouterSettings = {
  version: 3,
  vrid: 51,
  priority: 100,
  advertMs: 1000,
  preempt: true,
  preemptDelayMs: 0,
  startDelayMs: 0,
  addresses: ['address/gw/vip'],
  track: [],
  group: null,
  onBusLoss: 'keep',
};
const UP: RouterEvent = { type: 'interface.up', address: '10.9.0.2', key: '0a090002' };
const JOINED: RouterEvent = { type: 'bus.joined' };
const LOST: RouterEvent = { type: 'bus.lost', code: 'NATS_UNREACHABLE', message: 'the connection is lost' };
const SETTLED: RouterEvent = { type: 'bus.settled' };
const EXPIRED: RouterEvent = { type: 'masterDown.expired' };
const LOOKED: RouterEvent = { type: 'looked', lateMs: 0, silentMs: null };
const advert = (priority: number): RouterEvent => ({
  type: 'advert.received',
  priority,
  advertMs: 1000,
  source: '10.9.0.9',
  key: '0a090009',
  differences: [],
});

type Router = Stepper<RouterEvent, RouterContext>;

const fresh = (settings: Partial<RouterSettings> = {}): Router =>
  new Stepper(vrrpRouter, { name: 'gw', settings: { ...SETTINGS, ...settings } });
const inBackup = (settings: Partial<RouterSettings> = {}): Router => {
  const router = fresh(settings);
  router.sendAll(UP, JOINED);
  if (settings.group) router.send({ type: 'group.cleared' });
  expect(router.state).toBe('backup.listening');
  return router;
};
const inMaster = (settings: Partial<RouterSettings> = {}): Router => {
  const router = inBackup(settings);
  router.sendAll(EXPIRED, LOOKED);
  if (settings.group) router.send({ type: 'group.master', router: 'router/gw' });
  expect(router.state).toBe('master');
  return router;
};
const sent = (effects: Effect[]): number[] =>
  effects.filter(({ type }) => type === 'sendAdvert').map(({ params }) => (params as { priority: number }).priority);

describe('a router whose bus is away', () => {
  test('it takes no part before the bus is joined', () => {
    const router = fresh();
    router.send(UP);
    expect(router.state).toBe('initialize.waiting');
    router.send(JOINED);
    expect(router.state).toBe('backup.listening');
  });

  test('without a bus from the start it is in FAULT, the owner of the addresses too', () => {
    const router = fresh({ priority: 255 });
    router.sendAll(UP, LOST);
    expect(router.state).toBe('fault');
    expect(router.context.reason).toMatchObject({ code: 'fault', detail: 'the connection is lost' });
  });

  test('a backup is in FAULT at once: that it hears nobody is no evidence', () => {
    const router = inBackup();
    const effects = router.send(LOST);
    expect(router.state).toBe('fault');
    expect(effects).toContainEqual({ type: 'cancel', params: { id: 'masterDown' } });
  });

  test('one that is just looking for a master is too, and the answer of its look comes too late', () => {
    const router = inBackup();
    router.sendAll(EXPIRED, LOST, LOOKED);
    expect(router.state).toBe('fault');
  });

  test('back again, it waits until a master must be joined too, then a whole master-down time', () => {
    const router = inBackup();
    router.send(LOST);
    expect(delayOf(router.send(JOINED), 'busSettle')).toBe(3_000);
    expect(router.state).toBe('fault');
    const effects = router.send(SETTLED);
    expect(router.state).toBe('backup.listening');
    expect(delayOf(effects, 'masterDown')).toBe(3_609.375);
  });

  test('a bus that is lost again meanwhile ends that wait', () => {
    const router = inBackup();
    router.sendAll(LOST, JOINED);
    expect(router.send(LOST)).toContainEqual({ type: 'cancel', params: { id: 'busSettle' } });
    expect(router.state).toBe('fault');
  });

  test('keep: a master keeps its addresses, and says at once that it is there when the bus is back', () => {
    const router = inMaster();
    const effects = router.send(LOST);
    expect([...sent(effects), ...toldTo(effects, 'address/gw/vip')]).toEqual([]);
    expect(router.state).toBe('master');
    expect(router.context.faults).toEqual({ bus: 'the connection is lost' });
    expect(sent(router.send(JOINED))).toEqual([100]);
    expect(router.context.faults).toEqual({});
    router.send(advert(200));
    expect(router.state).toBe('backup.listening');
  });

  test('keep: cut off, it gives way to nothing but what else it would give way for', () => {
    const router = inMaster();
    router.sendAll(LOST, { type: 'interface.down', code: 'DOWN', message: 'eth0 is down' });
    expect(router.state).toBe('fault');
    const demoted = inMaster();
    demoted.sendAll(LOST, { type: 'operator.demote' });
    expect(demoted.state).toBe('fault');
  });

  test('release: a master gives its addresses up, and is in FAULT', () => {
    const router = inMaster({ onBusLoss: 'release' });
    const effects = router.send(LOST);
    expect(router.state).toBe('fault');
    expect(toldTo(effects, 'address/gw/vip')).toEqual([{ type: 'address.release' }]);
  });

  test('release, told to a master that is cut off by a reload, counts at once', () => {
    const router = inMaster();
    router.sendAll(LOST, { type: 'settings.changed', settings: { ...SETTINGS, onBusLoss: 'release' } });
    expect(router.state).toBe('fault');
  });

  test('the sync group of a master that keeps hears nothing; of one that gave way for another cause it does', () => {
    const group = 'group/edge';
    const router = inMaster({ group });
    expect(toldTo(router.send(LOST), group)).toEqual([]);
    const effects = router.send({ type: 'group.backup', router: 'router/other' });
    expect(toldTo(effects, group)).toContainEqual({ type: 'member.faults', router: 'router/gw', faulty: true });
    const backup = inBackup({ group });
    expect(toldTo(backup.send(LOST), group)).toContainEqual({
      type: 'member.faults',
      router: 'router/gw',
      faulty: true,
    });
  });

  test('a router of another transport has nothing of all this', () => {
    const { onBusLoss: _keep, ...settings } = SETTINGS;
    const router: Router = new Stepper(vrrpRouter, { name: 'gw', settings });
    router.send(UP);
    expect(router.state).toBe('backup.listening');
  });
});

describe('the configuration', () => {
  const NATS = { nats: { servers: ['nats://10.0.0.11:4222'] } };
  const ROUTER = { vrid: 51, transport: 'nats', source: '127.0.0.2', addresses: ['127.0.0.100'] };
  const load = (change: Record<string, unknown>, bus: unknown = NATS) =>
    loadConfig(
      JSON.stringify({
        node: 'lb1',
        bus,
        backends: { web: { servers: [{ name: 'a', address: '10.0.0.1:80' }] } },
        routers: { gw: { ...ROUTER, ...change } },
      }),
      {},
      '/',
    );
  const problemsOf = (change: Record<string, unknown>, bus?: unknown): string[] => {
    const loaded = load(change, bus);
    if (!('problems' in loaded)) return [];
    return loaded.problems.map((problem) => formatProblem('f', problem).replace(/^f:\d+:\d+ routers\.gw\.?/, ''));
  };

  test('a name, an address and NATS are enough; hmac and sealed protect it where others share the account', () => {
    expect(problemsOf({})).toEqual([]);
    expect(problemsOf({ onBusLoss: 'release', authentication: { type: 'sealed', secret: 'x'.repeat(16) } })).toEqual(
      [],
    );
    const keys = [{ id: 1, secret: 'y'.repeat(32) }];
    expect(problemsOf({ authentication: { type: 'hmac', keys } })).toEqual([]);
    expect(
      problemsOf({ source: undefined, interface: 'eth0', addresses: ['10.9.0.100/24'], virtualMac: true }),
    ).toEqual([]);
  });

  test.each<[string, Record<string, unknown>, string]>([
    ['peers', { peers: ['127.0.0.3'] }, 'peers: over NATS every node of the cluster'],
    ['a port', { port: 1112 }, 'port: a port is of udp'],
    ['a TTL', { minTtl: 255 }, 'minTtl: over NATS there is no TTL'],
    ['a form of checksum', { checksum: 'rfc9568' }, 'checksum: over NATS there is only one form'],
    [
      'a password in clear',
      { version: 2, advertise: '1s', authentication: { type: 'pass', secret: 'a' } },
      'authentication.type: pass protects nothing over NATS',
    ],
    ['an interval that NATS can’t keep', { advertise: '50ms' }, 'advertise: too short; over NATS it is at least 100ms'],
    ['no address to send from', { source: undefined }, 'missing source; nats without an interface needs it'],
    ['an address that nobody can hold', { addresses: ['10.9.0.100'] }, 'addresses[0]: without an interface only'],
  ])('%s is refused', (_, change, message) => {
    expect(problemsOf(change).join()).toContain(message);
  });

  test('it needs the bus; and onBusLoss is of no other transport', () => {
    expect(problemsOf({}, 'memory').join()).toContain('transport: nats needs `bus: { nats: { servers: […] } }`');
    expect(problemsOf({ transport: 'udp', peers: ['127.0.0.3'], onBusLoss: 'keep' }).join()).toContain(
      'onBusLoss: it says something for `transport: nats` only',
    );
  });
});

/** A node's wire alone, on a bus of its own. */
class Ear {
  readonly events: RouterEvent['type'][] = [];
  readonly heard: [string, string, string][] = [];
  readonly bus: NatsBus;
  readonly socket: NatsSocket;
  #waiting = new Set<() => void>();

  constructor(node: string, url: string, advertMs = 1000) {
    const { nats } = busSchema.parse({ nats: { servers: [url] } }) as { nats: NatsConfig };
    this.bus = new NatsBus({ cluster: 'shop', node, journalPath: '/nowhere', nats });
    const wire = new NatsWire({ bus: this.bus, subjects: subjectsOf('shop'), node });
    this.socket = wire.open({
      name: 'gw',
      source: `127.0.0.${node.slice(2)}`,
      advertMs,
      hear: (from, source, packet) => {
        this.heard.push([from, source, packet.toString()]);
        this.#wake();
      },
      report: ({ type }) => {
        this.events.push(type);
        this.#wake();
      },
    });
    onTestFinished(async () => {
      this.socket.close();
      wire.end();
      await this.bus.close();
    });
  }

  async until(what: string, condition: () => boolean): Promise<void> {
    await within(
      what,
      new Promise<void>((done) => {
        const look = () => {
          if (!condition()) return;
          this.#waiting.delete(look);
          done();
        };
        this.#waiting.add(look);
        look();
      }),
    );
  }

  joins(): Promise<void> {
    return this.until('it joins', () => this.events.at(-1) === 'bus.joined');
  }

  loses(): Promise<void> {
    return this.until('it loses NATS', () => this.events.at(-1) === 'bus.lost');
  }

  #wake(): void {
    for (const wake of [...this.#waiting]) wake();
  }
}

describe.skipIf(!has('nats-server'))('the wire', () => {
  test('others hear what one sends, with its name and address, and rubbish is counted only', async () => {
    const { url } = await startNats();
    const [one, two] = [new Ear('lb1', url), new Ear('lb2', url)];
    await Promise.all([one.joins(), two.joins()]);
    const client = await natsClient(url);
    client.publish(subjectsOf('shop').vrrp('gw'), 'rubbish');
    client.publish(subjectsOf('shop').vrrp('gw'), JSON.stringify({ node: 'x', source: 'nowhere', packet: 'aaaa' }));
    await client.close();
    expect(one.socket.send(Buffer.from('advert'))).toBeNull();
    await two.until('it is heard', () => two.heard.length > 0);
    expect(two.heard).toEqual([['lb1', '127.0.0.1', 'advert']]);
    expect(one.heard).toEqual([]);
  });

  test('a look is answered behind all that was on its way', async () => {
    const { url } = await startNats();
    const [one, two] = [new Ear('lb1', url), new Ear('lb2', url)];
    await Promise.all([one.joins(), two.joins()]);
    for (let count = 0; count < 100; count++) one.socket.send(Buffer.from(String(count)));
    await one.bus.flush(5_000);
    await within('the look', new Promise<void>((done) => two.socket.look(done)));
    expect(two.heard).toHaveLength(100);
  });

  test('a server that stands still answers no look: it is lost, and joined again when it goes on', async () => {
    const nats = await startNats();
    const ear = new Ear('lb1', nats.url);
    await ear.joins();
    await nats.freeze();
    let answered = false;
    ear.socket.look(() => (answered = true));
    await ear.loses();
    expect(answered).toBe(false);
    nats.signal('SIGCONT');
    await ear.joins();
  });

  test('a master learns with its adverts that nobody hears it, before its peers have waited', async () => {
    const nats = await startNats();
    const ear = new Ear('lb1', nats.url, 1000);
    await ear.joins();
    await nats.freeze();
    const startedMs = performance.now();
    ear.socket.send(Buffer.from('advert'));
    await ear.loses();
    expect(performance.now() - startedMs).toBeLessThan(2_000);
    nats.signal('SIGCONT');
  });

  test('a server that ends is lost at once, and what is sent then says why it can not be', async () => {
    const nats = await startNats();
    const ear = new Ear('lb1', nats.url);
    await ear.joins();
    await nats.stop();
    await ear.loses();
    expect(ear.socket.send(Buffer.from('advert'))).toBe('NATS_UNREACHABLE');
    await nats.again();
    await ear.joins();
    expect(ear.events).toEqual(['bus.lost', 'bus.joined', 'bus.lost', 'bus.joined']);
  });
});

const routerOf = (index: number, priority: number, more: Record<string, unknown> = {}) => ({
  routers: {
    gw: {
      vrid: 51,
      transport: 'nats',
      source: `127.0.0.${10 + index}`,
      priority,
      advertise: '500ms',
      addresses: ['127.0.0.100'],
      ...more,
    },
  },
});

const phase = async ({ node }: Member): Promise<string> => (await node.state()).routers[0]!.state;

const becomes = (member: Member, state: string) =>
  member.node.until(`${member.name} is ${state}`, ({ routers }) => routers[0]?.state === state);

/** Every look at all nodes together, until it is stopped. */
const watchMasters = (members: Member[]) => {
  const seen: string[][] = [];
  const stop = new AbortController();
  const watching = (async () => {
    while (!stop.signal.aborted) {
      const phases = await Promise.all(members.map((member) => phase(member).catch(() => 'unknown')));
      seen.push(phases);
      await wait(50);
    }
  })();
  return async (): Promise<string[][]> => {
    stop.abort();
    await watching;
    return seen;
  };
};

const recorded = async (member: Member): Promise<number | null> =>
  (await understudy(['verify', `${member.folder}/${member.name}.db`])).status;

const elected = async (nats: NatsServer, more?: Record<string, unknown>): Promise<Member[]> => {
  const first = await startMember('lb1', { servers: [nats.url], more: routerOf(1, 200, more) });
  await becomes(first, 'master');
  const second = await startMember('lb2', { servers: [nats.url], more: routerOf(2, 100, more) });
  await second.node.until('it hears the master', ({ routers }) => routers[0]?.master?.address === '127.0.0.11');
  expect(await phase(second)).toBe('backup');
  return [first, second];
};

describe.skipIf(!has('nats-server'))('nodes that elect over NATS', () => {
  test('the backup takes over after a kill -9, and the higher one takes back what is its', async () => {
    const nats = await startNats();
    const [first, second] = (await elected(nats)) as [Member, Member];
    const exited = once(first.node.child, 'exit');
    first.node.child.kill('SIGKILL');
    await exited;
    const killedMs = performance.now();
    await becomes(second, 'master');
    // Three intervals and the skew time of priority 100, and what a busy machine adds.
    expect(performance.now() - killedMs).toBeGreaterThan(1_000);
    const again = await startMember('lb1', { servers: [nats.url], folder: first.folder, more: routerOf(1, 200) });
    await becomes(again, 'master');
    await becomes(second, 'backup');
    await again.node.end();
    await becomes(second, 'master');
    const [takeover] = (await second.node.state()).routers;
    expect(takeover!.reason.code).toBe('priorityZero');
    await second.node.end();
    expect([await recorded(again), await recorded(second)]).toEqual([0, 0]);
  });

  test('a restart of NATS makes neither two masters nor none', async () => {
    const nats = await startNats();
    const [first, second] = (await elected(nats)) as [Member, Member];
    const stop = watchMasters([first, second]);
    await nats.stop();
    await becomes(second, 'fault');
    const state = await first.node.state();
    expect(state.routers[0]!.state).toBe('master');
    expect(state.node.problems.join()).toContain('router gw is cut off from its peers and keeps its addresses');
    await nats.again();
    await becomes(second, 'backup');
    await second.node.until('it hears the master', ({ routers }) => routers[0]?.master?.address === '127.0.0.11');
    const seen = await stop();
    expect(seen.filter(([one, two]) => one === 'master' && two === 'master')).toEqual([]);
    expect(seen.filter(([one]) => one !== 'master')).toEqual([]);
    await Promise.all([first.node.end(), second.node.end()]);
    expect([await recorded(first), await recorded(second)]).toEqual([0, 0]);
  });

  test('release: a master that is cut off gives its address up', async () => {
    const nats = await startNats();
    const [first, second] = (await elected(nats, { onBusLoss: 'release' })) as [Member, Member];
    await nats.stop();
    await Promise.all([becomes(first, 'fault'), becomes(second, 'fault')]);
    await nats.again();
    const state = await becomes(first, 'master');
    expect(state.routers[0]!.faults).toEqual([]);
  });

  test('two nodes that send from one address are told of by both', async () => {
    const nats = await startNats();
    const first = await startMember('lb1', { servers: [nats.url], more: routerOf(1, 200) });
    await becomes(first, 'master');
    const second = await startMember('lb2', { servers: [nats.url], more: routerOf(1, 100) });
    const tells = async (member: Member, other: string) => {
      const text = `node ${other} advertises from this node's own address 127.0.0.11`;
      const { node } = await member.node.until('it tells', (state) => state.node.problems.join().includes(text));
      return node.status;
    };
    expect([await tells(first, 'lb2'), await tells(second, 'lb1')]).toEqual(['degraded', 'degraded']);
  });
});
