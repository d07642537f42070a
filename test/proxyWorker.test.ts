/** One data-plane thread: started again after a back-off that grows with each death and is forgotten after a while. */
import { describe, expect, test } from 'vitest';
import { dataPlaneHands } from '../actors/dataPlane.ts';
import { proxyWorker } from '../machines/proxyWorker.ts';
import type { ProxyWorkerContext, ProxyWorkerEvent } from '../machines/proxyWorker.ts';
import { delayOf, Stepper, typesOf } from './stepper.ts';
import { say, Scenario, send, start, wait } from './transcript.ts';

const BACKOFF = 'xstate.after.backoff.proxyWorker.crashed';
const STABLE = 'xstate.after.stable.proxyWorker.ready';
const died: ProxyWorkerEvent = { type: 'worker.exited', code: 'ERR', message: 'out of memory' };

type Worker = Stepper<ProxyWorkerEvent, ProxyWorkerContext>;

const startingWorker = (): Worker => new Stepper(proxyWorker, { index: 2 });

const elapse = (worker: Worker, timer: string) => worker.send({ type: timer } as unknown as ProxyWorkerEvent);

test('it starts its thread as soon as it is there', () => {
  const worker = startingWorker();
  expect([worker.state, worker.started]).toEqual(['starting', [{ type: 'startWorker' }]]);
  worker.send({ type: 'worker.ready' });
  expect(worker.state).toBe('ready');
});

test.each(['starting', 'ready'])('a death while %s is a crash, and the thread is started again', (state) => {
  const worker = startingWorker();
  if (state === 'ready') worker.send({ type: 'worker.ready' });
  expect(delayOf(worker.send(died), BACKOFF)).toBe(100);
  expect(worker.state).toBe('crashed');
  expect(elapse(worker, BACKOFF)).toContainEqual({ type: 'startWorker' });
  expect(worker.state).toBe('starting');
});

test('the back-off doubles with each death, up to ten seconds', () => {
  const worker = startingWorker();
  const delays: (number | null)[] = [];
  for (let death = 0; death < 10; death++) {
    delays.push(delayOf(worker.send(died), BACKOFF));
    elapse(worker, BACKOFF);
  }
  expect(delays).toEqual([100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
});

test('a thousand deaths are still ten seconds apart', () => {
  const worker = startingWorker();
  for (let death = 0; death < 1100; death++) worker.sendAll(died, { type: BACKOFF } as unknown as ProxyWorkerEvent);
  expect(delayOf(worker.send(died), BACKOFF)).toBe(10_000);
});

test('being ready for a moment does not make up for earlier deaths; half a minute does', () => {
  const worker = startingWorker();
  worker.send(died);
  elapse(worker, BACKOFF);
  expect(delayOf(worker.send({ type: 'worker.ready' }), STABLE)).toBe(30_000);
  expect(delayOf(worker.send(died), BACKOFF)).toBe(200);
  elapse(worker, BACKOFF);
  worker.send({ type: 'worker.ready' });
  elapse(worker, STABLE);
  expect([worker.state, worker.context.crashes]).toEqual(['ready', 0]);
  expect(delayOf(worker.send(died), BACKOFF)).toBe(100);
});

test('a drained worker that ends is stopped, not crashed', () => {
  const worker = startingWorker();
  worker.send({ type: 'worker.ready' });
  expect(worker.send({ type: 'worker.drain' })).toContainEqual({ type: 'drainWorker' });
  expect(worker.state).toBe('draining');
  expect(typesOf(worker.send({ type: 'worker.drain' }))).toEqual([]);
  worker.send(died);
  expect(worker.state).toBe('stopped');
});

test('a drained worker whose sessions outlast the drain is ended', () => {
  const worker = startingWorker();
  worker.send({ type: 'worker.ready' });
  const effects = worker.send({ type: 'worker.drain' });
  const timer = 'xstate.after.drainTimeout.proxyWorker.draining';
  expect(delayOf(effects, timer)).toBe(30_000);
  expect(worker.send({ type: timer } as never)).toContainEqual({ type: 'endWorker' });
  worker.send(died);
  expect(worker.state).toBe('stopped');
});

test('a worker that is drained before it was ready ends all the same', () => {
  const worker = startingWorker();
  expect(worker.send({ type: 'worker.drain' })).toContainEqual({ type: 'drainWorker' });
  worker.sendAll({ type: 'worker.ready' }, died);
  expect(worker.state).toBe('stopped');
});

test('a crashed worker that is drained is not started again', () => {
  const scenario = new Scenario().play(
    start('worker/0', 'proxyWorker', { index: 0 }),
    send('worker/0', 'worker.exited', { code: 'ERR', message: '' }),
    send('worker/0', 'worker.drain'),
    wait(60_000),
  );
  expect(scenario.stateOf('worker/0')).toBe('stopped');
  expect(scenario.system.pendingTimers()).toEqual([]);
  expect(scenario.system.counters.timersFired).toBe(0);
});

test('its hands start and drain the thread of its own number', () => {
  const calls: string[] = [];
  const record = (name: string) => (what: unknown) => calls.push(`${name} ${String(what)}`);
  const hands = dataPlaneHands({
    publish: record('publish'),
    shutdownSessions: record('shutdownSessions'),
    openListener: record('openListener'),
    drainListener: record('drainListener'),
    closeListener: record('closeListener'),
    startWorker: record('start'),
    drainWorker: record('drain'),
    endWorker: record('end'),
  });
  new Scenario({ hands }).play(
    start('worker/12', 'proxyWorker', { index: 12 }),
    send('worker/12', 'worker.ready'),
    send('worker/12', 'worker.drain'),
  );
  expect(calls).toEqual(['start 12', 'drain 12']);
});

describe('scenarios', () => {
  test('a worker that dies thrice, then lives', async () => {
    const exited = send('worker/0', 'worker.exited', { code: 'ERR', message: 'out of memory' });
    const scenario = new Scenario().play(
      start('worker/0', 'proxyWorker', { index: 0 }),
      wait(30),
      send('worker/0', 'worker.ready'),
      wait(5000),
      exited,
      wait(100),
      say('It dies at the start, twice.'),
      exited,
      wait(200),
      exited,
      wait(400),
      say('It lives: after half a minute its deaths are forgotten.'),
      send('worker/0', 'worker.ready'),
      wait(40_000),
      exited,
      wait(100),
      send('worker/0', 'worker.ready'),
      wait(10),
      say('Drained.'),
      send('worker/0', 'worker.drain'),
      wait(50),
      exited,
      wait(60_000),
    );
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/worker-dies.txt');
    expect(scenario.stateOf('worker/0')).toBe('stopped');
  });
});
