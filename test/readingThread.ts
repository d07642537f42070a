/** A program whose threads are terminated while they read memory of OpenSSL's; it ends with 0 when it survives that. */
import { once } from 'node:events';
import { isMainThread, parentPort, Worker } from 'node:worker_threads';
import { addressOf } from '../src/net/libc.ts';
import { bytesAt } from '../src/net/openssl.ts';

const THREADS = 30;

if (isMainThread) {
  for (let count = 0; count < THREADS; count++) {
    const thread = new Worker(import.meta.filename);
    await once(thread, 'message');
    await thread.terminate();
  }
} else {
  const text = Buffer.alloc(8, 'http/1.1');
  const address = addressOf(text);
  // Libraries are loaded by the first call.
  bytesAt(address, text.length);
  parentPort!.postMessage('reading');
  for (;;) bytesAt(address, text.length);
}
