import { setTimeout as delay } from 'node:timers/promises';
import { UnderstudyError } from '../errors.ts';
import { decodedSteps, JournalReader } from '../journal/reader.ts';
import type { RowFilter } from '../journal/reader.ts';
import type { Row } from '../journal/record.ts';
import { viewOf } from '../journal/view.ts';
import { parseTime } from '../time.ts';
import { journalPath } from './journalPath.ts';
import type { ClientOptions } from './client.ts';
import type { ClusterOptions } from './clusterSource.ts';
import { print } from './output.ts';
import { formatRecord } from './recordText.ts';

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
