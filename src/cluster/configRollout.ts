/** The hands of a roll-out on the node that leads it: asks the nodes, stores, and tells how it ended. */
import { rolloutHands } from '../../actors/rollout.ts';
import type { RolloutPort } from '../../actors/rollout.ts';
import type { Hands } from '../../actors/system.ts';
import type { RolloutContext, RolloutEvent, SeenNode } from '../../machines/rollout.ts';
import type { StoredRollouts } from '../bus/configStore.ts';
import type { Problem } from '../config/load.ts';
import type { Draft, Revision, Rollout } from '../config/revision.ts';
import { messageOf, UnderstudyError } from '../errors.ts';
import type { Ask } from './ask.ts';
import type { Members } from './members.ts';
import type { ClusterPorts } from './ports.ts';

export const ROLLOUT_ACTOR = 'rollout';
/** A check reads files: certificates, error pages. */
const CHECK_MS = 15_000;
/** Longer than a node waits for its listeners and first checks, before and after it goes back. */
const APPLY_MS = 40_000;
/** NATS takes messages of 1 MiB, if it is not told otherwise, and a text grows a little in JSON. */
const MAX_BYTES = 900_000;
/** A node that hasn't been here for so long is not waited for any more. */
const FORGET_AFTER_MS = 7 * 86_400_000;

export type NodeOutcome = {
  node: string;
  state: 'right' | 'problems' | 'noAnswer' | 'away' | 'applied' | 'waiting' | 'failed';
  problems: Problem[];
  message: string;
};

export type Outcome = {
  outcome: 'refused' | 'notStored' | 'done' | 'stopped';
  revision: number | null;
  message: string;
  nodes: NodeOutcome[];
};

export type PushOptions = { requireAll: boolean };

/** What is under way, and what was said to it. */
type Work = {
  draft: Draft | null;
  base: number;
  nodes: string[];
  problems: Map<string, Problem[]>;
  messages: Map<string, string>;
  message: string;
  ended: PromiseWithResolvers<Outcome>;
};

type Nodes = { present: string[]; away: string[] };
type Begin = { event: RolloutEvent; draft: Draft | null; base: number };

export type CheckAnswer = { problems: Problem[] };
export type LookAnswer = { masters: number };

export class ConfigRollout {
  readonly hands: Record<string, Hands>;
  readonly #ports: ClusterPorts;
  readonly #members: Members;
  readonly #ask: Ask;
  #work: Work | null = null;
  /** Of the last write of how far it is: the next one follows it. */
  #version = 0;
  #writing: Promise<void> = Promise.resolve();
  /** What could not be written while NATS was away. */
  #unwritten: Rollout | null = null;

  constructor(ports: ClusterPorts, members: Members, ask: Ask) {
    this.#ports = ports;
    this.#members = members;
    this.#ask = ask;
    this.hands = { rollout: rolloutHands(this.#port()) };
  }

  get isUnderWay(): boolean {
    return this.#work !== null;
  }

  /** @throws UnderstudyError NODE_REFUSED, and what NATS refuses with */
  push(draft: Omit<Draft, 'rollbackOf'>, { requireAll }: PushOptions): Promise<Outcome> {
    return this.#lead(async (newest, nodes) => {
      const overlays = { ...newest?.overlays, ...draft.overlays };
      const kept = Object.entries(overlays).filter(([, text]) => text.trim() !== '');
      return beginOf(newest, nodes, { ...draft, overlays: Object.fromEntries(kept), rollbackOf: null }, requireAll);
    });
  }

