/**
 * A data-plane worker: listens, serves, and reports. It decides nothing about health: which servers take traffic comes
 * from the control plane.
 */
import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import type { Server as NetServer } from 'node:net';
import { createSecureContext, createServer as createTlsServer } from 'node:tls';
import type { SecureContext, Server as TlsServer } from 'node:tls';
import { parentPort, workerData } from 'node:worker_threads';
import { X509Certificate } from 'node:crypto';
import { codeOf, messageOf } from '../errors.ts';
import { freeBind } from '../net/freeBind.ts';
import { Backend } from './backend.ts';
import { Counters } from './counters.ts';
import type { WorkerMemory } from './counters.ts';
import { compileRules } from './engine.ts';
import type { ClientSession, ClientSocket, Engine, Frontend } from './engine.ts';
import { serveHttp } from './httpEngine.ts';
import type { FromWorker, ListenerModel, Model, ToWorker } from './model.ts';
import { serveTcp } from './tcpEngine.ts';
import { takeUsualPriority } from '../threads.ts';

/** Connections that the kernel may hold for us while we are busy; it caps the number at net.core.somaxconn. */
const BACKLOG = 4096;
/** A connection that is not yet a session counts nowhere and is drained by nobody: it must not take long. */
const HANDSHAKE_TIMEOUT_MS = 10_000;

takeUsualPriority();
const port = parentPort;
assert(port, 'a proxy worker runs as a worker thread');
const say = (message: FromWorker) => port.postMessage(message);

const counters = new Counters(workerData as WorkerMemory);
const backends = new Map<string, Backend>();
const frontends = new Map<string, Frontend>();
const engine: Engine = { counters, backend: (name) => backends.get(name) };

/** `certificates` are those that it has now: they can be renewed while it listens. */
type Listener = {
  model: ListenerModel;
  server: NetServer;
  sessions: Set<ClientSession>;
  drained: boolean;
  certificates: Certificate[];
};
type Certificate = { names: X509Certificate; pem: string; context: SecureContext };

const listeners = new Map<string, Listener>();
/** Listeners that take nothing new and still have sessions; the same id may be listening again beside them. */
const draining = new Set<Listener>();

const configure = (model: Model): void => {
  for (const backendModel of model.backends) {
    const known = backends.get(backendModel.name);
    if (known) {
      known.configure(backendModel);
      continue;
    }
    const { name } = backendModel;
    // Chance here only spreads load; nothing that is recorded depends on it.
    backends.set(name, new Backend(backendModel, counters, Math.random, () => say({ kind: 'freed', pool: name })));
  }
  const kept = new Set(model.backends.map(({ name }) => name));
  for (const [name, backend] of backends) {
    if (kept.has(name)) continue;
    for (const server of backend.servers.values()) server.retire();
    backends.delete(name);
  }
  for (const frontend of model.frontends) {
    frontends.set(frontend.name, { model: frontend, rules: compileRules(frontend.rules) });
  }
};

const serve = (listener: Listener, socket: ClientSocket): void => {
  const { frontend: name } = listener.model;
  const frontend = frontends.get(name);
  if (!frontend || !counters.take(frontend.model.slot, frontend.model.maxConnections)) {
    socket.destroy();
    return;
  }
  const { slot } = frontend.model;
  counters.add(slot, 'sessions');
  let session: ClientSession | null = null;
  let closed = false;
  const onClosed = () => {
    if (closed) return;
    closed = true;
    counters.change(slot, 'active', -1);
    if (session) listener.sessions.delete(session);
    reportDrained(listener);
  };
  session =
    frontend.model.mode === 'http'
      ? serveHttp(engine, () => frontends.get(name) ?? frontend, socket, onClosed)
      : serveTcp(engine, frontend, socket, onClosed);
  if (closed) return;
  listener.sessions.add(session);
  // Its TLS handshake ended after the listener was closed.
  if (listener.drained) session.destroy();
};

const reportDrained = (listener: Listener): void => {
  if (!listener.drained || listener.sessions.size > 0 || !draining.delete(listener)) return;
  say({ kind: 'listenerDrained', id: listener.model.id });
};

const portOf = (server: NetServer, model: ListenerModel): number => {
  const bound = server.address();
  return typeof bound === 'object' && bound ? bound.port : model.address.port;
};

