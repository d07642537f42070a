import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Cause, Entry } from '../actors/recorder.ts';
import { Compactor, RUN_MAX_AGE_US } from '../src/journal/compactor.ts';
import { decodeBody, stepsOf } from '../src/journal/record.ts';
import type { Row, RunBody } from '../src/journal/record.ts';
import { entryOf, NIGHT_US } from './journalHelpers.ts';

const begin = (lastSeq = 0) => {
  const rows: Row[] = [];
  const compactor = new Compactor({ epoch: 1, lastSeq, emit: (row) => rows.push(row) });
  return { rows, compactor };
};

const passed = (monoUs: number, durationMs = 1.5, given: Partial<Entry> = {}): Entry =>
  entryOf({ steady: true, monoUs, event: { type: 'check.passed', durationMs } as { type: string }, ...given });

const asked = (monoUs: number): Entry =>
  entryOf({
    actor: 'checker/web/web1',
    steady: true,
    monoUs,
    origin: 'timer',
    event: { type: 'period.elapsed' },
    state: 'probing.onTime',
    effects: [{ type: 'startProbe', params: { timeoutMs: 1000 } }],
  });

const answered = (monoUs: number, durationMs: number): Entry =>
  entryOf({
    actor: 'checker/web/web1',
    steady: true,
    monoUs,
    origin: 'input',
    event: { type: 'probe.passed', durationMs } as { type: string },
    state: 'waiting',
    effects: [{ type: 'tell', params: { to: 'server/web/web1', event: { type: 'check.passed', durationMs } } }],
  });

const runOf = (row: Row) => (decodeBody(row.body) as RunBody).run;

