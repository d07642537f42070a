/**
 * A VRRP router, rule by rule: RFC 9568 section 6.4, RFC 3768 where version 2 differs, then keepalived's additions and
 * our own. What a cluster of them does is in vrrpCluster.test.ts.
 */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Effect } from '../actors/decide.ts';
import { effectivePriority, masterDownMs, priorityParts, skewMs, vrrpRouter } from '../machines/vrrpRouter.ts';
import type { Reason, RouterContext, RouterEvent, RouterSettings, Track } from '../machines/vrrpRouter.ts';
import { delayOf, Stepper, toldTo, typesOf } from './stepper.ts';
import { Scenario, send, stall, start, wait } from './transcript.ts';

const VIP = 'address/gw/10.9.0.100';
const VIP2 = 'address/gw/10.9.0.101';
const GROUP = 'group/edge';

const SETTINGS: RouterSettings = {
  version: 3,
  vrid: 51,
  priority: 100,
  advertMs: 1000,
  preempt: true,
  preemptDelayMs: 0,
  startDelayMs: 0,
  addresses: [VIP],
  track: [],
  group: null,
};

type Router = Stepper<RouterEvent, RouterContext>;

const INTERFACE_UP: RouterEvent = { type: 'interface.up', address: '10.9.0.2', key: '0a090002' };
const INTERFACE_DOWN: RouterEvent = { type: 'interface.down', code: 'DOWN', message: 'eth0 is down' };
const EXPIRED: RouterEvent = { type: 'masterDown.expired' };

const advert = (priority: number, { host = 9, advertMs = 1000 } = {}): RouterEvent => ({
  type: 'advert.received',
  priority,
  advertMs,
  source: `10.9.0.${host}`,
  key: `0a0900${host.toString(16).padStart(2, '0')}`,
  differences: [],
});
const looked = (lateMs = 0, silentMs: number | null = null): RouterEvent => ({ type: 'looked', lateMs, silentMs });
const told = (tracker: string, up: boolean, value: number | null = null): RouterEvent => ({
  type: 'tracker.changed',
  tracker,
  up,
  value,
  message: `${tracker} is ${up ? 'fine' : 'broken'}`,
});
const changedTo = (settings: Partial<RouterSettings>): RouterEvent => ({
  type: 'settings.changed',
  settings: { ...SETTINGS, ...settings },
});
const track = (tracker: string, weight: number, reverse = false): Track => ({ tracker, weight, reverse });

const fresh = (settings: Partial<RouterSettings> = {}): Router =>
  new Stepper(vrrpRouter, { name: 'gw', settings: { ...SETTINGS, ...settings } });

const inBackup = (settings: Partial<RouterSettings> = {}): Router => {
  const router = fresh(settings);
  router.send(INTERFACE_UP);
  if (settings.group) router.send({ type: 'group.cleared' });
  expect(router.state).toBe('backup.listening');
  return router;
};

const inMaster = (settings: Partial<RouterSettings> = {}): Router => {
  const router = inBackup(settings);
  router.sendAll(EXPIRED, looked());
  if (settings.group) router.send({ type: 'group.master', router: 'router/gw' });
  expect(router.state).toBe('master');
  return router;
};

const inDeciding = (): Router => {
  const router = inBackup();
  router.send(EXPIRED);
  expect(router.state).toBe('backup.deciding');
  return router;
};

/** It would be master, and waits for its sync group. */
const willing = (settings: Partial<RouterSettings> = {}, ...before: RouterEvent[]): Router => {
  const router = inBackup({ group: GROUP, ...settings });
  router.sendAll(...before, EXPIRED, looked(2, 3612));
  expect(router.state).toBe('backup.willing');
  return router;
};

const inFault = (settings: Partial<RouterSettings> = {}): Router => {
  const router = fresh(settings);
  router.send(INTERFACE_DOWN);
  expect(router.state).toBe('fault');
  return router;
};

/** Priorities of the adverts that were sent. */
const sentBy = (effects: Effect[]): number[] =>
  effects.filter(({ type }) => type === 'sendAdvert').map(({ params }) => (params as { priority: number }).priority);

const noticeOf = (effects: Effect[]): { state: string; priority: number; reason: Reason } | null =>
  (effects.find(({ type }) => type === 'notify')?.params as { state: string; priority: number; reason: Reason }) ??
  null;

const movedBy = (effects: Effect[]): number | null =>
  (effects.find(({ type }) => type === 'moveTimer')?.params as { byMs: number } | undefined)?.byMs ?? null;

const cancelled = (effects: Effect[]): string[] =>
  effects.filter(({ type }) => type === 'cancel').map(({ params }) => (params as { id: string }).id);

const addressTold = (effects: Effect[], address = VIP): string[] => toldTo(effects, address).map(({ type }) => type);

/** Sends it and expects that nothing that decides has changed. */
const sendSteady = (router: Router, event: RouterEvent): Effect[] => {
  const { context } = router;
  const effects = router.send(event);
  expect(router.context).toBe(context);
  return effects;
};

describe('RFC 9568 section 6.1: skew time and master-down interval', () => {
  test.each([
    [100, 1000, 609.375, 3609.375],
    [200, 1000, 218.75, 3218.75],
    [255, 1000, 3.90625, 3003.90625],
    [1, 1000, 996.09375, 3996.09375],
    [100, 10, 6.09375, 36.09375],
    [101, 10, 6.0546875, 36.0546875],
    [254, 40_950, 319.921875, 123_169.921875],
  ])('version 3, priority %i, interval %i ms: skew %f ms, master down %f ms', (priority, advertMs, skew, down) => {
    expect(skewMs({ version: 3 }, priority, advertMs)).toBe(skew);
    expect(masterDownMs({ version: 3 }, priority, advertMs)).toBe(down);
  });

  test.each([
    [100, 1000, 609.375, 3609.375],
    [100, 3000, 609.375, 9609.375],
    [255, 2000, 3.90625, 6003.90625],
  ])(
    'RFC 3768 section 6.1, version 2: the skew time is of a second, priority %i, interval %i ms',
    (priority, advertMs, skew, down) => {
      expect(skewMs({ version: 2 }, priority, advertMs)).toBe(skew);
      expect(masterDownMs({ version: 2 }, priority, advertMs)).toBe(down);
    },
  );
});

describe('RFC 9568 section 6.4.1: Initialize', () => {
  test('6.4.1: it opens its sockets and asks its trackers, and takes no part before the interface is up', () => {
    const router = fresh({ track: [track('tracker/pool/web', -60)] });
    expect(router.state).toBe('initialize.waiting');
    expect(typesOf(router.started)).toContain('openRouter');
    expect(toldTo(router.started, 'tracker/pool/web')).toEqual([{ type: 'tracker.asked', router: 'router/gw' }]);
    expect(sentBy(router.started)).toEqual([]);
    expect(router.send(advert(200))).toEqual([]);
    expect(router.state).toBe('initialize.waiting');
  });

  test('6.4.1: the owner sends an advert, takes and announces its addresses, sets the advert timer, and is master', () => {
    const router = fresh({ priority: 255, addresses: [VIP, VIP2] });
    const effects = router.send(INTERFACE_UP);
    expect(router.state).toBe('master');
    expect(sentBy(effects)).toEqual([255]);
    expect(addressTold(effects)).toEqual(['address.acquire']);
    expect(addressTold(effects, VIP2)).toEqual(['address.acquire']);
    expect(delayOf(effects, 'advert')).toBe(1000);
    expect(delayOf(effects, 'masterDown')).toBeNull();
    expect(typesOf(effects).indexOf('sendAdvert')).toBeLessThan(typesOf(effects).indexOf('tell'));
  });

  test('6.4.1: everybody else sets the master-down timer by its own interval and is backup, without a word', () => {
    const router = fresh({ advertMs: 2000 });
    const effects = router.send(INTERFACE_UP);
    expect(router.state).toBe('backup.listening');
    expect(delayOf(effects, 'masterDown')).toBe(6000 + (156 / 256) * 2000);
    expect(sentBy(effects)).toEqual([]);
    expect(addressTold(effects)).toEqual([]);
  });

  test('RFC 3768 section 6.4.1, version 2: the skew time is that of a second', () => {
    const effects = fresh({ version: 2, advertMs: 2000 }).send(INTERFACE_UP);
    expect(delayOf(effects, 'masterDown')).toBe(6000 + (156 / 256) * 1000);
  });

  test.each([100, 255])(
    'with a start delay, priority %i waits until it has passed, and for the interface',
    (priority) => {
      const router = fresh({ priority, startDelayMs: 5000 });
      expect(delayOf(router.started, 'startDelay')).toBe(5000);
      router.send(INTERFACE_UP);
      expect(router.state).toBe('initialize.waiting');
      router.send({ type: 'startDelay.elapsed' });
      expect(router.state).toBe(priority === 255 ? 'master' : 'backup.listening');
    },
  );

  test('a start delay that has passed is not enough while the interface is not up yet', () => {
    const router = fresh({ startDelayMs: 5000 });
    router.send({ type: 'startDelay.elapsed' });
    expect(router.state).toBe('initialize.waiting');
    router.send(INTERFACE_UP);
    expect(router.state).toBe('backup.listening');
  });
});

