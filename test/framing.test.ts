import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Body } from '../src/proxy/framing.ts';

/** Feeds the pieces until the body is over; what was payload, and how many bytes were the body's. */
const feed = (body: Body, pieces: Buffer[]): { payload: string; taken: number } => {
  let payload = '';
  let taken = 0;
  for (const piece of pieces) {
    const count = body.take(piece, (start, end) => (payload += piece.toString('latin1', start, end)));
    taken += count;
    if (body.done || body.broken) break;
  }
  return { payload, taken };
};

const bytes = (text: string): Buffer => Buffer.from(text, 'latin1');

describe('the four framings', () => {
  test('none is done at once and takes nothing', () => {
    const body = new Body('none', -1);
    expect(body.done).toBe(true);
    expect(body.take(bytes('next'))).toBe(0);
  });

  test('length takes so many bytes and leaves the next message alone', () => {
    const body = new Body('length', 5);
    expect(feed(body, [bytes('he'), bytes('lloGET')])).toEqual({ payload: 'hello', taken: 5 });
    expect(body.done).toBe(true);
    expect(body.take(bytes('more'))).toBe(0);
  });

  test('untilClose takes everything and is never done by itself', () => {
    const body = new Body('untilClose', -1);
    expect(feed(body, [bytes('a'), bytes('bc')])).toEqual({ payload: 'abc', taken: 3 });
    expect(body.done).toBe(false);
  });
});

