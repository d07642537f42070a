/**
 * One probe of one server. Its outcome is a value, whatever happens, and comes exactly once, unless the probe was
 * aborted. Codes are HAProxy's (L4OK, L4CON, L7STS, …), and L3… for ICMP.
 */
import type { CheckConfig } from '../config/schema.ts';
import type { Endpoint } from '../config/units.ts';
import { messageOf } from '../errors.ts';
import { probeIcmp } from './icmp.ts';
import { probeHttp } from './http.ts';
import { probeScript } from './script.ts';
import { probeTcp } from './tcp.ts';
import { probeTls } from './tls.ts';

export type ProbeResult = { ok: boolean; code: string; message: string; durationMs: number };

export type ProbeTarget = { pool: string; server: string; address: Endpoint };

/** Without the duration, which `startProbe` measures. */
export type Outcome = Omit<ProbeResult, 'durationMs'>;

/** One kind of probe. `finish` may be called more than once; only the first counts. Returns how to give up. */
export type Probe<C> = (
  target: ProbeTarget,
  check: C,
  timeoutMs: number,
  finish: (outcome: Outcome) => void,
) => () => void;

export const passed = (code: string, message = ''): Outcome => ({ ok: true, code, message });
export const failed = (code: string, message: string): Outcome => ({ ok: false, code, message });

/** Starts a probe; returns how to abort it, after which `done` is not called any more. */
export const startProbe = (
  target: ProbeTarget,
  check: CheckConfig,
  timeoutMs: number,
  done: (result: ProbeResult) => void,
): (() => void) => {
  const startedAt = performance.now();
  const where = check.port === undefined ? target : { ...target, address: { ...target.address, port: check.port } };
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

/** What a system error says to a person. */
export const errorText = (error: Error & { code?: string; reason?: string }): string => {
  // OpenSSL's own words, without its file names and line numbers.
  if (error.reason !== undefined) return error.reason;
  switch (error.code) {
    case 'ECONNREFUSED':
      return 'connection refused';
    case 'ECONNRESET':
      return 'connection reset by the server';
    case 'EHOSTUNREACH':
      return 'host unreachable';
    case 'ENETUNREACH':
      return 'network unreachable';
    case 'ENOTFOUND':
      return 'name not found';
    case 'EMFILE':
      return 'this node has no file descriptor left (ulimit -n)';
    case 'EADDRNOTAVAIL':
      return 'this node has no local port left for the connection';
    default:
      return error.message;
  }
};
