/** The PROXY protocol end to end: from clients' proxies, and to real servers that want it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import type { Server as HttpServer } from 'node:http';
import { connect as connectHttp2 } from 'node:http2';
import { createServer as createHttpsServer } from 'node:https';
import type { Server as HttpsServer } from 'node:https';
import { connect, createServer as createNetServer } from 'node:net';
import type { Server as NetServer, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect as connectTls } from 'node:tls';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { startProbe } from '../src/checks/probe.ts';
import { http2Schema } from '../src/config/http2.ts';
import { loadConfig } from '../src/config/load.ts';
import type { CheckConfig } from '../src/config/schema.ts';
import { proxyHeaderLocal, proxyHeaderV1, proxyHeaderV2 } from '../src/proxy/proxyProtocol.ts';
import { RunningNode, yamlOf } from './nodeHelpers.ts';
import { has } from './packages.ts';
import {
  bodyOf,
  closedPort,
  eventually,
  get,
  getAndClose,
  HOST,
  http2Ask,
  httpServer,
  LOG,
  RawClient,
  rawServer,
  scriptedServer,
  startProxy,
  statusOf,
  talk,
  tlsModel,
} from './proxyHelpers.ts';
import type { Proxy, ProxyOptions } from './proxyHelpers.ts';
import { makeCertificates } from './tlsHelpers.ts';
import type { Files } from './tlsHelpers.ts';

const CLIENT = { address: '192.0.2.7', port: 4711 };
const HERE = { address: '198.51.100.1', port: 443 };
const V1 = proxyHeaderV1(CLIENT, HERE);
const V2 = proxyHeaderV2(CLIENT, HERE);
const FROM_HERE = { from: ['127.0.0.0/8'], required: false };
const FROM_ELSEWHERE = { from: ['10.0.0.0/8'], required: false };

/** A server that says whom it was told of. */
const teller = () => httpServer((request, response) => void response.end(String(request.headers['x-forwarded-for'])));

const start = async (options: Partial<ProxyOptions> = {}): Promise<Proxy> =>
  startProxy({
    servers: { s: await teller() },
    listener: { proxyProtocol: FROM_HERE },
    frontend: { log: LOG },
    ...options,
  });

const talkAfter = (port: number, header: Buffer, request = getAndClose()): Promise<string> =>
  new RawClient(port).send(Buffer.concat([header, Buffer.from(request)])).rest();

