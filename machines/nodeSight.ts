/**
 * Whether this node can trust its eyes. A node is blind when none of the servers that it checks is up by its own checks
 * while another node sees some of the very same up: then it is this node's link that is broken, and not the servers. A
 * blind node has no vote on any server, and what tracks its sight (its routers) gives way.
 *
 * It hears counts of all nodes, so that each node knows by itself who is blind. Servers that nobody sees up make nobody
 * blind: those are down.
 */
import { assign, not, setup } from 'xstate';
import type { Tell } from './tell.ts';

/** How many of the servers of which a node has a view are up to it, and to others of those that it sees down. */
export type SightCount = {
  seen: number;
  of: number;
  /** Only of a node that sees none: by node, how many of its servers that one sees up. */
  others?: Readonly<Record<string, number>>;
};

export type SightSettings = {
  /** This node's name. */
  node: string;
  /** Actors that count votes: they have to know whose don't count. */
  voters: readonly string[];
  /** Trackers that want to know whether this node sees anything. */
  watchers: readonly string[];
};

export type NodeSightInput = { settings: SightSettings };

export type NodeSightContext = NodeSightInput & {
  counts: Readonly<Record<string, SightCount>>;
  /** Names, sorted. */
  blind: readonly string[];
};

export type NodeSightEvent =
  /** Some node has begun or ceased to see something, or others have to see what it can't. */
  | { type: 'nodes.counted'; counts: Readonly<Record<string, SightCount>> }
  | { type: 'sight.asked'; tracker: string }
  | { type: 'settings.changed'; settings: SightSettings };

const defaultInput: NodeSightInput = { settings: { node: '', voters: [], watchers: [] } };

const isBlind = ({ seen, of, others = {} }: SightCount): boolean =>
  of > 0 && seen === 0 && Object.values(others).some((count) => count > 0);

/** Names, sorted. */
export const blindOf = (counts: NodeSightContext['counts']): string[] =>
  Object.keys(counts)
    .filter((node) => isBlind(counts[node]!))
    .sort();

const list = (names: string[]): string =>
  names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`;

/** Of a node that is blind: `it saw none of 3 servers while lb2 and lb3 saw 3`. */
export const sightText = ({ of, others = {} }: SightCount): string => {
  const bySeen = new Map<number, string[]>();
  for (const node of Object.keys(others).sort())
    if (others[node]! > 0) bySeen.set(others[node]!, [...(bySeen.get(others[node]!) ?? []), node]);
  const who = [...bySeen].map(([seen, nodes]) => `${list(nodes)} saw ${seen}`);
  return `it saw none of ${of} ${of === 1 ? 'server' : 'servers'} while ${list(who)}`;
};

/** What a tracker of the sight is told. */
const sightOf = ({ counts, blind, settings }: NodeSightContext): Tell['event'] => {
  const ok = !blind.includes(settings.node);
  const message = ok ? '' : sightText(counts[settings.node]!);
  return { type: 'observed', ok, value: null, code: '', message, durationMs: 0 } as Tell['event'];
};

const base = setup({
  types: {
    context: {} as NodeSightContext,
    events: {} as NodeSightEvent,
    input: {} as NodeSightInput,
  },
  actions: {
    /** Effect: deliver an event to another actor. */
    tell: (_, _params: Tell) => {},
  },
  guards: {
    isBlind: ({ context }) => context.blind.includes(context.settings.node),
  },
});

/** Who is blind by the new counts; those that count votes hear of each that has become so, or is no longer. */
const count = base.enqueueActions(({ context, event, enqueue }) => {
  if (event.type !== 'nodes.counted') return;
  const blind = blindOf(event.counts);
  enqueue.assign({ counts: event.counts, blind });
  for (const node of new Set([...context.blind, ...blind])) {
    const isNow = blind.includes(node);
    if (isNow === context.blind.includes(node)) continue;
    const told = { type: 'node.sight', node, blind: isNow } as Tell['event'];
    for (const to of context.settings.voters) enqueue({ type: 'tell', params: { to, event: told } });
  }
});

const tellWatchers = base.enqueueActions(({ context, enqueue }) => {
  for (const to of context.settings.watchers) enqueue({ type: 'tell', params: { to, event: sightOf(context) } });
});

export const nodeSight = base.createMachine({
  id: 'nodeSight',
  context: ({ input }) => ({ ...(input ?? defaultInput), counts: {}, blind: [] }),
  initial: 'seeing',
  on: {
    'nodes.counted': { actions: count },
    'sight.asked': {
      actions: { type: 'tell', params: ({ context, event }) => ({ to: event.tracker, event: sightOf(context) }) },
    },
    // A tracker that is new has asked already; one that now tracks for others is asked by nobody.
    'settings.changed': { actions: assign({ settings: ({ event }) => event.settings }) },
  },
  states: {
    seeing: { always: { guard: 'isBlind', target: 'blind', actions: tellWatchers } },
    blind: { always: { guard: not('isBlind'), target: 'seeing', actions: tellWatchers } },
  },
});
