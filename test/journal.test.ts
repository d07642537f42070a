import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { FrozenActor } from '../actors/system.ts';
import { Compactor } from '../src/journal/compactor.ts';
import type { Checkpointed, JournalTrouble } from '../src/journal/journal.ts';
import { encodeBody } from '../src/journal/record.ts';
import type { Row } from '../src/journal/record.ts';
import { JournalStore } from '../src/journal/store.ts';
import type { CheckpointPart } from '../src/journal/store.ts';
import { verify } from '../src/worlds/replay.ts';
import {
  entryOf,
  makeFolder,
  NIGHT_US,
  openJournal,
  SimulatedNode,
  sqliteShell,
  tamper,
  withReader,
} from './journalHelpers.ts';
import { has, isRoot } from './packages.ts';

const noActors = (onFrozen: () => void = () => {}): Checkpointed => ({
  size: 0,
  frozen: (): FrozenActor[] => {
    onFrozen();
    return [];
  },
  pendingTimers: () => [],
});

const codeOf = async (opening: Promise<unknown>): Promise<unknown> =>
  opening.then(
    () => null,
    (error: unknown) => (error as { code?: unknown }).code,
  );

const query = (path: string, sql: string): Record<string, unknown>[] => {
  const db = new DatabaseSync(path, { readOnly: true });
  try {
    return db.prepare(sql).all();
  } finally {
    db.close();
  }
};

const tablesOf = (path: string): unknown[] =>
  query(path, "SELECT name FROM sqlite_schema WHERE type = 'table'").map(({ name }) => name);

const layoutOf = (path: string): unknown => query(path, 'PRAGMA user_version')[0]?.['user_version'];

const changing = (index: number) =>
  entryOf({ monoUs: index, event: { type: 'check.failed', n: index, text: 'x'.repeat(200) } as { type: string } });

describe('writing', () => {
  test('what `written` has promised is on disk, for our reader', async () => {
    const path = `${makeFolder()}/lb1.db`;
    const journal = await openJournal({ path });
    journal.note('node.started', { version: 'test' });
    for (let index = 0; index < 1000; index++) journal.append(changing(index));
    expect(await journal.written()).toBe(true);
    expect(journal.status()).toMatchObject({ lastSeq: 1001, writtenSeq: 1001, unwrittenRows: 0, failure: null });
    expect(withReader(path, (reader) => [...reader.rows()].map(({ seq }) => seq))).toEqual(
      Array.from({ length: 1001 }, (_, index) => index + 1),
    );
  });

  test.skipIf(!has('sqlite3'))(
    'the sqlite3 shell reads it while it is written (needs the package sqlite3)',
    async () => {
      const path = `${makeFolder()}/lb1.db`;
      const journal = await openJournal({ path });
      journal.note('node.started', { version: 'test' });
      for (let index = 0; index < 1000; index++) journal.append(changing(index));
      expect(await journal.written()).toBe(true);

      expect(sqliteShell(path, 'SELECT count(*), max(seq) FROM records')).toBe('1001|1001');
      expect(sqliteShell(path, 'SELECT actor, type, state FROM records WHERE seq = 2')).toBe(
        'server/web/web1|check.failed|up,ready,warm',
      );
    },
  );

  test('waiting for nothing is answered at once, and steady observations are not waited for', async () => {
    const journal = await openJournal({ path: `${makeFolder()}/lb1.db` });
    expect(await journal.written()).toBe(true);
    journal.append(entryOf({ steady: true }));
    expect(await journal.written()).toBe(true);
    journal.closeRuns('server/web/web1');
    expect(await journal.written()).toBe(true);
    expect(journal.status().writtenSeq).toBe(1);
  });

  test('one turn of the loop is one commit', async () => {
    const path = `${makeFolder()}/lb1.db`;
    const journal = await openJournal({ path });
    await journal.written();
    const watching = new DatabaseSync(path, { readOnly: true });
    onTestFinished(() => watching.close());
    for (let index = 0; index < 50; index++) journal.append(changing(index));
    const written = journal.written();
    const seen = new Set<number>();
    const turn = () => new Promise<boolean>((next) => setImmediate(() => next(false)));
    do seen.add((watching.prepare('SELECT count(*) AS n FROM records').get() as { n: number }).n);
    while (!(await Promise.race([written, turn()])));
    expect([...seen].filter((count) => count !== 0 && count !== 50)).toEqual([]);
  });

  test('goes on where it ended, in the next epoch', async () => {
    const path = `${makeFolder()}/lb1.db`;
    const first = await openJournal({ path });
    first.append(changing(1));
    expect(first.epoch).toBe(1);
    await first.close();
    const second = await openJournal({ path });
    second.append(changing(2));
    await second.close();
    expect(second.epoch).toBe(2);
    expect(withReader(path, (reader) => [...reader.rows()].map(({ seq, epoch }) => [seq, epoch]))).toEqual([
      [1, 1],
      [2, 2],
    ]);
  });

  test('a checkpoint comes every 10,000 rows, once, however many come in one turn', async () => {
    const path = `${makeFolder()}/lb1.db`;
    const journal = await openJournal({ path });
    let packed = 0;
    journal.attach(
      noActors(() => packed++),
      () => {},
    );
    for (let index = 0; index < 10_400; index++) journal.append(changing(index));
    await journal.written();
    await new Promise((next) => setImmediate(next));
    await journal.written();
    expect(packed).toBe(1);
  });
});

