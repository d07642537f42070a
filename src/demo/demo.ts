/**
 * `understudy demo`: two nodes that hold one virtual address between them, in front of real servers; all processes of
 * their own, on loopback, without privilege.
 */
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { bold, dim, print, printJson, warn } from '../cli/output.ts';
import { formatStatus } from '../cli/status.ts';
import { messageOf, UnderstudyError } from '../errors.ts';
import { end, freePort, startNode, startServer, stateOf } from './processes.ts';
import type { Demo, DemoNode, DemoServer } from './processes.ts';
import { playScenario } from './scenario.ts';

export type DemoOptions = { scenario?: boolean; data?: string; json?: boolean };

const WANTED = { http: 8080, tcp: 8081 };

/** Every address of 127.0.0.0/8 is this machine's own: the virtual one, and one for each node's adverts. */
const VIRTUAL_ADDRESS = '127.0.0.100';
const NODES = [
  { name: 'lb1', source: '127.0.0.2', priority: 200, api: 8404 },
  { name: 'lb2', source: '127.0.0.3', priority: 100, api: 8405 },
];

/** How long the nodes may take to answer after they were started. */
const START_TIMEOUT_MS = 15_000;
/** A node that was ended by hand comes back after this: long enough to look at how the other one does without it. */
const NODE_RETURNS_MS = 15_000;

export const demoCommand = async (options: DemoOptions): Promise<void> => {
  const folder = makeFolder(options.data);
  const quiet = options.json === true;
  const demo = describeDemo(folder);
  let ending: Promise<void> | null = null;
  const endAll = (): Promise<void> => (ending ??= endDemo(demo, options.data === undefined));
  const onSignal = () => void endAll().then(() => process.exit(0));
  process.once('SIGINT', onSignal);
  process.once('SIGTERM', onSignal);
  try {
    await startDemo(demo, quiet);
    if (options.scenario === true) {
      const result = await playScenario(demo, quiet);
      if (quiet) printJson(result);
      else if (options.data !== undefined)
        print(`\nTheir journals: ${demo.nodes.map(({ journal }) => journal).join(', ')}`);
      if (result.failed > 0) process.exitCode = 1;
    } else {
      print(welcome(demo, formatStatus(await stateOf(demo.nodes[0]!))));
      await Promise.all(demo.nodes.map((node) => keepRunning(node, () => ending !== null)));
    }
  } finally {
    await endAll();
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
  url: '',
  tcp: { host: VIRTUAL_ADDRESS, port: 0 },
  servers: [
    ...['web1', 'web2', 'web3'].map((name) => ({ kind: 'http' as const, name, port: 0, process: null })),
    { kind: 'tcp', name: 'echo1', port: 0, process: null },
  ],
  nodes: NODES.map(({ name }) => ({
    name,
    config: join(folder, `${name}.yaml`),
    journal: join(folder, `${name}.db`),
    api: '',
    process: null,
  })),
});

const startDemo = async (demo: Demo, quiet: boolean): Promise<void> => {
  for (const server of demo.servers) {
    server.port = await freePort(0);
    await startServer(server);
  }
  const ports = {
    http: await freePort(WANTED.http, VIRTUAL_ADDRESS),
    tcp: await freePort(WANTED.tcp, VIRTUAL_ADDRESS),
  };
  const vrrpPort = await freePort(0, NODES[0]!.source);
  demo.url = `http://${VIRTUAL_ADDRESS}:${ports.http}`;
  demo.tcp.port = ports.tcp;
  for (const [index, node] of demo.nodes.entries()) {
    const api = await freePort(NODES[index]!.api);
    node.api = `http://127.0.0.1:${api}`;
    writeFileSync(node.config, configFor(index, { ...ports, api, vrrp: vrrpPort }, demo.servers));
  }
  // In this order, so that the usual ports fall to the usual nodes: the first one is master.
  for (const node of demo.nodes) startNode(node);
  await untilReady(demo, quiet);
};

