/**
 * A change of what the cluster shares, on the node that was asked for it: checked on every node that is here before
 * anything is stored, then applied on one node after another, those that are master of nothing first. It stops at the
 * first node that fails, so that the others run what they ran.
 *
 * Hands ask the nodes and hold the text; here it is decided who is next, and whether there is a next.
 */
import { setup } from 'xstate';

/** A node as it was seen just now: of how many routers it is master. */
export type SeenNode = { node: string; masters: number };

export type RolloutContext = {
  /** The revision that is rolled out, or was last; null before the first. */
  revision: number | null;
  /** Nodes whose answer to the check is awaited. */
  checking: readonly string[];
  /** Nodes that have something against it. */
  against: readonly string[];
  /** Nodes that are to apply it. */
  waiting: readonly string[];
  applying: string | null;
  applied: readonly string[];
  /** Nodes that aren't here: they take it when they return. */
  away: readonly string[];
  stopped: { at: string | null; why: string } | null;
};

export type RolloutEvent =
  | {
      type: 'push.asked';
      author: string;
      message: string;
      rollbackOf: number | null;
      nodes: readonly string[];
      away: readonly string[];
      requireAll: boolean;
    }
  /** Somebody wants what is stored to be applied where it isn't yet. */
  | { type: 'resume.asked'; revision: number; nodes: readonly string[]; away: readonly string[] }
  | { type: 'check.answered'; node: string; problems: number }
  | { type: 'check.failed'; node: string; message: string }
  | { type: 'revision.stored'; revision: number }
  | { type: 'store.failed'; code: string; message: string }
  | { type: 'nodes.seen'; nodes: readonly SeenNode[] }
  | { type: 'apply.done'; node: string }
  | { type: 'apply.failed'; node: string; message: string }
  /** Another node has written how far it is: it leads now. */
  | { type: 'lead.lost'; message: string };

const nothing: RolloutContext = {
  revision: null,
  checking: [],
  against: [],
  waiting: [],
  applying: null,
  applied: [],
  away: [],
  stopped: null,
};

const without = (list: readonly string[], node: string) => list.filter((other) => other !== node);

/** Backups first, so that a revision that does harm does it where no traffic is; among equals by name. */
const nextOf = (waiting: readonly string[], nodes: readonly SeenNode[]): string | null =>
  nodes
    .filter(({ node }) => waiting.includes(node))
    .toSorted((a, b) => a.masters - b.masters || (a.node < b.node ? -1 : 1))[0]?.node ?? null;

const base = setup({
  types: { context: {} as RolloutContext, events: {} as RolloutEvent },
  actions: {
    /** Effect: let a node check it; answered by `check.answered` or `check.failed`. */
    check: (_, _params: { node: string }) => {},
    /** Effect: store it as a revision; answered by `revision.stored` or `store.failed`. */
    store: () => {},
    /** Effect: see who is here, and who is master; answered by `nodes.seen`. */
    look: () => {},
    /** Effect: let a node apply it; answered by `apply.done` or `apply.failed`. */
    apply: (_, _params: { node: string; revision: number }) => {},
    /** Effect: store how far it is; answered by `lead.lost` when another node has done so. */
    report: (_, _params: { state: 'applying' | 'done' | 'stopped' }) => {},
    /** Effect: tell whoever waits for the end. */
    end: (_, _params: { outcome: 'refused' | 'notStored' | 'done' | 'stopped' }) => {},
  },
  guards: {
    isShortOfNodes: ({ event }) => event.type === 'push.asked' && event.requireAll && event.away.length > 0,
    isLastAndRight: ({ context, event }) =>
      event.type === 'check.answered' &&
      event.problems === 0 &&
      context.against.length === 0 &&
      without(context.checking, event.node).length === 0,
    isLastCheck: ({ context, event }) =>
      (event.type === 'check.answered' || event.type === 'check.failed') &&
      without(context.checking, event.node).length === 0,
    isNobodyLeft: ({ context, event }) => event.type === 'nodes.seen' && nextOf(context.waiting, event.nodes) === null,
    isApplying: ({ context, event }) =>
      (event.type === 'apply.done' || event.type === 'apply.failed') && event.node === context.applying,
  },
});

const rest = {
  'push.asked': [
    { guard: 'isShortOfNodes', target: 'idle', actions: ['begin', 'refuse'] },
    { target: 'checking', actions: 'begin' },
  ],
  'resume.asked': { target: 'applying', actions: 'resume' },
} as const;

