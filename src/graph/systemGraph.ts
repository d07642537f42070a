/** The system that a configuration makes: who listens, where traffic goes, who is checked how. */
import type { BackendConfig, Config } from '../config/schema.ts';
import { formatEndpoint } from '../config/units.ts';
import { formatSpan } from '../time.ts';

export type SystemNode = {
  id: string;
  kind: 'listener' | 'frontend' | 'pool' | 'server';
  lines: string[];
};
export type SystemEdge = { from: string; to: string; label: string; dashed: boolean };
export type SystemGraph = { name: string; nodes: SystemNode[]; edges: SystemEdge[] };

export const systemGraph = (config: Config): SystemGraph => {
  const nodes: SystemNode[] = [];
  const edges: SystemEdge[] = [];
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

const checkText = ({ check }: BackendConfig): string => {
  if (!check) return 'no check';
  const path = 'path' in check ? ` ${check.path}` : '';
  return `check ${check.type}${path} every ${formatSpan(check.interval * 1000)}, rise ${check.rise}, fall ${check.fall}`;
};