describe('RFC 9568 section 6.4.2: Backup', () => {
  test('6.4.2: a shutdown cancels the master-down timer and ends in Initialize, without an advert', () => {
    const router = inBackup();
    const effects = router.send({ type: 'router.stop' });
    expect(router.state).toBe('initialize.stopped');
    expect(cancelled(effects)).toContain('masterDown');
    expect(sentBy(effects)).toEqual([]);
    expect(noticeOf(effects)).toMatchObject({ state: 'STOP', reason: { code: 'shutdown' } });
  });

  test('6.4.2: when the master-down timer fires: advert first, then the addresses, advert timer, master', () => {
    const router = inBackup({ addresses: [VIP, VIP2] });
    expect(typesOf(router.send(EXPIRED))).toEqual(['look']);
    const effects = router.send(looked());
    expect(router.state).toBe('master');
    expect(typesOf(effects)).toEqual(['sendAdvert', 'tell', 'tell', 'timer', 'notify']);
    expect(sentBy(effects)).toEqual([100]);
    expect(addressTold(effects)).toEqual(['address.acquire']);
    expect(delayOf(effects, 'advert')).toBe(1000);
  });

  test('6.4.2: priority 0 sets the master-down timer to the skew time', () => {
    const router = inBackup();
    router.send(advert(200));
    expect(delayOf(router.send(advert(0)), 'masterDown')).toBe(609.375);
    expect(router.state).toBe('backup.listening');
  });

  test('6.4.2: the skew time after priority 0 is of the interval of the master that left', () => {
    const router = inBackup();
    router.send(advert(200, { advertMs: 4000 }));
    expect(delayOf(router.send(advert(0, { advertMs: 4000 })), 'masterDown')).toBe(4 * 609.375);
  });

  test.each([100, 101, 254, 255])('6.4.2: priority %i ≥ mine restarts the master-down timer', (priority) => {
    expect(delayOf(inBackup().send(advert(priority)), 'masterDown')).toBe(3609.375);
  });

  test('6.4.2: an equal priority is accepted from a smaller address as well: addresses count only between masters', () => {
    expect(delayOf(inBackup().send(advert(100, { host: 1 })), 'masterDown')).toBe(3609.375);
  });

  test('6.4.2: the interval of an accepted advert is learned, and the timer set by it', () => {
    const router = inBackup();
    expect(delayOf(router.send(advert(200, { advertMs: 3000 })), 'masterDown')).toBe(3 * 3609.375);
    expect(router.context.master).toEqual({ source: '10.9.0.9', priority: 200, advertMs: 3000 });
  });

  test('6.4.2: on becoming master it counts by its own interval again', () => {
    const router = inBackup();
    router.sendAll(advert(200, { advertMs: 3000 }), EXPIRED);
    expect(delayOf(router.send(looked()), 'advert')).toBe(1000);
    expect(router.context.master).toBeNull();
  });

  test('RFC 3768 section 6.4.2, version 2: no interval is learned', () => {
    const effects = inBackup({ version: 2 }).send(advert(200, { advertMs: 3000 }));
    expect(delayOf(effects, 'masterDown')).toBe(3609.375);
  });

  test('6.4.2: a lower priority is discarded when it preempts: no timer is touched', () => {
    const effects = inBackup().send(advert(99, { advertMs: 5000 }));
    expect(effects).toEqual([]);
  });

  test('6.4.2: without preemption a lower priority is accepted like any', () => {
    const router = inBackup({ preempt: false });
    expect(delayOf(router.send(advert(1)), 'masterDown')).toBe(3609.375);
    expect(router.context.master?.priority).toBe(1);
  });

  test('6.1: the owner preempts whatever is configured', () => {
    const router = fresh({ preempt: false, preemptDelayMs: 10_000 });
    router.sendAll(INTERFACE_UP, changedTo({ preempt: false, preemptDelayMs: 10_000, priority: 255 }));
    expect(router.send(advert(254))).toEqual([]);
  });

  test('a discarded packet touches neither timer nor state', () => {
    const router = inBackup();
    const event: RouterEvent = {
      type: 'advert.discarded',
      kind: 'checksum',
      source: '10.9.0.9',
      field: null,
      own: '',
      peer: '',
    };
    expect(sendSteady(router, event)).toEqual([]);
  });
});

describe('RFC 9568 section 6.4.3: Active', () => {
  test('6.4.3: a shutdown cancels the advert timer, sends priority 0, and ends in Initialize', () => {
    const router = inMaster();
    const effects = router.send({ type: 'router.stop' });
    expect(router.state).toBe('initialize.stopped');
    expect(sentBy(effects)).toEqual([0]);
    expect(cancelled(effects)).toContain('advert');
  });

  test('6.4.3: when the advert timer fires it sends an advert and sets the timer again', () => {
    const effects = sendSteady(inMaster(), { type: 'advert.due' });
    expect(effects[0]).toEqual({ type: 'sendAdvert', params: { priority: 100, periodic: true } });
    expect(delayOf(effects, 'advert')).toBe(1000);
    expect(effects).toHaveLength(2);
  });

  test('6.4.3: priority 0 is answered with an advert, and the timer is set again', () => {
    const router = inMaster();
    const effects = sendSteady(router, advert(0));
    expect(router.state).toBe('master');
    expect(sentBy(effects)).toEqual([100]);
    expect(delayOf(effects, 'advert')).toBe(1000);
    expect(addressTold(effects)).toEqual(['address.announce']);
  });

  test('6.4.3: a greater priority ends it: advert timer cancelled, interval learned, master-down timer, Backup', () => {
    const router = inMaster();
    const effects = router.send(advert(101, { advertMs: 10_000 }));
    expect(router.state).toBe('backup.listening');
    expect(cancelled(effects)).toContain('advert');
    expect(delayOf(effects, 'masterDown')).toBe(10 * 3609.375);
    expect(router.context.master).toEqual({ source: '10.9.0.9', priority: 101, advertMs: 10_000 });
    expect(addressTold(effects)).toEqual(['address.release']);
  });

  test('RFC 3768 section 6.4.3, version 2: the master-down timer is set by its own interval', () => {
    const effects = inMaster({ version: 2 }).send(advert(101, { advertMs: 10_000 }));
    expect(delayOf(effects, 'masterDown')).toBe(3609.375);
  });

  test('it sends one last advert before it gives way, so that the other announces the addresses again', () => {
    const effects = inMaster().send(advert(101));
    expect(sentBy(effects)).toEqual([100]);
    expect(typesOf(effects).indexOf('sendAdvert')).toBeLessThan(typesOf(effects).indexOf('tell'));
  });

  test('6.4.3: an equal priority from a greater address ends it', () => {
    const router = inMaster();
    const effects = router.send(advert(100, { host: 3 }));
    expect(router.state).toBe('backup.listening');
    expect(delayOf(effects, 'masterDown')).toBe(3609.375);
    expect(router.context.reason).toMatchObject({ code: 'tieLost', peer: '10.9.0.3', peerPriority: 100 });
  });

  test('6.4.3: addresses are compared unsigned: .200 is greater than .2', () => {
    const router = inMaster();
    router.send(advert(100, { host: 200 }));
    expect(router.state).toBe('backup.listening');
  });

  test.each([
    [99, 9],
    [100, 1],
  ])(
    '6.4.3: priority %i from .%i is lower: an advert at once, the timer not reset, the addresses announced',
    (priority, host) => {
      const router = inMaster({ addresses: [VIP, VIP2] });
      const effects = sendSteady(router, advert(priority, { host }));
      expect(router.state).toBe('master');
      expect(sentBy(effects)).toEqual([100]);
      expect(delayOf(effects, 'advert')).toBeNull();
      expect(addressTold(effects)).toEqual(['address.announce']);
      expect(addressTold(effects, VIP2)).toEqual(['address.announce']);
      expect(router.context.master).toBeNull();
    },
  );

  test('two owners: the greater address stays', () => {
    const router = fresh({ priority: 255 });
    router.send(INTERFACE_UP);
    router.send(advert(255, { host: 1 }));
    expect(router.state).toBe('master');
    router.send(advert(255, { host: 9 }));
    expect(router.state).toBe('backup.listening');
  });
});