describe('opening', () => {
  test('a second writer is refused, the first one goes on', async () => {
    const path = `${makeFolder()}/lb1.db`;
    const journal = await openJournal({ path });
    expect(await codeOf(openJournal({ path }))).toBe('JOURNAL_IN_USE');
    journal.append(changing(1));
    expect(await journal.written()).toBe(true);
  });

  test('the lock goes with its holder', async () => {
    const path = `${makeFolder()}/lb1.db`;
    await (await openJournal({ path })).close();
    expect(await codeOf(openJournal({ path }))).toBeNull();
  });

  test('a folder that isn’t there, and a folder in the file’s place', async () => {
    const folder = makeFolder();
    expect(await codeOf(openJournal({ path: `${folder}/none/lb1.db` }))).toBe('JOURNAL_UNWRITABLE');
    mkdirSync(`${folder}/lb2.db`);
    expect(await codeOf(openJournal({ path: `${folder}/lb2.db` }))).toBe('JOURNAL_UNWRITABLE');
  });

  test.skipIf(!isRoot)('a file system that is mounted read-only (needs root to mount)', async () => {
    const folder = makeFolder();
    mountSmall(folder, 'size=1m,ro');
    expect(await codeOf(openJournal({ path: `${folder}/lb1.db` }))).toBe('JOURNAL_UNWRITABLE');
  });

  test('a file that is no database is set aside, byte for byte', async () => {
    const folder = makeFolder();
    const path = `${folder}/lb1.db`;
    const text = 'these are my holiday notes\n'.repeat(500);
    writeFileSync(path, text);
    const journal = await openJournal({ path });
    expect(journal.aside?.path).toContain(`${path}.damaged-`);
    expect(readFileSync(journal.aside!.path, 'utf8')).toBe(text);
    journal.append(changing(1));
    expect(await journal.written()).toBe(true);
  });

  test.each(['records', 'checkpoints'])(
    'a journal whose table %s is damaged is set aside, nothing of it lost',
    async (table) => {
      const path = `${makeFolder()}/lb1.db`;
      const node = await SimulatedNode.start({ path });
      node.runUntil(120_000);
      await node.journal.checkpoint();
      await node.journal.close();
      const { rootpage, size } = damage(path, table);
      const before = readFileSync(path);
      expect(before.length).toBeGreaterThan(rootpage * size - 1);
      const journal = await openJournal({ path });
      expect(journal.aside?.path).toContain('.damaged-');
      // The first page holds SQLite's own header, which opening may touch.
      expect(readFileSync(journal.aside!.path).subarray(size).equals(before.subarray(size))).toBe(true);
      journal.append(changing(1));
      expect(await journal.written()).toBe(true);
    },
  );

  test('somebody else’s SQLite database is not made ours', async () => {
    const path = `${makeFolder()}/photos.db`;
    tamper(path, (db) => db.exec("CREATE TABLE photos (name TEXT); INSERT INTO photos VALUES ('cat')"));
    const aside = await openJournal({ path }).then(
      (journal) => journal.aside?.path ?? 'taken over',
      () => 'refused',
    );
    expect(aside).not.toBe('taken over');
    const where = aside === 'refused' ? path : aside;
    expect(tablesOf(where)).toEqual(['photos']);
  });

  test('a layout of the future is refused and left as it is', async () => {
    const path = `${makeFolder()}/lb1.db`;
    await (await openJournal({ path })).close();
    tamper(path, (db) => db.exec('PRAGMA user_version = 99'));
    expect(await codeOf(openJournal({ path }))).toBe('JOURNAL_TOO_NEW');
    expect(layoutOf(path)).toBe(99);
  });

  test('an end in a gap row: seqs that the gap stands for are not given out again', () => {
    const path = `${makeFolder()}/lb1.db`;
    const rows: Row[] = [];
    const compactor = new Compactor({ epoch: 1, lastSeq: 0, emit: (row) => rows.push(row) });
    compactor.append(changing(1));
    rows.push(compactor.gapRow(2, 900, 'no room', { wallUs: NIGHT_US, monoUs: 2 }));
    const { store } = JournalStore.open(path);
    onTestFinished(() => store.close());
    // Killed between this commit and that of the checkpoint.
    store.commit(rows, []);
    expect(store.last()).toEqual({ seq: 900, epoch: 1 });
  });
});

