/**
 * Judges incoming adverts of one virtual router: RFC 9568 section 7.1, RFC 3768 section 7.1, and what unicast, UDP and
 * authentication add. No input makes it throw.
 *
 * First comes what makes a packet a well-formed advert of this virtual router by somebody else; what fails there is
 * garbage, or none of our business. What fails after it is evidence: a peer is alive and configured otherwise, and so
 * both will be masters.
 */
import type { KeyObject } from 'node:crypto';
import type { Transport, VirtualRouter } from './advertiser.ts';
import { AUTHENTICATION_TYPE, authenticationData, Marks, sameBytes } from './authentication.ts';
import type { Authentication } from './authentication.ts';
import {
  HMAC_TRAILER_BYTES,
  hmacHolds,
  hmacKey,
  hmacPseudoHeader,
  isAfter,
  readHmacTrailer,
  secondsAfter,
  windowSecondsOf,
} from './hmacTrailer.ts';
import { ADDRESS_BYTES, AddressBook, addressOf, IPV4, IPV4_HEADER_BYTES, isLinkLocal, TTL } from './ip.ts';
import type { Address } from './ip.ts';
import { AH_BYTES, ahHolds, ahKey, ahSequenceOf, PROTOCOL_AH, startsWithAh } from './ipsecAh.ts';
import {
  addressesOf,
  advertMsOf,
  AT,
  AUTHENTICATION_DATA_BYTES,
  checksumHolds,
  HEADER_BYTES,
  messageBytes,
  TYPE_ADVERTISEMENT,
  versionOf,
} from './packet.ts';
import type { ChecksumForm, Family } from './packet.ts';
import { isSealed, Opener, SEAL_BYTES } from './seal.ts';

export { addressKey } from './ip.ts';

export type Datagram = {
  family: Family;
  transport: Transport;
  source: string;
  destination: string;
  /** Hop limit of IPv6. Null where the socket doesn't tell. */
  ttl: number | null;
  /** Of IPv4 on a raw socket, as received. */
  header: Uint8Array | null;
  /** 112, 51, or 17 for UDP. */
  protocol: number;
  payload: Uint8Array;
};

const DISCARD_KINDS = [
  'family',
  'ttl',
  'length',
  'version',
  'type',
  'vrid',
  'ownSource',
  'checksum',
  'count',
  'peer',
  'transport',
  'authentication',
  'replay',
  /** `hmac`: the sender's clock and ours differ by more than the window. */
  'stale',
  'interval',
  'linkLocal',
] as const;

export type DiscardKind = (typeof DISCARD_KINDS)[number];

/** `field` is named as in the configuration; `own` and `peer` are texts for people, the same for packet after packet. */
export type Difference = { field: string; own: string; peer: string };

export type Verdict =
  | {
      verdict: 'advert';
      version: 2 | 3;
      priority: number;
      advertMs: number;
      source: string;
      checksum: ChecksumForm;
      /** Accepted, but worth telling: the interval in version 3, the addresses. */
      differences: Difference[];
    }
  | {
      verdict: 'discarded';
      kind: DiscardKind;
      source: string;
      /** A live peer of this virtual router is configured otherwise. Null for garbage, foreign VRIDs, attacks. */
      conflict: Difference | null;
    };

/** What the outer marks of a packet say it is authenticated by; `null` is a type that nobody knows. */
type Claimed = Authentication['type'] | null;

/** A well-formed payload: `message` is what stands behind an AH, `covered` how much of it its checksum is about. */
type Shape = { version: 2 | 3; claimed: Claimed; message: Buffer; covered: number };

type Discard = { kind: DiscardKind; conflict: Difference | null };

const discard = (kind: DiscardKind, conflict: Difference | null = null): Discard => ({ kind, conflict });

const NO_DIFFERENCES: Difference[] = [];

const bufferOf = (bytes: Uint8Array): Buffer =>
  Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** The VRID of whatever looks like VRRP, also behind an AH or sealed; null if it is too short. */
export const vridOf = ({ protocol, payload }: Datagram): number | null => {
  const start = protocol === PROTOCOL_AH ? AH_BYTES : 0;
  return payload.length >= start + HEADER_BYTES ? payload[start + AT.vrid]! : null;
};

export class Inspector {
  readonly counts: Record<DiscardKind, number>;
  accepted = 0;
  /** The greatest `ah` sequence accepted from anybody. */
  ahSequence = 0;
  readonly #router: VirtualRouter;
  readonly #own: Address;
  readonly #peers: ReadonlySet<string>;
  readonly #book = new AddressBook();
  readonly #ownAddresses: Buffer;
  readonly #windowSeconds: number;
  readonly #password: Buffer | null = null;
  readonly #ahKey: Buffer | null = null;
  readonly #hmacKeys = new Map<number, KeyObject>();
  readonly #opener: Opener | null = null;
  readonly #ahMarks = new Marks<{ sequence: number; sinceUs: number; advertMs: number }>();
  readonly #marks = new Marks<bigint>();
  #peerChecksum: ChecksumForm | null = null;
  /** The last address list that differed, so that it is read only once. */
  #otherAddresses: { bytes: Buffer; differences: Difference[] } | null = null;

