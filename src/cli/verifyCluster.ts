/** `understudy verify --cluster`: every journal of every node, by the stream alone. */
import type { ClusterLineage } from '../bus/clusterLineage.ts';
import { problemText } from '../bus/logStanding.ts';
import { UnderstudyError } from '../errors.ts';
import { JournalReader } from '../journal/reader.ts';
import { verify } from '../worlds/replay.ts';
import type { VerifyResult } from '../worlds/replay.ts';
import { lineageOf, readCluster } from './clusterSource.ts';
import type { ClusterOptions } from './clusterSource.ts';
import { differingMachines, formatDivergence } from './divergence.ts';
import { green, print, printJson, progress, red, warn } from './output.ts';

type Verified = {
  lineage: ClusterLineage;
  ok: boolean;
  result: VerifyResult | null;
  /** Why the records could not be decided again to the end. */
  unreadable: string | null;
  /** It begins in the middle, and no checkpoint says with what. */
  undecided: boolean;
  otherMachines: string[];
};

export const verifyCluster = async (options: ClusterOptions & { json?: boolean }): Promise<void> => {
  const log = await readCluster(options);
  await log.close();
  const lineages = options.node === undefined ? log.lineages : [lineageOf(log, options.node)];
  const verified = lineages.map((lineage) => {
    progress(`verifying ${lineage.node}`);
    return verifyLineage(lineage);
  });
  progress('');
  const ok = verified.every((one) => one.ok) && log.foreign.length === 0;
  process.exitCode = ok ? 0 : 1;
  if (options.json === true) {
    printJson({ ok, cluster: log.cluster, foreign: log.foreign, nodes: verified.map(jsonOf) });
    return;
  }
  if (verified.length === 0) print(`the log of ${log.cluster} is empty`);
  for (const one of verified) show(one);
  for (const { node, message } of log.foreign)
    print(red(`${node}: message ${message} of the stream was written by no courier`));
};

const verifyLineage = (lineage: ClusterLineage): Verified => {
  const reader = new JournalReader(lineage.path);
  const { firstSeq } = reader.bounds();
  const undecided = firstSeq > 1 && reader.checkpoint({ atLeastSeq: firstSeq - 1 }) === null;
  let result: VerifyResult | null = null;
  let unreadable: string | null = null;
  try {
    if (!undecided) result = verify(reader);
  } catch (error) {
    if (!(error instanceof UnderstudyError) || error.code !== 'RECORD_UNREADABLE') throw error;
    unreadable = error.message;
  }
  const otherMachines = unreadable === null ? differingMachines(reader) : [];
  reader.close();
  const ok = lineage.problems.length === 0 && unreadable === null && (result?.divergence ?? null) === null;
  return { lineage, ok, result, unreadable, undecided, otherMachines };
};

const jsonOf = ({ lineage, ok, result, unreadable, undecided, otherMachines }: Verified) => ({
  node: lineage.node,
  journal: lineage.journal,
  ok,
  firstSeq: lineage.firstSeq,
  lastSeq: lineage.lastSeq,
  records: lineage.rows,
  problems: lineage.problems,
  gaps: lineage.gaps,
  events: result?.events ?? 0,
  checkpoints: result?.checkpoints ?? 0,
  divergence: result?.divergence ?? null,
  unreadable,
  undecided,
  otherMachines,
});

const show = ({ lineage, ok, result, unreadable, undecided, otherMachines }: Verified): void => {
  const { node, journal, firstSeq, lastSeq, problems, gaps } = lineage;
  const which = `${node} (journal ${journal}, records ${firstSeq} to ${lastSeq})`;
  if (otherMachines.length > 0) warn(`${node}: recorded with another version of ${otherMachines.join(', ')}`);
  for (const { from, through } of gaps) print(`${node}: gap: records ${from} to ${through} are in no journal any more`);
  for (const problem of problems) print(red(`${which}: ${problemText(problem)}`));
  if (unreadable !== null) print(red(`${which}: ${unreadable}`));
  if (result?.divergence) print(red(`${which}: ${formatDivergence(result.divergence)}`));
  if (!ok) return;
  if (undecided) print(`${which}: every record once and in order; no checkpoint, so nothing could be decided again`);
  else
    print(
      green(
        `${which}: every record once and in order, ${result?.events ?? 0} events decided again the same way (${result?.checkpoints ?? 0} checkpoints compared)`,
      ),
    );
};
