import { describe, expect, test } from 'vitest';
import { balance as balanceSchema, sticky as stickySchema } from '../src/config/balance.ts';
import type { Sticky } from '../src/config/balance.ts';
import type { TimerMaker } from '../src/net/timers.ts';
import { Backend } from '../src/proxy/backend.ts';
import type { Place, Refusal, Server } from '../src/proxy/backend.ts';
import { allocate, Counters, figuresOf, GAUGE, giveBackFor, memoryOfWorker } from '../src/proxy/counters.ts';
import { requestFacts as request } from './requestFacts.ts';
import type { BackendModel, ServerModel } from '../src/proxy/model.ts';
import { allocateStickTable } from '../src/proxy/stickTable.ts';

/** Time that passes when a test says so. */
class FakeTimers implements TimerMaker {
  #nowMs = 0;
  #set = new Map<object, { dueMs: number; callback: () => void }>();

  make(callback: () => void) {
    const timer = {
      set: (ms: number) => void this.#set.set(timer, { dueMs: this.#nowMs + ms, callback }),
      clear: () => void this.#set.delete(timer),
    };
    return timer;
  }

  pass(ms: number): void {
    const until = this.#nowMs + ms;
    for (;;) {
      const [next] = [...this.#set].sort(([, a], [, b]) => a.dueMs - b.dueMs);
      if (!next || next[1].dueMs > until) break;
      this.#nowMs = next[1].dueMs;
      this.#set.delete(next[0]);
      next[1].callback();
    }
    this.#nowMs = until;
  }

  get pending(): number {
    return this.#set.size;
  }
}

const POOL_SLOT = 100;
const NOBODY: ReadonlySet<Server> = new Set();

const serverModel = (name: string, slot: number, options: Partial<ServerModel> = {}): ServerModel => ({
  name,
  address: { host: '127.0.0.1', port: 8000 + slot },
  slot,
  maxConnections: 0,
  maxQueue: 0,
  defaultHost: '',
  tls: null,
  sendProxy: null,
  ...options,
});

/** Servers `a`, `b`, … in order. */
const modelOf = (servers: Partial<ServerModel>[], options: Partial<BackendModel> = {}): BackendModel => ({
  name: 'web',
  slot: POOL_SLOT,
  balance: { type: 'roundRobin' },
  sticky: null,
  stickTable: null,
  observe: null,
  retries: 3,
  maxQueue: 100,
  timeouts: { connect: 5_000, server: 50_000, queue: 5_000, tunnel: 3_600_000 },
  errorPages: [],
  servers: servers.map((each, index) => serverModel(String.fromCharCode(97 + index), index, each)),
  ...options,
});

/** `workers` that share memory, each with its backend; a message between them is delivered at once. */
const start = (model: BackendModel, workers = 1) => {
  const memory = allocate();
  const timers = new FakeTimers();
  const told: number[] = [];
  const backends: Backend[] = Array.from({ length: workers }, (_, index) => {
    const counters = new Counters(memoryOfWorker(memory, index));
    const tellOthers = () => {
      told.push(index);
      for (const other of backends) if (other !== backends[index]) other.wakeWaiters();
    };
    return new Backend(model, { counters, timers, index: 0, random: () => 0, tellOthers });
  });
  const all = Object.fromEntries(model.servers.map(({ name }) => [name, 100]));
  for (const backend of backends) backend.setWeights(all);
  return { memory, timers, told, backends, backend: backends[0]! };
};

const of = (server: string) => request({ cookie: (name) => (name === 'SRV' ? server : null) });

type Asked = { place: Place | null; refusal: Refusal | null; leave: (() => void) | null };

const ask = (backend: Backend, facts = request(), excluded = NOBODY, onPlace = (_place: Place) => {}): Asked => {
  const asked: Asked = { place: null, refusal: null, leave: null };
  asked.leave = backend.acquire(
    facts,
    excluded,
    (place) => {
      expect(asked.place ?? asked.refusal).toBeNull();
      asked.place = place;
      onPlace(place);
    },
    (refusal) => {
      expect(asked.place ?? asked.refusal).toBeNull();
      asked.refusal = refusal;
    },
  );
  return asked;
};
const nameOf = (asked: Asked): string => asked.place?.server.name ?? asked.refusal ?? 'waits';
const ask3 = (backend: Backend) => [ask(backend), ask(backend), ask(backend)];

const sticky = stickySchema.parse({ cookie: { name: 'SRV' } }) as Sticky;

describe('places', () => {
  test('go to servers in turn, are counted for server and pool, and given back once', () => {
    const { backend, memory } = start(modelOf([{}, {}]));
    const [first, second, third] = ask3(backend);
    expect([first, second, third].map((each) => nameOf(each!))).toEqual(['a', 'b', 'a']);
    expect(figuresOf(memory, 0)).toMatchObject({ active: 2, sessions: 2 });
    expect(figuresOf(memory, POOL_SLOT)).toMatchObject({ active: 3, sessions: 3 });
    first!.place!.release();
    first!.place!.release();
    expect(figuresOf(memory, 0).active).toBe(1);
    expect(figuresOf(memory, POOL_SLOT).active).toBe(2);
  });

  test('without a server that takes traffic there is none', () => {
    const { backend } = start(modelOf([{}]));
    backend.setWeights({ a: 0 });
    expect(nameOf(ask(backend))).toBe('exhausted');
    expect(backend.usable).toBe(0);
  });

  test('weights that change are followed, fractions too', () => {
    const { backend } = start(modelOf([{}, {}]));
    backend.setWeights({ a: 0.5, b: 1.5 });
    const names = Array.from({ length: 40 }, () => nameOf(ask(backend)));
    expect(names.filter((name) => name === 'b').length).toBe(30);
  });

  test('a request that a server has failed goes to another', () => {
    const { backend } = start(modelOf([{}, {}]));
    const excluded = new Set([backend.servers.get('a')!]);
    expect(nameOf(ask(backend, request(), excluded))).toBe('b');
    expect(nameOf(ask(backend, request(), excluded))).toBe('b');
  });

  test('when all have failed it, they are tried again after a second, or the connect timeout if that is shorter', () => {
    const { backend, timers } = start(modelOf([{}, {}]));
    const asked = ask(backend, request(), new Set(backend.servers.values()));
    timers.pass(999);
    expect(nameOf(asked)).toBe('waits');
    timers.pass(1);
    expect(nameOf(asked)).toBe('a');
    backend.configure({ ...backend.model, timeouts: { ...backend.model.timeouts, connect: 100 } });
    const sooner = ask(backend, request(), new Set(backend.servers.values()));
    timers.pass(100);
    expect(nameOf(sooner)).toBe('b');
  });

  test('who leaves meanwhile isn’t called', () => {
    const { backend, timers } = start(modelOf([{}]));
    const asked = ask(backend, request(), new Set(backend.servers.values()));
    asked.leave!();
    timers.pass(5_000);
    expect(nameOf(asked)).toBe('waits');
    expect(timers.pending).toBe(0);
  });

  test('a server keeps its sessions and turns over a reload, and is a new one at another address', () => {
    const { backend } = start(modelOf([{}, {}]));
    const before = backend.servers.get('a')!;
    backend.configure(modelOf([{}, {}]));
    expect(backend.servers.get('a')).toBe(before);
    backend.configure(modelOf([{ address: { host: '127.0.0.1', port: 9 } }, {}]));
    const after = backend.servers.get('a')!;
    expect(after).not.toBe(before);
    expect([before.isUsable, after.isUsable]).toEqual([false, true]);
  });

  test('another way of balancing takes effect with a reload', () => {
    const { backend } = start(modelOf([{}, {}]));
    backend.configure({ ...backend.model, balance: { type: 'first' } });
    expect(ask3(backend).map(nameOf)).toEqual(['a', 'a', 'a']);
  });

  test('a bounded load counts what all workers send', () => {
    const { backends } = start(
      modelOf([{}, {}, {}, {}], { balance: balanceSchema.parse({ type: 'source', boundedLoad: 1.25 }) }),
      2,
    );
    const names = Array.from({ length: 40 }, (_, index) => nameOf(ask(backends[index % 2]!)));
    for (const name of ['a', 'b', 'c', 'd']) {
      expect(names.filter((each) => each === name).length).toBeLessThanOrEqual(13);
    }
  });
});

describe('a limit', () => {
  test('holds over all workers; more wait, first come first served', () => {
    const { backends, memory } = start(modelOf([{ maxConnections: 2 }]), 2);
    const [one, two] = [ask(backends[0]!), ask(backends[1]!)];
    const [third, fourth] = [ask(backends[0]!), ask(backends[0]!)];
    expect([one, two, third, fourth].map(nameOf)).toEqual(['a', 'a', 'waits', 'waits']);
    expect(figuresOf(memory, POOL_SLOT)).toMatchObject({ active: 2, queued: 2 });
    one.place!.release();
    expect([third, fourth].map(nameOf)).toEqual(['a', 'waits']);
    third.place!.release();
    expect(nameOf(fourth)).toBe('a');
    expect(figuresOf(memory, POOL_SLOT)).toMatchObject({ active: 2, queued: 0 });
  });

  test('a place freed in one worker goes to who waits in another', () => {
    const { backends, told } = start(modelOf([{ maxConnections: 1 }]), 2);
    const held = ask(backends[0]!);
    const waiting = ask(backends[1]!);
    held.place!.release();
    expect(nameOf(waiting)).toBe('a');
    expect(told).toEqual([0]);
  });

  test('nobody is told of a free place that nobody waits for', () => {
    const { backends, told } = start(modelOf([{ maxConnections: 1 }]), 2);
    ask(backends[0]!).place!.release();
    expect(told).toEqual([]);
  });

  test('a message that was lost is made up for within moments', () => {
    const { backend, memory, timers } = start(modelOf([{ maxConnections: 1 }]));
    const elsewhere = new Counters(memoryOfWorker(memory, 7));
    elsewhere.take(0, 1);
    const waiting = ask(backend);
    elsewhere.change(0, GAUGE.active, -1);
    timers.pass(20);
    expect(nameOf(waiting)).toBe('a');
    waiting.place!.release();
    expect(timers.pending).toBe(0);
  });

  test('who comes later doesn’t overtake who waits, in this worker or another', () => {
    const { backends, memory } = start(modelOf([{ maxConnections: 1 }]), 2);
    const elsewhere = new Counters(memoryOfWorker(memory, 7));
    elsewhere.take(0, 1);
    const first = ask(backends[0]!);
    elsewhere.change(0, GAUGE.active, -1);
    const second = ask(backends[1]!);
    expect(nameOf(second)).toBe('waits');
    backends[0]!.wakeWaiters();
    expect([first, second].map(nameOf)).toEqual(['a', 'waits']);
  });

  test('places are shared between workers by how many wait in each: neither starves', () => {
    const { backends } = start(modelOf([{ maxConnections: 1 }]), 2);
    const served = [0, 0];
    const held: { place: Place }[] = [];
    const keepAsking = (worker: number): void => {
      ask(backends[worker]!, request(), NOBODY, (place) => {
        served[worker]!++;
        held.push({ place });
      });
    };
    for (const worker of [0, 0, 0, 0, 1, 1, 1, 1]) keepAsking(worker);
    for (let round = 0; round < 200; round++) {
      const { place } = held.shift()!;
      const worker = [...backends[0]!.servers.values()].includes(place.server) ? 0 : 1;
      keepAsking(worker);
      place.release();
    }
    expect(Math.min(...served)).toBeGreaterThan(60);
  });

  test('beyond the queue’s timeout a request is refused, and counted', () => {
    const { backend, memory, timers } = start(modelOf([{ maxConnections: 1 }]));
    ask(backend);
    const waiting = ask(backend);
    timers.pass(4_999);
    expect(nameOf(waiting)).toBe('waits');
    timers.pass(1);
    expect(nameOf(waiting)).toBe('queueTimeout');
    expect(figuresOf(memory, POOL_SLOT)).toMatchObject({ queued: 0, queueTimeouts: 1 });
  });

  test('beyond maxQueue, over all workers, it is refused at once', () => {
    const { backends } = start(modelOf([{ maxConnections: 1 }], { maxQueue: 2 }), 2);
    ask(backends[0]!);
    const asked = [ask(backends[0]!), ask(backends[1]!), ask(backends[1]!)];
    expect(asked.map(nameOf)).toEqual(['waits', 'waits', 'queueFull']);
  });

  test('who leaves the queue gets nothing, and the next does', () => {
    const { backend, memory, timers } = start(modelOf([{ maxConnections: 1 }]));
    const held = ask(backend);
    const [second, third] = [ask(backend), ask(backend)];
    second.leave!();
    second.leave!();
    held.place!.release();
    expect([second, third].map(nameOf)).toEqual(['waits', 'a']);
    expect(figuresOf(memory, POOL_SLOT).queued).toBe(0);
    expect(timers.pending).toBe(0);
  });

  test('a server that comes, or gets a higher limit, serves those who wait', () => {
    const { backend } = start(modelOf([{ maxConnections: 1 }, {}]));
    backend.setWeights({ b: 0 });
    ask(backend);
    const [second, third] = [ask(backend), ask(backend)];
    backend.configure(modelOf([{ maxConnections: 2 }, {}]));
    expect([second, third].map(nameOf)).toEqual(['a', 'waits']);
    backend.setWeights({ b: 100 });
    expect(nameOf(third)).toBe('b');
  });

  test('who waits for other servers than the one that has room doesn’t hold up the next', () => {
    const { backend } = start(modelOf([{ maxConnections: 1 }, { maxConnections: 1 }]));
    const held = [ask(backend), ask(backend)];
    const a = held.find((each) => nameOf(each) === 'a')!;
    const picky = ask(backend, request(), new Set([a.place!.server]));
    const next = ask(backend);
    a.place!.release();
    expect([picky, next].map(nameOf)).toEqual(['waits', 'a']);
    next.place!.release();
    const later = ask(backend);
    expect([nameOf(later), later.leave]).toEqual(['a', null]);
  });

  test('a place at an address that the server had before goes to who waits, at the new one', () => {
    const { backend } = start(modelOf([{ maxConnections: 1 }]));
    const held = ask(backend);
    const waiting = ask(backend);
    backend.configure(modelOf([{ maxConnections: 1, address: { host: '127.0.0.1', port: 9 } }]));
    held.place!.release();
    expect(waiting.place?.server).toBe(backend.servers.get('a'));
  });

  test('a waiter that is served may ask again from within', () => {
    const { backend, memory } = start(modelOf([{ maxConnections: 1 }]));
    const held = ask(backend);
    let again: Asked | null = null;
    ask(backend, request(), NOBODY, (place) => {
      place.release();
      again = ask(backend);
    });
    held.place!.release();
    expect(nameOf(again!)).toBe('a');
    expect(figuresOf(memory, 0).active).toBe(1);
  });
});

describe('a client with a server of its own', () => {
  const stickyModel = (servers: Partial<ServerModel>[], options: Partial<BackendModel> = {}) =>
    modelOf(servers, { sticky, ...options });

  test('comes back to it, and gets its cookie once', () => {
    const { backend } = start(stickyModel([{}, {}]));
    expect(ask(backend).place!.stickyFields).toMatch(/^Set-Cookie: SRV=a;/);
    const back = [ask(backend, of('b')), ask(backend, of('b'))];
    expect(back.map(nameOf)).toEqual(['b', 'b']);
    expect(back[0]!.place!.stickyFields).toBe('');
  });

  test('goes to another when its own is down, has failed it, or is unknown, and gets that one’s cookie', () => {
    const { backend } = start(stickyModel([{}, {}]));
    const failed = ask(backend, of('b'), new Set([backend.servers.get('b')!]));
    expect([nameOf(failed), failed.place!.stickyFields]).toEqual(['a', expect.stringContaining('SRV=a;')]);
    backend.setWeights({ b: 0 });
    expect(nameOf(ask(backend, of('b')))).toBe('a');
    expect(nameOf(ask(backend, of('zzz')))).toBe('a');
  });

  test('comes back to it while it drains, where others don’t go; not when it is in maintenance', () => {
    const { backend } = start(stickyModel([{}, {}]));
    backend.setWeights({ b: 0 }, ['b']);
    expect([nameOf(ask(backend)), nameOf(ask(backend, of('b')))]).toEqual(['a', 'b']);
    backend.setWeights({}, []);
    expect(nameOf(ask(backend, of('b')))).toBe('a');
  });

  test('comes back to a draining server also when no other is left', () => {
    const { backend } = start(stickyModel([{}]));
    backend.setWeights({ a: 0 }, ['a']);
    expect([nameOf(ask(backend)), nameOf(ask(backend, of('a')))]).toEqual(['exhausted', 'a']);
  });

  test('waits for it when it is full, though others have room', () => {
    const { backend, memory } = start(stickyModel([{ maxConnections: 1 }, {}]));
    const held = ask(backend, of('a'));
    const own = ask(backend, of('a'));
    expect([nameOf(own), nameOf(ask(backend))]).toEqual(['waits', 'b']);
    expect(figuresOf(memory, 0).queued).toBe(1);
    held.place!.release();
    expect(nameOf(own)).toBe('a');
    expect(figuresOf(memory, 0)).toMatchObject({ active: 1, queued: 0 });
  });

  test('isn’t overtaken there by those who come for any server', () => {
    const { backends } = start(stickyModel([{ maxConnections: 1 }, { maxConnections: 1 }]), 2);
    const [a] = [ask(backends[0]!, of('a')), ask(backends[0]!, of('b'))];
    const anybody = ask(backends[0]!);
    const own = ask(backends[0]!, of('a'));
    a.place!.release();
    expect([anybody, own].map(nameOf)).toEqual(['a', 'waits']);
    anybody.place!.release();
    expect(nameOf(own)).toBe('a');
  });

  test('nor by those who come later, to this worker or another, before it has taken its place', () => {
    const { backends, memory } = start(stickyModel([{ maxConnections: 1 }, {}]), 2);
    const elsewhere = new Counters(memoryOfWorker(memory, 7));
    elsewhere.take(0, 1);
    const own = ask(backends[0]!, of('a'));
    elsewhere.change(0, GAUGE.active, -1);
    expect([ask(backends[1]!), ask(backends[0]!)].map(nameOf)).toEqual(['b', 'b']);
    backends[0]!.wakeWaiters();
    expect(nameOf(own)).toBe('a');
  });

  test('and the older goes first: who waits for any server is served before a client that came later, and after', () => {
    const { backend } = start(stickyModel([{ maxConnections: 1 }, { maxConnections: 1 }]));
    const held = [ask(backend, of('a')), ask(backend, of('b'))];
    const [own, anybody] = [ask(backend, of('a')), ask(backend)];
    held[0]!.place!.release();
    expect([own, anybody].map(nameOf)).toEqual(['a', 'waits']);
  });

  test('a draining server’s places go to its own clients only', () => {
    const { backend } = start(stickyModel([{ maxConnections: 1 }, { maxConnections: 1 }]));
    const held = ask(backend, of('a'));
    ask(backend, of('b'));
    const anybody = ask(backend);
    backend.setWeights({ a: 0 }, ['a']);
    const own = ask(backend, of('a'));
    held.place!.release();
    expect([own, anybody].map(nameOf)).toEqual(['a', 'waits']);
    own.place!.release();
    expect(nameOf(anybody)).toBe('waits');
  });

  test('waits for any when its server is removed while it waits', () => {
    const { backend, memory } = start(stickyModel([{ maxConnections: 1 }, {}]));
    ask(backend, of('a'));
    const own = ask(backend, of('a'));
    backend.configure(stickyModel([], { servers: [serverModel('b', 1)] }));
    expect(nameOf(own)).toBe('b');
    expect(figuresOf(memory, 0).queued).toBe(0);
  });

  test('goes to others when maxQueue wait for its own already', () => {
    const { backend } = start(stickyModel([{ maxConnections: 1, maxQueue: 1 }, {}]));
    ask(backend, of('a'));
    expect([ask(backend, of('a')), ask(backend, of('a'))].map(nameOf)).toEqual(['waits', 'b']);
  });

  test('waits for any when its server goes down while it waits', () => {
    const { backend, memory } = start(stickyModel([{ maxConnections: 1 }, { maxConnections: 1 }]));
    ask(backend, of('a'));
    const b = ask(backend, of('b'));
    const own = [ask(backend, of('a')), ask(backend, of('a'))];
    backend.setWeights({ a: 0 });
    expect(figuresOf(memory, 0).queued).toBe(0);
    b.place!.release();
    expect(own.map(nameOf)).toEqual(['b', 'waits']);
  });

  test('is refused after the queue’s timeout, and counted at the server', () => {
    const { backend, memory, timers } = start(stickyModel([{ maxConnections: 1 }, {}]));
    ask(backend, of('a'));
    const own = ask(backend, of('a'));
    timers.pass(5_000);
    expect(nameOf(own)).toBe('queueTimeout');
    expect(figuresOf(memory, 0).queueTimeouts).toBe(1);
  });

  test('by its address it is known in every worker, in mode tcp as well', () => {
    const table = stickySchema.parse({ table: 'source' }) as Sticky;
    const { backends } = start(modelOf([{}, {}, {}], { sticky: table, stickTable: allocateStickTable(100) }), 2);
    const first = nameOf(ask(backends[0]!));
    const sources = Array.from({ length: 6 }, (_, index) => nameOf(ask(backends[index % 2]!)));
    expect(new Set([first, ...sources]).size).toBe(1);
    expect(nameOf(ask(backends[0]!, request({ source: '10.0.0.2' })))).not.toBe(first);
  });
});

test('what a worker that dies had is given back: places and waiters', () => {
  const { backend, memory } = start(modelOf([{ maxConnections: 1 }], { sticky }));
  ask(backend);
  ask(backend, of('a'));
  ask(backend);
  giveBackFor(memory, 0);
  expect(figuresOf(memory, 0)).toMatchObject({ active: 0, queued: 0 });
  expect(figuresOf(memory, POOL_SLOT)).toMatchObject({ active: 0, queued: 0 });
});
