import { describe, expect, test } from 'vitest';
import type { Config } from '../src/config/schema.ts';
import { whatIf } from '../src/worlds/whatif.ts';
import type { WhatIf, WhatIfTransition } from '../src/worlds/whatif.ts';
import { downWhile, makeFolder, PASSED, SimulatedNode, webConfig, withReader } from './journalHelpers.ts';
import type { SimulatedOptions } from './journalHelpers.ts';
import { failInARow, parseObserve, withObserve } from './observeHelpers.ts';

const record = async (
  options: Omit<SimulatedOptions, 'path'>,
  untilMs: number,
  during?: (node: SimulatedNode) => void,
) => {
  const path = `${makeFolder()}/lb1.db`;
  const node = await SimulatedNode.start({ path, ...options });
  during?.(node);
  node.runUntil(untilMs);
  await node.journal.close();
  return path;
};

const ask = (path: string, config: Config): WhatIf => withReader(path, (reader) => whatIf(reader, config));

const plain = (transitions: WhatIfTransition[]) => transitions.map(({ actor, state }) => `${actor} ${state}`);

const timesDown = (transitions: WhatIfTransition[], actor: string): number[] =>
  transitions.filter((item) => item.actor === actor && item.state.startsWith('down')).map(({ timeUs }) => timeUs);

const flap = downWhile({ web1: [[6000, 10_000]] });

describe('the configuration that really ran', () => {
  test('gives the transitions that were recorded, at their times', async () => {
    const path = await record({ health: flap }, 30_000, (node) => {
      node.runUntil(15_000);
      node.operator('drain', 'web2');
      node.runUntil(18_000);
      node.operator('maintenance', 'web2');
      node.runUntil(20_000);
      node.operator('ready', 'web2');
    });
    const { real, would, unobserved } = ask(path, webConfig());
    expect(unobserved).toEqual([]);
    const byTime = (transitions: WhatIfTransition[]) =>
      transitions.map(({ timeUs, actor, state }) => `${timeUs} ${actor} ${state}`).sort();
    expect(byTime(would)).toEqual(byTime(real));
    expect(timesDown(real, 'server/web/web1')).toHaveLength(1);
  });

  test('gives the same transitions where a real loop delivered every timer a little late', async () => {
    // One failed check now and then: with fall 2 none of them may count twice.
    const config = webConfig({ fall: 2, interval: '200ms', fastInterval: '200ms', timeout: '100ms' });
    let probes = 0;
    const path = await record(
      {
        config,
        lateUs: 900,
        health: (server) =>
          server === 'web1' && ++probes % 7 === 0
            ? { ok: false, code: 'L7STS', message: '503', durationMs: 1 }
            : PASSED,
      },
      240_000,
    );
    const { real, would } = ask(path, config);
    expect(timesDown(real, 'server/web/web1')).toEqual([]);
    expect(timesDown(would, 'server/web/web1')).toEqual([]);
    // The recording may end between a timer of the virtual world and the late one of the real world.
    const count = (transitions: WhatIfTransition[]) =>
      plain(transitions).filter((text) => text.includes('goingDown')).length;
    expect(Math.abs(count(would) - count(real))).toBeLessThanOrEqual(1);
  });

  test('over a restart, each run of the node by itself', async () => {
    const path = await record({ health: flap }, 12_000);
    const again = await SimulatedNode.start({ path, wallUs: Date.UTC(2026, 10, 22, 4) * 1000 });
    again.runUntil(10_000);
    await again.journal.close();
    const { real, would } = ask(path, webConfig());
    expect(plain(would).sort()).toEqual(plain(real).sort());
  });
});

