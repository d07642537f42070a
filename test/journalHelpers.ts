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
import { trackerHands } from '../actors/tracker.ts';
import type { Observation } from '../actors/tracker.ts';
import { virtualAddressHands } from '../actors/virtualAddress.ts';
import type { AddressAnswer } from '../actors/virtualAddress.ts';
import { syncGroupHands, vrrpRouterHands } from '../actors/vrrpRouter.ts';
import { seededRandom } from '../actors/random.ts';
import { ActorSystem } from '../actors/system.ts';
import type { Cause, Entry } from '../actors/recorder.ts';
import { machines } from '../machines/index.ts';
import type { RouterSettings } from '../machines/vrrpRouter.ts';
import { loadConfig } from '../src/config/load.ts';
import type { Config } from '../src/config/schema.ts';
import { hashOf, machineHashes, recordableConfig } from '../src/fingerprint.ts';
import { Journal } from '../src/journal/journal.ts';
import type { JournalOptions } from '../src/journal/journal.ts';
import { JournalReader } from '../src/journal/reader.ts';
import { checksumOf } from '../src/journal/record.ts';
import type { Row } from '../src/journal/record.ts';
import { lastStates, wordFor } from '../src/lastStates.ts';
import { addressKey } from '../src/vrrp/inspector.ts';
import { actorsOf, holdersOf, serverId } from '../src/wiring.ts';

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
  bind?: string;
  /** More of the file, such as routers. */
  more?: string;
};

/** One frontend, the pool `web`. */
export const webConfig = (options: WebOptions = {}): Config => {
  const { interval = '2s', fastInterval = '500ms', timeout = '1s', rise = 2, fall = 3, slowStart = '0' } = options;
  const { servers = ['web1', 'web2'], backups = [], bind = '127.0.0.1:8080', more = '' } = options;
  const text = `
node: lb1
workers: 1
frontends: { shop: { mode: http, bind: ['${bind}'], use: web } }
backends:
  web:
    slowStart: ${slowStart}
    check: { type: http, path: /healthz, interval: ${interval}, fastInterval: ${fastInterval}, timeout: ${timeout}, rise: ${rise}, fall: ${fall}, jitter: 0 }
    servers:
${[...servers, ...backups].map((name, index) => `      - { name: ${name}, address: "10.9.0.${index + 3}:80"${backups.includes(name) ? ', backup: true' : ''} }`).join('\n')}
${more}
`;
  const loaded = loadConfig(text, {}, '/nowhere');
  if (!('config' in loaded)) throw new Error(JSON.stringify(loaded.problems));
  return loaded.config;
};

export type GatewayOptions = WebOptions & { router?: Record<string, unknown>; others?: Record<string, unknown> };

/** With the router `gateway` of priority 150, which gives way when the pool `web` has no usable server. */
export const gatewayConfig = ({ router = {}, others = {}, ...options }: GatewayOptions = {}): Config => {
  const gateway = {
    vrid: 51,
    interface: 'eth0',
    priority: 150,
    addresses: ['10.9.0.100/24'],
    track: [{ pool: 'web', weight: -60 }],
    ...router,
  };
  return webConfig({ ...options, more: `routers: ${JSON.stringify({ gateway, ...others })}\n${options.more ?? ''}` });
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
  /** What trackers see, at this time of the run. */
  observe?: (tracker: string, atMs: number) => Observation;
  addAddress?: (address: string, atMs: number) => AddressAnswer;
};

export const SEEN_UP: Observation = { ok: true, value: null, code: 'EXIT0', message: '', durationMs: 3 };
export const SEEN_DOWN: Observation = {
  ok: false,
  value: null,
  code: 'EXIT1',
  message: 'it ended with 1',
  durationMs: 3,
};

/** Own address of the simulated node. */
const OWN_ADDRESS = '10.9.0.11';
/** From one node to the other. */
const LATENCY_US = 200;

/** Another node with the same virtual router, as its machine has it; what it decides is in nobody's journal. */
export class SimulatedPeer {
  readonly system: ActorSystem;
  readonly address: string;
  #alive = true;