describe('runs', () => {
  test('the same steady event again and again is one row', () => {
    const { rows, compactor } = begin();
    for (let index = 0; index < 5; index++) compactor.append(passed(index * 2_000_000, 1 + index / 8));
    expect(rows).toEqual([]);
    compactor.closeAll();
    expect(rows).toHaveLength(1);
    expect(rows[0]).toMatchObject({ seq: 1, count: 5, mono: 8_000_000, time: NIGHT_US + 8_000_000 });
    expect(runOf(rows[0]!)).toMatchObject({
      deltas: [0, 2_000_000, 2_000_000, 2_000_000, 2_000_000],
      durations: [1000, 1125, 1250, 1375, 1500],
    });
  });

  test('a cycle of two steps is one row', () => {
    const { rows, compactor } = begin();
    for (let round = 0; round < 4; round++) {
      compactor.append(asked(round * 1_000_000));
      compactor.append(answered(round * 1_000_000 + 700, 0.7));
    }
    compactor.closeAll();
    expect(rows).toHaveLength(1);
    expect(rows[0]).toMatchObject({ count: 8, type: 'period.elapsed', state: 'waiting' });
    expect(runOf(rows[0]!).cycle.map(({ type }) => type)).toEqual(['period.elapsed', 'probe.passed']);
  });

  test('a cycle of three steps is not made', () => {
    const { rows, compactor } = begin();
    for (const type of ['a', 'b', 'c', 'a', 'b', 'c']) compactor.append(passed(0, 1, { event: { type } }));
    compactor.closeAll();
    expect(rows.flatMap(stepsOf).map(({ event }) => event.type)).toEqual(['a', 'b', 'c', 'a', 'b', 'c']);
    expect(rows.every(({ count }) => count <= 2)).toBe(true);
  });

  test('durations to the microsecond are kept exactly', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 60_000_000 }), { minLength: 2, maxLength: 50 }), (micros) => {
        const { rows, compactor } = begin();
        micros.forEach((us, index) => compactor.append(passed(index, us / 1000)));
        compactor.closeAll();
        expect(rows.flatMap(stepsOf).map(({ event }) => event['durationMs'])).toEqual(micros.map((us) => us / 1000));
      }),
    );
  });

  test.each<[string, Partial<Entry>]>([
    ['another code', { event: { type: 'check.passed', durationMs: 1.5, code: 'L4OK' } as { type: string } }],
    ['no duration', { event: { type: 'check.passed' } }],
    ['another type', { event: { type: 'check.failed', durationMs: 1.5 } as { type: string } }],
    ['another state', { state: 'up,drain,warm' }],
    ['other effects', { effects: [{ type: 'publish' }] }],
    ['another sender', { from: 'checker/web/web9' }],
    ['another origin', { origin: 'input' }],
  ])('%s ends a run', (_name, given) => {
    const { rows, compactor } = begin();
    for (let index = 0; index < 4; index++) compactor.append(passed(index));
    compactor.append(passed(4, 1.5, given));
    expect(rows.map(({ count }) => count)).toEqual([4]);
  });

  test('an event that changes something ends the run of its own actor first', () => {
    const { rows, compactor } = begin();
    compactor.append(passed(0));
    compactor.append(passed(1, 1.5, { actor: 'server/web/web2' }));
    compactor.append(entryOf({ monoUs: 2, event: { type: 'check.failed' } }));
    expect(rows.map(({ seq, actor, type }) => [seq, actor, type])).toEqual([
      [1, 'server/web/web1', 'check.passed'],
      [2, 'server/web/web1', 'check.failed'],
    ]);
  });

  test('a run is closed by the first event past 10 s, and by a sweep at 10 s', () => {
    const { rows, compactor } = begin();
    compactor.append(passed(0));
    compactor.append(passed(RUN_MAX_AGE_US));
    expect(rows).toHaveLength(0);
    compactor.append(passed(RUN_MAX_AGE_US + 1));
    expect(rows.map(({ count }) => count)).toEqual([2]);
    compactor.sweep(2 * RUN_MAX_AGE_US);
    expect(rows).toHaveLength(1);
    compactor.sweep(2 * RUN_MAX_AGE_US + 1);
    expect(rows.map(({ count }) => count)).toEqual([2, 1]);
  });

  test('a sweep closes the old runs and leaves the young ones, however they were begun and ended', () => {
    const { rows, compactor } = begin();
    compactor.append(passed(0, 1, { actor: 'a' }));
    compactor.append(passed(1000, 1, { actor: 'b' }));
    compactor.append(entryOf({ actor: 'a', monoUs: 2000 }));
    compactor.append(passed(5_000_000, 1, { actor: 'a' }));
    compactor.sweep(10_001_000);
    expect(rows.map(({ actor }) => actor)).toEqual(['a', 'a', 'b']);
  });

  test('a run of 1,000 events is closed', () => {
    const { rows, compactor } = begin();
    for (let index = 0; index < 2500; index++) compactor.append(passed(index));
    expect(rows.map(({ count }) => count)).toEqual([1000, 1000]);
  });
});

describe('causes', () => {
  test('a cause within an open run closes it, and gets the smaller seq', () => {
    const { rows, compactor } = begin(40);
    const cause = compactor.append(passed(0));
    compactor.append(passed(1));
    expect(cause.seq).toBeNull();
    compactor.append(entryOf({ actor: 'pool/web', monoUs: 2, cause }));
    expect(rows.map(({ seq, actor, cause: by }) => [seq, actor, by])).toEqual([
      [41, 'server/web/web1', null],
      [42, 'pool/web', 41],
    ]);
    expect(cause.seq).toBe(41);
  });

  test('a closed run stays a cause', () => {
    const { rows, compactor } = begin();
    const cause = compactor.append(passed(0));
    compactor.append(entryOf({ monoUs: 1 }));
    compactor.append(entryOf({ actor: 'pool/web', monoUs: 2, cause }));
    expect(rows.at(-1)).toMatchObject({ seq: 3, cause: 1 });
  });

  test('a run does not cut another one short to name its cause', () => {
    const { rows, compactor } = begin();
    const cause = compactor.append(asked(0));
    compactor.append(passed(1, 1, { cause }));
    expect(rows).toEqual([]);
  });
});

