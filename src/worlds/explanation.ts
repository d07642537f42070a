/** What all explanations are made of. */
import type { JournalReader } from '../journal/reader.ts';
import type { Step } from '../journal/record.ts';
import { formatClock } from '../time.ts';

export type Sentence = { timeUs: number; seq: number; text: string };

export type Explanation = {
  actor: string;
  state: string;
  sinceUs: number;
  atUs: number;
  headline: string;
  /**
   * One a line, oldest first; `seq` is the record that says so. One that begins with → is what followed from the one
   * before, one with ← what had led to it.
   */
  sentences: Sentence[];
  /** What has been seen since, and what it did to others. */
  remarks: string[];
};

export type Seen = { step: Step; before: string | null };

/** Records after a transition among which its consequences are looked for. */
export const CONSEQUENCE_WINDOW = 200;

export const nameOf = (actor: string): string => {
  const [kind, ...rest] = actor.split('/');
  const names: Record<string, string> = {
    server: 'Server',
    pool: 'Pool',
    checker: 'The checker of',
    observer: 'The traffic observer of',
    quorum: 'The quorum of',
    listener: 'Listener',
    worker: 'Worker',
    journal: 'The journal',
    router: 'Router',
    tracker: 'Tracker',
    group: 'Sync group',
    commands: 'The command desk',
  };
  return `${names[kind ?? ''] ?? kind} ${rest.join('/')}`.trim();
};

/** An operator, and how the word came to this node. */
export const anOperator = (event: Record<string, unknown>): string => {
  const command = event['command'] as { by: string; atUs: number; scope: 'cluster' | 'here' } | undefined;
  if (!command) return 'An operator';
  return command.scope === 'cluster'
    ? `By a command to the cluster, given on ${command.by} at ${formatClock(command.atUs)}, an operator`
    : 'By a command to this node alone, an operator';
};

/** Who put an operator's word there. */
export const operator = (event: Record<string, unknown>): string =>
  event['restored'] === true
    ? 'As an operator had wanted before the node started again, it was set'
    : event['configured'] === true
      ? 'The configuration set it'
      : `${anOperator(event)} set it`;

export const genericSentence = (step: Step, before: string | null): string => {
  const { type, input: _input, machine: _machine, ...payload } = step.event;
  const details = Object.entries(payload)
    .filter(([, value]) => typeof value !== 'object')
    .map(([key, value]) => `${key} ${String(value)}`)
    .join(', ');
  const name = type.startsWith('xstate.after.') ? `after ${type.split('.')[2]}` : type;
  return `${name}${details === '' ? '' : ` (${details})`}: ${before === null ? step.state : `${before} → ${step.state}`}.`;
};

export const causeRemarks = (reader: JournalReader, step: Step): string[] => {
  if (step.cause === null) return [];
  const row = reader.row(step.cause);
  if (!row) return [];
  return [`Cause: record ${row.seq}, ${row.actor} ${row.type} at ${formatClock(row.time)}.`];
};
