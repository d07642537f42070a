/**
 * A data-plane worker: listens, serves, and reports. It decides nothing about health: which servers take traffic comes
 * from the control plane.
 */
import assert from 'node:assert/strict';
import { parentPort, workerData } from 'node:worker_threads';
import { codeOf, messageOf } from '../errors.ts';
import { Reactor } from '../net/reactor.ts';
import { takeUsualPriority } from '../threads.ts';
import { AccessLog, newAccessRecord } from './accessLog.ts';
import { Backend } from './backend.ts';
import type { Server } from './backend.ts';
import { Counters } from './counters.ts';
import type { WorkerMemory } from './counters.ts';
import type { Engine, Frontend } from './engine.ts';
import { Histograms } from './histograms.ts';
import { Listener } from './listener.ts';
import type { FromWorker, ListenerModel, Model, ServerModel, ToWorker } from './model.ts';
import { Observer } from './observer.ts';
import { proxyHeaderV1, proxyHeaderV2 } from './proxyProtocol.ts';
import { compileRules } from './rules.ts';
import type { Route } from './serverConnections.ts';
import { ClientContext } from './tlsClient.ts';

/** What a worker is started with. */
export type WorkerData = {
  index: number;
  memory: WorkerMemory;
  descriptors: SharedArrayBuffer;
  observedRows: SharedArrayBuffer;
  log: SharedArrayBuffer;
  ticketKeys: Uint8Array;
  /** Different at each start of the node: what ids of requests begin with. */
  epoch: string;
};

takeUsualPriority();
const port = parentPort;
assert(port, 'a proxy worker runs as a worker thread');
const say = (message: FromWorker) => port.postMessage(message);

const { index, memory, descriptors: owned, observedRows, log, ticketKeys, epoch } = workerData as WorkerData;
const reactor = new Reactor(owned);
const counters = new Counters(memory);
const backends = new Map<string, Backend>();
const frontends = new Map<string, Frontend>();
/** OpenSSL's memory is not the garbage collector's: contexts of servers that are gone have to be freed. */
const routes = new Map<Server, { model: ServerModel; route: Route; context: ClientContext | null }>();
let lastId = 0;

const routeOf = (server: Server): Route => {
  const { model } = server;
  const known = routes.get(server);
  if (known?.model === model) return known.route;
  const { address, tls, sendProxy } = model;
  // A reload that changes nothing of it keeps the context, and with it the session that the server will take up again.
  const isSame = known?.context && JSON.stringify(known.model.tls) === JSON.stringify(tls);
  if (!isSame) known?.context?.free();
  const context = isSame ? known.context : tls ? new ClientContext(tls) : null;
  const header = sendProxy === 'v1' ? proxyHeaderV1 : proxyHeaderV2;
  const route: Route = {
    endpoint: address,
    makeWire: context ? (fd) => context.connect(fd) : null,
    preambleFor: sendProxy ? (client) => header(client.remote, client.local) : null,
  };
  routes.set(server, { model, route, context });
  return route;
};

const forgetRoutes = (): void => {
  const present = new Set<Server>();
  for (const { servers } of backends.values()) for (const server of servers.values()) present.add(server);
  for (const [server, { context }] of routes) {
    if (present.has(server)) continue;
    context?.free();
    routes.delete(server);
  }
};

const engine: Engine = {
  reactor,
  counters,
  histograms: new Histograms(memory.histograms),
  observer: new Observer(observedRows, counters, {
    say,
    nowMs: () => reactor.nowMs,
    later: (ms, callback) => {
      const timer = reactor.timers.make(callback);
      timer.set(ms);
      return () => timer.drop();
    },
  }),
  accessLog: new AccessLog(log),
  record: newAccessRecord('http'),
  ticketKeys: Buffer.from(ticketKeys),
  connections: 0,
  backend: (name) => backends.get(name),
  routeOf,
  nextId: () => `${epoch}-${index.toString(36)}-${(++lastId).toString(36)}`,
};

const listeners = new Map<string, Listener>();
/** Listeners that take nothing new and still have sessions; the same id may be listening again beside them. */
const draining = new Set<Listener>();
let isLeaving = false;

