/** From shared checks in the configuration to the actors that they ask for. Pure. */
import type { HealthQuorumInput } from '../../machines/healthQuorum.ts';
import type { NodeSightInput } from '../../machines/nodeSight.ts';
import type { BackendConfig, Config } from '../config/schema.ts';
import { hasQuorum, sharedChecksOf } from '../config/sharedChecks.ts';

export const SIGHT_ACTOR = 'sight';
export const quorumId = (pool: string, server: string) => `quorum/${pool}/${server}`;

export type SharedSpec = { id: string; identity: string; rest: string } & (
  { machine: 'healthQuorum'; input: HealthQuorumInput } | { machine: 'nodeSight'; input: NodeSightInput }
);

export const isByQuorum = (backend: BackendConfig): boolean => sharedChecksOf(backend).share === 'quorum';

/** What servers, checkers and observers have to know of it; nothing where nothing is shared, as journals of old have it. */
export const sharedMark = (backend: BackendConfig): { shared?: true } => (isByQuorum(backend) ? { shared: true } : {});

/** `identity` is the server's: it begins anew when the server does. */
export const quorumSpecs = (config: Config, pool: string, server: string, identity: string): SharedSpec[] => {
  const backend = config.backends[pool]!;
  if (!isByQuorum(backend) || !backend.check) return [];
  const { rise, fall } = backend.check;
  const input = { pool, server, settings: { node: config.node, rise, fall } };
  return [{ id: quorumId(pool, server), identity, rest: '', machine: 'healthQuorum', input }];
};

/** `watchers`: trackers of the sight. */
export const sightSpecs = (config: Config, watchers: string[]): SharedSpec[] => {
  if (!hasQuorum(config)) return [];
  const voters = Object.entries(config.backends).flatMap(([pool, backend]) =>
    isByQuorum(backend) ? backend.servers.map(({ name }) => quorumId(pool, name)) : [],
  );
  const settings = { node: config.node, voters, watchers };
  return [{ id: SIGHT_ACTOR, identity: '', rest: '', machine: 'nodeSight', input: { settings } }];
};
