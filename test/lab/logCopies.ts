/**
 * Seeded faults of three nats-servers while three couriers ship: `node test/lab/logCopies.ts [COUNT] [SEED]` (`npm run
 * soak:log`: sixty); a short form is among the tests. Takes root. Without routers and traffic a fault is over in four
 * seconds, so that many can be tried, among them the loss of two servers, and so of the stream's quorum.
 *
 * At the end the cluster log has every record: in each copy exactly once and in order; where nats-server lets copies drift
 * apart, in all of them together, and so for whoever reads it. Where one copy alone differs, the runbook's cure mends it.
 */
import assert from 'node:assert/strict';
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { seededRandom } from '../../actors/random.ts';
import { ClusterLab } from '../../deploy/lab/cluster.ts';
import { openDoor } from '../../deploy/lab/door.ts';
import { Lab } from '../../deploy/lab/lab.ts';
import type { LabProcess } from '../../deploy/lab/process.ts';
import { until } from '../../deploy/lab/until.ts';
import { ClusterLog } from '../../src/bus/clusterLog.ts';
import { assertShipped, ShippedLog } from './clusterLog.ts';
import type { CopyDrift } from './clusterLog.ts';
import { CLUSTER, lastLines } from './clusterStage.ts';

const writer = join(import.meta.dirname, 'logWriter.ts');
const KINDS = ['killed', 'stopped', 'cut off'] as const;
type Kind = (typeof KINDS)[number];

const LONGEST_HOLD_MS = 3_000;
/** Records are written between one fault and the next. */
const CALM_MS = 500;
/** One in so many takes two servers, one a moment after the other. */
const TWO_AT_ONCE = 3;
const READY_MS = 60_000;
const CLIENTS = 4222;

export type LogCopiesResult = { seed: number; faults: number; records: number; drifts: CopyDrift[] };

const harm = async (cluster: ClusterLab, kind: Kind, name: string): Promise<void> => {
  const nats = cluster.natsOf(name);
  if (kind === 'killed') await nats.end('SIGKILL');
  else if (kind === 'stopped') nats.running.signal('SIGSTOP');
  else await nats.host.cut();
};

const mend = async (cluster: ClusterLab, kind: Kind, name: string): Promise<void> => {
  const nats = cluster.natsOf(name);
  if (kind === 'killed') await nats.run();
  else if (kind === 'stopped') nats.running.signal('SIGCONT');
  else await nats.host.heal();
};

/** As the runbook has it. */
const cure = async (cluster: ClusterLab, name: string): Promise<void> => {
  const nats = cluster.natsOf(name);
  await nats.end();
  rmSync(join(nats.folder, 'jetstream'), { recursive: true });
  await nats.run();
  await nats.untilReady(READY_MS);
};

/** Throws at the first thing that is wrong. */
export const shipThroughFaults = async (
  lab: Lab,
  count: number,
  seed: number,
  say: (line: string) => void,
): Promise<LogCopiesResult> => {
  const random = seededRandom(seed);
  const pick = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)]!;
  const cluster = await ClusterLab.withoutNodes({ lab, servers: 0 });
  const { hosts, nats } = cluster;
  const untilReady = () => Promise.all(nats.map((server) => server.untilReady(READY_MS)));
  await Promise.all(nats.map((server) => server.run()));
  await untilReady();
  const journals = new Map(hosts.map(({ name, folder }) => [name, join(folder, `${name}.db`)]));
  const couriers: LabProcess[] = await Promise.all(
    hosts.map((host) =>
      host.spawn(process.execPath, [writer, CLUSTER, host.name, journals.get(host.name)!, cluster.urls.join(',')]),
    ),
  );
  await Promise.all(couriers.map((courier) => courier.waitFor(/^writes/)));
  for (let fault = 1; fault <= count; fault++) {
    const victims = hosts.map(({ name }) => name).toSorted(() => random() - 0.5);
    const faults = victims.slice(0, random() < 1 / TWO_AT_ONCE ? 2 : 1).map((name) => ({ name, kind: pick(KINDS) }));
    for (const { kind, name } of faults) {
      await harm(cluster, kind, name);
      await delay(random() * LONGEST_HOLD_MS);
    }
    for (const { kind, name } of faults) await mend(cluster, kind, name);
    await untilReady();
    await delay(CALM_MS);
    say(`${fault}/${count} ${faults.map(({ kind, name }) => `${name} ${kind}`).join(', ')}`);
  }
  for (const exit of await Promise.all(couriers.map((courier) => courier.end()))) assert.equal(exit.code, 0);
  await using log = await ShippedLog.open(cluster, CLUSTER);
  const { records, drifts } = await assertShipped(nats, journals, log);
  for (const { server, what } of drifts) say(`nats-server let copies drift apart: the copy at ${server}, ${what}`);
  const [differing, ...others] = new Set(drifts.map(({ server }) => server));
  if (differing !== undefined && others.length === 0) {
    await cure(cluster, differing);
    const isAlike = async () => (await assertShipped(nats, journals, log)).drifts.length === 0;
    await until(`the copy at ${differing} is like the others`, isAlike, READY_MS);
    say(`the copy at ${differing} was removed and made again: it is like the others`);
  }
  say(`${records} records are in the cluster log`);
  await assertReadWhole(cluster, records);
  return { seed, faults: count, records, drifts };
};

/** As the commands read it. */
const assertReadWhole = async ({ lab, nats: [server] }: ClusterLab, records: number): Promise<void> => {
  const { hostname } = new URL(server!.url);
  const door = await openDoor(server!.host, hostname, CLIENTS);
  const folder = join(lab.folder, 'read');
  mkdirSync(folder);
  const log = await ClusterLog.open({ servers: [`nats://${door.address}`] }, CLUSTER, folder);
  await log.read();
  for (const { node, problems } of log.lineages) assert.deepEqual(problems, [], node);
  assert.deepEqual(log.silent, []);
  assert.equal(
    log.lineages.reduce((sum, { rows }) => sum + rows, 0),
    records,
  );
  await log.close();
  door.close();
};

if (import.meta.main) {
  const [count = 60, seed = 1] = process.argv.slice(2).map(Number);
  const lab = await Lab.create();
  const say = (line: string) => console.log(`${new Date().toISOString().slice(11, 19)} ${line}`);
  try {
    await shipThroughFaults(lab, count, seed, say);
  } catch (error) {
    console.error(lastLines(lab));
    console.error(error);
    console.error(`Once more: node test/lab/logCopies.ts ${count} ${seed}`);
    process.exitCode = 1;
  } finally {
    await lab.destroy();
  }
}
