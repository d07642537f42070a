/** The soak of hostile clients in a few seconds, for tests. */
import { expect } from 'vitest';
import { runHostile, WELL_BEHAVED } from './hostile.ts';
import type { HostileOptions } from './hostile.ts';

/** The violations say what was refused in another way, or not at all. */
export const hostileInShort = async (options: Partial<HostileOptions>) => {
  const lines: string[] = [];
  const result = await runHostile({
    seconds: 10,
    attackers: {},
    clients: WELL_BEHAVED,
    timeoutMs: 4_000,
    maxConnections: 20_000,
    say: (line) => lines.push(line),
    ...options,
  });
  expect(result.violations, lines.join('\n')).toEqual([]);
  for (const kind of ['GET', 'GET on a new connection', 'GET in HTTP/2', 'WebSocket message', 'TCP message'])
    expect(result.done[kind], kind).toBeGreaterThan(0);
  return result;
};
