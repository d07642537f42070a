/**
 * Rules of a frontend, in order: a condition, and exactly one action. One form for both modes, so that each key is told
 * of in one place; `checkRules` says which of them a mode knows.
 */
import { z } from 'zod';
import { parseNetwork } from '../proxy/addresses.ts';
import { MAX_BURST, MAX_METER } from '../proxy/rateTable.ts';
import { parseDuration } from './units.ts';
import { duration, secret } from './values.ts';

/** RFC 9110 section 5.6.2: a token. */
const FIELD_NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
/** Keys of a table, each of 8 or 16 bytes: 4 million take 64 MiB. */
const MAX_ENTRIES = 4_194_304;
const DEFAULT_ENTRIES = 65_536;
/** A client that is held for longer costs more than it is worth. */
const MAX_TARPIT_MS = 300_000;
/** A day: the longest time in which a key is counted. */
const MAX_PERIOD_MS = 86_400_000;

const oneOrMore = <T extends z.ZodType>(item: T) =>
  z.union([item, z.array(item).min(1)]).transform((value) => (Array.isArray(value) ? value : [value]) as z.output<T>[]);

/** YAML reads `1` and `true` as what they look like; in a header they are texts. */
const text = z.union([z.string(), z.number(), z.boolean()], { error: 'not a text' }).transform(String);

const fieldName = z.string().regex(FIELD_NAME, { error: 'not the name of a field' });

const refined = <T>(parse: (value: string) => T | null, what: string) =>
  z.union([z.string(), z.number()], { error: what }).transform((value, context): T => {
    const parsed = parse(String(value));
    if (parsed !== null) return parsed;
    context.addIssue({ code: 'custom', message: `${JSON.stringify(value)} is ${what}` });
    return z.NEVER;
  });

const network = refined(
  (value) => (parseNetwork(value) ? value : null),
  'not an address or network; allowed are forms like 10.0.0.0/8, 10.9.0.3, fd00::/8',
);

const hostName = z
  .string()
  .regex(/^(?:\*|(?:\*\.)?[^*\s/]+)$/, { error: 'not a host; allowed are forms like example.com, *.example.com, *' });

const key = refined((value) => {
  if (value === 'source') return { by: 'source' as const };
  const [, by, name] = /^(header|cookie):([^\s:]+)$/.exec(value) ?? [];
  return by === undefined || (by === 'header' && !FIELD_NAME.test(name!))
    ? null
    : { by: by as 'header' | 'cookie', name: name! };
}, 'not a key; allowed are source, header:NAME, cookie:NAME');

