import { once } from 'node:events';
import { createServer } from 'node:net';
import { connect as connectTls } from 'node:tls';
import type { ConnectionOptions } from 'node:tls';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { LONGEST_CLIENT_HELLO_BYTES, parseClientHello } from '../src/proxy/clientHello.ts';

/** What Node's client says first. */
const helloOf = async (options: ConnectionOptions): Promise<Buffer> => {
  const server = createServer();
  onTestFinished(() => void server.close());
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const socket = connectTls({ port: (server.address() as { port: number }).port, ...options });
  socket.on('error', () => {});
  onTestFinished(() => void socket.destroy());
  const [peer] = (await once(server, 'connection')) as [import('node:net').Socket];
  onTestFinished(() => void peer.destroy());
  const [bytes] = (await once(peer, 'data')) as [Buffer];
  return bytes;
};

const u8 = (value: number) => Buffer.from([value]);
const u16 = (value: number) => Buffer.from([Math.floor(value / 256), value % 256]);
const vector8 = (content: Buffer) => Buffer.concat([u8(content.length), content]);
const vector16 = (content: Buffer) => Buffer.concat([u16(content.length), content]);
const extension = (type: number, content: Buffer) => Buffer.concat([u16(type), vector16(content)]);
const serverName = (name: string, type = 0) =>
  extension(0, vector16(Buffer.concat([u8(type), vector16(Buffer.from(name, 'latin1'))])));
const alpn = (...names: string[]) =>
  extension(16, vector16(Buffer.concat(names.map((name) => vector8(Buffer.from(name))))));
const versions = (...numbers: number[]) => extension(43, vector8(Buffer.concat(numbers.map(u16))));

type Parts = { sessionId?: Buffer; suites?: Buffer; compressions?: Buffer; after?: Buffer };

const message = (extensions: Buffer[] | null, parts: Parts = {}): Buffer => {
  const body = Buffer.concat([
    u16(0x0303),
    Buffer.alloc(32, 7),
    vector8(parts.sessionId ?? Buffer.alloc(0)),
    vector16(parts.suites ?? u16(0x1301)),
    vector8(parts.compressions ?? u8(0)),
    extensions ? vector16(Buffer.concat(extensions)) : Buffer.alloc(0),
    parts.after ?? Buffer.alloc(0),
  ]);
  return Buffer.concat([u8(1), u8(0), u16(body.length), body]);
};

const record = (content: Buffer, type = 22) => Buffer.concat([u8(type), u16(0x0301), vector16(content)]);
const hello = (extensions: Buffer[] | null, parts?: Parts) => record(message(extensions, parts));

describe('a ClientHello', () => {
  test('of Node’s own client', async () => {
    const bytes = await helloOf({ servername: 'Shop.Example.COM', ALPNProtocols: ['h2', 'http/1.1'] });
    expect(parseClientHello(bytes)).toEqual({
      serverName: 'shop.example.com',
      alpn: ['h2', 'http/1.1'],
      versions: [0x0304, 0x0303],
    });
    expect(parseClientHello(await helloOf({ maxVersion: 'TLSv1.2' }))).toEqual({
      serverName: null,
      alpn: [],
      versions: [0x0303],
    });
  });

  test('each beginning of one is not yet one, and what follows it changes nothing', async () => {
    const bytes = await helloOf({ servername: 'shop.example.com' });
    for (let length = 0; length < bytes.length; length++) {
      expect(parseClientHello(bytes.subarray(0, length)), `${length} bytes`).toBe('more');
    }
    expect(parseClientHello(Buffer.concat([bytes, Buffer.from('more')]))).toEqual(parseClientHello(bytes));
  });

  test('RFC 8446 section 5.1: is read though it is split over records, at any place', () => {
    const whole = message([serverName('shop.test'), alpn('h2')]);
    const expected = { serverName: 'shop.test', alpn: ['h2'], versions: [0x0303] };
    for (let at = 1; at < whole.length; at++) {
      const split = Buffer.concat([record(whole.subarray(0, at)), record(whole.subarray(at))]);
      expect(parseClientHello(split), `split at ${at}`).toEqual(expected);
      expect(parseClientHello(split.subarray(0, -1))).toBe('more');
    }
    const bytewise = Buffer.concat(Array.from(whole, (byte) => record(u8(byte))));
    expect(parseClientHello(bytewise)).toEqual(expected);
    const interrupted = Buffer.concat([record(whole.subarray(0, 9)), record(whole.subarray(9), 23)]);
    expect(parseClientHello(interrupted)).toBe('notTls');
  });

  test('of a client of TLS 1.2 without extensions', () => {
    expect(parseClientHello(hello(null))).toEqual({ serverName: null, alpn: [], versions: [0x0303] });
  });

  test('RFC 6066 section 3: a dot at the end of a name is left out', () => {
    expect(parseClientHello(hello([serverName('shop.test.')]))).toMatchObject({ serverName: 'shop.test' });
  });

  test('RFC 8701: unknown versions and extensions are passed over', () => {
    const bytes = hello([extension(0x0a0a, Buffer.alloc(0)), versions(0x0a0a, 0x0304), extension(0xffff, u8(1))]);
    expect(parseClientHello(bytes)).toEqual({ serverName: null, alpn: [], versions: [0x0a0a, 0x0304] });
  });
});

