/**
 * What the nodes of a cluster make together of one server: to the server it stands where its checker stands, to the
 * checker where its server stands. Two regions. `own` is this node's view by its own checks (HAProxy's rise and fall);
 * `verdict` is what more than half of the nodes say that can see anything at all, and the server is told of it only when
 * it changes. A verdict without a majority stays what it is.
 *
 * Where checks are divided among nodes, one that isn't among the server's checkers is `offDuty`: its checker is paused,
 * and it follows the others. It goes off duty only when all of them have a view, so that no server is unchecked meanwhile.
 */
import { and, assign, enqueueActions, not, setup, stateIn } from 'xstate';
import type { TrafficFailed } from './backendServer.ts';
import type { Pace } from './healthChecker.ts';
import { failuresAfter, riseAndFall } from './riseAndFall.ts';
import type { Tell } from './tell.ts';

export type View = 'up' | 'down';

/** What one node says of the server, and of a server that is down what it saw. */
export type Word = { view: View; message: string };

export type QuorumSettings = {
  /** This node's name. */
  node: string;
  /** Consecutive passed checks of its own that make its view up again. */
  rise: number;
  /** Consecutive failed checks of its own that make its view down. */
  fall: number;
};

export type HealthQuorumInput = { pool: string; server: string; settings: QuorumSettings };

export type HealthQuorumContext = HealthQuorumInput & {
  /** Consecutive checks of its own that speak against its present view. */
  count: number;
  /** Null while it has no view: it has not checked yet, is off duty, or paused. */
  own: Word | null;
  /** By node: those that have a view. */
  others: Readonly<Record<string, Word>>;
  /** Nodes that see no server at all while others do: they have no vote. */
  blind: readonly string[];
  /** Nodes that are to check this server; null when all are. */
  checkers: readonly string[] | null;
};

export type HealthQuorumEvent =
  | { type: 'check.passed'; code: string; message: string; durationMs: number }
  | { type: 'check.failed'; code: string; message: string; durationMs: number }
  | TrafficFailed
  /** From the server: an operator has it in maintenance, or has no longer. */
  | { type: 'checker.pause' }
  | { type: 'checker.resume' }
  | { type: 'pace.changed'; pace: Pace; elapsedMs: number }
  /** Another node's view has changed. */
  | { type: 'view.heard'; node: string; view: View | 'none'; message: string }
  /** Another node is not heard any more. */
  | { type: 'node.lost'; node: string }
  | { type: 'node.sight'; node: string; blind: boolean }
  | { type: 'duty.assigned'; checkers: readonly string[] | null }
  /** What was known when it asked, at its start. */
  | {
      type: 'views.known';
      views: Readonly<Record<string, Word>>;
      blind: readonly string[];
      checkers: readonly string[] | null;
    }
  | { type: 'settings.changed'; settings: QuorumSettings };

const defaultInput: HealthQuorumInput = { pool: '', server: '', settings: { node: '', rise: 2, fall: 3 } };

/** Initial states are entered by this event of XState's: nobody has to be told then. */
const isStart = (event: { type: string }): boolean => event.type === 'xstate.init';

type Voter = Word & { node: string };

export type Tally = { voters: Voter[]; up: number; down: number };

/** Who has a vote, by name, and how they vote. */
export const tallyOf = ({ settings, own, others, blind }: HealthQuorumContext): Tally => {
  const words = own ? { ...others, [settings.node]: own } : others;
  const voters = Object.keys(words)
    .filter((node) => !blind.includes(node))
    .sort()
    .map((node): Voter => {
      const { view, message } = words[node]!;
      return { node, view, message };
    });
  const up = voters.filter(({ view }) => view === 'up').length;
  return { voters, up, down: voters.length - up };
};

/** `lb1, lb3: connection refused; lb2: timed out` */
const whoSaysWhat = (voters: Voter[]): string => {
  const byMessage = new Map<string, string[]>();
  for (const { node, message } of voters) byMessage.set(message, [...(byMessage.get(message) ?? []), node]);
  return [...byMessage]
    .map(([message, nodes]) => (message === '' ? nodes.join(', ') : `${nodes.join(', ')}: ${message}`))
    .join('; ');
};

const verdictText = (context: HealthQuorumContext, view: View): string => {
  const { voters } = tallyOf(context);
  const those = voters.filter((voter) => voter.view === view);
  const isAlone = voters.length === 1 && voters[0]!.node === context.settings.node;
  if (isAlone) return `${context.settings.node} alone${those[0]?.message ? `: ${those[0].message}` : ''}`;
  const without = context.blind.filter((node) => node in context.others || node === context.settings.node);
  const excluded = without.length === 0 ? '' : ` (without ${without.join(', ')}, blind)`;
  return `${those.length} of ${voters.length} nodes: ${whoSaysWhat(those)}${excluded}`;
};

const toServer = (context: HealthQuorumContext, event: HealthQuorumEvent, view: View): Tell => {
  const type = view === 'up' ? 'check.passed' : 'check.failed';
  const { voters } = tallyOf(context);
  const isOwnCheck = event.type === type && voters.length === 1;
  const said = isOwnCheck
    ? { code: event.code, message: event.message, durationMs: event.durationMs }
    : { code: 'QUORUM', message: verdictText(context, view), durationMs: 0 };
  return { to: `server/${context.pool}/${context.server}`, event: { type, ...said } };
};

