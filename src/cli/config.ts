/** `understudy config`: what the nodes of a cluster share, pushed, pulled, listed and rolled back through one of them. */
import { hostname, userInfo } from 'node:os';
import type { NodeOutcome, Outcome } from '../cluster/configRollout.ts';
import { formatProblem, readConfigText } from '../config/load.ts';
import { describeRollout } from '../config/revision.ts';
import type { Revision, Rollout } from '../config/revision.ts';
import { OVERLAY, SHARED_TEXT } from '../config/source.ts';
import { UnderstudyError } from '../errors.ts';
import { formatDateTime } from '../time.ts';
import { NodeClient } from './client.ts';
import type { ClientOptions } from './client.ts';
import { print, printJson, progress, table } from './output.ts';

type Options = ClientOptions & { json?: boolean };
type PushOptions = Options & { overlay: string[]; message?: string; requireAll?: boolean; resume?: boolean };

export type HistoryEntry = Omit<Revision, 'text' | 'overlays'> & {
  bytes: number;
  overlays: string[];
  rollout: Rollout | null;
};

/** Under the five minutes after which a request without an answer is given up by Node itself. */
const ROLL_OUT_MS = 280_000;
const LOOK_EVERY_MS = 500;

export const pushCommand = async (file: string | undefined, options: PushOptions): Promise<void> => {
  const { overlay, message = '', requireAll = false, resume = false } = options;
  if (resume) {
    if (file !== undefined || overlay.length > 0)
      throw new UnderstudyError('USAGE', '--resume goes on with what is stored; it takes no file');
    await rollOut('resume', {}, new Map(), options);
    return;
  }
  if (file === undefined) throw new UnderstudyError('USAGE', 'which file? understudy config push FILE');
  const overlays = new Map(overlay.map(overlayOf));
  const files = new Map([
    [SHARED_TEXT, file],
    ...[...overlays].map(([node, name]): [string, string] => [`${OVERLAY} ${node}`, name]),
  ]);
  const texts = [...overlays].map(([node, name]) => [node, name === '' ? '' : readConfigText(name)]);
  const body = {
    author: author(),
    message,
    requireAll,
    text: readConfigText(file),
    overlays: Object.fromEntries(texts) as unknown,
  };
  await rollOut('push', body, files, options);
};

export const rollbackCommand = async (
  revision: number,
  options: Options & { message?: string; requireAll?: boolean },
): Promise<void> => {
  const { message = `rollback to revision ${revision}`, requireAll = false } = options;
  await rollOut('rollback', { author: author(), message, requireAll, revision }, new Map(), options);
};

export const pullCommand = async (options: Options & { revision?: number; node?: string }): Promise<void> => {
  const query = options.revision === undefined ? '' : `?revision=${options.revision}`;
  const revision = await new NodeClient(options).withToken<Revision>('GET', `/api/config${query}`);
  const { node } = options;
  if (options.json === true) {
    printJson(revision);
    return;
  }
  const text = node === undefined ? revision.text : revision.overlays[node];
  if (text === undefined) {
    const known = Object.keys(revision.overlays).join(', ');
    throw new UnderstudyError(
      'NODE_REFUSED',
      `revision ${revision.revision} has no overlay for ${node}; ${known === '' ? 'it has none at all' : `it has some for ${known}`}`,
    );
  }
  process.stdout.write(text);
};

export const historyCommand = async (options: Options): Promise<void> => {
  const { revisions } = await new NodeClient(options).withToken<{ revisions: HistoryEntry[] }>(
    'GET',
    '/api/config/history',
  );
  if (options.json === true) printJson(revisions);
  else if (revisions.length === 0) print('Nothing has been pushed yet.');
  else print(table(['REVISION', 'TIME', 'AUTHOR', 'OVERLAYS', 'STATE', 'MESSAGE'], revisions.map(historyRow)));
};

const historyRow = ({ revision, timeMs, author: by, overlays, rollout, message }: HistoryEntry): string[] => [
  String(revision),
  formatDateTime(timeMs * 1000),
  by,
  overlays.join(', ') || '-',
  rolloutText(rollout),
  message,
];

