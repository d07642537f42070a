/** Rules of a frontend in words: when they hold, and what becomes of a request. Values of headers and the like are left out. */
import type { ConditionConfig, RuleConfig } from '../config/rules.ts';
import { formatSpan } from '../time.ts';

/** Of a longer list the rest is counted. */
const LISTED = 4;

const LINE_LENGTH = 50;

const listed = (items: readonly (string | number)[]): string =>
  items.length <= LISTED
    ? items.join(', ')
    : `${items.slice(0, LISTED - 1).join(', ')} and ${items.length - LISTED + 1} more`;

const span = (ms: number): string => formatSpan(ms * 1000);

/** `host api.example.com, path /v1/**, not (from 10.0.0.0/8)`, in lines; empty for a rule that always holds. */
export const conditionText = (when: ConditionConfig | undefined): string => {
  const lines: string[] = [];
  for (const part of when ? partsOf(when) : []) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + part.length <= LINE_LENGTH) lines[lines.length - 1] = `${last}, ${part}`;
    else lines.push(part);
  }
  return lines.join(',\n   ');
};

const wordsOf = (when: ConditionConfig): string => partsOf(when).join(', ');

const partsOf = (when: ConditionConfig): string[] => {
  const parts: string[] = [];
  const say = <T>(value: T | undefined, words: (value: T) => string) => {
    if (value !== undefined) parts.push(words(value));
  };
  say(when.host, (names) => `host ${listed(names)}`);
  say(when.path, (globs) => `path ${listed(globs)}`);
  say(when.pathPattern, (pattern) => `path ~ ${pattern}`);
  say(when.method, (methods) => listed(methods));
  say(when.source, (networks) => `from ${listed(networks)}`);
  say(when.tls, (isTls) => (isTls ? 'TLS' : 'no TLS'));
  say(when.clientCertificate, (has) => (has ? 'client certificate' : 'no client certificate'));
  say(when.serverName, (names) => `SNI ${listed(names)}`);
  say(when.localPort, (ports) => `port ${listed(ports)}`);
  for (const kind of ['header', 'cookie', 'query'] as const)
    say(when[kind], (tests) => `${kind} ${listed(Object.keys(tests))}`);
  say(when.usable, ({ pool, atLeast, below }) => {
    const bounds = [
      ...(atLeast === undefined ? [] : [`at least ${atLeast}`]),
      ...(below === undefined ? [] : [`fewer than ${below}`]),
    ];
    return `${bounds.join(' and ')} usable in ${pool}`;
  });
  say(when.rate, ({ key, per, above }) => `more than ${above} in ${span(per)} by ${keyText(key)}`);
  say(when.not, (one) => `not (${wordsOf(one)})`);
  say(when.any, (all) => `(${all.map(wordsOf).join(' or ')})`);
  say(when.all, (all) => all.map(wordsOf).join(', '));
  return parts;
};

const keyText = (key: { by: string; name?: string }): string =>
  key.name === undefined ? key.by : `${key.by} ${key.name}`;

/** What a client is told instead of being passed on; null for rules that let it go on. */
export const answerText = ({ deny, reject, tarpit, redirect, return: answer }: RuleConfig): string | null => {
  if (deny) return `deny ${deny.status}`;
  if (reject) return 'reject';
  if (tarpit) return `tarpit ${span(tarpit.delay)}, ${tarpit.status}`;
  if (answer) return `return ${answer.status}`;
  if (!redirect) return null;
  const to = redirect.scheme ?? redirect.prefix ?? redirect.location ?? '';
  return `redirect ${redirect.status} to ${to}`;
};

/** Whether it ends the rules and lets the request pass to the backend that it has. */
export const endsRules = ({ allow, accept }: RuleConfig): boolean => allow === true || accept === true;

/** What happens to a request that goes on; null for rules that choose a backend, answer, or end the rules. */
export const passingText = (rule: RuleConfig): string | null => {
  if (rule.rateLimit) return `rate limit ${rateText(rule.rateLimit.tokenMs)} by ${keyText(rule.rateLimit.key)}`;
  if (typeof rule.allow === 'object') return `login, realm ${rule.allow.realm}`;
  if (rule.response) return 'edits responses';
  if (rule.setPath !== undefined || rule.replacePath || rule.setQuery !== undefined) return 'rewrites targets';
  return rule.setHeader || rule.addHeader || rule.removeHeader || rule.replaceHeader ? 'edits requests' : null;
};

const rateText = (tokenMs: number): string =>
  tokenMs <= 1000 ? `${round(1000 / tokenMs)}/s` : `${round(60_000 / tokenMs)}/m`;

const round = (value: number): number => Math.round(value * 100) / 100;
