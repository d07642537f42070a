/** What no single key of a rule can tell. Works on the raw file. */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { messageOf } from '../errors.ts';
import { passwordProblem } from '../proxy/basicAuth.ts';
import { isEditable } from '../proxy/headEdits.ts';
import { patternProblem } from '../proxy/pattern.ts';
import { templateProblem } from '../proxy/template.ts';
import { asList, asMap } from './raw.ts';
import type { At, Path, Raw, Report } from './raw.ts';
import { ACTION_KEYS, CONDITION_KEYS, HEADER_ACTION_KEYS } from './rules.ts';

const TCP_ACTIONS = new Set(['use', 'deny', 'reject', 'accept', 'allow', 'rateLimit']);
const TCP_CONDITIONS = new Set([
  'source',
  'serverName',
  'localPort',
  'usable',
  'rate',
  'tls',
  'clientCertificate',
  'not',
  'any',
  'all',
]);
const TCP_ONLY = new Set(['reject', 'accept']);

/** Where `**` and `*` can grow into each other, each more is one more power of the path's length. */
const MAX_STARS = 3;

/** Relative paths in the file are taken from `folder`. */
export const checkRules = (file: Raw, folder: string, report: Report): void => {
  const backends = asMap(file['backends']);
  for (const [name, value] of Object.entries(asMap(file['frontends']))) {
    const { mode, rules } = asMap(value);
    /** What ends the rules, or has chosen the backend, without a condition. */
    let ended: string | null = null;
    let endIsTold = false;
    let chosen: string | null = null;
    asList(rules).forEach((entry, index) => {
      // One that is no map is told of by the schema.
      if (typeof entry !== 'object' || entry === null) return;
      const rule = asMap(entry);
      const at: At = (...path) => ['frontends', name, 'rules', index, ...path];
      const action = checkOneAction(rule, at, report);
      if (mode === 'tcp' || mode === 'http') checkMode(rule, mode, at, report);
      checkUse(rule['use'], backends, mode, at, report);
      if (rule['when'] !== undefined)
        checkCondition(asMap(rule['when']), backends, mode, (...path) => at('when', ...path), report);
      checkAction(rule, folder, at, report);
      if (ended !== null) {
        if (!endIsTold) report(at(), `never reached: ${ended} ends the rules for everybody`, true);
        endIsTold = true;
      } else if (chosen !== null && action === 'use')
        report(at('use'), `never counts: ${chosen} has named the backend for everybody; the first that holds counts`);
      if (rule['when'] !== undefined || action === null) return;
      if (isTerminal(action, rule[action])) ended ??= `rules[${index}], ${action} without \`when\`,`;
      if (action === 'use') chosen ??= `rules[${index}], use without \`when\`,`;
    });
  }
};

const isTerminal = (action: string, value: unknown): boolean =>
  ['deny', 'reject', 'accept', 'tarpit', 'redirect', 'return'].includes(action) ||
  (action === 'allow' && value === true);

const actionsOf = (rule: Raw): string[] => Object.keys(rule).filter((key) => ACTION_KEYS.includes(key));

/** The action's key; null when there is not exactly one. */
const checkOneAction = (rule: Raw, at: At, report: Report): string | null => {
  const [first, second] = actionsOf(rule);
  if (second !== undefined) {
    report(at(second), `a second action beside ${first}; each action takes a rule of its own`, true);
    return null;
  }
  // An unknown key is told of already, and was meant to be the action.
  const isMisspelt = Object.keys(rule).some((key) => key !== 'when' && key !== first);
  if (first === undefined && !isMisspelt) report(at(), `has no action; allowed are ${ACTION_KEYS.join(', ')}`, true);
  return first ?? null;
};

const checkMode = (rule: Raw, mode: 'tcp' | 'http', at: At, report: Report): void => {
  for (const key of actionsOf(rule)) {
    if (mode === 'http' && TCP_ONLY.has(key))
      report(at(key), `${key} is known in mode tcp only; http has ${key === 'reject' ? 'deny' : 'allow: true'}`, true);
    if (mode === 'tcp' && !TCP_ACTIONS.has(key))
      report(at(key), `${key} is known in mode http only; tcp has ${[...TCP_ACTIONS].join(', ')}`, true);
  }
  if (mode === 'http') return;
  const { deny, allow, rateLimit } = rule;
  if (deny !== undefined && deny !== true)
    report(at('deny'), 'a connection gets no status; in mode tcp only true is allowed');
  if (allow !== undefined && allow !== true)
    report(at('allow'), 'a connection has no credentials; in mode tcp only true is allowed');
  const { key, status } = asMap(rateLimit);
  if (key !== undefined && key !== 'source')
    report(at('rateLimit', 'key'), 'a connection has no headers; in mode tcp only source is allowed');
  if (status !== undefined)
    report(at('rateLimit', 'status'), 'a connection gets no status; leave it out in mode tcp', true);
};

