/** Clients that speak HTTP: on connections that they keep, on new ones, reading slowly, with TLS, in HTTP/2. */
import { once } from 'node:events';
import { connect as connectHttp2 } from 'node:http2';
import type { ClientHttp2Session } from 'node:http2';
import { crc32 } from 'node:zlib';
import { HttpConnection } from './httpConnection.ts';
import type { Outcome, RequestSpec } from './httpConnection.ts';
import { isPatternAt, piecesOf } from './pattern.ts';
import { addViolation, countDone } from './tally.ts';
import { HOST, integer, pick } from './world.ts';
import type { World } from './world.ts';

const KIB = 1024;
/** No answer takes this long, whatever dies: that a client gives up is a fault. */
const TIMEOUT_MS = 60_000;
const SLOW_READ_PAUSE_MS = 50;
/** Requests on one connection before a client takes a new one. */
const MAX_REQUESTS = 50;

type Asked = RequestSpec & {
  what: string;
  isIdempotent: boolean;
  /** Of the answer; null where the text tells. */
  length: number | null;
  text: string | null;
};

const getBytes = (what: string, length: number, more = ''): Asked => {
  const at = integer(1_000_000);
  return {
    what,
    method: 'GET',
    path: `/bytes/${length}/${at}${more}`,
    at,
    isIdempotent: true,
    length,
    text: null,
    timeoutMs: TIMEOUT_MS,
  };
};

const post = (what: string, length: number, chunked: boolean, path: '/digest' | '/echo' = '/digest'): Asked => {
  const at = integer(1_000_000);
  let sum = 0;
  if (path === '/digest') for (const piece of piecesOf(at, length)) sum = crc32(piece, sum);
  return {
    what,
    method: 'POST',
    path,
    ...(path === '/echo' ? { at } : {}),
    body: { pieces: piecesOf(at, length), length, chunked },
    isIdempotent: false,
    length: path === '/echo' ? length : null,
    text: path === '/digest' ? `${length} ${sum}` : null,
    timeoutMs: TIMEOUT_MS,
  };
};

const bare = (method: string): Asked => ({
  what: method,
  method,
  path: method === 'HEAD' ? '/bytes/1000/0' : '/',
  isIdempotent: true,
  length: method === 'HEAD' ? 0 : null,
  text: method === 'HEAD' ? null : 'ok',
  timeoutMs: TIMEOUT_MS,
});

/** Weighted: those that stand several times are asked as often. */
const MIX: (() => Asked)[] = [
  ...Array.from({ length: 8 }, () => () => getBytes('GET', integer(4 * KIB))),
  () => getBytes('GET that takes time', integer(4 * KIB), `?after=${50 + integer(1_000)}`),
  () => getBytes('GET chunked', integer(64 * KIB), '?chunked'),
  () => getBytes('GET large', 256 * KIB + integer(512 * KIB)),
  () => bare(pick(['HEAD', 'DELETE', 'OPTIONS'])),
  () => post('POST', integer(4 * KIB), false),
  () => post('POST chunked', 1 + integer(64 * KIB), true),
  () => post('POST large', 256 * KIB + integer(512 * KIB), pick([true, false])),
  () => post('POST echoed', 1 + integer(64 * KIB), true, '/echo'),
];

const settle = ({ tally }: World, asked: Asked, startedMs: number, outcome: Outcome): void => {
  const atMs = Date.now();
  const { what, isIdempotent } = asked;
  const failed = (why: string) => {
    if (isIdempotent) addViolation(tally, `${what} ${asked.path}: ${why}`);
    else tally.lost.push({ what, startedMs, atMs, why });
  };
  if (outcome.kind === 'cutOff') tally.cutOffs.push({ what, server: outcome.server, atMs });
  else if (outcome.kind === 'unanswered') failed(outcome.why);
  else if (outcome.status !== 200) failed(`status ${outcome.status}`);
  else if (!outcome.intact || (asked.length !== null && outcome.length !== asked.length))
    addViolation(tally, `${what} ${asked.path}: not the bytes that were asked for (${outcome.length})`);
  else if (asked.text !== null && outcome.text !== asked.text)
    addViolation(tally, `${what} ${asked.path}: ${outcome.text} instead of ${asked.text}`);
  else countDone(tally, what, outcome.length);
};

