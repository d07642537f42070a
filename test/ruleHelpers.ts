/** Rules as a configuration has them, compiled as a worker compiles them, and a request to decide about. */
import { z } from 'zod';
import { rule } from '../src/config/rules.ts';
import type { RequestFacts } from '../src/proxy/facts.ts';
import { RateMemories, ruleModelsOf } from '../src/proxy/ruleModel.ts';
import { compileRules } from '../src/proxy/rules.ts';
import type { Decision, RuleContext, RuleSet } from '../src/proxy/rules.ts';

export type Rules = Record<string, unknown>[];

export const modelsOf = (rules: Rules, memories = new RateMemories()) => {
  const models = ruleModelsOf('shop', z.array(rule).parse(rules), (file) => `text of ${file}\n`, memories);
  memories.settle();
  // They cross to a worker's thread.
  return structuredClone(models);
};

export const compile = (rules: Rules, context: Partial<RuleContext> = {}, memories?: RateMemories): RuleSet =>
  compileRules(modelsOf(rules, memories), { usableServers: () => 1, nowMs: () => 0, ...context });

type Request = Partial<Omit<RequestFacts, 'header' | 'cookie'>> & {
  headers?: Record<string, string>;
  cookies?: Record<string, string>;
};

export const request = ({ headers = {}, cookies = {}, ...facts }: Request = {}): RequestFacts => ({
  source: '192.0.2.7',
  localAddress: '10.9.0.100',
  localPort: 80,
  scheme: 'http',
  isTls: false,
  tls: null,
  serverName: null,
  method: 'GET',
  host: 'www.example.com',
  path: '/',
  query: '',
  ...facts,
  header: (name) => headers[name] ?? null,
  cookie: (name) => cookies[name] ?? null,
});

export const decide = (rules: Rules, facts: Request = {}): Decision => compile(rules).decide(request(facts), 'id1');

/** The status of the rule that holds, or the backend, or null for the default backend. */
export const outcome = ({ answer, backend }: Decision): number | string | null => answer?.status ?? backend;
