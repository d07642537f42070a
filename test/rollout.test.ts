/** A roll-out: checked everywhere first, backups before masters, stopped at the first that fails. */
import { describe, expect, test } from 'vitest';
import { rollout } from '../machines/rollout.ts';
import type { RolloutContext, RolloutEvent } from '../machines/rollout.ts';
import type { Effect } from '../actors/decide.ts';
import { Stepper } from './stepper.ts';

type Rollout = Stepper<RolloutEvent, RolloutContext>;

const fresh = (): Rollout => new Stepper(rollout, {});

const push = (change: Partial<Extract<RolloutEvent, { type: 'push.asked' }>> = {}): RolloutEvent => ({
  type: 'push.asked',
  author: 'me@here',
  message: '',
  rollbackOf: null,
  nodes: ['lb1', 'lb2', 'lb3'],
  away: [],
  requireAll: false,
  ...change,
});
const right = (node: string): RolloutEvent => ({ type: 'check.answered', node, problems: 0 });
const allRight = ['lb1', 'lb2', 'lb3'].map(right);
const stored: RolloutEvent = { type: 'revision.stored', revision: 12 };
/** `lb1*` is master of a router. */
const saw = (...nodes: string[]): RolloutEvent => ({
  type: 'nodes.seen',
  nodes: nodes.map((name) => ({ node: name.replace('*', ''), masters: name.endsWith('*') ? 1 : 0 })),
});
const applied = (node: string): RolloutEvent => ({ type: 'apply.done', node });

const paramsOf = (effects: Effect[], type: string): unknown[] =>
  effects.filter((effect) => effect.type === type).map(({ params }) => params);

const applying = (): Rollout => {
  const it = fresh();
  it.sendAll(push(), ...allRight, stored);
  expect(it.state).toBe('applying');
  return it;
};

describe('checking', () => {
  test('every node that is here is asked, at once', () => {
    const it = fresh();
    const effects = it.send(push());
    expect(it.state).toBe('checking');
    expect(paramsOf(effects, 'check')).toEqual([{ node: 'lb1' }, { node: 'lb2' }, { node: 'lb3' }]);
    expect(paramsOf(effects, 'store')).toEqual([]);
  });

  test('it is stored when the last has nothing against it, not before', () => {
    const it = fresh();
    it.sendAll(push(), right('lb2'), right('lb1'));
    expect(it.state).toBe('checking');
    const effects = it.send(right('lb3'));
    expect(it.state).toBe('storing');
    expect(paramsOf(effects, 'store')).toHaveLength(1);
  });

  test.each<[string, RolloutEvent]>([
    ['a problem', { type: 'check.answered', node: 'lb2', problems: 1 }],
    ['no answer', { type: 'check.failed', node: 'lb2', message: 'silence' }],
  ])('%s of one node refuses it, when all have been heard', (_what, event) => {
    for (const order of [
      [event, right('lb1'), right('lb3')],
      [right('lb1'), right('lb3'), event],
    ]) {
      const it = fresh();
      it.send(push());
      const first = it.sendAll(order[0]!, order[1]!);
      expect(it.state).toBe('checking');
      expect(paramsOf(first, 'end')).toEqual([]);
      const effects = it.send(order[2]!);
      expect(it.state).toBe('idle');
      expect(it.context.against).toEqual(['lb2']);
      expect(paramsOf(effects, 'end')).toEqual([{ outcome: 'refused' }]);
      expect(paramsOf(effects, 'store')).toEqual([]);
    }
  });

  test('a node that is away is in the way only where all are required', () => {
    const it = fresh();
    it.send(push({ away: ['lb4'] }));
    expect(it.state).toBe('checking');
    const strict = fresh();
    const effects = strict.send(push({ away: ['lb4'], requireAll: true }));
    expect(strict.state).toBe('idle');
    expect(paramsOf(effects, 'end')).toEqual([{ outcome: 'refused' }]);
    expect(paramsOf(effects, 'check')).toEqual([]);
  });

  test('what can’t be stored is over', () => {
    const it = fresh();
    it.sendAll(push(), ...allRight);
    const effects = it.send({ type: 'store.failed', code: 'NODE_REFUSED', message: 'another was first' });
    expect(it.state).toBe('idle');
    expect(paramsOf(effects, 'end')).toEqual([{ outcome: 'notStored' }]);
  });

  test('nobody else begins while one is under way', () => {
    const it = fresh();
    it.send(push());
    const before = it.snapshot;
    it.send(push());
    it.send({ type: 'resume.asked', revision: 3, nodes: ['lb1'], away: [] });
    expect(it.snapshot).toBe(before);
  });
});

