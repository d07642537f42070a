/** Where lines of the access log go. A sink never waits and never grows: what it can't get rid of is lost, and counted. */
import { closeSync, constants, openSync, writeSync } from 'node:fs';
import { codeOf, messageOf } from '../errors.ts';
import { EAGAIN, errno, lastErrno, libc } from '../net/libc.ts';
import type { AccessRecord } from './accessLog.ts';

export type SinkReports = {
  written(lines: number): void;
  lost(lines: number): void;
  /** Why; told again and again while it goes on. */
  failed(code: string, message: string): void;
};

export type LogSink = {
  /** Something is left that its reader has not taken yet. */
  readonly isWaiting: boolean;
  append(line: string, record: AccessRecord, normal: boolean): void;
  flush(): void;
  /** The next line goes to a file opened anew: the old one was renamed. */
  reopen(): void;
  close(): void;
};

/**
 * Lines that are written at once, and what may wait for a pipe whose reader is slow. The longest line, every byte of it
 * escaped, is below 128 KiB.
 */
const BUFFER_BYTES = 512 * 1024;
/** A file that can't be opened or written is tried again this often. */
const RETRY_MS = 1000;
/** Whoever may read logs is in their group. */
const MODE = 0o640;
const STDOUT = 1;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const NEWLINE = 0x0a;
const LINE_END = Buffer.from('\n');

type Output = { write(bytes: Buffer): number; close(): void };

const { O_WRONLY, O_APPEND, O_CREAT, O_NONBLOCK } = constants;

/** Non-blocking, for the sake of pipes; of files it changes nothing. */
const openFile = (path: string): Output => {
  const fd = openSync(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK, MODE);
  return { write: (bytes) => writeSync(fd, bytes), close: () => closeSync(fd) };
};

/** By its own name, so that it is non-blocking for us and stays as it is for everybody else who has it. */
const openStdout = (): Output => {
  try {
    return openFile('/proc/self/fd/1');
  } catch (error) {
    // A socket, such as that of systemd's journal, can't be opened by name; another user's can't either.
    return codeOf(error) === 'ENXIO'
      ? { write: sendToStdout, close: () => {} }
      : { write: (bytes) => writeSync(STDOUT, bytes), close: () => {} };
  }
};

const sendToStdout = (bytes: Buffer): number => {
  const count = libc().send(STDOUT, bytes, bytes.length, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (count >= 0) return count;
  const code = errno() === EAGAIN ? 'EAGAIN' : lastErrno();
  throw Object.assign(new Error(`stdout: ${code}`), { code });
};

const linesIn = (bytes: Buffer): number => {
  let count = 0;
  for (let at = bytes.indexOf(NEWLINE); at !== -1; at = bytes.indexOf(NEWLINE, at + 1)) count++;
  return count;
};

/** A file, or stdout when `path` is null. */
export class FileSink implements LogSink {
  readonly #path: string | null;
  readonly #reports: SinkReports;
  readonly #buffer = Buffer.allocUnsafeSlow(BUFFER_BYTES);
  /** What is to be written lies between. */
  #from = 0;
  #to = 0;
  #output: Output | null = null;
  #retryAtMs = 0;
  /** The last line in the file is not whole. */
  #isCut = false;
  isWaiting = false;

  constructor(path: string | null, reports: SinkReports) {
    this.#path = path;
    this.#reports = reports;
  }

  append(line: string): void {
    if (this.#to + line.length + 1 > BUFFER_BYTES) this.flush();
    if (this.#to + line.length + 1 > BUFFER_BYTES) {
      this.#reports.lost(1);
      return;
    }
    this.#to += this.#buffer.write(line, this.#to, 'latin1');
    this.#buffer[this.#to++] = NEWLINE;
  }

  flush(): void {
    if (this.#to === 0) return;
    const output = this.#output ?? this.#open();
    if (!output) {
      this.#lose();
      return;
    }
    try {
      if (this.#isCut) output.write(LINE_END);
      this.#isCut = false;
      while (this.#from < this.#to) this.#wrote(output.write(this.#buffer.subarray(this.#from, this.#to)));
      this.#from = this.#to = 0;
      this.isWaiting = false;
    } catch (error) {
      this.isWaiting = codeOf(error) === 'EAGAIN';
      if (this.isWaiting) return;
      if (this.#from > 0) this.#isCut = this.#buffer[this.#from - 1] !== NEWLINE;
      this.#lose();
      this.#fail(error);
    }
  }

  reopen(): void {
    // A pipe's reader is still owed the end of a line.
    if (this.isWaiting) return;
    this.#output?.close();
    this.#output = null;
    this.#retryAtMs = 0;
    this.#isCut = false;
  }

  close(): void {
    this.flush();
    this.#lose();
    this.reopen();
  }

  #open(): Output | null {
    if (performance.now() < this.#retryAtMs) return null;
    try {
      this.#output = this.#path === null ? openStdout() : openFile(this.#path);
    } catch (error) {
      this.#fail(error);
    }
    return this.#output;
  }

  /** A line counts when its end has been written. */
  #wrote(count: number): void {
    const lines = linesIn(this.#buffer.subarray(this.#from, this.#from + count));
    this.#from += count;
    if (lines > 0) this.#reports.written(lines);
  }

  #lose(): void {
    this.#reports.lost(linesIn(this.#buffer.subarray(this.#from, this.#to)));
    this.#from = this.#to = 0;
    this.isWaiting = false;
  }

  #fail(error: unknown): void {
    this.#retryAtMs = performance.now() + RETRY_MS;
    this.#reports.failed(codeOf(error), `${this.#path ?? 'stdout'} takes no lines: ${messageOf(error)}`);
  }
}
