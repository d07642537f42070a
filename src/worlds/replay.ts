/**
 * The replay world: every record of a journal is given to this code's machines again, in order, without a clock, and
 * what they decide is compared with what was recorded.
 */
import { Decider, persist, stateOf } from '../../actors/decide.ts';
import type { Effect, Snapshot } from '../../actors/decide.ts';
import { ACTOR_STARTED, ACTOR_STOPPED } from '../../actors/system.ts';
import { machines } from '../../machines/index.ts';
import type { MachineName } from '../../machines/index.ts';
import { messageOf, UnderstudyError } from '../errors.ts';
import { decodedSteps } from '../journal/reader.ts';
import type { Checkpoint, JournalReader } from '../journal/reader.ts';
import { GAP } from '../journal/record.ts';
import type { Step } from '../journal/record.ts';

export type ReplayedActor = {
  id: string;
  machine: string;
  snapshot: Snapshot;
  state: string;
  /** When it entered its state (µs since 1970), and the record that made it. */
  sinceUs: number;
  bySeq: number;
};

export type Divergence = {
  seq: number;
  actor: string;
  timeUs: number;
  event: string;
  what: string;
  recorded: unknown;
  decided: unknown;
};

export type Replayed = {
  step: Step;
  /** Null for a first event, and for the node's own records. */
  before: string | null;
  after: string;
  /** The state is another one; going round in a routine is no change. */
  changed: boolean;
  divergence: Divergence | null;
};

const divergenceOf = (step: Step, what: string, recorded: unknown, decided: unknown): Divergence => ({
  seq: step.seq,
  actor: step.actor,
  timeUs: step.wallUs,
  event: step.event.type,
  what,
  recorded,
  decided,
});

export class Replay {
  readonly actors = new Map<string, ReplayedActor>();
  /** Gaps met on the way, for which nothing could be decided until the checkpoint after them. */
  readonly gaps: { from: number; through: number; resumedAt: number | null }[] = [];
  steps = 0;
  rows = 0;
  #reader: JournalReader;
  #deciders = new Map<string, Decider>();

  constructor(reader: JournalReader) {
    this.#reader = reader;
  }

  /**
   * Goes through the journal up to a time. With `seek` it starts at the last checkpoint before it, for those who want
   * the state only. `beforeRow` is called when all before that row has been decided, and nothing of it.
   * @throws UnderstudyError RECORD_UNREADABLE, also for a record that is missing
   */
  *run(options: { untilUs?: number; seek?: boolean; beforeRow?: (seq: number) => void } = {}): Generator<Replayed> {
    const untilUs = options.untilUs ?? Number.MAX_SAFE_INTEGER;
    let fromSeq = this.#reader.bounds().firstSeq;
    const start =
      options.seek === true
        ? this.#reader.checkpoint({ atMostTime: untilUs })
        : // What retention has cut off begins with a checkpoint; a whole journal with the start of the node.
          fromSeq > 1
          ? this.#reader.checkpoint({ atLeastSeq: fromSeq - 1 })
          : null;
    if (start) {
      this.#load(start);
      fromSeq = start.seq + 1;
    }
    let skipThrough = 0;
    let expectedSeq = fromSeq;
    for (const row of this.#reader.rows({ fromSeq })) {
      if (row.seq <= skipThrough) continue;
      if (row.seq !== expectedSeq && skipThrough === 0) throw missing(expectedSeq, row.seq);
      expectedSeq = row.seq + 1;
      skipThrough = 0;
      options.beforeRow?.(row.seq);
      this.rows++;
      // A run that ends after `until` may have begun before it, but not in an earlier life of the node.
      if (row.time > untilUs && row.count === 1) {
        if (row.type === 'node.started') break;
        continue;
      }
      const steps = decodedSteps(row);
      const recordedState = row.count > 1 ? row.state : null;
      for (const [index, step] of steps.entries()) {
        if (step.wallUs > untilUs) break;
        if (step.event.type === GAP) {
          skipThrough = this.#crossGap(step);
          yield { step, before: null, after: '', changed: false, divergence: null };
          continue;
        }
        this.steps++;
        const replayed = this.#decide(step);
        // A run has its last state as a column too, for those who look with SQL.
        if (recordedState !== null && index === steps.length - 1 && recordedState !== step.state) {
          replayed.divergence ??= divergenceOf(step, 'another state in the column', recordedState, step.state);
        }
        yield replayed;
      }
    }
  }

