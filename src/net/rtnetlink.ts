/**
 * Interfaces and addresses of this machine through rtnetlink(7): read, changed, and watched. Reading takes no privilege,
 * changing takes CAP_NET_ADMIN. Requests are answered synchronously.
 */
import { errnoName } from './libc.ts';
import type { SocketProblem } from './libc.ts';
import {
  NLMSG_DONE,
  NLMSG_ERROR,
  NLM_F_ACK,
  NLM_F_CREATE,
  NLM_F_DUMP,
  NLM_F_DUMP_INTR,
  NLM_F_EXCL,
  NLM_F_REPLACE,
  NLM_F_REQUEST,
  attribute,
  attributeText,
  readAttributes,
  readMessages,
  writeMessage,
} from './netlinkMessage.ts';
import type { NetlinkMessage } from './netlinkMessage.ts';
import { NetlinkSocket } from './netlinkSocket.ts';
import type { Poller } from './poller.ts';
import { AF_INET, AF_INET6 } from './socket.ts';
import { addressBytes, addressText } from './socketAddress.ts';

export type Family = 'ipv4' | 'ipv6';

export type Link = {
  index: number;
  name: string;
  /** IFF_UP: an administrator wants it up. */
  up: boolean;
  /** It can carry packets: there is a carrier, and its operational state is up (RFC 2863) or not known. */
  running: boolean;
  /** `02:fc:00:00:00:01`; empty where there is none. */
  mac: string;
  mtu: number;
  /** `macvlan`, `vlan`, `veth`; null for hardware and loopback. */
  kind: string | null;
  /** The interface below it in the same namespace. */
  parentIndex: number | null;
  loopback: boolean;
};

export type LinkAddress = {
  interfaceIndex: number;
  family: Family;
  address: string;
  prefixLength: number;
  label: string | null;
  /** RT_SCOPE: 0 global, 253 link, 254 host. */
  scope: number;
  /** IPv6: duplicate address detection (RFC 4862 section 5.4) is not over, or has failed; it can't be used. */
  tentative: boolean;
  dadFailed: boolean;
  /** IPv4: not the first of its subnet; it goes when that goes. IPv6: a temporary address (RFC 8981). */
  secondary: boolean;
  /** Null: for ever. */
  validMs: number | null;
  /** IFA_PROTO, who has put it there; null before Linux 5.18, and where nobody has said so. */
  protocol: number | null;
};

export type LinkChange =
  | { kind: 'link'; link: Link; gone: boolean }
  | { kind: 'address'; address: LinkAddress; gone: boolean }
  /** Notifications were lost; dump again. */
  | { kind: 'overrun' };

export type AddressKey = { interfaceIndex: number; family: Family; address: string; prefixLength: number };

export type NewAddress = AddressKey & {
  /** IPv4 only; begins with the interface's name, 15 bytes at most. */
  label?: string;
  /** Without a route to its subnet. */
  noPrefixRoute?: boolean;
  /** IPv6: usable at once, without duplicate address detection. */
  nodad?: boolean;
  /** IFA_PROTO; by default `ADDRESS_PROTOCOL`. */
  protocol?: number;
  /** By default for ever. */
  validSeconds?: number;
};

/** IFA_PROTO of our addresses, by which left-over ones are known: VRRP's protocol number. Newer `ip address` shows it. */
export const ADDRESS_PROTOCOL = 112;

const RTM_NEWLINK = 16;
const RTM_DELLINK = 17;
const RTM_GETLINK = 18;
const RTM_NEWADDR = 20;
const RTM_DELADDR = 21;
const RTM_GETADDR = 22;

const RTMGRP_LINK = 0x1;
const RTMGRP_IPV4_IFADDR = 0x10;
const RTMGRP_IPV6_IFADDR = 0x100;

const AF_UNSPEC = 0;
const IFINFOMSG_BYTES = 16;
const IFADDRMSG_BYTES = 8;

const IFF_UP = 0x1;
const IFF_LOOPBACK = 0x8;
const IFF_RUNNING = 0x40;
const IFF_LOWER_UP = 0x10000;

