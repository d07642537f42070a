/** A virtual address on this node: there while its router is master, announced, handed over, and never left behind. */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Effect } from '../actors/decide.ts';
import { virtualAddress } from '../machines/virtualAddress.ts';
import type { AddressSettings, VirtualAddressContext, VirtualAddressEvent } from '../machines/virtualAddress.ts';
import { delayOf, Stepper, toldTo, typesOf } from './stepper.ts';
import { addressed, say, Scenario, send, start, wait } from './transcript.ts';

const ID = 'address/gw/10.9.0.100';
const ROUTER = 'router/gw';
const SETTINGS: AddressSettings = { repeat: 5, delayMs: 5000, refreshMs: 0, refreshRepeat: 1, retryMs: 1000 };

type Address = Stepper<VirtualAddressEvent, VirtualAddressContext>;

const ACQUIRE: VirtualAddressEvent = { type: 'address.acquire' };
const RELEASE: VirtualAddressEvent = { type: 'address.release' };
const HAND_OVER: VirtualAddressEvent = { type: 'address.handOver', holdMs: 2000 };
const ANNOUNCE: VirtualAddressEvent = { type: 'address.announce' };
const ADDED: VirtualAddressEvent = { type: 'address.added' };
const REMOVED: VirtualAddressEvent = { type: 'address.removed' };
const LOST: VirtualAddressEvent = { type: 'address.lost' };
const APPEARED: VirtualAddressEvent = { type: 'address.appeared' };
const REFUSED: VirtualAddressEvent = { type: 'address.addFailed', code: 'EPERM', message: 'not permitted' };
const AGAIN = { type: 'xstate.after.again.virtualAddress.announcing' } as unknown as VirtualAddressEvent;
const REFRESH: VirtualAddressEvent = { type: 'refresh.due' };
const HOLD = { type: 'xstate.after.hold.virtualAddress.handingOver' } as unknown as VirtualAddressEvent;
const RETRY_ADDING = { type: 'xstate.after.retryAdding.virtualAddress.failed' } as unknown as VirtualAddressEvent;
const RETRY_REMOVING = { type: 'xstate.after.retry.virtualAddress.removing' } as unknown as VirtualAddressEvent;

const fresh = (settings: Partial<AddressSettings> = {}): Address =>
  new Stepper(virtualAddress, { router: ROUTER, address: '10.9.0.100', settings: { ...SETTINGS, ...settings } });

const after = (events: VirtualAddressEvent[], settings: Partial<AddressSettings> = {}): Address => {
  const address = fresh(settings);
  if (events.length > 0) address.sendAll(...events);
  return address;
};
const absent = () => after([REMOVED]);
const announcing = (settings = {}) => after([REMOVED, ACQUIRE, ADDED], settings);
const held = (settings = {}) => after([REMOVED, ACQUIRE, ADDED, AGAIN], settings);

const announced = (effects: Effect[]): number[] =>
  effects.filter(({ type }) => type === 'announce').map(({ params }) => (params as { count: number }).count);

const timerOf = (effects: Effect[], delay: string): number | null => {
  const timer = effects.find(
    ({ type, params }) => type === 'timer' && (params as { id: string }).id.startsWith(`xstate.after.${delay}.`),
  );
  return timer ? delayOf([timer], (timer.params as { id: string }).id) : null;
};

test('what an earlier life may have left behind is taken away first', () => {
  const address = fresh();
  expect(address.state).toBe('removing');
  expect(typesOf(address.started)).toContain('removeAddress');
  address.send(REMOVED);
  expect(address.state).toBe('absent');
});

test('asked for, it is added, and announced once it is there', () => {
  const address = absent();
  expect(typesOf(address.send(ACQUIRE))).toEqual(['addAddress']);
  expect(address.state).toBe('adding');
  expect(announced(address.send(ADDED))).toEqual([5]);
  expect(address.state).toBe('announcing');
});

test('asked for before what was left behind is gone, it is added at once', () => {
  const address = fresh();
  expect(typesOf(address.send(ACQUIRE))).toContain('addAddress');
  expect(address.state).toBe('adding');
});

