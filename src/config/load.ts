/** Reads a configuration whole: YAML with positions, environment, schema, then what only the whole can tell. */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { isMap, isPair, isScalar, isSeq, LineCounter, parseDocument, visit, type Document } from 'yaml';
import { z } from 'zod';
import { messageOf, UnderstudyError } from '../errors.ts';
import { checkRouters } from './checkRouters.ts';
import { schema } from './schema.ts';
import type { NotifyConfig } from './routers.ts';
import type { Config } from './schema.ts';
import { formatEndpoint, isLoopback, parseEndpoint } from './units.ts';

type Path = (string | number)[];

/** `path` in the form `backends.web.servers[1].address`. */
export type Problem = { line: number; column: number; path: string; message: string };

export type Loaded = { config: Config; text: string } | { problems: Problem[] };

export type Environment = Readonly<Record<string, string | undefined>>;

/** Reads a file. Relative paths in it are taken from the file's own folder. @throws UnderstudyError CONFIG_UNREADABLE */
export const loadConfigFile = (file: string, environment: Environment): Loaded => {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new UnderstudyError('CONFIG_UNREADABLE', `the configuration ${file} can't be read: ${messageOf(error)}`);
  }
  return loadConfig(text, environment, dirname(resolve(file)));
};

export const formatProblem = (file: string, { line, column, path, message }: Problem): string =>
  `${file}:${line}:${column} ${path === '' ? '' : `${path}: `}${message}`;

export const loadConfig = (text: string, environment: Environment, folder: string): Loaded => {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, uniqueKeys: true });
  const problems: Problem[] = [];
  const texts = text.split('\n');
  const at = (offset: number) => {
    const { line, col } = lines.linePos(Math.min(offset, text.length));
    const longest = (texts[line - 1] ?? '').length + 1;
    return { line: Math.min(texts.length, Math.max(1, line)), column: Math.min(longest, Math.max(1, col)) };
  };
  for (const error of [...document.errors, ...document.warnings]) {
    problems.push({
      ...at(error.pos[0]),
      path: '',
      message: error.message.split('\n')[0]!.replace(/ at line \d+.*$/, ''),
    });
  }
  if (problems.length > 0) return { problems };

  const report = (path: Path, message: string, atKey = false) => {
    problems.push({ ...at(offsetOf(document, path, atKey)), path: formatPath(path), message });
  };
  const withoutValue = new Set<string>();
  substituteEnvironment(document, environment, (path, variable) => {
    withoutValue.add(formatPath(path));
    report(path, `the environment has no ${variable}; \${${variable}:-default} gives it a default`);
  });
  let raw: unknown;
  try {
    raw = (document.toJS() as unknown) ?? {};
  } catch (error) {
    // An alias without its anchor, or aliases that would unfold to more than the parser allows.
    return { problems: [{ line: 1, column: 1, path: '', message: messageOf(error) }] };
  }
  const result = schema.safeParse(raw);
  if (!result.success) {
    for (const issue of result.error.issues) {
      reportIssue(issue, raw, (path, message, atKey) => {
        if (!withoutValue.has(formatPath(path))) report(path, message, atKey);
      });
    }
  }
  checkWhole(raw, report);
  checkFiles(raw, folder, report);
  checkRouters(asMap(raw), folder, report);
  if (problems.length > 0 || !result.success) return { problems: problems.sort(byPosition) };

  const { data } = result;
  const config: Config = {
    ...data,
    journal: { ...data.journal, path: resolve(folder, data.journal.path ?? `data/${data.node}.db`) },
  };
  resolvePaths(config, folder);
  return { config, text };
};

/** The JSON Schema of the file, for editors. */
export const configJsonSchema = (): unknown => z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' });

const byPosition = (a: Problem, b: Problem) => a.line - b.line || a.column - b.column;

const formatPath = (path: Path): string =>
  path.map((part, index) => (typeof part === 'number' ? `[${part}]` : index === 0 ? part : `.${part}`)).join('');

/** Where a value stands; of a missing one, where the map that lacks it does. */
const offsetOf = (document: Document, path: Path, atKey: boolean): number => {
  for (let length = path.length; length >= 0; length--) {
    const parent: unknown = length > 0 ? document.getIn(path.slice(0, length - 1), true) : null;
    if (length > 0 && isMap(parent)) {
      const pair = parent.items.find(
        (item) => isScalar(item.key) && String(item.key.value) === String(path[length - 1]),
      );
      const key = pair?.key as { range?: [number, number, number] } | undefined;
      const value = pair?.value as { range?: [number, number, number] } | null | undefined;
      const range = (atKey && length === path.length) || isMap(value) ? key?.range : (value?.range ?? key?.range);
      if (range) return range[0];
      continue;
    }
    const node = (length === 0 ? document.contents : document.getIn(path.slice(0, length), true)) as {
      range?: [number, number, number];
    } | null;
    if (node?.range) return node.range[0];
  }
  return 0;
};

