/** Files and lists that TLS is configured with, tried with OpenSSL itself. Works on the raw file. */
import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { resolve } from 'node:path';
import { messageOf } from '../errors.ts';
import { tryCertificate, tryStore } from '../proxy/certificates.ts';
import { tryTerms } from '../proxy/tlsContext.ts';
import { asList, asMap, under } from './raw.ts';
import type { At, Path, Raw, Report } from './raw.ts';
import { parseEndpoint } from './units.ts';

const HTTP_PROTOCOLS = ['h2', 'http/1.1'];

/** Frontends and backends of the whole file. Relative paths are taken from the folder. */
export const checkTls = (file: Raw, folder: string, report: Report): void => {
  const read = (name: string): string => readFileSync(resolve(folder, name), 'latin1');
  for (const [name, value] of Object.entries(asMap(file['frontends']))) {
    const { mode, bind } = asMap(value);
    asList(bind).forEach((entry, index) => {
      const { tls } = asMap(entry);
      if (tls !== undefined) checkBind(asMap(tls), mode, read, under('frontends', name, 'bind', index, 'tls'), report);
    });
  }
  for (const [name, value] of Object.entries(asMap(file['backends']))) {
    const backend = asMap(value);
    checkServerTls(asMap(backend['tls']), read, under('backends', name, 'tls'), report);
    asList(backend['servers']).forEach((entry, index) => {
      const server = asMap(entry);
      const at = under('backends', name, 'servers', index);
      checkServerTls(asMap(server['tls']), read, under(...at('tls')), report);
      checkVerifiedName(server, backend['tls'], at, report);
    });
  }
};

type Read = (name: string) => string;

const checkBind = (tls: Raw, mode: unknown, read: Read, at: At, report: Report): void => {
  asList(tls['certificates']).forEach((pair, index) => checkKeyPair(pair, read, at('certificates', index), report));
  asList(tls['alpn']).forEach((protocol, index) => {
    if (mode !== 'http' || typeof protocol !== 'string' || HTTP_PROTOCOLS.includes(protocol)) return;
    report(at('alpn', index), `${protocol} is not spoken in mode http; allowed are ${HTTP_PROTOCOLS.join(', ')}`);
  });
  checkTerms(tls, at, report);
  const clients = asMap(tls['clientCertificates']);
  checkAuthorities(clients, read, (...path) => at('clientCertificates', ...path), report);
};

const checkServerTls = (tls: Raw, read: Read, at: At, report: Report): void => {
  if (tls['certificate'] !== undefined) checkKeyPair(tls['certificate'], read, at('certificate'), report);
  checkTerms(tls, at, report);
  checkAuthorities(tls, read, at, report);
};

const checkKeyPair = (pair: unknown, read: Read, path: Path, report: Report): void => {
  const { chain, key } = asMap(pair);
  if (typeof pair === 'string') {
    const problem = problemOf(() => tryCertificate(read(pair)));
    if (problem === null) return;
    report(path, `the certificate ${pair} can't be used: ${problem}; a PEM file with the chain and its key is needed`);
  } else if (typeof chain === 'string' && typeof key === 'string') {
    const problem = problemOf(() => tryCertificate(`${read(chain)}\n${read(key)}`));
    if (problem !== null) report(path, `the certificate ${chain} can't be used with the key ${key}: ${problem}`);
  }
};

const checkAuthorities = ({ ca, crl }: Raw, read: Read, at: At, report: Report): void => {
  for (const [key, name] of Object.entries({ ca, crl })) {
    if (typeof name !== 'string') continue;
    const problem = problemOf(() => tryStore(key === 'ca' ? read(name) : null, key === 'crl' ? read(name) : null));
    if (problem !== null) report(at(key), `the file ${name} can't be used: ${problem}`);
  }
};

const checkTerms = (tls: Raw, at: At, report: Report): void => {
  for (const key of ['ciphers', 'cipherSuites', 'curves'] as const) {
    const value = tls[key];
    if (typeof value !== 'string') continue;
    if (problemOf(() => tryTerms({ [key]: value })) !== null) {
      report(at(key), `${JSON.stringify(value)} is nothing that OpenSSL knows; names are separated by colons`);
    }
  }
};

/** A certificate is for a name; a Unix socket has none. */
const checkVerifiedName = (server: Raw, ofBackend: unknown, at: At, report: Report): void => {
  const tls = server['tls'] ?? ofBackend;
  if (tls === undefined || tls === false || asMap(tls)['verify'] === false) return;
  const { address } = server;
  const { serverName } = asMap(tls);
  const endpoint = typeof address === 'string' ? parseEndpoint(address) : null;
  if (endpoint && 'path' in endpoint && serverName === undefined) {
    report(at('address'), 'a Unix socket has no name that its certificate could be for; tls.serverName is needed');
  }
  const ofServer = asMap(server['tls'])['serverName'];
  if (typeof ofServer === 'string' && isIP(ofServer) === 0 && !/^[A-Za-z0-9_.-]+$/.test(ofServer)) {
    report(at('tls', 'serverName'), `${JSON.stringify(ofServer)} is not a name or address of a host`);
  }
};

const problemOf = (attempt: () => void): string | null => {
  try {
    attempt();
    return null;
  } catch (error) {
    return messageOf(error);
  }
};
