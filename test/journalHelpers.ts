/** What the tests of journal and worlds share: folders, entries, and a node's whole control plane on a virtual clock. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { onTestFinished } from 'vitest';
import { VirtualClock } from '../actors/clock.ts';
import { healthCheckerHands } from '../actors/healthChecker.ts';
import type { ProbeAnswer } from '../actors/healthChecker.ts';
import { seededRandom } from '../actors/random.ts';
import { ActorSystem } from '../actors/system.ts';
import type { Cause, Entry } from '../actors/recorder.ts';
import { machines } from '../machines/index.ts';
import { loadConfig } from '../src/config/load.ts';
import type { Config } from '../src/config/schema.ts';
import { hashOf, machineHashes, recordableConfig } from '../src/fingerprint.ts';
import { Journal } from '../src/journal/journal.ts';
import type { JournalOptions } from '../src/journal/journal.ts';
import { JournalReader } from '../src/journal/reader.ts';
import { checksumOf } from '../src/journal/record.ts';
import type { Row } from '../src/journal/record.ts';
import { lastServerStates } from '../src/lastStates.ts';
import { actorsOf, serverId } from '../src/wiring.ts';

export const root = resolve(import.meta.dirname, '..');
export const program = join(root, 'bin/understudy');

/** 2026-11-22 03:00:00 UTC. */
export const NIGHT_US = Date.UTC(2026, 10, 22, 3, 0, 0) * 1000;

export const KEEP_ALL = { keepMs: 3650 * 86_400_000, maxBytes: 10 * 1024 ** 3 };

/** A folder of the running test's own, removed when it ends. */
export const makeFolder = (): string => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
};

export const entryOf = (given: Partial<Entry> = {}): Entry => ({
  actor: 'server/web/web1',
  machine: 'backendServer',
  origin: 'message',
  from: null,
  event: { type: 'check.passed' },
  cause: null,
  state: 'up,ready,warm',
  effects: [],
  wallUs: NIGHT_US + (given.monoUs ?? 0),
  monoUs: 0,
  steady: false,
  ...given,
});

/** A journal that is closed when the test ends, if it wasn't. */
export const openJournal = async (options: Partial<JournalOptions> & { path: string }): Promise<Journal> => {
  const clock = options.clock ?? new VirtualClock({ wallUs: NIGHT_US, monoUs: 0 });
  const journal = await Journal.open({ retention: KEEP_ALL, ...options, clock });
  const close = journal.close.bind(journal);
  let closing: Promise<void> | null = null;
  journal.close = () => (closing ??= close());
  onTestFinished(() => journal.close());
  return journal;
};

export const withReader = <T>(path: string, read: (reader: JournalReader) => T): T => {
  const reader = new JournalReader(path);
  try {
    return read(reader);
  } finally {
    reader.close();
  }
};

/** Writes to a journal behind the program's back. */
export const tamper = (path: string, change: (db: DatabaseSync) => void): void => {
  const db = new DatabaseSync(path);
  try {
    change(db);
  } finally {
    db.close();
  }
};

/** Changes a row and gives it the checksum that fits, as somebody would who knows how. */
export const forge = (path: string, seq: number, change: (row: Row) => Partial<Row>): void =>
  tamper(path, (db) => {
    const { crc: _crc, ...row } = db.prepare('SELECT * FROM records WHERE seq = ?').get(seq) as unknown as Row & {
      crc: number;
    };
    const forged = { ...row, ...change(row) };
    db.prepare('UPDATE records SET type = ?, state = ?, body = ?, crc = ? WHERE seq = ?').run(
      forged.type,
      forged.state,
      forged.body,
      checksumOf(forged),
      seq,
    );
  });

export const runProgram = (args: string[]): { status: number | null; stdout: string; stderr: string } => {
  const { status, stdout, stderr } = spawnSync(program, args, { encoding: 'utf8', env: { ...process.env, TZ: 'UTC' } });
  return { status, stdout, stderr };
};

export const sqliteShell = (path: string, sql: string): string => {
  const { stdout, stderr, status } = spawnSync('sqlite3', [path, sql], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`sqlite3: ${stderr}`);
  return stdout.trim();
};

export type WebOptions = {
  interval?: string;
  fastInterval?: string;
  timeout?: string;
  rise?: number;
  fall?: number;
  slowStart?: string;
  servers?: string[];
  backups?: string[];
};

/** One frontend, the pool `web`. */
export const webConfig = (options: WebOptions = {}): Config => {
  const { interval = '2s', fastInterval = '500ms', timeout = '1s', rise = 2, fall = 3, slowStart = '0' } = options;
  const { servers = ['web1', 'web2'], backups = [] } = options;
  const text = `
node: lb1
workers: 1
frontends: { shop: { mode: http, bind: ['127.0.0.1:8080'], use: web } }
backends:
  web:
    slowStart: ${slowStart}
    check: { type: http, path: /healthz, interval: ${interval}, fastInterval: ${fastInterval}, timeout: ${timeout}, rise: ${rise}, fall: ${fall}, jitter: 0 }
    servers:
${[...servers, ...backups].map((name, index) => `      - { name: ${name}, address: "10.9.0.${index + 3}:80"${backups.includes(name) ? ', backup: true' : ''} }`).join('\n')}
`;
  const loaded = loadConfig(text, {}, '/nowhere');
  if (!('config' in loaded)) throw new Error(JSON.stringify(loaded.problems));
  return loaded.config;
};

export const PASSED: ProbeAnswer & { ok: boolean } = { ok: true, code: 'L7OK', message: '200 OK', durationMs: 1.25 };
export const REFUSED: ProbeAnswer & { ok: boolean } = {
  ok: false,
  code: 'L4CON',
  message: 'connection refused',
  durationMs: 0.75,
};

