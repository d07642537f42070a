/**
 * Why a router is master or not: its priority and what makes it, who is above it, and how it came to its state: each
 * change with its reason and evidence, what trackers, operators and peers did in between, and what became of the addresses.
 */
import { ACTOR_STARTED } from '../../actors/system.ts';
import { effectivePriority } from '../../machines/vrrpRouter.ts';
import type { ReasonCode, RouterContext } from '../../machines/vrrpRouter.ts';
import { decodedSteps } from '../journal/reader.ts';
import type { JournalReader } from '../journal/reader.ts';
import type { Row, Step } from '../journal/record.ts';
import { formatClock, formatDateTime, formatSpan } from '../time.ts';
import {
  conflictText,
  differenceText,
  faultName,
  faultsText,
  phaseOf,
  priorityText,
  reasonText,
  trackerName,
} from '../vrrp/reasons.ts';
import { historyOf, singlesBefore } from './actorHistory.ts';
import type { Moment } from './actorHistory.ts';
import { causesOf, noticeOf } from './causes.ts';
import { addressConsequences, addressIncidents, thenLines } from './explainRouterParts.ts';
import { anOperator } from './explanation.ts';
import type { Explanation, Sentence } from './explanation.ts';

/** Changes of state that are told, the present one included. */
const CHANGES = 4;
/** What else happened between them: with a flapping tracker the newest of it is what helps. */
const MAX_EVENTS = 24;
const MAX_CONFLICTS = 4;

type RouterMoment = Moment<RouterContext>;

/** Null when the journal doesn't know the router at that time. */
export const explainRouter = (reader: JournalReader, actor: string, atUs: number): Explanation | null => {
  const start = chainStart(reader, actor, atUs);
  if (start === null) return null;
  const told: { sentences: Sentence[]; isChange: boolean }[] = [];
  let now: RouterMoment | null = null;
  let change: RouterMoment | null = null;
  const since = new Observations();
  const meeting = new Meetings();
  for (const moment of historyOf<RouterContext>(reader, actor, 'vrrpRouter', start, atUs)) {
    now = moment;
    const { step } = moment;
    if (step && (noticeOf(step) || step.event.type === ACTOR_STARTED)) {
      change = moment;
      since.reset();
      meeting.end();
      told.push({ sentences: changeSentences(reader, moment), isChange: true });
      continue;
    }
    since.take(moment);
    const sentences = meeting.take(moment) ?? eventSentences(reader, moment);
    if (sentences.length > 0) told.push({ sentences, isChange: false });
  }
  if (!now?.after || !change) return null;
  const { context, state } = now.after;
  for (const incident of addressIncidents(reader, context.name, change.row.seq, atUs))
    told.push({ sentences: incident, isChange: false });
  told.sort((a, b) => a.sentences[0]!.timeUs - b.sentences[0]!.timeUs || a.sentences[0]!.seq - b.sentences[0]!.seq);
  return {
    actor,
    state,
    sinceUs: change.row.time,
    atUs,
    headline: headlineOf(reader, actor, now.after, change, atUs),
    sentences: shortened(told, actor),
    remarks: [...since.remarks(state, atUs), ...conflictRemarks(context)],
  };
};

/** The record of the earliest change that is told; a start of the router ends the search. */
const chainStart = (reader: JournalReader, actor: string, atUs: number): number | null => {
  let start: number | null = null;
  let changes = 0;
  for (const { row, step } of singlesBefore(reader, { actor }, atUs)) {
    const isStart = row.type === ACTOR_STARTED;
    if (!isStart && !noticeOf(step)) continue;
    start = row.seq;
    if (isStart || ++changes === CHANGES) break;
  }
  return start;
};

const shortened = (told: { sentences: Sentence[]; isChange: boolean }[], actor: string): Sentence[] => {
  const events = told.filter(({ isChange }) => !isChange).length;
  let surplus = events - MAX_EVENTS;
  const left = Math.max(0, surplus);
  const sentences: Sentence[] = [];
  for (const { sentences: own, isChange } of told) {
    if (!isChange && surplus-- > 0) {
      if (surplus === left - 1)
        sentences.push({ ...own[0]!, text: `${left} events are left out here: understudy log --actor ${actor}` });
      continue;
    }
    sentences.push(...own);
  }
  return sentences;
};

