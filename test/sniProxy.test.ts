/** Mode `tcp` with rules on SNI: connections of TLS are shared out by name without being decrypted. */
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { connect as connectTls, createServer as createTlsServer } from 'node:tls';
import type { ConnectionOptions, TLSSocket } from 'node:tls';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { has } from './packages.ts';
import { eventually, HOST, LOG, RawClient, rawServer, run, startProxy } from './proxyHelpers.ts';
import type { Proxy, ProxyOptions, RawServer } from './proxyHelpers.ts';
import { makeCertificates } from './tlsHelpers.ts';
import type { Files } from './tlsHelpers.ts';

const RULES = [
  { when: { serverName: 'api.shop.test' }, use: 'api' },
  { when: { serverName: '*.evil.test' }, reject: true },
  { when: { serverName: ['shop.test', '*.shop.test'] }, use: 'shop' },
];

describe.skipIf(!has('openssl'))('SNI', () => {
  let files: Files;
  beforeAll(() => {
    files = makeCertificates();
  });
  afterAll(() => files.remove());

  /** A TLS server that shows this certificate and says its name. */
  const tlsServer = async (name: string): Promise<{ port: number }> => {
    const sockets: Socket[] = [];
    const server = createTlsServer({ cert: files.read(`${name}.crt`), key: files.read(`${name}.key`) }, (socket) => {
      socket.on('error', () => {});
      socket.on('data', (chunk) => socket.write(`${name}: ${String(chunk)}`));
    });
    server.on('connection', (socket: Socket) => sockets.push(socket));
    server.listen(0, HOST);
    await once(server, 'listening');
    onTestFinished(() => {
      server.close();
      for (const socket of sockets) socket.destroy();
    });
    return { port: (server.address() as { port: number }).port };
  };

  const plainServer = () =>
    rawServer((socket) => {
      socket.on('data', (chunk) => socket.write(`plain: ${String(chunk)}`));
      socket.on('end', () => socket.end('bye'));
    });

  type Stage = { proxy: Proxy; plain: RawServer };

  const start = async (options: Partial<ProxyOptions> = {}): Promise<Stage> => {
    const plain = await plainServer();
    const proxy = await startProxy({
      mode: 'tcp',
      servers: { plain },
      others: { api: { s: await tlsServer('api') }, shop: { s: await tlsServer('shop') } },
      rules: RULES,
      frontend: { log: LOG },
      ...options,
    });
    return { proxy, plain };
  };

  const tlsClient = (port: number, options: ConnectionOptions): TLSSocket => {
    const socket = connectTls({ port, host: HOST, rejectUnauthorized: false, ...options });
    socket.on('error', () => {});
    onTestFinished(() => void socket.destroy());
    return socket;
  };

  const said = async (port: number, servername: string): Promise<string> => {
    const socket = tlsClient(port, { servername });
    socket.write('hello');
    const [text] = (await once(socket, 'data')) as [Buffer];
    return `${socket.getPeerX509Certificate()!.subject} ${String(text)}`;
  };

  test('the name decides, and the server’s own certificate is shown', async () => {
    const { proxy } = await start();
    expect(await said(proxy.port, 'api.shop.test')).toBe('CN=api.shop.test api: hello');
    expect(await said(proxy.port, 'API.Shop.Test')).toBe('CN=api.shop.test api: hello');
    expect(await said(proxy.port, 'www.shop.test')).toBe('CN=shop.test shop: hello');
  });

  test('what is logged has the name', async () => {
    const { proxy } = await start();
    tlsClient(proxy.port, { servername: 'api.shop.test' }).end('x');
    await eventually('it is logged', () => proxy.records().length === 1);
    expect(proxy.records()[0]).toMatchObject({ serverName: 'api.shop.test', tlsVersion: null, backend: 'api' });
  });

  test('a name that is refused is closed without a word', async () => {
    const { proxy } = await start();
    const socket = tlsClient(proxy.port, { servername: 'a.evil.test' });
    await new Promise((done) => void socket.once('close', done));
    expect(socket.bytesRead).toBe(0);
    expect(proxy.figures('front').deniedConnections).toBe(1);
  });

  test('a ClientHello that comes byte by byte is read as one', async () => {
    const { proxy } = await start();
    let hello = Buffer.alloc(0);
    const spy = await rawServer(
      (socket) => void socket.on('data', (bytes) => (hello = Buffer.concat([hello, bytes as Buffer]))),
    );
    tlsClient(spy.port, { servername: 'api.shop.test' });
    await eventually('it has spoken', () => hello.length > 100);
    const client = new RawClient(proxy.port);
    client.socket.setNoDelay(true);
    for (const byte of hello)
      await new Promise<void>((done) => void client.socket.write(Buffer.of(byte), () => done()));
    // A handshake record.
    await client.until('\x16\x03\x03');
    expect(proxy.figures('api/s').sessions).toBe(1);
  });

  test.each([
    ['a client that does not speak TLS', 'hello'],
    ['a client that speaks HTTP', 'GET / HTTP/1.1\r\n\r\n'],
    ['a client that begins like TLS and does not go on so', '\x16\x03\x01\x00\x05garbage'],
  ])('%s gets the default, with all that it has said', async (_, text) => {
    const { proxy } = await start();
    expect(await new RawClient(proxy.port).send(text).until(text)).toBe(`plain: ${text}`);
  });

  test('a client without a name gets the default', async () => {
    const { proxy, plain } = await start();
    tlsClient(proxy.port, { servername: '' });
    await eventually('it has come', () => plain.accepted === 1);
    await eventually('it is counted', () => proxy.figures('web/plain').connects > 0);
    expect(proxy.figures('web/plain').connects).toBe(1);
  });

  test('a client that waits for the server to speak first gets the default’s word in the end', async () => {
    const greeter = await rawServer((socket) => void socket.write('220 ready\r\n'));
    const { proxy } = await start({ servers: { plain: greeter } });
    const client = new RawClient(proxy.port);
    expect(await client.until('220 ready')).toBe('220 ready\r\n');
  });

  test('a client that ends at once gets the default, which hears of the end', async () => {
    const { proxy } = await start();
    const client = new RawClient(proxy.port);
    client.socket.end();
    expect(await client.rest()).toBe('bye');
  });

  test('openssl s_client verifies the server behind', async () => {
    const { proxy } = await start();
    const ran = await run(
      'openssl',
      ['s_client', '-connect', `${HOST}:${proxy.port}`, '-servername', 'api.shop.test', '-verify_return_error'].concat([
        '-CAfile',
        `${files.folder}/authority.crt`,
      ]),
    );
    expect(ran.stdout).toContain('Verify return code: 0 (ok)');
    expect(ran.stdout).toContain('subject=CN = api.shop.test');
  });
});
