/**
 * Lines of the access log. Every one is ASCII without controls: what a client sent can't begin a line, close a quote or
 * reach a terminal as it is.
 */
import type { AccessRecord } from './accessLog.ts';

export type LogFormat = 'json' | 'httplog' | 'tcplog' | 'combined';

/** Names in lower case, in the order in which records have the values. */
export type LineModel = { format: LogFormat; requestHeaders: string[]; responseHeaders: string[] };

export type FormatLine = (record: AccessRecord) => string;

/** The fields of a request that `combined` shows; a record has their values first. */
export const COMBINED_HEADERS = ['referer', 'user-agent'] as const;

export const formatterOf = (model: LineModel): FormatLine => {
  switch (model.format) {
    case 'json':
      return jsonOf(model);
    case 'tcplog':
      return tcplog;
    case 'httplog':
      return (record) => (record.mode === 'tcp' ? tcplog(record) : httplog(record));
    case 'combined':
      return (record) => (record.mode === 'tcp' ? tcplog(record) : combined(record));
  }
};

const hex = (character: string): string => character.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0');

/** HAProxy's manual, section 8.6. */
const sharp = (text: string): string => text.replaceAll(/[^\x20\x21\x24-\x7e]/g, (found) => `#${hex(found)}`);
const sharpHeader = (text: string): string => text.replaceAll(/[^\x20\x21\x24-\x7a\x7e]/g, (found) => `#${hex(found)}`);

/** As nginx escapes. */
const slashed = (text: string): string =>
  text.replaceAll(/[^\x20\x21\x23-\x5b\x5d-\x7e]/g, (found) => `\\x${hex(found)}`);

const twoDigits = (value: number): string => (value < 10 ? `0${value}` : String(value));
const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];

const timeOfDay = (date: Date): string =>
  `${twoDigits(date.getHours())}:${twoDigits(date.getMinutes())}:${twoDigits(date.getSeconds())}`;

/** Made once a second: neighbouring lines mostly share it. */
const everySecond = (make: (date: Date) => string): ((ms: number) => string) => {
  let second = NaN;
  let text = '';
  return (ms) => {
    const current = Math.floor(ms / 1000);
    if (current !== second) {
      second = current;
      text = make(new Date(current * 1000));
    }
    return text;
  };
};

/** Local time, as HAProxy and Apache have it. `25/Nov/2026:13:55:36` */
const localSecond = everySecond(
  (date) => `${twoDigits(date.getDate())}/${MONTHS[date.getMonth()]}/${date.getFullYear()}:${timeOfDay(date)}`,
);
/** `+0100` */
const zone = everySecond((date) => {
  const minutes = -date.getTimezoneOffset();
  const hours = Math.floor(Math.abs(minutes) / 60);
  return `${minutes < 0 ? '-' : '+'}${twoDigits(hours)}${twoDigits(Math.abs(minutes) % 60)}`;
});
const utcSecond = everySecond((date) => date.toISOString().slice(0, -'.000Z'.length));
/** `Nov  5 13:55:36` (RFC 3164 section 4.1.2) */
export const syslogDate = everySecond(
  (date) => `${MONTHS[date.getMonth()]} ${String(date.getDate()).padStart(2)} ${timeOfDay(date)}`,
);

const fraction = (ms: number, digits: 3 | 6): string =>
  String(digits === 3 ? Math.floor(ms % 1000) : Math.floor((ms % 1000) * 1000)).padStart(digits, '0');

/** `2026-11-25T13:55:36.123456Z` */
export const isoDate = (ms: number): string => `${utcSecond(ms)}.${fraction(ms, 6)}Z`;

/** `- [date] frontend backend/server`, with HAProxy's ~ for TLS. */
const whoAndWhen = (record: AccessRecord): string =>
  `${record.clientAddress}:${record.clientPort} ` +
  `[${localSecond(record.startedMs)}.${fraction(record.startedMs, 3)}] ` +
  `${record.frontend}${record.tlsVersion === null ? '' : '~'} ${record.backend}/${record.server ?? '<NOSRV>'}`;

const connections = (record: AccessRecord): string =>
  `${record.processConnections}/${record.frontendConnections}/${record.backendConnections}/` +
  `${record.serverConnections}/${record.redispatched ? '+' : ''}${record.retries} ` +
  `${record.serverQueue}/${record.backendQueue}`;

/** -1 stays -1. */
const whole = Math.floor;

/** HAProxy's manual, section 8.2.2. */
const tcplog = (record: AccessRecord): string =>
  `${whoAndWhen(record)} ${whole(record.queueMs)}/${whole(record.connectMs)}/${whole(record.totalMs)} ` +
  `${record.bytesRead} ${record.termination} ${connections(record)}`;

const requestLine = ({ method, target, version }: AccessRecord): string | null =>
  method === '' ? null : `${method} ${target} ${version}`;

