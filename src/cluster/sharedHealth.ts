/**
 * What nodes share of their checks. A node tells a view at once when it changes, and all of them in each heartbeat, so
 * that what got lost is made good within a second. Others' views reach the quorum of each server when they change; who
 * sees nothing, the sight; and who checks which server follows from who is here.
 *
 * A node that is suspect or gone has no vote, and gets it back with its next heartbeat. With NATS away all others are
 * gone: each node goes by its own checks.
 */
import { z } from 'zod';
import { healthQuorumHands } from '../../actors/healthQuorum.ts';
import type { KnownViews } from '../../actors/healthQuorum.ts';
import type { Entry } from '../../actors/recorder.ts';
import type { ActorState, Hands } from '../../actors/system.ts';
import type { NodeSightContext } from '../../machines/nodeSight.ts';
import { decodeJson, encodeJson } from '../bus/bus.ts';
import type { BusMessage } from '../bus/bus.ts';
import { nameOfToken } from '../bus/subjects.ts';
import { sharedChecksOf } from '../config/sharedChecks.ts';
import type { Heartbeat, MemberState, Members } from './members.ts';
import type { ClusterPart, ClusterPorts } from './ports.ts';
import { checkersOf } from './rendezvous.ts';
import { quorumId, SIGHT_ACTOR } from './sharedWiring.ts';
import { ViewBook } from './viewBook.ts';
import type { HeardView, SharedPool } from './viewBook.ts';
import { decodeViews } from './viewText.ts';
import type { Opinion } from './viewText.ts';

/** What is told of one server. A message is for people, and no longer than they read. */
const MAX_MESSAGE = 200;
const told = z.object({
  node: z.string().min(1).max(256),
  view: z.enum(['up', 'down', 'none']),
  message: z.string().max(MAX_MESSAGE).catch(''),
});

export type SharedHealthPorts = Pick<ClusterPorts, 'bus' | 'subjects' | 'node' | 'clock' | 'system' | 'config'>;
export type SharedHealthMembers = Pick<Members, 'onHeard' | 'onChange' | 'contribute'>;

/** A node that is here. */
type Peer = {
  /** By pool: its last heartbeat; empty where something else was heard since. */
  texts: Map<string, string>;
  /** Pools whose list of servers is the same here and there. */
  alike: Set<string>;
};

export type NodeView = { node: string; view: Opinion; message: string; sinceUs: number | null };

export class SharedHealth implements ClusterPart {
  readonly hands: Record<string, Hands>;
  /** Views told one by one. */
  published = 0;
  /** Messages that were no views. */
  malformed = 0;
  readonly #ports: SharedHealthPorts;
  readonly #members: SharedHealthMembers;
  readonly #book = new ViewBook();
  readonly #peers = new Map<string, Peer>();
  /** By quorum: who is to check its server; none where all are. */
  readonly #duties = new Map<string, string[]>();
  #blind = '';
  #ends: (() => void)[] = [];

  constructor(ports: SharedHealthPorts, members: SharedHealthMembers) {
    this.#ports = ports;
    this.#members = members;
    this.hands = {
      healthQuorum: healthQuorumHands({
        share: (quorum, view, message) => this.#share(quorum, view, message),
        known: (quorum) => this.#known(quorum),
      }),
    };
    this.#configureBook();
  }

