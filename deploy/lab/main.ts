/**
 * `npm run lab [-- active-backup|active-active]` or `npm run lab -- --cluster`: load balancers, web servers and a client
 * as hosts of their own on this machine, to break and watch. Stands until Ctrl-C. Takes root.
 */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Lab, untilInterrupted } from './lab.ts';
import { standCluster } from './standCluster.ts';
import { examples } from './standing.ts';
import { standPair } from './standPair.ts';

const stop = (message: string): never => {
  console.error(message);
  process.exit(2);
};

const argumentsOf = () => {
  try {
    return parseArgs({ allowPositionals: true, options: { cluster: { type: 'boolean', default: false } } });
  } catch (error) {
    return stop((error as Error).message);
  }
};

const { values, positionals } = argumentsOf();
const example = positionals[0] ?? 'active-backup';
const pairs = readdirSync(examples).filter(
  (name) => existsSync(join(examples, name, 'lb2.yaml')) && name !== 'cluster',
);
if (!pairs.includes(example)) stop(`there is no ${example}; there are ${pairs.join(', ')} and --cluster`);
if (process.getuid?.() !== 0) stop('network namespaces take root: sudo npm run lab');

const interrupted = untilInterrupted();
const lab = await Lab.create();
try {
  console.log(await (values.cluster ? standCluster(lab) : standPair(lab, example)));
  await interrupted;
} catch (error) {
  // What the programs have said tells why.
  console.error(lab.log());
  throw error;
} finally {
  await lab.destroy();
}
