/** HTTP/2 at the front, by frames on the wire and by node:http2's client: what reaches an engine, and what comes back. */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { connect } from 'node:http2';
import type { ClientHttp2Session, ClientHttp2Stream, IncomingHttpHeaders, OutgoingHttpHeaders } from 'node:http2';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { Stream } from '../src/proxy/stream.ts';
import {
  ACK,
  block,
  CONTINUATION,
  data,
  DATA,
  END_HEADERS,
  END_STREAM,
  frame,
  GET,
  get,
  GOAWAY,
  headers,
  HEADERS,
  PING,
  rawClient,
  reset,
  RST_STREAM,
  settings,
  SETTINGS,
  SETTINGS_INITIAL_WINDOW_SIZE,
  uint32,
  WINDOW_UPDATE,
} from './http2Frames.ts';
import type { FieldList } from './http2Frames.ts';
import { fakeFront } from './http2Helpers.ts';
import type { Fake, FakeOptions, Heard } from './http2Helpers.ts';

const NO_ERROR = 0;
const PROTOCOL_ERROR = 1;
const INTERNAL_ERROR = 2;
const CANCEL = 8;
const ENHANCE_YOUR_CALM = 11;

const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';

/** Answers each request when all of it has come. */
const whenWhole =
  (answer: string) =>
  (heard: Heard, stream: Stream): void => {
    if (!heard.hasEnded || stream.finished || heard.closed !== undefined) return;
    heard.say(answer);
    stream.end();
  };

const nodeClient = (fake: Fake): ClientHttp2Session => {
  const client = connect(`http://127.0.0.1:${fake.port}`);
  onTestFinished(() => client.destroy());
  return client;
};

type Answer = { headers: IncomingHttpHeaders; body: string; trailers: IncomingHttpHeaders };

const answerOf = async (stream: ClientHttp2Stream): Promise<Answer> => {
  const answer: Answer = { headers: {}, body: '', trailers: {} };
  stream.on('response', (fields) => (answer.headers = fields));
  stream.on('trailers', (fields) => (answer.trailers = fields));
  stream.on('data', (chunk: Buffer) => (answer.body += chunk.toString('latin1')));
  await once(stream, 'close');
  if (stream.rstCode !== NO_ERROR) throw new Error(`reset with ${stream.rstCode}`);
  return answer;
};

const ask = (client: ClientHttp2Session, fields: OutgoingHttpHeaders = {}): Promise<Answer> =>
  answerOf(client.request({ ':path': '/', ...fields }));