/** What a probe of a server sees that starts at this time of the run. */
export type Health = (server: string, atMs: number) => ProbeAnswer;

/** A server that is down in these intervals (ms of the run), everybody else being well. */
export const downWhile =
  (downs: Record<string, [number, number][]>): Health =>
  (server, atMs) =>
    (downs[server] ?? []).some(([from, to]) => atMs >= from && atMs < to) ? REFUSED : PASSED;

export type SimulatedOptions = {
  path: string;
  config?: Config;
  health?: Health;
  /** Every timer is delivered so late, as a real loop does. */
  lateUs?: number;
  wallUs?: number;
  maxUnwrittenRows?: number;
};

type LiveEvent = { actor: string; state: string; wallUs: number; type: string };

/** A node's actors and its real journal, with servers that are only told of and a clock that only moves when told. */
export class SimulatedNode {
  readonly journal: Journal;
  readonly system: ActorSystem;
  readonly clock: VirtualClock;
  /** Every event as the live system decided it, in order. */
  readonly live: LiveEvent[] = [];
  #health: Health;
  #lateUs: number;
  #startUs: number;
  #owed: { monoUs: number; deliver: () => void }[] = [];

  static async start(options: SimulatedOptions): Promise<SimulatedNode> {
    const config = options.config ?? webConfig();
    const last = lastServerStates(options.path);
    const clock = new VirtualClock({ wallUs: options.wallUs ?? NIGHT_US, monoUs: 0 });
    const { path, maxUnwrittenRows } = options;
    const journal = await openJournal({ path, clock, ...(maxUnwrittenRows === undefined ? {} : { maxUnwrittenRows }) });
    const node = new SimulatedNode(journal, clock, options);
    journal.note('node.started', {
      version: 'test',
      node: config.node,
      cluster: config.cluster,
      config: recordableConfig(config),
      configHash: hashOf(JSON.stringify(config)),
      machines: machineHashes(),
    });
    node.system.start('journal', 'journalKeeper', {});
    for (const spec of actorsOf(config)) {
      const known = last.get(spec.id);
      const hint = spec.machine === 'backendServer' && known?.health ? { hint: known.health } : {};
      node.system.start(spec.id, spec.machine, { ...spec.input, ...hint });
      if (spec.machine === 'listener') node.system.send(spec.id, { type: 'listener.open' });
      if (known && known.admin !== 'ready') {
        node.system.send(spec.id, { type: `operator.${known.admin}`, restored: true } as { type: string });
      }
    }
    return node;
  }

  private constructor(journal: Journal, clock: VirtualClock, { health, lateUs }: SimulatedOptions) {
    this.journal = journal;
    this.clock = clock;
    this.#health = health ?? (() => PASSED);
    this.#lateUs = lateUs ?? 0;
    this.#startUs = clock.monoUs();
    this.system = new ActorSystem({
      clock,
      random: seededRandom(1),
      recorder: { append: (entry: Entry): Cause => this.#append(entry) },
      machines,
      hands: {
        healthChecker: healthCheckerHands((checker, timeoutMs, answer) => this.#probe(checker, timeoutMs, answer)),
        listener: { openListener: (_: never, actor) => actor.send({ type: 'listener.opened' }) },
        proxyWorker: { startWorker: (_: never, actor) => actor.send({ type: 'worker.ready' }) },
      },
      onFault: ({ error }) => {
        throw error;
      },
    });
    journal.attach(this.system, (trouble) => this.system.send('journal', trouble));
  }

  /** Lets time pass up to this moment of the run. */
  runUntil(ms: number): void {
    const untilUs = this.#startUs + ms * 1000;
    for (;;) {
      const owedUs = this.#owed[0]?.monoUs ?? Infinity;
      const timerUs = (this.system.nextDeadlineUs() ?? Infinity) + this.#lateUs;
      const nextUs = Math.min(owedUs, timerUs);
      if (nextUs > untilUs) break;
      this.clock.advanceTo(nextUs);
      if (owedUs <= timerUs) this.#owed.shift()!.deliver();
      else this.system.fireDue();
    }
    this.clock.advanceTo(untilUs);
  }

  operator(type: string, server = 'web1', params: Record<string, unknown> = {}): void {
    this.system.send(serverId('web', server), { type: `operator.${type}`, ...params });
  }

  stateAt(untilUs: number): Map<string, string> {
    const states = new Map<string, string>();
    for (const { actor, state, wallUs, type } of this.live) {
      if (wallUs > untilUs) break;
      if (type === 'actor.stopped') states.delete(actor);
      else states.set(actor, state);
    }
    return states;
  }

  #append(entry: Entry): Cause {
    this.live.push({ actor: entry.actor, state: entry.state, wallUs: entry.wallUs, type: entry.event.type });
    return this.journal.append(entry);
  }

  #probe(checker: string, timeoutMs: number, answer: (result: ProbeAnswer) => void): () => void {
    const atMs = (this.clock.monoUs() - this.#startUs) / 1000;
    const seen = this.#health(checker.split('/')[2]!, atMs);
    const result = seen.durationMs > timeoutMs ? { ...seen, ok: false, code: 'L7TOUT', durationMs: timeoutMs } : seen;
    let given = true;
    const monoUs = this.clock.monoUs() + Math.round(result.durationMs * 1000);
    const index = this.#owed.findIndex((other) => other.monoUs > monoUs);
    const deliver = () => {
      if (given) answer(result);
    };
    this.#owed.splice(index === -1 ? this.#owed.length : index, 0, { monoUs, deliver });
    return () => (given = false);
  }
}
