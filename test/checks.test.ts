/** Each kind of check against real servers on loopback: every success and failure, once, and nothing after an abort. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, watch } from 'node:fs';
import { createServer as createHttpsServer } from 'node:https';
import { connect, createServer } from 'node:net';
import type { Socket } from 'node:net';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { createServer as createTlsServer } from 'node:tls';
import { Worker } from 'node:worker_threads';
import { describe, expect, onTestFinished, test } from 'vitest';
import { startProbe } from '../src/checks/probe.ts';
import type { ProbeResult } from '../src/checks/outcome.ts';
import { loadConfig } from '../src/config/load.ts';
import type { CheckConfig } from '../src/config/schema.ts';
import { listening, startWeb, tempFolder, within, writeFile } from './nodeHelpers.ts';
import { has } from './packages.ts';
import { freePort } from './ports.ts';

/** A check as a configuration would have it, defaults included. */
const checkOf = (settings: Record<string, unknown>): CheckConfig => {
  const file = { backends: { web: { check: settings, servers: [{ name: 'web1', address: 'h:1' }] } } };
  const loaded = loadConfig(JSON.stringify(file), {}, '/');
  if ('problems' in loaded) throw new Error(JSON.stringify(loaded.problems));
  return loaded.config.backends['web']!.check as CheckConfig;
};

const targetAt = (host: string, port: number) => ({ pool: 'web', server: 'web1', address: { host, port } });

const probe = async (
  settings: Record<string, unknown>,
  { host = '127.0.0.1', port = 1, timeoutMs = 2000 } = {},
): Promise<ProbeResult> => {
  let count = 0;
  const result = await within(
    'the outcome',
    new Promise<ProbeResult>((done) => {
      startProbe(targetAt(host, port), checkOf(settings), timeoutMs, (outcome) => {
        count++;
        done(outcome);
      });
    }),
  );
  // What a second outcome would come from is under way by now.
  await new Promise((done) => setImmediate(done));
  expect(count).toBe(1);
  expect(result.durationMs).toBeGreaterThanOrEqual(0);
  expect(Math.round(result.durationMs * 1000) / 1000).toBe(result.durationMs);
  return result;
};

const ok = (code: string, message: unknown = expect.any(String)) => ({ ok: true, code, message });
const bad = (code: string, message: unknown = expect.any(String)) => ({ ok: false, code, message });

/** A server that says what it is told to when it is connected to. */
const startTalker = (onConnect: (socket: Socket) => void) => listening(createServer(onConnect));

/** A port on which the kernel completes no more connections: the queue of a thread that never accepts is full. */
const startFullPort = async (): Promise<number> => {
  const thread = new Worker(
    `const { createServer } = require('node:net');
     const { parentPort } = require('node:worker_threads');
     const server = createServer();
     server.listen(0, '127.0.0.1', 1, () => {
       parentPort.postMessage(server.address().port);
       setImmediate(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0));
     });`,
    { eval: true },
  );
  const sockets: Socket[] = [];
  onTestFinished(async () => {
    for (const socket of sockets) socket.destroy();
    await thread.terminate();
  });
  const [port] = (await once(thread, 'message')) as [number];
  for (let index = 0; index < 8; index++) sockets.push(connect(port, '127.0.0.1').on('error', () => {}));
  // Those that fit are connected; the rest will wait for longer than any check here.
  await once(sockets[0]!, 'connect');
  await once(sockets[1]!, 'connect');
  return port;
};

