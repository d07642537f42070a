/**
 * A courier on a host of the lab, with a journal that says nothing but grows: `logWriter.ts CLUSTER NODE JOURNAL SERVERS`.
 * On SIGTERM it ships what is left and ends.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { crc32 } from 'node:zlib';
import { NatsBus } from '../../src/bus/natsBus.ts';
import type { LogEvent } from '../../src/bus/logService.ts';
import { bus as busSchema } from '../../src/config/bus.ts';
import { encodeBody, RECORD_VERSION } from '../../src/journal/record.ts';
import { JournalStore } from '../../src/journal/store.ts';

const EVERY_MS = 20;
const CHECKPOINT_EVERY = 500;
const AGAIN_MS = 500;
const LOOK_MS = 50;

const [cluster, node, journalPath, servers] = process.argv.slice(2) as [string, string, string, string];
const parsed = busSchema.parse({ nats: { servers: servers.split(','), replicas: 3 } });
if (parsed === 'memory') throw new Error('not NATS');
const { store } = JournalStore.open(journalPath);
const bus = new NatsBus({ cluster, node, journalPath, nats: parsed.nats });

const leaving = new AbortController();
process.once('SIGTERM', () => leaving.abort());
const last = { written: 0, shipped: 0 };

/** What the thread refuses is offered again, as the courier's machine does. */
const call = (method: string): void => void bus.call('log', method).catch(() => {});
bus.onStatus(({ connected }) => {
  if (connected) call('ship');
});
bus.onEvent('log', (event) => {
  const news = event as LogEvent;
  if (news.type === 'progress') last.shipped = news.shippedSeq ?? last.shipped;
  if (news.type !== 'refused' && news.type !== 'fenced') return;
  console.log(JSON.stringify(news));
  setTimeout(() => call('ship'), AGAIN_MS);
});

const write = (): void => {
  const seq = ++last.written;
  const at = { epoch: 1, time: Date.now() * 1000, mono: seq };
  const body = encodeBody({ event: { payload: 'x'.repeat(seq % 300) }, effects: [] });
  const row = { actor: 'server/web/web1', origin: 'input', type: 'check.passed', state: 'up,ready,warm' } as const;
  store.commit([{ seq, ...at, ...row, cause: null, count: 1, v: RECORD_VERSION, body }], []);
  if (seq % CHECKPOINT_EVERY !== 0) return;
  const actors = encodeBody({ actors: [], timers: [] });
  const part = { seq, part: 0, parts: 1, ...at, v: RECORD_VERSION, body: Uint8Array.from(actors), crc: crc32(actors) };
  store.commit([], [part]);
};

console.log('writes');
while (!leaving.signal.aborted) {
  write();
  call('written');
  await delay(EVERY_MS);
}
while (last.shipped < last.written) await delay(LOOK_MS);
await bus.close();
store.close();
