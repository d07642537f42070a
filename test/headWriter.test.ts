/** Heads as they are sent on: what stays, what goes, what rules change, and that no value can bring a line of its own. */
import { describe, expect, test } from 'vitest';
import { isEditable } from '../src/proxy/headEdits.ts';
import type { HeaderEdit } from '../src/proxy/headEdits.ts';
import { parseRequest, parseResponse } from '../src/proxy/head.ts';
import { writeRequestHead, writeResponseHead } from '../src/proxy/headWriter.ts';
import type { RequestChanges, ResponseChanges } from '../src/proxy/headWriter.ts';

const OUT = Buffer.alloc(128 * 1024, '?');
const H = 'Host: a\r\n';
const OURS = 'X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n';

const request: RequestChanges = {
  target: null,
  defaultHost: '10.0.0.1:80',
  upgrade: false,
  forwardedFor: '192.0.2.7',
  forwardedProto: 'https',
  edits: [],
};
const response: ResponseChanges = { dropTransferEncoding: false, dropContentLength: false, edits: [], extra: '' };

const sent = (text: string, changes: Partial<RequestChanges> = {}): string => {
  const head = parseRequest(Buffer.from(text, 'latin1'));
  if (typeof head !== 'object') throw new Error(`${JSON.stringify(text)} gives ${head}`);
  const end = writeRequestHead(OUT, 3, head, { ...request, ...changes });
  return OUT.toString('latin1', 3, end);
};

const answered = (text: string, changes: Partial<ResponseChanges> = {}, method = 'GET'): string => {
  const head = parseResponse(Buffer.from(`xx${text}`, 'latin1'), method, 2);
  if (typeof head !== 'object') throw new Error(`${JSON.stringify(text)} gives ${head}`);
  const end = writeResponseHead(OUT, 3, head, { ...response, ...changes });
  return OUT.toString('latin1', 3, end);
};

