/** `understudy log --cluster`: records of all nodes as one list. */
import type { ClusterLineage } from '../bus/clusterLineage.ts';
import type { ClusterLog } from '../bus/clusterLog.ts';
import { mergeRows } from '../bus/clusterMerge.ts';
import type { Merged } from '../bus/clusterMerge.ts';
import { problemText } from '../bus/logStanding.ts';
import type { LogProblem } from '../bus/logStanding.ts';
import { decodedSteps, JournalReader } from '../journal/reader.ts';
import type { RowFilter } from '../journal/reader.ts';
import type { Row } from '../journal/record.ts';
import { viewOf } from '../journal/view.ts';
import { nodeOf, readCluster } from './clusterSource.ts';
import type { ClusterOptions } from './clusterSource.ts';
import { dim, print, red, warn } from './output.ts';
import { formatRecord } from './recordText.ts';

type Options = ClusterOptions & { follow?: boolean; limit?: number; json?: boolean };

/** One journal of one node while it is listed. */
type Listed = {
  lineage: ClusterLineage;
  name: string;
  reader: JournalReader;
  nextSeq: number;
  /** What is wrong, as it was told. */
  told: Set<string>;
};

export const logCluster = async (options: Options, filter: RowFilter): Promise<void> => {
  const log = await readCluster(options, filter.since);
  const listing = new Listing(log, options, filter);
  listing.begin();
  if (options.follow === true) {
    const node = nodeOf(options.node);
    await log.follow(
      node === undefined ? {} : { node },
      () => listing.goOn(),
      (why) => warn(`${why}; the log goes on when another one answers`),
    );
  }
  listing.close();
  await log.close();
};

class Listing {
  readonly #log: ClusterLog;
  readonly #options: Options;
  readonly #filter: RowFilter;
  readonly #listed = new Map<ClusterLineage, Listed>();

  constructor(log: ClusterLog, options: Options, filter: RowFilter) {
    this.#log = log;
    this.#options = options;
    this.#filter = filter;
  }

  begin(): void {
    this.#open();
    this.#showHeads();
    const { limit } = this.#options;
    if (limit === undefined) return this.#show(this.#merged());
    const newest = this.#merged({ limit, newestFirst: true });
    this.#show([...newest].slice(-limit));
  }

  goOn(): void {
    this.#open();
    this.#show(this.#merged());
  }

  close(): void {
    for (const { reader } of this.#listed.values()) reader.close();
  }

  /** Journals that weren't there before are listed from now on. */
  #open(): void {
    for (const lineage of this.#log.lineages) {
      if (this.#listed.has(lineage)) continue;
      const reader = new JournalReader(lineage.path);
      this.#listed.set(lineage, { lineage, name: '', reader, nextSeq: 0, told: new Set() });
    }
    for (const one of this.#listed.values()) one.name = this.#nameOf(one.lineage);
  }

  /** A node that has begun anew has two journals: then the beginning of its identity tells which. */
  #nameOf({ node, journal }: ClusterLineage): string {
    const isOnly = this.#log.lineages.filter((other) => other.node === node).length === 1;
    return isOnly ? node : `${node}@${journal.slice(0, 4)}`;
  }

  #merged(more: RowFilter = {}): Iterable<Merged<Listed>> {
    return mergeRows(
      [...this.#listed.values()].map((one) => ({
        of: one,
        name: one.name,
        rows: this.#rowsOf(one, more),
        clockUs: one.lineage.clock?.us ?? 0,
      })),
    );
  }

  #rowsOf({ reader, nextSeq }: Listed, more: RowFilter): Iterator<Row> {
    const rows = reader.rows({ ...this.#filter, ...more, fromSeq: nextSeq });
    return more.newestFirst === true ? [...rows].toReversed()[Symbol.iterator]() : rows;
  }

  #show(merged: Iterable<Merged<Listed>>): void {
    const width = Math.max(0, ...[...this.#listed.values()].map(({ name }) => name.length));
    const untold = new Map([...this.#listed.values()].map((one) => [one, untoldProblems(one)]));
    for (const { of: one, row } of merged) {
      this.#showProblems(one, untold.get(one)!, row.seq);
      one.nextSeq = row.seq + 1;
      const view = viewOf(row, decodedSteps(row));
      const { node, journal } = one.lineage;
      if (this.#options.json === true) print(JSON.stringify({ node, journal, ...view }));
      else print(formatRecord(view, row, `${one.name.padEnd(width)}  `));
    }
    for (const [one, problems] of untold) this.#showProblems(one, problems, Infinity);
  }

  /** What is wrong with the log, at the place where it is; takes what it shows out of `problems`. */
  #showProblems({ lineage, name, told }: Listed, problems: LogProblem[], beforeSeq: number): void {
    for (let next = problems[0]; next && (next.kind === 'unreadable' || next.from <= beforeSeq); next = problems[0]) {
      problems.shift();
      told.add(problemText(next));
      if (this.#options.json === true)
        print(JSON.stringify({ node: lineage.node, journal: lineage.journal, problem: next }));
      else print(red(`${name}  ${problemText(next)}`));
    }
  }

  #showHeads(): void {
    const heads = [...this.#listed.values()];
    for (const { lineage, name } of heads) {
      const { node, journal, firstSeq, lastSeq, rows, gaps, clock } = lineage;
      const clockMs = clock === null ? null : -clock.us / 1000;
      if (this.#options.json === true) {
        print(JSON.stringify({ node, journal, lineage: { firstSeq, lastSeq, records: rows, gaps, clockMs } }));
        continue;
      }
      const range = firstSeq === null ? 'no records' : `records ${firstSeq} to ${lastSeq}`;
      const missing = gaps.map(({ from, through }) => `${from} to ${through}`).join(', ');
      print(dim(`${name}: ${range} of journal ${journal}${missing === '' ? '' : `, without ${missing}`}`));
    }
    if (this.#options.json !== true && heads.some(({ lineage }) => lineage.clock !== null))
      print(dim(clocksText(heads)));
    for (const { node, message } of this.#log.foreign) {
      if (this.#options.json === true) print(JSON.stringify({ node, foreign: { message } }));
      else print(red(`${node}: message ${message} of the stream was written by no courier`));
    }
  }
}

const clocksText = (heads: Listed[]): string => {
  const clocks = heads.flatMap(({ name, lineage: { clock } }) =>
    clock === null ? [] : [`${name} ${signed(-clock.us / 1000)} ms`],
  );
  return `Clocks, against that of the stream's leader: ${clocks.join(', ')}. It is the least difference between sending and storing of all messages, and so with the time of one on its way; the order of records between nodes reckons with it.`;
};

const signed = (ms: number): string => `${ms < 0 ? '−' : '+'}${Math.abs(ms).toFixed(1)}`;

const untoldProblems = ({ lineage, told }: Listed): LogProblem[] =>
  lineage.problems.filter((problem) => !told.has(problemText(problem)));
