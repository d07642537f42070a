/** What-if over routers: recorded adverts and words, other priorities, weights, intervals and trackers. */
import { describe, expect, test } from 'vitest';
import type { Config } from '../src/config/schema.ts';
import { verify } from '../src/worlds/replay.ts';
import { whatIf } from '../src/worlds/whatif.ts';
import type { WhatIf, WhatIfTransition } from '../src/worlds/whatif.ts';
import {
  advertFrom,
  downWhile,
  gatewayConfig,
  makeFolder,
  SEEN_DOWN,
  SEEN_UP,
  SimulatedNode,
  withReader,
} from './journalHelpers.ts';
import type { GatewayOptions, SimulatedOptions } from './journalHelpers.ts';

const record = async (
  untilMs: number,
  options: Partial<SimulatedOptions>,
  during: (node: SimulatedNode) => void,
): Promise<string> => {
  const path = `${makeFolder()}/lb1.db`;
  const node = await SimulatedNode.start({ path, config: gatewayConfig(), ...options });
  during(node);
  node.runUntil(untilMs);
  await node.journal.close();
  return path;
};

const ask = (path: string, config: Config): WhatIf => withReader(path, (reader) => whatIf(reader, config));

const byTime = (transitions: WhatIfTransition[]) =>
  transitions.map(({ timeUs, actor, state }) => `${timeUs} ${actor} ${state}`).sort();

const statesOf = (transitions: WhatIfTransition[], actor = 'router/gateway'): string[] =>
  transitions.filter((one) => one.actor === actor).map(({ state }) => state);

const outage = { health: downWhile({ web1: [[18_000, 60_000]], web2: [[18_000, 60_000]] }) };

const interfaceDown = { type: 'interface.down', code: 'ENOLINK', message: 'interface eth0 has no carrier' };
const interfaceUp = { type: 'interface.up', address: '10.9.0.11', key: '4:0a09000b' };

/** Two nodes, a whole night: the pool is lost and comes back, an operator demotes and promotes, a link breaks, a peer dies. */
const night = (node: SimulatedNode): void => {
  const peer = node.peer('10.9.0.12');
  node.runUntil(70_000);
  node.system.send('router/gateway', { type: 'operator.demote' });
  node.runUntil(80_000);
  node.system.send('router/gateway', { type: 'operator.promote' });
  node.runUntil(90_000);
  node.system.send('router/gateway', interfaceDown);
  node.runUntil(95_000);
  node.system.send('router/gateway', interfaceUp);
  node.runUntil(110_000);
  node.system.send('address/gateway/10.9.0.100', { type: 'address.lost' });
  node.runUntil(112_000);
  node.system.send('router/gateway', { type: 'operator.demote' });
  node.runUntil(120_000);
  peer.die();
};

