import { crc32 } from 'node:zlib';
import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import type { JournalReader } from '../src/journal/reader.ts';
import { encodeBody } from '../src/journal/record.ts';
import { lastStates } from '../src/lastStates.ts';
import { Replay } from '../src/worlds/replay.ts';
import { downWhile, makeFolder, runProgram, SimulatedNode, tamper, withReader } from './journalHelpers.ts';

/** Half a minute with a flap, an operator, a reload's record in the middle of open runs, and two checkpoints. */
const record = async (): Promise<{ path: string; node: SimulatedNode }> => {
  const path = `${makeFolder()}/lb1.db`;
  const node = await SimulatedNode.start({ path, lateUs: 400, health: downWhile({ web1: [[6000, 11_000]] }) });
  node.runUntil(9000);
  await node.journal.checkpoint();
  node.operator('drain', 'web2');
  node.runUntil(15_000);
  node.journal.note('node.configured', { config: {} });
  node.runUntil(21_000);
  await node.journal.checkpoint();
  node.operator('maintenance', 'web2');
  node.runUntil(31_000);
  await node.journal.close();
  return { path, node };
};

const statesAt = (reader: JournalReader, untilUs: number, seek: boolean): Record<string, string> => {
  const replay = new Replay(reader);
  for (const { divergence } of replay.run({ untilUs, seek })) expect(divergence).toBeNull();
  return Object.fromEntries([...replay.actors.values()].map(({ id, state }) => [id, state]));
};

test.each([false, true])('the state at any time is what the live system had then (seeking: %s)', async (seek) => {
  const { path, node } = await record();
  const times = [...new Set(node.live.map(({ wallUs }) => wallUs))];
  const firstUs = times[0]!;
  withReader(path, (reader) => {
    // Every moment at which something happened, and the one just before it.
    for (const time of times.flatMap((us) => [us - 1, us])) {
      if (time < firstUs) continue;
      expect(statesAt(reader, time, seek), `${(time - firstUs) / 1000} ms`).toEqual(
        Object.fromEntries(node.stateAt(time)),
      );
    }
    fc.assert(
      fc.property(fc.integer({ min: firstUs, max: times.at(-1)! + 1_000_000 }), (time) => {
        expect(statesAt(reader, time, seek)).toEqual(Object.fromEntries(node.stateAt(time)));
      }),
      { numRuns: 200, seed: 7 },
    );
  });
});

test('servers, pool and listener have at any time the state that they had live, whatever else was recorded', async () => {
  const { path, node } = await record();
  const decided = (states: Record<string, string>) =>
    Object.fromEntries(Object.entries(states).filter(([id]) => !id.startsWith('checker/')));
  withReader(path, (reader) => {
    for (const { wallUs } of node.live) {
      expect(decided(statesAt(reader, wallUs, false))).toEqual(decided(Object.fromEntries(node.stateAt(wallUs))));
    }
  });
});

test('`replay --until` prints that state', async () => {
  const { path, node } = await record();
  const down = node.live.find(({ actor, state }) => actor === 'server/web/web1' && state.startsWith('down'))!;
  const at = new Date(Math.ceil(down.wallUs / 1000)).toISOString();
  const { status, stdout } = runProgram(['replay', path, '--until', at, '--json']);
  expect(status).toBe(0);
  const printed = JSON.parse(stdout) as { actors: { id: string; state: string }[]; divergence: unknown };
  expect(printed.divergence).toBeNull();
  expect(printed.actors.find(({ id }) => id === 'server/web/web1')?.state).toBe(down.state);
});

test.each([
  [
    'its checksum differs',
    (db: Parameters<Parameters<typeof tamper>[1]>[0]) => db.exec('UPDATE checkpoints SET crc = 1'),
  ],
  [
    'a part is missing',
    (db: Parameters<Parameters<typeof tamper>[1]>[0]) => db.exec('UPDATE checkpoints SET parts = 2'),
  ],
  [
    'its body is something else',
    (db: Parameters<Parameters<typeof tamper>[1]>[0]) => {
      const body = encodeBody('nothing of use');
      db.prepare('UPDATE checkpoints SET body = ?, crc = ?').run(body, crc32(body));
    },
  ],
  [
    'its body can’t be decoded',
    (db: Parameters<Parameters<typeof tamper>[1]>[0]) => {
      const body = Uint8Array.of(0xc1, 0xff, 0xdf);
      db.prepare('UPDATE checkpoints SET body = ?, crc = ?').run(body, crc32(body));
    },
  ],
])('an unreadable checkpoint only means a longer replay: %s', async (_name, change) => {
  const { path, node } = await record();
  tamper(path, (db) => {
    change(db);
  });
  withReader(path, (reader) => {
    expect(statesAt(reader, Number.MAX_SAFE_INTEGER, true)).toEqual(
      Object.fromEntries(node.stateAt(Number.MAX_SAFE_INTEGER)),
    );
  });
  expect(lastStates(path).servers.get('server/web/web2')).toMatchObject({ admin: 'maintenance' });
});

test('what operators wanted and how servers were is known after a restart', async () => {
  const path = `${makeFolder()}/lb1.db`;
  const node = await SimulatedNode.start({ path, health: downWhile({ web2: [[3000, 99_000]] }) });
  node.runUntil(1000);
  node.operator('drain');
  node.operator('weight', 'web1', { weight: 7 });
  node.runUntil(20_000);
  await node.journal.close();
  const states = lastStates(path).servers;
  expect(states.get('server/web/web1')).toEqual({
    health: 'up',
    admin: 'drain',
    weight: { operator: 7, configured: 1 },
    disabled: false,
  });
  expect(states.get('server/web/web2')).toEqual({ health: 'down', admin: 'ready', weight: null, disabled: false });
});
