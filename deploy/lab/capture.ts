/** What went over a wire: recorded by tcpdump, decoded by tshark, whose reading of VRRP isn't ours. */
import assert from 'node:assert/strict';
import { output } from './shell.ts';
import type { LabProcess } from './process.ts';
import { until } from './until.ts';

export type VrrpPacket = {
  /** Milliseconds since 1970. */
  atMs: number;
  sourceMac: string;
  source: string;
  destination: string;
  ttl: number;
  version: number;
  vrid: number;
  priority: number;
  /** Version 2 counts seconds, version 3 centiseconds. */
  advertMs: number;
  addresses: string[];
  checksum: 'good' | 'bad' | 'unverified';
};

/** What tshark complains of in a packet: malformed, a wrong checksum, a field out of its range. */
export type Complaint = { frame: number; protocols: string; message: string };

/** tshark's numbers for the status of a checksum. */
const CHECKSUMS: Record<string, VrrpPacket['checksum']> = { '0': 'bad', '1': 'good' };

/** What tcpdump says when SIGUSR1 asks. */
const COUNTS = /(\d+) packets? captured, (\d+) packets? received by filter, (\d+) packets? dropped/;

const VRRP_FIELDS = [
  'frame.time_epoch',
  'eth.src',
  'ip.src',
  'ipv6.src',
  'ip.dst',
  'ipv6.dst',
  'ip.ttl',
  'ipv6.hlim',
  'vrrp.version',
  'vrrp.virt_rtr_id',
  'vrrp.prio',
  'vrrp.adver_int',
  'vrrp.short_adver_int',
  'vrrp.ip_addr',
  'vrrp.ipv6_addr',
  'vrrp.checksum.status',
] as const;

const COMPLAINT_FIELDS = [
  'frame.number',
  'frame.protocols',
  '_ws.malformed',
  '_ws.expert.severity',
  '_ws.expert.message',
] as const;

/** Chats and notes are remarks on the conversation, not complaints about the packet. tshark's PI_WARN. */
const WARNING = 0x600000;

type Row = Record<(typeof VRRP_FIELDS)[number] | (typeof COMPLAINT_FIELDS)[number], string>;

export class Capture {
  readonly file: string;
  readonly #tcpdump: LabProcess;
  #decoded: Promise<Row[]> | null = null;

  private constructor(file: string, tcpdump: LabProcess) {
    this.file = file;
    this.#tcpdump = tcpdump;
  }

  /** From the moment that this returns, nothing is missed. */
  static async begin(file: string, tcpdump: LabProcess): Promise<Capture> {
    await tcpdump.waitFor(/listening on/);
    return new Capture(file, tcpdump);
  }

  /** Everything up to now is in the file when this returns. */
  async stop(): Promise<void> {
    if (this.#tcpdump.exit !== null) return;
    // It forgets at its end what it has received and not written yet.
    await until(`${this.#tcpdump.title} to write`, async () => {
      const after = this.#tcpdump.lines.length;
      this.#tcpdump.signal('SIGUSR1');
      const counts = COUNTS.exec((await this.#tcpdump.waitFor(COUNTS, { after })).text)!;
      assert.equal(counts[3], '0', `${this.#tcpdump.title} was too slow and lost packets`);
      return counts[1] === counts[2];
    });
    await this.#tcpdump.end('SIGINT');
  }

  /** What tshark says of the capture, a row of fields for each packet that `filter` (tshark's language) lets through. */
  async decode<Field extends string>(filter: string, fields: readonly Field[]): Promise<Record<Field, string>[]> {
    await this.stop();
    const text = await output('tshark', [
      ...['-n', '-r', this.file, '-Y', filter, '-T', 'fields', '-E', 'separator=/t', '-E', 'occurrence=a'],
      ...fields.flatMap((field) => ['-e', field]),
    ]);
    const rows = text.split('\n').filter((line) => line !== '');
    return rows.map((line) => {
      const values = line.split('\t');
      return Object.fromEntries(fields.map((field, index) => [field, values[index] ?? ''])) as Record<Field, string>;
    });
  }

  async vrrp(): Promise<VrrpPacket[]> {
    const rows = (await this.#rows()).filter((row) => row['vrrp.version'] !== '');
    return rows.map((row) => ({
      atMs: Number(row['frame.time_epoch']) * 1000,
      sourceMac: row['eth.src'],
      source: row['ip.src'] || row['ipv6.src'],
      destination: row['ip.dst'] || row['ipv6.dst'],
      ttl: Number(row['ip.ttl'] || row['ipv6.hlim']),
      version: Number(row['vrrp.version']),
      vrid: Number(row['vrrp.virt_rtr_id']),
      priority: Number(row['vrrp.prio']),
      advertMs: row['vrrp.adver_int'] ? Number(row['vrrp.adver_int']) * 1000 : Number(row['vrrp.short_adver_int']) * 10,
      addresses: (row['vrrp.ip_addr'] || row['vrrp.ipv6_addr']).split(','),
      checksum: CHECKSUMS[row['vrrp.checksum.status']] ?? 'unverified',
    }));
  }

  async complaints(): Promise<Complaint[]> {
    const rows = (await this.#rows()).filter(
      (row) =>
        row['_ws.malformed'] !== '' || row['_ws.expert.severity'].split(',').some((each) => Number(each) >= WARNING),
    );
    return rows.map((row) => ({
      frame: Number(row['frame.number']),
      protocols: row['frame.protocols'],
      message: row['_ws.expert.message'] || 'malformed',
    }));
  }

  /** For both at once: a start of tshark takes the better part of a second. */
  #rows(): Promise<Row[]> {
    return (this.#decoded ??= this.decode('vrrp || _ws.malformed || _ws.expert', [
      ...VRRP_FIELDS,
      ...COMPLAINT_FIELDS,
    ]));
  }
}
