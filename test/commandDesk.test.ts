/** What becomes of operators' commands to the cluster: once each, in any order the same end, the newest word wins. */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Effect } from '../actors/decide.ts';
import { adminOf, commandDesk, timeAfter, untoldOf, wordsOf } from '../machines/commandDesk.ts';
import type {
  AnswerParams,
  CommandDeskContext,
  CommandDeskEvent,
  CommandDeskInput,
  DeskCommand,
  OperatorCommand,
  StreamCommand,
} from '../machines/commandDesk.ts';
import { delayOf, Stepper, toldTo, typesOf } from './stepper.ts';

const WEB1 = 'server/web/web1';
const GATEWAY = 'router/gateway';
const STREAM = '2026-11-29T09:00:00Z';

type Desk = Stepper<CommandDeskEvent, CommandDeskContext>;
type Word = 'ready' | 'drain' | 'maintenance';

const to = (word: Word, server = 'web1'): OperatorCommand => ({ type: `server.${word}`, pool: 'web', server });
const weightOf = (weight: number): OperatorCommand => ({ type: 'server.weight', pool: 'web', server: 'web1', weight });
const router = (word: 'demote' | 'promote'): OperatorCommand => ({ type: `router.${word}`, router: 'gateway' });

const actorsOf = (command: DeskCommand): string[] => {
  if (command.type === 'reload') return [];
  return 'router' in command ? [GATEWAY] : [`server/${command.pool}/${command.server}`];
};

type Said = Partial<Extract<CommandDeskEvent, { type: 'command.received' }>>;

/** `id` says what and when: `c1` at 1. */
const said = (sequence: number, command: DeskCommand, atUs: number, more: Said = {}): CommandDeskEvent => ({
  type: 'command.received',
  stream: STREAM,
  sequence,
  id: `c${atUs}`,
  by: 'lb2',
  atUs,
  node: null,
  command,
  actors: actorsOf(command),
  running: true,
  refusal: null,
  ...more,
});

const local = (command: OperatorCommand, atUs: number, actors = actorsOf(command)): CommandDeskEvent => ({
  type: 'command.local',
  id: `l${atUs}`,
  atUs,
  command,
  actors,
});

const found = (from = 1, stream = STREAM): CommandDeskEvent => ({ type: 'stream.found', stream, from });
const caughtUp: CommandDeskEvent = { type: 'stream.caughtUp' };
const lost: CommandDeskEvent = { type: 'stream.lost', code: 'NATS_UNREACHABLE', message: 'gone' };

const fresh = (input: Partial<CommandDeskInput> = {}): Desk =>
  new Stepper(commandDesk, { node: 'lb1', startedUs: 0, ...input });
const following = (input: Partial<CommandDeskInput> = {}): Desk => {
  const desk = fresh(input);
  desk.sendAll(found(), caughtUp);
  expect(desk.state).toBe('following');
  return desk;
};

const answerOf = (effects: Effect[]): AnswerParams | null =>
  (effects.find(({ type }) => type === 'answer')?.params as AnswerParams | undefined) ?? null;
const outcomeOf = (effects: Effect[]): string | null => answerOf(effects)?.outcome ?? null;
const toldTypes = (effects: Effect[], actor = WEB1): string[] => toldTo(effects, actor).map(({ type }) => type);
const publishedBy = (effects: Effect[]): StreamCommand[] =>
  effects.flatMap(({ type, params }) => (type === 'publish' ? (params as { commands: StreamCommand[] }).commands : []));

/** What a server is that is told these, by the rules of its own machine. */
const adminAfter = (admin: Word, told: string[]): Word => {
  for (const type of told) {
    const word = type.slice('operator.'.length) as Word;
    if (!(word === 'drain' && admin === 'maintenance')) admin = word;
  }
  return admin;
};

