/** Every command as a user types it: what it prints, and the status that it ends with. */
import { existsSync, readFileSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { machines } from '../machines/index.ts';
import { listening, startStage, stateOf, tempFolder, understudy, writeFile, yamlOf } from './nodeHelpers.ts';
import { freePort } from './ports.ts';

const validFile = async (folder: string, servers = ['web1 127.0.0.1:1']) =>
  writeFile(folder, 'node.yaml', yamlOf({ api: await freePort(), port: await freePort(), servers }));

describe('check', () => {
  test('a valid file: 0', async () => {
    const file = await validFile(tempFolder());
    const ran = await understudy(['check', file]);
    expect(ran).toEqual({ status: 0, stdout: `${file} is valid: 1 frontend, 1 backend, 1 server\n`, stderr: '' });
    const json = await understudy(['check', file, '--json']);
    expect(JSON.parse(json.stdout)).toEqual({ valid: true, problems: [] });
  });

  test('an invalid one: 1, each problem on standard output', async () => {
    const file = writeFile(tempFolder(), 'bad.yaml', 'wrokers: 2\nnode: a b\n');
    const ran = await understudy(['check', file]);
    expect(ran.status).toBe(1);
    expect(ran.stdout.trim().split('\n')).toHaveLength(2);
    expect(ran.stdout).toContain(`${file}:1:1 wrokers: unknown key; did you mean workers?`);
    const json = await understudy(['check', file, '--json']);
    expect(json.status).toBe(1);
    expect(JSON.parse(json.stdout)).toMatchObject({
      valid: false,
      problems: [{ line: 1, column: 1, path: 'wrokers' }, {}],
    });
  });

  test('one that is not there, or a folder: 3', async () => {
    for (const file of ['/nowhere/node.yaml', '/etc']) {
      const ran = await understudy(['check', file]);
      expect(ran).toMatchObject({ status: 3, stdout: '' });
      expect(ran.stderr).toMatch(new RegExp(`^understudy: the configuration ${file} can't be read: E[^\n]+\n$`));
    }
  });

  test('an alias without an anchor is a problem of the file: 1, without a stack', async () => {
    const ran = await understudy(['check', writeFile(tempFolder(), 'alias.yaml', 'node: *nobody\n')]);
    expect(ran.stderr).not.toMatch(/unforeseen/);
    expect(ran.status).toBe(1);
  });

  test('--schema prints the JSON Schema', async () => {
    const ran = await understudy(['check', '--schema']);
    expect(ran.status).toBe(0);
    expect(JSON.parse(ran.stdout)).toMatchObject({ type: 'object' });
  });
});

describe('wrong use: 2, nothing on standard output', () => {
  test.each<[string, string[]]>([
    ['no command', []],
    ['an unknown command', ['chek']],
    ['an unknown option', ['check', '--jsn']],
    ['a missing argument', ['run']],
    ['check without a file', ['check']],
    ['server without a command', ['server']],
    ['a weight that is none', ['server', 'weight', 'web/web1', '257']],
    ['a server without a pool', ['server', 'drain', 'web1']],
    ['a format that is none', ['graph', 'pool', '--format', 'png']],
    ['whatif without a configuration', ['whatif', 'x.db']],
  ])('%s', async (_what, args) => {
    const ran = await understudy(args);
    expect(ran).toMatchObject({ status: 2, stdout: '' });
    expect(ran.stderr).not.toBe('');
  });

  test('help and version: 0', async () => {
    expect(await understudy(['--help'])).toMatchObject({ status: 0, stderr: '' });
    expect((await understudy(['--version'])).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });
});

describe('run refuses before anything is started', () => {
  test('a port that another program has: 3, and no journal', async () => {
    const folder = tempFolder();
    const port = await listening(createServer());
    const file = writeFile(folder, 'node.yaml', yamlOf({ api: await freePort(), port, servers: ['web1 127.0.0.1:1'] }));
    const ran = await understudy(['run', file]);
    expect(ran).toMatchObject({ status: 3, stdout: '' });
    expect(ran.stderr).toBe(
      `understudy: frontend shop can't listen on 127.0.0.1:${port}: another program listens there\n`,
    );
    expect(existsSync(join(folder, 'node.db'))).toBe(false);
  });

  test('the API’s port: 3, and no journal', async () => {
    const folder = tempFolder();
    const api = await listening(createServer());
    const file = writeFile(folder, 'node.yaml', yamlOf({ api, port: await freePort(), servers: ['web1 127.0.0.1:1'] }));
    const ran = await understudy(['run', file]);
    expect(ran).toMatchObject({ status: 3, stdout: '' });
    expect(ran.stderr).toBe(`understudy: the API can't listen on 127.0.0.1:${api}: another program listens there\n`);
    expect(existsSync(join(folder, 'node.db'))).toBe(false);
  });

  test('a journal that can not be written: 3', async () => {
    const folder = tempFolder();
    writeFile(folder, 'file', '');
    const text = readFileSync(await validFile(folder), 'utf8').replace('./node.db', './file/below/node.db');
    const ran = await understudy(['run', writeFile(folder, 'below.yaml', text)]);
    expect(ran).toMatchObject({ status: 3, stdout: '' });
    expect(ran.stderr).toMatch(/^understudy: the journal's folder .*file\/below can't be made: [^\n]+\n$/);
  });

  test('a journal that is a folder: 3', async () => {
    const folder = tempFolder();
    const text = readFileSync(await validFile(folder), 'utf8').replace('./node.db', '.');
    const ran = await understudy(['run', writeFile(folder, 'folder.yaml', text)]);
    expect(ran.status).toBe(3);
    expect(ran.stderr).not.toMatch(/unforeseen/);
  });

  test('an invalid file, and a certificate that can not be read: 1, with position', async () => {
    const folder = tempFolder();
    const text = readFileSync(await validFile(folder), 'utf8').replace(
      /bind: .*/,
      'bind: [{ address: "127.0.0.1:0", tls: { certificates: [./gone.pem] } }]',
    );
    const file = writeFile(folder, 'tls.yaml', text);
    const ran = await understudy(['run', file]);
    expect(ran).toMatchObject({ status: 1, stdout: '' });
    expect(ran.stderr).toMatch(
      /tls\.yaml:8:\d+ frontends\.shop\.bind\[0\]\.tls\.certificates\[0\]: the certificate .*gone\.pem/,
    );
  });

  test('a file that is not there: 3', async () => {
    expect(await understudy(['run', '/nowhere/node.yaml'])).toMatchObject({ status: 3, stdout: '' });
  });
});

describe('journals that are none: 3, in one sentence', () => {
  const commands: [string, (journal: string, config: string) => string[]][] = [
    ['verify', (journal) => ['verify', journal]],
    ['replay', (journal) => ['replay', journal]],
    ['log', (journal) => ['log', journal]],
    ['explain', (journal) => ['explain', 'pool/web', journal]],
    ['whatif', (journal, config) => ['whatif', journal, '--config', config]],
  ];
  test.each(commands)('%s', async (_name, args) => {
    const folder = tempFolder();
    const config = await validFile(folder);
    const none = writeFile(folder, 'none.db', 'This is not a journal. '.repeat(100));
    const empty = writeFile(folder, 'empty.db', '');
    for (const journal of ['/nowhere/node.db', none, empty, folder]) {
      const ran = await understudy(args(journal, config));
      expect(ran, journal).toMatchObject({ status: 3, stdout: '' });
      expect(ran.stderr).toMatch(/^understudy: [^\n]*(journal|can't be read)[^\n]*\n$/);
      expect(ran.stderr).toContain(journal);
    }
  });
});

describe('commands without a node: 3', () => {
  test.each<[string, string[]]>([
    ['status', ['status']],
    ['server drain', ['server', 'drain', 'web/web1']],
    ['reload', ['reload']],
    ['log', ['log']],
    ['explain', ['explain', 'pool/web']],
  ])('%s', async (_name, args) => {
    const api = `http://127.0.0.1:${await freePort()}`;
    const ran = await understudy([...args, '--api', api]);
    expect(ran).toMatchObject({ status: 3, stdout: '' });
    expect(ran.stderr).toMatch(new RegExp(`^understudy: no node answers at ${api} \\(.*ECONNREFUSED.*\\); --api or `));
    expect(await understudy(args, { UNDERSTUDY_API: api })).toMatchObject({ status: 3 });
  });

  test('an API that is some other program’s', async () => {
    const port = await listening(createHttpServer((_request, response) => response.end('<html>Hello</html>')));
    const ran = await understudy(['status', '--api', `http://127.0.0.1:${port}`]);
    expect(ran.status).toBe(3);
    expect(ran.stderr).not.toMatch(/unforeseen/);
  });
});

describe('graph', () => {
  test.each(Object.keys(machines))('%s', async (name) => {
    const svg = await understudy(['graph', name]);
    expect(svg.status).toBe(0);
    expect(svg.stdout).toMatch(/<svg[\s\S]*<\/svg>/);
    const dot = await understudy(['graph', name, '--format', 'dot']);
    expect(dot.stdout).toMatch(new RegExp(`^digraph "${name}" \\{\n[\\s\\S]*\\}\n$`));
    const mermaid = await understudy(['graph', name, '--format', 'mermaid']);
    expect(mermaid.stdout).toMatch(/^stateDiagram-v2\n/);
  });

  test('of a configuration, to a file too', async () => {
    const folder = tempFolder();
    const file = await validFile(folder, ['web1 127.0.0.1:1', 'web2 127.0.0.1:2 backup: true']);
    const dot = await understudy(['graph', file, '--format', 'dot']);
    for (const text of ['frontend shop', 'pool web', 'web1', '127.0.0.1:2', 'backup'])
      expect(dot.stdout).toContain(text);
    expect((await understudy(['graph', file, '--format', 'mermaid'])).stdout).toMatch(/^flowchart LR\n/);
    const output = join(folder, 'system.svg');
    expect(await understudy(['graph', file, '-o', output])).toEqual({ status: 0, stdout: '', stderr: '' });
    expect(readFileSync(output, 'utf8')).toContain('<svg');
  });

  test('of what is neither', async () => {
    const ran = await understudy(['graph', 'nothing']);
    expect(ran.stderr).toMatch(/nothing is neither a machine \(backendServer, .*\) nor a file/);
    expect(ran.stdout).toBe('');
    expect([2, 3]).toContain(ran.status);
  });
});

test('each command with a node, and with its journal when it is gone', async () => {
  const { node, folder, file } = await startStage();
  const api = ['--api', node.api];
  const json = async (args: string[]): Promise<unknown> => {
    const ran = await understudy([...args, '--json']);
    expect(ran, args.join(' ')).toMatchObject({ status: 0, stderr: '' });
    return JSON.parse(ran.stdout) as unknown;
  };

  const status = await understudy(['status', ...api]);
  expect(status.status).toBe(0);
  expect(status.stdout).toMatch(/Node test of cluster understudy: ok/);
  expect(status.stdout).toMatch(/web1 +127\.0\.0\.1:\d+ +up +ready/);
  expect(await json(['status', ...api])).toMatchObject({ node: { name: 'test', status: 'ok' } });

  const drain = await understudy(['server', 'drain', 'web/web1', ...api]);
  expect(drain).toMatchObject({ status: 0, stdout: 'server/web/web1: up,ready,warm → up,drain,warm\n' });
  expect(await json(['server', 'ready', 'web/web1', ...api])).toMatchObject({ after: 'up,ready,warm', recorded: true });
  expect(await json(['server', 'weight', 'web/web1', '7', ...api])).toMatchObject({ recorded: true });
  const unknown = await understudy(['server', 'drain', 'web/web9', ...api]);
  expect(unknown).toMatchObject({ status: 1, stdout: '' });
  expect(unknown.stderr).toBe('understudy: there is no server web/web9; there are web/web1, web/web2\n');
  expect(await understudy(['server', 'drain', 'web/web1', ...api, '--token', 'wrong'])).toMatchObject({ status: 1 });
  expect(await json(['reload', ...api])).toMatchObject({ added: [], removed: [], changed: [] });
  expect(await understudy(['reload', ...api])).toMatchObject({ status: 0, stdout: 'reloaded; no actor changed\n' });

  const log = await understudy(['log', ...api, '--type', 'operator.*']);
  expect(log.stdout).toMatch(/server\/web\/web1 {2}operator\.drain → up,drain,warm/);
  expect((await understudy(['explain', 'server/web/web1', ...api])).status).toBe(0);
  expect(stateOf(await node.state(), 'server/web/web1')).toBe('up,ready,warm');

  const second = await understudy(['run', file]);
  expect(second).toMatchObject({ status: 3, stdout: '' });

  expect(await node.end()).toBe(0);
  const journal = join(folder, 'node.db');
  expect(await json(['verify', journal])).toMatchObject({ ok: true, divergence: null });
  expect(await json(['replay', journal])).toMatchObject({ divergence: null });
  expect(await json(['explain', 'server/web/web1', journal])).toHaveProperty('headline');
  expect(await json(['whatif', journal, '--config', file])).toHaveProperty('differences');
  const lines = (await understudy(['log', journal, '--json', '--limit', '3'])).stdout.trim().split('\n');
  expect(lines).toHaveLength(3);
  expect(JSON.parse(lines[2]!)).toMatchObject({ type: 'node.stopped' });
  const absent = await understudy(['explain', 'server/web/web9', journal]);
  expect(absent.status, absent.stderr).toBe(1);

  // Wrong use, whatever the journal holds.
  for (const args of [
    ['log', journal, '--since', 'yesterday'],
    ['replay', journal, '--until', 'soon'],
    ['explain', 'server/web/web1', journal, '--at', 'noon'],
    ['log', journal, '--limit', '-1'],
    ['log', journal, '--limit', 'many'],
  ]) {
    const ran = await understudy(args);
    expect(ran, args.join(' ')).toMatchObject({ status: 2, stdout: '' });
  }
}, 180_000);
