/** How long a service is away for newcomers: a connection and a request at fixed times, each independent of the others. */
import { request } from 'node:http';

export const PROBE_EVERY_MS = 5;
/** One without an answer for this long has found nobody. */
const ANSWER_WITHIN_MS = 1_000;

export type GapProbe = {
  /** Ends it; the longest time from the start of an attempt that was answered to that of the next one that was, in ms. */
  stop(): Promise<number>;
};

export const startGapProbe = (url: string): GapProbe => {
  const answeredAt: number[] = [];
  const pending = new Set<Promise<void>>();
  const attempt = (): Promise<void> =>
    new Promise((done) => {
      const startedAt = performance.now();
      const outgoing = request(url, { agent: false, timeout: ANSWER_WITHIN_MS }, (response) => {
        response.resume();
        response.on('end', () => {
          if (response.statusCode === 200) answeredAt.push(startedAt);
        });
        response.on('error', () => outgoing.destroy());
      });
      outgoing.on('timeout', () => outgoing.destroy(new Error('no answer')));
      // Refused, reset or silent: all the same to who asks.
      outgoing.on('error', () => outgoing.destroy());
      outgoing.on('close', done);
      outgoing.end();
    });
  const timer = setInterval(() => {
    const one = attempt().finally(() => pending.delete(one));
    pending.add(one);
  }, PROBE_EVERY_MS);
  return {
    stop: async () => {
      clearInterval(timer);
      await Promise.all(pending);
      const times = answeredAt.toSorted((a, b) => a - b);
      return Math.max(0, ...times.slice(1).map((time, index) => time - times[index]!));
    },
  };
};
