/** Reads a configuration whole: YAML with positions, environment, schema, then what only the whole can tell. */
import { readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { z } from 'zod';
import { messageOf, UnderstudyError } from '../errors.ts';
import { checkBackends } from './checkBackends.ts';
import { checkBus } from './checkBus.ts';
import { checkFrontends } from './checkFrontends.ts';
import { checkRouters } from './checkRouters.ts';
import { checkRules } from './checkRules.ts';
import { checkShared, checkTakesPart } from './checkShared.ts';
import { checkTls } from './checkTls.ts';
import { substituteEnvironment } from './environment.ts';
import type { Environment } from './environment.ts';
import { checkFiles } from './files.ts';
import { reportIssues } from './issues.ts';
import { layerOf, merged, ParsedLayer } from './layers.ts';
import type { Layer, Place } from './layers.ts';
import { resolvePaths } from './paths.ts';
import { asMap } from './raw.ts';
import type { Path, Raw, Report } from './raw.ts';
import { schema } from './schema.ts';
import type { Config } from './schema.ts';
import { typesAt } from './schemaNodes.ts';
import { formatEndpoint, isLoopback, parseInetEndpoint } from './units.ts';

/** `path` in the form `backends.web.servers[1].address`; `source` where it stands elsewhere than in the file itself. */
export type Problem = { line: number; column: number; path: string; message: string; source?: string };

export type Loaded = { config: Config; text: string } | { problems: Problem[] };

/** @throws UnderstudyError CONFIG_UNREADABLE */
export const readConfigText = (file: string): string => {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    throw new UnderstudyError('CONFIG_UNREADABLE', `the configuration ${file} can't be read: ${messageOf(error)}`);
  }
};

/** Reads a file. Relative paths in it are taken from the file's own folder. @throws UnderstudyError CONFIG_UNREADABLE */
export const loadConfigFile = (file: string, environment: Environment): Loaded =>
  loadConfig(readConfigText(file), environment, dirname(resolve(file)));

export const formatProblem = (file: string, { source, line, column, path, message }: Problem): string =>
  `${source ?? file}:${line}:${column} ${path === '' ? '' : `${path}: `}${message}`;

export const loadConfig = (text: string, environment: Environment, folder: string): Loaded =>
  loadLayers([{ source: null, text }], environment, folder);

/** The last layer is the node's own file; relative paths of all of them are taken from its folder. */
export const loadLayers = (texts: readonly Layer[], environment: Environment, folder: string): Loaded => {
  const layers = texts.map((layer) => new ParsedLayer(layer));
  const problems: Problem[] = [];
  const tell = (place: Place, path: Path, message: string): void => {
    problems.push({ ...place, path: formatPath(path), message });
  };
  for (const { errors } of layers) for (const { place, message } of errors) tell(place, [], message);
  if (problems.length > 0) return { problems };

  const unset: { path: Path; variable: string; index: number }[] = [];
  for (const [index, { document }] of layers.entries()) {
    substituteEnvironment(
      document,
      environment,
      (path) => typesAt(schema, path),
      (path, variable) => unset.push({ path, variable, index }),
    );
  }
  const values: unknown[] = [];
  for (const layer of layers) {
    const found = layer.values();
    if ('value' in found) values.push(found.value);
    else return { problems: [{ ...found.place, path: '', message: found.message }] };
  }
  const report = (path: Path, message: string, atKey = false) =>
    tell(layers[layerOf(values, path)]!.placeOf(path, atKey), path, message);
  const withoutValue = new Set<string>();
  for (const { path, variable, index } of unset) {
    // What another layer replaces is nobody's problem.
    if (layerOf(values, path) !== index) continue;
    withoutValue.add(formatPath(path));
    report(path, `the environment has no ${variable}; \${${variable}:-default} gives it a default`);
  }
  for (const [index, layer] of layers.slice(0, -1).entries())
    checkShared(values[index], (path, message) => tell(layer.placeOf(path, path.length > 0), path, message));
  const raw = values.reduce(merged);
  const result = schema.safeParse(raw);
  if (!result.success) {
    reportIssues(result.error.issues, schema, raw, (path, message, atKey) => {
      if (!withoutValue.has(formatPath(path))) report(path, message, atKey);
    });
  }
  const file = asMap(raw);
  checkApi(asMap(file['api']), report);
  checkBus(file, folder, report);
  checkTakesPart(file, report);
  checkFiles(file, folder, report);
  checkFrontends(file, folder, report);
  checkBackends(file, report);
  checkRouters(file, folder, report);
  checkRules(file, folder, report);
  checkTls(file, folder, report);
  if (problems.length > 0 || !result.success) return { problems: problems.sort(byPosition(texts)) };

  const { data } = result;
  const config: Config = {
    ...data,
    journal: { ...data.journal, path: resolve(folder, data.journal.path ?? `data/${data.node}.db`) },
  };
  resolvePaths(config, folder);
  return { config, text: texts.map(({ text }) => text).join('\n---\n') };
};

/** The JSON Schema of the file, for editors. */
export const configJsonSchema = (): unknown => z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' });

const byPosition = (layers: readonly Layer[]) => {
  const orderOf = (problem: Problem) => layers.findIndex(({ source }) => source === (problem.source ?? null));
  return (a: Problem, b: Problem) => orderOf(a) - orderOf(b) || a.line - b.line || a.column - b.column;
};

const formatPath = (path: Path): string =>
  path.map((part, index) => (typeof part === 'number' ? `[${part}]` : index === 0 ? part : `.${part}`)).join('');

const checkApi = ({ listen, token }: Raw, report: Report): void => {
  const endpoint = typeof listen === 'string' ? parseInetEndpoint(listen) : null;
  if (endpoint && !isLoopback(endpoint.host) && token === undefined)
    report(['api', 'listen'], `${formatEndpoint(endpoint)} is not a loopback address; it needs api.token`);
};
