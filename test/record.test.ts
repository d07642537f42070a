import { unpack } from 'msgpackr';
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { checksumOf, decodeBody, encodeBody, MEASURE, ROW_COLUMNS, stepsOf } from '../src/journal/record.ts';
import type { Row, RunBody, SingleBody } from '../src/journal/record.ts';

/** What events and effects are made of: JSON without the one name that no decoder gives back. */
const plain = fc
  .jsonValue({ maxDepth: 4 })
  .filter((value) => !JSON.stringify(value).includes('"__proto__"'))
  // JSON has no -0, and neither does a journal need one.
  .map((value) => JSON.parse(JSON.stringify(value)) as unknown);

const payload = fc
  .dictionary(
    fc.string({ unit: 'binary' }).filter((key) => key !== '__proto__' && key !== MEASURE),
    plain,
    {
      noNullPrototype: true,
    },
  )
  .map((value) => JSON.parse(JSON.stringify(value)) as Record<string, unknown>);

const effect = fc.record({ type: fc.string(), params: plain });

const rowOf = (given: Partial<Row>): Row => ({
  seq: 12,
  epoch: 3,
  time: 1_795_316_400_000_123,
  mono: 5_000_000,
  actor: 'server/web/web1',
  origin: 'message',
  type: 'check.failed',
  state: 'down,ready,cold',
  cause: 11,
  count: 1,
  v: 1,
  body: encodeBody({ event: { code: 'L4CON' }, effects: [] }),
  ...given,
});

describe('bodies', () => {
  test('come back as they went in', () => {
    fc.assert(
      fc.property(payload, fc.array(effect), fc.option(fc.string(), { nil: undefined }), (event, effects, from) => {
        const body: SingleBody = { event, effects, ...(from === undefined ? {} : { from }) };
        expect(decodeBody(encodeBody(body))).toEqual(body);
      }),
    );
  });

  test('are plain msgpack: a reader with no options of ours opens them', () => {
    fc.assert(
      fc.property(payload, fc.array(effect), (event, effects) => {
        expect(unpack(encodeBody({ event, effects }))).toEqual({ event, effects });
      }),
    );
  });

  test('of the same shape again and again hold their own keys, not a reference to those before', () => {
    const body = { event: { code: 'L7OK', message: '200 OK', durationMs: 1.5 }, effects: [{ type: 'tell' }] };
    const first = encodeBody(body);
    for (let index = 0; index < 50; index++) expect(encodeBody(body)).toEqual(first);
    expect(Buffer.from(first).includes('durationMs')).toBe(true);
  });

  test('microseconds and large counts stay exact', () => {
    const numbers = [0, -1, 2 ** 31, 2 ** 32, 1_795_316_400_000_123, Number.MAX_SAFE_INTEGER, 0.001, 1.25, 1e-9];
    expect(decodeBody(encodeBody(numbers))).toEqual(numbers);
  });
});

describe('the checksum', () => {
  const changes: { [K in (typeof ROW_COLUMNS)[number]]: Row[K] } = {
    seq: 13,
    epoch: 4,
    time: 1_795_316_400_000_124,
    mono: 5_000_001,
    actor: 'server/web/web2',
    origin: 'input',
    type: 'check.passed',
    state: 'down,ready,warm',
    cause: null,
    count: 2,
    v: 2,
    body: encodeBody({ event: { code: 'L4TOUT' }, effects: [] }),
  };

  test.each([...ROW_COLUMNS])('covers %s', (column) => {
    expect(checksumOf(rowOf({ [column]: changes[column] }))).not.toBe(checksumOf(rowOf({})));
  });

  test('covers every bit of the body', () => {
    const row = rowOf({});
    const known = checksumOf(row);
    for (let bit = 0; bit < row.body.length * 8; bit++) {
      const body = Uint8Array.from(row.body);
      body[bit >> 3]! ^= 1 << (bit & 7);
      expect(checksumOf({ ...row, body })).not.toBe(known);
    }
  });

  test('covers every character of the texts', () => {
    const text = fc.string({ minLength: 1, maxLength: 30 });
    fc.assert(
      fc.property(fc.constantFrom('actor', 'type', 'state'), text, text, (column, one, other) => {
        fc.pre(one !== other);
        expect(checksumOf(rowOf({ [column]: one }))).not.toBe(checksumOf(rowOf({ [column]: other })));
      }),
    );
  });
});

describe('steps', () => {
  test('of a single event', () => {
    const [step, ...others] = stepsOf(rowOf({}));
    expect(others).toEqual([]);
    expect(step).toMatchObject({
      seq: 12,
      event: { type: 'check.failed', code: 'L4CON' },
      from: null,
      wallUs: 1_795_316_400_000_123,
      cause: 11,
    });
  });

  test('of a run: every one at its own time, with its own duration, in event and effects alike', () => {
    const body: RunBody = {
      run: {
        cycle: [
          { origin: 'timer', type: 'period.elapsed', event: {}, state: 'probing.onTime', effects: [] },
          {
            origin: 'input',
            type: 'probe.passed',
            event: { code: 'L7OK', durationMs: 1 },
            state: 'waiting',
            effects: [{ type: 'tell', params: { event: { type: 'check.passed', durationMs: 1 } } }],
          },
        ],
        deltas: [0, 1000, 1_999_000, 2500],
        durations: [1000, 2500],
      },
    };
    const steps = stepsOf(rowOf({ count: 4, body: encodeBody(body), mono: 5_000_000, time: 9_000_000 }));
    expect(steps.map(({ monoUs, wallUs, event }) => [monoUs, wallUs, event.type, event[MEASURE] ?? null])).toEqual([
      [2_997_500, 6_997_500, 'period.elapsed', null],
      [2_998_500, 6_998_500, 'probe.passed', 1],
      [4_997_500, 8_997_500, 'period.elapsed', null],
      [5_000_000, 9_000_000, 'probe.passed', 2.5],
    ]);
    expect(steps[3]!.effects).toEqual([{ type: 'tell', params: { event: { type: 'check.passed', durationMs: 2.5 } } }]);
  });
});
