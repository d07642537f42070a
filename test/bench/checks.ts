/**
 * `npm run bench:checks`: 10,000 servers checked over TCP every 2 s by one node, beside HAProxy doing the same (one
 * thread), in turn, in the same run. CPU is the kernel's account of the control thread, in percent of one core.
 */
import { fork, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { StateView } from '../../src/api/state.ts';
import { freePort } from '../../src/demo/processes.ts';
import { has } from '../packages.ts';
import { quick, report, row, say } from './report.ts';

const SERVERS = 10_000;
const PER_POOL = 100;
const POOLS = SERVERS / PER_POOL;
const INTERVAL_MS = 2_000;
const SETTLE_MS = quick ? 6_000 : 15_000;
const SAMPLE_MS = 5_000;
const SAMPLES = quick ? 3 : 12;
const CLOCK_TICKS_PER_SECOND = 100;

type Sample = { checksPerSecond: number; cpuPercent: number; rssMiB: number; p50Ms: number; p99Ms: number };

const folder = mkdtempSync(join(tmpdir(), 'understudy-bench-'));
const sink = fork(join(import.meta.dirname, 'sink.ts'), [String(POOLS)], { execPath: process.execPath });
const [{ ports }] = (await once(sink, 'message')) as [{ ports: number[] }];

/**
 * Connections begun on this machine since it started. The servers can't be asked: HAProxy resets a check's connection
 * before the handshake ends, and they never see it.
 */
const connectionsBegun = (): number => {
  const [names, values] = readFileSync('/proc/net/snmp', 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('Tcp:'))
    .map((line) => line.split(' '));
  return Number(values![names!.indexOf('ActiveOpens')]);
};

/** CPU seconds of the main thread: utime and stime of the task that has the process's id. */
const threadSeconds = (pid: number): number => {
  const fields = readFileSync(`/proc/${pid}/task/${pid}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ');
  return (Number(fields[11]) + Number(fields[12])) / CLOCK_TICKS_PER_SECOND;
};

const rssMiB = (pid: number): number =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) / 1024;

type Lateness = { counts: Map<number, number> };

/** The control loop's lateness as the node's own metrics tell it: cumulative counts by upper bound in seconds. */
const latenessOf = async (api: string): Promise<Lateness> => {
  const text = await (await fetch(`${api}/metrics?only=node`)).text();
  const counts = new Map<number, number>();
  for (const [, bound, count] of text.matchAll(/control_loop_lateness_seconds_bucket\{le="([^"]+)"\} (\d+)/g)) {
    counts.set(bound === '+Inf' ? Infinity : Number(bound), Number(count));
  }
  return { counts };
};

/** The upper bound of the bucket that holds the quantile, of what came between two looks. */
const latenessQuantileMs = (before: Lateness, after: Lateness, quantile: number): number => {
  const total = after.counts.get(Infinity)! - before.counts.get(Infinity)!;
  for (const [bound, count] of after.counts) {
    if (count - (before.counts.get(bound) ?? 0) >= total * quantile) return bound * 1000;
  }
  return Infinity;
};

const measure = async (pid: number, api: string | null): Promise<Sample[]> => {
  await delay(SETTLE_MS);
  const samples: Sample[] = [];
  for (let index = 0; index < SAMPLES; index++) {
    const late = api === null ? null : await latenessOf(api);
    const checks = connectionsBegun();
    const cpu = threadSeconds(pid);
    const startedAt = performance.now();
    await delay(SAMPLE_MS);
    const seconds = (performance.now() - startedAt) / 1000;
    const cpuPercent = ((threadSeconds(pid) - cpu) / seconds) * 100;
    const checksPerSecond = (connectionsBegun() - checks) / seconds;
    const memory = rssMiB(pid);
    const lateAfter = api === null ? null : await latenessOf(api);
    samples.push({
      checksPerSecond,
      cpuPercent,
      rssMiB: memory,
      p50Ms: late && lateAfter ? latenessQuantileMs(late, lateAfter, 0.5) : NaN,
      p99Ms: late && lateAfter ? latenessQuantileMs(late, lateAfter, 0.99) : NaN,
    });
  }
  return samples;
};

const end = async (child: ChildProcess): Promise<void> => {
  const exited = once(child, 'exit');
  child.kill('SIGKILL');
  await exited;
};

const measureUnderstudy = async (): Promise<Sample[]> => {
  const apiPort = await freePort(0);
  const file = join(folder, 'understudy.yaml');
  const backends = ports.map((port, pool) => {
    const servers = Array.from(
      { length: PER_POOL },
      (_, index) => `      - { name: s${index}, address: "127.0.0.1:${port}" }`,
    );
    return `  pool${pool}:\n    check: { type: tcp, interval: ${INTERVAL_MS}ms, timeout: 1s }\n    servers:\n${servers.join('\n')}`;
  });
  writeFileSync(
    file,
    `node: bench\njournal: { path: ${folder}/bench.db }\napi: { listen: "127.0.0.1:${apiPort}" }\nworkers: 1\nbackends:\n${backends.join('\n')}\n`,
  );
  const understudy = join(import.meta.dirname, '../../bin/understudy');
  const node = spawn(understudy, ['run', file], { stdio: ['ignore', 'ignore', 'inherit'] });
  const api = `http://127.0.0.1:${apiPort}`;
  try {
    for (;;) {
      if (node.exitCode !== null) throw new Error('the node did not start');
      const answer = await fetch(`${api}/healthz`).catch(() => null);
      if (answer) break;
      await delay(100);
    }
    const samples = await measure(node.pid!, api);
    const state = (await (await fetch(`${api}/api/state`)).json()) as StateView;
    const up = state.pools.reduce((sum, pool) => sum + pool.usable, 0);
    if (up !== SERVERS) throw new Error(`${up} of ${SERVERS} servers are up: the figures would mean nothing`);
    return samples;
  } finally {
    await end(node);
  }
};

const measureHaproxy = async (): Promise<Sample[] | null> => {
  if (!has('haproxy')) {
    say('haproxy is not installed: no reference');
    return null;
  }
  const file = join(folder, 'haproxy.cfg');
  const backends = ports.map((port, pool) => {
    const servers = Array.from(
      { length: PER_POOL },
      (_, index) => `  server s${index} 127.0.0.1:${port} check inter ${INTERVAL_MS}ms`,
    );
    return `backend pool${pool}\n  mode tcp\n${servers.join('\n')}`;
  });
  const frontendPort = await freePort(0);
  writeFileSync(
    file,
    `global\n  nbthread 1\n  spread-checks 0\ndefaults\n  mode tcp\n  timeout connect 1s\n  timeout client 10s\n  timeout server 10s\n` +
      `frontend f\n  bind 127.0.0.1:${frontendPort}\n  default_backend pool0\n${backends.join('\n')}\n`,
  );
  const haproxy = spawn('haproxy', ['-db', '-f', file], { stdio: ['ignore', 'ignore', 'inherit'] });
  try {
    return await measure(haproxy.pid!, null);
  } finally {
    await end(haproxy);
  }
};

try {
  say(`${SERVERS} servers, every ${INTERVAL_MS} ms, ${SAMPLES} samples of ${SAMPLE_MS / 1000} s`);
  const ours = await measureUnderstudy();
  const theirs = await measureHaproxy();
  const pick = (samples: Sample[] | null, key: keyof Sample) => samples?.map((sample) => sample[key]) ?? null;
  const subject = `understudy, ${SERVERS} servers`;
  report(
    [
      row('checks', subject, 'checks/s', pick(ours, 'checksPerSecond')!, pick(theirs, 'checksPerSecond')),
      row('cpu of the control thread', subject, '% of a core', pick(ours, 'cpuPercent')!, pick(theirs, 'cpuPercent')),
      row('memory', subject, 'MiB', pick(ours, 'rssMiB')!, pick(theirs, 'rssMiB')),
      row('loop lateness p50 (upper bound)', subject, 'ms', pick(ours, 'p50Ms')!, null),
      row('loop lateness p99 (upper bound)', subject, 'ms', pick(ours, 'p99Ms')!, null),
    ],
    'HAProxy with one thread',
  );
} finally {
  await end(sink);
  rmSync(folder, { recursive: true });
}
