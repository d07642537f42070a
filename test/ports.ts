/**
 * Ports for programs that have to be told where to listen. Those that the kernel gives for port 0 are from the range that
 * outgoing connections get theirs from: before the program listens, another call or any connection may be given the same.
 * So they are taken from below that range, each once, and tried.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { codeOf } from '../src/errors.ts';

const LOWEST = 10_000;
/** More than a file of tests takes: processes begin so far apart. */
const STRIDE = 97;

const [outgoing] = readFileSync('/proc/sys/net/ipv4/ip_local_port_range', 'utf8').split(/\s+/);
const range = Number(outgoing) - LOWEST;
assert(range > 100 * STRIDE, `too few ports below ${outgoing}, where those of outgoing connections begin`);

let taken = (process.pid * STRIDE) % range;

const isFree = async (port: number): Promise<boolean> => {
  const server = createServer();
  try {
    await once(server.listen(port, '127.0.0.1'), 'listening');
  } catch (error) {
    if (codeOf(error) !== 'EADDRINUSE') throw error;
    return false;
  }
  await once(server.close(), 'close');
  return true;
};

export const freePort = async (): Promise<number> => {
  for (;;) {
    taken = (taken + 1) % range;
    const port = LOWEST + taken;
    if (await isFree(port)) return port;
  }
};

export const freePorts = async (count: number): Promise<number[]> => {
  const ports: number[] = [];
  while (ports.length < count) ports.push(await freePort());
  return ports;
};