describe('requests that are refused before an engine sees them', () => {
  const post = (...more: [string, string][]) => get({ ':method': 'POST' }, ...more);
  test.each<[string, FieldList]>([
    ['8.3: an unknown pseudo-header field', get({}, [':color', 'red'])],
    ['8.3: a pseudo-header field of responses', get({}, [':status', '200'])],
    ['8.3: a repeated pseudo-header field', get({}, [':path', '/b'])],
    ['8.3: a pseudo-header field behind another field', [['accept', '*/*'], ...GET]],
    ['8.3.1: no :method', get({ ':method': null })],
    ['8.3.1: no :scheme', get({ ':scheme': null })],
    ['8.3.1: another :scheme', get({ ':scheme': 'ftp' })],
    ['8.3.1: no :path', get({ ':path': null })],
    ['8.3.1: an empty :path', get({ ':path': '' })],
    ['8.3.1: a :path that starts otherwise', get({ ':path': 'a' })],
    ['8.3.1: * without OPTIONS', get({ ':path': '*' })],
    ['8.3.1: a space in :path', get({ ':path': '/ HTTP/1.1' })],
    ['8.3.1: a line end in :path', get({ ':path': '/\r\nhost: b' })],
    ['8.3.1: a fragment in :path', get({ ':path': '/#a' })],
    ['8.3.1: a method that is no token', get({ ':method': 'GET /' })],
    ['8.3.1: neither :authority nor Host', get({ ':authority': null })],
    ['8.3.1: an empty :authority', get({ ':authority': '' })],
    ['8.3.1: userinfo in :authority', get({ ':authority': 'user@a.example' })],
    ['8.3.1: a Host that differs', get({}, ['host', 'b.example'])],
    ['8.3.1: several Hosts', get({ ':authority': null }, ['host', 'a.example'], ['host', 'a.example'])],
    ['8.2.1: capitals in a field name', get({}, ['X-Test', '1'])],
    ['8.2.2: Connection', get({}, ['connection', 'close'])],
    ['8.2.2: Proxy-Connection', get({}, ['proxy-connection', 'keep-alive'])],
    ['8.2.2: Keep-Alive', get({}, ['keep-alive', 'timeout=5'])],
    ['8.2.2: Transfer-Encoding', post(['transfer-encoding', 'chunked'])],
    ['8.2.2: Upgrade', get({}, ['upgrade', 'h2c'])],
    ['8.2.2: TE other than trailers', get({}, ['te', 'gzip'])],
    ['8.1.1: a Content-Length without DATA', post(['content-length', '1'])],
    ['8.1.1: differing Content-Lengths', post(['content-length', '0'], ['content-length', '1'])],
    ['8.1.1: a Content-Length that is no number', post(['content-length', '+0'])],
    ['8.5: CONNECT with :path', get({ ':method': 'CONNECT' })],
    ['RFC 8441 section 4: :protocol without CONNECT', get({}, [':protocol', 'websocket'])],
  ])('%s', async (_, fields) => {
    const fake = await fakeFront(whenWhole(OK));
    const client = await rawClient(fake.port);
    client.send(headers(1, fields));
    expect(await client.resetCode(1)).toBe(PROTOCOL_ERROR);
    expect(fake.heard).toEqual([]);
    // A stream error: the connection goes on.
    client.send(headers(3, GET));
    await client.frame(DATA, 3);
  });

  // nghttp2 leaves such a field out and goes on. No server sees any of it.
  test.each<[string, [string, string]]>([
    ['8.2.1: NUL in a value', ['x-test', 'a\0b']],
    ['8.2.1: a line end in a value', ['x-test', 'a\r\nx-admin: 1']],
    ['8.2.1: a lone line feed in a value', ['x-test', 'a\nx-admin: 1']],
    ['8.2.1: white space before a value', ['x-test', ' x-admin']],
    ['8.2.1: white space behind a value', ['x-test', 'x-admin\t']],
    ['8.2.1: a colon in a name', ['x-test: x-admin', '1']],
    ['8.2.1: a space in a name', ['x-test x-admin', '1']],
    ['8.2.1: a line end in a name', ['x-test\r\nx-admin', '1']],
    ['8.2.1: an empty name', ['', 'x-admin']],
  ])('%s: without the field', async (_, field) => {
    const fake = await fakeFront(whenWhole(OK));
    const client = await rawClient(fake.port);
    client.send(headers(1, get({}, field)));
    await client.frame(DATA, 1);
    expect(fake.heard[0]!.head).toBe('GET / HTTP/1.1\r\nhost: a.example\r\n\r\n');
  });

  test.each<[string, string, string]>([
    ['8.1.1: more DATA than Content-Length', '3', 'four'],
    ['8.1.1: less DATA than Content-Length', '5', 'four'],
  ])('%s', async (_, length, body) => {
    const fake = await fakeFront(() => {});
    const client = await rawClient(fake.port);
    client.send(headers(1, get({ ':method': 'POST' }, ['content-length', length]), END_HEADERS));
    client.send(data(1, body, END_STREAM));
    // For less it is RST_STREAM; for more Node ends the whole connection.
    await Promise.race([client.frame(RST_STREAM, 1), client.frame(GOAWAY, 0)]);
    await fake.until(() => fake.heard[0]?.closed !== undefined);
    expect(fake.heard[0]).toMatchObject({ isWhole: false, hasEnded: false, closed: 'ECONNRESET' });
  });

  test.each<[string, FieldList]>([
    ['8.1: trailers with a pseudo-header field', [[':path', '/b']]],
    ['8.2.2: trailers with a connection-specific field', [['transfer-encoding', 'chunked']]],
    ['RFC 9110 section 6.5.1: trailers with a framing field', [['content-length', '1']]],
  ])('%s', async (_, trailers) => {
    const fake = await fakeFront(() => {});
    const client = await rawClient(fake.port);
    client.send(headers(1, get({ ':method': 'POST' }), END_HEADERS), data(1, 'body'), headers(1, trailers));
    expect(await client.resetCode(1)).toBe(PROTOCOL_ERROR);
    await fake.until(() => fake.heard[0]?.closed !== undefined);
    expect(fake.heard[0]).toMatchObject({ isWhole: false, hasEnded: false, closed: 'ECONNRESET' });
  });

  test('8.1: trailers that are not the end', async () => {
    const fake = await fakeFront(() => {});
    const client = await rawClient(fake.port);
    client.send(headers(1, get({ ':method': 'POST' }), END_HEADERS), headers(1, [['x-a', '1']], END_HEADERS));
    expect(await client.resetCode(1)).toBe(PROTOCOL_ERROR);
    expect(fake.heard[0]?.hasEnded ?? false).toBe(false);
  });

  test('8.5: CONNECT is answered with 405', async () => {
    const fake = await fakeFront(() => {});
    const client = nodeClient(fake);
    const answer = await answerOf(client.request({ ':method': 'CONNECT', ':authority': 'a.example:443' }));
    expect(answer.headers[':status']).toBe(405);
    expect(fake.heard).toEqual([]);
  });

  test('a client that goes on sending malformed requests loses its connection', async () => {
    const fake = await fakeFront(whenWhole(OK));
    const client = await rawClient(fake.port);
    for (let index = 0; index < 200; index++) client.send(headers(index * 2 + 1, get({ ':path': '/#' })));
    expect(await client.goAwayCode()).toBe(ENHANCE_YOUR_CALM);
    await client.closed();
    expect(fake.heard).toEqual([]);
  });
});

