/** How nodes of one cluster reach each other: not at all (`memory`), or over NATS. */
import { z } from 'zod';
import { duration, secret, size } from './values.ts';

/** R3 is what a cluster of three servers can give; NATS allows five. */
const MAX_REPLICAS = 5;
const MAX_SERVERS = 32;

const serverUrl = z.string().regex(/^(?:nats|tls):\/\/(?:\[[0-9A-Fa-f:.]+\]|[^\s/@:[\]]+)(?::\d{1,5})?$/, {
  error: 'not the URL of a NATS server; allowed are forms like nats://10.0.0.11:4222, tls://nats1.example.com',
});

const nats = z.strictObject({
  servers: z.array(serverUrl).min(1).max(MAX_SERVERS).describe('Any that can be reached will do.'),
  credentials: secret.optional().describe('A credentials file (JWT and nkey seed), or its text.'),
  nkey: secret.optional().describe('The seed of an nkey, or the file that holds it.'),
  user: z.string().min(1).optional(),
  password: secret.optional(),
  token: secret.optional(),
  tls: z
    .strictObject({
      ca: z.string().optional().describe('File with the authorities to trust, instead of the system’s.'),
      certificate: z.string().optional().describe('File with the certificate that this node shows.'),
      key: z.string().optional(),
    })
    .optional()
    .describe('`{}` encrypts with the system’s authorities.'),
  replicas: z
    .int()
    .min(1)
    .max(MAX_REPLICAS)
    .optional()
    .describe('Copies of the cluster log. Default: as many as servers are named here, up to 3.'),
  keep: duration({ max: 3650 * 86_400_000 })
    .prefault('90d')
    .describe('How long the cluster log is kept.'),
  maxSize: size().prefault('10GiB').describe('Size of the cluster log over all nodes.'),
  startWait: duration({ max: 600_000 })
    .prefault('3s')
    .describe('A node that starts waits this long for what it missed, before it takes traffic.'),
});

export const bus = z
  .union([z.literal('memory'), z.strictObject({ nats })], {
    error: 'not a bus; allowed are memory and { nats: { servers: [nats://10.0.0.11:4222] } }',
  })
  .default('memory');

export type BusConfig = z.output<typeof bus>;
export type NatsConfig = z.output<typeof nats>;

/** Copies of a stream that a cluster with these servers is asked for. */
export const replicasOf = ({ replicas, servers }: NatsConfig): number => replicas ?? Math.min(3, servers.length);
