/** One worker of several that take tokens of the same keys at once: tells how many it got. */
import { parentPort, workerData } from 'node:worker_threads';
import { Meters, TokenBuckets } from '../src/proxy/rateTable.ts';

const { kind, memory, start, keys, rounds, tokenMs, burst, untilMs } = workerData as {
  kind: 'tokens' | 'meter';
  memory: SharedArrayBuffer;
  start: Int32Array;
  keys: number;
  rounds: number;
  tokenMs: number;
  burst: number;
  untilMs: number;
};

parentPort!.postMessage('ready');
// All begin at once.
Atomics.wait(start, 0, 0);
const taken = Array<number>(keys).fill(0);
if (kind === 'tokens') {
  const buckets = new TokenBuckets(memory, tokenMs, burst);
  for (let round = 0; round < rounds; round++) {
    const nowMs = (untilMs * round) / rounds;
    for (let key = 0; key < keys; key++) {
      buckets.keyWords(4, key);
      if (buckets.take(nowMs) === 0) taken[key]!++;
    }
  }
} else {
  const meters = new Meters(memory, 1000);
  for (let round = 0; round < rounds; round++) {
    for (let key = 0; key < keys; key++) {
      meters.keyText(`key ${key}`);
      taken[key] = Math.max(taken[key]!, meters.count(0));
    }
  }
}
parentPort!.postMessage(taken);
