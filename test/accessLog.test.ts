/** The access log from a worker's record to a line in its place, and the lines beside HAProxy's own. */
import { execFileSync, spawn } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import {
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:http';
import { connect } from 'node:net';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { z } from 'zod';
import { accessLogOf, frontendLog, log, withLogPath } from '../src/config/log.ts';
import type { AccessLogConfig } from '../src/config/log.ts';
import { libc } from '../src/net/libc.ts';
import { openSocket, SOCK_DGRAM } from '../src/net/socket.ts';
import { socketAddressOf } from '../src/net/tcpSocket.ts';
import { AccessLog, isNormal, newAccessRecord } from '../src/proxy/accessLog.ts';
import type { AccessRecord, CookieFlags, FrontendLog, Termination } from '../src/proxy/accessLog.ts';
import { formatterOf } from '../src/proxy/accessLogFormat.ts';
import type { LogFormat } from '../src/proxy/accessLogFormat.ts';
import { allocateRing, figuresOfRing, RingReader, RingWriter } from '../src/proxy/accessLogRing.ts';
import { AccessLogWriter } from '../src/proxy/accessLogWriter.ts';
import type { AccessLogReport } from '../src/proxy/accessLogWriter.ts';
import { FileSink } from '../src/proxy/logSink.ts';
import { syslogFrame } from '../src/proxy/syslog.ts';
import { startHaproxy } from './haproxy.ts';
import { eventually } from './proxyHelpers.ts';

const makeFolder = (): string => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  return folder;
};

const line = (format: LogFormat, record: AccessRecord, requestHeaders: string[] = [], responseHeaders: string[] = []) =>
  formatterOf({ format, requestHeaders, responseHeaders })(record);

/** The one of HAProxy's manual, section 8.2.3. */
const request = (changes: Partial<AccessRecord> = {}): AccessRecord => ({
  ...newAccessRecord('http'),
  startedMs: new Date(2009, 1, 6, 12, 14, 14, 655).getTime(),
  requestMs: 10,
  queueMs: 0,
  connectMs: 30,
  responseMs: 69,
  totalMs: 109,
  clientAddress: '10.0.1.2',
  clientPort: 33_317,
  frontend: 'http-in',
  backend: 'static',
  server: 'srv1',
  status: 200,
  bytesRead: 2750,
  bytesUploaded: 300,
  method: 'GET',
  target: '/index.html',
  version: 'HTTP/1.1',
  host: 'shop.example',
  processConnections: 1,
  frontendConnections: 1,
  backendConnections: 1,
  serverConnections: 1,
  ...changes,
});

describe('HAProxy’s forms, by the examples of its manual', () => {
  test('httplog (section 8.2.3)', () => {
    expect(
      line('httplog', request({ requestHeaders: ['1wt.eu'], responseHeaders: [null] }), ['host'], ['server']),
    ).toBe(
      '10.0.1.2:33317 [06/Feb/2009:12:14:14.655] http-in static/srv1 10/0/30/69/109 200 2750 - - ---- 1/1/1/1/0 0/0 ' +
        '{1wt.eu} {} "GET /index.html HTTP/1.1"',
    );
  });

  test('tcplog (section 8.2.2)', () => {
    const record: AccessRecord = {
      ...newAccessRecord('tcp'),
      startedMs: new Date(2009, 1, 6, 12, 12, 51, 443).getTime(),
      queueMs: 0,
      connectMs: 0,
      totalMs: 5007.9,
      clientAddress: '10.0.1.2',
      clientPort: 33_313,
      frontend: 'fnt',
      backend: 'bck',
      server: 'srv1',
      bytesRead: 212,
      retries: 3,
    };
    const expected = '10.0.1.2:33313 [06/Feb/2009:12:12:51.443] fnt bck/srv1 0/0/5007 212 -- 0/0/0/0/3 0/0';
    for (const format of ['tcplog', 'httplog', 'combined'] as const) expect(line(format, record)).toBe(expected);
  });

  test('what did not come about, TLS, and a redispatch', () => {
    const record = request({
      server: null,
      backend: 'http-in',
      requestMs: -1,
      queueMs: -1,
      connectMs: -1,
      responseMs: -1,
      status: 0,
      method: '',
      tlsVersion: 'TLSv1.3',
      retries: 2,
      redispatched: true,
      termination: 'CR',
    });
    expect(line('httplog', record)).toMatch(
      / http-in~ http-in\/<NOSRV> -1\/-1\/-1\/-1\/109 -1 2750 - - CR-- 1\/1\/1\/1\/\+2 0\/0 "<BADREQ>"$/,
    );
  });

  test('section 8.6: what is not printable, # and " are written as #XX, in headers { | } too', () => {
    const record = request({ target: '/a"b#c{|}\r\n\x7f\xe9 d', requestHeaders: ['a"b#c{|}\t\xff d'] });
    const [headers, target] = /\{(.*)\} "GET (.*) HTTP/.exec(line('httplog', record))!.slice(1);
    expect(target).toBe('/a#22b#23c{|}#0D#0A#7F#E9 d');
    expect(headers).toBe('a#22b#23c#7B#7C#7D#09#FF d');
  });
});