const damage = (path: string, table: string): { rootpage: number; size: number } => {
  let rootpage = 0;
  let size = 0;
  tamper(path, (db) => {
    ({ rootpage } = db.prepare('SELECT rootpage FROM sqlite_schema WHERE name = ?').get(table) as { rootpage: number });
    size = (db.prepare('PRAGMA page_size').get() as { page_size: number }).page_size;
    db.exec('PRAGMA wal_checkpoint(TRUNCATE)');
  });
  const bytes = readFileSync(path);
  bytes.fill(0xa5, (rootpage - 1) * size, rootpage * size);
  writeFileSync(path, bytes);
  return { rootpage, size };
};

describe('retention', () => {
  /** Hourly checkpoints, 100 rows of 1 KiB from each to the next. */
  const fill = (path: string, hours: number): JournalStore => {
    const { store } = JournalStore.open(path);
    onTestFinished(() => store.close());
    const rows: Row[] = [];
    const compactor = new Compactor({ epoch: 1, lastSeq: 0, emit: (row) => rows.push(row) });
    const parts: CheckpointPart[] = [];
    for (let hour = 0; hour < hours; hour++) {
      for (let index = 0; index < 100; index++) {
        const monoUs = hour * HOUR_US + index * 1000;
        compactor.append(entryOf({ monoUs, event: { type: 'x', text: 'y'.repeat(1000) } as { type: string } }));
      }
      const body = encodeBody({ actors: [], timers: [] });
      const time = NIGHT_US + hour * HOUR_US + 200_000;
      parts.push({ seq: compactor.lastSeq, part: 0, parts: 1, epoch: 1, time, mono: 0, v: 1, body, crc: 0 });
    }
    store.commit(rows, parts);
    return store;
  };
  const HOUR_US = 3_600_000_000;
  const boundsOf = (path: string) =>
    withReader(path, (reader) => ({ ...reader.bounds(), checkpoints: reader.checkpointSeqs() }));

  test('by age: up to the newest checkpoint that is old enough, which stays', () => {
    const path = `${makeFolder()}/lb1.db`;
    const store = fill(path, 10);
    const nowUs = NIGHT_US + 10 * HOUR_US;
    while (store.purge({ keepMs: 4.5 * 3_600_000, maxBytes: 10 ** 12 }, nowUs)) continue;
    expect(boundsOf(path)).toEqual({ firstSeq: 601, lastSeq: 1000, checkpoints: [600, 700, 800, 900, 1000] });
    // Again: nothing more to do.
    expect(store.purge({ keepMs: 4.5 * 3_600_000, maxBytes: 10 ** 12 }, nowUs)).toBe(false);
    expect(boundsOf(path).firstSeq).toBe(601);
  });

  test('nothing is old enough or too much: nothing goes', () => {
    const path = `${makeFolder()}/lb1.db`;
    const store = fill(path, 3);
    expect(store.purge({ keepMs: 30 * 86_400_000, maxBytes: 10 ** 12 }, NIGHT_US + 3 * HOUR_US)).toBe(false);
    expect(boundsOf(path)).toMatchObject({ firstSeq: 1, lastSeq: 300 });
  });

  test('by size: until it fits, in one purge, and the file shrinks', () => {
    const path = `${makeFolder()}/lb1.db`;
    const store = fill(path, 20);
    const maxBytes = 600_000;
    expect(store.usedBytes()).toBeGreaterThan(2_000_000);
    while (store.purge({ keepMs: 30 * 86_400_000, maxBytes }, NIGHT_US + 20 * HOUR_US)) continue;
    expect(store.usedBytes()).toBeLessThanOrEqual(maxBytes);
    const { firstSeq, checkpoints } = boundsOf(path);
    expect(checkpoints[0]).toBe(firstSeq - 1);
    tamper(path, (db) => db.exec('PRAGMA wal_checkpoint(TRUNCATE)'));
    expect(statSync(path).size).toBeLessThan(1_000_000);
  });
});

