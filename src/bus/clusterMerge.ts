/**
 * Records of several nodes as one list. Within a node the order is its own, in which no record stands before its cause.
 * Between nodes it is the order of time, by the stream's clock: a node's times are moved by what its clock differs.
 */
import type { Row } from '../journal/record.ts';

export type MergeSource<Of> = { of: Of; name: string; rows: Iterator<Row>; clockUs: number };
export type Merged<Of> = { of: Of; row: Row };

export function* mergeRows<Of>(sources: readonly MergeSource<Of>[]): Generator<Merged<Of>> {
  const heads = sources.flatMap((source) => {
    const first = source.rows.next();
    return first.done === true ? [] : [{ source, row: first.value, atUs: first.value.time + source.clockUs }];
  });
  while (heads.length > 0) {
    let least = heads[0]!;
    for (const head of heads) {
      if (head.atUs < least.atUs || (head.atUs === least.atUs && head.source.name < least.source.name)) least = head;
    }
    yield { of: least.source.of, row: least.row };
    const next = least.source.rows.next();
    if (next.done === true) heads.splice(heads.indexOf(least), 1);
    else {
      least.row = next.value;
      // A run is written when it ends, and bears the time of its last event, which may be before its predecessor's.
      least.atUs = Math.max(least.atUs, next.value.time + least.source.clockUs);
    }
  }
}
