/**
 * The test command: installs what the tests need, then types, lint, format and tests. Without root it names what is
 * missing and goes on; tests that need it are then skipped and say so.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packages } from './packages.ts';

const run = (command: string, args: string[], env: NodeJS.ProcessEnv = process.env): boolean =>
  spawnSync(command, args, { stdio: 'inherit', env }).status === 0;

const missing = packages.filter(({ program }) => spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0);
if (missing.length > 0) {
  const names = missing.map(({ name }) => name);
  if (process.getuid?.() === 0) {
    console.log(`Installing what the tests need: ${names.join(', ')}`);
    const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
    const quiet = ['-qq', '-o=Dpkg::Use-Pty=0'];
    const installed =
      run('apt-get', ['update', ...quiet], env) &&
      run('apt-get', ['install', '-y', '--no-install-recommends', ...quiet, ...names], env);
    if (!installed) {
      console.error(`These Debian packages could not be installed: ${names.join(', ')}`);
      process.exit(3);
    }
  } else {
    console.log(`Some tests are skipped, for want of Debian packages: apt-get install ${names.join(' ')}`);
  }
}

const steps: [string, string[]][] = [
  ['tsc', ['--noEmit']],
  ['oxlint', ['--type-aware', '--deny-warnings', '.']],
  ['prettier', ['--check', '--log-level', 'warn', '.']],
  ['vitest', ['run', '--project', 'usual', ...process.argv.slice(2)]],
];
// Hundreds of nodes and commands are started: what Node compiles for one it keeps for the others, half of a start.
const cache = mkdtempSync(join(tmpdir(), 'understudy-compiled-'));
process.once('exit', () => rmSync(cache, { recursive: true, force: true }));
for (const [command, args] of steps) {
  console.log(`> ${command} ${args.join(' ')}`);
  if (!run(command, args, { ...process.env, NODE_COMPILE_CACHE: cache })) process.exit(1);
}
