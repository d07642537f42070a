/** What a router's priority depends on: rise and fall as keepalived counts them, values, pools, and who is told what. */
import { describe, expect, test } from 'vitest';
import { trackerHands } from '../actors/tracker.ts';
import type { Observation } from '../actors/tracker.ts';
import type { ActorRef } from '../actors/system.ts';
import { tracker } from '../machines/tracker.ts';
import type { TrackerContext, TrackerEvent, TrackerSettings } from '../machines/tracker.ts';
import { delayOf, Stepper, toldTo, typesOf } from './stepper.ts';
import { Scenario, send, start, wait } from './transcript.ts';

const ID = 'tracker/script/a';
const ROUTERS = ['router/gw', 'router/other'];
const SETTINGS: TrackerSettings = { kind: 'script', subject: '', intervalMs: 1000, rise: 2, fall: 3, routers: ROUTERS };

type Tracker = Stepper<TrackerEvent, TrackerContext>;

const fresh = (settings: Partial<TrackerSettings> = {}): Tracker =>
  new Stepper(tracker, { id: ID, settings: { ...SETTINGS, ...settings } });

const saw = (
  ok: boolean,
  { value = null, message = ok ? 'fine' : 'broken' }: Partial<Observation> = {},
): TrackerEvent => ({
  type: 'observed',
  ok,
  value,
  code: '',
  message,
  durationMs: 3,
});

const changed = (up: boolean, message: string, value: number | null = null) => ({
  type: 'tracker.changed',
  tracker: ID,
  up,
  value,
  message,
});

const down = (settings: Partial<TrackerSettings> = {}): Tracker => {
  const it = fresh({ ...settings, fall: 1 });
  it.sendAll(saw(false), { type: 'settings.changed', settings: { ...SETTINGS, ...settings } });
  expect(it.state).toBe('down');
  return it;
};

describe('rise and fall', () => {
  test('it is up until it is seen to be bad, and looks at once', () => {
    const it = fresh();
    expect(it.state).toBe('up');
    expect(it.started).toContainEqual({ type: 'observe', params: { kind: 'script' } });
  });

  test('it goes down at the last of `fall` failures in a row, and says so once, with what was seen last', () => {
    const it = fresh();
    expect(toldTo(it.send(saw(false)), 'router/gw')).toEqual([]);
    expect(it.state).toBe('goingDown');
    expect(toldTo(it.send(saw(false)), 'router/gw')).toEqual([]);
    const effects = it.send(saw(false, { message: 'exit 3' }));
    expect(it.state).toBe('down');
    for (const router of ROUTERS) expect(toldTo(effects, router)).toEqual([changed(false, 'exit 3')]);
    expect(toldTo(it.send(saw(false, { message: 'exit 3' })), 'router/gw')).toEqual([]);
  });

  test('one success before that begins the count anew', () => {
    const it = fresh();
    it.sendAll(saw(false), saw(false), saw(true), saw(false), saw(false));
    expect(it.state).toBe('goingDown');
    it.send(saw(false));
    expect(it.state).toBe('down');
  });

  test('it comes up at the last of `rise` successes in a row', () => {
    const it = down();
    it.send(saw(true));
    expect(it.state).toBe('goingUp');
    it.send(saw(false));
    expect(it.state).toBe('down');
    const effects = it.sendAll(saw(true), saw(true));
    expect(it.state).toBe('up');
    expect(toldTo(effects, 'router/gw')).toEqual([changed(true, 'fine')]);
  });

  test('fall 1 and rise 1 take the first', () => {
    const it = fresh({ rise: 1, fall: 1 });
    it.send(saw(false));
    expect(it.state).toBe('down');
    it.send(saw(true));
    expect(it.state).toBe('up');
  });
});

describe('what is told', () => {
  test.each([
    ['up', () => fresh(), true],
    [
      'goingDown',
      () => {
        const it = fresh();
        it.send(saw(false));
        return it;
      },
      true,
    ],
    ['down', () => down(), false],
    [
      'goingUp',
      () => {
        const it = down();
        it.send(saw(true));
        return it;
      },
      false,
    ],
  ] as [string, () => Tracker, boolean][])('asked in %s it answers to whoever asked', (state, make, up) => {
    const it = make();
    expect(it.state).toBe(state);
    const effects = it.send({ type: 'tracker.asked', router: 'router/new' });
    expect(toldTo(effects, 'router/new')).toMatchObject([{ type: 'tracker.changed', tracker: ID, up }]);
    expect(effects).toHaveLength(1);
  });

  test('another value is news, the same one is not', () => {
    const it = fresh({ kind: 'file' });
    const effects = it.send(saw(true, { value: 7 }));
    expect(toldTo(effects, 'router/gw')).toEqual([changed(true, 'fine', 7)]);
    expect(toldTo(it.send(saw(true, { value: 7 })), 'router/gw')).toEqual([]);
    expect(toldTo(it.send(saw(true, { value: 0 })), 'router/gw')).toEqual([changed(true, 'fine', 0)]);
  });

  test('other words for the same state are news', () => {
    const it = fresh();
    expect(toldTo(it.send(saw(true, { message: '3 of 3' })), 'router/other')).toEqual([changed(true, '3 of 3')]);
  });
});

