import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { expect, onTestFinished, test } from 'vitest';
import { allocateHistograms, Histograms, LATENCY, latencyOf } from '../src/proxy/histograms.ts';
import type { HistogramMemory } from '../src/proxy/histograms.ts';

const histogramsUrl = new URL('../src/proxy/histograms.ts', import.meta.url).href;

const observed = (values: number[], kind = LATENCY.total) => {
  const memory = allocateHistograms(8);
  const histograms = new Histograms(memory);
  for (const us of values) histograms.observe(3, kind, us);
  return latencyOf([memory], 3, kind)!;
};

/** A repeatable stream of numbers in [0, 1). */
const seeded = (seed: number) => () => {
  seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
  return seed / 0x1_0000_0000;
};

test.each([50, 137, 950, 4_321, 77_777, 1_234_567, 59_000_000])('a time of %i µs is known to 10 %%', (us) => {
  // One longer one, so that the maximum doesn't tell.
  const latency = observed([...Array.from({ length: 99 }, () => us), us * 100]);
  expect(Math.abs(latency.quantileUs(0.5) / us - 1)).toBeLessThan(0.1);
});

test('quantiles of a wide distribution are within 10 % of the true ones', () => {
  const random = seeded(7);
  // Log-normal, as latencies are: median 2 ms, with a long tail.
  const values = Array.from({ length: 20_000 }, () => {
    const normal = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
    return 2_000 * Math.exp(normal);
  });
  const latency = observed(values);
  const sorted = values.toSorted((a, b) => a - b);
  for (const quantile of [0.1, 0.5, 0.9, 0.99, 0.999]) {
    const truth = sorted[Math.floor(quantile * sorted.length)]!;
    expect(Math.abs(latency.quantileUs(quantile) / truth - 1), `p${quantile * 100}`).toBeLessThan(0.1);
  }
  expect(latency.maxUs).toBe(sorted.at(-1));
  expect(latency.sumUs).toBeCloseTo(
    values.reduce((sum, value) => sum + value, 0),
    0,
  );
});

test('bounds of powers of two are exact: a time on the bound belongs above it', () => {
  const latency = observed([0, 63, 64, 127, 128, 1_023, 1_024, 1_025, 2 ** 25]);
  expect(latency.cumulative([64, 128, 1_024, 2_048, 2 ** 25, 2 ** 26])).toEqual([2, 4, 6, 8, 8, 9]);
});

test('times that are too long for the buckets, not whole or below zero are counted too', () => {
  const latency = observed([-5, 0.4, 99.9, 2 ** 26, 2 ** 33]);
  expect(latency).toMatchObject({ count: 5, maxUs: 2 ** 33 });
  expect(latency.cumulative([128, 2 ** 26])).toEqual([3, 5]);
  expect(latency.sumUs).toBeCloseTo(100.3 + 2 ** 26 + 2 ** 33);
});

test('the recent average follows the latest 512', () => {
  const latency = observed([...Array.from({ length: 5_000 }, () => 100), ...Array.from({ length: 5_000 }, () => 300)]);
  expect(latency.sumUs / latency.count).toBe(200);
  expect(Math.abs(latency.recentUs - 300)).toBeLessThan(1);
  expect(observed([100, 300]).recentUs).toBe(200);
});

test('kinds and slots are apart, and what was not observed is null', () => {
  const memory = allocateHistograms(8);
  const histograms = new Histograms(memory);
  histograms.observe(0, LATENCY.queue, 10);
  histograms.observe(0, LATENCY.total, 20);
  histograms.observe(1, LATENCY.queue, 30);
  expect(latencyOf([memory], 0, LATENCY.queue)).toMatchObject({ count: 1, sumUs: 10 });
  expect(latencyOf([memory], 0, LATENCY.total)).toMatchObject({ count: 1, sumUs: 20 });
  expect(latencyOf([memory], 1, LATENCY.queue)).toMatchObject({ count: 1, sumUs: 30 });
  expect(latencyOf([memory], 1, LATENCY.connect)).toBeNull();
});

test('memory grows with what is used, and every slot of 10,000 keeps its own', () => {
  const memory = allocateHistograms(10_000);
  const histograms = new Histograms(memory);
  expect(memory.pages.byteLength).toBe(0);
  histograms.observe(9_999, LATENCY.total, 1);
  expect(memory.pages.byteLength).toBeLessThan(64 * 1024);
  for (let slot = 0; slot < 10_000; slot++) {
    for (const kind of [LATENCY.connect, LATENCY.response, LATENCY.total]) histograms.observe(slot, kind, slot);
  }
  expect(memory.pages.byteLength).toBeLessThan(21 * 1024 * 1024);
  expect(latencyOf([memory], 1_234, LATENCY.response)).toMatchObject({ count: 1, sumUs: 1_234 });
  expect(latencyOf([memory], 9_999, LATENCY.total)).toMatchObject({ count: 2, sumUs: 10_000 });
});

test('every kind of every slot has room', () => {
  const memory = allocateHistograms(100);
  const histograms = new Histograms(memory);
  for (let slot = 0; slot < 100; slot++)
    for (const kind of Object.values(LATENCY)) histograms.observe(slot, kind, slot + kind);
  expect(latencyOf([memory], 99, LATENCY.total)).toMatchObject({ count: 1, sumUs: 99 + LATENCY.total });
});

test('what workers observe is merged; one that is started again goes on where it was', async () => {
  const memories = [0, 1].map(() => allocateHistograms(16));
  const run = async (memory: HistogramMemory, times: number) => {
    const source = `
      const { workerData, parentPort } = require('node:worker_threads');
      import(${JSON.stringify(histogramsUrl)}).then(({ Histograms, LATENCY }) => {
        const histograms = new Histograms(workerData.memory);
        for (let slot = 0; slot < 16; slot++) histograms.observe(slot, LATENCY.connect, 1);
        for (let count = 0; count < workerData.times; count++) histograms.observe(5, LATENCY.response, 1000);
        parentPort.postMessage('done');
      });`;
    const thread = new Worker(source, { eval: true, workerData: { memory, times } });
    onTestFinished(async () => void (await thread.terminate()));
    await once(thread, 'message');
  };
  await Promise.all(memories.map((memory) => run(memory, 500)));
  await run(memories[0]!, 10);
  const latency = latencyOf(memories, 5, LATENCY.response)!;
  expect(latency).toMatchObject({ count: 1_010, sumUs: 1_010_000, maxUs: 1_000 });
  expect(latency.cumulative([512, 1_024])).toEqual([0, 1_010]);
  expect(latencyOf(memories, 15, LATENCY.connect)).toMatchObject({ count: 3 });
});

test('a bucket that has counted to 2^32 goes on', () => {
  const memory = allocateHistograms(2);
  const histograms = new Histograms(memory);
  histograms.observe(1, LATENCY.total, 20);
  // As if it had counted for half a day.
  const words = new Uint32Array(memory.pages);
  words[words.findLastIndex((word) => word === 1)] = 2 ** 32 - 2;
  for (let more = 0; more < 5; more++) histograms.observe(1, LATENCY.total, 20);
  expect(latencyOf([memory], 1, LATENCY.total)!.cumulative([1_024])).toEqual([2 ** 32 + 3]);
});
