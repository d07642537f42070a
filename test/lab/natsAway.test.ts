import { expect, test } from 'vitest';
import { has, isRoot } from '../packages.ts';
import { labForTest } from './labHelpers.ts';
import { goWithoutNats } from './natsAway.ts';

/** Two cores carry three nodes and three nats-servers here: what a machine of one's own does in a moment may take this long. */
const MARGIN_MS = 400;

test.skipIf(!isRoot || !has('nats-server'))(
  'with all of NATS away servers fail, masters fail over as with it, and the log is complete soon after its return',
  { timeout: 240_000 },
  async () => {
    const result = await goWithoutNats(await labForTest(), 10, 2, () => {});
    const { withNats, withoutNats } = result.gapsMs;
    expect(withoutNats).toHaveLength(withNats.length);
    expect(Math.max(...withoutNats)).toBeLessThan(Math.max(...withNats) + MARGIN_MS);
    expect(result.failedByServers).toBe(0);
    expect(result.recordsMeanwhile).toBeGreaterThan(100);
    expect(result.completeAfterSeconds).toBeLessThan(20);
    expect(result.records).toBeGreaterThan(result.recordsMeanwhile);
  },
);
