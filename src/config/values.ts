/** Values that several parts of the schema share. */
import { z } from 'zod';
import { parseDuration, parseSize } from './units.ts';

/** Timers of JavaScript hold 31 bits of milliseconds: 24.8 days. */
const LONGEST_DURATION_MS = 2 ** 31 - 1;

const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]*$/;
export const name = z
  .string()
  .regex(NAME, { error: 'not a name; allowed are letters, digits, ".", "_" and "-"' })
  // The one name that no plain object can carry.
  .refine((text) => text !== '__proto__', { error: 'not a name that can be used; take another one' });

export const duration = (what: { min?: number; max?: number } = {}) =>
  z
    .union([z.string(), z.number()], { error: 'not a duration; allowed are forms like 500ms, 2s, 1m' })
    .transform((value, context) => {
      const ms = parseDuration(String(value));
      const problem =
        ms === null
          ? 'not a duration; allowed are forms like 500ms, 2s, 1m'
          : ms < (what.min ?? 0)
            ? `too short; at least ${what.min}ms is allowed`
            : ms > (what.max ?? LONGEST_DURATION_MS)
              ? `too long; at most ${what.max ?? LONGEST_DURATION_MS}ms is allowed`
              : null;
      if (problem === null) return ms!;
      context.addIssue({ code: 'custom', message: `${JSON.stringify(value)} is ${problem}` });
      return z.NEVER;
    });

export const size = () =>
  z
    .union([z.string(), z.number()], { error: 'not a size; allowed are forms like 512KiB, 10GiB' })
    .transform((value, context) => {
      const bytes = parseSize(String(value));
      if (bytes !== null) return bytes;
      context.addIssue({
        code: 'custom',
        message: `${JSON.stringify(value)} is not a size; allowed are forms like 512KiB, 10GiB`,
      });
      return z.NEVER;
    });

/** A secret: the text itself, or the file that holds it. */
export const secret = z.union([z.string().min(1), z.strictObject({ file: z.string().min(1) })]);
