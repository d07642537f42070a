import { expect, test } from 'vitest';
import { has, isRoot } from '../packages.ts';
import { runBusy } from './busy.ts';
import { labForTest } from './labHelpers.ts';

test.skipIf(!isRoot || !has('wrk'))('with every core busy with traffic nobody takes over', async () => {
  const result = await runBusy(await labForTest(), 10);
  expect(result.transitions).toEqual([]);
  expect(result.failedRequests).toBe(0);
  expect(result.requestsPerSecond).toBeGreaterThan(100);
  expect(result.verified).toBe(true);
});
