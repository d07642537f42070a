/** Why a router is in its state, in words for people: `status`, `explain`, notify scripts and the pipe say the same. */
import type { Conflict, Reason, RouterContext } from '../../machines/vrrpRouter.ts';
import { effectivePriority, OWNER_PRIORITY, priorityParts } from '../../machines/vrrpRouter.ts';

/** The states of RFC 9568 and keepalived's FAULT, without what is within them. */
export type RouterPhase = 'initialize' | 'backup' | 'master' | 'fault';

/** Of a recorded state: `backup.listening` is `backup`. */
export const phaseOf = (state: string): RouterPhase => state.split('.')[0] as RouterPhase;

/** `pool web`, `script check_web`, of the actor `tracker/pool/web`. */
export const trackerName = (tracker: string): string => {
  const [, kind = '', ...subject] = tracker.split('/');
  return `${kind} ${subject.join('/').replace(/#[0-9a-f]{6}$/, '')}`.trim();
};

/** What keeps a router from taking part, by the key in its `faults`. */
export const faultName = (key: string): string => {
  if (key.startsWith('tracker/')) return trackerName(key);
  if (key.startsWith('address/')) return `address ${key.split('/').slice(2).join('/')}`;
  return { interface: 'interface', bus: 'NATS', group: 'sync group', startDelay: 'start delay' }[key] ?? key;
};

/** What keeps a router from taking part, of all that is known. */
export const faultsText = (faults: RouterContext['faults']): string =>
  Object.entries(faults)
    .flatMap(([key, message]) => (message === null ? [] : [faultText(key, message)]))
    .join('; ');

const faultText = (key: string, message: string): string => {
  if (message === '') return `${faultName(key)} is down`;
  if (key === 'bus') return message.startsWith('NATS') ? message : `NATS is away: ${message}`;
  // Scripts, processes and files say what was seen, but not of whom.
  if (/^tracker\/(script|process|file)\//.test(key)) return `${faultName(key)}: ${message}`;
  return message.replace(/^router\//, '');
};

const FIELDS: Record<string, string> = {
  version: 'VRRP version',
  transport: 'transport',
  authentication: 'type of authentication',
  'authentication.secret': 'authentication password',
  'authentication.keys': 'authentication key',
  advertise: 'advertisement interval',
  addresses: 'list of addresses',
  clock: 'clock',
  minTtl: 'TTL',
  vrid: 'VRID',
};

/** A live peer whose adverts are discarded: both will be masters. Secrets are not in it. */
export const conflictText = (peer: string, { field, own, peer: theirs }: Omit<Conflict, 'kind'>): string =>
  field === 'peers'
    ? `${peer} advertises, but is not among its peers (${own}): two masters as long as this lasts`
    : field === 'source'
      ? `node ${peer} advertises from this node's own address ${own}: two masters as long as this lasts; each needs a source of its own`
      : `${peer} advertises with another ${FIELDS[field] ?? field} (own ${own}, theirs ${theirs}): two masters as long as this lasts`;

/** A peer whose adverts are accepted, but say something else than our configuration. */
export const differenceText = (peer: string, { field, own, peer: theirs }: Omit<Conflict, 'kind'>): string =>
  `${peer} has another ${FIELDS[field] ?? field} (own ${own}, theirs ${theirs}); its adverts are accepted`;

const peerText = ({ peer, peerPriority }: Reason): string =>
  peer === undefined ? 'another node' : `${peer}${peerPriority === undefined ? '' : ` (priority ${peerPriority})`}`;

const ms = (value: number): string => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

const lateness = ({ lateMs }: Reason): string =>
  lateMs === undefined || lateMs < 1 ? '' : `; the control loop was ${ms(lateMs)} late`;

const silence = ({ silentMs, masterDownMs }: Reason): string =>
  silentMs == null
    ? `no advert was heard for ${ms(masterDownMs ?? 0)}`
    : `the last advert came ${ms(silentMs)} before, ${ms(masterDownMs ?? 0)} are waited`;

/** One sentence without its subject: `became master because …` leaves the first part to the caller. */
export const reasonText = (reason: Reason): string => {
  switch (reason.code) {
    case 'startup':
      return 'the node started';
    case 'owner':
      return 'it owns the addresses (priority 255)';
    case 'masterDownExpired':
      return reason.peer === undefined
        ? `there was no master: ${silence(reason)}${lateness(reason)}`
        : `the master ${peerText(reason)} fell silent: ${silence(reason)}${lateness(reason)}`;
    case 'priorityZero':
      return `the master ${peerText(reason)} said that it leaves (priority 0)${lateness(reason)}`;
    case 'preemption':
      return `its priority ${reason.priority} is above that of the master ${peerText(reason)}${lateness(reason)}`;
    case 'higherPriority':
      return `${peerText(reason)} is above its own priority ${reason.priority}`;
    case 'tieLost':
      return `${peerText(reason)} has the same priority and the greater address`;
    case 'overslept':
      return `it had sent no advert for ${ms(reason.silentMs ?? 0)}: its peers have taken over meanwhile`;
    case 'fault':
      return reason.detail ?? 'of a fault';
    case 'faultCleared':
      return 'what had kept it from taking part is over';
    case 'operator':
      return `an operator ${reason.detail === 'demoted' ? 'demoted' : 'promoted'} it`;
    case 'group':
      return `its sync group moves together, and ${(reason.detail ?? 'another member').replace('router/', '')} went first`;
    case 'shutdown':
      return 'the node leaves';
  }
};

const signed = (change: number): string => `${change < 0 ? '−' : '+'} ${Math.abs(change)}`;

/**
 * `150 − 60 (pool web has no usable server) = 90`. `sinceOf` may add since when a tracker says so: `, since 03:12:07.480`.
 */
export const priorityText = (
  context: Pick<RouterContext, 'settings' | 'tracked' | 'intent'>,
  sinceOf: (tracker: string) => string = () => '',
): string => {
  const { settings, intent } = context;
  const effective = effectivePriority(context);
  if (settings.priority === OWNER_PRIORITY) return '255 (owner)';
  if (intent !== 'none') return `${effective} (${intent} by an operator; configured ${settings.priority})`;
  const parts = priorityParts(context);
  if (parts.length === 0) return String(effective);
  const sum = parts.reduce((total, { change }) => total + change, settings.priority);
  const terms = parts.map(({ change, message, tracker }) => {
    const why = message === '' ? trackerName(tracker) : message;
    return ` ${signed(change)} (${why}${sinceOf(tracker)})`;
  });
  const bound = sum < effective ? ' (the lowest)' : sum > effective ? ' (the highest)' : '';
  return `${settings.priority}${terms.join('')} = ${effective}${bound}`;
};
