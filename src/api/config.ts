/** The shared configuration over the API: what `understudy config` speaks to. All of it needs the token: it may hold secrets. */
import type { FastifyInstance } from 'fastify';
import { z } from 'zod';
import type { SharedConfig } from '../cluster/sharedConfig.ts';
import { UnderstudyError } from '../errors.ts';
import type { UnderstudyNode } from '../node.ts';

/** More than NATS takes; what is too large is told by how much. */
const MAX_BODY_BYTES = 8 * 1024 * 1024;

const who = { author: z.string().min(1).max(256), message: z.string().max(4096).default('') };
const requireAll = z.boolean().default(false);

const pushSchema = z.strictObject({
  ...who,
  requireAll,
  text: z.string(),
  overlays: z.record(z.string().min(1), z.string()).default({}),
});
const rollbackSchema = z.strictObject({ ...who, requireAll, revision: z.int().min(1) });

export const CONFIG_PATH = '/api/config';

export const addConfigRoutes = (app: FastifyInstance, node: UnderstudyNode): void => {
  app.get<{ Querystring: { revision?: string } }>(CONFIG_PATH, async ({ query }) => {
    const number = query.revision === undefined ? null : Number(query.revision);
    if (number !== null && !(Number.isInteger(number) && number > 0))
      throw new UnderstudyError('USAGE', 'revision is a whole number from 1');
    const revision = await sharedOf(node).revision(number);
    if (revision) return revision;
    const message = number === null ? 'nothing has been pushed yet' : `there is no revision ${number}`;
    throw new UnderstudyError('NODE_REFUSED', message);
  });
  app.get(`${CONFIG_PATH}/history`, async () => ({
    revisions: (await sharedOf(node).history()).map(({ revision: { text, overlays, ...revision }, rollout }) =>
      Object.assign(revision, { bytes: Buffer.byteLength(text), overlays: Object.keys(overlays), rollout }),
    ),
  }));
  app.post(`${CONFIG_PATH}/push`, { bodyLimit: MAX_BODY_BYTES }, ({ body }) => {
    const { requireAll: all, ...draft } = read(pushSchema, body);
    return sharedOf(node).rollout.push(draft, { requireAll: all });
  });
  app.post(`${CONFIG_PATH}/rollback`, ({ body }) => {
    const { requireAll: all, revision, author, message } = read(rollbackSchema, body);
    return sharedOf(node).rollout.rollback(revision, author, message, { requireAll: all });
  });
  app.post(`${CONFIG_PATH}/resume`, () => sharedOf(node).rollout.resume());
};

/** @throws UnderstudyError NODE_REFUSED */
const sharedOf = ({ cluster }: UnderstudyNode): SharedConfig => {
  if (cluster) return cluster.sharedConfig;
  throw new UnderstudyError('NODE_REFUSED', 'the bus is memory: this node shares its configuration with nobody');
};

/** @throws UnderstudyError USAGE */
const read = <S extends z.ZodType>(schema: S, body: unknown): z.output<S> => {
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  const issues = parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'the body'}: ${message}`);
  throw new UnderstudyError('USAGE', issues.join('; '));
};
