/**
 * Interfaces with a virtual router's own MAC address (RFC 9568 section 7.3): a private macvlan for each router that is
 * configured with `virtualMac`. Neighbours keep the same MAC through a takeover, only the switch learns its new port.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { messageOf } from '../errors.ts';
import { virtualMac } from './announcement.ts';
import type { Link } from '../net/rtnetlink.ts';
import type { Links } from './links.ts';
import type { Family } from './packet.ts';

export const macvlanName = (family: Family, vrid: number): string =>
  family === 'ipv4' ? `vrrp.${vrid}` : `vrrp6.${vrid}`;

/**
 * Only the macvlan answers for its addresses, and only for them; answers to them may leave by the parent, so the kernel
 * must not take that for spoofing. keepalived sets the same.
 */
const SETTINGS_OF_MACVLAN = { arp_ignore: 1, accept_local: 1, rp_filter: 0 };
/**
 * Adverts are heard on the macvlan, as the kernel gives packets with its MAC to no other; but a backup that reports its
 * membership in the group with that MAC would draw it to its own port. Switches flood 224.0.0.0/24 without any report
 * (RFC 4541 section 2.1.2).
 */
const SETTINGS_OF_HOST = { igmp_link_local_mcast_reports: 0 };
/**
 * arp_announce: an answer from a virtual address leaves by the parent, and the kernel's own question for the client's MAC
 * must not name the virtual address there: the client would take the parent's MAC for it.
 */
const SETTINGS_OF_PARENT = { arp_ignore: 1, arp_filter: 1, arp_announce: 2 };

/** Files in a folder of /proc/sys/net/ipv4. */
type Settings = Record<string, number>;

/** `trouble`: what was told last of why it can't be made. */
type Wanted = { name: string; parentName: string; mac: string; trouble: string };

export class Macvlans {
  #links: Links;
  #warn: (message: string) => void;
  /** By router. */
  #wanted = new Map<string, Wanted>();
  /** By folder: the settings before ours. */
  #settingsBefore = new Map<string, Settings>();
  #stopWatching: () => void;

  constructor(links: Links, warn: (message: string) => void) {
    this.#links = links;
    this.#warn = warn;
    // A parent that comes later, or comes again, has none; and who is configured to have one gets it back.
    this.#stopWatching = links.onChange((change) => {
      if (change.kind === 'link') for (const wanted of this.#wanted.values()) this.#make(wanted);
    });
  }

  /** Makes the interface for a router, or takes over the one that an earlier life of the node has left. */
  want(router: string, parentName: string, family: Family, vrid: number): void {
    const wanted = { name: macvlanName(family, vrid), parentName, mac: virtualMac(family, vrid), trouble: '' };
    this.#wanted.set(router, wanted);
    this.#make(wanted);
    this.#links.netlink.drain();
  }

  release(router: string): void {
    const wanted = this.#wanted.get(router);
    if (!wanted) return;
    this.#wanted.delete(router);
    const link = this.#links.find(wanted.name);
    if (link) this.#links.netlink.removeLink(link.index);
    this.#restore(wanted.parentName);
  }

  names(): string[] {
    return [...this.#wanted.values()].map(({ name }) => name);
  }

  end(): void {
    this.#stopWatching();
    for (const router of [...this.#wanted.keys()]) this.release(router);
  }

  #make(wanted: Wanted): void {
    const { name, parentName, mac } = wanted;
    const { netlink } = this.#links;
    const parent = this.#links.find(parentName);
    // On one that is down it could not be up.
    if (!parent?.up) return;
    const isRight = (link: Link) => link.mac === mac && link.parentIndex === parent.index;
    const known = this.#links.find(name);
    if (known && isRight(known) && known.up) return;
    // The table is told of changes one by one; what the kernel has now may be newer.
    const there = netlink.links().find((link) => link.name === name);
    if (there && isRight(there)) {
      if (!there.up) netlink.setUp(there.index, true);
      return;
    }
    if (there) netlink.removeLink(there.index);
    this.#set('.', SETTINGS_OF_HOST);
    this.#spreadReversePathFilter();
    this.#set(`conf/${parentName}`, SETTINGS_OF_PARENT);
    const code = netlink.addMacvlan({ parentIndex: parent.index, name, mac, mode: 'private' });
    const made = code === null ? netlink.links().find((link) => link.name === name) : null;
    if (made) {
      this.#set(`conf/${name}`, SETTINGS_OF_MACVLAN);
      this.#settingsBefore.delete(`conf/${name}`);
      netlink.setUp(made.index, true);
    }
    const trouble = made ? '' : `the interface ${name} can't be made (${code ?? 'ENODEV'}): it takes CAP_NET_ADMIN`;
    if (trouble !== '' && trouble !== wanted.trouble) this.#warn(trouble);
    wanted.trouble = trouble;
  }

  /**
   * The kernel goes by the greater one of an interface's own value and `all`'s, and takes what a macvlan without address
   * hears for spoofed, also in loose mode: a backup would hear nothing. So every interface, and each that is to come, gets
   * what was all's, which changes nothing for them. keepalived does the same.
   */
  #spreadReversePathFilter(): void {
    const fileOf = (name: string) => `/proc/sys/net/ipv4/conf/${name}/rp_filter`;
    const valueOf = (name: string) => Number(readFileSync(fileOf(name), 'utf8'));
    try {
      const all = valueOf('all');
      if (all === 0) return;
      const names = readdirSync('/proc/sys/net/ipv4/conf').filter((name) => name !== 'all' && valueOf(name) < all);
      for (const name of names) writeFileSync(fileOf(name), String(all));
      writeFileSync(fileOf('all'), '0');
    } catch (error) {
      this.#warn(`adverts may not be heard on ${fileOf('all')}'s account: ${messageOf(error)}`);
    }
  }

  /** The last router on a parent leaves it as it was. */
  #restore(parentName: string): void {
    const isUsed = [...this.#wanted.values()].some((wanted) => wanted.parentName === parentName);
    if (!isUsed && this.#links.find(parentName)) this.#putBack(`conf/${parentName}`);
    if (this.#wanted.size === 0) this.#putBack('.');
  }

  /** `folder` is below net.ipv4. What was there before is kept, unless that is known already. */
  #set(folder: string, settings: Settings): void {
    const before: Settings = {};
    for (const [key, value] of Object.entries(settings)) {
      const path = `/proc/sys/net/ipv4/${folder}/${key}`;
      try {
        before[key] = Number(readFileSync(path, 'utf8'));
        writeFileSync(path, String(value));
      } catch (error) {
        this.#warn(`${path} can't be set: ${messageOf(error)}`);
      }
    }
    if (!this.#settingsBefore.has(folder)) this.#settingsBefore.set(folder, before);
  }

  #putBack(folder: string): void {
    const before = this.#settingsBefore.get(folder);
    if (!before) return;
    this.#set(folder, before);
    this.#settingsBefore.delete(folder);
  }
}
