import { UnderstudyError } from '../errors.ts';
import { JournalReader } from '../journal/reader.ts';
import { verify } from '../worlds/replay.ts';
import { neededJournal } from './clusterSource.ts';
import type { ClusterOptions } from './clusterSource.ts';
import { differingMachines, formatDivergence } from './divergence.ts';
import { green, print, printJson, progress, red, warn } from './output.ts';

type VerifyOptions = ClusterOptions & { json?: boolean };

export const verifyCommand = async (named: string | undefined, options: VerifyOptions): Promise<void> => {
  if (named === undefined && options.cluster !== undefined) {
    const { verifyCluster } = await import('./verifyCluster.ts');
    return verifyCluster(options);
  }
  const journal = await neededJournal(named, options);
  const reader = new JournalReader(journal);
  progress(`verifying ${journal}`);
  let result: ReturnType<typeof verify>;
  try {
    result = verify(reader);
  } catch (error) {
    if (!(error instanceof UnderstudyError) || error.code !== 'RECORD_UNREADABLE') throw error;
    if (options.json === true) printJson({ ok: false, unreadable: error.message, divergence: null });
    else print(red(`${journal}: ${error.message}`));
    process.exitCode = 1;
    return;
  } finally {
    progress('');
  }
  const { divergence } = result;
  const otherMachines = differingMachines(reader);
  reader.close();
  process.exitCode = divergence ? 1 : 0;
  if (options.json === true) {
    printJson({ ok: divergence === null, ...result, otherMachines });
    return;
  }
  if (otherMachines.length > 0) warn(`recorded with another version of ${otherMachines.join(', ')}`);
  for (const gap of result.gaps) {
    const rest =
      gap.resumedAt === null ? 'nothing after it could be decided' : `decided again from record ${gap.resumedAt}`;
    print(`gap: records ${gap.from}–${gap.through} were not kept; ${rest}`);
  }
  if (divergence) print(red(formatDivergence(divergence)));
  else {
    print(
      green(
        `${journal}: ${result.events} events in ${result.rows} records were decided again the same way (${result.checkpoints} checkpoints compared)`,
      ),
    );
  }
};
