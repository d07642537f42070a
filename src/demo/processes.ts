/** Child processes of the demo: they end with it, however it ends, because their channel to it closes. */
import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import type { StateView } from '../api/state.ts';
import { threadFile } from '../threads.ts';

export type DemoServer = { kind: 'http' | 'tcp'; name: string; port: number; process: ChildProcess | null };

export type DemoNode = {
  name: string;
  config: string;
  journal: string;
  api: string;
  process: ChildProcess | null;
};

export type Demo = {
  folder: string;
  /** On the virtual address, which is held by whichever node is master. */
  url: string;
  tcp: { host: string; port: number };
  servers: DemoServer[];
  nodes: DemoNode[];
};

export const stateOf = async ({ api }: DemoNode): Promise<StateView> =>
  (await (await fetch(`${api}/api/state`)).json()) as StateView;

export const command = async ({ api, journal }: DemoNode, body: Record<string, unknown>): Promise<void> => {
  const token = readFileSync(`${journal}.token`, 'utf8').trim();
  await fetch(`${api}/api/commands`, {
    method: 'POST',
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
};

export const startServer = async (server: DemoServer): Promise<void> => {
  const child = fork(threadFile('servers', import.meta.url), [server.kind, server.name, String(server.port)], {
    execPath: process.execPath,
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });
  server.process = child;
  await once(child, 'message');
};

/** A node as its own process. It leaves when the demo is gone. */
export const startNode = (node: DemoNode): void => {
  node.process = fork(threadFile('node', import.meta.url), [node.config], {
    execPath: process.execPath,
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });
};

/** Ends a server or a node, and waits for its end. */
export const end = async (one: DemoServer | DemoNode, signal: NodeJS.Signals): Promise<void> => {
  const child = one.process;
  one.process = null;
  if (!child || child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.kill(signal);
  await exited;
};

/** The wanted port if it is free, or else one that the kernel gives. */
export const freePort = (wanted: number, host = '127.0.0.1'): Promise<number> =>
  new Promise((done, refuse) => {
    const server = createServer();
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE' && wanted !== 0) done(freePort(0, host));
      else refuse(error);
    });
    server.listen({ port: wanted, host, exclusive: true }, () => {
      const { port } = server.address() as AddressInfo;
      server.close(() => done(port));
    });
  });
