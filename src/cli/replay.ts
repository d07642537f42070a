import { once } from 'node:events';
import { JournalReader } from '../journal/reader.ts';
import { isoTime } from '../journal/view.ts';
import { formatClock, formatDateTime, parseTime } from '../time.ts';
import { Replay } from '../worlds/replay.ts';
import type { Divergence, Replayed } from '../worlds/replay.ts';
import { UnderstudyError } from '../errors.ts';
import { neededJournal } from './clusterSource.ts';
import type { ClusterOptions } from './clusterSource.ts';
import { formatDivergence } from './divergence.ts';
import { bold, dim, print, printJson, red, table } from './output.ts';

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
