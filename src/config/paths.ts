/** Relative paths in a configuration are taken from its own folder. */
import { resolve } from 'node:path';
import { withLogPath } from './log.ts';
import type { NotifyConfig } from './routers.ts';
import type { Config } from './schema.ts';
import { resolveBindTls, resolveServerTls } from './tls.ts';

/** Makes them absolute, in place. */
export const resolvePaths = (config: Config, folder: string): void => {
  resolveSecret(config.api.token, folder);
  resolveBus(config.bus, folder);
  if (config.log.access) config.log.access = withLogPath(config.log.access, folder);
  resolveFrontends(config, folder);
  resolveBackends(config, folder);
  resolveRouters(config, folder);
};

const resolveSecret = (secret: string | { file: string } | undefined, folder: string): void => {
  if (typeof secret === 'object') secret.file = resolve(folder, secret.file);
};

const resolveBus = (bus: Config['bus'], folder: string): void => {
  if (bus === 'memory') return;
  const { credentials, nkey, password, token, tls } = bus.nats;
  for (const one of [credentials, nkey, password, token]) resolveSecret(one, folder);
  for (const key of ['ca', 'certificate', 'key'] as const)
    if (tls?.[key] !== undefined) tls[key] = resolve(folder, tls[key]);
};

const resolvePages = (pages: Record<string, string>, folder: string): void => {
  for (const [status, file] of Object.entries(pages)) pages[status] = resolve(folder, file);
};

const resolveFrontends = (config: Config, folder: string): void => {
  for (const frontend of Object.values(config.frontends)) {
    for (const { tls } of frontend.bind) if (tls) resolveBindTls(tls, folder);
    if (frontend.log) frontend.log = withLogPath(frontend.log, folder);
    resolvePages(frontend.errorPages, folder);
    for (const { allow } of frontend.rules) {
      if (typeof allow !== 'object') continue;
      for (const password of Object.values(allow.users)) resolveSecret(password, folder);
    }
  }
};

const resolveBackends = (config: Config, folder: string): void => {
  for (const { check, tls, servers, errorPages, sticky } of Object.values(config.backends)) {
    if (check && 'ca' in check && check.ca !== undefined) check.ca = resolve(folder, check.ca);
    for (const one of [tls, ...servers.map((server) => server.tls)])
      if (typeof one === 'object') resolveServerTls(one, folder);
    resolvePages(errorPages, folder);
    if (sticky && 'cookie' in sticky) resolveSecret(sticky.cookie.key, folder);
  }
};

const resolveRouters = (config: Config, folder: string): void => {
  const resolveProgram = (command: string[] | undefined) => {
    if (command?.[0]?.includes('/')) command[0] = resolve(folder, command[0]);
  };
  const resolveNotify = (notify: NotifyConfig | undefined) => {
    for (const key of ['command', 'master', 'backup', 'fault', 'stop'] as const) resolveProgram(notify?.[key]);
  };
  for (const { authentication, track, notify } of Object.values(config.routers)) {
    if (authentication?.type === 'hmac') for (const { secret } of authentication.keys) resolveSecret(secret, folder);
    else resolveSecret(authentication?.secret, folder);
    resolveNotify(notify);
    for (const one of track) {
      if ('script' in one) resolveProgram(one.script);
      if ('file' in one) one.file = resolve(folder, one.file);
    }
  }
  for (const { notify } of Object.values(config.syncGroups)) resolveNotify(notify);
  if (config.notifyPipe) config.notifyPipe.path = resolve(folder, config.notifyPipe.path);
};