describe('requests', () => {
  test('a head without anything of its hop goes on as it came', () => {
    const text = `GET /a?b HTTP/1.1\r\nX-First:  1 \r\n${H}X-\xe4: \xe4`.replace('-\xe4:', '-E:');
    expect(sent(`${text}\r\n\r\n`)).toBe(`${text}\r\n${OURS}\r\n`);
  });

  test('RFC 9110 7.6.1: what belongs to the connection stays behind, wherever it stands', () => {
    const text =
      `GET / HTTP/1.1\r\nConnection: x\r\nX: 1\r\n${H}Keep-Alive: 1\r\nA: 1\r\nB: 2\r\n` +
      'Proxy-Connection: y\r\nX-Forwarded-Proto: http\r\nC: 3\r\nTE: gzip\r\nUpgrade: h2c\r\nHTTP2-Settings: a\r\n\r\n';
    expect(sent(text)).toBe(`GET / HTTP/1.1\r\n${H}A: 1\r\nB: 2\r\nC: 3\r\n${OURS}\r\n`);
  });

  test('X-Forwarded-For is a line of its own behind those that came, or replaces them, or is not added', () => {
    const text = `GET / HTTP/1.1\r\n${H}X-Forwarded-For: 1\r\n\r\n`;
    expect(sent(text)).toBe(`GET / HTTP/1.1\r\n${H}X-Forwarded-For: 1\r\n${OURS}\r\n`);
    expect(sent(text, { replaceForwardedFor: true })).toBe(`GET / HTTP/1.1\r\n${H}${OURS}\r\n`);
    expect(sent(text, { forwardedFor: null })).toBe(
      `GET / HTTP/1.1\r\n${H}X-Forwarded-For: 1\r\nX-Forwarded-Proto: https\r\n\r\n`,
    );
  });

  test('RFC 9112 3.2.2: the authority of an absolute target becomes Host', () => {
    expect(sent(`GET http://B:81/x?y HTTP/1.1\r\nA: 1\r\n${H}C: 2\r\n\r\n`)).toBe(
      `GET /x?y HTTP/1.1\r\nHost: B:81\r\nA: 1\r\nC: 2\r\n${OURS}\r\n`,
    );
    expect(sent(`OPTIONS http://b HTTP/1.1\r\n${H}\r\n`)).toBe(`OPTIONS * HTTP/1.1\r\nHost: b\r\n${OURS}\r\n`);
  });

  test('RFC 9112 3.2: a request of HTTP/1.0 goes on as HTTP/1.1, with Host', () => {
    expect(sent('GET / HTTP/1.0\r\n\r\n')).toBe(`GET / HTTP/1.1\r\nHost: 10.0.0.1:80\r\n${OURS}\r\n`);
    expect(sent(`GET / HTTP/1.0\r\nA: 1\r\n${H}\r\n`)).toBe(`GET / HTTP/1.1\r\nA: 1\r\n${H}${OURS}\r\n`);
    expect(sent('GET / HTTP/1.0\r\n\r\n', { defaultHost: '' })).toBe(`GET / HTTP/1.1\r\nHost: \r\n${OURS}\r\n`);
    expect(sent('GET http://b/ HTTP/1.0\r\n\r\n')).toBe(`GET / HTTP/1.1\r\nHost: b\r\n${OURS}\r\n`);
  });

  test('RFC 9110 10.1.4: of TE only trailers passes, as what it is between us and the server', () => {
    const te = 'TE: trailers\r\nConnection: TE\r\n';
    expect(sent(`GET / HTTP/1.1\r\n${H}TE: gzip, trailers\r\nConnection: TE\r\n\r\n`)).toBe(
      `GET / HTTP/1.1\r\n${H}${OURS}${te}\r\n`,
    );
  });

  test('RFC 9110 7.8: an upgrade to websocket passes when it is asked for, and no other ever', () => {
    const text = `GET / HTTP/1.1\r\n${H}Connection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n`;
    expect(sent(text)).toBe(`GET / HTTP/1.1\r\n${H}${OURS}\r\n`);
    expect(sent(text, { upgrade: true })).toBe(
      `GET / HTTP/1.1\r\n${H}${OURS}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n`,
    );
    expect(() => sent(text.replace('WebSocket', 'h2c'), { upgrade: true })).toThrow('websocket');
  });

  test('a target of the rules takes the place of the one that came', () => {
    expect(sent(`GET /a?b HTTP/1.1\r\n${H}\r\n`, { target: '/new?q' })).toBe(`GET /new?q HTTP/1.1\r\n${H}${OURS}\r\n`);
  });

  test.each([
    ['/a b', '/a%20b'],
    ['/a\r\nHost: b', '/a%0D%0AHost:%20b'],
    ['/a#b\0', '/a%23b%00'],
    ['/\xe4', '/%E4'],
    ['/\u20ac\u{1f600}', '/%E2%82%AC%F0%9F%98%80'],
    ['/\ud800', '/%EF%BF%BD'],
    ['a', '/a'],
    ['', '/'],
    ['http://b/', '/http://b/'],
  ])('RFC 3986 2.1: the target %j is sent as %j', (target, expected) => {
    expect(sent(`GET / HTTP/1.1\r\n${H}\r\n`, { target })).toBe(`GET ${expected} HTTP/1.1\r\n${H}${OURS}\r\n`);
  });

  test('lines of the engine stand at the end', () => {
    expect(sent(`GET / HTTP/1.1\r\n${H}\r\n`, { extra: 'Via: 1.1 x\r\n' })).toBe(
      `GET / HTTP/1.1\r\n${H}${OURS}Via: 1.1 x\r\n\r\n`,
    );
  });

  test('a head that does not fit is -1, one that does is written', () => {
    const head = parseRequest(Buffer.from(`GET / HTTP/1.1\r\n${H}X: ${'x'.repeat(10_000)}\r\n\r\n`));
    if (typeof head !== 'object') throw new Error(String(head));
    expect(writeRequestHead(Buffer.alloc(10_000), 0, head, request)).toBe(-1);
    expect(writeRequestHead(Buffer.alloc(20_000), 12_000, head, request)).toBe(-1);
    expect(writeRequestHead(Buffer.alloc(20_000), 0, head, request)).toBeGreaterThan(10_000);
    const edits: HeaderEdit[] = [{ kind: 'add', name: 'Y', value: 'y'.repeat(10_000) }];
    expect(writeRequestHead(Buffer.alloc(20_000), 0, head, { ...request, edits })).toBe(-1);
    const growing: HeaderEdit[] = [{ kind: 'replace', name: 'x', pattern: /(.*)/, value: '$1$1' }];
    expect(writeRequestHead(Buffer.alloc(20_000), 0, head, { ...request, edits: growing })).toBe(-1);
    expect(writeRequestHead(Buffer.alloc(31_000), 0, head, { ...request, edits: growing })).toBeGreaterThan(20_000);
  });
});