test('combined: Apache’s and nginx’s', () => {
  const record = request({ user: 'zoe', requestHeaders: ['http://a/?"', null], target: '/\\\n' });
  expect(line('combined', record)).toMatch(
    /^10\.0\.1\.2 - zoe \[06\/Feb\/2009:12:14:14 [+-]\d{4}\] "GET \/\\x5C\\x0A HTTP\/1\.1" 200 2750 "http:\/\/a\/\?\\x22" "-"$/,
  );
  expect(line('combined', request({ method: '', status: 400, user: 'a b' }))).toMatch(
    / - a\\x20b \[.*\] "-" 400 2750 "-" "-"$/,
  );
});

describe('json', () => {
  test('the keys of a request, in their order', () => {
    const record = request({
      startedMs: Date.UTC(2026, 10, 25, 13, 55, 36) + 7.25,
      responseMs: 69.1234,
      queueMs: -1,
      tlsVersion: 'TLSv1.3',
      tlsCipher: 'TLS_AES_128_GCM_SHA256',
      serverName: 'shop.example',
      user: 'zoe',
      requestId: 'id-1',
      requestHeaders: ['curl', null],
      responseHeaders: ['7'],
      cookies: 'NI',
    });
    expect(line('json', record, ['user-agent', 'referer'], ['age'])).toBe(
      '{"time":"2026-11-25T13:55:36.007250Z","mode":"http","client":"10.0.1.2","clientPort":33317,' +
        '"frontend":"http-in","backend":"static","server":"srv1","method":"GET","target":"/index.html",' +
        '"version":"HTTP/1.1","host":"shop.example","status":200,"bytesRead":2750,"bytesUploaded":300,' +
        '"handshakeMs":0,"idleMs":0,"requestMs":10,"queueMs":null,"connectMs":30,"responseMs":69.123,"dataMs":0.877,' +
        '"totalMs":109,"termination":"--NI","retries":0,"redispatched":false,"processConnections":1,' +
        '"frontendConnections":1,"backendConnections":1,"serverConnections":1,"serverQueue":0,"backendQueue":0,' +
        '"tlsVersion":"TLSv1.3","tlsCipher":"TLS_AES_128_GCM_SHA256","serverName":"shop.example","user":"zoe",' +
        '"requestId":"id-1","requestHeaders":{"user-agent":"curl","referer":null},' +
        '"responseHeaders":{"age":"7"}}',
    );
  });

  test('a connection of mode tcp has no keys of HTTP', () => {
    const record: AccessRecord = { ...newAccessRecord('tcp'), handshakeMs: 5, queueMs: 1, connectMs: 2, totalMs: 20 };
    expect(Object.keys(JSON.parse(line('json', record)))).toEqual(
      (
        'time mode client clientPort frontend backend server bytesRead bytesUploaded handshakeMs queueMs connectMs ' +
        'dataMs totalMs termination retries redispatched processConnections frontendConnections backendConnections ' +
        'serverConnections serverQueue backendQueue'
      ).split(' '),
    );
    expect(JSON.parse(line('json', record))).toMatchObject({ dataMs: 12, termination: '--', server: null });
  });
});

test('whatever a client sends, a line is one line of ASCII without controls; JSON gives it back byte by byte', () => {
  const bytes = fc.uint8Array({ maxLength: 40 }).map((some) => Buffer.from(some).toString('latin1'));
  fc.assert(
    fc.property(bytes, bytes, bytes, bytes, (target, host, value, user) => {
      const record = request({
        target,
        host,
        user,
        requestId: value,
        requestHeaders: [value],
        responseHeaders: [value],
      });
      for (const format of ['json', 'httplog', 'combined'] as const)
        expect(line(format, record, ['a'], ['b'])).toMatch(/^[\x20-\x7e]+$/);
      expect(JSON.parse(line('json', record, ['a'], ['b']))).toMatchObject({
        target,
        host,
        user,
        requestId: value,
        requestHeaders: { a: value },
        responseHeaders: { b: value },
      });
    }),
  );
});