  constructor(router: VirtualRouter) {
    const { authentication } = router;
    this.#router = router;
    this.#own = addressOf(router.source);
    this.#peers = new Set(router.peers.map((peer) => addressOf(peer).key));
    this.#ownAddresses = Buffer.concat(router.addresses.map((address) => addressOf(address).bytes));
    this.#windowSeconds = windowSecondsOf(router.advertMs);
    this.counts = Object.fromEntries(DISCARD_KINDS.map((kind) => [kind, 0])) as Record<DiscardKind, number>;
    if (authentication.type === 'pass') this.#password = authenticationData(authentication.secret);
    if (authentication.type === 'ah') this.#ahKey = ahKey(authentication.secret);
    if (authentication.type === 'sealed') this.#opener = new Opener(authentication.secret);
    if (authentication.type === 'hmac') for (const key of authentication.keys) this.#hmacKeys.set(key.id, hmacKey(key));
  }

  /** `wallUs`: µs since 1970; `monoUs`: of a clock that nobody sets. */
  inspect(datagram: Datagram, wallUs: number, monoUs: number): Verdict {
    const source = this.#book.get(datagram.source);
    const judged = this.#judge(datagram, source, wallUs, monoUs);
    const text = source?.text ?? datagram.source;
    if ('kind' in judged) {
      this.counts[judged.kind]++;
      return { verdict: 'discarded', kind: judged.kind, source: text, conflict: judged.conflict };
    }
    this.accepted++;
    return { verdict: 'advert', source: text, ...judged };
  }

  /** The form that the last accepted peer used; null unless this is version 3 over IPv4. */
  peerChecksum(): ChecksumForm | null {
    return this.#peerChecksum;
  }

  #judge(datagram: Datagram, source: Address | null, wallUs: number, monoUs: number) {
    const router = this.#router;
    const { family, version, vrid } = router;
    if (source?.family !== family) return discard('family');
    if (router.transport === 'multicast' && datagram.ttl !== TTL) return discard('ttl');

    const shape = this.#shapeOf(datagram, vrid);
    if ('kind' in shape) return shape;
    // Over UDP several nodes can have one address; the sockets know their ports.
    const mayBePeer = router.transport === 'udp' && this.#peers.has(source.key);
    if (source.key === this.#own.key && !mayBePeer) return discard('ownSource');
    const checksum = this.#checksumOf(datagram, shape, source);
    if (checksum === null) return discard('checksum');

    const misfit =
      this.#transportMisfit(datagram) ??
      this.#ttlMisfit(datagram.ttl) ??
      (shape.version === version ? null : differs('version', 'version', String(version), String(shape.version))) ??
      this.#claimMisfit(shape);
    const message = misfit ?? this.#authenticate(datagram, shape, source, wallUs, monoUs);
    if (this.#peers.size > 0 && !this.#peers.has(source.key)) {
      // Whoever fits in everything else is a peer that was forgotten in our list.
      return 'kind' in message ? discard('peer') : differs('peer', 'peers', router.peers.join(', '), source.text);
    }
    if ('kind' in message) return message;
    return this.#read(message, shape.version, checksum);
  }

