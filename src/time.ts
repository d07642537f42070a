/** Times as people write and read them. */
import { parseDuration } from './config/units.ts';
import { UnderstudyError } from './errors.ts';

const pad = (value: number, digits: number): string => String(value).padStart(digits, '0');

/**
 * µs since 1970 of `2026-11-22T03:12:07.481Z`, `2026-11-22 03:12`, `03:12:07.481` (the latest such time of day that is
 * not after `now`), or `5m` (that long ago). Local time where no zone is given. @throws UnderstudyError USAGE
 */
export const parseTime = (text: string, nowUs: number): number => {
  const trimmed = text.trim();
  const ago = parseDuration(trimmed);
  if (ago !== null && trimmed !== '0') return nowUs - ago * 1000;
  const clock = /^(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,6}))?)?$/.exec(trimmed);
  if (clock) {
    const day = new Date(nowUs / 1000);
    day.setHours(Number(clock[1]), Number(clock[2]), Number(clock[3] ?? 0), 0);
    const us = day.getTime() * 1000 + Number((clock[4] ?? '0').padEnd(6, '0'));
    return us > nowUs ? us - 86_400_000_000 : us;
  }
  const parsed = /^\d{4}-/.test(trimmed) ? Date.parse(trimmed.replace(' ', 'T')) : NaN;
  if (!Number.isNaN(parsed)) return parsed * 1000;
  throw new UnderstudyError(
    'USAGE',
    `${JSON.stringify(text)} is not a time; allowed are forms like 03:12:07.481, 2026-11-22T03:12:07Z, 5m (ago)`,
  );
};

/** `03:12:07.481`, local time. */
export const formatClock = (us: number): string => {
  const date = new Date(us / 1000);
  return `${pad(date.getHours(), 2)}:${pad(date.getMinutes(), 2)}:${pad(date.getSeconds(), 2)}.${pad(date.getMilliseconds(), 3)}`;
};

/** `2026-11-22 03:12:07.481`, local time. */
export const formatDateTime = (us: number): string => {
  const date = new Date(us / 1000);
  return `${date.getFullYear()}-${pad(date.getMonth() + 1, 2)}-${pad(date.getDate(), 2)} ${formatClock(us)}`;
};

/** `450 ms`, `3.2 s`, `4 min 5 s`, `2 h 10 min`, `3 d 4 h`. */
export const formatSpan = (us: number): string => {
  const ms = us / 1000;
  if (ms < 1) return `${Math.round(us)} µs`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
};