/** `${NAME}` and `${NAME:-default}` in every text of the file. */
const substituteEnvironment = (
  document: Document,
  environment: Environment,
  report: (path: Path, variable: string) => void,
): void => {
  visit(document, {
    Scalar(key, node, ancestors) {
      if (key === 'key' || typeof node.value !== 'string' || !node.value.includes('${')) return;
      const path = pathOf(ancestors, key);
      let missing = false;
      const text = node.value.replaceAll(
        /\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}/g,
        (whole, variable: string, fallback?: string) => {
          const value = environment[variable] ?? fallback;
          if (value !== undefined) return value;
          missing = true;
          report(path, variable);
          return whole;
        },
      );
      // The environment knows texts only: where a number or true and false are wanted, and only there, it is read as one.
      node.value = missing || node.type !== 'PLAIN' ? text : asWanted(text, nodesAt(schema, path).flatMap(unwrap));
    },
  });
};

const pathOf = (ancestors: readonly unknown[], key: unknown): Path => {
  const path: Path = [];
  for (const [index, ancestor] of ancestors.entries()) {
    const child: unknown = ancestors[index + 1];
    if (isPair(ancestor) && isScalar(ancestor.key)) path.push(String(ancestor.key.value));
    if (isSeq(ancestor)) path.push(child === undefined ? Number(key) : ancestor.items.indexOf(child));
  }
  return path;
};

const asWanted = (text: string, nodes: unknown[]): unknown => {
  const types = new Set(nodes.map((node) => defOf(node).type));
  if (types.has('string')) return text;
  if (types.has('number') && /^-?\d+(?:\.\d+)?$/.test(text)) return Number(text);
  if (types.has('boolean') && /^(?:true|false)$/.test(text)) return text === 'true';
  return text;
};

type Issue = z.core.$ZodIssue;
type Report = (path: Path, message: string, atKey?: boolean) => void;

const reportIssue = (issue: Issue, raw: unknown, report: Report): void => {
  const path = issue.path.filter((part): part is string | number => typeof part !== 'symbol');
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
      const branch = likeliestBranch(issue.errors as Issue[][], valueAt(raw, path));
      if (branch)
        for (const inner of branch) reportIssue({ ...inner, path: [...issue.path, ...inner.path] }, raw, report);
      else report(path, describe(issue, valueAt(raw, path)));
      return;
    }
    default:
      report(path, describe(issue, valueAt(raw, path)));
  }
};

/** Of the forms that a value could have had, the one that it was meant to have: the one whose type it has. */
const likeliestBranch = (branches: Issue[][], value: unknown): Issue[] | null => {
  const fitting = branches.filter(
    (issues) =>
      !issues.some(
        (issue) => issue.path.length === 0 && (issue.code === 'invalid_type' || issue.code === 'invalid_value'),
      ),
  );
  const best = fitting.sort((a, b) => a.length - b.length)[0];
  return best &&
    (typeof value === 'object' || best.every((issue) => issue.code === 'custom' || issue.path.length === 0))
    ? best
    : null;
};

const describe = (issue: Issue, value: unknown): string => {
  const given = value === undefined ? 'nothing' : JSON.stringify(value).slice(0, 80);
  switch (issue.code) {
    case 'invalid_type':
      return value === undefined
        ? `missing; ${article(issue.expected)} is needed`
        : `${given} is not ${article(issue.expected)}`;
    case 'invalid_value':
      return `${given} is not allowed; allowed ${issue.values.length === 1 ? 'is' : 'are'} ${issue.values.map(String).join(', ')}`;
    case 'invalid_union': {
      const options = 'options' in issue && Array.isArray(issue.options) ? (issue.options as unknown[]) : null;
      const named = 'discriminator' in issue && options ? `; allowed types are ${options.map(String).join(', ')}` : '';
      return `${given} is not allowed here${named || whatIsAllowed(issue)}`;
    }
    case 'too_small':
      return `${given} is too small; at least ${String(issue.minimum)} ${issue.origin === 'array' ? 'entry is needed' : 'is allowed'}`;
    case 'too_big':
      return `${given} is too large; at most ${String(issue.maximum)} ${issue.origin === 'array' ? 'entries are allowed' : 'is allowed'}`;
    case 'invalid_key':
      return `not a name; allowed are letters, digits, ".", "_" and "-"`;
    case 'invalid_format':
      return `${given} is ${issue.message}`;
    default:
      return issue.message;
  }
};

