/** A reactor in the thread of the test itself, and streams on it whose every word is written down. */
import { once } from 'node:events';
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { onTestFinished } from 'vitest';
import { closeDescriptorsOf, allocateDescriptors } from '../src/net/ownedDescriptors.ts';
import { PlainWire } from '../src/net/plainWire.ts';
import { Reactor } from '../src/net/reactor.ts';
import { acceptedPeer, acceptFrom, listenOn, localOf } from '../src/net/tcpSocket.ts';
import type { ListenOptions, Opened } from '../src/net/tcpSocket.ts';
import { SocketStream } from '../src/proxy/socketStream.ts';
import type { Begin } from '../src/proxy/socketStream.ts';
import type { StreamUser } from '../src/proxy/stream.ts';
import { libc } from '../src/net/libc.ts';
import { within } from './nodeHelpers.ts';

export const HOST = '127.0.0.1';

export const LISTEN: ListenOptions = {
  reusePort: false,
  freeBind: false,
  backlog: 64,
  file: { mode: null, uid: null, gid: null },
};

/** It ends with the test, and so does what it has open. */
export const reactorForTest = (): Reactor => {
  const descriptors = allocateDescriptors();
  const reactor = new Reactor(descriptors);
  onTestFinished(async () => {
    reactor.stop();
    // Its last turn closes its epoll.
    for (let turns = 0; turns < 3; turns++) await nextTurn();
    closeDescriptorsOf(descriptors, new Set());
  });
  return reactor;
};

/** What is waited for is mostly told by the reactor, within whose turn no promise goes on. */
export class Waiting {
  readonly #reactor: Reactor;
  readonly #looks = new Set<() => void>();

  constructor(reactor: Reactor) {
    this.#reactor = reactor;
  }

  changed(): void {
    if (this.#looks.size === 0) return;
    for (const look of [...this.#looks]) look();
    this.#reactor.wakeNode();
  }

  until(what: string, isSo: () => boolean): Promise<void> {
    const found = new Promise<void>((resolve) => {
      const look = () => {
        if (!isSo()) return;
        this.#looks.delete(look);
        resolve();
      };
      this.#looks.add(look);
      look();
    });
    return within(what, found);
  }
}

/** Writes down what a stream tells. */
export class Told extends Waiting implements StreamUser {
  /** `data`, `drain`, `end`, `closed ERROR`; data once for all that came in a row. */
  readonly events: string[] = [];
  text = '';
  /** Called with each piece of data instead of keeping it. */
  onBytes: ((bytes: Buffer) => void) | null = null;

  onData(bytes: Buffer): void {
    if (this.onBytes) this.onBytes(bytes);
    else this.text += bytes.toString('latin1');
    this.#tell('data');
  }

  onDrain(): void {
    this.#tell('drain');
  }

  onEnd(): void {
    this.#tell('end');
  }

  onClosed(error: string | null): void {
    this.#tell(`closed ${error}`);
  }

  told(event: string): Promise<void> {
    return this.until(`${event}, after ${this.events.join(', ')}`, () => this.events.includes(event));
  }

  #tell(event: string): void {
    if (event !== 'data' || this.events.at(-1) !== 'data') this.events.push(event);
    this.changed();
  }
}

/** Told of hang-ups too. */
export class ToldAll extends Told {
  onHangUp(): void {
    this.events.push('hangUp');
    this.changed();
  }
}

export const opened = (result: Opened): number => {
  if ('code' in result) throw new Error(result.code);
  return result.fd;
};

export type Pair = { fd: number; peer: Socket };

/** A connected, non-blocking descriptor that nobody watches yet, and its peer. */
export const socketPair = async (): Promise<Pair> => {
  const listening = opened(listenOn({ host: HOST, port: 0 }, LISTEN));
  const peer = connect({ host: HOST, port: localOf(listening).port, allowHalfOpen: true });
  peer.on('error', () => {});
  onTestFinished(() => void peer.destroy());
  await once(peer, 'connect');
  const accepted = acceptFrom(listening);
  libc().close(listening);
  if (!accepted) throw new Error('nobody waits');
  return { fd: opened(accepted), peer };
};

export type Streams = { stream: SocketStream; peer: Socket; told: Told; fd: number };

/** A stream, and Node's own socket at the other end. */
export const streamPair = async (
  reactor: Reactor,
  told: Told = new Told(reactor),
  begin: Begin = {},
): Promise<Streams> => {
  const { fd, peer } = await socketPair();
  const stream = new SocketStream(reactor, fd, new PlainWire(fd), acceptedPeer(), begin);
  stream.user = told;
  return { stream, peer, told, fd };
};
