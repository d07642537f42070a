/** Scripts that a configuration names for VRRP (trackers, notifications): as which user they run, and which are refused. */
import { accessSync, constants, realpathSync, statSync } from 'node:fs';
import type { Stats } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { failed } from './checks/outcome.ts';
import type { Outcome } from './checks/outcome.ts';
import { codeOf } from './errors.ts';
import { scriptUser } from './net/users.ts';
import { programPath, runProgram } from './runProgram.ts';

export type Script = {
  command: string[];
  timeoutMs: number;
  /** A user of this machine; null is the default of `scriptUser`. */
  user: string | null;
  env?: Record<string, string>;
};

/**
 * Runs a script once. Beside the codes of `runProgram`: PROCUSER its user does not exist or can't be taken on,
 * PROCUNSAFE it would run as root though others can change it. `done` is called once, in a later turn; never after the
 * returned abort.
 */
export const runScript = (o: Script, done: (outcome: Outcome) => void): (() => void) => {
  const refuse = (code: string, message: string) => {
    const told = setImmediate(() => done(failed(code, message)));
    return () => clearImmediate(told);
  };
  const as = scriptUser(o.user);
  if ('refusal' in as) return refuse('PROCUSER', as.refusal);
  if (as.user && (as.user.uid === 0 || as.user.gid === 0)) {
    const reason = whyUnsafe(o.command);
    if (reason !== null) return refuse('PROCUNSAFE', reason);
  }
  return runProgram({ command: o.command, timeoutMs: o.timeoutMs, env: o.env ?? {}, user: as.user }, done);
};

/** Programs whose first argument is the file that really runs. */
const INTERPRETER = /^(?:sh|bash|dash|ash|ksh|zsh|perl|ruby|node|php|python[\d.]*)$/;
const GROUP_WRITABLE = 0o020;
const OTHERS_WRITABLE = 0o002;
const STICKY = 0o1000;

/**
 * keepalived's enable_script_security: what root runs must not be changeable by anyone else, neither the file nor any
 * folder on the way to it (check_script_secure in its lib/notify.c). A folder with the sticky bit may be written by
 * others: they can't rename what isn't theirs. Beyond keepalived, links are followed, and where an interpreter is named
 * its script is looked at too. Null when it is safe, or isn't there at all, which running it will tell better.
 */
export const whyUnsafe = (command: string[]): string | null => {
  const program = findProgram(command[0]!);
  if (program === null) return null;
  const files = [program];
  const script = INTERPRETER.test(basename(program)) ? command[1] : undefined;
  if (script !== undefined && !script.startsWith('-')) files.push(resolve(script));
  for (const file of files) {
    try {
      for (const path of new Set([...pathsTo(file), ...pathsTo(realpathSync(file))])) {
        const others = whoElse(statSync(path));
        if (others !== null) return `${file} is not run as root: ${path} ${others}`;
      }
    } catch (error) {
      if (codeOf(error) !== 'ENOENT') return `${file} is not run as root: it can't be looked at (${codeOf(error)})`;
    }
  }
  return null;
};

const whoElse = (stat: Stats): string | null => {
  if (stat.uid !== 0) return `belongs to the user ${stat.uid}`;
  if (stat.isDirectory() && (stat.mode & STICKY) !== 0) return null;
  if ((stat.mode & OTHERS_WRITABLE) !== 0) return 'can be written by everybody';
  if (stat.gid !== 0 && (stat.mode & GROUP_WRITABLE) !== 0) return `can be written by the group ${stat.gid}`;
  return null;
};

/** The root folder, every folder on the way, and the file itself. */
const pathsTo = (file: string): string[] => (file === '/' ? ['/'] : [...pathsTo(dirname(file)), file]);

/** As execvp(3) would find it. */
const findProgram = (name: string): string | null => {
  if (name.includes('/')) return resolve(name);
  for (const folder of programPath().split(':')) {
    const file = resolve(join(folder, name));
    try {
      accessSync(file, constants.X_OK);
      if (statSync(file).isFile()) return file;
    } catch {
      // Not here, or not for us: the next folder may have it.
    }
  }
  return null;
};
