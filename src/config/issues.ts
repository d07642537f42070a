/** What the schema finds wrong, in words: what is wrong, and what is allowed. */
import type { z } from 'zod';
import type { Report } from './raw.ts';
import { keysAt, valueAt } from './schemaNodes.ts';

type Issue = z.core.$ZodIssue;

/** Each of them once, where it stands. */
export const reportIssues = (issues: readonly Issue[], schema: z.ZodType, raw: unknown, report: Report): void => {
  const found: Parameters<Report>[] = [];
  const misspelt = new Set<string>();
  for (const issue of issues) {
    reportIssue(issue, schema, raw, (path, message, atKey) => {
      found.push([path, message, atKey]);
      const meant = /^unknown key; did you mean (.*)\?$/.exec(message)?.[1];
      if (meant !== undefined) misspelt.add(JSON.stringify([...path.slice(0, -1), meant]));
    });
  }
  for (const [path, message, atKey] of found) {
    // A key that is there, only not spelt as it should be, isn't missing too.
    if (message.startsWith(MISSING) && misspelt.has(JSON.stringify(path))) continue;
    report(path, message, atKey);
  }
};

const MISSING = 'missing; ';

const reportIssue = (issue: Issue, schema: z.ZodType, raw: unknown, report: Report): void => {
  const path = issue.path.filter((part): part is string | number => typeof part !== 'symbol');
  const value = valueAt(raw, path);
  switch (issue.code) {
    case 'unrecognized_keys':
      for (const key of issue.keys) {
        const known = keysAt(schema, path, raw);
        const nearest = nearestOf(key, known);
        const allowed = nearest ? `did you mean ${nearest}?` : `allowed are ${known.join(', ')}`;
        report([...path, key], `unknown key; ${allowed}`, true);
      }
      return;
    case 'invalid_union': {
      const branches = likeliestBranches(issue.errors as Issue[][], value);
      const alternatives = branches.length > 1 ? branches.map((branch) => missingKeyOf(branch, value)) : [];
      if (branches.length === 0) report(path, describe(issue, value));
      else if (alternatives.length > 1 && !alternatives.includes(null))
        report(path, `it needs ${alternatives.join(', or ')}`, true);
      else
        for (const inner of branches[0]!)
          reportIssue({ ...inner, path: [...issue.path, ...inner.path] }, schema, raw, report);
      return;
    }
    case 'invalid_key':
      report(path, describe(issue.issues[0]!, path.at(-1)), true);
      return;
    default:
      report(path, describe(issue, value));
  }
};

/** Of the forms that a value could have had, those that it was most likely meant to have: of its type, and with its keys. */
const likeliestBranches = (branches: Issue[][], value: unknown): Issue[][] => {
  const fitting = branches.filter((issues) => !issues.some(isOfAnotherType));
  if (typeof value !== 'object') {
    return fitting
      .filter((issues) => issues.every(({ code, path }) => code === 'custom' || path.length === 0))
      .slice(0, 1);
  }
  const scores = new Map(fitting.map((issues) => [issues, strangenessOf(issues, value)]));
  const least = Math.min(...scores.values());
  return fitting.filter((issues) => scores.get(issues) === least);
};

const isOfAnotherType = (issue: Issue): boolean => {
  if (issue.path.length > 0) return false;
  if (issue.code === 'invalid_type' || issue.code === 'invalid_value') return true;
  return (
    issue.code === 'invalid_union' &&
    issue.errors.length > 0 &&
    (issue.errors as Issue[][]).every((issues) => issues.some(isOfAnotherType))
  );
};

/** Keys that a form doesn't know, and those that it misses. What is wrong within a key that it knows speaks for it. */
const strangenessOf = (issues: Issue[], value: unknown): number =>
  issues.reduce((sum, issue) => {
    if (issue.code === 'unrecognized_keys') return sum + (issue.path.length === 0 ? issue.keys.length : 0);
    return sum + (isMissingKey(issue, value) ? 1 : 0);
  }, 0);

const isMissingKey = ({ path }: Issue, value: unknown): boolean =>
  path.length === 1 && (value as Record<PropertyKey, unknown> | null)?.[path[0]!] === undefined;