describe('FAULT', () => {
  test('an interface that is down at the start puts it there, and up again into backup with a whole master-down time', () => {
    const router = inFault();
    const effects = router.send(INTERFACE_UP);
    expect(router.state).toBe('backup.listening');
    expect(delayOf(effects, 'masterDown')).toBe(3609.375);
    expect(noticeOf(effects)).toMatchObject({ state: 'BACKUP', reason: { code: 'faultCleared' } });
  });

  test('a backup cancels its timer, and forgets the master', () => {
    const router = inBackup();
    const effects = router.sendAll(advert(200), INTERFACE_DOWN);
    expect(router.state).toBe('fault');
    expect(cancelled(effects)).toContain('masterDown');
    expect(sentBy(effects)).toEqual([]);
    expect(router.context.master).toBeNull();
  });

  test('a master says priority 0 and releases its addresses', () => {
    const router = inMaster();
    const effects = router.send(INTERFACE_DOWN);
    expect(router.state).toBe('fault');
    expect(sentBy(effects)).toEqual([0]);
    expect(addressTold(effects)).toEqual(['address.release']);
    expect(cancelled(effects)).toContain('advert');
    expect(noticeOf(effects)).toMatchObject({ state: 'FAULT', reason: { code: 'fault', detail: 'eth0 is down' } });
  });

  test('while the look is under way as well', () => {
    const router = inBackup();
    router.sendAll(EXPIRED, INTERFACE_DOWN);
    expect(router.state).toBe('fault');
    router.send(looked());
    expect(router.state).toBe('fault');
  });

  test('it hears no adverts there, and begins anew afterwards', () => {
    const router = inFault();
    expect(sendSteady(router, advert(200))).toEqual([]);
    router.send(INTERFACE_UP);
    expect(router.context.master).toBeNull();
  });

  test('it stays until the last of several troubles has gone', () => {
    const router = inFault({ track: [track('tracker/script/a', 0)] });
    router.sendAll(told('tracker/script/a', false), INTERFACE_UP);
    expect(router.state).toBe('fault');
    router.send(told('tracker/script/a', true));
    expect(router.state).toBe('backup.listening');
  });

  test('an address that can’t be added puts the master there, until it is worth another try', () => {
    const router = inMaster();
    const effects = router.send({ type: 'address.failed', address: VIP, code: 'EPERM', message: 'not permitted' });
    expect(router.state).toBe('fault');
    expect(sentBy(effects)).toEqual([0]);
    expect(router.context.reason).toMatchObject({ code: 'fault', detail: 'not permitted' });
    router.send({ type: 'address.cleared', address: VIP });
    expect(router.state).toBe('backup.listening');
  });

  test('the owner is master again at once', () => {
    const router = inFault({ priority: 255 });
    expect(sentBy(router.send(INTERFACE_UP))).toEqual([255]);
    expect(router.state).toBe('master');
  });

  test('an interface that goes down during the start delay is told; the delay is still waited for', () => {
    const router = fresh({ startDelayMs: 5000 });
    router.send(INTERFACE_DOWN);
    expect(router.state).toBe('fault');
    router.send(INTERFACE_UP);
    expect(router.state).toBe('fault');
    router.send({ type: 'startDelay.elapsed' });
    expect(router.state).toBe('backup.listening');
  });
});

describe('preempt delay', () => {
  const delayed = (settings: Partial<RouterSettings> = {}): Router =>
    inBackup({ priority: 150, preemptDelayMs: 60_000, ...settings });

  test('a lower master is accepted, its interval learned, and the delay starts once', () => {
    const router = delayed();
    const effects = router.send(advert(100, { advertMs: 2000 }));
    expect(delayOf(effects, 'preemptDelay')).toBe(60_000);
    expect(delayOf(effects, 'masterDown')).toBe(masterDownMs({ version: 3 }, 150, 2000));
    const again = sendSteady(router, advert(100, { advertMs: 2000 }));
    expect(delayOf(again, 'preemptDelay')).toBeNull();
    expect(delayOf(again, 'masterDown')).not.toBeNull();
  });

  test('when it has passed, the timer runs out under the lower one', () => {
    const router = delayed();
    router.sendAll(advert(100), { type: 'preemptDelay.elapsed' });
    expect(router.send(advert(100))).toEqual([]);
    router.sendAll(EXPIRED, looked());
    expect(router.state).toBe('master');
    expect(router.context.reason).toMatchObject({ code: 'preemption', peer: '10.9.0.9', peerPriority: 100 });
  });

  test('a lower master that dies is not waited for longer than any', () => {
    const router = delayed();
    router.sendAll(advert(100), EXPIRED);
    const effects = router.send(looked(0, 3414));
    expect(router.state).toBe('master');
    expect(cancelled(effects)).toContain('preemptDelay');
    expect(router.context.reason.code).toBe('masterDownExpired');
  });

  test('a higher master ends it, running or passed: the next lower one is left alone for the whole of it', () => {
    const running = delayed();
    expect(cancelled(running.sendAll(advert(100), advert(200)))).toContain('preemptDelay');
    expect(delayOf(running.send(advert(100)), 'preemptDelay')).toBe(60_000);
    const passed = delayed();
    passed.sendAll(advert(100), { type: 'preemptDelay.elapsed' }, advert(200));
    expect(delayOf(passed.send(advert(100)), 'preemptDelay')).toBe(60_000);
  });

  test('a lower master that leaves is followed after the skew time', () => {
    const router = delayed();
    expect(delayOf(router.sendAll(advert(100), advert(0)), 'masterDown')).toBe(skewMs({ version: 3 }, 150, 1000));
  });

  test.each([INTERFACE_DOWN, { type: 'router.stop' } as const])('$type ends it', (event) => {
    const router = delayed();
    expect(cancelled(router.sendAll(advert(100), event))).toContain('preemptDelay');
  });

  test('after a fault it is whole again', () => {
    const router = delayed();
    router.sendAll(advert(100), INTERFACE_DOWN, INTERFACE_UP);
    expect(delayOf(router.send(advert(100)), 'preemptDelay')).toBe(60_000);
  });

  test('an operator who promotes it does not wait', () => {
    const router = delayed();
    router.sendAll(advert(100), { type: 'operator.promote' });
    expect(router.state).toBe('master');
  });
});

describe('priority', () => {
  const T = 'tracker/pool/web';
  const priorityWith = (tracks: Track[], events: RouterEvent[], priority = 100): number => {
    const router = inBackup({ priority, track: tracks });
    if (events.length > 0) router.sendAll(...events);
    return effectivePriority(router.context);
  };

  test.each([
    ['a negative weight counts while down', [track(T, -60)], [told(T, false)], 40],
    ['a negative weight does not count while up', [track(T, -60)], [told(T, true)], 100],
    ['a positive weight counts while up', [track(T, 20)], [told(T, true)], 120],
    ['a positive weight does not count while down', [track(T, 20)], [told(T, false)], 100],
    ['what has told nothing counts as up: positive', [track(T, 20)], [], 120],
    ['what has told nothing counts as up: negative', [track(T, -20)], [], 100],
    ['reverse turns the direction: positive, up', [track(T, 20, true)], [told(T, true)], 80],
    ['reverse turns the direction: positive, down', [track(T, 20, true)], [told(T, false)], 100],
    ['reverse turns the direction: negative, down', [track(T, -20, true)], [told(T, false)], 120],
    ['reverse turns the direction: negative, up', [track(T, -20, true)], [told(T, true)], 100],
    ['a value is multiplied by the weight', [track(T, 2)], [told(T, true, 15)], 130],
    ['a negative value', [track(T, 2)], [told(T, true, -15)], 70],
    ['a value times a negative weight', [track(T, -1)], [told(T, true, 30)], 70],
    ['a value in reverse', [track(T, 1, true)], [told(T, true, 30)], 70],
    ['a value of 0 changes nothing', [track(T, 5)], [told(T, true, 0)], 100],
    [
      'several add up',
      [track(T, -30), track('tracker/file/x', 1)],
      [told(T, false), told('tracker/file/x', true, 7)],
      77,
    ],
    ['no lower than 1', [track(T, -253)], [told(T, false)], 1],
    ['no higher than 254', [track(T, 253)], [told(T, true)], 254],
    ['a tracker that is not its own does not count', [track(T, 20)], [told('tracker/pool/other', false)], 120],
  ] as [string, Track[], RouterEvent[], number][])('%s', (_name, tracks, events, expected) => {
    expect(priorityWith(tracks, events)).toBe(expected);
  });

  test('the owner’s is untouched by trackers, and has no parts', () => {
    const router = fresh({ priority: 255, track: [track(T, -100)] });
    router.sendAll(INTERFACE_UP, told(T, false));
    expect(effectivePriority(router.context)).toBe(255);
    expect(priorityParts(router.context)).toEqual([]);
    expect(sentBy(router.send({ type: 'advert.due' }))).toEqual([255]);
  });

  test('what makes it up is told part by part', () => {
    const router = inBackup({ track: [track(T, -30), track('tracker/file/x', 2)] });
    router.sendAll(told(T, false), told('tracker/file/x', true, 4));
    expect(priorityParts(router.context)).toEqual([
      { tracker: T, change: -30, message: `${T} is broken` },
      { tracker: 'tracker/file/x', change: 8, message: 'tracker/file/x is fine' },
    ]);
  });

  test.each([false, true])('without weight: FAULT while it is down, or in reverse (%s) while it is up', (reverse) => {
    const router = inBackup({ track: [track(T, 0, reverse)] });
    router.send(told(T, reverse));
    expect(router.state).toBe('fault');
    expect(router.context.reason.detail).toMatch(T);
    router.send(told(T, !reverse));
    expect(router.state).toBe('backup.listening');
  });

  test('with a weight it never puts it into FAULT', () => {
    const router = inMaster({ track: [track(T, -253)] });
    router.send(told(T, false));
    expect(router.state).toBe('master');
    expect(sentBy(router.send({ type: 'advert.due' }))).toEqual([1]);
  });

  test('a change in BACKUP moves the running deadline by the difference and does not restart it', () => {
    const router = inBackup({ track: [track(T, -60)] });
    const effects = router.send(told(T, false));
    expect(movedBy(effects)).toBe((60 / 256) * 1000);
    expect(delayOf(effects, 'masterDown')).toBeNull();
    expect(movedBy(router.send(told(T, true)))).toBe((-60 / 256) * 1000);
  });

  test('the difference is of the master’s interval', () => {
    const router = inBackup({ track: [track(T, -60)] });
    router.send(advert(200, { advertMs: 4000 }));
    expect(movedBy(router.send(told(T, false)))).toBe((60 / 256) * 4000);
  });

  test('while only the skew time is waited for, the difference is the same', () => {
    const router = inBackup({ track: [track(T, -60)] });
    router.sendAll(advert(200), advert(0));
    expect(movedBy(router.send(told(T, false)))).toBe((60 / 256) * 1000);
  });

  test('in microseconds: at 10 ms a priority of 101 runs out 39 µs before one of 100', () => {
    const scenario = new Scenario();
    for (const [id, priority] of [
      ['router/a', 100],
      ['router/b', 101],
    ] as const) {
      const settings = { ...SETTINGS, vrid: priority, priority, advertMs: 10, addresses: [] };
      scenario.play(start(id, 'vrrpRouter', { name: id.slice(7), settings }), send(id, 'interface.up', INTERFACE_UP));
    }
    scenario.play(wait(40));
    const first = (id: string) => scenario.adverts.find(({ router }) => router === id)!.ms;
    expect(first('router/a')).toBe(36.094);
    expect(first('router/b')).toBe(36.055);
  });

  test('a deadline that moves is the old one plus the difference, to the microsecond', () => {
    const settings = { ...SETTINGS, advertMs: 10, addresses: [], track: [track(T, -50)] };
    const scenario = new Scenario().play(
      start('router/gw', 'vrrpRouter', { name: 'gw', settings }),
      send('router/gw', 'interface.up', INTERFACE_UP),
      wait(20),
      send('router/gw', 'tracker.changed', told(T, false)),
    );
    // 36.09375 and 50/256 of 10 ms.
    expect(scenario.system.nextDeadlineUs()).toBe(36_094 + 1953);
    scenario.play(send('router/gw', 'tracker.changed', told(T, true)));
    expect(scenario.system.nextDeadlineUs()).toBe(36_094);
  });

  test('a deadline that moves to before the present is no late loop: it is master at once, and says so', () => {
    const settings = { ...SETTINGS, priority: 1, addresses: [] };
    const scenario = new Scenario().play(
      start('router/gw', 'vrrpRouter', { name: 'gw', settings }),
      send('router/gw', 'interface.up', INTERFACE_UP),
      // The timer would run out at 3996 ms; of priority 254 it would have at 3008.
      wait(3900),
      send('router/gw', 'settings.changed', { settings: { ...settings, priority: 254 } }),
      wait(0),
    );
    expect(scenario.stateOf('router/gw')).toBe('master');
    const { reason } = scenario.system.get('router/gw')!.context as RouterContext;
    expect(reason).toMatchObject({ code: 'masterDownExpired', priority: 254, lateMs: 0 });
  });

  test('a master that is lower now says so with its next advert, and gives way to a higher one', () => {
    const router = inMaster({ track: [track(T, -60)] });
    expect(sentBy(router.send(told(T, false)))).toEqual([]);
    expect(sentBy(router.send({ type: 'advert.due' }))).toEqual([40]);
    router.send(advert(41));
    expect(router.state).toBe('backup.listening');
  });
});

