/** The rules of a frontend as plain data, which crosses threads. Templates, patterns and networks are texts here. */
import assert from 'node:assert/strict';
import type { ConditionConfig, RuleConfig } from '../config/rules.ts';
import { createRateMemory } from './rateTable.ts';
import type { RateKind } from './rateTable.ts';

/** Whose requests are counted together. Who sends no such header or cookie is counted by source. */
export type RateKey = { by: 'source' } | { by: 'header' | 'cookie'; name: string };

/** All that are given must hold. */
export type TextTest = {
  present?: boolean | undefined;
  equals?: string[] | undefined;
  prefix?: string[] | undefined;
  suffix?: string[] | undefined;
  contains?: string[] | undefined;
  pattern?: string | undefined;
};

export type ConditionModel =
  | { kind: 'source'; networks: string[] }
  | { kind: 'host' | 'serverName'; names: string[] }
  | { kind: 'path'; globs: string[] }
  | { kind: 'pathPattern'; pattern: string }
  | { kind: 'method'; methods: string[] }
  | { kind: 'header' | 'cookie' | 'query'; name: string; test: TextTest }
  | { kind: 'tls'; isTls: boolean }
  | { kind: 'clientCertificate'; isShown: boolean }
  | { kind: 'localPort'; ports: number[] }
  | { kind: 'usable'; pool: string; atLeast: number; below: number }
  | { kind: 'rate'; key: RateKey; perMs: number; above: number; memory: SharedArrayBuffer }
  | { kind: 'not'; condition: ConditionModel }
  | { kind: 'any' | 'all'; conditions: ConditionModel[] };

/** `text` is a template, but literal in `replace`, where `$1` names a group of the pattern. */
export type HeaderEditModel =
  | { kind: 'set' | 'add'; name: string; text: string }
  | { kind: 'remove'; name: string }
  | { kind: 'replace'; name: string; pattern: string; text: string };

export type ActionModel =
  | { kind: 'use'; backend: string }
  | { kind: 'accept' }
  | { kind: 'reject' }
  | { kind: 'answer'; status: number; headers: [string, string][]; body: string | null; delayMs: number }
  | { kind: 'redirect'; location: string; status: number }
  | { kind: 'authenticate'; realm: string; users: [name: string, password: string][] }
  | { kind: 'editHeaders'; of: 'request' | 'response'; edits: HeaderEditModel[] }
  | { kind: 'setPath'; template: string }
  | { kind: 'replacePath'; pattern: string; text: string }
  /** A template for the whole query, or one for each parameter; null removes. */
  | { kind: 'setQuery'; query: string | [name: string, template: string | null][] }
  | {
      kind: 'rateLimit';
      key: RateKey;
      /** One token returns in this time, in ms. */
      tokenMs: number;
      burst: number;
      status: number;
      memory: SharedArrayBuffer;
    };

export type RuleModel = { when: ConditionModel | null; action: ActionModel };

/** Tables of rates by the rule that they belong to: one that a reload doesn't change goes on counting. */
export class RateMemories {
  #memories = new Map<string, SharedArrayBuffer>();
  #used = new Set<string>();