/** The key without which this form is not complete, if that is all that is wrong. */
const missingKeyOf = ([issue, ...others]: Issue[], value: unknown): string | null =>
  issue && others.length === 0 && isMissingKey(issue, value) ? String(issue.path[0]) : null;

const describe = (issue: Issue, value: unknown): string => {
  const given = JSON.stringify(value)?.slice(0, 80);
  const own = ownMessage(issue);
  if (given === undefined) return `${MISSING}${own?.split('; ').slice(1).join('; ') || whatIsNeeded(issue)}`;
  // Said of the value where the schema says what it isn't; a message that says more stands by itself.
  if (own !== null) return /^(?:not|is) /.test(own) ? `${given} ${own.startsWith('is ') ? '' : 'is '}${own}` : own;
  switch (issue.code) {
    case 'invalid_type':
      return `${given} is not ${article(issue.expected)}`;
    case 'invalid_value':
    case 'invalid_union':
      return `${given} is not allowed; ${whatIsAllowed(issue)}`;
    case 'too_small':
      return `${given} is too small; ${issue.inclusive === false ? 'more than' : 'at least'} ${String(issue.minimum)} ${unitOf(issue.origin, issue.minimum)}`;
    case 'too_big':
      return `${given} is too large; ${issue.inclusive === false ? 'less than' : 'at most'} ${String(issue.maximum)} ${unitOf(issue.origin, issue.maximum)}`;
    default:
      return issue.message;
  }
};

const unitOf = (origin: string, count: number | bigint): string => {
  const noun = { array: ['entry', 'entries'], string: ['character', 'characters'] }[origin];
  if (!noun) return 'is allowed';
  return Number(count) === 1 ? `${noun[0]} is needed` : `${noun[1]} are allowed`;
};

/** What the schema itself says of the issue; null where that is a sentence of zod's. */
const ownMessage = (issue: Issue): string | null => {
  if (!/^(?:Invalid |Invalid$|Too (?:small|big)|Unrecognized|allowed )/.test(issue.message)) return issue.message;
  if (issue.code !== 'invalid_union') return null;
  const inner = (issue.errors as Issue[][]).flat().filter(({ path }) => path.length === 0);
  return inner.map(ownMessage).find((message) => message !== null) ?? null;
};

const whatIsNeeded = (issue: Issue): string =>
  issue.code === 'invalid_type' ? `${article(issue.expected)} is needed` : whatIsAllowed(issue);

const whatIsAllowed = (issue: Issue): string => {
  const kinds = [...new Set(kindsOf(issue))];
  return `allowed ${kinds.length === 1 ? 'is' : 'are'} ${kinds.join(', ')}`;
};

const kindsOf = (issue: Issue): string[] => {
  if (issue.code === 'invalid_type') return [article(issue.expected)];
  if (issue.code === 'invalid_value') return issue.values.map(String);
  if (issue.code !== 'invalid_union') return [];
  if ('options' in issue && Array.isArray(issue.options)) return issue.options.map(String);
  const here = (issue.errors as Issue[][]).flat().filter(({ path }) => path.length === 0);
  return here.flatMap(kindsOf);
};

const ARTICLES: Record<string, string> = {
  object: 'a map',
  record: 'a map',
  array: 'a list',
  string: 'a text',
  number: 'a number',
  int: 'a whole number',
  boolean: 'true or false',
};
const article = (type: string): string => ARTICLES[type] ?? type;

/** The known key that differs by the fewest letters, if it is near enough to have been meant. */
const nearestOf = (key: string, known: string[]): string | null => {
  const scored = known.map((candidate) => ({
    candidate,
    distance: editDistance(key.toLowerCase(), candidate.toLowerCase()),
  }));
  const best = scored.sort((a, b) => a.distance - b.distance)[0];
  return best && best.distance <= Math.max(2, key.length / 3) ? best.candidate : null;
};

const editDistance = (a: string, b: string): number => {
  let previous = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let row = 1; row <= a.length; row++) {
    const current = [row];
    for (let column = 1; column <= b.length; column++) {
      const change = previous[column - 1]! + (a[row - 1] === b[column - 1] ? 0 : 1);
      current.push(Math.min(change, previous[column]! + 1, current[column - 1]! + 1));
    }
    previous = current;
  }
  return previous[b.length]!;
};
