/** What no single key of a backend can tell. Works on the raw file, before defaults are filled in. */
import { checkObserve } from './observe.ts';
import { asList, asMap, under } from './raw.ts';
import type { At, Raw, Report } from './raw.ts';
import { checkSharedChecks } from './sharedChecks.ts';
import { parseEndpoint } from './units.ts';

const HTTP_BALANCE = new Set(['uri', 'header', 'cookie', 'query']);

export const checkBackends = (file: Raw, report: Report): void => {
  for (const [name, value] of Object.entries(asMap(file['backends']))) {
    const backend = asMap(value);
    const at = under('backends', name);
    checkObserve(backend, (path, message) => report(at(...path), message));
    checkSharedChecks(file, backend, at, report);
    checkServers(backend, at, report);
    const why = backend['mode'] === undefined ? usedByTcp(name, file) : backend['mode'] === 'tcp' ? 'it is tcp' : null;
    if (why !== null) checkTcp(backend, why, at, report);
  }
};

/** Why a backend without a mode of its own has to do with connections alone; null where it hasn't. */
const usedByTcp = (name: string, file: Raw): string | null => {
  for (const [frontendName, value] of Object.entries(asMap(file['frontends']))) {
    const { mode, use, rules } = asMap(value);
    const isUser = use === name || asList(rules).some((rule) => asMap(rule)['use'] === name);
    if (mode === 'tcp' && isUser) return `frontend ${frontendName}, which uses it, is tcp`;
  }
  return null;
};

const checkTcp = (backend: Raw, why: string, at: At, report: Report): void => {
  const only = `in mode http only; ${why}`;
  const { balance } = backend;
  const type = typeof balance === 'string' ? balance : asMap(balance)['type'];
  if (typeof type === 'string' && HTTP_BALANCE.has(type))
    report(typeof balance === 'string' ? at('balance') : at('balance', 'type'), `${type} is known ${only}`);
  if (asMap(backend['sticky'])['cookie'] !== undefined)
    report(at('sticky', 'cookie'), `cookies are known ${only}; \`table: source\` works there`, true);
  if (backend['errorPages'] !== undefined) report(at('errorPages'), `errorPages are known ${only}`, true);
  if (asMap(backend['timeouts'])['tunnel'] !== undefined)
    report(at('timeouts', 'tunnel'), `tunnel is known ${only}; client and server do for connections`, true);
  for (const [key, value] of Object.entries({ observe: backend['observe'], outliers: backend['outliers'] })) {
    if (value === 'layer7') report(at(key), `layer7 is known ${only}; allowed is layer4`);
    if (asMap(value)['layer'] === 'layer7') report(at(key, 'layer'), `layer7 is known ${only}; allowed is layer4`);
  }
};

const checkServers = (backend: Raw, at: At, report: Report): void => {
  const names = new Set<unknown>();
  /** What stands for a server in the sticky cookie → the server. */
  const cookies = new Map<string, string>();
  const { cookie } = asMap(backend['sticky']);
  const hasCookie = cookie !== undefined;
  const keyed = asMap(cookie)['key'] !== undefined;
  asList(backend['servers']).forEach((entry, index) => {
    const server = asMap(entry);
    const serverAt: At = (...path) => at('servers', index, ...path);
    const { name } = server;
    const isAgain = typeof name === 'string' && names.has(name);
    if (isAgain) report(serverAt('name'), `${name} is there already; each server of a backend needs a name of its own`);
    names.add(name);
    checkAddress(server, serverAt, report);
    if (server['maxQueue'] !== undefined && (server['maxConnections'] ?? 0) === 0)
      report(serverAt('maxQueue'), 'nobody waits for a server without maxConnections', true);
    if (server['cookie'] !== undefined && !hasCookie)
      report(serverAt('cookie'), 'it stands for the server in the sticky cookie; this backend has none', true);
    // With a key, that of a server without a value of its own is a hash of its name.
    if (!hasCookie || isAgain || (keyed && server['cookie'] === undefined)) return;
    const { cookie: value = name } = server;
    if (typeof value !== 'string' || typeof name !== 'string') return;
    const other = cookies.get(value);
    if (other === undefined) cookies.set(value, name);
    else
      report(
        serverAt(server['cookie'] === undefined ? 'name' : 'cookie'),
        `${value} stands for server ${other} already in the sticky cookie; each needs a value of its own`,
      );
  });
};

const checkAddress = ({ address }: Raw, at: At, report: Report): void => {
  const endpoint = typeof address === 'string' ? parseEndpoint(address) : null;
  if (endpoint?.port === 0 && endpoint.path === undefined)
    report(at('address'), 'port 0 is not allowed; 1 to 65535 are');
  if (endpoint?.host === '*') report(at('address'), '* is for listening; a server has an address or a name');
};
