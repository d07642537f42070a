import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { nkeys } from '@nats-io/transport-node';
import { expect, onTestFinished, test } from 'vitest';
import { nameOfToken, subjectsOf, tokenOf } from '../src/bus/subjects.ts';
import { replicasOf } from '../src/config/bus.ts';
import type { NatsConfig } from '../src/config/bus.ts';
import { formatProblem, loadConfig } from '../src/config/load.ts';
import { recordableConfig } from '../src/fingerprint.ts';

let made: string | null = null;
/** One for each test. */
const folder = (): string => {
  if (made !== null) return made;
  const path = (made = mkdtempSync(join(tmpdir(), 'understudy-bus-')));
  writeFileSync(join(path, 'secret'), 'secret\n');
  onTestFinished(() => {
    made = null;
    rmSync(path, { recursive: true });
  });
  return path;
};

/** What is wrong with a bus of this text, one line each. */
const problemsOf = (bus: string, at = '/'): string[] => {
  const loaded = loadConfig(`node: lb1\nbus: ${bus}\n`, {}, at);
  return 'problems' in loaded ? loaded.problems.map((problem) => formatProblem('lb1.yaml', problem)) : [];
};

const natsOf = (bus: string): NatsConfig => {
  const loaded = loadConfig(`node: lb1\nbus: ${bus}\n`, {}, folder());
  if ('problems' in loaded || loaded.config.bus === 'memory') throw new Error(JSON.stringify(loaded));
  return loaded.config.bus.nats;
};

test('without a word the bus is memory', () => {
  const loaded = loadConfig('node: lb1\n', {}, '/');
  expect('config' in loaded && loaded.config.bus).toBe('memory');
});

test('one server is enough; everything else has a default, and paths are those of the file’s folder', () => {
  expect(natsOf('{ nats: { servers: [nats://10.0.0.11:4222], user: lb1, password: { file: secret } } }')).toEqual({
    servers: ['nats://10.0.0.11:4222'],
    user: 'lb1',
    password: { file: join(folder(), 'secret') },
    keep: 90 * 86_400_000,
    maxSize: 10 * 1024 ** 3,
    startWait: 3_000,
  });
});

test('copies of the log: as many as servers are named, up to three, or as many as asked for', () => {
  const copies = (servers: number, more = '') =>
    replicasOf(
      natsOf(`{ nats: { servers: [${Array.from({ length: servers }, (_, n) => `nats://n${n}`).join()}]${more} } }`),
    );
  expect([copies(1), copies(2), copies(3), copies(5), copies(5, ', replicas: 5')]).toEqual([1, 2, 3, 3, 5]);
});

const NATS = 'servers: ["nats://a"]';

test.each([
  ['nats', '6 bus: "nats" is not a bus; allowed are memory and { nats: { servers: [nats://10.0.0.11:4222] } }'],
  ['{ nats: {} }', '8 bus.nats.servers: missing; a list is needed'],
  [
    '{ nats: { servers: ["10.0.0.1:4222"] } }',
    '26 bus.nats.servers[0]: "10.0.0.1:4222" is not the URL of a NATS server; allowed are forms like nats://10.0.0.11:4222, tls://nats1.example.com',
  ],
  [
    `{ nats: { ${NATS}, user: a, token: b } }`,
    '48 bus.nats.token: user is given already; a node is known to NATS in one way',
  ],
  [`{ nats: { ${NATS}, password: b } }`, '39 bus.nats.password: a password is a user’s; name the user too'],
  [
    `{ nats: { ${NATS}, nkey: abc } }`,
    "45 bus.nats.nkey: it can't be used: it is no seed of a user, which begins with SU and has 58 letters",
  ],
  [`{ nats: { ${NATS}, tls: { key: /etc/hostname } } }`, '46 bus.nats.tls.key: it needs certificate beside it'],
  [`{ nats: { server: "nats://a" } }`, '16 bus.nats.server: unknown key; did you mean servers?'],
])('%s is refused', (bus, problem) => {
  expect(problemsOf(bus)).toEqual([`lb1.yaml:2:${problem}`]);
});

test('files are tried: none, an empty one, credentials without their parts, a seed that lacks a letter', () => {
  const at = folder();
  writeFileSync(join(at, 'empty'), '\n');
  const seed = new TextDecoder().decode(nkeys.createUser().getSeed());
  writeFileSync(join(at, 'seed'), `${seed.slice(0, -1)}\n`);
  writeFileSync(join(at, 'good'), `${seed}\n`);
  const of = (key: string, file: string) => problemsOf(`{ nats: { ${NATS}, ${key}: { file: ${file} } } }`, at);
  expect(of('token', 'none')[0]).toMatch(/bus\.nats\.token\.file: none can't be used: ENOENT/);
  expect(of('token', 'empty')[0]).toMatch(/empty can't be used: it is empty$/);
  expect(of('credentials', 'good')[0]).toMatch(/good can't be used: it has no user JWT and nkey seed/);
  expect(of('nkey', 'seed')[0]).toMatch(/seed can't be used: it is no seed of a user/);
  expect(of('nkey', 'good')).toEqual([]);
});

test('what nodes are known to NATS by is in no record', () => {
  const loaded = loadConfig(`node: lb1\nbus: { nats: { ${NATS}, user: lb1, password: hunter2 } }\n`, {}, '/');
  expect(JSON.stringify('config' in loaded && recordableConfig(loaded.config))).not.toContain('hunter2');
});

test('a dot in a name is no separator of a subject, and comes back as a dot', () => {
  const { log, logStream } = subjectsOf('shop.example');
  expect([log('lb1.example'), logStream]).toEqual([
    'understudy.shop~example.log.lb1~example',
    'understudy-shop~example-log',
  ]);
  expect(nameOfToken(tokenOf('lb1.example.com'))).toBe('lb1.example.com');
});
