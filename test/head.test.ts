/** What is accepted of a message head, and how it is read: one test a rule of RFC 9110 and RFC 9112. */
import { describe, expect, test } from 'vitest';
import { cookieOf, FORWARDED_PROTO, headerOf, HOP_BY_HOP, kindOf, nameOf, valueOf } from '../src/proxy/fields.ts';
import type { Fields } from '../src/proxy/fields.ts';
import { parseRequest, parseResponse } from '../src/proxy/head.ts';
import type { RequestHead, ResponseHead } from '../src/proxy/head.ts';

const bytes = (text: string): Buffer => Buffer.from(text, 'latin1');
const request = (text: string) => parseRequest(bytes(text));

const accepted = (text: string): RequestHead => {
  const head = request(text);
  if (typeof head !== 'object') throw new Error(`${JSON.stringify(text)} gives ${head}`);
  return head;
};

const acceptedResponse = (text: string, method = 'GET'): ResponseHead => {
  const head = parseResponse(bytes(text), method);
  if (typeof head !== 'object') throw new Error(`${JSON.stringify(text)} gives ${head}`);
  return head;
};

/** Names of the fields that are not passed on. */
const hopByHop = ({ fields }: { fields: Fields }): string[] =>
  Array.from({ length: fields.count }, (_, index) => index)
    .filter((index) => kindOf(fields, index) === HOP_BY_HOP)
    .map((index) => nameOf(fields, index));

const fieldsOf = (fields: Fields): string[] =>
  Array.from({ length: fields.count }, (_, index) => [nameOf(fields, index), valueOf(fields, index)]).flat();

const H = 'Host: a\r\n';