const IFLA_ADDRESS = 1;
const IFLA_IFNAME = 3;
const IFLA_MTU = 4;
const IFLA_LINK = 5;
const IFLA_LINKINFO = 18;
const IFLA_AF_SPEC = 26;
const IFLA_EXT_MASK = 29;
const IFLA_LINK_NETNSID = 37;
const IFLA_INFO_KIND = 1;
const IFLA_INFO_DATA = 2;
const IFLA_MACVLAN_MODE = 1;
const MACVLAN_MODE_PRIVATE = 1;
const IFLA_INET6_ADDR_GEN_MODE = 8;
const IN6_ADDR_GEN_MODE_NONE = 1;
const RTEXT_FILTER_SKIP_STATS = 8;

const IFA_ADDRESS = 1;
const IFA_LOCAL = 2;
const IFA_LABEL = 3;
const IFA_CACHEINFO = 6;
const IFA_FLAGS = 8;
const IFA_PROTO = 11;
const IFA_F_SECONDARY = 0x01;
const IFA_F_NODAD = 0x02;
const IFA_F_DADFAILED = 0x08;
const IFA_F_TENTATIVE = 0x40;
const IFA_F_NOPREFIXROUTE = 0x200;
const RT_SCOPE_LINK = 253;
const FOREVER = 0xffffffff;

/** A dump that changes while it is read is read again; after so many times, notifications have to mend it. */
const DUMP_ATTEMPTS = 3;
/** Parts of a dump: far more than 10,000 addresses need. Bounds a loop on what the kernel says. */
const PARTS_PER_DUMP = 4096;
/** A storm of changes must not hold the loop. */
const NOTIFICATIONS_PER_DRAIN = 256;

export class RouteNetlink {
  #requests: NetlinkSocket;
  #notifications: NetlinkSocket;
  #sequence = 0;
  #listeners = new Set<(change: LinkChange) => void>();
  #unwatch: () => void;
  #draining = false;
  /** IPv6 addresses that were added and not told yet: the kernel notifies of them from a thread of its own, later. */
  #untold = new Set<string>();

  private constructor(requests: NetlinkSocket, notifications: NetlinkSocket, poller: Poller) {
    this.#requests = requests;
    this.#notifications = notifications;
    this.#unwatch = poller.watch(notifications.fd, () => this.drain());
  }

  static open(poller: Poller): RouteNetlink | SocketProblem {
    const requests = NetlinkSocket.open(0);
    if ('code' in requests) return requests;
    const notifications = NetlinkSocket.open(RTMGRP_LINK + RTMGRP_IPV4_IFADDR + RTMGRP_IPV6_IFADDR);
    if (!('code' in notifications)) return new RouteNetlink(requests, notifications, poller);
    requests.close();
    return notifications;
  }

  /** @throws Error when the kernel refuses: out of memory, or this is closed */
  links(): Link[] {
    const request = Buffer.concat([linkHeader(0), attribute(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)]);
    return this.#dump(RTM_GETLINK, request, readLink);
  }

