/**
 * A client as a browser is one, on a host of the lab: `retryClient.ts PERIOD_MS URL`. Each period it asks for the page on a
 * connection of its own, whatever became of the ones before; a GET whose connection is reset or refused is sent again, and
 * one that has an answer, whatever it is, is not. Silence is borne for long: the kernel's keep-alive tells of a balancer
 * that has forgotten the connection, or never had it. Five times a second it prints a line of JSON: a `RetryTick`.
 */
import { Agent, request } from 'node:http';

/** Since the start. */
export type RetryTick = { begun: number; answered: number; retried: number; failed: number; failures: string[] };

const TICK_MS = 200;
const MAX_ATTEMPTS = 5;
const PATIENCE_MS = 20_000;
/** Idle so long, a connection is asked whether it still exists. */
const KEEP_ALIVE_MS = 1_000;
const BETWEEN_ATTEMPTS_MS = 50;
const RETRIED = new Set(['ECONNRESET', 'ECONNREFUSED', 'EPIPE', 'EHOSTUNREACH']);

const [periodMs, url] = process.argv.slice(2) as [string, string];
const tick: RetryTick = { begun: 0, answered: 0, retried: 0, failed: 0, failures: [] };

const fail = (why: string): void => {
  tick.failed++;
  if (tick.failures.length < 10) tick.failures.push(why);
};

const attempt = (number: number, beganMs: number): void => {
  const outgoing = request(url, { agent: new Agent({ keepAlive: false }) }, (response) => {
    response.resume();
    response.once('end', () => {
      if (response.statusCode === 200) tick.answered++;
      else fail(`status ${response.statusCode}`);
    });
    response.once('error', (error) => again(error as NodeJS.ErrnoException));
  });
  const again = ({ code = '', message }: NodeJS.ErrnoException): void => {
    if (!RETRIED.has(code) || number >= MAX_ATTEMPTS || performance.now() - beganMs > PATIENCE_MS) {
      fail(`${message} in attempt ${number}`);
      return;
    }
    tick.retried++;
    setTimeout(() => attempt(number + 1, beganMs), BETWEEN_ATTEMPTS_MS);
  };
  outgoing.on('socket', (socket) => socket.setKeepAlive(true, KEEP_ALIVE_MS));
  outgoing.setTimeout(PATIENCE_MS, () => outgoing.destroy(new Error('no answer')));
  outgoing.once('error', (error) => again(error as NodeJS.ErrnoException));
  outgoing.end();
};

setInterval(() => {
  tick.begun++;
  attempt(1, performance.now());
}, Number(periodMs));

setInterval(() => process.stdout.write(`${JSON.stringify(tick)}\n`), TICK_MS);
