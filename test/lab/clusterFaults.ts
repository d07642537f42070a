/**
 * Seeded faults in a row against three nodes and three nats-servers with traffic on: `node test/lab/clusterFaults.ts
 * [COUNT] [SEED]` (`npm run soak:cluster`: two hundred); a short form is among the tests. Takes root.
 *
 * After each fault, with it still standing and after it was taken away, each address has exactly one owner and traffic
 * flows. At the end the cluster log has every record of every journal exactly once and in order, can be verified on its
 * own, and after it was deleted is made again from the journals.
 */
import assert from 'node:assert/strict';
import { closeSync, openSync, rmSync, writeSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as delay } from 'node:timers/promises';
import { seededRandom } from '../../actors/random.ts';
import type { Random } from '../../actors/random.ts';
import { Lab } from '../../deploy/lab/lab.ts';
import type { LabNode } from '../../deploy/lab/node.ts';
import { until } from '../../deploy/lab/until.ts';
import { codeOf } from '../../src/errors.ts';
import { assertShipped, journalsOf, ShippedLog, stopNodes, untilShipped } from './clusterLog.ts';
import { ClusterStage, CLUSTER, lastLines, SETTLE_MS, SUCCESSION } from './clusterStage.ts';

const program = resolve(import.meta.dirname, '../../bin/understudy');

/** What of a host a fault is about; two faults at once are about two parts, or two hosts. In this order they are done and undone. */
const PARTS = ['disk', 'wire', 'nats', 'node'] as const;
type Part = (typeof PARTS)[number];

const KINDS = {
  'journal’s disk full': 'disk',
  'cut off': 'wire',
  'cut off from the servers': 'wire',
  'nats-server killed': 'nats',
  'nats-server stopped': 'nats',
  'node killed': 'node',
  'node stopped': 'node',
} as const satisfies Record<string, Part>;
type Kind = keyof typeof KINDS;

export type Fault = {
  kind: Kind;
  host: string;
  /** How long it stands after the cluster has come to terms with it. */
  holdMs: number;
};

export type FaultResult = {
  faults: string;
  failedRequests: number;
  longestGapMs: number;
  settledMs: number;
  /** By address. */
  owners: Record<string, string>;
};

export type ClusterFaultsResult = {
  seed: number;
  faults: FaultResult[];
  requests: number;
  failedRequests: number;
  longestGapMs: number;
  /** Of all nodes: in their journals, in the cluster log at the end, and in the one that was made again. */
  records: number;
  verified: boolean;
  recordsRebuilt: number;
};

const LONGEST_HOLD_MS = 3_000;
/** One in so many is two at once. */
const TWO_AT_ONCE = 6;
/** Of the node's journal, and of the nats-server's streams: some two hundred faults' worth. */
const DISK_SIZE = '96m';
const FILLER_BYTES = 256 * 1024;
const PAGE_BYTES = 4096;

/** The same for every run with this seed. */
export const drawFaults = (count: number, random: Random): Fault[][] => {
  const pick = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)]!;
  const hosts = SUCCESSION[Object.keys(SUCCESSION)[0]!]!;
  const draw = (): Fault => ({
    kind: pick(Object.keys(KINDS) as Kind[]),
    host: pick(hosts),
    holdMs: Math.round(random() * LONGEST_HOLD_MS),
  });
  return Array.from({ length: count }, () => {
    const first = draw();
    if (random() >= 1 / TWO_AT_ONCE) return [first];
    for (;;) {
      const second = draw();
      if (second.host !== first.host || KINDS[second.kind] !== KINDS[first.kind]) return inOrder([first, second]);
    }
  });
};

const inOrder = (faults: Fault[]): Fault[] =>
  faults.toSorted((a, b) => PARTS.indexOf(KINDS[a.kind]) - PARTS.indexOf(KINDS[b.kind]));

const nameOf = (faults: Fault[]): string => faults.map(({ kind, host }) => `${host} ${kind}`).join(', ');

/** Its node can't be the owner of an address while it stands. */
const isOut = ({ kind }: Fault): boolean =>
  KINDS[kind] === 'node' || kind === 'cut off' || kind === 'cut off from the servers';

