import { expect, test } from 'vitest';
import { killAgainAndAgain } from './killNine.ts';

const kills = Number(process.env['UNDERSTUDY_KILLS'] ?? 10);
const seed = Number(process.env['UNDERSTUDY_SEED'] ?? 1);

test(
  `a node killed ${kills} times at random moments (seed ${seed}) keeps every record and every acknowledged command`,
  { timeout: 30_000 + kills * 10_000 },
  async () => {
    const result = await killAgainAndAgain(kills, seed);
    expect(result.kills).toBe(kills);
    expect(result.acknowledged).toBeGreaterThan(0);
    expect(result.requests).toBeGreaterThan(0);
    expect(result.events).toBeGreaterThan(result.kills);
  },
);
