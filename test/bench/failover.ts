/**
 * `npm run bench:failover`: what a client sees of a fail-over, with a pair of Understudy nodes and a pair of keepalived
 * nodes (nginx behind the address) in turn, in network namespaces, with the same priorities and timers and the same
 * faults. Takes root. `--only keepalived` or `--only understudy` measures one of them.
 *
 * The client begins an attempt every 5 ms. A gap is the time from the start of the last attempt that succeeded before
 * the fault to the start of the first one from which on all succeeded; 0 if none failed.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Host } from '../../deploy/lab/lab.ts';
import type { LabProcess } from '../../deploy/lab/process.ts';
import { until } from '../../deploy/lab/until.ts';
import { faults, startKeepalivedPair, startUnderstudyPair, VIP } from './failoverPairs.ts';
import type { Fault, Pair, StartPair } from './failoverPairs.ts';
import { quick, report, row, say } from './report.ts';
import type { BenchRow } from './report.ts';

const ROUNDS = quick ? 3 : 20;
const ADVERTS_MS = [1_000, 100];
const PERIOD_MS = 5;
/** Under a second, when the kernel would try again by itself. */
const TIMEOUT_MS = 200;
/** So long everything must have succeeded to count as steady. */
const STEADY_MS = 300;

type Attempt = { beganMs: number; isConnected: boolean; isAnswered: boolean };

/** `neighbourMs`: from the fault until the client's neighbour table had the other node's MAC. */
type Measured = { tcpMs: number; httpMs: number; neighbourMs: number };

type Results = Map<string, Measured[]>;

const startClient = (client: Host): Promise<LabProcess> =>
  client.spawn(process.execPath, [
    join(import.meta.dirname, 'failoverClient.ts'),
    ...[VIP, '80', String(PERIOD_MS), String(TIMEOUT_MS)],
  ]);

/** By their start; they end in another order. */
const attemptsOf = (client: LabProcess): Attempt[] =>
  client.lines
    .map(({ text }) => {
      const [beganMs, isConnected, isAnswered] = text.split(' ').map(Number);
      assert(beganMs! > 0, `not an attempt: ${text}`);
      return { beganMs: beganMs!, isConnected: isConnected === 1, isAnswered: isAnswered === 1 };
    })
    .sort((a, b) => a.beganMs - b.beganMs);

/** Until every attempt of a while, begun after `sinceMs`, has succeeded. */
const steady = (client: LabProcess, sinceMs: number): Promise<true> =>
  until('steady answers', async () => {
    const attempts = attemptsOf(client).filter(({ beganMs }) => beganMs > sinceMs);
    const from = attempts[attempts.findLastIndex(({ isAnswered }) => !isAnswered) + 1]?.beganMs ?? Infinity;
    return attempts.length > 0 && attempts.at(-1)!.beganMs - from >= STEADY_MS;
  });

const gapMs = (attempts: Attempt[], succeeded: (attempt: Attempt) => boolean): number => {
  const first = attempts.findIndex((attempt) => !succeeded(attempt));
  if (first === -1) return 0;
  const last = attempts.findLastIndex((attempt) => !succeeded(attempt));
  const [before, after] = [attempts[first - 1], attempts[last + 1]];
  assert(before && after, 'the client was not served before the fault and after it');
  return after.beganMs - before.beganMs;
};

/**
 * `phaseMs`: from an advert on the wire to the fault. A dead master is missed after a time that counts from its last
 * advert, so where the fault falls decides as much as anything else: both pairs get the same phases, evenly spread.
 * @returns null if there was trouble before the fault: a fail-over without cause, or an attempt that failed
 */
