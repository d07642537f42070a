/**
 * How fast a node that returns after hours ships its journal: a real node, started on a journal that is full already. Its
 * references are bare publishes of the very same messages.
 */
import assert from 'node:assert/strict';
import { copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { headOf, sentUsOf } from '../../src/bus/logFormat.ts';
import { SystemClock } from '../../src/clock.ts';
import { Journal } from '../../src/journal/journal.ts';
import { SoakNode } from '../soak/node.ts';
import { checkFor, inTurns, SERVERS, systemOn } from './backendServers.ts';
import type { BenchNats } from './clusterNats.ts';

const NODE = 'lb1';
const IN_FLIGHT = 64;
const LOOK_EVERY_MS = 50;
const LONGEST_MS = 120_000;

/** Records a second. */
export type Shipping = { shipped: number[]; oneInFlight: number[]; manyInFlight: number[]; bytesPerMessage: number[] };

const fillJournal = async (path: string, events: number): Promise<number> => {
  const clock = new SystemClock();
  const retention = { keepMs: 1e12, maxBytes: 1e15 };
  const journal = await Journal.open({ path, retention, clock, maxUnwrittenRows: 2 * events });
  journal.note('node.started', {});
  const system = systemOn(clock, journal);
  journal.attach(system, () => {});
  await inTurns(events, (index) => system.send(`server/web/s${index % SERVERS}`, checkFor(index, 'flapping')));
  journal.closeRuns();
  await journal.written();
  const { lastSeq } = journal.status();
  await journal.close();
  return lastSeq;
};

const shipOnce = async (nats: BenchNats, servers: string[], cluster: string, journal: string, records: number) => {
  const config = { cluster, node: NODE, bus: { nats: { servers } }, journal: { path: journal }, workers: 1 };
  const node = await SoakNode.start({ config });
  try {
    const endsAt = performance.now() + LONGEST_MS;
    while ((await nats.shippedSeq(cluster, NODE)) < records) {
      assert(performance.now() < endsAt, `${records} records were not shipped within ${LONGEST_MS} ms`);
      await delay(LOOK_EVERY_MS);
    }
    const messages = await nats.messages(cluster, ({ headers }) => (headOf(headers)?.last ?? 0) >= records);
    const beganUs = sentUsOf(messages[0]!.headers)!;
    const endedUs = messages.at(-1)!.info.timestampNanos / 1_000;
    return { perSecond: (records / (endedUs - beganUs)) * 1e6, bodies: messages.map(({ data }) => data) };
  } finally {
    await node.end();
    await nats.forget(cluster);
  }
};

export const measureShipping = async (
  nats: BenchNats,
  servers: string[],
  { events, runs }: { events: number; runs: number },
): Promise<Shipping> => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-bench-'));
  const shipping: Shipping = { shipped: [], oneInFlight: [], manyInFlight: [], bytesPerMessage: [] };
  try {
    const full = join(folder, 'full.db');
    const records = await fillJournal(full, events);
    for (let run = 0; run < runs; run++) {
      const journal = join(folder, `run${run}.db`);
      copyFileSync(full, journal);
      const { perSecond, bodies } = await shipOnce(nats, servers, `shipping${run}`, journal, records);
      shipping.shipped.push(perSecond);
      shipping.bytesPerMessage.push(...bodies.map(({ length }) => length));
      shipping.oneInFlight.push((records / (await nats.publishBare(bodies, 1)).allMs) * 1_000);
      shipping.manyInFlight.push((records / (await nats.publishBare(bodies, IN_FLIGHT)).allMs) * 1_000);
    }
    return shipping;
  } finally {
    rmSync(folder, { recursive: true });
  }
};
