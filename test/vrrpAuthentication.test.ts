/** The five kinds of authentication: published vectors, what each refuses, repeats, restarts and clocks. */
import { createDecipheriv, createHmac, hkdfSync } from 'node:crypto';
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Advertiser } from '../src/vrrp/advertiser.ts';
import type { Authentication, VirtualRouter } from '../src/vrrp/advertiser.ts';
import type { Datagram } from '../src/vrrp/inspector.ts';
import { hmacKeyBytes } from '../src/vrrp/hmacTrailer.ts';
import {
  counterFrom,
  HMAC_SECRET,
  inspectorOf,
  outcomeOf,
  peerOf,
  routerWith,
  senderOf,
  WALL_US,
} from './vrrpPackets.ts';

const OTHER_HMAC_SECRET = `0x${'a5'.repeat(32)}`;
const pass = { type: 'pass', secret: 's3cret' } as const;
const ah = { type: 'ah', secret: 's3cret' } as const;
const sealed = { type: 'sealed', secret: 'correct horse battery staple' } as const;
const hmacWith = (...ids: number[]): Authentication => ({
  type: 'hmac',
  keys: ids.map((id) => ({ id, secret: id === 1 ? HMAC_SECRET : OTHER_HMAC_SECRET })),
});

const accepted = { verdict: 'advert' };

/** A receiver and the peer that it hears. */
const pairOf = (
  changes: Partial<VirtualRouter>,
  peerChanges: Partial<VirtualRouter> = {},
  counter = counterFrom(1n),
) => {
  const own = routerWith(changes);
  const peer = { ...peerOf(own), ...peerChanges };
  return { own, peer, ...inspectorOf(own), send: senderOf(peer, counter) };
};

const flipped = (datagram: Datagram, bit: number): Datagram => {
  const header = Buffer.from(datagram.header ?? []);
  const whole = Buffer.concat([header, datagram.payload]);
  whole[bit >> 3]! ^= 1 << (bit & 7);
  return {
    ...datagram,
    header: datagram.header && whole.subarray(0, header.length),
    payload: whole.subarray(header.length),
  };
};

describe('pass (RFC 2338 section 5.3.6)', () => {
  test('hears the same secret, of which 8 bytes count', () => {
    const { inspect, send } = pairOf(
      { version: 2, authentication: { type: 'pass', secret: 'longsecret' } },
      { authentication: { type: 'pass', secret: 'longsecr' } },
    );
    expect(inspect(send())).toMatchObject(accepted);
  });

  test('does not hear another, as a conflict that tells no secret', () => {
    const peerSecret = 's3creT';
    const { inspect, send } = pairOf(
      { version: 2, authentication: pass },
      { authentication: { type: 'pass', secret: peerSecret } },
    );
    const verdict = inspect(send());
    expect(outcomeOf(verdict)).toBe('authentication: authentication.secret');
    expect(JSON.stringify(verdict)).not.toMatch(/s3cre/i);
  });
});

