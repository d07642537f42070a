/** Floods of connections (test/soak/hostile.ts) up to what a frontend, or the process, may have. */
import { expect, test } from 'vitest';
import { WELL_BEHAVED } from './soak/hostile.ts';
import { hostileInShort } from './soak/hostileInShort.ts';

test('a flood of connections beyond maxConnections delays others until its own time is up, and no longer', async () => {
  const { outcomes, descriptors } = await hostileInShort({
    attackers: { silentConnections: 400 },
    maxConnections: 100,
    timeoutMs: 1_500,
    seconds: 8,
    clients: { ...WELL_BEHAVED, webSockets: 2, tcpSessions: 2 },
  });
  expect(outcomes.silentConnections?.['closed']).toBeGreaterThan(100);
  // One frontend for clients and one for sessions, each with a connection to a server for every one of a client.
  expect(descriptors[1] - descriptors[0]).toBeLessThan(4 * 100);
});

test('a flood up to the limit of descriptors leaves enough for servers, checks and the API', async () => {
  const maxDescriptors = 512;
  const { descriptors } = await hostileInShort({
    attackers: { silentConnections: 900 },
    maxDescriptors,
    timeoutMs: 1_500,
    seconds: 8,
  });
  expect(descriptors[1]).toBeGreaterThan(maxDescriptors / 2);
  expect(descriptors[1]).toBeLessThan(maxDescriptors);
});
