/** Why another node counts as alive, suspect or gone: what was heard of it, and what was not. */
import { ACTOR_STARTED } from '../../actors/system.ts';
import type { MemberIdentity, MemberInput, MemberReason } from '../../machines/clusterMember.ts';
import { memberReasonText } from '../cluster/memberText.ts';
import { decodedSteps } from '../journal/reader.ts';
import type { JournalReader } from '../journal/reader.ts';
import type { Step } from '../journal/record.ts';
import { formatDateTime, formatSpan } from '../time.ts';
import type { Explanation, Sentence } from './explanation.ts';

/** Changes of state that are told, and records that are looked through for them. */
const CHANGES = 8;
const MAX_RECORDS = 500;

const phaseOf = (state: string): string => state.split('.')[0]!;

/** Null when the journal doesn't know the node at that time. */
export const explainMember = (reader: JournalReader, actor: string, atUs: number): Explanation | null => {
  const steps = newsOf(reader, actor, atUs);
  const newest = steps.at(-1);
  if (!newest) return null;
  const node = actor.slice('member/'.length);
  const sentences: Sentence[] = [];
  let known: MemberIdentity | null = null;
  let before: Step | null = null;
  let changed = newest;
  for (const step of steps) {
    const phase = phaseOf(step.state);
    const isChange = before === null || phaseOf(before.state) !== phase;
    const text = sentenceOf(step, before, known);
    known = identityAfter(step, known, phase === 'alive' && !isChange);
    if (isChange) changed = step;
    if (text !== null) sentences.push({ timeUs: step.wallUs, seq: step.seq, text });
    before = step;
  }
  return {
    actor,
    state: newest.state,
    sinceUs: changed.wallUs,
    atUs,
    headline: `Node ${node} is ${phaseOf(newest.state).toUpperCase()} since ${formatDateTime(changed.wallUs)} (${formatSpan(atUs - changed.wallUs)}).`,
    sentences,
    remarks: [],
  };
};

/** What was no steady run, oldest first, from a start or a change of state on. */
const newsOf = (reader: JournalReader, actor: string, atUs: number): Step[] => {
  const steps: Step[] = [];
  let changes = 0;
  let looked = 0;
  for (const row of reader.rows({ actor, newestFirst: true, until: atUs })) {
    if (changes > CHANGES || ++looked > MAX_RECORDS) break;
    if (row.count > 1) continue;
    const step = decodedSteps(row)[0]!;
    if (steps.length > 0 && phaseOf(steps.at(-1)!.state) !== phaseOf(step.state)) changes++;
    steps.push(step);
    if (row.type === ACTOR_STARTED) break;
  }
  return steps.toReversed();
};

const identityOf = ({ event }: Step): MemberIdentity => {
  const { version, epoch, journal } = (
    event.type === ACTOR_STARTED ? (event as unknown as { input: MemberInput }).input.identity : event
  ) as MemberIdentity;
  return { version, epoch, journal };
};

const isOther = (known: MemberIdentity, heard: MemberIdentity): boolean =>
  heard.journal !== known.journal || heard.epoch < known.epoch;

const identityAfter = (step: Step, known: MemberIdentity | null, wasAlive: boolean): MemberIdentity | null => {
  if (step.event.type !== ACTOR_STARTED && step.event.type !== 'heartbeat') return known;
  const heard = identityOf(step);
  return wasAlive && known && isOther(known, heard) ? known : heard;
};

const lifeText = ({ version, epoch, journal }: MemberIdentity): string =>
  `version ${version}, start ${epoch}, journal ${journal}`;

const sentenceOf = (step: Step, before: Step | null, known: MemberIdentity | null): string | null => {
  const { event, state } = step;
  const [was, is] = [before ? phaseOf(before.state) : null, phaseOf(state)];
  switch (event.type) {
    case ACTOR_STARTED:
      return `It was heard for the first time since this node started: ${lifeText(identityOf(step))}.`;
    case 'heartbeat': {
      const heard = identityOf(step);
      if (was !== null && was !== 'alive') return `It was heard again: ${lifeText(heard)}. It is ALIVE.`;
      if (known === null || JSON.stringify(known) === JSON.stringify(heard)) return null;
      return isOther(known, heard)
        ? `Another node was heard under its name: ${lifeText(heard)}.`
        : `It has started anew: ${lifeText(heard)}.`;
    }
    case 'member.left':
      return is === 'gone' ? 'It said goodbye: it has left in order. It is GONE.' : 'One of the two said goodbye.';
    case 'rival.silent':
      return 'The other node of its name is not heard any more.';
    case 'looked':
      return was === is ? graceText(step) : `${lookedText(step)} It is ${is.toUpperCase()}.`;
    case 'bus.joined':
      return 'NATS is back.';
    case 'silence.elapsed':
      return is === 'gone' ? 'NATS is back for some time, and nothing was heard: its silence is its own.' : null;
    default:
      return null;
  }
};

const lookedText = ({ event }: Step): string => {
  const { silentMs, lateMs, hearingMs, detail } = event as unknown as Record<'silentMs' | 'lateMs', number> & {
    hearingMs: number | null;
    detail: string;
  };
  const reason: MemberReason =
    hearingMs === null ? { code: 'busAway', silentMs, lateMs, detail } : { code: 'silent', silentMs, lateMs };
  const text = memberReasonText(reason);
  return `${text[0]!.toUpperCase()}${text.slice(1)}.`;
};

/** A look that had no consequence: the silence was perhaps our own. */
const graceText = ({ event, state }: Step): string =>
  state === 'alive.listening' && event['hearingMs'] !== null && Number(event['lateMs']) < 1
    ? 'Nothing was heard of it, but NATS is only just back: it gets more time.'
    : 'Nothing was heard of it, but this node may not have heard: it gets more time.';