const at = (step: Step): Omit<Sentence, 'text'> => ({ timeUs: step.wallUs, seq: step.seq });

const headlineOf = (
  reader: JournalReader,
  actor: string,
  { state, context }: { state: string; context: RouterContext },
  change: RouterMoment,
  atUs: number,
): string => {
  const { name, master, faults, reason } = context;
  const phase = phaseOf(state);
  const span = `since ${formatDateTime(change.row.time)} (${formatSpan(atUs - change.row.time)})`;
  const head = `Router ${name} is ${phase.toUpperCase()} ${span}`;
  const priority = priorityText(context, (tracker) => {
    const us = trackerSince(reader, actor, tracker, atUs);
    return us === null ? '' : `, since ${formatClock(us)}`;
  });
  const own = effectivePriority(context);
  switch (phase) {
    case 'fault':
      return `${head}: ${faultsText(context.faults)}. It would have priority ${priority}.`;
    case 'initialize': {
      if (state === 'initialize.stopped') return `${head}: ${reasonText(reason)}.`;
      const waits = Object.keys(faults).map(faultName).join(', ');
      return `${head}: it waits for: ${waits}.`;
    }
    case 'master':
      return `${head}: ${reasonText(reason)}. Its priority is ${priority}.`;
    case 'backup':
      return `${head}. Its priority is ${priority}, ${state === 'backup.willing' ? 'and it would be master, but its sync group waits for other members' : masterText(context, master, own)}.`;
  }
};

const masterText = (context: RouterContext, master: RouterContext['master'], own: number): string => {
  const { settings, lower, preemptDelayRuns, masterLeft } = context;
  if (lower) return `above that of the master ${lower.source} (${lower.priority}): it takes over when its time is up`;
  if (!master) return 'and no master has been heard yet';
  const name = `the master ${master.source} (${master.priority})`;
  if (masterLeft) return `and ${name} has said that it leaves`;
  if (master.priority > own) return `below that of ${name}`;
  if (master.priority === own) return `the same as that of ${name}, which is left alone`;
  if (preemptDelayRuns)
    return `above that of ${name}, which is left alone for ${formatSpan(settings.preemptDelayMs * 1000)} (preemptDelay)`;
  return `above that of ${name}, which it doesn't preempt (preempt: false)`;
};

/** Since when a tracker has told what it tells, µs since 1970. */
const trackerSince = (reader: JournalReader, actor: string, tracker: string, atUs: number): number | null => {
  let since: { us: number; up: unknown } | null = null;
  for (const { step } of singlesBefore(reader, { actor, type: 'tracker.changed' }, atUs)) {
    const { event, wallUs } = step;
    if (event['tracker'] !== tracker) continue;
    if (since && since.up !== event['up']) break;
    since = { us: wallUs, up: event['up'] };
  }
  return since?.us ?? null;
};

/** Into another state: why, with the evidence, what had led to it and what became of the addresses. */
const changeSentences = (reader: JournalReader, { step, before, after }: RouterMoment): Sentence[] => {
  const { event } = step!;
  const notice = noticeOf(step!);
  if (!notice) {
    const waits = after ? Object.keys(after.context.faults).map(faultName).join(', ') : '';
    return [{ ...at(step!), text: `The node started with it${waits === '' ? '' : `; it waits for: ${waits}`}.` }];
  }
  const { state, reason, priority } = notice;
  const from = before ? phaseOf(before.state) : null;
  const left = from === null || from === 'initialize' ? '' : `${from.toUpperCase()} → `;
  const why = reason.code === 'fault' && after ? faultsText(after.context.faults) : reasonText(reason);
  const restored = event['restored'] === true ? ' (as before the node started again)' : '';
  const text =
    state === 'STOP'
      ? `It stopped: ${reasonText(reason)}.`
      : `${left}${state}: ${why}${restored}.${ownText(priority, reason.code)}`;
  return [
    { ...at(step!), text },
    ...(step!.origin === 'message' ? causesOf(reader, step!) : []),
    ...thenLines(step!, addressConsequences(reader, step!)),
  ];
};