describe('ah (RFC 2402, as keepalived has it)', () => {
  const own = routerWith({ version: 2, authentication: ah });

  test('signs as keepalived 2.2.7 did', () => {
    const packet = new Advertiser(own, counterFrom(1n)).packet(200, '224.0.0.18', WALL_US, 'rfc9568');
    expect(packet.toString('hex', 20)).toBe(
      '700400000a630001000000015909b9e291108271856ee56b2133c80102010a030a6300640000000000000000',
    );
  });

  test('refuses every flipped bit of header and payload, but for those that routers may change', () => {
    const { inspect, send } = pairOf({ version: 2, authentication: ah });
    const datagram = send();
    const bits = (20 + datagram.payload.length) * 8;
    // TOS, fragment field and header checksum don't count (RFC 2402 section 3.3.3.1.1.1).
    const mutable = new Set([1, 6, 7, 10, 11]);
    for (let bit = 0; bit < bits; bit++) {
      if (mutable.has(bit >> 3)) continue;
      expect(inspect(flipped(datagram, bit)), `bit ${bit}`).toMatchObject({ verdict: 'discarded' });
    }
    expect(inspect(flipped(datagram, 8))).toMatchObject(accepted);
  });

  test('covers the TTL in multicast and not in unicast, where routers lower it', () => {
    const unicast = { version: 2, authentication: ah, transport: 'unicast', peers: ['10.99.0.2'], minTtl: 1 } as const;
    const lowered = (datagram: Datagram): Datagram => flipped(datagram, 8 * 8);
    const overRouters = pairOf({ ...unicast, peers: [...unicast.peers] });
    expect(overRouters.inspect(lowered(overRouters.send()))).toMatchObject(accepted);
    const onLink = pairOf({ version: 2, authentication: ah });
    expect(outcomeOf(onLink.inspect(lowered(onLink.send())))).toBe('authentication: authentication.secret');
  });

  test('does not hear another secret, as a conflict', () => {
    const { inspect, send } = pairOf(
      { version: 2, authentication: ah },
      { authentication: { type: 'ah', secret: 'other' } },
    );
    expect(outcomeOf(inspect(send()))).toBe('authentication: authentication.secret');
  });

  test('refuses repeats and older ones, of each sender by itself', () => {
    const { inspect, send, own: router } = pairOf({ version: 2, authentication: ah });
    const [first, second] = [send(), send()];
    expect(inspect(second)).toMatchObject(accepted);
    expect(outcomeOf(inspect(second))).toBe('replay');
    expect(outcomeOf(inspect(first))).toBe('replay');
    const third = senderOf({ ...peerOf(router), source: '10.99.0.3' });
    expect(inspect(third())).toMatchObject(accepted);
  });

  test('refuses an SPI other than the source, signed or not', () => {
    const { inspect, send } = pairOf({ version: 2, authentication: ah });
    const { header, payload, ...datagram } = send();
    const whole = Buffer.concat([header!, payload]);
    whole.writeUInt32BE(0x0a63_0009, 24);
    const read = Buffer.from(whole);
    for (const at of [1, 6, 7, 10, 11]) read[at] = 0;
    read.fill(0, 32, 44);
    whole.set(createHmac('md5', Buffer.from('s3cret\0\0')).update(read).digest().subarray(0, 12), 32);
    const forged = { ...datagram, header: whole.subarray(0, 20), payload: whole.subarray(20) };
    expect(outcomeOf(inspect(forged))).toBe('authentication: authentication.secret');
  });

  test('a peer that lost its counter is heard again once it was silent for four intervals', () => {
    const { inspect, send, peer } = pairOf({ version: 2, authentication: ah }, {}, counterFrom(1000n));
    expect(inspect(send(), WALL_US, 0)).toMatchObject(accepted);
    const restarted = senderOf(peer, counterFrom(1n));
    expect(outcomeOf(inspect(restarted(), WALL_US, 4_000_000))).toBe('replay');
    expect(inspect(restarted(), WALL_US, 4_000_001)).toMatchObject(accepted);
  });

  test('what is refused does not keep the mark alive', () => {
    const { inspect, send, peer } = pairOf({ version: 2, authentication: ah }, {}, counterFrom(1000n));
    inspect(send(), WALL_US, 0);
    const restarted = senderOf(peer, counterFrom(1n));
    for (const second of [1, 2, 3, 4]) {
      expect(outcomeOf(inspect(restarted(), WALL_US, second * 1_000_000))).toBe('replay');
    }
    expect(inspect(restarted(), WALL_US, 5_000_000)).toMatchObject(accepted);
  });

  test('takes the low 32 bits of the counter, and never goes back before their end', () => {
    const sequenceOf = (packet: Buffer) => packet.readUInt32BE(28);
    const counter = { value: 0x1_0000_0005n, next: () => counter.value++ };
    const advertiser = new Advertiser(own, counter);
    const next = () => sequenceOf(advertiser.packet(200, '224.0.0.18', WALL_US, 'rfc9568'));
    expect([next(), next()]).toEqual([5, 6]);
    counter.value = 0x2_0000_0000n;
    expect(next()).toBe(7);
    counter.value = 0x2_ffff_ffffn;
    expect([next(), next()]).toEqual([0xffff_ffff, 1]);
  });

  test('an inspector tells what it heard', () => {
    const { inspector, inspect, send } = pairOf({ version: 2, authentication: ah }, {}, counterFrom(77n));
    inspect(send());
    expect(inspector.ahSequence).toBe(77);
  });
});

