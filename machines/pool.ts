/**
 * Which servers of a backend take new traffic, and how much. It hears every change from its servers, decides, and
 * publishes only what differs from what it published before.
 *
 * serving: the primaries work. onBackups: no primary is usable (or fewer than the quorum), backups work.
 * exhausted: nobody does; the data plane answers 503. panicking: so few primaries are usable that their health is not
 * believed; all work that an operator lets work.
 */
import { assign, enqueueActions, setup } from 'xstate';
import type { Initially } from './backendServer.ts';
import type { Tell } from './tell.ts';
import type { Suspicion } from './trafficObserver.ts';

export type PoolSettings = {
  /** All usable backups work together, instead of the first one alone. */
  allBackups: boolean;
  /** Usable primaries below which the backups take over. */
  quorum: number;
  /** Primaries beyond the quorum that it takes to come back, and below it to leave (keepalived's hysteresis). */
  hysteresis: number;
  /** Trackers that want to know whether at least so many of its servers are usable. */
  watchers?: readonly { tracker: string; atLeast: number }[];
  /** Percent of the servers that may be ejected at a time; one that works always stays. */
  maxEjected?: number;
  /** Percent of the primaries: when fewer are usable, all work. 0 is never. */
  panic?: number;
  /** Clients are bound to servers: the data plane has to know those that serve only such clients. */
  persistence?: boolean;
};

export type PoolInput = { name: string; settings: PoolSettings };

export type Member = {
  weight: number;
  backup: boolean;
  checked: boolean;
  initially: Initially;
  health: 'up' | 'down' | 'unchecked';
  admin: 'ready' | 'drain' | 'maintenance';
  share: number;
  /** An outlier that is out of traffic for a time. */
  ejected?: true;
  /** Names that look like numbers don't stay where they stood in an object: the order is kept here. */
  position: number;
};

export type PoolMode = 'serving' | 'onBackups' | 'exhausted' | 'panic';

export type PoolContext = PoolInput & {
  members: Readonly<Record<string, Member>>;
  mode: PoolMode;
  /** The primaries have reached the quorum and not left it since. */
  quorumUp: boolean;
  /** Server → weight × share of those that take new traffic; what the data plane was last told. */
  weights: Readonly<Record<string, number>>;
  /** With `persistence`, those that serve only clients who are bound to them; what the data plane was last told. */
  draining?: readonly string[];
};

type Standing = { server: string; weight: number; backup: boolean; checked: boolean; initially: Initially };

export type PoolEvent =
  | ({ type: 'server.joined' } & Standing)
  | ({ type: 'server.settings' } & Standing)
  | { type: 'server.left'; server: string }
  | { type: 'server.health'; server: string; health: Member['health']; initially?: Initially }
  | { type: 'server.admin'; server: string; admin: Member['admin'] }
  | { type: 'server.share'; server: string; share: number }
  | { type: 'server.weight'; server: string; weight: number }
  | { type: 'outlier.suspected'; server: string; why: Suspicion }
  | { type: 'outlier.returned'; server: string }
  | { type: 'settings.changed'; settings: PoolSettings }
  | { type: 'pool.asked'; tracker: string };

const defaultInput: PoolInput = { name: '', settings: { allBackups: false, quorum: 1, hysteresis: 0 } };

const nextPosition = (members: PoolContext['members']): number =>
  Math.max(0, ...Object.values(members).map(({ position }) => position)) + 1;

const membersAfter = (members: PoolContext['members'], event: PoolEvent): PoolContext['members'] => {
  switch (event.type) {
    case 'settings.changed':
    case 'pool.asked':
    // What becomes of a suspect is decided beside this.
    case 'outlier.suspected':
      return members;
    case 'outlier.returned': {
      const member = Object.hasOwn(members, event.server) ? members[event.server] : undefined;
      if (!member?.ejected) return members;
      const { ejected: _ejected, ...rest } = member;
      return { ...members, [event.server]: rest };
    }
    case 'server.left': {
      const { [event.server]: _left, ...rest } = members;
      return rest;
    }
    case 'server.joined':
    case 'server.settings': {
      const { type: _type, server, ...standing } = event;
      const known = Object.hasOwn(members, server)
        ? members[server]!
        : { health: 'unchecked' as const, admin: 'ready' as const, share: 100, position: nextPosition(members) };
      return { ...members, [server]: { ...known, ...standing } };
    }
    default: {
      const { type: _type, server, ...change } = event;
      const member = Object.hasOwn(members, server) ? members[server] : undefined;
      // News of a server that has left: the message was under way when it was removed.
      return member ? { ...members, [server]: { ...member, ...change } } : members;
    }
  }
};

type Candidates = {
  primaries: string[];
  backups: string[];
  /** Not checked yet: they work while nobody else can. */
  unproven: string[];
  /** Primaries, whether they can work or not. */
  configured: number;
};

const isUnproven = ({ health, checked, initially }: Member): boolean =>
  health === 'unchecked' && checked && initially !== 'up';

