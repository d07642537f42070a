/** What a cluster may share, and what a node needs to take part in it. */
import { asMap } from './raw.ts';
import type { Raw, Report } from './raw.ts';

/** Keys that say who a node is: they stand in its own file, and in nothing that nodes share. */
export const OWN_KEYS: readonly string[] = ['cluster', 'node', 'shared', 'bus', 'journal', 'api'];

/** Of the shared text and of overlays: everything may stand there but what belongs to a node alone. */
export const checkShared = (value: unknown, report: Report): void => {
  const map = asMap(value);
  if (map !== value) report([], 'what is shared is a map, like the file of a node');
  for (const key of Object.keys(map))
    if (OWN_KEYS.includes(key)) report([key], `${key} belongs to each node; it stands in the node's own file`);
};

export const checkTakesPart = ({ shared, bus = 'memory' }: Raw, report: Report): void => {
  if (shared === true && bus === 'memory')
    report(['shared'], 'what nodes share comes over NATS; this file has no bus.nats');
};
