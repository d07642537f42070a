import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { expect, onTestFinished, test } from 'vitest';
import {
  allocate,
  COUNTER,
  Counters,
  figuresOf,
  GAUGE,
  giveBackFor,
  memoryOfWorker,
  statusCounter,
} from '../src/proxy/counters.ts';
import type { SharedMemory } from '../src/proxy/counters.ts';

const countersUrl = new URL('../src/proxy/counters.ts', import.meta.url).href;

/** Runs this code in `count` real threads at once; each has `counters` and its `index`. */
const inThreads = async (memory: SharedMemory, count: number, code: string): Promise<unknown[]> => {
  const threads = Array.from({ length: count }, (_, index) => {
    const source = `
      const { workerData, parentPort } = require('node:worker_threads');
      import(${JSON.stringify(countersUrl)}).then(({ Counters, COUNTER, GAUGE }) => {
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
      counters.change(7, GAUGE.active, 1);
      counters.change(7, GAUGE.queued, 1);
      counters.change(7, GAUGE.queued, -1);
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
      most = Math.max(most, counters.gauge(0, GAUGE.active));
      counters.change(0, GAUGE.active, -1);
    }
    return most;`,
  );
  expect(Math.max(...most.map(Number))).toBeLessThanOrEqual(2);
  expect(figuresOf(memory, 0).active).toBe(0);
});

test('a limit of 0 is no limit', () => {
  const counters = new Counters(memoryOfWorker(allocate(), 0));
  for (let count = 0; count < 100; count++) expect(counters.take(3, 0)).toBe(true);
  expect(counters.gauge(3, GAUGE.active)).toBe(100);
});

test('counters are summed over workers', async () => {
  const memory = allocate();
  await inThreads(
    memory,
    2,
    `counters.add(5, COUNTER.requests, index + 1); counters.add(5, COUNTER.bytesIn, 2 ** 40);`,
  );
  expect(figuresOf(memory, 5)).toMatchObject({ requests: 3, bytesIn: 2 ** 41, bytesOut: 0 });
});

test('giveBackFor gives back what that worker held, once, and keeps its counters', () => {
  const memory = allocate();
  const [first, second] = [0, 1].map((index) => new Counters(memoryOfWorker(memory, index)));
  first!.take(1, 5);
  first!.take(1, 5);
  first!.change(2, GAUGE.queued, 1);
  first!.add(1, COUNTER.sessions, 2);
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

test('a gauge’s maximum is the most that it was over all workers, and stays', () => {
  const memory = allocate();
  const [first, second] = [0, 1].map((index) => new Counters(memoryOfWorker(memory, index)));
  first!.take(4, 0);
  second!.take(4, 9);
  first!.take(4, 9);
  second!.change(4, GAUGE.queued, 1);
  second!.change(4, GAUGE.queued, -1);
  for (let left = 0; left < 3; left++) first!.change(4, GAUGE.active, -1);
  second!.take(4, 9);
  expect(figuresOf(memory, 4)).toMatchObject({ active: 1, maxActive: 3, queued: 0, maxQueued: 1 });
  expect(figuresOf(memory, 3)).toMatchObject({ maxActive: 0, maxQueued: 0 });
  expect(figuresOf(memory, 5)).toMatchObject({ maxActive: 0, maxQueued: 0, requests: 0 });
});

test('what a worker that ended had reached stays the maximum', () => {
  const memory = allocate();
  new Counters(memoryOfWorker(memory, 0)).take(1, 0);
  giveBackFor(memory, 0);
  expect(figuresOf(memory, 1)).toMatchObject({ active: 0, maxActive: 1 });
});

test('every counter has a place of its own', () => {
  const memory = allocate();
  const counters = new Counters(memoryOfWorker(memory, 0));
  const all = Object.entries(COUNTER);
  all.forEach(([, counter], index) => counters.add(2, counter, index + 1));
  const figures = figuresOf(memory, 2);
  all.forEach(([name], index) => expect(figures[name as keyof typeof COUNTER], name).toBe(index + 1));
});

test.each([
  [101, 'status1xx'],
  [200, 'status2xx'],
  [299, 'status2xx'],
  [304, 'status3xx'],
  [499, 'status4xx'],
  [503, 'status5xx'],
  [600, 'statusOther'],
  [99, 'statusOther'],
] as const)('a status %i counts as %s', (status, name) => {
  expect(statusCounter(status)).toBe(COUNTER[name]);
});
