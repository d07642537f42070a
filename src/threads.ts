import { getPriority, setPriority } from 'node:os';
import { fileURLToPath } from 'node:url';
import { codeOf } from './errors.ts';

/** The file of a thread beside this module, as it is called in a checkout (`.ts`) or in the package (`.js`). */
export const threadFile = (name: string, importer: string): string =>
  fileURLToPath(new URL(`./${name}${importer.endsWith('.ts') ? '.ts' : '.js'}`, importer));

/**
 * Threads and processes begin with the priority of whoever starts them. What the control thread has above the usual, so
 * that adverts are on time, is for itself alone. Without a pid it is about the calling thread.
 */
export const takeUsualPriority = (pid = 0): void => {
  try {
    if (getPriority(pid) < 0) setPriority(pid, 0);
  } catch (error) {
    // A process may have ended already.
    if (codeOf(error) !== 'ERR_SYSTEM_ERROR') throw error;
  }
};
