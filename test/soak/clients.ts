/** Clients that behave, in as many processes as they need. */
import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import type { Load, LoadReport } from './load.ts';
import { addTally, newTally } from './tally.ts';
import type { Tally } from './tally.ts';

export class Clients {
  readonly tally: Tally = newTally();
  /** All of them are there. */
  readonly started: Promise<unknown>;
  readonly #children: ChildProcess[];
  readonly #ended: Promise<unknown>;

  /** `load` is that of each process. */
  constructor(load: Load, processes: number) {
    this.#children = Array.from({ length: processes }, () =>
      fork(join(import.meta.dirname, 'load.ts'), [JSON.stringify(load)]),
    );
    this.started = Promise.all(this.#children.map((child) => this.#follow(child)));
    this.#ended = Promise.all(this.#children.map((child) => once(child, 'exit')));
  }

  /** They end what is under way and leave. */
  async stop(): Promise<void> {
    for (const child of this.#children) if (child.connected) child.send('stop');
    await this.#ended;
    for (const child of this.#children) {
      if (child.exitCode !== 0) throw new Error(`clients ended with ${child.exitCode ?? child.signalCode}`);
    }
  }

  kill(): void {
    for (const child of this.#children) child.kill('SIGKILL');
  }

  #follow(child: ChildProcess): Promise<void> {
    return new Promise((done) => {
      child.on('message', (report: LoadReport) => {
        if (report.kind === 'started') done();
        else addTally(this.tally, report.tally);
      });
      child.once('exit', () => done());
    });
  }
}
