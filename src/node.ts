/** One node: the whole wiring. Configuration in, traffic served, everything recorded. */
import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Logger } from 'pino';
import { dataPlaneHands } from '../actors/dataPlane.ts';
import { healthCheckerHands } from '../actors/healthChecker.ts';
import { seededRandom } from '../actors/random.ts';
import { ActorSystem } from '../actors/system.ts';
import type { Cause, Entry } from '../actors/recorder.ts';
import type { ActorState } from '../actors/system.ts';
import type { BackendServerContext } from '../machines/backendServer.ts';
import type { RouterContext } from '../machines/vrrpRouter.ts';
import { machines } from '../machines/index.ts';
import { OWNER_PRIORITY } from '../machines/vrrpRouter.ts';
import { NatsBus } from './bus/natsBus.ts';
import { subjectsOf } from './bus/subjects.ts';
import { startProbe } from './checks/probe.ts';
import type { ProbeResult, ProbeTarget } from './checks/outcome.ts';
import { SystemClock } from './clock.ts';
import { Cluster } from './cluster/cluster.ts';
import type { CheckConfig, Config } from './config/schema.ts';
import type { ConfigSource } from './config/source.ts';
import type { Endpoint } from './config/units.ts';
import { DataPlaneModels, listenersOf } from './dataPlaneWiring.ts';
import { messageOf, UnderstudyError } from './errors.ts';
import { hashOf, machineHashes, recordableConfig } from './fingerprint.ts';
import { Journal } from './journal/journal.ts';
import { lastStates, wordFor } from './lastStates.ts';
import type { LastServerState, LastStates, RouterIntent } from './lastStates.ts';
import { Lateness } from './lateness.ts';
import { assertBindable } from './net/bindable.ts';
import { AccessLogWriter } from './proxy/accessLogWriter.ts';
import { DataPlane } from './proxy/dataPlane.ts';
import type { ListenerModel, Model } from './proxy/model.ts';
import { version } from './version.ts';
import { BoundAddresses } from './vrrp/boundAddresses.ts';
import { readAuthentications, VrrpHost } from './vrrp/host.ts';
import { RouterTallies } from './vrrp/tallies.ts';
import { routerId } from './vrrp/wiring.ts';
import { actorsOf, checkerId, holdersOf, listenerId, observerId, poolId, serverId, virtualHostsOf } from './wiring.ts';
import type { ActorSpec } from './wiring.ts';

export const JOURNAL_ACTOR = 'journal';

export type Command =
  | { type: 'server.ready' | 'server.drain' | 'server.maintenance'; pool: string; server: string }
  | { type: 'server.weight'; pool: string; server: string; weight: number }
  | { type: 'router.demote' | 'router.promote'; router: string };

export type CommandResult = {
  actor: string;
  before: string;
  after: string;
  /** False while the journal can't be written: the command holds, but a restart would forget it. */
  recorded: boolean;
};

export type ReloadResult = {
  added: string[];
  removed: string[];
  changed: string[];
  replaced: string[];
  /** Changes that take effect only when the node is started again. */
  needRestart: string[];
  recorded: boolean;
};

export type LastProbe = ProbeResult & { atUs: number };

type Checked = { target: ProbeTarget; check: CheckConfig };

/** How long a router that leaves may take: its addresses stay until a successor is heard, or two of its intervals. */
const LONGEST_HAND_OVER_MS = 5_000;
/** Workers start within a second; on a machine that is overloaded they take many. */
const LONGEST_START_MS = 10_000;
/** How long the end of traffic may take beyond the frontends' own drain times, for workers to end. */
const WORKER_END_MS = 2_000;