/** Where it counted, and the sentence doesn't say it already. */
const ownText = (priority: number, code: ReasonCode): string =>
  ['startup', 'masterDownExpired', 'priorityZero', 'tieLost', 'overslept', 'faultCleared'].includes(code)
    ? ` Its own priority is ${priority}.`
    : '';

/** What happened without another state: null texts are nobody's question. */
const eventSentences = (reader: JournalReader, moment: RouterMoment): Sentence[] => {
  const { step, before, after } = moment;
  if (!step || !before || !after || before.context === after.context) return [];
  const text = eventText(step, before.context, after.context, after.state);
  if (text === null) return [];
  return [{ ...at(step), text }, ...(step.event.type === 'tracker.changed' ? causesOf(reader, step) : [])];
};

const priorityChange = (before: RouterContext, after: RouterContext): string => {
  const [was, is] = [effectivePriority(before), effectivePriority(after)];
  return was === is ? ` Its priority stays ${is}.` : ` Its priority is ${priorityText(after)} now, it was ${was}.`;
};

const eventText = (step: Step, before: RouterContext, after: RouterContext, state: string): string | null => {
  const { event } = step;
  switch (event.type) {
    case 'tracker.changed': {
      const { tracker, up, message } = event as unknown as { tracker: string; up: boolean; message: string };
      const known = before.tracked[tracker];
      const isNews = effectivePriority(before) !== effectivePriority(after) || (known?.up ?? true) !== up;
      if (!isNews) return null;
      return `Tracker ${trackerName(tracker)} is ${up ? 'up' : 'down'}${message === '' ? '' : `: ${message}`}.${priorityChange(before, after)}`;
    }
    case 'operator.demote':
    case 'operator.promote': {
      const who =
        event['restored'] === true
          ? 'As an operator had wanted before the node started again, it was'
          : anOperator(event);
      const what = event.type === 'operator.demote' ? 'demoted' : 'promoted';
      return `${who} ${what}${event['restored'] === true ? '' : ' it'}.${priorityChange(before, after)}`;
    }
    case 'settings.changed':
      return `A reload changed its settings.${priorityChange(before, after)}`;
    case 'advert.received':
      return heardText(event as unknown as Advert, before, after, state);
    case 'advert.discarded': {
      const source = String(event['source']);
      const conflict = after.conflicts[source];
      return conflict ? `An advert was discarded: ${conflictText(source, conflict)}.` : null;
    }
    case 'conflict.silent':
      return `${String(event['source'])}, whose adverts were discarded, is not heard any more.`;
    case 'interface.down':
      return `${String(event['message'])}.`;
    case 'bus.lost':
      return phaseOf(state) === 'master'
        ? `${busLostText(event)}: it is cut off, keeps its addresses (onBusLoss: keep), and can't know whether another node has taken them.`
        : `${busLostText(event)}.`;
    case 'bus.joined':
      return before.faults['bus'] === null
        ? null
        : phaseOf(state) === 'master'
          ? 'NATS is back: its adverts are heard again.'
          : 'NATS is back; it waits until a master, if there is one, must have been heard.';
    case 'looked':
      if (state === 'backup.willing') return 'Its time is up; its sync group waits until all members would be master.';
      return after.graceGiven
        ? `Its time was up, but the control loop was ${formatSpan(Number(event['lateMs']) * 1000)} late, and adverts may be as late: it waits one skew time more.`
        : null;
    case 'preemptDelay.elapsed':
      return 'The preempt delay is over: a master of lower priority is not accepted any more.';
    case 'startDelay.elapsed':
      return 'The start delay is over.';
    default:
      return null;
  }
};

const busLostText = (event: Step['event']): string => `NATS is away (${String(event['message'])})`;

