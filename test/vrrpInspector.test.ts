/** One rule of the RFCs a test, with what it lets through and what it refuses. */
import { describe, expect, test } from 'vitest';
import type { VirtualRouter } from '../src/vrrp/advertiser.ts';
import { vridOf } from '../src/vrrp/inspector.ts';
import type { Datagram } from '../src/vrrp/inspector.ts';
import { HMAC_SECRET, inspectorOf, outcomeOf, peerOf, referenceChecksum, routerWith, senderOf } from './vrrpPackets.ts';

const own = routerWith();
const from = (changes: Partial<VirtualRouter> = {}, router = own): Datagram =>
  senderOf({ ...peerOf(router), ...changes })();

const judge = (datagram: Datagram, router = own) => inspectorOf(router).inspect(datagram);

/** The datagram with other bytes in its message, and a checksum (without pseudo-header) that fits them. */
const altered = (datagram: Datagram, alter: (message: Buffer) => Buffer | void): Datagram => {
  const copy = Buffer.from(datagram.payload);
  const payload = alter(copy) ?? copy;
  if (payload.length >= 8) {
    payload.writeUInt16BE(0, 6);
    payload.writeUInt16BE(referenceChecksum(payload), 6);
  }
  return withPayload(datagram, payload);
};

const withPayload = (datagram: Datagram, payload: Buffer): Datagram => {
  const header = datagram.header && Buffer.from(datagram.header);
  header?.writeUInt16BE(header.length + payload.length, 2);
  return { ...datagram, header, payload };
};

test('an advert is given with its version, priority, interval, source and checksum form', () => {
  expect(judge(senderOf(peerOf(own))({ priority: 7, checksum: 'rfc9568' }))).toEqual({
    verdict: 'advert',
    version: 3,
    priority: 7,
    advertMs: 1000,
    source: '10.99.0.2',
    checksum: 'rfc9568',
    differences: [],
  });
});

test('each kind is counted, and so is what is accepted', () => {
  const { inspector, inspect } = inspectorOf(own);
  const send = senderOf(peerOf(own));
  inspect(send());
  inspect({ ...send(), ttl: 254 });
  inspect({ ...send(), ttl: 1 });
  inspect(from({ vrid: 52 }));
  expect(inspector.accepted).toBe(1);
  expect(inspector.counts).toMatchObject({ ttl: 2, vrid: 1, checksum: 0 });
});

describe('RFC 9568 section 7.1: TTL or hop limit', () => {
  test('has to be 255 in multicast', () => {
    expect(outcomeOf(judge({ ...from(), ttl: 255 }))).toBe('accepted');
    for (const ttl of [254, 1, 0, null]) expect(outcomeOf(judge({ ...from(), ttl }))).toBe('ttl');
  });

  const unicast = routerWith({ transport: 'unicast', peers: ['10.99.0.2'], minTtl: 250 });

  test('has the configured minimum in unicast', () => {
    const advert = from({}, unicast);
    expect(outcomeOf(judge({ ...advert, ttl: 250 }, unicast))).toBe('accepted');
    expect(outcomeOf(judge({ ...advert, ttl: 249 }, unicast))).toBe('ttl: minTtl');
    expect(outcomeOf(judge({ ...advert, ttl: null }, unicast))).toBe('ttl: minTtl');
  });

  test('may be unknown where any will do', () => {
    const udp: VirtualRouter = { ...unicast, transport: 'udp', minTtl: 1 };
    expect(outcomeOf(judge({ ...from({}, udp), ttl: null }, udp))).toBe('accepted');
  });
});

describe('RFC 9568 section 7.1: version', () => {
  test('1, 4 and 0 are garbage', () => {
    for (const version of [0, 1, 4, 15]) {
      const datagram = altered(from(), (message) => void (message[0] = (version << 4) | 1));
      expect(outcomeOf(judge(datagram))).toBe('version');
    }
  });

  test('the other one that we know is a conflict, both ways', () => {
    const version2 = routerWith({ version: 2 });
    expect(outcomeOf(judge(from({}, version2), version2))).toBe('accepted');
    expect(outcomeOf(judge(from({ version: 2 })))).toBe('version: version');
    const verdict = judge(from({ version: 3 }, version2), version2);
    expect(verdict).toMatchObject({ kind: 'version', conflict: { own: '2', peer: '3' } });
  });

  test('2 is none over IPv6', () => {
    const ipv6 = routerWith({ family: 'ipv6' });
    const datagram = from({}, ipv6);
    datagram.payload[0] = 0x21;
    expect(outcomeOf(judge(datagram, ipv6))).toBe('version');
  });
});

