/** Bodies that no buffer holds (test/soak/largeBodies.ts), in short: 64 MiB each. */
import { expect, test } from 'vitest';
import { runLargeBodies } from './soak/largeBodies.ts';

test('64 MiB up, down and both ways, with a length and in chunks, with TLS and slow readers: unchanged, in little memory', async () => {
  const lines: string[] = [];
  const { violations, bodies } = await runLargeBodies(64 * 1024 * 1024, (line) => lines.push(line));
  expect(violations, lines.join('\n')).toEqual([]);
  expect(bodies).toHaveLength(12);
}, 180_000);
