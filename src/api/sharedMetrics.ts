/** Metrics of shared checks. Servers are many: what is of each of them comes with the server's own. */
import type { UnderstudyNode } from '../node.ts';
import { labelText, withLabel } from './exposition.ts';
import type { MakeFamily } from './exposition.ts';
import { blindNodes, sharedServerOf } from './sharedHealth.ts';

const VERDICTS = ['up', 'down', 'unknown'];

/** Null for a node that shares nothing. */
export const sharedMetrics = (
  node: UnderstudyNode,
  family: MakeFamily,
): ((labels: string, pool: string, server: string) => void) | null => {
  const { cluster } = node;
  if (!cluster) return null;
  const blind = family('node_blind', 'gauge', '1 for a node that sees no server while others do.');
  for (const name of blindNodes(node)) blind.add(labelText({ node: name }), 1);
  const { published, malformed } = cluster.health;
  family('shared_views_published_total', 'counter', 'Changes of views that were told to other nodes.').add(
    '',
    published,
  );
  family('shared_views_malformed_total', 'counter', 'Messages of other nodes that were no views.').add('', malformed);
  const verdict = family('server_verdict', 'gauge', '1 for the verdict of the cluster’s nodes on the server.');
  const view = family('server_view_up', 'gauge', '1 for a node that sees the server up, 0 for one that sees it down.');
  const duty = family(
    'server_checked_here',
    'gauge',
    '1 where this node checks the server, 0 where it follows others.',
  );
  return (labels, pool, server) => {
    const shared = sharedServerOf(node, pool, server);
    if (!shared) return;
    for (const one of shared.nodes)
      if (one.view !== 'none') view.add(withLabel(labels, 'node', one.node), one.view === 'up' ? 1 : 0);
    if (shared.verdict === null) return;
    for (const one of VERDICTS) verdict.add(withLabel(labels, 'verdict', one), one === shared.verdict ? 1 : 0);
    duty.add(labels, shared.own === 'offDuty' || shared.own === 'paused' ? 0 : 1);
  };
};
