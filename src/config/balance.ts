/** Which server takes a request: by load or by a key, and whether a client stays with the one that it had. */
import { z } from 'zod';
import { duration } from './values.ts';

/** RFC 9110 section 5.6.2; names of fields and of cookies (RFC 6265 section 4.1.1) are tokens. */
const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
/** RFC 6265 section 4.1.1: what an attribute of a cookie can't have are controls and the semicolon. */
const DOMAIN = /^\.?[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?$/;

/** Entries of one source table: 40 to 80 bytes each in memory that all workers share. */
const MAX_TABLE_SIZE = 10_000_000;

const name = (example: string) =>
  z
    .string()
    .regex(TOKEN, { error: `not a name; allowed are letters, digits and !#$%&'*+.^_\`|~-, such as ${example}` });

const boundedLoad = z
  .number()
  .gt(1, { error: 'too low; a server must be allowed more than its average share: above 1, usually 1.25 to 2' })
  .max(100)
  .optional()
  .describe(
    'Times its share of the backend’s active requests that a server may have before the next one in the key’s order ' +
      'gets what is above; HAProxy’s hash-balance-factor divided by 100. Lower keeps loads alike and moves more keys.',
  );

const withoutOptions = ['roundRobin', 'leastConnections', 'source', 'uri', 'random', 'first'] as const;

const balanceMap = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('roundRobin') }),
  z.strictObject({ type: z.literal('leastConnections') }),
  z.strictObject({ type: z.literal('first') }),
  z.strictObject({
    type: z.literal('random'),
    draws: z.int().min(1).max(16).default(2).describe('Servers drawn by weight; the least loaded of them is taken.'),
  }),
  z.strictObject({ type: z.literal('source'), boundedLoad }),
  z.strictObject({
    type: z.literal('uri'),
    whole: z.boolean().default(false).describe('With the query, instead of the path alone.'),
    depth: z.int().min(1).optional().describe('Only so many levels of the path: 1 is /a of /a/b/c.'),
    length: z.int().min(1).optional().describe('Only so many characters from the beginning.'),
    boundedLoad,
  }),
  z.strictObject({ type: z.literal('header'), name: name('X-User'), boundedLoad }),
  z.strictObject({ type: z.literal('cookie'), name: name('session'), boundedLoad }),
  z.strictObject({
    type: z.literal('query'),
    name: z.string().min(1).describe('Query parameter, as it stands in the URI: not decoded.'),
    boundedLoad,
  }),
]);

export const balance = z
  .union([
    z
      .enum(withoutOptions, {
        error:
          `not a way of balancing; allowed are ${withoutOptions.join(', ')}, or a map such as ` +
          '{ type: header, name: X-User } with the type header, cookie, query, or one of those before',
      })
      .transform((type) => balanceMap.parse({ type })),
    balanceMap,
  ])
  .describe(
    'source, uri, header, cookie and query give a key the same server in every worker and node; without the key, ' +
      'roundRobin.',
  );

/** Below this a key is guessed sooner or later. */
const MIN_STICKY_KEY_LENGTH = 16;
const stickyKeyTooShort = `too short; a key has at least ${MIN_STICKY_KEY_LENGTH} characters`;

/** What speaks against a key that stood in a file. */
export const stickyKeyProblem = (key: string): string | null =>
  key.length < MIN_STICKY_KEY_LENGTH ? stickyKeyTooShort : null;

const stickyCookie = z
  .strictObject({
    name: name('SRV'),
    httpOnly: z.boolean().default(true).describe('Hidden from scripts.'),
    secure: z.boolean().optional().describe('Sent over TLS only. Default: when the request came over TLS.'),
    sameSite: z.enum(['lax', 'strict', 'none']).default('lax'),
    domain: z.string().regex(DOMAIN, { error: 'not a domain' }).optional().describe('Default: the host alone.'),
    noCache: z
      .boolean()
      .default(false)
      .describe('Adds Cache-Control: private to answers that set it, so that no cache gives it to others.'),
    maxIdle: duration({ min: 1_000 })
      .optional()
      .describe('A cookie not used for so long is ignored. Whole seconds, to 4 s, as in HAProxy’s cookies.'),
    maxLife: duration({ min: 1_000 }).optional().describe('A cookie older than this is ignored, used or not.'),
    key: z
      .union([
        z.string().min(MIN_STICKY_KEY_LENGTH, { error: stickyKeyTooShort }),
        z.strictObject({ file: z.string().min(1) }),
      ])
      .optional()
      .describe('With a key the cookie’s value is a keyed hash of the server’s name instead of the name.'),
  })
  .superRefine((cookie, context) => {
    const report = (path: string, message: string) => context.addIssue({ code: 'custom', path: [path], message });
    if (cookie.sameSite === 'none' && cookie.secure !== true) report('sameSite', 'none needs secure: true');
    if (/^__(?:secure|host)-/i.test(cookie.name) && cookie.secure !== true) {
      report('name', 'a cookie whose name starts with __Secure- or __Host- needs secure: true');
    }
    if (/^__host-/i.test(cookie.name) && cookie.domain !== undefined) {
      report('domain', 'a cookie whose name starts with __Host- can have no domain');
    }
  });

export const sticky = z
  .union([
    z.strictObject({ cookie: stickyCookie }),
    z.strictObject({
      table: z.literal('source', { error: 'allowed is source' }).describe('The client’s address; for mode tcp too.'),
      expire: duration({ min: 1_000 }).prefault('30m').describe('From the last connection of a client.'),
      size: z
        .int()
        .min(1)
        .max(MAX_TABLE_SIZE)
        .default(100_000)
        .describe(
          'Clients that are remembered; beyond, those that were not seen for long make room. 40 to 80 bytes each.',
        ),
    }),
  ])
  .describe(
    'A client keeps its server as long as that is up, also while it drains; it waits in that server’s queue when it ' +
      'is full.',
  );

export const maxQueue = z
  .int()
  .min(0)
  .default(10_000)
  .describe('Requests that may wait for a place, over all workers; beyond, 503 at once. 0: none waits.');

export const serverMaxQueue = z
  .int()
  .min(0)
  .default(0)
  .describe('Clients of its own that may wait for this server; beyond, they go to others. 0: the backend’s maxQueue.');

export const serverCookie = z
  .string()
  .regex(/^[!#-+\--:<-[\]-{}~]+$/, {
    error: 'not a cookie’s value; without spaces, quotes, commas, semicolons, \\ and |',
  })
  .optional()
  .describe('What stands for this server in the sticky cookie. Default: its name.');

export type Balance = z.output<typeof balance>;
export type StickyConfig = z.output<typeof sticky>;
type CookieConfig = z.output<typeof stickyCookie>;
/** With the key itself, wherever it stood. */
export type StickyCookie = Omit<CookieConfig, 'key'> & { key?: string | undefined };
export type Sticky = { cookie: StickyCookie } | Extract<StickyConfig, { table: 'source' }>;
