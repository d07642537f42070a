/** Streams as we ask for them: made, brought up to date, and read back, as an old server silently ignores new options. */
import type { JetStreamManager, StreamConfig, StreamInfo } from '@nats-io/jetstream';
import { JetStreamApiCodes, JetStreamApiError } from '@nats-io/jetstream';
import type { NatsConnection } from '@nats-io/transport-node';
import { UnderstudyError } from '../errors.ts';

export type WantedStream = Partial<StreamConfig> & Pick<StreamConfig, 'name' | 'subjects'>;

/**
 * The stream, as it really is.
 * @throws UnderstudyError NATS_STREAM_DIFFERS naming each option; what the server's API throws
 */
export const ensureStream = async (manager: JetStreamManager, wanted: WantedStream): Promise<StreamInfo> => {
  let info: StreamInfo;
  try {
    info = await manager.streams.info(wanted.name);
  } catch (error) {
    if (!isStreamMissing(error)) throw error;
    info = await manager.streams.add(wanted);
  }
  if (differencesOf(wanted, info.config).length > 0) info = await manager.streams.update(wanted.name, wanted);
  const differences = differencesOf(wanted, info.config);
  if (differences.length === 0) return info;
  throw new UnderstudyError(
    'NATS_STREAM_DIFFERS',
    `stream ${wanted.name} came out different: ${differences.join('; ')}; remove it, or upgrade nats-server`,
  );
};

export const isStreamMissing = (error: unknown): boolean =>
  error instanceof JetStreamApiError && error.code === JetStreamApiCodes.StreamNotFound;

/**
 * Before 2.10 a server that was killed, stopped or cut off may leave a message out of its copy of a stream, or keep one
 * there that the others refused.
 */
export const keepsCopiesAlike = ({ info }: NatsConnection): boolean => {
  const [major = 0, minor = 0] = (info?.version ?? '').split('.').map(Number);
  return major > 2 || (major === 2 && minor >= 10);
};

/** `replicas is 1, wanted 3` */
export const differencesOf = (wanted: WantedStream, actual: Partial<StreamConfig>): string[] =>
  Object.entries(wanted).flatMap(([key, value]) => {
    const found = (actual as Record<string, unknown>)[key];
    return JSON.stringify(found) === JSON.stringify(value)
      ? []
      : [`${key} is ${JSON.stringify(found) ?? 'unknown to the server'}, wanted ${JSON.stringify(value)}`];
  });
