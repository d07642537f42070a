/**
 * Virtual addresses on this machine: put on an interface and taken away through rtnetlink, announced to the neighbours,
 * and watched, as others may change them too.
 *
 * The kernel is given each address for a few seconds only, and gets them renewed: a node that can't even die in order
 * leaves nothing behind.
 */
import assert from 'node:assert/strict';
import type { AddressAnswer, AddressPort } from '../../actors/virtualAddress.ts';
import type { PacketSocket } from '../net/packetSocket.ts';
import { ADDRESS_PROTOCOL } from '../net/rtnetlink.ts';
import { gratuitousArp, unsolicitedNeighbourAdvertisement } from './announcement.ts';
import type { LinkAddress } from '../net/rtnetlink.ts';
import type { LinkChange, Links } from './links.ts';
import type { Family } from './packet.ts';

/** How long an address stays when nobody renews it: above the longest stall of a loop that is alive. */
const LEASE_SECONDS = 5;
const RENEW_EVERY_MS = 1_000;

export type AddressSetup = {
  address: string;
  prefixLength: number;
  family: Family;
  label: string | undefined;
  /** The interface that it is put on; null: it is held by binding it. */
  interfaceName: string | null;
  /** With a virtual MAC the interface is a macvlan, which must bring no route of its own. */
  isMacvlan: boolean;
  /** The owner's own address: where it is there without us, it stays as it is. */
  isOwners: boolean;
};

export type HeldAddress = { interfaceIndex: number; family: Family; address: string; prefixLength: number };

export type AddressesOptions = {
  links: Links;
  /** Null where there is none to be had: without privilege. */
  packets: PacketSocket | null;
  setupOf(address: string): AddressSetup | null;
  /** The actors of all addresses. */
  configured(): Iterable<string>;
  report(address: string, event: { type: 'address.lost' | 'address.appeared' }): void;
  /** Lets the listeners of an address begin or end to listen. */
  bind(address: string, done: (answer: AddressAnswer) => void): void;
  unbind(address: string, done: (answer: AddressAnswer) => void): void;
  /** What is held now, after each change. */
  onHeld(held: HeldAddress[]): void;
  onTrouble(address: string, what: string, code: string): void;
};

export class Addresses implements AddressPort {
  #options: AddressesOptions;
  /** By actor. */
  #held = new Map<string, HeldAddress & { setup: AddressSetup }>();
  #renewal: NodeJS.Timeout | null = null;
  #stopWatching: () => void;

  constructor(options: AddressesOptions) {
    this.#options = options;
    this.#stopWatching = options.links.onChange((change) => this.#watch(change));
  }

  add(id: string, answer: (answer: AddressAnswer) => void): void {
    const { links, setupOf, bind } = this.#options;
    const setup = setupOf(id);
    assert(setup, `${id} is not configured`);
    if (setup.interfaceName === null) return bind(id, answer);
    const { interfaceName, address, family, prefixLength } = setup;
    const link = links.find(interfaceName);
    if (!link) {
      return answer({ ok: false, code: 'ENODEV', message: `this machine has no interface ${interfaceName}` });
    }
    if (this.#isOwnersOwn(setup, link.index)) return answer({ ok: true });
    const held = { interfaceIndex: link.index, family, address, prefixLength, setup };
    const code = this.#put(held);
    if (code !== null) return answer({ ok: false, code, message: messageFor(setup, code) });
    this.#held.set(id, held);
    this.#heldChanged();
    answer({ ok: true });
  }

  remove(id: string, answer: (answer: AddressAnswer) => void): void {
    const { links, setupOf, unbind } = this.#options;
    const setup = this.#held.get(id)?.setup ?? setupOf(id);
    if (!setup) return answer({ ok: true });
    if (setup.interfaceName === null) return unbind(id, answer);
    // What is still to be told of it is of the time before.
    links.netlink.drain();
    const link = links.find(setup.interfaceName);
    const there = link ? links.addressOf(link.index, setup.address) : null;
    const wasHeld = this.#held.delete(id);
    if (wasHeld) this.#heldChanged();
    if (!link || (!there && !wasHeld) || this.#isOwnersOwn(setup, link.index)) return answer({ ok: true });
    const code = links.netlink.removeAddress({
      interfaceIndex: link.index,
      family: setup.family,
      address: setup.address,
      prefixLength: there?.prefixLength ?? setup.prefixLength,
    });
    const isGone = code === null || code === 'EADDRNOTAVAIL' || code === 'ENODEV';
    answer(isGone ? { ok: true } : { ok: false, code, message: messageFor(setup, code) });
  }

  announce(id: string, count: number): void {
    const { packets, links, onTrouble, setupOf } = this.#options;
    const setup = setupOf(id);
    if (!setup || !packets || setup.interfaceName === null) return;
    const link = links.find(setup.interfaceName);
    // Held, and not what the table of addresses says: of an address just added that hears in a later turn.
    const isHere = this.#held.has(id) || (link !== null && this.#isOwnersOwn(setup, link.index));
    if (!link || link.loopback || !isHere) return;
    const frame =
      setup.family === 'ipv4'
        ? gratuitousArp(setup.address, link.mac)
        : unsolicitedNeighbourAdvertisement(setup.address, link.mac);
    for (let sent = 0; sent < count; sent++) {
      const code = packets.send(link.index, frame);
      if (code !== null) return onTrouble(id, 'announced', code);
    }
  }

  get held(): HeldAddress[] {
    return [...this.#held.values()].map(({ interfaceIndex, family, address, prefixLength }) => ({
      interfaceIndex,
      family,
      address,
      prefixLength,
    }));
  }

