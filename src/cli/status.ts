import type { ServerView, StateView } from '../api/state.ts';
import { formatSpan } from '../time.ts';
import { NodeClient } from './client.ts';
import type { ClientOptions } from './client.ts';
import { bold, green, print, printJson, red, table, yellow } from './output.ts';
import { formatCluster } from './statusCluster.ts';
import { formatSharedConfig } from './statusConfig.ts';
import { formatRouters } from './statusRouters.ts';
import { formatShared } from './statusShared.ts';

export const statusCommand = async (options: ClientOptions & { json?: boolean; node?: string }): Promise<void> => {
  const state = await new NodeClient(options).state(options.node);
  if (options.json === true) printJson(state);
  else print(formatStatus(state));
};

const spanSince = (since: string, now: string): string => formatSpan((Date.parse(now) - Date.parse(since)) * 1000);

export const formatStatus = (state: StateView): string => {
  const { node, journal } = state;
  const lines = [
    `${bold(`Node ${node.name}`)} of cluster ${node.cluster}: ${node.status === 'ok' ? green('ok') : red('degraded')}, version ${node.version}, up ${spanSince(node.startedAt, node.now)} (start ${node.epoch})`,
    ...node.problems.map((problem) => red(`  ! ${problem}`)),
    ...node.notices.map((notice) => yellow(`  ~ ${notice}`)),
    `Journal ${journal.state}: ${journal.lastSeq} records, ${(journal.bytes / 1048576).toFixed(1)} MiB, ${journal.path}`,
    `Control loop lateness: p50 ${node.latenessMs.p50} ms, p99 ${node.latenessMs.p99} ms, max ${node.latenessMs.max} ms`,
    ...formatCluster(state),
    ...formatSharedConfig(state),
    ...formatCommands(state),
    '',
    table(
      ['FRONTEND', 'MODE', 'ADDRESS', 'STATE', 'BACKEND', 'ACTIVE', 'SESSIONS', 'REQUESTS', '5XX'],
      state.frontends.flatMap(({ name, mode, use, listeners, traffic }) =>
        listeners.map(({ address, state: listening }) => [
          name,
          mode,
          address,
          listening,
          use,
          String(traffic?.active ?? 0),
          String(traffic?.sessions ?? 0),
          mode === 'http' ? String(traffic?.requests ?? 0) : '-',
          mode === 'http' ? String(traffic?.status5xx ?? 0) : '-',
        ]),
      ),
    ),
  ];
  lines.push(...formatRouters(state));
  for (const pool of state.pools) {
    const color =
      pool.state === 'serving' ? green : pool.state === 'onBackups' || pool.state === 'panicking' ? yellow : red;
    lines.push(
      '',
      `${bold(`Pool ${pool.name}`)}: ${color(pool.state)} for ${spanSince(pool.since, node.now)}, ${pool.usable} of ${pool.servers.length} servers take traffic (${pool.balance})`,
      table(
        ['  SERVER', 'ADDRESS', 'HEALTH', 'ADMIN', 'SINCE', 'WEIGHT', 'ACTIVE', 'SESSIONS', 'RETRIES', 'LAST CHECK'],
        pool.servers.map((server) => serverRow(server, node.now, wantedOf(state, server))),
      ),
      ...formatShared(pool),
    );
  }
  return lines.join('\n');
};

/** Nothing on the bus `memory`. */
const formatCommands = ({ commands }: StateView): string[] => {
  if (!commands) return [];
  const { state, sequence, trouble } = commands;
  const color = state === 'following' ? green : red;
  return [`Commands of the cluster: ${color(state)}, ${sequence} seen${trouble ? `: ${trouble.message}` : ''}`];
};

/** What the cluster wants of a server where that is something else. */
const wantedOf = ({ commands }: StateView, { pool, name }: ServerView): string[] =>
  (commands?.differences ?? []).flatMap(({ actor, cluster }) => (actor === `server/${pool}/${name}` ? [cluster] : []));

const marked = (text: string, wanted: string | undefined): string =>
  wanted === undefined ? text : `${text} (cluster: ${wanted})`;

const serverRow = (server: ServerView, now: string, wanted: string[]): string[] => [
  `  ${server.name}${server.backup ? ' (backup)' : ''}`,
  server.address,
  healthText(server, now),
  marked(
    server.admin,
    wanted.find((want) => !want.startsWith('weight')),
  ),
  spanSince(server.since, now),
  marked(
    server.share === 100 ? String(server.weight) : `${server.weight} × ${server.share}%`,
    wanted.find((want) => want.startsWith('weight'))?.slice('weight '.length),
  ),
  String(server.traffic?.active ?? 0),
  String(server.traffic?.sessions ?? 0),
  String(server.traffic?.retries ?? 0),
  server.lastCheck
    ? `${server.lastCheck.code}${server.lastCheck.message === '' ? '' : ` ${server.lastCheck.message}`} in ${server.lastCheck.durationMs} ms, ${spanSince(server.lastCheck.time, now)} ago`
    : '-',
];

const healthText = ({ health, progress, ejected }: ServerView, now: string): string => {
  const text = progress ? `${health} ${progress.count}/${progress.of}` : health;
  return ejected ? `${text}, ejected for ${spanSince(now, ejected.until)}` : text;
};
