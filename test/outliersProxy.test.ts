/** What live traffic says of servers, in whole nodes: ejection and return, panic, observation, slow start. */
import type { RequestListener } from 'node:http';
import { describe, expect, test } from 'vitest';
import type { StateView } from '../src/api/state.ts';
import { get, startStage, understudy, within } from './nodeHelpers.ts';
import type { Stage } from './nodeHelpers.ts';

const CHECK = 'check: { type: http, path: /healthz, interval: 100ms, timeout: 500ms, rise: 1, fall: 2 }';
const NO_RETRIES = 'retries: 0';

/** Whether a web answers 500 stands in its `failing`. */
type Failing = { web1: boolean; web2: boolean };

const serverOf = (state: StateView, name: string) => state.pools[0]!.servers.find((server) => server.name === name)!;

describe('live traffic', () => {
  const start = async (backend: string[]): Promise<{ stage: Stage; failing: Failing }> => {
    const failing: Failing = { web1: false, web2: false };
    const stage = await startStage({ top: ['workers: 2'], backend: [...backend, NO_RETRIES] });
    for (const web of stage.webs) {
      const usual = web.server.listeners('request')[0] as RequestListener;
      web.server.removeAllListeners('request');
      web.server.on('request', (request, response) => {
        if (request.url !== '/healthz' && failing[web.name as keyof Failing]) response.writeHead(500).end(web.name);
        else usual(request, response);
      });
    }
    if (backend.some((line) => line.startsWith('check')))
      for (const { name } of stage.webs) await stage.node.healthIs(`web/${name}`, 'up');
    return { stage, failing };
  };

  /** Asks until the state is as wanted; what was answered meanwhile. */
  const askUntil = async (
    { url, node }: Stage,
    what: string,
    check: (state: StateView) => boolean,
  ): Promise<number[]> => {
    const statuses: number[] = [];
    const asking = async () => {
      while (!check(await node.state())) for (let round = 0; round < 4; round++) statuses.push((await get(url)).status);
    };
    await within(what, asking());
    return statuses;
  };

  const statusesOf = async ({ url }: Stage, count: number): Promise<number[]> => {
    const statuses: number[] = [];
    for (let round = 0; round < count; round++) statuses.push((await get(url)).status);
    return statuses;
  };

  test('a server that answers 500 is ejected after so many in a row, explained, shown, and returns by itself', async () => {
    const { stage, failing } = await start(['outliers: { consecutiveErrors: 3, baseEjection: 6s }']);
    failing.web1 = true;
    const ejected = (state: StateView) => serverOf(state, 'web1').ejected !== null;
    const statuses = await askUntil(stage, 'its ejection', ejected);
    expect(statuses.filter((status) => status === 500).length).toBeGreaterThanOrEqual(3);
    const api = ['--api', stage.node.api];
    const [shown, explanation] = await Promise.all([
      understudy(['status', ...api]),
      understudy(['explain', 'server/web/web1', ...api]),
    ]);
    expect(shown.stdout).toMatch(/web1 .*ejected for /);
    const explained = explanation.stdout;
    expect(explained).toMatch(/It is EJECTED since/);
    expect(explained).toMatch(
      /exchanges in a row failed, the last one: it answered 500; 1 of 2 servers may be ejected/,
    );
    failing.web1 = false;
    await askUntil(stage, 'its return', (state) => !ejected(state));
    const before = stage.webs[0]!.requests;
    await askUntil(stage, 'its traffic', () => stage.webs[0]!.requests > before);
    expect((await statusesOf(stage, 10)).every((status) => status === 200)).toBe(true);
    expect((await understudy(['explain', 'observer/web/web1', ...api])).stdout).toMatch(
      /Its time was over: it takes traffic again/,
    );
  });

  test('while it is ejected nobody is sent there', async () => {
    const { stage, failing } = await start(['outliers: { consecutiveErrors: 3, baseEjection: 60s }']);
    failing.web1 = true;
    await askUntil(stage, 'its ejection', (state) => serverOf(state, 'web1').ejected !== null);
    // Workers hear of it within moments.
    await within(
      'ten answers in a row from web2',
      (async () => {
        while ((await statusesOf(stage, 10)).includes(500));
      })(),
    );
    const before = stage.webs[0]!.requests;
    expect((await statusesOf(stage, 20)).every((status) => status === 200)).toBe(true);
    expect(stage.webs[0]!.requests).toBe(before);
  });

  test('the last server that works is not ejected, however it answers', async () => {
    const { stage, failing } = await start(['outliers: { consecutiveErrors: 3, baseEjection: 60s, maxEjected: 100% }']);
    Object.assign(failing, { web1: true, web2: true });
    await askUntil(stage, 'an ejection', (state) => state.pools[0]!.servers.some(({ ejected }) => ejected));
    await statusesOf(stage, 20);
    const { servers } = (await stage.node.state()).pools[0]!;
    expect(servers.filter(({ ejected }) => ejected !== null)).toHaveLength(1);
    expect((await get(stage.url)).status).toBe(500);
  });

  test('when too few are well, health is not believed: all take traffic', async () => {
    const { stage } = await start(['panic: 60%', CHECK]);
    stage.webs[0]!.healthy = false;
    await stage.node.until('panic', (state) => state.pools[0]!.state === 'panicking');
    const before = stage.webs[0]!.requests;
    await askUntil(stage, 'traffic at the server that is down', () => stage.webs[0]!.requests > before);
    const api = ['--api', stage.node.api];
    expect((await understudy(['status', ...api])).stdout).toMatch(/panicking/);
    expect((await understudy(['explain', 'pool/web', ...api])).stdout).toMatch(
      /health is not believed: all take traffic/,
    );
    stage.webs[0]!.healthy = true;
    await stage.node.until('calm', (state) => state.pools[0]!.state === 'serving');
  });

  test('observe with markDown: errors of live traffic mark a server down whose checks pass', async () => {
    const { stage, failing } = await start([
      'observe: { layer: layer7, errorLimit: 3, onError: markDown }',
      CHECK.replace('interval: 100ms', 'interval: 30s'),
    ]);
    failing.web1 = true;
    await askUntil(stage, 'it is down', (state) => serverOf(state, 'web1').health === 'down');
    const api = ['--api', stage.node.api];
    expect((await understudy(['explain', 'server/web/web1', ...api])).stdout).toMatch(
      /Errors of live traffic: \d+ exchanges in a row failed, the last one: it answered 500\. That marks it DOWN\./,
    );
    expect((await understudy(['status', ...api])).stdout).toMatch(/web1 .*down/);
  });

  test('observe in layer 4: a server that refuses connections is found before its next check', async () => {
    const { stage } = await start([
      'observe: { layer: layer4, errorLimit: 2, onError: markDown }',
      CHECK.replace('interval: 100ms', 'interval: 30s'),
    ]);
    stage.webs[0]!.server.close();
    stage.webs[0]!.server.closeAllConnections();
    await askUntil(stage, 'it is down', (state) => serverOf(state, 'web1').health === 'down');
    expect((await understudy(['explain', 'server/web/web1', '--api', stage.node.api])).stdout).toMatch(
      /it could not be connected to \(ECONNREFUSED\)/,
    );
  });

  test('slowStart: a server that returns gets a growing share', async () => {
    const { stage } = await start(['slowStart: 3s', CHECK]);
    const [web1, web2] = stage.webs;
    web1!.healthy = false;
    await stage.node.healthIs('web/web1', 'down');
    web1!.healthy = true;
    await stage.node.healthIs('web/web1', 'up');
    const shares = new Set<number>();
    const [before1, before2] = [web1!.requests, web2!.requests];
    await askUntil(stage, 'the whole share', (state) => {
      const { share } = serverOf(state, 'web1');
      shares.add(share);
      return share === 100;
    });
    expect(shares.size).toBeGreaterThan(3);
    expect([...shares]).toEqual([...shares].toSorted((a, b) => a - b));
    expect(web1!.requests - before1).toBeLessThan(web2!.requests - before2);
  });
});