export class UnderstudyNode {
  readonly startedUs: number;
  readonly clock: SystemClock;
  readonly system: ActorSystem;
  readonly journal: Journal;
  readonly dataPlane: DataPlane;
  readonly accessLog: AccessLogWriter;
  readonly vrrp: VrrpHost;
  readonly tallies: RouterTallies;
  /** Null on the bus `memory`. */
  readonly cluster: Cluster | null;
  readonly lateness = new Lateness();
  readonly lastProbes = new Map<string, LastProbe>();
  /** Ports that the kernel chose for listeners bound to port 0, and all others. */
  readonly ports = new Map<string, number>();
  /** How often each observer's server was ejected since the node started. */
  readonly ejections = new Map<string, number>();
  config: Config;
  #log: Logger;
  #specs: Map<string, ActorSpec>;
  readonly #models: DataPlaneModels;
  #listeners = new Map<string, ListenerModel>();
  #checked = new Map<string, Checked>();
  #disabled = new Set<string>();
  /** A node that is only just starting is reloaded when it has started. */
  #started = Promise.withResolvers<void>();
  #reloading: Promise<unknown> = this.#started.promise;
  /** How this node's own configuration is read again; whoever runs the node knows. */
  readOwnConfig: (() => Promise<ReloadResult>) | null = null;
  #stopping = false;
  #handedOver = false;
  #handingOver: Promise<void> | null = null;
  #transitionWaiters = new Set<() => void>();
  #bound = new BoundAddresses(() => this.system);
  /** Routers and addresses that a reload takes away or replaces, as soon as they have let go. */
  #retiring = new Set<string>();
  /** Between the end of what a reload replaces and the new configuration: what takes its place starts after both. */
  #reconfiguring = false;

  /**
   * Starts a node. Everything that can be refused is refused before anything is started.
   * @throws UnderstudyError ADDRESS_IN_USE, ADDRESS_UNAVAILABLE, JOURNAL_UNWRITABLE, JOURNAL_IN_USE, JOURNAL_TOO_NEW
   */
  static async start(
    config: Config,
    configText: string,
    log: Logger,
    sockets: ReadonlyMap<string, number[]> = new Map(),
    source: ConfigSource | null = null,
  ): Promise<UnderstudyNode> {
    for (const [frontend, { bind }] of Object.entries(config.frontends)) {
      for (const { address } of bind) {
        // A virtual address may be another node's at the moment.
        if (virtualHostsOf(config).has(address.host) || sockets.has(listenerId(frontend, address))) continue;
        await assertBindable(`frontend ${frontend}`, address);
      }
    }
    const { path } = config.journal;
    makeFolder(path);
    let last: LastStates = { servers: new Map(), routers: new Map(), desk: null };
    try {
      last = lastStates(path);
    } catch (error) {
      // An unusable file is set aside when it is opened; a usable one with an unreadable record goes on. Either way
      // what operators wanted before is not known any more, and they are told.
      log.warn(`what operators wanted before this start is not known: ${messageOf(error)}`);
    }
    const clock = new SystemClock();
    const journal = await Journal.open({ path, retention: retentionOf(config), clock });
    const node = new UnderstudyNode(config, journal, clock, log, source);
    node.dataPlane.adopt(sockets);
    await node.#begin(configText, last);
    await node.#listenersSettled();
    node.dataPlane.dropUnclaimed();
    node.#started.resolve();
    return node;
  }

