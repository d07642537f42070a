/** TLS before HTTP/2: which certificate, which versions, whose certificates, and what is told of them. */
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { connect as connectHttp2 } from 'node:http2';
import { connect as connectTcp } from 'node:net';
import { connect } from 'node:tls';
import type { ConnectionOptions, TLSSocket } from 'node:tls';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import type { Http2TlsOptions } from '../src/proxy/http2Tls.ts';
import { fakeFront } from './http2Helpers.ts';
import type { Fake, FakeOptions } from './http2Helpers.ts';
import { makeCertificates, TERMS } from './tlsHelpers.ts';
import type { Files } from './tlsHelpers.ts';

let files: Files;
beforeAll(() => {
  files = makeCertificates();
});
afterAll(() => files.remove());

const terms = (changes: Partial<Http2TlsOptions> = {}): Http2TlsOptions => ({
  ...TERMS,
  certificates: [files.read('shop.pem'), files.read('api.pem')],
  clientCertificates: null,
  tickets: true,
  ticketKeys: Buffer.alloc(48, 'k'),
  handshakeTimeoutMs: 10_000,
  ...changes,
});

const front = (tls: Http2TlsOptions, options: FakeOptions = {}): Promise<Fake> =>
  fakeFront(
    (heard, stream) => {
      if (!heard.hasEnded || stream.finished || heard.closed !== undefined) return;
      heard.say('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok');
      stream.end();
    },
    { tls, ...options },
  );

const options = (fake: Fake, changes: ConnectionOptions): ConnectionOptions => ({
  host: '127.0.0.1',
  port: fake.port,
  servername: 'shop.test',
  ca: files.read('authority.crt'),
  ALPNProtocols: ['h2'],
  ...changes,
});

/** A client after its handshake. */
const shakenHands = async (fake: Fake, changes: ConnectionOptions = {}): Promise<TLSSocket> => {
  const socket = connect(options(fake, changes));
  onTestFinished(() => {
    socket.destroy();
  });
  await once(socket, 'secureConnect');
  return socket;
};

/** The status of a request; what went wrong otherwise. */
const ask = async (fake: Fake, changes: ConnectionOptions = {}): Promise<number | string> => {
  const client = connectHttp2(`https://127.0.0.1:${fake.port}`, options(fake, changes));
  onTestFinished(() => client.destroy());
  const stream = client.request({ ':path': '/', ':authority': 'shop.test' });
  stream.resume();
  return new Promise((resolve) => {
    const failed = (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message);
    client.on('error', failed);
    stream.on('error', failed);
    stream.on('response', (fields) => resolve(fields[':status']!));
    stream.on('close', () => resolve('closed'));
  });
};

