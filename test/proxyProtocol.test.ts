/** The PROXY protocol, by the sections of haproxy/doc/proxy-protocol.txt, and with HAProxy at the other end. */
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import type { AddressInfo, Server } from 'node:net';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { acceptProxy, sendProxy } from '../src/config/proxyProtocol.ts';
import {
  parseProxyHeader,
  proxyHeaderLocal,
  proxyHeaderV1,
  proxyHeaderV2,
  proxyPeers,
} from '../src/proxy/proxyProtocol.ts';
import type { ProxyHeader } from '../src/proxy/proxyProtocol.ts';
import { startHaproxy } from './haproxy.ts';

const CLIENT = { address: '192.0.2.7', port: 40_000 };
const SHOP = { address: '198.51.100.1', port: 443 };
const CLIENT6 = { address: '2001:db8::7', port: 40_000 };
const SHOP6 = { address: '2001:db8::1', port: 443 };
const SIGNATURE = '0d0a0d0a000d0a515549540a';

const bytesOf = (text: string) => Buffer.from(text, 'latin1');
const line = (text: string) => parseProxyHeader(bytesOf(`PROXY ${text}\r\n`));
const hex = (text: string) => Buffer.from(text.replaceAll(' ', ''), 'hex');
const header = (answer: ReturnType<typeof parseProxyHeader>): ProxyHeader => {
  expect(answer).toBeTypeOf('object');
  return answer as ProxyHeader;
};
const tlv = (type: number, value: Buffer): Buffer =>
  Buffer.concat([Buffer.from([type, value.length >> 8, value.length & 0xff]), value]);
/** A block with TLVs behind the addresses of a connection over IPv4. */
const withTlvs = (...tlvs: Buffer[]): Buffer => {
  const plain = proxyHeaderV2(CLIENT, SHOP);
  const whole = Buffer.concat([plain, ...tlvs]);
  whole.writeUInt16BE(whole.length - 16, 14);
  return whole;
};

describe('version 1 (section 2.1)', () => {
  test('TCP4 and TCP6 give both ends, and how long the header is', () => {
    const text = 'PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n';
    expect(parseProxyHeader(bytesOf(`${text}GET / HTTP/1.1\r\n`))).toEqual({
      length: text.length,
      source: CLIENT,
      destination: SHOP,
      tlvs: null,
    });
    expect(line('TCP6 2001:db8::7 2001:DB8:0:0:0:0:0:1 40000 443')).toMatchObject({
      source: CLIENT6,
      destination: SHOP6,
    });
  });

  test('an IPv4 address within IPv6 is given as IPv4, so that one client has one name', () => {
    expect(header(line('TCP6 ::ffff:192.0.2.7 ::ffff:c633:6401 40000 443')).source).toEqual(CLIENT);
  });

  test('UNKNOWN: what follows is ignored, and the socket’s own ends hold', () => {
    for (const rest of ['', ' ', ' ffff::1 ffff::2 65535 65535', ' x "y" \0 \xff'])
      expect(line(`UNKNOWN${rest}`)).toMatchObject({ source: null, destination: null });
  });

  test.each([
    ['a heading zero in an address', 'TCP4 192.0.2.07 198.51.100.1 40000 443'],
    ['a heading zero in a port', 'TCP4 192.0.2.7 198.51.100.1 040000 443'],
    ['port 65536', 'TCP4 192.0.2.7 198.51.100.1 65536 443'],
    ['no port', 'TCP4 192.0.2.7 198.51.100.1 40000'],
    ['one field more', 'TCP4 192.0.2.7 198.51.100.1 40000 443 1'],
    ['two spaces', 'TCP4 192.0.2.7  198.51.100.1 40000 443'],
    ['a tab', 'TCP4 192.0.2.7\t198.51.100.1 40000 443'],
    ['a space at the end', 'TCP4 192.0.2.7 198.51.100.1 40000 443 '],
    ['the other family', 'TCP4 2001:db8::7 2001:db8::1 40000 443'],
    ['two families', 'TCP6 2001:db8::7 198.51.100.1 40000 443'],
    ['three numbers', 'TCP4 192.0.7 198.51.100.1 40000 443'],
    ['a zone', 'TCP6 fe80::1%eth0 2001:db8::1 40000 443'],
    ['a sign', 'TCP4 192.0.2.7 198.51.100.1 +4000 443'],
    ['another protocol', 'UDP4 192.0.2.7 198.51.100.1 40000 443'],
    ['another case', 'tcp4 192.0.2.7 198.51.100.1 40000 443'],
    ['a word that UNKNOWN begins', 'UNKNOWNX'],
  ])('invalid: %s', (_, text) => expect(line(text)).toBe('invalid'));

  test('a single CR or LF ends no line', () => {
    expect(parseProxyHeader(bytesOf('PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\n'))).toBe('invalid');
    expect(parseProxyHeader(bytesOf('PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\rG'))).toBe('invalid');
    expect(parseProxyHeader(bytesOf('PROXY UNKNOWN \n\r\n'))).toBe('invalid');
  });

  test('a line of 107 bytes is the longest', () => {
    const start = 'PROXY UNKNOWN ';
    const of = (length: number) => bytesOf(`${start.padEnd(length - 2, 'x')}\r\n`);
    expect(parseProxyHeader(of(107))).toMatchObject({ length: 107 });
    expect(parseProxyHeader(of(108))).toBe('invalid');
    expect(parseProxyHeader(of(500).subarray(0, 106))).toBe('invalid');
    expect(parseProxyHeader(of(500).subarray(0, 105))).toBe('more');
  });

  test('what doesn’t begin with PROXY is not covered: the connection is to be dropped', () => {
    for (const text of ['GET / HTTP/1.1\r\n', 'P ', 'PROXy ', 'PROXY\t', '\x16\x03\x01', '\n'])
      expect(parseProxyHeader(bytesOf(text))).toBe('invalid');
  });
});

