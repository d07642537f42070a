/** Clients of one process; started by the soak, told to stop by a message. Its argument is a `Load` as JSON. */
import { http2Connections, keptConnections, newConnections, slowReaders, tlsConnections } from './httpClients.ts';
import { tcpSessions, webSockets } from './sessionClients.ts';
import { World } from './world.ts';
import type { Ports } from './world.ts';
import type { Tally } from './tally.ts';

const CLIENTS = {
  keptConnections,
  newConnections,
  slowReaders,
  tlsConnections,
  http2Connections,
  webSockets,
  tcpSessions,
};

export type Counts = Record<keyof typeof CLIENTS, number>;
export type Load = { ports: Ports; counts: Counts; thinkMs: number; clientsPerSecond: number };
export type LoadReport = { kind: 'tally'; tally: Tally } | { kind: 'started' };

const REPORT_MS = 2_000;
const START_STEP_MS = 50;

const { ports, counts, thinkMs, clientsPerSecond } = JSON.parse(process.argv[2]!) as Load;
const world = new World(ports, thinkMs);
const say = (report: LoadReport) => process.send!(report);

/** All kinds from the start, mixed. */
const roles = Object.entries(counts)
  .flatMap(([name, count]) =>
    Array.from({ length: count }, (_, index) => ({ name: name as keyof Counts, order: (index + 0.5) / count })),
  )
  .toSorted((one, other) => one.order - other.order);

const clients: Promise<void>[] = [];
const reporting = setInterval(() => say({ kind: 'tally', tally: world.takeTally() }), REPORT_MS);

process.on('message', () => world.stop());
process.on('disconnect', () => process.exit(0));

const perStep = Math.max(1, Math.round((clientsPerSecond * START_STEP_MS) / 1_000));
for (let started = 0; started < roles.length && !world.stopped; started += perStep) {
  for (const { name } of roles.slice(started, started + perStep)) clients.push(CLIENTS[name](world));
  await world.sleep(START_STEP_MS);
}
say({ kind: 'started' });
await Promise.all(clients);
clearInterval(reporting);
const last: LoadReport = { kind: 'tally', tally: world.takeTally() };
process.send!(last, undefined, undefined, () => process.disconnect!());
