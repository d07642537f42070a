/**
 * Ten thousand clients of every kind at a node as operators run it, while its servers are killed and come back and its
 * configuration is reloaded: nothing is lost that need not be, and at the end nothing is left.
 * `node test/soak/proxy.ts [SECONDS] [CONNECTIONS]` (`npm run soak:proxy`: half an hour); a short form is among the tests.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { freePorts } from '../ports.ts';
import { makeCertificate } from './certificate.ts';
import { Clients } from './clients.ts';
import type { Counts, Load } from './load.ts';
import { SoakNode } from './node.ts';
import { Killer, SoakServer } from './servers.ts';
import { judge } from './tally.ts';
import type { Tally } from './tally.ts';
import type { Ports } from './world.ts';

const MIB = 1024 * 1024;
const HOST = '127.0.0.1';
/** A process may have 20,000 descriptors, and a loop of Node's serves some thousand clients. */
const CLIENTS_PER_PROCESS = 2_500;
const CLIENTS_PER_SECOND = 500;
/** Some of those that are to be connected at a time are just connecting again. */
const MARGIN = 1.08;
const WARM_UP_MS = 2_000;
const RELEASE_TIMEOUT_MS = 60_000;
/** Checks of servers, and whoever asks the API. */
const SPARE_DESCRIPTORS = 16;
/** Code that was compiled, tables that have grown to their size. */
const SPARE_HEAP_BYTES = 8 * MIB;
const HEAP_GROWTH = 1.1;
const HEAP_GROWTH_BYTES = 2 * MIB;
/** The allocator's share varies more than the heap does. */
const RSS_GROWTH = 1.1;
const RSS_GROWTH_BYTES = 32 * MIB;

export type SoakOptions = {
  seconds: number;
  connections: number;
  /** Mean pause of a client between two requests. */
  thinkMs: number;
  killEveryMs: number;
  reloadEveryMs: number;
  sampleEveryMs: number;
  say: (line: string) => void;
};

type Sample = {
  seconds: number;
  /** Of clients. */
  connections: number;
  done: number;
  rssBytes: number;
  descriptors: number;
  heaps: Record<string, number>;
};

export type SoakResult = {
  /** Nothing that the proxy is to blame for when empty. */
  violations: string[];
  done: Record<string, number>;
  /** Answers and sessions that killed servers had begun, by kind. */
  cutOffs: Record<string, number>;
  /** Requests that are not idempotent, under way at a server that was killed. */
  lost: Record<string, number>;
  kills: number;
  reloads: number;
  maxConnections: number;
  base: Sample;
  end: Sample;
};

/** The n-th configuration: servers come and go, weights, limits and rules change; listeners stay. */
const configOf = (n: number, ports: Ports, servers: SoakServer[], spare: SoakServer, certificate: string) => {
  const isOdd = n % 2 === 1;
  const all = isOdd ? [...servers, spare] : servers;
  const list = (port: 'httpPort' | 'tcpPort') =>
    all.map((server, index) => ({
      name: server.name,
      address: `${HOST}:${server[port]}`,
      weight: index === n % servers.length ? 2 : 1,
    }));
  // A server that is killed refuses connections at once. One that is slow shares the processors with all of this.
  const check = { interval: '500ms', timeout: '5s', rise: 1, fall: 3 };
  const timeouts = { connect: '5s', server: isOdd ? '10m' : '11m' };
  return {
    workers: 2,
    log: { access: { path: '/dev/null' } },
    frontends: {
      web: {
        mode: 'http',
        bind: [`${HOST}:${ports.http}`, { address: `${HOST}:${ports.tls}`, tls: { certificates: [certificate] } }],
        rules: isOdd ? [{ setHeader: { name: 'X-Reload', value: String(n) } }] : [],
        use: 'web',
        // Clients think before their first request too.
        timeouts: { client: '60s', httpRequest: '2m', keepAlive: '10m' },
      },
      raw: { mode: 'tcp', bind: [`${HOST}:${ports.tcp}`], use: 'raw', timeouts: { client: '10m' } },
    },
    backends: {
      web: {
        balance: isOdd ? 'leastConnections' : 'roundRobin',
        check: { type: 'http', ...check },
        timeouts: { ...timeouts, tunnel: '10m' },
        servers: list('httpPort'),
      },
      raw: { check: { type: 'tcp', ...check }, timeouts, servers: list('tcpPort') },
    },
  };
};