const HTTPLOG = new RegExp(
  String.raw`^(\S+):(\d+) \[(\d+)/(\w+)/(\d+):(\d+):(\d+):(\d+)\.(\d+)\] (\S+) (\S+)/(\S+) ` +
    String.raw`(-?\d+)/(-?\d+)/(-?\d+)/(-?\d+)/(\d+) (-?\d+) (\d+) - - (..)(..) ` +
    String.raw`(\d+)/(\d+)/(\d+)/(\d+)/(\+?)(\d+) (\d+)/(\d+)(?: \{(.*?)\} \{(.*?)\})? "(.*)"$`,
);
const TCPLOG = new RegExp(
  String.raw`^(\S+):(\d+) \[(\d+)/(\w+)/(\d+):(\d+):(\d+):(\d+)\.(\d+)\] (\S+) (\S+)/(\S+) ` +
    String.raw`(-?\d+)/(-?\d+)/(\d+) (\d+) (..) (\d+)/(\d+)/(\d+)/(\d+)/(\+?)(\d+) (\d+)/(\d+)$`,
);
const unescape = (text: string) =>
  text.replaceAll(/#([\dA-F]{2})/g, (_, hex) => String.fromCharCode(parseInt(hex, 16)));
const numbers = (texts: string[]) => texts.map(Number) as [number, number, number, number, number, number, number];

/** The beginning of a line: who, when, and where to. */
const opening = (match: RegExpExecArray): Partial<AccessRecord> => {
  const [, clientAddress, port, day, month, year, hour, minute, second, ms, frontend, backend, server] = match;
  return {
    clientAddress: clientAddress!,
    clientPort: Number(port),
    startedMs: new Date(`${month} ${day} ${year} ${hour}:${minute}:${second}.${ms}`).getTime(),
    frontend: frontend!,
    backend: backend!,
    server: server === '<NOSRV>' ? null : server!,
  };
};

/** What HAProxy's line says of the request, as our engine would say it. */
const recordOf = (text: string): AccessRecord => {
  const match = HTTPLOG.exec(text)!;
  expect(match, text).not.toBeNull();
  const [requestMs, queueMs, connectMs, responseMs, totalMs, status, bytesRead] = numbers(match.slice(13, 20));
  const [processConnections, frontendConnections, backendConnections, serverConnections] = numbers(match.slice(22, 26));
  const captures = (some: string | undefined) => some?.split('|').map((value) => unescape(value)) ?? [];
  const [method = '', target = '', version = ''] = match[32] === '<BADREQ>' ? [] : unescape(match[32]!).split(' ');
  return {
    ...newAccessRecord('http'),
    ...opening(match),
    ...{ requestMs, queueMs, connectMs, responseMs, totalMs, bytesRead, method, target, version },
    status: status === -1 ? 0 : status,
    termination: match[20] as Termination,
    cookies: match[21] as CookieFlags,
    ...{ processConnections, frontendConnections, backendConnections, serverConnections },
    redispatched: match[26] === '+',
    retries: Number(match[27]),
    serverQueue: Number(match[28]),
    backendQueue: Number(match[29]),
    requestHeaders: captures(match[30]),
    responseHeaders: captures(match[31]),
  };
};

const send = async (port: number, bytes: string): Promise<void> => {
  const client = connect(port, '127.0.0.1');
  client.on('error', () => {});
  client.write(Buffer.from(bytes, 'latin1'));
  client.resume();
  await once(client, 'close');
};

describe('beside HAProxy itself', () => {
  test('its httplog lines are ours, letter by letter, for the same facts', async () => {
    const server = createServer((_, response) => response.end('hello')).listen(0, '127.0.0.1');
    await once(server, 'listening');
    onTestFinished(() => void server.close());
    const haproxy = await startHaproxy(
      '',
      [
        '  mode http',
        '  log global',
        '  option httplog',
        '  capture request header Host len 32',
        '  capture request header User-Agent len 32',
        '  capture response header X-None len 32',
        '  http-request redirect location /b code 302 if { path /a }',
        '  http-request deny if { path /secret }',
        '  use_backend away if { path /away }',
        '  default_backend back',
        'backend back',
        '  mode http',
        `  server web1 127.0.0.1:${(server.address() as AddressInfo).port}`,
        'backend away',
        '  mode http',
        '  retries 0',
        '  server gone 127.0.0.1:1',
      ].join('\n'),
    );
    const head = 'Host: shop.example\r\nConnection: close\r\nUser-Agent: a "b" #{|}\t\xe9\r\n\r\n';
    const sent = ['/index.html?a="%20|', '/a', '/secret', '/away'].map((path) => `GET ${path} HTTP/1.1\r\n${head}`);
    let lines: string[] = [];
    for (const bytes of [...sent, 'GET / HTTP/1.1\r\nbad header\r\n\r\n']) {
      await send(haproxy.port, bytes);
      // Its threads write each for itself: the next one may be quicker.
      lines = await haproxy.lines(lines.length + 1);
    }
    expect(lines.map((text) => line('httplog', recordOf(text)))).toEqual(lines);
    expect(lines.map((text) => recordOf(text).status)).toEqual([200, 302, 403, 503, 400]);
    expect(lines.map((text) => recordOf(text).termination)).toEqual(['--', 'LR', 'PR', 'SC', 'PR']);
    expect(lines.map((text) => isNormal(recordOf(text)))).toEqual([true, true, false, false, false]);
  });

  test('its tcplog lines too', async () => {
    const server = createServer((_, response) => response.end('hello')).listen(0, '127.0.0.1');
    await once(server, 'listening');
    onTestFinished(() => void server.close());
    const haproxy = await startHaproxy(
      '',
      `  mode tcp\n  log global\n  option tcplog\n  default_backend back\nbackend back\n  mode tcp\n  server web1 127.0.0.1:${(server.address() as AddressInfo).port}`,
    );
    await send(haproxy.port, 'GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n');
    const [text] = await haproxy.lines(1);
    const match = TCPLOG.exec(text!)!;
    expect(match, text).not.toBeNull();
    const [queueMs, connectMs, totalMs, bytesRead] = numbers(match.slice(13, 17));
    const [processConnections, frontendConnections, backendConnections, serverConnections] = numbers(
      match.slice(18, 22),
    );
    const record: AccessRecord = {
      ...newAccessRecord('tcp'),
      ...opening(match),
      ...{ queueMs, connectMs, totalMs, bytesRead },
      termination: match[17] as Termination,
      ...{ processConnections, frontendConnections, backendConnections, serverConnections },
      retries: Number(match[23]),
    };
    expect(line('tcplog', record)).toBe(text);
  });
});

const TO: FrontendLog = { sink: 0, only: 'all', sample: 1, requestHeaders: [], responseHeaders: [] };

const readAll = (memory: SharedArrayBuffer): AccessRecord[] => {
  const reader = new RingReader(memory, newAccessRecord('http'));
  const records: AccessRecord[] = [];
  for (let logged = reader.read(); logged; logged = reader.read()) records.push({ ...logged.record });
  return records;
};

describe('the ring between worker and thread', () => {
  test('every field comes out as it went in, null apart from empty', () => {
    const memory = allocateRing();
    const ring = new RingWriter(memory);
    const full = request({
      mode: 'tcp',
      user: '',
      requestId: 'id',
      requestHeaders: ['a', null, ''],
      responseHeaders: [null],
      redispatched: true,
      retries: 4,
      serverQueue: 5,
      backendQueue: 6,
      startedMs: 1_795_614_936_007.25,
      bytesRead: 2 ** 40,
      termination: 'sH',
      cookies: 'VN',
      tlsCipher: 'x',
      serverName: '\xe9',
    });
    ring.write(full, 7, true);
    ring.write(newAccessRecord('http'), 8, false);
    expect(readAll(memory)).toEqual([full, newAccessRecord('http')]);
  });

  test('texts that are too long are cut, captured fields beyond 16 left out', () => {
    const memory = allocateRing();
    const target = '/'.padEnd(9000, 'x');
    const headers = Array.from({ length: 20 }, (_, index) => String(index));
    new RingWriter(memory).write(request({ target, host: target, requestHeaders: headers }), 0, true);
    const [record] = readAll(memory);
    expect(record!.target).toBe(target.slice(0, 2048));
    expect(record!.host).toBe(target.slice(0, 512));
    expect(record!.requestHeaders).toEqual(headers.slice(0, 16));
  });

  test('in any order of writing and reading: none is lost without being counted, none comes twice or broken', () => {
    const step = fc.oneof(fc.record({ write: fc.nat(250) }), fc.record({ read: fc.nat(2) }));
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        const memory = allocateRing(1024);
        const writer = new RingWriter(memory);
        const reader = new RingReader(memory, newAccessRecord('http'));
        const expected: string[] = [];
        const read: [string | undefined, string | undefined][] = [];
        let dropped = 0;
        let index = 0;
        for (const one of steps) {
          if ('write' in one) {
            const target = `${index++}`.padEnd(one.write, 'x');
            writer.write(request({ target }), 0, true);
            if (figuresOfRing(memory).dropped === dropped) expected.push(target);
            else dropped++;
          } else for (let n = 0; n < one.read; n++) read.push([reader.read()?.record.target, expected.shift()]);
        }
        for (const [found, written] of read) expect(found).toBe(written);
        expect(readAll(memory).map(({ target }) => target)).toEqual(expected);
        expect(figuresOfRing(memory)).toEqual({ logged: index - dropped, dropped });
      }),
      { numRuns: 1_000 },
    );
  });
});

