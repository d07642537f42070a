/** Why an address is here or not, why a tracker is down, why a sync group moved; and what addresses did for a router. */
import { ACTOR_STARTED } from '../../actors/system.ts';
import { effectivePriority } from '../../machines/vrrpRouter.ts';
import type { RouterContext } from '../../machines/vrrpRouter.ts';
import { decodedSteps } from '../journal/reader.ts';
import type { JournalReader } from '../journal/reader.ts';
import type { Step } from '../journal/record.ts';
import { formatDateTime, formatSpan } from '../time.ts';
import { trackerName } from '../vrrp/reasons.ts';
import { historyOf } from './actorHistory.ts';
import { causesOf, memberText, noticeOf } from './causes.ts';
import { CONSEQUENCE_WINDOW } from './explanation.ts';
import type { Explanation, Seen, Sentence } from './explanation.ts';

/** Changes of state that are told of an actor. */
const CHANGES = 8;
/** A router can have 255 addresses, and what one does they mostly all do. */
const MAX_ADDRESSES = 4;

const addressOf = (actor: string): string => actor.split('/').slice(2).join('/');

/** `announcing` and `held` are the same to everybody but the neighbours. */
const placeOf = (state: string): string => (state === 'announcing' ? 'held' : state);
const same = (state: string): string => state;

const at = (step: Step): Omit<Sentence, 'text'> => ({ timeUs: step.wallUs, seq: step.seq });

/** What the addresses did because of a record of their router, or one of them because of its own. */
export const addressConsequences = (reader: JournalReader, cause: Step): string[] => {
  const causes = new Set<number>([cause.seq]);
  const lines: string[] = [];
  const actor = cause.actor.startsWith('address/') ? cause.actor : `address/${cause.actor.slice('router/'.length)}/*`;
  for (const row of reader.rows({ fromSeq: cause.seq + 1, throughSeq: cause.seq + CONSEQUENCE_WINDOW, actor })) {
    if (row.cause === null || !causes.has(row.cause) || row.count > 1) continue;
    // That it is tried again is another story.
    if (row.type !== 'address.addFailed') causes.add(row.seq);
    const step = decodedSteps(row)[0]!;
    const text = doneText(step, step.wallUs - cause.wallUs);
    if (text !== null) lines.push(`${addressOf(row.actor)} ${text}.`);
  }
  const more = lines.length - MAX_ADDRESSES;
  return more > 0 ? [...lines.slice(0, MAX_ADDRESSES), `and ${more} more like these.`] : lines;
};

/** Lines that tell what followed from a record. */
export const thenLines = ({ wallUs, seq }: Step, lines: string[]): Sentence[] =>
  lines.map((line) => ({ timeUs: wallUs, seq, text: `→ ${line}` }));

const doneText = ({ event, state, effects }: Step, tookUs: number): string | null => {
  const after = tookUs < 1 ? 'at once' : `after ${formatSpan(tookUs)}`;
  const count = effects
    .filter(({ type }) => type === 'announce')
    .reduce((sum, { params }) => sum + (params as { count: number }).count, 0);
  switch (event.type) {
    case 'address.added':
      return `was added ${after}${count > 0 ? ` and announced ${count === 1 ? 'once' : `${count} times`}` : ''}`;
    case 'address.addFailed':
      return `could not be added: ${String(event['message'])}`;
    case 'address.removed':
      return `was removed ${after}`;
    case 'address.removeFailed':
      return `could not be removed: ${String(event['message'])}`;
    case 'address.handOver':
      return state === 'handingOver'
        ? `stays until a successor has spoken, for ${formatSpan(Number(event['holdMs']) * 1000)} at most`
        : null;
    case 'address.acquire':
      return placeOf(state) === 'held' && count > 0 ? 'was still here and is announced again' : null;
    default:
      return null;
  }
};