describe('the configuration that really ran', () => {
  test('gives the transitions that were recorded, at their times', async () => {
    const path = await record(140_000, outage, night);
    const { real, would, unobserved, assumed } = ask(path, gatewayConfig());
    expect({ unobserved, assumed }).toEqual({ unobserved: [], assumed: [] });
    expect(statesOf(real).length).toBeGreaterThan(10);
    expect(byTime(would)).toEqual(byTime(real));
  });

  test('also where a real loop delivered every timer late, and adverts every 10 ms', async () => {
    const config = gatewayConfig({ router: { advertise: '10ms' } });
    const path = await record(30_000, { ...outage, config, lateUs: 900 }, (node) => {
      node.peer('10.9.0.12', { advertMs: 10 });
      node.runUntil(25_000);
      node.system.send('router/gateway', interfaceDown);
    });
    const { real, would } = ask(path, config);
    expect(statesOf(real)).toEqual(['initialize', 'backup', 'master', 'backup', 'fault']);
    expect(statesOf(would)).toEqual(statesOf(real));
  });

  test('an advert that came after the deadline, but before the late timer, still counts', async () => {
    const path = await record(6000, { lateUs: 900 }, (node) => {
      node.runUntil(1000);
      node.hear('gateway', advertFrom('10.9.0.12', 200));
      // 3 s and (256 − 150)/256 s later, which is 3414.0625 ms, and half a millisecond.
      node.runUntil(4414.5);
      node.hear('gateway', advertFrom('10.9.0.12', 200));
    });
    const { real, would } = ask(path, gatewayConfig());
    expect(statesOf(real)).toEqual(['initialize', 'backup']);
    expect(statesOf(would)).toEqual(statesOf(real));
  });

  test('a peer that really did not take over is not made to', async () => {
    const path = await record(50_000, outage, (node) => {
      node.runUntil(500);
      node.hear('gateway', advertFrom('10.9.0.12', 100));
    });
    const { real, would, assumed } = ask(path, gatewayConfig());
    // Weaker than the peer since 19 s, and nobody came.
    expect(statesOf(real)).toEqual(['initialize', 'backup', 'master']);
    expect(statesOf(would)).toEqual(statesOf(real));
    expect(assumed).toEqual([]);
  });

  test('with a script, a sync group, and over the node’s end and another start', async () => {
    const config = gatewayConfig({
      router: { track: [{ script: ['/bin/true'], name: 'reachable', fall: 2 }] },
      others: { inside: { vrid: 52, interface: 'eth1', priority: 150, addresses: ['192.168.0.100/24'] } },
      more: 'syncGroups: { both: { routers: [gateway, inside] } }',
    });
    const observe = (_: string, ms: number) => (ms > 10_000 && ms < 20_000 ? SEEN_DOWN : SEEN_UP);
    const path = await record(40_000, { config, observe }, (node) => {
      node.runUntil(39_000);
      node.leave();
    });
    const again = await SimulatedNode.start({ path, config, wallUs: Date.UTC(2026, 10, 22, 4) * 1000 });
    again.runUntil(10_000);
    await again.journal.close();
    const { real, would } = ask(path, config);
    expect(statesOf(real, 'tracker/script/reachable')).toContain('down');
    expect(statesOf(real, 'group/both')).toContain('fault');
    expect(byTime(would)).toEqual(byTime(real));
    expect(withReader(path, verify).divergence).toBeNull();
  });

  test('with an address that is held by listening on it', async () => {
    const options: GatewayOptions = {
      bind: '127.0.0.100:8080',
      router: {
        interface: undefined,
        transport: 'udp',
        source: '127.0.0.2',
        peers: ['127.0.0.3'],
        addresses: ['127.0.0.100'],
      },
    };
    const path = await record(40_000, { ...outage, config: gatewayConfig(options) }, (node) => {
      node.peer('127.0.0.3');
    });
    const { real, would } = ask(path, gatewayConfig(options));
    expect(statesOf(real, 'listener/shop/127.0.0.100:8080')).toEqual([
      'closed',
      'opening',
      'open',
      'draining',
      'closed',
    ]);
    expect(statesOf(would, 'listener/shop/127.0.0.100:8080')).toEqual(statesOf(real, 'listener/shop/127.0.0.100:8080'));
    expect(statesOf(would)).toEqual(statesOf(real));
  });
});

