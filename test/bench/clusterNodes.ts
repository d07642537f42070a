/**
 * Three nodes on this machine that check a thousand servers each, in quiet and while the servers flap: what a node costs in
 * CPU, and how long a decision takes to the cluster log.
 */
import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { nowMs } from '../../deploy/lab/process.ts';
import type { StateView } from '../../src/api/state.ts';
import { SoakNode } from '../soak/node.ts';
import type { BenchNats } from './clusterNats.ts';
import type { ToServers } from './flappingServers.ts';

export const SERVERS = 1_000;
export const NODES = 3;
const POOLS = 10;
const PORTS = 50;
const GREETING = 'at your service';
const INTERVAL_MS = 2_000;
/** In a flapping cluster each server fails or returns this often: a hundred a second, of which every node sees each. */
const FLAP_EVERY_MS = 10_000;
const CLOCK_TICKS_PER_SECOND = 100;
const LONGEST_START_MS = 60_000;
const LOOK_EVERY_MS = 100;
/** As the kernel names the threads. */
const BUS_THREAD = 'bus';

export type Weather = 'quiet' | 'flapping';

export type Variant = {
  name: string;
  hasNats: boolean;
  /** Of each pool. */
  checks: object | null;
};

/** CPU in percent of one core, a value per node (or nats-server) and sample. */
export type NodeFigures = {
  processCpu: number[];
  controlCpu: number[];
  busCpu: number[];
  natsCpu: number[];
  recordsPerSecond: number[];
  checksPerSecond: number[];
  /** From a decision until whoever watches the cluster log has it. */
  delaysMs: number[];
};

export type Timing = { settleMs: number; sampleMs: number; samples: number };

/** utime and stime of a line of /proc. */
const cpuSecondsIn = (file: string): number => {
  const fields = readFileSync(file, 'utf8')
    .replace(/^.*\) /s, '')
    .split(' ');
  return (Number(fields[11]) + Number(fields[12])) / CLOCK_TICKS_PER_SECOND;
};

const processSeconds = (pid: number): number => cpuSecondsIn(`/proc/${pid}/stat`);

const threadSeconds = (pid: number, name: string): number =>
  readdirSync(`/proc/${pid}/task`)
    .filter((task) => readFileSync(`/proc/${pid}/task/${task}/comm`, 'utf8').trim() === name)
    .reduce((sum, task) => sum + cpuSecondsIn(`/proc/${pid}/task/${task}/stat`), 0);

/** Connections begun on this machine since it started. */
const connectionsBegun = (): number => {
  const [names, values] = readFileSync('/proc/net/snmp', 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('Tcp:'))
    .map((line) => line.split(' '));
  return Number(values![names!.indexOf('ActiveOpens')]);
};

const startServers = async (): Promise<{ child: ChildProcess; ports: number[] }> => {
  const program = join(import.meta.dirname, 'flappingServers.ts');
  const child = fork(program, [String(PORTS), GREETING], { execPath: process.execPath });
  const [{ ports }] = (await once(child, 'message')) as [{ ports: number[] }];
  return { child, ports };
};

const configOf = (name: string, cluster: string, ports: number[], servers: string[], variant: Variant) => ({
  cluster,
  node: name,
  bus: variant.hasNats ? { nats: { servers } } : 'memory',
  workers: 1,
  backends: Object.fromEntries(
    counted(POOLS, (pool) => [
      `pool${pool}`,
      {
        check: { type: 'tcp', expect: GREETING, interval: `${INTERVAL_MS}ms`, timeout: '1s' },
        ...(variant.checks === null ? {} : { checks: variant.checks }),
        servers: counted(SERVERS / POOLS, (index) => ({
          name: `s${index}`,
          address: `127.0.0.1:${ports[(index + pool * (SERVERS / POOLS)) % PORTS]}`,
        })),
      },
    ]),
  ),
});

const counted = <T>(count: number, make: (index: number) => T): T[] =>
  Array.from({ length: count }, (_, index) => make(index));

