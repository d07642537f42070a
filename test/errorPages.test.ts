import { describe, expect, test } from 'vitest';
import {
  answerHead,
  errorAnswer,
  errorPage,
  errorPageOf,
  ErrorPages,
  MAX_ERROR_PAGE_BYTES,
} from '../src/proxy/errorPages.ts';

const custom = (status: number, file: string, text: string) =>
  new ErrorPages([errorPageOf(status, file, Buffer.from(text))]);

/** Head and body; throws where the length is not as the head says. */
const parse = (bytes: Buffer) => {
  const text = bytes.toString();
  const end = text.indexOf('\r\n\r\n');
  const [line = '', ...lines] = text.slice(0, end).split('\r\n');
  const fields = Object.fromEntries(lines.map((one) => one.split(': ')));
  return { line, fields: fields as Record<string, string>, body: text.slice(end + 4) };
};

describe('our own pages', () => {
  test('a refusal names its status, is not cached, and closes the connection', () => {
    const { line, fields, body } = parse(errorPage(431));
    expect(line).toBe('HTTP/1.1 431 Request Header Fields Too Large');
    expect(fields).toEqual({
      'Content-Type': 'text/plain',
      'Cache-Control': 'no-store',
      'Content-Length': String(Buffer.byteLength(body)),
      Connection: 'close',
    });
    expect(body).toBe('431 Request Header Fields Too Large\n');
  });

  test.each([200, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 407, 408, 410, 413, 414, 421, 425, 426, 429, 451])(
    'status %i has its reason',
    (status) => {
      expect(parse(errorPage(status)).line).toMatch(/^HTTP\/1\.1 \d{3} (?!Unknown)[A-Z][\w -]+$/);
    },
  );

  test('a status that nobody has registered is sent all the same', () => {
    expect(parse(errorPage(599)).line).toBe('HTTP/1.1 599 Unknown');
  });

  test('503 says when to come again', () => {
    expect(parse(errorPage(503)).fields['Retry-After']).toBe('1');
    expect(parse(errorPage(502)).fields).not.toHaveProperty('Retry-After');
  });

  test('a kept connection is not told to close, and the same page is made once', () => {
    const kept = errorPage(403, null, { close: false });
    expect(parse(kept).fields).not.toHaveProperty('Connection');
    expect(errorPage(403, null, { close: false })).toBe(kept);
    expect(errorPage(403)).not.toBe(kept);
  });

  test('RFC 9110 section 9.3.2: HEAD gets the fields of GET without the body', () => {
    const [get, head] = [parse(errorPage(404)), parse(errorPage(404, null, { isHead: true }))];
    expect(head.fields).toEqual(get.fields);
    expect(head.body).toBe('');
  });
});

describe('pages of the operator', () => {
  test('the type is known by the file’s ending', () => {
    const typeOf = (file: string) => errorPageOf(503, file, Buffer.from('x')).contentType;
    expect(typeOf('/etc/sorry.html')).toBe('text/html; charset=utf-8');
    expect(typeOf('sorry.HTM')).toBe('text/html; charset=utf-8');
    expect(typeOf('sorry.json')).toBe('application/json');
    expect(typeOf('sorry')).toBe('text/plain; charset=utf-8');
  });

  test('take the place of ours for their status alone; the length counts bytes', () => {
    const pages = custom(503, 'sorry.html', '<p>Gleich zurück</p>');
    const { line, fields, body } = parse(errorPage(503, pages));
    expect(line).toBe('HTTP/1.1 503 Service Unavailable');
    expect(body).toBe('<p>Gleich zurück</p>');
    expect(fields).toMatchObject({ 'Content-Type': 'text/html; charset=utf-8', 'Content-Length': '21' });
    expect(parse(errorPage(502, pages)).body).toBe('502 Bad Gateway\n');
  });

  test('{id} becomes the id of the request, whatever is in it', () => {
    const pages = custom(500, 'sorry.txt', 'id {id}, again {id}');
    expect(parse(errorPage(500, pages, { id: 'a$&b' })).body).toBe('id a$&b, again a$&b');
    const other = parse(errorPage(500, pages, { id: 'other' }));
    expect(other.body).toBe('id other, again other');
    expect(other.fields['Content-Length']).toBe('21');
  });

  test('the last of one status counts', () => {
    const [first, second] = ['a', 'b'].map((text) => errorPageOf(503, 'x.txt', Buffer.from(text)));
    expect(parse(errorPage(503, new ErrorPages([first!, second!]))).body).toBe('b');
  });

  test('other versions of HTTP get status, fields and body', () => {
    const answer = errorAnswer(429, custom(429, 'slow.json', '{"id":"{id}"}'), '7');
    expect(answer.status).toBe(429);
    expect(answer.fields).toContainEqual(['Content-Type', 'application/json']);
    expect(answer.body.toString()).toBe('{"id":"7"}');
  });

  test('one that is too long, or no text, is refused', () => {
    expect(() => errorPageOf(503, 'x.html', Buffer.alloc(MAX_ERROR_PAGE_BYTES + 1))).toThrow(/up to 65536/);
    expect(() => errorPageOf(503, 'x.html', Buffer.from([0xff, 0xfe]))).toThrow(/not valid/);
    expect(errorPageOf(503, 'x.html', Buffer.alloc(MAX_ERROR_PAGE_BYTES, 0x20)).body).toHaveLength(
      MAX_ERROR_PAGE_BYTES,
    );
  });
});

describe('heads of rules’ answers', () => {
  test('have the rule’s fields in order, the length, and no word of closing when kept', () => {
    const fields = [
      ['Location', 'https://shop.example/'],
      ['Set-Cookie', 'a=1'],
      ['Set-Cookie', 'b=2'],
    ] as const;
    expect(answerHead(301, fields, 0, false).toString()).toBe(
      'HTTP/1.1 301 Moved Permanently\r\nLocation: https://shop.example/\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n' +
        'Content-Length: 0\r\n\r\n',
    );
    expect(answerHead(200, [], 5, true).toString()).toBe(
      'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n',
    );
  });

  test('RFC 9110 section 8.6: no Content-Length with 204, none with 304', () => {
    for (const status of [204, 304])
      expect(answerHead(status, [], 0, false).toString()).not.toContain('Content-Length');
  });

  test('RFC 9110 section 15.3.6: 205 has an empty body', () => {
    expect(answerHead(205, [], 9, false).toString()).toContain('Content-Length: 0\r\n');
  });

  test('RFC 9110 section 5.5: a line end in a value is a space', () => {
    expect(answerHead(302, [['Location', '/a\r\nSet-Cookie: x=1\0']], 0, false).toString()).toBe(
      'HTTP/1.1 302 Found\r\nLocation: /a  Set-Cookie: x=1 \r\nContent-Length: 0\r\n\r\n',
    );
  });
});
