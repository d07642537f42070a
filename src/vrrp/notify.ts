/** Tells the outside of changes of state: notify scripts and the notify pipe, with keepalived's words and arguments. */
import assert from 'node:assert/strict';
import { performance } from 'node:perf_hooks';
import type { Outcome } from '../checks/outcome.ts';
import { runScript } from '../runScript.ts';
import type { NotifyPipe } from './notifyPipe.ts';

export type NotifyState = {
  kind: 'INSTANCE' | 'GROUP';
  name: string;
  state: 'MASTER' | 'BACKUP' | 'FAULT' | 'STOP';
  /** The effective one. keepalived always says 0 for a group, and so do scripts and pipe, whatever stands here. */
  priority: number;
  /** Why, in one sentence. */
  reason: string;
  /** What the reason rests on. */
  evidence: Record<string, string | number | boolean | null>;
};

/** Of one router or group. An empty command is none. */
export type NotifyScripts = {
  /** For every state (keepalived's `notify`); four arguments are appended: INSTANCE|GROUP, name, state, priority. */
  command: string[];
  /** For one state each (`notify_master`, …): run before `command`, with no argument appended. */
  master: string[];
  backup: string[];
  fault: string[];
  stop: string[];
  /** Of one run; then it is killed with all that it started. */
  timeoutMs: number;
  /** Null is the default of `scriptUser`. */
  user: string | null;
};

export type NotifyEvent = {
  type: 'notify.done' | 'notify.failed' | 'notify.dropped';
  kind: NotifyState['kind'];
  /** Name of the router or group. */
  subject: string;
  state: NotifyState['state'];
  /** The command with its arguments, or the path of the pipe. */
  command: string;
  /**
   * Of a script: PROCOK, PROCERR, PROCTOUT, PROCUSER, PROCUNSAFE. Of the pipe: PIPEERR. Of what was dropped: QUEUEFULL
   * newer states were waiting, PIPEFULL nobody reads, STOPPED the notifier was stopped first.
   */
  code: string;
  message: string;
  durationMs: number;
};

export type NotifierOptions = {
  /** Asked at each state, so that a reload takes effect with the next one; null is none. */
  scriptsOf: (kind: NotifyState['kind'], name: string) => NotifyScripts | null;
  pipe: NotifyPipe | null;
  report: (event: NotifyEvent) => void;
};

/**
 * States of one router that may wait behind a running script. Each can delay the newest by the scripts' whole timeout,
 * so it is few; fewer would lose the middle of an ordinary BACKUP, MASTER, FAULT.
 */
export const MOST_WAITING = 4;
/**
 * Starting a program stops the loop while the kernel copies our page tables: 10 ms with 300 MiB. A hundred routers that
 * move together start theirs one after the other, with three times as long between as the last start took, so that at
 * least three quarters of the time are left for adverts.
 */
const PAUSE_PER_START = 3;

type Waiting = { told: NotifyState; scripts: NotifyScripts };
type Line = { waiting: Waiting[]; running: Waiting | null; abort: () => void };

/**
 * Runs scripts one at a time per router or group, in the order of its states. The newest state is always delivered:
 * where more than MOST_WAITING wait, the oldest of them is dropped, and reported. Nothing is run within `tell`.
 */
export class Notifier {
  #options: NotifierOptions;
  #lines = new Map<string, Line>();
  #starts: (() => void)[] = [];
  /** Set while a start is due or a pause is on. */
  #cancelStart: (() => void) | null = null;
  #whenSettled: (() => void)[] = [];
  #stopped = false;

  constructor(options: NotifierOptions) {
    this.#options = options;
    options.pipe?.onDrained(() => this.#checkSettled());
  }

  tell(told: NotifyState): void {
    assert(!this.#stopped, `${told.name} ${told.state} is told to a stopped notifier`);
    this.#options.pipe?.write(told);
    const scripts = this.#options.scriptsOf(told.kind, told.name);
    if (!scripts || commandsFor(told, scripts).length === 0) return;
    const line = this.#lineOf(told);
    line.waiting.push({ told, scripts });
    if (line.running === null) this.#next(line);
    else if (line.waiting.length > MOST_WAITING) {
      this.#drop(line.waiting.shift()!, 'QUEUEFULL', `${MOST_WAITING} newer states wait for its scripts to end`);
    }
  }

  /** Resolves when every state has been delivered or dropped. Bound it: a pipe that nobody reads may never be. */
  settled(): Promise<void> {
    return new Promise((done) => {
      this.#whenSettled.push(done);
      this.#checkSettled();
    });
  }

  /** Ends the scripts that run, reports what wasn't delivered, and closes the pipe. */
  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#cancelStart?.();
    this.#starts = [];
    for (const line of this.#lines.values()) {
      line.abort();
      const undelivered = line.running ? [line.running, ...line.waiting] : line.waiting;
      for (const item of undelivered) this.#drop(item, 'STOPPED', 'the node stopped first');
    }
    this.#lines.clear();
    this.#options.pipe?.close();
    this.#checkSettled();
  }

  #lineOf({ kind, name }: NotifyState): Line {
    const key = `${kind} ${name}`;
    const line = this.#lines.get(key) ?? { waiting: [], running: null, abort: () => {} };
    this.#lines.set(key, line);
    return line;
  }

