/** The system that a configuration makes: who has which address, who listens, where traffic goes, who is checked how. */
import type { RouterConfig, TrackConfig } from '../config/routers.ts';
import type { BackendConfig, BindConfig, Config, FrontendConfig, ServerConfig } from '../config/schema.ts';
import { sharedChecksOf } from '../config/sharedChecks.ts';
import { formatEndpoint } from '../config/units.ts';
import { formatSpan } from '../time.ts';
import { trackerName } from '../vrrp/reasons.ts';
import { addressId, groupId, routerId, trackerId, trackersOf } from '../vrrp/wiring.ts';
import { listenerId, poolId, serverId } from '../wiring.ts';
import { answerText, conditionText, endsRules, passingText } from './ruleText.ts';

export type SystemNode = {
  id: string;
  kind: 'listener' | 'frontend' | 'pool' | 'server' | 'router' | 'address' | 'tracker' | 'syncGroup' | 'answer';
  lines: string[];
};
export type SystemEdge = { from: string; to: string; label: string; dashed: boolean };
export type SystemGraph = { name: string; nodes: SystemNode[]; edges: SystemEdge[] };

export const systemGraph = (config: Config): SystemGraph => {
  const { nodes, edges } = routersGraph(config);
  for (const [name, frontend] of Object.entries(config.frontends)) {
    const id = `frontend/${name}`;
    nodes.push({
      id,
      kind: 'frontend',
      lines: [`frontend ${name}`, `mode ${frontend.mode}`, ...frontendText(frontend)],
    });
    for (const bound of frontend.bind) {
      const listener = listenerId(name, bound.address);
      nodes.push({ id: listener, kind: 'listener', lines: listenerText(bound, frontend) });
      edges.push({ from: listener, to: id, label: '', dashed: false });
    }
    const rules = rulesGraph(name, frontend);
    nodes.push(...rules.nodes);
    edges.push(...rules.edges);
  }
  for (const [name, backend] of Object.entries(config.backends)) {
    nodes.push({ id: poolId(name), kind: 'pool', lines: [`pool ${name}`, ...poolText(backend)] });
    for (const server of backend.servers) {
      const id = serverId(name, server.name);
      nodes.push({ id, kind: 'server', lines: [server.name, formatEndpoint(server.address), ...serverText(server)] });
      edges.push({ from: poolId(name), to: id, label: '', dashed: server.backup });
    }
  }
  return { name: `${config.cluster} / ${config.node}`, nodes, edges };
};

/** Where requests go: to pools, or to answers of our own. Rules that do the same are one edge, each with its number. */
const rulesGraph = (name: string, { rules, use }: FrontendConfig): Pick<SystemGraph, 'nodes' | 'edges'> => {
  const frontend = `frontend/${name}`;
  const nodes: SystemNode[] = [];
  const conditions = new Map<string, string[]>();
  let goesOn = true;
  const lead = (to: string, condition: string) => conditions.set(to, [...(conditions.get(to) ?? []), condition]);
  rules.forEach((rule, index) => {
    const answer = answerText(rule);
    const condition = `${index + 1}: ${conditionText(rule.when) || 'always'}`;
    if (rule.use !== undefined) lead(poolId(rule.use), condition);
    if (endsRules(rule)) lead(poolId(use), condition);
    if (rule.when === undefined && (answer !== null || rule.use !== undefined || endsRules(rule))) goesOn = false;
    if (answer === null) return;
    const to = `answer/${name}/${answer}`;
    if (!conditions.has(to)) nodes.push({ id: to, kind: 'answer', lines: [answer] });
    lead(to, condition);
  });
  if (conditions.size === 0) conditions.set(poolId(use), []);
  else if (goesOn) lead(poolId(use), 'otherwise');
  const edges = [...conditions].map(([to, lines]) => ({ from: frontend, to, label: lines.join('\n'), dashed: false }));
  return { nodes, edges };
};

const frontendText = ({ rules, compression }: FrontendConfig): string[] => [
  ...new Set(rules.flatMap((rule) => passingText(rule) ?? [])),
  ...(compression ? [`compresses: ${compression.encodings.join(', ')}`] : []),
];

const listenerText = ({ address, tls, proxyProtocol }: BindConfig, { mode }: FrontendConfig): string[] => [
  formatEndpoint(address),
  ...(tls ? [mode === 'http' && (tls.alpn ?? ['h2']).includes('h2') ? 'TLS, HTTP/2' : 'TLS'] : []),
  ...(tls?.clientCertificates ? [`client certificates ${tls.clientCertificates.verify}`] : []),
  ...(proxyProtocol ? [`PROXY from ${proxyProtocol.from.join(', ')}`] : []),
];

