/** keepalived on a host of the lab: its configuration, its states, its counters and its complaints. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Host } from '../../deploy/lab/lab.ts';
import type { Exit, LabProcess, Line } from '../../deploy/lab/process.ts';
import { until } from '../../deploy/lab/until.ts';

export type InstanceOptions = {
  name: string;
  vrid: number;
  /** Default: 100. */
  priority?: number;
  /** Default: `BACKUP`. `MASTER` rules out preemptDelay, nopreempt and AH. */
  state?: 'MASTER' | 'BACKUP';
  /** Default: `eth0`. */
  interface?: string;
  /** Default: 3. Version 2 can't do less than a second. */
  version?: 2 | 3;
  /** Default: 1000. */
  advertMs?: number;
  addresses: string[];
  auth?: { type: 'PASS' | 'AH'; pass: string };
  /** Default: multicast. */
  unicast?: { source: string; peers: string[] };
  nopreempt?: boolean;
  preemptDelayS?: number;
  /** A macvlan with the virtual router's MAC. */
  virtualMac?: boolean;
  /** Further lines of the instance. */
  extra?: string[];
};

export type KeepalivedOptions = {
  instances: InstanceOptions[];
  /** By name: the names of the instances that move together. */
  syncGroups?: Record<string, string[]>;
  /** Further lines of `global_defs`. */
  global?: string[];
  /** Further blocks of the file. */
  extra?: string[];
};

export type State = 'BACKUP' | 'MASTER' | 'FAULT';
export type StateChange = { instance: string; state: State; atMs: number; index: number };

/** As its statistics file names them: `Advertisements Received`, `Packet Errors TTL`, `Became master`. */
export type Counters = Record<string, number>;

const STATE_CHANGE = /: \((.+?)\) Entering (BACKUP|MASTER|FAULT) STATE/;

/**
 * What keepalived 2.2.7 says (with `-D`) when all is well: start and end, its own doings, and elections. Whatever isn't
 * known here counts as a complaint, so that none is missed.
 */
const ORDINARY = [
  /^Starting |^Running on |^Command line:|^\s+'|^Opening file|^Configuration file|^NOTICE: setting config option/,
  /^Registering |^Assigned address|^Startup complete|^VRRP sockpool:|^Printing |^Stopp(?:ing|ed)|^Reload|^Got SIGHUP/,
  /^Sending (?:gratuitous ARP|unsolicited Neighbour Advert)|^Netlink |^\S+ (?:exiting|vrrp process)|^CPU usage/,
  /^\(.+\) (?:Entering|setting|removing|Setting|Sending\/queueing|sent 0 priority|Receive advertisement timeout)/,
  /^\(.+\):? (?:Success (?:creating|removing) VMAC|Found matching interface)|no firewall configured - using nftables$/,
  /^\(.+\) (?:Changing effective priority|Preempt|preempt|Expired after)/,
  /^\(.+\) (?:Backup received priority 0|Master received advert|Received advert from .* with lower priority)/,
  /^\(.+\) received lower priority .* - discarding$/,
  /^\(.+\) IPSEC-AH : Syncing seq_num - Increment seq$/,
  /^VRRP_Group\(.+\) Syncing instances/,
];

/** Counters that say that a packet was refused. */
const REFUSED = /Errors/;

export const configurationOf = ({ instances, syncGroups = {}, global = [], extra = [] }: KeepalivedOptions): string =>
  [
    'global_defs {',
    // Without a user for scripts it looks for one, and complains that there is none.
    ...['script_user root', 'enable_script_security', ...global].map((line) => `  ${line}`),
    '}',
    ...Object.entries(syncGroups).map(
      ([name, members]) => `vrrp_sync_group ${name} {\n  group {\n    ${members.join('\n    ')}\n  }\n}`,
    ),
    ...instances.flatMap((instance) => [
      `vrrp_instance ${instance.name} {`,
      ...instanceLines(instance).map((line) => `  ${line}`),
      '}',
    ]),
    ...extra,
    '',
  ].join('\n');

const instanceLines = (instance: InstanceOptions): string[] => [
  `state ${instance.state ?? 'BACKUP'}`,
  `interface ${instance.interface ?? 'eth0'}`,
  `virtual_router_id ${instance.vrid}`,
  `priority ${instance.priority ?? 100}`,
  `version ${instance.version ?? 3}`,
  `advert_int ${(instance.advertMs ?? 1000) / 1000}`,
  ...(instance.auth
    ? ['authentication {', `  auth_type ${instance.auth.type}`, `  auth_pass ${instance.auth.pass}`, '}']
    : []),
  ...(instance.unicast
    ? [
        `unicast_src_ip ${instance.unicast.source}`,
        'unicast_peer {',
        ...instance.unicast.peers.map((peer) => `  ${peer}`),
        '}',
      ]
    : []),
  ...(instance.nopreempt ? ['nopreempt'] : []),
  ...(instance.preemptDelayS === undefined ? [] : [`preempt_delay ${instance.preemptDelayS}`]),
  ...(instance.virtualMac ? ['use_vmac', ...(instance.unicast ? ['vmac_xmit_base'] : [])] : []),
  'virtual_ipaddress {',
  ...instance.addresses.map((address) => `  ${address}`),
  '}',
  ...(instance.extra ?? []),
];

