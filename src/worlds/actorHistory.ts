/**
 * One actor's own history, decided again from the last checkpoint before it, so that what it knew at each moment can be
 * told. Runs are not spelled out: what is steady changes nothing.
 */
import { Decider, stateOf } from '../../actors/decide.ts';
import type { Snapshot } from '../../actors/decide.ts';
import { ACTOR_STARTED, ACTOR_STOPPED } from '../../actors/system.ts';
import { machines } from '../../machines/index.ts';
import type { MachineName } from '../../machines/index.ts';
import { decodedSteps } from '../journal/reader.ts';
import type { JournalReader } from '../journal/reader.ts';
import type { Row, Step } from '../journal/record.ts';

type Known<Context> = { state: string; context: Context } | null;

export type Moment<Context> = {
  row: Row;
  /** Null for a run, which changed nothing. */
  step: Step | null;
  /** What it knew before and after; `before` is null at its start, `after` when it was stopped. */
  before: Known<Context>;
  after: Known<Context>;
};

/** What the actor went through from a record on, up to a time. Nothing before a start or a checkpoint is known. */
export const historyOf = function* <Context>(
  reader: JournalReader,
  actor: string,
  machine: MachineName,
  fromSeq: number,
  untilUs: number,
): Generator<Moment<Context>> {
  const decider = new Decider(machines[machine]);
  const checkpoint = reader.checkpoint({ atMostSeq: fromSeq - 1 });
  const frozen = checkpoint?.actors.find(({ id }) => id === actor);
  let snapshot: Snapshot | null = frozen ? decider.restore(frozen) : null;
  for (const row of reader.rows({ actor, fromSeq: frozen ? checkpoint!.seq + 1 : 0, until: untilUs })) {
    const isAsked = row.seq >= fromSeq;
    if (row.count > 1 && snapshot && row.state === stateOf(snapshot)) {
      const same = momentOf(snapshot) as Known<Context>;
      if (isAsked) yield { row, step: null, before: same, after: same };
      continue;
    }
    for (const step of decodedSteps(row)) {
      const before = snapshot;
      snapshot = next(decider, snapshot, step);
      if (isAsked)
        yield { row, step, before: momentOf(before) as Known<Context>, after: momentOf(snapshot) as Known<Context> };
    }
  }
};

const next = (decider: Decider, snapshot: Snapshot | null, step: Step): Snapshot | null => {
  if (step.event.type === ACTOR_STOPPED) return null;
  if (step.event.type === ACTOR_STARTED) return decider.start(step.event['input']).snapshot;
  return snapshot && decider.next(snapshot, step.event).snapshot;
};

const momentOf = (snapshot: Snapshot | null): Known<unknown> =>
  snapshot && { state: stateOf(snapshot), context: snapshot.context as unknown };

/** Records of an actor that are no runs, newest first, up to a time. */
export const singlesBefore = function* (
  reader: JournalReader,
  filter: { actor: string; type?: string },
  untilUs: number,
): Generator<{ row: Row; step: Step }> {
  for (const row of reader.rows({ ...filter, newestFirst: true, until: untilUs }))
    if (row.count === 1) yield { row, step: decodedSteps(row)[0]! };
};
