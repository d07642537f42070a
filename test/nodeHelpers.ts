/** What tests of nodes share: folders, small servers, nodes and commands as real processes. Everything ends with its test. */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, createServer, request } from 'node:http';
import type { IncomingMessage, RequestListener, Server } from 'node:http';
import type { AddressInfo, Server as NetServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { onTestFinished } from 'vitest';
import type { StateView } from '../src/api/state.ts';
import type { RecordView } from '../src/journal/view.ts';
import { freePort } from './ports.ts';

export const program = resolve(import.meta.dirname, '../bin/understudy');

/** How long anything that a test waits for may take; more on a machine that is busy with other things. */
const PATIENCE_MS = Number(process.env['PATIENCE_MS'] ?? 15_000);

/** A promise that fails, with what was waited for, when the time is up. */
export const within = async <T>(what: string, promise: Promise<T>, ms = PATIENCE_MS): Promise<T> => {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, refuse) => {
    timer = setTimeout(() => refuse(new Error(`${what}: not within ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
};

export const tempFolder = (): string => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-test-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
};

export const writeFile = (folder: string, name: string, text: string): string => {
  const file = join(folder, name);
  writeFileSync(file, text);
  return file;
};

/** Listens on a port of the kernel's choosing, and closes with all connections at the end of the test. */
export const listening = async (server: NetServer, host = '127.0.0.1'): Promise<number> => {
  const sockets = new Set<{ destroy(): void }>();
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('error', () => socket.destroy());
    socket.on('close', () => sockets.delete(socket));
  });
  server.listen(0, host);
  await once(server, 'listening');
  onTestFinished(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return (server.address() as AddressInfo).port;
};

export type Web = { name: string; port: number; address: string; requests: number; server: Server; healthy: boolean };

/** A server that answers its name; `/healthz` as `healthy` says. */
export const startWeb = async (name: string, handler?: RequestListener): Promise<Web> => {
  const web: Web = { name, port: 0, address: '', requests: 0, server: createServer(), healthy: true };
  web.server.on('request', (incoming, response) => {
    if (incoming.url === '/healthz') {
      response.writeHead(web.healthy ? 200 : 503).end();
      return;
    }
    web.requests++;
    if (handler) handler(incoming, response);
    else response.end(name);
  });
  web.port = await listening(web.server);
  web.address = `127.0.0.1:${web.port}`;
  return web;
};

const quietEnvironment = (extra: Record<string, string> = {}): NodeJS.ProcessEnv => {
  const { UNDERSTUDY_API: _api, UNDERSTUDY_TOKEN: _token, ...rest } = process.env;
  return { ...rest, ...extra };
};

export type Ran = { status: number | null; stdout: string; stderr: string };

/** A command as a user types it, to its end. */
export const understudy = async (args: string[], environment: Record<string, string> = {}): Promise<Ran> => {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], env: quietEnvironment(environment) });
  killAtEnd(child);
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
  const [status] = (await within(`understudy ${args.join(' ')}`, once(child, 'close'), 60_000)) as [number | null];
  return { status, stdout, stderr };
};

export const isAlive = (child: ChildProcess): boolean => child.exitCode === null && child.signalCode === null;

export const killAtEnd = (child: ChildProcess): void => {
  onTestFinished(async () => {
    if (!isAlive(child)) return;
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  });
};

export type LogLine = { level: number; msg: string; api?: string };

/** A node as `understudy run` starts it. */
export class RunningNode {
  readonly file: string;
  readonly child: ChildProcess;
  readonly log: LogLine[] = [];
  readonly api: string;
  stderr = '';
  #logWaiters = new Set<() => void>();

  private constructor(file: string, child: ChildProcess, api: string) {
    this.file = file;
    this.child = child;
    this.api = api;
  }

  static async start(
    file: string,
    api: number,
    environment: Record<string, string> = {},
    options: string[] = [],
  ): Promise<RunningNode> {
    const child = spawn(program, ['run', ...options, file], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: quietEnvironment(environment),
    });
    killAtEnd(child);
    const node = new RunningNode(file, child, `http://127.0.0.1:${api}`);
    createInterface({ input: child.stdout }).on('line', (line) => {
      node.log.push(JSON.parse(line) as LogLine);
      for (const wake of [...node.#logWaiters]) wake();
    });
    child.stderr.on('data', (chunk: Buffer) => (node.stderr += chunk.toString()));
    const ended = once(child, 'exit').then(() => {
      throw new Error(`the node ended: ${node.stderr}`);
    });
    await Promise.race([node.logged(/is running; its API is at/), ended]);
    ended.catch(() => {});
    return node;
  }

  /** The first line of the log from `from` on that matches. */
  logged(pattern: RegExp, from = 0): Promise<LogLine> {
    const found = new Promise<LogLine>((done) => {
      const look = () => {
        const line = this.log.slice(from).find(({ msg }) => pattern.test(msg));
        if (!line) return;
        this.#logWaiters.delete(look);
        done(line);
      };
      this.#logWaiters.add(look);
      look();
    });
    return within(`log ${String(pattern)}`, found);
  }

  async state(): Promise<StateView> {
    return (await (await fetch(`${this.api}/api/state`)).json()) as StateView;
  }

  async token(): Promise<string> {
    return readFileSync((await this.state()).node.tokenFile!, 'utf8').trim();
  }

  async post(command: unknown, token?: string): Promise<{ status: number; body: Record<string, unknown> }> {
    const response = await fetch(`${this.api}/api/commands`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token ?? (await this.token())}`, 'content-type': 'application/json' },
      body: JSON.stringify(command),
    });
    return { status: response.status, body: (await response.json()) as Record<string, unknown> };
  }

  async events(query: string): Promise<RecordView[]> {
    const response = await fetch(`${this.api}/api/events?${query}`);
    const { records } = (await response.json()) as { records: RecordView[] };
    return records;
  }

  /** Looks at the state at each transition, and now and then as some things change without one, until it is as wanted. */
  until(what: string, condition: (state: StateView) => boolean): Promise<StateView> {
    const stop = new AbortController();
    const found = Promise.withResolvers<StateView>();
    let isLooking = false;
    const look = async () => {
      // One look at a time: a node that answers slowly must not be asked by ten.
      if (isLooking || stop.signal.aborted) return;
      isLooking = true;
      const state = await this.state();
      isLooking = false;
      if (condition(state)) found.resolve(state);
    };
    const watch = async () => {
      const response = await fetch(`${this.api}/api/events/stream`, { signal: stop.signal });
      for await (const _ of response.body!) await look();
      throw new Error(`${what}: the stream ended`);
    };
    watch().catch(found.reject);
    const timer = setInterval(() => void look().catch(found.reject), LOOK_MS);
    return within(what, found.promise).finally(() => {
      clearInterval(timer);
      stop.abort();
    });
  }

  healthIs(server: string, health: string): Promise<StateView> {
    return this.until(`${server} is ${health}`, (state) => stateOf(state, `server/${server}`).startsWith(`${health},`));
  }

  async end(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | null> {
    if (!isAlive(this.child)) return this.child.exitCode;
    const exited = once(this.child, 'exit') as Promise<[number | null]>;
    this.child.kill(signal);
    const [status] = await within('the end of the node', exited);
    return status;
  }
}

/** Between two looks at what no transition tells of. */
const LOOK_MS = 500;

export const stateOf = (state: StateView, actor: string): string =>
  state.actors.find(({ id }) => id === actor)?.state ?? 'absent';

export type Answer = { status: number; body: string };

export const get = (url: string, agent?: Agent): Promise<Answer> =>
  new Promise((done, refuse) => {
    const outgoing = request(
      url,
      { timeout: PATIENCE_MS, ...(agent ? { agent } : {}) },
      (response: IncomingMessage) => {
        let body = '';
        response.on('data', (chunk: Buffer) => (body += chunk.toString()));
        response.on('end', () => done({ status: response.statusCode ?? 0, body }));
        response.on('error', refuse);
      },
    );
    outgoing.on('error', refuse);
    outgoing.on('timeout', () => outgoing.destroy(new Error('no answer')));
    outgoing.end();
  });

export type Traffic = {
  answers: number;
  failures: string[];
  stop(): Promise<void>;
  more(count: number): Promise<void>;
};

/** A few clients that ask one request after the other until they are stopped, on connections that they keep. */
export const startTraffic = (url: string, clients = 4): Traffic => {
  const agent = new Agent({ keepAlive: true, maxSockets: clients });
  const over = new AbortController();
  const waiters = new Set<() => void>();
  const traffic: Traffic = { answers: 0, failures: [], stop: async () => {}, more: async () => {} };
  const client = async () => {
    while (!over.signal.aborted) {
      try {
        const { status } = await get(url, agent);
        if (status !== 200) traffic.failures.push(`status ${status}`);
      } catch (error) {
        traffic.failures.push(String(error));
      }
      traffic.answers++;
      for (const wake of [...waiters]) wake();
    }
  };
  const all = Promise.all(Array.from({ length: clients }, client));
  traffic.stop = async () => {
    over.abort();
    await all;
    agent.destroy();
  };
  traffic.more = (count) => {
    const goal = traffic.answers + count;
    const reached = new Promise<void>((done) => {
      const look = () => {
        if (traffic.answers < goal) return;
        waiters.delete(look);
        done();
      };
      waiters.add(look);
    });
    return within(`${count} more requests`, reached);
  };
  onTestFinished(() => traffic.stop());
  return traffic;
};

export type Plan = {
  api: number;
  port: number;
  servers: string[];
  /** Lines of the backend, of the whole file, of the frontend. */
  backend?: string[];
  top?: string[];
  frontend?: string[];
};

export const CHECK = '{ type: http, path: /healthz, interval: 50ms, timeout: 500ms, rise: 1, fall: 2 }';

/** A file with one frontend `shop` and one backend `web`. A server is `name address[, more]`. */
export const yamlOf = ({
  api,
  port,
  servers,
  backend = [`check: ${CHECK}`],
  top = ['workers: 1'],
  frontend = [],
}: Plan) =>
  [
    'node: test',
    'journal: { path: ./node.db }',
    `api: { listen: 127.0.0.1:${api} }`,
    ...top,
    'frontends:',
    '  shop:',
    '    mode: http',
    `    bind: ["127.0.0.1:${port}"]`,
    '    use: web',
    ...(frontend.some((line) => line.startsWith('drain')) ? [] : ['    drain: 2s']),
    ...frontend.map((line) => `    ${line}`),
    'backends:',
    '  web:',
    ...backend.map((line) => `    ${line}`),
    '    servers:',
    ...servers.map((server) => {
      const [name, address, ...more] = server.split(' ');
      return `      - { name: ${name}, address: "${address}"${more.length > 0 ? `, ${more.join(' ')}` : ''} }`;
    }),
    '',
  ].join('\n');

export type Stage = { folder: string; file: string; plan: Plan; url: string; webs: Web[]; node: RunningNode };

/** A node in front of servers of its own, all of them up. */
export const startStage = async (change: Partial<Plan> = {}, handler?: RequestListener): Promise<Stage> => {
  const folder = tempFolder();
  const webs = [await startWeb('web1', handler), await startWeb('web2', handler)];
  const plan: Plan = {
    api: await freePort(),
    port: await freePort(),
    servers: webs.map(({ name, address }) => `${name} ${address}`),
    ...change,
  };
  const file = writeFile(folder, 'node.yaml', yamlOf(plan));
  const node = await RunningNode.start(file, plan.api);
  if (!change.servers && !change.backend) for (const { name } of webs) await node.healthIs(`web/${name}`, 'up');
  return { folder, file, plan, url: `http://127.0.0.1:${plan.port}/`, webs, node };
};
