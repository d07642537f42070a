/** The loop that every world runs on: order, records, causes, timers, faults, and going on from a checkpoint. */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { assign, cancel, createMachine, enqueueActions, raise, setup } from 'xstate';
import type { AnyStateMachine } from 'xstate';
import { VirtualClock } from '../actors/clock.ts';
import type { Clock } from '../actors/clock.ts';
import { Decider, persist, shapeOf, stateOf } from '../actors/decide.ts';
import { phaseOf, seededRandom } from '../actors/random.ts';
import { ActorSystem } from '../actors/system.ts';
import type { Entry } from '../actors/recorder.ts';
import type { ActorState, Fault, Hands } from '../actors/system.ts';
import { machines } from '../machines/index.ts';
import { broken, healthy, Scenario, start, wait } from './transcript.ts';

type Told = { to: string; event: { type: string } };

/** Does what its events say: tells others, sets and cancels a timer, throws. */
const puppet = setup({
  types: {
    context: {} as { count: number },
    events: {} as
      | { type: 'tell'; to: string; what: string }
      | { type: 'tellTwice'; to: string }
      | { type: 'act' }
      | { type: 'count' }
      | { type: 'set'; ms: number }
      | { type: 'unset' }
      | { type: 'moveAlarm'; byMs: number }
      | { type: 'rang' }
      | { type: 'move' }
      | { type: 'actThenThrow' }
      | { type: 'flood'; to: string; times: number }
      | { type: 'heed' },
  },
  actions: {
    tell: (_, _params: Told) => {},
    moveTimer: (_, _params: { id: string; byMs: number }) => {},
    act: () => {},
  },
  delays: { given: ({ event }) => (event.type === 'set' ? event.ms : 0) },
}).createMachine({
  id: 'puppet',
  context: { count: 0 },
  initial: 'here',
  on: {
    heed: {},
    act: { actions: 'act' },
    tell: { actions: { type: 'tell', params: ({ event }) => ({ to: event.to, event: { type: event.what } }) } },
    tellTwice: {
      actions: [
        { type: 'tell', params: ({ event }) => ({ to: event.to, event: { type: 'count' } }) },
        'act',
        { type: 'tell', params: ({ event }) => ({ to: event.to, event: { type: 'move' } }) },
      ],
    },
    count: { actions: assign({ count: ({ context }) => context.count + 1 }) },
    set: { actions: raise({ type: 'rang' }, { id: 'alarm', delay: 'given' }) },
    unset: { actions: cancel('alarm') },
    moveAlarm: {
      actions: { type: 'moveTimer', params: ({ event }) => ({ id: 'alarm', byMs: event.byMs }) },
    },
    rang: { actions: 'act' },
    actThenThrow: {
      actions: [
        'act',
        assign(() => {
          throw new Error('a machine that throws');
        }),
      ],
    },
    flood: {
      actions: enqueueActions(({ event, enqueue }) => {
        for (let index = 0; index < event.times; index++) {
          enqueue({ type: 'tell', params: { to: event.to, event: { ...event } } });
        }
      }),
    },
  },
  states: { here: { on: { move: { target: 'there' } } }, there: { on: { move: { target: 'here' } } } },
});

/** Goes round in a routine until it is told to stop. */
const rounds = setup({ types: { context: {} as { lessons: number } } }).createMachine({
  id: 'rounds',
  context: { lessons: 0 },
  initial: 'idle',
  on: { learn: { actions: assign({ lessons: ({ context }) => context.lessons + 1 }) } },
  states: {
    idle: { tags: 'routine', on: { go: { target: 'busy' }, halt: { target: 'halted' } } },
    busy: { tags: 'routine', on: { done: { target: 'idle' } } },
    halted: { on: { go: { target: 'idle' } } },
  },
});

/** Has a timer of a state of its own, as XState's `after` sets it. */
const lamp = createMachine(
  {
    id: 'lamp',
    initial: 'off',
    states: {
      off: { on: { press: { target: 'on' } } },
      on: { on: { press: { target: 'off' } }, after: { burns: { target: 'off' } } },
    },
  },
  { delays: { burns: 1000 } },
);

