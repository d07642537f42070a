/** The courier: how the way to the cluster log is, and when it is tried again. Shipping itself is no event. */
import { expect, test } from 'vitest';
import { courier } from '../machines/courier.ts';
import type { CourierEvent } from '../machines/courier.ts';
import { delayOf, Stepper, typesOf } from './stepper.ts';

const connected: CourierEvent = { type: 'nats.connected', server: 'nats://10.0.0.11:4222 (n1)' };
const lost: CourierEvent = { type: 'nats.disconnected', code: 'NATS_UNREACHABLE', message: 'the connection is lost' };
const located = (behind: number): CourierEvent => ({ type: 'log.located', behind });
const full: CourierEvent = { type: 'log.refused', code: 'NATS_STREAM_REFUSED', message: 'insufficient storage' };
const fenced: CourierEvent = { type: 'log.fenced', journal: 'ab12' };

const started = (): Stepper<CourierEvent> => new Stepper(courier, {});

test('it is offline until NATS is there, then finds out where the node stands, catches up and is in step', () => {
  const machine = started();
  expect(machine.state).toBe('offline');
  expect(typesOf(machine.send(connected))).toEqual(['ship']);
  expect(machine.state).toBe('connecting');
  machine.send(located(400));
  expect(machine.state).toBe('catchingUp');
  machine.send({ type: 'log.caughtUp' });
  expect(machine.state).toBe('inStep');
});

test('a log that lacks nothing is in step at once', () => {
  const machine = started();
  machine.sendAll(connected, located(0));
  expect(machine.state).toBe('inStep');
});

test('one that has fallen behind catches up again', () => {
  const machine = started();
  machine.sendAll(connected, located(0), { type: 'log.fellBehind', behind: 30_000 });
  expect(machine.state).toBe('catchingUp');
  machine.send({ type: 'log.caughtUp' });
  expect(machine.state).toBe('inStep');
});

test('being told again that all has been shipped leaves the very same snapshot', () => {
  const machine = started();
  machine.sendAll(connected, located(0));
  const before = machine.snapshot;
  expect(machine.send({ type: 'log.caughtUp' })).toEqual([]);
  expect(machine.snapshot).toBe(before);
});

test.each(['connecting', 'catchingUp', 'inStep', 'refused', 'fenced'])(
  'without NATS it is offline, from %s too',
  (from) => {
    const machine = started();
    const way: Record<string, CourierEvent[]> = {
      connecting: [],
      catchingUp: [located(1)],
      inStep: [located(0)],
      refused: [full],
      fenced: [fenced],
    };
    machine.sendAll(connected, ...way[from]!);
    expect(machine.state).toBe(from);
    machine.send(lost);
    expect(machine.state).toBe('offline');
    // What was still on its way when the connection went is about a log that nobody reaches now.
    machine.sendAll(located(5), full, fenced, { type: 'log.caughtUp' });
    expect(machine.state).toBe('offline');
  },
);

test('what refuses is asked again after 2 s, 4 s, 8 s, 16 s, and from then on every 30 s', () => {
  const machine = started();
  machine.send(connected);
  const delays = [delayOf(machine.send(full), 'retry')];
  for (let attempt = 0; attempt < 5; attempt++) {
    const effects = machine.send({ type: 'retry.due' });
    expect(typesOf(effects)).toContain('ship');
    delays.push(delayOf(effects, 'retry'));
    machine.send(full);
    expect(machine.state).toBe('refused');
  }
  expect(delays).toEqual([2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
});

test('a refusal that lasts is steady: the same context, within a routine', () => {
  const machine = started();
  machine.sendAll(connected, full);
  for (let attempt = 0; attempt < 5; attempt++) machine.sendAll({ type: 'retry.due' }, full);
  const before = machine.snapshot;
  machine.sendAll({ type: 'retry.due' }, full);
  expect(machine.snapshot.context).toBe(before.context);
  expect(machine.snapshot.hasTag('routine')).toBe(true);
});

test('a log that takes records again is shipped to, and the retries begin anew at the next refusal', () => {
  const machine = started();
  machine.sendAll(connected, full, { type: 'retry.due' }, { type: 'retry.due' });
  expect(typesOf(machine.send(located(7)))).toEqual(['cancel']);
  expect(machine.state).toBe('catchingUp');
  machine.send({ type: 'log.caughtUp' });
  expect(delayOf(machine.send(full), 'retry')).toBe(2_000);
});

test('one that is fenced off ships nothing, looks every five seconds, and goes on when nobody else is there', () => {
  const machine = started();
  machine.send(connected);
  expect(delayOf(machine.send(fenced), 'look')).toBe(5_000);
  expect(machine.state).toBe('fenced');
  const before = machine.snapshot;
  machine.send(fenced);
  expect(machine.snapshot).toBe(before);
  const effects = machine.send({ type: 'look.due' });
  expect([typesOf(effects).includes('ship'), delayOf(effects, 'look')]).toEqual([true, 5_000]);
  expect(machine.snapshot.context).toBe(before.context);
  machine.send(located(10));
  expect(machine.state).toBe('catchingUp');
});