/** Must cost no request: NATS and the journal's disk are in nobody's way, and a node without an address is not asked. */
const isHarmless = ({ kind, host }: Fault): boolean =>
  KINDS[kind] === 'nats' || KINDS[kind] === 'disk' || (host === 'lb3' && kind !== 'cut off');

const fillerOf = ({ journal }: LabNode): string => join(dirname(journal), 'filler');

/** The last byte of the disk is taken when this returns, and the journal has noticed. */
const fillDisk = async (node: LabNode): Promise<void> => {
  // What the write-ahead log has room for already would let the journal go on for a while.
  const journal = new DatabaseSync(node.journal, { timeout: 5_000 });
  journal.exec('PRAGMA wal_checkpoint(TRUNCATE)');
  journal.close();
  const filler = openSync(fillerOf(node), 'w');
  try {
    for (const bytes of [FILLER_BYTES, PAGE_BYTES]) writeUntilFull(filler, Buffer.alloc(bytes));
  } finally {
    closeSync(filler);
  }
  await until(`the journal of ${node.name} can't be written`, async () => (await failureOf(node)) !== null, SETTLE_MS);
};

const writeUntilFull = (file: number, bytes: Buffer): void => {
  try {
    while (writeSync(file, bytes) === bytes.length);
  } catch (error) {
    if (codeOf(error) !== 'ENOSPC') throw error;
  }
};

const failureOf = async (node: LabNode) => (await node.state()).journal.failure;

const act = async ({ cluster }: ClusterStage, { kind, host }: Fault): Promise<void> => {
  const node = cluster.node(host);
  const nats = cluster.natsOf(host);
  switch (kind) {
    case 'journal’s disk full':
      return fillDisk(node);
    case 'cut off':
      return node.host.cut();
    case 'cut off from the servers':
      return cluster.cutFromServers(host);
    case 'nats-server killed':
      return void (await nats.end('SIGKILL'));
    case 'nats-server stopped':
      return void nats.running.signal('SIGSTOP');
    case 'node killed':
      return void (await node.end('SIGKILL'));
    case 'node stopped':
      return void node.running.signal('SIGSTOP');
  }
};

const undo = async ({ cluster }: ClusterStage, { kind, host }: Fault): Promise<void> => {
  const node = cluster.node(host);
  const nats = cluster.natsOf(host);
  switch (kind) {
    case 'journal’s disk full':
      return rmSync(fillerOf(node));
    case 'cut off':
      return node.host.heal();
    case 'cut off from the servers':
      return node.host.undrop();
    case 'nats-server killed':
      return nats.run();
    case 'nats-server stopped':
      return void nats.running.signal('SIGCONT');
    case 'node killed':
      return node.run();
    case 'node stopped':
      return void node.running.signal('SIGCONT');
  }
};

/** Everything is as before the fault, so that what comes next shows what it costs by itself. */
const untilWell = async (stage: ClusterStage): Promise<void> => {
  await stage.untilSettled();
  const { nodes, nats } = stage.cluster;
  await Promise.all(nats.map((server) => server.untilReady(SETTLE_MS)));
  for (const node of nodes)
    await until(`the journal of ${node.name} is written`, async () => (await failureOf(node)) === null, SETTLE_MS);
  for (const node of nodes) await untilShipped(node, SETTLE_MS);
};

const endure = async (stage: ClusterStage, faults: Fault[]): Promise<FaultResult> => {
  const mark = stage.load.mark();
  const startedAt = performance.now();
  for (const fault of faults) await act(stage, fault);
  const hostsOf = (isMeant: (fault: Fault) => boolean) => faults.filter(isMeant).map(({ host }) => host);
  await stage.untilSettled({ out: hostsOf(isOut), unseen: hostsOf(({ kind }) => kind === 'cut off') });
  await delay(Math.max(...faults.map(({ holdMs }) => holdMs)));
  for (const fault of faults) await undo(stage, fault);
  await untilWell(stage);
  const { failed, longestGapMs } = stage.load.since(mark);
  assert(failed === 0 || !faults.every(isHarmless), `${failed} requests failed, by what must not cost any`);
  return {
    faults: nameOf(faults),
    failedRequests: failed,
    longestGapMs: Math.round(longestGapMs),
    settledMs: Math.round(performance.now() - startedAt),
    owners: stage.ownersWithout(),
  };
};