describe('hmac (draft-cassen-vrrp-auth-hmac, keepalived 2.4)', () => {
  /** The sequence of the draft's vectors. */
  const VECTOR_WALL_US = 0x6800_0000 * 1e6 + 500_000;

  test('signs the draft’s packet over IPv4', () => {
    const router = routerWith({
      transport: 'unicast',
      source: '198.51.100.10',
      peers: ['192.0.2.10'],
      addresses: ['192.0.2.100'],
      authentication: hmacWith(1),
    });
    const packet = new Advertiser(router, counterFrom(1n)).packet(200, '192.0.2.10', VECTOR_WALL_US, 'rfc9568');
    expect(packet.toString('hex', 20)).toBe(
      '3133c80100644402c00002640101000068000000800000001b84bc4e8e43892dc6d98448f8ee2265',
    );
  });

  test('signs the draft’s packet over IPv6, where the checksum covers the trailer', () => {
    const router = routerWith({
      family: 'ipv6',
      transport: 'unicast',
      source: 'fe80::10',
      peers: ['fe80::20'],
      addresses: ['fe80::100'],
      authentication: hmacWith(1),
    });
    const packet = new Advertiser(router, counterFrom(1n)).packet(200, 'fe80::20', VECTOR_WALL_US, 'rfc9568');
    expect(packet.toString('hex')).toBe(
      '3133c8010064a2e9fe800000000000000000000000000100010100006800000080000000c8c56146ebfd66ee10ec4d8186461b78',
    );
  });

  test.each([
    ['0x00ff', '00ff'],
    ['hex:00FF', '00ff'],
    ['0x0', '307830'],
    ['text', '74657874'],
  ])('reads the key %s as keepalived does', (secret, hex) => {
    expect(hmacKeyBytes(secret).toString('hex')).toBe(hex);
  });

  test('hears any of its keys, signs with the first', () => {
    const turning = pairOf({ authentication: hmacWith(1, 2) }, { authentication: hmacWith(2) });
    expect(turning.inspect(turning.send())).toMatchObject(accepted);
    const datagram = senderOf(routerWith({ authentication: hmacWith(2, 1) }))();
    expect(datagram.payload[12 + 1]).toBe(2);
  });

  test('does not hear a key that it has not, nor another under the same id, as conflicts', () => {
    const unknown = pairOf({ authentication: hmacWith(1) }, { authentication: hmacWith(2) });
    expect(unknown.inspect(unknown.send())).toMatchObject({
      kind: 'authentication',
      conflict: { field: 'authentication.keys', own: 'keys 1', peer: 'key 2' },
    });
    const other = { type: 'hmac', keys: [{ id: 1, secret: OTHER_HMAC_SECRET }] } as const;
    const wrong = pairOf({ authentication: hmacWith(1) }, { authentication: { ...other, keys: [...other.keys] } });
    expect(outcomeOf(wrong.inspect(wrong.send()))).toBe('authentication: authentication.keys');
  });

  test('is bound to its sender and to its virtual router', () => {
    const { inspect, send } = pairOf({ authentication: hmacWith(1) });
    const datagram = send({ checksum: 'rfc9568' });
    expect(outcomeOf(inspect({ ...datagram, source: '10.99.0.3' }))).toBe('authentication: authentication.keys');
  });

  test('refuses a flipped bit anywhere in the payload, but for reserved bits of the IP header', () => {
    for (const family of ['ipv4', 'ipv6'] as const) {
      const { inspect, send } = pairOf({ family, authentication: hmacWith(1) });
      const datagram = send();
      const start = family === 'ipv4' ? 160 : 0;
      for (let bit = start; bit < start + datagram.payload.length * 8; bit++) {
        expect(inspect(flipped(datagram, bit)), `bit ${bit}`).toMatchObject({ verdict: 'discarded' });
      }
      expect(inspect(datagram)).toMatchObject(accepted);
    }
  });

  test('refuses repeats and older ones', () => {
    const { inspect, send } = pairOf({ authentication: hmacWith(1) });
    const [first, second] = [send(), send({ wallUs: WALL_US + 10_000 })];
    expect(inspect(second)).toMatchObject(accepted);
    expect(outcomeOf(inspect(second))).toBe('replay');
    expect(outcomeOf(inspect(first))).toBe('replay');
  });

  test('adverts of one instant still follow each other', () => {
    const { inspect, send } = pairOf({ authentication: hmacWith(1) });
    for (let index = 0; index < 5; index++) expect(inspect(send())).toMatchObject(accepted);
  });

  test('refuses what is older or newer than the window of 5 s, as a conflict of clocks', () => {
    const { inspect, send } = pairOf({ authentication: hmacWith(1) });
    expect(inspect(send({ wallUs: WALL_US - 5_000_000 }))).toMatchObject(accepted);
    expect(inspect(send({ wallUs: WALL_US + 6_000_000 }))).toMatchObject({
      kind: 'stale',
      conflict: { field: 'clock', peer: 'ahead by more than 5 s' },
    });
    const fresh = pairOf({ authentication: hmacWith(1) });
    expect(fresh.inspect(fresh.send({ wallUs: WALL_US - 6_000_000 }))).toMatchObject({
      kind: 'stale',
      conflict: { peer: 'behind by more than 5 s' },
    });
  });

  test('has a window of three intervals, where those are longer', () => {
    const { inspect, send } = pairOf({ advertMs: 10_000, authentication: hmacWith(1) });
    expect(inspect(send({ wallUs: WALL_US - 30_000_000 }))).toMatchObject(accepted);
    expect(outcomeOf(inspect(send({ wallUs: WALL_US + 31_000_000 })))).toBe('stale: clock');
  });

  test('a repeat of something old is no conflict, when newer was heard', () => {
    const { inspect, send } = pairOf({ authentication: hmacWith(1) });
    const recorded = send({ wallUs: WALL_US - 100_000_000 });
    inspect(send());
    expect(outcomeOf(inspect(recorded))).toBe('replay');
  });

  test('a peer whose clock is set back goes on from its clock, and is heard once ours agrees', () => {
    const { inspect, send } = pairOf({ authentication: hmacWith(1) });
    const hourUs = 3_600_000_000;
    expect(inspect(send({ wallUs: WALL_US + hourUs }), WALL_US + hourUs)).toMatchObject(accepted);
    expect(inspect(send({ wallUs: WALL_US }), WALL_US)).toMatchObject(accepted);
  });

  test('a clock set back by less than the window does not stop the sequence', () => {
    const { inspect, send } = pairOf({ authentication: hmacWith(1) });
    expect(inspect(send({ wallUs: WALL_US }))).toMatchObject(accepted);
    expect(inspect(send({ wallUs: WALL_US - 4_000_000 }))).toMatchObject(accepted);
  });

  test('a forged packet moves no mark', () => {
    const { inspect, send } = pairOf({ authentication: hmacWith(1) });
    const [honest, later] = [send(), send({ wallUs: WALL_US + 2_000_000 })];
    inspect(flipped(later, (20 + later.payload.length) * 8 - 1));
    expect(inspect(honest)).toMatchObject(accepted);
  });
});