describe('what has a line', () => {
  const logged = (records: AccessRecord[], to: Partial<FrontendLog>): AccessRecord[] => {
    const memory = allocateRing();
    const accessLog = new AccessLog(memory);
    for (const record of records) accessLog.log(record, { ...TO, ...to });
    return readAll(memory);
  };
  const abnormal = [
    request({ status: 503 }),
    request({ termination: 'cD' }),
    request({ retries: 1 }),
    request({ redispatched: true }),
  ];
  const normal = [request(), request({ status: 404 }), request({ termination: 'LR' }), request({ termination: '--' })];

  test('only errors: those that HAProxy’s dontlog-normal keeps', () => {
    expect(logged([...normal, ...abnormal], { only: 'errors' })).toEqual(abnormal);
  });

  test('a share: evenly, and all of those with errors', () => {
    const many = Array.from({ length: 1000 }, (_, index) => request({ target: `/${index}` }));
    const some = logged([...many, ...abnormal], { sample: 0.1 });
    expect(some.filter(isNormal).length).toBeGreaterThanOrEqual(99);
    expect(some.filter(isNormal).length).toBeLessThanOrEqual(100);
    expect(some.filter((record) => !isNormal(record))).toEqual(abnormal);
  });
});

const configOf = (access: object): AccessLogConfig => log.parse({ access }).access!;

