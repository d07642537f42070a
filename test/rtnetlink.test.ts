/** rtnetlink on a host `a` with `eth0`: what the kernel says, what it is told, and what others do behind our back. */
import { execFileSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import type { Host } from '../deploy/lab/lab.ts';
import { until } from '../deploy/lab/until.ts';
import type { Poller } from '../src/net/poller.ts';
import { ADDRESS_PROTOCOL, RouteNetlink, sourceAddress } from '../src/net/rtnetlink.ts';
import type { Link, LinkAddress, LinkChange } from '../src/net/rtnetlink.ts';
import { labForTest } from './lab/labHelpers.ts';
import { Heard, inNamespace, opened, pollerForTest } from './namespaces.ts';
import { has, isRoot } from './packages.ts';

/** The lab counts MACs, and so link-local addresses. */
const LINK_LOCAL = 'fe80::ff:fe00:100';

type Setup = { host: Host; poller: Poller; netlink: RouteNetlink; eth0: Link; heard: Heard<LinkChange> };

const oneHost = async (addresses = ['10.9.0.1/24']): Promise<Setup> => {
  const lab = await labForTest();
  const host = await lab.host('a', { addresses: { eth0: addresses } });
  const poller = pollerForTest();
  const netlink = inNamespace(host.namespace, () => opened(RouteNetlink.open(poller)));
  // The kernel brings new links up in the background.
  await until('eth0', async () => linkNamed(netlink, 'eth0').running && addressOf(netlink, LINK_LOCAL) !== undefined);
  netlink.drain();
  const heard = new Heard<LinkChange>();
  netlink.onChange(heard.push);
  return { host, poller, netlink, eth0: linkNamed(netlink, 'eth0'), heard };
};

const linkNamed = (netlink: RouteNetlink, name: string): Link => netlink.links().find((link) => link.name === name)!;

const addressOf = (netlink: RouteNetlink, address: string): LinkAddress | undefined =>
  netlink.addresses().find((each) => each.address === address);

const isAddress =
  (address: string, gone: boolean) =>
  (change: LinkChange): boolean =>
    change.kind === 'address' && change.address.address === address && change.gone === gone;

const isLink =
  (name: string, wanted: Partial<Link>, gone = false) =>
  (change: LinkChange): boolean =>
    change.kind === 'link' &&
    change.link.name === name &&
    change.gone === gone &&
    Object.entries(wanted).every(([key, value]) => change.link[key as keyof Link] === value);

describe.skipIf(!isRoot || !has('ip'))('rtnetlink', () => {
  test('lists interfaces and addresses', async () => {
    const { host, netlink } = await oneHost(['10.9.0.1/24', '10.9.0.2/24', 'fd00:9::1/64']);
    await host.run('ip', ['link', 'add', 'link', 'eth0', 'name', 'mac0', 'type', 'macvlan']);
    const links = netlink.links();
    const eth0 = links.find(({ name }) => name === 'eth0')!;
    expect(eth0).toEqual({
      index: expect.any(Number),
      name: 'eth0',
      up: true,
      running: true,
      mac: '02:00:00:00:01:00',
      mtu: 1500,
      kind: 'veth',
      parentIndex: null,
      loopback: false,
    });
    expect(links.find(({ name }) => name === 'lo')).toMatchObject({ index: 1, loopback: true, kind: null, up: true });
    expect(links.find(({ name }) => name === 'mac0')).toMatchObject({
      kind: 'macvlan',
      parentIndex: eth0.index,
      up: false,
      running: false,
    });
    const common = { interfaceIndex: eth0.index, validMs: null, tentative: false, dadFailed: false };
    expect(netlink.addresses().filter(({ interfaceIndex }) => interfaceIndex === eth0.index)).toEqual([
      {
        ...common,
        ...{ family: 'ipv4', address: '10.9.0.1', prefixLength: 24, label: 'eth0' },
        ...{ scope: 0, secondary: false, protocol: null },
      },
      {
        ...common,
        ...{ family: 'ipv4', address: '10.9.0.2', prefixLength: 24, label: 'eth0' },
        ...{ scope: 0, secondary: true, protocol: null },
      },
      {
        ...common,
        ...{ family: 'ipv6', address: 'fd00:9::1', prefixLength: 64, label: null },
        ...{ scope: 0, secondary: false, protocol: null },
      },
      {
        ...common,
        ...{ family: 'ipv6', address: LINK_LOCAL, prefixLength: 64, label: null },
        // The kernel's own: IFAPROT_KERNEL_LL.
        ...{ scope: 253, secondary: false, protocol: 3 },
      },
    ]);
  });

  test('lists more than one part of a dump holds', async () => {
    const { host, netlink } = await oneHost();
    const batch = Array.from({ length: 2000 }, (_, n) => `addr add 10.8.${n >> 8}.${n & 255}/32 dev eth0`).join('\n');
    await host.run('ip', ['-batch', '-'], batch);
    expect(netlink.addresses().filter(({ address }) => address.startsWith('10.8.'))).toHaveLength(2000);
  });

  test('adds, renews and removes an IPv4 address with its label, term and mark', async () => {
    const { host, netlink, eth0 } = await oneHost();
    const vip = { interfaceIndex: eth0.index, family: 'ipv4', address: '10.9.0.100', prefixLength: 24 } as const;
    expect(netlink.addAddress({ ...vip, label: 'eth0:vip', validSeconds: 5 })).toBeNull();
    const seen = await host.run('ip', ['addr', 'show', 'dev', 'eth0']);
    expect(seen).toContain('inet 10.9.0.100/24 scope global secondary dynamic eth0:vip');
    expect(seen).toMatch(/eth0:vip\s+valid_lft 5sec/);
    expect(addressOf(netlink, '10.9.0.100')).toMatchObject({
      label: 'eth0:vip',
      validMs: 5000,
      secondary: true,
      protocol: ADDRESS_PROTOCOL,
    });
    expect(netlink.addAddress({ ...vip, label: 'eth0:vip', validSeconds: 60 })).toBeNull();
    expect(addressOf(netlink, '10.9.0.100')).toMatchObject({ validMs: 60_000, label: 'eth0:vip' });
    expect(netlink.removeAddress(vip)).toBeNull();
    expect(addressOf(netlink, '10.9.0.100')).toBeUndefined();
    expect(netlink.removeAddress(vip)).toBe('EADDRNOTAVAIL');
  });

  test('adds an address that goes by itself, and one without a route to its subnet', async () => {
    const { host, netlink, eth0, heard } = await oneHost();
    const common = { interfaceIndex: eth0.index, family: 'ipv4' } as const;
    const short = { ...common, address: '10.9.7.1', prefixLength: 24, validSeconds: 1 };
    const noRoute = { ...common, address: '10.9.8.1', prefixLength: 24, noPrefixRoute: true };
    expect(netlink.addAddress(short)).toBeNull();
    expect(netlink.addAddress(noRoute)).toBeNull();
    const routes = await host.run('ip', ['route']);
    expect(routes).toContain('10.9.7.0/24');
    expect(routes).not.toContain('10.9.8.0/24');
    await heard.until('the end of its term', isAddress('10.9.7.1', true));
  });

  test('adds an IPv6 address that can be used at once, and tells of it in the next drain', async () => {
    const { host, netlink, eth0, heard } = await oneHost();
    await host.run('sh', ['-c', 'echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_dad']);
    const common = { interfaceIndex: eth0.index, family: 'ipv6', prefixLength: 64 } as const;
    netlink.drain();
    // The kernel notifies of IPv6 addresses from a thread of its own: often enough not yet.
    for (let number = 1; number <= 20; number++) {
      const address = `fd00:9::${number}`;
      expect(netlink.addAddress({ ...common, address: `FD00:9:0::${number}`, nodad: true })).toBeNull();
      netlink.drain();
      expect(heard.all.filter(isAddress(address, false)).length).toBeGreaterThan(0);
      expect(addressOf(netlink, address)).toMatchObject({ tentative: false, protocol: ADDRESS_PROTOCOL, scope: 0 });
    }
    expect(netlink.addAddress({ ...common, address: 'fd00:9::100' })).toBeNull();
    expect(addressOf(netlink, 'fd00:9::100')).toMatchObject({ tentative: true });
    expect(netlink.addAddress({ ...common, address: 'fd00:9::1', nodad: true, validSeconds: 9 })).toBeNull();
    expect(addressOf(netlink, 'fd00:9::1')).toMatchObject({ validMs: 9000 });
    expect(netlink.removeAddress({ ...common, address: 'fd00:9::1' })).toBeNull();
    expect(netlink.removeAddress({ ...common, address: 'fd00:9::1' })).toBe('EADDRNOTAVAIL');
  });

  test('makes a private macvlan without addresses of its own, sets it up, and removes it', async () => {
    const { host, netlink, eth0, heard } = await oneHost();
    const mac = '00:00:5e:00:01:33';
    const vmac = { parentIndex: eth0.index, name: 'vrrp.51', mac, mode: 'private' } as const;
    expect(netlink.addMacvlan(vmac)).toBeNull();
    expect(netlink.addMacvlan(vmac)).toBe('EEXIST');
    const made = linkNamed(netlink, 'vrrp.51');
    expect(made).toMatchObject({ kind: 'macvlan', parentIndex: eth0.index, mac, up: false, running: false });
    expect(netlink.setUp(made.index, true)).toBeNull();
    await heard.until('it is up', isLink('vrrp.51', { up: true, running: true }));
    expect(await host.run('ip', ['-d', 'link', 'show', 'vrrp.51'])).toContain('macvlan mode private');
    expect(netlink.addresses().filter(({ interfaceIndex }) => interfaceIndex === made.index)).toEqual([]);
    expect(netlink.setUp(made.index, false)).toBeNull();
    expect(linkNamed(netlink, 'vrrp.51').up).toBe(false);
    expect(netlink.removeLink(made.index)).toBeNull();
    await heard.until('it is gone', isLink('vrrp.51', {}, true));
    expect(netlink.removeLink(made.index)).toBe('ENODEV');
  });

  test('names what the kernel refuses', async () => {
    const { netlink, eth0 } = await oneHost();
    const vip = { interfaceIndex: eth0.index, family: 'ipv4', address: '10.9.0.100', prefixLength: 24 } as const;
    expect(netlink.addAddress({ ...vip, interfaceIndex: 99 })).toBe('ENODEV');
    expect(netlink.addAddress({ ...vip, prefixLength: 33 })).toBe('EINVAL');
    expect(netlink.addAddress({ ...vip, label: 'longer-than-a-label-may-be' })).toBe('ERANGE');
    expect(netlink.setUp(99, true)).toBe('ENODEV');
    expect(netlink.addMacvlan({ parentIndex: 99, name: 'v', mac: '00:00:5e:00:01:01', mode: 'private' })).toBe(
      'ENODEV',
    );
    expect(addressOf(netlink, '10.9.0.100')).toBeUndefined();
  });

  test('tells of what others do to addresses and interfaces', async () => {
    const { host, netlink, eth0, heard } = await oneHost();
    const vip = { interfaceIndex: eth0.index, family: 'ipv4', address: '10.9.0.100', prefixLength: 24 } as const;
    expect(netlink.addAddress(vip)).toBeNull();
    await host.run('ip', ['addr', 'del', '10.9.0.100/24', 'dev', 'eth0']);
    await heard.until('the address is gone', isAddress('10.9.0.100', true));
    expect(heard.all.findIndex(isAddress('10.9.0.100', false))).toBeLessThan(
      heard.all.findIndex(isAddress('10.9.0.100', true)),
    );
    await host.unplug('eth0');
    await heard.until('no carrier', isLink('eth0', { up: true, running: false }));
    await host.heal('eth0');
    await heard.until('carrier again', isLink('eth0', { up: true, running: true }));
    await host.run('ip', ['link', 'set', 'eth0', 'down']);
    await heard.until('down', isLink('eth0', { up: false, running: false }));
    await host.run('ip', ['link', 'del', 'eth0']);
    await heard.until('gone', isLink('eth0', {}, true));
  });

  test('does not take a port that leaves a bridge for a link that is gone', async () => {
    const { host, heard } = await oneHost();
    await host.run('ip', ['link', 'add', 'br0', 'type', 'bridge']);
    await host.run('ip', ['link', 'set', 'eth0', 'master', 'br0']);
    await host.run('ip', ['link', 'set', 'eth0', 'nomaster']);
    await host.run('ip', ['link', 'del', 'br0']);
    await heard.until('the end of the bridge', isLink('br0', {}, true));
    expect(heard.all.filter(isLink('eth0', {}, true))).toEqual([]);
  });

  test('says that notifications were lost, and goes on', async () => {
    const { host, netlink, heard } = await oneHost();
    const flood = `i=0; while [ $i -lt 1500 ]; do echo "addr add 10.8.0.1/32 dev eth0
addr del 10.8.0.1/32 dev eth0"; i=$((i+1)); done | ip -batch -`;
    // Nothing is read while this thread waits for the flood to end.
    execFileSync('ip', ['netns', 'exec', host.namespace, 'sh', '-c', flood]);
    await heard.until('the overrun', ({ kind }) => kind === 'overrun');
    await host.run('ip', ['addr', 'add', '10.8.0.2/32', 'dev', 'eth0']);
    await heard.until('an address after it', isAddress('10.8.0.2', false));
    expect(addressOf(netlink, '10.8.0.2')).toBeDefined();
  });

  test('lets a listener ask the kernel and go', async () => {
    const { host, netlink, heard } = await oneHost();
    const seen: (LinkAddress | undefined)[] = [];
    const stop = netlink.onChange((change) => {
      if (change.kind !== 'address') return;
      seen.push(addressOf(netlink, change.address.address));
      netlink.drain();
      stop();
    });
    await host.run('ip', ['addr', 'add', '10.9.0.7/24', 'dev', 'eth0']);
    await host.run('ip', ['addr', 'add', '10.9.0.8/24', 'dev', 'eth0']);
    await heard.until('both', isAddress('10.9.0.8', false));
    expect(seen).toHaveLength(1);
    netlink.close();
    netlink.close();
    netlink.drain();
    expect(netlink.removeLink(99)).toBe('EBADF');
  });
});

describe('the source of adverts', () => {
  const base: LinkAddress = {
    interfaceIndex: 2,
    family: 'ipv4',
    address: '10.9.0.1',
    prefixLength: 24,
    label: null,
    scope: 0,
    tentative: false,
    dadFailed: false,
    secondary: false,
    validMs: null,
    protocol: null,
  };
  const linkLocal: LinkAddress = { ...base, family: 'ipv6', address: 'fe80::1', prefixLength: 64, scope: 253 };

  test.each<{ what: string; addresses: LinkAddress[]; family: 'ipv4' | 'ipv6'; source: string | null }>([
    { what: 'nothing', addresses: [], family: 'ipv4', source: null },
    {
      what: 'the first primary IPv4 address of the interface',
      addresses: [
        { ...base, interfaceIndex: 1, address: '127.0.0.1' },
        { ...base, address: '10.9.0.9', secondary: true },
        base,
        { ...base, address: '10.9.1.1' },
      ],
      family: 'ipv4',
      source: '10.9.0.1',
    },
    {
      what: 'no address that we have put there',
      addresses: [{ ...base, address: '10.9.0.100', protocol: ADDRESS_PROTOCOL }],
      family: 'ipv4',
      source: null,
    },
    {
      what: 'the link-local IPv6 address that is no longer tentative',
      addresses: [
        { ...linkLocal, address: 'fd00::1', scope: 0 },
        { ...linkLocal, address: 'fe80::2', tentative: true },
        { ...linkLocal, address: 'fe80::3', dadFailed: true },
        linkLocal,
      ],
      family: 'ipv6',
      source: 'fe80::1',
    },
    { what: 'no global IPv6 address', addresses: [{ ...linkLocal, scope: 0 }], family: 'ipv6', source: null },
  ])('is $what', ({ addresses, family, source }) => {
    expect(sourceAddress(addresses, 2, family)).toBe(source);
  });
});
