/** Shared checks in the configuration, the actors that they ask for, and what people are told of them. */
import { describe, expect, test } from 'vitest';
import type { StateView } from '../src/api/state.ts';
import { formatShared } from '../src/cli/statusShared.ts';
import { formatProblem, loadConfig } from '../src/config/load.ts';
import type { Config } from '../src/config/schema.ts';
import { drawSystem } from '../src/graph/render.ts';
import { systemGraph } from '../src/graph/systemGraph.ts';
import { checkText, quorumSentence, sightSentence, verdictSentence } from '../src/worlds/explainShared.ts';
import type { Step } from '../src/journal/record.ts';
import { explain } from '../src/worlds/explain.ts';
import { verify } from '../src/worlds/replay.ts';
import { whatIf } from '../src/worlds/whatif.ts';
import { actorsOf } from '../src/wiring.ts';
import { downWhile, makeFolder, SimulatedNode, withReader } from './journalHelpers.ts';

const NATS = 'bus: { nats: { servers: ["nats://10.9.0.11:4222"] } }';
const CHECK = 'check: { type: tcp, rise: 2, fall: 3 }';
const file = (checks: string, { bus = NATS, check = CHECK, rest = '' } = {}): string => `
node: lb1
workers: 1
${bus}
backends:
  web:
    ${check}
    checks: ${checks}
    servers: [{ name: web1, address: "10.9.0.21:80" }, { name: web2, address: "10.9.0.22:80" }]
${rest}`;

const ROUTER = (track = '') => `routers:
  gateway: { vrid: 51, interface: eth0, priority: 150, addresses: [10.9.0.100/24]${track} }
  other: { vrid: 52, interface: eth0, addresses: [10.9.0.101/24] }
`;

const linesOf = (text: string): string[] => {
  const loaded = loadConfig(text, {}, '/');
  return 'problems' in loaded ? loaded.problems.map((problem) => formatProblem('f', problem)) : [];
};

const configOf = (text: string): Config => {
  const loaded = loadConfig(text, {}, '/');
  if ('problems' in loaded) throw new Error(JSON.stringify(loaded.problems));
  return loaded.config;
};

describe('the configuration', () => {
  test.each([
    '{ share: none }',
    '{ share: observe }',
    '{ share: quorum }',
    '{ share: quorum, divide: true, by: 3 }',
    '{}',
  ])('%s is taken', (checks) => {
    expect(linesOf(file(checks))).toEqual([]);
  });

  test.each([
    {
      text: file('{ share: quorum }', { bus: '' }),
      line: 'backends.web.checks.share: quorum needs other nodes to share with: `bus: { nats: … }`',
    },
    {
      text: file('{ share: observe }', { bus: 'bus: memory' }),
      line: 'backends.web.checks.share: observe needs other nodes to share with: `bus: { nats: … }`',
    },
    {
      text: file('{ share: quorum }', { check: '' }),
      line: 'backends.web.checks.share: quorum needs a check, whose results are shared',
    },
    {
      text: file('{ share: observe, divide: true }'),
      line: 'backends.web.checks.divide: it needs `share: quorum`: whoever doesn’t check a server follows the verdict',
    },
    {
      text: file('{ divide: true }'),
      line: 'backends.web.checks.divide: it needs `share: quorum`: whoever doesn’t check a server follows the verdict',
    },
    {
      text: file('{ share: quorum, by: 3 }'),
      line: 'backends.web.checks.by: it counts only with `divide: true`; otherwise every node checks every server',
    },
    { text: file('{ share: quorum, divide: true, by: 1 }'), line: 'backends.web.checks.by:' },
    { text: file('{ share: majority }'), line: 'backends.web.checks.share:' },
    { text: file('{ shares: quorum }'), line: 'backends.web.checks' },
    {
      text: file('{ share: observe }', { rest: ROUTER(', track: [{ sight: true }]') }),
      line: 'routers.gateway.track[0].sight: no backend has `checks: { share: quorum }`: there is nothing to see together',
    },
  ])('$line', ({ text, line }) => {
    const lines = linesOf(text);
    expect(lines).toHaveLength(1);
    expect(lines[0]).toContain(line);
  });
});

