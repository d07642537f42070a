/** The hands of those machines that act on the data plane: pool, backendServer, listener, proxyWorker. */
import type { PoolMode, Publication } from '../machines/pool.ts';
import type { Hands } from './system.ts';

/** Port: the data plane. Its answers come as events, sent to the actor by whoever hears them. */
export type DataPlanePort = {
  /** `draining`, where it has changed: the servers that serve only clients who are bound to them. */
  publish(pool: string, mode: PoolMode, weights: Record<string, number>, draining?: string[]): void;
  shutdownSessions(pool: string, server: string): void;
  openListener(id: string): void;
  drainListener(id: string): void;
  closeListener(id: string): void;
  startWorker(index: number): void;
  drainWorker(index: number): void;
  endWorker(index: number): void;
};

/** `worker/3` → 3. */
const indexOf = (worker: string): number => Number(worker.slice(worker.indexOf('/') + 1));

export const dataPlaneHands = (port: DataPlanePort): Record<string, Hands> => ({
  pool: {
    publish: ({ pool, mode, weights, draining }: Publication) => port.publish(pool, mode, weights, draining),
  },
  backendServer: {
    shutdownSessions: ({ pool, server }: { pool: string; server: string }) => port.shutdownSessions(pool, server),
  },
  listener: {
    openListener: (_: never, { id }) => port.openListener(id),
    drainListener: (_: never, { id }) => port.drainListener(id),
    closeListener: (_: never, { id }) => port.closeListener(id),
  },
  proxyWorker: {
    startWorker: (_: never, { id }) => port.startWorker(indexOf(id)),
    drainWorker: (_: never, { id }) => port.drainWorker(indexOf(id)),
    endWorker: (_: never, { id }) => port.endWorker(indexOf(id)),
  },
});