/** What others did to the addresses of a router from a record on, each with what followed. */
export const addressIncidents = (
  reader: JournalReader,
  router: string,
  fromSeq: number,
  untilUs: number,
): Sentence[][] => {
  const incidents: Sentence[][] = [];
  for (const row of reader.rows({ actor: `address/${router}/*`, fromSeq, until: untilUs })) {
    if (row.type !== 'address.lost' && row.type !== 'address.appeared') continue;
    for (const step of decodedSteps(row)) {
      const text = incidentText(step);
      if (text === null) continue;
      const first = { ...at(step), text: `${addressOf(row.actor)} ${text}` };
      incidents.push([first, ...thenLines(step, addressConsequences(reader, step))]);
    }
  }
  return incidents;
};

const incidentText = ({ event, state }: Step): string | null => {
  if (event.type === 'address.lost' && state === 'adding') return 'was taken away by somebody else: it is put back.';
  if (event.type === 'address.appeared' && state === 'removing')
    return 'was put here by somebody else, though this router is not master: it is taken away.';
  return null;
};

/** The newest changes of state of an actor, oldest first. `phase` says which states are one. */
const changesOf = (reader: JournalReader, actor: string, atUs: number, phase: (state: string) => string): Seen[] => {
  const changes: Seen[] = [];
  let later: Step | null = null;
  for (const row of reader.rows({ actor, newestFirst: true, until: atUs })) {
    if (changes.length === CHANGES) break;
    if (later && phase(row.state) !== phase(later.state)) changes.push({ step: later, before: row.state });
    later = decodedSteps(row)[0]!;
    if (row.type !== ACTOR_STARTED) continue;
    changes.push({ step: later, before: null });
    break;
  }
  return changes.toReversed();
};

type Words = {
  headline(newest: Step): string;
  sentence(seen: Seen): string;
  consequences?(step: Step): Sentence[];
  phase?(state: string): string;
};

/** Null when the journal doesn't know the actor at that time. */
const explainChanges = (reader: JournalReader, actor: string, atUs: number, words: Words): Explanation | null => {
  const { headline, sentence, consequences = () => [], phase = same } = words;
  const changes = changesOf(reader, actor, atUs, phase);
  const newest = changes.at(-1);
  if (!newest) return null;
  const { step } = newest;
  const sentences: Sentence[] = [];
  for (const seen of changes) {
    sentences.push({ ...at(seen.step), text: sentence(seen) });
    if (seen.step.origin === 'message') sentences.push(...causesOf(reader, seen.step));
    sentences.push(...consequences(seen.step));
  }
  const since = `since ${formatDateTime(step.wallUs)} (${formatSpan(atUs - step.wallUs)})`;
  return {
    actor,
    state: step.state,
    sinceUs: step.wallUs,
    atUs,
    headline: headline(step).replace('SINCE', since),
    sentences,
    remarks: [],
  };
};

const PLACES: Record<string, string> = {
  absent: 'not here',
  adding: 'being added',
  held: 'here',
  handingOver: 'still here, until a successor has spoken,',
  removing: 'being removed',
  failed: 'not here, because it could not be added,',
};

export const explainAddress = (reader: JournalReader, actor: string, atUs: number): Explanation | null => {
  const [, router = ''] = actor.split('/');
  return explainChanges(reader, actor, atUs, {
    headline: ({ state }) => `Address ${addressOf(actor)} of router ${router} is ${PLACES[placeOf(state)]} SINCE.`,
    sentence: ({ step }) => addressSentence(step),
    phase: placeOf,
  });
};

const addressSentence = (step: Step): string => {
  const { event, state } = step;
  const done = doneText(step, 0)?.replace(' at once', '');
  if (done !== undefined) return `It ${done}.`;
  const incident = incidentText(step);
  if (incident !== null) return `It ${incident}`;
  switch (event.type) {
    case ACTOR_STARTED:
      return 'The node started with it: what an earlier life may have left is taken away.';
    case 'address.acquire':
      return 'The router became master: it is being added.';
    case 'address.release':
      return state === 'removing' ? 'The router gave it up: it is being removed.' : 'The router gave it up.';
    case 'address.lost':
      return 'Somebody else took it away.';
    default:
      if (event.type.startsWith('xstate.after.hold')) return 'No successor has spoken: it is being removed.';
      if (event.type.startsWith('xstate.after.retry')) return 'It is tried again.';
      return `${event.type}: it is ${PLACES[placeOf(state)]}.`;
  }
};