const stateOf = async ({ api }: SoakNode): Promise<StateView> =>
  (await (await fetch(`${api}/api/state`)).json()) as StateView;

const usableOf = ({ pools }: StateView): number => pools.reduce((sum, { usable }) => sum + usable, 0);

/** Until its servers are up. Throws when they are not: the figures would mean nothing. */
const untilUp = async (node: SoakNode): Promise<void> => {
  const endsAt = performance.now() + LONGEST_START_MS;
  for (;;) {
    const usable = usableOf(await stateOf(node));
    if (usable === SERVERS) return;
    assert(performance.now() < endsAt, `${usable} of ${SERVERS} servers are up: this machine is too busy`);
    await delay(LOOK_EVERY_MS);
  }
};

type Reading = { processes: number[]; control: number[]; bus: number[]; nats: number[]; records: number[] };

const read = async (nodes: SoakNode[], natsPids: number[]): Promise<Reading> => {
  const pids = nodes.map(({ child }) => child.pid!);
  const records = await Promise.all(nodes.map(async (node) => (await stateOf(node)).journal.lastSeq));
  return {
    processes: pids.map(processSeconds),
    control: pids.map((pid) => cpuSecondsIn(`/proc/${pid}/task/${pid}/stat`)),
    bus: pids.map((pid) => threadSeconds(pid, BUS_THREAD)),
    nats: natsPids.map(processSeconds),
    records,
  };
};

const sample = async (nodes: SoakNode[], natsPids: number[], sampleMs: number, into: NodeFigures): Promise<void> => {
  const before = await read(nodes, natsPids);
  const connections = connectionsBegun();
  const beganAt = performance.now();
  await delay(sampleMs);
  const seconds = (performance.now() - beganAt) / 1_000;
  const checks = (connectionsBegun() - connections) / seconds;
  const after = await read(nodes, natsPids);
  const rates = (key: keyof Reading, scale: number) =>
    after[key].map((value, index) => ((value - before[key][index]!) / seconds) * scale);
  into.processCpu.push(...rates('processes', 100));
  into.controlCpu.push(...rates('control', 100));
  into.busCpu.push(...rates('bus', 100));
  into.natsCpu.push(...rates('nats', 100));
  into.recordsPerSecond.push(...rates('records', 1));
  into.checksPerSecond.push(checks / nodes.length);
};

/** Both weathers in turn, on the same three nodes. */
export const measureNodes = async (
  nats: BenchNats,
  { servers, pids }: { servers: string[]; pids: number[] },
  variant: Variant,
  { settleMs, sampleMs, samples }: Timing,
): Promise<Record<Weather, NodeFigures>> => {
  const cluster = 'bench';
  const { child, ports } = await startServers();
  const nodes: SoakNode[] = [];
  const figures = (): NodeFigures => ({
    processCpu: [],
    controlCpu: [],
    busCpu: [],
    natsCpu: [],
    recordsPerSecond: [],
    checksPerSecond: [],
    delaysMs: [],
  });
  const found = { quiet: figures(), flapping: figures() };
  try {
    for (let index = 1; index <= NODES; index++)
      nodes.push(await SoakNode.start({ config: configOf(`lb${index}`, cluster, ports, servers, variant) }));
    for (const weather of ['quiet', 'flapping'] as const) {
      child.send({ flapEveryMs: weather === 'flapping' ? FLAP_EVERY_MS : null } satisfies ToServers);
      await delay(settleMs);
      if (weather === 'quiet') for (const node of nodes) await untilUp(node);
      const { delaysMs } = found[weather];
      const stop = variant.hasNats ? await nats.watch(cluster, (atMs) => delaysMs.push(nowMs() - atMs)) : null;
      for (let index = 0; index < samples; index++) await sample(nodes, pids, sampleMs, found[weather]);
      await stop?.();
    }
    return found;
  } finally {
    await Promise.all(nodes.map((node) => node.end()));
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
    if (variant.hasNats) await nats.forget(cluster);
  }
};
