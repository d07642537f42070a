/**
 * Templates of header values, paths and locations: text with `{variables}` of the request. Parsed once; what varies is
 * encoded for the place that it comes to, so that no client can write a header, a parameter or a host of its own.
 */
import assert from 'node:assert/strict';
import { fieldContent } from './headEdits.ts';
import { bytesOf } from './pattern.ts';
import { decodedParameter, firstParameter } from './queryString.ts';
import type { RequestView } from './requestView.ts';

/** Where the text goes: what its values may consist of depends on that. */
export type Place = 'header' | 'location' | 'path' | 'query' | 'parameter';

export type Template = {
  /** The whole text, when nothing in it varies. */
  readonly constant: string | null;
  /** It has a few values at most, whatever clients send. */
  readonly isFew: boolean;
  readonly usesHost: boolean;
  render(view: RequestView): string;
};

/** `url`: already encoded as a part of a target is. */
type Variable = { read: (view: RequestView) => string; isUrl?: boolean; isFew?: boolean };

const VARIABLES: Record<string, Variable> = {
  scheme: { read: ({ facts }) => facts.scheme, isFew: true },
  host: { read: (view) => view.host },
  path: { read: (view) => view.path, isUrl: true },
  query: { read: (view) => view.query, isUrl: true },
  uri: { read: (view) => view.target, isUrl: true },
  method: { read: ({ facts }) => facts.method },
  source: { read: ({ facts }) => facts.source },
  localPort: { read: ({ facts }) => String(facts.localPort), isFew: true },
  serverName: { read: ({ facts }) => facts.serverName ?? '' },
  tlsVersion: { read: ({ facts }) => facts.tls?.protocol ?? '', isFew: true },
  tlsCipher: { read: ({ facts }) => facts.tls?.cipher ?? '', isFew: true },
  /** Of a certificate that the client has shown, and that was verified; empty without. */
  clientSubject: { read: ({ facts }) => facts.tls?.client?.subject ?? '' },
  clientIssuer: { read: ({ facts }) => facts.tls?.client?.issuer ?? '' },
  clientSerial: { read: ({ facts }) => facts.tls?.client?.serial ?? '' },
  clientFingerprint: { read: ({ facts }) => facts.tls?.client?.fingerprint ?? '' },
  clientNotAfter: { read: ({ facts }) => facts.tls?.client?.notAfter ?? '' },
  id: { read: (view) => view.id },
  user: { read: (view) => view.user },
};

/** Those that name what they read, as in `{header:Accept}`. */
const NAMED: Record<string, (name: string, place: Place) => Variable> = {
  header: (name) => {
    const lower = name.toLowerCase();
    return { read: (view) => view.header(lower) ?? '' };
  },
  cookie: (name) => ({ read: (view) => view.cookie(name) ?? '' }),
  query: (name, place) => {
    const bytes = bytesOf(name);
    return place === 'header'
      ? { read: (view) => decodedParameter(firstParameter(view.query, bytes) ?? '') }
      : { read: (view) => firstParameter(view.query, bytes) ?? '', isUrl: true };
  },
};

const ALLOWED = [...Object.keys(VARIABLES), ...Object.keys(NAMED).map((kind) => `${kind}:NAME`)]
  .map((name) => `{${name}}`)
  .join(', ');

type Part = { text: string } | { variable: string; name: string };

/** A text, or what is wrong with it. */
const parse = (source: string): Part[] | string => {
  const parts: Part[] = [];
  let text = '';
  for (let at = 0; at < source.length; at++) {
    const character = source[at]!;
    if (character !== '{') {
      text += character;
      // `}}` is what some write to go with `{{`.
      if (character === '}' && source[at + 1] === '}') at++;
      continue;
    }
    if (source[at + 1] === '{') {
      text += '{';
      at++;
      continue;
    }
    const end = source.indexOf('}', at);
    if (end < 0) return 'a { is not closed; {{ stands for one that is meant as such';
    const [variable = '', ...rest] = source.slice(at + 1, end).split(':');
    const name = rest.join(':');
    const isKnown =
      rest.length === 0 ? Object.hasOwn(VARIABLES, variable) : Object.hasOwn(NAMED, variable) && name !== '';
    if (!isKnown)
      return `there is no variable ${source.slice(at, end + 1)}; allowed are ${ALLOWED}, and {{ for a brace`;
    if (text !== '') parts.push({ text });
    text = '';
    parts.push({ variable, name });
    at = end;
  }
  if (text !== '') parts.push({ text });
  return parts;
};

export const templateProblem = (source: string): string | null => {
  const parts = parse(source);
  return typeof parts === 'string' ? parts : null;
};

const NOT_IN_URL = /[^\w\-.~!$&'()*+,;=:@/?[\]]/g;
const NOT_IN_PATH = /[^\w\-.~!$&'()*+,;=:@/]/g;
const NOT_IN_TARGET = /[^\x21-\x7e]|[#"<>\\^`{|}]/g;
const NOT_IN_PARAMETER = /[^\w\-.~]/g;

const percentEncoded = (character: string): string =>
  `%${character.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`;

const ENCODERS: Record<Place, (value: string, isUrl: boolean) => string> = {
  header: fieldContent,
  location: (value, isUrl) => (isUrl ? value : value.replaceAll(NOT_IN_URL, percentEncoded)),
  path: (value, isUrl) => (isUrl ? value.replaceAll('?', '%3F') : value.replaceAll(NOT_IN_PATH, percentEncoded)),
  query: (value, isUrl) => (isUrl ? value : value.replaceAll(NOT_IN_PARAMETER, percentEncoded)),
  parameter: (value) => value.replaceAll(NOT_IN_PARAMETER, percentEncoded),
};

/** What the operator wrote: only what may not stand there is encoded. A parameter's value is given as it is meant. */
const literal = (text: string, place: Place): string => {
  const bytes = bytesOf(text);
  if (place === 'header') return bytes;
  if (place === 'parameter') return bytes.replaceAll(NOT_IN_PARAMETER, percentEncoded);
  return bytes.replaceAll(NOT_IN_TARGET, (character) =>
    character === '#' && place === 'location' ? character : percentEncoded(character),
  );
};

/** Of a text in which `templateProblem` finds nothing. */
export const compileTemplate = (source: string, place: Place): Template => {
  const parts = parse(source);
  assert.ok(typeof parts !== 'string', `the template ${source} was checked before`);
  const encode = ENCODERS[place];
  let isFew = true;
  let usesHost = false;
  const renders = parts.map((part): string | ((view: RequestView) => string) => {
    if ('text' in part) return literal(part.text, place);
    const {
      read,
      isUrl = false,
      isFew: isPartFew = false,
    } = part.name === '' ? VARIABLES[part.variable]! : NAMED[part.variable]!(part.name, place);
    isFew &&= isPartFew;
    usesHost ||= part.variable === 'host' && part.name === '';
    if (isPartFew) return read;
    // A value of a parameter is already encoded as one.
    const isParameter = place === 'parameter' && part.variable === 'query' && part.name !== '';
    return isParameter ? read : (view) => encode(read(view), isUrl);
  });
  if (renders.every((render) => typeof render === 'string')) {
    const constant = renders.join('');
    return { constant, isFew: true, usesHost, render: () => constant };
  }
  const [only] = renders;
  if (renders.length === 1 && typeof only === 'function') return { constant: null, isFew, usesHost, render: only };
  const render = (view: RequestView): string => {
    let text = '';
    for (const one of renders) text += typeof one === 'string' ? one : one(view);
    return text;
  };
  return { constant: null, isFew, usesHost, render };
};