describe('icmp', () => {
  test('L3OK', async () => {
    expect(await probe({ type: 'icmp' })).toMatchObject(ok('L3OK'));
  });

  const hasIpv6 = Object.values(networkInterfaces()).some((list) => list?.some(({ address }) => address === '::1'));
  test.skipIf(!hasIpv6)('L3OK on ::1', async () => {
    expect(await probe({ type: 'icmp' }, { host: '::1' })).toMatchObject(ok('L3OK'));
  });

  test('L3TOUT when no reply comes in time', async () => {
    let turns = 0;
    // Keeps the loop so busy that the timer is due before any reply can be read.
    const result = probe({ type: 'icmp' }, { timeoutMs: 1 });
    const busyUntil = performance.now() + 20;
    while (performance.now() < busyUntil) turns++;
    expect(turns).toBeGreaterThan(0);
    expect(await result).toMatchObject(bad('L3TOUT', 'no echo reply within 1 ms'));
  });

  test('L3ERR for what no echo request can be sent to', async () => {
    // Broadcasts take an option that the socket doesn't have, so the kernel sends nothing.
    expect(await probe({ type: 'icmp' }, { host: '255.255.255.255' })).toMatchObject(
      bad('L3ERR', expect.stringContaining('could not be sent')),
    );
  });

  test('a hundred at once, each with its own reply', async () => {
    const all = await Promise.all(Array.from({ length: 100 }, () => probe({ type: 'icmp' })));
    expect(all.every((result) => result.ok)).toBe(true);
  });
});

describe('tcp', () => {
  test('L4OK', async () => {
    expect(await probe({ type: 'tcp' }, { port: await startTalker(() => {}) })).toMatchObject(ok('L4OK'));
  });

  test('another port than that of the traffic', async () => {
    const port = await startTalker(() => {});
    expect(await probe({ type: 'tcp', port }, { port: await freePort() })).toMatchObject(ok('L4OK'));
  });

  test('L4CON', async () => {
    expect(await probe({ type: 'tcp' }, { port: await freePort() })).toMatchObject(bad('L4CON', 'connection refused'));
  });

  test('L4TOUT', async () => {
    expect(await probe({ type: 'tcp' }, { port: await startFullPort(), timeoutMs: 100 })).toMatchObject(
      bad('L4TOUT', 'no connection within 100 ms'),
    );
  });

  test.each([
    ['send and expect', { send: 'PING\r\n', expect: 'PONG' }, ok('L7OK')],
    ['expectPattern', { send: 'PING\r\n', expectPattern: '^PONG \\d+' }, ok('L7OK')],
    ['both', { send: 'PING\r\n', expect: 'PONG', expectPattern: '4.$' }, ok('L7OK')],
  ])('L7OK by %s, though the answer comes in pieces', async (_what, settings, outcome) => {
    const port = await startTalker((socket) => {
      socket.on('data', (chunk) => {
        if (chunk.toString() !== 'PING\r\n') return;
        socket.write('PO', () => setImmediate(() => socket.write('NG 42')));
      });
    });
    expect(await probe({ type: 'tcp', ...settings }, { port })).toMatchObject(outcome);
  });

  test('a banner without sending', async () => {
    const port = await startTalker((socket) => socket.write('220 ready\r\n'));
    expect(await probe({ type: 'tcp', expect: '220' }, { port })).toMatchObject(ok('L7OK'));
  });

  test('L7RSP when the server closes before, or resets', async () => {
    const closing = await startTalker((socket) => socket.end('421 go away\r\n'));
    expect(await probe({ type: 'tcp', expect: '220' }, { port: closing })).toMatchObject(
      bad('L7RSP', 'connection closed before the expected answer'),
    );
    const resetting = await startTalker((socket) => socket.once('data', () => socket.resetAndDestroy()));
    expect(await probe({ type: 'tcp', send: 'x', expect: '220' }, { port: resetting })).toMatchObject(
      bad('L7RSP', 'connection reset by the server'),
    );
  });

  test('L7RSP when the answer grows without end', async () => {
    const port = await startTalker((socket) => socket.write('x'.repeat(200_000)));
    expect(await probe({ type: 'tcp', expect: 'y' }, { port })).toMatchObject(bad('L7RSP'));
  });

  test('L7TOUT', async () => {
    const port = await startTalker((socket) => socket.write('something else'));
    expect(await probe({ type: 'tcp', expect: '220' }, { port, timeoutMs: 100 })).toMatchObject(
      bad('L7TOUT', 'no matching answer within 100 ms'),
    );
  });

  test('what is sent without an expectation arrives', async () => {
    let arrived = () => {};
    const arrival = new Promise<void>((done) => (arrived = done));
    const port = await startTalker((socket) => socket.on('data', () => arrived()));
    expect(await probe({ type: 'tcp', send: 'hello' }, { port })).toMatchObject(ok('L4OK'));
    await within('what was sent', arrival, 2000);
  });
});

