import type { View, Word } from '../machines/healthQuorum.ts';
import type { Hands } from './system.ts';

export type KnownViews = {
  views: Readonly<Record<string, Word>>;
  blind: readonly string[];
  checkers: readonly string[] | null;
};

export type QuorumPorts = {
  /** This node's view of a quorum's server is another one. */
  share(quorum: string, view: View | 'none', message: string): void;
  /** What other nodes say of its server; null when nothing is known. */
  known(quorum: string): KnownViews | null;
};

export const healthQuorumHands = ({ share, known }: QuorumPorts): Hands => ({
  share: ({ view, message }: { view: View | 'none'; message: string }, { id }) => share(id, view, message),
  askViews: (_: never, { id, send }) => {
    const views = known(id);
    if (views) send({ type: 'views.known', ...views });
  },
  // Nobody speaks for this node any more.
  'actor.stopped': (_: never, { id }) => share(id, 'none', ''),
});