const rolloutText = (rollout: Rollout | null): string => {
  if (!rollout) return 'stored, never applied';
  const text = describeRollout(rollout).replace(/^revision \d+ (?:is )?/, '');
  const away = Object.entries(rollout.nodes).flatMap(([node, state]) => (state === 'away' ? [node] : []));
  return away.length === 0 ? text : `${text}; away: ${away.join(', ')}`;
};

const author = (): string => `${userInfo().username}@${hostname()}`;

/** `lb1=lb1.yaml`; with nothing behind the sign, the overlay is taken away. */
const overlayOf = (text: string): [node: string, file: string] => {
  const sign = text.indexOf('=');
  if (sign > 0) return [text.slice(0, sign), text.slice(sign + 1)];
  throw new UnderstudyError('USAGE', `${JSON.stringify(text)} is no overlay; allowed are forms like lb1=lb1.yaml`);
};

/** `files`: what the texts are called here, where problems are told of them. */
const rollOut = async (
  what: 'push' | 'rollback' | 'resume',
  body: unknown,
  files: ReadonlyMap<string, string>,
  options: Options,
): Promise<void> => {
  const client = new NodeClient(options);
  const looking = setInterval(() => void look(client), LOOK_EVERY_MS);
  let outcome: Outcome;
  try {
    outcome = await client.withToken<Outcome>('POST', `/api/config/${what}`, body, ROLL_OUT_MS);
  } catch (error) {
    if (!(error instanceof UnderstudyError) || error.code !== 'NODE_UNREACHABLE') throw error;
    const hint = '`config history` tells how far it has come, and `config push --resume` goes on';
    throw new UnderstudyError(error.code, `${error.message}; ${hint}`);
  } finally {
    clearInterval(looking);
    progress('');
  }
  if (options.json === true) printJson(outcome);
  else print(formatOutcome(outcome, files));
  process.exitCode = outcome.outcome === 'done' ? 0 : 1;
};

const look = async (client: NodeClient): Promise<void> => {
  try {
    const { actors } = await client.state();
    progress(actors.find(({ id }) => id === 'rollout')?.state ?? '');
  } catch {
    // The answer to the command itself will tell.
  }
};

const HEADLINES: Record<Outcome['outcome'], (outcome: Outcome) => string> = {
  done: ({ revision }) => `Revision ${revision} is applied.`,
  stopped: ({ revision, nodes, message }) => {
    const at = nodes.find(({ state }) => state === 'failed')?.node;
    return `Revision ${revision} stopped${at === undefined ? `: ${message}` : ` at ${at}`}. The nodes behind it run what they ran.`;
  },
  refused: ({ nodes }) =>
    nodes.some(({ state }) => state === 'problems' || state === 'noAnswer')
      ? 'Nothing was stored: not every node can run it.'
      : 'Nothing was stored: not every node is here.',
  notStored: ({ message }) => `Nothing was stored: ${message}.`,
};

const problemsText = (count: number): string => `${count} problem${count === 1 ? '' : 's'}`;

const STATES: Record<NodeOutcome['state'], string> = {
  right: 'ok',
  problems: 'refused',
  noAnswer: 'no answer',
  away: 'away',
  applied: 'applied',
  waiting: 'waiting',
  failed: 'failed',
};

export const formatOutcome = (outcome: Outcome, files: ReadonlyMap<string, string>): string => {
  const rows = outcome.nodes.map(({ node, state, problems, message }) => [
    node,
    STATES[state],
    state === 'away'
      ? 'takes it when it returns'
      : message || (problems.length > 0 ? problemsText(problems.length) : ''),
  ]);
  const problems = outcome.nodes.flatMap((one) =>
    one.problems.map((problem) => {
      const file = files.get(problem.source ?? '') ?? problem.source ?? '';
      return `${one.node}: ${formatProblem('', { ...problem, source: file })}`;
    }),
  );
  return [HEADLINES[outcome.outcome](outcome), table(['NODE', 'STATE', ''], rows), ...problems].join('\n');
};
