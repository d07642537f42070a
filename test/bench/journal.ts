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
import { seededRandom } from '../../actors/random.ts';
import { ActorSystem } from '../../actors/system.ts';
import { machines } from '../../machines/index.ts';
import { SystemClock } from '../../src/clock.ts';
import { Journal } from '../../src/journal/journal.ts';
import { JournalReader } from '../../src/journal/reader.ts';
import { verify } from '../../src/worlds/replay.ts';
import { quick, report, row, say } from './report.ts';

const EVENTS = quick ? 50_000 : 200_000;
const RUNS = quick ? 3 : 7;
/** Events between two turns of the loop, as a busy node has them. */
const EVENTS_PER_TURN = 500;
const SERVERS = 100;

const folder = mkdtempSync(join(tmpdir(), 'understudy-bench-'));

const settings = {
  rise: 2,
  fall: 3,
  checked: true,
  initially: 'unchecked',
  weight: 1,
  backup: false,
  slowStartMs: 0,
  shutdownSessions: false,
} as const;

/** Flapping servers: every check changes a state, none is compacted. The worst that a journal can be given. */
const checkFor = (index: number): { type: string } => {
  const passes = Math.floor(index / SERVERS) % 5 < 2;
  return {
    type: passes ? 'check.passed' : 'check.failed',
    code: passes ? 'L4OK' : 'L4CON',
    message: '',
    durationMs: 0.3,
  } as {
    type: string;
  };
};

const perSecond = (count: number, startedAt: number): number => (count / (performance.now() - startedAt)) * 1000;

const append = async (path: string): Promise<{ appended: number; control: number; rows: number }> => {
  const clock = new SystemClock();
  const journal = await Journal.open({
    path,
    retention: { keepMs: 1e12, maxBytes: 1e15 },
    clock,
    maxUnwrittenRows: 10 * EVENTS,
  });
  const system = new ActorSystem({
    clock,
    random: seededRandom(1),
    recorder: journal,
    machines,
    hands: {},
    onFault: ({ error }) => {
      throw error;
    },
  });
  journal.note('node.started', {});
  for (let index = 0; index < SERVERS; index++) {
    system.start(`server/web/s${index}`, 'backendServer', { pool: 'web', name: `s${index}`, settings });
  }
  await journal.written();
  const before = journal.status().lastSeq;
  const startedAt = performance.now();
  for (let index = 0; index < EVENTS; index++) {
    system.send(`server/web/s${index % SERVERS}`, checkFor(index));
    if (index % EVENTS_PER_TURN === 0) await new Promise((next) => setImmediate(next));
  }
  journal.closeRuns();
  const rows = journal.status().lastSeq - before;
  const control = perSecond(rows, startedAt);
  await journal.written();
  const appended = perSecond(rows, startedAt);
  await journal.close();
  return { appended, control, rows };
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

const transitionsBare = (): number => {
  const decider = new Decider(machines.backendServer);
  let { snapshot } = decider.start({ pool: 'web', name: 's0', settings });
  const startedAt = performance.now();
  for (let index = 0; index < EVENTS; index++) ({ snapshot } = decider.next(snapshot, checkFor(index * SERVERS)));
  return perSecond(EVENTS, startedAt);
};

const samples = {
  appended: [] as number[],
  control: [] as number[],
  bare: [] as number[],
  replayed: [] as number[],
  transitions: [] as number[],
};
try {
  for (let run = 0; run < RUNS; run++) {
    const path = join(folder, `run${run}.db`);
    const { appended, control, rows } = await append(path);
    samples.appended.push(appended);
    samples.control.push(control);
    samples.bare.push(insertBare(path, join(folder, `bare${run}.db`)));
    samples.replayed.push(replay(path));
    samples.transitions.push(transitionsBare());
    say(`run ${run + 1} of ${RUNS}: ${rows} rows`);
  }
  report(
    [
      row('append, on disk', 'journal', 'records/s', samples.appended, samples.bare),
      row(
        'append, as the control thread sees it',
        'journal, with the decisions',
        'records/s',
        samples.control,
        samples.transitions,
      ),
      row('replay', 'verify', 'records/s', samples.replayed, samples.transitions),
    ],
    'SQLite inserting the same rows; the machines’ transitions alone',
  );
} finally {
  rmSync(folder, { recursive: true });
}
