import type { Hands } from './system.ts';

/** Port: finds out where the node stands in the cluster log and ships what comes after it; what becomes of it is told. */
export type ShipPort = () => void;

export const courierHands = (ship: ShipPort): Hands => ({ ship: () => ship() });