describe('accepted', () => {
  test.each([
    ['version 1', V1],
    ['version 2', V2],
  ])('%s: the server, the rules and the log learn of the client', async (_, header) => {
    const rules = [{ when: { source: '192.0.2.0/24' }, response: { setHeader: { 'X-Seen': '{source} {localPort}' } } }];
    const proxy = await start({ rules });
    const text = await talkAfter(proxy.port, header);
    expect(bodyOf(text)).toBe(CLIENT.address);
    expect(text).toContain(`X-Seen: ${CLIENT.address} ${HERE.port}\r\n`);
    await eventually('it is logged', () => proxy.records().length === 1);
    expect(proxy.records()[0]).toMatchObject({ clientAddress: CLIENT.address, clientPort: CLIENT.port });
  });

  test('IPv6 clients, and such of an IPv4 address within IPv6', async () => {
    const proxy = await start();
    const six = proxyHeaderV2({ address: '2001:db8::7', port: 1 }, { address: '2001:db8::1', port: 2 });
    expect(bodyOf(await talkAfter(proxy.port, six))).toBe('2001:db8::7');
    const mapped = proxyHeaderV2({ address: '::ffff:192.0.2.9', port: 1 }, { address: '2001:db8::1', port: 2 });
    expect(bodyOf(await talkAfter(proxy.port, mapped))).toBe('192.0.2.9');
  });

  test('LOCAL and UNKNOWN: the peer itself is the client', async () => {
    const proxy = await start();
    expect(bodyOf(await talkAfter(proxy.port, proxyHeaderLocal()))).toBe(HOST);
    expect(bodyOf(await talkAfter(proxy.port, Buffer.from('PROXY UNKNOWN\r\n')))).toBe(HOST);
  });

  test('a header that comes byte by byte', async () => {
    const proxy = await start();
    const client = new RawClient(proxy.port);
    client.socket.setNoDelay(true);
    for (const byte of Buffer.concat([V2, Buffer.from(getAndClose())]))
      await new Promise<void>((done) => void client.socket.write(Buffer.of(byte), () => done()));
    expect(bodyOf(await client.rest())).toBe(CLIENT.address);
  });

  test('it counts for all requests of the connection', async () => {
    const proxy = await start();
    const client = new RawClient(proxy.port).send(V1).send(get('/')).send(get('/')).send(getAndClose('/'));
    expect((await client.rest()).match(/192\.0\.2\.7/g)).toHaveLength(3);
  });

  test.each([
    ['no header at all', getAndClose()],
    ['a header that is none', 'PROXY TCP4 here there\r\n'],
    ['half a header and then the end', 'PROXY TCP4 1'],
  ])('a listed peer with %s is closed without an answer', async (_, text) => {
    const proxy = await start();
    const client = new RawClient(proxy.port);
    client.socket.end(text);
    expect(await client.rest()).toBe('');
    expect(proxy.figures('front')).toMatchObject({ deniedConnections: 1, requests: 0 });
  });

  test('mode tcp: what follows goes to the server, the header does not', async () => {
    const echo = await rawServer((socket) => void socket.pipe(socket));
    const proxy = await start({ mode: 'tcp', servers: { s: echo } });
    const client = new RawClient(proxy.port).send(Buffer.concat([V2, Buffer.from('hello')]));
    await client.until('hello');
    client.socket.end();
    expect(await client.rest()).toBe('hello');
    await eventually('it is logged', () => proxy.records().length === 1);
    expect(proxy.records()[0]).toMatchObject({ clientAddress: CLIENT.address, bytesUploaded: 5 });
  });

  test('balance by source goes by the client that the header names', async () => {
    const seen = await Promise.all(['a', 'b', 'c'].map((name) => httpServer((_, response) => void response.end(name))));
    const servers = Object.fromEntries(seen.map((server, index) => ['abc'[index]!, server]));
    const proxy = await start({ servers, balance: 'source' });
    const serverFor = async (last: number) =>
      bodyOf(await talkAfter(proxy.port, proxyHeaderV1({ address: `192.0.2.${last}`, port: 1000 }, HERE)));
    const first = await Promise.all(Array.from({ length: 20 }, (_, last) => serverFor(last)));
    expect(new Set(first).size).toBe(3);
    expect(await Promise.all(first.map((_, last) => serverFor(last)))).toEqual(first);
  });
});

describe('peers that are not listed', () => {
  test('cannot claim an address: what they send is their own, and no request', async () => {
    const proxy = await start({ listener: { proxyProtocol: FROM_ELSEWHERE } });
    expect(statusOf(await talkAfter(proxy.port, V1))).toBe(400);
    expect(statusOf(await talkAfter(proxy.port, V2))).toBe(400);
    expect(bodyOf(await talk(proxy.port, getAndClose()))).toBe(HOST);
  });

  test('are refused where a header is required', async () => {
    const proxy = await start({ listener: { proxyProtocol: { ...FROM_ELSEWHERE, required: true } } });
    expect(await talkAfter(proxy.port, V1).catch(() => '')).toBe('');
    expect(proxy.figures('front')).toMatchObject({ deniedConnections: 1, active: 0, requests: 0 });
  });

  test('a header where none is expected is no request either', async () => {
    const proxy = await start({ listener: {} });
    expect(statusOf(await talkAfter(proxy.port, V1))).toBe(400);
  });
});

