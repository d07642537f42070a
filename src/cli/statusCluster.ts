/** The cluster in `understudy status`: NATS, the courier, and a row per node. */
import type { ClusterNodeView, ClusterView } from '../api/cluster.ts';
import type { StateView } from '../api/state.ts';
import { formatSpan } from '../time.ts';
import { bold, green, red, table, yellow } from './output.ts';

const spanSince = (since: string, now: string): string => formatSpan((Date.parse(now) - Date.parse(since)) * 1000);

/** Nothing on the bus `memory`. */
export const formatCluster = ({ cluster, node }: StateView): string[] => {
  if (!cluster) return [];
  const head = ['NODE', 'STATE', 'SINCE', 'VERSION', 'ROUTERS', 'POOLS', 'LOG', 'CLOCK'];
  const [titles = '', ...rows] = table(
    head,
    cluster.nodes.map((one) => [
      one.self ? `${one.name} (this node)` : one.name,
      one.state,
      spanSince(one.since, node.now),
      one.version,
      routersText(one),
      poolsText(one),
      logText(one.courier),
      one.clock?.text ?? '-',
    ]),
  ).split('\n');
  return [
    busText(cluster, node.now),
    courierText(cluster),
    '',
    titles,
    ...cluster.nodes.flatMap((one, index) => [colored(one, rows[index]!), ...details(one)]),
  ];
};

const busText = ({ bus }: ClusterView, now: string): string => {
  const span = spanSince(bus.since, now);
  if (bus.state === 'connected')
    return `${bold('NATS')}: ${green('connected')} to ${bus.server} for ${span}, version ${bus.version}`;
  if (bus.state === 'connecting') return `${bold('NATS')}: ${yellow('connecting')} for ${span}`;
  return `${bold('NATS')}: ${red('away')} for ${span}: ${bus.failure?.message ?? ''}`;
};

const courierText = ({ courier }: ClusterView): string => {
  const { state, behind, shippedSeq, delayMs } = courier;
  const shipped = shippedSeq === null ? 'not known how far' : `shipped through record ${shippedSeq}`;
  const delay = delayMs === null ? '' : `, delay p50 ${delayMs.p50} ms, p99 ${delayMs.p99} ms`;
  return `Cluster log ${state}: ${shipped}, ${behind} behind${delay}`;
};

/** Masters first: who has which address is what is looked for. */
const routersText = ({ routers }: ClusterNodeView): string => {
  const entries = Object.entries(routers);
  const isMaster = ([, { state }]: (typeof entries)[number]) => state === 'master';
  const text = ([name, { state, priority }]: (typeof entries)[number]) =>
    `${name} ${state.toUpperCase()} (${priority})`;
  return [...entries.filter(isMaster), ...entries.filter((one) => !isMaster(one))].map(text).join(', ') || '-';
};

const poolsText = ({ pools }: ClusterNodeView): string =>
  Object.entries(pools)
    .map(([name, { usable, of }]) => `${name} ${usable}/${of}`)
    .join(', ') || '-';

const logText = ({ state, behind }: ClusterNodeView['courier']): string =>
  behind === 0 ? state : `${state}, ${behind} behind`;

const colored = ({ state }: ClusterNodeView, row: string): string => {
  const color = { alive: green, suspect: yellow, gone: red }[state];
  return row.replace(new RegExp(` ${state}(?= )`), ` ${color(state)}`);
};

const details = ({ state, reason }: ClusterNodeView): string[] =>
  state === 'alive' || reason === null ? [] : [yellow(`  because ${reason}`)];
