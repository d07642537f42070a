import { expect, test } from 'vitest';
import { runDifferential } from './headDifferential.ts';

test(
  'whatever is accepted, llhttp accepts and reads the same: corpus and 50,000 mutations',
  { timeout: 60_000 },
  () => {
    const { difference, accepted, complete } = runDifferential(50_000, 9112);
    expect(difference).toBe(null);
    // So many that the comparison says something.
    expect(accepted).toBeGreaterThan(10_000);
    expect(complete).toBeGreaterThan(5_000);
  },
);