describe('responses', () => {
  test('a head goes on as it came, without what belongs to the connection', () => {
    expect(answered('HTTP/1.1 200 Fine\r\nX:  a \r\nConnection: Y\r\nY: 1\r\nZ: \xe4\r\nKeep-Alive: 5\r\n\r\n')).toBe(
      'HTTP/1.1 200 Fine\r\nX:  a \r\nZ: \xe4\r\n\r\n',
    );
    expect(answered('HTTP/1.1 404 \r\n\r\n', { extra: 'Connection: close\r\n' })).toBe(
      'HTTP/1.1 404 \r\nConnection: close\r\n\r\n',
    );
  });

  test('RFC 9112 4: the status line is of HTTP/1.1 and has its second space', () => {
    expect(answered('HTTP/1.0 200 O K\r\nX: 1\r\n\r\n')).toBe('HTTP/1.1 200 O K\r\nX: 1\r\n\r\n');
    expect(answered('HTTP/1.1 200\r\nX: 1\r\n\r\n')).toBe('HTTP/1.1 200 \r\nX: 1\r\n\r\n');
    expect(answered('HTTP/1.0 204\r\n\r\n')).toBe('HTTP/1.1 204 \r\n\r\n');
  });

  test('RFC 9110 8.6 and RFC 9112 6.1: 1xx and 204 have neither Content-Length nor Transfer-Encoding', () => {
    expect(answered('HTTP/1.1 204 No\r\nContent-Length: 5\r\nX: 1\r\n\r\n')).toBe('HTTP/1.1 204 No\r\nX: 1\r\n\r\n');
    expect(answered('HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n')).toBe('HTTP/1.1 204 No\r\n\r\n');
    expect(answered('HTTP/1.1 103 H\r\nContent-Length: 0\r\n\r\n')).toBe('HTTP/1.1 103 H\r\n\r\n');
    const notModified = 'HTTP/1.1 304 N\r\nContent-Length: 5\r\n\r\n';
    expect(answered(notModified)).toBe(notModified);
  });

  test('Content-Length and Transfer-Encoding are left out where another framing is used', () => {
    const length = 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: 1\r\n\r\n';
    expect(answered(length, { dropContentLength: true })).toBe('HTTP/1.1 200 OK\r\nX: 1\r\n\r\n');
    const chunked = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n';
    expect(answered(chunked, { dropTransferEncoding: true })).toBe('HTTP/1.1 200 OK\r\n\r\n');
  });

  test('a head that does not fit is -1', () => {
    const head = parseResponse(Buffer.from(`HTTP/1.0 200 ${'x'.repeat(5_000)}\r\n\r\n`), 'GET');
    if (typeof head !== 'object') throw new Error(String(head));
    expect(writeResponseHead(Buffer.alloc(5_000), 0, head, response)).toBe(-1);
  });
});

