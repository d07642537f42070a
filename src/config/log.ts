/** The access log: where its lines go, in which form, and which requests have one. */
import { resolve } from 'node:path';
import { z } from 'zod';
import { parseInetEndpoint } from './units.ts';
import type { Endpoint } from './units.ts';

const SYSLOG_PORT = 514;
/** Fields whose values a line can hold: each costs a search in every head. */
const MAX_LOGGED_HEADERS = 14;
/** RFC 9110 section 5.6.2. */
const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const FACILITIES = ['user', 'daemon', ...Array.from({ length: 8 }, (_, n) => `local${n}` as const)] as const;

export type LogDestination =
  { kind: 'file'; path: string } | { kind: 'stdout' } | { kind: 'syslog'; address: Endpoint };

/** `syslog:///dev/log`, `syslog://10.0.0.5`, `syslog://[::1]:514`, `syslog://logs.internal:5514` */
const parseSyslog = (rest: string): LogDestination | null => {
  if (rest.startsWith('/')) return { kind: 'syslog', address: { host: 'localhost', port: 0, path: rest } };
  const address = parseInetEndpoint(rest) ?? parseInetEndpoint(`${rest}:${SYSLOG_PORT}`);
  return address && address.port > 0 && address.host !== '*' ? { kind: 'syslog', address } : null;
};

const destination = z
  .string()
  .min(1)
  .transform((text, context): LogDestination => {
    if (text === 'stdout') return { kind: 'stdout' };
    const scheme = /^([a-z]+):\/\//.exec(text)?.[1];
    if (scheme === undefined) return { kind: 'file', path: text };
    const syslog = scheme === 'syslog' ? parseSyslog(text.slice('syslog://'.length)) : null;
    if (syslog) return syslog;
    context.addIssue({
      code: 'custom',
      message:
        `${JSON.stringify(text)} is no place for a log; allowed are a file, stdout, and forms like ` +
        'syslog://127.0.0.1:514, syslog:///dev/log',
    });
    return z.NEVER;
  });

const fields = z
  .array(
    z
      .string()
      .regex(TOKEN, { error: 'not the name of a field' })
      .transform((text) => text.toLowerCase()),
  )
  .max(MAX_LOGGED_HEADERS)
  .default([]);

const accessLog = z.strictObject({
  path: destination.describe('A file, stdout, syslog://HOST:PORT (UDP), or syslog:///dev/log. Reopened on a reload.'),
  format: z
    .enum(['json', 'httplog', 'tcplog', 'combined'])
    .default('json')
    .describe(
      'httplog and tcplog are HAProxy’s, combined is Apache’s and nginx’s. In mode tcp, httplog and combined become ' +
        'tcplog.',
    ),
  only: z
    .enum(['all', 'errors'])
    .default('all')
    .describe('errors: no line for a request without error, time-out, retry, redispatch or status 5xx.'),
  sample: z.number().gt(0).max(1).default(1).describe('Share of requests without error that have a line.'),
  requestHeaders: fields.describe('Fields of the request whose values are logged. Each costs a search in every head.'),
  responseHeaders: fields.describe('Fields of the response whose values are logged.'),
  syslog: z
    .strictObject({
      format: z.enum(['rfc3164', 'rfc5424']).default('rfc3164'),
      facility: z.enum(FACILITIES).default('local0'),
      tag: z
        .string()
        .regex(/^[\x21-\x39\x3b-\x5a\x5c\x5e-\x7e]{1,48}$/, {
          error: 'not a tag; allowed are up to 48 visible letters',
        })
        .default('understudy'),
    })
    .prefault({}),
});

/** Of the whole node. */
export const log = z
  .strictObject({ access: accessLog.optional().describe('Of every frontend that has no log of its own.') })
  .prefault({});

/** Of one frontend. */
export const frontendLog = z.union([z.literal(false), accessLog]).optional();

export type AccessLogConfig = z.output<typeof accessLog>;

/** What holds for a frontend; null is no log. */
export const accessLogOf = (
  { access }: z.output<typeof log>,
  own: z.output<typeof frontendLog>,
): AccessLogConfig | null => (own === undefined ? (access ?? null) : own === false ? null : own);

/** Files are named from the configuration's own folder. */
export const withLogPath = (config: AccessLogConfig, folder: string): AccessLogConfig =>
  config.path.kind === 'file' ? { ...config, path: { kind: 'file', path: resolve(folder, config.path.path) } } : config;
