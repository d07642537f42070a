/** A hundred server actors and the checks that they are given: what a journal is filled with where its speed is measured. */
import { seededRandom } from '../../actors/random.ts';
import type { Recorder } from '../../actors/recorder.ts';
import { ActorSystem } from '../../actors/system.ts';
import { machines } from '../../machines/index.ts';
import type { SystemClock } from '../../src/clock.ts';

export const SERVERS = 100;
export const EVENTS_PER_TURN = 500;

export const settings = {
  rise: 2,
  fall: 3,
  checked: true,
  initially: 'unchecked',
  weight: 1,
  backup: false,
  slowStartMs: 0,
  shutdownSessions: false,
} as const;

export type Kind = 'flapping' | 'steady';

/**
 * Flapping servers: every check changes a state, none is compacted, the worst that a journal can be given. Steady ones:
 * what a journal is given nearly always.
 */
export const checkFor = (index: number, kind: Kind): { type: string } => {
  const passes = kind === 'steady' || Math.floor(index / SERVERS) % 5 < 2;
  return {
    type: passes ? 'check.passed' : 'check.failed',
    code: passes ? 'L4OK' : 'L4CON',
    message: '',
    durationMs: 0.3,
  } as {
    type: string;
  };
};

export const systemOn = (clock: SystemClock, recorder: Recorder): ActorSystem => {
  const onFault = ({ error }: { error: unknown }) => {
    throw error;
  };
  const system = new ActorSystem({ clock, random: seededRandom(1), recorder, machines, hands: {}, onFault });
  for (let index = 0; index < SERVERS; index++) {
    system.start(`server/web/s${index}`, 'backendServer', { pool: 'web', name: `s${index}`, settings });
  }
  return system;
};

/** Events between two turns of the loop, as a busy node has them. */
export const inTurns = async (count: number, step: (index: number) => void): Promise<void> => {
  for (let index = 0; index < count; index++) {
    step(index);
    if (index % EVENTS_PER_TURN === 0) await new Promise((next) => setImmediate(next));
  }
};
