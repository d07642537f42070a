/** The event loop of a data-plane thread: what it tells, in which order, and that Node's own loop lives inside it. */
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setImmediate as nextTurn, setTimeout as wait } from 'node:timers/promises';
import { MessageChannel, Worker } from 'node:worker_threads';
import { gzip, gunzip } from 'node:zlib';
import { promisify } from 'node:util';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { seededRandom } from '../actors/random.ts';
import { libc } from '../src/net/libc.ts';
import { allocateDescriptors, closeDescriptorsOf } from '../src/net/ownedDescriptors.ts';
import { EPOLLIN, EPOLLOUT } from '../src/net/reactor.ts';
import type { Reactor, Task } from '../src/net/reactor.ts';
import { within } from './nodeHelpers.ts';
import { HOST, reactorForTest, Waiting } from './reactorHelpers.ts';

const EFD_NONBLOCK = 0o4000;
const ONE = Buffer.alloc(8);
ONE.writeBigUInt64LE(1n);

/** Readable from `signal` to `clear`, and always writable. The reactor closes it. */
const newEvent = () => {
  const fd = libc().eventfd(0, EFD_NONBLOCK);
  return {
    fd,
    signal: () => expect(libc().write(fd, ONE, 8)).toBe(8),
    clear: () => libc().read(fd, Buffer.alloc(8), 8),
  };
};

/** After the events of so many rounds. */
const rounds = async (reactor: Reactor, count: number): Promise<void> => {
  const waiting = new Waiting(reactor);
  let left = count;
  const task: Task = {
    run: () => {
      if (--left > 0) reactor.defer(task);
      waiting.changed();
    },
  };
  reactor.defer(task);
  await waiting.until('the rounds', () => left <= 0);
};

/** It always has something to do: nothing waits for it to sleep. */
const keepBusy = (reactor: Reactor): void => {
  let isOver = false;
  const task: Task = {
    run: () => {
      if (!isOver) reactor.defer(task);
    },
  };
  reactor.defer(task);
  onTestFinished(() => {
    isOver = true;
  });
};

describe('watchers', () => {
  test('are told of what happens once, and again only when something happens again', async () => {
    const reactor = reactorForTest();
    const waiting = new Waiting(reactor);
    const event = newEvent();
    const heard: number[] = [];
    reactor.watch(event.fd, {
      onEvents: (events) => {
        heard.push(events);
        waiting.changed();
      },
    });
    await waiting.until('the first', () => heard.length === 1);
    expect(heard).toEqual([EPOLLOUT]);
    event.signal();
    await waiting.until('the second', () => heard.length === 2);
    expect(heard[1]).toBe(EPOLLIN + EPOLLOUT);
    await rounds(reactor, 5);
    expect(heard).toHaveLength(2);
    event.signal();
    await waiting.until('the third', () => heard.length === 3);
  });

  test('of a listening socket are told in each round for as long as somebody waits', async () => {
    const reactor = reactorForTest();
    const event = newEvent();
    let told = 0;
    reactor.watchListening(event.fd, { onEvents: () => told++ });
    await rounds(reactor, 3);
    expect(told).toBe(0);
    event.signal();
    await rounds(reactor, 10);
    expect(told).toBeGreaterThanOrEqual(9);
    event.clear();
    const before = told;
    await rounds(reactor, 3);
    expect(told).toBe(before);
  });

  test('that were taken off hear nothing, and can be put back on', async () => {
    const reactor = reactorForTest();
    const event = newEvent();
    let told = 0;
    const watcher = { onEvents: () => told++ };
    reactor.watchListening(event.fd, watcher);
    reactor.unwatch(event.fd);
    event.signal();
    await rounds(reactor, 3);
    expect(told).toBe(0);
    reactor.watchListening(event.fd, watcher);
    await rounds(reactor, 3);
    expect(told).toBeGreaterThan(0);
  });

  test('that replace another are told instead of it', async () => {
    const reactor = reactorForTest();
    const event = newEvent();
    const told: string[] = [];
    reactor.watch(event.fd, { onEvents: () => told.push('first') });
    await rounds(reactor, 2);
    reactor.rewatch(event.fd, { onEvents: () => told.push('second') });
    event.signal();
    await rounds(reactor, 2);
    expect(told).toEqual(['first', 'second']);
  });

  test('of what is closed hear nothing more, although its events were there already', async () => {
    const reactor = reactorForTest();
    const events = [newEvent(), newEvent()];
    const told: number[] = [];
    for (const [index, { fd, signal }] of events.entries()) {
      signal();
      reactor.watch(fd, {
        onEvents: () => {
          told.push(index);
          for (const event of events) reactor.close(event.fd);
        },
      });
    }
    await rounds(reactor, 3);
    expect(told).toHaveLength(1);
  });

  test('of a new descriptor are not told what happened to an old one of the same number', async () => {
    const reactor = reactorForTest();
    const events = [newEvent(), newEvent()];
    const told: number[] = [];
    for (const [index, { fd, signal }] of events.entries()) {
      signal();
      reactor.watch(fd, {
        onEvents: () => {
          const other = events[1 - index]!;
          reactor.close(other.fd);
          const fresh = newEvent();
          expect(fresh.fd).toBe(other.fd);
          reactor.watch(fresh.fd, { onEvents: (what) => told.push(what) });
        },
      });
    }
    await rounds(reactor, 3);
    expect(told).toEqual([EPOLLOUT]);
  });
});

