/** The bus over NATS as the control thread sees it: everything that takes time happens in the bus's own thread. */
import { Worker } from 'node:worker_threads';
import { messageOf, UnderstudyError } from '../errors.ts';
import type { ErrorCode } from '../errors.ts';
import { threadFile } from '../threads.ts';
import type { Bus, BusMessage, BusStatus } from './bus.ts';
import type { BusThreadData, FromBusThread, ToBusThread } from './busThread.ts';

type Event = { type: string } & Record<string, unknown>;
type Waiting = { done(value: unknown): void; refuse(error: Error): void };

/** A thread that has died is started again after this. */
const START_AGAIN_MS = 1_000;

export class NatsBus implements Bus {
  status: BusStatus = { connected: false, code: null, message: 'connecting', sinceMs: Date.now() };
  tooLarge = 0;
  readonly #data: BusThreadData;
  #thread: Worker;
  #ids = 0;
  readonly #statusListeners = new Set<(status: BusStatus) => void>();
  readonly #subscriptions = new Map<number, { subject: string; heard: (message: BusMessage) => void }>();
  readonly #waiting = new Map<number, Waiting>();
  readonly #eventListeners = new Map<string, Set<(event: Event) => void>>();
  #closing = false;
  #closed: (() => void) | null = null;

  constructor(data: BusThreadData) {
    this.#data = data;
    this.#thread = this.#start();
  }

  onStatus(listener: (status: BusStatus) => void): () => void {
    this.#statusListeners.add(listener);
    return () => this.#statusListeners.delete(listener);
  }

  publish(subject: string, data: Uint8Array): void {
    this.#post({ kind: 'publish', subject, data });
  }

  subscribe(subject: string, heard: (message: BusMessage) => void): () => void {
    const id = ++this.#ids;
    this.#subscriptions.set(id, { subject, heard });
    this.#post({ kind: 'subscribe', id, subject });
    return () => {
      this.#subscriptions.delete(id);
      this.#post({ kind: 'unsubscribe', id });
    };
  }

  async request(subject: string, data: Uint8Array, timeoutMs: number): Promise<Uint8Array> {
    return (await this.#ask((id) => ({ kind: 'request', id, subject, data, timeoutMs }))) as Uint8Array;
  }

  async flush(timeoutMs: number): Promise<void> {
    await this.#ask((id) => ({ kind: 'flush', id, timeoutMs }));
  }

  call(service: string, method: string, ...args: unknown[]): Promise<unknown> {
    return this.#ask((id) => ({ kind: 'call', id, service, method, args }));
  }

  onEvent(service: string, heard: (event: Event) => void): () => void {
    const listeners = this.#eventListeners.get(service) ?? new Set();
    this.#eventListeners.set(service, listeners.add(heard));
    return () => listeners.delete(heard);
  }

  async close(): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    const closed = new Promise<void>((done) => (this.#closed = done));
    this.#post({ kind: 'close' });
    await closed;
    await this.#thread.terminate();
  }

  #ask(make: (id: number) => ToBusThread): Promise<unknown> {
    const id = ++this.#ids;
    return new Promise((done, refuse) => {
      this.#waiting.set(id, { done, refuse });
      this.#post(make(id));
    });
  }

  #post(message: ToBusThread): void {
    this.#thread.postMessage(message);
  }

  #start(): Worker {
    const thread = new Worker(threadFile('busThread', import.meta.url), { name: 'bus', workerData: this.#data });
    let why = 'the bus thread ended';
    thread.on('message', (message: FromBusThread) => this.#hear(message));
    thread.on('error', (error: unknown) => (why = messageOf(error)));
    thread.on('exit', () => this.#ended(why));
    for (const [id, { subject }] of this.#subscriptions) thread.postMessage({ kind: 'subscribe', id, subject });
    return thread;
  }

  #ended(why: string): void {
    this.#closed?.();
    for (const { refuse } of this.#waiting.values()) refuse(new UnderstudyError('NATS_OFFLINE', why));
    this.#waiting.clear();
    if (this.#closing) return;
    this.#setStatus({ connected: false, code: 'NATS_OFFLINE', message: why, sinceMs: Date.now() });
    setTimeout(() => {
      if (!this.#closing) this.#thread = this.#start();
    }, START_AGAIN_MS);
  }

  #setStatus(status: BusStatus): void {
    this.status = status;
    for (const listener of [...this.#statusListeners]) listener(status);
  }

  #hear(message: FromBusThread): void {
    switch (message.kind) {
      case 'connected':
        this.#setStatus({ connected: true, server: message.server, version: message.version, sinceMs: Date.now() });
        return;
      case 'disconnected': {
        const { code, message: text } = message;
        if (!this.status.connected && this.status.code === code && this.status.message === text) return;
        const sinceMs = this.status.connected ? Date.now() : this.status.sinceMs;
        this.#setStatus({ connected: false, code, message: text, sinceMs });
        return;
      }
      case 'message': {
        const { subject, data, reply } = message;
        this.#subscriptions.get(message.id)?.heard({ subject, data, reply });
        return;
      }
      case 'tooLarge':
        this.tooLarge++;
        return;
      case 'answer':
        this.#waiting.get(message.id)?.done(message.value);
        this.#waiting.delete(message.id);
        return;
      case 'refusal':
        this.#waiting.get(message.id)?.refuse(new UnderstudyError(message.code as ErrorCode, message.message));
        this.#waiting.delete(message.id);
        return;
      case 'event':
        for (const heard of this.#eventListeners.get(message.service) ?? []) heard(message.event);
        return;
      case 'closed':
        this.#closed?.();
    }
  }
}
