/** A program in the lab: its output is kept as lines with their times, and can be awaited. */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { within } from './until.ts';

/** What a program wrote before its end is read within this time. */
const LAST_LINES_MS = 200;

/** Milliseconds since 1970, finer than `Date.now()`; the same in every process of this machine. */
export const nowMs = (): number => performance.timeOrigin + performance.now();

export type Line = { index: number; atMs: number; stream: 'stdout' | 'stderr'; text: string };

export type Exit = { code: number | null; signal: NodeJS.Signals | null };

export type SpawnOptions = { env?: Record<string, string>; cwd?: string };

export class LabProcess {
  /** Who it is in the log: `lb1 keepalived`. */
  readonly title: string;
  readonly pid: number;
  readonly lines: Line[] = [];
  readonly exited: Promise<Exit>;
  exit: Exit | null = null;
  readonly #looks = new Set<() => void>();

  private constructor(title: string, child: ChildProcess) {
    this.title = title;
    this.pid = child.pid!;
    for (const stream of ['stdout', 'stderr'] as const) {
      createInterface({ input: child[stream]! }).on('line', (text) => {
        this.lines.push({ index: this.lines.length, atMs: nowMs(), stream, text });
        this.#lookAgain();
      });
    }
    this.exited = this.#untilExit(child);
  }

  /** In a process group of its own, so that a terminal's Ctrl-C and `signalGroup` reach whom they are meant for. */
  static async start(title: string, command: string, args: string[], options: SpawnOptions): Promise<LabProcess> {
    const child = spawn(command, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
      env: { ...process.env, ...options.env },
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    await once(child, 'spawn');
    return new LabProcess(title, child);
  }

  /** The first line from `after` (an index) on that matches. Fails when the program ends without one. */
  waitFor(pattern: RegExp, options: { after?: number; timeoutMs?: number } = {}): Promise<Line> {
    const what = `${this.title}: a line ${String(pattern)}`;
    let look = () => {};
    const found = new Promise<Line>((done, refuse) => {
      look = () => {
        const line = this.lines.slice(options.after ?? 0).find(({ text }) => pattern.test(text));
        if (line) done(line);
        else if (this.exit) refuse(new Error(`${what}: it ended without one, ${JSON.stringify(this.exit)}`));
      };
      this.#looks.add(look);
      look();
    });
    return within(what, found, options.timeoutMs).finally(() => this.#looks.delete(look));
  }

  /** @returns whether the program was still there to take it. */
  signal(signal: NodeJS.Signals): boolean {
    return this.exit === null && send(this.pid, signal);
  }

  /** To the program and all that it started, at once: no parent lives on to see a child die. */
  signalGroup(signal: NodeJS.Signals): boolean {
    return this.exit === null && send(-this.pid, signal);
  }

  async end(signal: NodeJS.Signals = 'SIGTERM'): Promise<Exit> {
    this.signal(signal);
    return within(`${this.title}: its end`, this.exited);
  }

  async #untilExit(child: ChildProcess): Promise<Exit> {
    const closed = once(child, 'close');
    const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
    // The last lines are still to be read; but a grandchild may hold the pipe open for ever.
    await Promise.race([closed, delay(LAST_LINES_MS)]);
    this.exit = { code, signal };
    this.#lookAgain();
    return this.exit;
  }

  #lookAgain(): void {
    for (const look of this.#looks) look();
  }
}

/** @returns whether there was such a process (or group, if the number is negative) */
export const send = (pid: number, signal: NodeJS.Signals): boolean => {
  try {
    return process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
    throw error;
  }
};
