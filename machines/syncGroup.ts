/**
 * Routers that move together (keepalived's vrrp_sync_group): they become master when all of them would be, when one
 * leaves all do, and none takes part before all can. The group has no wish of its own, it follows its members and lets
 * them follow each other.
 */
import { setup } from 'xstate';
import type { Tell } from './tell.ts';

export type SyncGroupInput = { name: string; members: readonly string[] };
export type SyncGroupContext = SyncGroupInput & {
  /** Members that can't take part, for a fault of their own or because they have not begun yet. */
  faulty: readonly string[];
  /** Members that have not been heard of since they began: they follow the group, and not the group them. */
  joining: readonly string[];
  /** Members that would be master, if the others were. */
  willing: readonly string[];
  /** The member whose change moved the group last. */
  moved: string | null;
};

export type SyncGroupEvent =
  | { type: 'member.state'; router: string; state: 'MASTER' | 'BACKUP' | 'FAULT' | 'STOP' }
  | { type: 'member.faults'; router: string; faulty: boolean }
  | { type: 'member.wants'; router: string; wants: boolean }
  | { type: 'settings.changed'; settings: { members: readonly string[] } };

const defaultInput: SyncGroupInput = { name: '', members: [] };

const withMember = (list: readonly string[], member: string) => (list.includes(member) ? list : [...list, member]);
const withoutMember = (list: readonly string[], member: string) => list.filter((other) => other !== member);

const membersAfter = (context: SyncGroupContext, event: SyncGroupEvent): Omit<SyncGroupContext, 'name' | 'moved'> => {
  const { members, faulty, joining, willing } = context;
  if (event.type === 'settings.changed') {
    const { members: named } = event.settings;
    const added = named.filter((member) => !members.includes(member));
    const kept = (list: readonly string[]) => list.filter((member) => named.includes(member));
    return {
      members: named,
      faulty: [...kept(faulty), ...added],
      joining: [...kept(joining), ...added],
      willing: kept(willing),
    };
  }
  const { router } = event;
  const same = { members, faulty, joining, willing };
  if (!members.includes(router)) return same;
  if (event.type === 'member.wants')
    return { ...same, willing: event.wants ? withMember(willing, router) : withoutMember(willing, router) };
  if (event.type === 'member.faults')
    return event.faulty
      ? { ...same, faulty: withMember(faulty, router), joining: withoutMember(joining, router) }
      : { ...same, faulty: withoutMember(faulty, router) };
  // It may begin anew, as after a change of its interface.
  if (event.state === 'STOP')
    return { ...same, faulty: withMember(faulty, router), joining: withMember(joining, router) };
  return { ...same, joining: withoutMember(joining, router) };
};

/** A member of which nothing is known yet is no reason to take service from the others. */
const isFaulty = ({ faulty, joining }: Pick<SyncGroupContext, 'faulty' | 'joining'>): boolean =>
  faulty.some((member) => !joining.includes(member));

const base = setup({
  types: { context: {} as SyncGroupContext, events: {} as SyncGroupEvent, input: {} as SyncGroupInput },
  actions: {
    /** Effect: deliver an event to another actor. */
    tell: (_, _params: Tell) => {},
    /** Effect: tell notify scripts and the pipe. */
    notify: (_, _params: { state: 'MASTER' | 'BACKUP' | 'FAULT'; router: string | null }) => {},
  },
  guards: {
    isMaster: ({ event }) => event.type === 'member.state' && event.state === 'MASTER',
    isBackup: ({ event }) => event.type === 'member.state' && event.state === 'BACKUP',
    isJoining: ({ context, event }) =>
      event.type === 'member.state' && event.state === 'BACKUP' && context.joining.includes(event.router),
    isFaulty: ({ context }) => isFaulty(context),
    isUnanimous: ({ context: { members, willing } }) => members.every((member) => willing.includes(member)),
    wants: ({ event }) => event.type === 'member.wants' && event.wants,
  },
});

const tellState = (state: 'MASTER' | 'BACKUP' | 'FAULT') =>
  base.enqueueActions(({ context, enqueue }) => {
    enqueue({ type: 'notify', params: { state, router: context.moved } });
  });

