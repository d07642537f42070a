/** The bytes of VRRP messages and of the IP packets around them, against captured ones and against tshark. */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Advertiser } from '../src/vrrp/advertiser.ts';
import { addressKey, addressOf, parseAddress } from '../src/vrrp/ip.ts';
import { decodeMessage, encodeMessage } from '../src/vrrp/packet.ts';
import type { Family, VrrpMessage } from '../src/vrrp/packet.ts';
import { has } from './packages.ts';
import { counterFrom, groupOf, peerOf, referenceChecksum, routerWith, tsharkFields, WALL_US } from './vrrpPackets.ts';

const bytes = (hex: string): Buffer => Buffer.from(hex.replaceAll(' ', ''), 'hex');

const message: VrrpMessage = { version: 3, vrid: 51, priority: 200, advertMs: 1000, addresses: ['10.99.0.100'] };
const group = { source: addressOf('10.99.0.1').bytes, destination: addressOf('224.0.0.18').bytes };

describe('messages that keepalived 2.2.7 sent', () => {
  const cases: [string, VrrpMessage, typeof group | null, string][] = [
    [
      'version 2 with a password',
      { ...message, version: 2, authenticationType: 1, authenticationData: Buffer.from('s3cret\0\0') },
      null,
      '2133c801 0101cee8 0a630064 73336372 65740000',
    ],
    [
      'version 2 without authentication',
      { ...message, version: 2, priority: 100, authenticationType: 0, authenticationData: Buffer.alloc(8) },
      null,
      '21336401 00017003 0a630064 00000000 00000000',
    ],
    ['version 3 with pseudo-header', message, group, '3133c801 006410ad 0a630064'],
    ['version 3 without pseudo-header (RFC 9568 section 5.2.8)', message, null, '3133c801 0064fb9f 0a630064'],
  ];

  test.each(cases)('%s', (_name, value, pseudo, hex) => {
    expect(encodeMessage(value, 'ipv4', pseudo).toString('hex')).toBe(bytes(hex).toString('hex'));
    expect(decodeMessage(bytes(hex), 'ipv4')).toEqual(value);
  });
});

const anyAddress = (family: Family) =>
  (family === 'ipv4' ? fc.ipV4() : fc.ipV6()).map((text) => {
    const parsed = parseAddress(text)!;
    // A mapped address is one of IPv4.
    return parsed.family === family ? parsed.text : '2001:db8::1';
  });

const anyMessage = (version: 2 | 3, family: Family): fc.Arbitrary<VrrpMessage> =>
  fc.record({
    version: fc.constant(version),
    vrid: fc.integer({ min: 1, max: 255 }),
    priority: fc.integer({ min: 0, max: 255 }),
    advertMs:
      version === 2
        ? fc.integer({ min: 1, max: 255 }).map((seconds) => seconds * 1000)
        : fc.integer({ min: 1, max: 4095 }).map((centiseconds) => centiseconds * 10),
    addresses: fc.array(anyAddress(family), { minLength: 1, maxLength: 20 }),
    ...(version === 2
      ? {
          authenticationType: fc.integer({ min: 0, max: 2 }),
          authenticationData: fc.uint8Array({ minLength: 8, maxLength: 8 }).map((data) => Buffer.from(data)),
        }
      : {}),
  });