describe('a command from the stream', () => {
  test('is told to its server, with who gave it and when, and answered', () => {
    const desk = following();
    const effects = desk.send(said(1, to('drain'), 10));
    const command = { id: 'c10', by: 'lb2', atUs: 10, scope: 'cluster' };
    expect(toldTo(effects, WEB1)).toEqual([{ type: 'operator.drain', command }]);
    expect(answerOf(effects)).toEqual({ id: 'c10', actor: WEB1, outcome: 'applied' });
    expect(desk.context.sequence).toBe(1);
  });

  test('is applied once: a place that was looked at already changes nothing', () => {
    const desk = following();
    desk.send(said(3, to('drain'), 10));
    const { snapshot } = desk;
    expect(desk.send(said(3, to('drain'), 10))).toEqual([]);
    expect(desk.send(said(2, to('ready'), 20))).toEqual([]);
    expect(desk.snapshot).toBe(snapshot);
  });

  test('that stands in the stream twice is applied once', () => {
    const desk = following();
    desk.send(said(1, router('promote'), 10));
    const effects = desk.send(said(2, router('promote'), 10));
    expect(toldTo(effects, GATEWAY)).toEqual([]);
    expect(outcomeOf(effects)).toBe('applied');
  });

  test('of another stream than the one that was found changes nothing', () => {
    const desk = following();
    expect(desk.send(said(1, to('drain'), 10, { stream: 'another' }))).toEqual([]);
  });

  test('for another node moves the place only', () => {
    const desk = following();
    expect(desk.send(said(1, router('demote'), 10, { node: 'lb3', actors: [] }))).toEqual([]);
    expect(desk.context.sequence).toBe(1);
    expect(desk.context.cluster).toEqual({});
  });

  test('for this node is told to its router, and to those that move together with it', () => {
    const desk = following();
    const actors = [GATEWAY, 'router/inner'];
    const effects = desk.send(said(1, router('demote'), 10, { node: 'lb1', actors }));
    for (const actor of actors) expect(toldTypes(effects, actor)).toEqual(['operator.demote']);
  });

  test('that is older than a newer one for the same server is stale, and says which', () => {
    const desk = following();
    desk.send(said(1, to('drain'), 20));
    const effects = desk.send(said(2, to('ready'), 10));
    expect(toldTo(effects, WEB1)).toEqual([]);
    expect(answerOf(effects)).toMatchObject({
      outcome: 'stale',
      newer: { id: 'c20', by: 'lb2', atUs: 20, type: 'server.drain' },
    });
  });

  test('of the same microsecond as another one wins by its id, on every node the same', () => {
    for (const order of [
      ['a', 'b'],
      ['b', 'a'],
    ]) {
      const desk = following();
      const told = order.flatMap((id, index) =>
        toldTypes(desk.send(said(index + 1, id === 'a' ? to('drain') : to('ready'), 10, { id }))),
      );
      expect(adminAfter('ready', told), order.join()).toBe('ready');
    }
  });

  test('for a weight is beside those for drain', () => {
    const desk = following();
    desk.send(said(1, to('drain'), 20));
    const effects = desk.send(said(2, weightOf(7), 10));
    expect(toldTo(effects, WEB1)).toMatchObject([{ type: 'operator.weight', weight: 7 }]);
    expect(outcomeOf(desk.send(said(3, weightOf(3), 5)))).toBe('stale');
  });

  test('that this node refuses is answered so, and nobody is told', () => {
    const desk = following();
    const refusal = { code: 'NODE_REFUSED', message: 'it is the owner' };
    const effects = desk.send(said(1, router('demote'), 10, { node: 'lb1', actors: [], running: false, refusal }));
    expect(typesOf(effects)).toEqual(['answer']);
    expect(answerOf(effects)).toMatchObject({ outcome: 'refused', ...refusal });
  });

  test('that this version can’t read is passed over', () => {
    const desk = following();
    expect(desk.send({ type: 'command.unreadable', stream: STREAM, sequence: 4 })).toEqual([]);
    expect(desk.context.sequence).toBe(4);
  });
});