describe('version 2 (section 2.2)', () => {
  test('TCP over IPv4 and IPv6', () => {
    const ipv4 = hex(`${SIGNATURE} 21 11 000c c0000207 c6336401 9c40 01bb`);
    expect(parseProxyHeader(Buffer.concat([ipv4, Buffer.from('next')]))).toMatchObject({
      length: 28,
      source: CLIENT,
      destination: SHOP,
    });
    const ipv6 = hex(
      `${SIGNATURE} 21 21 0024 20010db8000000000000000000000007 20010db8000000000000000000000001 9c40 01bb`,
    );
    expect(parseProxyHeader(ipv6)).toMatchObject({ length: 52, source: CLIENT6, destination: SHOP6 });
  });

  test('LOCAL: the block is skipped whatever it holds, the family is ignored', () => {
    for (const block of ['00 0000', '11 000c c0000207 c6336401 9c40 01bb', 'ff 0003 ffffff', '21 0001 00']) {
      const bytes = hex(`${SIGNATURE} 20 ${block}`);
      expect(parseProxyHeader(bytes)).toEqual({ length: bytes.length, source: null, destination: null, tlvs: null });
    }
  });

  test('families that are no TCP over IP are skipped, and the socket’s own ends hold', () => {
    const unix = Buffer.concat([hex(`${SIGNATURE} 21 31 00d8`), Buffer.alloc(216, 0x2f)]);
    expect(parseProxyHeader(unix)).toMatchObject({ length: 232, source: null, destination: null });
    expect(parseProxyHeader(hex(`${SIGNATURE} 21 00 0000`))).toMatchObject({ length: 16, source: null });
    expect(parseProxyHeader(hex(`${SIGNATURE} 21 12 000c c0000207 c6336401 9c40 01bb`))).toMatchObject({
      source: null,
    });
  });

  test.each([
    ['version 1', '11 11 000c c0000207 c6336401 9c40 01bb'],
    ['version 3', '31 11 000c c0000207 c6336401 9c40 01bb'],
    ['an unassigned command', '22 11 000c c0000207 c6336401 9c40 01bb'],
    ['an unspecified family', '21 41 000c c0000207 c6336401 9c40 01bb'],
    ['an unspecified transport', '21 13 000c c0000207 c6336401 9c40 01bb'],
    ['a block too short for IPv4', '21 11 000b c0000207 c6336401 9c40 01'],
    ['a block too short for IPv6', '21 21 0023'],
    ['a block too short for Unix', '21 31 00d7'],
    ['a block longer than 4096', '21 11 1001'],
  ])('invalid: %s', (_, rest) => expect(parseProxyHeader(hex(`${SIGNATURE} ${rest}`))).toBe('invalid'));

  test('the kinds of TLV: ALPN, authority, unique id, SSL; others are skipped', () => {
    const ssl = Buffer.concat([
      hex('07 00000000'),
      tlv(0x21, bytesOf('TLSv1.3')),
      tlv(0x23, bytesOf('TLS_AES_128_GCM_SHA256')),
      tlv(0x22, Buffer.from('Zoë')),
      tlv(0x24, bytesOf('SHA256')),
    ]);
    const bytes = withTlvs(
      tlv(0x04, Buffer.alloc(7)),
      tlv(0x01, bytesOf('h2')),
      tlv(0xea, bytesOf('vpce-08d2')),
      tlv(0x02, bytesOf('Shop.Example')),
      tlv(0x05, bytesOf('id-1')),
      tlv(0x20, ssl),
      tlv(0x30, bytesOf('blue')),
    );
    expect(header(parseProxyHeader(bytes)).tlvs).toEqual({
      alpn: 'h2',
      authority: 'shop.example',
      uniqueId: bytesOf('id-1'),
      tls: { protocol: 'TLSv1.3', cipher: 'TLS_AES_128_GCM_SHA256', commonName: 'Zoë', verified: true },
    });
  });

  test('a certificate that was not verified, or none, does not count as verified', () => {
    const verified = (value: string) => header(parseProxyHeader(withTlvs(tlv(0x20, hex(value))))).tlvs!.tls?.verified;
    expect(verified('03 00000001')).toBe(false);
    expect(verified('01 00000000')).toBe(false);
    expect(verified('05 00000000')).toBe(true);
    expect(verified('00 00000000')).toBeUndefined();
  });

  test.each([
    ['two bytes left over', hex('0400')],
    ['a value longer than what is left', hex('04 0002 00')],
    ['SSL without its fixed part', tlv(0x20, hex('01'))],
    ['a part of SSL longer than SSL', tlv(0x20, hex('01 00000000 21 0009 54'))],
    ['a unique id of 129 bytes', tlv(0x05, Buffer.alloc(129))],
    ['an authority with a line break', tlv(0x02, bytesOf('shop\r\nexample'))],
    ['a checksum of three bytes', tlv(0x03, hex('000000'))],
  ])('invalid TLVs: %s', (_, bytes) => expect(parseProxyHeader(withTlvs(bytes))).toBe('invalid'));

  test('CRC32C: a wrong checksum makes the connection invalid (section 2.2.3)', () => {
    // The check value of the Rocksoft model, "123456789" giving e3069283, is of the same code: it was computed apart.
    const good = withTlvs(tlv(0x03, hex('00000000')));
    good.writeUInt32BE(crc32c(good), good.length - 4);
    expect(header(parseProxyHeader(good)).source).toEqual(CLIENT);
    for (let at = 16; at < 28; at++) {
      const bad = Buffer.from(good);
      bad[at]! ^= 1;
      expect(parseProxyHeader(bad)).toBe('invalid');
    }
  });
});