class World {
  readonly clock: VirtualClock | Clock;
  readonly system: ActorSystem;
  readonly entries: Entry[] = [];
  readonly faults: Fault[] = [];
  readonly log: string[] = [];

  constructor({
    catalogue = { puppet, rounds, lamp },
    hands = {},
    clock = new VirtualClock({ wallUs: 5_000_000, monoUs: 0 }),
  }: { catalogue?: Record<string, AnyStateMachine>; hands?: Record<string, Hands>; clock?: Clock } = {}) {
    this.clock = clock;
    this.system = new ActorSystem({
      clock,
      random: seededRandom(1),
      recorder: {
        append: (entry) => {
          this.entries.push(entry);
          this.log.push(`${entry.actor} ${entry.event.type}`);
          return { seq: this.entries.length };
        },
      },
      machines: catalogue,
      hands,
      onFault: (fault) => this.faults.push(fault),
    });
  }

  with(...ids: string[]): this {
    for (const id of ids) this.system.start(id, 'puppet', {});
    this.entries.length = 0;
    this.log.length = 0;
    return this;
  }

  send(to: string, event: { type: string } & Record<string, unknown>): this {
    this.system.send(to, event);
    return this;
  }

  /** Goes to the next deadlines, one after the other, up to a time. */
  runTo(ms: number): this {
    const clock = this.clock as VirtualClock;
    for (let next = this.system.nextDeadlineUs(); next !== null && next <= ms * 1000;) {
      clock.advanceTo(next);
      this.system.fireDue();
      next = this.system.nextDeadlineUs();
    }
    clock.advanceTo(ms * 1000);
    return this;
  }
}

describe('order', () => {
  test('an event is recorded before its effects are performed, and both before the next event is delivered', () => {
    const world = new World({ hands: { puppet: { act: (_: never, { id }) => void world.log.push(`${id} acts`) } } });
    world.with('a', 'b').send('a', { type: 'tellTwice', to: 'b' });
    expect(world.log).toEqual(['a tellTwice', 'a acts', 'b count', 'b move']);
  });

  test('messages are delivered in the order in which they were sent, those of their effects after them', () => {
    const world = new World({
      hands: {
        puppet: {
          act: () => {
            world.send('a', { type: 'tell', to: 'c', what: 'heed' });
            world.send('b', { type: 'heed' });
            world.log.push('both sent');
          },
        },
      },
    }).with('a', 'b', 'c');
    world.send('a', { type: 'act' });
    expect(world.log).toEqual(['a act', 'both sent', 'a tell', 'b heed', 'c heed']);
  });

  test('what hands report is caused by the record whose effect they perform', () => {
    const world = new World({
      hands: { puppet: { act: (_: never, actor) => actor.send({ type: 'heed' }) } },
    }).with('a');
    world.send('a', { type: 'act' });
    expect(world.entries.map(({ event, origin, cause }) => [event.type, origin, cause])).toEqual([
      ['act', 'input', null],
      ['heed', 'input', { seq: 1 }],
    ]);
  });

  test('a message names its sender and the record that sent it', () => {
    const world = new World().with('a', 'b').send('a', { type: 'tell', to: 'b', what: 'move' });
    expect(world.entries[1]).toMatchObject({ actor: 'b', origin: 'message', from: 'a', cause: { seq: 1 } });
  });

  test('an input may name its cause', () => {
    const world = new World().with('a');
    world.system.send('a', { type: 'heed' }, { seq: 77 });
    world.system.deliver('a', { type: 'heed' }, 'remote');
    expect(world.entries.map(({ origin, cause }) => [origin, cause])).toEqual([
      ['input', { seq: 77 }],
      ['remote', null],
    ]);
  });

  test('a record tells the time, the state after the event, and what was asked for', () => {
    const world = new World().with('a').runTo(3);
    world.send('a', { type: 'move' }).send('a', { type: 'set', ms: 20 });
    expect(world.entries[0]).toMatchObject({ machine: 'puppet', state: 'there', wallUs: 5_003_000, monoUs: 3000 });
    expect(world.entries[1]!.effects).toEqual([
      { type: 'timer', params: { id: 'alarm', delayMs: 20, event: { type: 'rang' } } },
    ]);
  });

  test('the same script gives the same records', () => {
    const step = fc.oneof(
      fc.record({ type: fc.constantFrom('move', 'count', 'act', 'unset', 'heed') }),
      fc.record({ type: fc.constant('tellTwice'), to: fc.constantFrom('a', 'b', 'nobody') }),
      fc.record({ type: fc.constant('set'), ms: fc.nat(5) }),
    );
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.constantFrom('a', 'b'), step, fc.nat(4)), { maxLength: 30 }), (script) => {
        const play = () => {
          const world = new World().with('a', 'b');
          let ms = 0;
          for (const [to, event, waitMs] of script) world.send(to, event).runTo((ms += waitMs));
          return world.entries;
        };
        expect(play()).toEqual(play());
      }),
      { numRuns: 50 },
    );
  });
});

