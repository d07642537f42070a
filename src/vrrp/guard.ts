/**
 * The guard: a small process beside the node that outlives it. When the node dies, however it dies, the guard takes the
 * virtual addresses off the interfaces and says goodbye for its routers (priority 0), so that a backup waits its skew
 * time and not three intervals. When the node stands still for longer than its peers wait, the guard takes the addresses
 * off, as another node has them by then.
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import type { VirtualRouter } from './advertiser.ts';
import type { HeldAddress } from './addresses.ts';
import { threadFile } from '../threads.ts';

export type Farewell = {
  router: VirtualRouter;
  /** Where to send it: null for udp without an interface. */
  interfaceName: string | null;
  interfaceIndex: number;
  peers: { host: string; port: number }[];
};

/** What the guard has to do when the node can't. */
export type Charge = {
  held: HeldAddress[];
  farewells: Farewell[];
  /** Interfaces that the node has made. */
  macvlans: string[];
  /** Tables of nftables that the node has made. */
  tables: string[];
  /** Silence of the node after which its peers have taken over. */
  silenceMs: number;
  /** First sequence number that the node doesn't use. */
  counter: string;
};

export type ToGuard = { kind: 'charge'; charge: Charge } | { kind: 'beat' } | { kind: 'bye' };

/** Beats in the time that the guard waits: two may be late. */
const BEATS_PER_SILENCE = 4;
const LONGEST_BEAT_MS = 1_000;
/** A guard that ended is started again after this time; one that can't run must not cost a core. */
const RESTART_MS = 1_000;

export type GuardOptions = { onTrouble(message: string): void };

export class Guard {
  #options: GuardOptions;
  #child: ChildProcess | null = null;
  #charge: Charge;
  #beat: NodeJS.Timeout | null = null;
  #beatMs = 0;
  #restart: NodeJS.Timeout | null = null;
  #ending = false;

  constructor(charge: Charge, options: GuardOptions) {
    this.#charge = charge;
    this.#options = options;
    this.#start();
  }

  charge(charge: Charge): void {
    this.#charge = charge;
    this.#tell({ kind: 'charge', charge });
    const isCharged = charge.held.length > 0 || charge.farewells.length > 0;
    const beatMs = isCharged ? Math.min(LONGEST_BEAT_MS, charge.silenceMs / BEATS_PER_SILENCE) : 0;
    if (beatMs === this.#beatMs) return;
    this.#beatMs = beatMs;
    if (this.#beat) clearInterval(this.#beat);
    this.#beat = beatMs > 0 ? setInterval(() => this.#tell({ kind: 'beat' }), beatMs) : null;
  }

  /** The node leaves in order; nothing is left to be done. */
  end(): void {
    this.#ending = true;
    if (this.#beat) clearInterval(this.#beat);
    if (this.#restart) clearTimeout(this.#restart);
    this.#tell({ kind: 'bye' });
    this.#child?.stdin?.end();
    this.#child?.unref();
  }

  #start(): void {
    // A session of its own: what ends the node's process group (Ctrl-C) must not end its guard before it.
    const child = spawn(process.execPath, [threadFile('guardProcess', import.meta.url)], {
      detached: true,
      stdio: ['pipe', 'ignore', 'inherit'],
    });
    this.#child = child;
    child.on('error', (error) => this.#options.onTrouble(`the guard can't be started: ${error.message}`));
    // A guard that is gone is told by `exit`.
    child.stdin.on('error', () => {});
    child.on('exit', (status, signal) => {
      if (this.#ending) return;
      this.#options.onTrouble(`the guard ended (${signal ?? `status ${status}`}) and is started again`);
      this.#restart = setTimeout(() => {
        this.#start();
        this.#tell({ kind: 'charge', charge: this.#charge });
      }, RESTART_MS);
    });
    this.#tell({ kind: 'charge', charge: this.#charge });
  }

  #tell(message: ToGuard): void {
    const { stdin } = this.#child ?? {};
    if (stdin && !stdin.destroyed) stdin.write(`${JSON.stringify(message)}\n`);
  }
}
