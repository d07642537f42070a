/** The system that a configuration makes: who has which address, who listens, where traffic goes, who is checked how. */
import type { RouterConfig, TrackConfig } from '../config/routers.ts';
import type { BackendConfig, Config } from '../config/schema.ts';
import { formatEndpoint } from '../config/units.ts';
import { formatSpan } from '../time.ts';
import { trackerName } from '../vrrp/reasons.ts';
import { addressId, groupId, routerId, trackerId, trackersOf } from '../vrrp/wiring.ts';

export type SystemNode = {
  id: string;
  kind: 'listener' | 'frontend' | 'pool' | 'server' | 'router' | 'address' | 'tracker' | 'syncGroup';
  lines: string[];
};
export type SystemEdge = { from: string; to: string; label: string; dashed: boolean };
export type SystemGraph = { name: string; nodes: SystemNode[]; edges: SystemEdge[] };

export const systemGraph = (config: Config): SystemGraph => {
  const { nodes, edges } = routersGraph(config);
  for (const [name, frontend] of Object.entries(config.frontends)) {
    const id = `frontend/${name}`;
    nodes.push({ id, kind: 'frontend', lines: [`frontend ${name}`, `mode ${frontend.mode}`] });
    for (const { address, tls } of frontend.bind) {
      const listener = `listener/${name}/${formatEndpoint(address)}`;
      nodes.push({
        id: listener,
        kind: 'listener',
        lines: [formatEndpoint(address), ...(tls ? ['TLS'] : [])],
      });
      edges.push({ from: listener, to: id, label: '', dashed: false });
    }
    for (const { when, use } of frontend.rules) {
      const label = [...(when.host ?? []), ...(when.path ?? [])].join('\n');
      edges.push({ from: id, to: `pool/${use}`, label, dashed: false });
    }
    edges.push({
      from: id,
      to: `pool/${frontend.use}`,
      label: frontend.rules.length > 0 ? 'otherwise' : '',
      dashed: false,
    });
  }
  for (const [name, backend] of Object.entries(config.backends)) {
    nodes.push({
      id: `pool/${name}`,
      kind: 'pool',
      lines: [`pool ${name}`, backend.balance, checkText(backend)],
    });
    for (const server of backend.servers) {
      const id = `server/${name}/${server.name}`;
      const traits = [
        ...(server.weight === 1 ? [] : [`weight ${server.weight}`]),
        ...(server.backup ? ['backup'] : []),
        ...(server.disabled ? ['disabled'] : []),
      ];
      nodes.push({ id, kind: 'server', lines: [server.name, formatEndpoint(server.address), ...traits] });
      edges.push({ from: `pool/${name}`, to: id, label: '', dashed: server.backup });
    }
  }
  return { name: `${config.cluster} / ${config.node}`, nodes, edges };
};

/** Trackers act on routers, routers have addresses, and on those frontends listen. */
const routersGraph = (config: Config): Pick<SystemGraph, 'nodes' | 'edges'> => {
  const nodes: SystemNode[] = [];
  const edges: SystemEdge[] = [];
  for (const [name, { routers }] of Object.entries(config.syncGroups)) {
    nodes.push({ id: groupId(name), kind: 'syncGroup', lines: [`sync group ${name}`] });
    for (const router of routers)
      edges.push({ from: groupId(name), to: routerId(router), label: 'together', dashed: true });
  }
  for (const [id, { track }] of trackersOf(config)) {
    nodes.push({ id, kind: 'tracker', lines: [trackerName(id), ...looksText(track)] });
    if ('pool' in track)
      edges.push({ from: `pool/${track.pool}`, to: id, label: `${track.atLeast} or more usable`, dashed: true });
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
            const listener = `listener/${frontend}/${formatEndpoint(bound.address)}`;
            edges.push({ from: addressNode, to: listener, label: '', dashed: false });
          }
    }
  }
  return { nodes, edges };
};

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

const checkText = ({ check }: BackendConfig): string => {
  if (!check) return 'no check';
  const path = 'path' in check ? ` ${check.path}` : '';
  return `check ${check.type}${path} every ${formatSpan(check.interval * 1000)}, rise ${check.rise}, fall ${check.fall}`;
};
