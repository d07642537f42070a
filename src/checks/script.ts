import { spawn } from 'node:child_process';
import type { CheckConfig } from '../config/schema.ts';
import { failed, limit, passed } from './outcome.ts';
import type { Probe } from './outcome.ts';

/**
 * Any program: exit status 0 passes. It runs in a process group of its own, which is killed whole when the time is up,
 * so that nothing that it started outlives it. Its output is not looked at: it could hold anything.
 */
export const probeScript: Probe<Extract<CheckConfig, { type: 'script' }>> = (target, check, timeoutMs, finish) => {
  const [program, ...args] = check.command;
  const child = spawn(program!, args, {
    detached: true,
    stdio: 'ignore',
    env: {
      PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin',
      UNDERSTUDY_POOL: target.pool,
      UNDERSTUDY_SERVER: target.server,
      UNDERSTUDY_ADDRESS: target.address.host,
      UNDERSTUDY_PORT: String(target.address.port),
    },
  });
  const killGroup = () => {
    if (child.pid === undefined) return;
    try {
      process.kill(-child.pid, 'SIGKILL');
    } catch (error) {
      // ESRCH: the group has ended by itself in the meantime, which is what was wanted.
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
    }
  };
  const lift = limit(timeoutMs, () => {
    killGroup();
    finish(failed('PROCTOUT', `${program} did not end within ${timeoutMs} ms`));
  });
  child.on('error', (error) => {
    lift();
    finish(failed('PROCERR', `${program} could not be run: ${error.message}`));
  });
  child.on('exit', (status, signal) => {
    lift();
    // What it left running in the background would pile up check by check.
    killGroup();
    finish(
      status === 0
        ? passed('PROCOK')
        : failed('PROCERR', signal ? `${program} was ended by ${signal}` : `${program} ended with status ${status}`),
    );
  });
  return () => {
    lift();
    killGroup();
  };
};
