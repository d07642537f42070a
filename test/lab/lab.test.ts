/** The lab itself: hosts and wires do what tests will rely on, real keepalived runs on them, and nothing is left behind. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { Capture } from '../../deploy/lab/capture.ts';
import { Lab } from '../../deploy/lab/lab.ts';
import type { Host } from '../../deploy/lab/lab.ts';
import { startNginx } from '../../deploy/lab/nginx.ts';
import { until } from '../../deploy/lab/until.ts';
import { has, isRoot } from '../packages.ts';
import { startKeepalived } from './keepalived.ts';
import type { Keepalived } from './keepalived.ts';
import { labForTest } from './labHelpers.ts';

const VIP = '10.9.0.100';
const VRRP = 'ip proto 112';

const isRunnable = isRoot && ['ip', 'nft', 'arping', 'keepalived', 'nginx', 'tcpdump', 'tshark', 'curl'].every(has);

const namespaces = (): string[] => (existsSync('/run/netns') ? readdirSync('/run/netns') : []);

const namespacesOf = (pid: number): string[] => namespaces().filter((name) => name.startsWith(`us-${pid}-`));

const isRunning = (pid: number): boolean => existsSync(`/proc/${pid}/exe`);

/** Hosts `a`, `b`, `c`, `d` with 10.9.0.11 to .14. */
const hostsOf = (lab: Lab, count: number): Promise<Host[]> =>
  Promise.all(
    ['a', 'b', 'c', 'd'].slice(0, count).map((name, index) => {
      const address = `10.9.0.${11 + index}`;
      return lab.host(name, { addresses: { eth0: [`${address}/24`, `fd00:9::${11 + index}/64`] } });
    }),
  );

const answersArp = async (from: Host, address: string): Promise<boolean> => {
  const asked = await from.spawn('arping', ['-c', '1', '-w', '1', '-I', 'eth0', address]);
  return (await asked.exited).code === 0;
};

type Electorate = {
  hosts: Host[];
  high: Keepalived;
  low: Keepalived;
  capture: Capture;
  start(host: Host, priority: number): Promise<Keepalived>;
};

/** Keepalived on `a` (priority 200) and `b` (150), the first one master; `c` listens. */
const elect = async (): Promise<Electorate> => {
  const lab = await labForTest();
  const hosts = await hostsOf(lab, 3);
  const [a, b, c] = hosts as [Host, Host, Host];
  const capture = await c.capture('eth0', VRRP);
  const start = (host: Host, priority: number) =>
    startKeepalived(host, {
      instances: [{ name: 'gateway', vrid: 51, priority, advertMs: 100, addresses: [`${VIP}/24`] }],
    });
  const high = await start(a, 200);
  await high.untilState('gateway', 'MASTER');
  const low = await start(b, 150);
  await until('an advert', async () => (await low.counters())['gateway']!['Advertisements Received']! > 0);
  return { hosts, high, low, capture, start };
};

