/** RFC 9113 section 8 by itself, whatever HTTP/2 library is in front: one test a rule, and no head that can be read otherwise. */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { nameOf, valueOf } from '../src/proxy/fields.ts';
import { MAX_HEAD_BYTES, parseRequest, parseResponse } from '../src/proxy/head.ts';
import { responseFields, responseTrailers, translateRequest, translateTrailers } from '../src/proxy/http2Checks.ts';
import { GET, get } from './http2Frames.ts';
import type { FieldList } from './http2Frames.ts';

const KEY = 'AAAAAAAAAAAAAAAAAAAAAA==';
const translate = (fields: FieldList, endStream = true) => translateRequest(fields.flat(), endStream, () => KEY);

const headOf = (fields: FieldList, endStream = true): string => {
  const request = translate(fields, endStream);
  if (request.kind !== 'request') throw new Error(`refused: ${request.reason}`);
  return request.head;
};

const post = (...more: [string, string][]) => get({ ':method': 'POST' }, ...more);

describe('malformed', () => {
  test.each<[string, FieldList]>([
    ['8.3: an unknown pseudo-header field', get({}, [':color', 'red'])],
    ['8.3: a pseudo-header field of responses', get({}, [':status', '200'])],
    ['8.3: a repeated :method', get({}, [':method', 'GET'])],
    ['8.3: a repeated :scheme', get({}, [':scheme', 'http'])],
    ['8.3: a repeated :authority', get({}, [':authority', 'a.example'])],
    ['8.3: a repeated :path', get({}, [':path', '/'])],
    ['8.3: a pseudo-header field behind another field', [['accept', '*/*'], ...GET]],
    ['8.3.1: no :method', get({ ':method': null })],
    ['8.3.1: an empty :method', get({ ':method': '' })],
    ['8.3.1: a :method with a space', get({ ':method': 'GET /' })],
    ['8.3.1: no :scheme', get({ ':scheme': null })],
    ['8.3.1: another :scheme', get({ ':scheme': 'ftp' })],
    ['8.3.1: no :path', get({ ':path': null })],
    ['8.3.1: an empty :path', get({ ':path': '' })],
    ['8.3.1: a :path that starts otherwise', get({ ':path': 'http://a.example/' })],
    ['8.3.1: * without OPTIONS', get({ ':path': '*' })],
    ['8.3.1: a space in :path', get({ ':path': '/ HTTP/1.1' })],
    ['8.3.1: a line end in :path', get({ ':path': '/\r\nhost: b' })],
    ['8.3.1: a fragment in :path', get({ ':path': '/#a' })],
    ['8.3.1: bytes beyond ASCII in :path', get({ ':path': '/\xe4' })],
    ['8.3.1: neither :authority nor Host', get({ ':authority': null })],
    ['8.3.1: an empty :authority', get({ ':authority': '' })],
    ['8.3.1: userinfo in :authority', get({ ':authority': 'user@a.example' })],
    ['8.3.1: a line end in :authority', get({ ':authority': 'a.example\r\nx-a: 1' })],
    ['8.3.1: a path in :authority', get({ ':authority': 'a.example/b' })],
    ['8.3.1: a Host that differs', get({}, ['host', 'b.example'])],
    ['8.3.1: a Host with another port', get({}, ['host', 'a.example:443'])],
    ['8.3.1: several Hosts', get({}, ['host', 'a.example'], ['host', 'a.example'])],
    ['8.2.1: capitals in a field name', get({}, ['X-Test', '1'])],
    ['8.2.1: a space in a field name', get({}, ['x test', '1'])],
    ['8.2.1: a colon in a field name', get({}, ['x:test', '1'])],
    ['8.2.1: a line end in a field name', get({}, ['x\r\ny', '1'])],
    ['8.2.1: bytes beyond ASCII in a field name', get({}, ['x\xe4', '1'])],
    ['8.2.1: an empty field name', get({}, ['', '1'])],
    ['8.2.1: NUL in a value', get({}, ['x-test', 'a\0b'])],
    ['8.2.1: CR in a value', get({}, ['x-test', 'a\rb'])],
    ['8.2.1: LF in a value', get({}, ['x-test', 'a\nb'])],
    ['8.2.1: a line end at the end of a value', get({}, ['x-test', 'a\r\n'])],
    ['8.2.1: a space before a value', get({}, ['x-test', ' a'])],
    ['8.2.1: a tab behind a value', get({}, ['x-test', 'a\t'])],
    ['RFC 9110 section 5.5: another control in a value', get({}, ['x-test', 'a\x7fb'])],
    ['8.2.1: a line end in a cookie', get({}, ['cookie', 'a\r\nx-a: 1'])],
    ['8.2.1: a line end in Host', get({ ':authority': null }, ['host', 'a\r\nx-a: 1'])],
    ['8.2.2: Connection', get({}, ['connection', 'close'])],
    ['8.2.2: Proxy-Connection', get({}, ['proxy-connection', 'keep-alive'])],
    ['8.2.2: Keep-Alive', get({}, ['keep-alive', 'timeout=5'])],
    ['8.2.2: Transfer-Encoding', post(['transfer-encoding', 'chunked'])],
    ['8.2.2: Upgrade', get({}, ['upgrade', 'h2c'])],
    ['8.2.2: TE other than trailers', get({}, ['te', 'trailers, gzip'])],
    ['8.1.1: a Content-Length above zero at the end of the stream', post(['content-length', '1'])],
    ['8.1.1: several Content-Lengths', post(['content-length', '0'], ['content-length', '0'])],
    ['8.1.1: a list of Content-Lengths', post(['content-length', '0, 0'])],
    ['8.1.1: a signed Content-Length', post(['content-length', '+0'])],
    ['8.1.1: an empty Content-Length', post(['content-length', ''])],
    ['8.1.1: a Content-Length past all counting', post(['content-length', '9'.repeat(16)])],
    ['8.5: CONNECT with :scheme and :path', get({ ':method': 'CONNECT' })],
    ['RFC 8441 section 4: :protocol without CONNECT', get({}, [':protocol', 'websocket'])],
  ])('%s', (_, fields) => {
    expect(translate(fields)).toMatchObject({ kind: 'malformed' });
  });

  test.each<[string, FieldList, boolean]>([
    ['without :path', get({ ':method': 'CONNECT', ':path': null }), false],
    ['with Content-Length', get({ ':method': 'CONNECT' }, ['content-length', '5']), false],
    ['at the end of its stream', get({ ':method': 'CONNECT' }), true],
  ])('RFC 8441 section 4: an extended CONNECT %s', (_, fields, endStream) => {
    expect(translate([[':protocol', 'websocket'], ...fields], endStream)).toMatchObject({ kind: 'malformed' });
  });

  test.each<[string, [string, string]]>([
    ['8.1: a pseudo-header field', [':path', '/']],
    ['8.2.1: capitals', ['X-A', '1']],
    ['8.2.1: a line end', ['x-a', '1\r\nx-b: 2']],
    ['8.2.2: a connection-specific field', ['connection', 'close']],
    ['RFC 9110 section 6.5.1: Content-Length', ['content-length', '1']],
    ['RFC 9110 section 6.5.1: Host', ['host', 'a']],
  ])('trailers with %s', (_, field) => {
    expect(translateTrailers(['x-ok', '1', ...field])).toMatchObject({ kind: 'malformed' });
  });
});

