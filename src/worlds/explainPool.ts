/** Why a pool serves, runs on its backups or is exhausted. */
import type { Step } from '../journal/record.ts';

export const publishText = (step: Step): string | null => {
  const publish = step.effects.find(({ type }) => type === 'publish');
  if (!publish) return null;
  const { pool, mode, weights } = publish.params as { pool: string; mode: string; weights: Record<string, number> };
  const out = Object.keys(weights).filter((name) => weights[name] === 0);
  const into = Object.keys(weights).filter((name) => weights[name]! > 0);
  const parts = [
    ...(out.length > 0 ? [`${out.join(', ')} ${out.length === 1 ? 'takes' : 'take'} no new traffic`] : []),
    ...(into.length > 0 ? [`${into.join(', ')} ${into.length === 1 ? 'takes' : 'take'} traffic`] : []),
  ];
  const modes: Record<string, string> = {
    serving: '',
    onBackups: ' It runs on its backups.',
    exhausted: ' No server is left: clients get 503.',
  };
  return `Pool ${pool}: ${parts.join('; ') || 'nothing changes'}.${modes[mode] ?? ''}`;
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
  const cause = what[event.type] ?? event.type;
  const publish = publishText(step);
  if (before === null) return `The node started with it, ${step.state}.`;
  const change = before === step.state ? '' : `: ${before} → ${step.state}`;
  return `${cause}${change}.${publish === null ? '' : ` ${publish}`}`;
};
