import { once } from 'node:events';
import { JournalReader } from '../journal/reader.ts';
import { machineHashes } from '../fingerprint.ts';
import { isoTime } from '../journal/view.ts';
import { formatClock, formatDateTime, parseTime } from '../time.ts';
import { Replay, verify } from '../worlds/replay.ts';
import type { Divergence, Replayed } from '../worlds/replay.ts';
import { UnderstudyError } from '../errors.ts';
import { neededJournal } from './clusterSource.ts';
import type { ClusterOptions } from './clusterSource.ts';
import { bold, dim, green, print, printJson, progress, red, table, warn } from './output.ts';

type ReplayOptions = ClusterOptions & { until?: string; actor?: string; step?: boolean; json?: boolean };

export const replayCommand = async (journal: string | undefined, options: ReplayOptions): Promise<void> => {
  const reader = new JournalReader(await neededJournal(journal, options));
  const untilUs = options.until === undefined ? undefined : parseTime(options.until, Math.max(Date.now() * 1000, 0));
  const replay = new Replay(reader);
  const transitions: Replayed[] = [];
  let divergence: Divergence | null = null;
  for (const replayed of replay.run(untilUs === undefined ? {} : { untilUs })) {
    divergence ??= replayed.divergence;
    if (!replayed.changed) continue;
    if (options.actor !== undefined && replayed.step.actor !== options.actor) continue;
    if (options.json === true) transitions.push(replayed);
    else print(transitionLine(replayed));
    if (options.step === true && !(await nextKey())) break;
  }
  reader.close();
  if (divergence) process.exitCode = 1;
  const actors = [...replay.actors.values()].map(({ id, machine, state, sinceUs, bySeq }) => ({
    id,
    machine,
    state,
    since: isoTime(sinceUs),
    seq: bySeq,
  }));
  if (options.json === true) {
    printJson({
      transitions: transitions.map(({ step, before, after }) => ({
        seq: step.seq,
        time: isoTime(step.wallUs),
        actor: step.actor,
        event: step.event,
        before,
        after,
        cause: step.cause,
      })),
      actors,
      gaps: replay.gaps,
      divergence,
    });
    return;
  }
  print('');
  print(bold(`State at ${untilUs === undefined ? 'the end of the journal' : formatDateTime(untilUs)}`));
  print(
    table(
      ['ACTOR', 'STATE', 'SINCE', 'BY RECORD'],
      actors.map(({ id, state, since, seq }) => [id, state, formatDateTime(Date.parse(since) * 1000), String(seq)]),
    ),
  );
  if (divergence) print(red(formatDivergence(divergence)));
};

const transitionLine = ({ step, before, after }: Replayed): string => {
  const { type, ...payload } = step.event;
  const details = ['code', 'message']
    .map((key) => payload[key])
    .filter((value) => typeof value === 'string' && value !== '');
  const detail = details.length === 0 ? '' : dim(` (${details.join(' ')})`);
  return `${String(step.seq).padStart(6)}  ${formatClock(step.wallUs)}  ${step.actor}  ${type}${detail}: ${before ?? 'start'} → ${after}`;
};

/** Space or return goes on, q ends. Without a terminal there is nobody to wait for. */
const nextKey = async (): Promise<boolean> => {
  if (!process.stdin.isTTY) throw new UnderstudyError('USAGE', '--step needs a terminal');
  process.stdin.setRawMode(true);
  process.stdin.resume();
  const [key] = (await once(process.stdin, 'data')) as [Buffer];
  process.stdin.setRawMode(false);
  process.stdin.pause();
  return !['q', '\u0003'].includes(key.toString());
};

type VerifyOptions = ClusterOptions & { json?: boolean };

export const verifyCommand = async (named: string | undefined, options: VerifyOptions): Promise<void> => {
  if (named === undefined && options.cluster !== undefined) {
    const { verifyCluster } = await import('./verifyCluster.ts');
    return verifyCluster(options);
  }
  const journal = await neededJournal(named, options);
  const reader = new JournalReader(journal);
  progress(`verifying ${journal}`);
  let result: ReturnType<typeof verify>;
  try {
    result = verify(reader);
  } catch (error) {
    if (!(error instanceof UnderstudyError) || error.code !== 'RECORD_UNREADABLE') throw error;
    if (options.json === true) printJson({ ok: false, unreadable: error.message, divergence: null });
    else print(red(`${journal}: ${error.message}`));
    process.exitCode = 1;
    return;
  } finally {
    progress('');
  }
  const { divergence } = result;
  const otherMachines = differingMachines(reader);
  reader.close();
  process.exitCode = divergence ? 1 : 0;
  if (options.json === true) {
    printJson({ ok: divergence === null, ...result, otherMachines });
    return;
  }
  if (otherMachines.length > 0) warn(`recorded with another version of ${otherMachines.join(', ')}`);
  for (const gap of result.gaps) {
    const rest =
      gap.resumedAt === null ? 'nothing after it could be decided' : `decided again from record ${gap.resumedAt}`;
    print(`gap: records ${gap.from}–${gap.through} were not kept; ${rest}`);
  }
  if (divergence) print(red(formatDivergence(divergence)));
  else {
    print(
      green(
        `${journal}: ${result.events} events in ${result.rows} records were decided again the same way (${result.checkpoints} checkpoints compared)`,
      ),
    );
  }
};

export const formatDivergence = ({ seq, actor, timeUs, event, what, recorded, decided }: Divergence): string =>
  [
    `first divergence: record ${seq}, ${actor}, ${event}, at ${formatDateTime(timeUs)}: ${what}`,
    `  recorded: ${JSON.stringify(recorded)}`,
    `  decided:  ${JSON.stringify(decided)}`,
  ].join('\n');

export const differingMachines = (reader: JournalReader): string[] => {
  const differing = new Set<string>();
  const current = machineHashes();
  for (const step of reader.steps({ actor: 'node', type: 'node.started' })) {
    for (const [name, hash] of Object.entries((step.event['machines'] ?? {}) as Record<string, string>)) {
      if (current[name] !== hash) differing.add(name);
    }
  }
  return [...differing];
};