/** Bit by bit, as RFC 3720 Appendix B.4 has it. */
const crc32c = (bytes: Buffer): number => {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  }
  return ~crc >>> 0;
};

test('crc32c of the test itself: 32 bytes of zeroes (RFC 3720 Appendix B.4)', () => {
  expect(crc32c(Buffer.alloc(32))).toBe(0x8a9136aa);
});

describe('what is sent', () => {
  const port = fc.integer({ min: 0, max: 65_535 });
  const ipv4 = fc.record({ address: fc.ipV4(), port });
  const either = fc.record({ address: fc.oneof(fc.ipV4(), fc.constantFrom('::1', '2001:db8::7', 'fe80::1')), port });

  test('version 1 and 2 are read back as they were given, IPv4 beside IPv6 too', () => {
    fc.assert(
      fc.property(either, either, (source, destination) => {
        for (const bytes of [proxyHeaderV1(source, destination), proxyHeaderV2(source, destination)])
          expect(parseProxyHeader(bytes)).toMatchObject({ length: bytes.length, source, destination });
      }),
    );
  });

  test('the lines, byte for byte', () => {
    expect(String(proxyHeaderV1(CLIENT, SHOP))).toBe('PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n');
    expect(String(proxyHeaderV1(CLIENT6, SHOP6))).toBe('PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n');
    expect(String(proxyHeaderV1(CLIENT, SHOP6))).toBe('PROXY TCP6 ::ffff:c000:207 2001:db8::1 40000 443\r\n');
    expect(String(proxyHeaderV1({ address: 'unix', port: 0 }, SHOP))).toBe('PROXY UNKNOWN\r\n');
    expect(proxyHeaderV2(CLIENT, SHOP)).toEqual(hex(`${SIGNATURE} 21 11 000c c0000207 c6336401 9c40 01bb`));
    expect(proxyHeaderV2({ address: 'unix', port: 0 }, SHOP)).toEqual(hex(`${SIGNATURE} 20 00 0000`));
    expect(proxyHeaderLocal()).toEqual(hex(`${SIGNATURE} 20 00 0000`));
  });

  test('a zone stays here', () => {
    const linkLocal = { address: 'fe80::7%eth0', port: 1 };
    expect(String(proxyHeaderV1(linkLocal, SHOP6))).toBe('PROXY TCP6 fe80::7 2001:db8::1 1 443\r\n');
  });

  test('TLVs are read back as they were given', () => {
    const tlvs = {
      alpn: 'h2',
      authority: 'shop.example',
      uniqueId: bytesOf('id-1'),
      tls: { protocol: 'TLSv1.2', cipher: 'ECDHE-RSA-AES128-GCM-SHA256', commonName: 'Zoë', verified: true },
    };
    expect(header(parseProxyHeader(proxyHeaderV2(CLIENT, SHOP, tlvs))).tlvs).toEqual(tlvs);
    const anonymous = { protocol: 'TLSv1.3', cipher: null, commonName: null, verified: false };
    expect(header(parseProxyHeader(proxyHeaderV2(CLIENT, SHOP, { tls: anonymous }))).tlvs!.tls).toEqual(anonymous);
  });

  test('the answer does not depend on how the bytes come in pieces', () => {
    const valid = fc.oneof(
      fc.tuple(ipv4, ipv4).map(([a, b]) => proxyHeaderV1(a, b)),
      fc.tuple(either, either).map(([a, b]) => proxyHeaderV2(a, b, { authority: 'shop.example', alpn: 'h2' })),
      fc.constantFrom(proxyHeaderLocal(), bytesOf('PROXY UNKNOWN ::1 x\r\n'), hex(`${SIGNATURE} 21 31 00d9`)),
    );
    const damage = fc.array(fc.tuple(fc.nat(300), fc.integer({ min: 0, max: 255 })), { maxLength: 2 });
    fc.assert(
      fc.property(valid, damage, fc.uint8Array({ maxLength: 300 }), (first, changes, rest) => {
        const bytes = Buffer.concat([first, rest]);
        for (const [at, byte] of changes) if (at < bytes.length) bytes[at] = byte;
        const whole = parseProxyHeader(bytes);
        let length = 0;
        let answer: typeof whole = 'more';
        while (answer === 'more' && length <= bytes.length) answer = parseProxyHeader(bytes.subarray(0, length++));
        expect(answer).toEqual(whole);
        const needed = typeof whole === 'object' ? whole.length : length - 1;
        expect(length - 1).toBe(needed);
        expect(parseProxyHeader(bytes.subarray(0, needed))).toEqual(whole);
      }),
      { numRuns: 2_000 },
    );
  });
});

