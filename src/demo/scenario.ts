/**
 * The scripted incident: a server dies and returns, another flaps, a third is drained, and the node that holds the
 * virtual address leaves, all under steady load; then that node dies.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { bold, green, print, red, table } from '../cli/output.ts';
import { formatExplanation } from '../cli/explain.ts';
import { JournalReader } from '../journal/reader.ts';
import { isoTime } from '../journal/view.ts';
import { formatClock } from '../time.ts';
import { explain } from '../worlds/explain.ts';
import { Replay } from '../worlds/replay.ts';
import { PROBE_EVERY_MS, startGapProbe } from './gapProbe.ts';
import { startLoad } from './load.ts';
import { command, end, startNode, startServer, stateOf } from './processes.ts';
import type { Demo, DemoNode } from './processes.ts';

const REQUESTS_PER_SECOND = 200;
/** How long the script waits for the node to notice what it has done. */
const NOTICE_TIMEOUT_MS = 10_000;
/** Answers are looked at from before a master is ended until after the other one has taken over. */
const PROBE_AROUND_MS = 500;

export type ScenarioResult = {
  requests: number;
  failed: number;
  transitions: { time: string; node: string; actor: string; from: string | null; to: string; event: string }[];
  /** How long no new connection to the virtual address was answered. */
  failovers: { how: 'SIGTERM' | 'SIGKILL'; gapMs: number }[];
};

export const playScenario = async (demo: Demo, quiet: boolean): Promise<ScenarioResult> => {
  const say = (text: string) => {
    if (!quiet) print(`${formatClock(Date.now() * 1000)}  ${text}`);
  };
  const server = (name: string) => demo.servers.find((candidate) => candidate.name === name)!;
  const [lb1, lb2] = demo.nodes as [DemoNode, DemoNode];
  const beganUs = Date.parse((await stateOf(lb1)).node.startedAt) * 1000;
  const load = startLoad(`${demo.url}/`, REQUESTS_PER_SECOND);
  say(`${REQUESTS_PER_SECOND} requests a second to ${demo.url}`);
  await delay(1500);

  say('web2 is killed (SIGKILL)');
  await end(server('web2'), 'SIGKILL');
  await untilHealth(demo, 'web2', 'down');
  say('web2 is marked down');
  await delay(1500);
  say('web2 is started again');
  await startServer(server('web2'));
  await untilHealth(demo, 'web2', 'up');
  say('web2 takes traffic again');
  await delay(1000);

  say('web3 flaps: it is gone for a second');
  await end(server('web3'), 'SIGKILL');
  await untilHealth(demo, 'web3', 'down');
  await startServer(server('web3'));
  await untilHealth(demo, 'web3', 'up');
  say('web3 is back');
  await delay(1000);

  say('web1 is drained by an operator');
  await command(lb1, { type: 'server.drain', pool: 'web', server: 'web1' });
  await delay(1500);
  say('web1 is set to ready');
  await command(lb1, { type: 'server.ready', pool: 'web', server: 'web1' });
  await delay(1000);

  const failovers: ScenarioResult['failovers'] = [];
  say('lb1, the master, is stopped (SIGTERM)');
  failovers.push({ how: 'SIGTERM', gapMs: await failOver(demo, 'SIGTERM') });
  say(`lb2 holds the address; the longest gap was ${failovers[0]!.gapMs} ms`);
  await delay(1000);
  say('lb1 is started again');
  startNode(lb1);
  await untilMaster(lb1);
  say('lb1 has taken the address back');
  await delay(1000);

  await load.stop();
  say('the load ends');
  say('lb1, the master, dies (SIGKILL)');
  failovers.push({ how: 'SIGKILL', gapMs: await failOver(demo, 'SIGKILL') });
  say(`lb2 holds the address; the gap was ${failovers[1]!.gapMs} ms`);
  await end(lb2, 'SIGTERM');
  const transitions = demo.nodes
    .flatMap(({ name, journal }) => transitionsOf(name, journal, beganUs))
    .toSorted((a, b) => (a.time < b.time ? -1 : a.time > b.time ? 1 : 0));
  const result = { requests: load.requests, failed: load.failed, transitions, failovers };
  if (!quiet) report(demo, result, load.failures);
  return result;
};

