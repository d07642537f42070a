/** Host names and SNI: exact, `*.example.com` for any name below, `*` for any at all. */

/** RFC 1035 section 2.3.4. A hostile one of thousands of dots is not looked through. */
const LONGEST_NAME = 255;

/** Names with a value each. Of those that match, the one that was added first counts. */
export class NameTable {
  #exact = new Map<string, number>();
  #below = new Map<string, number>();
  #any = Infinity;

  add(pattern: string, order: number): void {
    const name = pattern.toLowerCase();
    if (name === '*') this.#any = Math.min(this.#any, order);
    else if (name.startsWith('*.')) keepFirst(this.#below, name.slice(1), order);
    else keepFirst(this.#exact, name, order);
  }

  /** The order of the first that matches; Infinity without. `name` in lower case. */
  find(name: string): number {
    let first = Math.min(this.#any, this.#exact.get(name) ?? Infinity);
    if (this.#below.size === 0 || name.length > LONGEST_NAME) return first;
    for (let dot = name.indexOf('.', 1); dot >= 0; dot = name.indexOf('.', dot + 1)) {
      const order = this.#below.get(name.slice(dot));
      if (order !== undefined && order < first) first = order;
    }
    return first;
  }
}

const keepFirst = (table: Map<string, number>, name: string, order: number): void => {
  if (!table.has(name)) table.set(name, order);
};