  /** In the kernel's order: of an interface and subnet, the primary first. @throws as `links` */
  addresses(): LinkAddress[] {
    return this.#dump(
      RTM_GETADDR,
      addressHeader({ domain: AF_UNSPEC, prefixLength: 0, interfaceIndex: 0 }),
      readAddress,
    );
  }

  /** Also renews one that is there. Returns an errno's name (EPERM, ENODEV, …), or null. */
  addAddress(a: NewAddress): string | null {
    const parts = addressRequest(a);
    if (a.label !== undefined && a.family === 'ipv4') parts.push(attribute(IFA_LABEL, a.label));
    // oxlint-disable-next-line no-bitwise
    parts.push(attribute(IFA_FLAGS, (a.noPrefixRoute ? IFA_F_NOPREFIXROUTE : 0) | (a.nodad ? IFA_F_NODAD : 0)));
    parts.push(attribute(IFA_PROTO, Buffer.of(a.protocol ?? ADDRESS_PROTOCOL)));
    if (a.validSeconds !== undefined) parts.push(attribute(IFA_CACHEINFO, cacheInfo(a.validSeconds)));
    const code = this.#request(RTM_NEWADDR, NLM_F_CREATE + NLM_F_REPLACE, Buffer.concat(parts));
    if (code === null && a.family === 'ipv6') this.#untold.add(keyOf(a));
    return code;
  }

  /** Returns an errno's name (EADDRNOTAVAIL: it isn't there), or null. */
  removeAddress(a: AddressKey): string | null {
    return this.#request(RTM_DELADDR, 0, Buffer.concat(addressRequest(a)));
  }

  /**
   * It is made down, and without link-local addresses of its own: formed from a MAC that several machines share, they
   * would be duplicates. Returns an errno's name (EEXIST: the name is taken), or null.
   */
  addMacvlan({
    parentIndex,
    name,
    mac,
  }: {
    parentIndex: number;
    name: string;
    mac: string;
    mode: 'private';
  }): string | null {
    const body = Buffer.concat([
      linkHeader(0),
      attribute(IFLA_LINK, parentIndex),
      attribute(IFLA_IFNAME, name),
      attribute(IFLA_ADDRESS, Buffer.from(mac.replaceAll(':', ''), 'hex')),
      attribute(IFLA_LINKINFO, [
        attribute(IFLA_INFO_KIND, 'macvlan'),
        attribute(IFLA_INFO_DATA, [attribute(IFLA_MACVLAN_MODE, MACVLAN_MODE_PRIVATE)]),
      ]),
    ]);
    const code = this.#request(RTM_NEWLINK, NLM_F_CREATE + NLM_F_EXCL, body);
    if (code !== null) return code;
    const index = this.links().find((link) => link.name === name)?.index;
    if (index === undefined) return 'ENODEV';
    const noLinkLocal = attribute(IFLA_INET6_ADDR_GEN_MODE, Buffer.of(IN6_ADDR_GEN_MODE_NONE));
    const spec = attribute(IFLA_AF_SPEC, [attribute(AF_INET6, [noLinkLocal])]);
    const refusal = this.#request(RTM_NEWLINK, 0, Buffer.concat([linkHeader(index), spec]));
    // A kernel without IPv6 forms none either.
    if (refusal === null || refusal === 'EAFNOSUPPORT') return null;
    this.removeLink(index);
    return refusal;
  }

  /** Returns an errno's name, or null. */
  removeLink(index: number): string | null {
    return this.#request(RTM_DELLINK, 0, linkHeader(index));
  }

  /** Returns an errno's name, or null. */
  setUp(index: number, up: boolean): string | null {
    return this.#request(RTM_NEWLINK, 0, linkHeader(index, up ? IFF_UP : 0, IFF_UP));
  }

  /** Told are all changes, own ones too, in the kernel's order. The returned function ends it. */
  onChange(listener: (change: LinkChange) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Tells all changes until now, 256 at most. Called by a listener it does nothing: the drain under way goes on. */
  drain(): void {
    if (this.#draining) return;
    this.#draining = true;
    try {
      for (let count = 0; count < NOTIFICATIONS_PER_DRAIN; count++) {
        const bytes = this.#notifications.receive();
        if (bytes === 'ENOBUFS' || bytes === 'EMSGSIZE') {
          this.#recover();
          return;
        }
        if (typeof bytes === 'string') {
          this.#tellUntold();
          return;
        }
        // Read whole before the first listener runs: it may use the buffer for a dump.
        for (const change of readMessages(bytes).map(readChange)) if (change) this.#tell(change);
      }
    } finally {
      this.#draining = false;
    }
  }

  close(): void {
    if (!this.#notifications.isOpen) return;
    this.#unwatch();
    this.#notifications.close();
    this.#requests.close();
    this.#listeners.clear();
  }

  /**
   * A socket that has overrun gets nothing more until it has been emptied, and is not told so again. Only a dump that
   * comes after that sees everything; what was notified before it is out of date.
   */
  #recover(): void {
    let bytes: Buffer | string;
    do bytes = this.#notifications.receive();
    while (typeof bytes !== 'string' || bytes === 'ENOBUFS' || bytes === 'EMSGSIZE');
    this.#untold.clear();
    this.#tell({ kind: 'overrun' });
  }

  /** What the kernel has and all notifications until now have not told. */
  #tellUntold(): void {
    if (this.#untold.size === 0) return;
    const untold = this.#untold;
    this.#untold = new Set();
    for (const address of this.addresses()) {
      if (untold.has(keyOf(address))) this.#tell({ kind: 'address', address, gone: false });
    }
  }

  #tell(change: LinkChange): void {
    if (change.kind === 'address') this.#untold.delete(keyOf(change.address));
    for (const listener of [...this.#listeners]) listener(change);
  }

  #request(type: number, flags: number, body: Buffer): string | null {
    const sequence = ++this.#sequence;
    const refusal = this.#requests.send(writeMessage(type, NLM_F_REQUEST + NLM_F_ACK + flags, sequence, body));
    if (refusal !== null) return refusal;
    for (;;) {
      const bytes = this.#requests.receive();
      if (typeof bytes === 'string') return bytes;
      // What is left of a dump that was given up has an older number.
      const answer = readMessages(bytes).find((message) => message.sequence === sequence);
      if (answer) return answer.type === NLMSG_ERROR ? errorOf(answer) : 'EPROTO';
    }
  }

  #dump<T>(type: number, body: Buffer, read: (message: NetlinkMessage) => T | null): T[] {
    let found: T[] = [];
    for (let attempt = 0; attempt < DUMP_ATTEMPTS; attempt++) {
      const dumped = this.#dumpOnce(type, body, read);
      if (typeof dumped === 'string') throw new Error(`rtnetlink dump: ${dumped}`);
      found = dumped.found;
      if (!dumped.interrupted) break;
    }
    return found;
  }

  #dumpOnce<T>(
    type: number,
    body: Buffer,
    read: (message: NetlinkMessage) => T | null,
  ): { found: T[]; interrupted: boolean } | string {
    const sequence = ++this.#sequence;
    const refusal = this.#requests.send(writeMessage(type, NLM_F_REQUEST + NLM_F_DUMP, sequence, body));
    if (refusal !== null) return refusal;
    const found: T[] = [];
    let interrupted = false;
    for (let part = 0; part < PARTS_PER_DUMP; part++) {
      const bytes = this.#requests.receive();
      if (typeof bytes === 'string') return bytes;
      for (const message of readMessages(bytes)) {
        if (message.sequence !== sequence) continue;
        if (Math.floor(message.flags / NLM_F_DUMP_INTR) % 2 === 1) interrupted = true;
        if (message.type === NLMSG_DONE) return { found, interrupted };
        if (message.type === NLMSG_ERROR) return errorOf(message) ?? 'EPROTO';
        const one = read(message);
        if (one !== null) found.push(one);
      }
    }
    return 'EMSGSIZE';
  }
}

