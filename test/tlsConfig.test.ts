import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { checkTls } from '../src/config/checkTls.ts';
import { bindTlsSchema, resolveBindTls, resolveServerTls, serverTlsSchema } from '../src/config/tls.ts';
import type { ServerTls } from '../src/config/tls.ts';
import { ClientContext } from '../src/proxy/tlsClient.ts';
import { ServerContexts } from '../src/proxy/tlsContext.ts';
import { readClientTls, readServerTls } from '../src/proxy/tlsModel.ts';
import { has } from './packages.ts';
import { makeCertificates } from './tlsHelpers.ts';
import type { Files } from './tlsHelpers.ts';

describe('what is allowed', () => {
  test('defaults of a bind', () => {
    expect(bindTlsSchema.parse({ certificates: ['shop.pem'] })).toEqual({
      certificates: ['shop.pem'],
      strictSni: false,
      minVersion: 'TLSv1.2',
      maxVersion: 'TLSv1.3',
      tickets: true,
    });
  });

  test('to servers: true is all defaults, and false is none', () => {
    const defaults = { verify: true, minVersion: 'TLSv1.2', maxVersion: 'TLSv1.3' };
    expect(serverTlsSchema.parse(true)).toEqual(defaults);
    expect(serverTlsSchema.parse({})).toEqual(defaults);
    expect(serverTlsSchema.parse(false)).toBe(false);
  });

  test.each([
    [{ certificates: [] }, ['certificates']],
    [{ certificates: ['a'], minVersion: 'TLSv1.0' }, ['minVersion']],
    [{ certificates: ['a'], minVersion: 'TLSv1.3', maxVersion: 'TLSv1.2' }, ['maxVersion']],
    [{ certificates: ['a'], alpn: [''] }, ['alpn', 0]],
    [{ certificates: ['a'], clientCertificates: { verify: 'none' } }, ['clientCertificates', 'ca']],
    [{ certificates: ['a'], cipher: 'x' }, []],
  ])('%j is refused', (tls, path) => {
    const result = bindTlsSchema.safeParse(tls);
    expect(result.error?.issues[0]?.path).toEqual(path);
  });
});

