/**
 * A journal of each release is kept, and this code must decide it as that release did. A change that would break one is
 * a change of the log schema and needs an upcaster. `understudy demo --scenario --data DIR` records one.
 */
import { copyFileSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterAll, expect, test } from 'vitest';
import { JournalReader } from '../src/journal/reader.ts';
import { checksumOf, decodeBody, encodeBody } from '../src/journal/record.ts';
import type { Row, SingleBody } from '../src/journal/record.ts';
import { verify } from '../src/worlds/replay.ts';

const recorded = join(import.meta.dirname, 'journals');
const folder = mkdtempSync(join(tmpdir(), 'understudy-test-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** A copy, as reading a database writes beside it. */
const copyOf = (name: string, as: string): string => {
  const path = join(folder, as);
  copyFileSync(join(recorded, name), path);
  return path;
};

test.each(readdirSync(recorded))('the journal of release %s is decided again as it was', (name) => {
  const reader = new JournalReader(copyOf(name, name));
  const result = verify(reader);
  reader.close();
  expect(result.divergence).toBeNull();
  expect(result.events).toBeGreaterThan(100);
});

test.each(readdirSync(recorded))('the journal of release %s fails when a check in it is turned round', (name) => {
  const path = copyOf(name, `altered-${name}`);
  const db = new DatabaseSync(path);
  const row = db
    .prepare(
      "SELECT * FROM records WHERE type = 'check.failed' AND count = 1 AND state LIKE 'goingDown%' ORDER BY seq LIMIT 1",
    )
    .get() as unknown as Row;
  const body = decodeBody(row.body) as SingleBody;
  const altered = { ...row, type: 'check.passed', body: encodeBody(body) };
  db.prepare('UPDATE records SET type = ?, body = ?, crc = ? WHERE seq = ?').run(
    altered.type,
    altered.body,
    checksumOf(altered),
    row.seq,
  );
  db.close();
  const reader = new JournalReader(path);
  const { divergence } = verify(reader);
  reader.close();
  expect(divergence).toMatchObject({ seq: row.seq, what: 'another state' });
});
