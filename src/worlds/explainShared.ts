/** What nodes made together of a server, and why a node took itself for blind. */
import { ACTOR_STARTED } from '../../actors/system.ts';
import type { TrafficFailed } from '../../machines/backendServer.ts';
import { blindOf, sightText } from '../../machines/nodeSight.ts';
import type { SightCount } from '../../machines/nodeSight.ts';
import type { Step } from '../journal/record.ts';
import { formatDateTime, formatSpan } from '../time.ts';
import { trafficText } from './explainOutliers.ts';
import { genericSentence } from './explanation.ts';
import type { Explanation, Seen } from './explanation.ts';

/** The code of a check's result that is the verdict of several nodes: machines/healthQuorum.ts. */
const QUORUM = 'QUORUM';
/** Changes that are told. */
const CHANGES = 8;

type CheckEvent = { code: string; message: string; durationMs: number };

export const checkText = ({ event }: Step): string => {
  const { code, message, durationMs } = event as unknown as CheckEvent;
  if (code === QUORUM) return message;
  return `${message === '' ? code : `${message} (${code})`} after ${durationMs} ms`;
};

/** Of what a server was told: null for a check of this node's own. */
export const verdictSentence = ({ event }: Step, isSlow: boolean): string | null => {
  const { code, message } = event as unknown as CheckEvent;
  if (code !== QUORUM) return null;
  const [view, became] = event.type === 'check.passed' ? ['up', 'UP'] : ['down', 'marked DOWN'];
  return `The cluster’s verdict is ${view}, by ${message}: ${became}${isSlow ? ', with its weight growing slowly' : ''}.`;
};

export const explainShared = (actor: string, seen: Seen[], atUs: number): Explanation => {
  const isSight = actor === 'sight';
  const sentence = isSight ? sightSentence : quorumSentence;
  const changes = seen.filter(({ step, before }) => before !== step.state || step.event.type === 'nodes.counted');
  const newest = changes.findLast(({ step, before }) => before !== step.state) ?? seen.at(-1)!;
  const since = `since ${formatDateTime(newest.step.wallUs)} (${formatSpan(atUs - newest.step.wallUs)})`;
  return {
    actor,
    state: newest.step.state,
    sinceUs: newest.step.wallUs,
    atUs,
    headline: isSight
      ? `This node is ${newest.step.state.toUpperCase()} ${since}.`
      : `${quorumName(actor)}: ${statesText(newest.step.state)}, ${since}.`,
    sentences: changes.slice(-CHANGES).map(({ step, before }) => ({
      timeUs: step.wallUs,
      seq: step.seq,
      text: sentence(step, before),
    })),
    remarks: isSight ? [] : lastVerdict(seen),
  };
};

const quorumName = (actor: string): string => `Server ${actor.slice('quorum/'.length)}`;

const VIEWS: Record<string, string> = {
  unchecked: 'not checked yet',
  goingDown: 'up, but going down',
  goingUp: 'down, but going up',
  offDuty: 'none, as others check it',
  paused: 'none, as it is in maintenance',
};

const statesText = (state: string): string => {
  const [own = '', verdict = ''] = state.split(',');
  return `the cluster’s verdict is ${verdict}, this node’s own view ${VIEWS[own] ?? own}`;
};

const lastVerdict = (seen: Seen[]): string[] => {
  for (const { step } of seen.toReversed()) {
    for (const { type, params } of step.effects) {
      if (type !== 'tell') continue;
      const { to, event } = params as { to: string; event: { message?: string } };
      if (to.startsWith('server/')) return [`The server was last told: ${event.message}.`];
    }
  }
  return [];
};

export const quorumSentence = (step: Step, before: string | null): string => {
  const text = quorumEventText(step);
  if (text === null) return genericSentence(step, before);
  const [own, verdict] = step.state.split(',') as [string, string];
  const [ownBefore, verdictBefore] = (before ?? '').split(',');
  const changes = [
    ...(own === ownBefore ? [] : [`this node’s view is ${VIEWS[own] ?? own}`]),
    ...(verdict === verdictBefore ? [] : [`the verdict is ${verdict}`]),
  ];
  return changes.length === 0 || before === null ? `${text}.` : `${text}: ${changes.join(', ')}.`;
};

const quorumEventText = (step: Step): string | null => {
  const { event } = step;
  const node = typeof event['node'] === 'string' ? event['node'] : '';
  switch (event.type) {
    case ACTOR_STARTED:
      return 'The node started with it';
    case 'check.passed':
      return `A check of this node passed (${checkText(step)})`;
    case 'check.failed':
      return `A check of this node failed (${checkText(step)})`;
    case 'traffic.failed':
      return `Errors of ${trafficText(event as unknown as TrafficFailed)}`;
    case 'view.heard': {
      const { view, message } = event as unknown as { view: string; message: string };
      if (view === 'none') return `${node} has no view of it any more`;
      return `${node} says that it is ${view}${message === '' ? '' : ` (${message})`}`;
    }
    case 'views.known':
      return 'What other nodes say became known';
    case 'node.lost':
      return `${node} is not heard any more and has no vote`;
    case 'node.sight':
      return event['blind'] === true ? `${node} is blind and has no vote` : `${node} sees again and has a vote`;
    case 'duty.assigned': {
      const checkers = event['checkers'] as string[] | null;
      return checkers === null ? 'Every node is to check it' : `It is to be checked by ${checkers.join(', ')}`;
    }
    case 'checker.pause':
      return 'The server is in maintenance';
    case 'checker.resume':
      return 'Its maintenance is over';
    case 'settings.changed':
      return 'A reload changed its settings';
    default:
      return null;
  }
};

export const sightSentence = ({ event }: Step): string => {
  if (event.type === ACTOR_STARTED)
    return 'The node started with it: it is taken to see until it is shown that it doesn’t.';
  if (event.type !== 'nodes.counted') return 'A reload changed its settings.';
  const counts = event['counts'] as Record<string, SightCount>;
  const blind = blindOf(counts);
  if (blind.length === 0) return 'Every node sees servers, or nobody does.';
  return blind.map((node) => `${node} is blind: ${sightText(counts[node]!)}.`).join(' ');
};