const pathGlob = z.string().regex(/^\//, { error: 'not a path; one starts with /' });

const textTest = z.union([
  oneOrMore(text).transform((equals) => ({ equals })),
  z.strictObject({
    present: z.boolean().optional(),
    equals: oneOrMore(text).optional(),
    prefix: oneOrMore(text).optional(),
    suffix: oneOrMore(text).optional(),
    contains: oneOrMore(text).optional(),
    pattern: z.string().optional().describe('Regular expression, found anywhere unless anchored.'),
  }),
]);

const entries = z
  .int()
  .min(8)
  .max(MAX_ENTRIES)
  .default(DEFAULT_ENTRIES)
  .describe('Keys that are remembered at a time, 8 to 16 bytes each; the least active make room.');

const plainCondition = {
  source: oneOrMore(network).optional().describe('Client address, or network as 10.0.0.0/8.'),
  host: oneOrMore(hostName).optional().describe('Host without port; *.example.com matches any name below.'),
  path: oneOrMore(pathGlob)
    .optional()
    .describe('Path, its encoding and dot segments undone; * within a segment, /** for all below.'),
  pathPattern: z.string().optional().describe('Regular expression, on the same path.'),
  method: oneOrMore(z.string().regex(FIELD_NAME, { error: 'not a method' })).optional(),
  header: z.record(fieldName, textTest).optional().describe('By name: a text, a list, or a test.'),
  cookie: z.record(z.string(), textTest).optional(),
  query: z.record(z.string(), textTest).optional().describe('By parameter, decoded; of several any may match.'),
  tls: z.boolean().optional(),
  clientCertificate: z.boolean().optional().describe('Whether the client has shown one that was verified.'),
  serverName: oneOrMore(hostName).optional().describe('SNI, as host.'),
  localPort: oneOrMore(z.int().min(1).max(65_535)).optional().describe('Port that the client connected to.'),
  usable: z
    .strictObject({
      pool: z.string().describe('A backend.'),
      atLeast: z.int().min(0).optional(),
      below: z.int().min(1).optional(),
    })
    .optional()
    .describe('Servers of a backend that can take traffic.'),
  rate: z
    .strictObject({
      key: key.prefault('source'),
      per: duration({ min: 1, max: MAX_PERIOD_MS }).prefault('10s'),
      above: z
        .int()
        .min(0)
        .max(MAX_METER - 1),
      entries,
    })
    .optional()
    .describe('Requests of one key for which the rest of the condition holds.'),
};

export type ConditionConfig = z.output<z.ZodObject<typeof plainCondition>> & {
  not?: ConditionConfig | undefined;
  any?: ConditionConfig[] | undefined;
  all?: ConditionConfig[] | undefined;
};

const condition: z.ZodType<ConditionConfig> = z.strictObject({
  ...plainCondition,
  get not() {
    return condition.optional();
  },
  get any() {
    return z.array(condition).min(1).optional();
  },
  get all() {
    return z.array(condition).min(1).optional();
  },
});

const headers = z.record(fieldName, text);

const headerActions = {
  removeHeader: oneOrMore(fieldName).optional(),
  replaceHeader: z
    .strictObject({ name: fieldName, pattern: z.string(), with: z.string() })
    .optional()
    .describe('Values in which the regular expression is found become `with`, where $1 is its first group.'),
  setHeader: headers.optional().describe('Templates by name; instead of those that came.'),
  addHeader: headers.optional().describe('Templates by name; beside those that came.'),
};

const errorStatus = z.int().min(400).max(599);

const page = {
  contentType: z.string().optional().describe('Default: text/plain, in UTF-8.'),
  headers: headers.default({}).describe('Templates by name.'),
};

const rateText = refined((value) => {
  const [, count, unit] = /^(\d+(?:\.\d+)?)\/(\d*[a-z]+)$/.exec(value) ?? [];
  const periodMs = unit === undefined ? null : parseDuration(/^\d/.test(unit) ? unit : `1${unit}`);
  const tokenMs = periodMs === null ? 0 : periodMs / Number(count);
  return tokenMs >= 0.001 && tokenMs <= MAX_PERIOD_MS ? { tokenMs, perSecond: 1000 / tokenMs } : null;
}, 'not a rate; allowed are forms like 10/s, 600/m, 100/10s');

const rateLimit = z
  .union([
    rateText.transform((rate) => ({ rate })),
    z.strictObject({
      key: key.optional().describe('Default: source. An IPv6 source counts by its /64.'),
      rate: rateText,
      burst: z.int().min(1).max(MAX_BURST).optional().describe('Default: what comes in one second, at least 1.'),
      status: errorStatus.optional().describe('Default: 429.'),
      entries: entries.optional(),
    }),
  ])
  .transform((limit) => ({
    key: { by: 'source' } as { by: 'source' } | { by: 'header' | 'cookie'; name: string },
    burst: Math.min(MAX_BURST, Math.max(1, Math.ceil(limit.rate.perSecond))),
    status: 429,
    entries: DEFAULT_ENTRIES,
    ...Object.fromEntries(Object.entries(limit).filter(([, value]) => value !== undefined)),
    tokenMs: limit.rate.tokenMs,
  }));

const actions = {
  use: z.string().optional().describe('The backend; the first that holds. Later rules still apply.'),
  deny: z
    .union([
      z.literal(true).transform(() => ({ status: 403, body: undefined, contentType: undefined, headers: {} })),
      errorStatus.transform((status) => ({ status, body: undefined, contentType: undefined, headers: {} })),
      z.strictObject({ status: errorStatus.default(403), body: z.string().optional(), ...page }),
    ])
    .optional()
    .describe('Status, or true for 403; in mode tcp true.'),
  reject: z.literal(true).optional().describe('Mode tcp: closes the connection.'),
  accept: z.literal(true).optional().describe('Mode tcp: ends the rules.'),
  tarpit: z
    .union([
      duration({ min: 1, max: MAX_TARPIT_MS }).transform((delay) => ({ delay, status: 500 })),
      z.strictObject({ delay: duration({ min: 1, max: MAX_TARPIT_MS }), status: errorStatus.default(500) }),
    ])
    .optional()
    .describe('Lets the client wait, then denies.'),
  redirect: z
    .union([
      z.string().transform((location) => ({ location, scheme: undefined, prefix: undefined, status: 302 })),
      z.strictObject({
        location: z.string().optional().describe('A template.'),
        scheme: z.enum(['http', 'https']).optional().describe('The same host and target.'),
        prefix: z.string().optional().describe('Goes before the target.'),
        status: z.union([301, 302, 303, 307, 308].map((status) => z.literal(status))).default(302),
      }),
    ])
    .optional()
    .describe('A location, in which {host}, {path}, {query} and {uri} may stand.'),
  return: z
    .union([
      z
        .int()
        .min(200)
        .max(599)
        .transform((status) => ({ status, body: '', contentType: undefined, headers: {} })),
      z.strictObject({ status: z.int().min(200).max(599).default(200), body: z.string().default(''), ...page }),
    ])
    .optional()
    .describe('An answer of our own.'),
  ...headerActions,
  response: z.strictObject(headerActions).optional().describe('Header actions on the response.'),
  setPath: z.string().optional().describe('A template.'),
  replacePath: z
    .strictObject({ pattern: z.string(), with: z.string() })
    .optional()
    .describe(
      'If the regular expression is found in the path as it was sent, the whole path becomes `with`; $1 is its first group.',
    ),
  setQuery: z
    .union([z.string(), z.record(z.string().min(1), text.nullable())])
    .optional()
    .describe('A template of the whole query, or one by parameter; null removes it.'),
  rateLimit: rateLimit.optional().describe('Refuses what comes faster, over all workers.'),
  allow: z
    .union([
      z.literal(true),
      z.strictObject({
        users: z
          .record(z.string().regex(/^[^:\p{Cc}]+$/u, { error: 'not a user; it has no colon' }), secret)
          .describe('Passwords or their hashes: $scrypt$…, {SSHA256}…, {SHA256}…'),
        realm: z
          .string()
          .regex(/^[\x20-\x7e]*$/, { error: 'not a realm; it is ASCII' })
          .default('restricted'),
      }),
    ])
    .optional()
    .describe('True ends the rules; users must log in (basic authentication), and the rules go on.'),
};

export const ACTION_KEYS: readonly string[] = Object.keys(actions);
export const HEADER_ACTION_KEYS: readonly string[] = Object.keys(headerActions);
export const CONDITION_KEYS: readonly string[] = [...Object.keys(plainCondition), 'not', 'any', 'all'];

export const rule = z.strictObject({
  when: condition.optional().describe('All of its keys must hold; without, the rule always applies.'),
  ...actions,
});

export type RuleConfig = z.output<typeof rule>;

const SECRET = '(not recorded)';

const hidden = <T>(map: Record<string, T> | undefined) =>
  map && Object.fromEntries(Object.keys(map).map((name) => [name, SECRET]));

const recordableCondition = (when: ConditionConfig): unknown => ({
  ...when,
  ...(when.header && { header: hidden(when.header) }),
  ...(when.cookie && { cookie: hidden(when.cookie) }),
  ...(when.query && { query: hidden(when.query) }),
  ...(when.not && { not: recordableCondition(when.not) }),
  ...(when.any && { any: when.any.map(recordableCondition) }),
  ...(when.all && { all: when.all.map(recordableCondition) }),
});

const recordableHeaders = ({
  setHeader,
  addHeader,
  replaceHeader,
}: Pick<RuleConfig, 'setHeader' | 'addHeader' | 'replaceHeader'>) => ({
  ...(setHeader && { setHeader: hidden(setHeader) }),
  ...(addHeader && { addHeader: hidden(addHeader) }),
  ...(replaceHeader && { replaceHeader: { name: replaceHeader.name, pattern: SECRET, with: SECRET } }),
});

const recordableAnswer = <T extends { headers: Record<string, string> }>(answer: T) => ({
  ...answer,
  headers: hidden(answer.headers),
  ...('body' in answer && answer.body !== undefined && answer.body !== '' && { body: SECRET }),
});

/**
 * Without what may be secret: passwords, what headers, cookies and parameters are set to or compared with, and answers of
 * our own, which may be for those alone who have logged in.
 */
export const recordableRule = (one: RuleConfig): unknown => ({
  ...one,
  ...(one.when && { when: recordableCondition(one.when) }),
  ...(typeof one.allow === 'object' && { allow: { ...one.allow, users: hidden(one.allow.users) } }),
  ...(one.deny && { deny: recordableAnswer(one.deny) }),
  ...(one.return && { return: recordableAnswer(one.return) }),
  ...recordableHeaders(one),
  ...(one.response && { response: { ...one.response, ...recordableHeaders(one.response) } }),
  ...(typeof one.setQuery === 'object' && { setQuery: hidden(one.setQuery) }),
  ...(typeof one.setQuery === 'string' && { setQuery: SECRET }),
});
