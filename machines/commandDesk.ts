/**
 * What operators want of this node's servers and routers, as the cluster's command stream and this node's own operators
 * say: each command is applied once, the newest word wins on every node alike, whatever order they arrive in.
 *
 * Two books are kept. `cluster` is what the stream has said. `here` is what was given to this node alone: a `--local`
 * command, which is a deliberate difference while the stream is followed, and waits to be told to the cluster
 * (`pending`) when it was given while the stream could not be reached.
 *
 * A server's words are kept apart: the newest `ready`, `drain`, `maintenance` and `weight` each, as `drain` doesn't end
 * maintenance and only `ready` does. From their times alone follows what the server should be (`adminOf`), so that a
 * word that comes late leads to the same end as one that comes in time.
 */
import { setup } from 'xstate';
import type { Tell } from './tell.ts';

/** The desk's name; a node has one. */
export const COMMANDS_ACTOR = 'commands';

export type ServerWord = 'ready' | 'drain' | 'maintenance';

export type OperatorCommand =
  | { type: `server.${ServerWord}`; pool: string; server: string }
  | { type: 'server.weight'; pool: string; server: string; weight: number }
  | { type: 'router.demote' | 'router.promote'; router: string };

export type DeskCommand = OperatorCommand | { type: 'reload' };

/** Of one command: its own id, the node that took it from the operator, and when, by that node's clock. */
export type Given = { id: string; by: string; atUs: number };

export type Intent = Given & {
  type: OperatorCommand['type'];
  weight?: number;
  /** The actor was not there yet. */
  due?: true;
  /** Given here while the stream could not be reached, and to be told to the cluster. */
  pending?: true;
  /** The stream was lost, and the one in its place has not said it. */
  missing?: true;
};

/** What was said of one actor last; a router has one word only. */
export type Words = Partial<Record<ServerWord | 'weight' | 'priority', Intent>>;

/** By actor id. */
export type Book = Readonly<Record<string, Words>>;

/** A command as it stands in the stream; `node` is null for all nodes. */
export type StreamCommand = Given & { node: string | null; command: DeskCommand };

type KnownIntents = {
  /** Tells a stream from one that was made anew under the same name; null before the first was seen. */
  stream: string | null;
  /** Place in the stream of the last command that was looked at. */
  sequence: number;
  cluster: Book;
  here: Book;
  /** The newest `reload`. */
  reloaded: Given | null;
};

export type CommandDeskInput = {
  node: string;
  /** When this node read its configuration: an older `reload` asks for nothing more. */
  startedUs: number;
  /** What it knew when it last ran. Servers and routers have got back what they were told then. */
  known?: KnownIntents;
};

export type CommandDeskContext = Omit<CommandDeskInput, 'known'> & KnownIntents;

export type Refusal = { code: string; message: string };

/** The actors that a command is for, the one that it names first; `running` when all of them are there. */
export type Addressed = { actors: readonly string[]; running: boolean; refusal: Refusal | null };

export type CommandDeskEvent =
  /** The stream is there, and its commands come from this place on. */
  | { type: 'stream.found'; stream: string; from: number }
  /** All commands that it had when it was found have been told. */
  | { type: 'stream.caughtUp' }
  | { type: 'stream.lost'; code: string; message: string }
  | ({ type: 'command.received'; stream: string; sequence: number } & StreamCommand & Addressed)
  /** A place in the stream that this version can't read. */
  | { type: 'command.unreadable'; stream: string; sequence: number }
  /** For this node alone, which has all of these. */
  | { type: 'command.local'; id: string; atUs: number; command: OperatorCommand; actors: readonly string[] }
  /** An actor that was not there has been started. */
  | { type: 'target.appeared'; actor: string }
  | { type: 'publish.failed'; code: string; message: string }
  | { type: 'publish.again' };

export type AnswerParams = {
  id: string;
  /** The actor that the command names. */
  actor: string;
} & (
  | { outcome: 'applied' }
  /** It is only for this node, and the others are told later or never. */
  | { outcome: 'appliedHere'; pending: boolean }
  | { outcome: 'stale'; newer: Given & { type: string } }
  /** A reload, and the file was read after it was asked for. */
  | { outcome: 'needless' }
  | ({ outcome: 'refused' } & Refusal)
);

/** Actors in a book: more than a node has servers. Beyond it the one whose last word is the oldest is forgotten. */
const MAX_ACTORS = 20_000;

const defaultInput: CommandDeskInput = { node: '', startedUs: 0 };

const nothingKnown: KnownIntents = { stream: null, sequence: 0, cluster: {}, here: {}, reloaded: null };

const SERVER_WORDS: readonly ServerWord[] = ['maintenance', 'drain', 'ready'];

type Slot = keyof Words;

const slotOf = (type: OperatorCommand['type']): Slot =>
  type.startsWith('router.') ? 'priority' : (type.slice('server.'.length) as Slot);

