/**
 * The configuration's one source: what is allowed, its defaults, and what each key means. Types, messages and the JSON
 * Schema come from here. Durations become milliseconds, sizes bytes.
 */
import { cpus, hostname } from 'node:os';
import { z } from 'zod';
import { balance, maxQueue, serverCookie, serverMaxQueue, sticky } from './balance.ts';
import { bus } from './bus.ts';
import { http2Schema } from './http2.ts';
import { frontendLog, log } from './log.ts';
import { observeSchema } from './observe.ts';
import { acceptProxy, sendProxy } from './proxyProtocol.ts';
import { compressionSchema, errorPagesSchema } from './responses.ts';
import { routersSchema } from './routers.ts';
import { rule } from './rules.ts';
import { sharedChecksSchema } from './sharedChecks.ts';
import { bindTlsSchema, serverTlsSchema } from './tls.ts';
import { unixSocketOptions } from './unixSocket.ts';
import { parseEndpoint, parseInetEndpoint } from './units.ts';
import { duration, name, secret, size } from './values.ts';

/** Servers of one backend. A change of one server costs time in proportion to the pool; beyond this, use several. */
export const MAX_SERVERS_PER_BACKEND = 1_000;
/** HAProxy's range: 0 takes no new traffic. */
const MAX_WEIGHT = 256;

const endpoint = (example: string, parse: typeof parseEndpoint = parseEndpoint) =>
  z.string().transform((value, context) => {
    const parsed = parse(value);
    if (parsed) return parsed;
    const isUnix = value.startsWith('unix:') && parse === parseEndpoint;
    const what = isUnix ? 'is not a path of a socket' : /:\d+$/.test(value) ? 'is not an address' : 'has no port';
    const forms = isUnix ? 'unix:/run/shop.sock, of up to 107 bytes' : `${example}, [::1]:80`;
    context.addIssue({
      code: 'custom',
      message: `${JSON.stringify(value)} ${what}; allowed are forms like ${forms}`,
    });
    return z.NEVER;
  });

const statusRanges = z
  .union([z.string(), z.number(), z.array(z.union([z.string(), z.number()]))])
  .transform((value, context) => {
    const ranges: [number, number][] = [];
    const texts = (Array.isArray(value) ? value : [value]).flatMap((item) => String(item).split(','));
    for (const text of texts) {
      const match = /^\s*([1-5]\d\d)(?:\s*-\s*([1-5]\d\d))?\s*$/.exec(text);
      if (!match || Number(match[2] ?? match[1]) < Number(match[1])) {
        context.addIssue({
          code: 'custom',
          message: `${JSON.stringify(text)} is not a status; allowed are forms like 200, 200-399, "200,301-302"`,
        });
        return z.NEVER;
      }
      ranges.push([Number(match[1]), Number(match[2] ?? match[1])]);
    }
    return ranges;
  });

const regularExpression = z.string().transform((value, context) => {
  try {
    return RegExp(value).source;
  } catch (error) {
    context.addIssue({ code: 'custom', message: (error as Error).message });
    return z.NEVER;
  }
});

const timing = {
  interval: duration({ min: 10 }).prefault('2s').describe('From the start of one check to the start of the next.'),
  fastInterval: duration({ min: 10 })
    .optional()
    .describe('While in doubt: unchecked, going down, going up. Default: interval.'),
  downInterval: duration({ min: 10 }).optional().describe('While down. Default: interval.'),
  timeout: duration({ min: 1 }).prefault('1s').describe('How long one check may take.'),
  rise: z.int().min(1).max(1000).default(2).describe('Consecutive passed checks that bring a server back.'),
  fall: z.int().min(1).max(1000).default(3).describe('Consecutive failed checks that mark a server down.'),
  jitter: z.number().min(0).max(0.5).default(0.02).describe('Share of the interval by which checkers differ.'),
  port: z.int().min(1).max(65_535).optional().describe('Check this port instead of the one that takes traffic.'),
};

/** RFC 9110 sections 5.1 and 5.5. */
const FIELD_NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const FIELD_VALUE = /^[\t\x20-\x7e\x80-\xff]*$/;

