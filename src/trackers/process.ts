import { readFileSync } from 'node:fs';
import { opendir, readFile } from 'node:fs/promises';
import { performance } from 'node:perf_hooks';
import { setImmediate as turn } from 'node:timers/promises';
import { codeOf, messageOf } from '../errors.ts';
import { observeWithin, seenBad, seenOk } from './observation.ts';
import type { Observation, Seen } from './observation.ts';

/** A name takes 8 µs to read, so 10,000 processes take 85 ms: so long at a time, then the loop has its turn. */
const SLICE_MS = 1;
/** TASK_COMM_LEN without its terminator: the kernel cuts names there. */
const LONGEST_NAME_BYTES = 15;

export type ProcessSearch = {
  /** What /proc/PID/comm says; with `command`, any part of the command line, arguments joined by spaces. */
  name: string;
  command: boolean;
  /** How many of them must run. */
  min: number;
  /** How many of them may run. */
  max: number | null;
  timeoutMs: number;
};

/**
 * Whether as many processes run as should (keepalived's track_process), looked at once. PROCSOK, or not ok: PROCSFEW,
 * PROCSMANY, PROCSERR /proc can't be read, PROCSTOUT it took too long. Zombies don't count, nor does this process.
 */
export const lookForProcess = (o: ProcessSearch, done: (observation: Observation) => void): (() => void) =>
  observeWithin(
    o.timeoutMs,
    seenBad('PROCSTOUT', `/proc could not be looked through within ${o.timeoutMs} ms`),
    (isOver) => look(o, isOver),
    done,
  );

const look = async (o: ProcessSearch, isOver: () => boolean): Promise<Seen> => {
  try {
    const found = await count(o, isOver);
    const what = `${found} process${found === 1 ? '' : 'es'} ${o.command ? 'with' : 'named'} ${o.name}`;
    if (found < o.min) return seenBad('PROCSFEW', `${what}, at least ${o.min} must run`);
    if (o.max !== null && found > o.max) return seenBad('PROCSMANY', `${what} or more, at most ${o.max} may run`);
    return seenOk('PROCSOK');
  } catch (error) {
    return seenBad('PROCSERR', `/proc can't be read: ${messageOf(error)}`);
  }
};

/** Counts no further than it matters. */
const count = async (o: ProcessSearch, isOver: () => boolean): Promise<number> => {
  const enough = o.max === null ? o.min : o.max + 1;
  const name = Buffer.from(o.name).subarray(0, LONGEST_NAME_BYTES);
  let found = 0;
  let sliceEndsAt = performance.now() + SLICE_MS;
  for await (const { name: pid } of await opendir('/proc', { bufferSize: 256 })) {
    if (found >= enough || isOver()) break;
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    if (o.command ? await commandContains(pid, o.name) : isNamed(pid, name)) found++;
    if (performance.now() < sliceEndsAt) continue;
    await turn();
    sliceEndsAt = performance.now() + SLICE_MS;
  }
  return found;
};

/** Read at once: it is in the kernel's own memory, never waits, and costs a sixth of asking the thread pool. */
const isNamed = (pid: string, name: Buffer): boolean => {
  try {
    const comm = readFileSync(`/proc/${pid}/comm`);
    return comm.subarray(0, -1).equals(name) && !isZombie(readFileSync(`/proc/${pid}/stat`, 'latin1'));
  } catch (error) {
    return endedMeanwhile(error);
  }
};

/** proc_pid_stat(5): the state follows the name in parentheses, which may hold parentheses too. */
const isZombie = (stat: string): boolean => /^[ZX]$/.test(stat.charAt(stat.lastIndexOf(')') + 2));

/** In the thread pool: the command line lies in the process's own memory, which may have to be swapped in. */
const commandContains = async (pid: string, part: string): Promise<boolean> => {
  try {
    // A zombie's is empty.
    const line = await readFile(`/proc/${pid}/cmdline`, 'utf8');
    return line.replaceAll('\0', ' ').includes(part);
  } catch (error) {
    return endedMeanwhile(error);
  }
};

const endedMeanwhile = (error: unknown): false => {
  if (['ENOENT', 'ESRCH', 'EACCES'].includes(codeOf(error))) return false;
  throw error;
};
