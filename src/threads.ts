import { fileURLToPath } from 'node:url';

/** The file of a thread beside this module, as it is called in a checkout (`.ts`) or in the package (`.js`). */
export const threadFile = (name: string, importer: string): string =>
  fileURLToPath(new URL(`./${name}${importer.endsWith('.ts') ? '.ts' : '.js'}`, importer));
