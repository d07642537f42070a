/** What `GET /api/state` answers and `understudy status` prints. */
import type { BackendServerContext } from '../../machines/backendServer.ts';
import { ejectionMs } from '../../machines/trafficObserver.ts';
import type { TrafficObserverContext } from '../../machines/trafficObserver.ts';
import type { SharedConfigView } from '../cluster/sharedConfig.ts';
import { formatEndpoint } from '../config/units.ts';
import { isoTime } from '../journal/view.ts';
import { JOURNAL_ACTOR } from '../node.ts';
import type { UnderstudyNode } from '../node.ts';
import type { Figures } from '../proxy/counters.ts';
import { version } from '../version.ts';
import { frontendSlotName, observerId } from '../wiring.ts';
import { clusterNotices, clusterOf, clusterProblems } from './cluster.ts';
import type { ClusterView } from './cluster.ts';
import { commandNotices, commandsOf } from './commands.ts';
import type { CommandsView } from './commands.ts';
import { routerNotices, routerProblems, routersOf, syncGroupsOf } from './routers.ts';
import type { RouterView, SyncGroupView } from './routers.ts';
import { sharedNotices, sharedPoolOf, sharedProblems, sharedServerOf } from './sharedHealth.ts';
import type { SharedPoolView, SharedServerView } from './sharedHealth.ts';

export type ActorView = { id: string; machine: string; state: string; since: string; cause: number | null };

export type ServerView = {
  pool: string;
  name: string;
  address: string;
  health: string;
  admin: string;
  warmth: string;
  since: string;
  /** Checks so far in the present doubt, of how many. */
  progress: { count: number; of: number } | null;
  /** Its ejection as an outlier; `ejections` are those that its length counts. */
  ejected: { since: string; until: string; ejections: number } | null;
  weight: number;
  share: number;
  backup: boolean;
  lastCheck: { code: string; message: string; durationMs: number; time: string } | null;
  traffic: Figures | null;
  /** What each node says of it; null where checks aren't shared. */
  shared: SharedServerView | null;
};

export type StateView = {
  node: {
    name: string;
    cluster: string;
    version: string;
    pid: number;
    epoch: number;
    startedAt: string;
    now: string;
    /** `degraded`: something asks for an operator, traffic goes on. */
    status: 'ok' | 'degraded';
    problems: string[];
    /** What may be of interest to an operator, and degrades nothing. */
    notices: string[];
    tokenFile: string | null;
    latenessMs: { p50: number; p99: number; max: number };
  };
  journal: {
    path: string;
    state: string;
    lastSeq: number;
    writtenSeq: number;
    unwrittenRecords: number;
    bytes: number;
    failure: { code: string; message: string } | null;
  };
  frontends: {
    name: string;
    mode: string;
    use: string;
    listeners: { address: string; state: string; port: number | null }[];
    traffic: Figures | null;
  }[];
  pools: {
    name: string;
    state: string;
    since: string;
    balance: string;
    usable: number;
    /** How its checks are shared; null where they aren't. */
    shared: SharedPoolView | null;
    servers: ServerView[];
  }[];
  routers: RouterView[];
  syncGroups: SyncGroupView[];
  /** Null on the bus `memory`. */
  cluster: ClusterView | null;
  /** Null on the bus `memory`. */
  commands: CommandsView | null;
  /** Null where the node has a configuration of its own. */
  sharedConfig: SharedConfigView | null;
  actors: ActorView[];
};

