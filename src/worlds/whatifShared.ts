/** What a journal can tell of shared checks: other nodes' views come at their times, as they were. */
import type { Config } from '../config/schema.ts';
import { hasQuorum } from '../config/sharedChecks.ts';
import type { Step } from '../journal/record.ts';

export const isOthersWord = ({ event }: Step): boolean => event.type === 'view.heard' || event.type === 'views.known';

export const untoldOfShared = (config: Config, heardOthers: boolean): string[] =>
  hasQuorum(config) && !heardOthers
    ? ['what other nodes’ checks saw is not in this journal: this node’s own checks decide alone here']
    : [];