describe('words of a server, in any order', () => {
  test.each<[Word[], Word]>([
    [[], 'ready'],
    [['drain'], 'drain'],
    [['maintenance', 'drain'], 'maintenance'],
    [['drain', 'maintenance'], 'maintenance'],
    [['maintenance', 'ready', 'drain'], 'drain'],
    [['drain', 'ready'], 'ready'],
  ])('%j in this order make it %s', (words, admin) => {
    const desk = following();
    const told = words.flatMap((word, index) => toldTypes(desk.send(said(index + 1, to(word), index + 1))));
    expect(adminAfter('ready', told)).toBe(admin);
    expect(adminOf(wordsOf(desk.context, WEB1))).toBe(admin);
  });

  test('a ready that comes late ends the maintenance before it, and leaves the drain after it', () => {
    const desk = following();
    desk.sendAll(said(1, to('maintenance'), 1), said(2, to('drain'), 3));
    const effects = desk.send(said(3, to('ready'), 2));
    expect(toldTypes(effects)).toEqual(['operator.ready', 'operator.drain']);
    expect(outcomeOf(effects)).toBe('applied');
  });

  test('whatever the order of their arrival, the server ends as the order of their times has it', () => {
    const word = fc.constantFrom<Word>('ready', 'drain', 'maintenance');
    const given = fc.array(word, { minLength: 1, maxLength: 7 }).chain((words) => {
      const timed = words.map((one, index) => ({ word: one, atUs: index + 1 }));
      return fc.tuple(fc.constant(words), fc.shuffledSubarray(timed, { minLength: timed.length }));
    });
    fc.assert(
      fc.property(given, ([words, arriving]) => {
        const desk = following();
        let admin: Word = 'ready';
        for (const [index, one] of arriving.entries())
          admin = adminAfter(admin, toldTypes(desk.send(said(index + 1, to(one.word), one.atUs))));
        const inOrder = adminAfter(
          'ready',
          words.map((one) => `operator.${one}`),
        );
        expect(admin).toBe(inOrder);
      }),
      { numRuns: 500 },
    );
  });
});

