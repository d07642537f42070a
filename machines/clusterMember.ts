/**
 * Another node of the cluster, as this one sees it by its heartbeats. Silence makes it `suspect`, longer silence `gone`,
 * a goodbye `gone` at once, and one heartbeat `alive` again.
 *
 * Silence is told from deafness first: before a silence counts, the host looks whether something has arrived meanwhile,
 * and says for how long it could have heard anything at all. The actor of this node's own name exists only while
 * somebody else uses that name.
 *
 * `alive` is tagged `routine`: heartbeats that say nothing new are a steady observation, which the journal writes as one
 * run.
 */
import { setup } from 'xstate';

/** Whether a node is what it was a moment ago is told by these: the journal's identity, and its boot. */
export type MemberIdentity = { version: string; epoch: number; journal: string };

export type MemberSettings = { suspectAfterMs: number; goneAfterMs: number };

export type MemberInput = { node: string; identity: MemberIdentity; settings: MemberSettings };

export type MemberReasonCode = 'heard' | 'restarted' | 'replaced' | 'silent' | 'busAway' | 'left';

/** Why it is in its state, with the evidence of that moment. */
export type MemberReason = {
  code: MemberReasonCode;
  /** Time since its last heartbeat, and how late this node's own loop was. */
  silentMs?: number;
  lateMs?: number;
  /** Why the bus is away, in words. */
  detail?: string;
};

export type MemberContext = MemberInput & {
  /** Another node that uses the same name at the same time. */
  rival: MemberIdentity | null;
  /** The one respite that a late loop, or a bus that is only just back, gets was given. */
  graceGiven: boolean;
  reason: MemberReason;
};

export type MemberEvent =
  | ({ type: 'heartbeat' } & MemberIdentity)
  /** Its last word: it stops in order. */
  | ({ type: 'member.left' } & MemberIdentity)
  | { type: 'silence.elapsed' }
  | { type: 'rival.silent' }
  /** The bus is back: whoever is there is heard soon. */
  | { type: 'bus.joined' }
  /**
   * What has arrived meanwhile is delivered. `hearingMs`: for how long the bus has been joined without a break, null
   * while it is away; `detail` says why it is.
   */
  | { type: 'looked'; silentMs: number; lateMs: number; hearingMs: number | null; detail: string };

const defaultInput: MemberInput = {
  node: '',
  identity: { version: '', epoch: 0, journal: '' },
  settings: { suspectAfterMs: 3_000, goneAfterMs: 10_000 },
};

/** A loop that is later than half a heartbeat may have its heartbeats waiting behind the same lateness. */
const LATE_MS = 500;

type Heard = Extract<MemberEvent, { type: 'heartbeat' | 'member.left' }>;

const isHeard = (event: MemberEvent): event is Heard => event.type === 'heartbeat' || event.type === 'member.left';

const identityOf = ({ version, epoch, journal }: MemberIdentity): MemberIdentity => ({ version, epoch, journal });

const isSame = (a: MemberIdentity, b: MemberIdentity): boolean =>
  a.journal === b.journal && a.epoch === b.epoch && a.version === b.version;

/** Another journal, or an earlier boot of the same one: it can't be what this node has become. */
const isOther = ({ identity }: MemberContext, event: Heard): boolean =>
  event.journal !== identity.journal || event.epoch < identity.epoch;

const base = setup({
  types: {
    context: {} as MemberContext,
    events: {} as MemberEvent,
    input: {} as MemberInput,
    tags: {} as 'routine',
  },
  actions: {
    /** Effect: take what has arrived on the bus meanwhile, then answer `looked`. */
    look: () => {},
  },
  guards: {
    isSame: ({ context, event }) => isHeard(event) && isSame(context.identity, event),
    isRival: ({ context, event }) => isHeard(event) && isOther(context, event),
    isKnownRival: ({ context, event }) => isHeard(event) && context.rival !== null && isSame(context.rival, event),
    hasRival: ({ context }) => context.rival !== null,
    wasBusAway: ({ context }) => context.reason.code === 'busAway',
    isBusAway: ({ event }) => event.type === 'looked' && event.hearingMs === null,
    /** Its heartbeats may not have had the time to arrive. */
    deservesGrace: ({ context, event }) =>
      event.type === 'looked' &&
      !context.graceGiven &&
      event.hearingMs !== null &&
      (event.lateMs > LATE_MS || event.hearingMs < context.settings.suspectAfterMs),
  },
  delays: {
    suspectAfter: ({ context }) => context.settings.suspectAfterMs,
    /** From suspect on. */
    goneAfter: ({ context }) => Math.max(0, context.settings.goneAfterMs - context.settings.suspectAfterMs),
  },
});

const because = (code: MemberReasonCode) =>
  base.assign({
    reason: ({ event }) => {
      if (event.type !== 'looked') return { code };
      const { silentMs, lateMs, detail } = event;
      return { code, silentMs, lateMs, ...(detail === '' ? {} : { detail }) };
    },
  });