const checkBackend = (target: string, backends: Raw, path: Path, report: Report): boolean => {
  if (Object.hasOwn(backends, target)) return true;
  const known = Object.keys(backends);
  report(
    path,
    `there is no backend ${target}; ${known.length > 0 ? `allowed are ${known.join(', ')}` : 'the file has none'}`,
  );
  return false;
};

const checkUse = (use: unknown, backends: Raw, mode: unknown, at: At, report: Report): void => {
  if (typeof use !== 'string' || !checkBackend(use, backends, at('use'), report)) return;
  const { mode: other } = asMap(backends[use]);
  if (typeof other === 'string' && typeof mode === 'string' && other !== mode)
    report(at('use'), `backend ${use} has mode ${other}, this frontend ${mode}; they must agree`);
};

const checkCondition = (when: Raw, backends: Raw, mode: unknown, at: At, report: Report): void => {
  const keys = Object.keys(when).filter((key) => CONDITION_KEYS.includes(key));
  if (Object.keys(when).length === 0) report(at(), `it says nothing; allowed are ${CONDITION_KEYS.join(', ')}`, true);
  for (const key of keys) {
    if (mode === 'tcp' && !TCP_CONDITIONS.has(key))
      report(at(key), `${key} is known in mode http only; tcp has ${[...TCP_CONDITIONS].join(', ')}`, true);
  }
  checkPattern(when['pathPattern'], at('pathPattern'), report);
  const globs = typeof when['path'] === 'string' ? [when['path']] : asList(when['path']);
  for (const glob of globs) {
    if (typeof glob === 'string' && (glob.replace(/\/\*\*$/, '').match(/\*+/g)?.length ?? 0) > MAX_STARS)
      report(at('path'), `${JSON.stringify(glob)} has more than ${MAX_STARS} stars; a hostile path could keep it busy`);
  }
  for (const kind of ['header', 'cookie', 'query']) {
    for (const [name, test] of Object.entries(asMap(when[kind]))) {
      checkPattern(asMap(test)['pattern'], at(kind, name, 'pattern'), report);
      const others = Object.keys(asMap(test)).filter((key) => key !== 'present');
      if (asMap(test)['present'] === false && others.length > 0)
        report(at(kind, name, others[0]!), 'what is not present has no value to be compared', true);
      const isTest = typeof test === 'object' && test !== null && !Array.isArray(test);
      if (isTest && Object.keys(test).length === 0)
        report(at(kind, name), 'it says nothing; `present: true` asks whether there is one', true);
    }
  }
  const { usable, rate } = when;
  if (usable !== undefined) checkUsable(asMap(usable), backends, (...path) => at('usable', ...path), report);
  const { key } = asMap(rate);
  if (mode === 'tcp' && key !== undefined && key !== 'source')
    report(at('rate', 'key'), 'a connection has no headers; in mode tcp only source is allowed');
  if (when['not'] !== undefined)
    checkCondition(asMap(when['not']), backends, mode, (...path) => at('not', ...path), report);
  for (const kind of ['any', 'all']) {
    asList(when[kind]).forEach((one, index) =>
      checkCondition(asMap(one), backends, mode, (...path) => at(kind, index, ...path), report),
    );
  }
};

const checkUsable = ({ pool, atLeast, below }: Raw, backends: Raw, at: At, report: Report): void => {
  if (typeof pool === 'string') checkBackend(pool, backends, at('pool'), report);
  if (atLeast === undefined && below === undefined) report(at(), 'it needs atLeast or below', true);
  if (typeof atLeast === 'number' && typeof below === 'number' && below <= atLeast)
    report(at('below'), `never holds; more than ${atLeast} (atLeast) is needed`);
};

const checkPattern = (pattern: unknown, path: Path, report: Report): void => {
  const problem = typeof pattern === 'string' ? patternProblem(pattern) : null;
  if (problem !== null) report(path, problem);
};

const checkTemplate = (template: unknown, path: Path, report: Report): void => {
  const problem = typeof template === 'string' ? templateProblem(template) : null;
  if (problem !== null) report(path, problem);
};