/** Two commands of the same microsecond are in the order of their ids, which is the same on every node. */
const isNewer = (a: Given, b: Given | undefined): boolean =>
  b === undefined || a.atUs > b.atUs || (a.atUs === b.atUs && a.id > b.id);

const newest = (...intents: (Intent | undefined)[]): Intent | undefined => {
  let found: Intent | undefined;
  for (const intent of intents) if (intent && isNewer(intent, found)) found = intent;
  return found;
};

/** The newest of each word that either has. */
const together = (a: Words = {}, b: Words = {}): Words => {
  const both: Words = { ...a };
  for (const [slot, intent] of Object.entries(b) as [Slot, Intent][])
    if (isNewer(intent, both[slot])) both[slot] = intent;
  return both;
};

/** What a server is by the words about it: `ready` ends drain and maintenance, and drain doesn't end maintenance. */
export const adminOf = ({ ready, drain, maintenance }: Words): ServerWord => {
  if (maintenance && isNewer(maintenance, ready)) return 'maintenance';
  if (drain && isNewer(drain, ready)) return 'drain';
  return 'ready';
};

export const wordsOf = ({ cluster, here }: Pick<KnownIntents, 'cluster' | 'here'>, actor: string): Words =>
  together(cluster[actor], here[actor]);

/** A new word about an actor has to be newer than all that is known, whatever the clocks of nodes say. */
export const timeAfter = (books: Pick<KnownIntents, 'cluster' | 'here'>, actors: readonly string[], atUs: number) => {
  let after = atUs;
  for (const actor of actors)
    for (const intent of Object.values(wordsOf(books, actor))) after = Math.max(after, intent.atUs + 1);
  return after;
};

const withIntent = (book: Book, actor: string, intent: Intent): Book => {
  const words = { ...book[actor], [slotOf(intent.type)]: intent };
  const changed = { ...book, [actor]: words };
  if (book[actor] !== undefined || Object.keys(changed).length <= MAX_ACTORS) return changed;
  const lastUs = (known: Words) => newest(...Object.values(known))?.atUs ?? 0;
  const oldest = Object.keys(changed).reduce((a, b) => (lastUs(changed[b]!) < lastUs(changed[a]!) ? b : a));
  const { [oldest]: _forgotten, ...kept } = changed;
  return kept;
};

const withWords = (book: Book, actor: string, words: Words): Book => {
  if (Object.keys(words).length > 0) return { ...book, [actor]: words };
  const { [actor]: _none, ...rest } = book;
  return rest;
};

/** Of what was given here, what the cluster's words have not overtaken. */
const stillOwn = (own: Words, cluster: Words): Words =>
  Object.fromEntries(
    (Object.entries(own) as [Slot, Intent][]).filter(([slot, intent]) => {
      const ended = slot === 'drain' || slot === 'maintenance' ? cluster.ready : undefined;
      const overtaken = (by: Intent | undefined) => by !== undefined && (by.id === intent.id || isNewer(by, intent));
      return !overtaken(cluster[slot]) && !overtaken(ended);
    }),
  );

const withoutFlag = (intent: Intent, flag: 'due' | 'missing' | 'pending'): Intent => {
  const { [flag]: _gone, ...rest } = intent;
  return rest;
};

/** The operator's word as the actor's machine knows it, with who gave it for whoever asks why. */
const wordFor = (intent: Intent, scope: 'cluster' | 'here'): Tell['event'] => {
  const { type, id, by, atUs, weight } = intent;
  return {
    type: type.replace(/^(server|router)\./, 'operator.'),
    ...(weight === undefined ? {} : { weight }),
    command: { id, by, atUs, scope },
  } as Tell['event'];
};

type Taken = { tells: Intent[]; newer: Intent | null };

/** What an actor has to be told, now that this was said of it; `newer` is what stands over it. */
const consequence = (before: Words, intent: Intent): Taken => {
  const slot = slotOf(intent.type);
  if (slot === 'weight' || slot === 'priority') {
    const known = before[slot];
    return isNewer(intent, known) ? { tells: [intent], newer: null } : { tells: [], newer: known! };
  }
  const last = newest(...SERVER_WORDS.map((word) => before[word]));
  if (isNewer(intent, last)) return { tells: [intent], newer: null };
  if (!isNewer(intent, before[slot])) return { tells: [], newer: before[slot]! };
  // It comes late. What it would have changed in its time it changes now.
  const after = { ...before, [slot]: intent };
  const [was, is] = [adminOf(before), adminOf(after)];
  if (was === is) return { tells: [], newer: last! };
  const endsMaintenance = was === 'maintenance' && is === 'drain';
  return { tells: [...(endsMaintenance ? [after.ready!] : []), after[is] ?? intent], newer: null };
};

