import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { failed, limit, passed } from './checks/outcome.ts';
import type { Outcome } from './checks/outcome.ts';
import { codeOf, messageOf } from './errors.ts';
import { takeUsualPriority } from './threads.ts';

export type Program = {
  command: string[];
  timeoutMs: number;
  /** All that it gets to see beside PATH. */
  env: Record<string, string>;
  /** Whom it runs as; null is whoever we are. */
  user: { uid: number; gid: number } | null;
};

/** Where bare names are looked for; nothing else of our environment is handed on. */
export const programPath = (): string => process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin';

/**
 * Runs any program once: PROCOK is exit status 0, PROCERR any other end, PROCTOUT the time limit (HAProxy's codes). It
 * runs in a process group of its own, which is killed whole when the time is up, so that nothing that it started
 * outlives it. Its output is not looked at: it could hold anything. `done` is called once, in a later turn; never after
 * the returned abort, which kills too.
 */
export const runProgram = (o: Program, done: (outcome: Outcome) => void): (() => void) => {
  const [program, ...args] = o.command;
  let over = false;
  const finish = (outcome: Outcome) => {
    if (over) return;
    over = true;
    done(outcome);
  };
  let child: ChildProcess;
  try {
    child = spawn(program!, args, {
      detached: true,
      stdio: 'ignore',
      env: { PATH: programPath(), ...o.env },
      // With either of the two, libuv gives up all supplementary groups before it changes them.
      ...(o.user && { uid: o.user.uid, gid: o.user.gid }),
    });
  } catch (error) {
    // Some refusals of the kernel (EPERM, E2BIG) Node throws, the others it emits.
    setImmediate(() => finish(failed('PROCERR', `${program} could not be run: ${messageOf(error)}`)));
    return () => {
      over = true;
    };
  }
  if (child.pid !== undefined) takeUsualPriority(child.pid);
  const lift = limit(o.timeoutMs, () => {
    const trouble = killGroup(child);
    finish(failed('PROCTOUT', `${program} did not end within ${o.timeoutMs} ms${trouble}`));
  });
  child.on('error', (error) => {
    lift();
    finish(failed('PROCERR', `${program} could not be run: ${error.message}`));
  });
  child.on('exit', (status, signal) => {
    lift();
    // What it left running in the background would pile up run by run.
    const trouble = killGroup(child);
    finish(
      status === 0
        ? passed('PROCOK')
        : failed(
            'PROCERR',
            `${program} ${signal ? `was ended by ${signal}` : `ended with status ${status}`}${trouble}`,
          ),
    );
  });
  return () => {
    over = true;
    lift();
    killGroup(child);
  };
};

/** What is to be added to the message when the group can't be killed; else nothing. */
const killGroup = (child: ChildProcess): string => {
  if (child.pid === undefined) return '';
  try {
    process.kill(-child.pid, 'SIGKILL');
    return '';
  } catch (error) {
    // ESRCH: the group has ended by itself in the meantime, which is what was wanted.
    if (codeOf(error) === 'ESRCH') return '';
    // EPERM: it has become another user (a set-user-ID program).
    return `, and what runs of it could not be ended (${codeOf(error)})`;
  }
};
