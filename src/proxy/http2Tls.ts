/** TLS for connections of HTTP/2: certificates by SNI, and the client's own. Other terms are another Http2Tls. */
import assert from 'node:assert/strict';
import { constants, X509Certificate } from 'node:crypto';
import type { Socket } from 'node:net';
import { createSecureContext, createServer, DEFAULT_CIPHERS } from 'node:tls';
import type { SecureContext, SecureContextOptions, Server, TLSSocket } from 'node:tls';
import { namesOf } from './certificates.ts';
import type { TlsFacts } from './stream.ts';
import type { ServerTlsModel } from './tlsContext.ts';

/** Those of TLS 1.3 are known by their names. */
const isSuite = (name: string): boolean => name.startsWith('TLS_');
const DEFAULT_SUITES = DEFAULT_CIPHERS.split(':').filter(isSuite).join(':');
const DEFAULT_TLS12_CIPHERS = DEFAULT_CIPHERS.split(':')
  .filter((name) => !isSuite(name))
  .join(':');

/** As long as names in header fields may be: servers limit these. */
const LONGEST_NAME_CHARACTERS = 1024;

export type Http2TlsOptions = Omit<ServerTlsModel, 'strictSni' | 'alpn'> & {
  /** 48 bytes that all threads of a bind share, so that clients resume with any of them. */
  ticketKeys: Buffer;
  handshakeTimeoutMs: number;
};

export type Http2TlsUser = {
  /** `transport` is what was accepted. */
  onSecure(socket: TLSSocket, transport: Socket): void;
  onHandshakeFailed(code: string): void;
};

export class Http2Tls {
  readonly #options: Http2TlsOptions;
  readonly #server: Server;
  /** By name; undefined is the server's own context. */
  readonly #contexts: Map<string, SecureContext | undefined>;

  /** Throws an Error of OpenSSL when a certificate can't be used. */
  constructor(options: Http2TlsOptions, user: Http2TlsUser) {
    this.#options = options;
    const { certificates, clientCertificates, handshakeTimeoutMs, ticketKeys } = options;
    this.#server = createServer({
      ...this.#secrets(defaultsOf(certificates)),
      ALPNProtocols: ['h2'],
      SNICallback: (name, done) => done(null, this.#contextFor(name)),
      requestCert: clientCertificates !== null,
      // Where it is optional too, one that is sent must be valid: see below.
      rejectUnauthorized: clientCertificates?.verify === 'required',
      handshakeTimeout: handshakeTimeoutMs,
      ticketKeys,
    });
    this.#contexts = this.#contextsOf(certificates);
    this.#server.on('tlsClientError', (error: NodeJS.ErrnoException, socket) => {
      user.onHandshakeFailed(error.code ?? 'EPROTO');
      socket.destroy();
    });
    this.#server.on('secureConnection', (socket) => {
      const isUnverified = clientCertificates !== null && !socket.authorized && hasCertificate(socket);
      if (isUnverified || socket.alpnProtocol !== 'h2') {
        user.onHandshakeFailed(isUnverified ? 'CLIENT_CERTIFICATE_INVALID' : 'NO_APPLICATION_PROTOCOL');
        socket.on('error', () => {});
        socket.destroy();
        return;
      }
      const transport = (socket as TLSSocket & { _parent?: Socket })._parent;
      assert(transport !== undefined, 'a TLS socket knows what it was made of');
      user.onSecure(socket, transport);
    });
  }

  accept(transport: Socket): void {
    this.#server.emit('connection', transport);
  }

  /** Of a context for a name Node takes one certificate only, of the server's own one of each kind. */
  #contextsOf(certificates: readonly string[]): Map<string, SecureContext | undefined> {
    const own = defaultsOf(certificates).join('');
    const contexts = new Map<string, SecureContext | undefined>();
    for (const [name, texts] of byName(certificates)) {
      contexts.set(name, texts.join('') === own ? undefined : createSecureContext(this.#secrets([bestOf(texts)])));
    }
    return contexts;
  }

  #secrets(texts: string[]): SecureContextOptions {
    const { minVersion, maxVersion, ciphers, cipherSuites, curves, clientCertificates, tickets } = this.#options;
    return {
      cert: texts,
      key: texts,
      minVersion,
      maxVersion,
      // Node takes those of both versions in one list.
      ciphers: `${cipherSuites ?? DEFAULT_SUITES}:${ciphers ?? DEFAULT_TLS12_CIPHERS}`,
      ...(curves === null ? {} : { ecdhCurve: curves }),
      ...(clientCertificates === null ? {} : { ca: clientCertificates.ca }),
      ...(clientCertificates?.crl ? { crl: clientCertificates.crl } : {}),
      secureOptions: tickets ? 0 : constants.SSL_OP_NO_TICKET,
    };
  }

  /** Undefined is the server's own: that of the first certificate. */
  #contextFor(serverName: string): SecureContext | undefined {
    const name = serverName.toLowerCase();
    if (this.#contexts.has(name)) return this.#contexts.get(name);
    const dot = name.indexOf('.');
    return dot > 0 ? this.#contexts.get(`*${name.slice(dot)}`) : undefined;
  }
}

