/**
 * The what-if world: the recorded inputs, at their times, given to the actors of another configuration. Timers and
 * messages arise anew on a virtual clock.
 *
 * A probe is an input that the configuration itself asks for: with another interval it would have been sent at other
 * moments. So a checker that starts a probe in this world is answered with what the recorded probe nearest to that
 * moment saw. Under an unchanged configuration that is the very probe that was recorded. Routers: see whatifRouters.ts.
 */
import { healthCheckerHands } from '../../actors/healthChecker.ts';
import type { ProbeAnswer } from '../../actors/healthChecker.ts';
import { seededRandom } from '../../actors/random.ts';
import { ACTOR_STARTED, ACTOR_STOPPED, ActorSystem } from '../../actors/system.ts';
import { VirtualClock } from '../../actors/clock.ts';
import { COMMANDS_ACTOR } from '../../machines/commandDesk.ts';
import { machines } from '../../machines/index.ts';
import type { Config } from '../config/schema.ts';
import type { JournalReader } from '../journal/reader.ts';
import type { Step } from '../journal/record.ts';
import type { RouterContext } from '../../machines/vrrpRouter.ts';
import { phaseOf } from '../vrrp/reasons.ts';
import { actorsOf, holdersOf, serverId } from '../wiring.ts';
import { nearestObservation } from './observations.ts';
import type { Observed } from './observations.ts';
import { Replay } from './replay.ts';
import { realMastership, WhatIfRouters } from './whatifRouters.ts';
import type { RealMastership } from './whatifRouters.ts';
import { isOthersWord, untoldOfShared } from './whatifShared.ts';

export type WhatIfTransition = { timeUs: number; actor: string; state: string; event: string };

export type WhatIf = {
  fromUs: number;
  untilUs: number;
  /** What really happened, and what would have: transitions of all but checkers and the journal. */
  real: WhatIfTransition[];
  would: WhatIfTransition[];
  /** Servers, their traffic, trackers and routers of the new configuration of which the journal has seen nothing. */
  unobserved: string[];
  /** What peers are taken to have done that the journal can't tell, in sentences. */
  assumed: string[];
  /** What the journal can't tell of this configuration, in sentences. */
  untold: string[];
};

/** Actors that no configuration asks for. */
const BESIDE = new Set(['journal', 'node', 'courier', COMMANDS_ACTOR]);

/**
 * Actors whose transitions are compared: a checker's own rounds are nobody's question, nor are this node's views where a
 * verdict is what the server hears, and other nodes are as they were.
 */
const isCompared = (actor: string): boolean => !/^(checker|quorum|member)\//.test(actor) && !BESIDE.has(actor);

/** What belongs to routers is compared by what it is to others: `backup.deciding` is BACKUP. */
const shownState = (actor: string, state: string): string => {
  if (actor.startsWith('router/')) return state === 'initialize.stopped' ? 'stopped' : phaseOf(state);
  return actor.startsWith('address/') && state === 'announcing' ? 'held' : state;
};

const isOfRouters = (actor: string): boolean => /^(router|address|tracker|group)\//.test(actor);

/** Keeps what was shown last of each actor, as routine steps of these have names of their own. */
class Shown {
  #last = new Map<string, string>();

  /** The state to be shown, null when it is none or the same as before. */
  take(actor: string, state: string, isChange: boolean): string | null {
    if (!isCompared(actor)) return null;
    if (!isOfRouters(actor)) return isChange ? state : null;
    // A tracker that stops with its node has seen nothing.
    if (state === 'stopped') return null;
    const shown = shownState(actor, state);
    const isNews = this.#last.get(actor) !== shown;
    this.#last.set(actor, shown);
    return isNews ? shown : null;
  }

  /** Another run of the node: everything starts again. */
  clear(): void {
    this.#last.clear();
  }
}

