/**
 * One step of one machine, pure: snapshot and event in, next snapshot and effects out. Every world goes through here,
 * so that replay decides with the very code that decided live.
 *
 * XState's own `transition()` builds a scope at each call (22 µs); one inert scope a machine, reused, makes it 5 µs.
 */
import { createActor, type AnyMachineSnapshot, type AnyStateMachine } from 'xstate';

export type Snapshot = AnyMachineSnapshot;

/** `timer`, `moveTimer` and `cancel` are for the timer table, `tell` for the mailbox, all others for the actor's hands. */
export type Effect = { type: string; params?: unknown };
export type TimerParams = { id: string; delayMs: number; event: { type: string } };

export type Decision = { snapshot: Snapshot; effects: Effect[] };

export type AnyEvent = { type: string };

type Collected = { type: string; params?: unknown };
type Scope = Parameters<AnyStateMachine['transition']>[2];

const NO_EFFECTS: Effect[] = [];

export class Decider {
  readonly machine: AnyStateMachine;
  #scope: Scope;
  #collected: Collected[] = [];
  #handled = new Map<string, boolean>();

  constructor(machine: AnyStateMachine) {
    this.machine = machine;
    // The scope wants an actor for `self` and `system`; it is never started.
    const self = createActor(machine);
    this.#scope = {
      self,
      id: '',
      sessionId: '',
      logger: () => {},
      defer: () => {},
      stopChild: () => {},
      emit: () => {},
      system: self.system,
      actionExecutor: (action: Collected) => {
        this.#collected.push(action);
      },
    };
  }

  start(input: unknown): Decision {
    this.#collected = [];
    const snapshot = this.machine.getInitialSnapshot(this.#scope as never, input) as Snapshot;
    // XState catches what a machine throws at its start, and only there.
    if (snapshot.status === 'error') throw snapshot.error;
    return { snapshot, effects: this.#takeEffects() };
  }

  next(before: Snapshot, event: AnyEvent): Decision {
    this.#collected = [];
    const snapshot = this.machine.transition(before, event, this.#scope) as Snapshot;
    return { snapshot, effects: this.#takeEffects() };
  }

  /** A snapshot as a checkpoint keeps it, alive again. */
  restore(persisted: PersistedSnapshot): Snapshot {
    return this.machine.resolveState({
      value: persisted.value as never,
      context: persisted.context,
    }) as Snapshot;
  }

  /** Whether the state has any handler, even an empty one, for this type of event. */
  handles(snapshot: Snapshot, type: string): boolean {
    const key = `${type} ${stateOf(snapshot)}`;
    let known = this.#handled.get(key);
    if (known === undefined) {
      // Not `ownEvents`: that leaves out handlers without target and actions.
      const nodes = snapshot._nodes as { transitions: Map<string, unknown> }[];
      known = nodes.some(({ transitions }) => transitions.has(type) || transitions.has('*'));
      this.#handled.set(key, known);
    }
    return known;
  }

  #takeEffects(): Effect[] {
    if (this.#collected.length === 0) return NO_EFFECTS;
    const effects: Effect[] = [];
    for (const action of this.#collected) {
      if (action.type === 'xstate.raise') {
        const params = action.params as { event: AnyEvent; id?: string; delay?: number };
        // Without a delay it was an internal event, consumed within this very step.
        if (params.delay === undefined) continue;
        effects.push({
          type: 'timer',
          params: { id: params.id ?? params.event.type, delayMs: params.delay, event: params.event },
        });
      } else if (action.type === 'xstate.cancel') {
        effects.push({ type: 'cancel', params: { id: (action.params as { sendId: string }).sendId } });
      } else if (action.params === undefined) {
        effects.push({ type: action.type });
      } else {
        effects.push({ type: action.type, params: action.params });
      }
    }
    this.#collected = [];
    return effects;
  }
}

export type PersistedSnapshot = { value: unknown; context: unknown };

export const persist = (snapshot: Snapshot): PersistedSnapshot => ({
  value: snapshot.value,
  context: snapshot.context as unknown,
});

/** `up`, `probing.overdue`, and for parallel regions their states in the order of the machine: `up,ready,warm`. */
export const stateOf = (snapshot: Snapshot): string => stateText(snapshot.value as StateValue);

type StateValue = string | { [region: string]: StateValue };

const stateText = (value: StateValue): string => {
  if (typeof value === 'string') return value;
  const regions = Object.keys(value);
  if (regions.length === 1) return `${regions[0]}.${stateText(value[regions[0]!]!)}`;
  return regions.map((region) => stateText(value[region]!)).join(',');
};

/** Every delay, guard, action and transition by name: changes when the machine's shape does. */
export const shapeOf = (machine: AnyStateMachine): string =>
  JSON.stringify(machine.config, (_key, value: unknown) => (typeof value === 'function' ? '(expression)' : value));
