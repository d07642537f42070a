/** The table of timers: what is due first, ties in the order of setting, and nothing that was cancelled or replaced. */
import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { TimerTable } from '../actors/timerTable.ts';
import type { Timer } from '../actors/timerTable.ts';

const EVENT = { type: 'rang' };

const namesOf = (timers: Timer[]): string[] => timers.map(({ actor, id }) => `${actor}.${id}`);

const takeAll = (table: TimerTable, nowUs: number): Timer[] => {
  const taken: Timer[] = [];
  for (let timer = table.takeDue(nowUs); timer; timer = table.takeDue(nowUs)) taken.push(timer);
  return taken;
};

test('an empty table has no deadline and nothing due', () => {
  const table = new TimerTable();
  expect(table.size).toBe(0);
  expect(table.nextDeadlineUs()).toBeNull();
  expect(table.takeDue(Infinity)).toBeNull();
  expect(table.pending()).toEqual([]);
});

test('the earliest deadline comes first, whatever the order of setting', () => {
  const table = new TimerTable();
  for (const deadlineUs of [30, 10, 20]) table.set('a', String(deadlineUs), EVENT, deadlineUs, null);
  expect(table.nextDeadlineUs()).toBe(10);
  expect(namesOf(takeAll(table, 100))).toEqual(['a.10', 'a.20', 'a.30']);
});

test('timers of one deadline come in the order in which they were set', () => {
  const table = new TimerTable();
  for (const actor of ['c', 'a', 'b', 'e', 'd']) table.set(actor, 'x', EVENT, 5, null);
  expect(namesOf(takeAll(table, 5))).toEqual(['c.x', 'a.x', 'b.x', 'e.x', 'd.x']);
});

test('a timer is due at its deadline and not a microsecond before', () => {
  const table = new TimerTable();
  table.set('a', 'x', EVENT, 1000, null);
  expect(table.takeDue(999)).toBeNull();
  expect(table.takeDue(1000)?.id).toBe('x');
  expect(table.takeDue(1000)).toBeNull();
});

test('setting a timer again replaces it, and puts it behind those of the same deadline', () => {
  const table = new TimerTable();
  table.set('a', 'x', EVENT, 10, null);
  table.set('b', 'x', EVENT, 10, null);
  table.set('a', 'x', { type: 'second' }, 10, null);
  expect(table.size).toBe(2);
  expect(takeAll(table, 10).map(({ actor, event }) => `${actor} ${event.type}`)).toEqual(['b rang', 'a second']);
});

test('a timer can be replaced by a later one', () => {
  const table = new TimerTable();
  table.set('a', 'x', EVENT, 10, null);
  table.set('a', 'x', EVENT, 20, null);
  expect(table.nextDeadlineUs()).toBe(20);
  expect(table.takeDue(10)).toBeNull();
});

test('a cancelled timer does not come, and one that is not there can be cancelled', () => {
  const table = new TimerTable();
  table.set('a', 'x', EVENT, 10, null);
  table.set('a', 'y', EVENT, 20, null);
  table.cancel('a', 'x');
  table.cancel('a', 'x');
  table.cancel('a', 'unknown');
  table.cancel('unknown', 'x');
  expect(table.size).toBe(1);
  expect(table.nextDeadlineUs()).toBe(20);
  expect(namesOf(takeAll(table, 100))).toEqual(['a.y']);
});

test('a timer that has come can be set again', () => {
  const table = new TimerTable();
  table.set('a', 'x', EVENT, 10, null);
  table.takeDue(10);
  expect(table.size).toBe(0);
  table.set('a', 'x', EVENT, 20, null);
  expect(namesOf(takeAll(table, 20))).toEqual(['a.x']);
});

test('an actor that goes takes its timers with it, and only its own', () => {
  const table = new TimerTable();
  table.set('a', 'x', EVENT, 10, null);
  table.set('b', 'x', EVENT, 20, null);
  table.set('a', 'y', EVENT, 30, null);
  table.cancelAll('a');
  table.cancelAll('never seen');
  expect(namesOf(table.pending())).toEqual(['b.x']);
});

