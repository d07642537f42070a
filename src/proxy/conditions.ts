/** Conditions of rules, compiled to functions of a request. Later conditions see what earlier rules changed. */
import picomatch from 'picomatch';
import { AddressSet } from './addresses.ts';
import { NameTable } from './names.ts';
import { bytesOf, compilePattern } from './pattern.ts';
import { decodedParameter, someParameter } from './queryString.ts';
import { compileThreshold } from './rateLimit.ts';
import type { RequestView } from './requestView.ts';
import type { ConditionModel, TextTest } from './ruleModel.ts';
import type { RuleContext } from './rules.ts';

export type Check = (view: RequestView) => boolean;

/** Up to this many texts are compared one by one; a set is faster beyond. */
const FEW = 4;

export const compileCondition = (model: ConditionModel, context: RuleContext): Check => {
  switch (model.kind) {
    case 'source': {
      const networks = new AddressSet(model.networks);
      return (view) => networks.has(view.family, view.sourceWords);
    }
    case 'host': {
      const isOne = compileNames(model.names);
      return (view) => isOne(hostOf(view));
    }
    case 'serverName': {
      const isOne = compileNames(model.names);
      return ({ facts }) => facts.serverName !== null && isOne(facts.serverName);
    }
    case 'path':
      return compileAny(model.globs.map(compileGlob));
    case 'pathPattern': {
      const pattern = compilePattern(model.pattern);
      return (view) => pattern.test(view.plainPath);
    }
    case 'method': {
      const isOne = oneOf(model.methods);
      return ({ facts }) => isOne(facts.method);
    }
    case 'header': {
      const lower = model.name.toLowerCase();
      const test = compileText(model.test);
      return (view) => test(view.header(lower));
    }
    case 'cookie': {
      const name = bytesOf(model.name);
      const test = compileText(model.test);
      return (view) => test(view.cookie(name));
    }
    case 'query': {
      const name = bytesOf(model.name);
      const test = compileText(model.test);
      if (model.test.present === false) return (view) => !someParameter(view.query, name, () => true);
      // Servers differ on which of several they take, so any may be it.
      return (view) => view.query !== '' && someParameter(view.query, name, (value) => test(decodedParameter(value)));
    }
    case 'tls':
      return ({ facts }) => facts.isTls === model.isTls;
    case 'clientCertificate':
      return ({ facts }) => (facts.tls?.client != null) === model.isShown;
    case 'localPort': {
      const { ports } = model;
      return ({ facts }) => ports.includes(facts.localPort);
    }
    case 'usable': {
      const { pool, atLeast, below } = model;
      return () => {
        const usable = context.usableServers(pool);
        return usable >= atLeast && usable < below;
      };
    }
    case 'rate':
      return compileThreshold(model, () => context.nowMs());
    case 'not': {
      const check = compileCondition(model.condition, context);
      return (view) => !check(view);
    }
    case 'any':
      return compileAny(model.conditions.map((condition) => compileCondition(condition, context)));
    case 'all': {
      // What counts requests comes last: it counts those for which the rest holds.
      const ordered = [...model.conditions.filter((one) => !counts(one)), ...model.conditions.filter(counts)];
      return compileAll(ordered.map((condition) => compileCondition(condition, context)));
    }
  }
};

/** `example.com.` is the same name with its root spelled out. */
export const hostOf = (view: RequestView): string => {
  const { host } = view;
  return host.endsWith('.') ? host.slice(0, -1) : host;
};

const counts = (model: ConditionModel): boolean =>
  model.kind === 'rate' ||
  (model.kind === 'not' && counts(model.condition)) ||
  ((model.kind === 'any' || model.kind === 'all') && model.conditions.some(counts));

const compileAll = (checks: Check[]): Check => {
  const [first, second] = checks;
  if (!first) return () => true;
  if (!second) return first;
  if (checks.length === 2) return (view) => first(view) && second(view);
  return (view) => checks.every((check) => check(view));
};

const compileAny = (checks: Check[]): Check => {
  const [first, second] = checks;
  if (!first) return () => false;
  if (!second) return first;
  if (checks.length === 2) return (view) => first(view) || second(view);
  return (view) => checks.some((check) => check(view));
};

const oneOf = (texts: string[]): ((text: string) => boolean) => {
  const [only] = texts;
  if (only !== undefined && texts.length === 1) return (text) => text === only;
  if (texts.length <= FEW) return (text) => texts.includes(text);
  const set = new Set(texts);
  return (text) => set.has(text);
};

const compileNames = (patterns: string[]): ((name: string) => boolean) => {
  const names = patterns.map((pattern) => pattern.toLowerCase());
  if (!names.some((name) => name.startsWith('*'))) return oneOf(names);
  const table = new NameTable();
  for (const name of names) table.add(name, 0);
  return (name) => table.find(name) === 0;
};

/** What picomatch gives a meaning to. */
const GLOB = /[*?[\]()!+@|\\]/;

const compileGlob = (source: string): Check => {
  // Written encoded or not, it meets paths whose encoding is undone.
  const glob = bytesOf(source).replaceAll(/%([\da-fA-F]{2})/g, (whole, digits: string) => {
    const character = String.fromCharCode(Number.parseInt(digits, 16));
    return character === '/' || GLOB.test(character) ? whole.toUpperCase() : character;
  });
  if (!GLOB.test(glob)) return (view) => view.plainPath === glob;
  const folder = glob.endsWith('/**') ? glob.slice(0, -'/**'.length) : null;
  if (folder !== null && !GLOB.test(folder)) {
    const below = `${folder}/`;
    return ({ plainPath }) => plainPath.startsWith(below) || plainPath === folder;
  }
  const pattern = picomatch.makeRe(glob, { dot: true, nobrace: true, noext: true });
  return (view) => pattern.test(view.plainPath);
};

const compileText = (test: TextTest): ((value: string | null) => boolean) => {
  if (test.present === false) return (value) => value === null;
  const checks: ((value: string) => boolean)[] = [];
  if (test.equals) checks.push(oneOf(test.equals.map(bytesOf)));
  const some = (texts: string[] | undefined, holds: (value: string, text: string) => boolean) => {
    if (!texts) return;
    const wanted = texts.map(bytesOf);
    checks.push((value) => wanted.some((text) => holds(value, text)));
  };
  some(test.prefix, (value, text) => value.startsWith(text));
  some(test.suffix, (value, text) => value.endsWith(text));
  some(test.contains, (value, text) => value.includes(text));
  if (test.pattern !== undefined) {
    const pattern = compilePattern(test.pattern);
    checks.push((value) => pattern.test(value));
  }
  const [only] = checks;
  if (only && checks.length === 1) return (value) => value !== null && only(value);
  return (value) => value !== null && checks.every((check) => check(value));
};