describe('timers', () => {
  test('a timer comes at its deadline, names what set it, and is counted', () => {
    const world = new World().with('a').send('a', { type: 'set', ms: 20 }).runTo(19.999);
    expect(world.log).toEqual(['a set']);
    world.runTo(20);
    expect(world.entries[1]).toMatchObject({
      event: { type: 'rang' },
      origin: 'timer',
      cause: { seq: 1 },
      monoUs: 20_000,
    });
    expect(world.system.counters.timersFired).toBe(1);
    expect(world.system.nextDeadlineUs()).toBeNull();
  });

  test('a timer that is cancelled by the machine never comes', () => {
    const world = new World().with('a').send('a', { type: 'set', ms: 20 }).send('a', { type: 'unset' });
    expect(world.system.pendingTimers()).toEqual([]);
    expect(world.entries[1]!.effects).toEqual([{ type: 'cancel', params: { id: 'alarm' } }]);
    world.runTo(100);
    expect(world.system.counters.timersFired).toBe(0);
  });

  test('a timer of a state ends with the state', () => {
    const world = new World();
    world.system.start('lamp', 'lamp', {});
    world.send('lamp', { type: 'press' });
    expect(world.system.pendingTimers()).toHaveLength(1);
    world.send('lamp', { type: 'press' });
    expect(world.system.pendingTimers()).toEqual([]);
  });

  test('a timer that is set again is moved', () => {
    const world = new World().with('a').send('a', { type: 'set', ms: 20 }).runTo(10).send('a', { type: 'set', ms: 20 });
    world.runTo(29);
    expect(world.log).toEqual(['a set', 'a set']);
    world.runTo(30);
    expect(world.log).toEqual(['a set', 'a set', 'a rang']);
  });

  test('a machine moves its running timer by the difference, to the microsecond and not from now', () => {
    const world = new World().with('a').send('a', { type: 'set', ms: 20 }).runTo(10);
    world.send('a', { type: 'moveAlarm', byMs: 1.0004 });
    expect(world.system.nextDeadlineUs()).toBe(21_000);
    world.send('a', { type: 'moveAlarm', byMs: -5.0039 });
    expect(world.system.nextDeadlineUs()).toBe(15_996);
    world.runTo(15.996);
    expect(world.log.at(-1)).toBe('a rang');
    expect(world.system.counters.timersFired).toBe(1);
  });

  test('moving a timer that does not run sets none, and asks no hands', () => {
    const world = new World({
      hands: {
        puppet: {
          moveTimer: () => {
            throw new Error('the system’s, not the hands’');
          },
        },
      },
    }).with('a');
    world.send('a', { type: 'moveAlarm', byMs: 5 });
    expect(world.system.nextDeadlineUs()).toBeNull();
    expect(world.faults).toEqual([]);
    expect(world.entries[0]!.effects).toEqual([{ type: 'moveTimer', params: { id: 'alarm', byMs: 5 } }]);
  });

  test('the clock is asked to wake at the deadline that was moved to', () => {
    const asked: (number | null)[] = [];
    const clock: Clock = { wallUs: () => 0, monoUs: () => 0, wakeAt: (monoUs) => void asked.push(monoUs) };
    new World({ clock }).with('a').send('a', { type: 'set', ms: 20 }).send('a', { type: 'moveAlarm', byMs: -8 });
    expect(asked.at(-1)).toBe(12_000);
  });

  test('hands can ask how late the timer was that led to them', () => {
    const seen: number[] = [];
    const world: World = new World({ hands: { puppet: { act: () => seen.push(world.system.timerLateUs) } } }).with('a');
    world.send('a', { type: 'set', ms: 5 });
    (world.clock as VirtualClock).advanceTo(5750);
    world.system.fireDue();
    expect(seen).toEqual([750]);
  });

  test('a timer that is moved to before the present is due now, and not late', () => {
    const late: number[] = [];
    const world = new World().with('a').send('a', { type: 'set', ms: 20 }).runTo(10);
    world.system.measureLateness((us) => late.push(us));
    world.send('a', { type: 'moveAlarm', byMs: -15 });
    expect(world.system.nextDeadlineUs()).toBe(10_000);
    world.system.fireDue();
    expect(world.log.at(-1)).toBe('a rang');
    expect(late).toEqual([0]);
    expect(world.system.timerLateUs).toBe(0);
  });

  test('moving a timer that is overdue does not hide that the loop is late', () => {
    const world = new World().with('a').send('a', { type: 'set', ms: 20 });
    (world.clock as VirtualClock).advanceTo(25_000);
    world.send('a', { type: 'moveAlarm', byMs: -1 }).send('a', { type: 'moveAlarm', byMs: 2 });
    world.system.fireDue();
    expect(world.log.at(-1)).toBe('a rang');
    expect(world.system.timerLateUs).toBe(3000);
  });

  test('timers that are due together come earliest first, ties in the order of setting', () => {
    const world = new World().with('a', 'b', 'c');
    world.send('b', { type: 'set', ms: 5 }).send('a', { type: 'set', ms: 5 }).send('c', { type: 'set', ms: 2 });
    (world.clock as VirtualClock).advanceTo(50_000);
    world.log.length = 0;
    world.system.fireDue();
    expect(world.log).toEqual(['c rang', 'b rang', 'a rang']);
  });

  test('the loop’s lateness is measured for each timer', () => {
    const late: number[] = [];
    const world = new World().with('a', 'b');
    world.system.measureLateness((us) => late.push(us));
    world.send('a', { type: 'set', ms: 5 }).send('b', { type: 'set', ms: 7 });
    (world.clock as VirtualClock).advanceTo(7250);
    world.system.fireDue();
    expect(late).toEqual([2250, 250]);
  });

  test('an actor that stops leaves no timer behind', () => {
    const world = new World().with('a', 'b').send('a', { type: 'set', ms: 5 }).send('b', { type: 'set', ms: 6 });
    world.system.stop('a');
    expect(world.system.pendingTimers().map(({ actor }) => actor)).toEqual(['b']);
  });

  test('the clock is asked to wake at the next deadline, and at none when there is none', () => {
    const asked: (number | null)[] = [];
    let wakes: () => void = () => {};
    let nowUs = 0;
    const clock: Clock = {
      wallUs: () => nowUs,
      monoUs: () => nowUs,
      wakeAt: (monoUs, wake) => {
        asked.push(monoUs);
        wakes = wake;
      },
    };
    const world = new World({ clock }).with('a');
    expect(asked.at(-1)).toBeNull();
    world.send('a', { type: 'set', ms: 3 });
    expect(asked.at(-1)).toBe(3000);
    nowUs = 3000;
    wakes();
    expect(world.log).toEqual(['a set', 'a rang']);
    expect(asked.at(-1)).toBeNull();
  });

  test('waking too early delivers nothing and asks for the same deadline again', () => {
    const world = new World().with('a').send('a', { type: 'set', ms: 3 });
    world.system.fireDue();
    expect(world.log).toEqual(['a set']);
    expect(world.system.nextDeadlineUs()).toBe(3000);
  });
});

