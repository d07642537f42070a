import { expect, test } from 'vitest';
import { has, isRoot } from '../packages.ts';
import { labForTest } from './labHelpers.ts';
import { shipThroughFaults } from './logCopies.ts';

const FAULTS = 5;
const SEED = Number(process.env['UNDERSTUDY_SEED'] ?? 1);

test.skipIf(!isRoot || !has('nats-server'))(
  `couriers of which nats-servers are killed, stopped and cut off ${FAULTS} times (seed ${SEED}) leave out no record`,
  async () => {
    const lines: string[] = [];
    const result = await shipThroughFaults(await labForTest(), FAULTS, SEED, (line) => lines.push(line)).catch(
      (error: unknown) => {
        throw new Error(`${String(error)}\n${lines.join('\n')}\nnode test/lab/logCopies.ts ${FAULTS} ${SEED}`, {
          cause: error,
        });
      },
    );
    expect(result.records).toBeGreaterThan(100);
  },
);
