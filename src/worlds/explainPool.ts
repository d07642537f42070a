/** Why a pool serves, runs on its backups or is exhausted. */
import type { Publication } from '../../machines/pool.ts';
import type { Suspicion } from '../../machines/trafficObserver.ts';
import type { Step } from '../journal/record.ts';
import { suspicionText } from './explainOutliers.ts';

export const publishText = (step: Step): string | null => {
  const publish = step.effects.find(({ type }) => type === 'publish');
  if (!publish) return null;
  const { pool, mode, weights, draining } = publish.params as Publication;
  const out = Object.keys(weights).filter((name) => weights[name] === 0);
  const into = Object.keys(weights).filter((name) => weights[name]! > 0);
  const parts = [
    ...(out.length > 0 ? [`${out.join(', ')} ${out.length === 1 ? 'takes' : 'take'} no new traffic`] : []),
    ...(into.length > 0 ? [`${into.join(', ')} ${into.length === 1 ? 'takes' : 'take'} traffic`] : []),
    ...(draining ? [boundText(draining)] : []),
  ];
  const modes: Record<Publication['mode'], string> = {
    serving: '',
    onBackups: ' It runs on its backups.',
    exhausted: ' No server is left: clients get 503.',
    panic: ' So few are well that health is not believed: all take traffic.',
  };
  return `Pool ${pool}: ${parts.join('; ') || 'nothing changes'}.${modes[mode]}`;
};

const boundText = (draining: readonly string[]): string =>
  draining.length === 0
    ? 'none serves only clients that are bound to it'
    : `${draining.join(', ')} ${draining.length === 1 ? 'serves' : 'serve'} only clients that are bound to ${draining.length === 1 ? 'it' : 'them'}`;

const ejectionText = (step: Step, server: string): string => {
  const isGranted = step.effects.some(
    ({ type, params }) => type === 'tell' && (params as { event: { type: string } }).event.type === 'ejection.granted',
  );
  return `${server} was ${isGranted ? 'ejected' : 'not ejected'}: ${suspicionText(step.event['why'] as Suspicion)}`;
};

export const poolSentence = (step: Step, before: string | null): string => {
  const { event } = step;
  const server = typeof event['server'] === 'string' ? event['server'] : '';
  const what: Record<string, string> = {
    'server.joined': `${server} joined`,
    'server.left': `${server} was removed`,
    'server.health': `${server} became ${String(event['health'])}`,
    'server.admin': `${server} was set to ${String(event['admin'])}`,
    'server.weight': `${server} got weight ${String(event['weight'])}`,
    'server.share': `${server} carries ${String(event['share'])} % of its weight`,
  };
  if (event.type === 'outlier.suspected') what[event.type] = ejectionText(step, server);
  if (event.type === 'outlier.returned') what[event.type] = `${server} is not ejected any more`;
  const cause = what[event.type] ?? event.type;
  const publish = publishText(step);
  if (before === null) return `The node started with it, ${step.state}.`;
  const change = before === step.state ? '' : `: ${before} → ${step.state}`;
  return `${cause}${change}.${publish === null ? '' : ` ${publish}`}`;
};