describe('actors come and go', () => {
  test('a start is recorded with the machine and its input', () => {
    const world = new World();
    world.system.start('a', 'puppet', { some: 'input' }, { seq: 4 });
    expect(world.entries).toMatchObject([
      {
        actor: 'a',
        machine: 'puppet',
        origin: 'input',
        event: { type: 'actor.started', machine: 'puppet', input: { some: 'input' } },
        cause: { seq: 4 },
        state: 'here',
        steady: false,
      },
    ]);
    expect([world.system.has('a'), world.system.size]).toEqual([true, 1]);
  });

  test('a stop is recorded, told to the hands, and the actor is gone', () => {
    const stopped: string[] = [];
    const world = new World({
      hands: { puppet: { 'actor.stopped': (_: never, { id }) => void stopped.push(id) } },
    }).with('a');
    world.system.stop('a', { seq: 9 });
    expect(world.entries).toMatchObject([{ event: { type: 'actor.stopped' }, state: 'stopped', cause: { seq: 9 } }]);
    expect(stopped).toEqual(['a']);
    expect([world.system.get('a'), world.system.size]).toEqual([null, 0]);
  });

  test('an actor can be started again under its name, and starts anew', () => {
    const world = new World().with('a').send('a', { type: 'move' });
    world.system.stop('a');
    world.system.start('a', 'puppet', {});
    expect(world.system.get('a')?.state).toBe('here');
  });

  test('two of one name, and a machine that nobody knows, are refused aloud; the system goes on', () => {
    const world = new World().with('a');
    expect(() => world.system.start('a', 'puppet', {})).toThrow('actor a is started twice');
    expect(() => world.system.start('b', 'nonsense', {})).toThrow('no machine is called nonsense');
    world.send('a', { type: 'move' });
    expect(world.system.get('a')?.state).toBe('there');
  });

  test('what is sent to nobody is counted and recorded nowhere', () => {
    const world = new World().with('a').send('nobody', { type: 'heed' });
    world.system.stop('nobody');
    world.send('a', { type: 'tell', to: 'nobody', what: 'heed' });
    expect(world.system.counters.undeliverable).toBe(3);
    expect(world.log).toEqual(['a tell']);
  });

  test('all are listed in the order of their start, with state, since when, and by which record', () => {
    const world = new World().with('b', 'a').runTo(7).send('a', { type: 'move' });
    expect([...world.system.all()].map(({ id, state, sinceUs }) => [id, state, sinceUs])).toEqual([
      ['b', 'here', 5_000_000],
      ['a', 'there', 5_007_000],
    ]);
    expect(world.system.get('a')?.cause).toEqual({ seq: 1 });
  });
});

