/** Nodes of one cluster on this machine, each with its own folder, joined by a real nats-server. */
import { stringify } from 'yaml';
import { onTestFinished } from 'vitest';
import type { ClusterNodeView, ClusterView } from '../src/api/cluster.ts';
import type { StateView } from '../src/api/state.ts';
import { RunningNode, tempFolder, writeFile } from './nodeHelpers.ts';
import { NatsServer } from './natsHelpers.ts';
import type { NatsOptions } from './natsHelpers.ts';
import { freePort } from './ports.ts';

export const startNats = async (options?: NatsOptions): Promise<NatsServer> => {
  const server = await NatsServer.start(options);
  onTestFinished(() => server.end());
  return server;
};

export type MemberOptions = {
  servers: string[];
  /** More of the file, such as routers. */
  more?: Record<string, unknown>;
  /** Of a node that was there before. */
  folder?: string;
};

export type Member = { name: string; folder: string; node: RunningNode };

export const startMember = async (
  name: string,
  { servers, more = {}, folder = tempFolder() }: MemberOptions,
): Promise<Member> => {
  const api = await freePort();
  const file = writeFile(
    folder,
    `${name}.yaml`,
    stringify({
      cluster: 'shop',
      node: name,
      bus: { nats: { servers, startWait: '500ms' } },
      journal: { path: `./${name}.db` },
      api: { listen: `127.0.0.1:${api}` },
      workers: 1,
      backends: { web: { servers: [{ name: 'web1', address: '127.0.0.1:1' }] } },
      ...more,
    }),
  );
  return { name, folder, node: await RunningNode.start(file, api) };
};

export const clusterOf = ({ cluster }: StateView): ClusterView => cluster!;

export const nodeOf = (state: StateView, name: string): ClusterNodeView | null =>
  clusterOf(state).nodes.find((node) => node.name === name) ?? null;

/** Until this node has that one in that state. */
export const sees = ({ node }: Member, name: string, state: ClusterNodeView['state']): Promise<StateView> =>
  node.until(`${name} is ${state}`, (seen) => nodeOf(seen, name)?.state === state);