describe.skipIf(!isRunnable)('a lab', () => {
  test('makes hosts that reach each other, each under its own addresses', async () => {
    const lab = await labForTest();
    const [a, b] = (await hostsOf(lab, 4)) as [Host, Host, Host, Host];
    expect(await a.addresses('eth0')).toEqual(['10.9.0.11/24', 'fd00:9::11/64', 'fe80::ff:fe00:100/64']);
    expect(await a.neighbour('10.9.0.12')).toBeNull();
    await startNginx(b, 'b');
    expect(await a.run('curl', ['-s', 'http://10.9.0.12/'])).toContain('b');
    expect(await a.run('curl', ['-s', 'http://[fd00:9::12]/'])).toContain('b');
    expect(await a.neighbour('10.9.0.12')).toBe(await b.mac());
  });

  test('has several segments, and a host can stand in two', async () => {
    const lab = await labForTest();
    const router = await lab.host('router', {
      addresses: { eth0: ['10.9.0.1/24'], eth1: ['10.8.0.1/24'] },
      segments: { eth1: 'wan' },
      sysctls: { 'net.ipv4.ip_forward': '1' },
    });
    const inner = await lab.host('inner', { addresses: { eth0: ['10.9.0.2/24'] }, routes: ['default via 10.9.0.1'] });
    const outer = await lab.host('outer', {
      addresses: { eth0: ['10.8.0.2/24'] },
      segments: { eth0: 'wan' },
      routes: ['default via 10.8.0.1'],
    });
    await startNginx(inner, 'inner');
    expect(await answersArp(outer, '10.9.0.2')).toBe(false);
    expect(await outer.run('curl', ['-s', 'http://10.9.0.2/'])).toContain('inner');
    expect(await router.addresses()).toEqual(expect.arrayContaining(['10.9.0.1/24', '10.8.0.1/24']));
  });

  test('leaves no namespace, no program and no file behind, however stubborn the program', async () => {
    const lab = await Lab.create();
    onTestFinished(() => lab.destroy());
    const [a] = (await hostsOf(lab, 1)) as [Host];
    const stubborn = await a.spawn('sh', ['-c', 'trap "" TERM HUP INT; setsid sleep 1000 & echo "$!"; wait']);
    const child = Number((await stubborn.waitFor(/^\d+$/)).text);
    expect(isRunning(stubborn.pid) && isRunning(child)).toBe(true);
    expect(namespaces()).toContain(a.namespace);
    await lab.destroy();
    expect(isRunning(stubborn.pid) || isRunning(child)).toBe(false);
    expect(namespaces().filter((name) => name.startsWith(lab.switchNamespace.replace(/switch$/, '')))).toEqual([]);
    expect(existsSync(lab.folder)).toBe(false);
  });

  test('goes with a process that ends by an exception, and is swept by the next lab after a SIGKILL', async () => {
    const library = join(import.meta.dirname, '../../deploy/lab/lab.ts');
    const owner = async (last: string) => {
      const script = `
        import { Lab } from '${library}';
        const lab = await Lab.create();
        const host = await lab.host('a', { addresses: { eth0: ['10.9.0.11/24'] } });
        const { pid } = await host.spawn('sleep', ['1000']);
        console.log(pid);
        ${last}`;
      const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
        stdio: ['ignore', 'pipe', 'ignore'],
      });
      onTestFinished(() => void child.kill('SIGKILL'));
      const exited = once(child, 'exit');
      const [line] = (await once(createInterface({ input: child.stdout }), 'line')) as [string];
      return { child, exited, sleeper: Number(line) };
    };
    const thrown = await owner('throw new Error("a test that fails");');
    await thrown.exited;
    expect(thrown.child.exitCode).toBe(1);
    expect(namespacesOf(thrown.child.pid!)).toEqual([]);
    expect(isRunning(thrown.sleeper)).toBe(false);

    const killed = await owner('await new Promise(() => setInterval(() => {}, 1000));');
    killed.child.kill('SIGKILL');
    await killed.exited;
    const leftFolders = () => readdirSync(tmpdir()).filter((name) => name.includes(`-lab-${killed.child.pid}-`));
    expect([namespacesOf(killed.child.pid!).length, leftFolders().length]).toEqual([2, 1]);
    await labForTest();
    expect([...namespacesOf(killed.child.pid!), ...leftFolders()]).toEqual([]);
    await until('the end of the orphan', async () => !isRunning(killed.sleeper));
  });
});

test.skipIf(!isRunnable)('a host that crashes loses all its programs at once, and keeps its addresses', async () => {
  const lab = await labForTest();
  const [a, b] = (await hostsOf(lab, 2)) as [Host, Host];
  const other = await b.spawn('sleep', ['1000']);
  // One that would tell of the other's death, if it saw it.
  const program = await a.spawn('sh', [
    '-c',
    'setsid sh -c "while kill -0 $$; do :; done; echo seen" & echo ready; wait',
  ]);
  await program.waitFor(/ready/);
  await a.crash();
  expect(await program.exited).toEqual({ code: null, signal: 'SIGKILL' });
  expect(program.lines.map(({ text }) => text)).not.toContain('seen');
  expect(await a.addresses()).toContain('10.9.0.11/24');
  expect(other.exit).toBeNull();
});