describe('tasks', () => {
  test('run after the events of the round, and those that they defer after those of the next', async () => {
    const reactor = reactorForTest();
    const order: string[] = [];
    const event = newEvent();
    event.signal();
    reactor.watchListening(event.fd, { onEvents: () => order.push('event') });
    const second: Task = { run: () => order.push('second') };
    reactor.defer({
      run: () => {
        order.push('first');
        reactor.defer(second);
      },
    });
    await rounds(reactor, 3);
    expect(order.slice(0, 4)).toEqual(['event', 'first', 'event', 'second']);
  });
});

describe('timers', () => {
  test('ring in time by the clock, in an idle loop and in a busy one', async () => {
    for (const isBusy of [false, true]) {
      const reactor = reactorForTest();
      if (isBusy) keepBusy(reactor);
      const waiting = new Waiting(reactor);
      for (const ms of [0, 1, 5, 30]) {
        await rounds(reactor, 2);
        const setAtMs = reactor.nowMs;
        let rangAtMs: number | null = null;
        reactor.timers
          .make(() => {
            rangAtMs = performance.now();
            waiting.changed();
          })
          .set(ms);
        await waiting.until('it rings', () => rangAtMs !== null);
        expect(rangAtMs! - setAtMs).toBeGreaterThanOrEqual(ms);
      }
    }
  });

  test('ring after Node’s own callbacks have held the thread up', async () => {
    const reactor = reactorForTest();
    const waiting = new Waiting(reactor);
    let rang = 0;
    for (const ms of [10, 20]) {
      reactor.timers
        .make(() => {
          rang++;
          waiting.changed();
        })
        .set(ms);
    }
    const untilMs = performance.now() + 50;
    while (performance.now() < untilMs);
    await waiting.until('both', () => rang === 2);
    expect(rang).toBe(2);
  });

  /** From its setting to its ring, when the round in which it is set goes on like this. */
  const rangAfter = async (ms: number, restOfRound: () => void): Promise<number> => {
    const reactor = reactorForTest();
    const waiting = new Waiting(reactor);
    await rounds(reactor, 2);
    let setAtMs = 0;
    let rangAtMs = 0;
    reactor.defer({
      run: () => {
        setAtMs = performance.now();
        reactor.timers
          .make(() => {
            rangAtMs = performance.now();
            waiting.changed();
          })
          .set(ms);
        restOfRound();
      },
    });
    await waiting.until('it rings', () => rangAtMs > 0);
    return rangAtMs - setAtMs;
  };

  test('never go back, however long the thread was kept from running without a moment of its own', async () => {
    const now = performance.now.bind(performance);
    const random = seededRandom(1);
    let aheadMs = 0;
    vi.spyOn(performance, 'now').mockImplementation(() => now() + aheadMs);
    vi.spyOn(process, 'threadCpuUsage').mockReturnValue({ user: 0, system: 0 });
    onTestFinished(() => void vi.restoreAllMocks());
    const reactor = reactorForTest();
    const heldUp: number[] = [];
    for (let halt = 0; halt < 200; halt++) {
      aheadMs += 1_000 * random();
      reactor.wakeNode();
      await nextTurn();
      heldUp.push(reactor.timers.nowMs);
    }
    expect(heldUp).toEqual(heldUp.toSorted((a, b) => a - b));
  });

  test('leave out the time in which the thread was kept from running', async () => {
    const halt = () => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 900);
    // All that the thread does within the round may be counted against it.
    expect(await rangAfter(600, halt)).toBeGreaterThan(900 + 300);
  });

  test('count the time in which the thread was busy', async () => {
    const work = () => {
      const begun = process.threadCpuUsage().user;
      while (process.threadCpuUsage().user - begun < 700_000);
      reported = performance.now();
    };
    let reported = 0;
    const began = performance.now();
    const ms = await rangAfter(600, work);
    // On a machine that gives it the processor for a part of the time, that part counts.
    expect(ms).toBeLessThan(reported - began + 600);
  });
});