describe('a late loop', () => {
  test('an advert that is found while it looks keeps it in backup, and the answer of the look changes nothing', () => {
    const router = inBackup();
    router.sendAll(advert(200), EXPIRED);
    expect(router.state).toBe('backup.deciding');
    expect(delayOf(sendSteady(router, advert(200)), 'masterDown')).toBe(3609.375);
    expect(router.state).toBe('backup.listening');
    expect(sendSteady(router, looked(3000, 0))).toEqual([]);
  });

  test('priority 0 that is found while it looks is waited for by the skew time', () => {
    const router = inBackup();
    router.sendAll(advert(200), EXPIRED);
    expect(delayOf(router.send(advert(0)), 'masterDown')).toBe(609.375);
    expect(router.state).toBe('backup.listening');
  });

  test('a lower advert that is found does not keep it from preempting', () => {
    const router = inBackup();
    router.sendAll(EXPIRED, advert(50), looked(0, 0));
    expect(router.state).toBe('master');
    expect(router.context.reason).toMatchObject({ code: 'preemption', peerPriority: 50 });
  });

  test('late by more than half an interval: one skew time more, once', () => {
    const router = inBackup();
    router.send(EXPIRED);
    expect(delayOf(router.send(looked(500.1)), 'masterDown')).toBe(609.375);
    expect(router.state).toBe('backup.listening');
    router.sendAll(EXPIRED, looked(9999));
    expect(router.state).toBe('master');
  });

  test('late by half an interval is not late', () => {
    const router = inBackup();
    router.sendAll(EXPIRED, looked(500));
    expect(router.state).toBe('master');
  });

  test('half of the master’s interval, not of its own', () => {
    const router = inBackup();
    router.sendAll(advert(200, { advertMs: 100 }), EXPIRED, looked(51));
    expect(router.state).toBe('backup.listening');
  });

  test('an accepted advert gives the grace back', () => {
    const router = inBackup();
    router.sendAll(EXPIRED, looked(9999), advert(200), EXPIRED, looked(9999));
    expect(router.state).toBe('backup.listening');
  });

  test('lateness and silence are evidence', () => {
    const router = inBackup();
    router.sendAll(advert(200), EXPIRED, looked(12, 3621));
    expect(router.context.reason).toEqual({
      code: 'masterDownExpired',
      priority: 100,
      peer: '10.9.0.9',
      peerPriority: 200,
      silentMs: 3621,
      masterDownMs: 3609.375,
      lateMs: 12,
    });
  });

  test('a loop that stalls for longer than the master-down time finds the adverts that waited', () => {
    const settings = { ...SETTINGS, addresses: [] };
    const heard = { address: '10.9.0.9', key: '0a090009' };
    const scenario = new Scenario({ wire: { delayMs: () => 5, reaches: () => true } }).play(
      start('router/gw', 'vrrpRouter', { name: 'gw', settings }),
      send('router/gw', 'interface.up', INTERFACE_UP),
      wait(3600),
      // Its advert is on the wire when the loop stops.
      start('router/peer', 'vrrpRouter', { name: 'peer', settings: { ...settings, priority: 255 } }),
      send('router/peer', 'interface.up', heard),
      stall(900),
    );
    expect(scenario.stateOf('router/gw')).toBe('backup.listening');
    expect(scenario.adverts.filter(({ router }) => router === 'router/gw')).toEqual([]);
    expect(scenario.system.counters.unhandled).toBe(0);
  });

  test('a master that has slept for longer than peers wait gives its addresses back and is backup', () => {
    const router = inMaster();
    const effects = router.send({ type: 'advert.overslept', silentMs: 5000 });
    expect(router.state).toBe('backup.listening');
    expect(sentBy(effects)).toEqual([]);
    expect(addressTold(effects)).toEqual(['address.release']);
    expect(delayOf(effects, 'masterDown')).toBe(3609.375);
    expect(router.context.reason).toEqual({ code: 'overslept', priority: 100, silentMs: 5000 });
    expect(sendSteady(router, { type: 'advert.overslept', silentMs: 5000 })).toEqual([]);
  });
});

