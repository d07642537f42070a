/**
 * The cluster's configurations in NATS: a bucket with the key `revision`, whose history they are, and the key `rollout`,
 * which says how far each has come. Both are written by compare-and-set, so of two who write at once one is refused.
 */
import { JetStreamApiCodes, JetStreamApiError, StorageType } from '@nats-io/jetstream';
import { Kvm } from '@nats-io/kv';
import type { KV, KvEntry } from '@nats-io/kv';
import { newestComplete, readRevision, readRollouts } from '../config/revision.ts';
import type { Draft, Revision, Rollout } from '../config/revision.ts';
import { UnderstudyError } from '../errors.ts';
import { decodeJson, encodeJson } from './bus.ts';
import type { NatsSession } from './service.ts';
import { ensureStream } from './streams.ts';

/** Revisions that are kept: the most that NATS keeps of a key. */
export const KEPT_REVISIONS = 64;
const REVISION = 'revision';
const ROLLOUT = 'rollout';

export type ConfigBucket = { name: string; replicas: number };

/** What lies where, and which write it was: the next one is to follow it. */
export type StoredRollouts = { rollouts: Rollout[]; version: number };

export class ConfigStore {
  readonly #kv: KV;

  private constructor(kv: KV) {
    this.#kv = kv;
  }

  /**
   * The bucket, made where there is none.
   * @throws UnderstudyError NATS_STREAM_DIFFERS; what the server's API throws
   */
  static async open(session: Pick<NatsSession, 'jetstream' | 'manager'>, bucket: ConfigBucket): Promise<ConfigStore> {
    const { jetstream, manager } = session;
    const kv = await new Kvm(jetstream).create(bucket.name, {
      history: KEPT_REVISIONS,
      replicas: bucket.replicas,
      storage: StorageType.File,
      // A replica that lags would answer with what was there before.
      allow_direct: false,
    });
    const { name, subjects } = (await kv.status()).streamInfo.config;
    const options = { num_replicas: bucket.replicas, max_msgs_per_subject: KEPT_REVISIONS, storage: StorageType.File };
    await ensureStream(manager, { name, subjects, ...options });
    return new ConfigStore(kv);
  }

  /** Newest first. */
  async history(): Promise<Revision[]> {
    const found: Revision[] = [];
    for await (const entry of await this.#kv.history({ key: REVISION })) {
      const revision = revisionOf(entry);
      if (revision) found.push(revision);
    }
    return found.toReversed();
  }

  /** Of this number, or the newest. */
  async revision(number: number | null): Promise<Revision | null> {
    if (number !== null) return (await this.history()).find(({ revision }) => revision === number) ?? null;
    const entry = await this.#kv.get(REVISION);
    return entry && revisionOf(entry);
  }

  /** The newest that every node may run. */
  async complete(): Promise<Revision | null> {
    const number = newestComplete((await this.rollouts()).rollouts);
    return number === null ? null : this.revision(number);
  }

  /**
   * Stores the next revision after `base`. Its number is above `atLeast` too, which nodes may run though the bucket was lost.
   * @throws UnderstudyError NODE_REFUSED when another one has been stored meanwhile
   */
  async store(draft: Draft, leader: string, timeMs: number, base: number, atLeast: number): Promise<Revision> {
    const entry = await this.#kv.get(REVISION);
    const newest = entry && revisionOf(entry);
    if ((newest?.revision ?? 0) !== base) throw overtaken(newest, base);
    const revision: Revision = { revision: Math.max(base, atLeast) + 1, timeMs, leader, ...draft };
    try {
      await this.#kv.put(REVISION, encodeJson(revision), { previousSeq: entry?.revision ?? 0 });
    } catch (error) {
      if (!isOvertaken(error)) throw error;
      throw overtaken(await this.revision(null), base);
    }
    return revision;
  }

  async rollouts(): Promise<StoredRollouts> {
    const entry = await this.#kv.get(ROLLOUT);
    return entry ? rolloutsOf(entry) : { rollouts: [], version: 0 };
  }

  /**
   * Writes how far one has come, after the write that `version` names; gives the new version.
   * @throws UnderstudyError NODE_REFUSED when another node has written meanwhile
   */
  async writeRollout(rollout: Rollout, version: number): Promise<number> {
    const { rollouts } = await this.rollouts();
    const others = rollouts.filter(({ revision }) => revision !== rollout.revision);
    const kept = [...others, rollout].sort((a, b) => a.revision - b.revision).slice(-KEPT_REVISIONS);
    try {
      return await this.#kv.put(ROLLOUT, encodeJson(kept), { previousSeq: version });
    } catch (error) {
      if (!isOvertaken(error)) throw error;
      throw new UnderstudyError('NODE_REFUSED', 'another node leads the roll-out now');
    }
  }

  /** Told at once of what is there, and of each change, until `ended`. Resolves when it hears no more. */
  async watch(told: (rollouts: Rollout[]) => void, ended: AbortSignal): Promise<void> {
    const changes = await this.#kv.watch({ key: ROLLOUT });
    ended.addEventListener('abort', () => changes.stop(), { once: true });
    if (ended.aborted) changes.stop();
    for await (const entry of changes) told(rolloutsOf(entry).rollouts);
  }
}

const revisionOf = ({ operation, value }: KvEntry): Revision | null =>
  operation === 'PUT' ? readRevision(decodeJson(value)) : null;

const rolloutsOf = ({ value, revision }: KvEntry): StoredRollouts => ({
  rollouts: readRollouts(decodeJson(value)) ?? [],
  version: revision,
});

const isOvertaken = (error: unknown): boolean =>
  error instanceof JetStreamApiError &&
  (error.code === JetStreamApiCodes.StreamWrongLastSequence ||
    error.code === JetStreamApiCodes.StreamWrongLastSequenceUnknown);

const overtaken = (newest: Revision | null, base: number): UnderstudyError =>
  new UnderstudyError(
    'NODE_REFUSED',
    newest
      ? `${newest.author} has pushed revision ${newest.revision} meanwhile, through ${newest.leader}; nothing was stored. Pull it, and push again`
      : `revision ${base} is gone from NATS; nothing was stored. Push again`,
  );