/** A node that somebody ends to see the other one take over is started again a while later. */
const keepRunning = async (node: DemoNode, isOver: () => boolean): Promise<void> => {
  while (!isOver()) {
    const child = node.process;
    if (!child) return;
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    if (isOver()) return;
    warn(`understudy: node ${node.name} has ended; it comes back in ${NODE_RETURNS_MS / 1000} s`);
    await delay(NODE_RETURNS_MS);
    if (!isOver()) startNode(node);
  }
};

const untilReady = async (demo: Demo, quiet: boolean): Promise<void> => {
  const startedAt = performance.now();
  for (;;) {
    if (demo.nodes.some(({ process: child }) => child?.exitCode != null))
      throw new UnderstudyError('NODE_UNREACHABLE', 'a node did not start');
    try {
      const states = await Promise.all(demo.nodes.map(stateOf));
      const serversAreUp = states.every(({ pools }) =>
        pools.every(({ servers }) => servers.every(({ health }) => health === 'up')),
      );
      // Whoever started first has been master for a moment; the first one takes over by its priority.
      const isSettled = states[0]!.frontends.every(({ listeners }) => listeners.every(({ state }) => state === 'open'));
      if (serversAreUp && isSettled) return;
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
  // The backup first: otherwise it would take over for a moment.
  for (const node of demo.nodes.toReversed()) await end(node, 'SIGTERM');
  await Promise.all(demo.servers.map((server) => end(server, 'SIGKILL')));
  if (removeFolder && existsSync(demo.folder)) rmSync(demo.folder, { recursive: true });
};

type Ports = typeof WANTED & { api: number; vrrp: number };

const configFor = (index: number, ports: Ports, servers: DemoServer[]): string => {
  const { name, source, priority } = NODES[index]!;
  const peers = NODES.filter((node) => node.name !== name).map((node) => `"${node.source}:${ports.vrrp}"`);
  const list = (kind: DemoServer['kind']) =>
    servers
      .filter((server) => server.kind === kind)
      .map((server) => `      - { name: ${server.name}, address: "127.0.0.1:${server.port}" }`)
      .join('\n');
  return `# The configuration of this demo's node ${name}. Change it while it runs, then: npx understudy reload
cluster: demo
node: ${name}
journal: { path: ./${name}.db }
api: { listen: 127.0.0.1:${ports.api} }
workers: 1

frontends:
  shop:
    mode: http
    bind: ["${VIRTUAL_ADDRESS}:${ports.http}"]
    use: web
    drain: 2s
  echo:
    mode: tcp
    bind: ["${VIRTUAL_ADDRESS}:${ports.tcp}"]
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

# The address belongs to the node that is master. On loopback it takes no privilege: whoever is master listens on it.
routers:
  gateway:
    vrid: 51
    priority: ${priority}
    advertise: 100ms
    addresses: [${VIRTUAL_ADDRESS}]
    transport: udp
    source: ${source}
    port: ${ports.vrrp}
    peers: [${peers.join(', ')}]
    track: [{ pool: web, weight: -150 }]
`;
};

const welcome = (demo: Demo, status: string): string => {
  const web2 = demo.servers.find(({ name }) => name === 'web2')!.process?.pid;
  const [lb1, lb2] = demo.nodes as [DemoNode, DemoNode];
  const api = lb1.api.endsWith(':8404') ? '' : ` --api ${lb1.api}`;
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
    [`npx understudy router demote gateway${api}`, `the address moves to lb2; promote takes it back`],
    [`kill -9 ${lb1.process?.pid}`, `lb1, the master, dies; keep curling: lb2 has the address. lb1 returns in 15 s`],
    [`npx understudy explain router/gateway --api ${lb2.api}`, 'why lb2 took over'],
    [`npx understudy log --follow${api}`, 'every decision, as it is recorded'],
  ];
  const width = Math.max(...lines.map(([text]) => text!.length));
  return `
${status}

${bold(`Two nodes hold ${host} between them and balance real traffic. In another terminal, in this folder, try:`)}

${lines.map(([text, what]) => `  ${text!.padEnd(width)}   ${what}`).join('\n')}

${dim(`Configurations and journals: ${demo.folder}. Ctrl-C ends everything.`)}
`;
};
