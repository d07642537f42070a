/** Hostile clients beside those who behave (test/soak/hostile.ts), each kind by the dozen: nobody is kept from being served. */
import { expect, test } from 'vitest';
import { everyAttack } from './soak/hostile.ts';
import { hostileInShort } from './soak/hostileInShort.ts';

test('every kind of attack at once is refused or timed out, memory is bounded, and others are served', async () => {
  const { done } = await hostileInShort({ attackers: everyAttack(275) });
  expect(done['POST large']).toBeGreaterThan(0);
});
