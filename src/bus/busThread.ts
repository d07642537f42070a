/**
 * The thread that speaks NATS, so that neither its parsing nor TLS nor a slow stream ever holds up an election. It
 * connects for ever; what services need of a connection they get as a session.
 */
import assert from 'node:assert/strict';
import { parentPort, workerData } from 'node:worker_threads';
import { jetstream, jetstreamManager } from '@nats-io/jetstream';
import type { NatsConnection, Subscription } from '@nats-io/transport-node';
import type { NatsConfig } from '../config/bus.ts';
import { UnderstudyError } from '../errors.ts';
import { takeUsualPriority } from '../threads.ts';
import { connectNats, natsError } from './connection.ts';
import type { NatsSession, Service } from './service.ts';
import { services } from './services.ts';
import { subjectsOf, tokenOf } from './subjects.ts';

export type BusThreadData = { cluster: string; node: string; journalPath: string; nats: NatsConfig };

export type ToBusThread =
  | { kind: 'publish'; subject: string; data: Uint8Array }
  | { kind: 'subscribe'; id: number; subject: string }
  | { kind: 'unsubscribe'; id: number }
  | { kind: 'request'; id: number; subject: string; data: Uint8Array; timeoutMs: number }
  | { kind: 'flush'; id: number; timeoutMs: number }
  | { kind: 'call'; id: number; service: string; method: string; args: unknown[] }
  | { kind: 'close' };

export type FromBusThread =
  | { kind: 'connected'; server: string; version: string }
  | { kind: 'disconnected'; code: string; message: string }
  | { kind: 'message'; id: number; subject: string; data: Uint8Array; reply: string | null }
  | { kind: 'tooLarge'; subject: string }
  | { kind: 'answer'; id: number; value: unknown }
  | { kind: 'refusal'; id: number; code: string; message: string }
  | { kind: 'event'; service: string; event: { type: string } & Record<string, unknown> }
  | { kind: 'closed' };

/** From one failed first attempt to the next. */
const CONNECT_AGAIN_MS = 2_000;
/** A leaving node waits this long for what its services still have to say. */
const CLOSE_MS = 2_000;

takeUsualPriority();
const port = parentPort;
assert(port, 'the bus runs as a worker thread');
const say = (message: FromBusThread) => port.postMessage(message);
const { cluster, node, journalPath, nats } = workerData as BusThreadData;
const subjects = subjectsOf(cluster);

let connection: NatsConnection | null = null;
let session: (NatsSession & { end: AbortController }) | null = null;
let closing = false;
const subscriptions = new Map<number, { subject: string; live: Subscription | null }>();

const running = new Map<string, Service>(
  Object.entries(services).map(([name, make]) => [
    name,
    make({
      subjects,
      node,
      journalPath,
      nats,
      session: () => session,
      tell: (event) => say({ kind: 'event', service: name, event }),
    }),
  ]),
);

const begin = async (made: NatsConnection): Promise<void> => {
  // Not asked whether JetStream is there: whoever needs it is told by its own first call.
  const manager = await jetstreamManager(made, { checkAPI: false });
  const end = new AbortController();
  const { version, server_name: name } = made.info!;
  session = { connection: made, jetstream: jetstream(made), manager, version, ended: end.signal, end };
  say({ kind: 'connected', server: `${made.getServer()} (${name})`, version });
  for (const service of running.values()) service.connected(session);
};

const end = (code: string, message: string): void => {
  const ended = session;
  session = null;
  ended?.end.abort();
  if (ended) for (const service of running.values()) service.disconnected();
  say({ kind: 'disconnected', code, message });
};

const listen = (made: NatsConnection, id: number): void => {
  const subscription = subscriptions.get(id)!;
  subscription.live = made.subscribe(subscription.subject, {
    callback: (error, message) => {
      if (error) return;
      say({ kind: 'message', id, subject: message.subject, data: message.data, reply: message.reply ?? null });
    },
  });
};

