/** IP addresses as numbers, and sets of networks that are searched in logarithmic time. */
import ipaddr from 'ipaddr.js';

/** 4: the first word holds it. 6: four words. 0: not an IP address, such as the peer of a Unix socket. */
export type Family = 4 | 6 | 0;

const COLON = 58;
const DOT = 46;
const PERCENT = 37;

/** Reads an address into `words`. An IPv4 address within IPv6 (RFC 4291 section 2.5.5.2) is the IPv4 address. */
export const parseAddress = (text: string, words: Uint32Array): Family => {
  if (text.includes(':')) return parseIPv6(text, words);
  const value = parseIPv4(text, 0, text.length);
  if (value < 0) return 0;
  words[0] = value;
  return 4;
};

/** -1 when it is none. */
const parseIPv4 = (text: string, from: number, to: number): number => {
  let value = 0;
  let part = -1;
  let dots = 0;
  for (let at = from; at < to; at++) {
    const code = text.charCodeAt(at);
    if (code >= 48 && code <= 57) {
      part = (part < 0 ? 0 : part * 10) + code - 48;
      if (part > 255) return -1;
    } else if (code === DOT && part >= 0 && dots < 3) {
      value = value * 256 + part;
      part = -1;
      dots++;
    } else return -1;
  }
  return dots === 3 && part >= 0 ? value * 256 + part : -1;
};

const hexDigit = (code: number): number => {
  if (code >= 48 && code <= 57) return code - 48;
  const lower = code | 0x20;
  return lower >= 97 && lower <= 102 ? lower - 87 : -1;
};

const groups = new Uint16Array(8);

const parseIPv6 = (text: string, words: Uint32Array): Family => {
  groups.fill(0);
  let count = 0;
  let gap = -1;
  let at = 0;
  if (text.charCodeAt(0) === COLON) {
    if (text.charCodeAt(1) !== COLON) return 0;
    gap = 0;
    at = 2;
  }
  while (at < text.length && text.charCodeAt(at) !== PERCENT) {
    if (count === 8) return 0;
    const start = at;
    let group = 0;
    for (let digit = 0; at < text.length && (digit = hexDigit(text.charCodeAt(at))) >= 0; at++)
      group = group * 16 + digit;
    const next = at < text.length ? text.charCodeAt(at) : PERCENT;
    if (next === DOT) {
      const value = parseIPv4(text, start, text.length);
      if (value < 0 || count > 6) return 0;
      groups[count++] = value >>> 16;
      groups[count++] = value & 0xffff;
      break;
    }
    if (at === start || at - start > 4) return 0;
    groups[count++] = group;
    if (next === PERCENT) break;
    if (next !== COLON) return 0;
    at++;
    if (text.charCodeAt(at) === COLON) {
      if (gap >= 0) return 0;
      gap = count;
      at++;
    } else if (at === text.length) return 0;
  }
  if (gap < 0 ? count !== 8 : count > 7) return 0;
  if (gap >= 0) {
    groups.copyWithin(8 - (count - gap), gap, count);
    groups.fill(0, gap, 8 - (count - gap));
  }
  for (let word = 0; word < 4; word++) words[word] = groups[word * 2]! * 0x10000 + groups[word * 2 + 1]!;
  if (words[0] !== 0 || words[1] !== 0 || words[2] !== 0xffff) return 6;
  words[0] = words[3]!;
  return 4;
};

/** What `10.0.0.0/8` or an address stands for; null when it is neither. */
export const parseNetwork = (text: string): { family: 4 | 6; first: number[]; last: number[] } | null => {
  const [host = '', length, ...more] = text.split('/');
  const words = new Uint32Array(4);
  const family = host.includes('%') ? 0 : parseAddress(host, words);
  // Mapped IPv4 with the length of an IPv6 prefix would be read in two ways.
  if (family === 0 || more.length > 0 || (family === 4 && host.includes(':')) || !ipaddr.isValid(host)) return null;
  const count = family === 4 ? 1 : 4;
  const bits = length === undefined ? count * 32 : /^\d{1,3}$/.test(length) ? Number(length) : -1;
  if (bits < 0 || bits > count * 32) return null;
  const first: number[] = [];
  const last: number[] = [];
  for (let word = 0; word < count; word++) {
    const ones = Math.min(32, Math.max(0, bits - word * 32));
    const mask = ones === 0 ? 0 : (0xffffffff << (32 - ones)) >>> 0;
    first.push((words[word]! & mask) >>> 0);
    last.push((words[word]! | ~mask) >>> 0);
  }
  return { family, first, last };
};

/** Ranges that don't touch, in order, `size` words each. */
class Ranges {
  #size: number;
  #firsts: Uint32Array;
  #lasts: Uint32Array;
  #count: number;

  constructor(size: number, networks: { first: number[]; last: number[] }[]) {
    // Networks lie within each other or apart: of those that begin alike the widest comes first, and the rest is in it.
    const sorted = networks.toSorted((a, b) => compareWords(a.first, b.first) || compareWords(b.last, a.last));
    const kept: { first: number[]; last: number[] }[] = [];
    for (const network of sorted) {
      const before = kept.at(-1);
      if (!before || compareWords(network.first, before.last) > 0) kept.push(network);
    }
    this.#size = size;
    this.#firsts = Uint32Array.from(kept.flatMap(({ first }) => first));
    this.#lasts = Uint32Array.from(kept.flatMap(({ last }) => last));
    this.#count = kept.length;
  }

  has(words: Uint32Array): boolean {
    let low = 0;
    let high = this.#count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#compare(words, this.#firsts, middle) < 0) high = middle;
      else low = middle + 1;
    }
    return low > 0 && this.#compare(words, this.#lasts, low - 1) <= 0;
  }

  #compare(words: Uint32Array, bounds: Uint32Array, index: number): number {
    for (let word = 0, at = index * this.#size; word < this.#size; word++, at++) {
      if (words[word]! !== bounds[at]!) return words[word]! < bounds[at]! ? -1 : 1;
    }
    return 0;
  }
}

const compareWords = (a: number[], b: number[]): number => {
  for (const [index, word] of a.entries()) if (word !== b[index]) return word - b[index]!;
  return 0;
};

export class AddressSet {
  #v4: Ranges;
  #v6: Ranges;

  /** Of networks that `parseNetwork` takes. */
  constructor(networks: readonly string[]) {
    const parsed = networks.map((network) => parseNetwork(network)).filter((network) => network !== null);
    this.#v4 = new Ranges(
      1,
      parsed.filter(({ family }) => family === 4),
    );
    this.#v6 = new Ranges(
      4,
      parsed.filter(({ family }) => family === 6),
    );
  }

  has(family: Family, words: Uint32Array): boolean {
    return family === 4 ? this.#v4.has(words) : family === 6 && this.#v6.has(words);
  }
}
