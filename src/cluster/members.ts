/** The other nodes of the cluster: a heartbeat a second, and an actor for each node that was ever heard. */
import type { Look } from '../../actors/clusterMember.ts';
import { clusterMemberHands } from '../../actors/clusterMember.ts';
import type { ActorState, Hands } from '../../actors/system.ts';
import type { MemberContext, MemberIdentity, MemberReason } from '../../machines/clusterMember.ts';
import type { PoolContext } from '../../machines/pool.ts';
import { effectivePriority } from '../../machines/vrrpRouter.ts';
import type { RouterContext } from '../../machines/vrrpRouter.ts';
import { encodeJson } from '../bus/bus.ts';
import type { BusMessage, BusStatus } from '../bus/bus.ts';
import { lastName } from '../bus/subjects.ts';
import { messageOf } from '../errors.ts';
import { version } from '../version.ts';
import { ClockGap } from './clockGap.ts';
import { readHeartbeat } from './heartbeat.ts';
import type { Heartbeat } from './heartbeat.ts';
import type { ClusterPart, ClusterPorts } from './ports.ts';

export type { Heartbeat } from './heartbeat.ts';

export const HEARTBEAT_MS = 1_000;
/** Three heartbeats may get lost, or wait behind something, without a doubt about the node. */
const SUSPECT_AFTER_MS = 3_000;
/** Longer than NATS takes to notice a dead connection and make another one (two pings of 2 s, and a reconnect). */
const GONE_AFTER_MS = 10_000;
/** A NATS server that takes longer than this for a round trip counts as away. */
const LOOK_MS = 1_000;
/** Names that are kept at most: anybody who may publish heartbeats can invent names. Gone ones make room. */
const MAX_MEMBERS = 128;

export type MemberState = 'alive' | 'suspect' | 'gone';

export type MemberView = {
  node: string;
  state: MemberState;
  sinceUs: number;
  reason: MemberReason;
  /** The last one heard, and when. */
  last: Heartbeat;
  heardUs: number;
  /** How far its clock is behind ours at most; below 0, how far ahead at least. In µs. */
  clockBehindUs: number;
  /** Another node that uses its name at the same time. */
  rival: MemberIdentity | null;
};

type Heard = { last: Heartbeat; heardUs: number; heardMonoUs: number; clock: ClockGap };

export const memberId = (node: string): string => `member/${node}`;

const phaseOf = (state: string): MemberState => state.split('.')[0] as MemberState;

export class Members implements ClusterPart {
  readonly hands: Record<string, Hands>;
  /** Messages that were no heartbeats, or came under another name than they bear. */
  malformed = 0;
  /** Heartbeats of names that there was no room for. */
  refused = 0;
  readonly #ports: ClusterPorts;
  readonly #heard = new Map<string, Heard>();
  readonly #told = new Map<string, MemberState>();
  readonly #parts: (() => Partial<Heartbeat>)[] = [];
  readonly #heardListeners = new Set<(heartbeat: Heartbeat) => void>();
  readonly #changeListeners = new Set<(node: string, state: MemberState) => void>();
  #joinedMonoUs: number | null = null;
  #beat: NodeJS.Timeout | null = null;
  #ends: (() => void)[] = [];

  constructor(ports: ClusterPorts) {
    this.#ports = ports;
    this.hands = {
      clusterMember: clusterMemberHands(
        (member, answer) => void this.#look(member, answer),
        () => ports.system().timerLateUs / 1000,
      ),
    };
  }

