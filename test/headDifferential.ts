/**
 * What our parser accepts, llhttp accepts too and reads alike: method, target, fields, payload, and where the message
 * ends; what we send on for it as well; and it makes no difference where the input was split.
 *
 *     node test/headDifferential.ts [mutations] [seed]
 */
import { seededRandom } from '../actors/random.ts';
import { Body } from '../src/proxy/framing.ts';
import { nameOf, valueOf } from '../src/proxy/fields.ts';
import { parseRequest, parseResponse, RequestHead } from '../src/proxy/head.ts';
import type { ResponseHead } from '../src/proxy/head.ts';
import { writeRequestHead, writeResponseHead } from '../src/proxy/headWriter.ts';
import type { HeaderEdit } from '../src/proxy/headEdits.ts';
import { REQUESTS, RESPONSES } from './headCorpus.ts';
import { KNOWN_METHODS, readByLlhttp } from './llhttp.ts';
import type { Reading } from './llhttp.ts';

type Kind = 'request' | 'response';

/** A message as we read it. */
type Message = Reading & {
  /** Where it starts, behind empty lines, and how far it was read. */
  start: number;
  end: number;
  framing: string;
  complete: boolean;
  /** The head as it is sent on, without edits and with one. */
  sent: string[];
};

type Outcome = { messages: Message[]; verdict: string };

/** Bytes that parsers have read differently, and lines that matter. */
const PIECES = [
  ...[
    '\r',
    '\n',
    '\r\n',
    '\r\n\r\n',
    '\n\n',
    ' ',
    '\t',
    '  ',
    '\0',
    '\x01',
    '\x0b',
    '\x0c',
    '\x1f',
    '\x7f',
    '\x80',
    '\x85',
    '\xa0',
    '\xff',
  ],
  ...[
    ':',
    ': ',
    ' :',
    ',',
    ', ',
    ';',
    '=',
    '"',
    '\\',
    '/',
    '//',
    '?',
    '#',
    '%',
    '@',
    '*',
    '[',
    ']',
    '+',
    '-',
    '_',
    '.',
    '0',
    '1',
    '5',
    'a',
    'f',
    'G',
    'x',
    '0x',
  ],
  ...[
    'Content-Length: 5\r\n',
    'Content-Length: 0\r\n',
    'content-length:1\r\n',
    'Transfer-Encoding: chunked\r\n',
    'transfer-encoding:chunked\r\n',
    'Transfer-Encoding: identity\r\n',
  ],
  ...[
    'chunked',
    'gzip, ',
    'identity',
    'Connection: close\r\n',
    'Connection: keep-alive\r\n',
    'Connection: content-length\r\n',
    'Connection: x, host\r\n',
    'Connection: upgrade\r\n',
    'Upgrade: websocket\r\n',
    'Upgrade: h2c\r\n',
  ],
  ...[
    'Host: b\r\n',
    'HTTP/1.0',
    'HTTP/1.1',
    'HTTP/2.0',
    'http://b',
    'https://c:1/',
    'X: 1\r\n',
    'X-_: \t\r\n',
    'X:\r\n',
    ' folded\r\n',
    'Keep-Alive: 1\r\n',
    'TE: trailers\r\n',
    'Expect: 100-continue\r\n',
    'X-Forwarded-Proto: https\r\n',
    'X-Forwarded-For: 9.9.9.9\r\n',
  ],
  ...[
    'GET ',
    'POST ',
    'HEAD ',
    'OPTIONS ',
    'GET / HTTP/1.1\r\nHost: c\r\n\r\n',
    'HTTP/1.1 200 OK\r\n',
    '100',
    '101',
    '204',
    '304',
    ';a',
    ';a=b',
    ';a="b"',
    '0\r\n\r\n',
    '5\r\nhello\r\n',
    '1;a\r\nb\r\n',
    'hello',
  ],
];

const OUT = Buffer.alloc(256 * 1024);
const NO_EDITS: readonly HeaderEdit[] = [];

const fieldsOf = ({ fields }: RequestHead | ResponseHead): string[] =>
  Array.from({ length: fields.count }, (_, index) => [nameOf(fields, index), valueOf(fields, index)]).flat();