const open = async (world: World, tls: boolean): Promise<HttpConnection | null> => {
  try {
    return await HttpConnection.open({ host: HOST, port: tls ? world.ports.tls : world.ports.http, tls });
  } catch (error) {
    addViolation(world.tally, `no connection: ${String(error)}`);
    await world.sleep(1_000);
    return null;
  }
};

const ask = async (world: World, connection: HttpConnection, asked: Asked): Promise<void> => {
  const startedMs = Date.now();
  settle(world, asked, startedMs, await connection.request(asked));
};

const keepAliveClient = async (world: World, tls: boolean): Promise<void> => {
  while (!world.stopped) {
    const connection = await open(world, tls);
    if (!connection) continue;
    for (let asked = 0; asked < MAX_REQUESTS && connection.isUsable && !world.stopped; asked++) {
      await world.think();
      // It was closed meanwhile, as it may be: nothing was asked yet.
      if (!connection.isUsable) break;
      await ask(world, connection, pick(MIX)());
    }
    connection.close();
  }
};

export const keptConnections = (world: World): Promise<void> => keepAliveClient(world, false);
export const tlsConnections = (world: World): Promise<void> => keepAliveClient(world, true);

export const newConnections = async (world: World): Promise<void> => {
  while (!world.stopped) {
    const connection = await open(world, false);
    if (!connection) continue;
    await ask(world, connection, { ...getBytes('GET on a new connection', integer(4 * KIB)) });
    connection.close();
    await world.think();
  }
};

export const slowReaders = async (world: World): Promise<void> => {
  while (!world.stopped) {
    const connection = await open(world, false);
    if (!connection) continue;
    const asked = getBytes('GET read slowly', 2_048 * KIB, pick(['', '?chunked']));
    await ask(world, connection, { ...asked, readPauseMs: SLOW_READ_PAUSE_MS });
    connection.close();
    await world.think();
  }
};

const askHttp2 = (session: ClientHttp2Session, { path, at = 0, timeoutMs }: Asked): Promise<Outcome> =>
  new Promise((done) => {
    const stream = session.request({ ':path': path, ':authority': 'soak.test' });
    let status = 0;
    let server = '';
    let length = 0;
    let intact = true;
    let why = 'closed';
    stream.setTimeout(timeoutMs, () => stream.close());
    stream.on('response', (fields) => {
      status = fields[':status'] ?? 0;
      server = String(fields['x-server'] ?? '');
    });
    stream.on('data', (bytes: Buffer) => {
      if (!isPatternAt(bytes, at + length)) intact = false;
      length += bytes.length;
    });
    stream.on('error', (error: NodeJS.ErrnoException) => (why = error.code ?? error.message));
    let isWhole = false;
    stream.on('end', () => (isWhole = true));
    stream.on('close', () => {
      if (status === 0) done({ kind: 'unanswered', why });
      else if (!isWhole || stream.rstCode !== 0) done({ kind: 'cutOff', server, status });
      else done({ kind: 'answered', status, server, length, intact, text: '' });
    });
  });

const openHttp2 = (world: World): Promise<ClientHttp2Session | null> =>
  new Promise((done) => {
    const session = connectHttp2(`https://${HOST}:${world.ports.tls}`, { rejectUnauthorized: false });
    session.on('error', (error) => {
      addViolation(world.tally, `HTTP/2: ${String(error)}`);
      done(null);
    });
    session.once('connect', () => done(session));
  });

/** A few requests at a time on each connection. */
export const http2Connections = async (world: World): Promise<void> => {
  while (!world.stopped) {
    const session = await openHttp2(world);
    if (!session) {
      await world.sleep(1_000);
      continue;
    }
    for (let rounds = 0; rounds < MAX_REQUESTS && !session.closed && !world.stopped; rounds++) {
      await world.think();
      if (session.closed || session.destroyed) break;
      const startedMs = Date.now();
      const all = Array.from({ length: 1 + integer(4) }, () =>
        getBytes('GET in HTTP/2', integer(32 * KIB), pick(['', '?after=300'])),
      );
      await Promise.all(all.map(async (asked) => settle(world, asked, startedMs, await askHttp2(session, asked))));
    }
    if (session.destroyed) continue;
    const closed = once(session, 'close');
    session.close();
    await closed;
  }
};
