/** What no single key of a frontend can tell. Works on the raw file, before defaults are filled in. */
import { isIP } from 'node:net';
import { resolve } from 'node:path';
import ipaddr from 'ipaddr.js';
import { socketFileOf } from '../net/socketFile.ts';
import { logFileProblem } from './files.ts';
import { asList, asMap, under } from './raw.ts';
import type { At, Raw, Report } from './raw.ts';
import { formatEndpoint, parseEndpoint, parseInetEndpoint } from './units.ts';
import type { Endpoint } from './units.ts';

const HTTP_KEYS = ['forwardedFor', 'compression', 'errorPages', 'http2'];
const HTTP_TIMEOUTS = ['httpRequest', 'keepAlive'];
const UNIX_KEYS = ['mode', 'user', 'group'];

export const checkFrontends = (file: Raw, folder: string, report: Report): void => {
  const taken: Taken[] = [];
  const { listen = '127.0.0.1:8404' } = asMap(file['api']);
  const api = typeof listen === 'string' ? parseInetEndpoint(listen) : null;
  if (api) taken.push({ what: 'the API (api.listen)', frontend: null, address: api });
  checkLog(asMap(asMap(file['log'])['access']), folder, under('log', 'access'), report);
  for (const [name, value] of Object.entries(asMap(file['frontends']))) {
    const frontend = asMap(value);
    const at = under('frontends', name);
    checkUse(frontend, asMap(file['backends']), at, report);
    asList(frontend['bind']).forEach((entry, index) =>
      checkBind(entry, name, taken, (...path) => at('bind', index, ...path), report),
    );
    if (frontend['mode'] === 'tcp') checkTcp(frontend, at, report);
    if (frontend['mode'] === 'http') checkHttp2(frontend, at, report);
    checkLog(asMap(frontend['log']), folder, (...path) => at('log', ...path), report);
  }
};

const checkUse = ({ use, mode }: Raw, backends: Raw, at: At, report: Report): void => {
  if (typeof use !== 'string') return;
  if (!Object.hasOwn(backends, use)) {
    const known = Object.keys(backends);
    const allowed = known.length > 0 ? `allowed are ${known.join(', ')}` : 'the file has none';
    report(at('use'), `there is no backend ${use}; ${allowed}`);
    return;
  }
  const { mode: other } = asMap(backends[use]);
  if (typeof other === 'string' && typeof mode === 'string' && other !== mode)
    report(at('use'), `backend ${use} has mode ${other}, this frontend ${mode}; they must agree`);
};

const checkTcp = (frontend: Raw, at: At, report: Report): void => {
  const only = 'is known in mode http only: a connection has no requests';
  for (const key of HTTP_KEYS) if (frontend[key] !== undefined) report(at(key), `${key} ${only}`, true);
  const timeouts = asMap(frontend['timeouts']);
  for (const key of HTTP_TIMEOUTS)
    if (timeouts[key] !== undefined) report(at('timeouts', key), `${key} ${only}; tcp has client`, true);
  const log = asMap(frontend['log']);
  for (const key of ['requestHeaders', 'responseHeaders'])
    if (log[key] !== undefined) report(at('log', key), `${key} ${only}`, true);
};

/** Browsers and gRPC clients speak it over TLS alone, and we do too. */
const checkHttp2 = (frontend: Raw, at: At, report: Report): void => {
  if (frontend['http2'] === undefined) return;
  const speaksHttp2 = (entry: unknown): boolean => {
    const { tls } = asMap(entry);
    const { alpn = ['h2'] } = asMap(tls);
    return tls !== undefined && asList(alpn).includes('h2');
  };
  if (!asList(frontend['bind']).some(speaksHttp2))
    report(at('http2'), 'no bind speaks HTTP/2; it takes one with tls, whose alpn has h2 (the default)', true);
};

type Taken = { what: string; frontend: string | null; address: Endpoint };