export const explainTracker = (reader: JournalReader, actor: string, atUs: number): Explanation | null =>
  explainChanges(reader, actor, atUs, {
    headline: (step) => `Tracker ${trackerName(actor)} is ${TRACKED[step.state]} SINCE${seenText(step, ': ')}.`,
    sentence: ({ step, before }) => trackerSentence(step, before),
    consequences: (step) => routerConsequences(reader, step),
  });

const TRACKED: Record<string, string> = {
  up: 'UP',
  goingDown: 'UP, but going down,',
  down: 'DOWN',
  goingUp: 'DOWN, but going up,',
};

const seenText = ({ event }: Step, before: string): string => {
  const { message, code } = event as unknown as { message?: string; code?: string };
  const text = [message, code].filter((part) => part !== undefined && part !== '');
  return text.length === 0 ? '' : `${before}${text.length === 2 ? `${text[0]} (${text[1]})` : text[0]}`;
};

const trackerSentence = (step: Step, before: string | null): string => {
  if (before === null) return 'The node started with it; it counts as up until it is seen to be down.';
  const seen = step.event['ok'] === true ? 'It was seen up' : 'It was seen down';
  const counts: Record<string, string> = {
    goingDown: ' That is not enough yet to count as down.',
    goingUp: ' That is not enough yet to count as up.',
    down: before === 'goingUp' ? ' It had begun to come back.' : ' It counts as DOWN.',
    up: before === 'goingDown' ? ' What was seen before is forgotten.' : ' It counts as UP.',
  };
  return `${seen}${seenText(step, ': ')}.${counts[step.state] ?? ''}`;
};

/** What routers made of what a tracker told them. */
const routerConsequences = (reader: JournalReader, cause: Step): Sentence[] => {
  const sentences: Sentence[] = [];
  const window = { fromSeq: cause.seq + 1, throughSeq: cause.seq + CONSEQUENCE_WINDOW };
  for (const row of reader.rows({ ...window, actor: 'router/*', type: 'tracker.changed' })) {
    if (row.cause !== cause.seq) continue;
    for (const { step, before, after } of historyOf<RouterContext>(
      reader,
      row.actor,
      'vrrpRouter',
      row.seq,
      row.time,
    )) {
      if (!step || step.seq !== row.seq || !before || !after) continue;
      const text = consequenceText(step, before.context, after.context);
      if (text !== null) sentences.push({ ...at(step), text: `→ ${row.actor.replace('router/', 'Router ')}${text}` });
    }
  }
  return sentences;
};

const consequenceText = (step: Step, before: RouterContext, after: RouterContext): string | null => {
  const notice = noticeOf(step);
  if (notice) return ` became ${notice.state}.`;
  const [was, is] = [effectivePriority(before), effectivePriority(after)];
  return was === is ? null : `: priority ${was} → ${is}.`;
};

export const explainSyncGroup = (reader: JournalReader, actor: string, atUs: number): Explanation | null =>
  explainChanges(reader, actor, atUs, {
    headline: ({ state }) => `Sync group ${actor.slice('group/'.length)} is ${state.toUpperCase()} SINCE.`,
    sentence: ({ step, before }) => groupSentence(step, before),
  });

const groupSentence = (step: Step, before: string | null): string => {
  if (before === null) return 'The node started with it.';
  // At the start each member goes into BACKUP by itself.
  const isFollowed = step.event.type === 'member.state' && before !== 'initialize' && step.state !== 'fault';
  return `${memberText(step)} ${before.toUpperCase()} → ${step.state.toUpperCase()}${isFollowed ? ', and so do the others' : ''}.`;
};