/** Shares of all connections. */
const countsFor = (connections: number): Counts => {
  const share = (part: number) => Math.max(1, Math.round(connections * part));
  // Connected now and then, and not counted.
  const changing = { newConnections: share(0.02), slowReaders: share(0.01) };
  const lasting = {
    tlsConnections: share(0.08),
    http2Connections: share(0.01),
    webSockets: share(0.12),
    tcpSessions: share(0.12),
  };
  const sum = Object.values(lasting).reduce((total, count) => total + count, 0);
  return { ...changing, ...lasting, keptConnections: Math.max(1, Math.ceil(connections * MARGIN) - sum) };
};

const median = (values: number[]): number => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;

/** Of the time under full load, the last quarter against the second. */
const growthOf = (samples: Sample[], valueOf: (sample: Sample) => number): [number, number] => {
  const quarter = Math.floor(samples.length / 4);
  return [median(samples.slice(quarter, 2 * quarter).map(valueOf)), median(samples.slice(3 * quarter).map(valueOf))];
};

const countsOf = (events: { what: string }[]): Record<string, number> => {
  const counts: Record<string, number> = {};
  for (const { what } of events) counts[what] = (counts[what] ?? 0) + 1;
  return counts;
};

const mib = (bytes: number): string => `${(bytes / MIB).toFixed(1)} MiB`;

const leaksOf = (base: Sample, loaded: Sample[], end: Sample): string[] => {
  const leaks: string[] = [];
  if (end.descriptors > base.descriptors + SPARE_DESCRIPTORS)
    leaks.push(`${end.descriptors} descriptors are open after the load, ${base.descriptors} before it`);
  for (const [thread, before] of Object.entries(base.heaps)) {
    const after = end.heaps[thread];
    if (after === undefined) leaks.push(`the thread ${thread} has ended`);
    else if (after > before + SPARE_HEAP_BYTES)
      leaks.push(`the heap of ${thread} is ${mib(after)} after the load, ${mib(before)} before it`);
    const [early, late] = growthOf(loaded, ({ heaps }) => heaps[thread] ?? 0);
    if (late > early * HEAP_GROWTH + HEAP_GROWTH_BYTES)
      leaks.push(`the heap of ${thread} grew under load from ${mib(early)} to ${mib(late)}`);
  }
  const [early, late] = growthOf(loaded, ({ rssBytes }) => rssBytes);
  if (late > early * RSS_GROWTH + RSS_GROWTH_BYTES) leaks.push(`the process grew from ${mib(early)} to ${mib(late)}`);
  return leaks;
};

const sampleOf = async (node: SoakNode, startedMs: number, { done }: Tally): Promise<Sample> => ({
  seconds: Math.round((performance.now() - startedMs) / 1_000),
  connections: (await node.metrics()).get('frontend_active') ?? 0,
  done: Object.values(done).reduce((sum, count) => sum + count, 0),
  heaps: await node.heaps(),
  rssBytes: node.rssBytes,
  descriptors: node.descriptors,
});

const describeSample = ({ seconds, connections, done, rssBytes, descriptors, heaps }: Sample): string =>
  `${String(seconds).padStart(5)} s  ${connections} connections, ${done} done, RSS ${mib(rssBytes)}, ` +
  `${descriptors} descriptors, heaps ${Object.entries(heaps)
    .map(([thread, bytes]) => `${thread} ${mib(bytes)}`)
    .join(', ')}`;

