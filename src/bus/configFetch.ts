/** Asks NATS for the shared configuration before there is a node: a short connection of its own. */
import { setTimeout as wait } from 'node:timers/promises';
import { jetstream, jetstreamManager } from '@nats-io/jetstream';
import { replicasOf } from '../config/bus.ts';
import type { Revision } from '../config/revision.ts';
import type { Config } from '../config/schema.ts';
import { UnderstudyError } from '../errors.ts';
import { ConfigStore } from './configStore.ts';
import { connectNats, natsError } from './connection.ts';
import { subjectsOf, tokenOf } from './subjects.ts';

const TRY_AGAIN_MS = 200;

/** The newest complete revision, as soon as NATS tells. @throws UnderstudyError when it doesn't within `startWait` */
export const fetchConfig = async ({ cluster, node, bus }: Config): Promise<Revision | null> => {
  if (bus === 'memory') return null;
  const { nats } = bus;
  const over = new AbortController();
  let trouble: unknown = new UnderstudyError('NATS_TIMEOUT', `no answer from NATS at ${nats.servers.join(', ')}`);
  const attempts = async (): Promise<Revision | null> => {
    for (;;) {
      try {
        return await fetchOnce(cluster, node, nats);
      } catch (error) {
        trouble = error;
        if (over.signal.aborted) throw error;
        await wait(TRY_AGAIN_MS);
      }
    }
  };
  const late = async (): Promise<never> => {
    await wait(nats.startWait, undefined, { signal: over.signal });
    throw natsError(trouble, nats.servers);
  };
  const attempt = attempts();
  try {
    return await Promise.race([attempt, late()]);
  } finally {
    over.abort();
    // What comes too late is nobody's answer any more.
    attempt.catch(() => {});
  }
};

const fetchOnce = async (cluster: string, node: string, nats: Exclude<Config['bus'], 'memory'>['nats']) => {
  const connection = await connectNats(nats, {
    name: `understudy ${cluster}/${node}`,
    inbox: `_INBOX.${tokenOf(node)}`,
  });
  try {
    const manager = await jetstreamManager(connection, { checkAPI: false });
    const bucket = { name: subjectsOf(cluster).configBucket, replicas: replicasOf(nats) };
    const store = await ConfigStore.open({ jetstream: jetstream(connection), manager }, bucket);
    return await store.complete();
  } finally {
    await connection.close();
  }
};