describe.skipIf(!has('openssl'))('with TLS behind it', () => {
  let files: Files;
  beforeAll(() => {
    files = makeCertificates();
  });
  afterAll(() => files.remove());

  const startSecure = (options: Partial<ProxyOptions> = {}) =>
    start({
      listener: {
        proxyProtocol: FROM_HERE,
        tls: tlsModel([files.read('shop.pem')], { alpn: ['h2', 'http/1.1'] }),
        http2: http2Schema.parse({}),
      },
      rules: [{ response: { setHeader: { 'X-Sni': '{serverName} {localPort}' } } }],
      ...options,
    });

  const secureClient = async (port: number, header: Buffer, protocol: string) => {
    const socket = connect(port, HOST);
    socket.write(header);
    const secure = connectTls({
      socket,
      servername: 'shop.test',
      rejectUnauthorized: false,
      ALPNProtocols: [protocol],
    });
    onTestFinished(() => void secure.destroy());
    await once(secure, 'secureConnect');
    return secure;
  };

  test.each([
    ['version 1', V1],
    ['version 2', V2],
  ])('HTTP/1.1 after %s', async (_, header) => {
    const proxy = await startSecure();
    const socket = await secureClient(proxy.port, header, 'http/1.1');
    let text = '';
    socket.on('data', (chunk: Buffer) => (text += chunk.toString()));
    socket.write(getAndClose());
    await once(socket, 'end');
    expect(bodyOf(text)).toBe(CLIENT.address);
    expect(text).toContain(`X-Sni: shop.test ${HERE.port}\r\n`);
  });

  test.each([
    ['version 1', V1],
    ['version 2', V2],
  ])('HTTP/2 after %s', async (_, header) => {
    const proxy = await startSecure();
    const socket = await secureClient(proxy.port, header, 'h2');
    const client = connectHttp2('https://shop.test', { createConnection: () => socket });
    onTestFinished(() => client.destroy());
    for (let round = 0; round < 2; round++) {
      const answer = await http2Ask(client);
      expect(answer.body.toString()).toBe(CLIENT.address);
      expect(answer.headers['x-sni']).toBe(`shop.test ${HERE.port}`);
    }
    await eventually('both are logged', () => proxy.records().length === 2);
    expect(proxy.records()[0]).toMatchObject({ clientAddress: CLIENT.address, clientPort: CLIENT.port });
  });

  test('mode tcp with rules on SNI: header and ClientHello are both read', async () => {
    let seen: Buffer = Buffer.alloc(0);
    const server = await rawServer((socket) => void socket.on('data', (bytes) => (seen = bytes as Buffer)));
    const proxy = await start({
      mode: 'tcp',
      servers: { other: await rawServer(() => {}) },
      others: { shop: { s: server } },
      rules: [{ when: { serverName: 'shop.test', source: '192.0.2.0/24' }, use: 'shop' }],
    });
    void secureClient(proxy.port, V2, 'h2').catch(() => {});
    await eventually('it has come', () => seen.length > 0);
    expect(seen[0]).toBe(22);
  });
});

/** A program that is ended with the test, once something listens at its port. */
const startProgram = async (program: string, args: string[], port: number): Promise<void> => {
  const child = spawn(program, args, { stdio: 'ignore' });
  onTestFinished(async () => {
    child.kill('SIGTERM');
    if (child.exitCode === null) await once(child, 'exit');
  });
  let up = false;
  const knock = () => {
    const socket = connect(port, HOST);
    socket.on('connect', () => {
      up = true;
      socket.destroy();
    });
    socket.on('error', () => void setTimeout(knock, 20));
  };
  knock();
  await eventually(`${program} listens`, () => up);
};

const tempFolder = (): string => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
};

