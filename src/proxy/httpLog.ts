/** A line of the access log for one request: the worker's record is filled in and given away at once. */
import type { Termination } from './accessLog.ts';
import { GAUGE } from './counters.ts';
import type { Exchange } from './exchange.ts';
import { headerOf } from './fields.ts';
import type { RequestHead } from './head.ts';
import type { HttpClient } from './httpClient.ts';
import type { Stream } from './stream.ts';

export type Logged = {
  /** Null when the head was not valid. */
  head: RequestHead | null;
  status: number;
  bytesOut: number;
  id: string;
  termination: Termination;
  exchange: Exchange | null;
  /** In a tarpit, which the log has as HAProxy does: as time in a queue. */
  heldMs?: number;
};

const NONE: readonly (string | null)[] = [];

/** From one moment to another; -1 when it did not come to the second. */
const between = (fromMs: number, toMs: number): number => (fromMs < 0 || toMs < 0 ? -1 : Math.max(0, toMs - fromMs));

export const logRequest = (client: HttpClient, logged: Logged): void => {
  const { engine, frontend, moments, stream, facts } = client;
  const { log } = frontend.model;
  if (!log) return;
  const { head, exchange, id } = logged;
  const { record, reactor, counters } = engine;
  const beganMs = moments.beganMs < 0 ? reactor.nowMs : moments.beganMs;
  record.mode = 'http';
  record.startedMs = performance.timeOrigin + beganMs;
  record.handshakeMs = moments.handshakeMs;
  record.idleMs = moments.idleMs;
  record.requestMs = head ? between(beganMs, moments.headMs) : -1;
  record.queueMs = logged.heldMs ?? -1;
  record.connectMs = -1;
  record.responseMs = -1;
  record.totalMs = reactor.nowMs - beganMs;
  record.clientAddress = stream.remote.address;
  record.clientPort = stream.remote.port;
  record.frontend = frontend.model.name;
  record.status = logged.status;
  record.bytesRead = logged.bytesOut;
  record.bytesUploaded = client.bytesIn;
  client.bytesIn = 0;
  record.method = head?.method ?? '';
  record.target = head?.target ?? '';
  record.version = head ? versionOf(head, stream) : '';
  record.host = head?.host ?? '';
  record.user = head ? userOf(headerOf(head.fields, 'authorization')) : null;
  record.requestHeaders =
    log.requestHeaders.length === 0 || !head ? NONE : log.requestHeaders.map((name) => headerOf(head.fields, name));
  record.responseHeaders = exchange?.loggedFields ?? NONE;
  record.requestId = id === '' ? null : id;
  record.termination = logged.termination;
  record.cookies = '--';
  record.processConnections = engine.connections;
  record.frontendConnections = counters.gauge(frontend.model.slot, GAUGE.active);
  const { tls } = stream;
  record.tlsVersion = tls?.protocol ?? null;
  record.tlsCipher = tls?.cipher ?? null;
  record.serverName = facts.serverName;
  if (exchange) aboutServer(client, exchange);
  else {
    record.backend = frontend.model.name;
    record.server = null;
    record.retries = 0;
    record.redispatched = false;
    record.backendConnections = 0;
    record.serverConnections = 0;
    record.serverQueue = 0;
    record.backendQueue = 0;
  }
  engine.accessLog.log(record, log);
};

const aboutServer = ({ engine, moments }: HttpClient, exchange: Exchange): void => {
  const { record, counters } = engine;
  const { backend, server } = exchange;
  const { placedMs, connectedMs, respondedMs } = exchange.moments;
  record.queueMs = between(moments.headMs, placedMs);
  record.connectMs = between(placedMs, connectedMs);
  record.responseMs = between(connectedMs, respondedMs);
  record.backend = backend.name;
  record.server = server?.name ?? null;
  record.retries = exchange.retries;
  record.redispatched = exchange.redispatched;
  record.backendConnections = counters.gauge(backend.model.slot, GAUGE.active);
  record.serverConnections = server ? counters.gauge(server.model.slot, GAUGE.active) : 0;
  record.serverQueue = server ? counters.gauge(server.model.slot, GAUGE.queued) : 0;
  record.backendQueue = counters.gauge(backend.model.slot, GAUGE.queued);
};

/** A request of HTTP/2 comes to us in the words of HTTP/1.1. */
const versionOf = ({ minor }: RequestHead, { tls }: Stream): string =>
  tls?.alpn === 'h2' ? 'HTTP/2.0' : minor === 1 ? 'HTTP/1.1' : 'HTTP/1.0';

/** Of basic authentication (RFC 7617); whoever else is named there stays unnamed. */
const userOf = (authorization: string | null): string | null => {
  if (authorization === null || !/^basic /i.test(authorization)) return null;
  const credentials = Buffer.from(authorization.slice('basic '.length), 'base64').toString('latin1');
  const colon = credentials.indexOf(':');
  return colon === -1 ? null : credentials.slice(0, colon);
};
