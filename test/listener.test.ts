/** One bound address: opened, lost, tried again, drained. */
import { describe, expect, test } from 'vitest';
import { dataPlaneHands } from '../actors/dataPlane.ts';
import { listener } from '../machines/listener.ts';
import type { ListenerEvent } from '../machines/listener.ts';
import { delayOf, Stepper, typesOf } from './stepper.ts';
import { say, Scenario, send, start, wait } from './transcript.ts';

const INPUT = { frontend: 'shop', address: '*:80', retryMs: 1000, drainMs: 30_000 };
const RETRY = 'xstate.after.retry.listener.failed';
const DRAIN_TIMEOUT = 'xstate.after.drainTimeout.listener.draining';
const failure: ListenerEvent = { type: 'listener.failed', code: 'EADDRINUSE', message: 'address in use' };

const closedListener = (): Stepper<ListenerEvent> => new Stepper(listener, INPUT);

const listenerIn = (state: 'opening' | 'open' | 'draining' | 'failed'): Stepper<ListenerEvent> => {
  const machine = closedListener();
  machine.send({ type: 'listener.open' });
  if (state === 'open' || state === 'draining') machine.send({ type: 'listener.opened' });
  if (state === 'draining') machine.send({ type: 'listener.drain' });
  if (state === 'failed') machine.send(failure);
  expect(machine.state).toBe(state);
  return machine;
};

const elapse = (machine: Stepper<ListenerEvent>, timer: string) =>
  machine.send({ type: timer } as unknown as ListenerEvent);

test('a listener starts closed and opens nothing by itself', () => {
  const machine = closedListener();
  expect([machine.state, machine.started]).toEqual(['closed', []]);
});

test('it is opening until a worker says that it listens', () => {
  const machine = closedListener();
  expect(machine.send({ type: 'listener.open' })).toEqual([{ type: 'openListener' }]);
  expect(machine.state).toBe('opening');
  expect(machine.send({ type: 'listener.opened' })).toEqual([]);
  expect(machine.state).toBe('open');
});

test('further workers that listen change nothing', () => {
  const machine = listenerIn('open');
  const before = machine.snapshot;
  machine.send({ type: 'listener.opened' });
  expect(machine.snapshot).toBe(before);
});

test.each(['opening', 'open'] as const)('a failure while %s is tried again after the retry time', (state) => {
  const machine = listenerIn(state);
  expect(delayOf(machine.send(failure), RETRY)).toBe(1000);
  expect(machine.state).toBe('failed');
  expect(elapse(machine, RETRY)).toContainEqual({ type: 'openListener' });
  expect(machine.state).toBe('opening');
});

test('a listener that failed in one worker is open when another one gets through', () => {
  const machine = listenerIn('failed');
  machine.send({ type: 'listener.opened' });
  expect(machine.state).toBe('open');
});

test('draining ends when the last session has', () => {
  const machine = listenerIn('open');
  const effects = machine.send({ type: 'listener.drain' });
  expect(effects).toContainEqual({ type: 'drainListener' });
  expect(delayOf(effects, DRAIN_TIMEOUT)).toBe(30_000);
  expect(typesOf(machine.send({ type: 'listener.drained' }))).not.toContain('closeListener');
  expect(machine.state).toBe('closed');
});

test('sessions that outlast the drain time are closed', () => {
  const machine = listenerIn('draining');
  expect(elapse(machine, DRAIN_TIMEOUT)).toContainEqual({ type: 'closeListener' });
  expect(machine.state).toBe('closed');
});

test.each(['opening', 'failed'] as const)('one that is %s has nothing to drain and closes at once', (state) => {
  const machine = listenerIn(state);
  expect(machine.send({ type: 'listener.drain' })).toContainEqual({ type: 'closeListener' });
  expect(machine.state).toBe('closed');
});

test('a draining listener does not open again by a late word of a worker', () => {
  const machine = listenerIn('draining');
  machine.sendAll({ type: 'listener.opened' }, failure);
  expect(machine.state).toBe('draining');
});

test('a draining listener that is wanted again opens again, and the end of its drain is old news', () => {
  const machine = listenerIn('draining');
  expect(typesOf(machine.send({ type: 'listener.open' }))).toContain('openListener');
  expect(machine.state).toBe('opening');
  machine.sendAll({ type: 'listener.drained' }, { type: 'listener.opened' }, { type: 'listener.drained' });
  expect(machine.state).toBe('open');
});

test('times that change by a reload hold from the next use on', () => {
  const machine = listenerIn('open');
  machine.send({ type: 'settings.changed', retryMs: 5, drainMs: 7 });
  expect(machine.state).toBe('open');
  expect(delayOf(machine.send({ type: 'listener.drain' }), DRAIN_TIMEOUT)).toBe(7);
});

test('its hands open, drain and close the listener of its own id', () => {
  const calls: string[] = [];
  const record = (name: string) => (what: unknown) => calls.push(`${name} ${String(what)}`);
  const hands = dataPlaneHands({
    publish: record('publish'),
    shutdownSessions: record('shutdownSessions'),
    openListener: record('open'),
    drainListener: record('drain'),
    closeListener: record('close'),
    startWorker: record('startWorker'),
    drainWorker: record('drainWorker'),
    endWorker: record('endWorker'),
  });
  const scenario = new Scenario({ hands }).play(
    start('listener/shop/*:80', 'listener', INPUT),
    send('listener/shop/*:80', 'listener.open'),
    send('listener/shop/*:80', 'listener.opened'),
    send('listener/shop/*:80', 'listener.drain'),
    wait(30_000),
  );
  expect(calls).toEqual(['open listener/shop/*:80', 'drain listener/shop/*:80', 'close listener/shop/*:80']);
  expect(scenario.faults).toEqual([]);
});

describe('scenarios', () => {
  test('an address that is taken at first, opened, and drained to its end', async () => {
    const id = 'listener/shop/*:80';
    const scenario = new Scenario().play(
      start(id, 'listener', INPUT),
      send(id, 'listener.open'),
      wait(5),
      send(id, 'listener.failed', failure),
      wait(1005),
      say('The second attempt gets through.'),
      send(id, 'listener.opened'),
      wait(10_000),
      say('A session stays to the end of the drain time.'),
      send(id, 'listener.drain'),
      wait(40_000),
      say('Opened and drained once more, this time without sessions. The drain timer must not come back.'),
      send(id, 'listener.open'),
      send(id, 'listener.opened'),
      wait(1000),
      send(id, 'listener.drain'),
      wait(20),
      send(id, 'listener.drained'),
      wait(60_000),
    );
    await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/listener.txt');
    expect(scenario.system.pendingTimers()).toEqual([]);
    expect(scenario.system.counters.unhandled).toBe(0);
  });
});
