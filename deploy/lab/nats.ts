/** nats-server on a host of the lab: alone, or one of a cluster with JetStream. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Host } from './lab.ts';
import type { Exit, LabProcess } from './process.ts';
import { until } from './until.ts';

const CLIENTS = 4222;
const ROUTES = 6222;
const MONITOR = 'http://127.0.0.1:8222';
/** Elections among nats-servers take seconds, on a machine that is busy more. */
const READY_MS = 30_000;

export type LabNatsOptions = {
  address: string;
  /** Addresses of all servers of the cluster; its own may be among them. */
  cluster: string[];
  /** Further lines of its configuration. */
  config?: string;
  /** Where the streams are. Default: a folder of the lab. */
  folder?: string;
};

export class LabNats {
  readonly host: Host;
  readonly url: string;
  /** Its configuration and its streams. */
  readonly folder: string;
  process: LabProcess | null = null;
  readonly #file: string;

  constructor(host: Host, { address, cluster, config = '', folder }: LabNatsOptions) {
    this.host = host;
    this.url = `nats://${address}:${CLIENTS}`;
    this.folder = folder ?? join(host.folder, `nats-${host.name}`);
    this.#file = join(host.folder, `nats-${host.name}.conf`);
    mkdirSync(this.folder, { recursive: true });
    const routes = cluster.map((each) => `nats-route://${each}:${ROUTES}`);
    writeFileSync(
      this.#file,
      `
server_name: ${host.name}
listen: "${address}:${CLIENTS}"
http: "${MONITOR.slice('http://'.length)}"
# By its own choice it would promise three quarters of the disk, and refuse streams that may become larger.
jetstream { store_dir: "${this.folder}", max_file_store: 20GB }
${cluster.length > 1 ? `cluster { name: lab, listen: "${address}:${ROUTES}", routes: [${routes.join(', ')}] }` : ''}
${config}
`,
    );
  }

  /** Listens when this returns; that its cluster has a leader is `untilReady`. */
  async run(): Promise<void> {
    this.process = await this.host.spawn('nats-server', ['-c', this.#file]);
    await this.process.waitFor(/Server is ready/);
  }

  get running(): LabProcess {
    if (!this.process) throw new Error(`the nats-server of ${this.host.name} was not started`);
    return this.process;
  }

  /**
   * Until its JetStream has a leader and knows what the others know. Single streams and consumers are left out: 2.9.10
   * calls a consumer that died in a partition stale for ever.
   */
  async untilReady(timeoutMs = READY_MS): Promise<void> {
    const health = () =>
      this.host.run('curl', ['-s', '-m', '2', `${MONITOR}/healthz?js-server-only=true`]).catch(() => '');
    await until(`JetStream of ${this.host.name}`, async () => (await health()).includes('"ok"'), timeoutMs);
  }

  end(signal: NodeJS.Signals = 'SIGTERM'): Promise<Exit> {
    return this.running.end(signal);
  }
}
