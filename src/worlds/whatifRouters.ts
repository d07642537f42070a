/**
 * Routers in the what-if world. What came in on the wire, from interfaces and from operators comes at its time; looks,
 * addresses and messages are answered here. What trackers saw is given to whoever looks at the same thing, however often.
 *
 * A backup says nothing, so a journal can't tell directly what a peer would have done against a master that is weaker
 * than it really was. Where this world's master falls below a peer that was heard in the journal, and the real one did
 * not, that peer is assumed to take over as RFC 9568 has it. It is named as an assumption.
 */
import { trackerHands } from '../../actors/tracker.ts';
import type { Observation } from '../../actors/tracker.ts';
import { virtualAddressHands } from '../../actors/virtualAddress.ts';
import type { ActorRef, ActorSystem, Hands } from '../../actors/system.ts';
import type { VirtualClock } from '../../actors/clock.ts';
import { effectivePriority, masterDownMs, skewMs } from '../../machines/vrrpRouter.ts';
import type { RouterContext } from '../../machines/vrrpRouter.ts';
import type { TrackConfig } from '../config/routers.ts';
import type { Config } from '../config/schema.ts';
import type { Step } from '../journal/record.ts';
import { phaseOf } from '../vrrp/reasons.ts';
import { trackersOf } from '../vrrp/wiring.ts';
import { holdersOf } from '../wiring.ts';
import { firstAfter, nearestObservation } from './observations.ts';
import type { Observed } from './observations.ts';

/** A real loop delivers its timers this late: an advert that came so soon after a deadline was heard before it counted. */
const LOOK_SLACK_US = 5_000;
/** … and what it looks at begins so much later. */
const TRACKER_SLACK_MS = 50;
/** An answer of the kernel that was recorded so long after it was asked for was the answer to that. */
const ANSWER_WINDOW_US = 1_000_000;

type Advert = { source: string; key: string; priority: number; advertMs: number; differences: unknown[] };

/**
 * The priority that a router really advertised from each change on, 0 while it was not master; and the master whose
 * silence made it one.
 */
export type RealMastership = { monoUs: number; priority: number; silentPeer: string | null };

export type RouterWorld = {
  config: Config;
  recordedConfig: Config | null;
  clock: VirtualClock;
  steps: Step[];
  real: Map<string, RealMastership[]>;
  system: () => ActorSystem;
  owe(monoUs: number, deliver: () => void): void;
  unobserved(actor: string): void;
  assumed(text: string): void;
};

/** Of routers and what belongs to them: what this world answers itself. */
const ANSWERED = new Set(['looked', 'address.acquire', 'address.release']);
const ADDRESS_ANSWERS = new Set(['address.added', 'address.addFailed', 'address.removed', 'address.removeFailed']);
const LISTENER_ANSWERS = new Set(['listener.opened', 'listener.failed', 'listener.drained']);

/** What is told to routers that advertise over NATS. */
const BUS_NEWS = new Set(['bus.joined', 'bus.lost']);

const isOverNats = ({ routers }: Config, actor: string): boolean =>
  routers[actor.slice('router/'.length)]?.transport === 'nats';

export class WhatIfRouters {
  readonly hands: Record<string, Hands>;
  #world: RouterWorld;
  #heardOf: Set<string>;
  #lastHeardUs = new Map<string, number>();
  /** Of each router: when adverts came in. */
  #adverts: Map<string, { monoUs: number }[]>;
  /** … and when it looked for them before it acted. */
  #looks: Map<string, { monoUs: number }[]>;
  #answers: Map<string, { monoUs: number; event: Step['event'] }[]>;
  #trackers: Map<string, Observed<Observation>[]>;
  #holders: Map<string, string>;
  #peers: AssumedPeers;

