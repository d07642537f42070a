/**
 * `npm run bench:journal`: records a second that a node's journal takes to disk, and that `verify` decides again. Its
 * references, in the same run: the same rows inserted into the same tables by SQLite alone, without a thread, packing or
 * checksums; and the machines' own transitions, without reading or comparing.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { Decider } from '../../actors/decide.ts';
import type { Entry } from '../../actors/recorder.ts';
import { machines } from '../../machines/index.ts';
import { SystemClock } from '../../src/clock.ts';
import { Journal } from '../../src/journal/journal.ts';
import { JournalReader } from '../../src/journal/reader.ts';
import { verify } from '../../src/worlds/replay.ts';
import { checkFor, EVENTS_PER_TURN, inTurns, SERVERS, settings, systemOn } from './backendServers.ts';
import type { Kind } from './backendServers.ts';
import { quick, report, row, say } from './report.ts';

const EVENTS = quick ? 50_000 : 200_000;
const RUNS = quick ? 3 : 7;

const folder = mkdtempSync(join(tmpdir(), 'understudy-bench-'));

const perSecond = (count: number, startedAt: number): number => (count / (performance.now() - startedAt)) * 1000;

const open = (path: string, clock: SystemClock): Promise<Journal> =>
  Journal.open({ path, retention: { keepMs: 1e12, maxBytes: 1e15 }, clock, maxUnwrittenRows: 10 * EVENTS });

/** What a node would have recorded, made beforehand: the journal alone is measured. */
const entriesOf = (kind: Kind): Entry[] => {
  const entries: Entry[] = [];
  const record = (entry: Entry) => {
    entries.push({ ...entry, cause: null });
    return { seq: entries.length };
  };
  const system = systemOn(new SystemClock(), { append: record });
  for (let index = 0; index < EVENTS; index++) system.send(`server/web/s${index % SERVERS}`, checkFor(index, kind));
  return entries;
};

/** Entries a second until all are on disk. */
const append = async (path: string, entries: Entry[]): Promise<number> => {
  const journal = await open(path, new SystemClock());
  journal.note('node.started', {});
  const startedAt = performance.now();
  await inTurns(entries.length, (index) => journal.append(entries[index]!));
  journal.closeRuns();
  await journal.written();
  const rate = perSecond(entries.length, startedAt);
  await journal.close();
  return rate;
};

/** Events a second that the control thread decides and hands over, as a node does. */
const decideAndAppend = async (path: string, kind: Kind): Promise<number> => {
  const clock = new SystemClock();
  const journal = await open(path, clock);
  journal.note('node.started', {});
  const system = systemOn(clock, journal);
  const startedAt = performance.now();
  await inTurns(EVENTS, (index) => system.send(`server/web/s${index % SERVERS}`, checkFor(index, kind)));
  const rate = perSecond(EVENTS, startedAt);
  await journal.close();
  return rate;
};

/** The rows of a journal, inserted again by SQLite alone. */
const insertBare = (from: string, to: string): number => {
  const reader = new JournalReader(from);
  const rows = [...reader.rows()];
  reader.close();
  const db = new DatabaseSync(to);
  db.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL');
  db.exec(
    'CREATE TABLE records (seq INTEGER PRIMARY KEY, epoch, time, mono, actor, origin, type, state, cause, count, v, body, crc)',
  );
  db.exec('CREATE INDEX records_by_actor ON records (actor, seq)');
  const insert = db.prepare('INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)');
  const startedAt = performance.now();
  for (let index = 0; index < rows.length; index += EVENTS_PER_TURN) {
    db.exec('BEGIN');
    for (const { seq, epoch, time, mono, actor, origin, type, state, cause, count, v, body } of rows.slice(
      index,
      index + EVENTS_PER_TURN,
    )) {
      insert.run(seq, epoch, time, mono, actor, origin, type, state, cause, count, v, body);
    }
    db.exec('COMMIT');
  }
  const rate = perSecond(rows.length, startedAt);
  db.close();
  return rate;
};

const replay = (path: string): number => {
  const reader = new JournalReader(path);
  const startedAt = performance.now();
  const result = verify(reader);
  const rate = perSecond(result.events, startedAt);
  reader.close();
  if (result.divergence) throw new Error(`the journal diverged at ${result.divergence.seq}`);
  return rate;
};

const transitionsBare = (kind: Kind): number => {
  const decider = new Decider(machines.backendServer);
  let { snapshot } = decider.start({ pool: 'web', name: 's0', settings });
  const startedAt = performance.now();
  for (let index = 0; index < EVENTS; index++) ({ snapshot } = decider.next(snapshot, checkFor(index * SERVERS, kind)));
  return perSecond(EVENTS, startedAt);
};

const measured = {
  bare: [] as number[],
  flapping: { append: [] as number[], decide: [] as number[], replay: [] as number[], transitions: [] as number[] },
  steady: { append: [] as number[], decide: [] as number[], replay: [] as number[], transitions: [] as number[] },
};
try {
  const entries = { flapping: entriesOf('flapping'), steady: entriesOf('steady') };
  for (let run = 0; run < RUNS; run++) {
    for (const kind of ['flapping', 'steady'] as const) {
      const path = join(folder, `${kind}${run}.db`);
      measured[kind].append.push(await append(path, entries[kind]));
      measured[kind].replay.push(replay(path));
      measured[kind].transitions.push(transitionsBare(kind));
      measured[kind].decide.push(await decideAndAppend(join(folder, `${kind}${run}-decided.db`), kind));
      if (kind === 'flapping') measured.bare.push(insertBare(path, join(folder, `bare${run}.db`)));
    }
    say(`run ${run + 1} of ${RUNS}`);
  }
  const { flapping, steady, bare } = measured;
  report(
    [
      row('append to disk', 'journal, every event a row', 'records/s', flapping.append, bare),
      row('append to disk', 'journal, steady events in runs', 'records/s', steady.append, bare),
      row(
        'decide and hand over',
        'control thread, flapping servers',
        'records/s',
        flapping.decide,
        flapping.transitions,
      ),
      row('decide and hand over', 'control thread, steady servers', 'records/s', steady.decide, steady.transitions),
      row('replay', 'verify, flapping servers', 'records/s', flapping.replay, flapping.transitions),
      row('replay', 'verify, steady servers', 'records/s', steady.replay, steady.transitions),
    ],
    'SQLite inserting the same rows; the machines’ transitions alone',
  );
} finally {
  rmSync(folder, { recursive: true });
}
