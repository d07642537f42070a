import { crc32 } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { decodeBody, encodeBody } from '../src/journal/record.ts';
import { JournalStore } from '../src/journal/store.ts';
import { UnderstudyError } from '../src/errors.ts';
import { verify } from '../src/worlds/replay.ts';
import {
  downWhile,
  forge,
  makeFolder,
  runProgram,
  SimulatedNode,
  sqliteShell,
  tamper,
  withReader,
} from './journalHelpers.ts';

/** Web1 goes down and comes back; checkpoints fall into the quiet and into the middle of it. */
const record = async (): Promise<string> => {
  const path = `${makeFolder()}/lb1.db`;
  const node = await SimulatedNode.start({ path, health: downWhile({ web1: [[6000, 14_000]] }) });
  node.runUntil(5000);
  await node.journal.checkpoint();
  node.runUntil(6100);
  await node.journal.checkpoint();
  node.operator('drain', 'web2');
  node.runUntil(30_000);
  await node.journal.checkpoint();
  node.operator('ready', 'web2');
  node.runUntil(40_000);
  await node.journal.close();
  return path;
};

const verifyFile = (path: string) => withReader(path, (reader) => verify(reader));

const seqOf = (path: string, condition: string): number =>
  Number(sqliteShell(path, `SELECT seq FROM records WHERE ${condition} ORDER BY seq LIMIT 1`));

const errorOf = (path: string): unknown => {
  try {
    return verifyFile(path);
  } catch (error) {
    return error;
  }
};

const alterCheckpoint = (path: string, seq: number, change: (body: { actors: Record<string, unknown>[] }) => unknown) =>
  tamper(path, (db) => {
    const row = db.prepare('SELECT body FROM checkpoints WHERE seq = ? AND part = 0').get(seq) as { body: Uint8Array };
    const body = decodeBody(row.body) as { actors: Record<string, unknown>[] };
    const altered = encodeBody(change(body));
    db.prepare('UPDATE checkpoints SET body = ?, crc = ? WHERE seq = ? AND part = 0').run(altered, crc32(altered), seq);
  });

describe('an untouched journal', () => {
  test('passes, its checkpoints compared', async () => {
    const path = await record();
    expect(verifyFile(path)).toMatchObject({ divergence: null, gaps: [], checkpoints: 4 });
    const { status, stdout } = runProgram(['verify', path]);
    expect(stdout).toContain('decided again the same way');
    expect(status).toBe(0);
  });

  test('passes where the very next record after a checkpoint changes an actor in it', async () => {
    const path = `${makeFolder()}/lb1.db`;
    const node = await SimulatedNode.start({ path });
    node.runUntil(5000);
    await node.journal.checkpoint();
    node.operator('drain');
    await node.journal.close();
    expect(verifyFile(path).divergence).toBeNull();
  });

  test('passes over a clean stop and another start', async () => {
    const path = await record();
    const again = await SimulatedNode.start({ path, wallUs: Date.UTC(2026, 10, 22, 4) * 1000 });
    again.runUntil(10_000);
    await again.journal.close();
    expect(verifyFile(path).divergence).toBeNull();
  });
});