export const stateOfNode = (node: UnderstudyNode, tokenFile: string | null): StateView => {
  const journal = node.journal.status();
  const problems = problemsOf(node);
  return {
    node: {
      name: node.config.node,
      cluster: node.config.cluster,
      version,
      pid: process.pid,
      epoch: journal.epoch,
      startedAt: isoTime(node.startedUs),
      now: isoTime(node.clock.wallUs()),
      status: problems.length === 0 ? 'ok' : 'degraded',
      problems,
      notices: [...routerNotices(node), ...clusterNotices(node), ...sharedNotices(node), ...commandNotices(node)],
      tokenFile,
      latenessMs: {
        p50: node.lateness.quantileUs(0.5) / 1000,
        p99: node.lateness.quantileUs(0.99) / 1000,
        max: node.lateness.maxUs / 1000,
      },
    },
    journal: {
      path: journal.path,
      state: node.system.get(JOURNAL_ACTOR)?.state ?? 'writing',
      lastSeq: journal.lastSeq,
      writtenSeq: journal.writtenSeq,
      unwrittenRecords: journal.unwrittenRows,
      bytes: journal.usedBytes,
      failure: journal.failure,
    },
    frontends: Object.entries(node.config.frontends).map(([name, { mode, use, bind }]) => ({
      name,
      mode,
      use,
      listeners: bind.map(({ address }) => {
        const text = formatEndpoint(address);
        const id = `listener/${name}/${text}`;
        return { address: text, state: node.system.get(id)?.state ?? 'closed', port: node.ports.get(id) ?? null };
      }),
      traffic: node.dataPlane.figures(frontendSlotName(name)),
    })),
    pools: poolsOf(node),
    routers: routersOf(node),
    syncGroups: syncGroupsOf(node),
    cluster: clusterOf(node),
    commands: commandsOf(node),
    sharedConfig: node.cluster?.sharedConfig.view() ?? null,
    actors: [...node.system.all()].map(({ id, machine, state, sinceUs, cause }) => ({
      id,
      machine,
      state,
      since: isoTime(sinceUs),
      cause: cause.seq,
    })),
  };
};

/** What asks for an operator, in sentences. */
export const problemsOf = (node: UnderstudyNode): string[] => {
  const problems: string[] = [];
  const { failure, unwrittenRows } = node.journal.status();
  if (failure) {
    problems.push(
      `the journal can't be written (${failure.code}: ${failure.message}); ${unwrittenRows} records wait in memory`,
    );
  }
  for (const { id, machine, state } of node.system.all()) {
    if (machine === 'pool' && state === 'exhausted') problems.push(`${id} has no usable server`);
    if (machine === 'pool' && state === 'onBackups') problems.push(`${id} runs on its backups`);
    if (machine === 'pool' && state === 'panicking')
      problems.push(`${id} has so few servers that are well that it gives traffic to all`);
    if (machine === 'listener' && state === 'failed') problems.push(`${id} can't be opened and is tried again`);
    if (machine === 'proxyWorker' && state === 'crashed') problems.push(`${id} died and is started again`);
  }
  return [
    ...problems,
    ...routerProblems(node),
    ...clusterProblems(node),
    ...sharedProblems(node),
    ...(node.cluster?.sharedConfig.problems() ?? []),
  ];
};

const poolsOf = (node: UnderstudyNode): StateView['pools'] =>
  Object.entries(node.config.backends).map(([name, { balance, servers }]) => {
    const pool = node.system.get(`pool/${name}`);
    const { weights } = (pool?.context ?? { weights: {} }) as { weights: Record<string, number> };
    return {
      name,
      state: pool?.state ?? 'exhausted',
      since: isoTime(pool?.sinceUs ?? 0),
      balance: balance.type,
      usable: Object.keys(weights).length,
      shared: sharedPoolOf(node, name),
      servers: servers.flatMap(({ name: server, address }) => {
        const actor = node.system.get(`server/${name}/${server}`);
        if (!actor) return [];
        const context = actor.context as BackendServerContext;
        const [health = '', admin = '', warmth = ''] = actor.state.split(',');
        const probe = node.lastProbes.get(`checker/${name}/${server}`);
        const limit =
          health === 'goingDown' ? context.settings.fall : health === 'goingUp' ? context.settings.rise : null;
        return [
          {
            pool: name,
            name: server,
            address: formatEndpoint(address),
            health,
            admin,
            warmth,
            since: isoTime(actor.sinceUs),
            ejected: ejectedOf(node, name, server),
            progress: limit === null ? null : { count: context.count, of: limit },
            weight: context.weight,
            share: context.share,
            backup: context.settings.backup,
            lastCheck: probe
              ? { code: probe.code, message: probe.message, durationMs: probe.durationMs, time: isoTime(probe.atUs) }
              : null,
            traffic: node.dataPlane.figures(actor.id),
            shared: sharedServerOf(node, name, server),
          },
        ];
      }),
    };
  });

const ejectedOf = (node: UnderstudyNode, pool: string, server: string): ServerView['ejected'] => {
  const observer = node.system.get(observerId(pool, server));
  if (observer?.state !== 'ejected') return null;
  const context = observer.context as TrafficObserverContext;
  const { sinceUs } = observer;
  const until = isoTime(sinceUs + ejectionMs(context) * 1000);
  return { since: isoTime(sinceUs), until, ejections: context.ejections };
};
