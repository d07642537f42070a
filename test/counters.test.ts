import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { expect, onTestFinished, test } from 'vitest';
import { allocate, Counters, figuresOf, giveBackFor, memoryOfWorker } from '../src/proxy/counters.ts';
import type { SharedMemory } from '../src/proxy/counters.ts';

const countersUrl = new URL('../src/proxy/counters.ts', import.meta.url).href;

/** Runs this code in `count` real threads at once; each has `counters` and its `index`. */
const inThreads = async (memory: SharedMemory, count: number, code: string): Promise<unknown[]> => {
  const threads = Array.from({ length: count }, (_, index) => {
    const source = `
      const { workerData, parentPort } = require('node:worker_threads');
      import(${JSON.stringify(countersUrl)}).then(({ Counters }) => {
        const counters = new Counters(workerData.memory);
        const { index } = workerData;
        parentPort.postMessage((() => { ${code} })());
      });`;
    return new Worker(source, { eval: true, workerData: { memory: memoryOfWorker(memory, index), index } });
  });
  onTestFinished(async () => void (await Promise.all(threads.map((thread) => thread.terminate()))));
  const answers = await Promise.all(threads.map((thread) => once(thread, 'message')));
  return answers.map(([answer]) => answer as unknown);
};

test('gauges are exact over threads that change them at the same time', async () => {
  const memory = allocate();
  await inThreads(
    memory,
    3,
    `for (let round = 0; round < 100_000; round++) {
      counters.change(7, 'active', 1);
      counters.change(7, 'queued', 1);
      counters.change(7, 'queued', -1);
    }`,
  );
  expect(figuresOf(memory, 7)).toMatchObject({ active: 300_000, queued: 0 });
  expect(figuresOf(memory, 6)).toMatchObject({ active: 0, queued: 0 });
});

test('a limit holds over all threads, to the place', async () => {
  const memory = allocate();
  const taken = await inThreads(
    memory,
    3,
    `let taken = 0;
    for (let round = 0; round < 50_000; round++) if (counters.take(0, 1000)) taken++;
    return taken;`,
  );
  expect(taken.reduce((sum: number, each) => sum + Number(each), 0)).toBe(1000);
  expect(figuresOf(memory, 0).active).toBe(1000);
});

test('a limit is never passed while places come and go', async () => {
  const memory = allocate();
  const most = await inThreads(
    memory,
    3,
    `let most = 0;
    for (let round = 0; round < 50_000; round++) {
      if (!counters.take(0, 2)) continue;
      most = Math.max(most, counters.gauge(0, 'active'));
      counters.change(0, 'active', -1);
    }
    return most;`,
  );
  expect(Math.max(...most.map(Number))).toBeLessThanOrEqual(2);
  expect(figuresOf(memory, 0).active).toBe(0);
});

test('a limit of 0 is no limit', () => {
  const counters = new Counters(memoryOfWorker(allocate(), 0));
  for (let count = 0; count < 100; count++) expect(counters.take(3, 0)).toBe(true);
  expect(counters.gauge(3, 'active')).toBe(100);
});

test('counters are summed over workers', async () => {
  const memory = allocate();
  await inThreads(memory, 2, `counters.add(5, 'requests', index + 1); counters.add(5, 'bytesIn', 2 ** 40);`);
  expect(figuresOf(memory, 5)).toMatchObject({ requests: 3, bytesIn: 2 ** 41, bytesOut: 0 });
});

test('giveBackFor gives back what that worker held, once, and keeps its counters', () => {
  const memory = allocate();
  const [first, second] = [0, 1].map((index) => new Counters(memoryOfWorker(memory, index)));
  first!.take(1, 5);
  first!.take(1, 5);
  first!.change(2, 'queued', 1);
  first!.add(1, 'sessions', 2);
  second!.take(1, 5);
  giveBackFor(memory, 0);
  giveBackFor(memory, 0);
  giveBackFor(memory, 9);
  expect(figuresOf(memory, 1)).toMatchObject({ active: 1, sessions: 2 });
  expect(figuresOf(memory, 2).queued).toBe(0);
  const again = new Counters(memoryOfWorker(memory, 0));
  again.take(1, 5);
  expect(figuresOf(memory, 1).active).toBe(2);
});
