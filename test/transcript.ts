/**
 * A scenario as text: machines in an actor system on a virtual clock, a script of events and waits, and a transcript of
 * one line an event: milliseconds, actor, event, state, effects. Servers behind checkers are simulated: `probed` says
 * what the probes that start from then on find.
 */
import { healthCheckerHands } from '../actors/healthChecker.ts';
import type { ProbeAnswer } from '../actors/healthChecker.ts';
import { VirtualClock } from '../actors/clock.ts';
import type { Effect, TimerParams } from '../actors/decide.ts';
import { seededRandom } from '../actors/random.ts';
import { ActorSystem } from '../actors/system.ts';
import type { Entry } from '../actors/recorder.ts';
import type { Fault, Hands } from '../actors/system.ts';
import { machines } from '../machines/index.ts';
import type { MachineName } from '../machines/index.ts';

type Payload = Record<string, unknown>;

export type Step =
  | { do: 'say'; text: string }
  | { do: 'start'; id: string; machine: MachineName; input: unknown }
  | { do: 'send'; to: string; event: { type: string } }
  | { do: 'wait'; ms: number }
  | { do: 'probed'; checker: string; answer: ProbeAnswer };

export const say = (text: string): Step => ({ do: 'say', text });
export const start = (id: string, machine: MachineName, input: unknown): Step => ({ do: 'start', id, machine, input });
export const send = (to: string, type: string, payload: Payload = {}): Step => ({
  do: 'send',
  to,
  event: { ...payload, type },
});
export const wait = (ms: number): Step => ({ do: 'wait', ms });

const PASSED = { ok: true, code: 'L7OK', message: '' };
const FAILED = { ok: false, code: 'L4CON', message: '' };
export const healthy = (checker: string, durationMs = 1): Step => ({
  do: 'probed',
  checker,
  answer: { ...PASSED, durationMs },
});
export const broken = (checker: string, durationMs = 1): Step => ({
  do: 'probed',
  checker,
  answer: { ...FAILED, durationMs },
});

type Owed = { monoUs: number; deliver: () => void };

export class Scenario {
  readonly clock = new VirtualClock({ wallUs: 1_000_000_000_000, monoUs: 0 });
  readonly system: ActorSystem;
  readonly entries: Entry[] = [];
  readonly faults: Fault[] = [];
  /** When each probe was started, in ms, by checker. */
  readonly probes = new Map<string, number[]>();
  readonly aborted: string[] = [];
  #lines: string[] = [];
  #answers = new Map<string, ProbeAnswer>();
  #owed: Owed[] = [];
  #shows: (entry: Entry) => boolean;

