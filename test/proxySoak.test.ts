/** The soak of the data plane (test/soak/proxy.ts) in a quarter of a minute. */
import { expect, test } from 'vitest';
import { runSoak } from './soak/proxy.ts';

test('servers that die and return under mixed load cost nobody an answer that had not begun, and leave nothing behind', async () => {
  const lines: string[] = [];
  const result = await runSoak({
    seconds: 8,
    connections: 200,
    thinkMs: 300,
    killEveryMs: 2_000,
    reloadEveryMs: 2_500,
    sampleEveryMs: 1_000,
    say: (line) => lines.push(line),
  });
  expect(result.violations, lines.join('\n')).toEqual([]);
  expect(result.kills).toBeGreaterThan(1);
  expect(result.reloads).toBeGreaterThan(1);
  const kinds = ['GET', 'HEAD', 'POST chunked', 'GET in HTTP/2', 'WebSocket message', 'TCP message', 'GET read slowly'];
  for (const kind of kinds) expect(result.done[kind], kind).toBeGreaterThan(0);
});
