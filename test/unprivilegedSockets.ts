/** A program that tries to have each kind of socket, and prints what it got: null, or why not. */
import { PacketSocket } from '../src/net/packetSocket.ts';
import { Poller } from '../src/net/poller.ts';
import { RawSocket } from '../src/net/rawSocket.ts';
import { RouteNetlink } from '../src/net/rtnetlink.ts';
import { UdpSocket } from '../src/net/udpSocket.ts';

const poller = Poller.open();
const onPacket = () => {};

const raw = (family: 'ipv4' | 'ipv6') =>
  RawSocket.open({ family, protocol: 112, interfaceName: 'lo', interfaceIndex: 1, group: null, poller, onPacket });

const netlink = RouteNetlink.open(poller);

/** What is open prints as null, by having no code. */
const trouble = (socket: object) => ('code' in socket ? socket : null);

process.stdout.write(
  JSON.stringify({
    raw4: trouble(raw('ipv4')),
    raw6: trouble(raw('ipv6')),
    packet: trouble(PacketSocket.open()),
    udp: trouble(UdpSocket.open({ host: '127.0.0.1', port: 0, interfaceName: 'lo', poller, onPacket })),
    lowPort: trouble(UdpSocket.open({ host: '127.0.0.1', port: 112, poller, onPacket })),
    netlink: trouble(netlink),
    hasLinks: netlink instanceof RouteNetlink && netlink.links().some(({ name }) => name === 'lo'),
    addAddress:
      netlink instanceof RouteNetlink &&
      netlink.addAddress({ interfaceIndex: 1, family: 'ipv4', address: '127.9.0.1', prefixLength: 32 }),
  }),
);
process.exit(0);