describe('any message', () => {
  test.each<[2 | 3, Family]>([
    [2, 'ipv4'],
    [3, 'ipv4'],
    [3, 'ipv6'],
  ])('of version %i over %s comes back as it was', (version, family) => {
    fc.assert(
      fc.property(anyMessage(version, family), (value) => {
        expect(decodeMessage(encodeMessage(value, family, null), family)).toEqual(value);
      }),
    );
  });

  test('has the checksum of RFC 1071, over IPv6 with the pseudo-header of RFC 8200 section 8.1', () => {
    const [source, destination] = [addressOf('fe80::1').bytes, addressOf('ff02::12').bytes];
    fc.assert(
      fc.property(anyMessage(3, 'ipv6'), (value) => {
        const encoded = encodeMessage(value, 'ipv6', { source, destination });
        const pseudo = Buffer.concat([source, destination, Buffer.alloc(8)]);
        pseudo.writeUInt32BE(encoded.length, 32);
        pseudo[39] = 112;
        const zeroed = Buffer.from(encoded);
        zeroed.writeUInt16BE(0, 6);
        expect(encoded.readUInt16BE(6)).toBe(referenceChecksum(Buffer.concat([pseudo, zeroed])));
      }),
    );
  });

  test('of another length than its count says is none: CARP begins with 0x21 as well', () => {
    const carp = Buffer.alloc(36);
    carp.set([0x21, 1, 0, 7, 0, 1]);
    expect(decodeMessage(carp, 'ipv4')).toBeNull();
    const whole = encodeMessage(message, 'ipv4', null);
    expect(decodeMessage(whole.subarray(0, -1), 'ipv4')).toBeNull();
    expect(decodeMessage(Buffer.concat([whole, Buffer.alloc(1)]), 'ipv4')).toBeNull();
    expect(decodeMessage(Buffer.alloc(0), 'ipv4')).toBeNull();
  });
});

describe('addresses', () => {
  test('keys sort as the addresses do, unsigned and in network order (RFC 9568 section 6.4.3)', () => {
    const sorted = ['9.255.255.255', '10.0.0.2', '10.0.0.10', '127.0.0.1', '128.0.0.1', '255.0.0.0'];
    expect(sorted.map(addressKey)).toEqual(sorted.map(addressKey).sort());
    const sorted6 = ['::1', 'fe80::2', 'fe80::10', 'fe80:1::', 'ff02::1'];
    expect(sorted6.map(addressKey)).toEqual(sorted6.map(addressKey).sort());
  });

  test.each([
    ['FE80:0:0::0:1%eth0', 'ipv6', 'fe80::1'],
    ['2001:db8:0:1:1:1:1:1', 'ipv6', '2001:db8:0:1:1:1:1:1'],
    ['::ffff:10.0.0.1', 'ipv4', '10.0.0.1'],
  ])('%s is read as the %s address %s', (text, family, canonical) => {
    expect(parseAddress(text)).toMatchObject({ family, text: canonical });
  });

  test.each(['', '10.1', '1.2.3.256', 'fe80::1::', 'localhost'])('%j is none', (text) => {
    expect(parseAddress(text)).toBeNull();
  });
});

const packetsOf = (changes: Parameters<typeof routerWith>[0]) => {
  const router = routerWith(changes);
  return { router, advertiser: new Advertiser(router, counterFrom(1n)) };
};

describe('the IPv4 packet', () => {
  test('has keepalived’s TOS, no fragment flag, TTL 255, protocol 112, and a checksum that holds', () => {
    const { advertiser } = packetsOf({});
    const packet = advertiser.packet(200, '224.0.0.18', WALL_US, 'pseudoHeader');
    const header = packet.subarray(0, 20);
    expect(header.subarray(0, 4)).toEqual(bytes('45c00020'));
    expect(header.subarray(6, 10)).toEqual(bytes('0000ff70'));
    expect(header.subarray(12)).toEqual(bytes('0a630001 e0000012'));
    expect(referenceChecksum(header)).toBe(0);
    expect(packet.subarray(20).toString('hex')).toBe('3133c801006410ad0a630064');
  });

  test('has an id that is never 0, which the kernel would replace', () => {
    const { advertiser } = packetsOf({});
    const ids = new Set<number>();
    for (let index = 0; index < 0x10002; index++) {
      ids.add(advertiser.packet(200, '224.0.0.18', WALL_US, 'rfc9568').readUInt16BE(4));
    }
    expect(ids.has(0)).toBe(false);
    expect(ids.size).toBe(0xffff);
  });

  test('goes to the destination that is asked for, with its pseudo-header', () => {
    const { advertiser } = packetsOf({ transport: 'unicast', peers: ['10.99.0.2', '10.99.0.3'] });
    const packet = advertiser.packet(200, '10.99.0.3', WALL_US, 'pseudoHeader');
    expect(packet.subarray(16, 20)).toEqual(bytes('0a630003'));
    const destination = addressOf('10.99.0.3').bytes;
    expect(packet.subarray(20)).toEqual(encodeMessage(message, 'ipv4', { ...group, destination }));
  });

  test('is the bare message over IPv6 and over UDP', () => {
    const ipv6 = packetsOf({ family: 'ipv6' });
    expect(decodeMessage(ipv6.advertiser.packet(1, 'ff02::12', WALL_US, 'rfc9568'), 'ipv6')).toMatchObject({
      priority: 1,
      addresses: ['fe80::100', '2001:db8::100'],
    });
    const udp = packetsOf({ transport: 'udp', peers: ['10.99.0.2'] });
    expect(udp.advertiser.packet(200, '10.99.0.2', WALL_US, 'rfc9568')).toEqual(encodeMessage(message, 'ipv4', null));
  });

  test('carries each priority, and one packet is not changed by the next', () => {
    const { advertiser } = packetsOf({});
    const first = advertiser.packet(255, '224.0.0.18', WALL_US, 'rfc9568');
    const second = advertiser.packet(0, '224.0.0.18', WALL_US, 'rfc9568');
    expect([first[22], second[22]]).toEqual([255, 0]);
  });
});