describe('an altered record', () => {
  test('one byte of one event: exactly that seq is named, exit status 1', async () => {
    const path = await record();
    const seq = seqOf(path, "type = 'check.failed'");
    tamper(path, (db) => {
      const { body } = db.prepare('SELECT body FROM records WHERE seq = ?').get(seq) as { body: Uint8Array };
      const at = Buffer.from(body).indexOf('connection refused');
      body[at]! ^= 0x20;
      db.prepare('UPDATE records SET body = ? WHERE seq = ?').run(body, seq);
    });
    const error = errorOf(path);
    expect(error).toBeInstanceOf(UnderstudyError);
    expect((error as UnderstudyError).code).toBe('RECORD_UNREADABLE');
    expect((error as UnderstudyError).message).toContain(`record ${seq} `);
    const { status, stdout } = runProgram(['verify', path]);
    expect(status).toBe(1);
    expect(stdout).toContain(`record ${seq} `);
  });

  test('every byte of a body counts', async () => {
    const path = await record();
    const seq = seqOf(path, "type = 'check.failed'");
    const { body } = withReader(path, (reader) => reader.row(seq)!);
    for (let index = 0; index < body.length; index++) {
      const altered = Uint8Array.from(body);
      altered[index]! ^= 1;
      tamper(path, (db) => db.prepare('UPDATE records SET body = ? WHERE seq = ?').run(altered, seq));
      expect(String(errorOf(path))).toContain(`record ${seq} `);
    }
  });

  test.each([
    'time = time + 1',
    'mono = mono - 1',
    "actor = 'server/web/web2'",
    "state = 'down,ready,warm'",
    'cause = 1',
    'count = 2',
    "origin = 'input'",
    "type = 'check.passed'",
    'epoch = 7',
  ])('a column altered (%s): exactly that seq is named', async (assignment) => {
    const path = await record();
    const seq = seqOf(path, "type = 'check.failed'");
    tamper(path, (db) => db.exec(`UPDATE records SET ${assignment} WHERE seq = ${seq}`));
    expect(String(errorOf(path))).toContain(`record ${seq} `);
  });

  test('another event with the checksum that fits: the divergence names seq, recorded and decided', async () => {
    const path = await record();
    const seq = seqOf(path, "type = 'check.failed' AND state LIKE 'goingDown%'");
    forge(path, seq, () => ({ type: 'check.passed' }));
    const { divergence } = verifyFile(path);
    expect(divergence).toMatchObject({ seq, recorded: 'goingDown,ready,warm', decided: 'up,ready,warm' });
    const { status, stdout } = runProgram(['verify', path]);
    expect(status).toBe(1);
    expect(stdout).toContain(`record ${seq}`);
    expect(stdout).toContain('recorded: "goingDown,ready,warm"');
    expect(stdout).toContain('decided:  "up,ready,warm"');
    const printed = JSON.parse(runProgram(['verify', path, '--json']).stdout) as {
      ok: boolean;
      divergence: { seq: number };
    };
    expect(printed).toMatchObject({ ok: false, divergence: { seq } });
  });

  test('another state with the checksum that fits', async () => {
    const path = await record();
    const seq = seqOf(path, "type = 'check.failed' AND state LIKE 'goingDown%'");
    forge(path, seq, () => ({ state: 'up,ready,warm' }));
    expect(verifyFile(path).divergence).toMatchObject({
      seq,
      recorded: 'up,ready,warm',
      decided: 'goingDown,ready,warm',
    });
  });

  test('another state of a run with the checksum that fits', async () => {
    const path = await record();
    const seq = seqOf(path, "actor = 'server/web/web1' AND count > 1");
    forge(path, seq, () => ({ state: 'down,ready,warm' }));
    expect(verifyFile(path).divergence).toMatchObject({ seq });
  });

  test('other effects with the checksum that fits', async () => {
    const path = await record();
    const seq = seqOf(path, "type = 'check.failed' AND state LIKE 'down%'");
    forge(path, seq, ({ body }) => ({ body: encodeBody({ ...(decodeBody(body) as object), effects: [] }) }));
    expect(verifyFile(path).divergence).toMatchObject({ seq, what: 'other effects', recorded: [] });
  });

  test.each([
    ['a run that changed nothing', "actor = 'server/web/web2' AND count > 1"],
    ['an operator’s command', "type = 'operator.ready'"],
  ])('a record that was taken out is missed: %s', async (_name, condition) => {
    const path = await record();
    const seq = seqOf(path, condition);
    tamper(path, (db) => db.exec(`DELETE FROM records WHERE seq = ${seq}`));
    const outcome = errorOf(path);
    const told =
      outcome instanceof Error ? outcome.message : JSON.stringify((outcome as { divergence: unknown }).divergence);
    expect(told).toMatch(new RegExp(`\\b(${seq}|${seq + 1})\\b`));
  });
});

describe('an altered checkpoint', () => {
  const secondOf = (path: string) => withReader(path, (reader) => reader.checkpointSeqs()[2]!);

  test('with another snapshot and the checksum that fits is named', async () => {
    const path = await record();
    const seq = secondOf(path);
    alterCheckpoint(path, seq, (body) => ({
      ...body,
      actors: body.actors.map((actor) =>
        actor['id'] === 'server/web/web2'
          ? { ...actor, value: { ...(actor['value'] as object), admin: 'maintenance' } }
          : actor,
      ),
    }));
    expect(verifyFile(path).divergence).toMatchObject({ seq, actor: 'server/web/web2', event: 'checkpoint' });
  });

  test('without one of its actors is named: what starts from it would forget a drain', async () => {
    const path = await record();
    const seq = secondOf(path);
    alterCheckpoint(path, seq, (body) => ({
      ...body,
      actors: body.actors.filter((actor) => actor['id'] !== 'server/web/web2'),
    }));
    expect(verifyFile(path).divergence).toMatchObject({ seq, actor: 'server/web/web2' });
  });

  test('with an actor too many is named', async () => {
    const path = await record();
    const seq = secondOf(path);
    alterCheckpoint(path, seq, (body) => ({
      ...body,
      actors: [...body.actors, { ...body.actors.find(({ id }) => id === 'server/web/web2'), id: 'server/web/web9' }],
    }));
    expect(verifyFile(path).divergence).toMatchObject({ seq, actor: 'server/web/web9' });
  });
});

test('a journal that retention has cut verifies from its checkpoint', async () => {
  const path = await record();
  const seq = withReader(path, (reader) => reader.checkpointSeqs()[1]!);
  const { store } = JournalStore.open(path);
  // Old enough is what stands before the third checkpoint, so the second one is the newest that may go.
  const third = withReader(path, (reader) => reader.checkpoint({ atLeastSeq: seq + 1 })!);
  while (store.purge({ keepMs: 0, maxBytes: 10 ** 12 }, third.time)) continue;
  store.close();
  expect(withReader(path, (reader) => reader.bounds().firstSeq)).toBe(seq + 1);
  const { divergence, events } = verifyFile(path);
  expect(divergence).toBeNull();
  expect(events).toBeGreaterThan(20);
});
