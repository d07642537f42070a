/** Whether the journal can be written: a loud state, and nothing that stops anything else. */
import { expect, test } from 'vitest';
import { journalKeeper } from '../machines/journalKeeper.ts';
import type { JournalKeeperEvent } from '../machines/journalKeeper.ts';
import { Decider } from '../actors/decide.ts';
import { Stepper } from './stepper.ts';
import { say, Scenario, send, start, wait } from './transcript.ts';

const full: JournalKeeperEvent = { type: 'journal.failed', code: 'SQLITE_FULL', message: 'disk is full' };
const replaced: JournalKeeperEvent = { type: 'journal.replaced', aside: 'lb1.db.damaged', message: 'malformed' };

const keeper = (): Stepper<JournalKeeperEvent> => new Stepper(journalKeeper, {});

test('a journal counts as writable from the start', () => {
  expect([keeper().state, keeper().started]).toEqual(['writing', []]);
});

test('it fails at the first refusal, stays so through further ones, and recovers when the writer gets through', () => {
  const machine = keeper();
  machine.send(full);
  expect(machine.state).toBe('failing');
  const before = machine.snapshot;
  machine.send({ ...full, code: 'SQLITE_IOERR' });
  expect(machine.snapshot).toBe(before);
  machine.send({ type: 'journal.resumed', lost: 3 });
  expect(machine.state).toBe('writing');
});

test('a file that was set aside is noted; the new one is writable', () => {
  const machine = keeper();
  machine.send(replaced);
  expect(machine.state).toBe('writing');
  expect(new Decider(journalKeeper).handles(machine.snapshot, 'journal.replaced')).toBe(true);
});

test('it asks for nothing: traffic and elections go on', () => {
  const machine = keeper();
  for (const event of [replaced, full, full, { type: 'journal.resumed', lost: 0 } as const]) {
    expect(machine.send(event)).toEqual([]);
  }
});

test('a disk fills up and is cleared', async () => {
  const scenario = new Scenario().play(
    start('journal', 'journalKeeper', {}),
    send('journal', 'journal.replaced', replaced),
    wait(1000),
    say('The disk is full.'),
    send('journal', 'journal.failed', full),
    wait(90_000),
    say('Somebody made room.'),
    send('journal', 'journal.resumed', { lost: 0 }),
  );
  await expect(scenario.transcript).toMatchFileSnapshot('./transcripts/journal-disk-full.txt');
  expect(scenario.system.counters.unhandled).toBe(0);
});
