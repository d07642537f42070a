/** A request as the rule at hand sees it: what came, with what the rules before have changed. */
import type { Family } from './addresses.ts';
import { parseAddress } from './addresses.ts';
import type { RequestFacts } from './facts.ts';
import type { HeaderEdit } from './headEdits.ts';
import { replaceWhole } from './pattern.ts';

const NO_EDITS: readonly HeaderEdit[] = [];

const NOTHING: RequestFacts = {
  source: '',
  localAddress: '',
  localPort: 0,
  scheme: 'http',
  isTls: false,
  tls: null,
  serverName: null,
  method: '',
  host: '',
  path: '',
  query: '',
  header: () => null,
  cookie: () => null,
};

/** One serves a whole rule set: requests are decided one after the other. */
export class RequestView {
  facts: RequestFacts = NOTHING;
  id = '';
  /** Whom basic authentication has found; empty before. */
  user = '';
  edits = NO_EDITS;
  /** The rule at hand has been asked about this request before: it has its token, it is in the meters. */
  isCounted = false;
  /** Path or query are not those that came. */
  isRewritten = false;
  readonly sourceWords = new Uint32Array(4);
  #path = '';
  #query = '';
  #plainPath: string | null = null;
  #source: string | null = null;
  #family: Family = 0;

  begin(facts: RequestFacts, id: string): void {
    this.facts = facts;
    this.id = id;
    this.user = '';
    this.edits = NO_EDITS;
    this.isRewritten = false;
    this.#path = facts.path;
    this.#query = facts.query;
    this.#plainPath = null;
  }

  /** Lets go of the request. */
  end(): void {
    this.facts = NOTHING;
    this.edits = NO_EDITS;
  }

  get path(): string {
    return this.#path;
  }

  set path(path: string) {
    this.#path = path;
    this.#plainPath = null;
    this.isRewritten = true;
  }

  get query(): string {
    return this.#query;
  }

  set query(query: string) {
    this.#query = query;
    this.isRewritten = true;
  }

  get target(): string {
    return this.#query === '' ? this.#path : `${this.#path}?${this.#query}`;
  }

  /** The path as a server will understand it; conditions look at this, so that no spelling of a path gets around them. */
  get plainPath(): string {
    return (this.#plainPath ??= plainPathOf(this.#path));
  }

  /** The family of the client's address, whose words are in `sourceWords`. */
  get family(): Family {
    const { source } = this.facts;
    if (source !== this.#source) {
      this.#source = source;
      this.#family = parseAddress(source, this.sourceWords);
    }
    return this.#family;
  }

  get host(): string {
    const { edits, facts } = this;
    if (edits.length === 0 || !edits.some(({ name }) => isName(name, 'host'))) return facts.host;
    return (this.header('host') ?? '').toLowerCase().replace(/:\d*$/, '');
  }

  /** `name` in lower case. */
  header(name: string): string | null {
    const value = this.facts.header(name);
    return this.edits.length === 0 ? value : edited(value, name, this.edits);
  }

  cookie(name: string): string | null {
    const { edits, facts } = this;
    if (edits.length === 0 || !edits.some((edit) => isName(edit.name, 'cookie'))) return facts.cookie(name);
    for (const pair of (this.header('cookie') ?? '').split(';')) {
      const equals = pair.indexOf('=');
      if (equals >= 0 && pair.slice(0, equals).trim() === name) return pair.slice(equals + 1).trim();
    }
    return null;
  }
}

const isName = (name: string, lower: string): boolean => name.length === lower.length && name.toLowerCase() === lower;

const edited = (value: string | null, lower: string, edits: readonly HeaderEdit[]): string | null => {
  let now = value;
  for (const edit of edits) {
    if (!isName(edit.name, lower)) continue;
    if (edit.kind === 'replace') now = now === null ? null : replaceWhole(now, edit.pattern, edit.value);
    else if (edit.kind === 'remove') now = null;
    else now = edit.kind === 'set' || now === null ? edit.value : `${now}, ${edit.value}`;
  }
  return now;
};

/** Bytes for `%xx`; what isn't hexadecimal stays. `%2F` stays too: servers differ on whether it parts segments. */
const decodedPath = (path: string): string =>
  path.replaceAll(/%([\da-fA-F]{2})/g, (_, digits: string) =>
    digits === '2F' || digits === '2f' ? '%2F' : String.fromCharCode(Number.parseInt(digits, 16)),
  );

/** RFC 3986 section 6.2.2: percent-encoding and dot segments undone; and empty segments, as most servers do. */
export const plainPathOf = (path: string): string => {
  if (!path.includes('%') && !path.includes('//') && !path.includes('/.')) return path;
  const segments: string[] = [];
  const parts = decodedPath(path).split('/');
  for (const part of parts) {
    if (part === '..') segments.pop();
    else if (part !== '' && part !== '.') segments.push(part);
  }
  const last = parts.at(-1);
  const isFolder = last === '' || last === '.' || last === '..';
  return segments.length === 0 ? '/' : `/${segments.join('/')}${isFolder ? '/' : ''}`;
};
