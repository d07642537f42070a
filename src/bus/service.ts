/** What runs beside the connection in the bus's thread, and how it is asked from the control thread. */
import type { JetStreamClient, JetStreamManager } from '@nats-io/jetstream';
import type { NatsConnection } from '@nats-io/transport-node';
import type { NatsConfig } from '../config/bus.ts';
import type { Subjects } from './subjects.ts';

/** One connection, from its begin to its end; a reconnect begins another session. */
export type NatsSession = {
  connection: NatsConnection;
  jetstream: JetStreamClient;
  manager: JetStreamManager;
  /** Of the server that it is connected to: `2.9.10`. */
  version: string;
  /** Aborted when the connection is lost. */
  ended: AbortSignal;
};

export type ServiceHost = {
  subjects: Subjects;
  node: string;
  journalPath: string;
  nats: NatsConfig;
  /** Null while there is no connection. */
  session(): NatsSession | null;
  /** Told to `bus.onEvent` of this service. The event is structured-cloned. */
  tell(event: { type: string } & Record<string, unknown>): void;
};

export type Service = {
  /** A call from the control thread; what it throws is thrown there, with its code. */
  call(method: string, args: unknown[]): Promise<unknown>;
  /** A session has begun. Must not throw: trouble is told. */
  connected(session: NatsSession): void;
  disconnected(): void;
  /** The node leaves: what is still to be said. */
  close(): Promise<void>;
};

export type MakeService = (host: ServiceHost) => Service;
