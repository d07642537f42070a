/** Regular expressions and texts of rules, matched against what a client sent: hostile until shown otherwise. */
import { messageOf } from '../errors.ts';

/** Text as the parser gives it: one character a byte, so that UTF-8 in a configuration meets UTF-8 on the wire. */
export const bytesOf = (text: string): string => Buffer.from(text, 'utf8').toString('latin1');

export const compilePattern = (source: string): RegExp => new RegExp(bytesOf(source));

/** As HAProxy's replace-header: what is found decides, `$1` are its groups, and the whole text becomes the replacement. */
export const replaceWhole = (text: string, pattern: RegExp, replacement: string): string => {
  const match = pattern.exec(text);
  if (!match) return text;
  const behind = text.length - match.index - match[0].length;
  const all = text.replace(pattern, replacement);
  return all.slice(match.index, all.length - behind);
};

/** What speaks against a pattern: that it is none, or that a hostile text could keep it busy; null when nothing does. */
export const patternProblem = (source: string): string | null => {
  try {
    RegExp(source);
  } catch (error) {
    return messageOf(error);
  }
  const { nested, wide } = judge(source);
  if (nested !== null)
    return `${nested} repeats what is repeated already; a hostile text could keep it busy for hours. Take one quantifier, or begin what repeats with a character that can't occur within`;
  if (wide > MAX_WIDE)
    return `more than ${MAX_WIDE} parts can grow into each other (such as .*); a hostile text could keep it busy for minutes. Say what may stand there, such as [^/]+ before a /, and begin with ^`;
  return null;
};

/** Each part that can take what its neighbour could is one more power of the text's length: 8 KiB squared takes 50 ms. */
const MAX_WIDE = 2;

/** One thing of a sequence: a character or class, or a group; and whether it repeats without end. */
type Piece = {
  text: string;
  /** What the alternatives of a group consist of; null for a single character. */
  alternatives: Piece[][] | null;
  optional: boolean;
  endless: boolean;
  /** `^`, `$`, `\b`, look-arounds: takes no character. */
  empty: boolean;
};

type Judgement = { nested: string | null; wide: number };

const judge = (source: string): Judgement => {
  const { alternatives } = parseAlternatives(source, 0);
  const found: Judgement = { nested: null, wide: 0 };
  for (const pieces of alternatives) {
    // Without ^ a search begins anywhere, which is one power too.
    const own: Judgement = { nested: null, wide: pieces[0]?.text === '^' ? 0 : 1 };
    visit(pieces, undefined, own);
    found.nested ??= own.nested;
    found.wide = Math.max(found.wide, own.wide);
  }
  return found;
};

/** `after` is what follows the group that the pieces are in. */
const visit = (pieces: Piece[], after: Piece | undefined, found: Judgement): void => {
  pieces.forEach((piece, index) => {
    const next = index + 1 < pieces.length ? pieces[index + 1] : after;
    if (piece.alternatives) {
      if (piece.endless && isAmbiguous(piece.alternatives)) found.nested ??= piece.text;
      for (const alternative of piece.alternatives) visit(alternative, next, found);
    } else if (piece.endless && !isClosedBy(piece, next)) found.wide++;
  });
};

/** `[^/]+/` can end in one place only. What ends the pattern takes all there is. */
const isClosedBy = (piece: Piece, next: Piece | undefined): boolean =>
  next === undefined || next.text === '$' || (!next.optional && areDisjoint(piece, next));

const isAmbiguous = (alternatives: Piece[][]): boolean => {
  const firsts = alternatives.map((pieces) => pieces.find(({ empty }) => !empty));
  // Two alternatives that may begin alike, or one that may be empty, can share a text out in many ways.
  for (const [index, first] of firsts.entries()) {
    if (first === undefined || first.optional) return true;
    if (firsts.slice(0, index).some((other) => other === undefined || !areDisjoint(first, other))) return true;
  }
  return alternatives.some((pieces) => {
    const inner = endlessWithin(pieces);
    if (inner.length === 0) return false;
    const ends = [pieces.find(({ empty }) => !empty)!, pieces.findLast(({ empty }) => !empty)!];
    return !ends.some(
      (end) =>
        !end.endless && !end.optional && end.alternatives === null && inner.every((one) => areDisjoint(end, one)),
    );
  });
};

const endlessWithin = (pieces: Piece[]): Piece[] =>
  pieces.flatMap((piece) => [
    ...(piece.endless ? [piece] : []),
    ...(piece.alternatives ? piece.alternatives.flatMap(endlessWithin) : []),
  ]);

const CHARACTERS = Array.from({ length: 256 }, (_, code) => String.fromCharCode(code));

/** No character fits both. Groups are not looked into. */
const areDisjoint = (a: Piece, b: Piece): boolean => {
  if (a.alternatives || b.alternatives || a.empty || b.empty) return false;
  const first = new RegExp(`^${a.text}$`);
  const second = new RegExp(`^${b.text}$`);
  return !CHARACTERS.some((character) => first.test(character) && second.test(character));
};

const QUANTIFIER = /^(?:[*+?]|\{\d+(?:,\d*)?\})\??/;
const CLASS = /^\[\^?(?:\\[\s\S]|[^\]\\])*\]/;
const ESCAPE = /^\\(?:x[\da-fA-F]{2}|u[\da-fA-F]{4}|c[A-Za-z]|k<[^>]*>|[\s\S])/;
const GROUP_START = /^\((?:\?(?:[:=!]|<[=!]|<[^>=!][^>]*>|[a-z]*(?:-[a-z]*)?:))?/;
/** Counts up to this are written out rather than searched through. */
const SMALL_COUNT = 10;

const parseAlternatives = (source: string, from: number): { alternatives: Piece[][]; end: number } => {
  const alternatives: Piece[][] = [[]];
  let at = from;
  while (at < source.length && source[at] !== ')') {
    if (source[at] === '|') {
      alternatives.push([]);
      at++;
      continue;
    }
    const start = at;
    const rest = source.slice(at);
    let inner: Piece[][] | null = null;
    let empty = false;
    if (source[at] === '(') {
      const opening = GROUP_START.exec(rest)![0];
      const group = parseAlternatives(source, at + opening.length);
      inner = group.alternatives;
      empty = /^\(\?<?[=!]/.test(opening);
      at = group.end + 1;
    } else {
      const [text] = CLASS.exec(rest) ?? ESCAPE.exec(rest) ?? [rest[0]!];
      empty = text === '^' || text === '$' || text === '\\b' || text === '\\B';
      at += text.length;
    }
    const text = source.slice(start, at);
    const [quantifier] = QUANTIFIER.exec(source.slice(at)) ?? [''];
    at += quantifier.length;
    const [, least, most] = /^\{(\d+)(?:,(\d*))?\}/.exec(quantifier) ?? [];
    const endless =
      /^[*+]/.test(quantifier) ||
      most === '' ||
      Number(most ?? (inner && least !== undefined ? least : 0)) > SMALL_COUNT;
    const optional = /^[*?]/.test(quantifier) || (least !== undefined && Number(least) === 0);
    alternatives.at(-1)!.push({ text, alternatives: inner, optional, endless, empty });
  }
  return { alternatives, end: at };
};