  private constructor(config: Config, journal: Journal, clock: SystemClock, log: Logger, source: ConfigSource | null) {
    this.config = config;
    this.journal = journal;
    this.clock = clock;
    this.#log = log;
    this.startedUs = clock.wallUs();
    this.#specs = new Map(actorsOf(config).map((spec) => [spec.id, spec]));
    const report = (id: string, event: { type: string } & Record<string, unknown>) => {
      // What the data plane still has to tell is about nobody's state any more.
      if (!this.#handedOver) this.system.send(id, event);
    };
    this.accessLog = new AccessLogWriter((event) => {
      if (event.type === 'accessLog.failed') log.error(event.message);
      else log.info(event.message);
    });
    this.dataPlane = new DataPlane((worker) => this.accessLog.memoryOf(worker), {
      workerReady: (index) => report(`worker/${index}`, { type: 'worker.ready' }),
      workerExited: (index, code, message) => report(`worker/${index}`, { type: 'worker.exited', code, message }),
      listenerOpened: (id, port) => {
        this.ports.set(id, port);
        if (this.system.get(id)?.state !== 'open') report(id, { type: 'listener.opened' });
      },
      listenerFailed: (id, code, message) => report(id, { type: 'listener.failed', code, message }),
      listenerDrained: (id) => report(id, { type: 'listener.drained' }),
      observed: ({ pool, server, ...observation }) =>
        report(observerId(pool, server), { type: 'traffic.observed', ...observation }),
    });
    this.#models = new DataPlaneModels({
      slot: (name) => this.dataPlane.slot(name),
      sink: (logConfig) => this.accessLog.sink(logConfig),
    });
    this.vrrp = new VrrpHost({
      system: () => this.system,
      clock,
      journalPath: config.journal.path,
      nats: () => this.cluster?.natsPort ?? null,
      note: (type, payload) => journal.note(type, payload),
      warn: (message) => log.warn(message),
      bind: (address, done) => this.#bound.bind(address, done),
      unbind: (address, done) => this.#bound.unbind(address, done),
    });
    this.cluster = this.#clusterOf(config, source);
    this.system = new ActorSystem({
      clock,
      random: seededRandom(Number(process.hrtime.bigint() & 0xffff_ffffn)),
      recorder: journal,
      machines,
      precise: new Set(['vrrpRouter']),
      hands: {
        healthChecker: healthCheckerHands((checker, timeoutMs, answer) => this.#probe(checker, timeoutMs, answer)),
        ...dataPlaneHands({
          publish: (pool, mode, weights, draining) => this.dataPlane.publish(pool, mode, weights, draining),
          shutdownSessions: (pool, server) => this.dataPlane.shutdownSessions(pool, server),
          openListener: (id) => this.#openListener(id),
          drainListener: (id) => this.dataPlane.drainListener(id),
          closeListener: (id) => this.dataPlane.closeListener(id),
          startWorker: (index) => this.dataPlane.startWorker(index),
          drainWorker: (index) => this.dataPlane.drainWorker(index),
          endWorker: (index) => this.dataPlane.endWorker(index),
        }),
        ...this.vrrp.hands,
        ...this.cluster?.hands,
      },
      onFault: ({ actor, during, error }) => log.error({ actor, during, err: error }, 'a fault that must not happen'),
    });
    this.system.measureLateness((lateUs) => this.lateness.observe(lateUs));
    this.tallies = new RouterTallies(this.system);
    this.system.onTransition((actor, entry) => this.#noticed(actor, entry));
    journal.attach(this.system, (trouble) => this.system.send(JOURNAL_ACTOR, trouble));
  }

  #clusterOf(config: Config, source: ConfigSource | null): Cluster | null {
    if (config.bus === 'memory') return null;
    const { cluster, node, bus, journal } = config;
    return new Cluster({
      bus: new NatsBus({ cluster, node, journalPath: journal.path, nats: bus.nats }),
      subjects: subjectsOf(cluster),
      node,
      cluster,
      nats: bus.nats,
      clock: this.clock,
      journal: this.journal,
      log: this.#log,
      latenessP99Ms: () => this.lateness.quantileUs(0.99) / 1000,
      system: () => this.system,
      config: () => this.config,
      targets: (command) => this.targets(command),
      source,
      applyConfig: (next, text) => this.reload(next, text),
      reload: async () => {
        if (!this.readOwnConfig) throw new UnderstudyError('NODE_REFUSED', 'this node is only just starting');
        return this.readOwnConfig();
      },
    });
  }