/**
 * From which of an interface's addresses adverts are sent (RFC 9568 sections 5.1.1.1 and 5.1.2.1): IPv4 the first
 * primary one, IPv6 a link-local one that can be used. Addresses that we put there ourselves don't count.
 */
export const sourceAddress = (addresses: LinkAddress[], interfaceIndex: number, family: Family): string | null => {
  const found = addresses.find(
    (a) =>
      a.interfaceIndex === interfaceIndex &&
      a.family === family &&
      a.protocol !== ADDRESS_PROTOCOL &&
      (family === 'ipv4' ? !a.secondary : a.scope === RT_SCOPE_LINK && !a.tentative && !a.dadFailed),
  );
  return found?.address ?? null;
};

const keyOf = ({ interfaceIndex, address }: AddressKey): string =>
  `${interfaceIndex} ${addressText(addressBytes(address))}`;

/** Null for success. */
const errorOf = ({ body }: NetlinkMessage): string | null => {
  const errno = body.length < 4 ? 0 : -body.readInt32LE(0);
  return errno === 0 ? null : errnoName(errno);
};

/** `struct ifinfomsg` */
const linkHeader = (index: number, flags = 0, change = 0): Buffer => {
  const header = Buffer.alloc(IFINFOMSG_BYTES);
  header.writeInt32LE(index, 4);
  header.writeUInt32LE(flags, 8);
  header.writeUInt32LE(change, 12);
  return header;
};

/** `struct ifaddrmsg` */
const addressHeader = (o: { domain: number; prefixLength: number; interfaceIndex: number }): Buffer => {
  const header = Buffer.alloc(IFADDRMSG_BYTES);
  header[0] = o.domain;
  header[1] = o.prefixLength;
  header.writeUInt32LE(o.interfaceIndex, 4);
  return header;
};

const addressRequest = ({ interfaceIndex, family, address, prefixLength }: AddressKey): Buffer[] => {
  const bytes = addressBytes(address);
  return [
    addressHeader({ domain: family === 'ipv4' ? AF_INET : AF_INET6, prefixLength, interfaceIndex }),
    attribute(IFA_LOCAL, bytes),
    attribute(IFA_ADDRESS, bytes),
  ];
};