  /** An old revision again, as the newest: through the same steps. @throws as `push` */
  rollback(number: number, author: string, message: string, { requireAll }: PushOptions): Promise<Outcome> {
    return this.#lead(async (newest, nodes) => {
      const history = (await this.#ports.bus.call('config', 'history')) as Revision[];
      const old = history.find(({ revision }) => revision === number);
      if (!old) {
        const kept = history.map(({ revision }) => revision).join(', ');
        throw new UnderstudyError(
          'NODE_REFUSED',
          `there is no revision ${number}; ${kept === '' ? 'nothing has been pushed' : `there are ${kept}`}`,
        );
      }
      const { text, overlays } = old;
      return beginOf(newest, nodes, { text, overlays, author, message, rollbackOf: number }, requireAll);
    });
  }

  /** What is stored, on every node that doesn't run it yet. @throws as `push` */
  resume(): Promise<Outcome> {
    return this.#lead(async (newest, { present, away }) => {
      if (!newest) throw new UnderstudyError('NODE_REFUSED', 'nothing has been pushed');
      return { event: { type: 'resume.asked', revision: newest.revision, nodes: present, away }, draft: null, base: 0 };
    });
  }

  /** NATS is back: what could not be written is. */
  rewrite(): void {
    if (this.#unwritten) this.#write(this.#unwritten, () => {});
  }

  /** This node led a roll-out, and has been started anew in the middle of it. */
  giveUp(rollout: Rollout): void {
    const { node, clock } = this.#ports;
    const why = `${node}, which led it, was started anew`;
    this.#unwritten = { ...rollout, state: 'stopped', why, timeMs: Math.round(clock.wallUs() / 1000) };
    this.rewrite();
  }

  async #lead(prepare: (newest: Revision | null, nodes: Nodes) => Promise<Begin>): Promise<Outcome> {
    const { bus, node, source, system } = this.#ports;
    if (!source?.isShared) throw new UnderstudyError('NODE_REFUSED', notShared(node, this.#participants()));
    if (this.#work) throw new UnderstudyError('NODE_REFUSED', `${node} is rolling out a configuration already`);
    const work: Work = {
      draft: null,
      base: 0,
      nodes: [],
      problems: new Map(),
      messages: new Map(),
      message: '',
      ended: Promise.withResolvers(),
    };
    this.#work = work;
    try {
      await this.#writing;
      const { rollouts, version } = (await bus.call('config', 'rollouts')) as StoredRollouts;
      this.#refuseSecondLeader(rollouts.at(-1));
      this.#version = version;
      const nodes = { present: this.#participants(), away: this.#away(rollouts) };
      const { event, draft, base } = await prepare(
        (await bus.call('config', 'revision', null)) as Revision | null,
        nodes,
      );
      Object.assign(work, { draft, base, nodes: [...nodes.present, ...nodes.away].sort() });
      system().send(ROLLOUT_ACTOR, event);
      return await work.ended.promise;
    } finally {
      this.#work = null;
    }
  }

  /** One that is here and at it; one that has gone can't be waited for. */
  #refuseSecondLeader(newest: Rollout | undefined): void {
    if (newest?.state !== 'applying' || newest.leader === this.#ports.node) return;
    const { leader, revision } = newest;
    if (!this.#members.present().includes(leader)) return;
    throw new UnderstudyError('NODE_REFUSED', `${leader} is rolling out revision ${revision}; wait for its end`);
  }

  /** Nodes that are here and take part, this one among them. */
  #participants(): string[] {
    const { node, source } = this.#ports;
    const others = this.#members
      .all()
      .filter(({ state, last }) => state !== 'gone' && last.configRevision !== null)
      .map((member) => member.node);
    return [...(source?.isShared ? [node] : []), ...others].sort();
  }

  /** Nodes that take part and aren't here: heard by this node once, or told of by earlier roll-outs. */
  #away(rollouts: readonly Rollout[]): string[] {
    const present = this.#participants();
    const oldestMs = this.#ports.clock.wallUs() / 1000 - FORGET_AFTER_MS;
    const seen = rollouts.flatMap(({ nodes, timeMs }) =>
      timeMs < oldestMs ? [] : Object.entries(nodes).flatMap(([node, state]) => (state === 'away' ? [] : [node])),
    );
    const gone = this.#members.all().flatMap(({ node, last }) => (last.configRevision === null ? [] : [node]));
    return [...new Set([...seen, ...gone])].filter((node) => !present.includes(node)).sort();
  }

  #port(): RolloutPort {
    return {
      check: (node, answer) => void this.#check(node, answer),
      store: (answer) => void this.#store(answer),
      look: (answer) => void this.#look(answer),
      apply: (node, revision, answer) => void this.#apply(node, revision, answer),
      report: (state, answer) => this.#write(this.#rolloutOf(state), answer),
      end: (outcome) => void this.#end(outcome),
    };
  }

  async #check(node: string, answer: (event: RolloutEvent) => void): Promise<void> {
    const { text, overlays } = this.#work!.draft!;
    const own = overlays[node] === undefined ? {} : { [node]: overlays[node] };
    try {
      const { problems } = (await this.#ask.node(
        node,
        'config.check',
        { text, overlays: own },
        CHECK_MS,
      )) as CheckAnswer;
      this.#work?.problems.set(node, problems);
      answer({ type: 'check.answered', node, problems: problems.length });
    } catch (error) {
      this.#work?.messages.set(node, messageOf(error));
      answer({ type: 'check.failed', node, message: messageOf(error) });
    }
  }

  async #store(answer: (event: RolloutEvent) => void): Promise<void> {
    const { bus, node, clock } = this.#ports;
    const { draft, base } = this.#work!;
    try {
      const args = [draft, node, Math.round(clock.wallUs() / 1000), base, this.#highestRunning()];
      const { revision } = (await bus.call('config', 'store', ...args)) as Revision;
      answer({ type: 'revision.stored', revision });
    } catch (error) {
      const code = error instanceof UnderstudyError ? error.code : 'NATS_UNREACHABLE';
      if (this.#work) this.#work.message = messageOf(error);
      answer({ type: 'store.failed', code, message: messageOf(error) });
    }
  }

  #highestRunning(): number {
    const others = this.#members.all().map(({ last }) => last.configRevision ?? 0);
    return Math.max(this.#ports.source?.revision ?? 0, ...others);
  }

  /** Who is master is asked for: heartbeats are up to a second old. */
  async #look(answer: (event: RolloutEvent) => void): Promise<void> {
    const { waiting } = this.#context();
    const here = this.#participants().filter((node) => waiting.includes(node));
    const nodes = await Promise.all(
      here.map(async (node): Promise<SeenNode> => {
        try {
          const { masters } = (await this.#ask.node(node, 'config.look')) as LookAnswer;
          return { node, masters };
        } catch {
          // It is told to apply all the same: if it can't, that is where it stops.
          return { node, masters: this.#mastersByHeartbeat(node) };
        }
      }),
    );
    answer({ type: 'nodes.seen', nodes });
  }

  #mastersByHeartbeat(node: string): number {
    const routers = this.#members.all().find((member) => member.node === node)?.last.routers ?? {};
    return Object.values(routers).filter(({ state }) => state === 'master').length;
  }

  async #apply(node: string, revision: number, answer: (event: RolloutEvent) => void): Promise<void> {
    try {
      await this.#ask.node(node, 'config.apply', { revision }, APPLY_MS);
      answer({ type: 'apply.done', node });
    } catch (error) {
      const message = messageOf(error).replace(`node ${node}: `, '');
      this.#work?.messages.set(node, message);
      // What is wrong with a text may quote it, and what lies in it may be secret: the record has the first line.
      answer({ type: 'apply.failed', node, message: message.split('\n')[0]! });
    }
  }

  #context(): RolloutContext {
    return this.#ports.system().get(ROLLOUT_ACTOR)!.context as RolloutContext;
  }

  #rolloutOf(state: Rollout['state']): Rollout {
    const { revision, applied, waiting, away, stopped } = this.#context();
    const named = <S extends string>(nodes: readonly string[], as: S) => nodes.map((node) => [node, as] as const);
    const at = stopped?.at ?? null;
    return {
      revision: revision!,
      state,
      leader: this.#ports.node,
      at,
      why: stopped?.why ?? '',
      nodes: Object.fromEntries([
        ...named(away, 'away'),
        ...named(waiting, 'waiting'),
        ...named(applied, 'applied'),
        ...named(at === null ? [] : [at], 'failed'),
      ]),
      timeMs: Math.round(this.#ports.clock.wallUs() / 1000),
    };
  }

  #write(rollout: Rollout, answer: (event: RolloutEvent) => void): void {
    const { bus, log } = this.#ports;
    const write = async (): Promise<void> => {
      try {
        if (this.#unwritten) await this.#findVersion(rollout);
        this.#version = (await bus.call('config', 'writeRollout', rollout, this.#version)) as number;
        this.#unwritten = null;
      } catch (error) {
        const isLost = error instanceof UnderstudyError && error.code === 'NODE_REFUSED';
        this.#unwritten = isLost ? null : rollout;
        if (isLost) answer({ type: 'lead.lost', message: error.message });
        else log.warn(`how far revision ${rollout.revision} has come could not be stored yet: ${messageOf(error)}`);
      }
    };
    this.#writing = this.#writing.then(write);
  }

  /** A write that was not answered may have been done all the same. */
  async #findVersion({ revision }: Rollout): Promise<void> {
    const { rollouts, version } = (await this.#ports.bus.call('config', 'rollouts')) as StoredRollouts;
    const stored = rollouts.find((one) => one.revision === revision);
    if (stored && stored.leader !== this.#ports.node)
      throw new UnderstudyError('NODE_REFUSED', `${stored.leader} leads the roll-out now`);
    this.#version = version;
  }

  async #end(outcome: Outcome['outcome']): Promise<void> {
    const work = this.#work;
    if (!work) return;
    const { revision, applied, waiting, away, stopped } = this.#context();
    const stateOf = (node: string): NodeOutcome['state'] => {
      if (away.includes(node)) return 'away';
      if (outcome === 'refused' || outcome === 'notStored') {
        if (work.messages.has(node)) return 'noAnswer';
        return (work.problems.get(node)?.length ?? 0) > 0 ? 'problems' : 'right';
      }
      if (stopped?.at === node) return 'failed';
      return applied.includes(node) ? 'applied' : waiting.includes(node) ? 'waiting' : 'away';
    };
    const nodes = work.nodes.map((node) => ({
      node,
      state: stateOf(node),
      problems: work.problems.get(node) ?? [],
      message: work.messages.get(node) ?? '',
    }));
    const message = stopped ? stopped.why : work.message;
    await this.#writing;
    work.ended.resolve({ outcome, revision, message, nodes });
  }
}

const beginOf = (newest: Revision | null, { present, away }: Nodes, draft: Draft, requireAll: boolean): Begin => {
  const bytes = Buffer.byteLength(JSON.stringify(draft));
  if (bytes > MAX_BYTES) {
    const message = `that is ${bytes} bytes with its overlays; at most ${MAX_BYTES} can be shared`;
    throw new UnderstudyError('NODE_REFUSED', message);
  }
  const { author, message, rollbackOf } = draft;
  const event: RolloutEvent = { type: 'push.asked', author, message, rollbackOf, nodes: present, away, requireAll };
  return { event, draft, base: newest?.revision ?? 0 };
};

const notShared = (node: string, others: readonly string[]): string =>
  `${node} has a configuration of its own (its file doesn't say \`shared: true\`); ${others.length === 0 ? 'no node that is here takes part' : `ask ${others.join(' or ')}`}`;
