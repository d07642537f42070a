/** Lines for a syslog daemon: the frame around each (RFC 3164, RFC 5424), and datagrams by UDP or to a Unix socket. */
import { lookup } from 'node:dns';
import { hostname } from 'node:os';
import { isIP } from 'node:net';
import type { Endpoint } from '../config/units.ts';
import { formatEndpoint } from '../config/units.ts';
import { EAGAIN, errno, lastErrno, libc } from '../net/libc.ts';
import { openSocket, SOCK_DGRAM } from '../net/socket.ts';
import { socketAddressOf } from '../net/tcpSocket.ts';
import type { AccessRecord } from './accessLog.ts';
import { isoDate, syslogDate } from './accessLogFormat.ts';
import type { LogSink, SinkReports } from './logSink.ts';

export type SyslogModel = { format: 'rfc3164' | 'rfc5424'; facility: string; tag: string };

/** RFC 5424 section 6.2.1. */
const FACILITIES: Record<string, number> = { user: 1, daemon: 3 };
const LOCAL0 = 16;
const ERROR = 3;
const INFORMATIONAL = 6;

/** What is longer is cut: RFC 5424 section 6.1 lets receivers cut at 2048 at the earliest, UDP ends at 65507. */
const MAX_DATAGRAM_BYTES = 8192;
/** Lines that wait for a daemon whose socket is full; beyond, they are lost. */
const MAX_WAITING = 4096;
/** A daemon that is away is looked for again this often. */
const RETRY_MS = 1000;

const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;

/** A daemon on this machine adds the host itself, and its own socket's protocol has no place for it. */
export const syslogFrame = (
  { format, facility, tag }: SyslogModel,
  isLocal: boolean,
  host = hostname(),
): ((line: string, record: AccessRecord, normal: boolean) => string) => {
  const number = FACILITIES[facility] ?? LOCAL0 + Number(facility.slice('local'.length));
  return (line, { startedMs, totalMs }, normal) => {
    const priority = number * 8 + (normal ? INFORMATIONAL : ERROR);
    const now = startedMs + totalMs;
    if (format === 'rfc5424') return `<${priority}>1 ${isoDate(now)} ${host} ${tag} ${process.pid} - - ${line}`;
    return `<${priority}>${syslogDate(now)} ${isLocal ? '' : `${host} `}${tag}[${process.pid}]: ${line}`;
  };
};

export class SyslogSink implements LogSink {
  readonly #address: Endpoint;
  readonly #frame: ReturnType<typeof syslogFrame>;
  readonly #reports: SinkReports;
  #fd: number | null = null;
  #opening = false;
  #retryAtMs = 0;
  #waiting: Buffer[] = [];

  constructor(address: Endpoint, model: SyslogModel, reports: SinkReports) {
    this.#address = address;
    this.#frame = syslogFrame(model, address.path !== undefined);
    this.#reports = reports;
  }

  get isWaiting(): boolean {
    return this.#fd !== null && this.#waiting.length > 0;
  }

  append(line: string, record: AccessRecord, normal: boolean): void {
    if (this.#waiting.length >= MAX_WAITING) this.#reports.lost(1);
    else {
      const bytes = Buffer.from(this.#frame(line, record, normal), 'latin1');
      this.#waiting.push(bytes.length > MAX_DATAGRAM_BYTES ? bytes.subarray(0, MAX_DATAGRAM_BYTES) : bytes);
    }
  }

  flush(): void {
    if (this.#waiting.length === 0) return;
    if (this.#fd === null) this.#open();
    if (this.#fd === null) return;
    let sent = 0;
    let failures = 0;
    for (const datagram of this.#waiting) {
      const result = libc().send(this.#fd, datagram, datagram.length, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (result < 0 && errno() === EAGAIN) break;
      if (result < 0) {
        failures++;
        this.#reports.failed(lastErrno(), `${formatEndpoint(this.#address)} takes no lines: ${lastErrno()}`);
      }
      sent++;
    }
    this.#waiting.splice(0, sent);
    this.#reports.lost(failures);
    if (sent > failures) this.#reports.written(sent - failures);
    // A daemon that was started again has another socket of the same name.
    if (failures > 0) this.reopen();
  }

  reopen(): void {
    if (this.#fd !== null) libc().close(this.#fd);
    this.#fd = null;
  }

  close(): void {
    this.flush();
    this.#reports.lost(this.#waiting.length);
    this.#waiting = [];
    this.reopen();
  }

  #open(): void {
    const now = performance.now();
    if (this.#opening || now < this.#retryAtMs) return;
    this.#retryAtMs = now + RETRY_MS;
    const { host, port, path } = this.#address;
    if (path !== undefined || isIP(host) !== 0) {
      this.#connect(this.#address);
      return;
    }
    this.#opening = true;
    lookup(host, (error, address) => {
      this.#opening = false;
      if (error) this.#fail(error.code ?? 'ENOTFOUND');
      else this.#connect({ host: address, port });
    });
  }

  #connect(endpoint: Endpoint): void {
    const { family, bytes } = socketAddressOf(endpoint);
    const fd = openSocket(family, SOCK_DGRAM, 0);
    if (fd === null) this.#fail(lastErrno());
    else if (libc().connect(fd, bytes, bytes.length) < 0) {
      const code = lastErrno();
      libc().close(fd);
      this.#fail(code);
    } else this.#fd = fd;
  }

  #fail(code: string): void {
    this.#reports.failed(code, `${formatEndpoint(this.#address)} can't be reached: ${code}`);
  }
}