describe('announcing', () => {
  test('five at once and five more after the delay: the first can be lost', () => {
    const address = absent();
    const effects = address.sendAll(ACQUIRE, ADDED);
    expect(announced(effects)).toEqual([5]);
    expect(timerOf(effects, 'again')).toBe(5000);
    expect(announced(address.send(AGAIN))).toEqual([5]);
    expect(address.state).toBe('held');
  });

  test('without a delay it is held at once', () => {
    expect(announcing({ delayMs: 0 }).state).toBe('held');
  });

  test('refreshed as often as configured, and steadily', () => {
    const address = announcing({ refreshMs: 60_000, refreshRepeat: 2 });
    expect(delayOf(address.send(AGAIN), 'refresh')).toBe(60_000);
    const { context } = address;
    const effects = address.send(REFRESH);
    expect(announced(effects)).toEqual([2]);
    expect(delayOf(effects, 'refresh')).toBe(60_000);
    expect(address.context).toBe(context);
  });

  test('when no refresh is configured no timer is set', () => {
    expect(typesOf(announcing().send(AGAIN))).toEqual(['cancel', 'announce']);
    const scenario = new Scenario().play(
      start(ID, 'virtualAddress', input({ delayMs: 0 })),
      send(ID, 'address.acquire'),
      wait(100),
    );
    expect(scenario.stateOf(ID)).toBe('held');
    expect(scenario.system.pendingTimers()).toEqual([]);
    expect(scenario.system.counters.timersFired).toBe(0);
  });

  test('a refresh that a reload asks for begins with it, and ends with the next one', () => {
    const scenario = new Scenario().play(
      start(ID, 'virtualAddress', input({ delayMs: 0 })),
      send(ID, 'address.acquire'),
      wait(1000),
      send(ID, 'settings.changed', { settings: { ...SETTINGS, delayMs: 0, refreshMs: 30_000 } }),
      wait(70_000),
      send(ID, 'settings.changed', { settings: { ...SETTINGS, delayMs: 0 } }),
      wait(100_000),
    );
    expect(scenario.announced.map(({ ms, count }) => [ms, count])).toEqual([
      [0, 5],
      [31_000, 1],
      [61_000, 1],
    ]);
    expect(scenario.system.pendingTimers()).toEqual([]);
  });

  test.each([RELEASE, HAND_OVER, LOST])('$type ends the refreshing', (event) => {
    const scenario = new Scenario().play(
      start(ID, 'virtualAddress', input({ delayMs: 0, refreshMs: 500 })),
      send(ID, 'address.acquire'),
      addressed(ID, { ok: false, code: 'E', message: '' }),
      wait(600),
      send(ID, event.type, event),
      wait(900),
    );
    expect(scenario.announced.map(({ ms }) => ms)).toEqual([0, 500]);
    expect(scenario.system.counters.unhandled).toBe(0);
  });

  test.each([
    ['announcing', announcing],
    ['held', held],
  ])('in %s it is announced when the router asks, as often as at first', (state, make) => {
    const address = make();
    const { context } = address;
    expect(announced(address.send(ANNOUNCE))).toEqual([5]);
    expect(address.state).toBe(state);
    expect(address.context).toBe(context);
  });

  test.each([
    ['absent', absent],
    ['adding', () => after([REMOVED, ACQUIRE])],
    ['handingOver', () => after([REMOVED, ACQUIRE, ADDED, HAND_OVER])],
    ['removing', () => fresh()],
  ])('in %s it is not announced', (_state, make) => {
    expect(make().send(ANNOUNCE)).toEqual([]);
  });
});

describe('release', () => {
  test.each([
    ['adding', () => after([REMOVED, ACQUIRE])],
    ['announcing', announcing],
    ['held', held],
    ['handingOver', () => after([REMOVED, ACQUIRE, ADDED, HAND_OVER])],
  ])('from %s it is taken away', (_state, make) => {
    const address = make();
    expect(typesOf(address.send(RELEASE))).toContain('removeAddress');
    expect(address.state).toBe('removing');
    address.send(REMOVED);
    expect(address.state).toBe('absent');
  });

  test('what can’t be removed is tried again and again', () => {
    const address = held();
    expect(timerOf(address.send(RELEASE), 'retry')).toBe(1000);
    address.send({ type: 'address.removeFailed', code: 'EBUSY', message: '' });
    expect(address.state).toBe('removing');
    const effects = address.send(RETRY_REMOVING);
    expect(typesOf(effects)).toContain('removeAddress');
    expect(timerOf(effects, 'retry')).toBe(1000);
  });

  test('an answer that comes after a new request is not taken for its own', () => {
    const address = held();
    address.sendAll(RELEASE, ACQUIRE, REMOVED);
    expect(address.state).toBe('adding');
    address.send(RELEASE);
    address.send(ADDED);
    expect(address.state).toBe('removing');
  });
});

