/** What a client is told when we answer ourselves: error pages, the operator's or our own, and heads of rules' answers. */
import { STATUS_CODES } from 'node:http';
import { extname } from 'node:path';

/** Sent whole to whoever is refused, and kept in every worker: a page, not a site. */
export const MAX_ERROR_PAGE_BYTES = 64 * 1024;
/** Stands in a page for the id of the request, so that a user can name it. */
const ID = '{id}';

const CONTENT_TYPES: Readonly<Record<string, string>> = {
  '.htm': 'text/html; charset=utf-8',
  '.html': 'text/html; charset=utf-8',
  '.json': 'application/json',
  '.xml': 'application/xml',
  '.svg': 'image/svg+xml',
  '.md': 'text/markdown; charset=utf-8',
};
const PLAIN = 'text/plain; charset=utf-8';

/** Plain data: it crosses threads. */
export type ErrorPageModel = { status: number; contentType: string; body: string };

/** @throws Error when the file isn't text in UTF-8, or is too long. */
export const errorPageOf = (status: number, file: string, content: Buffer): ErrorPageModel => {
  if (content.length > MAX_ERROR_PAGE_BYTES)
    throw new Error(`it has ${content.length} bytes; up to ${MAX_ERROR_PAGE_BYTES} are allowed`);
  const body = new TextDecoder('utf-8', { fatal: true }).decode(content);
  return { status, contentType: CONTENT_TYPES[extname(file).toLowerCase()] ?? PLAIN, body };
};

export type Fields = readonly (readonly [name: string, value: string])[];

/** An answer of our own, for any version of HTTP. The body is the same for HEAD, where it is not sent. */
export type Answer = { status: number; fields: Fields; body: Buffer };

const answerOf = (status: number, contentType: string, body: Buffer): Answer => ({
  status,
  fields: [
    ['Content-Type', contentType],
    ['Cache-Control', 'no-store'],
    ...(status === 503 ? ([['Retry-After', '1']] as const) : []),
  ],
  body,
});

const reasonOf = (status: number): string => STATUS_CODES[status] ?? 'Unknown';

/** Whether an answer of this status has a body: RFC 9110 sections 6.4.1, 15.3.5 and 15.3.6. */
const hasBody = (status: number): boolean => status >= 200 && status !== 204 && status !== 205 && status !== 304;

/** The page of one status, its bytes made at first use: to be closed or kept, with body or (for HEAD) without. */
class Page {
  readonly answer: Answer;
  /** With the id in it each answer has its own bytes. */
  readonly #template: string | null;
  #bytes: (Buffer | undefined)[] = [];

  constructor(status: number, contentType: string, body: string) {
    this.answer = answerOf(status, contentType, Buffer.from(body));
    this.#template = body.includes(ID) ? body : null;
  }

  answerFor(id: string): Answer {
    if (this.#template === null) return this.answer;
    return { ...this.answer, body: Buffer.from(this.#template.replaceAll(ID, () => id)) };
  }

  bytes(close: boolean, isHead: boolean, id: string): Buffer {
    if (this.#template !== null) return bytesOf(this.answerFor(id), close, isHead);
    const variant = (close ? 1 : 0) + (isHead ? 2 : 0);
    return (this.#bytes[variant] ??= bytesOf(this.answer, close, isHead));
  }
}

/** The operator's pages by status, as a worker has them. */
export class ErrorPages {
  #pages: Map<number, Page>;

  /** Later ones go before earlier ones: a backend's stand behind its frontend's. */
  constructor(models: readonly ErrorPageModel[]) {
    this.#pages = new Map(models.map((model) => [model.status, new Page(model.status, model.contentType, model.body)]));
  }

  page(status: number): Page | undefined {
    return this.#pages.get(status);
  }
}

const ownPages = new Map<number, Page>();

const pageOf = (status: number, custom: ErrorPages | null): Page => {
  let page = custom?.page(status) ?? ownPages.get(status);
  if (!page) {
    page = new Page(status, 'text/plain', `${status} ${reasonOf(status)}\n`);
    ownPages.set(status, page);
  }
  return page;
};

/** The page for an answer that isn't written in HTTP/1.1. */
export const errorAnswer = (status: number, custom: ErrorPages | null = null, id = ''): Answer =>
  pageOf(status, custom).answerFor(id);

/**
 * The whole answer, ready to be sent: with `Connection: close`, or, where nothing of the request is left unread, for a
 * connection that is kept. The bytes are shared: they are not to be changed.
 */
export const errorPage = (
  status: number,
  custom: ErrorPages | null = null,
  { close = true, isHead = false, id = '' }: { close?: boolean; isHead?: boolean; id?: string } = {},
): Buffer => pageOf(status, custom).bytes(close, isHead, id);

const bytesOf = ({ status, fields, body }: Answer, close: boolean, isHead: boolean): Buffer => {
  const head = answerHead(status, fields, body.length, close);
  return isHead || !hasBody(status) ? head : Buffer.concat([head, body]);
};

/**
 * The head of an answer that a rule makes. For HEAD `bodyLength` is that of the body which GET would get. A line end in a
 * value can't come from a strict parser, but would make two answers of one: RFC 9110 section 5.5 has a space for it.
 */
export const answerHead = (status: number, fields: Fields, bodyLength: number, close: boolean): Buffer => {
  let text = `HTTP/1.1 ${status} ${reasonOf(status)}\r\n`;
  for (const [name, value] of fields) text += `${name}: ${value.replaceAll(/[\r\n\0]/g, ' ')}\r\n`;
  // RFC 9110 section 8.6: none with 1xx and 204; RFC 9110 section 15.3.6: 205 has a body of no bytes.
  if (hasBody(status)) text += `Content-Length: ${bodyLength}\r\n`;
  else if (status === 205) text += 'Content-Length: 0\r\n';
  if (close) text += 'Connection: close\r\n';
  return Buffer.from(`${text}\r\n`, 'latin1');
};