const watch = async (made: NatsConnection): Promise<void> => {
  for await (const status of made.status()) {
    if (closing) return;
    if (status.type === 'disconnect') end('NATS_UNREACHABLE', `the connection to ${status.server} is lost`);
    else if (status.type === 'error') {
      const { code, message } = natsError(status.error, nats.servers);
      if (session === null) say({ kind: 'disconnected', code, message });
    } else if (status.type === 'reconnect') await begin(made);
  }
};

const connectForEver = async (): Promise<void> => {
  for (;;) {
    if (closing) return;
    try {
      connection = await connectNats(nats, { name: `understudy ${cluster}/${node}`, inbox: `_INBOX.${tokenOf(node)}` });
    } catch (error) {
      const { code, message } = natsError(error, nats.servers);
      say({ kind: 'disconnected', code, message });
      await new Promise((next) => setTimeout(next, CONNECT_AGAIN_MS));
      continue;
    }
    for (const id of subscriptions.keys()) listen(connection, id);
    const watching = watch(connection);
    await begin(connection);
    await Promise.all([watching, connection.closed()]);
    if (closing) return;
    for (const subscription of subscriptions.values()) subscription.live = null;
    connection = null;
    end('NATS_UNREACHABLE', 'the connection was closed');
  }
};

const offline = (): UnderstudyError => new UnderstudyError('NATS_OFFLINE', 'NATS is not connected');

const answer = (id: number, work: Promise<unknown>): void => {
  work.then(
    (value) => say({ kind: 'answer', id, value }),
    (error: unknown) => {
      const { code, message } = natsError(error, nats.servers);
      say({ kind: 'refusal', id, code, message });
    },
  );
};

/** A message larger than the server takes would end the connection: it is counted instead. */
const publish = (subject: string, data: Uint8Array): void => {
  if (!session) return;
  if (data.length > session.connection.info!.max_payload) say({ kind: 'tooLarge', subject });
  else session.connection.publish(subject, data);
};

const ask = async (subject: string, data: Uint8Array, timeoutMs: number): Promise<Uint8Array> => {
  if (!session) throw offline();
  const { data: reply } = await session.connection.request(subject, data, { timeout: timeoutMs });
  return reply;
};

const flush = async (timeoutMs: number): Promise<void> => {
  if (!session) throw offline();
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, refuse) => {
    const message = `NATS has not answered within ${timeoutMs} ms`;
    timer = setTimeout(() => refuse(new UnderstudyError('NATS_TIMEOUT', message)), timeoutMs);
  });
  try {
    await Promise.race([session.connection.flush(), late]);
  } finally {
    clearTimeout(timer);
  }
};

const close = async (): Promise<void> => {
  closing = true;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((done) => (timer = setTimeout(done, CLOSE_MS)));
  const parting = async () => {
    await Promise.all([...running.values()].map((service) => service.close()));
    await connection?.drain();
  };
  // What can't be said any more is said again by the next start, from the journal.
  await Promise.race([parting().catch(() => {}), late]);
  clearTimeout(timer);
  say({ kind: 'closed' });
  port.close();
  process.exit(0);
};

port.on('message', (message: ToBusThread) => {
  switch (message.kind) {
    case 'publish':
      publish(message.subject, message.data);
      return;
    case 'subscribe':
      subscriptions.set(message.id, { subject: message.subject, live: null });
      if (connection) listen(connection, message.id);
      return;
    case 'unsubscribe':
      subscriptions.get(message.id)?.live?.unsubscribe();
      subscriptions.delete(message.id);
      return;
    case 'request':
      answer(message.id, ask(message.subject, message.data, message.timeoutMs));
      return;
    case 'flush':
      answer(message.id, flush(message.timeoutMs));
      return;
    case 'call': {
      const service = running.get(message.service);
      assert(service, `the bus has no service ${message.service}`);
      answer(message.id, service.call(message.method, message.args));
      return;
    }
    case 'close':
      void close();
  }
});

void connectForEver();
