/** TLS through the real data plane, at clients and to servers: two worker threads, real peers. */
import { createHash, randomBytes, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import type { IncomingHttpHeaders } from 'node:http';
import { connect as connectHttp2 } from 'node:http2';
import { Agent, request as httpsRequest } from 'node:https';
import { connect as connectTcp, createServer as createTcpServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { connect as connectTls, createServer as createTlsServer } from 'node:tls';
import type { ConnectionOptions, TlsOptions, TLSSocket } from 'node:tls';
import { createServer as createHttpsServer } from 'node:https';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { http2Schema } from '../src/config/http2.ts';
import type { Http2Limits } from '../src/config/http2.ts';
import { libc } from '../src/net/libc.ts';
import type { ListenerModel } from '../src/proxy/model.ts';
import type { ClientTlsModel } from '../src/proxy/tlsClient.ts';
import type { ServerTlsModel } from '../src/proxy/tlsContext.ts';
import { has } from './packages.ts';
import {
  bodyOf,
  eventually,
  get,
  getAndClose,
  HOST,
  http2Ask,
  http2Client,
  httpServer,
  listenerModel,
  LOG,
  RawClient,
  rawServer,
  run,
  scriptedServer,
  startProxy,
  statusOf,
  talk,
  tlsModel,
} from './proxyHelpers.ts';
import type { Proxy, ProxyOptions } from './proxyHelpers.ts';
import { clientModel, makeCertificates } from './tlsHelpers.ts';
import type { Files } from './tlsHelpers.ts';

const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';
const SHUT_WR = 1;
const MEGABYTES = 10_000_000;
const HTTP2: Http2Limits = http2Schema.parse({});
const BOTH = { alpn: ['h2', 'http/1.1'] };

const okServer = () => scriptedServer((_head, socket) => socket.write(OK));
const sha = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');

/** A TLS client that keeps all it gets. */
class TlsClient {
  readonly socket: TLSSocket;
  text = '';
  ended = false;
  closed = false;
  code = '';

  constructor(port: number, options: ConnectionOptions = {}) {
    this.socket = connectTls({
      port,
      host: HOST,
      servername: 'shop.test',
      rejectUnauthorized: false,
      allowHalfOpen: true,
      ...options,
    } as ConnectionOptions);
    this.socket.on('data', (chunk: Buffer) => (this.text += chunk.toString('latin1')));
    this.socket.on('end', () => (this.ended = true));
    this.socket.on('error', (error: NodeJS.ErrnoException) => (this.code ||= error.code ?? error.message));
    this.socket.on('close', () => (this.closed = true));
    onTestFinished(() => void this.socket.destroy());
  }

  async secure(): Promise<this> {
    await once(this.socket, 'secureConnect');
    return this;
  }

  send(text: string): this {
    this.socket.write(text);
    return this;
  }

  async until(part: string): Promise<string> {
    await eventually(`${part} in ${JSON.stringify(this.text.slice(-300))} ${this.code}`, () =>
      this.text.includes(part),
    );
    return this.text;
  }

  /** All that came until the other side ended, in order or not. */
  async rest(): Promise<string> {
    await eventually(`the end after ${this.text.slice(-300)}`, () => this.ended || this.closed);
    return this.text;
  }
}

describe.skipIf(!has('openssl'))('TLS', () => {
  let files: Files;
  beforeAll(() => {
    files = makeCertificates();
  });
  afterAll(() => files.remove());

  /** A listener for HTTP/1.1 and HTTP/2, as the configuration makes one. */
  const secure = (names: string[], more: Partial<ServerTlsModel> = {}): Partial<ListenerModel> => {
    const tls = tlsModel(
      names.map((name) => files.read(`${name}.pem`)),
      { ...BOTH, ...more },
    );
    return { tls, http2: tls.alpn?.includes('h2') === true ? HTTP2 : null };
  };

  const startSecure = async (
    names: string[],
    more: Partial<ServerTlsModel> = {},
    options: Partial<ProxyOptions> = {},
  ) => startProxy({ servers: { s: await okServer() }, listener: secure(names, more), ...options });

  /** The name on the certificate that such a client is shown, or why it gets none. */
  const shown = async (port: number, options: ConnectionOptions): Promise<string> => {
    const client = new TlsClient(port, options);
    await eventually('shown or refused', () => client.socket.getPeerX509Certificate() !== undefined || client.closed);
    const subject = client.socket.getPeerX509Certificate()?.subject;
    client.socket.destroy();
    return subject ?? client.code;
  };

  describe.each([
    ['HTTP/1.1', ['http/1.1']],
    ['HTTP/2', ['h2']],
  ])('at clients of %s', (_, protocols) => {
    test('SNI chooses the certificate, and the first is for others', async () => {
      const { port } = await startSecure(['shop', 'api']);
      const forName = (servername?: string) =>
        shown(port, { ALPNProtocols: protocols, ...(servername ? { servername } : { servername: '' }) });
      expect(await forName('api.shop.test')).toBe('CN=api.shop.test');
      expect(await forName('www.shop.test')).toBe('CN=shop.test');
      expect(await forName('other.test')).toBe('CN=shop.test');
      expect(await forName()).toBe('CN=shop.test');
    });

    test('strictSni refuses a name that no certificate is for, and no name', async () => {
      const proxy = await startSecure(['shop'], { strictSni: true });
      const forName = (servername: string) => shown(proxy.port, { ALPNProtocols: protocols, servername });
      expect(await forName('shop.test')).toBe('CN=shop.test');
      expect(await forName('other.test')).toBe('ERR_SSL_TLSV1_UNRECOGNIZED_NAME');
      expect(await forName('')).toBe('ERR_SSL_TLSV1_UNRECOGNIZED_NAME');
      await eventually('they are counted', () => proxy.figures('front').tlsFailures === 2);
    });

    test('an older version than the least is refused', async () => {
      const { port } = await startSecure(['shop'], { minVersion: 'TLSv1.3' });
      const version = { ALPNProtocols: protocols, minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2' } as const;
      expect(await shown(port, version)).toBe('ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION');
      expect(await shown(port, { ALPNProtocols: protocols })).toBe('CN=shop.test');
    });

    test.each(['TLSv1.2', 'TLSv1.3'] as const)(
      'RFC 5077: a session of %s is taken up at any worker',
      async (version) => {
        const proxy = await startSecure(['shop'], {}, { rules: [{ response: { setHeader: { 'X-Id': '{id}' } } }] });
        const options = { ALPNProtocols: protocols, minVersion: version, maxVersion: version };
        let session: Buffer | undefined;
        /** Who has answered a client that shows this ticket. */
        const ask = async (ticket: ConnectionOptions) => {
          const client = new TlsClient(proxy.port, { ...options, ...ticket });
          client.socket.on('session', (latest) => (session = latest));
          const { socket } = await client.secure();
          const isResumed = socket.isSessionReused();
          if (protocols[0] !== 'h2') {
            const text = await client.send(getAndClose()).rest();
            return { isResumed, worker: /X-Id: \w+-(\w+)-/.exec(text)?.[1] };
          }
          const h2 = connectHttp2('https://shop.test', { createConnection: () => socket });
          const { headers } = await http2Ask(h2);
          h2.destroy();
          return { isResumed, worker: /-(\w+)-/.exec(String(headers['x-id']))?.[1] };
        };
        await ask({});
        await eventually('a ticket', () => session !== undefined);
        const workers = new Set<string | undefined>();
        const resumed: boolean[] = [];
        for (let round = 0; round < 40 && workers.size < 2; round++) {
          const { isResumed, worker } = await ask({ session: session! });
          resumed.push(isResumed);
          workers.add(worker);
        }
        expect([...workers].toSorted()).toEqual(['0', '1']);
        expect(resumed.every(Boolean)).toBe(true);
        await eventually('all are counted', () => proxy.figures('front').tlsResumptions === resumed.length);
        expect(proxy.figures('front').tlsHandshakes).toBe(resumed.length + 1);
      },
    );

    describe('client certificates', () => {
      const identity = (name: string) => ({ cert: files.read(`${name}.crt`), key: files.read(`${name}.key`) });
      const ask = async (proxy: Proxy, options: ConnectionOptions) => {
        if (protocols[0] === 'h2') {
          const answer = http2Ask(http2Client(proxy.port, options));
          return answer.then(
            ({ status }) => String(status),
            () => 'refused',
          );
        }
        const client = new TlsClient(proxy.port, options);
        return client
          .send(getAndClose())
          .rest()
          .then((text) => (text === '' ? 'refused' : String(statusOf(text))));
      };
      const start = (verify: 'required' | 'optional') =>
        startSecure(['shop'], {
          clientCertificates: { ca: files.read('authority.crt'), crl: files.read('authority.crl'), verify },
        });

      test.each([
        ['one of the authority', 'jo', '200'],
        ['one that was revoked', 'eve', 'refused'],
        ['one of another authority', 'mallory', 'refused'],
        ['none', null, 'refused'],
      ])('required: with %s', async (__, name, outcome) => {
        const proxy = await start('required');
        expect(await ask(proxy, name === null ? {} : identity(name))).toBe(outcome);
        const failures = outcome === 'refused' ? 1 : 0;
        await eventually('it is counted', () => proxy.figures('front').tlsFailures === failures);
        expect(proxy.figures('front').requests).toBe(1 - failures);
      });

      test('what they say is passed on, and what a client claims by itself is not', async () => {
        const names = { 'X-Subject': '{clientSubject}', 'X-Serial': '{clientSerial}', 'X-Version': '{tlsVersion}' };
        const seen: IncomingHttpHeaders[] = [];
        const server = await httpServer((request, response) => {
          seen.push(request.headers);
          response.end();
        });
        const clientCertificates = { ca: files.read('authority.crt'), crl: null, verify: 'optional' as const };
        const rules = [{ setHeader: names }, { when: { path: '/jo', clientCertificate: false }, deny: 401 }];
        const proxy = await startSecure(['shop'], { clientCertificates }, { servers: { s: server }, rules });
        const askFor = async (path: string, options: ConnectionOptions) => {
          if (protocols[0] === 'h2')
            return (await http2Ask(http2Client(proxy.port, options), { ':path': path, 'x-subject': 'CN=root' })).status;
          const client = new TlsClient(proxy.port, options);
          return statusOf(await client.send(getAndClose(path, 'X-Subject: CN=root\r\n')).rest());
        };
        expect(await askFor('/jo', identity('jo'))).toBe(200);
        expect(await askFor('/', {})).toBe(200);
        expect(await askFor('/jo', {})).toBe(401);
        const serial = new X509Certificate(files.read('jo.crt')).serialNumber.toLowerCase();
        expect(seen).toMatchObject([
          { 'x-subject': String.raw`CN=Jo\, the \"first\",O=Shop`, 'x-serial': serial, 'x-version': 'TLSv1.3' },
          { 'x-subject': '', 'x-serial': '', 'x-version': 'TLSv1.3' },
        ]);
      });

      test.each([
        ['one of the authority', 'jo', '200'],
        ['one of another authority', 'mallory', 'refused'],
        ['none', null, '200'],
      ])('optional: with %s', async (__, name, outcome) => {
        expect(await ask(await start('optional'), name === null ? {} : identity(name))).toBe(outcome);
      });
    });
  });

  describe('ALPN (RFC 7301 section 3.2)', () => {
    const chosen = async (port: number, offered: string[] | undefined) => {
      const client = new TlsClient(port, offered ? { ALPNProtocols: offered } : {});
      await eventually('agreed or refused', () => client.socket.alpnProtocol !== null || client.closed);
      return client.closed ? client.code : client.socket.alpnProtocol;
    };

    test('our preference decides, nothing in common is refused, and who asks for nothing gets HTTP/1.1', async () => {
      const { port } = await startSecure(['shop']);
      expect(await chosen(port, ['http/1.1', 'h2'])).toBe('h2');
      expect(await chosen(port, ['http/1.1'])).toBe('http/1.1');
      expect(await chosen(port, ['spdy/3'])).toBe('ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL');
      expect(await chosen(port, undefined)).toBe(false);
      expect(statusOf(await new TlsClient(port).send(getAndClose()).rest())).toBe(200);
    });

    test('http/1.1 may go before h2', async () => {
      const { port } = await startSecure(['shop'], { alpn: ['http/1.1', 'h2'] });
      expect(await chosen(port, ['h2', 'http/1.1'])).toBe('http/1.1');
      expect(await chosen(port, ['h2'])).toBe('h2');
    });

    test('without h2 nobody gets it', async () => {
      const { port } = await startSecure(['shop'], { alpn: ['http/1.1'] });
      expect(await chosen(port, ['h2', 'http/1.1'])).toBe('http/1.1');
    });

    test('in mode tcp any protocol can be agreed on', async () => {
      const { port } = await startSecure(['shop'], { alpn: ['imap'] }, { mode: 'tcp' });
      expect(await chosen(port, ['pop3', 'imap'])).toBe('imap');
    });
  });

  test('certificates are renewed while connections go on', async () => {
    const proxy = await startSecure(['shop']);
    const old = await new TlsClient(proxy.port).secure();
    await old.send(get()).until('ok');
    const oldSession = http2Client(proxy.port);
    expect((await http2Ask(oldSession)).status).toBe(200);
    proxy.dataPlane.openListener(listenerModel(proxy.port, secure(['rsa'])));
    await eventually('both workers say so', () => proxy.listenings.length === 4);
    for (const ALPNProtocols of [['http/1.1'], ['h2']]) {
      const client = await new TlsClient(proxy.port, { ALPNProtocols }).secure();
      expect(client.socket.getPeerX509Certificate()?.publicKey.asymmetricKeyType).toBe('rsa');
    }
    old.text = '';
    expect(statusOf(await old.send(get()).until('ok'))).toBe(200);
    expect((await http2Ask(oldSession)).status).toBe(200);
    expect(old.socket.getPeerX509Certificate()?.publicKey.asymmetricKeyType).toBe('ec');
  });

  test('handshakes that stall are ended', async () => {
    const proxy = await startSecure(['shop']);
    const hello: Buffer[] = [];
    const spy = await rawServer((socket) => void socket.on('data', (bytes: Buffer) => void hello.push(bytes)));
    const clients = [['http/1.1'], ['h2']].map((ALPNProtocols) => new TlsClient(spy.port, { ALPNProtocols }));
    await eventually('both have spoken', () => hello.length >= clients.length);
    const stalled = [Buffer.alloc(0), hello[0]!.subarray(0, 100), ...hello].map((bytes) => {
      const socket = connectTcp(proxy.port, HOST);
      const state = { closed: false };
      socket.on('error', () => {});
      socket.on('data', () => {});
      socket.on('close', () => (state.closed = true));
      socket.write(bytes);
      onTestFinished(() => void socket.destroy());
      return state;
    });
    await eventually('all are gone', () => stalled.every(({ closed }) => closed), 20_000);
    await eventually('and forgotten', () => proxy.figures('front').active === 0);
    expect(proxy.figures('front').tlsFailures).toBe(stalled.length);
  }, 25_000);

  /** Passes on what comes, byte by byte from the client. */
  const splitter = async (port: number): Promise<number> => {
    const server = createTcpServer({ noDelay: true }, (socket) => {
      const up = connectTcp({ port, host: HOST, noDelay: true });
      for (const end of [socket, up]) end.on('error', () => {});
      onTestFinished(() => {
        socket.destroy();
        up.destroy();
      });
      up.pipe(socket);
      socket.on('end', () => up.end());
      const waiting: Buffer[] = [];
      let isSending = false;
      const sendNext = () => {
        const [chunk] = waiting;
        isSending = chunk !== undefined;
        if (chunk === undefined) return;
        up.write(chunk.subarray(0, 1), sendNext);
        if (chunk.length > 1) waiting[0] = chunk.subarray(1);
        else waiting.shift();
      };
      socket.on('data', (chunk: Buffer) => {
        waiting.push(chunk);
        if (!isSending) sendNext();
      });
    });
    server.listen(0, HOST);
    await once(server, 'listening');
    onTestFinished(() => void server.close());
    return (server.address() as AddressInfo).port;
  };

  test('records that come byte by byte are put together', async () => {
    const { port } = await startSecure(['shop']);
    const client = new TlsClient(await splitter(port), { ALPNProtocols: ['http/1.1'] });
    expect(statusOf(await client.send(getAndClose()).rest())).toBe(200);
    expect((await http2Ask(http2Client(await splitter(port)))).body.toString()).toBe('ok');
  });

  test('10 MB go each way unchanged', async () => {
    const [up, down] = [randomBytes(MEGABYTES), randomBytes(MEGABYTES)];
    const server = await httpServer((request, response) => {
      const hash = createHash('sha256');
      request.on('data', (chunk: Buffer) => hash.update(chunk));
      request.on('end', () => response.setHeader('X-Got', hash.digest('hex')).end(down));
    });
    const proxy = await startSecure(['shop'], {}, { servers: { s: server } });
    const agent = new Agent({ rejectUnauthorized: false, keepAlive: true });
    onTestFinished(() => agent.destroy());
    const ask = (fields: Record<string, string>) =>
      new Promise<{ got: unknown; body: Buffer }>((done, refuse) => {
        const options = { port: proxy.port, host: HOST, method: 'POST', agent, headers: fields };
        const request = httpsRequest(options, (response) => {
          const parts: Buffer[] = [];
          response.on('data', (chunk: Buffer) => parts.push(chunk));
          response.on('error', refuse);
          response.on('end', () => done({ got: response.headers['x-got'], body: Buffer.concat(parts) }));
        });
        request.on('error', refuse);
        request.end(up);
      });
    for (const fields of [{ 'Content-Length': String(MEGABYTES) }, { 'Transfer-Encoding': 'chunked' }]) {
      const { got, body } = await ask(fields);
      expect(got).toBe(sha(up));
      expect(sha(body)).toBe(sha(down));
    }
    const session = http2Client(proxy.port);
    const answer = await http2Ask(session, { ':method': 'POST' }, up);
    expect(answer.headers['x-got']).toBe(sha(up));
    expect(sha(answer.body)).toBe(sha(down));
  });

  describe('the end of TLS (RFC 8446 section 6.1)', () => {
    /** A TLS client whose connection can be ended beneath TLS. */
    const overTcp = async (port: number): Promise<{ client: TlsClient; raw: Socket }> => {
      const raw = connectTcp(port, HOST);
      return { client: await new TlsClient(0, { socket: raw, ALPNProtocols: ['http/1.1'] }).secure(), raw };
    };

    /** Ends our half of the connection without close_notify. */
    const cut = (raw: Socket): void => {
      libc().shutdown((raw as Socket & { _handle: { fd: number } })._handle.fd, SHUT_WR);
    };

    test('a client that has sent close_notify still gets its answer, and ours ends with one', async () => {
      const server = await httpServer((_request, response) => void setTimeout(() => response.end('late'), 50));
      const { port } = await startSecure(['shop'], {}, { servers: { s: server } });
      const client = new TlsClient(port, { ALPNProtocols: ['http/1.1'] });
      client.socket.end(getAndClose());
      expect(bodyOf(await client.rest())).toBe('late');
      await eventually('it is closed', () => client.closed);
      expect(client).toMatchObject({ ended: true, code: '' });
    });

    test('openssl s_client sees a whole answer and close_notify', async () => {
      const { port } = await startSecure(['shop']);
      const ran = await run(
        'openssl',
        [
          's_client',
          '-connect',
          `${HOST}:${port}`,
          '-servername',
          'shop.test',
          '-CAfile',
          `${files.folder}/authority.crt`,
        ].concat(['-verify_return_error', '-quiet', '-ign_eof', '-alpn', 'http/1.1', '-msg']),
        getAndClose(),
      );
      expect(ran.stdout).toContain('HTTP/1.1 200 OK');
      expect(ran.stdout).toMatch(/<<< TLS 1.3, Alert \[length 0002\], warning close_notify/);
      expect(ran.status).toBe(0);
    });

    test('mode tcp: half-closed either way, bytes go on the other way', async () => {
      let input = '';
      const server = await rawServer((socket) => {
        socket.on('data', (chunk) => (input += chunk.toString()));
        socket.on('end', () => setTimeout(() => socket.end(`got ${input}`), 50));
      });
      const { port } = await startSecure(['shop'], { alpn: null }, { mode: 'tcp', servers: { s: server } });
      const client = new TlsClient(port);
      client.socket.end('all of it');
      expect(await client.rest()).toBe('got all of it');
    });

    test('mode tcp: a client that is cut off is one that has reset, not one that has ended', async () => {
      let end = '';
      const server = await rawServer((socket) => {
        socket.on('data', () => socket.write('go on'));
        socket.on('end', () => (end ||= 'ended'));
        socket.on('error', ({ message }) => (end ||= message));
      });
      const { port } = await startSecure(['shop'], { alpn: null }, { mode: 'tcp', servers: { s: server } });
      const { client, raw } = await overTcp(port);
      await client.send('half of i').until('go on');
      cut(raw);
      await eventually('the server hears of it', () => end !== '');
      expect(end).toBe('read ECONNRESET');
    });

    test('a client that is cut off in the middle of its body: the server never sees it complete', async () => {
      let whole = false;
      let error = '';
      const server = await httpServer((request) => {
        request.resume();
        request.on('end', () => (whole = true));
        request.on('error', ({ message }) => (error = message));
      });
      const proxy = await startSecure(['shop'], {}, { servers: { s: server } });
      const { client, raw } = await overTcp(proxy.port);
      client.send('POST / HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n');
      await eventually('it has begun', () => server.requests.length === 1);
      cut(raw);
      await eventually('the server hears of it', () => error !== '');
      expect(whole).toBe(false);
    });

    /** A TLS server that says this and cuts the connection, with or without close_notify. */
    const cutter = async (text: string, isClean: boolean) => {
      const raws: Socket[] = [];
      const server = createTlsServer({ cert: files.read('shop.crt'), key: files.read('shop.key') }, (socket) => {
        socket.on('error', () => {});
        socket.on('data', () => {
          if (isClean) socket.end(text);
          else socket.write(text, () => cut(raws.at(-1)!));
        });
      });
      server.on('connection', (socket: Socket) => raws.push(socket));
      return listening(server, raws);
    };

    test.each([
      ['until the close', 'HTTP/1.1 200 OK\r\n\r\nonly half of'],
      ['of a length', 'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly half of'],
      ['in chunks', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nc\r\nonly half of\r\n'],
    ])('a server that is cut off in an answer %s: the client does not take it for whole', async (_, text) => {
      const port = await cutter(text, false);
      const tls = clientModel(files.read('authority.crt'));
      const proxy = await startSecure(
        ['shop'],
        {},
        { servers: { s: { port, model: { tls } } }, frontend: { log: LOG } },
      );
      const client = new TlsClient(proxy.port, { ALPNProtocols: ['http/1.1'] });
      await client.send(get()).until('only half of');
      await eventually('it is over', () => client.closed);
      expect(client).toMatchObject({ code: 'ECONNRESET' });
      const stream = http2Ask(http2Client(proxy.port));
      await expect(stream).rejects.toThrow(/NGHTTP2_INTERNAL_ERROR/);
      await eventually('both are logged', () => proxy.records().length === 2);
      expect(proxy.records().map(({ termination }) => termination)).toEqual(['SD', 'SD']);
    });

    test('a server that ends with close_notify has said all', async () => {
      const port = await cutter('HTTP/1.1 200 OK\r\n\r\nthis is all', true);
      const tls = clientModel(files.read('authority.crt'));
      const proxy = await startSecure(['shop'], {}, { servers: { s: { port, model: { tls } } } });
      const client = new TlsClient(proxy.port, { ALPNProtocols: ['http/1.1'] });
      expect(bodyOf(await client.send(get()).rest())).toBe('this is all');
      expect(client.code).toBe('');
      expect((await http2Ask(http2Client(proxy.port))).body.toString()).toBe('this is all');
    });
  });

  const listening = async (server: Server, sockets: Socket[] = []): Promise<number> => {
    server.on('connection', (socket: Socket) => sockets.push(socket));
    server.listen(0, HOST);
    await once(server, 'listening');
    onTestFinished(() => {
      server.close();
      for (const socket of sockets) socket.destroy();
    });
    return (server.address() as AddressInfo).port;
  };

  describe('to servers', () => {
    type Seen = { serverName: unknown; client: unknown; resumed: boolean };

    const tlsServer = async (name: string, seen: Seen[] = [], more: TlsOptions = {}): Promise<number> => {
      const server = createHttpsServer(
        { cert: files.read(`${name}.crt`), key: files.read(`${name}.key`), ...more },
        (request, response) => {
          const socket = request.socket as TLSSocket;
          seen.push({
            serverName: socket.servername,
            client: socket.getPeerCertificate().subject?.CN,
            resumed: socket.isSessionReused(),
          });
          response.setHeader('Connection', request.headers['x-close'] ? 'close' : 'keep-alive');
          response.end('secret');
        },
      );
      server.on('tlsClientError', () => {});
      return listening(server);
    };

    const startBefore = (port: number, more: Partial<ClientTlsModel>, options: Partial<ProxyOptions> = {}) =>
      startProxy({
        servers: { s: { port, model: { tls: clientModel(files.read('authority.crt'), more) } } },
        backend: { observe: { layer: 'layer7', limits: [1], intervalMs: 0 } },
        frontend: { log: LOG },
        retries: 0,
        workers: 1,
        ...options,
      });

    test('a server that proves its name gets the request, its name in SNI, and our certificate', async () => {
      const seen: Seen[] = [];
      const port = await tlsServer('shop', seen, { requestCert: true, ca: files.read('authority.crt') });
      const proxy = await startBefore(port, { certificate: files.read('jo.pem') });
      expect(bodyOf(await talk(proxy.port, getAndClose()))).toBe('secret');
      expect(seen).toEqual([{ serverName: 'shop.test', client: 'Jo, the "first"', resumed: false }]);
    });

    test('an address is verified too, and sends no SNI (RFC 6066 section 3)', async () => {
      const seen: Seen[] = [];
      const proxy = await startBefore(await tlsServer('shop', seen), { serverName: HOST });
      expect(bodyOf(await talk(proxy.port, getAndClose()))).toBe('secret');
      expect(seen).toMatchObject([{ serverName: false }]);
    });

    test.each([
      ['for another name', 'api', {}, 'TLS_CERTIFICATE'],
      ['that has run out', 'old', { serverName: 'old.test' }, 'TLS_CERTIFICATE'],
      ['of another authority', 'mallory', { serverName: 'mallory' }, 'TLS_CERTIFICATE'],
      ['on other terms', 'shop', { maxVersion: 'TLSv1.2' as const }, 'TLS_ALERT'],
    ])('a certificate %s: 502, and it counts against the server', async (_, name, more, code) => {
      const seen: Seen[] = [];
      const proxy = await startBefore(await tlsServer(name, seen, { minVersion: 'TLSv1.3' }), more);
      expect(statusOf(await talk(proxy.port, getAndClose()))).toBe(502);
      expect(seen).toEqual([]);
      expect(proxy.figures('web/s')).toMatchObject({ connectFailures: 1, connects: 0 });
      await eventually('it is logged', () => proxy.records().length === 1);
      expect(proxy.records()).toMatchObject([{ status: 502, termination: 'SC', server: 's' }]);
      await eventually('it is told of', () => proxy.observed.length === 1);
      expect(proxy.observed).toMatchObject([{ server: 's', failed: 1, kind: 'connect', detail: code }]);
    });

    test('a server without TLS: 502', async () => {
      const { port } = await rawServer((socket) => void socket.write('220 mail.test ESMTP\r\n'));
      const proxy = await startBefore(port, {});
      expect(statusOf(await talk(proxy.port, getAndClose()))).toBe(502);
      await eventually('it is told of', () => proxy.observed.length === 1);
      expect(proxy.observed).toMatchObject([{ kind: 'connect', detail: 'TLS_HANDSHAKE' }]);
    });

    test('a server that never answers the handshake: 504 after the connect timeout', async () => {
      const { port } = await rawServer(() => {});
      const proxy = await startBefore(port, {}, { timeouts: { connect: 100 } });
      expect(statusOf(await talk(proxy.port, getAndClose()))).toBe(504);
    });

    test('where nothing is verified any certificate will do', async () => {
      const proxy = await startBefore(await tlsServer('mallory'), { verify: false });
      expect(bodyOf(await talk(proxy.port, getAndClose()))).toBe('secret');
    });

    test('one server of a bad certificate: another one serves', async () => {
      const [bad, good] = [await tlsServer('mallory'), await tlsServer('shop')];
      const tls = clientModel(files.read('authority.crt'));
      const proxy = await startProxy({
        servers: { bad: { port: bad, model: { tls } }, good: { port: good, model: { tls } } },
        workers: 1,
      });
      for (let round = 0; round < 4; round++) expect(statusOf(await talk(proxy.port, getAndClose()))).toBe(200);
      expect(proxy.figures('web/bad').connectFailures).toBeGreaterThan(0);
    });

    test('a session is taken up again when a new connection is needed', async () => {
      const seen: Seen[] = [];
      const proxy = await startBefore(await tlsServer('shop', seen), {});
      for (let round = 0; round < 3; round++) await talk(proxy.port, getAndClose('/', 'X-Close: 1\r\n'));
      expect(seen.map(({ resumed }) => resumed)).toEqual([false, true, true]);
    });

    test('a connection is kept for the next request', async () => {
      const proxy = await startBefore(await tlsServer('shop'), {});
      for (let round = 0; round < 3; round++) await talk(proxy.port, getAndClose());
      expect(proxy.figures('web/s')).toMatchObject({ connects: 1, reuses: 2 });
    });

    test('10 MB go each way unchanged', async () => {
      const [up, down] = [randomBytes(MEGABYTES), randomBytes(MEGABYTES)];
      let got = '';
      const server = createHttpsServer(
        { cert: files.read('shop.crt'), key: files.read('shop.key') },
        (request, response) => {
          const hash = createHash('sha256');
          request.on('data', (chunk: Buffer) => hash.update(chunk));
          request.on('end', () => {
            got = hash.digest('hex');
            response.end(down);
          });
        },
      );
      const proxy = await startBefore(await listening(server), {}, { listener: secure(['shop']) });
      const answer = await http2Ask(http2Client(proxy.port), { ':method': 'POST' }, up);
      expect(got).toBe(sha(up));
      expect(sha(answer.body)).toBe(sha(down));
    });

    test('mode tcp: bytes go both ways, and a cut-off server is passed on as a reset', async () => {
      const raws: Socket[] = [];
      const server = createTlsServer({ cert: files.read('shop.crt'), key: files.read('shop.key') }, (socket) => {
        socket.on('error', () => {});
        socket.on('data', (chunk) => {
          if (String(chunk) === 'cut')
            libc().shutdown((raws[0] as Socket & { _handle: { fd: number } })._handle.fd, SHUT_WR);
          else socket.write(chunk);
        });
      });
      const proxy = await startBefore(await listening(server, raws), {}, { mode: 'tcp' });
      const client = new RawClient(proxy.port);
      await client.send('hello').until('hello');
      client.send('cut');
      await client.rest();
      expect(client.error?.code).toBe('ECONNRESET');
    });
  });
});
