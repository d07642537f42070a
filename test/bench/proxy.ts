/**
 * `npm run bench:proxy`: Understudy beside HAProxy, nginx, and two usual ways to forward in Node.js, before the same
 * server, each with one worker on a core of its own; load and server have the other one. What counts is the CPU of the
 * proxy alone for each request, as the kernel accounts it: it holds on a busy machine too. `--only TEXT` runs the loads
 * whose name has it (`memory` is one). Exit status 1: Understudy answered wrongly or not at all somewhere.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { keepAlive, loads } from './proxyLoads.ts';
import type { Load } from './proxyLoads.ts';
import { startOrigin } from './proxyOrigin.ts';
import type { Origin } from './proxyOrigin.ts';
import { cpuOf, end, endAll, endOf, memoryOf, start } from './proxyProcesses.ts';
import { reportProxy, textOf } from './proxyReport.ts';
import type { LoadResult, MemoryResult, Results, Sample } from './proxyReport.ts';
import { OURS, REFERENCE, startSubject, subjects } from './proxySubjects.ts';
import type { RunningSubject, Subject, SubjectOptions } from './proxySubjects.ts';
import { quick, say } from './report.ts';

const PROXY_CORE = '0';
const LOAD_CORE = '1';
const ROUNDS = quick ? 3 : 7;
/** Of those with which nothing is compared. */
const ROUNDS_OF_OTHERS = quick ? 1 : 3;
const ROUND_SECONDS = quick ? 1 : 4;
/** Before a load's first round: until each worker's compiler has seen enough of it, or time is up. */
const WARM_UP_REQUESTS = quick ? 15_000 : 100_000;
const WARM_UP_SECONDS = quick ? 2 : 10;
const IDLE_CONNECTIONS = 10_000;
/** Until what was left of opening the connections is collected. */
const IDLE_SETTLE_MS = 1_000;
const MEMORY = 'memory';

type Fleet = { workers: number; cores: string | null; loadCores: string | null };

