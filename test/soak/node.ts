/** A node as an operator runs it, watched from outside: its memory, its descriptors, the heaps of its threads. */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { stringify } from 'yaml';
import { freePort } from '../ports.ts';
import { Inspector } from './inspector.ts';

const program = resolve(import.meta.dirname, '../../bin/understudy');

const START_TIMEOUT_MS = 90_000;
const END_TIMEOUT_MS = 20_000;

export type NodeOptions = {
  /** As in the configuration file; `node`, `journal` and `api` are set here. */
  config: Record<string, unknown>;
  /** Descriptors that the process may have. */
  maxDescriptors?: number;
  /** Heaps are to be looked at: the process runs with an inspector. */
  inspected?: boolean;
};

export class SoakNode {
  readonly child: ChildProcess;
  readonly folder: string;
  readonly api: string;
  readonly log: string[] = [];
  stderr = '';
  #inspector: Inspector | null = null;

  private constructor(child: ChildProcess, folder: string, api: string) {
    this.child = child;
    this.folder = folder;
    this.api = api;
  }

  static async start({ config, maxDescriptors, inspected = false }: NodeOptions): Promise<SoakNode> {
    const apiPort = await freePort();
    const folder = mkdtempSync(join(tmpdir(), 'understudy-soak-'));
    const write = (text: unknown) => writeFileSync(join(folder, 'node.yaml'), stringify(text));
    write(withOwnKeys(config, apiPort));
    const run = [program, 'run', join(folder, 'node.yaml')];
    const [command, ...args] = maxDescriptors === undefined ? run : ['prlimit', `--nofile=${maxDescriptors}`, ...run];
    const child = spawn(command!, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...(inspected ? { NODE_OPTIONS: '--inspect=127.0.0.1:0' } : {}) },
    });
    // Also when this program is ended in the middle.
    const kill = () => child.kill('SIGKILL');
    process.once('exit', kill);
    child.once('exit', () => process.off('exit', kill));
    const node = new SoakNode(child, folder, `http://127.0.0.1:${apiPort}`);
    const debuggerAt = Promise.withResolvers<string>();
    child.stderr.on('data', (chunk: Buffer) => {
      node.stderr += chunk.toString();
      const url = /Debugger listening on (ws:\S+)/.exec(node.stderr)?.[1];
      if (url) debuggerAt.resolve(url);
    });
    const running = Promise.withResolvers<void>();
    createInterface({ input: child.stdout }).on('line', (line) => {
      node.log.push(line);
      if (line.includes('is running; its API is at')) running.resolve();
    });
    const late = setTimeout(() => running.reject(new Error('the node does not start')), START_TIMEOUT_MS);
    child.once('exit', () => running.reject(new Error(`the node ended: ${node.stderr} ${node.log.join('\n')}`)));
    try {
      await running.promise;
      if (inspected) node.#inspector = await Inspector.open(await debuggerAt.promise);
    } catch (error) {
      await node.end('SIGKILL');
      throw error;
    } finally {
      clearTimeout(late);
    }
    return node;
  }

  /** Writes another configuration and has it applied. */
  reload(config: Record<string, unknown>): void {
    const { port } = new URL(this.api);
    writeFileSync(join(this.folder, 'node.yaml'), stringify(withOwnKeys(config, Number(port))));
    this.child.kill('SIGHUP');
  }

  get isAlive(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  get rssBytes(): number {
    const pages = Number(readFileSync(`/proc/${this.child.pid}/statm`, 'utf8').split(' ')[1]);
    return pages * 4096;
  }

  /** The most that it ever had. */
  get peakRssBytes(): number {
    const kib = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${this.child.pid}/status`, 'utf8'))![1];
    return Number(kib) * 1024;
  }

  get descriptors(): number {
    return readdirSync(`/proc/${this.child.pid}/fd`).length;
  }

  get cpuMs(): number {
    const fields = readFileSync(`/proc/${this.child.pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
    // In ticks of 10 ms: utime and stime.
    return (Number(fields[11]) + Number(fields[12])) * 10;
  }

  /** Bytes that are alive in the heap of each thread, after a collection; buffers outside of the heap are not in it. */
  async heaps(): Promise<Record<string, number>> {
    return this.#inspector ? this.#inspector.heaps() : {};
  }

  /** The sum over all labels, by name of a metric. */
  async metrics(): Promise<Map<string, number>> {
    const text = await (await fetch(`${this.api}/metrics`)).text();
    const sums = new Map<string, number>();
    for (const [, name, value] of text.matchAll(/^understudy_(\w+)(?:\{.*\})? (\S+)$/gm))
      sums.set(name!, (sums.get(name!) ?? 0) + Number(value));
    return sums;
  }

  async end(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    this.#inspector?.close();
    if (this.isAlive) {
      const exited = once(this.child, 'exit');
      this.child.kill(signal);
      const late = setTimeout(() => this.child.kill('SIGKILL'), END_TIMEOUT_MS);
      await exited;
      clearTimeout(late);
    }
    rmSync(this.folder, { recursive: true, force: true });
  }
}

const withOwnKeys = (config: Record<string, unknown>, apiPort: number): Record<string, unknown> => ({
  node: 'soak',
  journal: { path: './node.db' },
  api: { listen: `127.0.0.1:${apiPort}` },
  ...config,
});