const poolText = (backend: BackendConfig): string[] => {
  const { sticky, observe, outliers, panic, tls, sendProxy } = backend;
  const toServers = [...(tls === false ? [] : ['TLS']), ...(sendProxy ? [`PROXY ${sendProxy}`] : [])];
  return [
    balanceText(backend.balance),
    ...(sticky ? ['cookie' in sticky ? `sticky by cookie ${sticky.cookie.name}` : 'sticky by source'] : []),
    checkText(backend),
    ...sharedText(backend),
    ...(observe ? [`observes ${observe.layer}: ${observe.errorLimit} errors → ${observe.onError}`] : []),
    ...(outliers ? [`ejects outliers, ${outliers.maxEjected} % at most`] : []),
    ...(panic > 0 ? [`panic below ${panic} %`] : []),
    ...(toServers.length > 0 ? [`to servers: ${toServers.join(', ')}`] : []),
  ];
};

const balanceText = (balance: BackendConfig['balance']): string => {
  const what = 'name' in balance ? `${balance.type} ${balance.name}` : balance.type;
  const draws = balance.type === 'random' ? ` of ${balance.draws}` : '';
  const bound = 'boundedLoad' in balance && balance.boundedLoad !== undefined ? `, load × ${balance.boundedLoad}` : '';
  return `${what}${draws}${bound}`;
};

const serverText = ({ weight, backup, disabled, maxConnections, tls, sendProxy }: ServerConfig): string[] => [
  ...(weight === 1 ? [] : [`weight ${weight}`]),
  ...(maxConnections > 0 ? [`${maxConnections} connections at most`] : []),
  ...(tls === undefined ? [] : [tls === false ? 'no TLS' : 'TLS']),
  ...(sendProxy ? [`PROXY ${sendProxy}`] : []),
  ...(backup ? ['backup'] : []),
  ...(disabled ? ['disabled'] : []),
];

/** Trackers act on routers, routers have addresses, and on those frontends listen. */
const routersGraph = (config: Config): Pick<SystemGraph, 'nodes' | 'edges'> => {
  const nodes: SystemNode[] = [];
  const edges: SystemEdge[] = [];
  for (const [name, { routers }] of Object.entries(config.syncGroups)) {
    nodes.push({ id: groupId(name), kind: 'syncGroup', lines: [`sync group ${name}`] });
    for (const router of routers)
      edges.push({ from: groupId(name), to: routerId(router), label: 'together', dashed: true });
  }
  for (const [id, { track, routers }] of trackersOf(config)) {
    nodes.push({ id, kind: 'tracker', lines: [trackerName(id), ...looksText(track)] });
    if ('sight' in track)
      for (const to of routers.filter((router) => !tracksSight(config, router)))
        edges.push({ from: id, to, label: weightText(track), dashed: false });
    if ('pool' in track)
      edges.push({ from: poolId(track.pool), to: id, label: `${track.atLeast} or more usable`, dashed: true });
  }
  for (const [name, router] of Object.entries(config.routers)) {
    const id = routerId(name);
    nodes.push({ id, kind: 'router', lines: [`router ${name}`, ...routerText(router)] });
    for (const track of router.track)
      edges.push({ from: trackerId(track), to: id, label: weightText(track), dashed: false });
    for (const { address, prefixLength, interface: own } of router.addresses) {
      const addressNode = addressId(name, address);
      const where = own ?? router.interface;
      const lines = [`${address}/${prefixLength}`, ...(where === undefined ? [] : [`on ${where}`])];
      nodes.push({ id: addressNode, kind: 'address', lines });
      edges.push({ from: id, to: addressNode, label: '', dashed: false });
      for (const [frontend, { bind }] of Object.entries(config.frontends))
        for (const bound of bind)
          if (bound.address.host === address) {
            const listener = listenerId(frontend, bound.address);
            edges.push({ from: addressNode, to: listener, label: '', dashed: false });
          }
    }
  }
  return { nodes, edges };
};

/** By its own words, and not because every router of a node with shared checks does. */
const tracksSight = ({ routers }: Config, router: string): boolean =>
  routers[router.slice('router/'.length)]!.track.some((track) => 'sight' in track);

const routerText = (router: RouterConfig): string[] => [
  `VRID ${router.vrid}, version ${router.version}, ${router.transport}`,
  `priority ${router.priority}, advert every ${formatSpan(router.advertise * 1000)}${router.preempt ? '' : ', no preemption'}`,
];

const weightText = ({ weight, reverse }: TrackConfig): string => {
  if (weight === 0) return reverse ? 'FAULT while up' : 'FAULT while down';
  return `${reverse ? 'reverse, ' : ''}weight ${weight}`;
};

const looksText = (track: TrackConfig): string[] =>
  'interval' in track ? [`every ${formatSpan(track.interval * 1000)}, rise ${track.rise}, fall ${track.fall}`] : [];

const sharedText = (backend: BackendConfig): string[] => {
  const { share, divide, by } = sharedChecksOf(backend);
  return share === 'none' ? [] : [`checks shared: ${share}${divide ? `, each server by ${by} nodes` : ''}`];
};

const checkText = ({ check }: BackendConfig): string => {
  if (!check) return 'no check';
  const path = 'path' in check ? ` ${check.path}` : '';
  return `check ${check.type}${path} every ${formatSpan(check.interval * 1000)}, rise ${check.rise}, fall ${check.fall}`;
};