const intentOf = ({ id, by, atUs }: Given, command: OperatorCommand): Intent => ({
  id,
  by,
  atUs,
  type: command.type,
  ...(command.type === 'server.weight' ? { weight: command.weight } : {}),
});

const commandOf = (actor: string, { type, weight }: Intent): OperatorCommand => {
  const [, first = '', second = ''] = actor.split('/');
  if (type === 'router.demote' || type === 'router.promote') return { type, router: first };
  if (type === 'server.weight') return { type, pool: first, server: second, weight: weight ?? 0 };
  return { type, pool: first, server: second };
};

/** What the stream lacks, oldest first. Members of a sync group are told by the same command, which is said once. */
export const untoldOf = ({ node, cluster, here }: CommandDeskContext): StreamCommand[] => {
  const commands = new Map<string, StreamCommand>();
  for (const book of [cluster, here])
    for (const [actor, words] of Object.entries(book))
      for (const intent of Object.values(words)) {
        if (!intent.pending && !intent.missing) continue;
        const { id, by, atUs, type } = intent;
        const forNode = type.startsWith('router.') ? node : null;
        commands.set(id, { id, by, atUs, node: forNode, command: commandOf(actor, intent) });
      }
  return [...commands.values()].sort((a, b) => (isNewer(a, b) ? 1 : -1));
};

const isOther = (context: CommandDeskContext, event: { stream: string; from: number }): boolean =>
  event.stream !== context.stream || event.from <= context.sequence;

const allMissing = (book: Book): Book =>
  Object.fromEntries(
    Object.entries(book).map(([actor, words]): [string, Words] => [
      actor,
      Object.fromEntries(Object.entries(words).map(([slot, intent]) => [slot, { ...intent, missing: true as const }])),
    ]),
  );

const base = setup({
  types: {
    context: {} as CommandDeskContext,
    events: {} as CommandDeskEvent,
    input: {} as CommandDeskInput,
  },
  actions: {
    /** Effect: deliver an event to another actor. */
    tell: (_, _params: Tell) => {},
    /** Effect: tell whoever gave the command what became of it here. */
    answer: (_, _params: AnswerParams) => {},
    /** Effect: read the configuration again, and answer with what changed. */
    reload: (_, _params: { id: string }) => {},
    /** Effect: put these into the cluster's stream, in this order; a failure comes back as `publish.failed`. */
    publish: (_, _params: { commands: StreamCommand[] }) => {},
  },
  guards: {
    isNext: ({ context, event }) =>
      (event.type === 'command.received' || event.type === 'command.unreadable') &&
      event.stream === context.stream &&
      event.sequence > context.sequence,
    isOther: ({ context, event }) => event.type === 'stream.found' && isOther(context, event),
  },
  delays: {
    publishAgain: 5_000,
  },
});

/** A command for this node alone; `pending`: it is to be told to the cluster as soon as that can be reached. */
const takeLocal = (isFollowing: boolean) =>
  base.enqueueActions(({ context, event, enqueue }) => {
    if (event.type !== 'command.local') return;
    const { id, command, actors } = event;
    const actor = actors[0] ?? '';
    const atUs = timeAfter(context, actors, event.atUs);
    // A router's word is for its own node in any case: that the stream has it too is no difference between nodes.
    const isOfRouter = command.type.startsWith('router.');
    const isPending = isOfRouter || !isFollowing;
    const given = intentOf({ id, by: context.node, atUs }, command);
    const intent: Intent = isPending ? { ...given, pending: true } : given;
    let { here } = context;
    for (const one of actors) {
      here = withIntent(here, one, intent);
      enqueue({ type: 'tell', params: { to: one, event: wordFor(given, 'here') } });
    }
    enqueue.assign({ here });
    enqueue({ type: 'answer', params: { id, actor, outcome: 'appliedHere', pending: isPending && !isOfRouter } });
    if (isFollowing && isOfRouter) {
      const said: StreamCommand = { id, by: context.node, atUs, node: context.node, command };
      enqueue({ type: 'publish', params: { commands: [said] } });
    }
  });