  start(): void {
    const { bus, subjects, system, clock } = this.#ports;
    if (bus.status.connected) this.#joinedMonoUs = clock.monoUs();
    this.#ends = [
      bus.onStatus((status) => this.#busChanged(status)),
      bus.subscribe(subjects.alives, (message) => this.#hear(message)),
      system().onTransition((actor) => this.#changed(actor)),
    ];
    this.#beat = setInterval(() => this.#say(), HEARTBEAT_MS);
    this.#say();
  }

  async stop(): Promise<void> {
    if (!this.#beat) return;
    clearInterval(this.#beat);
    this.#beat = null;
    this.#say({ leaving: true });
    for (const end of this.#ends) end();
  }

  /** Every other node that was heard since the start, by name. */
  all(): MemberView[] {
    return [...this.#heard.keys()]
      .filter((node) => node !== this.#ports.node)
      .sort()
      .flatMap((node) => this.#viewOf(node) ?? []);
  }

  /** Names of the nodes that are here, sorted, with this one. A node that has gone, or was never heard, isn't. */
  present(): string[] {
    const others = this.all().flatMap(({ node, state }) => (state === 'gone' ? [] : [node]));
    return [this.#ports.node, ...others].sort();
  }

  /** What this node tells of itself. */
  own(): Heartbeat {
    return this.#heartbeat();
  }

  /** Somebody else who calls itself by this node's name, while it is heard. */
  impostor(): MemberView | null {
    const view = this.#viewOf(this.#ports.node);
    return view && view.state !== 'gone' ? view : null;
  }

  /** Told with each heartbeat of another node. */
  onHeard(heard: (heartbeat: Heartbeat) => void): () => void {
    this.#heardListeners.add(heard);
    return () => this.#heardListeners.delete(heard);
  }

  /** Told when a node's state changes, and when it is first heard. */
  onChange(changed: (node: string, state: MemberState) => void): () => void {
    this.#changeListeners.add(changed);
    return () => this.#changeListeners.delete(changed);
  }

  /** Other parts add what they have to tell to each heartbeat. */
  contribute(part: () => Partial<Heartbeat>): void {
    this.#parts.push(part);
  }

  #viewOf(node: string): MemberView | null {
    const heard = this.#heard.get(node);
    const actor = this.#ports.system().get(memberId(node));
    if (!heard || !actor) return null;
    const { reason, rival } = actor.context as MemberContext;
    const { last, heardUs, clock } = heard;
    const { sinceUs } = actor;
    return { node, state: phaseOf(actor.state), sinceUs, reason, last, heardUs, clockBehindUs: clock.behindUs, rival };
  }

  #say(last: { leaving?: true } = {}): void {
    const { bus, subjects, node } = this.#ports;
    bus.publish(subjects.alive(node), encodeJson({ ...this.#heartbeat(), ...last }));
  }

  #heartbeat(): Heartbeat {
    const { node, journal, clock, latenessP99Ms } = this.#ports;
    const { epoch, lastSeq } = journal.status();
    const own: Heartbeat = {
      node,
      version,
      journal: journal.identity,
      epoch,
      seq: lastSeq,
      timeUs: clock.wallUs(),
      latenessP99Ms: latenessP99Ms(),
      routers: this.#routers(),
      pools: this.#pools(),
      courier: { state: 'offline', behind: 0 },
      configRevision: null,
      views: {},
    };
    return Object.assign(own, ...this.#parts.map((part) => part())) as Heartbeat;
  }

  #routers(): Heartbeat['routers'] {
    const { system, config } = this.#ports;
    return Object.fromEntries(
      Object.keys(config().routers).flatMap((name) => {
        const router = system().get(`router/${name}`);
        if (!router) return [];
        const state = router.state.split('.')[0]!;
        return [[name, { state, priority: effectivePriority(router.context as RouterContext) }]];
      }),
    );
  }

  #pools(): Heartbeat['pools'] {
    const { system, config } = this.#ports;
    return Object.fromEntries(
      Object.keys(config().backends).flatMap((name) => {
        const pool = system().get(`pool/${name}`);
        if (!pool) return [];
        const { members, weights } = pool.context as PoolContext;
        const usable = Object.keys(weights).length;
        return [[name, { state: pool.state, usable, of: Object.keys(members).length }]];
      }),
    );
  }

  #hear({ subject, data }: BusMessage): void {
    const heartbeat = readHeartbeat(data);
    // What a node may publish is limited by its subject, so its name has to be that.
    if (!heartbeat || heartbeat.node !== lastName(subject)) {
      this.malformed++;
      return;
    }
    const { node, version: itsVersion, epoch, journal } = heartbeat;
    const own = this.#ports.journal;
    if (node === this.#ports.node && journal === own.identity && epoch === own.epoch) return;
    const identity: MemberIdentity = { version: itsVersion, epoch, journal };
    const system = this.#ports.system();
    const id = memberId(node);
    if (!this.#heard.has(node)) {
      if (heartbeat.leaving === true) return;
      if (!this.#makeRoom()) {
        this.refused++;
        return;
      }
      const clock = new ClockGap();
      this.#heard.set(node, { last: heartbeat, heardUs: 0, heardMonoUs: 0, clock });
      this.#take(node, heartbeat);
      const settings = { suspectAfterMs: SUSPECT_AFTER_MS, goneAfterMs: GONE_AFTER_MS };
      system.start(id, 'clusterMember', { node, identity, settings });
      // So that it needn't wait a second to know of us.
      this.#say();
    } else {
      const wasGone = this.#told.get(node) === 'gone';
      const type = heartbeat.leaving === true ? 'member.left' : 'heartbeat';
      system.send(id, { type, ...identity });
      const { identity: known } = system.get(id)!.context as MemberContext;
      // A rival is not what we know of the node.
      if (known.journal !== journal || known.epoch !== epoch) return;
      this.#take(node, heartbeat);
      if (heartbeat.leaving === true) return;
      if (wasGone) this.#say();
    }
    if (node !== this.#ports.node) for (const listener of [...this.#heardListeners]) listener(heartbeat);
  }

  #take(node: string, heartbeat: Heartbeat): void {
    const heard = this.#heard.get(node)!;
    const { clock } = this.#ports;
    Object.assign(heard, { last: heartbeat, heardUs: clock.wallUs(), heardMonoUs: clock.monoUs() });
    heard.clock.observe(heard.heardUs - heartbeat.timeUs);
  }

  #makeRoom(): boolean {
    if (this.#heard.size < MAX_MEMBERS) return true;
    const oldest = [...this.#heard.keys()]
      .flatMap((node) => this.#viewOf(node) ?? [])
      .filter(({ state }) => state === 'gone')
      .sort((a, b) => a.sinceUs - b.sinceUs)[0];
    if (!oldest) return false;
    this.#heard.delete(oldest.node);
    this.#told.delete(oldest.node);
    this.#ports.system().stop(memberId(oldest.node));
    return true;
  }

  #busChanged(status: BusStatus): void {
    const { system, clock } = this.#ports;
    if (!status.connected) {
      this.#joinedMonoUs = null;
      return;
    }
    this.#joinedMonoUs = clock.monoUs();
    this.#say();
    for (const node of this.#heard.keys()) {
      const id = memberId(node);
      if (phaseOf(system().get(id)?.state ?? 'alive') !== 'alive') system().send(id, { type: 'bus.joined' });
    }
  }

  async #look(member: string, answer: (look: Look) => void): Promise<void> {
    const { bus, clock } = this.#ports;
    let away = '';
    if (bus.status.connected) {
      try {
        await bus.flush(LOOK_MS);
      } catch (error) {
        away = messageOf(error);
      }
    }
    const { status } = bus;
    if (!status.connected) away = status.message;
    const nowUs = clock.monoUs();
    const heardMonoUs = this.#heard.get(member.slice('member/'.length))?.heardMonoUs ?? nowUs;
    answer({
      silentMs: Math.round((nowUs - heardMonoUs) / 1000),
      hearingMs: away === '' && this.#joinedMonoUs !== null ? Math.round((nowUs - this.#joinedMonoUs) / 1000) : null,
      detail: away,
    });
  }

  #changed({ id, machine, state }: ActorState): void {
    if (machine !== 'clusterMember') return;
    const node = id.slice('member/'.length);
    const phase = phaseOf(state);
    if (this.#told.get(node) === phase) return;
    this.#told.set(node, phase);
    if (node === this.#ports.node) return;
    for (const listener of [...this.#changeListeners]) listener(node, phase);
  }
}
