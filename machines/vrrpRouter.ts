/**
 * One VRRP router on this node: RFC 9568 section 6.4 (version 2: RFC 3768 section 6.4), with keepalived's FAULT,
 * preempt delay and sync groups. It owns no socket and no clock: adverts and the state of the interface come as events,
 * sending is an effect.
 *
 * `backup.listening`, `backup.deciding` and `master` are tagged `routine`: adverts that say nothing new are a steady
 * observation, which the journal writes as one run.
 */
import { assign, setup, stateIn } from 'xstate';
import type { Tell } from './tell.ts';

/** The address owner: always master, never changed by trackers or operators (RFC 9568 section 5.2.4). */
export const OWNER_PRIORITY = 255;
/** Bounds of what trackers and operators can make of a priority that is not the owner's. */
const LOWEST_PRIORITY = 1;
const HIGHEST_PRIORITY = 254;
/** A peer whose adverts were discarded for its configuration is forgotten after this many of our intervals in silence. */
const CONFLICT_INTERVALS = 10;
/** … but not before this time: a state that shows in `status` must stay long enough to be seen. */
const CONFLICT_MIN_MS = 5_000;
/**
 * Of the last advert of a master that gives way to a higher one. It isn't sent again, and if it got lost on a wire that
 * loses packets, neighbours would go on sending here for as long as they remember.
 */
const LAST_COPIES = 3;
/**
 * Adverts over NATS only: after a loss, others may need this long to be joined again, the master among them. Nobody
 * counts its silence before.
 */
const BUS_SETTLE_MS = 3_000;
/** Peers whose differing configuration is remembered; more on one link are noise, and memory must stay bounded. */
const MAX_CONFLICTS = 8;

export type Track = {
  /** The tracker's actor. */
  tracker: string;
  /**
   * keepalived's weight: above 0 it is added while the tracker is up, below 0 while it is down; of a tracker with a value
   * (a file) it multiplies the value. 0: FAULT while it is down.
   */
  weight: number;
  /** keepalived's: the weight works the other way round, and one without weight is FAULT while it is up. */
  reverse: boolean;
};

export type RouterSettings = {
  version: 2 | 3;
  vrid: number;
  priority: number;
  advertMs: number;
  preempt: boolean;
  /** How long a lower-priority master is left alone before it is preempted. */
  preemptDelayMs: number;
  /** Wait after the start before it takes part, so that a booting link can settle. */
  startDelayMs: number;
  /** Actors of its virtual addresses. */
  addresses: readonly string[];
  track: readonly Track[];
  /** Actor of the sync group that it belongs to. */
  group: string | null;
  /**
   * Adverts over NATS only, and absent otherwise: what a master does that is cut off from NATS. It may keep its addresses,
   * as it can't know whether anybody else could have them; a router that is not master is in FAULT then, either way.
   */
  onBusLoss?: 'keep' | 'release';
};

/** keepalived's words for the state, in notify scripts and pipes. */
export type RouterState = 'MASTER' | 'BACKUP' | 'FAULT' | 'STOP';

export type RouterInput = { name: string; settings: RouterSettings };

/** RFC 6527 and RFC 8347 name some of these; the others are keepalived's additions and our own. */
export type ReasonCode =
  | 'startup'
  | 'owner'
  | 'masterDownExpired'
  | 'priorityZero'
  | 'preemption'
  | 'higherPriority'
  | 'tieLost'
  | 'overslept'
  | 'fault'
  | 'faultCleared'
  | 'operator'
  | 'group'
  | 'shutdown';

/** Why it is in its state, with the evidence that there was. Times are of the moment of the change. */
export type Reason = {
  code: ReasonCode;
  /** Own effective priority then. */
  priority: number;
  /** The peer that it was about: its address and priority. */
  peer?: string;
  peerPriority?: number;
  /** Time since the last accepted advert, how long was to be waited, and how late the control loop was. */
  silentMs?: number | null;
  masterDownMs?: number;
  lateMs?: number;
  /** In words, where there is more to say. */
  detail?: string;
};

export type Heard = { source: string; priority: number; advertMs: number };
export type Conflict = { kind: string; field: string; own: string; peer: string };

export type RouterContext = RouterInput & {
  /** Tracker → what it last told; one that has told nothing yet counts as up, as keepalived has it. */
  tracked: Readonly<Record<string, { up: boolean; value: number | null; message: string }>>;
  /**
   * What keeps it from taking part: `interface`, `bus`, trackers without weight, addresses, `group`, `startDelay`. In
   * words, or null while it is only not known yet: that keeps a router in `initialize`, and puts none into `fault`.
   */
  faults: Readonly<Record<string, string | null>>;
  intent: 'none' | 'demoted' | 'promoted';
  /** Own address on the interface, and as a text that sorts as addresses do. */
  address: string;
  addressKey: string;
  /** The master that it last accepted adverts from; null when it is one itself or knows none. */
  master: Heard | null;
  /** A master of lower priority that it leaves alone only until its timer runs out. */
  lower: Heard | null;
  /** The master said that it leaves. */
  masterLeft: boolean;
  /** The preempt delay has passed: lower-priority masters are not accepted any more. */
  delayPassed: boolean;
  preemptDelayRuns: boolean;
  /** The one skew time more that a late loop gets was given. */
  graceGiven: boolean;
  /** What it saw when its timer had run out, while it waits for its sync group. */
  looked: { lateMs: number; silentMs: number | null } | null;
  /** Its addresses are still held for a successor that has not been heard yet. */
  handingOver: boolean;
  /** Live peers whose adverts are discarded: configurations that make two masters. */
  conflicts: Readonly<Record<string, Conflict>>;
  /** What accepted adverts say otherwise than our configuration, by source. */
  differences: Readonly<Record<string, readonly Omit<Conflict, 'kind'>[]>>;
  reason: Reason;
};