const makeCertificates = (folder: string): void => {
  const script = `
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3 -subj "/CN=Test CA" -keyout ca.key -out ca.crt
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=web.test" -keyout web.key -out web.csr
    printf 'subjectAltName=DNS:web.test' > ext
    openssl x509 -req -in web.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out web.crt
    openssl x509 -req -in web.csr -CA ca.crt -CAkey ca.key -CAcreateserial -not_before 20200101000000Z -not_after 20200102000000Z -extfile ext -out old.crt ||
    openssl x509 -req -in web.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days -1 -extfile ext -out old.crt
    openssl req -x509 -key web.key -days 2 -subj "/CN=web.test" -addext subjectAltName=DNS:web.test -out self.crt`;
  execFileSync('sh', ['-c', script], { cwd: folder, stdio: 'pipe' });
};

describe.skipIf(!has('openssl'))('tls', () => {
  const startTls = (folder: string, certificate: string) =>
    listening(
      createTlsServer(
        { cert: readFileSync(join(folder, certificate)), key: readFileSync(join(folder, 'web.key')) },
        (socket) => socket.on('error', () => socket.destroy()),
      ),
    );

  test('L6OK and every reason against it', async () => {
    const folder = tempFolder();
    makeCertificates(folder);
    const ca = join(folder, 'ca.crt');
    const good = { port: await startTls(folder, 'web.crt') };
    const old = { port: await startTls(folder, 'old.crt') };
    const self = { port: await startTls(folder, 'self.crt') };
    expect(await probe({ type: 'tls', ca, serverName: 'web.test' }, good)).toMatchObject(ok('L6OK', 'TLSv1.3'));
    expect(await probe({ type: 'tls', ca, serverName: 'other.test' }, good)).toMatchObject(
      bad('L6RSP', expect.stringMatching(/other\.test/)),
    );
    // Without a name the address is what the certificate must be for.
    expect(await probe({ type: 'tls', ca }, good)).toMatchObject(bad('L6RSP', expect.stringMatching(/127\.0\.0\.1/)));
    expect(await probe({ type: 'tls', serverName: 'web.test' }, good)).toMatchObject(bad('L6RSP'));
    expect(await probe({ type: 'tls', ca, serverName: 'web.test' }, old)).toMatchObject(
      bad('L6RSP', expect.stringMatching(/expired/)),
    );
    expect(await probe({ type: 'tls', ca, serverName: 'web.test' }, self)).toMatchObject(
      bad('L6RSP', expect.stringMatching(/self.signed/)),
    );
    for (const at of [good, old, self]) {
      expect(await probe({ type: 'tls', verify: false }, at)).toMatchObject(ok('L6OK', 'TLSv1.3'));
    }
  });

  test('https', async () => {
    const folder = tempFolder();
    makeCertificates(folder);
    const ca = join(folder, 'ca.crt');
    const server = createHttpsServer(
      { cert: readFileSync(join(folder, 'web.crt')), key: readFileSync(join(folder, 'web.key')) },
      (request, response) => response.writeHead(request.url === '/healthz' ? 200 : 404).end('fine'),
    );
    const port = await listening(server);
    const check = { type: 'https', ca, serverName: 'web.test' };
    expect(await probe({ ...check, path: '/healthz', body: 'fine' }, { port })).toMatchObject(ok('L7OK', '200 OK'));
    expect(await probe(check, { port })).toMatchObject(bad('L7STS', '404 Not Found'));
    expect(await probe({ ...check, serverName: 'other.test' }, { port })).toMatchObject(bad('L6RSP'));
    expect(await probe({ type: 'https', verify: false, path: '/healthz' }, { port })).toMatchObject(ok('L7OK'));
    const silent = await startTalker(() => {});
    expect(await probe(check, { port: silent, timeoutMs: 100 })).toMatchObject(
      bad('L6TOUT', 'no handshake within 100 ms'),
    );
    expect(await probe(check, { port: await freePort() })).toMatchObject(bad('L4CON', 'connection refused'));
  });

  test('a renewed authority in the same file is trusted from then on', async () => {
    const folder = tempFolder();
    makeCertificates(folder);
    const at = { port: await startTls(folder, 'web.crt') };
    const ca = join(folder, 'trusted.crt');
    execFileSync('cp', ['self.crt', 'trusted.crt'], { cwd: folder });
    expect(await probe({ type: 'tls', ca, serverName: 'web.test' }, at)).toMatchObject(bad('L6RSP'));
    execFileSync('cp', ['ca.crt', 'trusted.crt'], { cwd: folder });
    expect(await probe({ type: 'tls', ca, serverName: 'web.test' }, at)).toMatchObject(ok('L6OK', 'TLSv1.3'));
  });
});