const whatIsAllowed = (issue: Issue): string => {
  if (issue.code !== 'invalid_union') return '';
  const kinds = new Set<string>();
  for (const inner of (issue.errors as Issue[][]).flat()) {
    if (inner.path.length > 0) continue;
    if (inner.code === 'invalid_type') kinds.add(article(inner.expected));
    if (inner.code === 'invalid_value') for (const value of inner.values) kinds.add(String(value));
  }
  return kinds.size > 0 ? `; allowed are ${[...kinds].join(', ')}` : '';
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

const valueAt = (raw: unknown, path: Path): unknown =>
  path.reduce<unknown>((value, part) => (value as Record<string | number, unknown> | null | undefined)?.[part], raw);

/** The schema's nodes at a path. */
const nodesAt = (root: z.ZodType, path: Path): unknown[] => {
  let nodes: unknown[] = [root];
  for (const part of path) nodes = nodes.flatMap(unwrap).flatMap((node) => childOf(node, part));
  return nodes;
};

/** The keys that the schema knows at a path; of a union, those of the form that the value has. */
const keysAt = (root: z.ZodType, path: Path, raw: unknown): string[] => {
  const value = valueAt(raw, path);
  const objects = nodesAt(root, path)
    .flatMap(unwrap)
    .filter((node) => defOf(node).type === 'object');
  const type = (value as { type?: unknown } | null)?.type;
  const ofType = objects.filter((node) => {
    const { type: discriminator } = shapeOf(node);
    return discriminator && defOf(discriminator).values?.includes(type);
  });
  return [...new Set((ofType.length > 0 ? ofType : objects).flatMap((node) => Object.keys(shapeOf(node))))];
};

type Definition = {
  type: string;
  shape?: Record<string, unknown>;
  innerType?: unknown;
  in?: unknown;
  options?: unknown[];
  valueType?: unknown;
  element?: unknown;
  values?: unknown[];
};

const defOf = (node: unknown): Definition => (node as { def: Definition }).def;
const shapeOf = (node: unknown): Record<string, unknown> => defOf(node).shape ?? {};

const unwrap = (node: unknown): unknown[] => {
  const definition = defOf(node);
  if (definition.innerType) return unwrap(definition.innerType);
  if (definition.type === 'pipe') return unwrap(definition.in);
  if (definition.options) return definition.options.flatMap(unwrap);
  return [node];
};

const childOf = (node: unknown, part: string | number): unknown[] => {
  const definition = defOf(node);
  const child =
    definition.type === 'object'
      ? definition.shape?.[part]
      : definition.type === 'array'
        ? definition.element
        : definition.valueType;
  return child ? [child] : [];
};

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

/** What no single key can tell. Works on the raw file, so that it finds its problems beside those of the schema. */
const checkWhole = (raw: unknown, report: Report): void => {
  const file = asMap(raw);
  const backends = asMap(file['backends']);
  const boundBy = new Map<string, string>();
  for (const [backendName, backend] of Object.entries(backends)) {
    const names = new Set<unknown>();
    asList(asMap(backend)['servers']).forEach((server, index) => {
      const serverName = asMap(server)['name'];
      if (typeof serverName === 'string' && names.has(serverName)) {
        report(
          ['backends', backendName, 'servers', index, 'name'],
          `${serverName} is there already; each server of a backend needs a name of its own`,
        );
      }
      names.add(serverName);
      const { address } = asMap(server);
      const endpoint = typeof address === 'string' ? parseEndpoint(address) : null;
      if (endpoint?.port === 0)
        report(['backends', backendName, 'servers', index, 'address'], 'port 0 is not allowed; 1 to 65535 are');
    });
  }
  for (const [frontendName, frontend] of Object.entries(asMap(file['frontends']))) {
    const { use, rules, bind, mode } = asMap(frontend);
    const checkUse = (path: Path, target: unknown) => {
      if (typeof target !== 'string') return;
      const backend = Object.hasOwn(backends, target) ? backends[target] : undefined;
      if (backend === undefined) {
        const known = Object.keys(backends);
        report(
          path,
          `there is no backend ${target}; ${known.length > 0 ? `allowed are ${known.join(', ')}` : 'the file has none'}`,
        );
      } else if (asMap(backend)['mode'] !== undefined && asMap(backend)['mode'] !== mode) {
        report(
          path,
          `backend ${target} has mode ${String(asMap(backend)['mode'])}, this frontend ${String(mode)}; they must agree`,
        );
      }
    };
    checkUse(['frontends', frontendName, 'use'], use);
    asList(rules).forEach((rule, index) => {
      checkUse(['frontends', frontendName, 'rules', index, 'use'], asMap(rule)['use']);
      if (mode === 'tcp')
        report(['frontends', frontendName, 'rules', index], 'host and path are known in mode http only', true);
    });
    asList(bind).forEach((entry, index) => {
      const text = typeof entry === 'string' ? entry : asMap(entry)['address'];
      const endpoint = typeof text === 'string' ? parseEndpoint(text) : null;
      if (!endpoint) return;
      const address = formatEndpoint(endpoint);
      const other = boundBy.get(address);
      if (other !== undefined) {
        report(['frontends', frontendName, 'bind', index], `${address} is bound by frontend ${other} already`);
      }
      if (endpoint.port !== 0) boundBy.set(address, frontendName);
    });
  }
  const api = asMap(file['api']);
  const listen = typeof api['listen'] === 'string' ? parseEndpoint(api['listen']) : null;
  if (listen && !isLoopback(listen.host) && api['token'] === undefined) {
    report(['api', 'listen'], `${formatEndpoint(listen)} is not a loopback address; it needs api.token`);
  }
};

const asMap = (value: unknown): Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : {};
const asList = (value: unknown): unknown[] => (Array.isArray(value) ? value : []);

const resolvePaths = (config: Config, folder: string): void => {
  for (const { bind } of Object.values(config.frontends)) {
    for (const { tls } of bind) if (tls) tls.certificates = tls.certificates.map((file) => resolve(folder, file));
  }
  for (const { check } of Object.values(config.backends)) {
    if (check && 'ca' in check && check.ca !== undefined) check.ca = resolve(folder, check.ca);
  }
  const resolveSecret = (secret: string | { file: string } | undefined) => {
    if (typeof secret === 'object') secret.file = resolve(folder, secret.file);
  };
  resolveSecret(config.api.token);
  const resolveProgram = (command: string[] | undefined) => {
    if (command?.[0]?.includes('/')) command[0] = resolve(folder, command[0]);
  };
  const resolveNotify = (notify: NotifyConfig | undefined) => {
    for (const key of ['command', 'master', 'backup', 'fault', 'stop'] as const) resolveProgram(notify?.[key]);
  };
  for (const { authentication, track, notify } of Object.values(config.routers)) {
    if (authentication?.type === 'hmac') for (const { secret } of authentication.keys) resolveSecret(secret);
    else resolveSecret(authentication?.secret);
    resolveNotify(notify);
    for (const one of track) {
      if ('script' in one) resolveProgram(one.script);
      if ('file' in one) one.file = resolve(folder, one.file);
    }
  }
  for (const { notify } of Object.values(config.syncGroups)) resolveNotify(notify);
  if (config.notifyPipe) config.notifyPipe.path = resolve(folder, config.notifyPipe.path);
};

/** Files that the configuration names. Works on the raw file too, so that all problems are told at once. */
const checkFiles = (raw: unknown, folder: string, report: Report): void => {
  const file = asMap(raw);
  for (const [name, frontend] of Object.entries(asMap(file['frontends']))) {
    asList(asMap(frontend)['bind']).forEach((bind, index) => {
      asList(asMap(asMap(bind)['tls'])['certificates']).forEach((certificate, position) => {
        if (typeof certificate !== 'string') return;
        const problem = certificateProblem(resolve(folder, certificate));
        if (problem) report(['frontends', name, 'bind', index, 'tls', 'certificates', position], problem);
      });
    });
  }
  for (const [name, backend] of Object.entries(asMap(file['backends']))) {
    const { ca } = asMap(asMap(backend)['check']);
    if (typeof ca !== 'string') continue;
    const problem = readProblem(resolve(folder, ca), (pem) => void new X509Certificate(pem));
    if (problem !== null) report(['backends', name, 'check', 'ca'], `the certificate ${ca} can't be used: ${problem}`);
  }
  const token = asMap(asMap(file['api'])['token'])['file'];
  if (typeof token !== 'string') return;
  const problem = readProblem(resolve(folder, token), (text) => {
    if (text.toString().trim() === '') throw new Error('it is empty');
  });
  if (problem !== null) report(['api', 'token', 'file'], `the token can't be used: ${problem}`);
};

/** What speaks against a file: that it can't be read, or what `judge` throws. */
const readProblem = (file: string, judge: (content: Buffer) => void): string | null => {
  try {
    judge(readFileSync(file));
    return null;
  } catch (error) {
    return messageOf(error);
  }
};

const certificateProblem = (file: string): string | null => {
  const problem = readProblem(file, (pem) => {
    if (!new X509Certificate(pem).checkPrivateKey(createPrivateKey(pem))) {
      throw new Error("the key in it is not the certificate's");
    }
  });
  return problem === null
    ? null
    : `the certificate ${file} can't be used: ${problem}; a PEM file with the chain and its key is needed`;
};