describe.skipIf(!has('openssl'))('files', () => {
  let files: Files;
  beforeAll(() => {
    files = makeCertificates();
    writeFileSync(join(files.folder, 'mixed.pem'), files.read('shop.crt') + files.read('api.key'));
  });
  afterAll(() => files.remove());

  /** What is wrong with a file, each as `path: message`. */
  const problemsOf = (file: Record<string, unknown>): string[] => {
    const problems: string[] = [];
    checkTls(file, files.folder, (path, message) => problems.push(`${path.join('.')}: ${message}`));
    return problems;
  };
  const withBind = (tls: unknown, mode = 'http') =>
    problemsOf({ frontends: { shop: { mode, bind: ['127.0.0.1:80', { address: '127.0.0.1:443', tls }] } } });
  const withServer = (server: unknown, tls?: unknown) =>
    problemsOf({ backends: { web: { ...(tls === undefined ? {} : { tls }), servers: [server] } } });

  test('that fit are no problem', () => {
    const clientCertificates = { ca: 'authority.crt', crl: './authority.crl' };
    const certificates = ['shop.pem', { chain: 'rsa.crt', key: 'rsa.key' }, join(files.folder, 'api.pem')];
    expect(withBind({ certificates, clientCertificates, ciphers: 'ECDHE+AESGCM', curves: 'X25519:P-256' })).toEqual([]);
    const tls = { ca: 'authority.crt', certificate: 'jo.pem', cipherSuites: 'TLS_AES_128_GCM_SHA256' };
    expect(withServer({ name: 'web1', address: '10.0.0.3:443', tls })).toEqual([]);
    expect(problemsOf({})).toEqual([]);
  });

  test('that don’t are told, all at once', () => {
    const certificates = ['gone.pem', 'shop.crt', 'mixed.pem', { chain: 'shop.crt', key: 'gone.key' }];
    const clientCertificates = { ca: 'shop.key', crl: 'authority.crt' };
    expect(
      withBind({ certificates, clientCertificates, ciphers: 'GOOD', cipherSuites: 'ALL', curves: 'flat' }),
    ).toEqual([
      expect.stringMatching(
        /^frontends\.shop\.bind\.1\.tls\.certificates\.0: the certificate gone\.pem can't be used: ENOENT.*; a PEM file with the chain and its key is needed$/,
      ),
      expect.stringMatching(/certificates\.1: the certificate shop\.crt can't be used: there is no key in it; /),
      expect.stringMatching(/certificates\.2: .* mixed\.pem can't be used: the key in it is not the certificate's; /),
      expect.stringMatching(/certificates\.3: the certificate shop\.crt can't be used with the key gone\.key: ENOENT/),
      'frontends.shop.bind.1.tls.ciphers: "GOOD" is nothing that OpenSSL knows; names are separated by colons',
      'frontends.shop.bind.1.tls.cipherSuites: "ALL" is nothing that OpenSSL knows; names are separated by colons',
      'frontends.shop.bind.1.tls.curves: "flat" is nothing that OpenSSL knows; names are separated by colons',
      "frontends.shop.bind.1.tls.clientCertificates.ca: the file shop.key can't be used: there is no certificate in it",
      "frontends.shop.bind.1.tls.clientCertificates.crl: the file authority.crt can't be used: there is no revocation list in it",
    ]);
  });

  test('protocols that the mode can’t speak', () => {
    const tls = { certificates: ['shop.pem'], alpn: ['h2', 'imap'] };
    expect(withBind(tls)).toEqual([
      'frontends.shop.bind.1.tls.alpn.1: imap is not spoken in mode http; allowed are h2, http/1.1',
    ]);
    expect(withBind(tls, 'tcp')).toEqual([]);
  });

  test('a server behind a Unix socket needs a name, unless nothing is verified', () => {
    const server = { name: 'web1', address: 'unix:/run/web.sock' };
    const problem =
      'backends.web.servers.0.address: a Unix socket has no name that its certificate could be for; tls.serverName is needed';
    expect(withServer(server, true)).toEqual([problem]);
    expect(withServer({ ...server, tls: {} })).toEqual([problem]);
    expect(withServer(server, { serverName: 'web.test' })).toEqual([]);
    expect(withServer({ ...server, tls: false }, true)).toEqual([]);
    expect(withServer({ ...server, tls: { verify: false } }, true)).toEqual([]);
    expect(withServer(server)).toEqual([]);
  });

  test('are read from beside the configuration, for workers', () => {
    const tls = bindTlsSchema.parse({
      certificates: ['shop.pem', { chain: 'rsa.crt', key: 'rsa.key' }],
      clientCertificates: { ca: 'authority.crt', crl: 'authority.crl' },
    });
    resolveBindTls(tls, files.folder);
    const model = readServerTls(tls, 'http');
    expect(model).toMatchObject({
      certificates: [files.read('shop.pem'), `${files.read('rsa.crt')}\n${files.read('rsa.key')}`],
      alpn: ['h2', 'http/1.1'],
      clientCertificates: { ca: files.read('authority.crt'), crl: files.read('authority.crl'), verify: 'required' },
    });
    expect(readServerTls(tls, 'tcp').alpn).toBeNull();
    new ServerContexts(structuredClone(model), null).free();

    const toServer = serverTlsSchema.parse({ ca: 'authority.crt', certificate: 'jo.pem' }) as ServerTls;
    resolveServerTls(toServer, files.folder);
    const client = readClientTls(toServer, 'web.test');
    expect(client).toMatchObject({
      serverName: 'web.test',
      ca: files.read('authority.crt'),
      certificate: files.read('jo.pem'),
    });
    new ClientContext(structuredClone(client)).free();
  });
});
