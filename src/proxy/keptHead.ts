/** Copies of heads that outlive the input that they came in. */
import { scratch } from './fieldParser.ts';
import { OFFSETS } from './fields.ts';
import type { Fields } from './fields.ts';

/**
 * They share slabs: a view and memory of its own would cost more than parsing a small head. They are small, because
 * one head that stays for long (of a response that never ends) keeps the whole slab.
 */
const SLAB_BYTES = 8 * 1024;
let slab = Buffer.allocUnsafeSlow(SLAB_BYTES);
let slabUsed = 0;

/** Copies the head in `scratch`, which ends at `end`: the input isn't needed any more. */
export const keepFields = (end: number): Fields => {
  const { bytes, start, count, offsets } = scratch;
  const length = end - start;
  let kept = slab;
  let at = slabUsed;
  if (length > SLAB_BYTES) {
    kept = Buffer.allocUnsafeSlow(length);
    at = 0;
  } else {
    if (at + length > SLAB_BYTES) {
      slab = kept = Buffer.allocUnsafeSlow(SLAB_BYTES);
      at = 0;
    }
    slabUsed = at + length;
  }
  bytes.copy(kept, at, start, end);
  const shift = at - start;
  const keptOffsets = offsets.slice(0, count * OFFSETS + 1);
  for (let offset = 0; offset < count * OFFSETS; offset += OFFSETS) {
    keptOffsets[offset] = offsets[offset]! + shift;
    keptOffsets[offset + 1] = offsets[offset + 1]! + shift;
    keptOffsets[offset + 2] = offsets[offset + 2]! + shift;
    keptOffsets[offset + 3] = offsets[offset + 3]! + shift;
  }
  keptOffsets[count * OFFSETS] = offsets[count * OFFSETS]! + shift;
  return { bytes: kept, start: at, offsets: keptOffsets, count };
};