describe('hand-over', () => {
  test.each([
    [{}, 2000],
    [{ advertMs: 3000 }, 6000],
    [{ version: 2, advertMs: 3000 }, 4000],
  ] as const)(
    'router.stop, %o: priority 0, and the addresses stay while the slowest successor waits',
    (settings, holdMs) => {
      const router = inMaster(settings);
      const effects = router.send({ type: 'router.stop' });
      expect(sentBy(effects)).toEqual([0]);
      expect(toldTo(effects, VIP)).toEqual([{ type: 'address.handOver', holdMs }]);
      expect(router.context.handingOver).toBe(true);
    },
  );

  describe.each([{ type: 'operator.demote' }, { type: 'group.backup', router: 'router/x' }] as const)(
    '$type',
    (event) => {
      test.each([
        [{}, 5000],
        [{ advertMs: 3000 }, 15_000],
        [{ version: 2, advertMs: 3000 }, 13_000],
      ] as const)(
        '%o: priority 0, and the addresses stay until it would be master again itself',
        (settings, holdMs) => {
          const router = inMaster(settings);
          const effects = router.send(event);
          expect(sentBy(effects)).toEqual([0]);
          expect(toldTo(effects, VIP)).toEqual([{ type: 'address.handOver', holdMs }]);
          expect(router.context.handingOver).toBe(true);
          expect(delayOf(effects, 'masterDown')).toBeLessThan(holdMs);
        },
      );
    },
  );

  test('a demoted router that finds no successor is master again before it lets go', () => {
    const scenario = new Scenario().play(
      start(VIP, 'virtualAddress', {
        router: 'router/gw',
        address: '10.9.0.100',
        settings: { repeat: 5, delayMs: 0, refreshMs: 0, refreshRepeat: 1, retryMs: 1000 },
      }),
      start('router/gw', 'vrrpRouter', { name: 'gw', settings: SETTINGS }),
      send('router/gw', 'interface.up', INTERFACE_UP),
      wait(5000),
      send('router/gw', 'operator.demote'),
    );
    expect(scenario.stateOf('router/gw')).toBe('backup.listening');
    for (let ms = 0; ms < 10_000; ms += 10) {
      expect([...scenario.held]).toEqual([VIP]);
      scenario.play(wait(10));
    }
    expect(scenario.stateOf('router/gw')).toBe('master');
    expect(scenario.stateOf(VIP)).toBe('held');
  });

  test.each([
    [{ type: 'operator.demote' }, 'backup.listening'],
    [{ type: 'router.stop' }, 'initialize.stopped'],
  ] as const)('after %o the first advert of a successor ends it', (event, state) => {
    const router = inMaster();
    router.send(event);
    expect(addressTold(router.send(advert(100)))).toEqual(['address.release']);
    expect(router.context.handingOver).toBe(false);
    expect(router.state).toBe(state);
    expect(addressTold(router.send(advert(100)))).toEqual([]);
  });

  test('a successor of lower priority is one as well', () => {
    const router = inMaster();
    router.send({ type: 'group.backup', router: 'router/x' });
    expect(addressTold(router.send(advert(1)))).toEqual(['address.release']);
  });

  test.each(['operator.demote', 'router.stop'] as const)('somebody who leaves is no successor: %s', (type) => {
    const router = inMaster();
    router.send({ type });
    expect(addressTold(router.send(advert(0)))).toEqual([]);
    expect(router.context.handingOver).toBe(true);
  });

  test('when nobody takes over it is master again, and takes the addresses back', () => {
    const router = inMaster();
    router.sendAll({ type: 'operator.demote' }, EXPIRED);
    expect(addressTold(router.send(looked()))).toEqual(['address.acquire']);
    expect(router.context.handingOver).toBe(false);
    expect(effectivePriority(router.context)).toBe(1);
  });

  test('a fault that comes meanwhile leaves them to the hold time', () => {
    const router = inMaster();
    router.sendAll({ type: 'operator.demote' }, INTERFACE_DOWN);
    expect(router.state).toBe('fault');
    expect(addressTold(router.send(advert(100)))).toEqual(['address.release']);
  });
});

describe('operators', () => {
  test('demote in backup: priority 1, and the deadline moves by the difference', () => {
    const router = inBackup();
    expect(movedBy(router.send({ type: 'operator.demote' }))).toBe((99 / 256) * 1000);
    expect(effectivePriority(router.context)).toBe(1);
    expect(router.state).toBe('backup.listening');
  });

  test('promote after demote takes the demotion back', () => {
    const router = inBackup();
    router.sendAll({ type: 'operator.demote' }, { type: 'operator.promote' });
    expect(router.context.intent).toBe('none');
    expect(effectivePriority(router.context)).toBe(100);
    expect(router.state).toBe('backup.listening');
  });

  test('promote in backup: 254, and master at once, even without preemption', () => {
    const router = inBackup({ preempt: false });
    const effects = router.sendAll(advert(200), { type: 'operator.promote' });
    expect(router.state).toBe('master');
    expect(sentBy(effects)).toEqual([254]);
    expect(cancelled(effects)).toContain('masterDown');
    expect(router.context.reason).toEqual({
      code: 'operator',
      priority: 254,
      detail: 'promoted',
      peer: '10.9.0.9',
      peerPriority: 200,
    });
  });

  test('what an operator had wanted before a restart is remembered, and nothing to act on before the timer has run', () => {
    const router = inBackup();
    const effects = router.send({ type: 'operator.promote', restored: true });
    expect([router.state, sentBy(effects)]).toEqual(['backup.listening', []]);
    expect(effectivePriority(router.context)).toBe(254);
  });

  test.each([254, 255])('promote under a master of %i does not make a second one', (priority) => {
    const router = inBackup();
    router.sendAll(advert(priority), { type: 'operator.promote' });
    expect(router.state).toBe('backup.listening');
    expect(effectivePriority(router.context)).toBe(254);
  });

  test('promote in master: 254 from the next advert', () => {
    const router = inMaster();
    router.send({ type: 'operator.promote' });
    expect(router.state).toBe('master');
    expect(sentBy(router.send({ type: 'advert.due' }))).toEqual([254]);
  });

  test('promote while it looks', () => {
    const router = inBackup();
    router.sendAll(EXPIRED, { type: 'operator.promote' });
    expect(router.state).toBe('master');
    expect(sendSteady(router, looked())).toEqual([]);
  });

  test('demote in master: backup with priority 1', () => {
    const router = inMaster();
    const effects = router.send({ type: 'operator.demote' });
    expect(router.state).toBe('backup.listening');
    expect(delayOf(effects, 'masterDown')).toBe(masterDownMs({ version: 3 }, 1, 1000));
    expect(router.context.reason).toEqual({ code: 'operator', priority: 1, detail: 'demoted' });
    // Whoever comes is higher now.
    expect(delayOf(router.send(advert(2)), 'masterDown')).not.toBeNull();
  });

  test('the owner is not changed: demoted it would be master again in three intervals', () => {
    const router = fresh({ priority: 255 });
    router.send(INTERFACE_UP);
    expect(router.send({ type: 'operator.demote' })).toEqual([]);
    expect(router.state).toBe('master');
  });

  test.each(['operator.demote', 'operator.promote'] as const)('%s in fault and initialize is remembered', (type) => {
    const priority = type === 'operator.demote' ? 1 : 254;
    const faulty = inFault();
    faulty.sendAll({ type }, INTERFACE_UP);
    expect(faulty.state).toBe('backup.listening');
    expect(effectivePriority(faulty.context)).toBe(priority);
    const young = fresh();
    young.sendAll({ type }, INTERFACE_UP);
    expect(effectivePriority(young.context)).toBe(priority);
  });

  test.each([
    ['initialize', () => fresh()],
    ['backup while it looks', () => inDeciding()],
    ['backup while it waits for its group', () => willing()],
    ['master', () => inMaster()],
    ['fault', () => inFault()],
  ])('in %s no master-down timer runs, and none is moved', (_state, make) => {
    for (const event of [
      changedTo({ priority: 200, track: [track('tracker/x', 50)] }),
      { type: 'operator.promote' },
      { type: 'operator.demote' },
    ] as RouterEvent[]) {
      const router = make();
      const before = effectivePriority(router.context);
      expect(movedBy(router.send(event))).toBeNull();
      expect(effectivePriority(router.context)).not.toBe(before);
    }
    const tracking = make();
    tracking.send(changedTo({ track: [track('tracker/x', 50)] }));
    expect(movedBy(tracking.send(told('tracker/x', false)))).toBeNull();
  });

  test('a demoted router does not change with its trackers', () => {
    const router = inBackup({ track: [track('tracker/x', 50)] });
    router.send({ type: 'operator.demote' });
    expect(movedBy(router.send(told('tracker/x', false)))).toBeNull();
    expect(effectivePriority(router.context)).toBe(1);
  });
});

describe('conflicts', () => {
  const discarded = (host: number, kind = 'authentication', peer = 'none'): RouterEvent => ({
    type: 'advert.discarded',
    kind,
    source: `10.9.0.${host}`,
    field: 'authentication',
    own: 'pass',
    peer,
  });

  test.each([
    ['initialize', () => fresh()],
    ['backup', () => inBackup()],
    ['master', () => inMaster()],
    ['fault', () => inFault()],
  ])('in %s: what is discarded of a live peer for its configuration is a state', (_state, make) => {
    const router = make();
    const { state } = router;
    const effects = router.send(discarded(7));
    expect(router.state).toBe(state);
    expect(router.context.conflicts).toEqual({
      '10.9.0.7': { kind: 'authentication', field: 'authentication', own: 'pass', peer: 'none' },
    });
    expect(delayOf(effects, 'conflict 10.9.0.7')).toBe(10_000);
    expect(typesOf(effects)).toEqual(['timer']);
  });

  test('the same again changes nothing but the time until it is forgotten', () => {
    const router = inBackup();
    router.send(discarded(7));
    expect(delayOf(sendSteady(router, discarded(7)), 'conflict 10.9.0.7')).toBe(10_000);
  });

  test('another one of the same peer takes its place', () => {
    const router = inBackup();
    router.sendAll(discarded(7), discarded(7, 'authentication', 'ah'));
    expect(router.context.conflicts['10.9.0.7']?.peer).toBe('ah');
  });

  test('it stays for at least five seconds, however short the interval', () => {
    expect(delayOf(inBackup({ advertMs: 10 }).send(discarded(7)), 'conflict 10.9.0.7')).toBe(5000);
  });

  test('silence ends it', () => {
    const router = inBackup();
    router.sendAll(discarded(7), discarded(8), { type: 'conflict.silent', source: '10.9.0.7' });
    expect(Object.keys(router.context.conflicts)).toEqual(['10.9.0.8']);
  });

  test.each([
    ['backup', () => inBackup()],
    ['master', () => inMaster()],
  ])('in %s a good advert of the same peer ends it', (_state, make) => {
    const router = make();
    const effects = router.sendAll(discarded(9), advert(50));
    expect(router.context.conflicts).toEqual({});
    expect(cancelled(effects)).toContain('conflict 10.9.0.9');
  });

  test('no more than eight peers are remembered, and those go on being', () => {
    const router = inBackup();
    for (let host = 10; host < 30; host++) router.send(discarded(host));
    expect(Object.keys(router.context.conflicts)).toHaveLength(8);
    expect(sendSteady(router, discarded(29))).toEqual([]);
    expect(delayOf(router.send(discarded(10)), 'conflict 10.9.0.10')).toBe(10_000);
  });
});

