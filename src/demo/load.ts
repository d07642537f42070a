/** A steady load of GET requests on kept-alive connections, started at fixed times whether or not earlier ones ended. */
import { Agent, request } from 'node:http';

export type Load = {
  requests: number;
  failed: number;
  failures: string[];
  latenciesMs: number[];
  stop(): Promise<void>;
};

/** Failures that are kept word by word; the count goes on. */
const MAX_FAILURES_KEPT = 20;
/** A request without an answer for this long has failed. */
const REQUEST_TIMEOUT_MS = 5_000;

const isReset = (error: NodeJS.ErrnoException): boolean => error.code === 'ECONNRESET' || error.code === 'EPIPE';

export const startLoad = (url: string, perSecond: number): Load => {
  const agent = new Agent({ keepAlive: true, maxSockets: 64 });
  const pending = new Set<Promise<void>>();
  const load: Load = { requests: 0, failed: 0, failures: [], latenciesMs: [], stop: async () => {} };
  const fail = (reason: string) => {
    load.failed++;
    if (load.failures.length < MAX_FAILURES_KEPT) load.failures.push(reason);
  };
  const once = (startedAt = performance.now()): Promise<void> =>
    new Promise((done) => {
      const outgoing = request(url, { agent, timeout: REQUEST_TIMEOUT_MS }, (response) => {
        response.resume();
        response.on('end', () => {
          load.latenciesMs.push(performance.now() - startedAt);
          if (response.statusCode !== 200) fail(`status ${response.statusCode}`);
          done();
        });
        response.on('error', (error) => {
          fail(error.message);
          done();
        });
      });
      outgoing.on('timeout', () => outgoing.destroy(new Error('no answer')));
      outgoing.on('error', (error) => {
        // RFC 9112 section 9.3.1: a kept connection may be closed at any time, and the client asks again on another one.
        if (outgoing.reusedSocket && isReset(error)) {
          done(once(startedAt));
          return;
        }
        fail(error.message);
        done();
      });
      outgoing.end();
    });
  const beganAt = performance.now();
  const timer = setInterval(() => {
    // As many as are due by now: a timer that is late makes up for it.
    const due = Math.floor(((performance.now() - beganAt) / 1000) * perSecond);
    while (load.requests < due) {
      load.requests++;
      const one = once().finally(() => pending.delete(one));
      pending.add(one);
    }
  }, 5);
  load.stop = async () => {
    clearInterval(timer);
    await Promise.all(pending);
    agent.destroy();
  };
  return load;
};
