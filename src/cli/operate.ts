import { UnderstudyError } from '../errors.ts';
import type { ClusterAnswer } from '../cluster/clusterCommands.ts';
import type { CommandResult, ReloadResult } from '../node.ts';
import { NodeClient } from './client.ts';
import type { ClientOptions } from './client.ts';
import { allDidIt, formatAnswers, isClusterAnswer, unrecordedOn } from './clusterAnswers.ts';
import { print, printJson, warn } from './output.ts';

type Options = ClientOptions & { json?: boolean };
/** To one node of a cluster only: the one that is asked, or for a router the one that is named. */
type ServerOptions = Options & { local?: boolean };
type RouterOptions = Options & { node?: string };

const scopeOf = ({ local }: ServerOptions) => (local === true ? { scope: 'local' } : {});

/** One command for one server. It is acknowledged when it is on disk; if the disk refuses it, exit status 3 says so. */
export const operate = async (
  type: string,
  target: string,
  options: ServerOptions,
  params: Record<string, unknown> = {},
): Promise<void> => {
  const match = /^([^/]+)\/([^/]+)$/.exec(target);
  if (!match)
    throw new UnderstudyError('USAGE', `${JSON.stringify(target)} is not a server; allowed are forms like web/web1`);
  const [, pool, server] = match;
  const command = { type, pool, server, ...params, ...scopeOf(options) };
  const result = (await new NodeClient(options).command(command)) as CommandResult;
  if (isClusterAnswer(result)) {
    showAnswers(result, type, options);
    return;
  }
  if (options.json === true) printJson(result);
  else {
    const change = result.before === result.after ? `is ${result.after}` : `${result.before} → ${result.after}`;
    print(`${result.actor}: ${change}`);
    if (type === 'server.drain' && result.after.includes('maintenance')) {
      print('It is in maintenance, which stands over drain; `server ready` ends it.');
    }
  }
  notRecorded(result.recorded);
};

/** One command for one router: `demote` lets another node be master, `promote` takes that back, or takes over. */
export const operateRouter = async (type: string, router: string, options: RouterOptions): Promise<void> => {
  const node = options.node === undefined ? {} : { node: options.node };
  const result = (await new NodeClient(options).command({ type, router, ...node })) as CommandResult;
  if (isClusterAnswer(result)) {
    showAnswers(result, type, options);
    return;
  }
  if (options.json === true) printJson(result);
  else {
    const [before, after] = [result.before, result.after].map((state) => state.split('.')[0]!.toUpperCase());
    print(`${result.actor}: ${before === after ? `is ${after}` : `${before} → ${after}`}`);
  }
  notRecorded(result.recorded);
};

export const reloadCommand = async (options: ServerOptions): Promise<void> => {
  const result = (await new NodeClient(options).command({ type: 'reload', ...scopeOf(options) })) as ReloadResult;
  if (isClusterAnswer(result)) {
    showAnswers(result, 'reload', options);
    return;
  }
  if (options.json === true) printJson(result);
  else print(describe(result));
  notRecorded(result.recorded);
};

const showAnswers = (answer: ClusterAnswer, type: string, { json }: Options): void => {
  if (json === true) printJson(answer);
  else print(formatAnswers(answer, type));
  if (!allDidIt(answer)) process.exitCode = 1;
  const unrecorded = unrecordedOn(answer);
  if (unrecorded.length > 0) notRecorded(false, ` on ${unrecorded.join(', ')}`);
};

const describe = ({ added, removed, changed, replaced, needRestart }: ReloadResult): string => {
  const lines = [
    ...added.map((id) => `+ ${id}`),
    ...removed.map((id) => `- ${id}`),
    ...replaced.map((id) => `± ${id} (replaced)`),
    ...changed.map((id) => `~ ${id}`),
    ...needRestart.map((key) => `! ${key} takes effect at the next start`),
  ];
  return lines.length === 0 ? 'reloaded; no actor changed' : `reloaded\n${lines.join('\n')}`;
};

const notRecorded = (recorded: boolean, where = ''): void => {
  if (recorded) return;
  warn(`understudy: done, but not on disk yet${where}: the journal can’t be written. A restart now would forget it.`);
  process.exitCode = 3;
};