describe('answered without a server', () => {
  test('8.5: CONNECT with 405', () => {
    const fields: FieldList = [
      [':method', 'CONNECT'],
      [':authority', 'a.example:443'],
    ];
    expect(translate(fields)).toMatchObject({ kind: 'status', status: 405 });
  });

  test('RFC 9220 section 3: an extended CONNECT for what is not spoken with 501', () => {
    const fields: FieldList = [[':protocol', 'connect-udp'], ...get({ ':method': 'CONNECT' })];
    expect(translate(fields, false)).toMatchObject({ kind: 'status', status: 501 });
  });
});

describe('translated', () => {
  test.each<[string, FieldList, boolean, string]>([
    [
      '8.3.1: OPTIONS *',
      get({ ':method': 'OPTIONS', ':path': '*' }),
      true,
      'OPTIONS * HTTP/1.1\r\nhost: a.example\r\n\r\n',
    ],
    [
      '8.3.1: Host for :authority',
      get({ ':authority': null }, ['host', 'b']),
      true,
      'GET / HTTP/1.1\r\nhost: b\r\n\r\n',
    ],
    ['8.3.1: both of them', get({}, ['host', 'A.example:80']), true, 'GET / HTTP/1.1\r\nhost: a.example\r\n\r\n'],
    ['8.2.2: TE ends here', get({}, ['te', 'trailers']), true, 'GET / HTTP/1.1\r\nhost: a.example\r\n\r\n'],
    [
      '8.2.3: cookie crumbs',
      get({}, ['cookie', 'a=1'], ['x-a', ''], ['cookie', 'b=2']),
      true,
      'GET / HTTP/1.1\r\nhost: a.example\r\nx-a: \r\ncookie: a=1; b=2\r\n\r\n',
    ],
    [
      'a body of a known length',
      post(['content-length', '5']),
      false,
      'POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 5\r\n\r\n',
    ],
    [
      'a body of unknown length',
      post(),
      false,
      'POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n',
    ],
    ['no body', post(), true, 'POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 0\r\n\r\n'],
    [
      'RFC 8441 section 5: WebSocket',
      [[':protocol', 'websocket'], ...get({ ':method': 'CONNECT', ':path': '/chat' }, ['sec-websocket-key', 'x'])],
      false,
      `GET /chat HTTP/1.1\r\nhost: a.example\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: ${KEY}\r\n\r\n`,
    ],
  ])('%s', (_, fields, endStream, head) => {
    expect(headOf(fields, endStream)).toBe(head);
  });

  test('trailers', () => {
    expect(translateTrailers(['x-a', '1', 'x-a', '2'])).toBe('x-a: 1\r\nx-a: 2\r\n');
  });
});