describe('what changes nothing', () => {
  test('an event that is ignored is steady and counted as unhandled', () => {
    const world = new World().with('a').send('a', { type: 'unheard of' });
    expect(world.entries).toMatchObject([{ steady: true, effects: [], state: 'here' }]);
    expect(world.system.counters).toMatchObject({ events: 2, unhandled: 1, transitions: 0 });
  });

  test('an event that a state names with an empty handler is expected, not unhandled', () => {
    const world = new World().with('a').send('a', { type: 'heed' });
    expect(world.entries).toMatchObject([{ steady: true }]);
    expect(world.system.counters.unhandled).toBe(0);
  });

  test('the thousandth passed check of a healthy server is not an unhandled event', () => {
    const scenario = new Scenario().play(
      start('server/web/a', 'backendServer', {
        pool: 'web',
        name: 'a',
        settings: {
          rise: 2,
          fall: 3,
          checked: true,
          initially: 'unchecked',
          weight: 1,
          backup: false,
          slowStartMs: 0,
          shutdownSessions: false,
        },
      }),
    );
    const passed = { type: 'check.passed', code: 'L4OK', message: '', durationMs: 1 };
    for (let count = 0; count < 1000; count++) scenario.system.send('server/web/a', passed);
    expect(scenario.system.counters.unhandled).toBe(0);
  });

  test('rounds of a routine are steady: no transition, nobody is told, the state is as old as before', () => {
    const world = new World();
    world.system.start('r', 'rounds', {});
    const heard: string[] = [];
    world.system.onTransition(({ state }) => heard.push(state));
    world.runTo(5).send('r', { type: 'go' }).send('r', { type: 'done' });
    expect(world.entries.slice(1)).toMatchObject([
      { state: 'busy', steady: true },
      { state: 'idle', steady: true },
    ]);
    expect(world.system.counters.transitions).toBe(0);
    expect(heard).toEqual([]);
    expect(world.system.get('r')?.sinceUs).toBe(5_000_000);
    world.send('r', { type: 'halt' });
    expect(heard).toEqual(['halted']);
    expect(world.entries.at(-1)).toMatchObject({ steady: false });
    expect(world.system.get('r')?.sinceUs).toBe(5_005_000);
  });

  test('what leads into a routine is not steady, nor is what changes a context within it', () => {
    const world = new World();
    world.system.start('r', 'rounds', {});
    world.send('r', { type: 'halt' }).send('r', { type: 'go' }).send('r', { type: 'learn' });
    expect(world.entries.slice(1).map(({ event, state, steady }) => [event.type, state, steady])).toEqual([
      ['halt', 'halted', false],
      ['go', 'idle', false],
      ['learn', 'idle', false],
    ]);
    expect(world.system.counters.transitions).toBe(2);
  });

  test('a change of context alone is no transition but not steady either: it decides what comes', () => {
    const world = new World().with('a').send('a', { type: 'count' });
    expect(world.entries).toMatchObject([{ steady: false, state: 'here' }]);
    expect(world.system.counters.transitions).toBe(0);
  });
});