  constructor(
    clock: VirtualClock,
    given: { address: string; settings: Partial<RouterSettings> },
    send: (priority: number, advertMs: number) => void,
  ) {
    this.address = given.address;
    const settings: RouterSettings = {
      version: 3,
      vrid: 51,
      priority: 100,
      advertMs: 1000,
      preempt: true,
      preemptDelayMs: 0,
      startDelayMs: 0,
      addresses: [],
      track: [],
      group: null,
      ...given.settings,
    };
    this.system = new ActorSystem({
      clock,
      random: seededRandom(2),
      recorder: { append: () => ({ seq: null }) },
      machines,
      hands: {
        vrrpRouter: vrrpRouterHands(
          {
            open: (id) => this.system.send(id, interfaceUp(given.address)),
            sendAdvert: (_, priority) => {
              if (this.#alive) send(priority, settings.advertMs);
            },
            look: (_, answer) => answer(null),
            close: () => {},
          },
          () => {},
          () => 0,
        ),
      },
      onFault: ({ error }) => {
        throw error;
      },
    });
    this.system.start('router/peer', 'vrrpRouter', { name: 'peer', settings });
  }

  get alive(): boolean {
    return this.#alive;
  }

  /** It says nothing more. */
  die(): void {
    this.#alive = false;
    this.system.stop('router/peer');
  }

  hear(source: string, priority: number, advertMs: number): void {
    if (this.#alive) this.system.send('router/peer', advertFrom(source, priority, advertMs));
  }
}

const interfaceUp = (address: string) =>
  ({ type: 'interface.up', address, key: addressKey(address) }) as { type: string };

export const advertFrom = (source: string, priority: number, advertMs = 1000, differences: unknown[] = []) =>
  ({ type: 'advert.received', priority, advertMs, source, key: addressKey(source), differences }) as { type: string };

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
  #config: Config;
  #peers: SimulatedPeer[] = [];
  #lastHeardUs = new Map<string, number>();

  static async start(options: SimulatedOptions): Promise<SimulatedNode> {
    const config = options.config ?? webConfig();
    const last = lastStates(options.path);
    const clock = new VirtualClock({ wallUs: options.wallUs ?? NIGHT_US, monoUs: 0 });
    const { path, maxUnwrittenRows } = options;
    const journal = await openJournal({ path, clock, ...(maxUnwrittenRows === undefined ? {} : { maxUnwrittenRows }) });
    const node = new SimulatedNode(journal, clock, config, options);
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
      const known = last.servers.get(spec.id);
      const hint = spec.machine === 'backendServer' && known?.health ? { hint: known.health } : {};
      node.system.start(spec.id, spec.machine, { ...spec.input, ...hint });
      const isHeld = holdersOf(config).has(spec.id);
      if (spec.machine === 'listener' && !isHeld) node.system.send(spec.id, { type: 'listener.open' });
      const word = wordFor(last.routers.get(spec.id));
      if (word) node.system.send(spec.id, word);
      if (known && known.admin !== 'ready') {
        node.system.send(spec.id, { type: `operator.${known.admin}`, restored: true } as { type: string });
      }
    }
    return node;
  }

