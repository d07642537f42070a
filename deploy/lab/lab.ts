/**
 * Real hosts on real wires, on one machine: each host is a network namespace, each segment a bridge in a namespace of
 * the lab's own (the switch). Nothing is put into the machine's own network. Takes root, iproute2 and nftables.
 *
 * A namespace's name is `us-PID-N-HOST`: PID is the process that owns the lab, so what a killed owner left behind can be
 * told and removed.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Capture } from './capture.ts';
import { LabProcess, nowMs, send } from './process.ts';
import type { SpawnOptions } from './process.ts';
import { output } from './shell.ts';
import { until } from './until.ts';

export type HostOptions = {
  /** By interface: addresses with their prefix. Every interface of the host is named here, in order. */
  addresses: Record<string, string[]>;
  /** By interface: the segment that it is plugged into. Default: `lan`. */
  segments?: Record<string, string>;
  /** As `ip route add` takes them: `default via 10.9.0.1`. */
  routes?: string[];
  /** As `sysctl` names them, with dots. */
  sysctls?: Record<string, string>;
};

export type Drop = {
  /** As the host sees it. */
  direction: 'in' | 'out' | 'both';
  /** Share of the packets that get lost, 0 to 1. Default: all. */
  share?: number;
  /** `all` (the default), `vrrp` (with or without an authentication header), or an expression of nftables. */
  match?: string;
  /** Default: all interfaces. */
  iface?: string;
};

const DEFAULT_SEGMENT = 'lan';
/** Interfaces at the switch are named `HOST-IFACE`, and names of interfaces have at most 15 characters. */
const MAX_PORT_NAME = 15;
const NAMESPACE = /^us-(\d+)-/;
const FOLDER = /^understudy-lab-(\d+)-/;
const NAMESPACES_FOLDER = '/run/netns';
/** nftables' random numbers are whole: shares are counted in thousandths. */
const SHARES = 1_000;
/** Killed programs are gone within milliseconds. */
const DEATH_MS = 5_000;

const MATCHES: Record<string, string[]> = {
  all: [''],
  vrrp: ['ip protocol { 112, 51 }', 'ip6 nexthdr { 112, 51 }'],
};

/**
 * Kills every program in the namespaces and names those that were still there. (The names of namespaces, which are all
 * that a shell is given here, need no quotes.)
 */
const killing = (namespaces: string[]): string => `
pids=$(${namespaces.map((name) => `ip netns pids ${name}`).join('; ')})
[ -z "$pids" ] || { kill -KILL $pids 2> /dev/null; echo $pids; }
`;

const deletion = (namespaces: string[]): string => namespaces.map((name) => `ip netns delete ${name}`).join('\n');

const labs = new Set<Lab>();
let labsMade = 0;

process.on('exit', () => {
  for (const lab of labs) lab.destroyNow();
});

export class Lab {
  /** For configurations, captures, sockets; goes with the lab. */
  readonly folder: string;
  readonly hosts = new Map<string, Host>();
  readonly processes: LabProcess[] = [];
  readonly switchNamespace: string;
  readonly #prefix: string;
  readonly #segments = new Map<string, Promise<unknown>>();
  readonly #namespaces: string[];
  #captures = 0;

  private constructor() {
    this.#prefix = `us-${process.pid}-${++labsMade}`;
    this.switchNamespace = `${this.#prefix}-switch`;
    this.#namespaces = [this.switchNamespace];
    this.folder = mkdtempSync(join(tmpdir(), `understudy-lab-${process.pid}-`));
  }

  static async create(): Promise<Lab> {
    Lab.sweep();
    const lab = new Lab();
    labs.add(lab);
    await output('ip', ['netns', 'add', lab.switchNamespace]);
    return lab;
  }

  /** Removes the labs of owners that are dead. */
  static sweep(): void {
    const isOrphan = (name: string, pattern: RegExp): boolean => {
      const owner = pattern.exec(name)?.[1];
      return owner !== undefined && !isAlive(Number(owner));
    };
    removeNow(namespaceNames().filter((name) => isOrphan(name, NAMESPACE)));
    for (const folder of readdirSync(tmpdir()).filter((name) => isOrphan(name, FOLDER))) {
      removeFolder(join(tmpdir(), folder));
    }
  }