const folder = mkdtempSync(join(tmpdir(), 'understudy-bench-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));

const makeCertificate = (): string => {
  const [key, certificate, pem] = ['key', 'crt', 'pem'].map((ending) => join(folder, `bench.${ending}`));
  const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  const subject = ['-days', '3', '-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1'];
  execFileSync('openssl', ['req', '-x509', ...curve, ...subject, '-keyout', key!, '-out', certificate!], {
    stdio: 'pipe',
  });
  writeFileSync(pem!, readFileSync(certificate!, 'utf8') + readFileSync(key!, 'utf8'));
  return pem!;
};

const results: Results = { loads: [], memory: [], failures: [] };

const fail = (what: string, subject: Subject, why: string): void => {
  const failure = { what, subject: subject.name, why };
  results.failures.push(failure);
  say(textOf(failure));
  if (subject.name === OURS) process.exitCode = 1;
};

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Those that start; the others are told of. */
const startAll = async (chosen: Subject[], options: SubjectOptions): Promise<RunningSubject[]> => {
  const running: RunningSubject[] = [];
  for (const subject of chosen) {
    try {
      const started = await startSubject(subject, options);
      if (started) running.push(started);
      else say(`${subject.name} is not installed: nothing to compare with`);
    } catch (error) {
      fail('start', subject, messageOf(error));
    }
  }
  return running;
};

const measure = async ({ program, ports }: RunningSubject, load: Load, seconds: number, cores: string | null) => {
  const before = cpuOf(program.pid);
  const { done, seconds: took, p50Ms, p99Ms, errors } = await load.run({ ports, seconds, folder, cores });
  const after = cpuOf(program.pid);
  assert(done > 0, `nothing was answered; ${errors.join(', ')}`);
  const userUs = ((after.userMs - before.userMs) * 1000) / done;
  const sysUs = ((after.sysMs - before.sysMs) * 1000) / done;
  return { perSecond: done / took, p50Ms, p99Ms, userUs, sysUs, cpuUs: userUs + sysUs, errors } satisfies Sample;
};

const warmUp = async ({ subject, ports }: RunningSubject, load: Load, fleet: Fleet): Promise<void> => {
  let done = 0;
  for (let seconds = 0; seconds < WARM_UP_SECONDS && done < WARM_UP_REQUESTS * fleet.workers; seconds++) {
    const outcome = await load.run({ ports, seconds: 1, folder, cores: fleet.loadCores });
    done += outcome.done;
    if (outcome.errors.length > 0) fail(`${load.name}, warm-up`, subject, outcome.errors.join(', '));
  }
};

/** Round by round, so that what else the machine does meets all of them. */
const measureLoad = async (load: Load, name: string, running: RunningSubject[], fleet: Fleet): Promise<LoadResult> => {
  const samples = new Map<string, Sample[]>();
  const result: LoadResult = { name, unit: load.unit, aim: fleet.cores === null ? null : load.aim, samples };
  const taking = new Set(running.filter(({ subject }) => subject.abilities.includes(load.takes)));
  for (let round = 0; round < ROUNDS; round++) {
    for (const one of taking) {
      const { subject, program } = one;
      if (round >= ROUNDS_OF_OTHERS && subject.name !== OURS && subject.name !== REFERENCE) continue;
      try {
        if (round === 0 && subject.needsWarmUp) await warmUp(one, load, fleet);
        const sample = await measure(one, load, ROUND_SECONDS, fleet.loadCores);
        samples.set(subject.name, [...(samples.get(subject.name) ?? []), sample]);
        if (sample.errors.length > 0) fail(`${name}, round ${round + 1}`, subject, sample.errors.join(', '));
        say(`${name}: ${subject.name}: ${sample.cpuUs.toFixed(1)} µs, ${Math.round(sample.perSecond)}/s`);
      } catch (error) {
        taking.delete(one);
        fail(name, subject, endOf(program) ?? `${messageOf(error)}; ${program.complaint()}`);
      }
    }
  }
  return result;
};

const measureFleet = async (
  chosen: [name: string, load: Load][],
  subjectsOfFleet: Subject[],
  fleet: Fleet,
  shared: { origin: Origin; pem: string },
): Promise<void> => {
  if (chosen.length === 0) return;
  const { workers, cores } = fleet;
  const running = await startAll(subjectsOfFleet, { ...shared, workers, cores, folder });
  for (const [name, load] of chosen) results.loads.push(await measureLoad(load, name, running, fleet));
  for (const { program } of running) await end(program);
};

/** Each as it is after its start, and with connections that have all had one answer. */
const measureMemory = async (running: RunningSubject): Promise<MemoryResult> => {
  const { subject, program, ports } = running;
  await delay(IDLE_SETTLE_MS);
  const before = memoryOf(program.pid);
  const file = join(import.meta.dirname, 'proxyIdleClient.ts');
  const command = [process.execPath, file, String(ports.http), String(IDLE_CONNECTIONS)];
  const client = start('the idle client', command, { cores: LOAD_CORE, channel: true });
  const exited = once(client.child, 'exit').then(() => assert.fail(`the client ended: ${client.complaint()}`));
  const [told] = (await Promise.race([once(client.child, 'message'), exited])) as [{ idle: number; errors: string[] }];
  await delay(IDLE_SETTLE_MS);
  const idle = memoryOf(program.pid);
  exited.catch(() => {});
  await end(client);
  if (told.idle !== IDLE_CONNECTIONS)
    fail(MEMORY, subject, `${told.idle} of ${IDLE_CONNECTIONS} connections stayed: ${told.errors.join(', ')}`);
  say(`${MEMORY}: ${subject.name}: ${Math.round(idle.rssMiB)} MiB`);
  return { subject: subject.name, before, idle, connections: told.idle };
};

const only = process.argv.includes('--only') ? process.argv[process.argv.indexOf('--only') + 1] : undefined;
const isChosen = (name: string): boolean => only === undefined || name.toLowerCase().includes(only.toLowerCase());
const withNames = (chosen: Load[], suffix = ''): [string, Load][] =>
  chosen.map((load): [string, Load] => [`${load.name}${suffix}`, load]).filter(([name]) => isChosen(name));

const pem = makeCertificate();
const origin = await startOrigin(folder, LOAD_CORE);
const shared = { origin, pem };
await measureFleet(withNames(loads), subjects, { workers: 1, cores: PROXY_CORE, loadCores: LOAD_CORE }, shared);
const scalable = subjects.filter(({ takesWorkers }) => takesWorkers);
// In a quick run only what no other row shows, and no memory of those that have one worker at most.
for (const workers of quick ? [2] : [1, 2]) {
  const chosen = withNames([keepAlive], `, not pinned, workers: ${workers}`);
  await measureFleet(chosen, scalable, { workers, cores: null, loadCores: null }, shared);
}
if (isChosen(MEMORY)) {
  for (const subject of quick ? scalable : subjects) {
    const running = await startAll([subject], { ...shared, workers: 1, cores: PROXY_CORE, folder });
    for (const one of running) {
      try {
        results.memory.push(await measureMemory(one));
      } catch (error) {
        fail(MEMORY, subject, messageOf(error));
      }
      await end(one.program);
    }
  }
}
await endAll();
reportProxy(results);
