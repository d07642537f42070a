/** What HAProxy says of a server's health and of its check. */
import type { BackendServerContext } from '../../machines/backendServer.ts';
import type { LastProbe } from '../node.ts';
import { takesUnchecked } from './statsTallies.ts';

const CHECK_DESCRIPTIONS: Record<string, string> = {
  INI: 'Initializing',
  L4OK: 'Layer4 check passed',
  L4TOUT: 'Layer4 timeout',
  L4CON: 'Layer4 connection problem',
  L6OK: 'Layer6 check passed',
  L6TOUT: 'Layer6 timeout',
  L6RSP: 'Layer6 invalid response',
  L7OK: 'Layer7 check passed',
  L7TOUT: 'Layer7 timeout',
  L7RSP: 'Layer7 invalid response',
  L7STS: 'Layer7 wrong status',
  PROCOK: 'External check passed',
  PROCERR: 'External check error',
  PROCTOUT: 'External check timeout',
};

/** HAProxy's words. What is left of rise and fall stands behind them; NOLB is one that traffic has been taken from. */
export const statusText = (
  context: BackendServerContext,
  health: string,
  admin: string,
  isEjected: boolean,
): string => {
  const { rise, fall, checked } = context.settings;
  if (admin === 'maintenance') return 'MAINT';
  if (health === 'down') return 'DOWN';
  if (health === 'goingUp') return `DOWN ${context.count}/${rise}`;
  if (health === 'unchecked' && !takesUnchecked(context)) return 'DOWN';
  const word = admin === 'drain' ? 'DRAIN' : isEjected ? 'NOLB' : 'UP';
  // One that was never checked falls with the first failure.
  const left = health === 'goingDown' ? fall - context.count : health === 'unchecked' && checked ? 1 : fall;
  if (left < fall) return `${word} ${left}/${fall}`;
  return !checked && word === 'UP' ? 'no check' : word;
};

/** HAProxy's health is one number: 0 to rise - 1 is down, rise to rise + fall - 1 is up. */
const healthNumber = ({ count, settings: { rise, fall } }: BackendServerContext, health: string): number => {
  switch (health) {
    case 'down':
      return 0;
    case 'goingUp':
      return count;
    case 'unchecked':
      return rise;
    case 'goingDown':
      return rise + fall - 1 - count;
    default:
      return rise + fall - 1;
  }
};

/** `probe` is the last one; undefined before the first. */
export const checkOf = (context: BackendServerContext, health: string, probe: LastProbe | undefined) => {
  const code = probe?.code ?? 'INI';
  const status = code.startsWith('L7') ? /\b[1-5]\d\d\b/.exec(probe!.message)?.[0] : undefined;
  return {
    check_status: code,
    check_desc: CHECK_DESCRIPTIONS[code],
    check_code: status,
    check_duration: probe?.durationMs,
    last_chk: probe?.message,
    check_rise: context.settings.rise,
    check_fall: context.settings.fall,
    check_health: healthNumber(context, health),
  };
};