export const runSoak = async (options: SoakOptions): Promise<SoakResult> => {
  const { say } = options;
  const folder = mkdtempSync(join(tmpdir(), 'understudy-soak-'));
  const [http, tls, tcp] = await freePorts(3);
  const ports: Ports = { http: http!, tls: tls!, tcp: tcp! };
  const servers: SoakServer[] = [];
  let node: SoakNode | null = null;
  let clients: Clients | null = null;
  let reloads = 0;
  try {
    for (const name of ['spare', 'web1', 'web2', 'web3']) servers.push(await SoakServer.start(name));
    const [spare, ...mortal] = servers;
    const certificate = makeCertificate(folder);
    const config = (n: number) => configOf(n, ports, mortal, spare!, certificate);
    node = await SoakNode.start({ config: config(0), inspected: true });

    const startedMs = performance.now();
    const { descriptors } = node;
    clients = new Clients({ ports, counts: countsFor(100), thinkMs: 100, clientsPerSecond: CLIENTS_PER_SECOND }, 1);
    await clients.started;
    await wait(WARM_UP_MS);
    await clients.stop();
    const violations = judge(clients.tally, new Map());
    // Connections to servers are kept a little longer.
    const base = { ...(await sampleOf(node, startedMs, clients.tally)), descriptors };
    say(`${describeSample(base)} after a little load`);

    const processes = Math.ceil(options.connections / CLIENTS_PER_PROCESS);
    const load: Load = {
      ports,
      counts: countsFor(options.connections / processes),
      thinkMs: options.thinkMs,
      clientsPerSecond: CLIENTS_PER_SECOND / processes,
    };
    clients = new Clients(load, processes);
    const killer = new Killer(mortal, options.killEveryMs);
    await clients.started;
    say('all clients are there');
    killer.start();
    const loaded: Sample[] = [];
    let reloadAtMs = performance.now() + options.reloadEveryMs;
    const untilMs = performance.now() + options.seconds * 1_000;
    while (performance.now() < untilMs && node.isAlive) {
      await wait(Math.max(1, Math.min(options.sampleEveryMs, untilMs - performance.now())));
      if (performance.now() >= reloadAtMs) {
        reloadAtMs += options.reloadEveryMs;
        node.reload(config(++reloads));
      }
      const sample = await sampleOf(node, startedMs, clients.tally);
      loaded.push(sample);
      const found = judge(clients.tally, killer.killedMs);
      say(
        `${describeSample(sample)}; ${killer.killedMs.size} kills, ${reloads} reloads, ` +
          `${clients.tally.cutOffs.length} cut off, ${clients.tally.lost.length} lost, ${found.length} violations` +
          (found.length > 0 ? `: ${found.at(-1)}` : ''),
      );
    }
    await killer.stop();
    await clients.stop();
    say('all clients are gone');
    let end = await sampleOf(node, startedMs, clients.tally);
    const releasedByMs = performance.now() + RELEASE_TIMEOUT_MS;
    while (end.descriptors > base.descriptors + SPARE_DESCRIPTORS && performance.now() < releasedByMs) {
      await wait(500);
      end = await sampleOf(node, startedMs, clients.tally);
    }
    say(describeSample(end));
    const { log } = node;
    const faults = log.filter((line) => /must not happen|worker.*(?:crashed|exited)/.test(line));
    violations.push(...judge(clients.tally, killer.killedMs), ...leaksOf(base, loaded, end), ...faults);
    return {
      violations,
      done: clients.tally.done,
      cutOffs: countsOf(clients.tally.cutOffs),
      lost: countsOf(clients.tally.lost),
      kills: killer.killedMs.size,
      reloads,
      maxConnections: Math.max(...loaded.map(({ connections }) => connections)),
      base,
      end,
    };
  } finally {
    clients?.kill();
    await node?.end();
    await Promise.all(servers.map((server) => server.kill()));
    rmSync(folder, { recursive: true, force: true });
  }
};

if (import.meta.main) {
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(130));
  const result = await runSoak({
    seconds: Number(process.argv[2] ?? 1_800),
    connections: Number(process.argv[3] ?? 10_000),
    thinkMs: 16_000,
    killEveryMs: 30_000,
    reloadEveryMs: 60_000,
    sampleEveryMs: 10_000,
    say: (line) => console.log(line),
  });
  console.log(JSON.stringify(result, null, 2));
  if (result.violations.length > 0) process.exitCode = 1;
}
