/** What a file says of its node alone, while what it stands over isn't known. */
import { stringify } from 'yaml';
import { OWN_KEYS } from './checkShared.ts';
import type { Environment } from './environment.ts';
import { ParsedLayer } from './layers.ts';
import { loadConfig } from './load.ts';
import type { Loaded, Problem } from './load.ts';
import { asMap } from './raw.ts';
import type { Raw } from './raw.ts';

/**
 * What a node can be by its own file: all that stands there where it is whole by itself, else its own keys alone. It is what
 * it asks for the shared configuration with, and what it runs until there is one.
 */
export const loadOwnPart = (text: string, environment: Environment, folder: string): Loaded => {
  const whole = loadConfig(text, environment, folder);
  if ('config' in whole) return whole;
  const problems = whole.problems.filter(isOwn);
  if (problems.length > 0) return { problems };
  // Nothing is wrong with these keys, so they are read again by themselves.
  const own = Object.entries(valuesOf(text)).filter(([key]) => OWN_KEYS.includes(key));
  return loadConfig(stringify(Object.fromEntries(own)), environment, folder);
};

/** Whether a file wants to stand over a shared configuration, whatever else may be wrong with it. */
export const wantsShared = (text: string): boolean => valuesOf(text)['shared'] === true;

const valuesOf = (text: string): Raw => {
  const found = new ParsedLayer({ source: null, text }).values();
  return 'value' in found ? asMap(found.value) : {};
};

/** Of its own keys, of the whole text, or of a key that no file has. What else may be wrong, another layer may set right. */
const isOwn = ({ path, message }: Problem): boolean => {
  const [first = ''] = path.split(/[.[]/, 1);
  return path === '' || OWN_KEYS.includes(first) || (path === first && message.startsWith('unknown key'));
};
