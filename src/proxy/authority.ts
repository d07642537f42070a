/** Hosts and targets as requests name them (RFC 9110 section 7.2, RFC 9112 section 3.2), checked and brought to one form. */
import { isIPv6 } from 'node:net';

/** RFC 3986 section 3.2.2: reg-name, and a port. But no comma, with which a list of Hosts would be one. */
const AUTHORITY = /^(?:[\w.~!$&'()*+;=-]|%[\da-f]{2})*(?::\d*)?$/i;
const BRACKETED = /^\[([\da-f:.]+)\](?::\d*)?$/i;

/** `text` is a host and perhaps a port. RFC 9110 section 4.2.1: a host that is empty has no port either. */
export const isAuthority = (text: string): boolean => {
  const bracketed = BRACKETED.exec(text);
  return bracketed ? isIPv6(bracketed[1]!) : AUTHORITY.test(text) && !text.startsWith(':');
};

/** In lower case, without port. */
export const hostIn = (authority: string): string => authority.replace(/:\d*$/, '').toLowerCase();

/** Hosts seen lately: nearly all requests name one of a few, and comparing costs less than making the string again. */
const KNOWN_HOSTS = 64;
const MAX_KNOWN_BYTES = 64;
const knownFields: string[] = Array.from({ length: KNOWN_HOSTS }, () => '');
const knownHosts: string[] = Array.from({ length: KNOWN_HOSTS }, () => '');

/** The host in the Host field at these offsets; null when it is no authority. */
export const readHost = (bytes: Buffer, start: number, end: number): string | null => {
  const length = end - start;
  if (length === 0) return '';
  const slot = (length * 31 + bytes[start]! * 7 + bytes[start + (length >> 1)]! + bytes[end - 1]!) % KNOWN_HOSTS;
  const known = knownFields[slot]!;
  if (known.length === length) {
    let index = 0;
    while (index < length && bytes[start + index] === known.charCodeAt(index)) index++;
    if (index === length) return knownHosts[slot]!;
  }
  const text = bytes.toString('latin1', start, end);
  if (!isAuthority(text)) return null;
  const host = hostIn(text);
  if (length <= MAX_KNOWN_BYTES) {
    knownFields[slot] = text;
    knownHosts[slot] = host;
  }
  return host;
};

/** What a target says: null for the target where it is sent on as it came, and for the authority where it has none. */
type Form = { target: string | null; authority: string | null };
export const ORIGIN_FORM: Form = { target: null, authority: null };
const ABSOLUTE_FORM = /^https?:\/\/([^/?]+)([/?].*)?$/i;

/** RFC 9112 section 3.2: absolute form, or `*` for OPTIONS; null for anything else. */
export const targetOf = (text: string, method: string): Form | null => {
  if (text === '*') return method === 'OPTIONS' ? { target: text, authority: null } : null;
  const match = ABSOLUTE_FORM.exec(text);
  // RFC 9110 section 4.2.4: a user in front of the host only hides which host it is.
  if (!match || !isAuthority(match[1]!)) return null;
  // RFC 9112 section 3.2.4: OPTIONS without a path is about the server as a whole.
  const rest = match[2] ?? (method === 'OPTIONS' ? '*' : '/');
  return { target: rest.startsWith('?') ? `/${rest}` : rest, authority: match[1]! };
};
