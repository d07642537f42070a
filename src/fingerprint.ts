/** Hashes that the first record of an epoch carries, and the configuration as a record may hold it. */
import { createHash } from 'node:crypto';
import { shapeOf } from '../actors/decide.ts';
import { machines } from '../machines/index.ts';
import type { RouterConfig } from './config/routers.ts';
import { recordableRule } from './config/rules.ts';
import type { BackendConfig, CheckConfig, Config } from './config/schema.ts';

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

/** Sent, so it may be secret; with its names it still tells what kind of request it is. */
const recordableCheck = (check: CheckConfig): unknown => {
  const copy: Record<string, unknown> = { ...check };
  if ('headers' in check) {
    copy['headers'] = Object.fromEntries(Object.keys(check.headers).map((field) => [field, SECRET]));
    copy['path'] = check.path.replace(/\?.*$/, `?${SECRET}`);
  }
  if ('send' in check && check.send !== undefined) copy['send'] = SECRET;
  return copy;
};

const recordableSticky = (sticky: BackendConfig['sticky']): unknown =>
  sticky && 'cookie' in sticky && sticky.cookie.key !== undefined
    ? { cookie: { ...sticky.cookie, key: SECRET } }
    : sticky;

const recordableBackend = (backend: BackendConfig): unknown => ({
  ...backend,
  ...(backend.check && { check: recordableCheck(backend.check) }),
  ...(backend.sticky && { sticky: recordableSticky(backend.sticky) }),
});

const recordableBus = (bus: Config['bus']): unknown => {
  if (bus === 'memory') return bus;
  const secrets = (['credentials', 'nkey', 'password', 'token'] as const).filter((key) => bus.nats[key] !== undefined);
  return { nats: { ...bus.nats, ...Object.fromEntries(secrets.map((key) => [key, SECRET])) } };
};

const mapped = <T>(parts: Record<string, T>, part: (value: T) => unknown): Record<string, unknown> =>
  Object.fromEntries(Object.entries(parts).map(([name, value]) => [name, part(value)]));

/**
 * Without what may be secret: tokens, passwords of routers and rules, keys of cookies, and fields and texts that are sent.
 * Certificates and keys are named by their files alone.
 */
export const recordableConfig = (config: Config): Record<string, unknown> => ({
  ...config,
  bus: recordableBus(config.bus),
  api: { ...config.api, ...(config.api.token === undefined ? {} : { token: SECRET }) },
  frontends: mapped(config.frontends, (frontend) => ({ ...frontend, rules: frontend.rules.map(recordableRule) })),
  backends: mapped(config.backends, recordableBackend),
  routers: mapped(config.routers, (router) => ({ ...router, authentication: withoutSecrets(router.authentication) })),
});
