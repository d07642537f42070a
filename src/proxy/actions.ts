/** Actions of rules, compiled to functions of a request that tell what they change in the decision about it. */
import { BasicAuth } from './basicAuth.ts';
import { bytesOf, compilePattern, replaceWhole } from './pattern.ts';
import { withoutParameter } from './queryString.ts';
import { compileLimit } from './rateLimit.ts';
import type { RequestView } from './requestView.ts';
import type { ActionModel, HeaderEditModel } from './ruleModel.ts';
import type { HeaderEdit } from './headEdits.ts';
import type { Answer, RuleContext } from './rules.ts';
import type { Template } from './template.ts';
import { compileTemplate } from './template.ts';

/** What an action adds to a decision. One that is shared is the same object each time, and decisions with it are kept. */
export type Change = {
  readonly backend: string | null;
  readonly answer: Answer | null;
  readonly requestEdits: readonly HeaderEdit[];
  readonly responseEdits: readonly HeaderEdit[];
  readonly wait: ((resume: () => void) => void) | null;
  readonly ends: boolean;
  readonly isShared: boolean;
};

/** Null: nothing but, perhaps, path and query in the view. */
export type Action = (view: RequestView) => Change | null;

const NONE: Change = {
  backend: null,
  answer: null,
  requestEdits: [],
  responseEdits: [],
  wait: null,
  ends: false,
  isShared: false,
};

const shared = (change: Partial<Change>): Change => Object.freeze({ ...NONE, ...change, isShared: true });

const always =
  (change: Change): Action =>
  () =>
    change;

const answering = (
  status: number,
  headers: Answer['headers'] = [],
  body: string | null = null,
  delayMs = 0,
): Partial<Change> => ({ answer: Object.freeze({ status, headers, body, delayMs }), ends: true });

/** What can't be done with this request: a Host that is none, a target longer than a server takes. */
const BAD_REQUEST = shared(answering(400));
const TOO_LONG = shared(answering(414));
const UNAVAILABLE = shared(answering(503, [['Retry-After', '1']]));
const ACCEPTED = shared({ ends: true });
/** In mode tcp only that there is an answer counts: it is that the connection is closed. */
const REJECTED = shared(answering(403));

/** As long as the request line that the parser takes. */
const MAX_TARGET_BYTES = 8 * 1024;

export const compileAction = (model: ActionModel, context: RuleContext): Action => {
  switch (model.kind) {
    case 'use':
      return always(shared({ backend: model.backend }));
    case 'accept':
      return always(ACCEPTED);
    case 'reject':
      return always(REJECTED);
    case 'answer':
      return compileAnswer(model);
    case 'redirect':
      return compileRedirect(model.location, model.status);
    case 'editHeaders':
      return compileEdits(model.of, model.edits);
    case 'setPath': {
      const template = compileTemplate(model.template, 'path');
      return rewriting((view) => {
        view.path = rooted(template.render(view));
      });
    }
    case 'replacePath': {
      const pattern = compilePattern(model.pattern);
      const text = bytesOf(model.text);
      return rewriting((view) => {
        const path = replaceWhole(view.path, pattern, text);
        if (path !== view.path) view.path = rooted(path.replaceAll(NOT_IN_PATH, percentEncoded));
      });
    }
    case 'setQuery':
      return compileSetQuery(model.query);
    case 'rateLimit': {
      const take = compileLimit(model, () => context.nowMs());
      return (view) => {
        const waitMs = take(view);
        if (waitMs === 0) return null;
        return { ...NONE, ...answering(model.status, [['Retry-After', String(Math.ceil(waitMs / 1000))]]) };
      };
    }
    case 'authenticate':
      return compileAuthentication(model.realm, model.users);
  }
};

const compileAnswer = ({ status, headers, body, delayMs }: Extract<ActionModel, { kind: 'answer' }>): Action => {
  const templates = headers.map(([name, text]) => [name, compileTemplate(text, 'header')] as const);
  const render = (view: RequestView) => templates.map(([name, template]) => [name, template.render(view)] as const);
  if (templates.some(([, { constant }]) => constant === null))
    return (view) => ({ ...NONE, ...answering(status, render(view), body, delayMs) });
  const constant = templates.map(([name, template]) => [name, template.constant ?? ''] as const);
  return always(shared(answering(status, constant, body, delayMs)));
};

const compileRedirect = (text: string, status: number): Action => {
  const template = compileTemplate(text, 'location');
  const isElsewhere = text.startsWith('//');
  const to = (location: string) => answering(status, [['Location', location]], '');
  if (template.constant !== null) return always(shared(to(template.constant)));
  return (view) => {
    if (template.usesHost && view.host === '') return BAD_REQUEST;
    const location = template.render(view);
    // A path that begins with // must not become a host: `GET //evil.example/` and {uri}.
    const isFooled = !isElsewhere && location.startsWith('//');
    return { ...NONE, ...to(isFooled ? location.replace(/^\/+/, '/') : location) };
  };
};