describe('listeners', () => {
  test('they hear of each start and each change of state, after its effects were handed out, until they leave', () => {
    const world = new World({ hands: { puppet: { act: () => void world.log.push('acts') } } });
    const leave = world.system.onTransition((actor: ActorState, entry) => {
      world.log.push(`heard ${actor.id} ${actor.state} by ${entry.event.type}`);
    });
    world.system.start('a', 'puppet', {});
    world.send('a', { type: 'move' }).send('a', { type: 'act' });
    leave();
    world.send('a', { type: 'move' });
    expect(world.log).toEqual([
      'a actor.started',
      'heard a here by actor.started',
      'a move',
      'heard a there by move',
      'a act',
      'acts',
      'a move',
    ]);
  });
});

describe('faults', () => {
  test('hands that throw are a fault; the other effects and events are performed all the same', () => {
    const world = new World({
      hands: {
        puppet: {
          act: () => {
            throw new Error('hands that throw');
          },
        },
      },
    });
    world.with('a', 'b').send('a', { type: 'tellTwice', to: 'b' });
    expect(world.faults).toMatchObject([{ actor: 'a', during: 'act', error: { message: 'hands that throw' } }]);
    expect(world.system.counters.faults).toBe(1);
    expect(world.system.get('b')).toMatchObject({ state: 'there', context: { count: 1 } });
  });

  test('a machine that throws is a fault, and stays as it was', () => {
    const world = new World().with('a').send('a', { type: 'actThenThrow' });
    expect(world.faults).toMatchObject([{ actor: 'a', during: 'actThenThrow' }]);
    world.send('a', { type: 'move' });
    expect(world.system.get('a')?.state).toBe('there');
  });

  test('what a machine asked for before it threw is not asked for by the next event of another actor', () => {
    const acted: string[] = [];
    const world = new World({ hands: { puppet: { act: (_: never, { id }) => void acted.push(id) } } });
    world.with('a', 'b').send('a', { type: 'actThenThrow' }).send('b', { type: 'move' });
    expect(acted).toEqual([]);
    expect(world.entries.at(-1)?.effects).toEqual([]);
  });

  test('a machine that throws at its start leaves no actor behind', () => {
    const thrower = setup({ types: { input: {} as { bad: boolean } } }).createMachine({
      id: 'thrower',
      context: ({ input }) => {
        if ((input as { bad: boolean } | undefined)?.bad) throw new Error('no such input');
        return {};
      },
    });
    const world = new World({ catalogue: { puppet, thrower } });
    expect(() => world.system.start('t', 'thrower', { bad: true })).not.toThrow();
    expect(world.faults).toHaveLength(1);
    expect(world.system.has('t')).toBe(false);
  });

  test('effects without hands are recorded and go no further', () => {
    const world = new World().with('a').send('a', { type: 'act' });
    expect(world.entries[0]!.effects).toEqual([{ type: 'act' }]);
    expect(world.faults).toEqual([]);
  });

  test('actors that answer each other for ever are stopped with a message, and the system is usable after it', () => {
    const world = new World();
    world.system.start('a', 'puppet', {});
    world.system.start('b', 'puppet', {});
    expect(() => world.send('a', { type: 'flood', to: 'a', times: 2000 })).toThrow(/runaway between actors/);
    world.log.length = 0;
    world.send('b', { type: 'move' });
    expect(world.log).toEqual(['b move']);
    expect(world.system.get('b')?.state).toBe('there');
  });
});

