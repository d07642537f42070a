/**
 * The sockets of all routers of this node: opens them, keeps them fitting to the interface, sends adverts, and turns
 * what comes in into events. Routers on the same link share a socket; packets are told apart by their VRID.
 */
import { isIPv6 } from 'node:net';
import type { WirePort } from '../../actors/vrrpRouter.ts';
import type { Conflict, RouterEvent } from '../../machines/vrrpRouter.ts';
import { masterDownMs } from '../../machines/vrrpRouter.ts';
import type { Poller } from '../net/poller.ts';
import { RawSocket } from '../net/rawSocket.ts';
import type { Received } from '../net/rawSocket.ts';
import { UdpSocket } from '../net/udpSocket.ts';
import type { RouterConfig } from '../config/routers.ts';
import { Advertiser } from './advertiser.ts';
import type { Authentication, ChecksumForm, Transport, VirtualRouter } from './advertiser.ts';
import type { PersistentCounter } from './counter.ts';
import { addressKey, Inspector, vridOf } from './inspector.ts';
import type { Datagram } from './inspector.ts';
import type { Links } from './links.ts';
import { NatsWire } from './natsWire.ts';
import type { NatsPort, NatsSocket } from './natsWire.ts';
import type { Family } from './packet.ts';

const PROTOCOL_VRRP = 112;
const PROTOCOL_AH = 51;
const PROTOCOL_UDP = 17;
const GROUP: Record<Family, string> = { ipv4: '224.0.0.18', ipv6: 'ff02::12' };

/**
 * Discarded packets that become events, per router and second: enough to see what comes, and a flood of them can't
 * hold the control loop. All are counted.
 */
const DISCARDS_TOLD_PER_SECOND = 20;

export type RouterSetup = {
  config: RouterConfig;
  authentication: Authentication;
  /** The interface that adverts are sent on: with a virtual MAC, the macvlan's. */
  sendingInterface: string | undefined;
};

export type RouterFigures = {
  sent: number;
  sentPriorityZero: number;
  received: number;
  sendFailures: number;
  discarded: Record<string, number>;
};

type Problem = { code: string; message: string };

type Shared = { key: string; routers: Set<Opened>; socket: RawSocket | UdpSocket | null };

type Opened = {
  id: string;
  setup: RouterSetup;
  family: Family;
  /** What was told last, so that only changes are told. */
  told: string | null;
  router: VirtualRouter | null;
  /** Of the inspector, as text. */
  identity: string;
  advertiser: Advertiser | null;
  inspector: Inspector | null;
  shared: Shared[];
  send: ((packet: Buffer, destination: string, port: number) => string | null) | null;
  sender: RawSocket | null;
  nats: NatsSocket | null;
  lastSentUs: number | null;
  lastAcceptedUs: number | null;
  figures: RouterFigures;
  discardsTold: { sinceUs: number; count: number };
};

export type WireOptions = {
  /** Name of this node. */
  node: string;
  poller: Poller;
  links: Links;
  clock: { wallUs(): number; monoUs(): number };
  counter: PersistentCounter;
  /** Null where the node runs without NATS. */
  nats: NatsPort | null;
  report(router: string, event: RouterEvent): void;
  /** How a router is set up now; null when it is not configured any more. */
  setupOf(router: string): RouterSetup | null;
  onSendFailure(router: string, code: string): void;
};

export class Wire implements WirePort {
  /** Packets with a VRID that no router here has: other people's routers on the same link. */
  foreignVrids = 0;
  #options: WireOptions;
  #opened = new Map<string, Opened>();
  #shared = new Map<string, Shared>();
  #natsWire: NatsWire | null = null;
  #stopWatching: () => void;

