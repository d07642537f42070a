/**
 * The actor system: one small loop that delivers an event to a machine, has it recorded, keeps the timer table and
 * hands the effects out. Everything of the world comes in as an argument, so the same loop runs live, in what-if and
 * in rehearsal. Functions here never wait and never throw for what an actor does.
 *
 * Order: events are delivered one at a time, in the order in which they were sent; an event's effects are performed
 * after it has been handed to the recorder and before the next event is delivered.
 */
import assert from 'node:assert/strict';
import type { AnyStateMachine } from 'xstate';
import type { Clock } from './clock.ts';
import { Decider, stateOf } from './decide.ts';
import type { AnyEvent, Decision, Effect, PersistedSnapshot, Snapshot, TimerParams } from './decide.ts';
import type { Random } from './random.ts';
import type { Cause, Entry, Origin, Recorder } from './recorder.ts';
import { TimerTable } from './timerTable.ts';

export type ActorRef = {
  readonly id: string;
  /** Reports something from outside to this actor, caused by the record whose effect is being performed. */
  send(event: AnyEvent): void;
};

/** The hands of one kind of actor: a function for each effect that its machine can ask for, and `actor.stopped`. */
export type Hands = Record<string, (params: never, actor: ActorRef) => void>;

/** Trouble that must not happen and is survived: a machine that throws, hands that throw. */
export type Fault = { actor: string; during: string; error: unknown };

export type ActorWorld = {
  clock: Clock;
  random: Random;
  recorder: Recorder;
  machines: Readonly<Record<string, AnyStateMachine>>;
  /** Machines whose timers have to be delivered to a fraction of a millisecond. */
  precise?: ReadonlySet<string>;
  /** By machine name. Effects without hands are recorded and go no further. */
  hands: Readonly<Record<string, Hands>>;
  onFault(fault: Fault): void;
};

export type ActorState = {
  id: string;
  machine: string;
  state: string;
  context: unknown;
  /** When it entered this state, and by which record. */
  sinceUs: number;
  cause: Cause;
};

export type FrozenActor = { id: string; machine: string; sinceUs: number; snapshot: Snapshot };

export type SystemCounters = {
  events: number;
  transitions: number;
  unhandled: number;
  undeliverable: number;
  faults: number;
  timersFired: number;
};

type Actor = {
  id: string;
  machine: string;
  decider: Decider;
  snapshot: Snapshot;
  state: string;
  sinceUs: number;
  cause: Cause;
};

type Envelope = { to: string; origin: Origin; from: string | null; event: AnyEvent; cause: Cause | null };

/**
 * Events that may wait in the mailbox. A turn that queues a million has run away (two actors that answer each other
 * for ever); stopping with a message is better than running out of memory.
 */
const MAX_MAILBOX = 1_000_000;

/** Time that due timers may take in one go: under half the lateness that a control loop is allowed. */
const LONGEST_TURN_US = 4_000;

export const ACTOR_STARTED = 'actor.started';
export const ACTOR_STOPPED = 'actor.stopped';

export type ActorStarted = { type: typeof ACTOR_STARTED; machine: string; input: unknown };

export class ActorSystem {
  readonly counters: SystemCounters = {
    events: 0,
    transitions: 0,
    unhandled: 0,
    undeliverable: 0,
    faults: 0,
    timersFired: 0,
  };
  readonly random: Random;
  #world: ActorWorld;
  #actors = new Map<string, Actor>();
  #deciders = new Map<string, Decider>();
  #timers = new TimerTable();
  #mailbox: Envelope[] = [];
  #running = false;
  #listeners = new Set<(actor: ActorState, entry: Entry) => void>();
  #latenessUs: (lateUs: number) => void = () => {};
  #timerLateUs = 0;

  constructor(world: ActorWorld) {
    this.#world = world;
    this.random = world.random;
  }

