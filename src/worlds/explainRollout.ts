/** How a roll-out of the shared configuration came to where it is: from the push on, node by node. */
import { ACTOR_STARTED } from '../../actors/system.ts';
import type { SeenNode } from '../../machines/rollout.ts';
import type { Step } from '../journal/record.ts';
import { formatDateTime, formatSpan } from '../time.ts';
import { genericSentence } from './explanation.ts';
import type { Explanation, Seen } from './explanation.ts';

/** Events that begin one: what was before has nothing to do with it. */
const BEGINS = new Set([ACTOR_STARTED, 'push.asked', 'resume.asked']);

export const explainRollout = (actor: string, seen: Seen[], atUs: number): Explanation => {
  const chain = seen.slice(
    Math.max(
      0,
      seen.findLastIndex(({ step }) => BEGINS.has(step.event.type)),
    ),
  );
  const newest = seen.at(-1)!.step;
  const sinceUs = chain.findLast(({ step, before }) => step.state !== before)?.step.wallUs ?? newest.wallUs;
  return {
    actor,
    state: newest.state,
    sinceUs,
    atUs,
    headline: `The roll-out is ${newest.state} since ${formatDateTime(sinceUs)} (${formatSpan(atUs - sinceUs)}).`,
    sentences: chain.map(({ step, before }) => ({
      timeUs: step.wallUs,
      seq: step.seq,
      text: sentenceOf(step) ?? genericSentence(step, before),
    })),
    remarks: [],
  };
};

const sentenceOf = (step: Step): string | null => {
  const event = step.event as Record<string, unknown>;
  const text = (key: string) => String(event[key]);
  const nodes = (key: string) => (event[key] as string[]).join(', ') || 'nobody';
  switch (step.event.type) {
    case 'push.asked': {
      const what = event['rollbackOf'] === null ? 'a configuration' : `revision ${text('rollbackOf')} again`;
      const why = event['message'] === '' ? '' : ` (“${text('message')}”)`;
      const short = step.state === 'idle' ? '; all nodes were required, so it was refused' : '';
      return `${text('author')} pushed ${what}${why}: here were ${nodes('nodes')}, away ${nodes('away')}${short}.`;
    }
    case 'resume.asked':
      return `Somebody asked to go on with revision ${text('revision')}: here were ${nodes('nodes')}, away ${nodes('away')}.`;
    case 'check.answered':
      return `${text('node')} ${event['problems'] === 0 ? 'could run it' : `had ${text('problems')} problems with it`}.${verdict(step)}`;
    case 'check.failed':
      return `${text('node')} could not be asked: ${text('message')}.${verdict(step)}`;
    case 'revision.stored':
      return `It was stored as revision ${text('revision')}.`;
    case 'store.failed':
      return `It was not stored: ${text('message')}.`;
    case 'nodes.seen':
      return seenText(event['nodes'] as SeenNode[], step);
    case 'apply.done':
      return `${text('node')} runs it.`;
    case 'apply.failed':
      return `${text('node')} could not run it: ${text('message')}. The others run what they ran.`;
    case 'lead.lost':
      return `It ended here: ${text('message')}.`;
    default:
      return null;
  }
};

const verdict = ({ state }: Step): string =>
  state === 'storing' ? ' Nobody had anything against it.' : state === 'idle' ? ' So nothing was stored.' : '';

const seenText = (nodes: readonly SeenNode[], { effects, state }: Step): string => {
  if (state === 'done') return 'Every node that is here runs it.';
  const told = effects.find(({ type }) => type === 'apply')?.params as { node: string } | undefined;
  const masters = nodes.filter(({ masters: count }) => count > 0).map(({ node }) => node);
  const why = masters.length === 0 ? 'nobody of those left is master' : `of those left ${masters.join(', ')} is master`;
  return `${told?.node ?? 'Nobody'} was told to apply it, as ${why}.`;
};