  constructor(world: RouterWorld) {
    const { config, steps } = world;
    this.#world = world;
    this.#heardOf = new Set(steps.map(({ actor }) => actor));
    this.#adverts = byActor(steps, ({ event }) => event.type === 'advert.received');
    this.#looks = byActor(steps, ({ event }) => event.type === 'looked');
    this.#answers = byActor(steps, ({ event }) => ADDRESS_ANSWERS.has(event.type) || LISTENER_ANSWERS.has(event.type));
    this.#trackers = observationsOf(world);
    this.#holders = holdersOf(config);
    this.#peers = new AssumedPeers(world);
    this.hands = {
      vrrpRouter: {
        openRouter: (_: never, actor) => {
          const { id } = actor;
          if (!this.#heardOf.has(id)) world.unobserved(id);
          // What the journal doesn't know of NATS would have gone well.
          if (isOverNats(config, id) && !steps.some((step) => step.actor === id && BUS_NEWS.has(step.event.type)))
            actor.send({ type: 'bus.joined' });
        },
        sendAdvert: ({ priority }: { priority: number }, { id }) => this.#peers.hear(id, priority),
        look: (_: never, actor) => this.#look(actor),
      },
      virtualAddress: virtualAddressHands({
        add: (id, answer) => this.#answerAddress(id, 'address.added', 'address.addFailed', answer),
        remove: (id, answer) => this.#answerAddress(id, 'address.removed', 'address.removeFailed', answer),
        announce: () => {},
      }),
      tracker: trackerHands((tracker, kind, answer) => this.#observe(tracker, kind, answer)),
    };
  }

  /** What is answered here, or was a reload's doing, is no input of this world. */
  takes({ actor, event, cause }: Step): boolean {
    const kind = actor.split('/')[0];
    if (ANSWERED.has(event.type) || ADDRESS_ANSWERS.has(event.type)) return false;
    if (kind === 'router' && event.type === 'router.stop') return cause === null;
    if (BUS_NEWS.has(event.type)) return isOverNats(this.#world.config, actor);
    if (kind === 'tracker') return actor.startsWith('tracker/interface/');
    return !(kind === 'listener' && this.#holders.has(actor));
  }

  /** An advert as this configuration would have read it; notes when it came. */
  asRead({ actor, event }: Step): Step['event'] {
    if (event.type !== 'advert.received') return event;
    this.#lastHeardUs.set(actor, this.#world.clock.monoUs());
    this.#peers.notice(actor, event as unknown as Advert);
    const router = this.#world.config.routers[actor.slice('router/'.length)];
    if (!router) return event;
    const advert = event as unknown as Advert & Step['event'];
    const own = `${router.advertise} ms`;
    const peer = `${advert.advertMs} ms`;
    if (advert.advertMs === router.advertise) return { ...advert, differences: others(advert.differences) };
    if (router.version === 2)
      return { type: 'advert.discarded', kind: 'interval', source: advert.source, field: 'advertise', own, peer };
    return { ...advert, differences: [{ field: 'advertise', own, peer }, ...others(advert.differences)] };
  }

  #look({ id, send }: ActorRef): void {
    const { clock, owe } = this.#world;
    const nowUs = clock.monoUs();
    const answer = () => {
      const heardUs = this.#lastHeardUs.get(id);
      const silentMs = heardUs === undefined ? null : (clock.monoUs() - heardUs) / 1000;
      send({ type: 'looked', lateMs: 0, silentMs } as { type: string });
    };
    const looked = this.#soonAfter(this.#looks.get(id), nowUs - 1);
    const heard = this.#soonAfter(this.#adverts.get(id), nowUs);
    // The real loop looked then, or heard this before its late timer made it look.
    if (looked) owe(looked.monoUs, answer);
    else if (heard) owe(heard.monoUs + 1, answer);
    else answer();
  }

  #answerAddress(
    id: string,
    done: string,
    failed: string,
    answer: (answer: { ok: true } | { ok: false; code: string; message: string }) => void,
  ): void {
    const { clock, owe, system } = this.#world;
    for (const [listener, holder] of this.#holders)
      if (holder === id)
        system().send(listener, { type: done === 'address.added' ? 'listener.open' : 'listener.drain' });
    const recorded = this.#answerAfter(id, new Set([done, failed]));
    if (recorded?.event.type === failed) {
      const { code, message } = recorded.event as unknown as { code: string; message: string };
      owe(recorded.monoUs, () => answer({ ok: false, code, message }));
    } else owe(recorded?.monoUs ?? clock.monoUs(), () => answer({ ok: true }));
  }

  #soonAfter(list: { monoUs: number }[] = [], us: number): { monoUs: number } | null {
    const next = list[firstAfter(list, us)];
    return next && next.monoUs - us <= LOOK_SLACK_US ? next : null;
  }

  /** Of a listener on an address that is held by binding it; false for all others. */
  answersListener(id: string, wanted: 'open' | 'drained'): boolean {
    if (!this.#holders.has(id)) return false;
    const { clock, owe, system } = this.#world;
    const types = wanted === 'open' ? ['listener.opened', 'listener.failed'] : ['listener.drained'];
    const recorded = this.#answerAfter(id, new Set(types));
    const event = recorded?.event ?? { type: types[0]! };
    owe(recorded?.monoUs ?? clock.monoUs(), () => system().send(id, event));
    return true;
  }

  #answerAfter(id: string, types: Set<string>): { monoUs: number; event: Step['event'] } | null {
    const nowUs = this.#world.clock.monoUs();
    const list = (this.#answers.get(id) ?? []).filter(({ event }) => types.has(event.type));
    // One of the very same microsecond is one too.
    const next = list[firstAfter(list, nowUs - 1)];
    return next && next.monoUs - nowUs <= ANSWER_WINDOW_US ? next : null;
  }

  #observe(tracker: string, kind: string, answer: (seen: Observation) => void): () => void {
    const { clock, owe, unobserved } = this.#world;
    if (kind === 'interface' && this.#heardOf.has(tracker)) return () => {};
    const observations = this.#trackers.get(tracker) ?? [];
    const longestMs = observations.reduce((longest, { answer: seen }) => Math.max(longest, seen.durationMs), 0);
    const found = nearestObservation(observations, clock.monoUs(), longestMs + TRACKER_SLACK_MS);
    if (!found) {
      unobserved(tracker);
      return () => {};
    }
    const { seen, isSame } = found;
    let given = true;
    owe(isSame ? seen.monoUs : clock.monoUs() + Math.round(seen.answer.durationMs * 1000), () => {
      if (given) answer(seen.answer);
    });
    return () => (given = false);
  }
}

const others = (differences: unknown[]): unknown[] =>
  differences.filter((difference) => (difference as { field: string }).field !== 'advertise');

const byActor = (steps: Step[], isMeant: (step: Step) => boolean): Map<string, Step[]> => {
  const map = new Map<string, Step[]>();
  for (const step of steps) {
    if (!isMeant(step)) continue;
    const list = map.get(step.actor);
    if (list) list.push(step);
    else map.set(step.actor, [step]);
  }
  return map;
};

/** What is looked at, whatever the rhythm, and what it counts for. */
const subjectOf = (track: TrackConfig): string => {
  const { weight: _weight, reverse: _reverse, ...looked } = track;
  const {
    interval: _interval,
    rise: _rise,
    fall: _fall,
    timeout: _timeout,
    ...subject
  } = looked as Record<string, unknown>;
  return JSON.stringify(subject);
};

/** By this configuration's trackers: what the journal's trackers of the same thing saw. */
const observationsOf = ({ config, recordedConfig, steps }: RouterWorld): Map<string, Observed<Observation>[]> => {
  const seen = byActor(steps, ({ event, origin }) => event.type === 'observed' && origin === 'input');
  const recorded = new Map<string, string>();
  for (const [id, { track }] of recordedConfig ? trackersOf(recordedConfig) : []) recorded.set(subjectOf(track), id);
  return new Map(
    [...trackersOf(config)].map(([id, { track }]) => [
      id,
      (seen.get(id) ?? seen.get(recorded.get(subjectOf(track)) ?? '') ?? []).map(({ monoUs, event }) => {
        const { ok, value, code, message, durationMs } = event as unknown as Observation;
        return { monoUs, answer: { ok, value, code, message, durationMs } };
      }),
    ]),
  );
};

type Peer = Advert & { router: string; heardUs: number };

/** Peers that would have taken over from a master that is weaker here than it really was. */
class AssumedPeers {
  #world: RouterWorld;
  /** Router → peers by source, as they were last heard up to now; until then as they are first heard. */
  #known = new Map<string, Map<string, Peer>>();
  /** Router → the peer that is about to take over, or has. */
  #acting = new Map<string, { peer: Peer; token: object }>();

  constructor(world: RouterWorld) {
    this.#world = world;
    for (const { actor, event, monoUs } of world.steps) {
      if (event.type !== 'advert.received') continue;
      const advert = event as unknown as Advert;
      const known = this.#peersOf(actor);
      if (advert.priority > 0 && !known.has(advert.source))
        known.set(advert.source, { ...advert, router: actor, heardUs: monoUs });
    }
  }

  /** A recorded advert: the peer speaks for itself. */
  notice(router: string, advert: Advert): void {
    if (advert.priority > 0)
      this.#peersOf(router).set(advert.source, { ...advert, router, heardUs: this.#world.clock.monoUs() });
    if (this.#acting.get(router)?.peer.source === advert.source) this.#acting.delete(router);
  }

  /** What the router of this world sends: peers hear it. */
  hear(router: string, priority: number): void {
    const acting = this.#acting.get(router);
    const rival = this.#rivalOf(router, priority);
    if (!rival) {
      this.#acting.delete(router);
      return;
    }
    if (acting?.peer.source === rival.source) return;
    const token = {};
    this.#acting.set(router, { peer: rival, token });
    const settings = this.#settingsOf(router);
    const wait = priority === 0 ? skewMs : masterDownMs;
    const waitMs = wait(settings, rival.priority, settings.advertMs);
    this.#speakAt(this.#world.clock.monoUs() + Math.round(waitMs * 1000), router, token, true);
  }

  #speakAt(monoUs: number, router: string, token: object, isFirst: boolean): void {
    const { owe, system, assumed, clock } = this.#world;
    owe(monoUs, () => {
      const acting = this.#acting.get(router);
      if (acting?.token !== token) return;
      const { peer } = acting;
      const context = system().get(router)?.context as RouterContext | undefined;
      // Once the real master was as weak, the journal tells what the peer did.
      if (!context || this.#reallyAt(router) < peer.priority) {
        this.#acting.delete(router);
        return;
      }
      if (isFirst)
        assumed(`${peer.source} (priority ${peer.priority}) takes over from ${router} when that falls below it`);
      const { source, key, priority, advertMs } = peer;
      system().send(router, { type: 'advert.received', source, key, priority, advertMs, differences: [] } as {
        type: string;
      });
      this.#speakAt(clock.monoUs() + advertMs * 1000, router, token, false);
    });
  }

  /** The strongest peer that is above this, and was not above what was really sent. */
  #rivalOf(router: string, priority: number): Peer | null {
    const really = this.#reallyAt(router);
    if (really <= priority) return null;
    let strongest: Peer | null = null;
    for (const peer of this.#peersOf(router).values()) {
      const isBetween = peer.priority > priority && peer.priority <= really;
      if (isBetween && peer.priority > (strongest?.priority ?? 0) && !this.#isGone(peer)) strongest = peer;
    }
    return strongest;
  }

  /** It fell silent as a master and has not been heard since. */
  #isGone({ router, source, heardUs }: Peer): boolean {
    const nowUs = this.#world.clock.monoUs();
    return (this.#world.real.get(router) ?? []).some(
      ({ monoUs, silentPeer }) => silentPeer === source && monoUs > heardUs && monoUs <= nowUs,
    );
  }

  /** 0 where the real router took no part: nobody was kept from anything by it. */
  #reallyAt(router: string): number {
    const list = this.#world.real.get(router) ?? [];
    return list[firstAfter(list, this.#world.clock.monoUs()) - 1]?.priority ?? 0;
  }

  #peersOf(router: string): Map<string, Peer> {
    let peers = this.#known.get(router);
    if (!peers) this.#known.set(router, (peers = new Map()));
    return peers;
  }

  #settingsOf(router: string): RouterContext['settings'] {
    return (this.#world.system().get(router)!.context as RouterContext).settings;
  }
}

export const realMastership = (monoUs: number, state: string, context: RouterContext): RealMastership => {
  const isMaster = phaseOf(state) === 'master';
  const { code, peer = null } = context.reason;
  return {
    monoUs,
    priority: isMaster ? effectivePriority(context) : 0,
    silentPeer: isMaster && code === 'masterDownExpired' ? peer : null,
  };
};
