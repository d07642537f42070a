/** What live traffic did to a server, in sentences: errors that count against its health, and ejections. */
import type { EjectionBegan, TrafficFailed } from '../../machines/backendServer.ts';
import type { FailureKind, Suspicion, TrafficObserved } from '../../machines/trafficObserver.ts';
import type { Step } from '../journal/record.ts';
import { formatClock, formatSpan } from '../time.ts';
import { genericSentence } from './explanation.ts';

const KINDS: Record<FailureKind, string> = {
  connect: 'it could not be connected to',
  timeout: 'it did not answer in time',
  reset: 'its answer was cut off',
  invalid: 'its answer was invalid',
  status: 'it answered',
};

/** `it answered 503`, `it could not be connected to (ECONNREFUSED)`. */
const errorText = (kind: FailureKind | null, detail: string): string => {
  if (kind === null) return 'not told';
  if (kind === 'status') return `${KINDS.status} ${detail}`;
  return detail === '' ? KINDS[kind] : `${KINDS[kind]} (${detail})`;
};

export const suspicionText = (why: Suspicion): string =>
  why.code === 'consecutiveErrors'
    ? `${inARow(why.errors)}, the last one: ${errorText(why.kind, why.detail)}`
    : `${why.errors} of ${why.of} exchanges failed (${Math.round((1000 * why.errors) / why.of) / 10} %)`;

const inARow = (errors: number): string =>
  errors === 1 ? 'one exchange failed' : `${errors} exchanges in a row failed`;

export const trafficText = ({ errors, kind, detail }: TrafficFailed): string =>
  `live traffic: ${inARow(errors)}, the last one: ${errorText(kind, detail)}`;

const capText = ({ allowed, of }: { allowed: number; of: number }): string =>
  `${allowed} of ${of} servers may be ejected at a time`;

/** `It was ejected because 5 exchanges in a row failed, …; 1 of 3 servers may be ejected at a time; it returns at …` */
export const ejectionSentence = (step: Step): string => {
  const began = step.event as unknown as EjectionBegan;
  const { durationMs, ejections, why } = began;
  const again = ejections > 1 ? ` (ejection ${ejections}, each lasting longer)` : '';
  const lasts = `for ${formatSpan(durationMs * 1000)}${again}`;
  return `It was ejected ${lasts}, because ${suspicionText(why)}; ${capText(began)}; it returns at ${formatClock(returnsUs(step))}.`;
};

export const returnsUs = (step: Step): number =>
  step.wallUs + (step.event as unknown as EjectionBegan).durationMs * 1000;

type Refused = { because: 'cap' | 'last' | 'unusable'; why: Suspicion; ejected: number; allowed: number; of: number };

const refusalSentence = (event: Step['event']): string => {
  const refused = event as unknown as Refused;
  const reasons: Record<Refused['because'], string> = {
    cap: `${capText(refused)}, and ${refused.ejected} ${refused.ejected === 1 ? 'is' : 'are'}`,
    last: 'it is the last that works',
    unusable: 'it takes no new traffic anyway',
  };
  return `It was not ejected though ${suspicionText(refused.why)}: ${reasons[refused.because]}.`;
};

/** What changed in the observer of a server; refusals are news too. */
export const isObserverNews = ({ event, state }: Step, before: string | null): boolean =>
  before !== state || event.type === 'ejection.refused';

export const observerSentence = (step: Step, before: string | null): string => {
  const { event } = step;
  switch (event.type) {
    case 'actor.started':
      return 'The node started with it: nothing is held against its server.';
    case 'ejection.granted': {
      const tell = step.effects.find(({ type }) => type === 'tell');
      return tell
        ? ejectionSentence({ ...step, event: (tell.params as { event: Step['event'] }).event })
        : genericSentence(step, before);
    }
    case 'ejection.refused':
      return refusalSentence(event);
    case 'traffic.observed': {
      const { passed, failed, kind, detail } = event as unknown as TrafficObserved;
      return `${failed} of ${passed + failed} exchanges failed, the last one: ${errorText(kind, detail)}.`;
    }
    case 'observer.forget':
      return 'Its server went to maintenance: what was held against it is forgotten.';
    default:
      if (event.type.startsWith('xstate.after.ejection'))
        return 'Its time was over: it takes traffic again, and what it did counts for its next ejection.';
      if (event.type.startsWith('xstate.after.forgiveness'))
        return step.state === 'admitted'
          ? 'It has gone well: nothing is held against it any more.'
          : 'It has gone well for a time: one ejection less counts.';
      return genericSentence(step, before);
  }
};
