/**
 * Something that a router's priority or fitness depends on: an interface, a script, a process, a file, a pool, the node's
 * own sight of its servers. It is
 * told what was seen, and decides with rise and fall (keepalived's) whether that counts.
 *
 * Some things are looked at (`intervalMs` > 0): it asks, is answered, and asks again. Others tell by themselves.
 */
import { assign, setup } from 'xstate';
import type { Tell } from './tell.ts';

export type TrackerKind = 'interface' | 'script' | 'process' | 'file' | 'pool' | 'sight';

export type TrackerSettings = {
  kind: TrackerKind;
  /** Of a pool and of the sight: the actor that is asked. */
  subject: string;
  /** From the end of one look to the start of the next; 0: it is not looked at, it tells by itself. */
  intervalMs: number;
  rise: number;
  fall: number;
  /** Routers that want to know. */
  routers: readonly string[];
};

export type TrackerInput = { id: string; settings: TrackerSettings };

export type TrackerContext = TrackerInput & {
  /** Observations in a row against the present state. */
  count: number;
  /** The number in a tracked file. */
  value: number | null;
  message: string;
};

export type TrackerEvent =
  | { type: 'observed'; ok: boolean; value: number | null; code: string; message: string; durationMs: number }
  | { type: 'period.elapsed' }
  | { type: 'tracker.asked'; router: string }
  | { type: 'settings.changed'; settings: TrackerSettings };

const defaultInput: TrackerInput = {
  id: '',
  settings: { kind: 'interface', subject: '', intervalMs: 0, rise: 1, fall: 1, routers: [] },
};

const isOk = (event: TrackerEvent): boolean => event.type === 'observed' && event.ok;
const isNotOk = (event: TrackerEvent): boolean => event.type === 'observed' && !event.ok;

const base = setup({
  types: {
    context: {} as TrackerContext,
    events: {} as TrackerEvent,
    input: {} as TrackerInput,
    tags: {} as 'routine',
  },
  actions: {
    /** Effect: deliver an event to another actor. */
    tell: (_, _params: Tell) => {},
    /** Effect: look at it; answered by one `observed`, and where it tells by itself by one at each change. */
    observe: (_, _params: { kind: TrackerKind }) => {},
  },
  guards: {
    isOk: ({ event }) => isOk(event),
    firstIsEnoughToFall: ({ context, event }) => isNotOk(event) && context.settings.fall <= 1,
    firstIsEnoughToRise: ({ context, event }) => isOk(event) && context.settings.rise <= 1,
    isLastOfFall: ({ context, event }) => isNotOk(event) && context.count + 1 >= context.settings.fall,
    isLastOfRise: ({ context, event }) => isOk(event) && context.count + 1 >= context.settings.rise,
  },
  delays: { period: ({ context }) => context.settings.intervalMs },
});

