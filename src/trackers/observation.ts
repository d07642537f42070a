import { performance } from 'node:perf_hooks';
import { limit } from '../checks/outcome.ts';

/** What a tracker saw when it looked once. `value` is the number that a tracked file holds; null for all other kinds. */
export type Observation = { ok: boolean; value: number | null; code: string; message: string; durationMs: number };

/** Without the duration, which `observe` measures. */
export type Seen = Omit<Observation, 'durationMs'>;

export const seenOk = (code: string, value: number | null = null, message = ''): Seen => ({
  ok: true,
  value,
  code,
  message,
});
export const seenBad = (code: string, message: string): Seen => ({ ok: false, value: null, code, message });

/** Starts to look; `done` is told once, with the time that it took, and never after the returned abort. */
export const observe = (
  start: (finish: (seen: Seen) => void) => () => void,
  done: (observation: Observation) => void,
): (() => void) => {
  const startedAt = performance.now();
  let over = false;
  const giveUp = start((seen) => {
    if (over) return;
    over = true;
    // Whole microseconds: what is recorded reads back as the same number.
    done({ ...seen, durationMs: Math.round((performance.now() - startedAt) * 1000) / 1000 });
  });
  return () => {
    over = true;
    giveUp();
  };
};

/** For what is looked at in steps: `late` is seen when the time is up, and `isOver` says that nobody waits any more. */
export const observeWithin = (
  timeoutMs: number,
  late: Seen,
  look: (isOver: () => boolean) => Promise<Seen>,
  done: (observation: Observation) => void,
): (() => void) =>
  observe((finish) => {
    let over = false;
    const end = () => {
      over = true;
      lift();
    };
    const lift = limit(timeoutMs, () => {
      end();
      finish(late);
    });
    void look(() => over)
      .finally(end)
      .then(finish);
    return end;
  }, done);