  get(rule: string, kind: RateKind, entries: number): SharedArrayBuffer {
    // The same rule may be written twice.
    let id = `${kind} ${entries} ${rule}`;
    while (this.#used.has(id)) id += ' again';
    this.#used.add(id);
    let memory = this.#memories.get(id);
    if (!memory) this.#memories.set(id, (memory = createRateMemory(kind, entries)));
    return memory;
  }

  /** Before the frontends of a configuration. An earlier one may have been given up half-way. */
  begin(): void {
    this.#used.clear();
  }

  /** After all frontends of a configuration: lets go of the tables that none of them has asked for. */
  settle(): void {
    for (const id of this.#memories.keys()) if (!this.#used.has(id)) this.#memories.delete(id);
    this.#used.clear();
  }
}

/** `readFile` gives the text of a file with a password. */
export const ruleModelsOf = (
  frontend: string,
  rules: readonly RuleConfig[],
  readFile: (file: string) => string,
  memories: RateMemories,
): RuleModel[] =>
  rules.map((rule) => {
    const id = `${frontend} ${JSON.stringify(rule)}`;
    const memory = (kind: RateKind, entries: number) => memories.get(id, kind, entries);
    return {
      when: rule.when ? conditionOf(rule.when, memory) : null,
      action: actionOf(rule, readFile, memory),
    };
  });

type Memory = (kind: RateKind, entries: number) => SharedArrayBuffer;

/** Cheap ones first. */
const conditionOf = (when: ConditionConfig, memory: Memory): ConditionModel => {
  const conditions: ConditionModel[] = [];
  const named = (kind: 'header' | 'cookie' | 'query', tests: Record<string, TextTest> = {}) => {
    for (const [name, test] of Object.entries(tests)) conditions.push({ kind, name, test });
  };
  const { usable, rate } = when;
  if (when.tls !== undefined) conditions.push({ kind: 'tls', isTls: when.tls });
  if (when.clientCertificate !== undefined)
    conditions.push({ kind: 'clientCertificate', isShown: when.clientCertificate });
  if (when.method) conditions.push({ kind: 'method', methods: when.method });
  if (when.localPort) conditions.push({ kind: 'localPort', ports: when.localPort });
  if (when.host) conditions.push({ kind: 'host', names: when.host });
  if (when.serverName) conditions.push({ kind: 'serverName', names: when.serverName });
  if (when.path) conditions.push({ kind: 'path', globs: when.path });
  if (when.source) conditions.push({ kind: 'source', networks: when.source });
  if (usable) {
    const { pool, atLeast = 0, below = Infinity } = usable;
    conditions.push({ kind: 'usable', pool, atLeast, below });
  }
  named('header', when.header);
  named('cookie', when.cookie);
  named('query', when.query);
  if (when.pathPattern !== undefined) conditions.push({ kind: 'pathPattern', pattern: when.pathPattern });
  if (when.not) conditions.push({ kind: 'not', condition: conditionOf(when.not, memory) });
  if (when.all) conditions.push(...when.all.map((one) => conditionOf(one, memory)));
  if (when.any) conditions.push({ kind: 'any', conditions: when.any.map((one) => conditionOf(one, memory)) });
  if (rate) {
    const { key, per: perMs, above, entries } = rate;
    conditions.push({ kind: 'rate', key, perMs, above, memory: memory('meter', entries) });
  }
  const [only] = conditions;
  return only && conditions.length === 1 ? only : { kind: 'all', conditions };
};

const actionOf = (rule: RuleConfig, readFile: (file: string) => string, memory: Memory): ActionModel => {
  const { use, deny, tarpit, redirect, return: answer, response, replacePath, rateLimit, allow } = rule;
  if (use !== undefined) return { kind: 'use', backend: use };
  if (rule.reject) return { kind: 'reject' };
  if (rule.accept === true || allow === true) return { kind: 'accept' };
  if (deny) return answerOf(deny.status, deny.headers, deny.body ?? null, deny.contentType, 0);
  if (answer) return answerOf(answer.status, answer.headers, answer.body, answer.contentType, 0);
  if (tarpit) return answerOf(tarpit.status, {}, null, undefined, tarpit.delay);
  if (redirect) {
    const { location, scheme, prefix, status } = redirect;
    const target = scheme ? `${scheme}://{host}{uri}` : prefix === undefined ? location : `${prefix}{uri}`;
    assert.ok(target !== undefined, 'a redirect says whereto');
    return { kind: 'redirect', location: target, status };
  }
  if (response) return { kind: 'editHeaders', of: 'response', edits: editsOf(response) };
  if (rule.setPath !== undefined) return { kind: 'setPath', template: rule.setPath };
  if (replacePath) return { kind: 'replacePath', pattern: replacePath.pattern, text: replacePath.with };
  if (rule.setQuery !== undefined)
    return {
      kind: 'setQuery',
      query: typeof rule.setQuery === 'string' ? rule.setQuery : Object.entries(rule.setQuery),
    };
  if (rateLimit) {
    const { key, tokenMs, burst, status, entries } = rateLimit;
    return { kind: 'rateLimit', key, tokenMs, burst, status, memory: memory('tokens', entries) };
  }
  if (allow) {
    const users = Object.entries(allow.users).map(([name, password]): [string, string] => [
      name,
      typeof password === 'string' ? password : readFile(password.file).trim(),
    ]);
    return { kind: 'authenticate', realm: allow.realm, users };
  }
  const edits = editsOf(rule);
  assert.ok(edits.length > 0, 'a rule has one action');
  return { kind: 'editHeaders', of: 'request', edits };
};

const answerOf = (
  status: number,
  headers: Record<string, string>,
  body: string | null,
  contentType: string | undefined,
  delayMs: number,
): ActionModel => {
  const type: [string, string][] = body === null || body === '' ? [] : [['Content-Type', contentType ?? TEXT]];
  return { kind: 'answer', status, headers: [...type, ...Object.entries(headers)], body, delayMs };
};

const TEXT = 'text/plain; charset=utf-8';

const editsOf = ({
  removeHeader = [],
  replaceHeader,
  setHeader = {},
  addHeader = {},
}: Pick<RuleConfig, 'removeHeader' | 'replaceHeader' | 'setHeader' | 'addHeader'>): HeaderEditModel[] => [
  ...removeHeader.map((name): HeaderEditModel => ({ kind: 'remove', name })),
  ...(replaceHeader
    ? [
        {
          kind: 'replace' as const,
          name: replaceHeader.name,
          pattern: replaceHeader.pattern,
          text: replaceHeader.with,
        },
      ]
    : []),
  ...Object.entries(setHeader).map(([name, text]): HeaderEditModel => ({ kind: 'set', name, text })),
  ...Object.entries(addHeader).map(([name, text]): HeaderEditModel => ({ kind: 'add', name, text })),
];
