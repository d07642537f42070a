/**
 * A configuration in layers: the text that a cluster shares, what is different on this node, and the node's own file. Maps
 * are merged key by key, lists and scalars are replaced; the later layer wins. Each value knows in which layer it stands.
 */
import { isMap, isScalar, LineCounter, parseDocument } from 'yaml';
import type { Document } from 'yaml';
import { messageOf } from '../errors.ts';
import type { Path } from './raw.ts';
import { valueAt } from './schemaNodes.ts';

/** `source` is what problems are told of; null for the only file there is. */
export type Layer = { source: string | null; text: string };

export type Place = { line: number; column: number; source?: string };

export class ParsedLayer {
  readonly document: Document;
  /** What YAML itself finds wrong. */
  readonly errors: { place: Place; message: string }[];
  readonly #layer: Layer;
  readonly #lines = new LineCounter();
  readonly #texts: string[];

  constructor(layer: Layer) {
    this.#layer = layer;
    this.#texts = layer.text.split('\n');
    this.document = parseDocument(layer.text, { lineCounter: this.#lines, uniqueKeys: true });
    this.errors = [...this.document.errors, ...this.document.warnings].map((error) => ({
      place: this.#at(error.pos[0]),
      message: error.message.split('\n')[0]!.replace(/ at line \d+.*$/, ''),
    }));
  }

  /** Where a value stands; of a missing one, where the map that lacks it does. */
  placeOf(path: Path, atKey: boolean): Place {
    return this.#at(offsetOf(this.document, path, atKey));
  }

  /** Plain values. What an alias without its anchor makes of it, or aliases that unfold to too much, is its message. */
  values(): { value: unknown } | { place: Place; message: string } {
    try {
      return { value: (this.document.toJS() as unknown) ?? {} };
    } catch (error) {
      return { place: this.#place(1, 1), message: messageOf(error) };
    }
  }

  #at(offset: number): Place {
    const { line, col } = this.#lines.linePos(Math.min(offset, this.#layer.text.length));
    const longest = (this.#texts[line - 1] ?? '').length + 1;
    return this.#place(Math.min(this.#texts.length, Math.max(1, line)), Math.min(longest, Math.max(1, col)));
  }

  #place(line: number, column: number): Place {
    const { source } = this.#layer;
    return { line, column, ...(source === null ? {} : { source }) };
  }
}

const isPlainMap = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** The later layer's word; of two maps, both. */
export const merged = (below: unknown, above: unknown): unknown => {
  if (!isPlainMap(below) || !isPlainMap(above)) return above;
  const both = Object.entries(below).map(([key, value]) => [
    key,
    Object.hasOwn(above, key) ? merged(value, above[key]) : value,
  ]);
  const added = Object.entries(above).filter(([key]) => !Object.hasOwn(below, key));
  return Object.fromEntries([...both, ...added]);
};

/**
 * The layer in which to look for what is wrong at a path: the one whose value it is. A map that several layers make up,
 * or that lacks something, is the first one's: that is where it is meant to be whole.
 */
export const layerOf = (values: readonly unknown[], path: Path): number => {
  let holders = values.map((_, index) => index);
  for (let length = 1; length <= path.length; length++) {
    const having = holders.filter((index) => valueAt(values[index], path.slice(0, length)) !== undefined);
    if (having.length === 0) return holders[0]!;
    // A list or a scalar replaces what stands below it.
    const replacing = having.findLastIndex((index) => !isPlainMap(valueAt(values[index], path.slice(0, length))));
    holders = having.slice(replacing === having.length - 1 ? replacing : replacing + 1);
  }
  return holders[0]!;
};

const offsetOf = (document: Document, path: Path, atKey: boolean): number => {
  for (let length = path.length; length >= 0; length--) {
    const parent: unknown = length > 0 ? document.getIn(path.slice(0, length - 1), true) : null;
    if (length > 0 && isMap(parent)) {
      const pair = parent.items.find(
        (item) => isScalar(item.key) && String(item.key.value) === String(path[length - 1]),
      );
      const key = pair?.key as { range?: [number, number, number] } | undefined;
      const value = pair?.value as { range?: [number, number, number] } | null | undefined;
      const range = (atKey && length === path.length) || isMap(value) ? key?.range : (value?.range ?? key?.range);
      if (range) return range[0];
      continue;
    }
    const node = (length === 0 ? document.contents : document.getIn(path.slice(0, length), true)) as {
      range?: [number, number, number];
    } | null;
    if (node?.range) return node.range[0];
  }
  return 0;
};
