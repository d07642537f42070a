import { setTimeout as delay } from 'node:timers/promises';
import { UnderstudyError } from '../errors.ts';
import { decodedSteps, JournalReader } from '../journal/reader.ts';
import type { RowFilter } from '../journal/reader.ts';
import type { Row } from '../journal/record.ts';
import { viewOf } from '../journal/view.ts';
import type { RecordView } from '../journal/view.ts';
import { formatClock, formatDateTime, formatSpan, parseTime } from '../time.ts';
import { journalPath } from './journalPath.ts';
import type { ClientOptions } from './client.ts';
import type { ClusterOptions } from './clusterSource.ts';
import { dim, print } from './output.ts';

type Options = ClientOptions &
  ClusterOptions & {
    follow?: boolean;
    actor?: string;
    type?: string;
    since?: string;
    until?: string;
    limit?: number;
    json?: boolean;
  };

/** A followed journal is looked at this often. */
const FOLLOW_EVERY_MS = 200;

export const logCommand = async (journal: string | undefined, options: Options): Promise<void> => {
  const nowUs = Date.now() * 1000;
  const filter: RowFilter = {
    ...(options.actor === undefined ? {} : { actor: options.actor }),
    ...(options.type === undefined ? {} : { type: options.type }),
    ...(options.since === undefined ? {} : { since: parseTime(options.since, nowUs) }),
    ...(options.until === undefined ? {} : { until: parseTime(options.until, nowUs) }),
  };
  if (options.cluster !== undefined) {
    if (journal !== undefined)
      throw new UnderstudyError('USAGE', 'a journal and --cluster: only one of them can be listed');
    const { logCluster } = await import('./logCluster.ts');
    return logCluster(options, filter);
  }
  const reader = new JournalReader(await journalPath(journal, options));
  let fromSeq = 0;
  const show = (row: Row) => {
    const view = viewOf(row, decodedSteps(row));
    print(options.json === true ? JSON.stringify(view) : formatRecord(view, row));
    fromSeq = row.seq + 1;
  };
  if (options.limit === undefined) for (const row of reader.rows(filter)) show(row);
  else
    for (const row of [...reader.rows({ ...filter, limit: options.limit, newestFirst: true })].toReversed()) show(row);
  while (options.follow === true) {
    await delay(FOLLOW_EVERY_MS);
    for (const row of reader.rows({ ...filter, fromSeq })) show(row);
  }
  reader.close();
};

let lastDay = '';

/** `node` is the column that tells records of several nodes apart. */
export const formatRecord = (view: RecordView, row: Row, node = ''): string => {
  const day = formatDateTime(view.timeUs).slice(0, 10);
  const header = day === lastDay ? '' : `${dim(`— ${day} —`)}\n`;
  lastDay = day;
  const times = row.count > 1 ? ` ×${row.count}` : '';
  const state = view.state === '' ? '' : ` → ${view.state}`;
  const cause = view.cause === null ? '' : dim(` ⇐ ${view.cause}`);
  const from = view.from === null ? '' : dim(` from ${view.from}`);
  return `${header}${node}${String(view.seq).padStart(6)}  ${formatClock(view.timeUs)}  ${view.actor}  ${row.type}${times}${payloadText(view.event)}${state}${from}${cause}`;
};

const payloadText = (event: Record<string, unknown>): string => {
  const parts = Object.entries(event)
    .filter(([, value]) => value !== '' && value !== null && typeof value !== 'object')
    .map(([key, value]) =>
      key === 'durationMs'
        ? formatSpan(Number(value) * 1000)
        : key === 'code' || key === 'message'
          ? String(value)
          : `${key} ${String(value)}`,
    );
  return parts.length === 0 ? '' : ` (${parts.join(', ')})`;
};
