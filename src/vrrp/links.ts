/**
 * Interfaces and their addresses as the kernel tells them: a table that is read once and then kept by its
 * notifications. Reading takes no privilege.
 */
import { sourceAddress } from '../net/rtnetlink.ts';
import type { Link, LinkAddress, RouteNetlink } from '../net/rtnetlink.ts';
import type { Family } from './packet.ts';

export type LinkChange = { kind: 'link'; name: string } | { kind: 'address'; address: LinkAddress; gone: boolean };

export type LinkState = { ok: true; link: Link; source: string } | { ok: false; code: string; message: string };

const addressKey = ({ interfaceIndex, address, prefixLength }: LinkAddress): string =>
  `${interfaceIndex} ${address}/${prefixLength}`;

export class Links {
  readonly netlink: RouteNetlink;
  #links = new Map<number, Link>();
  #addresses = new Map<string, LinkAddress>();
  #listeners = new Set<(change: LinkChange) => void>();

  constructor(netlink: RouteNetlink) {
    this.netlink = netlink;
    this.#read();
    netlink.onChange((change) => {
      if (change.kind === 'overrun') this.#readAgain();
      else if (change.kind === 'link') this.#linkChanged(change.link, change.gone);
      else this.#addressChanged(change.address, change.gone);
    });
  }

  /** Called after each change, with the table as it is then. Returns how to end it. */
  onChange(listener: (change: LinkChange) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  find(name: string): Link | null {
    for (const link of this.#links.values()) if (link.name === name) return link;
    return null;
  }

  /** Whether the address is on the interface, whatever its prefix length. */
  has(interfaceIndex: number, address: string): boolean {
    for (const known of this.#addresses.values())
      if (known.interfaceIndex === interfaceIndex && known.address === address) return true;
    return false;
  }

  addressOf(interfaceIndex: number, address: string): LinkAddress | null {
    for (const known of this.#addresses.values())
      if (known.interfaceIndex === interfaceIndex && known.address === address) return known;
    return null;
  }

  names(): string[] {
    return [...this.#links.values()].map(({ name }) => name);
  }

  /** What keeps an interface from being used; null when nothing does. */
  troubleOf(name: string): { code: string; message: string } | null {
    const link = this.find(name);
    if (!link) return { code: 'ENODEV', message: `this machine has no interface ${name}` };
    if (!link.up) return { code: 'ENETDOWN', message: `interface ${name} is down` };
    if (!link.running) return { code: 'ENOLINK', message: `interface ${name} has no carrier` };
    return null;
  }

  /** Whether a router can work on an interface, and from which address; `except` are its virtual addresses. */
  stateOf(name: string, family: Family, configured: string | undefined, except: ReadonlySet<string>): LinkState {
    const trouble = this.troubleOf(name);
    const link = this.find(name);
    if (trouble || !link) return { ok: false, ...trouble! };
    const own = [...this.#addresses.values()].filter(({ address }) => !except.has(address));
    const source = configured ?? sourceAddress(own, link.index, family);
    if (source !== null) return { ok: true, link, source };
    const what = family === 'ipv4' ? 'IPv4 address' : 'link-local IPv6 address';
    const message = `interface ${name} has no ${what} of its own to send from`;
    return { ok: false, code: 'EADDRNOTAVAIL', message };
  }

  #read(): void {
    this.#links = new Map(this.netlink.links().map((link) => [link.index, link]));
    this.#addresses = new Map(this.netlink.addresses().map((address) => [addressKey(address), address]));
  }

  /** Notifications were lost: what differs from before is told as if it had been notified. */
  #readAgain(): void {
    const before = { links: this.#links, addresses: this.#addresses };
    this.#read();
    const names = new Set([...before.links.values(), ...this.#links.values()].map(({ name }) => name));
    for (const name of names) this.#tell({ kind: 'link', name });
    for (const [key, address] of before.addresses)
      if (!this.#addresses.has(key)) this.#tell({ kind: 'address', address, gone: true });
    for (const [key, address] of this.#addresses)
      if (!before.addresses.has(key)) this.#tell({ kind: 'address', address, gone: false });
  }

  #linkChanged(link: Link, gone: boolean): void {
    const before = this.#links.get(link.index);
    if (gone) this.#links.delete(link.index);
    else this.#links.set(link.index, link);
    if (before && before.name !== link.name) this.#tell({ kind: 'link', name: before.name });
    this.#tell({ kind: 'link', name: link.name });
  }

  #addressChanged(address: LinkAddress, gone: boolean): void {
    if (gone) this.#addresses.delete(addressKey(address));
    else this.#addresses.set(addressKey(address), address);
    this.#tell({ kind: 'address', address, gone });
  }

  #tell(change: LinkChange): void {
    for (const listener of [...this.#listeners]) listener(change);
  }
}