describe.skipIf(!isRunnable)('links', () => {
  test('a cut is silent, an unplugged cable is seen, and both heal', async () => {
    const lab = await labForTest();
    const [a, b] = (await hostsOf(lab, 2)) as [Host, Host];
    const carrier = async () => (await a.run('cat', ['/sys/class/net/eth0/carrier'])).trim();
    expect(await answersArp(b, '10.9.0.11')).toBe(true);
    await a.cut();
    expect(await answersArp(b, '10.9.0.11')).toBe(false);
    expect(await carrier()).toBe('1');
    await a.heal();
    expect(await answersArp(b, '10.9.0.11')).toBe(true);
    await a.unplug();
    expect(await carrier()).toBe('0');
    expect(await answersArp(b, '10.9.0.11')).toBe(false);
    await a.heal();
    await until('the carrier', async () => (await carrier()) === '1');
    expect(await answersArp(b, '10.9.0.11')).toBe(true);
  });

  test('what is dropped is dropped in its direction, of its kind, in its share', async () => {
    const lab = await labForTest();
    const [a, b] = (await hostsOf(lab, 2)) as [Host, Host];
    const sent = 200;
    const arrivals = async (from: Host, to: Host) => {
      const capture = await to.capture('eth0', 'udp dst port 9');
      const script = `i=0; while [ $i -lt ${sent} ]; do printf x > /dev/udp/${to === b ? '10.9.0.12' : '10.9.0.11'}/9; i=$((i+1)); done`;
      await from.run('bash', ['-c', `trap '' PIPE; { ${script}; } 2> /dev/null; true`]);
      return (await capture.decode('udp.dstport == 9', ['frame.number'])).length;
    };
    await a.drop({ direction: 'out', match: 'udp dport 9' });
    expect(await arrivals(a, b)).toBe(0);
    expect(await arrivals(b, a)).toBe(sent);
    await a.undrop();
    await a.drop({ direction: 'in', share: 0.3, match: 'udp dport 9' });
    expect(await arrivals(a, b)).toBe(sent);
    const arrived = await arrivals(b, a);
    // 200 packets, each lost with a chance of 0.3: five standard deviations to each side.
    expect(arrived).toBeGreaterThan(140 - 33);
    expect(arrived).toBeLessThan(140 + 33);
    await a.undrop();
    await a.drop({ direction: 'both', match: 'vrrp' });
    expect(await arrivals(b, a)).toBe(sent);
  });
});

