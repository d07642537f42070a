/** What statistics want to know of routers and their machines have no use for. */
import type { Entry } from '../../actors/recorder.ts';
import type { ActorState } from '../../actors/system.ts';
import { phaseOf } from './reasons.ts';
import type { RouterPhase } from './reasons.ts';

type Tally = { phase: RouterPhase; sinceUs: number; timesMaster: number };

type Watched = { onTransition(listener: (actor: ActorState, entry: Entry) => void): unknown };

export class RouterTallies {
  #tallies = new Map<string, Tally>();

  constructor(system: Watched) {
    system.onTransition(({ id, machine, state }, { wallUs }) => {
      if (machine !== 'vrrpRouter') return;
      const phase = phaseOf(state);
      const known = this.#tallies.get(id);
      if (known?.phase === phase) return;
      const timesMaster = (known?.timesMaster ?? 0) + (phase === 'master' ? 1 : 0);
      this.#tallies.set(id, { phase, sinceUs: wallUs, timesMaster });
    });
  }

  /** When it became BACKUP, say: what goes on within that state doesn't count. µs since 1970; 0: not seen yet. */
  sinceUs(router: string): number {
    return this.#tallies.get(router)?.sinceUs ?? 0;
  }

  /** How often it has become master since the node started. */
  timesMaster(router: string): number {
    return this.#tallies.get(router)?.timesMaster ?? 0;
  }
}