const checkBind = (entry: unknown, frontend: string, taken: Taken[], at: At, report: Report): void => {
  const { address: text = entry, proxyProtocol } = asMap(entry);
  const address = typeof text === 'string' ? parseEndpoint(text) : null;
  if (!address) return;
  const addressAt = typeof entry === 'string' ? at() : at('address');
  if (address.path === undefined && address.host !== '*' && isIP(address.host) === 0) {
    report(addressAt, `${address.host} is a name; allowed are addresses of this machine, and * for all`);
    return;
  }
  if (address.host.includes('%')) {
    report(addressAt, `${address.host} has a zone; allowed are addresses without, and * for all`);
    return;
  }
  const other = taken.find((one) => clash(one, { what: '', frontend, address }));
  if (other) report(addressAt, takenText(address, other));
  taken.push({ what: `frontend ${frontend}`, frontend, address });
  if (address.path === undefined) {
    for (const key of UNIX_KEYS)
      if (asMap(entry)[key] !== undefined)
        report(at(key), `only a Unix socket has a file; ${key} is for addresses like unix:/run/shop.sock`, true);
  } else checkSocketFile(asMap(entry), at, report);
  checkPeers(asList(asMap(proxyProtocol)['from']), address, (...path) => at('proxyProtocol', 'from', ...path), report);
};

const takenText = (address: Endpoint, { what, address: other }: Taken): string => {
  const [here, there] = [formatEndpoint(address), formatEndpoint(other)];
  return `${here} is bound by ${what} already${here === there ? '' : `, as ${there}`}`;
};

/**
 * Whether two would share connections. With SO_REUSEPORT the kernel lets several programs, and so several frontends,
 * listen at the same address, and gives each a part. Of `*:80` and `10.0.0.1:80` the latter gets all that comes to it,
 * which is of use. The API has no SO_REUSEPORT: what overlaps with it can't be bound.
 */
const clash = (a: Taken, b: Taken): boolean => {
  if (a.address.path !== undefined || b.address.path !== undefined) return a.address.path === b.address.path;
  if (a.address.port !== b.address.port) return false;
  // The kernel chooses another port each time; but the listeners of one frontend need names of their own.
  if (a.address.port === 0) return a.frontend === b.frontend && formatEndpoint(a.address) === formatEndpoint(b.address);
  const [hostA, hostB] = [canonical(a.address.host), canonical(b.address.host)];
  return hostA === hostB || (a.frontend === null && (includes(hostA, hostB) || includes(hostB, hostA)));
};

/** `*` is `::` that takes IPv4 too. */
const canonical = (host: string): string =>
  host === '*' ? '::' : ipaddr.isValid(host) ? ipaddr.parse(host).toString() : host;

const includes = (wildcard: string, host: string): boolean =>
  wildcard === '::' || (wildcard === '0.0.0.0' && isIP(host) === 4);

const checkSocketFile = (bind: Raw, at: At, report: Report): void => {
  for (const key of ['user', 'group'] as const) {
    const value = bind[key];
    if (typeof value !== 'string') continue;
    const file = socketFileOf({ [key]: value });
    if ('refusal' in file) report(at(key), file.refusal);
  }
};

const checkPeers = (from: unknown[], { path }: Endpoint, at: At, report: Report): void => {
  from.forEach((peer, index) => {
    if (peer === 'unix' && path === undefined)
      report(at(index), 'peers of this bind have addresses; unix is for peers of a Unix socket');
    else if (typeof peer === 'string' && peer !== 'unix' && path !== undefined)
      report(at(index), `peers of a Unix socket have no addresses; allowed is unix`);
  });
};

const checkLog = (log: Raw, folder: string, at: At, report: Report): void => {
  const { path } = log;
  if (typeof path !== 'string' || path === '') return;
  const isSyslog = path.startsWith('syslog://');
  if (log['syslog'] !== undefined && !isSyslog)
    report(at('syslog'), 'these are for a log to syslog; its path is like syslog://127.0.0.1:514', true);
  if (isSyslog || path === 'stdout' || path.includes('://')) return;
  const problem = logFileProblem(resolve(folder, path));
  if (problem !== null) report(at('path'), `the log ${path} can't be written: ${problem}`);
};