describe('RFC 9112 section 7.1: chunked', () => {
  const encoded = 'A;x=y\r\n0123456789\r\n003\r\nabc\r\n0\r\nX-Sum: 1\r\nY: z\r\n\r\n';

  test('split at every byte it is the same', () => {
    for (let at = 0; at < encoded.length; at++) {
      const body = new Body('chunked', -1);
      const fed = feed(body, [bytes(encoded.slice(0, at)), bytes(`${encoded.slice(at)}GET /`)]);
      expect(fed).toEqual({ payload: '0123456789abc', taken: encoded.length });
      expect(body).toMatchObject({ done: true, broken: false });
    }
  });

  test.each([
    ['7.1: no size', '\r\n'],
    ['7.1: a size that is not hexadecimal', 'g\r\n'],
    ['7.1: a signed size', '-1\r\n'],
    ['7.1: a size with 0x', '0x5\r\nhello\r\n'],
    ['7.1: a space before the size', ' 5\r\nhello\r\n'],
    ['7.1: a space behind the size', '5 \r\nhello\r\n'],
    ['7.1: a size that overflows', '10000000000000000\r\n'],
    ['7.1: a size with endless zeros', `${'0'.repeat(40)}\r\n`],
    ['2.2: a size line ended by LF only', '5\nhello\r\n0\r\n\r\n'],
    ['2.2: a bare CR behind the size', '5\rhello'],
    ['7.1.1: LF in an extension', '5;a\nhello\r\n'],
    ['7.1.1: NUL in an extension', '5;\0\r\nhello\r\n'],
    ['7.1.1: an extension without end', `5;${'x'.repeat(300)}`],
    ['7.1: data longer than its size', '3\r\nhello\r\n'],
    ['7.1: data ended by LF only', '5\r\nhello\n0\r\n\r\n'],
    ['7.1.2: an end by LF only', '0\r\n\n'],
    ['7.1.2: a folded trailer', '0\r\nX: 1\r\n 2\r\n\r\n'],
    ['7.1.2: a trailer without a name', '0\r\n: 1\r\n\r\n'],
    ['7.1.2: a trailer that is no field', '0\r\nhello\r\n\r\n'],
    ['7.1.2: a space before the colon of a trailer', '0\r\nX : 1\r\n\r\n'],
    ['7.1.2: a control in a trailer', '0\r\nX: \x01\r\n\r\n'],
    ['7.1.2: trailers without end', `0\r\n${'X: 1\r\n'.repeat(2_000)}`],
    ['7.1.2: a trailer without end', `0\r\nX: ${'x'.repeat(9_000)}`],
    ['7.1.2: a name of a trailer without end', `0\r\n${'x'.repeat(9_000)}`],
    ['7.1: a size line ended by CR CR LF', '5\r\r\nhello\r\n0\r\n\r\n'],
    ['7.1: an empty line before the size', '\r\n5\r\nhello\r\n0\r\n\r\n'],
    ['7.1: data without its CRLF', '5\r\nhello0\r\n\r\n'],
    ['7.1: data shorter than its size', '6\r\nhello\r\n0\r\n\r\n'],
    ['7.1: the largest size that overflows 64 bits', 'ffffffffffffffff\r\n'],
    ['7.1: a digit of another script', '\xb2\r\n'],
    ['7.1.1: an extension without a name', '5;\r\nhello\r\n'],
    ['7.1.1: an extension without its value', '5;a=\r\nhello\r\n'],
    ['7.1.1: white space before an extension', '5 ;a\r\nhello\r\n'],
    ['7.1.1: white space in an extension', '5; a\r\nhello\r\n'],
    ['7.1.1: a quoted value over the end of the line', '5;a="\r\nhello\r\n'],
    ['7.1.1: something behind a quoted value', '5;a="b"c\r\nhello\r\n'],
    ['7.1.1: a control behind a backslash', '5;a="\\\x01"\r\nhello\r\n'],
    ['7.1.1: a bare CR in an extension', '5;a\rb\r\nhello\r\n'],
    ['7.1.1: much extension for little data', '1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\na\r\n'.repeat(200)],
  ])('%s is broken', (_what, text) => {
    const body = new Body('chunked', -1);
    feed(body, [bytes(text)]);
    expect(body).toMatchObject({ broken: true, done: false });
    const byByte = new Body('chunked', -1);
    feed(byByte, Array.from(text, bytes));
    expect(byByte.broken).toBe(true);
  });

  test.each([
    ...['Content-Length', 'transfer-encoding', 'Host', 'Trailer', 'Connection', 'Content-Type', 'Content-Encoding'],
    ...['Cookie', 'Set-Cookie', 'Authorization', 'X-Forwarded-For', 'X-Forwarded-Host', 'Forwarded', 'Expect', 'TE'],
  ])('RFC 9110 6.5.1: %s is no trailer', (name) => {
    const body = new Body('chunked', -1);
    feed(body, [bytes(`0\r\n${name}: 1\r\n\r\n`)]);
    expect(body).toMatchObject({ broken: true, done: false });
    const other = new Body('chunked', -1);
    feed(other, [bytes(`0\r\nX-${name}: 1\r\n\r\n`)]);
    expect(other).toMatchObject({ broken: false, done: true });
  });

  test('RFC 9112 7.1.1: an extension on each chunk, as signatures are, is no offence', () => {
    const body = new Body('chunked', -1);
    const chunk = bytes(`400;chunk-signature=${'0'.repeat(64)}\r\n${'d'.repeat(1_024)}\r\n`);
    for (let count = 0; count < 1_000; count++) expect(body.take(chunk)).toBe(chunk.length);
    expect(body.take(bytes('0;chunk-signature=0\r\n\r\n'))).toBe(23);
    expect(body).toMatchObject({ done: true, broken: false });
  });

  test('RFC 9112 7.1.2: more trailers than anybody sends are broken', () => {
    const trailers = (count: number): Body => {
      const body = new Body('chunked', -1);
      feed(body, [bytes(`0\r\n${'X: 1\r\n'.repeat(count)}\r\n`)]);
      return body;
    };
    expect(trailers(32)).toMatchObject({ done: true, broken: false });
    expect(trailers(33)).toMatchObject({ done: false, broken: true });
  });

  test('RFC 9112 8: what is cut off is not complete, wherever it is', () => {
    const whole = '5;a=b\r\nhello\r\n0\r\nX: 1\r\n\r\n';
    for (let length = 0; length < whole.length; length++) {
      const body = new Body('chunked', -1);
      expect(body.take(bytes(whole.slice(0, length)))).toBe(length);
      expect(body).toMatchObject({ done: false, broken: false });
    }
  });

  test('what is broken takes nothing more', () => {
    const body = new Body('chunked', -1);
    expect(body.take(bytes('1\r\na\nb'))).toBe(4);
    expect(body.take(bytes('\r\n0\r\n\r\n'))).toBe(0);
    expect(body).toMatchObject({ done: false, broken: true });
  });

  test('the input may be a part of a buffer, and payload is told where it is in it', () => {
    const input = bytes('xx3\r\nabc\r\n2\r\nde\r\n0\r\n\r\nGET');
    const ranges: number[][] = [];
    const told = (start: number, end: number) => ranges.push([start, end]);
    const body = new Body('chunked', -1);
    expect(body.take(input, told, 2, 6)).toBe(4);
    expect(body.take(input, told, 6)).toBe(16);
    expect(ranges).toEqual([
      [5, 6],
      [6, 8],
      [13, 15],
    ]);
    expect(body.done).toBe(true);
  });

  test('any encoding split anywhere gives its payload and is done exactly at its end', () => {
    const chunk = fc.record({
      data: fc.string({ minLength: 1, maxLength: 40, unit: 'binary-ascii' }),
      upper: fc.boolean(),
    });
    fc.assert(
      fc.property(
        fc.array(chunk, { maxLength: 8 }),
        fc.array(fc.nat(1_000), { maxLength: 12 }),
        fc.boolean(),
        (chunks, cuts, trailer) => {
          const encoding = chunks
            .map(({ data, upper }) => {
              const size = data.length.toString(16);
              return `${upper ? size.toUpperCase() : size}\r\n${data}\r\n`;
            })
            .join('');
          const text = `${encoding}0\r\n${trailer ? 'X-Sum: 1\r\n' : ''}\r\n`;
          const whole = bytes(`${text}next`);
          const at = [...new Set([0, ...cuts.map((cut) => cut % whole.length), whole.length])].sort((a, b) => a - b);
          const pieces = at.slice(1).map((end, index) => whole.subarray(at[index], end));
          const body = new Body('chunked', -1);
          expect(feed(body, pieces)).toEqual({
            payload: chunks.map(({ data }) => data).join(''),
            taken: text.length,
          });
          expect(body).toMatchObject({ done: true, broken: false });
        },
      ),
      { numRuns: 300, seed: 1 },
    );
  });
});
