/**
 * The access log's own thread: reads what the workers wrote into their rings, makes lines of it and gets them out. It
 * alone waits for disks; meanwhile the rings fill, and then the workers count what is lost.
 */
import assert from 'node:assert/strict';
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { takeUsualPriority } from '../threads.ts';
import { newAccessRecord } from './accessLog.ts';
import { LOST, WRITTEN } from './accessLogCounters.ts';
import { formatterOf } from './accessLogFormat.ts';
import type { FormatLine, LineModel } from './accessLogFormat.ts';
import { RingReader } from './accessLogRing.ts';
import type { LogDestination } from '../config/log.ts';
import { FileSink } from './logSink.ts';
import type { LogSink, SinkReports } from './logSink.ts';
import { SyslogSink } from './syslog.ts';
import type { SyslogModel } from './syslog.ts';

export type SinkModel = LineModel & { id: number; destination: LogDestination; syslog: SyslogModel };

export type LogThreadData = { counters: SharedArrayBuffer; rings: SharedArrayBuffer[]; sinks: SinkModel[] };

export type ToLogThread =
  | { kind: 'ring'; memory: SharedArrayBuffer }
  | { kind: 'sink'; sink: SinkModel }
  | { kind: 'reopen' }
  | { kind: 'close' };

/** `recovered`: lines are written again. */
export type FromLogThread = { kind: 'failed'; code: string; message: string } | { kind: 'recovered'; message: string };

/** The rings hold several times what comes in such a while; a line is in its file a twentieth of a second later. */
const LOOK_EVERY_MS = 50;
const SHORTEST_DELAY_MS = 1;
/** How long the end waits for a pipe's reader; less than what the control plane waits for the thread. */
const PATIENCE_MS = 1000;
/** Records taken from a ring before their lines are written: some 600 KiB of text. */
const MAX_RECORDS_AT_ONCE = 2000;

takeUsualPriority();
const port = parentPort;
assert(port, 'the access log runs as a worker thread');
const say = (message: FromLogThread) => port.postMessage(message);

const given = workerData as LogThreadData;
const counters = new Float64Array(given.counters);
const rings: RingReader[] = [];
const sinks = new Map<number, { format: FormatLine; sink: LogSink }>();

const count = (counter: typeof WRITTEN | typeof LOST, by: number): void => {
  counters[counter] = counters[counter]! + by;
};

const placeOf = (destination: LogDestination): string =>
  destination.kind === 'file' ? destination.path : destination.kind;

const openSink = (model: SinkModel): void => {
  const { destination } = model;
  let failing: string | null = null;
  const reports: SinkReports = {
    written(lines) {
      count(WRITTEN, lines);
      if (failing !== null) say({ kind: 'recovered', message: `${placeOf(destination)} takes lines again` });
      failing = null;
    },
    lost: (lines) => count(LOST, lines),
    failed(code, message) {
      if (failing !== code) say({ kind: 'failed', code, message });
      failing = code;
    },
  };
  const sink =
    destination.kind === 'syslog'
      ? new SyslogSink(destination.address, model.syslog, reports)
      : new FileSink(destination.kind === 'file' ? destination.path : null, reports);
  sinks.set(model.id, { format: formatterOf(model), sink });
};

/** Whether there may be more. */
const readSome = (ring: RingReader): boolean => {
  for (let index = 0; index < MAX_RECORDS_AT_ONCE; index++) {
    const logged = ring.read();
    if (!logged) return false;
    // A worker can be quicker to hear of a new sink than this thread; the message is there, though.
    if (!sinks.has(logged.sink)) hearAll();
    const known = sinks.get(logged.sink);
    if (known) known.sink.append(known.format(logged.record), logged.record, logged.normal);
    else count(LOST, 1);
  }
  return true;
};

const readAll = (): boolean => {
  let more = false;
  for (const ring of rings) more = readSome(ring) || more;
  for (const { sink } of sinks.values()) sink.flush();
  return more;
};

const isWaiting = (): boolean => sinks.values().some(({ sink }) => sink.isWaiting);

let timer: NodeJS.Timeout | NodeJS.Immediate;
let delayMs = LOOK_EVERY_MS;
/** A pipe takes 64 KiB at a time: as long as its reader takes them, the next ones follow soon. */
const look = (): void => {
  const before = counters[WRITTEN];
  const more = readAll();
  if (!isWaiting()) delayMs = LOOK_EVERY_MS;
  else if (counters[WRITTEN] === before) delayMs = Math.min(LOOK_EVERY_MS, delayMs * 2);
  else delayMs = SHORTEST_DELAY_MS;
  timer = more ? setImmediate(look) : setTimeout(look, delayMs);
};

const finish = (untilMs: number): void => {
  while (readAll());
  if (isWaiting() && performance.now() < untilMs) {
    setTimeout(finish, SHORTEST_DELAY_MS, untilMs);
    return;
  }
  for (const { sink } of sinks.values()) sink.close();
  port.close();
};

const hear = (message: ToLogThread): void => {
  switch (message.kind) {
    case 'ring':
      rings.push(new RingReader(message.memory, newAccessRecord('http')));
      return;
    case 'sink':
      openSink(message.sink);
      return;
    case 'reopen':
      // What was logged before belongs to the old file.
      readAll();
      for (const { sink } of sinks.values()) sink.reopen();
      return;
    case 'close':
      clearTimeout(timer as NodeJS.Timeout);
      clearImmediate(timer as NodeJS.Immediate);
      finish(performance.now() + PATIENCE_MS);
  }
};

/** Of sinks and rings at once, of the rest when the thread is done with what it does. */
const hearAll = (): void => {
  for (let one = receiveMessageOnPort(port); one; one = receiveMessageOnPort(port)) {
    const message = one.message as ToLogThread;
    if (message.kind === 'sink' || message.kind === 'ring') hear(message);
    else setImmediate(hear, message);
  }
};

for (const memory of given.rings) rings.push(new RingReader(memory, newAccessRecord('http')));
for (const sink of given.sinks) openSink(sink);
port.on('message', hear);
look();