describe('differences', () => {
  const differing = (host: number, ...differences: { field: string; own: string; peer: string }[]): RouterEvent =>
    ({ ...advert(200, { host }), differences }) as RouterEvent;
  const INTERVAL = { field: 'interval', own: '1000', peer: '2000' };

  test('what an accepted advert says otherwise is remembered once, and forgotten when it agrees', () => {
    const router = inBackup();
    router.send(differing(9, INTERVAL));
    expect(router.context.differences).toEqual({ '10.9.0.9': [INTERVAL] });
    sendSteady(router, differing(9, { ...INTERVAL }));
    router.send(differing(9));
    expect(router.context.differences).toEqual({});
    sendSteady(router, differing(9));
  });

  test.each([
    ['master', () => inMaster({ priority: 250 })],
    ['fault', () => inFault()],
    ['initialize', () => fresh()],
  ])('in %s as well', (_state, make) => {
    const router = make();
    router.send(differing(9, INTERVAL));
    expect(router.context.differences['10.9.0.9']).toEqual([INTERVAL]);
  });

  test('no more than eight peers are remembered: sources can be forged', () => {
    const router = inBackup();
    for (let host = 10; host < 30; host++) router.send(differing(host, INTERVAL));
    expect(Object.keys(router.context.differences)).toHaveLength(8);
    router.send(differing(10, { ...INTERVAL, peer: '3000' }));
    expect(router.context.differences['10.9.0.10']).toEqual([{ ...INTERVAL, peer: '3000' }]);
  });
});

describe('settings.changed', () => {
  test('in initialize: taken', () => {
    const router = fresh();
    router.sendAll(changedTo({ priority: 120 }), INTERFACE_UP);
    expect(effectivePriority(router.context)).toBe(120);
    expect(router.state).toBe('backup.listening');
  });

  test('in backup: another priority moves the deadline, and nothing restarts', () => {
    const router = inBackup();
    const effects = router.send(changedTo({ priority: 228 }));
    expect(movedBy(effects)).toBe(-500);
    expect(delayOf(effects, 'masterDown')).toBeNull();
    expect(router.state).toBe('backup.listening');
  });

  test('in backup without a master: another interval moves the deadline by all of the difference', () => {
    expect(movedBy(inBackup().send(changedTo({ advertMs: 2000 })))).toBe(3609.375);
  });

  test('in backup under a master of version 3 its own interval does not matter', () => {
    const router = inBackup();
    router.send(advert(200));
    expect(movedBy(router.send(changedTo({ advertMs: 2000 })))).toBeNull();
  });

  test('in backup while only the skew time is waited for, another interval moves by the skew alone', () => {
    const router = inBackup({ version: 2 });
    router.sendAll(advert(200), advert(0));
    expect(movedBy(router.send(changedTo({ version: 2, advertMs: 2000 })))).toBeNull();
  });

  test('in master: an advert at once, as peers count by the old interval until they hear of the new one', () => {
    const router = inMaster();
    const effects = router.send(changedTo({ advertMs: 10_000, priority: 90 }));
    expect(router.state).toBe('master');
    expect(sentBy(effects)).toEqual([90]);
    expect(delayOf(effects, 'advert')).toBe(10_000);
  });

  test('in master: new addresses are taken, and those that are gone given back', () => {
    const effects = inMaster().send(changedTo({ addresses: [VIP2] }));
    expect(addressTold(effects)).toEqual(['address.release']);
    expect(addressTold(effects, VIP2)).toEqual(['address.acquire']);
  });

  test('in fault: it stays there, and is not backup for a moment', () => {
    const settings = { track: [track('tracker/script/a', 0)] };
    const router = inBackup(settings);
    router.send(told('tracker/script/a', false));
    const effects = router.send(changedTo(settings));
    expect(router.state).toBe('fault');
    expect(noticeOf(effects)).toBeNull();
    expect(toldTo(effects, 'tracker/script/a')).toEqual([{ type: 'tracker.asked', router: 'router/gw' }]);
  });

  test('in fault: what is not tracked any more, or has a weight now, does not hold it there', () => {
    for (const after of [[], [track('tracker/script/a', -50)]]) {
      const router = inBackup({ track: [track('tracker/script/a', 0)] });
      router.sendAll(told('tracker/script/a', false), changedTo({ track: after }));
      expect(router.state).toBe('backup.listening');
    }
  });

  test('a tracker that loses its weight while it is down puts it into fault', () => {
    const router = inMaster({ track: [track('tracker/script/a', -50)] });
    router.sendAll(told('tracker/script/a', false), changedTo({ track: [track('tracker/script/a', 0)] }));
    expect(router.state).toBe('fault');
  });

  test('an address that is not its own any more does not hold it in fault', () => {
    const router = inMaster({ addresses: [VIP, VIP2] });
    router.sendAll(
      { type: 'address.failed', address: VIP2, code: 'E', message: 'no' },
      changedTo({ addresses: [VIP] }),
    );
    expect(router.state).toBe('backup.listening');
  });

  test('a fault that a reload ends is told to the sync group', () => {
    const settings = { group: GROUP, track: [track('tracker/script/a', 0)] };
    const router = inBackup(settings);
    router.send(told('tracker/script/a', false));
    const effects = router.send(changedTo({ ...settings, track: [] }));
    expect(toldTo(effects, GROUP)[0]).toEqual({ type: 'member.faults', router: 'router/gw', faulty: false });
  });
});

describe('router.stop', () => {
  test.each([
    ['initialize', () => fresh({ startDelayMs: 1000 }), []],
    ['backup', () => inBackup(), []],
    ['master', () => inMaster(), [0]],
    ['fault', () => inFault(), []],
  ] as [string, () => Router, number[]][])('from %s', (_state, make, adverts) => {
    const router = make();
    const effects = router.send({ type: 'router.stop' });
    expect(router.state).toBe('initialize.stopped');
    expect(sentBy(effects)).toEqual(adverts);
    expect(noticeOf(effects)).toMatchObject({ state: 'STOP', reason: { code: 'shutdown' } });
    expect(cancelled(effects)).toContain(_state === 'master' ? 'advert' : 'masterDown');
  });

  test('it cancels the start delay', () => {
    expect(cancelled(fresh({ startDelayMs: 1000 }).send({ type: 'router.stop' }))).toContain('startDelay');
  });

  test('while it looks', () => {
    const router = inBackup();
    router.sendAll(EXPIRED, { type: 'router.stop' }, looked());
    expect(router.state).toBe('initialize.stopped');
  });

  test('nothing brings it back', () => {
    const router = inMaster();
    router.send({ type: 'router.stop' });
    for (const event of [
      INTERFACE_DOWN,
      INTERFACE_UP,
      advert(1),
      { type: 'operator.promote' },
      { type: 'group.master', router: 'router/x' },
      { type: 'group.fault', router: 'router/x' },
      { type: 'group.cleared' },
      { type: 'router.stop' },
    ] as RouterEvent[])
      router.send(event);
    expect(router.state).toBe('initialize.stopped');
  });
});

