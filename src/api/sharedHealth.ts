/** What the nodes of a cluster say of a server, as this node heard it. */
import type { NodeSightContext } from '../../machines/nodeSight.ts';
import type { NodeView } from '../cluster/sharedHealth.ts';
import { quorumId, SIGHT_ACTOR } from '../cluster/sharedWiring.ts';
import { sharedChecksOf } from '../config/sharedChecks.ts';
import { isoTime } from '../journal/view.ts';
import type { UnderstudyNode } from '../node.ts';

export type SharedServerView = {
  /** Null where views are only shown. */
  verdict: 'up' | 'down' | 'unknown' | null;
  /** This node's own view, with what goes on within it: `goingDown`, `offDuty`. */
  own: string | null;
  /** Who is to check it; null when every node is. */
  checkers: string[] | null;
  /** `vote`: false of one that has no view or is blind. */
  nodes: { node: string; view: NodeView['view']; message: string; since: string | null; vote: boolean }[];
};

export type SharedPoolView = {
  share: 'observe' | 'quorum';
  divide: boolean;
  by: number;
  /** Nodes that see no server while others do. */
  blind: string[];
  /** Nodes that have another list of servers in this pool: their views can't be read. */
  unlike: string[];
};

export const blindNodes = ({ system }: UnderstudyNode): readonly string[] =>
  (system.get(SIGHT_ACTOR)?.context as NodeSightContext | undefined)?.blind ?? [];

/** Null where a pool's checks aren't shared. */
export const sharedPoolOf = (node: UnderstudyNode, pool: string): SharedPoolView | null => {
  const { share, divide, by } = sharedChecksOf(node.config.backends[pool]!);
  if (share === 'none' || !node.cluster) return null;
  const blind = share === 'quorum' ? [...blindNodes(node)] : [];
  return { share, divide, by, blind, unlike: node.cluster.health.unlike(pool) };
};

export const sharedServerOf = (node: UnderstudyNode, pool: string, server: string): SharedServerView | null => {
  const { share } = sharedChecksOf(node.config.backends[pool]!);
  if (share === 'none' || !node.cluster) return null;
  const { health } = node.cluster;
  const blind = share === 'quorum' ? blindNodes(node) : [];
  const [own = null, verdict = null] = node.system.get(quorumId(pool, server))?.state.split(',') ?? [];
  return {
    verdict: verdict as SharedServerView['verdict'],
    own,
    checkers: health.checkersOf(pool, server),
    nodes: health.viewsOf(pool, server).map(({ node: name, view, message, sinceUs }) => ({
      node: name,
      view,
      message,
      since: sinceUs === null ? null : isoTime(sinceUs),
      vote: view !== 'none' && !blind.includes(name),
    })),
  };
};

/** What degrades no traffic, and asks for an operator. */
export const sharedProblems = (node: UnderstudyNode): string[] =>
  blindNodes(node).map((name) =>
    name === node.config.node
      ? 'this node sees none of its servers while others do: its routers give way, and its checks have no vote'
      : `node ${name} sees none of its servers while others do: its checks have no vote`,
  );

export const sharedNotices = (node: UnderstudyNode): string[] =>
  Object.keys(node.config.backends).flatMap((pool) =>
    (sharedPoolOf(node, pool)?.unlike ?? []).map(
      (name) => `node ${name} has other servers in pool ${pool}: what it says of them in its heartbeats can't be read`,
    ),
  );
