/**
 * Operators' commands for all nodes: through the cluster's stream, in order, once each. What they come to is decided by
 * the machine `commandDesk`; here they are put into the stream, heard from it, and the nodes' answers gathered.
 */
import { randomUUID } from 'node:crypto';
import { z } from 'zod';
import type { Hands } from '../../actors/system.ts';
import { adminOf, COMMANDS_ACTOR, timeAfter, untoldOf, wordsOf } from '../../machines/commandDesk.ts';
import type {
  Addressed,
  AnswerParams,
  CommandDeskContext,
  CommandDeskInput,
  DeskCommand,
  Intent,
  ServerWord,
  StreamCommand,
} from '../../machines/commandDesk.ts';
import { decodeJson, encodeJson } from '../bus/bus.ts';
import { isReload } from '../bus/commandMessage.ts';
import type { CommandPosition, CommandServiceEvent } from '../bus/commandService.ts';
import { messageOf, UnderstudyError } from '../errors.ts';
import type { ReloadResult } from '../node.ts';
import { formatClock } from '../time.ts';
import { routerId } from '../vrrp/wiring.ts';
import { serverId } from '../wiring.ts';
import type { Members } from './members.ts';
import type { ClusterPart, ClusterPorts } from './ports.ts';

const SERVICE = 'command';

/** A node answers when the command is on its disk: milliseconds, or as long as the disk takes. */
const ANSWER_MS = 3_000;
/** A reload reads files and tells thousands of actors. */
const RELOAD_ANSWER_MS = 5_000;
/** Of the names of a reload's answer, and of the text of a refusal: NATS takes messages of 1 MiB. */
const MAX_LISTED = 500;
const MAX_MESSAGE_LENGTH = 100_000;

/** What one node said to a command. */
export type NodeAnswer =
  | {
      node: string;
      answer: 'done';
      actor: string;
      before: string;
      after: string;
      recorded: boolean;
      /** Given to this node alone: for good, or until the cluster can be told. */
      only?: 'here' | 'untilNatsIsBack';
    }
  | ({ node: string; answer: 'reloaded' } & ReloadResult)
  /** A newer command for the same actor was there already. */
  | { node: string; answer: 'stale'; actor: string; after: string; recorded: boolean; newer: string }
  | { node: string; answer: 'refused'; code: string; message: string }
  /** It is not there: it applies the command when it returns. */
  | { node: string; answer: 'away'; message: string }
  /** It is there, and has said nothing in time. */
  | { node: string; answer: 'silent'; message: string };

export type ClusterAnswer = {
  /** Place in the command stream; null for what is not in it. */
  command: number | null;
  answers: NodeAnswer[];
};

const reloaded = z.object({
  added: z.array(z.string()),
  removed: z.array(z.string()),
  changed: z.array(z.string()),
  replaced: z.array(z.string()),
  needRestart: z.array(z.string()),
  recorded: z.boolean(),
});
const node = z.string();
const done = { actor: z.string(), before: z.string(), after: z.string(), recorded: z.boolean() };
const answerSchema = z.discriminatedUnion('answer', [
  z.object({ node, answer: z.literal('done'), ...done }),
  reloaded.extend({ node, answer: z.literal('reloaded') }),
  z.object({
    node,
    answer: z.literal('stale'),
    actor: z.string(),
    after: z.string(),
    recorded: z.boolean(),
    newer: z.string(),
  }),
  z.object({ node, answer: z.literal('refused'), code: z.string(), message: z.string() }),
]);

type Waiting = { heard(answer: NodeAnswer): void };

export type Difference = {
  actor: string;
  /** What the cluster wants; `given` is null where nobody has said anything and the configuration holds. */
  cluster: { admin: ServerWord } | { weight: number };
  given: Given | null;
  /** What is so here, and the command to this node alone that made it so; null when its configuration did. */
  here: { admin: string } | { weight: number };
  by: (Given & { pending: boolean }) | null;
};
type Given = { type: string; by: string; atUs: number };

