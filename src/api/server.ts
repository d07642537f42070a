/** The HTTP API of a node. Reading needs a token only where the API is not on loopback; commands need it always. */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { Readable } from 'node:stream';
import picomatch from 'picomatch';
import Fastify from 'fastify';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { AnyStateMachine } from 'xstate';
import { shapeOf } from '../../actors/decide.ts';
import type { DeskCommand } from '../../machines/commandDesk.ts';
import { machines } from '../../machines/index.ts';
import { isReload, requestSchema, splitRequest } from '../bus/commandMessage.ts';
import type { Addressing } from '../bus/commandMessage.ts';
import type { Cluster } from '../cluster/cluster.ts';
import type { ClusterAnswer } from '../cluster/clusterCommands.ts';
import { formatEndpoint, isLoopback } from '../config/units.ts';
import { messageOf, UnderstudyError } from '../errors.ts';
import { JournalQueries } from '../journal/queries.ts';
import type { RowFilter } from '../journal/reader.ts';
import { viewOfEntry } from '../journal/view.ts';
import type { ReloadResult, UnderstudyNode } from '../node.ts';
import { parseTime } from '../time.ts';
import { addConfigRoutes, CONFIG_PATH } from './config.ts';
import { CONTENT_TYPE } from './exposition.ts';
import { metricsOf } from './metrics.ts';
import { problemsOf, stateOfNode } from './state.ts';
import { Stats } from './statsCsv.ts';

/** Records of one answer at the most; who wants more asks from the last seq on. */
const MAX_RECORDS = 1_000;
/** What a slow reader of the event stream may have waiting before it is let go. */
const MAX_STREAM_BYTES = 1024 * 1024;
/** A comment this often keeps proxies from closing a quiet stream. */
const KEEP_ALIVE_MS = 15_000;

export type Api = { url: string; tokenFile: string | null; close(): Promise<void> };

export type ApiOptions = {
  node: UnderstudyNode;
  /** Reads the configuration file again and applies it. */
  reload(): Promise<ReloadResult>;
};

export const startApi = async ({ node, reload }: ApiOptions): Promise<Api> => {
  const { token, file: tokenFile } = tokenOf(node);
  const { listen } = node.config.api;
  const needsTokenToRead = !isLoopback(listen.host);
  const app = Fastify({ logger: false, forceCloseConnections: true });
  const queries = new JournalQueries(node.journal.path);
  const stats = new Stats(node);

  app.setErrorHandler((error, _request, reply) => sendError(reply, error));
  app.addHook('onRequest', async (request, reply) => {
    const reads = request.method === 'GET' || request.method === 'HEAD';
    const isSecret = request.url.startsWith(CONFIG_PATH);
    const open = reads && !isSecret && (!needsTokenToRead || request.url === '/healthz');
    if (open || hasToken(request, token)) return;
    await reply.code(401).send({ code: 'TOKEN_NEEDED', message: 'Authorization: Bearer TOKEN is needed' });
  });

  app.get('/healthz', () => {
    const problems = problemsOf(node);
    return { status: problems.length === 0 ? 'ok' : 'degraded', problems };
  });
  app.get<{ Querystring: { only?: string } }>('/metrics', ({ query }, reply) =>
    reply.type(CONTENT_TYPE).send(Readable.from(metricsOf(node, query.only === 'node'))),
  );
  // As HAProxy's: what stands behind the semicolons are options, and of those `csv` is the one that is answered.
  app.get<{ Params: { '*': string } }>('/stats;*', ({ params }, reply) => {
    const options = params['*'].split(';');
    if (!options.includes('csv')) {
      reply.callNotFound();
      return reply;
    }
    return reply.type('text/plain').header('cache-control', 'no-cache').send(Readable.from(stats.csv()));
  });
  // The file of the token means something on this machine only.
  node.cluster?.ask.answer('state', () => stateOfNode(node, null));
  app.get<{ Querystring: { node?: string } }>('/api/state', ({ query }) =>
    query.node === undefined ? stateOfNode(node, tokenFile) : stateElsewhere(node, query.node),
  );
  addConfigRoutes(app, node);
  app.get('/api/machines', () => ({ machines: Object.keys(machines) }));
  app.get<{ Params: { name: string } }>('/api/machines/:name', (request, reply) => {
    const known = Object.hasOwn(machines, request.params.name);
    const machine = known ? (machines as Record<string, AnyStateMachine>)[request.params.name] : undefined;
    if (!machine) {
      const message = `there is no machine ${request.params.name}; there are ${Object.keys(machines).join(', ')}`;
      return reply.code(404).send({ code: 'NOT_FOUND', message });
    }
    return { name: request.params.name, config: JSON.parse(shapeOf(machine)) as unknown };
  });
  app.get<{ Querystring: Record<string, string> }>('/api/events', async ({ query }) => {
    const filter = filterOf(query, node.clock.wallUs());
    // The run of who is asked about is written first, so that the answer reaches the present moment.
    if (filter.actor !== undefined) node.journal.closeRuns(filter.actor);
    await node.journal.written();
    return { records: await queries.records(filter) };
  });
  app.get<{ Querystring: Record<string, string> }>('/api/events/stream', (request, reply) =>
    streamEvents(node, request, reply),
  );
  app.post('/api/commands', async (request, reply) => {
    const parsed = requestSchema.safeParse(request.body);
    if (!parsed.success) {
      const message = parsed.error.issues
        .map((issue) => (issue.path.length === 0 ? issue.message : `${issue.path.join('.')}: ${issue.message}`))
        .join('; ');
      return reply.code(400).send({ code: 'USAGE', message });
    }
    const { command, addressing } = splitRequest(parsed.data);
    if (node.cluster) {
      const result = await giveToCluster(node, node.cluster, command, addressing);
      const isRecorded = result.answers.every((answer) => !('recorded' in answer) || answer.recorded);
      return reply.code(isRecorded ? 200 : 202).send(result);
    }
    refuseCluster(addressing);
    const result = isReload(command) ? await reload() : await node.command(command);
    // Done, but not on disk: 202 says that it has not been made fast.
    return reply.code(result.recorded ? 200 : 202).send(result);
  });

  await bind(app, listen);
  const bound = app.server.address() as AddressInfo;
  return {
    url: `http://${formatEndpoint({ host: bound.address, port: bound.port })}`,
    tokenFile,
    close: async () => {
      await app.close();
      stats.stop();
      await queries.close();
    },
  };
};

