/**
 * The PROXY protocol, versions 1 and 2 (haproxy/doc/proxy-protocol.txt; sections below are its own): a header at the
 * beginning of a connection that says on whose behalf it was made.
 */
import assert from 'node:assert/strict';
import { BlockList, isIP, isIPv4, isIPv6 } from 'node:net';
import ipaddr from 'ipaddr.js';
import { addressBytes, addressText } from '../net/socketAddress.ts';
import { readTlvs, writeTlvs } from './proxyTlvs.ts';
import type { ProxyTlvs } from './proxyTlvs.ts';
import type { Peer } from './stream.ts';

/** Section 2.1: the worst case of a line, its CRLF included. */
const MAX_V1_BYTES = 107;
/** Of addresses and TLVs. The specification wants the whole below 536 bytes; nginx takes 4096, and so do we. */
const MAX_V2_BLOCK_BYTES = 4096;

const V1_START = Buffer.from('PROXY ', 'latin1');
const V2_SIGNATURE = Buffer.from('\r\n\r\n\0\r\nQUIT\n', 'latin1');
const V2_HEADER_BYTES = 16;
const CR = 0x0d;
const LF = 0x0a;

const COMMAND_LOCAL = 0x20;
const COMMAND_PROXY = 0x21;
const TCP_OVER_IPV4 = 0x11;
const TCP_OVER_IPV6 = 0x21;
const MAX_FAMILY = 3;
const MAX_TRANSPORT = 2;
/** Section 2.2: what the addresses of each family take: unspecified, IPv4, IPv6, Unix. */
const ADDRESS_BYTES = [0, 12, 36, 216] as const;

/** Addresses are null where those of the socket itself hold: LOCAL, UNKNOWN, and families other than TCP over IP. */
export type ProxyHeader = { length: number; source: Peer | null; destination: Peer | null; tlvs: ProxyTlvs | null };

/**
 * Reads the header that the bytes begin with; `length` bytes are its own. `more` when it isn't whole yet: whoever asks
 * gives all the bytes again. The answer does not depend on how they came in pieces; `invalid` may come early.
 */
export const parseProxyHeader = (bytes: Buffer): ProxyHeader | 'more' | 'invalid' => {
  if (bytes.length === 0) return 'more';
  return bytes[0] === CR ? parseV2(bytes) : parseV1(bytes);
};

const startsLike = (bytes: Buffer, start: Buffer): boolean => {
  const length = Math.min(bytes.length, start.length);
  return bytes.compare(start, 0, length, 0, length) === 0;
};

const parseV1 = (bytes: Buffer): ProxyHeader | 'more' | 'invalid' => {
  if (!startsLike(bytes, V1_START)) return 'invalid';
  let end = V1_START.length;
  while (end < bytes.length && end < MAX_V1_BYTES && bytes[end] !== CR && bytes[end] !== LF) end++;
  if (end >= MAX_V1_BYTES - 1) return 'invalid';
  if (end >= bytes.length) return 'more';
  if (bytes[end] === LF) return 'invalid';
  if (end + 1 === bytes.length) return 'more';
  if (bytes[end + 1] !== LF) return 'invalid';
  const length = end + 2;
  const [protocol, source, destination, sourcePort, destinationPort, ...rest] = bytes
    .toString('latin1', V1_START.length, end)
    .split(' ');
  // What follows is ignored, whatever it is.
  if (protocol === 'UNKNOWN') return { length, source: null, destination: null, tlvs: null };
  const isAddress = protocol === 'TCP4' ? isIPv4 : protocol === 'TCP6' ? isPlainIPv6 : null;
  if (!isAddress || rest.length > 0 || !isAddress(source ?? '') || !isAddress(destination ?? '')) return 'invalid';
  if (!isPort(sourcePort) || !isPort(destinationPort)) return 'invalid';
  return {
    length,
    source: { address: usualForm(source!), port: Number(sourcePort) },
    destination: { address: usualForm(destination!), port: Number(destinationPort) },
    tlvs: null,
  };
};

/** A zone means something on the machine that gave it, and nowhere else. */
const isPlainIPv6 = (text: string): boolean => isIPv6(text) && !text.includes('%');

/** Without heading zeroes. */
const isPort = (text: string | undefined): boolean =>
  text !== undefined && /^(?:0|[1-9]\d{0,4})$/.test(text) && Number(text) <= 65_535;

/** One form for each address, IPv4 in its own: rules and tables compare texts. */
const usualForm = (address: string): string => {
  const parsed = ipaddr.process(address);
  return parsed.kind() === 'ipv4' ? parsed.toString() : (parsed as ipaddr.IPv6).toRFC5952String();
};

