/** Parts of frontends and backends about responses: compression and error pages. */
import { z } from 'zod';
import { ENCODINGS } from '../proxy/compression.ts';
import { parseSize } from './units.ts';

/** A type, all of one kind, or all with one suffix (RFC 6838 section 4.2). */
const TYPE = /^(?:[a-z0-9!#$&^_.+-]+\/(?:[a-z0-9!#$&^_.+-]+|\*)|\+[a-z0-9.-]+)$/;

const DEFAULT_TYPES = [
  'text/*',
  'application/json',
  'application/javascript',
  'application/xml',
  'application/wasm',
  'image/svg+xml',
  '+json',
  '+xml',
];

const bytes = z
  .union([z.string(), z.number()], { error: 'not a size; allowed are forms like 512B, 1KiB' })
  .transform((value, context) => {
    const size = parseSize(String(value));
    if (size !== null) return size;
    const message = `${JSON.stringify(value)} is not a size; allowed are forms like 512B, 1KiB`;
    context.addIssue({ code: 'custom', message });
    return z.NEVER;
  });

const contentType = z
  .string()
  .transform((text) => text.toLowerCase())
  .refine((text) => TYPE.test(text), { error: 'not a content type; allowed are forms like text/html, text/*, +json' });

/** `compression: {}` compresses the usual types; without the key nothing is compressed. */
export const compressionSchema = z
  .strictObject({
    encodings: z
      .array(z.enum(ENCODINGS))
      .min(1)
      .default(['br', 'gzip'])
      .describe('In order of preference where the client has none.'),
    types: z
      .array(contentType)
      .min(1)
      .default(DEFAULT_TYPES)
      .describe('Content types; text/* and +json stand for many.'),
    minSize: bytes.prefault('1KiB').describe('Responses known to be shorter stay as they are.'),
    levels: z
      .strictObject({
        gzip: z.int().min(1).max(9).default(1).describe('Higher costs CPU: 6 takes 2.5 times that of 1 for 15 % less.'),
        br: z.int().min(0).max(11).default(3).describe('Above 4 it costs more memory and many times the CPU.'),
        zstd: z.int().min(1).max(19).default(1),
      })
      .prefault({}),
  })
  .transform(({ minSize, ...rest }) => ({ ...rest, minBytes: minSize }));

/** Status → file with the body of the answer. */
export const errorPagesSchema = z
  .record(
    z.string().regex(/^[45]\d\d$/, { error: 'not the status of an error; allowed are 400 to 599' }),
    z.string().min(1).describe('File with the body; its ending says the type. {id} becomes the id of the request.'),
  )
  .describe('What clients are told instead of the built-in text, by status.');