describe('a command for this node alone', () => {
  test('while the stream is followed is a difference that nobody else is told of', () => {
    const desk = following();
    desk.send(said(1, to('drain'), 10));
    const effects = desk.send(local(to('ready'), 20));
    expect(toldTo(effects, WEB1)).toMatchObject([{ type: 'operator.ready', command: { by: 'lb1', scope: 'here' } }]);
    expect(answerOf(effects)).toMatchObject({ outcome: 'appliedHere', pending: false });
    expect(publishedBy(effects)).toEqual([]);
    expect(publishedBy(desk.sendAll(lost, found(2), caughtUp))).toEqual([]);
    expect(desk.context.here[WEB1]).toBeDefined();
  });

  test('ends with the next command to the cluster', () => {
    const desk = following();
    desk.sendAll(local(to('drain'), 20));
    expect(toldTypes(desk.send(said(1, to('ready'), 30)))).toEqual(['operator.ready']);
    expect(desk.context.here).toEqual({});
  });

  test('stands over an older command that comes later', () => {
    const desk = following();
    desk.send(local(to('drain'), 20));
    const effects = desk.send(said(1, to('ready'), 10));
    expect(toldTo(effects, WEB1)).toEqual([]);
    expect(answerOf(effects)).toMatchObject({ outcome: 'stale', newer: { by: 'lb1', atUs: 20 } });
    // And yet it is known what the cluster wants.
    expect(adminOf(desk.context.cluster[WEB1]!)).toBe('ready');
  });

  test('while the stream is away is told to the cluster when it is back, with its own time', () => {
    const desk = following();
    desk.send(lost);
    expect(answerOf(desk.send(local(to('drain'), 20)))).toMatchObject({ outcome: 'appliedHere', pending: true });
    expect(desk.send(found())).toEqual([]);
    const published = publishedBy(desk.send(caughtUp));
    expect(published).toEqual([{ id: 'l20', by: 'lb1', atUs: 20, node: null, command: to('drain') }]);
    // It comes back through the stream, and is known.
    const effects = desk.send(said(1, to('drain'), 20, { id: 'l20', by: 'lb1' }));
    expect(toldTo(effects, WEB1)).toEqual([]);
    expect(desk.context.here).toEqual({});
    expect(untoldOf(desk.context)).toEqual([]);
  });

  test('that was overtaken meanwhile is not told any more', () => {
    const desk = following();
    desk.sendAll(lost, local(to('drain'), 20), found());
    expect(toldTypes(desk.send(said(1, to('ready'), 30)))).toEqual(['operator.ready']);
    expect(publishedBy(desk.send(caughtUp))).toEqual([]);
  });

  test('is newer than all that is known, though this node’s clock is behind', () => {
    const desk = following();
    desk.send(said(1, to('drain'), 1000));
    expect(toldTypes(desk.send(local(to('ready'), 20)))).toEqual(['operator.ready']);
    expect(wordsOf(desk.context, WEB1).ready?.atUs).toBe(1001);
    expect(timeAfter(desk.context, [WEB1], 30)).toBe(1002);
    expect(timeAfter(desk.context, [WEB1], 5000)).toBe(5000);
  });

  test('for a router goes into the stream too, for this node: whoever loses its journal finds it there', () => {
    const desk = following();
    const effects = desk.send(local(router('demote'), 20));
    expect(toldTypes(effects, GATEWAY)).toEqual(['operator.demote']);
    expect(publishedBy(effects)).toEqual([{ id: 'l20', by: 'lb1', atUs: 20, node: 'lb1', command: router('demote') }]);
    const back = desk.send(said(1, router('demote'), 20, { id: 'l20', by: 'lb1', node: 'lb1' }));
    expect(toldTo(back, GATEWAY)).toEqual([]);
    expect(untoldOf(desk.context)).toEqual([]);
  });

  test('for a sync group is said once', () => {
    const desk = fresh();
    desk.send(local(router('demote'), 20, [GATEWAY, 'router/inner']));
    expect(untoldOf(desk.context)).toHaveLength(1);
  });

  test('that could not be told is told again', () => {
    const desk = following();
    desk.send(local(router('demote'), 20));
    const failed = desk.send({ type: 'publish.failed', code: 'NATS_TIMEOUT', message: 'no leader' });
    expect(delayOf(failed, 'publishAgain')).toBe(5_000);
    expect(publishedBy(desk.send({ type: 'publish.again' }))).toHaveLength(1);
    expect(typesOf(desk.send(lost))).toEqual(['cancel']);
  });
});

describe('the stream', () => {
  test('that was deleted and made again undoes nothing, and is told what it lacks', () => {
    const desk = following();
    desk.sendAll(said(1, to('drain'), 10), said(2, to('drain', 'web2'), 20));
    expect(toldTo(desk.send(found(1, 'anew')), WEB1)).toEqual([]);
    expect(desk.state).toBe('detached');
    // Somebody has put an old one there.
    const old = desk.send(said(1, to('ready'), 5, { stream: 'anew' }));
    expect(toldTo(old, WEB1)).toEqual([]);
    // And another node has told one of ours already.
    expect(toldTo(desk.send(said(2, to('drain', 'web2'), 20, { stream: 'anew' })), 'server/web/web2')).toEqual([]);
    const published = publishedBy(desk.send(caughtUp));
    expect(published.map(({ id, by }) => [id, by])).toEqual([['c10', 'lb2']]);
    expect(desk.context.sequence).toBe(2);
  });

  test('that was put back from a copy is read anew', () => {
    const desk = following();
    desk.sendAll(said(1, to('drain'), 10), said(2, to('ready'), 20));
    desk.sendAll(found(1), caughtUp);
    expect(desk.context.sequence).toBe(0);
    expect(toldTo(desk.send(said(1, to('drain'), 10)), WEB1)).toEqual([]);
    expect(outcomeOf(desk.send(said(2, to('drain', 'web2'), 30)))).toBe('applied');
  });

  test('that is found again goes on where it was, without a change', () => {
    const desk = following();
    desk.send(said(1, to('drain'), 10));
    const { snapshot } = desk;
    expect(desk.send(found(2))).toEqual([]);
    expect(desk.send(caughtUp)).toEqual([]);
    expect(desk.snapshot).toBe(snapshot);
  });
});