const toChecker = (context: HealthQuorumContext, event: { type: string } & Record<string, unknown>): Tell => ({
  to: `checker/${context.pool}/${context.server}`,
  event,
});

/** The checker counts its next interval from the start of the probe that brought the news, hence the elapsed time. */
const paceOf = (context: HealthQuorumContext, pace: Pace, event: HealthQuorumEvent): Tell =>
  toChecker(context, { type: 'pace.changed', pace, elapsedMs: 'durationMs' in event ? event.durationMs : 0 });

const messageOf = (event: HealthQuorumEvent): string => {
  if (event.type === 'traffic.failed') return event.detail;
  if (event.type !== 'check.passed' && event.type !== 'check.failed') return '';
  return event.message === '' ? event.code : event.message;
};

const without = (others: HealthQuorumContext['others'], node: string): HealthQuorumContext['others'] => {
  const { [node]: _gone, ...rest } = others;
  return rest;
};

const othersAfter = (
  others: HealthQuorumContext['others'],
  event: HealthQuorumEvent,
): HealthQuorumContext['others'] => {
  switch (event.type) {
    case 'view.heard': {
      const { node, view, message } = event;
      return view === 'none' ? without(others, node) : { ...others, [node]: { view, message } };
    }
    case 'node.lost':
      return without(others, event.node);
    case 'views.known':
      return event.views;
    default:
      return others;
  }
};

const blindAfter = (blind: readonly string[], event: HealthQuorumEvent): readonly string[] => {
  if (event.type === 'views.known') return event.blind;
  if (event.type !== 'node.sight') return blind;
  const rest = blind.filter((node) => node !== event.node);
  return event.blind ? [...rest, event.node].sort() : rest;
};

/** All who are to check it do, and this node isn't one of them. */
const isRelieved = ({ settings, checkers, others }: HealthQuorumContext): boolean =>
  checkers !== null && !checkers.includes(settings.node) && checkers.every((node) => Object.hasOwn(others, node));

/** It is to check, or none of those who are does. */
const isNeeded = ({ settings, checkers, others }: HealthQuorumContext): boolean =>
  checkers === null || checkers.includes(settings.node) || !checkers.some((node) => Object.hasOwn(others, node));

const base = setup({
  types: {
    context: {} as HealthQuorumContext,
    events: {} as HealthQuorumEvent,
    input: {} as HealthQuorumInput,
  },
  actions: {
    /** Effect: deliver an event to another actor. */
    tell: (_, _params: Tell) => {},
    /** Effect: tell the other nodes this node's view. */
    share: (_, _params: { view: View | 'none'; message: string }) => {},
    /** Effect: say what is known of the other nodes; answered by `views.known` where anything is. */
    askViews: () => {},
    /** What others say, and who is to check. */
    learn: assign({
      others: ({ context, event }) => othersAfter(context.others, event),
      blind: ({ context, event }) => blindAfter(context.blind, event),
      checkers: ({ context, event }) => ('checkers' in event ? event.checkers : context.checkers),
    }),
    resetCount: assign({ count: 0 }),
    countOne: assign({ count: ({ context, event }) => failuresAfter({ ...context, count: 0 }, event) }),
    countMore: assign({ count: ({ context, event }) => failuresAfter(context, event) }),
  },
  guards: {
    ...riseAndFall,
    isRelieved: ({ context }) => isRelieved(context),
    isNeeded: ({ context }) => isNeeded(context),
    mostSayUp: ({ context }) => {
      const { up, down } = tallyOf(context);
      return up > down;
    },
    mostSayDown: ({ context }) => {
      const { up, down } = tallyOf(context);
      return down > up;
    },
    isTie: ({ context }) => {
      const { up, down } = tallyOf(context);
      return up > 0 && up === down;
    },
  },
});

/** This node's view is another one than before: the others hear of it. */
const takeView = (view: View | null) =>
  base.enqueueActions(({ context, event, enqueue }) => {
    if ((context.own?.view ?? null) === view) return;
    const message = view === 'down' ? messageOf(event) : '';
    enqueue.assign({ own: view === null ? null : { view, message } });
    enqueue({ type: 'share', params: { view: view ?? 'none', message } });
  });