const sentOn = (head: RequestHead | ResponseHead, hostile: string): string[] =>
  [NO_EDITS, [{ kind: 'set' as const, name: 'X-Edit', value: hostile }]].map((edits) => {
    const length =
      head instanceof RequestHead
        ? writeRequestHead(OUT, 0, head, {
            target: edits.length === 0 ? null : `/${hostile}`,
            defaultHost: '127.0.0.1:80',
            upgrade: head.upgrade === 'websocket',
            forwardedFor: '192.0.2.1',
            forwardedProto: 'http',
            edits,
          })
        : writeResponseHead(OUT, 0, head, { dropTransferEncoding: false, dropContentLength: false, edits, extra: '' });
    return OUT.toString('latin1', 0, length);
  });

/** Behind empty lines. */
const firstLine = (input: Buffer, at: number): number => {
  while (input[at] === 13) at += 2;
  return at;
};

/** Reads messages one behind the other; the input arrives up to each of the cuts in turn. */
const read = (kind: Kind, input: Buffer, requestMethod: string, cuts: readonly number[]): Outcome => {
  const messages: Message[] = [];
  let message: Message | null = null;
  let body: Body | null = null;
  let at = 0;
  for (const arrived of cuts) {
    for (;;) {
      if (!message || !body) {
        if (at >= arrived) break;
        const head =
          kind === 'request' ? parseRequest(input, at, arrived) : parseResponse(input, requestMethod, at, arrived);
        if (head === 'more') break;
        if (typeof head === 'number') return { messages, verdict: String(head) };
        const isRequest = head instanceof RequestHead;
        message = {
          minor: head.minor,
          method: isRequest ? head.method : '',
          target: isRequest ? head.fields.bytes.toString('latin1', head.targetStart, head.targetEnd) : '',
          status: isRequest ? 0 : head.status,
          reason: isRequest ? '' : input.toString('latin1', head.reasonStart, head.reasonEnd),
          fields: fieldsOf(head),
          payload: '',
          keepAlive: head.keepAlive,
          start: isRequest ? firstLine(input, at) : at,
          end: at + head.length,
          framing: `${head.framing} ${head.contentLength}`,
          complete: false,
          sent: sentOn(head, input.toString('latin1', 0, 40)),
        };
        messages.push(message);
        body = new Body(head.framing, head.contentLength);
        at += head.length;
      }
      const reading: Message = message;
      at += body.take(
        input,
        (start, end) => {
          reading.payload += input.toString('latin1', start, end);
        },
        at,
        arrived,
      );
      message.end = at;
      if (body.broken) return { messages, verdict: 'broken' };
      if (!body.done) break;
      message.complete = true;
      if (!message.keepAlive || message.status === 101) return { messages, verdict: 'last' };
      message = null;
      body = null;
    }
  }
  return { messages, verdict: 'more' };
};

/** What is wrong with one message as llhttp reads it; null for nothing. */
const differenceOf = (kind: Kind, input: Buffer, message: Message, requestMethod: string): string | null => {
  let bytes = input.subarray(message.start, message.end);
  let { method } = message;
  if (kind === 'request' && !KNOWN_METHODS.has(method)) {
    // RFC 9110 section 9.1 lets other methods be passed on than the list that llhttp knows.
    bytes = Buffer.concat([Buffer.from('PUT'), bytes.subarray(method.length)]);
    method = 'PUT';
  }
  const untilClose = message.framing.startsWith('untilClose');
  const theirs = readByLlhttp(kind, bytes, { untilClose, skipBody: requestMethod === 'HEAD' });
  if (theirs.error !== null) return `llhttp refuses it: ${theirs.error}`;
  if (!theirs.reading) return 'llhttp sees no head';
  if (theirs.completeBefore !== 0) return 'llhttp sees its end before';
  const complete = message.complete || untilClose;
  if (theirs.complete !== (complete ? 1 : 0)) return `complete: ${complete}, for llhttp ${theirs.complete}`;
  const ours: Reading = {
    minor: message.minor,
    method,
    target: message.target,
    status: message.status,
    reason: message.reason,
    fields: message.fields,
    payload: message.payload,
    // Compared below: a connection that we close may be kept by others.
    keepAlive: false,
  };
  const theirKeepAlive = theirs.reading.keepAlive;
  theirs.reading.method = kind === 'request' ? theirs.reading.method : '';
  theirs.reading.keepAlive = false;
  const [oursText, theirsText] = [JSON.stringify(ours), JSON.stringify(theirs.reading)];
  if (oursText !== theirsText) return `read as ${oursText}\nby llhttp as ${theirsText}`;
  // RFC 9112 appendix C.2.2: Proxy-Connection means nothing; to llhttp it is Connection. And it judges
  // before it is told that this answers HEAD.
  const isForProxies = message.fields.some((name, at) => at % 2 === 0 && /^proxy-connection$/i.test(name));
  if (message.keepAlive && !theirKeepAlive && !isForProxies && requestMethod !== 'HEAD')
    return 'llhttp would close the connection';
  return null;
};