const candidatesOf = (members: PoolContext['members']): Candidates => {
  const primaries: string[] = [];
  const backups: string[] = [];
  const unproven: string[] = [];
  let configured = 0;
  for (const [name, member] of Object.entries(members).sort(([, a], [, b]) => a.position - b.position)) {
    if (!member.backup) configured++;
    if (member.admin !== 'ready' || member.weight === 0 || member.health === 'down' || member.ejected) continue;
    if (isUnproven(member)) {
      if (member.initially === 'unchecked') unproven.push(name);
      continue;
    }
    (member.backup ? backups : primaries).push(name);
  }
  return { primaries, backups, unproven, configured };
};

/** Servers that take traffic, or would if they were needed. */
const usableOf = (members: PoolContext['members']): number => {
  const { primaries, backups, unproven } = candidatesOf(members);
  return primaries.length + backups.length || unproven.length;
};

type Verdict = { ejected: number; allowed: number; of: number } & (
  { type: 'ejection.granted' } | { type: 'ejection.refused'; because: 'cap' | 'last' | 'unusable' }
);

/** Whether this server may be ejected. `ejected` counts it, where it may. */
const judge = (members: PoolContext['members'], { maxEjected = 0 }: PoolSettings, server: string): Verdict => {
  const of = Object.keys(members).length;
  const ejected = Object.values(members).filter((member) => member.ejected).length;
  const allowed = Math.min(Math.floor((of * maxEjected) / 100), of - 1);
  const refused = (because: 'cap' | 'last' | 'unusable'): Verdict => ({
    type: 'ejection.refused',
    because,
    ejected,
    allowed,
    of,
  });
  const { primaries, backups, unproven } = candidatesOf(members);
  if (![primaries, backups, unproven].some((names) => names.includes(server))) return refused('unusable');
  if (primaries.length + backups.length + unproven.length === 1) return refused('last');
  if (ejected >= allowed) return refused('cap');
  return { type: 'ejection.granted', ejected: ejected + 1, allowed, of };
};

/**
 * The primaries that would work if all were well, when fewer than this percentage of them are not known to be ill: many
 * that fail at once tell more of what they share, or of their checks, than of themselves.
 */
const panicOver = (members: PoolContext['members'], percent: number): string[] => {
  if (percent === 0) return [];
  const willing = Object.entries(members).filter(
    ([, { backup, admin, weight }]) => !backup && admin === 'ready' && weight > 0,
  );
  const well = willing.filter(([, { health, ejected }]) => health !== 'down' && !ejected).length;
  return 100 * well < percent * willing.length ? willing.map(([name]) => name) : [];
};

/** Those that take no new traffic and still serve clients who are bound to them. */
const drainingOf = (members: PoolContext['members']): string[] =>
  Object.entries(members)
    .filter(
      ([, member]) =>
        (member.admin === 'drain' || (member.admin === 'ready' && member.weight === 0)) &&
        member.health !== 'down' &&
        !member.ejected &&
        !isUnproven(member),
    )
    .map(([name]) => name)
    .sort();

const decide = (
  members: PoolContext['members'],
  settings: PoolSettings,
  wasUp: boolean,
): { mode: PoolMode; quorumUp: boolean; weights: Record<string, number> } => {
  const { primaries, backups, unproven, configured } = candidatesOf(members);
  const weigh = (names: string[]) =>
    Object.fromEntries(names.map((name) => [name, members[name]!.weight * members[name]!.share]));
  const { quorum, hysteresis } = settings;
  const needed = wasUp ? quorum - hysteresis : Math.min(quorum + hysteresis, configured);
  const quorumUp = primaries.length >= Math.max(1, needed);
  const panicking = panicOver(members, settings.panic ?? 0);
  // A share below 100 is of one that is down or has just come back: it says nothing when health isn't believed.
  const panic = { mode: 'panic' as const, quorumUp, weights: fullWeights(members, panicking) };
  if (quorumUp && panicking.length > 0) return panic;
  if (quorumUp) return { mode: 'serving', quorumUp, weights: weigh(primaries) };
  if (backups.length > 0) {
    return { mode: 'onBackups', quorumUp, weights: weigh(settings.allBackups ? backups : backups.slice(0, 1)) };
  }
  if (panicking.length > 0) return panic;
  // Without backups a few primaries are better than none, and unproven servers better than an error.
  if (primaries.length > 0) return { mode: 'serving', quorumUp, weights: weigh(primaries) };
  const unprovenPrimaries = unproven.filter((name) => !members[name]!.backup);
  if (unprovenPrimaries.length > 0) return { mode: 'serving', quorumUp, weights: weigh(unprovenPrimaries) };
  if (unproven.length > 0) {
    return { mode: 'onBackups', quorumUp, weights: weigh(settings.allBackups ? unproven : unproven.slice(0, 1)) };
  }
  return { mode: 'exhausted', quorumUp, weights: {} };
};