describe('decisions', () => {
  test.each(Object.entries(machines))('%s: what is written in a checkpoint comes alive as it was', (_name, machine) => {
    const decider = new Decider(machine);
    const { snapshot } = decider.start(undefined);
    const restored = decider.restore(JSON.parse(JSON.stringify(persist(snapshot))) as ReturnType<typeof persist>);
    expect(stateOf(restored)).toBe(stateOf(snapshot));
    expect(restored.context).toEqual(JSON.parse(JSON.stringify(snapshot.context)));
    expect([...restored.tags]).toEqual([...snapshot.tags]);
  });

  test('states are written region by region in the order of the machine', () => {
    const { snapshot } = new Decider(machines.backendServer).start(undefined);
    expect(stateOf(snapshot)).toBe('unchecked,ready,warm');
    const checker = new Decider(machines.healthChecker);
    const probing = checker.next(checker.start(undefined).snapshot, { type: 'period.elapsed' });
    expect(stateOf(probing.snapshot)).toBe('probing.onTime');
  });

  test('the shape of a machine is one text that tells it from all others', () => {
    const shapes = Object.values(machines).map((machine) => shapeOf(machine));
    expect(new Set(shapes).size).toBe(shapes.length);
    expect(shapeOf(machines.pool)).toBe(shapeOf(machines.pool));
  });

  test('decisions leave no trace in the decider: two actors of one machine are apart', () => {
    const decider = new Decider(puppet);
    const one = decider.start({}).snapshot;
    const other = decider.start({}).snapshot;
    const moved = decider.next(one, { type: 'move' }).snapshot;
    expect([stateOf(moved), stateOf(one), stateOf(other)]).toEqual(['there', 'here', 'here']);
  });
});

