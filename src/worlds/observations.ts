/** What was seen when something was looked at, to answer whoever looks at it in another world. */

/** `monoUs`: when the look ended. */
export type Observed<Answer extends { durationMs: number }> = { monoUs: number; answer: Answer };

/**
 * The observation that a look started now would have made: the one that ended within `windowMs` from now may well have
 * been this very look, else it is the nearest.
 */
export const nearestObservation = <Answer extends { durationMs: number }>(
  observations: Observed<Answer>[],
  nowUs: number,
  windowMs: number,
): { seen: Observed<Answer>; isSame: boolean } | null => {
  const nextIndex = firstAfter(observations, nowUs);
  const next = observations[nextIndex];
  const previous = observations[nextIndex - 1];
  if (next && next.monoUs - nowUs <= windowMs * 1000) return { seen: next, isSame: true };
  if (!previous || !next) {
    const seen = next ?? previous;
    return seen ? { seen, isSame: false } : null;
  }
  return { seen: next.monoUs - nowUs < nowUs - previous.monoUs ? next : previous, isSame: false };
};

/** Index of the first that ended after this moment. */
export const firstAfter = (list: readonly { monoUs: number }[], nowUs: number): number => {
  let low = 0;
  let high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle]!.monoUs > nowUs) high = middle;
    else low = middle + 1;
  }
  return low;
};
