/**
 * A scenario as text: machines in an actor system on a virtual clock, a script of events and waits, and a transcript of
 * one line an event: milliseconds, actor, event, state, effects. Servers behind checkers are simulated: `probed` says
 * what the probes that start from then on find. Routers are on a simulated wire: those with the same VRID hear each other,
 * and addresses are put where they are asked for, unless the script says otherwise.
 */
import { virtualAddressHands } from '../actors/virtualAddress.ts';
import type { AddressAnswer } from '../actors/virtualAddress.ts';
import { syncGroupHands, vrrpRouterHands } from '../actors/vrrpRouter.ts';
import type { StateNotice } from '../actors/vrrpRouter.ts';
import { masterDownMs } from '../machines/vrrpRouter.ts';
import type { RouterContext } from '../machines/vrrpRouter.ts';
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
  | { do: 'stall'; ms: number }
  | { do: 'stop'; id: string }
  | { do: 'probed'; checker: string; answer: ProbeAnswer }
  | { do: 'addressed'; address: string; answer: AddressAnswer };

export const say = (text: string): Step => ({ do: 'say', text });
export const start = (id: string, machine: MachineName, input: unknown): Step => ({ do: 'start', id, machine, input });
export const send = (to: string, type: string, payload: Payload = {}): Step => ({
  do: 'send',
  to,
  event: { ...payload, type },
});
export const wait = (ms: number): Step => ({ do: 'wait', ms });
/** The control loop stands still: what arrives waits in the sockets, timers are late. */
export const stall = (ms: number): Step => ({ do: 'stall', ms });
export const stop = (id: string): Step => ({ do: 'stop', id });
/** What adding that address finds from then on. */
export const addressed = (address: string, answer: AddressAnswer): Step => ({ do: 'addressed', address, answer });

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

/** What will arrive; `to` is the router in whose socket it waits. */
type Owed = { monoUs: number; deliver: () => void; to?: string };

export type Sent = { ms: number; router: string; priority: number; periodic: boolean };

/** How adverts travel: whether and after how long one arrives. */
export type Wire = { delayMs(from: string, to: string): number; reaches(from: string, to: string): boolean };

const SHORT_CABLE: Wire = { delayMs: () => 0.1, reaches: () => true };

export class Scenario {
  readonly clock = new VirtualClock({ wallUs: 1_000_000_000_000, monoUs: 0 });
  readonly system: ActorSystem;
  readonly entries: Entry[] = [];
  readonly faults: Fault[] = [];
  /** When each probe was started, in ms, by checker. */
  readonly probes = new Map<string, number[]>();
  readonly aborted: string[] = [];
  /** Every advert that was sent. */
  readonly adverts: Sent[] = [];
  readonly notices: StateNotice[] = [];
  /** Addresses that are on an interface, by actor. */
  readonly held = new Set<string>();
  readonly announced: { ms: number; address: string; count: number }[] = [];
  #lines: string[] = [];
  #answers = new Map<string, ProbeAnswer>();
  #owed: Owed[] = [];
  #addressAnswers = new Map<string, AddressAnswer>();
  #lastAcceptedUs = new Map<string, number>();
  #lastSentUs = new Map<string, number>();
  #shows: (entry: Entry) => boolean;
  #wire: Wire;

