/** Hashes that the first record of an epoch carries, and the configuration as a record may hold it. */
import { createHash } from 'node:crypto';
import { shapeOf } from '../actors/decide.ts';
import { machines } from '../machines/index.ts';
import type { RouterConfig } from './config/routers.ts';
import type { Config } from './config/schema.ts';

const HASH_DIGITS = 16;

export const hashOf = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, HASH_DIGITS);

/** Machine name → hash of its states, transitions and the names of its guards, actions and delays. */
export const machineHashes = (): Record<string, string> =>
  Object.fromEntries(Object.entries(machines).map(([name, machine]) => [name, hashOf(shapeOf(machine))]));

const SECRET = '(not recorded)';

const withoutSecrets = (authentication: RouterConfig['authentication']): unknown => {
  if (!authentication) return undefined;
  return authentication.type === 'hmac'
    ? { type: 'hmac', keys: authentication.keys.map(({ id }) => ({ id, secret: SECRET })) }
    : { type: authentication.type, secret: SECRET };
};

/** Without what may be secret: tokens, passwords of routers, and fields and texts that checks send. */
export const recordableConfig = (config: Config): Record<string, unknown> => ({
  ...config,
  routers: Object.fromEntries(
    Object.entries(config.routers).map(([name, router]) => [
      name,
      { ...router, authentication: withoutSecrets(router.authentication) },
    ]),
  ),
  api: { ...config.api, ...(config.api.token === undefined ? {} : { token: SECRET }) },
  backends: Object.fromEntries(
    Object.entries(config.backends).map(([name, backend]) => {
      const { check } = backend;
      if (!check) return [name, backend];
      const headers =
        'headers' in check
          ? { headers: Object.fromEntries(Object.keys(check.headers).map((field) => [field, SECRET])) }
          : {};
      const send = 'send' in check && check.send !== undefined ? { send: SECRET } : {};
      return [name, { ...backend, check: { ...check, ...headers, ...send } }];
    }),
  ),
});
