/**
 * One probe of one server. Its outcome is a value, whatever happens, and comes exactly once, unless the probe was
 * aborted. Codes are HAProxy's (L4OK, L4CON, L7STS, …), and L3… for ICMP.
 */
import type { CheckConfig } from '../config/schema.ts';
import { messageOf } from '../errors.ts';
import { failed } from './outcome.ts';
import type { Outcome, Probe, ProbeResult, ProbeTarget } from './outcome.ts';
import { probeIcmp } from './icmp.ts';
import { probeHttp } from './http.ts';
import { probeScript } from './script.ts';
import { probeTcp } from './tcp.ts';
import { probeTls } from './tls.ts';

/** Starts a probe; returns how to abort it, after which `done` is not called any more. */
export const startProbe = (
  target: ProbeTarget,
  check: CheckConfig,
  timeoutMs: number,
  done: (result: ProbeResult) => void,
): (() => void) => {
  const startedAt = performance.now();
  const where = check.port === undefined ? target : atPort(target, check.port);
  let over = false;
  const finish = (outcome: Outcome) => {
    if (over) return;
    over = true;
    // Whole microseconds: what is recorded reads back as the same number.
    done({ ...outcome, durationMs: Math.round((performance.now() - startedAt) * 1000) / 1000 });
  };
  const giveUp = startSafely(where, check, timeoutMs, finish);
  return () => {
    over = true;
    giveUp();
  };
};

/** What listens at a port of its own for checks speaks no PROXY protocol, as HAProxy has it. */
const atPort = (target: ProbeTarget, port: number): ProbeTarget => ({
  ...target,
  address: { ...target.address, port },
  sendProxy: null,
});

/** What Node refuses to even begin is a failed probe like any other, told in a later turn as all are. */
const startSafely: Probe<CheckConfig> = (target, check, timeoutMs, finish) => {
  try {
    return start(target, check, timeoutMs, finish);
  } catch (error) {
    setImmediate(() => finish(failed('L7RSP', `the check could not be started: ${messageOf(error)}`)));
    return () => {};
  }
};

const start = (
  target: ProbeTarget,
  check: CheckConfig,
  timeoutMs: number,
  finish: (outcome: Outcome) => void,
): (() => void) => {
  switch (check.type) {
    case 'icmp':
      return probeIcmp(target, check, timeoutMs, finish);
    case 'tcp':
      return probeTcp(target, check, timeoutMs, finish);
    case 'tls':
      return probeTls(target, check, timeoutMs, finish);
    case 'http':
    case 'https':
      return probeHttp(target, check, timeoutMs, finish);
    case 'script':
      return probeScript(target, check, timeoutMs, finish);
  }
};