  start(): void {
    const { bus, subjects, system } = this.#ports;
    this.#observeServers();
    this.#members.contribute(() => ({ views: this.#ownViews() }));
    this.#ends = [
      bus.subscribe(subjects.probes, (message) => this.#hear(message)),
      this.#members.onHeard((heartbeat) => this.#heard(heartbeat)),
      this.#members.onChange((node, state) => this.#memberChanged(node, state)),
      system().onTransition((actor, entry) => this.#observe(actor, entry)),
    ];
  }

  async stop(): Promise<void> {
    for (const end of this.#ends) end();
    this.#ends = [];
  }

  /** The node has another configuration; its actors come and go after this. */
  configured(): void {
    this.#configureBook();
    this.#observeServers();
    for (const peer of this.#peers.values()) {
      peer.texts.clear();
      peer.alike.clear();
    }
    this.#assignDuties();
    this.#countSights();
  }

  /** What every node that is here says of a server of a shared pool, by name; this node too. */
  viewsOf(pool: string, server: string): NodeView[] {
    const known = this.#book.viewsOf(pool, server);
    return [this.#ports.node, ...this.#peers.keys()].sort().map((node): NodeView => {
      const heard: HeardView | undefined = known.get(node);
      return { node, view: heard?.view ?? 'none', message: heard?.message ?? '', sinceUs: heard?.atUs ?? null };
    });
  }

  /** Who is to check a server; null where every node is. */
  checkersOf(pool: string, server: string): string[] | null {
    return this.#duties.get(quorumId(pool, server)) ?? null;
  }

  /** Nodes that are here with another list of servers in this pool: their views can't be read. */
  unlike(pool: string): string[] {
    return [...this.#peers]
      .filter(([, { texts, alike }]) => texts.has(pool) && !alike.has(pool))
      .map(([node]) => node)
      .sort();
  }

  #configureBook(): void {
    const pools = new Map<string, SharedPool>();
    for (const [name, backend] of Object.entries(this.#ports.config().backends)) {
      const { share, divide, by } = sharedChecksOf(backend);
      if (share === 'none' || !backend.check) continue;
      pools.set(name, { share, divide, by, servers: backend.servers.map((server) => server.name) });
    }
    this.#book.configure(pools);
  }

  #ownViews(): Record<string, string> {
    return Object.fromEntries([...this.#book.pools()].map(([pool]) => [pool, this.#book.text(pool, this.#ports.node)]));
  }

  #share(quorum: string, view: Opinion, message: string): void {
    const [, pool = '', server = ''] = quorum.split('/');
    if (this.#book.pool(pool)?.share !== 'quorum') return;
    this.#say(pool, server, view, message);
    this.#countSights();
  }

  /** This node's view is another one. */
  #say(pool: string, server: string, view: Opinion, message: string): void {
    const { bus, subjects, node, clock } = this.#ports;
    const text = message.slice(0, MAX_MESSAGE);
    if (!this.#book.set(pool, server, node, view, text, clock.wallUs())) return;
    this.published++;
    bus.publish(subjects.probe(pool, server), encodeJson({ node, view, message: text }));
  }

  #known(quorum: string): KnownViews | null {
    const { node, system } = this.#ports;
    const [, pool = '', server = ''] = quorum.split('/');
    const views = Object.fromEntries(
      [...this.#book.viewsOf(pool, server)]
        .filter(([other]) => other !== node)
        .map(([other, { view, message }]) => [other, { view, message }]),
    );
    const { blind = [] } = (system().get(SIGHT_ACTOR)?.context ?? {}) as Partial<NodeSightContext>;
    const checkers = this.#duties.get(quorum) ?? null;
    return Object.keys(views).length + blind.length > 0 || checkers ? { views, blind, checkers } : null;
  }

  #hear({ subject, data }: BusMessage): void {
    const [server = '', pool = ''] = subject.split('.').toReversed().map(nameOfToken);
    const read = told.safeParse(decodeJson(data));
    if (!read.success) {
      this.malformed++;
      return;
    }
    const { node, view, message } = read.data;
    // Who isn't here has no vote; the heartbeat that brings it back brings all its views.
    const peer = this.#peers.get(node);
    if (!peer) return;
    peer.texts.set(pool, '');
    if (this.#take(pool, server, node, view, message)) this.#countSights();
  }

  #heard({ node, views }: Heartbeat): void {
    const known = this.#peers.get(node);
    const peer = known ?? { texts: new Map<string, string>(), alike: new Set<string>() };
    this.#peers.set(node, peer);
    let isNews = !known;
    for (const [pool, { hash, servers }] of this.#book.pools()) {
      const text = views[pool];
      if (text === peer.texts.get(pool)) continue;
      const opinions =
        text === undefined ? servers.map((): Opinion => 'none') : decodeViews(text, hash, servers.length);
      const wasAlike = peer.alike.has(pool);
      if (text === undefined) peer.texts.delete(pool);
      else peer.texts.set(pool, text);
      if (text === undefined || !opinions) peer.alike.delete(pool);
      else peer.alike.add(pool);
      isNews ||= wasAlike !== peer.alike.has(pool);
      opinions?.forEach((view, place) => this.#take(pool, servers[place]!, node, view, ''));
    }
    if (isNews) this.#assignDuties();
    this.#countSights();
  }

  #take(pool: string, server: string, node: string, view: Opinion, message: string): boolean {
    const { system, clock } = this.#ports;
    if (!this.#book.set(pool, server, node, view, message, clock.wallUs())) return false;
    const quorum = quorumId(pool, server);
    if (system().has(quorum))
      system().deliver(quorum, { type: 'view.heard', node, view, message } as { type: string }, 'remote');
    return true;
  }

  #memberChanged(node: string, state: MemberState): void {
    if (state === 'alive' || !this.#peers.delete(node)) return;
    const { system } = this.#ports;
    for (const { pool, server } of this.#book.forget(node)) {
      const quorum = quorumId(pool, server);
      if (system().has(quorum)) system().send(quorum, { type: 'node.lost', node } as { type: string });
    }
    this.#assignDuties();
    this.#countSights();
  }

  /** Only nodes with the very same list of servers can be relied on to check what they are to check. */
  #assignDuties(): void {
    const { node, system } = this.#ports;
    const before = new Set(this.#duties.keys());
    for (const [pool, { divide, by, servers }] of this.#book.pools()) {
      const nodes = [node, ...[...this.#peers].flatMap(([name, { alike }]) => (alike.has(pool) ? [name] : []))];
      if (!divide || nodes.length <= by) continue;
      for (const server of servers) {
        const quorum = quorumId(pool, server);
        const checkers = checkersOf(`${pool}/${server}`, nodes, by);
        before.delete(quorum);
        if (this.#duties.get(quorum)?.join() === checkers.join()) continue;
        this.#duties.set(quorum, checkers);
        if (system().has(quorum)) system().send(quorum, { type: 'duty.assigned', checkers } as { type: string });
      }
    }
    for (const quorum of before) {
      this.#duties.delete(quorum);
      if (system().has(quorum)) system().send(quorum, { type: 'duty.assigned', checkers: null } as { type: string });
    }
  }

  #countSights(): void {
    const { system } = this.#ports;
    // One that a reload brings begins with nobody blind.
    if (!system().has(SIGHT_ACTOR)) this.#blind = '';
    const blind = this.#book.blind().join();
    if (blind === this.#blind || !system().has(SIGHT_ACTOR)) return;
    this.#blind = blind;
    system().send(SIGHT_ACTOR, { type: 'nodes.counted', counts: this.#book.counts() } as { type: string });
  }

  /** Of pools that are only observed, the server's own health is this node's view. */
  #observe({ machine, id, state }: ActorState, { event }: Entry): void {
    if (machine !== 'backendServer') return;
    const [, pool = '', server = ''] = id.split('/');
    if (this.#book.pool(pool)?.share !== 'observe') return;
    const message = 'message' in event && typeof event.message === 'string' ? event.message : '';
    const view = opinionOf(state);
    this.#say(pool, server, view, view === 'down' ? message : '');
  }

  #observeServers(): void {
    for (const [pool, { share, servers }] of this.#book.pools()) {
      if (share !== 'observe') continue;
      for (const server of servers) {
        const state = this.#ports.system().get(`server/${pool}/${server}`)?.state;
        if (state !== undefined) this.#say(pool, server, opinionOf(state), '');
      }
    }
  }
}

const opinionOf = (state: string): Opinion => {
  const [health, admin] = state.split(',');
  if (admin === 'maintenance') return 'none';
  if (health === 'up' || health === 'goingDown') return 'up';
  return health === 'down' || health === 'goingUp' ? 'down' : 'none';
};