  end(): void {
    this.#stopWatching();
    if (this.#renewal) clearInterval(this.#renewal);
  }

  #isOwnersOwn(setup: AddressSetup, interfaceIndex: number): boolean {
    const there = setup.isOwners ? this.#options.links.addressOf(interfaceIndex, setup.address) : null;
    return there !== null && there.protocol !== ADDRESS_PROTOCOL;
  }

  #put({ interfaceIndex, family, address, prefixLength, setup }: HeldAddress & { setup: AddressSetup }): string | null {
    return this.#options.links.netlink.addAddress({
      interfaceIndex,
      family,
      address,
      prefixLength,
      ...(setup.label === undefined ? {} : { label: setup.label }),
      noPrefixRoute: setup.isMacvlan,
      // Another node had it a moment ago: detecting duplicates would only keep it unusable for a second.
      nodad: true,
      validSeconds: LEASE_SECONDS,
    });
  }

  #heldChanged(): void {
    if (this.#held.size > 0) this.#renewal ??= setInterval(() => this.#renew(), RENEW_EVERY_MS);
    else if (this.#renewal) {
      clearInterval(this.#renewal);
      this.#renewal = null;
    }
    this.#options.onHeld(this.held);
  }

  #renew(): void {
    const { links, onTrouble } = this.#options;
    // What somebody has taken away is not put back in passing: it is noticed, and a decision.
    links.netlink.drain();
    for (const [id, held] of this.#held) {
      if (!links.has(held.interfaceIndex, held.address)) continue;
      const code = this.#put(held);
      if (code !== null) onTrouble(id, 'renewed', code);
    }
  }

  #watch(change: LinkChange): void {
    if (change.kind !== 'address') return;
    const { interfaceIndex, address } = change.address;
    if (!change.gone) return this.#meetStranger(change.address);
    // A copy: whoever hears of it may put the address back at once, which is not to be taken for a loss again.
    for (const [id, held] of [...this.#held]) {
      if (held.address !== address || held.interfaceIndex !== interfaceIndex) continue;
      this.#held.delete(id);
      this.#heldChanged();
      this.#options.report(id, { type: 'address.lost' });
    }
  }

  /** A virtual address that is here, and not by us: two machines would answer for it. */
  #meetStranger({ address, interfaceIndex }: LinkAddress): void {
    const { links, setupOf, configured, report } = this.#options;
    for (const id of [...configured()]) {
      const setup = setupOf(id);
      if (setup?.address !== address || setup.interfaceName === null || this.#held.has(id)) continue;
      if (links.find(setup.interfaceName)?.index !== interfaceIndex || this.#isOwnersOwn(setup, interfaceIndex))
        continue;
      report(id, { type: 'address.appeared' });
    }
  }
}

const messageFor = ({ address, prefixLength, interfaceName }: AddressSetup, code: string): string => {
  const reasons: Record<string, string> = {
    EPERM: 'changing addresses takes CAP_NET_ADMIN',
    EACCES: 'changing addresses takes CAP_NET_ADMIN',
    ENODEV: `this machine has no interface ${interfaceName}`,
    ENETDOWN: `interface ${interfaceName} is down`,
  };
  return `${address}/${prefixLength} on ${interfaceName}: ${reasons[code] ?? code}`;
};