/** RFC 3986 section 3.2: what a Host may consist of. */
const HOST = /^[\w\-.~!$&'()*+,;=:[\]%]+$/;
/** Values of the few variables that vary little are remembered up to this many. */
const MAX_REMEMBERED = 64;

type CompiledEdit = { model: HeaderEditModel; make: (view: RequestView) => HeaderEdit; template: Template | null };

const compileEdits = (of: 'request' | 'response', models: HeaderEditModel[]): Action => {
  const edits = models.map(compileEdit);
  const changeOf = (list: readonly HeaderEdit[]): Partial<Change> =>
    of === 'request' ? { requestEdits: list } : { responseEdits: list };
  const templates = edits.flatMap(({ template }) => (template ? [template] : []));
  const make = (view: RequestView) => edits.map((edit) => edit.make(view));
  const hostEdit = edits.find(({ model }) => of === 'request' && model.name.toLowerCase() === 'host');
  const isBad = (list: readonly HeaderEdit[]) =>
    hostEdit !== undefined && !HOST.test(list[edits.indexOf(hostEdit)]!.value);
  const varying = templates.filter(({ constant }) => constant === null);
  if (!varying.every(({ isFew }) => isFew)) {
    return (view) => {
      const list = make(view);
      return isBad(list) ? BAD_REQUEST : { ...NONE, ...changeOf(list) };
    };
  }
  const remembered = new Map<string, Change>();
  const keyOf =
    varying.length === 1
      ? (view: RequestView) => varying[0]!.render(view)
      : (view: RequestView) => varying.map((template) => template.render(view)).join('\n');
  const changeFor = (view: RequestView, key: string): Change => {
    const list = Object.freeze(make(view));
    const change = isBad(list) ? BAD_REQUEST : shared(changeOf(list));
    if (remembered.size < MAX_REMEMBERED) remembered.set(key, change);
    return change;
  };
  if (varying.length === 0) {
    let only: Change | null = null;
    return (view) => (only ??= changeFor(view, ''));
  }
  return (view) => {
    const key = keyOf(view);
    return remembered.get(key) ?? changeFor(view, key);
  };
};

const compileEdit = (model: HeaderEditModel): CompiledEdit => {
  const { name } = model;
  if (model.kind === 'remove') {
    const edit = { kind: model.kind, name, value: '' };
    return { model, template: null, make: () => edit };
  }
  if (model.kind === 'replace') {
    const edit = { kind: model.kind, name, pattern: compilePattern(model.pattern), value: bytesOf(model.text) };
    return { model, template: null, make: () => edit };
  }
  const template = compileTemplate(model.text, 'header');
  const { kind } = model;
  return { model, template, make: (view) => ({ kind, name, value: template.render(view).trim() }) };
};

const NOT_IN_PATH = /[^\x21-\x7e]|[#?"<>\\^`{|}]/g;
const percentEncoded = (character: string): string =>
  `%${character.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`;

const rooted = (path: string): string => (path.startsWith('/') ? path : `/${path}`);

/** `*` (RFC 9112 section 3.2.4) is no path, and stays. */
const rewriting =
  (rewrite: (view: RequestView) => void): Action =>
  (view) => {
    if (view.path === '*') return null;
    rewrite(view);
    return view.path.length + view.query.length < MAX_TARGET_BYTES ? null : TOO_LONG;
  };

const compileSetQuery = (query: string | [name: string, template: string | null][]): Action => {
  if (typeof query === 'string') {
    const template = compileTemplate(query.replace(/^\?/, ''), 'query');
    return rewriting((view) => {
      view.query = template.render(view);
    });
  }
  const parameters = query.map(([name, text]) => ({
    name: bytesOf(name),
    encoded: bytesOf(name).replaceAll(/[^\w\-.~]/g, percentEncoded),
    template: text === null ? null : compileTemplate(text, 'parameter'),
  }));
  return rewriting((view) => {
    // All are read before one is written.
    const values = parameters.map(({ template }) => template?.render(view));
    let changed = view.query;
    parameters.forEach(({ name, encoded, template }, index) => {
      changed = withoutParameter(changed, name);
      if (template) changed += `${changed === '' ? '' : '&'}${encoded}=${values[index]}`;
    });
    if (changed !== view.query) view.query = changed;
  });
};

const compileAuthentication = (realm: string, users: [string, string][]): Action => {
  const auth = new BasicAuth(realm, users);
  const refused = shared(answering(401, [['WWW-Authenticate', auth.challenge]]));
  return (view) => {
    const authorization = view.header('authorization');
    switch (auth.judge(authorization)) {
      case 'yes':
        view.user = auth.user;
        return null;
      case 'no':
        return refused;
      case 'busy':
        return UNAVAILABLE;
      case 'pending':
        return { ...UNAVAILABLE, wait: (resume) => auth.wait(authorization!, resume), isShared: false };
    }
  };
};
