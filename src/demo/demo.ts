/** `understudy demo`: a node in front of real servers, all processes of their own, on loopback, without privilege. */
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { StateView } from '../api/state.ts';
import { bold, dim, print, printJson, warn } from '../cli/output.ts';
import { formatStatus } from '../cli/status.ts';
import { messageOf, UnderstudyError } from '../errors.ts';
import { freePort, killServer, startNode, startServer } from './processes.ts';
import type { Demo, DemoServer } from './processes.ts';
import { playScenario } from './scenario.ts';

export type DemoOptions = { scenario?: boolean; data?: string; json?: boolean };

const WANTED = { http: 8080, tcp: 8081, api: 8404 };

/** How long a node may take to answer after it was started. */
const START_TIMEOUT_MS = 15_000;

export const demoCommand = async (options: DemoOptions): Promise<void> => {
  const folder = makeFolder(options.data);
  const quiet = options.json === true;
  const demo = describeDemo(folder);
  let ending: Promise<void> | null = null;
  const end = (): Promise<void> => (ending ??= endDemo(demo, options.data === undefined));
  const onSignal = () => void end().then(() => process.exit(0));
  process.once('SIGINT', onSignal);
  process.once('SIGTERM', onSignal);
  try {
    await startDemo(demo, quiet);
    if (options.scenario === true) {
      const result = await playScenario(demo, quiet);
      if (quiet) printJson(result);
      else if (options.data !== undefined) print(`\nIts journal: ${demo.journal}`);
      if (result.failed > 0) process.exitCode = 1;
    } else {
      print(welcome(demo, formatStatus(await demo.state())));
      await once(demo.node!, 'exit');
      if (ending === null) warn('understudy: the node has ended');
    }
  } finally {
    await end();
  }
  process.exit();
};

const makeFolder = (data: string | undefined): string => {
  if (data === undefined) return mkdtempSync(join(tmpdir(), 'understudy-demo-'));
  try {
    mkdirSync(data, { recursive: true });
  } catch (error) {
    throw new UnderstudyError('JOURNAL_UNWRITABLE', `the folder ${data} can't be made: ${messageOf(error)}`);
  }
  return resolve(data);
};

const describeDemo = (folder: string): Demo => ({
  folder,
  journal: join(folder, 'demo.db'),
  url: '',
  tcp: { host: '127.0.0.1', port: 0 },
  api: '',
  servers: [
    ...['web1', 'web2', 'web3'].map((name) => ({ kind: 'http' as const, name, port: 0, process: null })),
    { kind: 'tcp', name: 'echo1', port: 0, process: null },
  ],
  node: null,
  async state() {
    return (await (await fetch(`${this.api}/api/state`)).json()) as StateView;
  },
  async command(command) {
    const token = readFileSync(`${this.journal}.token`, 'utf8').trim();
    await fetch(`${this.api}/api/commands`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
      body: JSON.stringify(command),
    });
  },
});

const startDemo = async (demo: Demo, quiet: boolean): Promise<void> => {
  for (const server of demo.servers) {
    server.port = await freePort(0);
    await startServer(server);
  }
  const ports = { http: await freePort(WANTED.http), tcp: await freePort(WANTED.tcp), api: await freePort(WANTED.api) };
  demo.url = `http://127.0.0.1:${ports.http}`;
  demo.tcp.port = ports.tcp;
  demo.api = `http://127.0.0.1:${ports.api}`;
  const file = join(demo.folder, 'understudy.yaml');
  writeFileSync(file, configFor(ports, demo.servers));
  demo.node = startNode(file);
  await untilReady(demo, quiet);
};

const untilReady = async (demo: Demo, quiet: boolean): Promise<void> => {
  const startedAt = performance.now();
  for (;;) {
    if (demo.node?.exitCode != null) throw new UnderstudyError('NODE_UNREACHABLE', 'the node did not start');
    try {
      const { pools } = await demo.state();
      if (pools.every(({ servers }) => servers.every(({ health }) => health === 'up'))) return;
    } catch (error) {
      // Not listening yet; anything else will show when the time is up.
      if (performance.now() - startedAt > START_TIMEOUT_MS) throw error;
    }
    if (performance.now() - startedAt > START_TIMEOUT_MS) {
      throw new UnderstudyError('NODE_UNREACHABLE', 'the servers of the demo did not come up');
    }
    if (!quiet && process.stderr.isTTY) process.stderr.write('.');
    await delay(50);
  }
};

const endDemo = async (demo: Demo, removeFolder: boolean): Promise<void> => {
  const { node } = demo;
  if (node?.exitCode === null && node.signalCode === null) {
    const exited = once(node, 'exit');
    node.kill('SIGTERM');
    await exited;
  }
  await Promise.all(demo.servers.map((server) => killServer(server, 'SIGKILL')));
  if (removeFolder && existsSync(demo.folder)) rmSync(demo.folder, { recursive: true });
};

const configFor = (ports: typeof WANTED, servers: DemoServer[]): string => {
  const list = (kind: DemoServer['kind']) =>
    servers
      .filter((server) => server.kind === kind)
      .map(({ name, port }) => `      - { name: ${name}, address: "127.0.0.1:${port}" }`)
      .join('\n');
  return `# The configuration of this demo. Change it while it runs, then: npx understudy reload
cluster: demo
node: demo
journal: { path: ./demo.db }
api: { listen: 127.0.0.1:${ports.api} }
workers: 2

frontends:
  shop:
    mode: http
    bind: ["127.0.0.1:${ports.http}"]
    use: web
    drain: 2s
  echo:
    mode: tcp
    bind: ["127.0.0.1:${ports.tcp}"]
    use: echo
    drain: 2s

backends:
  web:
    balance: roundRobin
    check: { type: http, path: /healthz, interval: 1s, fastInterval: 200ms, timeout: 500ms, rise: 2, fall: 3 }
    servers:
${list('http')}
  echo:
    check: { type: tcp, interval: 1s, fastInterval: 200ms, timeout: 500ms }
    servers:
${list('tcp')}
`;
};

const welcome = (demo: Demo, status: string): string => {
  const web2 = demo.servers.find(({ name }) => name === 'web2')!.process?.pid;
  const api = demo.api.endsWith(':8404') ? '' : ` --api ${demo.api}`;
  const { host, port } = demo.tcp;
  const lines = [
    [`curl ${demo.url}/`, 'a server answers, the next one next time'],
    [`(echo hello; sleep 1) | nc ${host} ${port}`, 'TCP, through the same node'],
    [`kill -STOP ${web2}`, 'web2 hangs; keep curling'],
    [`npx understudy status${api}`, 'what state everything is in'],
    [`npx understudy explain server/web/web2${api}`, 'why web2 left'],
    [`kill -CONT ${web2}`, 'web2 comes back (kill -9 ends it for good)'],
    [`npx understudy server drain web/web1${api}`, 'take web1 out by hand, and'],
    [`npx understudy server ready web/web1${api}`, 'back in'],
    [`npx understudy log --follow${api}`, 'every decision, as it is recorded'],
  ];
  const width = Math.max(...lines.map(([command]) => command!.length));
  return `
${status}

${bold('Understudy balances real traffic. In another terminal, in this folder, try:')}

${lines.map(([command, what]) => `  ${command!.padEnd(width)}   ${what}`).join('\n')}

${dim(`Configuration and journal: ${demo.folder}. Ctrl-C ends everything.`)}
`;
};