  /** Carries a command out on this node. @throws UnderstudyError NODE_REFUSED */
  async command(command: Command): Promise<CommandResult> {
    const actors = this.targets(command);
    const actor = actors[0]!;
    const before = this.system.get(actor);
    if (!before) throw new UnderstudyError('NODE_REFUSED', this.#unknown(command));
    const { type, pool: _pool, server: _server, router: _router, ...params } = command as Record<string, unknown>;
    const word = { type: String(type).replace(/^(server|router)\./, 'operator.'), ...params };
    for (const id of actors) this.system.send(id, word);
    const recorded = await this.journal.written();
    return { actor, before: before.state, after: this.system.get(actor)?.state ?? before.state, recorded };
  }

  /**
   * The actors that a command is for, the one that it names first: members of a sync group move together, so they are
   * told together. @throws UnderstudyError NODE_REFUSED
   */
  targets(command: Command): string[] {
    const id = 'router' in command ? routerId(command.router) : serverId(command.pool, command.server);
    const spec = this.#specs.get(id);
    if (!spec) throw new UnderstudyError('NODE_REFUSED', this.#unknown(command));
    if (spec.machine !== 'vrrpRouter') return [id];
    const { priority, group } = spec.input.settings;
    if (priority === OWNER_PRIORITY) {
      const message = `${id} is the owner of its addresses (priority 255): it is master whenever it runs`;
      throw new UnderstudyError('NODE_REFUSED', message);
    }
    const others = [...this.#specs.values()].filter(
      (other) =>
        other.machine === 'vrrpRouter' && other.id !== id && group !== null && other.input.settings.group === group,
    );
    return [id, ...others.map((other) => other.id)];
  }

  #unknown(command: Command): string {
    const idsOf = (machine: string) =>
      [...this.#specs.values()].flatMap((spec) => (spec.machine === machine ? [spec.id] : [])).slice(0, 20);
    if ('router' in command) {
      const known = idsOf('vrrpRouter').map((id) => id.slice('router/'.length));
      return `there is no router ${command.router}; ${known.length > 0 ? `there are ${known.join(', ')}` : 'this node has none'}`;
    }
    const known = idsOf('backendServer').map((id) => id.slice('server/'.length));
    return `there is no server ${command.pool}/${command.server}; there are ${known.join(', ')}`;
  }

  /** Applies another configuration; what it doesn't change isn't touched. Reloads wait for each other. */
  reload(config: Config, configText: string): Promise<ReloadResult> {
    if (this.#handingOver) {
      const message = 'this process has handed over to another one; it ends what is under way, and is not reloaded';
      return Promise.reject(new UnderstudyError('NODE_REFUSED', message));
    }
    const result = this.#reloading.then(() => this.#reload(config, configText));
    // A reload that was refused must not refuse those after it.
    this.#reloading = result.catch(() => {});
    return result;
  }

  /** Ends traffic in order, then everything else. */
  async stop(): Promise<void> {
    if (this.#handingOver) {
      // The process that was to take over is gone.
      await this.#handingOver;
      await this.leave();
    }
    if (this.#stopping) return;
    this.#stopping = true;
    await this.#leaveRouters();
    const listeners = this.#idsOf('listener');
    for (const id of listeners) this.system.send(id, { type: 'listener.drain' });
    const drainMs = Math.max(0, ...Object.values(this.config.frontends).map(({ drain }) => drain));
    await this.#until(
      () => listeners.every((id) => isOneOf(this.system.get(id)?.state, ['closed'])),
      drainMs + WORKER_END_MS,
    );
    const workers = this.#idsOf('proxyWorker');
    for (const id of workers) this.system.send(id, { type: 'worker.drain' });
    await this.#until(() => workers.every((id) => isOneOf(this.system.get(id)?.state, ['stopped'])), WORKER_END_MS);
    await this.dataPlane.terminate();
    await this.accessLog.close();
    for (const id of [...this.#idsOf('healthChecker'), ...this.#idsOf('tracker')]) this.system.stop(id);
    await this.cluster?.stop();
    await this.vrrp.end();
    this.clock.stop();
    this.journal.closeRuns();
    this.journal.note('node.stopped', { reason: 'asked to' });
    await this.journal.close();
    await this.cluster?.leave();
  }

  /**
   * For a process that takes over: everything but traffic ends here, the journal too. Gives the listening sockets, which
   * this process goes on serving until `leave`.
   */
  async handOver(): Promise<ReadonlyMap<string, number[]>> {
    // An earlier one may have gone away before it served.
    this.#handingOver ??= this.#handOver();
    await this.#handingOver;
    return this.dataPlane.sockets;
  }

  async #handOver(): Promise<void> {
    await this.#reloading;
    this.#stopping = true;
    await this.#leaveRouters();
    this.#handedOver = true;
    for (const id of [...this.#idsOf('healthChecker'), ...this.#idsOf('tracker')]) this.system.stop(id);
    await this.cluster?.stop();
    await this.vrrp.end();
    this.clock.stop();
    this.journal.closeRuns();
    this.journal.note('node.stopped', { reason: 'another process takes over' });
    await this.journal.close();
    await this.cluster?.leave();
  }

  /** Ends what is under way, after `handOver`. */
  async leave(): Promise<void> {
    const drainMs = Math.max(0, ...Object.values(this.config.frontends).map(({ drain }) => drain));
    await this.dataPlane.drain(drainMs + WORKER_END_MS);
    await this.dataPlane.terminate();
    await this.accessLog.close();
  }

  /** Priority 0 first; the addresses stay until a successor is heard. */
  async #leaveRouters(): Promise<void> {
    for (const id of this.#idsOf('vrrpRouter')) this.system.send(id, { type: 'router.stop' });
    const addresses = this.#idsOf('virtualAddress');
    const areGone = () => addresses.every((id) => isOneOf(this.system.get(id)?.state, ['absent', 'failed']));
    await this.#until(areGone, LONGEST_HAND_OVER_MS);
    // Nobody has spoken: what is still held goes now, as nothing may be left behind.
    for (const id of addresses) this.system.send(id, { type: 'address.release' });
    await this.#until(areGone, WORKER_END_MS);
  }

  async #begin(configText: string, last: LastStates): Promise<void> {
    this.journal.note('node.started', {
      version,
      node: this.config.node,
      cluster: this.config.cluster,
      config: recordableConfig(this.config),
      configHash: hashOf(configText),
      machines: machineHashes(),
    });
    this.system.start(JOURNAL_ACTOR, 'journalKeeper', {});
    if (this.journal.aside) {
      const { path, message } = this.journal.aside;
      this.system.send(JOURNAL_ACTOR, { type: 'journal.replaced', aside: path, message } as { type: string });
    }
    this.#configureDataPlane(this.#prepareDataPlane(this.config));
    this.vrrp.configure(this.config, readAuthentications(this.config));
    const specs = [...this.#specs.values()];
    const isRouter = ({ machine }: ActorSpec) => machine === 'vrrpRouter';
    const takesTraffic = (spec: ActorSpec) => spec.machine === 'listener' || isRouter(spec);
    const start = (spec: ActorSpec) => {
      this.#startActor(spec, null, last.servers.get(spec.id));
      this.#restoreWord(spec.id, last.routers.get(spec.id));
      this.cluster?.commands.appeared(spec.id);
    };
    for (const spec of specs) if (!this.cluster || !takesTraffic(spec)) start(spec);
    if (!this.cluster || this.config.bus === 'memory') return;
    this.cluster.commands.restore(last.desk);
    this.cluster.start();
    const { startWait } = this.config.bus.nats;
    // What operators have wanted while this node was away holds before it takes traffic.
    if (!(await this.cluster.commands.caughtUp(startWait)))
      this.#log.warn(`NATS gave no word within ${startWait} ms: this node starts with what it last knew`);
    for (const spec of specs) if (takesTraffic(spec) && !isRouter(spec)) start(spec);
    // An address that comes back must not come before there is anybody to serve it.
    await this.#serving();
    for (const spec of specs) if (isRouter(spec)) start(spec);
  }

  #startActor(spec: ActorSpec, cause: Cause | null, last?: LastServerState): void {
    if (this.system.has(spec.id)) {
      // Removed by one reload and wanted again by the next, while what it had is still ending.
      if (spec.machine === 'listener') this.#openUnlessHeld(spec.id, cause);
      return;
    }
    this.#launch(spec, cause, last);
  }

  #launch(spec: ActorSpec, cause: Cause | null, last?: LastServerState): void {
    const hint = spec.machine === 'backendServer' && last?.health ? { hint: last.health } : {};
    this.system.start(spec.id, spec.machine, { ...spec.input, ...hint }, cause);
    if (spec.machine === 'backendServer') {
      this.#restoreIntent(spec.id, last, this.#disabled.has(spec.id), spec.input.settings.weight);
    }
    if (spec.machine === 'listener') this.#openUnlessHeld(spec.id, cause);
    // One that a reload has replaced, of a router that it has not.
    if (spec.machine === 'virtualAddress' && this.system.get(spec.input.router)?.state === 'master')
      this.system.send(spec.id, { type: 'address.acquire' }, cause);
  }

  /** A listener on an address that is held by binding opens when the router becomes master. */
  #openUnlessHeld(id: string, cause: Cause | null): void {
    if (!this.#bound.opensWithItsAddress(id)) this.system.send(id, { type: 'listener.open' }, cause);
  }

  #restoreIntent(id: string, last: LastServerState | undefined, disabled: boolean, weight: number): void {
    if (last && last.disabled !== undefined && last.disabled !== disabled) {
      // The file says something else than when the node last ran: that is the newest word.
      const type = disabled ? 'operator.maintenance' : 'operator.ready';
      this.system.send(id, { type, configured: true } as { type: string });
    } else if (last && last.admin !== 'ready') {
      this.system.send(id, { type: `operator.${last.admin}`, restored: true } as { type: string });
    } else if (disabled && !last) {
      this.system.send(id, { type: 'operator.maintenance', configured: true } as { type: string });
    }
    // A weight that the file has changed meanwhile is the newer word.
    if (last?.weight && last.weight.configured === weight) {
      this.system.send(id, { type: 'operator.weight', weight: last.weight.operator, restored: true } as {
        type: string;
      });
    }
  }

  /** What an operator wants of a router. */
  #restoreWord(id: string, intent: RouterIntent | undefined): void {
    const word = wordFor(intent);
    if (word) this.system.send(id, word);
  }

  #routerIntentOf(id: string): RouterIntent | undefined {
    const actor = this.system.get(id);
    return actor?.machine === 'vrrpRouter' ? (actor.context as RouterContext).intent : undefined;
  }

