import { Worker } from 'node:worker_threads';
import type { ErrorCode } from '../errors.ts';
import { UnderstudyError } from '../errors.ts';
import { threadFile } from '../threads.ts';
import type { RowFilter } from './reader.ts';
import type { RecordView } from './view.ts';

export type ReaderRequest = { id: number; filter: RowFilter };
export type ReaderAnswer = { id: number; records: RecordView[] } | { id: number; code: string; message: string };

type Waiting = { done(records: RecordView[]): void; refuse(error: Error): void };

/** Queries of a journal by a running node. The thread is started by the first one. */
export class JournalQueries {
  #path: string;
  #thread: Worker | null = null;
  #waiting = new Map<number, Waiting>();
  #id = 0;

  constructor(path: string) {
    this.#path = path;
  }

  /** @throws UnderstudyError JOURNAL_UNREADABLE, RECORD_UNREADABLE */
  records(filter: RowFilter): Promise<RecordView[]> {
    const thread = (this.#thread ??= this.#start());
    const id = ++this.#id;
    return new Promise((done, refuse) => {
      this.#waiting.set(id, { done, refuse });
      thread.postMessage({ id, filter } satisfies ReaderRequest);
    });
  }

  async close(): Promise<void> {
    await this.#thread?.terminate();
  }

  #start(): Worker {
    const thread = new Worker(threadFile('readerThread', import.meta.url), { workerData: { path: this.#path } });
    thread.on('message', (answer: ReaderAnswer) => {
      const waiting = this.#waiting.get(answer.id);
      this.#waiting.delete(answer.id);
      if ('records' in answer) waiting?.done(answer.records);
      else waiting?.refuse(new UnderstudyError(answer.code as ErrorCode, answer.message));
    });
    const failAll = () => {
      this.#thread = null;
      for (const { refuse } of this.#waiting.values()) {
        refuse(new UnderstudyError('JOURNAL_UNREADABLE', 'the journal reader ended'));
      }
      this.#waiting.clear();
    };
    thread.on('error', failAll);
    thread.on('exit', failAll);
    return thread;
  }
}