test('a timer names the record that set it', () => {
  const table = new TimerTable();
  table.set('a', 'x', EVENT, 10, { seq: 7 });
  expect(table.takeDue(10)?.cause).toEqual({ seq: 7 });
});

test('a timer that is moved keeps its event and what set it, and comes at the other time, once', () => {
  const table = new TimerTable();
  const cause = { seq: 7 };
  table.set('a', 'x', { type: 'moved' }, 100, cause);
  table.set('b', 'x', EVENT, 105, null);
  table.move('a', 'x', 10, 0);
  expect(table.size).toBe(2);
  expect(table.nextDeadlineUs()).toBe(105);
  expect(takeAll(table, 109).map(({ actor }) => actor)).toEqual(['b']);
  expect(table.takeDue(110)).toMatchObject({ event: { type: 'moved' }, cause, deadlineUs: 110 });
  expect(table.takeDue(Infinity)).toBeNull();
});

test('a timer can be moved to earlier, step by step, by single microseconds', () => {
  const table = new TimerTable();
  table.set('a', 'x', EVENT, 100, null);
  table.set('b', 'x', EVENT, 100, null);
  table.move('b', 'x', -1, 0);
  expect(namesOf(table.pending())).toEqual(['b.x', 'a.x']);
  table.move('a', 'x', -2, 0);
  expect(namesOf(takeAll(table, 99))).toEqual(['a.x', 'b.x']);
});

test('what is not pending is not moved: never set, taken, or cancelled', () => {
  const table = new TimerTable();
  table.set('a', 'taken', EVENT, 1, null);
  table.set('a', 'cancelled', EVENT, 2, null);
  table.takeDue(1);
  table.cancel('a', 'cancelled');
  for (const id of ['taken', 'cancelled', 'never']) table.move('a', id, 5, 0);
  table.move('nobody', 'x', 5, 0);
  expect(table.size).toBe(0);
  expect(table.nextDeadlineUs()).toBeNull();
});

test('a timer is not moved into the past: it would look late, and is due now', () => {
  const table = new TimerTable();
  table.set('a', 'x', EVENT, 100, null);
  table.move('a', 'x', -60, 90);
  expect(table.nextDeadlineUs()).toBe(90);
  table.move('a', 'x', 25, 90);
  expect(table.nextDeadlineUs()).toBe(115);
});

test.each([
  ['earlier', -5, 100],
  ['later, but not to a time that is still to come', 5, 105],
  ['later, to a time that is still to come', 60, 160],
])('a timer that is overdue and moved to %s keeps what is left of its lateness', (_where, byUs, deadlineUs) => {
  const table = new TimerTable();
  table.set('a', 'x', EVENT, 100, null);
  table.move('a', 'x', byUs, 130);
  expect(table.nextDeadlineUs()).toBe(deadlineUs);
});

test('dead timers in their thousands leave the order of the living as it was', () => {
  const table = new TimerTable();
  // More than are kept before the heap is rebuilt; each is replaced three times, most are cancelled.
  const names = Array.from({ length: 3000 }, (_, index) => `actor${index}`);
  for (let round = 0; round < 4; round++) {
    names.forEach((name, index) => table.set(name, 'x', EVENT, (index * 7919) % 5003, null));
  }
  names.forEach((name, index) => {
    if (index % 10 !== 0) table.cancel(name, 'x');
  });
  const expected = names
    .map((name, index) => ({ name, index, deadlineUs: (index * 7919) % 5003 }))
    .filter(({ index }) => index % 10 === 0)
    .sort((a, b) => a.deadlineUs - b.deadlineUs || a.index - b.index)
    .map(({ name }) => `${name}.x`);
  expect(table.size).toBe(300);
  expect(namesOf(table.pending())).toEqual(expected);
  expect(namesOf(takeAll(table, Infinity))).toEqual(expected);
});

/** What the table is to do, said as slowly as possible: a list, sorted anew for each question. */
class NaiveTable {
  timers: { actor: string; id: string; deadlineUs: number; order: number }[] = [];
  #order = 0;

