/**
 * Listening sockets of a node, one for each listener and worker. The control thread opens them, so that a worker that
 * dies leaves its clients in the kernel's queue for the next one, and so that another process can take them over.
 */
import { formatEndpoint } from '../config/units.ts';
import { libc } from '../net/libc.ts';
import { duplicate, listenOn, localOf } from '../net/tcpSocket.ts';
import type { Opened } from '../net/tcpSocket.ts';
import type { ListenerModel } from './model.ts';

/** Connections that the kernel may hold for us while we are busy; it caps the number at net.core.somaxconn. */
export const BACKLOG = 4096;

export type ListenFailure = { code: string; message: string };

/** What a worker listens on from now on, all of it; some of it was another worker's until now. */
export type Assigned = { descriptors: number[]; port: number; from: { worker: number; descriptors: number[] } | null };

type Sockets = {
  /** Of the kernel's choice, where the configuration has 0. */
  port: number;
  byWorker: Map<number, number[]>;
  /** Whoever comes waits there until a worker gets it. */
  free: number[];
};

/**
 * A socket is closed with its listener only: closing one of several that share a port would reset all who wait there or
 * are about to. It is a worker's for as long as that lives; after that, another's.
 */
export class ListeningSockets {
  #listeners = new Map<string, Sockets>();
  #handedOver = new Map<string, number[]>();

  /** Sockets of an earlier process, by the id of their listener. */
  adopt(sockets: ReadonlyMap<string, number[]>): void {
    for (const [id, descriptors] of sockets) this.#handedOver.set(id, [...descriptors]);
  }

  /** Those that nobody has asked for: what the new configuration has no listener for. */
  dropUnclaimed(): void {
    for (const descriptors of this.#handedOver.values()) closeEach(descriptors);
    this.#handedOver.clear();
  }

  /** At least one socket, so that what is in the way is found before there are workers. */
  open(model: ListenerModel): ListenFailure | null {
    const sockets = this.#socketsOf(model);
    return sockets.free.length > 0 || sockets.byWorker.size > 0 ? null : this.#openOne(model, sockets);
  }

  /** What is free, or a part of what others have too much of, or a new one. */
  assign(model: ListenerModel, worker: number): Assigned | ListenFailure {
    const sockets = this.#socketsOf(model);
    const { byWorker } = sockets;
    const own = byWorker.get(worker) ?? [];
    const from = own.length + sockets.free.length === 0 ? takeHalf(byWorker) : null;
    if (own.length + sockets.free.length === 0 && !from) {
      const failure = this.#openOne(model, sockets);
      if (failure) return failure;
    }
    own.push(...sockets.free, ...(from?.descriptors ?? []));
    sockets.free = [];
    byWorker.set(worker, own);
    return { descriptors: [...own], port: sockets.port, from };
  }

  /** Of a worker that is gone, or leaves. */
  release(worker: number): void {
    for (const { byWorker, free } of this.#listeners.values()) {
      free.push(...(byWorker.get(worker) ?? []));
      byWorker.delete(worker);
    }
  }

  hasFree(id: string): boolean {
    return (this.#listeners.get(id)?.free.length ?? 0) > 0;
  }

  portOf(id: string): number {
    return this.#listeners.get(id)?.port ?? 0;
  }

  /** The listener ends: workers close theirs. */
  forget(id: string): void {
    closeEach(this.#listeners.get(id)?.free ?? []);
    this.#listeners.delete(id);
  }

  /** When no worker lives any more. */
  closeAll(): void {
    closeEach(this.all);
    this.#listeners.clear();
  }

  /** All of a listener, for another process. */
  of(id: string): number[] {
    const sockets = this.#listeners.get(id);
    return sockets ? [...sockets.byWorker.values(), sockets.free].flat() : [];
  }

  get all(): Set<number> {
    return new Set([...this.#listeners.keys()].flatMap((id) => this.of(id)));
  }

  #socketsOf({ id }: ListenerModel): Sockets {
    const known = this.#listeners.get(id);
    if (known) return known;
    const free = this.#handedOver.get(id) ?? [];
    this.#handedOver.delete(id);
    const sockets = { port: free.length > 0 ? localOf(free[0]!).port : 0, byWorker: new Map<number, number[]>(), free };
    this.#listeners.set(id, sockets);
    return sockets;
  }

  #openOne(model: ListenerModel, sockets: Sockets): ListenFailure | null {
    const opened = this.#opened(model, sockets);
    if ('code' in opened) {
      if (this.of(model.id).length === 0) this.#listeners.delete(model.id);
      return { code: opened.code, message: `${formatEndpoint(model.address)} can't be bound: ${opened.code}` };
    }
    sockets.free.push(opened.fd);
    sockets.port = localOf(opened.fd).port;
    return null;
  }

  #opened({ id, address, freeBind, socketFile: file }: ListenerModel, { port }: Sockets): Opened {
    const [first] = this.of(id);
    if (address.path !== undefined && first !== undefined) return duplicate(first);
    const endpoint = port === 0 ? address : { ...address, port };
    return listenOn(endpoint, { reusePort: true, freeBind, backlog: BACKLOG, file });
  }
}

/** Of the worker that has the most, when that is more than one. */
const takeHalf = (byWorker: ReadonlyMap<number, number[]>): { worker: number; descriptors: number[] } | null => {
  let richest: [number, number[]] | null = null;
  for (const entry of byWorker) if (entry[1].length > (richest?.[1].length ?? 1)) richest = entry;
  if (!richest) return null;
  const [worker, descriptors] = richest;
  return { worker, descriptors: descriptors.splice(Math.ceil(descriptors.length / 2)) };
};

const closeEach = (descriptors: Iterable<number>): void => {
  for (const fd of descriptors) libc().close(fd);
};