// What is accepted, whatever it is, has one reading only: as many fields as came, with their values.
test('no field can become two, or another', () => {
  const text = fc.oneof(
    { weight: 3, arbitrary: fc.string({ maxLength: 12 }) },
    fc.string({ unit: fc.constantFrom('\r', '\n', '\0', ' ', '\t', ':', ',', 'a', '\xe4', '\x85'), maxLength: 8 }),
  );
  const name = fc.oneof(
    fc.constantFrom('x-a', 'x-b', 'cookie', 'host', 'content-length', 'te', 'transfer-encoding', 'expect'),
    text,
  );
  const value = fc.oneof(fc.constantFrom('0', '1', 'a.example', 'trailers', 'chunked'), text);
  const path = fc.oneof(
    fc.constant('/'),
    text.map((rest) => `/${rest}`),
  );
  const authority = fc.oneof(fc.constant('a.example'), text);
  const fields = fc.array(fc.tuple(name, value), { maxLength: 6 });
  fc.assert(
    fc.property(path, authority, fields, fc.boolean(), (target, host, more, endStream) => {
      const request = translate(get({ ':path': target, ':authority': host }, ...more), endStream);
      if (request.kind !== 'request') return;
      const bytes = Buffer.from(request.head, 'latin1');
      const head = parseRequest(bytes);
      // A path of what RFC 3986 doesn't allow is the engine's to refuse.
      if (typeof head !== 'object') throw new Error(`${JSON.stringify(request.head)} gives ${head}`);
      expect(head.length).toBe(bytes.length);
      // Of length zero there is nothing to come.
      const framing = request.contentLength === 0 ? 'none' : request.framing;
      expect([head.method, head.target, head.framing]).toEqual(['GET', target, framing]);
      const read = Array.from({ length: head.fields.count }, (_, at) => [
        nameOf(head.fields, at),
        valueOf(head.fields, at),
      ]);
      const own = new Set(['host', 'cookie', 'content-length', 'transfer-encoding', 'te', 'http2-settings']);
      expect(read.filter(([one]) => !own.has(one!))).toEqual(more.filter(([one]) => !own.has(one)));
    }),
    { numRuns: 5_000 },
  );
});

test('6.5.2: what fits the advertised header list fits a head', () => {
  const count = 99;
  const size = Math.floor(MAX_HEAD_BYTES / count) - 32 - 4;
  const fields = Array.from({ length: count }, (_, index): [string, string] => [
    `x-${String(index).padStart(2, '0')}`,
    'x'.repeat(size),
  ]);
  expect(headOf(get({}, ...fields)).length).toBeLessThan(MAX_HEAD_BYTES);
});

describe('responses', () => {
  const parsed = (fields: string) => {
    const head = parseResponse(Buffer.from(`HTTP/1.1 200 OK\r\n${fields}\r\n`, 'latin1'), 'GET');
    if (typeof head !== 'object') throw new Error(`gives ${head}`);
    return responseFields(head, head.status);
  };

  test('8.2.2: without connection-specific fields and those that Connection names', () => {
    const fields = 'Connection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: a\r\nProxy-Connection: a\r\nUpgrade: a\r\n';
    expect(parsed(`${fields}Transfer-Encoding: chunked\r\nX-A: 1\r\n`)).toEqual([':status', '200', 'x-a', '1']);
  });

  test('8.2: names in lower case, repeated fields in their order', () => {
    expect(parsed('Set-Cookie: a\r\nX-B: \r\nSet-Cookie: b\r\n')).toEqual([
      ':status',
      '200',
      'set-cookie',
      'a',
      'x-b',
      '',
      'set-cookie',
      'b',
    ]);
  });

  test('8.1: trailers without what may not stand there', () => {
    const trailers = responseTrailers('X-A: 1\r\nContent-Length: 1\r\nConnection: close\r\nx-a:2\r\n:status: 200\r\n');
    expect(trailers).toEqual({ 'x-a': ['1', '2'] });
  });
});
