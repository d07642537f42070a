/** A record as a line for people, with the day above the first one of it. */
import type { Row } from '../journal/record.ts';
import type { RecordView } from '../journal/view.ts';
import { formatClock, formatDateTime, formatSpan } from '../time.ts';
import { dim } from './output.ts';

let lastDay = '';

/** `node` is the column that tells records of several nodes apart. */
export const formatRecord = (view: RecordView, row: Row, node = ''): string => {
  const day = formatDateTime(view.timeUs).slice(0, 10);
  const header = day === lastDay ? '' : `${dim(`— ${day} —`)}\n`;
  lastDay = day;
  const times = row.count > 1 ? ` ×${row.count}` : '';
  const state = view.state === '' ? '' : ` → ${view.state}`;
  const cause = view.cause === null ? '' : dim(` ⇐ ${view.cause}`);
  const from = view.from === null ? '' : dim(` from ${view.from}`);
  return `${header}${node}${String(view.seq).padStart(6)}  ${formatClock(view.timeUs)}  ${view.actor}  ${row.type}${times}${payloadText(view.event)}${state}${from}${cause}`;
};

const payloadText = (event: Record<string, unknown>): string => {
  const parts = Object.entries(event)
    .filter(([, value]) => value !== '' && value !== null && typeof value !== 'object')
    .map(([key, value]) =>
      key === 'durationMs'
        ? formatSpan(Number(value) * 1000)
        : key === 'code' || key === 'message'
          ? String(value)
          : `${key} ${String(value)}`,
    );
  return parts.length === 0 ? '' : ` (${parts.join(', ')})`;
};