/** What is wrong with the heads that would be sent on. */
const sentDifferenceOf = (kind: Kind, message: Message, requestMethod: string): string | null => {
  for (const [index, sent] of message.sent.entries()) {
    const bytes = Buffer.from(sent, 'latin1');
    const head = kind === 'request' ? parseRequest(bytes) : parseResponse(bytes, requestMethod);
    // What we add can bring it above our own limits.
    if (head === 431 || (head === 502 && bytes.length > 15_000) || (head === 502 && message.fields.length > 190))
      continue;
    if (typeof head !== 'object') return `we refuse what is sent on: ${JSON.stringify(sent)}`;
    const isRequest = head instanceof RequestHead;
    if (head.length !== bytes.length) return `sent on as more than one head: ${JSON.stringify(sent)}`;
    const framing = `${head.framing} ${head.contentLength}`;
    // Neither length nor coding may be sent with an answer that can't have content.
    const mayDiffer = message.status === 204 || (message.status > 0 && message.status < 200);
    if (framing !== message.framing && !(mayDiffer && framing.startsWith('none')))
      return `sent on with framing ${framing}, came with ${message.framing}`;
    if (isRequest ? head.method !== message.method : head.status !== message.status) return 'sent on as another';
    const names = fieldsOf(head).filter((_, at) => at % 2 === 0);
    const lower = names.map((name) => name.toLowerCase());
    if (isRequest && lower.filter((name) => name === 'host').length !== 1) return 'sent on without one Host';
    if (lower.filter((name) => name === 'x-edit').length < index) return 'sent on without the edit';
    const ending = lower.find((name) => /^(?:proxy-connection|keep-alive|http2-settings)$/.test(name));
    if (ending !== undefined) return `sent on with ${ending}`;
    const { upgrade } = head;
    if (upgrade !== null && (upgrade !== 'websocket' || !isRequest)) return `sent on with upgrade ${upgrade}`;
    const known = isRequest && !KNOWN_METHODS.has(head.method);
    const theirs = readByLlhttp(
      kind,
      known ? Buffer.concat([Buffer.from('PUT'), bytes.subarray(head.method.length)]) : bytes,
      { skipBody: requestMethod === 'HEAD' },
    );
    if (theirs.error !== null || !theirs.reading)
      return `llhttp refuses what is sent on: ${theirs.error}, ${JSON.stringify(sent)}`;
    if (JSON.stringify(theirs.reading.fields) !== JSON.stringify(fieldsOf(head))) return 'sent on with other fields';
  }
  return null;
};

export type Summary = {
  tried: number;
  /** Inputs with at least one accepted message, and accepted messages. */
  accepted: number;
  messages: number;
  complete: number;
  /** How often each outcome was. */
  verdicts: Record<string, number>;
  /** The first difference that was found. */
  difference: { kind: Kind; requestMethod: string; input: string; cuts: number[]; what: string } | null;
};

