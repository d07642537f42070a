/** Metrics, gathered when they are asked for. Names follow Prometheus' rules: base units, `_total`. */
import type { BackendServerContext } from '../../machines/backendServer.ts';
import type { PoolContext } from '../../machines/pool.ts';
import { LATENESS_BUCKETS_US } from '../lateness.ts';
import type { UnderstudyNode } from '../node.ts';
import { version } from '../version.ts';
import { checkerId, frontendSlotName, observerId } from '../wiring.ts';
import { clusterMetrics } from './clusterMetrics.ts';
import { courierMetrics } from './courierMetrics.ts';
import { Family, labelText, withLabel } from './exposition.ts';
import type { MakeFamily } from './exposition.ts';
import { routerMetrics } from './routerMetrics.ts';
import { sharedMetrics } from './sharedMetrics.ts';
import { MAX_FINE_SERVERS, trafficMetrics } from './trafficMetrics.ts';

/** Actors looked at in one turn of the loop: about a millisecond. */
const ACTORS_PER_TURN = 10;

const SERVER_STATES = ['up', 'goingDown', 'down', 'goingUp', 'unchecked'];
const ADMIN_STATES = ['ready', 'drain', 'maintenance'];
const POOL_STATES = ['serving', 'onBackups', 'panicking', 'exhausted'];
const WORKER_STATES = ['starting', 'ready', 'draining', 'crashed', 'stopped'];

const nextTurn = (): Promise<void> => new Promise((done) => setImmediate(done));

/**
 * The text in parts, made in many turns of the loop. With `onlyNode` nothing of servers, pools and frontends: cheap
 * however many there are.
 */
export async function* metricsOf(node: UnderstudyNode, onlyNode: boolean): AsyncGenerator<Buffer> {
  const families: Family[] = [];
  const family: MakeFamily = (name, type, help) => {
    const made = new Family(name, type, help);
    families.push(made);
    return made;
  };
  nodeMetrics(node, family);
  clusterMetrics(node, family);
  courierMetrics(node, family);
  families.push(latenessHistogram(node));
  if (!onlyNode) await trafficFamilies(node, family);
  for (const one of families) {
    yield Buffer.concat(one.parts());
    await nextTurn();
  }
}

const trafficFamilies = async (node: UnderstudyNode, family: MakeFamily): Promise<void> => {
  if (Object.keys(node.config.routers).length > 0) routerMetrics(node, family);
  const addFrontend = trafficMetrics('frontend', node, family, { fine: true });
  for (const frontend of Object.keys(node.config.frontends))
    addFrontend(labelText({ frontend }), frontendSlotName(frontend));
  const worker = family('worker_state', 'gauge', '1 for the state that the data-plane thread is in.');
  const addPool = poolMetrics(node, family);
  const addServer = serverMetrics(node, family);
  let seen = 0;
  for (const { id } of [...node.system.frozen()]) {
    if (++seen % ACTORS_PER_TURN === 0) await nextTurn();
    // It may have been stopped between two turns.
    const actor = node.system.get(id);
    if (actor?.machine === 'backendServer') addServer(actor.context as BackendServerContext, actor.state, id);
    else if (actor?.machine === 'pool') addPool(actor.context as PoolContext, actor.state, id);
    else if (actor?.machine === 'proxyWorker') {
      const labels = labelText({ worker: id.slice('worker/'.length) });
      for (const state of WORKER_STATES) worker.add(withLabel(labels, 'state', state), state === actor.state ? 1 : 0);
    }
  }
};

const nodeMetrics = (node: UnderstudyNode, family: MakeFamily): void => {
  const { node: name, cluster } = node.config;
  const { counters } = node.system;
  const journal = node.journal.status();
  const accessLog = node.accessLog.figures();
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
    ['access_log_records_total', 'counter', 'Records that were written to the access log.', accessLog.written],
    ['access_log_dropped_total', 'counter', 'Records that found no room before they were written.', accessLog.dropped],
    ['access_log_lost_total', 'counter', 'Records that could not be written.', accessLog.lost],
  ];
  for (const [key, type, help, value] of values) family(key, type, help).add('', value);
};

const poolMetrics = (node: UnderstudyNode, family: MakeFamily) => {
  const poolState = family('pool_state', 'gauge', '1 for the state that the pool is in.');
  const servers = family('pool_servers', 'gauge', 'Servers of the pool.');
  const usable = family('pool_usable_servers', 'gauge', 'Servers that take new traffic.');
  const ejected = family('pool_ejected_servers', 'gauge', 'Outliers that are out of traffic for a time.');
  const traffic = trafficMetrics('pool', node, family, { fine: true });
  return ({ members, weights }: PoolContext, state: string, id: string): void => {
    const labels = labelText({ pool: id.slice('pool/'.length) });
    for (const one of POOL_STATES) poolState.add(withLabel(labels, 'state', one), one === state ? 1 : 0);
    const all = Object.values(members);
    servers.add(labels, all.length);
    usable.add(labels, Object.keys(weights).length);
    ejected.add(labels, all.filter((member) => member.ejected).length);
    traffic(labels, id);
  };
};

const serverMetrics = (node: UnderstudyNode, family: MakeFamily) => {
  const health = family('server_health', 'gauge', '1 for the state of health that the server is in.');
  const admin = family('server_admin', 'gauge', '1 for the state that the operator has set.');
  const weight = family('server_weight', 'gauge', 'Weight, slow start included.');
  const checkDuration = family('server_check_duration_seconds', 'gauge', 'Duration of the last check.');
  const ejected = family('server_ejected', 'gauge', '1 while the server is out of traffic as an outlier.');
  const ejections = family('server_ejections_total', 'counter', 'How often the server was ejected.');
  const shared = sharedMetrics(node, family);
  const count = Object.values(node.config.backends).reduce((sum, { servers }) => sum + servers.length, 0);
  const traffic = trafficMetrics('server', node, family, { fine: count <= MAX_FINE_SERVERS });
  return ({ pool, name, weight: own, share }: BackendServerContext, state: string, id: string): void => {
    const labels = labelText({ pool, server: name });
    const [healthState, adminState] = state.split(',');
    for (const one of SERVER_STATES) health.add(withLabel(labels, 'state', one), one === healthState ? 1 : 0);
    for (const one of ADMIN_STATES) admin.add(withLabel(labels, 'state', one), one === adminState ? 1 : 0);
    weight.add(labels, (own * share) / 100);
    const probe = node.lastProbes.get(checkerId(pool, name));
    if (probe) checkDuration.add(labels, probe.durationMs / 1000);
    const observer = node.system.get(observerId(pool, name));
    if (observer) {
      ejected.add(labels, observer.state === 'ejected' ? 1 : 0);
      ejections.add(labels, node.ejections.get(observer.id) ?? 0);
    }
    shared?.(labels, pool, name);
    traffic(labels, id);
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