export const tracker = base
  .extend({
    actions: {
      look: base.enqueueActions(({ context, enqueue }) => {
        const { kind, subject } = context.settings;
        if (kind === 'pool' || kind === 'sight') {
          const event = { type: `${kind}.asked`, tracker: context.id } as Tell['event'];
          enqueue({ type: 'tell', params: { to: subject, event } });
        } else enqueue({ type: 'observe', params: { kind } });
      }),
      /** What was seen, where it is news: context holds only what decides. */
      take: base.enqueueActions(({ context, event, enqueue }) => {
        if (event.type !== 'observed') return;
        const { value, message } = event;
        if (value === context.value && message === context.message) return;
        enqueue.assign({ value, message });
      }),
      /** Another number in the file, or other words for the same state. */
      tellNews: base.enqueueActions(({ context, event, enqueue }) => {
        if (event.type !== 'observed' || (event.value === context.value && event.message === context.message)) return;
        const { value, message } = event;
        for (const to of context.settings.routers)
          enqueue({ type: 'tell', params: { to, event: told({ ...context, value, message }, true) } });
      }),
      scheduleLook: base.enqueueActions(({ context, event, enqueue }) => {
        if (event.type === 'observed' && context.settings.intervalMs > 0)
          enqueue.raise({ type: 'period.elapsed' }, { id: 'period', delay: 'period' });
      }),
      resetCount: base.assign({ count: 0 }),
      countOne: base.assign({ count: 1 }),
      countMore: base.assign({ count: ({ context }) => context.count + 1 }),
      tellUp: base.enqueueActions(({ context, enqueue }) => {
        for (const to of context.settings.routers)
          enqueue({ type: 'tell', params: { to, event: told(context, true) } });
      }),
      tellDown: base.enqueueActions(({ context, enqueue }) => {
        for (const to of context.settings.routers)
          enqueue({ type: 'tell', params: { to, event: told(context, false) } });
      }),
      answerUp: base.enqueueActions(({ context, event, enqueue }) => {
        if (event.type === 'tracker.asked')
          enqueue({ type: 'tell', params: { to: event.router, event: told(context, true) } });
      }),
      answerDown: base.enqueueActions(({ context, event, enqueue }) => {
        if (event.type === 'tracker.asked')
          enqueue({ type: 'tell', params: { to: event.router, event: told(context, false) } });
      }),
    },
  })
  .createMachine({
    id: 'tracker',
    context: ({ input }) => ({ ...(input ?? defaultInput), count: 0, value: null, message: '' }),
    // As keepalived has it: good until it is seen to be bad.
    initial: 'up',
    entry: 'look',
    on: {
      'period.elapsed': { actions: 'look' },
      // Whoever is asked about may be another one now, and whoever wants to know has to be told.
      'settings.changed': {
        actions: [assign({ settings: ({ event }) => event.settings }), base.cancel('period'), 'look'],
      },
    },
    states: {
      up: {
        tags: 'routine',
        entry: 'resetCount',
        on: {
          'tracker.asked': { actions: 'answerUp' },
          observed: [
            { guard: 'isOk', actions: ['tellNews', 'take', 'scheduleLook'] },
            { guard: 'firstIsEnoughToFall', target: 'down', actions: ['take', 'scheduleLook', 'tellDown'] },
            { target: 'goingDown', actions: ['take', 'scheduleLook'] },
          ],
        },
      },
      goingDown: {
        tags: 'routine',
        entry: 'countOne',
        on: {
          'tracker.asked': { actions: 'answerUp' },
          observed: [
            { guard: 'isOk', target: 'up', actions: ['tellNews', 'take', 'scheduleLook'] },
            { guard: 'isLastOfFall', target: 'down', actions: ['take', 'scheduleLook', 'tellDown'] },
            { actions: ['take', 'countMore', 'scheduleLook'] },
          ],
        },
      },
      down: {
        tags: 'routine',
        entry: 'resetCount',
        on: {
          'tracker.asked': { actions: 'answerDown' },
          observed: [
            { guard: 'firstIsEnoughToRise', target: 'up', actions: ['take', 'scheduleLook', 'tellUp'] },
            { guard: 'isOk', target: 'goingUp', actions: ['take', 'scheduleLook'] },
            { actions: ['take', 'scheduleLook'] },
          ],
        },
      },
      goingUp: {
        tags: 'routine',
        entry: 'countOne',
        on: {
          'tracker.asked': { actions: 'answerDown' },
          observed: [
            { guard: 'isLastOfRise', target: 'up', actions: ['take', 'scheduleLook', 'tellUp'] },
            { guard: 'isOk', actions: ['take', 'countMore', 'scheduleLook'] },
            { target: 'down', actions: ['take', 'scheduleLook'] },
          ],
        },
      },
    },
  });

const told = (context: TrackerContext, up: boolean): Tell['event'] =>
  ({
    type: 'tracker.changed',
    tracker: context.id,
    up,
    value: context.value,
    message: context.message,
  }) as Tell['event'];