describe('looking', () => {
  test('the next look begins an interval after the end of the last', () => {
    const it = fresh();
    expect(delayOf(it.send(saw(true)), 'period')).toBe(1000);
    expect(typesOf(it.send({ type: 'period.elapsed' }))).toEqual(['observe']);
  });

  test('what tells by itself is asked once', () => {
    const it = fresh({ kind: 'interface', intervalMs: 0 });
    expect(delayOf(it.send(saw(true)), 'period')).toBeNull();
  });

  test('a pool is asked by a message', () => {
    const it = fresh({ kind: 'pool', subject: 'pool/web', intervalMs: 0 });
    expect(toldTo(it.started, 'pool/web')).toEqual([{ type: 'pool.asked', tracker: ID }]);
    expect(typesOf(it.started)).not.toContain('observe');
  });

  test('a reload looks at once, and not twice', () => {
    const it = fresh();
    it.send(saw(true));
    const effects = it.send({ type: 'settings.changed', settings: { ...SETTINGS, intervalMs: 200 } });
    expect(typesOf(effects)).toEqual(['cancel', 'observe']);
    expect(delayOf(it.send(saw(true)), 'period')).toBe(200);
  });

  test('the same again and again is one steady run, up or down', () => {
    const seen = { ok: true };
    const looks = trackerHands((_tracker, _kind, answer) => {
      answer({ ok: seen.ok, value: null, code: '', message: seen.ok ? 'fine' : 'broken', durationMs: 1 });
      return () => {};
    });
    const scenario = new Scenario({ hands: { tracker: looks } }).play(
      start(ID, 'tracker', { id: ID, settings: SETTINGS }),
      wait(10_000),
    );
    const steady = () => scenario.entries.filter((entry) => entry.steady).length;
    // The start and the first words.
    expect(scenario.entries.length - steady()).toBe(2);
    seen.ok = false;
    scenario.play(wait(3000));
    expect(scenario.stateOf(ID)).toBe('down');
    const before = scenario.entries.length - steady();
    scenario.play(wait(20_000));
    expect(scenario.entries.length - steady()).toBe(before);
    expect(scenario.system.counters.unhandled).toBe(0);
  });
});

describe('hands', () => {
  const setUp = () => {
    const looks: { answer: (seen: Observation) => void; ended: boolean }[] = [];
    const sent: { type: string }[] = [];
    const hands = trackerHands((_tracker, _kind, answer) => {
      const look = { answer, ended: false };
      looks.push(look);
      return () => void (look.ended = true);
    });
    const actor: ActorRef = { id: ID, send: (event) => void sent.push(event) };
    const call = (name: string) => hands[name]!({ kind: 'script' } as never, actor);
    return { looks, sent, call };
  };

  test('what is seen is an event', () => {
    const { looks, sent, call } = setUp();
    call('observe');
    looks[0]!.answer({ ok: true, value: 4, code: 'OK', message: 'x', durationMs: 2 });
    expect(sent).toEqual([{ type: 'observed', ok: true, value: 4, code: 'OK', message: 'x', durationMs: 2 }]);
  });

  test.each(['observe', 'actor.stopped'])('%s ends the look that is under way', (name) => {
    const { looks, call } = setUp();
    call('observe');
    call(name);
    expect(looks[0]!.ended).toBe(true);
  });
});

test('a pool that is lost and returns is told to the router by its tracker', () => {
  const settings = { ...SETTINGS, kind: 'pool', subject: 'pool/web', intervalMs: 0, rise: 1, fall: 1 };
  const scenario = new Scenario().play(
    start('pool/web', 'pool', {
      name: 'web',
      settings: { allBackups: false, quorum: 1, hysteresis: 0, watchers: [{ tracker: ID, atLeast: 1 }] },
    }),
    start(ID, 'tracker', { id: ID, settings }),
  );
  expect(scenario.stateOf(ID)).toBe('down');
  scenario.play(
    send('pool/web', 'server.joined', { server: 'a', weight: 1, backup: false, checked: false, initially: 'up' }),
  );
  expect(scenario.stateOf(ID)).toBe('up');
  scenario.play(send('pool/web', 'server.admin', { server: 'a', admin: 'maintenance' }));
  expect(scenario.stateOf(ID)).toBe('down');
});
