/** One revision of what a cluster shares, as it lies in NATS and in each node's cache, and how far it has come. */
import { z } from 'zod';

const revision = z.object({
  /** From 1, gapless as long as the bucket isn't lost. */
  revision: z.int().min(1),
  author: z.string(),
  message: z.string(),
  timeMs: z.number(),
  /** The node that was asked to roll it out. */
  leader: z.string(),
  /** The revision whose text it has again; null for a new one. */
  rollbackOf: z.int().nullable(),
  text: z.string(),
  /** What is different on a node, by its name. */
  overlays: z.record(z.string(), z.string()),
});

export type Revision = z.output<typeof revision>;

/** What is to become a revision. */
export type Draft = Omit<Revision, 'revision' | 'timeMs' | 'leader'>;

const rollout = z.object({
  revision: z.int().min(1),
  /** Every node that was here runs it; or nodes are being told; or one of them failed, and the rest run what they ran. */
  state: z.enum(['applying', 'done', 'stopped']),
  leader: z.string(),
  /** The node at which it stopped, and why. */
  at: z.string().nullable(),
  why: z.string(),
  nodes: z.record(z.string(), z.enum(['applied', 'waiting', 'failed', 'away'])),
  timeMs: z.number(),
});

/** How far a revision has come. A revision that has none yet was only stored. */
export type Rollout = z.output<typeof rollout>;

const rollouts = z.array(rollout);

/** Null for what isn't one: other programs may write to the bucket too. */
export const readRevision = (value: unknown): Revision | null => revision.safeParse(value).data ?? null;
export const readRollouts = (value: unknown): Rollout[] | null => rollouts.safeParse(value).data ?? null;

/** What every node may run: the newest that was applied wherever a node was here. */
export const newestComplete = (all: readonly Rollout[]): number | null =>
  all.reduce<number | null>(
    (newest, one) => (one.state === 'done' ? Math.max(newest ?? 0, one.revision) : newest),
    null,
  );

/** `revision 12 stopped at lb2: why` */
export const describeRollout = ({ revision: number, state, leader, at, why }: Rollout): string => {
  if (state === 'done') return `revision ${number} is applied`;
  if (state === 'applying') return `revision ${number} is being applied by ${leader}`;
  return `revision ${number} stopped${at === null ? '' : ` at ${at}`}: ${why}`;
};
