/** The cluster as this node sees it: the bus, its courier and all nodes. */
import type { CourierFigures } from '../cluster/courierHost.ts';
import { clockText, memberReasonText, twoNodesText } from '../cluster/memberText.ts';
import type { Heartbeat, MemberView } from '../cluster/members.ts';
import { isoTime } from '../journal/view.ts';
import type { UnderstudyNode } from '../node.ts';
import { formatSpan } from '../time.ts';

export type ClusterNodeView = {
  name: string;
  self: boolean;
  state: 'alive' | 'suspect' | 'gone';
  since: string;
  /** Why it is in its state, in words; null of this node itself. */
  reason: string | null;
  version: string;
  epoch: number;
  /** When it was last heard; null of this node itself. */
  heard: string | null;
  routers: Heartbeat['routers'];
  pools: Heartbeat['pools'];
  courier: Heartbeat['courier'];
  configRevision: number | null;
  latenessP99Ms: number;
  /** Its clock beside ours: at most so far behind; below 0, at least so far ahead. Null of this node itself. */
  clock: { behindMs: number; text: string } | null;
};

export type ClusterView = {
  bus: {
    state: 'connected' | 'connecting' | 'away';
    since: string;
    server: string | null;
    version: string | null;
    failure: { code: string; message: string } | null;
  };
  courier: CourierFigures & { state: string };
  nodes: ClusterNodeView[];
};

/** Null on the bus `memory`. */
export const clusterOf = (node: UnderstudyNode): ClusterView | null => {
  const { cluster } = node;
  if (!cluster) return null;
  const { status } = cluster.bus;
  return {
    bus: {
      state: status.connected ? 'connected' : status.code === null ? 'connecting' : 'away',
      since: isoTime(status.sinceMs * 1000),
      server: status.connected ? status.server : null,
      version: status.connected ? status.version : null,
      failure: status.connected || status.code === null ? null : { code: status.code, message: status.message },
    },
    courier: { state: node.system.get('courier')?.state ?? 'offline', ...cluster.courier.figures() },
    nodes: [ownView(node), ...cluster.members.all().map(memberView)].sort((a, b) => (a.name < b.name ? -1 : 1)),
  };
};

const ownView = (node: UnderstudyNode): ClusterNodeView => {
  const { version, epoch, routers, pools, courier, configRevision, latenessP99Ms } = node.cluster!.members.own();
  return {
    name: node.config.node,
    self: true,
    state: 'alive',
    since: isoTime(node.startedUs),
    reason: null,
    version,
    epoch,
    heard: null,
    routers,
    pools,
    courier,
    configRevision,
    latenessP99Ms,
    clock: null,
  };
};

const memberView = ({ node, state, sinceUs, reason, last, heardUs, clockBehindUs }: MemberView): ClusterNodeView => ({
  name: node,
  self: false,
  state,
  since: isoTime(sinceUs),
  reason: memberReasonText(reason),
  version: last.version,
  epoch: last.epoch,
  heard: isoTime(heardUs),
  routers: last.routers,
  pools: last.pools,
  courier: last.courier,
  configRevision: last.configRevision,
  latenessP99Ms: last.latenessP99Ms,
  clock: { behindMs: clockBehindUs / 1000, text: clockText(clockBehindUs) },
});

/** What asks for an operator. Without NATS everything of this node goes on: it is degraded, not down. */
export const clusterProblems = ({ cluster, clock, journal, config }: UnderstudyNode): string[] => {
  if (!cluster) return [];
  const problems: string[] = [];
  const { status } = cluster.bus;
  if (!status.connected && status.code !== null)
    problems.push(
      `NATS is away (${status.code}: ${status.message}); traffic, checks and elections on the wire go on, what has to be told is told when it is back`,
    );
  const courier = cluster.courier.problem();
  if (courier !== null) problems.push(courier);
  const impostor = cluster.members.impostor();
  if (impostor) {
    const own = { version: '', epoch: journal.epoch, journal: journal.identity };
    problems.push(twoNodesText(config.node, own, impostor.last));
  }
  for (const { node, state, reason, heardUs, last, rival } of cluster.members.all()) {
    if (state !== 'alive' && reason.code === 'silent')
      problems.push(`node ${node} is ${state}: nothing was heard of it for ${formatSpan(clock.wallUs() - heardUs)}`);
    if (rival) problems.push(twoNodesText(node, last, rival));
  }
  return problems;
};

/** What may be of interest to an operator, and degrades nothing. */
export const clusterNotices = ({ cluster }: UnderstudyNode): string[] => {
  if (!cluster) return [];
  const { status } = cluster.bus;
  return [
    ...(!status.connected && status.code === null ? ['NATS is not connected yet'] : []),
    ...cluster.members
      .all()
      .flatMap(({ node, reason }) => (reason.code === 'left' ? [`node ${node} has left in order`] : [])),
  ];
};
