/** UDP sockets: on loopback without privilege, and bound to one of several interfaces. */
import { createSocket } from 'node:dgram';
import { describe, expect, onTestFinished, test } from 'vitest';
import { UdpSocket } from '../src/net/udpSocket.ts';
import type { UdpSocketOptions } from '../src/net/udpSocket.ts';
import type { ReceivedWithPort } from '../src/net/inbox.ts';
import { labForTest } from './lab/labHelpers.ts';
import { Heard, inNamespace, opened, pollerForTest, reaching } from './namespaces.ts';
import { has, isRoot } from './packages.ts';

type Opening = Partial<UdpSocketOptions> & Pick<UdpSocketOptions, 'poller'>;

const openUdp = (options: Opening): { socket: UdpSocket; heard: Heard<ReceivedWithPort> } => {
  const heard = new Heard<ReceivedWithPort>();
  const socket = UdpSocket.open({ host: '127.0.0.1', port: 0, onPacket: heard.push, ...options });
  return { socket: opened(socket), heard };
};

describe('a UDP socket', () => {
  test.each([
    { family: 'IPv4', host: '127.0.0.1' },
    { family: 'IPv6', host: '::1' },
  ])('hears $family with source, port, TTL 255, interface and the time of arrival', async ({ host }) => {
    const poller = pollerForTest();
    const a = openUdp({ poller, host });
    const b = openUdp({ poller, host });
    expect(a.socket.port).toBeGreaterThan(0);
    expect(a.socket.send(Buffer.from('one'), host, b.socket.port)).toBeNull();
    const [one] = await b.heard.count(1);
    expect(one).toEqual({
      source: host,
      sourcePort: a.socket.port,
      destination: host,
      ttl: 255,
      interfaceIndex: 1,
      header: null,
      payload: Buffer.from('one'),
      arrivedUs: expect.any(Number),
    });
    expect(Math.abs(one!.arrivedUs / 1000 - Date.now())).toBeLessThan(60_000);
  });

  test('tells the TTL that a sender chose, and the address that it sent to', async () => {
    const { socket, heard } = openUdp({ poller: pollerForTest(), host: '0.0.0.0' });
    const sender = createSocket('udp4');
    onTestFinished(() => sender.close() && undefined);
    await new Promise<void>((done) => sender.bind(0, '127.0.0.1', done));
    sender.setTTL(7);
    sender.send('one', socket.port, '127.0.0.9');
    const [one] = await heard.count(1);
    expect(one).toMatchObject({ ttl: 7, destination: '127.0.0.9', sourcePort: sender.address().port });
  });

  test('delivers an empty datagram, and the largest one whole', async () => {
    const poller = pollerForTest();
    const a = openUdp({ poller });
    const b = openUdp({ poller });
    const largest = Buffer.alloc(65_507, 7);
    expect(a.socket.send(Buffer.alloc(0), '127.0.0.1', b.socket.port)).toBeNull();
    expect(a.socket.send(largest, '127.0.0.1', b.socket.port)).toBeNull();
    expect(a.socket.send(Buffer.alloc(65_508), '127.0.0.1', b.socket.port)).toBe('EMSGSIZE');
    const [empty, second] = await b.heard.count(2);
    expect(empty!.payload).toHaveLength(0);
    expect(second!.payload.equals(largest)).toBe(true);
  });

  test('goes on when its peer is not there', async () => {
    const poller = pollerForTest();
    const a = openUdp({ poller });
    const gone = openUdp({ poller });
    gone.socket.close();
    expect(gone.socket.send(Buffer.from('one'), '127.0.0.1', a.socket.port)).toBe('EBADF');
    for (let index = 0; index < 3; index++) {
      expect(a.socket.send(Buffer.from('nobody hears'), '127.0.0.1', gone.socket.port)).toBeNull();
    }
    const b = openUdp({ poller });
    expect(b.socket.send(Buffer.from('one'), '127.0.0.1', a.socket.port)).toBeNull();
    const [one] = await a.heard.count(1);
    expect(one!.payload.toString()).toBe('one');
  });

  test('says in words why it can not be had', () => {
    const poller = pollerForTest();
    const { socket } = openUdp({ poller });
    const tryWith = (options: Partial<UdpSocketOptions>) =>
      UdpSocket.open({ host: '127.0.0.1', port: 0, poller, onPacket: () => {}, ...options });
    expect(tryWith({ port: socket.port })).toEqual({
      code: 'EADDRINUSE',
      message: `another program has UDP port ${socket.port} of 127.0.0.1`,
    });
    expect(tryWith({ host: '192.0.2.1' })).toEqual({
      code: 'EADDRNOTAVAIL',
      message: 'this machine has no address 192.0.2.1',
    });
    expect(tryWith({ host: 'localhost' })).toEqual({ code: 'EINVAL', message: 'localhost is no address' });
    expect(tryWith({ interfaceName: 'eth7' })).toEqual({
      code: 'ENODEV',
      message: 'this machine has no interface eth7',
    });
  });
});

test.skipIf(!isRoot || !has('ip'))(
  'bound to an interface, it hears that one only, and reaches link-local peers',
  async () => {
    const lab = await labForTest();
    const hostOf = (name: string, last: number) =>
      lab.host(name, {
        addresses: { eth0: [`10.9.0.${last}/24`], eth1: [`10.9.1.${last}/24`] },
        segments: { eth0: 'lan', eth1: 'backdoor' },
      });
    const [a, b] = [await hostOf('a', 1), await hostOf('b', 2)];
    const poller = pollerForTest();
    await reaching(poller, a, b);
    await reaching(poller, b, a);
    const at = (host: typeof a, options: Omit<Opening, 'poller'>) =>
      inNamespace(host.namespace, () => openUdp({ poller, ...options }));
    const front = at(b, { host: '0.0.0.0', interfaceName: 'eth0' });
    const anywhere = at(b, { host: '0.0.0.0' });
    const sender = at(a, { host: '0.0.0.0' });
    for (const { socket } of [front, anywhere]) {
      expect(sender.socket.send(Buffer.from('back'), '10.9.1.2', socket.port)).toBeNull();
      expect(sender.socket.send(Buffer.from('front'), '10.9.0.2', socket.port)).toBeNull();
    }
    await anywhere.heard.count(2);
    front.socket.drain();
    expect(front.heard.all.map(({ payload }) => payload.toString())).toEqual(['front']);

    const left = at(a, { host: 'fe80::ff:fe00:100', interfaceName: 'eth0' });
    const right = at(b, { host: 'fe80::ff:fe00:200', interfaceName: 'eth0' });
    expect(left.socket.send(Buffer.from('one'), 'fe80::ff:fe00:200', right.socket.port)).toBeNull();
    const [one] = await right.heard.count(1);
    expect(one).toMatchObject({ source: 'fe80::ff:fe00:100', sourcePort: left.socket.port, ttl: 255 });
  },
);