describe('sealed', () => {
  test('is encrypted, and reads as documented', () => {
    const { peer, send } = pairOf({ authentication: sealed }, {}, counterFrom(0x0102030405060708n));
    const payload = Buffer.from(send({ priority: 123 }).payload);
    expect(payload.toString('hex', 0, 6)).toBe('3f3301000400');
    expect(payload.toString('hex', 40, 48)).toBe('0102030405060708');
    expect(payload.includes(Buffer.from([10, 99, 0, 100]))).toBe(false);
    const key = Buffer.from(
      hkdfSync('sha256', sealed.secret, payload.subarray(24, 40), 'understudy vrrp sealed 1', 32),
    );
    const nonce = Buffer.concat([Buffer.alloc(4), payload.subarray(40, 48)]);
    const decipher = createDecipheriv('aes-256-gcm', key, nonce);
    const clear = Buffer.from(payload.subarray(0, 48));
    clear.writeUInt16BE(0, 6);
    expect(peer.source).toBe('10.99.0.2');
    decipher.setAAD(Buffer.concat([clear, Buffer.from([10, 99, 0, 2]), Buffer.alloc(12)]));
    decipher.setAuthTag(payload.subarray(-16));
    const message = Buffer.concat([decipher.update(payload.subarray(48, -16)), decipher.final()]);
    expect(message.toString('hex')).toBe('7b01006400000a630064');
  });

  test.each<[string, Partial<VirtualRouter>]>([
    ['version 2', { version: 2 }],
    ['version 3 over IPv4', {}],
    ['version 3 over IPv6', { family: 'ipv6' }],
    ['UDP', { transport: 'udp', peers: ['10.99.0.2'], minTtl: 1 }],
  ])('is heard, and refuses a flipped bit anywhere: %s', (_name, changes) => {
    const { inspect, send } = pairOf({ ...changes, authentication: sealed });
    const datagram = send({ priority: 9 });
    const start = (datagram.header?.length ?? 0) * 8;
    for (let bit = start; bit < start + datagram.payload.length * 8; bit++) {
      expect(inspect(flipped(datagram, bit)), `bit ${bit}`).toMatchObject({ verdict: 'discarded' });
    }
    expect(inspect(datagram)).toMatchObject({ verdict: 'advert', priority: 9, advertMs: 1000, differences: [] });
  });

  test('does not hear another secret, as a conflict', () => {
    const { inspect, send } = pairOf(
      { authentication: sealed },
      { authentication: { type: 'sealed', secret: 'incorrect horse' } },
    );
    expect(outcomeOf(inspect(send()))).toBe('authentication: authentication.secret');
  });

  test('is bound to the source address, but over UDP, where NAT changes it', () => {
    const { inspect, send } = pairOf({ authentication: sealed });
    const moved = { ...send({ checksum: 'rfc9568' }), source: '10.99.0.3' };
    expect(outcomeOf(inspect(moved))).toBe('authentication: authentication.secret');
    const udp = pairOf({ transport: 'udp', peers: ['10.99.0.2', '10.99.0.3'], minTtl: 1, authentication: sealed });
    expect(udp.inspect({ ...udp.send({ checksum: 'rfc9568' }), source: '10.99.0.3' })).toMatchObject(accepted);
  });

  test('refuses repeats and older ones, also from before the sender’s restart', () => {
    const { inspect, send, peer } = pairOf({ authentication: sealed });
    const [first, second] = [send(), send()];
    expect(inspect(second)).toMatchObject(accepted);
    expect(outcomeOf(inspect(second))).toBe('replay');
    expect(outcomeOf(inspect(first))).toBe('replay');
    const third = send();
    const restarted = senderOf(peer, counterFrom(50n));
    expect(inspect(restarted())).toMatchObject(accepted);
    expect(outcomeOf(inspect(third))).toBe('replay');
  });

  test('a repeat over UDP from another peer’s address is one', () => {
    const { inspect, send } = pairOf({
      transport: 'udp',
      peers: ['10.99.0.2', '10.99.0.3'],
      minTtl: 1,
      authentication: sealed,
    });
    const datagram = send({ checksum: 'rfc9568' });
    expect(inspect(datagram)).toMatchObject(accepted);
    expect(outcomeOf(inspect({ ...datagram, source: '10.99.0.3' }))).toBe('replay');
  });

  test('a forged packet moves no mark', () => {
    const { inspect, send } = pairOf({ authentication: sealed });
    const [honest, later] = [send(), send()];
    inspect(flipped(later, (20 + later.payload.length) * 8 - 1));
    expect(inspect(honest)).toMatchObject(accepted);
  });

  test('nodes that share an address are told apart by their names', () => {
    const shared = { transport: 'udp', source: '127.0.0.1', peers: ['127.0.0.1'], minTtl: 1 } as const;
    const { inspect, peer } = pairOf({ ...shared, peers: ['127.0.0.1'], authentication: sealed });
    const high = senderOf({ ...peer, node: 'lb1' }, counterFrom(1000n));
    const low = senderOf({ ...peer, node: 'lb2' }, counterFrom(1n));
    for (const send of [high, low, high, low]) expect(inspect(send())).toMatchObject(accepted);
  });

  test('no two starts have a key in common, so that no nonce repeats although counters do', () => {
    const router = routerWith({ authentication: sealed });
    const salts = new Set<string>();
    const texts = new Set<string>();
    for (let start = 0; start < 100; start++) {
      const { payload } = senderOf(router)();
      salts.add(Buffer.from(payload.subarray(24, 40)).toString('hex'));
      texts.add(Buffer.from(payload.subarray(48)).toString('hex'));
    }
    expect(salts.size).toBe(100);
    expect(texts.size).toBe(100);
  });

  test('does not pass for an advert with anyone who does not know it', () => {
    const { payload } = senderOf(routerWith({ authentication: sealed }))();
    // A type that no RFC has, and a count that fits no length.
    expect(payload[0]! & 0x0f).not.toBe(1);
    expect(payload[3]).toBe(0);
  });
});

