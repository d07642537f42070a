/** Metrics of the data plane: what frontends, pools and servers count, and how long things take. */
import type { UnderstudyNode } from '../node.ts';
import type { Figures } from '../proxy/counters.ts';
import { LATENCY } from '../proxy/histograms.ts';
import { withLabel } from './exposition.ts';
import type { Family, MakeFamily } from './exposition.ts';

type Kind = 'frontend' | 'pool' | 'server';

/** Which of them count it, the figure, the metric's name behind that of the kind, and its help. */
const GAUGES: [Kind[], keyof Figures, string, string][] = [
  [['frontend', 'pool', 'server'], 'active', 'active', 'Connections, or requests under way.'],
  [['pool', 'server'], 'queued', 'queued', 'Requests that wait for a free connection.'],
  [['server'], 'idle', 'idle_connections', 'Connections kept for the next request.'],
];
const TOTALS: [Kind[], keyof Figures, string, string][] = [
  [['frontend'], 'connections', 'connections_total', 'Connections accepted.'],
  [['frontend', 'pool', 'server'], 'sessions', 'sessions_total', 'Connections served, or requests given to a server.'],
  [['frontend', 'pool', 'server'], 'requests', 'http_requests_total', 'HTTP requests.'],
  [['frontend'], 'http2Requests', 'http2_requests_total', 'HTTP requests that came in HTTP/2.'],
  [['frontend', 'pool', 'server'], 'bytesIn', 'received_bytes_total', 'Bytes from clients.'],
  [['frontend', 'pool', 'server'], 'bytesOut', 'sent_bytes_total', 'Bytes to clients.'],
  [['frontend'], 'requestErrors', 'request_errors_total', 'Requests that were malformed, incomplete or too slow.'],
  [['frontend'], 'deniedConnections', 'denied_connections_total', 'Connections that rules or limits refused.'],
  [['frontend', 'pool'], 'deniedRequests', 'denied_requests_total', 'Requests that rules refused.'],
  [['frontend'], 'rateLimited', 'rate_limited_total', 'Requests and connections beyond a rate limit.'],
  [['frontend'], 'intercepted', 'intercepted_requests_total', 'Requests that rules answered themselves.'],
  [
    ['frontend', 'pool', 'server'],
    'internalErrors',
    'internal_errors_total',
    'Faults of our own, for want of anything.',
  ],
  [['frontend', 'pool', 'server'], 'clientAborts', 'client_aborts_total', 'Exchanges that the client broke off.'],
  [['pool', 'server'], 'serverAborts', 'server_aborts_total', 'Exchanges that the server broke off.'],
  [['server'], 'connects', 'connects_total', 'Connections made to the server.'],
  [['server'], 'reuses', 'connection_reuses_total', 'Requests on a connection that was kept.'],
  [['pool', 'server'], 'connectFailures', 'connect_failures_total', 'Connections that could not be made.'],
  [['pool', 'server'], 'responseFailures', 'response_failures_total', 'Answers that did not come or broke off.'],
  [['pool', 'server'], 'retries', 'retries_total', 'Attempts that were made again.'],
  [['pool', 'server'], 'redispatches', 'redispatches_total', 'Attempts that were made again elsewhere.'],
  [['pool'], 'queueTimeouts', 'queue_timeouts_total', 'Requests that waited too long for a free connection.'],
  [['server'], 'observedFailures', 'observed_failures_total', 'Failures seen in live traffic.'],
  [['frontend'], 'tlsHandshakes', 'tls_handshakes_total', 'TLS handshakes with clients.'],
  [['frontend'], 'tlsResumptions', 'tls_resumptions_total', 'TLS handshakes that resumed an earlier session.'],
  [['frontend'], 'tlsFailures', 'tls_failures_total', 'TLS handshakes that failed.'],
  [['frontend'], 'compressedResponses', 'compressed_responses_total', 'Responses that were compressed.'],
  [['frontend'], 'compressionIn', 'compression_input_bytes_total', 'Bytes before compression.'],
  [['frontend'], 'compressionOut', 'compression_output_bytes_total', 'Bytes after compression.'],
  [['frontend'], 'compressionBypassed', 'compression_bypassed_bytes_total', 'Bytes that could have been compressed.'],
];
const STATUSES = ['1xx', '2xx', '3xx', '4xx', '5xx', 'Other'] as const;

const LATENCIES = [
  [LATENCY.queue, 'queue_duration_seconds', 'Wait for a free connection.'],
  [LATENCY.connect, 'connect_duration_seconds', 'Time to connect to a server.'],
  [LATENCY.response, 'response_duration_seconds', 'Time from the request to the head of its answer.'],
  [LATENCY.total, 'duration_seconds', 'Whole time of a request, or of a session.'],
] as const;

/** 128 µs to 16.8 s, doubling: powers of two are bounds of our own buckets, so that each count is exact. */
const BOUNDS_US = Array.from({ length: 18 }, (_, index) => 2 ** (index + 7));
const BOUNDS = BOUNDS_US.map((boundUs) => String(boundUs / 1e6));

/** Beyond, servers' histograms are their sum and count alone: 10,000 would be a million lines. */
export const MAX_FINE_SERVERS = 1_000;

export type AddTraffic = (labels: string, slotName: string) => void;

/** Families of one kind; the function adds one frontend, pool or server by the name of its figures. */
export const trafficMetrics = (
  kind: Kind,
  node: UnderstudyNode,
  family: MakeFamily,
  { fine }: { fine: boolean },
): AddTraffic => {
  const make = (type: 'gauge' | 'counter') => (table: typeof TOTALS) =>
    table
      .filter(([kinds]) => kinds.includes(kind))
      .map(([, figure, name, help]) => ({ figure, family: family(`${kind}_${name}`, type, help) }));
  const values = [...make('gauge')(GAUGES), ...make('counter')(TOTALS)];
  const responses = family(`${kind}_http_responses_total`, 'counter', 'Answers by class of status.');
  const latencies = LATENCIES.map(([latency, name, help]) => ({
    latency,
    family: family(`${kind}_${name}`, 'histogram', help),
  }));
  return (labels, slotName) => {
    const figures = node.dataPlane.figures(slotName);
    if (!figures) return;
    for (const { figure, family: one } of values) one.add(labels, figures[figure]);
    for (const status of STATUSES)
      responses.add(withLabel(labels, 'status', status.toLowerCase()), figures[`status${status}`]);
    for (const { latency, family: one } of latencies) addLatency(node, one, labels, slotName, latency, fine);
  };
};

const addLatency = (
  node: UnderstudyNode,
  family: Family,
  labels: string,
  slotName: string,
  kind: (typeof LATENCIES)[number][0],
  fine: boolean,
): void => {
  const latency = node.dataPlane.latency(slotName, kind);
  if (!latency) return;
  if (fine) {
    latency
      .cumulative(BOUNDS_US)
      .forEach((count, index) => family.add(withLabel(labels, 'le', BOUNDS[index]!), count, '_bucket'));
  }
  family.add(withLabel(labels, 'le', '+Inf'), latency.count, '_bucket');
  family.add(labels, latency.sumUs / 1e6, '_sum');
  family.add(labels, latency.count, '_count');
};