export const rollout = base
  .extend({
    actions: {
      begin: base.enqueueActions(({ event, enqueue }) => {
        if (event.type !== 'push.asked') return;
        const { nodes, away } = event;
        enqueue.assign({ ...nothing, checking: nodes, waiting: nodes, away });
      }),
      resume: base.enqueueActions(({ event, enqueue }) => {
        if (event.type !== 'resume.asked') return;
        const { revision, nodes, away } = event;
        enqueue.assign({ ...nothing, revision, waiting: nodes, away });
      }),
      checkAll: base.enqueueActions(({ context, enqueue }) => {
        for (const node of context.checking) enqueue({ type: 'check', params: { node } });
      }),
      countCheck: base.enqueueActions(({ context, event, enqueue }) => {
        if (event.type !== 'check.answered' && event.type !== 'check.failed') return;
        const isAgainst = event.type === 'check.failed' || event.problems > 0;
        enqueue.assign({
          checking: without(context.checking, event.node),
          against: isAgainst ? [...context.against, event.node] : context.against,
        });
      }),
      refuse: base.enqueueActions(({ enqueue }) => enqueue({ type: 'end', params: { outcome: 'refused' } })),
      notStored: base.enqueueActions(({ enqueue }) => enqueue({ type: 'end', params: { outcome: 'notStored' } })),
      takeRevision: base.assign({
        revision: ({ context, event }) => (event.type === 'revision.stored' ? event.revision : context.revision),
      }),
      tellNext: base.enqueueActions(({ context, event, enqueue }) => {
        if (event.type !== 'nodes.seen') return;
        const node = nextOf(context.waiting, event.nodes)!;
        enqueue.assign({ applying: node });
        enqueue({ type: 'report', params: { state: 'applying' } });
        enqueue({ type: 'apply', params: { node, revision: context.revision! } });
      }),
      countApplied: base.assign({
        applying: null,
        waiting: ({ context, event }) =>
          event.type === 'apply.done' ? without(context.waiting, event.node) : context.waiting,
        applied: ({ context, event }) =>
          event.type === 'apply.done' ? [...context.applied, event.node] : context.applied,
      }),
      /** Who has gone meanwhile takes it when it returns. */
      leaveOut: base.assign({
        waiting: [],
        away: ({ context }) => [...context.away, ...context.waiting],
      }),
      stopAt: base.assign({
        applying: null,
        stopped: ({ event }) =>
          event.type === 'apply.failed'
            ? { at: event.node, why: event.message }
            : { at: null, why: event.type === 'lead.lost' ? event.message : '' },
      }),
      done: base.enqueueActions(({ enqueue }) => {
        enqueue({ type: 'report', params: { state: 'done' } });
        enqueue({ type: 'end', params: { outcome: 'done' } });
      }),
      reportStopped: base.enqueueActions(({ enqueue }) => enqueue({ type: 'report', params: { state: 'stopped' } })),
      endStopped: base.enqueueActions(({ enqueue }) => enqueue({ type: 'end', params: { outcome: 'stopped' } })),
    },
  })
  .createMachine({
    id: 'rollout',
    context: () => nothing,
    initial: 'idle',
    states: {
      idle: { on: rest },
      checking: {
        entry: 'checkAll',
        on: {
          'check.answered': [
            { guard: 'isLastAndRight', target: 'storing', actions: 'countCheck' },
            { guard: 'isLastCheck', target: 'idle', actions: ['countCheck', 'refuse'] },
            { actions: 'countCheck' },
          ],
          'check.failed': [
            { guard: 'isLastCheck', target: 'idle', actions: ['countCheck', 'refuse'] },
            { actions: 'countCheck' },
          ],
        },
      },
      storing: {
        entry: 'store',
        on: {
          'revision.stored': { target: 'applying', actions: 'takeRevision' },
          'store.failed': { target: 'idle', actions: 'notStored' },
        },
      },
      applying: {
        entry: 'look',
        on: {
          'nodes.seen': [{ guard: 'isNobodyLeft', target: 'done', actions: 'leaveOut' }, { actions: 'tellNext' }],
          // Masters move: it is looked again before each step.
          'apply.done': { guard: 'isApplying', actions: ['countApplied', 'look'] },
          'apply.failed': {
            guard: 'isApplying',
            target: 'stopped',
            actions: ['stopAt', 'reportStopped', 'endStopped'],
          },
          'lead.lost': { target: 'stopped', actions: ['stopAt', 'endStopped'] },
        },
      },
      done: { entry: 'done', on: rest },
      stopped: { on: rest },
    },
  });