describe('hand-over', () => {
  test.each([
    ['announcing', announcing],
    ['held', held],
  ])('from %s: it stays for the hold time, and is then taken away', (_state, make) => {
    const address = make();
    const effects = address.send(HAND_OVER);
    expect(address.state).toBe('handingOver');
    expect(typesOf(effects)).not.toContain('removeAddress');
    expect(timerOf(effects, 'hold')).toBe(2000);
    expect(typesOf(address.send(HOLD))).toContain('removeAddress');
  });

  test('an address that is not there yet has nothing to hand over', () => {
    const address = after([REMOVED, ACQUIRE, HAND_OVER]);
    expect(address.state).toBe('removing');
  });

  test('when the router is master again it stays, and is announced anew', () => {
    const address = held();
    address.send(HAND_OVER);
    const effects = address.send(ACQUIRE);
    expect(address.state).toBe('announcing');
    expect(announced(effects)).toEqual([5]);
    expect(typesOf(effects)).not.toContain('addAddress');
  });

  test('somebody who takes it away meanwhile ends it', () => {
    const address = held();
    address.sendAll(HAND_OVER, LOST);
    expect(address.state).toBe('absent');
  });

  test('a second one does not make it longer', () => {
    const address = held();
    address.send(HAND_OVER);
    expect(address.send(HAND_OVER)).toEqual([]);
  });
});

describe('others who change it', () => {
  test.each([
    ['announcing', announcing],
    ['held', held],
  ])('taken away by somebody else in %s, it is put back', (_state, make) => {
    const address = make();
    expect(typesOf(address.send(LOST))).toContain('addAddress');
    expect(announced(address.send(ADDED))).toEqual([5]);
  });

  test('put here by somebody else while the router is not master, it is taken away', () => {
    const address = absent();
    expect(typesOf(address.send(APPEARED))).toContain('removeAddress');
  });

  test('that it has appeared where it belongs is no news', () => {
    const address = held();
    expect(address.send(APPEARED)).toEqual([]);
  });
});

describe('an address that can’t be added', () => {
  const failed = (settings = {}) => after([REMOVED, ACQUIRE, REFUSED], settings);

  test('is told to its router', () => {
    const effects = after([REMOVED, ACQUIRE]).send(REFUSED);
    expect(toldTo(effects, ROUTER)).toEqual([
      { type: 'address.failed', address: ID, code: 'EPERM', message: 'not permitted' },
    ]);
  });

  test.each([RELEASE, HAND_OVER])('$type of a router in FAULT does not end the fault', (event) => {
    const address = failed();
    expect(address.send(event)).toEqual([]);
    expect(address.state).toBe('failed');
  });

  test('after a while it is worth another try: what is there is removed, and the router told', () => {
    const address = failed();
    const effects = address.send(RETRY_ADDING);
    expect(address.state).toBe('removing');
    expect(typesOf(effects)).toContain('removeAddress');
    expect(toldTo(effects, ROUTER)).toEqual([{ type: 'address.cleared', address: ID }]);
  });

  test('each time in a row it waits twice as long, up to 64 times; one success makes it short again', () => {
    const address = absent();
    const waits = Array.from({ length: 9 }, () => {
      address.send(ACQUIRE);
      const waited = timerOf(address.send(REFUSED), 'retryAdding');
      address.sendAll(RETRY_ADDING, REMOVED);
      return waited;
    });
    expect(waits).toEqual([1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 64_000, 64_000]);
    address.sendAll(ACQUIRE, ADDED, LOST);
    expect(timerOf(address.send(REFUSED), 'retryAdding')).toBe(1000);
  });
});

