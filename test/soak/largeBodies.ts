/**
 * Large bodies up and down, with a length and in chunks, at full speed and with slow readers, to checksums: what arrives
 * is what was sent, and the proxy's memory doesn't grow with it.
 * `node test/soak/largeBodies.ts [SIZE]` (`npm run soak:largeBodies`: 2GiB); a short form is among the tests.
 */
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseSize } from '../../src/config/units.ts';
import { freePorts } from '../ports.ts';
import { makeCertificate } from './certificate.ts';
import { HttpConnection } from './httpConnection.ts';
import type { Outcome, RequestSpec } from './httpConnection.ts';
import { SoakNode } from './node.ts';
import { piecesOf } from './pattern.ts';
import { SoakServer } from './servers.ts';

const MIB = 1024 * 1024;
const HOST = '127.0.0.1';
const TIMEOUT_MS = 1_800_000;
/** Each pauses this often: for each read. */
const PAUSE_MS = 1;
/** The young generation of a worker's heap and what the allocator holds; not a share of any body. */
const MAX_GROWTH_BYTES = 96 * MIB;

export type LargeBody = { name: string; seconds: number; peakBytes: number; problem: string | null };
export type LargeBodiesResult = { bodies: LargeBody[]; growthBytes: number; violations: string[] };

type Case = { name: string; tls: boolean; spec: RequestSpec };

const upload = (bytes: number, chunked: boolean, query: string): RequestSpec => ({
  method: 'POST',
  path: `/digest?sha256${query}`,
  body: { pieces: piecesOf(0, bytes), length: bytes, chunked },
  timeoutMs: TIMEOUT_MS,
});

const download = (bytes: number, chunked: boolean, readPauseMs = 0): RequestSpec => ({
  method: 'GET',
  path: `/bytes/${bytes}/0${chunked ? '?chunked' : ''}`,
  at: 0,
  readPauseMs,
  timeoutMs: TIMEOUT_MS,
});

const echo = (bytes: number, chunked: boolean): RequestSpec => ({
  ...upload(bytes, chunked, ''),
  path: '/echo',
  at: 0,
});

const casesOf = (bytes: number): Case[] => [
  { name: 'upload with a length', tls: false, spec: upload(bytes, false, '') },
  { name: 'upload in chunks', tls: false, spec: upload(bytes, true, '') },
  { name: 'upload to a slow server', tls: false, spec: upload(bytes, false, `&pause=${PAUSE_MS}`) },
  { name: 'upload in chunks to a slow server', tls: false, spec: upload(bytes, true, `&pause=${PAUSE_MS}`) },
  { name: 'download with a length', tls: false, spec: download(bytes, false) },
  { name: 'download in chunks', tls: false, spec: download(bytes, true) },
  { name: 'download by a slow client', tls: false, spec: download(bytes, false, PAUSE_MS) },
  { name: 'download in chunks by a slow client', tls: false, spec: download(bytes, true, PAUSE_MS) },
  { name: 'both ways at once, up with a length and down in chunks', tls: false, spec: echo(bytes, false) },
  { name: 'both ways at once, in chunks', tls: false, spec: echo(bytes, true) },
  { name: 'upload with TLS', tls: true, spec: upload(bytes, false, '') },
  { name: 'download with TLS', tls: true, spec: download(bytes, true) },
];

const problemOf = (
  outcome: Outcome,
  { method, path }: RequestSpec,
  digest: string,
  received: string,
  bytes: number,
) => {
  if (outcome.kind !== 'answered') return JSON.stringify(outcome);
  const { status, length, text, intact } = outcome;
  if (status !== 200) return `status ${status}`;
  if (method === 'POST' && path !== '/echo') return text === `${bytes} ${digest}` ? null : `the server got ${text}`;
  return intact && length === bytes && received === digest ? null : `${length} bytes came, ${received}`;
};

export const runLargeBodies = async (bytes: number, say: (line: string) => void): Promise<LargeBodiesResult> => {
  const hash = createHash('sha256');
  for (const piece of piecesOf(0, bytes)) hash.update(piece);
  const digest = hash.digest('hex');
  const folder = mkdtempSync(join(tmpdir(), 'understudy-bodies-'));
  const [http, tls] = await freePorts(2);
  let server: SoakServer | null = null;
  let node: SoakNode | null = null;
  try {
    server = await SoakServer.start('server');
    node = await SoakNode.start({
      config: {
        workers: 1,
        frontends: {
          web: {
            mode: 'http',
            bind: [`${HOST}:${http}`, { address: `${HOST}:${tls}`, tls: { certificates: [makeCertificate(folder)] } }],
            use: 'web',
          },
        },
        backends: { web: { servers: [{ name: 'server', address: `${HOST}:${server.httpPort}` }] } },
      },
    });
    const before = node.rssBytes;
    const bodies: LargeBody[] = [];
    for (const { name, tls: isTls, spec } of casesOf(bytes)) {
      const startedMs = performance.now();
      const connection = await HttpConnection.open({ host: HOST, port: isTls ? tls! : http!, tls: isTls });
      const received = createHash('sha256');
      const outcome = await connection.request({ ...spec, onPayload: (part) => received.update(part) });
      connection.close();
      const problem = problemOf(outcome, spec, digest, received.digest('hex'), bytes);
      const seconds = (performance.now() - startedMs) / 1_000;
      bodies.push({ name, seconds, peakBytes: node.peakRssBytes, problem });
      say(
        `${name}: ${seconds.toFixed(1)} s, ${(bytes / MIB / seconds).toFixed(0)} MiB/s, ` +
          `RSS of the proxy at most ${(node.peakRssBytes / MIB).toFixed(1)} MiB${problem ? `: ${problem}` : ''}`,
      );
    }
    const growthBytes = node.peakRssBytes - before;
    const violations = bodies.flatMap(({ name, problem }) => (problem === null ? [] : [`${name}: ${problem}`]));
    if (growthBytes > MAX_GROWTH_BYTES) violations.push(`the proxy grew by ${(growthBytes / MIB).toFixed(1)} MiB`);
    return { bodies, growthBytes, violations };
  } finally {
    await node?.end();
    await server?.kill();
    rmSync(folder, { recursive: true, force: true });
  }
};

if (import.meta.main) {
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(130));
  const bytes = parseSize(process.argv[2] ?? '2GiB');
  if (bytes === null) throw new Error(`${process.argv[2]} is not a size; allowed are forms like 64MiB, 2GiB`);
  const result = await runLargeBodies(bytes, (line) => console.log(line));
  console.log(JSON.stringify(result, null, 2));
  if (result.violations.length > 0) process.exitCode = 1;
}
