/**
 * The journal's own thread: commits what it is sent, answers with the seq that is on disk, or with why it failed. It
 * keeps nothing that it could not write: the sender does, and sends it again.
 */
import { parentPort, workerData } from 'node:worker_threads';
import assert from 'node:assert/strict';
import { codeOf, messageOf, UnderstudyError } from '../errors.ts';
import { JournalStore } from './store.ts';
import type { CheckpointPart, Retention } from './store.ts';
import { unpackRows } from './record.ts';
import { takeUsualPriority } from '../threads.ts';

export type WriterData = { path: string; retention: Retention };

/** `again`: the first message after a failure; whatever was under way before it is to be forgotten. */
export type ToWriter =
  | { kind: 'batch'; id: number; rows: Uint8Array; parts: CheckpointPart[]; again: boolean }
  | { kind: 'retention'; retention: Retention }
  | { kind: 'close' };

export type FromWriter =
  | { kind: 'opened'; seq: number; epoch: number; identity: string; aside: { path: string; message: string } | null }
  | { kind: 'unusable'; code: string; message: string }
  | { kind: 'committed'; id: number; usedBytes: number }
  | { kind: 'failed'; id: number; code: string; message: string }
  | { kind: 'closed' };

/** Retention is looked at this often; a purge then goes on in chunks between the commits. */
const PURGE_EVERY_MS = 60_000;

takeUsualPriority();
const port = parentPort;
assert(port, 'the journal writer runs as a worker thread');
const say = (message: FromWriter) => port.postMessage(message);

let { retention } = workerData as WriterData;
const { path } = workerData as WriterData;

type Batch = Extract<ToWriter, { kind: 'batch' }>;
let waiting: Batch[] = [];
let failing = false;

const commitWaiting = (store: JournalStore): void => {
  const batches = waiting;
  waiting = [];
  const last = batches.at(-1);
  if (!last) return;
  try {
    store.commit(
      batches.flatMap((batch) => unpackRows(batch.rows)),
      batches.flatMap((batch) => batch.parts),
    );
    failing = false;
    say({ kind: 'committed', id: last.id, usedBytes: store.usedBytes() });
  } catch (error) {
    failing = true;
    say({ kind: 'failed', id: batches[0]!.id, code: codeOf(error), message: messageOf(error) });
  }
};

const purge = (store: JournalStore): void => {
  if (failing) return;
  try {
    if (store.purge(retention, Date.now() * 1000)) setImmediate(() => purge(store));
  } catch (error) {
    // A purge that fails for want of room is tried again in a minute; writing has its own way of failing.
    say({ kind: 'failed', id: 0, code: codeOf(error), message: `purge: ${messageOf(error)}` });
  }
};

const serve = (store: JournalStore): void => {
  const purging = setInterval(() => purge(store), PURGE_EVERY_MS);
  port.on('message', (message: ToWriter) => {
    switch (message.kind) {
      case 'retention':
        ({ retention } = message);
        purge(store);
        return;
      case 'close':
        commitWaiting(store);
        clearInterval(purging);
        store.close();
        say({ kind: 'closed' });
        port.close();
        return;
      case 'batch':
        if (failing && !message.again) return;
        if (message.again) {
          failing = false;
          waiting = [];
        }
        waiting.push(message);
        // All that has arrived by the end of this turn goes into one transaction.
        if (waiting.length === 1) setImmediate(() => commitWaiting(store));
    }
  });
};

try {
  const { store, aside } = JournalStore.open(path);
  serve(store);
  say({ kind: 'opened', ...store.last(), identity: store.identity(), aside });
} catch (error) {
  const code = error instanceof UnderstudyError ? error.code : codeOf(error);
  say({ kind: 'unusable', code, message: messageOf(error) });
}
