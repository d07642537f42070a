/** Where deciding again came out otherwise, and machines that are not those that decided. */
import { machineHashes } from '../fingerprint.ts';
import type { JournalReader } from '../journal/reader.ts';
import { formatDateTime } from '../time.ts';
import type { Divergence } from '../worlds/replay.ts';

export const formatDivergence = ({ seq, actor, timeUs, event, what, recorded, decided }: Divergence): string =>
  [
    `first divergence: record ${seq}, ${actor}, ${event}, at ${formatDateTime(timeUs)}: ${what}`,
    `  recorded: ${JSON.stringify(recorded)}`,
    `  decided:  ${JSON.stringify(decided)}`,
  ].join('\n');

export const differingMachines = (reader: JournalReader): string[] => {
  const differing = new Set<string>();
  const current = machineHashes();
  for (const step of reader.steps({ actor: 'node', type: 'node.started' })) {
    for (const [name, hash] of Object.entries((step.event['machines'] ?? {}) as Record<string, string>)) {
      if (current[name] !== hash) differing.add(name);
    }
  }
  return [...differing];
};
