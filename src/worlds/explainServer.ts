/** Why a server is up, down or drained: the checks and the operators' words that led to it. */
import { failuresAfterTraffic } from '../../machines/riseAndFall.ts';
import type { TrafficFailed } from '../../machines/backendServer.ts';
import { decodedSteps } from '../journal/reader.ts';
import type { JournalReader } from '../journal/reader.ts';
import type { Step } from '../journal/record.ts';
import { formatClock, formatDateTime, formatSpan } from '../time.ts';
import { ejectionSentence, returnsUs, trafficText } from './explainOutliers.ts';
import { publishText } from './explainPool.ts';
import { checkText, verdictSentence } from './explainShared.ts';
import { CONSEQUENCE_WINDOW, genericSentence, operator } from './explanation.ts';
import type { Explanation, Seen } from './explanation.ts';

type ServerState = { health: string; admin: string; warmth: string };

const partsOf = (state: string): ServerState => {
  const [health = '', admin = '', warmth = ''] = state.split(',');
  return { health, admin, warmth };
};

const isSettled = (health: string): boolean => health === 'up' || health === 'down' || health === 'unchecked';

export const explainServer = (
  reader: JournalReader,
  actor: string,
  seen: Seen[],
  atUs: number,
  config: Record<string, unknown>,
): Explanation => {
  const [, pool = '', server = ''] = actor.split('/');
  const changes = seen.filter(({ step, before }) => before !== step.state || isCount(step, before) || isEjection(step));
  const now = partsOf((seen.at(-1) ?? changes.at(-1)!).step.state);
  const known = { ...thresholdsOf(seen), address: addressOf(config, pool, server), hurries: hurries(config, pool) };
  const chain = chainOf(changes, now);
  const sentences: Explanation['sentences'] = [];
  const settled = settledSentence(seen, chain[0]!);
  if (settled) sentences.push(settled);
  let count = 0;
  for (const { step, before } of chain) {
    const from = before === null ? null : partsOf(before);
    const to = partsOf(step.state);
    if (from === null || (isSettled(from.health) && from.health !== to.health)) count = 0;
    if (step.event.type.startsWith('check.')) count++;
    if (step.event.type === 'traffic.failed')
      count = failuresAfterTraffic((step.event as unknown as TrafficFailed).onError, count, known.fall);
    const at = { timeUs: step.wallUs, seq: step.seq };
    sentences.push({ ...at, text: serverSentence(step, from, to, count, known) });
    for (const text of consequences(reader, step)) sentences.push({ ...at, text });
  }
  const healthSince = lastChangeOf(changes, 'health');
  const adminSince = lastChangeOf(changes, 'admin');
  const since = now.admin === 'maintenance' ? adminSince : healthSince;
  return {
    actor,
    state: seen.at(-1)!.step.state,
    sinceUs: since,
    atUs,
    headline: headlineOf(
      `${pool}/${server} (${known.address})`,
      now,
      { healthSince, adminSince, atUs },
      ejectionOf(seen),
    ),
    sentences,
    remarks: sinceThen(seen, chain.at(-1)!, atUs),
  };
};

const headlineOf = (
  name: string,
  now: ServerState,
  { healthSince, adminSince, atUs }: { healthSince: number; adminSince: number; atUs: number },
  ejection: Step | null,
): string => {
  const since = (us: number) => `since ${formatDateTime(us)} (${formatSpan(atUs - us)})`;
  if (now.admin === 'maintenance') return `Server ${name} is in MAINTENANCE ${since(adminSince)}.`;
  const slow = now.warmth === 'warming' ? ', in slow start,' : '';
  const drained = now.admin === 'drain' ? ` It is drained ${since(adminSince)}.` : '';
  const ejected = ejection ? ` It is EJECTED ${since(ejection.wallUs)} until ${formatClock(returnsUs(ejection))}.` : '';
  return `Server ${name} is ${word(now.health)}${slow} ${since(healthSince)}.${drained}${ejected}`;
};

const isEjection = ({ event }: Step): boolean => event.type === 'ejection.began' || event.type === 'ejection.ended';

/** The step that ejected it, where it is ejected now. */
const ejectionOf = (seen: Seen[]): Step | null => {
  const last = seen.findLast(({ step }) => isEjection(step) || step.event.type === 'actor.started')?.step;
  return last?.event.type === 'ejection.began' ? last : null;
};

/** When a region entered its present state, µs since 1970. */
const lastChangeOf = (changes: Seen[], region: keyof ServerState): number =>
  changes.findLast(({ step, before }) => before === null || partsOf(before)[region] !== partsOf(step.state)[region])
    ?.step.wallUs ?? 0;

