/**
 * All nats-servers are away while servers die and return and masters are killed: `node test/lab/natsAway.ts [SECONDS]`
 * (`npm run soak:natsAway`: ten minutes); a short form is among the tests. Takes root. What a client sees of a fail-over
 * is measured with NATS and without, and how long after its return the cluster log has everything.
 */
import assert from 'node:assert/strict';
import { Lab } from '../../deploy/lab/lab.ts';
import { startNginx } from '../../deploy/lab/nginx.ts';
import { VIP } from '../../deploy/lab/cluster.ts';
import type { LabNode } from '../../deploy/lab/node.ts';
import type { Host } from '../../deploy/lab/lab.ts';
import { until } from '../../deploy/lab/until.ts';
import { JournalReader } from '../../src/journal/reader.ts';
import { assertShipped, journalsOf, ShippedLog, stopNodes } from './clusterLog.ts';
import { ClusterStage, CLUSTER, SETTLE_MS, lastLines } from './clusterStage.ts';

export type NatsAwayResult = {
  awaySeconds: number;
  /** Of the address whose master was killed. */
  gapsMs: { withNats: number[]; withoutNats: number[] };
  /** Servers that died and returned meanwhile; every node saw it by its own checks. */
  serversLost: number;
  /** By the loss of servers: another one is tried, so there should be none. */
  failedByServers: number;
  /** Written to the journals while NATS was away. */
  recordsMeanwhile: number;
  /** From the moment when all nats-servers ran again until the cluster log had all of them. */
  completeAfterSeconds: number;
  /** In the cluster log at the end, compared with the journals one by one. */
  records: number;
};

/** A while without NATS is long for its nodes; this often everything is tried again. */
const MOST_ROUNDS = 20;

const lastSeqOf = ({ journal }: LabNode): number => {
  const reader = new JournalReader(journal);
  try {
    return reader.bounds().lastSeq;
  } finally {
    reader.close();
  }
};

const lastSeqs = (stage: ClusterStage): Map<string, number> =>
  new Map(stage.cluster.nodes.map((node) => [node.name, lastSeqOf(node)]));

/** SIGKILL to the master of the address. @returns the gap that a client saw */
const killMaster = async (stage: ClusterStage): Promise<number> => {
  const [name] = Object.values(stage.ownersWithout());
  const node = stage.cluster.node(name!);
  const mark = stage.load.mark();
  await node.end('SIGKILL');
  await stage.untilSettled({ out: [node.name] });
  await node.run();
  await stage.untilSettled();
  const { longestGapMs, failed } = stage.load.since(mark, VIP);
  assert(failed > 0 && longestGapMs > 0, 'the master was killed, and no request failed: it was not the master');
  return Math.round(longestGapMs);
};

const untilHealth = (stage: ClusterStage, server: string, health: 'up' | 'down'): Promise<unknown> =>
  Promise.all(
    stage.cluster.nodes.map((node) =>
      until(
        `${node.name} sees ${server} ${health}`,
        async () => {
          const { pools } = await node.state();
          return pools[0]!.servers.find(({ name }) => name === server)!.health === health;
        },
        SETTLE_MS,
      ),
    ),
  );

/** A server dies and returns. @returns how many requests failed */
const loseServer = async (stage: ClusterStage, host: Host): Promise<number> => {
  const mark = stage.load.mark();
  const nginx = stage.cluster.lab.processes.findLast(({ title }) => title === `${host.name} nginx`)!;
  nginx.signalGroup('SIGKILL');
  await nginx.exited;
  await untilHealth(stage, host.name, 'down');
  await startNginx(host, `Hello from ${host.name}.`);
  await untilHealth(stage, host.name, 'up');
  await stage.load.untilFlowing(SETTLE_MS);
  return stage.load.since(mark).failed;
};

/** Throws at the first thing that is wrong. */
export const goWithoutNats = async (
  lab: Lab,
  seconds: number,
  rounds: number,
  say: (line: string) => void,
): Promise<NatsAwayResult> => {
  const stage = await ClusterStage.create({ lab });
  const { cluster, load } = stage;
  const gapsMs: NatsAwayResult['gapsMs'] = { withNats: [], withoutNats: [] };
  for (let round = 0; round < rounds; round++) gapsMs.withNats.push(await killMaster(stage));
  say(`with NATS, gaps of ${gapsMs.withNats.join(', ')} ms`);

  const before = lastSeqs(stage);
  await Promise.all(cluster.nats.map((nats) => nats.end('SIGKILL')));
  const awayAt = performance.now();
  let serversLost = 0;
  let failedByServers = 0;
  while (performance.now() - awayAt < seconds * 1_000 || gapsMs.withoutNats.length < rounds) {
    const server = cluster.servers[serversLost % cluster.servers.length]!;
    failedByServers += await loseServer(stage, server);
    serversLost++;
    if (gapsMs.withoutNats.length < rounds) gapsMs.withoutNats.push(await killMaster(stage));
    say(`without NATS, ${server.name} died and returned; gaps so far ${gapsMs.withoutNats.join(', ')} ms`);
  }

  await Promise.all(cluster.nats.map((nats) => nats.run()));
  const backAt = performance.now();
  const meant = lastSeqs(stage);
  const awaySeconds = Math.round((backAt - awayAt) / 1_000);
  await using log = await ShippedLog.open(cluster, CLUSTER);
  await until(
    'the cluster log is complete',
    async () => {
      const shipped = await log.lastSeqs([...meant.keys()]);
      return shipped !== null && [...meant].every(([name, seq]) => (shipped.get(name) ?? 0) >= seq);
    },
    SETTLE_MS,
  );
  const completeAfterSeconds = (performance.now() - backAt) / 1_000;
  say(
    `NATS was away for ${awaySeconds} s; the cluster log is complete ${completeAfterSeconds.toFixed(1)} s after its return`,
  );
  await stage.untilSettled();
  await load.end();
  await stopNodes(cluster);
  const { records } = await assertShipped(cluster.nats, journalsOf(cluster), log);
  const recordsMeanwhile = [...meant].reduce((sum, [name, seq]) => sum + seq - before.get(name)!, 0);
  return { awaySeconds, gapsMs, serversLost, failedByServers, recordsMeanwhile, completeAfterSeconds, records };
};

if (import.meta.main) {
  const [seconds = 600] = process.argv.slice(2).map(Number);
  const lab = await Lab.create();
  const say = (line: string) => console.log(`${new Date().toISOString().slice(11, 19)} ${line}`);
  try {
    console.log(JSON.stringify(await goWithoutNats(lab, seconds, MOST_ROUNDS, say), null, 2));
  } catch (error) {
    console.error(lastLines(lab));
    console.error(error);
    process.exitCode = 1;
  } finally {
    await lab.destroy();
  }
}