const router = (priority: number) => ({
  name: 'gw',
  settings: {
    version: 3,
    vrid: 51,
    priority,
    advertMs: 1000,
    preempt: true,
    preemptDelayMs: 0,
    startDelayMs: 0,
    addresses: [ID],
    track: [],
    group: null,
  },
});
const input = (settings: Partial<AddressSettings> = {}) => ({
  router: ROUTER,
  address: '10.9.0.100',
  settings: { ...SETTINGS, ...settings },
});
const UP = { address: '10.9.0.2', key: '0a090002' };

describe('scenarios', () => {
  test('gratuitous ARP: at once, after five seconds, then every minute', async () => {
    const scenario = new Scenario({ shows: ({ actor }) => actor === ID }).play(
      start(ID, 'virtualAddress', input({ refreshMs: 60_000 })),
      start(ROUTER, 'vrrpRouter', router(255)),
      say('Its router becomes master, and is stopped after two minutes. No successor speaks.'),
      send(ROUTER, 'interface.up', UP),
      wait(130_000),
      send(ROUTER, 'router.stop'),
      wait(10_000),
    );
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/address-announced.txt');
    expect(scenario.announced.map(({ ms, count }) => [ms, count])).toEqual([
      [0, 5],
      [5000, 5],
      [65_000, 1],
      [125_000, 1],
    ]);
    expect([...scenario.held]).toEqual([]);
  });

  test('an address that can’t be added: the router leaves service to others more and more', async () => {
    const scenario = new Scenario({
      shows: ({ actor, steady }) => actor === ROUTER && !steady,
    }).play(
      addressed(ID, { ok: false, code: 'EPERM', message: 'not permitted' }),
      start(ID, 'virtualAddress', input()),
      start(ROUTER, 'vrrpRouter', router(100)),
      send(ROUTER, 'interface.up', UP),
      wait(30_000),
      say('It is permitted now.'),
      addressed(ID, { ok: true }),
      wait(20_000),
    );
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/address-refused.txt');
    expect(scenario.stateOf(ROUTER)).toBe('master');
    expect([...scenario.held]).toEqual([ID]);
  });
});

const events: VirtualAddressEvent[] = [ACQUIRE, RELEASE, HAND_OVER, ANNOUNCE, LOST, APPEARED];

test('whatever happens, it is on the interface exactly when it was asked for last, or is handed over', () => {
  const happening = fc.oneof(
    { weight: 5, arbitrary: fc.constantFrom(...events).map((event) => ({ event })) },
    { weight: 3, arbitrary: fc.constantFrom(0, 100, 1500, 6000).map((ms) => ({ ms })) },
    { weight: 1, arbitrary: fc.boolean().map((ok) => ({ ok })) },
  );
  fc.assert(
    fc.property(fc.array(happening, { maxLength: 40 }), fc.constantFrom(0, 700), (happened, refreshMs) => {
      const scenario = new Scenario().play(start(ID, 'virtualAddress', input({ refreshMs })));
      for (const step of happened) {
        if ('ms' in step) scenario.play(wait(step.ms));
        else if ('ok' in step)
          scenario.play(addressed(ID, step.ok ? { ok: true } : { ok: false, code: 'E', message: '' }));
        else {
          // Nobody can take away what is not there, or put it where it is.
          if (step.event.type === 'address.lost' && !scenario.held.delete(ID)) continue;
          if (step.event.type === 'address.appeared' && scenario.held.has(ID)) continue;
          if (step.event.type === 'address.appeared') scenario.held.add(ID);
          scenario.play(send(ID, step.event.type, step.event));
        }
        const state = scenario.stateOf(ID)!;
        // Adding and removing are answered at once here.
        const isThere = ['announcing', 'held', 'handingOver'].includes(state);
        expect([...scenario.held]).toEqual(isThere ? [ID] : []);
        const timers = scenario.system.pendingTimers().length;
        const lasts = state === 'absent' || (state === 'held' && refreshMs === 0);
        expect(timers).toBe(lasts ? 0 : 1);
      }
      scenario.play(send(ID, 'address.release'), wait(100_000));
      expect(scenario.stateOf(ID)).toBe('absent');
      expect([...scenario.held]).toEqual([]);
      expect(scenario.faults).toEqual([]);
      expect(scenario.system.counters.unhandled).toBe(0);
    }),
  );
});
