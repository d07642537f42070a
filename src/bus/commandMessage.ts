/** Operators' commands as the API takes them and as they stand in the cluster's stream. */
import { z } from 'zod';
import type { DeskCommand, OperatorCommand, StreamCommand } from '../../machines/commandDesk.ts';
import { decodeJson } from './bus.ts';

const name = z.string().min(1);
/** HAProxy's greatest weight. */
const MAX_WEIGHT = 256;

const serverCommands = [
  z.strictObject({ type: z.literal('server.ready'), pool: name, server: name }),
  z.strictObject({ type: z.literal('server.drain'), pool: name, server: name }),
  z.strictObject({ type: z.literal('server.maintenance'), pool: name, server: name }),
  z.strictObject({
    type: z.literal('server.weight'),
    pool: name,
    server: name,
    weight: z.int().min(0).max(MAX_WEIGHT),
  }),
] as const;
const routerCommands = [
  z.strictObject({ type: z.literal('router.demote'), router: name }),
  z.strictObject({ type: z.literal('router.promote'), router: name }),
] as const;

const scope = { scope: z.enum(['local', 'cluster']).optional() };
const forNode = { node: name.optional() };

/** Where a command goes: to the cluster unless it says otherwise; a router's to one node. */
export type Addressing = { scope?: 'local' | 'cluster' | undefined; node?: string | undefined };

export const requestSchema = z.discriminatedUnion('type', [
  serverCommands[0].extend(scope),
  serverCommands[1].extend(scope),
  serverCommands[2].extend(scope),
  serverCommands[3].extend(scope),
  routerCommands[0].extend(forNode),
  routerCommands[1].extend(forNode),
  z.strictObject({ type: z.literal('reload'), ...scope }),
]);

export const splitRequest = (
  request: z.output<typeof requestSchema>,
): { command: DeskCommand; addressing: Addressing } => {
  const { scope: wanted, node, ...command } = request as DeskCommand & Addressing;
  return { command, addressing: { scope: wanted, node } };
};

export const isReload = (command: DeskCommand): command is Exclude<DeskCommand, OperatorCommand> =>
  command.type === 'reload';

/** It becomes part of a subject, and must not be one that others listen to. */
const idSchema = z.string().regex(/^[\w-]{1,64}$/);

const messageSchema = z.object({
  id: idSchema,
  by: name,
  /** By the clock of `by`. */
  atUs: z.int().min(0),
  node: name.nullable(),
  command: z.discriminatedUnion('type', [
    ...serverCommands,
    ...routerCommands,
    z.strictObject({ type: z.literal('reload') }),
  ]),
});

/** Null for what this version can't read: anybody with the right to may put anything there. */
export const readCommand = (data: Uint8Array): StreamCommand | null => {
  const parsed = messageSchema.safeParse(decodeJson(data));
  return parsed.success ? parsed.data : null;
};