  /** Version, type, VRID and length, in the order that the RFCs check them. */
  #shapeOf({ protocol, header, payload }: Datagram, vrid: number): Shape | Discard {
    const { family } = this.#router;
    const isAh = protocol === PROTOCOL_AH;
    if (isAh && (!startsWithAh(payload) || header === null)) return discard('length');
    if (header !== null && !headerFits(header, payload)) return discard('length');
    const message = bufferOf(isAh ? payload.subarray(AH_BYTES) : payload);
    if (message.length < HEADER_BYTES) return discard('length');
    const version = versionOf(message);
    if (version === null || (version === 2 && family === 'ipv6')) return discard('version');
    const sealed = isSealed(message);
    if (!sealed && (message[0]! & 0x0f) !== TYPE_ADVERTISEMENT) return discard('type');
    if (message[AT.vrid] !== vrid) return discard('vrid');
    if (sealed) {
      if (isAh || message.length < HEADER_BYTES + SEAL_BYTES) return discard('length');
      return { version, claimed: 'sealed', message, covered: message.length };
    }
    const exact = messageBytes(version, family, message[AT.count]!);
    const hasTrailer = message.length === exact + HMAC_TRAILER_BYTES;
    if (message.length !== exact && !hasTrailer) return discard('length');
    if (message[AT.count] === 0) return discard('count');
    const claimed = claimedBy(message, version, isAh, hasTrailer);
    return { version, claimed, message, covered: family === 'ipv6' ? message.length : exact };
  }

  /** The form that holds; the peer's usual one is tried first, because both can hold by chance. */
  #checksumOf({ destination }: Datagram, shape: Shape, source: Address): ChecksumForm | null {
    const { family, transport } = this.#router;
    const { message, covered, version } = shape;
    if (version === 2) return checksumHolds(message, covered, null) ? 'rfc9568' : null;
    const to = this.#book.get(destination);
    const pseudo = to?.family === family ? { source: source.bytes, destination: to.bytes } : null;
    const withPseudo = () => pseudo !== null && checksumHolds(message, covered, pseudo);
    if (family === 'ipv6' && transport !== 'udp') return withPseudo() ? 'pseudoHeader' : null;
    if (this.#peerChecksum === 'pseudoHeader' && withPseudo()) return 'pseudoHeader';
    if (checksumHolds(message, covered, null)) return 'rfc9568';
    return withPseudo() ? 'pseudoHeader' : null;
  }

  /** A raw socket hears both; keepalived discards what isn't its own kind, so this is heard by one side only. */
  #transportMisfit({ destination }: Datagram): Discard | null {
    const { transport } = this.#router;
    const to = this.#book.get(destination);
    if (transport === 'udp' || to === null) return null;
    const heard = isMulticast(to) ? 'multicast' : 'unicast';
    return heard === transport ? null : differs('transport', 'transport', transport, heard);
  }

  /** Of unicast and UDP; in multicast it is 255 or an attack from afar. One that isn't known is the smallest there is. */
  #ttlMisfit(ttl: number | null): Discard | null {
    const { minTtl, transport } = this.#router;
    if (transport === 'multicast' || (ttl ?? 1) >= minTtl) return null;
    return differs('ttl', 'minTtl', String(minTtl), String(ttl ?? 1));
  }

  #claimMisfit({ claimed, message }: Shape): Discard | null {
    const { type } = this.#router.authentication;
    if (claimed === type) return null;
    const peer = claimed ?? `type ${message[AT.authenticationType]!}`;
    return differs('authentication', 'authentication', type, peer);
  }

  /** The message in clear, when its authentication holds and it is no repeat. */
  #authenticate(
    datagram: Datagram,
    { message, version }: Shape,
    source: Address,
    wallUs: number,
    monoUs: number,
  ): Buffer | Discard {
    const { authentication, family, transport, vrid } = this.#router;
    switch (authentication.type) {
      case 'none':
        return message;
      case 'pass': {
        const data = message.subarray(-AUTHENTICATION_DATA_BYTES);
        return sameBytes(data, this.#password!) ? message : otherSecret('pass');
      }
      case 'ah': {
        const { header, payload } = datagram;
        if (!ahHolds(header!, payload, this.#ahKey!, transport === 'multicast')) return otherSecret('ah');
        const advertMs = advertMsOf(message, version);
        return this.#isNewAh(source.key, ahSequenceOf(payload), advertMs, monoUs) ? message : discard('replay');
      }
      case 'hmac':
        return this.#authenticateHmac(message, hmacPseudoHeader(version, vrid, source.bytes), source.key, wallUs);
      case 'sealed': {
        const opened = this.#opener!.open(message, family, transport === 'udp' ? null : source.bytes);
        if (opened === null) return otherSecret('sealed');
        const mark = this.#marks.get(opened.sender);
        if (mark !== null && opened.counter <= mark) return discard('replay');
        const { message: clear } = opened;
        if (clear.length !== messageBytes(version, family, clear[AT.count]!)) return discard('length');
        this.#marks.set(opened.sender, opened.counter);
        return clear[AT.count] === 0 ? discard('count') : clear;
      }
    }
  }

  /**
   * keepalived accepts what is greater than its mark. A peer whose counter was lost must not be shut out for good: its
   * mark is forgotten when nothing valid came from it for 3 of its intervals and one more, longer than any master is
   * waited for.
   */
  #isNewAh(sender: string, sequence: number, advertMs: number, monoUs: number): boolean {
    const mark = this.#ahMarks.get(sender);
    const forgotten = mark !== null && monoUs - mark.sinceUs > 4 * mark.advertMs * 1000;
    if (mark !== null && !forgotten && sequence <= mark.sequence) return false;
    this.#ahMarks.set(sender, { sequence, sinceUs: monoUs, advertMs });
    this.ahSequence = Math.max(this.ahSequence, sequence);
    return true;
  }

  #authenticateHmac(message: Buffer, pseudo: Buffer, sender: string, wallUs: number): Buffer | Discard {
    const trailer = readHmacTrailer(message);
    if (trailer === null) return discard('authentication');
    const { keyId, sequence } = trailer;
    const mark = this.#marks.get(sender);
    // A mark outside of the window orders only what the window refuses already; without it, a peer whose clock was
    // ahead and was set right would be shut out until the time it had shown.
    const isMarked = mark !== null && Math.abs(secondsAfter(mark, wallUs)) <= this.#windowSeconds;
    if (isMarked && !isAfter(sequence, mark)) return discard('replay');
    const key = this.#hmacKeys.get(keyId);
    if (!key) {
      const own = [...this.#hmacKeys.keys()].join(', ');
      return differs('authentication', 'authentication.keys', `keys ${own}`, `key ${keyId}`);
    }
    if (!hmacHolds(message, pseudo, key)) return otherSecret(`key ${keyId}`, 'authentication.keys');
    const ahead = secondsAfter(sequence, wallUs);
    if (Math.abs(ahead) > this.#windowSeconds) {
      const peer = `${ahead > 0 ? 'ahead' : 'behind'} by more than ${this.#windowSeconds} s`;
      return differs('stale', 'clock', 'this node’s', peer);
    }
    this.#marks.set(sender, sequence);
    return message;
  }

  #read(message: Buffer, version: 2 | 3, checksum: ChecksumForm) {
    const { advertMs: own, family, transport } = this.#router;
    const advertMs = advertMsOf(message, version);
    if (advertMs === 0) return discard('interval');
    if (version === 2 && advertMs !== own) return differs('interval', 'advertise', timeText(own), timeText(advertMs));
    if (family === 'ipv6' && transport !== 'udp' && !isLinkLocal(message, HEADER_BYTES)) {
      const [first] = addressesOf(message, family);
      return differs('linkLocal', 'addresses', 'a link-local address first', first!);
    }
    const differences = this.#addressDifferences(message);
    if (version === 3 && family === 'ipv4') this.#peerChecksum = checksum;
    return {
      version,
      priority: message[AT.priority]!,
      advertMs,
      checksum,
      differences:
        advertMs === own
          ? differences
          : [{ field: 'advertise', own: timeText(own), peer: timeText(advertMs) }, ...differences],
    };
  }

  #addressDifferences(message: Buffer): Difference[] {
    const { addresses, family } = this.#router;
    const end = HEADER_BYTES + message[AT.count]! * ADDRESS_BYTES[family];
    const bytes = message.subarray(HEADER_BYTES, end);
    if (bytes.equals(this.#ownAddresses)) return NO_DIFFERENCES;
    if (!this.#otherAddresses?.bytes.equals(bytes)) {
      const peer = addressesOf(message, family);
      const own = addresses.map((address) => addressOf(address).text);
      const isSame = [...new Set(own)].sort().join() === [...new Set(peer)].sort().join();
      this.#otherAddresses = {
        bytes: Buffer.from(bytes),
        differences: isSame ? NO_DIFFERENCES : [{ field: 'addresses', own: own.join(', '), peer: peer.join(', ') }],
      };
    }
    return this.#otherAddresses.differences;
  }
}

