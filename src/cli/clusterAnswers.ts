/** What the nodes of a cluster said to a command: a row each, and the status that the command ends with. */
import type { ClusterAnswer, NodeAnswer } from '../cluster/clusterCommands.ts';
import { table } from './output.ts';

export const isClusterAnswer = (answer: unknown): answer is ClusterAnswer =>
  typeof answer === 'object' && answer !== null && 'answers' in answer;

/** Every node that is there has done it. One that is away does it when it returns. */
export const allDidIt = ({ answers }: ClusterAnswer): boolean =>
  answers.every(({ answer }) => answer === 'done' || answer === 'reloaded' || answer === 'away');

/** The nodes that could not write it to their disk. */
export const unrecordedOn = ({ answers }: ClusterAnswer): string[] =>
  answers.flatMap((answer) => ('recorded' in answer && !answer.recorded ? [answer.node] : []));

export const formatAnswers = (answer: ClusterAnswer, type: string): string =>
  type === 'reload'
    ? table(
        ['NODE', 'RESULT'],
        answer.answers.map((one) => [one.node, reloadText(one)]),
      )
    : table(
        ['NODE', 'ACTOR', 'BEFORE', 'AFTER', 'NOTE'],
        answer.answers.map((one) => rowOf(one, type)),
      );

const rowOf = (one: NodeAnswer, type: string): string[] => {
  switch (one.answer) {
    case 'done':
      return [one.node, one.actor, shown(one.before, type), shown(one.after, type), doneNote(one, type)];
    case 'stale': {
      const now = shown(one.after, type);
      return [one.node, one.actor, now, now, `not done: ${one.newer} is newer`];
    }
    default:
      return [one.node, '-', '-', '-', textOf(one)];
  }
};

/** A router's phase is what it is to others. */
const shown = (state: string, type: string): string =>
  type.startsWith('router.') ? state.split('.')[0]!.toUpperCase() : state;

const doneNote = ({ after, only }: Extract<NodeAnswer, { answer: 'done' }>, type: string): string =>
  [
    type === 'server.drain' && after.includes('maintenance')
      ? 'maintenance stands over drain; `server ready` ends it'
      : '',
    only === 'here' ? 'only here: the other nodes are not told' : '',
    only === 'untilNatsIsBack' ? 'only here, until the cluster is told when NATS is back' : '',
  ]
    .filter((text) => text !== '')
    .join('; ');

const textOf = (one: NodeAnswer): string => {
  if (one.answer === 'refused') return `refused: ${one.message.replaceAll('\n', '; ')}`;
  return 'message' in one ? `${one.answer}: ${one.message}` : one.answer;
};

const reloadText = (one: NodeAnswer): string => {
  if (one.answer !== 'reloaded') return textOf(one);
  const changes = [
    ...one.added.map((id) => `+ ${id}`),
    ...one.removed.map((id) => `- ${id}`),
    ...one.replaced.map((id) => `± ${id}`),
    ...one.changed.map((id) => `~ ${id}`),
    ...one.needRestart.map((key) => `! ${key} takes effect at the next start`),
  ];
  return changes.length === 0 ? 'reloaded; no actor changed' : `reloaded: ${changes.join(', ')}`;
};