describe('another configuration', () => {
  const weight = (value: number) => gatewayConfig({ router: { track: [{ pool: 'web', weight: value }] } });

  test('weight −30 instead of −60: it would have stayed master, against the adverts of the one that took over', async () => {
    const path = await record(50_000, outage, (node) => void node.peer('10.9.0.12'));
    const { real, would, assumed } = ask(path, weight(-30));
    expect(statesOf(real)).toEqual(['initialize', 'backup', 'master', 'backup']);
    expect(statesOf(would)).toEqual(['initialize', 'backup', 'master']);
    expect(assumed).toEqual([]);
  });

  test('weight −60 instead of −30: it would have given way to a peer that had been heard, which is an assumption', async () => {
    const path = await record(90_000, { ...outage, config: weight(-30) }, (node) => {
      // The peer was master once, and so its priority is known.
      node.hear('gateway', advertFrom('10.9.0.12', 100));
      node.peer('10.9.0.12');
    });
    const { real, would, assumed } = ask(path, weight(-60));
    expect(statesOf(real)).toEqual(['initialize', 'backup', 'master']);
    expect(statesOf(would)).toEqual(['initialize', 'backup', 'master', 'backup', 'master']);
    expect(assumed).toEqual(['10.9.0.12 (priority 100) takes over from router/gateway when that falls below it']);
    const at = (state: string, from: number) =>
      would.filter((one) => one.actor === 'router/gateway' && one.state === state).at(from)!.timeUs;
    // The pool is lost at 19 s; the peer waits for its master-down time from the next advert on.
    expect((at('backup', 1) - real[0]!.timeUs) / 1e6).toBeGreaterThan(21);
    expect((at('backup', 1) - real[0]!.timeUs) / 1e6).toBeLessThan(24);
  });

  test('weight −60 instead of −30 where the peer had fallen silent as a master: nobody takes over', async () => {
    const patient = (value: number) =>
      gatewayConfig({ router: { preempt: false, track: [{ pool: 'web', weight: value }] } });
    const path = await record(50_000, { ...outage, config: patient(-30) }, (node) => {
      node.runUntil(500);
      node.hear('gateway', advertFrom('10.9.0.12', 100));
    });
    const { real, would, assumed } = ask(path, patient(-60));
    expect(statesOf(real)).toEqual(['initialize', 'backup', 'master']);
    expect(assumed).toEqual([]);
    expect(statesOf(would)).toEqual(statesOf(real));
  });

  test('a lower priority: it is never master again', async () => {
    const path = await record(60_000, {}, (node) => {
      const peer = node.peer('10.9.0.12');
      node.runUntil(20_000);
      node.system.send('router/gateway', { type: 'operator.demote' });
      node.runUntil(30_000);
      node.system.send('router/gateway', { type: 'operator.promote' });
      expect(peer.alive).toBe(true);
    });
    const { real, would } = ask(path, gatewayConfig({ router: { priority: 90 } }));
    expect(statesOf(real)).toEqual(['initialize', 'backup', 'master', 'backup', 'master']);
    expect(statesOf(would).at(-1)).toBe('backup');
  });

  test('preempt: false: it would not have taken over from the lower one', async () => {
    const path = await record(40_000, {}, (node) => {
      node.runUntil(1000);
      for (let ms = 1000; ms < 4000; ms += 500) {
        node.hear('gateway', advertFrom('10.9.0.12', 100));
        node.runUntil(ms);
      }
      for (let ms = 4000; ms < 40_000; ms += 1000) {
        node.hear('gateway', advertFrom('10.9.0.12', 100));
        node.runUntil(ms);
      }
    });
    const { real, would } = ask(path, gatewayConfig({ router: { preempt: false } }));
    expect(statesOf(real)).toEqual(['initialize', 'backup', 'master']);
    expect(statesOf(would)).toEqual(['initialize', 'backup']);
  });

  test('a shorter interval: it would have been master sooner', async () => {
    const path = await record(20_000, {}, () => {});
    const { real, would } = ask(path, gatewayConfig({ router: { advertise: '100ms' } }));
    const master = (transitions: WhatIfTransition[]) =>
      transitions.find(({ actor, state }) => actor === 'router/gateway' && state === 'master')!.timeUs;
    expect((master(real) - master(would)) / 1000).toBeCloseTo(3414.0625 - 341.40625, 0);
  });

  test('a pool that falls later: the router gives way later', async () => {
    const path = await record(50_000, outage, (node) => void node.peer('10.9.0.12'));
    const { real, would } = ask(path, gatewayConfig({ fall: 9 }));
    const down = (transitions: WhatIfTransition[]) =>
      transitions.find(({ actor, state }) => actor === 'tracker/pool/web' && state === 'down')!.timeUs;
    // Six failures more, 500 ms apart; the journal has a check every 2 s from the third on, so it can't say it to the ms.
    const laterMs = (down(would) - down(real)) / 1000;
    expect(laterMs).toBeGreaterThan(2500);
    expect(laterMs).toBeLessThan(4500);
  });

  test('another rhythm of a script sees what the old one saw; one that is new is unobserved', async () => {
    const script = { script: ['/bin/true'], name: 'reachable', weight: -60 };
    const config = (more: Record<string, unknown>) => gatewayConfig({ router: { track: [{ ...script, ...more }] } });
    const observe = (_: string, ms: number) => (ms > 10_000 && ms < 20_000 ? SEEN_DOWN : SEEN_UP);
    const path = await record(30_000, { config: config({}), observe }, () => {});
    const slower = ask(path, config({ fall: 5 }));
    expect(slower.unobserved).toEqual([]);
    expect(statesOf(slower.would, 'tracker/script/reachable')).toEqual(['up', 'goingDown', 'down', 'up']);
    const other = gatewayConfig({ router: { track: [{ script: ['/bin/false'], weight: -60 }] } });
    expect(ask(path, other).unobserved).toEqual(['tracker/script/false']);
  });

  test('a router that is new: nothing is made up about it', async () => {
    const path = await record(10_000, {}, () => {});
    const inside = { vrid: 52, interface: 'eth1', addresses: ['192.168.0.100/24'] };
    const { would, unobserved } = ask(path, gatewayConfig({ others: { inside } }));
    expect(unobserved).toEqual(['router/inside']);
    expect(statesOf(would, 'router/inside')).toEqual(['initialize']);
  });
});