export class Keepalived {
  readonly process: LabProcess;
  readonly #folder: string;

  constructor(process: LabProcess, folder: string) {
    this.process = process;
    this.#folder = folder;
  }

  /** Every change of state so far, in order. */
  get changes(): StateChange[] {
    return this.process.lines.flatMap((line) => {
      const change = STATE_CHANGE.exec(line.text);
      return change ? [{ instance: change[1]!, state: change[2] as State, atMs: line.atMs, index: line.index }] : [];
    });
  }

  state(instance: string): State | null {
    return this.changes.findLast((change) => change.instance === instance)?.state ?? null;
  }

  /** Until the instance enters the state, now or by a line of the log from `after` (an index) on. */
  async untilState(
    instance: string,
    state: State,
    options: { after?: number; timeoutMs?: number } = {},
  ): Promise<Line | null> {
    if (options.after === undefined && this.state(instance) === state) return null;
    return this.process.waitFor(new RegExp(`\\(${instance}\\) Entering ${state} STATE`), {
      after: this.process.lines.length,
      ...options,
    });
  }

  /** The index that the next line of its log will have: give it as `after` to await what hasn't happened yet. */
  get mark(): number {
    return this.process.lines.length;
  }

  /** Lines of its log that it doesn't write when all is well. */
  complaints(): string[] {
    const texts = this.process.lines.map(({ text }) => text.replace(/^\w{3} \w{3} +\d+ [\d:]+ \d{4}: /, ''));
    return texts.filter((text) => !ORDINARY.some((pattern) => pattern.test(text)));
  }

  /** By instance. */
  async counters(): Promise<Record<string, Counters>> {
    const text = await this.#dump('SIGUSR2', 'keepalived.stats', /Priority Zero:\n.*\n.*Sent: \d+\n$/);
    const counters: Record<string, Counters> = {};
    let instance: Counters = {};
    let section = '';
    for (const line of text.split('\n')) {
      const [, indent, name, value] = /^( *)(.+?):\s*(\S*)$/.exec(line) ?? [];
      if (name === undefined) continue;
      if (name === 'VRRP Instance') instance = counters[value!] = {};
      else if (value === '') section = name;
      else instance[indent!.length > 2 ? `${section} ${name}` : name] = Number(value);
    }
    return counters;
  }

  /** Counters of refused packets that aren't zero, as `VI_1: Packet Errors TTL 3`. */
  async refused(): Promise<string[]> {
    return Object.entries(await this.counters()).flatMap(([instance, counters]) =>
      Object.entries(counters)
        .filter(([name, count]) => REFUSED.test(name) && count > 0)
        .map(([name, count]) => `${instance}: ${name} ${count}`),
    );
  }

  /** Every sign that it refused a packet or didn't like something: no counter counts all that it drops. */
  async trouble(): Promise<string[]> {
    return [...(await this.refused()), ...this.complaints()];
  }

  /** What it has configured and learned: `Master router`, `Master advert interval`. */
  data(): Promise<string> {
    return this.#dump('SIGUSR1', 'keepalived.data', /Interfaces >/);
  }

  async reload(options: KeepalivedOptions): Promise<void> {
    const after = this.mark;
    writeFileSync(join(this.#folder, 'keepalived.conf'), configurationOf(options));
    this.process.signal('SIGHUP');
    await this.process.waitFor(/Reload complete/, { after });
  }

  /** As if the machine's power had gone: parent and child at once, so that neither cleans up behind the other. */
  async crash(): Promise<void> {
    this.process.signalGroup('SIGKILL');
    await this.process.exited;
  }

  /** Leaves in order, with priority 0. */
  stop(): Promise<Exit> {
    return this.process.end('SIGTERM');
  }

  /** It writes into the file after the signal, and tells nobody when it is done. */
  async #dump(signal: NodeJS.Signals, name: string, whole: RegExp): Promise<string> {
    const file = join(this.#folder, name);
    rmSync(file, { force: true });
    this.process.signal(signal);
    return until(`${this.process.title}: ${name}`, async () => {
      try {
        const text = readFileSync(file, 'utf8');
        return whole.test(text) && text;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
        throw error;
      }
    });
  }
}

/** Runs when this returns: signals are taken, packets heard. */
export const startKeepalived = async (host: Host, options: KeepalivedOptions): Promise<Keepalived> => {
  const folder = mkdtempSync(join(host.folder, `${host.name}-keepalived-`));
  const file = join(folder, 'keepalived.conf');
  writeFileSync(file, configurationOf(options));
  const program = await host.spawn(
    'keepalived',
    [
      ...['--dont-fork', '--log-console', '--log-detail', '--no-syslog', '--vrrp', '--dont-respawn'],
      ...['--use-file', file, '--pid', join(folder, 'keepalived.pid'), '--vrrp_pid', join(folder, 'vrrp.pid')],
    ],
    // Where it dumps data and statistics.
    { env: { TMPDIR: folder } },
  );
  await program.waitFor(/Startup complete/);
  return new Keepalived(program, folder);
};
