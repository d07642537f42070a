/** The list of descriptors that a thread has open, and the end of one that dies with them. */
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { libc } from '../src/net/libc.ts';
import { allocateDescriptors, closeDescriptorsOf, OwnedDescriptors } from '../src/net/ownedDescriptors.ts';
import { within } from './nodeHelpers.ts';
import { eventually, get, getAndClose, HOST, RawClient, rawServer, startProxy, talk } from './proxyHelpers.ts';

const openCount = (): number => readdirSync('/proc/self/fd').length;

const isOpen = (fd: number): boolean => libc().fcntl(fd, 1, 0) >= 0;

describe('the list', () => {
  test('closes what is owned, once, and neither what was given up nor what is kept', () => {
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom('owned', 'disowned', 'kept', 'never'), { minLength: 1, maxLength: 80 }),
        (fates) => {
          const memory = allocateDescriptors();
          const owned = new OwnedDescriptors(memory);
          const all = fates.map((fate) => ({ fate, fd: libc().eventfd(0, 0) }));
          for (const { fate, fd } of all) if (fate !== 'never') owned.own(fd);
          for (const { fate, fd } of all) if (fate === 'disowned') owned.disown(fd);
          const kept = new Set(all.flatMap(({ fate, fd }) => (fate === 'kept' ? [fd] : [])));
          closeDescriptorsOf(memory, kept);
          expect(all.filter(({ fd }) => isOpen(fd)).map(({ fate }) => fate)).toEqual(
            fates.filter((fate) => fate !== 'owned'),
          );
          // The numbers are somebody else's by now.
          const others = all.map(() => libc().eventfd(0, 0));
          closeDescriptorsOf(memory, new Set());
          expect(others.every(isOpen)).toBe(true);
          for (const fd of [...others, ...all.flatMap(({ fate, fd: one }) => (fate === 'owned' ? [] : [one]))])
            libc().close(fd);
        },
      ),
      { numRuns: 100 },
    );
  });

  test('has room for the highest number that the kernel gives, and says so beyond it', () => {
    const owned = new OwnedDescriptors(allocateDescriptors());
    owned.own(2 ** 20 - 1);
    owned.disown(2 ** 20 - 1);
    expect(() => owned.own(2 ** 20)).toThrow(/beyond what is accounted for/);
  });
});

describe('a thread that dies', () => {
  test.each(['waits', 'throws'] as const)(
    'one that %s: nothing that it had stays open, and its client hears of it',
    async (does) => {
      const before = openCount();
      const descriptors = allocateDescriptors();
      const worker = new Worker(join(import.meta.dirname, 'reactorThread.ts'), { workerData: { descriptors, does } });
      worker.on('error', () => {});
      const exited = new Promise<void>((done) => void worker.once('exit', () => done()));
      onTestFinished(async () => void (await worker.terminate()));
      const [{ port }] = (await within('its first word', once(worker, 'message'))) as [{ port: number }];
      // The word of one that throws may come behind its error: then it has accepted, too.
      const accepted = once(worker, 'message').catch(() => {});
      const client = connect({ host: HOST, port });
      client.on('error', () => {});
      const closed = new Promise<void>((done) => void client.once('close', () => done()));
      onTestFinished(() => void client.destroy());
      await within('it is accepted', accepted);
      if (does === 'waits') await worker.terminate();
      await within('its end', exited);
      closeDescriptorsOf(descriptors, new Set());
      client.resume();
      await within('the client hears of it', closed);
      await eventually('nothing is open', () => openCount() === before);
      expect(client.destroyed).toBe(true);
    },
  );

  test.each(['is terminated', 'throws'])(
    'a proxy worker that %s leaves nothing open, and the other one serves on',
    async (how) => {
      const server = await rawServer((socket) => {
        socket.on('data', (chunk) => {
          if (chunk.includes('GET /quick'))
            socket.end('HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nquick');
        });
        socket.on('end', () => socket.end());
      });
      const before = openCount();
      const proxy = await startProxy({ servers: { s: server } });
      // Idle ones, those that wait for an answer, and half a head.
      const clients = ['', get('/slow'), 'GET / HTT'].flatMap((words) =>
        Array.from({ length: 20 }, () => new RawClient(proxy.port).send(words)),
      );
      await eventually('the servers are asked', () => server.sockets.size === 20);
      const end = async (worker: number, count: number) => {
        if (how === 'throws') proxy.workers[worker]!.postMessage({ kind: 'configure', model: null });
        else await proxy.workers[worker]!.terminate();
        await eventually('its end is heard', () => proxy.exits.length === count);
      };
      await end(1, 1);
      expect(await talk(proxy.port, getAndClose('/quick'))).toMatch(/quick$/);
      await end(0, 2);
      expect(proxy.exits.every((exit) => (how === 'throws' ? /Cannot read/ : /EXITED/).test(exit))).toBe(true);
      for (const client of clients) await client.rest();
      await proxy.dataPlane.terminate();
      await eventually('nothing is open', () => openCount() === before);
    },
  );
});