test('whose header counts: networks of both families, mapped addresses, Unix sockets by name only', () => {
  const isProxy = proxyPeers(['10.1.0.0/16', '192.0.2.7', 'fd00::/8']);
  const from = (address: string) => isProxy({ address, port: 1 });
  expect(['10.1.2.3', '192.0.2.7', 'fd12::1', '::ffff:10.1.2.3'].map(from)).toEqual([true, true, true, true]);
  expect(['10.2.0.1', '192.0.2.8', 'fe80::1', 'unix', ''].map(from)).toEqual([false, false, false, false, false]);
  expect(proxyPeers(['unix'])({ address: 'unix', port: 0 })).toBe(true);
});

test('the configuration: networks are checked, and every refusal says what is allowed', () => {
  expect(acceptProxy.parse({ from: ['10.0.0.0/8', '::1', 'unix'] })).toEqual({
    from: ['10.0.0.0/8', '::1', 'unix'],
    required: false,
  });
  for (const from of [['10.0.0.0/33'], ['::1/129'], ['lb.internal'], ['10.0.0.1/'], ['fe80::1%eth0'], []])
    expect(acceptProxy.safeParse({ from }).success, String(from)).toBe(false);
  expect(acceptProxy.safeParse({ from: ['lb'] }).error!.issues[0]!.message).toMatch(
    /allowed are forms like 10\.0\.0\.0/,
  );
  expect(sendProxy.safeParse('v3').error!.issues[0]!.message).toMatch(/allowed are v1, v2/);
});

