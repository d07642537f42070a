/** The notify pipe: one line for each change of state, in a FIFO (keepalived's notify_fifo). */
import { spawnSync } from 'node:child_process';
import { closeSync, constants, fchownSync, fstatSync, openSync, statSync, unlinkSync, writeSync } from 'node:fs';
import { codeOf, messageOf } from '../errors.ts';
import { scriptUser } from '../net/users.ts';
import { priorityOf, subjectOf } from './notify.ts';
import type { NotifyEvent, NotifyState } from './notify.ts';

export type NotifyPipeOptions = {
  path: string;
  /** `keepalived`: `INSTANCE "gateway" MASTER 150`. `json`: an object a line, with time, reason and evidence. */
  format: 'keepalived' | 'json';
  /** Who owns the FIFO, if it is we who make it (mode 0600); null leaves it with us. */
  user: string | null;
  /** Lines that were dropped, and failures to write. A line that was written is not reported. */
  report: (event: NotifyEvent) => void;
};

/** What a full pipe may leave waiting: a minute of a hundred routers that flap every six seconds. */
export const MOST_LINES = 1000;
/** A FIFO tells nobody when it has room again; nobody notices a line that comes this much later. */
const RETRY_MS = 50;
const FIFO_MODE = '600';

type Line = { told: NotifyState; bytes: Buffer };

/**
 * Makes the FIFO, or takes the one that is there, and opens it for reading and writing, so that no reader is needed and
 * none is missed by its absence: what is written waits in the kernel (64 KiB). A full pipe loses nothing silently: lines
 * wait, and are tried again; beyond MOST_LINES the oldest are dropped, and reported, but never the newest of a router.
 */
export const openNotifyPipe = (options: NotifyPipeOptions): { pipe: NotifyPipe } | { problem: string } => {
  const opened = openFifo(options);
  return 'problem' in opened ? opened : { pipe: new NotifyPipe(options, opened) };
};

type Fifo = { fd: number; inode: number; isOurs: boolean };

export class NotifyPipe {
  #options: NotifyPipeOptions;
  #fifo: Fifo | null;
  #lines: Line[] = [];
  /** Of the first line, bytes that are in the pipe: it can't be dropped any more. */
  #written = 0;
  #retry: NodeJS.Timeout | null = null;
  #drained = () => {};

  constructor(options: NotifyPipeOptions, fifo: Fifo) {
    this.#options = options;
    this.#fifo = fifo;
  }

  get isDrained(): boolean {
    return this.#lines.length === 0;
  }

  onDrained(drained: () => void): void {
    this.#drained = drained;
  }

  write(told: NotifyState): void {
    this.#lines.push({ told, bytes: Buffer.from(formatLine(told, this.#options.format)) });
    if (this.#retry === null) this.#flush();
    if (this.#lines.length > MOST_LINES) this.#dropOldest();
  }

  /** Removes the FIFO if it was made here. What it holds can still be read by whoever has it open. */
  close(): void {
    if (this.#retry) clearTimeout(this.#retry);
    this.#retry = null;
    for (const { told } of this.#lines.splice(0)) {
      this.#report('notify.dropped', told, 'STOPPED', 'the node stopped before it could be written');
    }
    this.#written = 0;
    if (this.#fifo === null) return;
    if (this.#fifo.isOurs && inodeAt(this.#options.path) === this.#fifo.inode) unlinkSync(this.#options.path);
    closeSync(this.#fifo.fd);
    this.#fifo = null;
  }

  #flush(): void {
    this.#retry = null;
    while (this.#lines.length > 0) {
      const outcome = this.#writeFirst();
      if (outcome === 'later') {
        this.#retry = setTimeout(() => this.#flush(), RETRY_MS);
        return;
      }
    }
    this.#drained();
  }

  #writeFirst(): 'done' | 'later' {
    const { told, bytes } = this.#lines[0]!;
    try {
      const fd = this.#currentFd();
      this.#written += writeSync(fd, bytes, this.#written);
      // Lines of up to 4096 bytes are written whole or not at all (PIPE_BUF, pipe(7)).
      if (this.#written < bytes.length) return 'later';
    } catch (error) {
      if (codeOf(error) === 'EAGAIN') return 'later';
      this.#report('notify.failed', told, 'PIPEERR', messageOf(error));
    }
    this.#lines.shift();
    this.#written = 0;
    return 'done';
  }

  /** A reader that removes the FIFO and makes it again would else never hear of us: we would hold the old one. */
  #currentFd(): number {
    const { path } = this.#options;
    if (this.#fifo !== null && inodeAt(path) === this.#fifo.inode) return this.#fifo.fd;
    if (this.#fifo !== null) closeSync(this.#fifo.fd);
    this.#fifo = null;
    this.#written = 0;
    const opened = openFifo(this.#options);
    if ('problem' in opened) throw new Error(opened.problem);
    this.#fifo = opened;
    return opened.fd;
  }

  #dropOldest(): void {
    const newest = new Map(this.#lines.map((line) => [keyOf(line.told), line]));
    const from = this.#written > 0 ? 1 : 0;
    const index = this.#lines.findIndex((line, at) => at >= from && newest.get(keyOf(line.told)) !== line);
    // None when each is the newest of its router: there are no more lines than routers then.
    if (index === -1) return;
    const [{ told }] = this.#lines.splice(index, 1) as [Line];
    this.#report('notify.dropped', told, 'PIPEFULL', `nobody reads it, and ${MOST_LINES} newer lines wait`);
  }

  #report(type: NotifyEvent['type'], told: NotifyState, code: string, message: string): void {
    this.#options.report({
      type,
      ...subjectOf(told),
      command: this.#options.path,
      code,
      message,
      durationMs: 0,
    });
  }
}

const keyOf = ({ kind, name }: NotifyState): string => `${kind} ${name}`;

/** keepalived's line is that of notify_fifo in its vrrp_notify.c. */
const formatLine = (told: NotifyState, format: NotifyPipeOptions['format']): string => {
  const { kind, name, state, reason, evidence } = told;
  const priority = priorityOf(told);
  if (format === 'keepalived') return `${kind} "${name}" ${state} ${priority}\n`;
  const time = new Date().toISOString();
  return `${JSON.stringify({ time, kind, name, state, priority, reason, evidence })}\n`;
};

const openFifo = ({ path, user }: NotifyPipeOptions): Fifo | { problem: string } => {
  try {
    const owner = user === null ? { user: null } : scriptUser(user);
    if ('refusal' in owner) return { problem: owner.refusal };
    const isOurs = makeFifo(path);
    if (!statSync(path).isFIFO()) return { problem: `${path} is there already and is not a FIFO` };
    const fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
    const stat = fstatSync(fd);
    if (!stat.isFIFO()) {
      // Between the two looks it has become something else.
      closeSync(fd);
      return { problem: `${path} is not a FIFO any more` };
    }
    if (isOurs && owner.user) fchownSync(fd, owner.user.uid, owner.user.gid);
    return { fd, inode: stat.ino, isOurs };
  } catch (error) {
    return { problem: `${path} can't be opened as a FIFO: ${messageOf(error)}` };
  }
};

/** Whether it was made: false where something is already. Node has no call of its own for it. */
const makeFifo = (path: string): boolean => {
  if (inodeAt(path) !== null) return false;
  const made = spawnSync('mkfifo', ['-m', FIFO_MODE, '--', path], { encoding: 'utf8' });
  if (made.error) throw made.error;
  if (made.status !== 0) throw new Error(made.stderr.trim());
  return true;
};

const inodeAt = (path: string): number | null => statSync(path, { throwIfNoEntry: false })?.ino ?? null;
