/**
 * The what-if world: the recorded inputs, at their times, given to the actors of another configuration. Timers and
 * messages arise anew on a virtual clock.
 *
 * A probe is an input that the configuration itself asks for: with another interval it would have been sent at other
 * moments. So a checker that starts a probe in this world is answered with what the recorded probe nearest to that
 * moment saw. Under an unchanged configuration that is the very probe that was recorded.
 */
import { healthCheckerHands } from '../../actors/healthChecker.ts';
import type { ProbeAnswer } from '../../actors/healthChecker.ts';
import { seededRandom } from '../../actors/random.ts';
import { ACTOR_STARTED, ACTOR_STOPPED, ActorSystem } from '../../actors/system.ts';
import { VirtualClock } from '../../actors/clock.ts';
import { machines } from '../../machines/index.ts';
import type { Config } from '../config/schema.ts';
import type { JournalReader } from '../journal/reader.ts';
import type { Step } from '../journal/record.ts';
import { actorsOf, serverId } from '../wiring.ts';
import { Replay } from './replay.ts';

export type WhatIfTransition = { timeUs: number; actor: string; state: string; event: string };

export type WhatIf = {
  fromUs: number;
  untilUs: number;
  /** What really happened, and what would have: transitions of servers, pools, listeners and workers. */
  real: WhatIfTransition[];
  would: WhatIfTransition[];
  /** Servers of the new configuration of which the journal has no probe. */
  unobserved: string[];
};

type Observation = { monoUs: number; answer: ProbeAnswer };

/** Actors whose transitions are compared; a checker's own rounds are nobody's question. */
const isCompared = (actor: string): boolean => !actor.startsWith('checker/') && actor !== 'journal' && actor !== 'node';

/** Inputs that the world makes itself: actors start as the new configuration has it, probes are answered when asked. */
const NOT_REPLAYED = new Set<string>([
  ACTOR_STARTED,
  ACTOR_STOPPED,
  'settings.changed',
  'server.left',
  'probe.passed',
  'probe.failed',
]);

/** @throws UnderstudyError RECORD_UNREADABLE */
export const whatIf = (reader: JournalReader, config: Config): WhatIf => {
  const result: WhatIf = { fromUs: 0, untilUs: 0, real: [], would: [], unobserved: [] };
  const replay = new Replay(reader);
  let epoch: Step[] = [];
  let epochNumber = -1;
  const playEpoch = () => {
    if (epoch.length === 0) return;
    playOne(epoch, config, result);
    epoch = [];
  };
  for (const { step, changed } of replay.run()) {
    if (step.epoch !== epochNumber) playEpoch();
    epochNumber = step.epoch;
    epoch.push(step);
    if (result.fromUs === 0) result.fromUs = step.wallUs;
    result.untilUs = Math.max(result.untilUs, step.wallUs);
    const isStart = step.event.type === ACTOR_STARTED;
    if ((changed || isStart) && isCompared(step.actor)) {
      result.real.push({ timeUs: step.wallUs, actor: step.actor, state: step.state, event: step.event.type });
    }
  }
  playEpoch();
  result.unobserved = [...new Set(result.unobserved)];
  result.real.sort((a, b) => a.timeUs - b.timeUs);
  return result;
};

