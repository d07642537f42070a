/** Servers that are killed and come back, each a process of its own. */
import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { freePorts } from '../ports.ts';

export class SoakServer {
  readonly name: string;
  readonly httpPort: number;
  readonly tcpPort: number;
  #child: ChildProcess | null = null;
  #runs = 0;

  constructor(name: string, httpPort: number, tcpPort: number) {
    this.name = name;
    this.httpPort = httpPort;
    this.tcpPort = tcpPort;
  }

  static async start(name: string): Promise<SoakServer> {
    const [httpPort, tcpPort] = await freePorts(2);
    const server = new SoakServer(name, httpPort!, tcpPort!);
    await server.run();
    return server;
  }

  /** What its answers say of it. */
  get id(): string {
    return `${this.name}#${this.#runs}`;
  }

  async run(): Promise<void> {
    this.#runs++;
    const args = [this.id, String(this.httpPort), String(this.tcpPort)];
    this.#child = fork(join(import.meta.dirname, 'backend.ts'), args);
    const exited = once(this.#child, 'exit').then(() => {
      throw new Error(`${this.id} ended before it listened`);
    });
    await Promise.race([once(this.#child, 'message'), exited]);
    exited.catch(() => {});
  }

  async kill(): Promise<void> {
    const child = this.#child;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  }
}

/** Kills one after the other, and lets each come back after a while. */
export class Killer {
  readonly killedMs = new Map<string, number>();
  readonly #servers: readonly SoakServer[];
  readonly #everyMs: number;
  readonly #over = new AbortController();
  #done: Promise<void> | null = null;

  constructor(servers: readonly SoakServer[], everyMs: number) {
    this.#servers = servers;
    this.#everyMs = everyMs;
  }

  start(): void {
    this.#done = this.#run();
  }

  /** All servers are back when it resolves. */
  async stop(): Promise<void> {
    this.#over.abort();
    await this.#done;
  }

  async #run(): Promise<void> {
    const { signal } = this.#over;
    const pause = (ms: number) => wait(ms, undefined, { signal }).catch(() => {});
    for (let kills = 0; ; kills++) {
      await pause(this.#everyMs / 2);
      if (signal.aborted) return;
      const server = this.#servers[kills % this.#servers.length]!;
      this.killedMs.set(server.id, Date.now());
      await server.kill();
      // Before and after health checks have seen it.
      await pause((this.#everyMs / 2) * Math.random());
      await server.run();
    }
  }
}
