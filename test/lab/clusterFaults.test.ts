import { expect, test } from 'vitest';
import { seededRandom } from '../../actors/random.ts';
import { has, isRoot } from '../packages.ts';
import { drawFaults, sufferFaults } from './clusterFaults.ts';
import { labForTest } from './labHelpers.ts';

const FAULTS = 20;
const SEED = Number(process.env['UNDERSTUDY_SEED'] ?? 1);

test('a seed draws the same faults again, of every kind, sometimes two at once', () => {
  const drawn = drawFaults(200, seededRandom(SEED));
  expect(drawFaults(200, seededRandom(SEED))).toEqual(drawn);
  expect(drawFaults(200, seededRandom(SEED + 1))).not.toEqual(drawn);
  expect(new Set(drawn.flat().map(({ kind }) => kind)).size).toBe(7);
  expect(drawn.filter((faults) => faults.length === 2).length).toBeGreaterThan(10);
});

test.skipIf(!isRoot || !has('nats-server'))(
  `after each of ${FAULTS} faults (seed ${SEED}) every address has one owner, and the cluster log has every record once`,
  { timeout: 60_000 + FAULTS * 60_000 },
  async () => {
    const lines: string[] = [];
    const result = await sufferFaults(await labForTest(), FAULTS, SEED, (line) => lines.push(line)).catch(
      (error: unknown) => {
        throw new Error(`${String(error)}\n${lines.join('\n')}\nnode test/lab/clusterFaults.ts ${FAULTS} ${SEED}`, {
          cause: error,
        });
      },
    );
    expect(result.faults).toHaveLength(FAULTS);
    expect(result.requests).toBeGreaterThan(1_000);
    expect(result.records).toBeGreaterThan(1_000);
    expect(result.recordsRebuilt).toBeGreaterThan(result.records);
  },
);