const httpCheck = {
  method: z
    .string()
    .regex(/^[A-Z]+$/, { error: 'not a method; allowed are forms like GET, HEAD' })
    .default('GET'),
  path: z
    .string()
    .regex(/^\/[\x21-\x7e]*$/, { error: 'not a path; one starts with / and has white space percent-encoded' })
    .default('/'),
  host: z
    .string()
    .regex(FIELD_VALUE, { error: 'not a value that a field can have' })
    .optional()
    .describe('Host field; default: the address.'),
  headers: z
    .record(
      z.string().regex(FIELD_NAME, { error: 'not the name of a field' }),
      z.string().regex(FIELD_VALUE, { error: 'not a value that a field can have' }),
    )
    .default({}),
  expect: statusRanges.prefault('200-399').describe('Statuses that pass.'),
  body: z.string().optional().describe('Text that the body must contain.'),
  bodyPattern: regularExpression.optional().describe('Regular expression that the body must match.'),
};

const tlsCheck = {
  serverName: z.string().optional().describe('Name for SNI and verification; default: the host.'),
  verify: z.boolean().default(true).describe('Whether the certificate must be valid.'),
  ca: z.string().optional().describe('File with the authorities to trust, instead of the system’s.'),
};

const check = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('icmp'), ...timing }),
  z.strictObject({
    type: z.literal('tcp'),
    ...timing,
    send: z.string().optional().describe('Text to send once connected.'),
    expect: z.string().optional().describe('Text that the answer must contain.'),
    expectPattern: regularExpression.optional(),
  }),
  z.strictObject({ type: z.literal('tls'), ...timing, ...tlsCheck }),
  z.strictObject({ type: z.literal('http'), ...timing, ...httpCheck }),
  z.strictObject({ type: z.literal('https'), ...timing, ...httpCheck, ...tlsCheck }),
  z.strictObject({
    type: z.literal('script'),
    ...timing,
    command: z.array(z.string().min(1)).min(1).describe('Program and arguments; exit status 0 passes.'),
  }),
]);

const server = z.strictObject({
  name,
  address: endpoint('10.0.0.3:80'),
  weight: z.int().min(0).max(MAX_WEIGHT).default(1),
  backup: z.boolean().default(false).describe('Takes traffic only when no other server can.'),
  disabled: z.boolean().default(false).describe('Starts in maintenance.'),
  maxConnections: z.int().min(0).default(0).describe('Connections at a time over all workers; 0 is no limit.'),
  maxQueue: serverMaxQueue,
  cookie: serverCookie,
  tls: serverTlsSchema.optional().describe('Connections to it are encrypted. Default: as the backend says.'),
  sendProxy: sendProxy.optional(),
});

const backend = z.strictObject({
  mode: z.enum(['tcp', 'http']).optional().describe('Default: that of the frontends that use it.'),
  balance: balance.prefault('roundRobin'),
  sticky: sticky.optional(),
  maxQueue,
  check: z.union([z.literal(false), check]).default(false),
  checks: sharedChecksSchema.optional().describe('What the nodes of a cluster share of their checks.'),
  servers: z.array(server).min(1).max(MAX_SERVERS_PER_BACKEND),
  allBackups: z.boolean().default(false).describe('All usable backups work together, instead of the first alone.'),
  quorum: z.int().min(1).default(1).describe('Usable primaries below which the backups take over.'),
  hysteresis: z.int().min(0).default(0).describe('Primaries above the quorum to return, below it to leave.'),
  initially: z
    .enum(['up', 'down', 'unchecked'])
    .default('unchecked')
    .describe('Traffic before the first check; unchecked: only while no other server is up.'),
  slowStart: duration().prefault('0').describe('Time in which a returning server’s weight grows.'),
  onMarkedDown: z.enum(['keepSessions', 'shutdownSessions']).default('keepSessions'),
  ...observeSchema,
  tls: serverTlsSchema.default(false).describe('Connections to its servers are encrypted.'),
  sendProxy: sendProxy.optional(),
  errorPages: errorPagesSchema.default({}),
  retries: z.int().min(0).max(100).default(3).describe('Further attempts after a failed connection.'),
  timeouts: z
    .strictObject({
      connect: duration({ min: 1 }).prefault('5s'),
      server: duration({ min: 1 }).prefault('50s').describe('Silence of a server that owes an answer.'),
      queue: duration({ min: 1 }).prefault('5s').describe('Wait for a free connection; then 503.'),
      tunnel: duration({ min: 1 }).prefault('1h').describe('Silence on both sides of an upgraded connection.'),
    })
    .prefault({}),
});