describe.skipIf(!has('tshark'))('tshark reads', () => {
  const fields = ['ip.checksum.status', 'vrrp.version', 'vrrp.virt_rtr_id', 'vrrp.prio', 'vrrp.checksum.status'];

  test('version 2', () => {
    const { advertiser } = packetsOf({ version: 2, authentication: { type: 'pass', secret: 's3cret' } });
    const packet = advertiser.packet(200, '224.0.0.18', WALL_US, 'rfc9568');
    expect(tsharkFields(packet, 101, [...fields, 'vrrp.adver_int', 'vrrp.auth_string', 'vrrp.ip_addr'])).toEqual([
      '1',
      '2',
      '51',
      '200',
      '1',
      '1',
      's3cret',
      '10.99.0.100',
    ]);
  });

  test.each([
    ['pseudoHeader', 'FALSE'],
    ['rfc9568', 'TRUE'],
  ] as const)('version 3 with the checksum %s', (form, asInVersion2) => {
    const { advertiser } = packetsOf({ advertMs: 10 });
    const packet = advertiser.packet(200, '224.0.0.18', WALL_US, form);
    const seen = tsharkFields(
      packet,
      101,
      [...fields, 'vrrp.short_adver_int', 'vrrp.ip_addr'],
      [`vrrp.v3_checksum_as_in_v2:${asInVersion2}`],
    );
    expect(seen).toEqual(['1', '3', '51', '200', '1', '1', '10.99.0.100']);
  });

  test('version 3 over IPv6', () => {
    const { router, advertiser } = packetsOf({ family: 'ipv6' });
    const payload = advertiser.packet(200, groupOf(router), WALL_US, 'rfc9568');
    const header = Buffer.alloc(40);
    header[0] = 0x60;
    header.writeUInt16BE(payload.length, 4);
    header.set([112, 255], 6);
    header.set(addressOf(router.source).bytes, 8);
    header.set(addressOf(groupOf(router)).bytes, 24);
    const seen = tsharkFields(Buffer.concat([header, payload]), 101, [...fields.slice(1), 'vrrp.ipv6_addr']);
    expect(seen).toEqual(['3', '51', '200', '1', 'fe80::100,2001:db8::100']);
  });

  test('an authentication header', () => {
    const { router, advertiser } = packetsOf({ version: 2, authentication: { type: 'ah', secret: 's3cret' } });
    const packet = advertiser.packet(200, groupOf(peerOf(router)), WALL_US, 'rfc9568');
    expect(tsharkFields(packet, 101, [...fields, 'ah.next_header', 'ah.spi', 'ah.sequence'])).toEqual([
      '1',
      '2',
      '51',
      '200',
      '1',
      '112',
      '0x0a630001',
      '1',
    ]);
  });
});