describe('requests as the engine sees them', () => {
  const heardOf = async (fields: FieldList, flags: number, ...more: Buffer[]): Promise<Heard> => {
    const fake = await fakeFront(whenWhole(OK));
    const client = await rawClient(fake.port);
    client.send(headers(1, fields, flags), ...more);
    await client.frame(DATA, 1);
    return fake.heard[0]!;
  };

  test('8.3.1: the pseudo-header fields become the request line and Host', async () => {
    const { head } = await heardOf(get({ ':path': '/a?b=c' }, ['accept', '*/*']), END_HEADERS + END_STREAM);
    expect(head).toBe('GET /a?b=c HTTP/1.1\r\nhost: a.example\r\naccept: */*\r\n\r\n');
  });

  test('8.3.1: Host stands in for :authority', async () => {
    const { head } = await heardOf(get({ ':authority': null }, ['host', 'b.example']), END_HEADERS + END_STREAM);
    expect(head).toBe('GET / HTTP/1.1\r\nhost: b.example\r\n\r\n');
  });

  test('8.2.3: cookie crumbs are joined', async () => {
    const fields = get({}, ['cookie', 'a=1'], ['x-a', '1'], ['cookie', 'b=2'], ['cookie', 'c=3']);
    expect((await heardOf(fields, END_HEADERS + END_STREAM)).head).toContain('\r\ncookie: a=1; b=2; c=3\r\n');
  });

  test('a body of a declared length comes as it is', async () => {
    const fields = get({ ':method': 'POST' }, ['content-length', '8']);
    const heard = await heardOf(fields, END_HEADERS, data(1, 'ab'), data(1, 'cdefgh', END_STREAM));
    expect(heard.head).toContain('\r\ncontent-length: 8\r\n');
    expect(heard.rawBody).toBe('abcdefgh');
  });

  test('a body of unknown length comes in chunks, with its trailers', async () => {
    const trailers = headers(1, [
      ['x-sum', '1'],
      ['x-sum', '2'],
    ]);
    const heard = await heardOf(
      get({ ':method': 'POST' }),
      END_HEADERS,
      data(1, 'ab'),
      data(1, 'c'.repeat(20)),
      trailers,
    );
    expect(heard.head).toContain('\r\ntransfer-encoding: chunked\r\n');
    expect(heard.body).toBe(`ab${'c'.repeat(20)}`);
    expect(heard.rawBody).toMatch(/\r\n0\r\nx-sum: 1\r\nx-sum: 2\r\n\r\n$/);
    expect(heard.isWhole).toBe(true);
  });

  test('RFC 9110 section 8.6: POST without content says so', async () => {
    const { head } = await heardOf(get({ ':method': 'POST' }), END_HEADERS + END_STREAM);
    expect(head).toContain('\r\ncontent-length: 0\r\n');
  });

  test('its addresses are those of the connection, or of whom a first proxy saw', async () => {
    const fake = await fakeFront(whenWhole(OK));
    const client = await rawClient(fake.port);
    client.send(headers(1, GET));
    await client.frame(DATA, 1);
    const { remote, local, tls } = fake.heard[0]!.stream;
    expect(remote).toEqual({ address: '127.0.0.1', port: client.socket.localPort });
    expect(local).toEqual({ address: '127.0.0.1', port: fake.port });
    expect(tls).toBe(null);
  });
});