export type RouterEvent =
  | { type: 'interface.up'; address: string; key: string }
  | { type: 'interface.down'; code: string; message: string }
  /** Adverts over NATS only: they pass, or don't. */
  | { type: 'bus.joined' }
  | { type: 'bus.lost'; code: string; message: string }
  /** It has been joined again for so long that a master, if there is one, is too. */
  | { type: 'bus.settled' }
  | {
      type: 'advert.received';
      priority: number;
      advertMs: number;
      source: string;
      key: string;
      differences: readonly Omit<Conflict, 'kind'>[];
    }
  | { type: 'advert.discarded'; kind: string; source: string; field: string | null; own: string; peer: string }
  | { type: 'advert.due' }
  /** Its own last advert was longer ago than peers wait: they have taken over. */
  | { type: 'advert.overslept'; silentMs: number }
  | { type: 'masterDown.expired' }
  | { type: 'looked'; lateMs: number; silentMs: number | null }
  | { type: 'preemptDelay.elapsed' }
  | { type: 'startDelay.elapsed' }
  | { type: 'conflict.silent'; source: string }
  | { type: 'tracker.changed'; tracker: string; up: boolean; value: number | null; message: string }
  | { type: 'address.failed'; address: string; code: string; message: string }
  | { type: 'address.cleared'; address: string }
  /** `router` went first; null when a reload took the last one out that was not willing. */
  | { type: 'group.master'; router: string | null }
  | { type: 'group.backup'; router: string }
  | { type: 'group.fault'; router: string }
  | { type: 'group.cleared' }
  | { type: 'operator.demote' }
  /** Restored: what the operator had wanted before the node started again; it is no word to act on at once. */
  | { type: 'operator.promote'; restored?: true }
  | { type: 'settings.changed'; settings: RouterSettings }
  | { type: 'router.stop' };

const defaultInput: RouterInput = {
  name: '',
  settings: {
    version: 3,
    vrid: 1,
    priority: 100,
    advertMs: 1000,
    preempt: true,
    preemptDelayMs: 0,
    startDelayMs: 0,
    addresses: [],
    track: [],
    group: null,
  },
};

/** What a router that has begun anew knows of masters, and of its own waiting for one. */
const NOTHING_HEARD = {
  master: null,
  lower: null,
  masterLeft: false,
  delayPassed: false,
  preemptDelayRuns: false,
  graceGiven: false,
  looked: null,
} satisfies Partial<RouterContext>;

export type PriorityPart = { tracker: string; change: number; message: string };

/** The configured priority and what each tracker makes of it. */
export const priorityParts = ({ settings, tracked }: Pick<RouterContext, 'settings' | 'tracked'>): PriorityPart[] =>
  settings.priority === OWNER_PRIORITY
    ? []
    : settings.track.flatMap(({ tracker, weight, reverse }) => {
        const told = tracked[tracker];
        if (weight === 0) return [];
        const { up = true, value = null, message = '' } = told ?? {};
        const times = value ?? (up === weight > 0 ? 1 : 0);
        const change = times * weight * (reverse ? -1 : 1);
        return change === 0 ? [] : [{ tracker, change, message }];
      });

/** What it advertises: RFC 9568's priority, within 1–254 for all but the owner. */
export const effectivePriority = (context: Pick<RouterContext, 'settings' | 'tracked' | 'intent'>): number => {
  const { settings, intent } = context;
  if (settings.priority === OWNER_PRIORITY) return OWNER_PRIORITY;
  if (intent === 'demoted') return LOWEST_PRIORITY;
  if (intent === 'promoted') return HIGHEST_PRIORITY;
  const sum = priorityParts(context).reduce((total, { change }) => total + change, settings.priority);
  return Math.min(HIGHEST_PRIORITY, Math.max(LOWEST_PRIORITY, sum));
};

/** RFC 9568 section 6.1; version 2 (RFC 3768 section 6.1) knows no other unit than a second here. */
export const skewMs = ({ version }: Pick<RouterSettings, 'version'>, priority: number, advertMs: number): number =>
  ((256 - priority) * (version === 2 ? 1000 : advertMs)) / 256;

export const masterDownMs = (settings: Pick<RouterSettings, 'version'>, priority: number, advertMs: number): number =>
  3 * advertMs + skewMs(settings, priority, advertMs);

/** Version 3 counts by the interval of the master that it follows, version 2 by its own. */
const intervalOf = ({ settings, master }: RouterContext): number =>
  settings.version === 3 && master ? master.advertMs : settings.advertMs;