const bindOptions = z.strictObject({
  address: endpoint('10.9.0.100:443'),
  tls: bindTlsSchema.optional(),
  proxyProtocol: acceptProxy.optional().describe('Peers that tell of their clients in a PROXY header.'),
  ...unixSocketOptions,
});

/** Everything that can be said of a bind, with nothing said. */
const plainBind = {
  tls: undefined,
  proxyProtocol: undefined,
  mode: undefined,
  user: undefined,
  group: undefined,
} satisfies Partial<z.output<typeof bindOptions>>;

const bind = z.union([
  endpoint('10.9.0.100:80').transform((address): z.output<typeof bindOptions> => ({ address, ...plainBind })),
  bindOptions,
]);

const frontend = z.strictObject({
  mode: z.enum(['tcp', 'http']),
  bind: z.array(bind).min(1),
  rules: z.array(rule).default([]).describe('In order.'),
  use: z.string().describe('The default backend.'),
  forwardedFor: z
    .enum(['add', 'replace', 'none'])
    .default('add')
    .describe('X-Forwarded-For: the client’s address behind those that came, instead of them, or not at all.'),
  compression: compressionSchema.optional(),
  errorPages: errorPagesSchema.default({}),
  http2: http2Schema.prefault({}).describe('For binds with TLS whose alpn has h2.'),
  log: frontendLog.describe('Its access log, instead of that of the node; false is none.'),
  maxConnections: z.int().min(1).default(20_000).describe('Client connections at a time, over all workers.'),
  timeouts: z
    .strictObject({
      client: duration({ min: 1 }).prefault('50s').describe('Silence of a client that owes data.'),
      httpRequest: duration({ min: 1 }).prefault('10s').describe('From the first byte of a request head to its end.'),
      keepAlive: duration({ min: 1 }).prefault('60s').describe('Idle connection between two requests.'),
    })
    .prefault({}),
  drain: duration().prefault('30s').describe('How long sessions may go on when the frontend is closed.'),
});

export const schema = z.strictObject({
  cluster: name.default('understudy'),
  node: name.default(() => hostname().replaceAll(/[^A-Za-z0-9_.-]/g, '-')),
  shared: z
    .boolean()
    .default(false)
    .describe('This file stands over the configuration that the cluster shares: see `understudy config`.'),
  bus,
  journal: z
    .strictObject({
      path: z.string().min(1).optional().describe('Default: ./data/NODE.db'),
      keep: duration({ max: 3650 * 86_400_000 }).prefault('30d'),
      maxSize: size().prefault('10GiB'),
    })
    .prefault({}),
  api: z
    .strictObject({
      listen: endpoint('127.0.0.1:8404', parseInetEndpoint).prefault('127.0.0.1:8404'),
      token: secret.optional(),
    })
    .prefault({}),
  workers: z
    .int()
    .min(1)
    .max(256)
    .default(() => cpus().length)
    .describe('Data-plane threads; default: number of cores.'),
  log,
  frontends: z.record(name, frontend).default({}),
  backends: z.record(name, backend).default({}),
  ...routersSchema,
});

export type Config = z.output<typeof schema> & { journal: { path: string } };
export type FrontendConfig = Config['frontends'][string];
export type BindConfig = FrontendConfig['bind'][number];
export type BackendConfig = Config['backends'][string];
export type ServerConfig = BackendConfig['servers'][number];
export type CheckConfig = Exclude<BackendConfig['check'], false>;