  /** A folder on a disk of its own, which can be filled without harm to anything else; goes with the lab. */
  async disk(name: string, size: string): Promise<string> {
    const folder = join(this.folder, name);
    mkdirSync(folder);
    await output('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'understudy-lab', folder]);
    return folder;
  }

  /** A host with an interface in each of the segments named, up and addressed when this returns. */
  async host(name: string, options: HostOptions): Promise<Host> {
    assert(/^[a-z][a-z0-9]*$/.test(name), `a host's name consists of letters and digits: ${name}`);
    assert(!this.hosts.has(name) && name !== 'switch', `there is a host ${name} already`);
    const number = this.hosts.size + 1;
    const namespace = `${this.#prefix}-${name}`;
    const interfaces = Object.keys(options.addresses);
    const host = new Host(this, name, namespace, interfaces);
    this.hosts.set(name, host);
    this.#namespaces.push(namespace);
    const segments = new Map(interfaces.map((iface) => [iface, options.segments?.[iface] ?? DEFAULT_SEGMENT]));
    await Promise.all([
      output('ip', ['netns', 'add', namespace]).then(() => output('ip', inside(namespace, 'sh', '-e'), setUp(options))),
      ...[...segments.values()].map((segment) => this.#segment(segment)),
    ]);
    const atSwitch = [...segments].flatMap(([iface, segment], index) => {
      const port = host.port(iface);
      assert(port.length <= MAX_PORT_NAME, `too long for the name of an interface: ${port}`);
      // Counted, so that captures read easily, and link-local addresses rise in the order of the hosts.
      const mac = `02:00:00:00:${hex(number)}:${hex(index)}`;
      return [
        `link add ${port} type veth peer name ${iface} address ${mac} netns ${namespace}`,
        `link set ${port} master ${segment} up`,
      ];
    });
    const atHost = [
      'link set lo up',
      ...interfaces.map((iface) => `link set ${iface} up`),
      ...interfaces.flatMap((iface) => options.addresses[iface]!.map((address) => `addr add ${address} dev ${iface}`)),
      ...(options.routes ?? []).map((route) => `route add ${route}`),
    ];
    await output('ip', ['-n', this.switchNamespace, '-batch', '-'], atSwitch.join('\n'));
    await output('ip', ['-n', namespace, '-batch', '-'], atHost.join('\n'));
    return host;
  }

  /** What all programs of the lab have said, by time. */
  log(): string {
    const lines = this.processes.flatMap(({ title, lines: said }) => said.map((line) => ({ title, ...line })));
    return lines
      .sort((a, b) => a.atMs - b.atMs)
      .map(({ atMs, title, text }) => `${new Date(atMs).toISOString().slice(11, 23)} ${title}: ${text}`)
      .join('\n');
  }

  /** Kills every program in the lab's namespaces, and removes the namespaces and the folder. */
  async destroy(): Promise<void> {
    if (!labs.has(this)) return;
    // It may be that only half of it has been made.
    const namespaces = namespaceNames().filter((name) => this.#namespaces.includes(name));
    // By their own ids too: one that is just being started may not have entered its namespace yet.
    for (const program of this.processes) program.signalGroup('SIGKILL');
    await until(
      `${this.#prefix}: the end of its programs`,
      async () => (await output('sh', ['-c', killing(namespaces)])) === '',
      DEATH_MS,
    );
    await Promise.all(this.processes.map(({ exited }) => exited));
    await output('sh', ['-ec', deletion(namespaces)]);
    this.#forget();
  }

  /** The same without a turn of the event loop: for a process that is ending. */
  destroyNow(): void {
    removeNow(namespaceNames().filter((name) => this.#namespaces.includes(name)));
    this.#forget();
  }

  /** For `Host.spawn`. */
  keep(program: LabProcess): LabProcess {
    this.processes.push(program);
    return program;
  }

  captureFile(host: string, iface: string): string {
    return join(this.folder, `${host}-${iface}-${++this.#captures}.pcap`);
  }

  #forget(): void {
    labs.delete(this);
    removeFolder(this.folder);
  }

  #segment(name: string): Promise<unknown> {
    const made = this.#segments.get(name) ?? this.#makeSegment(name);
    this.#segments.set(name, made);
    return made;
  }

  async #makeSegment(name: string): Promise<void> {
    const bridge = `link add ${name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`;
    await output('ip', ['-n', this.switchNamespace, '-batch', '-'], `${bridge}\nlink set ${name} up`);
  }
}

export class Host {
  readonly name: string;
  readonly namespace: string;
  readonly interfaces: string[];
  readonly #lab: Lab;
  readonly #cut = new Set<string>();
  #drops: Drop[] = [];

  constructor(lab: Lab, name: string, namespace: string, interfaces: string[]) {
    this.name = name;
    this.namespace = namespace;
    this.interfaces = interfaces;
    this.#lab = lab;
  }

  /** For configurations and sockets of this host. */
  get folder(): string {
    return this.#lab.folder;
  }

  /** The name of the switch's side of an interface. */
  port(iface: string): string {
    return `${this.name}-${iface}`;
  }

  /** Starts a program on this host; its pid is the program's own. It is killed with the lab at the latest. */
  async spawn(command: string, args: string[] = [], options: SpawnOptions = {}): Promise<LabProcess> {
    const title = `${this.name} ${command.slice(command.lastIndexOf('/') + 1)}`;
    return this.#lab.keep(await LabProcess.start(title, 'ip', inside(this.namespace, command, ...args), options));
  }

  /**
   * Runs a program on this host to its end.
   * @returns its standard output
   * @throws Error if its exit status isn't 0
   */
  run(command: string, args: string[] = [], input = ''): Promise<string> {
    return output('ip', inside(this.namespace, command, ...args), input);
  }

  /**
   * As when a machine loses its power: every program on this host (captures too) is halted and then killed, so that none
   * sees another die. What they had set in the kernel, such as addresses, stays.
   * @returns when it was
   */
  async crash(): Promise<number> {
    const pids = (await output('ip', ['netns', 'pids', this.namespace])).split('\n').filter(Boolean).map(Number);
    const atMs = nowMs();
    for (const signal of ['SIGSTOP', 'SIGKILL'] as const) for (const pid of pids) send(pid, signal);
    return atMs;
  }

  /** The wire is dead in both directions, and neither side is told. */
  async cut(iface?: string): Promise<void> {
    await this.#each(iface, async (each) => {
      this.#cut.add(each);
      await this.#filter(each);
    });
  }

