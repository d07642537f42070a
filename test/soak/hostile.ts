/**
 * Hostile clients of every kind by the thousand at a node as operators run it, beside clients who behave: these are
 * served, memory is bounded by what the limits allow, and when it is over nothing is left.
 * `node test/soak/hostile.ts [SECONDS] [CLIENTS]` (`npm run soak:hostile`); a short form is among the tests.
 */
import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { freePorts } from '../ports.ts';
import type { Assault, Outcomes } from './attackers.ts';
import { ATTACKS } from './attacks.ts';
import type { AttackName } from './attacks.ts';
import { makeCertificate } from './certificate.ts';
import { Clients } from './clients.ts';
import type { Counts } from './load.ts';
import { SoakNode } from './node.ts';
import { SoakServer } from './servers.ts';
import { judge } from './tally.ts';
import type { Ports } from './world.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
const HOST = '127.0.0.1';
const ATTACKERS_PER_PROCESS = 4_000;
const SAMPLE_MS = 1_000;
/** Times as long again, on a busy machine, until all attacks have been met. */
const MORE_PATIENCE = 4;
/** Checks of servers, and whoever asks the API. */
const SPARE_DESCRIPTORS = 16;

/** A connection, with its session of TLS and what it keeps of a request. */
const CONNECTION_BYTES = 96 * KIB;
/** One read in each direction that the other side does not take, copied. */
const UNTAKEN_BYTES = 2 * 128 * KIB;
/** Heaps as they grow between two collections, and buffers whose owners wait for one. */
const SPARE_BYTES = 128 * MIB;

export type HostileOptions = {
  seconds: number;
  attackers: Partial<Record<AttackName, number>>;
  /** Clients who behave. */
  clients: Counts;
  /** Of all kinds, for clients and servers; connections between two requests are kept ten times as long. */
  timeoutMs: number;
  maxConnections: number;
  maxDescriptors?: number;
  say: (line: string) => void;
};

export type HostileResult = {
  /** Nothing that the proxy is to blame for when empty. */
  violations: string[];
  /** Of the clients who behave. */
  done: Record<string, number>;
  outcomes: Outcomes;
  peakBytes: number;
  allowedBytes: number;
  /** Before, at the most, and after. */
  descriptors: [number, number, number];
};

/** What an attack has to be met with, where that is always the same. */
const REFUSALS: Partial<Record<AttackName, string>> = {
  slowHeads: '408',
  slowFields: '408',
  headerFloods: '431',
  longLines: '414',
  stalledBodies: '408',
  extensionFloods: '400',
  neverAnswered: '504',
  garbage: '400',
  halfClosed: '400',
  silentConnections: 'closed',
  unreadResponses: 'reset',
  unreadChunks: 'reset',
  pipelineFloods: 'reset',
  unreadEchoes: 'reset',
  unreadSockets: 'reset',
  plainToTls: 'reset',
  halfHandshakes: 'reset',
};

