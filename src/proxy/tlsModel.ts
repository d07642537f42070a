/** What workers are told of TLS: the configuration with its files read. */
import { readFileSync } from 'node:fs';
import type { BindTls, KeyPair, ServerTls } from '../config/tls.ts';
import type { ClientTlsModel } from './tlsClient.ts';
import type { ServerTlsModel, TlsTerms } from './tlsContext.ts';

const HTTP_PROTOCOLS = ['h2', 'http/1.1'];

const read = (file: string): string => readFileSync(file, 'latin1');

const readPair = (pair: KeyPair): string =>
  typeof pair === 'string' ? read(pair) : `${read(pair.chain)}\n${read(pair.key)}`;

const termsOf = ({ minVersion, maxVersion, ciphers, cipherSuites, curves }: BindTls | ServerTls): TlsTerms => ({
  minVersion,
  maxVersion,
  ciphers: ciphers ?? null,
  cipherSuites: cipherSuites ?? null,
  curves: curves ?? null,
});

/** Paths are absolute. @throws Error of the file system */
export const readServerTls = (tls: BindTls, mode: 'http' | 'tcp'): ServerTlsModel => ({
  ...termsOf(tls),
  certificates: tls.certificates.map(readPair),
  strictSni: tls.strictSni,
  alpn: tls.alpn ?? (mode === 'http' ? HTTP_PROTOCOLS : null),
  tickets: tls.tickets,
  clientCertificates: tls.clientCertificates
    ? {
        ca: read(tls.clientCertificates.ca),
        crl: tls.clientCertificates.crl === undefined ? null : read(tls.clientCertificates.crl),
        verify: tls.clientCertificates.verify,
      }
    : null,
});

/** `host` is that of the server's address, empty for a Unix socket. Paths are absolute. @throws Error of the file system */
export const readClientTls = (tls: ServerTls, host: string): ClientTlsModel => ({
  ...termsOf(tls),
  verify: tls.verify,
  ca: tls.ca === undefined ? null : read(tls.ca),
  crl: tls.crl === undefined ? null : read(tls.crl),
  serverName: tls.serverName ?? host,
  certificate: tls.certificate === undefined ? null : readPair(tls.certificate),
});