test('RFC 9568 section 5.2.2: an unknown type is discarded', () => {
  for (const type of [0, 2, 14]) {
    const datagram = altered(from(), (message) => void (message[0] = 0x30 | type));
    expect(outcomeOf(judge(datagram))).toBe('type');
  }
});

describe('RFC 9568 section 7.1: the packet has to be complete, and exactly so', () => {
  test('a byte less or more is discarded, and so is nothing at all', () => {
    expect(outcomeOf(judge(altered(from(), (message) => message.subarray(0, -1))))).toBe('length');
    expect(outcomeOf(judge(altered(from(), (message) => Buffer.concat([message, Buffer.alloc(1)]))))).toBe('length');
    expect(outcomeOf(judge(altered(from(), () => Buffer.alloc(0))))).toBe('length');
    expect(outcomeOf(judge(altered(from(), (message) => message.subarray(0, 7))))).toBe('length');
  });

  test('a count that the length does not bear out is discarded', () => {
    expect(outcomeOf(judge(altered(from(), (message) => void (message[3] = 2))))).toBe('length');
  });

  test('the IP header has to give the same length', () => {
    const datagram = from();
    const header = Buffer.from(datagram.header!);
    header.writeUInt16BE(header.readUInt16BE(2) + 1, 2);
    expect(outcomeOf(judge({ ...datagram, header }))).toBe('length');
    expect(outcomeOf(judge({ ...datagram, header: header.subarray(0, 19) }))).toBe('length');
  });

  test('an advert of CARP is none of version 2', () => {
    const version2 = routerWith({ version: 2, vrid: 1 });
    const carp = Buffer.alloc(36, 0x5a);
    carp.set([0x21, 1, 0, 7, 0, 1]);
    expect(
      outcomeOf(
        judge(
          altered(from({}, version2), () => carp),
          version2,
        ),
      ),
    ).toBe('length');
  });

  test('one IP option more in the header does no harm', () => {
    const datagram = from();
    const header = Buffer.concat([datagram.header!, Buffer.from([1, 1, 1, 0])]);
    header[0] = 0x46;
    header.writeUInt16BE(header.length + datagram.payload.length, 2);
    expect(outcomeOf(judge({ ...datagram, header }))).toBe('accepted');
  });
});

describe('RFC 9568 section 5.2.8: checksum', () => {
  test('of version 3 over IPv4 is accepted in both forms, and the peer’s form is remembered', () => {
    const { inspector, inspect } = inspectorOf(own);
    const send = senderOf(peerOf(own));
    expect(inspector.peerChecksum()).toBeNull();
    for (const checksum of ['rfc9568', 'pseudoHeader', 'rfc9568'] as const) {
      expect(inspect(send({ checksum }))).toMatchObject({ verdict: 'advert', checksum });
      expect(inspector.peerChecksum()).toBe(checksum);
    }
  });

  test('that fits neither form is discarded, and nothing is learned from it', () => {
    const { inspector, inspect } = inspectorOf(own);
    const datagram = from();
    datagram.payload[6]! ^= 1;
    expect(outcomeOf(inspect(datagram))).toBe('checksum');
    expect(inspector.peerChecksum()).toBeNull();
  });

  test('with the pseudo-header of another destination is discarded', () => {
    const datagram = from();
    expect(outcomeOf(judge({ ...datagram, destination: '224.0.0.19' }))).toBe('checksum');
  });

  test('of version 3 over IPv6 always has the pseudo-header', () => {
    const ipv6 = routerWith({ family: 'ipv6' });
    expect(judge(from({}, ipv6), ipv6)).toMatchObject({ verdict: 'advert', checksum: 'pseudoHeader' });
    expect(
      outcomeOf(
        judge(
          altered(from({}, ipv6), () => {}),
          ipv6,
        ),
      ),
    ).toBe('checksum');
  });

  test('of version 2 never has it (RFC 3768 section 5.3.8)', () => {
    const version2 = routerWith({ version: 2 });
    expect(outcomeOf(judge(from({}, version2), version2))).toBe('accepted');
    const datagram = from({}, version2);
    datagram.payload[19]! ^= 1;
    expect(outcomeOf(judge(datagram, version2))).toBe('checksum');
  });

  test('over UDP may leave the addresses out, which NAT changes', () => {
    for (const family of ['ipv4', 'ipv6'] as const) {
      const peers = [family === 'ipv4' ? '10.99.0.2' : '2001:db8::2'];
      const udp = routerWith({ family, transport: 'udp', peers, minTtl: 1 });
      const send = senderOf(peerOf(udp));
      expect(judge(send({ checksum: 'rfc9568' }), udp)).toMatchObject({ verdict: 'advert', checksum: 'rfc9568' });
      expect(judge(send({ checksum: 'pseudoHeader' }), udp)).toMatchObject({ verdict: 'advert' });
    }
  });
});

