/** What every benchmark prints: a table for people, or with `--json` one object and nothing else. */
import { cpus, totalmem } from 'node:os';
import { table } from '../../src/cli/output.ts';

export type BenchRow = {
  name: string;
  subject: string;
  unit: string;
  median: number;
  p99: number | null;
  /** The reference's median in the same run; null where there is nothing to compare with. */
  reference: number | null;
  ratio: number | null;
};

export const quick = process.argv.includes('--quick');
const asJson = process.argv.includes('--json');

/** On standard error, so that `--json` prints one object and nothing else. */
export const say = (text: string): void => {
  process.stderr.write(`${text}\n`);
};

export const median = (values: number[]): number => quantile(values, 0.5);

export const quantile = (values: number[], at: number): number => {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * at))] ?? NaN;
};

/** A row from the samples of several runs. */
export const row = (
  name: string,
  subject: string,
  unit: string,
  samples: number[],
  reference: number[] | null,
): BenchRow => {
  const value = median(samples);
  const compared = reference === null ? null : median(reference);
  return {
    name,
    subject,
    unit,
    median: value,
    p99: samples.length > 1 ? quantile(samples, 0.99) : null,
    reference: compared,
    ratio: compared === null || compared === 0 ? null : value / compared,
  };
};

const round = (value: number | null): string =>
  value === null ? '–' : Math.abs(value) >= 100 ? String(Math.round(value)) : value.toPrecision(3);

export const report = (rows: BenchRow[], referenceName: string): void => {
  const machine = {
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 1024 ** 3),
    node: process.version,
    kernel: process.platform,
  };
  if (asJson) {
    process.stdout.write(`${JSON.stringify({ machine, rows })}\n`);
    return;
  }
  process.stdout.write(`${machine.cpu}, ${machine.cores} cores, Node ${machine.node}; reference: ${referenceName}\n\n`);
  const cells = rows.map(({ name, subject, unit, median: value, p99, reference, ratio }) => [
    name,
    subject,
    unit,
    round(value),
    round(p99),
    round(reference),
    round(ratio),
  ]);
  process.stdout.write(`${table(['NAME', 'SUBJECT', 'UNIT', 'MEDIAN', 'P99', 'REFERENCE', 'RATIO'], cells)}\n`);
};
