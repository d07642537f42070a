/** Whether a node can trust its eyes: none of its servers is up to it, while others see some of the very same. */
import { describe, expect, test } from 'vitest';
import { nodeSight } from '../machines/nodeSight.ts';
import type { NodeSightContext, NodeSightEvent, SightCount, SightSettings } from '../machines/nodeSight.ts';
import { Stepper, toldTo } from './stepper.ts';
import { Scenario, send, start } from './transcript.ts';

type Sight = Stepper<NodeSightEvent, NodeSightContext>;

const SETTINGS: SightSettings = {
  node: 'lb1',
  voters: ['quorum/web/a', 'quorum/web/b'],
  watchers: ['tracker/sight'],
};
const sight = (settings: Partial<SightSettings> = {}): Sight =>
  new Stepper(nodeSight, { settings: { ...SETTINGS, ...settings } });

const counted = (counts: Record<string, SightCount>): NodeSightEvent => ({ type: 'nodes.counted', counts });
const sees = (seen: number, of = 3): SightCount => ({ seen, of });
const seesNone = (others: Record<string, number>, of = 3): SightCount => ({ seen: 0, of, others });

const BLIND = counted({ lb1: seesNone({ lb2: 3, lb3: 3 }), lb2: sees(3), lb3: sees(3) });

describe('the sight of a node', () => {
  test('it sees until it is shown that it doesn’t', () => {
    const one = sight();
    expect([one.state, one.started]).toEqual(['seeing', []]);
  });

  test('it is blind when it sees none while others see some of the same, and says so to whoever watches', () => {
    const one = sight();
    const effects = one.send(BLIND);
    expect(one.state).toBe('blind');
    expect(toldTo(effects, 'tracker/sight')).toEqual([
      {
        type: 'observed',
        ok: false,
        value: null,
        code: '',
        message: 'it saw none of 3 servers while lb2 and lb3 saw 3',
        durationMs: 0,
      },
    ]);
    expect(toldTo(effects, 'quorum/web/b')).toEqual([{ type: 'node.sight', node: 'lb1', blind: true }]);
  });

  test.each([
    ['it sees one itself', { lb1: sees(1), lb2: sees(3) }],
    ['nobody sees any', { lb1: seesNone({}), lb2: seesNone({}) }],
    ['others see others only: its own are really down', { lb1: seesNone({}), lb2: sees(2) }],
    ['it has no view of any', { lb1: seesNone({}, 0), lb2: sees(3) }],
    ['it is alone', { lb1: seesNone({}) }],
  ] as [string, Record<string, SightCount>][])('it is not when %s', (_, counts) => {
    const one = sight();
    expect(one.send(counted(counts))).toEqual([]);
    expect(one.state).toBe('seeing');
  });

  test('it sees again with the first server that it sees', () => {
    const one = sight();
    one.send(BLIND);
    const effects = one.send(counted({ lb1: sees(1), lb2: sees(3), lb3: sees(3) }));
    expect(one.state).toBe('seeing');
    expect(toldTo(effects, 'tracker/sight')).toMatchObject([{ ok: true, message: '' }]);
    expect(toldTo(effects, 'quorum/web/a')).toEqual([{ type: 'node.sight', node: 'lb1', blind: false }]);
  });

  test('another node that is blind is told to those who count votes, and to nobody else', () => {
    const one = sight();
    const effects = one.send(counted({ lb1: sees(3), lb2: seesNone({ lb1: 3 }) }));
    expect(one.state).toBe('seeing');
    expect(toldTo(effects, 'quorum/web/a')).toEqual([{ type: 'node.sight', node: 'lb2', blind: true }]);
    expect(effects).toHaveLength(2);
  });

  test('what it says counts those alike who saw alike', () => {
    const one = sight();
    const messageOf = (count: SightCount) =>
      (toldTo(one.sendAll(counted({}), counted({ lb1: count })), 'tracker/sight')[0] as unknown as { message: string })
        .message;
    expect(messageOf(seesNone({ lb2: 3, lb3: 2, lb4: 3, lb5: 0 }))).toBe(
      'it saw none of 3 servers while lb2 and lb4 saw 3 and lb3 saw 2',
    );
    expect(messageOf(seesNone({ lb2: 1 }, 1))).toBe('it saw none of 1 server while lb2 saw 1');
  });

  test('who asks is answered', () => {
    const one = sight();
    const ask: NodeSightEvent = { type: 'sight.asked', tracker: 'tracker/sight' };
    expect(toldTo(one.send(ask), 'tracker/sight')).toMatchObject([{ ok: true }]);
    one.send(BLIND);
    expect(toldTo(one.send(ask), 'tracker/sight')).toMatchObject([{ ok: false }]);
  });

  test('a reload’s voters and watchers are told from then on', () => {
    const one = sight();
    one.send({ type: 'settings.changed', settings: { node: 'lb1', voters: ['quorum/web/c'], watchers: [] } });
    const effects = one.send(BLIND);
    expect(effects.map(({ params }) => (params as { to: string }).to)).toEqual(['quorum/web/c']);
  });
});

test('a router of a blind node is in FAULT, as with any tracker of weight 0, and comes back', () => {
  const tracker = { kind: 'sight', subject: 'sight', intervalMs: 0, rise: 1, fall: 1, routers: ['router/gateway'] };
  const router = {
    version: 3,
    vrid: 51,
    priority: 150,
    advertMs: 100,
    preempt: true,
    preemptDelayMs: 0,
    startDelayMs: 0,
    addresses: [],
    track: [{ tracker: 'tracker/sight', weight: 0, reverse: false }],
    group: null,
  };
  const scenario = new Scenario().play(
    start('sight', 'nodeSight', { settings: { ...SETTINGS, voters: [] } }),
    start('tracker/sight', 'tracker', { id: 'tracker/sight', settings: tracker }),
    start('router/gateway', 'vrrpRouter', { name: 'gateway', settings: router }),
    send('router/gateway', 'interface.up', { address: '10.9.0.11', key: '0a09000b' }),
    { do: 'wait', ms: 1000 },
  );
  expect(scenario.stateOf('router/gateway')).toBe('master');
  const { type: _type, ...counts } = BLIND;
  scenario.play(send('sight', 'nodes.counted', counts));
  expect(scenario.stateOf('router/gateway')).toBe('fault');
  expect(scenario.notices.at(-1)).toMatchObject({
    state: 'FAULT',
    reason: { detail: 'it saw none of 3 servers while lb2 and lb3 saw 3' },
  });
  scenario.play(send('sight', 'nodes.counted', { counts: { lb1: sees(1) } }), { do: 'wait', ms: 1000 });
  expect(scenario.stateOf('router/gateway')).toBe('master');
});
