/** Debian's HAProxy, to compare with. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { libc } from '../src/net/libc.ts';
import { AF_INET, openSocket } from '../src/net/socket.ts';
import { readSocketAddress, writeSocketAddress } from '../src/net/socketAddress.ts';

const SOCK_STREAM = 1;

/** A socket that listens on a port of the kernel's choice; connections wait in it until somebody accepts them. */
const listeningSocket = (): { fd: number; port: number } => {
  const fd = openSocket(AF_INET, SOCK_STREAM, 0);
  assert(fd !== null);
  const address = writeSocketAddress('127.0.0.1', 0);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(address.length);
  assert(libc().bind(fd, address, address.length) === 0 && libc().listen(fd, 16) === 0);
  assert(libc().getsockname(fd, address, length) === 0);
  return { fd, port: readSocketAddress(address)!.port };
};

export type Haproxy = {
  port: number;
  /** What it has written to stdout so far. */
  output(): string;
  /** Waits for so many lines. */
  lines(count: number): Promise<string[]>;
};

/** With one frontend, `front`: options of its bind, what else stands in it, and further sections. Ends with the test. */
export const startHaproxy = async (bindOptions: string, rest: string): Promise<Haproxy> => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const file = join(folder, 'haproxy.cfg');
  const lines = [
    'global',
    '  log stdout format raw local0',
    'defaults',
    '  timeout connect 5s',
    '  timeout client 5s',
    '  timeout server 5s',
    'frontend front',
    `  bind fd@3 ${bindOptions}`,
    rest,
  ];
  writeFileSync(file, `${lines.join('\n')}\n`);
  const { fd, port } = listeningSocket();
  const child = spawn('haproxy', ['-db', '-f', file], { stdio: ['ignore', 'pipe', 'ignore', fd] });
  libc().close(fd);
  const exited = once(child, 'exit');
  onTestFinished(async () => {
    child.kill('SIGKILL');
    await exited;
  });
  let output = '';
  let wake = () => {};
  child.stdout!.on('data', (chunk: Buffer) => {
    output += chunk.toString('latin1');
    wake();
  });
  const linesOf = (count: number) =>
    new Promise<string[]>((done) => {
      wake = () => {
        const all = output.split('\n');
        if (all.length > count) done(all.slice(0, count));
      };
      wake();
    });
  await once(child, 'spawn');
  return { port, output: () => output, lines: linesOf };
};