/** `struct ifa_cacheinfo`: preferred and valid; the others are the kernel's to write. */
const cacheInfo = (seconds: number): Buffer => {
  const info = Buffer.alloc(16);
  info.writeUInt32LE(seconds, 0);
  info.writeUInt32LE(seconds, 4);
  return info;
};

const readChange = (message: NetlinkMessage): LinkChange | null => {
  const { type } = message;
  if (type === RTM_NEWLINK || type === RTM_DELLINK) {
    const link = readLink(message);
    return link && { kind: 'link', link, gone: type === RTM_DELLINK };
  }
  if (type === RTM_NEWADDR || type === RTM_DELADDR) {
    const address = readAddress(message);
    return address && { kind: 'address', address, gone: type === RTM_DELADDR };
  }
  return null;
};

/* oxlint-disable no-bitwise */

/** Null for what speaks of a bridge's port instead: such a message may say "deleted" of a link that stays. */
const readLink = ({ type, body }: NetlinkMessage): Link | null => {
  if (type !== RTM_NEWLINK && type !== RTM_DELLINK) return null;
  if (body.length < IFINFOMSG_BYTES || body[0] !== AF_UNSPEC) return null;
  const flags = body.readUInt32LE(8);
  const attributes = readAttributes(body.subarray(IFINFOMSG_BYTES));
  const info = readAttributes(attributes.get(IFLA_LINKINFO) ?? Buffer.alloc(0));
  const index = body.readInt32LE(4);
  const kind = info.has(IFLA_INFO_KIND) ? attributeText(info.get(IFLA_INFO_KIND)!) : null;
  const below = attributes.get(IFLA_LINK)?.readInt32LE(0) ?? 0;
  // The other end of a veth is not below it; an index in another namespace means nothing here.
  const hasParent = below !== 0 && below !== index && kind !== 'veth' && !attributes.has(IFLA_LINK_NETNSID);
  return {
    index,
    name: attributeText(attributes.get(IFLA_IFNAME) ?? Buffer.alloc(0)),
    up: (flags & IFF_UP) !== 0,
    running: (flags & IFF_RUNNING) !== 0 && (flags & IFF_LOWER_UP) !== 0,
    mac: (attributes.get(IFLA_ADDRESS)?.toString('hex').match(/../g) ?? []).join(':'),
    mtu: attributes.get(IFLA_MTU)?.readUInt32LE(0) ?? 0,
    kind,
    parentIndex: hasParent ? below : null,
    loopback: (flags & IFF_LOOPBACK) !== 0,
  };
};

const readAddress = ({ type, body }: NetlinkMessage): LinkAddress | null => {
  if (type !== RTM_NEWADDR && type !== RTM_DELADDR) return null;
  if (body.length < IFADDRMSG_BYTES || (body[0] !== AF_INET && body[0] !== AF_INET6)) return null;
  const attributes = readAttributes(body.subarray(IFADDRMSG_BYTES));
  // On a point-to-point link IFA_ADDRESS is the peer's.
  const bytes = attributes.get(IFA_LOCAL) ?? attributes.get(IFA_ADDRESS);
  if (!bytes || bytes.length !== (body[0] === AF_INET ? 4 : 16)) return null;
  const flags = attributes.get(IFA_FLAGS)?.readUInt32LE(0) ?? body[2]!;
  const validSeconds = attributes.get(IFA_CACHEINFO)?.readUInt32LE(4) ?? FOREVER;
  const label = attributes.get(IFA_LABEL);
  return {
    interfaceIndex: body.readUInt32LE(4),
    family: body[0] === AF_INET ? 'ipv4' : 'ipv6',
    address: addressText(bytes),
    prefixLength: body[1]!,
    label: label ? attributeText(label) : null,
    scope: body[3]!,
    tentative: (flags & IFA_F_TENTATIVE) !== 0,
    dadFailed: (flags & IFA_F_DADFAILED) !== 0,
    secondary: (flags & IFA_F_SECONDARY) !== 0,
    validMs: validSeconds === FOREVER ? null : validSeconds * 1000,
    protocol: attributes.get(IFA_PROTO)?.[0] ?? null,
  };
};
