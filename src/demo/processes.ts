/** Child processes of the demo: they end with it, however it ends, because their channel to it closes. */
import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import type { StateView } from '../api/state.ts';
import { threadFile } from '../threads.ts';

export type DemoServer = { kind: 'http' | 'tcp'; name: string; port: number; process: ChildProcess | null };

export type Demo = {
  folder: string;
  journal: string;
  url: string;
  tcp: { host: string; port: number };
  api: string;
  servers: DemoServer[];
  /** Null until it has been started. */
  node: ChildProcess | null;
  state(): Promise<StateView>;
  command(command: Record<string, unknown>): Promise<void>;
};

export const startServer = async (server: DemoServer): Promise<void> => {
  const child = fork(threadFile('servers', import.meta.url), [server.kind, server.name, String(server.port)], {
    execPath: process.execPath,
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });
  server.process = child;
  await once(child, 'message');
};

/** The node itself, as its own process. It leaves when the demo is gone. */
export const startNode = (config: string): ChildProcess =>
  fork(threadFile('node', import.meta.url), [config], {
    execPath: process.execPath,
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });

export const killServer = async (server: DemoServer, signal: NodeJS.Signals): Promise<void> => {
  const child = server.process;
  server.process = null;
  if (!child || child.exitCode !== null) return;
  const exited = once(child, 'exit');
  child.kill(signal);
  await exited;
};

/** The wanted port if it is free, or else one that the kernel gives. */
export const freePort = (wanted: number): Promise<number> =>
  new Promise((done, refuse) => {
    const server = createServer();
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE' && wanted !== 0) done(freePort(0));
      else refuse(error);
    });
    server.listen({ port: wanted, host: '127.0.0.1', exclusive: true }, () => {
      const { port } = server.address() as AddressInfo;
      server.close(() => done(port));
    });
  });