export const commandDesk = base
  .extend({
    actions: {
      /** Its sequences start anew; what was applied stays, and whatever it says again is told by its time and id. */
      beginStream: base.enqueueActions(({ context, event, enqueue }) => {
        if (event.type !== 'stream.found') return;
        enqueue.assign({ stream: event.stream, sequence: event.from - 1, cluster: allMissing(context.cluster) });
      }),
      skip: base.enqueueActions(({ event, enqueue }) => {
        if (event.type === 'command.unreadable') enqueue.assign({ sequence: event.sequence });
      }),
      receive: base.enqueueActions(({ context, event, enqueue }) => {
        if (event.type !== 'command.received') return;
        const { id, by, atUs, command, sequence, node, actors, running, refusal } = event;
        enqueue.assign({ sequence });
        if (node !== null && node !== context.node) return;
        const actor = actors[0] ?? '';
        if (command.type === 'reload') {
          if (!isNewer({ id, by, atUs }, context.reloaded ?? undefined)) return;
          enqueue.assign({ reloaded: { id, by, atUs } });
          if (atUs > context.startedUs) enqueue({ type: 'reload', params: { id } });
          else enqueue({ type: 'answer', params: { id, actor, outcome: 'needless' } });
          return;
        }
        const intent = intentOf({ id, by, atUs }, command);
        let { cluster, here } = context;
        let newer: Intent | null = null;
        for (const one of actors) {
          const before = wordsOf(context, one);
          const known = before[slotOf(command.type)];
          // Its own word that has come back, or one that is said twice.
          const isKnown = known?.id === id;
          const taken: Taken = isKnown ? { tells: [], newer: null } : consequence(before, intent);
          if (one === actor) ({ newer } = taken);
          const ownDue = isKnown ? known.due === true : !running && taken.newer === null;
          const said: Intent = ownDue ? { ...intent, due: true } : intent;
          const saidBefore = cluster[one]?.[slotOf(command.type)];
          if (saidBefore?.id === id || isNewer(intent, saidBefore)) cluster = withIntent(cluster, one, said);
          const own = here[one];
          if (own) here = withWords(here, one, stillOwn(own, cluster[one] ?? {}));
          if (!running) continue;
          for (const word of taken.tells)
            enqueue({ type: 'tell', params: { to: one, event: wordFor(word, 'cluster') } });
        }
        enqueue.assign({ cluster, here });
        if (refusal) enqueue({ type: 'answer', params: { id, actor, outcome: 'refused', ...refusal } });
        else if (newer) {
          const { type } = newer;
          const last = { id: newer.id, by: newer.by, atUs: newer.atUs, type };
          enqueue({ type: 'answer', params: { id, actor, outcome: 'stale', newer: last } });
        } else enqueue({ type: 'answer', params: { id, actor, outcome: 'applied' } });
      }),
      /** A server gets all that holds for it; a router what it has not been told, as its words depend on what it is. */
      tellAppeared: base.enqueueActions(({ context, event, enqueue }) => {
        if (event.type !== 'target.appeared') return;
        const { actor } = event;
        const words = wordsOf(context, actor);
        const admin = adminOf(words);
        const wanted = actor.startsWith('router/')
          ? [words.priority?.due ? words.priority : undefined]
          : [admin === 'ready' ? undefined : words[admin], words.weight];
        for (const intent of wanted) {
          if (!intent) continue;
          const scope = context.here[actor]?.[slotOf(intent.type)]?.id === intent.id ? 'here' : 'cluster';
          enqueue({ type: 'tell', params: { to: actor, event: wordFor(intent, scope) } });
        }
        const said = context.cluster[actor];
        if (!said || !Object.values(said).some(({ due }) => due)) return;
        const told = Object.entries(said).map(([slot, intent]) => [slot, withoutFlag(intent, 'due')]);
        enqueue.assign({ cluster: { ...context.cluster, [actor]: Object.fromEntries(told) as Words } });
      }),
      publishUntold: base.enqueueActions(({ context, enqueue }) => {
        const commands = untoldOf(context);
        if (commands.length > 0) enqueue({ type: 'publish', params: { commands } });
      }),
      awaitPublishing: base.raise({ type: 'publish.again' }, { id: 'publishAgain', delay: 'publishAgain' }),
      stopPublishing: base.cancel('publishAgain'),
    },
  })
  .createMachine({
    id: 'commandDesk',
    context: ({ input }) => {
      const { node, startedUs, known } = input ?? defaultInput;
      return { node, startedUs, ...(known ?? nothingKnown) };
    },
    // Until the end of the stream has been seen, the cluster may want something that isn't known here.
    initial: 'detached',
    on: {
      'stream.found': [{ guard: 'isOther', target: '.detached', actions: 'beginStream' }],
      'command.received': [{ guard: 'isNext', actions: 'receive' }],
      'command.unreadable': [{ guard: 'isNext', actions: 'skip' }],
      'target.appeared': { actions: 'tellAppeared' },
      'publish.failed': {},
      'publish.again': {},
    },
    states: {
      detached: {
        on: {
          'command.local': { actions: takeLocal(false) },
          'stream.caughtUp': { target: 'following' },
          'stream.lost': {},
        },
      },
      following: {
        entry: 'publishUntold',
        exit: 'stopPublishing',
        on: {
          'command.local': { actions: takeLocal(true) },
          'stream.caughtUp': {},
          'stream.lost': { target: 'detached' },
          'publish.failed': { actions: 'awaitPublishing' },
          'publish.again': { actions: 'publishUntold' },
        },
      },
    },
  });
