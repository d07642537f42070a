/** A configuration in layers: who wins, and where a problem is told of. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { layerOf, merged } from '../src/config/layers.ts';
import { formatProblem, loadLayers } from '../src/config/load.ts';
import { loadOwnPart } from '../src/config/ownPart.ts';
import type { Revision } from '../src/config/revision.ts';
import type { Config } from '../src/config/schema.ts';
import { readCache, writeCache } from '../src/config/sharedCache.ts';
import { ConfigSource } from '../src/config/source.ts';
import { UnderstudyError } from '../src/errors.ts';
import { tempFolder, understudy, writeFile } from './nodeHelpers.ts';

const OWN = [
  'cluster: shop',
  'node: lb1',
  'shared: true',
  'bus: { nats: { servers: ["nats://127.0.0.1:1"], startWait: 100ms } }',
  'journal: { path: ./lb1.db }',
  'workers: 1',
  '',
].join('\n');

const SHARED = [
  'frontends:',
  '  shop: { mode: http, bind: ["127.0.0.1:0"], use: web }',
  'backends:',
  '  web:',
  '    retries: 1',
  '    servers:',
  '      - { name: web1, address: "10.0.0.1:80" }',
  '      - { name: web2, address: "10.0.0.2:80" }',
  '',
].join('\n');

type Texts = { shared?: string; overlay?: string | null; own?: string; environment?: Record<string, string> };

const load = ({ shared = SHARED, overlay = null, own = OWN, environment = {} }: Texts, folder = '/etc/understudy') => {
  const layers = [
    { source: 'shared.yaml', text: shared },
    ...(overlay === null ? [] : [{ source: 'lb1-over.yaml', text: overlay }]),
    { source: null, text: own },
  ];
  return loadLayers(layers, environment, folder);
};

const configOf = (texts: Texts, folder?: string): Config => {
  const loaded = load(texts, folder);
  if ('config' in loaded) return loaded.config;
  throw new Error(loaded.problems.map((problem) => formatProblem('lb1.yaml', problem)).join('\n'));
};

const linesOf = (texts: Texts): string[] => {
  const loaded = load(texts);
  return 'problems' in loaded ? loaded.problems.map((problem) => formatProblem('lb1.yaml', problem)) : [];
};

describe('merging', () => {
  test('maps are merged key by key, at any depth', () => {
    expect(merged({ a: { b: 1, c: { d: 2 } }, x: 1 }, { a: { c: { e: 3 } }, y: 2 })).toEqual({
      a: { b: 1, c: { d: 2, e: 3 } },
      x: 1,
      y: 2,
    });
  });

  test.each([
    ['a list', [1, 2], [3]],
    ['a scalar', 1, 2],
    ['a map by a scalar', { a: 1 }, false],
    ['a list by a map', [1], { a: 1 }],
    ['anything by nothing', { a: 1 }, null],
  ])('%s is replaced', (_what, below, above) => {
    expect(merged({ key: below }, { key: above })).toEqual({ key: above });
  });

  test('names that objects know by themselves are names like others', () => {
    const below = JSON.parse('{ "__proto__": { "a": 1 }, "constructor": 1 }') as unknown;
    const both = merged(below, JSON.parse('{ "__proto__": { "b": 2 } }')) as object;
    expect(JSON.stringify(both)).toBe('{"__proto__":{"a":1,"b":2},"constructor":1}');
    expect(({} as { b?: number }).b).toBeUndefined();
  });

  test('the overlay stands over the shared text, and the node’s own file over both', () => {
    const { backends, workers, node } = configOf({
      overlay: 'backends: { web: { retries: 2, maxQueue: 5 } }\nworkers: 3\n',
      own: `${OWN}backends: { web: { retries: 7 } }\n`,
    });
    expect(backends['web']).toMatchObject({ retries: 7, maxQueue: 5 });
    expect(backends['web']!.servers.map(({ name }) => name)).toEqual(['web1', 'web2']);
    expect({ workers, node }).toEqual({ workers: 1, node: 'lb1' });
  });

  test('relative paths of all layers are taken from the folder of the node’s own file', () => {
    const folder = tempFolder();
    mkdirSync(join(folder, 'pages'));
    writeFileSync(join(folder, 'pages/503.html'), 'Sorry.');
    const shared = SHARED.replace('retries: 1', 'errorPages: { 503: pages/503.html }');
    expect(configOf({ shared }, folder).backends['web']!.errorPages).toEqual({ 503: join(folder, 'pages/503.html') });
  });

  test('each node fills in its own environment', () => {
    const shared = SHARED.replace('retries: 1', 'retries: ${RETRIES}');
    expect(configOf({ shared, environment: { RETRIES: '4' } }).backends['web']!.retries).toBe(4);
    expect(linesOf({ shared })).toEqual([
      'shared.yaml:5:14 backends.web.retries: the environment has no RETRIES; ${RETRIES:-default} gives it a default',
    ]);
    // What another layer replaces is not looked for.
    expect(linesOf({ shared, overlay: 'backends: { web: { retries: 2 } }' })).toEqual([]);
  });
});

describe('where a problem stands', () => {
  test('every problem is told at once, in the layer whose value it is', () => {
    expect(
      linesOf({
        shared: SHARED.replace('retries: 1', 'retries: many').replace('use: web', 'use: web, drian: 5s'),
        overlay: 'backends:\n  web:\n    maxQueue: -1\n',
        own: `${OWN}wrokers: 2\n`,
      }),
    ).toEqual([
      'shared.yaml:2:56 frontends.shop.drian: unknown key; did you mean drain?',
      'shared.yaml:5:14 backends.web.retries: "many" is not a number',
      expect.stringMatching(/^lb1-over\.yaml:3:15 backends\.web\.maxQueue: -1 /),
      'lb1.yaml:7:1 wrokers: unknown key; did you mean workers?',
    ]);
  });

  test('a value that is replaced is nobody’s problem', () => {
    const shared = SHARED.replace('retries: 1', 'retries: many');
    expect(linesOf({ shared, overlay: 'backends: { web: { retries: 2 } }' })).toEqual([]);
  });

  test('what a list lacks is told where the list stands that holds', () => {
    const overlay = 'backends:\n  web:\n    servers:\n      - { name: web9 }\n';
    expect(linesOf({ overlay })).toEqual([
      'lb1-over.yaml:4:9 backends.web.servers[0].address: missing; a text is needed',
    ]);
  });

  test('what a map lacks that several layers make up is told where it begins', () => {
    const lines = linesOf({
      shared: SHARED.replace(', use: web', ''),
      own: `${OWN}frontends: { shop: { drain: 1s } }\n`,
    });
    expect(lines).toEqual(['shared.yaml:2:3 frontends.shop.use: missing; a text is needed']);
  });

  test('what only the whole can tell is told where the value stands', () => {
    expect(linesOf({ own: `${OWN}frontends: { shop: { use: wbe } }\n` })).toEqual([
      expect.stringMatching(/^lb1\.yaml:7:27 frontends\.shop\.use: .*wbe/),
    ]);
  });

  test('a text that is no YAML is told with its own line', () => {
    expect(linesOf({ shared: 'frontends:\n  shop: {', overlay: 'a: *b\n' })[0]).toMatch(/^shared\.yaml:2:/);
  });

  test.each(['cluster: x', 'node: x', 'bus: memory', 'journal: {}', 'api: {}', 'shared: true'])(
    '`%s` belongs to a node, and is refused in what is shared',
    (line) => {
      const key = line.split(':')[0]!;
      const message = `${key}: ${key} belongs to each node; it stands in the node's own file`;
      expect(linesOf({ shared: `${SHARED}${line}\n` })).toEqual([`shared.yaml:9:1 ${message}`]);
      expect(linesOf({ overlay: `${line}\n` })).toEqual([`lb1-over.yaml:1:1 ${message}`]);
    },
  );

  test('what is shared is a map', () => {
    expect(linesOf({ shared: '- a\n' })[0]).toBe('shared.yaml:1:1 what is shared is a map, like the file of a node');
  });

  test('without NATS there is nothing to share', () => {
    expect(linesOf({ own: 'shared: true\n' })).toEqual([
      'lb1.yaml:1:9 shared: what nodes share comes over NATS; this file has no bus.nats',
    ]);
  });

  test('a layer that begins with a scalar in place of a map hides what is below it', () => {
    expect(layerOf([{ a: { b: 1 } }, { a: 2 }, { a: { c: 1 } }], ['a', 'b'])).toBe(2);
    expect(layerOf([{ a: { b: 1 } }, { a: 2 }], ['a'])).toBe(1);
    expect(layerOf([{ a: { b: 1 } }, {}, { a: { c: 1 } }], ['a', 'b'])).toBe(0);
  });
});

describe('a file by itself', () => {
  test('its own keys are known, though what it stands over isn’t', () => {
    const loaded = loadOwnPart(`${OWN}frontends: { shop: { bind: ["127.0.0.1:1"] } }\n`, {}, '/etc');
    expect(loaded).toMatchObject({ config: { cluster: 'shop', node: 'lb1', shared: true, frontends: {} } });
  });

  test('what is wrong with them is told', () => {
    const loaded = loadOwnPart('shared: true\nnode: a b\nbus: { nats: { servers: [] } }\nfrontnds: 1\n', {}, '/etc');
    const paths = 'problems' in loaded ? loaded.problems.map(({ path }) => path) : [];
    expect(paths).toEqual(['node', 'bus.nats.servers', 'frontnds']);
  });

  test('check says what it can, and all with --shared', async () => {
    const folder = tempFolder();
    const own = writeFile(folder, 'lb1.yaml', OWN);
    const shared = writeFile(folder, 'shared.yaml', SHARED);
    const overlay = writeFile(folder, 'over.yaml', 'backends: { web: { retries: many } }\n');
    expect(await understudy(['check', own])).toMatchObject({
      status: 0,
      stdout: `${own} is valid by itself; with --shared FILE it is checked over what the cluster shares\n`,
    });
    expect((await understudy(['check', own, '--shared', shared])).stdout).toBe(
      `${own} is valid: 1 frontend, 1 backend, 2 servers\n`,
    );
    expect(await understudy(['check', own, '--shared', shared, '--overlay', overlay])).toMatchObject({
      status: 1,
      stdout: `${overlay}:1:29 backends.web.retries: "many" is not a number\n`,
    });
    expect((await understudy(['check', shared, '--shared', own])).status).toBe(2);
  });
});

describe('where a node’s configuration comes from', () => {
  const revision = (number: number, text = SHARED, overlays: Record<string, string> = {}): Revision => ({
    revision: number,
    author: 'me@here',
    message: 'why: "quoted"',
    timeMs: 1,
    leader: 'lb1',
    rollbackOf: null,
    text,
    overlays,
  });
  const away = () => Promise.reject(new UnderstudyError('NATS_UNREACHABLE', 'NATS is away'));

  const open = async (folder: string, fetch: () => Promise<Revision | null>) => {
    const warnings: string[] = [];
    const source = await ConfigSource.open(
      join(folder, 'lb1.yaml'),
      {},
      { fetch, warn: (text) => warnings.push(text) },
    );
    return { source, warnings };
  };
  const folderWith = (cached: Revision | null): string => {
    const folder = tempFolder();
    writeFile(folder, 'lb1.yaml', OWN);
    if (cached) writeCache(join(folder, 'lb1.db'), 'shop', cached);
    return folder;
  };

  test('the cache gives back what was put there, to the same cluster only', () => {
    const folder = tempFolder();
    const text = `${SHARED}# ümlaut: "\\t"\r\n\ttab `;
    writeCache(join(folder, 'lb1.db'), 'shop', revision(3, text, { lb1: '', lb2: 'workers: 1' }));
    expect(readCache(join(folder, 'lb1.db'), 'shop')).toEqual(revision(3, text, { lb1: '', lb2: 'workers: 1' }));
    expect(readCache(join(folder, 'lb1.db'), 'other')).toBeNull();
    writeFileSync(join(folder, 'lb1.db.shared.yaml'), 'revision: {');
    expect(readCache(join(folder, 'lb1.db'), 'shop')).toBeNull();
  });

  test('a newer revision is taken and kept', async () => {
    const folder = folderWith(revision(3));
    const { source } = await open(folder, async () => revision(4));
    expect(source.revision).toBe(4);
    expect(readCache(join(folder, 'lb1.db'), 'shop')!.revision).toBe(4);
  });

  test('an older one isn’t: this node was told of a newer one', async () => {
    const { source } = await open(folderWith(revision(5)), async () => revision(4));
    expect(source.revision).toBe(5);
  });

  test('without NATS it is what last ran', async () => {
    const { source, warnings } = await open(folderWith(revision(3)), away);
    expect(source.revision).toBe(3);
    expect(source.load()).toHaveProperty('config.frontends.shop');
    expect(warnings).toEqual(['NATS is away: this node starts with revision 3, which it last ran']);
  });

  test('without NATS and without anything that ran, there is nothing', async () => {
    await expect(open(folderWith(null), away)).rejects.toMatchObject({
      code: 'CONFIG_UNREADABLE',
      message: expect.stringMatching(
        /^what cluster shop shares is not known: NATS is away\. A node's first start needs/,
      ),
    });
  });

  test('before the first push a node has its own part alone', async () => {
    const { source } = await open(folderWith(null), async () => null);
    expect(source.revision).toBe(0);
    expect(source.load()).toMatchObject({ config: { node: 'lb1', frontends: {} } });
  });

  test('one that this node can’t run is told, and what last ran goes on', async () => {
    const broken = revision(4, SHARED.replace('retries: 1', 'retries: many'));
    const { source } = await open(folderWith(revision(3)), async () => broken);
    expect(source.revision).toBe(3);
    expect(source.refused).toEqual({
      revision: 4,
      why: 'revision 4:5:14 backends.web.retries: "many" is not a number',
    });
    await expect(open(folderWith(null), async () => broken)).rejects.toMatchObject({ code: 'CONFIG_INVALID' });
  });

  test('overlays are those of this node', async () => {
    const overlays = { lb1: 'backends: { web: { retries: 2 } }', lb2: 'backends: { web: { retries: many } }' };
    const { source } = await open(folderWith(null), async () => revision(1, SHARED, overlays));
    expect(source.load()).toHaveProperty('config.backends.web.retries', 2);
    const problems = source.problemsOf({ text: SHARED, overlays: { lb1: overlays.lb2 } });
    expect(problems).toMatchObject([{ source: 'overlay lb1', line: 1, path: 'backends.web.retries' }]);
  });
});