const configOf = (
  { timeoutMs, maxConnections }: HostileOptions,
  ports: Ports,
  hostileTcp: number,
  [server, attacked]: SoakServer[],
  certificate: string,
) => {
  const ms = `${timeoutMs}ms`;
  const clientTimeouts = { client: ms, httpRequest: ms, keepAlive: `${10 * timeoutMs}ms` };
  return {
    workers: 2,
    log: { access: { path: '/dev/null' } },
    frontends: {
      web: {
        mode: 'http',
        bind: [`${HOST}:${ports.http}`, { address: `${HOST}:${ports.tls}`, tls: { certificates: [certificate] } }],
        // What attackers do to their own server is not to be mistaken for what they do to the proxy.
        rules: [{ when: { host: 'soak.test' }, use: 'web' }],
        use: 'attacked',
        maxConnections,
        timeouts: clientTimeouts,
      },
      raw: { mode: 'tcp', bind: [`${HOST}:${ports.tcp}`], use: 'raw', maxConnections, timeouts: { client: ms } },
      rawAttacked: {
        mode: 'tcp',
        bind: [`${HOST}:${hostileTcp}`],
        use: 'rawAttacked',
        maxConnections,
        timeouts: { client: ms },
      },
    },
    backends: {
      web: {
        check: { type: 'tcp', interval: '200ms', timeout: '5s', fall: 2 },
        timeouts: { server: ms, tunnel: ms },
        servers: [{ name: 'one', address: `${HOST}:${server!.httpPort}` }],
      },
      attacked: {
        timeouts: { server: ms, tunnel: ms },
        servers: [{ name: 'one', address: `${HOST}:${attacked!.httpPort}` }],
      },
      raw: { timeouts: { server: ms }, servers: [{ name: 'one', address: `${HOST}:${server!.tcpPort}` }] },
      rawAttacked: { timeouts: { server: ms }, servers: [{ name: 'one', address: `${HOST}:${attacked!.tcpPort}` }] },
    },
  };
};

/** Attackers in as many processes as they need. */
class Attackers {
  readonly #children: ChildProcess[];

  constructor(ports: Ports, { attackers, timeoutMs }: HostileOptions) {
    const total = Object.values(attackers).reduce((sum, count) => sum + count, 0);
    const processes = Math.ceil(total / ATTACKERS_PER_PROCESS);
    const counts = Object.fromEntries(
      Object.entries(attackers).map(([name, count]) => [name, Math.ceil(count / processes)]),
    );
    const assault: Assault = { ports, counts, unreadMs: 3 * timeoutMs };
    this.#children = Array.from({ length: processes }, () =>
      fork(join(import.meta.dirname, 'attackers.ts'), [JSON.stringify(assault)]),
    );
  }

  async begun(): Promise<void> {
    await Promise.all(this.#children.map((child) => once(child, 'message')));
  }

  async ask(order: 'tell' | 'stop'): Promise<Outcomes> {
    const sum: Outcomes = {};
    const all = this.#children.map(async (child) => {
      const told = once(child, 'message') as Promise<[Outcomes]>;
      child.send(order);
      const [outcomes] = await told;
      for (const [name, counts] of Object.entries(outcomes)) {
        const ofOne = (sum[name as AttackName] ??= {});
        for (const [outcome, count] of Object.entries(counts)) ofOne[outcome] = (ofOne[outcome] ?? 0) + count;
      }
    });
    await Promise.all(all);
    return sum;
  }

  kill(): void {
    for (const child of this.#children) child.kill('SIGKILL');
  }
}

const allowanceOf = (attackers: HostileOptions['attackers']): number =>
  Object.entries(attackers).reduce(
    (sum, [name, count]) => sum + count * (CONNECTION_BYTES + (ATTACKS[name as AttackName].reads ? 0 : UNTAKEN_BYTES)),
    SPARE_BYTES,
  );

/** Attacks that were not met as they have to be. */
const missing = (attackers: HostileOptions['attackers'], outcomes: Outcomes): string[] =>
  Object.entries(REFUSALS).flatMap(([name, status]) => {
    const seen = outcomes[name as AttackName];
    const isMet = (attackers[name as AttackName] ?? 0) === 0 || (seen?.[status] ?? 0) > 0;
    return isMet ? [] : [`${name} was never met with ${status}: ${JSON.stringify(seen)}`];
  });

const mib = (bytes: number): string => `${(bytes / MIB).toFixed(1)} MiB`;