  #crossGap(step: Step): number {
    const { from, through } = step.event as unknown as { from: number; through: number };
    const checkpoint = this.#reader.checkpoint({ atLeastSeq: through });
    this.gaps.push({ from, through, resumedAt: checkpoint?.seq ?? null });
    this.actors.clear();
    if (!checkpoint) return Number.MAX_SAFE_INTEGER;
    this.#load(checkpoint);
    return checkpoint.seq;
  }

  #load(checkpoint: Checkpoint): void {
    this.actors.clear();
    for (const { id, machine, sinceUs, ...persisted } of checkpoint.actors) {
      const snapshot = this.#decider(machine).restore(persisted);
      this.actors.set(id, { id, machine, snapshot, state: stateOf(snapshot), sinceUs, bySeq: checkpoint.seq });
    }
  }

  #decide(step: Step): Replayed {
    const { event } = step;
    if (step.origin === 'node') {
      // Each start of the node begins with no actor at all.
      if (event.type === 'node.started') this.actors.clear();
      return { step, before: null, after: '', changed: false, divergence: null };
    }
    const actor = this.actors.get(step.actor);
    if (event.type === ACTOR_STOPPED) {
      this.actors.delete(step.actor);
      return { step, before: actor?.state ?? null, after: 'stopped', changed: true, divergence: null };
    }
    const divergence = (what: string, recorded: unknown, decided: unknown): Divergence =>
      divergenceOf(step, what, recorded, decided);
    if (!actor && event.type !== ACTOR_STARTED) {
      return {
        step,
        before: null,
        after: step.state,
        changed: false,
        divergence: divergence('the actor was never started', step.state, null),
      };
    }
    const machine = actor?.machine ?? String(event['machine']);
    let decision: { snapshot: Snapshot; effects: Effect[] };
    try {
      const decider = this.#decider(machine);
      decision = actor ? decider.next(actor.snapshot, event) : decider.start(event['input']);
    } catch (error) {
      return {
        step,
        before: actor?.state ?? null,
        after: step.state,
        changed: false,
        divergence: divergence('the machine failed', step.state, messageOf(error)),
      };
    }
    const state = stateOf(decision.snapshot);
    const before = actor?.state ?? null;
    // As the actor system has it: going round in a routine with an unchanged context.
    const routine =
      actor !== undefined &&
      actor.snapshot.context === decision.snapshot.context &&
      actor.snapshot.hasTag('routine') &&
      decision.snapshot.hasTag('routine');
    const changed = before !== state && !routine;
    this.actors.set(step.actor, {
      id: step.actor,
      machine,
      snapshot: decision.snapshot,
      state,
      sinceUs: changed || !actor ? step.wallUs : actor.sinceUs,
      bySeq: changed || !actor ? step.seq : actor.bySeq,
    });
    return {
      step,
      before,
      after: state,
      changed,
      divergence: this.#compare(step, state, decision.effects, divergence),
    };
  }

  #compare(
    step: Step,
    state: string,
    effects: Effect[],
    divergence: (what: string, recorded: unknown, decided: unknown) => Divergence,
  ): Divergence | null {
    if (state !== step.state) return divergence('another state', step.state, state);
    if (!same(effects, step.effects)) return divergence('other effects', step.effects, effects);
    return null;
  }

  #decider(machine: string): Decider {
    let decider = this.#deciders.get(machine);
    if (!decider) {
      const definition = machines[machine as MachineName] as (typeof machines)[MachineName] | undefined;
      if (!definition) throw new Error(`this version has no machine ${machine}`);
      this.#deciders.set(machine, (decider = new Decider(definition)));
    }
    return decider;
  }
}

/** Deep equality of plain data; a property that is undefined is one that isn't there. */
const same = (a: unknown, b: unknown): boolean => {
  if (a === b) return true;
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false;
  if (Array.isArray(a) !== Array.isArray(b)) return false;
  const left = a as Record<string, unknown>;
  const right = b as Record<string, unknown>;
  for (const key of Object.keys(left)) if (!same(left[key], right[key])) return false;
  for (const key of Object.keys(right)) if (left[key] === undefined && right[key] !== undefined) return false;
  return true;
};

export type VerifyResult = {
  rows: number;
  events: number;
  checkpoints: number;
  gaps: Replay['gaps'];
  divergence: Divergence | null;
};

/** Decides every record again. @throws UnderstudyError RECORD_UNREADABLE for a record that was altered or damaged */
export const verify = (reader: JournalReader): VerifyResult => {
  const replay = new Replay(reader);
  let checkpoints = 0;
  let lastSeq = 0;
  let divergence: Divergence | null = null;
  const seqs = reader.checkpointSeqs();
  let next = 0;
  const compareCheckpoints = (beforeSeq: number): void => {
    for (; next < seqs.length && seqs[next]! < beforeSeq; next++) {
      if (divergence || seqs[next]! !== lastSeq) continue;
      const checkpoint = reader.checkpoint({ atLeastSeq: lastSeq, atMostSeq: lastSeq });
      if (!checkpoint) continue;
      checkpoints++;
      divergence = differenceTo(checkpoint, replay);
    }
  };
  for (const { step, divergence: found } of replay.run({ beforeRow: compareCheckpoints })) {
    divergence ??= found;
    if (divergence) break;
    lastSeq = step.event.type === GAP ? Number(step.event['through']) : step.seq;
  }
  compareCheckpoints(Number.MAX_SAFE_INTEGER);
  return { rows: replay.rows, events: replay.steps, checkpoints, gaps: replay.gaps, divergence };
};

const missing = (from: number, next: number): UnderstudyError => {
  const which = next === from + 1 ? `record ${from} is` : `records ${from} to ${next - 1} are`;
  return new UnderstudyError('RECORD_UNREADABLE', `${which} missing: the next one is ${next}`);
};

const differenceTo = (checkpoint: Checkpoint, replay: Replay): Divergence | null => {
  const recordedById = new Map(checkpoint.actors.map(({ id, value, context }) => [id, { value, context }]));
  for (const id of new Set([...recordedById.keys(), ...replay.actors.keys()])) {
    const recorded = recordedById.get(id) ?? null;
    const actor = replay.actors.get(id);
    const decided = actor ? persist(actor.snapshot) : null;
    if (same(decided, recorded)) continue;
    return {
      seq: checkpoint.seq,
      actor: id,
      timeUs: checkpoint.time,
      event: 'checkpoint',
      what: 'another snapshot at the checkpoint',
      recorded,
      decided,
    };
  }
  return null;
};
