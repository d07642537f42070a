import { dirname, resolve } from 'node:path';
import { configJsonSchema, formatProblem, loadConfigFile, loadLayers, readConfigText } from '../config/load.ts';
import type { Loaded } from '../config/load.ts';
import { loadOwnPart, wantsShared } from '../config/ownPart.ts';
import { UnderstudyError } from '../errors.ts';
import { print, printJson } from './output.ts';

type Options = { schema?: boolean; shared?: string; overlay?: string; json?: boolean };

export const checkCommand = (file: string | undefined, options: Options): void => {
  if (options.schema === true) {
    printJson(configJsonSchema());
    return;
  }
  if (file === undefined) throw new UnderstudyError('USAGE', 'which configuration? understudy check CONFIG');
  const { loaded, isPart } = load(file, options);
  const problems = 'problems' in loaded ? loaded.problems : [];
  if (options.json === true) printJson({ valid: problems.length === 0, problems, ...(isPart ? { part: true } : {}) });
  else if ('config' in loaded) {
    const { frontends, backends } = loaded.config;
    const servers = Object.values(backends).reduce((sum, backend) => sum + backend.servers.length, 0);
    print(
      isPart
        ? `${file} is valid by itself; with --shared FILE it is checked over what the cluster shares`
        : `${file} is valid: ${count(Object.keys(frontends).length, 'frontend')}, ${count(Object.keys(backends).length, 'backend')}, ${count(servers, 'server')}`,
    );
  } else for (const problem of problems) print(formatProblem(file, problem));
  process.exitCode = problems.length === 0 ? 0 : 1;
};

/** `isPart`: it stands over a shared configuration that isn't known here. */
const load = (file: string, { shared, overlay }: Options): { loaded: Loaded; isPart: boolean } => {
  const text = readConfigText(file);
  const folder = dirname(resolve(file));
  if (shared === undefined) {
    if (overlay !== undefined)
      throw new UnderstudyError('USAGE', 'an overlay stands over a shared text: --shared FILE');
    if (wantsShared(text)) return { loaded: loadOwnPart(text, process.env, folder), isPart: true };
    return { loaded: loadConfigFile(file, process.env), isPart: false };
  }
  if (!wantsShared(text))
    throw new UnderstudyError('USAGE', `${file} doesn't say \`shared: true\`: it stands by itself`);
  const below = [shared, ...(overlay === undefined ? [] : [overlay])];
  const layers = below.map((name) => ({ source: name, text: readConfigText(name) }));
  return { loaded: loadLayers([...layers, { source: null, text }], process.env, folder), isPart: false };
};

const count = (number: number, noun: string): string => `${number} ${noun}${number === 1 ? '' : 's'}`;