/** Where it stood before the chain began, and for how many checks. */
const settledSentence = (seen: Seen[], start: Seen): Explanation['sentences'][number] | null => {
  if (start.before === null) return null;
  const { health } = partsOf(start.before);
  const index = seen.indexOf(start);
  const entered = seen
    .slice(0, index)
    .findLast(
      ({ step, before }) =>
        partsOf(step.state).health === health && (before === null || partsOf(before).health !== health),
    );
  if (!entered || (health !== 'up' && health !== 'down')) return null;
  const outcome = health === 'up' ? 'passed' : 'failed';
  const checks = seen
    .slice(seen.indexOf(entered) + 1, index)
    .filter(({ step }) => step.event.type === `check.${outcome}`).length;
  const stood = health === 'up' ? 'It came UP.' : 'It was marked DOWN.';
  const text =
    checks === 0 ? stood : `${stood} Then ${checks === 1 ? 'one check' : `${checks} checks in a row`} ${outcome}.`;
  return { timeUs: entered.step.wallUs, seq: entered.step.seq, text };
};

/** Whether a server in doubt is checked more often than others. */
const hurries = (config: Record<string, unknown>, pool: string): boolean => {
  type Check = { interval: number; fastInterval?: number };
  const backends = config['backends'] as Record<string, { check: Check | false }> | undefined;
  const check = backends?.[pool]?.check;
  return check ? (check.fastInterval ?? check.interval) < check.interval : false;
};

/** Going down 1 of 3, 2 of 3: the state keeps its name but the count moves. */
const isCount = (step: Step, before: string | null): boolean => {
  if (before === null) return true;
  const { health } = partsOf(step.state);
  return (
    (health === 'goingDown' && (step.event.type === 'check.failed' || step.event.type === 'traffic.failed')) ||
    (health === 'goingUp' && step.event.type === 'check.passed')
  );
};

/**
 * Back from the present to where it left the last settled state of health, or to the start or the operator's word that
 * made it unchecked. What an operator wants now is part of it, however long ago it was said.
 */
const chainOf = (changes: Seen[], now: ServerState): Seen[] => {
  let begin = changes.length - 1;
  // Slow start and operators' steps don't explain health: go back to the last change of health first.
  while (begin > 0 && !changesHealth(changes[begin]!)) begin--;
  while (begin > 0) {
    const { before } = changes[begin]!;
    if (before === null || partsOf(before).health === 'up' || partsOf(before).health === 'down') break;
    begin--;
  }
  const chain = withLastEjections(changes, begin);
  if (now.admin === 'ready' || chain.some(changesAdmin)) return chain;
  const said = changes.findLast(changesAdmin);
  return said ? [said, ...chain] : chain;
};

/** A server may have been ejected often since its health last changed: the last two say enough. */
const SHOWN_EJECTION_STEPS = 4;

const withLastEjections = (changes: Seen[], begin: number): Seen[] => {
  const isEjected = ejectionOf(changes) !== null;
  const shown = new Set(changes.filter(({ step }) => isEjection(step)).slice(-SHOWN_EJECTION_STEPS));
  // The one that it is in belongs to it, however long its health has changed since.
  const current = isEjected ? changes.findLast(({ step }) => step.event.type === 'ejection.began') : undefined;
  const chain = changes.slice(begin).filter((one) => !isEjection(one.step) || shown.has(one));
  return current && !chain.includes(current) ? [current, ...chain] : chain;
};

const changesAdmin = ({ step, before }: Seen): boolean =>
  before !== null && partsOf(before).admin !== partsOf(step.state).admin;

const changesHealth = ({ step, before }: Seen): boolean =>
  before === null || partsOf(before).health !== partsOf(step.state).health || isCount(step, before);

const thresholdsOf = (seen: Seen[]): { fall: number; rise: number } => {
  for (const { step } of seen.toReversed()) {
    const input = step.event['input'] as { settings?: { fall: number; rise: number } } | undefined;
    const settings = (step.event['settings'] as { fall: number; rise: number } | undefined) ?? input?.settings;
    if (settings) return { fall: settings.fall, rise: settings.rise };
  }
  return { fall: 0, rise: 0 };
};

const addressOf = (config: Record<string, unknown>, pool: string, server: string): string => {
  type Endpoint = { host: string; port: number };
  const backends = config['backends'] as Record<string, { servers: { name: string; address: Endpoint }[] }> | undefined;
  const address = backends?.[pool]?.servers.find(({ name }) => name === server)?.address;
  return address ? `${address.host}:${address.port}` : 'address not known';
};

const WORDS: Record<string, string> = {
  up: 'UP',
  down: 'DOWN',
  goingDown: 'UP, but going down',
  goingUp: 'DOWN, but going up',
  unchecked: 'not checked yet',
};
const word = (health: string): string => WORDS[health] ?? health;