const without = <T>(record: Readonly<Record<string, T>>, key: string): Record<string, T> => {
  const { [key]: _gone, ...rest } = record;
  return rest;
};

const isEmpty = (record: object): boolean => Object.keys(record).length === 0;

/** Trackers without a weight put the router into FAULT while they are down. */
const trackerFaults = ({ settings, tracked }: Pick<RouterContext, 'settings' | 'tracked'>): Record<string, string> =>
  Object.fromEntries(
    settings.track.flatMap(({ tracker, weight, reverse }) => {
      const told = tracked[tracker];
      return told && weight === 0 && told.up === reverse ? [[tracker, told.message]] : [];
    }),
  );

const faultsAfter = (context: RouterContext, event: RouterEvent): RouterContext['faults'] => {
  const { faults, settings } = context;
  switch (event.type) {
    case 'interface.up':
      return without(faults, 'interface');
    case 'interface.down':
      return { ...faults, interface: event.message };
    case 'bus.joined':
      // At the start; after a loss it waits until it has settled.
      return faults['bus'] === null ? without(faults, 'bus') : faults;
    case 'bus.lost':
      return { ...faults, bus: event.message };
    case 'bus.settled':
      return without(faults, 'bus');
    case 'startDelay.elapsed':
      return without(faults, 'startDelay');
    case 'address.failed':
      return { ...faults, [event.address]: event.message };
    case 'address.cleared':
      return without(faults, event.address);
    case 'group.fault':
      return { ...faults, group: `${event.router} of its sync group is in FAULT` };
    case 'group.cleared':
      return without(faults, 'group');
    case 'tracker.changed': {
      const { [event.tracker]: fault } = trackerFaults({ settings, tracked: { [event.tracker]: event } });
      return fault === undefined ? without(faults, event.tracker) : { ...faults, [event.tracker]: fault };
    }
    default:
      return faults;
  }
};

/** Whether a member's own faults, and not what its group says of others, keep it from taking part. */
const isHindered = (faults: RouterContext['faults']): boolean => Object.keys(faults).some((key) => key !== 'group');

const isFaulty = (faults: RouterContext['faults']): boolean => Object.values(faults).some((fault) => fault !== null);

/** The faults that a master gives way for. */
const mastersFaults = ({ faults, settings }: RouterContext): RouterContext['faults'] =>
  settings.onBusLoss === 'keep' ? without(faults, 'bus') : faults;

const faultsAtStart = ({ settings }: RouterInput): RouterContext['faults'] => ({
  interface: null,
  ...(settings.onBusLoss === undefined ? {} : { bus: null }),
  ...(settings.group === null ? {} : { group: null }),
  ...(settings.startDelayMs > 0 ? { startDelay: null } : {}),
});

const intentAfter = (intent: RouterContext['intent'], event: RouterEvent): RouterContext['intent'] => {
  if (event.type === 'operator.demote') return 'demoted';
  if (event.type !== 'operator.promote') return intent;
  return intent === 'demoted' ? 'none' : 'promoted';
};

/** What the master-down timer was set to: a whole master-down time, or the skew time alone. */
const waitMs = (context: RouterContext): number => {
  const wait = context.masterLeft || context.graceGiven ? skewMs : masterDownMs;
  return wait(context.settings, effectivePriority(context), intervalOf(context));
};

/** How much later the master-down timer runs out when the priority, or the interval, becomes another one. */
const waitDifference = (before: RouterContext, after: RouterContext): number => waitMs(after) - waitMs(before);

/** The only state in which the master-down timer runs. */
const isListening = stateIn('#vrrpRouter.backup.listening');
const isMaster = stateIn('#vrrpRouter.master');

/** What follows from other priorities and intervals for a running master-down timer. */
const timerMoves = (before: RouterContext, after: RouterContext) => {
  const byMs = waitDifference(before, after);
  return byMs === 0 ? [] : [{ type: 'moveTimer' as const, params: { id: 'masterDown', byMs } }];
};

/** What follows from other faults for the sync group. */
const groupNews = (before: RouterContext, after: RouterContext, faultsOf = ({ faults }: RouterContext) => faults) => {
  const { group } = after.settings;
  const faulty = isHindered(faultsOf(after));
  if (group === null || isHindered(faultsOf(before)) === faulty) return [];
  const event = { type: 'member.faults', router: idOf(after), faulty } as Tell['event'];
  return [{ type: 'tell' as const, params: { to: group, event } }];
};

const isAdvert = (event: RouterEvent): event is Extract<RouterEvent, { type: 'advert.received' }> =>
  event.type === 'advert.received';

const isOwner = ({ settings }: Pick<RouterContext, 'settings'>): boolean => settings.priority === OWNER_PRIORITY;

/** The owner always preempts, whatever is configured (RFC 9568 section 6.1). */
const preempts = (context: RouterContext): boolean => context.settings.preempt || isOwner(context);

const idOf = (context: RouterContext): string => `router/${context.name}`;