describe('a body that is cut off', () => {
  test.each<[string, number]>([
    ['by CANCEL', CANCEL],
    ['by NO_ERROR, which looks like an end', NO_ERROR],
  ])('%s is not told of as complete', async (_, code) => {
    const fake = await fakeFront(() => {});
    const client = await rawClient(fake.port);
    client.send(headers(1, get({ ':method': 'POST' }), END_HEADERS), data(1, 'half'));
    await fake.until(() => fake.heard[0]?.body === 'half');
    client.send(reset(1, code));
    await fake.until(() => fake.heard[0]!.closed !== undefined);
    expect(fake.heard[0]).toMatchObject({ isWhole: false, hasEnded: false, closed: 'ECONNRESET' });
  });

  test('by the end of the connection is not told of as complete', async () => {
    const fake = await fakeFront(() => {});
    const client = await rawClient(fake.port);
    client.send(headers(1, get({ ':method': 'POST' }), END_HEADERS), data(1, 'half'));
    await fake.until(() => fake.heard[0]?.body === 'half');
    client.socket.destroy();
    await fake.until(() => fake.heard[0]!.closed !== undefined);
    expect(fake.heard[0]).toMatchObject({ isWhole: false, hasEnded: false, closed: 'ECONNRESET' });
  });

  test.each<[string, string]>([
    ['a length', 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf'],
    ['chunks', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n'],
    ['half a head', 'HTTP/1.1 200 OK\r\nConte'],
  ])('of a response with %s ends with RST_STREAM', async (_, answer) => {
    const fake = await fakeFront(whenWhole(answer));
    const client = await rawClient(fake.port);
    client.send(headers(1, GET));
    expect(await client.resetCode(1)).toBe(INTERNAL_ERROR);
    await fake.until(() => fake.heard[0]!.closed !== undefined);
    expect(fake.heard[0]!.closed).toBe(null);
    expect(client.frames.some(({ type, flags }) => type === DATA && (flags & END_STREAM) !== 0)).toBe(false);
  });

  test('of a response until the close ends with RST_STREAM when the engine resets', async () => {
    const fake = await fakeFront((heard, stream) => {
      if (!heard.hasEnded) return;
      heard.say('HTTP/1.1 200 OK\r\n\r\nhalf');
      stream.reset();
    });
    const client = await rawClient(fake.port);
    client.send(headers(1, GET));
    expect(await client.resetCode(1)).toBe(INTERNAL_ERROR);
    expect(client.frames.some(({ type, flags }) => type === DATA && (flags & END_STREAM) !== 0)).toBe(false);
  });
});

describe('responses', () => {
  const answered = async (answer: string, fields: OutgoingHttpHeaders = {}): Promise<Answer> => {
    const fake = await fakeFront(whenWhole(answer));
    return ask(nodeClient(fake), fields);
  };

  test('with a length', async () => {
    const answer = await answered('HTTP/1.1 201 Created\r\nX-Test: a\r\nContent-Length: 2\r\n\r\nok');
    expect(answer).toMatchObject({ body: 'ok', headers: { ':status': 201, 'x-test': 'a', 'content-length': '2' } });
    expect(answer.headers).not.toHaveProperty('date');
  });

  test('in chunks, with trailers', async () => {
    const chunks = '3\r\nabc\r\n0000A;x=y\r\n0123456789\r\n0\r\nX-Sum: 1\r\nX-Sum: 2\r\n\r\n';
    const answer = await answered(`HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${chunks}`);
    expect(answer.body).toBe('abc0123456789');
    expect(answer.headers).not.toHaveProperty('transfer-encoding');
    expect(answer.trailers['x-sum']).toBe('1, 2');
  });

  test('in chunks that come byte by byte', async () => {
    const text = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n';
    const fake = await fakeFront((heard, stream) => {
      if (!heard.hasEnded || stream.finished || heard.closed !== undefined) return;
      for (const character of text) heard.say(character);
      stream.end();
    });
    const answer = await ask(nodeClient(fake));
    expect(answer.body).toBe('abcde');
    expect(answer.trailers['x-sum']).toBe('1');
  });

  test('in chunks without any', async () => {
    expect((await answered('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n')).body).toBe('');
  });

  test('until the close', async () => {
    expect((await answered('HTTP/1.1 200 OK\r\n\r\nall of it')).body).toBe('all of it');
  });

  test('8.2.2: without connection-specific fields and those that Connection names', async () => {
    const connection = 'Connection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: a\r\nProxy-Connection: a\r\nUpgrade: a\r\n';
    const { headers: fields } = await answered(`HTTP/1.1 200 OK\r\n${connection}Content-Length: 0\r\n\r\n`);
    expect(Object.keys(fields)).toEqual([':status', 'content-length']);
  });

  test('fields that repeat stay several', async () => {
    const { headers: fields } = await answered(
      'HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Type: a/b\r\nContent-Type: a/c\r\nContent-Length: 0\r\n\r\n',
    );
    expect(fields['set-cookie']).toEqual(['a=1', 'b=2']);
  });

  test.each<[string, string, string]>([
    ['to HEAD', 'HEAD', 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n'],
    ['204', 'GET', 'HTTP/1.1 204 No Content\r\n\r\n'],
    ['304', 'GET', 'HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n'],
    ['of length zero', 'GET', 'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n'],
  ])('8.1: %s ends with its HEADERS', async (_, method, answer) => {
    const fake = await fakeFront(whenWhole(answer));
    const client = await rawClient(fake.port);
    client.send(headers(1, get({ ':method': method })));
    const head = await client.frame(HEADERS, 1);
    expect(head.flags & END_STREAM).toBe(END_STREAM);
    await fake.until(() => fake.heard[0]!.closed !== undefined);
    expect(fake.heard[0]!.closed).toBe(null);
  });

  test('8.1: interim responses go before', async () => {
    const fake = await fakeFront(
      whenWhole(`HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\nLink: b\r\n\r\n${OK}`),
    );
    const stream = nodeClient(fake).request({ ':path': '/' });
    const interim: unknown[] = [];
    stream.on('headers', (fields: IncomingHttpHeaders) => interim.push([fields[':status'], fields['link']]));
    expect((await answerOf(stream)).body).toBe('ok');
    expect(interim).toEqual([
      [100, undefined],
      [103, 'a, b'],
    ]);
  });

  test('8.1: one that is complete before its request ends that with NO_ERROR', async () => {
    const answers: [string, string][] = [
      [OK, 'ok'],
      ['HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n', 'ok'],
      ['HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n', 'ok'],
      ['HTTP/1.1 200 OK\r\n\r\nok', 'ok'],
      ['HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n', ''],
    ];
    for (const [answer, body] of answers) {
      const fake = await fakeFront((heard, stream) => {
        if (stream.finished || heard.closed !== undefined) return;
        heard.say(answer);
        stream.end();
      });
      const client = await rawClient(fake.port);
      client.send(headers(1, get({ ':method': 'POST' }), END_HEADERS), data(1, 'half'));
      expect(await client.resetCode(1)).toBe(NO_ERROR);
      const own = client.frames.filter(({ stream }) => stream === 1);
      expect(own.some(({ flags }) => (flags & END_STREAM) !== 0)).toBe(true);
      expect(client.body(1)).toBe(body);
      await fake.until(() => fake.heard[0]!.closed !== undefined);
      expect(fake.heard[0]!.closed).toBe(null);
    }
  });

  test('many at a time on one connection', async () => {
    const fake = await fakeFront((heard, stream) => {
      if (!heard.hasEnded || stream.finished || heard.closed !== undefined) return;
      heard.say(`HTTP/1.1 200 OK\r\nContent-Length: ${heard.body.length}\r\n\r\n${heard.body}`);
      stream.end();
    });
    const client = nodeClient(fake);
    const bodies = Array.from({ length: 50 }, (_, index) => String(index).repeat(index * 500));
    const answers = await Promise.all(
      bodies.map((body) => {
        const stream = client.request({ ':method': 'POST', ':path': '/' });
        stream.end(body);
        return answerOf(stream);
      }),
    );
    expect(answers.map(({ body }) => body)).toEqual(bodies);
    expect(fake.wakes).toBeGreaterThan(0);
  });
});

describe('flow control', () => {
  test('5.2: write says no while the client does not read, and all arrives in the end', async () => {
    const size = 4 * 1024 * 1024;
    let sent = 0;
    const fake = await fakeFront((heard, stream) => {
      if (!heard.hasEnded || stream.finished || heard.closed !== undefined) return;
      if (sent === 0) heard.say(`HTTP/1.1 200 OK\r\nContent-Length: ${size}\r\n\r\n`);
      while (sent < size) {
        const goesOn = heard.say('x'.repeat(16 * 1024));
        sent += 16 * 1024;
        if (!goesOn) break;
      }
      if (sent === size) stream.end();
    });
    const client = await rawClient(fake.port, [SETTINGS_INITIAL_WINDOW_SIZE, 0]);
    client.send(headers(1, GET));
    await client.frame(HEADERS, 1);
    expect(sent).toBeLessThan(256 * 1024);
    expect(fake.heard[0]!.stream.pending).toBeGreaterThan(0);
    const window = uint32(size + 65_535);
    client.send(settings([SETTINGS_INITIAL_WINDOW_SIZE, size]), frame(WINDOW_UPDATE, 0, 0, window));
    await client.frame(DATA, 1, ({ flags }) => (flags & END_STREAM) !== 0);
    expect(client.body(1).length).toBe(size);
    expect(fake.heard[0]!.drains).toBeGreaterThan(1);
  });

  test('5.2: an engine that pauses holds the client back, and still gets all', async () => {
    const fake = await fakeFront((heard, stream) => {
      if (heard.hasEnded) whenWhole(OK)(heard, stream);
      else if (heard.body.length > 0) stream.pause();
    });
    const client = nodeClient(fake);
    const stream = client.request({ ':method': 'POST', ':path': '/' });
    const body = Buffer.alloc(2 * 1024 * 1024, 'x');
    stream.end(body);
    await fake.until(() => (fake.heard[0]?.body.length ?? 0) > 0);
    const answer = answerOf(stream);
    while (!fake.heard[0]!.hasEnded) {
      const before = fake.heard[0]!.body.length;
      fake.heard[0]!.stream.resume();
      await fake.until(() => fake.heard[0]!.body.length > before || fake.heard[0]!.hasEnded);
    }
    expect((await answer).body).toBe('ok');
    expect(fake.heard[0]!.body.length).toBe(body.length);
  });

  test('an engine that pauses before it was told anything hears all of it when it resumes', async () => {
    const fake = await fakeFront(whenWhole(OK), { onServed: (stream) => stream.pause() });
    const client = await rawClient(fake.port);
    client.send(headers(1, GET), headers(3, get({ ':method': 'POST' }), END_HEADERS), data(3, 'body', END_STREAM));
    await fake.until(() => fake.heard.length === 2);
    client.send(frame(PING, 0, 0, Buffer.alloc(8)));
    await client.frame(PING, 0);
    expect(fake.heard.map(({ head }) => head)).toEqual(['', '']);
    for (const { stream } of fake.heard) stream.resume();
    await client.frame(DATA, 1);
    await client.frame(DATA, 3);
    expect(fake.heard.map(({ body }) => body)).toEqual(['', 'body']);
  });
});

describe('hostile clients', () => {
  test('CVE-2023-44487: one that opens and resets streams without end loses its connection', async () => {
    const fake = await fakeFront(() => {});
    const client = await rawClient(fake.port);
    for (let index = 0; index < 5_000; index++) client.send(headers(index * 2 + 1, GET), reset(index * 2 + 1, CANCEL));
    await client.frame(GOAWAY, 0);
    await client.closed();
    await fake.until(() => fake.heard.every(({ closed }) => closed !== undefined));
    expect(fake.heard.length).toBeLessThan(2_500);
  });

  test('5.1.2: streams over the limit are refused, and the others served', async () => {
    const fake = await fakeFront(() => {}, { limits: { maxConcurrentStreams: 5 } });
    const client = await rawClient(fake.port);
    for (let index = 0; index < 8; index++) client.send(headers(index * 2 + 1, GET));
    for (const stream of [11, 13, 15]) await client.resetCode(stream);
    await fake.until(() => fake.heard.length === 5 && fake.heard.every(({ hasEnded }) => hasEnded));
    for (const heard of fake.heard) heard.say(OK);
    for (const stream of [1, 3, 5, 7, 9]) await client.frame(DATA, stream);
    expect(fake.heard.length).toBe(5);
  });

  test('CVE-2024-27316: CONTINUATION frames without end', async () => {
    const fake = await fakeFront(() => {});
    const client = await rawClient(fake.port);
    client.send(headers(1, GET, 0));
    for (let index = 0; index < 1_000; index++)
      client.send(frame(CONTINUATION, 0, 1, block([[`x-${index}`, 'x'.repeat(1_000)]])));
    await client.frame(GOAWAY, 0);
    await client.closed();
    expect(fake.heard).toEqual([]);
  });

  test('6.5.2: a header list that is too large', async () => {
    const fake = await fakeFront(whenWhole(OK), { limits: { maxHeaderList: '4KiB' } });
    const client = await rawClient(fake.port);
    // Settings are binding when they have been acknowledged.
    await client.frame(SETTINGS, 0, ({ flags }) => (flags & ACK) !== 0);
    client.send(headers(1, get({}, ['x-a', 'x'.repeat(5_000)])));
    expect(await client.resetCode(1)).toBe(ENHANCE_YOUR_CALM);
    expect(fake.heard).toEqual([]);
    client.send(headers(3, GET));
    await client.frame(DATA, 3);
  });

  test('too many fields', async () => {
    const fake = await fakeFront(() => {});
    const client = await rawClient(fake.port);
    client.send(headers(1, get({}, ...Array.from({ length: 300 }, (): [string, string] => ['a', '']))));
    expect(await client.resetCode(1)).toBe(ENHANCE_YOUR_CALM);
    expect(fake.heard).toEqual([]);
  });

  test.each<[string, Buffer]>([
    ['PING', frame(PING, 0, 0, Buffer.alloc(8))],
    ['SETTINGS', settings([SETTINGS_INITIAL_WINDOW_SIZE, 1_000])],
  ])('CVE-2019-9512, -9515: a flood of %s whose answers it does not read', async (_, one) => {
    const fake = await fakeFront(() => {});
    const client = await rawClient(fake.port);
    await client.frame(SETTINGS, 0);
    client.socket.pause();
    const flood = Buffer.concat(Array.from({ length: 2_000 }, () => one));
    // Its writing fails when it is thrown out.
    const isClosed = client.closed();
    for (let index = 0; index < 500 && !client.isClosed; index++)
      if (!client.socket.write(flood)) await Promise.race([once(client.socket, 'drain'), isClosed]).catch(() => {});
    await fake.until(() => fake.front.connections === 0);
    expect(fake.refused).toHaveLength(1);
  });

  test('CVE-2019-9518: empty DATA frames without end', async () => {
    const fake = await fakeFront(() => {});
    const client = await rawClient(fake.port);
    client.send(headers(1, get({ ':method': 'POST' }), END_HEADERS));
    for (let index = 0; index < 500; index++) client.send(data(1, ''));
    await client.frame(GOAWAY, 0);
    await client.closed();
    await fake.until(() => fake.heard[0]!.closed !== undefined);
    expect(fake.heard[0]!.hasEnded).toBe(false);
  });

  test('3.4: one that speaks something else', async () => {
    const fake = await fakeFront(() => {});
    const client = await rawClient(fake.port);
    client.send(Buffer.from('x'.repeat(100)));
    await client.closed();
    await fake.until(() => fake.front.connections === 0);
    expect(fake.refused).toHaveLength(1);
  });
});

describe('the connection', () => {
  test('closes when it has been idle for keepAlive, with GOAWAY', async () => {
    const fake = await fakeFront(whenWhole(OK), { timeouts: () => ({ httpRequest: 60_000, keepAlive: 50 }) });
    const client = await rawClient(fake.port);
    client.send(headers(1, GET));
    await client.frame(DATA, 1);
    expect(await client.goAwayCode()).toBe(NO_ERROR);
    await client.closed();
    await fake.until(() => fake.front.connections === 0);
  });

  test('closes when its first request does not come within httpRequest', async () => {
    const fake = await fakeFront(() => {}, { timeouts: () => ({ httpRequest: 50, keepAlive: 60_000 }) });
    const client = await rawClient(fake.port);
    // Its answer to our SETTINGS may not come within the header block.
    await client.frame(SETTINGS, 0, ({ flags }) => (flags & ACK) !== 0);
    client.send(headers(1, GET, 0));
    expect(await client.goAwayCode()).toBe(NO_ERROR);
    await client.closed();
    expect(fake.heard).toEqual([]);
  });

  test('stays while a request is under way', async () => {
    const fake = await fakeFront(() => {}, { timeouts: () => ({ httpRequest: 20, keepAlive: 20 }) });
    const idle = await rawClient(fake.port);
    const client = await rawClient(fake.port);
    client.send(headers(1, GET));
    // The other one, which came first, shows that time has passed.
    await idle.closed();
    await fake.until(() => fake.heard[0]?.hasEnded === true);
    fake.heard[0]!.say(OK);
    await client.frame(DATA, 1);
    expect(client.body(1)).toBe('ok');
  });

  test('6.8: drain tells which requests are still served, serves them, and closes', async () => {
    const fake = await fakeFront(() => {});
    const client = await rawClient(fake.port);
    client.send(headers(1, GET), headers(3, get({ ':method': 'POST' }), END_HEADERS), data(3, 'body'));
    await fake.until(() => fake.heard.length === 2);
    fake.front.drain();
    const { payload } = await client.frame(GOAWAY, 0);
    expect([payload.readUInt32BE(0), payload.readUInt32BE(4)]).toEqual([3, NO_ERROR]);
    client.send(headers(5, GET), data(3, ' whole', END_STREAM));
    await fake.until(() => fake.heard.every(({ hasEnded }) => hasEnded));
    for (const heard of fake.heard) heard.say(OK);
    await client.closed();
    expect([client.body(1), client.body(3), fake.heard.length]).toEqual(['ok', 'ok', 2]);
    expect(fake.heard[1]!.body).toBe('body whole');
    await fake.until(() => fake.front.connections === 0);
  });

  test('destroy tells each request', async () => {
    const fake = await fakeFront(() => {});
    const client = await rawClient(fake.port);
    client.send(headers(1, GET), headers(3, get({ ':method': 'POST' }), END_HEADERS));
    await fake.until(() => fake.heard.length === 2);
    fake.front.destroy();
    await client.closed();
    await fake.until(() => fake.front.connections === 0 && fake.heard.every(({ closed }) => closed !== undefined));
    expect(fake.heard.map(({ closed }) => closed)).toEqual(['ECONNRESET', 'ECONNRESET']);
  });

  const stalled = async (options: FakeOptions = {}): Promise<Fake> => {
    const fake = await fakeFront((heard) => {
      if (heard.hasEnded && heard.closed === undefined && heard.drains === 0)
        heard.say(`HTTP/1.1 200 OK\r\n\r\n${'x'.repeat(30_000_000)}`);
    }, options);
    const client = await rawClient(fake.port, [SETTINGS_INITIAL_WINDOW_SIZE, 2 ** 31 - 1]);
    client.send(frame(WINDOW_UPDATE, 0, 0, uint32(2 ** 30)), headers(1, GET));
    await client.frame(HEADERS, 1);
    client.socket.pause();
    return fake;
  };

  test('a client that reads nothing any more does not outlive destroy', async () => {
    const fake = await stalled();
    fake.front.destroy();
    await fake.until(() => fake.front.connections === 0 && fake.heard[0]!.closed !== undefined);
    expect(fake.heard[0]!.closed).toBe('ECONNRESET');
  });

  test('a client that reads nothing any more costs nothing once the engine has given up on its request', async () => {
    const fake = await stalled({ timeouts: () => ({ httpRequest: 10_000, keepAlive: 50 }) });
    expect(fake.heard[0]!.stream.pending).toBeGreaterThan(1_000_000);
    fake.heard[0]!.stream.reset();
    expect(fake.heard[0]!.stream.destroyed).toBe(true);
    await fake.until(() => fake.front.connections === 0);
  });
});

describe('RFC 8441: WebSocket over one stream', () => {
  const accept = (head: string): string => {
    const key = /^sec-websocket-key: (.*)\r$/m.exec(head)![1]!;
    return createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
  };
  const switching = (value: string): string =>
    `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
    `Sec-WebSocket-Accept: ${value}\r\nSec-WebSocket-Protocol: chat\r\n\r\n`;
  const fields = {
    ':method': 'CONNECT',
    ':protocol': 'websocket',
    ':scheme': 'http',
    ':path': '/chat',
    ':authority': 'a.example',
    'sec-websocket-version': '13',
  };
  const opened = async (fake: Fake, changes: OutgoingHttpHeaders = {}): Promise<ClientHttp2Stream> => {
    const client = nodeClient(fake);
    await once(client, 'remoteSettings');
    return client.request({ ...fields, ...changes }, { endStream: false });
  };

  test('5: becomes an Upgrade, 101 becomes 200, and both sides go on as they like', async () => {
    const fake = await fakeFront((heard, stream) => {
      if (heard.body === '' && !heard.hasEnded) heard.say(`${switching(accept(heard.head))}hello`);
      else if (heard.hasEnded && !stream.finished) {
        heard.say(`, ${heard.body}`);
        stream.end();
      }
    });
    const stream = await opened(fake, { 'sec-websocket-key': 'not used' });
    // Sent before there is a tunnel.
    stream.end('client');
    const answer = await answerOf(stream);
    expect(fake.heard[0]!.head).toMatch(
      /^GET \/chat HTTP\/1\.1\r\nhost: a\.example\r\nsec-websocket-version: 13\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: [A-Za-z0-9+/]{22}==\r\n\r\n$/,
    );
    expect(answer.body).toBe('hello, client');
    expect(answer.headers[':status']).toBe(200);
    expect(Object.keys(answer.headers)).toEqual([':status', 'sec-websocket-protocol']);
    await fake.until(() => fake.heard[0]!.closed !== undefined);
    expect(fake.heard[0]!.closed).toBe(null);
  });

  test('what the client sends for a tunnel that is refused never reaches the engine', async () => {
    let answered = false;
    const fake = await fakeFront((heard, stream) => {
      if (answered) return;
      answered = true;
      stream.resume();
      heard.say('HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno');
    });
    const stream = await opened(fake);
    stream.write('GET /admin HTTP/1.1\r\nHost: a\r\n\r\n');
    const answer = await answerOf(stream);
    expect([answer.headers[':status'], answer.body]).toEqual([403, 'no']);
    expect(fake.heard[0]!.body).toBe('');
  });

  test('RFC 6455 section 4.1: a server that proves nothing gets no tunnel', async () => {
    const fake = await fakeFront((heard) => {
      if (heard.closed === undefined) heard.say(switching('wrong'));
    });
    const stream = await opened(fake);
    stream.on('error', () => {});
    await once(stream, 'close').catch(() => {});
    expect(stream.rstCode).toBe(INTERNAL_ERROR);
    await fake.until(() => fake.heard[0]!.closed !== undefined);
    expect(fake.heard[0]!.closed).toBe('EPROTO');
  });

  test('a tunnel that the client resets is told of', async () => {
    const fake = await fakeFront((heard) => {
      if (heard.body === '' && heard.closed === undefined) heard.say(switching(accept(heard.head)));
    });
    const client = await rawClient(fake.port);
    client.send(headers(1, Object.entries(fields), END_HEADERS), data(1, 'hello'));
    await fake.until(() => fake.heard[0]?.body === 'hello');
    client.send(reset(1, CANCEL));
    await fake.until(() => fake.heard[0]!.closed !== undefined);
    expect(fake.heard[0]).toMatchObject({ hasEnded: false, closed: 'ECONNRESET' });
  });

  test('RFC 9220 section 3: another protocol is answered with 501', async () => {
    const fake = await fakeFront(() => {});
    const answer = await answerOf(await opened(fake, { ':protocol': 'connect-udp' }));
    expect(answer.headers[':status']).toBe(501);
    expect(fake.heard).toEqual([]);
  });
});