describe('tls without a TLS server', () => {
  test('L4CON, L4TOUT, L6TOUT, L6RSP', async () => {
    expect(await probe({ type: 'tls' }, { port: await freePort() })).toMatchObject(bad('L4CON', 'connection refused'));
    expect(await probe({ type: 'tls' }, { port: await startFullPort(), timeoutMs: 100 })).toMatchObject(
      bad('L4TOUT', 'no connection within 100 ms'),
    );
    const silent = await startTalker(() => {});
    expect(await probe({ type: 'tls' }, { port: silent, timeoutMs: 100 })).toMatchObject(
      bad('L6TOUT', 'no handshake within 100 ms'),
    );
    const plain = await startTalker((socket) => socket.end('220 not TLS\r\n'));
    expect(await probe({ type: 'tls' }, { port: plain })).toMatchObject(bad('L6RSP'));
    const closing = await startTalker((socket) => socket.end());
    expect(await probe({ type: 'tls' }, { port: closing })).toMatchObject(bad('L6RSP'));
  });

  test('an authority that is no certificate is an outcome, not an exception', async () => {
    const ca = writeFile(tempFolder(), 'ca.crt', 'not a certificate\n');
    const check = { ...checkOf({ type: 'tls' }), ca } as CheckConfig;
    const port = await startTalker(() => {});
    const result = await new Promise<ProbeResult>((done) => startProbe(targetAt('127.0.0.1', port), check, 500, done));
    expect(result.ok).toBe(false);
  });
});