describe('the actors', () => {
  const specsOf = (text: string) => new Map(actorsOf(configOf(text)).map((spec) => [spec.id, spec]));
  const settingsOf = (specs: ReturnType<typeof specsOf>, id: string) =>
    (specs.get(id)!.input as { settings: Record<string, unknown> }).settings;

  test('a quorum stands between each checker and its server, and counts in their place', () => {
    const specs = specsOf(file('{ share: quorum }'));
    expect(specs.get('quorum/web/web1')).toMatchObject({
      machine: 'healthQuorum',
      identity: '10.9.0.21:80',
      input: { pool: 'web', server: 'web1', settings: { node: 'lb1', rise: 2, fall: 3 } },
    });
    expect(settingsOf(specs, 'server/web/web1')).toMatchObject({ rise: 1, fall: 1, shared: true });
    expect(settingsOf(specs, 'checker/web/web1')).toMatchObject({ shared: true });
    const order = [...specs.keys()].filter((id) => /sight|web1$/.test(id));
    expect(order).toEqual(['sight', 'checker/web/web1', 'quorum/web/web1', 'server/web/web1']);
  });

  test('errors of live traffic go where checks go', () => {
    const specs = specsOf(file('{ share: quorum }\n    observe: layer4'));
    expect(settingsOf(specs, 'observer/web/web1')).toMatchObject({ shared: true });
  });

  test.each(['{ share: none }', '{ share: observe }'])('%s changes none of them', (checks) => {
    const specs = specsOf(file(checks, { rest: ROUTER() }));
    expect([...specs.keys()].filter((id) => /quorum|sight/.test(id))).toEqual([]);
    expect(settingsOf(specs, 'server/web/web1')).toMatchObject({ rise: 2, fall: 3 });
    expect(settingsOf(specs, 'server/web/web1')).not.toHaveProperty('shared');
    expect(settingsOf(specs, 'checker/web/web1')).not.toHaveProperty('shared');
  });

  test('every router tracks the sight, by FAULT unless it says how', () => {
    const specs = specsOf(file('{ share: quorum }', { rest: ROUTER(', track: [{ sight: true, weight: -60 }]') }));
    expect(settingsOf(specs, 'router/gateway')['track']).toEqual([
      { tracker: 'tracker/sight', weight: -60, reverse: false },
    ]);
    expect(settingsOf(specs, 'router/other')['track']).toEqual([
      { tracker: 'tracker/sight', weight: 0, reverse: false },
    ]);
    expect(settingsOf(specs, 'tracker/sight')).toMatchObject({
      kind: 'sight',
      subject: 'sight',
      routers: ['router/gateway', 'router/other'],
    });
    expect(settingsOf(specs, 'sight')).toEqual({
      node: 'lb1',
      voters: ['quorum/web/web1', 'quorum/web/web2'],
      watchers: ['tracker/sight'],
    });
  });

  test('the graph shows who gives way', () => {
    const { mermaid } = drawSystem(systemGraph(configOf(file('{ share: quorum, divide: true }', { rest: ROUTER() }))));
    expect(mermaid).toContain('checks shared: quorum, each server by 2 nodes');
    expect(mermaid.match(/FAULT while down/g)).toHaveLength(2);
  });
});