  constructor({
    shows = () => true,
    hands = {},
    wire = SHORT_CABLE,
  }: { shows?: (entry: Entry) => boolean; hands?: Record<string, Hands>; wire?: Wire } = {}) {
    this.#shows = shows;
    this.#wire = wire;
    const notify = (notice: StateNotice) => this.notices.push(notice);
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
        vrrpRouter: vrrpRouterHands(
          {
            open: () => {},
            close: () => {},
            sendAdvert: (router, priority, periodic) => this.#sendAdvert(router, priority, periodic),
            look: (router, answer) => answer(this.#look(router).silentMs),
          },
          notify,
          () => this.system.timerLateUs / 1000,
        ),
        syncGroup: syncGroupHands(notify),
        virtualAddress: virtualAddressHands({
          add: (address, answer) => {
            const found = this.#addressAnswers.get(address) ?? { ok: true };
            if (found.ok) this.held.add(address);
            answer(found);
          },
          remove: (address, answer) => {
            this.held.delete(address);
            answer({ ok: true });
          },
          announce: (address, count) => this.announced.push({ ms: this.clock.monoUs() / 1000, address, count }),
        }),
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
        case 'stall':
          this.clock.advanceTo(this.clock.monoUs() + step.ms * 1000);
          this.system.fireDue();
          break;
        case 'stop':
          this.system.stop(step.id);
          break;
        case 'probed':
          this.#answers.set(step.checker, step.answer);
          break;
        case 'addressed':
          this.#addressAnswers.set(step.address, step.answer);
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

  #sendAdvert(from: string, priority: number, periodic: boolean): void {
    const monoUs = this.clock.monoUs();
    const sender = this.system.get(from)!.context as RouterContext;
    const { address: source, addressKey: key, settings } = sender;
    const silentMs = (monoUs - (this.#lastSentUs.get(from) ?? monoUs)) / 1000;
    if (periodic && silentMs > masterDownMs(settings, priority, settings.advertMs)) {
      this.system.send(from, { type: 'advert.overslept', silentMs } as { type: string });
      return;
    }
    this.#lastSentUs.set(from, monoUs);
    this.adverts.push({ ms: monoUs / 1000, router: from, priority, periodic });
    const event = { type: 'advert.received', priority, advertMs: settings.advertMs, source, key, differences: [] };
    for (const { id, machine, context } of this.system.all()) {
      if (machine !== 'vrrpRouter' || id === from) continue;
      if ((context as RouterContext).settings.vrid !== settings.vrid || !this.#wire.reaches(from, id)) continue;
      const deliver = () => this.#hear(id, event);
      this.#owed.push({ monoUs: monoUs + Math.round(this.#wire.delayMs(from, id) * 1000), deliver, to: id });
    }
  }

  #hear(router: string, event: { type: string }): void {
    this.#lastAcceptedUs.set(router, this.clock.monoUs());
    this.system.send(router, event);
  }

  #look(router: string): { silentMs: number | null } {
    const arrived = this.#owed.filter(({ monoUs, to }) => to === router && monoUs <= this.clock.monoUs());
    this.#owed = this.#owed.filter((owed) => !arrived.includes(owed));
    for (const { deliver } of arrived) deliver();
    const lastUs = this.#lastAcceptedUs.get(router);
    return { silentMs: lastUs === undefined ? null : (this.clock.monoUs() - lastUs) / 1000 };
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
  if (type === 'notify' && 'reason' in (params as object)) {
    const { state, priority, reason } = params as { state: string; priority: number; reason: Payload };
    const { code, priority: _own, ...evidence } = reason;
    return `notify ${state} ${priority} because ${String(code)}${textOf(evidence)}`;
  }
  return `${type}${textOf((params ?? {}) as Payload)}`;
};

/** A timer by the name of its delay: which state set it can be seen. */
const shortOf = (name: string): string => name.replace(/^xstate\.after\.([^.]+)\..*$/, 'after $1');

/** Who a message is about, what a probe said in words, and what was configured don't help to follow a scenario. */
const LEFT_OUT = new Set([
  'server',
  'pool',
  'message',
  'code',
  'initially',
  'checked',
  'backup',
  'key',
  'differences',
  'tracker',
]);

const textOf = (payload: Payload): string =>
  Object.entries(payload)
    .filter(([key]) => !LEFT_OUT.has(key))
    .map(([key, value]) => ` ${key}=${typeof value === 'string' ? shortOf(value) : JSON.stringify(value)}`)
    .join('');