describe('applying', () => {
  test('backups come before masters, whatever their names', () => {
    const it = applying();
    expect(paramsOf(it.send(saw('lb1*', 'lb2', 'lb3')), 'apply')).toEqual([{ node: 'lb2', revision: 12 }]);
    expect(paramsOf(it.send(applied('lb2')), 'look')).toHaveLength(1);
    expect(paramsOf(it.send(saw('lb1*', 'lb3')), 'apply')).toEqual([{ node: 'lb3', revision: 12 }]);
    it.send(applied('lb3'));
    expect(paramsOf(it.send(saw('lb1*')), 'apply')).toEqual([{ node: 'lb1', revision: 12 }]);
    it.send(applied('lb1'));
    const effects = it.send(saw());
    expect(it.state).toBe('done');
    expect(it.context).toMatchObject({ applied: ['lb2', 'lb3', 'lb1'], waiting: [], away: [] });
    expect(paramsOf(effects, 'report')).toEqual([{ state: 'done' }]);
    expect(paramsOf(effects, 'end')).toEqual([{ outcome: 'done' }]);
  });

  test('masters move: who has become one meanwhile comes last', () => {
    const it = applying();
    it.sendAll(saw('lb1*', 'lb2', 'lb3'), applied('lb2'));
    expect(paramsOf(it.send(saw('lb1', 'lb3*')), 'apply')).toEqual([{ node: 'lb1', revision: 12 }]);
  });

  test('one at a time: an answer that was not asked for now changes nothing', () => {
    const it = applying();
    it.send(saw('lb1', 'lb2', 'lb3'));
    const before = it.snapshot;
    expect(it.send(applied('lb2'))).toEqual([]);
    expect(it.snapshot).toBe(before);
  });

  test('it stops at the first that fails; the others wait', () => {
    const it = applying();
    it.sendAll(saw('lb1', 'lb2', 'lb3'), applied('lb1'), saw('lb2', 'lb3'));
    const effects = it.send({ type: 'apply.failed', node: 'lb2', message: 'the port is taken' });
    expect(it.state).toBe('stopped');
    expect(it.context).toMatchObject({
      applied: ['lb1'],
      waiting: ['lb2', 'lb3'],
      stopped: { at: 'lb2', why: 'the port is taken' },
    });
    expect(paramsOf(effects, 'report')).toEqual([{ state: 'stopped' }]);
    expect(paramsOf(effects, 'end')).toEqual([{ outcome: 'stopped' }]);
  });

  test('who has gone meanwhile is left out, and takes it when it returns', () => {
    const it = applying();
    it.sendAll(saw('lb1', 'lb2', 'lb3'), applied('lb1'), saw('lb3'), applied('lb3'), saw());
    expect(it.state).toBe('done');
    expect(it.context).toMatchObject({ applied: ['lb1', 'lb3'], away: ['lb2'] });
  });

  test('another node that leads ends it without another word', () => {
    const it = applying();
    it.send(saw('lb1'));
    const effects = it.send({ type: 'lead.lost', message: 'lb2 leads the roll-out now' });
    expect(it.state).toBe('stopped');
    expect(paramsOf(effects, 'report')).toEqual([]);
    expect(paramsOf(effects, 'end')).toEqual([{ outcome: 'stopped' }]);
  });
});

describe('going on', () => {
  test('what is stored is applied without another check', () => {
    const it = applying();
    it.sendAll(saw('lb1', 'lb2', 'lb3'), { type: 'apply.failed', node: 'lb1', message: 'no' });
    const effects = it.send({ type: 'resume.asked', revision: 12, nodes: ['lb1', 'lb2'], away: ['lb3'] });
    expect(it.state).toBe('applying');
    expect(it.context).toMatchObject({ revision: 12, waiting: ['lb1', 'lb2'], away: ['lb3'], stopped: null });
    expect(paramsOf(effects, 'look')).toHaveLength(1);
  });

  test('a new push begins from nothing, after a stop and after an end', () => {
    const stopped = applying();
    stopped.sendAll(saw('lb1'), { type: 'apply.failed', node: 'lb1', message: 'no' }, push({ nodes: ['lb1'] }));
    expect(stopped.state).toBe('checking');
    expect(stopped.context).toMatchObject({ stopped: null, applied: [], revision: null });
  });
});
