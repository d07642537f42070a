import { JournalReader } from '../journal/reader.ts';
import { formatClock, parseTime } from '../time.ts';
import { explain } from '../worlds/explain.ts';
import type { Explanation } from '../worlds/explain.ts';
import { NodeClient } from './client.ts';
import type { ClientOptions } from './client.ts';
import { clusterJournal } from './clusterSource.ts';
import type { ClusterOptions } from './clusterSource.ts';
import { journalPath } from './journalPath.ts';
import { bold, dim, print, printJson, warn } from './output.ts';

type Options = ClientOptions & ClusterOptions & { at?: string; json?: boolean };

export const explainCommand = async (actor: string, named: string | undefined, options: Options): Promise<void> => {
  const journal = (await clusterJournal(named, options)) ?? undefined;
  // A running node writes open runs of this actor first, so that the answer reaches up to now.
  if (journal === undefined) {
    const client = new NodeClient(options);
    await client.flush(actor);
    const { failure } = (await client.state()).journal;
    if (failure) warn(`understudy: the journal can't be written at the moment (${failure.message}): this may be old`);
  }
  const reader = new JournalReader(await journalPath(journal, options));
  const atUs = options.at === undefined ? undefined : parseTime(options.at, Date.now() * 1000);
  const explanation = explain(reader, actor, atUs ?? (journal === undefined ? Date.now() * 1000 : undefined));
  reader.close();
  if (options.json === true) printJson(explanation);
  else print(formatExplanation(explanation));
};

export const formatExplanation = ({ headline, sentences, remarks }: Explanation): string =>
  [
    bold(headline),
    '',
    ...sentences.map(({ timeUs, seq, text }) =>
      /^[→←]/.test(text) ? `${' '.repeat(12)}    ${text}` : `${formatClock(timeUs)}    ${text}${dim(`  [${seq}]`)}`,
    ),
    ...(remarks.length > 0 ? ['', ...remarks] : []),
  ].join('\n');
