/**
 * What rules change in the fields of a head. Edits are applied in their order to what came; the outcome is gathered in
 * one place, for headWriter.ts to write at once.
 */
import assert from 'node:assert/strict';
import { isNamed, MAX_FIELDS, nameOf, TOKEN, VALUE, valueOf } from './fields.ts';
import type { Fields } from './fields.ts';

/**
 * Names in any case. `set` removes all fields of the name and adds one. `replace` gives every field whose value the
 * pattern (without flags `g` and `y`) matches the whole new value, `$1` in it being a group, as HAProxy's replace-header
 * does.
 */
export type HeaderEdit =
  | { kind: 'set' | 'add' | 'remove'; name: string; value: string }
  | { kind: 'replace'; name: string; pattern: RegExp; value: string };

/** Framing and what belongs to one connection are the engine's alone: an edit of these would be a way to smuggle. */
const ENGINES_OWN = [
  'te',
  'upgrade',
  'trailer',
  'connection',
  'keep-alive',
  'content-length',
  'proxy-connection',
  'transfer-encoding',
];

/** Letters in `text` may have any case, `lower` has small ones. */
const equalsInLower = (text: string, lower: string): boolean => {
  if (text.length !== lower.length) return false;
  for (let at = 0; at < lower.length; at++) {
    const code = text.charCodeAt(at);
    if ((code >= 65 && code <= 90 ? code | 0x20 : code) !== lower.charCodeAt(at)) return false;
  }
  return true;
};

/** A name that rules may edit: a token, and none of the engine's own. */
export const isEditable = (name: string): boolean => {
  if (name.length === 0) return false;
  for (let at = 0; at < name.length; at++) if (TOKEN[name.charCodeAt(at)] !== 1) return false;
  for (const own of ENGINES_OWN) if (equalsInLower(name, own)) return false;
  return true;
};

/** Names that have been looked at; all come from the configuration. */
const editable = new Set<string>();

const checkName = (name: string): void => {
  if (editable.has(name)) return;
  if (!isEditable(name)) assert.fail(`an edit of ${JSON.stringify(name)}`);
  editable.add(name);
};

/**
 * Without what may not stand in a field (RFC 9110 section 5.5): templates put request data into values, and no line may
 * begin there. Characters above U+00FF go too: in a byte each they could become anything.
 */
export const fieldContent = (value: string): string => {
  for (let at = 0; at < value.length; at++) {
    if (VALUE[value.charCodeAt(at)] !== 1)
      return Array.from(value, (character) => (VALUE[character.charCodeAt(0)] === 1 ? character : '')).join('');
  }
  return value;
};

/** What became of each field: */
export const KEPT = 0;
export const GONE = 1;
/** its value is in `replacedValue`. */
export const REPLACED = 2;

/** Heads are written one at a time. */
export const fate = new Uint8Array(MAX_FIELDS);
export const replacedValue: string[] = [];
export const addedName: string[] = [];
export const addedValue: string[] = [];

/** Starts with all fields kept and none added. */
export const beginEdits = (fields: Fields): void => {
  fate.fill(KEPT, 0, fields.count);
  addedName.length = 0;
  addedValue.length = 0;
};

export const addLine = (name: string, value: string): void => {
  addedName.push(name);
  addedValue.push(fieldContent(value));
};

export const applyEdits = (fields: Fields, edits: readonly HeaderEdit[]): void => {
  for (const edit of edits) {
    checkName(edit.name);
    if (edit.kind === 'replace') replaceValues(fields, edit.name, edit.pattern, edit.value);
    else {
      // RFC 9112 section 3.2: exactly one Host.
      const isHost = equalsInLower(edit.name, 'host');
      if (isHost && edit.kind === 'remove') assert.fail('an edit that removes Host');
      if (edit.kind !== 'add' || isHost) removeAll(fields, edit.name);
      if (edit.kind !== 'remove') addLine(edit.name, edit.value);
    }
  }
};

/** A line of this name (in lower case) has been set or added. */
export const isAdded = (lowerName: string): boolean => {
  for (const name of addedName) if (equalsInLower(name, lowerName)) return true;
  return false;
};

/** Bytes that written edits take at most. */
export const editBytes = (fields: Fields): number => {
  let bytes = 0;
  for (let index = 0; index < addedName.length; index++)
    bytes += addedName[index]!.length + addedValue[index]!.length + 4;
  for (let index = 0; index < fields.count; index++)
    if (fate[index] === REPLACED) bytes += nameOf(fields, index).length + replacedValue[index]!.length + 4;
  return bytes;
};

const removeAll = (fields: Fields, name: string): void => {
  for (let index = 0; index < fields.count; index++) if (isNamed(fields, index, name)) fate[index] = GONE;
  if (addedName.length === 0) return;
  const lower = name.toLowerCase();
  for (let index = addedName.length - 1; index >= 0; index--) {
    if (!equalsInLower(addedName[index]!, lower)) continue;
    addedName.splice(index, 1);
    addedValue.splice(index, 1);
  }
};

const replaceValues = (fields: Fields, name: string, pattern: RegExp, replacement: string): void => {
  for (let index = 0; index < fields.count; index++) {
    if (fate[index] === GONE || !isNamed(fields, index, name)) continue;
    const value = fate[index] === REPLACED ? replacedValue[index]! : valueOf(fields, index);
    const replaced = replaceWhole(value, pattern, replacement);
    if (replaced === value) continue;
    fate[index] = REPLACED;
    replacedValue[index] = replaced;
  }
  const lower = name.toLowerCase();
  for (let index = 0; index < addedName.length; index++)
    if (equalsInLower(addedName[index]!, lower))
      addedValue[index] = replaceWhole(addedValue[index]!, pattern, replacement);
};

const replaceWhole = (value: string, pattern: RegExp, replacement: string): string => {
  const match = pattern.exec(value);
  if (!match) return value;
  const behind = value.length - match.index - match[0].length;
  // `replace` puts the groups in; what it keeps before and behind the match goes.
  const all = value.replace(pattern, replacement);
  return fieldContent(all.slice(match.index, all.length - behind));
};
