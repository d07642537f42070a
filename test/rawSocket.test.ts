/** Raw sockets on real interfaces: two hosts `a` and `b` with `eth0` on one segment and `eth1` on another. */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { Host } from '../deploy/lab/lab.ts';
import { libc } from '../src/net/libc.ts';
import { PacketSocket } from '../src/net/packetSocket.ts';
import { RawSocket } from '../src/net/rawSocket.ts';
import type { RawSocketOptions, Received } from '../src/net/rawSocket.ts';
import { addressBytes } from '../src/net/socketAddress.ts';
import type { Poller } from '../src/net/poller.ts';
import { labForTest } from './lab/labHelpers.ts';
import { Heard, inNamespace, opened, pollerForTest, reaching } from './namespaces.ts';
import { has, isRoot } from './packages.ts';

const VRRP = 112;
const GROUP = { ipv4: '224.0.0.18', ipv6: 'ff02::12' };
const OTHER_GROUP = '224.0.0.99';
/** The lab counts MACs, and so link-local addresses. */
const LINK_LOCAL = { a: 'fe80::ff:fe00:100', b: 'fe80::ff:fe00:200' };

const isRunnable = isRoot && ['ip', 'nft', 'setpriv', 'tcpdump', 'tshark'].every(has);

const twoHosts = async (): Promise<{ a: Host; b: Host; poller: Poller }> => {
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
  return { a, b, poller };
};

type Opening = Partial<RawSocketOptions> & { poller: Poller };

const openAt = (host: Host, options: Opening): { socket: RawSocket; heard: Heard<Received>; index: number } => {
  const heard = new Heard<Received>();
  const family = options.family ?? 'ipv4';
  const interfaceName = options.interfaceName ?? 'eth0';
  return inNamespace(host.namespace, () => {
    const index = libc().if_nametoindex(interfaceName);
    const socket = RawSocket.open({
      family,
      protocol: VRRP,
      interfaceName,
      interfaceIndex: index,
      group: GROUP[family],
      onPacket: heard.push,
      ...options,
    });
    return { socket: opened(socket), heard, index };
  });
};

/** RFC 791 section 3.1; the kernel fills in length, id and checksum. */
const ipv4Packet = (o: { destination: string; payload: string; ttl?: number; options?: Buffer }): Buffer => {
  const options = o.options ?? Buffer.alloc(0);
  const header = Buffer.alloc(20);
  header[0] = 0x45 + options.length / 4;
  header[1] = 0xc0;
  header[8] = o.ttl ?? 255;
  header[9] = VRRP;
  addressBytes('10.9.0.1').copy(header, 12);
  addressBytes(o.destination).copy(header, 16);
  return Buffer.concat([header, options, Buffer.from(o.payload)]);
};

const nowUs = (): number => Date.now() * 1000;

const texts = (heard: Heard<Received>): string[] => heard.all.map(({ payload }) => payload.toString());

