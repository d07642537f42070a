/**
 * What a copy of the stream has of one journal: which records, and which of them otherwise than once and whole. Pure, so
 * that what several copies say can be put together.
 */
import { Ranges } from '../ranges.ts';
import type { Range } from '../ranges.ts';

/** What can be wrong with a record that is there. */
const FLAWS = ['double', 'damaged', 'differing', 'foreign'] as const;
export type Flaw = (typeof FLAWS)[number];

/** A message of the lineage that can't be read. */
export type Unreadable = { kind: 'unreadable'; message: number; why: string };

/** Of records: that they are not there, or how they are. */
export type RecordsProblem = { kind: 'hole' | Flaw } & Range;
export type LogProblem = RecordsProblem | Unreadable;

export type Standing = {
  /** Seqs of records, and of what was never written and is said to be a gap. */
  covered: Ranges;
  flaws: Readonly<Record<Flaw, Ranges>>;
  unreadable: Unreadable[];
};

const flawsBy = (rangesOf: (flaw: Flaw) => Ranges): Record<Flaw, Ranges> => ({
  double: rangesOf('double'),
  damaged: rangesOf('damaged'),
  differing: rangesOf('differing'),
  foreign: rangesOf('foreign'),
});

export const emptyStanding = (): Standing => ({
  covered: Ranges.of(),
  flaws: flawsBy(() => Ranges.of()),
  unreadable: [],
});

const soundIn = ({ covered, flaws }: Standing, flaw: Flaw): Ranges => covered.minus(flaws[flaw]);

/**
 * Of two copies together: a record is there that one of them has, and is sound that is sound in one of them. Where they
 * differ about what a record is, neither can be trusted.
 */
export const together = (one: Standing, other: Standing, differing: Ranges): Standing => {
  const flaws = flawsBy((flaw) => {
    const all = one.flaws[flaw].union(other.flaws[flaw]);
    return flaw === 'differing' ? all.union(differing) : all.minus(soundIn(one, flaw)).minus(soundIn(other, flaw));
  });
  const unreadable = one.unreadable.length === 0 || other.unreadable.length === 0 ? [] : one.unreadable;
  return { covered: one.covered.union(other.covered), flaws, unreadable };
};

const inRanges = (kind: 'hole' | Flaw, { list }: Ranges): RecordsProblem[] =>
  list.map(({ from, through }) => ({ kind, from, through }));

/** By seq, what can't be read first. */
export const problemsOf = ({ covered, flaws, unreadable }: Standing): LogProblem[] => [
  ...unreadable,
  ...[...inRanges('hole', covered.gaps()), ...FLAWS.flatMap((kind) => inRanges(kind, flaws[kind]))].toSorted(
    (a, b) => a.from - b.from,
  ),
];

/**
 * What one copy has wrong that all together have right. What is after its last record may have come after it was read,
 * and what is before its first one may have been taken by retention.
 */
export const worseThan = (one: Standing, all: Standing): LogProblem[] => {
  const outside = [
    { from: 0, through: (one.covered.first ?? Infinity) - 1 },
    { from: (one.covered.last ?? -1) + 1, through: Infinity },
  ];
  const covered = all.covered.minus(one.covered).minus(Ranges.of(outside));
  return [
    ...(all.unreadable.length === 0 ? one.unreadable : []),
    ...inRanges('hole', covered),
    ...FLAWS.flatMap((kind) => inRanges(kind, one.flaws[kind].minus(all.flaws[kind]))),
  ];
};

/** `records 12 to 14: missing from the stream` */
export const problemText = (problem: LogProblem): string => {
  if (problem.kind === 'unreadable') return `message ${problem.message} of the stream can't be read: ${problem.why}`;
  const { kind, from, through } = problem;
  const which = from === through ? `record ${from}` : `records ${from} to ${through}`;
  const what = {
    hole: 'missing from the stream',
    double: 'more than once in the stream',
    damaged: 'altered or damaged (checksum)',
    differing: 'more than once in the stream, and not the same',
    foreign: 'in a message where no such record belongs',
  };
  return `${which}: ${what[kind]}`;
};
