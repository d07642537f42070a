/** What several copies of the stream have of a journal, put together: beside what was left out, doubled and altered. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import fc from 'fast-check';
import { expect, onTestFinished, test } from 'vitest';
import { ClusterLineage } from '../src/bus/clusterLineage.ts';
import { LOG_FORMAT, packValues } from '../src/bus/logFormat.ts';
import type { LogHead } from '../src/bus/logFormat.ts';
import { problemText, worseThan } from '../src/bus/logStanding.ts';
import { checksumOf, encodeBody, RECORD_VERSION, valuesOf } from '../src/journal/record.ts';
import type { Row } from '../src/journal/record.ts';
import { tempFolder } from './nodeHelpers.ts';

const RECORDS = 12;

const rowOf = (seq: number, payload = 'as it was'): Row => ({
  seq,
  epoch: 1,
  time: seq,
  mono: seq,
  actor: 'server/web/web1',
  origin: 'input',
  type: 'check.passed',
  state: 'up,ready,warm',
  cause: null,
  count: 1,
  v: RECORD_VERSION,
  body: encodeBody({ event: { payload }, effects: [] }),
});

/** What a copy has of a record: as it is, altered on the way, or another one in its place. */
type Had = 'sound' | 'damaged' | 'other';

let copies = 0;

/** A copy in which these records come one after the other. */
const copyWith = (had: readonly (readonly [seq: number, how: Had])[]): ClusterLineage => {
  const server = `nats${++copies}`;
  const folder = join(tempFolder(), server);
  mkdirSync(folder);
  const lineage = new ClusterLineage(folder, 'lb1', 'a1b2', server);
  onTestFinished(() => lineage.close());
  for (const [index, [seq, how]] of had.entries()) {
    const row = rowOf(seq, how === 'other' ? 'otherwise' : 'as it was');
    const crc = checksumOf(row);
    const sent = how === 'damaged' ? { ...row, state: 'down,ready,warm' } : row;
    const data = packValues([[...valuesOf(sent), crc]]);
    const head: LogHead = {
      format: LOG_FORMAT,
      kind: 'rows',
      journal: 'a1b2',
      epoch: 1,
      first: seq,
      last: seq,
      check: crc,
      checkpoint: null,
      piece: { from: 0, total: data.length },
      after: null,
    };
    lineage.take(head, { streamSeq: index + 1, streamUs: seq, sentUs: seq, data });
  }
  return lineage;
};

const sound = (...seqs: number[]): [number, Had][] => seqs.map((seq) => [seq, 'sound']);
const told = ({ problems }: ClusterLineage): string[] => problems.map(problemText);

const statesIn = (lineage: ClusterLineage): string[] => {
  lineage.commit();
  const db = new DatabaseSync(lineage.path, { readOnly: true });
  const rows = db.prepare('SELECT seq, state FROM records ORDER BY seq').all();
  db.close();
  return rows.map(({ seq, state }) => `${String(seq)} ${String(state).split(',')[0]}`);
};

test('records in order are whole; what is missing, twice or altered is named', () => {
  expect(told(copyWith(sound(1, 2, 3)))).toEqual([]);
  const copy = copyWith([...sound(3, 4, 4), [6, 'damaged'], ...sound(7, 5, 5), [7, 'other']]);
  expect(told(copy)).toEqual([
    'records 4 to 5: more than once in the stream',
    'record 6: altered or damaged (checksum)',
    'record 7: more than once in the stream, and not the same',
  ]);
  expect(told(copyWith(sound(3, 6, 7, 10)))).toEqual([
    'records 4 to 5: missing from the stream',
    'records 8 to 9: missing from the stream',
  ]);
});

test('copies make up for each other: what one lacks, has twice or altered is taken from another', () => {
  const one = copyWith([...sound(1, 2), [4, 'damaged'], ...sound(5, 5, 6)]);
  const other = copyWith(sound(1, 2, 2, 3, 4, 5, 7));
  one.takeIn(other);
  expect(told(one)).toEqual([]);
  expect(one.rows).toBe(7);
  expect(statesIn(one)).toEqual(['1 up', '2 up', '3 up', '4 up', '5 up', '6 up', '7 up']);
  expect(worseThan(one.own, one.standing).map(problemText)).toEqual([
    'record 3: missing from the stream',
    'record 5: more than once in the stream',
    'record 4: altered or damaged (checksum)',
  ]);
  expect(worseThan(other.own, one.standing).map(problemText)).toEqual([
    'record 6: missing from the stream',
    'record 2: more than once in the stream',
  ]);
});

test('what no copy has right stays a problem, and so does what they have differently', () => {
  const one = copyWith([...sound(1, 3, 3), [4, 'damaged'], [5, 'other'], ...sound(6)]);
  one.takeIn(copyWith([...sound(1, 3, 3), [4, 'damaged'], ...sound(5, 6)]));
  expect(told(one)).toEqual([
    'record 2: missing from the stream',
    'record 3: more than once in the stream',
    'record 4: altered or damaged (checksum)',
    'record 5: more than once in the stream, and not the same',
  ]);
  expect(one.rows).toBe(5);
});

test('of any copies together each record is there once, and only what is wrong in all of them is wrong', () => {
  const had = fc
    .tuple(fc.integer({ min: 1, max: RECORDS }), fc.constantFrom<Had>('sound', 'sound', 'damaged'))
    .map((pair): [number, Had] => pair);
  const copy = fc.array(had, { maxLength: 2 * RECORDS });
  fc.assert(
    fc.property(fc.array(copy, { minLength: 1, maxLength: 3 }), (each) => {
      const [whole, ...others] = each.map(copyWith);
      for (const other of others) whole!.takeIn(other);
      const there = [...new Set(each.flat().map(([seq]) => seq))].toSorted((a, b) => a - b);
      const countsOf = (seq: number) => each.map((list) => list.filter(([other]) => other === seq));
      const hadBy = (seq: number) => countsOf(seq).filter((found) => found.length > 0);
      const double = there.filter((seq) => hadBy(seq).every((found) => found.length > 1));
      const damaged = there.filter((seq) => hadBy(seq).every((found) => found.some(([, how]) => how === 'damaged')));
      const seqsOf = (kind: string) =>
        whole!.problems.flatMap((problem) =>
          problem.kind === kind && 'from' in problem
            ? Array.from({ length: problem.through - problem.from + 1 }, (_, index) => problem.from + index)
            : [],
        );
      expect(seqsOf('double')).toEqual(double);
      expect(seqsOf('damaged')).toEqual(damaged);
      expect(whole!.rows).toBe(there.length);
      expect(statesIn(whole!).map((text) => Number(text.split(' ')[0]))).toEqual(there);
      const undamaged = there.filter((seq) => !damaged.includes(seq)).map((seq) => `${seq} up`);
      expect(statesIn(whole!)).toEqual(expect.arrayContaining(undamaged));
    }),
    { numRuns: 60 },
  );
});
