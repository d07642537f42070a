import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { codeOf, messageOf } from '../errors.ts';
import { observeWithin, seenBad, seenOk } from './observation.ts';
import type { Observation, Seen } from './observation.ts';

/** keepalived's bounds: at them a weight of one already means FAULT, or the highest priority. */
const LOWEST = -254;
const HIGHEST = 254;
/** keepalived reads an int; a number that doesn't fit is a mistake and no weight. */
const INT_MAX = 2 ** 31 - 1;
/** As much as keepalived reads. */
const LONGEST_BYTES = 127;

export type NumberFile = { path: string; timeoutMs: number };

/**
 * The whole number in a file (keepalived's track_file), read once. No file, or an empty one, counts as 0. FILEOK, or not
 * ok: FILEVAL the text is no number, FILEERR it can't be read, FILETOUT it took too long (a network file system).
 * keepalived takes for 0 what it can't open, and reads `1O` as 1; here both are told.
 */
export const readNumberFile = (o: NumberFile, done: (observation: Observation) => void): (() => void) =>
  observeWithin(
    o.timeoutMs,
    seenBad('FILETOUT', `${o.path} could not be read within ${o.timeoutMs} ms`),
    () => look(o.path),
    done,
  );

const look = async (path: string): Promise<Seen> => {
  try {
    const text = (await readStart(path)).trim();
    const value = numberIn(text);
    return value === null
      ? seenBad('FILEVAL', `${path} holds ${JSON.stringify(text)}, not a whole number`)
      : seenOk('FILEOK', value);
  } catch (error) {
    return codeOf(error) === 'ENOENT'
      ? seenOk('FILEOK', 0, `there is no ${path}`)
      : seenBad('FILEERR', `${path} can't be read: ${messageOf(error)}`);
  }
};

const readStart = async (path: string): Promise<string> => {
  // Non-blocking, as a FIFO without a writer would hold a thread of the pool for ever.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    if (!(await file.stat()).isFile()) throw new Error('it is not a regular file');
    const { buffer, bytesRead } = await file.read(Buffer.alloc(LONGEST_BYTES), 0, LONGEST_BYTES, 0);
    return buffer.toString('utf8', 0, bytesRead);
  } finally {
    await file.close();
  }
};

/** Beyond the bounds is taken for the bound, as by keepalived. */
const numberIn = (text: string): number | null => {
  if (text === '') return 0;
  // No leading zeros: keepalived would read them as octal, people as decimal.
  if (!/^[+-]?(?:0|[1-9]\d*)$/.test(text)) return null;
  const value = Number(text);
  if (Math.abs(value) > INT_MAX) return null;
  // Adding 0 makes 0 of the -0 that `-0` is.
  return Math.max(LOWEST, Math.min(HIGHEST, value)) + 0;
};