describe('whatever comes in', () => {
  type Given = {
    actor: number;
    kind: number;
    steady: boolean;
    gapUs: number;
    us: number;
    cause: number;
    sweep: boolean;
  };
  const given: fc.Arbitrary<Given[]> = fc.array(
    fc.record({
      actor: fc.integer({ min: 0, max: 2 }),
      kind: fc.integer({ min: 0, max: 2 }),
      steady: fc.boolean(),
      gapUs: fc.oneof(fc.integer({ min: 0, max: 5000 }), fc.integer({ min: 0, max: 4_000_000 })),
      us: fc.integer({ min: 0, max: 3_000_000 }),
      cause: fc.integer({ min: 0, max: 20 }),
      sweep: fc.boolean(),
    }),
    { maxLength: 120 },
  );

  const entriesOf = (events: Given[]): { entry: Omit<Entry, 'cause'>; cause: number; sweep: boolean }[] => {
    let monoUs = 0;
    return events.map(({ actor, kind, steady, gapUs, us, cause, sweep }) => {
      monoUs += gapUs;
      const event =
        kind === 2 ? { type: 'tick', n: 1 } : { type: 'check.passed', code: `L${kind}`, durationMs: us / 1000 };
      const { cause: _cause, ...entry } = entryOf({
        actor: `server/web/web${actor}`,
        steady,
        monoUs,
        event,
        from: kind === 0 ? 'checker/web/x' : null,
        state: kind === 1 ? 'waiting' : 'probing',
        effects: kind === 1 ? [{ type: 'tell', params: { to: 'x', event } }] : [],
      });
      return { entry, cause, sweep };
    });
  };

  test('per actor exactly the entries that went in come out, in order; seq has no gap; causes come before', () => {
    fc.assert(
      fc.property(given, (events) => {
        const { rows, compactor } = begin();
        const causes: Cause[] = [];
        const entries = entriesOf(events);
        for (const { entry, cause, sweep } of entries) {
          causes.push(compactor.append({ ...entry, cause: causes.at(-cause) ?? null }));
          if (sweep) compactor.sweep(entry.monoUs);
        }
        compactor.closeAll();
        expect(rows.map(({ seq }) => seq)).toEqual(rows.map((_, index) => index + 1));
        expect(compactor.lastSeq).toBe(rows.length);
        expect(rows.filter(({ seq, cause }) => cause !== null && cause >= seq)).toEqual([]);
        expect(rows.reduce((sum, { count }) => sum + count, 0)).toBe(entries.length);
        for (const actor of ['server/web/web0', 'server/web/web1', 'server/web/web2']) {
          const went = entries.filter(({ entry }) => entry.actor === actor).map(({ entry }) => entry);
          const came = rows.filter((row) => row.actor === actor).flatMap(stepsOf);
          expect(
            came.map(({ event, state, effects, monoUs, wallUs, from, origin }) => ({
              event,
              state,
              effects,
              monoUs,
              wallUs,
              from,
              origin,
            })),
          ).toEqual(
            went.map(({ event, state, effects, monoUs, wallUs, from, origin }) => ({
              event,
              state,
              effects,
              monoUs,
              wallUs,
              from,
              origin,
            })),
          );
        }
        // Once all is written every cause is known.
        for (const cause of causes) expect(cause.seq).not.toBeNull();
      }),
      { numRuns: 300 },
    );
  });
});

test('notes of the node take their place in the order', () => {
  const { rows, compactor } = begin(7);
  expect(compactor.note('node.started', { version: '1' }, { wallUs: NIGHT_US, monoUs: 0 })).toBe(8);
  compactor.append(entryOf({ monoUs: 1 }));
  expect(rows.map(({ seq, actor, origin, type }) => [seq, actor, origin, type])).toEqual([
    [8, 'node', 'node', 'node.started'],
    [9, 'server/web/web1', 'message', 'check.passed'],
  ]);
});
