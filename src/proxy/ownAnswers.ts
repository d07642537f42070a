/** Answers that no server gave: what a rule says, and refusals. */
import { answerHead, errorAnswer, errorPage, ErrorPages } from './errorPages.ts';
import type { ErrorPageModel } from './errorPages.ts';
import type { Answer } from './rules.ts';

type PageModels = readonly ErrorPageModel[];

/** The bytes of pages are made once for each configuration. */
const pages = new WeakMap<PageModels, ErrorPages>();

const pagesOf = (models: PageModels): ErrorPages => {
  let known = pages.get(models);
  if (!known) {
    known = new ErrorPages(models);
    pages.set(models, known);
  }
  return known;
};

export type AnswerForm = { id: string; close: boolean; isHead: boolean };

/** Whole, ready to be sent. A backend's pages go before those of the frontend. */
export const refusalOf = (status: number, form: AnswerForm, frontend: PageModels, backend: PageModels = []): Buffer => {
  const isBackends = backend.some((page) => page.status === status);
  return errorPage(status, pagesOf(isBackends ? backend : frontend), form);
};

export const ownAnswer = (answer: Answer, form: AnswerForm, frontend: PageModels): Buffer => {
  const { status, headers, body } = answer;
  if (body !== null) return joined(status, headers, Buffer.from(body), form);
  if (headers.length === 0) return refusalOf(status, form, frontend);
  const page = errorAnswer(status, pagesOf(frontend), form.id);
  return joined(status, [...headers, ...page.fields], page.body, form);
};

const joined = (status: number, fields: Answer['headers'], body: Buffer, { close, isHead }: AnswerForm): Buffer => {
  const head = answerHead(status, fields, body.length, close);
  const isBodiless = isHead || status === 204 || status === 205 || status === 304;
  return isBodiless ? head : Buffer.concat([head, body]);
};