/** Lets the others do what one has done. */
const moveOthers = (type: 'group.master' | 'group.backup') =>
  base.enqueueActions(({ context, event, enqueue }) => {
    if (event.type !== 'member.state') return;
    const { router } = event;
    enqueue.assign({ ...membersAfter(context, event), moved: router });
    for (const to of context.members)
      if (to !== router) enqueue({ type: 'tell', params: { to, event: { type, router } as Tell['event'] } });
  });

export const syncGroup = base
  .extend({
    actions: {
      count: base.enqueueActions(({ context, event, enqueue }) => {
        const after = membersAfter(context, event);
        enqueue.assign(after);
        if (after.faulty.length === 0) {
          if (event.type === 'member.state' || event.type === 'member.wants') return;
          for (const to of after.members) enqueue({ type: 'tell', params: { to, event: { type: 'group.cleared' } } });
        } else if (event.type === 'member.wants') {
          return;
        } else if (event.type === 'member.faults' ? event.faulty : isFaulty(after) && !isFaulty(context)) {
          // One that was never fit says so by its state.
          const router = event.type === 'settings.changed' ? null : event.router;
          if (router === null) return;
          enqueue.assign({ moved: router });
          for (const to of after.members)
            if (to !== router)
              enqueue({ type: 'tell', params: { to, event: { type: 'group.fault', router } as Tell['event'] } });
        }
      }),
      /** All would be master: now they are. */
      moveAll: base.enqueueActions(({ context, event, enqueue }) => {
        // Of a reload that took out the last one that was not willing, it is nobody's.
        const router = 'router' in event ? event.router : null;
        enqueue.assign({ moved: router, willing: [] });
        const told = { type: 'group.master', router } as Tell['event'];
        for (const to of context.members) enqueue({ type: 'tell', params: { to, event: told } });
      }),
      /** One that begins while the others are master joins them. */
      callIn: base.enqueueActions(({ context, event, enqueue }) => {
        if (event.type !== 'member.state' && event.type !== 'member.wants') return;
        enqueue.assign(membersAfter(context, event));
        const told = { type: 'group.master', router: context.moved } as Tell['event'];
        enqueue({ type: 'tell', params: { to: event.router, event: told } });
      }),
    },
  })
  .createMachine({
    id: 'syncGroup',
    // Until a member has said that it can take part, it can't.
    context: ({ input }) => {
      const { name, members } = input ?? defaultInput;
      return { name, members, faulty: [...members], joining: [...members], willing: [], moved: null };
    },
    initial: 'initialize',
    on: {
      'member.faults': { actions: 'count' },
      'settings.changed': { actions: 'count' },
      'member.state': { actions: 'count' },
      'member.wants': { actions: 'count' },
    },
    states: {
      initialize: {
        always: { guard: 'isFaulty', target: 'fault' },
        on: {
          'member.state': [
            { guard: 'isMaster', target: 'master', actions: moveOthers('group.master') },
            { guard: 'isBackup', target: 'backup', actions: 'count' },
            { actions: 'count' },
          ],
        },
      },
      backup: {
        entry: tellState('BACKUP'),
        always: [
          { guard: 'isFaulty', target: 'fault' },
          { guard: 'isUnanimous', target: 'master', actions: 'moveAll' },
        ],
        on: {
          'member.state': [
            { guard: 'isMaster', target: 'master', actions: moveOthers('group.master') },
            { actions: 'count' },
          ],
        },
      },
      master: {
        entry: tellState('MASTER'),
        always: { guard: 'isFaulty', target: 'fault' },
        on: {
          'member.wants': [{ guard: 'wants', actions: 'callIn' }, { actions: 'count' }],
          'member.state': [
            { guard: 'isJoining', actions: 'callIn' },
            { guard: 'isBackup', target: 'backup', actions: moveOthers('group.backup') },
            { actions: 'count' },
          ],
        },
      },
      fault: {
        entry: tellState('FAULT'),
        on: {
          'member.state': [
            { guard: 'isMaster', target: 'master', actions: moveOthers('group.master') },
            { guard: 'isBackup', target: 'backup', actions: 'count' },
            { actions: 'count' },
          ],
        },
      },
    },
  });
