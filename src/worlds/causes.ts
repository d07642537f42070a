/** What led to a record, from actor to actor: router ← tracker ← pool ← server. One line each, the nearest first. */
import type { TrafficFailed } from '../../machines/backendServer.ts';
import type { Reason, RouterState } from '../../machines/vrrpRouter.ts';
import { decodedSteps } from '../journal/reader.ts';
import type { JournalReader } from '../journal/reader.ts';
import type { Row, Step } from '../journal/record.ts';
import { reasonText, trackerName } from '../vrrp/reasons.ts';
import { observerSentence, trafficText } from './explainOutliers.ts';
import { poolSentence } from './explainPool.ts';
import { checkText, quorumSentence, sightSentence } from './explainShared.ts';
import type { Sentence } from './explanation.ts';
import { nameOf } from './explanation.ts';

/** Server, pool, tracker, router, group, and the other routers of the group. */
const LONGEST_CHAIN = 6;

export const causesOf = (reader: JournalReader, step: Step): Sentence[] => {
  const lines: Sentence[] = [];
  let seq = step.cause;
  for (let depth = 0; depth < LONGEST_CHAIN && seq !== null; depth++) {
    const row = reader.row(seq);
    if (!row) break;
    const cause = decodedSteps(row).at(-1)!;
    // A tracker has said so in the record that is asked about.
    const isSaid = step.event.type === 'tracker.changed' && row.actor.startsWith('tracker/');
    const text = isSaid ? null : causeText(row, cause);
    if (text !== null) lines.push({ timeUs: cause.wallUs, seq: row.seq, text: `← ${text}` });
    // A timer's cause is whoever set it, and a probe's whoever started it: no reason of anything.
    if (cause.origin !== 'message') break;
    seq = row.cause;
  }
  return lines;
};

const causeText = (row: Row, step: Step): string | null => {
  const name = nameOf(row.actor);
  switch (row.actor.split('/')[0]) {
    case 'tracker':
      return `Tracker ${trackerName(row.actor)} is ${step.state}${messageText(step)}`;
    case 'pool':
      return poolSentence(step, step.state);
    case 'quorum':
      return `${name}: ${quorumSentence(step, null)}`;
    case 'sight':
      return sightSentence(step);
    case 'server':
      return `${name}: ${serverText(step)}`;
    case 'observer':
      return `${name}: ${observerSentence(step, null)}`;
    case 'group':
      return `${name} is ${step.state.toUpperCase()}: ${memberText(step)}`;
    case 'router': {
      const notice = noticeOf(step);
      return notice ? `${name} ${becameText(notice)}.` : null;
    }
    case 'address':
      return `Address ${row.actor.split('/').slice(2).join('/')} is ${step.state}${messageText(step)}`;
    default:
      return null;
  }
};

const messageText = ({ event }: Step): string =>
  typeof event['message'] === 'string' && event['message'] !== '' ? `: ${event['message']}.` : '.';

const serverText = (step: Step): string => {
  const [health = '', admin = ''] = step.state.split(',');
  switch (step.event.type) {
    case 'check.failed':
      return `check failed: ${checkText(step)}; it is ${health}.`;
    case 'check.passed':
      return `check passed: ${checkText(step)}; it is ${health}.`;
    case 'traffic.failed':
      return `${trafficText(step.event as unknown as TrafficFailed)}; it is ${health}.`;
    default:
      return step.event.type.startsWith('operator.') ? `an operator set it to ${admin}.` : `it is ${health}, ${admin}.`;
  }
};

export const memberText = ({ event, state }: Step): string => {
  const router = typeof event['router'] === 'string' ? event['router'].replace('router/', '') : '';
  if (event.type === 'member.state') return `${router} became ${String(event['state'])}.`;
  if (event.type === 'member.wants')
    return event['wants'] === true
      ? `${router} would be master${state === 'master' ? ', and so would all others' : ''}.`
      : `${router} would not be master any more.`;
  if (event.type === 'member.faults')
    return `${router} ${event['faulty'] === true ? 'has a fault' : 'has no fault any more'}.`;
  return 'a reload changed its members.';
};

export type Notice = { state: RouterState; priority: number; reason: Reason };

/** What a router told of its new state in this step; null when it entered none. */
export const noticeOf = (step: Step): Notice | null => {
  const effect = step.effects.find(({ type }) => type === 'notify');
  return effect ? (effect.params as Notice) : null;
};

const becameText = ({ state, reason }: Notice): string =>
  state === 'STOP' ? `stopped: ${reasonText(reason)}` : `became ${state}: ${reasonText(reason)}`;
