/** Routers, datagrams and a plain reference of the checksum, for the tests of VRRP packets. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'vitest';
import { Advertiser } from '../src/vrrp/advertiser.ts';
import type { ChecksumForm, Counter, VirtualRouter } from '../src/vrrp/advertiser.ts';
import { Inspector } from '../src/vrrp/inspector.ts';
import type { Datagram, Verdict } from '../src/vrrp/inspector.ts';

/** 2026-11-22T03:12:07Z, in µs. */
export const WALL_US = 1_795_317_127_000_000;
export const HMAC_SECRET = 'hex:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f';

const BASE: VirtualRouter = {
  version: 3,
  vrid: 51,
  family: 'ipv4',
  transport: 'multicast',
  advertMs: 1000,
  addresses: ['10.99.0.100'],
  peers: [],
  source: '10.99.0.1',
  minTtl: 255,
  authentication: { type: 'none' },
  checksum: 'learn',
};

export const routerWith = (changes: Partial<VirtualRouter> = {}): VirtualRouter => ({
  ...BASE,
  ...(changes.family === 'ipv6' ? { addresses: ['fe80::100', '2001:db8::100'], source: 'fe80::1' } : {}),
  ...changes,
});

export const counterFrom = (first: bigint): Counter => {
  let next = first;
  return { next: () => next++ };
};

export const groupOf = ({ family }: VirtualRouter): string => (family === 'ipv4' ? '224.0.0.18' : 'ff02::12');

/** What a socket would hand over for a packet that `sender` sent to `destination`. */
export const datagramOf = (packet: Buffer, sender: VirtualRouter, destination: string): Datagram => {
  const { family, source, transport } = sender;
  const hasHeader = family === 'ipv4' && transport !== 'udp';
  return {
    family,
    transport,
    source,
    destination,
    ttl: transport === 'udp' ? null : 255,
    header: hasHeader ? packet.subarray(0, 20) : null,
    protocol: hasHeader ? packet[9]! : transport === 'udp' ? 17 : 112,
    payload: hasHeader ? packet.subarray(20) : packet,
  };
};

export type Sent = { priority?: number; wallUs?: number; checksum?: ChecksumForm; destination?: string };

/** A node that sends: each call gives what its peers' sockets would. */
export const senderOf = (router: VirtualRouter, counter = counterFrom(1n)) => {
  const advertiser = new Advertiser(router, counter);
  return ({ priority = 200, wallUs = WALL_US, checksum = 'pseudoHeader', destination }: Sent = {}): Datagram => {
    const to = destination ?? (router.transport === 'multicast' ? groupOf(router) : router.peers[0]!);
    return datagramOf(advertiser.packet(priority, to, wallUs, checksum), router, to);
  };
};

/** The other node of a pair: the same virtual router with another source, or where there are peers, these swapped. */
export const peerOf = (router: VirtualRouter): VirtualRouter => {
  const source = router.peers[0] ?? (router.family === 'ipv4' ? '10.99.0.2' : 'fe80::2');
  return { ...router, source, peers: router.peers.length > 0 ? [router.source] : [] };
};

export const inspectorOf = (router: VirtualRouter) => {
  const inspector = new Inspector(router);
  const inspect = (datagram: Datagram, wallUs = WALL_US, monoUs = 0): Verdict =>
    inspector.inspect(datagram, wallUs, monoUs);
  return { inspector, inspect };
};

/** `accepted`, or with what differs; the kind of a discard, with the field that it is a conflict about. */
export const outcomeOf = (verdict: Verdict): string => {
  if (verdict.verdict === 'advert') return ['accepted', ...verdict.differences.map(({ field }) => field)].join(': ');
  return verdict.conflict ? `${verdict.kind}: ${verdict.conflict.field}` : verdict.kind;
};

/** RFC 1071 as it is explained there, word by word: for comparison with what packets carry. */
export const referenceChecksum = (bytes: Uint8Array): number => {
  let sum = 0;
  const even = bytes.length % 2 === 0 ? bytes : Buffer.concat([bytes, Buffer.alloc(1)]);
  for (let index = 0; index < even.length; index += 2) {
    sum += even[index]! * 256 + even[index + 1]!;
    if (sum > 0xffff) sum -= 0xffff;
  }
  return 0xffff - sum;
};

/** Fields that tshark reads in one packet. `linkType`: 1 Ethernet, 101 IP. */
export const tsharkFields = (packet: Uint8Array, linkType: 1 | 101, fields: string[], options: string[] = []) => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-pcap-'));
  try {
    const header = Buffer.alloc(24);
    header.writeUInt32LE(0xa1b2c3d4, 0);
    header.writeUInt16LE(2, 4);
    header.writeUInt16LE(4, 6);
    header.writeUInt32LE(0xffff, 16);
    header.writeUInt32LE(linkType, 20);
    const record = Buffer.alloc(16);
    record.writeUInt32LE(packet.length, 8);
    record.writeUInt32LE(packet.length, 12);
    const file = join(folder, 'packet.pcap');
    writeFileSync(file, Buffer.concat([header, record, packet]));
    const settings = ['ip.check_checksum:TRUE', ...options].flatMap((option) => ['-o', option]);
    const shown = fields.flatMap((field) => ['-e', field]);
    const run = spawnSync('tshark', ['-r', file, ...settings, '-T', 'fields', '-E', 'separator=|', ...shown], {
      encoding: 'utf8',
    });
    expect(run.status, run.stderr).toBe(0);
    return run.stdout.trimEnd().split('|');
  } finally {
    rmSync(folder, { recursive: true });
  }
};