const playOne = (steps: Step[], config: Config, result: WhatIf): void => {
  // Runs are written when they end: by time the steps of different actors interleave as they happened.
  const ordered = steps.toSorted((a, b) => a.monoUs - b.monoUs || a.seq - b.seq);
  const first = ordered[0]!;
  const last = ordered.at(-1)!;
  const clock = new VirtualClock({ wallUs: first.wallUs, monoUs: first.monoUs });
  const observations = observationsOf(ordered);
  const heardOf = new Set(ordered.map(({ actor }) => actor));
  /** Answers that the world owes, soonest first. */
  const owed: { monoUs: number; deliver: () => void }[] = [];
  const owe = (monoUs: number, deliver: () => void) => {
    const index = owed.findIndex((other) => other.monoUs > monoUs);
    owed.splice(index === -1 ? owed.length : index, 0, { monoUs, deliver });
  };
  const system = new ActorSystem({
    clock,
    random: seededRandom(1),
    recorder: { append: () => ({ seq: null }) },
    machines,
    hands: {
      healthChecker: healthCheckerHands((checker, timeoutMs, answer) => {
        const seen = answerTo(observations.get(checker) ?? [], clock.monoUs(), timeoutMs);
        if (!seen) {
          result.unobserved.push(checker.replace('checker/', 'server/'));
          return () => {};
        }
        let given = true;
        owe(seen.monoUs, () => {
          if (given) answer(seen.answer);
        });
        return () => (given = false);
      }),
      // What the journal has no answer for would have gone well.
      listener: {
        openListener: (_: never, actor) => {
          if (!heardOf.has(actor.id)) owe(clock.monoUs(), () => actor.send({ type: 'listener.opened' }));
        },
        drainListener: (_: never, actor) => {
          if (!heardOf.has(actor.id)) owe(clock.monoUs(), () => actor.send({ type: 'listener.drained' }));
        },
      },
      proxyWorker: {
        startWorker: (_: never, actor) => {
          if (!heardOf.has(actor.id)) owe(clock.monoUs(), () => actor.send({ type: 'worker.ready' }));
        },
      },
    },
    onFault: ({ error }) => {
      throw error;
    },
  });
  system.onTransition((actor, entry) => {
    if (!isCompared(actor.id)) return;
    result.would.push({ timeUs: entry.wallUs, actor: actor.id, state: actor.state, event: entry.event.type });
  });

  const hints = new Map(
    ordered
      .filter(({ event }) => event.type === ACTOR_STARTED)
      .map(({ actor, event }) => [actor, hintOf(event['input'])]),
  );
  for (const spec of actorsOf(config)) {
    const hint = hints.get(spec.id);
    system.start(spec.id, spec.machine, hint === undefined ? spec.input : { ...spec.input, hint });
    if (spec.machine === 'listener') system.send(spec.id, { type: 'listener.open' });
  }
  for (const [pool, { servers }] of Object.entries(config.backends)) {
    for (const { name, disabled } of servers) {
      if (disabled) system.send(serverId(pool, name), { type: 'operator.maintenance' });
    }
  }
  const inputs = ordered.filter(
    ({ origin, event, actor }) =>
      origin === 'input' &&
      !NOT_REPLAYED.has(event.type) &&
      event.type !== 'listener.open' &&
      event['configured'] !== true &&
      system.has(actor),
  );
  let nextInput = 0;
  for (;;) {
    const input = inputs[nextInput];
    const nextUs = Math.min(
      input?.monoUs ?? Infinity,
      owed[0]?.monoUs ?? Infinity,
      system.nextDeadlineUs() ?? Infinity,
    );
    if (nextUs > last.monoUs) return;
    clock.advanceTo(nextUs);
    if (owed[0] && owed[0].monoUs <= nextUs) owed.shift()!.deliver();
    else if (input && input.monoUs <= nextUs) {
      nextInput++;
      system.deliver(input.actor, input.event, 'input');
    } else system.fireDue();
  }
};

const hintOf = (input: unknown): 'up' | 'down' | undefined => (input as { hint?: 'up' | 'down' } | null)?.hint;

const observationsOf = (steps: Step[]): Map<string, Observation[]> => {
  const observations = new Map<string, Observation[]>();
  for (const { actor, event, monoUs } of steps) {
    if (event.type !== 'probe.passed' && event.type !== 'probe.failed') continue;
    const { code, message, durationMs } = event as unknown as ProbeAnswer;
    const list = observations.get(actor) ?? [];
    list.push({ monoUs, answer: { ok: event.type === 'probe.passed', code, message, durationMs } });
    observations.set(actor, list);
  }
  return observations;
};

/** What a probe started now would have seen, and when it would have ended. */
const answerTo = (observations: Observation[], nowUs: number, timeoutMs: number): Observation | null => {
  const nextIndex = firstAfter(observations, nowUs);
  const next = observations[nextIndex];
  const previous = observations[nextIndex - 1];
  const seen = nearest(previous, next, nowUs, timeoutMs);
  if (!seen) return null;
  const { answer } = seen;
  if (answer.durationMs > timeoutMs) {
    const code = answer.code.replace(/(OK|CON|RSP|STS|ERR|TOUT)$/, 'TOUT');
    const message = `it took ${answer.durationMs} ms; ${timeoutMs} ms are allowed`;
    return { monoUs: nowUs + timeoutMs * 1000, answer: { ok: false, code, message, durationMs: timeoutMs } };
  }
  if (seen === next && next.monoUs - nowUs <= timeoutMs * 1000) return next;
  return { monoUs: nowUs + Math.round(answer.durationMs * 1000), answer };
};

const nearest = (
  previous: Observation | undefined,
  next: Observation | undefined,
  nowUs: number,
  timeoutMs: number,
): Observation | null => {
  if (!previous || !next) return next ?? previous ?? null;
  // One that ended within the timeout from now may well have been this very probe.
  if (next.monoUs - nowUs <= timeoutMs * 1000) return next;
  return next.monoUs - nowUs < nowUs - previous.monoUs ? next : previous;
};

const firstAfter = (observations: Observation[], nowUs: number): number => {
  let low = 0;
  let high = observations.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (observations[middle]!.monoUs > nowUs) high = middle;
    else low = middle + 1;
  }
  return low;
};
