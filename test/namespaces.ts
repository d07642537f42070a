/** What tests of sockets share: being in another network namespace for a moment, and waiting for packets. */
import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';
import koffi from 'koffi';
import { onTestFinished } from 'vitest';
import type { Host } from '../deploy/lab/lab.ts';
import { until, within } from '../deploy/lab/until.ts';
import { libc } from '../src/net/libc.ts';
import { Poller } from '../src/net/poller.ts';
import { RawSocket } from '../src/net/rawSocket.ts';

const CLONE_NEWNET = 0x40000000;

let setns: ((fd: number, type: number) => number) | null = null;

/**
 * What is opened by `act` belongs to the namespace for good, wherever it is used afterwards. Only this thread enters it,
 * and it is back before anything else can run.
 */
export const inNamespace = <T>(namespace: string, act: () => T): T => {
  setns ??= koffi.load(null).func('int setns(int, int)') as unknown as (fd: number, type: number) => number;
  const own = openSync('/proc/thread-self/ns/net', 'r');
  const other = openSync(`/run/netns/${namespace}`, 'r');
  assert.equal(setns(other, CLONE_NEWNET), 0);
  try {
    return act();
  } finally {
    assert.equal(setns(own, CLONE_NEWNET), 0);
    closeSync(own);
    closeSync(other);
  }
};

export const pollerForTest = (): Poller => {
  const poller = Poller.open();
  onTestFinished(() => poller.close());
  return poller;
};

/** Keeps what is heard, and lets it be awaited. */
export class Heard<T> {
  readonly all: T[] = [];
  #waiting = new Set<() => void>();

  readonly push = (one: T): void => {
    this.all.push(one);
    for (const look of this.#waiting) look();
  };

  async until(what: string, isIt: (one: T) => boolean): Promise<T> {
    const found = Promise.withResolvers<T>();
    const look = () => {
      const one = this.all.find(isIt);
      if (one !== undefined) found.resolve(one);
    };
    this.#waiting.add(look);
    look();
    try {
      return await within(what, found.promise);
    } finally {
      this.#waiting.delete(look);
    }
  }

  async count(count: number): Promise<T[]> {
    await this.until(`${count} of them`, () => this.all.length >= count);
    return this.all;
  }
}

/** The socket, which is closed when the test ends. Fails when there is only the reason why there is none. */
export const opened = <T extends { close(): void }>(socket: T | { code: string; message: string }): T => {
  if ('code' in socket) throw new Error(`${socket.code}: ${socket.message}`);
  onTestFinished(() => socket.close());
  return socket;
};

/** IANA's protocol number for experiments. */
const EXPERIMENT = 253;
const ALL_NODES = 'ff02::1';

/**
 * Until each interface of `from` reaches the same one of `to` by IPv6 multicast from its link-local address. The kernel
 * brings new links up in the background: on a busy machine a bridge drops what comes in the first moments.
 */
export const reaching = async (poller: Poller, from: Host, to: Host): Promise<void> => {
  for (const interfaceName of from.interfaces) {
    let arrived = false;
    const openAt = (host: Host, onPacket: () => void) =>
      inNamespace(host.namespace, () => {
        const interfaceIndex = libc().if_nametoindex(interfaceName);
        const where = {
          family: 'ipv6',
          protocol: EXPERIMENT,
          interfaceName,
          interfaceIndex,
          group: ALL_NODES,
        } as const;
        return opened(RawSocket.open({ ...where, poller, onPacket }));
      });
    const receiver = openAt(to, () => (arrived = true));
    const sender = openAt(from, () => {});
    await until(`${from.name} reaches ${to.name} by ${interfaceName}`, async () => {
      sender.send(Buffer.from('here'), ALL_NODES);
      receiver.drain();
      return arrived;
    });
  }
};
