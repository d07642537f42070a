/** Explanations as a person on call reads them. The transcripts are read in review: each sentence must be true. */
import { beforeAll, describe, expect, test } from 'vitest';
import { formatExplanation } from '../src/cli/explain.ts';
import { UnderstudyError } from '../src/errors.ts';
import { explain } from '../src/worlds/explain.ts';
import type { Explanation } from '../src/worlds/explain.ts';
import { downWhile, makeFolder, NIGHT_US, SimulatedNode, webConfig, withReader } from './journalHelpers.ts';
import type { SimulatedOptions } from './journalHelpers.ts';
import { failInARow, parseObserve, withObserve } from './observeHelpers.ts';

beforeAll(() => {
  process.env['TZ'] = 'UTC';
});

const at = (ms: number) => NIGHT_US + ms * 1000;

const record = async (
  untilMs: number,
  options: Partial<SimulatedOptions> = {},
  during?: (node: SimulatedNode) => void,
) => {
  const path = `${makeFolder()}/lb1.db`;
  const node = await SimulatedNode.start({ path, ...options });
  during?.(node);
  node.runUntil(untilMs);
  await node.journal.close();
  return path;
};

const explained = (path: string, actor: string, atMs?: number): Explanation =>
  withReader(path, (reader) => explain(reader, actor, atMs === undefined ? undefined : at(atMs)));

const text = (explanation: Explanation): string => `${formatExplanation(explanation)}\n`;
const file = (name: string): string => `./transcripts/explain-${name}.txt`;

const outage = { health: downWhile({ web1: [[18_000, 30_000]] }) };

describe('a server', () => {
  test('up since its first check', async () => {
    await expect(text(explained(await record(15_000), 'server/web/web1', 15_000))).toMatchFileSnapshot(file('up'));
  });

  test('going down', async () => {
    await expect(text(explained(await record(18_700, outage), 'server/web/web1', 18_700))).toMatchFileSnapshot(
      file('going-down'),
    );
  });

  test('down', async () => {
    const explanation = explained(await record(25_000, outage), 'server/web/web1', 25_000);
    expect(explanation.state).toBe('down,ready,cold');
    // 18 s and twice 500 ms after it, each check taking 0.75 ms.
    expect(explanation.sinceUs).toBe(at(19_000.75));
    await expect(text(explanation)).toMatchFileSnapshot(file('down'));
  });

  test('back up', async () => {
    await expect(text(explained(await record(40_000, outage), 'server/web/web1', 40_000))).toMatchFileSnapshot(
      file('back-up'),
    );
  });

  test('back up with slow start: since it is up, not since the last step', async () => {
    const path = await record(60_000, { ...outage, config: webConfig({ slowStart: '5s' }) });
    const explanation = explained(path, 'server/web/web1', 60_000);
    expect(explanation.headline).toContain('is UP since 2026-11-22 03:00:31.');
    await expect(text(explanation)).toMatchFileSnapshot(file('slow-start'));
  });

  test('whose fast interval is the plain one is not said to be checked more often', async () => {
    const path = await record(20_500, { ...outage, config: webConfig({ fastInterval: '2s' }) });
    expect(text(explained(path, 'server/web/web1', 20_500))).not.toContain('checked more often');
  });

  test('at a time in the past, as it was then', async () => {
    const path = await record(60_000, outage);
    expect(explained(path, 'server/web/web1', 25_000).headline).toContain('is DOWN since 2026-11-22 03:00:19.000 (');
  });

  test('down at its first check', async () => {
    const path = await record(9000, { health: downWhile({ web1: [[0, 99_000]] }) });
    await expect(text(explained(path, 'server/web/web1', 9000))).toMatchFileSnapshot(file('first-check-down'));
  });

  test('drained', async () => {
    const path = await record(20_000, {}, (node) => {
      node.runUntil(12_000);
      node.operator('drain');
    });
    await expect(text(explained(path, 'server/web/web1', 20_000))).toMatchFileSnapshot(file('drain'));
  });

  test('drained while it was down: it is not DOWN since the drain', async () => {
    const path = await record(29_000, outage, (node) => {
      node.runUntil(25_000);
      node.operator('drain');
    });
    const explanation = explained(path, 'server/web/web1', 29_000);
    expect(explanation.headline).not.toMatch(/DOWN, drained by an operator since 2026-11-22 03:00:25/);
    await expect(text(explanation)).toMatchFileSnapshot(file('down-then-drain'));
  });

  test('in maintenance', async () => {
    const path = await record(20_000, {}, (node) => {
      node.runUntil(12_000);
      node.operator('maintenance');
    });
    await expect(text(explained(path, 'server/web/web1', 20_000))).toMatchFileSnapshot(file('maintenance'));
  });

  test('back from maintenance', async () => {
    const path = await record(30_000, {}, (node) => {
      node.runUntil(12_000);
      node.operator('maintenance');
      node.runUntil(20_000);
      node.operator('ready');
    });
    const told = text(explained(path, 'server/web/web1', 30_000));
    expect(told).toContain('An operator set it to ready: checks begin again.');
    expect(told).not.toContain('It was not checked yet from here on');
    await expect(text(explained(path, 'server/web/web1', 30_000))).toMatchFileSnapshot(file('maintenance-over'));
  });

  test('after a restart with a hint and an operator’s drain', async () => {
    const path = await record(20_000, {}, (node) => {
      node.runUntil(12_000);
      node.operator('drain');
    });
    const again = await SimulatedNode.start({ path, wallUs: at(60_000), health: downWhile({ web1: [[0, 500]] }) });
    again.runUntil(400);
    await again.journal.close();
    const told = text(explained(path, 'server/web/web1', 60_400));
    expect(told).toContain('it had been UP when the node last ran');
    expect(told).toContain('As an operator had wanted before the node started again, it was set to drain');
    await expect(text(explained(path, 'server/web/web1', 60_400))).toMatchFileSnapshot(file('restart'));
  });
});