const owner = {
  frontend: (name: string) => frontends.get(name),
  onDrained: (listener: Listener) => {
    if (draining.delete(listener)) say({ kind: 'listenerDrained', id: listener.model.id });
    leaveWhenDone();
  },
};

const configure = (model: Model): void => {
  for (const backendModel of model.backends) {
    const known = backends.get(backendModel.name);
    if (known) {
      known.configure(backendModel);
      continue;
    }
    const { name } = backendModel;
    const tellOthers = () => say({ kind: 'freed', pool: name });
    // Chance here only spreads load; nothing that is recorded depends on it.
    const ports = {
      counters,
      timers: reactor.timers,
      random: Math.random,
      index,
      tellOthers,
    };
    backends.set(name, new Backend(backendModel, ports));
  }
  const kept = new Set(model.backends.map(({ name }) => name));
  for (const [name, backend] of backends) {
    if (kept.has(name)) continue;
    for (const server of backend.servers.values()) server.retire();
    backends.delete(name);
  }
  const context = {
    usableServers: (backend: string) => backends.get(backend)?.usable ?? 0,
    // Compared between workers, hence not each one's own time.
    nowMs: () => Number(process.hrtime.bigint() / 1000n) / 1000,
  };
  for (const frontend of model.frontends) {
    frontends.set(frontend.name, { model: frontend, rules: compileRules(frontend.rules, context) });
  }
  forgetRoutes();
  engine.observer.configure(model.backends);
};

const listen = (model: ListenerModel, descriptors: number[]): void => {
  const { id } = model;
  const frontend = frontends.get(model.frontend);
  try {
    assert(frontend, 'a frontend is configured before its listeners');
    const known = listeners.get(id);
    if (known && known.isTls === (model.tls !== null)) {
      known.renew(model);
      known.inherit(descriptors);
      say({ kind: 'listening', id });
      return;
    }
    // With TLS now, or without it now: the new one takes over, sessions of the old one go on.
    if (known) stopListening(known, false);
    const listener = new Listener(engine, owner, model, frontend.model.slot, descriptors);
    listeners.set(id, listener);
    say({ kind: 'listening', id });
  } catch (error) {
    say({ kind: 'listenFailed', id, code: codeOf(error), message: messageOf(error) });
  }
};

/** Takes nothing new from now on. What is under way goes on, and the id is free for another listener. */
const stopListening = (listener: Listener, closes = true): void => {
  listeners.delete(listener.model.id);
  draining.add(listener);
  listener.stop(closes);
};

const drainListener = (id: string, closes = true): void => {
  const listener = listeners.get(id);
  if (!listener) {
    if (![...draining].some(({ model }) => model.id === id)) say({ kind: 'listenerDrained', id });
    return;
  }
  stopListening(listener, closes);
  listener.drain();
  listener.reportDrained();
};

const closeListener = (id: string): void => {
  const listener = listeners.get(id);
  if (listener) stopListening(listener);
  for (const drained of [...draining]) {
    if (drained.model.id !== id) continue;
    drained.destroySessions();
    drained.reportDrained();
  }
};

/** The thread ends when its last session does; until then it still hears of weights, limits and shutdowns. */
const leaveWhenDone = (): void => {
  if (isLeaving && draining.size === 0) reactor.stop();
};

port.on('message', (message: ToWorker) => {
  switch (message.kind) {
    case 'configure':
      return configure(message.model);
    case 'weights':
      return backends.get(message.pool)?.setWeights(message.weights, message.draining);
    case 'listen':
      return listen(message.listener, message.descriptors);
    case 'inherit':
      return listeners.get(message.id)?.inherit(message.descriptors);
    case 'giveAway':
      return listeners.get(message.id)?.giveAway(message.descriptors);
    case 'drainListener':
      return drainListener(message.id);
    case 'closeListener':
      return closeListener(message.id);
    case 'shutdownSessions':
      return backends.get(message.pool)?.shutdownSessions(message.server);
    case 'freed':
      return backends.get(message.pool)?.wakeWaiters();
    case 'drain':
      isLeaving = true;
      // Whoever waits there is another worker's.
      for (const id of [...listeners.keys()]) drainListener(id, false);
      port.unref();
      for (const backend of backends.values()) for (const server of backend.servers.values()) server.idle.stop();
      leaveWhenDone();
      return;
  }
});

say({ kind: 'ready' });