/** Braces that stand there only when fields are captured. */
const braced = (values: readonly (string | null)[]): string =>
  values.length === 0 ? '' : ` {${values.map((value) => (value === null ? '' : sharpHeader(value))).join('|')}}`;

/** Section 8.2.3. No cookies are captured: `- -`. */
const httplog = (record: AccessRecord): string => {
  const { requestMs, queueMs, connectMs, responseMs, totalMs } = record;
  const request = requestLine(record);
  return (
    `${whoAndWhen(record)} ` +
    `${whole(requestMs)}/${whole(queueMs)}/${whole(connectMs)}/${whole(responseMs)}/${whole(totalMs)} ` +
    `${record.status === 0 ? -1 : record.status} ${record.bytesRead} - - ${record.termination}${record.cookies} ` +
    `${connections(record)}${braced(record.requestHeaders)}${braced(record.responseHeaders)} ` +
    `"${request === null ? '<BADREQ>' : sharp(request)}"`
  );
};

/** Apache's LogFormat of that name; bytes are those sent, heads included. */
const combined = (record: AccessRecord): string => {
  const { startedMs, requestHeaders, status } = record;
  const text = (value: string | null | undefined): string => (value == null ? '-' : slashed(value));
  return (
    `${record.clientAddress} - ${text(record.user).replaceAll(' ', String.raw`\x20`)} ` +
    `[${localSecond(startedMs)} ${zone(startedMs)}] "${text(requestLine(record))}" ` +
    `${String(status).padStart(3, '0')} ${record.bytesRead} ` +
    `"${text(requestHeaders[0])}" "${text(requestHeaders[1])}"`
  );
};

/** Milliseconds to the microsecond; null when it did not come to that. */
const timer = (ms: number): number | null => (ms < 0 ? null : Math.round(ms * 1000) / 1000);

/** Td: what is left of the whole time for passing data on; null when it did not come to that. */
const dataMs = ({ mode, requestMs, queueMs, connectMs, responseMs, handshakeMs, totalMs }: AccessRecord): number => {
  if (mode === 'tcp') return connectMs < 0 ? -1 : Math.max(0, totalMs - handshakeMs - queueMs - connectMs);
  return responseMs < 0 ? -1 : Math.max(0, totalMs - requestMs - queueMs - connectMs - responseMs);
};

const captured = (names: readonly string[], values: readonly (string | null)[]): unknown =>
  values.length === 0 ? undefined : Object.fromEntries(values.map((value, index) => [names[index]!, value]));

/**
 * Bytes above 126 as characters of latin1, escaped: what was sent need not be UTF-8, and is told apart this way. Controls
 * and quotes have been seen to by JSON itself.
 */
const asAscii = (json: string): string =>
  /[^\x20-\x7e]/.test(json)
    ? json.replaceAll(/[^\x20-\x7e]/g, (found) => String.raw`\u00${hex(found).toLowerCase()}`)
    : json;

/** One object a line. Keys are part of the product's interface: they are added to, never changed. */
const jsonOf = ({ requestHeaders, responseHeaders }: LineModel): FormatLine => {
  return (record) => {
    const isHttp = record.mode === 'http';
    // One literal for both modes, absent keys undefined: JSON.stringify is at its fastest with one shape of objects.
    return asAscii(
      JSON.stringify({
        time: isoDate(record.startedMs),
        mode: record.mode,
        client: record.clientAddress,
        clientPort: record.clientPort,
        frontend: record.frontend,
        backend: record.backend,
        server: record.server,
        method: isHttp ? record.method : undefined,
        target: isHttp ? record.target : undefined,
        version: isHttp ? record.version : undefined,
        host: isHttp ? record.host : undefined,
        status: isHttp ? record.status : undefined,
        bytesRead: record.bytesRead,
        bytesUploaded: record.bytesUploaded,
        handshakeMs: timer(record.handshakeMs),
        idleMs: isHttp ? timer(record.idleMs) : undefined,
        requestMs: isHttp ? timer(record.requestMs) : undefined,
        queueMs: timer(record.queueMs),
        connectMs: timer(record.connectMs),
        responseMs: isHttp ? timer(record.responseMs) : undefined,
        dataMs: timer(dataMs(record)),
        totalMs: timer(record.totalMs),
        termination: isHttp ? `${record.termination}${record.cookies}` : record.termination,
        retries: record.retries,
        redispatched: record.redispatched,
        processConnections: record.processConnections,
        frontendConnections: record.frontendConnections,
        backendConnections: record.backendConnections,
        serverConnections: record.serverConnections,
        serverQueue: record.serverQueue,
        backendQueue: record.backendQueue,
        tlsVersion: record.tlsVersion ?? undefined,
        tlsCipher: record.tlsCipher ?? undefined,
        serverName: record.serverName ?? undefined,
        user: record.user ?? undefined,
        requestId: record.requestId ?? undefined,
        requestHeaders: captured(requestHeaders, record.requestHeaders),
        responseHeaders: captured(responseHeaders, record.responseHeaders),
      }),
    );
  };
};