test('RFC 9568 section 7.1: another VRID is none of our business', () => {
  expect(outcomeOf(judge(from({ vrid: 52 })))).toBe('vrid');
});

test('RFC 9568 section 5.2.5: a count of 0 is discarded', () => {
  const datagram = altered(from(), (message) => {
    message[3] = 0;
    return message.subarray(0, 8);
  });
  expect(outcomeOf(judge(datagram))).toBe('count');
});

test('RFC 9568 section 5.2.6: reserved bits are ignored', () => {
  expect(outcomeOf(judge(altered(from(), (message) => void (message[4]! |= 0xf0))))).toBe('accepted');
});

describe('interval', () => {
  test('of 0 is discarded', () => {
    expect(outcomeOf(judge(altered(from(), (message) => void message.writeUInt16BE(0, 4))))).toBe('interval');
    const version2 = routerWith({ version: 2 });
    expect(
      outcomeOf(
        judge(
          altered(from({}, version2), (message) => void (message[5] = 0)),
          version2,
        ),
      ),
    ).toBe('interval');
  });

  test('that differs is accepted in version 3, and said (RFC 9568 section 6.4.2)', () => {
    expect(judge(from({ advertMs: 250 }))).toMatchObject({
      verdict: 'advert',
      advertMs: 250,
      differences: [{ field: 'advertise', own: '1 s', peer: '250 ms' }],
    });
  });

  test('that differs is discarded in version 2, as a conflict (RFC 3768 section 7.1)', () => {
    const version2 = routerWith({ version: 2 });
    expect(judge(from({ advertMs: 2000 }, version2), version2)).toMatchObject({
      kind: 'interval',
      conflict: { field: 'advertise', own: '1 s', peer: '2 s' },
    });
  });
});

describe('RFC 9568 section 5.2.9: addresses', () => {
  const ipv6 = routerWith({ family: 'ipv6' });

  test('over IPv6 begin with a link-local one', () => {
    expect(outcomeOf(judge(from({}, ipv6), ipv6))).toBe('accepted');
    const turned = ipv6.addresses.toReversed();
    expect(outcomeOf(judge(from({ addresses: turned }, ipv6), ipv6))).toBe('linkLocal: addresses');
  });

  test('are link-local in all of fe80::/10 (RFC 4291 section 2.5.6)', () => {
    expect(outcomeOf(judge(from({ addresses: ['febf::1'] }, ipv6), ipv6))).toBe('accepted: addresses');
    expect(outcomeOf(judge(from({ addresses: ['fec0::1'] }, ipv6), ipv6))).toBe('linkLocal: addresses');
  });

  test('over UDP need not: there is no link', () => {
    const udp = routerWith({ family: 'ipv6', transport: 'udp', peers: ['2001:db8::2'], minTtl: 1 });
    const global: VirtualRouter = { ...udp, addresses: ['2001:db8::100'] };
    expect(outcomeOf(judge(from({}, global), global))).toBe('accepted');
  });

  test('that differ are accepted, and said (section 7.1: MAY verify)', () => {
    expect(judge(from({ addresses: ['10.99.0.101'] }))).toMatchObject({
      verdict: 'advert',
      differences: [{ field: 'addresses', own: '10.99.0.100', peer: '10.99.0.101' }],
    });
  });

  test('in another order are the same', () => {
    const two = routerWith({ addresses: ['10.99.0.100', '10.99.0.101'] });
    expect(outcomeOf(judge(from({ addresses: ['10.99.0.101', '10.99.0.100'] }, two), two))).toBe('accepted');
  });

  test('that change are judged anew each time', () => {
    const { inspect } = inspectorOf(own);
    const differing = { differences: [{ peer: '10.99.0.101' }] };
    expect(inspect(from({ addresses: ['10.99.0.101'] }))).toMatchObject(differing);
    expect(inspect(from())).toMatchObject({ differences: [] });
    expect(inspect(from({ addresses: ['10.99.0.102'] }))).toMatchObject({ differences: [{ peer: '10.99.0.102' }] });
    expect(inspect(from({ addresses: ['10.99.0.101'] }))).toMatchObject(differing);
  });
});

