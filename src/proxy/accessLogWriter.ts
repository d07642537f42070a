/**
 * The access log as the control plane sees it: gives each worker its memory and each frontend its sink, and keeps the
 * thread running that writes. A thread that dies is replaced; what the workers logged meanwhile waits in their memory.
 */
import { Worker } from 'node:worker_threads';
import type { AccessLogConfig } from '../config/log.ts';
import { messageOf } from '../errors.ts';
import { threadFile } from '../threads.ts';
import type { FrontendLog } from './accessLog.ts';
import { COMBINED_HEADERS } from './accessLogFormat.ts';
import { allocateRing, figuresOfRing } from './accessLogRing.ts';
import { COUNTERS, LOST, WRITTEN } from './accessLogCounters.ts';
import type { FromLogThread, LogThreadData, SinkModel, ToLogThread } from './accessLogThread.ts';

/** A thread that died is started again after this long. */
const RESTART_MS = 1000;
/** A disk that stands still does not hold up the end of the process for longer. */
const CLOSE_MS = 2000;

/**
 * Records logged by the workers; lines that were written; records for which there was no room (the thread is behind), and
 * lines that their destination did not take.
 */
export type AccessLogFigures = { logged: number; written: number; dropped: number; lost: number };

export type AccessLogReport =
  { type: 'accessLog.failed'; code: string; message: string } | { type: 'accessLog.recovered'; message: string };

export class AccessLogWriter {
  readonly #report: (report: AccessLogReport) => void;
  readonly #counters = new SharedArrayBuffer(COUNTERS * Float64Array.BYTES_PER_ELEMENT);
  #rings = new Map<number, SharedArrayBuffer>();
  #sinks = new Map<string, SinkModel>();
  #thread: Worker | null = null;
  #restart: NodeJS.Timeout | null = null;
  #closing = false;

  constructor(report: (report: AccessLogReport) => void) {
    this.#report = report;
  }

  /** Of the worker with this index; the same again when it is started again. Takes no room until it is written to. */
  memoryOf(worker: number): SharedArrayBuffer {
    let memory = this.#rings.get(worker);
    if (!memory) {
      memory = allocateRing();
      this.#rings.set(worker, memory);
      this.#tell({ kind: 'ring', memory });
    }
    return memory;
  }

  /** For the frontend's model. The same destination and form are one sink, over reloads too. */
  sink(config: AccessLogConfig): FrontendLog {
    const requestHeaders =
      config.format === 'combined' ? [...COMBINED_HEADERS, ...config.requestHeaders] : config.requestHeaders;
    const { format, responseHeaders, syslog, path: destination, only, sample } = config;
    const key = JSON.stringify({ format, requestHeaders, responseHeaders, syslog, destination });
    let model = this.#sinks.get(key);
    if (!model) {
      model = { id: this.#sinks.size, format, requestHeaders, responseHeaders, syslog, destination };
      this.#sinks.set(key, model);
      if (this.#thread) this.#tell({ kind: 'sink', sink: model });
      else if (!this.#restart && !this.#closing) this.#start();
    }
    return { sink: model.id, only, sample, requestHeaders, responseHeaders };
  }

  /** Files are opened anew: after logrotate, at a reload. */
  reopen(): void {
    this.#tell({ kind: 'reopen' });
  }

  figures(): AccessLogFigures {
    const counters = new Float64Array(this.#counters);
    const figures = { logged: 0, written: counters[WRITTEN]!, dropped: 0, lost: counters[LOST]! };
    for (const memory of this.#rings.values()) {
      const { logged, dropped } = figuresOfRing(memory);
      figures.logged += logged;
      figures.dropped += dropped;
    }
    return figures;
  }

  /** Writes what the workers have logged, and ends. To be called when they log no more. */
  async close(): Promise<void> {
    this.#closing = true;
    if (this.#restart) clearTimeout(this.#restart);
    const thread = this.#thread;
    if (!thread) return;
    const { promise: ended, resolve } = Promise.withResolvers<boolean>();
    const timer = setTimeout(() => resolve(false), CLOSE_MS);
    thread.once('exit', () => resolve(true));
    this.#tell({ kind: 'close' });
    if (!(await ended)) await thread.terminate();
    clearTimeout(timer);
  }

  #tell(message: ToLogThread): void {
    this.#thread?.postMessage(message);
  }

  #start(): void {
    this.#restart = null;
    const data: LogThreadData = {
      counters: this.#counters,
      rings: [...this.#rings.values()],
      sinks: [...this.#sinks.values()],
    };
    const thread = new Worker(threadFile('accessLogThread', import.meta.url), { workerData: data });
    this.#thread = thread;
    let reason = 'it ended';
    thread.on('message', (message: FromLogThread) => {
      if (message.kind === 'recovered') this.#report({ type: 'accessLog.recovered', message: message.message });
      else this.#report({ type: 'accessLog.failed', code: message.code, message: message.message });
    });
    thread.on('error', (error) => (reason = messageOf(error)));
    thread.on('exit', () => {
      this.#thread = null;
      if (this.#closing) return;
      this.#report({ type: 'accessLog.failed', code: 'THREAD_DIED', message: `the access log's thread: ${reason}` });
      this.#restart = setTimeout(() => this.#start(), RESTART_MS);
    });
  }
}
