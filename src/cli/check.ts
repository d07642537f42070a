import { configJsonSchema, formatProblem, loadConfigFile } from '../config/load.ts';
import { UnderstudyError } from '../errors.ts';
import { print, printJson } from './output.ts';

export const checkCommand = (file: string | undefined, options: { schema?: boolean; json?: boolean }): void => {
  if (options.schema === true) {
    printJson(configJsonSchema());
    return;
  }
  if (file === undefined) throw new UnderstudyError('USAGE', 'which configuration? understudy check CONFIG');
  const loaded = loadConfigFile(file, process.env);
  const problems = 'problems' in loaded ? loaded.problems : [];
  if (options.json === true) printJson({ valid: problems.length === 0, problems });
  else if ('config' in loaded) {
    const { frontends, backends } = loaded.config;
    const servers = Object.values(backends).reduce((sum, backend) => sum + backend.servers.length, 0);
    print(
      `${file} is valid: ${count(Object.keys(frontends).length, 'frontend')}, ${count(Object.keys(backends).length, 'backend')}, ${count(servers, 'server')}`,
    );
  } else for (const problem of problems) print(formatProblem(file, problem));
  process.exitCode = problems.length === 0 ? 0 : 1;
};

const count = (number: number, noun: string): string => `${number} ${noun}${number === 1 ? '' : 's'}`;
