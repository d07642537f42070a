import { existsSync } from 'node:fs';
import { UnderstudyError } from '../errors.ts';
import { NodeClient } from './client.ts';
import type { ClientOptions } from './client.ts';

/** The journal that was named, or that of the node which runs on this machine. */
export const journalPath = async (named: string | undefined, options: ClientOptions): Promise<string> => {
  if (named !== undefined) return named;
  const { journal } = await new NodeClient(options).state();
  if (existsSync(journal.path)) return journal.path;
  throw new UnderstudyError(
    'JOURNAL_UNREADABLE',
    `the node's journal ${journal.path} is not on this machine; name a journal`,
  );
};