export const healthQuorum = base.createMachine({
  id: 'healthQuorum',
  context: ({ input }) => ({
    ...(input ?? defaultInput),
    count: 0,
    own: null,
    others: {},
    blind: [],
    checkers: null,
  }),
  type: 'parallel',
  entry: 'askViews',
  on: {
    'view.heard': { actions: 'learn' },
    'node.lost': { actions: 'learn' },
    'node.sight': { actions: 'learn' },
    'duty.assigned': { actions: 'learn' },
    'views.known': { actions: 'learn' },
    'settings.changed': { actions: assign({ settings: ({ event }) => event.settings }) },
    // The server goes by the verdict, the checker by this node's own view.
    'pace.changed': {},
  },
  states: {
    own: {
      initial: 'unchecked',
      on: { 'checker.pause': { guard: not(stateIn({ own: 'paused' })), target: '.paused' } },
      always: {
        guard: and([not(stateIn({ own: 'offDuty' })), not(stateIn({ own: 'paused' })), 'isRelieved']),
        target: '.offDuty',
      },
      states: {
        unchecked: {
          entry: [
            'resetCount',
            enqueueActions(({ context, event, enqueue }) => {
              if (isStart(event)) return;
              enqueue({ type: 'tell', params: toChecker(context, { type: 'checker.resume' }) });
              enqueue({ type: 'tell', params: paceOf(context, 'fast', event) });
            }),
          ],
          on: {
            // One check decides, but against a verdict it takes as many as of a node that had this view before.
            'check.passed': [
              { guard: and([stateIn({ verdict: 'down' }), not('firstIsEnoughToRise')]), target: 'goingUp' },
              { target: 'up' },
            ],
            'check.failed': [
              { guard: and([stateIn({ verdict: 'up' }), not('firstIsEnoughToFall')]), target: 'goingDown' },
              { target: 'down' },
            ],
            // Its first check is under way.
            'traffic.failed': {},
            'checker.resume': {},
          },
        },
        up: {
          entry: [
            'resetCount',
            takeView('up'),
            { type: 'tell', params: ({ context, event }) => paceOf(context, 'normal', event) },
          ],
          on: {
            'check.passed': {},
            'check.failed': [{ guard: 'firstIsEnoughToFall', target: 'down' }, { target: 'goingDown' }],
            'traffic.failed': [{ guard: 'trafficMarksDown', target: 'down' }, { target: 'goingDown' }],
            'checker.resume': {},
          },
        },
        goingDown: {
          entry: ['countOne', { type: 'tell', params: ({ context, event }) => paceOf(context, 'fast', event) }],
          on: {
            'check.passed': { target: 'up' },
            'check.failed': [{ guard: 'isLastOfFall', target: 'down' }, { actions: 'countMore' }],
            'traffic.failed': [
              { guard: 'onlyHurries' },
              { guard: 'trafficMarksDown', target: 'down' },
              { actions: 'countMore' },
            ],
            'checker.resume': {},
          },
        },
        down: {
          entry: [
            'resetCount',
            takeView('down'),
            { type: 'tell', params: ({ context, event }) => paceOf(context, 'down', event) },
          ],
          on: {
            'check.failed': {},
            // Of connections that it had before.
            'traffic.failed': {},
            'check.passed': [{ guard: 'firstIsEnoughToRise', target: 'up' }, { target: 'goingUp' }],
            'checker.resume': {},
          },
        },
        goingUp: {
          entry: ['countOne', { type: 'tell', params: ({ context, event }) => paceOf(context, 'fast', event) }],
          on: {
            'check.failed': { target: 'down' },
            'traffic.failed': [{ guard: 'onlyHurries' }, { target: 'down' }],
            'check.passed': [{ guard: 'isLastOfRise', target: 'up' }, { actions: 'countMore' }],
            'checker.resume': {},
          },
        },
        offDuty: {
          entry: [
            'resetCount',
            takeView(null),
            { type: 'tell', params: ({ context }) => toChecker(context, { type: 'checker.pause' }) },
          ],
          always: { guard: 'isNeeded', target: 'unchecked' },
          on: {
            // The probe that was under way when it went off duty.
            'check.passed': {},
            'check.failed': {},
            'traffic.failed': {},
            'checker.resume': {},
          },
        },
        paused: {
          entry: [
            'resetCount',
            takeView(null),
            { type: 'tell', params: ({ context }) => toChecker(context, { type: 'checker.pause' }) },
          ],
          on: {
            'check.passed': {},
            'check.failed': {},
            'traffic.failed': {},
            'checker.pause': {},
            'checker.resume': [{ guard: 'isRelieved', target: 'offDuty' }, { target: 'unchecked' }],
          },
        },
      },
    },
    verdict: {
      initial: 'unknown',
      states: {
        unknown: {
          always: [
            // In maintenance the server has no health, whatever others say.
            { guard: and([not(stateIn({ own: 'paused' })), 'mostSayUp']), target: 'up' },
            { guard: and([not(stateIn({ own: 'paused' })), 'mostSayDown']), target: 'down' },
            // There is no verdict yet that could stay: the better one.
            { guard: and([not(stateIn({ own: 'paused' })), 'isTie']), target: 'up' },
          ],
        },
        up: {
          entry: { type: 'tell', params: ({ context, event }) => toServer(context, event, 'up') },
          always: [
            { guard: stateIn({ own: 'paused' }), target: 'unknown' },
            { guard: 'mostSayDown', target: 'down' },
          ],
        },
        down: {
          entry: { type: 'tell', params: ({ context, event }) => toServer(context, event, 'down') },
          always: [
            { guard: stateIn({ own: 'paused' }), target: 'unknown' },
            { guard: 'mostSayUp', target: 'up' },
          ],
        },
      },
    },
  },
});