  /** The host sees its carrier go, as with a cable that is pulled. */
  async unplug(iface?: string): Promise<void> {
    await this.#each(iface, (each) => this.#setPort(each, 'down'));
  }

  /** Ends `cut` and `unplug`. */
  async heal(iface?: string): Promise<void> {
    await this.#each(iface, async (each) => {
      this.#cut.delete(each);
      await this.#filter(each);
      await this.#setPort(each, 'up');
    });
  }

  /** Loses packets at the switch, beside what is dropped already. */
  async drop(drop: Drop): Promise<void> {
    this.#drops.push(drop);
    await this.#each(drop.iface, (each) => this.#filter(each));
  }

  async undrop(): Promise<void> {
    this.#drops = [];
    await this.#each(undefined, (each) => this.#filter(each));
  }

  /** Records what passes the host's interface; the filter is tcpdump's. */
  async capture(iface = 'eth0', filter = ''): Promise<Capture> {
    const file = this.#lab.captureFile(this.name, iface);
    // Without a limit on the length of packets, the kernel keeps room for a hundred of them only.
    const options = ['-n', '-U', '--immediate-mode', '-s', '2048', '-B', '8192', '-Z', 'root', '-i', iface, '-w', file];
    return Capture.begin(file, await this.spawn('tcpdump', [...options, ...filter.split(' ').filter(Boolean)]));
  }

  /** The MAC that this host's neighbour table has for an address; null if none. */
  async neighbour(address: string): Promise<string | null> {
    const entries = await this.#ip<{ lladdr?: string }>('neighbour', 'show', 'to', address);
    return entries.find(({ lladdr }) => lladdr !== undefined)?.lladdr ?? null;
  }

  async mac(iface = 'eth0'): Promise<string> {
    const [link] = await this.#ip<{ address: string }>('link', 'show', iface);
    assert(link, `${this.name} has no ${iface}`);
    return link.address;
  }

  /** With their prefixes; of one interface or of all (macvlans too) but the loopback. */
  async addresses(iface?: string): Promise<string[]> {
    type Link = { ifname: string; addr_info: { local: string; prefixlen: number }[] };
    const links = await this.#ip<Link>('address', 'show', ...(iface === undefined ? [] : [iface]));
    return links
      .filter(({ ifname }) => ifname !== 'lo')
      .flatMap(({ addr_info }) => addr_info.map(({ local, prefixlen }) => `${local}/${prefixlen}`));
  }

  async holds(address: string): Promise<boolean> {
    return (await this.addresses()).some((each) => each.startsWith(`${address}/`));
  }

  /** Until the address is here, or with `held: false` no longer is. */
  async untilHolds(address: string, held = true, timeoutMs?: number): Promise<void> {
    const what = `${this.name} ${held ? 'holds' : 'gives up'} ${address}`;
    await until(what, async () => (await this.holds(address)) === held, timeoutMs);
  }

  /** `ip -json` as its manual shows it, less the empty objects that older versions print for what was filtered out. */
  async #ip<T extends object>(...args: string[]): Promise<T[]> {
    const text = await output('ip', ['-n', this.namespace, '-json', ...args]);
    return (JSON.parse(text || '[]') as T[]).filter((item) => Object.keys(item).length > 0);
  }

  async #each(iface: string | undefined, act: (iface: string) => Promise<unknown>): Promise<void> {
    await Promise.all((iface === undefined ? this.interfaces : [iface]).map(act));
  }

  async #setPort(iface: string, state: 'up' | 'down'): Promise<void> {
    await output('ip', ['-n', this.#lab.switchNamespace, 'link', 'set', this.port(iface), state]);
  }

  /**
   * Replaces the rules of one port in one transaction. Before and behind the bridge, not in between, so that a flooded
   * packet is lost or not as a whole.
   */
  async #filter(iface: string): Promise<void> {
    const port = this.port(iface);
    const drops = this.#drops.filter((drop) => drop.iface === undefined || drop.iface === iface);
    const rules = (direction: 'in' | 'out', match: string): string[] =>
      this.#cut.has(iface)
        ? [`${match} drop`]
        : drops
            .filter((drop) => drop.direction === direction || drop.direction === 'both')
            .flatMap((drop) => ruleOf(drop).map((rule) => `${match} ${rule}`));
    const table = `bridge port_${port.replaceAll('-', '_')}`;
    const script = [
      `table ${table}`,
      `delete table ${table}`,
      `table ${table} {`,
      'chain from_host {',
      'type filter hook prerouting priority 0',
      ...rules('out', `iifname "${port}"`),
      '}',
      'chain to_host {',
      'type filter hook postrouting priority 0',
      ...rules('in', `oifname "${port}"`),
      '}',
      '}',
      '',
    ];
    await output('ip', inside(this.#lab.switchNamespace, 'nft', '-f', '-'), script.join('\n'));
  }
}

/** Until the first one is made there is no such folder. */
const namespaceNames = (): string[] => (existsSync(NAMESPACES_FOLDER) ? readdirSync(NAMESPACES_FOLDER) : []);

const inside = (namespace: string, ...command: string[]): string[] => ['netns', 'exec', namespace, ...command];

const hex = (value: number): string => value.toString(16).padStart(2, '0');

const ruleOf = ({ share = 1, match = 'all' }: Drop): string[] => {
  const lucky = share >= 1 ? '' : ` numgen random mod ${SHARES} < ${Math.round(share * SHARES)}`;
  return (MATCHES[match] ?? [match]).map((each) => `${each}${lucky} drop`);
};

/** Before the interfaces are made: what is in `default` is what they begin with. */
const setUp = (options: HostOptions): string => {
  // An address that waits a second for duplicates to show up can't be used in that second.
  const sysctls = { 'net.ipv6.conf.default.accept_dad': '0', ...options.sysctls };
  return Object.entries(sysctls)
    .map(([name, value]) => `echo '${value}' > '/proc/sys/${name.replaceAll('.', '/')}'`)
    .join('\n');
};

const isAlive = (pid: number): boolean => {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
};

const removeNow = (namespaces: string[]): void => {
  if (namespaces.length === 0) return;
  spawnSync('sh', ['-c', `${killing(namespaces)}\n${deletion(namespaces)}`], { stdio: 'ignore' });
};

/** With the disks that are mounted in it. */
const removeFolder = (folder: string): void => {
  const mounts = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[1])
    .filter((mount) => mount?.startsWith(`${folder}/`));
  for (const mount of mounts) spawnSync('umount', ['--lazy', mount!], { stdio: 'ignore' });
  rmSync(folder, { recursive: true, force: true });
};

/** Until a signal asks for the end, so that a lab may be left standing. */
export const untilInterrupted = (): Promise<NodeJS.Signals> => {
  const over = Promise.withResolvers<NodeJS.Signals>();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, over.resolve);
  // A listener for signals alone doesn't keep a process alive.
  const awake = setInterval(() => {}, 60_000);
  return over.promise.finally(() => clearInterval(awake));
};
