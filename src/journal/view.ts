/** A record as the API, `log --json` and the event stream show it. */
import type { Cause, Entry } from '../../actors/recorder.ts';
import type { Row, Step } from './record.ts';

export type RecordView = {
  /** Null in the live stream for an event that is still part of an open run. */
  seq: number | null;
  /** ISO 8601 with milliseconds, and exactly: µs since 1970. */
  time: string;
  timeUs: number;
  actor: string;
  origin: string;
  type: string;
  /** What the event carried; of a run, its last event. */
  event: Record<string, unknown>;
  state: string;
  cause: number | null;
  count: number;
  effects: { type: string; params?: unknown }[];
  from: string | null;
};

export const isoTime = (us: number): string => new Date(us / 1000).toISOString();

export const viewOf = (row: Row, steps: Step[]): RecordView => {
  const last = steps.at(-1)!;
  const { type: _type, ...event } = last.event;
  return {
    seq: row.seq,
    time: isoTime(row.time),
    timeUs: row.time,
    actor: row.actor,
    origin: row.origin,
    type: last.event.type,
    event,
    state: row.state,
    cause: row.cause,
    count: row.count,
    effects: last.effects,
    from: last.from,
  };
};

export const viewOfEntry = (entry: Entry, cause: Cause): RecordView => {
  const { type, ...event } = entry.event as { type: string } & Record<string, unknown>;
  return {
    seq: cause.seq,
    time: isoTime(entry.wallUs),
    timeUs: entry.wallUs,
    actor: entry.actor,
    origin: entry.origin,
    type,
    event,
    state: entry.state,
    cause: entry.cause?.seq ?? null,
    count: 1,
    effects: entry.effects,
    from: entry.from,
  };
};
