/** The catalogue: every machine of Understudy by its name, which is also the name in journals. */
import { backendServer } from './backendServer.ts';
import { clusterMember } from './clusterMember.ts';
import { commandDesk } from './commandDesk.ts';
import { courier } from './courier.ts';
import { healthChecker } from './healthChecker.ts';
import { healthQuorum } from './healthQuorum.ts';
import { journalKeeper } from './journalKeeper.ts';
import { listener } from './listener.ts';
import { nodeSight } from './nodeSight.ts';
import { pool } from './pool.ts';
import { proxyWorker } from './proxyWorker.ts';
import { rollout } from './rollout.ts';
import { syncGroup } from './syncGroup.ts';
import { tracker } from './tracker.ts';
import { trafficObserver } from './trafficObserver.ts';
import { virtualAddress } from './virtualAddress.ts';
import { vrrpRouter } from './vrrpRouter.ts';

export const machines = {
  backendServer,
  clusterMember,
  commandDesk,
  courier,
  healthChecker,
  healthQuorum,
  journalKeeper,
  listener,
  nodeSight,
  pool,
  proxyWorker,
  rollout,
  syncGroup,
  tracker,
  trafficObserver,
  virtualAddress,
  vrrpRouter,
} as const;

export type MachineName = keyof typeof machines;