/** RFC 9568 section 6.4.3: greater priority, or equal and the sender's address greater, unsigned in network order. */
const isSuperior = (context: RouterContext, event: RouterEvent): boolean => {
  if (!isAdvert(event)) return false;
  const own = effectivePriority(context);
  return event.priority > own || (event.priority === own && event.key > context.addressKey);
};

const reasonOf = (context: RouterContext, event: RouterEvent, code: ReasonCode): Reason => {
  const { faults, lower, master } = context;
  const reason: Reason = { code, priority: effectivePriority(context) };
  const peer = isAdvert(event) ? event : code === 'preemption' ? lower : code === 'fault' ? null : master;
  if (peer) Object.assign(reason, { peer: peer.source, peerPriority: peer.priority });
  const looked = event.type === 'group.master' ? context.looked : event.type === 'looked' ? event : null;
  if (looked) {
    const waited = context.masterLeft
      ? skewMs(context.settings, reason.priority, intervalOf(context))
      : masterDownMs(context.settings, reason.priority, intervalOf(context));
    Object.assign(reason, { silentMs: looked.silentMs, masterDownMs: waited, lateMs: looked.lateMs });
  }
  if (event.type === 'advert.overslept') reason.silentMs = event.silentMs;
  if (code === 'fault')
    reason.detail = Object.values(faults)
      .filter((fault) => fault !== null)
      .join('; ');
  if (code === 'group' && 'router' in event && event.router !== null) reason.detail = event.router;
  if (code === 'operator') reason.detail = event.type === 'operator.demote' ? 'demoted' : 'promoted';
  return reason;
};

/** Which of the three ways to become master it was. */
const takeoverReason = (context: RouterContext): ReasonCode =>
  context.masterLeft ? 'priorityZero' : context.lower ? 'preemption' : 'masterDownExpired';

const base = setup({
  types: {
    context: {} as RouterContext,
    events: {} as RouterEvent,
    input: {} as RouterInput,
    tags: {} as 'routine',
  },
  actions: {
    /** Effect: deliver an event to another actor. */
    tell: (_, _params: Tell) => {},
    /** Effect: open the sockets; answered by `interface.up` or `interface.down`, and again when that changes. */
    openRouter: () => {},
    /**
     * Effect: send one advert to all peers; 0 says that it leaves. A periodic one comes an interval after the one before:
     * when that was longer ago than peers wait, it isn't sent, and the answer is `advert.overslept`.
     */
    sendAdvert: (_, _params: { priority: number; periodic?: true; copies?: number }) => {},
    /** Effect: take what has arrived on the sockets meanwhile, then answer `looked`. */
    look: () => {},
    /** Effect of the system: move a running timer's deadline. */
    moveTimer: (_, _params: { id: string; byMs: number }) => {},
    /** Effect: tell notify scripts and the pipe. */
    notify: (_, _params: { state: RouterState; priority: number; reason: Reason }) => {},
  },
  guards: {
    isReady: ({ context }) => isEmpty(context.faults),
    isFaulty: ({ context }) => isFaulty(context.faults),
    mustGiveWay: ({ context }) => isFaulty(mastersFaults(context)),
    busWasLost: ({ context }) => typeof context.faults['bus'] === 'string',
    isOwner: ({ context }) => isOwner(context),
    isGrouped: ({ context }) => context.settings.group !== null,
    isReadyOwner: ({ context }) => isEmpty(context.faults) && isOwner(context),
    isPriorityZero: ({ event }) => isAdvert(event) && event.priority === 0,
    isAcceptable: ({ context, event }) =>
      isAdvert(event) && (!preempts(context) || event.priority >= effectivePriority(context)),
    /** A lower one, in preempt mode, for as long as the preempt delay lasts. */
    isTolerated: ({ context, event }) =>
      isAdvert(event) &&
      !isOwner(context) &&
      context.settings.preemptDelayMs > 0 &&
      !context.delayPassed &&
      context.intent !== 'promoted',
    isHigher: ({ context, event }) => isAdvert(event) && event.priority > effectivePriority(context),
    isSuperior: ({ context, event }) => isSuperior(context, event),
    loopWasLate: ({ context, event }) =>
      event.type === 'looked' && !context.graceGiven && event.lateMs > intervalOf(context) / 2,
    /** An operator's word makes it the highest there is. */
    outranksMaster: ({ context, event }) => {
      const intent = intentAfter(context.intent, event);
      const priority = effectivePriority({ ...context, intent });
      const isNew = event.type === 'operator.promote' && event.restored !== true;
      return isNew && intent === 'promoted' && (context.master?.priority ?? 0) < priority;
    },
  },
  delays: {
    advert: ({ context }) => context.settings.advertMs,
    masterDown: ({ context }) => masterDownMs(context.settings, effectivePriority(context), intervalOf(context)),
    skew: ({ context }) => skewMs(context.settings, effectivePriority(context), intervalOf(context)),
    preemptDelay: ({ context }) => context.settings.preemptDelayMs,
    startDelay: ({ context }) => context.settings.startDelayMs,
    busSettle: () => BUS_SETTLE_MS,
    conflict: ({ context }) => Math.max(CONFLICT_MIN_MS, CONFLICT_INTERVALS * context.settings.advertMs),
  },
});

