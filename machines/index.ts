/** The catalogue: every machine of Understudy by its name, which is also the name in journals. */
import { backendServer } from './backendServer.ts';
import { healthChecker } from './healthChecker.ts';
import { journalKeeper } from './journalKeeper.ts';
import { listener } from './listener.ts';
import { pool } from './pool.ts';
import { proxyWorker } from './proxyWorker.ts';
import { syncGroup } from './syncGroup.ts';
import { tracker } from './tracker.ts';
import { virtualAddress } from './virtualAddress.ts';
import { vrrpRouter } from './vrrpRouter.ts';

export const machines = {
  backendServer,
  healthChecker,
  journalKeeper,
  listener,
  pool,
  proxyWorker,
  syncGroup,
  tracker,
  virtualAddress,
  vrrpRouter,
} as const;

export type MachineName = keyof typeof machines;
