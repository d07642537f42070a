/** Metrics, gathered when they are asked for. Names follow Prometheus' rules: base units, `_total`. */
import type { BackendServerContext } from '../../machines/backendServer.ts';
import { LATENESS_BUCKETS_US } from '../lateness.ts';
import type { UnderstudyNode } from '../node.ts';
import type { Figures } from '../proxy/counters.ts';
import { version } from '../version.ts';
import { checkerId, frontendSlotName } from '../wiring.ts';
import { Family, labelText, withLabel } from './exposition.ts';
import { routerMetrics } from './routerMetrics.ts';

/** Actors looked at in one turn of the loop: about a millisecond. */
const ACTORS_PER_TURN = 50;

const TRAFFIC: [keyof Figures, string, string][] = [
  ['sessions', 'sessions_total', 'Connections, or requests given to a server.'],
  ['requests', 'http_requests_total', 'HTTP requests.'],
  ['connectFailures', 'connect_failures_total', 'Connections that could not be made.'],
  ['responseFailures', 'response_failures_total', 'Answers that did not come or broke off.'],
  ['retries', 'retries_total', 'Attempts that were made again elsewhere.'],
  ['bytesIn', 'bytes_in_total', 'Bytes from clients.'],
  ['bytesOut', 'bytes_out_total', 'Bytes to clients.'],
];
const STATUSES = ['status1xx', 'status2xx', 'status3xx', 'status4xx', 'status5xx'] as const;
const SERVER_STATES = ['up', 'goingDown', 'down', 'goingUp', 'unchecked'];
const ADMIN_STATES = ['ready', 'drain', 'maintenance'];
const POOL_STATES = ['serving', 'onBackups', 'exhausted'];

const nextTurn = (): Promise<void> => new Promise((done) => setImmediate(done));

/** With `onlyNode` nothing of servers, pools and frontends: cheap however many there are. */
export const metricsOf = async (node: UnderstudyNode, onlyNode: boolean): Promise<string> => {
  const families: Family[] = [];
  const family = (name: string, type: 'gauge' | 'counter', help: string): Family => {
    const made = new Family(name, type, help);
    families.push(made);
    return made;
  };
  nodeMetrics(node, family);
  families.push(latenessHistogram(node));
  if (onlyNode) return textOf(families);
  if (Object.keys(node.config.routers).length > 0) routerMetrics(node, family);
  const servers = serverMetrics(node, family);
  const poolState = family('pool_state', 'gauge', '1 for the state that the pool is in.');
  let seen = 0;
  for (const { id } of [...node.system.frozen()]) {
    if (++seen % ACTORS_PER_TURN === 0) await nextTurn();
    // It may have been stopped between two turns.
    const actor = node.system.get(id);
    if (actor?.machine === 'backendServer') servers(actor.context as BackendServerContext, actor.state, id);
    else if (actor?.machine === 'pool') {
      const labels = labelText({ pool: id.slice('pool/'.length) });
      for (const state of POOL_STATES) poolState.add(withLabel(labels, 'state', state), state === actor.state ? 1 : 0);
    }
  }
  const frontends = trafficMetrics('frontend', family);
  for (const frontend of Object.keys(node.config.frontends)) {
    frontends(labelText({ frontend }), node.dataPlane.figures(frontendSlotName(frontend)));
  }
  return textOf(families);
};

const textOf = (families: Family[]): string => families.map((one) => one.text()).join('');

type MakeFamily = (name: string, type: 'gauge' | 'counter', help: string) => Family;