describe('live traffic', () => {
  const outliers = parseObserve({ outliers: {} });
  const observe = (onError: string) => parseObserve({ observe: { layer: 'layer7', errorLimit: 5, onError } });
  const three = webConfig({ servers: ['web1', 'web2', 'web3'] });

  test('an outlier: why it was ejected, how many may be, and when it returns', async () => {
    const path = await record(40_000, { config: withObserve(three, outliers) }, (node) => {
      node.runUntil(20_000);
      failInARow(node, 'web2');
      node.runUntil(21_000);
      failInARow(node, 'web3');
    });
    const explanation = explained(path, 'server/web/web2', 40_000);
    expect(explanation.headline).toContain(
      'is UP since 2026-11-22 03:00:00.001 (40.0 s). It is EJECTED since 2026-11-22 03:00:20.000 (20.0 s) until 03:00:50.000.',
    );
    await expect(text(explanation)).toMatchFileSnapshot(file('ejected'));
    await expect(text(explained(path, 'observer/web/web3', 40_000))).toMatchFileSnapshot(file('not-ejected'));
    await expect(text(explained(path, 'pool/web', 40_000))).toMatchFileSnapshot(file('pool-with-outlier'));
  });

  test('one that is back from its second ejection', async () => {
    const path = await record(200_000, { config: withObserve(three, outliers) }, (node) => {
      for (const ms of [20_000, 60_000]) {
        node.runUntil(ms);
        failInARow(node, 'web2');
      }
    });
    const explanation = explained(path, 'server/web/web2', 200_000);
    expect(explanation.headline).not.toContain('EJECTED');
    await expect(text(explanation)).toMatchFileSnapshot(file('ejected-twice'));
    await expect(text(explained(path, 'observer/web/web2', 200_000))).toMatchFileSnapshot(file('observer'));
  });

  test('one that goes down while it is ejected tells of both', async () => {
    const path = await record(
      40_000,
      { config: withObserve(three, outliers), health: downWhile({ web2: [[25_000, 99_000]] }) },
      (node) => {
        node.runUntil(20_000);
        failInARow(node, 'web2');
      },
    );
    await expect(text(explained(path, 'server/web/web2', 40_000))).toMatchFileSnapshot(file('ejected-and-down'));
  });

  test.each(['failCheck', 'suddenDeath', 'markDown', 'fastInterval'])(
    'errors that count against health: %s',
    async (onError) => {
      const path = await record(
        20_600,
        { config: withObserve(three, observe(onError)), health: downWhile({ web2: [[20_100, 99_000]] }) },
        (node) => {
          node.runUntil(20_000);
          failInARow(node, 'web2');
        },
      );
      await expect(text(explained(path, 'server/web/web2', 20_600))).toMatchFileSnapshot(
        file(`on-error-${onError.replace(/[A-Z]/, (letter) => `-${letter.toLowerCase()}`)}`),
      );
    },
  );

  test('a pool that panics', async () => {
    const health = downWhile({ web1: [[18_000, 99_000]], web2: [[20_000, 99_000]] });
    const path = await record(30_000, { health, config: withObserve(three, parseObserve({ panic: '50 %' })) });
    expect(explained(path, 'pool/web', 30_000).state).toBe('panicking');
    await expect(text(explained(path, 'pool/web', 30_000))).toMatchFileSnapshot(file('pool-panicking'));
  });
});

describe('a pool', () => {
  const backups = webConfig({ servers: ['web1', 'web2'], backups: ['spare'] });

  test('serving', async () => {
    await expect(text(explained(await record(40_000, outage), 'pool/web', 40_000))).toMatchFileSnapshot(
      file('pool-serving'),
    );
  });

  test('on its backups', async () => {
    const health = downWhile({ web1: [[18_000, 99_000]], web2: [[20_000, 99_000]] });
    const path = await record(30_000, { health, config: backups });
    expect(explained(path, 'pool/web', 30_000).state).toBe('onBackups');
    await expect(text(explained(path, 'pool/web', 30_000))).toMatchFileSnapshot(file('pool-on-backups'));
  });

  test('exhausted', async () => {
    const health = downWhile({ web1: [[18_000, 99_000]], web2: [[20_000, 99_000]] });
    const path = await record(30_000, { health });
    expect(explained(path, 'pool/web', 30_000).state).toBe('exhausted');
    // It took both servers to exhaust it.
    expect(text(explained(path, 'pool/web', 30_000))).toContain('web1 became down');
    await expect(text(explained(path, 'pool/web', 30_000))).toMatchFileSnapshot(file('pool-exhausted'));
  });
});

test('an actor that isn’t there: the ones that are, are named', async () => {
  const path = await record(5000);
  expect(() => explained(path, 'server/web/web9', 5000)).toThrow(UnderstudyError);
  expect(() => explained(path, 'server/web/web9', 5000)).toThrow(/server\/web\/web1, server\/web\/web2/);
});
