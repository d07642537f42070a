/**
 * Why an actor is in its state: the chain of events that led to it, in sentences for whoever is on call at 3 a.m. A
 * chain begins where the actor last was in a settled state.
 */
import { ACTOR_STARTED } from '../../actors/system.ts';
import { UnderstudyError } from '../errors.ts';
import type { JournalReader } from '../journal/reader.ts';
import { decodedSteps } from '../journal/reader.ts';
import { formatDateTime, formatSpan } from '../time.ts';
import { explainMember } from './explainMember.ts';
import { isObserverNews, observerSentence } from './explainOutliers.ts';
import { poolSentence, publishText } from './explainPool.ts';
import { explainRollout } from './explainRollout.ts';
import { explainRouter } from './explainRouter.ts';
import { explainAddress, explainSyncGroup, explainTracker } from './explainRouterParts.ts';
import { explainServer } from './explainServer.ts';
import { explainShared } from './explainShared.ts';
import { causeRemarks, genericSentence, nameOf } from './explanation.ts';
import type { Explanation, Seen } from './explanation.ts';

export type { Explanation } from './explanation.ts';

/** Changes of state shown for actors that have no longer chains of their own. */
const GENERIC_CHAIN = 8;

/** @throws UnderstudyError RECORD_NOT_FOUND, RECORD_UNREADABLE */
export const explain = (reader: JournalReader, actor: string, atUs?: number): Explanation => {
  const until = atUs ?? reader.lastTimeUs();
  const explanation = explainKind(reader, actor, until);
  if (explanation) return explanation;
  const known = [...new Set([...reader.rows({ type: ACTOR_STARTED })].map((row) => row.actor))];
  const shown = known.filter((id) => !id.startsWith('checker/')).slice(0, 20);
  throw new UnderstudyError(
    'RECORD_NOT_FOUND',
    `the journal has no actor ${actor}${atUs === undefined ? '' : ` before ${formatDateTime(atUs)}`}; it has ${shown.join(', ') || 'none'}`,
  );
};

const explainKind = (reader: JournalReader, actor: string, atUs: number): Explanation | null => {
  switch (actor.slice(0, actor.indexOf('/'))) {
    case 'router':
      return explainRouter(reader, actor, atUs);
    case 'address':
      return explainAddress(reader, actor, atUs);
    case 'tracker':
      return explainTracker(reader, actor, atUs);
    case 'group':
      return explainSyncGroup(reader, actor, atUs);
    case 'member':
      return explainMember(reader, actor, atUs);
  }
  const seen = seenBy(reader, actor, atUs);
  if (seen.length === 0) return null;
  if (actor.startsWith('quorum/') || actor === 'sight') return explainShared(actor, seen, atUs);
  if (actor === 'rollout') return explainRollout(actor, seen, atUs);
  if (actor.startsWith('server/')) return explainServer(reader, actor, seen, atUs, configAt(reader, atUs));
  return explainPlainly(reader, actor, seen, atUs);
};

const explainPlainly = (reader: JournalReader, actor: string, seen: Seen[], atUs: number): Explanation => {
  const kind = actor.slice(0, actor.indexOf('/'));
  const sentence = kind === 'pool' ? poolSentence : kind === 'observer' ? observerSentence : genericSentence;
  // What a pool publishes is news even where its state keeps its name.
  const changes = seen.filter(({ step, before }) => isObserverNews(step, before) || publishText(step) !== null);
  const chain = changes.slice(-GENERIC_CHAIN);
  const newest = chain.at(-1) ?? seen.at(-1)!;
  return {
    actor,
    state: newest.step.state,
    sinceUs: newest.step.wallUs,
    atUs,
    headline: `${nameOf(actor)} is ${newest.step.state} since ${formatDateTime(newest.step.wallUs)} (${formatSpan(atUs - newest.step.wallUs)}).`,
    sentences: chain.map(({ step, before }) => ({
      timeUs: step.wallUs,
      seq: step.seq,
      text: sentence(step, before),
    })),
    remarks: causeRemarks(reader, newest.step),
  };
};

/** The actor's own events in order, each with the state before it: the recorded one, nothing is decided anew. */
const seenBy = (reader: JournalReader, actor: string, atUs: number): Seen[] => {
  const seen: Seen[] = [];
  let before: string | null = null;
  for (const step of reader.steps({ actor })) {
    if (step.wallUs > atUs) break;
    seen.push({ step, before: step.event.type === ACTOR_STARTED ? null : before });
    before = step.state;
  }
  return seen;
};

const configAt = (reader: JournalReader, until: number): Record<string, unknown> => {
  for (const row of reader.rows({ actor: 'node', newestFirst: true, until })) {
    if (row.type !== 'node.started' && row.type !== 'node.configured') continue;
    return (decodedSteps(row)[0]!.event['config'] ?? {}) as Record<string, unknown>;
  }
  return {};
};