  /** Starts an actor; its first event, `actor.started`, carries the input and takes its turn like any other. */
  start(id: string, machine: string, input: unknown, cause: Cause | null = null): void {
    this.#enqueue({
      to: id,
      origin: 'input',
      from: null,
      event: { type: ACTOR_STARTED, machine, input } as AnyEvent,
      cause,
    });
  }

  /** Stops an actor: its timers are cancelled, and what is still sent to it counts as undeliverable. */
  stop(id: string, cause: Cause | null = null): void {
    this.#enqueue({ to: id, origin: 'input', from: null, event: { type: ACTOR_STOPPED }, cause });
  }

  /** Sends an event from outside. */
  send(to: string, event: AnyEvent, cause: Cause | null = null): void {
    this.#enqueue({ to, origin: 'input', from: null, event, cause });
  }

  /** Delivers an event as a journal tells it, for worlds that are driven from one. */
  deliver(to: string, event: AnyEvent, origin: Origin): void {
    this.#enqueue({ to, origin, from: null, event, cause: null });
  }

  /**
   * Delivers the timers that are due, earliest first. When there are many, as after a stall, the loop looks at its
   * sockets in between: what has arrived there may be what the next timer is about.
   */
  fireDue(): void {
    const startedUs = this.#world.clock.monoUs();
    for (;;) {
      const nowUs = this.#world.clock.monoUs();
      if (nowUs - startedUs > LONGEST_TURN_US) break;
      const timer = this.#timers.takeDue(nowUs);
      if (!timer) break;
      this.counters.timersFired++;
      this.#timerLateUs = nowUs - timer.deadlineUs;
      this.#latenessUs(this.#timerLateUs);
      this.#enqueue({ to: timer.actor, origin: 'timer', from: null, event: timer.event, cause: timer.cause });
    }
    this.#askToBeWoken();
  }

  nextDeadlineUs(): number | null {
    return this.#timers.nextDeadlineUs();
  }

  /** How late the timer was that is being delivered, or was last. */
  get timerLateUs(): number {
    return this.#timerLateUs;
  }

  get size(): number {
    return this.#actors.size;
  }

  has(id: string): boolean {
    return this.#actors.has(id);
  }

  get(id: string): ActorState | null {
    const actor = this.#actors.get(id);
    return actor ? stateOfActor(actor) : null;
  }

  *all(): Generator<ActorState> {
    for (const actor of this.#actors.values()) yield stateOfActor(actor);
  }

  /** What a checkpoint needs, in the order in which the actors started. Snapshots are immutable: only references. */
  frozen(): FrozenActor[] {
    return [...this.#actors.values()].map(({ id, machine, sinceUs, snapshot }) => ({ id, machine, sinceUs, snapshot }));
  }

  /** Puts an actor in place without an event: how a virtual world starts in the middle of a journal. */
  restore(id: string, machine: string, persisted: PersistedSnapshot, sinceUs: number): void {
    const decider = this.#decider(machine);
    const snapshot = decider.restore(persisted);
    this.#actors.set(id, {
      id,
      machine,
      decider,
      snapshot,
      state: stateOf(snapshot),
      sinceUs,
      cause: { seq: null },
    });
  }

  /** Sets a timer as a checkpoint tells it. */
  setTimer(actor: string, id: string, event: AnyEvent, deadlineUs: number): void {
    this.#timers.set(actor, id, event, deadlineUs, null);
  }

  pendingTimers(): { actor: string; id: string; event: AnyEvent; deadlineUs: number }[] {
    return this.#timers.pending();
  }

  /** Called after each transition that changed the state, when its effects have been handed out. */
  onTransition(listener: (actor: ActorState, entry: Entry) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Called with how late each timer was delivered: the control loop's own lateness. */
  measureLateness(observe: (lateUs: number) => void): void {
    this.#latenessUs = observe;
  }

  #enqueue(envelope: Envelope): void {
    assert(this.#mailbox.length < MAX_MAILBOX, `mailbox holds ${MAX_MAILBOX} events: runaway between actors`);
    this.#mailbox.push(envelope);
    if (this.#running) return;
    this.#running = true;
    try {
      for (let next = 0; next < this.#mailbox.length; next++) {
        this.#deliver(this.#mailbox[next]!);
      }
    } finally {
      this.#mailbox.length = 0;
      this.#running = false;
    }
    this.#askToBeWoken();
  }

  #deliver(envelope: Envelope): void {
    const { event } = envelope;
    if (event.type === ACTOR_STARTED) return this.#deliverStart(envelope, event as ActorStarted);
    const actor = this.#actors.get(envelope.to);
    if (!actor) {
      this.counters.undeliverable++;
      return;
    }
    if (event.type === ACTOR_STOPPED) {
      this.#timers.cancelAll(actor.id);
      this.#actors.delete(actor.id);
      const { cause } = this.#record(actor, envelope, [], false, 'stopped');
      this.#perform(actor, { type: ACTOR_STOPPED }, cause);
      return;
    }
    let decision: Decision;
    try {
      decision = actor.decider.next(actor.snapshot, event);
    } catch (error) {
      this.#fault({ actor: actor.id, during: event.type, error });
      return;
    }
    this.counters.events++;
    const before = actor.snapshot;
    const { snapshot, effects } = decision;
    if (snapshot === before && effects.length === 0) {
      if (!actor.decider.handles(before, event.type)) this.counters.unhandled++;
      this.#record(actor, envelope, effects, true, actor.state);
      return;
    }
    actor.snapshot = snapshot;
    const state = stateOf(snapshot);
    const steady = snapshot.context === before.context && before.hasTag('routine') && snapshot.hasTag('routine');
    // Going round in a routine is not a change of state that anybody would ask the reason of.
    const changed = state !== actor.state && !steady;
    const { entry, cause } = this.#record(actor, envelope, effects, steady, state);
    actor.state = state;
    if (changed) {
      this.counters.transitions++;
      actor.sinceUs = entry.wallUs;
      actor.cause = cause;
    }
    this.#performAll(actor, effects, cause);
    if (changed) this.#tellListeners(actor, entry);
  }

  #deliverStart(envelope: Envelope, started: ActorStarted): void {
    assert(!this.#actors.has(envelope.to), `actor ${envelope.to} is started twice`);
    const decider = this.#decider(started.machine);
    let decision: Decision;
    try {
      decision = decider.start(started.input);
    } catch (error) {
      this.#fault({ actor: envelope.to, during: ACTOR_STARTED, error });
      return;
    }
    this.counters.events++;
    const { snapshot, effects } = decision;
    const actor: Actor = {
      id: envelope.to,
      machine: started.machine,
      decider,
      snapshot,
      state: stateOf(snapshot),
      sinceUs: this.#world.clock.wallUs(),
      cause: { seq: null },
    };
    this.#actors.set(actor.id, actor);
    const { entry, cause } = this.#record(actor, envelope, effects, false, actor.state);
    actor.cause = cause;
    this.#performAll(actor, effects, cause);
    this.#tellListeners(actor, entry);
  }

  #tellListeners(actor: Actor, entry: Entry): void {
    for (const listener of this.#listeners) listener(stateOfActor(actor), entry);
  }

  #record(
    actor: Actor,
    envelope: Envelope,
    effects: Effect[],
    steady: boolean,
    state: string,
  ): { entry: Entry; cause: Cause } {
    const entry: Entry = {
      actor: actor.id,
      machine: actor.machine,
      origin: envelope.origin,
      from: envelope.from,
      event: envelope.event,
      cause: envelope.cause,
      state,
      effects,
      wallUs: this.#world.clock.wallUs(),
      monoUs: this.#world.clock.monoUs(),
      steady,
    };
    return { entry, cause: this.#world.recorder.append(entry) };
  }

  #performAll(actor: Actor, effects: Effect[], cause: Cause): void {
    for (const effect of effects) {
      if (effect.type === 'timer') {
        const { id, delayMs, event } = effect.params as TimerParams;
        const deadlineUs = this.#world.clock.monoUs() + Math.round(delayMs * 1000);
        this.#timers.set(actor.id, id, event, deadlineUs, cause, this.#world.precise?.has(actor.machine));
      } else if (effect.type === 'cancel') {
        this.#timers.cancel(actor.id, (effect.params as { id: string }).id);
      } else if (effect.type === 'moveTimer') {
        const { id, byMs } = effect.params as { id: string; byMs: number };
        // Not into the past: that would look like a loop that is late.
        this.#timers.move(actor.id, id, Math.round(byMs * 1000), this.#world.clock.monoUs());
      } else if (effect.type === 'tell') {
        const { to, event } = effect.params as { to: string; event: AnyEvent };
        this.#enqueue({ to, origin: 'message', from: actor.id, event, cause });
      } else {
        this.#perform(actor, effect, cause);
      }
    }
  }

  #perform(actor: Actor, effect: Effect, cause: Cause): void {
    const perform = this.#world.hands[actor.machine]?.[effect.type];
    if (!perform) return;
    const { id } = actor;
    try {
      perform(effect.params as never, { id, send: (event) => this.send(id, event, cause) });
    } catch (error) {
      this.#fault({ actor: id, during: effect.type, error });
    }
  }

  #fault(fault: Fault): void {
    this.counters.faults++;
    this.#world.onFault(fault);
  }

  #decider(machine: string): Decider {
    let decider = this.#deciders.get(machine);
    if (!decider) {
      const definition = this.#world.machines[machine];
      assert(definition, `no machine is called ${machine}`);
      this.#deciders.set(machine, (decider = new Decider(definition)));
    }
    return decider;
  }

  #askToBeWoken(): void {
    if (this.#running) return;
    const nextUs = this.#timers.nextDeadlineUs();
    this.#world.clock.wakeAt(nextUs, () => this.fireDue(), this.#timers.nextIsPrecise);
  }
}

const stateOfActor = (actor: Actor): ActorState => ({
  id: actor.id,
  machine: actor.machine,
  state: actor.state,
  context: actor.snapshot.context as unknown,
  sinceUs: actor.sinceUs,
  cause: actor.cause,
});