describe('own source', () => {
  test('is discarded', () => {
    expect(outcomeOf(judge(senderOf(own)()))).toBe('ownSource');
    const ipv6 = routerWith({ family: 'ipv6' });
    expect(outcomeOf(judge({ ...senderOf(ipv6)(), source: 'FE80::0:1%eth0' }, ipv6))).toBe('ownSource');
  });

  test('may be a peer’s over UDP, where ports tell nodes apart', () => {
    const local = routerWith({ transport: 'udp', source: '127.0.0.1', peers: ['127.0.0.1'], minTtl: 1 });
    expect(outcomeOf(judge(senderOf(local)(), local))).toBe('accepted');
  });
});

describe('peers', () => {
  const unicast = routerWith({ transport: 'unicast', peers: ['10.99.0.2'], minTtl: 1 });

  test('that are listed are heard, however they are written', () => {
    expect(outcomeOf(judge(from({}, unicast), unicast))).toBe('accepted');
    const ipv6 = routerWith({ family: 'ipv6', transport: 'unicast', peers: ['FE80:0::2'], minTtl: 1 });
    expect(outcomeOf(judge(from({ source: 'fe80::2' }, ipv6), ipv6))).toBe('accepted');
  });

  test('that are not listed are discarded, as a conflict when all else fits', () => {
    const stranger = senderOf({ ...peerOf(unicast), source: '10.99.0.9' })({ destination: unicast.source });
    expect(judge(stranger, unicast)).toMatchObject({
      kind: 'peer',
      conflict: { field: 'peers', own: '10.99.0.2', peer: '10.99.0.9' },
    });
    const withSecret: VirtualRouter = { ...unicast, authentication: { type: 'sealed', secret: 'something long' } };
    expect(outcomeOf(judge(stranger, withSecret))).toBe('peer');
  });
});

describe('transport', () => {
  test('unicast is not heard by multicast, nor the other way round, as a conflict', () => {
    const unicast: VirtualRouter = { ...own, transport: 'unicast', peers: ['10.99.0.2'], minTtl: 1 };
    expect(outcomeOf(judge(from({}, unicast), own))).toBe('transport: transport');
    expect(outcomeOf(judge(from({}, own), unicast))).toBe('transport: transport');
  });
});

describe('RFC 3768 section 7.1: authentication type', () => {
  const pass = { type: 'pass', secret: 's3cret' } as const;
  const ah = { type: 'ah', secret: 's3cret' } as const;
  const hmac = { type: 'hmac', keys: [{ id: 1, secret: HMAC_SECRET }] } as const;
  const sealed = { type: 'sealed', secret: 'correct horse battery staple' } as const;
  const kinds = {
    2: [{ type: 'none' } as const, pass, ah, sealed],
    3: [{ type: 'none' } as const, { ...hmac, keys: [...hmac.keys] }, sealed],
  };

  const pairs = ([2, 3] as const).flatMap((version) =>
    kinds[version].flatMap((ours) => kinds[version].map((theirs) => ({ version, ours, theirs }))),
  );

  test.each(pairs)('version $version: $ours.type and $theirs.type', ({ version, ours, theirs }) => {
    const router = routerWith({ version, authentication: ours });
    const verdict = judge(from({ authentication: theirs }, router), router);
    const other = { kind: 'authentication', conflict: { own: ours.type, peer: theirs.type } };
    expect(verdict).toMatchObject(ours.type === theirs.type ? { verdict: 'advert' } : other);
  });

  test('a type that nobody knows is told by its number', () => {
    const version2 = routerWith({ version: 2 });
    const datagram = altered(from({}, version2), (message) => void (message[4] = 7));
    expect(judge(datagram, version2)).toMatchObject({ kind: 'authentication', conflict: { peer: 'type 7' } });
  });
});

describe('what a shared socket hears', () => {
  test.each<[string, Partial<VirtualRouter>]>([
    ['plain', {}],
    ['behind an authentication header', { version: 2, authentication: { type: 'ah', secret: 'x' } }],
    ['sealed', { authentication: { type: 'sealed', secret: 'x' } }],
    ['over IPv6', { family: 'ipv6' }],
  ])('has its VRID where it can be read: %s', (_name, changes) => {
    expect(vridOf(senderOf(routerWith(changes))())).toBe(51);
  });

  test('has none when it is too short', () => {
    expect(vridOf(withPayload(from(), Buffer.alloc(7)))).toBeNull();
    expect(vridOf({ ...withPayload(from(), Buffer.alloc(31)), protocol: 51 })).toBeNull();
  });

  test('of the other family is discarded, and so is a source that is no address', () => {
    expect(outcomeOf(judge(from({}, routerWith({ family: 'ipv6' }))))).toBe('family');
    expect(outcomeOf(judge({ ...from(), source: 'nonsense' }))).toBe('family');
  });
});
