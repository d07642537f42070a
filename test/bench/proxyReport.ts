/** What `bench:proxy` has measured, as a table for people or as rows. */
import { cpus } from 'node:os';
import { table } from '../../src/cli/output.ts';
import type { Memory } from './proxyProcesses.ts';
import { OURS, REFERENCE } from './proxySubjects.ts';
import { median, report, row } from './report.ts';
import type { BenchRow } from './report.ts';

/** One round. CPU is that of the proxy alone, for each request, frame or MiB. */
export type Sample = {
  perSecond: number;
  p50Ms: number;
  p99Ms: number;
  cpuUs: number;
  userUs: number;
  sysUs: number;
  errors: string[];
};

/** `samples`: by subject, one a round. */
export type LoadResult = { name: string; unit: string; aim: number | null; samples: Map<string, Sample[]> };

export type MemoryResult = { subject: string; before: Memory; idle: Memory; connections: number };

export type Failure = { what: string; subject: string; why: string };

export type Results = { loads: LoadResult[]; memory: MemoryResult[]; failures: Failure[] };

/** For the whole process, whatever it needs without connections. */
const MEMORY_AIM_MIB = 250;

const rowsOf = ({ name, unit, samples }: LoadResult): BenchRow[] =>
  [...samples].flatMap(([subject, own]) => {
    const figure = (title: string, key: Exclude<keyof Sample, 'errors'>, figureUnit: string) => {
      const reference = subject === REFERENCE ? undefined : samples.get(REFERENCE);
      const compared = reference?.map((sample) => sample[key]) ?? null;
      return row(
        `${name}: ${title}`,
        subject,
        figureUnit,
        own.map((sample) => sample[key]),
        compared,
      );
    };
    return [
      figure('CPU', 'cpuUs', `µs/${unit}`),
      figure('user CPU', 'userUs', `µs/${unit}`),
      figure('system CPU', 'sysUs', `µs/${unit}`),
      figure('latency p50', 'p50Ms', 'ms'),
      figure('latency p99', 'p99Ms', 'ms'),
      figure('rate', 'perSecond', `${unit}/s`),
    ];
  });

const memoryRowsOf = (results: MemoryResult[]): BenchRow[] => {
  const reference = results.find(({ subject }) => subject === REFERENCE);
  return results.flatMap((result) => {
    const { subject, connections } = result;
    const compared = (figure: (of: MemoryResult) => number) =>
      reference && subject !== REFERENCE ? [figure(reference)] : null;
    const one = (title: string, unit: string, figure: (of: MemoryResult) => number) =>
      row(`${connections} idle connections: ${title}`, subject, unit, [figure(result)], compared(figure));
    return [
      one('RSS', 'MiB', ({ idle }) => idle.rssMiB),
      one('PSS', 'MiB', ({ idle }) => idle.pssMiB),
      one('PSS for each', 'KiB', eachKiB),
    ];
  });
};

const eachKiB = ({ idle, before, connections }: MemoryResult): number =>
  ((idle.pssMiB - before.pssMiB) * 1024) / connections;

const round = (value: number): string =>
  value >= 1000 ? String(Math.round(value)) : value >= 100 ? value.toFixed(0) : value.toPrecision(3);

const verdict = (value: number, aim: number): string => `≤ ${aim} ${value <= aim ? 'met' : 'MISSED'}`;

const linesOf = ({ name, unit, aim, samples }: LoadResult): string[][] =>
  [...samples].map(([subject, own]) => {
    const of = (key: Exclude<keyof Sample, 'errors'>): number => median(own.map((sample) => sample[key]));
    const reference = samples.get(REFERENCE);
    const ratio = reference && subject !== REFERENCE ? of('cpuUs') / median(reference.map(({ cpuUs }) => cpuUs)) : null;
    return [
      name,
      subject,
      unit,
      round(of('perSecond')),
      round(of('p50Ms')),
      round(of('p99Ms')),
      round(of('cpuUs')),
      round(of('userUs')),
      round(of('sysUs')),
      ratio === null ? '' : ratio.toFixed(2),
      ratio !== null && aim !== null && subject === OURS ? verdict(ratio, aim) : '',
    ];
  });

const memoryLine = (result: MemoryResult): string[] => [
  ...[result.subject, round(result.before.rssMiB), round(result.idle.rssMiB), round(result.idle.pssMiB)],
  ...[round(eachKiB(result)), result.subject === OURS ? verdict(result.idle.rssMiB, MEMORY_AIM_MIB) : ''],
];

export const textOf = ({ what, subject, why }: Failure): string => `${what}: ${subject}: ${why}`;

const printTables = ({ loads, memory, failures }: Results): void => {
  const parts = [
    `${cpus()[0]?.model ?? 'unknown'}, ${cpus().length} cores, Node ${process.version}; ` +
      `ratio: CPU of the proxy for each, over that of ${REFERENCE}`,
    table(
      ['LOAD', 'SUBJECT', 'EACH', 'PER SECOND', 'P50 ms', 'P99 ms', 'CPU µs', 'USER', 'SYSTEM', 'RATIO', 'AIM'],
      loads.flatMap(linesOf),
    ),
  ];
  if (memory.length > 0) {
    const title = `${memory[0]!.connections} IDLE CONNECTIONS`;
    const head = [title, 'RSS BEFORE MiB', 'RSS MiB', 'PSS MiB', 'PSS FOR EACH KiB', 'AIM'];
    parts.push(table(head, memory.map(memoryLine)));
  }
  if (failures.length > 0) parts.push(`ERRORS\n${failures.map(textOf).join('\n')}`);
  process.stdout.write(`${parts.join('\n\n')}\n`);
};

export const reportProxy = (results: Results): void => {
  if (process.argv.includes('--json')) {
    const rows = [...results.loads.flatMap(rowsOf), ...memoryRowsOf(results.memory)];
    const names = new Set([...rows, ...results.failures].map(({ subject }) => subject));
    const failuresOf = (name: string) => results.failures.filter(({ subject }) => subject === name).length;
    const failures = [...names].map((name) => row('failures', name, 'failures', [failuresOf(name)], null));
    report([...rows, ...failures], REFERENCE);
  } else printTables(results);
};