describe('a world that starts in the middle', () => {
  const script = (servers: string[]) => [
    start('pool/web', 'pool', { name: 'web', settings: { allBackups: false, quorum: 1, hysteresis: 0 } }),
    ...servers.flatMap((name) => [
      start(`checker/web/${name}`, 'healthChecker', {
        pool: 'web',
        server: name,
        settings: { intervalMs: 1000, fastIntervalMs: 300, downIntervalMs: 700, timeoutMs: 200, jitter: 0.1 },
        startDelayMs: 10,
        phase: phaseOf(name),
      }),
      start(`server/web/${name}`, 'backendServer', {
        pool: 'web',
        name,
        settings: {
          rise: 2,
          fall: 2,
          checked: true,
          initially: 'unchecked',
          weight: 4,
          backup: false,
          slowStartMs: 4000,
          shutdownSessions: false,
        },
      }),
    ]),
  ];

  test('restored from its checkpoint it goes on as the one that never stopped', () => {
    const goOn = [broken('checker/web/b', 2), wait(3000), healthy('checker/web/b', 2), wait(9000)];
    const original = new Scenario().play(...script(['a', 'b']), wait(2500));
    const frozen = original.system.frozen();
    const timers = original.system.pendingTimers();
    const at = original.entries.length;

    const restored = new Scenario();
    restored.clock.advanceTo(original.clock.monoUs());
    for (const { id, machine, sinceUs, snapshot } of frozen) {
      restored.system.restore(id, machine, structuredClone(persist(snapshot)), sinceUs);
    }
    for (const { actor, id, event, deadlineUs } of timers) restored.system.setTimer(actor, id, event, deadlineUs);

    original.play(...goOn);
    restored.play(...goOn);
    const told = (entries: Entry[]) =>
      entries.map(({ monoUs, actor, event, state, effects, steady }) => ({
        monoUs,
        actor,
        event,
        state,
        effects,
        steady,
      }));
    expect(told(restored.entries)).toEqual(told(original.entries.slice(at)));
    expect(restored.entries.length).toBeGreaterThan(50);
  });

  test('a restored actor is listed with the time since when it is in its state', () => {
    const world = new World();
    world.system.restore('a', 'puppet', { value: 'there', context: { count: 3 } }, 123);
    expect(world.system.get('a')).toMatchObject({ state: 'there', context: { count: 3 }, sinceUs: 123 });
    expect(world.entries).toEqual([]);
  });
});

describe('chance', () => {
  test('a seed gives the same numbers, another seed others, all from 0 to below 1', () => {
    const draw = (seed: number) => Array.from({ length: 1000 }, seededRandom(seed));
    expect(draw(7)).toEqual(draw(7));
    expect(draw(7)).not.toEqual(draw(8));
    for (const value of draw(7)) expect(value >= 0 && value < 1).toBe(true);
    const mean = draw(7).reduce((sum, value) => sum + value, 0) / 1000;
    expect(mean).toBeGreaterThan(0.45);
    expect(mean).toBeLessThan(0.55);
  });

  test('phases of names that differ at the end only are spread over the whole range', () => {
    const phases = Array.from({ length: 1000 }, (_, index) => phaseOf(`lb1/web/web${index}`));
    const tenths = new Map<number, number>();
    for (const phase of phases) tenths.set(Math.floor(phase * 10), (tenths.get(Math.floor(phase * 10)) ?? 0) + 1);
    expect([...tenths.keys()].sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for (const count of tenths.values()) expect(count).toBeGreaterThan(60);
    expect(phaseOf('lb1/web/web1')).toBe(phaseOf('lb1/web/web1'));
  });
});

test('after a stall, due timers are delivered in slices: the loop looks at its sockets in between', () => {
  const wakes: (() => void)[] = [];
  let nowUs = 0;
  const clock: Clock = {
    wallUs: () => nowUs,
    monoUs: () => nowUs,
    wakeAt: (_deadlineUs, wake) => {
      wakes.push(wake);
    },
  };
  const rang: string[] = [];
  const system = new ActorSystem({
    clock,
    random: seededRandom(1),
    recorder: { append: () => ({ seq: null }) },
    machines: { puppet },
    hands: {
      puppet: {
        act: (_: never, { id }) => {
          rang.push(id);
          // Each takes a millisecond of the turn.
          nowUs += 1000;
        },
      },
    },
    onFault: ({ error }) => {
      throw error;
    },
  });
  const ids = Array.from({ length: 12 }, (_, index) => `puppet/${index}`);
  for (const id of ids) {
    system.start(id, 'puppet', {});
    system.send(id, { type: 'set', ms: 1 } as { type: string });
  }
  nowUs = 10_000;
  let turns = 0;
  while (rang.length < ids.length) {
    turns++;
    system.fireDue();
  }
  expect(rang).toEqual(ids);
  expect(turns).toBe(3);
  expect(wakes.length).toBeGreaterThan(0);
});