/** Inputs that the world makes itself: actors start as the new configuration has it, probes are answered when asked. */
const NOT_REPLAYED = new Set<string>([
  ACTOR_STARTED,
  ACTOR_STOPPED,
  'settings.changed',
  'server.left',
  'probe.passed',
  'probe.failed',
]);

type Epoch = { steps: Step[]; real: Map<string, RealMastership[]> };

/** @throws UnderstudyError RECORD_UNREADABLE */
export const whatIf = (reader: JournalReader, config: Config): WhatIf => {
  const result: WhatIf = { fromUs: 0, untilUs: 0, real: [], would: [], unobserved: [], assumed: [], untold: [] };
  const replay = new Replay(reader);
  const shown = new Shown();
  let epoch: Epoch = { steps: [], real: new Map() };
  let epochNumber = -1;
  let heardOthers = false;
  const playEpoch = () => {
    if (epoch.steps.length > 0) playOne(epoch, config, result);
    epoch = { steps: [], real: new Map() };
    shown.clear();
  };
  for (const { step, changed } of replay.run()) {
    if (step.epoch !== epochNumber) playEpoch();
    epochNumber = step.epoch;
    epoch.steps.push(step);
    if (result.fromUs === 0) result.fromUs = step.wallUs;
    result.untilUs = Math.max(result.untilUs, step.wallUs);
    const { actor, event, state, wallUs } = step;
    const news = shown.take(actor, state, changed || event.type === ACTOR_STARTED);
    if (news !== null) result.real.push({ timeUs: wallUs, actor, state: news, event: event.type });
    if (actor.startsWith('router/')) noteMastership(epoch, step, replay);
    heardOthers ||= isOthersWord(step);
  }
  playEpoch();
  result.unobserved = [...new Set(result.unobserved)];
  result.assumed = [...new Set(result.assumed)];
  result.real.sort((a, b) => a.timeUs - b.timeUs);
  result.untold = [...untoldOf(result), ...untoldOfShared(config, heardOthers)];
  return result;
};

/** So far apart, two ejections are the same one: a worker's report may be in either world a little later. */
const SAME_EJECTION_US = 1_000_000;

/** A server that was out of traffic has been seen by nobody. */
const untoldOf = ({ real, would }: WhatIf): string[] => {
  const isEjection = ({ actor, state }: WhatIfTransition) => actor.startsWith('observer/') && state === 'ejected';
  const ejections = would.filter(isEjection);
  const untold = new Set<string>();
  for (const { actor, timeUs } of real.filter(isEjection)) {
    const isToo = ejections.some((one) => one.actor === actor && Math.abs(one.timeUs - timeUs) <= SAME_EJECTION_US);
    if (!isToo)
      untold.add(
        `${actor.replace('observer/', '')} was really ejected, and would not have been then: what it would have answered meanwhile is not known, and taken to be well`,
      );
  }
  return [...untold];
};

const noteMastership = ({ real }: Epoch, { actor, monoUs }: Step, replay: Replay): void => {
  const replayed = replay.actors.get(actor);
  if (!replayed) return;
  const now = realMastership(monoUs, replayed.state, replayed.snapshot.context as RouterContext);
  const list = real.get(actor);
  if (!list) real.set(actor, [now]);
  else if (list.at(-1)!.priority !== now.priority) list.push(now);
};

