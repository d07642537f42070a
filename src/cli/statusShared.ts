/** Shared checks of a pool in `understudy status`: what nodes say, where they don't all say the same. */
import type { ServerView, StateView } from '../api/state.ts';
import { dim, red, yellow } from './output.ts';

/** Servers that are shown one by one. */
const MAX_SERVERS = 20;

type Pool = StateView['pools'][number];
type Shared = NonNullable<ServerView['shared']>;

/** Nothing where checks aren't shared. */
export const formatShared = ({ shared, servers }: Pool): string[] => {
  if (!shared) return [];
  const told = servers.filter((server) => server.shared && !isAgreed(server.shared));
  const agreed = servers.length - told.length;
  const divided = shared.divide ? `, each server checked by ${shared.by} nodes` : '';
  const nodes = servers[0]?.shared?.nodes.map(({ node }) => node).join(', ') ?? '';
  return [
    dim(
      `  Checks shared by ${shared.share} (${nodes})${divided}; the nodes agree on ${agreed} of ${servers.length} servers`,
    ),
    ...shared.blind.map((node) => red(`  ! ${node} is blind: it sees none of its servers while others do`)),
    ...shared.unlike.map((node) => yellow(`  ~ ${node} has another list of servers here`)),
    ...told.slice(0, MAX_SERVERS).map(({ name, shared: one }) => yellow(`  ${name}: ${serverText(one!)}`)),
    ...(told.length > MAX_SERVERS ? [yellow(`  and ${told.length - MAX_SERVERS} more servers`)] : []),
  ];
};

/** All that look at it say the same, and none says down: that is told by the server's own row. */
const isAgreed = ({ nodes, verdict }: Shared): boolean => {
  const views = new Set(nodes.flatMap(({ view }) => (view === 'none' ? [] : [view])));
  return verdict === null ? views.size < 2 : views.size === 0 || (views.size === 1 && views.has(verdict as 'up'));
};

const serverText = ({ verdict, nodes }: Shared): string => {
  const views = nodes.flatMap(({ node, view, message, vote }) => {
    if (view === 'none') return [];
    return [`${node} ${view}${message === '' ? '' : ` (${message})`}${vote ? '' : ', no vote'}`];
  });
  return `${verdict === null ? '' : `verdict ${verdict}; `}${views.join(', ')}`;
};