describe('sent', () => {
  /** A server that keeps what each of its connections begins with. */
  const recorder = async () => {
    const connections: string[] = [];
    const server = await rawServer((socket) => {
      const index = connections.push('') - 1;
      let requests = 0;
      socket.on('data', (bytes) => {
        connections[index] += bytes.toString('latin1');
        for (const total = connections[index]!.split('\r\n\r\n').length - 1; requests < total; requests++)
          socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok');
      });
    });
    return { server, connections };
  };

  test('version 1, once a connection, which no other client gets', async () => {
    const { server, connections } = await recorder();
    const proxy = await startProxy({ servers: { s: { port: server.port, model: { sendProxy: 'v1' } } }, workers: 1 });
    const clients = [new RawClient(proxy.port), new RawClient(proxy.port)];
    for (const client of clients) {
      await client.send(get('/one')).until('ok');
      client.text = '';
      await client.send(get('/two')).until('ok');
    }
    for (const text of connections) {
      expect(text).toMatch(/^PROXY TCP4 127\.0\.0\.1 127\.0\.0\.1 \d+ \d+\r\nGET /);
      expect(text.match(/PROXY/g)).toHaveLength(1);
    }
    const told = new Set(connections.map((text) => Number(/^PROXY \S+ \S+ \S+ (\d+)/.exec(text)![1])));
    expect(told).toEqual(new Set(clients.map(({ socket }) => socket.localPort)));
  });

  test('what a header of the client’s own proxy named is passed on', async () => {
    const { server, connections } = await recorder();
    const proxy = await start({ servers: { s: { port: server.port, model: { sendProxy: 'v1' } } } });
    await new RawClient(proxy.port).send(Buffer.concat([V2, Buffer.from(get())])).until('ok');
    expect(connections[0]).toMatch(/^PROXY TCP4 192\.0\.2\.7 198\.51\.100\.1 4711 443\r\nGET /);
  });

  test('mode tcp: before anything that the client says', async () => {
    const { server, connections } = await recorder();
    const proxy = await start({ mode: 'tcp', servers: { s: { port: server.port, model: { sendProxy: 'v2' } } } });
    await new RawClient(proxy.port).send(Buffer.concat([V1, Buffer.from(get())])).until('ok');
    expect(connections[0]).toBe(V2.toString('latin1') + get());
  });

  const VERSIONS = ['v1', 'v2'] as const;

  test.skipIf(!has('haproxy')).each(VERSIONS)('HAProxy with accept-proxy understands %s', async (version) => {
    const [port, folder] = [await closedPort(), tempFolder()];
    writeFileSync(
      join(folder, 'haproxy.cfg'),
      `defaults
  mode http
  timeout client 5s
frontend f
  bind ${HOST}:${port} accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port] %[dst_port]"
`,
    );
    await startProgram('haproxy', ['-f', join(folder, 'haproxy.cfg')], port);
    const proxy = await start({ servers: { s: { port, model: { sendProxy: version } } } });
    expect(bodyOf(await talkAfter(proxy.port, V2))).toBe('192.0.2.7:4711 443');
    const client = new RawClient(proxy.port).send(proxyHeaderLocal()).send(getAndClose());
    const clientPort = client.socket.localPort ?? (await once(client.socket, 'connect'), client.socket.localPort);
    expect(bodyOf(await client.rest())).toBe(`${HOST}:${clientPort} ${proxy.port}`);
  });

  test.skipIf(!has('nginx')).each(VERSIONS)('nginx with proxy_protocol understands %s', async (version) => {
    const [port, folder] = [await closedPort(), tempFolder()];
    writeFileSync(
      join(folder, 'nginx.conf'),
      `daemon off; pid ${folder}/pid; error_log stderr crit; worker_processes 1;
       events { worker_connections 64; }
       http { access_log off; client_body_temp_path ${folder}/a; proxy_temp_path ${folder}/b;
         fastcgi_temp_path ${folder}/c; uwsgi_temp_path ${folder}/d; scgi_temp_path ${folder}/e;
         server { listen ${HOST}:${port} proxy_protocol; return 200 "$proxy_protocol_addr:$proxy_protocol_port"; } }`,
    );
    await startProgram('nginx', ['-p', folder, '-c', join(folder, 'nginx.conf')], port);
    const proxy = await start({ servers: { s: { port, model: { sendProxy: version } } } });
    expect(bodyOf(await talkAfter(proxy.port, V2))).toBe('192.0.2.7:4711');
  });

  test('a retry gets a header of its own', async () => {
    const { server, connections } = await recorder();
    const dying = await scriptedServer((_head, socket) => socket.destroy());
    const model = { sendProxy: 'v1' as const };
    const proxy = await start({
      servers: { a: { port: dying.port, model }, b: { port: server.port, model } },
      workers: 1,
    });
    for (let round = 0; round < 2; round++) expect(statusOf(await talkAfter(proxy.port, V1))).toBe(200);
    expect(dying.accepted).toBeGreaterThan(0);
    for (const text of connections) expect(text).toMatch(/^PROXY TCP4 192\.0\.2\.7 [^]*\r\nGET /);
  });
});