const fullWeights = (members: PoolContext['members'], names: string[]): Record<string, number> =>
  Object.fromEntries(names.map((name) => [name, members[name]!.weight * 100]));

const sameNames = (a: readonly string[], b: readonly string[]): boolean =>
  a.length === b.length && a.every((name, index) => name === b[index]);

const difference = (before: PoolContext['weights'], after: PoolContext['weights']): Record<string, number> => {
  const changed: Record<string, number> = {};
  for (const name of Object.keys(before)) if (!Object.hasOwn(after, name)) changed[name] = 0;
  for (const [name, weight] of Object.entries(after))
    if (!Object.hasOwn(before, name) || before[name] !== weight) changed[name] = weight;
  return changed;
};

const usableText = (name: string, usable: number, of: number): string =>
  usable === 0 ? `pool ${name} has no usable server` : `pool ${name} has ${usable} of ${of} servers usable`;

export type Publication = {
  pool: string;
  mode: PoolMode;
  weights: Record<string, number>;
  draining?: string[];
};

export const pool = setup({
  types: { context: {} as PoolContext, events: {} as PoolEvent, input: {} as PoolInput },
  actions: {
    /** Effect: deliver an event to another actor. */
    tell: (_, _params: Tell) => {},
    /**
     * Effect: give these servers these weights in the data plane; 0 takes no new traffic. `draining`, where it has
     * changed, are those that serve only clients who are bound to them.
     */
    publish: (_, _params: Publication) => {},
  },
  guards: {
    isServing: ({ context }) => context.mode === 'serving',
    isOnBackups: ({ context }) => context.mode === 'onBackups',
    isExhausted: ({ context }) => context.mode === 'exhausted',
    isPanicking: ({ context }) => context.mode === 'panic',
  },
}).createMachine({
  id: 'pool',
  context: ({ input }) => ({
    ...(input ?? defaultInput),
    members: {},
    mode: 'exhausted',
    quorumUp: false,
    weights: {},
  }),
  initial: 'exhausted',
  on: {
    '*': {
      actions: enqueueActions(({ context, event, enqueue }) => {
        const settings = event.type === 'settings.changed' ? event.settings : context.settings;
        let members = membersAfter(context.members, event);
        if (event.type === 'outlier.suspected') {
          const { server, why } = event;
          const member = Object.hasOwn(members, server) ? members[server] : undefined;
          // It was suspected twice before it heard, or it has left.
          if (!member || member.ejected) return;
          const verdict = judge(members, settings, server);
          const params = { to: `observer/${context.name}/${server}`, event: { ...verdict, why } };
          enqueue({ type: 'tell', params });
          if (verdict.type === 'ejection.refused') return;
          members = { ...members, [server]: { ...member, ejected: true } };
        }
        const next = decide(members, settings, context.quorumUp);
        const changed = difference(context.weights, next.weights);
        const before = context.draining ?? [];
        const draining = settings.persistence ? drainingOf(members) : [];
        const drainingChanged = !sameNames(before, draining);
        enqueue(assign({ settings, members, ...next, ...(drainingChanged ? { draining } : {}) }));
        if (Object.keys(changed).length > 0 || next.mode !== context.mode || drainingChanged) {
          const params: Publication = { pool: context.name, mode: next.mode, weights: changed };
          enqueue({ type: 'publish', params: drainingChanged ? { ...params, draining } : params });
        }
        if (!settings.watchers) return;
        const usable = usableOf(members);
        const known = Object.keys(members).length;
        const isNews =
          event.type === 'settings.changed' ||
          usable !== usableOf(context.members) ||
          known !== Object.keys(context.members).length;
        for (const { tracker, atLeast } of settings.watchers) {
          const isAsked = event.type === 'pool.asked' && event.tracker === tracker;
          if (!isNews && !isAsked) continue;
          const message = usableText(context.name, usable, known);
          const seen = { type: 'observed', ok: usable >= atLeast, value: null, code: '', message, durationMs: 0 };
          enqueue({ type: 'tell', params: { to: tracker, event: seen } });
        }
      }),
    },
  },
  states: {
    serving: {
      always: [
        { guard: 'isOnBackups', target: 'onBackups' },
        { guard: 'isExhausted', target: 'exhausted' },
        { guard: 'isPanicking', target: 'panicking' },
      ],
    },
    onBackups: {
      always: [
        { guard: 'isServing', target: 'serving' },
        { guard: 'isExhausted', target: 'exhausted' },
        { guard: 'isPanicking', target: 'panicking' },
      ],
    },
    exhausted: {
      always: [
        { guard: 'isServing', target: 'serving' },
        { guard: 'isOnBackups', target: 'onBackups' },
        { guard: 'isPanicking', target: 'panicking' },
      ],
    },
    panicking: {
      always: [
        { guard: 'isServing', target: 'serving' },
        { guard: 'isOnBackups', target: 'onBackups' },
        { guard: 'isExhausted', target: 'exhausted' },
      ],
    },
  },
});