describe('certificates', () => {
  const nameOf = async (fake: Fake, servername: string | undefined): Promise<string> => {
    const socket = await shakenHands(fake, { servername: servername ?? '', rejectUnauthorized: false });
    return [socket.getPeerCertificate().subject.CN].flat().join();
  };

  test('RFC 6066 section 3: by SNI, the exact name before a wildcard for one label, and the first for others', async () => {
    const fake = await front(terms());
    expect(await nameOf(fake, 'API.shop.test')).toBe('api.shop.test');
    expect(await nameOf(fake, 'www.shop.test')).toBe('shop.test');
    expect(await nameOf(fake, 'other.test')).toBe('shop.test');
    expect(await nameOf(fake, undefined)).toBe('shop.test');
  });

  test('of several kinds of keys for the first name, that which the client can verify', async () => {
    const fake = await front(terms({ certificates: [files.read('shop.pem'), files.read('rsa.pem')] }));
    const kindFor = async (ciphers: string) => {
      const socket = await shakenHands(fake, { ciphers, maxVersion: 'TLSv1.2' });
      return socket.getPeerX509Certificate()!.publicKey.asymmetricKeyType;
    };
    expect(await kindFor('ECDHE-RSA-AES128-GCM-SHA256')).toBe('rsa');
    expect(await kindFor('ECDHE-ECDSA-AES128-GCM-SHA256')).toBe('ec');
  });

  test('of several kinds of keys for another name, that which costs less', async () => {
    const certificates = [files.read('api.pem'), files.read('rsa.pem'), files.read('shop.pem')];
    const fake = await front(terms({ certificates }));
    const socket = await shakenHands(fake);
    expect(socket.getPeerX509Certificate()!.publicKey.asymmetricKeyType).toBe('ec');
  });

  test('other ones, for connections from then on', async () => {
    const fake = await front(terms({ certificates: [files.read('shop.pem')] }));
    const before = connectHttp2(`https://127.0.0.1:${fake.port}`, options(fake, {}));
    onTestFinished(() => before.destroy());
    await once(before, 'remoteSettings');
    fake.front.renew(terms({ certificates: [files.read('api.pem')] }), fake.limits);
    expect(await nameOf(fake, 'shop.test')).toBe('api.shop.test');
    const stream = before.request({ ':path': '/' });
    const [fields] = (await once(stream, 'response')) as [Record<string, unknown>];
    expect(fields[':status']).toBe(200);
  });

  test('that can not be used change nothing', async () => {
    const fake = await front(terms());
    const mixed = `${files.read('shop.crt')}${files.read('api.key')}`;
    expect(() => fake.front.renew(terms({ certificates: [mixed] }), fake.limits)).toThrow(/key/);
    expect(await ask(fake)).toBe(200);
  });
});

describe('terms', () => {
  test('an older version than the least is refused', async () => {
    const fake = await front(terms({ minVersion: 'TLSv1.3' }));
    expect(await ask(fake, { maxVersion: 'TLSv1.2' })).not.toBe(200);
    expect(await ask(fake)).toBe(200);
    expect(fake.refused[0]).toMatch(/^TLS handshake: /);
  });

  test.each<[string, Partial<Http2TlsOptions>, string]>([
    [
      'of TLS 1.2',
      { ciphers: 'ECDHE-ECDSA-AES256-GCM-SHA384', maxVersion: 'TLSv1.2' },
      'ECDHE-ECDSA-AES256-GCM-SHA384',
    ],
    ['of TLS 1.3', { cipherSuites: 'TLS_CHACHA20_POLY1305_SHA256' }, 'TLS_CHACHA20_POLY1305_SHA256'],
    ['of TLS 1.2 leave TLS 1.3 as it is', { ciphers: 'ECDHE-ECDSA-AES256-GCM-SHA384' }, 'TLS_AES_256_GCM_SHA384'],
  ])('ciphers %s', async (_, changes, cipher) => {
    const fake = await front(terms(changes));
    expect((await shakenHands(fake)).getCipher().name).toBe(cipher);
  });

  const ticketOf = async (fake: Fake): Promise<Buffer> => {
    const socket = await shakenHands(fake, { maxVersion: 'TLSv1.2' });
    return socket.getSession()!;
  };

  test('RFC 5077: a session is taken up at another thread with the same keys', async () => {
    const [first, second] = [await front(terms()), await front(terms())];
    const again = await shakenHands(second, { session: await ticketOf(first), maxVersion: 'TLSv1.2' });
    expect(again.isSessionReused()).toBe(true);
  });

  test('no tickets, no session', async () => {
    const fake = await front(terms({ tickets: false }));
    const socket = await shakenHands(fake, { maxVersion: 'TLSv1.2' });
    expect(socket.getTLSTicket()).toBe(undefined);
  });
});

