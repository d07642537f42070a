/** What HAProxy's statistics tell of servers and pools beside their state: since when, how often down, for how long. */
import type { Entry } from '../../actors/recorder.ts';
import type { ActorState } from '../../actors/system.ts';
import type { BackendServerContext } from '../../machines/backendServer.ts';

export type Status = 'UP' | 'DOWN' | 'DRAIN' | 'MAINT';

export type Tally = {
  status: Status;
  sinceUs: number;
  /** How often it went from up to down. */
  downs: number;
  /** Time not up before the present status began. */
  downUs: number;
  /** Checks that failed while it was up. */
  checkFailures: number;
  health: string;
};

type System = {
  all(): Iterable<ActorState>;
  onTransition(listener: (actor: ActorState, entry: Entry) => void): () => void;
};

/** A server that has a check and hasn't been checked yet counts as up, as in HAProxy, unless it is to begin as down. */
export const takesUnchecked = ({ settings, hint }: BackendServerContext): boolean =>
  !settings.checked || (hint ?? settings.initially) !== 'down';

const serverStatus = (context: BackendServerContext, state: string): Status => {
  const [health = '', admin = ''] = state.split(',');
  if (admin === 'maintenance') return 'MAINT';
  if (health === 'down' || health === 'goingUp') return 'DOWN';
  if (health === 'unchecked' && !takesUnchecked(context)) return 'DOWN';
  return admin === 'drain' ? 'DRAIN' : 'UP';
};

const isStopped = (status: Status): boolean => status === 'DOWN' || status === 'MAINT';

export class StatsTallies {
  #tallies = new Map<string, Tally>();
  #stop: () => void;

  constructor(system: System) {
    for (const actor of system.all()) this.#note(actor, actor.sinceUs, '');
    this.#stop = system.onTransition((actor, { wallUs, event }) => this.#note(actor, wallUs, event.type));
  }

  of(id: string): Tally | undefined {
    return this.#tallies.get(id);
  }

  stop(): void {
    this.#stop();
  }

  #note({ id, machine, state, context }: ActorState, atUs: number, event: string): void {
    if (machine === 'pool') this.#enter(id, state === 'exhausted' ? 'DOWN' : 'UP', atUs, state, 0);
    else if (machine === 'backendServer') {
      const server = context as BackendServerContext;
      const health = state.slice(0, state.indexOf(','));
      const before = this.#tallies.get(id)?.health;
      let failures = 0;
      if (event === 'check.failed' && health === 'goingDown') failures = 1;
      // Those in between change no state and are told to nobody: the last one stands for all after the first.
      if (event === 'check.failed' && health === 'down')
        failures = before === 'goingDown' ? server.settings.fall - 1 : before === 'up' ? 1 : 0;
      this.#enter(id, serverStatus(server, state), atUs, health, failures);
    }
  }

  #enter(id: string, status: Status, atUs: number, health: string, failures: number): void {
    const known = this.#tallies.get(id);
    if (!known) {
      this.#tallies.set(id, { status, sinceUs: atUs, downs: 0, downUs: 0, checkFailures: failures, health });
      return;
    }
    known.health = health;
    known.checkFailures += failures;
    if (known.status === status) return;
    if (isStopped(known.status)) known.downUs += atUs - known.sinceUs;
    else if (status === 'DOWN') known.downs++;
    known.status = status;
    known.sinceUs = atUs;
  }
}

/** Seconds that it was not up, until now. */
export const downtimeSeconds = ({ status, sinceUs, downUs }: Tally, nowUs: number): number =>
  Math.floor((downUs + (isStopped(status) ? nowUs - sinceUs : 0)) / 1e6);