export const runHostile = async (options: HostileOptions): Promise<HostileResult> => {
  const { attackers, say, timeoutMs } = options;
  const folder = mkdtempSync(join(tmpdir(), 'understudy-hostile-'));
  const [http, tls, tcp, hostileTcp] = await freePorts(4);
  const ports: Ports = { http: http!, tls: tls!, tcp: tcp! };
  const servers: SoakServer[] = [];
  let node: SoakNode | null = null;
  let clients: Clients | null = null;
  let assault: Attackers | null = null;
  try {
    for (const name of ['server', 'attacked']) servers.push(await SoakServer.start(name));
    const { maxDescriptors } = options;
    const config = configOf(options, ports, hostileTcp!, servers, makeCertificate(folder));
    node = await SoakNode.start({ config, ...(maxDescriptors === undefined ? {} : { maxDescriptors }) });
    const before = node.descriptors;

    clients = new Clients({ ports, counts: options.clients, thinkMs: timeoutMs / 20, clientsPerSecond: 1_000 }, 1);
    await clients.started;
    const allowedBytes = node.rssBytes + allowanceOf(attackers);
    assault = new Attackers({ ...ports, tcp: hostileTcp! }, options);
    await assault.begun();
    const startedMs = performance.now();
    const sample = (): string =>
      `${Math.round((performance.now() - startedMs) / 1_000)} s  RSS ${mib(node!.rssBytes)}, ` +
      `${node!.descriptors} descriptors, ${Math.round(node!.cpuMs / 1_000)} s of CPU, ` +
      `${Object.values(clients!.tally.done).reduce((sum, count) => sum + count, 0)} done by clients who behave`;
    let most = 0;
    const wantedUntilMs = startedMs + options.seconds * 1_000;
    const latestMs = wantedUntilMs + MORE_PATIENCE * options.seconds * 1_000;
    for (let isDone = false; !isDone && performance.now() < latestMs;) {
      await wait(SAMPLE_MS);
      most = Math.max(most, node.descriptors);
      say(sample());
      isDone = performance.now() >= wantedUntilMs && missing(attackers, await assault.ask('tell')).length === 0;
    }
    const outcomes = await assault.ask('stop');
    await clients.stop();
    const releasedByMs = performance.now() + 4 * timeoutMs + 10_000;
    while (node.descriptors > before + SPARE_DESCRIPTORS && performance.now() < releasedByMs) await wait(SAMPLE_MS);
    say(`afterwards: ${sample()}`);
    const peakBytes = node.peakRssBytes;
    const violations = judge(clients.tally, new Map());
    if (peakBytes > allowedBytes)
      violations.push(`the process grew to ${mib(peakBytes)}; ${mib(allowedBytes)} allowed`);
    const after = node.descriptors;
    if (after > before + SPARE_DESCRIPTORS) violations.push(`${after} descriptors are open, ${before} were before`);
    violations.push(...node.log.filter((line) => line.includes('must not happen') || line.includes('crashed')));
    violations.push(...missing(attackers, outcomes));
    const { done } = clients.tally;
    return { violations, done, outcomes, peakBytes, allowedBytes, descriptors: [before, most, after] };
  } finally {
    clients?.kill();
    assault?.kill();
    await node?.end();
    await Promise.all(servers.map((server) => server.kill()));
    rmSync(folder, { recursive: true, force: true });
  }
};

/** All kinds alike. */
export const everyAttack = (total: number): Partial<Record<AttackName, number>> => {
  const names = Object.keys(ATTACKS) as AttackName[];
  return Object.fromEntries(names.map((name) => [name, Math.ceil(total / names.length)]));
};

export const WELL_BEHAVED: Counts = {
  keptConnections: 20,
  newConnections: 10,
  slowReaders: 0,
  tlsConnections: 5,
  http2Connections: 3,
  webSockets: 5,
  tcpSessions: 5,
};

if (import.meta.main) {
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(130));
  const result = await runHostile({
    seconds: Number(process.argv[2] ?? 120),
    attackers: everyAttack(Number(process.argv[3] ?? 8_000)),
    clients: WELL_BEHAVED,
    timeoutMs: 10_000,
    maxConnections: 20_000,
    say: (line) => console.log(line),
  });
  console.log(JSON.stringify(result, null, 2));
  if (result.violations.length > 0) process.exitCode = 1;
}
