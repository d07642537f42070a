/** The scripted incident: a server dies and returns, another flaps, a third is drained, all under steady load. */
import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { bold, green, print, red, table } from '../cli/output.ts';
import { formatExplanation } from '../cli/explain.ts';
import { JournalReader } from '../journal/reader.ts';
import { isoTime } from '../journal/view.ts';
import { formatClock } from '../time.ts';
import { explain } from '../worlds/explain.ts';
import { Replay } from '../worlds/replay.ts';
import type { Demo } from './processes.ts';
import { startLoad } from './load.ts';
import { killServer, startServer } from './processes.ts';

const REQUESTS_PER_SECOND = 200;
/** How long the script waits for the node to notice what it has done. */
const NOTICE_TIMEOUT_MS = 10_000;

export type ScenarioResult = {
  requests: number;
  failed: number;
  transitions: { time: string; actor: string; from: string | null; to: string; event: string }[];
};

export const playScenario = async (demo: Demo, quiet: boolean): Promise<ScenarioResult> => {
  const say = (text: string) => {
    if (!quiet) print(`${formatClock(Date.now() * 1000)}  ${text}`);
  };
  const server = (name: string) => demo.servers.find((candidate) => candidate.name === name)!;
  const beganUs = Date.parse((await demo.state()).node.startedAt) * 1000;
  const load = startLoad(`${demo.url}/`, REQUESTS_PER_SECOND);
  say(`${REQUESTS_PER_SECOND} requests a second to ${demo.url}`);
  await delay(1500);

  say('web2 is killed (SIGKILL)');
  await killServer(server('web2'), 'SIGKILL');
  await untilHealth(demo, 'web2', 'down');
  say('web2 is marked down');
  await delay(1500);
  say('web2 is started again');
  await startServer(server('web2'));
  await untilHealth(demo, 'web2', 'up');
  say('web2 takes traffic again');
  await delay(1000);

  say('web3 flaps: it is gone for a second');
  await killServer(server('web3'), 'SIGKILL');
  await untilHealth(demo, 'web3', 'down');
  await startServer(server('web3'));
  await untilHealth(demo, 'web3', 'up');
  say('web3 is back');
  await delay(1000);

  say('web1 is drained by an operator');
  await demo.command({ type: 'server.drain', pool: 'web', server: 'web1' });
  await delay(1500);
  say('web1 is set to ready');
  await demo.command({ type: 'server.ready', pool: 'web', server: 'web1' });
  await delay(1000);

  await load.stop();
  say('the load ends');
  const { node } = demo;
  if (node) {
    const exited = once(node, 'exit');
    node.kill('SIGTERM');
    await exited;
  }
  const result = { requests: load.requests, failed: load.failed, transitions: transitionsOf(demo.journal, beganUs) };
  if (!quiet) report(demo, result, load.failures);
  return result;
};

const untilHealth = async (demo: Demo, name: string, health: string): Promise<void> => {
  const startedAt = performance.now();
  for (;;) {
    const { pools } = await demo.state();
    if (pools.some(({ servers }) => servers.some((server) => server.name === name && server.health === health))) return;
    if (performance.now() - startedAt > NOTICE_TIMEOUT_MS) throw new Error(`${name} did not become ${health}`);
    await delay(20);
  }
};

/** The transitions of servers and pools, decided again from the journal. */
const transitionsOf = (path: string, sinceUs: number): ScenarioResult['transitions'] => {
  const reader = new JournalReader(path);
  const transitions: ScenarioResult['transitions'] = [];
  for (const { step, before, after, changed } of new Replay(reader).run()) {
    // A folder that was used before has the journal of before, too.
    if (step.wallUs < sinceUs) continue;
    if (!changed || before === null || !/^(server|pool)\//.test(step.actor)) continue;
    transitions.push({
      time: isoTime(step.wallUs),
      actor: step.actor,
      from: before,
      to: after,
      event: step.event.type,
    });
  }
  reader.close();
  return transitions;
};

const report = (demo: Demo, { requests, failed, transitions }: ScenarioResult, failures: string[]): void => {
  print(`\n${bold('Transitions')}\n`);
  print(
    table(
      ['TIME', 'ACTOR', 'FROM', 'TO', 'BECAUSE OF'],
      transitions.map(({ time, actor, from, to, event }) => [
        formatClock(Date.parse(time) * 1000),
        actor,
        from ?? '',
        to,
        event,
      ]),
    ),
  );
  print(`\n${bold('Why web2 left, from the journal')}\n`);
  const reader = new JournalReader(demo.journal);
  const left = transitions.find(({ actor, to }) => actor === 'server/web/web2' && to.startsWith('down'));
  print(formatExplanation(explain(reader, 'server/web/web2', left ? Date.parse(left.time) * 1000 + 999 : undefined)));
  reader.close();
  print(
    `\n${bold(`${requests} requests, ${failed === 0 ? green('none failed') : red(`${failed} failed: ${failures.join(', ')}`)}`)}`,
  );
};
