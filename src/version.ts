import { readFileSync } from 'node:fs';

/** The package's own version; `package.json` lies one folder above in a checkout, two in the built package. */
const read = (): string => {
  for (const up of ['..', '../..']) {
    try {
      const text = readFileSync(new URL(`${up}/package.json`, import.meta.url), 'utf8');
      const parsed = JSON.parse(text) as { name?: string; version?: string };
      if (parsed.name === 'understudy' && parsed.version !== undefined) return parsed.version;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
  return 'unknown';
};

export const version = read();
