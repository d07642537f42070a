/** Answers queries of the API on a thread of its own: however much a query has to look through, the loop goes on. */
import assert from 'node:assert/strict';
import { parentPort, workerData } from 'node:worker_threads';
import { codeOf, messageOf, UnderstudyError } from '../errors.ts';
import { decodedSteps, JournalReader } from './reader.ts';
import type { RowFilter } from './reader.ts';
import type { ReaderRequest, ReaderAnswer } from './queries.ts';
import { viewOf } from './view.ts';
import type { RecordView } from './view.ts';
import { takeUsualPriority } from '../threads.ts';

takeUsualPriority();
const port = parentPort;
assert(port, 'the journal reader runs as a worker thread');
const { path } = workerData as { path: string };

const read = (filter: RowFilter): RecordView[] => {
  const reader = new JournalReader(path);
  try {
    const views: RecordView[] = [];
    for (const row of reader.rows(filter)) views.push(viewOf(row, decodedSteps(row)));
    return views;
  } finally {
    reader.close();
  }
};

port.on('message', ({ id, filter }: ReaderRequest) => {
  let answer: ReaderAnswer;
  try {
    answer = { id, records: read(filter) };
  } catch (error) {
    const code = error instanceof UnderstudyError ? error.code : codeOf(error);
    answer = { id, code, message: messageOf(error) };
  }
  port.postMessage(answer);
});