const portOf = (server: Server) => (server.address() as AddressInfo).port;

/** The bytes that a client's greeting became on its way through HAProxy, and the client's own port. */
const throughHaproxy = async (serverOptions: string, frontOptions = '') => {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => void server.close());
  const { port } = await startHaproxy(
    '',
    `  mode tcp\n${frontOptions}  default_backend back\nbackend back\n  mode tcp\n  server s 127.0.0.1:${portOf(server)} ${serverOptions}`,
  );
  const client = connect(port, '127.0.0.1');
  await once(client, 'connect');
  const localPort = client.localPort!;
  client.end('hello');
  const [socket] = await once(server, 'connection');
  const chunks: Buffer[] = [];
  for await (const chunk of socket as AsyncIterable<Buffer>) chunks.push(chunk);
  client.destroy();
  return { bytes: Buffer.concat(chunks), source: { address: '127.0.0.1', port: localPort }, port };
};

describe('with HAProxy', () => {
  test.each(['send-proxy', 'send-proxy-v2'])('what its %s sends is understood', async (option) => {
    const { bytes, source, port } = await throughHaproxy(option);
    const found = header(parseProxyHeader(bytes));
    expect(found).toMatchObject({ source, destination: { address: '127.0.0.1', port } });
    expect(bytes.toString('latin1', found.length)).toBe('hello');
    expect(
      option === 'send-proxy' ? proxyHeaderV1(source, found.destination!) : proxyHeaderV2(source, found.destination!),
    ).toEqual(bytes.subarray(0, found.length));
  });

  test('its unique id is read, and its checksum agrees', async () => {
    const { bytes } = await throughHaproxy(
      'send-proxy-v2 proxy-v2-options unique-id,crc32c',
      '  unique-id-format shop-1\n',
    );
    const found = header(parseProxyHeader(bytes));
    expect(String(found.tlvs!.uniqueId)).toBe('shop-1');
    expect(bytes.subarray(0, found.length).includes(hex('03 0004'))).toBe(true);
    bytes[17]! ^= 1;
    expect(parseProxyHeader(bytes)).toBe('invalid');
  });

  test('its accept-proxy understands ours', async () => {
    const { port } = await startHaproxy(
      'accept-proxy',
      '  mode http\n  http-request return status 200 content-type text/plain lf-string "%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_authority] %[fc_pp_unique_id]"',
    );
    const ask = async (first: Buffer): Promise<string> => {
      const client = connect(port, '127.0.0.1');
      client.write(Buffer.concat([first, bytesOf('GET / HTTP/1.0\r\n\r\n')]));
      let text = '';
      for await (const chunk of client as AsyncIterable<Buffer>) text += chunk.toString('latin1');
      return text.slice(text.indexOf('\r\n\r\n') + 4).trimEnd();
    };
    expect(await ask(proxyHeaderV1(CLIENT, SHOP))).toBe('192.0.2.7 40000 198.51.100.1 443');
    expect(await ask(proxyHeaderV1(CLIENT6, SHOP6))).toBe('2001:db8::7 40000 2001:db8::1 443');
    expect(await ask(proxyHeaderV1(CLIENT, SHOP6))).toBe('::ffff:192.0.2.7 40000 2001:db8::1 443');
    expect(await ask(proxyHeaderV2(CLIENT, SHOP))).toBe('192.0.2.7 40000 198.51.100.1 443');
    const tlvs = {
      authority: 'shop.example',
      uniqueId: bytesOf('id-1'),
      alpn: 'h2',
      tls: { protocol: 'TLSv1.3', cipher: 'TLS_AES_128_GCM_SHA256', commonName: 'Zoë', verified: true },
    };
    expect(await ask(proxyHeaderV2(CLIENT6, SHOP6, tlvs))).toBe('2001:db8::7 40000 2001:db8::1 443 shop.example id-1');
    for (const ownEnds of [proxyHeaderLocal(), proxyHeaderV1({ address: 'unix', port: 0 }, SHOP)])
      expect(await ask(ownEnds)).toMatch(/^127\.0\.0\.1 \d+ 127\.0\.0\.1 /);
  });
});
