/** Real nats-servers for tests: alone or three that form a cluster, each with a folder of its own, gone with the test. */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { connect } from '@nats-io/transport-node';
import type { NatsConnection } from '@nats-io/transport-node';
import { freePorts } from './ports.ts';

const HOST = '127.0.0.1';
const READY_MS = 15_000;

export type NatsOptions = {
  jetstream?: boolean;
  /** Further blocks of its configuration: authorization, tls, accounts. */
  config?: string;
  port?: number;
  /** Kept by the caller, so that a server can come back to its streams. */
  folder?: string;
  name?: string;
};

export class NatsServer {
  readonly port: number;
  readonly folder: string;
  readonly #file: string;
  readonly #keepsFolder: boolean;
  #child: ChildProcess | null = null;
  #output = '';

  private constructor(port: number, folder: string, keepsFolder: boolean) {
    this.port = port;
    this.folder = folder;
    this.#keepsFolder = keepsFolder;
    this.#file = join(folder, 'nats.conf');
  }

  static async start(options: NatsOptions = {}, cluster = ''): Promise<NatsServer> {
    const port = options.port ?? (await freePorts(1))[0]!;
    const folder = options.folder ?? mkdtempSync(join(tmpdir(), 'understudy-nats-'));
    const server = new NatsServer(port, folder, options.folder !== undefined);
    const lines = [
      `listen: "${HOST}:${port}"`,
      `server_name: "${options.name ?? `n${port}`}"`,
      options.jetstream === false ? '' : `jetstream { store_dir: "${join(folder, 'jetstream')}" }`,
      cluster,
      options.config ?? '',
    ];
    writeFileSync(server.#file, lines.join('\n'));
    await server.again();
    return server;
  }

  get url(): string {
    return `nats://${HOST}:${this.port}`;
  }

  get pid(): number {
    return this.#child!.pid!;
  }

  get output(): string {
    return this.#output;
  }

  /** Starts it (anew) on the same port and folder. */
  async again(): Promise<void> {
    this.#output = '';
    const child = spawn('nats-server', ['-c', this.#file], { stdio: ['ignore', 'ignore', 'pipe'] });
    this.#child = child;
    const ready = Promise.withResolvers<void>();
    child.stderr.on('data', (chunk: Buffer) => {
      this.#output += chunk.toString();
      if (this.#output.includes('Server is ready')) ready.resolve();
    });
    child.once('exit', () => ready.reject(new Error(`nats-server ended: ${this.#output.slice(-500)}`)));
    // Whoever stops it before it was ready asked for it.
    ready.promise.catch(() => {});
    const timer = setTimeout(() => ready.reject(new Error(`nats-server is not ready: ${this.#output}`)), READY_MS);
    try {
      await ready.promise;
    } finally {
      clearTimeout(timer);
    }
  }

  signal(name: NodeJS.Signals): void {
    this.#child?.kill(name);
  }

  /** SIGSTOP, until none of its threads runs any more. */
  async freeze(): Promise<void> {
    this.signal('SIGSTOP');
    const tasks = `/proc/${this.pid}/task`;
    const stands = (task: string) => /^State:\s+T/m.test(readFileSync(`${tasks}/${task}/status`, 'utf8'));
    while (!readdirSync(tasks).every(stands)) await wait(1);
  }

  /** Ends it in order, or with SIGKILL at once; its folder stays for `again`. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const child = this.#child;
    this.#child = null;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    // One that stands still hears nothing else.
    child.kill('SIGCONT');
    child.kill(signal);
    const timer = setTimeout(() => child.kill('SIGKILL'), 3_000);
    await exited;
    clearTimeout(timer);
  }

  async end(): Promise<void> {
    await this.stop('SIGKILL');
    if (!this.#keepsFolder) rmSync(this.folder, { recursive: true, force: true });
  }
}

export class NatsCluster {
  readonly servers: NatsServer[];

  private constructor(servers: NatsServer[]) {
    this.servers = servers;
  }

  /** As many servers as that, with a JetStream leader among them. */
  static async start(size = 3): Promise<NatsCluster> {
    const ports = await freePorts(size * 2);
    const routes = ports.slice(size).map((port) => `nats-route://${HOST}:${port}`);
    const servers = await Promise.all(
      ports
        .slice(0, size)
        .map((port, index) =>
          NatsServer.start(
            { port, name: `n${index + 1}` },
            `cluster { name: test, listen: "${HOST}:${ports[size + index]}", routes: [${routes.join(', ')}] }`,
          ),
        ),
    );
    const cluster = new NatsCluster(servers);
    await cluster.#hasLeader();
    return cluster;
  }

  get urls(): string[] {
    return this.servers.map(({ url }) => url);
  }

  async end(): Promise<void> {
    await Promise.all(this.servers.map((server) => server.end()));
  }

  async #hasLeader(): Promise<void> {
    const connection = await connect({ servers: this.urls });
    try {
      for (;;) {
        try {
          await connection.request('$JS.API.INFO', '', { timeout: 500 });
          return;
        } catch {
          // Elections among nats-servers take a second or two.
          await wait(100);
        }
      }
    } finally {
      await connection.close();
    }
  }
}

/** A connection of the test's own, to look at what nodes say. */
export const natsClient = (...servers: string[]): Promise<NatsConnection> => connect({ servers });