describe('edits', () => {
  const text = 'HTTP/1.1 200 OK\r\nA: 1\r\nB: two\r\na:  3\r\nC: 4\r\n\r\n';
  const edited = (...edits: HeaderEdit[]): string =>
    answered(text, { edits }).slice('HTTP/1.1 200 OK\r\n'.length, -2).replaceAll('\r\n', '|');

  test('set removes all of the name and adds one; add adds; remove removes', () => {
    expect(edited({ kind: 'set', name: 'a', value: 'x' })).toBe('B: two|C: 4|a: x|');
    expect(edited({ kind: 'add', name: 'A', value: 'x' })).toBe('A: 1|B: two|a:  3|C: 4|A: x|');
    expect(edited({ kind: 'remove', name: 'a', value: '' })).toBe('B: two|C: 4|');
    expect(edited({ kind: 'remove', name: 'D', value: '' })).toBe('A: 1|B: two|a:  3|C: 4|');
  });

  test('edits see what those before them did', () => {
    expect(edited({ kind: 'add', name: 'D', value: '1' }, { kind: 'set', name: 'd', value: '2' })).toMatch(/\|d: 2\|$/);
    expect(edited({ kind: 'set', name: 'A', value: '1' }, { kind: 'remove', name: 'a', value: '' })).toBe(
      'B: two|C: 4|',
    );
    expect(
      edited(
        { kind: 'remove', name: 'A', value: '' },
        { kind: 'add', name: 'A', value: 'old' },
        { kind: 'replace', name: 'a', pattern: /ol/, value: 'new' },
        { kind: 'replace', name: 'b', pattern: /(.)wo/, value: '$1$1' },
        { kind: 'replace', name: 'b', pattern: /^tt$/, value: '<$&>' },
      ),
    ).toBe('B: <tt>|C: 4|A: new|');
  });

  test('replace gives the whole new value where the pattern matches, as HAProxy does', () => {
    expect(edited({ kind: 'replace', name: 'A', pattern: /\d/, value: 'n' })).toBe('A: n|B: two|a: n|C: 4|');
    expect(edited({ kind: 'replace', name: 'b', pattern: /w/, value: 'x$&y' })).toBe('A: 1|B: xwy|a:  3|C: 4|');
    expect(edited({ kind: 'replace', name: 'b', pattern: /^three/, value: 'x' })).toBe('A: 1|B: two|a:  3|C: 4|');
  });

  test.each([
    ['x\r\nEvil: 1', 'xEvil: 1'],
    ['x\0\n\r\x0b\x7fy', 'xy'],
    ['caf\xe9\tx', 'caf\xe9\tx'],
    // In a byte each, these would be LF and CR.
    ['a\u010ab\u010dc', 'abc'],
    ['\u{1f600}', ''],
  ])('RFC 9110 5.5: the value %j is written as %j', (value, expected) => {
    expect(edited({ kind: 'set', name: 'B', value })).toBe(`A: 1|a:  3|C: 4|B: ${expected}|`);
    expect(edited({ kind: 'replace', name: 'B', pattern: /two/, value: value.replaceAll('$', '$$') })).toBe(
      `A: 1|B: ${expected}|a:  3|C: 4|`,
    );
  });

  test('Host is set where it was not, and there is only one', () => {
    const edits: HeaderEdit[] = [{ kind: 'set', name: 'host', value: 'new' }];
    expect(sent(`GET / HTTP/1.1\r\n${H}A: 1\r\n\r\n`, { edits })).toBe(
      `GET / HTTP/1.1\r\nA: 1\r\nhost: new\r\n${OURS}\r\n`,
    );
    expect(sent(`GET http://b/ HTTP/1.1\r\n${H}\r\n`, { edits })).toBe(`GET / HTTP/1.1\r\nhost: new\r\n${OURS}\r\n`);
    expect(sent('GET / HTTP/1.0\r\n\r\n', { edits })).toBe(`GET / HTTP/1.1\r\nhost: new\r\n${OURS}\r\n`);
    const added: HeaderEdit[] = [{ kind: 'add', name: 'Host', value: 'new' }];
    expect(sent(`GET / HTTP/1.1\r\n${H}\r\n`, { edits: added })).toBe(`GET / HTTP/1.1\r\nHost: new\r\n${OURS}\r\n`);
    const replaced: HeaderEdit[] = [{ kind: 'replace', name: 'Host', pattern: /^(.*)$/, value: '$1.x' }];
    expect(sent(`GET http://b/ HTTP/1.1\r\n${H}\r\n`, { edits: replaced })).toBe(
      `GET / HTTP/1.1\r\nHost: b.x\r\n${OURS}\r\n`,
    );
  });

  test('a rule that sets X-Forwarded-For or X-Forwarded-Proto has the last word; one that removes it means what came', () => {
    const came = `GET / HTTP/1.1\r\n${H}X-Forwarded-For: 1\r\nX-Forwarded-Proto: http\r\n\r\n`;
    const set = (name: string): HeaderEdit => ({ kind: 'set', name, value: 'x' });
    const remove = (name: string): HeaderEdit => ({ kind: 'remove', name, value: '' });
    const names = ['x-forwarded-for', 'x-forwarded-proto'];
    expect(sent(came, { edits: names.map(set) })).toBe(
      `GET / HTTP/1.1\r\n${H}x-forwarded-for: x\r\nx-forwarded-proto: x\r\n\r\n`,
    );
    expect(sent(came, { edits: names.map(remove) })).toBe(`GET / HTTP/1.1\r\n${H}${OURS}\r\n`);
  });

  test.each([
    ...[
      'Content-Length',
      'transfer-encoding',
      'Connection',
      'Upgrade',
      'TE',
      'Trailer',
      'Keep-Alive',
      'Proxy-Connection',
    ],
    ...['', 'X Y', 'X:', 'X\r\n', '\u0158', 'Content\u012dLength'],
  ])('no rule may edit %j', (name) => {
    expect(isEditable(name)).toBe(false);
    expect(() => edited({ kind: 'set', name, value: '5' })).toThrow('an edit of');
  });

  test('names that are like those are anybody to edit', () => {
    for (const name of ['Content-Encoding', 'X-Forwarded-Proto', 'Host', 'TEA', 'Set-Cookie', 'X_1'])
      expect(isEditable(name)).toBe(true);
  });

  test('a head whose fields are all gone is still one', () => {
    const edits: HeaderEdit[] = [{ kind: 'remove', name: 'X', value: '' }];
    expect(answered('HTTP/1.1 200 OK\r\nX: 1\r\nX: 2\r\n\r\n', { edits })).toBe('HTTP/1.1 200 OK\r\n\r\n');
    expect(answered('HTTP/1.0 200 OK\r\nX: 1\r\n\r\n', { edits })).toBe('HTTP/1.1 200 OK\r\n\r\n');
  });
});
