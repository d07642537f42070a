/** What every kind of probe is given and gives back. */
import type { Endpoint } from '../config/units.ts';

export type ProbeResult = { ok: boolean; code: string; message: string; durationMs: number };

/** `sendProxy`: connections there begin with a PROXY header of this version. */
export type ProbeTarget = { pool: string; server: string; address: Endpoint; sendProxy?: 'v1' | 'v2' | null };

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

/**
 * A time limit for a probe. A loop that was held up looks at its sockets once more before it calls a server silent: the
 * answer may have been waiting there. Returns how to lift the limit.
 */
export const limit = (timeoutMs: number, expired: () => void): (() => void) => {
  let immediate: NodeJS.Immediate | null = null;
  const timer = setTimeout(() => {
    immediate = setImmediate(expired);
  }, timeoutMs);
  return () => {
    clearTimeout(timer);
    if (immediate) clearImmediate(immediate);
  };
};