describe('what is none', () => {
  test.each([
    ['HTTP', Buffer.from('GET / HTTP/1.1\r\n')],
    ['SSH', Buffer.from('S')],
    ['an alert', record(Buffer.from([2, 40]), 21)],
    ['another version of the record layer', Buffer.from([22, 2])],
    ['another message', record(Buffer.from([2]))],
    ['an empty record', record(Buffer.alloc(0))],
    ['a record longer than there can be', Buffer.from([22, 3, 1, 0x40, 1])],
    ['a message that is too long', record(Buffer.from([1, 0, 0x40, 0, 3]))],
  ])('is told by its first bytes: %s', (_, bytes) => {
    expect(parseClientHello(bytes)).toBe('notTls');
  });

  test.each([
    ['a session id of more than 32 bytes', hello([], { sessionId: Buffer.alloc(33) })],
    ['no cipher suite', hello([], { suites: Buffer.alloc(0) })],
    ['half a cipher suite', hello([], { suites: Buffer.alloc(3) })],
    ['no compression method', hello([], { compressions: Buffer.alloc(0) })],
    ['bytes behind the extensions', hello([], { after: u8(0) })],
    ['an extension cut off', hello([serverName('shop.test').subarray(0, -1)])],
    ['RFC 8446 section 4.2: an extension twice', hello([serverName('a.test'), serverName('b.test')])],
    ['an empty name', hello([serverName('')])],
    ['a name that is longer than DNS has', hello([serverName('a'.repeat(256))])],
    ['a name with a line break', hello([serverName('a.test\r\nX: y')])],
    ['a name with a zero', hello([serverName('a.test\0.b')])],
    ['a name that is not ASCII', hello([serverName('b\u00fccher.test')])],
    ['a name of another type', hello([serverName('a.test', 1)])],
    [
      'RFC 6066 section 3: two names',
      hello([extension(0, vector16(Buffer.concat([u8(0), vector16(u8(97)), u8(0), vector16(u8(98))])))]),
    ],
    ['RFC 7301 section 3.1: no protocol', hello([alpn()])],
    ['RFC 7301 section 3.1: a protocol without a name', hello([alpn('h2', '')])],
    ['no version', hello([versions()])],
    ['half a version', hello([extension(43, vector8(u8(3)))])],
  ])('%s is malformed', (_, bytes) => {
    expect(parseClientHello(bytes)).toBe('notTls');
  });

  test('one that never ends is given up', () => {
    const pieces = Buffer.concat(Array.from({ length: 4000 }, (_, index) => record(u8(index === 0 ? 1 : 0))));
    expect(parseClientHello(pieces.subarray(0, 18))).toBe('more');
    const endless = Buffer.concat([
      record(Buffer.from([1, 0, 0x3f, 0])),
      ...Array.from({ length: 4000 }, () => record(u8(0))),
    ]);
    expect(parseClientHello(endless.subarray(0, LONGEST_CLIENT_HELLO_BYTES - 1))).toBe('more');
    expect(parseClientHello(endless.subarray(0, LONGEST_CLIENT_HELLO_BYTES))).toBe('notTls');
  });
});

describe('whatever comes', () => {
  const isSane = (bytes: Buffer): boolean => {
    const parsed = parseClientHello(bytes);
    if (typeof parsed === 'string') return parsed === 'more' || parsed === 'notTls';
    const isName = parsed.serverName === null || /^[\x21-\x7e]{1,255}$/.test(parsed.serverName);
    return isName && !parsed.alpn.includes('') && parsed.versions.length > 0;
  };

  test('is parsed without throwing', () => {
    const property = fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => isSane(Buffer.from(bytes)));
    expect(fc.check(property)).toMatchObject({ failed: false });
  });

  test('and so is a real one with bytes changed, put in or taken out', () => {
    const real = hello([serverName('shop.example.com'), alpn('h2', 'http/1.1'), versions(0x0304, 0x0303)]);
    const change = fc.record({
      at: fc.nat({ max: real.length - 1 }),
      byte: fc.nat({ max: 255 }),
      remove: fc.nat({ max: 3 }),
      insert: fc.nat({ max: 3 }),
    });
    const property = fc.property(fc.array(change, { minLength: 1, maxLength: 4 }), (changes) => {
      let bytes = real;
      for (const { at, byte, remove, insert } of changes) {
        bytes = Buffer.concat([bytes.subarray(0, at), Buffer.alloc(insert, byte), bytes.subarray(at + remove)]);
      }
      return isSane(bytes);
    });
    expect(fc.check(property, { numRuns: 5000 })).toMatchObject({ failed: false });
  });
});
