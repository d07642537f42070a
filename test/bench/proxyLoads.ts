/** The loads of `bench:proxy`, made by wrk, h2load and a WebSocket client of our own on cores of their own. */
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { MIB } from './proxyOrigin.ts';
import type { Ports } from './proxyConfigs.ts';
import { output } from './proxyProcesses.ts';
import type { Ability } from './proxySubjects.ts';
import { quantile } from './report.ts';

/** `done`: requests, frames or MiB. */
export type Outcome = { done: number; seconds: number; p50Ms: number; p99Ms: number; errors: string[] };

/** Where a load runs. */
export type LoadOptions = { ports: Ports; seconds: number; folder: string; cores: string | null };

export type Load = {
  name: string;
  takes: Ability;
  /** What is counted. */
  unit: 'request' | 'MiB' | 'frame';
  /** The most that the CPU for one may be of HAProxy's. */
  aim: number | null;
  run(options: LoadOptions): Promise<Outcome>;
};

const CONNECTIONS = 64;
/** Fewer where each moves much: they would only wait for each other. */
const BULK_CONNECTIONS = 8;

/** What wrk knows in the end; it rounds what it prints. */
const SUMMARY = `
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('\\nsummary {"requests":%d,"us":%d,"bytes":%d,"p50Us":%f,"p99Us":%f,' ..
    '"errors":{"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}}\\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
`;

type Summary = {
  requests: number;
  us: number;
  bytes: number;
  p50Us: number;
  p99Us: number;
  errors: Record<string, number>;
};

const positive = (errors: Record<string, number>): string[] =>
  Object.entries(errors)
    .filter(([, count]) => count > 0)
    .map(([what, count]) => `${what}: ${count}`);

type WrkOptions = { connections?: number; closes?: boolean };

const wrk = async (
  url: string,
  o: LoadOptions,
  { connections = CONNECTIONS, closes }: WrkOptions,
): Promise<Summary> => {
  const script = join(o.folder, 'summary.lua');
  writeFileSync(script, SUMMARY);
  const args = [
    '-t1',
    `-c${connections}`,
    `-d${o.seconds}s`,
    '-s',
    script,
    ...(closes ? ['-H', 'Connection: close'] : []),
  ];
  const text = await output('wrk', ['wrk', ...args, url], { cores: o.cores });
  return JSON.parse(/^summary (.*)$/m.exec(text)![1]!) as Summary;
};

const outcomeOf = ({ us, p50Us, p99Us, errors }: Summary, done: number): Outcome => ({
  done,
  seconds: us / 1e6,
  p50Ms: p50Us / 1000,
  p99Ms: p99Us / 1000,
  errors: positive(errors),
});

const requests = async (url: string, o: LoadOptions, more: WrkOptions = {}): Promise<Outcome> => {
  const summary = await wrk(url, o, more);
  return outcomeOf(summary, summary.requests);
};

/** Also of responses that were not complete when the time was up. */
const mebibytes = async (url: string, o: LoadOptions): Promise<Outcome> => {
  const summary = await wrk(url, o, { connections: BULK_CONNECTIONS });
  return outcomeOf(summary, summary.bytes / MIB);
};

/** Each connection with several requests under way. */
const H2_CONNECTIONS = 16;
const H2_STREAMS = 8;

const http2 = async (url: string, { seconds, folder, cores }: LoadOptions): Promise<Outcome> => {
  const log = join(folder, 'h2load.log');
  rmSync(log, { force: true });
  const args = ['-t1', `-c${H2_CONNECTIONS}`, `-m${H2_STREAMS}`, `-D${seconds}`, `--log-file=${log}`, url];
  const text = await output('h2load', ['h2load', ...args], { cores });
  const count = (pattern: RegExp): number => Number(pattern.exec(text)![1]);
  if (!/^Application protocol: h2$/m.test(text)) throw new Error('h2load was not offered HTTP/2');
  // Start in µs since 1970, status, duration in µs.
  const latenciesMs = readFileSync(log, 'utf8')
    .split('\n')
    .filter(Boolean)
    .map((line) => Number(line.split('\t')[2]) / 1000);
  return {
    done: count(/ (\d+) succeeded/),
    seconds,
    p50Ms: quantile(latenciesMs, 0.5),
    p99Ms: quantile(latenciesMs, 0.99),
    errors: positive({
      failed: count(/ (\d+) failed/),
      errored: count(/ (\d+) errored/),
      timeout: count(/ (\d+) timeout/),
      status: count(/ (\d+) 3xx/) + count(/ (\d+) 4xx/) + count(/ (\d+) 5xx/),
    }),
  };
};

const webSocket = async ({ ports, seconds, cores }: LoadOptions): Promise<Outcome> => {
  const file = join(import.meta.dirname, 'proxyWebSocketClient.ts');
  const args = [file, String(ports.webSocket), String(CONNECTIONS), String(seconds)];
  return JSON.parse(await output('the WebSocket client', [process.execPath, ...args], { cores })) as Outcome;
};

const http = (o: LoadOptions, path = '/'): string => `http://127.0.0.1:${o.ports.http}${path}`;
const https = (o: LoadOptions): string => `https://127.0.0.1:${o.ports.https}/`;
const tcp = (o: LoadOptions, path = '/'): string => `http://127.0.0.1:${o.ports.tcp}${path}`;

export const keepAlive: Load = {
  name: 'HTTP keep-alive',
  takes: 'http',
  unit: 'request',
  aim: 1.25,
  run: (o) => requests(http(o), o),
};

/** In mode tcp HTTP is only what the bytes happen to be: small messages there and back, and one-way bulk. */
export const loads: Load[] = [
  keepAlive,
  {
    name: 'HTTP new connections',
    takes: 'http',
    unit: 'request',
    aim: 1.5,
    run: (o) => requests(http(o), o, { closes: true }),
  },
  { name: 'HTTP 1 MiB responses', takes: 'http', unit: 'MiB', aim: 1.5, run: (o) => mebibytes(http(o, '/mib'), o) },
  { name: 'HTTPS keep-alive', takes: 'https', unit: 'request', aim: 1.25, run: (o) => requests(https(o), o) },
  // wrk takes up its TLS sessions again, as browsers do: there is no signature in most of these handshakes.
  {
    name: 'HTTPS new connections',
    takes: 'https',
    unit: 'request',
    aim: null,
    run: (o) => requests(https(o), o, { closes: true }),
  },
  { name: 'HTTP/2', takes: 'http2', unit: 'request', aim: null, run: (o) => http2(https(o), o) },
  { name: 'TCP small messages', takes: 'tcp', unit: 'request', aim: 1.25, run: (o) => requests(tcp(o), o) },
  { name: 'TCP bulk', takes: 'tcp', unit: 'MiB', aim: 1.5, run: (o) => mebibytes(tcp(o, '/bulk'), o) },
  { name: 'WebSocket frames', takes: 'webSocket', unit: 'frame', aim: null, run: webSocket },
];