const parseV2 = (bytes: Buffer): ProxyHeader | 'more' | 'invalid' => {
  if (!startsLike(bytes, V2_SIGNATURE)) return 'invalid';
  if (bytes.length > 12 && bytes[12] !== COMMAND_LOCAL && bytes[12] !== COMMAND_PROXY) return 'invalid';
  if (bytes.length < V2_HEADER_BYTES) return 'more';
  const blockLength = bytes.readUInt16BE(14);
  if (blockLength > MAX_V2_BLOCK_BYTES) return 'invalid';
  const length = V2_HEADER_BYTES + blockLength;
  const isLocal = bytes[12] === COMMAND_LOCAL;
  const family = bytes[13]! >> 4;
  if (!isLocal && (family > MAX_FAMILY || (bytes[13]! & 0xf) > MAX_TRANSPORT)) return 'invalid';
  if (!isLocal && blockLength < ADDRESS_BYTES[family]!) return 'invalid';
  if (bytes.length < length) return 'more';
  // The family of a LOCAL connection is ignored, and so is what the block holds.
  if (isLocal) return { length, source: null, destination: null, tlvs: null };
  const header = bytes.subarray(0, length);
  const tlvs = readTlvs(header, V2_HEADER_BYTES + ADDRESS_BYTES[family]!);
  if (tlvs === null) return 'invalid';
  const size = bytes[13] === TCP_OVER_IPV4 ? 4 : bytes[13] === TCP_OVER_IPV6 ? 16 : 0;
  if (size === 0) return { length, source: null, destination: null, tlvs };
  const peer = (address: number, port: number): Peer => ({
    address: usualForm(addressText(header.subarray(address, address + size))),
    port: header.readUInt16BE(port),
  });
  const ports = V2_HEADER_BYTES + 2 * size;
  return {
    length,
    source: peer(V2_HEADER_BYTES, ports),
    destination: peer(V2_HEADER_BYTES + size, ports + 2),
    tlvs,
  };
};

/** `PROXY UNKNOWN` when either end is no address: a Unix socket's. */
export const proxyHeaderV1 = (source: Peer, destination: Peer): Buffer => {
  const family = familyOf(source, destination);
  if (family === null) return Buffer.from('PROXY UNKNOWN\r\n', 'latin1');
  const ends = [source, destination].map(({ address }) =>
    family === 'ipv4' ? address : new ipaddr.IPv6([...asIPv6(address)]).toRFC5952String(),
  );
  const protocol = family === 'ipv4' ? 'TCP4' : 'TCP6';
  return Buffer.from(`PROXY ${protocol} ${ends.join(' ')} ${source.port} ${destination.port}\r\n`, 'latin1');
};

/**
 * LOCAL, which every receiver must accept, when either end is no address. `tlvs` are sent as far as they are given.
 */
export const proxyHeaderV2 = (source: Peer, destination: Peer, tlvs: Partial<ProxyTlvs> = {}): Buffer => {
  const family = familyOf(source, destination);
  if (family === null) return proxyHeaderLocal();
  const bytesOf = family === 'ipv4' ? addressBytes : asIPv6;
  const ports = Buffer.alloc(4);
  ports.writeUInt16BE(source.port, 0);
  ports.writeUInt16BE(destination.port, 2);
  const block = [bytesOf(source.address), bytesOf(destination.address), ports, ...writeTlvs(tlvs)];
  return v2(COMMAND_PROXY, family === 'ipv4' ? TCP_OVER_IPV4 : TCP_OVER_IPV6, Buffer.concat(block));
};

/** For connections that the proxy makes for itself: health checks of servers that expect version 2. */
export const proxyHeaderLocal = (): Buffer => v2(COMMAND_LOCAL, 0, Buffer.alloc(0));

const v2 = (command: number, family: number, block: Buffer): Buffer => {
  assert(block.length <= MAX_V2_BLOCK_BYTES, `a PROXY header of ${block.length} bytes`);
  const header = Buffer.alloc(V2_HEADER_BYTES);
  V2_SIGNATURE.copy(header);
  header[12] = command;
  header[13] = family;
  header.writeUInt16BE(block.length, 14);
  return Buffer.concat([header, block]);
};

/** An IPv4 end beside an IPv6 one is told as ::ffff:a.b.c.d. */
const familyOf = (source: Peer, destination: Peer): 'ipv4' | 'ipv6' | null => {
  const [a, b] = [isIP(source.address), isIP(destination.address)];
  if (a === 0 || b === 0) return null;
  return a === 4 && b === 4 ? 'ipv4' : 'ipv6';
};

const asIPv6 = (address: string): Buffer => {
  // A link-local address may carry a zone here.
  const parsed = ipaddr.parse(address.replace(/%.*$/, ''));
  const ipv6 = parsed.kind() === 'ipv4' ? (parsed as ipaddr.IPv4).toIPv4MappedAddress() : parsed;
  return Buffer.from(ipv6.toByteArray());
};

/**
 * Whether a connection of this peer begins with a header: networks as configured, `unix` for Unix sockets. Compiled once
 * a bind. The peer is the socket's own, never one that a header named.
 */
export const proxyPeers = (networks: readonly string[]): ((peer: Peer) => boolean) => {
  const list = new BlockList();
  for (const network of networks) {
    if (network === 'unix') continue;
    const [address = '', length] = network.split('/');
    const family = isIPv4(address) ? 'ipv4' : 'ipv6';
    list.addSubnet(address, length === undefined ? (family === 'ipv4' ? 32 : 128) : Number(length), family);
  }
  const withUnix = networks.includes('unix');
  return ({ address }) => {
    const version = isIP(address);
    return version === 0 ? withUnix && address === 'unix' : list.check(address, version === 4 ? 'ipv4' : 'ipv6');
  };
};