const playOne = ({ steps, real }: Epoch, config: Config, result: WhatIf): void => {
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
  const routers = new WhatIfRouters({
    config,
    recordedConfig: recordedConfigOf(ordered),
    clock,
    steps: ordered,
    real,
    system: () => system,
    owe,
    unobserved: (actor) => result.unobserved.push(actor),
    assumed: (text) => result.assumed.push(text),
  });
  const system: ActorSystem = new ActorSystem({
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
          if (routers.answersListener(actor.id, 'open') || heardOf.has(actor.id)) return;
          owe(clock.monoUs(), () => actor.send({ type: 'listener.opened' }));
        },
        drainListener: (_: never, actor) => {
          if (routers.answersListener(actor.id, 'drained') || heardOf.has(actor.id)) return;
          owe(clock.monoUs(), () => actor.send({ type: 'listener.drained' }));
        },
      },
      proxyWorker: {
        startWorker: (_: never, actor) => {
          if (!heardOf.has(actor.id)) owe(clock.monoUs(), () => actor.send({ type: 'worker.ready' }));
        },
      },
      ...routers.hands,
    },
    onFault: ({ error }) => {
      throw error;
    },
  });
  const shown = new Shown();
  system.onTransition((actor, entry) => {
    const news = shown.take(actor.id, actor.state, true);
    if (news !== null)
      result.would.push({ timeUs: entry.wallUs, actor: actor.id, state: news, event: entry.event.type });
  });

  const hints = new Map(
    ordered
      .filter(({ event }) => event.type === ACTOR_STARTED)
      .map(({ actor, event }) => [actor, hintOf(event['input'])]),
  );
  const holders = holdersOf(config);
  for (const spec of actorsOf(config)) {
    const hint = hints.get(spec.id);
    system.start(spec.id, spec.machine, hint === undefined ? spec.input : { ...spec.input, hint });
    if (spec.machine === 'trafficObserver' && !heardOf.has(spec.id)) result.unobserved.push(spec.id);
    if (spec.machine === 'listener' && !holders.has(spec.id)) system.send(spec.id, { type: 'listener.open' });
  }
  for (const [pool, { servers }] of Object.entries(config.backends)) {
    for (const { name, disabled } of servers) {
      if (disabled) system.send(serverId(pool, name), { type: 'operator.maintenance' });
    }
  }
  // Operators' commands to the cluster come to its desk, which tells the actors of this world.
  if (heardOf.has(COMMANDS_ACTOR)) {
    const started = ordered.find(({ actor, event }) => actor === COMMANDS_ACTOR && event.type === ACTOR_STARTED);
    system.start(COMMANDS_ACTOR, 'commandDesk', started?.event['input']);
  }
  const inputs = ordered.filter((step) => {
    const { origin, event, actor } = step;
    return (
      (origin === 'input' || origin === 'remote') &&
      !NOT_REPLAYED.has(event.type) &&
      event.type !== 'listener.open' &&
      event['configured'] !== true &&
      system.has(actor) &&
      routers.takes(step)
    );
  });
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
      system.deliver(input.actor, routers.asRead(input), 'input');
    } else system.fireDue();
  }
};

const hintOf = (input: unknown): 'up' | 'down' | undefined => (input as { hint?: 'up' | 'down' } | null)?.hint;

/** What the journal says that was configured; secrets are not in it. */
const recordedConfigOf = (steps: Step[]): Config | null =>
  (steps.find(({ event }) => event.type === 'node.started')?.event['config'] as Config | undefined) ?? null;

const observationsOf = (steps: Step[]): Map<string, Observed<ProbeAnswer>[]> => {
  const observations = new Map<string, Observed<ProbeAnswer>[]>();
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
const answerTo = (
  observations: Observed<ProbeAnswer>[],
  nowUs: number,
  timeoutMs: number,
): Observed<ProbeAnswer> | null => {
  const found = nearestObservation(observations, nowUs, timeoutMs);
  if (!found) return null;
  const { answer } = found.seen;
  if (answer.durationMs > timeoutMs) {
    const code = answer.code.replace(/(OK|CON|RSP|STS|ERR|TOUT)$/, 'TOUT');
    const message = `it took ${answer.durationMs} ms; ${timeoutMs} ms are allowed`;
    return { monoUs: nowUs + timeoutMs * 1000, answer: { ok: false, code, message, durationMs: timeoutMs } };
  }
  if (found.isSame) return found.seen;
  return { monoUs: nowUs + Math.round(answer.durationMs * 1000), answer };
};
