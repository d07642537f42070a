/**
 * Frames that tell a link where an address lives now: complete Ethernet frames for a packet socket. Both are what
 * keepalived sends, so that switches and hosts see the same from either.
 */
import assert from 'node:assert/strict';
import { addressOf, checksumOf, sumPseudoHeader, sumWords } from './ip.ts';
import type { Family } from './ip.ts';

const ETHERNET_HEADER_BYTES = 14;
/** Shorter ones are padded (IEEE 802.3), without the four bytes of the frame check sequence. */
const ETHERNET_MIN_BYTES = 60;
const ETHERTYPE_ARP = 0x0806;
const ETHERTYPE_IPV6 = 0x86dd;
const BROADCAST = Buffer.alloc(6, 0xff);

/** `00:00:5e:00:01:33` (RFC 9568 section 7.3). */
export const virtualMac = (family: Family, vrid: number): string => {
  assert(Number.isInteger(vrid) && vrid >= 1 && vrid <= 255, `VRID ${vrid}`);
  return `00:00:5e:00:0${family === 'ipv4' ? 1 : 2}:${vrid.toString(16).padStart(2, '0')}`;
};

const macBytes = (mac: string): Buffer => {
  assert(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(mac), `${JSON.stringify(mac)} is no MAC address`);
  return Buffer.from(mac.replaceAll(':', ''), 'hex');
};

const ethernetHeader = (frame: Buffer, destination: Uint8Array, source: Uint8Array, etherType: number): void => {
  frame.set(destination, 0);
  frame.set(source, 6);
  frame.writeUInt16BE(etherType, 12);
};

/** A broadcast ARP request (RFC 5227 section 3) with the address as sender and as target, and the MAC as sender. */
export const gratuitousArp = (address: string, mac: string): Buffer => {
  const { family, bytes } = addressOf(address);
  assert(family === 'ipv4', `${address} is not of IPv4`);
  const sender = macBytes(mac);
  const frame = Buffer.alloc(ETHERNET_MIN_BYTES);
  ethernetHeader(frame, BROADCAST, sender, ETHERTYPE_ARP);
  const arp = frame.subarray(ETHERNET_HEADER_BYTES);
  arp.writeUInt16BE(1, 0); // hardware: Ethernet
  arp.writeUInt16BE(0x0800, 2); // protocol: IPv4
  arp[4] = 6;
  arp[5] = 4;
  arp.writeUInt16BE(1, 6); // request
  arp.set(sender, 8);
  arp.set(bytes, 14);
  arp.set(BROADCAST, 18);
  arp.set(bytes, 24);
  return frame;
};

const IPV6_HEADER_BYTES = 40;
const ICMPV6 = 58;
const NEIGHBOUR_ADVERTISEMENT = 136;
const NA_BYTES = 32;
const ROUTER_FLAG = 0x80;
const OVERRIDE_FLAG = 0x20;
const TARGET_LINK_LAYER_ADDRESS = 2;
const ALL_NODES = addressOf('ff02::1').bytes;
/** Where Ethernet carries ff02::1 (RFC 2464 section 7). */
const ALL_NODES_MAC = macBytes('33:33:00:00:00:01');

/**
 * RFC 4861 section 7.2.6: from the address to all nodes, override set, solicited clear. `isRouter` as RFC 9568 section
 * 6.4 has it; keepalived clears it on an interface that doesn't forward, because hosts then drop it as a router.
 */
export const unsolicitedNeighbourAdvertisement = (address: string, mac: string, isRouter = true): Buffer => {
  const { family, bytes } = addressOf(address);
  assert(family === 'ipv6', `${address} is not of IPv6`);
  const sender = macBytes(mac);
  const frame = Buffer.alloc(ETHERNET_HEADER_BYTES + IPV6_HEADER_BYTES + NA_BYTES);
  ethernetHeader(frame, ALL_NODES_MAC, sender, ETHERTYPE_IPV6);
  const ip = frame.subarray(ETHERNET_HEADER_BYTES);
  ip[0] = 0x60;
  ip.writeUInt16BE(NA_BYTES, 4);
  ip[6] = ICMPV6;
  ip[7] = 255; // RFC 4861 section 7.1.2: what came through a router is discarded
  ip.set(bytes, 8);
  ip.set(ALL_NODES, 24);
  const na = ip.subarray(IPV6_HEADER_BYTES);
  na[0] = NEIGHBOUR_ADVERTISEMENT;
  na[4] = OVERRIDE_FLAG | (isRouter ? ROUTER_FLAG : 0);
  na.set(bytes, 8);
  na[24] = TARGET_LINK_LAYER_ADDRESS;
  na[25] = 1; // in units of 8 bytes
  na.set(sender, 26);
  na.writeUInt16BE(checksumOf(sumWords(na, 0, NA_BYTES) + sumPseudoHeader(bytes, ALL_NODES, ICMPV6, NA_BYTES)), 2);
  return frame;
};