describe('another configuration', () => {
  test('fall 10: the flap does not remove the server', async () => {
    const path = await record({ health: flap }, 30_000);
    const { real, would } = ask(path, webConfig({ fall: 10 }));
    expect(timesDown(real, 'server/web/web1')).toHaveLength(1);
    expect(timesDown(would, 'server/web/web1')).toEqual([]);
    expect(plain(would)).toContain('server/web/web1 goingDown,ready,warm');
  });

  test('fall 1: it is removed earlier', async () => {
    const path = await record({ health: flap }, 30_000);
    const { real, would } = ask(path, webConfig({ fall: 1 }));
    const [really] = timesDown(real, 'server/web/web1');
    const [wouldBe] = timesDown(would, 'server/web/web1');
    // Three failures 500 ms apart are one.
    expect(really! - wouldBe!).toBe(1_000_000);
  });

  test('a faster interval sees the outage no later', async () => {
    const path = await record({ health: downWhile({ web1: [[5900, 10_000]] }) }, 30_000);
    const { real, would } = ask(path, webConfig({ interval: '500ms' }));
    const [really] = timesDown(real, 'server/web/web1');
    const [wouldBe] = timesDown(would, 'server/web/web1');
    expect(wouldBe!).toBeLessThanOrEqual(really!);
  });

  test('a slower interval may miss it, and never sees what was not recorded', async () => {
    const path = await record({ health: downWhile({ web1: [[6000, 6600]] }) }, 30_000);
    const { would } = ask(path, webConfig({ interval: '8s', fastInterval: '8s' }));
    expect(timesDown(would, 'server/web/web1')).toEqual([]);
  });

  test('a timeout below what checks took fails them', async () => {
    const path = await record({ health: (server) => ({ ...PASSED, durationMs: server === 'web1' ? 300 : 2 }) }, 30_000);
    const { real, would } = ask(path, webConfig({ timeout: '100ms' }));
    expect(timesDown(real, 'server/web/web1')).toEqual([]);
    expect(timesDown(would, 'server/web/web1')).toHaveLength(1);
    expect(timesDown(would, 'server/web/web2')).toEqual([]);
  });

  test('a server that is new says that it is unobserved, and nothing is made up about it', async () => {
    const path = await record({}, 10_000);
    const { would, unobserved } = ask(path, webConfig({ servers: ['web1', 'web2', 'web3'] }));
    expect(unobserved).toEqual(['server/web/web3']);
    const states = would.filter(({ actor }) => actor === 'server/web/web3').map(({ state }) => state);
    expect(new Set(states)).toEqual(new Set(['unchecked,ready,warm']));
  });

  test('a server that is gone has no transitions', async () => {
    const path = await record({ health: flap }, 30_000);
    const { would } = ask(path, webConfig({ servers: ['web2'] }));
    expect(would.filter(({ actor }) => actor === 'server/web/web1')).toEqual([]);
  });
});

describe('live traffic', () => {
  const three = webConfig({ servers: ['web1', 'web2', 'web3'] });
  const observed = (given: Record<string, unknown>) => withObserve(three, parseObserve(given));
  /** web2 fails five times in a row, and twice half a minute later. */
  const failing = (config: Config) =>
    record({ config }, 120_000, (node) => {
      node.runUntil(20_000);
      failInARow(node, 'web2', 5);
      node.runUntil(60_000);
      failInARow(node, 'web2', 3);
    });
  const ejections = (transitions: WhatIfTransition[]) =>
    transitions.filter(({ actor, state }) => actor === 'observer/web/web2' && state === 'ejected').length;

  test('the configuration that really ran ejects what was ejected, when it was', async () => {
    const config = observed({ outliers: {}, panic: 40 });
    const { real, would, unobserved, untold } = ask(await failing(config), config);
    const byTime = (transitions: WhatIfTransition[]) =>
      transitions.map(({ timeUs, actor, state }) => `${timeUs} ${actor} ${state}`).sort();
    expect(byTime(would)).toEqual(byTime(real));
    expect(ejections(real)).toBe(1);
    expect([unobserved, untold]).toEqual([[], []]);
  });

  test('a lower limit ejects once more, a higher one never, and what is not known then is said', async () => {
    const path = await failing(observed({ outliers: {} }));
    expect(ejections(ask(path, observed({ outliers: { consecutiveErrors: 3 } })).would)).toBe(2);
    const { would, untold } = ask(path, observed({ outliers: { consecutiveErrors: 6 } }));
    expect(ejections(would)).toBe(0);
    expect(untold).toEqual([
      'web/web2 was really ejected, and would not have been then: what it would have answered meanwhile is not known, and taken to be well',
    ]);
  });

  test('errors that counted against health for nobody would have marked it down', async () => {
    const path = await failing(observed({ outliers: {} }));
    const config = observed({ observe: { layer: 'layer7', errorLimit: 5, onError: 'markDown' } });
    expect(timesDown(ask(path, config).would, 'server/web/web2')).toHaveLength(1);
  });

  test('traffic that nobody observed says nothing, and that is said', async () => {
    const path = await record({ config: three }, 10_000);
    expect(ask(path, observed({ outliers: {} })).unobserved).toEqual([
      'observer/web/web1',
      'observer/web/web2',
      'observer/web/web3',
    ]);
  });
});