describe.each(['idle', 'busy'] as const)('inside an %s reactor, of Node’s own', (how) => {
  const start = () => {
    const reactor = reactorForTest();
    if (how === 'busy') keepBusy(reactor);
    return reactor;
  };

  test('timers and immediates go on', async () => {
    start();
    await within('timers', Promise.all([wait(1), wait(20), wait(60)]));
    await within('an immediate', new Promise((done) => setImmediate(done)));
    const repeated = new Promise<void>((done) => {
      let count = 0;
      const timer = setInterval(() => {
        if (++count < 3) return;
        clearInterval(timer);
        done();
      }, 5);
    });
    await expect(within('an interval', repeated)).resolves.toBeUndefined();
  });

  test('message ports, files, threads of the pool, and sockets go on', async () => {
    start();
    const { port1, port2 } = new MessageChannel();
    onTestFinished(() => port1.close());
    port2.on('message', (message: number) => port2.postMessage(message + 1));
    for (let count = 0; count < 50; count++) {
      const answer = once(port1, 'message');
      port1.postMessage(count);
      expect((await within('the answer', answer))[0]).toBe(count + 1);
    }
    const text = await within('a file', readFile(import.meta.filename));
    const packed = await within('gzip', promisify(gzip)(text));
    expect((await within('gunzip', promisify(gunzip)(packed))).equals(text)).toBe(true);
  });
});

describe('in a thread of its own', () => {
  const start = async (does: 'waits' | 'throws' | 'spins') => {
    const descriptors = allocateDescriptors();
    const worker = new Worker(join(import.meta.dirname, 'reactorThread.ts'), { workerData: { descriptors, does } });
    const errors: string[] = [];
    worker.on('error', (error: Error) => errors.push(error.message));
    const exited = new Promise<number>((done) => void worker.once('exit', done));
    onTestFinished(async () => {
      await worker.terminate();
      closeDescriptorsOf(descriptors, new Set());
    });
    const [{ port }] = (await within('its first word', once(worker, 'message'))) as [{ port: number }];
    return { worker, port, errors, exited };
  };

  const connectTo = (port: number) => {
    const socket = connect({ host: HOST, port });
    socket.on('error', () => {});
    onTestFinished(() => void socket.destroy());
    return socket;
  };

  /** Connects, and waits until the thread has accepted. */
  const client = async (worker: Worker, port: number) => {
    const accepted = once(worker, 'message');
    const socket = connectTo(port);
    await within('it is accepted', accepted);
    return socket;
  };

  test.each(['waits', 'spins'] as const)(
    'one that %s hears messages, and ends when it is told to stop',
    async (does) => {
      const { worker, exited } = await start(does);
      for (let count = 0; count < 10; count++) {
        const echo = once(worker, 'message');
        worker.postMessage('echo');
        expect((await within('the echo', echo))[0]).toBe('echo');
      }
      worker.postMessage('stop');
      expect(await within('its end', exited)).toBe(0);
    },
  );

  test.each(['waits', 'spins'] as const)('one that %s can be terminated at any time', async (does) => {
    const { worker, port, errors } = await start(does);
    await client(worker, port);
    await within('its end', worker.terminate());
    expect(errors).toEqual([]);
  });

  test('an error thrown in a watcher is the thread’s end, and is told', async () => {
    const { port, errors, exited } = await start('throws');
    // Its word that it has accepted may come behind its error.
    connectTo(port);
    expect(await within('its end', exited)).toBe(1);
    expect(errors).toEqual(['thrown in a watcher']);
  });
});