export class ClusterCommands implements ClusterPart {
  readonly hands: Record<string, Hands>;
  /** Messages on core NATS, or places in the stream, that could not be read. */
  malformed = 0;
  readonly #ports: ClusterPorts;
  readonly #members: Members;
  readonly #startedUs: number;
  #known: CommandDeskContext | null = null;
  readonly #waiting = new Map<string, Waiting>();
  #ends: (() => void)[] = [];
  #running = false;
  /** Why the stream is not followed, as far as that is known. */
  #trouble: { code: string; message: string } | null = null;
  #onCaughtUp = new Set<() => void>();

  constructor(ports: ClusterPorts, members: Members) {
    this.#ports = ports;
    this.#members = members;
    this.#startedUs = ports.clock.wallUs();
    this.hands = {
      commandDesk: {
        answer: (params: AnswerParams) => void this.#answer(params),
        reload: ({ id }: { id: string }) => void this.#reload(id),
        publish: ({ commands }: { commands: StreamCommand[] }) => void this.#publishAll(commands),
      },
    };
  }

  /** What the journal says that the desk knew when the node last ran. */
  restore(known: CommandDeskContext | null): void {
    this.#known = known;
  }

  start(): void {
    const { bus, system, node: name } = this.#ports;
    const { startedUs: _before, node: _sameNode, ...known } = this.#known ?? { startedUs: 0, node: name };
    const input: CommandDeskInput = {
      node: name,
      startedUs: this.#startedUs,
      ...('cluster' in known ? { known } : {}),
    };
    this.#running = true;
    system().start(COMMANDS_ACTOR, 'commandDesk', input);
    this.#ends = [
      bus.onEvent(SERVICE, (event) => this.#hear(event as CommandServiceEvent)),
      bus.onStatus((status) => {
        if (status.connected) this.#follow();
        else this.#lost(status.code ?? 'NATS_OFFLINE', status.message);
      }),
    ];
    if (bus.status.connected) this.#follow();
    // What was wanted of servers that this node had not then, and has now.
    for (const [actor, words] of Object.entries(this.#context().cluster))
      if (Object.values(words).some(({ due }) => due)) this.appeared(actor);
  }

  async stop(): Promise<void> {
    this.#running = false;
    for (const end of this.#ends) end();
    for (const caughtUp of [...this.#onCaughtUp]) caughtUp();
  }

  /** An actor of the configuration has been started, and has got back what it was told before. */
  appeared(actor: string): void {
    if (!this.#running || Object.keys(wordsOf(this.#context(), actor)).length === 0) return;
    if (this.#ports.system().has(actor)) this.#send({ type: 'target.appeared', actor });
  }

  /** Resolves when all commands given until now have been applied here; false when NATS gave no chance to know. */
  caughtUp(withinMs: number): Promise<boolean> {
    if (this.#isFollowing()) return Promise.resolve(true);
    return new Promise((finish) => {
      const end = () => {
        clearTimeout(timer);
        this.#onCaughtUp.delete(end);
        finish(this.#running && this.#isFollowing());
      };
      const timer = setTimeout(end, withinMs);
      this.#onCaughtUp.add(end);
    });
  }

  /**
   * Gives a command to all nodes, or to one, and waits for their answers.
   * @throws UnderstudyError NATS_OFFLINE and others when it is not known to be in the stream; NODE_REFUSED
   */
  async give(command: DeskCommand, forNode: string | null = null): Promise<ClusterAnswer> {
    const { bus, node: name, clock } = this.#ports;
    // Of another node's routers nothing is known here.
    const isOurs = forNode === null || forNode === name;
    const actors = isReload(command) || !isOurs ? [actorOf(command)] : this.#ports.targets(command);
    if (!bus.status.connected)
      throw new UnderstudyError('NATS_OFFLINE', `${bus.status.message}: ${howElse(command, forNode)}`);
    const id = randomUUID();
    const atUs = timeAfter(this.#context(), actors, clock.wallUs());
    const expected = this.#members.present().filter((one) => forNode === null || one === forNode);
    const gathering = this.#gather(id, expected, isReload(command) ? RELOAD_ANSWER_MS : ANSWER_MS);
    try {
      const sequence = await this.#publish({ id, by: name, atUs, node: forNode, command });
      const heard = await gathering.answers;
      return { command: sequence, answers: this.#rows(expected, heard, forNode) };
    } catch (error) {
      if (!(error instanceof UnderstudyError) || error.exitStatus !== 3) throw error;
      throw new UnderstudyError(error.code, `${error.message}; ${howElse(command, forNode)}`);
    } finally {
      gathering.end();
    }
  }

  /** Carries a command out on this node alone. @throws UnderstudyError NODE_REFUSED, and what a reload throws */
  async giveHere(command: DeskCommand): Promise<ClusterAnswer> {
    const { node: name, clock, reload, targets } = this.#ports;
    if (isReload(command)) return { command: null, answers: [{ node: name, answer: 'reloaded', ...(await reload()) }] };
    const actors = targets(command);
    const id = randomUUID();
    const gathering = this.#gather(id, [name], ANSWER_MS);
    try {
      this.#send({ type: 'command.local', id, atUs: clock.wallUs(), command, actors });
      const heard = await gathering.answers;
      return { command: null, answers: this.#rows([name], heard, name) };
    } finally {
      gathering.end();
    }
  }

  /** How far this node follows the cluster's commands, for whoever looks at it. */
  view(): {
    state: string;
    sequence: number;
    trouble: { code: string; message: string } | null;
    pending: StreamCommand[];
    differences: Difference[];
  } {
    const state = this.#ports.system().get(COMMANDS_ACTOR)?.state ?? 'detached';
    const context = this.#context();
    const trouble = state === 'following' ? null : this.#trouble;
    const pending = untoldOf(context).filter(({ by }) => by === context.node);
    return { state, sequence: context.sequence, trouble, pending, differences: this.#differences(context) };
  }

  #context(): CommandDeskContext {
    const actor = this.#ports.system().get(COMMANDS_ACTOR);
    return actor
      ? (actor.context as CommandDeskContext)
      : { node: this.#ports.node, startedUs: 0, stream: null, sequence: 0, cluster: {}, here: {}, reloaded: null };
  }

  #isFollowing(): boolean {
    return this.#ports.system().get(COMMANDS_ACTOR)?.state === 'following';
  }

  #send(event: { type: string } & Record<string, unknown>): void {
    if (this.#running) this.#ports.system().send(COMMANDS_ACTOR, event);
  }

  #follow(): void {
    const { stream, sequence } = this.#context();
    const from: CommandPosition = { stream, sequence };
    this.#ports.bus.call(SERVICE, 'follow', from).catch((error: unknown) => {
      // The bus's thread has ended: when another one is connected this is called again.
      this.#lost('NATS_OFFLINE', messageOf(error));
    });
  }

  #lost(code: string, message: string): void {
    const isNews = this.#trouble?.code !== code;
    this.#trouble = { code, message };
    if (this.#isFollowing() || isNews) this.#send({ type: 'stream.lost', code, message });
  }

  #hear(event: CommandServiceEvent): void {
    switch (event.type) {
      case 'found':
        return this.#send({ type: 'stream.found', stream: event.stream, from: event.from });
      case 'caughtUp':
        this.#trouble = null;
        this.#send({ type: 'stream.caughtUp' });
        for (const caughtUp of [...this.#onCaughtUp]) caughtUp();
        return;
      case 'lost':
        if (this.#trouble?.code !== event.code) this.#ports.log.warn(`the command stream: ${event.message}`);
        return this.#lost(event.code, event.message);
      case 'unreadable':
        this.malformed++;
        return this.#send({ type: 'command.unreadable', stream: event.stream, sequence: event.sequence });
      case 'command': {
        const { stream, sequence, said } = event;
        return this.#send({ type: 'command.received', stream, sequence, ...said, ...this.#addressed(said) });
      }
    }
  }

  /** Which actors of this node a command is for, as things stand: it is recorded with the command. */
  #addressed({ node: forNode, command }: StreamCommand): Addressed {
    if (isReload(command) || (forNode !== null && forNode !== this.#ports.node))
      return { actors: [], running: true, refusal: null };
    try {
      const actors = this.#ports.targets(command);
      const running = actors.every((actor) => this.#ports.system().has(actor));
      return { actors, running, refusal: null };
    } catch (error) {
      const refusal = { code: 'NODE_REFUSED', message: messageOf(error) };
      // A server that is configured here only later is what the cluster wants it to be, too.
      const isLater = 'server' in command && !this.#ports.system().has(actorOf(command));
      return { actors: isLater ? [actorOf(command)] : [], running: false, refusal };
    }
  }

  async #publish(command: StreamCommand): Promise<number> {
    const { sequence } = (await this.#ports.bus.call(SERVICE, 'publish', command)) as { sequence: number };
    return sequence;
  }

  async #publishAll(commands: StreamCommand[]): Promise<void> {
    try {
      for (const command of commands) await this.#publish(command);
    } catch (error) {
      const code = error instanceof UnderstudyError ? error.code : 'NATS_UNREACHABLE';
      this.#send({ type: 'publish.failed', code, message: messageOf(error) });
    }
  }

  /** Called before the actor has been told: its present state is the one before. */
  async #answer(params: AnswerParams): Promise<void> {
    const { system, journal, node: name } = this.#ports;
    const { id, actor } = params;
    const stateNow = () => system().get(actor)?.state ?? 'absent';
    const before = stateNow();
    const recorded = await journal.written();
    const after = stateNow();
    switch (params.outcome) {
      case 'refused':
        return this.#say(id, { node: name, answer: 'refused', code: params.code, message: params.message });
      case 'stale': {
        const { type, by, atUs } = params.newer;
        const newer = `${type} given on ${by} at ${formatClock(atUs)}`;
        return this.#say(id, { node: name, answer: 'stale', actor, after, recorded, newer });
      }
      case 'needless':
        return this.#say(id, { node: name, answer: 'reloaded', ...NOTHING_CHANGED, recorded });
      case 'applied':
        return this.#say(id, { node: name, answer: 'done', actor, before, after, recorded });
      case 'appliedHere': {
        // A router's command is for one node, whoever else is told of it.
        const isDifference = actor.startsWith('server/');
        const only = params.pending ? 'untilNatsIsBack' : 'here';
        const own: NodeAnswer = { node: name, answer: 'done', actor, before, after, recorded };
        this.#waiting.get(id)?.heard(isDifference ? { ...own, only } : own);
      }
    }
  }

  async #reload(id: string): Promise<void> {
    const { node: name, reload } = this.#ports;
    try {
      this.#say(id, { node: name, answer: 'reloaded', ...shortened(await reload()) });
    } catch (error) {
      const code = error instanceof UnderstudyError ? error.code : 'NODE_REFUSED';
      const message = messageOf(error).slice(0, MAX_MESSAGE_LENGTH);
      this.#say(id, { node: name, answer: 'refused', code, message });
    }
  }

  /** To whoever gave the command, here or on another node. */
  #say(id: string, answer: NodeAnswer): void {
    if (!this.#running) return;
    this.#waiting.get(id)?.heard(answer);
    this.#ports.bus.publish(this.#ports.subjects.answer(id), encodeJson(answer));
  }

  /** Listens for answers from now on; resolves when all of these have answered, or when the time is up. */
  #gather(
    id: string,
    expected: readonly string[],
    withinMs: number,
  ): { answers: Promise<Map<string, NodeAnswer>>; end(): void } {
    const { bus, subjects } = this.#ports;
    const heard = new Map<string, NodeAnswer>();
    const all = Promise.withResolvers<Map<string, NodeAnswer>>();
    const take = (answer: NodeAnswer) => {
      heard.set(answer.node, answer);
      if (expected.every((one) => heard.has(one))) all.resolve(heard);
    };
    const timer = setTimeout(() => all.resolve(heard), expected.length === 0 ? 0 : withinMs);
    this.#waiting.set(id, { heard: take });
    const unsubscribe = bus.subscribe(subjects.answer(id), ({ data }) => {
      const answer = answerSchema.safeParse(decodeJson(data));
      if (answer.success) take(answer.data);
      else this.malformed++;
    });
    const end = () => {
      clearTimeout(timer);
      this.#waiting.delete(id);
      unsubscribe();
    };
    return { answers: all.promise, end };
  }

  #rows(expected: readonly string[], heard: Map<string, NodeAnswer>, forNode: string | null): NodeAnswer[] {
    const { node: name } = this.#ports;
    const others = this.#members.all();
    const known = forNode === null ? [name, ...others.map((member) => member.node)] : [forNode];
    const present = this.#members.present();
    const row = (one: string): NodeAnswer => {
      const answer = heard.get(one);
      if (answer) return answer;
      if (present.includes(one))
        return { node: one, answer: 'silent', message: 'no answer in time; it applies the command when it hears it' };
      const isKnown = others.some((member) => member.node === one);
      const message = isKnown ? 'it applies the command when it returns' : `${name} has never heard of this node`;
      return { node: one, answer: 'away', message };
    };
    return [...new Set([...expected, ...known, ...heard.keys()])].sort().map(row);
  }

  #differences(context: CommandDeskContext): Difference[] {
    const differences: Difference[] = [];
    const { system, config } = this.#ports;
    for (const [pool, { servers }] of Object.entries(config().backends))
      for (const { name: server, disabled } of servers) {
        const id = serverId(pool, server);
        const actor = system().get(id);
        if (!actor) continue;
        const admin = actor.state.split(',')[1] as ServerWord;
        const { weight } = actor.context as { weight: number };
        const said = context.cluster[id] ?? {};
        const own = context.here[id] ?? {};
        const isSaid = Boolean(said.ready ?? said.drain ?? said.maintenance);
        const wanted = isSaid ? adminOf(said) : disabled ? 'maintenance' : 'ready';
        const by = (intent: Intent | undefined) =>
          intent ? { ...givenOf(intent)!, pending: intent.pending === true } : null;
        if (wanted !== admin)
          differences.push({
            actor: id,
            cluster: { admin: wanted },
            given: givenOf(said[wanted]),
            here: { admin },
            by: by(own[admin]),
          });
        if (said.weight?.weight !== undefined && said.weight.weight !== weight)
          differences.push({
            actor: id,
            cluster: { weight: said.weight.weight },
            given: givenOf(said.weight),
            here: { weight },
            by: by(own.weight),
          });
        else if (own.weight && !said.weight)
          differences.push({
            actor: id,
            cluster: { weight: (actor.context as { settings: { weight: number } }).settings.weight },
            given: null,
            here: { weight },
            by: by(own.weight),
          });
      }
    return differences;
  }
}

const NOTHING_CHANGED = { added: [], removed: [], changed: [], replaced: [], needRestart: [] };

const shortened = (result: ReloadResult): ReloadResult => {
  const names = (list: string[]) =>
    list.length <= MAX_LISTED ? list : [...list.slice(0, MAX_LISTED), `… and ${list.length - MAX_LISTED} more`];
  const { added, removed, changed, replaced } = result;
  return {
    ...result,
    added: names(added),
    removed: names(removed),
    changed: names(changed),
    replaced: names(replaced),
  };
};

const givenOf = (intent: Intent | undefined): Given | null =>
  intent ? { type: intent.type, by: intent.by, atUs: intent.atUs } : null;

const actorOf = (command: DeskCommand): string => {
  if (isReload(command)) return 'node';
  return 'router' in command ? routerId(command.router) : serverId(command.pool, command.server);
};

/** What an operator can do who can't reach the cluster. */
const howElse = (command: DeskCommand, forNode: string | null): string => {
  if (forNode !== null) return `give it to ${forNode} itself, without --node`;
  return isReload(command)
    ? 'with --local only this node reloads'
    : 'with --local it is carried out on this node alone, and the cluster is told when NATS is back';
};