describe('in a sync group', () => {
  const grouped = { group: GROUP };
  const OTHER = 'router/other';

  test('it says when it is fit, and takes no part before all are', () => {
    const router = fresh(grouped);
    expect(toldTo(router.send(INTERFACE_UP), GROUP)).toEqual([
      { type: 'member.faults', router: 'router/gw', faulty: false },
    ]);
    expect(router.state).toBe('initialize.waiting');
    const effects = router.send({ type: 'group.cleared' });
    expect(router.state).toBe('backup.listening');
    expect(toldTo(effects, GROUP)).toEqual([{ type: 'member.state', router: 'router/gw', state: 'BACKUP' }]);
  });

  test('a fault of its own is told once, before the state that it leads to', () => {
    const router = inMaster(grouped);
    expect(toldTo(router.send(INTERFACE_DOWN), GROUP)).toEqual([
      { type: 'member.faults', router: 'router/gw', faulty: true },
      { type: 'member.state', router: 'router/gw', state: 'FAULT' },
    ]);
    expect(toldTo(router.send(INTERFACE_DOWN), GROUP)).toEqual([]);
  });

  test('a fault of another is no fault of its own', () => {
    const router = inMaster(grouped);
    const effects = router.send({ type: 'group.fault', router: OTHER });
    expect(router.state).toBe('fault');
    expect(sentBy(effects)).toEqual([0]);
    expect(toldTo(effects, GROUP).map(({ type }) => type)).toEqual(['member.state']);
    expect(router.context.reason).toMatchObject({ code: 'fault', detail: `${OTHER} of its sync group is in FAULT` });
    router.send({ type: 'group.cleared' });
    expect(router.state).toBe('backup.listening');
  });

  test('words for what is only not known yet are not in the reason', () => {
    const router = fresh(grouped);
    router.send(INTERFACE_DOWN);
    expect(router.context.reason.detail).toBe('eth0 is down');
  });

  const wishes = (effects: Effect[]): boolean[] =>
    toldTo(effects, GROUP)
      .filter(({ type }) => type === 'member.wants')
      .map((event) => (event as unknown as { wants: boolean }).wants);

  test('when it would be master it says so and waits: no advert, no address, no timer', () => {
    const router = inBackup(grouped);
    router.send(EXPIRED);
    const effects = router.send(looked());
    expect(router.state).toBe('backup.willing');
    expect(toldTo(effects, GROUP)).toEqual([{ type: 'member.wants', router: 'router/gw', wants: true }]);
    expect(effects).toHaveLength(1);
  });

  test('a late loop is given its grace before it says so', () => {
    const router = inBackup(grouped);
    router.send(EXPIRED);
    expect(wishes(router.send(looked(9999)))).toEqual([]);
    expect(router.state).toBe('backup.listening');
  });

  test('when all are willing it is master, in the order of RFC 9568 section 6.4.2', () => {
    const router = willing();
    const effects = router.send({ type: 'group.master', router: OTHER });
    expect(router.state).toBe('master');
    expect(typesOf(effects)).toEqual(['tell', 'sendAdvert', 'tell', 'timer', 'notify', 'tell']);
    expect(sentBy(effects)).toEqual([100]);
    expect(addressTold(effects)).toEqual(['address.acquire']);
    expect(toldTo(effects, GROUP)).toEqual([
      { type: 'member.wants', router: 'router/gw', wants: false },
      { type: 'member.state', router: 'router/gw', state: 'MASTER' },
    ]);
  });

  test.each<[string, RouterEvent[], Partial<Reason>]>([
    ['masterDownExpired', [advert(200)], { masterDownMs: 3609.375, peerPriority: 200 }],
    ['priorityZero', [advert(200), advert(0)], { masterDownMs: 609.375, peerPriority: 200 }],
    ['preemption', [advert(99)], { masterDownMs: 3609.375, peerPriority: 99 }],
  ])('its reason is then what it saw itself: %s', (code, before, evidence) => {
    const router = willing({}, ...before);
    router.send({ type: 'group.master', router: OTHER });
    const { reason } = router.context;
    expect(reason).toEqual({ code, priority: 100, peer: '10.9.0.9', silentMs: 3612, lateMs: 2, ...evidence });
  });

  test('a lower master that it hears while it waits does not keep it from preempting', () => {
    const router = willing();
    expect(wishes(router.send(advert(99)))).toEqual([]);
    expect(router.state).toBe('backup.willing');
    router.send({ type: 'group.master', router: OTHER });
    expect(router.context.reason).toMatchObject({ code: 'preemption', peerPriority: 99 });
  });

  test.each<[string, Partial<RouterSettings>, RouterEvent, number]>([
    ['a master', {}, advert(100), 3609.375],
    ['a master that leaves', {}, advert(0), 609.375],
    ['a lower master that it does not preempt', { preempt: false }, advert(1), 3609.375],
    ['a lower master during the preempt delay', { preemptDelayMs: 9000 }, advert(1), 3609.375],
  ])('%s that it hears ends it: the timer is set again', (_who, settings, event, waitMs) => {
    const router = willing(settings);
    const effects = router.send(event);
    expect(router.state).toBe('backup.listening');
    expect(wishes(effects)).toEqual([false]);
    expect(delayOf(effects, 'masterDown')).toBe(waitMs);
    // What it saw is of a silence that is over.
    router.send({ type: 'group.master', router: OTHER });
    expect(router.context.reason).toMatchObject({ code: 'group', detail: OTHER });
    expect(router.context.reason.silentMs).toBeUndefined();
  });

  test('a fault ends it: of its own', () => {
    const router = willing();
    expect(toldTo(router.send(INTERFACE_DOWN), GROUP)).toEqual([
      { type: 'member.faults', router: 'router/gw', faulty: true },
      { type: 'member.wants', router: 'router/gw', wants: false },
      { type: 'member.state', router: 'router/gw', state: 'FAULT' },
    ]);
    expect(router.context.looked).toBeNull();
  });

  test('a fault ends it: of another, and afterwards it waits for a whole master-down time', () => {
    const router = willing();
    expect(wishes(router.send({ type: 'group.fault', router: OTHER }))).toEqual([false]);
    expect(router.state).toBe('fault');
    expect(delayOf(router.send({ type: 'group.cleared' }), 'masterDown')).toBe(3609.375);
    expect(router.state).toBe('backup.listening');
  });

  test('a stop ends it, without an advert', () => {
    const router = willing();
    const effects = router.send({ type: 'router.stop' });
    expect(router.state).toBe('initialize.stopped');
    expect(sentBy(effects)).toEqual([]);
    expect(toldTo(effects, GROUP)).toEqual([
      { type: 'member.wants', router: 'router/gw', wants: false },
      { type: 'member.state', router: 'router/gw', state: 'STOP' },
    ]);
  });

  test('an operator who promotes it makes it master, and the group is told', () => {
    const router = willing();
    const effects = router.send({ type: 'operator.promote' });
    expect(router.state).toBe('master');
    expect(wishes(effects)).toEqual([false]);
    expect(toldTo(effects, GROUP).at(-1)).toMatchObject({ type: 'member.state', state: 'MASTER' });
  });

  test('one that is demoted while it waits gives way to whoever speaks', () => {
    const router = willing({}, advert(50));
    router.send({ type: 'operator.demote' });
    expect(router.state).toBe('backup.willing');
    router.send(advert(50));
    expect(router.state).toBe('backup.listening');
  });

  test('an owner waits for nobody', () => {
    const router = fresh({ ...grouped, priority: 255 });
    router.sendAll(INTERFACE_UP, { type: 'group.cleared' });
    expect(router.state).toBe('master');
  });

  test('it follows to master from backup, and while it looks', () => {
    for (const before of [[], [EXPIRED]] as RouterEvent[][]) {
      const router = inBackup(grouped);
      const effects = router.sendAll(...before, { type: 'group.master', router: OTHER });
      expect(router.state).toBe('master');
      expect(cancelled(effects)).toContain('masterDown');
      expect(sentBy(effects)).toEqual([100]);
      expect(router.context.reason).toMatchObject({ code: 'group', detail: OTHER });
      sendSteady(router, looked());
    }
  });

  test('it follows to backup, says priority 0 and hands over', () => {
    const router = inMaster(grouped);
    const effects = router.send({ type: 'group.backup', router: OTHER });
    expect(router.state).toBe('backup.listening');
    expect(sentBy(effects)).toEqual([0]);
    expect(router.context.reason).toMatchObject({ code: 'group', detail: OTHER });
  });

  test('what the group says where it is already, or can’t be, changes nothing', () => {
    sendSteady(inMaster(grouped), { type: 'group.master', router: OTHER });
    sendSteady(inBackup(grouped), { type: 'group.backup', router: OTHER });
    sendSteady(willing(), { type: 'group.backup', router: OTHER });
    sendSteady(fresh(grouped), { type: 'group.master', router: OTHER });
    const faulty = inFault(grouped);
    sendSteady(faulty, { type: 'group.master', router: OTHER });
    expect(faulty.state).toBe('fault');
  });
});

describe('why it is in its state: every reason with its evidence', () => {
  const reasonAfter = (router: Router, ...events: RouterEvent[]): Reason => {
    const effects = router.sendAll(...events);
    const { reason } = router.context;
    expect(noticeOf(effects)?.reason).toEqual(reason);
    return reason;
  };

  test.each<[string, () => Router, RouterEvent[], Reason]>([
    ['startup', () => fresh(), [INTERFACE_UP], { code: 'startup', priority: 100 }],
    ['owner', () => fresh({ priority: 255 }), [INTERFACE_UP], { code: 'owner', priority: 255 }],
    [
      'masterDownExpired without a master',
      () => inBackup(),
      [EXPIRED, looked(1, null)],
      { code: 'masterDownExpired', priority: 100, silentMs: null, masterDownMs: 3609.375, lateMs: 1 },
    ],
    [
      'masterDownExpired',
      () => inBackup(),
      [advert(200, { advertMs: 100 }), EXPIRED, looked(0.5, 361)],
      {
        code: 'masterDownExpired',
        priority: 100,
        peer: '10.9.0.9',
        peerPriority: 200,
        silentMs: 361,
        masterDownMs: 360.9375,
        lateMs: 0.5,
      },
    ],
    [
      'priorityZero',
      () => inBackup(),
      [advert(200), advert(0), EXPIRED, looked(0, 610)],
      {
        code: 'priorityZero',
        priority: 100,
        peer: '10.9.0.9',
        peerPriority: 200,
        silentMs: 610,
        masterDownMs: 609.375,
        lateMs: 0,
      },
    ],
    [
      'preemption',
      () => inBackup(),
      [advert(99), EXPIRED, looked(0, 100)],
      {
        code: 'preemption',
        priority: 100,
        peer: '10.9.0.9',
        peerPriority: 99,
        silentMs: 100,
        masterDownMs: 3609.375,
        lateMs: 0,
      },
    ],
    [
      'higherPriority',
      () => inMaster(),
      [advert(101)],
      { code: 'higherPriority', priority: 100, peer: '10.9.0.9', peerPriority: 101 },
    ],
    [
      'tieLost',
      () => inMaster(),
      [advert(100)],
      { code: 'tieLost', priority: 100, peer: '10.9.0.9', peerPriority: 100 },
    ],
    [
      'overslept',
      () => inMaster(),
      [{ type: 'advert.overslept', silentMs: 4000 }],
      { code: 'overslept', priority: 100, silentMs: 4000 },
    ],
    ['fault', () => inMaster(), [INTERFACE_DOWN], { code: 'fault', priority: 100, detail: 'eth0 is down' }],
    ['faultCleared', () => inFault(), [INTERFACE_UP], { code: 'faultCleared', priority: 100 }],
    ['operator', () => inMaster(), [{ type: 'operator.demote' }], { code: 'operator', priority: 1, detail: 'demoted' }],
    [
      'group, when a reload has moved it',
      () => inBackup({ group: GROUP }),
      [{ type: 'group.master', router: null }],
      { code: 'group', priority: 100 },
    ],
    [
      'group',
      () => inBackup({ group: GROUP }),
      [advert(200), { type: 'group.master', router: 'router/x' }],
      { code: 'group', priority: 100, detail: 'router/x', peer: '10.9.0.9', peerPriority: 200 },
    ],
    ['shutdown', () => inMaster(), [{ type: 'router.stop' }], { code: 'shutdown', priority: 100 }],
  ])('%s', (_code, make, events, expected) => {
    expect(reasonAfter(make(), ...events)).toEqual(expected);
  });

  test('several faults are all told', () => {
    const router = inBackup({ track: [track('tracker/script/a', 0)] });
    router.send(told('tracker/script/a', false));
    expect(router.context.reason.detail).toBe('tracker/script/a is broken');
    router.send(INTERFACE_DOWN);
    expect(Object.values(router.context.faults)).toEqual(['tracker/script/a is broken', 'eth0 is down']);
  });
});