const mountSmall = (folder: string, options: string): void => {
  const { status, stderr } = spawnSync('mount', ['-t', 'tmpfs', '-o', options, 'tmpfs', folder], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`mount: ${stderr}`);
  // The lazy form: also where the test failed with the journal still open.
  onTestFinished(() => {
    spawnSync('umount', ['-l', folder]);
  });
};

const fillUp = (file: string): void => {
  for (const chunk of [65_536, 4096, 512]) {
    try {
      for (;;) writeFileSync(file, Buffer.alloc(chunk), { flag: 'a' });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
    }
  }
};

describe('a disk that is full', () => {
  test.skipIf(!isRoot)(
    'fails aloud, resumes with a gap and a checkpoint, and verifies (needs root to mount)',
    async () => {
      const folder = makeFolder();
      mountSmall(folder, 'size=2m');
      const path = `${folder}/lb1.db`;
      const node = await SimulatedNode.start({ path, maxUnwrittenRows: 200 });
      const troubles: JournalTrouble[] = [];
      let heard = () => {};
      node.journal.attach(node.system, (trouble) => {
        troubles.push(trouble);
        node.system.send('journal', trouble);
        heard();
      });
      const trouble = (type: string) =>
        new Promise<void>((done) => {
          heard = () => {
            if (troubles.some((item) => item.type === type)) done();
          };
          heard();
        });
      node.runUntil(5000);
      expect(await node.journal.written()).toBe(true);

      fillUp(`${folder}/ballast`);
      // What fits into pages that SQLite has already goes through; the rest is refused.
      const failed = trouble('journal.failed');
      let ms = 5000;
      for (let index = 0; index < 100 && !troubles.length; index++) {
        for (let round = 0; round < 20; round++) {
          node.operator('weight', 'web1', { weight: 1 + (round % 50) });
          node.runUntil(++ms);
        }
        await node.journal.written();
      }
      await failed;
      expect(await node.journal.written()).toBe(false);
      expect(node.journal.status().failure?.code).toMatch(/^SQLITE_/);
      expect(node.system.get('journal')?.state).toBe('failing');
      for (let round = 0; round < 500; round++) node.operator('weight', 'web1', { weight: 1 + (round % 50) });
      node.operator('drain', 'web2');
      const { lastSeq, writtenSeq, unwrittenRows } = node.journal.status();
      expect(unwrittenRows).toBeLessThanOrEqual(200);
      expect(lastSeq - writtenSeq).toBeGreaterThan(500);

      const resumed = trouble('journal.resumed');
      rmSync(`${folder}/ballast`);
      await resumed;
      const lost = troubles.find((item) => item.type === 'journal.resumed')!.lost;
      expect(lost).toBeGreaterThan(500);
      expect(node.system.get('journal')?.state).toBe('writing');
      node.runUntil(ms + 10_000);
      expect(await node.journal.written()).toBe(true);
      await node.journal.close();

      withReader(path, (reader) => {
        // Each row stands for its own seq, a gap for all those from its own on.
        const gap = [...reader.steps({ type: 'journal.gap' })].map(({ event }) => Number(event['through']));
        expect(gap).toHaveLength(1);
        const covered = [...reader.rows()].flatMap(({ seq, type }) =>
          type === 'journal.gap' ? Array.from({ length: lost }, (_, index) => seq + index) : [seq],
        );
        expect(covered).toEqual(Array.from({ length: node.journal.status().lastSeq }, (_, index) => index + 1));
        expect(reader.checkpoint({ atLeastSeq: gap[0]! })).not.toBeNull();
        const { divergence, gaps } = verify(reader);
        expect(divergence).toBeNull();
        expect(gaps).toEqual([expect.objectContaining({ through: gaps[0]!.from + lost - 1 })]);
        expect(gaps[0]!.resumedAt).not.toBeNull();
      });
      expect(readdirSync(folder).filter((name) => name.includes('damaged'))).toEqual([]);
    },
  );
});