/** By the command, as an operator runs it on one of the hosts, from the cluster log alone. */
const assertVerified = async ({ cluster }: ClusterStage): Promise<void> => {
  const [host] = cluster.hosts;
  const verifying = await host!.spawn(program, ['verify', '--cluster', `${cluster.urls[0]!}/${CLUSTER}`]);
  const { code } = await verifying.exited;
  assert.equal(code, 0, `verify says:\n${verifying.lines.map(({ text }) => text).join('\n')}`);
};

const lineOf = ({ faults, failedRequests, longestGapMs, settledMs, owners }: FaultResult): string => {
  const gap = failedRequests === 0 ? 'no request failed' : `${failedRequests} requests failed, gap ${longestGapMs} ms`;
  const owned = Object.entries(owners).map(([address, name]) => `${address} at ${name}`);
  return `${faults}: ${gap}; over after ${(settledMs / 1000).toFixed(1)} s, ${owned.join(', ')}`;
};

/** Throws at the first thing that is wrong. */
export const sufferFaults = async (
  lab: Lab,
  count: number,
  seed: number,
  say: (line: string) => void,
): Promise<ClusterFaultsResult> => {
  const stage = await ClusterStage.create({ lab, diskSize: DISK_SIZE });
  const results: FaultResult[] = [];
  for (const faults of drawFaults(count, seededRandom(seed))) {
    try {
      results.push(await endure(stage, faults));
    } catch (error) {
      const message = `fault ${results.length + 1} of seed ${seed} (${nameOf(faults)}): ${(error as Error).message}`;
      throw new Error(message, { cause: error });
    }
    say(`${results.length}/${count} ${lineOf(results.at(-1)!)}`);
  }
  const { answered, failed } = stage.load.since(0);
  await stage.load.end();
  const { cluster } = stage;
  await stopNodes(cluster);
  await using log = await ShippedLog.open(cluster, CLUSTER);
  const { records, drifts } = await assertShipped(cluster.nats, journalsOf(cluster), log);
  for (const { server, what } of drifts) say(`nats-server let copies drift apart: the copy at ${server}, ${what}`);
  const where = log.keepsCopiesAlike
    ? 'in each copy of the cluster log once and in order'
    : 'in the copies of the cluster log';
  say(`${records} records of ${cluster.nodes.length} nodes are ${where}`);
  await assertVerified(stage);
  say('verify passes on the cluster log alone');
  await log.delete();
  await Promise.all(cluster.nodes.map((node) => node.run()));
  await stage.untilOwned(stage.ownersWithout());
  for (const node of cluster.nodes) await untilShipped(node, SETTLE_MS);
  await stopNodes(cluster);
  const { records: recordsRebuilt } = await assertShipped(cluster.nats, journalsOf(cluster), log);
  say(`${recordsRebuilt} records are in the cluster log that was made again from the journals`);
  return {
    seed,
    faults: results,
    requests: answered + failed,
    failedRequests: failed,
    longestGapMs: Math.max(0, ...results.map(({ longestGapMs }) => longestGapMs)),
    records,
    verified: true,
    recordsRebuilt,
  };
};

if (import.meta.main) {
  const [count = 200, seed = 1] = process.argv.slice(2).map(Number);
  const lab = await Lab.create();
  const say = (line: string) => console.log(`${new Date().toISOString().slice(11, 19)} ${line}`);
  try {
    console.log(JSON.stringify(await sufferFaults(lab, count, seed, say)));
  } catch (error) {
    console.error(lastLines(lab));
    console.error(error);
    console.error(`Once more: node test/lab/clusterFaults.ts ${count} ${seed}`);
    process.exitCode = 1;
  } finally {
    await lab.destroy();
  }
}