describe('refusals', () => {
  test.each<[string, number, string]>([
    [
      '9112 6.3: Content-Length beside Transfer-Encoding',
      400,
      `POST / HTTP/1.1\r\n${H}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n`,
    ],
    [
      '9112 6.3: differing Content-Lengths',
      400,
      `POST / HTTP/1.1\r\n${H}Content-Length: 1\r\nContent-Length: 2\r\n\r\n`,
    ],
    ['9112 6.3: repeated Content-Length', 400, `POST / HTTP/1.1\r\n${H}Content-Length: 1\r\nContent-Length: 1\r\n\r\n`],
    ['9112 6.3: a list of Content-Lengths', 400, `POST / HTTP/1.1\r\n${H}Content-Length: 1, 1\r\n\r\n`],
    ['9110 8.6: a signed Content-Length', 400, `POST / HTTP/1.1\r\n${H}Content-Length: +1\r\n\r\n`],
    ['9110 8.6: a hexadecimal Content-Length', 400, `POST / HTTP/1.1\r\n${H}Content-Length: 0x1\r\n\r\n`],
    ['9110 8.6: an empty Content-Length', 400, `POST / HTTP/1.1\r\n${H}Content-Length: \r\n\r\n`],
    [
      '9110 8.6: a Content-Length past all counting',
      400,
      `POST / HTTP/1.1\r\n${H}Content-Length: 99999999999999999999\r\n\r\n`,
    ],
    ['9112 6.1: Transfer-Encoding in HTTP/1.0', 400, `POST / HTTP/1.0\r\n${H}Transfer-Encoding: chunked\r\n\r\n`],
    ['9112 6.1: chunked not last', 400, `POST / HTTP/1.1\r\n${H}Transfer-Encoding: chunked, gzip\r\n\r\n`],
    [
      '9112 6.1: an encoding that we do not know',
      501,
      `POST / HTTP/1.1\r\n${H}Transfer-Encoding: gzip, chunked\r\n\r\n`,
    ],
    ['9112 6.1: Transfer-Encoding: identity', 400, `POST / HTTP/1.1\r\n${H}Transfer-Encoding: identity\r\n\r\n`],
    [
      '9112 6.1: two Transfer-Encodings',
      400,
      `POST / HTTP/1.1\r\n${H}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n`,
    ],
    ['9112 5.1: a space before the colon', 400, `GET / HTTP/1.1\r\n${H}X : 1\r\n\r\n`],
    ['9112 5.1: a name that is no token', 400, `GET / HTTP/1.1\r\n${H}X(y): 1\r\n\r\n`],
    ['9112 5.1: an empty name', 400, `GET / HTTP/1.1\r\n${H}: 1\r\n\r\n`],
    ['9112 5.2: obs-fold', 400, `GET / HTTP/1.1\r\n${H}X: 1\r\n 2\r\n\r\n`],
    ['9112 2.2: white space before the first field', 400, `GET / HTTP/1.1\r\n ${H}\r\n`],
    ['9112 2.2: a bare CR in a value', 400, `GET / HTTP/1.1\r\n${H}X: 1\r2\r\n\r\n`],
    ['9112 2.2: a bare LF behind a field', 400, `GET / HTTP/1.1\r\n${H}X: 1\n\r\n`],
    ['9112 2.2: a bare LF behind the request line', 400, `GET / HTTP/1.1\n${H}\r\n`],
    ['9112 2.2: a bare LF as the empty line', 400, `GET / HTTP/1.1\r\n${H}\n`],
    ['9110 5.5: NUL in a value', 400, `GET / HTTP/1.1\r\n${H}X: \0\r\n\r\n`],
    ['9110 5.5: a control in a value', 400, `GET / HTTP/1.1\r\n${H}X: \x0b\r\n\r\n`],
    ['9110 5.5: DEL in a value', 400, `GET / HTTP/1.1\r\n${H}X: \x7f\r\n\r\n`],
    ['9112 3.2: no Host', 400, 'GET / HTTP/1.1\r\n\r\n'],
    ['9112 3.2: two Hosts', 400, `GET / HTTP/1.1\r\n${H}${H}\r\n`],
    ['9112 3.2: a list as Host', 400, 'GET / HTTP/1.1\r\nHost: a, b\r\n\r\n'],
    ['9112 3.2: a Host with a user', 400, 'GET / HTTP/1.1\r\nHost: u@a\r\n\r\n'],
    ['9112 3.2: a Host with a path', 400, 'GET / HTTP/1.1\r\nHost: a/b\r\n\r\n'],
    ['9112 3.2: a Host whose port is no number', 400, 'GET / HTTP/1.1\r\nHost: a:b\r\n\r\n'],
    ['9112 3.2: a fragment in the target', 400, `GET /#x HTTP/1.1\r\n${H}\r\n`],
    ['9112 3.2: a space in the target', 400, `GET /a b HTTP/1.1\r\n${H}\r\n`],
    ['9112 3.2: a byte above ASCII in the target', 400, `GET /\xe4 HTTP/1.1\r\n${H}\r\n`],
    ['9112 3.2.3: authority form without CONNECT', 400, `GET a:80 HTTP/1.1\r\n${H}\r\n`],
    ['9112 3.2.4: * without OPTIONS', 400, `GET * HTTP/1.1\r\n${H}\r\n`],
    ['9110 4.2.4: a user in an absolute target', 400, `GET http://u@a/ HTTP/1.1\r\n${H}\r\n`],
    ['9110 9.3.6: CONNECT', 405, 'CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n'],
    ['9112 3: two spaces', 400, `GET  / HTTP/1.1\r\n${H}\r\n`],
    ['9112 3: HTTP/0.9', 400, 'GET /\r\n'],
    ['9112 2.3: a version in lower case', 400, `GET / http/1.1\r\n${H}\r\n`],
    ['9112 2.3: HTTP/2.0', 505, `GET / HTTP/2.0\r\n${H}\r\n`],
    ['9110 15.5.15: a target of 9,000 bytes', 414, `GET /${'x'.repeat(9_000)} HTTP/1.1\r\n${H}\r\n`],
    ['6585 5: a head above 16 KiB', 431, `GET / HTTP/1.1\r\n${H}X: ${'x'.repeat(17_000)}\r\n\r\n`],
    ['6585 5: more than 100 fields', 431, `GET / HTTP/1.1\r\n${H}${'X: 1\r\n'.repeat(101)}\r\n`],
    ['9112 6.1: chunked twice', 400, `POST / HTTP/1.1\r\n${H}Transfer-Encoding: chunked, chunked\r\n\r\n`],
    ['9112 6.1: a coding that only ends in chunked', 400, `POST / HTTP/1.1\r\n${H}Transfer-Encoding: xchunked\r\n\r\n`],
    ['9112 6.1: chunked with a parameter', 400, `POST / HTTP/1.1\r\n${H}Transfer-Encoding: chunked;a=b\r\n\r\n`],
    ['9112 6.1: an empty coding in the list', 400, `POST / HTTP/1.1\r\n${H}Transfer-Encoding: , chunked\r\n\r\n`],
    ['9112 6.1: a tab behind chunked', 400, `POST / HTTP/1.1\r\n${H}Transfer-Encoding: chunked\t\r\n\r\n`],
    ['9112 6.1: VT before chunked', 400, `POST / HTTP/1.1\r\n${H}Transfer-Encoding: \x0bchunked\r\n\r\n`],
    [
      '9112 6.1: Transfer_Encoding, which CGI takes for it',
      400,
      `POST / HTTP/1.1\r\n${H}Transfer_Encoding: chunked\r\n\r\n`,
    ],
    ['9112 6.3: Content_Length, which CGI takes for it', 400, `POST / HTTP/1.1\r\n${H}Content_Length: 1\r\n\r\n`],
    ['9112 5.1: a tab before the colon', 400, `GET / HTTP/1.1\r\n${H}X\t: 1\r\n\r\n`],
    ['9112 5.2: obs-fold with a tab', 400, `GET / HTTP/1.1\r\n${H}X: 1\r\n\t2\r\n\r\n`],
    ['9112 2.2: CR CR LF behind a field', 400, `GET / HTTP/1.1\r\n${H}X: 1\r\r\n\r\n`],
    ['9112 2.2: a bare CR before the request line', 400, `\rGET / HTTP/1.1\r\n${H}\r\n`],
    ['9112 2.2: a bare LF before the request line', 400, `\nGET / HTTP/1.1\r\n${H}\r\n`],
    ['9112 2.2: a bare LF in a value', 400, `GET / HTTP/1.1\r\n${H}X: 1\nHost: b\r\n\r\n`],
    ['9110 5.6.2: a method that is no token', 400, `G@T / HTTP/1.1\r\n${H}\r\n`],
    ['9112 3.2: two Hosts that agree', 400, `GET / HTTP/1.1\r\n${H}X: 1\r\n${H}\r\n`],
    ['9112 3.2: a list as Host without a space', 400, 'GET / HTTP/1.1\r\nHost: a,b\r\n\r\n'],
    ['9112 3.2: a Host of two words', 400, 'GET / HTTP/1.1\r\nHost: a b\r\n\r\n'],
    ['9112 3.2: a Host above ASCII', 400, 'GET / HTTP/1.1\r\nHost: \xe4\r\n\r\n'],
    ['9112 3.2: a Host with a broken percent-encoding', 400, 'GET / HTTP/1.1\r\nHost: a%zz\r\n\r\n'],
    ['9112 3.2: an IPv6 address without brackets', 400, 'GET / HTTP/1.1\r\nHost: ::1\r\n\r\n'],
    ['9112 3.2: brackets around what is no IPv6 address', 400, 'GET / HTTP/1.1\r\nHost: [::1::]\r\n\r\n'],
    ['9110 4.2.1: a port without a host in Host', 400, 'GET / HTTP/1.1\r\nHost: :80\r\n\r\n'],
    ['9110 4.2.1: an absolute target without a host', 400, `GET http:///x HTTP/1.1\r\n${H}\r\n`],
    ['9112 3.2: an absolute target does not save a missing Host', 400, 'GET http://a/ HTTP/1.1\r\n\r\n'],
    ['9112 3.2: an absolute target does not save an invalid Host', 400, 'GET http://a/ HTTP/1.1\r\nHost: a b\r\n\r\n'],
    ['9112 3.2: a fragment in an absolute target', 400, `GET http://a/#x HTTP/1.1\r\n${H}\r\n`],
    ['9112 3.2.2: an absolute target of another scheme', 400, `GET ftp://a/ HTTP/1.1\r\n${H}\r\n`],
    ['9112 3.2: a control in the target', 400, `GET /\x01 HTTP/1.1\r\n${H}\r\n`],
    ['9112 3.2: a tab in the target', 400, `GET /\t HTTP/1.1\r\n${H}\r\n`],
    ['9112 3: a tab behind the method', 400, `GET\t/ HTTP/1.1\r\n${H}\r\n`],
    ['9112 3: a space behind the version', 400, `GET / HTTP/1.1 \r\n${H}\r\n`],
    ['9112 3: a space before the method', 400, ` GET / HTTP/1.1\r\n${H}\r\n`],
    ['9112 2.3: HTTP/1.2', 505, `GET / HTTP/1.2\r\n${H}\r\n`],
    ['9113 3.4: the preface of HTTP/2', 505, 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'],
    ['9110 15.5.15: a target without an end', 414, `GET /${'x'.repeat(9_000)}`],
    ['9110 9.1: a method without an end', 400, 'x'.repeat(9_000)],
    ['6585 5: a head without an end', 431, `GET / HTTP/1.1\r\n${H}X: ${'x'.repeat(17_000)}`],
    ['6585 5: empty lines without an end', 431, '\r\n'.repeat(9_000)],
    [
      '9110 7.6.1: more options in Connection than anybody means',
      400,
      `GET / HTTP/1.1\r\n${H}Connection: ${'x, '.repeat(20)}\r\n\r\n`,
    ],
  ])('RFC %s is answered with %i', (_rule, status, text) => {
    expect(request(text)).toBe(status);
  });
});

describe('what is read', () => {
  test('RFC 9112 2.2: empty lines before the request line are ignored', () => {
    expect(accepted(`\r\n\r\nGET /x HTTP/1.1\r\n${H}\r\n`)).toMatchObject({ method: 'GET', path: '/x' });
  });

  test('RFC 9112 3.2.2: of an absolute target the authority counts, not Host', () => {
    const head = accepted('GET HTTP://Real.example:8080?q HTTP/1.1\r\nHost: other\r\n\r\n');
    expect(head).toMatchObject({ host: 'real.example', target: '/?q', authority: 'Real.example:8080' });
  });

  test('RFC 9112 3.2.4: OPTIONS for an absolute target without path and query is about the server', () => {
    expect(accepted(`OPTIONS http://a.example:8001 HTTP/1.1\r\n${H}\r\n`).target).toBe('*');
    expect(accepted(`OPTIONS http://a.example:8001?x HTTP/1.1\r\n${H}\r\n`).target).toBe('/?x');
    expect(accepted(`OPTIONS * HTTP/1.1\r\n${H}\r\n`).target).toBe('*');
  });

  test.each([
    ['/a/b?c=d?e', '/a/b', 'c=d?e'],
    ['/', '/', ''],
    ['/?', '/', ''],
    ['/{a}|b^`"\\<c>', '/{a}|b^`"\\<c>', ''],
    ['http://h/x?y', '/x', 'y'],
    ['https://h', '/', ''],
  ])('RFC 9112 3.2: of the target %j, %j is the path and %j the query', (target, path, query) => {
    expect(accepted(`GET ${target} HTTP/1.1\r\n${H}\r\n`)).toMatchObject({ path, query });
  });

  test('the input may be anywhere in a buffer and is not needed afterwards', () => {
    const input = bytes(`xxGET /a HTTP/1.1\r\n${H}X: 1\r\n\r\nGET /b HTTP/1.1\r\n${H}\r\n`);
    const first = parseRequest(input, 2);
    if (typeof first !== 'object') throw new Error(String(first));
    const second = parseRequest(input, 2 + first.length, input.length);
    input.fill(0);
    expect(first).toMatchObject({ path: '/a', host: 'a' });
    expect(fieldsOf(first.fields)).toEqual(['Host', 'a', 'X', '1']);
    expect(second).toMatchObject({ path: '/b', length: 28 });
    expect(parseRequest(bytes(`GET / HTTP/1.1\r\n${H}\r\n`), 0, 20)).toBe('more');
  });

  test('heads that are kept stay as they were, however many and however long', () => {
    const lengths = Array.from({ length: 300 }, (_, index) => (index * 97) % 12_000);
    const heads = lengths.map((length, index) =>
      accepted(`GET /${index} HTTP/1.1\r\nHost: h${index}\r\nX: ${String(index % 10).repeat(length)}\r\n\r\n`),
    );
    for (const [index, length] of lengths.entries()) {
      const { fields, host, target } = heads[index]!;
      expect([target, host, ...fieldsOf(fields)]).toEqual([
        ...[`/${index}`, `h${index}`, 'Host', `h${index}`],
        ...['X', String(index % 10).repeat(length)],
      ]);
    }
  });

  test('RFC 9110 9.1: methods are passed on as they are, known or not', () => {
    for (const method of ['GET', 'POST', 'PUT', 'HEAD', 'DELETE', 'PATCH', 'OPTIONS', 'QUERY', 'get', 'GETS', 'PUB'])
      expect(accepted(`${method} / HTTP/1.1\r\n${H}\r\n`).method).toBe(method);
  });

  test('RFC 9112 6: the framing of a request', () => {
    const framing = (fields: string) => accepted(`POST / HTTP/1.1\r\n${H}${fields}\r\n`);
    expect(framing('')).toMatchObject({ framing: 'none', contentLength: -1, chunked: false });
    expect(framing('Content-Length: 0\r\n')).toMatchObject({ framing: 'none', contentLength: 0 });
    expect(framing('content-length:  007 \r\n')).toMatchObject({ framing: 'length', contentLength: 7 });
    expect(framing('Transfer-Encoding: Chunked\r\n')).toMatchObject({ framing: 'chunked', chunked: true });
    expect(framing('Content-Length: 999999999999999\r\n')).toMatchObject({ contentLength: 999_999_999_999_999 });
  });

  test('RFC 9110 7.8: Upgrade counts when Connection names it, there is one, and the client is of HTTP/1.1', () => {
    const upgrade = (fields: string, minor = 1) => accepted(`GET / HTTP/1.${minor}\r\n${H}${fields}\r\n`).upgrade;
    expect(upgrade('Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n')).toBe('websocket');
    expect(upgrade('Upgrade: websocket\r\n')).toBe(null);
    expect(upgrade('Connection: upgrade\r\n')).toBe(null);
    expect(upgrade('Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n')).toBe(null);
    expect(upgrade('Connection: upgrade\r\nUpgrade: websocket\r\n', 0)).toBe(null);
  });

  test('RFC 9110 10.1.1 and 10.1.4: Expect: 100-continue and TE: trailers are seen, but not from HTTP/1.0', () => {
    const fields = `${H}Expect: 100-Continue\r\nTE: deflate;q=0.5, Trailers\r\n\r\n`;
    expect(accepted(`GET / HTTP/1.1\r\n${fields}`)).toMatchObject({ expectsContinue: true, trailers: true });
    expect(accepted(`GET / HTTP/1.0\r\n${fields}`)).toMatchObject({ expectsContinue: false, trailers: false });
    const others = `${H}Expect: x\r\nTE: trailers;q=0\r\n\r\n`;
    expect(accepted(`GET / HTTP/1.1\r\n${others}`)).toMatchObject({ expectsContinue: false, trailers: false });
  });

  test('RFC 9110 5.5: every byte that a value may not hold is found wherever it stands', () => {
    for (let byte = 0; byte < 256; byte++) {
      const isAllowed = byte === 9 || (byte >= 32 && byte !== 127);
      for (let before = 0; before < 24; before++) {
        const text = `GET / HTTP/1.1\r\n${H}X: ${'v'.repeat(before)}${String.fromCharCode(byte)}vvvvvvvvv\r\n\r\n`;
        expect(typeof request(text), `${byte} behind ${before}`).toBe(isAllowed ? 'object' : 'number');
      }
    }
  });

  test('RFC 9110 5.3: fields of one name are one list, cookies one cookie string', () => {
    const { fields } = accepted(
      `GET / HTTP/1.1\r\n${H}x-a: 1\r\nCookie: a=1; b="2 3"\r\nX-A:  2 \r\nX-Ab: 3\r\ncookie: c=4;d; a=5\r\n\r\n`,
    );
    expect(headerOf(fields, 'x-a')).toBe('1, 2');
    expect(headerOf(fields, 'x-b')).toBe(null);
    expect(headerOf(fields, 'cookie')).toBe('a=1; b="2 3"; c=4;d; a=5');
    expect(['a', 'b', 'c', 'd', 'A', ''].map((name) => cookieOf(fields, name))).toEqual([
      '1',
      '2 3',
      '4',
      null,
      null,
      null,
    ]);
    expect(cookieOf(accepted(`GET / HTTP/1.1\r\n${H}\r\n`).fields, 'a')).toBe(null);
  });

  test.each([
    ['a.example:80', 'a.example'],
    ['A.Example', 'a.example'],
    ['[::1]:8080', '[::1]'],
    ['', ''],
  ])('RFC 9110 7.2: Host %j is the host %j', (host, expected) => {
    expect(accepted(`GET / HTTP/1.1\r\nHost: ${host}\r\n\r\n`).host).toBe(expected);
  });

  test('RFC 9112 9.3: HTTP/1.1 is kept alive unless closed, HTTP/1.0 only when asked', () => {
    const keepAlive = (version: string, connection: string) =>
      accepted(`GET / HTTP/${version}\r\n${H}Connection: ${connection}\r\n\r\n`).keepAlive;
    expect(keepAlive('1.1', 'x')).toBe(true);
    expect(keepAlive('1.1', 'x, Close')).toBe(false);
    expect(keepAlive('1.0', 'x')).toBe(false);
    expect(keepAlive('1.0', 'Keep-Alive')).toBe(true);
    expect(keepAlive('1.0', 'keep-alive, close')).toBe(false);
  });

  test('RFC 9112 5: white space around a value is not its part', () => {
    expect(fieldsOf(accepted('GET / HTTP/1.1\r\nHost:\t a \t\r\n\r\n').fields)).toEqual(['Host', 'a']);
  });

  test('RFC 9110 7.6.1: fields of the connection, and those named in Connection, end here', () => {
    const head = accepted(
      `GET / HTTP/1.1\r\n${H}Connection: x-a, TE\r\nX-A: 1\r\nx-a: 2\r\nX-B: 3\r\nKeep-Alive: 5\r\nTE: gzip\r\n` +
        'Proxy-Connection: close\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nconnection: ,X-C\r\nX-C: 4\r\n\r\n',
    );
    const ending = ['Connection', 'X-A', 'x-a', 'Keep-Alive', 'TE', 'Proxy-Connection', 'Upgrade', 'HTTP2-Settings'];
    expect(hopByHop(head)).toEqual([...ending, 'connection', 'X-C']);
  });

  test.each([
    ...['Content-Length', 'X-Forwarded-For', 'X-Forwarded-Proto', 'X-Forwarded-Host', 'Forwarded', 'X-Real-IP', 'Via'],
    ...['Cookie', 'Authorization', 'Cache-Control', 'Expect'],
  ])('RFC 9110 7.6.1: %s is meant for all recipients, and Connection does not remove it', (name) => {
    const head = accepted(`GET / HTTP/1.1\r\n${H}${name}: 1\r\nConnection: ${name.toLowerCase()}, host\r\n\r\n`);
    expect(hopByHop(head)).toEqual(['Connection']);
  });

  test('RFC 9110 7.6.1: Transfer-Encoding is not removed by naming it in Connection', () => {
    const head = accepted(`PUT / HTTP/1.1\r\n${H}Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding\r\n\r\n`);
    expect(hopByHop(head)).toEqual(['Connection']);
  });

  test('names that CGI takes for X-Forwarded-For or X-Forwarded-Proto do not pass beside them', () => {
    expect(hopByHop(accepted(`GET / HTTP/1.1\r\n${H}X_Forwarded-For: 1\r\nX-Forwarded-For: 2\r\n\r\n`))).toEqual([
      'X_Forwarded-For',
    ]);
    const { fields } = accepted(`GET / HTTP/1.1\r\n${H}X_FORWARDED_PROTO: https\r\n\r\n`);
    expect(kindOf(fields, 1)).toBe(FORWARDED_PROTO);
  });
});

describe('responses', () => {
  const framing = (text: string, method = 'GET') => {
    const head = parseResponse(bytes(text), method);
    return typeof head === 'object' ? head.framing : head;
  };

  test.each([
    ['HTTP/1.1 200 OK\r\n\r\n', 'untilClose'],
    ['HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n', 'none'],
    ['HTTP/1.1 200\r\nContent-Length: 1\r\n\r\n', 'length'],
    ['HTTP/1.1 200 \r\nTransfer-Encoding: Chunked\r\n\r\n', 'chunked'],
    ['HTTP/1.1 204 No\r\n\r\n', 'none'],
    ['HTTP/1.1 304 Not\r\nContent-Length: 5\r\n\r\n', 'none'],
  ])('RFC 9112 6.3: %j has the framing %s', (text, expected) => {
    expect(framing(text)).toBe(expected);
    expect(framing(text, 'HEAD')).toBe('none');
  });

  test.each([
    ['9112 4: a status that is no three digits', 'HTTP/1.1 2e2 OK\r\n\r\n'],
    ['9112 4: a status below 100', 'HTTP/1.1 099 OK\r\n\r\n'],
    ['9112 4: a control in the reason', 'HTTP/1.1 200 O\0\r\n\r\n'],
    ['9112 6.1: Transfer-Encoding in HTTP/1.0', 'HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'],
    ['9112 6.3: differing lengths', 'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n'],
  ])('RFC %s is a 502', (_rule, text) => {
    expect(framing(text)).toBe(502);
  });

  test.each([
    ['9112 4: HTTP/2.0', 'HTTP/2.0 200 OK\r\n\r\n'],
    ['9112 4: a version in lower case', 'http/1.1 200 OK\r\n\r\n'],
    ['9112 4: two spaces', 'HTTP/1.1  200 OK\r\n\r\n'],
    ['9112 4: a status of four digits', 'HTTP/1.1 2000 OK\r\n\r\n'],
    ['9112 4: a status above 599', 'HTTP/1.1 600 OK\r\n\r\n'],
    ['9112 4: an empty line before it', '\r\nHTTP/1.1 200 OK\r\n\r\n'],
    ['9112 2.2: a bare LF behind the status line', 'HTTP/1.1 200 OK\nX: 1\r\n\r\n'],
    ['9112 2.2: a bare CR in the reason', 'HTTP/1.1 200 O\rK\r\n\r\n'],
    ['9112 2.2: a bare LF behind a field', 'HTTP/1.1 200 OK\r\nX: 1\n\r\n'],
    ['9112 5.1: a space before the colon', 'HTTP/1.1 200 OK\r\nX : 1\r\n\r\n'],
    ['9112 5.2: obs-fold', 'HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\n\r\n'],
    ['9110 5.5: NUL in a value', 'HTTP/1.1 200 OK\r\nX: \0\r\n\r\n'],
    [
      '9112 6.3: Content-Length beside Transfer-Encoding',
      'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n',
    ],
    ['9112 6.3: repeated Content-Length', 'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n'],
    ['9110 8.6: a Content-Length that is no length', 'HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n'],
    ['9112 6.1: an encoding that we do not know', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n'],
    ['9112 6.1: chunked not last', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n'],
    ['9112 6.1: Transfer-Encoding in an interim response', 'HTTP/1.1 103 Hints\r\nTransfer-Encoding: chunked\r\n\r\n'],
    ['9110 8.6: a Content-Length in an interim response', 'HTTP/1.1 103 Hints\r\nContent-Length: 5\r\n\r\n'],
    ['6585 5: a head above 16 KiB', `HTTP/1.1 200 OK\r\nX: ${'x'.repeat(17_000)}\r\n\r\n`],
    ['6585 5: a head without an end', `HTTP/1.1 200 ${'x'.repeat(17_000)}`],
    ['6585 5: more than 100 fields', `HTTP/1.1 200 OK\r\n${'X: 1\r\n'.repeat(101)}\r\n`],
  ])('RFC %s is a 502 too', (_rule, text) => {
    expect(framing(text)).toBe(502);
  });

  test('RFC 9112 9.3: a connection whose response ends with it is not kept', () => {
    expect(acceptedResponse('HTTP/1.1 200 OK\r\n\r\n').keepAlive).toBe(false);
    expect(acceptedResponse('HTTP/1.1 200 OK\r\n\r\n', 'HEAD').keepAlive).toBe(true);
    expect(acceptedResponse('HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n').keepAlive).toBe(true);
    expect(acceptedResponse('HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n').keepAlive).toBe(false);
    expect(acceptedResponse('HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Close\r\n\r\n').keepAlive).toBe(false);
  });

  test('a response may be anywhere in a buffer', () => {
    const input = bytes('xxHTTP/1.1 100 \r\n\r\nHTTP/1.1 404 Not Found\r\nX: 1\r\nContent-Length: 3\r\n\r\nabc');
    expect(parseResponse(input, 'GET', 2)).toMatchObject({ status: 100, length: 17, framing: 'none' });
    const head = parseResponse(input, 'GET', 19);
    if (typeof head !== 'object') throw new Error(String(head));
    expect(head).toMatchObject({ status: 404, length: 51, contentLength: 3 });
    expect(input.toString('latin1', head.reasonStart, head.reasonEnd)).toBe('Not Found');
    expect(fieldsOf(head.fields)).toEqual(['X', '1', 'Content-Length', '3']);
    expect(parseResponse(input, 'GET', 19, 60)).toBe('more');
  });
});

test('a head split at any byte gives more, and then the same', () => {
  const requests = [
    ...[
      'GET / HTTP/2.0\r\nHost: a\r\n\r\n',
      'CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n',
      '\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n',
    ],
    ...[
      'POST http://a HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n',
      'GET / HTTP/1.0\r\nX:\t \t1\t \r\n\r\n',
    ],
  ];
  for (const text of requests) {
    const whole = request(text);
    for (let cut = 0; cut < text.length; cut++)
      // Refused at once or when it is complete, but always with the same status.
      expect(typeof whole === 'object' ? ['more'] : ['more', whole]).toContain(request(text.slice(0, cut)));
  }
  const response = 'HTTP/1.1 200 OK\r\nX: 1\r\nContent-Length: 0\r\n\r\n';
  for (let cut = 0; cut < response.length; cut++) expect(parseResponse(bytes(response), 'GET', 0, cut)).toBe('more');
});