describe('what people are told', () => {
  const step = (event: Record<string, unknown>, state = 'up,up'): Step =>
    ({ event, state, effects: [], wallUs: 0, seq: 1 }) as unknown as Step;

  test('a verdict is told as that of the cluster, and a check as a check', () => {
    const verdict = step({
      type: 'check.failed',
      code: 'QUORUM',
      message: '2 of 3 nodes: lb1, lb3: refused',
      durationMs: 0,
    });
    expect(verdictSentence(verdict, false)).toBe(
      'The cluster’s verdict is down, by 2 of 3 nodes: lb1, lb3: refused: marked DOWN.',
    );
    expect(checkText(verdict)).toBe('2 of 3 nodes: lb1, lb3: refused');
    const back = step({ type: 'check.passed', code: 'QUORUM', message: '2 of 3 nodes: lb1, lb2', durationMs: 0 });
    expect(verdictSentence(back, true)).toBe(
      'The cluster’s verdict is up, by 2 of 3 nodes: lb1, lb2: UP, with its weight growing slowly.',
    );
    const check = step({ type: 'check.failed', code: 'L4CON', message: 'refused', durationMs: 3 });
    expect([verdictSentence(check, false), checkText(check)]).toEqual([null, 'refused (L4CON) after 3 ms']);
  });

  test.each([
    [{ type: 'actor.started' }, null, 'unchecked,unknown', 'The node started with it.'],
    [
      { type: 'check.failed', code: 'L4CON', message: 'refused', durationMs: 3 },
      'goingDown,up',
      'down,up',
      'A check of this node failed (refused (L4CON) after 3 ms): this node’s view is down.',
    ],
    [
      { type: 'view.heard', node: 'lb2', view: 'down', message: 'refused' },
      'down,up',
      'down,down',
      'lb2 says that it is down (refused): the verdict is down.',
    ],
    [
      { type: 'view.heard', node: 'lb2', view: 'none', message: '' },
      'up,up',
      'up,up',
      'lb2 has no view of it any more.',
    ],
    [{ type: 'node.lost', node: 'lb2' }, 'up,up', 'up,up', 'lb2 is not heard any more and has no vote.'],
    [{ type: 'node.sight', node: 'lb2', blind: true }, 'up,up', 'up,up', 'lb2 is blind and has no vote.'],
    [{ type: 'node.sight', node: 'lb2', blind: false }, 'up,up', 'up,up', 'lb2 sees again and has a vote.'],
    [
      { type: 'duty.assigned', checkers: ['lb2', 'lb3'] },
      'up,up',
      'offDuty,up',
      'It is to be checked by lb2, lb3: this node’s view is none, as others check it.',
    ],
    [{ type: 'duty.assigned', checkers: null }, 'up,up', 'up,up', 'Every node is to check it.'],
    [
      { type: 'checker.pause' },
      'up,up',
      'paused,unknown',
      'The server is in maintenance: this node’s view is none, as it is in maintenance, the verdict is unknown.',
    ],
  ] as [Record<string, unknown>, string | null, string, string][])('%j', (event, before, state, sentence) => {
    expect(quorumSentence(step(event, state), before)).toBe(sentence);
  });

  test('who is blind, and by whose word', () => {
    const counts = { lb1: { seen: 0, of: 3, others: { lb2: 3, lb3: 3 } }, lb2: { seen: 3, of: 3 } };
    expect(sightSentence(step({ type: 'nodes.counted', counts }))).toBe(
      'lb1 is blind: it saw none of 3 servers while lb2 and lb3 saw 3.',
    );
    expect(sightSentence(step({ type: 'nodes.counted', counts: {} }))).toBe('Every node sees servers, or nobody does.');
  });

  test('status shows what nodes say where they don’t agree', () => {
    const server = (name: string, verdict: string, ...views: string[]) => ({
      name,
      shared: {
        verdict,
        nodes: views.map((view, index) => ({
          node: `lb${index + 1}`,
          view,
          message: view === 'down' ? 'refused' : '',
          since: null,
          vote: index < 2,
        })),
      },
    });
    const pool = {
      shared: { share: 'quorum', divide: false, by: 2, blind: ['lb3'], unlike: [] },
      servers: [server('a', 'up', 'up', 'up', 'up'), server('b', 'up', 'up', 'up', 'down')],
    } as unknown as StateView['pools'][number];
    expect(formatShared(pool)).toEqual([
      '  Checks shared by quorum (lb1, lb2, lb3); the nodes agree on 1 of 2 servers',
      '  ! lb3 is blind: it sees none of its servers while others do',
      '  b: verdict up; lb1 up, lb2 up, lb3 down (refused), no vote',
    ]);
    expect(formatShared({ ...pool, shared: null })).toEqual([]);
  });
});