const because = (code: ReasonCode | 'takeover') =>
  base.assign({
    reason: ({ context, event }) => reasonOf(context, event, code === 'takeover' ? takeoverReason(context) : code),
  });

/** To whoever watches this router: scripts, the pipe, and its sync group. */
const tellState = (state: RouterState) =>
  base.enqueueActions(({ context, enqueue }) => {
    const { reason, settings } = context;
    enqueue({ type: 'notify', params: { state, priority: effectivePriority(context), reason } });
    if (settings.group === null) return;
    const event = { type: 'member.state', router: idOf(context), state } as Tell['event'];
    enqueue({ type: 'tell', params: { to: settings.group, event } });
  });

/** Whether it would be master, if its sync group were. */
const tellWish = (wants: boolean) =>
  base.enqueueActions(({ context, enqueue }) => {
    const { group } = context.settings;
    const event = { type: 'member.wants', router: idOf(context), wants } as Tell['event'];
    if (group !== null) enqueue({ type: 'tell', params: { to: group, event } });
  });

export const vrrpRouter = base
  .extend({
    actions: {
      /**
       * What others say of the interface, of what is tracked, of addresses and of the group: what that makes of the faults
       * and of the priority. A priority that changes moves the running deadline by the difference of the skew times.
       */
      judge: base.enqueueActions(({ context, event, enqueue, check }) => {
        const change: Partial<RouterContext> = { faults: faultsAfter(context, event) };
        if (event.type === 'interface.up') Object.assign(change, { address: event.address, addressKey: event.key });
        if (event.type === 'tracker.changed') {
          const { tracker, up, value, message } = event;
          change.tracked = { ...context.tracked, [tracker]: { up, value, message } };
        }
        enqueue.assign(change);
        const after = { ...context, ...change };
        if (check(isListening)) for (const effect of timerMoves(context, after)) enqueue(effect);
        for (const effect of groupNews(context, after, check(isMaster) ? mastersFaults : undefined)) enqueue(effect);
      }),
      awaitSettledBus: base.enqueueActions(({ context, enqueue }) => {
        const bus = `NATS is back for less than ${BUS_SETTLE_MS / 1000} s: a master may not be joined again yet`;
        enqueue.assign({ faults: { ...context.faults, bus } });
        enqueue.raise({ type: 'bus.settled' }, { id: 'busSettle', delay: 'busSettle' });
      }),
      /** A master that was cut off and kept its addresses is heard again. */
      rejoinBus: base.enqueueActions(({ context, enqueue }) => {
        enqueue.assign({ faults: without(context.faults, 'bus') });
      }),
      /** What it needn't give way for as master keeps it from being anything else: its sync group learns of it now. */
      admitBusLoss: base.enqueueActions(({ context, enqueue }) => {
        const { group } = context.settings;
        if (group === null || isHindered(mastersFaults(context)) || !isHindered(context.faults)) return;
        const event = { type: 'member.faults', router: idOf(context), faulty: true } as Tell['event'];
        enqueue({ type: 'tell', params: { to: group, event } });
      }),
      /** Learns the master of an accepted advert; touches nothing when it is the one that is known (steady). */
      learnMaster: base.enqueueActions(({ context, event, enqueue }) => {
        if (!isAdvert(event)) return;
        const { source, priority, advertMs } = event;
        const known = context.master;
        const isKnown = known?.source === source && known.priority === priority && known.advertMs === advertMs;
        if (!isKnown || context.lower || context.masterLeft || context.graceGiven) {
          enqueue.assign({ master: { source, priority, advertMs }, lower: null, masterLeft: false, graceGiven: false });
        }
      }),
      /** A master of lower priority, heard while its time runs out. */
      learnLower: base.enqueueActions(({ context, event, enqueue }) => {
        if (!isAdvert(event)) return;
        const { source, priority, advertMs } = event;
        if (context.lower?.source === source && context.lower.priority === priority) return;
        enqueue.assign({ lower: { source, priority, advertMs } });
      }),
      /** What an accepted advert says otherwise than our configuration is remembered, and forgotten when it agrees. */
      compareConfigurations: base.enqueueActions(({ context, event, enqueue }) => {
        if (!isAdvert(event)) return;
        const { source, differences } = event;
        if (source in context.conflicts) {
          enqueue.assign({ conflicts: ({ context: now }) => without(now.conflicts, source) });
          enqueue.cancel(`conflict ${source}`);
        }
        const known = context.differences[source];
        if (differences.length === 0) {
          if (known) enqueue.assign({ differences: ({ context: now }) => without(now.differences, source) });
        } else if (!known && Object.keys(context.differences).length >= MAX_CONFLICTS) {
          return;
        } else if (JSON.stringify(known) !== JSON.stringify(differences)) {
          enqueue.assign({ differences: ({ context: now }) => ({ ...now.differences, [source]: differences }) });
        }
      }),
      forgetMaster: base.assign(NOTHING_HEARD),
      /** On becoming master it counts by its own interval again (RFC 9568 section 6.4.2). */
      becomeMaster: base.assign({ ...NOTHING_HEARD, handingOver: false }),
      restartMasterDown: base.raise({ type: 'masterDown.expired' }, { id: 'masterDown', delay: 'masterDown' }),
      restartSkew: base.raise({ type: 'masterDown.expired' }, { id: 'masterDown', delay: 'skew' }),
      restartAdvert: base.raise({ type: 'advert.due' }, { id: 'advert', delay: 'advert' }),
      advertise: base.enqueueActions(({ context, enqueue }) => {
        enqueue({ type: 'sendAdvert', params: { priority: effectivePriority(context) } });
      }),
      advertiseLast: base.enqueueActions(({ context, enqueue }) => {
        enqueue({ type: 'sendAdvert', params: { priority: effectivePriority(context), copies: LAST_COPIES } });
      }),
      advertisePeriodically: base.enqueueActions(({ context, enqueue }) => {
        enqueue({ type: 'sendAdvert', params: { priority: effectivePriority(context), periodic: true } });
      }),
      /** RFC 9568 section 6.4.3: a master that leaves says so with priority 0. */
      sayGoodbye: base.enqueueActions(({ enqueue }) => {
        enqueue({ type: 'sendAdvert', params: { priority: 0 } });
      }),
      acquireAddresses: base.enqueueActions(({ context, enqueue }) => {
        for (const to of context.settings.addresses)
          enqueue({ type: 'tell', params: { to, event: { type: 'address.acquire' } } });
      }),
      releaseAddresses: base.enqueueActions(({ context, enqueue }) => {
        for (const to of context.settings.addresses)
          enqueue({ type: 'tell', params: { to, event: { type: 'address.release' } } });
      }),
      /**
       * The addresses stay until a successor is heard, or as long as the slowest one waits: nobody is without service. A
       * router that stays here holds them until it would be master again, if there is no successor.
       */
      handOverAddresses: base.enqueueActions(({ context, event, enqueue }) => {
        const { settings } = context;
        const { advertMs } = settings;
        const waitsMs =
          event.type === 'router.stop' ? skewMs(settings, 0, advertMs) : masterDownMs(settings, 0, advertMs);
        const holdMs = waitsMs + advertMs;
        for (const to of settings.addresses)
          enqueue({ type: 'tell', params: { to, event: { type: 'address.handOver', holdMs } as Tell['event'] } });
        enqueue.assign({ handingOver: true });
      }),
      /** A successor has spoken. */
      finishHandOver: base.enqueueActions(({ context, event, enqueue }) => {
        if (!context.handingOver || !isAdvert(event) || event.priority === 0) return;
        for (const to of context.settings.addresses)
          enqueue({ type: 'tell', params: { to, event: { type: 'address.release' } } });
        enqueue.assign({ handingOver: false });
      }),
      takeLook: base.enqueueActions(({ event, enqueue }) => {
        if (event.type !== 'looked') return;
        enqueue.assign({ looked: { lateMs: event.lateMs, silentMs: event.silentMs } });
      }),
      /** Something has ended its waiting for the group: what it saw before is no evidence any more. */
      forgetLook: base.enqueueActions(({ context, enqueue }) => {
        if (context.looked) enqueue.assign({ looked: null });
      }),
      announceAddresses: base.enqueueActions(({ context, enqueue }) => {
        for (const to of context.settings.addresses)
          enqueue({ type: 'tell', params: { to, event: { type: 'address.announce' } } });
      }),
      askTrackers: base.enqueueActions(({ context, enqueue }) => {
        for (const { tracker } of context.settings.track) {
          const event = { type: 'tracker.asked', router: idOf(context) } as Tell['event'];
          enqueue({ type: 'tell', params: { to: tracker, event } });
        }
      }),
      noteConflict: base.enqueueActions(({ context, event, enqueue }) => {
        if (event.type !== 'advert.discarded' || event.field === null) return;
        const { source, kind, field, own, peer } = event;
        const known = context.conflicts[source];
        const isKnown = known?.kind === kind && known.field === field && known.own === own && known.peer === peer;
        if (!known && Object.keys(context.conflicts).length >= MAX_CONFLICTS) return;
        if (!isKnown) enqueue.assign({ conflicts: { ...context.conflicts, [source]: { kind, field, own, peer } } });
        enqueue.raise({ type: 'conflict.silent', source }, { id: `conflict ${source}`, delay: 'conflict' });
      }),
      takeIntent: base.enqueueActions(({ context, event, enqueue, check }) => {
        const intent = intentAfter(context.intent, event);
        enqueue.assign({ intent });
        if (check(isListening)) for (const effect of timerMoves(context, { ...context, intent })) enqueue(effect);
      }),
      startPreemptDelay: base.enqueueActions(({ context, enqueue }) => {
        if (context.preemptDelayRuns) return;
        enqueue.assign({ preemptDelayRuns: true });
        enqueue.raise({ type: 'preemptDelay.elapsed' }, { id: 'preemptDelay', delay: 'preemptDelay' });
      }),
      /** A higher master than oneself ends the patience with lower ones. */
      heedHigher: base.enqueueActions(({ context, event, enqueue }) => {
        if (!isAdvert(event) || event.priority <= effectivePriority(context)) return;
        if (context.preemptDelayRuns) enqueue.cancel('preemptDelay');
        if (context.preemptDelayRuns || context.delayPassed)
          enqueue.assign({ preemptDelayRuns: false, delayPassed: false });
      }),
      stopPreemptDelay: base.enqueueActions(({ context, enqueue }) => {
        if (context.preemptDelayRuns) enqueue.cancel('preemptDelay');
      }),
      takeSettings: base.enqueueActions(({ context, event, enqueue, check }) => {
        if (event.type !== 'settings.changed') return;
        const { settings } = event;
        const isTracked = (key: string) => settings.track.some(({ tracker }) => tracker === key);
        const tracked = Object.fromEntries(Object.entries(context.tracked).filter(([key]) => isTracked(key)));
        const gone = context.settings.addresses.filter((address) => !settings.addresses.includes(address));
        // What is tracked already needs no answer to be known: a FAULT must not end for the moment of a reload.
        const others = Object.entries(context.faults).filter(
          ([key]) => !(key in context.tracked) && !gone.includes(key),
        );
        const faults = { ...Object.fromEntries(others), ...trackerFaults({ settings, tracked }) };
        for (const to of gone) enqueue({ type: 'tell', params: { to, event: { type: 'address.release' } } });
        const after = { ...context, settings, tracked, faults };
        enqueue.assign({ settings, tracked, faults });
        if (check(isListening)) for (const effect of timerMoves(context, after)) enqueue(effect);
        for (const effect of groupNews(context, after, check(isMaster) ? mastersFaults : undefined)) enqueue(effect);
      }),
    },
  })
  .createMachine({
    id: 'vrrpRouter',
    context: ({ input }) => {
      const given = input ?? defaultInput;
      return {
        ...given,
        tracked: {},
        faults: faultsAtStart(given),
        intent: 'none',
        address: '',
        addressKey: '',
        ...NOTHING_HEARD,
        handingOver: false,
        conflicts: {},
        differences: {},
        reason: { code: 'startup', priority: given.settings.priority },
      };
    },
    initial: 'initialize',
    entry: ['openRouter', 'askTrackers'],
    on: {
      'interface.up': { actions: 'judge' },
      'interface.down': { actions: 'judge' },
      'bus.joined': [{ guard: 'busWasLost', actions: 'awaitSettledBus' }, { actions: 'judge' }],
      'bus.lost': { actions: [base.cancel('busSettle'), 'judge'] },
      'bus.settled': { actions: 'judge' },
      'tracker.changed': { actions: 'judge' },
      'address.failed': { actions: 'judge' },
      'address.cleared': { actions: 'judge' },
      'startDelay.elapsed': { actions: 'judge' },
      'group.fault': { actions: 'judge' },
      'group.cleared': { actions: 'judge' },
      'group.master': {},
      'group.backup': {},
      // Of a look or a sleep that something else has ended meanwhile.
      looked: {},
      'advert.overslept': {},
      'advert.received': { actions: ['compareConfigurations', 'finishHandOver'] },
      'advert.discarded': { actions: 'noteConflict' },
      'conflict.silent': {
        actions: assign({ conflicts: ({ context, event }) => without(context.conflicts, event.source) }),
      },
      'operator.demote': { actions: 'takeIntent' },
      'operator.promote': { actions: 'takeIntent' },
      'settings.changed': { actions: ['takeSettings', 'askTrackers'] },
      'router.stop': {
        target: '.initialize.stopped',
        actions: [base.cancel('masterDown'), base.cancel('startDelay'), because('shutdown')],
      },
    },
    states: {
      initialize: {
        initial: 'waiting',
        states: {
          waiting: {
            entry: base.enqueueActions(({ context, enqueue }) => {
              if (context.settings.startDelayMs > 0)
                enqueue.raise({ type: 'startDelay.elapsed' }, { id: 'startDelay', delay: 'startDelay' });
            }),
            always: [
              {
                guard: 'isFaulty',
                target: '#vrrpRouter.fault',
                actions: because('fault'),
              },
              // RFC 9568 section 6.4.1: an owner is master at once, everybody else begins as backup.
              {
                guard: 'isReadyOwner',
                target: '#vrrpRouter.master',
                actions: because('owner'),
              },
              {
                guard: 'isReady',
                target: '#vrrpRouter.backup',
                actions: because('startup'),
              },
            ],
          },
          stopped: {
            entry: tellState('STOP'),
            on: {
              'router.stop': {},
              'interface.up': {},
              'interface.down': {},
              'bus.joined': {},
              'bus.lost': {},
              'bus.settled': {},
              'tracker.changed': {},
              'address.failed': {},
              'address.cleared': {},
              'group.fault': {},
              'group.cleared': {},
            },
          },
        },
      },
      backup: {
        // A master that was heard and gave way to it counts by its interval from the start (RFC 9568 section 6.4.3).
        entry: ['forgetMaster', 'learnMaster', 'restartMasterDown', tellState('BACKUP')],
        initial: 'listening',
        always: {
          guard: 'isFaulty',
          target: 'fault',
          actions: [base.cancel('masterDown'), because('fault')],
        },
        exit: 'stopPreemptDelay',
        on: {
          'advert.received': [
            // RFC 9568 section 6.4.2: a master that leaves is waited for no longer than the skew time.
            {
              guard: 'isPriorityZero',
              target: '.listening',
              actions: ['compareConfigurations', base.assign({ masterLeft: true, lower: null }), 'restartSkew'],
            },
            {
              guard: 'isAcceptable',
              target: '.listening',
              actions: ['compareConfigurations', 'finishHandOver', 'learnMaster', 'heedHigher', 'restartMasterDown'],
            },
            {
              guard: 'isTolerated',
              target: '.listening',
              actions: [
                'compareConfigurations',
                'finishHandOver',
                'learnMaster',
                'startPreemptDelay',
                'restartMasterDown',
              ],
            },
            // Lower, and it preempts: discarded, its timer keeps running.
            { actions: ['compareConfigurations', 'finishHandOver', 'learnLower'] },
          ],
          'preemptDelay.elapsed': { actions: base.assign({ delayPassed: true, preemptDelayRuns: false }) },
          'operator.promote': [
            {
              guard: 'outranksMaster',
              target: 'master',
              actions: ['takeIntent', base.cancel('masterDown'), because('operator')],
            },
            { actions: 'takeIntent' },
          ],
          'group.master': {
            target: 'master',
            actions: [base.cancel('masterDown'), because('group')],
          },
        },
        states: {
          listening: {
            tags: 'routine',
            entry: 'forgetLook',
            on: { 'masterDown.expired': { target: 'deciding' } },
          },
          /** The timer has run out; what has arrived meanwhile is heard before it acts. */
          deciding: {
            tags: 'routine',
            entry: 'look',
            on: {
              looked: [
                // A late loop must not fake a dead master: its adverts may wait behind the same lateness.
                {
                  guard: 'loopWasLate',
                  target: 'listening',
                  actions: [base.assign({ graceGiven: true }), 'restartSkew'],
                },
                { guard: 'isGrouped', target: 'willing', actions: 'takeLook' },
                { target: '#vrrpRouter.master', actions: because('takeover') },
              ],
            },
          },
          /** Alone it would be master now. keepalived's groups are master when all members would be: no thrashing. */
          willing: {
            tags: 'routine',
            entry: tellWish(true),
            exit: tellWish(false),
            on: {
              'group.master': { target: '#vrrpRouter.master', actions: because('takeover') },
            },
          },
        },
      },
      master: {
        tags: 'routine',
        // RFC 9568 section 6.4.2: the advert first, then the addresses, and they announce themselves.
        entry: ['becomeMaster', 'advertise', 'acquireAddresses', 'restartAdvert', tellState('MASTER')],
        exit: [base.cancel('advert'), 'admitBusLoss'],
        always: {
          guard: 'mustGiveWay',
          target: 'fault',
          actions: ['sayGoodbye', 'releaseAddresses', because('fault')],
        },
        on: {
          // At once: whoever has become master meanwhile is to know.
          'bus.joined': { guard: 'busWasLost', actions: ['rejoinBus', 'advertise', 'restartAdvert'] },
          'advert.due': { actions: ['advertisePeriodically', 'restartAdvert'] },
          'advert.received': [
            // RFC 9568 section 6.4.3. Another master that leaves may have left neighbours pointing at it.
            {
              guard: 'isPriorityZero',
              actions: ['compareConfigurations', 'advertise', 'restartAdvert', 'announceAddresses'],
            },
            // The last advert makes the other one announce the addresses again, as neighbours may still point here.
            {
              guard: 'isHigher',
              target: 'backup',
              actions: ['compareConfigurations', 'advertiseLast', 'releaseAddresses', because('higherPriority')],
            },
            {
              guard: 'isSuperior',
              target: 'backup',
              actions: ['compareConfigurations', 'advertiseLast', 'releaseAddresses', because('tieLost')],
            },
            // A lower one: it is told at once, the timer is not reset; and neighbours that it has turned are turned back.
            { actions: ['compareConfigurations', 'advertise', 'announceAddresses'] },
          ],
          'advert.overslept': {
            target: 'backup',
            actions: ['releaseAddresses', because('overslept')],
          },
          'operator.demote': [
            { guard: 'isOwner', actions: 'takeIntent' },
            {
              target: 'backup',
              actions: ['takeIntent', 'sayGoodbye', 'handOverAddresses', because('operator')],
            },
          ],
          'group.backup': {
            target: 'backup',
            actions: ['sayGoodbye', 'handOverAddresses', because('group')],
          },
          // The advert at once: peers that still count by a shorter interval would not wait for the next one.
          'settings.changed': {
            actions: ['takeSettings', 'askTrackers', 'acquireAddresses', 'advertise', 'restartAdvert'],
          },
          'router.stop': {
            target: 'initialize.stopped',
            actions: ['sayGoodbye', 'handOverAddresses', because('shutdown')],
          },
        },
      },
      fault: {
        entry: ['forgetMaster', tellState('FAULT')],
        // keepalived's FAULT ends in BACKUP with a whole master-down time.
        always: [
          { guard: 'isReadyOwner', target: 'master', actions: because('owner') },
          { guard: 'isReady', target: 'backup', actions: because('faultCleared') },
        ],
      },
    },
  });