const differs = (kind: DiscardKind, field: string, own: string, peer: string): Discard =>
  discard(kind, { field, own, peer });

/** No secret is told. */
const otherSecret = (what: string, field = 'authentication.secret'): Discard =>
  differs('authentication', field, what, `${what} with another secret`);

const headerFits = (header: Uint8Array, payload: Uint8Array): boolean =>
  header.length >= IPV4_HEADER_BYTES &&
  header.length === (header[0]! & 0x0f) * 4 &&
  ((header[IPV4.totalLength]! << 8) | header[IPV4.totalLength + 1]!) === header.length + payload.length;

const claimedBy = (message: Buffer, version: 2 | 3, isAh: boolean, hasTrailer: boolean): Claimed => {
  if (hasTrailer) return isAh ? null : 'hmac';
  if (version === 3) return isAh ? null : 'none';
  const type = message[AT.authenticationType];
  if (isAh) return type === AUTHENTICATION_TYPE.ah ? 'ah' : null;
  if (type === AUTHENTICATION_TYPE.none) return 'none';
  return type === AUTHENTICATION_TYPE.pass ? 'pass' : null;
};

const isMulticast = ({ family, bytes }: Address): boolean =>
  family === 'ipv4' ? bytes[0]! >> 4 === 0xe : bytes[0] === 0xff;

const timeText = (ms: number): string => (ms % 1000 === 0 ? `${ms / 1000} s` : `${ms} ms`);
