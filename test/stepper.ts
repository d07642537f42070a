/** One machine on its own: events in, effects out, no system around it. */
import type { AnyStateMachine } from 'xstate';
import { Decider, stateOf } from '../actors/decide.ts';
import type { Effect, Snapshot, TimerParams } from '../actors/decide.ts';

export class Stepper<Event extends { type: string }, Context = unknown> {
  #decider: Decider;
  #snapshot: Snapshot;
  /** What it asked for when it started. */
  readonly started: Effect[];

  constructor(machine: AnyStateMachine, input: unknown) {
    this.#decider = new Decider(machine);
    const { snapshot, effects } = this.#decider.start(input);
    this.#snapshot = snapshot;
    this.started = effects;
  }

  send(event: Event): Effect[] {
    const { snapshot, effects } = this.#decider.next(this.#snapshot, event);
    this.#snapshot = snapshot;
    return effects;
  }

  /** Sends them in order; gives the effects of the last. */
  sendAll(...events: Event[]): Effect[] {
    let effects: Effect[] = [];
    for (const event of events) effects = this.send(event);
    return effects;
  }

  get snapshot(): Snapshot {
    return this.#snapshot;
  }

  get state(): string {
    return stateOf(this.#snapshot);
  }

  get context(): Context {
    return this.#snapshot.context as Context;
  }
}

export const typesOf = (effects: Effect[]): string[] => effects.map(({ type }) => type);

/** Delay of the timer that was set, by its id; null when none was. */
export const delayOf = (effects: Effect[], id: string): number | null => {
  const timer = effects.find(({ type, params }) => type === 'timer' && (params as TimerParams).id === id);
  return timer ? (timer.params as TimerParams).delayMs : null;
};

/** Events told to one actor, in order. */
export const toldTo = (effects: Effect[], actor: string): { type: string }[] =>
  effects
    .filter(({ type }) => type === 'tell')
    .map(({ params }) => params as { to: string; event: { type: string } })
    .filter(({ to }) => to === actor)
    .map(({ event }) => event);