const serverSentence = (
  step: Step,
  from: ServerState | null,
  to: ServerState,
  count: number,
  known: { fall: number; rise: number; hurries: boolean },
): string => {
  const { event } = step;
  switch (event.type) {
    case 'actor.started': {
      const hint = (event['input'] as { hint?: string } | undefined)?.hint;
      return `The node started with it${hint === undefined ? '' : `; it had been ${hint.toUpperCase()} when the node last ran`}. Its first check runs at once.`;
    }
    case 'check.failed': {
      const verdict = verdictSentence(step, false);
      if (verdict !== null) return verdict;
      const text = `Check failed: ${checkText(step)}.`;
      if (to.health === 'down') {
        if (from?.health === 'unchecked') return `${text} It was the first check, which decides alone: marked DOWN.`;
        if (from?.health === 'goingUp') return `${text} It had begun to come back; DOWN again.`;
        return `${text} Failure ${count} of ${known.fall}: marked DOWN.`;
      }
      return `${text} Failure ${count} of the ${known.fall} in a row that mark it down${known.hurries && count === 1 ? '; it is checked more often from now' : ''}.`;
    }
    case 'check.passed': {
      const verdict = verdictSentence(step, to.warmth === 'warming');
      if (verdict !== null) return verdict;
      const text = `Check passed: ${checkText(step)}.`;
      if (to.health === 'up') {
        if (from?.health === 'unchecked') return `${text} It was the first check, which decides alone: UP.`;
        if (from?.health === 'goingDown') return `${text} The failures before it are forgotten: UP.`;
        return `${text} Success ${count} of ${known.rise}: back UP${to.warmth === 'warming' ? ', with its weight growing slowly' : ''}.`;
      }
      return `${text} Success ${count} of the ${known.rise} in a row that bring it back.`;
    }
    case 'traffic.failed':
      return `Errors of ${trafficText(event as unknown as TrafficFailed)}. ${trafficConsequence(event as unknown as TrafficFailed, to, count, known.fall)}`;
    case 'ejection.began':
      return ejectionSentence(step);
    case 'ejection.ended':
      return `Its ejection ended${to.warmth === 'warming' ? ', with its weight growing slowly' : ''}.`;
    case 'operator.drain':
      return `${operator(event)} to drain: it takes no new traffic, what it has goes on.`;
    case 'operator.maintenance':
      return `${operator(event)} to maintenance: no traffic and no checks.`;
    case 'operator.ready':
      return from?.admin === 'maintenance'
        ? `${operator(event)} to ready: checks begin again.`
        : `${operator(event)} to ready.`;
    case 'operator.weight':
      return `${operator(event)} to weight ${String(event['weight'])}.`;
    case 'settings.changed':
      return 'A reload changed its settings.';
    default:
      if (event.type.startsWith('xstate.after.slowStartStep')) {
        return to.warmth === 'warm'
          ? 'Slow start ended: it carries its full weight.'
          : 'Slow start: its weight grew a step.';
      }
      return genericSentence(step, null);
  }
};

const trafficConsequence = ({ onError }: TrafficFailed, to: ServerState, count: number, fall: number): string => {
  if (to.health === 'down')
    return onError === 'markDown' ? 'That marks it DOWN.' : `Failure ${count} of ${fall}: marked DOWN.`;
  if (onError === 'fastInterval') return 'It is checked soon.';
  if (onError === 'suddenDeath') return 'The next failed check marks it down.';
  return `They count as a failed check: failure ${count} of the ${fall} in a row that mark it down.`;
};

/** What the pool did because of this. */
const consequences = (reader: JournalReader, step: Step): string[] => {
  // The pool decided an ejection before the server heard of it, and its end is told to both by the observer.
  if (step.event.type === 'ejection.began') {
    const granted = step.cause === null ? null : reader.row(step.cause);
    const decided = granted?.cause == null ? null : reader.row(granted.cause);
    return (decided ? decodedSteps(decided) : []).flatMap(textOfPublication);
  }
  return publicationsAfter(reader, step.event.type === 'ejection.ended' ? step.cause : step.seq);
};

const textOfPublication = (step: Step): string[] => {
  const text = publishText(step);
  return text === null ? [] : [`→ ${text}`];
};

const publicationsAfter = (reader: JournalReader, cause: number | null): string[] => {
  if (cause === null) return [];
  const texts: string[] = [];
  for (const row of reader.rows({
    fromSeq: cause + 1,
    throughSeq: cause + CONSEQUENCE_WINDOW,
    actor: 'pool/*',
  })) {
    if (row.cause !== cause) continue;
    for (const step of decodedSteps(row)) texts.push(...textOfPublication(step));
  }
  return texts;
};

const sinceThen = (seen: Seen[], lastChange: Seen, atUs: number): string[] => {
  const later = seen.slice(seen.indexOf(lastChange) + 1).filter(({ step }) => step.event.type.startsWith('check.'));
  const newest = later.at(-1);
  if (!newest) return [];
  const verb = newest.step.event.type === 'check.passed' ? 'passed' : 'failed';
  const times = later.length === 1 ? 'check' : 'checks';
  return [
    `Since then ${later.length} more ${times} ${verb}, the last ${formatSpan(atUs - newest.step.wallUs)} before ${formatClock(atUs)}: ${checkText(newest.step)}.`,
  ];
};
