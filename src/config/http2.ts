/** HTTP/2 at a frontend: what its clients may ask for at a time. */
import { z } from 'zod';
import { parseSize } from './units.ts';

/** RFC 9113 section 6.9.1: a flow-control window holds 31 bits. */
const LARGEST_WINDOW_BYTES = 2 ** 31 - 1;
/** What HTTP/1.1 allows for a head is the bound anyway; less than this and browsers' cookies don't fit. */
const SMALLEST_HEADER_LIST_BYTES = 4 * 1024;
const LARGEST_HEADER_LIST_BYTES = 64 * 1024;

const bytesBetween = (least: number, most: number) =>
  z
    .union([z.string(), z.number()], { error: 'not a size; allowed are forms like 64KiB, 1MiB' })
    .transform((value, context) => {
      const bytes = typeof value === 'number' ? value : parseSize(value);
      const problem =
        bytes === null || !Number.isSafeInteger(bytes)
          ? 'not a size; allowed are forms like 64KiB, 1MiB'
          : bytes < least || bytes > most
            ? `out of range; allowed are ${least} to ${most} bytes`
            : null;
      if (problem === null) return bytes!;
      context.addIssue({ code: 'custom', message: `${JSON.stringify(value)} is ${problem}` });
      return z.NEVER;
    });

/** Of a frontend. */
export const http2Schema = z.strictObject({
  maxConcurrentStreams: z
    .int()
    .min(1)
    .max(10_000)
    .default(100)
    .describe('Requests at a time on one connection. Each may have an upload of initialWindow waiting in memory.'),
  initialWindow: bytesBetween(65_535, LARGEST_WINDOW_BYTES)
    .prefault(65_535)
    .describe(
      'Bytes that a client may send of one body ahead of the server: an upload gets this much in a round trip.',
    ),
  maxHeaderList: bytesBetween(SMALLEST_HEADER_LIST_BYTES, LARGEST_HEADER_LIST_BYTES)
    .prefault('16KiB')
    .describe('Bytes of a request’s fields, counted as RFC 9113 section 6.5.2 says.'),
});

export type Http2Limits = z.output<typeof http2Schema>;