describe('http', () => {
  test('what is asked: method, path, host, headers', async () => {
    const asked: unknown[] = [];
    const web = await startWeb('web1', (request, response) => {
      const { method, url, headers } = request;
      asked.push({ method, url, host: headers.host, via: headers['x-via'], agent: headers['user-agent'] });
      response.end('fine');
    });
    expect(await probe({ type: 'http', path: '/a?b=c' }, web)).toMatchObject(ok('L7OK', '200 OK'));
    const settings = { type: 'http', method: 'HEAD', path: '/x', host: 'shop.test', headers: { 'x-via': 'check' } };
    expect(await probe(settings, web)).toMatchObject(ok('L7OK'));
    expect(asked).toEqual([
      { method: 'GET', url: '/a?b=c', host: web.address, via: undefined, agent: 'understudy-check' },
      { method: 'HEAD', url: '/x', host: 'shop.test', via: 'check', agent: 'understudy-check' },
    ]);
  });

  test('L7STS by status ranges', async () => {
    const web = await startWeb('web1', (request, response) => {
      response.writeHead(Number(request.url!.slice(1))).end();
    });
    const statusOf = async (path: string, wanted?: unknown) =>
      probe({ type: 'http', path, ...(wanted === undefined ? {} : { expect: wanted }) }, web);
    expect(await statusOf('/399')).toMatchObject(ok('L7OK', '399'));
    expect(await statusOf('/404')).toMatchObject(bad('L7STS', '404 Not Found'));
    expect(await statusOf('/503')).toMatchObject(bad('L7STS', '503 Service Unavailable'));
    expect(await statusOf('/503', [200, '500-503'])).toMatchObject(ok('L7OK'));
    expect(await statusOf('/201', 200)).toMatchObject(bad('L7STS', '201 Created'));
  });

  test('body and bodyPattern', async () => {
    const web = await startWeb('web1', (_request, response) => response.end('{"status":"fine","n":42}'));
    expect(await probe({ type: 'http', body: '"fine"' }, web)).toMatchObject(ok('L7OK', '200 OK'));
    expect(await probe({ type: 'http', bodyPattern: 'n":\\d+' }, web)).toMatchObject(ok('L7OK'));
    expect(await probe({ type: 'http', body: 'ill' }, web)).toMatchObject(
      bad('L7RSP', '200 OK, but the body is not the expected one'),
    );
    expect(await probe({ type: 'http', body: '"fine"', bodyPattern: '^n' }, web)).toMatchObject(bad('L7RSP'));
  });

  test('a body without end is looked at as far as the limit', async () => {
    const web = await startWeb('web1', (_request, response) => response.write('x'.repeat(1024 * 1024)));
    expect(await probe({ type: 'http', body: 'y' }, web)).toMatchObject(bad('L7RSP'));
  });

  test('L4CON, L4TOUT, L7TOUT, L7RSP', async () => {
    expect(await probe({ type: 'http' }, { port: await freePort() })).toMatchObject(bad('L4CON', 'connection refused'));
    expect(await probe({ type: 'http' }, { port: await startFullPort(), timeoutMs: 100 })).toMatchObject(
      bad('L4TOUT', 'no connection within 100 ms'),
    );
    const silent = await startTalker(() => {});
    expect(await probe({ type: 'http' }, { port: silent, timeoutMs: 100 })).toMatchObject(
      bad('L7TOUT', 'no complete answer within 100 ms'),
    );
    const halfBody = await startTalker((socket) => socket.write('HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf'));
    expect(await probe({ type: 'http', body: 'whole' }, { port: halfBody, timeoutMs: 100 })).toMatchObject(
      bad('L7TOUT'),
    );
    const garbage = await startTalker((socket) => socket.end('220 not HTTP\r\n'));
    expect(await probe({ type: 'http' }, { port: garbage })).toMatchObject(bad('L7RSP'));
    const closing = await startTalker((socket) => socket.once('data', () => socket.end()));
    expect(await probe({ type: 'http' }, { port: closing })).toMatchObject(bad('L7RSP'));
    const broken = await startTalker((socket) =>
      socket.once('data', () => socket.end('HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf')),
    );
    expect(await probe({ type: 'http', body: 'whole' }, { port: broken })).toMatchObject(bad('L7RSP'));
  });

  test('what can not be sent is an outcome, not an exception', async () => {
    const web = await startWeb('web1');
    const check = { ...checkOf({ type: 'http' }), path: '/a b' } as CheckConfig;
    const result = await new Promise<ProbeResult>((done) =>
      startProbe(targetAt('127.0.0.1', web.port), check, 500, done),
    );
    expect(result.ok).toBe(false);
  });
});