export const clusterMember = base
  .extend({
    actions: {
      restartSilence: base.raise({ type: 'silence.elapsed' }, { id: 'silence', delay: 'suspectAfter' }),
      awaitGone: base.raise({ type: 'silence.elapsed' }, { id: 'silence', delay: 'goneAfter' }),
      restartRivalSilence: base.raise({ type: 'rival.silent' }, { id: 'rivalSilence', delay: 'suspectAfter' }),
      /** It was started anew, or upgraded; touches nothing when it is what is known (steady). */
      takeIdentity: base.enqueueActions(({ context, event, enqueue }) => {
        if (!isHeard(event)) return;
        if (!isSame(context.identity, event)) enqueue.assign({ identity: identityOf(event) });
        if (context.graceGiven) enqueue.assign({ graceGiven: false });
      }),
      noteRival: base.assign({ rival: ({ event }) => (isHeard(event) ? identityOf(event) : null) }),
      forgetRival: base.enqueueActions(({ context, enqueue }) => {
        enqueue.cancel('rivalSilence');
        if (context.rival) enqueue.assign({ rival: null });
      }),
      /** The one that was known has gone, and the other one stays: the name is its now. */
      takeRival: base.enqueueActions(({ context, enqueue }) => {
        enqueue.cancel('rivalSilence');
        if (context.rival) enqueue.assign({ identity: context.rival, rival: null, graceGiven: false });
      }),
    },
  })
  .createMachine({
    id: 'clusterMember',
    context: ({ input }) => ({
      ...(input ?? defaultInput),
      rival: null,
      graceGiven: false,
      reason: { code: 'heard' },
    }),
    initial: 'alive',
    on: {
      'rival.silent': { actions: 'forgetRival' },
      // Of a look that a heartbeat has ended meanwhile.
      looked: {},
      'bus.joined': {},
      'silence.elapsed': {},
    },
    states: {
      alive: {
        entry: 'restartSilence',
        initial: 'listening',
        on: {
          heartbeat: [
            { guard: 'isSame', target: '.listening', actions: ['takeIdentity', 'restartSilence'] },
            { guard: 'isKnownRival', actions: 'restartRivalSilence' },
            { guard: 'isRival', actions: ['noteRival', 'restartRivalSilence'] },
            {
              target: '.listening',
              actions: ['takeIdentity', because('restarted'), 'restartSilence'],
            },
          ],
          'member.left': [
            { guard: 'isKnownRival', actions: 'forgetRival' },
            // A third one, that says goodbye before it was noticed.
            { guard: 'isRival' },
            { guard: 'hasRival', actions: ['takeRival', because('replaced'), 'restartSilence'] },
            { target: 'gone', actions: because('left') },
          ],
        },
        states: {
          listening: {
            tags: 'routine',
            on: { 'silence.elapsed': { target: 'looking' } },
          },
          /** Nothing was heard in time; what has arrived meanwhile is heard before that counts. */
          looking: {
            tags: 'routine',
            entry: 'look',
            on: {
              looked: [
                {
                  guard: 'hasRival',
                  target: 'listening',
                  actions: ['takeRival', because('replaced'), 'restartSilence'],
                },
                {
                  guard: 'deservesGrace',
                  target: 'listening',
                  actions: [base.assign({ graceGiven: true }), 'restartSilence'],
                },
                { guard: 'isBusAway', target: '#clusterMember.suspect', actions: because('busAway') },
                { target: '#clusterMember.suspect', actions: because('silent') },
              ],
            },
          },
        },
      },
      suspect: {
        entry: [base.assign({ graceGiven: false }), 'awaitGone'],
        initial: 'waiting',
        on: {
          'bus.joined': { target: '.waiting', actions: 'awaitGone' },
          heartbeat: { target: 'alive', actions: ['takeIdentity', because('heard')] },
          'member.left': { target: 'gone', actions: because('left') },
        },
        states: {
          waiting: { on: { 'silence.elapsed': { target: 'looking' } } },
          looking: {
            entry: 'look',
            on: {
              looked: [
                {
                  guard: 'deservesGrace',
                  target: 'waiting',
                  actions: [base.assign({ graceGiven: true }), 'restartSilence'],
                },
                { guard: 'isBusAway', target: '#clusterMember.gone', actions: because('busAway') },
                { target: '#clusterMember.gone', actions: because('silent') },
              ],
            },
          },
        },
      },
      gone: {
        entry: [base.cancel('silence'), 'forgetRival'],
        on: {
          heartbeat: { target: 'alive', actions: ['takeIdentity', because('heard')] },
          'member.left': {},
          // Until now nobody could know. From here on its silence is its own.
          'bus.joined': { guard: 'wasBusAway', actions: 'restartSilence' },
          'silence.elapsed': { guard: 'wasBusAway', actions: because('silent') },
        },
      },
    },
  });
