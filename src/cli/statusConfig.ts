/** The shared configuration in `understudy status`: which revision runs where, and how far the newest has come. */
import type { StateView } from '../api/state.ts';
import { describeRollout } from '../config/revision.ts';
import { bold, green, red, yellow } from './output.ts';

/** Nothing where the node has a configuration of its own. */
export const formatSharedConfig = ({ sharedConfig, cluster, node }: StateView): string[] => {
  if (!sharedConfig) return [];
  const { revision, rollout } = sharedConfig;
  const others = (cluster?.nodes ?? []).flatMap(({ name, self, configRevision, state }) =>
    self || configRevision === null || configRevision === revision
      ? []
      : [`${name} runs ${configRevision}${state === 'gone' ? ' (gone)' : ''}`],
  );
  const text = revision === 0 ? 'no revision yet' : `revision ${revision}`;
  const color = rollout === null || rollout.state === 'done' ? green : rollout.state === 'applying' ? yellow : red;
  const newest = rollout === null ? 'nothing has been pushed' : color(describeRollout(rollout));
  const isPlain = rollout?.state === 'done' && rollout.revision === revision;
  return [
    `${bold('Shared configuration')}: ${node.name} runs ${text}${isPlain ? '' : `; ${newest}`}${others.length === 0 ? '' : `; ${others.join(', ')}`}`,
  ];
};
