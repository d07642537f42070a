import type { CheckConfig } from '../config/schema.ts';
import { runProgram } from '../runProgram.ts';
import type { Probe } from './outcome.ts';

/** Any program: exit status 0 passes. */
export const probeScript: Probe<Extract<CheckConfig, { type: 'script' }>> = (target, check, timeoutMs, finish) =>
  runProgram(
    {
      command: check.command,
      timeoutMs,
      env: {
        UNDERSTUDY_POOL: target.pool,
        UNDERSTUDY_SERVER: target.server,
        UNDERSTUDY_ADDRESS: target.address.path ?? target.address.host,
        UNDERSTUDY_PORT: String(target.address.port),
      },
      user: null,
    },
    finish,
  );
