/**
 * What the journal keeps, and how it is coded. A record is one event that one actor was given, with what it decided;
 * or a *run*: the same steady observation repeated, with the times and durations of each. Bodies are plain msgpack.
 */
import { crc32 } from 'node:zlib';
import { Packr, Unpackr } from 'msgpackr';
import type { AnyEvent, Effect } from '../../actors/decide.ts';
import type { Origin } from '../../actors/recorder.ts';

/** Version of the record format; a reader upcasts older ones. */
export const RECORD_VERSION = 1;

/** A row of the table `records`. `time` and `mono` are µs; of a run they are those of its last event. */
export type Row = {
  seq: number;
  epoch: number;
  time: number;
  mono: number;
  actor: string;
  /** `node` marks what the node itself notes (start, stop, configuration, gap): no machine decided it. */
  origin: Origin | 'node';
  type: string;
  state: string;
  cause: number | null;
  /** Events in the record: 1, or the length of a run. */
  count: number;
  v: number;
  body: Uint8Array;
};

export const ROW_COLUMNS = [
  'seq',
  'epoch',
  'time',
  'mono',
  'actor',
  'origin',
  'type',
  'state',
  'cause',
  'count',
  'v',
  'body',
] as const;

/** The body of a single event: the event without its type. */
export type SingleBody = { event: Record<string, unknown>; effects: Effect[]; from?: string };

/** One step of a run's cycle. */
export type RunStep = {
  origin: Origin;
  from?: string;
  type: string;
  event: Record<string, unknown>;
  state: string;
  effects: Effect[];
};

/**
 * The body of a run: its cycle of one or two steps, µs from each event to the next (the first is 0), and for steps
 * that measured a duration, the durations in thousandths of a millisecond, in order.
 */
export type RunBody = { run: { cycle: RunStep[]; deltas: number[]; durations: number[] } };

/** One event of a record, as it was when it happened. */
export type Step = {
  seq: number;
  actor: string;
  origin: Origin | 'node';
  from: string | null;
  event: AnyEvent & Record<string, unknown>;
  state: string;
  effects: Effect[];
  wallUs: number;
  monoUs: number;
  epoch: number;
  cause: number | null;
};

/** The one field whose value differs between repetitions of the same observation. */
export const MEASURE = 'durationMs';

/** The type of the row that stands for records that could not be kept. */
export const GAP = 'journal.gap';

const packr = new Packr({ useRecords: false });
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true });

export const encodeBody = (body: unknown): Uint8Array => packr.pack(body);
export const decodeBody = (body: Uint8Array): unknown => unpackr.unpack(body) as unknown;

/** The values of a row in the order of the columns. */
export const valuesOf = (row: Row) =>
  [
    row.seq,
    row.epoch,
    row.time,
    row.mono,
    row.actor,
    row.origin,
    row.type,
    row.state,
    row.cause,
    row.count,
    row.v,
    row.body,
  ] as const;

/** Rows on their way to the writer's thread: arrays in the order of the columns, half the work of objects with names. */
export const packRows = (rows: readonly Row[]): Uint8Array => packr.pack(rows.map(valuesOf));

export const unpackRows = (bytes: Uint8Array): Row[] =>
  (unpackr.unpack(bytes) as never[][]).map(
    ([seq, epoch, time, mono, actor, origin, type, state, cause, count, v, body]) =>
      ({ seq, epoch, time, mono, actor, origin, type, state, cause, count, v, body }) as unknown as Row,
  );

/** Covers every column, so that no change of a single byte goes unnoticed. */
export const checksumOf = (row: Row): number =>
  crc32(
    row.body,
    crc32(
      `${row.seq}|${row.epoch}|${row.time}|${row.mono}|${row.actor}|${row.origin}|${row.type}|${row.state}|${row.cause}|${row.count}|${row.v}`,
    ),
  );

/** The events of a record, in order. Throws what the decoder throws when the body can't be read. */
export const stepsOf = (row: Row): Step[] => {
  const body = decodeBody(row.body) as SingleBody | RunBody;
  if (!('run' in body)) {
    return [
      {
        seq: row.seq,
        actor: row.actor,
        origin: row.origin,
        from: body.from ?? null,
        event: { type: row.type, ...body.event },
        state: row.state,
        effects: body.effects,
        wallUs: row.time,
        monoUs: row.mono,
        epoch: row.epoch,
        cause: row.cause,
      },
    ];
  }
  const { cycle, deltas, durations } = body.run;
  const length = deltas.reduce((sum, delta) => sum + delta, 0);
  let monoUs = row.mono - length;
  let durationIndex = 0;
  return deltas.map((delta, index) => {
    monoUs += delta;
    const step = cycle[index % cycle.length]!;
    const measured = MEASURE in step.event;
    const durationMs = measured ? durations[durationIndex++]! / 1000 : 0;
    return {
      seq: row.seq,
      actor: row.actor,
      origin: step.origin,
      from: step.from ?? null,
      event: { type: step.type, ...step.event, ...(measured ? { [MEASURE]: durationMs } : {}) },
      state: step.state,
      effects: measured ? withDuration(step.effects, durationMs) : step.effects,
      wallUs: row.time - (row.mono - monoUs),
      monoUs,
      epoch: row.epoch,
      cause: row.cause,
    };
  });
};

const withDuration = <T>(value: T, durationMs: number): T => {
  if (Array.isArray(value)) return value.map((item: unknown) => withDuration(item, durationMs)) as T;
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, item]) => [
      key,
      key === MEASURE && typeof item === 'number' ? durationMs : withDuration(item as unknown, durationMs),
    ]),
  ) as T;
};