/** @throws UnderstudyError NODE_REFUSED, and what asking throws */
const stateElsewhere = ({ cluster }: UnderstudyNode, name: string): Promise<unknown> => {
  if (cluster) return cluster.ask.node(name, 'state');
  throw new UnderstudyError('NODE_REFUSED', `the bus is memory: this node can't ask ${name}`);
};

/** To all nodes, unless it says otherwise; a router's to one node. @throws UnderstudyError */
const giveToCluster = (
  node: UnderstudyNode,
  cluster: Cluster,
  command: DeskCommand,
  { scope, node: named }: Addressing,
): Promise<ClusterAnswer> => {
  const one = 'router' in command ? (named ?? node.config.node) : null;
  if (scope === 'local' || one === node.config.node) return cluster.commands.giveHere(command);
  return cluster.commands.give(command, one);
};

const refuseCluster = ({ scope, node: named }: Addressing): void => {
  if (scope !== 'cluster' && named === undefined) return;
  throw new UnderstudyError('NODE_REFUSED', 'the bus is memory: this node knows of no cluster');
};

const bind = async (app: FastifyInstance, { host, port }: { host: string; port: number }): Promise<void> => {
  try {
    await app.listen({ host: host === '*' ? '::' : host, port });
  } catch (error) {
    const inUse = (error as NodeJS.ErrnoException).code === 'EADDRINUSE';
    throw new UnderstudyError(
      inUse ? 'ADDRESS_IN_USE' : 'ADDRESS_UNAVAILABLE',
      `the API can't listen on ${formatEndpoint({ host, port })}: ${inUse ? 'another program listens there' : messageOf(error)}`,
    );
  }
};

/** The configured token, or one of our own making in a file beside the journal that only its owner can read. */
const tokenOf = (node: UnderstudyNode): { token: string; file: string | null } => {
  const { token } = node.config.api;
  if (typeof token === 'string') return { token, file: null };
  if (token) return { token: readToken(token.file), file: token.file };
  const file = `${node.journal.path}.token`;
  // An empty one is what a full disk leaves behind.
  if (!existsSync(file) || readToken(file) === '') {
    writeFileSync(file, `${randomBytes(24).toString('base64url')}\n`, { mode: 0o600 });
  }
  return { token: readToken(file), file };
};

