/** What the actor system tells of each event, and the port that keeps it. */
import type { AnyEvent, Effect } from './decide.ts';

/** Where an event comes from: outside, the timer table, another actor here, or another node. */
export type Origin = 'input' | 'timer' | 'message' | 'remote';

/** What the recorder gives back for an entry, to be named as the cause of others. */
export type Cause = { readonly seq: number | null };

export type Entry = {
  actor: string;
  machine: string;
  origin: Origin;
  /** The actor that sent a message. */
  from: string | null;
  event: AnyEvent;
  cause: Cause | null;
  state: string;
  effects: Effect[];
  wallUs: number;
  monoUs: number;
  /** The event changed nothing that decides: repetitions of it may be written as one run. */
  steady: boolean;
};

/** Port: keeps what happens. Must not throw and must not wait. */
export type Recorder = { append(entry: Entry): Cause };