const listen = (model: ListenerModel): void => {
  const { id, address } = model;
  try {
    const certificates = (model.certificates ?? []).map(certificateOf);
    const known = listeners.get(id);
    if (known && (known.model.certificates === null) === (model.certificates === null)) {
      renew(known, model, certificates);
      say({ kind: 'listening', id, port: portOf(known.server, model) });
      return;
    }
    // With TLS now, or without it now: the new one takes over, sessions of the old one go on.
    if (known) stopListening(known);
    const listener: Listener = { model, server: createServer(), sessions: new Set(), drained: false, certificates };
    listener.server = model.certificates ? tlsServer(listener) : createServer({ allowHalfOpen: true });
    const { server } = listener;
    server.on(model.certificates ? 'secureConnection' : 'connection', (socket: ClientSocket) =>
      serve(listener, socket),
    );
    // A handshake that fails is the client's affair; but with half-open sockets Node leaves the closing to us.
    server.on('tlsClientError', (_error: Error, socket: ClientSocket) => socket.destroy());
    server.on('error', (error) => {
      // One that listens goes on: accepting can fail for want of file descriptors, and works again when there are some.
      if (server.listening) return;
      if (listeners.get(id) === listener) listeners.delete(id);
      say({ kind: 'listenFailed', id, code: codeOf(error), message: messageOf(error) });
    });
    listeners.set(id, listener);
    const host = address.host === '*' ? {} : { host: address.host };
    const where = model.freeBind ? { fd: freeBind(address) } : { port: address.port, ...host, reusePort: true };
    server.listen({ ...where, backlog: BACKLOG }, () => say({ kind: 'listening', id, port: portOf(server, model) }));
  } catch (error) {
    say({ kind: 'listenFailed', id, code: codeOf(error), message: messageOf(error) });
  }
};

const certificateOf = (pem: string): Certificate => ({
  names: new X509Certificate(pem),
  pem,
  context: createSecureContext({ cert: pem, key: pem }),
});

const renew = (listener: Listener, model: ListenerModel, certificates: Certificate[]): void => {
  listener.model = model;
  listener.certificates = certificates;
  const first = certificates[0];
  if (first) (listener.server as TlsServer).setSecureContext({ cert: first.pem, key: first.pem });
};

/** The first certificate serves those who name none, or a name that no certificate has. */
const tlsServer = (listener: Listener): NetServer => {
  const first = listener.certificates[0]!;
  return createTlsServer({
    cert: first.pem,
    key: first.pem,
    allowHalfOpen: true,
    // Mode tcp carries any protocol: with a list of ours, Node would refuse clients that name only others.
    ...(frontends.get(listener.model.frontend)?.model.mode === 'http' ? { ALPNProtocols: ['http/1.1'] } : {}),
    handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
    SNICallback: (name, done) =>
      done(null, listener.certificates.find(({ names }) => names.checkHost(name) !== undefined)?.context),
  });
};

/** Takes nothing new from now on. What is under way goes on, and the id is free for another listener. */
const stopListening = (listener: Listener): void => {
  listeners.delete(listener.model.id);
  draining.add(listener);
  listener.drained = true;
  listener.server.close();
};

const drainListener = (id: string): void => {
  const listener = listeners.get(id);
  if (!listener) {
    if (![...draining].some(({ model }) => model.id === id)) say({ kind: 'listenerDrained', id });
    return;
  }
  stopListening(listener);
  for (const session of [...listener.sessions]) session.drain();
  reportDrained(listener);
};

const closeListener = (id: string): void => {
  const listener = listeners.get(id);
  if (listener) stopListening(listener);
  for (const drained of [...draining]) {
    if (drained.model.id !== id) continue;
    for (const session of [...drained.sessions]) session.destroy();
    reportDrained(drained);
  }
};

port.on('message', (message: ToWorker) => {
  switch (message.kind) {
    case 'configure':
      return configure(message.model);
    case 'weights':
      return backends.get(message.pool)?.setWeights(message.weights);
    case 'listen':
      return listen(message.listener);
    case 'drainListener':
      return drainListener(message.id);
    case 'closeListener':
      return closeListener(message.id);
    case 'shutdownSessions':
      return backends.get(message.pool)?.shutdownSessions(message.server);
    case 'freed':
      return backends.get(message.pool)?.wakeWaiters();
    case 'drain':
      for (const id of [...listeners.keys()]) drainListener(id);
      // The thread ends when its last session does; until then it still hears of weights, limits and shutdowns.
      port.unref();
      for (const backend of backends.values()) for (const server of backend.servers.values()) server.idle.stop();
      return;
  }
});

say({ kind: 'ready' });
