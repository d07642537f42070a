/** The revision that a node last ran, beside its journal, so that it starts without NATS. Its text may hold secrets. */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { parse, stringify } from 'yaml';
import { asMap } from './raw.ts';
import { readRevision } from './revision.ts';
import type { Revision } from './revision.ts';

export const cachePath = (journalPath: string): string => `${journalPath}.shared.yaml`;

/** Null where there is none that can be read, or it is another cluster's. */
export const readCache = (journalPath: string, cluster: string): Revision | null => {
  try {
    const found = asMap(parse(readFileSync(cachePath(journalPath), 'utf8')));
    return found['cluster'] === cluster ? readRevision(found) : null;
  } catch {
    // Damaged or missing: NATS has it.
    return null;
  }
};

/** Whole or not at all. Throws the system's error. */
export const writeCache = (journalPath: string, cluster: string, revision: Revision): void => {
  const path = cachePath(journalPath);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.new`, stringify({ cluster, ...revision }), { mode: 0o600, flush: true });
  renameSync(`${path}.new`, path);
};
