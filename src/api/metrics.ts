/** Prometheus metrics, gathered when they are asked for. Names follow Prometheus' rules: base units, `_total`. */
import { Counter, Gauge, Registry } from 'prom-client';
import type { BackendServerContext } from '../../machines/backendServer.ts';
import { LATENESS_BUCKETS_US } from '../lateness.ts';
import type { UnderstudyNode } from '../node.ts';
import type { Figures } from '../proxy/counters.ts';
import { version } from '../version.ts';
import { frontendSlotName } from '../wiring.ts';

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

export const metricsOf = async (node: UnderstudyNode): Promise<{ contentType: string; text: string }> => {
  const registry = new Registry();
  const gauge = (name: string, help: string, labelNames: string[] = []) =>
    new Gauge({ name: `understudy_${name}`, help, labelNames, registers: [registry] });
  const counter = (name: string, help: string, labelNames: string[] = []) =>
    new Counter({ name: `understudy_${name}`, help, labelNames, registers: [registry] });

  gauge('info', 'Version and name of the node.', ['version', 'node', 'cluster']).set(
    { version, node: node.config.node, cluster: node.config.cluster },
    1,
  );
  gauge('start_time_seconds', 'When the node started.').set(node.startedUs / 1e6);
  nodeMetrics(node, gauge, counter);

  const traffic = (kind: 'server' | 'frontend', labels: string[]) => ({
    active: gauge(`${kind}_active`, 'Connections, or requests under way.', labels),
    queued: gauge(`${kind}_queued`, 'Requests that wait for a free connection.', labels),
    statuses: counter(`${kind}_http_responses_total`, 'Answers by class of status.', [...labels, 'status']),
    totals: TRAFFIC.map(([key, name, help]) => ({ key, counter: counter(`${kind}_${name}`, help, labels) })),
  });
  const report = (metrics: ReturnType<typeof traffic>, labels: Record<string, string>, figures: Figures | null) => {
    if (!figures) return;
    metrics.active.set(labels, figures.active);
    metrics.queued.set(labels, figures.queued);
    for (const { key, counter: total } of metrics.totals) total.inc(labels, figures[key]);
    for (const status of STATUSES) metrics.statuses.inc({ ...labels, status: status.slice(6) }, figures[status]);
  };

  const serverTraffic = traffic('server', ['pool', 'server']);
  const health = gauge('server_health', '1 for the state of health that the server is in.', [
    'pool',
    'server',
    'state',
  ]);
  const admin = gauge('server_admin', '1 for the state that the operator has set.', ['pool', 'server', 'state']);
  const weight = gauge('server_weight', 'Weight, slow start included.', ['pool', 'server']);
  const checkDuration = gauge('server_check_duration_seconds', 'Duration of the last check.', ['pool', 'server']);
  const poolState = gauge('pool_state', '1 for the state that the pool is in.', ['pool', 'state']);
  const frontendTraffic = traffic('frontend', ['frontend']);

  for (const actor of node.system.all()) {
    if (actor.machine === 'backendServer') {
      const context = actor.context as BackendServerContext;
      const labels = { pool: context.pool, server: context.name };
      const [healthState, adminState] = actor.state.split(',');
      for (const state of SERVER_STATES) health.set({ ...labels, state }, state === healthState ? 1 : 0);
      for (const state of ADMIN_STATES) admin.set({ ...labels, state }, state === adminState ? 1 : 0);
      weight.set(labels, (context.weight * context.share) / 100);
      const probe = node.lastProbes.get(`checker/${context.pool}/${context.name}`);
      if (probe) checkDuration.set(labels, probe.durationMs / 1000);
      report(serverTraffic, labels, node.dataPlane.figures(actor.id));
    } else if (actor.machine === 'pool') {
      const pool = actor.id.slice('pool/'.length);
      for (const state of POOL_STATES) poolState.set({ pool, state }, state === actor.state ? 1 : 0);
    }
  }
  for (const frontend of Object.keys(node.config.frontends)) {
    report(frontendTraffic, { frontend }, node.dataPlane.figures(frontendSlotName(frontend)));
  }
  return { contentType: registry.contentType, text: `${await registry.metrics()}\n${latenessHistogram(node)}` };
};

const nodeMetrics = (
  node: UnderstudyNode,
  gauge: (name: string, help: string, labels?: string[]) => Gauge,
  counter: (name: string, help: string, labels?: string[]) => Counter,
): void => {
  const { counters } = node.system;
  counter('actor_events_total', 'Events delivered to machines.').inc(counters.events);
  counter('actor_transitions_total', 'Events that changed a state.').inc(counters.transitions);
  counter('actor_unhandled_events_total', 'Events that a state has no handler for.').inc(counters.unhandled);
  counter('actor_undeliverable_events_total', 'Events to actors that are not there.').inc(counters.undeliverable);
  counter('actor_faults_total', 'Faults that must not happen.').inc(counters.faults);
  const journal = node.journal.status();
  gauge('journal_failing', '1 while the journal cannot be written.').set(journal.failure ? 1 : 0);
  gauge('journal_unwritten_records', 'Records that are not on disk yet.').set(journal.unwrittenRows);
  gauge('journal_bytes', 'Size of the journal.').set(journal.usedBytes);
  gauge('journal_last_seq', 'Sequence number of the last record.').set(journal.lastSeq);
};

/** Written by hand because the buckets are counted already: prom-client's own histogram would count them again. */
const latenessHistogram = (node: UnderstudyNode): string => {
  const { lateness } = node;
  const name = 'understudy_control_loop_lateness_seconds';
  let cumulative = 0;
  const buckets = LATENESS_BUCKETS_US.map((bound, index) => {
    cumulative += lateness.counts[index]!;
    return `${name}_bucket{le="${bound / 1e6}"} ${cumulative}`;
  });
  return [
    `# HELP ${name} How late the control loop delivers its timers.`,
    `# TYPE ${name} histogram`,
    ...buckets,
    `${name}_bucket{le="+Inf"} ${lateness.count}`,
    `${name}_sum ${lateness.sumUs / 1e6}`,
    `${name}_count ${lateness.count}`,
    '',
  ].join('\n');
};