const readToken = (file: string): string => readFileSync(file, 'utf8').trim();

const hasToken = (request: FastifyRequest, token: string): boolean => {
  // With no token to be known by, nobody is known.
  if (token === '') return false;
  const given = Buffer.from((request.headers.authorization ?? '').replace(/^Bearer /, ''));
  const expected = Buffer.from(token);
  return given.length === expected.length && timingSafeEqual(given, expected);
};

const sendError = (reply: FastifyReply, error: unknown): FastifyReply => {
  const status = (error as { statusCode?: number }).statusCode;
  if (error instanceof UnderstudyError) {
    const unavailable = error.exitStatus === 3 ? 503 : 409;
    return reply.code(error.code === 'USAGE' ? 400 : unavailable).send({ code: error.code, message: error.message });
  }
  return reply.code(status ?? 500).send({ code: status ? 'USAGE' : 'INTERNAL', message: messageOf(error) });
};

const EVENT_PARAMETERS = ['actor', 'type', 'from', 'to', 'fromSeq', 'limit'];

const filterOf = (query: Record<string, string>, nowUs: number): RowFilter => {
  const twice = Object.keys(query).filter((key) => typeof query[key] !== 'string');
  if (twice.length > 0) throw new UnderstudyError('USAGE', `${twice.join(', ')} is given more than once`);
  const unknown = Object.keys(query).filter((key) => !EVENT_PARAMETERS.includes(key));
  if (unknown.length > 0) {
    throw new UnderstudyError('USAGE', `unknown ${unknown.join(', ')}; allowed are ${EVENT_PARAMETERS.join(', ')}`);
  }
  if (query['fromSeq'] !== undefined && !/^\d+$/.test(query['fromSeq'])) {
    throw new UnderstudyError('USAGE', 'fromSeq is the whole number of a record');
  }
  const limit = query['limit'] === undefined ? 100 : Number(query['limit']);
  if (!Number.isInteger(limit) || limit < 1 || limit > MAX_RECORDS) {
    throw new UnderstudyError('USAGE', `limit is a whole number from 1 to ${MAX_RECORDS}`);
  }
  const time = (key: string) => (query[key] === undefined ? undefined : parseTime(query[key], nowUs));
  const since = time('from');
  const until = time('to');
  return {
    limit,
    // Without a beginning the newest are meant; with one, what follows it.
    newestFirst: since === undefined && query['fromSeq'] === undefined,
    ...(query['actor'] === undefined ? {} : { actor: query['actor'] }),
    ...(query['type'] === undefined ? {} : { type: query['type'] }),
    ...(query['fromSeq'] === undefined ? {} : { fromSeq: Number(query['fromSeq']) }),
    ...(since === undefined ? {} : { since }),
    ...(until === undefined ? {} : { until }),
  };
};

/** Server-sent events: every change of a state, as it happens. */
const streamEvents = (node: UnderstudyNode, request: FastifyRequest, reply: FastifyReply): void => {
  const { actor: wantedActor = '**', type: wantedType = '**' } = request.query as { actor?: string; type?: string };
  const isWanted = picomatch(wantedActor.replaceAll(/\*+/g, '**'));
  const isWantedType = picomatch(wantedType.replaceAll(/\*+/g, '**'));
  reply.hijack();
  const { raw } = reply;
  raw.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store', 'x-accel-buffering': 'no' });
  raw.write(': transitions as they happen\n\n');
  const stop = node.system.onTransition((actor, entry) => {
    if (!isWanted(actor.id) || !isWantedType(entry.event.type)) return;
    const view = viewOfEntry(entry, actor.cause);
    raw.write(`${view.seq === null ? '' : `id: ${view.seq}\n`}event: transition\ndata: ${JSON.stringify(view)}\n\n`);
    if (raw.writableLength > MAX_STREAM_BYTES) raw.destroy();
  });
  const keepAlive = setInterval(() => raw.write(': still here\n\n'), KEEP_ALIVE_MS);
  raw.on('close', () => {
    clearInterval(keepAlive);
    stop();
  });
};
