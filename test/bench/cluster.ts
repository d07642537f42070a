/**
 * `npm run bench:cluster`: three nodes and three nats-servers on this machine, streams of three copies. Records a second
 * shipped, beside bare publishes of the same messages; from a decision to the cluster log, beside the round trip of one
 * bare publish; CPU of a node of three that checks a thousand servers, beside the same without NATS.
 */
import { NatsCluster } from '../natsHelpers.ts';
import { BenchNats } from './clusterNats.ts';
import { measureNodes, SERVERS } from './clusterNodes.ts';
import type { NodeFigures, Variant, Weather } from './clusterNodes.ts';
import { measureShipping } from './clusterShipping.ts';
import { quantile, quick, report, row, say } from './report.ts';
import type { BenchRow } from './report.ts';

const SHIPPING = quick ? { events: 50_000, runs: 3 } : { events: 200_000, runs: 7 };
const TIMING = quick
  ? { settleMs: 6_000, sampleMs: 5_000, samples: 2 }
  : { settleMs: 20_000, sampleMs: 5_000, samples: 12 };
const ROUND_TRIPS = quick ? 500 : 5_000;
/** A record alone in its message. */
const ROUND_TRIP_BYTES = 300;

const MEMORY: Variant = { name: 'memory', hasNats: false, checks: null };
const NATS: Variant = { name: 'nats', hasNats: true, checks: null };
const variants: Variant[] = [
  MEMORY,
  NATS,
  { name: 'nats, shared checks', hasNats: true, checks: { share: 'quorum' } },
  { name: 'nats, divided checks', hasNats: true, checks: { share: 'quorum', divide: true } },
];
const weathers: Weather[] = ['quiet', 'flapping'];

const cpuRows = (measured: Map<string, Record<Weather, NodeFigures>>): BenchRow[] =>
  weathers.flatMap((weather) =>
    variants.flatMap(({ name, hasNats }) => {
      const figures = measured.get(name)![weather];
      const reference = measured.get(MEMORY.name)![weather];
      const compared = hasNats ? reference : null;
      const subject = `bus ${name}, ${weather}`;
      return [
        row('cpu of a node', subject, '% of a core', figures.processCpu, compared?.processCpu ?? null),
        row('cpu of its control thread', subject, '% of a core', figures.controlCpu, compared?.controlCpu ?? null),
        row('checks', subject, 'checks/s', figures.checksPerSecond, compared?.checksPerSecond ?? null),
        row('records', subject, 'records/s', figures.recordsPerSecond, compared?.recordsPerSecond ?? null),
        ...(hasNats
          ? [
              row('cpu of its bus thread', subject, '% of a core', figures.busCpu, null),
              row('cpu of a nats-server', subject, '% of a core', figures.natsCpu, null),
            ]
          : []),
      ];
    }),
  );

const delayRows = (figures: Record<Weather, NodeFigures>, roundTripsMs: number[]): BenchRow[] =>
  weathers.flatMap((weather) => {
    const { delaysMs } = figures[weather];
    // While all is quiet there may be nothing but runs.
    if (delaysMs.length === 0) return [];
    const subject = `${delaysMs.length} records of three nodes, ${weather}`;
    const p99 = (values: number[]) => [quantile(values, 0.99)];
    return [
      row('from a decision to the cluster log, p50', subject, 'ms', delaysMs, roundTripsMs),
      row('from a decision to the cluster log, p99', subject, 'ms', p99(delaysMs), p99(roundTripsMs)),
    ];
  });

const cluster = await NatsCluster.start(3);
const nats = await BenchNats.open(cluster.urls);
try {
  const shipping = await measureShipping(nats, cluster.urls, SHIPPING);
  say(`shipped ${SHIPPING.runs} journals of ${SHIPPING.events} records`);
  const bodies = Array.from({ length: ROUND_TRIPS }, () => new Uint8Array(ROUND_TRIP_BYTES));
  const { eachMs } = await nats.publishBare(bodies, 1);
  const measured = new Map<string, Record<Weather, NodeFigures>>();
  for (const variant of variants) {
    const pids = cluster.servers.map(({ pid }) => pid);
    measured.set(variant.name, await measureNodes(nats, { servers: cluster.urls, pids }, variant, TIMING));
    say(`measured three nodes of ${SERVERS} servers, bus ${variant.name}`);
  }
  report(
    [
      row('shipping', 'a full journal; one publish in flight', 'records/s', shipping.shipped, shipping.oneInFlight),
      row('shipping', 'a full journal; 64 in flight', 'records/s', shipping.shipped, shipping.manyInFlight),
      row('size of a message', 'a full journal', 'bytes', shipping.bytesPerMessage, null),
      ...delayRows(measured.get(NATS.name)!, eachMs),
      ...cpuRows(measured),
    ],
    'bare JetStream publishes of the same messages to three copies; the round trip of one; the bus memory',
  );
} finally {
  await nats.close();
  await cluster.end();
}