  #intentOf(id: string): LastServerState | null {
    const actor = this.system.get(id);
    if (actor?.machine !== 'backendServer') return null;
    const { weight, settings } = actor.context as BackendServerContext;
    const admin = actor.state.split(',')[1] as LastServerState['admin'];
    const changed = weight === settings.weight ? null : { operator: weight, configured: settings.weight };
    return { health: null, admin, weight: changed };
  }

  /** What workers are to know, made before anything is changed: it reads files, which can be gone. */
  #prepareDataPlane(config: Config): { listeners: ListenerModel[]; model: Model } {
    return { listeners: listenersOf(config), model: this.#models.modelOf(config) };
  }

  #configureDataPlane({ listeners, model }: { listeners: ListenerModel[]; model: Model }): void {
    this.#disabled = new Set(
      Object.entries(this.config.backends).flatMap(([pool, { servers }]) =>
        servers.filter(({ disabled }) => disabled).map(({ name }) => serverId(pool, name)),
      ),
    );
    this.#listeners = new Map(listeners.map((listener) => [listener.id, listener]));
    this.#bound.configure(holdersOf(this.config));
    this.#checked = new Map(
      Object.entries(this.config.backends).flatMap(([pool, { check, servers, sendProxy }]) =>
        check
          ? servers.map(({ name, address, sendProxy: own }): [string, Checked] => [
              checkerId(pool, name),
              { target: { pool, server: name, address, sendProxy: own ?? sendProxy ?? null }, check },
            ])
          : [],
      ),
    );
    this.dataPlane.configure(model);
  }

  #openListener(id: string): void {
    const listener = this.#listeners.get(id);
    if (listener) this.dataPlane.openListener(listener);
  }

  #probe(checker: string, timeoutMs: number, answer: (result: ProbeResult) => void): () => void {
    const checked = this.#checked.get(checker);
    if (!checked) throw new Error(`${checker} has nothing to probe`);
    return startProbe(checked.target, checked.check, timeoutMs, (result) => {
      this.lastProbes.set(checker, { ...result, atUs: this.clock.wallUs() });
      answer(result);
    });
  }

  async #reload(config: Config, configText: string): Promise<ReloadResult> {
    for (const [frontend, { bind }] of Object.entries(config.frontends)) {
      for (const { address } of bind) {
        const isOurs = [...this.#listeners.values()].some((listener) => overlaps(listener.address, address));
        const isVirtual = virtualHostsOf(config).has(address.host);
        if (!isOurs && !isVirtual) await assertBindable(`frontend ${frontend}`, address);
      }
    }
    // What can fail comes before anything is changed.
    const authentications = readAuthentications(config);
    const prepared = this.#prepareDataPlane(config);
    const before = this.#specs;
    const disabledBefore = this.#disabled;
    // What takes effect at the next start only stays what it is until then.
    const after = new Map(actorsOf({ ...config, node: this.config.node }).map((spec) => [spec.id, spec]));
    const difference = differenceOf(before, after);
    const needRestart = restartNeeded(this.config, config);
    const listenersBefore = this.#listeners;
    const seq = this.journal.note('node.configured', {
      config: recordableConfig(config),
      configHash: hashOf(configText),
      ...difference,
    });
    const cause: Cause = { seq };
    // What takes effect at the next start only stays what it is until then.
    const { node, cluster, bus, api, journal } = this.config;
    this.config = { ...config, node, cluster, bus, api, journal: { ...config.journal, path: journal.path } };
    this.#specs = after;
    this.#configureDataPlane(prepared);
    this.cluster?.health.configured();
    this.journal.setRetention(retentionOf(config));
    this.accessLog.reopen();
    // What the operator wants of a server is about its name: a new address doesn't change it.
    const intents = new Map(difference.replaced.map((id) => [id, this.#intentOf(id)]));
    const routerIntents = new Map(difference.replaced.map((id) => [id, this.#routerIntentOf(id)]));
    this.#reconfiguring = true;
    try {
      for (const id of [...difference.removed, ...difference.replaced]) this.#removeActor(before.get(id)!, cause);
      this.vrrp.configure(this.config, authentications);
    } finally {
      this.#reconfiguring = false;
    }
    for (const id of [...difference.replaced, ...difference.added]) {
      this.#startActor(after.get(id)!, cause, intents.get(id) ?? undefined);
      this.#restoreWord(id, routerIntents.get(id));
      this.cluster?.commands.appeared(id);
    }
    for (const id of after.keys()) {
      const disabled = this.#disabled.has(id);
      if (!before.has(id) || disabled === disabledBefore.has(id)) continue;
      const type = disabled ? 'operator.maintenance' : 'operator.ready';
      this.system.send(id, { type, configured: true } as { type: string }, cause);
    }
    for (const id of difference.changed) {
      const spec = after.get(id)!;
      if (differs(settingsOf(before.get(id)!), settingsOf(spec))) this.system.send(id, changeFor(spec), cause);
    }
    for (const [id, listener] of this.#listeners) {
      const known = listenersBefore.get(id);
      if (known && differs(known, listener)) this.dataPlane.openListener(listener);
    }
    const recorded = await this.journal.written();
    return { ...difference, needRestart, recorded };
  }

  #removeActor(spec: ActorSpec, cause: Cause): void {
    switch (spec.machine) {
      case 'backendServer':
        this.system.send(
          poolId(spec.input.pool),
          { type: 'server.left', server: spec.input.name } as { type: string },
          cause,
        );
        this.system.stop(spec.id, cause);
        return;
      case 'listener':
        // It stops when its sessions have ended: see #ended.
        this.system.send(spec.id, { type: 'listener.drain' }, cause);
        return;
      case 'proxyWorker':
        this.system.send(spec.id, { type: 'worker.drain' }, cause);
        return;
      case 'pool':
        this.dataPlane.forgetPool(spec.input.name);
        this.system.stop(spec.id, cause);
        return;
      case 'healthChecker':
        this.lastProbes.delete(spec.id);
        this.system.stop(spec.id, cause);
        return;
      case 'trafficObserver':
        this.ejections.delete(spec.id);
        // What nobody observes any more is nobody's outlier.
        this.system.send(spec.id, { type: 'observer.forget' }, cause);
        this.system.stop(spec.id, cause);
        return;
      case 'vrrpRouter':
        this.#retiring.add(spec.id);
        this.system.send(spec.id, { type: 'router.stop' }, cause);
        return;
      case 'virtualAddress': {
        this.#retiring.add(spec.id);
        // One whose router leaves too is handed over by it.
        if (this.#specs.has(spec.input.router)) this.system.send(spec.id, { type: 'address.release' }, cause);
        const actor = this.system.get(spec.id);
        if (actor && isOver(actor)) this.#ended(actor);
        return;
      }
      case 'tracker':
      case 'syncGroup':
      case 'healthQuorum':
      case 'nodeSight':
        this.system.stop(spec.id, cause);
    }
  }

  /** What had to come to an end before it could be stopped, and what takes its place. */
  #ended(actor: ActorState): void {
    const wanted = this.#specs.get(actor.id);
    const isReplaced = actor.machine === 'proxyWorker' || this.#retiring.has(actor.id);
    if (wanted && !isReplaced) return;
    this.#retiring.delete(actor.id);
    this.system.stop(actor.id);
    // Within a turn of the actor system it stops later in the turn, and what takes its place starts after it.
    if (wanted && !this.#reconfiguring) this.#launch(wanted, null);
  }

  #noticed(actor: ActorState, entry: Entry): void {
    if (actor.machine !== 'healthChecker') {
      this.#log.info({ actor: actor.id, state: actor.state, event: entry.event.type }, `${actor.id} is ${actor.state}`);
    }
    if (actor.machine === 'trafficObserver' && actor.state === 'ejected')
      this.ejections.set(actor.id, (this.ejections.get(actor.id) ?? 0) + 1);
    if (isOver(actor) && !this.#stopping) this.#ended(actor);
    this.#bound.settle();
    for (const wake of [...this.#transitionWaiters]) wake();
  }

  #idsOf(machine: string): string[] {
    return [...this.system.all()].filter((actor) => actor.machine === machine).map(({ id }) => id);
  }

  /** Resolves when `condition` holds after some transition, or when the time is up. */
  #until(condition: () => boolean, timeoutMs: number): Promise<void> {
    return new Promise((done) => {
      const finish = () => {
        this.#transitionWaiters.delete(look);
        clearTimeout(timer);
        done();
      };
      const look = () => {
        if (condition()) finish();
      };
      const timer = setTimeout(finish, timeoutMs);
      this.#transitionWaiters.add(look);
      look();
    });
  }

  /** Workers run and listeners are open, or have failed to. */
  async #serving(): Promise<void> {
    await this.#listenersSettled();
    const areStarted = () => this.#idsOf('proxyWorker').every((id) => this.system.get(id)?.state !== 'starting');
    await this.#until(areStarted, LONGEST_START_MS);
  }

  async #listenersSettled(): Promise<void> {
    const settled = () =>
      this.#idsOf('listener').every(
        (id) => this.#bound.opensWithItsAddress(id) || isOneOf(this.system.get(id)?.state, ['open', 'failed']),
      );
    await this.#until(settled, LONGEST_START_MS);
  }
}

const END_STATES: Partial<Record<ActorSpec['machine'], string>> = {
  listener: 'closed',
  proxyWorker: 'stopped',
  vrrpRouter: 'initialize.stopped',
  virtualAddress: 'absent',
};

const isOver = ({ machine, state }: ActorState): boolean => END_STATES[machine as ActorSpec['machine']] === state;

const isOneOf = (state: string | undefined, states: string[]): boolean => state === undefined || states.includes(state);

/** Two sockets that the kernel would take for one, but for SO_REUSEPORT: the attempt to bind would find our own. */
const overlaps = (a: Endpoint, b: Endpoint): boolean => {
  if (a.path !== undefined || b.path !== undefined) return a.path === b.path;
  const isEvery = ({ host }: Endpoint) => host === '*' || host === '::' || host === '0.0.0.0';
  return a.port === b.port && (a.host === b.host || isEvery(a) || isEvery(b));
};

const retentionOf = ({ journal }: Config) => ({ keepMs: journal.keep, maxBytes: journal.maxSize });

const makeFolder = (path: string): void => {
  try {
    mkdirSync(dirname(path), { recursive: true });
  } catch (error) {
    throw new UnderstudyError(
      'JOURNAL_UNWRITABLE',
      `the journal's folder ${dirname(path)} can't be made: ${messageOf(error)}`,
    );
  }
};

type Difference = Pick<ReloadResult, 'added' | 'removed' | 'changed' | 'replaced'>;

export const differenceOf = (before: Map<string, ActorSpec>, after: Map<string, ActorSpec>): Difference => {
  const difference: Difference = { added: [], removed: [], changed: [], replaced: [] };
  for (const [id, spec] of after) {
    const known = before.get(id);
    if (!known) difference.added.push(id);
    else if (known.identity !== spec.identity) difference.replaced.push(id);
    else if (known.rest !== spec.rest || differs(settingsOf(known), settingsOf(spec))) difference.changed.push(id);
  }
  for (const id of before.keys()) if (!after.has(id)) difference.removed.push(id);
  return difference;
};

const differs = (before: unknown, after: unknown): boolean => JSON.stringify(before) !== JSON.stringify(after);

/** What of an input a running actor can be told. A checker's start delay and a worker's number aren't. */
const settingsOf = (spec: ActorSpec): unknown => {
  switch (spec.machine) {
    case 'listener':
      return { retryMs: spec.input.retryMs, drainMs: spec.input.drainMs };
    case 'proxyWorker':
      return null;
    case 'syncGroup':
      return { members: spec.input.members };
    default:
      return spec.input.settings;
  }
};

const changeFor = (spec: ActorSpec): { type: string } => {
  const settings = settingsOf(spec);
  return (
    spec.machine === 'listener'
      ? { type: 'settings.changed', ...(settings as object) }
      : { type: 'settings.changed', settings }
  ) as { type: string };
};

const restartNeeded = (before: Config, after: Config): string[] => {
  const values: [string, unknown, unknown][] = [
    ['node', before.node, after.node],
    ['cluster', before.cluster, after.cluster],
    ['bus', before.bus, after.bus],
    ['journal.path', before.journal.path, after.journal.path],
    ['api', before.api, after.api],
  ];
  return values.filter(([, old, now]) => differs(old, now)).map(([key]) => key);
};