type Started = { writer: AccessLogWriter; accessLog: AccessLog; reports: AccessLogReport[]; threads: Worker[] };

const startWriter = (): Started => {
  const reports: AccessLogReport[] = [];
  const threads: Worker[] = [];
  const onWorker = (worker: Worker) => threads.push(worker);
  process.on('worker', onWorker);
  const writer = new AccessLogWriter((report) => reports.push(report));
  onTestFinished(async () => {
    process.off('worker', onWorker);
    await writer.close();
  });
  return { writer, accessLog: new AccessLog(writer.memoryOf(0)), reports, threads };
};

const linesOf = (file: string): string[] =>
  existsSync(file) ? readFileSync(file, 'latin1').split('\n').slice(0, -1) : [];
const targetsOf = (file: string): string[] => linesOf(file).map((text) => (JSON.parse(text) as AccessRecord).target);

describe('the thread', () => {
  test('writes what several workers log, each in its order, to the sink of each; closing waits for all', async () => {
    const folder = makeFolder();
    const { writer, accessLog } = startWriter();
    const second = new AccessLog(writer.memoryOf(1));
    const json = writer.sink(configOf({ path: join(folder, 'a.log') }));
    const tcp = writer.sink(configOf({ path: join(folder, 'b.log'), format: 'httplog' }));
    const again = writer.sink(configOf({ path: join(folder, 'a.log'), only: 'errors' }));
    expect([json.sink, tcp.sink, again.sink]).toEqual([0, 1, 0]);
    for (let index = 0; index < 3000; index++) {
      accessLog.log(request({ target: `/first/${index}` }), json);
      second.log(request({ target: `/second/${index}` }), json);
    }
    second.log(newAccessRecord('tcp'), tcp);
    await writer.close();
    const targets = targetsOf(join(folder, 'a.log'));
    for (const worker of ['/first/', '/second/'])
      expect(targets.filter((target) => target.startsWith(worker))).toEqual(
        Array.from({ length: 3000 }, (_, index) => `${worker}${index}`),
      );
    expect(linesOf(join(folder, 'b.log'))).toHaveLength(1);
    expect(writer.figures()).toEqual({ logged: 6001, written: 6001, dropped: 0, lost: 0 });
  });

  test('reopen: lines from then on go to a new file', async () => {
    const folder = makeFolder();
    const file = join(folder, 'access.log');
    const { writer, accessLog } = startWriter();
    const to = writer.sink(configOf({ path: file }));
    accessLog.log(request({ target: '/old' }), to);
    await eventually('the first line', () => linesOf(file).length === 1);
    renameSync(file, `${file}.1`);
    accessLog.log(request({ target: '/between' }), to);
    writer.reopen();
    await eventually('the second line', () => linesOf(`${file}.1`).length === 2);
    accessLog.log(request({ target: '/new' }), to);
    await eventually('the third line', () => linesOf(file).length === 1);
    expect([...targetsOf(`${file}.1`), ...targetsOf(file)]).toEqual(['/old', '/between', '/new']);
  });

  test('a full disk: told once, counted, and the others are written', async () => {
    const file = join(makeFolder(), 'access.log');
    const { writer, accessLog, reports } = startWriter();
    const full = writer.sink(configOf({ path: '/dev/full' }));
    const good = writer.sink(configOf({ path: file }));
    for (let round = 1; round <= 3; round++) {
      accessLog.log(request(), full);
      accessLog.log(request(), good);
      await eventually('the line is lost', () => writer.figures().lost === round);
    }
    await eventually('the others', () => linesOf(file).length === 3);
    expect(reports).toEqual([
      {
        type: 'accessLog.failed',
        code: 'ENOSPC',
        message: expect.stringMatching(/^\/dev\/full takes no lines: ENOSPC/),
      },
    ]);
    expect(writer.figures()).toMatchObject({ written: 3, lost: 3, dropped: 0 });
  });

  test('a file that can’t be opened is tried again, and it is told when it can', async () => {
    const folder = join(makeFolder(), 'logs');
    const { writer, accessLog, reports } = startWriter();
    const to = writer.sink(configOf({ path: join(folder, 'access.log') }));
    accessLog.log(request(), to);
    await eventually('the failure', () => reports.length === 1);
    mkdirSync(folder);
    await eventually('lines are written', () => {
      accessLog.log(request(), to);
      return existsSync(join(folder, 'access.log'));
    });
    await eventually('the recovery', () => reports.length === 2);
    expect(reports.map(({ type }) => type)).toEqual(['accessLog.failed', 'accessLog.recovered']);
    expect(reports[0]).toMatchObject({ code: 'ENOENT' });
  });

  test('one that dies is replaced, and what was logged meanwhile is written', async () => {
    const file = join(makeFolder(), 'access.log');
    const { writer, accessLog, reports, threads } = startWriter();
    const to = writer.sink(configOf({ path: file }));
    await eventually('a thread', () => threads.length === 1);
    await once(threads[0]!, 'online');
    await threads[0]!.terminate();
    for (let index = 0; index < 10; index++) accessLog.log(request({ target: `/${index}` }), to);
    await eventually('all lines', () => linesOf(file).length === 10);
    expect(targetsOf(file)).toEqual(Array.from({ length: 10 }, (_, index) => `/${index}`));
    expect(reports).toMatchObject([{ type: 'accessLog.failed', code: 'THREAD_DIED' }]);
  });

  test('one that is behind: a worker drops and counts, and goes on', async () => {
    const { writer, accessLog } = startWriter();
    const to: FrontendLog = { ...TO, sink: 0 };
    // No sink, no thread: nobody reads.
    for (let index = 0; index < 50_000; index++) accessLog.log(request(), to);
    const { logged, dropped } = writer.figures();
    expect(logged).toBeGreaterThan(10_000);
    expect(logged + dropped).toBe(50_000);
    await writer.close();
  });
});