const measure = async (pair: Pair, fault: Fault, phaseMs: number): Promise<Measured | null> => {
  const { client: clientHost, lb2 } = pair.stage;
  const moving = new RegExp(`^${VIP} .*lladdr ${await lb2.mac()}`);
  const client = await startClient(clientHost);
  const neighbours = await clientHost.spawn('ip', ['monitor', 'neigh']);
  const adverts = await clientHost.spawn('tcpdump', ['-l', '-n', '--immediate-mode', '-i', 'eth0', 'ip proto 112']);
  await adverts.waitFor(/listening on/);
  await steady(client, 0);
  await adverts.waitFor(/ > 224\.0\.0\.18/, { after: adverts.lines.length });
  await adverts.end('SIGKILL');
  await delay(phaseMs);
  const settledMs = attemptsOf(client).at(-1)!.beganMs - STEADY_MS;
  const isUntroubled = attemptsOf(client).every(({ beganMs, isAnswered }) => isAnswered || beganMs < settledMs);
  if (!isUntroubled || neighbours.lines.some(({ text }) => moving.test(text))) {
    await Promise.all([client.end('SIGKILL'), neighbours.end('SIGKILL')]);
    await pair.settle();
    return null;
  }
  const mark = neighbours.lines.length;
  const faultMs = await pair.fault(fault);
  const moved = await neighbours.waitFor(moving, { after: mark });
  await steady(client, moved.atMs);
  await Promise.all([client.end('SIGKILL'), neighbours.end('SIGKILL')]);
  await pair.recover(fault);
  // One that began before the fault may fail by it.
  const attempts = attemptsOf(client).filter(({ beganMs }) => beganMs >= settledMs);
  return {
    tcpMs: gapMs(attempts, ({ isConnected }) => isConnected),
    httpMs: gapMs(attempts, ({ isAnswered }) => isAnswered),
    neighbourMs: moved.atMs - faultMs,
  };
};

const keyOf = (fault: Fault, advertMs: number): string => `${fault}, advert ${advertMs} ms`;

const measureAll = async (name: string, start: StartPair, advertMs: number, results: Results): Promise<void> => {
  const pair = await start(advertMs);
  try {
    for (const fault of faults) {
      const measured: Measured[] = [];
      let troubled = 0;
      while (measured.length < ROUNDS) {
        const phaseMs = ((measured.length + 0.5) / ROUNDS) * advertMs;
        const round = await measure(pair, fault, phaseMs);
        if (round) measured.push(round);
        else troubled++;
        assert(troubled <= ROUNDS, `${name}: this machine is too busy, or the pair is never at rest`);
      }
      // Not hidden: on a busy machine, fail-overs without cause are a result too.
      if (troubled > 0)
        say(`${name}, ${keyOf(fault, advertMs)}: ${troubled} rounds again, for trouble before the fault`);
      results.set(keyOf(fault, advertMs), measured);
      const gaps = measured.map(({ httpMs }) => Math.round(httpMs)).join(', ');
      say(`${name}, ${keyOf(fault, advertMs)}: HTTP gaps of ${gaps} ms`);
    }
  } catch (error) {
    const lines = pair.stage.lab.log().split('\n');
    say(
      lines
        .filter((line) => !line.includes(' client '))
        .slice(-100)
        .join('\n'),
    );
    throw error;
  } finally {
    await pair.stop();
  }
};

const only = process.argv.includes('--only') ? process.argv[process.argv.indexOf('--only') + 1] : undefined;
const pairs: Record<string, StartPair> = { understudy: startUnderstudyPair, keepalived: startKeepalivedPair };
const subjects = Object.keys(pairs).filter((name) => only === undefined || name === only);
assert(subjects.length > 0, `--only takes ${Object.keys(pairs).join(' or ')}`);
assert.equal(process.getuid?.(), 0, 'network namespaces take root');

const results = new Map<string, Results>(subjects.map((name) => [name, new Map()]));
for (const advertMs of ADVERTS_MS) {
  for (const name of subjects) await measureAll(name, pairs[name]!, advertMs, results.get(name)!);
}

const figures = [
  ['HTTP gap', 'httpMs'],
  ['TCP gap', 'tcpMs'],
  ['neighbour entry moved after', 'neighbourMs'],
] as const;
const [subject, reference] = subjects as [string, string?];
const rows: BenchRow[] = ADVERTS_MS.flatMap((advertMs) =>
  faults.flatMap((fault) =>
    figures.map(([title, figure]) => {
      const samples = (name: string) =>
        results
          .get(name)!
          .get(keyOf(fault, advertMs))!
          .map((each) => each[figure]);
      const compared = reference === undefined ? null : samples(reference);
      return row(`${keyOf(fault, advertMs)}: ${title}`, subject, 'ms', samples(subject), compared);
    }),
  ),
);
report(rows, reference === undefined ? 'none' : 'keepalived with nginx');
