/**
 * Who may have how many of the process's descriptors. Clients by the thousand must not take those that servers, checks,
 * the journal and the API need: a node without any would call its healthy servers dead.
 *
 * The kernel gives the lowest number that is free, so a number tells how many are open, at the least.
 */
import { readFileSync } from 'node:fs';
import { libc } from './libc.ts';
import { duplicate } from './tcpSocket.ts';

/** Each client may need a connection to a server, but those who are idle don't: HAProxy reserves half. */
const CLIENTS_SHARE = 0.8;
/** The rest is for everything that is no traffic. */
const TRAFFIC_SHARE = 0.95;

/** RLIMIT_NOFILE: Node has raised it to the hard limit at its start. */
const limitOf = (limits: string): number => {
  const soft = /^Max open files\s+(\S+)/m.exec(limits)?.[1] ?? 'unlimited';
  return soft === 'unlimited' ? Infinity : Number(soft);
};

let limit: number | null = null;
const descriptorLimit = (): number => (limit ??= limitOf(readFileSync('/proc/self/limits', 'utf8')));

/** That of a client's connection which is the last one for now. */
export const isLastForClients = (fd: number): boolean => fd >= Math.floor(descriptorLimit() * CLIENTS_SHARE);

/** That of a connection to a server which would be one too many. */
export const isBeyondTraffic = (fd: number): boolean => fd >= Math.floor(descriptorLimit() * TRAFFIC_SHARE);

/** Whether clients may have another one. Looks, for two system calls. `fd`: any that is open. */
export const hasRoomForClients = (fd: number): boolean => {
  const probe = duplicate(fd);
  if ('code' in probe) return false;
  libc().close(probe.fd);
  return !isLastForClients(probe.fd);
};