/** A process that logs to its stdout, closes its log, and tells the figures on stderr. */
const PROGRAM = `
import { AccessLog, newAccessRecord } from '${pathToFileURL(join(import.meta.dirname, '../src/proxy/accessLog.ts')).href}';
import { AccessLogWriter } from '${pathToFileURL(join(import.meta.dirname, '../src/proxy/accessLogWriter.ts')).href}';
const writer = new AccessLogWriter(() => {});
const to = writer.sink({
  path: { kind: 'stdout' }, format: 'json', only: 'all', sample: 1, requestHeaders: [], responseHeaders: [],
  syslog: { format: 'rfc3164', facility: 'local0', tag: 'x' },
});
const accessLog = new AccessLog(writer.memoryOf(0));
for (let index = 0; index < 9000; index++) accessLog.log({ ...newAccessRecord('http'), target: '/' + index }, to);
await writer.close();
console.error(JSON.stringify(writer.figures()));
`;

describe('stdout', () => {
  const run = async (shell: string, reads: boolean) => {
    const file = join(makeFolder(), 'program.mjs');
    writeFileSync(file, PROGRAM);
    const child = spawn('sh', ['-c', shell, 'sh', process.execPath, file], {
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    });
    onTestFinished(() => {
      // What the shell has started is in its group, the reader that stands still too. An empty group is gone.
      try {
        process.kill(-child.pid!, 'SIGKILL');
      } catch (error) {
        expect(error).toMatchObject({ code: 'ESRCH' });
      }
    });
    let text = '';
    let told = '';
    if (reads) child.stdout.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')));
    child.stderr.on('data', (chunk: Buffer) => (told += chunk.toString('latin1')));
    await eventually('the figures', () => told.endsWith('}\n'));
    return { figures: JSON.parse(told) as ReturnType<AccessLogWriter['figures']>, text: () => text };
  };

  test('a socket, as systemd’s, and a pipe: whole lines', async () => {
    for (const shell of ['exec "$@"', '"$@" | cat']) {
      const { figures, text } = await run(shell, true);
      await eventually('all lines', () => text().split('\n').length - 1 === figures.written);
      for (const one of text().split('\n').slice(0, -1)) expect(() => JSON.parse(one) as unknown).not.toThrow();
      expect(figures.written + figures.lost).toBe(9000);
    }
  });

  test.each([
    ['socket', 'exec "$@"'],
    ['pipe', '"$@" | sleep 600'],
  ])(
    'a reader that stands still holds nothing up, the end neither; lines are counted as lost: %s',
    async (_, shell) => {
      const { figures } = await run(shell, false);
      expect(figures.lost).toBeGreaterThan(1000);
      expect(figures.written + figures.lost).toBe(9000);
    },
  );
});