describe('steadiness', () => {
  const one = (events: [number, RouterEvent][], settings: Partial<RouterSettings> = {}) => {
    const scenario = new Scenario().play(
      start('router/gw', 'vrrpRouter', { name: 'gw', settings: { ...SETTINGS, ...settings } }),
      send('router/gw', 'interface.up', INTERFACE_UP),
    );
    const from = scenario.entries.length;
    for (const [ms, event] of events) scenario.play(wait(ms), send('router/gw', event.type, event));
    expect(scenario.system.counters.unhandled).toBe(0);
    return scenario.entries.slice(from);
  };

  test('adverts of a known master are one steady run', () => {
    const entries = one(Array.from({ length: 20 }, (): [number, RouterEvent] => [1000, advert(200)]));
    expect(entries.map(({ steady }) => steady)).toEqual([false, ...Array<boolean>(19).fill(true)]);
    expect(new Set(entries.map(({ state }) => state))).toEqual(new Set(['backup.listening']));
  });

  test('adverts of a lower master under a preempt delay as well', () => {
    const entries = one(
      Array.from({ length: 9 }, (): [number, RouterEvent] => [1000, advert(50)]),
      { preemptDelayMs: 60_000 },
    );
    expect(entries.filter(({ steady }) => !steady)).toHaveLength(1);
  });

  test('discarded packets of a known conflict, and those without one', () => {
    const packet = { type: 'advert.discarded', kind: 'interval', source: '10.9.0.7', own: '1', peer: '2' } as const;
    const entries = one([
      [0, { ...packet, field: 'interval' }],
      [10, { ...packet, field: 'interval' }],
      [10, { ...packet, field: null }],
    ]);
    expect(entries.map(({ steady }) => steady)).toEqual([false, true, true]);
  });

  test('a master’s own adverts are one steady run, and so is answering a lower one', () => {
    const entries = one([[10_000, advert(50)]]);
    const first = entries.findIndex(({ state }) => state === 'master');
    expect(entries.slice(first + 1).length).toBeGreaterThan(5);
    for (const { steady } of entries.slice(first + 1)) expect(steady).toBe(true);
  });
});

const anyTrack = [track('tracker/a', 0), track('tracker/b', -150), track('tracker/c', 100, true)];
const anyPriority = fc.constantFrom(0, 1, 99, 100, 101, 254, 255);
const anyTracker = fc.constantFrom('tracker/a', 'tracker/b', 'tracker/c', 'tracker/unknown');
const anySettings = fc.record({
  priority: fc.constantFrom(1, 100, 254, 255),
  advertMs: fc.constantFrom(10, 1000),
  version: fc.constantFrom(2 as const, 3 as const),
  preempt: fc.boolean(),
  preemptDelayMs: fc.constantFrom(0, 500),
  startDelayMs: fc.constantFrom(0, 300),
  addresses: fc.subarray([VIP, VIP2]),
  track: fc.subarray(anyTrack),
  group: fc.constantFrom(null, GROUP),
});
const constants: RouterEvent[] = [
  INTERFACE_UP,
  INTERFACE_DOWN,
  { type: 'advert.overslept', silentMs: 9 },
  { type: 'address.failed', address: VIP, code: 'E', message: 'no' },
  { type: 'address.cleared', address: VIP },
  { type: 'group.master', router: 'router/x' },
  { type: 'group.backup', router: 'router/x' },
  { type: 'group.fault', router: 'router/x' },
  { type: 'group.cleared' },
  { type: 'operator.demote' },
  { type: 'operator.promote' },
];
const anyHost = fc.constantFrom(1, 9);
const anyEvent: fc.Arbitrary<RouterEvent> = fc.oneof(
  { weight: 6, arbitrary: fc.constantFrom(...constants) },
  { weight: 4, arbitrary: fc.tuple(anyPriority, anyHost).map(([priority, host]) => advert(priority, { host })) },
  { weight: 2, arbitrary: fc.tuple(anyTracker, fc.boolean()).map(([tracker, up]) => told(tracker, up)) },
  { weight: 1, arbitrary: anySettings.map((settings) => ({ ...changedTo(settings) })) },
  {
    weight: 1,
    arbitrary: fc.nat(20).map((host): RouterEvent => ({
      type: 'advert.discarded',
      kind: 'interval',
      source: `10.9.0.${host}`,
      field: 'interval',
      own: '1',
      peer: '2',
    })),
  },
);
/** Events and the time before each. */
const anyHistory = fc.array(fc.tuple(fc.constantFrom(0, 1, 30, 700, 4000), anyEvent), { maxLength: 40 });

describe('whatever happens', () => {
  test('nothing throws or is unhandled; priorities are in bounds; addresses are held by a master or handed over; one timer decides', () => {
    fc.assert(
      fc.property(anySettings, anyHistory, fc.boolean(), (settings, history, stops) => {
        const scenario = new Scenario().play(
          start('router/gw', 'vrrpRouter', { name: 'gw', settings: { ...SETTINGS, ...settings } }),
        );
        const acquired = new Set<string>();
        let wants = false;
        let seen = 0;
        const check = () => {
          const { state, context } = scenario.system.get('router/gw') as { state: string; context: RouterContext };
          for (const { effects } of scenario.entries.slice(seen)) {
            for (const to of [VIP, VIP2])
              for (const { type } of toldTo(effects, to)) {
                if (type === 'address.acquire') acquired.add(to);
                if (type === 'address.release' || type === 'address.handOver') acquired.delete(to);
              }
            for (const event of toldTo(effects, GROUP))
              if (event.type === 'member.wants') ({ wants } = event as unknown as { wants: boolean });
          }
          seen = scenario.entries.length;
          expect([...acquired].sort()).toEqual(state === 'master' ? [...context.settings.addresses].sort() : []);
          const timers = scenario.system
            .pendingTimers()
            .map(({ id }) => id)
            .filter((id) => id === 'masterDown' || id === 'advert');
          expect(timers).toEqual(state === 'master' ? ['advert'] : state === 'backup.listening' ? ['masterDown'] : []);
          // It waits for a group that it has, and the group knows.
          expect(wants).toBe(state === 'backup.willing');
          expect(wants && context.settings.group === null).toBe(false);
          expect(context.looked !== null && !wants && state !== 'initialize.stopped').toBe(false);
          const priority = effectivePriority(context);
          expect(priority).toBeGreaterThanOrEqual(1);
          expect(priority === 255).toBe(context.settings.priority === 255);
          expect(Object.keys(context.conflicts).length).toBeLessThanOrEqual(8);
          // Whoever takes part has no fault, and says no more than it knows.
          const takesPart = state === 'master' || state.startsWith('backup');
          expect(takesPart && Object.values(context.faults).some((fault) => fault !== null)).toBe(false);
          expect(state === 'master' && context.master !== null).toBe(false);
        };
        for (const [ms, event] of history) {
          scenario.play(wait(ms));
          // A router in another group is another router.
          if (event.type === 'settings.changed')
            scenario.play(send('router/gw', event.type, changedTo({ ...event.settings, group: settings.group })));
          else scenario.play(send('router/gw', event.type, event));
          check();
        }
        if (stops) scenario.play(send('router/gw', 'router.stop'), wait(10_000));
        check();
        expect(stops && scenario.stateOf('router/gw') !== 'initialize.stopped').toBe(false);
        expect(scenario.faults).toEqual([]);
        expect(scenario.system.counters.unhandled).toBe(0);
      }),
      { numRuns: 300 },
    );
  });
});
