/** The configurations in deploy/examples, which users copy and `npm run lab` runs. */
import { execFileSync } from 'node:child_process';
import { cpSync, readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import type { Lab } from '../../deploy/lab/lab.ts';
import { startNginx } from '../../deploy/lab/nginx.ts';
import { until } from '../../deploy/lab/until.ts';
import { loadConfigFile } from '../../src/config/load.ts';
import type { Config } from '../../src/config/schema.ts';
import { listenersOf } from '../../src/dataPlaneWiring.ts';
import { tempFolder } from '../nodeHelpers.ts';
import { has, isRoot } from '../packages.ts';
import { labForTest } from './labHelpers.ts';
import { LabNode } from '../../deploy/lab/node.ts';
import type { NodeConfig } from '../../deploy/lab/node.ts';

const examples = resolve(import.meta.dirname, '../../deploy/examples');

const load = (example: string, node: string): Config => {
  const loaded = loadConfigFile(join(examples, example, `${node}.yaml`), {});
  if ('problems' in loaded) throw new Error(JSON.stringify(loaded.problems, null, 2));
  return loaded.config;
};

describe.each(readdirSync(examples).filter((name) => name.startsWith('active-')))('%s', (example) => {
  test('is a pair that differs in names and priorities only', () => {
    const plain = ({ routers, ...config }: Config) => ({
      ...config,
      node: '',
      journal: { ...config.journal, path: '' },
      routers: Object.fromEntries(Object.entries(routers).map(([name, router]) => [name, { ...router, priority: 0 }])),
    });
    const [lb1, lb2] = [load(example, 'lb1'), load(example, 'lb2')];
    expect([lb1.node, lb2.node]).toEqual(['lb1', 'lb2']);
    expect(plain(lb1)).toEqual(plain(lb2));
  });

  test('has one master for each router, and it gives way when it alone reaches no server', () => {
    const [lb1, lb2] = [load(example, 'lb1'), load(example, 'lb2')];
    for (const name of Object.keys(lb1.routers)) {
      const [low, high] = [lb1, lb2].map(({ routers }) => routers[name]!).sort((a, b) => a.priority - b.priority);
      expect(low!.priority).toBeLessThan(high!.priority);
      expect(high!.track).toMatchObject([{ pool: 'web', weight: -60 }]);
      expect(high!.priority - 60).toBeLessThan(low!.priority);
    }
  });
});

test('active-active gives each node one address to hold', () => {
  const [lb1, lb2] = [load('active-active', 'lb1'), load('active-active', 'lb2')];
  const masters = Object.keys(lb1.routers).map((name) =>
    lb1.routers[name]!.priority > lb2.routers[name]!.priority ? 'lb1' : 'lb2',
  );
  expect(masters).toEqual(['lb1', 'lb2']);
});

describe('shop', () => {
  const shop = join(examples, 'shop');

  test('asks for nothing but a certificate and a password, which it says how to make', () => {
    const loaded = loadConfigFile(join(shop, 'shop.yaml'), {});
    expect('problems' in loaded && loaded.problems.map(({ path }) => path)).toEqual([
      'frontends.shop.bind[0].tls.certificates[0]',
      'frontends.shop.rules[2].allow.users.ann',
    ]);
  });

  test.skipIf(!has('openssl'))('is valid with those, made as it says', () => {
    const folder = tempFolder();
    cpSync(shop, folder, { recursive: true });
    const file = join(folder, 'shop.yaml');
    const commands = [...readFileSync(file, 'utf8').matchAll(/^# {3}(.*)$/gm)].map(([, command]) => command);
    expect(commands).toHaveLength(2);
    execFileSync('sh', ['-e', '-c', commands.join('\n')], { cwd: folder, stdio: 'pipe' });
    const loaded = loadConfigFile(file, {});
    if ('problems' in loaded) throw new Error(JSON.stringify(loaded.problems, null, 2));
    expect(listenersOf(loaded.config).map(({ id, http2 }) => [id, http2 !== null])).toEqual([
      ['listener/plain/*:80', false],
      ['listener/shop/*:443', true],
      ['listener/shop/127.0.0.1:8080', false],
    ]);
  });
});

/** The hosts that the examples speak of, with the nodes running them, and how a client asks an address. */
const startExample = async (lab: Lab, example: string) => {
  const lan = (name: string, address: string) => lab.host(name, { addresses: { eth0: [`${address}/24`] } });
  const client = await lan('client', '10.9.0.31');
  for (const [index, name] of ['web1', 'web2', 'web3'].entries())
    await startNginx(await lan(name, `10.9.0.${21 + index}`), name);
  const startNode = async (name: string, address: string): Promise<LabNode> => {
    // The lab keeps the journal where it looks for it.
    const { journal: _journal, ...config } = parse(
      readFileSync(join(examples, example, `${name}.yaml`), 'utf8'),
    ) as NodeConfig;
    return LabNode.start(await lan(name, address), config);
  };
  const [lb1, lb2] = [await startNode('lb1', '10.9.0.11'), await startNode('lb2', '10.9.0.12')];
  const holders = async (address: string): Promise<string[]> => {
    const held = await Promise.all([lb1, lb2].map(({ host }) => host.holds(address)));
    return [lb1, lb2].filter((_, index) => held[index]).map(({ name }) => name);
  };
  return {
    lb1,
    lb2,
    untilHeld: (address: string, by: string) =>
      until(`${by} alone holds ${address}`, async () => (await holders(address)).join() === by),
    ask: async (address: string) => (await client.run('curl', ['-s', '-m', '5', `http://${address}/`])).trim(),
  };
};

describe.skipIf(!isRoot)('on hosts of their own', () => {
  test('active-backup: lb2 takes the address over when lb1 dies, and gives it back', async () => {
    const { lb1, lb2, untilHeld, ask } = await startExample(await labForTest(), 'active-backup');
    await untilHeld('10.9.0.100', 'lb1');
    expect(await ask('10.9.0.100')).toMatch(/^web[123]$/);
    await lb1.end('SIGKILL');
    await untilHeld('10.9.0.100', 'lb2');
    expect(await ask('10.9.0.100')).toMatch(/^web[123]$/);
    await lb1.run();
    await untilHeld('10.9.0.100', 'lb1');
    expect(await ask('10.9.0.100')).toMatch(/^web[123]$/);
    for (const node of [lb1, lb2]) {
      await node.end();
      expect(node.verify().divergence).toBeNull();
    }
  });

  test('active-active: each has one address, one node alone has both', async () => {
    const { lb1, lb2, untilHeld, ask } = await startExample(await labForTest(), 'active-active');
    const eachHasOne = async () => {
      await untilHeld('10.9.0.100', 'lb1');
      await untilHeld('10.9.0.101', 'lb2');
    };
    await eachHasOne();
    for (const address of ['10.9.0.100', '10.9.0.101']) expect(await ask(address)).toMatch(/^web[123]$/);
    await lb2.end();
    await untilHeld('10.9.0.101', 'lb1');
    for (const address of ['10.9.0.100', '10.9.0.101']) expect(await ask(address)).toMatch(/^web[123]$/);
    await lb2.run();
    await eachHasOne();
    for (const node of [lb1, lb2]) {
      await node.end();
      expect(node.verify().divergence).toBeNull();
    }
  });
});