describe.skipIf(!has('openssl'))('checks of servers that want a header begin with one that names nobody', () => {
  let files: Files;
  beforeAll(() => {
    files = makeCertificates();
  });
  afterAll(() => files.remove());

  const checkOf = (settings: Record<string, unknown>): CheckConfig => {
    const file = { backends: { web: { check: settings, servers: [{ name: 's', address: 'h:1' }] } } };
    const loaded = loadConfig(JSON.stringify(file), {}, '/');
    if ('problems' in loaded) throw new Error(JSON.stringify(loaded.problems));
    return loaded.config.backends['web']!.check as CheckConfig;
  };

  const UNKNOWN = Buffer.from('PROXY UNKNOWN\r\n');

  /** Reads this header and hands the connection on; without it, nobody is answered. */
  const behind = async (header: Buffer, server: { emit(event: 'connection', socket: Socket): boolean }) =>
    rawServer((socket) => {
      socket.once('readable', () => {
        const found = socket.read(header.length) as Buffer | null;
        if (found?.equals(header)) server.emit('connection', socket);
        else socket.destroy();
      });
    });

  const httpWith = (): HttpServer => createHttpServer((_request, response) => response.end('well'));
  const tlsPair = () => ({ cert: files.read('shop.crt'), key: files.read('shop.key') });
  const httpsWith = (): HttpsServer => createHttpsServer(tlsPair(), (_request, response) => response.end('well'));
  const talking = (): NetServer => createNetServer((socket) => void socket.write('220 ready\r\n'));

  test.each([
    ['tcp', { type: 'tcp' }, talking, 'L4OK'],
    ['tcp that listens', { type: 'tcp', expect: '220' }, talking, 'L7OK'],
    ['tls', { type: 'tls', verify: false }, httpsWith, 'L6OK'],
    ['http', { type: 'http' }, httpWith, 'L7OK'],
    ['https', { type: 'https', verify: false, host: 'shop.test' }, httpsWith, 'L7OK'],
  ])('%s', async (_, settings, make, code) => {
    for (const sendProxy of ['v1', 'v2'] as const) {
      const { port } = await behind(sendProxy === 'v1' ? UNKNOWN : proxyHeaderLocal(), make());
      const target = { pool: 'web', server: 's', address: { host: HOST, port }, sendProxy };
      const result = await new Promise((done) => void startProbe(target, checkOf(settings), 2_000, done));
      expect(result).toMatchObject({ ok: true, code });
    }
  });

  test.each([
    [{ type: 'tcp' }, 'L4CON', 'connection refused'],
    [{ type: 'tls' }, 'L4CON', 'connection refused'],
    [{ type: 'http' }, 'L4CON', 'connection refused'],
    [{ type: 'https' }, 'L4CON', 'connection refused'],
  ])('%j of a port where nothing listens', async (settings, code, message) => {
    const target = {
      pool: 'web',
      server: 's',
      address: { host: HOST, port: await closedPort() },
      sendProxy: 'v2' as const,
    };
    const result = await new Promise((done) => void startProbe(target, checkOf(settings), 2_000, done));
    expect(result).toMatchObject({ ok: false, code, message });
  });

  test.each([{ type: 'tls' }, { type: 'https' }])('%j verifies the name of the address', async (settings) => {
    const { port } = await behind(proxyHeaderLocal(), httpsWith());
    const target = { pool: 'web', server: 's', address: { host: HOST, port }, sendProxy: 'v2' as const };
    const ca = `${files.folder}/authority.crt`;
    const judge = (more: Record<string, unknown>) =>
      new Promise((done) => void startProbe(target, checkOf({ ...settings, ca, ...more }), 2_000, done));
    expect(await judge({})).toMatchObject({ ok: true });
    expect(await judge({ serverName: 'other.test' })).toMatchObject({ ok: false, code: 'L6RSP' });
  });

  test.skipIf(!has('haproxy'))('a whole node keeps HAProxy with accept-proxy up', async () => {
    const [port, front, api, folder] = [await closedPort(), await closedPort(), await closedPort(), tempFolder()];
    writeFileSync(
      join(folder, 'haproxy.cfg'),
      `defaults
  mode http
  timeout client 5s
frontend f
  bind ${HOST}:${port} accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src]"
`,
    );
    await startProgram('haproxy', ['-f', join(folder, 'haproxy.cfg')], port);
    const file = join(folder, 'node.yaml');
    const backend = ['sendProxy: v2', 'check: { type: http, interval: 50ms, rise: 1, fall: 1 }'];
    writeFileSync(file, yamlOf({ api, port: front, servers: [`ha ${HOST}:${port}`], backend }));
    const node = await RunningNode.start(file, api);
    await node.healthIs('web/ha', 'up');
    expect(bodyOf(await talk(front, getAndClose()))).toBe(HOST);
  });
});