/** The certificates of each name: the first of each kind of key, among which OpenSSL chooses. */
const byName = (certificates: readonly string[]): Map<string, string[]> => {
  const names = new Map<string, Map<string, string>>();
  for (const text of certificates) {
    const certificate = new X509Certificate(text);
    const kind = kindOf(text);
    for (const name of namesOf(certificate)) {
      const kinds = names.get(name) ?? new Map<string, string>();
      if (!kinds.has(kind)) kinds.set(kind, text);
      names.set(name, kinds);
    }
  }
  return new Map([...names].map(([name, kinds]) => [name, [...kinds.values()]]));
};

const kindOf = (text: string): string => new X509Certificate(text).publicKey.asymmetricKeyType ?? '';

/** Every client of HTTP/2 can verify ECDSA, and it costs a tenth of RSA. */
const bestOf = (texts: string[]): string =>
  texts.find((text) => kindOf(text) === 'ec') ?? texts.find((text) => kindOf(text) === 'rsa') ?? texts[0]!;

/** For clients that name no server, or one that none is for: the first certificate, and those of its name. */
const defaultsOf = (certificates: readonly string[]): string[] => {
  const first = certificates[0]!;
  const name = namesOf(new X509Certificate(first))[0];
  return (name === undefined ? undefined : byName(certificates).get(name)) ?? [first];
};

const hasCertificate = (socket: TLSSocket): boolean => socket.getPeerX509Certificate() !== undefined;

export const factsOf = (socket: TLSSocket): TlsFacts => {
  const certificate = socket.authorized ? socket.getPeerX509Certificate() : undefined;
  return {
    serverName: socket.servername === false || !socket.servername ? null : socket.servername.toLowerCase(),
    protocol: socket.getProtocol() ?? '',
    cipher: socket.getCipher().name,
    alpn: socket.alpnProtocol === false ? null : socket.alpnProtocol,
    client:
      certificate === undefined
        ? null
        : {
            subject: nameText(certificate.subject),
            issuer: nameText(certificate.issuer),
            serial: certificate.serialNumber.toLowerCase(),
            fingerprint: certificate.fingerprint256.replaceAll(':', '').toLowerCase(),
            notAfter: certificate.validToDate.toISOString(),
          },
  };
};

/** As RFC 2253 writes it: Node has an attribute a line, the outermost first, and leaves what isn't ASCII as it is. */
const nameText = (lines: string): string =>
  lines
    .split('\n')
    .toReversed()
    .join(',')
    .replaceAll(/[^ -~]+/g, (text) => Buffer.from(text).toString('hex').toUpperCase().replaceAll(/../g, '\\$&'))
    .slice(0, LONGEST_NAME_CHARACTERS);