const checkAction = (rule: Raw, folder: string, at: At, report: Report): void => {
  checkHeaders(rule, at, report);
  checkHeaders(asMap(rule['response']), (...path) => at('response', ...path), report, false);
  if (rule['response'] !== undefined && Object.keys(asMap(rule['response'])).length === 0)
    report(at('response'), `it says nothing; allowed are ${HEADER_ACTION_KEYS.join(', ')}`, true);
  for (const key of ['deny', 'return']) {
    for (const [name, text] of Object.entries(asMap(asMap(rule[key])['headers']))) {
      checkTemplate(text, at(key, 'headers', name), report);
      if (!isEditable(name)) report(at(key, 'headers', name), unEditable(name), true);
    }
  }
  const { status, body } = asMap(rule['return']);
  if ((status === 204 || status === 205 || status === 304) && body !== undefined && body !== '')
    report(at('return', 'body'), `an answer of status ${status} has no body`, true);
  checkRedirect(rule['redirect'], at, report);
  const { setPath, replacePath, setQuery } = rule;
  checkTemplate(setPath, at('setPath'), report);
  if (typeof setPath === 'string' && !/^(?:\/|\{(?:path|uri)\})/.test(setPath))
    report(at('setPath'), `${JSON.stringify(setPath)} is not a path; one starts with / or {path}`);
  if (typeof setPath === 'string' && /[?#]/.test(setPath))
    report(at('setPath'), 'a path has no query; setQuery sets that');
  checkPattern(asMap(replacePath)['pattern'], at('replacePath', 'pattern'), report);
  checkTemplate(setQuery, at('setQuery'), report);
  for (const [name, text] of Object.entries(asMap(setQuery))) checkTemplate(text, at('setQuery', name), report);
  checkUsers(asMap(asMap(rule['allow'])['users']), folder, (...path) => at('allow', 'users', ...path), report);
};

const checkRedirect = (redirect: unknown, at: At, report: Report): void => {
  checkTemplate(redirect, at('redirect'), report);
  if (typeof redirect !== 'object' || redirect === null) return;
  const { location, prefix } = asMap(redirect);
  checkTemplate(location, at('redirect', 'location'), report);
  checkTemplate(prefix, at('redirect', 'prefix'), report);
  const given = ['location', 'scheme', 'prefix'].filter((key) => asMap(redirect)[key] !== undefined);
  if (given.length !== 1) report(at('redirect'), 'it needs exactly one of location, scheme and prefix', true);
};

const unEditable = (name: string): string =>
  `${name} belongs to the connection or to the framing of the message, and can't be edited`;

const checkHeaders = (edits: Raw, at: At, report: Report, isRequest = true): void => {
  const { removeHeader, replaceHeader } = edits;
  const check = (name: string, path: Path) => {
    if (/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(name) && !isEditable(name)) report(path, unEditable(name), true);
  };
  const names = typeof removeHeader === 'string' ? [removeHeader] : asList(removeHeader);
  names.forEach((name, index) => {
    if (typeof name !== 'string') return;
    const path = typeof removeHeader === 'string' ? at('removeHeader') : at('removeHeader', index);
    check(name, path);
    if (isRequest && name.toLowerCase() === 'host') report(path, 'every request has a Host; setHeader can change it');
  });
  const { name, pattern } = asMap(replaceHeader);
  if (typeof name === 'string') check(name, at('replaceHeader', 'name'));
  if (isRequest && typeof name === 'string' && name.toLowerCase() === 'host')
    report(at('replaceHeader', 'name'), 'Host can only be set, by setHeader');
  checkPattern(pattern, at('replaceHeader', 'pattern'), report);
  for (const key of ['setHeader', 'addHeader']) {
    for (const [field, text] of Object.entries(asMap(edits[key]))) {
      check(field, at(key, field));
      checkTemplate(text, at(key, field), report);
      if (isRequest && key === 'addHeader' && field.toLowerCase() === 'host')
        report(at(key, field), 'a request has one Host; setHeader can change it', true);
    }
  }
};

const checkUsers = (users: Raw, folder: string, at: At, report: Report): void => {
  for (const [user, secret] of Object.entries(users)) {
    const { file } = asMap(secret);
    const text = typeof file === 'string' ? textOf(resolve(folder, file)) : secret;
    const problem =
      typeof text === 'string'
        ? text === '' && typeof file === 'string'
          ? `the password in ${file} is empty`
          : passwordProblem(text)
        : text instanceof Error
          ? `the password can't be read: ${messageOf(text)}`
          : null;
    if (problem !== null) report(at(user), problem);
  }
};

const textOf = (file: string): string | Error => {
  try {
    return readFileSync(file, 'utf8').trim();
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
};