  private constructor(journal: Journal, clock: VirtualClock, config: Config, options: SimulatedOptions) {
    const { health, lateUs, observe = () => SEEN_UP, addAddress = () => ({ ok: true }) } = options;
    this.#config = config;
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
        listener: {
          openListener: (_: never, actor) => actor.send({ type: 'listener.opened' }),
          drainListener: (_: never, actor) => actor.send({ type: 'listener.drained' }),
        },
        proxyWorker: { startWorker: (_: never, actor) => actor.send({ type: 'worker.ready' }) },
        vrrpRouter: vrrpRouterHands(
          {
            open: (id) => this.system.send(id, interfaceUp(OWN_ADDRESS)),
            sendAdvert: (id, priority) => this.#tellPeers(id, priority),
            look: (id, answer) => answer(this.#silentMs(id)),
            close: () => {},
          },
          () => {},
          () => this.#lateUs / 1000,
        ),
        syncGroup: syncGroupHands(() => {}),
        virtualAddress: virtualAddressHands({
          add: (id, answer) => {
            for (const [listener, holder] of holdersOf(config))
              if (holder === id) this.system.send(listener, { type: 'listener.open' });
            this.#owe(300, () => answer(addAddress(id, this.#atMs())));
          },
          remove: (id, answer) => {
            for (const [listener, holder] of holdersOf(config))
              if (holder === id) this.system.send(listener, { type: 'listener.drain' });
            answer({ ok: true });
          },
          announce: () => {},
        }),
        tracker: trackerHands((tracker, _kind, answer) => {
          const seen = observe(tracker, this.#atMs());
          let given = true;
          this.#owe(seen.durationMs * 1000, () => {
            if (given) answer(seen);
          });
          return () => (given = false);
        }),
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
      const peersUs = this.#peers.map(({ system }) => system.nextDeadlineUs() ?? Infinity);
      const nextUs = Math.min(owedUs, timerUs, ...peersUs);
      if (nextUs > untilUs) break;
      this.clock.advanceTo(nextUs);
      if (owedUs === nextUs) this.#owed.shift()!.deliver();
      else if (timerUs === nextUs) this.system.fireDue();
      else this.#peers[peersUs.indexOf(nextUs)]!.system.fireDue();
    }
    this.clock.advanceTo(untilUs);
  }

  operator(type: string, server = 'web1', params: Record<string, unknown> = {}): void {
    this.system.send(serverId('web', server), { type: `operator.${type}`, ...params });
  }

  /** Another node joins with the same virtual router. */
  peer(address: string, settings: Partial<RouterSettings> = {}): SimulatedPeer {
    const peer = new SimulatedPeer(this.clock, { address, settings }, (priority, advertMs) => {
      this.#owe(LATENCY_US, () => this.hear('gateway', advertFrom(address, priority, advertMs)));
      for (const other of this.#peers)
        if (other !== peer) this.#owe(LATENCY_US, () => other.hear(address, priority, advertMs));
    });
    this.#peers.push(peer);
    return peer;
  }

  /** Something comes in on the wire. */
  hear(router: string, event: { type: string }): void {
    if (event.type === 'advert.received') this.#lastHeardUs.set(`router/${router}`, this.clock.monoUs());
    this.system.send(`router/${router}`, event);
  }

  /** The routers leave, as at the node's end. */
  leave(): void {
    for (const name of Object.keys(this.#config.routers)) this.system.send(`router/${name}`, { type: 'router.stop' });
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

  #tellPeers(id: string, priority: number): void {
    const router = this.#config.routers[id.slice('router/'.length)];
    if (!router) return;
    for (const peer of this.#peers) this.#owe(LATENCY_US, () => peer.hear(OWN_ADDRESS, priority, router.advertise));
  }

  #silentMs(id: string): number | null {
    const heardUs = this.#lastHeardUs.get(id);
    return heardUs === undefined ? null : (this.clock.monoUs() - heardUs) / 1000;
  }

  #atMs(): number {
    return (this.clock.monoUs() - this.#startUs) / 1000;
  }

  #owe(afterUs: number, deliver: () => void): void {
    const monoUs = this.clock.monoUs() + Math.round(afterUs);
    const index = this.#owed.findIndex((other) => other.monoUs > monoUs);
    this.#owed.splice(index === -1 ? this.#owed.length : index, 0, { monoUs, deliver });
  }

  #probe(checker: string, timeoutMs: number, answer: (result: ProbeAnswer) => void): () => void {
    const seen = this.#health(checker.split('/')[2]!, this.#atMs());
    const result = seen.durationMs > timeoutMs ? { ...seen, ok: false, code: 'L7TOUT', durationMs: timeoutMs } : seen;
    let given = true;
    this.#owe(result.durationMs * 1000, () => {
      if (given) answer(result);
    });
    return () => (given = false);
  }
}