  #next(line: Line): void {
    line.running = line.waiting.shift() ?? null;
    if (line.running) this.#runAll(line, line.running, commandsFor(line.running.told, line.running.scripts));
    else this.#checkSettled();
  }

  /** One after the other, whatever becomes of each. */
  #runAll(line: Line, item: Waiting, [command, ...rest]: string[][]): void {
    if (!command) {
      this.#next(line);
      return;
    }
    this.#startSoon(() => {
      const { told, scripts } = item;
      const startedAt = performance.now();
      const script = { command, timeoutMs: scripts.timeoutMs, user: scripts.user, env: environmentOf(told) };
      line.abort = runScript(script, ({ ok, code, message }: Outcome) => {
        line.abort = () => {};
        this.#options.report({
          type: ok ? 'notify.done' : 'notify.failed',
          ...subjectOf(told),
          command: command.join(' '),
          code,
          message,
          durationMs: Math.round((performance.now() - startedAt) * 1000) / 1000,
        });
        // Who was told of it may have stopped us.
        if (!this.#stopped) this.#runAll(line, item, rest);
      });
    });
  }

  /** In a later turn: what else a change of state asks for (adverts, gratuitous ARP) comes first. */
  #startSoon(start: () => void): void {
    this.#starts.push(start);
    if (this.#cancelStart) return;
    const due = setImmediate(() => this.#start());
    this.#cancelStart = () => clearImmediate(due);
  }

  #start(): void {
    const startedAt = performance.now();
    this.#starts.shift()?.();
    const pauseMs = PAUSE_PER_START * (performance.now() - startedAt);
    const pause = setTimeout(() => {
      this.#cancelStart = null;
      if (this.#starts.length > 0) this.#start();
    }, pauseMs);
    this.#cancelStart = () => clearTimeout(pause);
  }

  #drop({ told, scripts }: Waiting, code: string, message: string): void {
    const command = commandsFor(told, scripts)
      .map((words) => words.join(' '))
      .join('; ');
    this.#options.report({ type: 'notify.dropped', ...subjectOf(told), command, code, message, durationMs: 0 });
  }

  #checkSettled(): void {
    const busy = [...this.#lines.values()].some((line) => line.running !== null);
    if (busy || (this.#options.pipe && !this.#options.pipe.isDrained)) return;
    for (const done of this.#whenSettled.splice(0)) done();
  }
}

/** keepalived's order (send_instance_notifies in its vrrp_notify.c): the state's own script, then the one for all. */
const commandsFor = (told: NotifyState, scripts: NotifyScripts): string[][] => {
  const own = { MASTER: scripts.master, BACKUP: scripts.backup, FAULT: scripts.fault, STOP: scripts.stop }[told.state];
  const all = scripts.command;
  const appended = [told.kind, told.name, told.state, String(priorityOf(told))];
  return [...(own.length > 0 ? [own] : []), ...(all.length > 0 ? [[...all, ...appended]] : [])];
};

export const subjectOf = ({ kind, name, state }: NotifyState) => ({ kind, subject: name, state });

export const priorityOf = ({ kind, priority }: NotifyState): number => (kind === 'GROUP' ? 0 : priority);

const environmentOf = (told: NotifyState): Record<string, string> => ({
  UNDERSTUDY_KIND: told.kind,
  UNDERSTUDY_NAME: told.name,
  UNDERSTUDY_STATE: told.state,
  UNDERSTUDY_PRIORITY: String(priorityOf(told)),
  UNDERSTUDY_REASON: told.reason,
  UNDERSTUDY_EVIDENCE: JSON.stringify(told.evidence),
});
