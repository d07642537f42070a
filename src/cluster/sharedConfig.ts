/** The cluster's shared configuration: pushed once, checked on every node, applied on one after another. */
import { z } from 'zod';
import type { Hands } from '../../actors/system.ts';
import type { ConfigEvent } from '../bus/configService.ts';
import { describeRollout, newestComplete } from '../config/revision.ts';
import type { Revision, Rollout } from '../config/revision.ts';
import type { ConfigSource } from '../config/source.ts';
import { loadedOrThrow } from '../config/source.ts';
import { messageOf, UnderstudyError } from '../errors.ts';
import type { Ask } from './ask.ts';
import { ConfigRollout, ROLLOUT_ACTOR } from './configRollout.ts';
import type { CheckAnswer, LookAnswer } from './configRollout.ts';
import { settled, troublesOf } from './configSettled.ts';
import type { Members } from './members.ts';
import type { ClusterPart, ClusterPorts } from './ports.ts';

/** What NATS could not give just now is asked for again. */
const CATCH_UP_AGAIN_MS = 2_000;

export type SharedConfigView = {
  /** What this node runs, 0 before the first. */
  revision: number;
  /** How far the newest has come; null when nothing was ever pushed. */
  rollout: Rollout | null;
};

const checkQuestion = z.object({ text: z.string(), overlays: z.record(z.string(), z.string()) });
const applyQuestion = z.object({ revision: z.int().min(1) });

export class SharedConfig implements ClusterPart {
  readonly hands: Record<string, Hands>;
  readonly rollout: ConfigRollout;
  readonly #ports: ClusterPorts;
  readonly #members: Members;
  readonly #ask: Ask;
  #rollouts: Rollout[] | null = null;
  #trouble: string | null = null;
  #catching = false;
  #again: NodeJS.Timeout | undefined;
  #ends: (() => void)[] = [];

  constructor(ports: ClusterPorts, members: Members, ask: Ask) {
    this.#ports = ports;
    this.#members = members;
    this.#ask = ask;
    this.rollout = new ConfigRollout(ports, members, ask);
    this.hands = this.rollout.hands;
    const { source } = ports;
    if (source?.isShared) members.contribute(() => ({ configRevision: source.revision }));
  }

