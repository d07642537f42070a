/** Node's own parser, llhttp in its strict mode, as an oracle: it is fed one message and says how it read it. */
import { createRequire } from 'node:module';

type HeadersComplete = (
  major: number,
  minor: number,
  fields: string[] | undefined,
  method: number,
  url: string | undefined,
  status: number,
  reason: string | undefined,
  upgrade: boolean,
  keepAlive: boolean,
) => number;

type Parser = {
  initialize(type: number, resource: object, maxHeaderBytes: number, lenient: number): void;
  execute(bytes: Buffer): number | (Error & { code: string });
  finish(): undefined | (Error & { code: string });
  [callback: number]: ((...parameters: never[]) => unknown) | null;
};

type Binding = {
  HTTPParser: {
    new (): Parser;
    REQUEST: number;
    RESPONSE: number;
    kOnMessageBegin: number;
    kOnHeaders: number;
    kOnHeadersComplete: number;
    kOnBody: number;
    kOnMessageComplete: number;
    kLenientNone: number;
  };
  methods: string[];
};

const { HTTPParser, methods: commonMethods } = createRequire(import.meta.url)('_http_common') as Binding;

/** Those whose numbers are the same in its list of all methods. */
export const KNOWN_METHODS: ReadonlySet<string> = new Set(commonMethods.slice(0, 34));

/** Above all limits of ours. */
const MAX_HEADER_BYTES = 1024 * 1024;

export type Reading = {
  minor: number;
  /** Of a request; empty for a response. */
  method: string;
  target: string;
  /** Of a response; 0 for a request. */
  status: number;
  reason: string;
  /** Names and values in turn. */
  fields: string[];
  payload: string;
  keepAlive: boolean;
};

export type Verdict = {
  /** The code of its refusal. */
  error: string | null;
  reading: Reading | null;
  /** How many messages were complete before the last byte, and with it. */
  completeBefore: number;
  complete: number;
};

const nothing: Verdict = { error: null, reading: null, completeBefore: 0, complete: 0 };
let verdict: Verdict = nothing;
let fields: string[] = [];
let target = '';
let skipsBody = false;

const parser = new HTTPParser();
const onHeadersComplete: HeadersComplete = (_major, minor, last, method, url, status, reason, _upgrade, keepAlive) => {
  verdict.reading = {
    minor,
    method: commonMethods[method] ?? '',
    target: url ?? target,
    status: status || 0,
    reason: reason ?? '',
    fields: last ?? fields,
    payload: '',
    keepAlive,
  };
  return skipsBody ? 1 : 0;
};

const begin = (type: number): void => {
  parser.initialize(type, {}, MAX_HEADER_BYTES, HTTPParser.kLenientNone);
  parser[HTTPParser.kOnHeaders] = (some: string[], url: string) => {
    if (verdict.reading) return;
    fields.push(...some);
    target += url;
  };
  parser[HTTPParser.kOnHeadersComplete] = onHeadersComplete;
  parser[HTTPParser.kOnBody] = (bytes: Buffer) => {
    verdict.reading!.payload += bytes.toString('latin1');
  };
  parser[HTTPParser.kOnMessageComplete] = () => {
    verdict.complete++;
  };
};

/**
 * Reads `bytes` as one message; the last byte comes alone, so that a message which ends before it is found out. `untilClose`:
 * the connection ends behind it. `skipBody`: it answers HEAD.
 */
export const readByLlhttp = (
  kind: 'request' | 'response',
  bytes: Buffer,
  { untilClose = false, skipBody = false } = {},
): Verdict => {
  verdict = { ...nothing };
  fields = [];
  target = '';
  skipsBody = skipBody;
  begin(kind === 'request' ? HTTPParser.REQUEST : HTTPParser.RESPONSE);
  const last = Math.max(0, bytes.length - 1);
  for (const part of [bytes.subarray(0, last), bytes.subarray(last)]) {
    verdict.completeBefore = verdict.complete;
    const result = parser.execute(part);
    if (typeof result === 'number') continue;
    verdict.error = result.code;
    return verdict;
  }
  if (untilClose) verdict.error = parser.finish()?.code ?? null;
  return verdict;
};
