/** The journal's thread dies under it: a new one takes its place, and nothing is lost or written twice. */
import { mkdirSync, renameSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { afterEach, expect, test, vi } from 'vitest';
import type { JournalTrouble } from '../src/journal/journal.ts';
import { entryOf, makeFolder, openJournal, withReader } from './journalHelpers.ts';

const started: Worker[] = [];

vi.mock('node:worker_threads', async (original) => {
  const module = await original<{ Worker: typeof Worker }>();
  return {
    ...module,
    Worker: class extends module.Worker {
      constructor(...given: ConstructorParameters<typeof Worker>) {
        super(...given);
        started.push(this);
      }
    },
  };
});

afterEach(() => {
  started.length = 0;
});

const changing = (index: number) =>
  entryOf({ monoUs: index, event: { type: 'check.failed', n: index } as { type: string } });

const hear = (journal: Awaited<ReturnType<typeof openJournal>>) => {
  const troubles: JournalTrouble[] = [];
  let wake = () => {};
  journal.attach({ size: 0, frozen: () => [], pendingTimers: () => [] }, (trouble) => {
    troubles.push(trouble);
    wake();
  });
  const heard = (type: string) =>
    new Promise<void>((done) => {
      wake = () => {
        if (troubles.some((trouble) => trouble.type === type)) done();
      };
      wake();
    });
  return { troubles, heard };
};

test('a writer that dies with rows on their way: all are written once, in order', async () => {
  const path = `${makeFolder()}/lb1.db`;
  const journal = await openJournal({ path });
  const { troubles, heard } = hear(journal);
  for (let index = 0; index < 500; index++) journal.append(changing(index));
  void journal.written();
  await started[0]!.terminate();
  for (let index = 500; index < 600; index++) journal.append(changing(index));
  await heard('journal.resumed');
  expect(await journal.written()).toBe(true);
  await journal.close();
  expect(troubles.map(({ type }) => type)).toEqual(['journal.failed', 'journal.resumed']);
  expect(withReader(path, (reader) => [...reader.rows()].map(({ seq }) => seq))).toEqual(
    Array.from({ length: 600 }, (_, index) => index + 1),
  );
});

test('a writer that can’t come back is not started again in a hot loop', async () => {
  const folder = makeFolder();
  mkdirSync(`${folder}/data`);
  const path = `${folder}/data/lb1.db`;
  const journal = await openJournal({ path });
  const { heard } = hear(journal);
  journal.append(changing(1));
  await journal.written();
  renameSync(`${folder}/data`, `${folder}/away`);
  const failed = heard('journal.failed');
  await started[0]!.terminate();
  await failed;
  // Time itself is what is looked at: retries are to be half a second apart.
  await new Promise((done) => setTimeout(done, 2000));
  const starts = started.length;
  renameSync(`${folder}/away`, `${folder}/data`);
  await heard('journal.resumed');
  await journal.close();
  expect(starts).toBeLessThanOrEqual(6);
});