describe.skipIf(!isRunnable)('a raw socket', () => {
  test('hears IPv4 multicast with header, TTL, interface and the time of arrival', async () => {
    const { a, b, poller } = await twoHosts();
    const { socket } = openAt(a, { poller });
    const { heard, index } = openAt(b, { poller });
    const before = nowUs();
    expect(socket.send(ipv4Packet({ destination: GROUP.ipv4, payload: 'one' }), GROUP.ipv4)).toBeNull();
    expect(socket.send(ipv4Packet({ destination: GROUP.ipv4, payload: 'two', ttl: 254 }), GROUP.ipv4)).toBeNull();
    // A loop that is late: the time of arrival is the kernel's, not ours.
    while (nowUs() < before + 500_000);
    const late = nowUs();
    const [one, two] = await heard.count(2);
    expect(one).toMatchObject({
      source: '10.9.0.1',
      destination: GROUP.ipv4,
      ttl: 255,
      interfaceIndex: index,
      payload: Buffer.from('one'),
    });
    expect(one!.header).toHaveLength(20);
    expect(one!.header![1]).toBe(0xc0);
    expect(two).toMatchObject({ ttl: 254, payload: Buffer.from('two') });
    expect(one!.arrivedUs).toBeGreaterThan(before - 1000);
    expect(two!.arrivedUs).toBeGreaterThanOrEqual(one!.arrivedUs);
    expect(two!.arrivedUs).toBeLessThan(late);
  });

  test('leaves options to the header', async () => {
    const { a, b, poller } = await twoHosts();
    const { socket } = openAt(a, { poller });
    const { heard } = openAt(b, { poller });
    const options = Buffer.from([1, 1, 1, 0]);
    expect(socket.send(ipv4Packet({ destination: GROUP.ipv4, payload: 'one', options }), GROUP.ipv4)).toBeNull();
    const [one] = await heard.count(1);
    expect(one!.header).toHaveLength(24);
    expect(one!.payload.toString()).toBe('one');
  });

  test('hears IPv6 multicast with hop limit 255, from the source that was asked for', async () => {
    const { a, b, poller } = await twoHosts();
    await a.run('ip', ['addr', 'add', 'fe80::77/64', 'dev', 'eth0', 'nodad']);
    const { socket } = openAt(a, { poller, family: 'ipv6' });
    const { heard, index } = openAt(b, { poller, family: 'ipv6' });
    expect(socket.send(Buffer.from('one'), GROUP.ipv6, { source: 'fe80::77' })).toBeNull();
    expect(socket.send(Buffer.from('two'), GROUP.ipv6, { source: LINK_LOCAL.a })).toBeNull();
    expect(socket.send(Buffer.from('three'), LINK_LOCAL.b)).toBeNull();
    const [one, two, three] = await heard.count(3);
    const told = { destination: GROUP.ipv6, ttl: 255, interfaceIndex: index, header: null };
    expect(one).toMatchObject({ ...told, source: 'fe80::77', payload: Buffer.from('one') });
    expect(two).toMatchObject({ ...told, source: LINK_LOCAL.a, payload: Buffer.from('two') });
    expect(three).toMatchObject({ ...told, destination: LINK_LOCAL.b, payload: Buffer.from('three') });
  });

  test('sends IPv6 with traffic class 0xC0, and more than fits the MTU', async () => {
    const { a, b, poller } = await twoHosts();
    const { socket } = openAt(a, { poller, family: 'ipv6' });
    const { heard } = openAt(b, { poller, family: 'ipv6' });
    const capture = await b.capture('eth0', 'ip6');
    // RFC 9568 section 5.2.5: up to 255 addresses of 16 bytes each.
    const long = Buffer.alloc(8 + 255 * 16, 7);
    expect(socket.send(Buffer.from('short'), GROUP.ipv6)).toBeNull();
    expect(socket.send(long, GROUP.ipv6, { source: LINK_LOCAL.a })).toBeNull();
    const [, second] = await heard.count(2);
    expect(second!.payload.equals(long)).toBe(true);
    const sent = await capture.decode(`ipv6.dst == ${GROUP.ipv6}`, ['ipv6.tclass', 'ipv6.hlim']);
    expect(sent.length).toBeGreaterThan(3);
    for (const packet of sent) expect(packet).toEqual({ 'ipv6.tclass': '0x000000c0', 'ipv6.hlim': '255' });
  });

  test('does not hear what its own host sends', async () => {
    const { a, b, poller } = await twoHosts();
    for (const family of ['ipv4', 'ipv6'] as const) {
      const sender = openAt(a, { poller, family });
      const neighbour = openAt(a, { poller, family });
      const { heard } = openAt(b, { poller, family });
      const packet = family === 'ipv4' ? ipv4Packet({ destination: GROUP.ipv4, payload: 'one' }) : Buffer.from('one');
      expect(sender.socket.send(packet, GROUP[family], { source: LINK_LOCAL.a })).toBeNull();
      await heard.count(1);
      sender.socket.drain();
      neighbour.socket.drain();
      expect([...sender.heard.all, ...neighbour.heard.all]).toEqual([]);
    }
  });

  test('joins its group on its own interface only, and hears nothing that arrives on another', async () => {
    const { a, b, poller } = await twoHosts();
    const front = openAt(a, { poller });
    const back = openAt(a, { poller, interfaceName: 'eth1' });
    const { socket, heard } = openAt(b, { poller });
    expect(await b.run('ip', ['maddr', 'show', 'dev', 'eth0'])).toContain(GROUP.ipv4);
    expect(await b.run('ip', ['maddr', 'show', 'dev', 'eth1'])).not.toContain(GROUP.ipv4);
    // Someone else makes the kernel take the group on eth1 too.
    const other = openAt(b, { poller, interfaceName: 'eth1' });
    expect(back.socket.send(ipv4Packet({ destination: GROUP.ipv4, payload: 'back' }), GROUP.ipv4)).toBeNull();
    expect(back.socket.send(ipv4Packet({ destination: '10.9.1.2', payload: 'alone' }), '10.9.1.2')).toBeNull();
    await other.heard.count(2);
    expect(front.socket.send(ipv4Packet({ destination: GROUP.ipv4, payload: 'front' }), GROUP.ipv4)).toBeNull();
    await heard.count(1);
    socket.drain();
    expect(texts(heard)).toEqual(['front']);
    expect(texts(other.heard)).toEqual(['back', 'alone']);
  });

  test('hears of groups that others have joined nothing, and without a group what is sent to it alone', async () => {
    const { a, b, poller } = await twoHosts();
    const { socket } = openAt(a, { poller });
    const inGroup = openAt(b, { poller });
    const inOther = openAt(b, { poller, group: OTHER_GROUP });
    const inNone = openAt(b, { poller, group: null });
    const send = (destination: string, payload: string) =>
      expect(socket.send(ipv4Packet({ destination, payload }), destination)).toBeNull();
    send(OTHER_GROUP, 'other');
    send(GROUP.ipv4, 'group');
    send('10.9.0.2', 'alone');
    await inOther.heard.until('the last packet', ({ payload }) => payload.toString() === 'alone');
    inGroup.socket.drain();
    inNone.socket.drain();
    expect(texts(inGroup.heard)).toEqual(['group', 'alone']);
    expect(texts(inOther.heard)).toEqual(['other', 'alone']);
    expect(texts(inNone.heard)).toEqual(['alone']);
  });

  test('delivers what has arrived at once when drained, in bounded parts, and forgets nothing', async () => {
    const { a, b, poller } = await twoHosts();
    const { socket } = openAt(a, { poller });
    const receiver = openAt(b, { poller });
    for (let index = 0; index < 600; index++) {
      socket.send(ipv4Packet({ destination: GROUP.ipv4, payload: String(index) }), GROUP.ipv4);
    }
    receiver.socket.drain();
    expect(receiver.heard.all).toHaveLength(256);
    await receiver.heard.count(600);
    expect(texts(receiver.heard)).toEqual(Array.from({ length: 600 }, (_, index) => String(index)));
  });

  test('can be closed by what it delivers, and is silent from then on', async () => {
    const { a, b, poller } = await twoHosts();
    const { socket } = openAt(a, { poller });
    const heard: string[] = [];
    const receiver = openAt(b, {
      poller,
      onPacket: ({ payload }) => {
        heard.push(payload.toString());
        receiver.socket.close();
      },
    });
    for (const payload of ['one', 'two']) socket.send(ipv4Packet({ destination: GROUP.ipv4, payload }), GROUP.ipv4);
    receiver.socket.drain();
    receiver.socket.drain();
    expect(heard).toEqual(['one']);
    expect(receiver.socket.send(Buffer.alloc(20), GROUP.ipv4)).toBe('EBADF');
  });

  test('goes on after what it delivers has thrown', async () => {
    const { a, b, poller } = await twoHosts();
    const { socket } = openAt(a, { poller });
    const heard = new Heard<Received>();
    const receiver = openAt(b, {
      poller,
      onPacket: (packet) => {
        heard.push(packet);
        if (heard.all.length === 1) throw new Error('thrown by a listener');
      },
    });
    socket.send(ipv4Packet({ destination: GROUP.ipv4, payload: 'one' }), GROUP.ipv4);
    expect(() => receiver.socket.drain()).toThrow('thrown by a listener');
    socket.send(ipv4Packet({ destination: GROUP.ipv4, payload: 'two' }), GROUP.ipv4);
    await heard.count(2);
    expect(texts(heard)).toEqual(['one', 'two']);
  });

  test('names what could not be sent, and hears again after the link was down', async () => {
    const { a, b, poller } = await twoHosts();
    const { socket } = openAt(a, { poller });
    const { heard } = openAt(b, { poller });
    const packet = ipv4Packet({ destination: GROUP.ipv4, payload: 'one' });
    const tooLong = ipv4Packet({ destination: GROUP.ipv4, payload: 'x'.repeat(1500) });
    expect(socket.send(tooLong, GROUP.ipv4)).toBe('EMSGSIZE');
    await b.run('ip', ['link', 'set', 'eth0', 'down']);
    await a.run('ip', ['link', 'set', 'eth0', 'down']);
    expect(socket.send(packet, GROUP.ipv4)).toBe('ENETUNREACH');
    await b.run('ip', ['link', 'set', 'eth0', 'up']);
    await a.run('ip', ['link', 'set', 'eth0', 'up']);
    await reaching(poller, a, b);
    expect(socket.send(packet, GROUP.ipv4)).toBeNull();
    await heard.count(1);
  });

  test('names the interface that is missing', async () => {
    const { a, poller } = await twoHosts();
    const tryAt = (interfaceName: string, interfaceIndex: number) =>
      inNamespace(a.namespace, () =>
        RawSocket.open({
          family: 'ipv4',
          protocol: VRRP,
          interfaceName,
          interfaceIndex,
          group: GROUP.ipv4,
          poller,
          onPacket: () => {},
        }),
      );
    expect(tryAt('eth7', 7)).toEqual({ code: 'ENODEV', message: 'this machine has no interface eth7' });
    // The kernel would cut it to the 15 bytes of another interface's name.
    await a.run('ip', ['link', 'set', 'eth1', 'name', 'fifteen-letters']);
    expect(tryAt('fifteen-letters-and-more', 7)).toMatchObject({ code: 'ENODEV' });
    // Made again since the caller has looked: the name is there, with another index.
    expect(tryAt('eth0', 99)).toMatchObject({ code: 'ENODEV', message: expect.stringContaining('another one') });
  });
});

