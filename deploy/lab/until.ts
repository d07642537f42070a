import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';

/** How long anything in the lab that is waited for may take: seconds, where a dozen nodes share the processors many. */
export const PATIENCE_MS = 60_000;

/** Between two looks: a look starts a program or two, and what a dozen tests look at should not be what they wait for. */
const LOOK_MS = 100;

/** A promise that fails, with what was waited for, when the time is up. */
export const within = async <T>(what: string, promise: Promise<T>, timeoutMs = PATIENCE_MS): Promise<T> => {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, refuse) => {
    timer = setTimeout(() => refuse(new Error(`${what}: not within ${timeoutMs} ms`)), timeoutMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
};

/** Looks again and again at what the kernel doesn't announce, until there is something. */
export const until = async <T>(
  what: string,
  look: () => Promise<T | null | false>,
  timeoutMs = PATIENCE_MS,
): Promise<T> => {
  const endsAt = performance.now() + timeoutMs;
  for (;;) {
    const found = await look();
    if (found !== null && found !== false) return found;
    assert(performance.now() < endsAt, `${what}: not within ${timeoutMs} ms`);
    await delay(LOOK_MS);
  }
};
