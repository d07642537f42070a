/**
 * Errors that a user can cause or cure, each with a stable code. `exitStatus` is what a command ends with: 1 the answer
 * is no, 2 wrong use, 3 what was named could not be reached or read.
 */
export type ErrorCode =
  | 'CONFIG_INVALID'
  | 'CONFIG_UNREADABLE'
  | 'ADDRESS_IN_USE'
  | 'ADDRESS_UNAVAILABLE'
  | 'JOURNAL_UNWRITABLE'
  | 'JOURNAL_UNREADABLE'
  | 'JOURNAL_TOO_NEW'
  | 'JOURNAL_IN_USE'
  | 'JOURNAL_FORKED'
  | 'RECORD_UNREADABLE'
  | 'RECORD_NOT_FOUND'
  | 'NODE_UNREACHABLE'
  | 'NODE_REFUSED'
  | 'NATS_UNREACHABLE'
  | 'NATS_REFUSED'
  | 'NATS_NO_JETSTREAM'
  | 'NATS_STREAM_DIFFERS'
  | 'NATS_STREAM_REFUSED'
  | 'NATS_TIMEOUT'
  | 'NATS_OFFLINE'
  | 'USAGE';

const EXIT_STATUS: Record<ErrorCode, 1 | 2 | 3> = {
  CONFIG_INVALID: 1,
  CONFIG_UNREADABLE: 3,
  ADDRESS_IN_USE: 3,
  ADDRESS_UNAVAILABLE: 3,
  JOURNAL_UNWRITABLE: 3,
  JOURNAL_UNREADABLE: 3,
  JOURNAL_TOO_NEW: 3,
  JOURNAL_IN_USE: 3,
  JOURNAL_FORKED: 3,
  RECORD_UNREADABLE: 1,
  RECORD_NOT_FOUND: 1,
  NODE_UNREACHABLE: 3,
  NODE_REFUSED: 1,
  NATS_UNREACHABLE: 3,
  NATS_REFUSED: 3,
  NATS_NO_JETSTREAM: 3,
  NATS_STREAM_DIFFERS: 3,
  NATS_STREAM_REFUSED: 3,
  NATS_TIMEOUT: 3,
  NATS_OFFLINE: 3,
  USAGE: 2,
};

export const isErrorCode = (code: string): code is ErrorCode => Object.hasOwn(EXIT_STATUS, code);

export class UnderstudyError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string) {
    super(message);
    this.name = 'UnderstudyError';
    this.code = code;
  }

  get exitStatus(): 1 | 2 | 3 {
    return EXIT_STATUS[this.code];
  }
}

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** The code of a system error (`ECONNREFUSED`), or of SQLite's. */
export const codeOf = (error: unknown): string => {
  const { code, errcode } = error as { code?: unknown; errcode?: unknown };
  if (code === 'ERR_SQLITE_ERROR' && typeof errcode === 'number') return `SQLITE_${errcode & 0xff}`;
  return typeof code === 'string' ? code : 'UNKNOWN';
};