test('a line that was cut off is ended before the next one begins', () => {
  const path = join(makeFolder(), 'fifo');
  execFileSync('mkfifo', [path]);
  const openReader = () => openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  const counts = { written: 0, lost: 0 };
  const failures: string[] = [];
  const sink = new FileSink(path, {
    written: (lines) => (counts.written += lines),
    lost: (lines) => (counts.lost += lines),
    failed: (code) => failures.push(code),
  });
  onTestFinished(() => sink.close());
  const first = openReader();
  for (let index = 0; index < 10; index++) sink.append('x'.repeat(9999));
  sink.flush();
  expect(sink.isWaiting).toBe(true);
  closeSync(first);
  sink.flush();
  expect([failures, counts]).toEqual([['EPIPE'], { written: 6, lost: 4 }]);
  const second = openReader();
  const bytes = Buffer.alloc(100_000);
  expect(bytes.toString('latin1', 0, readSync(second, bytes))).toMatch(/\nx+$/);
  sink.append('whole');
  sink.flush();
  expect(bytes.toString('latin1', 0, readSync(second, bytes))).toBe('\nwhole\n');
  closeSync(second);
  expect(counts).toEqual({ written: 7, lost: 4 });
});

describe('syslog', () => {
  const record = request({ startedMs: new Date(2026, 10, 5, 3, 4, 5).getTime(), totalMs: 1000 });

  test('RFC 3164: priority, date and tag; on this machine without its name', () => {
    const model = { format: 'rfc3164', facility: 'local0', tag: 'shop' } as const;
    expect(syslogFrame(model, false, 'lb1')('text', record, true)).toBe(
      `<134>Nov  5 03:04:06 lb1 shop[${process.pid}]: text`,
    );
    expect(syslogFrame(model, true, 'lb1')('text', record, false)).toBe(
      `<131>Nov  5 03:04:06 shop[${process.pid}]: text`,
    );
  });

  test('RFC 5424 section 6', () => {
    const frame = syslogFrame({ format: 'rfc5424', facility: 'daemon', tag: 'shop' }, false, 'lb1');
    const time = new Date(record.startedMs + 1000).toISOString().replace('Z', '000Z');
    expect(frame('text', record, true)).toBe(`<30>1 ${time} lb1 shop ${process.pid} - - text`);
  });

  test('by UDP, a datagram a line; a daemon that is away is told of and found again', async () => {
    const server = createSocket('udp4');
    server.bind(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address();
    const { writer, accessLog, reports } = startWriter();
    const to = writer.sink(configOf({ path: `syslog://127.0.0.1:${port}`, format: 'httplog' }));
    accessLog.log(request(), to);
    const [datagram] = (await once(server, 'message')) as [Buffer];
    expect(datagram.toString()).toMatch(/^<134>\w{3} [ \d]\d [\d:]{8} \S+ understudy\[\d+\]: 10\.0\.1\.2:33317 \[.*"$/);
    server.close();
    await once(server, 'close');
    await eventually('the failure', () => {
      accessLog.log(request(), to);
      return reports.length > 0;
    });
    expect(reports[0]).toMatchObject({ type: 'accessLog.failed', code: 'ECONNREFUSED' });
    const next = createSocket('udp4');
    onTestFinished(() => void next.close());
    next.bind(port, '127.0.0.1');
    const heard = once(next, 'message');
    accessLog.log(request(), to);
    await heard;
  });

  test('to a Unix socket, as /dev/log is', async () => {
    const path = join(makeFolder(), 'log');
    const { family, bytes } = socketAddressOf({ host: 'localhost', port: 0, path });
    const fd = openSocket(family, SOCK_DGRAM, 0)!;
    onTestFinished(() => void libc().close(fd));
    expect(libc().bind(fd, bytes, bytes.length)).toBe(0);
    const { writer, accessLog } = startWriter();
    const to = writer.sink(configOf({ path: `syslog://${path}`, format: 'httplog', syslog: { tag: 'shop' } }));
    accessLog.log(request({ status: 500 }), to);
    await writer.close();
    const datagram = Buffer.alloc(4096);
    const count = libc().recv(fd, datagram, datagram.length, 0);
    expect(datagram.toString('latin1', 0, count)).toMatch(
      /^<131>\w{3} [ \d]\d [\d:]{8} shop\[\d+\]: 10\.0\.1\.2:33317 /,
    );
  });
});

describe('the configuration', () => {
  const parse = (access: object) => z.strictObject({ log }).safeParse({ log: { access } });

  test('where to: a file, stdout, syslog', () => {
    const pathOf = (path: string) => configOf({ path }).path;
    expect(pathOf('./access.log')).toEqual({ kind: 'file', path: './access.log' });
    expect(pathOf('stdout')).toEqual({ kind: 'stdout' });
    expect(pathOf('syslog://10.0.0.5')).toEqual({ kind: 'syslog', address: { host: '10.0.0.5', port: 514 } });
    expect(pathOf('syslog://[::1]:5514')).toEqual({ kind: 'syslog', address: { host: '::1', port: 5514 } });
    expect(pathOf('syslog://[::1]')).toEqual({ kind: 'syslog', address: { host: '::1', port: 514 } });
    expect(pathOf('syslog:///dev/log')).toEqual({
      kind: 'syslog',
      address: { host: 'localhost', port: 0, path: '/dev/log' },
    });
    expect(withLogPath(configOf({ path: 'logs/a.log' }), '/etc/shop').path).toEqual({
      kind: 'file',
      path: '/etc/shop/logs/a.log',
    });
  });

  test.each([
    [{ path: 'syslog://' }, /syslog:\/\/127\.0\.0\.1:514/],
    [{ path: 'syslog://*:514' }, /no place for a log/],
    [{ path: 'syslog://a:0' }, /no place for a log/],
    [{ path: 'tcp://10.0.0.5:514' }, /no place for a log/],
    [{ path: 'stdout', format: 'clf' }, /json/],
    [{ path: 'stdout', sample: 0 }, /0/],
    [{ path: 'stdout', sample: 1.5 }, /1/],
    [{ path: 'stdout', requestHeaders: ['User Agent'] }, /not the name of a field/],
    [{ path: 'stdout', syslog: { tag: 'a b' } }, /not a tag/],
    [{ path: 'stdout', syslog: { tag: 'a[1]:' } }, /not a tag/],
  ])('%j is refused with what is allowed', (access, message) => {
    expect(parse(access).error!.issues[0]!.message).toMatch(message);
  });

  test('a frontend has the node’s log, its own, or none', () => {
    const whole = log.parse({ access: { path: 'stdout' } });
    const own = frontendLog.parse({ path: 'own.log', requestHeaders: ['User-Agent'] });
    expect(accessLogOf(whole, undefined)).toBe(whole.access);
    expect(accessLogOf(whole, frontendLog.parse(false))).toBeNull();
    expect(accessLogOf(whole, own)).toMatchObject({ requestHeaders: ['user-agent'], format: 'json', only: 'all' });
    expect(accessLogOf(log.parse(undefined), undefined)).toBeNull();
  });
});
