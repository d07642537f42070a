/** What is known of another node, in words: `status`, `/healthz` and `explain` say the same. */
import type { MemberIdentity, MemberReason } from '../../machines/clusterMember.ts';
import { formatSpan } from '../time.ts';

/** A clock that differs by less tells nothing: messages need that long. */
const CLOCK_SAYS_NOTHING_US = 50_000;

/** Why it is suspect or gone; one sentence without its subject. */
export const memberReasonText = ({ code, silentMs, detail }: MemberReason): string => {
  switch (code) {
    case 'heard':
      return 'it was heard';
    case 'restarted':
      return 'it has started anew';
    case 'replaced':
      return 'another one has taken its name';
    case 'silent':
      return silentMs === undefined
        ? 'it is silent, and NATS is back'
        : `nothing was heard of it for ${formatSpan(silentMs * 1000)}`;
    case 'busAway':
      return `NATS is away${detail === undefined ? '' : ` (${detail})`}: that tells nothing of the node`;
    case 'left':
      return 'it has left in order';
  }
};

export const twoNodesText = (node: string, own: MemberIdentity, other: MemberIdentity): string =>
  `two nodes call themselves ${node}: journal ${own.journal} (start ${own.epoch}) and journal ${other.journal} (start ${other.epoch}); each node needs a name of its own`;

/** `behindUs`: at most so far behind; below 0, at least so far ahead. */
export const clockText = (behindUs: number): string => {
  if (behindUs < 0) return `ahead by at least ${formatSpan(-behindUs)}`;
  if (behindUs < CLOCK_SAYS_NOTHING_US) return `agrees within ${formatSpan(behindUs)}`;
  return `behind by at most ${formatSpan(behindUs)}`;
};