type Advert = { source: string; priority: number };

const heardText = (advert: Advert, before: RouterContext, after: RouterContext, state: string): string | null => {
  const { source, priority } = advert;
  if (phaseOf(state) !== 'backup') return null;
  if (after.masterLeft && !before.masterLeft)
    return `The master ${source} said that it leaves (priority 0): it is waited for no longer than the skew time.`;
  if (after.lower && after.lower.source !== before.lower?.source)
    return `The master ${source} has priority ${priority} now, below its own ${effectivePriority(after)}: its adverts are not accepted any more.`;
  const [was, is] = [before.master, after.master];
  if (is && (was?.source !== is.source || was.priority !== is.priority)) {
    const other =
      was && was.source === is.source
        ? ` (it had ${was.priority})`
        : was
          ? ` (it had been ${was.source} with ${was.priority})`
          : '';
    return `The master is ${is.source} with priority ${is.priority}${other}.`;
  }
  const differences = after.differences[source];
  if (differences && before.differences[source] === undefined)
    return `${differences.map((difference) => differenceText(source, difference)).join('; ')}.`;
  return null;
};

/** Runs of a mastership that are looked into for another master: two of them take turns in one run. */
const MAX_LOOKED_INTO = 50;

/** A master that hears another one below it: told once for as long as that lasts. */
class Meetings {
  #other: string | null = null;
  #lookedInto = 0;

  end(): void {
    this.#other = null;
    this.#lookedInto = 0;
  }

  take({ row, step, after }: RouterMoment): Sentence[] | null {
    if (!after || phaseOf(after.state) !== 'master') return null;
    const heard = step ?? this.#lookInto(row);
    if (heard?.event.type !== 'advert.received') return null;
    const { source, priority } = heard.event as unknown as Advert;
    if (source === this.#other) return null;
    this.#other = source;
    const text =
      priority === 0
        ? `${source}, which was master too, said that it leaves: the addresses were announced again.`
        : `${source} is master too, with priority ${priority}: it was answered at once, and the addresses were announced again.`;
    return [{ ...at(heard), text }];
  }

  #lookInto(row: Row): Step | undefined {
    if (this.#lookedInto++ >= MAX_LOOKED_INTO) return undefined;
    return decodedSteps(row).find(({ event }) => event.type === 'advert.received');
  }
}

/** What came in, and went out, since the last change of state. */
class Observations {
  #received = 0;
  #lastReceivedUs = 0;
  #sent = 0;
  #lastSentUs = 0;

  reset(): void {
    this.#received = this.#sent = 0;
  }

  take({ row, step }: RouterMoment): void {
    if ((step?.event.type ?? row.type) === 'advert.received') {
      this.#received += step ? 1 : row.count;
      this.#lastReceivedUs = step?.wallUs ?? row.time;
    } else if ((step?.event.type ?? row.type) === 'advert.due') {
      this.#sent += step ? 1 : row.count;
      this.#lastSentUs = step?.wallUs ?? row.time;
    }
  }

  remarks(state: string, atUs: number): string[] {
    const count = (number: number) => (number === 1 ? 'one more advert was' : `${number} more adverts were`);
    const phase = phaseOf(state);
    const ago = (us: number) => `the last ${formatSpan(atUs - us)} before ${formatClock(atUs)}`;
    if (phase === 'backup' && this.#received > 0)
      return [`Since then ${count(this.#received)} received, ${ago(this.#lastReceivedUs)}.`];
    if (phase === 'master' && this.#sent > 0)
      return [`Since then ${count(this.#sent)} sent, ${ago(this.#lastSentUs)}.`];
    return [];
  }
}

const conflictRemarks = ({ conflicts, differences }: RouterContext): string[] => [
  ...Object.entries(conflicts).map(([peer, conflict]) => `${conflictText(peer, conflict)}.`),
  ...Object.entries(differences)
    .flatMap(([peer, list]) => list.map((difference) => `${differenceText(peer, difference)}.`))
    .slice(0, MAX_CONFLICTS),
];
