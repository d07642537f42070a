/**
 * HAProxy's rise and fall, for whoever counts the checks of one server: its own machine, or the quorum that stands before
 * it. Failures of live traffic count as its `on-error` has it.
 */
import type { OnError } from './trafficObserver.ts';

type Counting = { count: number; settings: { rise: number; fall: number } };
type Seen = { type: string; onError?: OnError };

/** Failed checks in a row that a server of `fall` counts after errors of live traffic. */
export const failuresAfterTraffic = (onError: OnError, count: number, fall: number): number => {
  switch (onError) {
    case 'fastInterval':
      return count;
    case 'failCheck':
      return count + 1;
    case 'suddenDeath':
      return Math.max(fall - 1, count + 1);
    case 'markDown':
      return fall;
  }
};

/** Failed checks in a row after one more, or after errors of live traffic. */
export const failuresAfter = ({ count, settings }: Counting, { type, onError }: Seen): number =>
  type === 'traffic.failed' && onError !== undefined ? failuresAfterTraffic(onError, count, settings.fall) : count + 1;

type Args = { context: Counting; event: Seen };

export const riseAndFall = {
  firstIsEnoughToFall: ({ context }: Args) => context.settings.fall <= 1,
  firstIsEnoughToRise: ({ context }: Args) => context.settings.rise <= 1,
  isLastOfFall: ({ context }: Args) => context.count + 1 >= context.settings.fall,
  isLastOfRise: ({ context }: Args) => context.count + 1 >= context.settings.rise,
  trafficMarksDown: ({ context, event }: Args) =>
    event.type === 'traffic.failed' &&
    event.onError !== 'fastInterval' &&
    failuresAfter(context, event) >= context.settings.fall,
  onlyHurries: ({ event }: Args) => event.type === 'traffic.failed' && event.onError === 'fastInterval',
};