/** Ends the master and gives the longest time in which new connections found nobody. */
const failOver = async (demo: Demo, signal: NodeJS.Signals): Promise<number> => {
  const [lb1, lb2] = demo.nodes as [DemoNode, DemoNode];
  const probe = startGapProbe(`${demo.url}/`);
  await delay(PROBE_AROUND_MS);
  await Promise.all([end(lb1, signal), untilMaster(lb2)]);
  await delay(PROBE_AROUND_MS);
  return Math.round(await probe.stop());
};

const untilMaster = async (node: DemoNode): Promise<void> => {
  const startedAt = performance.now();
  for (;;) {
    const state = await stateOf(node).catch(() => null);
    // It is master when it listens: on loopback that is how the address is held.
    if (state?.frontends.every(({ listeners }) => listeners.every((listener) => listener.state === 'open'))) return;
    if (performance.now() - startedAt > NOTICE_TIMEOUT_MS) throw new Error(`${node.name} did not become master`);
    await delay(20);
  }
};

const untilHealth = async (demo: Demo, name: string, health: string): Promise<void> => {
  const startedAt = performance.now();
  for (;;) {
    const { pools } = await stateOf(demo.nodes[0]!);
    if (pools.some(({ servers }) => servers.some((server) => server.name === name && server.health === health))) return;
    if (performance.now() - startedAt > NOTICE_TIMEOUT_MS) throw new Error(`${name} did not become ${health}`);
    await delay(20);
  }
};

/** The transitions of servers, pools and routers, decided again from the journal. */
const transitionsOf = (node: string, path: string, sinceUs: number): ScenarioResult['transitions'] => {
  const reader = new JournalReader(path);
  const transitions: ScenarioResult['transitions'] = [];
  for (const { step, before, after, changed } of new Replay(reader).run()) {
    // A folder that was used before has the journal of before, too.
    if (step.wallUs < sinceUs) continue;
    if (!changed || before === null || !/^(server|pool|router)\//.test(step.actor)) continue;
    transitions.push({
      time: isoTime(step.wallUs),
      node,
      actor: step.actor,
      from: before,
      to: after,
      event: step.event.type,
    });
  }
  reader.close();
  return transitions;
};

const report = (demo: Demo, { requests, failed, transitions, failovers }: ScenarioResult, failures: string[]): void => {
  print(`\n${bold('Transitions')}\n`);
  print(
    table(
      ['TIME', 'NODE', 'ACTOR', 'FROM', 'TO', 'BECAUSE OF'],
      transitions.map(({ time, node, actor, from, to, event }) => [
        formatClock(Date.parse(time) * 1000),
        node,
        actor,
        from ?? '',
        to,
        event,
      ]),
    ),
  );
  const [lb1, lb2] = demo.nodes as [DemoNode, DemoNode];
  const left = transitions.find(
    ({ node, actor, to }) => node === lb1.name && actor === 'server/web/web2' && to.startsWith('down'),
  );
  print(`\n${bold('Why web2 left, from the journal of lb1')}\n`);
  print(explanation(lb1, 'server/web/web2', left && Date.parse(left.time) * 1000 + 999));
  const took = transitions.findLast(
    ({ node, actor, to }) => node === lb2.name && actor === 'router/gateway' && to === 'master',
  );
  print(`\n${bold('Why lb2 took the address over, from its journal')}\n`);
  print(explanation(lb2, 'router/gateway', took && Date.parse(took.time) * 1000 + 999));
  print('');
  for (const { how, gapMs } of failovers)
    print(
      `Master ended with ${how}: no new connection was answered for ${gapMs} ms (a try every ${PROBE_EVERY_MS} ms)`,
    );
  print(
    `\n${bold(`${requests} requests, ${failed === 0 ? green('none failed') : red(`${failed} failed: ${failures.join(', ')}`)}`)}`,
  );
};

const explanation = ({ journal }: DemoNode, actor: string, atUs: number | undefined): string => {
  const reader = new JournalReader(journal);
  try {
    return formatExplanation(explain(reader, actor, atUs));
  } finally {
    reader.close();
  }
};
