/** The processes of `bench:proxy`: pinned to cores, all gone at its end however it ends; and what they cost. */
import { spawn } from 'node:child_process';
import type { ChildProcess, StdioOptions } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

/** The kernel's USER_HZ, in which `/proc/PID/stat` counts. */
const CLOCK_TICK_MS = 10;
const START_TIMEOUT_MS = 20_000;
const START_ATTEMPTS = 3;
const STDERR_KEPT = 2_000;

/** `cores`: as taskset takes them; null is any. */
export type StartOptions = { cores: string | null; channel?: boolean; stdout?: boolean };

export type Program = {
  name: string;
  pid: number;
  child: ChildProcess;
  /** The end of what it wrote to stderr. */
  complaint(): string;
};

const running = new Set<ChildProcess>();

/** Each is a process group, so that workers that it started end with it. */
const killGroup = (child: ChildProcess): void => {
  try {
    process.kill(-child.pid!, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
};

process.on('exit', () => {
  for (const child of running) killGroup(child);
});
for (const [signal, number] of [
  ['SIGHUP', 1],
  ['SIGINT', 2],
  ['SIGTERM', 15],
] as const) {
  process.on(signal, () => process.exit(128 + number));
}

export const start = (name: string, command: string[], options: StartOptions): Program => {
  const [file, ...args] = options.cores === null ? command : ['taskset', '-c', options.cores, ...command];
  const stdio: StdioOptions = ['ignore', options.stdout ? 'pipe' : 'ignore', 'pipe'];
  if (options.channel) stdio.push('ipc');
  const child = spawn(file!, args, { detached: true, stdio });
  // Without a listener it would be thrown; whoever waits for the program sees that it has ended.
  child.on('error', () => {});
  if (child.pid === undefined) throw new Error(`${name}: ${file} could not be started`);
  running.add(child);
  let complaint = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    complaint = (complaint + text).slice(-STDERR_KEPT);
  });
  return { name, pid: child.pid, child, complaint: () => complaint.trim() };
};

/** How it has ended; null: it hasn't. */
export const endOf = ({ child, complaint }: Program): string | null => {
  if (child.exitCode === null && child.signalCode === null) return null;
  return `it has ended with ${child.signalCode ?? `status ${child.exitCode}`}; ${complaint()}`;
};

const endGroup = async (child: ChildProcess): Promise<void> => {
  const exited = child.exitCode === null && child.signalCode === null ? once(child, 'exit') : null;
  killGroup(child);
  await exited;
  running.delete(child);
};

/** The whole group; a leader that has ended may have left others behind. */
export const end = ({ child }: Program): Promise<void> => endGroup(child);

export const endAll = async (): Promise<void> => {
  await Promise.all([...running].map(endGroup));
};

/** Runs a program to its end. @returns what it wrote to standard output */
export const output = async (name: string, command: string[], options: StartOptions): Promise<string> => {
  const program = start(name, command, { ...options, stdout: true });
  let text = '';
  program.child.stdout!.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
  const [status] = (await once(program.child, 'close')) as [number | null];
  running.delete(program.child);
  if (status !== 0) throw new Error(`${name} ended with status ${status}: ${program.complaint() || text.trim()}`);
  return text;
};

const accepts = (port: number): Promise<boolean> =>
  new Promise((done) => {
    const socket = connect(port, '127.0.0.1');
    socket.on('connect', () => done(true)).on('error', () => done(false));
    socket.on('connect', () => socket.destroy());
  });

/** Somebody else may take a port before it is listened on: then another one is tried. */
export const withRetries = async <T>(attempt: () => Promise<T>): Promise<T> => {
  for (let left = START_ATTEMPTS; ; left--) {
    try {
      return await attempt();
    } catch (error) {
      if (left === 1) throw error;
    }
  }
};

/** Until it accepts connections on all of these ports. */
export const listening = async (program: Program, ports: number[]): Promise<void> => {
  const deadline = performance.now() + START_TIMEOUT_MS;
  for (const port of ports) {
    while (!(await accepts(port))) {
      if (endOf(program) !== null) throw new Error(`${program.name} did not start: ${endOf(program)}`);
      if (performance.now() > deadline) throw new Error(`${program.name} does not listen on ${port}`);
      await delay(50);
    }
  }
};

/** It and its children; none of the proxies has grandchildren. */
const family = (pid: number): number[] => [
  pid,
  ...readdirSync(`/proc/${pid}/task`).flatMap((task) =>
    readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8').split(' ').filter(Boolean).map(Number),
  ),
];

export type Cpu = { userMs: number; sysMs: number };

/** CPU of a process since its start, with all of its threads and children, as the kernel accounts it. */
export const cpuOf = (pid: number): Cpu => {
  const cpu: Cpu = { userMs: 0, sysMs: 0 };
  for (const member of family(pid)) {
    // What follows the name in parentheses starts with the third field of proc_pid_stat(5); utime is the 14th.
    const fields = readFileSync(`/proc/${member}/stat`, 'utf8')
      .replace(/^.*\) /, '')
      .split(' ');
    cpu.userMs += Number(fields[11]) * CLOCK_TICK_MS;
    cpu.sysMs += Number(fields[12]) * CLOCK_TICK_MS;
  }
  return cpu;
};

export type Memory = { rssMiB: number; pssMiB: number };

/** PSS counts pages that processes share (the text of `node`) in part only; RSS counts them in full. */
export const memoryOf = (pid: number): Memory => {
  const memory: Memory = { rssMiB: 0, pssMiB: 0 };
  for (const member of family(pid)) {
    const rollup = readFileSync(`/proc/${member}/smaps_rollup`, 'utf8');
    const mib = (key: string) => Number(new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(rollup)![1]) / 1024;
    memory.rssMiB += mib('Rss');
    memory.pssMiB += mib('Pss');
  }
  return memory;
};