  set(actor: string, id: string, deadlineUs: number): void {
    this.cancel(actor, id);
    this.timers.push({ actor, id, deadlineUs, order: this.#order++ });
  }

  move(actor: string, id: string, byUs: number, nowUs: number): void {
    const timer = this.timers.find((other) => other.actor === actor && other.id === id);
    if (!timer) return;
    const movedUs = timer.deadlineUs + byUs;
    const earliestUs = timer.deadlineUs < nowUs ? timer.deadlineUs : nowUs;
    this.set(actor, id, movedUs < earliestUs ? earliestUs : movedUs);
  }

  cancel(actor: string, id: string): void {
    this.timers = this.timers.filter((timer) => timer.actor !== actor || timer.id !== id);
  }

  cancelAll(actor: string): void {
    this.timers = this.timers.filter((timer) => timer.actor !== actor);
  }

  sorted(): typeof this.timers {
    return this.timers.toSorted((a, b) => a.deadlineUs - b.deadlineUs || a.order - b.order);
  }

  takeDue(nowUs: number): string | null {
    const first = this.sorted()[0];
    if (!first || first.deadlineUs > nowUs) return null;
    this.cancel(first.actor, first.id);
    return `${first.actor}.${first.id}`;
  }
}

const actor = fc.constantFrom('a', 'b', 'c', 'd');
const id = fc.constantFrom('x', 'y', 'z');
const deadlineUs = fc.integer({ min: 0, max: 12 });
const operation = fc.oneof(
  { weight: 6, arbitrary: fc.record({ do: fc.constant('set' as const), actor, id, deadlineUs }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('cancel' as const), actor, id }) },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('move' as const),
      actor,
      id,
      byUs: fc.integer({ min: -6, max: 6 }),
      nowUs: deadlineUs,
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('cancelAll' as const), actor }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('take' as const), nowUs: deadlineUs }) },
);

test('it behaves like a list that is sorted anew for each question', () => {
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 80 }), (operations) => {
      const table = new TimerTable();
      const naive = new NaiveTable();
      const taken: (string | null)[] = [];
      const expectedTaken: (string | null)[] = [];
      for (const step of operations) {
        if (step.do === 'set') {
          table.set(step.actor, step.id, EVENT, step.deadlineUs, null);
          naive.set(step.actor, step.id, step.deadlineUs);
        } else if (step.do === 'cancel') {
          table.cancel(step.actor, step.id);
          naive.cancel(step.actor, step.id);
        } else if (step.do === 'move') {
          table.move(step.actor, step.id, step.byUs, step.nowUs);
          naive.move(step.actor, step.id, step.byUs, step.nowUs);
        } else if (step.do === 'cancelAll') {
          table.cancelAll(step.actor);
          naive.cancelAll(step.actor);
        } else {
          const timer = table.takeDue(step.nowUs);
          taken.push(timer && `${timer.actor}.${timer.id}`);
          expectedTaken.push(naive.takeDue(step.nowUs));
        }
        expect(taken).toEqual(expectedTaken);
        expect(table.size).toBe(naive.timers.length);
        expect(namesOf(table.pending())).toEqual(naive.sorted().map((timer) => `${timer.actor}.${timer.id}`));
        expect(table.nextDeadlineUs()).toBe(naive.sorted()[0]?.deadlineUs ?? null);
      }
    }),
    { numRuns: 300 },
  );
});

test('whatever was set and cancelled, all that is left comes in order', () => {
  // Without questions in between, so that dead timers stay in the heap for as long as it lets them.
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 200 }), (operations) => {
      const table = new TimerTable();
      const naive = new NaiveTable();
      for (const step of operations) {
        if (step.do === 'set') {
          table.set(step.actor, step.id, EVENT, step.deadlineUs, null);
          naive.set(step.actor, step.id, step.deadlineUs);
        } else if (step.do === 'cancel') {
          table.cancel(step.actor, step.id);
          naive.cancel(step.actor, step.id);
        } else if (step.do === 'move') {
          table.move(step.actor, step.id, step.byUs, step.nowUs);
          naive.move(step.actor, step.id, step.byUs, step.nowUs);
        }
      }
      expect(namesOf(takeAll(table, Infinity))).toEqual(naive.sorted().map((timer) => `${timer.actor}.${timer.id}`));
      expect(table.size).toBe(0);
    }),
  );
});
