/** What a node tells of itself each second, as it is read from the bus: anybody may publish anything there. */
import { z } from 'zod';
import { decodeJson } from '../bus/bus.ts';

const NAME = z.string().min(1).max(256);

/**
 * Who it is has to be there. What it tells besides may be told otherwise by another version, and a part that can't be
 * read is no reason to take a node for gone.
 */
const heartbeat = z.object({
  node: NAME,
  version: NAME,
  /** Of its journal: tells a second node of the same name. */
  journal: NAME,
  /** Its boot. */
  epoch: z.int().min(0),
  seq: z.int().min(0),
  /** Its wall clock when it said this, in µs. */
  timeUs: z.number(),
  /** It stops in order: its last word. */
  leaving: z.literal(true).optional().catch(undefined),
  /** Of the control loop, in milliseconds. */
  latenessP99Ms: z.number().catch(0),
  /** By router: state and priority. */
  routers: z.record(z.string(), z.object({ state: z.string(), priority: z.number() })).catch({}),
  /** By pool: state and usable servers. */
  pools: z.record(z.string(), z.object({ state: z.string(), usable: z.number(), of: z.number() })).catch({}),
  /** The courier's state, and how many records the cluster log lacks. */
  courier: z.object({ state: z.string(), behind: z.number() }).catch({ state: 'offline', behind: 0 }),
  /** Of the shared configuration that it runs; null when it has a file of its own. */
  configRevision: z.int().nullable().catch(null),
  /** What its checks say of the servers of shared pools: see `sharedHealth.ts`. */
  views: z.record(z.string(), z.string()).catch({}),
});

export type Heartbeat = z.output<typeof heartbeat>;

/** Null for what isn't one. */
export const readHeartbeat = (data: Uint8Array): Heartbeat | null => {
  const read = heartbeat.safeParse(decodeJson(data));
  return read.success ? read.data : null;
};