describe('a reload', () => {
  const reload: DeskCommand = { type: 'reload' };

  test('is carried out by each node, once', () => {
    const desk = following({ startedUs: 5 });
    expect(desk.send(said(1, reload, 10))).toEqual([{ type: 'reload', params: { id: 'c10' } }]);
    expect(desk.send(said(2, reload, 10))).toEqual([]);
    expect(typesOf(desk.send(said(3, reload, 20)))).toEqual(['reload']);
  });

  test('that was given before this node read its file is needless', () => {
    const desk = following({ startedUs: 50 });
    expect(outcomeOf(desk.send(said(1, reload, 10)))).toBe('needless');
  });
});

describe('an actor that was not there', () => {
  const refusal = { code: 'NODE_REFUSED', message: 'there is no server web/web1' };

  test('a server that is configured later becomes what the cluster wants', () => {
    const desk = following();
    const effects = desk.send(said(1, to('drain'), 10, { running: false, refusal }));
    expect(outcomeOf(effects)).toBe('refused');
    expect(toldTo(effects, WEB1)).toEqual([]);
    desk.send(said(2, weightOf(4), 11, { running: false, refusal }));
    const appeared = desk.send({ type: 'target.appeared', actor: WEB1 });
    expect(toldTypes(appeared)).toEqual(['operator.drain', 'operator.weight']);
  });

  test('a router that has not started yet is told when it has, once', () => {
    const desk = fresh();
    const effects = desk.sendAll(found(), said(1, router('demote'), 10, { node: 'lb1', running: false }));
    expect(toldTo(effects, GATEWAY)).toEqual([]);
    expect(outcomeOf(effects)).toBe('applied');
    expect(toldTypes(desk.send({ type: 'target.appeared', actor: GATEWAY }), GATEWAY)).toEqual(['operator.demote']);
    expect(desk.send({ type: 'target.appeared', actor: GATEWAY })).toEqual([]);
  });
});

describe('a start', () => {
  test('goes on from what was known, and tells nobody: servers have got back what they were told', () => {
    const before = following();
    before.sendAll(said(1, to('drain'), 10), lost, local(to('maintenance'), 20));
    const { node: _node, startedUs: _startedUs, ...known } = before.context;
    const desk = fresh({ known });
    expect(desk.started).toEqual([]);
    expect(desk.state).toBe('detached');
    expect(publishedBy(desk.sendAll(found(2), caughtUp)).map(({ id }) => id)).toEqual(['l20']);
  });
});

test('the book is bounded: whoever was spoken of longest ago is forgotten', () => {
  const desk = following();
  const bound = 20_000;
  const cluster = Object.fromEntries(
    Array.from({ length: bound }, (_, index) => {
      const id = `c${index}`;
      return [`server/web/w${index}`, { drain: { id, by: 'lb2', atUs: index + 100, type: 'server.drain' as const } }];
    }),
  );
  const { node: _node, startedUs: _startedUs, ...known } = desk.context;
  const full = fresh({ known: { ...known, cluster } });
  full.send(said(1, to('drain'), 1_000_000));
  expect(Object.keys(full.context.cluster)).toHaveLength(bound);
  expect(full.context.cluster[WEB1]).toBeDefined();
  expect(full.context.cluster['server/web/w0']).toBeUndefined();
});
