import { describe, expect, test } from 'vitest';
import { gratuitousArp, unsolicitedNeighbourAdvertisement, virtualMac } from '../src/vrrp/announcement.ts';
import { has } from './packages.ts';
import { referenceChecksum, tsharkFields } from './vrrpPackets.ts';

const MAC = '00:00:5e:00:01:33';

describe('RFC 9568 section 7.3: virtual MAC', () => {
  test('00-00-5E-00-01-VRID for IPv4, 00-00-5E-00-02-VRID for IPv6', () => {
    expect(virtualMac('ipv4', 51)).toBe('00:00:5e:00:01:33');
    expect(virtualMac('ipv6', 1)).toBe('00:00:5e:00:02:01');
    expect(virtualMac('ipv6', 255)).toBe('00:00:5e:00:02:ff');
  });
});

describe('gratuitous ARP', () => {
  test('is keepalived’s: a broadcast request, the address as sender and target, padded to 60 bytes', () => {
    expect(gratuitousArp('10.99.0.100', MAC).toString('hex')).toBe(
      'ffffffffffff00005e0001330806000108000604000100005e0001330a630064ffffffffffff0a630064'.padEnd(120, '0'),
    );
  });

  test.skipIf(!has('tshark'))('tshark reads it as gratuitous', () => {
    const fields = ['eth.dst', 'eth.src', 'arp.opcode', 'arp.src.proto_ipv4', 'arp.dst.proto_ipv4', 'arp.isgratuitous'];
    expect(tsharkFields(gratuitousArp('10.99.0.100', MAC), 1, fields)).toEqual([
      'ff:ff:ff:ff:ff:ff',
      MAC,
      '1',
      '10.99.0.100',
      '10.99.0.100',
      expect.stringMatching(/^(1|True)$/),
    ]);
  });
});

describe('RFC 4861 section 7.2.6: unsolicited neighbour advertisement', () => {
  const frame = unsolicitedNeighbourAdvertisement('2001:db8::100', MAC);

  test('goes from the address to all nodes, with hop limit 255', () => {
    expect(frame.length).toBe(86);
    expect(frame.toString('hex', 0, 14)).toBe('33330000000100005e00013386dd');
    expect(frame.toString('hex', 14, 22)).toBe('6000000000203aff');
    expect(frame.toString('hex', 22, 38)).toBe('20010db8000000000000000000000100');
    expect(frame.toString('hex', 38, 54)).toBe('ff020000000000000000000000000001');
  });

  test('has router and override set, solicited clear, the target and its link-layer address', () => {
    expect(frame.toString('hex', 54, 56)).toBe('8800');
    expect(frame.toString('hex', 58, 62)).toBe('a0000000');
    expect(frame.toString('hex', 62, 78)).toBe('20010db8000000000000000000000100');
    expect(frame.toString('hex', 78)).toBe('020100005e000133');
  });

  test('clears the router flag on a host that does not forward', () => {
    expect(unsolicitedNeighbourAdvertisement('2001:db8::100', MAC, false)[58]).toBe(0x20);
  });

  test('has the ICMPv6 checksum of RFC 4443 section 2.3', () => {
    const pseudo = Buffer.concat([frame.subarray(22, 54), Buffer.from([0, 0, 0, 32, 0, 0, 0, 58])]);
    expect(referenceChecksum(Buffer.concat([pseudo, frame.subarray(54)]))).toBe(0);
  });

  test.skipIf(!has('tshark'))('tshark reads it, its checksum as good', () => {
    const fields = [
      'ipv6.src',
      'ipv6.hlim',
      'icmpv6.type',
      'icmpv6.checksum.status',
      'icmpv6.nd.na.target_address',
      'icmpv6.opt.linkaddr',
    ];
    expect(tsharkFields(frame, 1, fields)).toEqual(['2001:db8::100', '255', '136', '1', '2001:db8::100', MAC]);
  });
});