describe.skipIf(!isRunnable)('a packet socket', () => {
  test('sends whole frames by the interface that is named', async () => {
    const { a, b } = await twoHosts();
    const packets = inNamespace(a.namespace, () => opened(PacketSocket.open()));
    const index = inNamespace(a.namespace, () => libc().if_nametoindex('eth1'));
    const capture = await b.capture('eth1', 'ether proto 0x88b5');
    // IEEE's ethertype for local experiments.
    const frame = Buffer.from('ffffffffffff02000000770188b5', 'hex');
    expect(packets.send(index, Buffer.concat([frame, Buffer.alloc(46)]))).toBeNull();
    expect(packets.send(index, Buffer.alloc(10))).toBe('EINVAL');
    expect(packets.send(99, frame)).toBe('ENXIO');
    expect(await capture.decode('eth.type == 0x88b5', ['eth.src', 'eth.dst'])).toEqual([
      { 'eth.src': '02:00:00:00:77:01', 'eth.dst': 'ff:ff:ff:ff:ff:ff' },
    ]);
    packets.close();
    expect(packets.send(index, frame)).toBe('EBADF');
  });
});

test.skipIf(!isRunnable)('without privilege, what lacks is named, and what takes none works', () => {
  const program = join(import.meta.dirname, 'unprivilegedSockets.ts');
  const asNobody = ['--reuid=nobody', '--regid=nogroup', '--clear-groups', process.execPath, program];
  expect(JSON.parse(execFileSync('setpriv', asNobody, { encoding: 'utf8' }))).toEqual({
    raw4: { code: 'EPERM', message: 'raw sockets take CAP_NET_RAW' },
    raw6: { code: 'EPERM', message: 'raw sockets take CAP_NET_RAW' },
    packet: { code: 'EPERM', message: 'packet sockets take CAP_NET_RAW' },
    udp: null,
    lowPort: { code: 'EACCES', message: 'ports below 1024 take CAP_NET_BIND_SERVICE' },
    netlink: null,
    hasLinks: true,
    addAddress: 'EPERM',
  });
});
