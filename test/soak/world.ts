/** What all clients of one process share: where the proxy is, what was counted, and whether it is time to end. */
import { newTally } from './tally.ts';
import type { Tally } from './tally.ts';

export type Ports = { http: number; tls: number; tcp: number };

export const HOST = '127.0.0.1';

export class World {
  readonly ports: Ports;
  tally: Tally = newTally();
  readonly #thinkMs: number;
  #stopped = false;
  #sleepers = new Set<() => void>();

  constructor(ports: Ports, thinkMs: number) {
    this.ports = ports;
    this.#thinkMs = thinkMs;
  }

  get stopped(): boolean {
    return this.#stopped;
  }

  /** Between two requests: exponential, as of many people who know nothing of each other. */
  think(): Promise<void> {
    return this.sleep(Math.min(-Math.log(Math.random()), 4) * this.#thinkMs);
  }

  /** Ends early when all is to end. */
  sleep(ms: number): Promise<void> {
    if (this.#stopped) return Promise.resolve();
    return new Promise((done) => {
      const wake = () => {
        clearTimeout(timer);
        this.#sleepers.delete(wake);
        done();
      };
      const timer = setTimeout(wake, ms);
      this.#sleepers.add(wake);
    });
  }

  /** What is under way is finished. */
  stop(): void {
    this.#stopped = true;
    for (const wake of [...this.#sleepers]) wake();
  }

  takeTally(): Tally {
    const { tally } = this;
    this.tally = newTally();
    return tally;
  }
}

export const pick = <T>(choices: readonly T[]): T => choices[Math.floor(Math.random() * choices.length)]!;
export const integer = (below: number): number => Math.floor(Math.random() * below);