describe('any advert under any authentication', () => {
  const kinds: [string, Partial<VirtualRouter>][] = [
    ['version 2, none', { version: 2 }],
    ['version 2, pass', { version: 2, authentication: pass }],
    ['version 2, ah', { version: 2, authentication: ah }],
    ['version 2, hmac', { version: 2, authentication: hmacWith(1) }],
    ['version 2, sealed', { version: 2, authentication: sealed }],
    ['version 3, none', {}],
    ['version 3, hmac', { authentication: hmacWith(1) }],
    ['version 3, sealed', { authentication: sealed }],
    ['IPv6, none', { family: 'ipv6' }],
    ['IPv6, hmac', { family: 'ipv6', authentication: hmacWith(1) }],
    ['IPv6, sealed', { family: 'ipv6', authentication: sealed }],
  ];
  const anySent = fc.record({
    vrid: fc.integer({ min: 1, max: 255 }),
    priority: fc.integer({ min: 0, max: 255 }),
    advertMs: fc.integer({ min: 1, max: 40 }).map((seconds) => seconds * 1000),
    checksum: fc.constantFrom('rfc9568' as const, 'pseudoHeader' as const),
    count: fc.integer({ min: 1, max: 30 }),
  });
  const addressesOf = (changes: Partial<VirtualRouter>, count: number) =>
    Array.from({ length: count }, (_, index) =>
      changes.family === 'ipv6' ? `fe80::1:${index.toString(16)}` : `10.98.0.${index}`,
    );

  test.each(kinds)('is heard as it was sent: %s', (_name, changes) => {
    fc.assert(
      fc.property(anySent, ({ vrid, priority, advertMs, checksum, count }) => {
        const { inspect, send } = pairOf({ ...changes, vrid, advertMs, addresses: addressesOf(changes, count) });
        expect(inspect(send({ priority, checksum }))).toMatchObject({
          verdict: 'advert',
          priority,
          advertMs,
          differences: [],
        });
      }),
    );
  });

  test.each(kinds)('is refused with a wrong checksum: %s', (_name, changes) => {
    fc.assert(
      fc.property(anySent, fc.integer({ min: 1, max: 0xfffe }), ({ vrid, priority, checksum }, wrong) => {
        const { inspect, send } = pairOf({ ...changes, vrid });
        const datagram = send({ priority, checksum });
        const payload = Buffer.from(datagram.payload);
        const at = datagram.protocol === 51 ? 30 : 6;
        payload.writeUInt16BE(payload.readUInt16BE(at) ^ wrong, at);
        const verdict = inspect({ ...datagram, payload });
        // What is wrong for the form that was sent can be right for the other one, only without authentication.
        const other = checksum === 'rfc9568' ? 'pseudoHeader' : 'rfc9568';
        const what = verdict.verdict === 'advert' ? verdict.checksum : verdict.kind;
        expect(['checksum', other]).toContain(what);
      }),
    );
  });
});
