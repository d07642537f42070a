/** What the journal makes of commands to the cluster: who said it, the same again, and what another configuration does. */
import { expect, test } from 'vitest';
import type { CommandDeskContext } from '../machines/commandDesk.ts';
import { COMMANDS_ACTOR } from '../machines/commandDesk.ts';
import { lastStates } from '../src/lastStates.ts';
import { formatClock } from '../src/time.ts';
import { explain } from '../src/worlds/explain.ts';
import { verify } from '../src/worlds/replay.ts';
import { whatIf } from '../src/worlds/whatif.ts';
import type { WhatIfTransition } from '../src/worlds/whatif.ts';
import { makeFolder, NIGHT_US, SimulatedNode, webConfig, withReader } from './journalHelpers.ts';

const WEB2 = 'server/web/web2';
const GIVEN_US = NIGHT_US - 60_000_000;

type Event = { type: string } & Record<string, unknown>;

/** A node that is told by the cluster to drain web2, and by its own operator to take it apart. */
const record = async (): Promise<string> => {
  const path = `${makeFolder()}/lb1.db`;
  const node = await SimulatedNode.start({ path });
  const send = (event: Event) => node.system.send(COMMANDS_ACTOR, event);
  node.system.start(COMMANDS_ACTOR, 'commandDesk', { node: 'lb1', startedUs: NIGHT_US });
  send({ type: 'stream.found', stream: 'one', from: 1 });
  send({ type: 'stream.caughtUp' });
  node.runUntil(10_000);
  const command = { type: 'server.drain', pool: 'web', server: 'web2' };
  const said = {
    id: 'a',
    by: 'lb2',
    atUs: GIVEN_US,
    node: null,
    command,
    actors: [WEB2],
    running: true,
    refusal: null,
  };
  send({ type: 'command.received', stream: 'one', sequence: 1, ...said });
  node.runUntil(12_000);
  const local = { type: 'server.maintenance', pool: 'web', server: 'web2' };
  send({ type: 'command.local', id: 'b', atUs: node.clock.wallUs(), command: local, actors: [WEB2] });
  node.runUntil(15_000);
  await node.journal.close();
  return path;
};

test('explain says that an operator did it, by which command, and where and when it was given', async () => {
  const path = await record();
  const at = (ms: number) => withReader(path, (reader) => explain(reader, WEB2, NIGHT_US + ms * 1000));
  const texts = ({ sentences }: { sentences: { text: string }[] }) => sentences.map(({ text }) => text).join('\n');
  expect(texts(at(11_000))).toContain(
    `By a command to the cluster, given on lb2 at ${formatClock(GIVEN_US)}, an operator set it to drain`,
  );
  expect(texts(at(13_000))).toContain('By a command to this node alone, an operator set it to maintenance');
});

test('the journal decides the same again, and gives back what the desk knew', async () => {
  const path = await record();
  expect(withReader(path, (reader) => verify(reader).divergence)).toBeNull();
  const { desk, servers } = lastStates(path);
  expect(desk).toMatchObject({ stream: 'one', sequence: 1, cluster: { [WEB2]: { drain: { id: 'a', by: 'lb2' } } } });
  expect((desk as CommandDeskContext).here[WEB2]?.maintenance).toMatchObject({ id: 'b', by: 'lb1' });
  expect(servers.get(WEB2)?.admin).toBe('maintenance');
});

test('under another configuration the operators say the same', async () => {
  const path = await record();
  const { real, would } = withReader(path, (reader) => whatIf(reader, webConfig({ fall: 5 })));
  const admins = (transitions: WhatIfTransition[]) =>
    transitions.filter(({ actor }) => actor === WEB2).map(({ state }) => state.split(',')[1]);
  expect(admins(would)).toContain('drain');
  expect(admins(would).at(-1)).toBe('maintenance');
  expect(admins(would)).toEqual(admins(real));
  expect(would.filter(({ actor }) => actor === COMMANDS_ACTOR)).toEqual([]);
});