const isRunning = (pid: number): boolean => {
  try {
    // A zombie has ended; only its parent hasn't looked yet.
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
};

describe('script', () => {
  test('PROCOK, PROCERR by status and by signal', async () => {
    expect(await probe({ type: 'script', command: ['true'] })).toMatchObject(ok('PROCOK'));
    expect(await probe({ type: 'script', command: ['sh', '-c', 'exit 3'] })).toMatchObject(
      bad('PROCERR', 'sh ended with status 3'),
    );
    expect(await probe({ type: 'script', command: ['sh', '-c', 'kill -TERM $$'] })).toMatchObject(
      bad('PROCERR', 'sh was ended by SIGTERM'),
    );
  });

  test('PROCERR of a program that is not there', async () => {
    const command = ['/nowhere/check'];
    expect(await probe({ type: 'script', command })).toMatchObject(
      bad('PROCERR', expect.stringMatching(/^\/nowhere\/check could not be run: .*ENOENT/)),
    );
    expect(await probe({ type: 'script', command: ['/etc/hostname'] })).toMatchObject(bad('PROCERR'));
  });

  test('its environment: what it checks, and nothing of ours', async () => {
    process.env['UNDERSTUDY_TEST_SECRET'] = 'x';
    onTestFinished(() => {
      delete process.env['UNDERSTUDY_TEST_SECRET'];
    });
    const file = join(tempFolder(), 'environment');
    const command = ['sh', '-c', `env > ${file}`];
    expect(await probe({ type: 'script', command }, { port: 81 })).toMatchObject(ok('PROCOK'));
    const lines = readFileSync(file, 'utf8').split('\n');
    expect(lines).toEqual(
      expect.arrayContaining([
        'UNDERSTUDY_POOL=web',
        'UNDERSTUDY_SERVER=web1',
        'UNDERSTUDY_ADDRESS=127.0.0.1',
        'UNDERSTUDY_PORT=81',
      ]),
    );
    expect(lines.join()).not.toContain('UNDERSTUDY_TEST_SECRET');
  });

  test('PROCTOUT ends the whole process group, grandchildren included', async () => {
    const folder = tempFolder();
    const file = join(folder, 'pids');
    const command = ['sh', '-c', `sh -c 'sleep 600 & echo $$ $! > ${file}.new; mv ${file}.new ${file}; wait' & wait`];
    expect(await probe({ type: 'script', command }, { timeoutMs: 500 })).toMatchObject(
      bad('PROCTOUT', 'sh did not end within 500 ms'),
    );
    const pids = readFileSync(file, 'utf8').trim().split(' ').map(Number);
    expect(pids).toHaveLength(2);
    await within('the end of the group', untilNoneRuns(pids));
  });

  test('what a script leaves in the background ends with it', async () => {
    const file = join(tempFolder(), 'pid');
    const command = ['sh', '-c', `sleep 600 & echo $! > ${file}`];
    expect(await probe({ type: 'script', command })).toMatchObject(ok('PROCOK'));
    await within('the end of the group', untilNoneRuns([Number(readFileSync(file, 'utf8'))]));
  });
});

/** Processes of another parent tell nobody of their end: looked at each turn of the loop. */
const untilNoneRuns = async (pids: number[]): Promise<void> => {
  while (pids.some(isRunning)) await new Promise((done) => setImmediate(done));
};

describe('abort', () => {
  test('of each kind: no outcome, and nothing is left running', async () => {
    const silent = await startTalker(() => {});
    const file = join(tempFolder(), 'pid');
    const outcomes: ProbeResult[] = [];
    const kinds: Record<string, unknown>[] = [
      { type: 'icmp' },
      { type: 'tcp' },
      { type: 'tcp', expect: 'never' },
      { type: 'tls' },
      { type: 'http' },
      { type: 'https' },
      { type: 'script', command: ['sh', '-c', `echo $$ > ${file}.new; mv ${file}.new ${file}; exec sleep 600`] },
    ];
    const started = new Promise<void>((done) => {
      const watcher = watch(join(file, '..'), () => {
        if (!existsSync(file)) return;
        watcher.close();
        done();
      });
    });
    const aborts = kinds.map((settings) =>
      startProbe(
        targetAt('127.0.0.1', silent),
        checkOf(settings),
        settings['type'] === 'script' ? 10_000 : 60,
        (outcome) => outcomes.push(outcome),
      ),
    );
    // Those of icmp and tcp are over at once, before anything could have been heard.
    for (const abort of aborts.slice(0, -1)) abort();
    await within('the start of the script', started);
    aborts.at(-1)!();
    await within('the end of the script', untilNoneRuns([Number(readFileSync(file, 'utf8'))]));
    // Longer than the time that each probe had.
    await new Promise((done) => setTimeout(done, 120));
    expect(outcomes).toEqual([]);
    for (const abort of aborts) abort();
  });
});