/** The corpus as it is, then so many mutations of it; ends at the first difference. */
export const runDifferential = (
  mutations: number,
  seed: number,
  onProgress: (summary: Summary) => void = () => {},
): Summary => {
  const random = seededRandom(seed);
  const below = (limit: number): number => Math.floor(random() * limit);
  const pick = <T>(from: readonly T[]): T => from[below(from.length)]!;
  const summary: Summary = { tried: 0, accepted: 0, messages: 0, complete: 0, verdicts: {}, difference: null };

  const mutate = (text: string, corpus: readonly string[]): string => {
    for (let count = 1 + below(3); count > 0; count--) {
      const at = below(text.length + 1);
      const line = text.indexOf('\r\n', at);
      const lineEnd = line === -1 ? text.length : line + 2;
      switch (below(9)) {
        case 0:
          text = text.slice(0, at) + text.slice(at + 1 + below(4));
          break;
        case 1: {
          const piece = pick(PIECES);
          text = text.slice(0, at) + piece + text.slice(at + piece.length);
          break;
        }
        case 2:
        case 3:
          text = text.slice(0, at) + pick(PIECES) + text.slice(at);
          break;
        case 4:
        case 5:
          // Whole lines are where the tricky fields belong.
          text = text.slice(0, lineEnd) + pick(PIECES) + text.slice(lineEnd);
          break;
        case 6: {
          const flipped = String.fromCharCode((text.charCodeAt(at) || 0) ^ (1 << below(8)));
          text = text.slice(0, at) + flipped + text.slice(at + 1);
          break;
        }
        case 7: {
          // A line of its own, once more.
          const start = text.lastIndexOf('\r\n', at);
          text = text.slice(0, lineEnd) + text.slice(start === -1 ? 0 : start + 2, lineEnd) + text.slice(lineEnd);
          break;
        }
        case 8: {
          const other = pick(corpus);
          text = text.slice(0, at) + other.slice(below(other.length + 1));
          break;
        }
      }
      if (text.length > 20_000) text = text.slice(0, 20_000);
    }
    return text;
  };

  const consider = (kind: Kind, text: string, requestMethod: string): boolean => {
    const input = Buffer.from(text, 'latin1');
    const whole = [input.length];
    const outcome = read(kind, input, requestMethod, whole);
    summary.tried++;
    summary.messages += outcome.messages.length;
    if (outcome.messages.length > 0) summary.accepted++;
    const verdict = `${kind} ${outcome.verdict}`;
    summary.verdicts[verdict] = (summary.verdicts[verdict] ?? 0) + 1;
    const differ = (what: string, cuts: number[]): boolean => {
      summary.difference = { kind, requestMethod, input: text, cuts, what };
      return false;
    };
    for (const message of outcome.messages) {
      if (message.complete) summary.complete++;
      const what = differenceOf(kind, input, message, requestMethod) ?? sentDifferenceOf(kind, message, requestMethod);
      if (what !== null) return differ(what, whole);
    }
    const cuts = Array.from({ length: 1 + below(4) }, () => below(input.length + 1)).sort((a, b) => a - b);
    cuts.push(input.length);
    const split = read(kind, input, requestMethod, cuts);
    const [once, inParts] = [JSON.stringify(outcome), JSON.stringify(split)];
    return once === inParts || differ(`at once ${once}\nin parts ${inParts}`, cuts);
  };

  const accepted: Record<Kind, string[]> = { request: [], response: [] };
  for (const kind of ['request', 'response'] as const)
    for (const text of kind === 'request' ? REQUESTS : RESPONSES) {
      const before = summary.accepted;
      for (const method of kind === 'request' ? [''] : ['GET', 'HEAD'])
        if (!consider(kind, text, method)) return summary;
      if (summary.accepted > before) accepted[kind].push(text);
    }
  for (let count = 1; count <= mutations; count++) {
    const kind = below(5) < 3 ? 'request' : 'response';
    const corpus = kind === 'request' ? REQUESTS : RESPONSES;
    const method = kind === 'request' ? '' : below(6) === 0 ? 'HEAD' : 'GET';
    // Most mutations of what is refused are refused too.
    const text = pick(below(4) === 0 ? corpus : accepted[kind]);
    if (!consider(kind, mutate(text, corpus), method)) return summary;
    if (count % 50_000 === 0) onProgress(summary);
  }
  return summary;
};

if (import.meta.main) {
  const mutations = Number(process.argv[2] ?? 1_000_000);
  const seed = Number(process.argv[3] ?? 9112);
  const { difference, ...counts } = runDifferential(mutations, seed, ({ tried, accepted, messages }) => {
    console.error(`${tried} tried, ${accepted} accepted with ${messages} messages`);
  });
  console.log(JSON.stringify({ seed, ...counts }, null, 2));
  if (difference) {
    const { kind, requestMethod, input, cuts, what } = difference;
    console.log(
      `\nA ${kind}${requestMethod && ` to ${requestMethod}`} is read differently, of arrival at ${cuts.join(', ')}:`,
    );
    console.log(JSON.stringify(input));
    console.log(what);
    console.log(`\nnode test/headDifferential.ts ${mutations} ${seed}`);
    process.exitCode = 1;
  }
}