describe('client certificates', () => {
  const by = (name: string): ConnectionOptions => ({ cert: files.read(`${name}.crt`), key: files.read(`${name}.key`) });
  const asking = (verify: 'required' | 'optional') =>
    front(
      terms({
        clientCertificates: { ca: files.read('authority.crt'), crl: files.read('authority.crl'), verify },
      }),
    );

  test.each<['required' | 'optional', string, boolean]>([
    ['required', 'jo', true],
    ['required', 'mallory', false],
    ['required', 'eve', false],
    ['required', '', false],
    ['optional', 'jo', true],
    ['optional', 'mallory', false],
    ['optional', 'eve', false],
    ['optional', '', true],
  ])('where they are %s, from %s: %s', async (verify, name, isServed) => {
    const fake = await asking(verify);
    // The certificate's context is the server's own, or one of the other name.
    for (const servername of ['shop.test', 'api.shop.test']) {
      const answer = await ask(fake, { servername, ...(name === '' ? {} : by(name)) });
      expect(answer === 200).toBe(isServed);
    }
    expect(fake.heard.length).toBe(isServed ? 2 : 0);
    expect(fake.refused.length).toBe(isServed ? 0 : 2);
  });

  test('are told of, as the engine’s own TLS tells of them', async () => {
    const fake = await asking('required');
    expect(await ask(fake, by('jo'))).toBe(200);
    const { tls } = fake.heard[0]!.stream;
    expect(tls).toMatchObject({ serverName: 'shop.test', protocol: 'TLSv1.3', alpn: 'h2' });
    expect(tls!.client!.subject).toBe('CN=Jo\\, the \\"first\\",O=Shop');
    expect(tls!.client!.issuer).toBe('CN=authority');
    expect(tls!.client!.serial).toMatch(/^[0-9a-f]+$/);
    expect(tls!.client!.fingerprint).toMatch(/^[0-9a-f]{64}$/);
    expect(tls!.client!.notAfter).toMatch(/^\d{4}-\d\d-\d\dT/);
  });
});

describe('connections', () => {
  test('a client of another protocol is refused', async () => {
    const fake = await front(terms());
    const socket = connect(options(fake, { ALPNProtocols: ['http/1.1'] }));
    onTestFinished(() => {
      socket.destroy();
    });
    socket.on('error', () => {});
    await new Promise((resolve) => socket.once('close', resolve));
    await fake.until(() => fake.refused.length === 1 && fake.front.connections === 0);
    expect(fake.heard).toEqual([]);
  });

  test('a client that goes away during its handshake, or never begins one, is forgotten', async () => {
    const fake = await front(terms({ handshakeTimeoutMs: 50 }));
    const silent = connectTcp(fake.port, '127.0.0.1');
    const gone = connectTcp(fake.port, '127.0.0.1');
    silent.on('error', () => {});
    await once(gone, 'connect');
    gone.destroy();
    await new Promise((resolve) => silent.once('close', resolve));
    await fake.until(() => fake.front.connections === 0);
    expect(fake.refused).toContain('TLS handshake: ERR_TLS_HANDSHAKE_TIMEOUT');
  });

  test('curl gets and sends', async () => {
    const fake = await fakeFront(
      (heard, stream) => {
        if (!heard.hasEnded || stream.finished || heard.closed !== undefined) return;
        heard.say(`HTTP/1.1 200 OK\r\nContent-Length: ${heard.body.length}\r\n\r\n${heard.body}`);
        stream.end();
      },
      { tls: terms() },
    );
    const { stdout } = await promisify(execFile)('curl', [
      ...['--silent', '--show-error', '--http2', '--cacert', `${files.folder}/authority.crt`],
      ...['--resolve', `shop.test:${fake.port}:127.0.0.1`, '--data-binary', 'x'.repeat(100_000)],
      ...['--write-out', ' %{http_version} %{response_code}', `https://shop.test:${fake.port}/a`],
    ]);
    expect(stdout).toBe(`${'x'.repeat(100_000)} 2 200`);
    expect(fake.heard[0]!.head).toMatch(new RegExp(`^POST /a HTTP/1\\.1\\r\\nhost: shop\\.test:${fake.port}\\r\\n`));
  });
});
