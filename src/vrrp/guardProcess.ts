/** The guard's own process: see guard.ts. Hears lines on its standard input; its end is the end of the node. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { constants, setPriority } from 'node:os';
import { performance } from 'node:perf_hooks';
import { createInterface } from 'node:readline';
import { codeOf, messageOf } from '../errors.ts';
import { Poller } from '../net/poller.ts';
import { RawSocket } from '../net/rawSocket.ts';
import { RouteNetlink } from '../net/rtnetlink.ts';
import { UdpSocket } from '../net/udpSocket.ts';
import { Advertiser } from './advertiser.ts';
import type { Counter } from './advertiser.ts';
import type { Charge, Farewell, ToGuard } from './guard.ts';

/** IANA's multicast groups of VRRP, RFC 9568 sections 5.1.1.2 and 5.1.2.2. */
const GROUP = { ipv4: '224.0.0.18', ipv6: 'ff02::12' } as const;
const PROTOCOL_VRRP = 112;
const PROTOCOL_AH = 51;

process.title = 'understudy-guard';
// The node's terminal and its service manager speak to the node; the guard ends when the node has.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});

/** It sleeps but for its beats, and when it is needed, a busy machine must not make it wait. */
const goFirst = (): void => {
  try {
    setPriority(constants.priority.PRIORITY_HIGHEST);
  } catch (error) {
    // Takes CAP_SYS_NICE; without it, it does its work in its turn.
    assert(codeOf(error) === 'ERR_SYSTEM_ERROR', messageOf(error));
  }
};

goFirst();
const poller = Poller.open();
const netlink = RouteNetlink.open(poller);

let charge: Charge | null = null;
let heardAt = performance.now();
let watch: NodeJS.Timeout | null = null;
/** The addresses were taken off while the node stood still; it is told by the kernel when it goes on. */
let withdrawn = false;

const withdraw = ({ held }: Charge): void => {
  if ('code' in netlink) return;
  for (const address of held) netlink.removeAddress(address);
};

const sendFarewell = ({ router, interfaceName, interfaceIndex, peers }: Farewell, counter: Counter): void => {
  const advertiser = new Advertiser(router, counter);
  const destinations = router.transport === 'multicast' ? [{ host: GROUP[router.family], port: 0 }] : peers;
  const form = router.checksum === 'learn' ? 'pseudoHeader' : router.checksum;
  const packet = (host: string) => advertiser.packet(0, host, Date.now() * 1000, form);
  if (router.transport === 'udp') {
    // From any port: the node's own may not be free yet, and peers go by the address.
    const socket = UdpSocket.open({ host: router.source, port: 0, interfaceName, poller, onPacket: () => {} });
    if ('code' in socket) return;
    for (const { host, port: to } of destinations) socket.send(packet(host), host, to);
    socket.close();
    return;
  }
  assert(interfaceName !== null, 'multicast and unicast have an interface');
  const socket = RawSocket.open({
    family: router.family,
    protocol: router.authentication.type === 'ah' ? PROTOCOL_AH : PROTOCOL_VRRP,
    interfaceName,
    interfaceIndex,
    group: null,
    poller,
    onPacket: () => {},
  });
  if ('code' in socket) return;
  for (const { host } of destinations) socket.send(packet(host), host, { source: router.source });
  socket.close();
};

/** The addresses first: from the moment that a successor is asked for, there must be no other. */
const mourn = (last: Charge): void => {
  withdraw(last);
  let next = BigInt(last.counter);
  // One for all routers: a number is used once.
  const counter: Counter = { next: () => next++ };
  for (const farewell of last.farewells) sendFarewell(farewell, counter);
  if (!('code' in netlink)) {
    const links = netlink.links();
    for (const name of last.macvlans) {
      const link = links.find((candidate) => candidate.name === name);
      if (link) netlink.removeLink(link.index);
    }
  }
  for (const table of last.tables) spawnSync('nft', ['delete', 'table', 'inet', table]);
};

const lookAtNode = (): void => {
  if (!charge || withdrawn || performance.now() - heardAt <= charge.silenceMs) return;
  withdrawn = true;
  withdraw(charge);
};

const hear = (message: ToGuard): void => {
  heardAt = performance.now();
  withdrawn = false;
  if (message.kind === 'bye') process.exit(0);
  if (message.kind !== 'charge') return;
  charge = message.charge;
  if (watch) clearInterval(watch);
  // Addresses alone are taken off for silence: without them there is nothing to be in the way.
  watch = charge.held.length > 0 ? setInterval(lookAtNode, Math.max(10, charge.silenceMs / 10)) : null;
};

const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => hear(JSON.parse(line) as ToGuard));
lines.on('close', () => {
  if (charge) mourn(charge);
  process.exit(0);
});