describe.skipIf(!isRunnable)('keepalived in the lab', () => {
  test('elects; the death of the master moves the address; its return takes it back', async () => {
    const { hosts, high, low, capture, start } = await elect();
    const [a, b, c] = hosts as [Host, Host, Host];
    await a.untilHolds(VIP);
    expect(await b.holds(VIP)).toBe(false);
    expect(await answersArp(c, VIP)).toBe(true);
    expect(await low.data()).toMatch(/Master router = 10\.9\.0\.11/);
    await high.crash();
    await low.untilState('gateway', 'MASTER');
    await b.untilHolds(VIP);
    // Nobody was left to take it off.
    expect(await a.holds(VIP)).toBe(true);
    const again = await start(a, 200);
    await again.untilState('gateway', 'MASTER');
    await b.untilHolds(VIP, false);
    expect(low.state('gateway')).toBe('BACKUP');
    expect([...(await again.trouble()), ...(await low.trouble())]).toEqual([]);
    const priorities = (await capture.vrrp()).map(({ priority }) => priority);
    // It died without a word: no advert of priority 0.
    expect([...new Set(priorities)]).toEqual([200, 150]);
    expect(await capture.complaints()).toEqual([]);
  });

  test('one that leaves in order says so with priority 0, and the other is master after the skew time', async () => {
    const { hosts, high, low, capture } = await elect();
    await high.stop();
    await low.untilState('gateway', 'MASTER');
    expect(await hosts[0]!.holds(VIP)).toBe(false);
    const packets = await capture.vrrp();
    const leaving = packets.find(({ priority }) => priority === 0)!;
    const taking = packets.find(({ priority }) => priority === 150)!;
    expect(leaving).toMatchObject({ source: '10.9.0.11', version: 3, vrid: 51, ttl: 255, checksum: 'good' });
    expect(taking).toMatchObject({ source: '10.9.0.12', advertMs: 100, addresses: [VIP], checksum: 'good' });
    // Skew: (256 − 150) / 256 of 100 ms.
    expect(taking.atMs - leaving.atMs).toBeGreaterThan(40);
    expect(high.complaints()).toEqual([]);
  });

  test('a wire that is cut silently makes two masters, until it is healed', async () => {
    const { hosts, high, low } = await elect();
    const [a, b] = hosts as [Host, Host];
    await a.cut();
    await low.untilState('gateway', 'MASTER');
    await b.untilHolds(VIP);
    expect(high.state('gateway')).toBe('MASTER');
    expect(await a.holds(VIP)).toBe(true);
    await a.heal();
    await low.untilState('gateway', 'BACKUP');
    await b.untilHolds(VIP, false);
    expect(high.state('gateway')).toBe('MASTER');
    expect([...(await high.trouble()), ...(await low.trouble())]).toEqual([]);
  });

  test('a master that is not heard, but hears, keeps its office against a lower one', async () => {
    const { hosts, high, low } = await elect();
    await hosts[0]!.drop({ direction: 'out', match: 'vrrp' });
    await low.untilState('gateway', 'MASTER');
    await high.process.waitFor(/Received advert from 10\.9\.0\.12 with lower priority 150/);
    expect(high.state('gateway')).toBe('MASTER');
    await hosts[0]!.undrop();
    await low.untilState('gateway', 'BACKUP');
  });

  test('its complaints and counters are found', async () => {
    const lab = await labForTest();
    const [a, b] = (await hostsOf(lab, 2)) as [Host, Host];
    const start = (host: Host, pass: string) =>
      startKeepalived(host, {
        instances: [
          { name: 'gateway', state: 'MASTER', vrid: 51, version: 2, addresses: [VIP], auth: { type: 'PASS', pass } },
        ],
      });
    const one = await start(a, 'right');
    await start(b, 'wrong');
    await one.process.waitFor(/invalid passwd/);
    expect(one.complaints()).toContain('(gateway) received an invalid passwd!');
    expect(await one.refused()).toContainEqual(
      expect.stringMatching(/^gateway: Authentication Errors Failure [1-9]\d*$/),
    );
  });

  test('speaks IPv6, unicast, virtual MAC and in sync groups', async () => {
    const lab = await labForTest();
    const [a, b, c] = (await hostsOf(lab, 3)) as [Host, Host, Host];
    const capture = await c.capture('eth0', 'ip6 proto 112');
    const options = (priority: number, source: string, peer: string) => ({
      instances: [
        {
          name: 'four',
          vrid: 51,
          priority,
          advertMs: 100,
          addresses: [`${VIP}/24`],
          unicast: { source, peers: [peer] },
        },
        { name: 'six', vrid: 52, priority, advertMs: 100, addresses: ['fe80::9:100', 'fd00:9::100/64'] },
        { name: 'mac', vrid: 53, priority, advertMs: 100, addresses: ['10.9.0.101/24'], virtualMac: true },
      ],
      syncGroups: { all: ['four', 'six', 'mac'] },
    });
    const high = await startKeepalived(a, options(200, '10.9.0.11', '10.9.0.12'));
    const low = await startKeepalived(b, options(150, '10.9.0.12', '10.9.0.11'));
    for (const instance of ['four', 'six', 'mac']) await high.untilState(instance, 'MASTER');
    await a.untilHolds('10.9.0.101');
    await c.run('arping', ['-c', '1', '-I', 'eth0', '10.9.0.101']);
    const cutAt = low.mark;
    await a.cut();
    for (const instance of ['four', 'six', 'mac']) await low.untilState(instance, 'MASTER', { after: cutAt });
    expect([...(await high.trouble()), ...(await low.trouble())]).toEqual([]);
    const [first] = await capture.vrrp();
    expect(first).toMatchObject({ source: 'fe80::ff:fe00:100', destination: 'ff02::12', vrid: 52, checksum: 'good' });
    expect(first!.addresses).toEqual(['fe80::9:100', 'fd00:9::100']);
  });
});

test.skipIf(!isRunnable)('a capture names what tshark finds wrong with a packet', async () => {
  const lab = await labForTest();
  const [a, b] = (await hostsOf(lab, 2)) as [Host, Host];
  const capture = await b.capture('eth0', VRRP);
  // Version 2, VRID 51, priority 100, the address 10.9.0.100; the right checksum is 0x1757.
  const bad = '2133640100010bad0a0900640000000000000000';
  const script = [
    'use Socket;',
    'socket(my $s, AF_INET, SOCK_RAW, 112) or die $!;',
    `send($s, pack("H*", "${bad}"), 0, sockaddr_in(0, inet_aton("10.9.0.12"))) or die $!;`,
  ];
  await a.run('perl', ['-e', script.join(' ')]);
  expect(await capture.vrrp()).toMatchObject([{ source: '10.9.0.11', version: 2, priority: 100, checksum: 'bad' }]);
  expect(await capture.complaints()).toMatchObject([{ message: expect.stringMatching(/checksum/i) as string }]);
});
