import { connect as connectTls, createServer } from 'node:tls';
import type { TLSSocket, ConnectionOptions } from 'node:tls';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { libc } from '../src/net/libc.ts';
import { WOULD_BLOCK } from '../src/net/wire.ts';
import { ClientContext } from '../src/proxy/tlsClient.ts';
import type { ClientTlsModel } from '../src/proxy/tlsClient.ts';
import { ServerContexts, TICKET_KEYS_BYTES, UNRECOGNIZED_NAME_ALERT } from '../src/proxy/tlsContext.ts';
import type { ServerTlsModel } from '../src/proxy/tlsContext.ts';
import { has } from './packages.ts';
import { accept, clientModel, connect, listen, makeCertificates, serverModel } from './tlsHelpers.ts';
import { shakeHands, socketPair, until } from './tlsHelpers.ts';
import type { Files } from './tlsHelpers.ts';

const INTO = Buffer.alloc(16 * 1024);

describe.skipIf(!has('openssl'))('TLS', () => {
  let files: Files;
  beforeAll(() => {
    files = makeCertificates();
  });
  afterAll(() => files.remove());

  const serverWith = (more: Partial<ServerTlsModel> = {}, ticketKeys: Buffer | null = null) => {
    const contexts = new ServerContexts(serverModel([files.read('shop.pem')], more), ticketKeys);
    onTestFinished(() => contexts.free());
    return contexts;
  };

  const clientWith = (more: Partial<ClientTlsModel> = {}) => {
    const context = new ClientContext(clientModel(files.read('authority.crt'), more));
    onTestFinished(() => context.free());
    return context;
  };

  /** What both sides came to, and what they know then. A byte is read by each, so that tickets have arrived. */
  const meet = async (client: ClientContext, server: ServerContexts, serverName: string | null = 'shop.test') => {
    const [near, far] = await socketPair();
    const wires = { near: client.connect(near), far: server.accept(far, serverName) };
    const outcomes = await shakeHands(wires.near, wires.far);
    const met = { outcomes, client: wires.near.facts(), server: wires.far.facts(), resumed: false };
    if (outcomes.join() === 'done,done') {
      met.resumed = wires.far.resumed;
      wires.far.write(Buffer.from('x'), 0, 1);
      await until(() => (wires.near.read(INTO, 0, INTO.length) === WOULD_BLOCK ? undefined : true));
    } else if (outcomes[0] === 'done') {
      // In TLS 1.3 a client learns only afterwards that it was refused.
      await until(() => (wires.near.read(INTO, 0, INTO.length) === WOULD_BLOCK ? undefined : true));
      met.outcomes = [`${wires.near.problem?.code}: ${wires.near.problem?.message}`, outcomes[1]!];
    }
    wires.near.free();
    wires.far.free();
    return met;
  };

  /** What Node's client sees of a server of ours: the socket, or the code of its error. */
  const nodeClient = async (contexts: ServerContexts, serverName: string | null, options: ConnectionOptions = {}) => {
    const listening = listen();
    const socket = connectTls({
      port: listening.port,
      ca: files.read('authority.crt'),
      ...(serverName === null ? { checkServerIdentity: () => undefined } : { servername: serverName }),
      ...options,
    });
    onTestFinished(() => void socket.destroy());
    let outcome: TLSSocket | string | undefined;
    socket.once('secureConnect', () => (outcome = socket));
    socket.once('error', (error) => (outcome ??= (error as NodeJS.ErrnoException).code ?? error.message));
    const wire = contexts.accept(await accept(listening.fd), serverName);
    const connected = await until(() => {
      if (outcome === undefined || typeof outcome === 'object') wire.handshake();
      return outcome;
    });
    wire.free();
    return connected;
  };

  const nameShown = (connected: TLSSocket | string) =>
    typeof connected === 'string' ? connected : connected.getPeerCertificate().subjectaltname;

  describe('certificates by SNI (RFC 6066 section 3)', () => {
    test.each([
      ['the exact name', 'api.shop.test', 'DNS:api.shop.test'],
      ['a wildcard, for one label', 'www.shop.test', 'DNS:shop.test, DNS:*.shop.test, IP Address:127.0.0.1'],
      ['the first one, where none fits', null, 'DNS:shop.test, DNS:*.shop.test, IP Address:127.0.0.1'],
    ])('%s', async (_, name, shown) => {
      const contexts = serverWith({ certificates: [files.read('shop.pem'), files.read('api.pem')] });
      expect(nameShown(await nodeClient(contexts, name))).toBe(shown);
    });

    test('a wildcard is for no name of two labels more, and not for the name above it', () => {
      const contexts = serverWith({ certificates: [files.read('shop.pem')], strictSni: true });
      const accepted = ['shop.test', 'a.shop.test', 'a.b.shop.test', 'test', '.shop.test', '', 'other.test', null];
      expect(accepted.filter((name) => contexts.accepts(name))).toEqual(['shop.test', 'a.shop.test']);
      expect(serverWith().accepts('other.test')).toBe(true);
    });

    test('an unknown name is refused with the alert unrecognized_name', async () => {
      const listening = listen();
      const socket = connectTls({ port: listening.port, servername: 'other.test' });
      onTestFinished(() => void socket.destroy());
      const refused = once(socket, 'error');
      const fd = await accept(listening.fd);
      libc().send(fd, UNRECOGNIZED_NAME_ALERT, UNRECOGNIZED_NAME_ALERT.length, 0);
      expect(await refused).toMatchObject([{ message: expect.stringMatching(/unrecognized name/) }]);
    });

    test('of an RSA and an ECDSA certificate for one name, each client gets one that it can verify', async () => {
      const contexts = serverWith({ certificates: [files.read('rsa.pem'), files.read('shop.pem')] });
      const kinds = [];
      for (const ciphers of ['ECDHE-RSA-AES128-GCM-SHA256', 'ECDHE-ECDSA-AES128-GCM-SHA256']) {
        const connected = await nodeClient(contexts, 'shop.test', { ciphers, maxVersion: 'TLSv1.2' });
        expect(connected).toBeTypeOf('object');
        kinds.push((connected as TLSSocket).getPeerX509Certificate()?.publicKey.asymmetricKeyType);
      }
      expect(kinds).toEqual(['rsa', 'ec']);
    });
  });

  describe('ALPN (RFC 7301 section 3.2)', () => {
    test.each([
      ['the server’s preference decides', ['http/1.1', 'h2'], 'h2'],
      ['what both have', ['spdy/3', 'http/1.1'], 'http/1.1'],
      ['nothing in common ends the handshake', ['acme-tls/1'], 'ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL'],
      ['a client without ALPN is served', [], false],
    ])('%s', async (_, offered, expected) => {
      const contexts = serverWith({ alpn: ['h2', 'http/1.1'] });
      const connected = await nodeClient(contexts, 'shop.test', { ALPNProtocols: offered });
      expect(typeof connected === 'string' ? connected : connected.alpnProtocol).toBe(expected);
    });

    test('without a list the extension is left alone', async () => {
      const connected = await nodeClient(serverWith(), 'shop.test', { ALPNProtocols: ['imap'] });
      expect((connected as TLSSocket).alpnProtocol).toBe(false);
    });
  });

  describe('terms', () => {
    test('versions, ciphers and curves are those that were asked for', async () => {
      const only12 = await meet(clientWith(), serverWith({ maxVersion: 'TLSv1.2', ciphers: 'ECDHE+CHACHA20' }));
      expect(only12.server).toMatchObject({ protocol: 'TLSv1.2', cipher: 'ECDHE-ECDSA-CHACHA20-POLY1305' });
      const suites = await meet(clientWith(), serverWith({ cipherSuites: 'TLS_CHACHA20_POLY1305_SHA256' }));
      expect(suites.client).toMatchObject({ cipher: 'TLS_CHACHA20_POLY1305_SHA256' });
      const curves = await meet(clientWith({ curves: 'X25519' }), serverWith({ curves: 'P-256' }));
      expect(curves.outcomes).toEqual([
        expect.stringMatching(/^TLS_ALERT: /),
        expect.stringMatching(/^TLS_HANDSHAKE: /),
      ]);
    });

    test('a client below the minimum version is refused', async () => {
      const contexts = serverWith({ minVersion: 'TLSv1.3' });
      expect(await nodeClient(contexts, 'shop.test', { maxVersion: 'TLSv1.2' })).toBe(
        'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION',
      );
    });

    test.each([
      ['certificates', { certificates: ['none'] }],
      ['ciphers', { ciphers: 'GOOD' }],
      ['curves', { curves: 'straight' }],
    ])('%s that can’t be used are refused when it is made', (_, more) => {
      expect(() => serverWith(more)).toThrow(Error);
    });
  });

  describe('session tickets', () => {
    test.each(['TLSv1.2', 'TLSv1.3'] as const)('are good at every worker that has the keys, %s', async (maxVersion) => {
      const keys = randomBytes(TICKET_KEYS_BYTES);
      const client = clientWith({ maxVersion });
      expect(await meet(client, serverWith({}, keys))).toMatchObject({ outcomes: ['done', 'done'], resumed: false });
      expect(await meet(client, serverWith({}, keys))).toMatchObject({ outcomes: ['done', 'done'], resumed: true });
      expect(await meet(client, serverWith())).toMatchObject({ outcomes: ['done', 'done'], resumed: false });
    });

    test('new keys end them, at a listener that goes on', async () => {
      const contexts = serverWith({}, randomBytes(TICKET_KEYS_BYTES));
      const client = clientWith();
      await meet(client, contexts);
      contexts.setTicketKeys(randomBytes(TICKET_KEYS_BYTES));
      expect(await meet(client, contexts)).toMatchObject({ resumed: false });
      expect(await meet(client, contexts)).toMatchObject({ resumed: true });
    });

    test('are not given when they are switched off', async () => {
      const contexts = serverWith({ tickets: false });
      const client = clientWith();
      await meet(client, contexts);
      expect(await meet(client, contexts)).toMatchObject({ resumed: false });
    });

    test('of a listener with other terms for clients are no way in', async () => {
      const keys = randomBytes(TICKET_KEYS_BYTES);
      const client = clientWith();
      await meet(client, serverWith({}, keys));
      const strict = {
        clientCertificates: { ca: files.read('authority.crt'), crl: null, verify: 'required' as const },
      };
      const { outcomes } = await meet(client, serverWith(strict, keys));
      expect(outcomes[1]).toMatch(/^TLS_HANDSHAKE: peer did not return a certificate/);
    });
  });

  describe('certificates of clients', () => {
    const asking = (verify: 'required' | 'optional', withCrl = false) =>
      serverWith({
        clientCertificates: {
          ca: files.read('authority.crt'),
          crl: withCrl ? files.read('authority.crl') : null,
          verify,
        },
      });
    const JO = {
      subject: String.raw`CN=Jo\, the \"first\",O=Shop`,
      issuer: 'CN=authority',
      serial: expect.stringMatching(/^[0-9a-f]+$/),
      fingerprint: expect.stringMatching(/^[0-9a-f]{64}$/),
      notAfter: expect.stringMatching(/^\d{4}-\d\d-\d\dT/),
    };

    test.each(['TLSv1.2', 'TLSv1.3'] as const)(
      'are told, also when a session is taken up again, %s',
      async (maxVersion) => {
        const server = asking('required');
        const client = clientWith({ certificate: files.read('jo.pem'), maxVersion });
        const first = await meet(client, server);
        expect(first).toMatchObject({ resumed: false, client: { client: null }, server: { client: JO } });
        expect(await meet(client, server)).toMatchObject({ resumed: true, server: { client: first.server!.client } });
      },
    );

    test('a client without one is refused, or let in where they are optional', async () => {
      const required = await meet(clientWith(), asking('required'));
      expect(required.outcomes).toEqual([
        expect.stringMatching(/^TLS_ALERT: .*certificate required/),
        expect.stringMatching(/^TLS_HANDSHAKE: peer did not return a certificate/),
      ]);
      expect(await meet(clientWith(), asking('optional'))).toMatchObject({
        outcomes: ['done', 'done'],
        server: { client: null },
      });
    });

    test.each(['required', 'optional'] as const)('one of a strange authority is refused: %s', async (verify) => {
      const { outcomes } = await meet(clientWith({ certificate: files.read('mallory.pem') }), asking(verify));
      expect(outcomes[1]).toBe(
        "TLS_CERTIFICATE: the peer's certificate was refused: unable to get local issuer certificate",
      );
    });

    test('one that was revoked is refused, the others are not', async () => {
      const eve = await meet(clientWith({ certificate: files.read('eve.pem') }), asking('required', true));
      expect(eve.outcomes[1]).toBe("TLS_CERTIFICATE: the peer's certificate was refused: certificate revoked");
      const jo = await meet(clientWith({ certificate: files.read('jo.pem') }), asking('required', true));
      expect(jo.outcomes).toEqual(['done', 'done']);
    });
  });

  test('a reload leaves connections alone that were accepted before', async () => {
    const contexts = new ServerContexts(serverModel([files.read('shop.pem')]), null);
    const client = clientWith();
    const [near, far] = await socketPair();
    const wires = [client.connect(near), contexts.accept(far, 'shop.test')] as const;
    contexts.free();
    expect(await shakeHands(...wires)).toEqual(['done', 'done']);
    expect(wires[1].write(Buffer.from('still here'), 0, 10)).toBe(10);
    expect(await until(() => (wires[0].read(INTO, 0, 64) === 10 ? true : undefined))).toBe(true);
    for (const wire of wires) wire.free();
  });

  describe('to servers', () => {
    const REFUSED = "TLS_CERTIFICATE: the peer's certificate was refused: ";

    test.each([
      ['the name', {}, 'done'],
      ['a name that a wildcard is for', { serverName: 'web.shop.test' }, 'done'],
      ['an address', { serverName: '127.0.0.1' }, 'done'],
      ['another name', { serverName: 'other.test' }, `${REFUSED}hostname mismatch`],
      ['another address', { serverName: '127.0.0.2' }, `${REFUSED}IP address mismatch`],
      ['Node’s own authorities', { ca: null }, `${REFUSED}unable to get local issuer certificate`],
      ['nothing', { ca: null, serverName: 'other.test', verify: false }, 'done'],
    ])('%s is what the certificate must be for', async (_, more, outcome) => {
      expect((await meet(clientWith(more), serverWith())).outcomes[0]).toBe(outcome);
    });

    test('a certificate that has expired is refused', async () => {
      const server = serverWith({ certificates: [files.read('old.pem')] });
      const { outcomes } = await meet(clientWith({ serverName: 'old.test' }), server);
      expect(outcomes[0]).toBe(`${REFUSED}certificate has expired`);
    });

    test('a name is sent as SNI, an address is not (RFC 6066 section 3)', async () => {
      const names: (string | false | null)[] = [];
      const server = createServer({ cert: files.read('shop.crt'), key: files.read('shop.key') });
      onTestFinished(() => void server.close());
      server.on('secureConnection', (socket) => names.push(socket.servername));
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      const { port } = server.address() as { port: number };
      for (const serverName of ['web.shop.test', '127.0.0.1']) {
        const wire = clientWith({ serverName }).connect(connect(port));
        const met = once(server, 'secureConnection');
        while (wire.handshake() === 'again') await nextTurn();
        await met;
        wire.free();
      }
      expect(names).toEqual(['web.shop.test', false]);
    });
  });
});
