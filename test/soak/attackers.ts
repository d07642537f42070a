/**
 * Hostile clients of one process: each that is thrown out comes again. Started with an `Assault` as JSON; tells what
 * became of them when it is asked.
 */
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { ATTACKS } from './attacks.ts';
import type { Attack, AttackName } from './attacks.ts';
import { HOST } from './world.ts';
import type { Ports } from './world.ts';

export type Assault = {
  ports: Ports;
  counts: Partial<Record<AttackName, number>>;
  /** Who doesn't read doesn't hear of the end either: looks for it after this time. */
  unreadMs: number;
};
/** By attack: the statuses that it was answered with, `closed` and `reset` without one, `held` when it is let have its way still. */
export type Outcomes = Partial<Record<AttackName, Record<string, number>>>;

/** So that a refusal at once does not become a loop that keeps this process busy. */
const PAUSE_MS = 200;
/** What the kernel holds for a client is read in this time, and its end behind it. */
const LOOK_MS = 2_000;
/** Speak TLS properly before they misbehave. */
const WITH_HANDSHAKE = new Set<AttackName>(['unreadChunks']);

const { ports, counts, unreadMs } = JSON.parse(process.argv[2]!) as Assault;
const outcomes: Outcomes = {};
const sockets = new Set<Socket>();
let stopped = false;

const count = (name: AttackName, outcome: string): void => {
  const ofOne = (outcomes[name] ??= {});
  ofOne[outcome] = (ofOne[outcome] ?? 0) + 1;
};

const attack = (name: AttackName): void => {
  const { port, reads, begin }: Attack = ATTACKS[name];
  const withTls = WITH_HANDSHAKE.has(name);
  const target = { port: ports[port], host: HOST };
  const socket = withTls
    ? connectTls({ ...target, rejectUnauthorized: false, ALPNProtocols: ['http/1.1'] })
    : connect({ ...target, allowHalfOpen: true });
  const timers: NodeJS.Timeout[] = [];
  let status = '';
  let isReset = false;
  sockets.add(socket);
  socket.once(withTls ? 'secureConnect' : 'connect', () => {
    begin(socket, (everyMs, act) => timers.push(setInterval(act, everyMs)));
  });
  if (reads) {
    socket.on('data', (bytes: Buffer) => {
      status ||= /^HTTP\/1\.1 (\d{3})/.exec(bytes.toString('latin1', 0, 12))?.[1] ?? 'other';
    });
    socket.on('end', () => socket.destroy());
  } else {
    timers.push(setTimeout(() => socket.resume(), unreadMs));
    timers.push(
      setTimeout(() => {
        status = 'held';
        socket.destroy();
      }, unreadMs + LOOK_MS),
    );
  }
  socket.on('error', () => (isReset = true));
  socket.on('close', () => {
    sockets.delete(socket);
    for (const timer of timers) clearInterval(timer);
    if (stopped) return;
    count(name, status || (isReset ? 'reset' : 'closed'));
    setTimeout(() => {
      if (!stopped) attack(name);
    }, PAUSE_MS);
  });
};

for (const [name, number] of Object.entries(counts)) {
  for (let begun = 0; begun < number; begun++) attack(name as AttackName);
}
process.send!('begun');

process.on('disconnect', () => process.exit(0));
process.on('message', (order: 'tell' | 'stop') => {
  if (order === 'tell') {
    process.send!(outcomes);
    return;
  }
  stopped = true;
  for (const socket of sockets) socket.destroy();
  process.send!(outcomes, undefined, undefined, () => process.exit(0));
});
