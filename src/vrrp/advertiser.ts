/** Outgoing adverts of one virtual router. What doesn't change from one to the next is laid out once. */
import assert from 'node:assert/strict';
import type { KeyObject } from 'node:crypto';
import { AUTHENTICATION_TYPE, authenticationData } from './authentication.ts';
import type { Authentication } from './authentication.ts';
import {
  HMAC_TRAILER_BYTES,
  hmacKey,
  hmacPseudoHeader,
  nextSequence,
  signHmac,
  windowSecondsOf,
} from './hmacTrailer.ts';
import {
  AddressBook,
  addressIpv4Header,
  addressOf,
  finishIpv4Header,
  IPV4_HEADER_BYTES,
  writeIpv4Header,
} from './ip.ts';
import { AH_BYTES, ahKey, PROTOCOL_AH, signAh, writeAh } from './ipsecAh.ts';
import { AT, encodeWithoutChecksum, PROTOCOL_VRRP, writeChecksum } from './packet.ts';
import type { ChecksumForm, Family } from './packet.ts';
import { SEAL_BYTES, Sealer } from './seal.ts';

export type { Authentication, HmacKey } from './authentication.ts';
export type { ChecksumForm, Family } from './packet.ts';

export type Transport = 'multicast' | 'unicast' | 'udp';

export type VirtualRouter = {
  version: 2 | 3;
  vrid: number;
  family: Family;
  transport: Transport;
  /** Version 2: whole seconds. Version 3: a multiple of 10. */
  advertMs: number;
  addresses: string[];
  /** Nobody else is listened to. Empty for multicast. */
  peers: string[];
  /** Own address on the link. */
  source: string;
  /** Of received packets in unicast and over UDP; in multicast it is 255 (RFC 9568 section 7.1). */
  minTtl: number;
  authentication: Authentication;
  checksum: ChecksumForm | 'learn';
  /** Name of this node; `sealed` tells senders apart by it where they share an address. */
  node?: string;
};

/** Strictly increasing, also across restarts. */
export type Counter = { next(): bigint };

const LAST_AH_SEQUENCE = 0xffff_ffff;

export class Advertiser {
  readonly #router: VirtualRouter;
  readonly #counter: Counter;
  readonly #source: Uint8Array;
  readonly #destinations = new AddressBook();
  readonly #template: Buffer;
  /** Where the payload of IP begins, and where the VRRP message does. */
  readonly #payloadAt: number;
  readonly #messageAt: number;
  readonly #message: Buffer;
  readonly #ahKey: Buffer | null = null;
  readonly #hmac: { id: number; object: KeyObject; pseudo: Buffer; windowSeconds: number } | null = null;
  readonly #sealer: Sealer | null = null;
  /** The kernel would replace 0, and `ah` covers it. */
  #id = 0;
  #ahSequence = 0;
  #hmacSequence: bigint | null = null;

  constructor(router: VirtualRouter, counter: Counter) {
    const { authentication, family, transport, version, vrid } = router;
    const { type } = authentication;
    this.#router = router;
    this.#counter = counter;
    this.#source = addressOf(router.source).bytes;
    this.#message = encodeWithoutChecksum(
      {
        version,
        vrid,
        priority: 0,
        advertMs: router.advertMs,
        addresses: router.addresses,
        authenticationType: type === 'pass' || type === 'ah' ? AUTHENTICATION_TYPE[type] : AUTHENTICATION_TYPE.none,
        ...(type === 'pass' ? { authenticationData: authenticationData(authentication.secret) } : {}),
      },
      family,
    );
    assert(version === 2 || (type !== 'pass' && type !== 'ah'), `${type} is version 2's`);
    assert(type !== 'ah' || transport !== 'udp', 'ah covers the IP header, which is not ours over UDP');

    const hasIpHeader = family === 'ipv4' && transport !== 'udp';
    this.#payloadAt = hasIpHeader ? IPV4_HEADER_BYTES : 0;
    this.#messageAt = this.#payloadAt + (type === 'ah' ? AH_BYTES : 0);
    const behind = type === 'hmac' ? HMAC_TRAILER_BYTES : type === 'sealed' ? SEAL_BYTES : 0;
    this.#template = Buffer.alloc(this.#messageAt + this.#message.length + behind);
    this.#template.set(this.#message, this.#messageAt);
    if (hasIpHeader) writeIpv4Header(this.#template, type === 'ah' ? PROTOCOL_AH : PROTOCOL_VRRP, this.#source);

    if (type === 'ah') {
      writeAh(this.#template, this.#payloadAt, this.#source);
      this.#ahKey = ahKey(authentication.secret);
    } else if (type === 'hmac') {
      const [first] = authentication.keys;
      assert(first, 'hmac without a key');
      this.#hmac = {
        id: first.id,
        object: hmacKey(first),
        pseudo: hmacPseudoHeader(version, vrid, this.#source),
        windowSeconds: windowSecondsOf(router.advertMs),
      };
    } else if (type === 'sealed') {
      this.#sealer = new Sealer({
        secret: authentication.secret,
        version,
        vrid,
        family,
        node: router.node ?? '',
        source: this.#source,
        overUdp: transport === 'udp',
      });
    }
  }

  /**
   * IPv4 multicast and unicast: a whole IP packet. IPv6 and UDP: its payload. `wallUs`: µs since 1970. `checksum` is
   * followed where there is a choice: version 3, over IPv4 or UDP.
   */
  packet(priority: number, destination: string, wallUs: number, checksum: ChecksumForm): Buffer {
    const packet = Buffer.from(this.#template);
    const to = this.#destinations.get(destination);
    assert(to?.family === this.#router.family, `an advert of ${this.#router.family} to ${destination}`);
    packet[this.#messageAt + AT.priority] = priority;
    let covered = this.#messageAt + this.#message.length;
    if (this.#sealer) {
      this.#message[AT.priority] = priority;
      this.#sealer.seal(this.#message, this.#counter.next(), packet, this.#payloadAt);
      covered = packet.length;
    }
    if (this.#hmac) {
      const { pseudo, windowSeconds } = this.#hmac;
      this.#hmacSequence = nextSequence(this.#hmacSequence, wallUs, windowSeconds);
      signHmac(packet, this.#messageAt, packet.length, pseudo, this.#hmac, this.#hmacSequence);
      if (this.#router.family === 'ipv6') covered = packet.length;
    }
    const pseudo = this.#hasPseudoHeader(checksum) ? { source: this.#source, destination: to.bytes } : null;
    writeChecksum(packet, this.#messageAt, covered, pseudo);
    if (this.#payloadAt === 0) return packet;

    this.#id = (this.#id % 0xffff) + 1;
    addressIpv4Header(packet, this.#id, to.bytes);
    if (this.#ahKey) {
      signAh(packet, this.#payloadAt, this.#nextAhSequence(), this.#ahKey, this.#router.transport === 'multicast');
    }
    finishIpv4Header(packet);
    return packet;
  }

  #hasPseudoHeader(checksum: ChecksumForm): boolean {
    const { version, family, transport } = this.#router;
    if (version === 2) return false;
    return (family === 'ipv6' && transport !== 'udp') || checksum === 'pseudoHeader';
  }

  #nextAhSequence(): number {
    const counted = Number(BigInt.asUintN(32, this.#counter.next()));
    const next = Math.max(counted, this.#ahSequence + 1);
    // At the end of 32 bits peers take us for restarted: they forget the old mark once we were silent for them.
    this.#ahSequence = next > LAST_AH_SEQUENCE ? 1 : next;
    return this.#ahSequence;
  }
}