describe('the journal of a node with shared checks', () => {
  const QUORUM = file('{ share: quorum }', {
    check: 'check: { type: tcp, interval: 1s, rise: 2, fall: 2, jitter: 0 }',
  });

  /** web1 fails here from 10 s on; two others see it up until 20 s, and then this node alone is blind. */
  const record = async (text = QUORUM): Promise<string> => {
    const path = `${makeFolder()}/lb1.db`;
    const health = downWhile({ web1: [[10_000, 60_000]], web2: [[30_000, 60_000]] });
    const node = await SimulatedNode.start({ path, config: configOf(text), health });
    const says = (name: string, server: string, view: string, message = '') =>
      node.system.deliver(
        `quorum/web/${server}`,
        { type: 'view.heard', node: name, view, message } as { type: string },
        'remote',
      );
    node.runUntil(1_000);
    for (const name of ['lb2', 'lb3']) for (const server of ['web1', 'web2']) says(name, server, 'up');
    node.runUntil(20_000);
    says('lb3', 'web1', 'down', 'timed out');
    node.runUntil(40_000);
    const counts = {
      lb1: { seen: 0, of: 2, others: { lb2: 2, lb3: 1 } },
      lb2: { seen: 2, of: 2 },
      lb3: { seen: 1, of: 2 },
    };
    node.system.send('sight', { type: 'nodes.counted', counts } as { type: string });
    node.runUntil(41_000);
    await node.journal.close();
    return path;
  };

  const explained = (path: string, actor: string): string =>
    withReader(path, (reader) => {
      const { headline, sentences, remarks } = explain(reader, actor);
      return [headline, ...sentences.map(({ text }) => text), ...remarks].join('\n');
    });

  test('is decided again as it was, and says why a server is down: by which nodes', async () => {
    const path = await record();
    expect(withReader(path, (reader) => verify(reader)).divergence).toBeNull();
    expect(explained(path, 'server/web/web1')).toContain('The cluster’s verdict is down, by 2 of 3 nodes: lb1: ');
    expect(explained(path, 'server/web/web1')).toContain('lb3: timed out: marked DOWN.');
    const quorum = explained(path, 'quorum/web/web1');
    expect(quorum).toContain('Server web/web1: the cluster’s verdict is down, this node’s own view down, since');
    expect(quorum).toContain('lb3 says that it is down (timed out): the verdict is down.');
  });

  test('says why a node is blind, and why its router gives way', async () => {
    const path = await record(`${QUORUM}${ROUTER()}`);
    expect(explained(path, 'sight')).toMatch(
      /^This node is BLIND since .*\n.*\nlb1 is blind: it saw none of 2 servers while lb2 saw 2 and lb3 saw 1\.$/,
    );
    expect(explained(path, 'tracker/sight')).toContain('it saw none of 2 servers while lb2 saw 2 and lb3 saw 1');
    expect(explained(path, 'router/gateway')).toContain('it saw none of 2 servers while lb2 saw 2 and lb3 saw 1');
  });

  test('tells what would have been with other thresholds, with the others’ views as they were', async () => {
    const path = await record();
    const real = withReader(path, (reader) => whatIf(reader, configOf(QUORUM)));
    expect(real.would.map(({ actor, state }) => `${actor} ${state}`)).toEqual(
      real.real.map(({ actor, state }) => `${actor} ${state}`),
    );
    expect(real.untold).toEqual([]);
    const longer = configOf(QUORUM.replace('fall: 2', 'fall: 100'));
    const { would } = withReader(path, (reader) => whatIf(reader, longer));
    const isDown = ({ actor, state }: (typeof would)[number]) =>
      actor === 'server/web/web1' && state.startsWith('down');
    expect([real.would.some(isDown), would.some(isDown)]).toEqual([true, false]);
  });

  test('one of a node that was alone says that it can’t tell what others saw', async () => {
    const path = await record(file('{ share: none }'));
    expect(withReader(path, (reader) => whatIf(reader, configOf(QUORUM))).untold).toEqual([
      'what other nodes’ checks saw is not in this journal: this node’s own checks decide alone here',
    ]);
  });
});