const nodeMetrics = (node: UnderstudyNode, family: MakeFamily): void => {
  const { node: name, cluster } = node.config;
  const { counters } = node.system;
  const journal = node.journal.status();
  const memory = process.memoryUsage();
  family('info', 'gauge', 'Version and name of the node.').add(labelText({ version, node: name, cluster }), 1);
  const values: [string, 'gauge' | 'counter', string, number][] = [
    ['start_time_seconds', 'gauge', 'When the node started.', node.startedUs / 1e6],
    ['process_resident_memory_bytes', 'gauge', 'Memory of the process.', memory.rss],
    ['process_heap_bytes', 'gauge', 'Heap of the control thread.', memory.heapUsed],
    ['actor_events_total', 'counter', 'Events delivered to machines.', counters.events],
    ['actor_transitions_total', 'counter', 'Events that changed a state.', counters.transitions],
    ['actor_unhandled_events_total', 'counter', 'Events that a state has no handler for.', counters.unhandled],
    ['actor_undeliverable_events_total', 'counter', 'Events to actors that are not there.', counters.undeliverable],
    ['actor_faults_total', 'counter', 'Faults that must not happen.', counters.faults],
    ['journal_failing', 'gauge', '1 while the journal cannot be written.', journal.failure ? 1 : 0],
    ['journal_unwritten_records', 'gauge', 'Records that are not on disk yet.', journal.unwrittenRows],
    ['journal_bytes', 'gauge', 'Size of the journal.', journal.usedBytes],
    ['journal_last_seq', 'gauge', 'Sequence number of the last record.', journal.lastSeq],
  ];
  for (const [key, type, help, value] of values) family(key, type, help).add('', value);
};

const serverMetrics = (node: UnderstudyNode, family: MakeFamily) => {
  const health = family('server_health', 'gauge', '1 for the state of health that the server is in.');
  const admin = family('server_admin', 'gauge', '1 for the state that the operator has set.');
  const weight = family('server_weight', 'gauge', 'Weight, slow start included.');
  const checkDuration = family('server_check_duration_seconds', 'gauge', 'Duration of the last check.');
  const traffic = trafficMetrics('server', family);
  return (context: BackendServerContext, state: string, id: string): void => {
    const labels = labelText({ pool: context.pool, server: context.name });
    const [healthState, adminState] = state.split(',');
    for (const one of SERVER_STATES) health.add(withLabel(labels, 'state', one), one === healthState ? 1 : 0);
    for (const one of ADMIN_STATES) admin.add(withLabel(labels, 'state', one), one === adminState ? 1 : 0);
    weight.add(labels, (context.weight * context.share) / 100);
    const probe = node.lastProbes.get(checkerId(context.pool, context.name));
    if (probe) checkDuration.add(labels, probe.durationMs / 1000);
    traffic(labels, node.dataPlane.figures(id));
  };
};

const trafficMetrics = (kind: 'server' | 'frontend', family: MakeFamily) => {
  const active = family(`${kind}_active`, 'gauge', 'Connections, or requests under way.');
  const queued = family(`${kind}_queued`, 'gauge', 'Requests that wait for a free connection.');
  const statuses = family(`${kind}_http_responses_total`, 'counter', 'Answers by class of status.');
  const totals = TRAFFIC.map(([key, name, help]) => ({ key, total: family(`${kind}_${name}`, 'counter', help) }));
  return (labels: string, figures: Figures | null): void => {
    if (!figures) return;
    active.add(labels, figures.active);
    queued.add(labels, figures.queued);
    for (const status of STATUSES) statuses.add(withLabel(labels, 'status', status.slice(6)), figures[status]);
    for (const { key, total } of totals) total.add(labels, figures[key]);
  };
};

const latenessHistogram = ({ lateness }: UnderstudyNode): Family => {
  const histogram = new Family(
    'control_loop_lateness_seconds',
    'histogram',
    'How late the control loop delivers its timers.',
  );
  let cumulative = 0;
  LATENESS_BUCKETS_US.forEach((bound, index) => {
    cumulative += lateness.counts[index]!;
    histogram.add(labelText({ le: String(bound / 1e6) }), cumulative, '_bucket');
  });
  histogram.add(labelText({ le: '+Inf' }), lateness.count, '_bucket');
  histogram.add('', lateness.sumUs / 1e6, '_sum');
  histogram.add('', lateness.count, '_count');
  return histogram;
};