  constructor(options: WireOptions) {
    this.#options = options;
    this.#stopWatching = options.links.onChange(() => {
      for (const opened of this.#opened.values()) this.#settle(opened);
    });
  }

  open(id: string): void {
    const setup = this.#options.setupOf(id);
    if (!setup || this.#opened.has(id)) return;
    const opened: Opened = {
      id,
      setup,
      family: setup.config.addresses[0]!.family,
      told: null,
      router: null,
      identity: '',
      advertiser: null,
      inspector: null,
      shared: [],
      send: null,
      sender: null,
      nats: null,
      lastSentUs: null,
      lastAcceptedUs: null,
      figures: { sent: 0, sentPriorityZero: 0, received: 0, sendFailures: 0, discarded: {} },
      discardsTold: { sinceUs: 0, count: 0 },
    };
    this.#opened.set(id, opened);
    this.#settle(opened);
  }

  /** Takes another setup for a running router: peers, authentication, addresses. */
  reconfigure(id: string): void {
    const opened = this.#opened.get(id);
    const setup = this.#options.setupOf(id);
    if (!opened || !setup || JSON.stringify(setup) === JSON.stringify(opened.setup)) return;
    opened.setup = setup;
    opened.told = null;
    this.#settle(opened);
  }

  close(id: string): void {
    const opened = this.#opened.get(id);
    if (!opened) return;
    this.#release(opened);
    this.#opened.delete(id);
  }

  sendAdvert(id: string, priority: number, periodic: boolean, copies: number): void {
    const opened = this.#opened.get(id);
    const { advertiser, router, send } = opened ?? {};
    if (!opened || !advertiser || !router || !send) return;
    const nowUs = this.#options.clock.monoUs();
    if (periodic && opened.lastSentUs !== null) {
      // Whoever says nothing for as long as its peers wait has lost its mastership to one of them.
      const silentMs = (nowUs - opened.lastSentUs) / 1000;
      if (silentMs > masterDownMs(router, priority, router.advertMs)) {
        opened.lastSentUs = null;
        this.#options.report(id, { type: 'advert.overslept', silentMs });
        return;
      }
    }
    opened.lastSentUs = nowUs;
    const form = this.#checksumFor(opened);
    const wallUs = this.#options.clock.wallUs();
    let failure: string | null = null;
    const destinations = destinationsOf(opened, router);
    // keepalived counts all of `ah` with one number: its answer to the first copy takes that of the second, which it refuses.
    const times = router.authentication.type === 'ah' ? 1 : copies;
    for (const { host, port } of Array.from({ length: times }, () => destinations).flat()) {
      // Each is a packet of its own: with authentication, its counter tells it from one that is replayed.
      const code = send(advertiser.packet(priority, host, wallUs, form), host, port);
      if (code === null) opened.figures.sent++;
      else failure = code;
    }
    if (priority === 0) opened.figures.sentPriorityZero++;
    if (failure === null) return;
    opened.figures.sendFailures++;
    this.#options.onSendFailure(id, failure);
  }

  look(id: string, answer: (silentMs: number | null) => void): void {
    const opened = this.#opened.get(id);
    if (!opened) {
      answer(null);
      return;
    }
    const looked = () => {
      const { lastAcceptedUs } = opened;
      answer(lastAcceptedUs === null ? null : (this.#options.clock.monoUs() - lastAcceptedUs) / 1000);
    };
    if (opened.nats) {
      opened.nats.look(looked);
      return;
    }
    for (const { socket } of opened.shared) socket?.drain();
    looked();
  }

  figures(id: string): RouterFigures | null {
    return this.#opened.get(id)?.figures ?? null;
  }

  /** As it sends, with the form of checksum that it has learned; null while its sockets are not open. */
  routerOf(id: string): VirtualRouter | null {
    const opened = this.#opened.get(id);
    return opened?.router ? { ...opened.router, checksum: this.#checksumFor(opened) } : null;
  }

  /** Own address of a router, once it is known. */
  sourceOf(id: string): string | null {
    return this.#opened.get(id)?.router?.source ?? null;
  }

  end(): void {
    this.#stopWatching();
    for (const id of [...this.#opened.keys()]) this.close(id);
    this.#natsWire?.end();
  }

  #checksumFor(opened: Opened): ChecksumForm {
    const { checksum, transport } = opened.router!;
    if (checksum !== 'learn') return checksum;
    return opened.inspector?.peerChecksum() ?? (transport === 'udp' ? 'rfc9568' : 'pseudoHeader');
  }

  /** Brings a router's sockets in line with its interface, and tells what differs from what was told. */
  #settle(opened: Opened): void {
    const { config } = opened.setup;
    // Not from a virtual address, the owner's neither: a backup that has taken it over would not be given the packet, as
    // Linux drops what comes from an address of its own.
    const virtual = new Set(config.addresses.map(({ address }) => address));
    const state =
      config.interface === undefined
        ? { ok: true as const, link: null, source: config.source! }
        : this.#options.links.stateOf(config.interface, opened.family, config.source, virtual);
    const sending = opened.setup.sendingInterface;
    const sendingLink = sending === undefined ? null : this.#options.links.find(sending);
    const told = state.ok
      ? `up ${state.source} ${state.link?.index ?? 0} ${sendingLink?.index ?? 0}`
      : `${state.code} ${state.message}`;
    if (told === opened.told) return;
    opened.told = told;
    this.#release(opened);
    if (!state.ok) {
      this.#options.report(opened.id, { type: 'interface.down', code: state.code, message: state.message });
      return;
    }
    const problem = this.#openSockets(opened, state.source, state.link, sendingLink);
    if (problem) {
      this.#options.report(opened.id, { type: 'interface.down', ...problem });
      return;
    }
    this.#options.report(opened.id, {
      type: 'interface.up',
      address: state.source,
      key: addressKey(state.source),
    });
    if (config.transport === 'nats') this.#joinNats(opened, state.source);
  }

  #openSockets(
    opened: Opened,
    source: string,
    link: { index: number; name: string } | null,
    sendingLink: { index: number; name: string } | null,
  ): Problem | null {
    const { config, authentication } = opened.setup;
    const router: VirtualRouter = {
      version: config.version,
      vrid: config.vrid,
      family: opened.family,
      transport: packetsOf(config.transport),
      advertMs: config.advertise,
      addresses: config.addresses.map(({ address }) => address),
      peers: config.peers.map(({ host }) => host),
      source,
      minTtl: config.minTtl ?? defaultMinTtl(config.transport, opened.family),
      authentication,
      checksum: config.checksum ?? 'learn',
      node: this.#options.node,
    };
    const problem =
      config.transport === 'nats'
        ? null
        : config.transport === 'udp'
          ? this.#openUdp(opened, source, config.port, link)
          : this.#openRaw(opened, link!, sendingLink ?? link!);
    if (problem) {
      this.#release(opened);
      return problem;
    }
    // Marks against repeats outlast a link that goes down and comes up.
    const identity = JSON.stringify(router);
    if (opened.identity !== identity) opened.inspector = new Inspector(router);
    opened.identity = identity;
    opened.router = router;
    opened.advertiser = new Advertiser(router, this.#options.counter);
    opened.lastSentUs = null;
    opened.lastAcceptedUs = null;
    return null;
  }

  #openRaw(
    opened: Opened,
    link: { index: number; name: string },
    sendingLink: { index: number; name: string },
  ): Problem | null {
    const { family, setup } = opened;
    const transport = packetsOf(setup.config.transport);
    const group = transport === 'multicast' ? GROUP[family] : null;
    const { poller } = this.#options;
    // What comes with a macvlan's own MAC, as a peer's multicast does, the kernel gives to the macvlan and to nobody else.
    const heardOn = transport === 'multicast' ? sendingLink : link;
    const where = { family, interfaceName: heardOn.name, interfaceIndex: heardOn.index, group, poller };
    // Both protocols are listened to: a peer that authenticates otherwise has to be noticed.
    const protocols = family === 'ipv4' ? [PROTOCOL_VRRP, PROTOCOL_AH] : [PROTOCOL_VRRP];
    for (const protocol of protocols) {
      const shared = this.#share(opened, `raw ${family} ${protocol} ${heardOn.index} ${group ?? ''}`, (one) =>
        RawSocket.open({ ...where, protocol, onPacket: (received) => this.#hear(one, received, protocol, transport) }),
      );
      if ('code' in shared) return shared;
    }
    const sender = RawSocket.open({
      ...where,
      protocol: setup.authentication.type === 'ah' ? PROTOCOL_AH : PROTOCOL_VRRP,
      interfaceName: sendingLink.name,
      interfaceIndex: sendingLink.index,
      group: null,
      onPacket: () => {},
    });
    if ('code' in sender) return sender;
    opened.sender = sender;
    opened.send = (packet, destination) => sender.send(packet, destination, { source: opened.router!.source });
    return null;
  }

  #openUdp(opened: Opened, source: string, port: number, link: { index: number; name: string } | null): Problem | null {
    const shared = this.#share(opened, `udp ${source} ${port} ${link?.name ?? ''}`, (one) =>
      UdpSocket.open({
        host: source,
        port,
        interfaceName: link?.name ?? null,
        poller: this.#options.poller,
        onPacket: (received) => this.#hear(one, received, PROTOCOL_UDP, 'udp'),
      }),
    );
    if ('code' in shared) return shared;
    const socket = shared.socket as UdpSocket;
    opened.send = (packet, destination, to) => socket.send(packet, destination, to);
    return null;
  }

  /** After its address is told: what NATS is to it is told from now on. */
  #joinNats(opened: Opened, source: string): void {
    const { nats, report } = this.#options;
    if (!nats) {
      const reason = 'this node runs without NATS: another bus takes effect at its next start';
      report(opened.id, { type: 'bus.lost', code: 'NATS_OFFLINE', message: reason });
      return;
    }
    this.#natsWire ??= new NatsWire(nats);
    const socket = this.#natsWire.open({
      name: opened.id.slice('router/'.length),
      source,
      advertMs: opened.setup.config.advertise,
      hear: (node, from, packet) => this.#hearNats(opened, node, from, packet),
      report: (event) => report(opened.id, event),
    });
    opened.nats = socket;
    opened.send = (packet) => socket.send(packet);
  }

  /** Joins a socket that is there already, or opens it. */
  #share(opened: Opened, key: string, open: (shared: Shared) => RawSocket | UdpSocket | Problem): Shared | Problem {
    let shared = this.#shared.get(key);
    if (!shared) {
      shared = { key, routers: new Set(), socket: null };
      const socket = open(shared);
      if ('code' in socket) return socket;
      shared.socket = socket;
      this.#shared.set(key, shared);
    }
    shared.routers.add(opened);
    opened.shared.push(shared);
    return shared;
  }

  #release(opened: Opened): void {
    for (const shared of opened.shared) {
      shared.routers.delete(opened);
      if (shared.routers.size > 0) continue;
      shared.socket?.close();
      this.#shared.delete(shared.key);
    }
    opened.sender?.close();
    opened.nats?.close();
    Object.assign(opened, { shared: [], sender: null, nats: null, send: null, router: null, advertiser: null });
  }

  /** The subject says which router is meant, so what would be somebody else's elsewhere is a misconfiguration here. */
  #hearNats(opened: Opened, node: string, source: string, payload: Buffer): void {
    const { router } = opened;
    if (!router) return;
    const family: Family = isIPv6(source) ? 'ipv6' : 'ipv4';
    const destination = router.source;
    const datagram: Datagram = {
      family,
      transport: 'udp',
      source,
      destination,
      ttl: null,
      header: null,
      protocol: PROTOCOL_UDP,
      payload,
    };
    const vrid = vridOf(datagram);
    if (vrid !== null && vrid !== router.vrid)
      this.#discard(opened, 'vrid', source, { field: 'vrid', own: String(router.vrid), peer: String(vrid) });
    else if (addressKey(source) === addressKey(router.source))
      this.#discard(opened, 'ownSource', node, { field: 'source', own: router.source, peer: source });
    else this.#judge(opened, datagram);
  }

  #hear(shared: Shared, received: Received, protocol: number, transport: Transport): void {
    const { source, destination, ttl, header, payload } = received;
    const family: Family = source.includes(':') ? 'ipv6' : 'ipv4';
    const datagram: Datagram = { family, transport, source, destination, ttl, header, protocol, payload };
    const vrid = vridOf(datagram);
    let isOurs = false;
    for (const opened of [...shared.routers]) {
      if (opened.setup.config.vrid !== vrid) continue;
      isOurs = true;
      this.#judge(opened, datagram);
    }
    if (!isOurs) this.foreignVrids++;
  }

  #judge(opened: Opened, datagram: Datagram): void {
    const { inspector, figures, id } = opened;
    if (!inspector || !opened.router) return;
    const { clock, report } = this.#options;
    const monoUs = clock.monoUs();
    const verdict = inspector.inspect(datagram, clock.wallUs(), monoUs);
    if (verdict.verdict === 'advert') {
      figures.received++;
      opened.lastAcceptedUs = monoUs;
      if (opened.router?.authentication.type === 'ah') this.#options.counter.passed(BigInt(inspector.ahSequence));
      const { priority, advertMs, source, differences } = verdict;
      report(id, { type: 'advert.received', priority, advertMs, source, key: addressKey(source), differences });
      return;
    }
    this.#discard(opened, verdict.kind, verdict.source, verdict.conflict);
  }

  #discard(opened: Opened, kind: string, source: string, conflict: Omit<Conflict, 'kind'> | null): void {
    const { figures } = opened;
    const monoUs = this.#options.clock.monoUs();
    figures.discarded[kind] = (figures.discarded[kind] ?? 0) + 1;
    if (monoUs - opened.discardsTold.sinceUs > 1_000_000) opened.discardsTold = { sinceUs: monoUs, count: 0 };
    if (++opened.discardsTold.count > DISCARDS_TOLD_PER_SECOND) return;
    const evidence = { field: conflict?.field ?? null, own: conflict?.own ?? '', peer: conflict?.peer ?? '' };
    this.#options.report(opened.id, { type: 'advert.discarded', kind, source, ...evidence });
  }
}

/** Over NATS the packets are those of UDP: they have no IP header of their own. */
const packetsOf = (transport: RouterConfig['transport']): Transport => (transport === 'nats' ? 'udp' : transport);

/** Over NATS one message reaches all; whose address is in its place counts for nothing. */
const destinationsOf = ({ setup, nats }: Opened, router: VirtualRouter): { host: string; port: number }[] => {
  if (nats) return [{ host: router.source, port: 0 }];
  return router.transport === 'multicast' ? [{ host: GROUP[router.family], port: 0 }] : setup.config.peers;
};

/**
 * 255 shows that a packet came through no router. keepalived sends IPv6 unicast with the kernel's hop limit, 64, and
 * over UDP nobody sends 255.
 */
const defaultMinTtl = (transport: RouterConfig['transport'], family: Family): number =>
  packetsOf(transport) === 'udp' || (transport === 'unicast' && family === 'ipv6') ? 1 : 255;