  constructor({
    shows = () => true,
    hands = {},
  }: { shows?: (entry: Entry) => boolean; hands?: Record<string, Hands> } = {}) {
    this.#shows = shows;
    this.system = new ActorSystem({
      clock: this.clock,
      random: seededRandom(1),
      recorder: {
        append: (entry) => {
          this.entries.push(entry);
          if (this.#shows(entry)) this.#lines.push(lineOf(entry));
          return { seq: this.entries.length };
        },
      },
      machines,
      hands: {
        healthChecker: healthCheckerHands((checker, _timeoutMs, answer) => this.#probe(checker, answer)),
        ...hands,
      },
      onFault: (fault) => this.faults.push(fault),
    });
  }

  play(...script: Step[]): this {
    for (const step of script) {
      switch (step.do) {
        case 'say':
          this.#lines.push(this.#lines.length > 0 ? `\n# ${step.text}` : `# ${step.text}`);
          break;
        case 'start':
          this.system.start(step.id, step.machine, step.input);
          break;
        case 'send':
          this.system.send(step.to, step.event);
          break;
        case 'wait':
          this.#advance(step.ms);
          break;
        case 'probed':
          this.#answers.set(step.checker, step.answer);
      }
    }
    return this;
  }

  /** As a file keeps it. */
  get transcript(): string {
    return `${this.#lines.join('\n')}\n`;
  }

  stateOf(actor: string): string | null {
    return this.system.get(actor)?.state ?? null;
  }

  probesOf(checker: string): number[] {
    return this.probes.get(checker) ?? [];
  }

  /** What the data plane has been told altogether: every `publish` of a pool laid over the ones before. */
  published(pool: string): Record<string, number> {
    const weights = new Map<string, number>();
    for (const published of this.publications(pool)) {
      for (const [server, weight] of Object.entries(published)) {
        if (weight === 0) weights.delete(server);
        else weights.set(server, weight);
      }
    }
    return Object.fromEntries(weights);
  }

  publications(pool: string): Record<string, number>[] {
    return this.entries
      .filter(({ actor }) => actor === `pool/${pool}`)
      .flatMap(({ effects }) => effects.filter(({ type }) => type === 'publish'))
      .map(({ params }) => (params as { weights: Record<string, number> }).weights);
  }

  #probe(checker: string, answer: (result: ProbeAnswer) => void): () => void {
    const result = this.#answers.get(checker) ?? { ...PASSED, durationMs: 1 };
    this.probes.set(checker, [...this.probesOf(checker), this.clock.monoUs() / 1000]);
    const owed = { monoUs: this.clock.monoUs() + result.durationMs * 1000, deliver: () => answer(result) };
    this.#owed.push(owed);
    return () => {
      this.aborted.push(checker);
      this.#owed = this.#owed.filter((other) => other !== owed);
    };
  }

  #advance(ms: number): void {
    const untilUs = this.clock.monoUs() + ms * 1000;
    for (;;) {
      const soonest = this.#owed.toSorted((a, b) => a.monoUs - b.monoUs)[0];
      const timerUs = this.system.nextDeadlineUs() ?? Infinity;
      const nextUs = Math.min(soonest?.monoUs ?? Infinity, timerUs);
      if (nextUs > untilUs) break;
      this.clock.advanceTo(nextUs);
      if (soonest && soonest.monoUs <= timerUs) {
        this.#owed = this.#owed.filter((other) => other !== soonest);
        soonest.deliver();
      } else {
        this.system.fireDue();
      }
    }
    this.clock.advanceTo(untilUs);
  }
}

/** Without a checker's own rounds, and without what a pool hears and makes nothing of. */
export const withoutRounds = ({ steady, machine, effects }: Entry): boolean =>
  !steady && (machine !== 'pool' || effects.length > 0);

const lineOf = ({ monoUs, actor, event, state, effects }: Entry): string => {
  const { type, ...payload } = event as { type: string } & Payload;
  const shown = type === 'actor.started' ? '' : textOf(payload);
  const asked = effects.map(effectOf).join('; ');
  return `${String(monoUs / 1000).padStart(8)}  ${actor}  ${shortOf(type)}${shown} → ${state}${asked === '' ? '' : `  [${asked}]`}`;
};

const effectOf = ({ type, params }: Effect): string => {
  if (type === 'timer') {
    const { id, delayMs } = params as TimerParams;
    return `timer ${shortOf(id)} in ${delayMs}`;
  }
  if (type === 'tell') {
    const { to, event } = params as { to: string; event: { type: string } };
    const { type: told, ...payload } = event as { type: string } & Payload;
    return `${to} ← ${told}${textOf(payload)}`;
  }
  return `${type}${textOf((params ?? {}) as Payload)}`;
};

/** A timer by the name of its delay: which state set it can be seen. */
const shortOf = (name: string): string => name.replace(/^xstate\.after\.([^.]+)\..*$/, 'after $1');

/** Who a message is about, what a probe said in words, and what was configured don't help to follow a scenario. */
const LEFT_OUT = new Set(['server', 'pool', 'message', 'code', 'initially', 'checked', 'backup']);

const textOf = (payload: Payload): string =>
  Object.entries(payload)
    .filter(([key]) => !LEFT_OUT.has(key))
    .map(([key, value]) => ` ${key}=${typeof value === 'string' ? shortOf(value) : JSON.stringify(value)}`)
    .join('');