  start(): void {
    const { bus, source, system } = this.#ports;
    if (!source?.isShared) return;
    this.#note('config.started', { revision: source.revision });
    system().start(ROLLOUT_ACTOR, 'rollout', {});
    this.#ask.answer('config.check', (payload) => this.#check(source, checkQuestion.parse(payload)));
    this.#ask.answer('config.look', () => this.#look());
    this.#ask.answer('config.apply', async (payload) =>
      this.#applyRevision(source, applyQuestion.parse(payload).revision),
    );
    this.#ends = [
      bus.onEvent('config', (event) => this.#hear(event as ConfigEvent)),
      bus.onStatus(({ connected }) => {
        if (!connected) return;
        this.#follow();
        this.rollout.rewrite();
      }),
    ];
    this.#follow();
  }

  async stop(): Promise<void> {
    clearTimeout(this.#again);
    for (const end of this.#ends) end();
  }

  /** Newest first, each with how far it came. @throws UnderstudyError of NATS */
  async history(): Promise<{ revision: Revision; rollout: Rollout | null }[]> {
    const { bus } = this.#ports;
    const { rollouts } = (await bus.call('config', 'rollouts')) as { rollouts: Rollout[] };
    return ((await bus.call('config', 'history')) as Revision[]).map((revision) => ({
      revision,
      rollout: rollouts.find((one) => one.revision === revision.revision) ?? null,
    }));
  }

  /** Of this number, or the newest. @throws UnderstudyError of NATS */
  revision(number: number | null): Promise<Revision | null> {
    return this.#ports.bus.call('config', 'revision', number) as Promise<Revision | null>;
  }

  view(): SharedConfigView | null {
    const { source } = this.#ports;
    if (!source?.isShared) return null;
    return { revision: source.revision!, rollout: this.#newest ?? null };
  }

  /** What asks for an operator. */
  problems(): string[] {
    const { source } = this.#ports;
    if (!source?.isShared) return [];
    const { refused, unkept, revision } = source;
    return [
      ...(refused ? [`revision ${refused.revision} of the configuration is not run here: ${refused.why}`] : []),
      ...(unkept === null ? [] : [`revision ${revision} can't be kept for a start without NATS: ${unkept}`]),
      ...(this.#trouble === null ? [] : [`new revisions of the configuration can't be seen: ${this.#trouble}`]),
      ...this.#rolloutProblems(),
    ];
  }

  /** The node's own file is another one: what could not be run over the old one may be run over this. */
  reloaded(): void {
    const { source } = this.#ports;
    if (!source?.isShared) return;
    source.refused = null;
    this.catchUp();
  }

  /** Runs what every node may run, where that is newer than what this one runs. */
  catchUp(): void {
    if (this.#catching) return;
    this.#catching = true;
    clearTimeout(this.#again);
    void this.#catchUp().finally(() => (this.#catching = false));
  }

  async #catchUp(): Promise<void> {
    const { source, log } = this.#ports;
    for (;;) {
      const newest = newestComplete(this.#rollouts ?? []);
      if (!source?.isShared || newest === null || newest <= source.revision!) return;
      // What it could not run once it can't run again, unless something changes.
      if (source.refused?.revision === newest) return;
      try {
        await this.#applyRevision(source, newest);
      } catch (error) {
        const why = messageOf(error);
        if (error instanceof UnderstudyError && error.code.startsWith('NATS_')) {
          this.#again = setTimeout(() => this.catchUp(), CATCH_UP_AGAIN_MS);
          return;
        }
        source.refused = { revision: newest, why };
        this.#note('config.refused', { revision: newest, why: why.split('\n')[0]! });
        log.error(`revision ${newest} of the configuration is not run here: ${why}`);
      }
    }
  }

  /** Again with each connection: the bus's thread may have been started anew. */
  #follow(): void {
    const { bus } = this.#ports;
    bus.call('config', 'watch').catch((error: unknown) => (this.#trouble = messageOf(error)));
  }

  get #newest(): Rollout | undefined {
    return this.#rollouts?.at(-1);
  }

  #hear(event: ConfigEvent): void {
    if (event.type === 'trouble') {
      this.#trouble = event.message;
      return;
    }
    this.#trouble = null;
    const isFirst = this.#rollouts === null;
    this.#rollouts = event.rollouts;
    const newest = this.#newest;
    if (isFirst && newest?.state === 'applying' && newest.leader === this.#ports.node && !this.rollout.isUnderWay)
      this.rollout.giveUp(newest);
    this.catchUp();
  }

  #rolloutProblems(): string[] {
    const newest = this.#newest;
    if (newest?.state === 'stopped')
      return [`${describeRollout(newest)}; \`config rollback\`, \`config push\` or \`config push --resume\` goes on`];
    if (newest?.state !== 'applying' || this.#members.present().includes(newest.leader)) return [];
    const { revision, leader } = newest;
    return [
      `revision ${revision} is half applied: ${leader}, which led it, has gone; \`config push --resume\` goes on`,
    ];
  }

  #check(source: ConfigSource, texts: z.output<typeof checkQuestion>): CheckAnswer {
    return { problems: source.problemsOf(texts) };
  }

  #look(): LookAnswer {
    const isMaster = ({ machine, state }: { machine: string; state: string }) =>
      machine === 'vrrpRouter' && state.split('.')[0] === 'master';
    return { masters: [...this.#ports.system().all()].filter(isMaster).length };
  }

  async #applyRevision(source: ConfigSource, number: number): Promise<void> {
    const revision = await this.revision(number);
    if (!revision) throw new UnderstudyError('NODE_REFUSED', `NATS has no revision ${number}`);
    await source.exclusively(() => this.#apply(source, revision));
  }

  /** A node that can't carry it runs what it ran. @throws UnderstudyError */
  async #apply(source: ConfigSource, revision: Revision): Promise<void> {
    const { applyConfig, system, log } = this.#ports;
    const { revision: number, author, message } = revision;
    const previous = source.revision!;
    if (number === previous) return;
    // Of two who lead, the one with the older revision is late.
    if (number < previous) throw new UnderstudyError('NODE_REFUSED', `revision ${previous}, which is newer, runs here`);
    const { config, text } = loadedOrThrow(source.file, source.loadWith(revision));
    const before = troublesOf(system());
    await applyConfig(config, text);
    const trouble = await settled(system(), before);
    if (trouble !== null) {
      await this.#goBack(source, trouble);
      throw new UnderstudyError('NODE_REFUSED', `with it ${trouble}; revision ${previous} runs here again`);
    }
    source.adopt(revision);
    this.#note('config.applied', { revision: number, previous, author, message });
    log.info(`revision ${number} of the configuration runs`);
  }

  async #goBack(source: ConfigSource, trouble: string): Promise<void> {
    try {
      const { config, text } = loadedOrThrow(source.file, source.load());
      await this.#ports.applyConfig(config, text);
    } catch (error) {
      const message = `with it ${trouble}; and what ran before can't be had back: ${messageOf(error)}`;
      throw new UnderstudyError('NODE_REFUSED', message);
    }
  }

  #note(type: string, payload: Record<string, unknown>): void {
    this.#ports.journal.note(type, payload);
  }
}
