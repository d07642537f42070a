/** The shared configuration's service in the bus thread: reads and writes the bucket, and tells of roll-outs. */
import { replicasOf } from '../config/bus.ts';
import type { Draft, Rollout } from '../config/revision.ts';
import { UnderstudyError } from '../errors.ts';
import { natsError } from './connection.ts';
import { ConfigStore } from './configStore.ts';
import type { NatsSession, Service, ServiceHost } from './service.ts';

/** A cluster of NATS servers may be without a leader for some seconds. */
const WATCH_AGAIN_MS = 1_000;

export type ConfigEvent =
  | { type: 'rollouts'; rollouts: Rollout[] }
  /** The bucket can't be watched; it is tried again. */
  | { type: 'trouble'; code: string; message: string };

export const configService = (host: ServiceHost): Service => {
  const bucket = { name: host.subjects.configBucket, replicas: replicasOf(host.nats) };
  let watching = false;
  /** Whose changes are told. */
  let watched: NatsSession | null = null;
  let opened: { session: NatsSession; store: Promise<ConfigStore> } | null = null;

  const tell = (event: ConfigEvent) => host.tell(event);

  const storeOf = (session: NatsSession): Promise<ConfigStore> => {
    if (opened?.session === session) return opened.store;
    const store = ConfigStore.open(session, bucket);
    opened = { session, store };
    // One that could not be opened is opened anew by who asks next.
    store.catch(() => {
      if (opened?.store === store) opened = null;
    });
    return store;
  };

  const watch = async (session: NatsSession): Promise<void> => {
    if (watched === session) return;
    watched = session;
    while (!session.ended.aborted) {
      try {
        const store = await storeOf(session);
        await store.watch((rollouts) => tell({ type: 'rollouts', rollouts }), session.ended);
      } catch (error) {
        if (session.ended.aborted) return;
        const { code, message } = natsError(error, host.nats.servers);
        tell({ type: 'trouble', code, message });
      }
      await new Promise((again) => setTimeout(again, WATCH_AGAIN_MS));
    }
  };

  const store = (): Promise<ConfigStore> => {
    const session = host.session();
    if (!session) throw new UnderstudyError('NATS_OFFLINE', 'NATS is not connected: what nodes share lies there');
    return storeOf(session);
  };

  return {
    async call(method, args) {
      switch (method) {
        case 'watch': {
          watching = true;
          const session = host.session();
          if (session) void watch(session);
          return;
        }
        case 'history':
          return (await store()).history();
        case 'revision':
          return (await store()).revision(args[0] as number | null);
        case 'store': {
          const [draft, leader, timeMs, base, atLeast] = args as [Draft, string, number, number, number];
          return (await store()).store(draft, leader, timeMs, base, atLeast);
        }
        case 'rollouts':
          return (await store()).rollouts();
        case 'writeRollout': {
          const [rollout, version] = args as [Rollout, number];
          return (await store()).writeRollout(rollout, version);
        }
        default:
          throw new UnderstudyError('USAGE', `the service has no ${method}`);
      }
    },
    connected(session) {
      if (watching) void watch(session);
    },
    disconnected() {
      opened = null;
    },
    async close() {},
  };
};
